"""The loop: transformers' Trainer with objectives instead of one loss.

Fine-tuning a teacher is the same loop with gold labels as its only objective.
Shapes: B batch, C classes.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import get_last_checkpoint

import egkd.students  # noqa: F401  registers our own types of models
from egkd.batches import ByLength, DistillationCollator
from egkd.compatible import check_compatible, use_one_gpu
from egkd.explain.amortised import head_of
from egkd.explain.base import Precision
from egkd.heads import attach_heads, without_heads
from egkd.lessons import Lessons
from egkd.models import checkpoints, double_backward, model_inputs, observe, unwrapped
from egkd.objectives.base import Moment, Objective, Progress
from egkd.objectives.predictions import Labels, SoftLabels, check_labelled, label_loss
from egkd.predict import encode_dataset
from egkd.processes import Ranks
from egkd.runs import write_text
from egkd.step import learn, strongest
from egkd.stopwatch import Stopwatch, seconds_at
from egkd.teaching import Source, asked_of, check_pupil, teach_all, voices_of
from egkd.text import MAX_LENGTH, Batch

Metrics = Callable[[EvalPrediction], dict[str, float]]
_COLUMNS = ["input_ids", "attention_mask", "token_type_ids", "unit_ids", "n_units", "length", "label", "labels", "idx"]


def _unnumbered(rows: Dataset) -> Dataset:
    """Without numbers that others gave its rows, as the hub's GLUE has them."""
    return rows.remove_columns("idx") if "idx" in rows.column_names else rows


class DistillationTrainer(Trainer):
    """`transformers.Trainer` whose loss is a weighted sum of objectives taught by a teacher.

    The teacher is asked once, before training, for what the objectives need (its lessons); training reads them from disk.
    Each term is logged as `loss/<objective>`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments | None = None,
        *,
        teacher: Source | Sequence[Source] | None = None,
        objectives: Sequence[Objective] | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase,
        teacher_processing_class: PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase] | None = None,
        teacher_weights: Sequence[float] | None = None,
        lessons_dir: str | Path | None = None,
        lessons_precision: Precision | None = None,
        max_length: int = MAX_LENGTH,
        compute_metrics: Metrics | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LambdaLR | None] = (None, None),
        progress: Progress | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """Encode the data, build or open the lessons, then set up a Trainer.

        Args:
            model: the student; it is trained in place.
            args: as for any Trainer.
            teacher: a fine-tuned classifier, or where to load it from (then it is in memory only while lessons are built); or
                several, with their classes in one order.
            objectives: what to match; gold labels and soft labels by default. Only those with lessons need a teacher.
            train_dataset: columns `text`, perhaps `text_pair`, and `label`: -100 (a score: NaN) in rows without one, from which
                all objectives but gold labels learn too.
            eval_dataset: the same, one or several by name.
            processing_class: the student's tokenizer.
            teacher_processing_class: the teacher's, where it is another; of several teachers, theirs.
            teacher_weights: how much each of several teachers says; equally much by default.
            lessons_dir: where lessons are kept; by default `lessons` beside the output folder.
            lessons_precision: what teachers compute lessons in: by default "bfloat16" with `args.bf16`, which is faster and a
                bit off, else "float32".
            max_length: tokens after which both models' inputs are cut.
            compute_metrics: as for any Trainer.
            callbacks: as for any Trainer.
            optimizers: as for any Trainer.
            progress: told how far building lessons is.
            tell: hears, in a line for people, how large lessons will be that are still to be built.

        Raises ValueError for settings that cannot work together, StaleLessons for lessons made from something else.
        """
        self.args = args = args or TrainingArguments(output_dir="distilled")
        self.objectives = [o for o in (objectives if objectives is not None else [Labels(), SoftLabels()]) if o.weight > 0]
        check_compatible(self.objectives, args, teacher is not None)
        use_one_gpu(args, tell or warnings.warn)
        if args.ddp_broadcast_buffers is None:  # it waits for all processes at every pass, and they make now more, now fewer
            args.ddp_broadcast_buffers = False
        voices = voices_of(teacher, teacher_processing_class, teacher_weights)
        check_pupil(voices, model)
        self.objectives = asked_of(voices, self.objectives, model.config)
        self._differentiates_twice = any(objective.differentiates_twice for objective in self.objectives)
        lessons: dict[str, Lessons] = {}
        if train_dataset is not None:
            check_labelled(self.objectives, train_dataset)
            train_dataset = _unnumbered(train_dataset)
            encoded = encode_dataset(train_dataset, processing_class, max_length)
            if voices and any(o.has_lesson for o in self.objectives):
                lessons = teach_all(
                    voices,
                    self.objectives,
                    train_dataset,
                    encoded,
                    processing_class,
                    Path(lessons_dir or Path(args.output_dir or ".").parent / "lessons"),
                    device=args.device,
                    max_length=max_length,
                    precision=lessons_precision or ("bfloat16" if args.bf16 else "float32"),
                    progress=progress,
                    tell=tell,
                )
                self.objectives = [
                    each.opened(lessons[each.key].folder, processing_class) if each.key in lessons else each
                    for each in self.objectives
                ]
            train_dataset = encoded.add_column("idx", np.arange(len(encoded)))
        self._max_length = max_length
        self._tokenizer = processing_class
        if isinstance(eval_dataset, dict):
            eval_dataset = {name: self._encoded(rows) for name, rows in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = self._encoded(eval_dataset)
        self._pad_token_id = int(processing_class.pad_token_id or 0)
        self._heads = attach_heads(model, self.objectives, lessons, args.seed)
        self._strong = strongest(self.objectives, lessons)
        self._terms: dict[str, Tensor] = {}
        self._terms_seen = 0
        super().__init__(
            model=model,
            args=args,
            data_collator=DistillationCollator(self._pad_token_id, lessons),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.label_names = ["labels"]
        self.loss_is_scaled_for_ga = False  # our loss is the mean over a batch

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """As in Trainer, also of texts that were not given in the beginning."""
        return super().get_eval_dataloader(self._encoded(eval_dataset) if isinstance(eval_dataset, Dataset) else eval_dataset)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """As in Trainer, of texts."""
        return super().get_test_dataloader(self._encoded(test_dataset))

    def _encoded(self, rows: Dataset) -> Dataset:
        rows = _unnumbered(rows)
        return rows if "input_ids" in rows.column_names else encode_dataset(rows, self._tokenizer, self._max_length)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = list(_COLUMNS)  # type: ignore[assignment]

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """As in Trainer; grouped by length also where several processes share a batch, or a run is resumed."""
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        return ByLength(sampler, self.args, epoch=lambda: int(self.state.epoch or 0))

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """As in Trainer; what is recomputed in the backward pass (gradient checkpointing) takes the forward pass's kernels."""
        with double_backward() if self._differentiates_twice and checkpoints(unwrapped(model)) else nullcontext():
            return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The weighted sum of what every objective says, a mean over the batch; in evaluation the gold labels' loss alone."""
        lessons = inputs.get("lessons", {})
        batch: Batch = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        if not model.training:
            seen = observe(model, batch)
            loss = label_loss(seen.logits_BC, batch["labels"]).mean()
            return (loss, SequenceClassifierOutput(logits=seen.logits_BC)) if return_outputs else loss
        assert self.processing_class is not None
        state, steps = self.state, max(self.state.max_steps, 1)
        moment = Moment(
            step=state.global_step,
            epoch=int(state.epoch or 0),
            progress=state.global_step / steps,
            epochs=max(int(state.num_train_epochs), 1),
            seed=self.args.seed,
            tokenizer=self.processing_class,  # type: ignore[arg-type]
        )
        terms, logits_BC = learn(
            model,
            self.objectives,
            batch,
            lessons,
            moment,
            steps=steps,
            pad_token_id=self._pad_token_id,
            heads=self._heads,
            strong=self._strong,
        )
        self._remember(terms)
        loss = torch.stack(list(terms.values())).sum()
        return (loss, SequenceClassifierOutput(logits=logits_BC)) if return_outputs else loss

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *settings: Any, **named: Any) -> Any:
        """As in Trainer, also of texts without labels, which the model gets as it takes them."""
        known = inputs if "labels" in inputs else model_inputs(model, inputs)
        return super().prediction_step(model, known, *settings, **named)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in Trainer; an ordinary folder, a head that stays in files of its own. Checkpoints keep everything inside."""
        if _internal_call:
            return super().save_model(output_dir, _internal_call)
        assert self.model is not None
        with without_heads(self.model):
            super().save_model(output_dir)
        head = head_of(self.model)
        if head is not None and self.args.should_save:
            head.save(Path(output_dir or str(self.args.output_dir)))
        return None

    def _remember(self, terms: Mapping[str, Tensor]) -> None:
        for name, value in terms.items():
            self._terms[name] = self._terms.get(name, torch.zeros_like(value)) + value.detach()
        self._terms_seen += 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in Trainer, with the mean of each term since the last log line, over all processes."""
        if "loss" in logs and self._terms_seen:
            means = self.accelerator.gather(torch.stack(list(self._terms.values()))[None]).mean(0) / self._terms_seen
            logs |= {f"loss/{name}": round(value, 6) for name, value in zip(self._terms, means.tolist(), strict=True)}
            self._terms, self._terms_seen = {}, 0
        super().log(logs, start_time)


class TellProgress(TrainerCallback):
    """Tells how many steps are done, for a caller that draws its own bar (`disable_tqdm` silences Trainer's)."""

    def __init__(self, progress: Progress) -> None:
        """`progress` is called with steps done and steps in all."""
        self.progress = progress

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After every optimiser step."""
        self.progress(state.global_step, state.max_steps)


class JsonlLog(TrainerCallback):
    """Keeps the whole log history in a file, one JSON object a line; the first after a resumption is the mean since it."""

    def __init__(self, path: Path) -> None:
        """`path` is written anew at every log."""
        self.path = path

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write what Trainer knows."""
        if state.is_world_process_zero:
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in state.log_history))


def fit(trainer: DistillationTrainer, checkpoints: Path, team: Ranks, progress: Progress | None = None) -> float:
    """Train, from the last whole checkpoint if there is one; returns seconds, those that led to the checkpoint included.

    `progress` draws the bar, instead of Trainer.
    """
    if progress is not None:  # one kind of bar, not two
        for theirs in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(theirs)
        trainer.add_callback(TellProgress(progress))
    last = team.once(lambda: _last_whole(checkpoints))
    stopwatch = Stopwatch(seconds_at(Path(last)) if last else 0.0)
    trainer.add_callback(stopwatch)
    trainer.train(resume_from_checkpoint=last)
    return stopwatch.seconds


def _last_whole(checkpoints: Path) -> str | None:
    """The last checkpoint; what was cut off after it is deleted."""
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    while last and not (Path(last) / "trainer_state.json").is_file():  # written last
        shutil.rmtree(last)
        last = get_last_checkpoint(str(checkpoints))
    return last
