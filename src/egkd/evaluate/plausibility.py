"""How plausible explanations are to people: do they point at what a person marked?

Shapes: U units of one document, R runs of neighbouring units. The measures are ERASER's (DeYoung et al. 2020,
arXiv:1911.03429, section 4.1), on our units in the place of its tokens: a token is one unit or several.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import auc, average_precision_score, precision_recall_curve

from egkd.evaluate.ranking import best_first, shuffled
from egkd.evaluate.rationales import Rationale
from egkd.evaluate.scores import Estimate, estimate

IOU = 0.5  # of a run of units with a marked passage, from which on they match
Runs = Sequence[tuple[int, int]]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def plausibility(
    scores: Sequence[NDArray[Any]],
    rationales: Sequence[Rationale],
    *,
    selected: Sequence[NDArray[Any]] | None = None,
    share: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare scores (one float [U] per rationale, NaN where a unit was not seen) with what people marked.

    `selected` (bool [U] each) are the units an explainer itself selects. Without it they are those with the highest scores,
    k = ceil(share · U) of them, where `share` is by default the mean share that people mark in these very documents, as in
    ERASER. Units not seen are never selected, and rank last.

    Returns {"mean", "se", "n"} of every measure for `all`, and for the `floor`, where the scores (and the selection) stand in
    random order; `share`; and `unseen`, the share of the marked units that were not seen.

    - token_f1: mean over documents of the F1 of selected and marked units.
    - iou_f1: F1 of mean precision and mean recall of runs of selected units, which count where their intersection with a
      marked passage over their union is 0.5 or more. No mean over documents, so without error. Recall is at most 1, where
      ERASER's own count lets two halves of a passage count twice.
    - auprc: area under precision and recall of the scores, by average precision; auprc_trapezoid: the same by the trapezoid
      rule, as ERASER's table has it, which is too kind to equal scores. Over documents with both marked and unmarked units.

    Raises ValueError for scores or selections that are not of these documents' units, or a share outside 0 to 1.
    """
    marked = [rationale.units() for rationale in rationales]
    ranked = [_ranked(one, human_U, row) for row, (one, human_U) in enumerate(_paired(scores, marked, "scores"))]
    seen = [~np.isnan(np.asarray(one, dtype=float)) for one in scores]
    if share is None:
        share = float(np.mean([human_U.mean() for human_U in marked if human_U.size] or [0.0]))
    if not 0 <= share <= 1:
        raise ValueError(f"found a share of {share}; expected the part of the units to select, from 0 to 1")
    random = np.random.default_rng(seed)
    mixed = [shuffled(one_U, seen_U, random) for one_U, seen_U in zip(ranked, seen, strict=True)]
    if selected is None:
        chosen = [_top(one_U, seen_U, share) for one_U, seen_U in zip(ranked, seen, strict=True)]
        by_chance = [_top(one_U, seen_U, share, random) for one_U, seen_U in zip(mixed, seen, strict=True)]
    else:
        chosen = [
            np.asarray(one, dtype=bool) & seen_U
            for (one, _), seen_U in zip(_paired(selected, marked, "selected units"), seen, strict=True)
        ]
        by_chance = [shuffled(one_U, seen_U, random) for one_U, seen_U in zip(chosen, seen, strict=True)]
    passages = [rationale.unit_runs() for rationale in rationales]
    unseen = [
        float((human_U & ~seen_U).sum() / human_U.sum()) for human_U, seen_U in zip(marked, seen, strict=True) if human_U.any()
    ]
    return {
        "all": _measures(ranked, chosen, marked, passages),
        "floor": _measures(mixed, by_chance, marked, passages),
        "share": share,
        "unseen": estimate(np.array(unseen)).to_dict(),
    }


def token_f1(selected_U: Mask, marked_U: Mask) -> float:
    """F1 of two sets of units; 0 where one of them is empty, 1 where both are."""
    size = int(selected_U.sum() + marked_U.sum())
    return 2 * int((selected_U & marked_U).sum()) / size if size else 1.0


def iou_f1(selected: Sequence[Runs], marked: Sequence[Runs]) -> float:
    """F1 of mean precision (over documents where something is selected) and mean recall (where something is marked).

    A run is right where its intersection over union with some marked passage is at least `IOU`.
    """
    right = [
        sum(any(_iou(run, passage) >= IOU for passage in there) for run in here)
        for here, there in zip(selected, marked, strict=True)
    ]
    precision = [count / len(here) for count, here in zip(right, selected, strict=True) if here]
    recall = [min(1.0, count / len(there)) for count, there in zip(right, marked, strict=True) if there]
    if not precision or not recall:
        return 0.0
    p, r = float(np.mean(precision)), float(np.mean(recall))
    return 2 * p * r / (p + r) if p + r > 0 else 0.0


def runs(selected_U: Mask) -> list[tuple[int, int]]:
    """The runs of neighbouring selected units (first, one past the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], selected_U, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def _iou(one: tuple[int, int], other: tuple[int, int]) -> float:
    both = max(0, min(one[1], other[1]) - max(one[0], other[0]))
    return both / (one[1] - one[0] + other[1] - other[0] - both)


def _trapezoid(marked_U: Mask, scores_U: Floats) -> float:
    precision, recall, _ = precision_recall_curve(marked_U, scores_U)
    return float(auc(recall, precision))


def _measures(
    scores: Sequence[Floats], chosen: Sequence[Mask], marked: Sequence[Mask], passages: Sequence[Runs]
) -> dict[str, dict[str, Any]]:
    def over_both(measure: Callable[[Mask, Floats], float]) -> Estimate:
        values = [
            measure(human_U, one_U) if human_U.any() and not human_U.all() else math.nan
            for human_U, one_U in zip(marked, scores, strict=True)
        ]
        return estimate(np.array(values))

    found = {
        "token_f1": estimate(np.array([token_f1(one_U, human_U) for one_U, human_U in zip(chosen, marked, strict=True)])),
        "iou_f1": Estimate(mean=iou_f1([runs(one_U) for one_U in chosen], passages), se=None, n=len(chosen)),
        "auprc": over_both(lambda human_U, one_U: float(average_precision_score(human_U, one_U))),
        "auprc_trapezoid": over_both(_trapezoid),
    }
    return {name: one.to_dict() for name, one in found.items()}


def _paired(given: Sequence[NDArray[Any]], marked: Sequence[Mask], what: str) -> list[tuple[NDArray[Any], Mask]]:
    if not len(marked) or len(given) != len(marked):
        raise ValueError(f"found {what} of {len(given)} documents and {len(marked)} rationales; expected one for each")
    pairs = [(np.asarray(one), human_U) for one, human_U in zip(given, marked, strict=True)]
    for row, (one, human_U) in enumerate(pairs):
        if one.shape != human_U.shape:
            raise ValueError(f"document {row} has {len(human_U)} units and {what} of shape {one.shape}; expected one per unit")
    return pairs


def _ranked(scores_U: NDArray[Any], marked_U: Mask, row: int) -> Floats:
    """Scores with units that were not seen below all others."""
    own_U = scores_U.astype(float)
    if np.isinf(own_U).any():
        raise ValueError(f"document {row} has an infinite score; give numbers, and NaN where a unit was not seen")
    lowest = np.nanmin(own_U) if not np.isnan(own_U).all() else 0.0
    return np.where(np.isnan(own_U), np.nextafter(lowest, -math.inf), own_U)


def _top(scores_U: Floats, seen_U: Mask, share: float, random: np.random.Generator | None = None) -> Mask:
    """The ceil(share · U) highest units, if so many were seen; equal ones by position, or at random."""
    tie_U = None if random is None else random.permutation(len(scores_U))
    best = best_first(np.where(seen_U, scores_U, math.nan), tie_U)[
        : min(math.ceil(share * len(scores_U) - 1e-9), int(seen_U.sum()))
    ]
    chosen_U = np.zeros(len(scores_U), dtype=bool)
    chosen_U[best] = True
    return chosen_U
