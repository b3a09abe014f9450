"""How a unit of text gets a score: three families of explainers behind one interface.

for explanation in explain(model, tokenizer, ["a truly wonderful film"], method="shapley-sampling"):
    print(explanation.words, explanation.scores)
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

from pydantic import ValidationError
from torch import nn
from transformers import PreTrainedTokenizerBase

from egkd.config import near
from egkd.explain.amortised import OwnReasons
from egkd.explain.base import Explainer, Precision, Scored, UnitScores, iter_scored, score_dataset
from egkd.explain.explanation import Explanation, Unit, load, save
from egkd.explain.fitting import fit_selector
from egkd.explain.gradient import InputXGradient, IntegratedGradients, Saliency, unit_scores_of_gradient
from egkd.explain.perturbation import Occlusion
from egkd.explain.selection import L2X, DiffMask, HardConcrete
from egkd.explain.selectors import Selector, SelectorSettings
from egkd.explain.shapley import ExactShapley, ShapleySampling
from egkd.explain.smoothgrad import SmoothGrad
from egkd.explain.sufficient import SufficientSubset
from egkd.explain.surrogate import KernelShap, Lime
from egkd.text import MAX_LENGTH, Kind, encode, unit_spans

Target = Literal["predicted"] | str | int | Sequence[int]

EXPLAINERS: dict[str, type[Explainer]] = {
    explainer.name: explainer
    for explainer in (
        Saliency,
        InputXGradient,
        IntegratedGradients,
        SmoothGrad,
        Occlusion,
        Lime,
        KernelShap,
        ShapleySampling,
        ExactShapley,
        L2X,
        HardConcrete,
        DiffMask,
        SufficientSubset,
        OwnReasons,
    )
}
"""Every explainer by its name."""


def explainer_from_name(name: str, settings: Mapping[str, Any] | None = None) -> Explainer:
    """The explainer of that name with these settings; others keep their defaults.

    A setting that is an explainer itself is given by name, or as {"method": name, **settings}.
    Raises ValueError, one line, for an unknown name or setting (with the nearest known one) or a bad value.
    """
    if name not in EXPLAINERS:
        raise ValueError(f"unknown explanation method '{name}'; {near(name, EXPLAINERS)}")
    explainer = EXPLAINERS[name]
    known = [f.name for f in fields(explainer)]
    values = dict(settings or {})
    for setting in values:
        if setting not in known:
            raise ValueError(f"'{name}' has no setting '{setting}'; {near(setting, known)}")
    if "inner" in values and not isinstance(values["inner"], Explainer):
        inner = values["inner"]
        inner = {"method": inner} if isinstance(inner, str) else inner
        if not (isinstance(inner, Mapping) and isinstance(inner.get("method"), str)):
            raise ValueError(
                f"'{name}', setting 'inner': found {inner!r}, expected a method's name, or a 'method' beside settings"
            )
        values["inner"] = explainer_from_name(inner["method"], {k: value for k, value in inner.items() if k != "method"})
    try:
        return explainer(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"'{name}', setting '{first['loc'][0]}': {first['msg']}; it is {first['input']!r}") from None


def explain(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: str | Sequence[str],
    pairs: str | Sequence[str] | None = None,
    *,
    method: str | Explainer = "integrated-gradients",
    target: Target = "predicted",
    unit: Kind = "word",
    max_length: int = MAX_LENGTH,
    seed: int = 0,
    token_budget: int | None = None,
    precision: Precision = "float32",
    progress: Callable[[int], None] | None = None,
) -> list[Explanation]:
    """Explain what a sequence classifier or regressor says about texts (or pairs), word by word or token by token.

    Scores are for the log odds of `target` (a class by number or name, one number per text, or the predicted class), or
    for the output in regression. With `unit` "token" the model's own tokens have scores: a word's is the sum of its tokens'
    where a method adds up. The model comes back as it was. The same seed gives the same scores, whatever else is in `texts`;
    `token_budget` bounds the tokens of one forward pass (default: what suits the device) and changes nothing but memory and
    speed. `precision` "bfloat16" is faster where the processor has it, and a little off. Texts longer than `max_length`
    tokens are cut, and `Explanation.cut` says where.

    Raises ValueError for an unknown method or class, for pairs that do not match the texts, and for a slow tokenizer.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    pairs = [pairs] if isinstance(pairs, str) else None if pairs is None else list(pairs)
    explainer = explainer_from_name(method) if isinstance(method, str) else method
    found: dict[int, Explanation] = {}
    for index, explanation in iter_explained(
        explainer,
        model,
        tokenizer,
        texts,
        pairs,
        target=target,
        unit=unit,
        max_length=max_length,
        seed=seed,
        token_budget=token_budget,
        precision=precision,
    ):
        found[index] = explanation
        if progress is not None:
            progress(len(found))
    return [found[index] for index in range(len(texts))]


def iter_explained(
    explainer: Explainer,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    target: Target = "predicted",
    unit: Kind = "word",
    max_length: int = MAX_LENGTH,
    seed: int = 0,
    token_budget: int | None = None,
    precision: Precision = "float32",
) -> Iterator[tuple[int, Explanation]]:
    """As `explain`, one by one as they come, the longest text first: (index of the text, its explanation).

    The model is given back in between, so a consumer may stop at any time.
    """
    if pairs is not None and len(pairs) != len(texts):
        raise ValueError(f"{len(texts)} texts and {len(pairs)} pairs; give as many of one as of the other")
    if not texts:
        return
    for name, value, kinds in (("unit", unit, ("word", "token")), ("precision", precision, ("float32", "bfloat16"))):
        if value not in kinds:
            raise ValueError(f"{name} is {value!r}; {near(value, kinds)}")
    rows = encode_rows(tokenizer, texts, pairs, max_length, unit)
    targets = _targets(model, target, len(texts))
    names = getattr(getattr(model, "config", None), "id2label", None) or {}
    for index, scored in iter_scored(
        explainer, model, tokenizer, rows, targets=targets, seed=seed, token_budget=token_budget, precision=precision
    ):
        yield index, _explanation(rows[index], scored, names, explainer, max_length)


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
    unit: Kind = "word",
) -> list[dict[str, Any]]:
    """Texts (and pairs) as `text.encode` gives them, one by one, with the text itself: what `score_dataset` takes."""
    columns = encode(tokenizer, texts, pairs, max_length, unit)
    columns["text"] = list(texts)
    if pairs is not None:
        columns["text_pair"] = list(pairs)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _targets(model: nn.Module, target: Target, n_texts: int) -> list[int] | None:
    if isinstance(target, str):
        if target == "predicted":
            return None
        numbers = getattr(getattr(model, "config", None), "label2id", None) or {}
        if target not in numbers:
            raise ValueError(f"the model has no class '{target}'; {near(target, numbers)}")
        target = int(numbers[target])
    try:
        return [operator.index(target)] * n_texts  # type: ignore[arg-type]
    except TypeError:
        if any(isinstance(each, str) for each in target):  # type: ignore[union-attr]
            raise ValueError(f"target holds names, {target!r}; give one name for all texts, or a number for each") from None
        return [operator.index(each) for each in target]  # type: ignore[union-attr]


def _explanation(
    row: Mapping[str, Any], scored: Scored, names: Mapping[int, str], explainer: Explainer, max_length: int
) -> Explanation:
    parts = [row["text"]] if row.get("text_pair") is None else [row["text"], row["text_pair"]]
    words = [(part, *span) for part, text in enumerate(parts) for span in unit_spans(text)]
    errors = None if scored.error_U is None else scored.error_U.tolist()
    return Explanation(
        text=row["text"],
        text_pair=row.get("text_pair"),
        unit="token" if "units" in row else "word",
        units=tuple(Unit(*each) for each in row.get("units", words)),
        scores=tuple(scored.scores_U.tolist()),
        hidden=tuple((~scored.visible_U).tolist()),
        truncated=len(row["input_ids"]) >= max_length,
        errors=None if errors is None else tuple(error if error == error else None for error in errors),
        target=scored.target,
        label=str(names.get(scored.target, scored.target)) if len(scored.logits_C) > 1 else "output",
        logits=tuple(scored.logits_C.tolist()),
        method=explainer.name,
        settings=explainer.settings(),
        diagnostics=dict(scored.diagnostics),
    )


__all__ = [
    "EXPLAINERS",
    "L2X",
    "DiffMask",
    "ExactShapley",
    "Explainer",
    "Explanation",
    "HardConcrete",
    "InputXGradient",
    "IntegratedGradients",
    "KernelShap",
    "Lime",
    "Occlusion",
    "OwnReasons",
    "Saliency",
    "Scored",
    "Selector",
    "SelectorSettings",
    "ShapleySampling",
    "SmoothGrad",
    "SufficientSubset",
    "Unit",
    "UnitScores",
    "encode_rows",
    "explain",
    "explainer_from_name",
    "fit_selector",
    "iter_explained",
    "iter_scored",
    "load",
    "save",
    "score_dataset",
    "unit_scores_of_gradient",
]
