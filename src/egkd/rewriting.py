"""The job of `egkd augment`: labelled texts rewritten by a masked language model, to learn from without labels.

Each word that is one token is masked, alone, and the likeliest other words there are its candidates. In a copy each of these
words becomes one of its candidates with some probability. Of a pair the copies change the first text, the second, both, and so
on in turn. What a copy means the teacher says, when it is learnt from.

Source: Jiao et al. 2020 (TinyBERT), arXiv:1909.10351, algorithm 1, and its 20 copies, 0.4 and 15 candidates. Deviations: words
of several tokens stay, where theirs become neighbours by GloVe vectors; candidates are whole words, and never the word itself.

Shapes: W words of a text that can be replaced, T tokens, V vocabulary.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

import torch
from pydantic import Field
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from egkd.config_data import DataConfig, Section
from egkd.data.augment import changed_parts, word_spans
from egkd.data.loading import load_data
from egkd.lessons.fingerprints import fingerprint_model, fingerprint_texts, fingerprint_tokenizer
from egkd.models import longest
from egkd.runs import check_writable, held, write_text
from egkd.students import load_tokenizer
from egkd.students.loading import loaded
from egkd.text import MAX_LENGTH, MIN_LENGTH, lengths

AT_ONCE = 2048  # tokens in a pass, each of which the model answers with its whole vocabulary
Span = tuple[int, int]


class RewriteConfig(Section):
    """How texts are rewritten."""

    copies: int = Field(default=20, gt=0)
    """Copies of each row; those that equal their row or each other are left out."""
    replace: float = Field(default=0.4, gt=0, le=1)
    """Probability that a word becomes one of its candidates."""
    candidates: int = Field(default=15, gt=0)
    """How many a word has, all equally likely to be taken."""
    seed: int = Field(default=0, ge=0)
    """Of what is drawn; each row draws by itself."""


def rewrite(
    data: DataConfig,
    language_model: str,
    out: Path,
    settings: RewriteConfig,
    *,
    max_length: int | None = None,
    trust_remote_code: bool = False,
    tell: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write copies of the rows to train on into the JSON lines file `out`, in columns of the same names; returns how many.

    Texts are cut after `max_length` tokens; by default 128, or as many as the model reads. Interrupted, the same call goes on.
    Raises ValueError, one line, for data or a model that cannot be used, before any work.
    """
    if out.suffix.lower() != ".jsonl":
        raise ValueError(f"--out {out}: expected a file of JSON lines, like copies.jsonl")
    if out.exists():
        raise ValueError(f"{out} exists; delete it or name another file")
    check_writable(out.parent, "--out")
    model, tokenizer = _load(language_model, trust_remote_code)
    most = longest(model, tokenizer)
    max_length = min(MAX_LENGTH, most) if max_length is None else max_length
    if not MIN_LENGTH <= max_length <= most:
        raise ValueError(f"--max-length is {max_length}, {language_model} reads texts of {lengths(most)}")
    found = load_data(data)
    for note in found.notes:
        tell(note)
    rows = found.train.remove_columns("label")
    key = {
        "model": fingerprint_model(model),
        "tokenizer": fingerprint_tokenizer(tokenizer),
        "texts": fingerprint_texts(rows),
        "max_length": max_length,
        **settings.model_dump(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    with held(out.with_name(f".{out.name}.lock"), out):
        done = _begun(part, hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest())
        if done:
            tell(f"{len(done):,} of {len(rows):,} rows are rewritten already")
        writer = _Writer(model, tokenizer, settings, max_length)
        with part.open("a", encoding="utf-8") as file:
            for number in range(len(done), len(rows)):
                row = tuple(rows[number][name] for name in rows.column_names)
                done.append(list(map(list, writer.copies(row, number))))
                file.write(json.dumps(done[-1], ensure_ascii=False) + "\n")
                file.flush()
                progress(number + 1, len(rows))
        names = [{"text": data.text, "text_pair": data.text_pair}[name] or name for name in rows.column_names]
        copies = [dict(zip(names, copy, strict=True)) for own in done for copy in own]
        write_text(out, "".join(json.dumps(copy, ensure_ascii=False) + "\n" for copy in copies))
        part.unlink()
        return len(copies)


def _load(source: str, trust_remote_code: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
    if tokenizer.mask_token_id is None:
        raise ValueError(f"the tokenizer of {source} has no mask token; give a masked language model, like bert-base-uncased")
    model, info = loaded(
        AutoModelForMaskedLM,
        source,
        dtype=torch.float32,
        use_safetensors=True,  # nothing is ever unpickled
        output_loading_info=True,
        trust_remote_code=trust_remote_code,
    )
    if info["missing_keys"]:
        names = ", ".join(sorted(info["missing_keys"])[:3])
        raise ValueError(f"{source} was not trained to fill masks: it lacks {names}; give a masked language model")
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def _begun(part: Path, key: str) -> list[list[list[str]]]:
    """The rows that an interrupted call has rewritten; the file is cut to these, and begins with `key`."""
    lines = part.read_bytes().split(b"\n")[:-1] if part.exists() else []  # what follows the last line break was cut off
    if lines and lines[0].decode() != key:
        raise ValueError(f"{part} was begun with other data, another model or settings; delete it, or name another --out")
    part.write_bytes(b"".join(line + b"\n" for line in lines or [key.encode()]))
    return [json.loads(line) for line in lines[1:]]


class _Writer:
    """Rewrites rows."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: RewriteConfig, max_length: int
    ) -> None:
        self._model, self._tokenizer, self._settings, self._max_length = model, tokenizer, settings, max_length
        self._words_V = whole_words(tokenizer, model.config.vocab_size)
        self._other_V = torch.tensor([not word for word in self._words_V], device=model.device)

    def copies(self, row: tuple[str, ...], number: int) -> list[tuple[str, ...]]:
        """The copies of a row, which draws by its number."""
        draw = Random(f"{self._settings.seed} {number}")
        options = [self.candidates(text) for text in row]
        told = dict.fromkeys(
            tuple(
                self._changed(text, own, draw) if changes else text
                for text, own, changes in zip(row, options, changed_parts(len(row), copy), strict=True)
            )
            for copy in range(self._settings.copies)
        )
        return [copy for copy in told if copy != row]

    def _changed(self, text: str, options: Mapping[Span, Sequence[str]], draw: Random) -> str:
        pieces, start = [], 0
        for (a, b), words in options.items():
            if draw.random() < self._settings.replace:
                pieces += [text[start:a], draw.choice(words)]
                start = b
        return "".join([*pieces, text[start:]])

    def candidates(self, text: str) -> dict[Span, list[str]]:
        """By its span in `text`, what each word that is one token may become, the likeliest first."""
        encoded = self._tokenizer(text, truncation=True, max_length=self._max_length, return_offsets_mapping=True)
        place_of = {_unspaced(text, *span): place for place, span in enumerate(encoded.pop("offset_mapping"))}
        spans = [span for span in word_spans(text) if span in place_of]
        found: dict[Span, list[str]] = {}
        size = max(1, AT_ONCE // max(1, len(encoded["input_ids"])))
        for start in range(0, len(spans), size):
            some = spans[start : start + size]
            likely_WK = self._likely(dict(encoded), [place_of[span] for span in some])
            for span, ids in zip(some, likely_WK.tolist(), strict=True):
                own = text[slice(*span)]
                words = [_as_written(self._words_V[number], own) for number in ids]
                others = dict.fromkeys(word for word in words if word.casefold() != own.casefold())
                if others:
                    found[span] = list(others)[: self._settings.candidates]
        return found

    @torch.inference_mode()
    def _likely(self, encoded: Mapping[str, list[int]], places: Sequence[int]) -> Tensor:
        """The likeliest words, one more than are wanted, where each of these places is masked alone."""
        device = self._model.device
        inputs = {name: torch.tensor([values] * len(places), device=device) for name, values in encoded.items()}
        rows_W, places_W = torch.arange(len(places), device=device), torch.tensor(places, device=device)
        inputs["input_ids"][rows_W, places_W] = int(self._tokenizer.mask_token_id)
        logits_WV = self._model(**inputs).logits[rows_W, places_W].masked_fill(self._other_V, -torch.inf)
        count = min(self._settings.candidates + 1, int((~self._other_V).sum()))
        return logits_WV.topk(count, dim=1).indices


def whole_words(tokenizer: PreTrainedTokenizerBase, size: int) -> list[str]:
    """For each of the first `size` token ids the word it stands for in a text, "" where that is none: a part of a word,
    punctuation, a special token."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    special = set(tokenizer.all_special_tokens)
    mark = next((mark for mark in ("Ġ", "▁") if sum(str(token).startswith(mark) for token in tokens) > len(tokens) / 20), "")
    words = [""] * size
    for number, token in enumerate(tokens):
        if token in special or not str(token).startswith(mark):
            continue
        word = tokenizer.convert_tokens_to_string([token]).strip()
        if word.isalnum():  # which "##ing" is not
            words[number] = word
    return words


def _unspaced(text: str, start: int, end: int) -> Span:
    """A token's span without the white space that some tokenizers count to it."""
    part = text[start:end]
    return end - len(part.lstrip()), start + len(part.rstrip())


def _as_written(word: str, own: str) -> str:
    """A word in the capitals of the one that it replaces."""
    if own.isupper() and len(own) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if own[:1].isupper() else word
