"""The tables of docs/explain-benchmark.md, from the results of `explain.py`."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "explain-benchmark.md"
RESULTS = Path(__file__).parent / "results" / "explain.json"
START, END = "<!-- results: written by benchmarks/explain.py --page -->", "<!-- end of results -->"
ITSELF = "itself in float32"
GRADIENT = ("saliency", "input-x-gradient", "integrated-gradients", "smoothgrad")


def write(results: Path = RESULTS, page: Path = PAGE) -> None:
    """Put the tables of these results between the marks of the page."""
    page.write_text(with_tables(page.read_text(encoding="utf-8"), load(results)), encoding="utf-8")


def load(results: Path) -> list[dict[str, Any]]:
    """What `explain.py` wrote so far; nothing where there is no file."""
    return json.loads(results.read_text(encoding="utf-8")) if results.exists() else []


def with_tables(page: str, results: Sequence[dict[str, Any]]) -> str:
    """The page with these results in the place of those it has."""
    before, rest = page.split(START)
    return f"{before}{START}\n\n{tables(results)}\n\n{END}{rest.split(END)[1]}"


def tables(results: Sequence[dict[str, Any]]) -> str:
    """Conditions, how many targets are met, and a table for every set of texts."""
    if not results:
        return "Nothing has been measured yet."
    run = results[0]["run"]
    aims = [result for result in results if target(result) is not None]
    met = sum(map(_reached, aims))
    conditions = f"{run['model']}, {run['threads']} threads ({run['machine']}), PyTorch {run['torch']}"
    told = f"medians of at least {run['turns']} turns. {met} of {len(aims)} comparisons reach their target, in bold."
    parts = [f"{conditions}; {told}"]
    for texts in dict.fromkeys(result["texts"] for result in results):
        parts += [f"### {texts} texts", _table([result for result in results if result["texts"] == texts])]
    return "\n\n".join(parts)


def target(result: dict[str, Any]) -> float | None:
    """How many times as fast ours should be; None for a comparison with ourselves."""
    if result["against"] == ITSELF:
        return None
    if result["against"] != "captum":
        return 10.0
    return 1.0 if result["method"].startswith(GRADIENT) else 3.0


def _reached(result: dict[str, Any]) -> bool:
    return result["throughput_ratio"] >= (target(result) or math.inf)


def _table(results: Sequence[dict[str, Any]]) -> str:
    head = ["method", "against", "samples", "ours (s)", "theirs (s)", "ratio", "target", "rank correlation", "at equal error"]
    lines = [head, ["---", "---", *["---:"] * 7]]
    for one in results:
        ratio, aim, equal = f"{one['throughput_ratio']:.2f}", target(one), one["equal_error_ratio"]
        lines.append(
            [
                one["method"],
                one["against"],
                str(one["samples"]),
                f"{one['ours_seconds']:.2f}",
                f"{one['theirs_seconds']:.2f}",
                f"**{ratio}**" if _reached(one) else ratio,
                "" if aim is None else f"{aim:.0f}",
                "" if one["rank_correlation"] is None else f"{one['rank_correlation']:.3f}",
                "" if equal is None else f"{equal:.1f}",
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
