"""Students of several architectures, each distilled plainly and guided by explanations, by several seeds: what quality costs.

    python benchmarks/students.py examples/students.yaml --glue-dir glue --teacher-init gte-small --out runs/students

Runs the experiment that the file describes, as `egkd glue` does (finished runs are kept, killed ones resumed), times all
students beside their teacher in turns, and writes `students.json`, `students.md` (a table per task, mean ± standard deviation
over seeds) and `students.svg` (score against parameters and against latency) into the folder's `results`. `--quick` does all of
it in a minute or two with tiny random models on made-up sentences; its figures mean nothing.
"""

import argparse
import csv
import random
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

from egkd.config import merge, read_yaml
from egkd.data.loading import load_data
from egkd.evaluate.speed import latency
from egkd.experiments.grid import Cell, GridConfig
from egkd.experiments.records import read_record
from egkd.experiments.running import run
from egkd.runs import read_json, write_json, write_text
from egkd.students import load_classifier, load_tokenizer
from egkd.students.vectors import word_tokenizer

COLUMNS: dict[str, tuple[str, ...]] = {
    "score": (),  # as GLUE has it: the mean over the task's metrics
    "agreement": ("fidelity", "*", "agreement", "mean"),
    "KL": ("fidelity", "*", "kl", "mean"),
    "occlusion": ("explanations", "occlusion", "all", "spearman", "mean"),
    "parameters": ("parameters",),
    "bytes": ("bytes",),
    "ms, batch 1": ("latency", "1", "ms_per_example"),
    "ms, batch 32": ("latency", "32", "ms_per_example"),
}
MILLIONS = ("parameters", "bytes")

Found = dict[Cell, dict[str, Any]]  # a finished cell and its metrics.json, with the latency of the last measurement
Figures = Mapping[str, float]


def gather(grid: GridConfig, out: Path) -> Found:
    """What every finished cell found, and its score."""
    found = {}
    for cell in grid.cells():
        folder = cell.folder(out)
        record = read_record(folder, task=cell.task, student=cell.student, method=cell.method, seed=cell.seed)
        if record is not None:
            found[cell] = read_json(folder / "metrics.json")
            found[cell]["student"]["score"], found[cell]["teacher"]["score"] = record.score, record.teacher_score
    return found


def time_all(grid: GridConfig, out: Path, found: Found, *, repeats: int) -> None:
    """Latency of one student of each kind and of its teacher, in turns, in place of what every run measured for itself."""
    for task in grid.tasks:
        chosen = {cell.student: cell for cell in reversed(found) if cell.task == task}
        if not chosen:
            continue
        config = grid.config(next(iter(chosen.values())), out)
        data = load_data(config.data)
        rows = next(iter(data.evals.values()))
        rows = rows.select(range(min(64, len(rows))))
        sources = {"": str(config.teacher)} | {student: str(cell.folder(out) / "student") for student, cell in chosen.items()}
        models = {name: (load_classifier(source, data.task), load_tokenizer(source)) for name, source in sources.items()}
        pairs = rows["text_pair"] if "text_pair" in rows.column_names else None
        taken = latency(models, rows["text"], pairs, repeats=repeats)
        for cell, metrics in found.items():
            if cell.task == task:
                metrics["student"]["latency"], metrics["teacher"]["latency"] = taken[cell.student], taken[""]


def figure(metrics: dict[str, Any], name: str, role: str = "student") -> float:
    """One number of a run; nan where a task has none (agreement of a regressor)."""
    value: Any = metrics[role]
    for part in COLUMNS[name] or (name,):
        if not isinstance(value, dict):
            return float("nan")
        value = next(iter(value.values()), None) if part == "*" else value.get(part)
    return float("nan") if value is None else float(value)


def gathered(found: Found) -> list[dict[str, Any]]:
    """One row per task, student and method: every seed's figures by column."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for cell, metrics in found.items():
        start = {"task": cell.task, "student": cell.student, "method": cell.method, "seeds": []} | {
            name: [] for name in COLUMNS
        }
        row = rows.setdefault((cell.task, cell.student, cell.method), start)
        row["seeds"].append(cell.seed)
        for name in COLUMNS:
            row[name].append(figure(metrics, name))
    places = list(dict.fromkeys(cell.student for cell in found))
    return sorted(rows.values(), key=lambda row: places.index(row["student"]))


def teachers(found: Found) -> dict[str, dict[str, float]]:
    """The teacher of each task: its score, size and latency."""
    own = [name for name in COLUMNS if not COLUMNS[name] or COLUMNS[name][0] in ("parameters", "bytes", "latency")]
    first = {cell.task: metrics for cell, metrics in reversed(found.items())}
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


def prepare_quick(folder: Path) -> dict[str, Any]:
    """A tiny random encoder and made-up reviews in `folder`; returns the settings of an experiment on them."""
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
    specs = ("layers:last:2", "layers:2,ffn=32", "bilstm:hidden=8,embed=16", "textcnn:filters=8,embed=16")
    steps = {"max_steps": 4, "use_cpu": True}
    return {
        "tasks": {"quick": {"data": {"train": str(folder / "train.csv"), "eval": str(folder / "dev.csv")}}},
        "students": {spec.replace(":", "-").replace(",", "-").replace("=", ""): spec for spec in specs},
        "methods": ["plain", "perturbation"],
        "seeds": [0, 1],
        "base": {
            "teacher_init": str(folder / "encoder"),
            "train": steps,
            "teach": steps,
            "evaluate": {"explained": 8, "shown": 2, "latency_repeats": 1},
            "max_length": 32,
        },
    }


def main() -> None:
    """Read flags, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path, nargs="?", help="the experiment, as `egkd glue` takes it")
    parser.add_argument("--glue-dir")
    parser.add_argument("--teacher", action="append", default=[], help="fine-tuned already: sst2=FOLDER, once per task")
    parser.add_argument("--teacher-init", help="an encoder to fine-tune, for the other tasks")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--no-run", action="store_true", help="draw what is there")
    parser.add_argument("--no-timing", action="store_true", help="keep the latencies that the runs measured one by one")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if bool(options.settings) == options.quick:
        parser.error("give a file of settings, or --quick")
    settings = prepare_quick(options.out / "quick") if options.quick else read_yaml(options.settings)
    base = {"data": {"glue_dir": options.glue_dir}} if options.glue_dir else {}
    base |= {"teacher_init": options.teacher_init} if options.teacher_init else {}
    known = dict(part.split("=", 1) for part in options.teacher)
    grid = GridConfig.of(merge(settings, {"base": base, "teachers": known}))
    if not options.no_run:
        run(grid, options.out, jobs=options.jobs)
    found = gather(grid, options.out)
    if not options.no_timing:
        time_all(grid, options.out, found, repeats=1 if options.quick else 15)
    rows, own = gathered(found), teachers(found)
    results = options.out / "results"
    write_json(results / "students.json", {"settings": grid.model_dump(mode="json"), "teachers": own, "students": rows})
    write_text(results / "students.md", table(rows, own))
    write_text(results / "students.svg", plot(rows, own))
    print((results / "students.md").read_text())


if __name__ == "__main__":
    main()
