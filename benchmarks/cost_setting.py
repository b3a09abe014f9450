"""What the halves of `cost.py` share: a strategy, a task with its models and budget, and a toy of both for `--quick`."""

import hashlib
import json
import random
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from egkd import pipeline
from egkd.checks import objectives_of
from egkd.config import RunConfig, resolve
from egkd.data import TaskData
from egkd.runs import write_text
from egkd.students import label_order, load_classifier


@dataclass(frozen=True)
class Strategy:
    """A row of the table: what a student learns beside gold and soft labels, and how."""

    family: str
    name: str
    objectives: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings by objective, as a run's."""
    preset: str | None = None
    exact: bool = False
    """Whether it is the one whose gain is the whole of its family's."""

    @property
    def title(self) -> str:
        """Both in one."""
        return f"{self.family}: {self.name}"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One task, its teacher and student, and what is spent on it."""

    task: str
    data: dict[str, Any]
    """Where examples come from, as a run's `data`, without limits."""
    teacher: str
    student: str
    out: Path
    train_limit: int | None
    """Rows that students learn from."""
    teacher_limit: int | None
    """Rows that the teacher was trained on; those of neither are held out."""
    epochs: float
    batch: int = 32
    explained: int = 300
    """Evaluation rows on which explanations are compared."""
    device: str = "cpu"
    bf16: bool = False
    learning_rate: float | None = None
    """The students'; the default of `egkd distill` where it is None."""
    max_length: int = 128
    keys: dict[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Those that are known, see `key`."""

    def config(self, strategy: Strategy, seed: int = 0) -> RunConfig:
        """The run of one cell."""
        train: dict[str, Any] = {
            "num_train_epochs": self.epochs,
            "per_device_train_batch_size": self.batch,
            "eval_strategy": "no",
            "save_strategy": "no",
            "use_cpu": self.device == "cpu",
            "bf16": self.bf16,
            "disable_tqdm": True,
        }
        if self.learning_rate is not None:
            train["learning_rate"] = self.learning_rate
        return resolve(
            {
                "teacher": self.teacher,
                "student": self.student,
                "data": self.data | {"train_limit": self.train_limit},
                "preset": strategy.preset,
                "objectives": strategy.objectives,
                "train": train,
                "evaluate": {"explained": 0, "latency_repeats": 1},  # all students are judged on the same rows afterwards
                "max_length": self.max_length,
                "seed": seed,
                "lessons": self.lessons,
            }
        )

    def key(self, strategy: Strategy) -> str:
        """A name that says all that shapes the student but the seed: two rows of equal settings are one, and results of
        other settings (a default may change) are never taken for these."""
        settings = json.dumps([strategy.preset, strategy.objectives], sort_keys=True)
        if settings not in self.keys:
            self.keys[settings] = self._key(strategy)
        return self.keys[settings]

    def _key(self, strategy: Strategy) -> str:
        config = self.config(strategy)
        objectives = {objective.name: objective.model_dump(mode="json") for objective in objectives_of(config)}
        said = config.model_dump(mode="json", exclude={"preset", "objectives", "lessons", "seed", "evaluate"})
        said["data"].pop("glue_dir")
        digest = hashlib.sha256(json.dumps([said, objectives], sort_keys=True).encode()).hexdigest()[:10]
        others = [name for name in objectives if name not in ("labels", "soft-labels")]
        return "-".join([*(others or ["plain"]), digest])

    @property
    def lessons(self) -> Path:
        """Shared by everything."""
        return self.out / "lessons"

    @cached_property
    def examples(self) -> TaskData:
        """The task as students see it. Raises ValueError where the teacher orders its classes otherwise."""
        data = pipeline.load_data(self.config(Strategy("plain", "plain")).data)
        order = label_order(load_classifier(self.teacher, data.task), data.task, self.teacher)
        if order != sorted(order):
            raise ValueError(
                f"{self.teacher} has the classes of {self.task} in another order; fine-tune one with --teacher-init"
            )
        return data


def quiet() -> None:
    """No bars and no hints of other packages."""
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def taught(options: dict[str, Any], init: str, out: Path, *, limit: int | None, epochs: float) -> str:
    """The folder of a teacher that is fine-tuned from `init` on the data `options` names, unless it is there already."""
    settings = {
        "teacher_init": init,
        "data": options | {"train_limit": limit},
        "teach": {"num_train_epochs": epochs, "eval_strategy": "no"},
    }
    return str(pipeline.teach(resolve(settings), out, tell=print))


GOOD, BAD = "great lovely funny wonderful touching".split(), "awful boring dull terrible clumsy".split()
FILLERS = "the a and is was very really film story plot cast ending i we they saw it".split()


def toy(out: Path, device: str, bf16: bool) -> Setting:
    """Random sentences and tiny random models, for a run of seconds that shows that everything works."""
    folder = out / "toy"
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for name, count in (("train", 72), ("dev", 12)):
        lines = ["text,label"]
        for number in range(count):
            words = [*draw.choices(FILLERS, k=draw.randint(4, 12)), draw.choice((BAD, GOOD)[number % 2])]
            draw.shuffle(words)
            lines.append(f"{' '.join(words)},{('bad', 'good')[number % 2]}")
        if not (folder / f"{name}.csv").exists():
            write_text(folder / f"{name}.csv", "\n".join(lines) + "\n")
    for role, layers in (("teacher", 2), ("student", 1)):
        if not (folder / role / "tokenizer.json").exists():
            _tiny(folder / role, layers)
    return Setting(
        task="toy",
        data={"train": [str(folder / "train.csv")], "eval": [str(folder / "dev.csv")]},
        teacher=str(folder / "teacher"),
        student=str(folder / "student"),
        out=folder,
        train_limit=48,
        teacher_limit=48,
        epochs=1,
        batch=8,
        explained=6,
        device=device,
        bf16=bf16,
        max_length=24,
    )


def _tiny(folder: Path, layers: int) -> None:
    """A random classifier with its tokenizer."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *FILLERS, *GOOD, *BAD]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.4,
        id2label={0: "bad", 1: "good"},
        label2id={"bad": 0, "good": 1},
    )
    with torch.random.fork_rng():
        torch.manual_seed(layers)
        BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
