"""What the tables of an experiment show, in sentences."""

from collections.abc import Iterator, Mapping
from typing import Any

from egkd.report.wording import listed, measure


def verdicts(found: Mapping[str, Any]) -> list[str]:
    """For each student who is surely better or worse than the baseline; `found` is what `glue.json` holds."""
    return [_verdict(found, student, methods) for student, methods in found["students"].items()]


def _compared(methods: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Method, task (or `average`), and the difference to the baseline, wherever there is one."""
    for method, one in methods.items():
        for task, cell in [*one["tasks"].items(), ("average", one["average"])]:
            if cell["difference"] is not None:
                yield method, task, cell["difference"]


def _verdict(found: Mapping[str, Any], student: str, methods: Mapping[str, Any]) -> str:
    name = f"{student}: " if len(found["students"]) > 1 else ""
    compared = list(_compared(methods))
    if not compared:
        return f"{name}Nothing can be compared with {found['baseline']} yet."
    said = []
    for kind in ("better", "worse"):
        chosen = [
            f"{method} ({'on average' if task == 'average' else task})"
            for method, task, difference in compared
            if difference["verdict"] == kind
        ]
        said.append(f"Significantly {kind}: {listed(chosen) if chosen else 'none'}.")
    return f"{name}{len(compared)} comparisons with {found['baseline']}. {' '.join(said)}"


def reading(found: Mapping[str, Any]) -> list[str]:
    """How to read the tables."""
    about, baseline, students = found["about"], found["baseline"], found["students"].values()
    alone = any(difference.get("seeds") == 1 for methods in students for _, _, difference in _compared(methods))
    strange = any(task["beside"] for task in found["tasks"].values())
    difference = f"Difference: the method minus {baseline}, same seeds, same examples; in brackets the {about['interval']}"
    return [
        f"Scores: {about['score']}; mean ± standard deviation over seeds, their number in brackets.",
        f"Tasks: {'; '.join(_scored(name, task) for name, task in found['tasks'].items())}.",
        *(["Sets from elsewhere (a task on another set) are compared by themselves and in no average."] if strange else []),
        f"Averages are over the tasks that a method and {baseline} both have{_partial(found)}.",
        f"{difference} ({about['resamples']:,} resamples).",
        *(["Some comparisons rest on one seed: their intervals say nothing about other seeds."] if alone else []),
        *_taught_differently(found),
        f"p on a task: {about['test']}. p on average: {about['average_test']}. Correction: {about['correction']}.",
        f"▲ better than {baseline}: {about['better']}. ▼ worse: {about['worse']}.",
        f"Set off: {about['mark']}.",
        f"Explanations: {about['explanations']}, averaged over seeds and tasks; at the teacher that of its twin.",
        "Agreement of answers: the share of examples that student and teacher predict alike; in regression the correlation.",
        f"Cost: {about['cost']}; lessons are shared and not in it.",
    ]


def _taught_differently(found: Mapping[str, Any]) -> list[str]:
    """A warning for tasks whose students had several teachers: an experiment that went on elsewhere fine-tuned them again."""
    several = [f"{name} ({task['teachers']})" for name, task in found["tasks"].items() if task.get("teachers", 1) > 1]
    if not several:
        return []
    return [f"Not all students of a task had the same teacher: {listed(several)}. What differs may be the teachers' doing."]


def _scored(name: str, task: Mapping[str, Any]) -> str:
    metrics = " and ".join(measure(metric).label for metric in task["metrics"])
    sets = " and ".join(f"{task['examples'][split]:,} examples of {split}" for split in task["splits"])
    return f"{name}: {metrics} on {sets}"


def _partial(found: Mapping[str, Any]) -> str:
    """Which tasks these are, where methods differ in them."""
    chosen = {
        f"{student}, {method}" if len(found["students"]) > 1 else method: one["average"]["tasks"]
        for student, methods in found["students"].items()
        for method, one in methods.items()
    }
    if len({tuple(tasks) for tasks in chosen.values()}) < 2:
        return ""
    return ": " + "; ".join(f"{name} on {listed(tasks) if tasks else 'none'}" for name, tasks in chosen.items())
