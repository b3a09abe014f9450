"""Changed copies of labelled texts: what becomes of words, and that every run with the same settings gets the same ones."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from egkd.config import check, resolve
from egkd.config_data import AugmentConfig
from egkd.data import Task, TaskData, as_dataset
from egkd.data.augment import augmented
from egkd.predict import encode_dataset
from egkd.text import unit_spans

pytestmark = pytest.mark.usefixtures("calm_libraries")
TASK = Task(name="reviews", kind="classification", label_names=("bad", "good"))
MASK = "[MASK]"


def data_of(texts: list[str], pairs: list[str] | None = None) -> TaskData:
    columns = {"text": texts} | ({"text_pair": pairs} if pairs else {}) | {"label": [0] * len(texts)}
    return TaskData(task=TASK, train=as_dataset(columns, TASK), evals={})


def copies_of(data: TaskData, seed: int = 0, **settings: Any) -> list[dict[str, str]]:
    made = augmented(data, AugmentConfig(**{"mask": 0, "replace": 0, "ngram": 0} | settings), seed, MASK)
    assert made.train is data.train
    assert made.unlabeled is not None
    return made.unlabeled.to_list()


def words(text: str) -> list[str]:
    return [text[a:b] for a, b in unit_spans(text)]


def test_none_by_default(tiny_data: Dataset) -> None:
    data = TaskData(task=TASK, train=tiny_data, evals={})
    assert augmented(data, AugmentConfig(), 0, MASK) is data


def test_every_word_masked_by_hand() -> None:
    data = data_of(["It's fine, isn't it?", "好 film", "..."])
    assert copies_of(data, copies=3, mask=1) == [{"text": "[MASK] [MASK], [MASK] [MASK]?"}, {"text": "[MASK] [MASK]"}]


def test_copies_follow_texts_without_labels_and_have_none_themselves() -> None:
    data = data_of(["a b", "c d"])
    data = TaskData(task=TASK, train=data.train, evals={}, unlabeled=Dataset.from_dict({"text": ["more"]}))
    made = augmented(data, AugmentConfig(copies=1, mask=1, replace=0, ngram=0), 0, MASK)
    assert made.stream["text"] == ["a b", "c d", "more", "[MASK] [MASK]", "[MASK] [MASK]"]
    assert made.stream["label"] == [0, 0, -100, -100, -100]


def test_words_change_as_often_as_asked() -> None:
    """12,000 words, of which 0.1 are masked and 0.3 replaced; a replacement may be the same word."""
    text = " ".join(f"w{number}" for number in range(300))
    made = copies_of(data_of([text]), copies=40, mask=0.1, replace=0.3)
    assert len(made) == 40
    changed = [(old, new) for copy in made for old, new in zip(words(text), copy["text"].split(), strict=True)]
    masked = sum(new == MASK for _, new in changed) / len(changed)
    replaced = sum(new not in (old, MASK) for old, new in changed) / len(changed)
    assert masked == pytest.approx(0.1, abs=4 * np.sqrt(0.1 * 0.9 / len(changed)))
    assert replaced == pytest.approx(0.3 * 299 / 300, abs=4 * np.sqrt(0.3 * 0.7 / len(changed)))


def test_replacements_are_as_frequent_as_in_the_labelled_texts() -> None:
    data = data_of(["yes yes yes no, " * 25] * 4)
    drawn = Counter(word for copy in copies_of(data, copies=20, replace=1) for word in words(copy["text"]) if word.isalpha())
    assert set(drawn) == {"yes", "no"}
    total = drawn.total()
    assert drawn["no"] / total == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / total))


def test_a_part_of_successive_words_is_kept() -> None:
    text = "one, two three four: five six seven eight"
    parts = {copy["text"] for copy in copies_of(data_of([text]), copies=300, ngram=1, longest=3)}
    every = {"one, two three"[: len(part)] for part in ("one", "one, two", "one, two three")}
    assert every <= parts
    assert all(part in text and 1 <= sum(word.isalpha() for word in words(part)) <= 3 for part in parts)
    assert len(parts) == 8 + 7 + 6  # no part is left out


def test_texts_of_a_pair_change_in_turn() -> None:
    made = copies_of(data_of(["a b"], ["c d"]), copies=6, mask=1)
    changed = {"text": "[MASK] [MASK]", "text_pair": "[MASK] [MASK]"}
    assert made == [changed | {"text_pair": "c d"}, changed | {"text": "a b"}, changed]


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=1, max_size=4), st.integers(0, 5))
def test_any_text_can_be_changed_and_always_is_the_same_way(texts: list[str], seed: int) -> None:
    data, settings = data_of(texts), {"copies": 3, "mask": 0.2, "replace": 0.3, "ngram": 0.5}
    made = copies_of(data, seed, **settings)
    assert made == copies_of(data, seed, **settings)
    rows = [copy["text"] for copy in made]
    assert len(rows) <= 3 * len(texts)
    assert all(rows)


def test_seeds_differ(tiny_data: Dataset) -> None:
    data = TaskData(task=TASK, train=tiny_data, evals={})
    made = [copies_of(data, seed, copies=2, mask=0.3) for seed in (0, 1)]
    assert made[0] != made[1]


def test_a_masked_word_is_one_token_to_the_model(tokenizer: Any, bpe_tokenizer: Any) -> None:
    for reader in (tokenizer, bpe_tokenizer):
        text = f"the {reader.mask_token}, and {reader.mask_token}."
        (ids,) = encode_dataset(Dataset.from_dict({"text": [text]}), reader)["input_ids"]
        assert ids.count(reader.mask_token_id) == 2


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"copies": -1}, "data.augment.copies"),
        ({"copies": 1, "mask": 0.6, "replace": 0.5}, "found mask 0.6 and replace 0.5, expected a sum of at most 1"),
        ({"copies": 2, "mask": 0, "replace": 0, "ngram": 0}, "found 2 copies that nothing changes"),
        ({"copy": 2}, "unknown setting 'data.augment.copy'; did you mean 'copies'?"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=r"data\.augment") as caught:
        resolve({"teacher": "t", "data": {"task": "sst2", "augment": settings}})
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert check(AugmentConfig, {}).copies == 0


@pytest.fixture
def run_of(tmp_path: Path, save: Any, write_csv: Any, egkd: Any, quick: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    save(tmp_path / "teacher", layers=2)
    texts = {"text": ["a great film", "an awful film", "lovely, really", "dull"], "label": ["positive", "negative"] * 2}
    write_csv(tmp_path / "train.csv", **texts)
    monkeypatch.chdir(tmp_path)

    def run(*flags: Any, student: str = "layers:1", mask: float = 0.5) -> Any:
        copies = [part for each in ("copies=3", f"mask={mask}") for part in ("--set", f"data.augment.{each}")]
        files = ["--train", "train.csv", "--eval", "train.csv", "--teacher", "teacher", "--student", student]
        return egkd(*flags, *files, *copies, *quick)

    return run


def test_runs_share_the_copies_and_their_lessons(run_of: Any, tmp_path: Path) -> None:
    built = run_of("lessons", "build", "--lessons", "lessons")
    assert built.code == 0, built.err
    for name, flags in (("plain", ["--seed", 1]), ("guided", ["--guide", "perturbation", "--seed", 2])):
        done = run_of("distill", *flags, "--out", name)
        assert done.code == 0, done.err
        assert "4 rows with labels and" in " ".join(done.out.split())
    rows = {json.loads((tmp_path / name / "training.json").read_text())["examples"] for name in ("plain", "guided")}
    assert len(rows) == 1
    assert 12 < rows.pop() <= 16
    stores = [path.name.partition("-")[0] for path in (tmp_path / "lessons").iterdir() if path.is_dir()]
    assert sorted(stores) == ["perturbation", "soft"]  # one each


def test_a_mask_that_a_model_would_misread_is_refused(run_of: Any, tmp_path: Path, tiny_bert: Any, bpe_tokenizer: Any) -> None:
    tiny_bert(tokenizer=bpe_tokenizer, layers=1).save_pretrained(tmp_path / "other")
    bpe_tokenizer.save_pretrained(tmp_path / "other")
    answer = run_of("distill", "--out", "run", student="other")
    assert answer.code == 2
    assert "writes [MASK] for a word, as teacher does, and the mask token of other is <mask>; set it to 0" in answer.err
    assert not (tmp_path / "run").exists()
    assert run_of("distill", "--out", "run", student="other", mask=0).code == 0
