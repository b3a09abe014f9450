"""What BiLSTM and TextCNN share: word embeddings, invisible tokens, pairs, the head, and how they are built.

Shapes: B batch, T tokens, V vocabulary, D width of the word embeddings, S the visible tokens of a text moved together, and
one empty place behind them (S = T + 1), H width of what the encoder makes of a token, F width of what the head reads, C
classes.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput

from egkd.students.base import Origin, Outline, Student
from egkd.students.embeddings import principal_components, teacher_embeddings
from egkd.students.loading import label_settings, loaded
from egkd.students.vectors import read_vectors, word_tokenizer

Pairs = Literal["joint", "siamese"]


class WordConfig(PretrainedConfig):
    """What the configs of both models have in common."""

    shown_layers = 1
    """Beside the embeddings, among the hidden states."""

    def __init__(
        self,
        *,
        vocab_size: int = 30522,
        embedding_size: int = 128,
        hidden_size: int = 300,
        dense_size: int = 0,
        dropout: float = 0.1,
        pairs: Pairs = "joint",
        pad_token_id: int | None = 0,
        **settings: Any,  # what every config of transformers takes, labels above all
    ) -> None:
        """See the options of a student for what each means; `hidden_size` is H, `dense_size` 0 leaves the layer out."""
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.dense_size = dense_size
        self.dropout = dropout
        self.pairs = pairs
        super().__init__(**({"pad_token_id": pad_token_id} | settings))


class WordClassifier(PreTrainedModel):
    """Word embeddings, an encoder, pooling and a head; a token outside the attention mask might as well not be there.

    Visible tokens are moved together before anything reads them, so that neither padding nor hidden words leave a trace.
    A subclass says how to encode (values [B, S, D] and visible [B, S] to states [B, S, H]) and to pool (states and
    visible to [B, H]).
    """

    config_class = WordConfig
    main_input_name = "input_ids"

    def __init__(self, config: Any) -> None:
        """Weights are drawn at random."""
        super().__init__(config)
        self.embeddings: nn.Module = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = self.make_encoder(config)
        self.pooling = self.make_pooling(config)
        self.dense: nn.Module = nn.Identity()
        width = config.hidden_size * (4 if config.pairs == "siamese" else 1)
        if config.dense_size:
            self.dense = nn.Sequential(nn.Linear(width, config.dense_size), nn.ReLU(), nn.Dropout(config.dropout))
        self.classifier = nn.Linear(config.dense_size or width, config.num_labels)
        self.post_init()

    @staticmethod
    @abstractmethod
    def make_encoder(config: Any) -> nn.Module:
        """(values [B, S, D], visible [B, S]) -> states [B, S, H]."""

    @staticmethod
    @abstractmethod
    def make_pooling(config: Any) -> nn.Module:
        """(states [B, S, H], visible [B, S]) -> float [B, H]; zeros where nothing is visible."""

    def get_input_embeddings(self) -> nn.Module:
        """The table of word embeddings."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another table in its place."""
        self.embeddings = value

    def _init_weights(self, module: nn.Module) -> None:
        reset: Any = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Logits [B, C], and the loss where there are labels (by `config.problem_type`, as in other models).

        `hidden_states` are the embeddings [B, T, D] and the encoder's states [B, T, H], 0 at tokens that are not visible.
        Raises ValueError without `token_type_ids` where the two texts of a pair are read apart.
        """
        embeddings_BTD: Tensor = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        visible_BT = torch.ones_like(embeddings_BTD[..., 0]) if attention_mask is None else attention_mask
        visible_BT = visible_BT.bool()
        if self.config.pairs == "joint":
            features_BF, states_BTH = self._read(embeddings_BTD, visible_BT)
        else:
            if token_type_ids is None:
                raise ValueError("pairs='siamese' tells two texts apart by token_type_ids, and found none; use pairs='joint'")
            second_BT = token_type_ids.bool()
            first_BH, first_BTH = self._read(embeddings_BTD, visible_BT & ~second_BT)
            other_BH, other_BTH = self._read(embeddings_BTD, visible_BT & second_BT)
            features_BF = torch.cat([first_BH, other_BH, first_BH * other_BH, (first_BH - other_BH).abs()], dim=1)
            states_BTH = first_BTH + other_BTH
        logits_BC = self.classifier(self.dense(self.dropout(features_BF)))
        loss = None if labels is None else self.loss_function(labels=labels, pooled_logits=logits_BC, config=self.config)
        wants_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden_states = (embeddings_BTD, states_BTH) if wants_states else None
        if return_dict is False:
            given: tuple[Any, ...] = (loss, logits_BC, hidden_states)
            return tuple(value for value in given if value is not None)
        return SequenceClassifierOutput(loss=loss, logits=logits_BC, hidden_states=hidden_states)

    def _read(self, embeddings_BTD: Tensor, visible_BT: Tensor) -> tuple[Tensor, Tensor]:
        """One text: what pooling makes of it [B, H], and the state of each of its tokens where it stood [B, T, H]."""
        values_BSD, visible_BS, places_BT = close_up(self.dropout(embeddings_BTD), visible_BT)
        states_BSH = self.encoder(values_BSD, visible_BS)
        where_BTH = places_BT[..., None].expand(-1, -1, states_BSH.shape[-1])
        return self.pooling(states_BSH, visible_BS), states_BSH.gather(1, where_BTH) * visible_BT[..., None]


def close_up(values_BTD: Tensor, visible_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The visible tokens moved to the left, in their order, zeros behind them: values [B, S, D], visible [B, S].

    The third is the place each token went to, int [B, T]; all hidden ones share the last place, which is empty.
    """
    # written so that ONNX has every operation, with any number of texts and tokens
    counted_BT = visible_BT.long().cumsum(1) - 1
    places_BT = torch.where(visible_BT, counted_BT, torch.ones_like(counted_BT) * values_BTD.shape[1])
    padded_BSD = pad(torch.zeros_like(values_BTD), (0, 0, 0, 1))
    values_BSD = padded_BSD.scatter(1, places_BT[..., None].expand_as(values_BTD), values_BTD * visible_BT[..., None])
    behind_BS = torch.arange(values_BSD.shape[1], device=values_BTD.device)[None]
    return values_BSD, behind_BS < visible_BT.sum(1, keepdim=True), places_BT


class WordStudent(Student):
    """Options that a BiLSTM and a TextCNN have in common."""

    embed: int | None = Field(default=None, gt=0)
    """Width of the word embeddings: 128, or that of the vectors."""
    dense: int = Field(default=0, ge=0)
    """Width of a layer with ReLU before the output; 0 for none."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Of embeddings and of what the head reads, while training."""
    pairs: Pairs = "joint"
    """`joint`: a pair is one sequence; `siamese`: each text is read alone, then [u, v, u * v, |u - v|] (Tang et al.)."""
    vectors: Path | None = None
    """A file of word vectors (GloVe, word2vec as text) instead of the teacher's embeddings and tokenizer."""
    words: int | None = Field(default=None, gt=0)
    """How many of its words to read, from the top: 30,000."""

    width_by_default: ClassVar[int] = 128
    words_by_default: ClassVar[int] = 30_000

    @model_validator(mode="after")
    def _words_of_a_file(self) -> "WordStudent":
        if self.words is not None and self.vectors is None:
            raise ValueError("words says how many vectors to read, and there is no file; add vectors=FILE")
        return self

    @abstractmethod
    def make(self, common: dict[str, Any]) -> WordClassifier:
        """The model, with random weights; `common` are settings for its config."""

    def check(self, teacher: str, *, trust_remote_code: bool) -> None:
        """As `Student.check`."""
        if self.vectors is not None and not self.vectors.expanduser().is_file():
            raise ValueError(f"vectors={self.vectors} is no file; give one with a word and its numbers in each line")

    def outline(self, teacher: str, *, trust_remote_code: bool) -> Outline:
        """As `Student.outline`."""
        width = self.width_by_default
        if self.vectors is None:
            table = loaded(AutoConfig, teacher, trust_remote_code=trust_remote_code)
            width = min(width, getattr(table, "embedding_size", None) or table.hidden_size)
        config = self.make({"vocab_size": 1, "embedding_size": self.embed or width}).config
        return Outline(config=config, tokenizer=None if self.vectors else teacher)

    def build(self, origin: Origin) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """As `Student.build`."""
        table_VD, tokenizer = self._vocabulary(origin)
        self._check_pairs(tokenizer, origin)
        common = {
            "vocab_size": len(table_VD),
            "embedding_size": table_VD.shape[1],
            "dense_size": self.dense,
            "dropout": self.dropout,
            "pairs": self.pairs,
            "pad_token_id": tokenizer.pad_token_id,
        }
        with torch.random.fork_rng():
            torch.manual_seed(origin.seed)
            model = self.make(common | label_settings(origin.task))
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(table_VD)  # type: ignore[operator]
        return model, tokenizer

    def _vocabulary(self, origin: Origin) -> tuple[Tensor, PreTrainedTokenizerBase]:
        tokenizer: PreTrainedTokenizerBase
        if self.vectors is None:
            table_VD, tokenizer = teacher_embeddings(origin)
            where, width = f"the embeddings of {origin.teacher}", self.embed or min(self.width_by_default, table_VD.shape[1])
        else:
            words, vectors_WD = read_vectors(self.vectors.expanduser(), self.words or self.words_by_default)
            table_VD, tokenizer = word_tokenizer(words, vectors_WD, seed=origin.seed)
            where, width = str(self.vectors), self.embed or table_VD.shape[1]
        if width > table_VD.shape[1]:
            raise ValueError(f"embed={width} is more than {where} have: {table_VD.shape[1]}; give at most that")
        return principal_components(table_VD, width), tokenizer

    def _check_pairs(self, tokenizer: PreTrainedTokenizerBase, origin: Origin) -> None:
        if self.pairs == "joint":
            return
        if 1 not in tokenizer("a", "a").get("token_type_ids", []):
            raise ValueError(
                "pairs=siamese tells the texts of a pair apart by token_type_ids, which this tokenizer lacks; use pairs=joint"
            )
        if origin.examples is not None and "text_pair" not in origin.examples.column_names:
            raise ValueError("pairs=siamese reads two texts apart, and the data has one; leave it out")
