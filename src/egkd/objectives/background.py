"""Words to put where a word is removed, instead of a mask: the background against which a word's part is told.

A text with masks in it is none that anybody writes. With another word in the place of one, the teacher's answer says what the
word did there *and* what the other one does. Averaged over words it is what SHAP calls the marginal expectation (Lundberg and
Lee 2017, with a background; input marginalisation, Kim et al. 2020); one draw of it is enough to be matched.

Shapes: B batch, T tokens, U units, V words, L tokens of a word.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from egkd.objectives.draws import drawn
from egkd.text import SPECIAL, Batch, encode, keep_tokens, unit_spans

FILE = "words.txt"
LETTERS = 3  # that a word has at least: shorter ones are mostly function words
FEWEST = 2  # words to draw from
SAMPLE = 4096  # texts whose words they are
TOKENS = 4  # of a word that are kept at most
_CHUNK = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class Background:
    """Words, and how one tokenizer writes them."""

    words: tuple[str, ...]
    ids_VL: Tensor
    count_V: Tensor
    """Tokens of each word, at least 1."""

    @classmethod
    def of(cls, words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Self:
        """As this tokenizer writes them within a text."""
        ids_VL = torch.zeros(len(words), TOKENS, dtype=torch.long)
        count_V = torch.ones(len(words), dtype=torch.long)
        for place, ids in enumerate(_written(words, tokenizer)):
            found = ids[:TOKENS] or [tokenizer.unk_token_id or 0]
            ids_VL[place, : len(found)] = torch.tensor(found)
            count_V[place] = len(found)
        return cls(words=tuple(words), ids_VL=ids_VL, count_V=count_V)

    @classmethod
    def load(cls, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Self:
        """The words that were kept in a lesson's folder, as a tokenizer writes them. Raises ValueError where they are gone."""
        if not (folder / FILE).is_file():
            raise ValueError(
                f"found no {FILE} in {folder}, the words that replace others there; delete the folder to build it again"
            )
        return cls.of((folder / FILE).read_text(encoding="utf-8").splitlines(), tokenizer)

    def save(self, folder: Path) -> None:
        """Keep the words, one a line; whole or not at all."""
        new = folder / f"{FILE}.new"
        new.write_text("".join(f"{word}\n" for word in self.words), encoding="utf-8")
        new.replace(folder / FILE)

    def replace(
        self, batch: Batch, keep_BU: Tensor, key_B: Tensor, masks_B: Tensor, tokenizer: PreTrainedTokenizerBase
    ) -> Batch:
        """The batch with another word in the place of each unit outside `keep_BU` (bool [B, U]).

        Which word depends on the example's key, the number of the mask (`masks_B`) and the unit alone, so that teacher and
        student read the same words. A text never becomes longer: of a word that takes more tokens than the one it replaces the
        first ones are taken, and gaps are closed.
        """
        unit_ids_BT, device = batch["unit_ids"], batch["input_ids"].device
        units_BT = unit_ids_BT.clamp(min=0)
        removed_BT = (unit_ids_BT != SPECIAL) & ~keep_BU.gather(1, units_BT)
        word_BU = drawn(key_B, keep_BU.shape[1], masks_B) % len(self.words)
        word_BT = word_BU.gather(1, units_BT)
        place_BT = _place_in_unit(unit_ids_BT)
        ids_VL, count_V = self.ids_VL.to(device), self.count_V.to(device)
        written_BT = ids_VL[word_BT, place_BT.clamp(max=TOKENS - 1)]
        replaced = batch | {"input_ids": torch.where(removed_BT, written_BT, batch["input_ids"])}
        return keep_tokens(replaced, ~removed_BT | (place_BT < count_V[word_BT]), tokenizer)


def background_words(tokenizer: PreTrainedTokenizerBase, dataset: Dataset) -> list[str]:
    """Words of the texts of `dataset` (of SAMPLE of them, spread over all), each once, that are one token; all words where
    fewer than two are, as those of a vocabulary of characters.

    Raises ValueError where there are fewer than two words.
    """
    rows = np.linspace(0, len(dataset) - 1, min(SAMPLE, len(dataset))).astype(int)
    texts = tokenizer.batch_decode(dataset.select(rows)[:]["input_ids"], skip_special_tokens=True)
    found = dict.fromkeys(text[start:end] for text in texts for start, end in unit_spans(text))
    words = [word for word in found if len(word) >= LETTERS and word.isalpha()]
    if len(words) < FEWEST:
        raise ValueError(f"operator 'replace' draws words from the texts, which have {len(words)}; use 'mask' or 'delete'")
    whole = [word for word, ids in zip(words, _written(words, tokenizer), strict=True) if len(ids) == 1]
    return whole if len(whole) >= FEWEST else words


def _written(words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """The tokens of each word, as the second of a text."""
    for start in range(0, len(words), _CHUNK):
        rows = encode(tokenizer, [f"a {word}" for word in words[start : start + _CHUNK]])
        for ids, units in zip(rows["input_ids"], rows["unit_ids"], strict=True):
            yield [number for number, unit in zip(ids, units, strict=True) if unit == 1]


def _place_in_unit(unit_ids_BT: Tensor) -> Tensor:
    """How many tokens of its unit stand before each token, long [B, T]."""
    places_BT = torch.arange(unit_ids_BT.shape[1], device=unit_ids_BT.device).expand_as(unit_ids_BT)
    begins_BT = torch.ones_like(unit_ids_BT, dtype=torch.bool)
    begins_BT[:, 1:] = unit_ids_BT[:, 1:] != unit_ids_BT[:, :-1]
    return places_BT - torch.where(begins_BT, places_BT, 0).cummax(1).values
