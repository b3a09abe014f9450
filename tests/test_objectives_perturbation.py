"""The perturbation guide: which masks, when, and what the loss is the squared error of."""

from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from egkd.explain import ExactShapley, KernelShap, Lime
from egkd.explain.base import Request
from egkd.lessons import stack
from egkd.models import Seen, frozen, log_odds, observe
from egkd.objectives import Moment, PerturbationGuide, Teacher
from egkd.objectives.coefficients import all_coalitions, coefficients_of, shapley_weights
from egkd.objectives.perturbation import Prepared, draw_masks, outputs_distance, teacher_scale, turn_order
from egkd.objectives.schedule import Schedule
from egkd.predict import encode_dataset
from egkd.text import collate, perturb


def batch_of(data: Dataset, tokenizer: Any) -> dict[str, torch.Tensor]:
    encoded = encode_dataset(data, tokenizer)
    return collate([{**row, "idx": place} for place, row in enumerate(encoded)], tokenizer.pad_token_id)


def lesson_of(guide: Any, model: Any, tokenizer: Any, batch: Any, scale: float = 1.0, half: bool = False) -> Any:
    """What the teacher shows, as it comes back from disk (there as float16, if `half`)."""
    with frozen(model):
        teacher = Teacher(model=model, tokenizer=tokenizer, prepared=Prepared(scale, None))
        taught = guide.teach(teacher, batch, observe(model, batch))
    values = {name: [np.asarray(value) for value in column] for name, column in taught.items()}
    if half:
        values = {n: [v if v.dtype == np.bool_ else v.astype(np.float16) for v in column] for n, column in values.items()}
    return {name: stack(column) for name, column in values.items()}


def at(epoch: int, tokenizer: Any = None) -> Moment:
    return Moment(step=7, epoch=epoch, tokenizer=tokenizer)


def losses(guide: Any, model: Any, batch: Any, lesson: Any, moment: Moment) -> torch.Tensor:
    copies = [observe(model, copy) for copy in guide.copies(batch, lesson, moment)]
    return guide.learn(observe(model, batch), copies, batch, lesson, moment)


# --- masks ---


def test_masks_are_the_examples_own_and_of_the_size_asked_for() -> None:
    assert np.array_equal(draw_masks(3, 9, 4, "shapley"), draw_masks(3, 9, 4, "shapley"))
    assert not np.array_equal(draw_masks(3, 9, 4, "shapley"), draw_masks(4, 9, 4, "shapley"))
    keep = draw_masks(1, 7, 6, "uniform")
    assert np.array_equal(keep[0::2], ~keep[1::2])
    assert keep.any(1).all()
    assert not keep.all(1).any()
    single = draw_masks(1, 5, 10, "leave-one-out")
    assert ((~single).sum(1) == 1).all()
    mixed = draw_masks(1, 5, 8, "mixed")
    assert ((~mixed[0::2]).sum(1) == 1).all()
    assert np.array_equal(mixed[1::4], ~mixed[3::4])
    assert np.array_equal((~single[:5]).sum(0), np.ones(5))  # each word once before any comes again


def test_outputs_distance_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 3.0]])
    assert outputs_distance(student, teacher, "log-odds").item() == pytest.approx(4.0)
    assert outputs_distance(student, teacher, "log-odds", scale_B=torch.tensor([2.0])).item() == pytest.approx(1.0)
    p, q = teacher.softmax(1), student.softmax(1)
    assert outputs_distance(student, teacher, "kl", temperature=1.0).item() == pytest.approx(
        (p * (p / q).log()).sum().item(), rel=1e-5
    )


def test_a_lesson_is_the_same_whatever_the_batch(tiny_bert: Any, tokenizer: Any, tiny_data: Dataset) -> None:
    model, data = tiny_bert(), tiny_data.select(range(6))
    for guide in (PerturbationGuide(masks=5), PerturbationGuide(masks=5, match="coefficients", kernel="shapley")):
        together = lesson_of(guide, model, tokenizer, batch_of(data, tokenizer))
        for row in range(6):
            alone = lesson_of(guide, model, tokenizer, batch_of(data.select([row]), tokenizer))
            for name, value in alone.items():
                same = together[name][row][..., : value.shape[-1]] if name == "keep" else together[name][row]
                torch.testing.assert_close(value[0], same, atol=1e-5, rtol=1e-4)


def test_words_that_were_cut_off_are_not_masked(tiny_bert: Any, tokenizer: Any) -> None:
    data = Dataset.from_dict({"text": ["the film is great and the cast was lovely", "", "dull"], "label": [1, 0, 0]})
    encoded = encode_dataset(data, tokenizer, 6)  # four words and two special tokens
    batch = collate(list(encoded), tokenizer.pad_token_id)
    for match in ("outputs", "coefficients"):
        guide = PerturbationGuide(masks=4, match=match, kernel="shapley")
        lesson = lesson_of(guide, tiny_bert(), tokenizer, batch)
        assert lesson["keep"][0, :, 4:].all()
        assert not lesson["keep"][0, :, :4].all(1).any()
        assert lesson["strength"][1].item() == pytest.approx(0, abs=1e-4)  # nothing can be taken from an empty text
        assert torch.isfinite(losses(guide, tiny_bert(seed=1), batch, lesson, at(0, tokenizer))).all()


def test_strength_is_how_far_the_bank_moves_the_teacher(tiny_bert: Any, tokenizer: Any, tiny_data: Dataset) -> None:
    model, batch = tiny_bert(), batch_of(tiny_data.select(range(4)), tokenizer)
    lesson = lesson_of(PerturbationGuide(masks=3), model, tokenizer, batch, scale=2.0)
    plain = observe(model, batch).logits_BC
    for row in range(4):
        target = plain[row].argmax().repeat(4)
        values = log_odds(torch.cat([plain[row][None], lesson["outputs"][row]]), target)
        expected = ((values[1:] - values[0]) / 2).square().mean().sqrt()
        torch.testing.assert_close(lesson["strength"][row], expected, atol=1e-4, rtol=1e-3)


# --- turns ---


@given(st.sampled_from([1.0, 0.5, 0.3, 0.25, 0.7]), st.integers(1, 10_000))
@settings(max_examples=40, deadline=None)
def test_visits_are_counted(share: float, first: int) -> None:
    schedule, idx = Schedule(share=share), torch.arange(first, first + 50)
    counted = torch.zeros(50, dtype=torch.long)
    for epoch in range(15):
        assert torch.equal(schedule.visits(idx, epoch), counted)
        rows = schedule.rows(idx, epoch)
        counted[torch.arange(50) if rows is None else rows] += 1


@pytest.mark.parametrize(("masks", "taken"), [(4, 2), (4, 1), (3, 2), (6, 4), (5, 5)])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.3])
def test_the_bank_is_swept_evenly_whatever_the_schedule(masks: int, taken: int, share: float) -> None:
    """After every round each mask of each example has had the same number of turns; no step takes one twice."""
    guide = PerturbationGuide(masks=masks, masks_per_step=taken, schedule=Schedule(share=share))
    idx = torch.arange(1, 41)
    lesson = {"keep": torch.ones(40, masks, 3, dtype=torch.bool)}
    turns, visits = torch.zeros(40, masks, dtype=torch.long), torch.zeros(40, dtype=torch.long)
    whole = masks // np.gcd(masks, taken)
    checked = 0
    for epoch in range(40):
        rows = guide.schedule.rows(idx, epoch)
        rows = torch.arange(40) if rows is None else rows
        take = guide._take({"idx": idx[rows]}, {"keep": lesson["keep"][rows]}, at(epoch))
        assert (torch.stack([row.bincount(minlength=masks) for row in take]) <= 1).all()
        turns[rows] += torch.stack([row.bincount(minlength=masks) for row in take])
        visits[rows] += 1
        at_end = visits % whole == 0
        assert (turns[at_end] == (visits[at_end] * taken // masks)[:, None]).all()
        checked += int(at_end.sum())
    assert checked > 100


def test_turns_do_not_depend_on_the_batch_and_any_masks_meet() -> None:
    order = turn_order(torch.arange(20_000), torch.zeros(20_000, dtype=torch.long), 4)
    assert torch.equal(order.sort(1).values, torch.arange(4).expand(20_000, 4))
    assert torch.equal(turn_order(torch.tensor([77]), torch.tensor([0]), 4)[0], order[77])
    pairs = order[:, :2].sort(1).values
    share = (pairs[:, 0] * 4 + pairs[:, 1]).bincount(minlength=16) / 20_000
    found = [share[4 * a + b].item() for a, b in combinations(range(4), 2)]
    assert found == pytest.approx([1 / 6] * 6, abs=0.015)
    later = turn_order(torch.arange(20_000), torch.ones(20_000, dtype=torch.long), 4)
    assert (order == later).all(1).float().mean().item() == pytest.approx(1 / 24, abs=0.01)


def test_copies_are_of_the_masks_taken_the_shortest_first(tokenizer: Any, tiny_data: Dataset) -> None:
    guide = PerturbationGuide(masks=3, masks_per_step=3, operator="gather")
    batch = batch_of(tiny_data.select(range(2)), tokenizer)
    keep = torch.zeros(2, 3, int(batch["n_units"].max()), dtype=torch.bool)
    keep[:, 0, :3], keep[:, 1, 0], keep[:, 2, 1:3] = True, True, True
    copies = guide.copies(batch, {"keep": keep}, at(0, tokenizer))
    assert [len(copy["input_ids"]) for copy in copies] == [1] * 6
    assert [copy["input_ids"].shape[1] for copy in copies] == [3, 3, 4, 4, 5, 5]  # with the two special tokens
    assert copies[1]["position_ids"][0, :2].tolist() == [0, 1]
    assert copies[2]["position_ids"][0, :3].tolist() == [0, 2, 3]
    first, second = (batch["input_ids"][row, 1:4].tolist() for row in range(2))
    assert [copy["input_ids"][0, 1:-1].tolist() for copy in copies] == [
        *(first[:1], second[:1]),
        *(first[1:], second[1:]),
        *(first, second),
    ]


# --- coefficients ---


def answers(play: Any, value: Any) -> Any:
    """Play a game to its end: every coalition's value from a table."""
    asked, found = [], None
    try:
        while True:
            keep = play.send(found)
            asked.append(keep)
            found = np.array([value[row.tobytes()] for row in keep])
    except StopIteration as end:
        return np.concatenate(asked), end.value.scores_N


class Table(dict[bytes, float]):
    """A random value for every coalition, the same when asked again."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def __missing__(self, key: bytes) -> float:
        self[key] = float(self.random.normal())
        return self[key]


def test_lime_is_what_the_explainer_makes_of_the_same_masks() -> None:
    table = Table(0)
    for ridge in (1.0, 0.1):
        explainer = Lime(n_samples=30, ridge=ridge)
        keep, scores = answers(explainer.play(7, 1.5, np.random.default_rng(1)), table)
        outputs = np.array([1.5, *(table[row.tobytes()] for row in keep)])
        found = coefficients_of(keep, "lime", "uniform", ridge) @ outputs
        np.testing.assert_allclose(found, scores, rtol=1e-6, atol=1e-8)


def test_kernel_shap_is_what_the_explainer_makes_of_the_same_masks() -> None:
    """Whole sizes enumerated: all coalitions; the explainer's pairs: drawn by the kernel, all of one weight."""
    table = Table(0)
    for n_units, n_samples in ((4, 100), (12, 22)):
        explainer = KernelShap(n_samples=n_samples)
        keep, scores = answers(explainer.play(n_units, 1.5, np.random.default_rng(1)), table)
        outputs = np.array([1.5, *(table[row.tobytes()] for row in keep)])
        found = coefficients_of(keep, "shapley", "shapley", 0.0) @ outputs
        np.testing.assert_allclose(found, scores, rtol=1e-5, atol=1e-6)


def test_all_coalitions_give_shapley_values_even_where_some_come_twice() -> None:
    table, n_units = Table(3), 4
    keep = np.vstack([np.zeros((1, n_units), dtype=bool), all_coalitions(n_units, 20)])
    outputs = np.array([2.0, *(table[row.tobytes()] for row in keep)])
    _, scores = answers(ExactShapley().play(n_units, 2.0, np.random.default_rng(0)), table)
    np.testing.assert_allclose(coefficients_of(keep, "shapley", "mixed", 0.0) @ outputs, scores, rtol=1e-6, atol=1e-8)


@given(st.integers(1, 8), st.integers(2, 9), st.integers(0, 99), st.sampled_from(["mixed", "uniform", "shapley"]))
@settings(max_examples=50, deadline=None)
def test_shapley_scores_sum_to_what_all_words_do_together(n_units: int, masks: int, seed: int, sizes: Any) -> None:
    """And an additive game has its own terms as scores, as far as the masks tell them apart."""
    guide = PerturbationGuide(masks=masks, masks_per_step=2, match="coefficients", kernel="shapley", sizes=sizes)
    keep = guide._bank(seed, n_units)
    assert keep.shape == (masks, n_units)
    random = np.random.default_rng(seed)
    outputs = random.normal(size=masks + 1)
    empty = keep.sum(1) == 0
    scores = coefficients_of(keep, "shapley", sizes, 0.5) @ outputs
    assert scores.sum() == pytest.approx(outputs[0] - outputs[1:][empty].mean(), abs=1e-8)
    worth = random.normal(size=n_units)
    additive = np.append(worth.sum(), keep @ worth) + 3
    deviations = keep[~empty] - keep[~empty].mean(1, keepdims=True)
    if np.linalg.matrix_rank(deviations) == n_units - 1:
        np.testing.assert_allclose(coefficients_of(keep, "shapley", sizes, 0.0) @ additive, worth, atol=1e-5)


def test_shapley_weights_by_hand() -> None:
    # sizes 1, 2, 3 of four words: kernel 1/3, 1/4, 1/3
    keep = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=bool)
    kernel = np.array([1 / 3, 1 / 4, 1 / 3])
    for sizes, chance in {"shapley": kernel, "uniform": np.ones(3), "mixed": np.array([1 / 6, 1 / 6, 1 / 6 + 1 / 2])}.items():
        expected = kernel / chance
        np.testing.assert_allclose(shapley_weights(keep, sizes), expected / expected.mean())  # type: ignore[arg-type]
    every = all_coalitions(3, 6)
    np.testing.assert_allclose(shapley_weights(every, "uniform"), np.ones(6))
    twice = all_coalitions(3, 7)  # the first one comes again
    np.testing.assert_allclose(shapley_weights(twice, "uniform")[[0, 6]], shapley_weights(twice, "uniform")[1] / 2)
    assert comb(4, 2) * shapley_weights(all_coalitions(4, 14), "mixed")[2] == pytest.approx(
        comb(4, 1) * shapley_weights(all_coalitions(4, 14), "mixed")[0] * 3 / 4
    )


def solved(guide: Any, model: Any, batch: Any, lesson: Any, row: int, tokenizer: Any) -> np.ndarray:
    """The explanation's scores for one example of a batch, by weighted least squares."""
    keep = lesson["keep"][row, :, : int(batch["n_units"][row])]
    target = lesson["plain"][row].argmax()[None]
    one = {name: value[row : row + 1] for name, value in batch.items()}
    logits = [observe(model, one).logits_BC] + [
        observe(model, perturb(one, keep_U[None], guide.operator, tokenizer)).logits_BC for keep_U in keep
    ]
    outputs = torch.cat([log_odds(each, target) for each in logits]).detach().double().numpy() / lesson["scale"][row].item()
    z = np.vstack([np.ones(keep.shape[1]), keep.numpy()])
    weight = np.exp(-((100 * (1 - np.sqrt(z.mean(1)))) ** 2) / (2 * 25**2)) ** 0.5
    x = np.column_stack([np.ones(len(z)), z]) * weight[:, None]
    penalty = np.sqrt(guide.ridge) * np.eye(x.shape[1])[1:]
    rows, right = np.vstack([x, penalty]), np.append(outputs * weight, np.zeros(len(penalty)))
    return np.linalg.lstsq(rows, right, rcond=None)[0][1:]


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("operator", ["mask", "gather"])
def test_with_all_masks_the_loss_is_the_squared_error_of_limes_scores(
    tiny_bert: Any, tokenizer: Any, tiny_data: Dataset, classes: int, operator: Any
) -> None:
    guide = PerturbationGuide(masks=6, masks_per_step=6, match="coefficients", operator=operator)
    teacher, student = tiny_bert(num_labels=classes), tiny_bert(num_labels=classes, seed=1)
    batch = batch_of(tiny_data.select(range(5)), tokenizer)
    lesson = lesson_of(guide, teacher, tokenizer, batch, scale=1.7, half=True)
    found = losses(guide, student, batch, lesson, at(3, tokenizer))
    expected = []
    for row in range(5):
        error = solved(guide, student, batch, lesson, row, tokenizer) - solved(guide, teacher, batch, lesson, row, tokenizer)
        expected.append((error**2).sum())
    assert found.tolist() == pytest.approx(expected, rel=0.03, abs=1e-3)  # what float16 leaves of it


def test_with_all_coalitions_the_loss_is_the_squared_error_of_shapley_values(tiny_bert: Any, tokenizer: Any) -> None:
    texts = ["the film is great", "dull , awful plot", "we love it", "boring story", "great"]
    batch = batch_of(Dataset.from_dict({"text": texts, "label": [1, 0, 1, 0, 1]}), tokenizer)
    guide = PerturbationGuide(masks=15, masks_per_step=15, match="coefficients", kernel="shapley", ridge=0.0)
    teacher, student = tiny_bert(), tiny_bert(seed=1)
    lesson = lesson_of(guide, teacher, tokenizer, batch)
    target = observe(teacher, batch).logits_BC.argmax(1)
    asked = [
        Request(model=model, tokenizer=tokenizer, batch=batch, target_B=target, seeds=[0] * 5) for model in (teacher, student)
    ]
    values = [ExactShapley().score(request).scores_BU for request in asked]
    found = losses(guide, student, batch, lesson, at(0, tokenizer))
    torch.testing.assert_close(found, (values[0] - values[1]).square().sum(1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("taken", [2, 3])
def test_fewer_masks_estimate_the_same_loss_without_bias(tiny_bert: Any, tokenizer: Any, taken: int) -> None:
    """The mean over all choices of masks is the loss with all of them; so is the gradient's, being linear."""
    batch = batch_of(Dataset.from_dict({"text": ["the film is great , we love it", "dull"], "label": [1, 0]}), tokenizer)
    whole = PerturbationGuide(masks=5, masks_per_step=5, match="coefficients", kernel="shapley", sizes="shapley")
    student = tiny_bert(seed=1)
    lesson = lesson_of(whole, tiny_bert(), tokenizer, batch)
    expected = losses(whole, student, batch, lesson, at(0, tokenizer))

    class Chosen(PerturbationGuide):
        def _take(self, batch: Any, lesson: Any, moment: Moment) -> torch.Tensor:
            return torch.tensor(list(combinations(range(5), taken))[moment.epoch]).expand(2, taken)

    part = Chosen(**whole.model_dump() | {"masks_per_step": taken})
    found = [losses(part, student, batch, lesson, at(choice, tokenizer)) for choice in range(comb(5, taken))]
    torch.testing.assert_close(torch.stack(found).mean(0), expected, rtol=1e-4, atol=1e-5)
    assert torch.stack(found)[:, 0].std() > 0


def test_the_loss_does_not_depend_on_padding_or_neighbours(tiny_bert: Any, tokenizer: Any, tiny_data: Dataset) -> None:
    teacher, student = tiny_bert(), tiny_bert(seed=1)
    batch = batch_of(tiny_data.select(range(6)), tokenizer)
    for guide in (
        PerturbationGuide(),
        PerturbationGuide(operator="gather"),
        PerturbationGuide(masks=6, match="coefficients", kernel="shapley", operator="delete"),
    ):
        lesson = lesson_of(guide, teacher, tokenizer, batch)
        together = losses(guide, student, batch, lesson, at(2, tokenizer))
        for row in range(6):
            one, own = ({name: value[[row]] for name, value in each.items()} for each in (batch, lesson))
            torch.testing.assert_close(
                losses(guide, student, one, own, at(2, tokenizer))[0], together[row], rtol=1e-3, atol=1e-4
            )


def test_a_divergence_of_predictions_by_hand() -> None:
    """T² KL of the predictions softened by T."""
    guide = PerturbationGuide(masks=1, masks_per_step=1, distance="kl", temperature=2.0)
    batch = {"input_ids": torch.zeros(1, 3), "idx": torch.tensor([0])}
    lesson = {"keep": torch.tensor([[[True, False]]]), "outputs": torch.tensor([[[0.0, 3.0]]]), "scale": torch.tensor([2.0])}
    own, theirs = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 3.0])
    p, q = (theirs / 2).softmax(0), (own / 2).softmax(0)
    expected = 4 * (p * (p.log() - q.log())).sum().item()
    found = guide.learn(Seen(logits_BC=torch.zeros(1, 2)), [Seen(logits_BC=own[None])], batch, lesson, at(0))
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"masks": 2, "masks_per_step": 3}, "the bank has 2"),
        ({"match": "coefficients", "masks_per_step": 1}, "in pairs"),
        ({"match": "coefficients", "distance": "kl"}, "linear in log odds"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        PerturbationGuide(**wrong)


def test_one_outputs_loss_by_hand(tokenizer: Any) -> None:
    guide = PerturbationGuide(masks=2, masks_per_step=2)
    batch = {"input_ids": torch.zeros(1, 3), "idx": torch.tensor([0])}
    lesson = {
        "keep": torch.tensor([[[True, False], [False, False]]]),  # the second keeps less: it comes first
        "outputs": torch.tensor([[[0.0, 3.0], [1.0, 0.0]]]),
        "scale": torch.tensor([2.0]),
    }
    copies = [Seen(logits_BC=torch.tensor([[0.0, 0.5]])), Seen(logits_BC=torch.tensor([[0.0, 1.0]]))]  # one of each
    # log odds: -0.5 against 1 of class 0; 1 against 3 of class 1
    expected = ((1.5 / 2) ** 2 + (2.0 / 2) ** 2) / 2
    assert guide.learn(Seen(logits_BC=torch.zeros(1, 2)), copies, batch, lesson, at(0)).item() == pytest.approx(expected)


def test_the_teacher_s_scale_is_that_of_all_texts_in_whatever_order(tiny_bert: Any, tokenizer: Any) -> None:
    """Also where all texts of one class come first."""
    texts = ["a lovely film"] * 400 + ["the plot is boring and dull"] * 400
    dataset = encode_dataset(Dataset.from_dict({"text": texts}), tokenizer, 32)
    with frozen(tiny_bert()) as model:
        teacher = Teacher(model=model, tokenizer=tokenizer)
        sorted_, mixed = (teacher_scale(teacher, each) for each in (dataset, dataset.shuffle(seed=0)))
        one = teacher_scale(teacher, dataset.select(range(300)))
        logits_BC = observe(model, collate([dataset[0], dataset[-1]], tokenizer.pad_token_id)).logits_BC
        apart = float((logits_BC[:, 1] - logits_BC[:, 0]).diff().abs())
        model.classifier.weight.mul_(3), model.classifier.bias.mul_(3)
        threefold = teacher_scale(teacher, dataset)
    assert sorted_ == pytest.approx(mixed, rel=0.05)
    assert sorted_ == pytest.approx(apart / 2, rel=1e-2)  # half are one text, half the other
    assert sorted_ < 0.5
    assert threefold == pytest.approx(3 * sorted_, rel=1e-3)
    assert one == 1.0  # equal texts have no spread
