"""Feature selection as an objective: the few words that suffice for the teacher must suffice for the student.

Shapes: B batch, U units, C classes.
"""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from egkd.explain.amortised import WordHead
from egkd.explain.fitting import fit_selector
from egkd.explain.selectors import Selector, SelectorSettings
from egkd.models import Need, Seen, log_odds, observe
from egkd.objectives.base import Lesson, Moment, Objective, Progress, Taught, Teacher, cut
from egkd.objectives.perturbation import Distance, outputs_distance, teacher_scale
from egkd.objectives.reasons import hidden_width
from egkd.objectives.schedule import Schedule
from egkd.text import Batch, Operator, perturb, visible_units, width


class SelectionGuide(Objective):
    """The student matches the teacher on its rationale, and if asked on the text without it.

    A selector, trained once on the frozen teacher, picks the `rate` of the words that suffice for the teacher's
    prediction: the rationale. From it alone the student must say what the teacher says (sufficiency). With `complement`
    it must also say what the teacher says of the rest, which is little or the contrary (comprehensiveness). With `token_head`
    a head on its last hidden states must tell the rationale's words from the others. Cost: training the selector and three
    teacher passes once; each time an example is paid for one more student pass, with `complement` two, and next to nothing
    for the head.

    Source: rationales as AREC (Jiang et al. 2021) has them, few features that keep the prediction; amortised as in L2X
    (Chen et al. 2018) and DiffMask (De Cao et al. 2020). The losses are ours.
    """

    name: ClassVar[str] = "selection"
    taught_settings: ClassVar[tuple[str, ...]] = ("rate", "selector", "operator", "seed")

    weight: float = Field(default=1.0, ge=0)
    """Factor of this objective's loss in the sum."""
    schedule: Schedule = Schedule(every=4)
    """When it is paid for: at which steps, for which examples."""
    complement: float = Field(default=0.0, ge=0)
    """Factor of the text without its rationale (comprehensiveness); 0 leaves it out."""
    token_head: float = Field(default=0.0, ge=0)
    """Factor of telling which words are the rationale; 0 leaves it out."""
    rate: float = Field(default=0.3, gt=0, lt=1)
    """Share of the words that the rationale keeps."""
    selector: Literal["l2x", "hard-concrete", "diffmask"] = "l2x"
    """What holds the rationale small while the selector is trained, see `SelectorSettings`."""
    operator: Operator = "mask"
    """What leaving words out does, see `text.perturb`. The selector was trained with mask tokens."""
    distance: Distance = "log-odds"
    """How outputs are compared, see `outputs_distance`."""
    temperature: float = Field(default=2.0, gt=0)
    """Softens both predictions in `kl`."""
    seed: int = 0
    """Of the selector's training."""

    def prepare(
        self, teacher: Teacher, dataset: Dataset, folder: Path, progress: Progress | None = None
    ) -> tuple[Selector, float]:
        """The trained selector, kept in the lesson's folder, and the teacher's scale."""
        kept = folder / "selector"
        if (kept / "selector.json").exists():  # written last
            selector = Selector.load(kept)
        else:
            settings = SelectorSettings(kind=self.selector, rate=self.rate)
            with torch.enable_grad():
                selector = fit_selector(settings, teacher.model, teacher.tokenizer, dataset, seed=self.seed, progress=progress)
            selector.save(kept)
        return selector, teacher_scale(teacher, dataset)

    @property
    def needs(self) -> tuple[Need, ...]:  # type: ignore[override]
        """The head reads the last hidden states."""
        return ("hidden_states",) if self.token_head > 0 else ()

    @property
    def can_stand_in(self) -> bool:
        """A token head reads the text itself, too."""
        return self.token_head == 0

    def teach(self, teacher: Teacher, batch: Batch, seen: Seen) -> Taught:
        """The rationale and the other words the teacher saw (bool [U] each), what it says on either ([2, C]), its scale, and
        how far it is moved when the rationale goes (in scales).
        """
        selector, scale = teacher.prepared
        keep_BU = selector.select(teacher.model, teacher.tokenizer, batch)
        rest_BU = visible_units(batch["unit_ids"], width(batch)) & ~keep_BU
        part_BC, rest_BC = (
            observe(teacher.model, perturb(batch, words_BU, self.operator, teacher.tokenizer)).logits_BC.detach().float()
            for words_BU in (keep_BU, rest_BU)
        )
        plain_BC = seen.logits_BC.detach().float()
        target_B = plain_BC.argmax(1)
        return {
            "keep": cut(keep_BU, batch),
            "rest": cut(rest_BU, batch),
            "outputs": list(torch.stack([part_BC, rest_BC], dim=1).cpu()),
            "scale": [np.float32(scale)] * len(keep_BU),
            "strength": list(((log_odds(plain_BC, target_B) - log_odds(rest_BC, target_B)).abs() / scale).cpu()),
        }

    def head(self, student: nn.Module, lesson: Lesson) -> nn.Module | None:
        """One score for each word, where it is asked for."""
        return WordHead(hidden_width(student), 1) if self.token_head > 0 else None

    def copies(self, batch: Batch, lesson: Lesson, moment: Moment) -> list[Batch]:
        """The rationale alone, and the text without it."""
        parts = [lesson["keep"], lesson["rest"]] if self.complement > 0 else [lesson["keep"]]
        return [perturb(batch, part_BU, self.operator, moment.tokenizer) for part_BU in parts]

    def learn(self, seen: Seen, copies: list[Seen], batch: Batch, lesson: Lesson, moment: Moment) -> Tensor:
        """`distance(f_S(r), f_T(r)) + complement * distance(f_S(x without r), f_T(x without r)) + token_head * H(r, head)`."""
        parts = [
            outputs_distance(
                copy.logits_BC.float(),
                lesson["outputs"][:, part],
                self.distance,
                scale_B=lesson["scale"],
                temperature=self.temperature,
            )
            for part, copy in enumerate(copies)
        ]
        loss_B = parts[0] + self.complement * parts[1] if self.complement > 0 else parts[0]
        return loss_B + self.token_head * self._untold(seen, batch, lesson, moment) if self.token_head > 0 else loss_B

    def _untold(self, seen: Seen, batch: Batch, lesson: Lesson, moment: Moment) -> Tensor:
        """Cross-entropy of the head's scores and the rationale, the mean over the words that both models saw, float [B]."""
        assert isinstance(moment.head, WordHead)
        assert seen.hidden_states is not None
        keep_BU, rest_BU = (
            lesson[name][:, : width(batch)] for name in ("keep", "rest")
        )  # padded for more than a share of a batch
        scores_BU = moment.head.words(seen.hidden_states[-1], batch, keep_BU)  # it has no classes to choose from
        both_BU = (keep_BU | rest_BU) & visible_units(batch["unit_ids"], width(batch))
        entropy_BU = F.binary_cross_entropy_with_logits(scores_BU, keep_BU.float(), reduction="none")
        return (entropy_BU * both_BU).sum(1) / both_BU.sum(1).clamp(min=1)
