"""How it is measured: contestants in turns, memory in processes of their own, and what building lessons costs."""

import gc
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cost_loops import LOOPS, Loop, Watch, Work, bare, tensors, with_trainer
from cost_setting import Strategy, quiet

from egkd.checks import objectives_of
from egkd.lessons import build_lessons
from egkd.objectives import GradientGuide, Objective, PerturbationGuide, SoftLabels
from egkd.runs import read_json, write_json
from egkd.students import load_tokenizer

LESSONS: dict[str, tuple[Objective, int]] = {
    "plain": (SoftLabels(), 1),
    "gradient": (GradientGuide(), 2),
    "perturbation": (PerturbationGuide(), 1 + PerturbationGuide().masks),
}
"""By family: whose lessons are built on the clock, and the teacher's passes per example (a backward pass to the embeddings,
which computes no gradients of weights, is one)."""
BARE_FORWARD = "the teacher's forward pass"
FORWARD_BATCH = 64


def contestants(work: Work, strategies: Sequence[Strategy]) -> dict[str, Callable[[], float]]:
    """Everything that is timed, by its key: seconds per 1,000 examples."""

    def timed(run: Callable[..., None], what: Any) -> Callable[[], float]:
        def seconds() -> float:
            gc.collect()  # of the last one, which is nobody's fault
            watch = Watch(work.skip, work.setting.device)
            run(work, what, watch)
            return work.per_thousand(watch)

        return seconds

    loops = [loop for loop in LOOPS if loop != "AD-KD" or work.same_tokens]
    return {loop: timed(bare, loop) for loop in loops} | {work.setting.key(s): timed(with_trainer, s) for s in strategies}


def in_turns(
    file: Path, runs: Mapping[str, Callable[[], float]], references: Sequence[str], rounds: int, tell: Callable[[str], None]
) -> list[dict[str, float]]:
    """Rounds in which everybody runs once, each beginning with another one; a run's own first steps do not count.

    A line of `file` holds a round. What has enough of them stays out of further ones, the `references` never do, so that
    everybody is compared with what ran beside it.
    """
    lines = read_lines(file)
    count = {key: sum(key in line for line in lines) for key in runs}
    wanting = [key for key in runs if count[key] < rounds]
    if not wanting:
        return lines
    entered = [key for key in runs if key in references or key in wanting]
    for number in range(rounds - min(count.values())):
        turned = entered[number % len(entered) :] + entered[: number % len(entered)]
        tell(f"round {number + 1} of {rounds - min(count.values())}, {len(turned)} contestants")
        seconds = {key: runs[key]() for key in turned}
        lines.append(seconds)
        with file.open("a") as open_file:
            open_file.write(json.dumps(seconds) + "\n")
    return lines


def timing_file(work: Work, what: str = "steps") -> Path:
    """Where rounds of this kind are kept: those of other batches or another device are not the same."""
    setting = work.setting
    kind = f"{setting.device}{'-bf16' if setting.bf16 else ''}"
    size = "" if what == "lessons" else f"{work.steps}x{setting.batch}-"
    return setting.out / f"timing-{what}-{size}{kind}.jsonl"


def read_lines(file: Path) -> list[dict[str, float]]:
    """The rounds of a file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def median_seconds(lines: Sequence[Mapping[str, float]], key: str, beside: str | None = None) -> float | None:
    """Of `beside` (of `key` itself by default) over the rounds in which `key` took part."""
    values = [line[beside or key] for line in lines if key in line and (beside or key) in line]
    return statistics.median(values) if values else None


def lesson_contestants(work: Work) -> dict[str, Callable[[], float]]:
    """The teacher's bare forward pass over all rows in batches of similar length, and building the lessons of each family:
    seconds per 1,000 examples."""
    teacher, rows = work.teacher(), work.teacher_rows
    tokenizer, device = load_tokenizer(work.setting.teacher), work.setting.device

    def forward() -> float:
        in_order = sorted(rows, key=lambda row: -row["length"])
        started = time.perf_counter()
        with torch.inference_mode():
            for start in range(0, len(in_order), FORWARD_BATCH):
                teacher(**tensors(in_order[start : start + FORWARD_BATCH], device)[0]).logits.cpu()
        return 1000 * (time.perf_counter() - started) / len(rows)

    def build(objective: Objective) -> Callable[[], float]:
        def seconds() -> float:
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                build_lessons([objective], teacher, tokenizer, rows, Path(folder), max_length=work.setting.max_length)
                return 1000 * (time.perf_counter() - started) / len(rows)

        return seconds

    return {BARE_FORWARD: forward} | {f"lessons of {family}": build(objective) for family, (objective, _) in LESSONS.items()}


def memory(work: Work, strategies: Sequence[Strategy], file: Path, tell: Callable[[str], None]) -> dict[str, float]:
    """MiB at the peak of a few steps on the longest batches, by key, each measured in a fresh process of its own; so many
    steps that every guide is paid for at one of them."""
    configs = [work.setting.config(strategy) for strategy in strategies]
    rarest = max(objective.schedule.every for config in configs for objective in objectives_of(config))
    work = replace(work, steps=min(max(3, rarest), work.drawn), skip=1, longest=True)
    found: dict[str, float] = read_json(file) if file.exists() else {}
    loops = [loop for loop in LOOPS if loop != "AD-KD" or work.same_tokens]
    wanted: dict[str, Strategy | Loop] = {loop: loop for loop in loops} | {work.setting.key(s): s for s in strategies}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "egkd.pipeline"])
    for key in [key for key in wanted if key not in found]:
        tell(f"memory of {key}")
        with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
            found[key] = pool.submit(_peak, work, wanted[key], torch.get_num_threads()).result()
        write_json(file, found)
    return found


def _peak(work: Work, what: Strategy | Loop, threads: int) -> float:
    """How far one training goes beyond what the process held before it had any model."""
    quiet()
    torch.set_num_threads(threads)
    strategy = what if isinstance(what, Strategy) else None
    watch = Watch(work.skip, work.setting.device)
    for data in (work.rows, work.teacher_rows):
        _ = data[0]
    if what == "cached logits":
        _ = work.logits
    gc.collect()
    before = _resident()
    if strategy is not None:
        with_trainer(work, strategy, watch)
    else:
        bare(work, what, watch)  # type: ignore[arg-type]
    if work.setting.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before  # Linux counts in KiB


def _resident() -> float:
    """MiB this process holds now; its peak where the system does not tell."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(status.read_text().split()[1]) * resource.getpagesize() / 2**20
