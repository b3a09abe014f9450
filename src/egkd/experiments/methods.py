"""What a grid compares, by name: the settings that make a run this method's. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from egkd.config import merge, near
from egkd.presets import ALL_FIRST, AUGMENTED_REPLACEMENT, REPLACEMENT, REPLACEMENT_FIRST

METHODS: dict[str, dict[str, Any]] = {
    "labels": {"objectives": {"labels": {"weight": 1.0}, "soft-labels": {"weight": 0.0}}},
    "plain": {},
    "augment": {"data": {"augment": {"copies": 1}}},
    "pkd": {"objectives": {"patient-states": {}}},
    "tinybert": {"objectives": {"hidden-states": {}, "attention-maps": {}}},
    "minilm": {"objectives": {"relations": {}}},
    "ad-kd": {"preset": "ad-kd"},
    "gkd": {"preset": "gkd"},
    "gradient": {"objectives": {"gradient": {}}},
    "perturbation": {"objectives": {"perturbation": {}}},
    "selection": {"objectives": {"selection": {}}},
    "replacement": {"objectives": REPLACEMENT},
    "replacement-first": {"objectives": REPLACEMENT_FIRST},
    "all-first": {"objectives": ALL_FIRST},
    "augmented-replacement": AUGMENTED_REPLACEMENT,
    "all": {"objectives": {"gradient": {}, "perturbation": {}, "selection": {}}},
}
"""What each learns beside gold and soft labels, which `plain` has alone; `a+b` is both at once.

- `labels`: gold labels alone, what the student comes to without a teacher
- `augment` (Tang et al. 2019): a changed copy of every text, for which the teacher answers, at twice the price
- `pkd` (Sun et al. 2019), `tinybert` (Jiao et al. 2020: states and attention), `minilm` (Wang et al. 2021): the insides
- `ad-kd` (Wu et al. 2023), `gkd` (Wang et al. 2022): published gradient methods, with their authors' weights
- `gradient`, `perturbation`, `selection`, `all`: the guides
- `replacement`: `perturbation` with other words instead of masks, at every step
- `replacement-first`: the same for six tenths of the training, then plain distillation
- `all-first`: `replacement-first` with `gradient` and `selection`, so all three families
- `augmented-replacement`: the same, half of it beside the changed copies of `augment`
"""


def method_settings(name: str, own: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of a run that is this method's, to be laid over those of every run.

    `own` are a grid's methods by name: settings over the built-in method of that name, over the one that `like` names, or
    over plain distillation. Raises ValueError for a name that is none.
    """
    return _settings(name, own, ())


def _settings(name: str, own: Mapping[str, Mapping[str, Any]], asked: tuple[str, ...]) -> dict[str, Any]:
    mine = dict(own.get(name) or {})
    like = mine.pop("like", name)
    if like != name:
        if like in asked:
            raise ValueError(f"methods.{name}.like is {like!r}, which is like {name!r} itself; let one of them stand alone")
        return merge(_settings(str(like), own, (*asked, name)), mine)
    if name in METHODS:
        return merge(METHODS[name], mine)
    if "+" in name and not mine:
        return _together(name, [_settings(part, own, (*asked, name)) for part in name.split("+")])
    if name in own and mine:
        return mine
    raise ValueError(f"unknown method {name!r}; {near(name, [*METHODS, *(each for each in own if own[each])])}")


def _together(name: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for part in parts:
        presets = dict.fromkeys(each["preset"] for each in (settings, part) if "preset" in each)
        if len(presets) > 1:
            raise ValueError(f"method {name!r} has two presets, {' and '.join(presets)}; a run has one")
        settings = merge(settings, part)
    return settings
