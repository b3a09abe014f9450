"""One ranking of the units of one example: the rationales that follow from it, and what their removal says.

Shapes: N players (the visible units of one example), K sizes of a rationale, P coalitions, S sets of players.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from egkd.explain.perturbation import Floats, Masks

MIN_UNITS = 3  # of fewer units an order says nothing
BINS = (1, 5, 10, 20, 50)  # per cent of the units in a rationale, rounded up: ERASER's for AOPC
FERRET_BINS = range(10, 101, 10)  # ferret's, rounded down, empty ones left out


def best_first(scores_N: Floats, tie_N: NDArray[Any] | None = None) -> NDArray[np.int64]:
    """Players from the highest score down, those without one (NaN) last; equal ones by `tie_N`, or else by position."""
    return np.lexsort((np.arange(len(scores_N)) if tie_N is None else tie_N, -scores_N))


def shuffled(values_N: NDArray[Any], where_N: Masks, rng: np.random.Generator) -> NDArray[Any]:
    """The values in random order among the places `where_N`; all others stay."""
    result_N = values_N.copy()
    result_N[where_N] = rng.permutation(values_N[where_N])
    return result_N


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Scores of the players of one example, NaN where they have none, and the rationales that follow from them."""

    scores_N: Floats
    tie_N: NDArray[Any] | None = None
    """Of equal scores the one with the smaller tie comes first; by default that on the left."""

    @cached_property
    def n_scored(self) -> int:
        return int((~np.isnan(self.scores_N)).sum())

    @cached_property
    def rank_N(self) -> NDArray[np.int64]:
        rank_N = np.empty(len(self.scores_N), dtype=np.int64)
        rank_N[best_first(self.scores_N, self.tie_N)] = np.arange(len(self.scores_N))
        return rank_N

    @cached_property
    def sizes(self) -> list[int]:
        return [-(-self.n_scored * percent // 100) for percent in BINS]

    @cached_property
    def ferret_sizes(self) -> list[int]:
        positive = int((self.scores_N > 0).sum())
        steps = (self.n_scored * percent // 100 for percent in FERRET_BINS)
        return sorted({min(k, positive) for k in steps if k > 0})

    def without(self, sizes_K: Sequence[int]) -> Masks:
        """The coalitions that are left without the k best players."""
        return self.rank_N >= np.asarray(sizes_K)[:, None]

    def asked(self) -> Masks:
        """The coalitions `removal` is told the values of: without the 1..n best, then those of `sizes` alone."""
        return np.concatenate([self.without(range(1, self.n_scored + 1)), ~self.without(self.sizes)])

    def asked_by_ferret(self) -> Masks:
        """The coalitions `removal` is told the values of, by deletion: without those of `ferret_sizes`, and those alone."""
        gone = self.without(self.ferret_sizes)
        return np.concatenate([gone, ~gone])

    def removal(self, full: float, values_P: Floats, ferret_P: Floats) -> dict[str, float]:
        """The measures of taking away the best players and of leaving only them."""
        drop_K = np.concatenate([[0.0], full - values_P[: self.n_scored]])
        comprehensiveness, sufficiency = drop_K[self.sizes], full - values_P[self.n_scored :]
        ferret = full - ferret_P.reshape(2, -1).mean(1)
        return {
            "comprehensiveness": float(comprehensiveness.mean()),
            "sufficiency": float(sufficiency.mean()),
            **{f"comprehensiveness@{p}%": float(value) for p, value in zip(BINS, comprehensiveness, strict=True)},
            **{f"sufficiency@{p}%": float(value) for p, value in zip(BINS, sufficiency, strict=True)},
            "ferret_comprehensiveness": float(ferret[0]),
            "ferret_sufficiency": float(ferret[1]),
            "area_over_curve": float(drop_K.mean()),
        }

    def tau(self, alone_N: Floats) -> float:
        """Kendall's τ-b with what leaving each player out changes."""
        scored = ~np.isnan(self.scores_N)
        if scored.sum() < MIN_UNITS or np.ptp(self.scores_N[scored]) == 0 or np.ptp(alone_N[scored]) == 0:
            return math.nan
        return float(kendalltau(self.scores_N[scored], alone_N[scored]).statistic)

    def infidelity(self, gone_SN: Masks, change_S: Floats) -> dict[str, float]:
        """How badly sums of scores foretell what taking sets of players away changes."""
        told_S = gone_SN @ np.nan_to_num(self.scores_N)
        size = float(told_S @ told_S)
        factor = float(told_S @ change_S) / size if size > 0 else 0.0
        return {
            "infidelity": float(np.mean((told_S - change_S) ** 2)),
            "infidelity_scaled": float(np.mean((factor * told_S - change_S) ** 2)),
        }
