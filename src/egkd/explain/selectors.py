"""Amortised selectors: small networks that read a frozen classifier's hidden states and say which words suffice.

Shapes: B batch, T tokens, D width of a hidden state, H width of the probe, U units, C classes (1 for regression).

A selector is trained once, on unlabeled texts (`egkd.explain.fitting`): the classifier's output on the words it keeps must
match its output on the whole text. Afterwards one forward pass of the classifier is all a selection costs.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from egkd.models import embedding_layer, frozen, model_inputs, unwrapped
from egkd.text import SPECIAL, Batch, pool_units, visible_units, width

FORMAT = 1  # of a selector on disk
Kind = Literal["l2x", "hard-concrete", "diffmask"]


@dataclass(frozen=True, kw_only=True)
class SelectorSettings:
    """How a selector is built and trained."""

    kind: Kind = "l2x"
    """What holds the selection small in training: "l2x" keeps a fixed share of each text, "hard-concrete" a share on
    average, "diffmask" as few words as leave the output within `tolerance`."""
    rate: float = Field(default=0.3, gt=0, le=1)
    """Share of words kept: ceil(rate * n) of n. "diffmask" needs it only to select."""
    examples: int = Field(default=2000, gt=0)
    """Texts to train on, drawn from the data set."""
    epochs: int = Field(default=1, gt=0)
    """Times each of them is seen."""
    batch_size: int = Field(default=16, gt=0)
    """Texts per step."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Of AdamW; rises over the first tenth of the steps, then falls to 0."""
    layers: int = Field(default=4, gt=0)
    """Hidden states that are read, evenly spread from the output of the embedding layer (always) to that of the last."""
    width: int = Field(default=64, gt=0)
    """Width of the probe (H)."""
    temperature: float | None = Field(default=None, gt=0)
    """Of the relaxed choice; the lower, the harder the choice and the noisier the gradient. None: 1 for "l2x", else 0.5."""
    tolerance: float = Field(default=0.1, gt=0)
    """Divergence of the output that "diffmask" allows: nats, or squared error in regression."""

    def heat(self) -> float:
        """The temperature, or the one that was best for this kind on SST-2."""
        return self.temperature or (1.0 if self.kind == "l2x" else 0.5)


@plain_dataclass(frozen=True, kw_only=True)
class Read:
    """What a selector reads of one forward pass, without a graph."""

    hidden: list[Tensor]
    """Float [B, T, D] each; the first one is the output of the embedding layer."""
    logits_BC: Tensor


class Selector(nn.Module):
    """Scores each unit from what the classifier thinks of its tokens.

    h_u = mean over the tokens of u of sum_l W_l norm(hidden_l), c = mean over the visible units of h, and the logit of u is
    v · gelu(h_u + A c): what a word is, in the light of its text. Deviates from DiffMask (De Cao et al. 2020), which has a
    gate for each layer and multiplies them: a few layers read together need no gate that waits for the others.
    """

    def __init__(self, settings: SelectorSettings, widths: Sequence[int]) -> None:
        """An untrained selector for hidden states of these widths."""
        super().__init__()
        self.settings, self.widths = settings, tuple(widths)
        self.folder: Path | None = None  # where it was loaded from
        self.read = nn.ModuleList(nn.Linear(width_D, settings.width) for width_D in widths)
        self.context = nn.Linear(settings.width, settings.width, bias=False)
        self.value = nn.Linear(settings.width, 1)

    def forward(self, hidden: Sequence[Tensor], batch: Batch) -> Tensor:
        """Logits of the units, float [B, U], from hidden states that are already there; 0 where a unit is not visible."""
        unit_ids_BT, n_units = batch["unit_ids"], width(batch)
        visible_BU = visible_units(unit_ids_BT, n_units)
        parts = [read(F.layer_norm(h_BTD.float(), h_BTD.shape[-1:])) for read, h_BTD in zip(self.read, hidden, strict=True)]
        units_BUH = _mean_of_units(torch.stack(parts).sum(0), unit_ids_BT, n_units) * visible_BU[..., None]
        text_B1H = (units_BUH.sum(1) / visible_BU.sum(1, keepdim=True).clamp(min=1))[:, None]
        return self.value(F.gelu(units_BUH + self.context(text_B1H)))[..., 0] * visible_BU

    def unit_logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits of the units, float [B, U], in one forward pass of `model`: the higher, the sooner a unit is kept.

        Raises ValueError for a model whose hidden states have other widths than those the selector was fitted on.
        """
        return self.logits_from(read_hidden(model, batch, self.settings.layers), batch)

    def logits_from(self, read: Read, batch: Batch) -> Tensor:
        """As `unit_logits`, from a forward pass that has been made."""
        found = tuple(h_BTD.shape[-1] for h_BTD in read.hidden)
        if found != self.widths:
            raise ValueError(
                f"this selector reads hidden states of widths {self.widths}, the model has {found}; "
                "use the model it was fitted on, or fit another selector"
            )
        here, there = self.value.weight.device, batch["unit_ids"].device  # a loaded selector is on the CPU
        with torch.no_grad(), torch.autocast(here.type, enabled=False):  # coarse scores would tie
            own = {name: batch[name].to(here) for name in ("unit_ids", "n_units")}
            return self([h_BTD.to(here) for h_BTD in read.hidden], own).to(there)

    def select(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, batch: Batch) -> Tensor:
        """Which units are kept, bool [B, U]: the ceil(rate * n) with the highest logits of the n visible ones."""
        visible_BU = visible_units(batch["unit_ids"], width(batch))
        return top_share(self.unit_logits(model, batch), visible_BU, self.settings.rate)

    def fingerprint(self) -> str:
        """sha256 over settings, names, shapes and bytes of the weights."""
        digest = hashlib.sha256(json.dumps([FORMAT, asdict(self.settings), self.widths]).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write `selector.safetensors` and `selector.json` into `folder`, the latter last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / "selector.safetensors")
        told = {"format": FORMAT, "settings": asdict(self.settings), "widths": self.widths, "fingerprint": self.fingerprint()}
        (folder / "selector.json").write_text(json.dumps(told, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The selector saved in `folder`, on the CPU.

        Raises ValueError where there is none, or one that was changed or is of another format.
        """
        try:
            told = json.loads((Path(folder) / "selector.json").read_text())
            if told["format"] != FORMAT:
                raise ValueError(f"{folder} has a selector of format {told['format']}, expected {FORMAT}; fit it again")
            selector = cls(SelectorSettings(**told["settings"]), told["widths"])
            selector.load_state_dict(load_file(Path(folder) / "selector.safetensors"))
            same = selector.fingerprint() == told["fingerprint"]
        except FileNotFoundError:
            lost = next(name for name in ("selector.json", "selector.safetensors") if not (Path(folder) / name).exists())
            raise ValueError(f"no selector in {folder}: {lost} is missing; fit one and save it there") from None
        except (json.JSONDecodeError, KeyError, TypeError, RuntimeError, ValidationError, SafetensorError) as error:
            raise ValueError(f"the selector in {folder} cannot be read ({str(error).splitlines()[0]}); fit it again") from None
        if not same:
            raise ValueError(f"the selector in {folder} is not what was saved there; fit it again")
        selector.folder = Path(folder)
        return selector.eval()


def top_share(scores_BU: Tensor, visible_BU: Tensor, rate: float) -> Tensor:
    """Bool [B, U]: the ceil(rate * n) highest of each example's n visible units, of equal ones the first."""
    order_BU = scores_BU.masked_fill(~visible_BU, -math.inf).argsort(dim=1, descending=True, stable=True)
    return (order_BU.argsort(dim=1) < kept_count(visible_BU, rate)[:, None]) & visible_BU


def kept_count(visible_BU: Tensor, rate: float) -> Tensor:
    """ceil(rate * n), int [B]; what floating point adds to a whole number does not raise it."""
    return (visible_BU.sum(1) * rate - 1e-4).ceil().long()


def read_hidden(model: nn.Module, batch: Batch, layers: int) -> Read:
    """One forward pass: the logits, the embedding layer's output and those of `layers` - 1 layers up to the last.

    Layers are the members of the model's longest `ModuleList`; of a model without one, only the embeddings are read.
    The model comes back as it was (Hugging Face's own `output_hidden_states` leaves hooks behind).
    """
    with _outputs_of([embedding_layer(unwrapped(model)), *_encoder_layers(model)]) as seen, frozen(model), torch.no_grad():
        logits_BC = model(**model_inputs(model, batch)).logits
    last = len(seen) - 1
    chosen = sorted({round(i * last / max(1, layers - 1)) for i in range(layers)})
    return Read(hidden=[seen[i] for i in chosen], logits_BC=logits_BC.float())


def _encoder_layers(model: nn.Module) -> list[nn.Module]:
    lists = [list(module) for module in unwrapped(model).modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])  # of equally long ones the outer one


@contextmanager
def _outputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """While open, what these modules return is collected, in the order of their calls."""
    outputs: list[Tensor] = []

    def collect(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append((output[0] if isinstance(output, tuple) else output).detach())

    handles = [module.register_forward_hook(collect) for module in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _mean_of_units(values_BTH: Tensor, unit_ids_BT: Tensor, n_units: int) -> Tensor:
    """Means over the tokens of each unit: float [B, n_units, H]."""
    token_BT1 = (unit_ids_BT != SPECIAL)[..., None]
    where_BTH = unit_ids_BT.clamp(min=0)[..., None].expand_as(values_BTH)
    sum_BUH = values_BTH.new_zeros(len(values_BTH), n_units, values_BTH.shape[-1])
    sum_BUH = sum_BUH.scatter_add(1, where_BTH, values_BTH * token_BT1)
    count_BU = pool_units(torch.ones_like(unit_ids_BT, dtype=values_BTH.dtype), unit_ids_BT, n_units)
    return sum_BUH / count_BU.clamp(min=1)[..., None]
