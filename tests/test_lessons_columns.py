"""Ragged cells through Arrow and back: nothing lost, nothing bent in silence."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from egkd.lessons import columns
from egkd.lessons.columns import Cells, Column, UnfitCell, stack
from egkd.lessons.rows import Rows
from egkd.predict import encode_dataset
from egkd.text import collate

NUMBERS = {np.bool_: st.booleans(), np.float16: st.floats(allow_nan=False, allow_infinity=False, width=16)}


@st.composite
def cells_of(draw: Any) -> list[np.ndarray]:
    """Cells of equal rank, 0 to 3, of any sizes; empty ones too, but nothing below an empty list."""
    rank, dtype = draw(st.integers(0, 3)), draw(st.sampled_from(list(NUMBERS)))
    shapes = draw(st.lists(st.tuples(*[st.integers(0, 4)] * rank), min_size=1, max_size=12))
    shapes = [shape if 0 not in shape else (0,) * rank for shape in shapes]
    return [draw(hnp.arrays(dtype, shape, elements=NUMBERS[dtype])) for shape in shapes]


@settings(deadline=None)
@given(cells_of(), st.randoms(use_true_random=False))
def test_cells_come_back_as_they_went(cells: list[np.ndarray], random: Any) -> None:
    order = list(range(len(cells)))
    random.shuffle(order)
    cut = random.randint(0, len(cells) - 1)
    parts = [Cells.of([torch.from_numpy(cell) for cell in part]) for part in (cells[:cut], cells[cut:]) if part]
    array = Cells.joined(parts, np.array(order)).to_arrow()
    column = Column(array)
    assert array.to_pylist() == [cells[place].tolist() for place in order]  # Arrow's own reading
    for row, place in enumerate(order):
        np.testing.assert_array_equal(column.cell(row), cells[place])
        assert column.cell(row).dtype == cells[place].dtype


def test_more_numbers_than_a_list_can_count_are_a_large_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_PLACES", 20)
    cells = [np.arange(6, dtype=np.float16).reshape(2, 3) + place for place in range(5)]
    array = Cells.of(cells).to_arrow()
    assert pa.types.is_list(array.type)  # of ten lists
    assert pa.types.is_large_list(array.values.type)  # of thirty numbers
    for place, cell in enumerate(cells):
        np.testing.assert_array_equal(Column(array).cell(place), cell)


def test_cells_of_several_parts_come_in_the_order_asked_for() -> None:
    cells = [np.full((size, 2), size, dtype=np.float16) for size in (3, 0, 1, 2)]
    joined = Cells.joined([Cells.of(cells[:2]), Cells.of(cells[2:])], np.array([2, 0, 3, 1]))
    column = Column(joined.to_arrow())
    for place, cell in enumerate((cells[2], cells[0], cells[3], cells[1])):
        np.testing.assert_array_equal(column.cell(place).reshape(-1, 2), cell)


def test_a_slice_of_a_column_is_read_from_where_it_begins() -> None:
    flags = [[True, False, True], [], [False, True], [True] * 9, [False]]
    numbers = [[1, 2, 3], [], [4, 5], [6], [7]]
    for start in range(5):
        sliced = Column(pa.array(flags)[start:])
        assert [sliced.cell(row).tolist() for row in range(5 - start)] == flags[start:]
        assert Column(pa.array(numbers)[start:]).cell(4 - start).tolist() == [7]
        bits = Column(pa.array([True, False, True, True, False])[start:])
        assert [bool(bits.cell(row)) for row in range(5 - start)] == [True, False, True, True, False][start:]


def test_stacking_pads_with_zeros() -> None:
    padded = stack([np.ones((1, 3), dtype=np.float16), np.full((2, 1), 2.0)])
    assert padded.dtype == torch.float32
    assert padded.tolist() == [[[1, 1, 1], [0, 0, 0]], [[2, 0, 0], [2, 0, 0]]]
    assert stack([np.array([True]), np.array([], dtype=bool)]).tolist() == [[True], [False]]
    assert stack([np.float16(1.5), np.float16(2)]).tolist() == [1.5, 2]


@pytest.mark.parametrize(
    ("cells", "place", "found"),
    [
        ([[1.0], [2.0, 7e4]], 1, "70000"),
        ([[1.0, -7e4]], 0, "-70000"),
        ([[], [1.0], [float("nan")]], 2, "nan"),
        ([[float("-inf")], [1.0]], 0, "-inf"),
        ([[5], [2049]], 1, "2049"),
    ],
)
def test_what_float16_cannot_hold_is_refused(cells: list[list[float]], place: int, found: str) -> None:
    kinds = torch.long if isinstance(cells[-1][0], int) else torch.float
    with pytest.raises(UnfitCell, match=f"found {found}, lessons hold") as refused:
        Cells.of([torch.tensor(cell, dtype=kinds) for cell in cells])
    assert refused.value.place == place
    assert Cells.of([torch.tensor([65504.0, -65504.0])]).values_V.tolist() == [65504, -65504]


@pytest.mark.parametrize("pairs", [False, True])
def test_batches_are_those_of_collate(tiny_data: Dataset, tokenizer: Any, pairs: bool) -> None:
    rows = tiny_data.remove_columns("label").shuffle(seed=1)  # rows that lie in another order than on disk
    if pairs:
        rows = rows.add_column("text_pair", tiny_data["text"])
    encoded = encode_dataset(rows, tokenizer)
    some = Rows(encoded, range(10, 40), tokenizer.pad_token_id)
    seen = []
    for indices in some.batches(100):
        batch, expected = some.batch(indices), collate([encoded[10 + int(i)] for i in indices], tokenizer.pad_token_id)
        assert batch.keys() == expected.keys()
        for name, values in expected.items():
            assert torch.equal(batch[name], values), name
            assert batch[name].dtype == values.dtype
        assert batch["input_ids"].numel() <= 100
        seen.extend(indices.tolist())
    assert sorted(seen) == list(range(30))
