"""Perturbation-based explanations as an objective: the same words are removed from what both models read.

Shapes: B batch, U units, K masks per example, C classes, P perturbed copies (B times masks per step).
"""

import hashlib
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor

from egkd.models import Seen, log_odds, observe
from egkd.objectives.base import Lesson, Moment, Objective, Progress, Taught, Teacher
from egkd.objectives.predictions import logits_distance
from egkd.predict import predict_logits
from egkd.text import SPECIAL, Batch, Operator, perturb, repeat, width

Sizes = Literal["mixed", "leave-one-out", "uniform", "shapley"]
Distance = Literal["log-odds", "kl"]
SCALE_ROWS = 256  # examples from which the teacher's scale is estimated


def outputs_distance(
    student_BC: Tensor, teacher_BC: Tensor, distance: Distance, *, scale_B: Tensor | float = 1.0, temperature: float = 2.0
) -> Tensor:
    """How far two outputs on the same input are apart, float [B].

    `log-odds`: squared error of the log odds of the class the teacher predicts for this input, in units of `scale_B`; unlike
    probabilities they do not saturate. `kl` of the predictions softened by `temperature` (squared error in regression).
    """
    if distance == "kl":
        return logits_distance(student_BC, teacher_BC, temperature)
    target_B = teacher_BC.argmax(1)
    return ((log_odds(student_BC, target_B) - log_odds(teacher_BC, target_B)) / scale_B).square()


def teacher_scale(teacher: Teacher, dataset: Dataset) -> float:
    """Standard deviation of the teacher's log odds of the last class (its output in regression) on its first texts.

    It makes `log-odds` distances of confident and of diffident teachers alike, whatever their logits' size.
    """
    logits_NC = torch.from_numpy(
        predict_logits(teacher.model, teacher.tokenizer, dataset.select(range(min(SCALE_ROWS, len(dataset)))))
    )
    last_N = torch.full((len(logits_NC),), logits_NC.shape[1] - 1)
    spread = float(log_odds(logits_NC, last_N).std(correction=0))
    return spread if spread > 0 else 1.0


def draw_masks(seed: int, n_units: int, masks: int, sizes: Sizes) -> np.ndarray:
    """Bool [masks, n_units], True where a unit stays, drawn from `seed` alone.

    `leave-one-out` removes single units in a random order (occlusion's coalitions). `uniform` removes a number drawn
    uniformly from 1 to n - 1 (LIME's), `shapley` one drawn from the Shapley kernel, 1 / (s (n - s)); both come in antithetic
    pairs, a coalition and its complement. `mixed` takes turns between leave-one-out and uniform.
    """
    random = np.random.default_rng(seed)
    if n_units < 2:  # the only word goes; an empty text stays as it is
        return np.full((masks, 1), n_units == 0)
    if sizes == "mixed":
        keep = np.empty((masks, n_units), dtype=bool)
        keep[0::2] = _leave_one_out(random, n_units, len(keep[0::2]))
        keep[1::2] = _antithetic(random, n_units, len(keep[1::2]), np.ones(n_units - 1))
        return keep
    if sizes == "leave-one-out":
        return _leave_one_out(random, n_units, masks)
    removed = np.arange(1, n_units)
    chances = np.ones(n_units - 1) if sizes == "uniform" else 1 / (removed * (n_units - removed))
    return _antithetic(random, n_units, masks, chances)


def _leave_one_out(random: np.random.Generator, n_units: int, masks: int) -> np.ndarray:
    """Every unit is left out once before any is again."""
    rounds = [random.permutation(n_units) for _ in range(0, masks, n_units)]
    out = np.concatenate([*rounds, np.empty(0, dtype=int)])[:masks]
    return out[:, None] != np.arange(n_units)


def _antithetic(random: np.random.Generator, n_units: int, masks: int, chances: np.ndarray) -> np.ndarray:
    keep = np.ones((masks, n_units), dtype=bool)
    for row in range(0, masks, 2):
        removed = random.choice(np.arange(1, n_units), p=chances / chances.sum())
        keep[row, random.permutation(n_units)[:removed]] = False
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

    weight: float = Field(default=3.0, ge=0)
    """Factor of this objective's loss in the sum."""
    masks: int = Field(default=4, ge=1)
    """Masks in each example's bank."""
    masks_per_step: int = Field(default=2, ge=1)
    """Masks the student sees of each example per epoch."""
    sizes: Sizes = "mixed"
    """How many units a mask removes, see `draw_masks`."""
    operator: Operator = "mask"
    """What removing does, see `text.perturb`."""
    distance: Distance = "log-odds"
    """How outputs are compared, see `outputs_distance`."""
    temperature: float = Field(default=2.0, gt=0)
    """Softens both predictions in `kl`."""
    seed: int = 0
    """Of the masks."""

    def prepare(self, teacher: Teacher, dataset: Dataset, folder: Path, progress: Progress | None = None) -> float:
        """The teacher's scale."""
        return teacher_scale(teacher, dataset)

    def teach(self, teacher: Teacher, batch: Batch, seen: Seen) -> Taught:
        """The bank of masks (bool [K, U]), the teacher's outputs on it ([K, C]) and its scale."""
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
        scales = [np.float32(teacher.prepared)] * len(banks)
        return {"keep": banks, "outputs": list(torch.stack(outputs, dim=1).detach().cpu()), "scale": scales}

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
        scale_P = lesson["scale"].repeat_interleave(self.masks_per_step)
        distance_P = outputs_distance(
            copies[0].logits_BC.float(), outputs_PC, self.distance, scale_B=scale_P, temperature=self.temperature
        )
        return distance_P.view(len(batch["input_ids"]), -1).mean(1)
