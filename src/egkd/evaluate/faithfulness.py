"""How faithful explanations are to the model: what becomes of its answer once the units they point at are gone.

Shapes: B batch, U units, N players (the visible units of one example), P coalitions, S sets of players. f(x) is the
probability of the explained class, in regression the output itself; r_k are the k units with the highest scores, ties by
position.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from scipy.special import expit
from torch import nn
from transformers import PreTrainedTokenizerBase

from egkd.evaluate.ranking import BINS, Ranking, shuffled
from egkd.evaluate.scores import estimate
from egkd.evaluate.sensitivity import explain_nearby, relative_distance
from egkd.explain.base import (
    Explainer,
    Precision,
    Request,
    check_targets,
    example_seed,
    length_batches,
    score_dataset,
    suitable_budget,
)
from egkd.explain.perturbation import Floats, Game, Masks
from egkd.models import frozen
from egkd.text import Operator, collate

MEASURES: dict[str, Literal["higher", "lower"]] = {
    "comprehensiveness": "higher",
    "sufficiency": "lower",
    **{f"comprehensiveness@{percent}%": "higher" for percent in BINS},
    **{f"sufficiency@{percent}%": "lower" for percent in BINS},
    "ferret_comprehensiveness": "higher",
    "ferret_sufficiency": "lower",
    "area_over_curve": "higher",
    "tau_loo": "higher",
    "infidelity": "lower",
    "infidelity_scaled": "lower",
    "max_sensitivity": "lower",
}
"""What is measured, and whether higher or lower is more faithful."""


@settings(frozen=True, kw_only=True)
class Probes:
    """What explanations are probed with. Raises ValueError for settings that are none."""

    operator: Operator = "mask"
    """What takes units away: "mask" (mask token), "delete", or "attention" (attention mask 0)."""
    infidelity_samples: int = Field(default=64, ge=1)
    """Random sets of units for the infidelity."""
    sensitivity_samples: int = Field(default=10, ge=0)
    """Draws of the noise for the max-sensitivity; 0 leaves it out."""
    sensitivity_radius: float = Field(default=0.02, gt=0)
    """How far word vectors move, in units of their root mean square."""


PROBES = Probes()


def faithfulness(
    explained: Explainer | Sequence[NDArray[Any]],
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    *,
    targets: Sequence[int] | None = None,
    probes: Probes = PROBES,
    seed: int = 0,
    token_budget: int | None = None,
) -> dict[str, Any]:
    """Judge an explainer, or given scores (one float [U] per row, NaN where there is none), by `model` on encoded `rows`.

    Returns {"mean", "se", "n"} of every measure over `all` examples, and for the `floor`, where the same scores stand in
    random order; `n_skipped` examples have no visible unit with a score; `settings` says what was asked. A measure that
    cannot be had is NaN with n = 0. The explained class is the one `model` itself predicts, unless `targets` names others.
    Scores of another model, a teacher's, are judged in the same way.

    - comprehensiveness@k: f(x) - f(x without r_k); sufficiency@k: f(x) - f(r_k alone); those without @ are AOPC, the mean
      over ERASER's bins (DeYoung et al. 2020, arXiv:1911.03429), k = ceil(bin · units) with `BINS` 1, 5, 10, 20, 50 %.
    - ferret_*: the same as ferret computes it (Attanasio et al. 2023, arXiv:2208.01575): k = floor(bin · units) with bins
      10, 20, ... 100 %, only units with positive scores, equal rationales counted once, units always deleted. Not
      comparable with ERASER's: a text without a positive score has an empty rationale, and counts with comprehensiveness 0
      and sufficiency f(x) - f(nothing). ferret ranks tokens and splits the text anew; here units are ranked and tokens stay.
    - area_over_curve: mean over k = 0..U of f(x) - f(x without r_k) (Samek et al. 2017, arXiv:1509.06321, eq. 12).
    - tau_loo: Kendall's τ-b of the scores with the effects of leaving one unit out; NaN for fewer than 3 units.
    - infidelity: mean over random sets of units I of (Σ_I scores - (g(x) - g(x without I)))², where g is the log odds that
      explainers score (the output in regression); infidelity_scaled: with the scores times the factor that suits them
      best, for scores in any other unit (Yeh et al. 2019, arXiv:1901.09392, eq. 2 and section 4). The sizes of I are
      uniform in 1..U.
    - max_sensitivity: see `evaluate.sensitivity`; only where there is an explainer to be asked again.

    Cost per example: at most 3 U + 50 + infidelity_samples forward passes, and 1 + sensitivity_samples
    explanations. The same seed gives the same figures whatever the batch; no pass holds more than `token_budget` tokens (by
    default what suits the device), or one text.
    Raises ValueError for scores that are not of these rows' units, for targets the model does not have, and without rows.
    """
    own, floor = per_example(
        explained, model, tokenizer, rows, targets=targets, probes=probes, seed=seed, token_budget=token_budget
    )
    return {
        "all": {name: estimate(values).to_dict() for name, values in own.items()},
        "floor": {name: estimate(values).to_dict() for name, values in floor.items()},
        "n_skipped": int(np.isnan(own["comprehensiveness"]).sum()),
        "settings": {
            "method": {"method": explained.name, **explained.settings()} if isinstance(explained, Explainer) else None,
            "bins": list(BINS),
            **asdict(probes),
            "seed": seed,
        },
    }


def per_example(
    explained: Explainer | Sequence[NDArray[Any]],
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    *,
    targets: Sequence[int] | None = None,
    probes: Probes = PROBES,
    seed: int = 0,
    token_budget: int | None = None,
    precision: Precision = "float32",
    again: Explainer | None = None,
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Every measure of `faithfulness` for every row, NaN where it cannot be had: of the scores, and of the floor.

    `again` is the explainer that gave the scores for these `targets`, in this `precision`; it is asked again for the
    max-sensitivity.
    """
    if not len(rows):
        raise ValueError("found no examples; faithfulness needs at least one")
    token_budget = token_budget or suitable_budget(model)
    nearby: list[list[Floats]] = []
    if isinstance(explained, Explainer):
        scored = score_dataset(explained, model, tokenizer, rows, targets=targets, seed=seed, token_budget=token_budget)
        scores = [np.where(one.visible_U.numpy(), one.scores_U.double().numpy(), math.nan) for one in scored]
        targets, again = [one.target for one in scored], explained
    else:
        scores = _checked(explained, rows)
    if again is not None:
        if targets is None:
            raise ValueError("an explainer is to be asked again and no targets are given; give those the scores are for")
        nearby = explain_nearby(
            again,
            model,
            tokenizer,
            rows,
            targets,
            samples=probes.sensitivity_samples,
            radius=probes.sensitivity_radius,
            seed=seed,
            token_budget=token_budget,
            precision=precision,
        )
    check_targets(model, targets, len(rows))
    found: list[tuple[dict[str, float], dict[str, float]]] = [({}, {})] * len(rows)
    device = next(model.parameters()).device
    for indices in length_batches([len(row["input_ids"]) for row in rows], token_budget):
        chosen = [rows[index] for index in indices]
        batch = {name: value.to(device) for name, value in collate(chosen, tokenizer.pad_token_id or 0).items()}
        target_B = None if targets is None else torch.tensor([targets[index] for index in indices], device=device)
        with frozen(model), torch.inference_mode():
            request = Request(model=model, tokenizer=tokenizer, batch=batch, target_B=target_B, token_budget=token_budget)
            game = Game(request, probes.operator)
            ferret = Game(replace(request, target_B=game.target_B), "delete")
            cases = {}
            for row, index in enumerate(indices):
                visible_U = game.visible_BU[row, : len(scores[index])]
                if not np.isnan(scores[index][visible_U]).all():
                    around = [one[index][visible_U] for one in nearby]
                    rng = np.random.default_rng(example_seed(seed, rows[index]))
                    cases[row] = _Case.of(scores[index][visible_U], around, probes.infidelity_samples, rng)
            for row, both in _measure(cases, game, ferret).items():
                found[indices[row]] = both
    own, floor = ({name: np.array([one[part].get(name, math.nan) for one in found]) for name in MEASURES} for part in (0, 1))
    return own, floor


def _checked(scores: Sequence[NDArray[Any]], rows: Sequence[Mapping[str, Any]]) -> list[Floats]:
    if len(scores) != len(rows):
        raise ValueError(f"found scores of {len(scores)} examples for {len(rows)} rows; expected one array per row")
    arrays = [np.asarray(one, dtype=float) for one in scores]
    for index, (one, row) in enumerate(zip(arrays, rows, strict=True)):
        if one.shape != (row["n_units"],):
            raise ValueError(f"row {index} has {row['n_units']} units and scores of shape {one.shape}; expected one per unit")
        if np.isinf(one).any():
            raise ValueError(f"row {index} has an infinite score; give numbers, and NaN where there is no score")
    return arrays


@dataclass(frozen=True, kw_only=True)
class _Case:
    """One example: its scores, the same in random order, and the sets of players taken away for the infidelity."""

    own: Ranking
    mixed: Ranking
    gone_SN: Masks
    sensitivity: tuple[float, float]

    @staticmethod
    def of(scores_N: Floats, nearby: Sequence[Floats], n_samples: int, rng: np.random.Generator) -> "_Case":
        n, scored = len(scores_N), ~np.isnan(scores_N)
        mixed = Ranking(scores_N=shuffled(scores_N, scored, rng), tie_N=rng.permutation(n))
        place_SN = np.where(scored, rng.random((n_samples, n)), 2.0).argsort(1).argsort(1)
        gone_SN = place_SN < rng.integers(1, scored.sum() + 1, (n_samples, 1))
        apart = [relative_distance(one_N, scores_N) for one_N in nearby]
        floor = [relative_distance(shuffled(one_N, scored, rng), mixed.scores_N) for one_N in nearby]
        return _Case(
            own=Ranking(scores_N=scores_N),
            mixed=mixed,
            gone_SN=gone_SN,
            sensitivity=(max(apart, default=math.nan), max(floor, default=math.nan)),
        )

    def asked(self) -> list[Masks]:
        """The coalitions it takes: without one player each, without the sets, and those of both rankings."""
        alone = ~np.eye(len(self.own.scores_N), dtype=bool)
        return [alone, ~self.gone_SN, self.own.asked(), self.mixed.asked()]

    def asked_by_ferret(self) -> list[Masks]:
        return [self.own.asked_by_ferret(), self.mixed.asked_by_ferret()]


def _measure(cases: Mapping[int, _Case], game: Game, ferret: Game) -> dict[int, tuple[dict[str, float], dict[str, float]]]:
    """All measures of all examples of one batch, of the scores and of the floor."""
    asked = {row: case.asked() for row, case in cases.items()}
    deleted = {row: case.asked_by_ferret() for row, case in cases.items()}
    if not cases:
        return {}
    values = game.values({row: np.concatenate(parts) for row, parts in asked.items()})
    by_ferret = ferret.values({row: np.concatenate(parts) for row, parts in deleted.items()})
    regression = game.logits_BC.shape[1] == 1
    results = {}
    for row, case in cases.items():
        full = game.full_B[row]
        alone_N, sets_S, *ranked = _split(values[row], asked[row])
        both = []
        for part, (ranking, answers_P, deleted_P) in enumerate(
            zip((case.own, case.mixed), ranked, _split(by_ferret[row], deleted[row]), strict=True)
        ):
            outputs = (full, answers_P, deleted_P) if regression else (expit(full), expit(answers_P), expit(deleted_P))
            both.append(
                {
                    **ranking.removal(*outputs),
                    "tau_loo": ranking.tau(full - alone_N),
                    **ranking.infidelity(case.gone_SN, full - sets_S),
                    "max_sensitivity": case.sensitivity[part],
                }
            )
        results[row] = (both[0], both[1])
    return results


def _split(values_P: Floats, parts: Sequence[Masks]) -> list[Floats]:
    return np.split(values_P, np.cumsum([len(part) for part in parts])[:-1])
