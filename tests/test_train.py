"""The loop: invariants that hold whatever is learnt."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader, skip_first_batches
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import BartConfig, BartForSequenceClassification, TrainingArguments

from egkd.compatible import check_compatible, use_one_gpu
from egkd.models import frozen, observe
from egkd.objectives import (
    AttributionDistillation,
    GradientDistillation,
    GradientGuide,
    Labels,
    Objective,
    PerturbationGuide,
    Reasons,
    SelectionGuide,
    SoftLabels,
    Teacher,
)
from egkd.objectives.schedule import Schedule
from egkd.text import collate
from egkd.train import DistillationTrainer

SOME = Schedule(share=0.6)
ALWAYS = Schedule()
GUIDES = [
    GradientGuide(schedule=ALWAYS),
    PerturbationGuide(masks=3, masks_per_step=2, schedule=ALWAYS),
    SelectionGuide(complement=1.0, schedule=ALWAYS),
    GradientGuide(schedule=SOME, strategy="finite-difference"),
    PerturbationGuide(masks=3, masks_per_step=2, schedule=SOME),
    Reasons(),
    Reasons(detach=True, schedule=SOME),
]


def weights(trainer: DistillationTrainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: f"{guide.name}-{guide.schedule.share}")
def test_weight_zero_is_plain_distillation_bit_for_bit(run: Any, guide: Objective) -> None:
    plain = run([Labels(), SoftLabels()], dropout=0.1)
    guided = run([Labels(), SoftLabels(), guide.model_copy(update={"weight": 0.0})], dropout=0.1)
    assert torch.equal(weights(plain), weights(guided))


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: f"{guide.name}-{guide.schedule.share}")
def test_same_seed_gives_the_same_student_and_the_guide_changes_it(run: Any, guide: Objective) -> None:
    first, second = (run([Labels(), SoftLabels(), guide], dropout=0.1) for _ in range(2))
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(run([Labels(), SoftLabels()], dropout=0.1)))


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: f"{guide.name}-{guide.schedule.share}")
def test_batch_of_eight_equals_two_accumulated_of_four(run: Any, guide: Objective) -> None:
    objectives = [Labels(), SoftLabels(), guide]
    whole = run(objectives, optim="sgd", max_grad_norm=0.0)
    halves = run(objectives, optim="sgd", max_grad_norm=0.0, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    torch.testing.assert_close(weights(whole), weights(halves), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: f"{guide.name}-{guide.schedule.share}")
def test_checkpointing_activations_changes_nothing(run: Any, guide: Objective) -> None:
    objectives = [Labels(), SoftLabels(), guide]
    # without dropout: a model that keeps its layers draws it for the first token alone in the last one
    whole, frugal = (run(objectives, optim="sgd", max_grad_norm=0.0, gradient_checkpointing=each) for each in (False, True))
    torch.testing.assert_close(weights(whole), weights(frugal), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("guide", [GUIDES[0], *GUIDES[3:]], ids=lambda guide: f"{guide.name}-{guide.schedule.share}")
def test_a_compiled_student_learns_the_same(run: Any, guide: Objective) -> None:
    """Passes that somebody looks into run uncompiled, the others compiled."""
    compiling = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    sgd = {"optim": "sgd", "max_grad_norm": 0.0}
    plain, compiled = (run([Labels(), SoftLabels(), guide], **sgd, **extra) for extra in ({}, compiling))
    torch.testing.assert_close(weights(plain), weights(compiled), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("steps", "accumulated"), [(1, 1), (2, 2)])
def test_every_term_is_logged_and_they_sum_to_the_loss(run: Any, steps: int, accumulated: int) -> None:
    """Means over the steps since the last line, and over the batches of each."""
    settings = {
        "logging_steps": steps,
        "gradient_accumulation_steps": accumulated,
        "per_device_train_batch_size": 8 // accumulated,
    }
    trainer = run([Labels(), SoftLabels(), *GUIDES[:3]], **settings)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    names = {f"loss/{name}" for name in ("labels", "soft-labels", "gradient", "perturbation", "selection")}
    assert len(lines) == 4 // steps
    for line in lines:
        assert names == {name for name in line if name.startswith("loss/")}
        assert sum(line[name] for name in names) == pytest.approx(line["loss"], abs=1e-3)


@pytest.mark.parametrize("order", ["random", "group_by_length"])
def test_a_batch_has_the_lessons_of_its_own_rows(run: Any, tiny_bert: Any, order: str) -> None:
    """What comes beside the texts, in whatever order, is what the teacher says of these very texts."""
    trainer = run([Labels(), SoftLabels(), GradientGuide()], trained=False, train_sampling_strategy=order)
    teacher, guide = tiny_bert(layers=4, seed=0), GradientGuide()
    numbers: list[int] = []
    for batch in trainer.get_train_dataloader():
        numbers += batch["idx"].tolist()
        with frozen(teacher):
            seen = observe(teacher, batch, keep=("embeddings",))
            taught = guide.teach(Teacher(model=teacher, tokenizer=trainer.processing_class), batch, seen)
        logits_BC = batch["lessons"]["soft-labels"]["logits"]
        torch.testing.assert_close(logits_BC, seen.logits_BC, atol=2e-3, rtol=2e-3)
        assert (logits_BC - logits_BC.flip(0)).abs().max() > 0.1  # else it would not matter whose they are
        for kept_CU, live_CU in zip(batch["lessons"]["gradient"]["scores"], taught["scores"], strict=True):
            torch.testing.assert_close(kept_CU[:, : live_CU.shape[1]], torch.as_tensor(live_CU), atol=2e-3, rtol=2e-3)
    assert sorted(numbers) == list(range(16))
    assert numbers != sorted(numbers)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: f"{guide.name}-{guide.schedule.share}")
def test_a_guide_alone_teaches(run: Any, guide: Objective) -> None:
    """The loss is no constant: its gradient reaches the deepest weights, and following it lowers it."""
    trainer = run([guide], max_steps=25, rows=8)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_a_guide_alone_may_take_turns(run: Any) -> None:
    """Steps on which it is not paid for change nothing, and do not fail."""
    trainer = run([GradientGuide(schedule=Schedule(every=3))], optim="sgd")
    assert [line["loss"] > 0 for line in trainer.state.log_history if "loss" in line] == [True, False, False, True]


def test_a_resumed_run_equals_an_uninterrupted_one(run: Any, tmp_path: Path) -> None:
    objectives = [Labels(), SoftLabels(), PerturbationGuide(masks=3)]
    whole = run(objectives, max_steps=6, dropout=0.1)
    saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "dropout": 0.1}
    stopped = run(objectives, trained=False, **saving)
    stopped.train()
    resumed = run(objectives, trained=False, **saving)
    resumed.train(resume_from_checkpoint=f"{stopped.args.output_dir}/checkpoint-3")
    torch.testing.assert_close(weights(whole), weights(resumed), atol=0, rtol=0)


def test_what_cannot_be_differentiated_twice_is_refused(tmp_path: Path) -> None:
    checkpointing = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    settings = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **checkpointing)
    with pytest.raises(ValueError, match="reentrant"):
        check_compatible([Labels(), GradientGuide()], settings, has_teacher=True)
    with pytest.raises(ValueError, match="reentrant"):  # its gradient by the embeddings is one, too
        check_compatible([Labels(), GradientGuide(strategy="finite-difference")], settings, has_teacher=True)
    for guide in (PerturbationGuide(), GradientGuide(strategy="projection", attribution="input-x-gradient")):
        check_compatible([Labels(), guide], settings, has_teacher=True)


@pytest.mark.parametrize(
    "guide",
    [GradientGuide(), GradientGuide(strategy="finite-difference"), AttributionDistillation(), GradientDistillation()],
    ids=lambda guide: guide.name,
)
def test_a_static_graph_is_refused_where_it_is_wrong(tmp_path: Path, guide: Objective) -> None:
    settings = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, ddp_static_graph=True)
    with pytest.raises(ValueError, match="ddp_static_graph gives wrong gradients"):
        check_compatible([Labels(), guide], settings, has_teacher=True)
    check_compatible([Labels(), PerturbationGuide(), SelectionGuide(token_head=1.0)], settings, has_teacher=True)


def test_nobody_else_chooses_among_texts_in_whose_place_copies_stand(tmp_path: Path) -> None:
    settings = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    half = Schedule(share=0.5, instead=True)
    standing = [PerturbationGuide(schedule=half), SelectionGuide(schedule=half)]
    with pytest.raises(ValueError, match=r"schedule\.share of gradient.*use schedule\.every for gradient"):
        check_compatible([*standing, GradientGuide(schedule=Schedule(share=0.3))], settings, has_teacher=True)
    check_compatible([Labels(), GradientGuide(), *standing], settings, has_teacher=True)
    for looks in (
        lambda: GradientGuide(schedule=half),
        lambda: Labels(schedule=half),
        lambda: PerturbationGuide(schedule=half, match="coefficients"),
        lambda: SelectionGuide(schedule=half, token_head=1.0),
    ):
        with pytest.raises(ValueError, match=r"schedule\.instead: .* looks at the texts as they are"):
            looks()


@pytest.mark.parametrize("name", ["FSDP", "DeepSpeed"])
def test_a_student_is_not_spread_over_processes(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the arguments ask for it or the launcher alone."""
    settings = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    check_compatible([Labels()], settings, has_teacher=False)
    monkeypatch.setenv(f"ACCELERATE_USE_{name.upper()}", "true")
    with pytest.raises(ValueError, match=f"{name} waits for all processes at every pass.*use plain DDP"):
        check_compatible([Labels()], settings, has_teacher=False)
    monkeypatch.undo()
    setattr(settings, name.lower(), "full_shard")
    with pytest.raises(ValueError, match=f"{name} waits for all processes at every pass"):
        check_compatible([Labels()], settings, has_teacher=False)


def test_one_of_several_gpus_is_used_where_no_launcher_shares_them(run: Any, tmp_path: Path) -> None:
    settings, said = TrainingArguments(output_dir=str(tmp_path), use_cpu=True), []
    settings._n_gpu = 4
    use_one_gpu(settings, said.append)
    assert settings.n_gpu == 1
    assert said == ["4 GPUs are there and one is used; torchrun --nproc-per-node 4 -m egkd … uses all"]
    use_one_gpu(settings, said.append)
    assert len(said) == 1


def test_examples_come_in_the_same_order_whatever_was_drawn_before(run: Any) -> None:
    """Batches of similar length: every epoch all examples, each epoch in its own order, in a resumed run in the same."""
    epochs = []
    for draws in (0, 7):
        trainer = run([Labels()], trained=False, rows=24, train_sampling_strategy="group_by_length", num_train_epochs=2)
        torch.rand(draws)  # what dropout uses up
        loader = trainer.get_train_dataloader()
        for epoch in (0, 1):
            trainer.state.epoch = float(epoch)
            epochs.append([batch["idx"].tolist() for batch in loader])
    assert epochs[:2] == epochs[2:]
    assert epochs[0] != epochs[1]
    for batches in epochs:
        assert sorted(idx for batch in batches for idx in batch) == list(range(24))


def test_several_processes_resumed_within_an_epoch_go_on_with_its_order(run: Any) -> None:
    """As Trainer does it: batches are skipped first, then the loader hears of the epoch."""
    trainer = run([Labels()], trained=False, rows=24, train_sampling_strategy="group_by_length", num_train_epochs=3)
    loader, seen = trainer.get_train_dataloader(), []
    for rank in (0, 1):
        shard = partial(BatchSamplerShard, loader.batch_sampler, num_processes=2, process_index=rank)
        trainer.state.epoch = 1.0
        whole = list(shard())
        trainer.state.epoch = 1.4
        rest = DataLoader(trainer.train_dataset, batch_sampler=shard(), collate_fn=lambda rows: [row["idx"] for row in rows])
        rest = skip_first_batches(prepare_data_loader(rest, put_on_device=False), 1)
        rest.set_epoch(1)
        assert list(rest) == whole[1:]
        seen += whole
    trainer.state.epoch = 0.0
    assert {index for batch in seen for index in batch} == set(range(24))
    assert list(BatchSamplerShard(loader.batch_sampler, 2, 0)) != seen[: len(seen) // 2]


def test_a_run_resumed_in_its_second_epoch_learns_from_the_same_batches(run: Any) -> None:
    length = {"train_sampling_strategy": "group_by_length", "dropout": 0.1, "max_steps": 6}  # two steps an epoch
    saving = length | {"save_strategy": "steps", "save_steps": 3}
    whole, stopped, resumed = run([Labels()], **length), run([Labels()], **saving), run([Labels()], trained=False, **saving)
    resumed.train(resume_from_checkpoint=f"{stopped.args.output_dir}/checkpoint-3")
    assert torch.equal(weights(whole), weights(resumed))


def test_finite_differences_stay_in_full_precision(run: Any) -> None:
    """A difference divided by a small step says nothing in bfloat16, whichever way mixed precision got into the model."""
    guide = GradientGuide(strategy="finite-difference", schedule=ALWAYS, distance="mse")
    settings = {"optim": "sgd", "learning_rate": 1e-3, "max_steps": 2, "max_grad_norm": 0.0}
    before = weights(run([guide], trained=False))
    whole, mixed = (weights(run([guide], bf16=bf16, **settings)) - before for bf16 in (False, True))
    assert torch.cosine_similarity(whole, mixed, dim=0) > 0.95


def test_objectives_that_cannot_work_are_refused(tmp_path: Path) -> None:
    settings = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="need a teacher"):
        check_compatible([SoftLabels()], settings, has_teacher=False)
    with pytest.raises(ValueError, match="nothing would be learnt"):
        check_compatible([], settings, has_teacher=True)
    with pytest.raises(ValueError, match="name one twice"):
        check_compatible([Labels(), Labels()], settings, has_teacher=True)
    with pytest.raises(ValueError, match="give the objective 'labels' less weight"):
        check_compatible(
            [Labels()], TrainingArguments(str(tmp_path), use_cpu=True, label_smoothing_factor=0.1), has_teacher=True
        )


@pytest.fixture
def pair(tiny_bert: Any, tokenizer: Any, tiny_data: Dataset, tmp_path: Path) -> Callable[..., DistillationTrainer]:
    """A trainer of any student and teacher on a few texts."""

    def build(student: Any = None, teacher: Any = None, **settings: Any) -> DistillationTrainer:
        arguments = {
            "max_steps": 2,
            "per_device_train_batch_size": 8,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        return DistillationTrainer(
            student or tiny_bert(layers=1, seed=1),
            TrainingArguments(output_dir=str(tmp_path / "run"), save_strategy="no", **arguments),
            teacher=teacher or tiny_bert(layers=2),
            processing_class=tokenizer,
            **({"train_dataset": tiny_data.select(range(16))} | settings),
        )

    return build


@pytest.mark.parametrize(("own", "theirs"), [(2, 1), (1, 2), (2, 3)])
def test_a_student_with_other_outputs_than_its_teacher_is_refused(pair: Any, tiny_bert: Any, own: int, theirs: int) -> None:
    """Unlike numbers of outputs may broadcast, and train on nonsense without an error."""
    with pytest.raises(ValueError, match=rf"teacher has {theirs} outputs and the student {own}; .*num_labels={theirs}"):
        pair(tiny_bert(num_labels=own), tiny_bert(num_labels=theirs))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_student_in_half_precision_is_refused(pair: Any, tiny_bert: Any, kind: torch.dtype) -> None:
    """transformers loads a checkpoint as it is stored."""
    with pytest.raises(ValueError, match=r"small steps are lost; load it with dtype=torch\.float32"):
        pair(tiny_bert().to(kind))
    pair(tiny_bert().to(kind).requires_grad_(False), train_dataset=None)  # nothing of it is trained


def test_a_model_of_two_halves_is_refused(pair: Any) -> None:
    bart = BartForSequenceClassification(
        BartConfig(vocab_size=99, d_model=16, encoder_layers=1, decoder_layers=1, num_labels=2)
    )
    for role in ("student", "teacher"):
        with pytest.raises(ValueError, match=rf"the {role} \(bart\) is an encoder and a decoder"):
            pair(**{role: bart})


def test_a_teacher_that_was_never_fine_tuned_is_refused(pair: Any, tiny_bert: Any, tokenizer: Any, tmp_path: Path) -> None:
    tiny_bert().bert.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"encoder is not fine-tuned: it lacks classifier\."):
        pair(teacher=tmp_path / "encoder")


def test_numbers_that_others_gave_the_rows_say_nothing(pair: Any, tiny_data: Dataset) -> None:
    """GLUE of the hub has a column idx; test sets number their rows from 0 again, or by -1."""
    few = tiny_data.select(range(16))
    strange = few.add_column("idx", [-1] * 16)
    trainer = pair(train_dataset=few.add_column("idx", list(range(100, 116))), eval_dataset=strange)
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    assert loss == pytest.approx(pair(trainer.model, eval_dataset=few).evaluate()["eval_loss"])


def test_other_texts_are_evaluated_and_predicted_later(pair: Any, tiny_data: Dataset) -> None:
    """As with any Trainer, and with another optimizer."""
    later = tiny_data.select(range(16, 26))
    student = pair(eval_dataset=later).model
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    trainer = pair(student, eval_dataset=later, optimizers=(optimizer, None))
    before = weights(trainer)
    trainer.train()
    assert trainer.optimizer.optimizer is optimizer
    torch.testing.assert_close(weights(trainer), before)
    loss = trainer.evaluate()["eval_loss"]
    batch = collate(list(trainer.eval_dataset), trainer.processing_class.pad_token_id)
    expected = torch.nn.functional.cross_entropy(observe(student, batch).logits_BC, batch["labels"])
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert trainer.evaluate(later)["eval_loss"] == pytest.approx(loss)
    assert trainer.evaluate({"other": later})["eval_other_loss"] == pytest.approx(loss)
    found = [trainer.predict(rows).predictions for rows in (later, later.remove_columns("label"))]
    assert found[0].shape == (10, 2)
    assert found[1] == pytest.approx(found[0], abs=1e-5)
