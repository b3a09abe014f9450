"""Soft masking: words that are there by degrees, between their own embeddings and those of mask tokens.

Shapes: B batch, T tokens, D width of the embedding output, U units, C classes (1 for regression).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from egkd.explain.base import take
from egkd.models import embedding_layer, frozen, model_inputs, observe, unwrapped
from egkd.text import SPECIAL, Batch, perturb, width


@dataclass(frozen=True, kw_only=True)
class SoftMask:
    """A batch whose units can be kept by degrees.

    With keep_BU the embedding of each token of unit u is keep_u * own + (1 - keep_u) * empty; special tokens keep their own.
    `empty` is the embedding output where every word is a mask token, so that a mask of zeros and ones gives exactly what
    `text.perturb` with "mask" gives. Without a mask token, `empty` is zero.
    """

    model: nn.Module
    batch: Batch
    own_BTD: Tensor
    empty_BTD: Tensor

    def logits(self, keep_BU: Tensor) -> Tensor:
        """What the model says, float [B, C], differentiable with respect to `keep_BU` (float or bool)."""
        unit_ids_BT = self.batch["unit_ids"]
        keep_BT = keep_BU.to(self.own_BTD).gather(1, unit_ids_BT.clamp(min=0)).masked_fill(unit_ids_BT == SPECIAL, 1.0)
        mixed_BTD = keep_BT[..., None] * self.own_BTD + (1 - keep_BT[..., None]) * self.empty_BTD
        return observe(self.model, self.batch, replace_BTD=mixed_BTD).logits_BC.float()

    def taken(self, row_P: Tensor) -> "SoftMask":
        """The rows `row_P`, in that order."""
        return SoftMask(
            model=self.model, batch=take(self.batch, row_P), own_BTD=self.own_BTD[row_P], empty_BTD=self.empty_BTD[row_P]
        )


def soft_mask(model: nn.Module, tokenizer: PreTrainedTokenizerBase, batch: Batch, own_BTD: Tensor | None = None) -> SoftMask:
    """Make ready to mask `batch` softly, at the cost of running the embedding layer (twice without `own_BTD`)."""
    own_BTD = embed(model, batch) if own_BTD is None else own_BTD
    if tokenizer.mask_token_id is None:
        word_BT1 = (batch["unit_ids"] != SPECIAL)[..., None]
        return SoftMask(model=model, batch=batch, own_BTD=own_BTD, empty_BTD=own_BTD.masked_fill(word_BT1, 0.0))
    nothing_BU = torch.zeros(len(own_BTD), width(batch), dtype=torch.bool, device=own_BTD.device)
    empty_BTD = embed(model, perturb(batch, nothing_BU, "mask", tokenizer))
    return SoftMask(model=model, batch=batch, own_BTD=own_BTD, empty_BTD=empty_BTD)


class _Enough(Exception):
    """Raised out of a forward pass once the embeddings are there."""


def embed(model: nn.Module, batch: Batch) -> Tensor:
    """The output of the embedding layer, float [B, T, D], without a graph and without running the rest of the model."""
    seen: list[Tensor] = []

    def stop(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        seen.append(output.detach())
        raise _Enough

    handle = embedding_layer(unwrapped(model)).register_forward_hook(stop)
    try:
        with frozen(model), torch.no_grad():
            model(**model_inputs(model, batch))
    except _Enough:
        pass
    finally:
        handle.remove()
    return seen[0]


def divergence(full_BC: Tensor, part_BC: Tensor) -> Tensor:
    """KL(full || part) of the predictions in nats, float [B]; squared error of the outputs in regression (C = 1)."""
    if full_BC.shape[1] == 1:
        return (full_BC - part_BC)[:, 0].square()
    log_full_BC, log_part_BC = full_BC.log_softmax(1), part_BC.log_softmax(1)
    return F.kl_div(log_part_BC, log_full_BC, reduction="none", log_target=True).sum(1)
