"""What the reasons are worth that a student tells by itself: faithful to the student, like the teacher's, and at what cost.

Shapes: N examples.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from egkd.evaluate.agreement import agreement, visible
from egkd.evaluate.faithfulness import Probes, faithfulness
from egkd.evaluate.speed import latency
from egkd.explain.amortised import REASONS, OwnReasons
from egkd.explain.base import Scored, score_dataset
from egkd.explain.gradient import InputXGradient
from egkd.explain.perturbation import Occlusion
from egkd.predict import encode_dataset
from egkd.reasons import SelfExplaining
from egkd.text import MAX_LENGTH

JUDGED = 100  # examples: faithfulness asks the student dozens of times about each
MEASURES = ("comprehensiveness", "sufficiency")


def own_reasons(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    taught: Sequence[Scored],
    *,
    latency_repeats: int = 5,
    max_length: int = MAX_LENGTH,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Judge the head of a student on `rows`; `taught` are the teacher's scores of them by occlusion, for its own answer.

    Returns `agreement`: of the head's scores with the `student`'s own occlusion (for the student's answer) and with the
    `teacher`'s (for the teacher's), as `evaluate.agreement` gives it; `faithfulness`: comprehensiveness and sufficiency, by the
    student, of the head's scores, of its occlusion, its input x gradient, and of the head's in `random` order; `latency` of the
    plain student and with its reasons. Faithfulness is asked on the first 100 rows. Cost per judged row: about 9 F per word.
    """
    tell = progress or (lambda done, total: None)
    encoded = list(encode_dataset(rows, tokenizer, max_length))
    told = score_dataset(OwnReasons(), model, tokenizer, encoded, targets=[one.target for one in taught], seed=seed)
    found = {"teacher": agreement(visible(taught), visible(told), seed=seed)}
    operator: Literal["mask", "delete"] = "delete" if tokenizer.mask_token_id is None else "mask"
    explainers = {
        REASONS: OwnReasons(),
        "occlusion": Occlusion(operator=operator),
        "input-x-gradient": InputXGradient(reduction="sum"),
    }
    own = {name: score_dataset(each, model, tokenizer, encoded, seed=seed) for name, each in explainers.items()}
    found["student"] = agreement(visible(own["occlusion"]), visible(own[REASONS]), seed=seed)
    probes = Probes(operator=operator, infidelity_samples=1, sensitivity_samples=0)
    judged: dict[str, dict[str, Any]] = {}
    for done, (name, scored) in enumerate(own.items()):
        tell(done, len(own))
        some = scored[:JUDGED]
        figures = faithfulness(
            visible(some), model, tokenizer, encoded[:JUDGED], targets=[one.target for one in some], probes=probes, seed=seed
        )
        judged[name] = {measure: figures["all"][measure] for measure in MEASURES}
        if name == REASONS:
            floor = {measure: figures["floor"][measure] for measure in MEASURES}
    tell(len(own), len(own))
    texts = rows.select(range(min(64, len(rows))))
    speed = latency(
        {"plain": (model, tokenizer), REASONS: (SelfExplaining(model, tokenizer), tokenizer)},
        texts["text"],
        texts["text_pair"] if "text_pair" in texts.column_names else None,
        max_length=max_length,
        repeats=latency_repeats,
    )
    return {"agreement": found, "faithfulness": {**judged, "random": floor}, "latency": speed}
