"""An experiment, described: tasks × students × methods × seeds, and the run that each cell is. Imports no torch."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from egkd.config import RunConfig, check, merge, near, resolve, to_yaml
from egkd.experiments.methods import METHODS, method_settings

TASKS = ("wnli", "rte", "mrpc", "stsb", "cola", "sst2", "qnli", "qqp", "mnli")
"""GLUE, the smallest first."""
DEFAULT_METHODS = ("labels", "plain", "gradient", "perturbation", "selection", "all")
DEFAULT_STUDENTS = ("layers:3",)
DEFAULTS: dict[str, tuple[str, ...]] = {"tasks": TASKS, "students": DEFAULT_STUDENTS, "methods": DEFAULT_METHODS}
_SHORT = ("task", "glue_dir", "train_limit", "eval_limit")  # of a task's entry: settings of its data
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


class TaskEntry(BaseModel):
    """One task of a grid: settings of its runs (`task`, `train_limit` and the like are of `data`), and what is the grid's."""

    model_config = ConfigDict(extra="allow", frozen=True)

    seeds: tuple[int, ...] = ()
    """Its own seeds, instead of the grid's."""
    without: tuple[str, ...] = ()
    """Methods that are left out here, because they cannot work."""
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings of a method for this task, over the method's own."""
    teacher_of: str | None = None
    """The task whose teacher teaches here too, however much of the data its students get."""
    teacher_data: dict[str, Any] = Field(default_factory=dict)
    """What is different in `data` when the teacher is fine-tuned."""

    @field_validator("seeds", mode="before")
    @classmethod
    def _one_seed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    @model_validator(mode="before")
    @classmethod
    def _data_of(cls, settings: Any) -> Any:
        if not isinstance(settings, Mapping):
            return settings if settings is not None else {}
        short = {name: value for name, value in settings.items() if name in _SHORT}
        rest = {name: value for name, value in settings.items() if name not in _SHORT}
        return merge({"data": short}, rest) if short else rest

    @property
    def run(self) -> dict[str, Any]:
        """Settings of its runs."""
        return dict(self.model_extra or {})


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a grid, by the names of the grid's entries."""

    task: str
    student: str
    method: str
    seed: int

    def __str__(self) -> str:
        """As people and folders name it."""
        return f"{self.task}/{self.student}/{self.method}/{self.seed}"

    def folder(self, out: Path) -> Path:
        """Its run folder."""
        return out / "cells" / str(self)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A part of a grid: names of entries, and seeds; all of them where empty."""

    tasks: tuple[str, ...] = ()
    students: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()

    def __contains__(self, cell: Cell) -> bool:
        """Whether a cell is chosen."""
        told = ((self.tasks, cell.task), (self.students, cell.student), (self.methods, cell.method), (self.seeds, cell.seed))
        return all(not chosen or own in chosen for chosen, own in told)


class GridConfig(BaseModel):
    """Everything that defines an experiment; `grid.yaml` in its folder is this."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: dict[str, TaskEntry] = Field(default_factory=lambda: dict.fromkeys(TASKS, TaskEntry()))
    """By name; a list of names will do. An entry that names no data is the GLUE task of its name."""
    students: dict[str, dict[str, Any]] = Field(default=DEFAULT_STUDENTS, validate_default=True)
    """By name: what `--student` takes, or settings of a student's runs with `student` among them."""
    methods: dict[str, dict[str, Any]] = Field(default=DEFAULT_METHODS, validate_default=True)
    """By name: settings over a built-in method's, `like` names another to begin with. A list of names will do."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Draw heads, order and dropout; rows, teacher and lessons are the same for all."""
    base: dict[str, Any] = Field(default_factory=dict)
    """Settings of every run."""
    teachers: dict[str, str] = Field(default_factory=dict)
    """Fine-tuned teachers by task, local folders or hub ids; others are fine-tuned from `base.teacher_init`."""
    teacher_data: dict[str, Any] = Field(default_factory=dict)
    """What is different in `data` when a teacher is fine-tuned, `{train_limit: null}` for all rows."""
    baseline: str = "plain"
    """The method that others are compared with."""
    limit: int | None = Field(default=None, gt=0)
    """Train and evaluate everybody on this many rows at most, for a quick look."""
    keep_students: bool = True
    """Whether a finished cell keeps its student's weights; figures and predictions always stay."""

    @field_validator("tasks", "students", "methods", mode="before")
    @classmethod
    def _named(cls, value: Any, info: ValidationInfo) -> Any:
        return entries(str(info.field_name), value)

    @field_validator("seeds", mode="before")
    @classmethod
    def _one_seed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _can_be(self) -> "GridConfig":
        for what in ("tasks", "students", "methods"):
            names = getattr(self, what)
            if not names:
                raise ValueError(f"{what} names none, expected at least one")
            wrong = [name for name in names if not _NAME.fullmatch(name)]
            if wrong:
                raise ValueError(f"{what}: {wrong[0]!r} is to name a folder; use letters, digits, and any of _.+- within")
        nameless = [name for name, student in self.students.items() if "student" not in student]
        if nameless:
            raise ValueError(f"students.{nameless[0]} names no student; give one: student: layers:3")
        for name in self.methods:
            method_settings(name, self.methods)
        for task, entry in self.tasks.items():
            for method in (*entry.without, *entry.methods):
                if method not in self.methods and method not in METHODS:
                    raise ValueError(f"tasks.{task}: unknown method {method!r}; {near(method, self.methods)}")
        strange = [name for name in self.teachers if name not in {self.teacher_name(task) for task in self.tasks}]
        if strange:
            raise ValueError(f"teachers.{strange[0]}: unknown task {strange[0]!r}; {near(strange[0], self.tasks)}")
        return self

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "GridConfig":
        """From settings. Raises ValueError, one line."""
        return check(cls, settings)

    def cells(self, only: Choice | None = None) -> Iterator[Cell]:
        """All cells, or those of a choice; within a task all methods with one seed before the next seed, so that what is done
        is comparable."""
        for task, entry in self.tasks.items():
            for seed, student, method in product(entry.seeds or self.seeds, self.students, self.methods):
                cell = Cell(task=task, student=student, method=method, seed=seed)
                if method not in entry.without and (only is None or cell in only):
                    yield cell

    def config(self, cell: Cell, out: Path) -> RunConfig:
        """The run that a cell of the experiment in `out` is. Raises ValueError, one line, that names the cell."""
        entry = self.tasks[cell.task]
        settings = self._task_settings(cell.task)
        for overlay in (
            self.students[cell.student],
            method_settings(cell.method, self.methods),
            entry.methods.get(cell.method, {}),
            {"seed": cell.seed},
        ):
            settings = merge(settings, overlay)
        settings = {"lessons": out / "lessons"} | settings
        init = settings.pop("teacher_init", None)
        if not settings.get("teacher"):
            given = self.teachers.get(self.teacher_name(cell.task))
            if given is None and init is None:
                raise ValueError(
                    f"task {cell.task} has no teacher; give an encoder to fine-tune (--teacher-init), "
                    f"or a fine-tuned one (--teacher {self.teacher_name(cell.task)}=FOLDER)"
                )
            settings["teacher"] = given or str(self.teacher_folder(cell.task, out) / "teacher")
        return _resolved(settings, str(cell))

    def teacher_name(self, task: str) -> str:
        """The name that a task's teacher goes by: the task's own, or that of the task it is lent by."""
        return self.tasks[task].teacher_of or task

    def teacher_folder(self, task: str, out: Path) -> Path:
        """The run folder in which a task's teacher is fine-tuned, where none is given."""
        return out / "teachers" / self.teacher_name(task)

    def teacher_config(self, task: str) -> RunConfig | None:
        """The fine-tuning of a task's teacher; None where one is given. Raises ValueError, one line."""
        name = self.teacher_name(task)
        settings = self._task_settings(name)
        if name in self.teachers or self._task_settings(task).get("teacher"):
            return None
        known = ("teacher_init", "data", "teach", "max_length", "trust_remote_code", "seed")
        chosen = {key: settings[key] for key in known if key in settings}
        data = merge(merge(chosen["data"] | self._held_out(name), self.teacher_data), self._entry(name).teacher_data)
        return _resolved(chosen | {"data": self._limited(data)}, f"the teacher of {name}")

    def _held_out(self, teacher: str) -> dict[str, Any]:
        """The rows by which students of this teacher are judged, so that it is not trained on them. Raises ValueError."""
        taught = [task for task in self.tasks if self.teacher_name(task) == teacher]
        data = {task: self._task_settings(task)["data"] for task in taught}
        asked = {
            task: (each["held_out"], each.get("seed", 0))
            for task, each in data.items()
            if isinstance(each, Mapping) and each.get("held_out")
        }
        if len(set(asked.values())) > 1:
            told = ", ".join(f"{task} {held} by data.seed {seed}" for task, (held, seed) in asked.items())
            raise ValueError(
                f"the teacher of {teacher} would know rows that judge its students, who hold out different ones ({told}): "
                "give them the same data.held_out and data.seed, or teachers of their own"
            )
        return dict(zip(("held_out", "seed"), next(iter(asked.values())), strict=True)) if asked else {}

    def _entry(self, task: str) -> TaskEntry:
        return self.tasks.get(task) or TaskEntry()

    def _task_settings(self, task: str) -> dict[str, Any]:
        settings = merge({"data": {}} | self.base, self._entry(task).run)
        data = settings["data"]
        if isinstance(data, Mapping) and not data.get("task") and not data.get("train"):
            data = {**data, "task": task}
        return settings | {"data": self._limited(data)}

    def _limited(self, data: Any) -> Any:
        if self.limit is None or not isinstance(data, Mapping):
            return data
        limits = {name: data.get(name) or self.limit for name in ("train_limit", "eval_limit", "unlabeled_limit")}
        return {**data} | {name: min(own, self.limit) if isinstance(own, int) else own for name, own in limits.items()}

    def to_yaml(self) -> str:
        """The whole of it, as `grid.yaml` holds it."""
        return to_yaml(self.model_dump(mode="json"))


def entries(what: str, value: Any) -> Any:
    """The entries of `tasks`, `students` or `methods`, where a list only names them; other settings as they are."""
    if what not in ("tasks", "students", "methods"):
        return value
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list | tuple):
        value = _named_students(value) if what == "students" else {str(each): {} for each in value}
    if not isinstance(value, Mapping):
        return value
    return {str(name): {"student": entry} if isinstance(entry, str) else entry or {} for name, entry in value.items()}


def _named_students(specs: Iterable[Any]) -> dict[str, Any]:
    """By the names that they get. Raises ValueError where two would have one name."""
    named: dict[str, Any] = {}
    for spec in specs:
        there = named.setdefault(student_name(str(spec)), spec)
        if there != spec:
            raise ValueError(one_name(student_name(str(spec)), there, spec))
    return named


def one_name(name: str, first: Any, second: Any) -> str:
    """What is said where two students would have one name."""
    return f"students {first} and {second} would both be called {name}; name them in a file: students: {{one: {first}, …}}"


def student_name(spec: str) -> str:
    """A name for a student that has none: `layers:0,2,4` is `layers-0-2-4`, a folder or hub id its last part."""
    last = spec.rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9._]+", "-", last).strip("-.")


def _resolved(settings: Mapping[str, Any], who: str) -> RunConfig:
    try:
        return resolve(settings)
    except ValueError as error:
        raise ValueError(f"{who}: {error}") from None
