"""Everything that is refused before any long work: wrong settings, and models that could not be used at the end.

Nothing here writes a file.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    get_scheduler,
)
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from egkd.config import RunConfig, check, near
from egkd.data import Task, TaskData
from egkd.explain.base import masks_by
from egkd.models import longest
from egkd.objectives import OBJECTIVES, Objective, Reasons, SelectionGuide
from egkd.objectives.internals import INSTEAD
from egkd.objectives.predictions import check_labelled
from egkd.objectives.reasons import hidden_width
from egkd.students import build_student, load_encoder, load_tokenizer, parse_student
from egkd.students.loading import check_embeds, loaded
from egkd.teaching import check_tokens

_LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "learning_rate": 0,
}
_ONLY: dict[str, tuple[Any, str]] = {
    "label_smoothing_factor": (0, "what a student matches are objectives; set objectives.labels.weight lower instead"),
    "eval_do_concat_batches": (True, "scores are of a whole evaluation set"),
    "batch_eval_metrics": (False, "scores are of a whole evaluation set"),
}
"""What `TrainingArguments` know and we do not, with the reason."""
_ORDERS = ("group_by_length", "random", "sequential", "batch_rebalance")


def objectives_of(config: RunConfig) -> list[Objective]:
    """The objectives that the settings name. Raises ValueError for unknown ones or wrong settings."""
    unknown = [name for name in config.objectives if name not in OBJECTIVES]
    if unknown:
        raise ValueError(f"unknown objective {unknown[0]!r}; {near(unknown[0], list(OBJECTIVES))}")
    return [check(OBJECTIVES[name], settings, f"objectives.{name}") for name, settings in config.objectives.items()]


def training_arguments(settings: Mapping[str, Any], output_dir: Path, section: str) -> TrainingArguments:
    """`TrainingArguments` from settings. Raises ValueError for unknown ones, with the near miss."""
    known = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ValueError(f"unknown setting '{section}.{unknown[0]}'; {near(unknown[0], known)}")
    if "output_dir" in settings:
        raise ValueError(f"{section}.output_dir is the run folder's own; use --out")
    fast = torch.accelerator.is_available()  # without one, pinning memory only warns, and processes do not find each other
    pinned = {"dataloader_pin_memory": fast, "use_cpu": not fast}
    checked = {name: _of_type(name, value, section) for name, value in settings.items()}
    for name, least in _LEAST.items():
        if name in checked and not checked[name] >= least:
            raise ValueError(f"{section}.{name}: expected {least} or more, found {checked[name]:g}")
    for name, (only, why) in _ONLY.items():
        if checked.get(name, only) != only:
            raise ValueError(f"{section}.{name}: found {checked[name]}, expected {only}: {why}")
    order = checked.get("train_sampling_strategy", _ORDERS[0])
    if order not in _ORDERS:
        raise ValueError(f"{section}.train_sampling_strategy: found {order!r}; {near(order, list(_ORDERS))}")
    if checked.get("max_steps", -1) <= 0 and not 0 < checked.get("num_train_epochs", 1) < math.inf:
        raise ValueError(f"{section}.num_train_epochs: expected a number above 0, found {checked['num_train_epochs']:g}")
    try:
        arguments = TrainingArguments(output_dir=str(output_dir), **(pinned | checked))
        for callback in get_reporting_integration_callbacks(arguments.report_to):
            callback()  # says so where its package is missing
        if not arguments.optim_target_modules:
            _rehearse_optimizer(arguments)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise ValueError(f"{section}: {' '.join(str(error).split())}") from None
    return arguments


def _rehearse_optimizer(arguments: TrainingArguments) -> None:
    """Set up an optimizer and its schedule once, which fail in many ways."""
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
    if kind.__module__.startswith("torch.optim"):  # others ask for models, or for a GPU
        optimizer = kind([nn.Parameter(torch.zeros(1))], **settings)
        options: Any = arguments.lr_scheduler_kwargs
        get_scheduler(arguments.lr_scheduler_type, optimizer, 1, 10, scheduler_specific_kwargs=options)


def choose_best_by(arguments: TrainingArguments, data: TaskData) -> None:
    """Write out the metric by which the best checkpoint is told, "accuracy", as Trainer knows it, "eval_dev_accuracy".

    A metric that names no evaluation set is that of the first. Raises ValueError for one that will not be measured.
    """
    asked = arguments.metric_for_best_model
    if asked is None:
        return
    known = {f"{split}_{metric}" for split in data.evals for metric in ("loss", *data.task.metrics)}
    name = asked.removeprefix("eval_")
    found = next((each for each in (name, f"{next(iter(data.evals))}_{name}") if each in known), None)
    if found is None:
        raise ValueError(f"metric_for_best_model: found {asked!r}; {near(name, sorted(known))}")
    arguments.metric_for_best_model = f"eval_{found}"


@cache
def _training_types() -> dict[str, Any]:
    return get_type_hints(TrainingArguments)


def _of_type(name: str, value: Any, section: str) -> Any:
    """One setting as `TrainingArguments` declares it, which takes whatever comes and fails much later."""
    try:
        return TypeAdapter(_training_types()[name], config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{section}.{name}: {error.errors()[0]['msg']}, found {value!r}") from None


def check_between(config: RunConfig, objectives: Sequence[Objective], task: Task) -> None:
    """Refuse objectives that cannot work between teachers and student, by configs and tokenizers alone. Raises ValueError."""
    trust, wanted = config.trust_remote_code, [objective for objective in objectives if objective.weight > 0]
    sources = config.teachers or (str(config.teacher_init),)
    student = parse_student(config.student).outline(sources[0], trust_remote_code=trust)
    for source in sources:
        teacher = loaded(AutoConfig, source, trust_remote_code=trust)
        teacher.num_labels = student.config.num_labels = task.num_labels
        for objective in wanted:
            objective.between(teacher, student.config)
        token_wise = [objective for objective in wanted if objective.same_tokens]
        if token_wise and student.tokenizer is None:
            raise ValueError(f"{token_wise[0].name} compares tokens, the student has words of its own; {INSTEAD}")
        if token_wise and student.tokenizer != source:
            read = [load_tokenizer(each, trust_remote_code=trust) for each in (source, str(student.tokenizer))]
            check_tokens(token_wise, read[0], read[1])


def rehearse(config: RunConfig, source: str, objectives: Sequence[Objective], data: TaskData) -> None:
    """Load and build all that training will need, so that nothing can fail after hours. Raises ValueError."""
    trust = config.trust_remote_code
    check_labelled(objectives, data.train)
    if config.teacher_init:
        load_encoder(source, data.task, trust_remote_code=trust)
    student, own = build_student(
        config.student,
        source,
        data.task,
        seed=config.seed,
        trust_remote_code=trust,
        examples=data.train,
        max_examples=8,  # that it can be built is what matters here
        max_length=config.max_length,
    )
    theirs = load_tokenizer(source, trust_remote_code=trust)
    others = {other: load_tokenizer(other, trust_remote_code=trust) for other in config.more_teachers}
    if config.evaluate.twin:
        check_reading(config, config.evaluate.twin, load_tokenizer(config.evaluate.twin, trust_remote_code=trust))
    check_mask_word(config, {source: theirs, config.student: own} | others)
    for model, tokenizer in ({source: theirs, config.student: own} | others).items():
        check_reading(config, model, tokenizer, student if tokenizer is own else None)
        for objective in objectives:
            if tokenizer.mask_token_id is None and objective.weight > 0:
                _check_unmasked(f"objectives.{objective.name}", dict(objective), model)
                if isinstance(objective, Reasons) and tokenizer is not own:
                    _check_unmasked(f"objectives.{objective.name}.options", objective.options, model)
    for objective in objectives:
        if objective.weight > 0 and (
            isinstance(objective, Reasons) or (isinstance(objective, SelectionGuide) and objective.token_head)
        ):
            hidden_width(student)


def _check_unmasked(where: str, settings: Mapping[str, Any], model: str) -> None:
    setting = masks_by(settings)
    if setting:
        others = "zero or pad" if setting.endswith("baseline") else "delete, gather or attention"
        raise ValueError(f"{where}.{setting} is 'mask', the tokenizer of {model} has no mask token; set it to {others}")


def check_mask_word(config: RunConfig, tokenizers: Mapping[str, PreTrainedTokenizerBase]) -> None:
    """Refuse copies whose masked words one of the models, the first teacher first, would misread. Raises ValueError."""
    augment = config.data.augment
    if not (augment.copies and augment.mask):
        return
    (teacher, theirs), *others = tokenizers.items()
    if theirs.mask_token is None:
        raise ValueError(f"data.augment.mask is {augment.mask:g}, the tokenizer of {teacher} has no mask token; set it to 0")
    for name, tokenizer in others:
        if tokenizer.mask_token != theirs.mask_token:
            raise ValueError(
                f"data.augment.mask writes {theirs.mask_token} for a word, as {teacher} does, and the mask token of {name} is "
                f"{tokenizer.mask_token}; set it to 0, and data.augment.replace higher"
            )


def check_reading(
    config: RunConfig, source: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None
) -> None:
    """Refuse a model that cannot read `max_length` tokens, or not all that its tokenizer has; without `model`, that of
    `source`. Raises ValueError."""
    if model is None:
        trust = config.trust_remote_code
        with torch.device("meta"):
            own = loaded(AutoConfig, source, trust_remote_code=trust)
            model = AutoModelForSequenceClassification.from_config(own, trust_remote_code=trust)
    most = longest(model, tokenizer)
    if config.max_length > most:
        raise ValueError(f"max_length is {config.max_length}, {source} reads {most} tokens at most; use --max-length {most}")
    check_embeds(model, tokenizer, source)
