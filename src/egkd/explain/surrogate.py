"""Perturbation-based explanations that fit a linear model around a text: LIME and KernelSHAP.

Shapes: N players (visible units of one text), P coalitions, G groups of samples, M = columns of a regression, its
answers being the last one.
"""

from collections.abc import Callable, Iterator
from itertools import combinations, islice
from math import comb
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from egkd.explain.perturbation import BLOCK, Estimate, Floats, Masks, PerturbationExplainer, Play
from egkd.text import Operator

GROUPS = 10  # of samples, left out one at a time for the standard error


class _Moments:
    """Sums of weight * z z', z = (columns, answer), of a regression's samples: all of them that has to be kept.

    Random samples are kept in groups for the jackknife; pairs of neighbours stay together.
    """

    def __init__(self, n_columns: int) -> None:
        self.fixed_MM = np.zeros((n_columns, n_columns))
        self.random_GMM = np.zeros((GROUPS, n_columns, n_columns))
        self.count_G = np.zeros(GROUPS)

    def add_fixed(self, z_PM: Floats, weight_P: Floats) -> None:
        self.fixed_MM += (z_PM * weight_P[:, None]).T @ z_PM

    def add_random(self, z_PM: Floats, weight_P: Floats) -> None:
        group_P = (int(self.count_G.sum()) + np.arange(len(z_PM))) // 2 % GROUPS
        for group in np.unique(group_P):
            mine_PM = z_PM[group_P == group]
            self.random_GMM[group] += (mine_PM * weight_P[group_P == group, None]).T @ mine_PM
        self.count_G += np.bincount(group_P, minlength=GROUPS)

    @property
    def total_MM(self) -> Floats:
        return self.fixed_MM + self.random_GMM.sum(0)

    def jackknife(self, solve: Callable[[Floats], Floats]) -> Floats:
        """Standard errors of `solve(total)` by leaving out one group of samples at a time, the rest weighing as much.

        0 where nothing was drawn, nan where too little was to tell.
        """
        groups = np.flatnonzero(self.count_G)
        if len(groups) < 2:
            return solve(self.total_MM) * (0.0 if len(groups) == 0 else np.nan)
        total, drawn_MM = self.count_G.sum(), self.random_GMM.sum(0)
        scale_G11 = (total / (total - self.count_G[groups]))[:, None, None]
        without_GN = solve(self.fixed_MM + (drawn_MM - self.random_GMM[groups]) * scale_G11)
        return np.sqrt((len(groups) - 1) * without_GN.var(0))


@dataclass(frozen=True, kw_only=True)
class Lime(PerturbationExplainer):
    """The slopes of a ridge regression of the output on which words are there, near the text.

    min_w sum_z pi(z) (f(z) - w0 - w·z)² + ridge |w|², over the text itself and n_samples - 1 coalitions z that lack a
    uniform number of words, 1 to N, with pi(z) = exp(-d² / (2 kernel_width²)), d = 100 (1 - sqrt(|z| / N)), a hundred
    times the cosine distance: the lime package's text explainer with bow=False and without feature selection, for log odds.
    Numbers of missing words are spread evenly and every order of removal is used from both ends, which makes the error
    smaller. Standard errors by jackknife; the diagnostic "r2" is the weighted share of variance that the linear model
    explains.
    """

    name: ClassVar[str] = "lime"
    draws = samples = True
    passes: ClassVar[str] = "n_samples F"
    source: ClassVar[str] = "Ribeiro et al. 2016, arXiv:1602.04938"

    n_samples: int = Field(default=500, gt=1)
    """Coalitions, the whole text included."""
    kernel_width: float = Field(default=25.0, gt=0)
    """How far from the text a coalition still counts, in hundredths of cosine distance."""
    ridge: float = Field(default=1.0, ge=0)
    """Penalty on the squared slopes; the intercept is free."""
    operator: Operator = "mask"
    """What takes a unit away: "mask" (mask token), "delete", "gather" (so too, positions stay), or "attention" (mask of 0)."""

    def play(self, n_players: int, full: float, rng: np.random.Generator) -> Play:
        moments = _Moments(n_players + 2)
        moments.add_fixed(np.append(np.ones(n_players + 1), full)[None], np.ones(1))
        left = self.n_samples - 1
        while left > 0:
            keep_PN = _short_of_some(rng, min(BLOCK, left), n_players)
            values_P = yield keep_PN
            distance_P = 100 * (1 - np.sqrt(keep_PN.mean(1)))
            weight_P = np.exp(-(distance_P**2) / (2 * self.kernel_width**2))
            moments.add_random(np.column_stack([np.ones(len(keep_PN)), keep_PN, values_P]), weight_P)
            left -= len(keep_PN)
        return Estimate(
            scores_N=self._slopes(moments.total_MM),
            error_N=moments.jackknife(self._slopes),
            diagnostics={"r2": self._r2(moments.total_MM)},
        )

    def _coefficients(self, moments: Floats) -> Floats:
        """Intercept and slopes; leading dimensions are a batch."""
        penalty_M = np.full(moments.shape[-1] - 1, max(self.ridge, 1e-10))
        penalty_M[0] = 0.0
        return np.linalg.solve(moments[..., :-1, :-1] + np.diag(penalty_M), moments[..., :-1, -1:])[..., 0]

    def _slopes(self, moments: Floats) -> Floats:
        return self._coefficients(moments)[..., 1:]

    def _r2(self, moments_MM: Floats) -> float:
        w = np.append(self._coefficients(moments_MM), -1.0)
        spread = moments_MM[-1, -1] - moments_MM[0, -1] ** 2 / moments_MM[0, 0]
        return float(1 - w @ moments_MM @ w / spread) if spread > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class KernelShap(PerturbationExplainer):
    """Shapley values as the weighted regression they solve, on a sample of coalitions.

    min_w sum_z k(z) (f(z) - f(nothing) - w·z)² with sum w = f(x) - f(nothing), k(z) = (N - 1) / (C(N, |z|) |z| (N - |z|)).
    As in the shap package, whole sizes of coalitions are enumerated from the outside in while the samples reach, then
    pairs of a coalition and its complement are drawn from the sizes left, with the weight left. With n_samples >= 2^N - 2
    the values are exact. Standard errors by jackknife over the pairs drawn.

    With fewer samples than words, scores stay near an equal share of the sum; *ShapleySampling* has no such bias.
    """

    name: ClassVar[str] = "kernel-shap"
    draws = samples = True
    passes: ClassVar[str] = "(n_samples + 2) F"
    source: ClassVar[str] = "Lundberg and Lee 2017, arXiv:1705.07874, theorem 2; pairs: Covert and Lee 2021, arXiv:2012.01536"

    n_samples: int = Field(default=500, gt=1)
    """Coalitions, the whole text and the empty one not counted."""
    operator: Operator = "mask"
    """What takes a unit away: "mask" (mask token), "delete", "gather" (so too, positions stay), or "attention" (mask of 0)."""

    def play(self, n_players: int, full: float, rng: np.random.Generator) -> Play:
        empty = float((yield np.zeros((1, n_players), dtype=bool))[0])
        share = (full - empty) / n_players
        moments = _Moments(n_players + 1)
        whole, sizes, left = _plan(n_players, self.n_samples)
        chance_S = 1 / (sizes * (n_players - sizes))  # of a size, up to a factor: k times the number of its coalitions
        for size in whole:
            weight = 1 / (size * (n_players - size) * comb(n_players, size))
            for keep_PN in _all_of_size(n_players, size):
                values_P = yield keep_PN
                moments.add_fixed(_deviations(keep_PN, values_P - empty, share), np.full(len(keep_PN), weight))
        pairs = left // 2 if len(sizes) else 0
        for start in range(0, pairs, BLOCK // 2):
            size_P = rng.choice(sizes, min(BLOCK // 2, pairs - start), p=chance_S / chance_S.sum())
            half_PN = _random_ranks(rng, len(size_P), n_players) < size_P[:, None]
            keep_PN = np.stack([half_PN, ~half_PN], axis=1).reshape(-1, n_players)
            values_P = yield keep_PN
            weight_P = np.full(len(keep_PN), chance_S.sum() / (2 * pairs))
            moments.add_random(_deviations(keep_PN, values_P - empty, share), weight_P)
        return Estimate(
            scores_N=share + _constrained(moments.total_MM),
            error_N=moments.jackknife(_constrained),
        )


def _short_of_some(rng: np.random.Generator, count: int, n_players: int) -> Masks:
    """Coalitions that lack 1 to N players, each number as often, in pairs that lack the two ends of one order."""
    half = (count + 1) // 2
    missing_P = 1 + (np.arange(half) + rng.random()) * n_players // half
    rank_PN = _random_ranks(rng, half, n_players)
    pairs = np.stack([rank_PN, n_players - 1 - rank_PN], axis=1) >= missing_P[:, None, None]
    return pairs.reshape(-1, n_players)[:count]


def _plan(n_players: int, n_samples: int) -> tuple[list[int], Floats, int]:
    """Sizes of coalitions to enumerate, sizes to draw from, and samples left to draw."""
    weight = {size: 1 / (size * (n_players - size)) for size in range(1, n_players)}
    whole: list[int] = []
    left = n_samples
    for size in range(1, n_players // 2 + 1):
        pair = {size, n_players - size}
        count = sum(comb(n_players, each) for each in pair)
        fair = left * sum(weight[each] for each in pair) / sum(weight.values())  # what drawing would spend on them
        if fair < count * (1 - 1e-9) and left < sum(comb(n_players, each) for each in weight):
            break
        whole += sorted(pair)
        left -= count
        for each in pair:
            del weight[each]
    return whole, np.array(list(weight), dtype=float), left


def _all_of_size(n_players: int, size: int) -> Iterator[Masks]:
    chosen = combinations(range(n_players), size)
    while block := list(islice(chosen, BLOCK)):
        keep_PN = np.zeros((len(block), n_players), dtype=bool)
        np.put_along_axis(keep_PN, np.array(block), True, axis=1)
        yield keep_PN


def _deviations(keep_PN: Masks, gain_P: Floats, share: float) -> Floats:
    """The regression's columns and answers, once every player has got an equal share."""
    return np.column_stack([keep_PN, gain_P - share * keep_PN.sum(1)])


def _constrained(moments: Floats) -> Floats:
    """Coefficients that sum to 0; leading dimensions are a batch. The slight ridge decides where samples are too few."""
    xx, xy = moments[..., :-1, :-1], moments[..., :-1, -1:]
    n_players = xx.shape[-1]
    ridge = 1e-10 * np.trace(xx, axis1=-2, axis2=-1)[..., None, None] + 1e-300
    solved = np.linalg.solve(xx + ridge * np.eye(n_players), np.concatenate([xy, np.ones_like(xy)], axis=-1))
    free, ones = solved[..., 0], solved[..., 1]
    return free - ones * (free.sum(-1, keepdims=True) / ones.sum(-1, keepdims=True))


def _random_ranks(rng: np.random.Generator, count: int, n_players: int) -> NDArray[np.int64]:
    """`count` random permutations: the rank of each player."""
    return rng.permuted(np.broadcast_to(np.arange(n_players), (count, n_players)), axis=1)
