"""What a teacher says in evaluation is computed once, and is what it says."""

import dataclasses

import numpy as np
import pytest
import torch

from egkd.evaluate import answers
from egkd.evaluate.answers import Classifier
from egkd.explain import Occlusion, ShapleySampling
from egkd.explain.base import Explainer


@pytest.fixture
def classifier(tiny_bert, tokenizer, tmp_path):
    return Classifier(name="T", model=tiny_bert(3), tokenizer=tokenizer, answers=tmp_path / "lessons")


@pytest.fixture
def asked(monkeypatch):
    """How often a model was really asked."""
    calls = []
    for name in ("predict_logits", "score_dataset"):
        real = getattr(answers, name)
        monkeypatch.setattr(answers, name, lambda *a, real=real, name=name, **k: (calls.append(name), real(*a, **k))[1])
    return calls


def test_logits_are_computed_once(classifier, tiny_data, asked):
    rows = tiny_data.select(range(6))
    live = dataclasses.replace(classifier, answers=None).logits(rows)
    first, again = classifier.logits(rows), dataclasses.replace(classifier, name="again").logits(rows)
    assert asked == ["predict_logits"] * 2
    assert np.array_equal(live, first)
    assert np.array_equal(live, again)
    assert first.dtype == np.float32


@pytest.mark.parametrize("explainer", [Occlusion(), ShapleySampling(n_samples=4)], ids=lambda explainer: explainer.name)
def test_scores_are_computed_once(classifier, tiny_data, asked, explainer: Explainer):
    """Of texts without words and cut ones too, with errors and diagnostics where the method has them."""
    texts = ["", *tiny_data["text"][:3], "one"]
    rows = type(tiny_data).from_dict({"text": texts})
    targets = [0, 1, 2, 0, 1]
    live = dataclasses.replace(classifier, answers=None).explain(explainer, rows, targets, seed=3, max_length=6)
    for found in (classifier.explain(explainer, rows, targets, seed=3, max_length=6) for _ in range(2)):
        for one, other in zip(live, found, strict=True):
            assert (one.target, dict(one.diagnostics)) == (other.target, dict(other.diagnostics))
            for name in ("scores_U", "visible_U", "logits_C", "error_U"):
                left, right = getattr(one, name), getattr(other, name)
                assert (left is None) == (right is None)
                assert left is None or (left.dtype == right.dtype and torch.equal(left, right))
    assert asked == ["score_dataset"] * 2


def test_another_question_is_asked_anew(classifier, tiny_bert, tiny_data, asked):
    rows, other = tiny_data.select(range(4)), tiny_data.select(range(1, 5))
    classifier.logits(rows)
    classifier.logits(other)
    classifier.logits(rows, 4)
    torch.manual_seed(1)
    dataclasses.replace(classifier, model=tiny_bert(3, seed=1)).logits(rows)
    assert len(asked) == 4
    for targets, seed in (([0] * 4, 0), ([1] * 4, 0), ([1] * 4, 1)):
        classifier.explain(Occlusion(), rows, targets, seed=seed)
    classifier.explain(Occlusion(operator="delete"), rows, [0] * 4)
    assert len(asked) == 8


@pytest.mark.parametrize("left", [50, 0])
def test_a_broken_file_is_made_anew(classifier, tiny_data, asked, left):
    rows = tiny_data.select(range(4))
    first = classifier.logits(rows)
    (file,) = classifier.answers.glob("answers-*.npz")
    file.write_bytes(file.read_bytes()[:left])
    assert np.array_equal(classifier.logits(rows), first)
    assert len(asked) == 2
    assert np.array_equal(classifier.logits(rows), first)
    assert len(asked) == 2
