"""Encoded examples as batches for the teacher, straight from Arrow's buffers.

Shapes: B batch.
"""

from collections.abc import Iterator

import numpy as np
import torch
from datasets import Dataset

from egkd.explain.base import length_batches
from egkd.lessons.columns import Column
from egkd.text import MODEL_INPUTS, SPECIAL, Batch

_COLUMNS = (*MODEL_INPUTS, "unit_ids", "n_units", "length")


class Rows:
    """Some rows of an encoded data set."""

    def __init__(self, dataset: Dataset, rows: range, pad_token_id: int) -> None:
        """`rows` are those of `dataset`, one after the other; below they are counted from 0."""
        names = [name for name in _COLUMNS if name in dataset.column_names]
        table = dataset.select_columns(names).with_format("arrow")[rows.start : rows.stop].combine_chunks()
        self._columns = {name: Column(table[name].chunk(0)) for name in names}
        self.first = rows.start
        """The row of the data set that comes first."""
        self._labels: np.ndarray | None = None
        if "label" in dataset.column_names:
            labels = dataset.select_columns("label").with_format("arrow")[rows.start : rows.stop]["label"]
            if labels.null_count == 0:
                self._labels = labels.to_numpy()
        self._fills = {"input_ids": pad_token_id, "unit_ids": SPECIAL}
        everybody = np.arange(len(rows))
        self.lengths, self.n_units = (self._columns[name].padded(everybody, 0) for name in ("length", "n_units"))

    def batches(self, token_budget: int) -> Iterator[np.ndarray]:
        """All rows, in batches of about equal length, longest first."""
        for rows in length_batches(self.lengths.tolist(), token_budget):
            yield np.array(rows)

    def batch(self, rows_B: np.ndarray) -> Batch:
        """These rows as `text.collate` has them."""
        batch = {
            name: torch.from_numpy(column.padded(rows_B, self._fills.get(name, 0)))
            for name, column in self._columns.items()
            if name != "length"
        }
        if self._labels is not None:
            labels_B = self._labels[rows_B]
            batch["labels"] = torch.tensor(labels_B, dtype=torch.float if labels_B.dtype.kind == "f" else torch.long)
        return batch
