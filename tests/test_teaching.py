"""Several teachers: each says its share, in its own words and tokens; one teacher twice is one teacher."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.special import softmax
from torch import nn
from transformers import TrainingArguments

from egkd.config import resolve
from egkd.evaluate.teachers import vote
from egkd.lessons import fingerprint_model
from egkd.models import observe
from egkd.objectives import GradientGuide, Labels, PerturbationGuide, Reasons, SelectionGuide, SoftLabels
from egkd.objectives.schedule import Schedule
from egkd.pipeline import distill
from egkd.predict import predict_logits
from egkd.students import load_classifier, load_tokenizer
from egkd.teaching import in_order, voices_of
from egkd.text import collate, encode
from egkd.train import DistillationTrainer

pytestmark = pytest.mark.usefixtures("calm_libraries")
ALWAYS = Schedule()
ALL = [
    Labels(),
    SoftLabels(),
    GradientGuide(schedule=ALWAYS),
    PerturbationGuide(schedule=ALWAYS),
    SelectionGuide(schedule=ALWAYS),
]


@pytest.fixture
def terms(tiny_bert: Any, tokenizer: Any, tiny_data: Dataset, tmp_path: Path) -> Callable[..., dict[str, float]]:
    """What each objective says of the first batch, by name, with these teachers."""

    def of(teachers: Any, tokenizers: Any = None, weights: Any = None, objectives: Any = ALL) -> dict[str, float]:
        trainer = DistillationTrainer(
            tiny_bert(seed=5, layers=1),
            TrainingArguments(output_dir=str(tmp_path / "out"), report_to="none", use_cpu=True),
            teacher=teachers,
            objectives=objectives,
            train_dataset=tiny_data.select(range(16)),
            processing_class=tokenizer,
            teacher_processing_class=tokenizers,
            teacher_weights=weights,
            max_length=32,
        )
        assert trainer.model is not None
        batch = trainer.data_collator([trainer.train_dataset[index] for index in range(8)])
        trainer.compute_loss(trainer.model.train(), batch)
        return {name: value.item() for name, value in trainer._terms.items()}

    return of


def test_one_teacher_twice_is_one_teacher(terms: Any, tiny_bert: Any, tokenizer: Any) -> None:
    for objectives in (
        ALL,
        [SoftLabels(schedule=Schedule(share=0.5)), GradientGuide(schedule=Schedule(share=0.5, choose="strong"))],
    ):
        alone = terms(tiny_bert(seed=1), objectives=objectives)
        assert terms([tiny_bert(seed=1)], [tokenizer], objectives=objectives) == alone
        twice = terms([tiny_bert(seed=1), tiny_bert(seed=1)], [tokenizer] * 2, [2, 1], objectives)
        assert twice == pytest.approx(alone, rel=1e-4)
        assert min(alone.values()) > 0


def test_teachers_say_their_share(terms: Any, tiny_bert: Any, tokenizer: Any, bpe_tokenizer: Any) -> None:
    """Each in its own tokens, so with its own masks: the term of both is the weighted mean of the terms of each."""
    teachers = tiny_bert(seed=1), tiny_bert(seed=2, tokenizer=bpe_tokenizer, width=16)
    first, second = terms(teachers[0], tokenizer), terms(teachers[1], bpe_tokenizer)
    assert all(first[name] != pytest.approx(second[name], rel=1e-3) for name in first if name != "labels")
    both = terms(teachers, [tokenizer, bpe_tokenizer], [3, 1])
    assert both == pytest.approx({name: 0.75 * first[name] + 0.25 * second[name] for name in first}, rel=1e-4)
    equally = terms(teachers, [tokenizer, bpe_tokenizer])
    assert equally == pytest.approx({name: (first[name] + second[name]) / 2 for name in first}, rel=1e-4)


def test_two_teachers_are_their_mean(tiny_bert: Any, tokenizer: Any, tiny_data: Dataset) -> None:
    """The gradient of the mean of the losses is that of the loss to the mean of the softened predictions."""
    encoded = encode(tokenizer, tiny_data["text"][:4])
    batch = collate([{name: values[index] for name, values in encoded.items()} for index in range(4)], tokenizer.pad_token_id)
    told = [observe(tiny_bert(seed=seed), batch).logits_BC.detach() for seed in (1, 2)]
    mean = torch.stack([(each / 2).softmax(1) for each in told]).mean(0).log() * 2

    def gradient(lessons: list[torch.Tensor]) -> torch.Tensor:
        student = tiny_bert(seed=3)
        seen = observe(student, batch)
        losses = [SoftLabels().learn(seen, [], batch, {"logits": each}, None) for each in lessons]  # type: ignore[arg-type]
        torch.stack(losses).mean(0).sum().backward()
        return student.classifier.weight.grad

    torch.testing.assert_close(gradient(told), gradient([mean]), atol=1e-5, rtol=1e-4)


def test_what_stays_with_the_student_is_trained_once(
    tiny_bert: Any, tokenizer: Any, tiny_data: Dataset, tmp_path: Path
) -> None:
    trainer = DistillationTrainer(
        tiny_bert(seed=5, layers=1),
        TrainingArguments(output_dir=str(tmp_path / "out"), report_to="none", use_cpu=True, max_steps=2),
        teacher=[tiny_bert(seed=1), tiny_bert(seed=2, width=16)],
        objectives=[Labels(), Reasons()],
        train_dataset=tiny_data.select(range(16)),
        processing_class=tokenizer,
        max_length=32,
    )
    assert list(trainer._heads) == ["reasons"]
    trainer.train()


def test_what_does_not_fit_is_refused(tiny_bert: Any, tokenizer: Any) -> None:
    model = tiny_bert()
    with pytest.raises(ValueError, match="found 2 teachers and 1 tokenizers; give each teacher one"):
        voices_of([model, model], [tokenizer], None)
    with pytest.raises(ValueError, match="found 2 teachers and 3 weights"):
        voices_of([model, model], None, [1, 2, 3])
    with pytest.raises(ValueError, match=r"weights \[1, 0\], expected numbers above 0"):
        voices_of([model, model], None, [1, 0])
    assert [voice.share for voice in voices_of([model, model], None, [1, 3])] == [0.25, 0.75]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"teacher": ["a", "b"], "teacher_weights": "2"},
            "found teacher_weights 2, expected a number above 0 for each of 2 teachers",
        ),
        ({"teacher": ["a", "b"], "teacher_weights": [1, -1]}, "found teacher_weights 1, -1, expected a number above 0"),
        ({"teacher_init": "a", "more_teachers": ["b"]}, "found teacher_init beside 1 teachers"),
        ({"teacher": []}, "found neither, expected either teacher"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(settings | {"data": {"task": "sst2"}})


def test_a_list_of_teachers_is_a_setting() -> None:
    config = resolve({"teacher": ["a", "b"], "teacher_weights": "2,1", "data": {"task": "sst2"}})
    assert (config.teacher, config.teachers, config.teacher_weights) == ("a", ("a", "b"), (2.0, 1.0))
    assert resolve(config.model_dump()) == config
    assert resolve({"teacher": ["a"], "data": {"task": "sst2"}}) == resolve({"teacher": "a", "data": {"task": "sst2"}})


def test_labels_in_another_order(tiny_bert: Any, tokenizer: Any) -> None:
    model, other = tiny_bert(num_labels=3), tiny_bert(num_labels=3)
    other.config.id2label = {0: "a", 1: "b", 2: "c"}
    encoded = tokenizer(["the film is great"], return_tensors="pt")
    before = model(**encoded).logits[0]
    after = in_order(other, [2, 0, 1])(**encoded).logits[0]
    torch.testing.assert_close(after, before[[1, 2, 0]])
    assert other.config.id2label == {0: "b", 1: "c", 2: "a"}
    assert fingerprint_model(other) != fingerprint_model(model)
    assert in_order(model, [0, 1, 2]) is model
    scaled = tiny_bert(num_labels=3)
    scaled.classifier = nn.Sequential(scaled.classifier, nn.LayerNorm(3))
    nn.init.normal_(scaled.classifier[1].weight)
    with pytest.raises(ValueError, match="has no last layer with a row for each of 3 classes"):
        in_order(scaled, [1, 0, 2])


def test_a_vote_by_hand() -> None:
    told = [np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.2, 0.8], [0.1, 0.9]]) + 7]
    assert softmax(vote(told, [2, 1]), axis=1) == pytest.approx(np.array([[0.4, 0.6], [1.9 / 3, 1.1 / 3]]))
    assert vote([np.array([[1.0]]), np.array([[4.0]])], [2, 1]) == pytest.approx(np.array([[2.0]]))


def test_a_run_with_two_teachers(
    tmp_path: Path,
    save: Any,
    tiny_bert: Any,
    bpe_tokenizer: Any,
    write_csv: Any,
    tiny_data: Dataset,
    egkd: Any,
    quick: list[str],
) -> None:
    """From the command line: other tokenizers, labels in another order, and the student beside each and beside their vote."""
    save(tmp_path / "first", layers=2)
    second = tiny_bert(seed=7, tokenizer=bpe_tokenizer, layers=1)
    second.config.id2label, second.config.label2id = {0: "positive", 1: "negative"}, {"positive": 0, "negative": 1}
    second.save_pretrained(tmp_path / "second")
    bpe_tokenizer.save_pretrained(tmp_path / "second")
    names = ["negative" if label == 0 else "positive" for label in tiny_data["label"]]
    write_csv(tmp_path / "train.csv", text=tiny_data["text"][:32], label=names[:32])
    write_csv(tmp_path / "dev.csv", text=tiny_data["text"][32:64], label=names[32:64])
    answer = egkd(
        *("distill", "--teacher", tmp_path / "first", "--teacher", tmp_path / "second", "--teacher-weights", "2,1"),
        *("--student", "layers:1", "--train", tmp_path / "train.csv", "--eval", tmp_path / "dev.csv", *quick),
        *("--guide", "gradient", "--guide", "perturbation", "--guide", "selection", "--out", tmp_path / "run"),
    )
    assert answer.code == 0, answer.err
    stores = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "lessons").iterdir() if path.is_dir())
    assert stores == sorted(["gradient", "perturbation", "selection", "soft-labels"] * 2)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    told = metrics["teachers"]
    assert [(each["name"], each["weight"]) for each in told] == [
        (str(tmp_path / "first"), 2.0),
        (str(tmp_path / "second"), 1.0),
        ("vote", 1.0),
    ]
    assert told[0]["fidelity"] == metrics["student"]["fidelity"]
    assert told[0]["scores"] == metrics["teacher"]["scores"]
    rows = tiny_data.select(range(32, 64))
    said = predict_logits(
        load_classifier(str(tmp_path / "second")), load_tokenizer(str(tmp_path / "second")), rows, max_length=32
    )
    right = np.mean(1 - said.argmax(1) == np.array(rows["label"]))  # its classes are the other way round
    assert told[1]["scores"]["dev"]["accuracy"] == pytest.approx(right)
    answers = predict_logits(
        load_classifier(str(tmp_path / "run" / "student")),
        load_tokenizer(str(tmp_path / "run" / "student")),
        rows,
        max_length=32,
    )
    assert told[1]["fidelity"]["dev"]["agreement"]["mean"] == pytest.approx(np.mean(answers.argmax(1) == 1 - said.argmax(1)))


def test_a_teacher_that_cannot_fit_is_refused_before_anything_is_done(tmp_path: Path, save: Any, write_csv: Any) -> None:
    save(tmp_path / "first")
    save(tmp_path / "second", names=("cat", "dog"))
    write_csv(tmp_path / "train.csv", text=["a film", "the plot"] * 20, label=["negative", "positive"] * 20)
    data = {"train": str(tmp_path / "train.csv")}
    config = resolve({"teacher": [str(tmp_path / "first"), str(tmp_path / "second")], "data": data, "max_length": 32})
    with pytest.raises(ValueError, match="second knows the labels cat, dog, the data has negative, positive"):
        distill(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
