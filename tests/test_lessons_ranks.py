"""Real processes: some that build together, and runs that want the same lessons at once."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from egkd.predict import encode_dataset

WORKER = """
import json, sys
from pathlib import Path
import torch
from datasets import load_from_disk
from torch import distributed
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from egkd.lessons import build, build_lessons
from egkd.objectives import GradientGuide, PerturbationGuide, SelectionGuide, SoftLabels, selection

shop, root, rank, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
if count > 1:
    distributed.init_process_group("gloo", init_method=f"file://{root}.meet", rank=rank, world_size=count)
done = {"shards": [], "selectors": 0}
write, fit = build.write_shard, selection.fit_selector

def write_shard(path, fields):
    done["shards"].append(f"{path.parent.name}/{path.name}")
    write(path, fields)

def fit_selector(*given, **named):
    done["selectors"] += 1
    return fit(*given, **named)

class Clumsy(SoftLabels):
    def teach(self, *given):
        if rank == count - 1:
            raise OSError("fell down the stairs")
        return super().teach(*given)

build.SHARD_ROWS, build.write_shard, selection.fit_selector = 8, write_shard, fit_selector
teacher = AutoModelForSequenceClassification.from_pretrained(shop / "teacher")
tokenizer, data = AutoTokenizer.from_pretrained(shop / "teacher"), load_from_disk(shop / "data")
objectives = [SoftLabels(), GradientGuide(), PerturbationGuide(masks=3), SelectionGuide()]
found = build_lessons(objectives, teacher, tokenizer, data, root, max_length=64, token_budget=60, tell=lambda line: None)
done["logits"] = found["soft-labels"].read(range(len(data)))["logits"].tolist()
built = list(done["shards"])
try:
    build_lessons([Clumsy()], teacher, tokenizer, data, Path(f"{root}-clumsy"), max_length=64)
except (ValueError, OSError) as error:
    done["failed"] = f"{type(error).__name__}: {error}"
print(json.dumps(done | {"shards": built}))
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, save: Any, tiny_data: Dataset, tokenizer: Any) -> Path:
    shop = tmp_path_factory.mktemp("shop")
    save(shop / "teacher", layers=2)
    encode_dataset(tiny_data.select(range(50)), tokenizer).save_to_disk(shop / "data")
    return shop


def work(shop: Path, *places: tuple[Path, int, int]) -> list[dict[str, Any]]:
    """Processes side by side, each with its root, rank and number; what they did."""
    commands = [[sys.executable, "-c", WORKER, str(shop), str(root), str(rank), str(count)] for root, rank, count in places]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        said = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * len(started), said
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


def contents(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = {str(path.relative_to(root)): path.read_bytes() for path in root.glob("*/shard-*.arrow")}
    for path in root.glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        found[str(path.relative_to(root))] = manifest["key"], manifest["shards"]
    return found


def test_two_processes_and_two_runs_build_what_one_would(shop: Path) -> None:
    """One alone, two that share the work, and two runs that know nothing of each other."""
    (alone,) = work(shop, (shop / "one", 0, 1))
    first, second = work(shop, (shop / "two", 0, 2), (shop / "two", 1, 2))
    expected = contents(shop / "one")
    assert len(expected) == 4 * (7 + 1)
    assert contents(shop / "two") == expected
    assert sorted(first["shards"] + second["shards"]) == sorted(alone["shards"])
    numbers = [{shard.split("-")[-1] for shard in done["shards"]} for done in (first, second)]
    assert [len(own) for own in numbers] == [4, 3]
    assert (alone["selectors"], first["selectors"], second["selectors"]) == (1, 1, 0)
    assert alone["logits"] == first["logits"] == second["logits"]
    assert second["failed"] == "OSError: fell down the stairs"
    assert first["failed"] == "ValueError: process 1 failed: OSError: fell down the stairs"

    rivals = work(shop, (shop / "three", 0, 1), (shop / "three", 0, 1))
    assert sorted(len(done["shards"]) for done in rivals) == [0, len(alone["shards"])]
    assert contents(shop / "three") == expected
    assert rivals[0]["logits"] == rivals[1]["logits"] == alone["logits"]
