"""How good answers are, and how close a student's are to its teacher's.

Shapes: N examples, C classes (1 for regression).
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, softmax
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from egkd.config import near
from egkd.data import Task


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over examples with its standard error."""

    mean: float
    se: float | None
    """None where the figure is no mean over examples."""
    n: int

    def to_dict(self) -> dict[str, Any]:
        """As `metrics.json` holds it."""
        return asdict(self)


def estimate(values_N: np.ndarray) -> Estimate:
    """Mean and standard error of what is not NaN; NaN of nothing."""
    values = values_N[~np.isnan(values_N)]
    n = len(values)
    if n == 0:
        return Estimate(mean=math.nan, se=None, n=0)
    return Estimate(mean=float(values.mean()), se=float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None, n=n)


def _correlation(measure: Callable[..., Any]) -> Callable[[np.ndarray, np.ndarray], float]:
    def compute(labels_N: np.ndarray, predictions_N: np.ndarray) -> float:
        if len(labels_N) < 2 or np.ptp(labels_N) == 0 or np.ptp(predictions_N) == 0:
            return 0.0
        return float(measure(labels_N, predictions_N).statistic)

    return compute


_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda labels_N, predictions_N: float(accuracy_score(labels_N, predictions_N)),
    "f1": lambda labels_N, predictions_N: float(f1_score(labels_N, predictions_N, zero_division=0)),
    "f1_macro": lambda labels_N, predictions_N: float(f1_score(labels_N, predictions_N, average="macro", zero_division=0)),
    "matthews_correlation": lambda labels_N, predictions_N: float(matthews_corrcoef(labels_N, predictions_N)),
    "pearson": _correlation(pearsonr),
    "spearmanr": _correlation(spearmanr),
}


def task_scores(task: Task, logits_NC: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """The task's own metrics, by GLUE's names. `f1` is of class `task.positive`; correlations of constant predictions are 0.

    Raises ValueError for a metric that is not known.
    """
    unknown = [name for name in task.metrics if name not in _METRICS]
    if unknown:
        raise ValueError(f"unknown metric {unknown[0]!r}; {near(unknown[0], list(_METRICS))}")
    predictions_N = logits_NC[:, 0] if task.kind == "regression" else logits_NC.argmax(1)
    positive = (labels_N == task.positive, predictions_N == task.positive)
    return {name: _METRICS[name](*(positive if name == "f1" else (labels_N, predictions_N))) for name in task.metrics}


def fidelity(
    teacher_NC: np.ndarray, student_NC: np.ndarray, kind: Literal["classification", "regression"]
) -> dict[str, Estimate]:
    """How faithful a student's answers are to its teacher's.

    Classification: `agreement` (same class), `kl` (KL(teacher || student), nats), `probability_loyalty`
    (1 - sqrt(JSD) with logarithms to base 2, so 0 to 1; Xu et al. 2021). Regression: `correlation` (Pearson) and
    `absolute_difference`.
    """
    if kind == "regression":
        teacher_N, student_N = teacher_NC[:, 0], student_NC[:, 0]
        correlation = Estimate(mean=_METRICS["pearson"](teacher_N, student_N), se=None, n=len(teacher_N))
        return {"correlation": correlation, "absolute_difference": estimate(np.abs(teacher_N - student_N))}
    teacher_NC, student_NC = teacher_NC.astype(float), student_NC.astype(float)  # float32 makes a KL of 0 negative
    log_teacher_NC, log_student_NC = log_softmax(teacher_NC, axis=1), log_softmax(student_NC, axis=1)
    same_N = (teacher_NC.argmax(1) == student_NC.argmax(1)).astype(float)
    kl_N = (np.exp(log_teacher_NC) * (log_teacher_NC - log_student_NC)).sum(1)
    # scipy's jensenshannon has taken the square root already
    distance_N = jensenshannon(softmax(teacher_NC, axis=1), softmax(student_NC, axis=1), base=2, axis=1)
    return {
        "agreement": estimate(same_N),
        "kl": estimate(kl_N),
        "probability_loyalty": estimate(1 - np.where(np.isnan(kl_N), np.nan, np.nan_to_num(distance_N))),  # rounding: JSD < 0
    }
