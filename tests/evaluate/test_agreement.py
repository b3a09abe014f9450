"""Agreement of explanations: by hand, beside SciPy, and by the laws each measure obeys."""

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cosine, jensenshannon
from scipy.stats import kendalltau, pearsonr, spearmanr

from egkd.evaluate.agreement import Tally, agreement, per_example

RANKS = ("spearman", "kendall", "top20", "rank_biased_overlap")
LOWEST = {"spearman": -1, "kendall": -1, "pearson": -1, "cosine": -1, "top20": 0, "rank_biased_overlap": 0, "jensen_shannon": 0}


def scores(size: int) -> st.SearchStrategy[np.ndarray]:
    """Different whole numbers: no ties, and exact under every transform below."""
    return arrays(np.float64, size, elements=st.integers(-50, 50).map(float), unique=True)


two_of_a_length = st.integers(3, 12).flatmap(lambda size: st.tuples(scores(size), scores(size)))


def of(first: list[float] | np.ndarray, second: list[float] | np.ndarray) -> dict[str, float]:
    values = per_example([np.array(first, float)], [np.array(second, float)])
    return {name: float(value[0]) for name, value in values.items()}


def test_like_scipy() -> None:
    random = np.random.default_rng(0)
    for size in (3, 7, 40):
        one, other = random.standard_normal(size).round(1), random.standard_normal(size).round(1)  # with ties
        found = of(one, other)
        assert found["spearman"] == pytest.approx(spearmanr(one, other).statistic)
        assert found["kendall"] == pytest.approx(kendalltau(one, other, variant="b").statistic)
        assert found["pearson"] == pytest.approx(pearsonr(one, other).statistic)
        assert found["cosine"] == pytest.approx(1 - cosine(one, other))
        assert found["jensen_shannon"] == pytest.approx(jensenshannon(abs(one), abs(other), base=2) ** 2)


def test_jensen_shannon_by_hand() -> None:
    # shares (1/2, 1/2, 0) and (0, 1/2, 1/2): half of each lies where the other has nothing
    assert of([2, -2, 0], [0, 1, 1])["jensen_shannon"] == pytest.approx(0.5)
    assert of([1, 0, 0], [0, 0, -3])["jensen_shannon"] == pytest.approx(1.0)


def test_top_overlap_takes_the_ceiling_of_a_fifth() -> None:
    one = [9, 8, 7, 6, 5, 4]  # k = ceil(1.2) = 2
    assert of(one, [9, 1, 8, 2, 3, 4])["top20"] == 0.5
    assert of(one, [8, 9, 1, 2, 3, 4])["top20"] == 1.0
    assert of(one[:5], [1, 9, 2, 3, 4])["top20"] == 0.0  # k = 1


def test_rank_biased_overlap_by_hand() -> None:
    # orders (0, 1, 2) and (1, 0, 2): overlap 0, 1, 1 at depths 1, 2, 3
    expected = (0.9 * 1 + 0.81 * 1) / (1 + 0.9 + 0.81)
    assert of([3, 2, 1], [2, 3, 1])["rank_biased_overlap"] == pytest.approx(expected)


def test_rank_biased_overlap_as_defined_with_sets() -> None:
    random = np.random.default_rng(1)
    one, other = random.permutation(30), random.permutation(30)
    order, other_order = np.argsort(-one), np.argsort(-other)
    overlap = [len(set(order[:d]) & set(other_order[:d])) / d for d in range(1, 31)]
    weights = [0.9 ** (d - 1) for d in range(1, 31)]
    assert of(one, other)["rank_biased_overlap"] == pytest.approx(np.dot(overlap, weights) / sum(weights))


def test_only_units_that_both_models_saw_count() -> None:
    one, other = [1, math.nan, 3, 2, 5, 9], [2, 7, 1, 3, 4, math.nan]
    assert of(one, other) == of([1, 3, 2, 5], [2, 1, 3, 4])


@pytest.mark.parametrize(
    ("one", "other"),
    [([1, 2], [1, 2]), ([1, 2, 3, math.nan], [1, 2, math.nan, 4]), ([5, 5, 5], [1, 2, 3]), ([1, 2, 3], [0, 0, 0]), ([], [])],
    ids=["two units", "two in common", "constant", "constant second", "no text"],
)
def test_what_has_no_order_is_skipped_and_counted(one: list[float], other: list[float]) -> None:
    assert all(math.isnan(value) for value in of(one, other).values())
    good = np.array([1.0, 2.0, 3.0])
    found = agreement([np.array(one, float), good], [np.array(other, float), good])
    assert found["n_skipped"] == 1
    assert {figure["n"] for figure in found["all"].values()} == {1}
    assert found["all"]["spearman"] == {"mean": pytest.approx(1.0), "se": None, "n": 1}


def test_explanations_of_different_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="example 0 has 3 and 4 scores"):
        per_example([np.zeros(3)], [np.zeros(4)])
    with pytest.raises(ValueError, match="found 1 and 2 explanations"):
        per_example([np.zeros(3)], [np.zeros(3), np.zeros(3)])


def test_same_class_looks_at_those_alone() -> None:
    up, down = np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])
    found = agreement([up, up, up], [up, down, up], same_class=np.array([True, False, True]))
    assert found["all"]["spearman"]["mean"] == pytest.approx(1 / 3)
    assert found["same_class"]["spearman"] == {"mean": pytest.approx(1.0), "se": pytest.approx(0.0), "n": 2}


def test_floor_and_ceiling() -> None:
    random = np.random.default_rng(2)
    first = [random.standard_normal(10) for _ in range(200)]
    again = [scores_U + 0.01 * random.standard_normal(10) for scores_U in first]
    found = agreement(first, first[::-1], ceiling=(first, again), seed=3)
    assert abs(found["floor"]["spearman"]["mean"]) < 4 * found["floor"]["spearman"]["se"]
    assert found["floor"]["top20"]["mean"] == pytest.approx(0.2, abs=4 * found["floor"]["top20"]["se"])  # k / n by chance
    assert found["ceiling"]["spearman"]["mean"] > 0.95
    assert found == agreement(first, first[::-1], ceiling=(first, again), seed=3)
    assert found["floor"] != agreement(first, first[::-1], seed=4)["floor"]


def test_the_floor_of_scores_without_a_sign_is_no_lower_than_chance() -> None:
    """Signed noise would make any two lists of positive numbers look alike."""
    random = np.random.default_rng(0)
    first, second = ([random.uniform(0.5, 1.5, 20) for _ in range(200)] for _ in range(2))
    found = agreement(first, second)
    for name in ("cosine", "jensen_shannon"):
        assert found["floor"][name]["mean"] == pytest.approx(found["all"][name]["mean"], abs=0.01)


def test_a_tally_of_parts_is_the_agreement_of_the_whole() -> None:
    random = np.random.default_rng(5)
    first, second = ([random.standard_normal(size) for size in range(1, 11)] for _ in range(2))
    same = random.random(10) < 0.5
    whole, tally = agreement(first, second, same_class=same, ceiling=(second, first), seed=7), Tally(7)
    for part in (slice(0, 4), slice(4, 5), slice(5, 10)):
        tally.add(first[part], second[part], same_class=same[part], ceiling=(second[part], first[part]))
    assert tally.figures() == whole


@given(two_of_a_length)
def test_symmetric_and_bounded(both: tuple[np.ndarray, np.ndarray]) -> None:
    found, back = of(*both), of(*both[::-1])
    for name, lowest in LOWEST.items():
        assert found[name] == pytest.approx(back[name], abs=1e-9)
        assert lowest - 1e-9 <= found[name] <= 1 + 1e-9


@given(two_of_a_length)
def test_an_explanation_agrees_with_itself(both: tuple[np.ndarray, np.ndarray]) -> None:
    found = of(both[0], both[0])
    assert found.pop("jensen_shannon") == pytest.approx(0, abs=1e-9)
    assert all(value == pytest.approx(1) for value in found.values())


@given(two_of_a_length)
def test_ranks_survive_monotone_transforms(both: tuple[np.ndarray, np.ndarray]) -> None:
    found, bent = of(*both), of(both[0] ** 3 + both[0], 2 * both[1] - 5)
    assert {name: bent[name] for name in RANKS} == pytest.approx({name: found[name] for name in RANKS})


@given(two_of_a_length, st.floats(1e-6, 1e6))
def test_no_measure_sees_the_scale(both: tuple[np.ndarray, np.ndarray], scale: float) -> None:
    found, scaled = of(*both), of(both[0] * scale, both[1])
    assert scaled == pytest.approx(found, abs=1e-6)


@given(two_of_a_length, st.randoms(use_true_random=False))
def test_the_order_of_units_does_not_matter(both: tuple[np.ndarray, np.ndarray], random: Random) -> None:
    order = list(range(len(both[0])))
    random.shuffle(order)
    assert of(both[0][order], both[1][order]) == pytest.approx(of(*both), abs=1e-9)


@settings(max_examples=25)
@given(st.lists(two_of_a_length, min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_examples_does_not_matter(rows: list[tuple[np.ndarray, np.ndarray]], random: Random) -> None:
    mixed = list(rows)
    random.shuffle(mixed)
    found, other = (agreement(*zip(*some, strict=True))["all"] for some in (rows, mixed))
    for name in LOWEST:
        assert other[name]["mean"] == pytest.approx(found[name]["mean"], abs=1e-9)
        assert other[name]["se"] == pytest.approx(found[name]["se"], abs=1e-9)
