"""Answers: gold labels and the teacher's soft labels.

Shapes: B batch, C classes (1 for regression).
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from egkd.data import NO_LABEL, has_label
from egkd.models import Seen
from egkd.objectives.base import Lesson, Moment, Objective, Taught, Teacher
from egkd.text import Batch


def logits_distance(student_BC: Tensor, teacher_BC: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · KL(teacher || student) of the softened predictions in nats, float [B]; squared error in regression (C = 1).

    Source: Hinton et al. 2015. T² keeps the gradient's size independent of the temperature.
    """
    if student_BC.shape[-1] == 1:
        return (student_BC - teacher_BC)[..., 0].square()
    log_student_BC = F.log_softmax(student_BC / temperature, dim=-1)
    log_teacher_BC = F.log_softmax(teacher_BC / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_student_BC, log_teacher_BC, reduction="none", log_target=True).sum(-1)


def label_loss(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Cross-entropy in nats, or squared error in regression (C = 1), float [B]; 0 where there is no label."""
    if logits_BC.shape[1] == 1:
        return torch.where(known_labels(labels_B), logits_BC.float()[:, 0] - labels_B.float().nan_to_num(), 0.0).square()
    return F.cross_entropy(logits_BC.float(), labels_B, reduction="none", ignore_index=NO_LABEL)


def known_labels(labels_B: Tensor) -> Tensor:
    """Bool [B]: the rows that have a label, which is neither -100 nor NaN."""
    return ~torch.isnan(labels_B.float()) & (labels_B != NO_LABEL)


class Labels(Objective):
    """Gold labels: cross-entropy, or squared error in regression.

    A row without a label (-100; NaN for a score) costs nothing and counts in the mean over the batch all the same. So what a
    labelled row weighs against its own soft label does not depend on how many unlabelled ones there are beside it.
    """

    name: ClassVar[str] = "labels"
    has_lesson: ClassVar[bool] = False

    weight: float = Field(default=0.5, ge=0)
    """Factor of this objective's loss in the sum."""

    def teach(self, teacher: Teacher, batch: Batch, seen: Seen) -> Taught:
        """Nothing: the data set has the labels."""
        return {}

    def learn(self, seen: Seen, copies: list[Seen], batch: Batch, lesson: Lesson, moment: Moment) -> Tensor:
        """`-log p(label)`, or `(output - label)²`."""
        return label_loss(seen.logits_BC, batch["labels"])


def check_labelled(objectives: Sequence[Objective], dataset: Dataset) -> None:
    """Refuse to learn from gold labels where no row has one. Raises ValueError."""
    asked = [objective for objective in objectives if isinstance(objective, Labels) and objective.weight > 0]
    if asked and not ("label" in dataset.column_names and any(map(has_label, dataset["label"]))):
        raise ValueError(
            f"objectives.labels has weight {asked[0].weight:g} and no row to train on has a label; "
            "give labelled rows, or set objectives.labels.weight to 0"
        )


class SoftLabels(Objective):
    """Plain distillation: the student's softened predictions match the teacher's.

        loss = T² · distance(softmax(f_T / T), softmax(f_S / T))          regression, and "mse": T² · (f_S / T - f_T / T)²

    The defaults are Hinton et al. 2015. Published code deviates, so that weights cannot be carried over: AD-KD (Wu et al.
    2023) takes the cross-entropy without T², and on some tasks anneals T; GKD (Wang et al. 2022) and PKD (Sun et al. 2019)
    divide by the number of classes too. `distance`, `scale`, `final_temperature` and `reduction` say so.
    """

    name: ClassVar[str] = "soft-labels"

    weight: float = Field(default=0.5, ge=0)
    """Factor of this objective's loss in the sum."""
    temperature: float = Field(default=2.0, gt=0)
    """T, softens both predictions before they are compared."""
    final_temperature: float | None = Field(default=None, gt=0)
    """T in the last epoch: from epoch to epoch it goes there linearly; it stays where there is one epoch only."""
    distance: Literal["kl", "cross-entropy", "mse"] = "kl"
    """`kl` of the predictions (Hinton et al. 2015), their `cross-entropy`, which has the same gradient, or `mse` of the logits
    (Tang et al. 2019)."""
    scale: Literal["temperature-squared", "one"] = "temperature-squared"
    """Factor before the distance: T² keeps the gradient's size independent of T."""
    reduction: Literal["batchmean", "mean"] = "batchmean"
    """As `torch.nn.KLDivLoss` has it: the mean over examples, or over examples and classes, as `mse` always is."""

    def teach(self, teacher: Teacher, batch: Batch, seen: Seen) -> Taught:
        """The teacher's logits."""
        return {"logits": list(seen.logits_BC.detach().cpu())}

    def learn(self, seen: Seen, copies: list[Seen], batch: Batch, lesson: Lesson, moment: Moment) -> Tensor:
        """The loss of the class docstring."""
        temperature = self.temperature_at(moment)
        loss_B = _distance(seen.logits_BC.float() / temperature, lesson["logits"] / temperature, self.distance)
        factor = temperature**2 if self.scale == "temperature-squared" else 1.0
        divide = self.reduction == "mean" and self.distance != "mse"
        return factor * loss_B / (seen.logits_BC.shape[1] if divide else 1)

    def temperature_at(self, moment: Moment) -> float:
        """T of the epoch."""
        if self.final_temperature is None or moment.epochs < 2:
            return self.temperature
        share = min(moment.epoch / (moment.epochs - 1), 1.0)
        return self.temperature + share * (self.final_temperature - self.temperature)


def _distance(student_BC: Tensor, teacher_BC: Tensor, distance: str) -> Tensor:
    """Between logits, float [B]."""
    if distance == "mse" or student_BC.shape[1] == 1:
        return (student_BC - teacher_BC).square().mean(1)
    if distance == "cross-entropy":
        return F.cross_entropy(student_BC, teacher_BC.softmax(1), reduction="none")
    return logits_distance(student_BC, teacher_BC)
