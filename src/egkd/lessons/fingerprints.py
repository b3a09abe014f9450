"""What tells one teacher, tokenizer or data set from all others."""

import hashlib
import json

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from egkd.models import padding_of_last_token_readers


def fingerprint_model(model: nn.Module) -> str:
    """sha256 over names, shapes and bytes of all weights and buffers, and the token that a decoder skips as padding."""
    digest = hashlib.sha256()
    padding_id = padding_of_last_token_readers(model)
    if padding_id is not None:
        digest.update(f"padding {padding_id}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over the fast tokenizer's own description, less the padding and truncation it was last called with; which end of
    a text it cuts off, which tokens it masks and pads with, and whether it numbers the two texts of a pair."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state.pop("truncation", None)
    state.pop("padding", None)
    state["roles"] = [tokenizer.truncation_side, tokenizer.mask_token_id, tokenizer.pad_token_id]
    if "token_type_ids" not in tokenizer.model_input_names:
        state["unnumbered"] = True
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def fingerprint_texts(dataset: Dataset) -> str:
    """sha256 over all texts, in their order: lessons are read by row number."""
    digest = hashlib.sha256()
    columns = [name for name in ("text", "text_pair") if name in dataset.column_names]
    for rows in dataset.select_columns(columns).with_format("arrow").iter(batch_size=1000):
        digest.update(json.dumps([rows[name].to_pylist() for name in columns]).encode())
    return digest.hexdigest()


def fingerprint_labels(dataset: Dataset) -> str:
    """sha256 over all gold labels, in their order."""
    digest = hashlib.sha256()
    if "label" in dataset.column_names:
        for rows in dataset.select_columns("label").with_format("arrow").iter(batch_size=1000):
            digest.update(json.dumps(rows["label"].to_pylist()).encode())
    return digest.hexdigest()
