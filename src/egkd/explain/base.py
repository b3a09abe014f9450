"""What every explainer has in common: one batch in, one score per unit out, and a whole data set from that.

Shapes: B batch, T tokens, U units (words, see `egkd.text`), C classes (1 for regression).
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from egkd.models import frozen
from egkd.text import Batch, collate, visible_units, width

Family = Literal["gradient", "perturbation", "selection", "amortised"]

# Tokens per forward pass. Where the time per token of a small encoder is least: what the caches of a processor hold.
TOKEN_BUDGET = 1024
GPU_TOKEN_BUDGET = 32 * TOKEN_BUDGET

Precision = Literal["float32", "bfloat16"]
"""What the model computes in: the numbers its weights are in, or matrix products in bfloat16, where the processor has those up
to twice as fast and with three digits (torch.autocast)."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One collated batch to be explained."""

    model: nn.Module
    """Frozen, by whoever asks."""
    tokenizer: PreTrainedTokenizerBase
    batch: Batch
    target_B: Tensor | None = None
    """The classes to explain, by their log odds; None: the predicted ones."""
    seeds: Sequence[int] = ()
    """One number per example, so that what is drawn for an example depends on nothing else in the batch."""
    token_budget: int = TOKEN_BUDGET
    """No forward pass holds more tokens, or one sequence."""
    embeddings_BTD: Tensor | None = None
    """What stands in the place of the batch's own embeddings; gradient methods alone can be asked there."""

    def copies(self, row_P: Tensor, embeddings_BTD: Tensor) -> "Request":
        """The same about the rows `row_P`, in that order, at these embeddings."""
        target_P = None if self.target_B is None else self.target_B[row_P]
        return replace(self, batch=take(self.batch, row_P), target_B=target_P, embeddings_BTD=embeddings_BTD)

    @property
    def n_units(self) -> int:
        """U of the batch."""
        return width(self.batch)

    @property
    def visible_BU(self) -> Tensor:
        """Bool: units that have a token."""
        return visible_units(self.batch["unit_ids"], self.n_units)


@dataclass(frozen=True, kw_only=True)
class UnitScores:
    """Scores of one batch, in float32 and without a graph."""

    scores_BU: Tensor
    """How much each unit speaks for the target; 0 where not visible."""
    visible_BU: Tensor
    """Bool: units that have a token. Truncation hides the others."""
    target_B: Tensor
    """The explained class, 0 in regression."""
    logits_BC: Tensor
    """What the model says about the unperturbed batch."""
    error_BU: Tensor | None = None
    """Standard error of each score, from methods that sample."""
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)
    """More to know about each example, float [B] each, nan where it says nothing; "completeness_gap" for one."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores of one example on the CPU, as long as its text has units."""

    scores_U: Tensor
    visible_U: Tensor
    target: int
    logits_C: Tensor
    error_U: Tensor | None
    diagnostics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Explainer(ABC):
    """A way to score units. Subclasses are frozen dataclasses: their fields are the settings."""

    name: ClassVar[str]
    """What users call it, like "input-x-gradient"."""
    family: ClassVar[Family]
    passes: ClassVar[str]
    """Cost per example in forward (F) and backward (B) passes of the model, for people."""
    source: ClassVar[str]
    """Where the method comes from."""
    draws: ClassVar[bool] = False
    """Whether its scores depend on the seed."""
    samples: ClassVar[bool] = False
    """Whether it draws scores of which it tells the mean and a standard error."""

    @property
    def signed(self) -> bool:
        """Whether a score tells by its sign if a unit speaks for the class or against it."""
        return True

    @abstractmethod
    def score(self, request: Request) -> UnitScores:
        """Scores of the units of one batch."""

    def settings(self) -> dict[str, Any]:
        """The fields by name; explainers among them as {"method": name, **settings}, fitted models by their fingerprint."""
        return {f.name: _told(getattr(self, f.name)) for f in fields(self)}


@runtime_checkable
class Fitted(Protocol):
    """A setting that was learnt from data."""

    def fingerprint(self) -> str:
        """What tells it from all others."""


def _told(value: Any) -> Any:
    if isinstance(value, Explainer):
        return {"method": value.name, **value.settings()}
    return value.fingerprint() if isinstance(value, Fitted) else value


def predicted(logits_BC: Tensor, target_B: Tensor | None) -> Tensor:
    """The class to explain: `target_B`, or where that is None the predicted one (0 in regression)."""
    return logits_BC.argmax(1) if target_B is None else target_B


def take(batch: Batch, row_P: Tensor) -> Batch:
    """The rows `row_P` of a batch, in that order."""
    return {name: value[row_P] for name, value in batch.items()}


def cut_to(batch: Batch, longest: int) -> Batch:
    """A batch whose examples are no longer than this, without the padding that goes further."""
    return {name: value[:, :longest] if value.dim() == 2 else value for name, value in batch.items()}


def example_seed(seed: int, row: Mapping[str, Any]) -> int:
    """A seed for one example from its own text (its tokens where the text is not in the row): the same in any batch, in
    any order, and for two models whose explanations are compared."""
    own = (row["text"], row.get("text_pair")) if "text" in row else (list(row["input_ids"]),)
    return int.from_bytes(hashlib.blake2b(repr((seed, *own)).encode(), digest_size=7).digest(), "big")


def iter_scored(
    explainer: Explainer,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    *,
    targets: Sequence[int] | None = None,
    seed: int = 0,
    token_budget: int | None = None,
    precision: Precision = "float32",
) -> Iterator[tuple[int, Scored]]:
    """Score encoded rows (see `text.encode`), longest first; yields (index of the row, its scores).

    The model is frozen while a batch is scored and given back in between, so a consumer may stop at any time. By default
    the token budget suits the device.
    Raises ValueError for targets the model does not have.
    """
    check_targets(model, targets, len(rows))
    parameter = next(model.parameters(), None)
    token_budget = token_budget or suitable_budget(model)
    for indices in length_batches([len(row["input_ids"]) for row in rows], token_budget):
        chosen = [rows[index] for index in indices]
        with torch.inference_mode(False), frozen(model):  # a caller's inference mode would make gradients impossible
            batch = collate(chosen, tokenizer.pad_token_id or 0)
            target_B = None if targets is None else torch.tensor([targets[index] for index in indices])
            if parameter is not None:
                batch = {name: value.to(parameter.device) for name, value in batch.items()}
                target_B = None if target_B is None else target_B.to(parameter.device)
            request = Request(
                model=model,
                tokenizer=tokenizer,
                batch=batch,
                target_B=target_B,
                seeds=[example_seed(seed, row) for row in chosen],
                token_budget=token_budget,
            )
            with torch.autocast(batch["input_ids"].device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                scored = explainer.score(request)
        yield from zip(indices, _split(scored, [row["n_units"] for row in chosen]), strict=True)


def score_dataset(
    explainer: Explainer,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    *,
    targets: Sequence[int] | None = None,
    seed: int = 0,
    token_budget: int | None = None,
    precision: Precision = "float32",
    progress: Callable[[int], None] | None = None,
) -> list[Scored]:
    """`iter_scored` in the order of `rows`. `progress` is told the number of examples each time one is finished."""
    results: dict[int, Scored] = {}
    for index, scored in iter_scored(
        explainer, model, tokenizer, rows, targets=targets, seed=seed, token_budget=token_budget, precision=precision
    ):
        results[index] = scored
        if progress is not None:
            progress(len(results))
    return [results[index] for index in range(len(rows))]


def suitable_budget(model: nn.Module) -> int:
    """Tokens per forward pass on the device where the model is."""
    parameter = next(model.parameters(), None)
    return TOKEN_BUDGET if parameter is None or parameter.device.type == "cpu" else GPU_TOKEN_BUDGET


def masks_by(settings: Mapping[str, Any]) -> str | None:
    """The setting by which words become mask tokens, of those of an explainer or an objective; None where none does."""
    for name in ("operator", "baseline"):
        if settings.get(name) == "mask":
            return name
    inner = settings.get("inner")
    found = masks_by(inner) if isinstance(inner, Mapping) else None
    return found and f"inner.{found}"


def check_targets(model: nn.Module, targets: Sequence[int] | None, n_rows: int) -> None:
    """Raises ValueError unless there is one target per row and the model has every one of those classes."""
    if targets is None:
        return
    if len(targets) != n_rows:
        raise ValueError(f"{len(targets)} targets for {n_rows} texts; give one class per text, or one for all")
    n_classes = getattr(getattr(model, "config", None), "num_labels", None)
    wrong = [target for target in targets if target < 0 or (n_classes is not None and target >= n_classes)]
    if wrong:
        raise ValueError(f"target {wrong[0]} is none of the model's {n_classes} classes (0 to {(n_classes or 1) - 1})")


def length_batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indices in batches of at most `token_budget` padded tokens (or one example), longest first.

    A batch that is a quarter full also ends where the next example is a tenth shorter, rather than pad the rest to its length.
    """
    batch: list[int] = []
    tokens = longest = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (tokens + longest > token_budget or (4 * tokens >= token_budget and lengths[index] < 0.9 * longest)):
            yield batch
            batch, tokens = [], 0
        longest = longest if batch else max(1, lengths[index])
        batch.append(index)
        tokens += longest
    if batch:
        yield batch


def _split(scored: UnitScores, n_units: Sequence[int]) -> Iterator[Scored]:
    cpu = {name: value.cpu() for name, value in scored.diagnostics.items()}
    scores_BU, visible_BU, logits_BC = scored.scores_BU.cpu(), scored.visible_BU.cpu(), scored.logits_BC.float().cpu()
    error_BU = None if scored.error_BU is None else scored.error_BU.cpu()
    for row, count in enumerate(n_units):
        yield Scored(
            scores_U=scores_BU[row, :count],
            visible_U=visible_BU[row, :count],
            target=int(scored.target_B[row]),
            logits_C=logits_BC[row],
            error_U=None if error_BU is None else error_BU[row, :count],
            diagnostics={name: float(value[row]) for name, value in cpu.items() if not value[row].isnan()},
        )
