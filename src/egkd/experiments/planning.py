"""What of a grid is still to be done, in which order; and everything that is refused before any of it begins."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from transformers import TrainingArguments

from egkd import pipeline
from egkd.checks import check_between, choose_best_by, objectives_of, rehearse, training_arguments
from egkd.compatible import check_compatible
from egkd.config import RunConfig, read_yaml, resolve
from egkd.data import TaskData
from egkd.data.loading import load_data
from egkd.experiments.grid import Cell, Choice, GridConfig, TaskEntry
from egkd.experiments.kept import finished, placeless
from egkd.objectives import Objective
from egkd.runs import check_free, check_writable, claim, write_text
from egkd.students import check_student
from egkd.teaching import in_teachers_order

GRID = "grid.yaml"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process's work: to fine-tune a teacher, or to run a cell."""

    name: str
    verb: Literal["teach", "distill"]
    folder: Path
    config: RunConfig
    """With every default in it."""
    kinds: tuple[str, ...]
    """Whom it resembles, the nearest first: jobs of a kind take about equally long."""
    cost: float
    """Rows it trains on, each as often as it is seen."""
    after: Path | None = None
    """The folder of the teacher that has to be there first."""

    @property
    def done(self) -> bool:
        """Whether its last file is there."""
        return finished(self.folder) if self.verb == "distill" else (self.folder / "teacher" / "config.json").exists()

    def claim(self) -> None:
        """Make the folder this job's, and its `config.yaml` what it is called now."""
        if same(self.folder, self.config):
            write_text(self.folder / "config.yaml", self.config.to_yaml())
        else:
            claim(self.folder, self.config)


def grown(grid: GridConfig, out: Path) -> GridConfig:
    """`grid` with the tasks, students, methods and seeds that the experiment in `out` has beside: it may grow in turns.

    Raises ValueError where that cannot be read.
    """
    if not (out / GRID).exists():
        return grid
    old = GridConfig.of(read_yaml(out / GRID))
    parts = {name: getattr(old, name) | getattr(grid, name) for name in ("tasks", "students", "methods", "teachers")}
    for task, entry in grid.tasks.items():
        known = old.tasks[task] if task in old.tasks else TaskEntry()
        if task in old.tasks and (known.seeds or entry.seeds):
            seeds = _all_of(known.seeds or old.seeds, entry.seeds or grid.seeds)
            parts["tasks"][task] = entry.model_copy(update={"seeds": seeds})
    return grid.model_copy(update=parts | {"seeds": _all_of(old.seeds, grid.seeds)})


def _all_of(*seeds: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted({seed for each in seeds for seed in each}))


def same(folder: Path, config: RunConfig) -> bool:
    """Whether `folder` holds this run, perhaps as it was called elsewhere or by an earlier version.

    Where the experiment and the data lie may differ, and settings that were unknown then have their defaults.
    """
    try:
        there = resolve(read_yaml(folder / "config.yaml"))
        return placeless(pipeline.resolved(there, objectives_of(there))) == placeless(config)
    except ValueError:
        return False


def plan(grid: GridConfig, out: Path, only: Choice | None = None) -> list[Job]:
    """The jobs of the experiment in `out`, or of a part of it: the cheapest task first, its teacher before its cells.

    Cells that are done are among them, their teachers are not.

    Raises ValueError, one line, for whatever would fail later: settings, data, models that do not fit, folders in use.
    Nothing is written.
    """
    cells = list(grid.cells(only))
    if not cells:
        raise ValueError("the grid has no such cell: methods are left out by their tasks, or there is no such seed")
    check_writable(out, "--out")
    whole = grown(grid, out)
    _check_old(whole, out)
    checks = _Checks(whole, out, cells)
    by_task: dict[str, list[Job]] = {}
    for cell in cells:
        by_task.setdefault(cell.task, []).append(checks.job(cell))
    jobs: dict[str, Job] = {}
    for task in sorted(by_task, key=lambda task: max(job.cost for job in by_task[task])):
        for job in (*checks.teacher(task, by_task[task]), *by_task[task]):
            jobs.setdefault(job.name, job)
    return list(jobs.values())


def _check_old(grid: GridConfig, out: Path) -> None:
    """All that was begun must still be what the grid says."""
    for cell in grid.cells():
        if (cell.folder(out) / "config.yaml").exists():
            config = grid.config(cell, out)
            _check_same(cell.folder(out), pipeline.resolved(config, objectives_of(config)))


def _check_same(folder: Path, config: RunConfig) -> None:
    if not same(folder, config):
        check_free(folder, config)


class _Checks:
    """Looks at every cell; what cells share is looked at once."""

    def __init__(self, grid: GridConfig, out: Path, cells: Sequence[Cell]) -> None:
        self.grid, self.out, self.cells = grid, out, cells
        self._data: dict[str, TaskData] = {}
        self._seen: set[tuple[str, ...]] = set()

    def job(self, cell: Cell) -> Job:
        """A cell as a job. Raises ValueError."""
        try:
            config = self.grid.config(cell, self.out)
            objectives = objectives_of(config)
            config = pipeline.resolved(config, objectives)
            folder = cell.folder(self.out)
            tuned = self.grid.teacher_config(cell.task) is not None
            own = tuned and str(self.grid.teacher_folder(cell.task, self.out) / "teacher") == config.teacher
            job = Job(
                name=str(cell),
                verb="distill",
                folder=folder,
                config=config,
                kinds=(f"{cell.task}/{cell.student}/{cell.method}", f"{cell.student}/{cell.method}", "distill"),
                cost=0.0 if finished(folder) else _cost(_arguments(config, folder), self._rows(config)),
                after=self.grid.teacher_folder(cell.task, self.out) if own else None,
            )
            if not job.done and (cell.task, cell.student, cell.method) not in self._seen:
                self._seen.add((cell.task, cell.student, cell.method))
                self._check(cell, job, objectives)
        except ValueError as error:
            where = "" if str(error).startswith(str(cell)) else f"{cell}: "
            raise ValueError(f"{where}{error}") from None
        return job

    def _check(self, cell: Cell, job: Job, objectives: list[Objective]) -> None:
        """What `pipeline.distill` checks, and once for all seeds."""
        _check_same(job.folder, job.config)
        arguments = _arguments(job.config, job.folder)
        check_compatible([objective for objective in objectives if objective.weight > 0], arguments, has_teacher=True)
        config = self._standing(job)
        source = config.teacher or str(config.teacher_init)
        data = self.data(config)
        choose_best_by(arguments, data)
        try:
            check_between(config, objectives, data.task)
        except ValueError as error:
            raise ValueError(f"{error}; or leave it out: tasks.{cell.task}.without: [{cell.method}]") from None
        if (cell.task, cell.student) not in self._seen:
            self._seen.add((cell.task, cell.student))
            check_student(config.student, source, trust_remote_code=config.trust_remote_code)
            rehearse(*self._most(cell, config), data)
        if config.teacher and (cell.task, "teacher") not in self._seen:
            self._seen.add((cell.task, "teacher"))
            in_teachers_order(config.teacher, data, config.trust_remote_code)

    def _most(self, cell: Cell, config: RunConfig) -> tuple[RunConfig, str, list[Objective]]:
        """What `rehearse` is to look at for a cell: of every method that its student is to learn by, objectives and copies."""
        methods = dict.fromkeys(each.method for each in self.cells if (each.task, each.student) == (cell.task, cell.student))
        runs = [self.grid.config(replace(cell, method=method), self.out) for method in methods]
        masked = [run.data.augment for run in runs if run.data.augment.copies and run.data.augment.mask]
        if masked:
            config = config.model_copy(update={"data": config.data.model_copy(update={"augment": masked[0]})})
        return config, config.teacher or str(config.teacher_init), [each for run in runs for each in objectives_of(run)]

    def _standing(self, job: Job) -> RunConfig:
        """The cell's settings, with the encoder in the place of a teacher that is still to be fine-tuned."""
        if job.after is None or (job.after / "teacher" / "config.json").exists():
            return job.config
        teacher = self.grid.teacher_config(Path(job.name).parts[0])
        assert teacher is not None
        return job.config.model_copy(update={"teacher": None, "teacher_init": teacher.teacher_init})

    def teacher(self, task: str, cells: list[Job]) -> Iterator[Job]:
        """The fine-tuning of the task's teacher, if a cell waits for it."""
        waiting = [cell for cell in cells if cell.after is not None and not cell.done]
        if not waiting:
            return
        config, folder = self.grid.teacher_config(task), self.grid.teacher_folder(task, self.out)
        assert config is not None
        name = f"teachers/{self.grid.teacher_name(task)}"
        try:
            config = pipeline.resolved(config, objectives_of(config))
            arguments = training_arguments(config.teach_arguments, folder, "teach")
            choose_best_by(arguments, self.data(config))
            _check_same(folder, config)
            cost = _cost(arguments, len(self.data(config).train))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        yield Job(name=name, verb="teach", folder=folder, config=config, kinds=(name, "teach"), cost=cost)

    def _rows(self, config: RunConfig) -> int:
        data = self.data(config)
        return len(data.stream) + config.data.augment.copies * len(data.train)

    def data(self, config: RunConfig) -> TaskData:
        """Loaded once."""
        key = json.dumps(config.data.model_dump(mode="json"))
        if key not in self._data:
            self._data[key] = load_data(config.data)
        return self._data[key]


def _arguments(config: RunConfig, folder: Path) -> TrainingArguments:
    return training_arguments(config.train_arguments, folder / "checkpoints", "train")


def _cost(arguments: TrainingArguments, rows: int) -> float:
    """Rows, each as often as it is trained on."""
    steps = float(arguments.max_steps)
    return steps * arguments.per_device_train_batch_size if steps > 0 else float(arguments.num_train_epochs) * rows
