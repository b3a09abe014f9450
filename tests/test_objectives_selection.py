"""The selection guide: what it shows, what it costs, what it asks of a student."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from egkd.explain.selectors import Selector, SelectorSettings, read_hidden
from egkd.lessons import stack
from egkd.models import Seen, frozen, log_odds, observe
from egkd.objectives import Moment, SelectionGuide, Teacher
from egkd.predict import encode_dataset
from egkd.step import learn
from egkd.text import collate, perturb, visible_units, width

SCALE = 2.0
TEXTS = ["the film is great", "dull , awful plot and the cast was not very funny", "", "we love this boring story , really"]


@pytest.fixture
def batch(tokenizer: Any) -> dict[str, torch.Tensor]:
    encoded = encode_dataset(Dataset.from_dict({"text": TEXTS, "label": [1, 0, 0, 1]}), tokenizer)
    return collate([{**row, "idx": place} for place, row in enumerate(encoded)], tokenizer.pad_token_id)


@pytest.fixture
def teacher(tiny_bert: Any, tokenizer: Any, batch: Any) -> Teacher:
    """A model with a selector of random weights, which is as good as any for what is tested here."""
    model, settings = tiny_bert(), SelectorSettings(rate=0.3)
    torch.manual_seed(0)
    widths = [hidden.shape[-1] for hidden in read_hidden(model, batch, settings.layers).hidden]
    return Teacher(model=model, tokenizer=tokenizer, prepared=(Selector(settings, widths), SCALE))


def taught(guide: SelectionGuide, teacher: Teacher, batch: Any) -> dict[str, torch.Tensor]:
    with frozen(teacher.model):
        columns = guide.teach(teacher, batch, observe(teacher.model, batch))
    return {name: stack([np.asarray(value) for value in values]) for name, values in columns.items()}


def moment(tokenizer: Any, head: Any = None) -> Moment:
    return Moment(step=0, epoch=0, tokenizer=tokenizer, head=head)


def test_a_lesson_tells_the_rationale_the_rest_and_what_the_teacher_says_of_both(teacher: Teacher, batch: Any) -> None:
    lesson = taught(SelectionGuide(), teacher, batch)
    visible = visible_units(batch["unit_ids"], width(batch))
    assert lesson["keep"].sum(1).tolist() == [2, 4, 0, 3]  # 0.3 of 4, 11, 0 and 7 words, rounded up
    assert torch.equal(lesson["keep"] | lesson["rest"], visible)
    assert not (lesson["keep"] & lesson["rest"]).any()
    plain = observe(teacher.model, batch).logits_BC
    for part, words in enumerate(("keep", "rest")):
        logits = observe(teacher.model, perturb(batch, lesson[words], "mask", teacher.tokenizer)).logits_BC
        torch.testing.assert_close(lesson["outputs"][:, part], logits)
    target = plain.argmax(1)
    moved = (log_odds(plain, target) - log_odds(lesson["outputs"][:, 1], target)).abs() / SCALE
    torch.testing.assert_close(lesson["strength"], moved)
    assert lesson["strength"][2].item() == pytest.approx(0, abs=1e-4)  # an empty text has no rationale
    assert lesson["strength"][1] > 0


def test_a_lesson_is_the_same_whatever_the_batch(teacher: Teacher, batch: Any) -> None:
    together = taught(SelectionGuide(), teacher, batch)
    for row in range(4):
        alone = taught(SelectionGuide(), teacher, {name: value[[row]] for name, value in batch.items()})
        for name, value in alone.items():
            same = together[name][row]
            torch.testing.assert_close(value[0], same[: value.shape[1]] if name in ("keep", "rest") else same)


def test_the_students_passes_are_as_long_as_what_is_kept(teacher: Teacher, batch: Any, tokenizer: Any) -> None:
    guide = SelectionGuide(complement=1.0, operator="gather")
    lesson = taught(guide, teacher, batch)
    part, rest = guide.copies(batch, lesson, moment(tokenizer))
    assert batch["input_ids"].shape[1] == 13
    assert part["input_ids"].shape[1] == 4 + 2  # words that are one token each, and two special tokens
    assert rest["input_ids"].shape[1] == 7 + 2
    for copy in (part, rest):
        real = copy["attention_mask"].bool()
        old = batch["input_ids"].gather(1, copy["position_ids"])
        assert torch.equal(copy["input_ids"][real], old[real])  # everybody stands where they stood
    assert len(SelectionGuide().copies(batch, lesson, moment(tokenizer))) == 1


def test_gathered_words_are_words_whose_neighbours_are_hidden(
    teacher: Teacher, batch: Any, tokenizer: Any, tiny_bert: Any
) -> None:
    """The short pass says what a pass of full length says when it attends to the rationale alone."""
    student, found = tiny_bert(seed=1), []
    lesson = taught(SelectionGuide(complement=0.5, operator="gather"), teacher, batch)
    for operator in ("gather", "attention"):
        guide = SelectionGuide(complement=0.5, operator=operator)  # type: ignore[arg-type]
        copies = [observe(student, copy) for copy in guide.copies(batch, lesson, moment(tokenizer))]
        found.append(guide.learn(observe(student, batch), copies, batch, lesson, moment(tokenizer)))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)
    assert (found[0] > 0).all()


def test_losses_by_hand(tokenizer: Any) -> None:
    lesson = {
        "keep": torch.tensor([[True, False, False]]),
        "rest": torch.tensor([[False, True, False]]),  # the teacher did not see the third word
        "outputs": torch.tensor([[[0.0, 3.0], [1.0, 0.0]]]),
        "scale": torch.tensor([SCALE]),
    }
    copies = [Seen(logits_BC=torch.tensor([[0.0, 1.0]])), Seen(logits_BC=torch.tensor([[0.0, 0.5]]))]
    seen, now = Seen(logits_BC=torch.zeros(1, 2)), moment(tokenizer)
    assert SelectionGuide().learn(seen, copies[:1], {}, lesson, now).item() == pytest.approx((2.0 / 2) ** 2)
    both = SelectionGuide(complement=0.5).learn(seen, copies, {}, lesson, now)
    assert both.item() == pytest.approx((2.0 / 2) ** 2 + 0.5 * (1.5 / 2) ** 2)


def test_the_head_is_told_which_words_are_the_rationale(tokenizer: Any, tiny_bert: Any) -> None:
    """By hand: scores 2 and 0 of the two words that both models saw; a word's score is the sum of its tokens'."""
    guide, student = SelectionGuide(token_head=3.0), tiny_bert(seed=1)
    lesson = {
        "keep": torch.tensor([[True, False, False, False]]),  # padded for a longer text of the same batch
        "rest": torch.tensor([[False, True, False, False]]),
        "outputs": torch.zeros(1, 2, 2),
        "scale": torch.ones(1),
    }
    batch = {"unit_ids": torch.tensor([[-1, 0, 0, 1, 2, -1]]), "n_units": torch.tensor([3])}
    head = guide.head(student, lesson)
    assert head is not None
    scores = torch.tensor([[9.0, 1.5, 0.5, 0.0, 7.0, 9.0]])
    head.forward = lambda hidden: scores[..., None]  # type: ignore[method-assign]
    seen = Seen(logits_BC=torch.zeros(1, 2), hidden_states=(torch.zeros(1, 6, 32),))
    found = guide.learn(seen, [Seen(logits_BC=torch.zeros(1, 2))], batch, lesson, moment(tokenizer, head))
    expected = 3 * (-np.log(1 / (1 + np.exp(-2))) - np.log(0.5)) / 2
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_the_head_reads_the_student_and_is_there_only_when_asked_for(
    teacher: Teacher, batch: Any, tokenizer: Any, tiny_bert: Any
) -> None:
    guide, student = SelectionGuide(token_head=1.0), tiny_bert(seed=1)
    assert guide.needs == ("hidden_states",)
    assert SelectionGuide().needs == ()
    assert SelectionGuide().head(student, {}) is None
    lesson = taught(guide, teacher, batch)
    head = guide.head(student, lesson)
    terms, _ = learn(
        student,
        [guide],
        batch,
        {"selection": lesson},
        moment(tokenizer),
        steps=1,
        pad_token_id=tokenizer.pad_token_id,
        heads={"selection": head},
    )
    terms["selection"].backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in head.parameters())
    assert not guide.keeps_head


def test_a_selector_is_trained_once(tiny_bert: Any, tokenizer: Any, tiny_data: Dataset, tmp_path: Path) -> None:
    encoded = encode_dataset(tiny_data.select(range(24)), tokenizer)
    plain, told = Teacher(model=tiny_bert(), tokenizer=tokenizer), []
    with frozen(plain.model):
        first, scale = SelectionGuide().prepare(plain, encoded, tmp_path, lambda done, total: told.append(done))
        again, same = SelectionGuide().prepare(plain, encoded, tmp_path, lambda done, total: pytest.fail("trained again"))
    assert told[-1] == 24
    assert first.fingerprint() == again.fingerprint()
    assert scale == same
