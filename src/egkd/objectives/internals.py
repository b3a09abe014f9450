"""What happens inside both models as objectives: the losses that students are usually compared on.

Shapes: B batch, T tokens (special ones included), D width, H heads. A layer's number counts from 1, the embeddings are 0.
These compare layers, so a map says which of them belong together, and a projection, learnt and then thrown away, makes
widths equal.
"""

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from egkd.attention import outline
from egkd.models import Need, Seen, frozen, observe, reads_last_token
from egkd.objectives.base import Lesson, Moment, Objective, Taught, Teacher, cut_tokens
from egkd.text import Batch

LayerMap = Literal["uniform", "last", "final"] | dict[int, int]
"""Which layer of the teacher each layer of the student learns from.

- `uniform`: layer m of M from layer m N / M of N, rounded (TinyBERT, PKD-Skip)
- `last`: the student's layers from as many last ones (PKD-Last)
- `final`: the last layer from the last (MiniLM)
- or a table, the student's layer: the teacher's
"""
INSTEAD = "use soft-labels or a guide (gradient, perturbation, selection)"


def layer_map(layers: LayerMap, student: int, teacher: int, *, lowest: int = 1, inner: bool = False) -> dict[int, int]:
    """The table that `layers` means for models of so many layers. `uniform` begins at `lowest`; `inner` leaves embeddings and
    the student's last layer out of `uniform` and `last`. Raises ValueError where nothing is left, or a layer is none."""
    if isinstance(layers, dict):
        if not layers:
            raise ValueError("layers names none; give a table, the student's layer: the teacher's")
        for role, numbers, depth in (("student", layers.keys(), student), ("teacher", layers.values(), teacher)):
            wrong = [number for number in numbers if not lowest <= number <= depth]
            if wrong:
                raise ValueError(f"layers names layer {wrong[0]} of the {role}, which has layers {lowest} to {depth}")
        return dict(layers)
    if layers == "final":
        return {student: teacher}
    first, behind = (1, student) if inner else (lowest, student + 1)
    if first == behind:
        raise ValueError(f"layers {layers!r} leaves out the last of {student} layers, and none is left; use 'final'")
    if layers == "uniform":
        return {each: max(int(each * teacher / student + 0.5), min(each, 1)) for each in range(first, behind)}
    if student > teacher:
        raise ValueError(f"layers 'last' wants {student} layers of the teacher, which has {teacher}; use 'uniform'")
    return {each: each + teacher - student for each in range(1, behind)}


def _depth(config: PreTrainedConfig) -> int:
    """Layers whose states a model shows: a recurrent or convolutional encoder shows one."""
    depth = getattr(config, "shown_layers", None) or getattr(config.get_text_config(), "num_hidden_layers", None)
    if depth is None:
        raise ValueError(f"{config.model_type} does not say how many layers it has, so they cannot be compared; {INSTEAD}")
    return int(depth)


def heads_of(config: PreTrainedConfig) -> int | None:
    return getattr(config.get_text_config(), "num_attention_heads", None)


class Layered(Objective):
    """Something that layers show, compared layer by layer."""

    lowest: ClassVar[int] = 1
    """The first layer that shows it."""
    inner: ClassVar[bool] = False
    """Whether named maps leave out embeddings and last layer."""

    layers: LayerMap = "uniform"
    """Which layer learns from which."""

    def between(self, teacher: PreTrainedConfig, student: PreTrainedConfig) -> Self:
        """With the table in the place of a map's name. Raises ValueError where there is none to compare."""
        self.check(teacher, student)
        try:
            table = layer_map(self.layers, _depth(student), _depth(teacher), lowest=self.lowest, inner=self.inner)
        except ValueError as error:
            raise ValueError(f"objectives.{self.name}: {error}") from None
        return self.model_copy(update={"layers": table})

    def check(self, teacher: PreTrainedConfig, student: PreTrainedConfig) -> None:
        """Refuse models that do not show it. Raises ValueError."""

    @property
    def pairs(self) -> dict[int, int]:
        """Student's layer: teacher's. Raises ValueError before `between` has told the models."""
        if isinstance(self.layers, str):
            raise ValueError(
                f"objectives.{self.name}.layers is {self.layers!r}, and no student is known yet that would say what it means; "
                "give a table, the student's layer: the teacher's (in Python: between(teacher.config, student.config))"
            )
        return self.layers

    def lesson_key(self) -> dict[str, Any]:
        """With the teacher's layers, whichever student's layers learn from them."""
        return super().lesson_key() | {"layers": sorted(set(self.pairs.values()))}


def field_of(layer: int) -> str:
    """The name of what a lesson holds of one of the teacher's layers."""
    return f"layer-{layer}"


class _States(Layered):
    """States of layers, which may be of different widths."""

    needs: ClassVar[tuple[Need, ...]] = ("hidden_states",)
    lowest: ClassVar[int] = 0

    projection: Literal["where-needed", "always"] = "where-needed"
    """Where a learnt matrix stands between the student's states and the teacher's: where widths differ, or everywhere. It
    leaves with the end of training."""

    def head(self, student: nn.Module, lesson: Lesson) -> nn.Module | None:
        """A matrix for every layer that needs one."""
        one = torch.ones(1, 2, dtype=torch.long, device=next(student.parameters()).device)
        with frozen(student), torch.no_grad():  # configs have many names for widths
            states = observe(student, {"input_ids": one, "attention_mask": one}, keep=self.needs).hidden_states
        assert states is not None
        matrices = {
            str(own): nn.Linear(states[own].shape[-1], lesson[field_of(theirs)].shape[-1], bias=False)
            for own, theirs in self.pairs.items()
            if self.projection == "always" or states[own].shape[-1] != lesson[field_of(theirs)].shape[-1]
        }
        return nn.ModuleDict(matrices) if matrices else None


def _projected(states: Tensor, layer: int, head: nn.Module | None) -> Tensor:
    """States in the teacher's width."""
    if isinstance(head, nn.ModuleDict) and str(layer) in head:
        states = head[str(layer)](states)
    return states.float()


class HiddenStates(_States):
    """TinyBERT's and DistilBERT's: the states of tokens are alike, layer by layer, the embeddings' output among them.

        loss = sum over pairs of layers of the mean over tokens i of distance(h_S,i W, h_T,i)

    `distance` is the mean over dimensions of the squared difference, or 1 - cos. W is learnt where widths differ.

    Cost: 1 F of the teacher per example, once, and D numbers per token and layer on disk; for the student no pass more.

    Source: Jiao et al. 2020, arXiv:1909.10351, eqs. 8 and 9; theirs counts padding too and has a W for all layers. Cosine:
    Sanh et al. 2019, arXiv:1910.01108. Relations: `Relations` needs neither equal widths nor a W.
    """

    name: ClassVar[str] = "hidden-states"
    same_tokens: ClassVar[bool] = True

    weight: float = Field(default=1.0, ge=0)
    """Factor of this objective's loss in the sum."""
    distance: Literal["mse", "cosine"] = "mse"
    """Between the states of a token."""

    def teach(self, teacher: Teacher, batch: Batch, seen: Seen) -> Taught:
        """The states [T, D] of the layers that somebody learns from."""
        assert seen.hidden_states is not None
        return {field_of(layer): cut_tokens(seen.hidden_states[layer], batch) for layer in set(self.pairs.values())}

    def learn(self, seen: Seen, copies: list[Seen], batch: Batch, lesson: Lesson, moment: Moment) -> Tensor:
        """The loss of the class docstring."""
        assert seen.hidden_states is not None
        losses = []
        for own, theirs in self.pairs.items():
            own_BTD, taught_BTD = _projected(seen.hidden_states[own], own, moment.head), lesson[field_of(theirs)]
            if self.distance == "mse":
                distance_BT = (own_BTD - taught_BTD).square().mean(2)
            else:
                distance_BT = 1 - F.cosine_similarity(own_BTD, taught_BTD, dim=2)
            losses.append(mean_of_real(distance_BT, batch["attention_mask"]))
        return torch.stack(losses).sum(0)


def mean_of_real(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return (values_BT * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)


class PatientStates(_States):
    """PKD's: the state of the first token, layer by layer but for the last, points where the teacher's does.

        loss = mean over pairs of layers and dimensions of (h_S / |h_S| - h_T / |h_T|)²

    A mean over dimensions of unit vectors is small: the authors' weights (beta) are 10 to 1000.

    Cost: 1 F of the teacher per example, once, and D numbers per layer on disk; for the student no pass more.

    Source: Sun et al. 2019, arXiv:1908.09355, eq. 7, and src/KD_loss.py of intersun/PKD-for-BERT-Model-Compression; `uniform`
    is PKD-Skip, `last` PKD-Last, both without the last layer, which soft labels see. Theirs needs equal widths. `mean` pooling
    is ours, for models that do not read their first token; with it and without token-wise comparison, tokenizers may differ.
    """

    name: ClassVar[str] = "patient-states"
    inner: ClassVar[bool] = True
    taught_settings: ClassVar[tuple[str, ...]] = ("pooling",)

    weight: float = Field(default=100.0, ge=0)
    """Factor of this objective's loss in the sum (beta)."""
    pooling: Literal["first", "mean"] = "first"
    """What stands for a text: the first token's state, as encoders with [CLS] have it, or the mean of all."""
    compare: Literal["directions", "states"] = "directions"
    """Whether states are divided by their lengths first."""

    def check(self, teacher: PreTrainedConfig, student: PreTrainedConfig) -> None:
        """Refuse the first token of a model that has no attention and so gathers nothing there, or reads its last one."""
        for config in (teacher, student):
            if self.pooling == "first" and heads_of(config) is None:
                raise ValueError(
                    f"patient-states compares first tokens, {config.model_type} gathers nothing there; set pooling to 'mean'"
                )
            model = outline(config) if self.pooling == "first" else None
            if model is not None and reads_last_token(model):
                raise ValueError(
                    f"patient-states compares first tokens, {config.model_type} reads the last; set pooling to 'mean'"
                )

    def teach(self, teacher: Teacher, batch: Batch, seen: Seen) -> Taught:
        """What stands for a text [D], of the layers that somebody learns from."""
        assert seen.hidden_states is not None
        return {
            field_of(layer): list(self._pooled(seen.hidden_states[layer], batch).detach().cpu())
            for layer in set(self.pairs.values())
        }

    def learn(self, seen: Seen, copies: list[Seen], batch: Batch, lesson: Lesson, moment: Moment) -> Tensor:
        """The loss of the class docstring."""
        assert seen.hidden_states is not None
        losses = []
        for own, theirs in self.pairs.items():
            pair = [_projected(self._pooled(seen.hidden_states[own], batch), own, moment.head), lesson[field_of(theirs)]]
            own_BD, taught_BD = (F.normalize(each, dim=1) for each in pair) if self.compare == "directions" else pair
            losses.append((own_BD - taught_BD).square().mean(1))
        return torch.stack(losses).mean(0)

    def _pooled(self, states_BTD: Tensor, batch: Batch) -> Tensor:
        if self.pooling == "first":
            return states_BTD[:, 0]
        mask_BT1 = batch["attention_mask"][:, :, None]
        return (states_BTD * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
