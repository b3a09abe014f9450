"""A student beside each of several teachers, and beside what they say together.

Shapes: N examples, C classes (1 for regression).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from scipy.special import log_softmax, logsumexp

from egkd.data import Task
from egkd.evaluate.answers import Classifier
from egkd.evaluate.scores import fidelity, task_scores
from egkd.text import MAX_LENGTH


def vote(logits: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """What several teachers say together, as logits [N, C]: log of the weighted mean of their probabilities, or the weighted
    mean of their outputs in regression."""
    shares = np.asarray(weights, dtype=float) / np.sum(weights)
    if logits[0].shape[1] == 1:
        return np.tensordot(shares, np.stack(logits), axes=1)
    return logsumexp(np.stack([log_softmax(each, axis=1) for each in logits]), axis=0, b=shares[:, None, None])


def compare_teachers(
    teachers: Sequence[Classifier],
    weights: Sequence[float],
    student: Classifier,
    task: Task,
    evals: Mapping[str, Dataset],
    max_length: int = MAX_LENGTH,
) -> list[dict[str, Any]]:
    """For each teacher and, last, for their vote: name, weight, and by data set its scores and the student's fidelity to it.

    All teachers must have their classes in the data's order. Cost: one pass over every data set per model.
    """
    told: dict[str, list[np.ndarray]] = {}
    answers: dict[str, np.ndarray] = {}
    for name, rows in evals.items():
        told[name] = [who.logits(rows, max_length) for who in teachers]
        told[name].append(vote(told[name], weights))
        answers[name] = student.logits(rows, max_length)
    return [
        {
            "name": name,
            "weight": weight,
            "scores": {split: task_scores(task, told[split][place], np.asarray(evals[split]["label"])) for split in evals},
            "fidelity": {
                split: {
                    measure: estimate.to_dict()
                    for measure, estimate in fidelity(told[split][place], answers[split], task.kind).items()
                }
                for split in evals
            },
        }
        for place, (name, weight) in enumerate(
            [*((who.name, w) for who, w in zip(teachers, weights, strict=True)), ("vote", 1.0)]
        )
    ]
