"""What happens inside models as objectives: hand-computed numbers, layer maps, projections that come and go, refusals."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    FNetConfig,
    ModernBertConfig,
    Qwen2Config,
    TrainingArguments,
)

from egkd.attention import eager_attention, projecting_layers
from egkd.compatible import check_compatible
from egkd.heads import HEADS, detach_heads, tie_heads
from egkd.lessons import stack
from egkd.models import Seen, frozen, observe
from egkd.objectives import (
    OBJECTIVES,
    AttentionMaps,
    GradientGuide,
    HiddenStates,
    Labels,
    Moment,
    Objective,
    PatientStates,
    Relations,
    Teacher,
)
from egkd.objectives.internals import layer_map
from egkd.objectives.schedule import Schedule
from egkd.predict import encode_dataset
from egkd.step import learn
from egkd.students import BiLSTMConfig, TextCNNConfig
from egkd.text import collate
from egkd.train import DistillationTrainer

INTERNALS = [HiddenStates(), AttentionMaps(), PatientStates(), Relations(relation_heads=2)]
TWO = {"attention_mask": torch.tensor([[1, 1, 0]])}


@pytest.fixture
def moment(tokenizer: Any) -> Moment:
    return Moment(step=0, epoch=0, tokenizer=tokenizer)


def shown(**parts: Any) -> Seen:
    return Seen(logits_BC=torch.zeros(1, 2), **parts)


# layer maps


@pytest.mark.parametrize(
    ("layers", "student", "teacher", "table"),
    [
        ("uniform", 4, 12, {1: 3, 2: 6, 3: 9, 4: 12}),  # TinyBERT's g(m) = 3 m
        ("uniform", 2, 5, {1: 3, 2: 5}),
        ("uniform", 3, 2, {1: 1, 2: 1, 3: 2}),
        ("uniform", 6, 1, {1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1}),
        ("last", 3, 12, {1: 10, 2: 11, 3: 12}),
        ("final", 3, 12, {3: 12}),
        ({1: 2, 3: 12}, 3, 12, {1: 2, 3: 12}),
    ],
)
def test_layer_maps(layers: Any, student: int, teacher: int, table: dict[int, int]) -> None:
    assert layer_map(layers, student, teacher) == table


def test_embeddings_and_inner_layers() -> None:
    assert layer_map("uniform", 2, 4, lowest=0) == {0: 0, 1: 2, 2: 4}
    assert layer_map("uniform", 6, 12, inner=True) == {1: 2, 2: 4, 3: 6, 4: 8, 5: 10}  # PKD-Skip
    assert layer_map("last", 6, 12, inner=True) == {1: 7, 2: 8, 3: 9, 4: 10, 5: 11}  # PKD-Last


@pytest.mark.parametrize(
    ("layers", "settings", "complaint"),
    [
        ({1: 5}, {}, "layer 5 of the teacher, which has layers 1 to 4"),
        ({0: 1}, {}, "layer 0 of the student, which has layers 1 to 5"),
        ({}, {}, "layers names none; give a table"),
        ("last", {}, "wants 5 layers of the teacher, which has 4; use 'uniform'"),
    ],
)
def test_impossible_maps_are_refused(layers: Any, settings: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        layer_map(layers, 5, 4, **settings)
    with pytest.raises(ValueError, match="and none is left; use 'final'"):
        layer_map("uniform", 1, 4, inner=True)


# numbers by hand


def test_hidden_states_by_hand(moment: Moment) -> None:
    """Two real tokens: squared errors (1 + 4) / 2 and (0 + 9) / 2, mean 3.5; the third token is padding."""
    objective = HiddenStates(layers={1: 2})
    lesson = {"layer-2": torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])}
    lesson["layer-2"] = torch.nn.functional.pad(lesson["layer-2"], (0, 0, 0, 1))
    states = torch.tensor([[[2.0, 0.0], [3.0, 1.0], [9.0, 9.0]]])
    seen = shown(hidden_states=(torch.zeros(1, 3, 2), states))
    assert objective.learn(seen, [], TWO, lesson, moment).tolist() == pytest.approx([3.5])
    cosine = 1 - (2 / (2 * 5**0.5) + 13 / (5 * 10**0.5)) / 2
    assert HiddenStates(layers={1: 2}, distance="cosine").learn(seen, [], TWO, lesson, moment).tolist() == pytest.approx(
        [cosine]
    )
    both = HiddenStates(layers={0: 2, 1: 2}).learn(seen, [], TWO, lesson, moment)
    assert both.tolist() == pytest.approx([3.5 + (5 / 2 + 25 / 2) / 2])


def test_patient_states_by_hand(moment: Moment) -> None:
    """Directions (0.6, 0.8) and (1, 0): squared differences 0.16 and 0.64, mean 0.4."""
    seen = shown(hidden_states=(torch.zeros(1, 3, 2), torch.tensor([[[3.0, 4.0], [1.0, 0.0], [9.0, 9.0]]])))
    lesson = {"layer-4": torch.tensor([[2.0, 0.0]])}
    objective = PatientStates(layers={1: 4})
    assert objective.learn(seen, [], TWO, lesson, moment).tolist() == pytest.approx([0.4])
    plain = objective.model_copy(update={"compare": "states"})
    assert plain.learn(seen, [], TWO, lesson, moment).tolist() == pytest.approx([(1 + 16) / 2])
    mean = plain.model_copy(update={"pooling": "mean"})  # (2, 2)
    assert mean.learn(seen, [], TWO, lesson, moment).tolist() == pytest.approx([2.0])


def test_attention_maps_by_hand(moment: Moment) -> None:
    taught = torch.tensor([[[0.5, 0.5], [0.25, 0.75]]])[None]
    own = torch.tensor([[[0.75, 0.25, 0.0], [0.25, 0.75, 0.0], [0.3, 0.3, 0.4]]])[None]
    lesson, seen = {"layer-3": torch.nn.functional.pad(taught, (0, 1, 0, 1))}, shown(attentions=(own,))
    mse = AttentionMaps(layers={1: 3}).learn(seen, [], TWO, lesson, moment)
    assert mse.tolist() == pytest.approx([(2 * 0.25**2) / 4])
    kl = AttentionMaps(layers={1: 3}, distance="kl").learn(seen, [], TWO, lesson, moment)
    assert kl.tolist() == pytest.approx([(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)) / 2])
    # dropout took the first weight of the first row: nothing is left to compare there; the second row is doubled
    dropped = torch.tensor([[[0.0, 0.5, 0.0], [0.5, 1.5, 0.0], [0.6, 0.6, 0.8]]])[None]
    for distance in ("mse", "kl"):
        losses = AttentionMaps(layers={1: 3}, distance=distance).learn(shown(attentions=(dropped,)), [], TWO, lesson, moment)
        assert losses.tolist() == pytest.approx([0.0], abs=1e-6)
    # two heads and one, by their means
    pair = torch.cat([own, own.flip(2)], dim=1)[:, :, :3]
    mean = AttentionMaps(layers={1: 3}, heads="mean").learn(shown(attentions=(pair,)), [], TWO, lesson, moment)
    rows = np.array([[0.75 + 0.3, 0.25 + 0.3], [0.5, 1.5]])
    rows = rows / rows.sum(1, keepdims=True)
    assert mean.tolist() == pytest.approx([np.square(rows - [[0.5, 0.5], [0.25, 0.75]]).sum() / 4], rel=1e-5)


def test_relations_by_hand(moment: Moment) -> None:
    """One relation head of width 1: scores are products. Teacher (1, 0), student (0, 0), whatever comes third."""
    lesson = {f"layer-2-{kind}": torch.tensor([[[1.0], [0.0], [0.0]]]) for kind in ("queries", "keys", "values")}
    zeros, same = torch.tensor([[[0.0], [0.0], [5.0]]]), torch.tensor([[[1.0], [0.0], [7.0]]])
    objective = Relations(layers={1: 2}, relation_heads=1)
    p = math.e / (math.e + 1)  # the first row of the teacher; its second is even, as are the student's
    once = (p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)) / 2
    for values, expected in (((zeros, same, same), once), ((zeros, zeros, zeros), 3 * once), ((same, same, same), 0.0)):
        losses = objective.learn(shown(projections=(values,)), [], TWO, lesson, moment)
        assert losses.tolist() == pytest.approx([expected], abs=1e-6)
    wide = torch.cat([same, same], dim=2)  # two heads of width 1, each the same as the teacher's two
    twice = {name: torch.cat([value, value], dim=2) for name, value in lesson.items()}
    losses = Relations(layers={1: 2}, relation_heads=2).learn(shown(projections=((wide,) * 3,)), [], TWO, twice, moment)
    assert losses.tolist() == pytest.approx([0.0], abs=1e-6)


# on models


def taught(objective: Objective, model: Any, batch: dict[str, Tensor], tokenizer: Any) -> dict[str, Tensor]:
    with frozen(model), torch.no_grad():
        seen = observe(model, batch, keep=objective.needs)
        fields = objective.teach(Teacher(model=model, tokenizer=tokenizer), batch, seen)
    return {name: stack([np.asarray(value) for value in values]) for name, values in fields.items()}


@pytest.mark.parametrize("objective", INTERNALS, ids=lambda objective: objective.name)
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(
    objective: Objective, tiny_bert: Any, tokenizer: Any, tiny_data: Dataset, moment: Moment
) -> None:
    model = tiny_bert()
    batch = collate(list(encode_dataset(tiny_data.select(range(6)), tokenizer)), tokenizer.pad_token_id)
    objective = objective.between(model.config, model.config)
    lesson = taught(objective, model, batch, tokenizer)
    assert {value.shape[0] for value in lesson.values()} == {6}
    losses = objective.learn(observe(model, batch, keep=objective.needs), [], batch, lesson, moment)
    torch.testing.assert_close(losses, torch.zeros(6), atol=1e-6, rtol=0)
    other = observe(tiny_bert(seed=3), batch, keep=objective.needs)
    assert (objective.learn(other, [], batch, lesson, moment) > 1e-3).all()


def test_projections_are_what_attention_is_made_of(tiny_bert: Any, tokenizer: Any, tiny_data: Dataset) -> None:
    """softmax(Q K' / sqrt(d)) of the tapped projections is the attention that the model shows; afterwards no hook is left."""
    model = tiny_bert(layers=2)
    batch = collate(list(encode_dataset(tiny_data.select(range(3)), tokenizer)), tokenizer.pad_token_id)
    seen = observe(model, batch, keep=("projections", "attentions"))
    assert seen.projections is not None
    assert seen.attentions is not None
    for (queries, keys, _), maps in zip(seen.projections, seen.attentions, strict=True):
        split = [each.unflatten(2, (2, 16)).transpose(1, 2) for each in (queries, keys)]
        scores = (split[0] @ split[1].mT / 4).masked_fill(~batch["attention_mask"].bool()[:, None, None], -1e9)
        torch.testing.assert_close(scores.softmax(3), maps)
    assert not any(layer._forward_hooks for _, layers in projecting_layers(model) for layer in layers)


def test_projections_of_positions_are_not_taken_for_those_of_states(tokenizer: Any, tiny_data: Dataset) -> None:
    """DeBERTa makes queries and keys of relative positions by the same layers, after those of the states."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    relative = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "share_att_key": True, "position_buckets": 8}
    model = DebertaV2ForSequenceClassification(DebertaV2Config(vocab_size=len(tokenizer), **sizes, **relative)).eval()
    batch = collate(list(encode_dataset(tiny_data.select(range(3)), tokenizer)), tokenizer.pad_token_id)
    seen = observe(model, batch, keep=("projections", "hidden_states"))
    assert seen.projections is not None
    assert seen.hidden_states is not None
    assert len(seen.projections) == 2
    for layer, (found, states) in enumerate(zip(seen.projections, seen.hidden_states, strict=False)):
        own = model.deberta.encoder.layer[layer].attention.self
        for values, made in zip(found, (own.query_proj, own.key_proj, own.value_proj), strict=True):
            torch.testing.assert_close(values, made(states))


def test_attention_is_seen_with_every_kernel_and_the_kernel_comes_back(tiny_bert: Any) -> None:
    model = tiny_bert(layers=1)
    batch = {"input_ids": torch.tensor([[2, 5, 6, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    assert model.config._attn_implementation == "sdpa"
    seen = observe(model, batch, keep=("attentions",))
    assert seen.attentions is not None
    torch.testing.assert_close(seen.attentions[0].sum(3), torch.ones(1, 2, 4))
    torch.testing.assert_close(seen.logits_BC, observe(model, batch).logits_BC, atol=1e-5, rtol=1e-4)
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(KeyError), eager_attention(model):
        raise KeyError
    assert model.config._attn_implementation == "sdpa"


@pytest.fixture
def run(run: Callable[..., DistillationTrainer]) -> Callable[..., DistillationTrainer]:
    """As everywhere, with a student half as wide as its teacher."""
    return partial(run, width=16)


def weights(trainer: DistillationTrainer) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


SMALL = [HiddenStates(), AttentionMaps(heads="mean"), PatientStates(), Relations(relation_heads=2)]


@pytest.mark.parametrize("objective", SMALL, ids=lambda objective: objective.name)
@pytest.mark.parametrize("width", [16, 32])
def test_a_student_of_any_width_learns(run: Any, objective: Objective, width: int) -> None:
    trainer = run([objective], max_steps=25, width=width, dropout=0.1)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


@pytest.mark.parametrize("objective", SMALL, ids=lambda objective: objective.name)
def test_weight_zero_and_accumulation(run: Any, objective: Objective) -> None:
    plain, off = (run(each, width=32) for each in ([Labels()], [Labels(), objective.model_copy(update={"weight": 0.0})]))
    assert torch.equal(weights(plain), weights(off))
    whole = run([Labels(), objective], optim="sgd", max_grad_norm=0.0)
    halves = run(
        [Labels(), objective], optim="sgd", max_grad_norm=0.0, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    torch.testing.assert_close(weights(whole), weights(halves), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("objective", [HiddenStates(), PatientStates(), Relations(relation_heads=2)], ids=lambda o: o.name)
def test_checkpointing_activations_changes_nothing(run: Any, objective: Objective) -> None:
    whole, frugal = (
        run([Labels(), objective], optim="sgd", max_grad_norm=0.0, gradient_checkpointing=each) for each in (False, True)
    )
    torch.testing.assert_close(weights(whole), weights(frugal), atol=1e-6, rtol=1e-5)


def test_projections_train_are_saved_in_checkpoints_and_leave_in_the_end(run: Any, tmp_path: Path) -> None:
    objectives = [Labels(), HiddenStates(), PatientStates()]
    saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "dropout": 0.1}
    whole = run(objectives, trained=False, **saving)
    before = {name: value.clone() for name, value in getattr(whole.model, HEADS).named_parameters()}
    assert {name: tuple(value.shape) for name, value in before.items()} == {
        "hidden-states.0.weight": (32, 16),
        "hidden-states.1.weight": (32, 16),
        "hidden-states.2.weight": (32, 16),
        "patient-states.1.weight": (32, 16),
    }
    whole.train()
    after = dict(getattr(whole.model, HEADS).named_parameters())
    assert [name for name, value in before.items() if torch.equal(value, after[name])] == []
    resumed = run(objectives, trained=False, **saving)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-3")
    torch.testing.assert_close(weights(whole), weights(resumed), atol=0, rtol=0)
    detach_heads(whole.model, whole.objectives)
    assert not hasattr(whole.model, HEADS)
    whole.model.save_pretrained(tmp_path / "student")
    _, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_heads_are_drawn_from_the_seed_and_only_where_widths_differ(run: Any) -> None:
    heads = [getattr(run([HiddenStates()], trained=False, seed=seed).model, HEADS) for seed in (0, 0, 1)]
    flat = [torch.cat([parameter.flatten() for parameter in each.parameters()]) for each in heads]
    assert torch.equal(flat[0], flat[1])
    assert not torch.equal(flat[0], flat[2])
    assert not hasattr(run([HiddenStates()], trained=False, width=32).model, HEADS)
    always = run([HiddenStates(projection="always", layers={2: 4})], trained=False, width=32)
    assert [name for name, _ in getattr(always.model, HEADS).named_parameters()] == ["hidden-states.2.weight"]


def test_a_head_whose_turn_it_is_not_still_gets_a_gradient(
    tiny_bert: Any, tokenizer: Any, tiny_data: Dataset, moment: Moment
) -> None:
    """Of zeros: DistributedDataParallel waits for one of every parameter."""
    student, teacher = tiny_bert(layers=2, width=16), tiny_bert()
    batch = collate(list(encode_dataset(tiny_data.select(range(4)), tokenizer)), tokenizer.pad_token_id)
    rests = HiddenStates(schedule=Schedule(start=10)).between(teacher.config, student.config)
    lessons = {rests.name: taught(rests, teacher, batch, tokenizer)}
    heads = nn.ModuleDict({rests.name: rests.head(student, lessons[rests.name])})
    student.add_module(HEADS, heads)  # as the trainer does
    tie_heads(student)
    terms, _ = learn(
        student.train(),
        [Labels(), rests],
        batch,
        lessons,
        moment,
        steps=20,
        pad_token_id=0,
        heads=dict(heads.items()),
    )
    assert terms[rests.name] == 0
    torch.stack(list(terms.values())).sum().backward()
    gradients = [parameter.grad for parameter in heads[rests.name].parameters()]
    assert [gradient is not None and not gradient.any() for gradient in gradients] == [True] * 3


def test_lessons_hold_the_layers_that_are_needed_and_are_shared_by_those_who_need_the_same(run: Any, tmp_path: Path) -> None:
    first = run([HiddenStates(layers={1: 4})], max_steps=1)
    second = run([HiddenStates(layers={2: 4}, distance="cosine")], max_steps=1, width=32)
    third = run([HiddenStates(layers={2: 4, 1: 2})], max_steps=1)
    stores = sorted(path.name for path in (tmp_path / "lessons").iterdir() if path.is_dir())
    assert len(stores) == 2
    for trainer, fields in ((first, {"layer-4"}), (second, {"layer-4"}), (third, {"layer-2", "layer-4"})):
        batch = trainer.data_collator([dict(row) for row in trainer.train_dataset.select(range(2))])
        assert set(batch["lessons"]["hidden-states"]) == fields


# refusals


BERT = BertConfig(num_hidden_layers=4, hidden_size=48, num_attention_heads=4)
GROUPED = Qwen2Config(num_hidden_layers=2, hidden_size=48, num_attention_heads=4, num_key_value_heads=1, pad_token_id=0)


@pytest.mark.parametrize(
    ("objective", "student", "complaint"),
    [
        (
            AttentionMaps(),
            BiLSTMConfig(),
            "attention-maps compares attention, egkd-bilstm has none; use soft-labels or a guide",
        ),
        (Relations(), TextCNNConfig(), "relations compares attention, egkd-textcnn has none; use soft-labels or a guide"),
        (PatientStates(), BiLSTMConfig(), "egkd-bilstm gathers nothing there; set pooling to 'mean'"),
        (AttentionMaps(), BertConfig(num_attention_heads=12), "the teacher has 4 and the student 12; set heads to 'mean'"),
        (AttentionMaps(), FNetConfig(), "attention-maps compares attention, fnet has none"),
        (Relations(), ModernBertConfig(), "modernbert does not make them by layers of their own; use hidden-states"),
        (Relations(relation_heads=5), BERT, "5 relation heads evenly, the teacher's width is 48; set relation_heads"),
        (Relations(), GROUPED, "8 relation heads evenly, the student's width is 12; set relation_heads"),
        (PatientStates(), GROUPED, "patient-states compares first tokens, qwen2 reads the last; set pooling to 'mean'"),
        (HiddenStates(layers={9: 1}), BERT, "objectives.hidden-states: layers names layer 9 of the student"),
    ],
)
def test_models_that_cannot_be_compared_are_refused_by_their_configs(
    objective: Objective, student: Any, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        objective.between(BERT, student)
    assert "\n" not in str(caught.value)


def test_what_can_be_compared_is_and_stays_what_it_became() -> None:
    pairs: list[tuple[Objective, Any, dict[int, int]]] = [
        (HiddenStates(), BiLSTMConfig(num_hidden_layers=2), {0: 0, 1: 4}),
        (PatientStates(pooling="mean", layers="final"), TextCNNConfig(), {1: 4}),
        (Relations(relation_heads=4), DistilBertConfig(n_layers=2, dim=48, n_heads=4), {2: 4}),
        (AttentionMaps(), DistilBertConfig(n_layers=2, dim=48, n_heads=4), {1: 2, 2: 4}),
    ]
    for objective, student, table in pairs:
        between = objective.between(BERT, student)
        assert between.layers == table  # type: ignore[attr-defined]
        assert between.between(BERT, student) == between


def test_layers_without_a_student_are_a_table() -> None:
    assert HiddenStates(layers={1: 4}).lesson_key()["layers"] == [4]
    with pytest.raises(ValueError, match="layers is 'uniform', and no student is known yet"):
        HiddenStates().lesson_key()


@pytest.mark.usefixtures("calm_libraries")
@pytest.mark.parametrize(
    ("objective", "student", "labels", "complaint"),
    [
        ("attention-maps", "bilstm", ("good", "bad"), "attention-maps compares attention, egkd-bilstm has none"),
        ("relations", "textcnn:embed=8", ("good", "bad"), "relations compares attention, egkd-textcnn has none"),
        ("hidden-states", "other", ("good", "bad"), "hidden-states compares tokens, and teacher and student have different"),
        ("hidden-states", "vectors", ("good", "bad"), "hidden-states compares tokens, the student has words of its own"),
        ("ad-kd", "other", ("good", "bad"), "ad-kd compares tokens, and teacher and student have different"),
        ("gkd", "narrow", ("good", "bad"), "the teacher's are of 32 dimensions and the student's of 16"),
        ("gkd", "layers:2", (), "gkd explains the largest probability, regression has none"),
    ],
)
def test_a_run_that_cannot_work_is_refused_before_any_model_loads(
    objective: str,
    student: str,
    labels: tuple[str, ...],
    complaint: str,
    egkd: Any,
    save: Any,
    bpe_tokenizer: Any,
    write_csv: Any,
    tmp_path: Path,
) -> None:
    """There are configs and tokenizers, and no weights to load."""
    for name, width in (("teacher", 32), ("other", 32), ("narrow", 16)):
        (save(tmp_path / name, labels, width=width) / "model.safetensors").unlink()
    bpe_tokenizer.save_pretrained(tmp_path / "other")
    (tmp_path / "vectors.txt").write_text("film 1 2\ngreat 3 4\n")
    spec = {"vectors": f"bilstm:vectors={tmp_path / 'vectors.txt'}"}.get(student, student)
    spec = str(tmp_path / student) if (tmp_path / student).is_dir() else spec
    gold = ["good", "bad"] * 8 if labels else [1.5, 0.25] * 8
    train = write_csv(tmp_path / "train.csv", text=["a great film", "a dull plot"] * 8, label=gold)
    parts = ("--teacher", tmp_path / "teacher", "--student", spec, "--train", train, "--out", tmp_path / "run")
    answer = egkd("distill", *parts, "--set", f"objectives.{objective}.weight=1", "--set", "train.use_cpu=true")
    assert answer.code == 2
    assert complaint in " ".join(answer.err.split())
    assert not (tmp_path / "run").exists()


def test_attention_and_checkpointing_are_refused_together(tmp_path: Path) -> None:
    settings = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, activation_checkpointing=True)
    with pytest.raises(ValueError, match="checkpointing computes layers anew without what attention-maps looks at"):
        check_compatible([AttentionMaps()], settings, has_teacher=True)
    check_compatible([HiddenStates()], settings, has_teacher=True)
    with pytest.raises(ValueError, match="layers anew with the dropout that gradient does without"):
        check_compatible([GradientGuide(dropout=False)], settings, has_teacher=True)


def test_all_are_known_by_name() -> None:
    assert {objective.name: type(objective) for objective in INTERNALS}.items() <= OBJECTIVES.items()


@pytest.mark.parametrize("config", [DistilBertConfig, BertConfig])
def test_projecting_layers_are_found_in_every_block(config: Any) -> None:
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config())
    assert len(projecting_layers(model)) == model.config.num_hidden_layers
