"""A student's gradients, step by step, under every objective: alone, or as one of several processes that share its batches.

Run as `side_by_side.py SHOP OUT` by each of several processes, the first of which writes what all of them arrived at.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_from_disk
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from egkd.objectives import (
    AttentionMaps,
    AttributionDistillation,
    GradientDistillation,
    GradientGuide,
    HiddenStates,
    Labels,
    Objective,
    PatientStates,
    PerturbationGuide,
    Reasons,
    Relations,
    SelectionGuide,
    SoftLabels,
)
from egkd.objectives.schedule import Schedule
from egkd.train import DistillationTrainer

GLOBAL_BATCH = 8
ALWAYS = Schedule()
RARE = Schedule(share=0.15)  # of 8 examples one or two have a turn: in most steps one of two processes has none
SIGNED: dict[str, Any] = {"attribution": "input-x-gradient"}
CASES: dict[str, list[Objective]] = {
    "answers": [Labels(), SoftLabels()],
    "gradient": [GradientGuide(schedule=ALWAYS)],
    "gradient-all": [GradientGuide(schedule=ALWAYS, classes="all", distance="kl")],
    "gradient-sampled": [GradientGuide(schedule=ALWAYS, classes="sampled")],
    "gradient-mixture": [GradientGuide(schedule=ALWAYS, classes="mixture", distance="rank", **SIGNED)],
    "gradient-difference": [GradientGuide(schedule=ALWAYS, strategy="finite-difference", distance="mse")],
    "gradient-projection": [GradientGuide(schedule=ALWAYS, strategy="projection", **SIGNED)],
    "perturbation": [PerturbationGuide(schedule=ALWAYS, operator="delete")],
    "perturbation-words": [PerturbationGuide(schedule=ALWAYS, operator="replace")],
    "perturbation-coefficients": [PerturbationGuide(schedule=ALWAYS, match="coefficients")],
    "selection": [SelectionGuide(schedule=ALWAYS, complement=0.5, token_head=0.5)],
    "reasons": [Reasons()],
    "layers": [HiddenStates(projection="always"), AttentionMaps(heads="mean", distance="kl"), Relations(relation_heads=4)],
    "first-tokens": [PatientStates()],
    "ad-kd": [SoftLabels(distance="cross-entropy"), AttributionDistillation(top_dimensions=20)],
    "ad-kd-steps": [AttributionDistillation(steps=2)],
    "gkd": [SoftLabels(), GradientDistillation()],
    "turns": [
        Labels(),
        GradientGuide(schedule=RARE),
        PerturbationGuide(schedule=Schedule(every=2, share=0.15), operator="delete"),
        SelectionGuide(schedule=Schedule(every=2), token_head=1.0),
        Reasons(schedule=RARE),
        AttributionDistillation(schedule=RARE),
        GradientDistillation(schedule=Schedule(share=0.15, choose="random")),
    ],
    "instead-of-texts": [
        Labels(),
        SoftLabels(),
        GradientGuide(schedule=ALWAYS),
        AttributionDistillation(),
        PerturbationGuide(schedule=Schedule(share=0.5, instead=True)),
        SelectionGuide(schedule=Schedule(share=0.15, instead=True)),
    ],
    "nothing-but-turns": [GradientGuide(schedule=RARE)],
}
ACCUMULATED = ("perturbation", "turns-without-counts")
CASES["turns-without-counts"] = [
    objective for objective in CASES["turns"] if not isinstance(objective, AttributionDistillation | GradientDistillation)
]

Gradients = list[dict[str, Tensor]]


class Watch(TrainerCallback):
    """Keeps the gradients with which every optimiser step is taken."""

    def __init__(self) -> None:
        self.kept: Gradients = []

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        named = given["model"].named_parameters()
        self.kept.append({name.removeprefix("module."): p.grad.clone() for name, p in named if p.grad is not None})


def gradients(objectives: list[Objective], shop: Path, processes: int, accumulated: int = 1, **settings: Any) -> Gradients:
    """Those of three steps, the last of which begins a second epoch, on batches of `GLOBAL_BATCH`."""
    watch = Watch()
    data = load_from_disk(shop / "data")
    assert isinstance(data, Dataset)
    # a difference of nearly equal numbers shows how they were rounded, which depends on the size of a batch
    divides = any(isinstance(objective, GradientGuide) and objective.strategy != "exact" for objective in objectives)
    dtype = torch.float64 if divides else torch.float32
    arguments: dict[str, Any] = {
        "max_steps": 3,
        "per_device_train_batch_size": GLOBAL_BATCH // processes // accumulated,
        "gradient_accumulation_steps": accumulated,
        "train_sampling_strategy": "group_by_length",
        "optim": "sgd",
        "learning_rate": 0.01,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
    }
    trainer = DistillationTrainer(
        AutoModelForSequenceClassification.from_pretrained(shop / "student", dtype=dtype),
        TrainingArguments(
            output_dir=str(shop / "unused"),
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            **(arguments | settings),
        ),
        teacher=shop / "teacher",
        objectives=objectives,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(shop / "student"),
        lessons_dir=shop / "lessons",
        callbacks=[watch],
    )
    trainer.train()
    return watch.kept


def main(shop: Path, out: Path) -> None:
    """All cases, as one of several processes."""
    from torch import distributed

    torch.set_num_threads(1)
    found: dict[str, Gradients] = {}
    for name, objectives in CASES.items():
        found[name] = gradients(objectives, shop, processes=2)
        if name in ACCUMULATED:
            found[f"{name}, accumulated"] = gradients(objectives, shop, processes=2, accumulated=2)
    assert distributed.get_world_size() == 2
    if distributed.get_rank() == 0:
        torch.save(found, out)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
