"""What came of a sweep: every trial, the values chosen for each method, and a grid in which the chosen ones meet the dev set.

`results/` of a sweep's folder holds `sweep.json` (all of it), `sweep.md` (for people) and `grid.yaml` (for `egkd glue`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egkd.config import to_yaml
from egkd.experiments.grid import student_name
from egkd.experiments.space import Range, SweepConfig, nested, spelled
from egkd.runs import read_json, write_json, write_text


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep."""

    number: int
    state: str
    """`complete`, `running` (perhaps by a worker that died), or `fail`: its score was no number."""
    values: dict[str, Any]
    score: float | None
    folder: Path


def best(trials: Sequence[Trial]) -> Trial | None:
    """The first of those with the highest score."""
    done = [trial for trial in trials if trial.score is not None]
    return max(done, key=lambda trial: trial.score or 0.0, default=None)


def write_results(config: SweepConfig, out: Path, trials: Mapping[str, Sequence[Trial]], metric: str) -> None:
    """Write `results/` of the sweep in `out` anew."""
    folder = out / "results"
    folder.mkdir(exist_ok=True)
    chosen = {method: found for method, its in trials.items() if (found := best(its)) is not None}
    write_json(folder / "sweep.json", _whole(config, out, trials, metric))
    write_text(folder / "sweep.md", "\n".join(_page(config, trials, metric)) + "\n")
    grid = grid_of(config, {method: trial.values for method, trial in chosen.items()})
    head = f"# The best of {config.trials} trials of each method in {out.name}, told by rows held out of train.\n"
    missing = [method for method in trials if method not in chosen]
    head += f"# Not in it, because no trial of theirs has a score: {', '.join(missing)}.\n" if missing else ""
    write_text(folder / "grid.yaml", head + to_yaml(grid))


def grid_of(config: SweepConfig, chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Settings of a grid that runs the methods with the values chosen for this task, judged on its own evaluation data.

    Laid over one another, grids of several tasks make one: each task keeps the settings that its sweep had.
    """
    run = {name: value for name, value in config.base.items() if name not in ("data", "student", "teacher", "seed", "evaluate")}
    data = {name: value for name, value in config.base["data"].items() if name != "held_out"}
    task, teacher = _task(data), config.base.get("teacher")
    student = str(config.base.get("student", "layers:3"))
    own = {"methods": {method: nested(values) for method, values in chosen.items() if values}}
    grid: dict[str, Any] = {
        "tasks": {task: {"data": data} | run | ({"teacher": list(teacher)} if isinstance(teacher, list | tuple) else {}) | own},
        "students": {student_name(student): student},
        "methods": {method: {k: v for k, v in config.methods[method].items() if k != "space"} for method in chosen},
        "base": {name: config.base[name] for name in ("evaluate",) if name in config.base},
    }
    if isinstance(teacher, str | Path):
        grid["teachers"] = {task: str(teacher)}
    if "plain" not in config.methods and chosen:
        grid["baseline"] = next(iter(chosen))
    return grid


def _task(data: Mapping[str, Any]) -> str:
    """A name for a task: GLUE's, or of one's own files as tables call it, the folder's where the file is called train."""
    if data.get("task"):
        return str(data["task"])
    files = data.get("train") or data.get("eval") or "train"
    file = Path(files if isinstance(files, str | Path) else files[0]).absolute()
    return student_name(file.parent.name if file.stem.lower() == "train" else file.stem)


def _whole(config: SweepConfig, out: Path, trials: Mapping[str, Sequence[Trial]], metric: str) -> dict[str, Any]:
    methods: dict[str, Any] = {}
    for method, its in trials.items():
        found = best(its)
        methods[method] = {
            "budget": config.trials,
            "space": {name: _space(values) for name, values in config.space_of(method).items()},
            "best": None if found is None else {"trial": found.number, "score": found.score, "values": found.values},
            "trials": [
                {
                    "number": trial.number,
                    "state": trial.state,
                    "score": trial.score,
                    "values": trial.values,
                    "seconds": _seconds(trial),
                    "folder": str(trial.folder.relative_to(out)),
                }
                for trial in its
            ],
        }
    return {"metric": metric, "settings": config.model_dump(mode="json"), "methods": methods}


def _space(values: Any) -> Any:
    return values.model_dump(exclude_none=True) if isinstance(values, Range) else list(values)


def _seconds(trial: Trial) -> float | None:
    file = trial.folder / "training.json"
    return read_json(file)["seconds"] if file.exists() else None


def _page(config: SweepConfig, trials: Mapping[str, Sequence[Trial]], metric: str) -> list[str]:
    lines = [
        "# Sweep",
        "",
        f"{config.trials} trials of each method. Scores are {metric} on rows held out of train; the dev set was not looked at.",
        "The best of many scores flatters: these choose values, and say nothing of how methods compare.",
        "",
        "## Chosen values",
        "",
        "| method | trials | best | values |",
        "|---|---:|---:|---|",
    ]
    for method, its in trials.items():
        found, done = best(its), sum(trial.state != "running" for trial in its)
        told = ("–", "–") if found is None else (f"{found.score:.4f}", spelled(found.values) or "–")
        lines.append(f"| {method} | {done} of {config.trials} | {' | '.join(told)} |")
    lines += ["", "## Search space", "", "| method | setting | values |", "|---|---|---|"]
    for method in trials:
        lines += [f"| {method} | {name} | {_range(values)} |" for name, values in config.space_of(method).items()]
    for method, its in trials.items():
        names = list(config.space_of(method))
        lines += ["", f"## {method}", "", "| trial | score | " + " | ".join(names) + " |", "|---:" * (2 + len(names)) + "|"]
        for trial in its:
            score = trial.state if trial.score is None else f"{trial.score:.4f}"
            values = [spelled({name: trial.values[name]}).removeprefix(f"{name} ") for name in names]
            lines.append(f"| {' | '.join([str(trial.number), score, *values])} |")
    return lines


def _range(values: Any) -> str:
    if not isinstance(values, Range):
        return ", ".join(map(str, values))
    how = ", by ratio" if values.log else f", every {values.step:g}" if values.step else ""
    return f"{values.low:g} to {values.high:g}{how}"
