"""What a model costs: parameters and milliseconds per example, with the conditions they were measured in."""

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from torch import nn
from transformers import PreTrainedTokenizerBase

from egkd.models import frozen, model_inputs
from egkd.text import MAX_LENGTH, Batch


def parameters(model: nn.Module) -> int:
    """Number of parameters, embeddings included; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def parameters_without_embeddings(model: nn.Module) -> int:
    """The same without the tables of embeddings (words, positions, segments), which cost memory but no time."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in tables)


def bytes_on_disk(source: str | Path) -> int | None:
    """Size of the weights of a saved model, all shards together; of a hub id, those in the local cache; None without any."""
    folder = Path(source)
    if not folder.is_dir():
        with suppress(HFValidationError):  # a path, then
            cached = try_to_load_from_cache(str(source), "config.json")
            folder = Path(cached).parent if isinstance(cached, str) else folder
    # safetensors where there are any, as from_pretrained prefers them
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    return sum(path.stat().st_size for path in weights) or None


def latency(
    models: Mapping[str, tuple[nn.Module, PreTrainedTokenizerBase]],
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    batch_sizes: Sequence[int] = (1, 32),
    max_length: int = MAX_LENGTH,
    repeats: int = 5,
) -> dict[str, dict[str, Any]]:
    """Milliseconds per example of each model, by batch size: the median of `repeats` rounds in which the models take turns.

    A round is one forward pass over one batch of the texts (repeated to fill it), tokenisation not counted; one unmeasured
    round warms up. `conditions` says on what.
    """
    found: dict[str, dict[str, Any]] = {}
    for size in batch_sizes:
        batches = {
            name: _batches(model, tokenizer, texts, pairs, size, max_length) for name, (model, tokenizer) in models.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for round_ in range(repeats + 1):
            for name, (model, _) in models.items():
                taken = _timed(model, batches[name])
                if round_:
                    seconds[name].append(taken)
        for name, (model, _) in models.items():
            examples = sum(len(batch["input_ids"]) for batch in batches[name])
            milliseconds = 1000 * statistics.median(seconds[name]) / examples
            entry = found.setdefault(name, {"conditions": _conditions(model, batches[name], repeats)})
            entry[str(size)] = {"ms_per_example": milliseconds}
    return found


def _batches(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    size: int,
    max_length: int,
) -> list[Batch]:
    """Up to 16 single texts, or one full batch."""
    count = size if size > 1 else min(16, len(texts))
    chosen = [index % len(texts) for index in range(count)]
    device = next(model.parameters()).device
    batches = []
    for start in range(0, count, size):
        rows = chosen[start : start + size]
        encoded = tokenizer(
            [texts[row] for row in rows],
            None if pairs is None else [pairs[row] for row in rows],
            truncation=True,
            max_length=max_length,
            padding=True,
            return_tensors="pt",
        )
        batches.append({name: value.to(device) for name, value in encoded.items()})
    return batches


def _timed(model: nn.Module, batches: Sequence[Batch]) -> float:
    with frozen(model), torch.inference_mode():
        started = time.perf_counter()
        for batch in batches:
            logits_BC = model(**model_inputs(model, batch)).logits  # as anybody would call it, no short cut
        logits_BC.cpu()  # waits for an accelerator
        return time.perf_counter() - started


def _conditions(model: nn.Module, batches: Sequence[Batch], repeats: int) -> dict[str, Any]:
    parameter = next(model.parameters())
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    return {
        "device": torch.cuda.get_device_name() if parameter.is_cuda else str(parameter.device),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "mean_tokens": round(tokens / sum(len(batch["input_ids"]) for batch in batches), 1),
        "rounds": repeats,
        "torch": torch.__version__,
    }
