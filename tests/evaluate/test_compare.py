"""Teacher and student side by side on tiny models: what `compare` holds, and that it holds the models' own figures."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset

from egkd.data import Task
from egkd.evaluate.agreement import per_example
from egkd.evaluate.answers import Classifier
from egkd.evaluate.compare import REFERENCES, compare
from egkd.explain import IntegratedGradients, Occlusion, explain
from egkd.predict import predict_logits

SENTIMENT = Task(name="sst2", kind="classification", label_names=("negative", "positive"))
ENTAILMENT = Task(name="mnli", kind="classification", label_names=("entailment", "neutral", "contradiction"))
SIMILARITY = Task(name="stsb", kind="regression", metrics=("pearson", "spearmanr"))


@pytest.fixture
def classifiers(tiny_bert, tokenizer):
    def build(num_labels):
        # the first of them predicts now this, now that
        models = (tiny_bert(num_labels, layers=1, width=16), tiny_bert(num_labels, layers=2))
        return [Classifier(name=name, model=model, tokenizer=tokenizer) for name, model in zip("TS", models, strict=True)]

    return build


def test_a_twin_of_the_teacher_is_the_ceiling(classifiers, tiny_bert, tokenizer, tiny_data):
    rows = tiny_data.select(range(16))
    teacher, student = classifiers(2)
    options = {"explained": 16, "latency_repeats": 1}
    alone = compare(teacher, student, SENTIMENT, {"dev": rows}, **options).student["explanations"]
    itself = compare(teacher, student, SENTIMENT, {"dev": rows}, twin=teacher, **options).student["explanations"]
    other = Classifier(name="twin", model=tiny_bert(2, layers=1, width=16, seed=3), tokenizer=tokenizer)
    found = compare(teacher, student, SENTIMENT, {"dev": rows}, twin=other, **options).student["explanations"]
    as_student = compare(teacher, other, SENTIMENT, {"dev": rows}, **options).student["explanations"]
    for name in REFERENCES:
        assert not {which for which in alone[name] if which.startswith("ceiling")}
        assert itself[name]["ceiling"]["spearman"]["mean"] == pytest.approx(1)
        assert itself[name]["ceiling_same_class"]["spearman"]["n"] == 16
        assert {which: found[name][which] for which in alone[name]} == alone[name]
        assert found[name]["ceiling"] == as_student[name]["all"]
        assert found[name]["ceiling_same_class"] == as_student[name]["same_class"]


@pytest.fixture
def paired(tiny_data):
    """Every sentence beside the next one, with labels of three classes or real numbers."""

    def build(kind, rows=10):
        texts = tiny_data["text"][: rows + 1]
        labels = [row % 3 for row in range(rows)] if kind == "classification" else [row / 4 for row in range(rows)]
        return Dataset.from_dict({"text": texts[:-1], "text_pair": texts[1:], "label": labels})

    return build


def compared(classifiers, task, evals, **options):
    teacher, student = classifiers(task.num_labels)
    return compare(teacher, student, task, evals, latency_repeats=1, **options), teacher, student


def test_two_classes_on_two_data_sets(classifiers, tiny_data):
    evals = {"dev": tiny_data.select(range(24)), "other": tiny_data.select(range(24, 40))}
    told = []
    found, teacher, student = compared(
        classifiers, SENTIMENT, evals, explained=24, shown=4, progress=lambda *what: told.append(what)
    )
    assert (found.teacher["name"], found.student["name"]) == ("T", "S")
    for figures, who in ((found.teacher, teacher), (found.student, student)):
        assert set(figures["scores"]) == {"dev", "other"}
        for name, rows in evals.items():
            predicted = predict_logits(who.model, who.tokenizer, rows).argmax(1)
            assert figures["scores"][name] == {"accuracy": pytest.approx((predicted == np.array(rows["label"])).mean())}
        assert figures["parameters"] == sum(parameter.numel() for parameter in who.model.parameters())
        assert set(figures["latency"]) == {"1", "32", "conditions"}
    assert "fidelity" not in found.teacher
    for name, rows in evals.items():
        both = [predict_logits(who.model, who.tokenizer, rows).argmax(1) for who in (teacher, student)]
        agreement = found.student["fidelity"][name]["agreement"]
        assert agreement["mean"] == pytest.approx((both[0] == both[1]).mean())
        assert agreement["n"] == len(rows)
    same = round(24 * found.student["fidelity"]["dev"]["agreement"]["mean"])
    assert 0 < same < 24
    for name in REFERENCES:
        explanations = found.student["explanations"][name]
        assert explanations["all"]["spearman"]["n"] + explanations["n_skipped"] == 24
        assert explanations["same_class"]["spearman"]["n"] == same
        assert explanations["floor"].keys() == explanations["all"].keys()
    assert told[-1] == ("time", 1, 1)
    assert ("explain", 24 * 2 * len(REFERENCES), 24 * 2 * len(REFERENCES)) in told
    json.dumps([found.teacher, found.student])
    json.dumps(found.examples, allow_nan=False)


def test_examples_are_the_worst_first_and_both_explain_the_teacher_s_class(classifiers, tiny_data):
    found, teacher, student = compared(classifiers, SENTIMENT, {"dev": tiny_data.select(range(20))}, shown=5)
    assert len(found.examples) == 5
    agreements = [example["agreement"]["occlusion"] for example in found.examples]
    assert agreements == sorted(agreements)
    for example in found.examples:
        target = SENTIMENT.label_names.index(example["teacher"]["prediction"])
        words = [example["text"][start:end] for _, start, end in example["units"]]
        for name, explainer in REFERENCES.items():
            both = []
            for role, who in (("teacher", teacher), ("student", student)):
                (own,) = explain(who.model, who.tokenizer, example["text"], method=explainer, target=target)
                assert list(own.words) == words
                assert example[role]["scores"][name] == pytest.approx(own.scores, abs=1e-4)
                both.append(np.array(own.scores))
            expected = float(per_example(*([one] for one in both))["spearman"][0])
            assert example["agreement"][name] == pytest.approx(expected, abs=0.05)
        confidence = example["teacher"]["confidence"]
        assert 0.5 <= confidence <= 1


def test_three_classes_of_pairs(classifiers, paired):
    found, _, _ = compared(classifiers, ENTAILMENT, {"matched": paired("classification")}, shown=3)
    assert set(found.student["fidelity"]["matched"]) == {"agreement", "kl", "probability_loyalty"}
    for example in found.examples:
        assert {part for part, _, _ in example["units"]} == {0, 1}
        texts = (example["text"], example["text_pair"])
        assert all(texts[part][start:end].strip() for part, start, end in example["units"])
        assert example["label"] in ENTAILMENT.label_names
        assert len(example["teacher"]["scores"]["occlusion"]) == len(example["units"])


def test_regression_of_pairs(classifiers, paired):
    found, teacher, _ = compared(classifiers, SIMILARITY, {"dev": paired("regression")}, shown=2)
    assert set(found.teacher["scores"]["dev"]) == {"pearson", "spearmanr"}
    assert set(found.student["fidelity"]["dev"]) == {"correlation", "absolute_difference"}
    assert "same_class" not in found.student["explanations"]["occlusion"]
    rows = paired("regression")
    outputs = dict(zip(rows["text"], predict_logits(teacher.model, teacher.tokenizer, rows)[:, 0], strict=True))
    for example in found.examples:
        assert example["teacher"]["confidence"] is None
        assert example["teacher"]["prediction"] == pytest.approx(outputs[example["text"]], abs=1e-5)
        assert isinstance(example["label"], float)


def test_a_model_beside_itself_agrees_in_everything(tiny_bert, tokenizer, tiny_data):
    same = Classifier(name="same", model=tiny_bert(layers=2), tokenizer=tokenizer)
    found = compare(same, same, SENTIMENT, {"dev": tiny_data.select(range(12))}, latency_repeats=1)
    fidelity = {name: one["mean"] for name, one in found.student["fidelity"]["dev"].items()}
    assert fidelity == pytest.approx({"agreement": 1, "kl": 0, "probability_loyalty": 1}, abs=1e-6)
    for explanations in found.student["explanations"].values():
        for name, one in explanations["all"].items():
            assert one["mean"] == pytest.approx(0 if name == "jensen_shannon" else 1, abs=1e-6)
        assert explanations["floor"]["spearman"]["mean"] < 0.6


def test_words_cut_off_have_no_score(classifiers, tiny_data):
    found, _, _ = compared(classifiers, SENTIMENT, {"dev": tiny_data.select(range(12))}, max_length=7, shown=12)
    cut = [example for example in found.examples if len(example["units"]) > 5]
    assert cut
    for example in cut:
        for name in REFERENCES:
            scores = example["student"]["scores"][name]
            assert scores[5:] == [None] * (len(scores) - 5)
            assert all(score is not None and math.isfinite(score) for score in scores[:5])


def test_the_sample_follows_the_seed(classifiers, tiny_data):
    def texts(seed):
        found, _, _ = compared(classifiers, SENTIMENT, {"dev": tiny_data}, explained=6, shown=6, seed=seed)
        return [example["text"] for example in found.examples]

    assert texts(0) == texts(0)
    assert set(texts(0)) != set(texts(1))


def test_without_a_mask_token_words_are_deleted_and_paths_begin_at_zero(classifiers, tokenizer, tiny_data):
    maskless = copy.deepcopy(tokenizer)
    maskless.mask_token = None
    teacher, student = classifiers(2)
    teacher = replace(teacher, tokenizer=maskless)
    rows = tiny_data.select(range(8))
    found = compare(teacher, student, SENTIMENT, {"dev": rows}, shown=8, latency_repeats=1)
    for example in found.examples:
        target = SENTIMENT.label_names.index(example["teacher"]["prediction"])
        for name, method in (
            ("occlusion", Occlusion(operator="delete")),
            ("integrated-gradients", IntegratedGradients(steps=10, baseline="zero")),
        ):
            own = explain(student.model, student.tokenizer, example["text"], method=method, target=target)[0]
            assert example["student"]["scores"][name] == pytest.approx(own.scores, abs=1e-4)
