"""Who teaches: one teacher or several, each with a tokenizer, lessons and a share of its own.

Several teachers: the lessons of each are built and stored as if it were the only one. At every step each objective is asked
once for each teacher, and its term is the mean of the losses, weighted by the teachers' shares. For the usual losses that is
learning from the mean lesson, as far as gradients go: sum_t w_t KL(p_t || q) differs from KL(sum_t w_t p_t || q), and
sum_t w_t (y_t - s)² from (sum_t w_t y_t - s)², by what does not depend on the student. Unlike a mean of lessons it stays right
where there is none: teachers that explain different classes, picked different rationales, or drew other masks.

A bank of masks is drawn from the tokens that its teacher reads, so teachers with different tokenizers ask for different
perturbed copies. That is right for each; the price is `masks_per_step` student passes per teacher.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from egkd.data import Task, TaskData
from egkd.explain.base import Precision
from egkd.lessons import Lessons, build_lessons, fingerprint_tokenizer
from egkd.objectives.base import Objective, Progress
from egkd.predict import encode_dataset
from egkd.students import label_order, load_classifier, load_tokenizer
from egkd.students.loading import check_encoder, in_order, numbered

Source = PreTrainedModel | str | Path
"""A fine-tuned classifier, or where to load it from (then it is in memory only while lessons are built)."""


@dataclass(frozen=True, kw_only=True)
class Voice:
    """One of those who teach."""

    teacher: Source
    tokenizer: PreTrainedTokenizerBase | None
    """None: its own where it is loaded from somewhere, else the student's."""
    share: float
    """Of all that is taught; the shares of all teachers sum to 1."""

    @property
    def config(self) -> Any:
        """What the teacher is like."""
        return AutoConfig.from_pretrained(self.teacher) if isinstance(self.teacher, str | Path) else self.teacher.config

    def load(self) -> nn.Module:
        """The teacher itself. Raises ValueError where it cannot be loaded, or was never fine-tuned."""
        if not isinstance(self.teacher, str | Path):
            return self.teacher
        return load_classifier(str(self.teacher))

    def reads_with(self, student: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """Its tokenizer, beside a student with this one."""
        if self.tokenizer is not None:
            return self.tokenizer
        return load_tokenizer(str(self.teacher)) if isinstance(self.teacher, str | Path) else student


def voices_of(
    teachers: Source | Sequence[Source] | None,
    tokenizers: PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase] | None,
    weights: Sequence[float] | None,
) -> list[Voice]:
    """One voice per teacher. Raises ValueError where tokenizers or weights are not as many, or a weight is not above 0."""
    sources = [] if teachers is None else [teachers] if isinstance(teachers, PreTrainedModel | str | Path) else list(teachers)
    if tokenizers is None or isinstance(tokenizers, PreTrainedTokenizerBase):
        tokenizers = [tokenizers] * len(sources) if tokenizers is None else [tokenizers]  # type: ignore[list-item]
    weights = [1.0] * len(sources) if weights is None else list(weights)
    for what, values in (("tokenizers", tokenizers), ("weights", weights)):
        if sources and len(values) != len(sources):
            raise ValueError(f"found {len(sources)} teachers and {len(values)} {what}; give each teacher one, in their order")
    if any(weight <= 0 for weight in weights):
        raise ValueError(f"found teachers' weights {weights}, expected numbers above 0; leave a teacher out instead")
    return [
        Voice(teacher=source, tokenizer=tokenizer, share=weight / sum(weights))
        for source, tokenizer, weight in zip(sources, tokenizers, weights, strict=False)
    ]


def check_pupil(voices: Sequence[Voice], student: PreTrainedModel) -> None:
    """Refuse a student that these teachers cannot teach. Raises ValueError."""
    for config in (voice.config for voice in voices):
        check_encoder(config, "the teacher")
        if config.num_labels != student.config.num_labels:
            raise ValueError(
                f"the teacher has {config.num_labels} outputs and the student {student.config.num_labels}; "
                f"load the student with num_labels={config.num_labels}"
            )
    check_encoder(student.config, "the student")
    coarse = {parameter.dtype for parameter in student.parameters() if parameter.requires_grad} & {
        torch.float16,
        torch.bfloat16,
    }
    if coarse:
        raise ValueError(
            f"the student's weights are {str(coarse.pop()).removeprefix('torch.')}, in which small steps are lost; "
            "load it with dtype=torch.float32, and train in mixed precision with bf16=True"
        )


def asked_of(voices: Sequence[Voice], objectives: Sequence[Objective], student: Any) -> list[Objective]:
    """The objectives as they stand between each teacher and a student of this config: what is taught once for each teacher."""
    if not voices:
        return list(objectives)
    asked: list[Objective] = []
    for objective in objectives:
        own = [objective.between(voice.config, student) for voice in voices[: None if objective.has_lesson else 1]]
        if len(own) > 1:
            own = [each.of_teacher(place, voice.share) for place, (each, voice) in enumerate(zip(own, voices, strict=True))]
        asked += own
    return asked


def teach_all(
    voices: Sequence[Voice],
    objectives: Sequence[Objective],
    dataset: Dataset,
    encoded: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    root: Path,
    *,
    device: torch.device,
    max_length: int,
    precision: Precision = "float32",
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Lessons]:
    """The lessons of all `objectives` (see `asked_of`), by their keys; `tell` hears how large those will be that are missing.

    `dataset` holds the raw texts, `encoded` the same as the student's `tokenizer` cuts them. Raises ValueError.
    """
    found: dict[str, Lessons] = {}
    for place, voice in enumerate(voices):
        own = [objective for objective in objectives if objective.has_lesson and objective.teacher == place]
        if not own:
            continue
        theirs = voice.reads_with(tokenizer)
        check_tokens(own, theirs, tokenizer)
        read = encoded if theirs is tokenizer else encode_dataset(dataset, theirs, max_length)
        model = voice.load().to(device)
        lessons = build_lessons(
            own, model, theirs, read, root, max_length=max_length, precision=precision, progress=progress, tell=tell
        )
        found |= {objective.key: lessons[objective.name] for objective in own}
    return found


def check_tokens(objectives: Sequence[Objective], teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Refuse objectives that compare tokens where the two models cut texts differently. Raises ValueError."""
    names = [objective.name for objective in objectives if objective.same_tokens]
    if names and teacher is not student and fingerprint_tokenizer(teacher) != fingerprint_tokenizer(student):
        raise ValueError(
            f"{names[0]} compares tokens, and teacher and student have different tokenizers; "
            "use an objective that compares words (gradient, perturbation, selection)"
        )


def in_teachers_order(source: str, data: TaskData, trust_remote_code: bool) -> TaskData:
    """The data with its labels in the order of the teacher's, by their names. Raises ValueError where they cannot fit."""
    model = load_classifier(source, data.task, trust_remote_code=trust_remote_code)
    order = label_order(model, data.task, source)
    theirs = tuple(str(name) for _, name in sorted((model.config.id2label or {}).items()))
    if numbered(data.task) and set(theirs) != set(data.task.label_names) and not theirs[0].startswith("LABEL_"):
        note = f"labels are the numbers of the teacher's classes: {', '.join(f'{n} {name}' for n, name in enumerate(theirs))}"
        return replace(data, task=replace(data.task, label_names=theirs), notes=(*data.notes, note))
    if order == list(range(len(order))):
        return data
    new_id = {old: new for new, old in enumerate(order)}

    def mapped(rows: Dataset) -> Dataset:
        return rows.map(lambda row: {"label": new_id[row["label"]]}, desc="labels in the teacher's order")

    names = tuple(data.task.label_names[old] for old in order)
    return replace(
        data,
        task=replace(data.task, label_names=names, positive=new_id[data.task.positive] if names else 1),
        train=mapped(data.train),
        evals={name: mapped(rows) for name, rows in data.evals.items()},
    )


def in_datas_order(source: str, task: Task, trust_remote_code: bool) -> PreTrainedModel:
    """A teacher with its labels in the data's order. Raises ValueError where they cannot fit."""
    model = load_classifier(source, task, trust_remote_code=trust_remote_code)
    return in_order(model, label_order(model, task, source))
