"""The judges of `egkd explain`: they hear explanations as they come, some texts at a time, and tell what those are worth.

Shapes: N texts, U units.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egkd.evaluate.agreement import Tally
from egkd.evaluate.faithfulness import Probes, per_example
from egkd.evaluate.plausibility import plausibility
from egkd.evaluate.ranking import BINS
from egkd.evaluate.rationales import Rationale
from egkd.evaluate.scores import estimate
from egkd.explain import Explainer, Explanation, OwnReasons, encode_rows, explain
from egkd.explain.amortised import head_of
from egkd.explain.base import masks_by
from egkd.explain.selection import AmortisedExplainer
from egkd.explaining import ByMethod, Question
from egkd.lessons import fingerprint_tokenizer

Explained = Sequence[tuple[int, ByMethod]]
"""Some texts, each with its number and its explanation by every method."""


class Judge(ABC):
    """Hears all explanations of some texts at a time."""

    @abstractmethod
    def hear(self, explained: Explained) -> None:
        """Judge some more texts."""

    @abstractmethod
    def figures(self) -> dict[str, dict[str, Any]]:
        """By method, what the function of `egkd.evaluate` that judges returns for all texts heard."""


class Faithfulness(Judge):
    """How faithful each method's explanations are to the model, beside the same scores in random order."""

    def __init__(self, question: Question, explainers: Mapping[str, Explainer], probes: Probes) -> None:
        """`explainers` are asked again where `probes` want the max-sensitivity."""
        self.probes = probes
        self._question, self._explainers = question, explainers
        self._found: dict[str, list[tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]]] = {}

    def hear(self, explained: Explained) -> None:
        """Cost: about 4 F per word and text and method, those of the infidelity, and of the explanations asked for again."""
        question = self._question
        for method, explainer in self._explainers.items():
            one = [found[method] for _, found in explained]
            both = per_example(
                scores_of(one),
                question.model,
                question.tokenizer,
                encode_rows(question.tokenizer, *_texts(one), question.max_length, question.unit),
                targets=[each.target for each in one],
                probes=self.probes,
                seed=question.seed,
                token_budget=question.token_budget,
                precision=question.precision,
                again=explainer if self.probes.sensitivity_samples else None,
            )
            self._found.setdefault(method, []).append(both)

    def figures(self) -> dict[str, dict[str, Any]]:
        """As `evaluate.faithfulness` gives them."""
        told: dict[str, dict[str, Any]] = {}
        for method, parts in self._found.items():
            own, floor = (
                {name: np.concatenate([part[which][name] for part in parts]) for name in parts[0][which]} for which in (0, 1)
            )
            told[method] = {
                "all": {name: estimate(values).to_dict() for name, values in own.items()},
                "floor": {name: estimate(values).to_dict() for name, values in floor.items()},
                "n_skipped": int(np.isnan(own["comprehensiveness"]).sum()),
                "settings": {"bins": list(BINS), **asdict(self.probes), "seed": self._question.seed},
            }
        return told


class Agreement(Judge):
    """How far another model's explanations of the same class agree, method by method.

    The ceiling is how far a `twin` of the explained model agrees, one that differs by its seed alone; without one, for methods
    that draw, how far the model agrees with itself under another seed.
    """

    def __init__(
        self, question: Question, explainers: Mapping[str, Explainer], other: Question, twin: Question | None = None
    ) -> None:
        """Raises ValueError for models with other classes, and for methods that belong to one model."""
        self._question, self._explainers, self._other, self._twin = question, explainers, other, twin
        self._tallies = {method: Tally(question.seed) for method in explainers}
        for each in (other, twin):
            if each is not None:
                _check_classes(question, each)
                _check_units(question, each)
        for method, explainer in explainers.items():
            if isinstance(explainer, AmortisedExplainer):
                raise ValueError(f"{method} carries a selector of one model and cannot be asked about another; leave it out")
            for each in filter(None, (other, twin)):
                _check_can_be_asked(explainer, each)

    def hear(self, explained: Explained) -> None:
        """Cost: the explanations once more, and for a ceiling twice."""
        for method, explainer in self._explainers.items():
            own = [found[method] for _, found in explained]
            second = _asked(self._other, explainer, own)
            ceiling = None
            if self._twin is not None:
                ceiling = _asked(self._twin, explainer, own)
            elif explainer.draws:
                ceiling = _asked(replace(self._question, seed=self._question.seed + 1), explainer, own)
            self._tallies[method].add(
                scores_of(own),
                scores_of(second),
                same_class=_same(own, second),
                ceiling=None if ceiling is None else (scores_of(own), scores_of(ceiling)),
                ceiling_same_class=None if self._twin is None or ceiling is None else _same(own, ceiling),
            )

    def figures(self) -> dict[str, dict[str, Any]]:
        """As `evaluate.agreement` gives them."""
        return {method: tally.figures() for method, tally in self._tallies.items()}


class Plausibility(Judge):
    """Whether each method points at what people marked."""

    def __init__(self, question: Question, rationales: Sequence[Sequence[Rationale]]) -> None:
        """`rationales` by the number of their text: that of the text, and perhaps that of the second text of a pair.

        Raises ValueError where explanations are not of words, which is what people mark.
        """
        if question.unit != "word":
            raise ValueError("people marked words, and --unit token scores tokens; leave it out beside --rationales")
        self._question, self._rationales = question, rationales
        self._found: dict[str, dict[tuple[int, int], NDArray[Any]]] = {}

    def hear(self, explained: Explained) -> None:
        """Nothing is asked of the model."""
        for row, by_method in explained:
            for method, one in by_method.items():
                part_U = np.array([unit.part for unit in one.units], dtype=int)
                for part in range(len(self._rationales[row])):
                    self._found.setdefault(method, {})[row, part] = scores_of([one])[0][part_U == part]

    def figures(self) -> dict[str, dict[str, Any]]:
        """As `evaluate.plausibility` gives them."""
        return {
            method: plausibility(
                list(scores.values()), [self._rationales[row][part] for row, part in scores], seed=self._question.seed
            )
            for method, scores in self._found.items()
        }


def _same(first: Sequence[Explanation], second: Sequence[Explanation]) -> NDArray[np.bool_] | None:
    """Which texts both models give the same class; None in regression."""
    if len(first[0].logits) == 1:
        return None
    return np.array([one.prediction == other.prediction for one, other in zip(first, second, strict=True)])


def scores_of(explanations: Sequence[Explanation]) -> list[NDArray[np.float64]]:
    """The scores [U] of each, NaN where a unit is hidden."""
    return [np.where(np.array(one.hidden, dtype=bool), np.nan, np.array(one.scores, dtype=float)) for one in explanations]


def _texts(explanations: Sequence[Explanation]) -> tuple[list[str], list[str] | None]:
    pairs = None if explanations[0].text_pair is None else [each.text_pair or "" for each in explanations]
    return [each.text for each in explanations], pairs


def _asked(question: Question, explainer: Explainer, about: Sequence[Explanation]) -> list[Explanation]:
    """What another model says about the same texts and classes."""
    return explain(
        question.model,
        question.tokenizer,
        *_texts(about),
        method=explainer,
        target=[one.target for one in about],
        unit=question.unit,
        max_length=question.max_length,
        seed=question.seed,
        token_budget=question.token_budget,
        precision=question.precision,
    )


def _check_can_be_asked(explainer: Explainer, other: Question) -> None:
    """Before the explained model has been asked at all."""
    if isinstance(explainer, OwnReasons) and head_of(other.model) is None:
        raise ValueError(f"the other model tells no reasons of its own; leave {explainer.name} out")
    if other.tokenizer.mask_token_id is None and (setting := masks_by(explainer.settings())):
        raise ValueError(f"{explainer.name}.{setting} is 'mask', and the other model has no mask token; set another")


def _check_units(question: Question, other: Question) -> None:
    if question.unit == "token" and fingerprint_tokenizer(question.tokenizer) != fingerprint_tokenizer(other.tokenizer):
        raise ValueError("the two models cut texts into different tokens, so their scores can only be compared by words")


def _check_classes(question: Question, other: Question) -> None:
    names, others = (
        [str(name) for _, name in sorted((each.model.config.id2label or {}).items())] for each in (question, other)
    )
    folded, theirs = ([name.casefold() for name in each] for each in (names, others))
    named = not any(all(re.fullmatch(r"(label_)?\d+", name) for name in each) for each in (folded, theirs))
    if len(names) != len(others) or (len(names) > 1 and folded != theirs and (named or sorted(folded) == sorted(theirs))):
        raise ValueError(
            f"the explained model has the classes {', '.join(names)}, the other {', '.join(others)}; "
            "give one with the same in the same order"
        )
