"""Perturbation-based explanations as an objective: the same words are removed from what both models read.

Shapes: B batch, U units, K masks per example, C classes, P perturbed copies (B times masks per step).
"""

import hashlib
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from egkd.models import Seen, log_odds, observe
from egkd.objectives.base import Lesson, Moment, Objective, Taught, Teacher
from egkd.objectives.predictions import logits_distance
from egkd.text import SPECIAL, Batch, Operator, perturb, repeat, width


def outputs_distance(student_BC: Tensor, teacher_BC: Tensor, distance: str, temperature: float) -> Tensor:
    """How far two outputs on the same input are apart, float [B].

    `kl` of the predictions softened by `temperature` (squared error in regression), or `mse` of the log odds of the
    class the teacher predicts for this input, which unlike a probability does not saturate.
    """
    if distance == "kl":
        return logits_distance(student_BC, teacher_BC, temperature)
    target_B = teacher_BC.argmax(1)
    return (log_odds(student_BC, target_B) - log_odds(teacher_BC, target_B)).square()


def draw_masks(seed: int, n_units: int, masks: int, sizes: str) -> np.ndarray:
    """Bool [masks, n_units], True where a unit stays: coalitions in antithetic pairs, drawn from `seed` alone.

    `uniform` draws the number of units removed uniformly from 1 to n - 1 (LIME's rule), `shapley` from the Shapley
    kernel, 1 / (s (n - s)), which prefers to remove one unit or all but one, `leave-one-out` removes single units in a
    random order.
    """
    random = np.random.default_rng(seed)
    keep = np.ones((masks, max(n_units, 1)), dtype=bool)
    if n_units < 2:
        keep[:] = n_units == 0  # the only word goes; an empty text stays as it is
        return keep
    if sizes == "leave-one-out":
        for start in range(0, masks, n_units):
            block = keep[start : start + n_units]
            block[np.arange(len(block)), random.permutation(n_units)[: len(block)]] = False
        return keep
    removed = np.arange(1, n_units)
    chance = np.ones(n_units - 1) if sizes == "uniform" else 1 / (removed * (n_units - removed))
    for row in range(0, masks, 2):
        out = random.permutation(n_units)[: random.choice(removed, p=chance / chance.sum())]
        keep[row, out] = False
        if row + 1 < masks:
            keep[row + 1] = ~keep[row]
    return keep


def example_seed(seed: int, input_ids: Tensor) -> int:
    """A seed of the example's own: the same in every batch, order and process."""
    return int.from_bytes(hashlib.sha256(f"{seed}{input_ids.tolist()}".encode()).digest()[:8], "little")


class PerturbationGuide(Objective):
    """The student matches the teacher's outputs on the same perturbed texts.

    LIME and Shapley values are linear in the outputs on perturbed texts, so matching those under shared masks is matching
    the explanations. Every example has its own fixed bank of masks; the teacher's outputs on it are the lesson. At each
    epoch the student takes the next `masks_per_step` of the bank, so the bank is swept evenly and nothing is left to
    chance. Cost: `masks` teacher passes once, `masks_per_step` more student passes at each step.
    """

    name: ClassVar[str] = "perturbation"
    taught_settings: ClassVar[tuple[str, ...]] = ("masks", "sizes", "operator", "seed")

    weight: float = Field(default=1.0, ge=0)
    """Factor of this objective's loss in the sum."""
    masks: int = Field(default=4, ge=1)
    """Masks in each example's bank."""
    masks_per_step: int = Field(default=1, ge=1)
    """Masks the student sees of each example per epoch."""
    sizes: Literal["uniform", "shapley", "leave-one-out"] = "uniform"
    """How many units a mask removes, see `draw_masks`."""
    operator: Operator = "mask"
    """What removing does, see `text.perturb`."""
    distance: Literal["kl", "mse"] = "kl"
    """How outputs are compared, see `outputs_distance`."""
    temperature: float = Field(default=2.0, gt=0)
    """Softens both predictions in `kl`."""
    seed: int = 0
    """Of the masks."""

    def teach(self, teacher: Teacher, batch: Batch, seen: Seen) -> Taught:
        """The bank of masks (bool [K, U]) and the teacher's outputs on it ([K, C])."""
        width_U, device = width(batch), batch["input_ids"].device
        banks, keep_BKU = [], torch.zeros(len(batch["input_ids"]), self.masks, width_U, dtype=torch.bool, device=device)
        for row, (ids, units, n_units) in enumerate(
            zip(batch["input_ids"], batch["unit_ids"], batch["n_units"].tolist(), strict=True)
        ):
            bank = draw_masks(example_seed(self.seed, ids[units != SPECIAL]), n_units, self.masks, self.sizes)
            keep_BKU[row, :, : bank.shape[1]] = torch.from_numpy(bank)
            banks.append(bank)
        outputs = [
            observe(teacher.model, perturb(batch, keep_BU, self.operator, teacher.tokenizer)).logits_BC
            for keep_BU in keep_BKU.unbind(1)
        ]
        return {"keep": banks, "outputs": list(torch.stack(outputs, dim=1).detach().cpu())}

    def _take(self, moment: Moment) -> list[int]:
        """The masks of the bank whose turn it is."""
        return [(moment.epoch * self.masks_per_step + k) % self.masks for k in range(self.masks_per_step)]

    def copies(self, batch: Batch, lesson: Lesson, moment: Moment) -> list[Batch]:
        """One batch that holds `masks_per_step` perturbed copies of each example."""
        take = self._take(moment)
        keep_PU = lesson["keep"][:, take].flatten(0, 1)
        return [perturb(repeat(batch, len(take)), keep_PU, self.operator, moment.tokenizer)]

    def learn(self, seen: Seen, copies: list[Seen], batch: Batch, lesson: Lesson, moment: Moment) -> Tensor:
        """The mean over the masks of `distance(f_S(x_m), f_T(x_m))`."""
        outputs_PC = lesson["outputs"][:, self._take(moment)].flatten(0, 1)
        distance_P = outputs_distance(copies[0].logits_BC.float(), outputs_PC, self.distance, self.temperature)
        return distance_P.view(len(batch["input_ids"]), -1).mean(1)
