"""Human rationales in the format of the ERASER benchmark (DeYoung et al. 2020, arXiv:1911.03429).

A JSONL file with one annotation a line, {"annotation_id", "evidences": [[{"docid", "start_token", "end_token"}, ...], ...],
perhaps "docids", "query", "classification"}, and the documents it speaks of: a folder `docs` with one file per docid, or
`docs.jsonl` with {"docid", "document"}. A document has one sentence a line; its tokens are what spaces separate. Tokens are
counted from 0, `end_token` is the first that no longer belongs. Shapes: U units (see `egkd.text`).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egkd.text import unit_spans


@dataclass(frozen=True, kw_only=True)
class Rationale:
    """What one person marked in one document, as ERASER counts: one per annotation and document."""

    annotation_id: str
    docid: str
    text: str
    """The document as it stands in the file."""
    evidence: tuple[tuple[int, int], ...]
    """Character spans of the marked passages, in order, each once."""
    query: str | None = None
    label: str | None = None

    def unit_runs(self) -> list[tuple[int, int]]:
        """The marked passages as runs of units (first, one past the last). Every unit lies within one token, and belongs to
        a passage when its token does."""
        spans = unit_spans(self.text)
        runs = []
        for start, end in self.evidence:
            inside = [unit for unit, span in enumerate(spans) if span[0] < end and span[1] > start]
            if inside:  # none where a passage is of invisible characters alone
                runs.append((inside[0], inside[-1] + 1))
        return sorted(set(runs))

    def units(self) -> NDArray[np.bool_]:
        """Bool [U]: the units that are marked."""
        marked_U = np.zeros(len(unit_spans(self.text)), dtype=bool)
        for start, end in self.unit_runs():
            marked_U[start:end] = True
        return marked_U


def load_rationales(annotations: str | Path, docs: str | Path | None = None) -> list[Rationale]:
    """Read the rationales of an ERASER data set in the order of its file.

    `docs` is the folder of documents or the `docs.jsonl`; without it, the one beside `annotations`. An annotation without
    evidence has one rationale, empty, for each of its `docids`, or else for the document of its own name.

    Raises ValueError, one line with the file and the line, for what is not in this format.
    """
    path = Path(annotations)
    read = _documents(path, None if docs is None else Path(docs))
    found = []
    for where, entry in _lines(path):
        evidence = _evidence(entry, where)
        others = entry.get("docids") or ([] if evidence else [entry["annotation_id"]])
        if not isinstance(others, list):
            raise ValueError(f"{where}: 'docids' is {others!r}; expected a list of names")
        for docid in dict.fromkeys([*map(str, others), *evidence]):
            text, tokens = read(docid, where)
            spans = {_characters(span, tokens, docid, where) for span in evidence.get(docid, [])}
            rationale = Rationale(
                annotation_id=str(entry["annotation_id"]),
                docid=docid,
                text=text,
                evidence=tuple(sorted(spans)),
                query=_string(entry.get("query")),
                label=_string(entry.get("classification")),
            )
            found.append(rationale)
    if not found:
        raise ValueError(f"{path} has no annotations; expected one JSON object a line")
    return found


def by_pairs(rationales: Sequence[Rationale]) -> list[list[Rationale]]:
    """The two documents of each annotation, as in e-SNLI: the one whose name ends in "premise" first, else as they are named.

    Raises ValueError for an annotation that has one document, or more than two.
    """
    pairs = []
    for name, group in groupby(rationales, key=lambda one: one.annotation_id):
        pair = sorted(group, key=lambda one: not one.docid.endswith("premise"))
        if len(pair) != 2:
            raise ValueError(f"annotation {name!r} speaks of {len(pair)} documents, expected two; name both in its 'docids'")
        pairs.append(pair)
    return pairs


def _string(value: Any) -> str | None:
    return None if value is None else str(value)


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file with the place they stand at."""
    for number, line in enumerate(_text(path, str(path)).split("\n"), start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: this is no JSON ({error.msg}); expected one object a line") from None
        needed = "docid" if path.name == "docs.jsonl" else "annotation_id"
        if not isinstance(entry, dict) or needed not in entry:
            raise ValueError(f"{where}: found no {needed!r}; expected an object of the ERASER format")
        yield where, entry


def _text(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{where}: cannot read {path} ({error.strerror}); give a file of the ERASER format") from None
    except UnicodeDecodeError:
        raise ValueError(f"{where}: {path} is not UTF-8; convert it") from None


def _evidence(entry: Mapping[str, Any], where: str) -> dict[str, list[tuple[int, int]]]:
    """The marked token spans of each document."""
    spans: dict[str, list[tuple[int, int]]] = {}
    groups = entry.get("evidences")
    if not isinstance(groups, list) or not all(isinstance(group, list) for group in groups):
        raise ValueError(f"{where}: 'evidences' is no list of lists; expected [[{{docid, start_token, end_token}}, ...], ...]")
    for one in (one for group in groups for one in group):
        try:
            docid, start, end = str(one["docid"]), one["start_token"], one["end_token"]
        except (KeyError, TypeError):
            raise ValueError(f"{where}: found evidence {one!r}; expected docid, start_token and end_token") from None
        if type(start) is not int or type(end) is not int:
            raise ValueError(f"{where}: found evidence from token {start!r} to {end!r}; expected whole numbers")
        spans.setdefault(docid, []).append((start, end))
    return spans


Document = tuple[str, list[tuple[int, int]]]


def _documents(annotations: Path, docs: Path | None) -> Callable[[str, str], Document]:
    """How to read the text of a document and the character spans of its tokens."""
    beside = [annotations.parent / "docs.jsonl", annotations.parent / "docs"]
    source = docs or next((place for place in beside if place.exists()), beside[1])
    known: dict[str, Document] = {}
    if source.is_file():
        for where, entry in _lines(source):
            if not isinstance(entry.get("document"), str):
                raise ValueError(f"{where}: found no 'document'; expected its text")
            # ERASER's own reader counts the nothing between two spaces as a token here, but not in files of a folder
            known[str(entry["docid"])] = (entry["document"], _tokens(entry["document"], keep_empty=True))
    elif not source.is_dir():
        raise ValueError(f"found no documents at {source}; expected a folder 'docs' or a file 'docs.jsonl'")

    def read(docid: str, where: str) -> Document:
        if docid not in known:
            if source.is_file() or docid != Path(docid).name or not (source / docid).is_file():
                raise ValueError(f"{where}: there is no document {docid!r} in {source}; add it or drop the annotation")
            text = _text(source / docid, where)
            known[docid] = (text, _tokens(text, keep_empty=False))
        return known[docid]

    return read


def _tokens(text: str, *, keep_empty: bool) -> list[tuple[int, int]]:
    """Character spans of the tokens, as ERASER's reader finds them: stripped lines, split at single spaces."""
    spans, start = [], 0
    for line in text.split("\n"):
        place = start + len(line) - len(line.lstrip())
        for token in line.strip().split(" "):
            if token or keep_empty:
                spans.append((place, place + len(token)))
            place += len(token) + 1
        start += len(line) + 1
    return spans


def _characters(span: tuple[int, int], tokens: list[tuple[int, int]], docid: str, where: str) -> tuple[int, int]:
    start, end = span
    if not 0 <= start < end <= len(tokens):
        raise ValueError(
            f"{where}: evidence is tokens {start} to {end} of {docid!r}, which has {len(tokens)}; correct one of them"
        )
    return tokens[start][0], tokens[end - 1][1]
