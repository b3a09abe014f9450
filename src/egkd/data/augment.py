"""Changed copies of the labelled texts, as students without pre-training were first given them.

Each word of a copy becomes the mask token with probability `mask`, else another word with probability `replace`; then, with
probability `ngram`, only 1 to `longest` successive words of it are kept. Of a pair the copies change the first text, the
second, both, and so on in turn. Punctuation stays. Copies have no labels: a changed text may mean something else, and the
teacher says what.

Source: Tang et al. 2019, arXiv:1903.12136, sec. 3.3. Deviations: a word is replaced by any word, as frequent as it is, instead
of one of its part of speech, which would need a tagger of the language; words are units of the raw text (`text.unit_spans`).
"""

import dataclasses
import itertools
from collections import Counter
from random import Random

from datasets import Dataset, concatenate_datasets

from egkd.config_data import AugmentConfig
from egkd.data import TaskData
from egkd.text import unit_spans


def augmented(data: TaskData, settings: AugmentConfig, seed: int, mask_word: str | None) -> TaskData:
    """`data` with the copies behind its other texts without labels; the same ones for the same rows, settings, seed and word.

    `mask_word` stands for a masked word: the mask token as the models' tokenizers write it, which they know in raw text too.
    """
    if not settings.copies:
        return data
    texts = data.train.remove_columns("label")
    words = _Words(texts, settings, mask_word, Random(seed))
    copies: list[tuple[str, ...]] = []
    for row in zip(*(texts[name] for name in texts.column_names), strict=True):
        told = dict.fromkeys(words.changed(row, number) for number in range(settings.copies))
        copies += [copy for copy in told if copy != row]
    columns = {name: [copy[place] for copy in copies] for place, name in enumerate(texts.column_names)}
    rows = Dataset.from_dict(columns, features=texts.features)
    before = [data.unlabeled] if data.unlabeled is not None else []
    return dataclasses.replace(data, unlabeled=concatenate_datasets([*before, rows]))


class _Words:
    """What may become of words."""

    def __init__(self, texts: Dataset, settings: AugmentConfig, mask_word: str | None, draw: Random) -> None:
        self._settings, self._mask_word, self._draw = settings, mask_word, draw
        columns = (texts[name] for name in texts.column_names)
        found = Counter(text[a:b] for text in itertools.chain(*columns) for a, b in word_spans(text))
        self._words = list(found)
        self._counts = list(itertools.accumulate(found.values()))

    def changed(self, row: tuple[str, ...], number: int) -> tuple[str, ...]:
        """A copy of a row; which texts of a pair change goes by its number."""
        parts = zip(row, changed_parts(len(row), number), strict=True)
        return tuple(self._changed(text) if changes else text for text, changes in parts)

    def _changed(self, text: str) -> str:
        spans = word_spans(text)
        start, end = 0, len(text)
        if spans and self._draw.random() < self._settings.ngram:
            count = min(self._draw.randint(1, self._settings.longest), len(spans))
            first = self._draw.randint(0, len(spans) - count)
            spans = spans[first : first + count]
            start, end = spans[0][0], spans[-1][1]
        pieces = []
        for a, b in spans:
            pieces += [text[start:a], self._become(text[a:b])]
            start = b
        return "".join([*pieces, text[start:end]])

    def _become(self, word: str) -> str:
        chance = self._draw.random()
        if chance < self._settings.mask:
            assert self._mask_word is not None
            return self._mask_word
        if chance < self._settings.mask + self._settings.replace:
            return self._draw.choices(self._words, cum_weights=self._counts)[0]
        return word


def changed_parts(parts: int, number: int) -> list[bool]:
    """Which texts of a row its copy of this number changes: of a pair the first, the second, both, and so on in turn."""
    return [parts == 1 or number % 3 != 1 - place for place in range(parts)]


def word_spans(text: str) -> list[tuple[int, int]]:
    """Character spans of the units of `text` that are no punctuation."""
    return [(a, b) for a, b in unit_spans(text) if any(map(str.isalnum, text[a:b]))]
