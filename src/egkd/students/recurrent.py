"""A bidirectional LSTM with attention pooling.

Shapes: B batch, S places of visible tokens (see `words`), D width of the word embeddings, H both directions beside each other.
"""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from egkd.config import check
from egkd.students.base import options
from egkd.students.words import WordClassifier, WordConfig, WordStudent


class BiLSTMConfig(WordConfig):
    """Config of a `BiLSTMForSequenceClassification`."""

    model_type = "egkd-bilstm"

    def __init__(self, *, num_hidden_layers: int = 1, dense_size: int = 200, **settings: Any) -> None:
        """`hidden_size` counts both directions."""
        self.num_hidden_layers = num_hidden_layers
        super().__init__(dense_size=dense_size, **settings)


class BiLSTM(nn.Module):
    """Layers of two LSTMs each, one from the left and one from the right; the right one begins at the last visible token.

    The same as `nn.LSTM(bidirectional=True)` on packed sequences, without their trip to the CPU, and exportable.
    """

    def __init__(self, config: Any) -> None:
        """As many layers as the config says, dropout between them."""
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.depth = config.num_hidden_layers
        self.directions = nn.ModuleDict()  # no list: nothing in here has one output per token of the batch
        for layer in range(self.depth):
            width = config.hidden_size if layer else config.embedding_size
            for direction in ("right", "left"):
                self.directions[f"{direction}_{layer}"] = nn.LSTM(width, config.hidden_size // 2, batch_first=True)

    def forward(self, values_BSD: Tensor, visible_BS: Tensor) -> Tensor:
        """States of every token [B, S, H]; what stands behind the visible tokens means nothing."""
        place_1S, count_B1 = torch.arange(values_BSD.shape[1], device=values_BSD.device)[None], visible_BS.sum(1, keepdim=True)
        mirrored_BS = torch.where(visible_BS, count_B1 - 1 - place_1S, place_1S)
        states_BSH = values_BSD
        for layer in range(self.depth):
            if layer:
                states_BSH = self.dropout(states_BSH)
            right = self.directions[f"right_{layer}"](states_BSH)[0]
            left = self.directions[f"left_{layer}"](_in_order(states_BSH, mirrored_BS))[0]
            states_BSH = torch.cat([right, _in_order(left, mirrored_BS)], dim=2)
        return states_BSH


def _in_order(values_BSD: Tensor, order_BS: Tensor) -> Tensor:
    return values_BSD.gather(1, order_BS[..., None].expand(-1, -1, values_BSD.shape[-1]))


class AttentionPooling(nn.Module):
    """sum_t a_t h_t with a = softmax over visible tokens of v · tanh(W h_t + b) (Yang et al. 2016)."""

    def __init__(self, width: int) -> None:
        """`width` of the states."""
        super().__init__()
        self.project = nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, states_BSH: Tensor, visible_BS: Tensor) -> Tensor:
        """Float [B, H]; zeros where nothing is visible."""
        scores_BS = self.score(torch.tanh(self.project(states_BSH)))[..., 0]
        scores_BS = scores_BS.masked_fill(~visible_BS, torch.finfo(scores_BS.dtype).min)
        weights_BS = scores_BS.softmax(1) * visible_BS
        return (weights_BS[..., None] * states_BSH).sum(1)


class BiLSTMForSequenceClassification(WordClassifier):
    """1-2 bidirectional LSTM layers over word embeddings, attention pooling, a ReLU layer, the output."""

    config_class = BiLSTMConfig

    @staticmethod
    def make_encoder(config: Any) -> nn.Module:
        """A `BiLSTM`."""
        return BiLSTM(config)

    @staticmethod
    def make_pooling(config: Any) -> nn.Module:
        """An `AttentionPooling`."""
        return AttentionPooling(config.hidden_size)


class BiLSTMStudent(WordStudent):
    """`bilstm`, `bilstm:hidden=150,layers=1,embed=128`."""

    hidden: int = Field(default=150, gt=0)
    """Units of each direction."""
    layers: int = Field(default=1, ge=1, le=4)
    dense: int = Field(default=200, ge=0)
    """Width of the layer with ReLU before the output; 0 for none."""

    spec: ClassVar[str] = "bilstm"

    @classmethod
    def described(cls, spec: str, rest: str) -> "BiLSTMStudent":
        """From what stands after `bilstm:`."""
        return check(cls, options(spec, rest) if rest else {}, cls.spec)

    def make(self, common: dict[str, Any]) -> WordClassifier:
        """As `WordStudent.make`."""
        return BiLSTMForSequenceClassification(
            BiLSTMConfig(hidden_size=2 * self.hidden, num_hidden_layers=self.layers, **common)
        )
