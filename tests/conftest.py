"""Shared by all tests: tiny tokenizers, tiny random models and a few sentences, built in-process without the network."""

import itertools
import os
import random
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: no test may reach for the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerBase, PreTrainedTokenizerFast

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


def _sentences() -> list[tuple[str, int]]:
    forms = ("The {noun} is {word}.", "I really {verb} this {word} {noun}, and the cast!", "It was a very {word} {noun}")
    cells = list(itertools.product(forms, NOUNS, [*GOOD, *BAD]))
    chosen = random.Random(0).sample(cells, 96)
    return [
        (form.format(noun=noun, word=word, verb="love" if word in GOOD else "hate"), int(word in GOOD))
        for form, noun, word in chosen
    ]
