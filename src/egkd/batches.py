"""What comes in a batch: examples of similar length, padded, with the lessons of their rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices

from egkd.lessons import Lessons
from egkd.text import collate


class DistillationCollator:
    """Pads a batch and puts the lessons of its rows beside it."""

    def __init__(self, pad_token_id: int, lessons: Mapping[str, Lessons] | None = None) -> None:
        """`lessons` are looked up by a row's `idx`; rows without one (evaluation) get none."""
        self.pad_token_id = pad_token_id
        self.lessons = dict(lessons or {})

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch of tensors; `lessons` is a dictionary of dictionaries of tensors."""
        batch: dict[str, Any] = collate(rows, self.pad_token_id)
        if "idx" in batch:
            indices = batch["idx"].tolist()
            batch["lessons"] = {name: lessons.read(indices) for name, lessons in self.lessons.items()}
        return batch


class ByLength(Sampler[int]):
    """transformers' batches of similar length, in an order that depends on seed, epoch and size of the whole batch alone.

    Theirs is drawn from the process's random state: processes that have used up more or fewer numbers, or a resumed run, would
    each go through the data in another order, and leave some out. It asks for the epoch, because nobody tells it who resumes a
    run of several processes: they wrap it deeper than Trainer and accelerate look.
    """

    def __init__(self, theirs: LengthGroupedSampler, args: TrainingArguments, epoch: Callable[[], int]) -> None:
        """In the place of `theirs`; `epoch` says which one begins."""
        self.lengths, self.batch_size = theirs.lengths, theirs.batch_size * args.world_size
        self.seed = args.seed if args.data_seed is None else args.data_seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        random = torch.Generator().manual_seed(self.seed + self.epoch())
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=random))
