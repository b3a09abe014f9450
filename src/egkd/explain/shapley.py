"""Shapley values of words, sampled or exact.

Shapes: N players (visible units of one text), P coalitions, O orders of the players.
"""

from math import comb
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from egkd.explain.perturbation import BLOCK, Estimate, PerturbationExplainer, Play
from egkd.text import Operator


@dataclass(frozen=True, kw_only=True)
class ShapleySampling(PerturbationExplainer):
    """The mean of what a word adds when words come in one after another in random order, with its standard error.

    s_u = 1/O sum_o [f(before u in o, and u) - f(before u in o)]; unbiased, and the scores of every order sum to
    f(x) - f(nothing). "antithetic" draws each order together with its reverse, which cancels what pairs of words do
    together: a smaller error at the same cost.
    """

    name: ClassVar[str] = "shapley-sampling"
    draws = samples = True
    passes: ClassVar[str] = "(n_samples (U - 1) + 2) F"
    source: ClassVar[str] = (
        "Castro et al. 2009, doi:10.1016/j.cor.2008.04.004; antithetic: Mitchell et al. 2022, arXiv:2104.12199, sec. 4.1"
    )

    n_samples: int = Field(default=24, gt=1, multiple_of=2)
    """Orders (O), an even number."""
    orders: Literal["antithetic", "independent"] = "antithetic"
    """Whether every second order is the reverse of the one before it."""
    operator: Operator = "mask"
    """What takes a unit away: "mask" (mask token), "delete", "gather" (so too, positions stay), or "attention" (mask of 0)."""

    def play(self, n_players: int, full: float, rng: np.random.Generator) -> Play:
        empty = float((yield np.zeros((1, n_players), dtype=bool))[0])
        draws = self.n_samples // 2 if self.orders == "antithetic" else self.n_samples
        together = max(1, BLOCK // (self.n_samples // draws * max(1, n_players - 1)))
        sum_N, squares_N = np.zeros(n_players), np.zeros(n_players)
        for start in range(0, draws, together):
            count = min(together, draws - start)
            rank_OrN = np.array([rng.permutation(n_players) for _ in range(count)])[:, None]
            if self.orders == "antithetic":
                rank_OrN = np.concatenate([rank_OrN, n_players - 1 - rank_OrN], axis=1)
            prefixes = rank_OrN[:, :, None, :] < np.arange(1, n_players)[:, None]  # by their length, 1 to N - 1
            values_P = yield prefixes.reshape(-1, n_players)
            chain = values_P.reshape(*rank_OrN.shape[:2], n_players - 1)
            gains = np.diff(chain, prepend=empty, append=full)
            added_ON = np.take_along_axis(gains, rank_OrN, axis=2).mean(1)
            sum_N += added_ON.sum(0)
            squares_N += (added_ON**2).sum(0)
        mean_N = sum_N / draws
        variance_N = np.maximum(squares_N / draws - mean_N**2, 0) / max(1, draws - 1)
        return Estimate(scores_N=mean_N, error_N=np.sqrt(variance_N) if draws > 1 else np.full(n_players, np.nan))


@dataclass(frozen=True, kw_only=True)
class ExactShapley(PerturbationExplainer):
    """Shapley values of a short text from all its coalitions: s_u = sum_S |S|! (N - |S| - 1)! / N! [f(S, u) - f(S)]."""

    name: ClassVar[str] = "exact-shapley"
    passes: ClassVar[str] = "2^U F"
    source: ClassVar[str] = "Shapley 1953, doi:10.1515/9781400881970-018"

    max_units: int = Field(default=12, gt=0, le=20)
    """Longer texts are refused."""
    operator: Operator = "mask"
    """What takes a unit away: "mask" (mask token), "delete", "gather" (so too, positions stay), or "attention" (mask of 0)."""

    def check_size(self, n_units: int) -> None:
        """Raises ValueError for a text of too many units."""
        if n_units > self.max_units:
            raise ValueError(
                f"a text has {n_units} words, exact-shapley takes at most {self.max_units}; use shapley-sampling for it"
            )

    def play(self, n_players: int, full: float, rng: np.random.Generator) -> Play:
        self.check_size(n_players)
        values = np.empty(2**n_players)
        values[-1] = full
        for start in range(0, len(values) - 1, BLOCK):
            codes_P = np.arange(start, min(start + BLOCK, len(values) - 1))
            values[codes_P] = yield (codes_P[:, None] >> np.arange(n_players) & 1).astype(bool)
        every = np.arange(2**n_players)
        size = (every[:, None] >> np.arange(n_players) & 1).sum(1)
        weight_of_size = np.array([1 / (n_players * comb(n_players - 1, s)) for s in range(n_players)])
        scores_N = np.empty(n_players)
        for player in range(n_players):
            without = every[(every >> player & 1) == 0]
            gain = values[without | 1 << player] - values[without]
            scores_N[player] = weight_of_size[size[without]] @ gain
        return Estimate(scores_N=scores_N)
