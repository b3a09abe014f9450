"""What is timed: our trainer and bare PyTorch loops on the same batches.

Shapes: B batch, T tokens, C classes.
"""

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from cost_setting import Setting, Strategy
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from egkd.checks import objectives_of, training_arguments
from egkd.dropout import set_dropout
from egkd.lessons import fingerprint_tokenizer
from egkd.models import double_backward, embedding_layer
from egkd.predict import encode_dataset
from egkd.students import build_student, load_classifier, load_tokenizer
from egkd.train import DistillationTrainer

Loop = Literal["cached logits", "live teacher", "AD-KD"]
LOOPS: tuple[Loop, ...] = ("cached logits", "live teacher", "AD-KD")
"""Bare loops: plain distillation from logits that are there already, with a teacher asked at each step as everybody does, and
AD-KD, whose code takes the gradients of both models at each step."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TEMPERATURE, LEARNING_RATE = 2.0, 1e-4


class Watch(TrainerCallback):
    """Seconds from the end of step `skip` to that of the last one, and the peak of memory from the first step on."""

    def __init__(self, skip: int, device: str) -> None:
        self.skip, self.device, self.started, self.seconds = skip, device, 0.0, math.nan

    def begin(self) -> None:
        """Forget how high memory has been."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            with suppress(OSError):  # Linux alone can forget; elsewhere loading a teacher may be the peak
                Path("/proc/self/clear_refs").write_text("5")

    def step(self, number: int) -> None:
        """So many steps are done."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        if number == self.skip:
            self.started = time.perf_counter()
        self.seconds = time.perf_counter() - self.started

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.begin()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step == self.skip or state.global_step == state.max_steps:  # no more waiting for a GPU than that
            self.step(state.global_step)


class SameBatches(DistillationTrainer):
    """The trainer, on batches drawn beforehand."""

    order: Sequence[int] = ()

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.order


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is trained on while time is taken: batches of a task, of which the first `skip` do not count."""

    setting: Setting
    drawn: int
    """Batches whose rows there are lessons of."""
    steps: int
    """Batches of those that are trained on."""
    skip: int
    longest: bool = False
    """Whether those are the longest, or any."""

    @cached_property
    def rows(self) -> Dataset:
        """The rows of all batches, encoded by the student's tokenizer, in the order of the data set."""
        return self._drawn[0]

    @cached_property
    def order(self) -> list[int]:
        """Places in `rows` of what is trained on, batch after batch."""
        batches, lengths = self._drawn[1], self.rows["length"]
        if self.longest:
            batches = sorted(batches, key=lambda batch: -max(lengths[place] for place in batch))
        return [place for batch in batches[: self.steps] for place in batch]

    @cached_property
    def _drawn(self) -> tuple[Dataset, list[list[int]]]:
        """Length-grouped batches as `Trainer` makes them; of those, `drawn` at random."""
        size = self.setting.batch
        encoded = encode_dataset(self.setting.examples.train, load_tokenizer(self.setting.student), self.setting.max_length)
        draw = torch.Generator().manual_seed(0)
        grouped = get_length_grouped_indices(encoded["length"], size, generator=draw)
        batches = [grouped[start : start + size] for start in range(0, len(grouped) - size + 1, size)]
        if len(batches) < self.drawn:
            raise ValueError(
                f"{self.setting.task} has {len(batches)} batches to train on, expected {self.drawn}; set fewer --steps"
            )
        batches = [batches[number] for number in torch.randperm(len(batches), generator=draw)[: self.drawn]]
        batches = self._fair(batches, encoded["length"], draw)
        chosen = sorted(row for batch in batches for row in batch)
        place = {row: number for number, row in enumerate(chosen)}
        return encoded.select(chosen), [[place[row] for row in batch] for batch in batches]

    def _fair(self, batches: list[list[int]], lengths: Sequence[int], draw: torch.Generator) -> list[list[int]]:
        """The batches in an order in which objectives at every 4th or 5th step get counted batches about as long as anybody's,
        whichever of the steps are theirs: others are swapped as long as that helps."""
        tokens = torch.tensor([float(max(lengths[row] for row in batch)) for batch in batches])
        counted = torch.arange(len(batches))[self.skip : self.steps]
        shares = [counted[counted % every == phase] for every in (4, 5) for phase in range(every)]

        def unfair(order: Tensor) -> float:
            return float(sum((tokens[order][share].mean() / tokens[order][counted].mean() - 1) ** 2 for share in shares))

        order, best = torch.arange(len(batches)), math.inf
        for _ in range(5000 if min(map(len, shares)) > 0 else 0):
            swapped, pair = order.clone(), torch.randperm(len(batches), generator=draw)[:2]
            swapped[pair] = order[pair.flip(0)]
            if (now := unfair(swapped)) < best:
                order, best = swapped, now
        return [batches[place] for place in order.tolist()]

    @cached_property
    def same_tokens(self) -> bool:
        """Whether both models read the same tokens."""
        return fingerprint_tokenizer(load_tokenizer(self.setting.teacher)) == fingerprint_tokenizer(
            load_tokenizer(self.setting.student)
        )

    @cached_property
    def texts(self) -> Dataset:
        """The same rows, not encoded."""
        return self.rows.select_columns([name for name in ("text", "text_pair", "label") if name in self.rows.column_names])

    @cached_property
    def teacher_rows(self) -> Dataset:
        """The same rows, encoded by the teacher's tokenizer."""
        if self.same_tokens:
            return self.rows
        return encode_dataset(self.texts, load_tokenizer(self.setting.teacher), self.setting.max_length)

    def teacher(self) -> Any:
        """The teacher, where it computes."""
        model: Any = load_classifier(self.setting.teacher, self.setting.examples.task)
        return model.to(self.setting.device)

    @cached_property
    def logits(self) -> Tensor:
        """The teacher's logits on all rows, [N, C]."""
        teacher, rows = self.teacher(), list(self.teacher_rows)
        with torch.inference_mode():
            parts = (rows[start : start + 64] for start in range(0, len(rows), 64))
            found = [teacher(**tensors(part, self.setting.device)[0]).logits for part in parts]
        return torch.cat(found).float().cpu().clone()

    def per_thousand(self, watch: Watch) -> float:
        """Seconds per 1,000 examples."""
        return 1000 * watch.seconds / ((self.steps - self.skip) * self.setting.batch)


def tensors(rows: Sequence[Mapping[str, Any]], device: str) -> tuple[dict[str, Tensor], Tensor]:
    """A padded batch of a BERT-like model's inputs, and its labels."""
    longest = max(len(row["input_ids"]) for row in rows)
    inputs = {
        name: torch.tensor([row[name] + [0] * (longest - len(row[name])) for row in rows]).to(device)  # [PAD] is 0 there
        for name in INPUTS
        if name in rows[0]
    }
    return inputs, torch.tensor([row["label"] for row in rows]).to(device)


def with_trainer(work: Work, strategy: Strategy, watch: Watch) -> None:
    """Train a student by `DistillationTrainer`, from lessons on disk."""
    setting, config = work.setting, work.setting.config(strategy)
    model, tokenizer = build_student(config.student, setting.teacher, setting.examples.task, max_length=setting.max_length)
    if config.freeze_embeddings:
        embedding_layer(model).requires_grad_(False)
    if config.student_dropout is not None:
        set_dropout(model, config.student_dropout)
    with tempfile.TemporaryDirectory() as folder:
        settings = config.train_arguments | {"max_steps": work.steps}
        trainer = SameBatches(
            model,
            training_arguments(settings, Path(folder), "train"),
            teacher=setting.teacher,  # by name: it leaves memory when lessons are there
            objectives=objectives_of(config),
            train_dataset=work.texts,
            processing_class=tokenizer,
            teacher_processing_class=tokenizer if work.same_tokens else load_tokenizer(setting.teacher),
            lessons_dir=setting.out / "lessons-timed",
            max_length=setting.max_length,
            callbacks=[watch],
        )
        for theirs in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(theirs)
        trainer.order = work.order
        trainer.train()


def bare(work: Work, loop: Loop, watch: Watch) -> None:
    """Train a student by a loop as people write it, with the optimiser, schedule and clipping that `Trainer` has."""
    setting, device, size = work.setting, work.setting.device, work.setting.batch
    torch.manual_seed(0)
    student: Any = build_student(setting.student, setting.teacher, setting.examples.task, max_length=setting.max_length)[0]
    student.to(device).train()
    rows, theirs = ([data[place] for place in work.order] for data in (work.rows, work.teacher_rows))
    cached_NC = work.logits[work.order] if loop == "cached logits" else torch.empty(0)
    teacher = None if loop == "cached logits" else work.teacher().eval()
    optimiser = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / work.steps)
    watch.begin()
    for number in range(work.steps):
        part = slice(number * size, (number + 1) * size)
        inputs, labels_B = tensors(rows[part], device)
        asked = inputs if work.same_tokens else tensors(theirs[part], device)[0]
        with torch.autocast(device, torch.bfloat16, enabled=setting.bf16):
            if loop == "AD-KD":
                loss = ad_kd_loss(student, teacher, inputs, labels_B)
            else:
                if teacher is not None:
                    with torch.inference_mode():
                        taught_BC = teacher(**asked).logits
                else:
                    taught_BC = cached_NC[part].to(device)
                logits_BC = student(**inputs).logits
                loss = 0.5 * F.cross_entropy(logits_BC, labels_B) + 0.5 * soft_loss(logits_BC, taught_BC.clone())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if number + 1 in (work.skip, work.steps):
            watch.step(number + 1)


def soft_loss(logits_BC: Tensor, taught_BC: Tensor) -> Tensor:
    """Hinton's, T² KL(teacher || student) of softened predictions."""
    logs = [(each_BC.float() / TEMPERATURE).log_softmax(1) for each_BC in (logits_BC, taught_BC)]
    return TEMPERATURE**2 * F.kl_div(logs[0], logs[1], reduction="batchmean", log_target=True)


def ad_kd_loss(student: Any, teacher: Any, inputs: dict[str, Tensor], labels_B: Tensor) -> Tensor:
    """AD-KD's three losses in one, with what its scripts set for SST-2; classifiers of one vocabulary (Wu et al. 2023)."""
    asked = inputs | {"output_hidden_states": True}
    taught = teacher(**asked)
    with double_backward():
        seen = student(**asked)
    soft = -(taught.logits.detach() / 2).softmax(1) * (seen.logits / 2).log_softmax(1)
    label = F.cross_entropy(seen.logits, labels_B)
    return 0.2 * label + 0.8 * soft.sum(1).mean() + attribution_loss(seen, taught, labels_B)


def attribution_loss(seen: Any, taught: Any, labels_B: Tensor) -> Tensor:
    """The squared distance of both models' input x gradient, of the gold label's loss or (three classes and more) of every
    class, by token and normalised, over the number of tokens."""
    n_classes, total = seen.logits.shape[1], seen.logits.new_zeros(())
    views = list(range(n_classes)) if n_classes > 2 else [None]
    for view in views:
        scores = []
        for out, twice in ((taught, False), (seen, True)):
            wanted_B = labels_B if view is None else torch.full_like(labels_B, view)
            loss = F.cross_entropy(out.logits, wanted_B)
            again = twice or view != views[-1]  # who looks at the teacher last throws its graph away
            (gradient_BTD,) = torch.autograd.grad(loss, out.hidden_states[0], create_graph=twice, retain_graph=again)
            embeddings_BTD = out.hidden_states[0] if twice else out.hidden_states[0].detach()
            scores.append(F.normalize((gradient_BTD * embeddings_BTD).norm(dim=2), dim=1))
        total = total + F.mse_loss(scores[1], scores[0], reduction="sum") / (scores[0] != 0).sum()
    return total
