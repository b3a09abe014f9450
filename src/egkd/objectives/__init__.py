"""What a student must match: every objective, by family."""

from egkd.objectives.base import Lesson, Moment, Objective, Taught, Teacher
from egkd.objectives.gradient import GradientGuide
from egkd.objectives.perturbation import PerturbationGuide
from egkd.objectives.predictions import Labels, SoftLabels
from egkd.objectives.published import AttributionDistillation, GradientDistillation
from egkd.objectives.reasons import Reasons
from egkd.objectives.selection import SelectionGuide

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective
    for objective in (
        Labels,
        SoftLabels,
        GradientGuide,
        PerturbationGuide,
        SelectionGuide,
        Reasons,
        AttributionDistillation,
        GradientDistillation,
    )
}
"""Every objective by the name settings use."""

__all__ = [
    "OBJECTIVES",
    "AttributionDistillation",
    "GradientDistillation",
    "GradientGuide",
    "Labels",
    "Lesson",
    "Moment",
    "Objective",
    "PerturbationGuide",
    "Reasons",
    "SelectionGuide",
    "SoftLabels",
    "Taught",
    "Teacher",
]
