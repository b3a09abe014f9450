"""Sweeps: equally many trials for all, whoever works at them and whatever dies; values chosen on rows held out of train."""

import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset

from egkd.config import RunConfig, merge, override, read_yaml
from egkd.experiments.chosen import best
from egkd.experiments.grid import Cell, GridConfig
from egkd.experiments.space import SweepConfig, nested
from egkd.experiments.sweep import check_runs, check_sources, sweep

pytestmark = pytest.mark.usefixtures("calm_libraries")
EXAMPLES = Path(__file__).parents[2] / "examples"
SETTINGS: dict[str, Any] = {
    "base": {"teacher": "my-teacher", "student": "layers:2", "data": {"task": "sst2", "train_limit": 500, "held_out": 0.2}},
    "space": {"train.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}, "objectives.labels.weight": [0, 0.5, 1.0]},
    "methods": {"plain": {}, "gradient": {"space": {"objectives.gradient.weight": {"low": 0.1, "high": 10, "log": True}}}},
    "trials": 3,
}


def config_of(**settings: Any) -> SweepConfig:
    return SweepConfig.of(SETTINGS | settings)


class Runs:
    """In the place of real runs: a score that is highest where the learning rate is 1e-4."""

    def __init__(self, before: Callable[[Path], None] = lambda folder: None) -> None:
        self.before = before
        self.made: list[Path] = []
        self.configs: dict[Path, RunConfig] = {}

    def __call__(self, config: RunConfig, folder: Path) -> None:
        self.made.append(folder)
        self.configs[folder] = config
        folder.mkdir(parents=True, exist_ok=True)
        self.before(folder)
        score = 1 - abs(math.log10(config.train["learning_rate"]) + 4) / 10
        metrics = {"task": {"metrics": ["accuracy"]}, "student": {"scores": {"held_out": {"accuracy": score, "f1": 1 - score}}}}
        (folder / "metrics.json").write_text(json.dumps(metrics))

    def names(self) -> list[str]:
        return [f"{folder.parent.name}/{folder.name}" for folder in self.made]


def work(out: Path, runs: Runs, config: SweepConfig | None = None) -> dict[str, list[Any]]:
    return sweep(config or config_of(), out, runs, tell=lambda line: None)


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results" / "sweep.json").read_text())


def test_every_method_has_as_many_trials_within_its_space(tmp_path: Path) -> None:
    runs = Runs()
    found = work(tmp_path, runs)
    assert Counter(folder.parent.name for folder in runs.made) == {"plain": 3, "gradient": 3}
    assert [folder.parent.name for folder in runs.made[:4]] == ["plain", "gradient"] * 2  # in turns
    for folder, config in runs.configs.items():
        assert 1e-5 <= config.train["learning_rate"] <= 1e-3
        assert config.objectives["labels"]["weight"] in (0, 0.5, 1.0)
        assert config.data.held_out == 0.2
        assert config.lessons == tmp_path / "lessons"
        assert ("gradient" in config.objectives) == (folder.parent.name == "gradient")
        if "gradient" in config.objectives:
            assert 0.1 <= config.objectives["gradient"]["weight"] <= 10
    assert all(trial.state == "complete" for trials in found.values() for trial in trials)
    again = Runs()
    work(tmp_path, again)
    assert again.made == []


def test_what_is_drawn_depends_on_the_seed_alone(tmp_path: Path) -> None:
    def values(name: str, **settings: Any) -> dict[str, list[Any]]:
        found = work(tmp_path / name, Runs(), config_of(**settings))
        return {method: [trial.values for trial in trials] for method, trials in found.items()}

    one = values("one")
    assert values("other") == one
    assert values("seed", seed=1) != one
    shared = [{name: each for name, each in trial.items() if "gradient" not in name} for trial in one["gradient"]]
    assert shared == one["plain"]  # as long as chance alone chooses, methods try the same values of what they share


def test_results_hold_space_budget_trials_and_the_best(tmp_path: Path) -> None:
    runs = Runs()
    work(tmp_path, runs)
    found = results(tmp_path)
    assert found["metric"] == "accuracy"
    assert found["settings"]["base"] == SETTINGS["base"]
    for method, told in found["methods"].items():
        assert told["budget"] == 3
        scores = [trial["score"] for trial in told["trials"]]
        assert told["best"]["score"] == max(scores)
        rate = told["best"]["values"]["train.learning_rate"]
        assert told["best"]["score"] == pytest.approx(1 - abs(math.log10(rate) + 4) / 10)
        assert [trial["folder"] for trial in told["trials"]] == [f"trials/{method}/000{number}" for number in range(3)]
    assert found["methods"]["plain"]["space"]["objectives.labels.weight"] == [0, 0.5, 1.0]
    page = (tmp_path / "results" / "sweep.md").read_text()
    assert f"| plain | 3 of 3 | {found['methods']['plain']['best']['score']:.4f} |" in page
    assert "| gradient | objectives.gradient.weight | 0.1 to 10, by ratio |" in page


def test_another_metric_may_choose(tmp_path: Path) -> None:
    found = work(tmp_path, Runs(), config_of(metric="f1"))
    top = best(found["plain"])
    assert top is not None
    distances = [abs(math.log10(trial.values["train.learning_rate"]) + 4) / 10 for trial in found["plain"]]
    assert top.score == pytest.approx(max(distances))
    with pytest.raises(ValueError, match="metric 'f2' is not measured; measured are accuracy, f1"):
        work(tmp_path / "other", Runs(), config_of(metric="f2"))


def test_the_chosen_values_are_a_grid(tmp_path: Path) -> None:
    """The very runs that the best trials were, but judged on the task's own evaluation data."""
    runs = Runs()
    found = work(tmp_path, runs)
    grid = GridConfig.of(read_yaml(tmp_path / "results" / "grid.yaml"))
    assert [str(cell) for cell in grid.cells()][:2] == ["sst2/layers-2/plain/0", "sst2/layers-2/gradient/0"]
    for method, trials in found.items():
        top = best(trials)
        assert top is not None
        run = grid.config(Cell(task="sst2", student="layers-2", method=method, seed=0), tmp_path)
        trial = runs.configs[top.folder]
        assert run.objectives == trial.objectives
        assert (run.train["learning_rate"], run.teacher) == (trial.train["learning_rate"], "my-teacher")
        assert run.data == trial.data.model_copy(update={"held_out": None})
        assert run.evaluate.explained == 200


def test_grids_of_several_sweeps_keep_what_each_was_tuned_with(tmp_path: Path) -> None:
    given: dict[str, Any] = {}
    for name, epochs in (("a", 10), ("b", 3)):
        data = {"train": f"{name}/train.csv", "held_out": 50}
        base = {"data": data, "teacher": ["one", "two"], "train": {"num_train_epochs": epochs}, "max_length": 8 * epochs}
        work(tmp_path / name, Runs(), config_of(base=base | {"evaluate": {"explained": epochs}}))
        given = merge(given, read_yaml(tmp_path / name / "results" / "grid.yaml"))
    grid = GridConfig.of(override(given, ["base.evaluate.explained=60"]))
    runs = {task: grid.config(Cell(task=task, student="layers-3", method="plain", seed=0), tmp_path) for task in grid.tasks}
    assert {task: (run.train["num_train_epochs"], run.max_length) for task, run in runs.items()} == {
        "a": (10, 80),
        "b": (3, 24),
    }
    assert all((run.teachers, run.evaluate.explained) == (("one", "two"), 60) for run in runs.values())


def test_a_killed_trial_is_taken_up_in_its_own_folder(tmp_path: Path) -> None:
    def die(folder: Path) -> None:
        if len(runs.made) == 4:
            raise KeyboardInterrupt

    runs = Runs(die)
    with pytest.raises(KeyboardInterrupt):
        work(tmp_path, runs)
    assert [trial["state"] for trial in results(tmp_path)["methods"]["gradient"]["trials"]] == ["complete"]
    later = Runs()
    found = work(tmp_path, later)
    assert later.names() == [runs.names()[-1], "plain/0002", "gradient/0002"]
    assert later.configs[later.made[0]] == runs.configs[runs.made[-1]]
    whole = work(tmp_path / "whole", Runs())
    assert [t.values for t in found["gradient"]] == [t.values for t in whole["gradient"]]  # as if nothing had happened


def test_a_worker_that_is_killed_lets_go_of_its_trial(tmp_path: Path) -> None:
    """A process of its own, killed in the midst of its second trial, when nothing can be tidied up any more."""
    code = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_sweep import Runs, work
work(Path(sys.argv[1]), Runs(lambda folder: os.kill(os.getpid(), signal.SIGKILL) if folder.parent.name == "gradient" else None))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    runs = Runs()
    found = work(tmp_path, runs)
    assert runs.names()[0] == "gradient/0000"
    assert {method: len(trials) for method, trials in found.items()} == {"plain": 3, "gradient": 3}


def test_two_workers_share_the_trials(tmp_path: Path) -> None:
    """While one is at its first trial, another does all the rest; nothing is done twice, and nothing is left out."""
    second = Runs()

    def meanwhile(folder: Path) -> None:
        if not second.made:
            work(tmp_path, second)

    first = Runs(meanwhile)
    found = work(tmp_path, first)
    assert first.names() == ["plain/0000"]
    assert sorted(second.names()) == ["gradient/0000", "gradient/0001", "gradient/0002", "plain/0001", "plain/0002"]
    assert all(trial.state == "complete" for trials in found.values() for trial in trials)
    assert len(results(tmp_path)["methods"]["plain"]["trials"]) == 3


def test_a_score_that_is_no_number_counts_as_tried(tmp_path: Path) -> None:
    class Broken(Runs):
        def __call__(self, config: RunConfig, folder: Path) -> None:
            super().__call__(config, folder)
            metrics = {"task": {"metrics": ["accuracy"]}, "student": {"scores": {"held_out": {"accuracy": None}}}}
            (folder / "metrics.json").write_text(json.dumps(metrics))

    runs = Broken()
    found = work(tmp_path, runs)
    assert len(runs.made) == 6
    assert {trial.state for trials in found.values() for trial in trials} == {"fail"}
    assert results(tmp_path)["methods"]["plain"]["best"] is None
    assert "| plain | 3 of 3 | – | – |" in (tmp_path / "results" / "sweep.md").read_text()


@pytest.mark.parametrize(("error", "lost"), [(RuntimeError("no memory"), True), (OSError("disk full"), False)])
def test_a_trial_that_cannot_be_run_stands_in_nobodys_way(tmp_path: Path, error: Exception, lost: bool) -> None:
    """Values that cannot work count as tried; what was the machine's fault is taken up again."""

    def fail(folder: Path) -> None:
        raise error

    broken = Runs(fail)
    with pytest.raises(type(error), match=str(error)):
        work(tmp_path, broken)
    runs = Runs()
    found = work(tmp_path, runs)
    assert broken.names() == ["plain/0000"]
    assert ("plain/0000" in runs.names()) != lost
    assert [trial.state for trial in found["plain"]] == ["fail" if lost else "complete", "complete", "complete"]
    assert [trial.state for trial in found["gradient"]] == ["complete"] * 3


def test_results_tell_of_every_trial_whoever_ends_last(tmp_path: Path) -> None:
    """The last trial of all cannot be run; a worker begun with fewer trials and methods writes all the same."""

    def fail_last(folder: Path) -> None:
        if folder.parent.name == "gradient" and folder.name == "0002":
            raise ValueError("no such setting")

    with pytest.raises(ValueError, match="no such setting"):
        work(tmp_path, Runs(fail_last))
    assert [trial["state"] for trial in results(tmp_path)["methods"]["gradient"]["trials"]] == ["complete", "complete", "fail"]
    early = Runs(lambda _: work(tmp_path, Runs(), more) and None)
    more = config_of(trials=5, methods=SETTINGS["methods"] | {"selection": {}})
    work(tmp_path, early, config_of(trials=4))
    told = results(tmp_path)
    assert {method: len(its["trials"]) for method, its in told["methods"].items()} == dict.fromkeys(more.methods, 5)
    assert told["settings"]["trials"] == 5


def test_a_method_without_a_score_is_told_and_stays_the_baseline(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        if folder.parent.name == "plain":
            raise ValueError("no such setting")

    for _ in range(3):
        with pytest.raises(ValueError, match="no such setting"):
            work(tmp_path, Runs(fail))
    work(tmp_path, Runs(fail))
    text = (tmp_path / "results" / "grid.yaml").read_text()
    assert "# Not in it, because no trial of theirs has a score: plain.\n" in text
    assert "baseline" not in yaml.safe_load(text)


def test_a_sweep_of_ones_own_file_in_its_folder(tmp_path: Path) -> None:
    """Its `sweep.yaml` may be what a person wrote, and an earlier version's."""
    written = SETTINGS | {"methods": ["plain", "gradient"]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(written))
    assert len(work(tmp_path, Runs(), SweepConfig.of(written))) == 2


def test_what_is_not_there_costs_no_trial(tmp_path: Path, save: Any, write_csv: Any, egkd: Any) -> None:
    teacher = save(tmp_path / "teacher", ["no", "yes"], layers=2)
    rows = write_csv(tmp_path / "train.csv", text=["good", "bad"] * 20, label=["yes", "no"] * 20)
    right = {"teacher": str(teacher), "student": "layers:1", "max_length": 32, "data": {"train": str(rows), "held_out": 8}}
    check_sources(SweepConfig.of(SETTINGS | {"base": right}), tmp_path)
    wrong = [
        ({"teacher": str(tmp_path / "none")}, "none does not exist"),
        ({"student": "layers:9"}, "layers:9"),
        ({"data": {"train": str(tmp_path / "none.csv"), "held_out": 8}}, "none.csv"),
    ]
    for change, part in wrong:
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(SETTINGS | {"base": right | change}))
        answer = egkd("sweep", tmp_path / "sweep.yaml", "--out", tmp_path / "out")
        assert (answer.code, part in answer.err) == (2, True), answer.err
        assert not (tmp_path / "out").exists()


def test_a_setting_of_one_method_leaves_the_others(tmp_path: Path, egkd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(SETTINGS | {"methods": ["plain", "gradient"]}))
    seen: list[SweepConfig] = []

    def stop(config: SweepConfig, _: Path) -> None:
        seen.append(config)
        raise ValueError("seen")

    monkeypatch.setattr("egkd.experiments.sweep.check_runs", stop)
    egkd("sweep", tmp_path / "sweep.yaml", "--out", tmp_path / "out", "--set", "methods.gradient.train.max_grad_norm=5")
    assert seen[0].methods == {"plain": {}, "gradient": {"train": {"max_grad_norm": 5}}}


def test_a_folder_is_one_sweep_s_whose_trials_and_methods_may_become_more(tmp_path: Path) -> None:
    work(tmp_path, Runs())
    for settings, part in (({"seed": 3}, "another sweep (seed)"), ({"trials": 2}, "another sweep (3 trials of each method)")):
        with pytest.raises(ValueError, match="another sweep") as caught:
            work(tmp_path, Runs(), config_of(**settings))
        assert part in str(caught.value)
    more = Runs()
    work(tmp_path, more, config_of(trials=4))
    assert more.names() == ["plain/0003", "gradient/0003"]
    for methods in ({"plain": {}}, {"plain": {}, "gradient": {}}):
        with pytest.raises(ValueError, match=r"another sweep \(methods\.gradient\)"):
            work(tmp_path, Runs(), config_of(trials=4, methods=methods))
    beside, alone = Runs(), Runs()
    work(tmp_path, beside, config_of(trials=4, methods=SETTINGS["methods"] | {"selection": {}}))
    work(tmp_path / "new", alone, config_of(trials=4, methods={"selection": {}}))
    assert beside.names() == [f"selection/000{trial}" for trial in range(4)]
    values = [[config.train["learning_rate"] for config in runs.configs.values()] for runs in (beside, alone)]
    assert values[0] == values[1]  # as if it had been there from the start
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="is not an empty folder and holds no sweep"):
        work(tmp_path / "mine", Runs())


DATA = {"task": "sst2", "held_out": 50}
BASE = {"base": {"teacher": "t", "data": DATA}}


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"base": {"teacher": "t", "data": {"task": "sst2"}}}, "say how many: base.data.held_out=1000"),
        ({"space": {"objectives.gradient.weight": [1, 2]}}, "varies what plain does not learn (labels, soft-labels)"),
        ({"space": {"data.train_limit": [1, 2]}}, "data.train_limit varies the data"),
        ({"space": {"train.learning_rate": {"low": 2, "high": 1}}}, "found low 2 above high 1"),
        ({"space": {"train.learning_rate": {"low": 0.0, "high": 1, "log": True}}}, "log needs low above 0, and no step"),
        ({"space": {"train.learning_rate": []}}, "train.learning_rate has no value to choose from"),
        ({"space": {"max_length": [1, 64]}}, "max_length"),
        ({"methods": []}, "methods names none"),
        ({"methods": ["gradiant"]}, "unknown method 'gradiant'; did you mean 'gradient'?"),
        (
            {"methods": {"plain": {"data": {"train_limit": 5}}, "gradient": {}}},
            "plain and gradient are judged on different data",
        ),
        ({"methods": {"plain": {"space": {"train.learning_rate": 5}}}}, "methods.plain.space.train.learning_rate"),
        ({"trails": 3}, "unknown setting 'trails'; did you mean 'trials'?"),
    ],
)
def test_what_cannot_work_is_one_line(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=r"\S") as caught:
        SweepConfig.of(SETTINGS | BASE | settings)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"space": {"train.learning_rat": [1e-4]}}, "plain with train.learning_rat 0.0001: unknown setting"),
        ({"space": {"objectives.labels.weight": [0, -1]}}, "plain with objectives.labels.weight -1: objectives.labels.weight"),
        ({"methods": {"a/b": {"objectives": {"gradient": {}}}}}, "methods: 'a/b' is to name a folder"),
    ],
)
def test_both_ends_of_every_range_must_make_a_run(settings: dict[str, Any], part: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\S") as caught:
        check_runs(SweepConfig.of(SETTINGS | BASE | settings), tmp_path)
    assert part in str(caught.value)


def test_a_metric_that_nobody_measures_is_refused_before_the_first_trial(tmp_path: Path, write_csv: Any) -> None:
    write_csv(tmp_path / "train.csv", text=["good", "bad"] * 20, label=["yes", "no"] * 20)
    base = {"teacher": "t", "data": {"train": str(tmp_path / "train.csv"), "held_out": 8}}
    check_runs(config_of(base=base, metric="accuracy"), tmp_path)
    with pytest.raises(ValueError, match=r"^metric: unknown metric 'acuracy'; did you mean 'accuracy'\?$"):
        check_runs(config_of(base=base, metric="acuracy"), tmp_path)


def test_the_example_can_be_run(tmp_path: Path) -> None:
    config = SweepConfig.of(read_yaml(EXAMPLES / "sweep.yaml"))
    check_runs(config, tmp_path)
    assert set(config.space_of("selection")) - set(config.space_of("plain")) == {
        "objectives.selection.weight",
        "objectives.selection.rate",
    }


@pytest.mark.parametrize("path", sorted((EXAMPLES / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_sweeps_of_the_results_can_be_run_and_are_alike(path: Path, tmp_path: Path) -> None:
    config = SweepConfig.of(read_yaml(path))
    check_runs(config, tmp_path)
    for other in path.parent.glob("*.yaml"):
        its = SweepConfig.of(read_yaml(other))
        assert (its.trials, its.space, its.methods) == (config.trials, config.space, config.methods)


def test_names_with_dots_are_sections() -> None:
    assert nested({"train.learning_rate": 1, "train.warmup_steps": 2, "seed": 3}) == {
        "train": {"learning_rate": 1, "warmup_steps": 2},
        "seed": 3,
    }


def test_the_command_tunes_fine_tunes_and_leaves_a_grid_that_runs(
    tmp_path: Path, save: Any, write_csv: Any, tiny_data: Dataset, egkd: Any
) -> None:
    """Real runs: 2 methods x 2 trials, with a teacher that is fine-tuned on what is not held out; then the grid on dev."""
    save(tmp_path / "encoder", layers=2)
    names = ["negative" if label == 0 else "positive" for label in tiny_data["label"]]
    write_csv(tmp_path / "reviews.csv", text=tiny_data["text"][:64], label=names[:64])
    write_csv(tmp_path / "dev.csv", text=tiny_data["text"][64:], label=names[64:])
    train = {"use_cpu": True, "max_steps": 1, "per_device_train_batch_size": 8}
    settings = {
        "base": {
            "teacher_init": str(tmp_path / "encoder"),
            "student": "layers:1",
            "data": {"train": str(tmp_path / "reviews.csv"), "eval": str(tmp_path / "dev.csv"), "held_out": 16},
            "train": train,
            "teach": train,
            "max_length": 32,
        },
        "methods": ["plain", "perturbation"],
        "space": {"train.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(settings))
    out = tmp_path / "out"
    for _ in range(2):
        answer = egkd("sweep", tmp_path / "sweep.yaml", "--trials", 2, "--out", out)
        assert answer.code == 0, answer.err
        assert f"results: {out / 'results'}" in "".join(answer.out.split()).replace("results:", "results: ")
    for method in ("plain", "perturbation"):
        for trial in ("0000", "0001"):
            folder = out / "trials" / method / trial
            metrics = json.loads((folder / "metrics.json").read_text())
            assert list(metrics["student"]["scores"]) == ["held_out"]
            assert metrics["training"]["examples"] == 48
            assert not list((folder / "student").glob("*.safetensors"))
    assert read_yaml(out / "teacher" / "config.yaml")["data"]["held_out"] == 16
    stores = [path.name.partition("-")[0] for path in (out / "lessons").iterdir() if path.is_dir()]
    assert sorted(stores) == ["perturbation", "soft"]
    grid = GridConfig.of(read_yaml(out / "results" / "grid.yaml"))
    assert next(str(cell) for cell in grid.cells()) == "reviews/layers-1/plain/0"
    for data in (grid.config(cell, out).data for cell in grid.cells()):
        assert (data.held_out, data.eval) == (None, (tmp_path / "dev.csv",))


def test_without_optuna_it_says_what_to_install(egkd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(SETTINGS))
    answer = egkd("sweep", tmp_path / "sweep.yaml", "--out", tmp_path / "out")
    assert answer.code == 2
    assert "egkd sweep needs optuna, which is not installed: pip install '.[hpo]'" in answer.err
