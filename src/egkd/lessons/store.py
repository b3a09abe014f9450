"""A lesson store: a folder of Arrow shards with a manifest, written last.

Shapes: B rows of a batch.
"""

import hashlib
import json
import shutil
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock

from egkd.lessons.columns import Cells, Column, stack
from egkd.objectives.base import Lesson
from egkd.runs import write_json

FORMAT = 2  # of a store on disk
MANIFEST, BUILDING = "manifest.json", "building.json"


class StaleLessons(ValueError):
    """Lessons on disk were made from something else than what is asked for."""


def store_path(root: Path, key: Mapping[str, Any]) -> Path:
    """The folder below `root` where the lessons of this key live."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return root / f"{key['settings']['objective']}-{digest[:16]}"


def lock_of(folder: Path) -> FileLock:
    """Who holds it may write to the store, or delete it."""
    return FileLock(folder.with_name(f".{folder.name}.lock"))


class Lessons:
    """Lessons of one objective on disk, by row of the data set they were made for.

    Shards are memory-mapped: a batch touches the pages its rows lie in, and memory does not grow with the data. Another
    process that is handed a `Lessons` opens the files itself.
    """

    def __init__(self, folder: Path, expected: Mapping[str, Any] | None = None) -> None:
        """Open the store in `folder`; `expected` holds entries of the manifest's key that must be equal.

        Raises StaleLessons where they are not or where a shard is not what the manifest says, FileNotFoundError where
        there is no finished store.
        """
        self.folder = folder
        manifest = read_manifest(folder)
        self.key: dict[str, Any] = manifest["key"]
        changed = [name for name, value in (expected or {}).items() if self.key.get(name) != value]
        if changed:
            raise StaleLessons(
                f"the lessons in {folder} were made from another {' and another '.join(changed)}; "
                "leave the setting out to build new ones, or give back what they were made from"
            )
        for shard in manifest["shards"]:
            found = (folder / shard["file"]).stat().st_size if (folder / shard["file"]).is_file() else None
            if found != shard["bytes"]:
                raise StaleLessons(
                    f"{folder / shard['file']} has {found if found is not None else 'no'} bytes, "
                    f"expected {shard['bytes']}; delete {folder} to build it again"
                )
        self._starts = [0, *accumulate(shard["rows"] for shard in manifest["shards"])]
        tables = [read_shard(folder / shard["file"]) for shard in manifest["shards"]]
        self._shards = [{name: Column(table[name].chunk(0)) for name in table.column_names} for table in tables]
        self.fields: tuple[str, ...] = tuple(self._shards[0]) if self._shards else ()
        """What the lesson of a row consists of."""

    def __len__(self) -> int:
        return self._starts[-1]

    def __reduce__(self) -> tuple[type["Lessons"], tuple[Path]]:
        return (type(self), (self.folder,))

    def read(self, rows: Iterable[int], fields: Collection[str] | None = None) -> Lesson:
        """The lessons of these rows, or only some fields of them, padded with zeros to the largest of each dimension:
        float32 or bool, [B, ...]."""
        places = [self._place(row) for row in rows]
        return {
            name: stack([columns[name].cell(place) for columns, place in places])
            for name in self.fields
            if name in (fields or self.fields)
        }

    def _place(self, row: int) -> tuple[dict[str, Column], int]:
        if not 0 <= row < len(self):
            raise IndexError(f"found row {row}, expected one of the {len(self)} that lessons were made for")
        shard = bisect_right(self._starts, row) - 1
        return self._shards[shard], row - self._starts[shard]


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a finished store says of itself. Raises StaleLessons for another format, FileNotFoundError where
    it is not finished."""
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); delete the folder to build it again") from None
    found = manifest["key"]["format"]
    if found != FORMAT:
        raise StaleLessons(
            f"the lessons in {folder} have format {found}, expected {FORMAT}; delete the folder to build them again"
        )
    return manifest


def write_manifest(folder: Path, key: Mapping[str, Any], files: Collection[str]) -> None:
    """Say that the store is finished, and what of."""
    shards = []
    for file in files:
        path = folder / file
        with path.open("rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
        shards.append({"file": file, "rows": len(read_shard(path)), "bytes": path.stat().st_size, "sha256": digest})
    manifest = {"key": key, "built": datetime.now(UTC).isoformat(timespec="seconds"), "shards": shards}
    write_json(folder / MANIFEST, manifest)
    (folder / BUILDING).unlink(missing_ok=True)


def read_shard(path: Path) -> pa.Table:
    """A memory-mapped shard. Raises ValueError where it is not whole."""
    try:
        with pa.memory_map(str(path)) as source:  # what was read stays mapped
            return pa.ipc.open_stream(source).read_all()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no whole shard of lessons ({error})") from None


def write_shard(path: Path, fields: Mapping[str, Cells]) -> None:
    """Write one shard under another name first, so that a shard that is there is whole. Raises ValueError on a full disk."""
    unfinished = path.with_suffix(".tmp")
    batch = pa.RecordBatch.from_pydict({name: cells.to_arrow() for name, cells in fields.items()})
    try:
        with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free >> 20
        raise ValueError(f"cannot write lessons to {path.parent}: {error} ({free} MiB free); whole shards are kept") from error
    unfinished.replace(path)
