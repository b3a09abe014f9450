"""When an objective is paid for: at which steps, and for which examples. The only place that decides.

Shapes: B batch, N examples of the data set.
"""

from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

GOLDEN = 0.6180339887498949  # multiples of it, less their whole part, fill the unit interval evenly


class Schedule(BaseModel):
    """A guide need not be paid for at every step and every example: its gradient keeps its expectation, and costs less."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int = Field(default=1, ge=1)
    """Only at every so many steps, with as many times the weight."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Only for this share of the examples, another one at each epoch; the loss is scaled to keep its expectation."""
    choose: Literal["random", "strong"] = "random"
    """Which share: any, or always the examples where the teacher's explanation is strongest."""
    instead: bool = False
    """Whether its share of a batch is seen perturbed *instead of* as it is: at that step all other objectives learn from the
    other examples alone, whose losses are scaled to keep their expectation. So a guide makes no pass more."""
    start: float = Field(default=0.0, ge=0)
    """Not before: steps, or a share of the training where below 1."""
    warmup: float = Field(default=0.0, ge=0)
    """From then on its weight rises linearly: for so many steps, or a share of the training where below 1."""
    stop: float = Field(default=1.0, gt=0)
    """Not from here on: steps where above 1, or a share of the training."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.instead and (self.share == 1 or self.choose == "strong"):
            found = "the same examples always (choose: strong)" if self.choose == "strong" else "whole batches (share: 1)"
            raise ValueError(f"instead would leave nothing of {found} to other objectives; use a random share below 1")
        return self

    def factor(self, step: int, steps: int, phase: int = 0, turns: int = 1) -> float:
        """By what the weight is multiplied at `step` of `steps`; 0 where the objective is not paid for.

        `phase` shifts the steps of `every`, so that two objectives need not take the same ones. Of `turns` objectives, of which
        a step has room for one, it has each `turns`-th step, and of these every so many.
        """
        every = self.every * turns
        start, warmup = (value * steps if value < 1 else value for value in (self.start, self.warmup))
        stop = self.stop * steps if self.stop <= 1 else self.stop
        if not start <= step < stop or (step + phase) % every:
            return 0.0
        return every * min(1.0, (step - start + 1) / (warmup + 1))

    def rows(self, idx_B: Tensor, epoch: int, strong_N: Tensor | None = None) -> Tensor | None:
        """Which examples of a batch it is paid for (their places), None for all of them.

        An example's turn depends on its number in the data set and on the epoch alone, so that neither the size of a
        batch nor the number of processes matters; in 1 / share epochs everybody has had one. `strong_N` says who is
        among the strongest.
        """
        if self.share == 1:
            return None
        if self.choose == "strong":
            assert strong_N is not None
            return strong_N[idx_B.cpu()].nonzero()[:, 0].to(idx_B.device)
        place_B = (idx_B.cpu().double() * GOLDEN + epoch * self.share) % 1.0
        return (place_B < self.share).nonzero()[:, 0].to(idx_B.device)

    def visits(self, idx_B: Tensor, epoch: int) -> Tensor:
        """How many turns each example has had in the epochs before this one, long [B], whoever has one now (see `rows`)."""
        if self.share == 1 or self.choose == "strong":
            return torch.full_like(idx_B, epoch, dtype=torch.long)
        place_B = idx_B.cpu().double() * GOLDEN
        return ((place_B + (epoch - 1) * self.share).floor() - (place_B - self.share).floor()).long().to(idx_B.device)

    def strongest(self, strength_N: Tensor) -> Tensor:
        """Bool [N]: the `share` of the examples whose explanation is strongest."""
        count = max(1, round(self.share * len(strength_N)))
        strong_N = torch.zeros(len(strength_N), dtype=torch.bool)
        strong_N[strength_N.argsort(descending=True, stable=True)[:count]] = True
        return strong_N
