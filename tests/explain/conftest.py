"""A model whose attributions are known by hand, and one tiny random model of every architecture."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    MPNetConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
)

from egkd.text import encode

Rows = Callable[..., list[dict[str, Any]]]


class BagOfEmbeddings(nn.Module):
    """logits = W · (sum of the embeddings of the attended tokens): linear, so all additive methods agree exactly."""

    def __init__(self, vocabulary: int, num_labels: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(vocabulary, 8)
        self.head = nn.Linear(8, num_labels)
        self.config = SimpleNamespace(num_labels=num_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head((self.embeddings(input_ids) * attention_mask[..., None]).sum(1)))


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Eleven words, some, one, and none at all."""
    return ["I really love this great film, and the cast!", "The plot is dull.", "It was a very unfunny ending", "awful", ""]


@pytest.fixture(scope="session")
def pairs() -> list[str]:
    """Something to stand beside each of `texts`."""
    return ["they like it", "not so", "a lovely story", "", "really"]


@pytest.fixture
def bag(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], BagOfEmbeddings]:
    def build(num_labels: int = 2) -> BagOfEmbeddings:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return BagOfEmbeddings(len(tokenizer), num_labels)

    return build


@pytest.fixture(scope="session")
def rows_of() -> Rows:
    """Texts (and pairs) as encoded rows with their text, as `score_dataset` takes them."""

    def build(
        tokenizer: PreTrainedTokenizerBase, texts: list[str], pairs: list[str] | None = None, max_length: int = 64
    ) -> list[dict[str, Any]]:
        columns = encode(tokenizer, texts, pairs, max_length)
        columns["text"] = texts
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    return build


_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_ARCHITECTURES: dict[str, tuple[type, dict[str, Any]]] = {
    "bert": (BertConfig, _SIZES),
    "distilbert": (DistilBertConfig, {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}),
    "roberta": (RobertaConfig, _SIZES),
    "electra": (ElectraConfig, {**_SIZES, "embedding_size": 8}),
    "albert": (AlbertConfig, {**_SIZES, "embedding_size": 8}),
    "mpnet": (MPNetConfig, _SIZES),
    "deberta": (DebertaConfig, {**_SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "deberta-v2": (DebertaV2Config, {**_SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "gpt2": (GPT2Config, {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 32}),  # a decoder, read at its last token
}


@pytest.fixture(params=_ARCHITECTURES)
def any_model(
    request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase, bpe_tokenizer: PreTrainedTokenizerBase
) -> tuple[Callable[[int], PreTrainedModel], PreTrainedTokenizerBase]:
    """How to build a tiny random model of one architecture with so many classes, and its tokenizer."""
    config_class, sizes = _ARCHITECTURES[request.param]
    own_tokenizer = bpe_tokenizer if request.param in ("roberta", "mpnet", "gpt2") else tokenizer

    def build(num_labels: int) -> PreTrainedModel:
        config = config_class(
            vocab_size=len(own_tokenizer),
            max_position_embeddings=80,
            pad_token_id=own_tokenizer.pad_token_id,
            initializer_range=0.5,
            num_labels=num_labels,
            **sizes,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return AutoModelForSequenceClassification.from_config(config).eval()

    return build, own_tokenizer
