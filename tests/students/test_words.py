"""What BiLSTM and TextCNN share: hidden tokens leave no trace, models are ordinary ones, pairs are read in two ways."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from egkd.data import Task
from egkd.models import double_backward, embedding_layer, observe
from egkd.objectives.reasons import hidden_width
from egkd.students import (
    BiLSTMConfig,
    BiLSTMForSequenceClassification,
    TextCNNConfig,
    TextCNNForSequenceClassification,
    build_student,
    check_student,
    load_classifier,
    load_encoder,
    parse_student,
)
from egkd.students.words import WordClassifier, close_up
from egkd.text import collate, encode, perturb

TASK = Task(name="reviews", kind="classification", label_names=("negative", "positive"))
SCORES = Task(name="scores", kind="regression", metrics=("pearson",))
SMALL = {
    "bilstm": "bilstm:hidden=6,layers=2,embed=12,dense=8",
    "textcnn": "textcnn:filters=5,widths=2-3,embed=12",
}
TEXTS = ["a lovely film, really", "dull", "the story was not very funny but we love it"]
VOCABULARY = 30


def random_model(kind: str, *, seed: int = 0, **given: Any) -> WordClassifier:
    common = {"vocab_size": VOCABULARY, "embedding_size": 7, "dense_size": 5, "num_labels": 3, "dropout": 0.2} | given
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "bilstm":
            model: Any = BiLSTMForSequenceClassification(BiLSTMConfig(hidden_size=8, num_hidden_layers=2, **common))
        else:
            model = TextCNNForSequenceClassification(TextCNNConfig(filters=4, widths=(2, 3), **common))
        torch.nn.init.normal_(model.embeddings.weight)
    return model.eval()


MODELS = {(kind, pairs): random_model(kind, pairs=pairs) for kind in SMALL for pairs in ("joint", "siamese")}
kinds = pytest.mark.parametrize("kind", SMALL)


@pytest.fixture(scope="module")
def teacher(save: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(tmp_path_factory.mktemp("words") / "teacher"))


def tokens(rows: list[list[int]], holes: int = 0, left: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask of these rows with `left` and 3 padding tokens at their ends and so many hidden ones inside them."""
    padded, masks = [], []
    longest = max(map(len, rows))
    for row in rows:
        ids, mask = list(row), [1] * len(row)
        for hole in range(holes):
            ids.insert((7 * hole + 1) % (len(ids) + 1), 3 + hole)
            mask.insert((7 * hole + 1) % (len(mask) + 1), 0)
        behind = longest - len(row) + 3
        padded.append([9] * left + ids + [9] * behind)
        masks.append([0] * left + mask + [0] * behind)
    return torch.tensor(padded), torch.tensor(masks)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("pairs", ["joint", "siamese"])
@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=9), min_size=1, max_size=4),
    holes=st.integers(0, 3),
    left=st.integers(0, 2),
)
def test_neither_padding_nor_hidden_tokens_nor_neighbours_leave_a_trace(
    kind: str, pairs: str, rows: list[list[int]], holes: int, left: int
) -> None:
    model = MODELS[kind, pairs]
    ids_BT, mask_BT = tokens(rows, holes, left)
    types_BT = (ids_BT % 2) * mask_BT  # any rule will do
    with torch.no_grad():
        together_BC = model(ids_BT, mask_BT, types_BT).logits
        for row, logits_C in zip(rows, together_BC, strict=True):
            alone = torch.tensor([row])
            torch.testing.assert_close(model(alone, token_type_ids=alone % 2).logits[0], logits_C, rtol=1e-4, atol=1e-5)


@kinds
def test_order_matters_and_every_token_does(kind: str) -> None:
    """The law above would hold for a model that reads nothing."""
    model = MODELS[kind, "joint"]
    with torch.no_grad():
        one, other, without = (model(torch.tensor([row])).logits for row in ([4, 5, 6, 7], [5, 4, 6, 7], [4, 5, 7]))
    assert not torch.allclose(one, other)
    assert not torch.allclose(one, without)


@kinds
def test_nothing_visible_is_a_text_of_its_own(kind: str) -> None:
    """The answer to an empty text: that of the head alone. A sequence may even have no tokens at all."""
    model = MODELS[kind, "joint"]
    width = model.config.hidden_size
    with torch.no_grad():
        expected_1C = model.classifier(model.dense(torch.zeros(1, width)))
        hidden_1C = model(torch.tensor([[4, 5]]), torch.tensor([[0, 0]])).logits
        none_1C = model(torch.zeros(1, 0, dtype=torch.long)).logits
    torch.testing.assert_close(hidden_1C, expected_1C)
    torch.testing.assert_close(none_1C, expected_1C)


def test_closing_up_by_hand() -> None:
    values_1T1 = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    values, visible, places = close_up(values_1T1, torch.tensor([[False, True, False, True]]))
    assert values[..., 0].tolist() == [[2.0, 4.0, 0.0, 0.0, 0.0]]
    assert visible.tolist() == [[True, True, False, False, False]]
    assert places.tolist() == [[4, 0, 4, 1]]


@kinds
def test_hiding_words_from_attention_is_deleting_them(kind: str, teacher: str) -> None:
    model, tokenizer = build_student(SMALL[kind], teacher, TASK)
    encoded = encode(tokenizer, TEXTS)
    batch = collate([dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)], 0)
    keep_BU = torch.rand(3, int(batch["n_units"].max()), generator=torch.Generator().manual_seed(0)) > 0.5
    with torch.no_grad():
        hidden, deleted = (
            observe(model.eval(), perturb(batch, keep_BU, how, tokenizer)).logits_BC for how in ("attention", "delete")
        )
        whole = observe(model, batch).logits_BC
    torch.testing.assert_close(hidden, deleted)
    assert not torch.allclose(hidden, whole, atol=1e-6)


@kinds
def test_hidden_states_stand_where_their_tokens_do(kind: str) -> None:
    model = MODELS[kind, "joint"]
    ids, mask = torch.tensor([[4, 9, 5, 6]]), torch.tensor([[1, 0, 1, 1]])
    with torch.no_grad():
        embeddings, states = model(ids, mask, output_hidden_states=True).hidden_states
        alone = model(torch.tensor([[4, 5, 6]]), output_hidden_states=True).hidden_states[1]
    assert embeddings.shape == (1, 4, 7)
    assert states.shape == (1, 4, model.config.hidden_size)
    torch.testing.assert_close(states[:, [0, 2, 3]], alone)
    assert states[0, 1].abs().sum() == 0


@kinds
def test_the_embedding_output_is_tapped_and_replaced(kind: str, teacher: str) -> None:
    model, tokenizer = build_student(SMALL[kind], teacher, TASK)
    batch = dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))
    assert embedding_layer(model) is model.get_input_embeddings()
    seen = observe(model.eval(), batch, keep=("embeddings",))
    assert seen.embeddings_BTD is not None
    assert seen.at is not None
    torch.testing.assert_close(seen.embeddings_BTD, model.embeddings(batch["input_ids"]))
    (slope_BTD,) = torch.autograd.grad(seen.logits_BC[:, 0].sum(), seen.embeddings_BTD)
    hidden = batch["attention_mask"] == 0
    assert slope_BTD[hidden].abs().max() == 0
    assert slope_BTD[~hidden].abs().max() > 0
    step_BTD = 1e-3 * torch.randn(slope_BTD.shape, generator=torch.Generator().manual_seed(0))
    moved = seen.at(seen.embeddings_BTD + step_BTD)[:, 0] - seen.at(seen.embeddings_BTD)[:, 0]
    torch.testing.assert_close(moved, (slope_BTD * step_BTD).sum((1, 2)), rtol=0.05, atol=1e-6)


@kinds
@pytest.mark.parametrize("pairs", ["joint", "siamese"])
def test_it_can_be_differentiated_twice(kind: str, pairs: str) -> None:
    """Against finite differences of the first derivative, with a hidden token and a padded row."""
    model = random_model(kind, pairs=pairs, seed=3, embedding_size=2, dense_size=2, num_labels=2).double()
    ids, mask = torch.tensor([[4, 5, 6], [8, 4, 9]]), torch.tensor([[1, 0, 1], [1, 1, 0]])
    types = torch.tensor([[0, 1, 1], [0, 1, 0]])
    words = model.embeddings(ids).detach().requires_grad_()

    def logits(embeddings_BTD: Tensor) -> Tensor:
        return model(attention_mask=mask, token_type_ids=types, inputs_embeds=embeddings_BTD).logits

    with double_backward():
        assert torch.autograd.gradcheck(logits, words)
        assert torch.autograd.gradgradcheck(logits, words)


@kinds
def test_a_second_derivative_reaches_every_weight_in_training_mode(kind: str) -> None:
    model = random_model(kind, seed=1).train()
    batch = {"input_ids": torch.tensor([[4, 5, 6, 7]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    torch.manual_seed(0)
    seen = observe(model, batch, keep=("embeddings",), differentiable=True)
    (slope,) = torch.autograd.grad(seen.logits_BC[:, 0].sum(), seen.embeddings_BTD, create_graph=True)
    slope.square().sum().backward()
    moved = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.abs().sum() > 0}
    assert {"classifier.weight", "dense.0.weight"} <= moved
    assert any(name.startswith("encoder.") for name in moved)


@kinds
def test_the_loss_is_that_of_other_models(kind: str) -> None:
    model, ids, labels = MODELS[kind, "joint"], torch.tensor([[4, 5], [6, 7]]), torch.tensor([2, 0])
    out = model(ids, labels=labels)
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(out.logits, labels))
    loss, logits = model(ids, labels=labels, return_dict=False)
    assert torch.equal(torch.stack([loss, *logits.flatten()]), torch.stack([out.loss, *out.logits.flatten()]))
    scorer = random_model(kind, num_labels=1)
    out = scorer(ids, labels=torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(out.loss, (out.logits[:, 0] - torch.tensor([0.5, 2.0])).square().mean())


@kinds
def test_it_is_saved_and_loaded_like_any_model(kind: str, teacher: str, tmp_path: Path) -> None:
    model, tokenizer = build_student(SMALL[kind], teacher, TASK, seed=2)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    again, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert {name: list(found) for name, found in info.items() if found} == {}
    assert type(again) is type(model)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == again.config.to_dict()
    batch = AutoTokenizer.from_pretrained(tmp_path)(TEXTS, padding=True, return_tensors="pt")
    assert torch.equal(again(**batch).logits, model.eval()(**batch).logits)
    assert load_classifier(str(tmp_path), TASK).config.id2label == {0: "negative", 1: "positive"}
    answers = pipeline("text-classification", model=str(tmp_path), device="cpu")(TEXTS)
    assert [each["label"] for each in answers] == [TASK.label_names[i] for i in again(**batch).logits.argmax(1)]
    assert answers[0]["score"] == pytest.approx(again(**batch).logits.softmax(1).max(1).values[0].item(), abs=1e-5)


@kinds
def test_a_head_of_another_size_is_drawn_anew_and_the_rest_kept(kind: str, teacher: str, tmp_path: Path) -> None:
    model, _ = build_student(SMALL[kind], teacher, TASK)
    model.save_pretrained(tmp_path)
    three = Task(name="x", kind="classification", label_names=("a", "b", "c"))
    first, again, other = (load_encoder(str(tmp_path), three, seed=seed) for seed in (0, 0, 1))
    assert first.classifier.weight.shape[0] == 3
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    kept = [name for name in model.state_dict() if not name.startswith("classifier")]
    assert all(torch.equal(model.state_dict()[name], other.state_dict()[name]) for name in kept)


@kinds
def test_weights_come_from_the_seed_alone(kind: str, teacher: str) -> None:
    before = torch.get_rng_state()
    first, again, other = (build_student(SMALL[kind], teacher, TASK, seed=seed)[0] for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert torch.equal(first.embeddings.weight, other.embeddings.weight)


@kinds
def test_scores_have_one_output(kind: str, teacher: str) -> None:
    model, _ = build_student(SMALL[kind], teacher, SCORES)
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")


@kinds
def test_siamese_pairs_are_read_apart_and_combined(kind: str) -> None:
    """[u, v, u * v, |u - v|] of the pooled texts, worked out from two models that read one text each."""
    model = MODELS[kind, "siamese"]
    ids, types = torch.tensor([[4, 5, 6, 7, 8]]), torch.tensor([[0, 0, 0, 1, 1]])
    single = MODELS[kind, "joint"]
    with torch.no_grad():
        u, v = (pooled(model, ids[types == part][None]) for part in (0, 1))
        features = torch.cat([u, v, u * v, (u - v).abs()], dim=1)
        expected = model.classifier(model.dense(features))
        torch.testing.assert_close(model(ids, token_type_ids=types).logits, expected)
    with pytest.raises(ValueError, match="tells two texts apart by token_type_ids"):
        model(ids)
    assert single.classifier.weight.shape == model.classifier.weight.shape


def pooled(model: WordClassifier, ids_BT: Tensor) -> Tensor:
    values, visible, _ = close_up(model.embeddings(ids_BT), torch.ones_like(ids_BT).bool())
    return model.pooling(model.encoder(values, visible), visible)


@kinds
def test_a_siamese_student_has_room_for_a_head(kind: str) -> None:
    assert hidden_width(MODELS[kind, "siamese"]) == hidden_width(MODELS[kind, "joint"])


def test_siamese_needs_segments(bpe_tokenizer: Any, tiny_bert: Any, teacher: str, tmp_path: Path, tiny_data: Any) -> None:
    tiny_bert(layers=1, tokenizer=bpe_tokenizer).save_pretrained(tmp_path)
    bpe_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="by token_type_ids, which this tokenizer lacks; use pairs=joint"):
        build_student("bilstm:pairs=siamese", str(tmp_path), TASK)
    with pytest.raises(ValueError, match="reads two texts apart, and the data has one"):
        build_student("bilstm:pairs=siamese", teacher, TASK, examples=tiny_data)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("bilstm:hiden=3", r"unknown setting 'bilstm\.hiden'; did you mean 'hidden'\?"),
        ("textcnn:filter=3", r"'textcnn\.filter'; did you mean 'filters'\?"),
        ("textcnn:hidden=3", r"unknown setting 'textcnn\.hidden'; known are .*filters"),
        ("bilstm:hidden=big", r"bilstm\.hidden: .*integer.*found 'big'"),
        ("bilstm:hidden=0", r"bilstm\.hidden: .*greater than 0"),
        ("bilstm:layers=9", r"bilstm\.layers: .*less than or equal to 4"),
        ("bilstm:dropout=1", r"bilstm\.dropout: .*less than 1"),
        ("bilstm:pairs=both", r"bilstm\.pairs: .*'joint' or 'siamese'.*found 'both'"),
        ("bilstm:hidden", "found 'hidden', expected options like name=value"),
        ("bilstm:hidden=3,", "found '', expected options like name=value"),
        ("bilstm:hidden=3,hidden=4", "sets hidden twice"),
        ("textcnn:widths=3-3", r"textcnn\.widths: expected different widths of 1 or more, like 3-4-5"),
        ("textcnn:widths=3/4", r"textcnn\.widths.*found '3/4'"),
        ("textcnn:widths=0-4", "expected different widths of 1 or more"),
        ("bilstm:words=9", "words says how many vectors to read, and there is no file; add vectors=FILE"),
        ("bilstm:vectors=nowhere.txt", r"vectors=nowhere\.txt is no file"),
        (
            "blstm:hidden=3",
            r"student 'blstm:hidden=3' is of an unknown kind; did you mean 'bilstm'\?, or give a folder or hub id",
        ),
    ],
)
def test_specs_that_cannot_be(spec: str, complaint: str, teacher: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        check_student(spec, teacher)
    assert "\n" not in str(caught.value)


def test_what_is_told_of_the_width_is_built(teacher: str) -> None:
    student, _ = build_student("bilstm", teacher, TASK)
    told = parse_student("bilstm").outline(teacher, trust_remote_code=False).config
    assert told.embedding_size == student.config.embedding_size == 32


def test_wider_embeddings_than_the_teachers_cannot_be(teacher: str) -> None:
    with pytest.raises(ValueError, match=r"embed=33 is more than the embeddings of .* have: 32"):
        build_student("bilstm:embed=33", teacher, TASK)


def test_by_default_they_have_one_to_five_million_parameters(teacher: str, tmp_path: Path, tiny_bert: Any, save: Any) -> None:
    """With a vocabulary of 30,522, as BERT's."""
    for spec, kind in ((BiLSTMConfig(), BiLSTMForSequenceClassification), (TextCNNConfig(), TextCNNForSequenceClassification)):
        with torch.device("meta"):
            parameters = kind(spec).num_parameters()
        assert 1e6 < parameters < 5e6
    save(tmp_path / "wide", width=256)
    for name, described in (("bilstm", BiLSTMConfig()), ("textcnn", TextCNNConfig())):
        built = build_student(name, str(tmp_path / "wide"), TASK)[0].config
        same = ("embedding_size", "hidden_size", "dense_size", "dropout", "pairs")
        assert [getattr(built, each) for each in same] == [getattr(described, each) for each in same]


class Logits(torch.nn.Module):
    """What an exporter wants: tensors in, one tensor out."""

    def __init__(self, model: WordClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        return self.model(input_ids, attention_mask, token_type_ids, return_dict=False)[0]


def example(batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
    mask = (torch.arange(length) < torch.tensor([[length]] + [[length - 1]] * (batch - 1))).long()
    return ids, mask, (torch.arange(length) > length // 2).long().expand(batch, -1) * mask


@pytest.mark.parametrize(
    ("kind", "pairs", "dynamo"),
    [("textcnn", "joint", True), ("textcnn", "siamese", False), ("bilstm", "joint", False), ("bilstm", "siamese", False)],
)
@pytest.mark.filterwarnings("ignore")
def test_it_is_exported_with_any_batch_and_length(kind: str, pairs: str, dynamo: bool, tmp_path: Path) -> None:
    """By either exporter of PyTorch; LSTMs of any length only by the older one."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, names = MODELS[kind, pairs], ["input_ids", "attention_mask", "token_type_ids"]
    axes = {0: "batch", 1: "length"}
    file = str(tmp_path / "student.onnx")
    how: dict[str, Any] = {"dynamo": True, "dynamic_shapes": [axes] * 3} if dynamo else {"dynamo": False, "opset_version": 17}
    if not dynamo:
        how["dynamic_axes"] = dict.fromkeys(names, axes)
    with torch.no_grad():
        torch.onnx.export(Logits(model).eval(), example(2, 6), file, input_names=names, output_names=["logits"], **how)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for batch, length in ((2, 6), (1, 3), (5, 11)):
        inputs = example(batch, length)
        asked = {each.name for each in session.get_inputs()}
        (found,) = session.run(None, {n: v.numpy() for n, v in zip(names, inputs, strict=True) if n in asked})
        with torch.no_grad():
            torch.testing.assert_close(torch.tensor(found), Logits(model).eval()(*inputs), rtol=1e-4, atol=1e-5)


@kinds
@pytest.mark.filterwarnings("ignore")
def test_torch_exports_it_with_any_batch(kind: str) -> None:
    model = Logits(MODELS[kind, "joint"]).eval()
    free = {0: torch.export.Dim("batch")}
    with torch.no_grad():
        exported = torch.export.export(model, example(2, 6), dynamic_shapes=[free] * 3).module()
        torch.testing.assert_close(exported(*example(4, 6)), model(*example(4, 6)))


def test_a_saved_config_says_what_it_is(teacher: str, tmp_path: Path) -> None:
    build_student("textcnn:filters=5,widths=2-4,embed=8", teacher, TASK)[0].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["widths"], config["hidden_size"]) == ("egkd-textcnn", [2, 4], 10)
    assert config["architectures"] == ["TextCNNForSequenceClassification"]
