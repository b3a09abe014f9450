"""Metrics on resamples against the plain metrics on the resampled rows; intervals and tests against scipy's and by hand."""

import math
from itertools import product

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from egkd.data import Task
from egkd.evaluate.scores import task_scores
from egkd.experiments.metrics import _counts, bootstrap, measured
from egkd.experiments.statistics import (
    Answers,
    Difference,
    TaskSample,
    average,
    holm,
    is_above,
    verdict,
)

CLASSES = ("accuracy", "f1", "f1_macro", "matthews_correlation")
NUMBERS = ("pearson", "spearmanr")
CASES = [*product(("accuracy", "f1_macro", "matthews_correlation"), (2, 3)), *product(("f1", *NUMBERS), (2,))]


def plain(metric: str, labels_N: np.ndarray, predictions_N: np.ndarray) -> float:
    """The metric as runs report it."""
    if metric in NUMBERS:
        task = Task(name="t", kind="regression", metrics=(metric,))
        return task_scores(task, predictions_N[:, None], labels_N)[metric]
    classes = max(2, int(labels_N.max()) + 1, int(predictions_N.max()) + 1)
    task = Task(name="t", kind="classification", label_names=tuple("abcde"[:classes]), metrics=(metric,))
    return task_scores(task, np.eye(classes)[predictions_N], labels_N)[metric]


def columns(metric: str, classes: int = 2, examples: int = 40, runs: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N] and answers [N, M] that are often right; numbers with ties."""
    rng = np.random.default_rng(classes)
    labels_N: np.ndarray
    if metric in NUMBERS:
        labels_N = rng.integers(0, 11, size=examples) / 2
        return labels_N, np.round(labels_N[:, None] + rng.normal(size=(examples, runs)), 1)
    labels_N = rng.integers(classes, size=examples)
    right_NM = rng.random((examples, runs)) < 0.7
    return labels_N, np.where(right_NM, labels_N[:, None], rng.integers(classes, size=(examples, runs)))


@pytest.mark.parametrize(("metric", "classes"), CASES)
def test_a_resample_is_the_metric_of_the_resampled_rows(metric: str, classes: int) -> None:
    labels_N, predictions_NM = columns(metric, classes)
    found_RM = bootstrap(metric, labels_N, predictions_NM, 25, [7])
    counts_RN = np.concatenate(list(_counts(len(labels_N), 25, [7]))).astype(int)
    assert (counts_RN.sum(1) == len(labels_N)).all()
    for counts_N, values_M in zip(counts_RN, found_RM, strict=True):
        rows = np.repeat(np.arange(len(labels_N)), counts_N)
        expected = [plain(metric, labels_N[rows], predictions_N[rows]) for predictions_N in predictions_NM.T]
        assert values_M == pytest.approx(expected, abs=2e-6)
    everything = [plain(metric, labels_N, predictions_N) for predictions_N in predictions_NM.T]
    assert measured(metric, labels_N, predictions_NM) == pytest.approx(everything)


@pytest.mark.parametrize("metric", [*CLASSES, *NUMBERS])
def test_constant_answers_have_a_score(metric: str) -> None:
    labels_N, predictions_NM = np.array([0, 1, 1, 0, 1, 1]), np.zeros((6, 1), dtype=int)
    assert measured(metric, labels_N, predictions_NM) == pytest.approx([plain(metric, labels_N, predictions_NM[:, 0])])
    assert np.isfinite(bootstrap(metric, labels_N, predictions_NM, 50, [0])).all()


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    labels_N, predictions_NM = columns("f1")
    whole = bootstrap("f1", labels_N, predictions_NM, 30, [1])
    monkeypatch.setattr("egkd.experiments.metrics._AT_ONCE", 7 * len(labels_N))
    assert bootstrap("f1", labels_N, predictions_NM, 30, [1]) == pytest.approx(whole)


def runs(
    gains: dict[str, float],
    *,
    examples: int = 200,
    seeds: int = 3,
    spread: float = 0.1,
    noise: float = 0.5,
    key: int = 0,
    hard: int | None = None,
) -> dict[tuple[str, int], dict[str, Answers]]:
    """Classifiers that are right where a gain, the example, the run and chance add up to more than -1."""
    rng = np.random.default_rng(key)
    labels_N = (hard_rng := np.random.default_rng(key if hard is None else hard)).integers(2, size=examples)
    hard_N = hard_rng.normal(size=examples)
    found = {}
    for method, gain in gains.items():
        for seed in range(seeds):
            right_N = gain + hard_N + spread * rng.normal() + noise * rng.normal(size=examples) > -1
            found[method, seed] = {"dev": Answers(labels_N=labels_N, predictions_N=np.where(right_N, labels_N, 1 - labels_N))}
    return found


def test_a_difference_is_that_of_the_scores_over_shared_seeds() -> None:
    given_runs = runs({"plain": 0, "guided": 0.5})
    del given_runs["guided", 2]
    sample = TaskSample("task", ["accuracy", "f1"], given_runs)
    expected = []
    for seed in (0, 1):
        two = [
            np.mean([plain(metric, one.labels_N, one.predictions_N) for metric in ("accuracy", "f1")])
            for one in (given_runs["guided", seed]["dev"], given_runs["plain", seed]["dev"])
        ]
        expected.append(two[0] - two[1])
    found = sample.difference("guided", "plain")
    assert found.mean == pytest.approx(np.mean(expected))
    assert found.low < found.mean < found.high
    assert (found.runs, found.seeds) == (2, 2)
    back = sample.difference("plain", "guided")
    assert (back.mean, back.low, back.high) == pytest.approx((-found.mean, -found.high, -found.low), abs=1e-3)


def test_with_one_seed_the_interval_is_scipys() -> None:
    given_runs = runs({"plain": 0, "guided": 0.3}, examples=400, seeds=1)
    found = TaskSample("task", ["accuracy"], given_runs, resamples=4000).difference("guided", "plain")
    right = [given_runs[name, 0]["dev"].predictions_N == given_runs[name, 0]["dev"].labels_N for name in ("guided", "plain")]
    expected = scipy.stats.bootstrap(
        (right[0].astype(float) - right[1],), np.mean, method="percentile", n_resamples=4000, random_state=1
    )
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.005)
    assert found.seeds == 1


def test_with_one_seed_p_is_scipys() -> None:
    given_runs = runs({"plain": 0, "guided": 0.05}, examples=300, seeds=1)
    found = TaskSample("task", ["accuracy"], given_runs, resamples=20_000).difference("guided", "plain")
    right = {run: (one["dev"].predictions_N == one["dev"].labels_N).astype(float) for run, one in given_runs.items()}
    expected = scipy.stats.ttest_rel(right["guided", 0], right["plain", 0])
    assert found.p == pytest.approx(expected.pvalue, abs=0.01)
    assert 0.02 < found.p < 0.98


def by_seed(gains_S: tuple[int, ...], examples: int = 50) -> dict[tuple[str, int], dict[str, Answers]]:
    """Runs that are right on every example or on none: all variance is between seeds."""
    labels_N = np.zeros(examples, dtype=int)
    plain_runs = {("plain", seed): labels_N + 1 for seed in range(len(gains_S))}
    guided = {("guided", seed): labels_N + 1 - gain for seed, gain in enumerate(gains_S)}
    return {run: {"dev": Answers(labels_N=labels_N, predictions_N=told_N)} for run, told_N in (plain_runs | guided).items()}


def test_where_seeds_alone_vary_p_is_scipys() -> None:
    gains_S = (0, 1, 1, 0, 1)
    found = TaskSample("task", ["accuracy"], by_seed(gains_S)).difference("guided", "plain")
    assert found.p == pytest.approx(scipy.stats.ttest_1samp(gains_S, 0).pvalue)


def test_few_examples_prove_little_however_they_agree() -> None:
    assert TaskSample("task", ["accuracy"], by_seed((1, 1, 1), examples=5)).difference("guided", "plain").p == 2 / 2**5
    assert TaskSample("task", ["accuracy"], by_seed((0, 0, 0))).difference("guided", "plain").p == 1


def test_p_is_as_often_small_as_it_says() -> None:
    """Of two methods that are equally good, whose seeds differ as much as a sample of examples makes them."""
    small = sum(
        TaskSample("task", ["accuracy"], runs({"plain": 0, "guided": 0}, examples=150, spread=0.1, key=key), resamples=200)
        .difference("guided", "plain")
        .p
        < 0.1
        for key in range(150)
    )
    assert 0.02 < small / 150 < 0.18


def test_seeds_widen_the_interval_as_much_as_they_vary() -> None:
    """Where seeds alone vary its estimate is s² / S."""
    gains_S = (0, 1, 1, 0, 1)
    found = TaskSample("task", ["accuracy"], by_seed(gains_S), resamples=20_000).difference("guided", "plain")
    assert found.draws_R.var() == pytest.approx(np.var(gains_S, ddof=1) / 5, rel=0.03)


def test_intervals_cover_the_truth() -> None:
    """Of two methods that are equally good; runs hardly differ, or as much as a sample of examples makes them."""
    for spread in (0.02, 0.1):
        inside = 0
        for key in range(120):
            given_runs = runs({"plain": 0, "guided": 0}, examples=150, spread=spread, key=key)
            found = TaskSample("task", ["accuracy"], given_runs, resamples=300).difference("guided", "plain")
            inside += found.low <= 0 <= found.high
            assert found.high - found.low < 0.4
        assert inside / 120 > 0.92


def test_what_others_do_does_not_matter() -> None:
    """The same draws whoever else is there, so that a table does not change where nothing was added."""
    given_runs = runs({"plain": 0, "guided": 0.3, "other": 0.1})
    less = {run: one for run, one in given_runs.items() if run[0] != "other"}
    one, other = (TaskSample("task", ["f1"], some).difference("guided", "plain") for some in (given_runs, less))
    assert (one.low, one.high, one.p) == pytest.approx((other.low, other.high, other.p), abs=1e-9)
    elsewhere = TaskSample("another", ["f1"], less).difference("guided", "plain")
    assert not np.array_equal(elsewhere.draws_R, other.draws_R)


def test_seeds_may_have_examples_of_their_own() -> None:
    """A limit may draw other rows for every seed: they are paired within a seed and independent between."""
    given_runs: dict[tuple[str, int], dict[str, Answers]] = {}
    for seed in range(3):
        given_runs |= {
            (method, seed): one
            for (method, _), one in runs({"plain": 0, "guided": 0.5}, seeds=1, examples=150 + seed, key=seed).items()
        }
    found = TaskSample("task", ["accuracy"], given_runs).difference("guided", "plain")
    right = {run: np.mean(one["dev"].predictions_N == one["dev"].labels_N) for run, one in given_runs.items()}
    assert found.mean == pytest.approx(np.mean([right["guided", seed] - right["plain", seed] for seed in range(3)]))
    assert found.low < found.mean < found.high


def test_other_examples_with_the_same_seed_are_refused() -> None:
    given_runs = runs({"plain": 0}) | runs({"guided": 0}, examples=199)
    with pytest.raises(ValueError, match=r"^task: plain and guided of seed 0 were evaluated on different examples, .*$"):
        TaskSample("task", ["accuracy"], given_runs)


def test_other_sets_are_refused() -> None:
    given_runs = runs({"plain": 0, "guided": 0}, seeds=1)
    given_runs["guided", 0] = {"dev": given_runs["guided", 0]["dev"], "more": given_runs["guided", 0]["dev"]}
    with pytest.raises(ValueError, match=r"^task: guided of seed 0 was evaluated on dev, more, others on dev, so they"):
        TaskSample("task", ["accuracy"], given_runs)


def test_a_task_of_two_sets_is_their_mean() -> None:
    one, two = runs({"plain": 0, "guided": 0.4}), runs({"plain": 0, "guided": 0.1}, examples=90, key=4)
    both = {run: {"matched": one[run]["dev"], "mismatched": two[run]["dev"]} for run in one}
    gains = [TaskSample("task", ["accuracy"], each).difference("guided", "plain").mean for each in (one, two)]
    found = TaskSample("task", ["accuracy"], both).difference("guided", "plain")
    assert found.mean == pytest.approx(np.mean(gains))
    assert 0 < found.p < 1


def test_the_average_is_of_tasks_not_of_runs() -> None:
    small = TaskSample("small", ["accuracy"], runs({"plain": 0, "guided": 0.6}, seeds=5))
    large = TaskSample("large", ["accuracy"], runs({"plain": 0, "guided": 0.1}, seeds=2, key=3))
    each = [sample.difference("guided", "plain") for sample in (small, large)]
    found = average([small, large], "guided", "plain")
    assert found.mean == pytest.approx((each[0].mean + each[1].mean) / 2)
    assert found.draws_R == pytest.approx((each[0].draws_R + each[1].draws_R) / 2)
    assert (found.runs, found.seeds) == (7, 2)
    independent = math.sqrt(each[0].draws_R.var() + each[1].draws_R.var()) / 2
    assert found.draws_R.std() == pytest.approx(independent, rel=0.1)


def test_seeds_and_examples_both_count() -> None:
    """Satterthwaite's formula, written out: the variance between seeds, and of the mean gain over examples."""
    made = runs({"plain": 0, "guided": 0.1}, examples=120, seeds=4, spread=0.15)
    found = TaskSample("task", ["accuracy"], made, resamples=20_000).difference("guided", "plain")
    right = {run: (one["dev"].predictions_N == one["dev"].labels_N).astype(float) for run, one in made.items()}
    gains_SN = np.stack([right["guided", seed] - right["plain", seed] for seed in range(4)])
    parts = np.array([gains_SN.mean(1).var(ddof=1) / 4, gains_SN.mean(0).var(ddof=1) / 120])
    assert (parts / parts.sum()).min() > 0.15
    freedom = parts.sum() ** 2 / (parts**2 / [3, 119]).sum()
    assert found.p == pytest.approx(2 * scipy.stats.t.sf(abs(gains_SN.mean()) / parts.sum() ** 0.5, freedom), rel=0.05)


def test_over_two_tasks_p_is_welchs() -> None:
    """Their mean is 0 where one's is the other's opposite; all variance is between seeds, as unlike as they may be."""
    gains = (0, 1, 1, 0, 1), (1, 0, 0)
    tasks = [TaskSample(f"task {len(each)}", ["accuracy"], by_seed(each)) for each in gains]
    expected = scipy.stats.ttest_ind(gains[0], [-gain for gain in gains[1]], equal_var=False)
    assert average(tasks, "guided", "plain").p == pytest.approx(expected.pvalue)


def test_over_tasks_examples_count_too() -> None:
    """With one seed each, p is that of the mean of two means over examples."""
    tasks, gains = [], []
    for name, key in (("one", 0), ("other", 5)):
        made = runs({"plain": 0, "guided": 0.05}, examples=300, seeds=1, key=key)
        tasks.append(TaskSample(name, ["accuracy"], made, resamples=20_000))
        right = {run: (one["dev"].predictions_N == one["dev"].labels_N).astype(float) for run, one in made.items()}
        gains.append(right["guided", 0] - right["plain", 0])
    expected = scipy.stats.ttest_ind(gains[0], -gains[1], equal_var=False)
    assert average(tasks, "guided", "plain").p == pytest.approx(expected.pvalue, abs=0.01)
    assert 0.001 < expected.pvalue < 0.9


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@settings(deadline=None)
@given(arrays(float, st.integers(1, 8), elements=st.floats(0, 1)))
def test_holm_keeps_order_and_never_lowers(p_values: np.ndarray) -> None:
    adjusted = np.array(holm(list(p_values)))
    assert ((adjusted >= p_values) & (adjusted <= 1)).all()
    assert (np.diff(adjusted[np.argsort(p_values, kind="stable")]) >= 0).all()
    assert adjusted.min() == pytest.approx(min(1.0, len(p_values) * p_values.min()))


@pytest.mark.parametrize(
    ("low", "high", "p", "seeds", "expected"),
    [
        (0.1, 0.3, 0.01, 3, "better"),
        (0.1, 0.3, 0.06, 3, ""),  # the test says no
        (-0.1, 0.3, 0.01, 3, ""),  # other seeds might say no
        (0.1, 0.3, 0.01, 2, ""),  # and were hardly asked
        (-0.3, -0.1, 0.9, 1, "worse"),  # whatever speaks against the method counts
        (-0.3, 0.1, 0.01, 3, ""),
    ],
)
def test_what_is_said_of_a_difference(low: float, high: float, p: float, seeds: int, expected: str) -> None:
    found = Difference(mean=0, low=low, high=high, p=p, runs=3, seeds=seeds, draws_R=np.zeros(1))
    assert verdict(found, p) == expected
    assert verdict(found, 0.06) == (expected if expected != "better" else "")  # corrected, it says no
    assert is_above(found) == (low > 0 and p < 0.05 and seeds > 2)
