"""What objectives compute: hand-made numbers, and what must not matter."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from egkd.lessons import stack
from egkd.models import Seen, frozen, log_odds, observe
from egkd.objectives import GradientGuide, Labels, Moment, PerturbationGuide, SelectionGuide, SoftLabels, Teacher
from egkd.objectives.gradient import scores_distance
from egkd.objectives.perturbation import draw_masks, outputs_distance
from egkd.predict import encode_dataset
from egkd.text import collate


@pytest.fixture
def moment(tokenizer: Any) -> Moment:
    return Moment(step=0, epoch=0, tokenizer=tokenizer)


def seen(*logits: list[float]) -> Seen:
    return Seen(logits_BC=torch.tensor(logits))


def test_soft_labels_by_hand(moment: Moment) -> None:
    # softened by T = 2: teacher (0.5, 0.5), student (3/4, 1/4); KL = 0.5 ln(2/3) + 0.5 ln 2, times T² = 4
    lesson = {"logits": torch.tensor([[0.0, 0.0]])}
    student = seen([2 * math.log(3.0), 0.0])
    expected = 4 * 0.5 * (math.log(2 / 3) + math.log(2))
    assert SoftLabels(temperature=2.0).learn(student, [], {}, lesson, moment).item() == pytest.approx(expected)
    assert SoftLabels(distance="mse").learn(student, [], {}, lesson, moment).item() == pytest.approx(2 * math.log(3.0) ** 2)
    regression = SoftLabels().learn(seen([1.5]), [], {}, {"logits": torch.tensor([[1.0]])}, moment)
    assert regression.item() == pytest.approx(0.25)


def test_labels_by_hand_and_rows_without_one_cost_nothing(moment: Moment) -> None:
    losses = Labels().learn(seen([0.0, 0.0], [5.0, 1.0]), [], {"labels": torch.tensor([1, -100])}, {}, moment)
    assert losses.tolist() == pytest.approx([math.log(2), 0.0])
    losses = Labels().learn(seen([2.0], [7.0]), [], {"labels": torch.tensor([1.5, float("nan")])}, {}, moment)
    assert losses.tolist() == pytest.approx([0.25, 0.0])


def test_log_odds_by_hand() -> None:
    logits = torch.tensor([[1.0, 3.0], [2.0, 0.5]])
    assert log_odds(logits, torch.tensor([1, 1])).tolist() == pytest.approx([2.0, -1.5])
    three = torch.tensor([[0.3, -1.0, 2.0]])
    p = three.softmax(1)[0, 2]
    assert log_odds(three, torch.tensor([2])).item() == pytest.approx(torch.log(p / (1 - p)).item(), rel=1e-5)
    assert log_odds(torch.tensor([[4.0]])).tolist() == [4.0]


@pytest.mark.parametrize("distance", ["mse", "correlation"])
def test_scores_distance_ignores_scale_and_padding(distance: str) -> None:
    scores = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    other = torch.rand(4, 6, generator=torch.Generator().manual_seed(1))
    real = torch.ones(4, 6, dtype=torch.bool)
    real[:, 5] = False
    base = scores_distance(scores, other, real, distance)
    torch.testing.assert_close(scores_distance(scores, 7 * scores, real, distance), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(scores_distance(3 * scores, other, real, distance), base)
    torch.testing.assert_close(scores_distance(scores[:, :5], other[:, :5], real[:, :5], distance), base)


def test_scores_distance_by_hand() -> None:
    real = torch.ones(1, 3, dtype=torch.bool)
    first, second = torch.tensor([[3.0, 4.0, 0.0]]), torch.tensor([[0.0, 0.0, 2.0]])
    assert scores_distance(first, second, real, "mse").item() == pytest.approx(2.0)
    expected = 1 - np.corrcoef([3, 4, 0], [0, 0, 2])[0, 1]
    assert scores_distance(first, second, real, "correlation").item() == pytest.approx(expected, rel=1e-5)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn(
    tiny_bert: Any, tokenizer: Any, tiny_data: Dataset, moment: Moment, tmp_path: Path
) -> None:
    model = tiny_bert()
    encoded = encode_dataset(tiny_data.select(range(6)), tokenizer)
    batch = collate(list(encoded), tokenizer.pad_token_id)
    with frozen(model):
        view = observe(model, batch, keep=("embeddings",), differentiable=True)
        for objective in (
            GradientGuide(),
            GradientGuide(attribution="input-x-gradient"),
            PerturbationGuide(masks=2),
            SelectionGuide(),
        ):
            prepared = objective.prepare(Teacher(model=model, tokenizer=tokenizer), encoded, tmp_path)
            taught = objective.teach(Teacher(model=model, tokenizer=tokenizer, prepared=prepared), batch, view)
            lesson = {name: stack([np.asarray(value) for value in values]) for name, values in taught.items()}
            copies = [observe(model, copy) for copy in objective.copies(batch, lesson, moment)]
            losses = objective.learn(view, copies, batch, lesson, moment)
            torch.testing.assert_close(losses, torch.zeros(6), atol=1e-5, rtol=0)


def test_masks_are_the_examples_own_and_of_the_size_asked_for() -> None:
    assert np.array_equal(draw_masks(3, 9, 4, "shapley"), draw_masks(3, 9, 4, "shapley"))
    assert not np.array_equal(draw_masks(3, 9, 4, "shapley"), draw_masks(4, 9, 4, "shapley"))
    keep = draw_masks(1, 7, 6, "uniform")
    assert np.array_equal(keep[0::2], ~keep[1::2])
    assert keep.any(1).all()
    assert not keep.all(1).any()
    single = draw_masks(1, 5, 10, "leave-one-out")
    assert ((~single).sum(1) == 1).all()
    mixed = draw_masks(1, 5, 8, "mixed")
    assert ((~mixed[0::2]).sum(1) == 1).all()
    assert np.array_equal(mixed[1::4], ~mixed[3::4])
    assert np.array_equal((~single[:5]).sum(0), np.ones(5))  # each word once before any comes again


def test_every_epoch_takes_the_next_masks_of_the_bank(tokenizer: Any, tiny_data: Dataset) -> None:
    guide = PerturbationGuide(masks=3, masks_per_step=2)
    batch = collate(list(encode_dataset(tiny_data.select(range(2)), tokenizer)), tokenizer.pad_token_id)
    units = int(batch["n_units"].max())
    keep = torch.zeros(2, 3, units, dtype=torch.bool)
    keep[:, 0, 0] = keep[:, 1, 1] = keep[:, 2, 2] = True
    taken = []
    for epoch in range(3):
        (copy,) = guide.copies(batch, {"keep": keep}, Moment(step=9, epoch=epoch, tokenizer=tokenizer))
        kept = (copy["input_ids"] != tokenizer.mask_token_id) & (copy["unit_ids"] >= 0)
        taken.append([int(row[kept[place]][0]) for place, row in enumerate(copy["unit_ids"])])
    assert taken == [[0, 1, 0, 1], [2, 0, 2, 0], [1, 2, 1, 2]]


def test_outputs_distance_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 3.0]])
    assert outputs_distance(student, teacher, "log-odds").item() == pytest.approx(4.0)
    assert outputs_distance(student, teacher, "log-odds", scale_B=torch.tensor([2.0])).item() == pytest.approx(1.0)
    p, q = teacher.softmax(1), student.softmax(1)
    assert outputs_distance(student, teacher, "kl", temperature=1.0).item() == pytest.approx(
        (p * (p / q).log()).sum().item(), rel=1e-5
    )
