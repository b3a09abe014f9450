"""Explanations on disk as they come: a file of JSON lines that grows, and that the same question goes on with.

Every line is one explanation (`explanation.load` reads them), with the number of its text and what it was asked with.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from datasets import Dataset

from egkd.explain.base import Explainer
from egkd.explain.explanation import Explanation

Parts = tuple[str, str | None]
"""A text and, of a pair, its second."""

_HEAD = b'{"row": '  # of every line: tells one that was torn from a line of somebody else's file


class Record:
    """The explanations in one file, by the number of their text and the name of their method; read back one at a time."""

    def __init__(
        self, path: Path, asked: Mapping[str, Any], explainers: Mapping[str, Explainer], texts: Mapping[int, Parts]
    ) -> None:
        """Open `path`, if it is there, to go on with it; nothing is written before the first `append`.

        `asked` holds whatever else scores depend on, as plain values; `texts` are those asked about, by their number.
        Raises ValueError, and leaves the file alone, where it holds something else than answers to the same question.
        """
        self._path, self._asked, self._texts = path, dict(asked), texts
        self._settings = {name: json.loads(json.dumps(explainer.settings())) for name, explainer in explainers.items()}
        self._places: dict[tuple[int, str], int] = {}
        self._end = 0
        self._file: BinaryIO | None = None
        if path.exists():
            self._read()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, place: tuple[int, str]) -> bool:
        return place in self._places

    def __getitem__(self, place: tuple[int, str]) -> Explanation:
        with self._path.open("rb") as file:
            file.seek(self._places[place])
            return Explanation.from_dict(json.loads(file.readline()))

    def append(self, row: int, explanation: Explanation) -> None:
        """Write one explanation, whole and at once."""
        line = {"row": row, "asked": self._asked, **explanation.to_dict()}
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab")
            self._file.truncate(self._end)  # what a kill left of a line
        written = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        self._file.write(written)
        self._file.flush()
        self._places[row, explanation.method] = self._end
        self._end += len(written)

    def close(self) -> None:
        """Close the file; nothing is lost without it."""
        if self._file is not None:
            self._file.close()

    def _read(self) -> None:
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n") and line.startswith(_HEAD[: len(line)]):
                    return
                found = self._checked(number, line)
                self._places[found["row"], found["method"]] = self._end
                self._end += len(line)

    def _checked(self, number: int, line: bytes) -> dict[str, Any]:
        """One line of the file. Raises ValueError where it answers another question."""
        try:
            found = json.loads(line)
            row, asked, method, settings = int(found["row"]), found["asked"], str(found["method"]), dict(found["settings"])
            parts = (found["text"], found["text_pair"])
            changed = [name for name in {**self._asked, **asked} if asked.get(name) != self._asked.get(name)]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._refused(f"line {number} is no explanation of this command's") from None
        if changed:
            raise self._refused(f"it holds explanations made with another {' and another '.join(sorted(changed))}")
        if self._texts.get(row, parts) != parts:
            raise self._refused(f"line {number} explains another text than row {row} of the texts given")
        if self._settings.get(method, settings) != settings:
            own = self._settings[method]
            other = sorted(name for name in {**own, **settings} if own.get(name) != settings.get(name))
            raise self._refused(f"it holds explanations by {method} with another {' and another '.join(other)}")
        return found

    def _refused(self, why: str) -> ValueError:
        return ValueError(f"cannot go on with {self._path}: {why}; name another --jsonl, or delete it")


def texts_by_row(dataset: Dataset) -> dict[int, Parts]:
    """What `Record` wants to know of a data set of row, text and perhaps text_pair."""
    seconds: Sequence[str | None] = dataset["text_pair"] if "text_pair" in dataset.column_names else [None] * len(dataset)
    return dict(zip(dataset["row"], zip(dataset["text"], seconds, strict=True), strict=True))
