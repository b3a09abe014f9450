"""Texts without labels: read, put behind the labelled ones, learnt from by every objective but gold labels."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from transformers import TrainingArguments

from egkd.config import resolve
from egkd.config_data import DataConfig
from egkd.data import Task, TaskData, as_dataset, has_label
from egkd.data.loading import load_data
from egkd.objectives import OBJECTIVES, Labels, Moment, SoftLabels
from egkd.predict import encode_dataset
from egkd.step import learn
from egkd.students.pruning import labelled
from egkd.text import collate
from egkd.train import DistillationTrainer

pytestmark = pytest.mark.usefixtures("calm_libraries")
MORE = ["a lovely film", "the cast was dull", "an ending that is not funny"]


@pytest.fixture
def shop(tmp_path: Path, write_csv: Any) -> Path:
    """Reviews to train and evaluate on, and texts without labels."""
    write_csv(tmp_path / "train.csv", review=["great", "awful", "lovely", "dull"], label=["good", "bad", "good", "bad"])
    write_csv(tmp_path / "dev.csv", review=["a lovely film", "boring"], label=["good", "bad"])
    (tmp_path / "more.txt").write_text("\n".join(MORE) + "\n\n")
    return tmp_path


def config(shop: Path, *files: str, **settings: Any) -> DataConfig:
    named = {"train": shop / "train.csv", "eval": shop / "dev.csv", "unlabeled": [shop / file for file in files]}
    return DataConfig.model_validate(named | settings)


def test_they_follow_the_labelled_rows_without_a_label(shop: Path) -> None:
    data = load_data(config(shop, "more.txt"))
    assert data.train["label"] == [1, 0, 1, 0]
    assert data.stream["text"] == [*data.train["text"], *MORE]
    assert data.stream["label"] == [1, 0, 1, 0, -100, -100, -100]
    assert data.evals["dev"]["label"] == [1, 0]
    assert any("3 texts without labels join the 4 with labels" in note for note in data.notes)
    assert any("1 of 2 evaluation texts are also among those without labels" in note for note in data.notes)


def test_without_any_nothing_changes(shop: Path) -> None:
    data = load_data(config(shop))
    assert data.stream is data.train


def test_a_score_that_is_not_known_is_nan() -> None:
    task = Task(name="likeness", kind="regression")
    train = as_dataset({"text": ["a", "b"], "label": [0.5, 4.0]}, task)
    data = TaskData(task=task, train=train, evals={}, unlabeled=Dataset.from_dict({"text": ["c"]}))
    assert data.stream["label"][:2] == [0.5, 4.0]
    assert math.isnan(data.stream["label"][2])
    assert [has_label(label) for label in data.stream["label"]] == [True, True, False]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_every_kind_of_file_is_read_by_its_column(shop: Path, write_csv: Any, ending: str) -> None:
    """By the column that was named for all files, whatever else is there."""
    columns = {"review": MORE, "text": ["x", "y", "z"], "stars": [1, 2, 3]}
    rows = Dataset.from_dict(columns)
    path = shop / f"more.{ending}"
    {
        "csv": lambda: write_csv(path, **columns),
        "tsv": lambda: rows.to_csv(path, sep="\t", index=False),
        "jsonl": lambda: rows.to_json(path),
        "json": lambda: path.write_text(json.dumps(rows.to_list())),
        "parquet": lambda: rows.to_parquet(path),
    }[ending]()
    data = load_data(config(shop, path.name, "more.txt", text="review"))
    assert data.stream["text"][4:] == MORE + MORE


def test_pairs_join_pairs_and_a_task_of_glue(shop: Path, write_csv: Any) -> None:
    rte = shop / "glue" / "RTE"
    rte.mkdir(parents=True)
    for split in ("train", "dev"):
        (rte / f"{split}.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\tIt rains.\tIt is wet.\tentailment\n")
    settings = {"task": "rte", "glue_dir": shop / "glue"}
    write_csv(shop / "pairs.csv", premise=["a"], hypothesis=["b"])
    data = load_data(DataConfig.model_validate(settings | {"unlabeled": shop / "pairs.csv"}))
    assert data.stream[1] == {"text": "a", "text_pair": "b", "label": -100}
    with pytest.raises(ValueError, match=r"more.txt has single texts, rte has pairs of texts"):
        load_data(DataConfig.model_validate(settings | {"unlabeled": shop / "more.txt"}))
    with pytest.raises(ValueError, match=r"pairs.csv has pairs of texts, .* has single texts"):
        load_data(config(shop, "pairs.csv"))


def test_labels_may_be_missing_altogether(shop: Path) -> None:
    """Then classes are those of the evaluation data, and gold labels cannot be learnt from."""
    data = load_data(DataConfig(eval=(shop / "dev.csv",), unlabeled=(shop / "more.txt",)))
    assert data.task.label_names == ("bad", "good")
    assert len(data.train) == 0
    assert data.stream["text"] == MORE
    with pytest.raises(ValueError, match="neither, expected either a task"):
        DataConfig(unlabeled=(shop / "more.txt",))
    settings = {"teacher_init": "encoder", "data": {"eval": "dev.csv", "unlabeled": "more.txt"}}
    with pytest.raises(ValueError, match="teacher_init and no labelled rows"):
        resolve(settings)


def test_only_labelled_rows_tell_what_matters_for_the_loss() -> None:
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": [-100, 1, -100]})
    assert labelled(rows, 3, 0)["text"] == ["b"]


def test_the_loss_of_labels_is_a_mean_over_all_rows(tiny_bert: Any, tokenizer: Any, tiny_data: Dataset) -> None:
    """So a labelled row is worth the same whoever shares its batch: 8 rows, 3 of them labelled."""
    labels = [1, -100, 0, -100, -100, 1, -100, -100]
    rows = tiny_data.select(range(8)).remove_columns("label").add_column("label", labels)
    batch = collate(list(encode_dataset(rows, tokenizer)), tokenizer.pad_token_id)
    moment = Moment(step=0, epoch=0, tokenizer=tokenizer)
    model = tiny_bert(layers=1)
    terms, logits = learn(model, [Labels(weight=2.0)], batch, {}, moment, steps=1, pad_token_id=tokenizer.pad_token_id)
    known = [row for row, label in enumerate(labels) if label >= 0]
    expected = -logits.log_softmax(1)[known, [labels[row] for row in known]].sum() * 2 / 8
    torch.testing.assert_close(terms["labels"], expected)


def test_the_trainer_refuses_labels_where_no_row_has_one(tiny_bert: Any, tokenizer: Any, tmp_path: Path) -> None:
    rows = Dataset.from_dict({"text": MORE, "label": [-100] * 3})
    settings: dict[str, Any] = {
        "model": tiny_bert(layers=1),
        "teacher": tiny_bert(layers=2),
        "args": TrainingArguments(output_dir=str(tmp_path / "out"), max_steps=1, use_cpu=True, report_to="none"),
        "train_dataset": rows,
        "processing_class": tokenizer,
    }
    with pytest.raises(ValueError, match=r"labels has weight 0\.5 and no row to train on has a label"):
        DistillationTrainer(**settings)
    trainer = DistillationTrainer(**settings, objectives=[Labels(weight=0.0), SoftLabels()])
    assert trainer.train().training_loss > 0


@pytest.mark.parametrize("classes", [2, 3, 1])
def test_every_other_objective_learns_from_them(
    tiny_bert: Any, tokenizer: Any, tiny_data: Dataset, tmp_path: Path, classes: int
) -> None:
    """Each one's loss of these rows is finite, and not 0."""
    none = -100 if classes > 1 else float("nan")
    rows = tiny_data.select(range(6)).remove_columns("label").add_column("label", [none] * 6)
    names = [name for name in OBJECTIVES if name != "labels" and not (name == "gkd" and classes == 1)]
    settings = {"selection": {"seed": 1}}
    trainer = DistillationTrainer(
        tiny_bert(num_labels=classes, layers=2, seed=1),
        TrainingArguments(output_dir=str(tmp_path / "out"), max_steps=1, logging_steps=1, use_cpu=True, report_to="none"),
        teacher=tiny_bert(num_labels=classes, layers=4),
        objectives=[OBJECTIVES[name](schedule={"every": 1}, **settings.get(name, {})) for name in names],
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()
    line = trainer.state.log_history[0]
    assert {name: line[f"loss/{name}"] for name in names if not line[f"loss/{name}"] > 0} == {}


@pytest.fixture
def run_of(shop: Path, save: Any, egkd: Any, quick: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    save(shop / "teacher", names=("good", "bad"), layers=3)  # in another order than the data's
    monkeypatch.chdir(shop)

    def run(*flags: Any) -> Any:
        return egkd(*flags, "--teacher", "teacher", "--eval", "dev.csv", "--unlabeled", "more.txt", *quick)

    return run


def test_a_run_learns_from_them_and_finds_its_lessons_built(run_of: Any, shop: Path) -> None:
    data = ["--train", "train.csv", "--lessons", "kept"]
    built = run_of("lessons", "build", *data)
    assert built.code == 0, built.err
    (store,) = (path for path in (shop / "kept").iterdir() if path.is_dir())
    before = {path.name: path.stat().st_mtime_ns for path in store.iterdir()}
    done = run_of("distill", "--student", "layers:1", *data, "--out", "run")
    assert done.code == 0, done.err
    assert "3 texts without labels join the 4 with labels" in " ".join(done.out.split())
    assert {path.name: path.stat().st_mtime_ns for path in store.iterdir()} == before
    assert [path for path in (shop / "kept").iterdir() if path.is_dir()] == [store]
    assert json.loads((store / "manifest.json").read_text())["key"]["rows"] == 7
    assert json.loads((shop / "run" / "training.json").read_text())["examples"] == 7
    assert yaml.safe_load((shop / "run" / "config.yaml").read_text())["data"]["unlabeled"] == ["more.txt"]


def test_a_run_on_them_alone(run_of: Any, shop: Path) -> None:
    refused = run_of("distill", "--student", "layers:1", "--out", "alone")
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert "no row to train on has a label" in refused.err
    assert not (shop / "alone").exists()
    done = run_of("distill", "--student", "layers:1", "--out", "alone", "--set", "objectives.labels.weight=0")
    assert done.code == 0, done.err
    assert json.loads((shop / "alone" / "training.json").read_text())["examples"] == 3


def test_a_teacher_is_fine_tuned_on_labelled_rows_alone(shop: Path, save: Any, egkd: Any, quick: list[str]) -> None:
    save(shop / "encoder", layers=1)
    files = ["--train", shop / "train.csv", "--eval", shop / "dev.csv", "--unlabeled", shop / "more.txt"]
    models = ["--teacher-init", shop / "encoder", "--student", "layers:1"]
    done = egkd("distill", *models, *files, *quick, "--set", "teach.per_device_train_batch_size=4", "--out", shop / "run")
    assert done.code == 0, done.err
    steps = [json.loads(line) for line in (shop / "run" / "teacher-log.jsonl").read_text().splitlines()]
    assert steps[0]["epoch"] == 1.0  # 4 rows in a batch of 4
