"""How fast lessons are built, and what building and reading them costs in memory, up to a million examples.

    python benchmarks/lessons.py --json benchmarks/results/lessons.json

Synthetic examples (2 to 40 words, 12 on average), memory-mapped from a file; a small random BERT as the teacher (`--layers`,
`--width`). Building and reading run in processes of their own, so that each has a peak of its own.

*ratio*: examples per second of the whole build (fingerprints, size, teaching, writing) over those of the teacher's bare
passes on the same batches: a forward pass for soft labels, a forward and a backward pass to the embeddings for gradients.
Bare passes are timed before and after the build. *memory*: the growth of the process's anonymous memory to its peak, over what
it had with model, data and lessons opened; mapped pages of files are the system's, which takes them back when it needs them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets.arrow_writer import ArrowWriter
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from egkd.explain.base import suitable_budget
from egkd.lessons import Lessons, build_lessons
from egkd.lessons.rows import Rows
from egkd.models import frozen, model_inputs, tapped_embeddings
from egkd.objectives import GradientGuide, Objective, SoftLabels
from egkd.runs import write_json
from egkd.text import encode

SIZES, QUICK = (10_000, 100_000, 1_000_000), (5_000,)
BARE_ROWS = 8192  # on which bare passes are timed
WORDS, BATCH, MIB = 1000, 32, 2**20
OBJECTIVES: dict[str, Objective] = {"soft-labels": SoftLabels(), "gradient": GradientGuide()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, action="append", help="examples; repeatable (default: 10k, 100k, 1M)")
    parser.add_argument("--quick", action="store_true", help="5,000 examples only")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument(
        "--stage", nargs=3, help=argparse.SUPPRESS
    )  # build or read, an objective, a folder: a process of its own
    options = parser.parse_args()
    if options.stage:
        stage, objective, folder = options.stage
        print(json.dumps({"build": build, "read": read}[stage](objective, Path(folder), options)))
        return
    results = []
    for rows in options.rows or (QUICK if options.quick else SIZES):
        with tempfile.TemporaryDirectory() as place:
            seconds = make_data(Path(place), rows)
            print(f"{rows:,} examples made in {seconds:.1f} s", file=sys.stderr)
            for objective in OBJECTIVES:
                found = {"rows": rows, "objective": objective}
                for stage in ("build", "read"):
                    command = [sys.executable, __file__, "--layers", options.layers, "--width", options.width, "--stage", stage]
                    done = subprocess.run([*map(str, command), objective, place], stdout=subprocess.PIPE, text=True, check=True)
                    found |= json.loads(done.stdout.splitlines()[-1])
                results.append(found)
    Console().print(table(results))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.json, results)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word."""
    vocabulary = {
        word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{n}" for n in range(WORDS))])
    }
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=names, pad_token="[PAD]", unk_token="[UNK]")


def make_data(folder: Path, rows: int) -> float:
    """Write `data.arrow`: examples as `text.encode` would make them, without its price; returns the seconds it took."""
    random, started = np.random.default_rng(0), time.perf_counter()
    with ArrowWriter(path=str(folder / "data.arrow")) as writer:
        for first in range(0, rows, 1000):
            part = encoded(random, min(1000, rows - first))
            if first == 0:
                assert {name: part[name] for name in part if name != "text"} == encode(make_tokenizer(), part["text"])
            writer.write_batch(part)
        writer.finalize()
    return time.perf_counter() - started


def encoded(random: np.random.Generator, rows: int) -> dict[str, list[Any]]:
    n_units = random.binomial(1000, 0.01, rows).clip(2, 40) + random.geometric(0.4, rows) - 1
    words = [random.integers(0, WORDS, count).tolist() for count in n_units]
    return {
        "text": [" ".join(f"w{word}" for word in own) for own in words],
        "input_ids": [[2, *(word + 4 for word in own), 3] for own in words],
        "token_type_ids": [[0] * (len(own) + 2) for own in words],
        "attention_mask": [[1] * (len(own) + 2) for own in words],
        "unit_ids": [[-1, *range(len(own)), -1] for own in words],
        "n_units": [len(own) for own in words],
        "length": [len(own) + 2 for own in words],
    }


def build(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of one build, beside bare passes."""
    dataset, tokenizer = Dataset.from_file(str(folder / "data.arrow")), make_tokenizer()
    config = BertConfig(
        vocab_size=WORDS + 4,
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=max(1, options.width // 32),
        intermediate_size=4 * options.width,
    )
    torch.manual_seed(0)
    teacher = BertForSequenceClassification(config).eval()
    bare = lambda: bare_rate(teacher, dataset, backward="embeddings" in OBJECTIVES[name].needs)  # noqa: E731
    bare()
    before = bare()
    with memory() as peak:
        started = time.perf_counter()
        found = build_lessons([OBJECTIVES[name]], teacher, tokenizer, dataset, folder / "lessons", max_length=128)
        seconds = time.perf_counter() - started
    bare_per_second = (before + bare()) / 2
    return {
        "build_seconds": seconds,
        "build_rows_per_second": len(dataset) / seconds,
        "bare_rows_per_second": bare_per_second,
        "ratio": len(dataset) / seconds / bare_per_second,
        "build_growth_mib": peak(),
        "lessons_mib": sum(path.stat().st_size for path in found[name].folder.iterdir()) / MIB,
        "data_mib": (folder / "data.arrow").stat().st_size / MIB,
    }


def bare_rate(teacher: BertForSequenceClassification, dataset: Dataset, *, backward: bool) -> float:
    """Examples per second of nothing but the teacher's passes, on the batches that a build would make."""
    rows = Rows(dataset, range(min(BARE_ROWS, len(dataset))), 0)
    batches = [model_inputs(teacher, rows.batch(indices)) for indices in rows.batches(suitable_budget(teacher))]
    started = time.perf_counter()
    with frozen(teacher):
        for inputs in batches:
            if backward:
                with tapped_embeddings(teacher) as kept:
                    logits_BC = teacher(**inputs).logits
                torch.autograd.grad(logits_BC[:, 0].sum(), kept[-1])
            else:
                with torch.no_grad():
                    teacher(**inputs)
    return len(rows.lengths) / (time.perf_counter() - started)


def read(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of reading everything once, in random order, in batches as training does."""
    dataset = Dataset.from_file(str(folder / "data.arrow")).select_columns(["input_ids", "unit_ids"])
    lessons = Lessons(next((folder / "lessons").glob(f"{name}-*")))
    order = np.random.default_rng(0).permutation(len(dataset)).astype(np.int32)
    for first in range(0, min(len(order), 100 * BATCH), BATCH):
        one_batch(lessons, dataset, order[first : first + BATCH].tolist())
    spent = 0.0
    with memory() as peak:
        for first in range(0, len(order), BATCH):
            spent += one_batch(lessons, dataset, order[first : first + BATCH].tolist())
    return {"read_growth_mib": peak(), "read_ms_per_batch": 1000 * spent / -(-len(order) // BATCH)}


def one_batch(lessons: Lessons, dataset: Dataset, rows: list[int]) -> float:
    """Read the lessons and the examples of one step; seconds that the lessons took."""
    started = time.perf_counter()
    lessons.read(rows)
    seconds = time.perf_counter() - started
    dataset[rows]
    return seconds


def anonymous_mib() -> float:
    """This process's memory that is no page of a file."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


@contextmanager
def memory() -> Iterator[Callable[[], float]]:
    """Watch anonymous memory; afterwards the function that comes says by how many MiB it grew at most."""
    before, seen, over = anonymous_mib(), [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            seen.append(anonymous_mib() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: max(seen)
    finally:
        over.set()
        watcher.join()


def table(results: list[dict[str, Any]]) -> Table:
    """The figures for people."""
    shown = Table(title=f"{torch.get_num_threads()} threads; memory in MiB beyond what was there before")
    columns = {
        "examples": lambda r: f"{r['rows']:,}",
        "lessons": lambda r: r["objective"],
        "build, s": lambda r: f"{r['build_seconds']:.1f}",
        "per s": lambda r: f"{r['build_rows_per_second']:,.0f}",
        "ratio to bare": lambda r: f"{r['ratio']:.2f}",
        "on disk, MiB": lambda r: f"{r['lessons_mib']:.1f}",
        "data, MiB": lambda r: f"{r['data_mib']:.0f}",
        "memory, build": lambda r: f"{r['build_growth_mib']:.0f}",
        "memory, read": lambda r: f"{r['read_growth_mib']:.0f}",
        "read 32, ms": lambda r: f"{r['read_ms_per_batch']:.2f}",
    }
    for heading in columns:
        shown.add_column(heading, justify="left" if heading == "lessons" else "right")
    for result in results:
        shown.add_row(*(tell(result) for tell in columns.values()))
    return shown


if __name__ == "__main__":
    main()
