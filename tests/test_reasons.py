"""Reasons for free: a student that tells its answer and word scores in one pass, and what that must not change."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging as their_logging

from egkd.explain import EXPLAINERS, explain, explainer_from_name, score_dataset
from egkd.explain.amortised import OwnReasons, WordHead, for_class, head_of, with_head
from egkd.heads import HEADS
from egkd.lessons import stack
from egkd.models import Seen, frozen, observe
from egkd.objectives import Labels, Moment, Reasons, SoftLabels, Teacher
from egkd.predict import encode_dataset
from egkd.reasons import SelfExplaining, load_student
from egkd.text import collate
from egkd.train import DistillationTrainer

pytestmark = pytest.mark.usefixtures("calm_libraries")
DOCS = Path(__file__).parents[1] / "docs" / "objectives.md"


def weights(trainer: DistillationTrainer, *, head: bool = True) -> Tensor:
    assert trainer.model is not None
    named = [value for name, value in trainer.model.named_parameters() if head or HEADS not in name]
    return torch.cat([value.detach().flatten() for value in named])


# The head


def test_scores_of_the_head_by_hand() -> None:
    head = WordHead(width=2, n_classes=1, inner=1)
    with torch.no_grad():
        head.read.weight.copy_(torch.tensor([[1.0, 0.0]]))
        head.read.bias.zero_()
        head.value.weight.fill_(2.0)
        head.value.bias.fill_(0.5)
    hidden = torch.tensor([[[3.0, 1.0], [1.0, 3.0], [5.0, 3.0]]])  # normed: (1, -1), (-1, 1), (1, -1)
    up, down = (2 * x * 0.5 * (1 + math.erf(x / math.sqrt(2))) + 0.5 for x in (1.0, -1.0))
    torch.testing.assert_close(head(hidden), torch.tensor([[[up], [down], [up]]]), atol=1e-4, rtol=0)
    batch = {"unit_ids": torch.tensor([[0, 0, -1]]), "n_units": torch.tensor([2])}  # the third token is special
    words = head.words(hidden, batch, torch.tensor([0]))
    torch.testing.assert_close(words, torch.tensor([[up + down, 0.0]]), atol=1e-4, rtol=0)


def test_of_two_classes_each_is_the_other_s_opposite_of_more_each_has_its_own() -> None:
    scores = torch.tensor([[[1.0], [-2.0]]] * 2)
    assert for_class(scores, torch.tensor([0, 1]), 2).tolist() == [[-1.0, 2.0], [1.0, -2.0]]
    assert for_class(scores, torch.tensor([0, 0]), 1).tolist() == [[1.0, -2.0], [1.0, -2.0]]
    three = torch.arange(6.0).reshape(1, 2, 3)
    assert for_class(three, torch.tensor([2]), 3).tolist() == [[2.0, 5.0]]


# The lesson


def test_a_text_that_the_explainer_refuses_is_told_before_the_first(run: Any) -> None:
    with pytest.raises(ValueError, match=r"a text has \d+ words, exact-shapley takes at most 2; use shapley-sampling"):
        run([SoftLabels(), Reasons(explainer="exact-shapley", options={"max_units": 2})])


@pytest.mark.parametrize(
    ("settings", "name"),
    [({}, "occlusion"), ({"explainer": "shapley-sampling", "options": {"n_samples": 2}}, "shapley-sampling")],
)
def test_the_lesson_is_what_the_explainer_says_of_the_teacher(
    tiny_bert: Any, tokenizer: Any, tiny_data: Dataset, settings: dict[str, Any], name: str
) -> None:
    teacher, encoded = tiny_bert(), encode_dataset(tiny_data.select(range(5)), tokenizer)
    batch = collate(list(encoded), tokenizer.pad_token_id)
    with frozen(teacher), torch.no_grad():
        taught = Reasons(**settings).teach(Teacher(model=teacher, tokenizer=tokenizer), batch, observe(teacher, batch))
    bare = [{key: value for key, value in row.items() if key != "text"} for row in encoded]  # seeds come from the tokens
    expected = score_dataset(explainer_from_name(name, settings.get("options")), teacher, tokenizer, bare)
    for row, one in enumerate(expected):
        assert int(taught["target"][row]) == one.target
        assert float(taught["scores"][row].norm()) == pytest.approx(1.0, abs=1e-5)
        torch.testing.assert_close(taught["scores"][row][0] * taught["strength"][row], one.scores_U, atol=1e-4, rtol=1e-3)


def test_lessons_are_known_by_the_settings_of_the_explainer_and_not_by_how_they_are_learnt() -> None:
    plain = Reasons()
    assert plain.options == {"operator": "mask"}
    assert plain.lesson_key() == Reasons(weight=3.0, distance="correlation", detach=True).lesson_key()
    assert plain.lesson_key() == Reasons(options={"operator": "mask"}).lesson_key()
    others = [Reasons(options={"operator": "delete"}), Reasons(explainer="lime"), Reasons(classes="all"), Reasons(seed=1)]
    assert len({json.dumps(one.lesson_key(), sort_keys=True) for one in [plain, *others]}) == 5
    assert Reasons.model_validate(plain.model_dump()) == plain


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"explainer": "l2x"}, "'l2x' is learnt itself; use one that needs no fitting"),
        ({"explainer": "reasons"}, "'reasons' is learnt itself"),
        ({"explainer": "occlusoin"}, "did you mean 'occlusion'"),
        ({"explainer": "saliency"}, "'saliency' does not tell for from against"),
        ({"explainer": "sufficient-subset"}, "does not tell for from against"),
        ({"explainer": "input-x-gradient", "options": {"reduction": "norm"}}, "does not tell for from against"),
        ({"explainer": "smoothgrad", "options": {"inner": "saliency"}}, "does not tell for from against"),
        ({"options": {"operators": "mask"}}, "'occlusion' has no setting 'operators'"),
        ({"options": {"operator": "erase"}}, "'occlusion', setting 'operator'"),
    ],
)
def test_explainers_that_cannot_teach_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Reasons(**settings)


# Learning


class Perfect(WordHead):
    """Says of every token what it is told to."""

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD[..., :1] * 3.0


def test_a_head_that_says_what_the_teacher_says_has_nothing_to_learn_and_the_opposite_costs_most(tokenizer: Any) -> None:
    batch = {"unit_ids": torch.tensor([[-1, 0, 1, 1, 2, -1]]), "n_units": torch.tensor([4])}  # the fourth word was cut off
    scores = torch.tensor([[[0.5, -0.5, 0.5, 0.5]]])
    lesson = {"scores": scores, "visible": torch.ones(1, 4, dtype=torch.bool), "target": torch.tensor([1.0])}
    hidden = torch.tensor([[9.0, 1.0, -0.5, -0.5, 1.0, 9.0]])[..., None]
    seen_ = observe_like(hidden)
    moment = Moment(step=0, epoch=0, tokenizer=tokenizer, head=Perfect(1, 2))
    for distance, most in (("mse", 4.0), ("cosine", 2.0), ("correlation", 2.0)):
        objective = Reasons(distance=distance)
        assert objective.learn(seen_, [], batch, lesson, moment).item() == pytest.approx(0.0, abs=1e-6)
        other = lesson | {"target": torch.tensor([0.0])}
        assert objective.learn(seen_, [], batch, other, moment).item() == pytest.approx(most, abs=1e-5)


def observe_like(hidden_BTD: Tensor) -> Any:
    from egkd.models import Seen

    return Seen(logits_BC=torch.zeros(len(hidden_BTD), 2), hidden_states=(hidden_BTD,))


def test_every_class_is_taught_if_asked(tiny_bert: Any, tokenizer: Any, tiny_data: Dataset) -> None:
    teacher = tiny_bert(num_labels=3)
    batch = collate(list(encode_dataset(tiny_data.select(range(4)), tokenizer)), tokenizer.pad_token_id)
    objective = Reasons(classes="all", explainer="input-x-gradient")
    with frozen(teacher), torch.no_grad():
        seen = observe(teacher, batch, keep=("hidden_states",))
        taught = objective.teach(Teacher(model=teacher, tokenizer=tokenizer), batch, seen)
        lesson = {name: stack([np.asarray(value) for value in values]) for name, values in taught.items()}
        head = objective.head(teacher, lesson)
        losses = objective.learn(seen, [], batch, lesson, Moment(step=0, epoch=0, tokenizer=tokenizer, head=head))
        parts = [
            Reasons().learn(
                seen,
                [],
                batch,
                lesson | {"scores": lesson["scores"][:, [each]], "target": torch.full((4,), float(each))},
                Moment(step=0, epoch=0, tokenizer=tokenizer, head=head),
            )
            for each in range(3)
        ]
    assert lesson["scores"].shape[1] == 3
    torch.testing.assert_close(losses, torch.stack(parts).mean(0))
    assert len({round(float(part[0]), 4) for part in parts}) == 3


def test_a_head_that_only_reads_leaves_the_student_as_it_would_have_been(run: Any) -> None:
    steps = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1}
    plain, read, changed = (run([Labels(), SoftLabels(), *more], **steps) for more in ([], [Reasons(detach=True)], [Reasons()]))
    torch.testing.assert_close(weights(plain), weights(read, head=False), atol=1e-6, rtol=1e-5)
    assert (weights(plain) - weights(changed, head=False)).abs().max() > 1e-3


def test_a_resumed_run_equals_an_uninterrupted_one(run: Any) -> None:
    objectives = [Labels(), SoftLabels(), Reasons()]
    whole = run(objectives, max_steps=6, dropout=0.1)
    saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "dropout": 0.1}
    stopped = run(objectives, **saving)
    resumed = run(objectives, trained=False, **saving)
    before = weights(resumed)
    resumed.train(resume_from_checkpoint=f"{stopped.args.output_dir}/checkpoint-3")
    assert torch.equal(weights(whole), weights(resumed))
    assert not torch.equal(before, weights(resumed))
    assert head_of(resumed.model) is not None


# The finished student


@pytest.fixture
def folder(run: Any, tmp_path: Path) -> Path:
    """A student with its head, as Trainer saves it."""
    run([Labels(), SoftLabels(), Reasons()]).save_model(str(tmp_path / "student"))
    return tmp_path / "student"


def test_the_folder_is_an_ordinary_one_and_loads_without_a_word(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {"reasons.safetensors", "reasons.json"} < {path.name for path in folder.iterdir()}
    assert not [name for name in load_file(folder / "model.safetensors") if HEADS in name]
    level = their_logging.get_verbosity()
    their_logging.set_verbosity_info()
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    their_logging.set_verbosity(level)
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]
    assert "UNEXPECTED" not in "".join(capsys.readouterr())
    assert not hasattr(model, HEADS)


def test_trainer_goes_on_with_the_head_after_saving(run: Any, tmp_path: Path) -> None:
    trainer = run([Labels(), Reasons()])
    head = head_of(trainer.model)
    trainer.save_model(str(tmp_path / "student"))
    assert head_of(trainer.model) is head is not None
    kept = WordHead.load(tmp_path / "student")
    for mine, saved in zip(head.parameters(), kept.parameters(), strict=True):
        assert torch.equal(mine, saved)


def test_answer_and_scores_come_in_one_pass(folder: Path, tokenizer: Any, tiny_data: Dataset) -> None:
    student = load_student(folder)
    passes: list[int] = []
    student.model.bert.register_forward_hook(lambda *_: passes.append(1))
    texts = tiny_data["text"][:6]
    batch = collate(list(encode_dataset(tiny_data.select(range(6)), tokenizer)), tokenizer.pad_token_id)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids", "unit_ids")}
    with torch.inference_mode():
        answered = student(**inputs)
    assert len(passes) == 1
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        expected = plain(**{name: value for name, value in inputs.items() if name != "unit_ids"}).logits
    torch.testing.assert_close(answered.logits, expected)
    told = student.explain(texts)
    assert len(passes) < 1 + 6
    for row, one in enumerate(told):
        assert one.method == "reasons"
        assert one.logits == pytest.approx(expected[row].tolist(), abs=1e-4)
        assert one.target == int(expected[row].argmax())
        assert answered.word_scores[row, : len(one.scores)].tolist() == pytest.approx(one.scores, abs=1e-4)
        assert len(one.words) == len(one.scores)
        real = batch["unit_ids"][row] >= 0
        assert float(answered.token_scores[row][real].sum()) == pytest.approx(sum(one.scores), abs=1e-4)
    opposite = student.explain(texts, target="LABEL_0")
    for one, other in zip(student.explain(texts, target="LABEL_1"), opposite, strict=True):
        assert one.scores == pytest.approx([-score for score in other.scores])
    words_only = student(batch["input_ids"], batch["attention_mask"])
    assert words_only.word_scores is None


def attached(model: Any) -> Any:
    """The model with an untrained head."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        head = Reasons().head(model, {})
        for parameter in head.parameters():
            parameter.data.normal_()
    model.add_module(HEADS, nn.ModuleDict({"reasons": head}))
    return model


def test_scores_do_not_depend_on_batch_or_order_and_words_cut_off_have_none(tiny_bert: Any, tokenizer: Any) -> None:
    model = attached(tiny_bert(num_labels=3))
    texts = ["a truly wonderful film", "dull", "", "I love this story, and the cast! " * 8]
    together = explain(model, tokenizer, texts, method="reasons", max_length=20)
    for text, one in zip(texts, together, strict=True):
        (alone,) = explain(model, tokenizer, text, method="reasons", max_length=20)
        assert one.scores == pytest.approx(alone.scores, abs=1e-4, rel=1e-5)
        assert any(one.hidden) == (len(text) > 100)
        assert all(score == 0 for score, hidden in zip(one.scores, one.hidden, strict=True) if hidden)
    by_class = [explain(model, tokenizer, texts[0], method="reasons", target=each)[0].scores for each in range(3)]
    assert len(set(by_class)) == 3


@pytest.mark.parametrize("num_labels", [1, 2, 3])
def test_pairs_and_any_number_of_classes(tiny_bert: Any, tokenizer: Any, tmp_path: Path, num_labels: int) -> None:
    model = attached(tiny_bert(num_labels=num_labels))
    student = SelfExplaining(model, tokenizer)
    (one,) = student.explain("a truly wonderful film", "the plot is dull")
    assert one.words == tuple("a truly wonderful film the plot is dull".split())
    assert len({score for score in one.scores if score}) == 8
    assert len(one.logits) == num_labels


def test_a_model_without_a_head_says_so(tiny_bert: Any, tokenizer: Any, save: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tells no reasons of its own"):
        explain(tiny_bert(), tokenizer, "a film", method="reasons")
    with pytest.raises(ValueError, match="has no head that tells reasons"):
        load_student(save(tmp_path / "plain"))
    assert EXPLAINERS["reasons"] is OwnReasons


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("reasons.json", '{"format": 9, "width": 32, "n_classes": 2, "inner": 64}', "another format"),
        ("reasons.json", '{"format": 1, "width": 16, "n_classes": 2, "inner": 64}', "cannot be read"),
        ("reasons.json", "nonsense", "cannot be read"),
        ("reasons.json", '{"format": 1, "width": 32, "n_classes": 3, "inner": 64}', "cannot be read"),
        ("reasons.safetensors", None, "reasons.safetensors is missing"),
        ("reasons.safetensors", "nonsense", "cannot be read"),
    ],
)
def test_a_broken_head_is_refused(folder: Path, file: str, content: str | None, complaint: str) -> None:
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(ValueError, match=complaint):
        load_student(folder)


def test_another_model_s_head_is_refused(folder: Path, tiny_bert: Any) -> None:
    with pytest.raises(ValueError, match="with 2 classes, that there has 3"):
        with_head(tiny_bert(num_labels=3), folder)


# From outside


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, save: Any, write_csv: Any, egkd: Any, quick: Any, tiny_data: Any
) -> Path:
    """The folder of a run with `--reasons`."""
    shop = tmp_path_factory.mktemp("shop")
    save(shop / "teacher")
    names = ["negative" if label == 0 else "positive" for label in tiny_data["label"]]
    write_csv(shop / "train.csv", text=tiny_data["text"][:32], label=names[:32])
    write_csv(shop / "dev.csv", text=tiny_data["text"][64:], label=names[64:])
    data = ["--train", shop / "train.csv", "--eval", shop / "dev.csv"]
    answer = egkd(
        "distill", "--teacher", shop / "teacher", "--student", "layers:2", *data, *quick, "--reasons", "--out", shop / "run"
    )
    assert answer.code == 0, answer.err
    return shop / "run"


def test_a_run_keeps_the_head_beside_the_student_and_judges_it(finished: Path) -> None:
    student = finished / "student"
    assert not [name for name in load_file(student / "model.safetensors") if HEADS in name]
    metrics = json.loads((finished / "metrics.json").read_text())
    assert "reasons" in [objective["name"] for objective in metrics["objectives"]]
    own = sum(value.numel() for file in ("model", "reasons") for value in load_file(student / f"{file}.safetensors").values())
    assert metrics["student"]["parameters"] == own
    assert metrics["student"]["bytes"] == sum(path.stat().st_size for path in student.glob("*.safetensors"))
    found = metrics["student"]["reasons"]
    assert set(found["agreement"]) == {"student", "teacher"}
    for looked in found["agreement"].values():
        assert looked["all"]["spearman"]["n"] + looked["n_skipped"] == 6
        assert -1 <= looked["all"]["spearman"]["mean"] <= 1
    assert set(found["faithfulness"]) == {"reasons", "occlusion", "input-x-gradient", "random"}
    for figures in found["faithfulness"].values():
        assert set(figures) == {"comprehensiveness", "sufficiency"}
        assert all(math.isfinite(figure["mean"]) and figure["n"] == 6 for figure in figures.values())
    for way in ("plain", "reasons"):
        assert found["latency"][way]["1"]["ms_per_example"] > 0
    page = (finished / "report.html").read_text()
    assert "Reasons told in the same pass" in page
    assert "its own occlusion" in page


def test_the_figures_are_those_of_the_explainers_themselves(finished: Path) -> None:
    from egkd.evaluate.agreement import agreement, visible
    from egkd.evaluate.reasons import own_reasons
    from egkd.explain import Occlusion

    student = load_student(finished / "student")
    texts = ["I really love this great film, and the cast!", "It was a very boring plot", "The story is awful and dull."]
    rows = Dataset.from_dict({"text": texts, "label": [1, 0, 0]})
    encoded = list(encode_dataset(rows, student.tokenizer))
    taught = score_dataset(Occlusion(), student.model, student.tokenizer, encoded)  # as if the student were its own teacher
    found = own_reasons(student.model, student.tokenizer, rows, taught, latency_repeats=1)
    told = student.explain(texts)
    expected = agreement(visible(taught), [np.array(one.scores) for one in told])["all"]
    for whose in ("student", "teacher"):
        assert found["agreement"][whose]["all"]["spearman"]["mean"] == pytest.approx(expected["spearman"]["mean"], abs=1e-6)


@pytest.mark.parametrize("flags", [[], ["--judge"]], ids=str)
def test_the_command_line_explains_by_it(finished: Path, egkd: Any, flags: list[str], tmp_path: Path) -> None:
    out = tmp_path / "why.jsonl"
    command = ["explain", "a great film", "awful", "--model", finished / "student", "--method", "reasons", "--jsonl", out]
    answer = egkd(*command, *flags)
    assert answer.code == 0, answer.err
    told = {line["row"]: line for line in map(json.loads, out.read_text().splitlines()) if line.get("method") == "reasons"}
    for row, one in enumerate(load_student(finished / "student").explain(["a great film", "awful"])):
        assert told[row]["scores"] == pytest.approx(one.scores, abs=1e-5)
        assert one.label in ("negative", "positive")
    assert ("comprehensiveness" in answer.out) == bool(flags)


def test_another_model_has_no_reasons_to_tell(finished: Path, egkd: Any) -> None:
    answer = egkd("explain", "a great film", "--model", finished.parent / "teacher", "--method", "reasons")
    assert answer.code == 2
    assert "distil a student with --reasons" in answer.err


def test_the_page_s_snippet_serves_a_student(finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    (code,) = re.findall(r"^```python\n(.*?load_student.*?)^```", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(finished.parent)
    assert 'load_student("run/student")' in code
    exec(compile(code, DOCS.name, "exec"), {})
    assert re.search(r"(negative|positive)", capsys.readouterr().out)


def test_a_share_of_a_batch_may_lack_its_longest_text(tokenizer: Any) -> None:
    """Lessons are padded for the whole batch; what is padding changes nothing."""
    torch.manual_seed(0)
    head, hidden, scores = WordHead(8, 2), torch.rand(1, 5, 8), torch.rand(1, 1, 7)
    lesson = {"scores": scores, "visible": torch.tensor([[True] * 3 + [False] * 4]), "target": torch.ones(1)}
    short = {"scores": scores[..., :3], "visible": lesson["visible"][:, :3], "target": lesson["target"]}
    batch = {"unit_ids": torch.tensor([[-1, 0, 1, 2, -1]]), "n_units": torch.tensor([3])}
    seen, moment = (
        Seen(logits_BC=torch.zeros(1, 2), hidden_states=(hidden,)),
        Moment(step=0, epoch=0, tokenizer=tokenizer, head=head),
    )
    assert torch.equal(Reasons().learn(seen, [], batch, lesson, moment), Reasons().learn(seen, [], batch, short, moment))
