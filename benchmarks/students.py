"""Students of several architectures, each distilled plainly and guided by explanations, by several seeds: what quality costs.

    python benchmarks/students.py --glue-dir glue --teacher-init gte-small --out runs/students

Fine-tunes one teacher per task, distils every student with every method and seed through `egkd.pipeline.distill` (finished runs
are kept, killed ones resumed), times all students beside their teacher in turns, and writes `students.json`, `students.md` (a
table per task, mean ± standard deviation over seeds) and `students.svg` (score against parameters and against latency).
`--quick` does all of it in a minute or two with tiny random models on made-up sentences; its figures mean nothing.
"""

import argparse
import csv
import itertools
import random
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

from egkd import pipeline
from egkd.config import RunConfig, resolve
from egkd.evaluate.speed import latency
from egkd.runs import read_json, write_json, write_text
from egkd.students import load_classifier, load_tokenizer
from egkd.students.vectors import word_tokenizer

METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "gradient": {"gradient": {}},
    "perturbation": {"perturbation": {}},
    "selection": {"selection": {}},
}
"""What each method learns beside gold and soft labels, with the defaults of `egkd distill`."""
WORDS = ("bilstm", "textcnn")  # begin with random weights, and want more epochs

COLUMNS: dict[str, tuple[str, ...]] = {
    "score": (),  # the task's own first metric on its first evaluation set
    "agreement": ("fidelity", "*", "agreement", "mean"),
    "KL": ("fidelity", "*", "kl", "mean"),
    "occlusion": ("explanations", "occlusion", "all", "spearman", "mean"),
    "parameters": ("parameters",),
    "bytes": ("bytes",),
    "ms, batch 1": ("latency", "1", "ms_per_example"),
    "ms, batch 32": ("latency", "32", "ms_per_example"),  # of the last measurement, all models in turns
}
MILLIONS = ("parameters", "bytes")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One student, taught by one method."""

    task: str
    student: str
    method: str

    def folder(self, out: Path, seed: int) -> Path:
        """Where its run with this seed lives."""
        name = "".join(character if character.isalnum() else "-" for character in f"{self.student} {self.method}")
        return out / self.task / f"{name}-{seed}"


def config_of(options: argparse.Namespace, task: str, student: str, method: str, seed: int, teacher: str | None) -> RunConfig:
    """The run of one cell and seed (or of the task's teacher, where `teacher` is None)."""
    epochs = options.word_epochs if student.startswith(WORDS) else options.epochs
    train = {"num_train_epochs": epochs, "eval_strategy": "no", "save_strategy": "no", "logging_steps": 50}
    settings: dict[str, Any] = {
        "student": student,
        "data": {"task": task, "glue_dir": options.glue_dir, "train_limit": options.train_limit},
        "train": train,
        "evaluate": {"explained": options.explained},
        "seed": seed,
        "lessons": options.out / task / "lessons",
        "objectives": METHODS[method],
    }
    if options.quick:
        settings["data"] = {"train": options.out / "quick" / "train.csv", "eval": options.out / "quick" / "dev.csv"}
        settings["train"] |= {"max_steps": 4, "use_cpu": True}
        settings["evaluate"] = {"explained": 8, "shown": 2, "latency_repeats": 1}
        settings["max_length"] = 32
    if teacher is None:
        settings |= {"teacher_init": options.teacher_init, "objectives": {}}
        settings["teach"] = {"num_train_epochs": options.teacher_epochs}
        if not options.quick:
            settings["data"] |= {"train_limit": options.teacher_limit}
    else:
        settings |= {"teacher": teacher}
    return resolve(settings)


def run_all(options: argparse.Namespace) -> dict[Cell, dict[int, dict[str, Any]]]:
    """metrics.json of every cell, by seed; what is finished is only read."""
    found: dict[Cell, dict[int, dict[str, Any]]] = {}
    for task in options.tasks:
        teacher = options.teacher.get(task)
        if teacher is None:
            first = config_of(options, task, options.students[0], "plain", 0, None)
            teacher = str(pipeline.teach(first, options.out / task / "teacher", tell=print))
        for seed, student, method in itertools.product(options.seeds, options.students, options.methods):
            cell = Cell(task=task, student=student, method=method)
            folder = cell.folder(options.out, seed)
            if not (folder / "metrics.json").exists():
                print(f"{time.strftime('%H:%M')} {task}, {student}, {method}, seed {seed}", flush=True)
                pipeline.distill(config_of(options, task, student, method, seed, teacher), folder)
            found.setdefault(cell, {})[seed] = read_json(folder / "metrics.json")
    return found


def time_all(options: argparse.Namespace, found: dict[Cell, dict[int, dict[str, Any]]]) -> None:
    """Latency of one student of each kind and of its teacher, in turns, in place of what every run measured for itself."""
    for task in options.tasks:
        cells = {cell.student: (cell, next(iter(runs))) for cell, runs in reversed(found.items()) if cell.task == task}
        teacher = options.teacher.get(task) or str(options.out / task / "teacher" / "teacher")
        data = pipeline.load_data(config_of(options, task, options.students[0], "plain", 0, teacher).data)
        rows = next(iter(data.evals.values())).select(range(8 if options.quick else 64))
        sources = {"": teacher}
        sources |= {student: str(cell.folder(options.out, seed) / "student") for student, (cell, seed) in cells.items()}
        models = {name: (load_classifier(source, data.task), load_tokenizer(source)) for name, source in sources.items()}
        pairs = rows["text_pair"] if "text_pair" in rows.column_names else None
        taken = latency(models, rows["text"], pairs, repeats=1 if options.quick else 15)
        for cell, runs in found.items():
            if cell.task == task:
                for metrics in runs.values():
                    metrics["student"]["latency"], metrics["teacher"]["latency"] = taken[cell.student], taken[""]


def figure(metrics: dict[str, Any], name: str, role: str = "student") -> float:
    """One number of a run; nan where a task has none (agreement of a regressor)."""
    value: Any = metrics[role]
    path = COLUMNS[name]
    if not path:
        scores = next(iter(value["scores"].values()))
        return float(scores[metrics["task"]["metrics"][0]])
    for part in path:
        if not isinstance(value, dict):
            return float("nan")
        value = next(iter(value.values()), None) if part == "*" else value.get(part)
    return float("nan") if value is None else float(value)


def gathered(found: dict[Cell, dict[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row per cell: every seed's figures by column."""
    return [
        {"task": cell.task, "student": cell.student, "method": cell.method, "seeds": list(runs)}
        | {name: [figure(metrics, name) for metrics in runs.values()] for name in COLUMNS}
        for cell, runs in found.items()
    ]


def teachers(found: dict[Cell, dict[int, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """The teacher of each task: its score, size and latency."""
    own = [name for name in COLUMNS if not COLUMNS[name] or COLUMNS[name][0] in ("parameters", "bytes", "latency")]
    first = {cell.task: next(iter(runs.values())) for cell, runs in reversed(found.items())}
    return {task: {name: figure(metrics, name, "teacher") for name in own} for task, metrics in first.items()}


def shown(name: str, values: list[float]) -> str:
    """Mean ± standard deviation over seeds, of sizes the mean in millions."""
    mean = float(np.mean(values))
    if name in MILLIONS:
        return f"{mean / 1e6:.2f} M"
    if name.startswith("ms"):
        return f"{float(np.median(values)):.2f}"
    return f"{mean:.3f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.3f}"


def table(rows: list[dict[str, Any]], known: dict[str, dict[str, float]]) -> str:
    """A Markdown table per task."""
    lines: list[str] = []
    for task, own in known.items():
        lines += [f"### {task}", "", "| student | method | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
        cells = [shown(name, [own[name]]).removesuffix(" ± 0.000") if name in own else "–" for name in COLUMNS]
        lines.append("| teacher | – | " + " | ".join(cells) + " |")
        for row in rows:
            if row["task"] == task:
                cells = [shown(name, row[name]) for name in COLUMNS]
                lines.append(f"| `{row['student']}` | {row['method']} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


COLOURS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
)  # Tol's bright scheme: fit for colour-blind readers
WIDTH, HEIGHT, EDGE = 380, 260, 52


def plot(rows: list[dict[str, Any]], known: dict[str, dict[str, float]]) -> str:
    """An SVG: a row of panels per task, score against parameters and against latency. Hollow is plain, filled is guided."""
    students = list(dict.fromkeys(row["student"] for row in rows))
    colours = {student: COLOURS[place % len(COLOURS)] for place, student in enumerate(students)}
    costs = ("parameters", "ms, batch 1")
    parts = [
        panel([row for row in rows if row["task"] == task], task, cost, own, colours, (column * WIDTH, line * HEIGHT))
        for line, (task, own) in enumerate(known.items())
        for column, cost in enumerate(costs)
    ]
    bottom = len(known) * HEIGHT
    for place, (student, colour) in enumerate(colours.items()):
        x, y = 20 + place % 3 * 250, bottom + 18 + place // 3 * 20
        parts.append(
            f'<circle cx="{x}" cy="{y}" r="5" fill="{colour}"/><text x="{x + 12}" y="{y + 4}">{escape(student)}</text>'
        )
    end = bottom + 40 + (len(colours) - 1) // 3 * 20
    parts.append(f'<text x="20" y="{end}">hollow: plain distillation; filled: guided; cross: the teacher; bars: ± 1 sd</text>')
    size = f'width="{len(costs) * WIDTH}" height="{end + 12}"'
    style = 'font-family="sans-serif" font-size="11" fill="#333"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}><rect {size} fill="white"/>{"".join(parts)}</svg>\n'


def panel(
    rows: list[dict[str, Any]],
    task: str,
    cost: str,
    own: dict[str, float],
    colours: dict[str, str],
    corner: tuple[int, int],
) -> str:
    """Score against one cost (on a logarithmic scale), for one task."""
    costs = [float(np.median(row[cost])) for row in rows] + [own[cost]]
    spreads = [(float(np.mean(row["score"])), float(np.std(row["score"]))) for row in rows]
    heights = [mean + sign * sd for mean, sd in spreads for sign in (-1, 1)] + [own["score"]]
    left, right = np.log10(min(costs)) - 0.1, np.log10(max(costs)) + 0.1
    low, high = min(heights) - 0.01, max(heights) + 0.01

    def place(value: float, score: float) -> tuple[float, float]:
        x = EDGE + (np.log10(value) - left) / (right - left) * (WIDTH - EDGE - 15)
        return float(x), float(HEIGHT - EDGE + 10 - (score - low) / (high - low) * (HEIGHT - EDGE - 25))

    floor, unit = HEIGHT - EDGE + 10, 1e6 if cost == "parameters" else 1.0
    parts = [f'<path d="M{EDGE} 25V{floor}H{WIDTH - 15}" fill="none" stroke="#999"/>']
    parts.append(
        f'<text x="{EDGE}" y="16">{escape(task)}: score against {escape(cost)}{" (millions)" if unit > 1 else ""}</text>'
    )
    for share in (0, 0.5, 1):
        value, score = 10 ** (left + share * (right - left)), low + share * (high - low)
        x, y = place(value, score)
        parts.append(f'<text x="{x:.0f}" y="{floor + 15}" text-anchor="middle">{value / unit:.3g}</text>')
        parts.append(f'<text x="{EDGE - 5}" y="{y + 4:.0f}" text-anchor="end">{score:.3f}</text>')
    for row, (mean, sd), value in zip(rows, spreads, costs[:-1], strict=True):
        (x, y), colour = place(value, mean), colours[row["student"]]
        (_, top), (_, end) = place(value, mean + sd), place(value, mean - sd)
        fill = "white" if row["method"] == "plain" else colour
        parts.append(f'<path d="M{x:.1f} {top:.1f}V{end:.1f}" stroke="{colour}"/>')
        label = f"<title>{escape(row['student'])}, {escape(row['method'])}: {mean:.3f}</title>"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{fill}" stroke="{colour}" stroke-width="2">{label}</circle>'
        )
    x, y = place(own[cost], own["score"])
    parts.append(f'<path d="M{x - 5:.1f} {y:.1f}h10m-5 -5v10" stroke="#333" stroke-width="2"/>')
    return f'<g transform="translate{corner}">{"".join(parts)}</g>'


def prepare_quick(folder: Path) -> str:
    """A tiny random encoder and made-up reviews in `folder`; returns the encoder's folder."""
    words = "the a was is film story plot cast very not good great lovely bad dull awful .".split()
    chosen = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", 64), ("dev", 32)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            for place in range(count):
                word = chosen.choice(("good", "great", "lovely") if place % 2 else ("bad", "dull", "awful"))
                rows.writerow([f"the {chosen.choice(words[4:8])} was very {word} .", "positive" if place % 2 else "negative"])
    torch.manual_seed(0)
    _, tokenizer = word_tokenizer(words, torch.randn(len(words), 4), seed=0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=6,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    BertForSequenceClassification(config).save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    return str(folder / "encoder")


def names(text: str) -> list[str]:
    """A list from the command line; specs have commas in them, so semicolons part them."""
    return [part.strip() for part in text.split(";") if part.strip()]


def main() -> None:
    """Read flags, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue-dir", type=Path)
    parser.add_argument("--tasks", type=names, default=["sst2", "mrpc"], help='"sst2;mrpc"')
    parser.add_argument(
        "--students", type=names, default=["layers:3", "layers:6", "bilstm", "textcnn"], help='"layers:3;bilstm"'
    )
    parser.add_argument("--methods", type=names, default=["plain", "perturbation"], help=f"of {', '.join(METHODS)}")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--teacher", action="append", default=[], help="fine-tuned already: sst2=FOLDER, once per task")
    parser.add_argument("--teacher-init")
    parser.add_argument("--teacher-limit", type=int, default=8000)
    parser.add_argument("--teacher-epochs", type=float, default=2)
    parser.add_argument("--train-limit", type=int, default=5000)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--word-epochs", type=float, default=8, help="of BiLSTM and TextCNN")
    parser.add_argument("--explained", type=int, default=200, help="evaluation rows on which explanations are compared")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--no-timing", action="store_true", help="keep the latencies that the runs measured one by one")
    options = parser.parse_args()
    options.teacher = dict(part.split("=", 1) for part in options.teacher)
    if options.quick:
        options.tasks, options.teacher, options.teacher_epochs = ["quick"], {}, 1
        options.teacher_init = prepare_quick(options.out / "quick")
        options.students = ["layers:last:2", "layers:2,ffn=32", "bilstm:hidden=8,embed=16", "textcnn:filters=8,embed=16"]
        options.seeds = options.seeds[:2]
    elif options.teacher_init is None and set(options.tasks) - set(options.teacher):
        parser.error("give --teacher TASK=FOLDER for every task, or --teacher-init")
    found = run_all(options)
    if not options.no_timing:
        time_all(options, found)
    rows, known = gathered(found), teachers(found)
    settings = {name: str(value) for name, value in vars(options).items()}
    write_json(options.out / "students.json", {"settings": settings, "teachers": known, "students": rows})
    write_text(options.out / "students.md", table(rows, known))
    write_text(options.out / "students.svg", plot(rows, known))
    print((options.out / "students.md").read_text())


if __name__ == "__main__":
    main()
