"""What objectives train beside a student: modules that are part of it while it learns, and unknown to its forward pass."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:  # which build upon this
    from egkd.lessons import Lessons
    from egkd.objectives.base import Objective

HEADS = "egkd_heads"  # the student's module that holds them


def attach_heads(
    model: nn.Module, objectives: "Sequence[Objective]", lessons: "Mapping[str, Lessons]", seed: int
) -> dict[str, nn.Module]:
    """What objectives train beside the student becomes part of it, so that everything reaches it: optimiser, processes,
    checkpoints. Drawn from `seed`, without touching the random state."""
    heads: dict[str, nn.Module] = {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for objective in objectives:
            key = objective.name if objective.keeps_head else objective.key  # what stays with the student is one
            lesson = lessons[objective.key].read([0]) if objective.key in lessons else {}
            head = None if key in heads else objective.head(model, lesson)
            if head is not None:
                heads[key] = head
    if heads:
        model.add_module(HEADS, nn.ModuleDict(heads))
        tie_heads(model)
    return heads


def detach_heads(model: nn.Module, objectives: "Sequence[Objective]") -> None:
    """Take out of a finished student what was only there to teach it."""
    heads = getattr(model, HEADS, None)
    if heads is None:
        return
    kept = {objective.name for objective in objectives if objective.keeps_head}
    for name in [name for name in heads if name not in kept]:
        del heads[name]
    if len(heads) == 0:
        delattr(model, HEADS)


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
