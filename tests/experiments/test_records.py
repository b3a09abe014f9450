"""Run folders as records: figures, predictions read when asked for, and a line for what is broken."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egkd.experiments.records import Record, read_record

Make = Callable[..., Path]
CELL: dict[str, Any] = {"task": "entry", "student": "small", "method": "plain", "seed": 4}


def change(folder: Path, *path: str, to: Any) -> None:
    file = folder / "metrics.json"
    metrics = json.loads(file.read_text())
    part = metrics
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = to
    file.write_text(json.dumps(metrics))


def read(folder: Path) -> Record:
    record = read_record(folder, **CELL)
    assert record is not None
    return record


def test_a_record_says_what_the_folder_says(tmp_path: Path, finished_run: Make) -> None:
    record = read(finished_run(tmp_path, data="mrpc", seconds=12.5, explanations={"occlusion": 0.25, "other": None}))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    scores = metrics["student"]["scores"]["dev"]
    assert (record.task, record.student, record.method, record.seed, record.data) == ("entry", "small", "plain", 4, "mrpc")
    assert record.score == pytest.approx((scores["f1"] + scores["accuracy"]) / 2)
    assert record.teacher_score == pytest.approx(np.mean(list(metrics["teacher"]["scores"]["dev"].values())))
    assert (record.seconds, record.lessons_seconds, record.fidelity) == (12.5, 1.0, 0.9)
    assert record.explanations == {"occlusion": 0.25, "other": None}
    assert record.floors == {"occlusion": 0.0, "other": 0.0}


def test_mnli_is_judged_by_both_sets_others_by_their_first(tmp_path: Path, finished_run: Make) -> None:
    splits = ("dev_matched", "dev_mismatched")
    both = read(finished_run(tmp_path / "mnli", data="mnli", splits=(*splits, "reviews"), seed=3))
    first = read(finished_run(tmp_path / "sst2", splits=splits, seed=3))
    by_set = [both.scores[split]["accuracy"] for split in splits]
    assert by_set[0] != by_set[1]
    assert both.score == pytest.approx(np.mean([value for value in by_set if value is not None]))
    assert (both.splits, first.splits) == (splits, splits[:1])
    assert first.score == first.scores["dev_matched"]["accuracy"]


def test_sets_from_elsewhere_are_judged_by_themselves(tmp_path: Path, finished_run: Make) -> None:
    run = read(finished_run(tmp_path, splits=("dev", "reviews", "tweets"), seed=3, ceiling=0.8))
    reviews, tweets = run.elsewhere()
    assert (run.task, reviews.task, tweets.task) == ("entry", "entry on reviews", "entry on tweets")
    assert (run.beside, reviews.beside) == (None, "entry")
    assert reviews.score == run.scores["reviews"]["accuracy"] != run.score
    assert reviews.teacher_score == run.teacher_scores["reviews"]["accuracy"]
    assert (run.ceilings, reviews.ceilings, reviews.explanations, reviews.fidelity) == ({"occlusion": 0.8}, {}, {}, None)


def test_predictions_are_those_of_the_file(tmp_path: Path, finished_run: Make) -> None:
    found = read(finished_run(tmp_path, data="mnli", examples=20)).predictions()["dev"]
    assert (found.labels_N.shape, found.teacher_NC.shape, found.student_NC.shape) == ((20,), (20, 3), (20, 3))
    accuracy = json.loads((tmp_path / "metrics.json").read_text())["student"]["scores"]["dev"]["accuracy"]
    assert (found.student_NC.argmax(1) == found.labels_N).mean() == pytest.approx(accuracy)


def test_what_is_not_finished_is_no_record(tmp_path: Path, finished_run: Make) -> None:
    (finished_run(tmp_path) / "metrics.json").unlink()
    assert read_record(tmp_path, **CELL) is None
    assert read_record(tmp_path / "nowhere", **CELL) is None


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("training",), {}, "has no training time"),
        (("student", "scores"), {}, "has no scores of the task"),
        (("task", "metrics"), ["f1"], "has no scores of the task"),
        (("student", "scores", "dev"), 3, "is broken (student.scores.dev: "),
    ],
)
def test_a_broken_folder_is_told_in_a_line(
    tmp_path: Path, finished_run: Make, path: tuple[str, ...], value: Any, message: str
) -> None:
    change(finished_run(tmp_path), *path, to=value)
    with pytest.raises(ValueError, match=rf"^[^\n]*metrics.json {re.escape(message)}[^\n]*$"):
        read(tmp_path)


def test_a_file_cut_short_is_told_in_a_line(tmp_path: Path, finished_run: Make) -> None:
    file = finished_run(tmp_path) / "metrics.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(ValueError, match=r"^.*metrics.json is broken \(.*\): delete it and run it again$"):
        read(tmp_path)


def test_the_positive_class_is_one_whichever_number_the_teacher_gives_it(tmp_path: Path, finished_run: Make) -> None:
    run = finished_run(tmp_path, data="mrpc")
    first = read(run).predictions()["dev"]
    change(run, "task", "positive", to=0)
    turned = read(run).predictions()["dev"]
    assert np.array_equal(turned.labels_N, 1 - first.labels_N)
    assert np.array_equal(turned.student_NC, first.student_NC[:, [1, 0]])
    assert np.array_equal(turned.teacher_NC, first.teacher_NC[:, [1, 0]])


def test_three_classes_are_never_turned(tmp_path: Path, finished_run: Make) -> None:
    """A teacher may know the data's first class as its own class 1, whatever the others are."""
    run = finished_run(tmp_path, data="mnli")
    first = read(run).predictions()
    change(run, "task", "positive", to=0)
    for split, found in read(run).predictions().items():
        assert np.array_equal(found.labels_N, first[split].labels_N)
        assert np.array_equal(found.student_NC, first[split].student_NC)


def test_predictions_that_are_missing_or_broken(tmp_path: Path, finished_run: Make) -> None:
    record = read(finished_run(tmp_path))
    file = tmp_path / "predictions.npz"
    whole = file.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"nonsense"):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=r"^.*predictions.npz is broken \(.*\): delete (that|its) folder"):
            record.predictions()
    file.unlink()
    with pytest.raises(ValueError, match=r"has no predictions.npz: delete that folder, and run it again$"):
        record.predictions()


def test_predictions_of_another_set_are_told(tmp_path: Path, finished_run: Make) -> None:
    record = dataclasses.replace(read(finished_run(tmp_path)), scores={"elsewhere": {"accuracy": 0.5}})
    with pytest.raises(ValueError, match="is broken"):
        record.predictions()


def test_pickles_are_never_opened(tmp_path: Path, finished_run: Make) -> None:
    record = read(finished_run(tmp_path))
    np.savez(tmp_path / "predictions.npz", **{"dev/labels": np.array([{}], dtype=object)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is broken"):
        record.predictions()
