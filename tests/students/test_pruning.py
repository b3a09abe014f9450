"""Thinner layers: importance against derivatives of weights, and models that are still ordinary ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from egkd.data import Task
from egkd.models import observe
from egkd.objectives.predictions import label_loss
from egkd.students import build_student, check_student
from egkd.students.pruning import Part, _attention, _feed_forward, importance, keep_units, labelled, layer_list

TASK = Task(name="reviews", kind="classification", label_names=("negative", "positive"))
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 70,
}
LLAMA = SMALL | {"num_key_value_heads": 2}


def random_model(architecture: str, vocabulary: int, settings: dict[str, Any]) -> PreTrainedModel:
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=vocabulary, initializer_range=0.3, num_labels=2, pad_token_id=0, **settings
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return getattr(transformers, f"{architecture}ForSequenceClassification")(config).eval()


def saved(model: PreTrainedModel, tokenizer: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_importance_is_weight_times_gradient_example_by_example(tokenizer: Any, tiny_data: Dataset) -> None:
    """For neurons and for heads, from the derivatives of the weights that read them."""
    model, rows = random_model("Llama", len(tokenizer), LLAMA), tiny_data.select(range(5))
    layer = model.model.layers[1]
    parts = [_feed_forward(model, layer), _attention(model, layer)]
    found = importance(model, tokenizer, rows, parts, max_length=32, batch_size=2)
    expected = [torch.zeros(24), torch.zeros(2)]
    for row in rows:
        model.zero_grad()
        inputs = dict(tokenizer(row["text"], return_tensors="pt"))
        label_loss(observe(model, inputs).logits_BC, torch.tensor([row["label"]])).sum().backward()
        for unit, linear in enumerate((layer.mlp.down_proj, layer.self_attn.o_proj)):
            effect = (linear.weight * linear.weight.grad).detach()
            expected[unit] += effect.sum(0).view(len(expected[unit]), -1).sum(1).abs()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs.double(), rtol=1e-4, atol=1e-7)


def test_importance_leaves_the_model_as_it_was(tokenizer: Any, tiny_data: Dataset) -> None:
    model = random_model("Bert", len(tokenizer), SMALL).train()
    importance(model, tokenizer, tiny_data.select(range(3)), [_feed_forward(model, model.bert.encoder.layer[0])], max_length=32)
    assert model.training
    assert all(value.requires_grad and value.grad is None for value in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("architecture", "settings", "width"),
    [
        ("Bert", SMALL, "intermediate_size"),
        ("DistilBert", {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}, "hidden_dim"),
        ("Roberta", SMALL, "intermediate_size"),
        ("Electra", SMALL | {"embedding_size": 12}, "intermediate_size"),
        ("MPNet", SMALL, "intermediate_size"),
        ("DebertaV2", SMALL, "intermediate_size"),
        ("Llama", LLAMA, "intermediate_size"),
        ("Qwen2", LLAMA, "intermediate_size"),
        ("Gemma", LLAMA | {"head_dim": 4}, "intermediate_size"),
    ],
)
def test_a_thinner_student_is_an_ordinary_model_without_the_least_neurons(
    architecture: str, settings: dict[str, Any], width: str, tokenizer: Any, tiny_data: Dataset, tmp_path: Path
) -> None:
    """It computes what the teacher does with those neurons' outputs set to zero."""
    teacher = random_model(architecture, len(tokenizer), settings)
    spec, source = "layers:2,ffn=9", saved(teacher, tokenizer, tmp_path / "teacher")
    student, read_by = build_student(spec, source, TASK, examples=tiny_data, max_length=32)
    student.save_pretrained(tmp_path / "student")
    again, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert {name: list(found) for name, found in info.items() if found} == {}
    assert getattr(again.config, width) == 9
    parts = [_feed_forward(teacher, layer) for layer in layer_list(teacher)[2]]
    scores = importance(teacher, read_by, labelled(tiny_data, 512, 0), parts, max_length=32)
    with torch.no_grad():
        for part, score in zip(parts, scores, strict=True):
            part.out.weight[:, score.argsort()[:-9]] = 0
        batch = {
            name: value for name, value in tokenizer(["a lovely film"], return_tensors="pt").items() if name != "token_type_ids"
        }
        torch.testing.assert_close(again.eval()(**batch).logits, teacher(**batch).logits)


@pytest.mark.parametrize("architecture", ["Llama", "Qwen2", "Gemma"])
def test_heads_go_where_the_config_can_say_so(architecture: str, tokenizer: Any, tiny_data: Dataset, tmp_path: Path) -> None:
    teacher = random_model(architecture, len(tokenizer), LLAMA | {"head_dim": 4})
    source = saved(teacher, tokenizer, tmp_path / "teacher")
    student, read_by = build_student("layers:2,heads=2,ffn=10", source, TASK, examples=tiny_data, max_length=32)
    student.save_pretrained(tmp_path / "student")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").eval()
    config = again.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.intermediate_size) == (2, 1, 4, 10)
    parts = [part(teacher, layer) for layer in teacher.model.layers for part in (_feed_forward, _attention)]
    scores = importance(teacher, read_by, labelled(tiny_data, 512, 0), parts, max_length=32)
    with torch.no_grad():
        for part, score in zip(parts, scores, strict=True):
            gone = score.argsort()[: -10 if part.units == 24 else -1]
            size = part.out.in_features // part.units
            for unit in gone.tolist():
                part.out.weight[:, unit * size : (unit + 1) * size] = 0
        batch = dict(tokenizer(["a lovely film"], return_tensors="pt"))
        batch.pop("token_type_ids")
        torch.testing.assert_close(again(**batch).logits, teacher(**batch).logits)


def test_units_are_kept_in_their_order() -> None:
    torch.manual_seed(0)
    into, out = nn.Linear(3, 4), nn.Linear(4, 2)
    values = torch.randn(5, 3)
    expected = into(values)[:, [0, 3]] @ out.weight[:, [0, 3]].T + out.bias
    keep_units(Part(into=(into,), out=out, units=4), torch.tensor([0, 3]))
    torch.testing.assert_close(out(into(values)), expected)
    assert (into.out_features, out.in_features) == (2, 2)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("layers:2,ffn=65", "ffn=65 asks for 65 feed-forward neurons, the teacher's layers have 64"),
        ("layers:2,ffn=0", r"layers\.ffn: .*greater than 0"),
        ("layers:2,fnn=3", r"unknown setting 'layers\.fnn'; did you mean 'ffn'\?"),
        ("layers:2,heads=1", "heads=1: in bert a head's size is always hidden size / heads.*set ffn"),
    ],
)
def test_widths_that_cannot_be(spec: str, complaint: str, save: Callable[..., Path], tmp_path: Path) -> None:
    teacher = str(save(tmp_path / "teacher"))
    with pytest.raises(ValueError, match=complaint) as caught:
        check_student(spec, teacher)
    assert "\n" not in str(caught.value)


def test_heads_that_share_keys_go_together(tokenizer: Any, tmp_path: Path) -> None:
    source = saved(random_model("Llama", len(tokenizer), LLAMA), tokenizer, tmp_path)
    for heads in (3, 6):
        with pytest.raises(ValueError, match=rf"heads={heads}: expected a multiple of 2 \(they share their keys\), at most 4"):
            check_student(f"layers:2,heads={heads}", source)


def test_projections_that_are_not_plain_are_refused(tokenizer: Any, tiny_data: Dataset, tmp_path: Path) -> None:
    """ModernBERT computes gate and value in one projection."""
    settings = SMALL | {"local_attention": 8, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    source = saved(random_model("ModernBert", len(tokenizer), settings), tokenizer, tmp_path)
    with pytest.raises(
        ValueError, match="feed-forward layers of ModernBertForSequenceClassification are not plain projections"
    ):
        build_student("layers:2,ffn=8", source, TASK, examples=tiny_data)


def test_examples_with_labels_are_needed(save: Callable[..., Path], tiny_data: Dataset, tmp_path: Path) -> None:
    teacher = str(save(tmp_path / "teacher"))
    with pytest.raises(ValueError, match="made thinner by what examples need, and there are none"):
        build_student("layers:2,ffn=8", teacher, TASK)
    bare = Dataset.from_dict({"text": tiny_data["text"][:4], "label": [None] * 4})
    with pytest.raises(ValueError, match="needs examples with labels, and no row has one"):
        build_student("layers:2,ffn=8", teacher, TASK, examples=bare)
    mixed = Dataset.from_dict({"text": ["a", "b", "c"], "label": [None, 1, 0]})
    assert sorted(labelled(mixed, 5, 0)["text"]) == ["b", "c"]
    assert len(labelled(mixed, 1, 0)) == 1
