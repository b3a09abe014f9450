"""Files of rows and columns, read whole into memory: CSV, TSV, JSON lines, JSON and Parquet.

Nothing is guessed about what columns mean, and nothing is written: no cache stays behind.
"""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from datasets import ClassLabel, Features

from egkd.config import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of one file."""

    path: Path
    columns: dict[str, Any]
    """A list, or an Arrow array that becomes one when `values` asks for it."""
    numbers: Sequence[int]
    """What each row is called in messages: its line, or its number from 1."""
    unit: str = "line"
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Class names, in the order of their ids, of columns that declare them (`datasets.ClassLabel`)."""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.numbers)

    def values(self, column: str) -> list[Any]:
        """A column's values, None where one is missing; classes by their names."""
        values = self.columns[column]
        values = values if isinstance(values, list) else values.to_pylist()
        names = self.class_names.get(column)
        if names is None:
            return values
        return [names[value] if value is not None and 0 <= value < len(names) else None for value in values]

    def place(self, row: int) -> str:
        """Where a row is, for messages."""
        return f"{self.path} {self.unit} {self.numbers[row]}"


def read_table(path: Path) -> Table:
    """Read a file by its ending. Raises ValueError, with the line, for what is missing, malformed, undecodable or empty.

    Text must be UTF-8, with or without a byte-order mark. CSV and TSV need a header line and rows of its width.
    """
    return _read(path, _READERS)


def read_unlabeled(path: Path) -> Table:
    """As `read_table`; a `.txt` file is a column `text` with one example per line, lines without text left out."""
    return _read(path, _READERS | {".txt": _lines})


def _read(path: Path, readers: Mapping[str, Callable[[Path], Table]]) -> Table:
    path = path.expanduser()
    if path.is_dir():
        raise ValueError(f"{path} is a directory: expected a file ending in {', '.join(readers)}")
    if not path.exists():
        siblings = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ValueError(f"there is no file {path}{did_you_mean(path.name, siblings, ', ')}")
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path} ends in {path.suffix or 'nothing'!r}: expected a file ending in {', '.join(readers)}")
    try:
        table = reader(path)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    if not len(table):
        raise ValueError(f"{path} holds no rows: expected at least one example")
    return table


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path} line {line} is not UTF-8 text (byte {error.start}): save the file as UTF-8") from None


def _lines(path: Path) -> Table:
    lines = {number: line.strip() for number, line in enumerate(_text(path).split("\n"), start=1) if line.strip()}
    return Table(path=path, columns={"text": list(lines.values())}, numbers=list(lines))


def _csv(path: Path) -> Table:
    return _delimited(path, _text(path), ",", csv.QUOTE_MINIMAL)


def _tsv(path: Path) -> Table:
    """TSV comes in two kinds: quotes as in CSV (pandas, spreadsheets) and quotes that are characters like others (GLUE).

    Quotes are CSV's if the file is well-formed that way and no line is swallowed by a quote for which another reading
    exists; else they are characters.
    """
    text = _text(path)
    if '"' not in text:
        return _delimited(path, text, "\t", csv.QUOTE_NONE)
    try:
        quoted = _delimited(path, text, "\t", csv.QUOTE_MINIMAL)
    except ValueError:
        return _delimited(path, text, "\t", csv.QUOTE_NONE, (f"{path.name}: quotes are read as characters",))
    try:
        literal = _delimited(path, text, "\t", csv.QUOTE_NONE, (f"{path.name}: quotes are read as characters",))
    except ValueError:
        return quoted
    return quoted if len(quoted) == len(literal) else literal


def _delimited(path: Path, text: str, separator: str, quoting: Any, notes: tuple[str, ...] = ()) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, quoting=quoting, strict=True)
    rows, numbers, line = [], [], 1
    try:
        with _fields_of_any_length():
            for fields in reader:
                if fields:
                    rows.append(fields)
                    numbers.append(line)
                line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path} line {line} is malformed ({error}): check its quotes") from None
    if not rows:
        raise ValueError(f"{path} is empty: expected a header line and rows")
    header = [name.strip() for name in rows.pop(0)]
    numbers.pop(0)
    twice = [name for place, name in enumerate(header) if name in header[:place]]
    if twice:
        raise ValueError(f"{path} has two columns called {twice[0]!r}: rename one")
    for fields, number in zip(rows, numbers, strict=True):
        if len(fields) != len(header):
            raise ValueError(f"{path} line {number} has {len(fields)} columns, expected {len(header)} as in the header")
    columns = {name: [fields[place] for fields in rows] for place, name in enumerate(header)}
    return Table(path=path, columns=columns, numbers=numbers, notes=notes)


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    """The csv module refuses fields of more than 131,072 characters; long documents are no error here."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # it is a C long: 32 bits on Windows
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _json_lines(path: Path) -> Table:
    return _objects_by_line(path, _text(path))


def _json(path: Path) -> Table:
    """A list of objects; else one object per line, as many files ending in .json are."""
    text = _text(path)
    if not text.lstrip().startswith("["):
        return _objects_by_line(path, text)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} line {error.lineno} is not JSON ({error.msg}): expected a list of objects") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets within brackets
        raise ValueError(f"{path} cannot be read as JSON ({error}): expected a list of objects") from None
    return _objects(path, rows, range(1, len(rows) + 1), "row")


def _objects_by_line(path: Path, text: str) -> Table:
    rows, numbers = [], []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: JSON strings may hold U+2028
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                what = error.msg if isinstance(error, json.JSONDecodeError) else error
                raise ValueError(f"{path} line {number} is not JSON ({what}): expected one object per line") from None
            numbers.append(number)
    return _objects(path, rows, numbers, "line")


def _objects(path: Path, rows: list[Any], numbers: Sequence[int], unit: str) -> Table:
    for row, number in zip(rows, numbers, strict=True):
        if not isinstance(row, dict):
            raise ValueError(f'{path} {unit} {number} is no object: expected something like {{"text": "...", "label": "..."}}')
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(path=path, columns={name: [row.get(name) for row in rows] for name in names}, numbers=numbers, unit=unit)


def _parquet(path: Path) -> Table:
    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not a Parquet file ({str(error).splitlines()[0]})") from None
    twice = [name for place, name in enumerate(table.column_names) if name in table.column_names[:place]]
    if twice:
        raise ValueError(f"{path} has two columns called {twice[0]!r}: rename one")
    described = table.schema.metadata or {}
    features: Any = {}
    notes: tuple[str, ...] = ()
    if b"huggingface" in described:
        try:
            features = Features.from_arrow_schema(table.schema)
        except (ValueError, KeyError, TypeError, AttributeError):  # of another version of datasets
            notes = (f"{path.name}: names of its classes cannot be read, their numbers are taken",)
    return Table(
        path=path,
        columns=dict(zip(table.column_names, table.columns, strict=True)),
        numbers=range(1, table.num_rows + 1),
        unit="row",
        notes=notes,
        class_names={name: tuple(feature.names) for name, feature in features.items() if isinstance(feature, ClassLabel)},
    )


_READERS = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
}
