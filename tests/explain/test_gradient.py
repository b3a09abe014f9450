"""Gradient methods against captum on the same embedding output, and against what must hold of them."""

import warnings

import pytest
import torch
from captum.attr import LayerGradientXActivation, LayerIntegratedGradients, NoiseTunnel
from captum.attr import Saliency as CaptumSaliency
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RobertaConfig, RobertaForSequenceClassification

from egkd.explain import (
    InputXGradient,
    IntegratedGradients,
    Saliency,
    SmoothGrad,
    score_dataset,
    unit_scores_of_gradient,
)
from egkd.explain.base import Request
from egkd.models import frozen, log_odds, observe
from egkd.text import collate


@pytest.fixture
def model(tiny_bert):
    return tiny_bert(num_labels=3, layers=2)


def output(model):
    """What captum is asked to explain: the same scalar, from token ids."""
    return lambda input_ids, mask, target: log_odds(model(input_ids=input_ids, attention_mask=mask).logits, target)


def by_words(tokens_T, row):
    words_U = torch.zeros(row["n_units"])
    for score, unit in zip(tokens_T, row["unit_ids"], strict=True):
        if unit >= 0:
            words_U[unit] += score
    return words_U


@pytest.fixture
def cases(model, tokenizer, rows_of, texts):
    """Rows with at least one word, their batch of one, and a target class."""
    rows = rows_of(tokenizer, texts[:4])
    return [(row, collate([row], 0), torch.tensor([number % 3])) for number, row in enumerate(rows)]


def scores(explainer, model, tokenizer, cases):
    rows, _, targets = zip(*cases, strict=True)
    return score_dataset(explainer, model, tokenizer, rows, targets=[int(target) for target in targets])


def test_input_x_gradient_is_captum_s(model, tokenizer, cases):
    captum = LayerGradientXActivation(output(model), model.bert.embeddings)
    ours = scores(InputXGradient(), model, tokenizer, cases)
    norms = scores(InputXGradient(reduction="norm"), model, tokenizer, cases)
    for (row, batch, target), scored, normed in zip(cases, ours, norms, strict=True):
        theirs_TD = captum.attribute(batch["input_ids"], additional_forward_args=(batch["attention_mask"], target))[0]
        torch.testing.assert_close(scored.scores_U, by_words(theirs_TD.sum(-1), row), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(normed.scores_U, by_words(theirs_TD.square().sum(-1), row).sqrt(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("rule", "theirs"), [("gauss-legendre", "gausslegendre"), ("riemann", "riemann_middle")])
@pytest.mark.parametrize("baseline", ["mask", "pad"])
def test_integrated_gradients_are_captum_s(rule, theirs, baseline, model, tokenizer, cases):
    captum = LayerIntegratedGradients(output(model), model.bert.embeddings)
    fill = tokenizer.mask_token_id if baseline == "mask" else tokenizer.pad_token_id
    explainer = IntegratedGradients(steps=7, rule=rule, baseline=baseline)
    for (row, batch, target), scored in zip(cases, scores(explainer, model, tokenizer, cases), strict=True):
        start = batch["input_ids"].masked_fill(batch["unit_ids"] >= 0, fill)
        theirs_TD, gap = captum.attribute(
            batch["input_ids"],
            baselines=start,
            additional_forward_args=(batch["attention_mask"], target),
            n_steps=7,
            method=theirs,
            return_convergence_delta=True,
        )
        torch.testing.assert_close(scored.scores_U, by_words(theirs_TD[0].sum(-1), row), atol=2e-5, rtol=1e-4)
        assert scored.diagnostics["completeness_gap"] == pytest.approx(float(gap), abs=1e-4)


def test_padding_as_a_baseline_keeps_its_places(bpe_tokenizer, rows_of):
    """RoBERTa counts no place for padding where it is left to count."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = RobertaConfig(vocab_size=len(bpe_tokenizer), pad_token_id=bpe_tokenizer.pad_token_id, **sizes)
    model = RobertaForSequenceClassification(config).eval()
    (row,) = rows_of(bpe_tokenizer, ["a lovely film"])
    batch = collate([row], bpe_tokenizer.pad_token_id)
    request = Request(model=model, tokenizer=bpe_tokenizer, batch=batch, seeds=[0])
    with torch.no_grad():
        own = observe(model, batch, keep=("embeddings",)).embeddings_BTD
        start = IntegratedGradients(baseline="pad")._baseline(request, own)
        ids = batch["input_ids"].masked_fill(batch["unit_ids"] >= 0, bpe_tokenizer.pad_token_id)
        places = torch.arange(ids.shape[1])[None] + bpe_tokenizer.pad_token_id + 1
        expected = model.roberta.embeddings(input_ids=ids, position_ids=places)
    torch.testing.assert_close(start, torch.where((batch["unit_ids"] >= 0)[..., None], expected, own))


@pytest.mark.parametrize("baseline", ["mask", "pad", "zero"])
def test_integrated_gradients_add_up_to_the_rise_from_the_baseline(baseline, model, tokenizer, cases):
    few = scores(IntegratedGradients(steps=5, baseline=baseline), model, tokenizer, cases)
    many = scores(IntegratedGradients(steps=120, baseline=baseline), model, tokenizer, cases)
    gap = [[abs(one.diagnostics["completeness_gap"]) for one in run] for run in (few, many)]
    assert max(gap[1]) < 0.01
    assert sum(gap[1]) < sum(gap[0])


def test_every_architecture_gives_the_gradient_at_its_embeddings(any_model, rows_of, texts):
    """By autograd alone, with nothing left out of the model and one text at a time."""
    build, own_tokenizer = any_model
    model = build(3)
    rows = rows_of(own_tokenizer, texts[:4])
    found = score_dataset(InputXGradient(), model, own_tokenizer, rows, targets=[2] * 4)
    for row, scored in zip(rows, found, strict=True):
        seen = observe(model, collate([row], own_tokenizer.pad_token_id), keep=("embeddings",))
        (gradient_BTD,) = torch.autograd.grad(log_odds(seen.logits_BC, torch.tensor([2])).sum(), seen.embeddings_BTD)
        tokens_T = (seen.embeddings_BTD * gradient_BTD).sum(-1)[0].detach()
        torch.testing.assert_close(scored.scores_U, by_words(tokens_T, row), atol=2e-5, rtol=1e-3)


def test_what_the_classifier_does_not_read_is_not_computed(model, tokenizer, cases):
    widths = []
    hook = model.bert.encoder.layer[-1].register_forward_hook(lambda _module, _inputs, output: widths.append(output.shape[1]))
    try:
        scores(InputXGradient(), model, tokenizer, cases)
        model(cases[0][1]["input_ids"])
    finally:
        hook.remove()
    assert widths[:-1] == [1] * len(widths[:-1])
    assert widths[-1] == cases[0][0]["length"]  # and afterwards it is again


def test_saliency_is_captum_s(model, tokenizer, cases):
    for reduction in ("l1", "norm"):
        for (row, batch, target), scored in zip(
            cases, scores(Saliency(reduction=reduction), model, tokenizer, cases), strict=True
        ):
            embeddings = observe(model, batch, keep=("embeddings",)).embeddings_BTD.detach()
            captum = CaptumSaliency(
                lambda e, batch=batch, target=target: log_odds(observe(model, batch, replace_BTD=e).logits_BC, target)
            )
            theirs_TD = captum.attribute(embeddings.requires_grad_(True), abs=True)[0]
            if reduction == "l1":
                expected = by_words(theirs_TD.sum(-1), row)
            else:
                expected = by_words(theirs_TD.square().sum(-1), row).sqrt()
            torch.testing.assert_close(scored.scores_U, expected, atol=1e-6, rtol=1e-4)


def test_smoothgrad_agrees_with_captum_s_noise_tunnel_within_its_errors(model, tokenizer, cases):
    row, batch, target = cases[0]
    (ours,) = scores(SmoothGrad(inner=Saliency(reduction="l1"), n_samples=400, noise=0.3), model, tokenizer, cases[:1])
    embeddings = observe(model, batch, keep=("embeddings",)).embeddings_BTD.detach()
    captum = NoiseTunnel(
        CaptumSaliency(lambda e: log_odds(observe(model, {k: v.expand(len(e), -1) for k, v in batch.items() if v.dim() == 2},
                                                   replace_BTD=e).logits_BC, target.expand(len(e))))
    )  # fmt: skip
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        theirs = captum.attribute(
            embeddings.requires_grad_(True), nt_samples=400, stdevs=0.3 * float(embeddings.std(unbiased=False))
        )
    difference = ours.scores_U - by_words(theirs[0].sum(-1), row)
    assert (difference.abs() < 5 * 2**0.5 * ours.error_U).all()
    assert (ours.error_U < 0.1 * ours.scores_U.abs()).all()  # the test above says something


def test_smoothgrad_without_noise_is_the_method_inside(model, tokenizer, cases):
    inner = IntegratedGradients(steps=3)
    for plain, smooth in zip(
        scores(inner, model, tokenizer, cases),
        scores(SmoothGrad(inner=inner, n_samples=3, noise=1e-9), model, tokenizer, cases),
        strict=True,
    ):
        torch.testing.assert_close(plain.scores_U, smooth.scores_U, atol=1e-5, rtol=1e-4)


def test_gradients_work_where_they_are_switched_off(model, tokenizer, cases):
    expected = scores(InputXGradient(), model, tokenizer, cases)
    for switch in (torch.no_grad, torch.inference_mode):
        with switch():
            for plain, inside in zip(expected, scores(InputXGradient(), model, tokenizer, cases), strict=True):
                assert torch.equal(plain.scores_U, inside.scores_U)


@pytest.mark.parametrize("reduction", ["sum", "norm", "l1"])
def test_unit_scores_can_be_trained_through(reduction, model, tokenizer, rows_of, texts):
    """Double backward against finite differences, with an empty unit in the batch."""
    generator = torch.Generator().manual_seed(0)
    embeddings, gradient = torch.randn(2, 2, 3, 4, generator=generator, dtype=torch.double).requires_grad_(True)
    unit_ids = torch.tensor([[-1, 0, 0], [2, -1, 0]])

    def score(embeddings, gradient):
        return unit_scores_of_gradient(embeddings, gradient, unit_ids, 4, reduction).double()

    assert score(embeddings, gradient)[0, 1:].tolist() == [0, 0, 0]
    embeddings, gradient = embeddings.detach().requires_grad_(True), gradient.detach().requires_grad_(True)
    assert torch.autograd.gradcheck(score, (embeddings, gradient), eps=1e-3, atol=1e-2)
    score(embeddings, gradient).sum().backward()
    assert not gradient.grad.isnan().any()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-1, 5), min_size=1, max_size=9), st.integers(0, 3), st.randoms())
def test_padding_and_the_order_of_tokens_do_not_count(unit_ids, padding, rnd):
    order = list(range(len(unit_ids)))
    rnd.shuffle(order)
    gradient = torch.arange(len(unit_ids) * 2.0).reshape(1, -1, 2) - 3
    ids = torch.tensor([unit_ids])
    for reduction in ("sum", "norm", "l1"):
        plain = unit_scores_of_gradient(None, gradient, ids, 6, reduction)
        padded = unit_scores_of_gradient(
            None,
            torch.nn.functional.pad(gradient[:, order], (0, 0, 0, padding), value=7.0),
            torch.nn.functional.pad(ids[:, order], (0, padding), value=-1),
            6,
            reduction,
        )
        torch.testing.assert_close(plain, padded)


def test_no_gradient_reaches_the_parameters(model, tokenizer, cases):
    with frozen(model):
        pass
    scores(IntegratedGradients(steps=2), model, tokenizer, cases)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
