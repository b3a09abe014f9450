"""The one idea of this library: a teacher *teaches* an objective once, a student *learns* it at every step.

Shapes: B batch, U units, C classes. A lesson is ragged over examples on disk and padded in a batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, final

from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from egkd.models import Need, Seen
from egkd.objectives.schedule import Schedule
from egkd.text import Batch

Lesson = dict[str, Tensor]
"""What the teacher showed of each example, by field name; first dimension B."""


Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is."""
Taught = dict[str, list[Any]]
"""What an objective's `teach` returns: by field name, one array per example, of its true size."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Who teaches: a frozen model, its tokenizer, and what an objective prepared before the first batch."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    prepared: Any = None
    token_budget: int | None = None
    """Tokens of one pass at most; None for what suits the device."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where in training a step is: all that an objective may know beside its data."""

    step: int
    epoch: int
    progress: float = 0.0
    """Share of the training that is over, 0 to 1."""
    epochs: int = 1
    """Epochs in all, a begun one counts."""
    seed: int = 0
    """Of the run. What is drawn in a step depends on it, the step and the example alone, not on who shares its batch."""
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    """The student's tokenizer, to perturb its inputs."""
    head: nn.Module | None = field(default=None, repr=False)
    """What the objective trains beside the student, see `Objective.head`."""
    count: Tensor | None = field(default=None, repr=False)
    """The mean of `Objective.counts` over the step's examples, of all processes."""


class Objective(BaseModel, ABC):
    """Something a student is asked to match. The fields of a subclass are its settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    """Its name in settings, logs and lessons."""
    needs: ClassVar[tuple[Need, ...]] = ()
    """What it looks at beside logits, of teacher and student: with "embeddings", gradients with respect to them."""
    same_tokens: ClassVar[bool] = False
    """Whether it compares tokens, so that teacher and student must share a tokenizer."""
    reads_labels: ClassVar[bool] = False
    """Whether its lesson depends on gold labels."""
    keeps_head: ClassVar[bool] = False
    """Whether its `head` stays with the finished student."""
    taught_settings: ClassVar[tuple[str, ...]] = ()
    """The settings that shape the lesson; the others may change without teaching again."""
    has_lesson: ClassVar[bool] = True

    weight: float = Field(default=1.0, ge=0)
    """Factor of this objective's loss in the sum. 0 switches it off, at no cost."""
    schedule: Schedule = Schedule()
    """When it is paid for: at which steps, for which examples."""

    _teacher: int = PrivateAttr(default=0)

    @model_validator(mode="after")
    def _sees_what_it_needs(self) -> Self:
        if self.schedule.instead and not self.can_stand_in:
            raise ValueError(f"schedule.instead: {self.name} looks at the texts as they are; set it to false")
        return self

    @property
    def teacher(self) -> int:
        """Which of several teachers teaches it, counted from 0."""
        return self._teacher

    @property
    def key(self) -> str:
        """Its name among the lessons of several teachers: `gradient` is the first one's, `gradient@2` the second's."""
        return f"{self.name}@{self.teacher + 1}" if self.teacher else self.name

    @final
    def of_teacher(self, place: int, share: float) -> Self:
        """This objective as taught by the teacher in this place, whose share of its weight it has."""
        copy = self.model_copy(update={"weight": self.weight * share})
        copy._teacher = place
        return copy

    @property
    def can_stand_in(self) -> bool:
        """Whether it looks at nothing but its copies, so that these may be seen instead of the texts (`Schedule.instead`)."""
        return False

    @property
    def looks_still(self) -> bool:
        """Whether it looks at what it needs of the student without dropout, by a pass of its own."""
        return False

    @property
    def differentiates_twice(self) -> bool:
        """Whether learning takes a derivative of a derivative, which not every kernel allows."""
        return False

    @property
    def takes_gradients(self) -> bool:
        """Whether learning takes a gradient before the step's own."""
        return self.differentiates_twice

    def between(self, teacher: PreTrainedConfig, student: PreTrainedConfig) -> Self:
        """This objective as it stands between two models, told from their configs alone: what depends on them is filled in.

        Raises ValueError where it cannot work between them. Itself by default; of what comes back it is itself.
        """
        return self

    def prepare(self, teacher: Teacher, dataset: Dataset, folder: Path, progress: Progress | None = None) -> Any:
        """What has to be done once before the first batch is taught (training a selector): it arrives as `teacher.prepared`.

        `dataset` is encoded, `folder` is the lesson's own, `progress` is told of long work. It is called in every process,
        in the first before the others, so what takes long has to be kept in `folder`. Nothing by default.
        """
        return None

    @abstractmethod
    def teach(self, teacher: Teacher, batch: Batch, seen: Seen) -> Taught:
        """What the teacher shows about each example of `batch`, given what it showed in its plain pass (`seen`).

        Returns one list of B 0-, 1- or 2-dimensional arrays per field, cut to each example's true size. The teacher is
        frozen; tensors in `seen` carry a graph only if `needs` names the embeddings. A field "strength" (a number per
        example) tells how strong the explanation is, for `Schedule.choose`.
        """

    def opened(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Self:
        """This objective once its lesson is there, in `folder`, for a student with this tokenizer: what `prepare` kept that is
        needed to learn, too. Itself by default."""
        return self

    def head(self, student: nn.Module, lesson: Lesson) -> nn.Module | None:
        """What has to be trained beside the student (a token head, projections); `lesson` is that of one example.

        It arrives as `moment.head`, is saved in checkpoints, and leaves the finished student unless `keeps_head`. Nothing by
        default.
        """
        return None

    def copies(self, batch: Batch, lesson: Lesson, moment: Moment) -> list[Batch]:
        """Perturbed copies of the batch which the student shall be observed on too. None by default."""
        return []

    def counts(self, lesson: Lesson) -> Tensor | None:
        """How many parts the loss of each example is a sum of, [B, ...], where it is divided not by its own number of them but
        by their mean over the batch; it arrives as `moment.count`, the same in all processes. None by default."""
        return None

    @abstractmethod
    def learn(self, seen: Seen, copies: list[Seen], batch: Batch, lesson: Lesson, moment: Moment) -> Tensor:
        """How far the student is from the lesson: float [B], one loss per example, differentiable, without the weight.

        The examples may be a share of a batch, so a lesson may be padded to more units than `text.width(batch)`.
        """

    def lesson_key(self) -> dict[str, Any]:
        """What of this objective a lesson depends on."""
        return {"objective": self.name} | {name: getattr(self, name) for name in self.taught_settings}


def cut(values_BU: Tensor, batch: Batch) -> list[Any]:
    """Rows cut to each example's own number of units (at least 1), as a lesson stores them. Units come last."""
    return [row[..., : max(n, 1)] for row, n in zip(values_BU.detach().cpu(), batch["n_units"].tolist(), strict=True)]


def cut_tokens(values_BT: Tensor, batch: Batch) -> list[Any]:
    """Rows cut to each example's own number of tokens, special ones included. Tokens come first after B."""
    return [row[:n] for row, n in zip(values_BT.detach().cpu(), batch["attention_mask"].sum(1).tolist(), strict=True)]
