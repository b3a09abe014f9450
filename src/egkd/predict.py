"""A model's answers on a data set.

Shapes: N examples, C classes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from egkd.models import observe, unwrapped
from egkd.text import MAX_LENGTH, collate, encode


def encode_dataset(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int = MAX_LENGTH) -> Dataset:
    """`dataset` (columns text, perhaps text_pair, label) with the columns of `text.encode` beside its own."""

    def columns(rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return encode(tokenizer, rows["text"], rows.get("text_pair"), max_length)

    return dataset.map(columns, batched=True, desc="tokenise")


def predict_logits(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    *,
    max_length: int = MAX_LENGTH,
    batch_size: int = 64,
) -> np.ndarray:
    """The model's logits on a data set, float32 [rows, C], in batches of similar length."""
    encoded = dataset if "input_ids" in dataset.column_names else encode_dataset(dataset, tokenizer, max_length)
    lengths = encoded["length"]
    order = sorted(range(len(encoded)), key=lambda row: lengths[row])
    device = next(unwrapped(model).parameters()).device
    logits: list[np.ndarray] = [np.empty(0)] * len(order)
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = collate([encoded[row] for row in rows], tokenizer.pad_token_id or 0)
            with torch.inference_mode():
                values_BC = observe(model, {k: v.to(device) for k, v in batch.items()}).logits_BC.float().cpu().numpy()
            for row, value in zip(rows, values_BC, strict=True):
                logits[row] = value
    finally:
        model.train(was_training)
    return np.stack(logits)
