"""The strategies of the gradient guide: the same gradient by other roads."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn

from egkd.lessons import stack
from egkd.models import frozen, log_odds, observe
from egkd.objectives import GradientGuide, Moment, Teacher
from egkd.objectives.draws import normals
from egkd.objectives.gradient import gradient_of, scores_at, scores_distance
from egkd.predict import encode_dataset
from egkd.step import learn
from egkd.text import collate, visible_units, width

Setting = Callable[..., tuple[Any, dict[str, Tensor], dict[str, Tensor], Moment]]


@pytest.fixture
def setting(tiny_bert: Any, tokenizer: Any, tiny_data: Dataset) -> Setting:
    """A student, a batch, the teacher's lesson on it, a moment."""

    def make(guide: GradientGuide, classes: int = 2, dropout: float = 0.0) -> Any:
        teacher, student = tiny_bert(num_labels=classes, seed=0), tiny_bert(num_labels=classes, seed=1, dropout=dropout)
        batch = collate(list(encode_dataset(tiny_data.select(range(6)), tokenizer)), tokenizer.pad_token_id)
        with frozen(teacher):
            seen = observe(teacher, batch, keep=guide.needs)
            taught = guide.teach(Teacher(model=teacher, tokenizer=tokenizer), batch, seen)
        lesson = {name: stack([np.asarray(value) for value in values]) for name, values in taught.items()}
        return student, batch, lesson, Moment(step=0, epoch=0, tokenizer=tokenizer)

    return make


def derivative(guide: GradientGuide, model: Any, batch: Any, lesson: Any, moment: Moment) -> tuple[Tensor, Tensor]:
    """The losses and what the parameters are told."""
    model.zero_grad()
    seen = observe(model, batch, keep=guide.needs, differentiable=guide.differentiates_twice)
    losses = guide.learn(seen, [], batch, lesson, moment)
    losses.sum().backward()
    told = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return losses.detach(), torch.cat([gradient.flatten() for gradient in told]).clone()


@pytest.mark.parametrize("attribution", ["input-x-gradient-norm", "saliency-norm", "input-x-gradient"])
@pytest.mark.parametrize("distance", ["mse", "correlation"])
def test_finite_differences_give_the_exact_gradient(
    setting: Setting, attribution: Any, distance: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("egkd.objectives.gradient.STEP", 1e-5)  # a random model is far more bent than a real one
    exact = GradientGuide(attribution=attribution, distance=distance)
    student, batch, lesson, moment = setting(exact)
    student = student.double()
    lesson = {name: value.double() if value.is_floating_point() else value for name, value in lesson.items()}
    losses, expected = derivative(exact, student, batch, lesson, moment)
    cheap = exact.model_copy(update={"strategy": "finite-difference"})
    same, found = derivative(cheap, student, batch, lesson, moment)
    torch.testing.assert_close(same, losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3 * expected.abs().max().item())


def test_finite_differences_see_the_same_dropout(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("egkd.objectives.gradient.STEP", 1e-5)  # what is left is what other dropout would do
    exact = GradientGuide()
    student, batch, lesson, moment = setting(exact, dropout=0.3)
    student = student.double().train()
    lesson = {name: value.double() if value.is_floating_point() else value for name, value in lesson.items()}
    found = []
    for guide in (exact, exact.model_copy(update={"strategy": "finite-difference"})):
        torch.manual_seed(5)
        found.append(derivative(guide, student, batch, lesson, moment)[1])
        after = torch.rand(1)
        torch.manual_seed(5)
        observe(student, batch)
        assert torch.equal(after, torch.rand(1))  # the shifted passes leave the random state as one pass does
    assert torch.cosine_similarity(*found, dim=0) > 0.9999


@pytest.mark.parametrize("strategy", ["exact", "finite-difference", "projection"])
def test_without_dropout_the_student_is_explained_as_it_will_be(setting: Setting, strategy: Any) -> None:
    """Both the loss and its gradient: those of a student that has no dropout."""
    guide = GradientGuide(strategy=strategy, attribution="input-x-gradient", dropout=False)
    student, batch, lesson, moment = setting(guide, dropout=0.3)
    batch["idx"] = torch.arange(len(batch["input_ids"]))
    told = []
    for training in (False, True):
        student.train(training).zero_grad()
        loss = learn(student, [guide], batch, {"gradient": lesson}, moment, steps=1, pad_token_id=0)[0]["gradient"]
        loss.backward()
        told.append((loss.detach(), [p.grad.clone() for p in student.parameters() if p.grad is not None]))
    torch.testing.assert_close(told[0], told[1])
    assert {module.p for module in student.modules() if isinstance(module, nn.Dropout)} == {0.3}


def test_projections_are_unbiased_for_the_squared_distance(setting: Setting) -> None:
    guide = GradientGuide(strategy="projection", attribution="input-x-gradient")
    student, batch, lesson, moment = setting(guide)
    student, lesson = student.double(), {n: v.double() if v.is_floating_point() else v for n, v in lesson.items()}
    seen = observe(student, batch, keep=guide.needs)
    scalar = log_odds(seen.logits_BC, lesson["target"].long())
    own = scores_at(seen.embeddings_BTD, gradient_of(scalar, seen.embeddings_BTD, twice=False), batch, "input-x-gradient")  # type: ignore[arg-type]
    difference = own / lesson["strength"][:, None] - lesson["scores"][:, 0]
    expected = (difference * visible_units(batch["unit_ids"], width(batch))).square().sum(1)
    draws = torch.stack([guide.learn(seen, [], batch, lesson, replace(moment, step=step)).detach() for step in range(600)])
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - expected).abs() < 4.5 * error + 1e-3 * expected).all()


@pytest.mark.parametrize("strategy", ["exact", "finite-difference"])
def test_a_lesson_may_be_padded_to_more_words_than_the_batch_has(setting: Setting, strategy: Any) -> None:
    guide = GradientGuide(strategy=strategy)
    student, batch, lesson, moment = setting(guide)
    padded = lesson | {name: torch.nn.functional.pad(lesson[name], (0, 3)) for name in ("scores", "visible")}
    losses = [derivative(guide, student, batch, each, moment)[0] for each in (lesson, padded)]
    assert torch.equal(*losses)


def test_two_classes_are_one_view_and_three_are_three(setting: Setting) -> None:
    for classes, views in ((1, 1), (2, 1), (3, 3)):
        _, _, lesson, _ = setting(GradientGuide(classes="all"), classes=classes)
        assert lesson["scores"].shape[1] == views


def distances_of_classes(guide: GradientGuide, seen: Any, batch: Any, lesson: Any) -> torch.Tensor:
    """How far the student's attributions are from the lesson's, for each of three classes by itself: [B, 3]."""
    real = visible_units(batch["unit_ids"], width(batch))
    parts = []
    for each in range(3):
        gradient = gradient_of(log_odds(seen.logits_BC, torch.full((6,), each)), seen.embeddings_BTD, twice=False)
        scores = scores_at(seen.embeddings_BTD, gradient, batch, guide.attribution)
        parts.append(scores_distance(scores, lesson["scores"][:, each], real, guide.distance))
    return torch.stack(parts, dim=1)


def test_all_classes_are_the_mean_of_each(setting: Setting) -> None:
    guide = GradientGuide(classes="all")
    student, batch, lesson, moment = setting(guide, classes=3)
    seen = observe(student, batch, keep=guide.needs, differentiable=True)
    expected = distances_of_classes(guide, seen, batch, lesson).mean(1)
    torch.testing.assert_close(guide.learn(seen, [], batch, lesson, moment), expected)


def test_a_sampled_class_is_one_of_all_another_for_each_example_and_step(setting: Setting) -> None:
    guide = GradientGuide(classes="sampled")
    student, batch, lesson, moment = setting(guide, classes=3)
    batch["idx"] = torch.arange(6)
    seen = observe(student, batch, keep=guide.needs, differentiable=True)
    each_BC = distances_of_classes(guide, seen, batch, lesson)
    picked = []
    for step in range(40):
        off_BC = (guide.learn(seen, [], batch, lesson, replace(moment, step=step))[:, None] - each_BC).abs()
        torch.testing.assert_close(off_BC.amin(1), torch.zeros(6), atol=1e-5, rtol=0)
        picked.append(off_BC.argmin(1))
    counts_C = torch.stack(picked).flatten().bincount(minlength=3)
    assert (counts_C > 240 / 3 - 25).all()  # of 240 draws; 25 is more than three standard deviations
    assert any(len(set(row.tolist())) > 1 for row in picked)


def test_the_gold_label_is_explained_where_there_is_one(tiny_bert: Any, tokenizer: Any, tiny_data: Dataset) -> None:
    teacher = tiny_bert(num_labels=3)
    batch = collate(list(encode_dataset(tiny_data.select(range(6)), tokenizer)), tokenizer.pad_token_id)
    with frozen(teacher):
        seen = observe(teacher, batch, keep=("embeddings",))
        taught = {}
        predicted = seen.logits_BC.argmax(1)
        batch["labels"] = (predicted + 1) % 3
        batch["labels"][0] = -100
        for classes in ("all", "gold", "predicted"):
            guide = GradientGuide(classes=classes)  # type: ignore[arg-type]
            assert guide.reads_labels == (classes == "gold")
            taught[classes] = guide.teach(Teacher(model=teacher, tokenizer=tokenizer), batch, seen)
    expected = torch.where(batch["labels"] == -100, predicted, batch["labels"]).tolist()
    assert [int(each) for each in taught["gold"]["target"]] == expected
    for row, target in enumerate(expected):
        among_all = torch.nn.functional.normalize(taught["all"]["scores"][row][target], dim=0)
        torch.testing.assert_close(taught["gold"]["scores"][row][0], among_all)
    torch.testing.assert_close(taught["gold"]["scores"][0], taught["predicted"]["scores"][0])


def test_a_mixture_of_classes_mixes_the_lesson_too(setting: Setting) -> None:
    """A student that is its teacher has nothing to learn, whatever the mixture."""
    guide = GradientGuide(classes="mixture", attribution="input-x-gradient")
    _, batch, _, moment = setting(guide, classes=3)
    teacher = setting(guide, classes=3)[0]
    with frozen(teacher):
        seen = observe(teacher, batch, keep=guide.needs, differentiable=True)
        taught = guide.teach(Teacher(model=teacher, tokenizer=moment.tokenizer), batch, seen)
        lesson = {name: stack([np.asarray(value) for value in values]) for name, values in taught.items()}
        losses = [guide.learn(seen, [], batch, lesson, replace(moment, step=step)) for step in range(3)]
    torch.testing.assert_close(torch.stack(losses), torch.zeros(3, 6), atol=1e-5, rtol=0)


def test_a_mixture_is_another_one_at_every_step(setting: Setting) -> None:
    guide = GradientGuide(classes="mixture", attribution="input-x-gradient")
    student, batch, lesson, moment = setting(guide, classes=3)
    seen = observe(student, batch, keep=guide.needs, differentiable=True)
    losses = [guide.learn(seen, [], batch, lesson, replace(moment, **at)) for at in ({}, {"step": 1}, {"seed": 1})]
    assert all((losses[0] - other).abs().max() > 1e-3 for other in losses[1:])
    drawn = normals(torch.arange(20_000), 3, 0, 0)
    torch.testing.assert_close(drawn.mean(0), torch.zeros(3), atol=0.03, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), torch.eye(3), atol=0.06, rtol=0)


def test_words_that_the_teacher_did_not_see_say_nothing(setting: Setting) -> None:
    """Nor those that the student did not see: what is compared are the words that both saw."""
    guide = GradientGuide()
    student, batch, lesson, moment = setting(guide)
    hidden = {**lesson, "visible": lesson["visible"].clone()}
    hidden["visible"][:, 2] = False
    other = {**hidden, "scores": hidden["scores"].clone()}
    other["scores"][:, :, 2] = 9.0
    seen = observe(student, batch, keep=guide.needs, differentiable=True)
    whole, less, same = (guide.learn(seen, [], batch, each, moment) for each in (lesson, hidden, other))
    torch.testing.assert_close(less, same)
    assert (whole - less).abs().max() > 1e-3


@pytest.mark.parametrize("wrong", [{"strategy": "projection"}, {"classes": "mixture"}])
def test_what_is_linear_in_signed_scores_wants_them(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="set attribution to 'input-x-gradient'"):
        GradientGuide(**wrong)


@pytest.mark.parametrize("distance", ["mse", "cosine", "correlation", "kl", "rank"])
def test_every_distance_ignores_scale_and_what_is_not_real(distance: Any) -> None:
    scores, other = (torch.rand(4, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    real = torch.ones(4, 6, dtype=torch.bool)
    real[:, 5] = False
    base = scores_distance(scores, other, real, distance)
    assert (base > 0).all()
    torch.testing.assert_close(scores_distance(3 * scores, 0.5 * other, real, distance), base)
    torch.testing.assert_close(scores_distance(scores[:, :5], other[:, :5], real[:, :5], distance), base)
    if distance != "rank":  # which is smooth, and 0 only in the limit
        torch.testing.assert_close(scores_distance(scores, 7 * scores, real, distance), torch.zeros(4), atol=1e-6, rtol=0)
    lonely = torch.tensor([[True] + [False] * 5] * 4)
    assert scores_distance(scores, other, lonely, distance).tolist() == [0.0] * 4


def test_rank_and_kl_by_hand() -> None:
    real = torch.ones(1, 2, dtype=torch.bool)
    teacher, student = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    assert scores_distance(student, teacher, real, "rank").item() == pytest.approx(1.0)  # equal scores cost 1
    right, wrong = (scores_distance(s, teacher, real, "rank").item() for s in (teacher, teacher.flip(1)))
    assert right == pytest.approx(np.log1p(np.exp(-10)) / np.log(2), rel=1e-4)
    assert wrong == pytest.approx(np.log1p(np.exp(10)) / np.log(2), rel=1e-4)
    p = np.exp(10) / (np.exp(10) + 1)
    expected = p * np.log(p / 0.5) + (1 - p) * np.log((1 - p) / 0.5)
    assert scores_distance(student, teacher, real, "kl").item() == pytest.approx(expected, rel=1e-4)


def test_mixed_precision_does_not_drown_a_small_difference(setting: Setting) -> None:
    guide = GradientGuide(strategy="projection", attribution="input-x-gradient")
    student, batch, lesson, moment = setting(guide)
    losses = []
    for mixed in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            seen = observe(student, batch, keep=guide.needs)
            torch.manual_seed(0)
            losses.append(guide.learn(seen, [], batch, lesson, moment))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-2, atol=1e-3)


def test_the_cheap_road_needs_no_second_order(setting: Setting) -> None:
    """Under kernels without a second derivative only the exact strategy fails; here one that raises on the way back."""

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient.clone()

    exact = GradientGuide()
    student, batch, lesson, moment = setting(exact)
    student = copy.deepcopy(student)
    student.bert.encoder.layer[0].register_forward_hook(
        lambda _m, _i, out: Once.apply(out[0] if isinstance(out, tuple) else out)
    )
    _, told = derivative(exact.model_copy(update={"strategy": "finite-difference"}), student, batch, lesson, moment)
    assert told.abs().sum() > 0
    with pytest.raises(RuntimeError, match="once_differentiable"):
        derivative(exact, student, batch, lesson, moment)
