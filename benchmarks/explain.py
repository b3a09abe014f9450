"""How fast our explainers are beside captum, lime, shap and transformers-interpret, and whether they say the same.

    python benchmarks/explain.py --glue-dir GLUE --json benchmarks/results/explain.json --page

Same process, model, texts, explained classes and number of samples; the two sides take turns and medians are compared. A
ratio of 2 means that ours explains twice as many texts in the same time. The rank correlation is the mean over texts of
Spearman's rho between the two sides' word scores. Opponents run at the fastest of a few batch sizes, found first. Two
estimates of the same thing are also compared at equal error: the ratio of times to one and the same variance.
"""

import argparse
import cProfile
import itertools
import platform
import pstats
import resource
import statistics
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import explain_page
import torch
from explain_opponents import CONTESTS, SIZES
from explain_page import PAGE
from explain_setting import Contest, Scores, Setting, load_settings, rank_correlation, variance
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from egkd.explain import Explainer, KernelShap, Lime, ShapleySampling
from egkd.runs import write_json

LEAST_SECONDS, MOST_TURNS = 10.0, 25  # what is short takes more turns, for a moment's noise weighs more in it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a sequence classifier (default: all-MiniLM-L6-v2 of the demo)")
    parser.add_argument("--glue-dir", type=Path, help="folder with SST-2/dev.tsv (default: the demo's movie reviews)")
    parser.add_argument("--json", type=Path, help="write results here as they come; what it holds of the same run is kept")
    parser.add_argument("--again", action="store_true", help="measure anew what --json holds already")
    parser.add_argument(
        "--page", action="store_true", help=f"write the tables of {PAGE.name} from --json; alone, measure nothing"
    )
    parser.add_argument("--only", default="", help="methods or opponents whose names contain this")
    parser.add_argument("--quick", action="store_true", help="under a minute: few texts, few samples, no long texts")
    parser.add_argument("--profile", action="store_true", help="instead: where the time of one method goes")
    arguments = parser.parse_args()
    if arguments.page and not arguments.json:
        explain_page.write()
        return
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    n_short, n_long, samples, turns = (2, 0, 16, 1) if arguments.quick else (12, 1, 100, 3)
    settings = load_settings(arguments.model, arguments.glue_dir, n_short, n_long)
    console = Console(width=160)
    if arguments.profile:
        console.print(_profile(settings[0], Lime(n_samples=samples)))
        return
    sizes = SIZES[1:2] if arguments.quick else SIZES
    run = {
        "model": arguments.model.name if arguments.model else "all-MiniLM-L6-v2",
        "short_texts": n_short,
        "long_texts": n_long,
        "samples": samples,
        "turns": turns,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    contests = _contests(settings, samples, sizes, arguments.only)
    patience = 0.0 if arguments.quick else LEAST_SECONDS
    results = measure(contests, run, arguments.json, again=arguments.again, patience=patience)
    console.print(_table(results))
    for line in _memory(settings[0], samples // 16 * 2):
        console.print(line)
    if arguments.page:
        explain_page.write(arguments.json)


def measure(
    contests: Iterable[Contest], run: dict[str, Any], path: Path | None, *, again: bool, patience: float = 0.0
) -> list[dict[str, Any]]:
    """Results of these contests, in `path` after each. What `path` holds of the same run is kept: other contests of it, and
    unless `again` also these, which then are not held. Turns go on for `patience` seconds where they are short."""
    kept = [] if path is None else [one for one in explain_page.load(path) if one["run"] == run]
    found = {_place(one): one for one in kept}
    shown = []
    for contest in contests:
        place = (contest.method, contest.against, contest.texts)
        if again or place not in found:
            found[place] = {**_compare(contest, run["turns"], patience), "run": run}
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, list(found.values()))
        shown.append(found[place])
    return shown


def _place(result: dict[str, Any]) -> tuple[str, str, str]:
    return result["method"], result["against"], result["texts"]


def _contests(settings: Sequence[Setting], samples: int, sizes: Sequence[int], only: str) -> Iterator[Contest]:
    for setting in settings:
        if setting.texts:
            for contests in CONTESTS:
                yield from (c for c in contests(setting, samples, sizes) if only in f"{c.method} {c.against}")


def _compare(contest: Contest, turns: int, patience: float) -> dict[str, Any]:
    runs: tuple[list[Scores], list[Scores]] = ([contest.ours(0)], [contest.theirs(0)])  # once before time is taken
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in itertools.count(1):
        if turn > turns and (turn > MOST_TURNS or sum(map(sum, seconds)) >= patience):
            break
        for side, run in enumerate((contest.ours, contest.theirs)):
            start = time.perf_counter()
            runs[side].append(run(turn))
            seconds[side].append(time.perf_counter() - start)
    ours, theirs = map(statistics.median, seconds)
    return {
        "method": contest.method,
        "against": contest.against,
        "texts": contest.texts,
        "samples": contest.samples,
        "ours_seconds": ours,
        "theirs_seconds": theirs,
        "throughput_ratio": theirs / ours,
        "rank_correlation": rank_correlation(runs[0][0], runs[1][0]),
        "equal_error_ratio": _at_equal_error(contest, theirs / ours, *map(variance, runs)),
    }


def _table(results: Sequence[dict[str, Any]]) -> Table:
    table = Table(
        "method", "against", "texts", "samples", "ours (s)", "theirs (s)", "ratio", "rank correlation", "at equal error"
    )
    for result in results:
        values = [value for name, value in result.items() if name != "run"]
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value or "") for value in values))
    return table


def _profile(setting: Setting, explainer: Explainer) -> Table:
    """The share of time in the model's forward passes, and in its kernels, of one method; by cProfile, which adds some."""
    setting.ours(explainer, 0)
    with cProfile.Profile() as profile:
        setting.ours(explainer, 1)
    stats = pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
    total = sum(own for _, (_, _, own, _, _) in stats)
    model = type(setting.model).forward.__code__
    passes = max(
        (inner for (file, line, _), (*_, inner, _) in stats if (file, line) == (model.co_filename, model.co_firstlineno)),
        default=0.0,
    )
    table = Table("part", "share", title=f"{explainer.name}, {len(setting.texts)} texts, {total:.1f} s")
    table.add_row("forward passes of the model", f"{passes / total:.1%}")
    for (_, _, name), (_, _, own, _, _) in sorted(stats, key=lambda item: -item[1][2])[:8]:
        table.add_row(f"  {name}", f"{own / total:.1%}")
    return table


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
