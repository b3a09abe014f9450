"""The page about all explainers, written from their code: `python -m egkd.explain.catalogue > docs/explainers.md`."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from egkd.explain import EXPLAINERS, Explainer, SelectorSettings
from egkd.explain.base import Family

_START = """# Explainers

An explainer gives each word of a text a score: how much it speaks for what the classifier says. This page is written from
the code (`python -m egkd.explain.catalogue`), the advice below and its reasons by hand.

    from egkd.explain import explain

    for explanation in explain(model, tokenizer, ["a truly wonderful film"], method="integrated-gradients"):
        print(explanation.words, explanation.scores)

On the command line: `egkd explain "a truly wonderful film" --model my-classifier --method lime --set lime.n_samples=200`

Scores are for the log odds of one class, the predicted one unless another is asked for; for the output itself in
regression. Words are found by their place in the raw text, so two models with different tokenizers score the same words.
Special tokens and padding have no score; words that were cut off are marked, never dropped. A word's score is the sum
of its tokens' where a method adds up, and a word is taken away as a whole; `unit="token"` scores the model's own tokens.
"""

_ADVICE = (
    (
        "a first look, or many texts",
        "`input-x-gradient`",
        "one forward and one backward pass; signed, but a local slope",
    ),
    (
        "scores that add up, for a report",
        "`integrated-gradients`",
        "they sum to what the words change together; `completeness_gap` says how nearly",
    ),
    (
        "no gradients, a figure anyone understands",
        "`occlusion`",
        "what is lost without this one word, and nothing else",
    ),
    (
        "fair credit for words that repeat or support each other",
        "`shapley-sampling`",
        "unbiased at any number of samples, with a standard error for each score",
    ),
    (
        "the truth to check a method by, on short texts",
        "`exact-shapley`",
        "every coalition of words is asked",
    ),
    (
        "comparison with published LIME or SHAP figures",
        "`lime`, `kernel-shap`",
        "their definitions, with standard errors by jackknife",
    ),
    (
        "to know which few words suffice, for many texts",
        "`l2x`",
        "fitted once, then one forward pass; each text gets the same share of words",
    ),
    (
        "the same, where easy texts may take fewer words",
        "`hard-concrete`, `diffmask`",
        "a share on average, or as few words as leave the answer as it is",
    ),
    (
        "to know which few words suffice, for a few texts",
        "`sufficient-subset`",
        "searches each text anew; slow, and the reference for the fitted ones",
    ),
    (
        "reasons with every answer, at hardly any cost",
        "`reasons`",
        "a student distilled with `--reasons` says them itself; judge them before you rely on them",
    ),
    (
        "importance without direction",
        "`saliency`",
        "the size of the slope, silent about which way a word pushes",
    ),
    (
        "calmer gradients",
        "`smoothgrad`",
        "averages any gradient method over noise, and tells its standard error",
    ),
)
"""What somebody wants, what to use for it, and why."""

_CAUTION = """Before scores are relied on, see what they are worth: `egkd explain --judge` measures how far the answer falls
when the words they point at are taken away, beside the same scores in random order. A method that cannot beat its own floor
says nothing about this model. Methods answer different questions, so they may disagree and both be right: taking a word
away by a mask token is another question than letting its vector shrink, and a doubled word is unimportant to `occlusion`
while either copy is there. [Judging explanations](judging.md) has all measures, and
[how fast explanations are](explain-benchmark.md) the benchmark.

Scores that sample come with standard errors. Two words whose scores differ by less than those are not ordered; raise
`n_samples`. The seed of each text comes from the text itself: the same seed gives the same scores in any batch and order.
"""

_FITTING = """`L2X`, `HardConcrete` and `DiffMask` carry a selector: a small network that reads the classifier's hidden states.
It is trained once, on texts without labels, by `explainer.fit(model, tokenizer, rows)` or on the command line:

    egkd explain --model my-classifier --file reviews.csv --method l2x --selector my-selector --fit-on many-reviews.csv

Its settings are those of `SelectorSettings`, there `--set selector.rate=0.2`:
"""

_DIFFERENTIABLE: dict[Family, str] = {
    "gradient": "twice",
    "perturbation": "once",
    "selection": "no",
    "amortised": "once",
}

_LEGEND = """Cost per text: F is a forward pass, B a backward pass, U the number of words, other letters are settings (below).
*Differentiable* is the score as a function of the model's weights, which is what a student can be trained on: "once" needs
an ordinary backward pass, because scores are linear in the model's outputs; "twice" a backward pass through a backward
pass; "no" because a choice has no slope (the relaxed choice a selector is fitted by has one). *Sampled* methods depend on
the seed and tell a standard error.
"""

_FAMILIES: dict[Family, str] = {
    "gradient": "Gradient: how the output changes with a word's vector",
    "perturbation": "Perturbation: what the model says without some words",
    "selection": "Selection: which few words suffice",
    "amortised": "Amortised: what the model learnt to say of itself",
}


def catalogue() -> str:
    """The whole page, in Markdown."""
    advice = _table(["You want", "Use", "Because"], [list(row) for row in _ADVICE])
    parts = [_START, "## Which one should I use?", advice, _CAUTION, "## All of them", _LEGEND, _overview()]
    for family, title in _FAMILIES.items():
        parts.append(f"## {title}")
        parts += [_chapter(explainer) for explainer in EXPLAINERS.values() if explainer.family == family]
    parts += ["## How a selector is fitted", _FITTING, _settings(SelectorSettings)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _overview() -> str:
    head = ["method", "family", "cost per text", "sampled", "differentiable", "needs", "source"]
    rows = [
        [
            f"[`{name}`](#{name})",
            explainer.family,
            explainer.passes,
            "yes" if explainer.draws else "no",
            _DIFFERENTIABLE[explainer.family],
            needs(explainer),
            _linked(explainer.source),
        ]
        for name, explainer in EXPLAINERS.items()
    ]
    return _table(head, rows)


def needs(explainer: type[Explainer]) -> str:
    """What a method asks of the model and its tokenizer beside an answer."""
    names = {each.name for each in fields(explainer)}
    wanted = []
    if explainer.family == "gradient" or (explainer.family == "selection" and "selector" not in names):
        wanted.append("gradients at the embeddings")
    if "selector" in names:
        wanted.append("a selector fitted on this model, its hidden states")
    if "operator" in names:
        wanted.append("a mask token, or another operator")
    if explainer.family == "amortised":
        wanted.append("a student distilled with the objective `reasons`")
    if "baseline" in names:
        wanted.append("a mask token, or another baseline")
    return "; ".join(wanted)


def _chapter(explainer: type[Explainer]) -> str:
    return "\n\n".join(
        [
            f"### {explainer.name}",
            f"`egkd.explain.{explainer.__name__}`. {inspect.getdoc(explainer)}",
            f"Source: {_linked(explainer.source)}",
            _settings(explainer) if fields(explainer) else "It has no settings.",
        ]
    )


def _settings(owner: type) -> str:
    """A table of the fields of a dataclass: their defaults, limits and docstrings."""
    hints, told = get_type_hints(owner), _docstrings(owner)
    rows = []
    for each in fields(owner):
        default = each.default.default if isinstance(each.default, FieldInfo) else each.default
        allowed = "; ".join([*_choices(hints[each.name]), *_limits(each.default)])
        rows.append([f"`{each.name}`", _shown(default), allowed, told[each.name]])
    return _table(["setting", "default", "may be", "is"], rows)


def _docstrings(owner: type) -> dict[str, str]:
    """The string that stands below each field of a class."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            assert isinstance(below.value, ast.Constant)
            found[field.target.id] = inspect.cleandoc(str(below.value.value))
    return found


def _shown(default: Any) -> str:
    if isinstance(default, Explainer):
        return f"`{default.name}`"
    return "" if default is MISSING or default is None else f"`{default}`"


def _choices(hint: Any) -> Iterator[str]:
    if get_origin(hint) is Literal:
        yield ", ".join(f"`{choice}`" for choice in get_args(hint))


def _limits(default: Any) -> Iterator[str]:
    signs = {"gt": "above", "ge": "at least", "le": "at most", "multiple_of": "a multiple of"}
    for limit in default.metadata if isinstance(default, FieldInfo) else ():
        for name, words in signs.items():
            if getattr(limit, name, None) is not None:
                yield f"{words} {getattr(limit, name)}"


def _linked(source: str) -> str:
    source = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", source)
    return re.sub(r"doi:(10\.[^\s;,]+)", r"[doi:\1](https://doi.org/\1)", source)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    print(catalogue(), end="")
