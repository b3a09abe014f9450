"""Feature selection: explanations that name the few words which suffice for what the model says.

Shapes: B batch, U units, C classes.

These explainers carry a fitted selector and cost one forward pass; `SufficientSubset` searches anew for each text and is the
slow reference they are judged against. All of them explain the whole output, whatever class is asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, InstanceOf
from pydantic.dataclasses import dataclass
from torch import nn
from transformers import PreTrainedTokenizerBase

from egkd.explain.base import Explainer, Family, Request, UnitScores, predicted
from egkd.explain.fitting import fit_selector
from egkd.explain.selectors import Kind, Selector, SelectorSettings, read_hidden


def _loaded(value: Any) -> Any:
    return Selector.load(value) if isinstance(value, str | Path) else value


class AmortisedExplainer(Explainer):
    """An explainer with a selector that was fitted beforehand. A unit's score is σ(its logit), 0 to 1 and without a sign.

    The higher, the sooner it is kept; only differences within a text mean something.
    """

    family: ClassVar[Family] = "selection"
    kind: ClassVar[Kind]
    """How its selector is trained."""
    signed = False

    selector: Selector | None

    def fit(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        dataset: Sequence[Mapping[str, Any]],
        *,
        settings: SelectorSettings | None = None,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Self:
        """This explainer with a selector fitted on `model` and encoded rows, see `fit_selector`.

        The `kind` of `settings` does not count: it is the explainer's.
        """
        own = replace(settings or SelectorSettings(), kind=self.kind)
        return replace(self, selector=fit_selector(own, model, tokenizer, dataset, seed=seed, progress=progress))  # type: ignore[call-arg]

    def score(self, request: Request) -> UnitScores:
        if self.selector is None:
            raise ValueError(
                f"'{self.name}' has no selector yet; fit one with {type(self).__name__}().fit(model, tokenizer, rows), "
                "or give the folder of a saved one as the setting 'selector'"
            )
        if self.selector.settings.kind != self.kind:
            raise ValueError(f"'{self.name}' was given a selector of the kind '{self.selector.settings.kind}'; fit its own")
        read = read_hidden(request.model, request.batch, self.selector.settings.layers)
        return UnitScores(
            scores_BU=self.selector.logits_from(read, request.batch).sigmoid() * request.visible_BU,
            visible_BU=request.visible_BU,
            target_B=predicted(read.logits_BC, request.target_B),
            logits_BC=read.logits_BC,
        )


SelectorSetting = Annotated[InstanceOf[Selector] | None, BeforeValidator(_loaded)]


@dataclass(frozen=True, kw_only=True)
class L2X(AmortisedExplainer):
    """Learning to explain: a fixed share of the words, chosen so that the output on them tells the output on the text.

    Deviates from the paper in what the selector reads, the classifier's hidden states instead of its own embeddings, and
    in who judges the selection: the classifier itself instead of a second network trained along.
    """

    name: ClassVar[str] = "l2x"
    passes: ClassVar[str] = "1 F (fitting: 2 F + 1 B per text)"
    source: ClassVar[str] = "Chen et al. 2018, arXiv:1802.07814"
    kind: ClassVar[Kind] = "l2x"

    selector: SelectorSetting = None
    """A fitted selector, or the folder it was saved in."""


@dataclass(frozen=True, kw_only=True)
class HardConcrete(AmortisedExplainer):
    """L0 regularised masks: each word has a gate of its own, and the expected share of open ones is held at a target.

    Easy texts may spend fewer words than hard ones while it is trained; *L2X* gives each the same share.
    """

    name: ClassVar[str] = "hard-concrete"
    passes: ClassVar[str] = "1 F (fitting: 2 F + 1 B per text)"
    source: ClassVar[str] = "Louizos et al. 2018, arXiv:1712.01312; Bastings et al. 2019, arXiv:1905.08160"
    kind: ClassVar[Kind] = "hard-concrete"

    selector: SelectorSetting = None
    """A fitted selector, or the folder it was saved in."""


@dataclass(frozen=True, kw_only=True)
class DiffMask(AmortisedExplainer):
    """As few words as leave the output within a tolerance.

    Deviates from the paper: one probe reads a few layers together (see `Selector`), and what takes a word's place is the
    mask token, not a learned vector, so that a selection means the same to every method and every judge.
    """

    name: ClassVar[str] = "diffmask"
    passes: ClassVar[str] = "1 F (fitting: 2 F + 1 B per text)"
    source: ClassVar[str] = "De Cao et al. 2020, arXiv:2004.14992"
    kind: ClassVar[Kind] = "diffmask"

    selector: SelectorSetting = None
    """A fitted selector, or the folder it was saved in."""
