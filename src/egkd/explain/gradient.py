"""Gradient-based explanations, taken at the output of the embedding layer.

Shapes: B batch, T tokens, D width of the embedding output, U units, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from egkd.explain.base import TOKEN_BUDGET, Explainer, Family, UnitScores, predicted
from egkd.models import Seen, log_odds, observe
from egkd.text import Batch, pool_units, visible_units, width

Reduction = Literal["sum", "norm", "l1"]


def unit_scores_of_gradient(
    embeddings_BTD: Tensor | None, gradient_BTD: Tensor, unit_ids_BT: Tensor, n_units: int, reduction: Reduction
) -> Tensor:
    """Scores of units, float32 [B, n_units], from a gradient at the embeddings: differentiable, also twice.

    With a_BTD = embeddings * gradient (the gradient alone where `embeddings_BTD` is None), over all tokens t of a unit
    and all d: "sum" is the sum of a, signed; "norm" is sqrt(sum a²); "l1" is sum |a|. A unit without tokens scores 0,
    and passes back no gradient.
    """
    attribution_BTD = gradient_BTD.float() if embeddings_BTD is None else embeddings_BTD.float() * gradient_BTD.float()
    if reduction == "sum":
        return pool_units(attribution_BTD.sum(-1), unit_ids_BT, n_units)
    if reduction == "l1":
        return pool_units(attribution_BTD.abs().sum(-1), unit_ids_BT, n_units)
    squares_BU = pool_units(attribution_BTD.square().sum(-1), unit_ids_BT, n_units)
    positive_BU = squares_BU > 0  # the root has no derivative at 0
    return torch.where(positive_BU, squares_BU, 1.0).sqrt() * positive_BU


def gradient_at_embeddings(
    model: nn.Module, batch: Batch, target_B: Tensor | None, embeddings_BTD: Tensor | None = None
) -> tuple[Seen, Tensor, Tensor]:
    """One forward and one backward pass: what was seen, gradient_BTD of the log odds, and the target it belongs to.

    Examples do not interact, so the gradient of the batch's sum holds everyone's own.
    """
    with torch.inference_mode(False), torch.enable_grad():
        point_BTD = None if embeddings_BTD is None else embeddings_BTD.detach().requires_grad_(True)
        seen = observe(model, batch, embeddings=True, replace_BTD=point_BTD)
        target_B = predicted(seen.logits_BC, target_B)
        assert seen.embeddings_BTD is not None
        (gradient_BTD,) = torch.autograd.grad(log_odds(seen.logits_BC, target_B).sum(), seen.embeddings_BTD)
    return seen, gradient_BTD, target_B


@dataclass(frozen=True, kw_only=True)
class InputXGradient(Explainer):
    """Embedding times gradient: s_u = reduction over u of e * df/de. One forward and one backward pass."""

    name: ClassVar[str] = "input-x-gradient"
    family: ClassVar[Family] = "gradient"
    passes: ClassVar[str] = "1 F + 1 B"
    source: ClassVar[str] = "Shrikumar et al. 2016, arXiv:1605.01713"

    reduction: Reduction = "sum"
    """"sum" (signed), "norm" or "l1"."""

    def score(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        batch: Batch,
        target_B: Tensor | None,
        seeds: Sequence[int],
        token_budget: int = TOKEN_BUDGET,
    ) -> UnitScores:
        seen, gradient_BTD, target_B = gradient_at_embeddings(model, batch, target_B)
        assert seen.embeddings_BTD is not None
        return UnitScores(
            scores_BU=unit_scores_of_gradient(
                seen.embeddings_BTD.detach(), gradient_BTD, batch["unit_ids"], width(batch), self.reduction
            ),
            visible_BU=visible_units(batch["unit_ids"], width(batch)),
            target_B=target_B,
            logits_BC=seen.logits_BC.detach(),
        )
