"""The user's own examples: CSV, TSV, JSON lines, JSON or Parquet files, read whole into memory."""

import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset

from egkd.data import Task, TaskData, as_dataset, hold_out, sample
from egkd.data.columns import Columns, choose_columns, choose_texts, found
from egkd.data.readers import Table, read_table, read_unlabeled

Paths = str | Path | Sequence[str | Path]
Kind = Literal["auto", "classification", "regression"]

_NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?")  # no leading zeros: "007" is a name


def load_files(
    train: Paths,
    evaluation: Paths | None = None,
    *,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    kind: Kind = "auto",
    label_names: Sequence[str] | None = None,
    train_limit: int | None = None,
    eval_limit: int | None = None,
    seed: int = 0,
    eval_share: float = 0.1,
) -> TaskData:
    """Load examples from one or several files each; without `evaluation` a share of `train` is held out, the same for
    every seed, stratified by class. Without `train`, classes are those of `evaluation`, and there is nothing to train on.

    Columns that are not named are guessed where unambiguous. Labels with fractions are scores (regression), others are
    classes, unless `kind` says otherwise. Class ids follow `label_names`, else the names that a Parquet file of
    `datasets` declares, else the sorted names (numbers by value); numbers that are no names in `label_names` are ids
    into it. Limits take a seeded sample. What was decided is in the notes. Raises ValueError, with the place, for files
    or settings that cannot work.
    """
    if kind == "regression" and label_names is not None:
        raise ValueError(f"label names {', '.join(label_names)} were given with kind regression: scores have no names")
    eval_tables = _tables(evaluation) if evaluation is not None else []
    train_tables = _tables(train) if train or not eval_tables else []
    tables = train_tables + eval_tables
    columns, guess = choose_columns(tables[0], text=text, text_pair=text_pair, label=label)
    _check_same(tables, columns)
    examples: dict[str, list[Any]] = {
        to: _texts(tables, column) for to, column in zip(("text", "text_pair"), columns.texts, strict=False)
    }
    size = sum(map(len, train_tables))
    declared = _declared(train_tables or tables, columns.label, label_names)
    task, examples["label"], decided = _labels(tables, columns.label, size or sum(map(len, tables)), kind, declared)
    dataset = as_dataset(examples, task)
    if eval_tables:
        parts, held = (dataset.select(range(size)), dataset.select(range(size, len(dataset)))), None
    else:
        parts, held = _split(dataset, task, eval_share)
    notes = [note for table in tables for note in table.notes] + [guess, decided, held, shared(*parts)]
    return TaskData(
        task=task,
        train=sample(parts[0], train_limit, seed),
        evals={"dev": sample(parts[1], eval_limit, seed)},
        notes=tuple(note for note in notes if note),
    )


def load_texts(path: str | Path, *, text: str | None = None, text_pair: str | None = None) -> tuple[Dataset, tuple[str, ...]]:
    """Texts to be read by a model, without labels: a dataset of `text`, perhaps `text_pair`, and notes of what was guessed.

    A `.txt` file holds one text per line, others are read as by `load_files`. Raises ValueError, with the place.
    """
    table = read_unlabeled(Path(path))
    if table.path.suffix.lower() == ".txt":
        text = text or "text"  # the only column there is needs no guess
    columns, guess = choose_texts(table, text=text, text_pair=text_pair)
    texts = {to: _texts([table], column) for to, column in zip(("text", "text_pair"), columns, strict=False)}
    return Dataset.from_dict(texts), tuple(note for note in (*table.notes, guess) if note)


def _tables(paths: Paths) -> list[Table]:
    paths = [paths] if isinstance(paths, str | Path) else paths
    if not paths:
        raise ValueError("no file was named, expected at least one: --train FILE")
    return [read_table(Path(path)) for path in paths]


def _check_same(tables: list[Table], columns: Columns) -> None:
    """Every table must have the columns chosen in the first one."""
    for table in tables[1:]:
        missing = [column for column in (*columns.texts, columns.label) if column not in table.columns]
        if missing:
            raise ValueError(
                f"{table.path} has no column {missing[0]!r}, found {found(table)}: "
                f"all files need the columns used of {tables[0].path}"
            )


def _refuse(tables: list[Table], column: str, values: list[Any], rows: Sequence[int], expected: str) -> None:
    """Raise if there are rows to complain about; they are counted through all tables."""
    if not rows:
        return
    row = rows[0]
    for table in tables:
        if row < len(table):
            break
        row -= len(table)
    more = f" (and {len(rows) - 1:,} more)" if len(rows) > 1 else ""
    raise ValueError(f"{table.place(row)}{more}: {column!r} is {values[rows[0]]!r:.60}, expected {expected}")


def _texts(tables: list[Table], column: str) -> list[str]:
    values = [value for table in tables for value in table.values(column)]
    empty = [row for row, value in enumerate(values) if not isinstance(value, str) or not value.strip()]
    _refuse(tables, column, values, empty, "text that is not empty: fill or remove the row")
    broken = [row for row, value in enumerate(values) if not value.isascii() and re.search("[\ud800-\udfff]", value)]
    _refuse(tables, column, values, broken, "text without lone surrogates (halves of a character)")
    return values


def _labels(tables: list[Table], column: str, size: int, kind: Kind, declared: tuple[str, ...]) -> tuple[Task, list[Any], str]:
    """The task, a label per row, and a note; the first `size` rows are those to train on."""
    path = tables[0].path.absolute()
    name = path.parent.name if path.stem.lower() == "train" else path.stem
    values = _written(tables, column)
    numbers = all(map(_NUMBER.fullmatch, values))
    fractions = numbers and not all(float(value).is_integer() for value in values)
    if kind == "regression" or (kind == "auto" and not declared and fractions):
        scores = _scores(tables, column, values)
        task = Task(name=name, kind="regression", metrics=("pearson", "spearmanr"))
        return task, scores, f"labels are scores from {min(scores):g} to {max(scores):g}"
    names, ids = _classes(tables, column, values, size, declared)
    doubt = (
        " (if they are scores, set kind to regression)"
        if kind == "auto" and numbers and not declared and len(names) > 2
        else ""
    )
    task = Task(name=name, kind="classification", label_names=names)
    return task, ids, f"labels are {len(names)} classes: {_listed(names)}{doubt}"


def _written(tables: list[Table], column: str) -> list[str]:
    """Labels as they are written: numbers with whole values lose their point, so "1.0" and 1 are one label."""
    raw = [value for table in tables for value in table.values(column)]
    nested = [row for row, value in enumerate(raw) if isinstance(value, list | dict)]
    _refuse(tables, column, raw, nested, "one label per example")
    written = ["" if value is None or value != value else str(value).strip() for value in raw]
    missing = [row for row, value in enumerate(written) if not value]
    _refuse(tables, column, raw, missing, "a label: fill or remove the row")
    if not all(map(_NUMBER.fullmatch, written)):
        return written
    return [str(int(float(value))) if "." in value and float(value).is_integer() else value for value in written]


def _scores(tables: list[Table], column: str, values: list[str]) -> list[float]:
    other = [row for row, value in enumerate(values) if not (_NUMBER.fullmatch(value) and np.isfinite(float(value)))]
    _refuse(tables, column, values, other, "a number")
    return [float(value) for value in values]


def _declared(tables: list[Table], column: str, label_names: Sequence[str] | None) -> tuple[str, ...]:
    """Class names that need not be inferred, in the order of their ids."""
    if label_names is None:
        return next((table.class_names[column] for table in tables if column in table.class_names), ())
    if isinstance(label_names, str) or len(set(label_names)) < max(2, len(label_names)):
        raise ValueError(f"label names are {label_names!r}, expected two or more different ones")
    return tuple(label_names)


def _classes(
    tables: list[Table], column: str, values: list[str], size: int, declared: tuple[str, ...]
) -> tuple[tuple[str, ...], list[int]]:
    """Class names and an id per row; the first `size` rows are those to train on."""
    seen = set(values[:size])
    if len(seen) == 1 and not declared:
        raise ValueError(f"every {column!r} to train on is {values[0]!r:.60}, expected at least two classes: see --label")
    names = declared or tuple(sorted(seen, key=float if all(map(_NUMBER.fullmatch, seen)) else None))
    ids = {name: number for number, name in enumerate(names)}
    if declared and not seen & ids.keys():
        ids = {str(number): number for number in range(len(names))}
    unknown = [row for row, value in enumerate(values) if value not in ids]
    of = "the label names" if declared else "the labels to train on"
    _refuse(tables, column, values, unknown, f"one of {of}: {_listed(ids)}")
    return names, [ids[value] for value in values]


def _listed(names: Iterable[str]) -> str:
    first = list(itertools.islice(names, 11))
    return ", ".join(first[:10]) + (", …" if len(first) > 10 else "")


def _split(dataset: Dataset, task: Task, share: float) -> tuple[tuple[Dataset, Dataset], str]:
    """A part to train on, a part held out, and a note."""
    if not 0 < share < 1:
        raise ValueError(f"the share to hold out is {share}, expected a number between 0 and 1")
    groups = list(dataset["label"]) if task.kind == "classification" else [0] * len(dataset)
    train, held_out = hold_out(groups, max(1, round(share * len(dataset))))
    if not held_out:
        raise ValueError(f"{len(dataset)} rows are too few to hold some out: give more, or evaluation data with --eval")
    note = f"no evaluation data given: {len(held_out):,} of {len(dataset):,} rows held out as dev, the same for every seed"
    return (dataset.select(train), dataset.select(held_out)), note


def shared(train: Dataset, dev: Dataset, where: str = "in the training data") -> str | None:
    """A note if evaluation examples are also trained on."""
    columns = [name for name in train.column_names if name != "label"]
    learned = set(zip(*(train[name] for name in columns), strict=True))
    both = sum(example in learned for example in zip(*(dev[name] for name in columns), strict=True))
    return f"{both:,} of {len(dev):,} evaluation texts are also {where}: scores may flatter" if both else None
