"""Scores and fidelity, by hand and beside scikit-learn and SciPy."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import entropy, pearsonr, spearmanr

from egkd.data import Task
from egkd.evaluate.scores import estimate, fidelity, task_scores

CLASSES = Task(name="mrpc", kind="classification", label_names=("no", "yes"), metrics=("accuracy", "f1"))
SCORES = Task(name="stsb", kind="regression", metrics=("pearson", "spearmanr"))
LOGITS = arrays(np.float32, (6, 3), elements=st.floats(-20, 20, width=32))


def logits_of(classes: list[int], num_labels: int = 2) -> np.ndarray:
    return np.eye(num_labels, dtype=np.float32)[classes]


def test_accuracy_and_f1_of_class_one() -> None:
    found = task_scores(CLASSES, logits_of([1, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 1]))
    assert found == pytest.approx({"accuracy": 3 / 5, "f1": 2 / 3})  # two hits, one false alarm, one miss


def test_f1_is_of_the_positive_class_whichever_number_it_has() -> None:
    turned = dataclasses.replace(CLASSES, label_names=("yes", "no"), positive=0)
    found = task_scores(turned, logits_of([0, 0, 1, 1, 0]), np.array([0, 1, 1, 0, 0]))
    assert found == pytest.approx({"accuracy": 3 / 5, "f1": 2 / 3})


def test_f1_of_three_classes_is_their_mean() -> None:
    task = Task(name="x", kind="classification", label_names=("a", "b", "c"), metrics=("f1_macro",))
    found = task_scores(task, logits_of([0, 0, 1, 1], 3), np.array([0, 1, 1, 2]))
    assert found["f1_macro"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_matthews_correlation() -> None:
    task = Task(name="cola", kind="classification", label_names=("no", "yes"), metrics=("matthews_correlation",))
    labels = np.array([1, 1, 1, 0, 0, 0])
    # hits 2, correct rejections 1, false alarms 2, misses 1
    found = task_scores(task, logits_of([1, 1, 0, 1, 1, 0]), labels)["matthews_correlation"]
    assert found == pytest.approx((2 * 1 - 2 * 1) / math.sqrt(4 * 3 * 3 * 2))
    assert task_scores(task, logits_of([1, 0, 0, 0, 0, 0]), labels)["matthews_correlation"] == pytest.approx(1 / math.sqrt(5))
    assert task_scores(task, logits_of([1] * 6), labels)["matthews_correlation"] == 0.0


def test_correlations_of_regression() -> None:
    predictions, labels = np.array([[0.1], [2.0], [1.5], [4.9]]), np.array([0.0, 1.0, 2.0, 5.0])
    assert task_scores(SCORES, predictions, labels) == pytest.approx(
        {"pearson": pearsonr(predictions[:, 0], labels).statistic, "spearmanr": spearmanr([1, 3, 2, 4], [1, 2, 3, 4]).statistic}
    )


def test_constant_predictions_correlate_with_nothing() -> None:
    assert task_scores(SCORES, np.ones((4, 1)), np.arange(4.0)) == {"pearson": 0.0, "spearmanr": 0.0}


def test_an_unknown_metric_is_refused_with_its_neighbour() -> None:
    task = Task(name="x", kind="classification", label_names=("a", "b"), metrics=("acuracy",))
    with pytest.raises(ValueError, match="did you mean 'accuracy'"):
        task_scores(task, logits_of([0]), np.array([0]))


def test_estimate_leaves_out_nan() -> None:
    found = estimate(np.array([1.0, math.nan, 2.0, 3.0]))
    assert (found.mean, found.n) == (2.0, 3)
    assert found.se == pytest.approx(1 / math.sqrt(3))
    assert estimate(np.array([4.0])).se is None
    assert math.isnan(estimate(np.array([math.nan])).mean)


def test_fidelity_by_hand() -> None:
    teacher, student = np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.25, 0.75], [0.9, 0.1]])
    found = fidelity(teacher, student, "classification")
    assert found["agreement"].mean == 0.5  # a draw goes to the first class
    kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert found["kl"].mean == pytest.approx(kl / 2)
    assert found["kl"].se == pytest.approx(kl / 2)
    middle = [0.375, 0.625]
    divergence = (entropy([0.5, 0.5], middle, base=2) + entropy([0.25, 0.75], middle, base=2)) / 2
    assert found["probability_loyalty"].mean == pytest.approx(1 - math.sqrt(divergence) / 2)


def test_fidelity_of_opposite_certainties() -> None:
    found = fidelity(np.array([[60.0, -60.0]]), np.array([[-60.0, 60.0]]), "classification")
    assert found["probability_loyalty"].mean == pytest.approx(0.0, abs=1e-9)
    assert found["kl"].mean == pytest.approx(120.0)


def test_answers_that_are_no_numbers_are_not_loyal() -> None:
    both = fidelity(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[np.nan, np.nan], [0.0, 1.0]]), "classification")
    assert both["probability_loyalty"].n == both["kl"].n == 1
    assert both["probability_loyalty"].mean == 1


def test_fidelity_of_regression() -> None:
    teacher, student = np.array([[1.0], [2.0], [4.0]]), np.array([[1.5], [2.0], [3.0]])
    found = fidelity(teacher, student, "regression")
    assert found["correlation"].mean == pytest.approx(pearsonr(teacher[:, 0], student[:, 0]).statistic)
    assert found["absolute_difference"].mean == pytest.approx(0.5)


@given(LOGITS, LOGITS)
def test_fidelity_is_bounded_and_loyalty_symmetric(teacher: np.ndarray, student: np.ndarray) -> None:
    found, back = fidelity(teacher, student, "classification"), fidelity(student, teacher, "classification")
    assert found["kl"].mean >= -1e-12
    assert -1e-9 <= found["probability_loyalty"].mean <= 1
    assert found["probability_loyalty"].mean == pytest.approx(back["probability_loyalty"].mean, abs=1e-6)


@given(LOGITS, st.floats(-10, 10, width=32))
def test_a_model_is_perfectly_loyal_to_itself(logits: np.ndarray, shift: float) -> None:
    found = fidelity(logits, logits.astype(float) + shift, "classification")  # logits count up to a constant
    assert found["kl"].mean == pytest.approx(0, abs=1e-9)
    assert found["probability_loyalty"].mean == pytest.approx(1, abs=1e-5)
