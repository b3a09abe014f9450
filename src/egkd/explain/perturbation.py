"""Perturbation-based explanations: what the model says once units are taken away. The frame, and leave-one-out.

Shapes: B batch, T tokens, D width of the embedding output, U units, C classes, P perturbed copies, N players: the
visible units of one example.

Each text is a *game*: a coalition is a set of units that stay, its value is the log odds of the target without the
others. A method only says, for one text at a time, which coalitions it wants valued next and what it makes of the
answers; the frame plays all texts of a batch at once and packs their coalitions into full forward passes. A block of
coalitions is forgotten when the next one is asked for, so memory does not grow with the number of samples.
"""

from abc import abstractmethod
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass as settings
from torch import Tensor

from egkd.explain.base import Explainer, Family, Request, UnitScores, cut_to, length_batches, predicted, take
from egkd.models import log_odds, observe, unwrapped
from egkd.text import Operator, perturb, pool_units

BLOCK = 256  # coalitions of one text asked for at a time: enough to be packed well, little enough to hold
Floats = NDArray[np.float64]
Masks = NDArray[np.bool_]

# Encoders that know where a token stands from its embedding alone: for them a token hidden from attention may as well
# be left out, which halves the work of a random coalition.
_POSITION_IN_EMBEDDING = frozenset({"albert", "bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"})


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a method makes of one game."""

    scores_N: Floats
    error_N: Floats | None = None
    diagnostics: Mapping[str, float] = field(default_factory=dict)


Play = Generator[Masks, Floats, Estimate]
"""Yields coalitions keep_PN (at most about `BLOCK`), is sent their values_P, returns an estimate."""


class PerturbationExplainer(Explainer):
    """An explainer that values coalitions of units."""

    family: ClassVar[Family] = "perturbation"

    operator: Operator

    @abstractmethod
    def play(self, n_players: int, full: float, rng: np.random.Generator) -> Play:
        """One text with `n_players` >= 1 visible units, whose unperturbed value is `full`."""

    def score(self, request: Request) -> UnitScores:
        with torch.inference_mode():
            game = Game(request, self.operator)
            plays = {
                row: self.play(int(game.visible_BU[row].sum()), game.full_B[row], np.random.default_rng(seed))
                for row, seed in enumerate(request.seeds)
                if game.visible_BU[row].any()
            }
            estimates = _play_together(plays, game)
        return _collect(estimates, game, self.samples)


class Game:
    """The value of coalitions of a batch's units, under one operator."""

    def __init__(self, request: Request, operator: Operator) -> None:
        self.request, self.operator, batch = request, operator, request.batch
        config = getattr(unwrapped(request.model), "config", None)
        self.drops = operator == "attention" and getattr(config, "model_type", None) in _POSITION_IN_EMBEDDING
        seen = observe(request.model, batch, keep=("embeddings",) if self.drops else ())
        self.logits_BC, self.embeddings_BTD = seen.logits_BC, seen.embeddings_BTD
        self.target_B = predicted(seen.logits_BC, request.target_B)
        self.full_B = log_odds(seen.logits_BC.float(), self.target_B).tolist()
        unit_ids_BT = batch["unit_ids"]
        self.visible_BU = request.visible_BU.cpu().numpy()
        ones_BT = torch.ones(unit_ids_BT.shape, device=unit_ids_BT.device)
        self.tokens_BU = pool_units(ones_BT, unit_ids_BT, request.n_units).long()
        self.length_B = batch["attention_mask"].sum(1)
        places_BT = torch.arange(unit_ids_BT.shape[1], device=unit_ids_BT.device).expand(unit_ids_BT.shape)
        self.batch = {**batch, "position_ids": places_BT} if self.drops else batch

    def values(self, asked: Mapping[int, Masks]) -> dict[int, Floats]:
        """Values [P] of the coalitions keep_PN of each of these examples; what is asked twice is computed once."""
        row_P = np.repeat(list(asked), [len(keep_PN) for keep_PN in asked.values()])
        keep_PU = np.ones((len(row_P), self.visible_BU.shape[1]), dtype=bool)
        for row, keep_PN in asked.items():
            keep_PU[np.ix_(row_P == row, self.visible_BU[row])] = keep_PN
        bits = np.concatenate([row_P[:, None].astype(np.int32).view(np.uint8), np.packbits(keep_PU, axis=1)], axis=1)
        _, first_Q, back_P = np.unique(bits, axis=0, return_index=True, return_inverse=True)
        device = self.logits_BC.device
        rows_Q, keep_QU = torch.from_numpy(row_P[first_Q]).to(device), torch.from_numpy(keep_PU[first_Q]).to(device)
        values_P = self._packed(rows_Q, keep_QU)[back_P.ravel()]
        return {row: values_P[row_P == row] for row in asked}

    def _packed(self, row_P: Tensor, keep_PU: Tensor) -> Floats:
        """Values of coalitions, longest first, in passes as full as the token budget allows."""
        length_P = self.length_B[row_P]
        if self.drops or self.operator in ("delete", "gather"):
            length_P = length_P - (self.tokens_BU[row_P] * ~keep_PU).sum(1)
        lengths = length_P.tolist()
        values_P = torch.empty(len(row_P), device=row_P.device)
        for part in length_batches(lengths, self.request.token_budget):
            part_P = torch.tensor(part, device=row_P.device)
            logits_PC = self._logits(row_P[part_P], keep_PU[part_P], lengths[part[0]])
            values_P[part_P] = log_odds(logits_PC.float(), self.target_B[row_P[part_P]])
        return values_P.cpu().double().numpy()

    def _logits(self, row_P: Tensor, keep_PU: Tensor, longest: int) -> Tensor:
        operator = "delete" if self.drops else self.operator
        copies = perturb(take(self.batch, row_P), keep_PU, operator, self.request.tokenizer)
        if self.drops:  # the embeddings of the tokens that stay, each with its old place in it
            assert self.embeddings_BTD is not None
            places_PT = copies.pop("position_ids")
            kept_PTD = self.embeddings_BTD[row_P[:, None], places_PT]
        else:
            kept_PTD = None
            copies = cut_to(copies, max(1, longest))  # of a text without a word a token remains
        return observe(self.request.model, copies, replace_BTD=kept_PTD).logits_BC


def _play_together(plays: Mapping[int, Play], game: Game) -> dict[int, Estimate]:
    """All games of a batch, side by side, until each has its estimate."""
    estimates: dict[int, Estimate] = {}
    answers: dict[int, Any] = dict.fromkeys(plays)  # None starts a play
    while answers:
        asked = {}
        for row, values_P in answers.items():
            try:
                asked[row] = plays[row].send(values_P)
            except StopIteration as end:
                estimates[row] = end.value
        answers = dict(game.values(asked)) if asked else {}
    return estimates


def _collect(estimates: Mapping[int, Estimate], game: Game, samples: bool) -> UnitScores:
    device = game.logits_BC.device
    scores_BU, error_BU = np.zeros(game.visible_BU.shape), np.zeros(game.visible_BU.shape)
    for row, estimate in estimates.items():
        scores_BU[row, game.visible_BU[row]] = estimate.scores_N
        error_BU[row, game.visible_BU[row]] = 0.0 if estimate.error_N is None else estimate.error_N
    names = {name for estimate in estimates.values() for name in estimate.diagnostics}
    found = [estimates[row].diagnostics if row in estimates else {} for row in range(len(scores_BU))]
    return UnitScores(
        scores_BU=torch.from_numpy(scores_BU).float().to(device),
        visible_BU=torch.from_numpy(game.visible_BU).to(device),
        target_B=game.target_B.clone(),  # a copy made outside inference mode may be used in a graph
        logits_BC=game.logits_BC.clone(),
        error_BU=torch.from_numpy(error_BU).float().to(device) if samples else None,
        diagnostics={name: torch.tensor([row.get(name, np.nan) for row in found], device=device) for name in sorted(names)},
    )


@settings(frozen=True, kw_only=True)
class Occlusion(PerturbationExplainer):
    """Leave one out: s_u = f(x) - f(x without u). What is said twice in a text can hide behind its double; Shapley
    values share such merit out."""

    name: ClassVar[str] = "occlusion"
    passes: ClassVar[str] = "(U + 1) F"
    source: ClassVar[str] = "Li et al. 2016, arXiv:1612.08220"

    operator: Operator = "mask"
    """What takes a unit away: "mask" (mask token), "delete", "gather" (so too, positions stay), or "attention" (mask of 0)."""

    def play(self, n_players: int, full: float, rng: np.random.Generator) -> Play:
        values_N = yield ~np.eye(n_players, dtype=bool)
        return Estimate(scores_N=full - values_N)
