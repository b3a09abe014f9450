"""What LIME and KernelSHAP make of outputs on a bank of masks: a matrix, for their scores are linear in the outputs.

Shapes: N visible units of one text, K masks of its bank, M = K + 1 outputs: the text itself, then the bank.
"""

from math import comb
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kernel = Literal["lime", "shapley"]
Sizes = Literal["mixed", "leave-one-out", "uniform", "shapley"]
Floats = NDArray[np.float64]
Masks = NDArray[np.bool_]
LIME_WIDTH = 25.0  # of LIME's kernel, in hundredths of cosine distance: the lime package's
LEAST_RIDGE = 1e-10  # relative to the size of the regression: decides where the masks are too few


def coefficients_of(keep_KN: Masks, kernel: Kernel, sizes: Sizes, ridge: float) -> Floats:
    """A [N, M], such that A v are the explanation's scores, v the outputs on the text itself and on its bank.

    `lime`: slopes of the ridge regression w0 + w·z ≈ v, weighted by exp(-d² / (2 · 25²)), d = 100 (1 - sqrt(|z| / N)), over
    all M; the intercept is free (`explain.Lime`). `shapley`: w·z ≈ v - v(nothing), weighted by Shapley's kernel over the
    chances of `sizes`, with sum w = v(text) - v(nothing) (`explain.KernelShap`); the ridge, against weights of mean 1, draws
    scores to an equal share of that sum. It needs the empty coalition among the masks.
    """
    n_units = keep_KN.shape[1]
    if kernel == "lime":
        z_MN = np.vstack([np.ones(n_units), keep_KN])
        weight_M = np.exp(-((100 * (1 - np.sqrt(z_MN.mean(1)))) ** 2) / (2 * LIME_WIDTH**2))
        x_MX = np.column_stack([np.ones(len(z_MN)), z_MN])
        penalty_X = np.append(0.0, np.full(n_units, max(ridge, LEAST_RIDGE)))
        return np.linalg.solve((x_MX.T * weight_M) @ x_MX + np.diag(penalty_X), x_MX.T * weight_M)[1:]
    size_K = keep_KN.sum(1)
    whole_M, *bank_KM = np.eye(len(keep_KN) + 1)
    nothing_M = np.mean([row_M for row_M, size in zip(bank_KM, size_K, strict=True) if size == 0], axis=0)
    share_M = (whole_M - nothing_M) / n_units
    some_K = size_K > 0
    if not some_K.any():
        return np.tile(share_M, (n_units, 1))
    z_PN, size_P1 = keep_KN[some_K].astype(float), size_K[some_K, None]
    weight_P = shapley_weights(keep_KN[some_K], sizes)
    gain_PM = np.array(bank_KM)[some_K] - nothing_M - size_P1 * share_M
    moments_NN = (z_PN.T * weight_P) @ z_PN
    moments_NN += np.eye(n_units) * max(ridge, LEAST_RIDGE * np.trace(moments_NN))
    free_NM = np.linalg.solve(moments_NN, (z_PN.T * weight_P) @ gain_PM)
    ones_N = np.linalg.solve(moments_NN, np.ones(n_units))
    return share_M + free_NM - np.outer(ones_N / ones_N.sum(), free_NM.sum(0))


def shapley_weights(keep_PN: Masks, sizes: Sizes) -> Floats:
    """What each coalition (neither empty nor whole) weighs in KernelSHAP's regression, of mean 1, [P].

    Shapley's kernel, 1 / (s (N - s)) for all coalitions of size s together, over the chance that a coalition of this size is
    drawn; where every coalition is there, over their number.
    """
    count, n_units = keep_PN.shape
    size_P = keep_PN.sum(1)
    weight_P = 1 / (size_P * (n_units - size_P))
    if count >= 2**n_units - 2:
        _, back_P, count_Q = np.unique(keep_PN, axis=0, return_inverse=True, return_counts=True)
        if len(count_Q) == 2**n_units - 2:
            weight_P = weight_P / np.array([comb(n_units, size) for size in size_P]) / count_Q[back_P.ravel()]
            return weight_P / weight_P.mean()
    last_P = size_P == n_units - 1
    chance_P = {
        "shapley": weight_P,
        "uniform": np.ones(count),
        "leave-one-out": last_P.astype(float),
        "mixed": 0.5 * last_P + 0.5 / (n_units - 1),
    }[sizes]
    return weight_P / chance_P / (weight_P / chance_P).mean()


def all_coalitions(n_units: int, count: int) -> Masks:
    """Every coalition but the empty and the whole one, over and over until there are `count`: bool [count, N]."""
    codes = np.arange(count) % (2**n_units - 2) + 1
    return (codes[:, None] >> np.arange(n_units) & 1).astype(bool)
