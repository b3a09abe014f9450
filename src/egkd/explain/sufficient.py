"""The slow reference of feature selection: the words that suffice, searched for each text anew.

Shapes: B batch, T tokens, U units, C classes (1 for regression), K words to keep, N visible units of one example, P subsets
tried in one round, S sizes of a subset.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from egkd.explain.base import Explainer, Family, Request, UnitScores, predicted
from egkd.explain.fitting import draw_top_k
from egkd.explain.masking import SoftMask, divergence, soft_mask
from egkd.explain.selectors import kept_count, top_share
from egkd.models import observe


@dataclass(frozen=True, kw_only=True)
class SufficientSubset(Explainer):
    """The words that suffice, searched for each text anew: a relaxed mask is optimised, then pruned with hard ones.

    First `steps` of Adam on one logit per unit minimise the divergence of the output under L2X's relaxed choice of
    ceil(rate * n) words. Twice as many candidates as that are then given up one by one, each time the one whose loss
    harms the output least (backward selection, Carter et al. 2019). The score of a unit is the share of the visible
    units that were given up no later than it: 1 for the last word standing. Diagnostics: "size", the smallest number of
    words on that path with the same prediction and a divergence of at most `tolerance` (all n where there is none), and
    "divergence" at ceil(rate * n) words.
    """

    name: ClassVar[str] = "sufficient-subset"
    family: ClassVar[Family] = "selection"
    draws: ClassVar[bool] = True
    signed = False
    passes: ClassVar[str] = "S (F + B) + about 2 (rate U)² F"
    source: ClassVar[str] = "De Cao et al. 2020, arXiv:2004.14992, sec. 3; Carter et al. 2019, arXiv:1810.03805, alg. 1"

    rate: float = Field(default=0.3, gt=0, le=1)
    """Share of words the relaxed mask keeps."""
    steps: int = Field(default=30, ge=0)
    """Steps of the relaxed search (S)."""
    learning_rate: float = Field(default=0.5, gt=0)
    """Of those steps."""
    temperature: float = Field(default=0.5, gt=0)
    """Of the relaxed choice."""
    tolerance: float = Field(default=0.1, gt=0)
    """Divergence of a subset that still suffices: nats, or squared error in regression."""

    def score(self, request: Request) -> UnitScores:
        with torch.no_grad():
            seen = observe(request.model, request.batch, keep=("embeddings",))
        full_BC = seen.logits_BC.float()
        masked = soft_mask(request.model, request.tokenizer, request.batch, own_BTD=seen.embeddings_BTD)
        visible_BU = request.visible_BU
        logits_BU = self._relaxed(masked, full_BC, visible_BU, request.seeds)
        candidates_BU = top_share(logits_BU, visible_BU, min(1.0, 2 * self.rate))
        with torch.no_grad():
            rank_BU, divergence_BS, agrees_BS = prune(masked, full_BC, candidates_BU, request.token_budget)
        return UnitScores(
            scores_BU=_scores(rank_BU, logits_BU, visible_BU),
            visible_BU=visible_BU,
            target_B=predicted(full_BC, request.target_B),
            logits_BC=full_BC,
            diagnostics=self._diagnostics(divergence_BS, agrees_BS, visible_BU),
        )

    def _diagnostics(self, divergence_BS: Tensor, agrees_BS: Tensor, visible_BU: Tensor) -> dict[str, Tensor]:
        suffices_BS = (divergence_BS <= self.tolerance) & agrees_BS
        smallest_B = torch.where(suffices_BS.any(1), suffices_BS.int().argmax(1), visible_BU.sum(1))
        at_budget_B = divergence_BS.gather(1, kept_count(visible_BU, self.rate)[:, None])[:, 0]
        return {"size": smallest_B.float(), "divergence": at_budget_B}

    def _relaxed(self, masked: SoftMask, full_BC: Tensor, visible_BU: Tensor, seeds: Sequence[int]) -> Tensor:
        """Logits of the units after the relaxed search. Each text has its own noise, of its own size."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        k_B, n_B = kept_count(visible_BU, self.rate).tolist(), visible_BU.sum(1).tolist()
        logits_BU = torch.zeros(visible_BU.shape, device=visible_BU.device, requires_grad=True)
        optimizer = torch.optim.Adam([logits_BU], lr=self.learning_rate)
        for _ in range(self.steps):
            uniform_BKU = torch.full((len(k_B), max(1, *k_B), visible_BU.shape[1]), 0.5)
            for row, generator in enumerate(generators):
                drawn_KN = torch.rand((k_B[row], n_B[row]), generator=generator)
                uniform_BKU[row, : k_B[row], visible_BU[row].cpu()] = drawn_KN
            keep_BU = draw_top_k(logits_BU, visible_BU, self.rate, self.temperature, uniform_BKU.to(logits_BU))
            optimizer.zero_grad()
            divergence(full_BC, masked.logits(keep_BU)).sum().backward(inputs=[logits_BU])
            optimizer.step()
        return logits_BU.detach()


def _scores(rank_BU: Tensor, logits_BU: Tensor, visible_BU: Tensor) -> Tensor:
    """The place of each unit counted from the first given up, over n: candidates by rank, before them the others by logit."""
    value_BU = torch.where(rank_BU == 0, logits_BU.clamp(-1e3, 1e3) - 1e4, -rank_BU.float()).masked_fill(
        ~visible_BU, -torch.inf
    )
    place_BU = value_BU.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    n_B1 = visible_BU.sum(1, keepdim=True)
    return torch.where(visible_BU, (n_B1 - place_BU) / n_B1.clamp(min=1), 0.0)


def prune(masked: SoftMask, full_BC: Tensor, candidates_BU: Tensor, token_budget: int) -> tuple[Tensor, Tensor, Tensor]:
    """Give up the units of `candidates_BU` one by one, down to none, by the divergence of the output from `full_BC`.

    Returns rank_BU (int: how many candidates were left when this one went, 1 for the last; 0 for units that are none), and
    for each number of units left, 0 to the most candidates, divergence_BS and agrees_BS (bool: the predicted class is that
    of the whole text); infinite and False where an example had fewer. Of equally dispensable units the first goes.
    Cost: n² / 2 forward passes for n candidates.
    """
    keep_BU = candidates_BU.clone()
    most = int(keep_BU.sum(1).max())
    rank_BU = torch.zeros(keep_BU.shape, dtype=torch.long, device=keep_BU.device)
    divergence_BS = torch.full((len(keep_BU), most + 1), float("inf"), device=keep_BU.device)
    agrees_BS = torch.zeros(divergence_BS.shape, dtype=torch.bool, device=keep_BU.device)
    rows = torch.arange(len(keep_BU), device=keep_BU.device)
    left_B = keep_BU.sum(1)
    divergence_BS[rows, left_B], agrees_BS[rows, left_B] = _tried(masked, full_BC, rows, keep_BU, token_budget)
    while bool(keep_BU.any()):
        row_P, unit_P = keep_BU.nonzero(as_tuple=True)
        trial_PU = keep_BU[row_P]
        trial_PU[torch.arange(len(row_P), device=row_P.device), unit_P] = False
        divergence_P, agrees_P = _tried(masked, full_BC, row_P, trial_PU, token_budget)
        harm_BU = torch.full(keep_BU.shape, float("inf"), device=keep_BU.device).index_put((row_P, unit_P), divergence_P)
        agrees_BU = torch.zeros_like(keep_BU).index_put((row_P, unit_P), agrees_P)
        row = rows[keep_BU.any(1)]
        gone, left = harm_BU[row].argmin(1), keep_BU[row].sum(1)
        rank_BU[row, gone], keep_BU[row, gone] = left, False
        divergence_BS[row, left - 1], agrees_BS[row, left - 1] = harm_BU[row, gone], agrees_BU[row, gone]
    return rank_BU, divergence_BS, agrees_BS


def _tried(masked: SoftMask, full_BC: Tensor, row_P: Tensor, keep_PU: Tensor, token_budget: int) -> tuple[Tensor, Tensor]:
    """Divergence and agreement of the outputs on subsets keep_PU of the examples row_P."""
    parts = []
    size = max(1, token_budget // masked.own_BTD.shape[1])
    for some_P, some_PU in zip(row_P.split(size), keep_PU.split(size), strict=True):
        part_PC, whole_PC = masked.taken(some_P).logits(some_PU), full_BC[some_P]
        parts.append((divergence(whole_PC, part_PC), part_PC.argmax(1) == whole_PC.argmax(1)))
    return torch.cat([harm for harm, _ in parts]), torch.cat([agrees for _, agrees in parts])
