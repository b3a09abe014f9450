"""What a run folder says, read and checked: the pages and tables of this package look at nothing else.

Every file of a run is optional (an interrupted run has a log and no figures), but one that is there must be sound.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

T = TypeVar("T")
FILES = ("metrics.json", "log.jsonl", "examples.json", "config.yaml", "environment.json")


class _Part(BaseModel):
    """A part of a JSON file. What it has beyond the fields named here is left alone; null is the same as not there."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: object) -> object:
        return {name: item for name, item in value.items() if item is not None} if isinstance(value, Mapping) else value


class Estimate(_Part):
    """A mean over examples."""

    mean: float | None = None
    se: float | None = None
    """Standard error of the mean."""
    n: int | None = None
    """Number of examples."""


def _as_estimate(value: object) -> object:
    return {"mean": value} if value is None or isinstance(value, (int, float)) else value


Figure = Annotated[Estimate, BeforeValidator(_as_estimate)]  # a bare number is a mean without a standard error
Scores = dict[str, dict[str, float | None]]  # evaluation set -> metric -> value
Figures = dict[str, dict[str, Figure]]


def figures_only(value: Any) -> Any:
    """Figures by two names, without counts that stand beside them: these are not for the page."""
    if not isinstance(value, Mapping):
        return value
    return {
        name: {which: part for which, part in looked.items() if not isinstance(part, int)}
        if isinstance(looked, Mapping)
        else looked
        for name, looked in value.items()
    }


class Latency(_Part):
    """Time per example by batch size, and how it was taken."""

    ms_per_example: dict[int, float] = Field(default_factory=dict)
    conditions: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _sort_out(cls, value: object) -> object:
        """From `{"1": {"ms_per_example": 3.1}, "conditions": {...}}`: the batch sizes are the keys that are numbers."""
        if not isinstance(value, Mapping):
            return value
        timed = {int(size): timing for size, timing in value.items() if str(size).isdecimal() and isinstance(timing, Mapping)}
        times = {size: timing["ms_per_example"] for size, timing in sorted(timed.items()) if "ms_per_example" in timing}
        return {"ms_per_example": times, "conditions": value.get("conditions") or {}}


class OwnReasons(_Part):
    """What the reasons are worth that a student tells by itself."""

    agreement: dict[str, Figures] = Field(default_factory=dict)
    """Whose occlusion (`student`, `teacher`) -> `all` or `floor` -> measure of closeness to it -> figure."""
    faithfulness: Figures = Field(default_factory=dict)
    """Explainer of the student -> measure -> figure."""
    latency: dict[str, Latency] = Field(default_factory=dict)
    """`plain` without the scores, `reasons` with them."""

    @field_validator("agreement", mode="before")
    @classmethod
    def _without_counts(cls, value: Any) -> Any:
        return figures_only(value)


class Model(_Part):
    """A teacher or a student with its figures."""

    name: str = ""
    scores: Scores = Field(default_factory=dict)
    parameters: int | None = None
    bytes: int | None = None
    latency: Latency = Field(default_factory=Latency)
    fidelity: Figures = Field(default_factory=dict)
    """Evaluation set -> measure of closeness to the teacher's predictions -> figure."""
    explanations: dict[str, Figures] = Field(default_factory=dict)
    """Explainer -> examples looked at (`all`, `same_class`, `floor`) -> measure of closeness to its explanations -> figure."""

    reasons: OwnReasons = Field(default_factory=OwnReasons)

    @field_validator("explanations", mode="before")
    @classmethod
    def _without_counts(cls, value: Any) -> Any:
        return figures_only(value)


class Task(_Part):
    """What was to be predicted."""

    name: str = ""
    kind: Literal["classification", "regression"] = "classification"
    label_names: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    """The first one is the headline."""
    positive: int = 1
    """The class that `f1` is of."""


class Term(_Part):
    """One objective of the student."""

    name: str
    weight: float | None = None


class Training(_Part):
    """What the student cost."""

    seconds: float | None = None
    steps: int | None = None
    examples: int | None = None
    lessons_seconds: float | None = None


class Voter(_Part):
    """One of several teachers, or their vote."""

    name: str = ""
    weight: float | None = None
    scores: Scores = Field(default_factory=dict)
    fidelity: Figures = Field(default_factory=dict)
    """Evaluation set -> measure of the student's closeness to its predictions -> figure."""


class Metrics(_Part):
    """The file metrics.json."""

    task: Task = Field(default_factory=Task)
    teacher: Model = Field(default_factory=Model)
    teachers: tuple[Voter, ...] = ()
    """Where there are several: each of them, then what they say together."""
    student: Model = Field(default_factory=Model)
    objectives: tuple[Term, ...] = ()
    training: Training = Field(default_factory=Training)


Answer = str | float | None


class Shown(_Part):
    """What one model showed on one example."""

    prediction: Answer = None
    confidence: float | None = None
    scores: dict[str, tuple[float | None, ...]] = Field(default_factory=dict)
    """Explainer -> a score per unit; None where truncation cut the unit off."""


class Example(_Part):
    """One example of the file examples.json."""

    text: str
    text_pair: str | None = None
    label: Answer = None
    units: tuple[tuple[int, int, int], ...] = ()
    """Part (0 `text`, 1 `text_pair`), first character, character after the last."""
    teacher: Shown = Field(default_factory=Shown)
    student: Shown = Field(default_factory=Shown)
    agreement: dict[str, float | None] = Field(default_factory=dict)
    """Explainer -> rank correlation of the student's scores with the teacher's."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The text, and the second text of a pair."""
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        before = [0] * len(self.parts)
        for part, start, end in self.units:
            if part not in range(len(before)) or not before[part] <= start <= end <= len(self.parts[part]):
                raise ValueError(f"unit {[part, start, end]} lies outside the text or overlaps the unit before it")
            before[part] = end
        for who, shown in (("teacher", self.teacher), ("student", self.student)):
            for explainer, scores in shown.scores.items():
                if len(scores) != len(self.units):
                    raise ValueError(f"{len(scores)} scores of the {who} by {explainer} for {len(self.units)} units")
        return self


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder in memory."""

    folder: Path
    metrics: Metrics = field(default_factory=Metrics)
    log: tuple[Mapping[str, Any], ...] = ()
    examples: tuple[Example, ...] = ()
    config: str = ""
    """config.yaml as it is written."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """The same, flat: `train.learning_rate` -> `5e-05`."""
    environment: Mapping[str, str] = field(default_factory=dict)


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises ValueError, in one line, for a folder that holds no run and for a file that is broken.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give the output folder of a run")
    if not any((folder / name).is_file() for name in FILES[:2]):
        raise ValueError(f"{folder} holds no run: neither {FILES[0]} nor {FILES[1]} is there; give the output folder of a run")
    config = _text(folder / "config.yaml")
    return Run(
        folder=folder,
        metrics=_checked(TypeAdapter(Metrics), folder / "metrics.json", _json(folder / "metrics.json", {})),
        log=_log(folder / "log.jsonl"),
        examples=_checked(TypeAdapter(tuple[Example, ...]), folder / "examples.json", _json(folder / "examples.json", [])),
        config=config,
        settings=_flat(_yaml(folder / "config.yaml", config)),
        environment=_flat(_json(folder / "environment.json", {})),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text ({error}); run it again or remove the file") from error


def _json(path: Path, empty: Any) -> Any:
    text = _text(path)
    try:
        return json.loads(text) if path.is_file() else empty
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}); run it again or remove the file") from error


def _yaml(path: Path, text: str) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML ({' '.join(str(error).split())}); run it again or remove the file") from error
    if settings is not None and not isinstance(settings, dict):
        raise ValueError(
            f"{path} holds a {type(settings).__name__}, expected settings by name; run it again or remove the file"
        )
    return settings or {}


def _log(path: Path) -> tuple[dict[str, Any], ...]:
    """The lines of a log. A last line without its end is what an interrupted run leaves behind, and is passed over."""
    lines = _text(path).split("\n")[:-1]
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line) if line.strip() else {}
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}, is no JSON ({error}); remove that line") from error
        if not isinstance(entry, dict):
            raise ValueError(f"{path}, line {number}, holds a {type(entry).__name__}, expected an object; remove that line")
        entries.append(entry)
    return tuple(entries)


def _checked(adapter: TypeAdapter[T], path: Path, value: Any) -> T:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise ValueError(
            f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}; run it again or remove the file"
        ) from error


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as `a.b.0.c` -> text."""
    pairs: Sequence[tuple[Any, Any]]
    if isinstance(value, dict) and value:
        pairs = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        pairs = list(enumerate(value))
    elif not prefix:
        return {}
    else:
        return {prefix: ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)}
    flat: dict[str, str] = {}
    for name, inner in pairs:
        flat |= _flat(inner, f"{prefix}.{name}" if prefix else str(name))
    return flat
