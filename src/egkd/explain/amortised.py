"""Explanations that come with the answer: a small head on a student's last hidden states, trained while it was distilled.

Shapes: B batch, T tokens, U units, D width of the last hidden states, H width of the head, K views: one per class, a single
one for two classes (each is the other's opposite) and in regression.
"""

import json
from pathlib import Path
from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from egkd.explain.base import Explainer, Family, Request, UnitScores, predicted
from egkd.heads import HEADS, without_heads
from egkd.models import observe, unwrapped
from egkd.text import Batch, pool_units, width

REASONS = "reasons"
FORMAT = 1  # of a head on disk
WIDTH = 64


class WordHead(nn.Module):
    """Scores of words from the last hidden states h: sum over the tokens t of a word of v_k · gelu(W norm(h_t) + b) + c_k."""

    def __init__(self, width: int, n_classes: int, inner: int = WIDTH) -> None:
        """For hidden states of this width and a model of so many classes (1 for regression)."""
        super().__init__()
        self.width, self.n_classes, self.inner = width, n_classes, inner
        self.read = nn.Linear(width, inner)
        self.value = nn.Linear(inner, n_views(n_classes))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Scores of the tokens, float [B, T, K]."""
        normed_BTD = F.layer_norm(hidden_BTD.float(), hidden_BTD.shape[-1:])
        return self.value(F.gelu(self.read(normed_BTD))).float()

    def words(self, hidden_BTD: Tensor, batch: Batch, target_B: Tensor) -> Tensor:
        """Scores of the words for the log odds of class `target_B`, float [B, U]; 0 where a word is not visible."""
        scores_BT = for_class(self(hidden_BTD), target_B, self.n_classes)
        return pool_units(scores_BT, batch["unit_ids"], width(batch))

    def save(self, folder: Path) -> None:
        """Write `reasons.safetensors` and `reasons.json` into `folder`, beside a model."""
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / f"{REASONS}.safetensors")
        told = {"format": FORMAT, "width": self.width, "n_classes": self.n_classes, "inner": self.inner}
        (folder / f"{REASONS}.json").write_text(json.dumps(told, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "WordHead":
        """The head saved in `folder`, on the CPU. Raises ValueError where there is none, or one that cannot be read."""
        missing = [name for name in (f"{REASONS}.json", f"{REASONS}.safetensors") if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"no head in {folder}: {missing[0]} is missing; distil a student with the objective 'reasons'")
        try:
            told = json.loads((folder / f"{REASONS}.json").read_text())
            if told.pop("format") != FORMAT:
                raise ValueError(f"the head in {folder} is of another format than {FORMAT}; distil the student again")
            head = cls(**told)
            head.load_state_dict(load_file(folder / f"{REASONS}.safetensors"))
        except (json.JSONDecodeError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"the head in {folder} cannot be read ({reason}); distil the student again") from None
        return head.eval()


def n_views(n_classes: int) -> int:
    """K: how many scores a token has."""
    return 1 if n_classes <= 2 else n_classes


def for_class(scores_BTK: Tensor, target_B: Tensor, n_classes: int) -> Tensor:
    """The scores for the log odds of class `target_B`, float [B, T]; of two classes, one is the other's opposite."""
    if n_classes == 1:
        return scores_BTK[..., 0]
    if n_classes == 2:
        return scores_BTK[..., 0] * (2 * target_B - 1)[:, None]
    return scores_BTK.gather(2, target_B[:, None, None].expand(-1, scores_BTK.shape[1], 1))[..., 0]


def head_of(model: nn.Module) -> WordHead | None:
    """The head that stands beside a model, if there is one."""
    heads = getattr(unwrapped(model), HEADS, None)
    return heads[REASONS] if isinstance(heads, nn.ModuleDict) and REASONS in heads else None  # type: ignore[return-value]


def with_head(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """The model that was loaded from `folder`, with the head that lies there, if one does.

    Raises ValueError for a head that cannot be read or is another model's.
    """
    folder = Path(folder).expanduser()
    if not (folder / f"{REASONS}.json").is_file():
        return model
    head = WordHead.load(folder)
    if head.n_classes != model.config.num_labels:
        raise ValueError(
            f"the head in {folder} is of a model with {head.n_classes} classes, that there has {model.config.num_labels}; "
            "distil the student again"
        )
    model.add_module(HEADS, nn.ModuleDict({REASONS: head.to(model.device)}))
    return model


def save_ordinary(model: PreTrainedModel, folder: Path) -> None:
    """An ordinary Hugging Face folder; a head that tells reasons lies beside the model in files of its own."""
    with without_heads(model):
        model.save_pretrained(folder)
    head = head_of(model)
    if head is not None:
        head.save(folder)


@dataclass(frozen=True, kw_only=True)
class OwnReasons(Explainer):
    """What the model says of its own answer, in the pass that gives it: the scores of a head that learnt a teacher's scores.

    Only for students distilled with the objective `reasons`. They stand for the teacher's explanations, as far as the student
    has learnt them; how faithful they are to the student itself is for `--judge` to say.
    """

    name: ClassVar[str] = REASONS
    family: ClassVar[Family] = "amortised"
    passes: ClassVar[str] = "1 F, which also gives the answer"
    source: ClassVar[str] = "Yang et al. 2023, arXiv:2305.19998; Jethani et al. 2022 (FastSHAP), arXiv:2107.07436"

    def score(self, request: Request) -> UnitScores:
        head = head_of(request.model)
        if head is None:
            raise ValueError("the model tells no reasons of its own; distil a student with --reasons, or use another method")
        with torch.no_grad():
            seen = observe(request.model, request.batch, keep=("hidden_states",))
            assert seen.hidden_states is not None
            target_B = predicted(seen.logits_BC, request.target_B)
            scores_BU = head.words(seen.hidden_states[-1], request.batch, target_B)
        return UnitScores(
            scores_BU=scores_BU,
            visible_BU=request.visible_BU,
            target_B=target_B,
            logits_BC=seen.logits_BC,
        )
