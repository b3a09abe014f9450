"""Feature selection as an objective: the few words that suffice for the teacher must suffice for the student.

Shapes: B batch, U units, C classes.
"""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor

from egkd.explain.fitting import fit_selector
from egkd.explain.selectors import Selector, SelectorSettings
from egkd.models import Seen, observe
from egkd.objectives.base import Lesson, Moment, Objective, Progress, Taught, Teacher, cut
from egkd.objectives.perturbation import Distance, outputs_distance, teacher_scale
from egkd.text import Batch, Operator, perturb, visible_units, width


class SelectionGuide(Objective):
    """The student matches the teacher on its rationale, and if asked on the text without it.

    A selector, trained once on the frozen teacher, picks the `rate` of the words that suffice for the teacher's
    prediction: the rationale. From it alone the student must say what the teacher says (sufficiency). With `complement`
    it must also say what the teacher says of the rest, which is little or the contrary (comprehensiveness). Cost: training
    the selector and three teacher passes once, one more student pass at each step, two with `complement`.

    Source: rationales as AREC (Jiang et al. 2021) has them, few features that keep the prediction; amortised as in L2X
    (Chen et al. 2018) and DiffMask (De Cao et al. 2020). The losses are ours.
    """

    name: ClassVar[str] = "selection"
    taught_settings: ClassVar[tuple[str, ...]] = ("rate", "selector", "operator", "seed")

    weight: float = Field(default=1.0, ge=0)
    """Factor of this objective's loss in the sum."""
    complement: float = Field(default=0.0, ge=0)
    """Factor of the text without its rationale (comprehensiveness); 0 leaves it out."""
    rate: float = Field(default=0.3, gt=0, lt=1)
    """Share of the words that the rationale keeps."""
    selector: Literal["l2x", "hard-concrete", "diffmask"] = "l2x"
    """What holds the rationale small while the selector is trained, see `SelectorSettings`."""
    operator: Operator = "mask"
    """What leaving words out does, see `text.perturb`."""
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
        if kept.exists():
            selector = Selector.load(kept)
        else:
            settings = SelectorSettings(kind=self.selector, rate=self.rate)
            with torch.enable_grad():
                selector = fit_selector(settings, teacher.model, teacher.tokenizer, dataset, seed=self.seed, progress=progress)
            selector.save(kept)
        return selector, teacher_scale(teacher, dataset)

    def teach(self, teacher: Teacher, batch: Batch, seen: Seen) -> Taught:
        """The rationale (bool [U]), what the teacher says on it and without it ([2, C]), and its scale."""
        selector, scale = teacher.prepared
        keep_BU = selector.select(teacher.model, teacher.tokenizer, batch)
        outputs = [
            observe(teacher.model, perturb(batch, part_BU, self.operator, teacher.tokenizer)).logits_BC
            for part_BU in (keep_BU, visible_units(batch["unit_ids"], width(batch)) & ~keep_BU)
        ]
        taught: Taught = {"keep": cut(keep_BU, batch), "outputs": list(torch.stack(outputs, dim=1).detach().cpu())}
        return taught | {"scale": [np.float32(scale)] * len(keep_BU)}

    def copies(self, batch: Batch, lesson: Lesson, moment: Moment) -> list[Batch]:
        """The rationale alone, and the text without it."""
        parts = [lesson["keep"], ~lesson["keep"]] if self.complement > 0 else [lesson["keep"]]
        return [perturb(batch, part_BU, self.operator, moment.tokenizer) for part_BU in parts]

    def learn(self, seen: Seen, copies: list[Seen], batch: Batch, lesson: Lesson, moment: Moment) -> Tensor:
        """`distance(f_S(r), f_T(r)) + complement * distance(f_S(x without r), f_T(x without r))`."""
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
        return parts[0] + self.complement * parts[1] if len(parts) > 1 else parts[0]
