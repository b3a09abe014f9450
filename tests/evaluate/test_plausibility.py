"""Human rationales: ERASER's files, its tokens against our units, its measures by hand and beside scikit-learn."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, f1_score

from egkd.evaluate.plausibility import iou_f1, plausibility, runs, token_f1
from egkd.evaluate.rationales import Rationale, load_rationales
from egkd.text import unit_spans

MOVIE = "this film do n't work .\n\n  but (the) cast is great ! \n"  # tokens 0-5, then 6-11
TOKENS = ["this", "film", "do", "n't", "work", ".", "but", "(the)", "cast", "is", "great", "!"]


def evidence(start: int, end: int, docid: str = "neg.txt") -> dict[str, Any]:
    return {"docid": docid, "start_token": start, "end_token": end, "start_sentence": 0, "end_sentence": 1, "text": "..."}


def annotation(*passages: dict[str, Any], **more: Any) -> dict[str, Any]:
    entry = {"annotation_id": "neg.txt", "evidences": [[one] for one in passages], "classification": "NEG", "query": "?"}
    return {**entry, "docids": None, "query_type": None, **more}


@pytest.fixture
def write(tmp_path: Path):
    def build(*entries: Any, docs: dict[str, str] | None = None) -> Path:
        (tmp_path / "docs").mkdir()
        for name, text in (docs or {"neg.txt": MOVIE}).items():
            (tmp_path / "docs" / name).write_text(text, encoding="utf-8")
        lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
        (tmp_path / "val.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path / "val.jsonl"

    return build


def marked_words(rationale: Rationale) -> list[str]:
    spans = np.array(unit_spans(rationale.text))
    return [rationale.text[start:end] for start, end in spans[rationale.units()]]


def test_marked_tokens_become_marked_units(write):
    (found,) = load_rationales(write(annotation(evidence(2, 5), evidence(7, 8), evidence(2, 5))))
    assert (found.annotation_id, found.docid, found.label, found.query) == ("neg.txt", "neg.txt", "NEG", "?")
    assert found.text == MOVIE
    assert marked_words(found) == ["do", "n't", "work", "(", "the", ")"]
    assert [found.text[start:end] for start, end in found.evidence] == [
        "do n't work",
        "(the)",
    ]  # what is said twice counts once
    assert found.unit_runs() == [(2, 5), (7, 10)]


@pytest.mark.parametrize("token", range(len(TOKENS)))
def test_every_token_is_found_by_its_characters(token, write):
    (found,) = load_rationales(write(annotation(evidence(token, token + 1))))
    ((start, end),) = found.evidence
    assert found.text[start:end] == TOKENS[token]


def test_one_rationale_for_each_document_of_an_annotation(write):
    docs = {"1_premise": "two dogs run", "1_hypothesis": "an animal runs"}
    entry = annotation(
        evidence(1, 2, "1_premise"), evidence(1, 3, "1_hypothesis"), annotation_id="1", docids=["1_premise", "1_hypothesis"]
    )
    premise, hypothesis = load_rationales(write(entry, docs=docs))
    assert (marked_words(premise), marked_words(hypothesis)) == (["dogs"], ["animal", "runs"])
    assert premise.annotation_id == hypothesis.annotation_id == "1"


def test_nothing_marked_is_a_rationale_too(write):
    (found,) = load_rationales(write(annotation()))
    assert not found.units().any()
    assert found.unit_runs() == []


def test_documents_in_one_file(tmp_path):
    (tmp_path / "docs.jsonl").write_text(json.dumps({"docid": "a", "document": "good  film\nbad \u2028 end"}) + "\n")
    (tmp_path / "test.jsonl").write_text(json.dumps(annotation(evidence(2, 4, "a"), annotation_id="x")))
    (found,) = load_rationales(tmp_path / "test.jsonl")
    assert marked_words(found) == ["film", "bad"]  # of two spaces the nothing between is ERASER's token 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{", "val.jsonl:1: this is no JSON"),
        ("[]", "val.jsonl:1: found no 'annotation_id'"),
        ({"annotation_id": "neg.txt"}, "val.jsonl:1: 'evidences' is no list of lists"),
        (annotation(evidences=[evidence(0, 1)]), "'evidences' is no list of lists"),
        (annotation({"docid": "neg.txt"}), "expected docid, start_token and end_token"),
        (annotation(evidence("0", 1)), "found evidence from token '0' to 1"),
        (annotation(evidence(10, 13)), "evidence is tokens 10 to 13 of 'neg.txt', which has 12"),
        (annotation(evidence(3, 3)), "evidence is tokens 3 to 3"),
        (annotation(evidence(-1, 3)), "evidence is tokens -1 to 3"),
        (annotation(evidence(0, 1, "pos.txt")), "there is no document 'pos.txt'"),
        (annotation(evidence(0, 1, "../val.jsonl")), "there is no document '../val.jsonl'"),
        (annotation(docids="neg.txt"), "'docids' is 'neg.txt'"),
        ("", "has no annotations"),
    ],
)
def test_bad_files_are_refused_in_one_line(entry, message, write):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")) as caught:
        load_rationales(write(entry))
    assert "\n" not in str(caught.value)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(ValueError, match="found no documents at"):
        load_rationales(tmp_path / "val.jsonl")
    (tmp_path / "docs").mkdir()
    with pytest.raises(ValueError, match=r"cannot read .*val.jsonl"):
        load_rationales(tmp_path / "val.jsonl")
    (tmp_path / "val.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not UTF-8"):
        load_rationales(tmp_path / "val.jsonl")


def rationale(marked: list[tuple[int, int]], n_units: int) -> Rationale:
    """A document of single letters with these runs of units marked."""
    return Rationale(
        annotation_id="a", docid="a", text=" ".join("x" * n_units), evidence=tuple((2 * a, 2 * b - 1) for a, b in marked)
    )


def means(found: dict[str, Any]) -> dict[str, float]:
    return {name: one["mean"] for name, one in found["all"].items()}


def test_every_measure_by_hand():
    people = [rationale([(0, 2)], 5), rationale([(3, 4)], 5)]
    scores = [np.array([0.9, 0.1, 0.8, 0.0, 0.2]), np.array([0.0, 0.1, 0.2, 0.9, 0.3])]
    found = plausibility(scores, people)
    assert found["share"] == pytest.approx(0.3)  # of 2/5 and 1/5; so ceil(1.5) units are selected: {0, 2} and {3, 4}
    assert means(found) == pytest.approx(
        {
            "token_f1": (1 / 2 + 2 / 3) / 2,
            # runs (0, 1) and (2, 3) against (0, 2): 1/2 and 0; run (3, 5) against (3, 4): 1/2
            "iou_f1": 2 * 0.75 * 1 / (0.75 + 1),
            "auprc": ((1 / 2 * 1 + 1 / 2 * 2 / 4) + 1) / 2,  # the second of the marked is fourth
            "auprc_trapezoid": ((0.5 * 1 + 0.5 * (1 / 3 + 2 / 4) / 2) + 1) / 2,
        }
    )
    assert found["all"]["token_f1"]["se"] == pytest.approx(abs(1 / 2 - 2 / 3) / 2)
    assert found["all"]["iou_f1"]["se"] is None
    assert found["unseen"]["mean"] == 0


def test_selected_units_stand_in_for_the_best():
    found = plausibility([np.zeros(4)], [rationale([(1, 3)], 4)], selected=[np.array([False, True, True, False])])
    assert means(found)["token_f1"] == means(found)["iou_f1"] == 1
    assert means(found)["auprc"] == pytest.approx(0.5)  # equal scores know nothing: the share that is marked
    assert means(found)["auprc_trapezoid"] == pytest.approx(0.75)  # and the trapezoid flatters them


def test_two_halves_of_a_passage_are_no_recall_of_two():
    assert iou_f1([[(0, 2), (2, 4)]], [[(0, 4)]]) == pytest.approx(1.0)
    assert iou_f1([[(0, 1)]], [[(0, 4)]]) == 0
    # precision 1 and 0 of two documents, recall 1 of the one where something is marked
    assert iou_f1([[(0, 2)], [(0, 1)]], [[(0, 2)], []]) == pytest.approx(2 * 0.5 / 1.5)
    assert iou_f1([[]], [[]]) == 0


def test_units_not_seen_rank_last_and_are_counted():
    nan = math.nan
    found = plausibility([np.array([0.1, 0.5, nan, nan])], [rationale([(0, 1), (3, 4)], 4)], share=1.0)
    assert found["unseen"]["mean"] == pytest.approx(0.5)
    assert means(found)["token_f1"] == pytest.approx(0.5)  # two of four selected, one of them marked
    # the seen one is second, the other shares the last place with its neighbour
    assert means(found)["auprc"] == pytest.approx(1 / 2 * 1 / 2 + 1 / 2 * 2 / 4)


masks = st.integers(2, 12).flatmap(lambda size: st.tuples(arrays(bool, size), arrays(bool, size)))


@settings(deadline=None)
@given(masks)
def test_token_f1_is_scikit_learn_s(both):
    one, other = both
    assert token_f1(one, other) == pytest.approx(f1_score(other, one, zero_division=1.0))
    assert token_f1(one, other) == token_f1(other, one)


@given(arrays(bool, st.integers(0, 15)))
def test_runs_cover_what_is_selected_and_no_more(selected):
    again = np.zeros(len(selected), bool)
    found = runs(selected)
    for start, end in found:
        assert start < end
        again[start:end] = True
    assert (again == selected).all()
    assert all(one[1] < other[0] for one, other in pairwise(found))


@settings(max_examples=40, deadline=None)
@given(st.lists(masks, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_a_perfect_rationale_scores_perfectly_and_any_other_within_bounds(documents, random):
    people = [rationale(runs(human), len(human)) for human, _ in documents]
    own = [human for human, _ in documents]
    perfect = means(plausibility([human.astype(float) for human in own], people, selected=own))
    assert perfect["token_f1"] == 1
    assert perfect["iou_f1"] == (1 if any(human.any() for human in own) else 0)
    assert math.isnan(perfect["auprc"]) or perfect["auprc"] == perfect["auprc_trapezoid"] == 1
    scores, chosen = [other.astype(float) for _, other in documents], [other for _, other in documents]
    found = means(plausibility(scores, people, selected=chosen))
    assert all(math.isnan(value) or 0 <= value <= 1 for value in found.values())
    order = list(range(len(documents)))
    random.shuffle(order)
    mixed = plausibility([scores[i] for i in order], [people[i] for i in order], selected=[chosen[i] for i in order])
    assert means(mixed) == pytest.approx(found, nan_ok=True)


@settings(max_examples=50, deadline=None)
@given(arrays(np.float64, 8, elements=st.integers(-9, 9).map(float)), arrays(bool, 8))
def test_auprc_is_scikit_learn_s_and_takes_any_rising_scores(scores, human):
    people = [rationale(runs(human), 8)]
    found = means(plausibility([scores], people, share=0.4))
    assert means(plausibility([np.exp(scores)], people, share=0.4)) == pytest.approx(found, nan_ok=True)
    if human.any() and not human.all():
        assert found["auprc"] == pytest.approx(average_precision_score(human, scores))
    else:
        assert math.isnan(found["auprc"])


def test_good_scores_beat_the_floor():
    random = np.random.default_rng(0)
    people = [rationale([(start, start + 3)], 20) for start in random.integers(0, 17, 50)]
    scores = [one.units() + 0.3 * random.standard_normal(20) for one in people]
    found = plausibility(scores, people)
    for name, one in found["all"].items():
        assert one["mean"] > found["floor"][name]["mean"] + 0.2
    assert found["floor"] == plausibility(scores, people)["floor"]
    assert found["floor"] != plausibility(scores, people, seed=1)["floor"]


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ([], {}, "scores of 0 documents and 1 rationales"),
        ([[0.0, 1.0]], {}, "document 0 has 3 units and scores of shape"),
        ([[0.0, 1.0, math.inf]], {}, "document 0 has an infinite score"),
        ([[0.0, 1.0, 2.0]], {"share": 1.5}, "found a share of 1.5"),
        ([[0.0, 1.0, 2.0]], {"selected": [np.array([True])]}, "3 units and selected units of shape"),
    ],
)
def test_bad_scores_are_refused(scores, options, message):
    with pytest.raises(ValueError, match=message):
        plausibility([np.array(one) for one in scores], [rationale([(0, 1)], 3)], **options)
