"""Perturbation-based explanations: what the model says once units are taken away.

Shapes: B batch, T tokens, U units, C classes, P perturbed copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from egkd.explain.base import TOKEN_BUDGET, Explainer, Family, UnitScores, predicted
from egkd.models import log_odds, observe
from egkd.text import Batch, Operator, perturb, visible_units, width


def coalition_values(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    batch: Batch,
    target_B: Tensor,
    row_P: Tensor,
    keep_PU: Tensor,
    operator: Operator,
    token_budget: int,
) -> Tensor:
    """Log odds of the target, float32 [P], of copy p of example `row_P[p]` with only the units `keep_PU[p]` left.

    Copies are sorted by their length and packed, so that a pass holds at most `token_budget` tokens.
    """
    real_BT = batch["attention_mask"].bool()
    lengths_P = real_BT.sum(1)[row_P]
    if operator == "delete":
        tokens_BU = torch.zeros_like(keep_PU[:1].expand(len(real_BT), -1), dtype=torch.long)
        unit_ids_BT = batch["unit_ids"]
        tokens_BU.scatter_add_(1, unit_ids_BT.clamp(min=0), (unit_ids_BT >= 0).long())
        lengths_P = lengths_P - (tokens_BU[row_P] * ~keep_PU).sum(1)
    order_P = lengths_P.argsort(descending=True, stable=True)
    values_P = torch.empty(len(row_P), device=keep_PU.device)
    start = 0
    while start < len(order_P):
        longest = max(1, int(lengths_P[order_P[start]]))
        part_P = order_P[start : start + max(1, token_budget // longest)]
        rows_P = row_P[part_P]
        copies = {name: value[rows_P] for name, value in batch.items()}
        if operator != "delete":  # no copy here is longer than the first
            copies = {name: value[:, :longest] if value.dim() == 2 else value for name, value in copies.items()}
        copies = perturb(copies, keep_PU[part_P], operator, tokenizer)
        values_P[part_P] = log_odds(observe(model, copies).logits_BC.float(), target_B[rows_P])
        start += len(part_P)
    return values_P


@dataclass(frozen=True, kw_only=True)
class Occlusion(Explainer):
    """Leave one out: s_u = f(x) - f(x without u). One forward pass per unit, and one."""

    name: ClassVar[str] = "occlusion"
    family: ClassVar[Family] = "perturbation"
    passes: ClassVar[str] = "(U + 1) F"
    source: ClassVar[str] = "Li et al. 2016, arXiv:1612.08220"

    operator: Operator = "mask"
    """What takes a unit away: "mask" (mask token), "delete", or "attention" (attention mask 0)."""

    def score(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        batch: Batch,
        target_B: Tensor | None,
        seeds: Sequence[int],
        token_budget: int = TOKEN_BUDGET,
    ) -> UnitScores:
        with torch.inference_mode():
            logits_BC = observe(model, batch).logits_BC
            target_B = predicted(logits_BC, target_B)
            visible_BU = visible_units(batch["unit_ids"], width(batch))
            row_P, unit_P = visible_BU.nonzero(as_tuple=True)
            keep_PU = torch.arange(width(batch), device=unit_P.device) != unit_P[:, None]
            values_P = coalition_values(model, tokenizer, batch, target_B, row_P, keep_PU, self.operator, token_budget)
            scores_BU = torch.zeros(visible_BU.shape, device=row_P.device)
            scores_BU[row_P, unit_P] = log_odds(logits_BC.float(), target_B)[row_P] - values_P
        return UnitScores(
            scores_BU=scores_BU.clone(), visible_BU=visible_BU.clone(), target_B=target_B.clone(), logits_BC=logits_BC.clone()
        )
