"""The comparison of strategies, on tiny models: that it compares what it says, and goes on where it stopped."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

from egkd.models import observe
from egkd.objectives import Moment, Teacher
from egkd.objectives.published import AttributionDistillation
from egkd.predict import encode_dataset
from egkd.processes import mean_count
from egkd.text import collate

pytestmark = pytest.mark.usefixtures("calm_libraries")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PROMISED = {
    "family",
    "strategy",
    "seconds_per_1000",
    "ratio_cached_kd",
    "ratio_live_kd",
    "ratio_ad_kd",
    "peak_mib",
    "agreement",
    "agreement_gain_kept",
    "score",
    "seeds",
}


@pytest.fixture(scope="module")
def parts() -> Iterator[SimpleNamespace]:
    """The modules of the benchmark, which lie beside each other and not in a package."""
    sys.path.insert(0, str(BENCHMARKS))
    names = ("cost", "cost_gains", "cost_loops", "cost_setting", "cost_turns")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def toy(parts: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Its tiny models and sentences."""
    return parts.cost_setting.toy(tmp_path_factory.mktemp("toy"), "cpu", False)


def test_it_measures_both_halves_and_only_reads_what_it_has(
    parts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = next(s for s in reversed(parts.cost.STRATEGIES) if s.family == "gradient" and not s.exact)
    flags = ["--quick", "--out", str(tmp_path), "--strategies", asked.title, "--json", str(tmp_path / "own.json")]
    rows = parts.cost.main(flags)
    page = capsys.readouterr().out
    assert json.loads((tmp_path / "own.json").read_text()) == json.loads((tmp_path / "cost.json").read_text()) == rows
    loops, students = rows[:3], rows[3:]
    assert [row["strategy"] for row in loops] == list(parts.cost_loops.LOOPS)
    assert [(row["family"], row["strategy"]) for row in students] == [
        ("plain", "plain"),
        ("gradient", "exact"),
        ("gradient", asked.name),
    ]
    for row in rows:
        assert row.keys() >= PROMISED
        assert f"{row['family']}: {row['strategy']}" in page
        assert row["seconds_per_1000"] > 0
        assert row["peak_mib"] > 0
        for ratio, beside in (("ratio_bare_loop", 0), ("ratio_live_kd", 1), ("ratio_ad_kd", 2), ("ratio_cached_kd", 3)):
            assert row[ratio] == pytest.approx(row["seconds_per_1000"] / rows[beside]["seconds_per_1000"])
    for row in students:
        assert row["seeds"] == [0]
        assert 0 <= row["score"] <= 1
        assert -1 <= row["agreement"] <= 1
        assert set(row["agreements"]) == set(parts.cost_gains.JUDGES)
    plain, exact, _ = students
    assert plain["agreement_gain_kept"] is None
    assert exact["agreement_gain"] == pytest.approx(exact["agreement"] - plain["agreement"])
    assert exact["agreement_gain_kept"] == (
        pytest.approx(1) if exact["agreement_gain"] >= parts.cost_gains.LEAST_GAIN else None
    )

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("this was done already")

    for module, name in (("cost_turns", "with_trainer"), ("cost_turns", "bare"), ("cost", "make_cell")):
        monkeypatch.setattr(getattr(parts, module), name, never)
    assert parts.cost.main(flags) == rows


def test_the_trainer_and_the_bare_loops_are_given_the_same_batches(
    parts: Any, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = parts.cost_loops.Work(setting=toy, drawn=4, steps=3, skip=1)
    assert len(work.order) == 3 * toy.batch
    assert len(set(work.order)) == len(work.order)
    batches: dict[str, list[Any]] = {"trainer": [], "bare": []}
    compute, tensors = parts.cost_loops.DistillationTrainer.compute_loss, parts.cost_loops.tensors

    def computed(self: Any, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        batches["trainer"].append(inputs["input_ids"].tolist())
        return compute(self, model, inputs, *rest, **named)

    def padded(*given: Any) -> Any:
        inputs, labels_B = tensors(*given)
        batches["bare"].append(inputs["input_ids"].tolist())
        return inputs, labels_B

    monkeypatch.setattr(parts.cost_loops.DistillationTrainer, "compute_loss", computed)
    plain = next(strategy for strategy in parts.cost.STRATEGIES if strategy.family == "plain")
    watch = parts.cost_loops.Watch(work.skip, "cpu")
    parts.cost_loops.with_trainer(work, plain, watch)
    assert work.per_thousand(watch) > 0
    monkeypatch.setattr(parts.cost_loops, "tensors", padded)
    parts.cost_loops.bare(work, "live teacher", parts.cost_loops.Watch(work.skip, "cpu"))
    assert batches["trainer"] == batches["bare"]
    assert len(batches["bare"]) == 3


def test_memory_is_measured_on_the_longest_batches(parts: Any, toy: Any) -> None:
    drawn = parts.cost_loops.Work(setting=toy, drawn=4, steps=4, skip=1)
    longest = parts.cost_loops.Work(setting=toy, drawn=4, steps=1, skip=1, longest=True)
    lengths = drawn.rows["length"]
    assert max(lengths[place] for place in longest.order) == max(lengths[place] for place in drawn.order)
    assert longest.rows["text"] == drawn.rows["text"]  # so that there are lessons of them


@pytest.mark.parametrize("num_labels", [2, 3])
def test_the_ad_kd_loop_takes_the_loss_of_the_ad_kd_objective(
    parts: Any, tiny_bert: Any, tokenizer: Any, tiny_data: Dataset, num_labels: int
) -> None:
    teacher, student = tiny_bert(num_labels=num_labels), tiny_bert(num_labels=num_labels, layers=2, seed=1)
    rows = list(encode_dataset(tiny_data.select(range(6)), tokenizer))
    batch = collate(rows, tokenizer.pad_token_id)
    inputs, labels_B = parts.cost_loops.tensors(rows, "cpu")
    asked = {**inputs, "output_hidden_states": True}
    with parts.cost_loops.double_backward():
        found = parts.cost_loops.attribution_loss(student(**asked), teacher(**asked), labels_B)
    objective = AttributionDistillation()
    seen = {
        who: observe(model, batch, keep=("embeddings",), differentiable=True)
        for who, model in (("teacher", teacher), ("student", student))
    }
    taught = objective.teach(Teacher(model=teacher, tokenizer=tokenizer), batch, seen["teacher"])
    lesson = {
        name: torch.nn.utils.rnn.pad_sequence([torch.as_tensor(value) for value in values], batch_first=True)
        for name, values in taught.items()
    }
    moment = Moment(step=0, epoch=0, tokenizer=tokenizer, count=mean_count(objective.counts(lesson)))
    expected = objective.learn(seen["student"], [], batch, lesson, moment).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert found.item() > 0


def test_rounds_go_on_and_newcomers_run_beside_the_references(parts: Any, tmp_path: Path) -> None:
    calls: list[str] = []

    def runs(*names: str) -> dict[str, Any]:
        return {name: lambda name=name: calls.append(name) or float(len(calls)) for name in names}

    def play(rounds: int, *names: str) -> list[dict[str, float]]:
        calls.clear()
        return parts.cost_turns.in_turns(tmp_path / "rounds.jsonl", runs(*names), ["plain"], rounds, lambda line: None)

    lines = play(2, "plain", "a", "b")
    assert calls == ["plain", "a", "b", "a", "b", "plain"]  # each round begins with another one
    assert [sorted(line) for line in lines] == [["a", "b", "plain"]] * 2
    assert play(2, "plain", "a", "b") == lines
    assert calls == []
    lines = play(2, "plain", "a", "b", "c")
    assert set(calls) == {"plain", "c"}
    assert [sorted(line) for line in lines[2:]] == [["c", "plain"]] * 2
    assert parts.cost_turns.median_seconds(lines, "c", "plain") == (lines[2]["plain"] + lines[3]["plain"]) / 2
    assert parts.cost_turns.median_seconds(lines, "nobody") is None


def test_the_gain_that_is_kept_is_paired_by_seed(parts: Any) -> None:
    def cells(**values: float) -> dict[int, Any]:
        return {int(seed[1:]): {"agreements": {"occlusion": value}} for seed, value in values.items()}

    plain, exact = cells(s0=0.1, s1=0.2, s2=0.9), cells(s0=0.5, s1=0.6)
    kept = parts.cost_gains.gain_kept(cells(s0=0.3, s1=0.5, s2=0.9), exact, plain, "occlusion")
    assert kept == pytest.approx((0.2 + 0.3) / (0.4 + 0.4))
    assert parts.cost_gains.gain_kept(exact, plain, plain, "occlusion") is None  # of nothing, nothing can be kept


def test_settings_decide_which_student_it_is(parts: Any, toy: Any) -> None:
    strategy = parts.cost_setting.Strategy
    exact, same, other = (
        strategy(name, name, {"gradient": {"strategy": "exact"} | settings})
        for name, settings in (
            ("one", {"schedule": {"every": 1}}),
            ("another", {"schedule": {}}),
            ("third", {"schedule": {}, "weight": 2.0}),
        )
    )
    assert toy.key(exact) == toy.key(same)
    assert toy.key(exact) != toy.key(other)


def test_whoever_is_asked_for_is_compared_with_plain_and_with_the_exact_one(parts: Any, toy: Any) -> None:
    assert parts.cost.choose([]) == list(parts.cost.STRATEGIES)
    assert {strategy.family for strategy in parts.cost.choose(["selection"])} == {"plain", "selection"}
    for strategy in parts.cost.STRATEGIES:
        assert parts.cost.objectives_of(toy.config(strategy))
        chosen = parts.cost.choose(parts.cost.read_options(["--quick", "--strategies", strategy.title]).strategies)
        assert {s.title for s in chosen if not s.exact} <= {"plain: plain", strategy.title}
        assert strategy in chosen
        assert strategy.family in ("plain", "published") or any(s.exact and s.family == strategy.family for s in chosen)
    with pytest.raises(ValueError, match="no strategy is called 'nonsense'"):
        parts.cost.choose(["nonsense"])
