"""A convolutional network over word embeddings (Kim 2014, arXiv:1408.5882).

Shapes: B batch, S places of visible tokens (see `words`), D width of the word embeddings, H all feature maps beside each other.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.functional import pad

from egkd.config import check
from egkd.students.base import options
from egkd.students.words import WordClassifier, WordConfig, WordStudent


class TextCNNConfig(WordConfig):
    """Config of a `TextCNNForSequenceClassification`."""

    model_type = "egkd-textcnn"

    def __init__(self, *, filters: int = 100, widths: Sequence[int] = (3, 4, 5), **settings: Any) -> None:
        """`filters` of each width; `hidden_size` follows from both."""
        self.filters = filters
        self.widths = list(widths)
        super().__init__(**(settings | {"hidden_size": filters * len(self.widths)}))


class Convolutions(nn.Module):
    """ReLU of convolutions of several widths; a window begins at each visible token, behind the last one are zeros."""

    def __init__(self, config: Any) -> None:
        """One convolution per width."""
        super().__init__()
        self.by_width = nn.ModuleDict(
            {str(width): nn.Conv1d(config.embedding_size, config.filters, width) for width in config.widths}
        )

    def forward(self, values_BSD: Tensor, visible_BS: Tensor) -> Tensor:
        """Feature maps [B, S, H]; values behind the visible tokens are zero."""
        values_BDS = values_BSD.transpose(1, 2)
        maps = [convolve(pad(values_BDS, (0, int(width) - 1))) for width, convolve in self.by_width.items()]
        return torch.cat(maps, dim=1).relu().transpose(1, 2)


class MaxPooling(nn.Module):
    """The largest value of each feature map over the windows that begin at a visible token."""

    def forward(self, states_BSH: Tensor, visible_BS: Tensor) -> Tensor:
        """Float [B, H]; zeros where nothing is visible."""
        return (states_BSH * visible_BS[..., None]).amax(1)  # nothing is below 0 after ReLU


class TextCNNForSequenceClassification(WordClassifier):
    """Convolutions of several widths over word embeddings, the maximum over time, dropout, the output."""

    config_class = TextCNNConfig

    @staticmethod
    def make_encoder(config: Any) -> nn.Module:
        """`Convolutions`."""
        return Convolutions(config)

    @staticmethod
    def make_pooling(config: Any) -> nn.Module:
        """`MaxPooling`."""
        return MaxPooling()


class TextCNNStudent(WordStudent):
    """`textcnn`, `textcnn:filters=100,widths=3-4-5,embed=128`."""

    filters: int = Field(default=100, gt=0)
    """Feature maps of each width."""
    widths: tuple[int, ...] = (3, 4, 5)
    """Tokens in a window, with dashes between them."""

    spec: ClassVar[str] = "textcnn"

    @field_validator("widths", mode="before")
    @classmethod
    def _with_dashes(cls, value: Any) -> Any:
        return value.split("-") if isinstance(value, str) else value

    @field_validator("widths")
    @classmethod
    def _each_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1 or len(set(value)) < len(value):
            raise ValueError("expected different widths of 1 or more, like 3-4-5")
        return value

    @classmethod
    def described(cls, spec: str, rest: str) -> "TextCNNStudent":
        """From what stands after `textcnn:`."""
        return check(cls, options(spec, rest) if rest else {}, cls.spec)

    def make(self, common: dict[str, Any]) -> WordClassifier:
        """As `WordStudent.make`."""
        return TextCNNForSequenceClassification(TextCNNConfig(filters=self.filters, widths=self.widths, **common))
