"""Dropout: how much of it, none of it, and the same of it once more."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

RandomState = tuple[Tensor, Tensor | None]
"""Of the processor, and of an accelerator where there is one."""


def set_dropout(model: nn.Module, share: float) -> None:
    """Drop this share of values in training, everywhere. The config, and so what is saved, keeps the architecture's own."""
    for module, name in _dropouts(model):
        setattr(module, name, share)


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """While open, nothing is dropped. The model stays in training mode: some recurrent kernels have no gradient without."""
    kept = [(module, name, getattr(module, name)) for module, name in _dropouts(model)]
    set_dropout(model, 0.0)
    try:
        yield
    finally:
        for module, name, share in kept:
            setattr(module, name, share)


def _dropouts(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Where a model's dropout is written: in modules of its own, and as numbers handed to an attention or recurrent kernel."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            yield module, "p"
        yield from [(module, name) for name, value in vars(module).items() if "dropout" in name and isinstance(value, float)]


def random_state(device: torch.device) -> RandomState:
    """What the next draws on the processor and on `device` depend on."""
    return torch.get_rng_state(), None if device.type == "cpu" else _generator(device).get_rng_state(*_number(device))


def _generator(device: torch.device) -> Any:
    """Who keeps the random state of an accelerator."""
    return torch.get_device_module(device)


def _number(device: torch.device) -> tuple[torch.device, ...]:
    """Which of several; there is one Apple GPU at most."""
    return () if device.type == "mps" else (device,)


@contextmanager
def same_dropout(random: RandomState | None, device: torch.device) -> Iterator[None]:
    """While open, random numbers are those of an earlier pass again; then those that would have come."""
    if random is None:
        yield
        return
    now = random_state(device)
    _set_random_state(random, device)
    try:
        yield
    finally:
        _set_random_state(now, device)


def _set_random_state(random: RandomState, device: torch.device) -> None:
    torch.set_rng_state(random[0])
    if random[1] is not None:
        _generator(device).set_rng_state(random[1], *_number(device))
