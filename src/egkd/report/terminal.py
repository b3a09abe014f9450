"""The comparison in short, for the terminal."""

from collections.abc import Sequence
from textwrap import wrap

from rich import box
from rich.table import Table
from rich.text import Text

from egkd.report.comparison import bound, columns, explainer_names, headline, headline_fidelity, rank_agreement
from egkd.report.run import Model, Run
from egkd.report.wording import NONE, count, explainer, finite, listed, measure, milliseconds, number, percent, written

_BOUNDS = {"floor": "scores in random order", "ceiling": "another seed of the teacher"}


def summary_table(runs: Sequence[Run]) -> Table:
    """One row per model: its headline score, agreement with the teacher, explanation agreement, size and speed.

    Below them the floor and the ceiling of explanation agreement, as far as they are known. A column in which no model has a
    figure is left out. Names from a run are shown as they are, never read as markup.
    """
    models = [column.model for column in columns(runs)]
    explainers = explainer_names(runs)
    split, metric = next((found for run in runs if (found := headline(run)) is not None), ("", "score"))
    batch = min((size for model in models for size in model.latency.ms_per_example), default=1)
    figures = {
        measure(metric).label: [written(metric, model.scores.get(split, {}).get(metric)) for model in models],
        "same answer": [percent(headline_fidelity(model, "agreement").mean) for model in models],
        **{_heading(name): [number(rank_agreement(model, name).mean, 2) for model in models] for name in explainers},
        "params": [count(model.parameters) for model in models],
        "ms per example": [milliseconds(model.latency.ms_per_example.get(batch)) for model in models],
    }
    bounds = {which: _bounds(runs, explainers, which) for which in _BOUNDS}
    shown = {heading: cells for heading, cells in figures.items() if set(cells) != {NONE}}
    table = Table(
        box=box.SIMPLE_HEAD,
        caption=_caption(
            models, [which for which, told in bounds.items() if told], explainers, batch, "ms per example" in shown
        ),
        caption_justify="left",
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("")
    for heading, cells in shown.items():
        limits = [told.get(heading, "") for told in bounds.values()]
        widest = max(map(len, [*heading.split(), *cells, *limits]))  # narrower, and a figure would be torn apart
        table.add_column(Text("\n".join(wrap(heading, widest))), justify="right", min_width=widest)
    for place, column in enumerate(columns(runs)):
        table.add_row(Text(column.title, style="bold"), *(Text(cells[place]) for cells in shown.values()))
    for which, told in bounds.items():
        if told:
            table.add_row(Text(which, style="dim"), *(Text(told.get(heading, ""), style="dim") for heading in shown))
    return table


def _heading(name: str) -> str:
    """An explainer's name above a narrow column."""
    return explainer(name).replace("integrated", "integr.").replace("gradient", "grad")


def _bounds(runs: Sequence[Run], explainers: Sequence[str], which: str) -> dict[str, str]:
    """By the heading of an explainer, between what its figures lie, as far as it is known."""
    told = {_heading(name): bound(runs, name, which) for name in explainers}
    return {heading: number(value, 2) for heading, value in told.items() if value is not None}


def _caption(models: Sequence[Model], bounds: Sequence[str], explainers: Sequence[str], batch: int, timed: bool) -> Text | None:
    notes = []
    if explainers:
        errors = [rank_agreement(model, name).se for model in models for name in explainers]
        largest = max((error for error in errors if error is not None and finite(error)), default=None)
        doubt = "" if largest is None else f" (standard errors up to {number(largest, 2)})"
        names = listed([explainer(name) for name in explainers])
        notes.append(f"{names}: rank correlation of the words’ scores with the teacher’s{doubt}.")
        if bounds:
            notes.append(f"{'; '.join(f'{which.capitalize()}: {_BOUNDS[which]}' for which in bounds)}.")
    if timed:
        notes.append(f"Times at a batch of {batch}.")
    return Text(" ".join(notes)) if notes else None
