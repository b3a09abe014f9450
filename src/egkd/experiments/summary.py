"""Records of an experiment into the figures that `results/glue.json` holds; the tables are made from nothing else.

Scores and differences are in points, 0 to 100 (a correlation of 0.5 is 50).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from egkd.experiments.records import Record
from egkd.experiments.statistics import (
    RESAMPLES,
    Answers,
    Difference,
    TaskSample,
    average,
    holm,
    is_above,
    verdict,
)

VERSION = 1
ABOUT = {
    "score": "points, 0 to 100: the mean of the task's metrics, for MNLI of both evaluation sets",
    "interval": "95 % percentile interval of a paired hierarchical bootstrap over seeds and evaluation examples, "
    "over examples alone where there is one seed",
    "test": "Student's t of the difference over its standard error, of seeds and of a paired bootstrap over examples, with "
    "Satterthwaite's degrees of freedom; two-sided",
    "average_test": "the same, of all tasks' variances",
    "correction": "Holm, over the methods compared with the baseline on the same task, or on average",
    "better": "interval above 0, at least three seeds on every task, corrected p below 0.05",
    "worse": "interval below 0, without correction",
    "mark": "best and second, where the differences to all places below have intervals above 0 and p below 0.05, uncorrected "
    "(at least three seeds)",
    "cost": "training seconds over the baseline's with the same seed, the median over seeds; on average their geometric mean",
    "explanations": "rank correlation of the student's word scores with the teacher's, by explainer, the mean over examples",
}
"""What the figures are; stands in the file itself."""


def summarise(
    records: Sequence[Record], settings: Mapping[str, Any], baseline: str, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """All figures. Raises ValueError, in one line, for predictions that are missing or cannot be compared."""
    records = [part for record in records for part in (record, *record.elsewhere())]
    tasks = _names(settings.get("tasks"), [record.task for record in records])
    students = _names(settings.get("students"), [record.student for record in records])
    return {
        "version": VERSION,
        "about": ABOUT | {"resamples": resamples},
        "baseline": baseline,
        "settings": dict(settings),
        "tasks": {task: _task([record for record in records if record.task == task]) for task in tasks},
        "students": {
            student: _student([record for record in records if record.student == student], tasks, settings, baseline, resamples)
            for student in students
        },
    }


def _names(planned: Any, found: Sequence[str]) -> list[str]:
    """The names met, in the order of the settings."""
    order = list(planned) if isinstance(planned, Mapping | list | tuple) else []
    return [name for name in dict.fromkeys([*order, *found]) if name in found]


def _task(records: Sequence[Record]) -> dict[str, Any]:
    first = records[0]
    teachers = [record.teacher_score for record in records]
    return {
        "data": first.data,
        "metrics": list(first.metrics),
        "beside": first.beside,
        "splits": list(first.splits),
        "examples": {split: len(found.labels_N) for split, found in first.predictions().items() if split in first.splits},
        "teacher": 100 * float(np.mean(teachers)),
        "teacher_scores": first.teacher_scores,
        "teachers": _teachers(records),
    }


def _teachers(records: Sequence[Record]) -> int:
    """How many teachers these students had, told by what they answer to the same examples: on another processor nearly so."""
    heard: dict[bytes, list[np.ndarray]] = {}
    for record in records:
        for split, told in record.predictions().items():
            answers_N = told.teacher_NC[:, 0] if record.kind == "regression" else told.teacher_NC.argmax(1)
            asked = f"{split} {record.positive}".encode() + told.labels_N.astype(float).tobytes()
            teachers = heard.setdefault(asked, [])
            if not any(np.allclose(answers_N, each, atol=1e-3) for each in teachers):
                teachers.append(answers_N)
    return max(len(answers) for answers in heard.values())


def _student(
    records: Sequence[Record], tasks: Sequence[str], settings: Mapping[str, Any], baseline: str, resamples: int
) -> dict[str, Any]:
    """Method -> its figures by task and on average."""
    methods = _names(settings.get("methods"), [record.method for record in records])
    of = {(task, method): [r for r in records if (r.task, r.method) == (task, method)] for task in tasks for method in methods}
    samples = {task: sample for task in tasks if (sample := _sample(task, [r for r in records if r.task == task], resamples))}
    found: dict[str, dict[str, Any]] = {
        method: {
            "tasks": {
                task: _cell(of[task, method], of.get((task, baseline), []), _planned(settings, of[task, method][0]))
                for task in tasks
                if of[task, method]
            }
        }
        for method in methods
    }
    for task, sample in samples.items():
        present = [method for method in methods if of[task, method]]
        cells = {method: found[method]["tasks"][task] for method in present}
        _compare(cells, baseline, sample.seeds, sample.difference)
        _mark(cells, sample.seeds, sample.difference)
    counted = {record.task for record in records if record.beside is None}
    for method in methods:
        cells = {task: cell for task, cell in found[method]["tasks"].items() if task in counted}
        found[method]["average"] = _average(cells, found.get(baseline, {}).get("tasks", {}))

    def shared(first: str, second: str) -> list[TaskSample]:
        return [sample for task, sample in samples.items() if task in counted and sample.seeds(first, second)]

    def difference(first: str, second: str) -> Difference:
        return average(shared(first, second), first, second)

    averages = {method: found[method]["average"] for method in methods}
    _compare(averages, baseline, shared, difference)
    every = set(averages[baseline]["tasks"]) if baseline in averages else set()
    whole = {method: cell for method, cell in averages.items() if set(cell["tasks"]) >= every}
    _mark(whole, shared, difference)
    return found


def _planned(settings: Mapping[str, Any], record: Record) -> int | None:
    """How many seeds the settings ask for, where they say so."""
    tasks = settings.get("tasks")
    entry = tasks.get(record.beside or record.task) if isinstance(tasks, Mapping) else None
    entry = entry if isinstance(entry, Mapping) else {}
    seeds = entry.get("seeds") or settings.get("seeds")
    return len(seeds) if isinstance(seeds, list | tuple) else None


def _sample(task: str, records: Sequence[Record], resamples: int) -> TaskSample | None:
    if not records:
        return None
    runs: dict[tuple[str, int], dict[str, Answers]] = {}
    for record in records:
        told = record.predictions()
        runs[record.method, record.seed] = {
            split: Answers(
                labels_N=told[split].labels_N,
                predictions_N=told[split].student_NC[:, 0].astype(float)
                if record.kind == "regression"
                else told[split].student_NC.argmax(1),
            )
            for split in record.splits
        }
    return TaskSample(task, records[0].metrics, runs, resamples=resamples)


def _cell(records: Sequence[Record], baseline: Sequence[Record], planned: int | None) -> dict[str, Any]:
    """One method on one task, seed by seed."""
    records = sorted(records, key=lambda record: record.seed)
    scores = [100 * record.score for record in records]
    theirs = {record.seed: record.seconds for record in baseline}
    ratios = [record.seconds / theirs[record.seed] for record in records if theirs.get(record.seed)]
    return {
        "seeds": [record.seed for record in records],
        "planned": planned,
        "scores": scores,
        "mean": float(np.mean(scores)),
        "sd": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        "details": _by_seed([record.scores for record in records]),
        "fidelity": [record.fidelity for record in records],
        "explanations": _by_seed([record.explanations for record in records]),
        "floors": _by_seed([record.floors for record in records]),
        "ceilings": _by_seed([record.ceilings for record in records]),
        "seconds": [record.seconds for record in records],
        "lessons_seconds": [record.lessons_seconds for record in records],
        "cost": float(np.median(ratios)) if ratios else None,
        "difference": None,
        "mark": "",
    }


def _by_seed(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Nested figures of several runs into lists, one value per run."""
    names = list(dict.fromkeys(name for one in each for name in one))
    nested = {name for name in names if any(isinstance(one.get(name), Mapping) for one in each)}
    return {
        name: _by_seed([one.get(name) or {} for one in each]) if name in nested else [one.get(name) for one in each]
        for name in names
    }


def _average(cells: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    """Over the tasks on which the method and the baseline have a seed in common."""
    tasks = [task for task in cells if set(cells[task]["seeds"]) & set(baseline.get(task, {}).get("seeds", []))]
    chosen = [cells[task] for task in tasks]
    explainers = list(dict.fromkeys(name for cell in chosen for name in cell["explanations"]))
    costs = [cell["cost"] for cell in chosen]
    return {
        "tasks": tasks,
        "mean": _of_all([cell["mean"] for cell in chosen]),
        "fidelity": _of_all([_known(cell["fidelity"]) for cell in chosen]),
        **{part: _explained([cell[part] for cell in chosen], explainers) for part in ("explanations", "floors", "ceilings")},
        "cost": math.exp(float(np.mean(np.log(costs)))) if costs and all(costs) else None,
        "difference": None,
        "mark": "",
    }


def _explained(each: Sequence[Mapping[str, Any]], explainers: Sequence[str]) -> dict[str, float | None]:
    return {name: _of_all([_known(one.get(name, [])) for one in each]) for name in explainers}


def _of_all(values: Sequence[float | None]) -> float | None:
    """The mean over tasks; none where one of them has no value, as it would be over others than elsewhere."""
    return None if not values or None in values else float(np.mean(values))  # type: ignore[arg-type]


def _known(values: Sequence[float | None]) -> float | None:
    """The mean over the seeds that have a value."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


Shared = Callable[[str, str], Sequence[Any]]
"""What two methods have in common, and can be compared on."""
Differ = Callable[[str, str], Difference]


def _compare(cells: Mapping[str, dict[str, Any]], baseline: str, shared: Shared, difference: Differ) -> None:
    """Write into `cells`, by method, how each differs from the baseline."""
    others = [name for name in cells if name != baseline and shared(name, baseline)]
    found = [difference(name, baseline) for name in others]
    for name, one, p_holm in zip(others, found, holm([one.p for one in found]), strict=True):
        cells[name]["difference"] = {
            "mean": 100 * one.mean,
            "low": 100 * one.low,
            "high": 100 * one.high,
            "p": one.p,
            "p_holm": p_holm,
            "runs": one.runs,
            "seeds": one.seeds,
            "verdict": verdict(one, p_holm),
        }


def _mark(cells: Mapping[str, dict[str, Any]], shared: Shared, difference: Differ) -> None:
    """Write into `cells` which are best and second, where they are surely better than all that follow."""
    known = [name for name in cells if cells[name]["mean"] is not None and math.isfinite(cells[name]["mean"])]
    order = sorted(known, key=lambda name: -cells[name]["mean"])
    for place, mark in enumerate(("best", "second")):
        rest = order[place + 1 :]
        if not rest or not all(shared(order[place], other) and is_above(difference(order[place], other)) for other in rest):
            return  # nobody is second to a best that is none
        cells[order[place]]["mark"] = mark
