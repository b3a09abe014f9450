"""What objectives train beside a student: modules that are part of it while it learns, and unknown to its forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

HEADS = "egkd_heads"  # the student's module that holds them


@contextmanager
def without_heads(model: nn.Module) -> Iterator[None]:
    """While open, the model is the ordinary one that others know."""
    heads = getattr(model, HEADS, None)
    if heads is not None:
        delattr(model, HEADS)
    try:
        yield
    finally:
        if heads is not None:
            model.add_module(HEADS, heads)


def tie_heads(model: nn.Module) -> None:
    """Let what the model returns depend on its heads, by nothing: 0 · their parameters.

    DistributedDataParallel looks at what a pass returns to see which parameters will have a gradient. Heads are asked
    after it, so it would take them for idle and then meet their gradients.
    """
    if _tie not in model._forward_hooks.values():
        model.register_forward_hook(_tie)


def _tie(model: nn.Module, _inputs: Any, output: Any) -> None:
    heads = getattr(model, HEADS, None)
    if heads is not None and model.training:
        output.logits = output.logits + 0.0 * sum(parameter.sum() for parameter in heads.parameters())
