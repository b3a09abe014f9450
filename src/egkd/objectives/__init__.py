"""What a student must match: every objective, by family."""

from egkd.objectives.attention import AttentionMaps, Relations
from egkd.objectives.base import Lesson, Moment, Objective, Taught, Teacher
from egkd.objectives.gradient import GradientGuide
from egkd.objectives.internals import HiddenStates, PatientStates
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
        HiddenStates,
        AttentionMaps,
        PatientStates,
        Relations,
    )
}
"""Every objective by the name settings use."""

__all__ = [
    "OBJECTIVES",
    "AttentionMaps",
    "AttributionDistillation",
    "GradientDistillation",
    "GradientGuide",
    "HiddenStates",
    "Labels",
    "Lesson",
    "Moment",
    "Objective",
    "PatientStates",
    "PerturbationGuide",
    "Reasons",
    "Relations",
    "SelectionGuide",
    "SoftLabels",
    "Taught",
    "Teacher",
]
