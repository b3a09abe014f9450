"""The examples that the `data` section of a run's settings describes."""

from typing import Any

from egkd.config_data import DataConfig
from egkd.data import TaskData
from egkd.data.bundled import load_movie_reviews
from egkd.data.files import load_files
from egkd.data.glue import load_glue
from egkd.data.unlabeled import with_unlabeled


def load_data(config: DataConfig) -> TaskData:
    """The task and its examples. Raises ValueError."""
    data = _labelled(config)
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
