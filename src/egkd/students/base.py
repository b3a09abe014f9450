"""What a student is before it exists: a checked description, and what it is made from."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from egkd.data import Task
from egkd.text import MAX_LENGTH


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a student is made from."""

    teacher: str
    """Folder or hub id."""
    task: Task
    seed: int = 0
    """Of the weights that are drawn."""
    trust_remote_code: bool = False
    examples: Dataset | None = None
    """Rows of `text`, perhaps `text_pair`, and `label`, from which pruning learns what the teacher needs."""
    max_examples: int = 512
    """How many of those with a label, drawn from `seed`."""
    max_length: int = MAX_LENGTH
    """Tokens after which those are cut."""


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What is known of a student before it is built."""

    config: PreTrainedConfig
    """Its own, as far as its layers go; labels and vocabulary may be others."""
    tokenizer: str | None
    """Folder or hub id of the tokenizer it will have; None for one of its own."""


class Student(BaseModel, ABC):
    """One kind of student with its options, as `--student` describes it; nothing is loaded yet."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @abstractmethod
    def check(self, teacher: str, *, trust_remote_code: bool) -> None:
        """Refuse what cannot be built, by reading configs only. Raises ValueError, one line."""

    @abstractmethod
    def outline(self, teacher: str, *, trust_remote_code: bool) -> Outline:
        """What it will be, by reading configs only. Raises ValueError, one line."""

    @abstractmethod
    def build(self, origin: Origin) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The untrained model, in float32, and its tokenizer. Raises ValueError, one line."""


def size_of(model: PreTrainedModel) -> str:
    """How large a student is, for people."""
    words: Any = model.get_input_embeddings()
    table = words.weight.numel()
    return f"the student has {model.num_parameters() / 1e6:.2f} million parameters, {table / 1e6:.2f} of them word embeddings"


def options(spec: str, described: str) -> dict[str, str]:
    """`a=1,b=2` as a dictionary. Raises ValueError for what has no value, or two."""
    found: dict[str, str] = {}
    for part in described.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals or not name or not value:
            raise ValueError(f"student {spec!r}: found {part!r}, expected options like name=value, with commas between them")
        if name in found:
            raise ValueError(f"student {spec!r} sets {name} twice; say which")
        found[name] = value
    return found
