"""What both sides of `explain.py` share: the model, the texts, the classes to explain, and how to compare scores.

Shapes: B batch, T tokens, D width of the embedding output, C classes, P perturbed copies.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from egkd.data.bundled import load_movie_reviews, minilm_l6_path
from egkd.data.glue import load_glue
from egkd.explain import Explainer, explain
from egkd.explain.base import Precision
from egkd.models import log_odds
from egkd.text import Batch, collate, encode

LONG = 256  # tokens of a long text

Scores = list[NDArray[np.float64]]
"""One array of word scores per text."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One model and one set of texts."""

    name: str
    model: Any
    tokenizer: Any
    texts: list[str]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The encoded texts."""
        columns = encode(self.tokenizer, self.texts, max_length=LONG)
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    @cached_property
    def targets(self) -> list[int]:
        """The predicted classes."""
        with torch.inference_mode():
            return [int(self.model(**self.inputs([number])).logits.argmax()) for number in range(len(self.texts))]

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Some of the texts, padded."""
        return collate([self.rows[number] for number in numbers], self.tokenizer.pad_token_id)

    def inputs(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """What the model takes of them."""
        batch = self.batch(numbers)
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def output(self, input_ids: Tensor, attention_mask: Tensor | None, target_B: Tensor) -> Tensor:
        """The number that is explained, as opponents call it: perhaps for several copies of a batch."""
        logits_PC = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return log_odds(logits_PC, target_B.repeat(len(logits_PC) // len(target_B)))

    def predict(self, texts: Sequence[str], target: int, size: int) -> NDArray[np.float64]:
        """The same for raw texts, `size` at a time."""
        found = []
        with torch.inference_mode():
            for start in range(0, len(texts), size):
                part = list(texts[start : start + size])
                encoded = self.tokenizer(part, padding=True, truncation=True, max_length=LONG, return_tensors="pt")
                logits_BC = self.model(**{name: encoded[name] for name in ("input_ids", "attention_mask")}).logits
                found.append(log_odds(logits_BC, torch.full((len(part),), target)))
        return torch.cat(found).double().numpy()

    def ours(self, explainer: Explainer, seed: int, precision: Precision = "float32") -> Scores:
        """Our scores, from raw text to result objects."""
        found = explain(
            self.model,
            self.tokenizer,
            self.texts,
            method=explainer,
            target=self.targets,
            max_length=LONG,
            seed=seed,
            precision=precision,
        )
        return [np.array(one.scores) for one in found]

    def by_words(self, number: int, tokens_T: Tensor) -> NDArray[np.float64]:
        """Token scores of one text (padding may follow) summed into its words."""
        scores = np.zeros(self.rows[number]["n_units"])
        for score, unit in zip(tokens_T.tolist(), self.rows[number]["unit_ids"], strict=False):
            if unit >= 0:
                scores[unit] += score
        return scores


@dataclass(frozen=True, kw_only=True)
class Contest:
    """One of our methods beside another package's; each side gives scores for all texts of the setting."""

    method: str
    against: str
    setting: Setting
    samples: int
    """Copies or steps asked for per text, by both sides; 1 where there is nothing to choose."""
    ours: Callable[[int], Scores]
    """Takes a seed."""
    theirs: Callable[[int], Scores]

    @property
    def texts(self) -> str:
        """Which texts, and how many."""
        return f"{self.setting.name} ({len(self.setting.texts)})"


def load_settings(model_path: Path | None, glue_dir: Path | None, n_short: int, n_long: int) -> list[Setting]:
    """Short texts as they are, and long ones made by joining others up to 256 tokens."""
    path = model_path or minilm_l6_path()
    torch.manual_seed(0)  # an encoder without classifier gets a random one, as good as any to compare explanations of it
    model = AutoModelForSequenceClassification.from_pretrained(path).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(path)
    data = load_movie_reviews() if glue_dir is None else load_glue("sst2", glue_dir)
    sentences = [text for text in data.evals["dev"]["text"] if len(text.split()) > 2]
    spare = iter(sentences[n_short:])
    long_texts = [_joined(tokenizer, spare) for _ in range(n_long)]
    return [
        Setting(name=f"{data.task.name} dev", model=model, tokenizer=tokenizer, texts=sentences[:n_short]),
        Setting(name=f"{data.task.name} dev, {LONG} tokens", model=model, tokenizer=tokenizer, texts=long_texts),
    ]


def _joined(tokenizer: Any, sentences: Iterator[str]) -> str:
    words: list[str] = []
    while len(tokenizer(" ".join(words)).input_ids) < LONG:
        words += next(sentences).split()
    while len(tokenizer(" ".join(words)).input_ids) > LONG:
        words.pop()
    return " ".join(words)


def rank_correlation(first: Scores, second: Scores) -> float:
    """The mean over texts of Spearman's rho, where both sides have different scores to rank."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if np.ptp(a) > 0 and np.ptp(b) > 0]
    return float(np.mean([spearmanr(a, b).statistic for a, b in pairs]))


def variance(runs: Sequence[Scores]) -> float:
    """How much a score changes from run to run, squared, on average over words and texts."""
    return float(np.mean([np.var(text_RU, axis=0, ddof=1).mean() for text_RU in map(np.array, zip(*runs, strict=True))]))


def fastest(sizes: Sequence[int], run: Callable[[int], object]) -> int:
    """The size that takes least time."""
    seconds = {}
    for size in sizes if len(sizes) > 1 else ():
        start = time.perf_counter()
        run(size)
        seconds[size] = time.perf_counter() - start
    return min(sizes, key=lambda size: seconds.get(size, 0.0))
