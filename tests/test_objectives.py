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
            PerturbationGuide(masks=2, operator="replace"),
            SelectionGuide(),
        ):
            prepared = objective.prepare(Teacher(model=model, tokenizer=tokenizer), encoded, tmp_path)
            taught = objective.teach(Teacher(model=model, tokenizer=tokenizer, prepared=prepared), batch, view)
            lesson = {name: stack([np.asarray(value) for value in values]) for name, values in taught.items()}
            opened = objective.opened(tmp_path, tokenizer)
            copies = [observe(model, copy) for copy in opened.copies(batch, lesson, moment)]
            losses = opened.learn(view, copies, batch, lesson, moment)
            torch.testing.assert_close(losses, torch.zeros(6), atol=1e-5, rtol=0)
