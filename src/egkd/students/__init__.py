"""Who learns: layers of the teacher, any pre-trained encoder, a BiLSTM, a TextCNN. Loading classifiers, with checks.

`--student SPEC` is read by `parse_student`; what it can be is listed in `STUDENTS`.
"""

from collections.abc import Callable
from pathlib import Path

from datasets import Dataset
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from egkd.config import near
from egkd.data import Task
from egkd.students.base import Origin, Student, size_of
from egkd.students.convolutional import TextCNNConfig, TextCNNForSequenceClassification, TextCNNStudent
from egkd.students.encoder import Encoder
from egkd.students.layers import LAYERS, Layers, keep_layers, parse_layers, spread
from egkd.students.loading import label_order, label_settings, load_classifier, load_encoder, load_tokenizer
from egkd.students.recurrent import BiLSTMConfig, BiLSTMForSequenceClassification, BiLSTMStudent
from egkd.text import MAX_LENGTH

__all__ = [
    "LAYERS",
    "STUDENTS",
    "BiLSTMConfig",
    "BiLSTMForSequenceClassification",
    "Origin",
    "Student",
    "TextCNNConfig",
    "TextCNNForSequenceClassification",
    "build_student",
    "check_student",
    "keep_layers",
    "label_order",
    "label_settings",
    "load_classifier",
    "load_encoder",
    "load_tokenizer",
    "parse_layers",
    "parse_student",
    "size_of",
    "spread",
]

STUDENTS: dict[str, Callable[[str, str], Student]] = {
    "layers": Layers.described,
    "bilstm": BiLSTMStudent.described,
    "textcnn": TextCNNStudent.described,
}
"""Each kind of student by the word its spec begins with, made from the spec and what stands after the colon."""

# so that Auto classes, Trainer and pipelines can load what was saved
for _config, _model in (
    (BiLSTMConfig, BiLSTMForSequenceClassification),
    (TextCNNConfig, TextCNNForSequenceClassification),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForSequenceClassification.register(_config, _model, exist_ok=True)


def parse_student(spec: str) -> Student:
    """The student that `spec` describes; what begins with no known word is a local folder or hub id. Raises ValueError."""
    kind, colon, rest = spec.partition(":")
    if kind in STUDENTS and (colon or not Path(spec).is_dir()):
        return STUDENTS[kind](spec, rest)
    if colon and not Path(spec).expanduser().exists() and kind.replace("-", "").isalnum():
        raise ValueError(f"student {spec!r} is of an unknown kind; {near(kind, list(STUDENTS))}, or give a folder or hub id")
    return Encoder(source=spec)


def build_student(
    spec: str,
    teacher: str,
    task: Task,
    *,
    seed: int = 0,
    trust_remote_code: bool = False,
    examples: Dataset | None = None,
    max_examples: int = 512,
    max_length: int = MAX_LENGTH,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The untrained student that `spec` describes and its tokenizer; `teacher` is a folder or hub id.

    `examples` (rows of `text`, perhaps `text_pair`, and `label`) are what pruning looks at: at most
    `max_examples` of those with a label, drawn from `seed`, cut at `max_length` tokens.
    Raises ValueError, one line, for what cannot be built.
    """
    origin = Origin(
        teacher=teacher,
        task=task,
        seed=seed,
        trust_remote_code=trust_remote_code,
        examples=examples,
        max_examples=max_examples,
        max_length=max_length,
    )
    return parse_student(spec).build(origin)


def check_student(spec: str, teacher: str, *, trust_remote_code: bool = False) -> None:
    """Refuse a student that cannot be built, by reading configs only. Raises ValueError."""
    parse_student(spec).check(teacher, trust_remote_code=trust_remote_code)
