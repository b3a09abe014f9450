"""Plain distillation and each family of explanations, on one GLUE task, same budget, several seeds (rows are the same
for every seed, which draws the head, the order and the dropout).

    python benchmarks/families.py --glue-dir glue --teacher-init gte-small --student paraphrase-MiniLM-L3-v2 --out runs/families

Fine-tunes a teacher once, distils every method with every seed through `egkd.pipeline.distill` (finished runs are kept,
killed ones resumed), scores all on 4,000 more rows of the training set that nobody was trained on, times the training
step of all methods side by side, and writes `families.json` and
`families.md` beside the runs. `--seeds 0,1,2` and `--methods plain,gradient` choose; `--no-timing` leaves the timing out.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from egkd import pipeline
from egkd.checks import objectives_of, training_arguments
from egkd.config import RunConfig, resolve
from egkd.data import sample
from egkd.data.glue import load_glue
from egkd.evaluate.scores import task_scores
from egkd.predict import predict_logits
from egkd.runs import read_json, write_json, write_text
from egkd.students import build_student, load_classifier, load_tokenizer
from egkd.train import DistillationTrainer

ALWAYS: dict[str, Any] = {"schedule": {"every": 1}}
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "labels": {"labels": {"weight": 1.0}, "soft-labels": {"weight": 0.0}},
    "plain": {},
    "gradient": {"gradient": ALWAYS},
    "perturbation": {"perturbation": ALWAYS},
    "selection": {"selection": ALWAYS | {"operator": "mask"}},
    "all three": {"gradient": ALWAYS, "perturbation": ALWAYS, "selection": ALWAYS | {"operator": "mask"}},
    "gradient by default": {"gradient": {}},
    "perturbation by default": {"perturbation": {}},
    "selection by default": {"selection": {}},
    "all three by default": {"gradient": {}, "perturbation": {}, "selection": {}},
}
"""What each method learns beside gold and soft labels: every guide paid for at every step, and as `egkd distill` has it."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "accuracy, dev": ("scores", "dev", "accuracy"),
    "accuracy, held out": ("scores", "held_out", "accuracy"),
    "agreement": ("fidelity", "dev", "agreement", "mean"),
    "KL": ("fidelity", "dev", "kl", "mean"),
    "input × gradient": ("explanations", "input-x-gradient", "all", "spearman", "mean"),
    "its norm": ("explanations", "input-x-gradient-norm", "all", "spearman", "mean"),
    "occlusion": ("explanations", "occlusion", "all", "spearman", "mean"),
}


def config_of(options: argparse.Namespace, method: str, seed: int, teacher: str | None) -> RunConfig:
    """The run of one cell (or of the teacher, where `teacher` is None)."""
    settings: dict[str, Any] = {
        "student": options.student,
        "data": {"task": options.task, "glue_dir": options.glue_dir, "train_limit": options.train_limit},
        "train": {"num_train_epochs": options.epochs, "eval_strategy": "no", "save_strategy": "no", "logging_steps": 50},
        "seed": seed,
        "lessons": options.out / "lessons",
        "objectives": METHODS[method],
    }
    if teacher is None:
        settings |= {
            "teacher_init": options.teacher_init,
            "objectives": {},
            "teach": {"num_train_epochs": options.teacher_epochs},
        }
        settings["data"] |= {"train_limit": options.teacher_limit}
    else:
        settings |= {"teacher": teacher}
    return resolve(settings)


def folder_of(options: argparse.Namespace, method: str, seed: int) -> Path:
    """Where a cell lives."""
    return Path(options.out / f"{method.replace(' ', '-')}-{seed}")


def run_all(options: argparse.Namespace, teacher: str) -> dict[str, dict[int, dict[str, Any]]]:
    """metrics.json of every cell, by method and seed; cells that are finished are only read."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for seed in options.seeds:
        for method in options.methods:
            folder = folder_of(options, method, seed)
            if not (folder / "metrics.json").exists():
                print(f"{time.strftime('%H:%M')} {method}, seed {seed}", flush=True)
                pipeline.distill(config_of(options, method, seed, teacher), folder)
            found.setdefault(method, {})[seed] = read_json(folder / "metrics.json")
    return found


def held_out(options: argparse.Namespace, count: int = 4000) -> Dataset:
    """Rows of the training set whose texts neither the teacher nor any student was trained on: more than dev has."""
    used = {
        text
        for limit in (options.teacher_limit, options.train_limit)
        for text in load_glue(options.task, options.glue_dir, train_limit=limit).train["text"]
    }
    rows = load_glue(options.task, options.glue_dir).train.filter(lambda row: row["text"] not in used)
    return sample(rows, count, seed=0)


def score_held_out(options: argparse.Namespace, found: dict[str, dict[int, dict[str, Any]]], teacher: str) -> None:
    """Add every student's scores, and its teacher's, on the held-out rows to its figures; kept beside the runs."""
    rows, task = held_out(options), pipeline.load_data(config_of(options, "plain", 0, teacher).data).task
    file = options.out / "held_out.json"
    known: dict[str, dict[str, float]] = read_json(file) if file.exists() else {}
    for method, by_seed in found.items():
        for seed, metrics in by_seed.items():
            student = str(folder_of(options, method, seed) / "student")
            for role, source in (("teacher", teacher), ("student", student)):
                name = "teacher" if role == "teacher" else f"{method}-{seed}"
                if name not in known:
                    logits_NC = predict_logits(load_classifier(source, task), load_tokenizer(source), rows)
                    known[name] = task_scores(task, logits_NC, np.asarray(rows["label"]))
                    write_json(file, known)
                metrics[role]["scores"]["held_out"] = known[name]


def time_steps(options: argparse.Namespace, teacher: str, *, steps: int = 40, rounds: int = 3) -> dict[str, float]:
    """Median seconds per 1,000 training examples of each method, lessons from disk, methods in turns."""
    seconds: dict[str, list[float]] = {method: [] for method in options.methods}
    for round_ in range(rounds):
        for method in options.methods:
            config = config_of(options, method, 0, teacher)
            data = pipeline.load_data(config.data)
            model, tokenizer = build_student(config.student, teacher, data.task)
            with tempfile.TemporaryDirectory() as folder:
                settings = config.train_arguments | {"max_steps": steps, "seed": round_, "data_seed": round_}
                trainer = DistillationTrainer(
                    model,
                    training_arguments(settings, Path(folder), "train"),
                    teacher=load_classifier(teacher, data.task),
                    objectives=objectives_of(config),
                    train_dataset=data.train,
                    processing_class=tokenizer,
                    teacher_processing_class=load_tokenizer(teacher),
                    lessons_dir=options.out / "lessons",
                )
                started = time.perf_counter()
                trainer.train()
                examples = steps * settings["per_device_train_batch_size"]
                seconds[method].append(1000 * (time.perf_counter() - started) / examples)
    return {method: statistics.median(values) for method, values in seconds.items()}


def figure(metrics: dict[str, Any], path: tuple[str, ...]) -> float:
    """One number of the student's."""
    value: Any = metrics["student"]
    for part in path:
        value = value[part]
    return float(value)


def write_results(options: argparse.Namespace, found: dict[str, dict[int, dict[str, Any]]], timing: dict[str, float]) -> None:
    """`families.json` with every seed's figures, `families.md` with mean ± standard deviation over seeds."""
    rows: dict[str, Any] = {}
    lines = ["| method | " + " | ".join(COLUMNS) + " | training, s | step |", "|---" * (len(COLUMNS) + 3) + "|"]
    for method, by_seed in found.items():
        values = {name: [figure(metrics, path) for metrics in by_seed.values()] for name, path in COLUMNS.items()}
        ratio = timing[method] / timing["plain"] if method in timing and "plain" in timing else None
        seconds = [metrics["training"]["seconds"] for metrics in by_seed.values()]
        rows[method] = {
            "seeds": list(by_seed),
            **values,
            "training_seconds": seconds,
            "seconds_per_1000": timing.get(method),
            "ratio": ratio,
        }
        cells = [f"{np.mean(value):.3f} ± {np.std(value, ddof=1) if len(value) > 1 else 0:.3f}" for value in values.values()]
        cells.append(f"{statistics.median(seconds):.0f}")
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {'–' if ratio is None else f'{ratio:.2f} ×'} |")
    lines += ["", "Difference to plain distillation, paired by seed:", "", *_differences(rows)]
    metrics = next(iter(next(iter(found.values())).values()))
    settings = {name: str(value) for name, value in vars(options).items()}
    write_json(options.out / "families.json", {"settings": settings, "teacher": metrics["teacher"]["scores"], "methods": rows})
    write_text(options.out / "families.md", "\n".join(lines) + "\n")


def _differences(rows: dict[str, Any]) -> list[str]:
    """A table of method minus plain: mean over the seeds that both have, and its standard error."""
    lines = ["| method | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    plain = rows.get("plain")
    for method, row in rows.items():
        seeds = [seed for seed in row["seeds"] if plain and seed in plain["seeds"]]
        if method == "plain" or len(seeds) < 2:
            continue
        cells = []
        for name in COLUMNS:
            pairs = [(row[name][row["seeds"].index(s)], plain[name][plain["seeds"].index(s)]) for s in seeds]
            gain = np.array([ours - theirs for ours, theirs in pairs])
            cells.append(f"{gain.mean():+.3f} ± {gain.std(ddof=1) / len(gain) ** 0.5:.3f}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Read flags, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue-dir", type=Path)
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--teacher", help="an already fine-tuned teacher, instead of --teacher-init")
    parser.add_argument("--teacher-init")
    parser.add_argument("--teacher-limit", type=int, default=8000)
    parser.add_argument("--teacher-epochs", type=float, default=2)
    parser.add_argument("--student", required=True)
    parser.add_argument("--train-limit", type=int, default=5000)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS)[1:5])
    parser.add_argument("--no-timing", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    teacher = options.teacher or str(pipeline.teach(config_of(options, "plain", 0, None), options.out / "teacher", tell=print))
    found = run_all(options, teacher)
    score_held_out(options, found, teacher)
    write_results(options, found, {} if options.no_timing else time_steps(options, teacher))
    print((options.out / "families.md").read_text())
    print(json.dumps({"written": str(options.out / "families.json")}))


if __name__ == "__main__":
    main()
