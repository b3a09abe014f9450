"""Where examples come from: a GLUE task, the user's own files, or the embedded demo data."""

from dataclasses import dataclass
from typing import Literal

from datasets import Dataset


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be predicted."""

    name: str
    kind: Literal["classification", "regression"]
    label_names: tuple[str, ...] = ()
    """Class names in the order of the label ids; empty for regression."""
    metrics: tuple[str, ...] = ("accuracy",)
    """Names of the task's own metrics, the first one is its headline."""

    @property
    def num_labels(self) -> int:
        """Width of the model's output: one per class, 1 for regression."""
        return len(self.label_names) or 1


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """A task with its examples: datasets of `text` (str), perhaps `text_pair` (str), `label` (int, float or None)."""

    task: Task
    train: Dataset
    evals: dict[str, Dataset]
    """Evaluation sets by name ("dev"; MNLI has "dev_matched" and "dev_mismatched"); the first one is the headline."""
    notes: tuple[str, ...] = ()
    """What was decided for the user (guessed columns, rows dropped), to be printed."""
