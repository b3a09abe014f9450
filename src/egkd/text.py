"""Text as models see it: tokens, and units, which are the words both a teacher and a student can speak of.

Shapes: B batch, T tokens, U units, P perturbed copies. A unit is a word (or a punctuation mark, or one CJK character) by
its character span in the raw text, so that two models with different tokenizers can compare scores of the same unit.
Units of a pair are numbered through: those of `text` first, those of `text_pair` after them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import regex
import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase

Batch = dict[str, Tensor]
Operator = Literal["mask", "delete", "attention", "gather"]
Kind = Literal["word", "token"]
"""What a unit is. Two models speak of the same words, of the same tokens only where they have one tokenizer."""

SPECIAL = -1  # unit id of special tokens and padding: they belong to no word
MAX_LENGTH = 128  # tokens; GLUE's usual limit
MIN_LENGTH = 5  # tokens: the special ones around a pair, and a word of each
UNIT_RULE = 3  # raised whenever units or their tokens change, because lessons are stored in units

_CJK = "\u2e80-\u2fdf\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_SPACE = r"\s\x1c-\x1f"
# What never stands alone belongs to what it follows: accents and vowel signs of their own, zero-width and control characters,
# which many tokenizers throw away before they cut, and the skin tones of emoji.
_JOINED = rf"(?:(?![{_SPACE}])[\p{{M}}\p{{C}}\ufffd\U0001f3fb-\U0001f3ff])"
_LETTER = rf"(?:(?![{_CJK}])[\w\p{{N}}]|{_JOINED})"
_EMOJI = rf"(?:(?<=\u200d)\p{{Extended_Pictographic}}{_JOINED}*)"  # that a joiner ties to the one before: families, professions
_SYMBOL = rf"(?:[\U0001f1e6-\U0001f1ff]{{2}}|[^{_SPACE}]){_JOINED}*{_EMOJI}*"  # a flag is two letters
_UNIT = regex.compile(rf"[{_CJK}]{_JOINED}*|{_LETTER}+(?:['’]{_LETTER}+)*|{_SYMBOL}")


def unit_spans(text: str) -> list[tuple[int, int]]:
    """Character spans of the units of `text`: every character that is not white space lies in exactly one."""
    return [match.span() for match in _UNIT.finditer(text)]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    max_length: int = MAX_LENGTH,
    unit: Kind = "word",
) -> dict[str, list[Any]]:
    """Tokenise `texts` (with `pairs`) and say which unit each token belongs to.

    Returns the tokenizer's own columns (`input_ids`, `attention_mask`, perhaps `token_type_ids`), without padding, and
    `unit_ids` (a list of T ints per example, -1 for special tokens), `n_units` (units in the raw text, also those cut
    off) and `length` (T). A token that touches several units belongs to the one it shares most characters with (of equals
    the first), a token of white space alone to the unit that follows; a unit whose characters all lie in tokens of others has
    no token, as one that is cut off. With `unit` "token" every token that is not special is a unit of its own, and `units` says
    where each stands, also those cut off: (0 in the text or 1 in its pair, first character, character after the last). A text
    without any token (an empty one, of a tokenizer that adds none of its own) becomes one special token.

    Raises ValueError for a tokenizer without character offsets (a slow one).
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer (tokenizer.json) is needed to tell words"
        )
    encoded = tokenizer(
        list(texts),
        list(pairs) if pairs is not None else None,
        truncation=True,
        max_length=max_length,
        return_offsets_mapping=True,
    )
    offsets = encoded.pop("offset_mapping")
    columns: dict[str, list[Any]] = {name: list(values) for name, values in encoded.items()}
    columns |= _tokens(tokenizer, texts, pairs, encoded) if unit == "token" else _words(texts, pairs, encoded, offsets)
    for row in range(len(texts)):
        if not columns["input_ids"][row]:
            empty = {"input_ids": _empty_id(tokenizer), "attention_mask": 1, "unit_ids": SPECIAL}
            for name in (*encoded, "unit_ids"):
                columns[name][row] = [empty.get(name, 0)]
    columns["length"] = [len(ids) for ids in columns["input_ids"]]
    return columns


def _words(
    texts: Sequence[str], pairs: Sequence[str] | None, encoded: BatchEncoding, offsets: Sequence[Sequence[tuple[int, int]]]
) -> dict[str, list[Any]]:
    """The word of each token, and the number of words."""
    columns: dict[str, list[Any]] = {"unit_ids": [], "n_units": []}
    for row, text in enumerate(texts):
        parts = [text] if pairs is None else [text, pairs[row]]
        spans = [unit_spans(part) for part in parts]
        owners = [_owners(part, part_spans) for part, part_spans in zip(parts, spans, strict=True)]
        starts = [0, len(spans[0])]
        columns["unit_ids"].append(
            [
                SPECIAL if part is None else _unit_of(offset, owners[part], starts[part])
                for offset, part in zip(offsets[row], encoded.sequence_ids(row), strict=True)
            ]
        )
        columns["n_units"].append(sum(map(len, spans)))
    return columns


def _tokens(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pairs: Sequence[str] | None, encoded: BatchEncoding
) -> dict[str, list[Any]]:
    """The number of each token, where all tokens stand, and how many they are, also without truncation."""
    whole = tokenizer(list(texts), None if pairs is None else list(pairs), return_offsets_mapping=True, verbose=False)
    columns: dict[str, list[Any]] = {"unit_ids": [], "n_units": [], "units": []}
    for row in range(len(texts)):
        belongs = whole.sequence_ids(row)
        units = [
            (part, *offset) for part, offset in zip(belongs, whole["offset_mapping"][row], strict=True) if part is not None
        ]
        kept = encoded.sequence_ids(row)
        # of each part truncation leaves the beginning, or the end
        cut = [sum(unit[0] == part for unit in units) - kept.count(part) for part in (0, 1)]
        following = [cut[0] if tokenizer.truncation_side == "left" else 0, sum(unit[0] == 0 for unit in units)]
        following[1] += cut[1] if tokenizer.truncation_side == "left" else 0
        ids = []
        for part in kept:
            ids.append(SPECIAL if part is None else following[part])
            if part is not None:
                following[part] += 1
        columns["unit_ids"].append(ids)
        columns["n_units"].append(len(units))
        columns["units"].append(units)
    return columns


def lengths(most: int) -> str:
    """How long a text may be, for people; some tokenizers name no end."""
    return f"{MIN_LENGTH} to {most} tokens" if most < 10**9 else f"at least {MIN_LENGTH} tokens"


def _empty_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that stands for nothing: no model can read a text without tokens."""
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return int(next((token for token in ids if token is not None), 0))


def _owners(text: str, spans: list[tuple[int, int]]) -> list[int]:
    """The unit of each character of `text`, -1 for white space."""
    owners = [SPECIAL] * len(text)
    for unit, (start, end) in enumerate(spans):
        owners[start:end] = [unit] * (end - start)
    return owners


def _unit_of(offset: tuple[int, int], owners: list[int], first: int) -> int:
    inside = [unit for unit in owners[offset[0] : offset[1]] if unit != SPECIAL]
    if not inside:
        inside = [unit for unit in owners[offset[1] :] if unit != SPECIAL][:1]
    return first + max(dict.fromkeys(inside), key=inside.count) if inside else SPECIAL  # of equals the first


_PADDING = {"attention_mask": 0, "token_type_ids": 0, "position_ids": 0, "unit_ids": SPECIAL, "special_tokens_mask": 1}
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def collate(rows: Sequence[Mapping[str, Any]], pad_token_id: int) -> Batch:
    """Pad encoded examples on the right to the longest of them and stack what is there: tokens, units, labels, idx."""
    longest = max(len(row["input_ids"]) for row in rows)
    batch: Batch = {}
    for name in (*MODEL_INPUTS, "unit_ids"):
        if name in rows[0]:
            fill = _PADDING.get(name, pad_token_id if name == "input_ids" else 0)
            batch[name] = torch.tensor([list(row[name]) + [fill] * (longest - len(row[name])) for row in rows])
    for name in ("n_units", "idx"):
        if name in rows[0]:
            batch[name] = torch.tensor([row[name] for row in rows])
    if rows[0].get("label") is not None:
        labels = [row["label"] for row in rows]
        batch["labels"] = torch.tensor(labels, dtype=torch.float if isinstance(labels[0], float) else torch.long)
    return batch


def pool_units(scores_BT: Tensor, unit_ids_BT: Tensor, n_units: int) -> Tensor:
    """Sum token scores into units: float [B, n_units]. Special tokens and padding count nowhere."""
    real_BT = unit_ids_BT != SPECIAL
    pooled_BU = scores_BT.new_zeros(len(scores_BT), n_units)
    return pooled_BU.scatter_add(1, unit_ids_BT.clamp(min=0), scores_BT * real_BT)


def visible_units(unit_ids_BT: Tensor, n_units: int) -> Tensor:
    """Bool [B, n_units]: the units that have at least one token, those that truncation cut off have none."""
    return pool_units(torch.ones_like(unit_ids_BT, dtype=torch.float), unit_ids_BT, n_units) > 0


def width(batch: Batch) -> int:
    """U of a batch: the largest number of units any of its examples has, at least 1 (empty texts have none)."""
    return max(1, int(batch["n_units"].max()))


def perturb(batch: Batch, keep_BU: Tensor, operator: Operator, tokenizer: PreTrainedTokenizerBase) -> Batch:
    """The batch with the units outside `keep_BU` (bool [B, U]) removed; special tokens always stay.

    `mask` puts the mask token in their place, `attention` hides them from attention, `delete` closes the gap (shorter
    sequences, cheaper), `gather` does so too but leaves every token its old position (`position_ids`, counted from 0): what
    `attention` says at the price of `delete`, for models that know a position from its embedding alone. Only the inputs of
    a model and `unit_ids`, `n_units` come back.
    """
    unit_ids_BT = batch["unit_ids"]
    keep_BT = (unit_ids_BT == SPECIAL) | keep_BU.gather(1, unit_ids_BT.clamp(min=0))
    copy = {name: batch[name] for name in (*MODEL_INPUTS, "unit_ids", "n_units") if name in batch}
    if operator == "mask":
        if tokenizer.mask_token_id is None:
            raise ValueError(f"{type(tokenizer).__name__} has no mask token; use the operator 'delete' or 'attention'")
        copy["input_ids"] = copy["input_ids"].masked_fill(~keep_BT, tokenizer.mask_token_id)
    elif operator == "attention":
        copy["attention_mask"] = copy["attention_mask"] * keep_BT
    else:
        if operator == "gather":
            copy.setdefault("position_ids", _places(copy["input_ids"]))
        return keep_tokens(copy, keep_BT, tokenizer)
    return _with_something(copy, tokenizer)


def keep_tokens(batch: Batch, keep_BT: Tensor, tokenizer: PreTrainedTokenizerBase) -> Batch:
    """The batch without the tokens outside `keep_BT` (bool [B, T]), gaps closed: a model's inputs, `unit_ids`, `n_units`."""
    copy = {name: batch[name] for name in (*MODEL_INPUTS, "unit_ids", "n_units") if name in batch}
    kept_BT = keep_BT & copy["attention_mask"].bool()
    order_BT = (~kept_BT).to(torch.uint8).argsort(dim=1, stable=True)
    kept_B = kept_BT.sum(1)
    longest = max(1, int(kept_B.max()))
    gone_BT = torch.arange(longest, device=kept_B.device) >= kept_B[:, None]
    for name in (*MODEL_INPUTS, "unit_ids"):
        if name in copy:
            fill = _PADDING.get(name, tokenizer.pad_token_id or 0)
            copy[name] = copy[name].gather(1, order_BT[:, :longest]).masked_fill(gone_BT, fill)
    return _with_something(copy, tokenizer)


def _with_something(batch: Batch, tokenizer: PreTrainedTokenizerBase) -> Batch:
    """The batch with one special token in texts of which nothing is left, as `encode` puts it into empty ones."""
    nothing_B1 = batch["attention_mask"].sum(1, keepdim=True) == 0
    first_BT = nothing_B1 & (_places(batch["input_ids"]) == 0)
    filled = {"input_ids": _empty_id(tokenizer), "attention_mask": 1, "unit_ids": SPECIAL}
    return batch | {name: batch[name].masked_fill(first_BT, value) for name, value in filled.items()}


def _places(input_ids_BT: Tensor) -> Tensor:
    """Where tokens stand, counted from 0; padding is on the right."""
    return torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device).expand(input_ids_BT.shape)


def repeat(batch: Batch, times: int) -> Batch:
    """Every example `times` over, copies of one example beside each other: [B * times, ...]."""
    return {name: value.repeat_interleave(times, dim=0) for name, value in batch.items()}


def pack(batches: Sequence[Batch], pad_token_id: int) -> Batch:
    """Stack batches of different lengths into one, padded to the longest; of what all of them have.

    Where some tokens have positions of their own (see `perturb`), the others get those they have anyway.
    """
    if any("position_ids" in batch for batch in batches):
        batches = [{"position_ids": _places(batch["input_ids"])} | batch for batch in batches]
    longest = max(batch["input_ids"].shape[1] for batch in batches)
    packed: Batch = {}
    for name in (name for name in batches[0] if all(name in batch for batch in batches)):
        fill = _PADDING.get(name, pad_token_id if name == "input_ids" else 0)
        packed[name] = torch.cat(
            [
                torch.nn.functional.pad(b[name], (0, longest - b[name].shape[1]), value=fill) if b[name].dim() == 2 else b[name]
                for b in batches
            ]
        )
    return packed
