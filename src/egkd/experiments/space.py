"""What a sweep tries, described: methods, the settings that vary, how often. Imports neither torch nor optuna."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator

from egkd.config import RunConfig, check, merge, resolve, to_yaml
from egkd.config_data import Section
from egkd.experiments.methods import METHODS, method_settings

Value = bool | int | float | str | None
QUICK: dict[str, Any] = {
    "evaluate": {"explained": 0, "shown": 0, "latency_repeats": 1},
    "train": {"eval_strategy": "no"},
}
"""Under `base`: a trial is judged once, at its end, by its score alone."""


class Range(Section):
    """Numbers from `low` to `high`: whole ones where both are."""

    low: int | float
    high: int | float
    log: bool = False
    """Whether equal ratios are equally likely, not equal differences."""
    step: int | float | None = Field(default=None, gt=0)
    """Distance of neighbouring values; of whole numbers 1."""

    @model_validator(mode="after")
    def _can_be(self) -> "Range":
        if self.low > self.high:
            raise ValueError(f"found low {self.low:g} above high {self.high:g}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs low above 0, and no step")
        return self

    @property
    def whole(self) -> bool:
        """Whether it is of whole numbers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))


def _some_values(space: dict[str, Any]) -> dict[str, Any]:
    empty = [name for name, values in space.items() if values == ()]
    if empty:
        raise ValueError(f"{empty[0]} has no value to choose from")
    return space


Space = Annotated[dict[str, Range | tuple[Value, ...]], AfterValidator(_some_values)]
"""By a setting's name, `train.learning_rate`: a range, or the values to choose from."""


class SweepConfig(Section):
    """Everything that defines a sweep; `sweep.yaml` in its folder is this."""

    base: dict[str, Any]
    """Settings of every run; `data.held_out` says what is judged by."""
    methods: dict[str, dict[str, Any]]
    """By name: settings over a built-in method's, as in a grid, and under `space` what varies in this one alone. A list of
    names will do."""
    space: Space = Field(default_factory=dict)
    """What varies in every method."""
    trials: int = Field(default=20, gt=0)
    """Runs of each method, the same number for all. It may be raised later."""
    metric: str | None = None
    """What is highest in the best trial; the task's headline by default."""
    seed: int = Field(default=0, ge=0)
    """Of the choice of values; the runs have their own in `base.seed`."""
    keep_students: bool = False
    """Whether a finished trial keeps its student's weights."""

    @field_validator("methods", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return {str(name): {} for name in value}
        return {str(name): entry or {} for name, entry in value.items()} if isinstance(value, Mapping) else value

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "SweepConfig":
        """From settings, checked as far as can be told without data. Raises ValueError, one line."""
        config = check(cls, settings)
        if not config.methods:
            raise ValueError("methods names none, expected at least one, like plain")
        for name in config.methods:
            config.space_of(name)
            _check_space(config, name)
        _check_same_data(config)
        return config

    def space_of(self, method: str) -> Space:
        """What varies in a method's runs. Raises ValueError, one line."""
        own = self.methods[method].get("space") or {}
        return {**self.space, **check(_OwnSpace, {"space": own}, f"methods.{method}").space}

    def settings_of(self, method: str) -> dict[str, Any]:
        """A method's settings, to be laid over `base`. Raises ValueError for an unknown one."""
        own = {name: {key: v for key, v in entry.items() if key != "space"} for name, entry in self.methods.items()}
        known = {name: entry for name, entry in own.items() if entry or name in METHODS or "+" in name}
        return method_settings(method, known)

    def run(self, method: str, values: Mapping[str, Any], out: Path) -> RunConfig:
        """The run that a trial of the sweep in `out` is. Raises ValueError, one line."""
        settings = merge(merge(merge(QUICK, self.base), self.settings_of(method)), nested(values))
        settings = {"lessons": out / "lessons"} | settings
        if settings.get("teacher_init") and not settings.get("teacher"):
            del settings["teacher_init"]
            settings["teacher"] = str(self.teacher_folder(out) / "teacher")
        return resolve(settings)

    def teacher(self) -> RunConfig | None:
        """The fine-tuning of the teacher, which sees no row that is held out; None where one is given."""
        known = ("teacher_init", "data", "teach", "max_length", "trust_remote_code", "seed")
        if self.base.get("teacher") or not self.base.get("teacher_init"):
            return None
        return resolve({name: self.base[name] for name in known if name in self.base})

    @staticmethod
    def teacher_folder(out: Path) -> Path:
        """The run folder in which it is fine-tuned."""
        return out / "teacher"

    def to_yaml(self) -> str:
        """The whole of it, as `sweep.yaml` holds it."""
        return to_yaml(self.model_dump(mode="json"))


class _OwnSpace(Section):
    space: Space


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"train.learning_rate": 1}` as settings: `{"train": {"learning_rate": 1}}`."""
    settings: dict[str, Any] = {}
    for name, value in values.items():
        *outer, last = name.split(".")
        inner: dict[str, Any] = {last: value}
        for part in reversed(outer):
            inner = {part: inner}
        settings = merge(settings, inner)
    return settings


def ends(space: Space) -> Iterable[dict[str, Any]]:
    """The settings with every value at its least, or first; and with every value at its greatest, or last."""
    for place in (0, -1):
        yield {
            name: ((values.low, values.high) if isinstance(values, Range) else values)[place] for name, values in space.items()
        }


def _check_space(config: SweepConfig, method: str) -> None:
    """What varies must be something that the method has: a weight would switch an objective on."""
    plain = config.run(method, {}, Path())
    space = config.space_of(method)
    for name in space:
        parts = name.split(".")
        if parts[0] == "data":
            raise ValueError(f"space: {name} varies the data, which is the same for all that is compared")
        if parts[0] == "objectives" and parts[1:2] and parts[1] not in plain.objectives:
            learns = ", ".join(plain.objectives)
            raise ValueError(
                f"space: {name} varies what {method} does not learn ({learns}); put it into its methods.NAME.space"
            )
    for values in ends(space):
        config.run(method, values, Path())


def _check_same_data(config: SweepConfig) -> None:
    """All methods are judged by the same rows, held out of the rows to train on."""
    found: dict[str, Any] = {}
    for method in config.methods:
        data = config.run(method, {}, Path()).data
        if data.held_out is None:
            raise ValueError("a sweep judges by rows held out of train; say how many: base.data.held_out=1000, or a share")
        found[method] = data.model_dump(exclude={"augment", "unlabeled"})
    first = next(iter(found))
    other = [method for method, data in found.items() if data != found[first]]
    if other:
        raise ValueError(f"methods {first} and {other[0]} are judged on different data; only augment and unlabeled may differ")


def spelled(values: Mapping[str, Any]) -> str:
    """Values in a line, for people."""
    return ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items())
