"""Texts without labels, which join what a student learns from."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from egkd.data import TaskData, sample
from egkd.data.files import load_texts, shared


def with_unlabeled(
    data: TaskData,
    paths: Sequence[Path],
    *,
    text: str | None = None,
    text_pair: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> TaskData:
    """`data` with the texts of these files as `unlabeled`, or `limit` of them drawn at random.

    Files are read as by `load_texts`: columns as named, else guessed where unambiguous; a `.txt` file has one text per line.
    Raises ValueError, with the place, for what cannot be read, and for pairs where the task has single texts, or the other way
    round.
    """
    wanted = [name for name in data.train.column_names if name != "label"]
    parts: list[Dataset] = []
    notes: list[str] = []
    for path in paths:
        named = {} if path.suffix.lower() == ".txt" else {"text": text, "text_pair": text_pair}
        part, told = load_texts(path, **named)
        if part.column_names != wanted:
            have, want = ("pairs of texts" if "text_pair" in names else "single texts" for names in (part.column_names, wanted))
            raise ValueError(f"{path} has {have}, {data.task.name} has {want}: choose columns with --text and --text-pair")
        parts.append(part)
        notes += told
    rows = sample(concatenate_datasets(parts), limit, seed)
    notes.append(f"{len(rows):,} texts without labels join the {len(data.train):,} with labels")
    overlaps = (shared(rows, dev, "among those without labels") for dev in data.evals.values())
    return dataclasses.replace(data, unlabeled=rows, notes=(*data.notes, *notes, *filter(None, overlaps)))
