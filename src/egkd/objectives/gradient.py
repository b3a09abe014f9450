"""Gradient-based explanations as an objective: the student's attributions match the teacher's.

Shapes: B batch, T tokens, D width, U units, C classes.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from egkd.explain.gradient import unit_scores_of_gradient
from egkd.models import Seen, log_odds
from egkd.objectives.base import Lesson, Moment, Objective, Taught, Teacher, cut
from egkd.text import Batch, visible_units, width


def scores_of(seen: Seen, batch: Batch, target_B: Tensor, attribution: str, create_graph: bool) -> Tensor:
    """Attributions of the log odds of `target_B` to units, float32 [B, U]."""
    assert seen.embeddings_BTD is not None
    scalar = log_odds(seen.logits_BC.float(), target_B).sum()
    # the pass is shared, so its graph stays for whoever else differentiates it
    (gradient_BTD,) = torch.autograd.grad(scalar, seen.embeddings_BTD, create_graph=create_graph, retain_graph=True)
    embeddings_BTD = None if attribution == "saliency-norm" else seen.embeddings_BTD
    reduction: Literal["sum", "norm"] = "sum" if attribution == "input-x-gradient" else "norm"
    return unit_scores_of_gradient(embeddings_BTD, gradient_BTD, batch["unit_ids"], width(batch), reduction)


def scores_distance(student_BU: Tensor, teacher_BU: Tensor, real_BU: Tensor, distance: str) -> Tensor:
    """How far two score vectors point apart, float [B], whatever their scale; units outside `real_BU` do not count.

    `mse`: squared distance of the L2-normalised vectors, 2 - 2 cos (AD-KD's). `correlation`: 1 - Pearson's r, which a
    vector of equal scores cannot please. Examples with fewer than two units have no distance.
    """
    count_B = real_BU.sum(1)
    student_BU, teacher_BU = student_BU * real_BU, teacher_BU * real_BU
    if distance == "correlation":
        mean = lambda scores_BU: scores_BU.sum(1, keepdim=True) / count_B.clamp(min=1)[:, None]  # noqa: E731
        student_BU = (student_BU - mean(student_BU)) * real_BU
        teacher_BU = (teacher_BU - mean(teacher_BU)) * real_BU
        return (1 - F.cosine_similarity(student_BU, teacher_BU, dim=1)) * (count_B > 2)
    return (F.normalize(student_BU, dim=1) - F.normalize(teacher_BU, dim=1)).square().sum(1) * (count_B > 1)


class GradientGuide(Objective):
    """The student's gradient attributions match the teacher's, through a second derivative.

    The scalar explained is the log odds of the class the *teacher* predicts, for both models. The norm of
    input x gradient over a word is the default: it needs neither equal widths nor equal signs, and two teachers that
    differ only in their seed agree on it best. Cost: one more backward pass through a backward pass, about twice plain
    distillation.

    Source: AD-KD (Wu et al. 2023) matches norms of input x gradient of tokens; ours are of words, of the log odds
    instead of the gold label's loss.
    """

    name: ClassVar[str] = "gradient"
    needs_embeddings: ClassVar[bool] = True
    taught_settings: ClassVar[tuple[str, ...]] = ("attribution",)

    weight: float = Field(default=0.5, ge=0)
    """Factor of this objective's loss in the sum."""
    attribution: Literal["input-x-gradient-norm", "saliency-norm", "input-x-gradient"] = "input-x-gradient-norm"
    """What is matched: unsigned norms, or the signed sum."""
    distance: Literal["mse", "correlation"] = "correlation"
    """How scores are compared, see `scores_distance`."""

    def teach(self, teacher: Teacher, batch: Batch, seen: Seen) -> Taught:
        """The class the teacher predicts and its attributions, L2-normalised so that float16 holds them."""
        target_B = seen.logits_BC.argmax(1)
        scores_BU = F.normalize(scores_of(seen, batch, target_B, self.attribution, create_graph=False), dim=1)
        visible_BU = visible_units(batch["unit_ids"], width(batch))
        return {"scores": cut(scores_BU, batch), "visible": cut(visible_BU, batch), "target": list(target_B.cpu())}

    def learn(self, seen: Seen, copies: list[Seen], batch: Batch, lesson: Lesson, moment: Moment) -> Tensor:
        """`distance(a_S, a_T)` over the words that neither model's truncation cut off."""
        scores_BU = scores_of(seen, batch, lesson["target"].long(), self.attribution, create_graph=True)
        both_BU = visible_units(batch["unit_ids"], width(batch)) & lesson["visible"]
        return scores_distance(scores_BU, lesson["scores"], both_BU, self.distance)
