"""Teacher and student side by side: scores, fidelity, agreement of their reasons, size and speed.

Shapes: N examples, C classes, U units.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from egkd.data import Task
from egkd.evaluate.agreement import agreement, per_example, visible
from egkd.evaluate.answers import Classifier
from egkd.evaluate.reasons import own_reasons
from egkd.evaluate.scores import fidelity, task_scores
from egkd.evaluate.speed import bytes_on_disk, latency, parameters, parameters_without_embeddings
from egkd.explain.amortised import head_of
from egkd.explain.base import Explainer, Scored
from egkd.explain.gradient import InputXGradient, IntegratedGradients
from egkd.explain.perturbation import Occlusion
from egkd.text import MAX_LENGTH, unit_spans

REFERENCES: dict[str, Explainer] = {
    "input-x-gradient": InputXGradient(reduction="sum"),
    "input-x-gradient-norm": InputXGradient(reduction="norm"),
    "occlusion": Occlusion(),
    "integrated-gradients": IntegratedGradients(steps=10),
}
"""The explainers by which reasons are compared: signed and unsigned input x gradient, leaving one word out, and integrated
gradients, which no guide teaches by default."""


def references(*tokenizers: PreTrainedTokenizerBase) -> dict[str, Explainer]:
    """`REFERENCES`, as all these tokenizers can follow them: where one has no mask token, words are deleted, and paths of
    gradients begin at zero, for all."""
    if all(tokenizer.mask_token_id is not None for tokenizer in tokenizers):
        return REFERENCES
    return REFERENCES | {
        "occlusion": Occlusion(operator="delete"),
        "integrated-gradients": IntegratedGradients(steps=10, baseline="zero"),
    }


Progress = Callable[[str, int, int], None]
"""Called with what is being done, examples done and examples in all."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `compare` found: figures for `metrics.json`, example rows for `examples.json`, arrays for `predictions.npz`."""

    teacher: dict[str, Any]
    student: dict[str, Any]
    examples: list[dict[str, Any]]
    predictions: dict[str, np.ndarray]
    """`SET/teacher`, `SET/student`: logits [N, C]; `SET/labels` [N]."""


def compare(
    teacher: Classifier,
    student: Classifier,
    task: Task,
    evals: Mapping[str, Dataset],
    *,
    twin: Classifier | None = None,
    explained: int = 200,
    shown: int = 12,
    latency_repeats: int = 5,
    max_length: int = MAX_LENGTH,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Evaluate both models on every data set; compare their explanations on a random sample of the first one.

    Both models explain the class the *teacher* predicts. So does the teacher's `twin`, which differs from it by its seed
    alone: how far its explanations agree is the ceiling of what can be asked of the student's. Cost per explained example and
    model: fifteen forward and twelve backward passes, and one forward pass per word.
    """
    tell = progress or (lambda what, done, total: None)
    logits: dict[str, dict[str, np.ndarray]] = {"teacher": {}, "student": {}}
    for number, (name, rows) in enumerate(evals.items()):
        tell("predict", number, len(evals))
        for role, who in (("teacher", teacher), ("student", student)):
            logits[role][name] = who.logits(rows, max_length)
    tell("predict", len(evals), len(evals))
    main = next(iter(evals))
    sample = sorted(np.random.default_rng(seed).permutation(len(evals[main]))[:explained].tolist())
    rows = evals[main].select(sample)
    teacher_NC, student_NC = logits["teacher"][main][sample], logits["student"][main][sample]
    targets = teacher_NC.argmax(1)
    models = {"teacher": teacher, "student": student} | ({} if twin is None else {"twin": twin})
    scored = _explain_all(models, rows, targets.tolist(), max_length, seed, tell)
    explanations = {
        name: agreement(
            visible(each["teacher"]),
            visible(each["student"]),
            same_class=_same(task, each["student"], targets),
            ceiling=(visible(each["teacher"]), visible(each["twin"])) if twin is not None else None,
            ceiling_same_class=_same(task, each["twin"], targets) if twin is not None else None,
            seed=seed,
        )
        for name, each in scored.items()
    }
    tell("time", 0, 1)
    timed = evals[main].select(range(min(64, len(evals[main]))))
    speed = latency(
        {role: (who.model, who.tokenizer) for role, who in (("teacher", teacher), ("student", student))},
        timed["text"],
        timed["text_pair"] if "text_pair" in timed.column_names else None,
        max_length=max_length,
        repeats=latency_repeats,
    )
    tell("time", 1, 1)
    figures = {
        role: {
            "name": who.name,
            "scores": {
                name: task_scores(task, values_NC, np.asarray(evals[name]["label"])) for name, values_NC in logits[role].items()
            },
            "parameters": parameters(who.model),
            "parameters_without_embeddings": parameters_without_embeddings(who.model),
            "bytes": bytes_on_disk(who.model.name_or_path) if who.model.name_or_path else None,
            "latency": speed[role],
        }
        for role, who in (("teacher", teacher), ("student", student))
    }
    figures["student"]["fidelity"] = {
        name: {
            measure: estimate.to_dict()
            for measure, estimate in fidelity(logits["teacher"][name], logits["student"][name], task.kind).items()
        }
        for name in evals
    }
    figures["student"]["explanations"] = explanations
    if head_of(student.model) is not None and sample:
        figures["student"]["reasons"] = own_reasons(
            student.model,
            student.tokenizer,
            rows,
            scored["occlusion"]["teacher"],
            latency_repeats=latency_repeats,
            max_length=max_length,
            seed=seed,
            progress=partial(tell, "judge"),
        )
    examples = _examples(task, rows, teacher_NC, student_NC, scored, shown)
    predictions = {f"{name}/{role}": values_NC for role, by_set in logits.items() for name, values_NC in by_set.items()}
    predictions |= {f"{name}/labels": np.asarray(rows["label"]) for name, rows in evals.items()}
    return Comparison(teacher=figures["teacher"], student=figures["student"], examples=examples, predictions=predictions)


def _explain_all(
    models: Mapping[str, Classifier],
    rows: Dataset,
    targets: Sequence[int],
    max_length: int,
    seed: int,
    tell: Progress,
) -> dict[str, dict[str, list[Scored]]]:
    explainers = references(*(who.tokenizer for who in models.values()))
    total = len(rows) * len(models) * len(explainers)
    scored: dict[str, dict[str, list[Scored]]] = {name: {} for name in explainers}
    done = 0
    for role, who in models.items():
        for name, explainer in explainers.items():
            scored[name][role] = who.explain(explainer, rows, targets, seed=seed, max_length=max_length)
            done += len(rows)
            tell("explain", done, total)
    return scored


def _same(task: Task, scored: Sequence[Scored], targets: np.ndarray) -> np.ndarray | None:
    """Which examples a model gives the teacher's class; None in regression."""
    if task.kind == "regression":
        return None
    return np.array([int(one.logits_C.argmax()) for one in scored]) == targets


def _examples(
    task: Task,
    rows: Dataset,
    teacher_NC: np.ndarray,
    student_NC: np.ndarray,
    scored: Mapping[str, Mapping[str, Sequence[Scored]]],
    shown: int,
) -> list[dict[str, Any]]:
    """The examples on which occlusion disagrees most, worst first."""
    ranks = {name: per_example(visible(both["teacher"]), visible(both["student"]))["spearman"] for name, both in scored.items()}
    worst = [int(row) for row in np.argsort(ranks["occlusion"]) if not np.isnan(ranks["occlusion"][row])][:shown]
    examples = []
    for row in worst:
        text, pair = rows[row]["text"], rows[row].get("text_pair")
        spans = [[part, *span] for part, t in enumerate([text] if pair is None else [text, pair]) for span in unit_spans(t)]
        example: dict[str, Any] = {"text": text, "text_pair": pair, "units": spans, "label": _named(task, rows[row]["label"])}
        for role, values_NC in (("teacher", teacher_NC), ("student", student_NC)):
            scores = {name: _numbers(visible([both[role][row]])[0]) for name, both in scored.items()}
            example[role] = {**_answer(task, values_NC[row]), "scores": scores}
        example["agreement"] = {name: None if np.isnan(values[row]) else float(values[row]) for name, values in ranks.items()}
        examples.append(example)
    return examples


def _named(task: Task, label: Any) -> Any:
    return float(label) if task.kind == "regression" else task.label_names[int(label)]


def _answer(task: Task, logits_C: np.ndarray) -> dict[str, Any]:
    if task.kind == "regression":
        return {"prediction": float(logits_C[0]), "confidence": None}
    odds_C = np.exp(logits_C - logits_C.max())
    return {"prediction": task.label_names[int(logits_C.argmax())], "confidence": float(odds_C.max() / odds_C.sum())}


def _numbers(scores_U: np.ndarray) -> list[float | None]:
    return [None if np.isnan(score) else round(float(score), 6) for score in scores_U]
