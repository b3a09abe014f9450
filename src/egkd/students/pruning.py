"""Thinner layers: the feed-forward neurons and attention heads that the data need least are taken out of a transformer.

Shapes: B batch, T tokens, F feed-forward neurons of a layer, G groups of heads that share keys and values, W the width of
what enters a projection (F, or all heads beside each other).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from egkd.data import has_label, sample
from egkd.models import frozen, observe
from egkd.objectives.predictions import label_loss
from egkd.predict import encode_dataset
from egkd.text import collate

_WIDTHS = ("intermediate_size", "hidden_dim")  # what configs call the feed-forward width


@dataclass(frozen=True, kw_only=True)
class Part:
    """A place in a layer where units side by side enter a projection: neurons of a feed-forward layer, or heads."""

    into: tuple[nn.Linear, ...]
    """What computes the units: their rows belong to them, each in as many equal blocks as there are units."""
    out: nn.Linear
    """What reads them: its columns belong to them."""
    units: int


def check_thin(config: Any, *, ffn: int | None, heads: int | None) -> None:
    """Refuse widths that a model of this config cannot have. Raises ValueError."""
    if ffn is not None:
        width = getattr(config, _width_name(config), None)
        if not isinstance(width, int):
            raise ValueError(f"{config.model_type} has no one feed-forward width to make thinner; leave out ffn={ffn}")
        if ffn > width:
            raise ValueError(f"ffn={ffn} asks for {ffn} feed-forward neurons, the teacher's layers have {width}")
    if heads is not None:
        if getattr(config, "num_key_value_heads", None) is None:
            raise ValueError(
                f"heads={heads}: in {config.model_type} a head's size is always hidden size / heads, so fewer of them "
                "could not be loaded again; leave it out and set ffn"
            )
        shared = config.num_attention_heads // config.num_key_value_heads
        if heads > config.num_attention_heads or heads % shared:
            raise ValueError(
                f"heads={heads}: expected a multiple of {shared} (they share their keys), at most {config.num_attention_heads}"
            )


def labelled(examples: Dataset, limit: int, seed: int) -> Dataset:
    """At most `limit` of the rows that have a label, drawn from `seed`. Raises ValueError where none has."""
    known = [row for row, label in enumerate(examples["label"]) if has_label(label)]
    if not known:
        raise ValueError("making layers thinner needs examples with labels, and no row has one; leave out ffn and heads")
    return sample(examples.select(known), limit, seed)


def prune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset,
    layers: Sequence[int],
    *,
    ffn: int | None,
    heads: int | None,
    max_length: int,
) -> None:
    """Keep the `ffn` feed-forward neurons and `heads` heads of each of these layers that matter most to the model's own loss.

    It stays an ordinary model of its kind: every layer keeps as many, and its config says so. Raises ValueError for
    architectures whose layers are not made of plain projections.
    """
    check_thin(model.config, ffn=ffn, heads=heads)
    blocks = layer_list(model)[2]
    parts: list[Part] = []
    counts: list[int] = []
    for index in layers:
        if ffn is not None:
            parts.append(_feed_forward(model, blocks[index]))
            counts.append(ffn)
        if heads is not None:
            parts.append(_attention(model, blocks[index]))
            counts.append(heads * model.config.num_key_value_heads // model.config.num_attention_heads)
    found = importance(model, tokenizer, examples, parts, max_length=max_length)
    if ffn is not None:
        setattr(model.config, _width_name(model.config), ffn)
    if heads is not None:
        config = model.config
        config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        config.num_key_value_heads = heads * config.num_key_value_heads // config.num_attention_heads
        config.num_attention_heads = heads
    for part, scores, count in zip(parts, found, counts, strict=True):
        keep_units(part, scores.argsort(descending=True, stable=True)[:count].sort().values)


def importance(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset,
    parts: Sequence[Part],
    *,
    max_length: int,
    batch_size: int = 32,
) -> list[Tensor]:
    """How much the loss on the labels would change, to first order, without each unit: one float64 [units] per part.

    The sum over examples of |dL/dg| at 1, where g is a gate that multiplies the unit. That is |sum w * dL/dw| over the
    unit's weights in the projection that reads it (Michel et al. 2019, eq. 3; Molchanov et al. 2017), at the cost of one
    forward and one backward pass per example, for activations only.
    """
    rows = list(encode_dataset(examples, tokenizer, max_length))
    device = next(model.parameters()).device
    totals = [torch.zeros(part.units, dtype=torch.float64) for part in parts]
    with frozen(model):
        for start in range(0, len(rows), batch_size):
            batch = collate(rows[start : start + batch_size], tokenizer.pad_token_id or 0)
            batch = {name: value.to(device) for name, value in batch.items()}
            gates = [torch.ones(len(batch["input_ids"]), part.units, device=device, requires_grad=True) for part in parts]
            with _gated(parts, gates):
                loss = label_loss(observe(model, batch).logits_BC, batch["labels"]).sum()
            gradients = torch.autograd.grad(loss, gates)
            totals = [total + g.abs().sum(0).double().cpu() for total, g in zip(totals, gradients, strict=True)]
    return totals


@contextmanager
def _gated(parts: Sequence[Part], gates: Sequence[Tensor]) -> Iterator[None]:
    """While open, each unit is multiplied by its example's gate."""

    def through(gate_BU: Tensor) -> Any:
        def multiply(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            values_BTW = inputs[0]
            gate_BW = gate_BU.repeat_interleave(values_BTW.shape[-1] // gate_BU.shape[1], dim=1)
            return (values_BTW * gate_BW[:, None], *inputs[1:])

        return multiply

    with ExitStack() as hooks:
        for part, gate_BU in zip(parts, gates, strict=True):
            hooks.callback(part.out.register_forward_pre_hook(through(gate_BU)).remove)
        yield


def keep_units(part: Part, kept: Tensor) -> None:
    """Take all other units out of the projections of `part`, in place."""
    with torch.no_grad():
        for linear in part.into:
            rows = _block(kept, linear.out_features // part.units)
            linear.weight = nn.Parameter(linear.weight[rows].clone())
            if linear.bias is not None:
                linear.bias = nn.Parameter(linear.bias[rows].clone())
            linear.out_features = len(rows)
        columns = _block(kept, part.out.in_features // part.units)
        part.out.weight = nn.Parameter(part.out.weight[:, columns].clone())
        part.out.in_features = len(columns)


def _block(kept: Tensor, size: int) -> Tensor:
    return (kept[:, None] * size + torch.arange(size)).flatten()


def _feed_forward(model: PreTrainedModel, layer: nn.Module) -> Part:
    width, linears = getattr(model.config, _width_name(model.config)), _linears(layer)
    into = tuple(linear for linear in linears if linear.out_features == width != linear.in_features)
    out = [linear for linear in linears if linear.in_features == width != linear.out_features]
    if len(out) != 1 or len(into) not in (1, 2):  # two where one is a gate
        raise ValueError(f"the feed-forward layers of {type(model).__name__} are not plain projections; leave out ffn")
    return Part(into=into, out=out[0], units=width)


def _attention(model: PreTrainedModel, layer: nn.Module) -> Part:
    found = [module for module in layer.modules() if all(hasattr(module, f"{name}_proj") for name in "qkvo")]
    if len(found) != 1:
        raise ValueError(f"the attention of {type(model).__name__} is not made of plain projections; leave out heads")
    own: Any = found[0]
    return Part(into=(own.q_proj, own.k_proj, own.v_proj), out=own.o_proj, units=model.config.num_key_value_heads)


def _linears(layer: nn.Module) -> list[nn.Linear]:
    return [module for module in layer.modules() if isinstance(module, nn.Linear)]


def _width_name(config: Any) -> str:
    return next((name for name in _WIDTHS if hasattr(config, name)), _WIDTHS[0])


def rebuilds(model: PreTrainedModel) -> bool:
    """Whether a model made from the config alone takes these weights and answers the same; else what is saved is another."""
    ids_BT = torch.arange(2 * 8).reshape(2, 8) % model.config.get_text_config().vocab_size
    inputs = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
    with torch.random.fork_rng(), torch.no_grad():
        try:
            twin: nn.Module = type(model)(type(model.config).from_dict(model.config.to_dict()))
            twin.load_state_dict(model.state_dict())
        except Exception:  # a config that fits no model fails in its own way
            return False
        ours, theirs = (each.eval()(**inputs).logits for each in (model, twin.to(model.dtype)))
    return torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def layer_list(model: PreTrainedModel) -> tuple[nn.Module, str, nn.ModuleList]:
    """The one list of the model's layers: the module that has it, its name there, the list.

    Raises ValueError for architectures whose layers are not separate modules (ALBERT shares one).
    """
    depth = model.config.num_hidden_layers
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == depth
    ]
    if len(found) != 1:  # with two lists (XLM, BART) nobody knows what belongs together
        raise ValueError(f"{type(model).__name__} has no one list of {depth} layers to choose from; name a student by its path")
    return found[0]
