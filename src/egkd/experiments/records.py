"""One finished run of a grid, in short: what the tables and their statistics are made of.

Shapes: N evaluation examples, C classes (1 in regression).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError

from egkd.experiments.kept import arrays_of
from egkd.report.run import Metrics, Scores


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Answers of one run to one evaluation set."""

    labels_N: np.ndarray
    teacher_NC: np.ndarray
    student_NC: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Record:
    """A run of one method with one seed. Scores are fractions, as in its `metrics.json`."""

    task: str
    """Name of the grid's entry; several entries may be about one data set."""
    student: str
    method: str
    seed: int
    data: str
    """Name of the task in GLUE, or what the user's own is called."""
    kind: Literal["classification", "regression"]
    metrics: tuple[str, ...]
    """The task's own metrics."""
    splits: tuple[str, ...]
    """Evaluation sets that count for the score."""
    scores: Scores
    """The student's, by evaluation set and metric."""
    teacher_scores: Scores
    fidelity: float | None
    """Share of the examples of the first set answered as the teacher does; their correlation in regression."""
    explanations: dict[str, float | None]
    """Explainer -> mean rank correlation with the teacher's word scores."""
    floors: dict[str, float | None]
    """The same of scores in random order."""
    ceilings: dict[str, float | None]
    """The same of a twin of the teacher, which differs from it by its seed alone; empty without one."""
    seconds: float
    """Of training."""
    lessons_seconds: float
    """Of building lessons, or opening those that another run has built."""
    folder: Path
    beside: str | None = None
    """The task that this run was trained on, where it is judged on a set from elsewhere."""
    positive: int = 1
    """The class that F1 is of."""

    @property
    def score(self) -> float:
        """GLUE's task score: the mean over the task's metrics and, for MNLI, both evaluation sets."""
        return _task_score(self.scores, self.splits, self.metrics)

    @property
    def teacher_score(self) -> float:
        """The teacher's."""
        return _task_score(self.teacher_scores, self.splits, self.metrics)

    def elsewhere(self) -> "list[Record]":
        """This run as judged on each set behind those that count, as tasks of their own; reasons are compared on the first."""
        nothing: dict[str, float | None] = {}
        return [
            replace(
                self,
                task=f"{self.task} on {split}",
                splits=(split,),
                fidelity=None,
                explanations=nothing,
                floors=nothing,
                ceilings=nothing,
                beside=self.task,
            )
            for split in self.scores
            if split not in self.splits
        ]

    def predictions(self) -> dict[str, Predictions]:
        """Answers by evaluation set, read now; of two classes the positive one is 1.

        Raises ValueError where they are missing or broken.
        """
        arrays = arrays_of(self.folder)
        try:
            found = {
                split: Predictions(
                    labels_N=arrays[f"{split}/labels"],
                    teacher_NC=arrays[f"{split}/teacher"],
                    student_NC=arrays[f"{split}/student"],
                )
                for split in self.scores
            }
        except KeyError as error:
            problem = f"{self.folder / 'predictions.npz'} is broken (it has no {error})"
            raise ValueError(f"{problem}: delete that folder, and run it again") from None
        return {split: each if self.positive else _turned(each) for split, each in found.items()}


def _turned(found: Predictions) -> Predictions:
    """Of two classes: the other one first. More have no order that a metric would mind."""
    if found.student_NC.shape[1] != 2:
        return found
    return Predictions(labels_N=1 - found.labels_N, teacher_NC=found.teacher_NC[:, ::-1], student_NC=found.student_NC[:, ::-1])


def _is_mnli(task: str, split: str) -> bool:
    """Whether this is one of MNLI's two sets, which count both."""
    return task == "mnli" and split in ("dev_matched", "dev_mismatched")


def _task_score(scores: Scores, splits: tuple[str, ...], metrics: tuple[str, ...]) -> float:
    values = [scores[split][metric] for split in splits for metric in metrics]
    return float(np.mean([np.nan if value is None else value for value in values]))


def read_record(folder: Path, *, task: str, student: str, method: str, seed: int) -> Record | None:
    """What run folder `folder` says; None where it is not finished. Raises ValueError, in one line, where it is broken."""
    path = Path(folder) / "metrics.json"
    if not path.is_file():
        return None
    try:
        found = Metrics.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
        raise ValueError(f"{path} is broken ({reason}): delete it and run it again") from None
    missing = [name for name in found.task.metrics if any(name not in by for by in found.student.scores.values())]
    if not found.student.scores or not found.task.metrics or missing or found.training.seconds is None:
        what = "training time" if not missing and found.task.metrics and found.student.scores else "scores of the task"
        raise ValueError(f"{path} has no {what}: delete it and run it again")
    sets = tuple(found.student.scores)
    first_fidelity = found.student.fidelity.get(sets[0], {})
    closeness = first_fidelity.get("agreement") or first_fidelity.get("correlation")
    return Record(
        task=task,
        student=student,
        method=method,
        seed=seed,
        data=found.task.name,
        kind=found.task.kind,
        metrics=found.task.metrics,
        splits=tuple(split for split in sets if split == sets[0] or _is_mnli(found.task.name, split)),
        scores=found.student.scores,
        teacher_scores=found.teacher.scores,
        fidelity=None if closeness is None else closeness.mean,
        explanations=_ranks(found, "all"),
        floors=_ranks(found, "floor"),
        ceilings=_ranks(found, "ceiling"),
        seconds=found.training.seconds,
        lessons_seconds=found.training.lessons_seconds or 0.0,
        folder=Path(folder),
        positive=found.task.positive,
    )


def _ranks(found: Metrics, which: str) -> dict[str, float | None]:
    """Mean rank correlation by explainer."""
    explained = found.student.explanations.items()
    return {name: groups[which]["spearman"].mean for name, groups in explained if "spearman" in groups.get(which, {})}
