"""What the `data` section adds to a task: evaluation sets from elsewhere, and wrong labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egkd.config_data import DataConfig
from egkd.data import TaskData
from egkd.data.loading import load_data


@pytest.fixture
def load(tmp_path: Path, write_csv: Any) -> Any:
    """Load 40 rows of three classes, or of scores, with more settings."""
    names = ["bad", "fair", "good"] * 14
    write_csv(tmp_path / "train.csv", text=[f"text {row}" for row in range(40)], label=names[:40])
    write_csv(tmp_path / "scores.csv", text=[f"text {row}" for row in range(40)], label=[row / 8 for row in range(40)])
    write_csv(tmp_path / "ties.csv", text=[f"text {row}" for row in range(40)], label=[row % 3 / 2 for row in range(40)])
    write_csv(tmp_path / "dev.csv", text=["one", "two", "three"], label=["good", "bad", "fair"])
    write_csv(tmp_path / "pairs.csv", sentence1=["far", "away"], sentence2=["here", "there"], label=["good", "fair"])

    def loaded(train: str = "train", **settings: Any) -> TaskData:
        dev = "dev" if train == "train" else "scores"
        also = {name: tmp_path / f"{file}.csv" for name, file in settings.pop("also_eval", {}).items()}
        given = {"train": tmp_path / f"{train}.csv", "eval": tmp_path / f"{dev}.csv", "also_eval": also}
        return load_data(DataConfig.model_validate(given | settings))

    return loaded


def test_files_from_elsewhere_are_judged_behind_the_first_set(load: Any, tmp_path: Path, write_csv: Any) -> None:
    write_csv(tmp_path / "other.csv", text=["far", "text 0"], label=["good", "fair"])
    write_csv(tmp_path / "one-sided.csv", text=["far", "away", "here"], label=["good"] * 3)
    data = load(also_eval={"elsewhere": "other"})
    assert list(data.evals) == ["dev", "elsewhere"]
    assert data.evals["elsewhere"]["text"] == ["far", "text 0"]
    assert data.evals["elsewhere"]["label"] == [2, 1]  # the task's own order, though "bad" is not among them
    assert data.evals["elsewhere"].features == data.evals["dev"].features
    assert "1 of 2 evaluation texts are also of elsewhere in the training data: scores may flatter" in data.notes
    assert len(load(also_eval={"elsewhere": "other"}, eval_limit=1).evals["elsewhere"]) == 1
    assert len(load(also_eval={"elsewhere": "one-sided"}).evals["elsewhere"]) == 3
    assert list(load(also_eval={"elsewhere": "other"}, held_out=9).evals) == ["held_out"]


def test_files_from_elsewhere_that_do_not_fit_are_refused(load: Any, tmp_path: Path, write_csv: Any) -> None:
    with pytest.raises(ValueError, match=r"data.also_eval.dev: the data has an evaluation set of this name"):
        load(also_eval={"dev": "dev"})
    with pytest.raises(ValueError, match=r"pairs.csv has pairs, the data has one text"):
        load(also_eval={"elsewhere": "pairs"})
    write_csv(tmp_path / "other.csv", text=["far"], label=["splendid"])
    with pytest.raises(ValueError, match="splendid"):
        load(also_eval={"elsewhere": "other"})


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_labels_becomes_wrong_and_the_same_every_time(load: Any, share: float) -> None:
    clean, noisy = load(), load(label_noise=share)
    before, after = np.array(clean.train["label"]), np.array(noisy.train["label"])
    assert (before != after).sum() == share * 40
    assert set(after) <= {0, 1, 2}
    assert noisy.train["text"] == clean.train["text"]
    assert noisy.train.features == clean.train.features
    assert noisy.evals["dev"]["label"] == clean.evals["dev"]["label"]
    assert load(label_noise=share).train["label"] == noisy.train["label"]
    if share:
        assert load(label_noise=share, seed=1).train["label"] != noisy.train["label"]
    if share == 1:  # both other classes, about equally often
        assert np.isin(np.bincount((after - before) % 3, minlength=3)[1:], range(10, 31)).all()


def test_wrong_scores_are_other_rows(load: Any) -> None:
    clean, noisy = load("scores"), load("scores", label_noise=0.5)
    before, after = np.array(clean.train["label"]), np.array(noisy.train["label"])
    assert (before != after).sum() == 20
    assert sorted(after) == sorted(before)
    assert noisy.train.features == clean.train.features


def test_wrong_scores_that_are_equal_are_not_counted(load: Any) -> None:
    clean, noisy = load("ties"), load("ties", label_noise=0.5)
    wrong = (np.array(clean.train["label"]) != np.array(noisy.train["label"])).sum()
    assert 0 < wrong < 20
    assert f"{wrong} of 40 labels to train on are made wrong" in noisy.notes


def test_noise_is_a_share(load: Any) -> None:
    with pytest.raises(ValueError, match="label_noise"):
        load(label_noise=1.5)
