"""Two published gradient methods as their authors' code computes them, so that like can be compared with like.

Shapes: B batch, T tokens (special ones included), D width of the embedding output, C classes, V views (what is explained).
Both divide by a count over the batch (see `Objective.counts`). Their losses of one example are scaled such that the mean over
the batch, of all processes together, is the published number; so it depends on who shares it, also with accumulated gradients.
"""

from collections.abc import Callable
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig

from egkd.models import Need, Seen, log_odds
from egkd.objectives.base import Lesson, Moment, Objective, Taught, Teacher, cut_tokens
from egkd.objectives.gradient import gradient_of
from egkd.objectives.predictions import known_labels, label_loss
from egkd.text import Batch

_DISTANCES: dict[str, Callable[..., Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth-l1": F.smooth_l1_loss}


class AttributionDistillation(Objective):
    """AD-KD's attribution loss: the same tokens weigh, in the loss of the gold label or of every class.

    For both models, f is the gold label's loss (up to two classes, and regression: the squared error) or, from three
    classes on, -log p_c of each class c in turn ("multi-view"). With e the output of the embedding layer:

        g = 1/m sum_{k=1..m} df/de at k/m e                integrated gradients from zero, right Riemann sum
        A_T,i = || topK_j |e_ij g_ij| ||_2, A_S,i = || e_i g_i ||_2         both then L2-normalised over the text
        loss = sum over views of sum_{batch, i} (A_T,i - A_S,i)² / #{A_T,i != 0 in the batch}

    Cost: `steps` B of the teacher per example and view, once; for the student as many passes backwards through backward
    passes at each step, and `steps` - 1 F. With more than one step all of a student's passes share their dropout, the
    authors' draw it anew.

    Source: Wu et al. 2023, arXiv:2305.10010, sec. 3, and loss.py of brucewsy/AD-KD. Its soft labels are `SoftLabels` with
    distance "cross-entropy" and scale "one"; the preset "ad-kd" puts them together.
    Relations: `GradientGuide` explains words instead of tokens, so tokenizers may differ, and does not read gold labels.
    With one step and two classes this one reads them in vain: they change the sign and the size of f's gradient, which
    norm and normalisation drop. That is why a row without a label can be learnt from too: there f is -log of the largest
    probability of whichever model is looked at, and in regression its output.
    """

    name: ClassVar[str] = "ad-kd"
    needs: ClassVar[tuple[Need, ...]] = ("embeddings",)
    same_tokens: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = True
    taught_settings: ClassVar[tuple[str, ...]] = ("steps", "top_dimensions")

    weight: float = Field(default=1.0, ge=0)
    """Factor of this objective's loss in the sum (beta)."""
    steps: int = Field(default=1, ge=1)
    """m of the integrated gradients; 1, input x gradient, is what the authors use."""
    top_dimensions: int | None = Field(default=None, ge=1)
    """K, the teacher's strongest dimensions that count for a token; all where there are no more."""
    distance: Literal["mse", "l1", "smooth-l1"] = "mse"
    """Between the normalised scores."""

    @property
    def differentiates_twice(self) -> bool:
        """Always."""
        return True

    def teach(self, teacher: Teacher, batch: Batch, seen: Seen) -> Taught:
        """The normalised scores [T, V]."""
        return {"scores": cut_tokens(self._scores(seen, batch, self.top_dimensions, twice=False), batch)}

    def counts(self, lesson: Lesson) -> Tensor:
        """The tokens that have a score of the teacher's, [B, V]."""
        return (lesson["scores"] != 0).sum(1)

    def learn(self, seen: Seen, copies: list[Seen], batch: Batch, lesson: Lesson, moment: Moment) -> Tensor:
        """Losses whose mean over the batch is that of the class docstring."""
        assert moment.count is not None
        scores_BTV = self._scores(seen, batch, None, twice=True)
        loss_BV = _DISTANCES[self.distance](scores_BTV, lesson["scores"], reduction="none").sum(1)
        return (loss_BV / moment.count).sum(1)

    def _scores(self, seen: Seen, batch: Batch, top: int | None, *, twice: bool) -> Tensor:
        """Every token's normalised score, [B, T, V]."""
        end_BTD = seen.embeddings_BTD
        assert end_BTD is not None
        assert seen.at is not None
        gradients: list[list[Tensor]] = []
        for step in range(1, self.steps + 1):
            point_BTD, logits_BC = end_BTD, seen.logits_BC
            if step < self.steps:
                point_BTD = step / self.steps * end_BTD
                logits_BC = seen.at(point_BTD)
            gradients.append([gradient_of(view_B, point_BTD, twice=twice) for view_B in self._views(logits_BC, batch)])
        scores = []
        for of_view in zip(*gradients, strict=True):
            attributions_BTD = torch.stack(of_view).mean(0).float() * end_BTD.float()
            if top is not None and top < attributions_BTD.shape[2]:
                attributions_BTD = attributions_BTD.abs().topk(top, dim=2).values
            scores.append(F.normalize(attributions_BTD.norm(dim=2), dim=1))
        return torch.stack(scores, dim=2) * batch["attention_mask"][:, :, None]

    def _views(self, logits_BC: Tensor, batch: Batch) -> list[Tensor]:
        """AD-KD's scalars, [B] each: the gold label's loss, or -log p of every class where there are more than two.

        With one step, classes' log odds in their place: their gradients differ by a factor of (1 - p), which the normalisation
        drops, and which underflows in half precision where a model is sure.
        """
        logits_BC = logits_BC.float()
        n_classes = logits_BC.shape[1]
        if n_classes <= 2 and "labels" not in batch:
            raise ValueError("ad-kd explains the loss of the gold label, the data has no labels; use gradient instead")
        if self.steps == 1:
            classes = range(n_classes) if n_classes > 2 else range(1)  # of two, either
            return [log_odds(logits_BC, logits_BC.argmax(1).fill_(each)) for each in classes]
        if n_classes > 2:
            return list((-logits_BC.log_softmax(1)).unbind(1))
        labels_B = batch["labels"]
        own_B = logits_BC[:, 0] if n_classes == 1 else -logits_BC.log_softmax(1).amax(1)
        return [torch.where(known_labels(labels_B), label_loss(logits_BC, labels_B), own_B)]


class GradientDistillation(Objective):
    """GKD's gradient loss: at every token the gradients of both models point the same way, whatever their lengths.

    With s = max_c p_c and G = ds/de at the output of the embedding layer:

        loss = sum_{batch, i} || G_T,i / |G_T,i| - G_S,i / |G_S,i| ||_2² / #{tokens of the batch with G_T,i != 0}

    Cost: 1 B of the teacher per example, once; for the student a backward pass through a backward pass. Lessons hold D
    numbers per token, so they are hundreds of times larger than other guides'.

    Source: Wang et al. 2022, arXiv:2211.01071, and loss.py, diff_signal.py of lancopku/GKD. They freeze the student's
    embeddings, copied from the teacher, and switch its dropout off; the preset "gkd" does so too.
    Relations: says nothing of how much a token weighs, which `AttributionDistillation` and `GradientGuide` match, and needs
    models of one width. Not for regression, where no probability is largest.
    """

    name: ClassVar[str] = "gkd"
    needs: ClassVar[tuple[Need, ...]] = ("embeddings",)
    same_tokens: ClassVar[bool] = True

    weight: float = Field(default=1.0, ge=0)
    """Factor of this objective's loss in the sum (beta)."""

    @property
    def differentiates_twice(self) -> bool:
        """Always."""
        return True

    def between(self, teacher: PreTrainedConfig, student: PreTrainedConfig) -> Self:
        """Itself, for classifiers whose embedding layers are of one width."""
        widths = [_embedding_width(config) for config in (teacher, student)]
        if None not in widths and widths[0] != widths[1]:
            raise ValueError(_unequal(*widths))
        if 1 in (teacher.num_labels, student.num_labels):
            raise ValueError("gkd explains the largest probability, regression has none; use gradient or ad-kd instead")
        return self

    def teach(self, teacher: Teacher, batch: Batch, seen: Seen) -> Taught:
        """The direction of every token's gradient [T, D]."""
        return {"directions": cut_tokens(_directions(seen, batch, twice=False), batch)}

    def counts(self, lesson: Lesson) -> Tensor:
        """The tokens that have a gradient of the teacher's, [B]."""
        return (lesson["directions"] != 0).any(2).sum(1)

    def learn(self, seen: Seen, copies: list[Seen], batch: Batch, lesson: Lesson, moment: Moment) -> Tensor:
        """Losses whose mean over the batch is that of the class docstring."""
        assert moment.count is not None
        taught_BTD, own_BTD = lesson["directions"], _directions(seen, batch, twice=True)
        if taught_BTD.shape[2] != own_BTD.shape[2]:
            raise ValueError(_unequal(taught_BTD.shape[2], own_BTD.shape[2]))
        return (own_BTD - taught_BTD).square().sum((1, 2)) / moment.count


def _directions(seen: Seen, batch: Batch, *, twice: bool) -> Tensor:
    """The gradient of the largest probability at every token, of length 1, [B, T, D]."""
    assert seen.embeddings_BTD is not None
    logits_BC = seen.logits_BC.float()
    sure_B = log_odds(logits_BC, logits_BC.argmax(1))  # its gradient is that of p times 1 / p(1 - p), which may underflow
    gradient_BTD = gradient_of(sure_B, seen.embeddings_BTD, twice=twice).float()
    return F.normalize(gradient_BTD, dim=2) * batch["attention_mask"][:, :, None]


def _embedding_width(config: PreTrainedConfig) -> int | None:
    """The width of the embedding layer's output, where a config tells."""
    return getattr(config, "embedding_size", None) or getattr(config, "hidden_size", None)


def _unequal(teacher: int | None, student: int | None) -> str:
    return (
        f"gkd compares gradients as vectors, the teacher's are of {teacher} dimensions and the student's of {student}; "
        "use gradient or ad-kd, which compare scores"
    )
