"""Submissions: all files of the official format, predictions that transformers makes too, and what is refused."""

import dataclasses
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from egkd.data import glue_server
from egkd.data.glue_server import SERVER_SETS, ServerSet, load_server_set
from egkd.experiments import submission
from egkd.experiments.records import Record
from egkd.experiments.submission import Entry, chosen_students, write_submission

FILES = "CoLA SST-2 MRPC STS-B QQP MNLI-m MNLI-mm QNLI RTE WNLI AX".split()
ROWS = [("a great film", "it was lovely"), ("a dull plot", "we like it"), ("awful", "so very boring"), ("the cast", "a movie")]
HEADS = {  # as in the files that GLUE gives away; s stands for a text
    ("CoLA", "test"): ("index\tsentence", "{i}\t{s}"),
    ("SST-2", "test"): ("index\tsentence", "{i}\t{s}"),
    ("MRPC", "test"): ("index\t#1 ID\t#2 ID\t#1 String\t#2 String", "{i}\t7\t8\t{s}\t{t}"),
    ("STS-B", "test"): (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2",
        "{i}\tg\tf\t2012\t3\tx\ty\t{s}\t{t}",
    ),
    ("QQP", "test"): ("id\tquestion1\tquestion2", "{i}\t{s}\t{t}"),
    ("MNLI", "test_matched"): ("index\tpromptID\tsentence1\tsentence2", "{i}\t5\t{s}\t{t}"),
    ("MNLI", "test_mismatched"): ("index\tpromptID\tsentence1\tsentence2", "{i}\t5\t{t}\t{s}"),
    ("QNLI", "test"): ("index\tquestion\tsentence", "{i}\t{s}\t{t}"),
    ("RTE", "test"): ("index\tsentence1\tsentence2", "{i}\t{s}\t{t}"),
    ("WNLI", "test"): ("index\tsentence1\tsentence2", "{i}\t{s}\t{t}"),
    ("diagnostic", "diagnostic"): ("index\tsentence1\tsentence2", "{i}\t{s}\t{t}"),
}
NAMES = {
    "cola": ("unacceptable", "acceptable"),
    "sst2": ("negative", "positive"),
    "mrpc": ("not_equivalent", "equivalent"),
    "qqp": ("not_duplicate", "duplicate"),
    "stsb": (),
    "mnli": ("entailment", "neutral", "contradiction"),
    "qnli": ("entailment", "not_entailment"),
    "rte": ("entailment", "not_entailment"),
    "wnli": ("not_entailment", "entailment"),
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GLUE's test files, four rows each."""
    folder = tmp_path_factory.mktemp("glue")
    for (task, split), (head, row) in HEADS.items():
        lines = [head, *(row.format(i=i, s=s, t=t) for i, (s, t) in enumerate(ROWS))]
        (folder / task).mkdir(exist_ok=True)
        (folder / task / f"{split}.tsv").write_text("\r\n".join(lines) + "\r\n")
    return folder


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory, save: Any) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("students")
    return {task: save(folder / task, names, seed=len(task)) for task, names in NAMES.items()}


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rows are what the server expects."""
    short = {name: dataclasses.replace(test, size=len(ROWS)) for name, test in SERVER_SETS.items()}
    monkeypatch.setattr(glue_server, "SERVER_SETS", short)
    monkeypatch.setattr(submission, "SERVER_SETS", short)


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("no cell is to be run")


def opened(path: Path) -> dict[str, list[str]]:
    """Predictions by task's file."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            head, *lines = archive.read(name).decode().splitlines()
            assert head == "index\tprediction"
            pairs = [line.split("\t") for line in lines]
            assert [index for index, _ in pairs] == [str(index) for index in range(len(lines))]
            found[name.removesuffix(".tsv")] = [value for _, value in pairs]
    return found


def by_transformers(folder: Path, pairs: list[tuple[str, ...]]) -> torch.Tensor:
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return torch.stack([model(**tokenizer(*pair, return_tensors="pt")).logits[0] for pair in pairs])


@pytest.mark.usefixtures("_short")
def test_all_files_with_the_predictions_of_the_students(directory: Path, students: Mapping[str, Path], tmp_path: Path) -> None:
    said: list[str] = []
    found = opened(write_submission(students, tmp_path / "new" / "glue.zip", glue_dir=directory, tell=said.append))
    assert list(found) == FILES
    assert not any("same prediction" in line for line in said)
    singles: list[tuple[str, ...]] = [(first,) for first, _ in ROWS]
    backwards: list[tuple[str, ...]] = [(second, first) for first, second in ROWS]
    expected: dict[str, tuple[str, list[tuple[str, ...]]]] = {
        "CoLA": ("cola", singles),
        "SST-2": ("sst2", singles),
        "MRPC": ("mrpc", [*ROWS]),
        "QQP": ("qqp", [*ROWS]),
        "MNLI-m": ("mnli", [*ROWS]),
        "MNLI-mm": ("mnli", backwards),
        "AX": ("mnli", [*ROWS]),
        "QNLI": ("qnli", [*ROWS]),
        "RTE": ("rte", [*ROWS]),
        "WNLI": ("wnli", [*ROWS]),
    }
    for name, (task, pairs) in expected.items():
        ids = by_transformers(students[task], pairs).argmax(1).tolist()
        assert found[name] == [NAMES[task][i] if task in ("mnli", "qnli", "rte") else str(i) for i in ids], name
    scores = by_transformers(students["stsb"], list(ROWS))[:, 0].clip(0, 5).tolist()
    assert [float(value) for value in found["STS-B"]] == pytest.approx(scores, abs=6e-4)
    assert len({tuple(values) for values in found.values()}) > 5  # the models do not all say the same


@pytest.mark.usefixtures("_short")
def test_scores_stay_between_0_and_5(directory: Path, save: Any, tmp_path: Path) -> None:
    folder = save(tmp_path / "student", ())
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    for bias, expected in ((90.0, "5.000"), (-90.0, "0.000")):
        torch.nn.init.constant_(model.classifier.bias, bias)
        model.save_pretrained(folder)
        assert opened(write_submission({"STS-B": folder}, tmp_path / "a.zip", glue_dir=directory))["STS-B"] == [expected] * 4


@pytest.mark.usefixtures("_short")
def test_classes_go_by_their_names(directory: Path, save: Any, tmp_path: Path) -> None:
    """A student that knows the classes in another order says the same."""
    usual = save(tmp_path / "usual", NAMES["mnli"], seed=5)
    swapped = save(tmp_path / "swapped", NAMES["mnli"], seed=5)
    model = AutoModelForSequenceClassification.from_pretrained(swapped)
    order = [2, 0, 1]
    for part in (model.classifier.weight, model.classifier.bias):
        part.data = part.data[order].clone()
    model.config.id2label = {place: NAMES["mnli"][old] for place, old in enumerate(order)}
    model.config.label2id = {name: place for place, name in model.config.id2label.items()}
    model.save_pretrained(swapped)
    one, other = (
        opened(write_submission({"mnli": folder}, tmp_path / f"{folder.name}.zip", glue_dir=directory))
        for folder in (usual, swapped)
    )
    assert one == other
    assert len(set(one["MNLI-m"])) > 1


def test_tasks_without_a_student_are_filled_and_named(tmp_path: Path, students: Mapping[str, Path], directory: Path) -> None:
    rows = "".join(f"{index}\ta film\tit was\n" for index in range(146))
    (tmp_path / "glue" / "WNLI").mkdir(parents=True)
    (tmp_path / "glue" / "WNLI" / "test.tsv").write_text("index\tsentence1\tsentence2\n" + rows)
    said: list[str] = []
    out = write_submission({"wnli": students["wnli"]}, tmp_path / "a.zip", glue_dir=tmp_path / "glue", tell=said.append)
    found = opened(out)
    sizes = {"CoLA": 1063, "SST-2": 1821, "MRPC": 1725, "STS-B": 1379, "QQP": 390965, "MNLI-m": 9796, "MNLI-mm": 9847}
    sizes |= {"QNLI": 5463, "RTE": 3000, "WNLI": 146, "AX": 1104}
    assert {name: len(values) for name, values in found.items()} == sizes
    filled = {name: set(values) for name, values in found.items() if name != "WNLI"}
    assert filled == {name: {"0"} for name in ("CoLA", "SST-2", "MRPC", "QQP")} | {"STS-B": {"0.000"}} | {
        name: {"entailment"} for name in ("MNLI-m", "MNLI-mm", "QNLI", "RTE", "AX")
    }
    assert all(f"{name}.tsv" in said[-1] for name in filled)
    assert "WNLI" not in said[-1]


@pytest.mark.usefixtures("_short")
def test_equal_predictions_make_equal_files(directory: Path, students: Mapping[str, Path], tmp_path: Path) -> None:
    one, two = (
        write_submission({"rte": students["rte"]}, tmp_path / name, glue_dir=directory).read_bytes() for name in ("a", "b")
    )
    assert one == two
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_what_cannot_be_submitted_is_refused(
    directory: Path, students: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.zip"
    with pytest.raises(ValueError, match=r"^squad to submit for: expected tasks of cola, sst2"):
        write_submission({"squad": tmp_path}, out, glue_dir=directory)
    with pytest.raises(ValueError, match=r"is a folder; name the zip to write$"):
        write_submission({"sst2": students["sst2"]}, tmp_path, glue_dir=directory)
    with pytest.raises(ValueError, match=r"^nothing to submit for"):
        write_submission({}, out, glue_dir=directory)
    with pytest.raises(ValueError, match=r"SST-2/test.tsv has 4 rows, expected the 1,821 of GLUE's SST-2$"):
        write_submission({"sst2": students["sst2"]}, out, glue_dir=directory)
    with pytest.raises(ValueError, match=r"has no SST-2/test.tsv: a submission needs GLUE's test sets$"):
        write_submission({"sst2": students["sst2"]}, out, glue_dir=tmp_path)
    short = {name: dataclasses.replace(test, size=len(ROWS)) for name, test in SERVER_SETS.items()}
    monkeypatch.setattr(glue_server, "SERVER_SETS", short)
    with pytest.raises(ValueError, match="knows the labels not_entailment, entailment, the data has negative, positive"):
        write_submission({"sst2": students["wnli"]}, out, glue_dir=directory)
    assert not out.exists()


@pytest.mark.usefixtures("_short")
def test_a_diverged_student_is_refused(directory: Path, save: Any, tmp_path: Path) -> None:
    folder = save(tmp_path / "student", ())
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match="not finite: its training diverged"):
        write_submission({"stsb": folder}, tmp_path / "a.zip", glue_dir=directory)


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index\twords\n0\ta\n", r"has no column 'sentence', found index, words"),
        ("index\tsentence\n0\ta\tb\n", r"line 2 has 3 columns, expected 2: no row may be left out"),
    ],
)
def test_a_malformed_test_set_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2" / "test.tsv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_server_set("SST-2.tsv", tmp_path)


@pytest.mark.usefixtures("_short")
def test_test_sets_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def hub(name: str, config: str, split: str) -> Dataset:
        asked.append((name, config, split))
        firsts, seconds = zip(*ROWS, strict=True)
        return Dataset.from_dict({"premise": firsts, "hypothesis": seconds, "label": [-1] * len(ROWS)})

    monkeypatch.setattr(glue_server, "load_dataset", hub)
    for name in ("MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"):
        found = load_server_set(name)
        assert found is not None
        assert found[:] == {"text": [one for one, _ in ROWS], "text_pair": [two for _, two in ROWS]}
    splits = [("mnli", "test_matched"), ("mnli", "test_mismatched"), ("ax", "test")]
    assert asked == [("nyu-mll/glue", *split) for split in splits]

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no network\nat all")

    monkeypatch.setattr(glue_server, "load_dataset", fail)
    with pytest.raises(ValueError, match=r"^cannot load ax/test of nyu-mll/glue from the Hugging Face hub \(no network\)"):
        load_server_set("AX.tsv")


def test_the_best_seed_on_dev_is_submitted(tmp_path: Path, made_up: Callable[..., list[Record]]) -> None:
    records = made_up(tmp_path, {"plain": 0.0, "guided": 0.3}, tasks=("sst2", "mrpc"))
    for record in records:
        (record.folder / "student").mkdir()
        (record.folder / "student" / "model.safetensors").touch()
    chosen = chosen_students(records, "small", "guided")
    assert set(chosen) == {"sst2", "mrpc"}
    for task, folder in chosen.items():
        scores = {r.folder / "student": r.score for r in records if (r.task, r.method) == (task, "guided")}
        assert scores[folder] == max(scores.values())
    with pytest.raises(ValueError, match=r"finished run of small/other; finished are: small/guided, small/plain$"):
        chosen_students(records, "small", "other")
    diverged = dataclasses.replace(records[0], scores={"dev": {"accuracy": None}}, method="guided", folder=tmp_path / "none")
    assert chosen_students([diverged, *records, diverged], "small", "guided") == chosen
    easier = dataclasses.replace(records[-1], splits=("held_out",), scores={"held_out": {"accuracy": 1.0, "f1": 1.0}})
    assert chosen_students([easier, *records, easier], "small", "guided") == chosen
    (chosen["mrpc"] / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="did not keep its student's weights; delete that folder, and run it again"):
        chosen_students(records, "small", "guided")


def test_a_server_set_names_a_task_that_answers_it() -> None:
    assert {test.task for test in SERVER_SETS.values()} == set(NAMES)
    assert all(isinstance(test, ServerSet) and name.endswith(".tsv") for name, test in SERVER_SETS.items())


def test_what_is_submitted_is_read_from_a_flag() -> None:
    assert Entry.read("guided=a/b.zip", ["small"], ["guided"]) == Entry(student="small", method="guided", out=Path("a/b.zip"))
    assert Entry.read("tiny/guided=b.zip", ["small", "tiny"], ["guided"]).student == "tiny"
    for flag, students in (("guided", ["small"]), ("other=b.zip", ["small"]), ("guided=b.zip", ["small", "tiny"])):
        with pytest.raises(ValueError, match=rf"^--submission '{flag}': expected .*METHOD=ZIP, METHOD one of guided"):
            Entry.read(flag, students, ["guided"])


@pytest.mark.usefixtures("_short", "calm_libraries")
def test_the_command_submits_what_is_finished(
    directory: Path,
    students: Mapping[str, Path],
    made_up: Callable[..., list[Record]],
    tmp_path: Path,
    egkd: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    for record in made_up(out / "cells", {"plain": 0.0}, seeds=2):
        shutil.copytree(students[record.task], record.folder / "student")
        (record.folder / "config.yaml").write_text("max_length: 16\n")
    monkeypatch.setattr("egkd.experiments.running.run", lambda *_, **__: {})
    monkeypatch.setattr("egkd.experiments.results.finished", lambda _: True)
    flags = ["--tasks", "sst2,mrpc", "--students", "small", "--methods", "plain", "--seeds", "0,1", "--glue-dir", directory]
    answer = egkd("glue", "--out", out, "--teacher-init", "none", *flags, "--submission", f"plain={tmp_path / 'a.zip'}")
    assert answer.code == 0, answer.err
    found = opened(tmp_path / "a.zip")
    ids = by_transformers(students["mrpc"], list(ROWS)).argmax(1).tolist()
    assert found["MRPC"] == list(map(str, ids))
    said = " ".join(answer.out.split())
    assert "SST-2.tsv: 4 predictions" in said
    assert "same prediction for every row: CoLA.tsv, STS-B.tsv," in said
    monkeypatch.setattr("egkd.experiments.running.run", never)
    asked = ["glue", "--out", out, "--teacher-init", "none", *flags, "--submission", f"plain={tmp_path / 'a.zip'}"]
    lost = egkd(*asked, "--set", "keep_students=false")
    assert (lost.code, "keep_students is false: set it to true" in " ".join(lost.err.split())) == (2, True)
    monkeypatch.setattr("egkd.experiments.submission.finished", lambda folder: folder.name == "1")
    weights = out / "cells" / "mrpc" / "small" / "plain" / "1" / "student" / "model.safetensors"
    weights.rename(weights.with_suffix(".gone"))
    lost = egkd(*asked)
    assert (lost.code, "did not keep its student's weights; delete that folder" in " ".join(lost.err.split())) == (2, True)
    weights.with_suffix(".gone").rename(weights)
    (tmp_path / "partial").mkdir()
    shutil.copytree(directory / "SST-2", tmp_path / "partial" / "SST-2")
    less = egkd(*asked, "--set", f"tasks.mrpc.data.glue_dir={tmp_path / 'partial'}")
    assert (less.code, "has no MRPC/test.tsv: a submission needs" in " ".join(less.err.split())) == (2, True)
    wrong = egkd("glue", "--out", out, "--teacher-init", "none", *flags, "--submission", "other=a.zip")
    assert wrong.code
    assert "expected METHOD=ZIP, METHOD one of plain" in " ".join(wrong.err.split())
