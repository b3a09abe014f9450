"""How far an explanation moves when the model's word vectors move a little.

Max-sensitivity (Yeh et al. 2019, arXiv:1901.09392, definition 3) is the largest distance between the scores of x and of a
point near it. A text has no points near it, so its word vectors are moved: every coordinate of every vector by a number
uniform in ±radius · (root mean square of the table). Noise of the table and not of the text keeps all perturbed copies of
a text consistent, so that every family of explainers can be judged. Shapes: U units, N visible units, V vocabulary, D width.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from egkd.explain.base import Explainer, Precision, score_dataset
from egkd.explain.perturbation import Floats
from egkd.models import embedding_layer, unwrapped


def explain_nearby(
    explainer: Explainer,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    targets: Sequence[int],
    *,
    samples: int,
    radius: float,
    seed: int,
    token_budget: int,
    precision: Precision = "float32",
) -> list[list[Floats]]:
    """Scores [U] of every row under each of `samples` draws of the noise; explainers that draw use the same seed each time."""
    found = []
    for draw in range(samples):
        with moved_words(model, radius, hash((seed, draw)) % 2**63):
            scored = score_dataset(
                explainer, model, tokenizer, rows, targets=targets, seed=seed, token_budget=token_budget, precision=precision
            )
        found.append([one.scores_U.double().numpy() for one in scored])
    return found


def relative_distance(one_N: Floats, other_N: Floats) -> float:
    """|one - other| / |other|, Euclidean; NaN where `other` is zero."""
    size = float(np.linalg.norm(np.nan_to_num(other_N)))
    return float(np.linalg.norm(np.nan_to_num(one_N - other_N))) / size if size > 0 else math.nan


@contextmanager
def moved_words(model: nn.Module, radius: float, seed: int) -> Iterator[None]:
    """While open, all word vectors the model looks up are moved by the noise of this seed; its weights stay untouched.

    Raises ValueError for a model without a table of word vectors.
    """
    table = _word_table(unwrapped(model))
    generator = torch.Generator().manual_seed(seed)
    noise_VD = torch.rand(table.weight.shape, generator=generator) * 2 - 1
    noise_VD = (noise_VD * radius * float(table.weight.detach().float().square().mean().sqrt())).to(table.weight)

    def move(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + noise_VD[inputs[0]]

    handle = table.register_forward_hook(move)
    try:
        yield
    finally:
        handle.remove()


def _word_table(model: nn.Module) -> nn.Embedding:
    get = getattr(model, "get_input_embeddings", None)
    table = get() if get is not None else embedding_layer(model)
    if not isinstance(table, nn.Embedding):
        raise ValueError(
            f"{type(model).__name__} looks words up in {type(table).__name__}, not in an Embedding; use sensitivity_samples=0"
        )
    return table
