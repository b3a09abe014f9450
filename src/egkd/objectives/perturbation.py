"""Perturbation-based explanations as an objective: the same words are removed from what both models read.

Shapes: B batch, U units, K masks per example, M = K + 1 outputs (the text itself, then the bank), R masks taken in a step,
C classes.
"""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from datasets import Dataset
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from egkd.models import Seen, log_odds, observe
from egkd.objectives.background import FILE, Background, background_words
from egkd.objectives.base import Lesson, Moment, Objective, Progress, Taught, Teacher, cut
from egkd.objectives.coefficients import Floats, Kernel, Masks, Sizes, all_coalitions, coefficients_of
from egkd.objectives.draws import drawn, numbers_of
from egkd.objectives.predictions import logits_distance
from egkd.objectives.schedule import Schedule
from egkd.predict import predict_logits
from egkd.text import SPECIAL, Batch, Operator, perturb, visible_units, width

Distance = Literal["log-odds", "kl"]
SCALE_ROWS = 256  # examples from which the teacher's scale is estimated
_KEY = 2048  # lessons hold whole numbers below it


class Prepared(NamedTuple):
    """What is there before the first batch is taught."""

    scale: float
    background: Background | None
    """The words that `replace` draws from."""


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
    """Standard deviation of the teacher's log odds of the last class (its output in regression) on some of its texts.

    It makes `log-odds` distances of confident and of diffident teachers alike, whatever their logits' size. The texts are
    evenly spread, as those of one class may come first.
    """
    rows = np.linspace(0, len(dataset) - 1, min(SCALE_ROWS, len(dataset))).astype(int)
    logits_NC = torch.from_numpy(predict_logits(teacher.model, teacher.tokenizer, dataset.select(rows)))
    last_N = torch.full((len(logits_NC),), logits_NC.shape[1] - 1)
    spread = float(log_odds(logits_NC, last_N).std(correction=0))
    return spread if spread > 1e-3 else 1.0  # less is rounding


def draw_masks(seed: int, n_units: int, masks: int, sizes: Sizes) -> Masks:
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


def _leave_one_out(random: np.random.Generator, n_units: int, masks: int) -> Masks:
    """Every unit is left out once before any is again."""
    rounds = [random.permutation(n_units) for _ in range(0, masks, n_units)]
    out = np.concatenate([*rounds, np.empty(0, dtype=int)])[:masks]
    return out[:, None] != np.arange(n_units)


def _antithetic(random: np.random.Generator, n_units: int, masks: int, chances: Floats) -> Masks:
    keep = np.ones((masks, n_units), dtype=bool)
    for row in range(0, masks, 2):
        removed = random.choice(np.arange(1, n_units), p=chances / chances.sum())
        keep[row, random.permutation(n_units)[:removed]] = False
        if row + 1 < masks:
            keep[row + 1] = ~keep[row]
    return keep


def bank_seed(seed: int, input_ids: Tensor) -> int:
    """A seed of the example's own: the same in every batch, order and process."""
    return int.from_bytes(hashlib.sha256(f"{seed}{input_ids.tolist()}".encode()).digest()[:8], "little")


def turn_order(idx_B: Tensor, round_B: Tensor, masks: int) -> Tensor:
    """In which order each example goes through its bank in this round: random permutations of 0 to K - 1, long [B, K].

    They depend on the example's number and the round alone, whatever batch or process it is in.
    """
    return drawn(idx_B, masks, round_B).argsort(dim=1, stable=True)


class PerturbationGuide(Objective):
    """The student matches the teacher's outputs on the same perturbed texts.

    LIME and Shapley values are linear in the outputs on perturbed texts, so matching those under shared masks is matching
    the explanations: with `match="outputs"` mask by mask, with `"coefficients"` in the metric in which the loss is the squared
    error of the explanation's own scores. Every example has its own fixed bank of masks; the teacher's outputs on it are
    the lesson. Each time an example is paid for, it goes on through its bank, in a new random order for every round.
    Cost: `masks` teacher passes once, `masks_per_step` more student passes at each step.

    Source: our own strategy; LIME (Ribeiro et al. 2016) and KernelSHAP (Lundberg and Lee 2017) for what it amounts to.
    """

    name: ClassVar[str] = "perturbation"
    taught_settings: ClassVar[tuple[str, ...]] = ("masks", "sizes", "operator", "match", "kernel", "ridge", "seed")

    weight: float = Field(default=0.2, ge=0)
    """Factor of this objective's loss in the sum."""
    schedule: Schedule = Schedule(every=4)
    """When it is paid for: at which steps, for which examples."""
    masks: int = Field(default=4, ge=1)
    """Masks in each example's bank."""
    masks_per_step: int = Field(default=1, ge=1)
    """Masks the student sees of each example each time; two by default where `match` compares them in pairs."""
    sizes: Sizes = "mixed"
    """How many units a mask removes, see `draw_masks`."""
    operator: Operator | Literal["replace"] = "mask"
    """What removing does, see `text.perturb`; `replace` puts other words of the texts in the place of those removed, see
    `Background`."""
    match: Literal["outputs", "coefficients"] = "outputs"
    """What the loss is the squared error of: the outputs, each for itself, or the scores of an explanation made of them."""
    kernel: Kernel = "lime"
    """Whose scores: LIME's or KernelSHAP's, see `coefficients_of`. `shapley` has the empty coalition as one of the masks."""
    ridge: float = Field(default=1.0, ge=0)
    """Penalty on the squared scores in the regression they come from; KernelSHAP proper has none."""
    distance: Distance = "log-odds"
    """How outputs are compared, see `outputs_distance`."""
    temperature: float = Field(default=2.0, gt=0)
    """Softens both predictions in `kl`."""
    seed: int = 0
    """Of the masks, and of the words that replace others."""

    _background: Background | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _in_pairs(cls, settings: Any) -> Any:
        pairs = isinstance(settings, Mapping) and settings.get("match") == "coefficients"
        return {"masks_per_step": 2, **settings} if pairs else settings

    @model_validator(mode="after")
    def _possible(self) -> "PerturbationGuide":
        if self.masks_per_step > self.masks:
            raise ValueError(f"masks_per_step is {self.masks_per_step}, the bank has {self.masks}; raise masks to as many")
        if self.match == "coefficients" and self.masks_per_step < 2:
            raise ValueError("match 'coefficients' compares masks in pairs, masks_per_step is 1; set it to 2 or more")
        if self.match == "coefficients" and self.distance != "log-odds":
            raise ValueError(f"coefficients are linear in log odds, distance is {self.distance!r}; set it to 'log-odds'")
        return self

    @property
    def can_stand_in(self) -> bool:
        """Coefficients need the text itself, too."""
        return self.match == "outputs"

    def prepare(self, teacher: Teacher, dataset: Dataset, folder: Path, progress: Progress | None = None) -> Prepared:
        """The teacher's scale, and the words that replace others, kept in the lesson's folder."""
        background = None
        if self.operator == "replace" and (folder / FILE).exists():
            background = Background.load(folder, teacher.tokenizer)
        elif self.operator == "replace":
            background = Background.of(background_words(teacher.tokenizer, dataset), teacher.tokenizer)
            background.save(folder)
        return Prepared(teacher_scale(teacher, dataset), background)

    def opened(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Itself, with the words that replace others as the student writes them."""
        return self._with(Background.load(folder, tokenizer)) if self.operator == "replace" else self

    def _with(self, background: Background | None) -> Self:
        copy = self.model_copy()
        copy._background = background
        return copy

    def teach(self, teacher: Teacher, batch: Batch, seen: Seen) -> Taught:
        """The bank of masks (bool [K, U]), the teacher's outputs on it ([K, C]), its scale, and how far the bank moves it (root
        mean square, in scales). For replaced words the key that draws them ([2]). For coefficients also the output on the text
        itself, and A'A of `coefficients_of`: over its trace ([M, M]), and the root of that.
        """
        visible_BU, device = visible_units(batch["unit_ids"], width(batch)).cpu(), batch["input_ids"].device
        keep_BKU = torch.ones(len(visible_BU), self.masks, visible_BU.shape[1], dtype=torch.bool)
        banks: list[Masks] = []
        seeds: list[int] = []
        for ids_T, units_T, visible_U, keep_KU in zip(batch["input_ids"], batch["unit_ids"], visible_BU, keep_BKU, strict=True):
            seeds.append(bank_seed(self.seed, ids_T[units_T != SPECIAL]))
            banks.append(self._bank(seeds[-1], int(visible_U.sum())))
            keep_KU[:, visible_U] = torch.from_numpy(banks[-1])
        key_B2 = torch.tensor([[seed % _KEY, seed // _KEY % _KEY] for seed in seeds], device=device)
        guide = self._with(teacher.prepared.background)
        copies = [
            guide._perturbed(batch, keep_BU, key_B2, torch.full_like(key_B2[:, 0], mask), teacher.tokenizer)
            for mask, keep_BU in enumerate(keep_BKU.to(device).unbind(1))
        ]
        outputs_BKC = torch.stack([observe(teacher.model, copy).logits_BC for copy in copies], dim=1).detach().float()
        plain_BC = seen.logits_BC.detach().float()
        moved_BK = _values(outputs_BKC, plain_BC) - _values(plain_BC[:, None], plain_BC)
        taught: Taught = {
            "keep": cut(keep_BKU, batch),
            "outputs": list(outputs_BKC.cpu()),
            "scale": [np.float32(teacher.prepared.scale)] * len(banks),
            "strength": list((moved_BK / teacher.prepared.scale).square().mean(1).sqrt().cpu()),
        }
        if self.operator == "replace":
            taught["key"] = list(key_B2.cpu())
        if self.match == "coefficients":
            gains, metrics = zip(*map(self._metric, banks), strict=True)
            taught |= {"plain": list(plain_BC.cpu()), "gain": list(gains), "metric": list(metrics)}
        return taught

    def _perturbed(
        self, batch: Batch, keep_BU: Tensor, key_B2: Tensor | None, masks_B: Tensor, tokenizer: PreTrainedTokenizerBase
    ) -> Batch:
        """The batch without the units outside `keep_BU`; `masks_B` are the numbers of the masks."""
        if self.operator != "replace":
            return perturb(batch, keep_BU, self.operator, tokenizer)
        if self._background is None or key_B2 is None:
            raise ValueError("perturbation has no words to replace others with; call `opened` with the folder of its lessons")
        key_B = key_B2[:, 0].long() + _KEY * key_B2[:, 1].long()
        return self._background.replace(batch, keep_BU, key_B, masks_B, tokenizer)

    def _bank(self, seed: int, n_units: int) -> Masks:
        """The masks of an example with so many visible units: bool [K, N]."""
        if self.match == "outputs" or self.kernel == "lime" or n_units < 2:
            return draw_masks(seed, n_units, self.masks, self.sizes)[:, :n_units]
        drawn = self.masks - 1
        few = drawn < 2**n_units - 2
        others = draw_masks(seed, n_units, drawn, self.sizes) if few else all_coalitions(n_units, drawn)
        return np.vstack([np.zeros((1, n_units), dtype=bool), others])

    def _metric(self, keep_KN: Masks) -> tuple[np.floating, Floats]:
        """|A| and A'A / |A|², so that float16 holds them."""
        if keep_KN.shape[1] == 0:
            return np.float64(0), np.zeros((len(keep_KN) + 1, len(keep_KN) + 1))
        map_NM = coefficients_of(keep_KN, self.kernel, self.sizes, self.ridge)
        gain = np.linalg.norm(map_NM)
        return gain, map_NM.T @ map_NM / gain**2

    def _take(self, batch: Batch, lesson: Lesson, moment: Moment) -> Tensor:
        """The masks of the bank whose turn it is, long [B, R].

        Examples go round their banks: after K / gcd(K, R) visits each mask has had as many turns, and the next round has
        another order. So R masks taken together are any R, with equal chances.
        """
        taken = self.masks_per_step
        idx_B = numbers_of(batch)
        visit_B, visits = self.schedule.visits(idx_B, moment.epoch), self.masks // math.gcd(self.masks, taken)
        order_BK = turn_order(idx_B, visit_B // visits, self.masks)
        place_BR = (visit_B % visits * taken)[:, None] + torch.arange(taken, device=idx_B.device)
        return order_BK.gather(1, place_BR % self.masks)

    def copies(self, batch: Batch, lesson: Lesson, moment: Moment) -> list[Batch]:
        """`masks_per_step` perturbed copies of each example, those that keep fewest words first, in batches of half as many."""
        take_BR = self._take(batch, lesson, moment)
        found = []
        for places in _shortest_first(lesson["keep"], take_BR).chunk(2 * take_BR.shape[1]):
            rows = places // take_BR.shape[1]
            own = {name: value[rows] for name, value in batch.items()}
            masks_P, key_P2 = take_BR.flatten()[places], lesson["key"][rows] if "key" in lesson else None
            found.append(self._perturbed(own, lesson["keep"][rows, masks_P], key_P2, masks_P, moment.tokenizer))
        return found

    def learn(self, seen: Seen, copies: list[Seen], batch: Batch, lesson: Lesson, moment: Moment) -> Tensor:
        """The mean over the masks taken of `distance(f_S(x_m), f_T(x_m))`, or an unbiased estimate of |A (v_S - v_T)|²."""
        take_BR = self._take(batch, lesson, moment)
        rows_B1 = torch.arange(len(take_BR), device=take_BR.device)[:, None]
        back_P = _shortest_first(lesson["keep"], take_BR).argsort()
        student_PC = torch.cat([copy.logits_BC.float() for copy in copies])[back_P]
        teacher_BRC = lesson["outputs"][rows_B1, take_BR]
        if self.match == "outputs":
            scale_P = lesson["scale"].repeat_interleave(take_BR.shape[1])
            distance_P = outputs_distance(
                student_PC, teacher_BRC.flatten(0, 1), self.distance, scale_B=scale_P, temperature=self.temperature
            )
            return distance_P.view(take_BR.shape).mean(1)
        plain_BC = lesson["plain"]
        student_BMC = torch.cat([seen.logits_BC.float()[:, None], student_PC.view(teacher_BRC.shape)], 1)
        teacher_BMC = torch.cat([plain_BC[:, None], teacher_BRC], 1)
        gap_BM = (_values(student_BMC, plain_BC) - _values(teacher_BMC, plain_BC)) / lesson["scale"][:, None]
        place_BM = F.pad(take_BR + 1, (1, 0))  # the text itself always
        metric_BMM = lesson["metric"][rows_B1[..., None], place_BM[:, :, None], place_BM[:, None, :]]
        loss_B = torch.einsum("bm,bmn,bn->b", gap_BM, metric_BMM * self._chances(take_BR.device), gap_BM)
        return lesson["gain"].square() * loss_B

    def _chances(self, device: torch.device) -> Tensor:
        """One over the chance that two outputs are seen in the same step, float [R + 1, R + 1]."""
        masks, taken = self.masks, self.masks_per_step
        inverse_MM = torch.full((taken + 1, taken + 1), masks * (masks - 1) / (taken * (taken - 1)), device=device)
        inverse_MM.fill_diagonal_(masks / taken)
        inverse_MM[0] = inverse_MM[:, 0] = masks / taken
        inverse_MM[0, 0] = 1.0
        return inverse_MM


def _values(outputs_BKC: Tensor, plain_BC: Tensor) -> Tensor:
    """Log odds of the class that is predicted for the text itself, float [B, K]."""
    target_B = plain_BC.argmax(1).repeat_interleave(outputs_BKC.shape[1])
    return log_odds(outputs_BKC.flatten(0, 1), target_B).view(outputs_BKC.shape[:2])


def _shortest_first(keep_BKU: Tensor, take_BR: Tensor) -> Tensor:
    """Places in the flattened `take_BR`, by how many words are kept: copies of about equal length make cheap passes."""
    return keep_BKU.sum(2).gather(1, take_BR).flatten().argsort(stable=True)
