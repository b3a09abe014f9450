"""The charts of a report as plain numbers: loss curves, and dots on a scale. The template only places them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from egkd.report.comparison import bound, explainer_names, rank_agreement
from egkd.report.run import Estimate, Run
from egkd.report.wording import explainer, finite, margin, number

WIDTH, HEIGHT = 340, 200  # of a chart, in units of its view box
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 10, 36  # its margins
POINTS = 150  # of a curve at most: beyond, neighbours are averaged
LARGEST = 1e30  # what a diverging run passes on its way to infinity; beyond, nothing is drawn
FEW = 25  # points or fewer are marked one by one


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A mark on an axis."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One run's line in a chart."""

    place: int
    path: str
    """Data of an SVG path; a value that is no number breaks the line."""
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One quantity over the steps of training."""

    title: str
    unit: str
    """What the vertical axis shows."""
    summary: str
    curves: tuple[Curve, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]


Series = list[tuple[float, float]]


def charts(runs: Sequence[Run], names: Sequence[str]) -> tuple[list[Chart], list[Chart]]:
    """A chart for each loss term, and one for each figure of the evaluations along the way."""
    keys = list(dict.fromkeys(key for run in runs for entry in run.log for key in entry))
    losses = [key for key in keys if key == "loss" or key.startswith("loss/")]
    skipped = ("_runtime", "_per_second")
    evals = [key for key in keys if key.startswith("eval_") and not key.endswith(skipped)]
    drawn = ([_chart(key, runs, names) for key in chosen] for chosen in (losses, evals))
    of_losses, of_evals = ([chart for chart in group if chart is not None] for group in drawn)
    return of_losses, of_evals


def _series(key: str, log: Sequence[Mapping[str, Any]]) -> Series:
    """Step and value of every log line that has `key`, neighbours averaged where there are very many."""
    points: Series = []
    for line, entry in enumerate(log, start=1):
        value, step = entry.get(key), entry.get("step", line)
        if isinstance(value, (int, float)) and isinstance(step, (int, float)) and finite(step):
            points.append((float(step), float(value) if abs(value) < LARGEST else math.nan))
    chunk = math.ceil(len(points) / POINTS) or 1
    groups = [points[start : start + chunk] for start in range(0, len(points), chunk)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _chart(key: str, runs: Sequence[Run], names: Sequence[str]) -> Chart | None:
    series = [_series(key, run.log) for run in runs]
    sound = [[(x, y) for x, y in points if finite(y)] for points in series]
    values = [y for points in sound for _, y in points]
    if not values:
        return None
    steps = [x for points in series for x, _ in points]
    across, up = ticks(0 if min(steps) >= 0 else min(steps), max(steps)), ticks(_foot(values), max(values))
    right, low, high = max(across[-1], *steps), min(up[0], *values), max(up[-1], *values)

    def place_x(x: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (x - across[0]) / ((right - across[0]) or 1), 1)

    def place_y(y: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / ((high - low) or 1), 1)

    curves = []
    for place, points in enumerate(series):
        drawn = [(place_x(x), place_y(y) if finite(y) else None) for x, y in points]
        dots = tuple((x, y) for x, y in drawn if y is not None) if len(points) <= FEW else ()
        curves.append(Curve(place=place, path=_path(drawn), dots=dots))
    name = key.removeprefix("loss/").removeprefix("eval_").replace("_", " ").replace("-", " ")
    told = [
        f"{run}: {number(points[0][1])} at the first, {number(points[-1][1])} at the last of {len(points)} points"
        for run, points in zip(names, sound, strict=True)
        if points
    ]
    return Chart(
        title="total" if key == "loss" else name,
        unit=name if key.startswith("eval_") else "loss",
        summary="; ".join(told),
        curves=tuple(curves),
        across=tuple(Tick(at=place_x(x), label=_short(x)) for x in across),
        up=tuple(Tick(at=place_y(y), label=_short(y)) for y in up),
    )


def _foot(values: Sequence[float]) -> float:
    """Zero where it is near the values, so that a loss is seen against nothing; else the least of them."""
    return 0.0 if 0 <= min(values) <= 0.5 * max(values) else min(values)


def _path(points: Sequence[tuple[float, float | None]]) -> str:
    steps, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
        else:
            steps.append(f"{pen}{x:g} {y:g}")
            pen = "L"
    return "".join(steps)


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) that span `low` to `high`."""
    span = high - low
    if span <= 1e-9 * max(abs(low), abs(high)) or span < 1e-30:
        span = max(abs(low), abs(high), 1e-30)
    power = 10.0 ** math.floor(math.log10(span / wanted))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if span / (factor * power) <= wanted)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [position * step for position in range(first, max(last, first + 1) + 1)]


def _short(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k".replace("-", "−")
    return f"{round(value, 10):g}".replace("-", "−")


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One student on a scale, in percent of its length."""

    name: str
    place: int
    at: float
    start: float
    """Lower end of the 95 % interval."""
    end: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Strip:
    """All students on one scale: rank correlation of their explanations with the teacher's."""

    title: str
    dots: tuple[Dot, ...]
    bounds: tuple[Tick, ...]
    """The floor and the ceiling, as far as they are known."""
    scale: tuple[Tick, ...]


def strips(runs: Sequence[Run], names: Sequence[str]) -> list[Strip]:
    """A strip for each explainer."""
    found = []
    for name in explainer_names(runs):
        estimates = [rank_agreement(run.metrics.student, name) for run in runs]
        bounds = {which: value for which in ("floor", "ceiling") if (value := bound(runs, name, which)) is not None}
        means = [e.mean for e in estimates if e.mean is not None and finite(e.mean)]
        if not means:
            continue
        low = 0.5 * math.floor(2 * min(0.0, *means, *bounds.values()))
        scale = [low + half / 2 for half in range(round(2 * (1 - low)) + 1)]
        found.append(
            Strip(
                title=explainer(name),
                dots=tuple(_dot(e, names[place], place, low) for place, e in enumerate(estimates) if finite(e.mean)),
                bounds=tuple(Tick(at=_along(value, low), label=f"{w} {number(value, 2)}") for w, value in bounds.items()),
                scale=tuple(Tick(at=_along(value, low), label=_short(value)) for value in scale),
            )
        )
    return found


def _along(value: float, low: float) -> float:
    return round(100 * min(1.0, max(0.0, (value - low) / (1 - low))), 2)


def _dot(estimate: Estimate, name: str, place: int, low: float) -> Dot:
    mean, reach = estimate.mean, 1.96 * (estimate.se if estimate.se is not None and finite(estimate.se) else 0.0)
    assert mean is not None
    text = f"{number(mean)} {margin('spearman', estimate)}".strip()
    at, start, end = (_along(value, low) for value in (mean, mean - reach, mean + reach))
    return Dot(name=name, place=place, at=at, start=start, end=end, text=text)
