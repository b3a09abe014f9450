"""On a linear bag of embeddings every additive method has one exact answer, computed here by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor

from egkd.explain import (
    ExactShapley,
    Explainer,
    InputXGradient,
    IntegratedGradients,
    KernelShap,
    Lime,
    Occlusion,
    Saliency,
    ShapleySampling,
    SmoothGrad,
    score_dataset,
)

TO_MASK: list[Explainer] = [
    IntegratedGradients(steps=3),
    IntegratedGradients(steps=2, rule="riemann"),
    Occlusion(),
    KernelShap(n_samples=80),
    Lime(n_samples=120, ridge=0.0),
    ShapleySampling(n_samples=2),
    ShapleySampling(n_samples=2, orders="independent"),
    ExactShapley(),
]
TO_NOTHING: list[Explainer] = [
    InputXGradient(),
    IntegratedGradients(steps=2, baseline="zero"),
    *(kind(operator=operator) for operator in ("delete", "attention") for kind in (Occlusion, KernelShap, ExactShapley)),
    ShapleySampling(n_samples=2, operator="delete"),
]


def by_hand(bag: Any, row: dict[str, Any], weight_D: Tensor, baseline_D: Tensor) -> Tensor:
    scores_U = torch.zeros(row["n_units"])
    for token, unit in zip(row["input_ids"], row["unit_ids"], strict=True):
        if unit >= 0:
            scores_U[unit] += (weight_D * (bag.embeddings.weight[token] - baseline_D)).sum()
    return scores_U.detach()


@pytest.mark.parametrize("num_labels", [1, 2])
@pytest.mark.parametrize("explainer", TO_MASK + TO_NOTHING, ids=repr)
def test_additive_methods_are_exact(explainer, num_labels, bag, tokenizer, rows_of, texts):
    model = bag(num_labels)
    rows = rows_of(tokenizer, texts)
    weight_D = model.head.weight[0] if num_labels == 1 else model.head.weight[1] - model.head.weight[0]
    baseline_D = model.embeddings.weight[tokenizer.mask_token_id] * (explainer in TO_MASK)
    for row, scored in zip(rows, score_dataset(explainer, model, tokenizer, rows, seed=3), strict=True):
        sign = -1.0 if num_labels == 2 and scored.target == 0 else 1.0
        torch.testing.assert_close(scored.scores_U, sign * by_hand(model, row, weight_D, baseline_D), atol=2e-4, rtol=1e-4)
        if scored.error_U is not None and len(scored.error_U) and not scored.error_U.isnan().any():
            assert scored.error_U.max() < 1e-3  # nothing is uncertain where all samples agree


def test_saliency_is_the_weight_s_size_for_every_token(bag, tokenizer, rows_of):
    model = bag(1)
    rows = rows_of(tokenizer, ["awful awfulness"])  # one whole word, one in pieces
    tokens = [rows[0]["unit_ids"].count(0), rows[0]["unit_ids"].count(1)]
    assert tokens[0] == 1
    assert tokens[1] > 1
    weight_D = model.head.weight[0].detach()
    for explainer, expected in [
        (Saliency(reduction="l1"), [n * weight_D.abs().sum() for n in tokens]),
        (Saliency(), [n**0.5 * weight_D.norm() for n in tokens]),
        (SmoothGrad(inner=Saliency(), n_samples=2), [n**0.5 * weight_D.norm() for n in tokens]),
    ]:
        (scored,) = score_dataset(explainer, model, tokenizer, rows)
        torch.testing.assert_close(scored.scores_U, torch.stack(expected))


def test_a_truncated_word_is_not_visible_and_scores_nothing(bag, tokenizer, rows_of):
    rows = rows_of(tokenizer, ["The plot is dull and the ending is awful"], max_length=6)
    for explainer in (InputXGradient(), Occlusion(), KernelShap(n_samples=20), IntegratedGradients(steps=2)):
        (scored,) = score_dataset(explainer, bag(2), tokenizer, rows)
        assert scored.visible_U.tolist() == [True] * 4 + [False] * 5
        assert scored.scores_U[:4].abs().min() > 0
        assert scored.scores_U[4:].tolist() == [0.0] * 5
