"""Teacher and students side by side: who is compared, and in which rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from egkd.report.run import Estimate, Figures, Latency, Model, Run, Scores, Voter
from egkd.report.wording import (
    GROUPS,
    NONE,
    count,
    duration,
    explainer,
    finite,
    listed,
    margin,
    measure,
    milliseconds,
    size,
    written,
)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One model of the comparison."""

    title: str
    model: Model
    run: Run
    place: int | None
    """Which of the runs a student belongs to; None for a teacher."""
    teacher: int
    """Which of the teachers it is, or learned from."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A figure in words."""

    text: str = NONE
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measure of all models."""

    label: str
    note: str
    cells: tuple[Cell, ...]
    minor: bool = False
    """Whether it goes below the row before it."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """Rows of one kind."""

    title: str
    rows: tuple[Row, ...]


def run_names(runs: Sequence[Run]) -> list[str]:
    """The name of each run's folder, with as many parents as it takes to tell them apart."""
    parts = [Path(run.folder).absolute().parts for run in runs]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{part[-1]} ({place})" for place, part in enumerate(parts, start=1)]


def columns(runs: Sequence[Run]) -> list[Column]:
    """Each teacher, followed by its students. Runs share a teacher where its name, size and scores are the same."""
    names = ["student"] if len(runs) == 1 else run_names(runs)
    teachers: list[list[int]] = []
    for place, run in enumerate(runs):
        known = (group for group in teachers if _same(runs[group[0]].metrics.teacher, run.metrics.teacher))
        group = next(known, None)
        if group is None:
            teachers.append([place])
        else:
            group.append(place)
    chosen = []
    for teacher, group in enumerate(teachers):
        first = runs[group[0]]
        title = "teacher" if len(teachers) == 1 else f"teacher of {listed([names[place] for place in group])}"
        chosen.append(Column(title=title, model=first.metrics.teacher, run=first, place=None, teacher=teacher))
        chosen += [
            Column(title=names[place], model=runs[place].metrics.student, run=runs[place], place=place, teacher=teacher)
            for place in group
        ]
    return chosen


def _same(one: Model, other: Model) -> bool:
    return (one.name, one.parameters) == (other.name, other.parameters) and str(one.scores) == str(other.scores)


def students(runs: Sequence[Run]) -> list[Column]:
    """The students in the order of the runs."""
    return sorted((column for column in columns(runs) if column.place is not None), key=lambda column: column.place or 0)


def _names(dictionaries: Sequence[Sequence[T]]) -> list[T]:
    """All keys, each once, in the order they are met."""
    return list(dict.fromkeys(name for names in dictionaries for name in names))


def _row(label: str, cells: Sequence[Cell], note: str = "") -> list[Row]:
    """A row, unless nobody has anything to say in it."""
    found = any(cell.text != NONE for cell in cells)
    return [Row(label=label, note=note, cells=tuple(cells))] if found else []


def comparison(runs: Sequence[Run]) -> list[Section]:
    """The whole table."""
    models = columns(runs)
    explainers = explainer_names(runs)
    sections = [
        Section(title="Task", rows=tuple(_task_rows(models))),
        Section(title="Closeness to the teacher’s predictions", rows=tuple(_fidelity_rows(models))),
        Section(title="Several teachers", rows=tuple(_several_rows(models))),
        *(
            Section(title=f"Explanation agreement by {explainer(name)}", rows=tuple(_explanation_rows(models, name)))
            for name in explainers
        ),
        Section(title="Reasons told in the same pass", rows=tuple(_own_reasons_rows(models))),
        Section(title="Cost", rows=tuple(_cost_rows(models))),
    ]
    return [section for section in sections if section.rows]


def explainer_names(runs: Sequence[Run]) -> list[str]:
    """The explainers by which the students were compared with their teachers."""
    return _names([list(run.metrics.student.explanations) for run in runs])


def _task_rows(models: Sequence[Column]) -> list[Row]:
    rows = []
    for split in _names([list(column.model.scores) for column in models]):
        for name in _names([list(column.model.scores.get(split, {})) for column in models]):
            values = [column.model.scores.get(split, {}).get(name) for column in models]
            rows += _row(measure(name).label, [Cell(text=written(name, value)) for value in values], split)
    return rows


def _estimated(name: str, estimates: Sequence[Estimate]) -> list[Cell]:
    return [Cell(text=written(name, estimate.mean), detail=margin(name, estimate)) for estimate in estimates]


def _fidelity_rows(models: Sequence[Column]) -> list[Row]:
    rows = []
    for split in _names([list(column.model.fidelity) for column in models]):
        for name in _names([list(column.model.fidelity.get(split, {})) for column in models]):
            estimates = [column.model.fidelity.get(split, {}).get(name, Estimate()) for column in models]
            rows += _row(measure(name).label, _estimated(name, estimates), split)
    return rows


def _several_rows(models: Sequence[Column]) -> list[Row]:
    """Of each of several teachers and of their vote: its scores, below its teacher, and how close to it the student came."""
    rows = []
    told = [{voter.name: voter for voter in column.run.metrics.teachers} for column in models]
    for voter in _names([list(voters) for voters in told]):
        for taught in (False, True):
            found = [
                voters.get(voter, Voter()) if taught == (column.place is not None) else Voter()
                for column, voters in zip(models, told, strict=True)
            ]
            figures = [each.fidelity if taught else _as_figures(each.scores) for each in found]
            for split in _names([list(each) for each in figures]):
                for name in _names([list(each.get(split, {})) for each in figures]):
                    estimates = [each.get(split, {}).get(name, Estimate()) for each in figures]
                    note = f"{split}, {'with' if taught else 'of'} {_weighted(voter, models)}"
                    rows += _row(measure(name).label, _estimated(name, estimates), note)
    return rows


def _as_figures(scores: Scores) -> Figures:
    return {split: {name: Estimate(mean=value) for name, value in values.items()} for split, values in scores.items()}


def _weighted(voter: str, models: Sequence[Column]) -> str:
    weights = {each.weight for column in models for each in column.run.metrics.teachers if each.name == voter}
    shared = len(weights) == 1 and (weight := weights.pop()) is not None and voter != "vote"
    return f"{voter} (weight {weight:g})" if shared else voter


AGREEMENT_SHOWN = ("spearman", "top20")  # metrics.json has the other measures too


def _explanation_rows(models: Sequence[Column], name: str) -> list[Row]:
    rows = []
    looked_at = [column.model.explanations.get(name, {}) for column in models]
    subsets = _names([list(figures) for figures in looked_at])
    found_kinds = _names([list(figures.get(which, {})) for which in subsets for figures in looked_at])
    for kind in (kind for kind in found_kinds if kind in AGREEMENT_SHOWN):
        for which in subsets:
            estimates = [figures.get(which, {}).get(kind, Estimate()) for figures in looked_at]
            found = _row(measure(kind).label, _estimated(kind, estimates), GROUPS.get(which, which.replace("_", " ")))
            rows += [replace(row, minor=which != "all") for row in found]
    return rows


def _own_reasons_rows(models: Sequence[Column]) -> list[Row]:
    """Of students with a head: like whom it reasons, how faithfully beside other ways to ask, and what that costs."""
    rows = []
    told = [column.model.reasons for column in models]
    for whose, note in (("student", "its own occlusion"), ("teacher", "the teacher’s occlusion")):
        estimates = [reasons.agreement.get(whose, {}).get("all", {}).get("spearman", Estimate()) for reasons in told]
        rows += _row(measure("spearman").label, _estimated("spearman", estimates), note)
    ways = _names([list(reasons.faithfulness) for reasons in told])
    for kind in _names([list(figures) for reasons in told for figures in reasons.faithfulness.values()]):
        for place, way in enumerate(ways):
            estimates = [reasons.faithfulness.get(way, {}).get(kind, Estimate()) for reasons in told]
            found = _row(measure(kind).label, _estimated(kind, estimates), "" if place == 0 else explainer(way))
            rows += [replace(row, minor=place > 0) for row in found]
    for name, note in (("reasons", "with reasons"), ("plain", "without")):
        for batch in _names([list(reasons.latency.get(name, Latency()).ms_per_example) for reasons in told]):
            times = [reasons.latency.get(name, Latency()).ms_per_example.get(batch) for reasons in told]
            rows += _row("ms per example", [Cell(text=milliseconds(time)) for time in times], f"{note}, batch of {batch}")
    return rows


def _cost_rows(models: Sequence[Column]) -> list[Row]:
    rows = _row("parameters", [Cell(text=count(column.model.parameters)) for column in models])
    rows += _row("size on disk", [Cell(text=size(column.model.bytes)) for column in models])
    for batch in sorted({batch for column in models for batch in column.model.latency.ms_per_example}):
        times = [column.model.latency.ms_per_example.get(batch) for column in models]
        rows += _row("ms per example", [Cell(text=milliseconds(time)) for time in times], f"batch of {batch}")
    trainings = [column.run.metrics.training if column.place is not None else None for column in models]
    rows += _row("training", [Cell(text=duration(t.seconds if t else None)) for t in trainings])
    rows += _row("steps", [Cell(text=f"{t.steps:,}" if t and t.steps is not None else NONE) for t in trainings])
    rows += _row("teacher’s lessons", [Cell(text=duration(t.lessons_seconds if t else None)) for t in trainings])
    return rows


def headline(run: Run) -> tuple[str, str] | None:
    """Evaluation set and metric that stand for the task, as far as the student has a score at all."""
    for split, scores in run.metrics.student.scores.items():
        for name in (*run.metrics.task.metrics, *scores):
            if name in scores:
                return split, name
    return None


def headline_fidelity(model: Model, name: str) -> Estimate:
    """A measure of closeness on the first evaluation set."""
    return next(iter(model.fidelity.values()), {}).get(name, Estimate())


def bound(runs: Sequence[Run], name: str, which: str) -> float | None:
    """The `floor` or the `ceiling` of that rank correlation, the mean over the runs that tell it."""
    means = [rank_agreement(run.metrics.student, name, which).mean for run in runs]
    told = [mean for mean in means if mean is not None and finite(mean)]
    return sum(told) / len(told) if told else None


def rank_agreement(model: Model, name: str, which: str = "all") -> Estimate:
    """The rank correlation of a student's explanations with its teacher's."""
    return model.explanations.get(name, {}).get(which, {}).get("spearman", Estimate())
