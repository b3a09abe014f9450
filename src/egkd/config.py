"""One run, described: YAML or flags into checked settings; all messages about bad settings. Imports no torch."""

import difflib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from egkd.config_data import DataConfig, Section, spelling
from egkd.presets import PRESETS

_Model = TypeVar("_Model", bound=BaseModel)


class Guide(StrEnum):
    """A family of explanations to learn beside answers; each switches on the objective of its name."""

    gradient = "gradient"
    perturbation = "perturbation"
    selection = "selection"
    none = "none"


TRAIN_DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "learning_rate": 5e-5,
    "weight_decay": 0.01,
    "warmup_steps": 0.1,
    "train_sampling_strategy": "group_by_length",
    "logging_steps": 25,
    "eval_strategy": "epoch",
    "save_strategy": "steps",
    "save_steps": 0.2,
    "save_total_limit": 1,
    "report_to": "none",
}
"""What `transformers.TrainingArguments` get where a run's `train` or `teach` section is silent."""
STUDENT_LEARNING_RATE = 1e-4  # small students want more than teachers
WORD_LEARNING_RATE = 1e-3  # and those that begin with random weights more than those


_TAGS = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's reading of words and numbers: `no` is a word and 1e-3 a number, which PyYAML takes the other way round."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuses a name that stands twice, of which PyYAML would take the last."""
        if isinstance(node, yaml.MappingNode):
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != f"{_TAGS}merge"]
            for place, name in enumerate(names):
                if name in names[:place]:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{name!r} stands there twice", node.value[place][0].start_mark
                    )
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (f"{_TAGS}null", f"{_TAGS}merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern, _firsts in (
    ("bool", r"[Tt]rue|TRUE|[Ff]alse|FALSE", "tTfF"),
    ("int", r"[-+]?\d+", "-+0123456789"),
    ("float", r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"{_TAGS}{_kind}", re.compile(f"^(?:{_pattern})$"), list(_firsts))
_Loader.add_constructor(f"{_TAGS}int", lambda loader, node: int(str(node.value)))  # not octal after a 0


class _Dumper(yaml.SafeDumper):
    """Quotes the words that `_Loader`, or an older reader, would take for something else."""


_Dumper.yaml_implicit_resolvers = {
    first: [
        resolver
        for kind in (yaml.SafeLoader, _Loader)
        for of in (first, None)
        for resolver in kind.yaml_implicit_resolvers.get(of, [])
    ]
    for first in {*yaml.SafeLoader.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}


def to_yaml(value: Any) -> str:
    """YAML that `read_yaml` reads as the same again."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class EvaluateConfig(Section):
    """How teacher and student are compared."""

    explained: int = Field(default=200, ge=0)
    """Evaluation examples on which explanations are compared."""
    shown: int = Field(default=12, ge=0)
    """Of those, how many the report shows word by word."""
    latency_repeats: int = Field(default=5, ge=1)
    """Timed rounds per batch size."""
    twin: str | None = None
    """A model made like the teacher with another seed, a folder or hub id: how far its explanations agree with the teacher's
    is the ceiling of what can be asked of a student."""


class RunConfig(Section):
    """Everything that defines a run; `config.yaml` of a run folder is this, resolved."""

    teacher: str | None = None
    """A fine-tuned classifier: local folder or hub id. A list names several, of which the first lends a student its layers and
    is the one with whose reasons the student's are compared."""
    more_teachers: tuple[str, ...] = ()
    """The others, where `teacher` was a list."""
    teacher_weights: tuple[float, ...] = ()
    """How much each of several teachers says, the first one first; equally much by default."""
    teacher_init: str | None = None
    """Instead: an encoder that is fine-tuned first to become the teacher."""
    student: str = "layers:3"
    """`layers:0,2,4` or `layers:3` of the teacher, `bilstm`, `textcnn`, or a local folder or hub id."""
    data: DataConfig
    preset: str | None = None
    """A named method's settings, over which all others go: one of `presets.PRESETS`."""
    objectives: dict[str, dict[str, Any]] = Field(default_factory=lambda: PRESETS["plain"](None)["objectives"])
    """Settings of each objective by its name."""
    freeze_embeddings: bool = False
    """Leave the student's embedding layer as it is."""
    student_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout while the student learns; what its architecture has by default. A saved student keeps its architecture's."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Handed to `transformers.TrainingArguments` for the student, over our defaults."""
    teach: dict[str, Any] = Field(default_factory=dict)
    """The same for fine-tuning a teacher."""
    evaluate: EvaluateConfig = EvaluateConfig()
    max_length: int = Field(default=128, ge=5)
    """Tokens after which a text is cut."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    lessons: Path | None = None
    """Folder for lessons, shared between runs; `lessons` beside the run's folder by default."""
    lessons_precision: Literal["float32", "bfloat16"] | None = None
    """What teachers compute lessons in: by default what the student computes in. With `train.bf16` that is bfloat16, which is
    faster, and a little off."""
    trust_remote_code: bool = False
    """Run model code that comes with a checkpoint. Only for checkpoints you trust."""

    @field_validator("lessons")
    @classmethod
    def _home(cls, value: Path | None) -> Path | None:
        return value and value.expanduser()

    @field_validator("objectives", mode="before")
    @classmethod
    def _empty_is_default(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: {} if settings is None else settings for name, settings in value.items()}

    @model_validator(mode="before")
    @classmethod
    def _first_teacher(cls, settings: Any) -> Any:
        if not isinstance(settings, Mapping) or not isinstance(settings.get("teacher"), list | tuple):
            return settings
        first, *others = settings["teacher"] or [None]
        return {**settings, "teacher": first, "more_teachers": others}

    @field_validator("teacher_weights", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _several_teachers(self) -> "RunConfig":
        count = len(self.teachers)
        if self.more_teachers and self.teacher_init:
            raise ValueError(
                f"found teacher_init beside {len(self.more_teachers)} teachers, expected teachers that are fine-tuned"
            )
        if self.teacher_weights and (
            len(self.teacher_weights) != count or not all(0 < weight < math.inf for weight in self.teacher_weights)
        ):
            found = ", ".join(f"{weight:g}" for weight in self.teacher_weights)
            raise ValueError(f"found teacher_weights {found}, expected a number above 0 for each of {count} teachers")
        return self

    @property
    def teachers(self) -> tuple[str, ...]:
        """All that are fine-tuned, in their order."""
        return (self.teacher, *self.more_teachers) if self.teacher else self.more_teachers

    @model_validator(mode="after")
    def _one_teacher(self) -> "RunConfig":
        if bool(self.teacher) == bool(self.teacher_init):
            found = "both" if self.teacher else "neither"
            raise ValueError(
                f"found {found}, expected either teacher (--teacher: fine-tuned) or "
                "teacher_init (--teacher-init: an encoder to fine-tune first)"
            )
        if self.teacher_init and not (self.data.task or self.data.train):
            raise ValueError("found teacher_init and no labelled rows, expected data.train (--train) to fine-tune it on")
        return self

    @property
    def others(self) -> tuple[str, ...]:
        """Classifiers beside the first teacher, each once: the other teachers, and a twin."""
        return tuple(dict.fromkeys((*self.more_teachers, *filter(None, (self.evaluate.twin,)))))

    @property
    def precision_of_lessons(self) -> Literal["float32", "bfloat16"]:
        """`lessons_precision`, or what follows from `train`."""
        return self.lessons_precision or ("bfloat16" if self.train.get("bf16") is True else "float32")

    @property
    def train_arguments(self) -> dict[str, Any]:
        """The student's training arguments, over the defaults."""
        random = self.student.partition(":")[0] in ("bilstm", "textcnn")
        rate = WORD_LEARNING_RATE if random else STUDENT_LEARNING_RATE
        ours = {"learning_rate": rate, "seed": self.seed, "data_seed": self.seed}
        return TRAIN_DEFAULTS | ours | self.train

    @property
    def teach_arguments(self) -> dict[str, Any]:
        """The teacher's training arguments, over the defaults."""
        return TRAIN_DEFAULTS | {"seed": self.seed, "data_seed": self.seed} | self.teach

    def to_yaml(self) -> str:
        """The whole of it, as `config.yaml` holds it."""
        return to_yaml(self.model_dump(mode="json"))


def near(name: str, known: Collection[str]) -> str:
    """`did you mean 'x'?` where a known name is close, else the known names."""
    return did_you_mean(name, known) or f"known are {', '.join(sorted(known)) or 'none'}"


def did_you_mean(name: str, known: Collection[str], before: str = "") -> str:
    """`did you mean 'x'?` for the nearest of the known names, without regard to case, after `before`; empty where none is."""
    by_lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"{before}did you mean {by_lower[close[0]]!r}?" if close else ""


def read_yaml(path: Path) -> dict[str, Any]:
    """A settings file. Raises ValueError, one line."""
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 a SafeLoader
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:  # the last of a tag that does not fit
        raise ValueError(f"cannot read settings from {path}: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds {type(settings).__name__}, expected settings as 'name: value' lines")
    return settings


def override(settings: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """`settings` with `a.b=value` assignments applied; values are read as YAML."""
    settings = dict(settings)
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"--set {assignment!r} has no value; write --set name.inner=value")
        *outer, last = name.strip().split(".")
        place = settings
        for part in outer:
            inner = place.get(part)
            if isinstance(inner, list):
                raise ValueError(
                    f"--set {assignment}: {part} is a list, {inner}, whose entries have no settings; write them by name"
                )
            place[part] = dict(inner) if isinstance(inner, Mapping) else {}
            place = place[part]
        try:
            place[last] = yaml.load(value, _Loader)  # noqa: S506 a SafeLoader
        except yaml.YAMLError:
            place[last] = value
    return settings


def merge(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the settings of `extra` laid over it, section by section."""
    merged = dict(base)
    for name, value in extra.items():
        old = merged.get(name)
        merged[name] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def resolve(settings: Mapping[str, Any], guides: Sequence[Guide] = (), *, reasons: bool = False) -> RunConfig:
    """Checked settings of a run. `guides` switches explanation objectives on beside the preset's, gold and soft labels.

    Raises ValueError whose message is one line: the setting, what was found, and the near miss.
    """
    settings = {"data": {}} | dict(settings)
    others = [guide for guide in guides if guide != Guide.none]
    if others and len(others) < len(guides):
        raise ValueError(f"--guide none cannot stand beside --guide {others[0].value}; give one or the other")
    chosen = _preset(settings)
    preset = [name for name in chosen["objectives"] if name in set(Guide)]
    if preset and Guide.none in guides:
        raise ValueError(f"--guide none cannot stand beside --preset {settings['preset']}, which has {preset[0]}; leave it out")
    extra: dict[str, Any] = {guide.value: {} for guide in others} | ({"reasons": {}} if reasons else {})
    objectives = settings.pop("objectives", None)
    if objectives is None or isinstance(objectives, Mapping):  # else the check below complains
        named = (objectives or {}).items()
        own = {name: {} if inner is None else inner for name, inner in named}  # a name alone changes nothing of a preset
        objectives = merge(merge(chosen.pop("objectives"), extra), own)
    return check(RunConfig, merge(chosen, settings | {"objectives": objectives}))


def _preset(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the preset of `settings` says, "plain" where there is none. Raises ValueError for an unknown one."""
    name, data = str(settings.get("preset") or "plain"), settings["data"]
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; {near(name, list(PRESETS))}")
    task = data.get("task") if isinstance(data, Mapping) else None
    return PRESETS[name](spelling(task) if isinstance(task, str) else None)


def check(model: type[_Model], settings: Mapping[str, Any], where: str = "") -> _Model:
    """`model` from settings. Raises ValueError with one line instead of pydantic's page."""
    try:
        return model.model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        name = ".".join([*([where] if where else []), *path]) or "settings"
        if first["type"] == "extra_forbidden":
            raise ValueError(f"unknown setting {name!r}; {near(path[-1], _known(model, path[:-1]))}") from None
        message = str(first["msg"]).removeprefix("Value error, ")
        found = "" if first["type"] in ("value_error", "missing") else f", found {first['input']!r}"
        raise ValueError(f"{name}: {message}{found}") from None


def _known(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        inner = model.model_fields[part].annotation if part in model.model_fields else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return list(model.model_fields)
