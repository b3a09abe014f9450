"""What `cost.py` writes: rows of figures from the files of both halves, and a page of them."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from cost_gains import AGREEMENT, JUDGES, Cell, gain, gain_kept, known_cell, mean, spread
from cost_loops import LOOPS, Work
from cost_setting import Setting, Strategy
from cost_turns import BARE_FORWARD, LESSONS, median_seconds, read_lines, timing_file

from egkd.runs import read_json

Row = dict[str, Any]
REFERENCES = {"ratio_bare_loop": "cached logits", "ratio_live_kd": "live teacher", "ratio_ad_kd": "AD-KD"}


def rows_of(
    setting: Setting, work: Work, strategies: Sequence[Strategy], seeds: Sequence[int], defaults: set[str]
) -> list[Row]:
    """One row for every bare loop, then one for every strategy, of what is known by now."""
    plain = next(strategy for strategy in strategies if strategy.family == "plain")
    lines, kept = read_lines(timing_file(work)), timing_file(work, "memory").with_suffix(".json")
    peaks = read_json(kept) if kept.exists() else {}
    cells = {
        strategy.title: {seed: cell for seed in seeds if (cell := known_cell(setting, strategy, seed)) is not None}
        for strategy in strategies
    }
    exact = {strategy.family: cells[strategy.title] for strategy in strategies if strategy.exact}
    build = lesson_throughput(setting, work)
    rows = [
        {"task": setting.task, "family": "bare loop", "strategy": loop, "default": False}
        | _cost(lines, loop, setting.key(plain), peaks)
        | _gains({}, None, {})
        | {"lessons_throughput": None}
        for loop in LOOPS
        if any(loop in line for line in lines)
    ]
    for strategy in strategies:
        key = setting.key(strategy)
        rows.append(
            {"task": setting.task, "family": strategy.family, "strategy": strategy.name, "default": key in defaults}
            | _cost(lines, key, setting.key(plain), peaks)
            | _gains(cells[strategy.title], exact.get(strategy.family), cells[plain.title])
            | {"lessons_throughput": build.get(strategy.family)}
        )
    return [row | {"device": setting.device, "bf16": setting.bf16, "threads": torch.get_num_threads()} for row in rows]


def _cost(lines: Sequence[Mapping[str, float]], key: str, plain: str, peaks: Mapping[str, float]) -> Row:
    """Medians over rounds; ratios within a round, whose contestants ran close together, and their median."""
    seconds = median_seconds(lines, key)

    def ratio(beside: str) -> float | None:
        values = [line[key] / line[beside] for line in lines if key in line and beside in line]
        return statistics.median(values) if values else None

    return {
        "seconds_per_1000": seconds,
        "ratio_cached_kd": ratio(plain),
        **{name: ratio(loop) for name, loop in REFERENCES.items()},
        "rounds": sum(key in line for line in lines),
        "peak_mib": peaks.get(key),
    }


def _gains(cells: Mapping[int, Cell], exact: Mapping[int, Cell] | None, plain: Mapping[int, Cell]) -> Row:
    """Means over seeds, and what is kept of the exact strategy's gain."""
    agreements = {name: [cell["agreements"][name] for cell in cells.values()] for name in JUDGES} if cells else {}
    gains = {name: gain(cells, plain, name) for name in JUDGES} if cells and cells is not plain else {}
    kept = {name: gain_kept(cells, exact, plain, name) for name in JUDGES} if gains and exact else {}

    def values(name: str) -> list[float | None]:
        return [cell[name] for cell in cells.values()]

    return {
        "agreement": mean(agreements.get(AGREEMENT, [])),
        "agreement_std": spread(agreements.get(AGREEMENT, [])),
        "agreement_gain": mean(gains.get(AGREEMENT, [])),
        "agreement_gain_std": spread(gains.get(AGREEMENT, [])),
        "agreement_gain_kept": kept.get(AGREEMENT),
        "agreements": {name: mean(each) for name, each in agreements.items()},
        "agreement_gains": {name: mean(each) for name, each in gains.items()},
        "agreement_gains_kept": kept,
        "score": mean(values("score")),
        "score_std": spread(values("score")),
        "teacher_score": mean(values("teacher_score")),
        "held_out": mean(values("held_out")),
        "held_out_std": spread(values("held_out")),
        "kl": mean(values("kl")),
        "fidelity": mean(values("fidelity")),
        "seeds": list(cells),
    }


def lesson_throughput(setting: Setting, work: Work) -> dict[str, float]:
    """By family: how many of the teacher's passes a build makes per second, over those of its bare forward pass."""
    lines = read_lines(timing_file(work, "lessons"))
    found = {}
    for family, (_, passes) in LESSONS.items():
        key = f"lessons of {family}"
        seconds, forward = median_seconds(lines, key), median_seconds(lines, key, BARE_FORWARD)
        if seconds and forward:
            found[family] = passes * forward / seconds
    return found


def markdown(rows: Sequence[Row]) -> str:
    """Two tables for each task."""
    parts = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        parts += [f"## {task}", "", *_table(own, COST), "", *_table([row for row in own if row["seeds"]], GAINS), ""]
        teacher = mean([row["teacher_score"] for row in own])
        if teacher is not None:
            parts += [f"The teacher's score is {teacher:.3f}.", ""]
        built = {row["family"]: row["lessons_throughput"] for row in own if row["lessons_throughput"]}
        if built:
            shares = ", ".join(f"{family} {share:.0%}" for family, share in built.items())
            parts += [f"Lessons are built at this share of the teacher's bare throughput per pass: {shares}.", ""]
    return "\n".join(parts)


Column = tuple[str, str, str]
"""Its heading, the figure, how it is written."""
COST: tuple[Column, ...] = (
    ("s per 1,000", "seconds_per_1000", ".2f"),
    ("× cached", "ratio_cached_kd", ".2f"),
    ("× live teacher", "ratio_live_kd", ".2f"),
    ("× AD-KD", "ratio_ad_kd", ".2f"),
    ("× bare loop", "ratio_bare_loop", ".2f"),
    ("peak, MiB", "peak_mib", ".0f"),
)
GAINS: tuple[Column, ...] = (
    ("agreement", "agreement", ".3f"),
    ("gain", "agreement_gain", "+.3f"),
    ("of the exact", "agreement_gain_kept", ".0%"),
    ("input × gradient", "agreements/input-x-gradient", ".3f"),
    ("its norm", "agreements/input-x-gradient-norm", ".3f"),
    ("of the exact", "agreement_gains_kept/input-x-gradient-norm", ".0%"),
    ("integrated gradients", "agreements/integrated-gradients", ".3f"),
    ("score", "score", ".3f"),
    ("± over seeds", "score_std", ".3f"),
    ("held out", "held_out", ".3f"),
    ("KL", "kl", ".3f"),
    ("same answer", "fidelity", ".3f"),
    ("seeds", "seeds", ""),
)


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    if not rows:
        return []
    lines = ["| strategy | " + " | ".join(heading for heading, _, _ in columns) + " |", "|---" + "|---:" * len(columns) + "|"]
    for row in rows:
        title = f"{row['family']}: {row['strategy']}{' (default)' if row['default'] else ''}"
        lines.append(f"| {title} | " + " | ".join(_cell(row, name, form) for _, name, form in columns) + " |")
    return lines


def _cell(row: Row, name: str, form: str) -> str:
    value: Any = row
    for part in name.split("/"):
        value = value.get(part)
    return "–" if value is None else str(len(value)) if isinstance(value, list) else format(value, form)
