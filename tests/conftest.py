"""Shared by all tests: tiny tokenizers, tiny random models and a few sentences, built in-process without the network."""

import contextlib
import csv
import io
import itertools
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: no test may reach for the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

hypothesis.settings.register_profile("untimed", deadline=None)  # how long one takes says something about the machine alone
hypothesis.settings.load_profile("untimed")

GOOD = ("great", "lovely", "funny", "wonderful", "touching", "brilliant")
BAD = ("awful", "boring", "dull", "terrible", "clumsy", "painful")
NOUNS = ("film", "movie", "story", "plot", "cast", "ending")
FILLERS = "the a an and is was it this that of but not very so really in i we they like love hate".split()
MAX_LENGTH = 64

TinyBert = Callable[..., BertForSequenceClassification]


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """One thread per process: the models are tiny and the tests run side by side."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer like BERT's: the words of `tiny_data` are whole, others fall into letters."""
    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *FILLERS, *NOUNS, *GOOD, *BAD, "##ing", "##ed", "##s", "##ly"]
    pieces += [*characters, *(f"##{character}" for character in characters), *".,;:!?'\"-()<>&/"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


@pytest.fixture(scope="session")
def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer like RoBERTa's: case and spaces count, two separators in pairs, few whole words."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator((text for text, _ in _sentences()), trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


@pytest.fixture(scope="session")
def tiny_bert(tokenizer: PreTrainedTokenizerFast) -> TinyBert:
    """A factory of small BERT classifiers with random weights, large enough that predictions differ between texts."""

    def build(
        num_labels: int = 2,
        layers: int = 4,
        width: int = 32,
        seed: int = 0,
        dropout: float = 0.0,
        tokenizer: PreTrainedTokenizerBase = tokenizer,
    ) -> BertForSequenceClassification:
        config = BertConfig(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 16),
            intermediate_size=2 * width,
            max_position_embeddings=MAX_LENGTH,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            initializer_range=0.4,
            num_labels=num_labels,
        )
        with torch.random.fork_rng():  # the test's own random state stays as it was
            torch.manual_seed(seed)
            return BertForSequenceClassification(config).eval()

    return build


@pytest.fixture(scope="session")
def tiny_data() -> Dataset:
    """96 short reviews, `text` and `label` (0 negative, 1 positive), in a fixed random order. One adjective decides."""
    texts, labels = zip(*_sentences(), strict=True)
    return Dataset.from_dict({"text": list(texts), "label": list(labels)})


@pytest.fixture
def run(tmp_path: Path, tiny_bert: TinyBert, tokenizer: PreTrainedTokenizerFast, tiny_data: Dataset) -> Callable[..., Any]:
    """Train a tiny student of a tiny teacher for a few steps; each call in a folder of its own, lessons shared."""
    from egkd.train import DistillationTrainer

    def train(
        objectives: Sequence[Any] | None, *, rows: int = 16, trained: bool = True, width: int = 32, **arguments: Any
    ) -> Any:
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        settings: dict[str, Any] = {"max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "seed": 0}
        settings |= {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "use_cpu": True}
        trainer = DistillationTrainer(
            tiny_bert(layers=2, width=width, seed=1, dropout=arguments.pop("dropout", 0.0)),
            TrainingArguments(output_dir=str(folder), **(settings | arguments)),
            teacher=tiny_bert(layers=4, seed=0),
            objectives=objectives,
            train_dataset=tiny_data.select(range(rows)),
            processing_class=tokenizer,
            lessons_dir=tmp_path / "lessons",
        )
        if trained:
            trainer.train()
        return trainer

    return train


@pytest.fixture(scope="session")
def here() -> type:
    """How an experiment's job is started in this process instead of one of its own; it is over when it has begun."""

    class Here:
        def __init__(self, job: Any, log: Path, share: Any) -> None:
            from egkd.experiments.work import do

            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a") as said, contextlib.redirect_stdout(said):
                self._code = do(job.verb, job.folder)

        def poll(self) -> int | None:
            return self._code

        def stop(self) -> None:
            raise AssertionError("it is over")

        end = stop

    return Here


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def egkd() -> Callable[..., Answer]:
    """The command line, in this process: `egkd("distill", "--out", folder)`."""

    def run(*arguments: Any) -> Answer:
        from egkd.cli.main import main

        before, out, err = sys.argv, io.StringIO(), io.StringIO()
        sys.argv = ["egkd", *map(str, arguments)]
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main()
        except SystemExit as left:
            return Answer(code=int(left.code or 0), out=out.getvalue(), err=err.getvalue())
        finally:
            sys.argv = before
        raise AssertionError("the command line always exits")

    return run


@pytest.fixture(scope="session")
def quick() -> list[str]:
    """Flags of a run that takes a second: a few steps, a few explanations."""
    train = "use_cpu=true max_steps=4 per_device_train_batch_size=8 logging_steps=1 learning_rate=1e-3".split()
    settings = [*(f"{section}.{each}" for section in ("train", "teach") for each in train), "evaluate.explained=6"]
    settings += ["evaluate.shown=3", "evaluate.latency_repeats=1", "max_length=32"]
    return [part for each in settings for part in ("--set", each)]


@pytest.fixture(scope="session")
def save(tiny_bert: TinyBert, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    """Save a tiny classifier of these classes (scores for none) with its tokenizer, as people keep them."""

    def saved(folder: Path, names: Sequence[str] = ("negative", "positive"), **settings: Any) -> Path:
        model = tiny_bert(num_labels=len(names) or 1, **({"layers": 3} | settings))
        if names:
            model.config.id2label = dict(enumerate(names))
            model.config.label2id = {name: index for index, name in enumerate(names)}
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return saved


@pytest.fixture(scope="session")
def write_csv() -> Callable[..., Path]:
    """Write columns into a CSV file."""

    def write(path: Path, **columns: Sequence[Any]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(columns)
            rows.writerows(zip(*columns.values(), strict=True))
        return path

    return write


@pytest.fixture(scope="session")
def calm_libraries() -> Iterator[None]:
    """Commands silence transformers and datasets; afterwards they may speak again."""
    import datasets
    import transformers

    level = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(level)
    transformers.utils.logging.enable_progress_bar()
    datasets.enable_progress_bars()


def _sentences() -> list[tuple[str, int]]:
    forms = ("The {noun} is {word}.", "I really {verb} this {word} {noun}, and the cast!", "It was a very {word} {noun}")
    cells = list(itertools.product(forms, NOUNS, [*GOOD, *BAD]))
    chosen = random.Random(0).sample(cells, 96)
    return [
        (form.format(noun=noun, word=word, verb="love" if word in GOOD else "hate"), int(word in GOOD))
        for form, noun, word in chosen
    ]
