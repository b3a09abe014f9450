"""Finished run folders that nobody trained: answers as wished, and the metrics that follow from them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egkd.data import Task
from egkd.evaluate.scores import task_scores
from egkd.experiments.records import Record, read_record
from egkd.runs import write_arrays, write_json

TASKS = {
    "sst2": Task(name="sst2", kind="classification", label_names=("negative", "positive")),
    "mrpc": Task(name="mrpc", kind="classification", label_names=("no", "yes"), metrics=("f1", "accuracy")),
    "stsb": Task(name="stsb", kind="regression", metrics=("pearson", "spearmanr")),
    "mnli": Task(name="mnli", kind="classification", label_names=("entailment", "neutral", "contradiction")),
}


def answers(task: Task, gain: float, seed: int, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N], the same for every seed, and logits [N, C] the better the larger `gain` is."""
    rng = np.random.default_rng(len(task.name))
    own = np.random.default_rng(seed)
    labels_N: np.ndarray
    if task.kind == "regression":
        labels_N = np.round(rng.uniform(0, 5, size=examples), 1)
        return labels_N, (labels_N + np.exp(-gain) * own.normal(size=examples)).astype(np.float32)[:, None]
    labels_N = rng.integers(task.num_labels, size=examples)
    right_N = gain + rng.normal(size=examples) + 0.5 * own.normal(size=examples) > -1
    given_N = np.where(right_N, labels_N, (labels_N + 1) % task.num_labels)
    return labels_N, np.eye(task.num_labels, dtype=np.float32)[given_N]


def _finished_run(
    folder: Path,
    *,
    data: str = "sst2",
    gain: float = 0.0,
    seed: int = 0,
    examples: int = 150,
    splits: tuple[str, ...] = ("dev",),
    seconds: float = 10.0,
    explanations: Mapping[str, float | None] | None = None,
    ceiling: float | None = None,
) -> Path:
    """A run folder with `metrics.json` and `predictions.npz`."""
    task = TASKS[data]
    arrays: dict[str, np.ndarray] = {}
    scores: dict[str, dict[str, dict[str, float]]] = {"teacher": {}, "student": {}}
    for place, split in enumerate(splits):
        for role, quality, own in (("teacher", 2.0, 99), ("student", gain, seed)):
            labels_N, logits_NC = answers(task, quality, own, examples + place)
            arrays |= {f"{split}/labels": labels_N, f"{split}/{role}": logits_NC}
            scores[role][split] = task_scores(task, logits_NC, labels_N)
    explained: dict[str, Any] = {
        name: {"all": {"spearman": {"mean": value, "se": 0.1, "n": 9}}, "floor": {"spearman": {"mean": 0.0}}, "n_skipped": 1}
        for name, value in (explanations or {"occlusion": 0.3}).items()
    }
    if ceiling is not None:
        for groups in explained.values():
            groups["ceiling"] = {"spearman": {"mean": ceiling}}
    folder.mkdir(parents=True, exist_ok=True)
    write_arrays(folder / "predictions.npz", arrays)
    metrics = {
        "task": {"name": data, "kind": task.kind, "label_names": task.label_names, "metrics": task.metrics},
        "teacher": {"name": "t", "scores": scores["teacher"]},
        "student": {
            "name": "s",
            "scores": scores["student"],
            "fidelity": {splits[0]: {"agreement": {"mean": 0.9, "se": 0.01, "n": examples}}},
            "explanations": explained,
        },
        "objectives": [],
        "training": {"seconds": seconds, "lessons_seconds": 1.0, "steps": 3, "examples": 10},
    }
    write_json(folder / "metrics.json", metrics)
    return folder


def _grid(
    folder: Path,
    gains: Mapping[str, float],
    *,
    tasks: tuple[str, ...] = ("sst2", "mrpc"),
    seeds: int = 3,
    students: tuple[str, ...] = ("small",),
    **settings: Any,
) -> list[Record]:
    """Records of all cells of a made-up experiment; `gains` by method."""
    found = []
    for task in tasks:
        for student in students:
            for place, (method, gain) in enumerate(gains.items()):
                for seed in range(seeds):
                    cell = {"task": task, "student": student, "method": method, "seed": seed}
                    own = 100 * place + seed
                    run = _finished_run(folder.joinpath(*map(str, cell.values())), data=task, gain=gain, seed=own, **settings)
                    record = read_record(run, **cell)  # type: ignore[arg-type]
                    assert record is not None
                    found.append(record)
    return found


@pytest.fixture(scope="session")
def finished_run() -> Callable[..., Path]:
    """Make a run folder: `finished_run(folder, data="mrpc", gain=0.3, seed=1)`."""
    return _finished_run


@pytest.fixture(scope="session")
def made_up() -> Callable[..., list[Record]]:
    """Make the cells of an experiment: `made_up(folder, {"plain": 0.0, "guided": 0.3})`."""
    return _grid
