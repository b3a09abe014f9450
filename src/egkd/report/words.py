"""Words coloured by their scores, and the cards of examples that show them: teacher and students side by side."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from egkd.report.comparison import columns, explainer_names
from egkd.report.run import Example, Run, Shown
from egkd.report.wording import answer, explainer, finite, number, percent

MOST = 12  # examples shown


@dataclass(frozen=True, kw_only=True)
class Word:
    """A stretch of text: a unit with its score, or what stands between units."""

    text: str
    kind: str = ""
    """`for`, `against` (signed scores), `some` (unsigned ones), `cut`, `odd` (no number) or nothing."""
    strength: float = 0.0
    """0 to 1 on the scale of this example and model."""
    tip: str = ""


def is_signed(name: str, examples: Sequence[Example]) -> bool:
    """Whether any of the scores is negative; norms never are."""
    shown = [shown for example in examples for shown in (example.teacher, example.student)]
    return any(score is not None and score < 0 for one in shown for score in one.scores.get(name, ()))


def words(example: Example, shown: Shown, name: str, signed: bool) -> list[list[Word]]:
    """Each part of the text, cut into words coloured by `shown`; joined, the words are the text again."""
    scores = shown.scores.get(name, (None,) * len(example.units))
    largest = max((abs(score) for score in scores if score is not None and finite(score)), default=0.0)
    painted: list[list[Word]] = []
    for part, text in enumerate(example.parts):
        line, done = [], 0
        for (owner, start, end), score in zip(example.units, scores, strict=True):
            if owner == part:
                line += [Word(text=text[done:start]), _word(text[start:end], score, largest, signed)]
                done = end
        painted.append([word for word in (*line, Word(text=text[done:])) if word.text])
    return painted


def _word(text: str, score: float | None, largest: float, signed: bool) -> Word:
    if score is None:
        return Word(text=text, kind="cut", tip="no score: cut off, or in a token of a neighbour")
    if not math.isfinite(score):
        return Word(text=text, kind="odd", tip=f"no number: {number(score)}")
    kind = "some" if not signed else "for" if score > 0 else "against"
    strength = round(abs(score) / largest, 2) if largest else 0.0
    tip = f"{score:+.3g}" if signed else f"{score:.3g}"
    return Word(text=text, kind=kind if strength else "", strength=strength, tip=tip.replace("-", "−"))


def heaviest(example: Example, shown: Shown, name: str, most: int = 3) -> list[str]:
    """The words with the largest scores, for those who do not see colours."""
    scores = shown.scores.get(name, ())
    known = [(abs(score), place) for place, score in enumerate(scores) if score is not None and finite(score) and score]
    ordered = [example.units[place] for _, place in sorted(known, key=lambda pair: (-pair[0], pair[1]))[:most]]
    return [example.parts[part][start:end] for part, start, end in ordered]


@dataclass(frozen=True, kw_only=True)
class Painting:
    """A model's reasons by one explainer."""

    lines: list[list[Word]]
    heaviest: list[str]
    agreement: str
    """Rank correlation with the teacher's; empty for the teacher and where nothing is known."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One model's half of a card."""

    title: str
    place: int | None
    prediction: str
    confidence: str
    correct: bool | None
    """None where there is no gold label, or nothing that is right or wrong."""
    paintings: tuple[Painting | None, ...]
    """By explainer, in the order of `Gallery.explainers`."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One example."""

    label: str
    sides: tuple[Side, ...]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The examples of all runs."""

    explainers: tuple[str, ...]
    signed: tuple[bool, ...]
    ordered_by: int | None
    """The explainer whose agreement rises from example to example, if there is one."""
    cut: bool
    """Whether any model did not read some of the words."""
    cards: tuple[Card, ...]


def gallery(runs: Sequence[Run]) -> Gallery:
    """The first dozen examples, each run's in its own order and the runs in turn; an example that several runs show
    under one teacher is one card."""
    shown = [one.scores for run in runs for example in run.examples for one in (example.teacher, example.student)]
    known = [name for name in explainer_names(runs) if any(name in scores for scores in shown)]
    names = list(dict.fromkeys([*known, *(name for scores in shown for name in scores)]))
    signed = [is_signed(name, [example for run in runs for example in run.examples]) for name in names]
    teachers = {column.place: column for column in columns(runs)}
    merged: dict[tuple[str, str | None, int, int], list[tuple[int, Example]]] = {}
    before: Counter[tuple[int, str, str | None]] = Counter()  # a run may hold a text more than once
    for rank in range(max((len(run.examples) for run in runs), default=0)):
        for place, run in enumerate(runs):
            if rank < len(run.examples):
                example = run.examples[rank]
                again = before[place, example.text, example.text_pair]
                before[place, example.text, example.text_pair] += 1
                merged.setdefault((example.text, example.text_pair, again, teachers[place].teacher), []).append(
                    (place, example)
                )
    titles = [teachers[place].title for place in range(len(runs))]
    cards = [_card(seen, runs, titles, names, signed) for seen in list(merged.values())[:MOST]]
    cut = any(None in scores for shown_scores in shown for scores in shown_scores.values())
    ordered_by = next((place for place, name in enumerate(names) if _rises(name, runs)), None)
    explainers = tuple(map(explainer, names))
    return Gallery(explainers=explainers, signed=tuple(signed), ordered_by=ordered_by, cut=cut, cards=tuple(cards))


def _rises(name: str, runs: Sequence[Run]) -> bool:
    """Whether the examples of every run are in the order of their agreement by this explainer, the lowest first."""
    series = [[example.agreement.get(name) for example in run.examples] for run in runs]
    known = [[value for value in values if value is not None and finite(value)] for values in series]
    return any(len(values) > 1 for values in known) and all(values == sorted(values) for values in known)


def _card(
    seen: list[tuple[int, Example]], runs: Sequence[Run], titles: list[str], names: list[str], signed: list[bool]
) -> Card:
    first_place, first = seen[0]
    kind = runs[first_place].metrics.task.kind
    sides = [_side("teacher", None, first, first.teacher, kind, names, signed)]
    sides += [
        _side(titles[place], place, example, example.student, kind, names, signed)
        for place, example in sorted(seen, key=lambda pair: pair[0])
    ]
    return Card(label="" if first.label is None else answer(first.label), sides=tuple(sides))


def _side(
    title: str, place: int | None, example: Example, shown: Shown, kind: str, names: list[str], signed: list[bool]
) -> Side:
    judged = kind == "classification" and example.label is not None and shown.prediction is not None
    return Side(
        title=title,
        place=place,
        prediction=answer(shown.prediction),
        confidence="" if shown.confidence is None else percent(shown.confidence, 0),
        correct=shown.prediction == example.label if judged else None,
        paintings=tuple(
            Painting(
                lines=words(example, shown, name, is_signed_one),
                heaviest=heaviest(example, shown, name),
                agreement="" if place is None or example.agreement.get(name) is None else number(example.agreement[name], 2),
            )
            if name in shown.scores
            else None
            for name, is_signed_one in zip(names, signed, strict=True)
        ),
    )
