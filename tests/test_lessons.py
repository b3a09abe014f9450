"""Lessons on disk: equal to the live teacher, resumed after a kill, refused when stale."""

import copy
import errno
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from filelock import Timeout
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from egkd.lessons import Lessons, StaleLessons, build_lessons, store
from egkd.lessons import build as module
from egkd.lessons.fingerprints import fingerprint_model, fingerprint_tokenizer
from egkd.lessons.store import lock_of, read_shard
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
    def build(
        teacher: Any = None, rows: int = 20, objectives: list[Objective] | None = None, data: Any = None, **settings: Any
    ) -> Any:
        cutter = settings.pop("tokenizer", tokenizer)
        return build_lessons(
            objectives or OBJECTIVES,
            teacher or tiny_bert(),
            cutter,
            encode_dataset(data or tiny_data.select(range(rows)), cutter),
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


def test_lessons_in_bfloat16_are_others_and_nearly_the_same(build: Any) -> None:
    exact = build()
    rough = build(precision="bfloat16")
    for name, lessons in exact.items():
        assert rough[name].folder != lessons.folder
        one, other = lessons.read(range(20)), rough[name].read(range(20))
        field = "scores" if name == "gradient" else "outputs" if "outputs" in one else "logits"
        assert not torch.equal(one[field], other[field])
        both = np.corrcoef(one[field].flatten(), other[field].flatten())
        assert both[0, 1] > 0.98, name


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


def test_rows_are_read_in_any_order_and_by_another_process(build: Any) -> None:
    lessons = build()["perturbation"]
    whole = lessons.read(range(20))
    rows = [19, 0, 7, 8, 15, 7]
    copy = pickle.loads(pickle.dumps(lessons))
    for name, values in whole.items():
        for each in (lessons, copy):
            some = each.read(torch.tensor(rows))[name]
            assert torch.equal(some, values[rows][tuple(map(slice, some.shape))])
            assert some.count_nonzero() == values[rows].count_nonzero()  # what was cut off is padding
    assert len(pickle.dumps(lessons)) < 1000
    assert lessons.fields == tuple(whole)
    assert list(lessons.read([3], fields=["scale"])) == ["scale"]
    for row in (-1, 20):
        with pytest.raises(IndexError, match=f"row {row}, expected one of the 20"):
            lessons.read([row])


def test_the_size_is_told_before_the_first_byte(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    written: list[Path] = []
    monkeypatch.setattr(module, "SHARD_ROWS", 4096)
    guesses: list[float] = []
    guess = module.estimate_bytes
    monkeypatch.setattr(module, "estimate_bytes", lambda *given: guesses.append(guess(*given)) or guesses[-1])
    lessons = build(rows=90, tell=lambda line: told.append(line) or written.extend((tmp_path / "lessons").rglob("shard-*")))
    assert [line.split(": about ")[0] for line in told] == [f"lessons of {name}" for name in lessons]
    assert all(line.endswith(" for 90 examples") for line in told)
    assert written == []
    for one, guessed in zip(lessons.values(), guesses, strict=True):
        real = read_shard(next(one.folder.glob("shard-*"))).nbytes
        assert guessed == pytest.approx(real, abs=32)  # Arrow's last offsets and last bits


def test_lessons_that_do_not_fit_are_not_begun(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 100))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"lessons of soft-labels need about 160 bytes, .* has 100 bytes free"):
        build(objectives=[SoftLabels()])
    assert list((tmp_path / "lessons").rglob("shard-*")) == []


def test_a_full_disk_is_one_line_and_keeps_whole_shards(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = store.pa.OSFile

    def full(path: str, *rest: Any) -> Any:
        if "shard-00001" in path:
            raise OSError(errno.ENOSPC, "No space left on device")
        return honest(path, *rest)

    monkeypatch.setattr(store.pa, "OSFile", full)
    with pytest.raises(ValueError, match=r"cannot write lessons .*No space left.* MiB free\); whole shards are kept") as failed:
        build(objectives=[SoftLabels()])
    assert "\n" not in str(failed.value)
    assert [path.name for path in (tmp_path / "lessons").rglob("shard-*")] == ["shard-00000.arrow"]


def test_numbers_beyond_float16_are_refused(build: Any, tiny_bert: Any) -> None:
    teacher = tiny_bert(num_labels=1)
    with torch.no_grad():
        teacher.classifier.bias.fill_(250_000.0)
    with pytest.raises(ValueError, match=r"lesson of soft-labels for row \d+, logits: found 2.*up to 65504") as failed:
        build(teacher, objectives=[SoftLabels()])
    assert "\n" not in str(failed.value)


def test_lessons_are_built_once_and_only_when_something_changed(
    build: Any, tiny_bert: Any, tokenizer: Any, tiny_data: Dataset, monkeypatch: Any
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("built again")

    few, left = tiny_data.select(range(20)), copy.deepcopy(tokenizer)
    left.truncation_side = "left"
    paired = few.add_column("text_pair", list(few["text"])[::-1])
    build(data=paired)
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
        {"data": few.select(range(19, -1, -1))},  # lessons are found by row
        {"data": Dataset.from_dict({"text": ["another", *few["text"][1:]], "label": few["label"]})},
        {"data": paired.rename_columns({"text": "text_pair", "text_pair": "text"})},
        {"tokenizer": left},
        {"teacher": tiny_bert(seed=5)},
        {"rows": 19},
        {"max_length": 16},
        {"objectives": [PerturbationGuide(masks=4)]},
    ):
        with pytest.raises(AssertionError, match="built again"):
            build(**change)


def test_finished_lessons_are_free_while_others_are_built(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cells of an experiment share soft labels, and each builds its own guide's lessons beside the other."""
    lessons = build(objectives=[SoftLabels()])["soft-labels"]
    seen: list[bool] = []
    teach = GradientGuide.teach

    def look(self: GradientGuide, *what: Any) -> Any:
        (own,) = lessons.folder.parent.glob("gradient-*")
        for folder in (lessons.folder, own):
            lock = lock_of(folder)
            try:
                lock.acquire(timeout=0)
                lock.release()
                seen.append(True)
            except Timeout:
                seen.append(False)
        return teach(self, *what)

    monkeypatch.setattr(GradientGuide, "teach", look)
    build(objectives=[SoftLabels(), GradientGuide()])
    assert set(zip(seen[::2], seen[1::2], strict=True)) == {(True, False)}


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
    said = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(said | {"key": said["key"] | {"format": 1}}))
    with pytest.raises(StaleLessons, match=r"have format 1, expected 2; delete the folder"):
        Lessons(lessons.folder)
    manifest.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        Lessons(lessons.folder)


def test_an_empty_text_and_a_single_word_are_taught(build: Any, tokenizer: Any, tiny_bert: Any, tmp_path: Path) -> None:
    odd = Dataset.from_dict({"text": ["", "great", "a lovely film"], "label": [0, 1, 1]})
    lessons = build_lessons(OBJECTIVES, tiny_bert(), tokenizer, encode_dataset(odd, tokenizer), tmp_path, max_length=64)
    assert lessons["gradient"].read([0, 1, 2])["scores"].shape == (3, 1, 3)
    assert lessons["perturbation"].read([0, 1, 2])["keep"].shape == (3, 3, 3)
    assert lessons["perturbation"].read([0, 1])["keep"].tolist() == [[[True]] * 3, [[False]] * 3]


def test_what_a_tokenizer_cuts_off_and_masks_with_tells_it_from_others(tokenizer: Any) -> None:
    found = {fingerprint_tokenizer(tokenizer)}
    for name, value in (("truncation_side", "left"), ("mask_token", "the"), ("pad_token", "the")):
        other = copy.deepcopy(tokenizer)
        setattr(other, name, value)
        found.add(fingerprint_tokenizer(other))
    unnumbered = copy.deepcopy(tokenizer)
    unnumbered.model_input_names = ["input_ids", "attention_mask"]
    found.add(fingerprint_tokenizer(unnumbered))
    assert len(found) == 5
    tokenizer(["a text", "another one"], padding=True, truncation=True, max_length=3)
    assert fingerprint_tokenizer(tokenizer) in found


def test_what_a_decoder_takes_for_padding_tells_it_from_others() -> None:
    """It decides which token is read, and is no weight."""
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 16,
    }
    model = Qwen2ForSequenceClassification(Qwen2Config(vocab_size=20, pad_token_id=0, **sizes))
    before = fingerprint_model(model)
    model.config.pad_token_id = 2
    assert fingerprint_model(model) != before
