"""The teacher's side, computed once: lessons on disk, memory-mapped, read by row, refused when stale.

A lesson store is a folder of Arrow shards and a `manifest.json` that is written last. Its name carries a fingerprint of
everything the lesson depends on: the teacher's weights, its tokenizer, the texts, their order, and the settings.
A build that was killed goes on after its last whole shard.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from egkd.models import frozen, observe
from egkd.objectives.base import Lesson, Objective, Progress, Teacher
from egkd.text import UNIT_RULE, collate

FORMAT = 1  # of a store on disk
SHARD_ROWS = 4096


class StaleLessons(ValueError):
    """Lessons on disk were made from something else than what is asked for."""


def fingerprint_model(model: nn.Module) -> str:
    """sha256 over names, shapes and bytes of all weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over the fast tokenizer's own description, less the padding and truncation it was last called with."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state.pop("truncation", None)
    state.pop("padding", None)
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def fingerprint_texts(dataset: Dataset) -> str:
    """sha256 over all texts, in their order: lessons are read by row number."""
    digest = hashlib.sha256()
    columns = [name for name in ("text", "text_pair") if name in dataset.column_names]
    for rows in dataset.select_columns(columns).iter(batch_size=1000):
        for values in zip(*(rows[name] for name in columns), strict=True):
            digest.update(json.dumps(values).encode())
    return digest.hexdigest()


def _common_key(teacher: nn.Module, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, max_length: int) -> dict[str, Any]:
    """Everything that lessons of all objectives about `dataset` depend on, as it stands in the manifest."""
    return {
        "format": FORMAT,
        "teacher": fingerprint_model(teacher),
        "tokenizer": fingerprint_tokenizer(tokenizer),
        "texts": fingerprint_texts(dataset),
        "rows": len(dataset),
        "max_length": max_length,
        "unit_rule": UNIT_RULE,
    }


def store_path(root: Path, key: Mapping[str, Any]) -> Path:
    """The folder below `root` where the lessons of this key live."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return root / f"{key['settings']['objective']}-{digest[:16]}"


class Lessons:
    """Lessons of one objective on disk, by row of the data set they were made for."""

    def __init__(self, folder: Path, expected: Mapping[str, Any] | None = None) -> None:
        """Open the store in `folder`; `expected` holds entries of the manifest's key that must be equal.

        Raises StaleLessons where they are not, FileNotFoundError where there is no finished store.
        """
        self.folder = folder
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{folder / 'manifest.json'} is not JSON ({error}); delete the folder to build it again") from None
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
        parts = [Dataset.from_file(str(folder / shard["file"])) for shard in manifest["shards"]]
        self._rows = concatenate_datasets(parts).with_format("numpy")

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: Sequence[int]) -> Lesson:
        """The lessons of these rows, padded with zeros to the largest of each dimension: float32 or bool, [B, ...]."""
        columns = self._rows[list(rows)]
        return {name: stack([np.asarray(_dense(value)) for value in values]) for name, values in columns.items()}


def _dense(value: Any) -> Any:
    """A nested list out of an array of arrays (how ragged rows arrive from Arrow)."""
    return np.stack(list(value)) if isinstance(value, np.ndarray) and value.dtype == object else value


def stack(values: Sequence[np.ndarray]) -> Tensor:
    """Arrays of equal rank into one tensor, padded with zeros at the end of each dimension."""
    shape = [max(sizes) for sizes in zip(*(value.shape for value in values), strict=True)]
    dtype = np.bool_ if values[0].dtype == np.bool_ else np.float32
    padded = np.zeros((len(values), *shape), dtype=dtype)
    for row, value in enumerate(values):
        padded[row, ...][tuple(slice(size) for size in value.shape)] = value
    return torch.from_numpy(padded)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """An objective whose lesson is missing, and where it goes."""

    objective: Objective
    key: dict[str, Any]
    folder: Path
    teacher: Teacher


def build_lessons(
    objectives: Sequence[Objective],
    teacher: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    root: Path,
    *,
    max_length: int,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> dict[str, Lessons]:
    """Lessons of every objective that has one, by its name: those on disk are opened, the missing ones built together.

    `dataset` is encoded by the teacher's tokenizer and keeps its `text` columns. All missing objectives share the teacher's
    plain pass. Two processes may ask at once: one builds, the other waits.
    """
    wanted = {objective.name: objective for objective in objectives if objective.has_lesson and objective.weight > 0}
    if not wanted:
        return {}
    common = _common_key(teacher, tokenizer, dataset, max_length)
    keys = {name: common | {"settings": objective.lesson_key()} for name, objective in wanted.items()}
    folders = {name: store_path(root, key) for name, key in keys.items()}
    root.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        for folder in sorted(folders.values()):  # everybody takes them in the same order, so nobody waits for ever
            locks.enter_context(FileLock(folder.with_name(f".{folder.name}.lock")))
        missing = [name for name in wanted if not (folders[name] / "manifest.json").exists()]
        if missing:
            with frozen(teacher):
                jobs = [_prepare(wanted[n], keys[n], folders[n], teacher, tokenizer, dataset, progress) for n in missing]
                _teach_all(jobs, dataset, batch_size, progress)
    return {name: Lessons(folders[name], keys[name]) for name in wanted}


def _prepare(
    objective: Objective,
    key: dict[str, Any],
    folder: Path,
    teacher: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    progress: Progress | None,
) -> _Job:
    folder.mkdir(parents=True, exist_ok=True)
    plain = Teacher(model=teacher, tokenizer=tokenizer)
    prepared = replace(plain, prepared=objective.prepare(plain, dataset, folder, progress))
    return _Job(objective=objective, key=key, folder=folder, teacher=prepared)


def _teach_all(jobs: Sequence[_Job], dataset: Dataset, batch_size: int, progress: Progress | None) -> None:
    """Write every missing shard, then the manifests."""
    for start in range(0, len(dataset), SHARD_ROWS):
        file = f"shard-{start // SHARD_ROWS:05d}.arrow"
        todo = [job for job in jobs if not (job.folder / file).exists()]
        rows = range(start, min(start + SHARD_ROWS, len(dataset)))
        if todo:
            for job, columns in zip(todo, _teach_shard(todo, dataset, rows, batch_size, progress), strict=True):
                _write_shard(job.folder / file, columns)
        if progress:
            progress(rows.stop, len(dataset))
    for job in jobs:
        shards = [{"file": path.name, "bytes": path.stat().st_size} for path in sorted(job.folder.glob("shard-*.arrow"))]
        unfinished = job.folder / "manifest.json.tmp"
        unfinished.write_text(json.dumps({"key": job.key, "shards": shards}, indent=2))
        unfinished.replace(job.folder / "manifest.json")


def _teach_shard(
    jobs: Sequence[_Job], dataset: Dataset, rows: range, batch_size: int, progress: Progress | None
) -> list[dict[str, list[np.ndarray]]]:
    """Lessons of `rows`, in their order, taught in batches of similar length."""
    needs = {name for job in jobs for name in job.objective.needs}
    model, pad_token_id = jobs[0].teacher.model, jobs[0].teacher.tokenizer.pad_token_id or 0
    device = next(model.parameters()).device
    taught: list[dict[str, list[Any]]] = [{} for _ in jobs]
    done = rows.start
    for indices in _by_length(dataset, rows, batch_size):
        batch = collate([dataset[index] for index in indices], pad_token_id)
        batch = {name: value.to(device) for name, value in batch.items()}
        with torch.set_grad_enabled("embeddings" in needs):
            seen = observe(model, batch, keep=needs)
        for job, columns in zip(jobs, taught, strict=True):
            with torch.set_grad_enabled("embeddings" in job.objective.needs):
                lesson = job.objective.teach(job.teacher, batch, seen)
            for name, values in lesson.items():
                column = columns.setdefault(name, [None] * len(rows))
                for index, value in zip(indices, values, strict=True):
                    column[index - rows.start] = np.asarray(value)
        done += len(indices)
        if progress:
            progress(done, len(dataset))
    return taught


def _by_length(dataset: Dataset, rows: range, batch_size: int) -> Iterator[list[int]]:
    lengths = dataset["length"][rows.start : rows.stop]
    order = sorted(rows, key=lambda index: lengths[index - rows.start])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _write_shard(path: Path, columns: Mapping[str, list[np.ndarray]]) -> None:
    """Write one shard under another name first, so that a shard that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    kinds = {name: Value("bool" if values[0].dtype == np.bool_ else "float16") for name, values in columns.items()}
    features = Features({name: _nested(kind, columns[name][0].ndim) for name, kind in kinds.items()})
    try:
        with ArrowWriter(features=features, path=str(unfinished)) as writer:
            for row in zip(*columns.values(), strict=True):
                cells = (value if value.dtype == np.bool_ else value.astype(np.float16) for value in row)
                writer.write(dict(zip(columns, (cell.tolist() for cell in cells), strict=True)))
            writer.finalize()
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free >> 20
        raise ValueError(f"cannot write lessons to {path.parent}: {error} ({free} MiB free); whole shards are kept") from error
    unfinished.replace(path)


def _nested(kind: Value, depth: int) -> Any:
    return kind if depth == 0 else List(_nested(kind, depth - 1))
