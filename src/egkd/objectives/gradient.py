"""Gradient-based explanations as an objective: the student's attributions match the teacher's.

Shapes: B batch, T tokens, D width, U units, C classes.
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from egkd.explain.gradient import unit_scores_of_gradient
from egkd.models import Need, Seen, log_odds
from egkd.objectives.base import Lesson, Moment, Objective, Taught, Teacher, cut
from egkd.objectives.draws import drawn, normals, numbers_of, signs
from egkd.objectives.predictions import known_labels
from egkd.objectives.schedule import Schedule
from egkd.text import SPECIAL, Batch, visible_units, width

Scalar = Callable[[Tensor], Tensor]
"""Of logits [B, C]: what is explained, [B]."""
Attribution = Literal["input-x-gradient-norm", "saliency-norm", "input-x-gradient"]
Distance = Literal["mse", "cosine", "correlation", "kl", "rank"]
Classes = Literal["predicted", "gold", "all", "sampled", "mixture"]
STEP = 1e-3  # of a finite difference, relative to the length of an example's embeddings; 0.0002 to 0.005 do as well in float32
TEMPERATURE = 0.1  # of "kl", between scores of length 1; SMaT's for gradient norms (Fernandes et al. 2022)


def scores_at(embeddings_BTD: Tensor, gradient_BTD: Tensor, batch: Batch, attribution: Attribution) -> Tensor:
    """Attributions to units, float32 [B, U], from a gradient at the embeddings."""
    inputs_BTD = None if attribution == "saliency-norm" else embeddings_BTD
    reduction: Literal["sum", "norm"] = "sum" if attribution == "input-x-gradient" else "norm"
    return unit_scores_of_gradient(inputs_BTD, gradient_BTD, batch["unit_ids"], width(batch), reduction)


def gradient_of(scalar_B: Tensor, embeddings_BTD: Tensor, *, twice: bool) -> Tensor:
    """The gradient of everyone's own scalar: examples do not interact, so that of the sum holds them all.

    The pass is shared, so its graph stays for whoever else differentiates it.
    """
    (gradient_BTD,) = torch.autograd.grad(scalar_B.sum(), embeddings_BTD, create_graph=twice, retain_graph=True)
    return gradient_BTD


def scores_distance(student_BU: Tensor, teacher_BU: Tensor, real_BU: Tensor, distance: Distance) -> Tensor:
    """How far two score vectors point apart, float [B], whatever their scale; units outside `real_BU` do not count.

    `mse`: squared distance of the L2-normalised vectors, 2 - 2 cos (AD-KD's). `cosine`: 1 - cos. `correlation`: 1 -
    Pearson's r, which a vector of equal scores cannot please. `kl`: KL(softmax(t / 0.1) || softmax(s / 0.1)) of the
    L2-normalised vectors, so that the highest scores count most. `rank`: over all pairs of units, the share of the teacher's
    differences that the student has the wrong way round, smoothed: mean softplus(-10 (s_i - s_j)) weighted by t_i - t_j > 0,
    over ln 2, so that equal scores cost 1. Examples with too few units to differ have no distance.
    """
    count_B = real_BU.sum(1)
    student_BU, teacher_BU = student_BU * real_BU, teacher_BU * real_BU
    if distance == "correlation":
        mean = lambda scores_BU: scores_BU.sum(1, keepdim=True) / count_B.clamp(min=1)[:, None]  # noqa: E731
        student_BU = (student_BU - mean(student_BU)) * real_BU
        teacher_BU = (teacher_BU - mean(teacher_BU)) * real_BU
        return (1 - F.cosine_similarity(student_BU, teacher_BU, dim=1)) * (count_B > 2)
    if distance == "cosine":
        return (1 - F.cosine_similarity(student_BU, teacher_BU, dim=1)) * (count_B > 1)
    student_BU, teacher_BU = F.normalize(student_BU, dim=1), F.normalize(teacher_BU, dim=1)
    if distance == "mse":
        return (student_BU - teacher_BU).square().sum(1) * (count_B > 1)
    if distance == "kl":
        hidden_BU = ~real_BU
        logs = [(s / TEMPERATURE).masked_fill(hidden_BU, -1e4).log_softmax(1) for s in (student_BU, teacher_BU)]
        return F.kl_div(logs[0], logs[1], reduction="none", log_target=True).sum(1) * (count_B > 1)
    some_U = real_BU.any(0)  # words that were cut off are no pairs
    student_BU, teacher_BU, real_BU = student_BU[:, some_U], teacher_BU[:, some_U], real_BU[:, some_U]
    pairs_BUU = real_BU[:, :, None] & real_BU[:, None, :]
    weight_BUU = (teacher_BU[:, :, None] - teacher_BU[:, None, :]).clamp(min=0) * pairs_BUU
    wrong_BUU = F.softplus(-10 * (student_BU[:, :, None] - student_BU[:, None, :])) / np.log(2)
    return (wrong_BUU * weight_BUU).sum((1, 2)) / weight_BUU.sum((1, 2)).clamp(min=1e-8) * (count_B > 1)


class GradientGuide(Objective):
    """The student's gradient attributions match the teacher's.

    The scalar explained is the log odds of the class the *teacher* predicts, for both models. The norm of
    input x gradient over a word is the default: it needs neither equal widths nor equal signs, and two teachers that
    differ only in their seed agree on it best.

    Strategies, with F a forward pass of the student and 3 F a plain step:
    - `exact`: the gradient of a gradient, 6 F. Needs kernels that can be differentiated twice.
    - `finite-difference`: the same gradient from a pass at shifted embeddings, 7 F. With w the derivative of the
      distance by the gradient g, that of <g, w> is that of (f(e + h w) - f(e)) / h, with the same dropout. First order
      only: any attention kernel, checkpointing and compiling work.
    - `projection`: the directional derivative along random +-1 scalings v of the words' embeddings, <v, a> with a the
      signed input x gradient, against the teacher's <v, a_T>: E_v <v, a_S - a_T>² = |a_S - a_T|², without a
      backward pass for g. 6 F, first order only, always of "input-x-gradient", in the teacher's units; without `distance`.
    `schedule` makes each cheaper.

    Source: AD-KD (Wu et al. 2023) matches norms of input x gradient of tokens; ours are of words, of the log odds
    instead of the gold label's loss. Random projections: Sobolev training (Czarnecki et al. 2017).
    """

    name: ClassVar[str] = "gradient"
    needs: ClassVar[tuple[Need, ...]] = ("embeddings",)
    taught_settings: ClassVar[tuple[str, ...]] = ("attribution", "classes")

    weight: float = Field(default=0.5, ge=0)
    """Factor of this objective's loss in the sum."""
    schedule: Schedule = Schedule(every=5)
    """When it is paid for: at which steps, for which examples."""
    strategy: Literal["exact", "finite-difference", "projection"] = "exact"
    """How the derivative of an explanation is taken."""
    attribution: Attribution = "input-x-gradient-norm"
    """What is matched: unsigned norms, or the signed sum."""
    classes: Classes = "predicted"
    """What is explained: the class the teacher predicts, the gold label (the predicted one where there is none), every class
    (as many times the cost), one of them drawn for each example at each step, or a random mixture of the classes' log odds
    likewise, which needs signed scores."""
    distance: Distance = "correlation"
    """How scores are compared, see `scores_distance`."""
    dropout: bool = True
    """Whether the student is explained under the dropout by which it answers; without any in a pass of its own, F more."""

    @model_validator(mode="after")
    def _signed(self) -> "GradientGuide":
        for setting, value in (("strategy", "projection"), ("classes", "mixture")):
            if getattr(self, setting) == value and self.attribution != "input-x-gradient":
                raise ValueError(
                    f"{setting} {value!r} is linear in signed scores; set attribution to 'input-x-gradient' with it"
                )
        return self

    @property
    def looks_still(self) -> bool:
        """Where it is to be explained as it will be used."""
        return not self.dropout

    @property
    def differentiates_twice(self) -> bool:
        """Only the exact strategy."""
        return self.strategy == "exact"

    @property
    def takes_gradients(self) -> bool:
        """All but projections."""
        return self.strategy != "projection"

    @property
    def reads_labels(self) -> bool:  # type: ignore[override]
        """Where it explains them."""
        return self.classes == "gold"

    def teach(self, teacher: Teacher, batch: Batch, seen: Seen) -> Taught:
        """What is explained (the class [1] or nothing), its attributions [C, U], of length 1 so that float16 holds them, and
        the length they had."""
        assert seen.embeddings_BTD is not None
        target_B = seen.logits_BC.argmax(1)
        if self.classes == "gold" and "labels" in batch and seen.logits_BC.shape[1] > 1:
            target_B = torch.where(known_labels(batch["labels"]), batch["labels"], target_B)
        scalars = self._scalars(seen.logits_BC, target_B)
        scores = [
            scores_at(seen.embeddings_BTD, gradient_of(f, seen.embeddings_BTD, twice=False), batch, self.attribution)
            for f in scalars
        ]
        scores_BCU = torch.stack(scores, dim=1)
        strength_B = scores_BCU.flatten(1).norm(dim=1)
        return {
            "scores": cut(scores_BCU / strength_B.clamp(min=1e-12)[:, None, None], batch),
            "strength": list(strength_B.detach().cpu()),
            "visible": cut(visible_units(batch["unit_ids"], width(batch)), batch),
            "target": list(target_B.cpu()),
        }

    def _scalars(self, logits_BC: Tensor, target_B: Tensor) -> list[Tensor]:
        """The scalars whose attributions are taught, [B] each: one, or one of each class; two classes are each other's
        opposite."""
        logits_BC = logits_BC.float()
        if self.classes in ("predicted", "gold") or logits_BC.shape[1] <= 2:
            return [log_odds(logits_BC, target_B)]
        return [log_odds(logits_BC, torch.full_like(target_B, each)) for each in range(logits_BC.shape[1])]

    def learn(self, seen: Seen, copies: list[Seen], batch: Batch, lesson: Lesson, moment: Moment) -> Tensor:
        """`distance(a_S, a_T)` over the words that neither model's truncation cut off, the mean over what is explained."""
        n_units = width(batch)  # fewer than the lesson is padded to, where the examples are a share of a batch
        target_B, taught_BCU = lesson["target"].long(), lesson["scores"][..., :n_units]
        idx_B, n_scalars = numbers_of(batch), taught_BCU.shape[1]
        weights_MBC = torch.eye(n_scalars, device=idx_B.device)[:, None].expand(-1, len(idx_B), -1)
        if self.classes == "sampled":
            drawn_B = drawn(idx_B, 1, moment.seed, moment.step)[:, 0] % n_scalars
            weights_MBC = F.one_hot(drawn_B, n_scalars).float()[None]
        elif self.classes == "mixture":
            weights_MBC = normals(idx_B, n_scalars, moment.seed, moment.step)[None]
        both_BU = visible_units(batch["unit_ids"], n_units) & lesson["visible"][:, :n_units]
        explain = {"exact": self._exact, "finite-difference": self._by_difference, "projection": self._by_projection}[
            self.strategy
        ]
        losses = []
        for weight_BC in weights_MBC:

            def scalar(logits_BC: Tensor, weight_BC: Tensor = weight_BC) -> Tensor:
                return (weight_BC * torch.stack(self._scalars(logits_BC, target_B), dim=1)).sum(1)

            taught_BU = (taught_BCU * weight_BC[..., None]).sum(1)
            losses.append(explain(seen, scalar, batch, taught_BU, both_BU, lesson["strength"], moment))
        return torch.stack(losses).mean(0)

    def _exact(
        self, seen: Seen, scalar: Scalar, batch: Batch, taught_BU: Tensor, both_BU: Tensor, strength_B: Tensor, moment: Moment
    ) -> Tensor:
        assert seen.embeddings_BTD is not None
        gradient_BTD = gradient_of(scalar(seen.logits_BC), seen.embeddings_BTD, twice=True)
        return scores_distance(
            scores_at(seen.embeddings_BTD, gradient_BTD, batch, self.attribution), taught_BU, both_BU, self.distance
        )

    def _by_difference(
        self, seen: Seen, scalar: Scalar, batch: Batch, taught_BU: Tensor, both_BU: Tensor, strength_B: Tensor, moment: Moment
    ) -> Tensor:
        """The exact loss, whose gradient comes from two passes: -> L + [f(e + h w) - f(e)] / h + <dL/de, e> less the
        value of all but L."""
        assert seen.embeddings_BTD is not None
        assert seen.at is not None
        point_BTD = seen.embeddings_BTD.detach().requires_grad_(True)
        gradient_BTD = gradient_of(scalar(seen.logits_BC), seen.embeddings_BTD, twice=False).detach().requires_grad_(True)
        with torch.enable_grad():
            scores_BU = scores_at(point_BTD, gradient_BTD, batch, self.attribution)
            loss_B = scores_distance(scores_BU, taught_BU, both_BU, self.distance)
        inputs = [gradient_BTD] if self.attribution == "saliency-norm" else [gradient_BTD, point_BTD]
        along_BTD, *direct = torch.autograd.grad(loss_B.sum(), inputs)
        length_B = along_BTD.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None]
        real_BTD = point_BTD.detach() * batch["attention_mask"][..., None]  # a step as long in whatever batch
        step_B = STEP * real_BTD.flatten(1).norm(dim=1)[:, None, None]
        shift_BTD = step_B / length_B * along_BTD
        ahead_B = scalar(seen.at(seen.embeddings_BTD + shift_BTD))
        carrier_B = (ahead_B - scalar(_here(seen))) * (length_B / step_B).flatten()
        if direct:
            carrier_B = carrier_B + (direct[0] * seen.embeddings_BTD).flatten(1).sum(1)
        return loss_B.detach() + carrier_B - carrier_B.detach()

    def _by_projection(
        self, seen: Seen, scalar: Scalar, batch: Batch, taught_BU: Tensor, both_BU: Tensor, strength_B: Tensor, moment: Moment
    ) -> Tensor:
        assert seen.embeddings_BTD is not None
        assert seen.at is not None
        sign_BU = signs(numbers_of(batch), both_BU.shape[1], moment.seed, moment.step) * both_BU
        unit_ids_BT = batch["unit_ids"]
        scale_BT = STEP * sign_BU.gather(1, unit_ids_BT.clamp(min=0)) * (unit_ids_BT != SPECIAL)
        ahead_B = scalar(seen.at(seen.embeddings_BTD * (1 + scale_BT[..., None])))
        derivative_B = (ahead_B - scalar(_here(seen))) / (STEP * strength_B.clamp(min=1e-6))
        return (derivative_B - (sign_BU * taught_BU).sum(1)).square()


def _here(seen: Seen) -> Tensor:
    """The logits to which those at a shifted point are compared: mixed precision is too coarse for a small difference, so
    that there both come from full precision, for one more pass."""
    assert seen.at is not None
    assert seen.embeddings_BTD is not None
    return seen.at(seen.embeddings_BTD) if seen.mixed else seen.logits_BC
