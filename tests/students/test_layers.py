"""Who learns: layers cut out of a teacher of any architecture, encoders from a folder, and teachers that cannot be used."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from egkd.data import Task
from egkd.students import (
    build_student,
    check_student,
    keep_layers,
    label_order,
    load_classifier,
    load_encoder,
    load_tokenizer,
    parse_layers,
    spread,
)
from egkd.students.layers import every

TASK = Task(name="reviews", kind="classification", label_names=("negative", "positive"))
SCORES = Task(name="scores", kind="regression", metrics=("pearson",))
DEPTH = 4

SMALL = {"hidden_size": 16, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "intermediate_size": 24}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "Bert": ("bert.encoder.layer", SMALL),
    "DistilBert": ("distilbert.transformer.layer", {"dim": 16, "n_layers": DEPTH, "n_heads": 2, "hidden_dim": 24}),
    "Roberta": ("roberta.encoder.layer", SMALL | {"max_position_embeddings": 70, "type_vocab_size": 1}),
    "Electra": ("electra.encoder.layer", SMALL | {"embedding_size": 12}),
    "MPNet": ("mpnet.encoder.layer", SMALL | {"max_position_embeddings": 70}),
    "DebertaV2": (
        "deberta.encoder.layer",
        SMALL | {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]},
    ),
}


def random_model(architecture: str, vocabulary: int, settings: dict[str, Any]) -> PreTrainedModel:
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=vocabulary, initializer_range=0.3, num_labels=2, pad_token_id=0, **settings
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return getattr(transformers, f"{architecture}ForSequenceClassification")(config).eval()


@contextmanager
def bypassed(layers: nn.ModuleList, kept: list[int]) -> Iterator[None]:
    """While open, the other layers hand on what they were given: the truncated model without cutting anything."""

    def hand_on(_layer: nn.Module, args: Any, named: Any, output: Any) -> Any:
        given = args[0] if args else named["hidden_states"]
        return (given, *output[1:]) if isinstance(output, tuple) else given

    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            if index not in kept:
                hooks.callback(layer.register_forward_hook(hand_on, with_kwargs=True).remove)
        yield


@pytest.fixture
def teacher(save: Callable[..., Path], tmp_path: Path) -> str:
    """A fine-tuned BERT of four layers, as a folder."""
    return str(save(tmp_path / "teacher", layers=DEPTH))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_truncated_student_computes_what_its_layers_did_in_the_teacher(
    architecture: str, tokenizer: Any, tmp_path: Path
) -> None:
    place, settings = ARCHITECTURES[architecture]
    model = random_model(architecture, len(tokenizer), settings)
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    student, read_by = build_student("layers:0,2,3", str(tmp_path / "teacher"), TASK)
    student.save_pretrained(tmp_path / "student")
    reloaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert {name: list(found) for name, found in info.items() if found} == {}
    assert reloaded.config.num_hidden_layers == 3
    assert len(reloaded.get_submodule(place)) == 3
    batch = read_by(["a lovely film, really", "it was dull"], padding=True, return_tensors="pt")
    batch = {name: value for name, value in batch.items() if name != "token_type_ids"}
    with torch.no_grad(), bypassed(model.get_submodule(place), [0, 2, 3]):
        expected = model(**batch).logits
    with torch.no_grad():
        assert not torch.allclose(expected, model(**batch).logits)
        torch.testing.assert_close(student.eval()(**batch).logits, expected)
        torch.testing.assert_close(reloaded.eval()(**batch).logits, expected)


ODD = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "cls_token_id": 0, "sep_token_id": 0}


@pytest.mark.parametrize(
    ("architecture", "settings", "right", "wrong"),
    [
        ("ModernBert", SMALL | ODD, "layers:first:2", ["layers:last:2", "layers:3,0"]),  # its first layer lacks a norm
        ("SmolLM3", SMALL | ODD | {"num_key_value_heads": 2}, "layers:first:2", ["layers:0,3"]),  # its fourth has no positions
        ("Longformer", SMALL | {"attention_window": [4, 4, 8, 8], "max_position_embeddings": 70}, None, ["layers:first:2"]),
    ],
)
def test_layers_that_a_config_cannot_tell_are_refused(
    architecture: str, settings: dict[str, Any], right: str | None, wrong: list[str], tokenizer: Any, tmp_path: Path
) -> None:
    """What is saved would be another model than the one that was trained, or could not be loaded."""
    model = random_model(
        architecture, len(tokenizer), {name: value for name, value in settings.items() if name != "pad_token_id"}
    )
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    for spec in wrong:
        with pytest.raises(ValueError, match=rf"^student '{spec}' could not be loaded again: .* choose other layers"):
            build_student(spec, str(tmp_path / "teacher"), TASK)
    if right is not None:
        student, read_by = build_student(right, str(tmp_path / "teacher"), TASK)
        student.save_pretrained(tmp_path / "student")
        batch = read_by(["a lovely film, really"], return_tensors="pt", return_token_type_ids=False)
        reloaded = load_classifier(str(tmp_path / "student"), TASK)
        with torch.no_grad():
            torch.testing.assert_close(reloaded(**batch).logits, student.eval()(**batch).logits)


def test_building_a_student_leaves_random_numbers_alone(teacher: str) -> None:
    before = torch.get_rng_state()
    build_student("layers:2", teacher, TASK)
    assert torch.equal(torch.get_rng_state(), before)


def test_layers_keep_their_order_and_caches_their_places(tiny_bert: Any) -> None:
    model = tiny_bert(layers=DEPTH)
    layers = list(model.bert.encoder.layer)
    keep_layers(model, [3, 1])
    assert list(model.bert.encoder.layer) == [layers[3], layers[1]]
    places = [part.layer_idx for part in model.modules() if hasattr(part, "layer_idx")]
    assert places == sorted(places)
    assert set(places) <= {0, 1}


def test_a_teacher_of_one_layer_can_be_copied(tiny_bert: Any) -> None:
    model = tiny_bert(layers=1)
    keep_layers(model, [0])
    assert model.config.num_hidden_layers == len(model.bert.encoder.layer) == 1


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("Albert", SMALL | {"embedding_size": 12}),
        ("XLM", {"emb_dim": 16, "n_layers": 3, "n_heads": 2}),
    ],
)
def test_layers_that_are_no_single_list_are_refused(architecture: str, settings: dict[str, Any]) -> None:
    model = random_model(architecture, 50, settings)
    with pytest.raises(ValueError, match=r"no one list of \d layers to choose from; name a student by its path"):
        keep_layers(model, [0, 1])


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        ("layers:0,2,3", [0, 2, 3]),
        ("layers:2,0", [2, 0]),
        ("layers:3", [0, 2, 3]),
        ("layers:spread:3", [0, 2, 3]),
        ("layers:4", [0, 1, 2, 3]),
        ("layers:first:2", [0, 1]),
        ("layers:last:3", [1, 2, 3]),
        ("layers:every:2", [1, 3]),
        ("layers:last:2,ffn=8", [2, 3]),
        ("layers:1,ffn=8,heads=2,3", [1, 3]),
    ],
)
def test_layers_by_number_or_by_count(spec: str, layers: list[int]) -> None:
    assert parse_layers(spec, DEPTH) == layers


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("layers:", "names no layers; write layers:0,2,4"),
        ("layers:two", "names no layers"),
        ("layers:1,", "names no layers"),
        ("layers:0", "asks for 0 layers, the teacher has 4"),
        ("layers:5", "asks for 5 layers, the teacher has 4"),
        ("layers:-1", "asks for -1 layers"),
        ("layers:0,4", "asks for layer 4, the teacher has layers 0 to 3"),
        ("layers:-1,2", "asks for layer -1, the teacher has layers 0 to 3"),
        ("layers:1,1", "asks for a layer twice"),
        ("layers:firs:2", "chooses layers by 'firs'; did you mean 'first'?"),
        ("layers:last:0", "asks for 0 layers"),
        ("layers:last:5", "asks for 5 layers, the teacher has 4"),
        ("layers:last:1,2", "gives 'last' 2 numbers, expected one: how many layers"),
        ("layers:last:", "names no layers"),
    ],
)
def test_layers_that_cannot_be(spec: str, complaint: str, teacher: str) -> None:
    for refuse in (lambda: parse_layers(spec, DEPTH), lambda: check_student(spec, teacher)):
        with pytest.raises(ValueError, match=re.escape(complaint)) as caught:
            refuse()
        assert spec in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_student_is_checked_by_its_config_alone(teacher: str, tmp_path: Path) -> None:
    (tmp_path / "teacher" / "model.safetensors").unlink()
    check_student("layers:0,3", teacher)
    check_student(teacher, "nowhere/at/all")
    with pytest.raises(ValueError, match="does not exist; give a model folder or a hub id"):
        check_student(str(tmp_path / "none"), teacher)


def test_every_nth_by_hand() -> None:
    """Twelve to four are TinyBERT's 3, 6, 9, 12, counted from one."""
    assert [every(count, 12) for count in (3, 4, 6)] == [[3, 7, 11], [2, 5, 8, 11], [1, 3, 5, 7, 9, 11]]
    assert [every(count, 6) for count in (1, 5, 6)] == [[5], [0, 1, 3, 4, 5], [0, 1, 2, 3, 4, 5]]


def test_spread_by_hand() -> None:
    assert [spread(count, 6) for count in (1, 2, 6)] == [[0], [0, 5], [0, 1, 2, 3, 4, 5]]
    assert spread(3, 5) == [0, 2, 4]
    assert spread(4, 12) == [0, 4, 7, 11]


@given(st.integers(1, 48).flatmap(lambda depth: st.tuples(st.integers(1, depth), st.just(depth))))
def test_spread_goes_from_the_first_layer_to_the_last_in_even_steps(sizes: tuple[int, int]) -> None:
    count, depth = sizes
    layers = spread(count, depth)
    steps = {after - before for before, after in pairwise(layers)}
    assert len(layers) == count
    assert layers[0] == 0
    assert count == 1 or layers[-1] == depth - 1
    assert all(step > 0 for step in steps)
    assert not steps or max(steps) - min(steps) <= 1


def test_an_encoder_gets_the_labels_of_the_task_and_a_head_from_the_seed(teacher: str, tmp_path: Path) -> None:
    three = Task(name="x", kind="classification", label_names=("a", "b", "c"))
    before = torch.get_rng_state()
    first, again, other = (load_encoder(teacher, three, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert first.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert first.classifier.weight.shape[0] == 3
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert torch.equal(first.bert.embeddings.word_embeddings.weight, other.bert.embeddings.word_embeddings.weight)
    scores = load_encoder(teacher, SCORES)
    assert (scores.config.num_labels, scores.config.problem_type) == (1, "regression")


def test_a_head_that_fits_is_kept(teacher: str, tiny_bert: Any) -> None:
    student, _ = build_student("layers:2", teacher, TASK)
    assert torch.equal(student.classifier.weight, tiny_bert(layers=DEPTH).classifier.weight)
    assert student.config.id2label == {0: "negative", 1: "positive"}


def test_a_head_that_knows_the_labels_in_another_order_is_turned(teacher: str, tiny_bert: Any, tmp_path: Path) -> None:
    """Else its answers would change their names."""
    three = Task(name="x", kind="classification", label_names=("a", "b", "c"))
    turned = tiny_bert(3, layers=2)
    turned.config.id2label, turned.config.label2id = {0: "C", 1: "a", 2: "b"}, {"C": 0, "a": 1, "b": 2}
    turned.save_pretrained(tmp_path)
    load_tokenizer(teacher).save_pretrained(tmp_path)
    student, _ = build_student("layers:1", str(tmp_path), three)
    assert student.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert torch.equal(student.classifier.weight, turned.classifier.weight[[1, 2, 0]])
    assert torch.equal(student.classifier.bias, turned.classifier.bias[[1, 2, 0]])


def test_an_encoder_whose_weights_fit_another_model_is_refused(tiny_bert: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Else it would begin from random weights, without a word."""
    tokenizer.save_pretrained(tmp_path)
    model = tiny_bert(layers=2)
    for weights in (
        {f"_orig_mod.{name}": value for name, value in model.state_dict().items()},
        {name: value for name, value in model.state_dict().items() if "layer.1." not in name},
    ):
        model.config.save_pretrained(tmp_path)
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(
            ValueError, match=r"lacks \d+ of the weights of BertForSequenceClassification, like bert\."
        ) as caught:
            load_encoder(str(tmp_path), TASK)
        assert "\n" not in str(caught.value)


def test_an_encoder_without_pooler_and_head_gets_new_ones(tiny_bert: Any, tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    model = tiny_bert(layers=2)
    model.config.save_pretrained(tmp_path)
    own = {name: value for name, value in model.bert.state_dict().items() if "pooler" not in name}
    save_file(own, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = load_encoder(str(tmp_path), TASK)
    assert all(torch.equal(loaded.bert.state_dict()[name], value) for name, value in own.items())


def test_a_student_from_a_folder_has_its_own_tokenizer(
    teacher: str, tiny_bert: Any, bpe_tokenizer: Any, tmp_path: Path
) -> None:
    tiny_bert(layers=1, width=16, tokenizer=bpe_tokenizer).save_pretrained(tmp_path / "other")
    bpe_tokenizer.save_pretrained(tmp_path / "other")
    student, read_by = build_student(str(tmp_path / "other"), teacher, TASK)
    assert student.config.hidden_size == 16
    assert read_by.get_vocab() == bpe_tokenizer.get_vocab()


def test_a_fine_tuned_classifier_comes_in_float32_ready_to_answer(teacher: str, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(teacher).half()
    model.save_pretrained(tmp_path / "half")
    loaded = load_classifier(str(tmp_path / "half"), TASK)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert not any(module.training for module in loaded.modules())


def test_a_teacher_without_a_trained_head_is_refused(tmp_path: Path, tiny_bert: Any) -> None:
    tiny_bert(layers=1).bert.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"not fine-tuned: it lacks classifier\.bias, .* --(teacher-)?init"):
        load_classifier(str(tmp_path / "encoder"), TASK)


@pytest.mark.parametrize(
    ("names", "task", "complaint"),
    [
        (("a", "b", "c"), TASK, r"predicts 3 labels, the data needs 2 \(negative, positive\)"),
        (("negative", "positive"), SCORES, r"predicts 2 labels, the data needs 1 \(regression\)"),
        ((), TASK, r"predicts 1 labels, the data needs 2"),
    ],
)
def test_a_teacher_with_another_number_of_labels_is_refused(
    save: Any, tmp_path: Path, names: tuple[str, ...], task: Task, complaint: str
) -> None:
    folder = save(tmp_path / "t", names, layers=1)
    with pytest.raises(ValueError, match=complaint):
        load_classifier(str(folder), task)


def _cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def _garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x00" * 4000)


def _none(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _other_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))


@pytest.mark.parametrize("damage", [_cut, _garbage, _none, _no_json, _other_shape])
def test_a_broken_model_folder_is_one_line(teacher: str, damage: Callable[[Path], None]) -> None:
    damage(Path(teacher))
    with pytest.raises(ValueError, match="cannot load") as caught:
        load_classifier(teacher, TASK)
    assert teacher in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["./none", "/none/at/all", "a/b/c", "~/none-of-this-name", "nobody/has-this"])
def test_what_is_not_there_is_one_line(name: str) -> None:
    for load in (lambda: load_tokenizer(name), lambda: load_classifier(name, TASK), lambda: check_student("layers:2", name)):
        with pytest.raises(ValueError, match=r"does not exist|cannot load") as caught:
            load()
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "give a model folder or a hub id" in str(caught.value)


def test_a_model_without_a_tokenizer_is_refused(tiny_bert: Any, tmp_path: Path) -> None:
    """transformers makes one of special tokens alone, to which every word is unknown."""
    tiny_bert(layers=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no tokenizer of its own: save it beside the model"):
        load_tokenizer(str(tmp_path))


def test_a_slow_tokenizer_is_refused(tmp_path: Path) -> None:
    transformers.ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"slow tokenizer without character offsets; save it with a tokenizer\.json"):
        load_tokenizer(str(tmp_path))


def test_padding_is_borrowed_from_a_token_that_ends_no_text_or_refused(tmp_path: Path, bpe_tokenizer: Any) -> None:
    bpe_tokenizer.save_pretrained(tmp_path / "whole")
    settings = json.loads((tmp_path / "whole" / "tokenizer_config.json").read_text())
    for name, lost in (("ends", {"pad_token"}), ("bare", {"pad_token", "eos_token", "unk_token", "bos_token"})):
        bpe_tokenizer.save_pretrained(tmp_path / name)
        left = {key: value for key, value in settings.items() if key not in lost}
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(left))
        (tmp_path / name / "special_tokens_map.json").unlink(missing_ok=True)
    assert load_tokenizer(str(tmp_path / "whole")).pad_token == "<pad>"
    assert load_tokenizer(str(tmp_path / "ends")).pad_token == "<unk>"  # </s> ends every text
    with pytest.raises(ValueError, match="no padding token; set one and save it"):
        load_tokenizer(str(tmp_path / "bare"))


@pytest.mark.parametrize(
    ("names", "labels", "order"),
    [
        (("negative", "positive"), ("negative", "positive"), [0, 1]),
        (("positive", "negative"), ("negative", "positive"), [1, 0]),
        (("POSITIVE", "Negative"), ("negative", "positive"), [1, 0]),
        (("c", "a", "b"), ("a", "b", "c"), [2, 0, 1]),
        (("LABEL_0", "LABEL_1"), ("negative", "positive"), [0, 1]),
        (("US", "us"), ("us", "US"), [1, 0]),
        (("negative", "positive"), ("0", "1"), [0, 1]),
        (("1", "0"), ("0", "1"), [1, 0]),
    ],
)
def test_labels_are_matched_by_name(tiny_bert: Any, names: tuple[str, ...], labels: tuple[str, ...], order: list[int]) -> None:
    model = tiny_bert(layers=1, num_labels=len(names))
    model.config.id2label = dict(enumerate(names))
    assert label_order(model, Task(name="x", kind="classification", label_names=labels), "t") == order


def test_scores_have_no_order(tiny_bert: Any) -> None:
    assert label_order(tiny_bert(layers=1, num_labels=1), SCORES, "t") == [0]


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (("negative", "neutral"), "t knows the labels negative, neutral, the data has negative, positive; rename 'neutral'"),
        (("LABEL_1", "LABEL_0"), "rename 'LABEL_1'"),
        (("positive", "Positive"), "of which two are one"),
    ],
)
def test_labels_of_other_names_are_refused(tiny_bert: Any, names: tuple[str, ...], complaint: str) -> None:
    model = tiny_bert(layers=1)
    model.config.id2label = dict(enumerate(names))
    with pytest.raises(ValueError, match=complaint):
        label_order(model, TASK, "t")
