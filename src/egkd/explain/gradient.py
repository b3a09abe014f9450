"""Gradient-based explanations, taken at the output of the embedding layer.

Shapes: B batch, T tokens, D width of the embedding output, U units, C classes, P points (S steps on the path of each example).
"""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from numpy.polynomial.legendre import leggauss
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from egkd.explain.base import Explainer, Family, Request, UnitScores, cut_to, predicted
from egkd.models import Seen, log_odds, observe
from egkd.text import SPECIAL, perturb, pool_units

Reduction = Literal["sum", "norm", "l1"]


def unit_scores_of_gradient(
    embeddings_BTD: Tensor | None, gradient_BTD: Tensor, unit_ids_BT: Tensor, n_units: int, reduction: Reduction
) -> Tensor:
    """Scores of units, float32 [B, n_units], from a gradient at the embeddings: differentiable, also twice.

    With a_BTD = embeddings * gradient (the gradient alone where `embeddings_BTD` is None), over all tokens t of a unit
    and all d: "sum" is the sum of a, signed; "norm" is sqrt(sum a²); "l1" is sum |a|. A unit without tokens scores 0
    and passes no gradient back.
    """
    attribution_BTD = gradient_BTD.float() if embeddings_BTD is None else embeddings_BTD.float() * gradient_BTD.float()
    if reduction == "sum":
        return pool_units(attribution_BTD.sum(-1), unit_ids_BT, n_units)
    if reduction == "l1":
        return pool_units(attribution_BTD.abs().sum(-1), unit_ids_BT, n_units)
    squares_BU = pool_units(attribution_BTD.square().sum(-1), unit_ids_BT, n_units)
    positive_BU = squares_BU > 0  # the root has no derivative at 0
    return torch.where(positive_BU, squares_BU, 1.0).sqrt() * positive_BU


def gradient_at_embeddings(request: Request) -> tuple[Seen, Tensor, Tensor]:
    """One forward and one backward pass: what was seen, gradient_BTD of the log odds, and the target it belongs to.

    Examples do not interact, so the gradient of the batch's sum holds everyone's own.
    """
    with torch.enable_grad():
        asked_BTD = request.embeddings_BTD
        point_BTD = None if asked_BTD is None else asked_BTD.detach().requires_grad_(True)
        seen = observe(request.model, request.batch, keep=("embeddings",), replace_BTD=point_BTD)
        target_B = predicted(seen.logits_BC, request.target_B)
        assert seen.embeddings_BTD is not None
        (gradient_BTD,) = torch.autograd.grad(log_odds(seen.logits_BC, target_B).sum(), seen.embeddings_BTD)
    return Seen(logits_BC=seen.logits_BC.detach(), embeddings_BTD=seen.embeddings_BTD.detach()), gradient_BTD, target_B


class GradientExplainer(Explainer):
    """An explainer that can also be asked at other embeddings than the text's own, as SmoothGrad does. It draws nothing."""

    family: ClassVar[Family] = "gradient"
    reduction: Reduction

    @property
    def signed(self) -> bool:
        return self.reduction == "sum"


@dataclass(frozen=True, kw_only=True)
class Saliency(GradientExplainer):
    """The size of the gradient: s_u = sum |df/de| or sqrt(sum (df/de)²) over the tokens and dimensions of u.

    Says how fast the output changes with a word, not in which direction the word pushes; *InputXGradient* does.
    """

    name: ClassVar[str] = "saliency"
    passes: ClassVar[str] = "1 F + 1 B"
    source: ClassVar[str] = "Simonyan et al. 2014, arXiv:1312.6034"

    reduction: Literal["norm", "l1"] = "norm"
    """"norm" (L2) or "l1"."""

    def score(self, request: Request) -> UnitScores:
        seen, gradient_BTD, target_B = gradient_at_embeddings(request)
        return _unit_scores(request, None, gradient_BTD, self.reduction, target_B, seen.logits_BC)


@dataclass(frozen=True, kw_only=True)
class InputXGradient(GradientExplainer):
    """Embedding times gradient: s_u = the reduction of e * df/de over the tokens and dimensions of u.

    The first-order estimate of what zeroing a word's embedding would take away; *IntegratedGradients* follows the whole
    path instead of its end.
    """

    name: ClassVar[str] = "input-x-gradient"
    passes: ClassVar[str] = "1 F + 1 B"
    source: ClassVar[str] = "Shrikumar et al. 2016, arXiv:1605.01713"

    reduction: Reduction = "sum"
    """"sum" (signed), "norm" (L2) or "l1"."""

    def score(self, request: Request) -> UnitScores:
        seen, gradient_BTD, target_B = gradient_at_embeddings(request)
        return _unit_scores(request, seen.embeddings_BTD, gradient_BTD, self.reduction, target_B, seen.logits_BC)


@dataclass(frozen=True, kw_only=True)
class IntegratedGradients(GradientExplainer):
    """The gradient averaged on the straight path from a baseline b to the embeddings e, times e - b.

    s_u = reduction over u of (e - b) * sum_k w_k df/de(b + a_k (e - b)). With "sum" the scores add up to f(e) - f(b) but
    for the error of the quadrature, reported as the diagnostic "completeness_gap" = sum_u s_u - (f(e) - f(b)). The path
    moves words only; special tokens keep their embeddings in b, so that they need no share.
    """

    name: ClassVar[str] = "integrated-gradients"
    passes: ClassVar[str] = "(S + 3) F + S B"
    source: ClassVar[str] = "Sundararajan et al. 2017, arXiv:1703.01365, eq. 3"

    steps: int = Field(default=50, gt=0)
    """Points on the path (S)."""
    rule: Literal["gauss-legendre", "riemann"] = "gauss-legendre"
    """Where the points lie: Gauss-Legendre nodes, or the middles of S equal parts."""
    baseline: Literal["mask", "pad", "zero"] = "mask"
    """What words are at the start of the path: mask tokens, padding tokens, or zero vectors."""
    reduction: Reduction = "sum"
    """"sum" (signed, complete), "norm" (L2) or "l1"."""

    def score(self, request: Request) -> UnitScores:
        with torch.no_grad():
            own = observe(request.model, request.batch, keep=("embeddings",), replace_BTD=request.embeddings_BTD)
            target_B = predicted(own.logits_BC, request.target_B)
            assert own.embeddings_BTD is not None
            base_BTD = self._baseline(request, own.embeddings_BTD)
            path_BTD = own.embeddings_BTD - base_BTD
        gradient_BTD = self._mean_gradient(replace(request, target_B=target_B), base_BTD, path_BTD)
        scored = _unit_scores(request, path_BTD, gradient_BTD, self.reduction, target_B, own.logits_BC)
        if self.reduction != "sum":
            return scored
        with torch.no_grad():
            base = observe(request.model, request.batch, replace_BTD=base_BTD)
        rise_B = log_odds(own.logits_BC.float(), target_B) - log_odds(base.logits_BC.float(), target_B)
        return replace(scored, diagnostics={"completeness_gap": scored.scores_BU.sum(1) - rise_B})

    def _baseline(self, request: Request, own_BTD: Tensor) -> Tensor:
        batch, tokenizer = request.batch, request.tokenizer
        word_BT = batch["unit_ids"] != SPECIAL
        if self.baseline == "zero":
            return own_BTD.masked_fill(word_BT[..., None], 0.0)
        if self.baseline == "pad":
            ids_BT = batch["input_ids"].masked_fill(word_BT, tokenizer.pad_token_id or 0)
            place_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
            empty = {"position_ids": place_BT} | batch | {"input_ids": ids_BT}  # RoBERTa would count no padding
        else:
            keep_BU = torch.zeros(len(own_BTD), request.n_units, dtype=torch.bool, device=own_BTD.device)
            if tokenizer.mask_token_id is None:
                raise ValueError(f"{type(tokenizer).__name__} has no mask token; set {self.name}.baseline to zero or pad")
            empty = perturb(batch, keep_BU, "mask", tokenizer)
        seen = observe(request.model, empty, keep=("embeddings",))
        assert seen.embeddings_BTD is not None
        return torch.where(word_BT[..., None], seen.embeddings_BTD, own_BTD)

    def _mean_gradient(self, request: Request, base_BTD: Tensor, path_BTD: Tensor) -> Tensor:
        """The weighted mean of the gradient over the path's points, as many at a time as the budget allows."""
        where_S, weight_S = self._quadrature(base_BTD)
        total_BTD = torch.zeros_like(base_BTD)
        length_B = request.batch["attention_mask"].sum(1)
        points_P = torch.arange(len(base_BTD) * self.steps, device=base_BTD.device)
        for part_P in points_P.split(max(1, request.token_budget // base_BTD.shape[1])):
            row_P, step_P = part_P // self.steps, part_P % self.steps
            longest = int(length_B[row_P].max())
            point_PTD = torch.addcmul(base_BTD[row_P], path_BTD[row_P], where_S[step_P, None, None])[:, :longest]
            copies = request.copies(row_P, embeddings_BTD=point_PTD)
            _, gradient_PTD, _ = gradient_at_embeddings(replace(copies, batch=cut_to(copies.batch, longest)))
            total_BTD[:, :longest].index_add_(0, row_P, gradient_PTD * weight_S[step_P, None, None])
        return total_BTD

    def _quadrature(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes and weights on [0, 1]."""
        if self.rule == "riemann":
            where_S = (torch.arange(self.steps, device=like.device) + 0.5) / self.steps
            return where_S.to(like.dtype), torch.full_like(where_S, 1 / self.steps, dtype=like.dtype)
        nodes, weights = leggauss(self.steps)
        return torch.from_numpy((nodes + 1) / 2).to(like), torch.from_numpy(weights / 2).to(like)


def _unit_scores(
    request: Request,
    embeddings_BTD: Tensor | None,
    gradient_BTD: Tensor,
    reduction: Reduction,
    target_B: Tensor,
    logits_BC: Tensor,
) -> UnitScores:
    unit_ids_BT = request.batch["unit_ids"]
    return UnitScores(
        scores_BU=unit_scores_of_gradient(embeddings_BTD, gradient_BTD, unit_ids_BT, request.n_units, reduction),
        visible_BU=request.visible_BU,
        target_B=target_B,
        logits_BC=logits_BC,
    )
