"""Faithfulness: figures worked out by hand on a model that adds up word weights, brute force and captum on real ones."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from captum.metrics import infidelity
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit
from torch import Tensor, nn

from egkd.evaluate.faithfulness import MEASURES, Probes, _Case, faithfulness, per_example
from egkd.evaluate.ranking import BINS
from egkd.evaluate.sensitivity import moved_words
from egkd.explain import InputXGradient, IntegratedGradients, Lime, Occlusion, Saliency, score_dataset
from egkd.explain.base import example_seed
from egkd.models import log_odds
from egkd.text import collate, encode, perturb

WEIGHTS = {"great": 2.0, "film": 0.5, "dull": -1.0, "love": 1.5, "boring": -2.0, "story": 0.25}
TEXTS = [
    "a great film is dull",
    "love",
    "The story is boring, but I love it!",
    "",
    "not a great plot but a lovely cast and story",
]
PAIRS = ["dull", "a great film", "", "love", "boring story"]
QUICK = Probes(infidelity_samples=8, sensitivity_samples=0)
RANKED = [name for name in MEASURES if not name.startswith("infidelity") and name != "max_sensitivity"]


class Adder(nn.Module):
    """Log odds of class 1 (in regression the output) = the sum of the weights of the attended words."""

    def __init__(self, tokenizer: Any, num_labels: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(len(tokenizer), 1)
        with torch.no_grad():
            self.embeddings.weight.zero_()
            for word, weight in WEIGHTS.items():
                self.embeddings.weight[tokenizer.convert_tokens_to_ids(word)] = weight
        self.config = SimpleNamespace(num_labels=num_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        total_B = (self.embeddings(input_ids)[..., 0] * attention_mask).sum(1)
        logits_BC = total_B[:, None] if self.config.num_labels == 1 else torch.stack([torch.zeros_like(total_B), total_B], 1)
        return SimpleNamespace(logits=logits_BC)


@pytest.fixture(scope="module")
def adder(tokenizer):
    return lambda num_labels=2: Adder(tokenizer, num_labels)


def rows_of(tokenizer, texts, pairs=None, max_length=64):
    columns = {**encode(tokenizer, texts, pairs, max_length), "text": texts}
    if pairs is not None:
        columns["text_pair"] = pairs
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def of_one(scores, model, tokenizer, text, **options):
    own, _ = per_example([np.array(scores, float)], model, tokenizer, rows_of(tokenizer, [text]), **options)
    return {name: float(values[0]) for name, values in own.items()}


@pytest.mark.parametrize("operator", ["mask", "delete", "attention"])
def test_every_measure_of_removal_by_hand(operator, adder, tokenizer):
    found = of_one([2, 0.5, -1, 0, 0], adder(), tokenizer, "great film dull is a", probes=Probes(operator=operator))
    # the order is great, film, is, a, dull; the log odds of the whole are 1.5
    full, without = expit(1.5), expit(np.array([-0.5, -1, -1, -1, 0]))
    alone = expit(np.array([2, 2.5, 2.5, 2.5, 1.5]))
    for percent, k in zip(BINS, (1, 1, 1, 1, 3), strict=True):
        assert found[f"comprehensiveness@{percent}%"] == pytest.approx(full - without[k - 1], abs=1e-6)
        assert found[f"sufficiency@{percent}%"] == pytest.approx(full - alone[k - 1], abs=1e-6)
    assert found["comprehensiveness"] == pytest.approx(full - (4 * without[0] + without[2]) / 5, abs=1e-6)
    assert found["sufficiency"] == pytest.approx(full - (4 * alone[0] + alone[2]) / 5, abs=1e-6)
    assert found["area_over_curve"] == pytest.approx((5 * full - without.sum()) / 6, abs=1e-6)
    # ferret's steps are 0, 1, 1, 2, 2, 3, 3, 4, 4, 5; none is skipped, and two positive scores leave {1, 2}
    assert found["ferret_comprehensiveness"] == pytest.approx(full - without[:2].mean(), abs=1e-6)
    assert found["ferret_sufficiency"] == pytest.approx(full - alone[:2].mean(), abs=1e-6)
    assert found["tau_loo"] == pytest.approx(1.0)
    assert found["infidelity"] == pytest.approx(0.0, abs=1e-9)
    assert math.isnan(found["max_sensitivity"])  # scores cannot be asked again


def test_ferret_of_scores_without_a_positive_one_takes_nothing_away(adder, tokenizer):
    found = of_one([-1, -2, -3], adder(), tokenizer, "great film dull")
    assert found["ferret_comprehensiveness"] == pytest.approx(0.0, abs=1e-9)
    assert found["ferret_sufficiency"] == pytest.approx(expit(1.5) - 0.5, abs=1e-6)  # of the empty text


def test_regression_is_judged_by_the_difference_of_outputs(adder, tokenizer):
    found = of_one([2, 0.5, -1, 0, 0], adder(1), tokenizer, "great film dull is a")
    assert found["comprehensiveness"] == pytest.approx((4 * 2 + 2.5) / 5)
    assert found["sufficiency"] == pytest.approx((4 * -0.5 - 1) / 5)
    assert found["area_over_curve"] == pytest.approx((0 + 2 + 2.5 + 2.5 + 2.5 + 1.5) / 6)
    assert found["infidelity"] == pytest.approx(0.0, abs=1e-9)


def test_the_class_is_the_predicted_one_or_the_one_asked_for(adder, tokenizer):
    text, scores = "boring film", [1.0, 0.0]  # class 0 with log odds 1.5, of which boring gives 2
    assert of_one(scores, adder(), tokenizer, text)["comprehensiveness@1%"] == pytest.approx(expit(1.5) - expit(-0.5))
    asked = of_one(scores, adder(), tokenizer, text, targets=[1])
    assert asked["comprehensiveness@1%"] == pytest.approx(expit(-1.5) - expit(0.5))


def test_infidelity_of_scores_in_other_units_is_scaled_away(adder, tokenizer):
    rows = rows_of(tokenizer, ["great film dull is a"])
    own, _ = per_example([np.array([6, 1.5, -3, 0, 0])], adder(), tokenizer, rows)
    gone = _Case.of(np.zeros(5), [], 64, np.random.default_rng(example_seed(0, rows[0]))).gone_SN
    assert set(gone.sum(1)) == {1, 2, 3, 4, 5}
    assert own["infidelity"][0] == pytest.approx(((2 * gone @ np.array([2, 0.5, -1, 0, 0])) ** 2).mean(), rel=1e-5)
    assert own["infidelity_scaled"][0] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("scaled", [False, True])
def test_infidelity_is_captum_s(scaled, tiny_bert, tokenizer):
    model, rows = tiny_bert(num_labels=3), rows_of(tokenizer, TEXTS[2:3])
    scores = np.random.default_rng(1).standard_normal(rows[0]["n_units"])
    own, _ = per_example([scores], model, tokenizer, rows, targets=[2], probes=Probes(infidelity_samples=20))
    gone = _Case.of(scores, [], 20, np.random.default_rng(example_seed(0, rows[0]))).gone_SN
    batch = collate(rows, 0)

    def forward(present: Tensor) -> Tensor:
        copies = {name: value.expand(len(present), *value.shape[1:]) for name, value in batch.items()}
        inputs = perturb(copies, present.bool(), "mask", tokenizer)
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        return log_odds(logits, torch.full((len(present),), 2)).detach()

    def remove(present: Tensor) -> tuple[Tensor, Tensor]:
        taken = torch.from_numpy(gone).float()
        return taken, present - taken

    present, attributions = torch.ones(1, len(scores)), torch.from_numpy(scores)[None].float()
    theirs = infidelity(forward, remove, present, attributions, n_perturb_samples=20, normalize=scaled)
    assert own["infidelity_scaled" if scaled else "infidelity"][0] == pytest.approx(float(theirs), rel=1e-4)


@pytest.mark.parametrize("operator", ["mask", "delete", "attention"])
def test_removal_is_what_brute_force_finds(operator, tiny_bert, tokenizer):
    model, rows = tiny_bert(num_labels=3), rows_of(tokenizer, TEXTS, PAIRS)
    random = np.random.default_rng(0)
    scores = [random.standard_normal(row["n_units"]) for row in rows]
    own, _ = per_example(scores, model, tokenizer, rows, probes=Probes(operator=operator))
    for index, (row, one) in enumerate(zip(rows, scores, strict=True)):
        batch, order = collate([row], 0), np.argsort(-one)

        def probability(keep, operator, target=None, batch=batch):
            inputs = perturb(batch, torch.from_numpy(keep)[None], operator, tokenizer)
            with torch.no_grad():
                found = model(**{k: inputs[k] for k in ("input_ids", "attention_mask", "token_type_ids")}).logits.softmax(1)[0]
            return found.argmax().item() if target is None else found[target].item()

        everything = np.ones(len(one), bool)
        target = probability(everything, operator)
        full = probability(everything, operator, target)

        def drop(k, operator, keep, order=order, full=full, target=target, probability=probability):
            chosen = np.isin(np.arange(len(order)), order[:k])
            return full - probability(chosen if keep else ~chosen, operator, target)

        sizes = [math.ceil(len(one) * percent / 100) for percent in BINS]
        positive = int((one > 0).sum())
        ferret = sorted({min(len(one) * step // 10, positive) for step in range(1, 11) if len(one) * step // 10})
        expected = {
            "comprehensiveness": np.mean([drop(k, operator, False) for k in sizes]),
            "sufficiency": np.mean([drop(k, operator, True) for k in sizes]),
            "area_over_curve": np.mean([drop(k, operator, False) for k in range(len(one) + 1)]),
            "ferret_comprehensiveness": np.mean([drop(k, "delete", False) for k in ferret]),
            "ferret_sufficiency": np.mean([drop(k, "delete", True) for k in ferret]),
        }
        assert {name: own[name][index] for name in expected} == pytest.approx(expected, abs=2e-5)


def test_what_the_model_adds_up_beats_chance(adder, tokenizer, tiny_data):
    rows = rows_of(tokenizer, tiny_data["text"])
    found = faithfulness(Occlusion(), adder(), tokenizer, rows, probes=QUICK)
    assert set(found["all"]) == set(found["floor"]) == set(MEASURES)
    assert found["n_skipped"] == 0
    assert found["settings"]["method"] == {"method": "occlusion", "operator": "mask"}
    for name, better in MEASURES.items():
        own, floor = found["all"][name], found["floor"][name]
        if name == "max_sensitivity":
            assert own["n"] == floor["n"] == 0
            continue
        assert 0 < own["n"] == floor["n"] <= len(rows)
        assert own["mean"] > floor["mean"] if better == "higher" else own["mean"] < floor["mean"], name


def test_equal_scores_have_a_floor_of_random_order(adder, tokenizer, tiny_data):
    rows = rows_of(tokenizer, tiny_data["text"])
    own, floor = per_example([np.ones(row["n_units"]) for row in rows], adder(), tokenizer, rows, probes=QUICK)
    assert np.isnan(own["tau_loo"]).all()  # there is no order
    assert (abs(floor["area_over_curve"] - own["area_over_curve"]) > 1e-6).mean() > 0.5


def of_batches(explained, model, tokenizer, rows, order, token_budget):
    given = explained if not isinstance(explained, list) else [explained[row] for row in order]
    both = per_example(
        given,
        model,
        tokenizer,
        [rows[row] for row in order],
        probes=Probes(infidelity_samples=9, sensitivity_samples=2),
        token_budget=token_budget,
    )
    return [{name: values[np.argsort(order)] for name, values in part.items()} for part in both]


@pytest.mark.parametrize("explainer", [InputXGradient(reduction="sum"), Lime(n_samples=20), None])
def test_neither_batch_nor_order_nor_padding_matters(explainer, tiny_bert, tokenizer):
    model, rows = tiny_bert(layers=2), rows_of(tokenizer, TEXTS)
    random = np.random.default_rng(0)
    explained = explainer or [random.standard_normal(row["n_units"]) for row in rows]
    together = of_batches(explained, model, tokenizer, rows, [0, 1, 2, 3, 4], 4096)
    apart = of_batches(explained, model, tokenizer, rows, [3, 0, 4, 2, 1], 40)
    for one, other in zip(together, apart, strict=True):
        for name in MEASURES:
            np.testing.assert_allclose(one[name], other[name], atol=2e-4, rtol=2e-4, err_msg=name)


different = st.integers(3, 9).flatmap(
    lambda size: arrays(np.float64, size, elements=st.integers(-20, 20).map(float), unique=True)
)


@settings(max_examples=40, deadline=None)
@given(scores=different)
def test_only_order_and_sign_matter_but_to_infidelity(scores, adder, tokenizer):
    text = " ".join("great film dull is a love boring story and".split()[: len(scores)])
    plain = of_one(scores, adder(), tokenizer, text, probes=QUICK)
    cubed = of_one(scores**3 / 7, adder(), tokenizer, text, probes=QUICK)
    assert {name: plain[name] for name in RANKED} == pytest.approx({name: cubed[name] for name in RANKED})
    scaled = of_one(3 * scores, adder(), tokenizer, text, probes=QUICK)
    assert plain["infidelity_scaled"] == pytest.approx(scaled["infidelity_scaled"], abs=1e-9)
    assert 0 <= plain["infidelity_scaled"] <= plain["infidelity"] + 1e-9
    assert all(-1 <= plain[name] <= 1 for name in RANKED)


def test_units_without_a_token_or_a_score_are_no_part_of_a_rationale(adder, tokenizer):
    rows = rows_of(tokenizer, ["dull film is a great"], max_length=5)  # great, and a, are cut off
    nan = math.nan
    own, _ = per_example([np.array([-1, 0.5, 0, 9, 7.0])], adder(), tokenizer, rows, targets=[1])
    cut, _ = per_example([np.array([-1, 0.5, 0, nan, nan])], adder(), tokenizer, rows, targets=[1])
    for name in MEASURES:
        np.testing.assert_array_equal(own[name], cut[name])
    assert own["comprehensiveness@1%"][0] == pytest.approx(expit(-0.5) - expit(-1))
    # "dull" has no score: it is never taken away, and not left alone with the best
    blind = of_one([nan, 0.5, 0], adder(), tokenizer, "dull film is", targets=[1], probes=QUICK)
    assert blind["area_over_curve"] == pytest.approx((0 + 2 * (expit(-0.5) - expit(-1))) / 3)
    assert blind["sufficiency"] == pytest.approx(expit(-0.5) - expit(0.5))


def test_texts_without_words_are_skipped_and_counted(adder, tokenizer):
    found = faithfulness(Occlusion(), adder(), tokenizer, rows_of(tokenizer, TEXTS), probes=QUICK)
    assert found["n_skipped"] == 1
    assert found["all"]["comprehensiveness"]["n"] == 4
    assert found["all"]["tau_loo"]["n"] == 3  # of one word there is no order


@pytest.mark.parametrize(
    "explainer", [Saliency(), InputXGradient(reduction="sum"), IntegratedGradients(), Occlusion(operator="delete")]
)
def test_moved_words_are_those_of_a_model_with_moved_weights(explainer, tiny_bert, tokenizer):
    model, moved, rows = tiny_bert(layers=2), tiny_bert(layers=2), rows_of(tokenizer, TEXTS)
    table = model.get_input_embeddings()
    every = torch.arange(len(tokenizer))
    with torch.no_grad(), moved_words(model, 0.1, 3):
        noise = table(every) - table.weight
    assert 0 < noise.abs().max() <= 0.1 * table.weight.square().mean().sqrt()
    with torch.no_grad():
        moved.get_input_embeddings().weight += noise
    with moved_words(model, 0.1, 3):
        found = score_dataset(explainer, model, tokenizer, rows)
    for one, other in zip(found, score_dataset(explainer, moved, tokenizer, rows), strict=True):
        torch.testing.assert_close(one.scores_U, other.scores_U, atol=1e-5, rtol=1e-4)


def test_sensitivity_of_a_sum_grows_with_the_noise(adder, tokenizer):
    rows = rows_of(tokenizer, TEXTS)

    def found(radius):
        probes = Probes(sensitivity_samples=3, sensitivity_radius=radius)
        return per_example(Occlusion(operator="attention"), adder(), tokenizer, rows, probes=probes)[0]["max_sensitivity"]

    small, large = found(0.01), found(0.03)
    assert (small[[0, 1, 2, 4]] > 0).all()
    assert math.isnan(small[3])
    np.testing.assert_allclose(large, 3 * small, rtol=1e-3)
    # one word of weight 1.5: at most the radius times the root mean square of the table
    size = float(adder().embeddings.weight.detach().square().mean().sqrt())
    assert small[1] <= 0.01 * size / 1.5 + 1e-6


def state_of(model):
    hooks = [len(module._forward_hooks) for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    return [module.training for module in model.modules()], hooks, flags


def test_the_model_and_the_random_state_come_back(tiny_bert, tokenizer):
    model = tiny_bert(layers=2, dropout=0.3).train()
    model.bert.embeddings.requires_grad_(False)
    before, weights = state_of(model), [parameter.detach().clone() for parameter in model.parameters()]
    random = torch.get_rng_state()
    faithfulness(IntegratedGradients(), model, tokenizer, rows_of(tokenizer, TEXTS[:2]), probes=Probes(sensitivity_samples=1))
    assert state_of(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(one, other) for one, other in zip(weights, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_comes_back_after_an_error(tiny_bert, tokenizer, monkeypatch):
    model = tiny_bert(layers=1).train()
    before = state_of(model)
    monkeypatch.setattr(model.classifier, "forward", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError), moved_words(model, 0.1, 0):
        faithfulness(Occlusion(), model, tokenizer, rows_of(tokenizer, TEXTS[:2]))
    assert state_of(model) == before


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ([], {}, "scores of 0 examples for 1 rows"),
        ([[1.0]], {}, "row 0 has 2 units and scores of shape"),
        ([[1.0, math.inf]], {}, "row 0 has an infinite score"),
        ([[1.0, 2.0]], {"targets": [5]}, "target 5 is none of"),
        ([[1.0, 2.0]], {"targets": [0, 1]}, "2 targets for 1 texts"),
    ],
)
def test_bad_input_is_refused_in_one_line(scores, options, message, adder, tokenizer):
    rows = rows_of(tokenizer, ["great film"])
    with pytest.raises(ValueError, match=message) as caught:
        faithfulness([np.array(one) for one in scores], adder(), tokenizer, rows, **options)
    assert "\n" not in str(caught.value)


def test_bad_settings_are_refused(adder, tokenizer):
    for bad in ({"operator": "drop"}, {"infidelity_samples": 0}, {"sensitivity_samples": -1}, {"sensitivity_radius": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Probes(**bad)
    with pytest.raises(ValueError, match="no examples"):
        faithfulness([], adder(), tokenizer, [])


def test_every_measure_is_told_on_its_page():
    page = (Path(__file__).parents[2] / "docs" / "judging.md").read_text(encoding="utf-8")
    assert [name for name in MEASURES if f"`{name.partition('@')[0]}`" not in page] == []
