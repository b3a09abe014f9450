"""How far two models' explanations agree, example by example.

Scores are ragged: one array of U units per example, NaN where truncation hid a unit; only units visible in both count.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import rel_entr
from scipy.stats import rankdata

from egkd.evaluate.ranking import MIN_UNITS, best_first, shuffled
from egkd.evaluate.scores import estimate
from egkd.explain.base import Scored

TOP = 0.2  # share of units that "top20" looks at
PERSISTENCE = 0.9  # of rank-biased overlap: the weight of depth d is (1 - p) p^(d - 1)


def _pearson(first_U: np.ndarray, second_U: np.ndarray) -> float:
    first_U, second_U = first_U - first_U.mean(), second_U - second_U.mean()
    return _cosine(first_U, second_U)


def _cosine(first_U: np.ndarray, second_U: np.ndarray) -> float:
    size = float(np.linalg.norm(first_U) * np.linalg.norm(second_U))
    return float(first_U @ second_U) / size if size > 0 else math.nan


def _spearman(first_U: np.ndarray, second_U: np.ndarray) -> float:
    return _pearson(rankdata(first_U), rankdata(second_U))


def _kendall(first_U: np.ndarray, second_U: np.ndarray) -> float:
    """Kendall's tau-b: the cosine of the two lists of signs that say which unit of each pair is ahead."""
    return _cosine(*(np.sign(scores_U[:, None] - scores_U).ravel() for scores_U in (first_U, second_U)))


def _top(first_U: np.ndarray, second_U: np.ndarray) -> float:
    """Share of the k = ceil(TOP n) highest units that both have in common; by chance k / n."""
    k = math.ceil(TOP * len(first_U))
    return len(set(best_first(first_U)[:k]) & set(best_first(second_U)[:k])) / k


def _rank_biased_overlap(first_U: np.ndarray, second_U: np.ndarray) -> float:
    """RBO of two full rankings (Webber et al. 2010, eq. 4), its weights (1 - p) p^(d - 1) rescaled to sum to 1 over the depths
    there are, so that equal rankings score 1; nothing is extrapolated beyond the last unit."""
    # A unit is in both tops of depth d from the depth on at which the later of its two places is reached.
    reached_U = np.maximum(np.argsort(best_first(first_U)), np.argsort(best_first(second_U)))
    depth_U = np.arange(1, len(first_U) + 1)
    overlap_U = np.cumsum(np.bincount(reached_U, minlength=len(first_U))) / depth_U
    weight_U = PERSISTENCE ** (depth_U - 1)
    return float(overlap_U @ weight_U / weight_U.sum())


def _jensen_shannon(first_U: np.ndarray, second_U: np.ndarray) -> float:
    """Jensen-Shannon divergence (base 2, 0 to 1) of the normalised absolute scores; lower is closer."""
    first_U, second_U = np.abs(first_U) / np.abs(first_U).sum(), np.abs(second_U) / np.abs(second_U).sum()
    middle_U = (first_U + second_U) / 2
    bits = (rel_entr(first_U, middle_U) + rel_entr(second_U, middle_U)).sum() / (2 * math.log(2))
    return max(0.0, float(bits))  # rounding may leave equal shares a hair below 0, of which scipy's jensenshannon makes nan


_MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "spearman": _spearman,
    "top20": _top,
    "kendall": _kendall,
    "pearson": _pearson,
    "cosine": _cosine,
    "rank_biased_overlap": _rank_biased_overlap,
    "jensen_shannon": _jensen_shannon,
}


def visible(scored: Sequence[Scored]) -> list[np.ndarray]:
    """Scores with NaN where truncation hid a unit."""
    return [np.where(one.visible_U.numpy(), one.scores_U.numpy(), np.nan) for one in scored]


def per_example(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Every measure for every example, float [N] each.

    NaN where fewer than 3 units are visible in both, or either's scores are constant: there an order says nothing.
    Raises ValueError where the two do not score the same units.
    """
    results = {name: np.full(len(first), math.nan) for name in _MEASURES}
    if len(first) != len(second):
        raise ValueError(f"found {len(first)} and {len(second)} explanations; expected one of each model per example")
    for row, (one, other) in enumerate(zip(first, second, strict=True)):
        if one.shape != other.shape:
            raise ValueError(f"example {row} has {one.size} and {other.size} scores; explanations must be of the same units")
        both = ~(np.isnan(one) | np.isnan(other))
        one_U, other_U = one[both].astype(float), other[both].astype(float)
        if len(one_U) >= MIN_UNITS and np.ptp(one_U) > 0 and np.ptp(other_U) > 0:
            for name, measure in _MEASURES.items():
                results[name][row] = measure(one_U, other_U)
    return results


class Tally:
    """Agreement of explanations that come in parts; keeps a few numbers per example."""

    def __init__(self, seed: int = 0) -> None:
        """`seed` is for the order of the scores of the floor."""
        self._random = np.random.default_rng(seed)
        self._found: dict[str, list[dict[str, np.ndarray]]] = {}

    def add(
        self,
        first: Sequence[np.ndarray],
        second: Sequence[np.ndarray],
        *,
        same_class: np.ndarray | None = None,
        ceiling: tuple[Sequence[np.ndarray], Sequence[np.ndarray]] | None = None,
        ceiling_same_class: np.ndarray | None = None,
    ) -> None:
        """Some more examples, as `agreement` takes them."""
        noise = [shuffled(np.asarray(one, dtype=float), ~np.isnan(one), self._random) for one in second]
        parts = {"all": per_example(first, second), "floor": per_example(first, noise)}
        if same_class is not None:
            parts["same_class"] = {name: value[same_class] for name, value in parts["all"].items()}
        if ceiling is not None:
            parts["ceiling"] = per_example(*ceiling)
            if ceiling_same_class is not None:
                parts["ceiling_same_class"] = {name: value[ceiling_same_class] for name, value in parts["ceiling"].items()}
        for name, part in parts.items():
            self._found.setdefault(name, []).append(part)

    def figures(self) -> dict[str, Any]:
        """What `agreement` returns, of all examples there were."""
        whole = {
            name: {measure: np.concatenate([part[measure] for part in parts]) for measure in _MEASURES}
            for name, parts in self._found.items()
        }
        told: dict[str, Any] = {
            name: {measure: estimate(value).to_dict() for measure, value in values.items()} for name, values in whole.items()
        }
        return told | {"n_skipped": int(np.isnan(whole["all"]["spearman"]).sum())}


def agreement(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    *,
    same_class: np.ndarray | None = None,
    ceiling: tuple[Sequence[np.ndarray], Sequence[np.ndarray]] | None = None,
    ceiling_same_class: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Mean, standard error and n of every measure: over `all` examples, over those of the `same_class` (bool [N], where
    both models predict the same), and the `floor`, with the scores of `second` in random order; `n_skipped` had no order.

    `ceiling` takes two explanations that differ by chance alone (two seeds of one teacher, or of one explainer) and says
    how far these agree: more cannot be asked of a student. `ceiling_same_class` is `same_class` of those two.
    """
    tally = Tally(seed)
    tally.add(first, second, same_class=same_class, ceiling=ceiling, ceiling_same_class=ceiling_same_class)
    return tally.figures()
