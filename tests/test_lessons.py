"""Lessons on disk: equal to the live teacher, resumed after a kill, refused when stale."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from egkd.lessons import Lessons, StaleLessons, build_lessons
from egkd.lessons import build as module
from egkd.models import frozen, observe
from egkd.objectives import GradientGuide, Objective, PerturbationGuide, SelectionGuide, SoftLabels, Teacher
from egkd.predict import encode_dataset
from egkd.text import collate

OBJECTIVES: list[Objective] = [SoftLabels(), GradientGuide(), PerturbationGuide(masks=3), SelectionGuide()]


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "SHARD_ROWS", 8)
    return


@pytest.fixture
def build(
    tmp_path: Path, tiny_bert: Callable[..., Any], tokenizer: Any, tiny_data: Dataset, small_shards: None
) -> Callable[..., dict[str, Lessons]]:
    def build(teacher: Any = None, rows: int = 20, objectives: list[Objective] | None = None, **settings: Any) -> Any:
        encoded = encode_dataset(tiny_data.select(range(rows)), tokenizer)
        return build_lessons(
            objectives or OBJECTIVES,
            teacher or tiny_bert(),
            tokenizer,
            encoded,
            tmp_path / "lessons",
            **({"max_length": 128, "token_budget": 40} | settings),
        )

    return build


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.name)
def test_lessons_equal_the_live_teacher(
    build: Any, tiny_bert: Any, tokenizer: Any, tiny_data: Dataset, tmp_path: Path, objective: Objective
) -> None:
    teacher = tiny_bert()
    rows = [7, 3, 12]
    stored = build(teacher)[objective.name].read(rows)
    encoded = encode_dataset(tiny_data, tokenizer)
    plain = Teacher(model=teacher, tokenizer=tokenizer)
    with frozen(teacher), torch.set_grad_enabled("embeddings" in objective.needs):
        prepared = objective.prepare(plain, encoded.select(range(20)), tmp_path)
        for place, row in enumerate(rows):
            batch = collate([encoded[row]], tokenizer.pad_token_id)
            seen = observe(teacher, batch, keep=objective.needs)
            live = objective.teach(Teacher(model=teacher, tokenizer=tokenizer, prepared=prepared), batch, seen)
            for name, values in live.items():
                value = np.asarray(values[0])
                kept = stored[name][place].numpy()[tuple(slice(size) for size in value.shape)]
                np.testing.assert_allclose(kept, value, atol=1e-3, rtol=2e-3)  # float16 on disk


def test_a_killed_build_goes_on_after_its_last_whole_shard(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = build(rows=20)["soft-labels"]
    whole = one.read(range(20))["logits"]
    for path in (tmp_path / "lessons").iterdir():
        if path.is_dir():
            (path / "manifest.json").unlink()
            (path / "shard-00002.arrow").unlink()
    (tmp_path / "lessons" / one.folder.name / "shard-00001.arrow").write_bytes(b"")  # a crash of the machine
    written: list[str] = []
    honest = module.write_shard
    monkeypatch.setattr(module, "write_shard", lambda path, fields: written.append(str(path)) or honest(path, fields))
    again = build(rows=20)
    assert torch.equal(again["soft-labels"].read(range(20))["logits"], whole)
    expected = [again[name].folder / "shard-00002.arrow" for name in again] + [one.folder / "shard-00001.arrow"]
    assert sorted(written) == sorted(map(str, expected))


def test_lessons_are_built_once_and_only_when_something_changed(build: Any, tiny_bert: Any, monkeypatch: Any) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("built again")

    first = build()
    monkeypatch.setattr(module, "write_shard", never)
    again = build(
        objectives=[
            SoftLabels(temperature=5.0),
            GradientGuide(weight=3.0),
            PerturbationGuide(masks=3, masks_per_step=3),
            SelectionGuide(complement=0.5),
        ]
    )
    assert {name: one.folder for name, one in again.items()} == {name: one.folder for name, one in first.items()}
    for change in (
        {"teacher": tiny_bert(seed=5)},
        {"rows": 19},
        {"max_length": 16},
        {"objectives": [PerturbationGuide(masks=4)]},
    ):
        with pytest.raises(AssertionError, match="built again"):
            build(**change)


def test_stale_lessons_are_refused(build: Any, tiny_bert: Any) -> None:
    lessons = build()["soft-labels"]
    with pytest.raises(StaleLessons, match="another teacher"):
        Lessons(lessons.folder, lessons.key | {"teacher": "other weights"})
    shard = next(lessons.folder.glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(StaleLessons, match="delete"):
        Lessons(lessons.folder)
    manifest = lessons.folder / "manifest.json"
    assert set(json.loads(manifest.read_text())) == {"key", "built", "shards"}
    manifest.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        Lessons(lessons.folder)


def test_an_empty_text_and_a_single_word_are_taught(build: Any, tokenizer: Any, tiny_bert: Any, tmp_path: Path) -> None:
    odd = Dataset.from_dict({"text": ["", "great", "a lovely film"], "label": [0, 1, 1]})
    lessons = build_lessons(OBJECTIVES, tiny_bert(), tokenizer, encode_dataset(odd, tokenizer), tmp_path, max_length=64)
    assert lessons["gradient"].read([0, 1, 2])["scores"].shape == (3, 1, 3)
    assert lessons["perturbation"].read([0, 1, 2])["keep"].shape == (3, 3, 3)
    assert lessons["perturbation"].read([0, 1])["keep"].tolist() == [[[True]] * 3, [[False]] * 3]
