"""What holds for every explainer: repeatable, in any batch and order, on any model, which is left as it was."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egkd.explain import (
    EXPLAINERS,
    ExactShapley,
    InputXGradient,
    IntegratedGradients,
    KernelShap,
    Lime,
    Occlusion,
    Saliency,
    ShapleySampling,
    SmoothGrad,
    SufficientSubset,
    iter_scored,
    score_dataset,
)
from egkd.explain.base import example_seed

# One of each, small; learned selectors are tested where they are learned.
SMALL = [
    Saliency(),
    InputXGradient(),
    IntegratedGradients(steps=3),
    SmoothGrad(n_samples=3),
    SmoothGrad(inner=IntegratedGradients(steps=2, baseline="zero"), n_samples=2),
    Occlusion(operator="delete"),
    Lime(n_samples=30, operator="attention"),
    KernelShap(n_samples=30),
    ShapleySampling(n_samples=4, operator="delete"),
    ExactShapley(max_units=20),
]
SAMPLERS = [explainer for explainer in SMALL if explainer.samples]


def test_one_of_each_is_tested_here():
    learned = {name for name, explainer in EXPLAINERS.items() if explainer.family in ("selection", "amortised")}
    assert {explainer.name for explainer in SMALL} == set(EXPLAINERS) - learned


def same(first, second):
    torch.testing.assert_close(first.scores_U, second.scores_U, atol=2e-5, rtol=1e-4)
    assert torch.equal(first.visible_U, second.visible_U)
    assert first.target == second.target
    if first.error_U is not None:
        torch.testing.assert_close(first.error_U, second.error_U, atol=2e-5, rtol=1e-3, equal_nan=True)
    assert (first.error_U is None) == (second.error_U is None)
    assert set(first.diagnostics) == set(second.diagnostics)
    for name, value in first.diagnostics.items():
        assert second.diagnostics[name] == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("explainer", SMALL, ids=repr)
def test_scores_do_not_depend_on_batch_budget_or_order(explainer, tiny_bert, tokenizer, rows_of, texts):
    model = tiny_bert(layers=2)
    rows = rows_of(tokenizer, texts[1:])
    alone = [score_dataset(explainer, model, tokenizer, [row], seed=5)[0] for row in rows]
    for run in (
        score_dataset(explainer, model, tokenizer, rows, seed=5),
        score_dataset(explainer, model, tokenizer, rows[::-1], seed=5)[::-1],
        score_dataset(explainer, model, tokenizer, rows, seed=5, token_budget=17),
        score_dataset(explainer, model, tokenizer, rows + rows, seed=5)[len(rows) :],
    ):
        for first, second in zip(alone, run, strict=True):
            same(first, second)


@pytest.mark.parametrize("explainer", SMALL, ids=repr)
def test_bfloat16_says_nearly_the_same_and_float32_the_same(explainer, tiny_bert, tokenizer, rows_of, texts):
    model, rows = tiny_bert(layers=2), rows_of(tokenizer, texts[:3])
    targets = [1, 0, 1]
    plain = score_dataset(explainer, model, tokenizer, rows, targets=targets)
    off = score_dataset(explainer, model, tokenizer, rows, targets=targets, precision="bfloat16")
    again = score_dataset(explainer, model, tokenizer, rows, targets=targets, precision="float32")
    for one, other, same in zip(plain, off, again, strict=True):
        assert torch.equal(one.scores_U, same.scores_U)
        assert not torch.equal(one.scores_U, other.scores_U)
        assert other.scores_U.dtype == other.logits_C.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(one.scores_U, other.scores_U, dim=0) > 0.9  # random weights amplify


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(5)), token_budget=st.integers(1, 200), number=st.sampled_from(range(len(SMALL))))
def test_any_order_any_budget(order, token_budget, number, tiny_bert, tokenizer, rows_of, texts):
    explainer, model = SMALL[number], tiny_bert(layers=1)
    rows = rows_of(tokenizer, ["the plot", *texts[1:]])
    expected = score_dataset(explainer, model, tokenizer, rows)
    found = score_dataset(explainer, model, tokenizer, [rows[i] for i in order], token_budget=token_budget)
    for position, index in enumerate(order):
        same(expected[index], found[position])


@pytest.mark.parametrize("explainer", SAMPLERS, ids=repr)
def test_seeds_count_and_every_text_has_its_own(explainer, tiny_bert, tokenizer, rows_of, texts):
    model = tiny_bert(layers=2)
    rows = rows_of(tokenizer, [texts[0]])

    def scores(seed):
        return score_dataset(explainer, model, tokenizer, rows, seed=seed)[0].scores_U

    assert torch.equal(scores(1), scores(1))
    assert not torch.equal(scores(1), scores(2))
    # without the text in it, a row is known by its tokens
    assert example_seed(1, rows[0]) != example_seed(1, {**rows[0], "text": "other"})
    bare = {"input_ids": rows[0]["input_ids"]}
    assert example_seed(1, bare) == example_seed(1, {"input_ids": torch.tensor(rows[0]["input_ids"]).tolist()})
    assert example_seed(1, bare) != example_seed(1, {"input_ids": [0]})


@pytest.mark.parametrize("explainer", [*SMALL, SufficientSubset(steps=2)], ids=repr)
def test_every_architecture_alone_in_pairs_many_classes_and_regression(explainer, any_model, rows_of, texts, pairs):
    build, tokenizer = any_model
    for num_labels, second in ((1, None), (1, pairs[2:4]), (2, pairs[2:4]), (3, None), (3, pairs[2:4])):
        rows = rows_of(tokenizer, texts[2:4], second)
        model = build(num_labels)
        for row, scored in zip(rows, score_dataset(explainer, model, tokenizer, rows), strict=True):
            assert scored.scores_U.shape == (row["n_units"],)
            assert scored.scores_U.isfinite().all()
            assert scored.visible_U.all()
            assert (scored.scores_U != 0).any() or row["n_units"] == 0
            assert scored.target == (scored.logits_C.argmax() if num_labels > 1 else 0)


@pytest.fixture
def borrowed(tiny_bert):
    """A model in an unusual state, and a check that it is still in it."""
    model = tiny_bert(layers=2, dropout=0.5)
    model.train()
    model.bert.encoder.layer[0].eval()
    model.classifier.weight.requires_grad_(False)
    model.classifier.bias.grad = torch.ones(2)
    torch.manual_seed(7)

    def state():
        return (
            [module.training for module in model.modules()],
            [parameter.requires_grad for parameter in model.parameters()],
            [None if parameter.grad is None else parameter.grad.tolist() for parameter in model.parameters()],
            [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
            torch.get_rng_state().tolist(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
        )

    before = state()
    return model, lambda: state() == before


@pytest.mark.parametrize("explainer", SMALL, ids=repr)
def test_the_model_is_left_as_it_was(explainer, borrowed, tokenizer, rows_of, texts):
    model, unchanged = borrowed
    score_dataset(explainer, model, tokenizer, rows_of(tokenizer, texts[1:]))
    assert unchanged()


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("explainer", SMALL, ids=repr)
def test_the_model_is_left_as_it_was_after_a_failure(explainer, failure, borrowed, tokenizer, rows_of, texts):
    model, unchanged = borrowed
    passes = iter(range(100))
    forward = model.bert.encoder.forward

    def failing(*args, **kwargs):
        if next(passes) == 1 or isinstance(explainer, (Saliency, InputXGradient)):  # those have one pass only
            raise failure("in the middle")
        return forward(*args, **kwargs)

    model.bert.encoder.forward = failing
    with pytest.raises(failure):
        score_dataset(explainer, model, tokenizer, rows_of(tokenizer, texts[1:]))
    assert unchanged()


def test_a_consumer_may_stop_and_finds_the_model_as_it_was_in_between(borrowed, tokenizer, rows_of, texts):
    model, unchanged = borrowed
    stream = iter_scored(Occlusion(), model, tokenizer, rows_of(tokenizer, texts), token_budget=20)
    index, _ = next(stream)
    assert index == 2  # the one with most tokens
    assert unchanged()
    stream.close()
    assert unchanged()


def test_progress_counts_finished_examples(tiny_bert, tokenizer, rows_of, texts):
    seen = []
    score_dataset(InputXGradient(), tiny_bert(), tokenizer, rows_of(tokenizer, texts), progress=seen.append)
    assert seen == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("targets", "message"),
    [([0], "1 targets for 5 texts"), ([0, 1, 2, 0, 0], "target 2 is none of the model's 2 classes"), ([-1] * 5, "target -1")],
)
def test_impossible_targets_are_refused(targets, message, tiny_bert, tokenizer, rows_of, texts):
    with pytest.raises(ValueError, match=message):
        score_dataset(Occlusion(), tiny_bert(), tokenizer, rows_of(tokenizer, texts), targets=targets)


def test_the_explained_class_turns_the_sign_of_a_two_class_model(tiny_bert, tokenizer, rows_of, texts):
    rows = rows_of(tokenizer, texts)
    for explainer in (InputXGradient(), Occlusion(), IntegratedGradients(steps=2)):
        for first, second in zip(
            score_dataset(explainer, tiny_bert(), tokenizer, rows, targets=[0] * 5),
            score_dataset(explainer, tiny_bert(), tokenizer, rows, targets=[1] * 5),
            strict=True,
        ):
            torch.testing.assert_close(first.scores_U, -second.scores_U, atol=1e-5, rtol=1e-4)
