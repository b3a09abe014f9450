"""Several processes do what one would: real ones, that speak through gloo."""

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
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
    said = [process.communicate(timeout=240) for process in started]
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
