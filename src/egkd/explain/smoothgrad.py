"""Gradient-based explanations, smoothed over noise.

Shapes: B batch, T tokens, D width of the embedding output, U units, C classes, N noisy copies, P copies in one pass.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field, InstanceOf
from pydantic.dataclasses import dataclass
from torch import Tensor

from egkd.explain.base import Explainer, Family, Request, UnitScores, predicted
from egkd.explain.gradient import GradientExplainer, InputXGradient
from egkd.models import observe
from egkd.text import Batch


@dataclass(frozen=True, kw_only=True)
class SmoothGrad(Explainer):
    """The mean of another gradient method's scores over noisy copies of the embeddings, with its standard error.

    s = 1/N sum_n inner(e + noise_n), noise_n ~ Normal(0, (noise * std(e))²), std over the example's own embeddings (the
    paper scales by max - min, which a few outlying dimensions of layer-normalised embeddings would rule).
    """

    name: ClassVar[str] = "smoothgrad"
    draws = samples = True
    family: ClassVar[Family] = "gradient"
    passes: ClassVar[str] = "N times the inner method, + 1 F"
    source: ClassVar[str] = "Smilkov et al. 2017, arXiv:1706.03825"

    inner: InstanceOf[GradientExplainer] = InputXGradient()
    """The method to be smoothed, with its own settings."""
    n_samples: int = Field(default=25, gt=1)
    """Noisy copies (N)."""
    noise: float = Field(default=0.15, gt=0)
    """Standard deviation of the noise, in standard deviations of the embeddings."""

    @property
    def signed(self) -> bool:
        return self.inner.signed

    def score(self, request: Request) -> UnitScores:
        with torch.no_grad():
            own = observe(request.model, request.batch, keep=("embeddings",))
        target_B, own_BTD = predicted(own.logits_BC, request.target_B), own.embeddings_BTD
        assert own_BTD is not None
        request = replace(request, target_B=target_B)
        drawn = [torch.Generator().manual_seed(seed) for seed in request.seeds]
        rows = torch.arange(len(own_BTD), device=own_BTD.device)
        sum_BU = own_BTD.new_zeros(len(own_BTD), request.n_units, dtype=torch.double)
        squares_BU = sum_BU.clone()
        together = max(1, request.token_budget // request.batch["input_ids"].numel())
        for start in range(0, self.n_samples, together):
            copies = min(together, self.n_samples - start)
            noisy = torch.cat([own_BTD + self._noise(own_BTD, request.batch, drawn) for _ in range(copies)])
            part = self.inner.score(request.copies(rows.repeat(copies), embeddings_BTD=noisy))
            scores_NBU = part.scores_BU.double().unflatten(0, (copies, -1))
            sum_BU += scores_NBU.sum(0)
            squares_BU += scores_NBU.square().sum(0)
        mean_BU = sum_BU / self.n_samples
        variance_BU = (squares_BU / self.n_samples - mean_BU.square()).clamp(min=0) / (self.n_samples - 1)
        return UnitScores(
            scores_BU=mean_BU.float(),
            visible_BU=request.visible_BU,
            target_B=target_B,
            logits_BC=own.logits_BC,
            error_BU=variance_BU.sqrt().float(),
        )

    def _noise(self, own_BTD: Tensor, batch: Batch, drawn: Sequence[torch.Generator]) -> Tensor:
        """One draw for every example, over its true length only: padding must not shift what comes next."""
        noise_BTD = torch.zeros(own_BTD.shape)
        for row, (generator, length) in enumerate(zip(drawn, batch["attention_mask"].sum(1).tolist(), strict=True)):
            noise_BTD[row, :length] = torch.randn(length, own_BTD.shape[2], generator=generator)
        real_BT1 = batch["attention_mask"][..., None].bool()
        count_B = real_BT1.sum((1, 2)) * own_BTD.shape[2]
        mean_B11 = ((own_BTD * real_BT1).sum((1, 2)) / count_B)[:, None, None]
        spread_B = (((own_BTD - mean_B11) * real_BT1).square().sum((1, 2)) / count_B).sqrt()
        return noise_BTD.to(own_BTD) * spread_B[:, None, None] * self.noise
