"""Named sets of settings: published methods as their authors' code weighs them, and combinations of our guides. No torch.

A preset sets objectives and, where the method has it so, what is frozen. Learning rate, batch size, epochs and the student
are the user's; the page on objectives says what the authors used.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class _AttributionSettings:
    """What AD-KD's scripts set for one task (Wu et al. 2023, folder `script/student`)."""

    alpha: float
    """Weight of the soft labels; the gold labels have the rest."""
    temperature: float
    anneals: bool = False
    """Whether the temperature goes to 1 in the last epoch."""
    beta: float
    """Weight of the attribution loss."""
    top: int = 768
    """The teacher's dimensions that count, of the 768 of BERT-base."""


_AD_KD = {
    "cola": _AttributionSettings(alpha=0.9, temperature=1, beta=1),
    "mnli": _AttributionSettings(alpha=0.8, temperature=3, anneals=True, beta=10),
    "mrpc": _AttributionSettings(alpha=0.9, temperature=4, anneals=True, beta=10),
    "qnli": _AttributionSettings(alpha=0.9, temperature=3, beta=100),
    "qqp": _AttributionSettings(alpha=1.0, temperature=4, anneals=True, beta=50, top=734),
    "rte": _AttributionSettings(alpha=0.9, temperature=2, beta=10, top=700),
    "sst2": _AttributionSettings(alpha=0.8, temperature=2, beta=1),
    "stsb": _AttributionSettings(alpha=0.8, temperature=3, beta=1, top=640),
}
_OTHER_TASKS = _AttributionSettings(alpha=0.9, temperature=3, beta=10)  # the commonest of each column


def _plain(task: str | None) -> dict[str, Any]:
    return {"objectives": {"labels": {}, "soft-labels": {}}}


def _ad_kd(task: str | None) -> dict[str, Any]:
    theirs = _AD_KD.get(task or "", _OTHER_TASKS)
    soft = {"weight": theirs.alpha, "temperature": theirs.temperature, "distance": "cross-entropy", "scale": "one"}
    matched: dict[str, Any] = {"weight": theirs.beta}
    return {
        "objectives": {
            "labels": {"weight": round(1 - theirs.alpha, 6)},
            "soft-labels": soft | ({"final_temperature": 1.0} if theirs.anneals else {}),
            "ad-kd": matched | ({"top_dimensions": theirs.top} if theirs.top < 768 else {}),
        }
    }


def _gkd(task: str | None) -> dict[str, Any]:
    return {
        "objectives": {
            "labels": {"weight": 0.5},
            "soft-labels": {"weight": 0.5, "temperature": 5.0, "reduction": "mean"},
            "gkd": {"weight": 1.0},  # beta, which the authors leave to the command line
        },
        "freeze_embeddings": True,
        "student_dropout": 0.0,
    }


REPLACEMENT: dict[str, Any] = {
    "perturbation": {"weight": 3.0, "operator": "replace", "masks_per_step": 2, "schedule": {"every": 1}}
}
"""Other words in the place of some, at every step, at two to two and a half times the price."""

REPLACEMENT_FIRST: dict[str, Any] = {"perturbation": REPLACEMENT["perturbation"] | {"schedule": {"every": 1, "stop": 0.6}}}
"""Reasons first, answers last: that for six tenths of the training, then texts as they are, at about twice the price."""

ALL_FIRST: dict[str, Any] = {"gradient": {}, "selection": {}} | REPLACEMENT_FIRST
"""All three families: that, and the two other guides at their defaults to the end."""

AUGMENTED_REPLACEMENT: dict[str, Any] = {
    "data": {"augment": {"copies": 1}},
    "objectives": {"perturbation": REPLACEMENT["perturbation"] | {"masks_per_step": 1}},
}
"""One such text beside every text and beside every changed copy of one, where `REPLACEMENT` shows two beside every text."""


def _replacement(task: str | None) -> dict[str, Any]:
    return {"objectives": {"labels": {}, "soft-labels": {}} | REPLACEMENT}


def _replacement_first(task: str | None) -> dict[str, Any]:
    return {"objectives": {"labels": {}, "soft-labels": {}} | REPLACEMENT_FIRST}


def _all_first(task: str | None) -> dict[str, Any]:
    return {"objectives": {"labels": {}, "soft-labels": {}} | ALL_FIRST}


def _augmented_replacement(task: str | None) -> dict[str, Any]:
    objectives = {"labels": {}, "soft-labels": {}} | AUGMENTED_REPLACEMENT["objectives"]
    return AUGMENTED_REPLACEMENT | {"objectives": objectives}


PRESETS = {
    "plain": _plain,
    "replacement": _replacement,
    "replacement-first": _replacement_first,
    "all-first": _all_first,
    "augmented-replacement": _augmented_replacement,
    "ad-kd": _ad_kd,
    "gkd": _gkd,
}
"""By name: the settings of a run for a task (None: the user's own data)."""
