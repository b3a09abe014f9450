"""How a selector is trained: once, on a frozen classifier and unlabeled texts.

Shapes: B batch, U units, K words to keep, C classes (1 for regression).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from egkd.explain.masking import divergence, soft_mask
from egkd.explain.selectors import Kind, Selector, SelectorSettings, kept_count, read_hidden
from egkd.models import frozen
from egkd.text import SPECIAL, Batch, collate, visible_units, width

Progress = Callable[[int, int], None]
"""Called with examples done and examples in all."""

_BUCKET = 16  # batches that are sorted by length together: little padding, still mixed
_LOW, _HIGH = -0.1, 1.1  # what hard concrete variables are stretched to (Louizos et al. 2018)


def draw_top_k(logits_BU: Tensor, visible_BU: Tensor, rate: float, temperature: float, uniform_BKU: Tensor) -> Tensor:
    """The maximum of K = ceil(rate * n) Gumbel-softmax draws of one unit each: a mask in [0, 1], float [B, U].

    `uniform_BKU` holds noise in (0, 1) for at least the largest K. Source: Chen et al. 2018, eq. 6.
    """
    perturbed_BKU = (logits_BU[:, None] - (-uniform_BKU.log()).log()).masked_fill(~visible_BU[:, None], -1e4)
    mine_BK = torch.arange(uniform_BKU.shape[1], device=logits_BU.device) < kept_count(visible_BU, rate)[:, None]
    return ((perturbed_BKU / temperature).softmax(-1) * mine_BK[..., None]).amax(1)


class Relaxation(ABC):
    """A choice of words through which a gradient passes, and what it is asked to be."""

    def __init__(self, settings: SelectorSettings) -> None:
        self.settings = settings

    @abstractmethod
    def draw(self, logits_BU: Tensor, visible_BU: Tensor, generator: torch.Generator) -> Tensor:
        """A mask in [0, 1], float [B, U], from random noise; differentiable with respect to `logits_BU`."""

    @abstractmethod
    def loss(self, divergence_B: Tensor, logits_BU: Tensor, visible_BU: Tensor) -> Tensor:
        """The scalar to be minimised."""


class TopK(Relaxation):
    """L2X's: K = ceil(rate * n) relaxed draws of one word each, and their maximum."""

    def draw(self, logits_BU: Tensor, visible_BU: Tensor, generator: torch.Generator) -> Tensor:
        draws = max(1, int(kept_count(visible_BU, self.settings.rate).max()))
        uniform_BKU = _uniform((len(logits_BU), draws, logits_BU.shape[1]), generator, logits_BU)
        return draw_top_k(logits_BU, visible_BU, self.settings.rate, self.settings.heat(), uniform_BKU)

    def loss(self, divergence_B: Tensor, logits_BU: Tensor, visible_BU: Tensor) -> Tensor:
        return divergence_B.mean()


def _uniform(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Noise drawn on the CPU, the same on every device, and never quite 0 or 1."""
    return torch.rand(shape, generator=generator).clamp(1e-6, 1 - 1e-6).to(like)


def _hard_concrete(logits_BU: Tensor, generator: torch.Generator, temperature: float) -> Tensor:
    """Louizos et al. 2018, eq. 11: a binary concrete variable stretched to (-0.1, 1.1) and cut to [0, 1].

    The gradient passes as if it were not cut: most gates are quite shut at any moment, and would not learn otherwise.
    """
    uniform_BU = _uniform(tuple(logits_BU.shape), generator, logits_BU)
    stretched_BU = torch.sigmoid((uniform_BU.logit() + logits_BU) / temperature) * (_HIGH - _LOW) + _LOW
    return stretched_BU + (stretched_BU.clamp(0, 1) - stretched_BU).detach()


def _expected_share(logits_BU: Tensor, visible_BU: Tensor, temperature: float) -> Tensor:
    """Mean over the batch of the expected share of words that are not quite gone (eq. 12), a scalar."""
    chance_BU = torch.sigmoid(logits_BU - temperature * math.log(-_LOW / _HIGH)) * visible_BU
    return (chance_BU.sum(1) / visible_BU.sum(1).clamp(min=1)).mean()


def _start(settings: SelectorSettings) -> float:
    """The logit at which the expected share of words is `rate` (a fixed share does not care where logits lie)."""
    return math.log(settings.rate / max(1 - settings.rate, 1e-2)) + settings.heat() * math.log(-_LOW / _HIGH)


class AverageShare(Relaxation):
    """Hard concrete masks whose expected share of words is held at `rate` on average by a Lagrange multiplier."""

    def __init__(self, settings: SelectorSettings) -> None:
        super().__init__(settings)
        self.price = 0.0

    def draw(self, logits_BU: Tensor, visible_BU: Tensor, generator: torch.Generator) -> Tensor:
        return _hard_concrete(logits_BU, generator, self.settings.heat())

    def loss(self, divergence_B: Tensor, logits_BU: Tensor, visible_BU: Tensor) -> Tensor:
        excess = _expected_share(logits_BU, visible_BU, self.settings.heat()) - self.settings.rate
        self.price = max(0.0, self.price + float(excess.detach()))
        return divergence_B.mean() + self.price * excess + 10 * excess.square()


class WithinTolerance(Relaxation):
    """DiffMask's game: as few words as possible, such that the divergence stays below `tolerance` on average."""

    def __init__(self, settings: SelectorSettings) -> None:
        super().__init__(settings)
        self.price = 5.0

    def draw(self, logits_BU: Tensor, visible_BU: Tensor, generator: torch.Generator) -> Tensor:
        return _hard_concrete(logits_BU, generator, self.settings.heat())

    def loss(self, divergence_B: Tensor, logits_BU: Tensor, visible_BU: Tensor) -> Tensor:
        excess = divergence_B.mean() - self.settings.tolerance
        self.price = min(200.0, max(0.1, self.price + 0.3 * float(excess.detach())))
        return _expected_share(logits_BU, visible_BU, self.settings.heat()) + self.price * excess


RELAXATIONS: dict[Kind, type[Relaxation]] = {"l2x": TopK, "hard-concrete": AverageShare, "diffmask": WithinTolerance}


def fit_selector(
    settings: SelectorSettings,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Sequence[Mapping[str, Any]],
    *,
    seed: int,
    progress: Progress | None = None,
) -> Selector:
    """Train a selector on `model`, which stays as it is, and the texts of `dataset`, whose labels are not looked at.

    `dataset` holds encoded rows (see `text.encode`), a list or a `datasets.Dataset`. Cost per text and epoch: 2 F + 1 B,
    about a minute for the defaults, a 12-layer model of width 384 and sentences. The same seed gives the same selector.

    Raises ValueError where no text has a word.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(dataset), generator=generator)[: settings.examples].tolist()
    rows = [row for row in (dataset[index] for index in drawn) if any(unit != SPECIAL for unit in row["unit_ids"])]
    if not rows:
        raise ValueError(f"none of the {len(drawn)} texts has a word; a selector needs texts to learn from")
    parameter = next(model.parameters())
    trainer: _Trainer | None = None
    done, total = 0, settings.epochs * len(rows)
    with frozen(model):
        for chosen in _batches(rows, settings, generator):
            batch = collate([rows[index] for index in chosen], tokenizer.pad_token_id or 0)
            batch = {name: value.to(parameter.device) for name, value in batch.items()}
            trainer = trainer or _Trainer(settings, model, tokenizer, batch, seed, steps=math.ceil(total / settings.batch_size))
            trainer.step(batch, generator)
            done += len(chosen)
            if progress is not None:
                progress(done, total)
    assert trainer is not None
    return trainer.selector.eval().requires_grad_(False)


class _Trainer:
    """A selector in training."""

    def __init__(
        self,
        settings: SelectorSettings,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        batch: Batch,
        seed: int,
        steps: int,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.relaxation = RELAXATIONS[settings.kind](settings)
        widths = [h_BTD.shape[-1] for h_BTD in read_hidden(model, batch, settings.layers).hidden]
        with torch.random.fork_rng():  # the caller's random state stays as it was
            torch.manual_seed(seed)
            self.selector = Selector(settings, widths).to(batch["input_ids"].device)
        nn.init.constant_(self.selector.value.bias, _start(settings))
        self.optimizer = torch.optim.AdamW(self.selector.parameters(), lr=settings.learning_rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1.0, (step + 1) / (0.1 * steps)) * max(0.0, 1 - step / steps)
        )

    def step(self, batch: Batch, generator: torch.Generator) -> None:
        settings = self.selector.settings
        read = read_hidden(self.model, batch, settings.layers)
        masked = soft_mask(self.model, self.tokenizer, batch, own_BTD=read.hidden[0])
        visible_BU = visible_units(batch["unit_ids"], width(batch))
        logits_BU = self.selector(read.hidden, batch)
        keep_BU = self.relaxation.draw(logits_BU, visible_BU, generator)
        divergence_B = divergence(read.logits_BC, masked.logits(keep_BU))
        self.optimizer.zero_grad()
        self.relaxation.loss(divergence_B, logits_BU, visible_BU).backward()
        nn.utils.clip_grad_norm_(self.selector.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()


def _batches(rows: Sequence[Mapping[str, Any]], settings: SelectorSettings, generator: torch.Generator) -> Iterator[list[int]]:
    """Indices of rows of similar length, in random order, once for each epoch."""
    for _ in range(settings.epochs):
        order = torch.randperm(len(rows), generator=generator).tolist()
        batches = []
        for start in range(0, len(order), settings.batch_size * _BUCKET):
            bucket = sorted(
                order[start : start + settings.batch_size * _BUCKET], key=lambda index: len(rows[index]["input_ids"])
            )
            batches += [bucket[at : at + settings.batch_size] for at in range(0, len(bucket), settings.batch_size)]
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[index]
