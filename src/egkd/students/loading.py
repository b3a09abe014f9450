"""Loading classifiers, encoders and tokenizers, with checks: whatever goes wrong is one line."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from egkd.data import Task
from egkd.models import observe, reads_last_token


def load_tokenizer(source: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A fast tokenizer from a folder or hub id. Raises ValueError, one line."""
    tokenizer = loaded(AutoTokenizer, source, trust_remote_code=trust_remote_code)
    if not tokenizer.is_fast:
        raise ValueError(f"{source} has a slow tokenizer without character offsets; save it with a tokenizer.json")
    if {*tokenizer.get_vocab()} <= {*tokenizer.all_special_tokens}:  # what transformers makes where there are no files
        raise ValueError(f"{source} has no tokenizer of its own: save it beside the model")
    if tokenizer.pad_token_id is None:
        last = tokenizer("a")["input_ids"][-1:]  # what ends every text cannot be told from padding by who reads the last token
        free = [token for token in (tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token) if token is not None]
        free = [token for token in free if [tokenizer.convert_tokens_to_ids(token)] != last]
        if not free:
            raise ValueError(f"the tokenizer of {source} has no padding token; set one and save it")
        tokenizer.pad_token = free[0]
    return tokenizer


def check_embeds(model: nn.Module, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Refuse a tokenizer with more tokens than the model embeds. Raises ValueError.

    Special tokens that no text has may be more, like the padding that a decoder's tokenizer brings and its model never reads.
    """
    spare = {*tokenizer.all_special_tokens} - {None if reads_last_token(model) else tokenizer.pad_token}
    rows = len(model.get_input_embeddings().weight)  # type: ignore[operator]
    used = max(number for token, number in tokenizer.get_vocab().items() if token not in spare) + 1
    if used > rows:
        raise ValueError(f"{source} embeds {rows} tokens, its tokenizer knows {used}; give it its own")


def _know_padding(model: PreTrainedModel, source: str, trust_remote_code: bool) -> PreTrainedModel:
    """A decoder must be told what padding is; many checkpoints leave that to their tokenizer."""
    config = model.config.get_text_config()
    if reads_last_token(model) and (config.pad_token_id is None or config.pad_token_id < 0):
        config.pad_token_id = load_tokenizer(source, trust_remote_code=trust_remote_code).pad_token_id
    return model


def load_classifier(source: str, task: Task | None = None, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A fine-tuned classifier or regressor in float32, in evaluation mode; for `task`, or for whatever it was trained for.

    Raises ValueError where weights are broken, its head was never trained, or its labels cannot be the task's.
    """
    model, info = loaded(
        AutoModelForSequenceClassification,
        source,
        dtype=torch.float32,
        use_safetensors=True,  # nothing is ever unpickled
        output_loading_info=True,
        trust_remote_code=trust_remote_code,
    )
    if info["missing_keys"]:
        names = ", ".join(sorted(info["missing_keys"])[:3])
        raise ValueError(f"{source} is not fine-tuned: it lacks {names}; fine-tune it first: egkd teach --init {source}")
    check_encoder(model.config, source)
    if model.config.problem_type == "multi_label_classification":
        raise ValueError(f"{source} gives a text several labels at once, which nothing here can compare; use another teacher")
    if task is not None and model.config.num_labels != task.num_labels:
        wanted = f"{task.num_labels} ({', '.join(task.label_names)})" if task.label_names else "1 (regression)"
        raise ValueError(f"{source} predicts {model.config.num_labels} labels, the data needs {wanted}; use another teacher")
    return _know_padding(model, source, trust_remote_code).eval()


def check_encoder(config: PreTrainedConfig, source: str) -> None:
    """Refuse models of two halves, whose texts are read twice. Raises ValueError."""
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{source} ({config.model_type}) is an encoder and a decoder; take a model that is one of both")


def label_order(model: PreTrainedModel, task: Task, source: str) -> list[int]:
    """For each of the model's classes the task's label id it stands for, by name; as they are where one of both names none.

    Raises ValueError where the model's names are others than the task's.
    """
    names = [str(name) for _, name in sorted((model.config.id2label or {}).items())]
    if task.kind == "regression" or all(name == f"LABEL_{index}" for index, name in enumerate(names)):
        return list(range(len(names)))
    fold = str if set(names) == set(task.label_names) else str.casefold
    ours = {fold(name): index for index, name in enumerate(task.label_names)}
    unknown = [name for name in names if fold(name) not in ours]
    if unknown and numbered(task):
        return list(range(len(names)))
    if unknown:
        raise ValueError(
            f"{source} knows the labels {', '.join(names)}, the data has {', '.join(task.label_names)}; "
            f"rename {unknown[0]!r} or use another teacher"
        )
    order = [ours[fold(name)] for name in names]
    if len(set(order)) < task.num_labels:
        raise ValueError(f"{source} knows the labels {', '.join(names)}, of which two are one; give each a name of its own")
    return order


def in_order(model: PreTrainedModel, order: Sequence[int]) -> PreTrainedModel:
    """The classifier with its classes in another order, in place: class c becomes class `order[c]` (see `label_order`).

    The rows of its last layer move, so that its fingerprint and its lessons are those of the new order. Raises ValueError for a
    model whose last layer is not a linear one with a row for each class.
    """
    if list(order) == list(range(len(order))):
        return model
    ids = torch.tensor([[1, 2, 3]], device=model.device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    old = torch.tensor(order, device=model.device).argsort()
    heads = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == len(order)]
    with torch.no_grad():
        before_C = observe(model, batch).logits_BC[0]
        for parameter in heads[-1].parameters() if heads else ():
            parameter.copy_(parameter[old].clone())
        after_C = observe(model, batch).logits_BC[0]
    if not torch.allclose(after_C, before_C[old], atol=1e-5):
        raise ValueError(
            f"{type(model).__name__} has no last layer with a row for each of {len(order)} classes, so its labels cannot be "
            "put in the first teacher's order; give it as the first or only teacher"
        )
    names = [name for _, name in sorted((model.config.id2label or {}).items())]
    model.config.id2label = {new: names[index] for new, index in enumerate(old.tolist())}
    model.config.label2id = {name: index for index, name in model.config.id2label.items()}
    return model


def numbered(task: Task) -> bool:
    """Whether the task's classes have no names but the numbers 0, 1, ... that a model gives its classes, too."""
    return task.label_names == tuple(map(str, range(task.num_labels)))


def load_encoder(source: str, task: Task, *, seed: int = 0, trust_remote_code: bool = False) -> PreTrainedModel:
    """A pre-trained encoder with a head for `task`, float32; a new head is drawn from `seed`, one that knows the task's labels
    by their names has them in the task's order."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, info = loaded(
            AutoModelForSequenceClassification,
            source,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            **label_settings(task),
        )
    check_encoder(model.config, source)
    new = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    lacking = sorted(name for name in new if name.startswith(f"{model.base_model_prefix}.") and "pooler" not in name)
    if lacking:  # a head may be new, but not what it stands on
        raise ValueError(
            f"{source} lacks {len(lacking)} of the weights of {type(model).__name__}, like {lacking[0]}; "
            "its files fit another model, or were cut off: save it again"
        )
    theirs = loaded(AutoConfig, source, trust_remote_code=trust_remote_code).id2label or {}
    names = [str(name) for _, name in sorted(theirs.items())]
    if not new and sorted(map(str.casefold, names)) == sorted(map(str.casefold, task.label_names)):
        model.config.id2label = dict(enumerate(names))
        in_order(model, label_order(model, task, source))
        model.config.update(label_settings(task))
    return _know_padding(model, source, trust_remote_code)


def label_settings(task: Task) -> dict[str, Any]:
    """What a model's config has to say about the labels of `task`."""
    if task.kind == "regression":
        return {"num_labels": 1, "problem_type": "regression"}
    return {
        "num_labels": task.num_labels,
        "problem_type": "single_label_classification",
        "id2label": dict(enumerate(task.label_names)),
        "label2id": {name: index for index, name in enumerate(task.label_names)},
    }


def loaded(kind: Any, source: str, **settings: Any) -> Any:
    """`kind.from_pretrained`, with its many ways to fail turned into one line."""
    local = Path(source).expanduser()
    if not local.exists() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise ValueError(f"{source} does not exist; give a model folder or a hub id")
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its report about a new head alarms people who asked for one
    try:
        return kind.from_pretrained(str(local) if local.exists() else source, **settings)
    except Exception as error:  # safetensors, tokenizers and the hub raise classes of their own
        reason = next(iter(str(error).strip().splitlines()), "no reason given").rstrip(". ")
        advice = "give a model folder or a hub id that transformers can load"
        raise ValueError(f"cannot load {source}: {reason} ({type(error).__name__}); {advice}") from error
    finally:
        logger.setLevel(level)
