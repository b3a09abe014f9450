"""Load, save and observe any Hugging Face sequence classifier or regressor.

Shapes: B batch, T tokens, D width of the embedding output, C classes (1 for regression).
A model is *observed* into one value, `Seen`; objectives and explainers compare such values and own no model.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedTokenizerBase
from transformers.models.bert.modeling_bert import BertCrossAttention

from egkd.attention import Projections, eager_attention, tapped_projections
from egkd.dropout import random_state, same_dropout, without_dropout
from egkd.text import MODEL_INPUTS

Need = Literal["embeddings", "hidden_states", "attentions", "projections"]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a model showed on a batch. The tensors stay in the graph when gradients are on."""

    logits_BC: Tensor
    embeddings_BTD: Tensor | None = None
    """Output of the embedding layer, only when asked for."""
    hidden_states: tuple[Tensor, ...] | None = None
    """Output of the embedding layer and of every layer, [B, T, D] each, only when asked for."""
    attentions: tuple[Tensor, ...] | None = None
    """Attention weights of every layer, [B, heads, T, T] each, only when asked for; in training after dropout."""
    projections: tuple[Projections, ...] | None = None
    """Queries, keys and values of every layer, only when asked for."""
    at: Callable[[Tensor], Tensor] | None = None
    """The logits of the same pass, with the same dropout, at other embeddings [B, T, D], in full precision; comes with
    `embeddings_BTD`."""
    mixed: bool = False
    """Whether this pass was in mixed precision, unlike those of `at`."""


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

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        own, *beside = (output,) if isinstance(output, Tensor) else output  # I-BERT's and LiLT's say more
        value = own if replace_BTD is None else replace_BTD
        if not value.requires_grad and torch.is_grad_enabled():
            value = value.detach().requires_grad_(True)
        kept.append(value)
        return (value, *beside) if beside else value

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
    """While open, a BERT-like classifier's last layer asks, and is computed, for the first token alone.

    The same logits and gradients for an eighth less work with six layers, a quarter with three; but nobody may ask for the
    last hidden states. Other models are left alone, and so are those that compute layers anew on the way back
    (checkpointing), when the context is long gone, that were compiled without it, or that attend by other kernels than torch's.
    """
    own: Any = unwrapped(model)
    if type(own).__name__ not in _READ_FIRST_TOKEN or checkpoints(own) or compiled(model):
        yield
        return
    block = getattr(own, own.base_model_prefix).encoder.layer[-1].attention
    ordinary = own.config._attn_implementation in ("eager", "sdpa") and not own.config.is_decoder
    asks = ordinary and "forward" not in vars(block.self)  # where others have put their own
    if asks:
        block.self.forward = partial(_attend_from_first, block.self)
    handle = block.output.register_forward_pre_hook(lambda _module, args: tuple(value_BTD[:, :1] for value_BTD in args))
    try:
        yield
    finally:
        handle.remove()
        if asks:
            del block.self.forward


def _attend_from_first(
    attention: BertCrossAttention,
    hidden_BTD: Tensor,
    *,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: None = None,
    **settings: Any,
) -> tuple[Tensor, ...]:
    """Self-attention of the first token to all, which is cross-attention of a text of one token."""
    mask_B1QT = None if attention_mask is None else attention_mask[:, :, :1]
    return BertCrossAttention.forward(attention, hidden_BTD[:, :1], hidden_BTD, mask_B1QT, **settings)


def checkpoints(model: nn.Module) -> bool:
    """Whether it computes layers anew on the way back."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


@contextmanager
def double_backward() -> Iterator[None]:
    """Kernels that can be differentiated twice: fused attention and cuDNN's recurrent layers cannot (pytorch#116350, #5261)."""
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, torch.compile and their like."""
    inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def compiled(model: nn.Module) -> bool:
    """Whether torch.compile made it, perhaps inside DistributedDataParallel."""
    inner = getattr(model, "module", None)
    return hasattr(model, "_orig_mod") or (isinstance(inner, nn.Module) and compiled(inner))


def reads_last_token(model: nn.Module) -> bool:
    """Whether it is a decoder whose head, called `score`, reads the last token that is not `config.pad_token_id`."""
    own: Any = unwrapped(model)
    return hasattr(own, "score") or getattr(getattr(own, "config", None), "model_type", "") in ("ctrl", "modernbert-decoder")


def padding_of_last_token_readers(model: nn.Module) -> int | None:
    """The token that a model which `reads_last_token` takes for padding; None for other models.

    Raises ValueError where its config names none: then it reads whatever comes last in a batch, as XLNet always does.
    """
    own: Any = unwrapped(model)
    if getattr(getattr(own, "config", None), "model_type", "") == "xlnet":
        raise ValueError(f"{type(own).__name__} reads the last place of a batch, be it padding; take another model")
    if not reads_last_token(model):
        return None
    padding_id = own.config.get_text_config().pad_token_id
    if padding_id is None or padding_id < 0:
        raise ValueError(
            f"{type(own).__name__} reads the last token of a text and does not know which is padding; "
            "set model.config.pad_token_id = tokenizer.pad_token_id"
        )
    return int(padding_id)


def model_inputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """The part of a batch this model's `forward` takes.

    Positions of tokens are counted from 0 in a batch; RoBERTa and its like count theirs from the row after padding's. A model
    that looks for its last token by what is not padding gets its own padding token wherever attention is 0.
    """
    accepted = inspect.signature(type(unwrapped(model)).forward).parameters
    inputs: dict[str, Any] = {name: batch[name] for name in MODEL_INPUTS if name in batch and name in accepted}
    if "use_cache" in accepted:
        inputs["use_cache"] = False  # of keys and values, for generating
    padding_id = padding_of_last_token_readers(model)
    if padding_id is not None:
        inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, padding_id)
    if "position_ids" in inputs:
        positions = getattr(embedding_layer(unwrapped(model)), "position_embeddings", None)
        padding = getattr(positions, "padding_idx", None)
        inputs["position_ids"] = inputs["position_ids"] + (0 if padding is None else padding + 1)
    return inputs


def observe(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    keep: Collection[str] = (),
    replace_BTD: Tensor | None = None,
    differentiable: bool = False,
    still: bool = False,
) -> Seen:
    """One forward pass, of the first token alone in the last layer where nobody looks at the others.

    `keep` names what is wanted beside the logits (see `Need`), `replace_BTD` takes the place of the embedding output,
    `differentiable` picks kernels that allow a second derivative; `still` drops nothing.
    """
    embeddings, layers = "embeddings" in keep, [name for name in ("hidden_states", "attentions") if name in keep]
    inputs = model_inputs(model, batch) | {f"output_{name}": True for name in layers}
    random = random_state(batch["input_ids"].device) if embeddings and model.training else None
    with ExitStack() as stack:
        if still:
            stack.enter_context(without_dropout(model))
        if differentiable:
            stack.enter_context(double_backward())
        elif torch.is_grad_enabled() and not model.training:  # cuDNN's recurrent layers have a gradient in training mode only
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if compiled(model) and (keep or replace_BTD is not None):  # a compiled graph cannot be tapped
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if "attentions" in keep:
            stack.enter_context(eager_attention(unwrapped(model)))
        if not layers and "projections" not in keep:
            stack.enter_context(first_token_only(model))
        projections = stack.enter_context(tapped_projections(unwrapped(model))) if "projections" in keep else []
        kept = stack.enter_context(tapped_embeddings(model, replace_BTD)) if embeddings or replace_BTD is not None else [None]
        out = model(**inputs)

    others = [name for name in keep if name != "embeddings"]

    def at(embeddings_BTD: Tensor) -> Tensor:
        device = batch["input_ids"].device
        with same_dropout(random, device), _full_precision(model, device):
            return observe(
                model, batch, keep=others, replace_BTD=embeddings_BTD, differentiable=differentiable, still=still
            ).logits_BC  # who looks at what decides which dropout is drawn

    return Seen(
        logits_BC=out.logits,
        embeddings_BTD=kept[-1],
        hidden_states=tuple(out.hidden_states) if "hidden_states" in keep else None,
        attentions=tuple(out.attentions) if "attentions" in keep else None,
        projections=tuple(projections) if "projections" in keep else None,
        at=at if embeddings else None,
        mixed=torch.is_autocast_enabled(batch["input_ids"].device.type) or _accelerated(model) is not None,
    )


_POSITIONS = ("position_embeddings", "wpe", "embed_positions")
"""What learnt positions are called."""


def longest(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that `model` reads at most: as its tokenizer says, and as far as its learnt positions reach."""
    tables = [m for name, m in model.named_modules() if name.rpartition(".")[2] in _POSITIONS and isinstance(m, nn.Embedding)]
    own: Any = unwrapped(model)
    most = getattr(own.config.get_text_config(), "max_position_embeddings", None)  # OPT and its like begin to count behind it
    spare = [max(0, table.num_embeddings - (most or table.num_embeddings)) for table in tables]
    ends = [
        table.num_embeddings - (before if table.padding_idx is None else table.padding_idx + 1)
        for table, before in zip(tables, spare, strict=True)
    ]
    return min([int(tokenizer.model_max_length), *ends])


@contextmanager
def _full_precision(model: nn.Module, device: torch.device) -> Iterator[None]:
    """While open, passes are in full precision, also those of a model into whose `forward` accelerate has put autocast."""
    own: Any = unwrapped(model)
    plain = _accelerated(model)
    mixed = own.forward
    if plain is not None:
        own.forward = plain
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if plain is not None:
            own.forward = mixed


def _accelerated(model: nn.Module) -> Any:
    """The `forward` that accelerate found when it put autocast there; None where it did not."""
    return vars(unwrapped(model)).get("_original_forward")


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
