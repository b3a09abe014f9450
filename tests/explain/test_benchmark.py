"""The benchmark's bookkeeping: results as they come, resumed, and told on the page."""

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RUN = {"model": "tiny", "threads": 1, "machine": "here", "torch": "2", "turns": 2, "samples": 8}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import explain

    return explain


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import explain_page

    return explain_page


def contest(method: str, asked: list[str], theirs: Any = None) -> SimpleNamespace:
    """One that says the same on both sides, and notes that it was asked."""

    def scores(seed: int) -> list[Any]:
        asked.append(method)
        return [np.array([1.0, 2.0, 3.0])]

    setting = SimpleNamespace(rows=[{"n_units": 3}])
    return SimpleNamespace(
        method=method, against="captum", texts="two (2)", samples=8, setting=setting, ours=scores, theirs=theirs or scores
    )


def test_results_are_written_as_they_come_and_not_measured_again(benchmark: ModuleType, tmp_path: Path) -> None:
    file, asked = tmp_path / "results" / "explain.json", []

    def stop(seed: int) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        benchmark.measure([contest("lime", asked), contest("occlusion", asked, theirs=stop)], RUN, file, again=False)
    (kept,) = json.loads(file.read_text())
    assert {"method", "against", "throughput_ratio", "rank_correlation", "texts", "samples"} <= set(kept)
    assert (kept["method"], kept["rank_correlation"], kept["samples"]) == ("lime", 1.0, 8)
    asked.clear()
    both = [contest("lime", asked), contest("occlusion", asked)]
    results = benchmark.measure(both, RUN, file, again=False)
    assert asked == ["occlusion"] * 6  # once before, and two turns, on both sides
    assert [one["method"] for one in results] == ["lime", "occlusion"]
    assert results[0] == kept
    assert benchmark.measure(both[1:], RUN, file, again=True) == json.loads(file.read_text())[1:]
    assert json.loads(file.read_text())[0] == kept
    other = benchmark.measure(both[:1], RUN | {"threads": 2}, file, again=False)
    assert json.loads(file.read_text()) == other  # nothing of another run stays


def result(method: str, against: str, ours: float, theirs: float, **more: Any) -> dict[str, Any]:
    place = {"method": method, "against": against, "texts": "SST-2 dev (32)", "samples": 200, "run": RUN}
    seconds = {"ours_seconds": ours, "theirs_seconds": theirs, "throughput_ratio": theirs / ours}
    return {**place, **seconds, "rank_correlation": 0.98765, "equal_error_ratio": None, **more}


def test_the_page_says_what_was_measured_and_what_was_missed(page: ModuleType) -> None:
    results = [
        result("saliency", "captum", 1.0, 1.0),
        result("lime (mask)", "captum", 2.0, 3.0, equal_error_ratio=4.44),
        result("lime (mask)", "lime", 1.0, 10.5, texts="long (4)"),
        result("lime (mask) in bfloat16", page.ITSELF, 1.0, 2.0, texts="long (4)"),
    ]
    text = page.tables(results)
    assert "2 of 3 comparisons reach their target" in text
    assert "| saliency | captum | 200 | 1.00 | 1.00 | **1.00** | 1 | 0.988 |  |" in text
    assert "| lime (mask) | captum | 200 | 2.00 | 3.00 | 1.50 | 3 | 0.988 | 4.4 |" in text
    assert "| lime (mask) | lime | 200 | 1.00 | 10.50 | **10.50** | 10 | 0.988 |  |" in text
    assert "| lime (mask) in bfloat16 | itself in float32 | 200 | 1.00 | 2.00 | 2.00 |  | 0.988 |  |" in text
    assert text.index("### SST-2 dev (32) texts") < text.index("### long (4) texts")
    whole = f"a\n{page.START}\nold\n{page.END}\nb\n"
    assert page.with_tables(whole, results) == f"a\n{page.START}\n\n{text}\n\n{page.END}\nb\n"


def test_the_committed_page_tells_the_committed_results(page: ModuleType) -> None:
    told = page.PAGE.read_text(encoding="utf-8")
    expected = page.with_tables(told, page.load(page.RESULTS))
    assert told == expected, "write it again: python benchmarks/explain.py --page"
