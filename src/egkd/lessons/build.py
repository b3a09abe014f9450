"""Building lessons: shard by shard, in batches of similar length, by one process or several.

Shapes: B batch, N rows of a shard, D dimensions of a cell.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from egkd.explain.base import Precision, suitable_budget
from egkd.lessons.columns import Cells, UnfitCell
from egkd.lessons.fingerprints import fingerprint_labels, fingerprint_model, fingerprint_texts, fingerprint_tokenizer
from egkd.lessons.rows import Rows
from egkd.lessons.size import estimate_bytes, readable
from egkd.lessons.store import (
    BUILDING,
    FORMAT,
    MANIFEST,
    Lessons,
    lock_of,
    read_shard,
    store_path,
    write_manifest,
    write_shard,
)
from egkd.models import frozen, observe
from egkd.objectives.base import Objective, Progress, Teacher
from egkd.processes import Ranks, ranks
from egkd.runs import write_json
from egkd.text import UNIT_RULE

SHARD_ROWS = 4096
_SAMPLE = 8  # examples from which the size is estimated

Tell = Callable[[str], None]
"""Called with one line for the user."""
Taught = dict[str, Cells]
"""The fields of a lesson, of one batch or one shard."""


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
    precision: Precision = "float32",
    token_budget: int | None = None,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> dict[str, Lessons]:
    """Lessons of every objective that has one, by its name: those on disk are opened, the missing ones built together.

    `dataset` is encoded by the teacher's tokenizer and keeps its `text` columns. All missing objectives share the teacher's
    plain pass. `precision` is what the teacher computes in: "bfloat16" is faster where the processor has it, and a little off.
    No pass holds more than `token_budget` tokens; by default what suits the device. `tell` hears how large lessons will be,
    before the first is written. Two runs may ask at once: one builds, the other waits. Where
    `torch.distributed` is initialised every process has to call this, and builds its share of the shards; all of them must
    see `root`.

    Raises ValueError where lessons cannot be held by float16 or by the disk.
    """
    wanted = {objective.name: objective for objective in objectives if objective.has_lesson and objective.weight > 0}
    if not wanted:
        return {}
    common = _common_key(teacher, tokenizer, dataset, max_length, precision)
    keys = {name: common | {"settings": objective.lesson_key()} for name, objective in wanted.items()}
    for name in (name for name, objective in wanted.items() if objective.reads_labels):
        keys[name]["labels"] = fingerprint_labels(dataset)
    folders = {name: store_path(root, key) for name, key in keys.items()}
    missing: list[str] = []
    with ranks() as team, ExitStack() as locks:
        with team.stage():
            if team.first:
                root.mkdir(parents=True, exist_ok=True)
                for name in sorted(folders, key=folders.__getitem__):  # the same order for all, so nobody waits for ever
                    with ExitStack() as lock:
                        lock.enter_context(lock_of(folders[name]))
                        if not (folders[name] / MANIFEST).exists():  # a finished one is free for others while we build
                            missing.append(name)
                            locks.push(lock.pop_all())
        missing = team.told([name for name in wanted if name in missing])
        if missing:
            with frozen(teacher):
                plain = Teacher(model=teacher, tokenizer=tokenizer, token_budget=token_budget)
                jobs = [_Job(objective=wanted[n], key=keys[n], folder=folders[n], teacher=plain) for n in missing]
                _Build(jobs, dataset, precision, token_budget or suitable_budget(teacher), progress, tell, team).run()
        with team.stage():
            return {name: Lessons(folders[name], keys[name]) for name in wanted}


def _common_key(
    teacher: nn.Module, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, max_length: int, precision: Precision
) -> dict[str, Any]:
    """Everything that lessons of all objectives about `dataset` depend on, as it stands in the manifest."""
    return {
        "format": FORMAT,
        "teacher": fingerprint_model(teacher),
        "tokenizer": fingerprint_tokenizer(tokenizer),
        "texts": fingerprint_texts(dataset),
        "rows": len(dataset),
        "max_length": max_length,
        "unit_rule": UNIT_RULE,
    } | ({} if precision == "float32" else {"precision": precision})


class _Build:
    """One build: what is missing, and everybody's share of it."""

    def __init__(
        self,
        jobs: Sequence[_Job],
        dataset: Dataset,
        precision: Precision,
        token_budget: int,
        progress: Progress | None,
        tell: Tell | None,
        team: Ranks,
    ) -> None:
        self._jobs, self._dataset, self._team = jobs, dataset, team
        self._precision, self._token_budget = precision, token_budget
        self._progress, self._tell = progress or (lambda done, total: None), tell or (lambda line: None)
        self._shards = {
            f"shard-{number:05d}.arrow": range(start, min(start + SHARD_ROWS, len(dataset)))
            for number, start in enumerate(range(0, len(dataset), SHARD_ROWS))
        }

    def run(self) -> None:
        """Prepare, say how large it will be, teach what is missing, sign."""
        for turn in (True, False):  # what takes long is done by the first process and found by the others
            with self._team.stage():
                if self._team.first is turn:
                    self._jobs = [self._prepared(job) for job in self._jobs]
        todo: dict[str, list[int]] = {}
        with self._team.stage():
            if self._team.first:
                todo = self._todo()
                self._check_size(todo)
        todo = self._team.told(todo)
        with self._team.stage():
            self._teach(dict(list(todo.items())[self._team.rank :: self._team.count]))
        with self._team.stage():
            if self._team.first:
                for job in self._jobs:
                    write_manifest(job.folder, job.key, self._shards)

    def _prepared(self, job: _Job) -> _Job:
        job.folder.mkdir(parents=True, exist_ok=True)
        if self._team.first:
            write_json(job.folder / BUILDING, {"key": job.key, "shards": len(self._shards)})
        found = job.objective.prepare(job.teacher, self._dataset, job.folder, self._progress)
        return replace(job, teacher=replace(job.teacher, prepared=found))

    def _todo(self) -> dict[str, list[int]]:
        """By shard, the jobs that still lack it."""
        lacking = {
            file: [place for place, job in enumerate(self._jobs) if not _is_whole(job.folder / file, len(rows))]
            for file, rows in self._shards.items()
        }
        return {file: places for file, places in lacking.items() if places}

    def _check_size(self, todo: Mapping[str, Sequence[int]]) -> None:
        """Say how large the lessons will be. Raises ValueError where the disk has no room for what is missing of them."""
        if not todo:
            return
        rows = self._rows(self._shards[next(iter(todo))])
        spread_N = rows.lengths.argsort(kind="stable")  # examples of all lengths tell what grows with them
        sample_B = spread_N[np.linspace(0, len(spread_N) - 1, min(_SAMPLE, len(spread_N))).astype(int)]
        needed = 0.0
        for place, (job, taught) in enumerate(zip(self._jobs, self._teach_batch(self._jobs, rows, sample_B), strict=True)):
            total = estimate_bytes(taught, rows.n_units[sample_B], rows.lengths[sample_B], self._dataset)
            missing = sum(len(self._shards[file]) for file, places in todo.items() if place in places)
            needed += total * missing / len(self._dataset)
            self._tell(f"lessons of {job.objective.name}: about {readable(total)} for {len(self._dataset):,} examples")
        root = self._jobs[0].folder.parent
        free = shutil.disk_usage(root).free
        if needed > free:
            names = ", ".join(job.objective.name for job in self._jobs)
            raise ValueError(
                f"lessons of {names} need about {readable(needed)}, {root} has {readable(free)} free; "
                "make room, or name another folder for lessons"
            )

    def _teach(self, todo: Mapping[str, Sequence[int]]) -> None:
        """Write these shards."""
        total = sum(len(self._shards[file]) for file in todo)
        done = 0
        for file, places in todo.items():
            jobs = [self._jobs[place] for place in places]
            rows = self._rows(self._shards[file])
            taught: list[list[Taught]] = [[] for _ in jobs]
            indices: list[np.ndarray] = []
            for indices_B in rows.batches(self._token_budget):
                for parts, fields in zip(taught, self._teach_batch(jobs, rows, indices_B), strict=True):
                    parts.append(fields)
                indices.append(indices_B)
                done += len(indices_B)
                self._progress(done, total)
            order_N = np.concatenate(indices).argsort()
            for job, parts in zip(jobs, taught, strict=True):
                write_shard(
                    job.folder / file, {name: Cells.joined([part[name] for part in parts], order_N) for name in parts[0]}
                )

    def _rows(self, rows: range) -> Rows:
        return Rows(self._dataset, rows, self._jobs[0].teacher.tokenizer.pad_token_id or 0)

    def _teach_batch(self, jobs: Sequence[_Job], rows: Rows, indices_B: np.ndarray) -> list[Taught]:
        """What each job keeps of these rows. The plain pass is shared."""
        model = jobs[0].teacher.model
        needs = {name for job in jobs for name in job.objective.needs}
        device = next(model.parameters()).device
        batch = {name: value.to(device) for name, value in rows.batch(indices_B).items()}
        mixed = torch.autocast(device.type, torch.bfloat16, enabled=self._precision == "bfloat16")
        with torch.set_grad_enabled("embeddings" in needs), mixed:
            seen = observe(model, batch, keep=needs)
        found = []
        for job in jobs:
            with torch.set_grad_enabled("embeddings" in job.objective.needs), mixed:
                lesson = job.objective.teach(job.teacher, batch, seen)
            found.append(
                {name: _cells(values, job.objective.name, name, rows.first + indices_B) for name, values in lesson.items()}
            )
        return found


def _cells(values: Sequence[Any], objective: str, field: str, rows_B: np.ndarray) -> Cells:
    try:
        return Cells.of(values)
    except UnfitCell as error:
        raise ValueError(
            f"the lesson of {objective} for row {rows_B[error.place]}, {field}: {error}; "
            "check the teacher (scores to predict may have to be scaled down)"
        ) from None


def _is_whole(path: Path, rows: int) -> bool:
    """Whether a shard is there; one that a crash of the machine cut off is not."""
    try:
        return path.exists() and len(read_shard(path)) == rows
    except ValueError:
        return False
