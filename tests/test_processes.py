"""Several processes do what one would: real ones, that speak through gloo."""

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from datasets import Dataset

HERE = Path(__file__).parent
ROOT = HERE.parent


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, save: Any, tiny_data: Dataset) -> Path:
    """A teacher, a student and 16 texts with three possible labels."""
    shop = tmp_path_factory.mktemp("shop")
    names = ("negative", "positive", "neither")
    save(shop / "teacher", names, layers=3)
    save(shop / "student", names, layers=2, seed=1)
    tiny_data.select(range(16)).save_to_disk(shop / "data")
    return shop


def side_by_side(*command: Any, count: int = 2, **environment: str) -> list[subprocess.CompletedProcess[str]]:
    """The same command in several processes that know of each other, as a launcher would start them; what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = []
    for rank in range(count):
        own = {name: str(value) for name, value in (common | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        whole = os.environ | {"OMP_NUM_THREADS": "1"} | own | environment
        words = [sys.executable, *map(str, command)]
        started.append(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=whole))
    try:
        said = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:  # whose others are gone waits for a month
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *both)
        for process, both in zip(started, said, strict=True)
    ]


def test_gradients_of_two_processes_are_those_of_one(shop: Path, tmp_path: Path) -> None:
    """Every objective, also where one process has a turn and the other none, on three steps that move the weights."""
    alone = runpy.run_path(str(HERE / "side_by_side.py"))
    expected = {name: alone["gradients"](objectives, shop, processes=1) for name, objectives in alone["CASES"].items()}
    done = side_by_side(HERE / "side_by_side.py", shop, tmp_path / "found.pt")
    assert [each.returncode for each in done] == [0, 0], done
    found = torch.load(tmp_path / "found.pt")
    assert len(found) > len(expected)
    wrong = {}
    for name, steps in found.items():
        one = expected[name.split(",")[0]]
        assert len(steps) == len(one) == 3
        for step, (ours, theirs) in enumerate(zip(steps, one, strict=True)):
            assert ours.keys() == theirs.keys()
            largest = max(float(gradient.abs().max()) for gradient in theirs.values())
            off = max(float((ours[key] - theirs[key]).abs().max()) for key in theirs)
            if off > 1e-4 * largest:
                wrong[name, step] = off / largest
    assert not wrong


QUICK = "use_cpu=true max_steps=4 logging_steps=1 learning_rate=1e-3 per_device_train_batch_size={}".split()
RUN = "evaluate.explained=4 evaluate.shown=2 evaluate.latency_repeats=1 max_length=32 data.train_limit=16".split()


def flags(processes: int) -> list[str]:
    """Settings of a quick run on batches of 8."""
    batch = 8 // processes
    settings = [f"{section}.{each.format(batch)}" for section in ("train", "teach") for each in QUICK] + RUN
    return [word for each in settings for word in ("--set", each)]


@pytest.fixture(scope="module")
def texts(shop: Path, write_csv: Any, tiny_data: Dataset) -> list[Any]:
    """Where the rows are."""
    names = [("negative", "positive")[label] for label in tiny_data["label"]]
    for name, rows in (("train", slice(0, 40)), ("dev", slice(40, 56))):
        write_csv(shop / f"{name}.csv", text=tiny_data["text"][rows], label=names[rows])
    return ["--train", shop / "train.csv", "--eval", shop / "dev.csv"]


def same_losses(ours: Path, theirs: Path) -> None:
    """Step by step and term by term, but for rounding."""
    one, other = (
        [line for line in map(json.loads, path.read_text().splitlines()) if "loss" in line] for path in (ours, theirs)
    )
    assert len(one) == len(other) == 4
    for found, expected in zip(one, other, strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


def files(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}


def test_launched_commands(shop: Path, texts: list[Any], tmp_path: Path, egkd: Any, save: Any) -> None:
    """On the ready config for two processes without a GPU: refusals, a teacher, lessons, and a whole run that is resumed after
    its disk was full. What both say and leave is what one would."""
    runs = tmp_path / "runs"
    learn = ["--teacher", save(tmp_path / "teacher", layers=2), "--student", "layers:1", *texts]
    whole = ["distill", "--teacher-init", shop / "student", "--student", "layers:1", *texts]
    whole += ["--guide", "gradient", "--guide", "perturbation"]
    distill = [*whole, *flags(2), "--out", runs / "a"]
    jobs: list[dict[str, Any]] = [
        {"words": [*distill, "--set", "objectives.selektion.weight=1"]},
        {"words": ["teach", "--init", shop / "student", *texts, *flags(2), "--out", tmp_path / "taught"]},
        {"words": [*distill, "--train", tmp_path / "missing.csv"]},
        {"words": ["lessons", "build", *learn, *flags(2), "--guide", "perturbation", "--lessons", runs / "lessons"]},
        {"words": distill, "failing": "egkd.pipeline.save_model"},
        {"words": distill},
        {"words": ["lessons", "list", runs / "lessons"]},  # from here on the first forgets the others
    ]
    for job in jobs:
        job["words"] = [str(word) for word in job["words"]]
    (tmp_path / "jobs").write_text(json.dumps(jobs))
    config = ROOT / "examples" / "launch" / "cpu-two-processes.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    words = [str(word) for word in (*launch, HERE / "commands.py", tmp_path / "jobs", tmp_path / "said")]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False, env=one_thread)
    assert done.returncode == 0, done.stderr

    first, second = (json.loads((tmp_path / f"said-{rank}").read_text()) for rank in (0, 1))
    assert [said["code"] for said in first] == [2, 0, 2, 0, 2, 0, 0]
    assert [said["code"] for said in second] == [2, 0, 2, 0, 2, 0, 0]
    assert [said["out"] + said["err"] for said in second] == [""] * 7
    unknown, taught, missing, built, broken, resumed, listed = first
    for said, why in ((unknown, "selektion"), (missing, "missing.csv"), (broken, "No space left on device")):
        assert why in said["err"]
        assert said["err"].count("\n") == 1
    assert "teacher: " in taught["out"]
    assert built["out"].count("lessons: ") == 2
    for line in ("holds this run already", "fine-tuning the teacher", "comparing teacher and student", "report: "):
        assert " ".join(resumed["out"].split()).count(line) == 1
    assert listed["out"].count("finished") == 5

    alone = tmp_path / "alone" / "a"
    answer = egkd(*whole, *flags(1), "--out", alone)
    assert answer.code == 0, answer.err
    for log in ("log.jsonl", "teacher-log.jsonl"):
        same_losses(runs / "a" / log, alone / log)
    assert files(runs / "a") == files(alone)
    assert files(tmp_path / "taught") >= {"config.yaml", "teacher/model.safetensors", "teacher-log.jsonl"}
    assert json.loads((runs / "a" / "environment.json").read_text())["processes"] == 2
    found, expected = (json.loads((run / "metrics.json").read_text()) for run in (runs / "a", alone))
    for role in ("teacher", "student"):
        assert found[role]["scores"] == expected[role]["scores"]


def test_launchers_find_a_module() -> None:
    """`-m egkd`; what processes cannot share, the first does, and the others leave."""
    said = side_by_side("-m", "egkd", "--help")
    assert [each.returncode for each in said] == [0, 0]
    assert "distill" in said[0].stdout
    assert said[1].stdout == said[1].stderr == ""


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "launch").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_ready_configs(path: Path) -> None:
    config = load_config_from_file(str(path))
    processes = {"one-gpu": 1, "cpu-two-processes": 2, "several-machines": 8}.get(path.stem, 4)
    assert config.num_processes == processes
    assert config.num_machines == (2 if path.stem == "several-machines" else 1)
    assert config.distributed_type == ("NO" if processes == 1 else "MULTI_GPU")
    assert config.mixed_precision == ("bf16" if path.stem == "bf16" else "no")
    assert config.use_cpu is (path.stem == "cpu-two-processes")
