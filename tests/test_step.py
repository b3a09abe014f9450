"""One training step: who is paid for, on which examples, in how few passes."""

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn

from egkd.dropout import set_dropout
from egkd.models import Seen, observe
from egkd.objectives import Labels, Moment, Objective, Taught, Teacher
from egkd.objectives.base import Lesson
from egkd.objectives.schedule import Schedule
from egkd.predict import encode_dataset
from egkd.step import factors_of, learn
from egkd.text import Batch, collate, perturb, width


class Plain(Objective):
    """Tells the first logit."""

    name: ClassVar[str] = "plain"

    def teach(self, teacher: Teacher, batch: Batch, seen: Seen) -> Taught:
        return {}

    def learn(self, seen: Seen, copies: list[Seen], batch: Batch, lesson: Lesson, moment: Moment) -> Tensor:
        assert len(seen.logits_BC) == len(batch["input_ids"]) == len(lesson["wanted"])
        return (seen.logits_BC[:, 0] - lesson["wanted"]).square()


class Looking(Plain):
    """Tells the length of the gradient."""

    name: ClassVar[str] = "looking"
    needs: ClassVar[Any] = ("embeddings",)

    @property
    def differentiates_twice(self) -> bool:
        return True

    def learn(self, seen: Seen, copies: list[Seen], batch: Batch, lesson: Lesson, moment: Moment) -> Tensor:
        assert seen.embeddings_BTD is not None
        (gradient,) = torch.autograd.grad(seen.logits_BC[:, 0].sum(), seen.embeddings_BTD, create_graph=True)
        return gradient.flatten(1).norm(dim=1)


class Deeper(Looking):
    name: ClassVar[str] = "deeper"


class Still(Looking):
    """Looks without dropout."""

    name: ClassVar[str] = "still"

    @property
    def looks_still(self) -> bool:
        return True


class Copying(Plain):
    """Tells the second logit without the first word."""

    name: ClassVar[str] = "copying"
    operator: Any = "mask"

    def copies(self, batch: Batch, lesson: Lesson, moment: Moment) -> list[Batch]:
        keep = torch.ones(len(batch["input_ids"]), width(batch), dtype=torch.bool)
        keep[:, 0] = False
        return [perturb(batch, keep, self.operator, moment.tokenizer)]

    def learn(self, seen: Seen, copies: list[Seen], batch: Batch, lesson: Lesson, moment: Moment) -> Tensor:
        return (copies[0].logits_BC[:, 1] - lesson["wanted"]).square()

    @property
    def can_stand_in(self) -> bool:
        return True


class Copied(Copying):
    name: ClassVar[str] = "copied"


Step = Callable[..., dict[str, Tensor]]


@pytest.fixture
def model(tiny_bert: Any) -> nn.Module:
    built: nn.Module = tiny_bert(layers=2)
    return built


@pytest.fixture
def batch(tokenizer: Any, tiny_data: Dataset) -> Batch:
    rows = encode_dataset(tiny_data.select(range(8)), tokenizer).add_column("idx", list(range(40, 48)))
    return collate(list(rows), tokenizer.pad_token_id)


@pytest.fixture
def step(model: nn.Module, batch: Batch, tokenizer: Any) -> Step:
    wanted = {"wanted": torch.arange(8.0)}

    def take(*objectives: Objective, step: int = 0, epoch: int = 0, **settings: Any) -> dict[str, Tensor]:
        moment = Moment(step=step, epoch=epoch, tokenizer=tokenizer)
        lessons = {objective.name: wanted for objective in objectives}
        return learn(model, objectives, batch, lessons, moment, steps=10, pad_token_id=tokenizer.pad_token_id, **settings)[0]

    return take


SHARE = Schedule(share=0.4)


def test_a_share_of_the_batch_costs_what_its_examples_do(step: Step, model: nn.Module, batch: Batch) -> None:
    rows = SHARE.rows(batch["idx"], 0)
    assert rows is not None
    assert 0 < len(rows) < 8
    logits = observe(model, batch).logits_BC
    expected = (logits[rows, 0] - rows).square().sum() / (0.4 * 8)
    torch.testing.assert_close(step(Plain(schedule=SHARE, weight=3.0))["plain"], 3 * expected)
    for guide in (Looking, Copying):
        whole = guide(schedule=Schedule())
        each = step(whole)[guide.name] * 8
        parts = [step(guide(schedule=SHARE), epoch=epoch)[guide.name] * 0.4 * 8 for epoch in range(5)]
        torch.testing.assert_close(sum(parts), 2 * each, rtol=1e-4, atol=1e-5)  # 5 epochs of 0.4: everybody twice


def test_all_together_say_what_each_says_alone(step: Step) -> None:
    """However examples are spread over passes, and whatever else shares them."""
    objectives = [
        Plain(),
        Looking(schedule=SHARE),
        Deeper(schedule=Schedule(share=0.7)),
        Copying(schedule=Schedule(share=0.5), operator="delete"),
    ]
    together = step(*objectives)
    for objective in objectives:
        torch.testing.assert_close(together[objective.name], step(objective)[objective.name], rtol=1e-4, atol=1e-5)


def test_who_looks_without_dropout_sees_the_student_as_it_will_be(step: Step, model: nn.Module) -> None:
    """In a pass of its own: what the others see has its dropout."""
    expected = step(Looking())["looking"]
    set_dropout(model.train(), 0.5)
    passes: list[bool] = []
    model.register_forward_hook(lambda module, _inputs, _output: passes.append(module.training))
    torch.manual_seed(0)
    alone = step(Plain())["plain"]
    torch.manual_seed(0)
    terms = step(Plain(), Still())
    assert passes == [True, True, True]
    torch.testing.assert_close(terms["still"], expected)
    torch.testing.assert_close(terms["plain"], alone)
    assert not torch.isclose(step(Looking())["looking"], expected)
    both = step(Looking(), Still())
    torch.testing.assert_close(both["still"], expected)
    assert not torch.isclose(both["looking"], expected)


def test_who_is_not_paid_for_is_not_computed(step: Step, model: nn.Module) -> None:
    passes = []
    model.register_forward_hook(lambda _module, _inputs, _output: passes.append(1))
    terms = step(Plain(), Copying(schedule=Schedule(every=2)), step=1)
    assert len(passes) == 1
    assert terms["copying"].item() == 0
    terms = step(Plain(), Copying(schedule=Schedule(every=2)), step=0)
    assert terms["copying"].item() == pytest.approx(2 * step(Copying())["copying"].item(), rel=1e-5)


def test_objectives_that_are_paid_for_as_often_take_turns() -> None:
    second, third = Schedule(every=2), Schedule(every=3)
    instead, rarely = Schedule(share=0.5, instead=True), Schedule(every=2, share=0.3, instead=True)
    objectives = [
        Plain(),
        Copying(schedule=instead),
        Looking(schedule=second),
        Deeper(schedule=third),
        Copied(schedule=rarely),
    ]
    paid = [[name for name, factor in factors_of(objectives, step, 12).items() if factor] for step in range(12)]
    for name, steps in (
        ("plain", range(12)),
        ("looking", range(0, 12, 2)),
        ("deeper", range(0, 12, 3)),
        ("copying", range(0, 12, 2)),
        ("copied", range(3, 12, 4)),  # every second of its turns
    ):
        assert [step for step in range(12) if name in paid[step]] == list(steps), name
    assert factors_of(objectives, 3, 12)["copied"] == 4
    both = [Copying(), Copying().of_teacher(1, 0.5)]
    assert factors_of(both, 0, 6) == {"copying": 1.0}  # two teachers' one objective


INSTEAD = Schedule(share=0.4, instead=True)


def test_copies_stand_in_the_place_of_texts(step: Step, model: nn.Module, batch: Batch) -> None:
    """A share of the batch is seen perturbed alone, everybody else learns from the others, in one pass over as many rows as
    the batch has."""
    sizes: list[int] = []
    model.register_forward_hook(lambda _module, _inputs, output: sizes.append(len(output.logits)))
    apart = INSTEAD.rows(batch["idx"], 0)
    assert apart is not None
    rest = [row for row in range(8) if row not in apart]
    terms = step(Plain(), Copying(schedule=INSTEAD))
    assert sizes == [8]
    torch.testing.assert_close(terms["copying"], step(Copying(schedule=SHARE))["copying"])
    logits = observe(model, batch).logits_BC
    wanted = torch.arange(8.0)
    expected = (logits[rest, 0] - wanted[rest]).square().sum() / (0.6 * 8)
    torch.testing.assert_close(terms["plain"], expected)
    together = step(Plain(), Looking(), Copying(schedule=INSTEAD))
    torch.testing.assert_close(together["plain"], expected)
    torch.testing.assert_close(together["copying"], terms["copying"])


def test_over_the_epochs_everybody_is_seen_both_ways(step: Step) -> None:
    """So a term keeps its expectation."""
    whole = {name: term * 8 for name, term in step(Plain(), Copying()).items()}
    epochs = [step(Plain(), Copying(schedule=INSTEAD), epoch=epoch) for epoch in range(5)]
    for name, share in (("plain", 0.6), ("copying", 0.4)):
        torch.testing.assert_close(
            sum(terms[name] * share * 8 for terms in epochs), 5 * share * whole[name], rtol=1e-4, atol=1e-5
        )


def test_a_whole_batch_may_be_seen_perturbed_alone(step: Step, batch: Batch) -> None:
    schedule = Schedule(share=0.99, instead=True)
    terms = step(Plain(), Copying(schedule=schedule))
    assert terms["plain"].item() == 0
    assert terms["copying"].item() > 0
    sum(terms.values()).backward()  # type: ignore[union-attr]


def test_copies_of_about_the_same_length_share_a_pass(step: Step, model: nn.Module) -> None:
    sizes = []
    model.register_forward_hook(lambda _module, _inputs, output: sizes.append(len(output.logits)))
    step(Plain(), Copying())
    assert sizes == [16]
    sizes.clear()
    step(Plain(), Looking(schedule=SHARE), Copying())
    assert len(sizes) == 2
    assert sum(sizes) == 16


def test_a_step_on_which_nobody_is_paid_for_can_be_taken(step: Step, model: nn.Module) -> None:
    terms = step(Plain(schedule=Schedule(start=5)))
    terms["plain"].backward()
    assert all(parameter.grad is None or parameter.grad.abs().sum() == 0 for parameter in model.parameters())


def test_labels_are_spared_where_there_are_none(step: Step, batch: Batch) -> None:
    batch["labels"] = torch.full((8,), -100)
    assert step(Labels())["labels"].item() == 0
