"""What judges say of explanations, as tables for the terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from egkd.evaluate.faithfulness import MEASURES
from egkd.evaluate.ranking import BINS
from egkd.explain.explanation import inert
from egkd.judging import Agreement, Faithfulness, Judge, Plausibility

_FAITHFULNESS = {
    "comprehensiveness": "comprehensiveness",
    "sufficiency": "sufficiency",
    "area_over_curve": "area over curve",
    "tau_loo": "τ with leave-one-out",
    "infidelity_scaled": "infidelity, scaled",
    "max_sensitivity": "max-sensitivity",
    "ferret_comprehensiveness": "comprehensiveness (ferret)",
    "ferret_sufficiency": "sufficiency (ferret)",
}
_PLAUSIBILITY = {"token_f1": "token F1 ↑", "iou_f1": "IOU F1 ↑", "auprc": "AUPRC ↑"}
_AGREEMENT = {
    "spearman": "Spearman’s ρ",
    "kendall": "Kendall’s τ-b",
    "pearson": "Pearson’s r",
    "cosine": "cosine",
    "top20": "top 20 % in common",
    "rank_biased_overlap": "rank-biased overlap",
    "jensen_shannon": "Jensen–Shannon divergence",
}
_AMONG = {"all": "all", "same_class": "same answer", "floor": "random order", "ceiling": "ceiling"}


def tables(judge: Judge) -> Iterator[Table]:
    """All that one judge has to say."""
    figures = judge.figures()
    if isinstance(judge, Faithfulness):
        names = {name: f"{label} {'↑' if MEASURES[name] == 'higher' else '↓'}" for name, label in _FAITHFULNESS.items()}
        yield _by_measure(
            figures,
            names,
            "Mean ± standard error, and beside it the same scores in random order. Fall of the output without the best words, "
            f"and with only them (over ERASER’s bins, {', '.join(map(str, BINS))} % of the words; ferret’s are 10 to 100 % and "
            "only words with positive scores), and along the whole order. Words are taken away by the operator "
            f"“{judge.probes.operator}”, by ferret deleted.",
        )
    elif isinstance(judge, Plausibility):
        share = next(iter(figures.values()))["share"]
        unseen = next(iter(figures.values()))["unseen"]["mean"]
        yield _by_measure(
            figures,
            _PLAUSIBILITY,
            f"What people marked: {share:.0%} of the words, and as many are selected by score. "
            + (
                f"{unseen:.0%} of the marked words have no score: cut off (--max-length), or in another’s token."
                if unseen > 0
                else ""
            ),
        )
    elif isinstance(judge, Agreement):
        for method, found in figures.items():
            yield _between_models(method, found)


def _by_measure(figures: Mapping[str, Any], names: Mapping[str, str], caption: str) -> Table:
    """Two rows for each measure that was taken, its own and that of the floor; a column for each method."""
    table = _table(caption)
    for method in figures:
        table.add_column(method, justify="right")
    for name, label in names.items():
        if any(found["all"][name]["n"] for found in figures.values()):
            table.add_row(Text(label, style="bold"), *(_figure(found["all"][name]) for found in figures.values()))
            chance = [_figure(found["floor"][name]) for found in figures.values()]
            table.add_row(Text("  in random order", style="dim"), *chance)
    return table


def _between_models(method: str, found: Mapping[str, Any]) -> Table:
    skipped = f" {found['n_skipped']} texts have no order of words to compare." if found["n_skipped"] else ""
    table = _table(f"How far the two models’ explanations agree, mean ± standard error.{skipped}")
    table.columns[0].header = Text(inert(method), style="bold")
    columns = [name for name in _AMONG if name in found]
    for name in columns:
        table.add_column(_AMONG[name], justify="right")
    for measure, label in _AGREEMENT.items():
        table.add_row(label, *(_figure(found[name][measure]) for name in columns))
    return table


def _table(caption: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, caption_justify="left")
    table.add_column("")
    table.caption = Text(caption)
    return table


def _figure(estimate: Mapping[str, Any]) -> str:
    if not estimate["n"]:
        return "–"
    return f"{estimate['mean']:.3f}" + ("" if estimate["se"] is None else f" ± {estimate['se']:.3f}")
