"""Attention inside both models as objectives: its probabilities, and how queries, keys and values are related.

Shapes: B batch, T tokens (special ones included), D width, H heads of attention or relation heads. Layers count from 1.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig

from egkd.attention import widths_of_projections
from egkd.models import Need, Seen
from egkd.objectives.base import Lesson, Moment, Taught, Teacher, cut_tokens
from egkd.objectives.internals import INSTEAD, Layered, LayerMap, field_of, heads_of, mean_of_real
from egkd.text import Batch

_KINDS = ("queries", "keys", "values")


class AttentionMaps(Layered):
    """Every token attends to the same tokens, layer by layer and head by head: distances between attention probabilities.

        mse:  sum over pairs of layers of the mean over heads and pairs of tokens of (A_S - A_T)²
        kl:   sum over pairs of layers of the mean over heads and tokens i of KL(A_T,i || A_S,i)

    Models of transformers give probabilities, in training after dropout. What dropout took is left out of the comparison, and
    both sides' rows add up to 1 over the rest; without dropout nothing changes.

    Cost: 1 F of the teacher per example, once, and heads x T² numbers per layer on disk; for the student no pass more, but its
    attention is computed step by step, without fused kernels.

    Source: KL is MiniLM's (Wang et al. 2020, arXiv:2002.10957, eq. 4). TinyBERT (Jiao et al. 2020, eq. 7) takes the squared
    error of the scores before the softmax, which models do not show: `mse` here is of probabilities, and not its loss.
    Relations: `Relations` needs neither equally many heads nor slow kernels.
    """

    name: ClassVar[str] = "attention-maps"
    needs: ClassVar[tuple[Need, ...]] = ("attentions",)
    same_tokens: ClassVar[bool] = True
    taught_settings: ClassVar[tuple[str, ...]] = ("heads",)

    weight: float = Field(default=1.0, ge=0)
    """Factor of this objective's loss in the sum."""
    distance: Literal["mse", "kl"] = "mse"
    """Between rows of probabilities."""
    heads: Literal["each", "mean"] = "each"
    """Whether head is compared with head, or the means over heads, of which models may have different numbers."""

    def check(self, teacher: PreTrainedConfig, student: PreTrainedConfig) -> None:
        """Refuse models without attention, and heads that cannot be paired."""
        counts = [_checked_heads(self.name, config) for config in (teacher, student)]
        if self.heads == "each" and counts[0] != counts[1]:
            raise ValueError(
                f"attention-maps compares head by head, the teacher has {counts[0]} and the student {counts[1]}; "
                "set heads to 'mean', or use relations"
            )

    def teach(self, teacher: Teacher, batch: Batch, seen: Seen) -> Taught:
        """The probabilities [H, T, T] of the layers that somebody learns from."""
        assert seen.attentions is not None
        lengths = batch["attention_mask"].sum(1).tolist()
        return {
            field_of(layer): [
                row[:, :n, :n].cpu() for row, n in zip(self._maps(seen.attentions[layer - 1]), lengths, strict=True)
            ]
            for layer in set(self.pairs.values())
        }

    def learn(self, seen: Seen, copies: list[Seen], batch: Batch, lesson: Lesson, moment: Moment) -> Tensor:
        """The loss of the class docstring."""
        assert seen.attentions is not None
        mask_BT = batch["attention_mask"].bool()
        real_B1TT = (mask_BT[:, :, None] & mask_BT[:, None, :])[:, None]
        losses = []
        for own, theirs in self.pairs.items():
            own_BHTT, taught_BHTT = self._maps(seen.attentions[own - 1]).float(), lesson[field_of(theirs)]
            kept_BHTT = (own_BHTT > 0) & real_B1TT
            own_BHTT, taught_BHTT = (_rows_of_one(maps_BHTT * kept_BHTT) for maps_BHTT in (own_BHTT, taught_BHTT))
            if self.distance == "mse":
                of_rows_BHT = (own_BHTT - taught_BHTT).square().sum(3) / mask_BT.sum(1)[:, None, None]
            else:
                logs_BHTT = own_BHTT.masked_fill(~kept_BHTT, 1.0).log()
                of_rows_BHT = (torch.xlogy(taught_BHTT, taught_BHTT) - taught_BHTT * logs_BHTT).sum(3)
            losses.append(mean_of_real(of_rows_BHT.mean(1), mask_BT))
        return torch.stack(losses).sum(0)

    def _maps(self, attention_BHTT: Tensor) -> Tensor:
        return attention_BHTT if self.heads == "each" else attention_BHTT.mean(1, keepdim=True)


def _rows_of_one(values_BHTT: Tensor) -> Tensor:
    return values_BHTT / values_BHTT.sum(3, keepdim=True).clamp(min=1e-9)


def _checked_heads(name: str, config: PreTrainedConfig) -> int:
    heads = heads_of(config)
    if heads is None:
        raise ValueError(f"{name} compares attention, {config.model_type} has none; {INSTEAD}")
    return heads


class Relations(Layered):
    """MiniLMv2's: tokens are related as in the teacher, among queries, among keys and among values.

    With Q of a layer split anew into r relation heads of width d:

        R = softmax(Q Q' / sqrt(d)), and so for keys and values
        loss = sum over the three of the mean over relation heads and tokens i of KL(R_T,i || R_S,i)

    Widths and numbers of heads may differ. Cost: 1 F of the teacher per example, once, and 3 D numbers per token and layer on
    disk; for the student no pass more.

    Source: Wang et al. 2021, arXiv:2012.15828, eqs. 2 to 5; `layers` names the teacher's layer that they choose (the last of
    12, the 21st of 24). Theirs is general distillation before fine-tuning, ours beside the task.
    Relations: `HiddenStates` compares the states themselves.
    """

    name: ClassVar[str] = "relations"
    needs: ClassVar[tuple[Need, ...]] = ("projections",)
    same_tokens: ClassVar[bool] = True

    weight: float = Field(default=1.0, ge=0)
    """Factor of this objective's loss in the sum."""
    layers: LayerMap = "final"
    """Which layer learns from which."""
    relation_heads: int = Field(default=8, ge=1)
    """r, which has to divide both widths. The authors take 48 for a width of 768."""

    def check(self, teacher: PreTrainedConfig, student: PreTrainedConfig) -> None:
        """Refuse models without queries, keys and values of their own, and heads that do not divide them."""
        for role, config in (("teacher", teacher), ("student", student)):
            _checked_heads(self.name, config)
            widths = widths_of_projections(config)
            if widths is not None and not widths:
                raise ValueError(
                    f"relations compares queries, keys and values, {config.model_type} does not make them by layers of their "
                    "own; use hidden-states or attention-maps"
                )
            for width in sorted(widths or ()):
                _check_divides(self.relation_heads, width, role)

    def teach(self, teacher: Teacher, batch: Batch, seen: Seen) -> Taught:
        """Queries, keys and values [T, D] of the layers that somebody learns from."""
        assert seen.projections is not None
        taught: Taught = {}
        for layer in set(self.pairs.values()):
            for kind, values_BTD in zip(_KINDS, seen.projections[layer - 1], strict=True):
                taught[f"{field_of(layer)}-{kind}"] = cut_tokens(values_BTD, batch)
        return taught

    def learn(self, seen: Seen, copies: list[Seen], batch: Batch, lesson: Lesson, moment: Moment) -> Tensor:
        """The loss of the class docstring, summed over pairs of layers."""
        assert seen.projections is not None
        mask_BT, losses = batch["attention_mask"].bool(), []
        for own, theirs in self.pairs.items():
            for kind, own_BTD in zip(_KINDS, seen.projections[own - 1], strict=True):
                logs_BHTT = self._logs(own_BTD.float(), mask_BT, "student")
                taught_BHTT = self._logs(lesson[f"{field_of(theirs)}-{kind}"], mask_BT, "teacher")
                of_rows_BHT = F.kl_div(logs_BHTT, taught_BHTT, reduction="none", log_target=True).sum(3)
                losses.append(mean_of_real(of_rows_BHT.mean(1), mask_BT))
        return torch.stack(losses).sum(0)

    def _logs(self, values_BTD: Tensor, mask_BT: Tensor, role: str) -> Tensor:
        """log R over visible tokens, [B, r, T, T]."""
        _check_divides(self.relation_heads, values_BTD.shape[2], role)
        split_BHTD = values_BTD.unflatten(2, (self.relation_heads, -1)).transpose(1, 2)
        scores_BHTT = split_BHTD @ split_BHTD.mT / split_BHTD.shape[3] ** 0.5
        return scores_BHTT.masked_fill(~mask_BT[:, None, None, :], -1e4).log_softmax(3)


def _check_divides(heads: int, width: int, role: str) -> None:
    if width % heads:
        raise ValueError(
            f"relations splits {heads} relation heads evenly, the {role}'s width is {width}; set relation_heads to a divisor"
        )
