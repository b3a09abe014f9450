"""Explanation guided knowledge distillation: students that learn a teacher's answers and its reasons.

The public names, each loaded when it is first used, so that importing the package is instant.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "DistillationTrainer": "egkd.train",
    "Objective": "egkd.objectives",
    "Labels": "egkd.objectives",
    "SoftLabels": "egkd.objectives",
    "GradientGuide": "egkd.objectives",
    "PerturbationGuide": "egkd.objectives",
    "SelectionGuide": "egkd.objectives",
    "Reasons": "egkd.objectives",
    "build_student": "egkd.students",
    "compare": "egkd.evaluate.compare",
    "distill": "egkd.pipeline",
    "teach": "egkd.pipeline",
    "Explanation": "egkd.explain",
    "load_student": "egkd.reasons",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'egkd' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
