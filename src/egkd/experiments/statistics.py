"""How sure it is that one method is better than another.

Two things are random in a score: which examples the evaluation set holds, and the seed of the run. The interval of a difference
and its test take both into account; the teacher is given, and so are the tasks.

*Interval*: paired hierarchical bootstrap, 95 %, percentiles. Each resample draws examples with replacement, the same for both
methods and every seed, and seeds with replacement, the same for both methods; the task's metrics are computed anew on each.
Of S seeds S - 1 are drawn, which makes the variance between a few seeds unbiased (Rao & Wu 1988, J. Am. Stat. Assoc. 83); what
seeds do to single examples is counted with both, so the interval is rather too wide (Owen 2007, Ann. Appl. Stat. 1) as long as
examples, not seeds, make most of the variance. It never reaches beyond the seeds that were run: where they make all of it, it
covers the truth in at most 1 - 2^(1 - S) of cases, 75 % for 3 seeds and 94 % for 5.

*Test*: Student's t of the difference over its standard error, two-sided. On a task its variance is that of the mean over seeds,
s² / S, and that of the bootstrap over examples; over K tasks it is all of these over K². Degrees of freedom after Satterthwaite
(1946, Biometrics Bull. 2), so that few seeds that happen to agree prove little. A difference of nothing has p < 0.05 in at most
7.8 % of cases on a task with 3 seeds and 5.9 % with 5, where seeds make most of the variance, and in 3 to 5 % over three or six
tasks (normal seeds and examples, 100,000 draws of each mixture).

Shapes: R resamples, N examples, C classes, S seeds.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import t as student

from egkd.experiments.metrics import bootstrap, measured

RESAMPLES = 2000
LEVEL = 0.95
FEWEST_SEEDS = 3  # of which "better" can be said


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One run on one evaluation set."""

    labels_N: np.ndarray
    predictions_N: np.ndarray
    """Class ids, or numbers in regression."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """First method minus second, as fractions."""

    mean: float
    low: float
    high: float
    p: float
    runs: int
    """Pairs of runs that were compared."""
    seeds: int
    """On the task with fewest. With one, the interval says nothing about seeds there."""
    draws_R: np.ndarray
    """What the interval is made of."""
    variances: tuple["Variance", ...] = ()
    """What the test is made of."""


@dataclass(frozen=True, kw_only=True)
class Variance:
    """A part of the variance of a mean."""

    value: float
    freedom: int
    """Its degrees of freedom."""


Run = tuple[str, int]
"""Method and seed."""


class TaskSample:
    """All runs of one student on one task, resampled together so that every difference is paired.

    A task's score is the mean of its metrics over its evaluation sets. Raises ValueError where runs of one seed were evaluated
    on different examples.
    """

    def __init__(
        self,
        name: str,
        metrics: Sequence[str],
        runs: Mapping[Run, Mapping[str, Answers]],
        *,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> None:
        self.name, self.metrics, self.runs, self.resamples = name, tuple(metrics), runs, resamples
        self._seed = [seed, zlib.crc32(name.encode())]
        self._known: dict[tuple[str, str], Difference] = {}
        splits = next(iter(runs.values())).keys()
        for (method, seed), answers in runs.items():
            if answers.keys() != splits:
                raise ValueError(
                    f"{name}: {method} of seed {seed} was evaluated on {', '.join(answers)}, others on {', '.join(splits)}, "
                    f"so they cannot be compared; give them the same evaluation data"
                )
        self._groups = {split: _same_examples(runs, split) for split in splits}
        for groups in self._groups.values():
            self._check_pairs(groups)

    def _check_pairs(self, groups: Sequence[Sequence[Run]]) -> None:
        place: dict[int, tuple[int, str]] = {}
        for number, group in enumerate(groups):
            for method, seed in group:
                other, first = place.setdefault(seed, (number, method))
                if other != number:
                    raise ValueError(
                        f"{self.name}: {first} and {method} of seed {seed} were evaluated on different examples, "
                        f"so they cannot be compared; give them the same evaluation data"
                    )

    @cached_property
    def scores(self) -> dict[Run, float]:
        """The task's score of each run."""
        return self._mean_over_metrics(lambda metric, _, answers: measured(metric, *_columns(answers)))

    @cached_property
    def _draws(self) -> dict[Run, np.ndarray]:
        """The task's score [R] of each run on the resampled examples."""

        def compute(metric: str, key: list[int], answers: Sequence[Answers]) -> np.ndarray:
            return bootstrap(metric, *_columns(answers), self.resamples, [*key, 0])

        return self._mean_over_metrics(compute)

    def _mean_over_metrics(self, compute: Callable[[str, list[int], Sequence[Answers]], np.ndarray]) -> dict[Run, Any]:
        """Per run, the mean of `compute` over metrics and evaluation sets; runs on the same examples are one call's columns."""
        found: dict[Run, list[np.ndarray]] = {run: [] for run in self.runs}
        for place, (split, groups) in enumerate(self._groups.items()):
            for number, group in enumerate(groups):
                answers = [self.runs[run][split] for run in group]
                for metric in self.metrics:
                    values = compute(metric, [*self._seed, place, number], answers)
                    for run, column in zip(group, np.moveaxis(values, -1, 0), strict=True):
                        found[run].append(column)
        return {run: np.mean(values, axis=0) for run, values in found.items()}

    def seeds(self, *methods: str) -> list[int]:
        """Seeds that all these methods have."""
        each = [{seed for method, seed in self.runs if method == name} for name in methods]
        return sorted(set.intersection(*each))

    def difference(self, first: str, second: str) -> Difference:
        """First minus second over the seeds both have, at least one."""
        if (first, second) not in self._known:
            self._known[first, second] = self._difference(first, second)
        return self._known[first, second]

    def _difference(self, first: str, second: str) -> Difference:
        seeds = self.seeds(first, second)
        gains_S = np.array([self.scores[first, seed] - self.scores[second, seed] for seed in seeds])
        gains_RS = np.stack([self._draws[first, seed] - self._draws[second, seed] for seed in seeds], axis=1)
        draws_R = (gains_RS * _seed_weights(len(seeds), self.resamples, [*self._seed, 2])).sum(1)
        low, high = _interval(draws_R)
        mean, count = float(gains_S.mean()), len(seeds)
        examples = sum(len(self.runs[groups[0][0]][split].labels_N) for split, groups in self._groups.items())
        of_seeds = float(gains_S.var(ddof=1)) / count if count > 1 else 0.0
        variances = (
            Variance(value=of_seeds, freedom=max(count - 1, 1)),
            Variance(value=float(gains_RS.mean(1).var(ddof=1)), freedom=max(examples - 1, 1)),
        )
        return Difference(
            mean=mean,
            low=low,
            high=high,
            p=two_sided(mean, variances),
            runs=count,
            seeds=count,
            draws_R=draws_R,
            variances=variances,
        )


def average(samples: Sequence[TaskSample], first: str, second: str) -> Difference:
    """First minus second, averaged over tasks that have both methods; tasks and their resamples are independent."""
    each = [sample.difference(first, second) for sample in samples]
    draws_R = np.mean([one.draws_R for one in each], axis=0)
    low, high = _interval(draws_R)
    mean, square = float(np.mean([one.mean for one in each])), len(each) ** 2
    variances = tuple(Variance(value=part.value / square, freedom=part.freedom) for one in each for part in one.variances)
    return Difference(
        mean=mean,
        low=low,
        high=high,
        p=two_sided(mean, variances),
        runs=sum(one.runs for one in each),
        seeds=min(one.seeds for one in each),
        draws_R=draws_R,
        variances=variances,
    )


def two_sided(mean: float, variances: Sequence[Variance]) -> float:
    """p of a mean whose variance has these parts, against 0; 1 where it is no number."""
    values, freedoms = np.array([part.value for part in variances]), np.array([part.freedom for part in variances])
    least = 2.0 ** -min(int(freedoms.max()), 1000)  # of a sign test, if all examples say the same
    whole = values.sum()
    if not abs(mean) > 0 or not np.isfinite(whole):
        return 1.0
    if whole == 0:
        return least
    freedom = whole**2 / (values**2 / freedoms).sum()
    return float(max(least, 2 * student.sf(abs(mean) / np.sqrt(whole), freedom)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for as many comparisons: the i-th smallest of m times m - i + 1, never below the one before (Holm 1979)."""
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted


def verdict(difference: Difference, adjusted_p: float) -> str:
    """`better`, `worse`, or nothing where it is open.

    `better` takes at least three seeds on every task, an interval above 0 and an adjusted p below 0.05. `worse` takes an
    interval below 0 alone, uncorrected: to be strict there would favour the method.
    """
    if difference.high < 0:
        return "worse"
    return "better" if is_above(difference) and adjusted_p < 1 - LEVEL else ""


def is_above(difference: Difference) -> bool:
    """Whether the interval lies above 0 and p below 0.05, with at least three seeds on every task."""
    return difference.low > 0 and difference.p < 1 - LEVEL and difference.seeds >= FEWEST_SEEDS


def _same_examples(runs: Mapping[Run, Mapping[str, Answers]], split: str) -> list[list[Run]]:
    """Runs by what they were evaluated on, told by its labels: a limit draws other examples for every seed."""
    groups: dict[bytes, list[Run]] = {}
    for run, answers in runs.items():
        groups.setdefault(answers[split].labels_N.astype(float).tobytes(), []).append(run)
    return list(groups.values())


def _columns(answers: Sequence[Answers]) -> tuple[np.ndarray, np.ndarray]:
    return answers[0].labels_N, np.stack([one.predictions_N for one in answers], axis=1)


def _seed_weights(seeds: int, resamples: int, key: list[int]) -> np.ndarray:
    """Shares [R, S] of the seeds in each resample."""
    if seeds == 1:
        return np.ones((resamples, 1))
    return np.random.default_rng(key).multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=resamples) / (seeds - 1)


def _interval(draws_R: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
