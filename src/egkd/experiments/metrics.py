"""The tasks' own metrics on thousands of resamples at once.

All but Spearman's correlation are functions of sums over examples, so that a resample is a matrix product with the counts of a
bootstrap sample. Tests hold each to scikit-learn's and scipy's on the resampled rows.

Shapes: R resamples (B of them in memory at once), N examples, M columns (one is a run's answers), C classes, K sums.
"""

from collections.abc import Callable, Iterator

import numpy as np
from scipy.stats import rankdata

_AT_ONCE = 2**22  # numbers of a block of resamples: 16 MB


def bootstrap(metric: str, labels_N: np.ndarray, predictions_NM: np.ndarray, resamples: int, seed: list[int]) -> np.ndarray:
    """`metric` [R, M] on `resamples` draws of N examples with replacement, the same draws for every column.

    Cost: a product of [R, N] by [N, M * K]; for Spearman's correlation, new ranks in every resample of every column.
    """
    moments, value = _SUMS[metric]
    moments_KNM = moments(labels_N, predictions_NM)
    parts = []
    for weights_BN in _counts(len(labels_N), resamples, seed):
        if metric == "spearmanr":
            parts.append(_weighted_spearman(weights_BN, labels_N, predictions_NM))
        else:
            parts.append(value(_sums(weights_BN, moments_KNM)))
    return np.concatenate(parts)


def measured(metric: str, labels_N: np.ndarray, predictions_NM: np.ndarray) -> np.ndarray:
    """`metric` [M] on the examples as they are."""
    moments, value = _SUMS[metric]
    return value(moments(_ready(metric, labels_N), _ready(metric, predictions_NM)).sum(1)[:, None])[0]


def _ready(metric: str, values: np.ndarray) -> np.ndarray:
    return rankdata(values, axis=0) if metric == "spearmanr" else values


def _counts(examples: int, resamples: int, seed: list[int]) -> Iterator[np.ndarray]:
    """How often each example is in each bootstrap sample, [B, N] block by block."""
    generator = np.random.default_rng(seed)
    for size in _blocks(examples, resamples):
        drawn_BN = generator.integers(examples, size=(size, examples)) + examples * np.arange(size)[:, None]
        yield np.bincount(drawn_BN.ravel(), minlength=size * examples).reshape(size, examples).astype(np.float32)


def _blocks(examples: int, resamples: int) -> list[int]:
    size = max(1, _AT_ONCE // examples)
    return [min(size, resamples - start) for start in range(0, resamples, size)]


def _sums(weights_BN: np.ndarray, moments_KNM: np.ndarray) -> np.ndarray:
    """Weighted sums over examples, [K, B, M]."""
    return np.tensordot(weights_BN, moments_KNM, axes=(1, 1)).swapaxes(0, 1)


def _class_moments(labels_N: np.ndarray, predictions_NM: np.ndarray) -> np.ndarray:
    """Right answers, answers and labels of each class: [3 * C, N, M]."""
    classes_C11 = np.arange(max(2, int(labels_N.max()) + 1, int(predictions_NM.max()) + 1))[:, None, None]
    answered_CNM = predictions_NM == classes_C11
    labelled_CNM = np.broadcast_to(labels_N[:, None] == classes_C11, answered_CNM.shape)
    return np.concatenate([answered_CNM & labelled_CNM, answered_CNM, labelled_CNM]).astype(np.float32)


def _of_classes(value: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A metric of the sums of `_class_moments`, from one of right answers, answers and labels [C, R, M]."""

    def compute(sums_KRM: np.ndarray) -> np.ndarray:
        right_CRM, answered_CRM, labelled_CRM = np.split(sums_KRM.astype(float), 3)
        return value(right_CRM, answered_CRM, labelled_CRM)

    return compute


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Quotient, 0 where there is nothing to divide by."""
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below > 0)


def _accuracy(right_CRM: np.ndarray, answered_CRM: np.ndarray, labelled_CRM: np.ndarray) -> np.ndarray:
    return right_CRM.sum(0) / labelled_CRM.sum(0)


def _f1(right_CRM: np.ndarray, answered_CRM: np.ndarray, labelled_CRM: np.ndarray) -> np.ndarray:
    return _ratio(2 * right_CRM[1], answered_CRM[1] + labelled_CRM[1])


def _f1_macro(right_CRM: np.ndarray, answered_CRM: np.ndarray, labelled_CRM: np.ndarray) -> np.ndarray:
    both_CRM = answered_CRM + labelled_CRM
    return _ratio(_ratio(2 * right_CRM, both_CRM).sum(0), (both_CRM > 0).sum(0))


def _matthews(right_CRM: np.ndarray, answered_CRM: np.ndarray, labelled_CRM: np.ndarray) -> np.ndarray:
    """R_K of Gorodkin (2004), for two classes Matthews' correlation."""
    right_RM, all_RM = right_CRM.sum(0), labelled_CRM.sum(0)
    covariance = right_RM * all_RM - (answered_CRM * labelled_CRM).sum(0)
    variances = (all_RM**2 - (answered_CRM**2).sum(0)) * (all_RM**2 - (labelled_CRM**2).sum(0))
    return _ratio(covariance, np.sqrt(variances))


def _standardised(values_NX: np.ndarray) -> np.ndarray:
    spread = values_NX.std(axis=0)
    return (values_NX - values_NX.mean(axis=0)) / np.where(spread > 0, spread, 1)


def _number_moments(labels_N: np.ndarray, predictions_NM: np.ndarray) -> np.ndarray:
    """1, x, y, x², y², xy of the standardised numbers: [6, N, M], in double precision: they are subtracted from each other."""
    x_NM = _standardised(predictions_NM)
    y_NM = np.broadcast_to(_standardised(labels_N)[:, None], x_NM.shape)
    return np.stack([np.ones_like(x_NM), x_NM, y_NM, x_NM**2, y_NM**2, x_NM * y_NM])


def _correlation(sums_KRM: np.ndarray) -> np.ndarray:
    n, x, y, xx, yy, xy = sums_KRM
    variances = (n * xx - x**2) * (n * yy - y**2)
    enough = np.where(variances > 1e-9 * n**4, variances, 0)  # the numbers are standardised: less is rounding
    return _ratio(n * xy - x * y, np.sqrt(enough))


def _weighted_spearman(weights_BN: np.ndarray, labels_N: np.ndarray, predictions_NM: np.ndarray) -> np.ndarray:
    """Spearman's correlation [B, M] of samples in which example n stands `weights_BN` times."""
    weights_NB = np.ascontiguousarray(weights_BN.T)  # so that examples are picked as whole rows
    middle = np.float32((len(labels_N) + 1) / 2)  # the mean of ranks, ties or not
    labels_NB = _weighted_ranks(weights_NB, labels_N) - middle
    weighted_NB = weights_NB * labels_NB
    labels_B = np.einsum("nb,nb->b", weighted_NB, labels_NB)
    columns = []
    for predictions_N in predictions_NM.T:
        ranks_NB = _weighted_ranks(weights_NB, predictions_N) - middle
        own_B = np.einsum("nb,nb,nb->b", weights_NB, ranks_NB, ranks_NB)
        columns.append(_ratio(np.einsum("nb,nb->b", weighted_NB, ranks_NB), np.sqrt(labels_B * own_B)))
    return np.stack(columns, axis=1)


def _weighted_ranks(weights_NB: np.ndarray, values_N: np.ndarray) -> np.ndarray:
    """Ranks [N, B], ties at their mean, of samples in which example n stands `weights_NB` times."""
    _, place_N, count_G = np.unique(values_N, return_inverse=True, return_counts=True)
    weights_GB = weights_NB[np.argsort(place_N, kind="stable")]
    if len(count_G) < len(values_N):
        weights_GB = np.add.reduceat(weights_GB, np.cumsum(count_G) - count_G, axis=0)
    ranks_GB = np.cumsum(weights_GB, axis=0) - (weights_GB - 1) / 2
    return ranks_GB[place_N]


_SUMS: dict[str, tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "accuracy": (_class_moments, _of_classes(_accuracy)),
    "f1": (_class_moments, _of_classes(_f1)),
    "f1_macro": (_class_moments, _of_classes(_f1_macro)),
    "matthews_correlation": (_class_moments, _of_classes(_matthews)),
    "pearson": (_number_moments, _correlation),
    "spearmanr": (_number_moments, _correlation),
}
