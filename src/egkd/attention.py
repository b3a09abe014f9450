"""What happens inside attention, made visible: weights where kernels hide them, and queries, keys, values.

Shapes: B batch, T tokens, D width of a layer's queries, keys or values.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

_NAMES = (
    ("query", "key", "value"),  # BERT, RoBERTa, ELECTRA, ALBERT
    ("query_proj", "key_proj", "value_proj"),  # DeBERTa
    ("q_lin", "k_lin", "v_lin"),  # DistilBERT
    ("q_proj", "k_proj", "v_proj"),  # Llama, Qwen2, Gemma
    ("q", "k", "v"),  # MPNet
)

Projections = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values of one layer, before they are split into heads, [B, T, D] each."""


@contextmanager
def eager_attention(model: nn.Module) -> Iterator[None]:
    """While open, a model of transformers computes attention step by step: fused kernels never have its weights."""
    own: Any = model
    before = own.config._attn_implementation
    if before == "eager":
        yield
        return
    own.set_attn_implementation("eager")
    try:
        yield
    finally:
        own.set_attn_implementation(before)


def projecting_layers(model: nn.Module) -> list[tuple[nn.Module, tuple[nn.Linear, nn.Linear, nn.Linear]]]:
    """Every attention block of a model and its layers that make queries, keys and values; none where it makes them as one."""
    return [
        (module, tuple(getattr(module, name) for name in names))
        for module in model.modules()
        for names in _NAMES
        if all(isinstance(getattr(module, name, None), nn.Linear) for name in names)
    ]


def outline(config: PreTrainedConfig) -> PreTrainedModel | None:
    """The classifier of this config, without weights; None where its code comes with a checkpoint."""
    try:
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        return None


def widths_of_projections(config: PreTrainedConfig) -> set[int] | None:
    """How wide the queries, keys and values of a classifier of this config are.

    None of them where it makes them as one; None where that is seen when its checkpoint is there.
    """
    model = outline(config)
    return None if model is None else {layer.out_features for _, layers in projecting_layers(model) for layer in layers}


@contextmanager
def tapped_projections(model: nn.Module) -> Iterator[list[Projections]]:
    """While open, what every attention block of a forward pass projects is kept, in the order of layers (after leaving).

    The hooks are gone on leaving, also after an error. Raises ValueError for a model that projects as one.
    """
    found = projecting_layers(model)
    if not found:
        raise ValueError(
            f"{type(model).__name__} does not make queries, keys and values by layers of their own, so they cannot be "
            "compared; use hidden-states or attention-maps"
        )
    kept: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    projections: list[Projections] = []
    calls = 0

    def begin(*_: Any) -> None:
        nonlocal calls
        calls += 1

    def keep(_layer: nn.Module, _inputs: Any, output: Tensor, place: int) -> None:
        if len(kept[place]) < calls:  # DeBERTa projects positions by the same layers, after the states
            kept[place].append(output)

    handles = [block.register_forward_pre_hook(begin) for block, _ in found]
    handles += [
        layer.register_forward_hook(partial(keep, place=place)) for _, layers in found for place, layer in enumerate(layers)
    ]
    try:
        yield projections
        projections.extend(zip(*kept, strict=True))
    finally:
        for handle in handles:
            handle.remove()
