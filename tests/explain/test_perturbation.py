"""The frame of all perturbation methods: the right copies, valued once, in passes of bounded size."""

import copy
import math

import pytest
import torch
import transformers
from captum.attr import FeatureAblation
from tokenizers import processors

from egkd.explain import KernelShap, Lime, Occlusion, ShapleySampling, explain, explainer_from_name, score_dataset
from egkd.models import log_odds, observe
from egkd.text import collate, perturb


def leave_one_out(model, tokenizer, row, target, operator):
    """By hand, one copy at a time and without any packing."""
    batch = collate([row], tokenizer.pad_token_id)
    target_B = torch.tensor([target])
    with torch.no_grad():
        full = log_odds(observe(model, batch).logits_BC, target_B)
        without = []
        for unit in range(row["n_units"]):
            keep = torch.ones(1, row["n_units"], dtype=torch.bool)
            keep[0, unit] = False
            without.append(log_odds(observe(model, perturb(batch, keep, operator, tokenizer)).logits_BC, target_B))
    return full - torch.cat(without) if without else torch.zeros(0)


@pytest.mark.parametrize("operator", ["mask", "delete", "attention"])
def test_occlusion_is_leave_one_out_in_every_architecture(operator, any_model, rows_of, texts, pairs):
    build, tokenizer = any_model
    model = build(3)
    for rows in (rows_of(tokenizer, texts), rows_of(tokenizer, texts, pairs)):
        for row, scored in zip(
            rows, score_dataset(Occlusion(operator=operator), model, tokenizer, rows, token_budget=60), strict=True
        ):
            expected = leave_one_out(model, tokenizer, row, scored.target, operator)
            torch.testing.assert_close(scored.scores_U, expected, atol=2e-5, rtol=1e-4)


def test_occlusion_is_captum_s_feature_ablation(tiny_bert, tokenizer, rows_of, texts):
    model = tiny_bert(layers=2)
    rows = rows_of(tokenizer, texts[:4])
    for row, scored in zip(rows, score_dataset(Occlusion(), model, tokenizer, rows, targets=[1] * 4), strict=True):
        batch = collate([row], 0)
        ablation = FeatureAblation(lambda ids: log_odds(model(input_ids=ids).logits, torch.ones(len(ids), dtype=torch.long)))
        theirs = ablation.attribute(batch["input_ids"], baselines=tokenizer.mask_token_id, feature_mask=batch["unit_ids"] + 1)[
            0
        ]
        first = [row["unit_ids"].index(unit) for unit in range(row["n_units"])]
        torch.testing.assert_close(scored.scores_U, theirs[first], atol=1e-5, rtol=1e-4)


@pytest.fixture
def watched(tiny_bert):
    """A model and the shapes of the inputs it has been given."""
    model = tiny_bert(layers=1)
    shapes = []
    hook = model.bert.embeddings.register_forward_hook(lambda _module, _args, output: shapes.append(tuple(output.shape[:2])))
    yield model, shapes
    hook.remove()


@pytest.mark.parametrize("operator", ["delete", "gather"])
@pytest.mark.parametrize("method", ["kernel-shap", "occlusion", "shapley-sampling", "lime", "exact-shapley"])
def test_a_decoder_is_asked_about_texts_without_a_word(method, operator, bpe_tokenizer):
    """Its tokenizer adds nothing to a text, so without its words nothing is left of it."""
    bare = copy.deepcopy(bpe_tokenizer)
    bare.backend_tokenizer.post_processor = processors.ByteLevel()
    config = transformers.GPT2Config(vocab_size=len(bare), n_embd=16, n_layer=1, n_head=2, n_positions=64, pad_token_id=1)
    model = transformers.GPT2ForSequenceClassification(config).eval()
    for one in explain(model, bare, ["film", "a film", "x"], method=explainer_from_name(method, {"operator": operator})):
        assert all(map(math.isfinite, one.scores))


def test_passes_keep_to_the_token_budget_whatever_the_samples(watched, tokenizer, rows_of, texts):
    model, shapes = watched
    for explainer in (Lime(n_samples=100), KernelShap(n_samples=100), ShapleySampling(n_samples=10), Occlusion()):
        for operator in ("mask", "delete", "attention"):
            shapes.clear()
            chosen = type(explainer)(**{**explainer.settings(), "operator": operator})
            score_dataset(chosen, model, tokenizer, rows_of(tokenizer, texts), token_budget=64)
            assert max(rows * tokens for rows, tokens in shapes) <= 64
        shapes.clear()
        score_dataset(explainer, model, tokenizer, rows_of(tokenizer, texts[1:]), token_budget=5)  # less than one text
        assert {rows for rows, tokens in shapes if tokens > 2} == {1}


def test_deleted_words_cost_nothing_and_nothing_is_asked_twice(watched, tokenizer, rows_of):
    model, shapes = watched
    rows = rows_of(tokenizer, ["the plot is dull"])  # six tokens
    score_dataset(Occlusion(), model, tokenizer, rows)
    assert sum(copies for copies, _ in shapes) == 5  # the text itself once, and each word away once
    shapes.clear()
    score_dataset(Lime(n_samples=2000), model, tokenizer, rows)
    assert sum(copies for copies, _ in shapes) <= 1 + 15 * 8  # a block asks for each of 15 coalitions at most once
    for operator in ("delete", "attention", "gather"):
        shapes.clear()
        score_dataset(Occlusion(operator=operator), model, tokenizer, rows)
        assert sorted(shapes) == [(1, 6), (4, 5)]


def test_a_tokenizer_without_mask_token_is_told_what_to_do(tiny_bert, tokenizer, rows_of):
    class NoMask:
        mask_token_id = bos_token_id = eos_token_id = None
        pad_token_id = 0

    rows = rows_of(tokenizer, ["the plot"])
    with pytest.raises(ValueError, match="use the operator 'delete' or 'attention'"):
        score_dataset(Occlusion(), tiny_bert(), NoMask(), rows)
    assert score_dataset(Occlusion(operator="delete"), tiny_bert(), NoMask(), rows)
