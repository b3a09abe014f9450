"""Shapley values against an enumeration of all orders, captum and shap; LIME against the lime package."""

import itertools

import numpy as np
import pytest
import shap
import torch
from captum.attr import ShapleyValues, ShapleyValueSampling
from lime.lime_text import LimeTextExplainer
from sklearn.metrics import pairwise_distances

from egkd.explain import ExactShapley, KernelShap, Lime, ShapleySampling, score_dataset
from egkd.models import log_odds, observe
from egkd.text import collate, perturb

TEXT = "I really love this great film"  # six words


@pytest.fixture
def game(tiny_bert, tokenizer, rows_of):
    """A model, its one row, and the value of coalitions [P, 6] computed without any of the code under test."""
    model = tiny_bert(layers=2)
    (row,) = rows_of(tokenizer, [TEXT])
    batch = collate([row], 0)

    def value(keep_PU):
        keep_PU = torch.as_tensor(np.asarray(keep_PU), dtype=torch.bool)
        copies = {name: tensor.repeat_interleave(len(keep_PU), 0) for name, tensor in batch.items()}
        with torch.no_grad():
            logits = observe(model, perturb(copies, keep_PU, "mask", tokenizer)).logits_BC
        return log_odds(logits, torch.ones(len(keep_PU), dtype=torch.long)).double().numpy()

    return model, row, value


@pytest.fixture
def exact(game):
    """By the definition: what each word adds, averaged over all 720 orders."""
    _, _, value = game
    worth = dict(zip(itertools.product([0, 1], repeat=6), value(list(itertools.product([0, 1], repeat=6))), strict=True))
    scores = np.zeros(6)
    for order in itertools.permutations(range(6)):
        present = [0] * 6
        for player in order:
            before = worth[tuple(present)]
            present[player] = 1
            scores[player] += worth[tuple(present)] - before
    return scores / 720


def ours(explainer, game, tokenizer, seed=0):
    model, row, _ = game
    (scored,) = score_dataset(explainer, model, tokenizer, [row], targets=[1], seed=seed)
    return scored


def test_exact_shapley_is_the_mean_over_all_orders(game, exact, tokenizer):
    np.testing.assert_allclose(ours(ExactShapley(), game, tokenizer).scores_U, exact, atol=1e-5)


def test_exact_shapley_is_captum_s(game, exact, tokenizer):
    model, row, _ = game
    batch = collate([row], 0)
    captum = ShapleyValues(lambda ids: log_odds(model(input_ids=ids).logits, torch.ones(len(ids), dtype=torch.long)))
    # captum knows no token that always stays: the two special ones go with the first word, and are replaced by themselves
    baseline = batch["input_ids"].masked_fill(batch["unit_ids"] >= 0, tokenizer.mask_token_id)
    mask = torch.where(batch["unit_ids"] >= 0, batch["unit_ids"], 0)
    theirs = captum.attribute(batch["input_ids"], baselines=baseline, feature_mask=mask, perturbations_per_eval=64)[0]
    np.testing.assert_allclose(theirs[1:-1], exact, atol=1e-5)


def test_exact_shapley_refuses_long_texts(tiny_bert, tokenizer, rows_of):
    rows = rows_of(tokenizer, ["the film " * 7])
    with pytest.raises(ValueError, match="14 words, exact-shapley takes at most 12; use shapley-sampling"):
        score_dataset(ExactShapley(), tiny_bert(), tokenizer, rows)


@pytest.mark.parametrize("n_samples", [62, 1000])
def test_kernel_shap_is_exact_once_all_coalitions_are_in(n_samples, game, exact, tokenizer):
    scored = ours(KernelShap(n_samples=n_samples), game, tokenizer)
    np.testing.assert_allclose(scored.scores_U, exact, atol=1e-4)
    assert scored.error_U.max() == 0


def test_kernel_shap_is_the_shap_package_s(game, tokenizer):
    """With the coalitions that both enumerate (all of them), and the same sum with fewer."""
    _, _, value = game
    theirs = shap.KernelExplainer(value, np.zeros((1, 6))).shap_values(np.ones((1, 6)), nsamples=62, l1_reg=False, silent=True)
    np.testing.assert_allclose(ours(KernelShap(n_samples=62), game, tokenizer).scores_U, theirs[0], atol=1e-4)
    total = value(np.ones((1, 6)))[0] - value(np.zeros((1, 6)))[0]
    for n_samples in (2, 5, 20, 40):
        scored = ours(KernelShap(n_samples=n_samples), game, tokenizer)
        assert scored.scores_U.sum() == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize(
    "explainer",
    [
        ShapleySampling(n_samples=200),
        ShapleySampling(n_samples=200, orders="independent"),
        KernelShap(n_samples=24),
        KernelShap(n_samples=40),
    ],
    ids=repr,
)
def test_standard_errors_say_how_far_the_truth_is(explainer, game, exact, tokenizer):
    """Over seeds, the deviation from the exact values is what the error claims, within the chance of 40 runs."""
    runs = [ours(explainer, game, tokenizer, seed) for seed in range(40)]
    deviation = np.stack([run.scores_U.numpy() for run in runs]) - exact
    claimed = np.sqrt(np.mean([run.error_U.square().numpy() for run in runs], axis=0))
    ratio = np.sqrt((deviation**2).mean(0)) / claimed
    assert ((ratio > 0.5) & (ratio < 1.6)).all(), ratio
    assert (np.abs(deviation.mean(0)) < 4 * claimed / 40**0.5 + 1e-4).all()  # and no bias


def test_antithetic_orders_err_less_at_the_same_cost(game, exact, tokenizer):
    def squared_error(orders):
        explainer = ShapleySampling(n_samples=10, orders=orders)
        return np.mean([((ours(explainer, game, tokenizer, seed).scores_U.numpy() - exact) ** 2).sum() for seed in range(30)])

    assert squared_error("antithetic") < 0.8 * squared_error("independent")


def test_shapley_sampling_agrees_with_captum_s_within_its_errors(game, tokenizer):
    model, row, _ = game
    batch = collate([row], 0)
    captum = ShapleyValueSampling(lambda ids: log_odds(model(input_ids=ids).logits, torch.ones(len(ids), dtype=torch.long)))
    baseline = batch["input_ids"].masked_fill(batch["unit_ids"] >= 0, tokenizer.mask_token_id)
    mask = torch.where(batch["unit_ids"] >= 0, batch["unit_ids"], 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = captum.attribute(
            batch["input_ids"], baselines=baseline, feature_mask=mask, n_samples=200, perturbations_per_eval=50
        )[0, 1:-1]
    scored = ours(ShapleySampling(n_samples=200, orders="independent"), game, tokenizer)
    assert ((scored.scores_U - theirs).abs() < 5 * 2**0.5 * scored.error_U).all()


def test_lime_is_the_lime_package_s_on_the_same_coalitions(game):
    """Kernel, weights, ridge and intercept: the package's regression on the coalitions that ours asked for."""
    _, _, value = game
    asked, whole = [], np.ones((1, 6))
    play = Lime(n_samples=700).play(6, value(whole)[0], np.random.default_rng(0))
    try:
        keep = next(play)
        while True:
            asked.append(keep)
            keep = play.send(value(keep))
    except StopIteration as end:
        estimate = end.value
    keep = np.concatenate([whole, *asked]).astype(float)
    assert len(keep) == 700
    assert set(keep[1:].sum(1)) == set(range(6))  # never the whole text again

    explainer = LimeTextExplainer(feature_selection="none", random_state=0)
    distances = pairwise_distances(keep, whole, metric="cosine").ravel() * 100
    _, pairs, fit, _ = explainer.base.explain_instance_with_data(keep, value(keep)[:, None], distances, 0, 6, "none")
    np.testing.assert_allclose(estimate.scores_N, [score for _, score in sorted(pairs)], atol=1e-6)
    assert estimate.diagnostics["r2"] == pytest.approx(fit, abs=1e-6)


def test_lime_s_errors_say_how_far_many_more_samples_go(game, tokenizer):
    limit = ours(Lime(n_samples=20_000, ridge=0.0), game, tokenizer, seed=99).scores_U.numpy()
    runs = [ours(Lime(n_samples=150, ridge=0.0), game, tokenizer, seed) for seed in range(40)]
    claimed = np.sqrt(np.mean([run.error_U.square().numpy() for run in runs], axis=0))
    ratio = np.sqrt(np.mean([(run.scores_U.numpy() - limit) ** 2 for run in runs], axis=0)) / claimed
    assert ((ratio > 0.5) & (ratio < 1.6)).all(), ratio
