"""The published gradient methods: hand-computed numbers, and the papers' formulas written down plainly over a whole batch."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, TrainingArguments

from egkd.compatible import check_compatible
from egkd.lessons import build_lessons, stack
from egkd.models import Seen, frozen, observe
from egkd.objectives import (
    AttributionDistillation,
    GradientDistillation,
    GradientGuide,
    Labels,
    Moment,
    Objective,
    SoftLabels,
    Teacher,
)
from egkd.predict import encode_dataset
from egkd.processes import mean_count
from egkd.text import collate
from egkd.train import DistillationTrainer

Batch = dict[str, Tensor]


@pytest.fixture
def moment(tokenizer: Any) -> Moment:
    return Moment(step=0, epoch=0, tokenizer=tokenizer)


def seen_through(model: Callable[[Tensor], Tensor], embeddings: list[Any]) -> Seen:
    """What a model that is a function of its embeddings shows."""
    embeddings_BTD = torch.tensor(embeddings).requires_grad_(True)
    return Seen(logits_BC=model(embeddings_BTD), embeddings_BTD=embeddings_BTD, at=model)


def lesson_of(objective: Objective, seen: Seen, batch: Batch, tokenizer: Any) -> Batch:
    taught = objective.teach(Teacher(model=torch.nn.Identity(), tokenizer=tokenizer), batch, seen)
    return {name: stack([np.asarray(value) for value in values]) for name, values in taught.items()}


def counted(moment: Moment, objective: Objective, lesson: Batch) -> Moment:
    """The moment of a step on these examples."""
    counts = objective.counts(lesson)
    assert counts is not None
    return replace(moment, count=mean_count(counts))


def linear(weights: list[Any]) -> Callable[[Tensor], Tensor]:
    """Two classes; the second one's logit is the sum over tokens of <w_i, e_i>, the first one's 0."""

    def model(embeddings_BTD: Tensor) -> Tensor:
        score_B = (torch.tensor(weights) * embeddings_BTD).sum((1, 2))
        return torch.stack([torch.zeros_like(score_B), score_B], dim=1)

    return model


def test_attribution_distillation_by_hand(moment: Moment) -> None:
    """e * w of the teacher: (3, 4) and (12, 0), lengths 5 and 12, over 13. The student's: (8, 6) and (0, 0), over 10."""
    batch = {"attention_mask": torch.ones(1, 2, dtype=torch.long), "labels": torch.tensor([0])}
    teacher = seen_through(linear([[3.0, 2.0], [4.0, 0.0]]), [[[1.0, 2.0], [3.0, 5.0]]])
    student = seen_through(linear([[4.0, 3.0], [0.0, 0.0]]), [[[2.0, 2.0], [1.0, 1.0]]])
    objective = AttributionDistillation()
    lesson = lesson_of(objective, teacher, batch, moment.tokenizer)
    moment = counted(moment, objective, lesson)
    np.testing.assert_allclose(lesson["scores"][0, :, 0], [5 / 13, 12 / 13], rtol=1e-6)
    expected = ((5 / 13 - 1) ** 2 + (12 / 13) ** 2) / 2
    assert objective.learn(student, [], batch, lesson, moment).tolist() == pytest.approx([expected])
    absolute = objective.model_copy(update={"distance": "l1"})
    assert absolute.learn(student, [], batch, lesson, moment).tolist() == pytest.approx([(8 / 13 + 12 / 13) / 2])
    # the teacher's strongest dimension alone: 4 and 12 over sqrt(160)
    strongest = lesson_of(AttributionDistillation(top_dimensions=1), teacher, batch, moment.tokenizer)
    np.testing.assert_allclose(strongest["scores"][0, :, 0], [4 / 160**0.5, 12 / 160**0.5], rtol=1e-6)
    plenty = lesson_of(AttributionDistillation(top_dimensions=9), teacher, batch, moment.tokenizer)
    np.testing.assert_allclose(plenty["scores"], lesson["scores"], rtol=1e-6)


def test_integrated_gradients_are_a_right_riemann_sum_from_zero(moment: Moment) -> None:
    """Regression on f = (e_1² + e_2) / 2, gold 0: d(f²)/de = 2 f (e_1, 1/2). At e = (2, 2), f = 3; at e / 2, f = 1."""

    def model(embeddings_BTD: Tensor) -> Tensor:
        return (embeddings_BTD[:, 0, :1] ** 2 + embeddings_BTD[:, 1, :1]) / 2

    batch = {"attention_mask": torch.ones(1, 2, dtype=torch.long), "labels": torch.tensor([0.0])}
    seen = seen_through(model, [[[2.0], [2.0]]])
    # at e / 2: f = 1, gradient (2, 1); at e: f = 3, gradient (12, 3); the mean (7, 2) times e
    expected = np.array([14.0, 4.0]) / np.hypot(14, 4)
    lesson = lesson_of(AttributionDistillation(steps=2), seen, batch, moment.tokenizer)
    np.testing.assert_allclose(lesson["scores"][0, :, 0], expected, rtol=1e-6)
    once = lesson_of(AttributionDistillation(), seen, batch, moment.tokenizer)
    np.testing.assert_allclose(once["scores"][0, :, 0], np.array([24.0, 6.0]) / np.hypot(24, 6), rtol=1e-6)


def test_gradient_distillation_by_hand(moment: Moment) -> None:
    """Whatever the probability, its gradient at token i points along w_i. One token of the teacher has none."""
    batch = {"attention_mask": torch.tensor([[1, 1, 1, 0]])}
    ones = [[[0.1, 0.1], [0.1, 0.1], [0.1, 0.1], [0.1, 0.1]]]
    teacher = seen_through(linear([[3.0, 4.0], [0.0, 0.0], [2.0, 0.0], [0.0, 0.0]]), ones)
    student = seen_through(linear([[4.0, 3.0], [0.0, 7.0], [0.5, 0.0], [9.0, 0.0]]), ones)
    objective = GradientDistillation()
    lesson = lesson_of(objective, teacher, batch, moment.tokenizer)
    np.testing.assert_allclose(lesson["directions"][0], [[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]], rtol=1e-6)
    lesson = {"directions": F.pad(lesson["directions"], (0, 0, 0, 1))}
    moment = counted(moment, objective, lesson)
    expected = (0.2**2 + 0.2**2 + 1.0 + 0.0) / 2  # two tokens have a gradient of the teacher
    assert objective.learn(student, [], batch, lesson, moment).tolist() == pytest.approx([expected])


def gradients_at(model: Any, batch: Batch, scalar: Callable[[Tensor], Tensor], scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Embedding output (not scaled) and the gradient of a scalar of the logits at `scale` times it."""
    kept: list[Tensor] = []

    def hook(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        kept.extend((output, (scale * output).detach().requires_grad_(True)))
        return kept[1]

    handle = model.bert.embeddings.register_forward_hook(hook)
    logits = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}).logits
    handle.remove()
    return kept[0].detach(), torch.autograd.grad(scalar(logits), kept[1])[0]


def published_attribution_loss(teacher: Any, student: Any, batch: Batch, classes: int, steps: int, top: int) -> float:
    """AD-KD over a padded batch, in the mean of a batch, as its formula reads."""
    labels = batch["labels"]
    views: list[Callable[[Tensor], Tensor]] = [lambda z: F.cross_entropy(z, labels)]
    if classes == 1:
        views = [lambda z: F.mse_loss(z[:, 0], labels)]
    if classes > 2:
        views = [lambda z, c=c: -z.softmax(-1)[:, c].log().mean() for c in range(classes)]  # type: ignore[misc]
    total = 0.0
    for view in views:
        maps = []
        for model in (teacher, student):
            pairs = [gradients_at(model, batch, view, k / steps) for k in range(1, steps + 1)]
            attribution = pairs[0][0] * torch.stack([gradient for _, gradient in pairs]).mean(0)
            if model is teacher:
                attribution = attribution.abs().topk(top, dim=-1).values
            maps.append(F.normalize(attribution.norm(dim=-1), dim=1))
        total += float((maps[0] - maps[1]).square().sum() / (maps[0] != 0).sum())
    return total


def published_gradient_loss(teacher: Any, student: Any, batch: Batch) -> float:
    """GKD over a padded batch, as its formula reads."""
    directions = [
        F.normalize(gradients_at(model, batch, lambda z: z.softmax(-1).max(-1).values.sum())[1], dim=-1)
        for model in (teacher, student)
    ]
    return float((directions[0] - directions[1]).square().sum() / (directions[0][:, :, 0] != 0).sum())


@pytest.fixture
def setting(tiny_bert: Any, tokenizer: Any, tiny_data: Dataset) -> Callable[..., Any]:
    """Teacher, student, a padded batch of texts of different lengths, with labels."""

    def make(classes: int, width: int = 32) -> tuple[Any, Any, Batch]:
        rows = tiny_data.select(range(6))
        labels = [1.5, 0.0, -0.5, 2.0, 1.0, 0.3] if classes == 1 else [row % classes for row in range(6)]
        rows = rows.remove_columns("label").add_column("label", labels)
        batch = collate(list(encode_dataset(rows, tokenizer)), tokenizer.pad_token_id)
        assert len(set(batch["attention_mask"].sum(1).tolist())) > 1
        teacher = tiny_bert(num_labels=classes, seed=0).requires_grad_(False)
        return teacher, tiny_bert(num_labels=classes, width=width, layers=2, seed=1), batch

    return make


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize(("steps", "top"), [(1, 32), (1, 20), (3, 32)])
def test_attribution_distillation_is_the_published_loss(
    setting: Any, moment: Moment, classes: int, steps: int, top: int
) -> None:
    teacher, student, batch = setting(classes, width=48)
    objective = AttributionDistillation(steps=steps, top_dimensions=top)
    with frozen(teacher):
        lesson = lesson_of(objective, observe(teacher, batch, keep=objective.needs), batch, moment.tokenizer)
    assert lesson["scores"].shape == (*batch["input_ids"].shape, 3 if classes == 3 else 1)
    seen = observe(student, batch, keep=objective.needs, differentiable=True)
    losses = objective.learn(seen, [], batch, lesson, counted(moment, objective, lesson))
    assert losses.shape == (6,)
    expected = published_attribution_loss(teacher, student, batch, classes, steps, top)
    assert losses.mean().item() == pytest.approx(expected, rel=1e-4)
    losses.mean().backward()
    assert student.bert.encoder.layer[0].attention.self.query.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("classes", [2, 3])
def test_gradient_distillation_is_the_published_loss(setting: Any, moment: Moment, classes: int) -> None:
    teacher, student, batch = setting(classes)
    objective = GradientDistillation()
    with frozen(teacher):
        lesson = lesson_of(objective, observe(teacher, batch, keep=objective.needs), batch, moment.tokenizer)
    seen = observe(student, batch, keep=objective.needs, differentiable=True)
    losses = objective.learn(seen, [], batch, lesson, counted(moment, objective, lesson))
    assert losses.mean().item() == pytest.approx(published_gradient_loss(teacher, student, batch), rel=1e-4)
    losses.mean().backward()
    assert student.bert.encoder.layer[0].attention.self.query.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("objective", [GradientDistillation(), AttributionDistillation()])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_model_that_is_sure_still_has_directions(setting: Any, moment: Moment, objective: Any, classes: int) -> None:
    """The gradient of a probability near 1 underflows; its direction is that of the log odds."""
    teacher, _, batch = setting(classes)
    with torch.no_grad():
        teacher.classifier.weight *= 1e4
    with frozen(teacher):
        seen = observe(teacher, batch, keep=objective.needs)
        assert seen.logits_BC.softmax(1).amax() == 1
        (found,) = lesson_of(objective, seen, batch, moment.tokenizer).values()
    lengths = found.norm(dim=2) if isinstance(objective, GradientDistillation) else found.norm(dim=1)
    torch.testing.assert_close(lengths.amax(1), torch.ones(len(found)))


@pytest.mark.parametrize("classes", [2, 1])
def test_attributions_of_one_step_need_no_label(setting: Any, moment: Moment, classes: int) -> None:
    """Its sign and the size of the gradient are all that a label would change, and neither counts."""
    teacher, student, batch = setting(classes)
    objective, losses = AttributionDistillation(), []
    none = -100 if classes == 2 else float("nan")
    for labels in (batch["labels"], torch.full_like(batch["labels"], none)):
        batch["labels"] = labels
        with frozen(teacher):
            lesson = lesson_of(objective, observe(teacher, batch, keep=objective.needs), batch, moment.tokenizer)
        seen = observe(student, batch, keep=objective.needs, differentiable=True)
        losses.append(objective.learn(seen, [], batch, lesson, counted(moment, objective, lesson)))
    assert (losses[0] > 0).all()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-6)
    losses[1].sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())
    del batch["labels"]
    seen = observe(student, batch, keep=objective.needs, differentiable=True)
    with pytest.raises(ValueError, match="the data has no labels; use gradient instead"):
        objective.learn(seen, [], batch, lesson, counted(moment, objective, lesson))


@pytest.mark.parametrize("objective", [AttributionDistillation(), AttributionDistillation(steps=2), GradientDistillation()])
def test_it_trains_and_follows_its_own_loss(
    objective: Objective, tiny_bert: Any, tokenizer: Any, tiny_data: Dataset, tmp_path: Any
) -> None:
    settings: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}
    trainer = DistillationTrainer(
        tiny_bert(layers=2, seed=1),
        TrainingArguments(str(tmp_path / "run"), max_steps=25, learning_rate=1e-3, logging_steps=1, **settings),
        teacher=tiny_bert(layers=4, seed=0),
        objectives=[objective],
        train_dataset=tiny_data.select(range(8)),
        processing_class=tokenizer,
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_lessons_that_read_labels_are_other_ones_for_other_labels(
    tiny_bert: Any, tokenizer: Any, tiny_data: Dataset, tmp_path: Any
) -> None:
    rows = encode_dataset(tiny_data.select(range(4)), tokenizer)
    turned = rows.remove_columns("label").add_column("label", [1 - label for label in rows["label"]])
    folders = {}
    for objective in (AttributionDistillation(), SoftLabels()):
        built = [
            build_lessons([objective], tiny_bert(), tokenizer, each, tmp_path, max_length=64)[objective.name]
            for each in (rows, turned)
        ]
        folders[objective.name] = len({lessons.folder for lessons in built})
    assert folders == {"ad-kd": 2, "soft-labels": 1}


@pytest.mark.parametrize(
    ("teacher", "student", "complaint"),
    [
        ({"hidden_size": 48}, {"hidden_size": 24}, "the teacher's are of 48 dimensions and the student's of 24; use gradient"),
        ({}, {"num_labels": 1}, "regression has none; use gradient or ad-kd"),
    ],
)
def test_gradient_distillation_refuses_by_configs_alone(teacher: Any, student: Any, complaint: str) -> None:
    same = {"num_labels": 2}
    with pytest.raises(ValueError, match=complaint):
        GradientDistillation().between(BertConfig(**(same | teacher)), BertConfig(**(same | student)))
    fine = GradientDistillation()
    assert fine.between(BertConfig(**same), BertConfig(**same)) == fine


def test_both_are_refused_where_nothing_can_be_differentiated_twice(tmp_path: Any) -> None:
    settings = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, ddp_static_graph=True)
    for objective in (AttributionDistillation(), GradientDistillation()):
        with pytest.raises(ValueError, match=objective.name):
            check_compatible([Labels(), objective], settings, has_teacher=True)
    assert not GradientGuide(strategy="finite-difference").differentiates_twice


def test_soft_labels_as_the_papers_code_has_them(moment: Moment) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher_BC, student_BC = (torch.randn(5, 3, generator=generator) for _ in range(2))
    lesson = {"logits": teacher_BC}

    def loss(student_BC: Tensor = student_BC, lesson: Batch = lesson, **settings: Any) -> float:
        return SoftLabels(**settings).learn(Seen(logits_BC=student_BC), [], {}, lesson, moment).mean().item()

    # AD-KD: cross-entropy without T²
    expected = -((teacher_BC / 4).softmax(1) * (student_BC / 4).log_softmax(1)).sum(1).mean()
    assert loss(temperature=4, distance="cross-entropy", scale="one") == pytest.approx(expected.item(), rel=1e-5)
    # GKD and PKD: divided by classes too
    expected = 25 * torch.nn.KLDivLoss(reduction="mean")((student_BC / 5).log_softmax(1), (teacher_BC / 5).softmax(1))
    assert loss(temperature=5, reduction="mean") == pytest.approx(expected.item(), rel=1e-5)
    assert loss(temperature=5) == pytest.approx(3 * expected.item(), rel=1e-5)
    # regression: AD-KD divides by T, whose square makes up for it otherwise
    one, other = {"logits": teacher_BC[:, :1]}, student_BC[:, :1]
    expected = F.mse_loss(other, one["logits"])
    assert loss(other, one, temperature=3, distance="cross-entropy", scale="one") == pytest.approx(
        expected.item() / 9, rel=1e-5
    )
    assert loss(other, one, temperature=3) == pytest.approx(expected.item(), rel=1e-5)
    assert loss(distance="mse", reduction="mean") == pytest.approx(F.mse_loss(student_BC, teacher_BC).item(), rel=1e-5)


def test_temperature_goes_to_its_last_by_whole_epochs(tokenizer: Any) -> None:
    def at(epoch: int, epochs: int, **settings: Any) -> float:
        return SoftLabels(**settings).temperature_at(Moment(step=0, epoch=epoch, epochs=epochs, tokenizer=tokenizer))

    annealed = {"temperature": 4.0, "final_temperature": 1.0}
    assert [at(epoch, 4, **annealed) for epoch in range(4)] == pytest.approx([4.0, 3.0, 2.0, 1.0])
    assert [at(0, 1, **annealed), at(0, 2, **annealed), at(5, 4, **annealed)] == pytest.approx([4.0, 4.0, 1.0])
    assert at(2, 4, temperature=4.0) == 4.0


def test_training_anneals(tiny_bert: Any, tokenizer: Any, tiny_data: Dataset, tmp_path: Any) -> None:
    """A student that cannot move has another loss in each epoch: that of the epoch's temperature."""
    settings: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}

    def losses(**soft: Any) -> list[float]:
        trainer = DistillationTrainer(
            tiny_bert(layers=2, seed=1),
            TrainingArguments(
                str(tmp_path / "run"), num_train_epochs=3, learning_rate=0.0, logging_steps=1,
                per_device_train_batch_size=8, **settings,
            ),
            teacher=tiny_bert(layers=4, seed=0),
            objectives=[SoftLabels(weight=1.0, scale="one", **soft)],
            train_dataset=tiny_data.select(range(8)),
            processing_class=tokenizer,
        )  # fmt: skip
        trainer.train()
        return [line["loss"] for line in trainer.state.log_history if "loss" in line]

    expected = [losses(temperature=temperature)[0] for temperature in (3.0, 2.0, 1.0)]
    assert losses(temperature=3.0, final_temperature=1.0) == pytest.approx(expected, rel=1e-4)
