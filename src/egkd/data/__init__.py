"""Where examples come from: a GLUE task, the user's own files, or the embedded demo data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from datasets import Dataset, Features, Value, concatenate_datasets

NO_LABEL = -100
"""The field's mark for a class that is not known; a score that is not known is NaN."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be predicted."""

    name: str
    kind: Literal["classification", "regression"]
    label_names: tuple[str, ...] = ()
    """Class names in the order of the label ids; empty for regression."""
    metrics: tuple[str, ...] = ("accuracy",)
    """Names of the task's own metrics, the first one is its headline."""
    positive: int = 1
    """The class that `f1` is of."""

    @property
    def num_labels(self) -> int:
        """Width of the model's output: one per class, 1 for regression."""
        return len(self.label_names) or 1


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """A task with its examples: datasets of `text` (str), perhaps `text_pair` (str), `label` (int, float or None)."""

    task: Task
    train: Dataset
    evals: dict[str, Dataset]
    """Evaluation sets by name ("dev"; MNLI has "dev_matched" and "dev_mismatched"); the first one is the headline."""
    notes: tuple[str, ...] = ()
    """What was decided for the user (guessed columns, rows dropped), to be printed."""
    unlabeled: Dataset | None = None
    """Texts that a student learns from without labels, in the text columns of `train`."""

    @property
    def stream(self) -> Dataset:
        """All that a student learns from: `train`, then `unlabeled` with labels that mean none, -100 or NaN."""
        if self.unlabeled is None:
            return self.train
        none = NO_LABEL if self.task.kind == "classification" else float("nan")
        columns = {name: list(self.unlabeled[name]) for name in self.unlabeled.column_names}
        rest = as_dataset(columns | {"label": [none] * len(self.unlabeled)}, self.task)
        return concatenate_datasets([self.train, rest]) if len(self.train) else rest


def has_label(label: float | None) -> bool:
    """Whether this is a class or a score, not a mark for none."""
    return label is not None and label == label and label != NO_LABEL  # NaN is unequal to itself


def sample(dataset: Dataset, limit: int | None, seed: int) -> Dataset:
    """At most `limit` rows, drawn at random without replacement and kept in their order; None keeps every row."""
    if limit is None:
        return dataset
    if limit < 1:
        raise ValueError(f"a limit on the number of rows is {limit}, expected 1 or more: leave it out to keep every row")
    if limit >= len(dataset):
        return dataset
    rows = np.random.default_rng(seed).choice(len(dataset), limit, replace=False)
    return dataset.select(np.sort(rows))


def hold_out(groups: Sequence[int], count: int, seed: int = 0) -> tuple[list[int], list[int]]:
    """Rows to train on and `count` rows to hold out, drawn at random with every group in its share.

    The draw depends on no run's seed unless asked: what one run holds out, no teacher of another may have seen.
    A group's share is count * its size / all, the rounding goes to the largest remainders (Hamilton's method); each
    group keeps at least one row to train on, so fewer than `count` rows are held out where groups are that small.
    """
    group_of = np.asarray(groups)
    names, sizes = np.unique(group_of, return_counts=True)
    shares = count * sizes / len(group_of)
    quotas = np.floor(shares).astype(int)
    quotas[np.argsort(quotas - shares, kind="stable")[: count - quotas.sum()]] += 1
    quotas = np.minimum(quotas, sizes - 1)
    draw = np.random.default_rng(seed)
    held = [draw.permutation(np.flatnonzero(group_of == name))[:quota] for name, quota in zip(names, quotas, strict=True)]
    held_out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(group_of)), held_out).tolist(), held_out.tolist()


def as_dataset(columns: dict[str, list[Any]], task: Task) -> Dataset:
    """A dataset of text columns and `label`: class ids as int64, scores as float64."""
    label = Value("int64" if task.kind == "classification" else "float64")
    return Dataset.from_dict(columns, Features({name: label if name == "label" else Value("string") for name in columns}))
