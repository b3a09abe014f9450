"""Load, save and observe any Hugging Face sequence classifier or regressor.

Shapes: B batch, T tokens, D width of the embedding output, C classes (1 for regression).
A model is *observed* into one value, `Seen`; objectives and explainers compare such values and own no model.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from egkd.text import MODEL_INPUTS


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a model showed on a batch. The tensors stay in the graph when gradients are on."""

    logits_BC: Tensor
    embeddings_BTD: Tensor | None = None
    """Output of the embedding layer, only when asked for."""


def embedding_layer(model: nn.Module) -> nn.Module:
    """The module whose output enters the first encoder layer; attributions are taken there (AD-KD, GKD do so too).

    The model's own `embeddings` block (word + position + LayerNorm in BERT-like models), else its word embeddings.
    """
    base = getattr(model, getattr(model, "base_model_prefix", "") or "", model)
    block = getattr(base, "embeddings", None)
    return block if isinstance(block, nn.Module) else model.get_input_embeddings()  # type: ignore[operator]


@contextmanager
def tapped_embeddings(model: nn.Module, replace_BTD: Tensor | None = None) -> Iterator[list[Tensor]]:
    """While open, the output of the embedding layer of every forward pass is kept (or replaced by `replace_BTD`).

    What is kept requires a gradient, even where the embeddings are frozen. The hook is gone on leaving, also after an
    error.
    """
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        value = output if replace_BTD is None else replace_BTD
        if not value.requires_grad and torch.is_grad_enabled():
            value = value.detach().requires_grad_(True)
        kept.append(value)
        return value

    handle = embedding_layer(unwrapped(model)).register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


# Their classifiers read the last layer's first token and nothing else, and their layers are built like BERT's.
_READ_FIRST_TOKEN = frozenset(
    f"{name}ForSequenceClassification" for name in ("Bert", "Camembert", "Electra", "Roberta", "XLMRoberta")
)


@contextmanager
def first_token_only(model: nn.Module) -> Iterator[None]:
    """While open, a BERT-like classifier's last layer is computed for the first token alone, once it has attended.

    The same logits and gradients for an eighth less work with six layers, a quarter with three; but nobody may ask for the
    last hidden states. Other models are left alone.
    """
    own: Any = unwrapped(model)
    if type(own).__name__ not in _READ_FIRST_TOKEN:
        yield
        return
    attended = getattr(own, own.base_model_prefix).encoder.layer[-1].attention.output
    handle = attended.register_forward_pre_hook(lambda _module, args: tuple(value_BTD[:, :1] for value_BTD in args))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def double_backward() -> Iterator[None]:
    """Kernels that can be differentiated twice: fused attention and cuDNN's recurrent layers cannot (pytorch#116350, #5261)."""
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, torch.compile and their like."""
    inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def model_inputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a batch this model's `forward` takes."""
    accepted = inspect.signature(type(unwrapped(model)).forward).parameters
    return {name: batch[name] for name in MODEL_INPUTS if name in batch and name in accepted}


def observe(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    embeddings: bool = False,
    replace_BTD: Tensor | None = None,
    differentiable: bool = False,
) -> Seen:
    """One forward pass. `embeddings` keeps the embedding output, `replace_BTD` puts another in its place,
    `differentiable` picks kernels that allow a second derivative."""
    inputs = model_inputs(model, batch)
    with double_backward() if differentiable else nullcontext():
        if not embeddings and replace_BTD is None:
            return Seen(logits_BC=model(**inputs).logits)
        with tapped_embeddings(model, replace_BTD) as kept:
            logits_BC = model(**inputs).logits
    return Seen(logits_BC=logits_BC, embeddings_BTD=kept[-1])


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode without parameter gradients; every module's mode and every flag comes back on leaving."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def log_odds(logits_BC: Tensor, target_B: Tensor | None = None) -> Tensor:
    """The scalar that is explained, float [B]: log p / (1 - p) of class `target_B`, or the output itself in regression.

    It does not saturate as a probability does; for two classes it is the difference of their logits.
    """
    if logits_BC.shape[1] == 1:
        return logits_BC[:, 0]
    assert target_B is not None
    chosen_BC = nn.functional.one_hot(target_B, logits_BC.shape[1]).bool()
    others_B = logits_BC.masked_fill(chosen_BC, float("-inf")).logsumexp(1)
    return logits_BC.gather(1, target_B[:, None])[:, 0] - others_B
