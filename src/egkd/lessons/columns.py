"""Arrow columns as numpy sees them: ragged cells in flat buffers, without a Python object per number.

A cell is a number, a list, or a list of lists of equal length (and so on). Shapes: N cells, B of them in a batch, T the
longest of them, D dimensions of a cell, V numbers in all cells together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

LARGEST = float(np.finfo(np.float16).max)
_PLACES = np.iinfo(np.int32).max  # numbers that a list of Arrow can count; a large list has no end
_EXACT = 2048  # whole numbers up to here are the same in float16


class Column:
    """The cells of an Arrow array, as views of its buffers: nothing is read before it is asked for."""

    def __init__(self, array: pa.Array) -> None:
        """`array` holds numbers, booleans, or (nested) lists of them, and no nulls."""
        self._offsets: list[np.ndarray] = []
        while pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
            self._offsets.append(np.asarray(array.offsets))
            array = array.values
        self._packed = pa.types.is_boolean(array.type)  # Arrow keeps eight booleans in a byte
        self._first = array.offset if self._packed else 0
        if not self._packed:
            self._values = array.to_numpy(zero_copy_only=True)
        else:
            self._values = np.frombuffer(array.buffers()[1] or b"", dtype=np.uint8)

    def cell(self, row: int) -> np.ndarray:
        """The cell of one row, of its true size."""
        start, stop, shape = row, row + 1, []
        for offsets in self._offsets:
            lists = stop - start
            start, stop = offsets.item(start), offsets.item(stop)
            shape.append((stop - start) // lists if lists else 0)
        if not self._packed:
            return self._values[start:stop].reshape(shape)
        start, stop = start + self._first, stop + self._first
        bits = np.unpackbits(self._values[start >> 3 : (stop + 7) >> 3], bitorder="little")
        return bits[start & 7 : (start & 7) + stop - start].view(np.bool_).reshape(shape)

    def padded(self, rows_B: np.ndarray, fill: int) -> np.ndarray:
        """The lists of whole numbers of some rows, padded to the longest: int64 [B, T]; numbers as they are, [B]."""
        if not self._offsets:
            return self._values[rows_B].astype(np.int64)
        offsets = self._offsets[0]
        starts_B1, stops_B1 = offsets[rows_B][:, None], offsets[rows_B + 1][:, None]
        places_BT = starts_B1 + np.arange((stops_B1 - starts_B1).max())
        found_BT = self._values.take(places_BT, mode="clip").astype(np.int64)
        return np.where(places_BT < stops_B1, found_BT, fill)


def stack(values: Sequence[np.ndarray]) -> Tensor:
    """Arrays of equal rank into one tensor, padded with zeros at the end of each dimension: float32 or bool."""
    shapes = {value.shape for value in values}
    dtype = np.bool_ if values[0].dtype == np.bool_ else np.float32
    if len(shapes) == 1:
        return torch.from_numpy(np.array(values, dtype=dtype))
    padded = np.zeros((len(values), *map(max, zip(*shapes, strict=True))), dtype=dtype)
    for row, value in zip(padded, values, strict=True):
        row[tuple(map(slice, value.shape))] = value
    return torch.from_numpy(padded)


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Some cells, one after the other."""

    values_V: np.ndarray
    """Their numbers, float16 or bool."""
    sizes_ND: np.ndarray
    """Their shapes."""

    @classmethod
    def of(cls, cells: Sequence[Any]) -> "Cells":
        """Arrays or tensors of equal rank, as lessons keep them. Raises ValueError, which names the cell by its place, for
        what float16 cannot hold."""
        if isinstance(cells[0], Tensor):
            flat = torch.cat([cell.reshape(-1) for cell in cells]).detach()
            values_V = (flat.float() if flat.is_floating_point() else flat).cpu().numpy()
        else:
            cells = [np.asarray(cell) for cell in cells]
            values_V = np.concatenate([cell.reshape(-1) for cell in cells])
        sizes_ND = np.array([cell.shape for cell in cells], dtype=np.int64).reshape(len(cells), -1)
        return cls(values_V=_half(values_V, sizes_ND), sizes_ND=sizes_ND)

    @classmethod
    def joined(cls, parts: Sequence["Cells"], order_N: np.ndarray) -> "Cells":
        """The cells of all parts, those at the places `order_N`, in that order."""
        cells = [cell_V for part in parts for cell_V in np.split(part.values_V, part.sizes_ND.prod(axis=1).cumsum()[:-1])]
        sizes_ND = np.concatenate([part.sizes_ND for part in parts])
        return cls(values_V=np.concatenate([cells[place] for place in order_N.tolist()]), sizes_ND=sizes_ND[order_N])

    def to_arrow(self) -> pa.Array:
        """An Arrow array of nested lists, one cell a row."""
        array = pa.array(self.values_V)
        for level in reversed(range(self.sizes_ND.shape[1])):
            lists_N = self.sizes_ND[:, :level].prod(axis=1)
            lengths = self.sizes_ND[:, level].repeat(lists_N)
            offsets = np.concatenate([[0], lengths.cumsum()])
            if offsets[-1] <= _PLACES:
                array = pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), array)
            else:
                array = pa.LargeListArray.from_arrays(pa.array(offsets, type=pa.int64()), array)
        return array


def _half(values_V: np.ndarray, sizes_ND: np.ndarray) -> np.ndarray:
    if values_V.dtype == np.bool_:
        return values_V
    with np.errstate(over="ignore"):
        half_V = values_V.astype(np.float16)
    whole = np.issubdtype(values_V.dtype, np.integer)
    wrong_V = (half_V != values_V) if whole else ~np.isfinite(half_V)
    if wrong_V.any():
        first = int(wrong_V.argmax())
        place = int(np.searchsorted(sizes_ND.prod(axis=1).cumsum(), first, side="right"))
        limit = f"whole numbers up to {_EXACT}" if whole else f"finite numbers up to {LARGEST:g}"
        raise UnfitCell(place, f"found {values_V[first]:g}, lessons hold {limit}")
    return half_V


class UnfitCell(ValueError):
    """A number that a lesson cannot hold."""

    def __init__(self, place: int, message: str) -> None:
        """`place` is that of the cell among those given."""
        super().__init__(message)
        self.place = place
