"""How large lessons will be, from a few of them.

Shapes: B examples taught, D dimensions of a cell, N examples of a part of the data set.
"""

from collections.abc import Mapping

import numpy as np
from datasets import Dataset

from egkd.lessons.columns import Cells

_OFFSET = 4  # bytes in which Arrow keeps where a list ends


def estimate_bytes(taught: Mapping[str, Cells], n_units_B: np.ndarray, lengths_B: np.ndarray, dataset: Dataset) -> float:
    """Bytes on disk of the lessons of a whole data set; exact where every dimension of a cell is constant, or the example's
    number of units or of tokens."""
    total = 0.0
    columns = dataset.select_columns(["n_units", "length"]).with_format("numpy")
    for part in columns.iter(batch_size=100_000):
        ways = (part["n_units"].clip(min=1), part["length"])
        for cells in taught.values():
            counts_N = np.ones(len(ways[0]))
            for sizes_B in cells.sizes_ND.T:
                total += _OFFSET * counts_N.sum()
                counts_N = counts_N * _sizes(sizes_B, (n_units_B.clip(min=1), lengths_B), ways)
            total += counts_N.sum() * (1 / 8 if cells.values_V.dtype == np.bool_ else cells.values_V.itemsize)
    return total


def _sizes(sizes_B: np.ndarray, known: tuple[np.ndarray, ...], ways: tuple[np.ndarray, ...]) -> np.ndarray | float:
    """One dimension of the cells of other examples: what it is equal to in those we know, or their mean."""
    for known_B, way_N in zip(known, ways, strict=True):
        if np.array_equal(sizes_B, known_B):
            return way_N
    return float(sizes_B.mean())


def readable(size: float) -> str:
    """A size for people."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if size >= 10 or unit == "bytes" else f"{size:.1f} {unit}"
