"""Figures in words: how numbers are written, what measures are called and what they mean."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from egkd.report.run import Answer, Estimate

NONE = "–"
SPACE = "\u00a0"  # a number stays beside its unit


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How a measure is presented."""

    label: str
    meaning: str
    percent: bool = False


MEASURES = {
    "accuracy": Measure(label="accuracy", percent=True, meaning="Share of examples whose predicted label is the gold label."),
    "f1": Measure(
        label="F1",
        percent=True,
        meaning="Harmonic mean of precision and recall of the positive class.",
    ),
    "matthews_correlation": Measure(
        label="Matthews correlation",
        meaning="Correlation of predicted and gold labels; 0 is chance, 1 is perfect, however uneven the classes are.",
    ),
    "pearson": Measure(label="Pearson correlation", meaning="Linear correlation of predicted and gold scores."),
    "spearmanr": Measure(label="Spearman correlation", meaning="Correlation of the ranks of predicted and gold scores."),
    "agreement": Measure(
        label="same answer",
        percent=True,
        meaning="Share of examples on which the student predicts the teacher’s label, right or wrong.",
    ),
    "kl": Measure(
        label="KL divergence",
        meaning="Kullback–Leibler divergence of the student’s probabilities from the teacher’s, in nats; 0 means equal.",
    ),
    "spearman": Measure(
        label="rank correlation",
        meaning="The words of each example are ranked by their score, once by the teacher’s scores and once by the student’s; "
        "this is Spearman’s correlation of the two rankings, averaged over examples. 1 is the same order, 0 no relation, "
        "−1 the reverse.",
    ),
    "comprehensiveness": Measure(
        label="comprehensiveness",
        meaning="How much probability the answer loses when the words scored highest are masked, averaged over the top 1, 5, "
        "10, 20 and 50 %. Higher is more faithful to the model; compare it with scores in random order.",
    ),
    "sufficiency": Measure(
        label="sufficiency",
        meaning="How much probability the answer loses when only those words are left. Lower is more faithful.",
    ),
    "top20": Measure(
        label="top 20 % overlap",
        percent=True,
        meaning="Of the fifth of the words the teacher scores highest, the share that is also in the student’s highest fifth.",
    ),
}

EXPLAINERS = {
    "input-x-gradient": Measure(
        label="input × gradient",
        meaning="How the output reacts to a small change of a word’s embedding, times that embedding, summed: above zero where "
        "the word speaks for the teacher’s answer.",
    ),
    "input-x-gradient-norm": Measure(
        label="input × gradient norm",
        meaning="The length of the same product: how much a word matters, without saying for which answer.",
    ),
    "occlusion": Measure(
        label="occlusion", meaning="How much the teacher’s answer loses when the word is taken out of the text."
    ),
    "integrated-gradients": Measure(
        label="integrated gradients",
        meaning="What the word adds to the teacher’s answer on the way from a text of mask tokens to this one. No guide "
        "teaches it by default.",
    ),
}

GROUPS = {
    "all": "",
    "same_class": "same answer",
    "floor": "floor",
    "ceiling": "ceiling",
    "ceiling_same_class": "ceiling, same answer",
}


def measure(name: str) -> Measure:
    """The presentation of a measure; one that is not known goes by its own name."""
    return MEASURES.get(name) or Measure(label=name.replace("_", " "), meaning="")


def explainer(name: str) -> str:
    """What an explainer is called."""
    return EXPLAINERS[name].label if name in EXPLAINERS else name.replace("-", " ").replace("_", " ")


def finite(value: float | None) -> bool:
    """Whether there is a value, and it is a number that can be drawn and reckoned with."""
    return value is not None and math.isfinite(value)


def number(value: float | None, digits: int = 3) -> str:
    """`0.612`; `–` for nothing, `NaN` and `∞` for what a diverged run leaves behind."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def percent(value: float | None, digits: int = 1) -> str:
    """0.932 -> `93.2 %`."""
    return f"{number(100 * value, digits)}{SPACE}%" if value is not None and math.isfinite(value) else number(value)


def share(value: float) -> str:
    """A ratio, in as many digits as it deserves: `26 %`, `1.3 %`."""
    return percent(value, 0 if value >= 0.1 else 1)


def written(name: str, value: float | None) -> str:
    """A value of measure `name`."""
    return percent(value) if measure(name).percent else number(value)


def margin(name: str, estimate: Estimate) -> str:
    """`± 0.9` beside an estimate: its standard error, in the unit of the value."""
    if estimate.mean is None or estimate.se is None:
        return ""
    return f"±{SPACE}{number(100 * estimate.se, 1) if measure(name).percent else number(estimate.se)}"


def magnitude(value: float | None, units: Sequence[str]) -> str:
    """17389698 -> `17.4 M`: three digits and the thousands they stand for."""
    if value is None or not math.isfinite(value):
        return number(value)
    power = 0
    while power < len(units) - 1 and round(value, 1) >= 1000:
        value, power = value / 1000, power + 1
    return f"{value:.{0 if power == 0 or value >= 99.95 else 1}f}{SPACE}{units[power]}".strip()


def count(value: float | None) -> str:
    """A number of parameters."""
    return magnitude(value, ("", "k", "M", "G"))


def size(value: float | None) -> str:
    """A size on disk."""
    return magnitude(value, ("B", "kB", "MB", "GB"))


def duration(seconds: float | None) -> str:
    """`42 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds is None or not math.isfinite(seconds):
        return number(seconds)
    if seconds < 9.95:
        return f"{seconds:.1f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest}{SPACE}s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours}{SPACE}h {minutes_left}{SPACE}min" if hours else f"{minutes}{SPACE}min {rest}{SPACE}s"


def milliseconds(value: float | None) -> str:
    """A time per example."""
    return number(value, 1 if value is not None and value >= 10 else 2)


def answer(value: Answer) -> str:
    """A label or a score."""
    return value if isinstance(value, str) else number(value, 2)


def listed(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)
