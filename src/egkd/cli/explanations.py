"""Explanations as `egkd explain` shows them: on the terminal, on a page, and what to be careful with."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.text import Text

from egkd.explain import Explainer, Explanation
from egkd.explain.explanation import inert
from egkd.explaining import ByMethod, Question
from egkd.report.explanations import write_explanations

STRONGEST = 5  # words named with their scores, for who sees no colours


class Shown:
    """What has been shown of the explanations, text by text."""

    def __init__(self, question: Question, console: Console | None, for_page: bool) -> None:
        """On `console`, if any; kept for a page, if there is to be one."""
        self._question, self._console, self._for_page = question, console, for_page
        self._sections: list[tuple[str, list[Markup]]] = []
        self._texts = self._cut = self._hidden = 0

    def show(self, explained: Iterable[tuple[int, ByMethod]]) -> None:
        """Show some texts, each with its explanations by all methods."""
        for row, by_method in explained:
            first = next(iter(by_method.values()))
            self._texts += 1
            self._cut += first.n_cut > 0
            self._hidden += first.n_cut
            heading = f"row {row}: the model says {self._answer(first)}"
            if self._console is not None:
                self._console.print(Text(inert(heading), style="bold"))
                for one in by_method.values():
                    self._console.print(one.to_terminal(), Text(inert(strongest(one))), sep="\n", end="\n\n")
            if self._for_page:
                self._sections.append((heading, [one.to_html() for one in by_method.values()]))

    def write_page(self, path: Path, model: str, explainers: Mapping[str, Explainer]) -> None:
        """Write what was kept."""
        asked = [("model", model), ("class", str(self._question.target)), ("seed", str(self._question.seed))]
        asked += [(name, _listed(explainer.settings())) for name, explainer in explainers.items()]
        write_explanations(
            path, "What speaks for the model’s answers", [*asked, *(("note", n) for n in self.cautions())], self._sections
        )

    def cautions(self) -> Iterator[str]:
        """What must not be overlooked."""
        if self._cut:
            yield (
                f"{self._cut} of {self._texts} texts have words that the model did not see ({self._hidden} words, struck out): "
                f"texts are cut after {self._question.max_length} tokens (--max-length)"
            )

    def _answer(self, explanation: Explanation) -> str:
        if len(explanation.logits) == 1:
            return f"{explanation.logits[0]:.4g}"
        largest = max(explanation.logits)
        share = 1 / sum(math.exp(logit - largest) for logit in explanation.logits)
        names: Mapping[Any, str] = self._question.model.config.id2label or {}
        number = int(explanation.prediction)
        return f"“{names.get(number, number)}” ({share:.0%})"


def strongest(explanation: Explanation) -> str:
    """The words with the largest scores, in figures."""
    seen = [place for place, hidden in enumerate(explanation.hidden) if not hidden]
    best = sorted(seen, key=lambda place: -abs(explanation.scores[place]))[:STRONGEST]
    return " · ".join(f"{explanation.words[place]} {explanation.scores[place]:+.3g}" for place in best)


def _listed(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {_listed(value) if isinstance(value, Mapping) else value}" for name, value in settings.items())
