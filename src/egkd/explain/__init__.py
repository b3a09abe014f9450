"""How a unit of text gets a score: three families of explainers behind one interface."""

from egkd.explain.base import Explainer, Scored, UnitScores, iter_scored, score_dataset
from egkd.explain.gradient import InputXGradient
from egkd.explain.perturbation import Occlusion

__all__ = ["Explainer", "InputXGradient", "Occlusion", "Scored", "UnitScores", "iter_scored", "score_dataset"]
