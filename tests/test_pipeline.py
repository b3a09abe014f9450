"""The main job from outside: the commands on tiny models and data, what they leave behind, and what a kill costs."""

import errno
import importlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from datasets import Dataset
from filelock import FileLock
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from egkd.config import resolve
from egkd.data import Task, TaskData
from egkd.objectives import OBJECTIVES, GradientGuide, Labels, SoftLabels
from egkd.runs import check_free, claim

pytestmark = pytest.mark.usefixtures("calm_libraries")
ANSWERS = ["labels", "soft-labels"]
GUIDES = ["gradient", "perturbation", "selection"]
FILES = {"config.yaml", "environment.json", "log.jsonl", "training.json"}  # and what comparing leaves
FILES |= {"metrics.json", "examples.json", "predictions.npz", "report.html"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, save: Any, write_csv: Any, tiny_data: Dataset) -> Path:
    """A folder with a teacher, another small model, and reviews to train and evaluate on."""
    folder = tmp_path_factory.mktemp("shop")
    save(folder / "teacher", dropout=0.1)
    save(folder / "small", layers=1, width=16, seed=5)
    names = ["negative" if label == 0 else "positive" for label in tiny_data["label"]]
    write_csv(folder / "train.csv", text=tiny_data["text"][:64], label=names[:64])
    write_csv(folder / "dev.csv", text=tiny_data["text"][64:], label=names[64:])
    return folder


@pytest.fixture(scope="module")
def distil(shop: Path, egkd: Any, quick: list[str]) -> Callable[..., Path]:
    """Run `egkd distill` on the reviews into a folder of this name, once; the folder of a finished run comes back."""

    def run(name: str, *flags: Any, teacher: str = "teacher", student: str = "layers:2", again: bool = False) -> Path:
        out = shop / "runs" / name
        if again or not out.exists():
            data = ["--train", shop / "train.csv", "--eval", shop / "dev.csv"]
            models = ["--teacher", shop / teacher, "--student", student]
            answer = egkd("distill", *models, *data, *quick, *flags, "--out", out)
            assert answer.code == 0, answer.err
            assert str(out / "report.html") in "".join(answer.out.split())
        return out

    return run


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("this was done already")


@pytest.mark.parametrize("guides", [[], ["none"], *([guide] for guide in GUIDES), GUIDES], ids="+".join)
def test_a_run_with_each_guide_logs_every_term_and_describes_itself(distil: Any, guides: list[str]) -> None:
    run = distil("guides-" + "-".join(guides), *(part for guide in guides for part in ("--guide", guide)))
    names = [*ANSWERS, *(guide for guide in guides if guide != "none")]
    steps = [line for line in log(run) if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    for line in steps:
        terms = {name: value for name, value in line.items() if name.startswith("loss/")}
        assert set(terms) == {f"loss/{name}" for name in names}
        assert sum(terms.values()) == pytest.approx(line["loss"], abs=2e-3)
    assert any("eval_dev_accuracy" in line for line in log(run))
    assert {path.name for path in run.iterdir()} == FILES | {"student"}
    kept = read(run / "metrics.json")["objectives"]
    assert {objective["name"] for objective in kept} == set(names)
    assert kept == [{"name": each["name"], **OBJECTIVES[each["name"]]().model_dump()} for each in kept]


def test_the_guide_changes_the_student(distil: Any) -> None:
    students = [contents(distil(f"guides-{guide}", "--guide", guide) / "student")["model.safetensors"] for guide in GUIDES]
    plain = contents(distil("guides-") / "student")["model.safetensors"]
    assert len({plain, *students}) == 4
    assert plain == contents(distil("guides-none", "--guide", "none") / "student")["model.safetensors"]


def test_metrics_hold_what_a_reader_needs(distil: Any, shop: Path) -> None:
    metrics = read(distil("guides-gradient", "--guide", "gradient") / "metrics.json")
    assert metrics["task"]["label_names"] == ["negative", "positive"]
    assert metrics["training"]["steps"] == 4
    assert metrics["training"]["examples"] == 64
    for role in ("teacher", "student"):
        found = metrics[role]
        assert 0 <= found["scores"]["dev"]["accuracy"] <= 1
        weights = shop / "teacher" if role == "teacher" else shop / "runs" / "guides-gradient" / "student"
        assert found["bytes"] == (weights / "model.safetensors").stat().st_size
        assert found["parameters"] == sum(value.numel() for value in load_file(weights / "model.safetensors").values())
        assert found["latency"]["1"]["ms_per_example"] > 0
        assert {"device", "dtype", "threads", "rounds"} <= set(found["latency"]["conditions"])
    student = metrics["student"]
    estimates = [student["fidelity"]["dev"][name] for name in ("agreement", "kl")]
    for explainer in ("input-x-gradient", "occlusion"):
        estimates += [student["explanations"][explainer]["all"][name] for name in ("spearman", "top20")]
    for estimate in estimates:
        assert math.isfinite(estimate["mean"])
        assert math.isfinite(estimate["se"])
        assert estimate["n"] > 1
    assert student["fidelity"]["dev"]["agreement"]["n"] == 32
    assert student["parameters"] < metrics["teacher"]["parameters"]


def test_a_twin_of_the_teacher_bounds_what_can_be_asked(
    distil: Any, shop: Path, save: Any, egkd: Any, quick: list[str], tmp_path: Path
) -> None:
    save(shop / "twin", seed=8)
    told = read(distil("twin", "--set", f"evaluate.twin={shop / 'twin'}") / "metrics.json")["student"]["explanations"]
    for figures in told.values():
        assert figures["ceiling"]["spearman"]["n"] == figures["ceiling"]["top20"]["n"] > 1
        assert figures["ceiling_same_class"]["spearman"]["n"] <= figures["ceiling"]["spearman"]["n"]
        assert figures["ceiling"] != figures["all"]
    save(tmp_path / "three", ("bad", "fair", "good"))
    data = ["--train", shop / "train.csv", "--eval", shop / "dev.csv"]
    twin = ["--set", f"evaluate.twin={tmp_path / 'three'}"]
    answer = egkd("distill", "--teacher", shop / "teacher", *data, *quick, *twin, "--out", tmp_path / "run")
    assert answer.code == 2
    assert "three" in answer.err
    assert not (tmp_path / "run").exists()


def test_figures_are_those_of_the_models_themselves(distil: Any, shop: Path) -> None:
    """The accuracy of both models and their agreement, found again by transformers alone."""
    run = distil("guides-gradient", "--guide", "gradient")
    rows = [line.rsplit(",", 1) for line in (shop / "dev.csv").read_text().splitlines()[1:]]
    texts, labels = [text.strip('"') for text, _ in rows], [label for _, label in rows]
    answers = {}
    kept = np.load(run / "predictions.npz", allow_pickle=False)
    assert [("negative", "positive")[label] for label in kept["dev/labels"]] == labels
    for role, folder in (("teacher", shop / "teacher"), ("student", run / "student")):
        model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        with torch.no_grad():
            logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
        assert np.allclose(kept[f"dev/{role}"], torch.stack(logits), atol=1e-4)
        answers[role] = [model.config.id2label[int(logit.argmax())] for logit in logits]
        accuracy = sum(answer == label for answer, label in zip(answers[role], labels, strict=True)) / len(labels)
        assert read(run / "metrics.json")[role]["scores"]["dev"]["accuracy"] == pytest.approx(accuracy)
    same = sum(map(str.__eq__, answers["teacher"], answers["student"])) / len(labels)
    assert read(run / "metrics.json")["student"]["fidelity"]["dev"]["agreement"]["mean"] == pytest.approx(same)


def test_the_student_is_an_ordinary_folder(distil: Any) -> None:
    folder = distil("guides-gradient", "--guide", "gradient") / "student"
    config = read(folder / "config.json")
    assert config["num_hidden_layers"] == 2
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert "auto_map" not in config
    assert {"model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {path.name for path in folder.iterdir()}
    assert not (folder / "training_args.bin").exists()


def test_config_and_environment_of_a_run(distil: Any, shop: Path) -> None:
    run = distil("guides-gradient", "--guide", "gradient")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert {name: settings["weight"] for name, settings in config["objectives"].items()} == {
        "labels": Labels().weight,
        "soft-labels": SoftLabels().weight,
        "gradient": GradientGuide().weight,
    }
    assert config["train"]["learning_rate"] == 1e-3
    assert config["teacher"] == str(shop / "teacher")
    environment = read(run / "environment.json")
    assert environment["torch"] == torch.__version__.partition("+")[0] or environment["torch"] == torch.__version__
    assert {"python", "transformers", "egkd", "seed", "cpu_count"} <= set(environment)


def test_the_report_is_one_page_of_its_own(distil: Any) -> None:
    run = distil("guides-gradient", "--guide", "gradient")
    page = (run / "report.html").read_text()
    assert 'src="http' not in page
    for example in read(run / "examples.json"):
        assert example["text"].split()[1] in page
    assert len(read(run / "examples.json")) == 3


def test_a_finished_run_is_left_as_it_is(distil: Any, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = distil("guides-")
    before = contents(run), contents(shop / "runs" / "lessons")
    monkeypatch.setattr(transformers.Trainer, "train", never)
    monkeypatch.setattr("egkd.pipeline.compare", never)
    distil("guides-", again=True)
    assert (contents(run), contents(shop / "runs" / "lessons")) == before


def test_a_second_student_reuses_the_lessons(distil: Any, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distil("guides-perturbation", "--guide", "perturbation")
    before = contents(shop / "runs" / "lessons")
    monkeypatch.setattr("egkd.lessons.build.write_shard", never)
    run = distil("another", "--guide", "perturbation", student=str(shop / "small"))
    assert contents(shop / "runs" / "lessons") == before
    assert read(run / "student" / "config.json")["num_hidden_layers"] == 1


def test_lessons_go_where_they_are_wanted(distil: Any, shop: Path) -> None:
    distil("elsewhere", "--lessons", shop / "mine")
    (store,) = (path for path in (shop / "mine").iterdir() if path.is_dir())
    assert store.name.startswith("soft-labels-")


def test_rows_held_out_come_with_a_word_about_a_teacher_that_may_know_them(egkd: Any, shop: Path, quick: list[str]) -> None:
    said = {}
    models = ["--teacher", shop / "teacher", "--student", "layers:1", *quick]
    data = ["--train", shop / "train.csv", "--eval", shop / "dev.csv"]
    for name, flags in {"held": ["--set", "data.held_out=16"], "dev": []}.items():
        answer = egkd("distill", *models, *data, *flags, "--out", shop / name)
        assert answer.code == 0, answer.err
        said[name] = " ".join((answer.out + answer.err).split())
    assert "the teacher was trained on rows held out" in said["held"]
    assert "the teacher was trained on rows held out" not in said["dev"]


def test_a_folder_is_worked_in_by_one_process_at_a_time(egkd: Any, shop: Path, quick: list[str]) -> None:
    out = shop / "locked"
    out.mkdir()
    asked = ["--teacher", shop / "teacher", "--student", "layers:1", "--train", shop / "train.csv", "--eval", shop / "dev.csv"]
    with FileLock(out / ".lock"):
        answer = egkd("distill", *asked, *quick, "--out", out)
    assert (answer.code, "is being worked on by another process; wait for it" in " ".join(answer.err.split())) == (2, True), (
        answer.err
    )


def test_a_run_does_not_go_on_with_other_rows_or_another_teacher(
    egkd: Any, shop: Path, quick: list[str], save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("egkd.pipeline._learned", _interrupt)
    rows, teacher = (tmp_path / name for name in ("train.csv", "teacher"))
    asked = ["--teacher", teacher, "--student", "layers:1", "--train", rows, "--eval", shop / "dev.csv", *quick]
    shutil.copytree(shop / "teacher", teacher)
    shutil.copy(shop / "train.csv", rows)

    def again() -> str:
        answer = egkd("distill", *asked, "--out", tmp_path / "run")
        assert answer.code == (130 if "interrupted" in answer.err else 2)
        return " ".join(answer.err.split())

    assert "interrupted" in again()
    assert "interrupted" in again()
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text(
        "".join([*lines[:-1], lines[-1].replace("positive", "x").replace("negative", "positive").replace("x", "negative")])
    )
    assert "was begun with other contents of rows; name another --out" in again()
    rows.write_text("".join(lines))
    assert "interrupted" in again()
    shutil.rmtree(teacher)
    save(teacher, layers=2, seed=11)
    assert "was begun with other contents of teacher; name another --out" in again()


def test_what_is_asked_for_reaches_the_training(
    egkd: Any, shop: Path, quick: list[str], save: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def trainer(model: Any, arguments: Any, **settings: Any) -> None:
        seen.update(settings, model=model)
        raise ValueError("seen")

    monkeypatch.setattr("egkd.pipeline.DistillationTrainer", trainer)
    other = save(shop / "other", seed=7)
    models = ["--teacher", shop / "teacher", "--teacher", other, "--teacher-weights", "3,1", "--student", "layers:1"]
    data = ["--train", shop / "train.csv", "--eval", shop / "dev.csv"]
    asked = ["--set", "student_dropout=0.35", "--set", "lessons_precision=bfloat16", "--out", shop / "asked"]
    assert "seen" in egkd("distill", *models, *data, *quick, *asked).err
    assert tuple(seen["teacher_weights"]) == (3.0, 1.0)
    assert seen["lessons_precision"] == "bfloat16"
    assert {module.p for module in seen["model"].modules() if isinstance(module, torch.nn.Dropout)} == {0.35}
    assert seen["max_length"] == 32
    for settings, precision in (([], "float32"), (["--set", "train.bf16=true"], "bfloat16")):
        assert "seen" in egkd("distill", *models, *data, *quick, *settings, "--out", shop / f"asked-{precision}").err
        assert seen["lessons_precision"] == precision
        assert yaml.safe_load((shop / f"asked-{precision}" / "config.yaml").read_text())["lessons_precision"] == precision


def test_runs_of_several_seeds_are_explained_on_the_same_examples(distil: Any) -> None:
    shown = [
        {row["text"] for row in read(distil(f"seed-{seed}", "--seed", seed, "--set", "evaluate.shown=6") / "examples.json")}
        for seed in (0, 1)
    ]
    assert shown[0] == shown[1]


def test_what_a_full_disk_left_behind_is_no_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve({"teacher": "t", "student": "layers:1", "data": {"task": "sst2"}})

    def full(self: Path, *_: Any, **__: Any) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(ValueError, match="No space left on device"):
            claim(tmp_path / "run", config)
    assert not list((tmp_path / "run").iterdir())
    (tmp_path / "run" / ".lock").touch()
    assert not check_free(tmp_path / "run", config)


def test_killed_after_training_only_the_comparison_is_made(
    distil: Any, egkd: Any, monkeypatch: pytest.MonkeyPatch, shop: Path, quick: list[str]
) -> None:
    whole = distil("guides-perturbation", "--guide", "perturbation")
    flags = ["--guide", "perturbation"]
    with monkeypatch.context() as patch:
        patch.setattr("egkd.pipeline.compare", _interrupt)
        with pytest.raises(AssertionError, match="interrupted"):
            distil("killed", *flags)
    out = shop / "runs" / "killed"
    assert not (out / "metrics.json").exists()
    student = contents(out / "student")
    (out / "checkpoints" / "checkpoint-9").mkdir(parents=True)  # as if killed before they were deleted
    with monkeypatch.context() as patch:
        patch.setattr(transformers.Trainer, "train", never)
        patch.setattr("egkd.pipeline.build_student", never)
        distil("killed", *flags, again=True)
    assert not (out / "checkpoints").exists()
    assert contents(out / "student") == student == contents(whole / "student")
    found, expected = read(out / "metrics.json"), read(whole / "metrics.json")
    for part in ("scores", "fidelity", "explanations", "parameters"):
        assert found["student"].get(part) == expected["student"].get(part)


def test_models_are_compared_where_students_are_trained(distil: Any, monkeypatch: pytest.MonkeyPatch, shop: Path) -> None:
    """On the GPU of a run that has one."""
    moved: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr("egkd.pipeline.compare", _interrupt)
        with pytest.raises(AssertionError, match="interrupted"):
            distil("placed")
        patch.setattr(transformers.TrainingArguments, "device", torch.device("cuda", 0))
        patch.setattr(torch.nn.Module, "to", lambda self, place: moved.append(place) or self)
        with pytest.raises(AssertionError, match="interrupted"):
            distil("placed", again=True)
    assert [place for place in moved if isinstance(place, torch.device)] == [torch.device("cuda", 0)] * 2


def _interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("steps", [3, 1], ids=["with a checkpoint", "before the first"])
def test_interrupted_training_ends_in_the_same_student(
    distil: Any, shop: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    flags = ["--guide", "gradient", "--set", "train.save_steps=2"]
    whole = distil("uninterrupted", *flags)
    done: list[int] = []
    step = transformers.Trainer.training_step

    def stopping(self: Any, *arguments: Any, **named: Any) -> Any:
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(self.state.global_step)
        return step(self, *arguments, **named)

    name = f"interrupted-{steps}"
    with monkeypatch.context() as patch:
        patch.setattr(transformers.Trainer, "training_step", stopping)
        with pytest.raises(AssertionError, match="the same command goes on"):
            distil(name, *flags)
    out = shop / "runs" / name
    assert not (out / "student").exists()
    cut_off = out / "checkpoints" / "checkpoint-9"  # a kill while a later checkpoint was written
    cut_off.mkdir(parents=True)
    (cut_off / "model.safetensors").write_bytes(b"half")
    taken: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(
            transformers.Trainer,
            "training_step",
            lambda self, *rest, **named: taken.append(self.state.global_step) or step(self, *rest, **named),
        )
        distil(name, *flags, again=True)
    assert taken == ([2, 3] if steps == 3 else [0, 1, 2, 3])
    assert contents(out / "student") == contents(whole / "student")
    assert [line["loss"] for line in log(out) if "loss" in line] == [line["loss"] for line in log(whole) if "loss" in line]
    assert not (out / "checkpoints").exists()


def test_the_best_checkpoint_is_told_by_the_first_evaluation_set(distil: Any) -> None:
    """Trainer would look for `eval_loss`, which data sets with names do not have."""
    best = "load_best_model_at_end=true eval_strategy=steps eval_steps=1 save_steps=1 learning_rate=3e-2"
    flags = [part for each in best.split() for part in ("--set", f"train.{each}")]
    run = distil("best", *flags, "--set", "train.metric_for_best_model=accuracy", "--set", "train.max_steps=5")
    measured = [line["eval_dev_accuracy"] for line in log(run) if "eval_dev_accuracy" in line]
    assert len(measured) == 5
    assert read(run / "metrics.json")["student"]["scores"]["dev"]["accuracy"] == pytest.approx(max(measured), abs=1e-4)
    distil("best-loss", *flags, "--set", "train.max_steps=2")


def test_settings_come_from_a_file_with_flags_and_assignments_over_it(
    egkd: Any, shop: Path, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "teacher": str(shop / "teacher"),
        "student": "layers:0,2",
        "data": {"train": str(shop / "train.csv"), "eval": [str(shop / "dev.csv")], "train_limit": 40},
        "objectives": {"gradient": {"weight": 2.0, "distance": "mse"}},
        "seed": 3,
    }
    file = tmp_path / "my.yaml"
    file.write_text(yaml.safe_dump(settings))
    answer = egkd(
        "distill", file, *quick, "--set", "objectives.gradient.weight=5e-1", "--train-limit", 24, "--out", tmp_path / "a"
    )
    assert answer.code == 0, answer.err
    config = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    gradient = config["objectives"]["gradient"]
    assert (gradient["weight"], gradient["distance"], gradient["attribution"]) == (0.5, "mse", "input-x-gradient-norm")
    assert (config["seed"], config["data"]["train_limit"]) == (3, 24)
    metrics = read(tmp_path / "a" / "metrics.json")
    assert metrics["training"]["examples"] == 24
    (gradient,) = (each for each in metrics["objectives"] if each["name"] == "gradient")
    assert (gradient["weight"], gradient["distance"]) == (0.5, "mse")
    # a resolved config is a settings file like others
    answer = egkd("distill", tmp_path / "a" / "config.yaml", "--out", tmp_path / "b")
    assert answer.code == 0, answer.err
    assert contents(tmp_path / "b" / "student") == contents(tmp_path / "a" / "student")
    # in which one flag sets every seed
    seeds: list[int] = []
    monkeypatch.setattr(
        "egkd.pipeline._learned",
        lambda config, _objectives, arguments, *_: (
            seeds.extend([config.seed, arguments.seed, arguments.data_seed, config.teach_arguments["seed"]]) or 1 / 0
        ),
    )
    with pytest.raises(ZeroDivisionError):
        egkd("distill", tmp_path / "a" / "config.yaml", "--seed", 8, "--out", tmp_path / "c")
    assert seeds == [8, 8, 8, 8]


def test_a_glue_folder_and_a_teacher_with_its_labels_the_other_way_round(
    egkd: Any, shop: Path, quick: list[str], save: Any, tiny_data: Dataset, tmp_path: Path
) -> None:
    """Labels are matched by name: the teacher's scores are those that names give, and the student keeps its order."""
    save(tmp_path / "teacher", ["Positive", "negative"])
    for split, rows in (("train", range(48)), ("dev", range(48, 96))):
        lines = [f"{tiny_data[row]['text']}\t{tiny_data[row]['label']}" for row in rows]
        path = tmp_path / "glue" / "SST-2" / f"{split}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    models = ["--teacher", tmp_path / "teacher", "--student", "layers:1"]
    answer = egkd("distill", *models, "--task", "sst2", "--glue-dir", tmp_path / "glue", *quick, "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "teacher")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "teacher")
    with torch.no_grad():
        batch = tokenizer(list(tiny_data["text"][48:]), padding=True, return_tensors="pt")
        answers = [["positive", "negative"][place] for place in model(**batch).logits.argmax(1)]
    truth = [["negative", "positive"][label] for label in tiny_data["label"][48:]]
    accuracy = sum(map(str.__eq__, answers, truth)) / 48
    assert accuracy != 0.5  # else the order would not matter
    metrics = read(tmp_path / "run" / "metrics.json")
    assert metrics["teacher"]["scores"]["dev"]["accuracy"] == pytest.approx(accuracy)
    assert metrics["task"]["label_names"] == ["positive", "negative"]
    assert metrics["task"]["positive"] == 0
    assert read(tmp_path / "run" / "student" / "config.json")["id2label"] == {"0": "positive", "1": "negative"}


def test_three_classes(egkd: Any, quick: list[str], save: Any, write_csv: Any, tiny_data: Dataset, tmp_path: Path) -> None:
    names = ["bad", "fair", "good"]
    labels = [names[row % 3] for row in range(len(tiny_data))]
    write_csv(tmp_path / "all.csv", review=tiny_data["text"], stars=labels, noise=labels)
    save(tmp_path / "teacher", names)
    columns = ["--text", "review", "--label", "stars"]
    guides = [part for guide in GUIDES for part in ("--guide", guide)]
    run = tmp_path / "run"
    answer = egkd(
        "distill", "--teacher", tmp_path / "teacher", "--train", tmp_path / "all.csv", *columns, *guides, *quick, "--out", run
    )
    assert answer.code == 0, answer.err
    assert "held out" in answer.out
    assert "bad, fair, good" in " ".join(answer.out.split())
    assert read(run / "student" / "config.json")["id2label"] == {"0": "bad", "1": "fair", "2": "good"}
    assert read(run / "student" / "config.json")["num_hidden_layers"] == 3  # layers:3, the default


def test_pairs(egkd: Any, quick: list[str], save: Any, write_csv: Any, tiny_data: Dataset, tmp_path: Path) -> None:
    texts = list(tiny_data["text"])
    write_csv(tmp_path / "all.csv", sentence1=texts, sentence2=texts[::-1], label=tiny_data["label"])
    save(tmp_path / "teacher", ["0", "1"])
    guides = [part for guide in GUIDES for part in ("--guide", guide)]
    run = tmp_path / "run"
    answer = egkd(
        "distill", "--teacher", tmp_path / "teacher", "--student", "layers:2", "--train", tmp_path / "all.csv", *guides,
        *quick, "--out", run,
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert "sentence1" in answer.out  # the guess is told
    example = read(run / "examples.json")[0]
    assert example["text_pair"] in texts
    assert {part for part, _, _ in example["units"]} == {0, 1}


def test_scores(egkd: Any, quick: list[str], save: Any, write_csv: Any, tiny_data: Dataset, tmp_path: Path) -> None:
    write_csv(tmp_path / "all.csv", text=tiny_data["text"], score=[row / 7 for row in range(len(tiny_data))])
    save(tmp_path / "teacher", [])
    guides = [part for guide in GUIDES for part in ("--guide", guide)]
    run = tmp_path / "run"
    answer = egkd(
        "distill", "--teacher", tmp_path / "teacher", "--student", "layers:2", "--train", tmp_path / "all.csv", *guides,
        *quick, "--out", run,
    )  # fmt: skip
    assert answer.code == 0, answer.err
    metrics = read(run / "metrics.json")
    assert set(metrics["student"]["scores"]["dev"]) == {"pearson", "spearmanr"}
    assert read(run / "student" / "config.json")["problem_type"] == "regression"
    losses = [line for line in log(run) if "loss" in line]
    assert all(math.isfinite(value) for line in losses for value in line.values())


def test_a_teacher_is_made_first_where_there_is_none(
    egkd: Any, quick: list[str], shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ["--train", shop / "train.csv", "--eval", shop / "dev.csv", "--teacher-init", shop / "teacher"]
    flags = [*data, "--student", shop / "small", "--guide", "perturbation", *quick, "--out", tmp_path / "run"]
    with monkeypatch.context() as patch:
        patch.setattr("egkd.pipeline._learned", _interrupt)
        assert egkd("distill", *flags).code == 130
    teacher = contents(tmp_path / "run" / "teacher")
    assert teacher["model.safetensors"] != contents(shop / "teacher")["model.safetensors"]
    answer = egkd("distill", *flags)
    assert answer.code == 0, answer.err
    assert contents(tmp_path / "run" / "teacher") == teacher  # it was not made again
    assert {"teacher", "teacher-log.jsonl"} < {path.name for path in (tmp_path / "run").iterdir()}
    assert read(tmp_path / "run" / "metrics.json")["teacher"]["name"] == str(shop / "teacher")


def test_teach_makes_a_teacher_that_distill_takes(egkd: Any, quick: list[str], shop: Path, tmp_path: Path) -> None:
    data = ["--train", shop / "train.csv", "--eval", shop / "dev.csv"]
    command = ["teach", "--init", shop / "teacher", *data, *quick, "--epochs", 1, "--seed", 2, "--out", tmp_path / "t"]
    answer = egkd(*command)
    assert answer.code == 0, answer.err
    teacher = tmp_path / "t" / "teacher"
    assert str(teacher) in "".join(answer.out.split())
    assert read(teacher / "config.json")["id2label"] == {"0": "negative", "1": "positive"}
    config = yaml.safe_load((tmp_path / "t" / "config.yaml").read_text())
    assert (config["seed"], config["teach"]["num_train_epochs"]) == (2, 1)
    before = contents(tmp_path / "t")
    assert (
        egkd("teach", "--init", shop / "teacher", *data, *quick, "--epochs", 1, "--seed", 2, "--out", tmp_path / "t").code == 0
    )
    assert contents(tmp_path / "t") == before
    assert egkd("distill", "--teacher", teacher, "--student", "layers:1", *data, *quick, "--out", tmp_path / "d").code == 0


def test_the_demo_teaches_distils_twice_compares_and_can_be_resumed(
    egkd: Any, shop: Path, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = importlib.import_module("egkd.cli.demo")
    small = {"use_cpu": True, "max_steps": 3, "per_device_train_batch_size": 8}
    monkeypatch.setattr(demo, "SETTINGS", demo.SETTINGS | {"train": small, "max_length": 32, "student": "layers:2"})
    monkeypatch.setitem(demo.SETTINGS, "evaluate", {"explained": 6, "shown": 3, "latency_repeats": 1})
    monkeypatch.setattr(demo, "TEACH", small)
    monkeypatch.setattr("egkd.data.bundled.minilm_l6_path", lambda: shop / "teacher")
    task = Task(name="movie-reviews", kind="classification", label_names=("negative", "positive"))
    data = TaskData(task=task, train=tiny_data.select(range(64)), evals={"dev": tiny_data.select(range(64, 96))})
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("egkd.data.loading.load_movie_reviews", lambda **limits: asked.append(limits) or data)
    answer = egkd("demo", "--out", tmp_path / "demo")
    assert answer.code == 0, answer.err
    assert str(tmp_path / "demo" / "report.html") in "".join(answer.out.split())
    assert {each["train_limit"] for each in asked} == {demo.SETTINGS["data"]["train_limit"]}
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"teacher", "plain", "guided", "lessons", "report.html"}
    plain, guided = (read(tmp_path / "demo" / name / "metrics.json") for name in ("plain", "guided"))
    assert len(guided["objectives"]) > len(plain["objectives"]) == 2
    assert plain["teacher"]["scores"] == guided["teacher"]["scores"]
    before = contents(tmp_path / "demo")
    shutil.rmtree(tmp_path / "demo" / "guided" / "student")  # a finished run needs nothing of it
    monkeypatch.setattr(transformers.Trainer, "train", never)
    assert egkd("demo", "--out", tmp_path / "demo").code == 0
    after = contents(tmp_path / "demo")
    assert after == {name: content for name, content in before.items() if not name.startswith("guided/student/")}
