"""How fast our explainers are beside captum, lime, shap and transformers-interpret, and whether they say the same.

    python benchmarks/explain.py --glue-dir GLUE --json benchmarks/results/explain.json

Same process, model, texts, explained classes and number of samples; the two sides take turns and medians are compared. A
ratio of 2 means that ours explains twice as many texts in the same time. The rank correlation is the mean over texts of
Spearman's rho between the two sides' word scores. Opponents run at the fastest of a few batch sizes, found first. Two
estimates of the same thing are also compared at equal error: the ratio of times to one and the same variance.
"""

import argparse
import json
import resource
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from explain_opponents import SIZES, captum_contests, lime_contests, shap_contests, transformers_interpret_contests
from explain_setting import Contest, Scores, Setting, load_settings, rank_correlation, variance
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from egkd.explain import KernelShap, Lime, ShapleySampling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a sequence classifier (default: all-MiniLM-L6-v2 of the demo)")
    parser.add_argument("--glue-dir", type=Path, help="folder with SST-2/dev.tsv (default: the demo's movie reviews)")
    parser.add_argument("--json", type=Path, help="write the results here, too")
    parser.add_argument("--only", default="", help="methods or opponents whose names contain this")
    parser.add_argument("--quick", action="store_true", help="under a minute: few texts, few samples, no long texts")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    n_short, n_long, samples, turns = (2, 0, 16, 1) if arguments.quick else (32, 4, 200, 5)
    settings = load_settings(arguments.model, arguments.glue_dir, n_short, n_long)
    sizes = SIZES[1:2] if arguments.quick else SIZES
    table = Table(
        "method", "against", "texts", "samples", "ours (s)", "theirs (s)", "ratio", "rank correlation", "at equal error"
    )
    results = []
    for contest in _contests(settings, samples, sizes, arguments.only):
        result = _compare(contest, turns)
        results.append(result)
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value or "") for value in result.values()))
    console = Console(width=160)
    console.print(table)
    for line in _memory(settings[0], samples // 16 * 2):
        console.print(line)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _contests(settings: Sequence[Setting], samples: int, sizes: Sequence[int], only: str) -> Iterator[Contest]:
    for setting in settings:
        if setting.texts:
            for contests in (captum_contests, lime_contests, shap_contests, transformers_interpret_contests):
                yield from (c for c in contests(setting, samples, sizes) if only in f"{c.method} {c.against}")


def _compare(contest: Contest, turns: int) -> dict[str, Any]:
    runs: tuple[list[Scores], list[Scores]] = ([contest.ours(0)], [contest.theirs(0)])  # once before time is taken
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(1, turns + 1):
        for side, run in enumerate((contest.ours, contest.theirs)):
            start = time.perf_counter()
            runs[side].append(run(turn))
            seconds[side].append(time.perf_counter() - start)
    ours, theirs = map(statistics.median, seconds)
    return {
        "method": contest.method,
        "against": contest.against,
        "texts": f"{contest.setting.name} ({len(contest.setting.texts)})",
        "samples": contest.samples,
        "ours_seconds": ours,
        "theirs_seconds": theirs,
        "throughput_ratio": theirs / ours,
        "rank_correlation": rank_correlation(runs[0][0], runs[1][0]),
        "equal_error_ratio": _at_equal_error(contest, theirs / ours, *map(variance, runs)),
    }


def _at_equal_error(contest: Contest, ratio: float, ours: float, theirs: float) -> float | None:
    """The ratio of times to the same standard error, as variance falls with samples. None where nothing is drawn, or where
    samples are so few that a regression is biased."""
    few = contest.samples < 4 * max(row["n_units"] for row in contest.setting.rows)
    regression = contest.method.startswith(("lime", "kernel-shap"))
    drawn = min(ours, theirs) > 1e-9 * max(ours, theirs)
    return ratio * theirs / ours if drawn and not (few and regression) else None


def _memory(setting: Setting, few: int) -> Iterator[str]:
    """How much higher the process' memory climbs with ten times the samples."""
    some = replace(setting, texts=setting.texts[:2])
    for explainer in (Lime, KernelShap, ShapleySampling):
        some.ours(explainer(n_samples=few), 0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        some.ours(explainer(n_samples=10 * few), 0)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024  # Linux counts in KiB
        yield f"{explainer.name}: {grown:.0f} MiB more at the peak with {10 * few} samples than with {few}"


if __name__ == "__main__":
    main()
