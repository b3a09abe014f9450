"""The main job: a teacher, its lessons, a student that learns answers and reasons, the proof that it did.

Every stage leaves its result in the run folder and is skipped where that is there, so a killed run is resumed by asking
for it again.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from egkd.checks import check_between, check_reading, choose_best_by, objectives_of, rehearse, training_arguments
from egkd.compatible import check_compatible
from egkd.config import RunConfig
from egkd.data import Task, TaskData
from egkd.data.augment import augmented
from egkd.data.loading import load_data
from egkd.dropout import set_dropout
from egkd.evaluate.answers import Classifier
from egkd.evaluate.compare import compare
from egkd.evaluate.scores import task_scores
from egkd.evaluate.teachers import compare_teachers
from egkd.explain.amortised import with_head
from egkd.heads import detach_heads
from egkd.models import embedding_layer
from egkd.objectives import Labels, Objective
from egkd.origins import origins
from egkd.processes import Ranks, ranks
from egkd.report.page import write_report
from egkd.runs import (
    check_free,
    check_writable,
    claim,
    describe_environment,
    held,
    read_json,
    save_model,
    write_arrays,
    write_json,
)
from egkd.students import build_student, check_student, load_classifier, load_encoder, load_tokenizer, size_of
from egkd.teaching import in_datas_order, in_teachers_order
from egkd.train import DistillationTrainer, JsonlLog, fit

Tell = Callable[[str], None]
"""Called with one line for the user."""
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is."""
MISLEADING = "scores mislead if the teacher was trained on rows held out here; give egkd teach the same data.held_out"


def quiet(_message: str) -> None:
    """A `Tell` that says nothing."""


def distill(config: RunConfig, out: Path, *, tell: Tell = quiet, progress: Progress | None = None) -> Path:
    """The whole run that `config` describes, in folder `out`; returns the path of its report.

    Several processes (torchrun, accelerate launch) train together; what is written, is written by the first of them.

    Raises ValueError for settings that cannot work, before any long work, and leaves what is there untouched.
    """
    objectives = objectives_of(config)
    config = resolved(config, objectives)
    arguments = training_arguments(config.train_arguments, out / "checkpoints", "train")  # here processes meet
    with ranks() as team, ExitStack() as stack:
        with team.stage():
            data = _checked(config, objectives, arguments, out, tell)
        team.once(lambda: stack.enter_context(_claimed(config, data, out, tell)))
        teacher = config.teacher or str(_taught(config, data, out / "teacher", team, tell, progress))
        _learned(config, objectives, arguments, teacher, data, out, team, tell, progress)
        team.once(lambda: _compared(config, objectives, teacher, data, out, arguments.device, tell, progress))
        return team.once(lambda: write_report([out], out / "report.html"))


def _checked(config: RunConfig, objectives: list[Objective], arguments: TrainingArguments, out: Path, tell: Tell) -> TaskData:
    """The data, once all that could fail later has been tried. Raises ValueError, and writes nothing."""
    teaching = training_arguments(config.teach_arguments, out / "checkpoints", "teach")
    check_compatible([objective for objective in objectives if objective.weight > 0], arguments, has_teacher=True)
    if config.teacher_init:
        check_compatible([Labels()], teaching, has_teacher=False)
    check_free(out, config)
    check_writable(config.lessons or out.parent / "lessons", "--lessons")
    source = config.teacher or config.teacher_init
    assert source is not None
    check_student(config.student, source, trust_remote_code=config.trust_remote_code)
    data = load_data(config.data)
    for note in data.notes:
        tell(note)
    if config.teacher and config.data.held_out is not None:
        tell(MISLEADING)
    check_between(config, objectives, data.task)
    if config.teacher:
        told, data = len(data.notes), in_teachers_order(config.teacher, data, config.trust_remote_code)
        for note in data.notes[told:]:
            tell(note)
    for other in config.others:
        in_datas_order(other, data.task, config.trust_remote_code)
    for each in (arguments, teaching):
        choose_best_by(each, data)
    rehearse(config, source, objectives, data)
    reader = load_tokenizer(source, trust_remote_code=config.trust_remote_code)
    return augmented(data, config.data.augment, config.data.seed, reader.mask_token)


def teach(config: RunConfig, out: Path, *, tell: Tell = quiet, progress: Progress | None = None) -> Path:
    """Fine-tune `config.teacher_init` into `out/teacher`; returns that folder.

    Raises ValueError for settings that cannot work, before any long work, and leaves what is there untouched.
    """
    if config.teacher_init is None:
        raise ValueError(f"found teacher {config.teacher}, expected teacher_init: the encoder to fine-tune (--init)")
    init, config = config.teacher_init, resolved(config, objectives_of(config))
    arguments = training_arguments(config.teach_arguments, out, "teach")  # here processes meet
    with ranks() as team, ExitStack() as stack:
        with team.stage():
            check_compatible([Labels()], arguments, has_teacher=False)
            check_free(out, config)
            data = load_data(config.data)
            for note in data.notes:
                tell(note)
            choose_best_by(arguments, data)
            load_encoder(init, data.task, trust_remote_code=config.trust_remote_code)
            check_reading(config, init, load_tokenizer(init, trust_remote_code=config.trust_remote_code))
        team.once(lambda: stack.enter_context(_claimed(config, data, out, tell)))
        return _taught(config, data, out / "teacher", team, tell, progress)


def resolved(config: RunConfig, objectives: list[Objective]) -> RunConfig:
    """The same settings with every default in them, so that a run folder says what was done whatever defaults become."""
    said: dict[str, Any] = {"objectives": {objective.name: objective.model_dump() for objective in objectives}}
    said["lessons_precision"] = config.precision_of_lessons
    for section, arguments in (("train", config.train_arguments), ("teach", config.teach_arguments)):
        # the run's seed stands in one place, so that another one can be set there
        repeated = [name for name in ("seed", "data_seed") if arguments[name] == config.seed]
        said[section] = {name: value for name, value in arguments.items() if name not in repeated}
    return config.model_copy(update=said)


@contextmanager
def _claimed(config: RunConfig, data: TaskData, out: Path, tell: Tell) -> Iterator[None]:
    """The run's folder, which is this process's own while open."""
    begun = claim(out, config)
    with held(out / ".lock", out):
        describe_environment(out, config.seed, origins(config, data))
        if begun:
            tell(f"{out} holds this run already; what is done is kept")
        yield


def _metrics(task: Task) -> Callable[[transformers.EvalPrediction], dict[str, float]]:
    def compute(prediction: transformers.EvalPrediction) -> dict[str, float]:
        return task_scores(task, prediction.predictions, prediction.label_ids)  # type: ignore[arg-type]

    return compute


def _of(progress: Progress | None, what: str) -> Callable[[int, int], None] | None:
    return None if progress is None else partial(progress, what)


def _taught(config: RunConfig, data: TaskData, folder: Path, team: Ranks, tell: Tell, progress: Progress | None) -> Path:
    checkpoints = folder.with_name("teacher-checkpoints")
    if team.told((folder / "config.json").exists()):
        team.once(lambda: shutil.rmtree(checkpoints, ignore_errors=True))  # a kill may have come before it
        return folder
    assert config.teacher_init is not None
    tell(f"fine-tuning the teacher from {config.teacher_init} on {len(data.train):,} examples")
    model = load_encoder(config.teacher_init, data.task, seed=config.seed, trust_remote_code=config.trust_remote_code)
    arguments = training_arguments(config.teach_arguments, checkpoints, "teach")
    choose_best_by(arguments, data)
    trainer = DistillationTrainer(
        model,
        arguments,
        objectives=[Labels(weight=1.0)],
        train_dataset=data.train,
        eval_dataset=data.evals,
        processing_class=load_tokenizer(config.teacher_init, trust_remote_code=config.trust_remote_code),
        max_length=config.max_length,
        compute_metrics=_metrics(data.task),
        callbacks=[JsonlLog(folder.with_name("teacher-log.jsonl"))],
        tell=tell,
    )
    fit(trainer, checkpoints, team, _of(progress, "train"))
    team.once(lambda: save_model(trainer.model, trainer.processing_class, folder))
    team.once(lambda: shutil.rmtree(checkpoints, ignore_errors=True))
    return folder


def _learned(
    config: RunConfig,
    objectives: list[Objective],
    arguments: TrainingArguments,
    teacher: str,
    data: TaskData,
    out: Path,
    team: Ranks,
    tell: Tell,
    progress: Progress | None,
) -> None:
    if team.told((out / "training.json").exists()):
        team.once(lambda: shutil.rmtree(out / "checkpoints", ignore_errors=True))  # a kill may have come before it
        return
    model, tokenizer = build_student(
        config.student,
        teacher,
        data.task,
        seed=config.seed,
        trust_remote_code=config.trust_remote_code,
        examples=data.train,
        max_length=config.max_length,
    )
    tell(size_of(model))
    if config.freeze_embeddings:
        embedding_layer(model).requires_grad_(False)
    if config.student_dropout is not None:
        set_dropout(model, config.student_dropout)
    started = time.perf_counter()
    trainer = DistillationTrainer(
        model,
        arguments,
        teacher=[in_datas_order(source, data.task, config.trust_remote_code) for source in (teacher, *config.more_teachers)],
        objectives=objectives,
        train_dataset=data.stream,
        eval_dataset=data.evals,
        processing_class=tokenizer,
        teacher_processing_class=[
            load_tokenizer(source, trust_remote_code=config.trust_remote_code) for source in (teacher, *config.more_teachers)
        ],
        teacher_weights=config.teacher_weights or None,
        lessons_dir=config.lessons or out.parent / "lessons",
        lessons_precision=config.lessons_precision,
        max_length=config.max_length,
        compute_metrics=_metrics(data.task),
        callbacks=[JsonlLog(out / "log.jsonl")],
        progress=_of(progress, "lessons"),
        tell=tell,
    )
    lessons_seconds = time.perf_counter() - started
    rest = "" if data.unlabeled is None else f" from {len(data.train):,} rows with labels and {len(data.unlabeled):,} without"
    tell(f"the student learns {', '.join(dict.fromkeys(objective.name for objective in trainer.objectives))}{rest}")
    seconds = fit(trainer, out / "checkpoints", team, _of(progress, "train"))
    assert trainer.model is not None
    detach_heads(trainer.model, objectives)
    team.once(lambda: save_model(trainer.model, tokenizer, out / "student"))
    training = {
        "seconds": seconds,
        "lessons_seconds": lessons_seconds,
        "steps": trainer.state.global_step,
        "examples": len(data.stream),
    }
    team.once(lambda: write_json(out / "training.json", training))
    team.once(lambda: shutil.rmtree(out / "checkpoints", ignore_errors=True))


def _compared(
    config: RunConfig,
    objectives: list[Objective],
    teacher: str,
    data: TaskData,
    out: Path,
    device: torch.device,
    tell: Tell,
    progress: Progress | None,
) -> None:
    if (out / "metrics.json").exists():
        return
    tell("comparing teacher and student")

    def here(model: PreTrainedModel) -> PreTrainedModel:
        nn.Module.to(model, device if device.type == "cuda" else "cpu")  # PreTrainedModel's own is not typed
        return model

    trust, kept = config.trust_remote_code, config.lessons or out.parent / "lessons"
    who = {
        role: Classifier(
            name=name,
            model=here(with_head(load_classifier(source, data.task, trust_remote_code=trust), source)),
            tokenizer=load_tokenizer(source, trust_remote_code=trust),
            answers=answers,
        )
        for role, name, source, answers in (
            ("teacher", config.teacher_init or teacher, teacher, kept),
            ("student", config.student, str(out / "student"), None),
        )
    }
    others = {
        source: Classifier(
            name=source,
            model=here(in_datas_order(source, data.task, trust)),
            tokenizer=load_tokenizer(source, trust_remote_code=trust),
            answers=kept,
        )
        for source in config.others
    }
    found = compare(
        who["teacher"],
        who["student"],
        data.task,
        data.evals,
        twin=others[config.evaluate.twin] if config.evaluate.twin else None,
        explained=config.evaluate.explained,
        shown=config.evaluate.shown,
        latency_repeats=config.evaluate.latency_repeats,
        max_length=config.max_length,
        seed=config.data.seed,  # the same rows for runs of several seeds
        progress=progress,
    )
    several = {}
    if config.more_teachers:
        voters = [who["teacher"], *(others[source] for source in config.more_teachers)]
        weights = config.teacher_weights or (1.0,) * len(voters)
        several = {"teachers": compare_teachers(voters, weights, who["student"], data.task, data.evals, config.max_length)}
    write_json(out / "examples.json", found.examples)
    write_arrays(out / "predictions.npz", found.predictions)
    write_json(
        out / "metrics.json",
        {
            "task": dataclasses.asdict(data.task),
            "teacher": found.teacher,
            "student": found.student,
            **several,
            "objectives": [{"name": objective.name, **objective.model_dump()} for objective in objectives],
            "training": read_json(out / "training.json"),
        },
    )
