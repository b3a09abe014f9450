"""Word vectors from a file, and a tokenizer whose tokens are its words.

Shapes: V vocabulary (special tokens and words), N words of the file, D width.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def read_vectors(path: Path, limit: int) -> tuple[list[str], Tensor]:
    """The first `limit` words of a text file with a word and its numbers in each line, and their vectors [N, D].

    GloVe's format, and word2vec's, whose first line is "words dimensions". Words may have spaces in them; of a word that
    comes twice the first counts. Raises ValueError, with the number of the line, for anything else.
    """
    vectors: dict[str, np.ndarray] = {}
    width = None
    for number, line in enumerate(_lines(path), start=1):
        parts = line.rstrip().split(" ")
        if number == 1 and len(parts) == 2 and all(part.isdecimal() for part in parts):
            width = int(parts[1])
            continue
        width = width or len(parts) - 1
        excess = parts[1:-width]  # of a word with spaces in it, or too many numbers
        if width < 1 or len(parts) <= width or (excess and all(map(_is_number, excess))):
            found = f"{len(parts) - 1} numbers" if line.strip() else "an empty line"
            raise ValueError(f"{path}, line {number}: found {found}, expected a word and {max(width, 1)} numbers")
        word, values = " ".join(parts[:-width]), parts[-width:]
        vectors.setdefault(word, _numbers(values, path, number))
        if len(vectors) == limit:
            break
    if not vectors:
        raise ValueError(f"{path} has no word vectors; expected a word and its numbers in each line")
    return list(vectors), torch.from_numpy(np.stack(list(vectors.values())))


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", newline="\n") as file:  # some words are line breaks of other systems
            yield from file
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8 (word2vec's binary files are none); convert it into one") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; give a file of word vectors") from None


def _numbers(values: Sequence[str], path: Path, number: int) -> np.ndarray:
    try:
        vector = np.array([float(value) for value in values], dtype=np.float32)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: {error}; expected a word and {len(values)} numbers") from None
    if not np.isfinite(vector).all():
        raise ValueError(f"{path}, line {number}: a number is not finite; remove the line")
    return vector


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def word_tokenizer(words: Sequence[str], vectors_ND: Tensor, *, seed: int) -> tuple[Tensor, PreTrainedTokenizerFast]:
    """A table of embeddings [V, D] and the fast tokenizer of its rows: special tokens first, then the words.

    Text is cut at white space and punctuation as BERT does, and lower-cased where no word of the file has capitals. An unknown
    word is the mean of all vectors, the mask token and padding are zeros, [CLS] and [SEP] are drawn from `seed`.
    """
    kept = [place for place, word in enumerate(words) if word not in SPECIAL_TOKENS]
    vocabulary = {word: row for row, word in enumerate(itertools.chain(SPECIAL_TOKENS, (words[place] for place in kept)))}
    lower = all(word == word.lower() for word in words)
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower, strip_accents=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    special_5D = torch.zeros(len(SPECIAL_TOKENS), vectors_ND.shape[1])
    special_5D[vocabulary["[UNK]"]] = vectors_ND.mean(0)
    drawn_2D = torch.randn(2, vectors_ND.shape[1], generator=torch.Generator().manual_seed(seed))
    special_5D[[vocabulary["[CLS]"], vocabulary["[SEP]"]]] = drawn_2D * vectors_ND.std()
    return torch.cat([special_5D, vectors_ND[kept]]), tokenizer
