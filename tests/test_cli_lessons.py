"""`egkd lessons`: built ahead of a run, listed, verified, pruned; and nothing else is ever touched."""

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from egkd.lessons import build as building
from egkd.lessons.keeping import delete, held, stores
from egkd.lessons.store import lock_of

pytestmark = pytest.mark.usefixtures("calm_libraries")
FLAGS = "--teacher teacher --train train.csv --max-length 32".split()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, save: Any, write_csv: Any, tiny_data: Any, egkd: Any) -> Path:
    """A folder with a teacher, data, and the lessons of two objectives, five shards each, between other people's files."""
    shop = tmp_path_factory.mktemp("lessons")
    save(shop / "teacher")
    labels = ["positive" if label else "negative" for label in tiny_data["label"]]
    write_csv(shop / "train.csv", text=tiny_data["text"], label=labels)
    before = Path.cwd()
    os.chdir(shop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "SHARD_ROWS", 20)
        answer = egkd("lessons", "build", *FLAGS, "--guide", "gradient", "--lessons", "kept", "--set", "train.use_cpu=true")
    os.chdir(before)
    assert answer.code == 0, answer
    assert "lessons of gradient: about " in answer.out
    assert "for 86 examples" in answer.out  # a tenth is held out, as by distill
    return shop


@pytest.fixture
def kept(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of those lessons, with things that are no lessons beside them."""
    monkeypatch.setenv("COLUMNS", "200")
    kept = tmp_path / "kept"
    shutil.copytree(built / "kept", kept)
    (kept / "notes.txt").write_text("mine")
    (kept / "thesis-0123456789abcdef").mkdir()
    (kept / "thesis-0123456789abcdef" / "manifest.json").write_text('{"key": {"settings": {"objective": "thesis"}}}')
    (kept / "linked-0123456789abcdef").symlink_to(store_of(kept, "gradient"))
    return kept


def store_of(kept: Path, objective: str) -> Path:
    (folder,) = kept.glob(f"{objective}-*")
    return folder


def others(kept: Path) -> list[str]:
    return sorted(p.name for p in kept.iterdir() if not p.name.startswith(("gradient-", "soft-labels-", ".")))


def unfinish(folder: Path) -> None:
    """As a killed build leaves it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "building.json").write_text(json.dumps({"key": manifest["key"], "shards": 5}))
    (folder / "manifest.json").unlink()
    (folder / "shard-00004.arrow").unlink()


def cut_off(folder: Path) -> None:
    shard = folder / "shard-00002.arrow"
    shard.write_bytes(shard.read_bytes()[:-200])


def flip(folder: Path) -> None:
    shard = folder / "shard-00002.arrow"
    contents = bytearray(shard.read_bytes())
    contents[-60] ^= 1
    shard.write_bytes(contents)


def lose(folder: Path) -> None:
    (folder / "shard-00001.arrow").unlink()


def add(folder: Path) -> None:
    shutil.copy(folder / "shard-00001.arrow", folder / "shard-00007.arrow")


def scribble(folder: Path) -> None:
    (folder / "manifest.json").write_text("[")


def misname(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["key"]["max_length"] = 87
    (folder / "manifest.json").write_text(json.dumps(manifest))


DAMAGE: dict[Callable[[Path], None], str] = {
    cut_off: "shard-00002.arrow has ",
    flip: "shard-00002.arrow has other contents",
    lose: "shard-00001.arrow is missing",
    add: "shard-00007.arrow is not in the manifest",
    scribble: "manifest.json",
    misname: "name is not that of its key",
}


def test_a_run_finds_what_was_built_for_it(built: Path, egkd: Any, monkeypatch: pytest.MonkeyPatch, quick: list[str]) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("built again")

    monkeypatch.chdir(built)
    monkeypatch.setattr(building, "write_shard", never)
    flags = [*FLAGS, "--student", "layers:1", "--guide", "gradient", "--lessons", "kept"]
    answer = egkd("distill", *flags, *quick, "--out", "run")
    assert answer.code == 0, answer


def test_list_tells_what_there_is(kept: Path, egkd: Any) -> None:
    key = json.loads((store_of(kept, "gradient") / "manifest.json").read_text())["key"]
    unfinish(store_of(kept, "soft-labels"))
    lines = egkd("lessons", "list", kept).out.splitlines()
    gradient, soft = (next(line.split() for line in lines if line.strip().startswith(name)) for name in ("gradient", "soft"))
    assert gradient[:2] == ["gradient", "86"]
    assert gradient[4] == key["teacher"][:10]
    assert gradient[-1] == "finished"
    assert " ".join(soft[-5:]) == "unfinished, 4 of 5 shards"
    assert "thesis" not in " ".join(lines)
    cut_off(store_of(kept, "gradient"))
    assert "broken: shard-00002.arrow has" in egkd("lessons", "list", kept).out
    assert "holds no lessons" in egkd("lessons", "list", kept.parent).out
    answer = egkd("lessons", "list", kept / "nowhere")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "nowhere is not a folder" in answer.err


def test_verify_passes_what_is_well(kept: Path, egkd: Any) -> None:
    unfinish(store_of(kept, "soft-labels"))
    answer = egkd("lessons", "verify", kept)
    assert answer.code == 0
    assert answer.out.splitlines() == [
        f"{store_of(kept, 'gradient').name}: well",
        f"{store_of(kept, 'soft-labels').name}: unfinished, 4 of 5 shards",
    ]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_verify_says_what_is_wrong(kept: Path, egkd: Any, damage: Callable[[Path], None]) -> None:
    folder = store_of(kept, "gradient")
    damage(folder)
    answer = egkd("lessons", "verify", kept)
    assert answer.code == 2
    (line,) = [line for line in answer.out.splitlines() if line.startswith(f"{folder.name}: ")]
    assert DAMAGE[damage] in line
    assert f"{store_of(kept, 'soft-labels').name}: well" in answer.out


def test_verify_reads_the_shards_of_an_unfinished_store(kept: Path, egkd: Any) -> None:
    unfinish(store_of(kept, "gradient"))
    cut_off(store_of(kept, "gradient"))
    answer = egkd("lessons", "verify", kept)
    assert answer.code == 2
    assert "shard-00002.arrow cannot be read" in answer.out


@pytest.mark.parametrize("damage", [unfinish, cut_off, lose, add, scribble], ids=lambda damage: damage.__name__)
def test_prune_deletes_the_unfinished_and_the_broken_alone(kept: Path, egkd: Any, damage: Callable[[Path], None]) -> None:
    beside, folder = others(kept), store_of(kept, "gradient")
    assert egkd("lessons", "prune", kept, "--yes").out == "nothing to delete\n"
    damage(folder)
    assert "nothing was deleted" in egkd("lessons", "prune", kept, "--dry-run").out
    assert folder.exists()
    answer = egkd("lessons", "prune", kept, "--yes")
    assert answer.code == 0
    assert f"{folder.name}: deleted" in answer.out
    assert [store.objective for store in stores(kept)] == ["soft-labels"]
    assert others(kept) == beside


def test_prune_by_age_and_by_teacher(kept: Path, egkd: Any) -> None:
    manifest = store_of(kept, "gradient") / "manifest.json"
    said = json.loads(manifest.read_text())
    teacher = said["key"]["teacher"]
    manifest.write_text(json.dumps(said | {"built": "2020-01-01T00:00:00+00:00"}))
    out = egkd("lessons", "prune", kept, "--days", "30", "--dry-run").out
    assert "gradient-" in out
    assert "older than 30 days" in out
    assert "soft-labels-" not in out
    assert egkd("lessons", "prune", kept, "--days", "1e10", "--dry-run").out == "nothing to delete\n"
    assert egkd("lessons", "prune", kept, "--teacher", teacher[:8], "--dry-run").out == "nothing to delete\n"
    assert egkd("lessons", "prune", kept, "--teacher", "0" * 8, "--dry-run").out.count("another teacher's") == 2


@pytest.mark.parametrize("answer", ["y\n", "n\n", ""])
def test_prune_asks_before_it_deletes(kept: Path, egkd: Any, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    unfinish(store_of(kept, "gradient"))
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    said = egkd("lessons", "prune", kept)
    assert said.code == 0
    assert "delete 1 of 2" in said.out
    assert len(stores(kept)) == (1 if answer == "y\n" else 2)


def test_prune_leaves_what_is_being_built(kept: Path, egkd: Any) -> None:
    unfinish(store_of(kept, "gradient"))
    with lock_of(store_of(kept, "gradient")):
        answer = egkd("lessons", "prune", kept, "--yes")
        assert "is being built, left alone" in answer.out
        assert len(stores(kept)) == 2
    with held(stores(kept)[0]) as ours:
        assert ours
        delete(stores(kept)[0])
    assert [store.objective for store in stores(kept)] == ["soft-labels"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (FLAGS, ["no folder for lessons", "--lessons", "--out"]),
        (["--train", "train.csv", "--lessons", "l", "--set", "teacher_init=teacher"], ["expected teacher", "egkd teach"]),
        ([*FLAGS, "--lessons", "l", "--set", "objectives.soft-labels.weight=0"], ["nothing to build"]),
        ([*FLAGS, "--lessons", "train.csv/x"], ["cannot write to train.csv/x", "--lessons"]),
        ([*FLAGS, "--lessons", "l", "--max-length", "65"], ["max_length is 65"]),
        ([*FLAGS, "--lessons", "l", "--set", "objectives.gradiant.weight=1"], ["did you mean 'gradient'"]),
    ],
)
def test_build_refuses_in_one_line(
    built: Path, egkd: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], parts: list[str]
) -> None:
    monkeypatch.chdir(built)
    answer = egkd("lessons", "build", *arguments)
    assert (answer.code, answer.err.count("\n")) == (2, 1), answer
    assert [part for part in parts if part not in answer.err] == [], answer.err
    assert not (built / "l").exists()
