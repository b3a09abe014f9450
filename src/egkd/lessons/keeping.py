"""Looking after lesson stores: which there are, whether they are what they say, and deleting those nobody wants."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import Timeout

from egkd.lessons.store import BUILDING, MANIFEST, lock_of, read_manifest, read_shard, store_path

DAY = 86_400  # seconds
State = Literal["finished", "unfinished", "broken"]
_NAME = re.compile(r"[a-z0-9-]+-[0-9a-f]{16}")
_SHARDS = "shard-*.arrow"


@dataclass(frozen=True, kw_only=True)
class Store:
    """A lesson store as its folder and its own words tell it."""

    folder: Path
    state: State
    key: dict[str, Any]
    """What it was made from; empty where that cannot be read."""
    shards: tuple[int, int | None]
    """How many are there, and how many there will be."""
    bytes: int
    """Of all files."""
    built: datetime
    """When it was finished, or last written to."""
    problem: str = ""
    """What is wrong with a broken one."""

    @property
    def objective(self) -> str:
        """Whose lessons they are."""
        return self.folder.name[:-17]


def stores(root: Path) -> list[Store]:
    """The lesson stores in a folder, by name; whatever else lies there is left out. Raises ValueError if it is no folder."""
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; name the one that holds lessons")
    return [store for folder in sorted(root.iterdir()) if (store := _store(folder)) is not None]


def _store(folder: Path) -> Store | None:
    """The store in `folder`, or None if that is something else: a name that its key gives it, or at least shards."""
    if folder.is_symlink() or not folder.is_dir() or not _NAME.fullmatch(folder.name):
        return None
    there, written = len(list(folder.glob(_SHARDS))), folder.stat().st_mtime
    said = _json(folder / MANIFEST) or _json(folder / BUILDING)
    key = said["key"] if isinstance(said.get("key"), dict) else {}
    ours = "settings" in key and store_path(folder.parent, key) == folder
    if not ours and not there:
        return None
    state: State = "unfinished"
    built, planned, problem = datetime.fromtimestamp(written, UTC), said.get("shards"), ""
    if (folder / MANIFEST).exists():
        try:
            manifest = read_manifest(folder)
            state, planned, built = "finished", len(manifest["shards"]), datetime.fromisoformat(manifest["built"])
            problem = next(_faults(folder, manifest, deep=False), "")
        except (ValueError, KeyError, TypeError) as error:
            planned, problem = None, f"{MANIFEST}: {error}"
    return Store(
        folder=folder,
        state="broken" if problem else state,
        key=key if ours else {},
        shards=(there, planned if isinstance(planned, int) else None),
        bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        built=built,
        problem=problem,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def faults(store: Store) -> list[str]:
    """Everything in which a store is not what its manifest says; every byte is read."""
    if store.state == "unfinished":
        return [problem for path in sorted(store.folder.glob(_SHARDS)) if (problem := _unreadable(path))]
    try:
        return list(_faults(store.folder, read_manifest(store.folder), deep=True))
    except (ValueError, KeyError, TypeError):
        return [store.problem]


def _faults(folder: Path, manifest: dict[str, Any], *, deep: bool) -> Iterator[str]:
    if store_path(folder.parent, manifest["key"]) != folder:
        yield "the folder's name is not that of its key"
    if sum(shard["rows"] for shard in manifest["shards"]) != manifest["key"]["rows"]:
        yield f"its shards have {sum(shard['rows'] for shard in manifest['shards'])} rows, expected {manifest['key']['rows']}"
    surplus = {path.name for path in folder.glob(_SHARDS)} - {shard["file"] for shard in manifest["shards"]}
    for file in sorted(surplus):
        yield f"{file} is not in the manifest"
    for shard in manifest["shards"]:
        path = folder / shard["file"]
        if not path.is_file():
            yield f"{path.name} is missing"
        elif path.stat().st_size != shard["bytes"]:
            yield f"{path.name} has {path.stat().st_size} bytes, expected {shard['bytes']}"
        elif deep:
            with path.open("rb") as source:
                if hashlib.file_digest(source, "sha256").hexdigest() != shard["sha256"]:
                    yield f"{path.name} has other contents than when it was written"


def _unreadable(path: Path) -> str:
    try:
        read_shard(path)
    except ValueError as error:
        return f"{path.name} cannot be read ({error.__cause__ or 'cut off'}); the build will make it again"
    return ""


def unwanted(store: Store, days: float | None = None, teacher: str | None = None) -> str:
    """Why a store should go, "" if it should stay: unfinished, broken, older than `days`, or not of the teacher whose
    fingerprint begins with `teacher`."""
    if store.state != "finished":
        return store.state
    if days is not None and (datetime.now(UTC) - store.built).total_seconds() > days * DAY:
        return f"older than {days:g} days"
    if teacher is not None and not store.key["teacher"].startswith(teacher):
        return "another teacher's"
    return ""


@contextmanager
def held(store: Store) -> Iterator[bool]:
    """While open, nobody builds the store; False where somebody already does."""
    lock = lock_of(store.folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def delete(store: Store) -> None:
    """Delete a store that is `held`; one that is deleted halfway is unfinished."""
    (store.folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(store.folder)
