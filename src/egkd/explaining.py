"""The job of explaining many texts by several methods: chunk by chunk, written as it goes, resumed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from datasets import Dataset
from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from egkd.config import near, override
from egkd.data import sample
from egkd.evaluate.faithfulness import Probes
from egkd.explain import EXPLAINERS, Explainer, Explanation, SelectorSettings, encode_rows, explainer_from_name, iter_explained
from egkd.explain.amortised import with_head
from egkd.explain.base import Precision, check_targets
from egkd.explain.record import Record
from egkd.explain.selection import AmortisedExplainer
from egkd.explain.selectors import Selector
from egkd.lessons import fingerprint_model, fingerprint_texts, fingerprint_tokenizer
from egkd.models import longest
from egkd.runs import read_json, write_json
from egkd.students import load_classifier, load_tokenizer
from egkd.students.loading import check_embeds
from egkd.text import MAX_LENGTH, MIN_LENGTH, UNIT_RULE, Kind, lengths

CHUNK = 256  # texts at a time: enough to be sorted by length, few enough to hold
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is."""
ByMethod = dict[str, Explanation]
_Settings = TypeVar("_Settings", SelectorSettings, Probes)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked about a model, apart from the texts and the methods."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    target: Literal["predicted"] | int = "predicted"
    unit: Kind = "word"
    max_length: int = MAX_LENGTH
    seed: int = 0
    precision: Precision = "float32"
    token_budget: int | None = None
    """Tokens of one pass at most; None for what suits the device."""

    def asked_of(self, source: str, *, trust_remote_code: bool = False) -> "Question":
        """The same of another model, about the class it predicts. Raises ValueError, one line."""
        other = question_about(source, "predicted", self.max_length, self.seed, trust_remote_code=trust_remote_code)
        return replace(other, precision=self.precision, unit=self.unit, token_budget=self.token_budget)

    def told(self) -> dict[str, Any]:
        """All that scores depend on beside text and method, as plain values."""
        return {
            "model": fingerprint_model(self.model)[:16],
            "tokenizer": fingerprint_tokenizer(self.tokenizer)[:16],
            "target": self.target,
            "max_length": self.max_length,
            "seed": self.seed,
            "unit_rule": UNIT_RULE,
            **({} if self.precision == "float32" else {"precision": self.precision}),
            **({} if self.unit == "word" else {"unit": self.unit}),
        }


@dataclass(frozen=True, kw_only=True)
class Methods:
    """What was chosen by names and settings."""

    explainers: dict[str, Explainer]
    fitting: SelectorSettings
    probes: dict[str, Any]
    """Settings of `Probes` that were given."""

    def probes_for(self, tokenizer: PreTrainedTokenizerBase) -> Probes:
        """What a judge probes with. By default words are taken away by mask tokens, where there is one, else deleted; the
        max-sensitivity, which asks for every explanation several times, is left out."""
        operator = "delete" if tokenizer.mask_token_id is None else "mask"
        return _checked(Probes, "judge", {"operator": operator, "sensitivity_samples": 0} | self.probes)


def methods_from(names: Sequence[str], assignments: Sequence[str]) -> Methods:
    """Explainers by name with settings like `lime.n_samples=200`, those for fitting a selector (`selector.rate=0.2`), and
    those of the judge of faithfulness (`judge.operator=delete`).

    Raises ValueError, one line, for what is unknown.
    """
    settings = override({}, assignments)
    fitting, probes = settings.pop("selector", {}), settings.pop("judge", {})
    _checked(Probes, "judge", probes)
    explainers: dict[str, Explainer] = {}
    for name in dict.fromkeys(names):
        own = settings.pop(name, {})
        if not isinstance(own, Mapping):
            raise ValueError(f"--set {name}={own} names no setting; write --set {name}.setting=value")
        explainers[name] = explainer_from_name(name, own)
    if settings:
        wrong = next(iter(settings))
        raise ValueError(f"--set {wrong}: there are settings of {', '.join(explainers)} here; write --set method.setting=value")
    return Methods(explainers=explainers, fitting=_checked(SelectorSettings, "selector", fitting), probes=probes)


def _checked(kind: type[_Settings], name: str, given: Any) -> _Settings:
    """Settings given as `--set name.setting=value`."""
    known = [each.name for each in fields(kind)]
    unknown = [setting for setting in given if setting not in known] if isinstance(given, Mapping) else [given]
    if unknown:
        raise ValueError(f"--set {name}: unknown setting {unknown[0]!r}; {near(str(unknown[0]), known)}")
    try:
        return kind(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"--set {name}.{first['loc'][0]}: {first['msg']}; it is {first['input']!r}") from None


def question_about(source: str, target: str, max_length: int | None, seed: int, *, trust_remote_code: bool = False) -> Question:
    """The model in the folder or hub id `source`, on a GPU where there is one, and what is asked about it.

    `target` is "predicted", a class name or a class number. Raises ValueError, one line.
    """
    tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
    model: Any = with_head(load_classifier(source, trust_remote_code=trust_remote_code), source)
    check_embeds(model, tokenizer, source)
    most = longest(model, tokenizer)
    max_length = min(MAX_LENGTH, most) if max_length is None else max_length
    if not MIN_LENGTH <= max_length <= most:
        raise ValueError(f"--max-length is {max_length}, {source} reads texts of {lengths(most)}")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return Question(model=model, tokenizer=tokenizer, target=_target(model, target), max_length=max_length, seed=seed)


def _target(model: PreTrainedModel, wanted: str) -> Literal["predicted"] | int:
    if wanted == "predicted":
        return "predicted"
    numbers = model.config.label2id or {}
    if wanted not in numbers and not wanted.removeprefix("-").isdecimal():
        raise ValueError(f"the model has no class {wanted!r}, it has {', '.join(map(str, numbers))}; give one, or its number")
    number = int(numbers.get(wanted, wanted))
    check_targets(model, [number], 1)
    return number


def with_selector(
    explainers: Mapping[str, Explainer],
    question: Question,
    folder: Path | None,
    fit_on: Dataset | None,
    settings: SelectorSettings,
    progress: Progress,
) -> dict[str, Explainer]:
    """The explainers, the one that needs a selector with that of `folder`: the one kept there, else fitted on `fit_on`.

    Beside a fitted selector stands `fitted.json`, which says on what. Raises ValueError for a selector of another model.
    """
    for one in explainers.values():
        if isinstance(one, AmortisedExplainer) and one.selector is not None and one.selector.folder is not None:
            _check_fitted(one.selector.folder, _conditions(one, question, None, settings))
    needy = {name: one for name, one in explainers.items() if isinstance(one, AmortisedExplainer) and one.selector is None}
    if fit_on is None and settings != SelectorSettings():
        raise ValueError(
            "--set selector.… is how a selector is fitted, and none is here; give texts to fit it on with --fit-on"
        )
    if not needy and folder is None and fit_on is None:
        return dict(explainers)
    if not needy:
        known = ", ".join(name for name, one in EXPLAINERS.items() if issubclass(one, AmortisedExplainer))
        raise ValueError(f"--selector and --fit-on are for {known}; no --method here is one of them and without a selector")
    name, explainer = needy.popitem()
    if needy:
        raise ValueError(f"--method {name} needs a selector of its own; fit it first, then give --set {name}.selector=FOLDER")
    if folder is None:
        raise ValueError(f"{name} needs a selector: give its folder as --selector, and --fit-on FILE to fit it there first")
    told = _conditions(explainer, question, fit_on, settings)
    if (folder / "selector.json").exists():
        _check_fitted(folder, told)
        return {**explainers, name: replace(explainer, selector=Selector.load(folder))}  # type: ignore[call-arg]
    if fit_on is None:
        raise ValueError(f"there is no selector in {folder}; fit one there with --fit-on FILE")
    return {**explainers, name: _fitted(explainer, question, folder, fit_on, settings, told, progress)}


def _check_fitted(folder: Path, told: Mapping[str, Any]) -> None:
    """Refuse a selector that was fitted with other things than these. Raises ValueError."""
    if not (folder / "fitted.json").exists():
        return
    kept, asked = ({"unit": "word"} | dict(each) for each in (read_json(folder / "fitted.json"), told))
    changed = sorted(key for key, value in asked.items() if kept.get(key, value) != value)
    if changed:
        raise ValueError(f"the selector in {folder} was fitted with another {' and another '.join(changed)}; name another")


def _conditions(
    explainer: AmortisedExplainer, question: Question, fit_on: Dataset | None, settings: SelectorSettings
) -> dict[str, Any]:
    """What a selector that is asked for depends on; its model alone where the texts to fit it on are not at hand."""
    told = question.told()
    if fit_on is None:
        return {name: told[name] for name in ("model", "tokenizer", "unit") if name in told}
    del told["target"]  # selectors explain the whole output
    told.pop("precision", None)  # they are fitted in float32
    return told | {"texts": fingerprint_texts(fit_on)[:16], **asdict(settings), "kind": explainer.kind}


def _fitted(
    explainer: AmortisedExplainer,
    question: Question,
    folder: Path,
    fit_on: Dataset,
    settings: SelectorSettings,
    told: dict[str, Any],
    progress: Progress,
) -> AmortisedExplainer:
    def tell(done: int, total: int) -> None:
        progress("fit the selector", done, total)

    drawn = sample(fit_on, settings.examples, question.seed)
    rows = encode_rows(question.tokenizer, list(drawn["text"]), _pairs(drawn), question.max_length, question.unit)
    fitted = explainer.fit(question.model, question.tokenizer, rows, settings=settings, seed=question.seed, progress=tell)
    assert fitted.selector is not None
    fitted.selector.save(folder)
    write_json(folder / "fitted.json", told)
    return fitted


def explain_all(
    question: Question,
    explainers: Mapping[str, Explainer],
    dataset: Dataset,
    record: Record | None = None,
    progress: Progress | None = None,
) -> Iterator[list[tuple[int, ByMethod]]]:
    """Explain `dataset` (columns row, text, perhaps text_pair) by every method; yields some texts at a time, in order.

    What is in `record` is not computed again, what is not is appended as it comes. Memory does not grow with the data set.
    """
    tell = progress or (lambda what, done, total: None)
    done, total = 0, len(dataset) * len(explainers)
    for start in range(0, len(dataset), CHUNK):
        chunk = dataset[start : start + CHUNK]
        found: list[ByMethod] = [{} for _ in chunk["row"]]
        for name, explainer in explainers.items():
            todo = []
            for place, row in enumerate(chunk["row"]):
                if record is not None and (row, name) in record:
                    found[place][name] = record[row, name]
                    done += 1
                else:
                    todo.append(place)
            tell("explain", done, total)
            for place, explanation in _explained(question, explainer, chunk, todo):
                if record is not None:
                    record.append(chunk["row"][place], explanation)
                found[place][name] = explanation
                done += 1
                tell("explain", done, total)
        yield list(zip(chunk["row"], found, strict=True))


def _explained(
    question: Question, explainer: Explainer, chunk: Mapping[str, list[Any]], places: Sequence[int]
) -> Iterator[tuple[int, Explanation]]:
    found = iter_explained(
        explainer,
        question.model,
        question.tokenizer,
        [chunk["text"][place] for place in places],
        [chunk["text_pair"][place] for place in places] if "text_pair" in chunk else None,
        target=question.target,
        unit=question.unit,
        max_length=question.max_length,
        seed=question.seed,
        token_budget=question.token_budget,
        precision=question.precision,
    )
    return ((places[index], explanation) for index, explanation in found)


def _pairs(dataset: Dataset) -> list[str] | None:
    return list(dataset["text_pair"]) if "text_pair" in dataset.column_names else None
