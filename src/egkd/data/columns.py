"""Which columns of a table are the text, its pair and the label: as named by the user, else guessed where unambiguous."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from egkd.config import did_you_mean
from egkd.data.readers import Table

# Names as they are compared: lower case, letters and digits only, so "Sentence_1" is "sentence1".
TEXTS = "text sentence review reviewtext reviewbody content body comment tweet message post document utterance".split()
PAIRS = [
    tuple(pair.split("+"))
    for pair in """text+textpair text1+text2 texta+textb sentence1+sentence2 sentencea+sentenceb premise+hypothesis
    question1+question2 question+sentence question+answer question+context query+passage query+document""".split()
]
LABELS = """label labels goldlabel class category target sentiment stars rating score similarity isduplicate intent topic
    emotion""".split()


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of columns."""

    texts: tuple[str, ...]
    """The text's, or those of a pair."""
    label: str


def choose_columns(table: Table, *, text: str | None, text_pair: str | None, label: str | None) -> tuple[Columns, str | None]:
    """The columns to use, and a note of what was guessed. A named `text` without `text_pair` is no pair.

    Raises ValueError, with the columns found and the flag to use, where names are unknown or a guess is ambiguous.
    """
    _check_named(table, {"--text": text, "--text-pair": text_pair, "--label": label})
    texts, guessed = _choose_texts(table, text, text_pair, label)
    if label is None:
        by_name = _by_plain_name(name for name in table.columns if name not in texts)
        (label,) = _only(table, [(name,) for each in LABELS for name in by_name.get(each, [])], "--label", LABELS)
        guessed.append(f"label from column {label!r}")
    if len({*texts, label}) <= len(texts):
        raise ValueError(f"--text, --text-pair and --label name the same column of {table.path}: expected different ones")
    note = f"{table.path.name}: {', '.join(guessed)} (guessed; --text, --text-pair and --label say otherwise)"
    return Columns(texts=texts, label=label), note if guessed else None


def choose_texts(table: Table, *, text: str | None, text_pair: str | None) -> tuple[tuple[str, ...], str | None]:
    """As `choose_columns`, where no label is wanted: the columns of the texts, and a note of what was guessed."""
    _check_named(table, {"--text": text, "--text-pair": text_pair})
    texts, guessed = _choose_texts(table, text, text_pair, None)
    if len(set(texts)) < len(texts):
        raise ValueError(f"--text and --text-pair name the same column of {table.path}: expected different ones")
    note = f"{table.path.name}: {', '.join(guessed)} (guessed; --text and --text-pair say otherwise)"
    return texts, note if guessed else None


def _check_named(table: Table, named: Mapping[str, str | None]) -> None:
    for flag, name in named.items():
        if name is not None and name not in table.columns:
            near = did_you_mean(name, table.columns, ", ")
            raise ValueError(f"{flag} {name!r} is no column of {table.path}{near or ','} found {found(table)}")
    if named["--text"] is None and named["--text-pair"] is not None:
        raise ValueError(f"--text-pair {named['--text-pair']!r} needs --text beside it, one of {found(table)}")


def _choose_texts(
    table: Table, text: str | None, text_pair: str | None, label: str | None
) -> tuple[tuple[str, ...], list[str]]:
    """The columns of the texts, and what was guessed of them."""
    if text is not None:
        return ((text,) if text_pair is None else (text, text_pair)), []
    texts = _only(table, _text_candidates(name for name in table.columns if name != label), "--text", TEXTS)
    return texts, [" and ".join(f"{to} from column {name!r}" for to, name in zip(("text", "pair"), texts, strict=False))]


def found(table: Table) -> str:
    """The columns of a table, for messages."""
    names = [repr(name if len(name) <= 40 else f"{name[:40]}…") for name in table.columns]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _text_candidates(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Every pair that is there, and every single text that is not half of one."""
    by_name = _by_plain_name(names)
    pairs = [(a, b) for first, second in PAIRS for a in by_name.get(first, []) for b in by_name.get(second, [])]
    halves = {name for pair in pairs for name in pair}
    singles = [name for each in TEXTS for name in by_name.get(each, []) if name not in halves]
    return [*pairs, *((name,) for name in singles)]


def _only(table: Table, candidates: list[tuple[str, ...]], flag: str, known: list[str]) -> tuple[str, ...]:
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        options = " or ".join(" + ".join(repr(name) for name in candidate) for candidate in candidates)
        raise ValueError(f"{table.path} has columns {found(table)}, the guess is ambiguous ({options}): choose with {flag}")
    near = next(filter(None, (did_you_mean(each, table.columns, ", ") for each in known)), "")
    raise ValueError(f"{table.path} has columns {found(table)}, none with a known name: choose with {flag}{near}")


def _by_plain_name(names: Iterable[str]) -> dict[str, list[str]]:
    by_name: dict[str, list[str]] = {}
    for name in names:
        by_name.setdefault(re.sub(r"[^a-z0-9]", "", name.lower()), []).append(name)
    return by_name
