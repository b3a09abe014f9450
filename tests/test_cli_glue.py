"""`egkd glue` from outside: a grid from flags and from a file, what it says, and its exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset

from egkd.cli.progress import duration
from egkd.experiments.grid import DEFAULT_METHODS, GridConfig
from egkd.experiments.planning import Job

pytestmark = pytest.mark.usefixtures("calm_libraries")


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch, here: Any) -> None:
    monkeypatch.setattr("egkd.experiments.running.Subprocess", here)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, save: Any, tiny_data: Dataset) -> Path:
    """A teacher, a student, GLUE's SST-2 as it might be, and settings that make a run quick."""
    shop = tmp_path_factory.mktemp("shop")
    save(shop / "teacher")
    save(shop / "small", layers=1, width=16, seed=5)
    for split, rows in (("train", range(64)), ("dev", range(64, 96))):
        lines = [f"{tiny_data[row]['text']}\t{tiny_data[row]['label']}" for row in rows]
        (shop / "glue" / "SST-2").mkdir(parents=True, exist_ok=True)
        (shop / "glue" / "SST-2" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    base = {
        "data": {"glue_dir": str(shop / "glue")},
        "train": {"use_cpu": True, "max_steps": 2, "per_device_train_batch_size": 8, "logging_steps": 1},
        "evaluate": {"explained": 4, "shown": 2, "latency_repeats": 1},
        "max_length": 32,
    }
    file = {
        "tasks": {"sst2": {}, "few": {"task": "sst2", "train_limit": 16, "teacher_of": "sst2"}},
        "students": {"mine": str(shop / "small"), "cut": "layers:1"},
        "methods": ["labels", "plain", "perturbation"],
        "teachers": {"sst2": str(shop / "teacher")},
        "base": base,
    }
    (shop / "grid.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    (shop / "base.yaml").write_text(yaml.safe_dump({"base": base}))
    return shop


def cells(out: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(out / "cells")) for path in (out / "cells").glob("*/*/*/*/metrics.json"))


def test_a_grid_from_flags_is_run_once(egkd: Any, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [shop / "base.yaml", "--tasks", "sst2", "--students", shop / "small", "--methods", "labels,plain", "--seeds", "0"]
    asked += ["--teacher", f"sst2={shop / 'teacher'}", "--limit", "24", "--epochs", "1", "--max-length", "16"]
    asked += ["--set", "base.train.learning_rate=1e-3", "--out", tmp_path / "out"]
    answer = egkd("glue", *asked)
    assert answer.code == 0, answer.err
    assert cells(tmp_path / "out") == ["sst2/small/labels/0", "sst2/small/plain/0"]
    config = yaml.safe_load((tmp_path / "out" / "cells" / "sst2" / "small" / "plain" / "0" / "config.yaml").read_text())
    assert (config["data"]["train_limit"], config["data"]["eval_limit"], config["max_length"]) == (24, 24, 16)
    assert (config["train"]["learning_rate"], config["train"]["num_train_epochs"]) == (1e-3, 1)
    assert "sst2/small/plain/0: accuracy " in answer.out
    assert f"results: {tmp_path}/out/results" in "".join(answer.out.split("\n"))
    found = json.loads((tmp_path / "out" / "results" / "glue.json").read_text())
    assert list(found["students"]["small"]) == ["labels", "plain"]
    monkeypatch.setattr("egkd.experiments.running.Subprocess", None)
    again = egkd("glue", *asked)
    assert (again.code, "sst2/small/plain/0" in again.out) == (0, False)


def test_flags_choose_from_a_file(egkd: Any, shop: Path, tmp_path: Path) -> None:
    asked = ["--tasks", "few", "--students", "cut", "--methods", "plain", "--seeds", "3", "--seeds", "4,5"]
    asked += ["--set", "tasks.few.seeds=[5]", "--set", "methods.plain.train.max_steps=1"]
    answer = egkd("glue", shop / "grid.yaml", *asked, "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert cells(tmp_path / "out") == ["few/cut/plain/5"]
    run = tmp_path / "out" / "cells" / "few" / "cut" / "plain" / "5"
    assert json.loads((run / "metrics.json").read_text())["training"] | {"seconds": 0, "lessons_seconds": 0} == {
        "seconds": 0,
        "lessons_seconds": 0,
        "steps": 1,
        "examples": 16,
    }
    assert yaml.safe_load((run / "config.yaml").read_text())["teacher"] == str(shop / "teacher")
    kept = yaml.safe_load((tmp_path / "out" / "grid.yaml").read_text())
    assert kept["seeds"] == [3, 4, 5]
    assert list(kept["methods"]) == ["labels", "plain", "perturbation"]  # the file is the experiment, the flags a part of it


def test_flags_add_to_a_file(egkd: Any, shop: Path, tmp_path: Path) -> None:
    asked = [
        "--tasks",
        "sst2",
        "--students",
        "cut",
        "--methods",
        "plain+minilm,tinybert",
        "--seeds",
        "1",
        "--out",
        tmp_path / "out",
    ]
    (tmp_path / "mine.yaml").write_text((shop / "grid.yaml").read_text() + "seeds: [0]\n")
    assert egkd("glue", tmp_path / "mine.yaml", *asked).code == 0
    assert cells(tmp_path / "out") == ["sst2/cut/plain+minilm/1", "sst2/cut/tinybert/1"]
    kept = yaml.safe_load((tmp_path / "out" / "grid.yaml").read_text())
    assert kept["seeds"] == [0, 1]
    assert list(kept["methods"]) == ["labels", "plain", "perturbation", "plain+minilm", "tinybert"]


def test_names_on_the_command_line_are_those_of_the_file(egkd: Any, shop: Path, tmp_path: Path) -> None:
    """In any spelling; and one name is one student."""
    asked = ["glue", shop / "grid.yaml", "--methods", "plain", "--seeds", "0", "--out", tmp_path / "out"]
    assert egkd(*asked, "--tasks", "SST-2", "--students", "mine").code == 0
    assert cells(tmp_path / "out") == ["sst2/mine/plain/0"]
    answer = egkd(*asked, "--students", "elsewhere/mine")
    assert answer.code == 2
    assert f"students {shop / 'small'} and elsewhere/mine would both be called mine" in answer.err


@pytest.mark.parametrize("section", ["tasks", "students", "methods", "seeds"])
def test_an_empty_section_is_no_section(egkd: Any, shop: Path, tmp_path: Path, section: str) -> None:
    file = yaml.safe_load((shop / "grid.yaml").read_text()) | {section: None}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(file))
    answer = egkd("glue", tmp_path / "grid.yaml", "--set", "base.train.max_stepps=1", "--seeds", "0", "--out", tmp_path / "out")
    assert answer.code == 2
    assert "Traceback" not in answer.err


def test_a_setting_of_one_method_is_beside_the_others(egkd: Any, shop: Path, tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[GridConfig] = []

    def run(grid: GridConfig, *_: Any, **__: Any) -> dict[str, str]:
        seen.append(grid)
        return {}

    monkeypatch.setattr("egkd.experiments.running.run", run)
    asked = [
        "--teacher-init",
        "an-encoder",
        "--set",
        "methods.gradient.objectives.gradient.weight=5",
        "--out",
        tmp_path / "out",
    ]
    assert egkd("glue", *asked).code == 0
    assert tuple(seen[0].methods) == DEFAULT_METHODS
    assert seen[0].methods["gradient"] == {"objectives": {"gradient": {"weight": 5}}}


def test_a_failed_cell_is_told_at_the_end(
    egkd: Any, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Any
) -> None:
    class Broken(here):
        def __init__(self, job: Job, log: Path, share: Any) -> None:
            if job.config.student == "layers:1":
                log.parent.mkdir(parents=True)
                log.write_text("it began well\nCUDA is [out of] memory\n\n")
                self._code = 1
            else:
                super().__init__(job, log, share)

    monkeypatch.setattr("egkd.experiments.running.Subprocess", Broken)
    asked = [shop / "grid.yaml", "--tasks", "few", "--methods", "plain", "--seeds", "0", "--out", tmp_path / "out"]
    answer = egkd("glue", *asked)
    assert answer.code == 1
    assert "failed: few/cut/plain/0: CUDA is [out of] memory" in answer.out
    assert "1 failed; the same command tries them again" in answer.out
    assert cells(tmp_path / "out") == ["few/mine/plain/0"]
    monkeypatch.setattr("egkd.experiments.running.Subprocess", here)
    assert egkd("glue", *asked).code == 0
    assert cells(tmp_path / "out") == ["few/cut/plain/0", "few/mine/plain/0"]


def test_an_interruption_says_how_to_go_on(egkd: Any, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[str] = []

    class Interrupted:
        def __init__(self, job: Job, log: Path, share: Any) -> None:
            self.name = job.name

        def poll(self) -> int | None:
            raise KeyboardInterrupt

        def stop(self) -> None:
            stopped.append(self.name)

        def end(self) -> None:
            stopped.append(self.name)

    monkeypatch.setattr("egkd.experiments.running.Subprocess", Interrupted)
    answer = egkd("glue", shop / "grid.yaml", "--tasks", "few", "--seeds", "0", "--jobs", "2", "--out", tmp_path / "out")
    assert answer.code == 130
    assert "the same command goes on" in answer.err
    assert stopped == ["few/mine/labels/0", "few/mine/plain/0"] * 2


def test_several_files_are_laid_over_one_another(egkd: Any, shop: Path, tmp_path: Path) -> None:
    other = {
        "tasks": {"other": {"task": "sst2", "train_limit": 16, "methods": {"plain": {"train": {"max_steps": 1}}}}},
        "teachers": {"other": str(shop / "teacher")},
        "seeds": [7],
    }
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    asked = ["--students", "cut", "--methods", "plain"]
    answer = egkd("glue", shop / "grid.yaml", tmp_path / "other.yaml", *asked, "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert cells(tmp_path / "out") == ["few/cut/plain/7", "other/cut/plain/7", "sst2/cut/plain/7"]
    steps = [
        json.loads((tmp_path / "out" / "cells" / task / "cut" / "plain" / "7" / "metrics.json").read_text())["training"][
            "steps"
        ]
        for task in ("few", "other")
    ]
    assert steps == [2, 1]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--methods", "plian"], "unknown method 'plian'; did you mean 'plain'?"),
        (["--tasks", "mprc"], "unknown task 'mprc'; did you mean 'mrpc'?"),
        (["--seeds", "one"], "--seeds one: expected whole numbers, like 0,1,2"),
        (["--teacher", "mine"], "--teacher 'mine': expected TASK=FOLDER"),
        (["--teacher", "sts2=x"], "teachers.sts2: unknown task 'sts2'; did you mean 'sst2'?"),
        (["--jobs", "0"], "jobs is 0, expected 1 or more"),
        (["--set", "base.train.lerning_rate=1"], "did you mean 'learning_rate'?"),
        (["--set", "limt=4"], "unknown setting 'limt'; did you mean 'limit'?"),
        (["--set", "teachers=3"], "teachers"),
    ],
    ids=lambda part: part[0] + part[1] if isinstance(part, list) else "",
)
def test_bad_input_is_a_line_and_nothing_is_written(egkd: Any, shop: Path, tmp_path: Path, asked: list[str], said: str) -> None:
    answer = egkd("glue", shop / "grid.yaml", *asked, "--out", tmp_path / "out")
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert said in answer.err
    assert not (tmp_path / "out").exists()


def test_a_seed_joins_the_only_one_of_a_file(egkd: Any, shop: Path, tmp_path: Path) -> None:
    asked = ["--tasks", "sst2", "--students", "cut", "--methods", "plain", "--out", tmp_path / "out"]
    (tmp_path / "one.yaml").write_text("seeds: 7\n")
    answer = egkd("glue", shop / "grid.yaml", tmp_path / "one.yaml", *asked, "--seeds", "1")
    assert answer.code == 0, answer.err
    assert cells(tmp_path / "out") == ["sst2/cut/plain/1"]
    assert yaml.safe_load((tmp_path / "out" / "grid.yaml").read_text())["seeds"] == [1, 7]


def test_without_a_teacher_it_is_asked_for(egkd: Any, shop: Path, tmp_path: Path) -> None:
    answer = egkd("glue", shop / "base.yaml", "--tasks", "sst2", "--out", tmp_path / "out")
    assert (answer.code, "--teacher sst2=FOLDER" in answer.err) == (2, True)


@pytest.mark.parametrize(("seconds", "said"), [(4.2, "4 s"), (100, "2 min"), (3600, "1:00 h"), (36_000 + 65 * 60, "11:05 h")])
def test_a_duration_is_told_as_people_do(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_the_best_seed_of_a_method_is_submitted(egkd: Any, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, written = tmp_path / "out", []
    asked = ["--tasks", "sst2", "--students", "mine", "--methods", "plain", "--seeds", "0,1", "--out", out]
    assert egkd("glue", shop / "grid.yaml", *asked).code == 0
    scores = {"0": 0.25, "1": 0.75}
    for seed, score in scores.items():
        file = out / "cells" / "sst2" / "mine" / "plain" / seed / "metrics.json"
        found = json.loads(file.read_text())
        found["student"]["scores"]["dev"]["accuracy"] = score
        file.write_text(json.dumps(found))
    monkeypatch.setattr("egkd.experiments.submission.write_submission", lambda *what, **how: written.append((what, how)))
    ask = ["submit", out, "--method", "plain", "--out", tmp_path / "x.zip"]
    assert "choose one with --student" in egkd(*ask).err
    assert "unknown student 'mien'; did you mean 'mine'?" in egkd(*ask, "--student", "mien").err
    answer = egkd(*ask, "--student", "mine", "--glue-dir", shop / "glue")
    assert answer.code == 0, answer.err
    ((students, where), how) = written[0]
    assert students == {"sst2": out / "cells" / "sst2" / "mine" / "plain" / "1" / "student"}
    assert (where, how["glue_dir"], how["max_length"]) == (tmp_path / "x.zip", shop / "glue", {"sst2": 32})
