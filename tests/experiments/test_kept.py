"""Finished cells as lines: what is judged stays to the digit, another folder goes on from them, broken ones are told."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egkd.config import RunConfig
from egkd.experiments import kept
from egkd.experiments.kept import ANSWERS, CELLS, arrays_of, finished, keep, restore
from egkd.experiments.records import read_record
from egkd.experiments.statistics import RESAMPLES
from egkd.experiments.tables import write_results
from egkd.runs import write_arrays, write_json

Make = Callable[..., Path]
NAMES = ["mnli/small/plain/0", "sst2/small/plain/0", "stsb/small/plain/1"]


@pytest.fixture
def out(tmp_path: Path, finished_run: Make) -> Path:
    """An experiment with a finished cell of each kind, and one that was not finished."""
    folder = tmp_path / "out"
    for name in (*NAMES, "sst2/small/plain/7"):
        splits = ("dev_matched", "dev_mismatched") if name.startswith("mnli") else ("dev",)
        cell = finished_run(folder / "cells" / name, data=name.split("/")[0], seed=3, splits=splits)
        config = {"teacher": str(folder / "teachers" / name.split("/")[0] / "teacher"), "student": "layers:1"}
        config |= {"data": {"task": name.split("/")[0], "glue_dir": "/nowhere/glue"}, "lessons": str(folder / "lessons")}
        (cell / "config.yaml").write_text(RunConfig.model_validate(config).to_yaml())
        (cell / "report.html").write_text("a page")
    (folder / "cells" / "sst2/small/plain/7" / "report.html").unlink()
    return folder


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / CELLS).read_text().splitlines()]


def moved(out: Path, to: Path) -> Path:
    """All that is left are the lines."""
    (to / CELLS).parent.mkdir(parents=True)
    (to / CELLS).write_bytes((out / CELLS).read_bytes())
    return to


def test_a_line_for_each_finished_cell_without_its_places(out: Path) -> None:
    keep(out)
    found = lines(out)
    assert [line["cell"] for line in found] == NAMES
    assert [line["config"]["teacher"] for line in found] == [f"teachers/{name.split('/')[0]}/teacher" for name in NAMES]
    assert str(out.parent) not in (out / CELLS).read_text()
    assert "/nowhere" not in (out / CELLS).read_text()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_judged_is_the_same_to_the_digit(out: Path, tmp_path: Path, name: str) -> None:
    keep(out)
    elsewhere = moved(out, tmp_path / "elsewhere")
    restore(elsewhere)
    task, student, method, seed = name.split("/")
    cell: dict[str, Any] = {"task": task, "student": student, "method": method, "seed": int(seed)}
    before, after = (read_record(folder / "cells" / name, **cell) for folder in (out, elsewhere))
    assert before is not None
    assert after is not None
    for split, known in before.predictions().items():
        found = after.predictions()[split]
        np.testing.assert_array_equal(found.labels_N, known.labels_N)
        for theirs, ours in ((known.student_NC, found.student_NC), (known.teacher_NC, found.teacher_NC)):
            assert ours.shape == theirs.shape
            np.testing.assert_array_equal(
                ours if task == "stsb" else ours.argmax(1), theirs if task == "stsb" else theirs.argmax(1)
            )
    assert {**vars(after), "folder": None} == {**vars(before), "folder": None}


def test_tables_made_of_lines_are_the_same(tmp_path: Path, made_up: Callable[..., list[Any]]) -> None:
    folder = tmp_path / "out" / "cells"
    records = made_up(folder, {"plain": 0.0, "guided": 0.6}, tasks=("mrpc", "stsb"), seeds=2)
    for record in records:
        (record.folder / "config.yaml").write_text(
            RunConfig.model_validate({"teacher": "t", "data": {"task": "mrpc"}}).to_yaml()
        )
        (record.folder / "report.html").write_text("a page")
    keep(tmp_path / "out")
    restore(moved(tmp_path / "out", tmp_path / "elsewhere"))
    again = [
        read_record(tmp_path / "elsewhere" / record.folder.relative_to(tmp_path / "out"), **cell)
        for record in records
        for cell in [{part: getattr(record, part) for part in ("task", "student", "method", "seed")}]
    ]
    pages = []
    for place, found in (("one", records), ("two", again)):
        write_results(found, tmp_path / place, settings={}, resamples=RESAMPLES // 20)  # type: ignore[arg-type]
        pages.append((tmp_path / place / "glue.json").read_text())
    assert pages[0] == pages[1]


def test_a_cell_made_of_a_line_is_finished_and_makes_the_same_line(out: Path, tmp_path: Path) -> None:
    keep(out)
    elsewhere = moved(out, tmp_path / "elsewhere")
    restore(elsewhere)
    assert all(finished(elsewhere / "cells" / name) for name in NAMES)
    assert not (elsewhere / "cells" / "sst2/small/plain/7").exists()
    first = (elsewhere / CELLS).read_text()
    (elsewhere / CELLS).unlink()
    keep(elsewhere)
    assert (elsewhere / CELLS).read_text() == first


def test_a_cell_without_its_figures_is_to_be_run_again(out: Path, tmp_path: Path) -> None:
    """So what a message about a broken file advises works."""
    keep(out)
    elsewhere = moved(out, tmp_path / "elsewhere")
    restore(elsewhere)
    for folder in (out, elsewhere):
        (folder / "cells" / NAMES[0] / "metrics.json").unlink()
        assert [finished(folder / "cells" / name) for name in NAMES] == [False, True, True]


def test_names_may_hold_any_character(out: Path, tmp_path: Path) -> None:
    file = out / "cells" / NAMES[1] / "metrics.json"
    strange = "a\u2028b\x85c\x1dé"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"note": strange}, ensure_ascii=False))
    keep(out)
    elsewhere = moved(out, tmp_path / "elsewhere")
    restore(elsewhere)
    assert json.loads((elsewhere / "cells" / NAMES[1] / "metrics.json").read_text())["note"] == strange


def test_a_restoring_that_was_killed_is_done_again(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(out)
    elsewhere = moved(out, tmp_path / "elsewhere")

    def killed(path: Path, value: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(kept, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            restore(elsewhere)
    restore(elsewhere)
    assert all(finished(elsewhere / "cells" / name) for name in NAMES)


def test_a_restoring_that_was_cut_short_loses_no_cell(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between two cells: what is there then is not taken for the whole."""
    keep(out)
    elsewhere, calls = moved(out, tmp_path / "elsewhere"), []

    def killed(path: Path, value: Any) -> None:
        calls.append(path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        write_json(path, value)

    with monkeypatch.context() as patched:
        patched.setattr(kept, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            restore(elsewhere)
    keep_lines = (elsewhere / CELLS).read_bytes()
    restore(elsewhere)
    keep(elsewhere)
    assert (elsewhere / CELLS).read_bytes() == keep_lines


def test_what_is_there_is_left_alone(out: Path) -> None:
    keep(out)
    (out / "cells" / NAMES[0] / "metrics.json").unlink()  # to be run again
    restore(out)
    assert not (out / "cells" / NAMES[0] / ANSWERS).exists()
    keep(out)
    assert [line["cell"] for line in lines(out)] == NAMES[1:]


def test_lines_whose_cells_are_gone_stay(out: Path, finished_run: Make) -> None:
    """`rm -rf cells/*`, or results of elsewhere in a folder where other cells were begun: no finished cell is lost."""
    keep(out)
    before = lines(out)
    for left in (NAMES[1:2], []):
        for name in set(NAMES) - set(left):
            shutil.rmtree(out / "cells" / name, ignore_errors=True)
        keep(out)
        assert lines(out) == before
    shutil.rmtree(out / "cells" / "sst2")
    restore(out)
    assert all((out / "cells" / name / ANSWERS).exists() for name in NAMES)


def test_a_cell_that_was_run_again_has_a_new_line(out: Path, finished_run: Make) -> None:
    keep(out)
    before = lines(out)
    finished_run(out / "cells" / NAMES[1], seed=4)
    keep(out)
    assert [old == new for old, new in zip(before, lines(out), strict=True)] == [True, False, True]


def test_many_classes_and_no_class_are_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels_N = np.append(rng.integers(12, size=20), -100)
    arrays = {"dev/labels": labels_N, "dev/teacher": rng.normal(size=(21, 12)), "dev/student": rng.normal(size=(21, 12))}
    (tmp_path / ANSWERS).write_text(json.dumps({"dev": kept._answers(arrays, "dev")}))
    found = arrays_of(tmp_path)
    np.testing.assert_array_equal(found["dev/labels"], labels_N)
    np.testing.assert_array_equal(found["dev/student"].argmax(1), arrays["dev/student"].argmax(1))


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "3",
        '{"cell": "../../x/plain/0", "config": {}, "metrics": {}, "answers": {}}',
        '{"cell": "/a/b/c/0", "config": {}, "metrics": {}, "answers": {}}',
        '{"cell": "a/b/c/0", "config": 3, "metrics": {}, "answers": {}}',
        '{"cell": "a/b/c/0"}',
        '{"cell": 3}',
    ],
)
def test_a_broken_line_is_told_and_nothing_written(out: Path, tmp_path: Path, line: str) -> None:
    keep(out)
    elsewhere = moved(out, tmp_path / "elsewhere")
    with (elsewhere / CELLS).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"^[^\n]*cells.jsonl holds a line that is no finished cell \(.*\): delete that line$"):
        restore(elsewhere)
    assert not (elsewhere / "cells").exists()


def test_a_cell_that_cannot_be_kept_is_told(out: Path) -> None:
    write_arrays(out / "cells" / NAMES[1] / "predictions.npz", {"other/labels": np.zeros(3)})
    with pytest.raises(ValueError, match=rf"{re.escape(NAMES[1])} cannot be kept \([^\n]*\): delete it and run it again$"):
        keep(out)


@pytest.mark.parametrize("broken", ["{", "[]", '{"dev": {"classes": 2}}', '{"dev": {"classes": 2, "labels": "0x"}}'])
def test_broken_answers_are_told(tmp_path: Path, broken: str) -> None:
    (tmp_path / ANSWERS).write_text(broken)
    with pytest.raises(ValueError, match=r"^[^\n]*answers.json is broken \([^\n]*\): delete its folder, and run it again"):
        arrays_of(tmp_path)
