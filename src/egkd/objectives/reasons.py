"""Reasons for free: a head beside the student learns the teacher's word scores, so that answers come with their reasons.

Shapes: B batch, U units, K views: one per explained class.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from datasets import Dataset
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from egkd.explain import EXPLAINERS, ExactShapley, explainer_from_name
from egkd.explain.amortised import REASONS, WordHead
from egkd.explain.base import Request, example_seed, suitable_budget
from egkd.models import Need, Seen, frozen, observe
from egkd.objectives.base import Lesson, Moment, Objective, Progress, Taught, Teacher, cut
from egkd.objectives.gradient import Distance, scores_distance
from egkd.text import Batch, visible_units, width


class Reasons(Objective):
    """A head on the student's last hidden states learns the teacher's word scores, by whatever explainer made them.

    The head stays with the finished student, which then tells its answer and word scores in the same pass. Cost: the explainer
    on every text for the teacher, once; next to nothing for the student. Unlike the guides it asks nothing of how the student
    comes to its answer: with `detach`, nothing at all.

    Source: a linear head on BERT regressed on Shapley values, Yang et al. 2023 ("Efficient Shapley Values Estimation by
    Amortization for Text Classification"); the idea is FastSHAP's (Jethani et al. 2022). Theirs explain a model that is
    finished; ours is trained along with it.
    """

    name: ClassVar[str] = REASONS
    needs: ClassVar[tuple[Need, ...]] = ("hidden_states",)
    taught_settings: ClassVar[tuple[str, ...]] = ("explainer", "options", "classes", "seed")
    keeps_head: ClassVar[bool] = True

    weight: float = Field(default=1.0, ge=0)
    """Factor of this objective's loss in the sum."""
    explainer: str = "occlusion"
    """What makes the teacher's scores: an explainer by name, signed, and none that has to be fitted."""
    options: dict[str, Any] = Field(default={}, validate_default=True)
    """Settings of that explainer."""
    classes: Literal["predicted", "all"] = "predicted"
    """What is explained: the class the teacher predicts, or every one of several (as many times the teacher's cost), so that
    the head also knows what speaks for classes that are not predicted."""
    distance: Distance = "mse"
    """How the head's scores are compared with the teacher's, see `scores_distance`."""
    detach: bool = False
    """Whether the head only reads the student: then it does not change what the student learns."""
    seed: int = 0
    """Of explainers that draw."""

    @field_validator("explainer")
    @classmethod
    def _unfitted(cls, name: str) -> str:
        if name == REASONS or getattr(EXPLAINERS.get(name), "kind", None) is not None:
            raise ValueError(
                f"{name!r} is learnt itself; use one that needs no fitting, like 'occlusion' or 'shapley-sampling'"
            )
        explainer_from_name(name)
        return name

    @field_validator("options")
    @classmethod
    def _resolved(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """With every default in it: lessons are known by their settings."""
        if "explainer" not in info.data:
            return options
        explainer = explainer_from_name(info.data["explainer"], options)
        if not explainer.signed:
            raise ValueError(
                f"{explainer.name!r} does not tell for from against, which a head is to learn; use signed scores, like those "
                "of 'occlusion', or of 'integrated-gradients' with the reduction 'sum'"
            )
        return explainer.settings()

    def prepare(self, teacher: Teacher, dataset: Dataset, folder: Path, progress: Progress | None = None) -> None:
        """Nothing. Raises ValueError for a text that the explainer would refuse after hours."""
        explainer = explainer_from_name(self.explainer, self.options)
        if isinstance(explainer, ExactShapley):
            explainer.check_size(max(dataset["n_units"], default=0))

    def teach(self, teacher: Teacher, batch: Batch, seen: Seen) -> Taught:
        """The scores [K, U], of length 1 so that float16 holds them, the length they had, and the class they are for."""
        explainer = explainer_from_name(self.explainer, self.options)
        rows = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
        seeds = [example_seed(self.seed, {"input_ids": ids_T[real_T].tolist()}) for ids_T, real_T in rows]
        target_B, n_classes = seen.logits_BC.argmax(1), seen.logits_BC.shape[1]
        targets = [target_B]
        if self.classes == "all" and n_classes > 2:
            targets = [torch.full_like(target_B, each) for each in range(n_classes)]
        request = Request(
            model=teacher.model,
            tokenizer=teacher.tokenizer,
            batch=batch,
            seeds=seeds,
            token_budget=teacher.token_budget or suitable_budget(teacher.model),
        )
        scored = [explainer.score(replace(request, target_B=each_B)) for each_B in targets]
        scores_BKU = torch.stack([one.scores_BU for one in scored], dim=1)
        strength_B = scores_BKU.flatten(1).norm(dim=1)
        return {
            "scores": cut(scores_BKU / strength_B.clamp(min=1e-12)[:, None, None], batch),
            "strength": list(strength_B.cpu()),
            "visible": cut(scored[0].visible_BU, batch),
            "target": list(target_B.cpu()),
        }

    def head(self, student: nn.Module, lesson: Lesson) -> nn.Module:
        """A head for the student's width and classes."""
        config: Any = student.config
        return WordHead(hidden_width(student), config.num_labels)

    def learn(self, seen: Seen, copies: list[Seen], batch: Batch, lesson: Lesson, moment: Moment) -> Tensor:
        """`distance(head's scores, teacher's)` over the words that neither truncation cut off, the mean over the views."""
        assert isinstance(moment.head, WordHead)
        assert seen.hidden_states is not None
        hidden_BTD = seen.hidden_states[-1].detach() if self.detach else seen.hidden_states[-1]
        n_units = width(batch)  # fewer than the lesson is padded to, where the examples are a share of a batch
        both_BU = visible_units(batch["unit_ids"], n_units) & lesson["visible"][:, :n_units]
        taught = lesson["scores"][..., :n_units].unbind(1)
        targets = [lesson["target"].long()]
        if len(taught) > 1:
            targets = [torch.full_like(targets[0], each) for each in range(len(taught))]
        losses = [
            scores_distance(moment.head.words(hidden_BTD, batch, target_B), taught_BU, both_BU, self.distance)
            for target_B, taught_BU in zip(targets, taught, strict=True)
        ]
        return torch.stack(losses).mean(0)


def hidden_width(student: nn.Module) -> int:
    """Of its last hidden states, which no two kinds of settings call alike."""
    ids_BT = torch.zeros(1, 8, dtype=torch.long, device=next(student.parameters()).device)
    batch = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), "token_type_ids": ids_BT}
    with frozen(student), torch.no_grad():
        seen = observe(student, batch, keep=("hidden_states",))
    assert seen.hidden_states is not None
    return seen.hidden_states[-1].shape[-1]
