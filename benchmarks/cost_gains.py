"""What a strategy buys: students of one budget and several seeds, judged on the same rows."""

import math
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from cost_setting import Setting, Strategy
from datasets import Dataset

from egkd import pipeline
from egkd.data import sample
from egkd.evaluate.agreement import agreement, visible
from egkd.evaluate.compare import REFERENCES
from egkd.evaluate.scores import task_scores
from egkd.explain import Explainer, IntegratedGradients, score_dataset
from egkd.predict import encode_dataset, predict_logits
from egkd.runs import read_json, write_json
from egkd.students import load_classifier, load_tokenizer

HELD_OUT = 4000  # rows at most
AGREEMENT = "occlusion"  # what "agreement" means: defined for every family, and no objective's own explanation
JUDGES: dict[str, Explainer] = {**REFERENCES, "integrated-gradients": IntegratedGradients(steps=20)}
"""The explainers by which student and teacher are compared; nobody is trained on the last one."""
LEAST_GAIN = 0.02  # in rank correlation; less is noise between seeds

Cell = dict[str, Any]
"""What is known of one student: its seed, "score", "held_out", "kl", "fidelity", and "agreements" by explainer."""


def folder_of(setting: Setting, strategy: Strategy, seed: int) -> Path:
    """Where a cell lives."""
    return setting.out / "runs" / f"{setting.key(strategy)}-{seed}"


class Judge:
    """The rows of a task on which all students are judged, and what its teacher says of them."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.task = setting, setting.examples.task
        self.rows = sample(next(iter(setting.examples.evals.values())), setting.explained, seed=0)

    @cached_property
    def held_out(self) -> Dataset | None:
        """Rows of the training set whose texts neither the teacher nor any student was trained on; None where all were."""
        limits = (self.setting.train_limit, self.setting.teacher_limit)
        used = {pair for limit in limits for pair in _texts(self._train(limit))}
        rows = self._train(None)
        left = [row for row, pair in enumerate(_texts(rows)) if pair not in used]
        return sample(rows.select(left), HELD_OUT, seed=0) if left else None

    def _train(self, limit: int | None) -> Dataset:
        config = self.setting.config(Strategy("plain", "plain")).data
        return pipeline.load_data(config.model_copy(update={"train_limit": limit})).train

    @cached_property
    def targets(self) -> list[int]:
        """The classes the teacher predicts: what both models explain."""
        return predict_logits(*self._load(self.setting.teacher), self.rows).argmax(1).tolist()

    @cached_property
    def taught(self) -> dict[str, list[np.ndarray]]:
        """The teacher's word scores by explainer."""
        return self._explain(self.setting.teacher)

    def _load(self, source: str) -> tuple[Any, Any]:
        model: Any = load_classifier(source, self.task)
        return model.to(self.setting.device), load_tokenizer(source)

    def _explain(self, source: str) -> dict[str, list[np.ndarray]]:
        model, tokenizer = self._load(source)
        encoded = list(encode_dataset(self.rows, tokenizer, self.setting.max_length))
        return {
            name: visible(score_dataset(explainer, model, tokenizer, encoded, targets=self.targets))
            for name, explainer in JUDGES.items()
        }

    def held_out_score(self, source: str) -> float | None:
        """The task's headline on the rows that are held out."""
        if self.held_out is None:
            return None
        logits_NC = predict_logits(*self._load(source), self.held_out, max_length=self.setting.max_length)
        return task_scores(self.task, logits_NC, np.asarray(self.held_out["label"]))[self.task.metrics[0]]

    def judge(self, run: Path) -> Cell:
        """A finished run's figures."""
        metrics = read_json(run / "metrics.json")
        main, headline = next(iter(metrics["student"]["scores"])), self.task.metrics[0]
        scores = self._explain(str(run / "student"))
        return {
            "teacher_score": metrics["teacher"]["scores"][main][headline],
            "score": metrics["student"]["scores"][main][headline],
            "scores": metrics["student"]["scores"][main],
            "held_out": self.held_out_score(str(run / "student")),
            "kl": metrics["student"]["fidelity"][main]["kl"]["mean"],
            "fidelity": metrics["student"]["fidelity"][main]["agreement"]["mean"],
            "agreements": {name: agreement(self.taught[name], scores[name])["all"]["spearman"]["mean"] for name in JUDGES},
            "training_seconds": metrics["training"]["seconds"],
        }


def _texts(rows: Dataset) -> list[tuple[str, str]]:
    seconds = rows["text_pair"] if "text_pair" in rows.column_names else [""] * len(rows)
    return list(zip(rows["text"], seconds, strict=True))


def known_cell(setting: Setting, strategy: Strategy, seed: int) -> Cell | None:
    """A cell that was judged on as many rows as now."""
    file = _judged(setting, strategy, seed)
    cell = read_json(file) if file.exists() else None
    return cell if cell and cell["explained"] == setting.explained else None


def make_cell(setting: Setting, strategy: Strategy, seed: int, judge: Judge) -> None:
    """Train a student through `egkd.pipeline.distill` (a finished one is only read, a killed one resumed), and judge it."""
    run, file = folder_of(setting, strategy, seed), _judged(setting, strategy, seed)
    if not (run / "metrics.json").exists():
        print(f"{time.strftime('%H:%M')} {setting.task}, {strategy.title}, seed {seed}", flush=True)
        pipeline.distill(setting.config(strategy, seed), run, progress=lambda what, done, total: None)
    file.parent.mkdir(exist_ok=True)
    write_json(file, judge.judge(run) | {"explained": setting.explained})


def _judged(setting: Setting, strategy: Strategy, seed: int) -> Path:
    return setting.out / "judged" / f"{folder_of(setting, strategy, seed).name}.json"


def gain(cells: Mapping[int, Cell], plain: Mapping[int, Cell], explainer: str) -> list[float]:
    """Agreement beyond plain distillation's, seed by seed, where both have one."""
    pairs = [(cells[seed], plain[seed]) for seed in cells if seed in plain]
    values = [[cell["agreements"][explainer] for cell in pair] for pair in pairs]
    return [ours - theirs for ours, theirs in values if ours is not None and theirs is not None]


def gain_kept(cells: Mapping[int, Cell], exact: Mapping[int, Cell], plain: Mapping[int, Cell], explainer: str) -> float | None:
    """The share of the exact strategy's gain that is kept, mean over mean of the seeds that all three have; None where the
    exact one gains less than `LEAST_GAIN` a seed, of which no share can be told."""
    seeds = [seed for seed in cells if seed in exact and seed in plain]
    ours, theirs = (gain({seed: who[seed] for seed in seeds}, plain, explainer) for who in (cells, exact))
    if not ours or len(ours) != len(theirs) or sum(theirs) / len(theirs) < LEAST_GAIN:
        return None
    return sum(ours) / sum(theirs)


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are numbers."""
    numbers = [value for value in values if value is not None and not math.isnan(value)]
    return float(np.mean(numbers)) if numbers else None


def spread(values: Sequence[float | None]) -> float | None:
    """Standard deviation over seeds; None of fewer than two."""
    numbers = [value for value in values if value is not None and not math.isnan(value)]
    return float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None
