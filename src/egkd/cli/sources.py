"""What `egkd explain` is to explain: texts, a file, a GLUE task, or documents in which people marked passages."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

    from egkd.evaluate.rationales import Rationale

QUERY, DOCS = "query", "docs"  # what `--text-pair` may say of rationales: their question, or second document


@dataclass(frozen=True, kw_only=True)
class Source:
    """The flags that say where texts come from; one of the first five is given."""

    texts: Sequence[str] | None
    file: Path | None
    rationales: Path | None
    task: str | None
    glue_dir: Path | None
    pair: Sequence[str] | None
    text: str | None
    text_pair: str | None
    notes: list[str] = field(default_factory=list)
    """What the user should know of what was read."""

    def check(self, *, reads_more: bool = False) -> None:
        """Refuse what cannot be meant, before anything is loaded; `reads_more` where a file with columns is read beside it."""
        flags = (("TEXT", self.texts), ("--file", self.file), ("--rationales", self.rationales), ("--task", self.task))
        given = [name for name, value in flags if value]
        if len(given) != 1:
            raise ValueError(
                f"found {' and '.join(given) or 'nothing'} to explain, expected one of TEXT, --file FILE, --rationales FILE "
                "or --task TASK"
            )
        columns = given[0] in ("--file", "--rationales") or reads_more
        for name, value, heard in (
            ("--text", self.text, columns),
            ("--text-pair", self.text_pair, columns),
            ("--glue-dir", self.glue_dir, given[0] == "--task"),
        ):
            if value is not None and not heard:
                raise ValueError(f"{name} {value} says nothing beside {given[0]}; leave it out")
        texts, pair = self.texts or (), self.pair or ()
        if pair and len(pair) != len(texts):
            raise ValueError(f"{len(texts)} TEXT and {len(pair)} --pair; give as many of one as of the other")
        for text in texts:
            if not text.strip():
                raise ValueError("a TEXT is empty, expected words to explain")
            if os.path.isfile(text):
                raise ValueError(f"TEXT {text!r} is a file; to explain what is in it, give it as --file")
        if self.rationales and self.text_pair not in (None, QUERY, DOCS):
            raise ValueError(
                f"--text-pair is {self.text_pair!r}; with --rationales it can be {QUERY!r}, which reads each with its question,"
                f" or {DOCS!r}, which reads the two documents of an annotation together"
            )

    def read(self, limit: int | None, seed: int) -> tuple["Dataset", list[list["Rationale"]]]:
        """Columns row (its number, from 0), text and perhaps text_pair; and what people marked, by that number."""
        from egkd.data import sample

        dataset, marked = self._read()
        return sample(dataset.add_column("row", list(range(len(dataset)))), limit, seed), marked

    def read_file(self, file: Path) -> "Dataset":
        """The texts of a file."""
        from egkd.data.files import load_texts

        pair = None if self.rationales else self.text_pair  # with which it says how documents are read
        dataset, notes = load_texts(file, text=self.text, text_pair=pair)
        self.notes.extend(notes)
        return dataset

    def _read(self) -> tuple["Dataset", list[list["Rationale"]]]:
        from datasets import Dataset

        if self.file is not None:
            return self.read_file(self.file), []
        if self.task is not None:
            return self._evaluation_set(self.task), []
        if self.rationales is None:
            return Dataset.from_dict({"text": self.texts} | ({"text_pair": self.pair} if self.pair else {})), []
        from egkd.evaluate.rationales import by_pairs, load_rationales

        marked = load_rationales(self.rationales)
        if self.text_pair == DOCS:
            pairs = by_pairs(marked)
            return Dataset.from_dict({"text": [a.text for a, _ in pairs], "text_pair": [b.text for _, b in pairs]}), pairs
        columns = {"text": [one.text for one in marked]}
        if self.text_pair == QUERY:
            columns["text_pair"] = [one.query or "" for one in marked]
        return Dataset.from_dict(columns), [[one] for one in marked]

    def _evaluation_set(self, task: str) -> "Dataset":
        from egkd.config_data import DataConfig
        from egkd.data.loading import load_data

        data = load_data(DataConfig(task=task, glue_dir=self.glue_dir))
        name, dataset = next(iter(data.evals.items()))
        self.notes.extend((*data.notes, f"{data.task.name}: {name} is explained"))
        return dataset.remove_columns("label")
