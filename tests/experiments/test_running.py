"""An experiment, run: to the end, again, killed in the middle, side by side, and with a cell that fails."""

import copy
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from datasets import Dataset
from filelock import FileLock

from egkd.experiments import running
from egkd.experiments.clock import Clock
from egkd.experiments.grid import GridConfig
from egkd.experiments.planning import Job, grown, plan
from egkd.experiments.processes import Share, Subprocess, gpus
from egkd.experiments.running import Standing, run

pytestmark = pytest.mark.usefixtures("calm_libraries")
CELLS = [f"{task}/small/{method}/{seed}" for task in ("few", "more") for seed in (0, 1) for method in ("plain", "perturbation")]


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("this was done already")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, save: Any, write_csv: Any, tiny_data: Dataset) -> Path:
    """Encoders, and the reviews of two tasks."""
    folder = tmp_path_factory.mktemp("shop")
    save(folder / "encoder", dropout=0.1)
    save(folder / "small", layers=1, width=16, seed=5)
    names = ["negative" if label == 0 else "positive" for label in tiny_data["label"]]
    for name, rows in (("few", slice(0, 32)), ("more", slice(0, 64)), ("dev", slice(64, 96))):
        write_csv(folder / f"{name}.csv", text=tiny_data["text"][rows], label=names[rows])
    return folder


@pytest.fixture(scope="module")
def grid(shop: Path) -> Callable[..., GridConfig]:
    """Two tasks, a student, two methods and two seeds."""

    def make(**settings: Any) -> GridConfig:
        train = {"use_cpu": True, "num_train_epochs": 1, "per_device_train_batch_size": 8, "logging_steps": 1}
        base = {
            "teacher_init": str(shop / "encoder"),
            "train": train | {"learning_rate": 1e-2, "save_steps": 2, "eval_strategy": "no"},
            "teach": train | {"learning_rate": 1e-3, "save_strategy": "no", "eval_strategy": "no"},
            "evaluate": {"explained": 6, "shown": 2, "latency_repeats": 1},
            "max_length": 32,
        }
        both = {name: {"data": {"train": str(shop / f"{name}.csv"), "eval": str(shop / "dev.csv")}} for name in ("more", "few")}
        given = {
            "tasks": both,
            "students": {"small": str(shop / "small")},
            "methods": ["plain", "perturbation"],
            "seeds": [0, 1],
        }
        return GridConfig.of(given | {"base": base} | settings)

    return make


@pytest.fixture(scope="module")
def whole(here: Any, grid: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    """An experiment that nobody interrupted; which jobs were begun, and what was told."""
    out, begun, told = tmp_path_factory.mktemp("whole") / "out", [], []

    def start(job: Job, log: Path, share: Any) -> Any:
        begun.append(job.name)
        return here(job, log, share)

    assert run(grid(), out, tell=told.append, start=start) == {}
    return out, begun, told


def figures(out: Path, cell: str) -> dict[str, Any]:
    student = json.loads((out / "cells" / cell / "metrics.json").read_text())["student"]
    return {part: student[part] for part in ("scores", "fidelity", "explanations")}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_cell_is_run_the_cheapest_task_first_its_teacher_before_it(whole: Any) -> None:
    out, begun, told = whole
    assert begun == ["teachers/few", *CELLS[:4], "teachers/more", *CELLS[4:]]
    for cell in CELLS:
        config = transformers.AutoConfig.from_pretrained(out / "cells" / cell / "student")
        assert config.num_hidden_layers == 1
        assert (out / "cells" / cell / "report.html").exists()
    assert [line.split(":")[0] for line in told] == begun
    accuracy = figures(out, CELLS[0])["scores"]["dev"]["accuracy"]
    assert f"accuracy {100 * accuracy:.1f}, " in told[1]


def test_lessons_are_shared_and_students_are_not(whole: Any) -> None:
    out, _, _ = whole
    stores = [path.name.rsplit("-", 1)[0] for path in (out / "lessons").iterdir() if path.is_dir()]
    assert sorted(stores) == ["perturbation", "perturbation", "soft-labels", "soft-labels"]  # one for each task
    students = {contents(out / "cells" / cell / "student")["model.safetensors"] for cell in CELLS}
    assert len(students) == len(CELLS)


def test_results_hold_every_cell(whole: Any) -> None:
    out, _, _ = whole
    found = json.loads((out / "results" / "glue.json").read_text())
    assert {task: len(found["students"]["small"]["plain"]["tasks"][task]["scores"]) for task in ("few", "more")} == {
        "few": 2,
        "more": 2,
    }
    assert {path.suffix for path in (out / "results").iterdir()} == {".json", ".jsonl", ".md", ".tex", ".csv", ".html"}


def test_nothing_is_run_again(whole: Any, grid: Any) -> None:
    out, _, _ = whole
    before = contents(out / "cells"), contents(out / "lessons"), contents(out / "teachers")
    assert run(grid(), out, tell=never, start=never) == {}
    assert (contents(out / "cells"), contents(out / "lessons"), contents(out / "teachers")) == before


def test_an_experiment_that_was_moved_is_the_same(whole: Any, grid: Any, tmp_path: Path) -> None:
    shutil.copytree(whole[0], tmp_path / "elsewhere")
    assert run(grid(), tmp_path / "elsewhere", tell=never, start=never) == {}


def test_of_an_experiment_its_results_are_enough(here: Any, whole: Any, grid: Any, tmp_path: Path) -> None:
    out, begun = tmp_path / "out", []
    shutil.copytree(whole[0] / "results", out / "results")
    assert run(grid(), out, tell=never, start=never) == {}
    for name in ("glue.json", "glue.md", "cells.jsonl"):
        assert (out / "results" / name).read_bytes() == (whole[0] / "results" / name).read_bytes()

    def start(job: Job, log: Path, share: Any) -> Any:
        begun.append(job.name)
        return here(job, log, share)

    few = grid().model_copy(update={"tasks": {"few": grid().tasks["few"]}, "methods": {"labels": {}}, "seeds": (1,)})
    assert run(few, out, tell=str, start=start) == {}
    assert begun == ["teachers/few", "few/small/labels/1"]
    assert len((out / "results" / "cells.jsonl").read_text().splitlines()) == len(CELLS) + 1
    with pytest.raises(ValueError, match="holds another run"):
        run(grid(base=grid().base | {"max_length": 16}), out, tell=never, start=never)


def test_cells_that_are_lost_come_back_from_the_results(whole: Any, grid: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    shutil.rmtree(out / "cells")
    assert run(grid(), out, tell=never, start=never) == {}
    assert (out / "results" / "cells.jsonl").read_bytes() == (whole[0] / "results" / "cells.jsonl").read_bytes()


def test_data_may_lie_elsewhere(whole: Any, grid: Any, shop: Path, tmp_path: Path) -> None:
    shutil.copytree(whole[0], tmp_path / "out")
    for file in shop.glob("*.csv"):
        (tmp_path / "data").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "data")
    tasks = {name: {"data": {"train": str(tmp_path / "data" / f"{name}.csv"), "eval": str(tmp_path / "data" / "dev.csv")}}
             for name in ("more", "few")}  # fmt: skip
    assert run(grid(tasks=tasks), tmp_path / "out", tell=never, start=never) == {}
    tasks["few"]["data"]["train"] = tasks["more"]["data"]["train"]
    with pytest.raises(ValueError, match="few/small/plain/0 holds another run"):
        run(grid(tasks=tasks), tmp_path / "out", start=never)


def test_the_seeds_of_a_task_grow_too(whole: Any, grid: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    own = {name: entry.model_dump() | {"seeds": [0]} for name, entry in grid().tasks.items()}
    some, more = grid(tasks=own), grid(tasks=own | {"few": own["few"] | {"seeds": [1]}})
    out.mkdir()
    (out / "grid.yaml").write_text(some.to_yaml())
    assert [(name, entry.seeds) for name, entry in grown(more, out).tasks.items()] == [("more", (0,)), ("few", (0, 1))]


def test_what_an_experiment_had_holds_for_what_joins_it(whole: Any, grid: Any, tmp_path: Path) -> None:
    """Seeds that a task gets of its own are more seeds; a teacher that was given teaches those too."""
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    own = {name: entry.model_dump() | {"seeds": [3]} for name, entry in grid().tasks.items()}
    assert [entry.seeds for entry in grown(grid(tasks=own), out).tasks.values()] == [(0, 1, 3), (0, 1, 3)]
    few, teacher = {"few": grid().tasks["few"].model_dump()}, str(whole[0] / "teachers" / "few" / "teacher")
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "grid.yaml").write_text(grid(tasks=few, teachers={"few": teacher}, seeds=[0]).to_yaml())
    jobs = plan(grid(tasks=few, seeds=[1]), tmp_path / "given")
    assert [job.config.teacher for job in jobs] == [teacher, teacher]


def test_a_teacher_of_its_own_may_be_named(whole: Any, grid: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    named = grid(teachers={name: str(out / "teachers" / name / "teacher") for name in ("more", "few")}, seeds=[0, 1, 2])
    assert {job.name for job in plan(named, out) if not job.done} == {
        f"{task}/small/{method}/2" for task in ("more", "few") for method in ("plain", "perturbation")
    }


def test_an_experiment_may_grow_and_remembers_what_it_was(here: Any, whole: Any, grid: Any, tmp_path: Path) -> None:
    out, begun = tmp_path / "out", []
    shutil.copytree(whole[0], out)

    def start(job: Job, log: Path, share: Any) -> Any:
        begun.append(job.name)
        return here(job, log, share)

    few = grid().model_copy(update={"tasks": {"few": grid().tasks["few"]}})
    assert run(few.model_copy(update={"methods": {"labels": {}}}), out, tell=str, start=start) == {}
    assert begun == ["few/small/labels/0", "few/small/labels/1"]  # by the teacher that is there
    found = json.loads((out / "results" / "glue.json").read_text())["students"]["small"]
    assert {method: list(found[method]["tasks"]) for method in found} == {
        "plain": ["more", "few"],
        "perturbation": ["more", "few"],
        "labels": ["few"],
    }


def test_what_was_run_cannot_become_something_else(whole: Any, grid: Any) -> None:
    out, _, _ = whole
    other = {"plain": {}, "perturbation": {"objectives": {"perturbation": {"weight": 7.0}}}}
    with pytest.raises(ValueError, match=r"perturbation/0 holds another run \(objectives differ\)"):
        run(grid(methods=other), out, start=never)
    with pytest.raises(ValueError, match=r"holds another run \(objectives differ\)"):  # though these cells are not asked for
        run(grid(methods=other, seeds=[9]), out, start=never)


def test_a_killed_cell_goes_on_and_processes_side_by_side_find_the_same(
    here: Any, whole: Any, grid: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    from at_work import Forked

    few = grid(tasks={"few": grid().tasks["few"].model_dump()})
    out, victim, threads_of = tmp_path / "out", CELLS[1], set()
    shutil.copytree(whole[0] / "teachers", out / "teachers")
    most: list[int] = []

    def start(job: Job, log: Path, share: Any) -> Forked:
        threads_of.add(share.threads)
        return Forked(job, log, share, dies_at=3 if job.name == victim else None)

    failed = run(few, out, jobs=2, tell=str, show=lambda now: most.append(len(now.running)), start=start)
    assert list(failed) == [victim]
    assert failed[victim].startswith("killed by signal 9 ")
    assert (max(most), threads_of) == (2, {1})
    state = out / "cells" / victim / "checkpoints" / "checkpoint-2" / "trainer_state.json"
    kept = json.loads(state.read_text())
    assert kept["stateful_callbacks"]["Stopwatch"]["args"]["before"] > 0
    kept["stateful_callbacks"]["Stopwatch"]["args"]["before"] = 1e6  # as if these two steps had taken days
    state.write_text(json.dumps(kept))
    taken: list[int] = []
    step = transformers.Trainer.training_step
    monkeypatch.setattr(
        transformers.Trainer,
        "training_step",
        lambda self, *rest, **named: taken.append(self.state.global_step) or step(self, *rest, **named),
    )
    assert run(few, out, tell=str, start=here) == {}
    assert taken == [2, 3]  # of this cell alone, from its checkpoint on
    assert json.loads((out / "cells" / victim / "training.json").read_text())["seconds"] > 1e6
    assert {cell: figures(out, cell) for cell in CELLS[:4]} == {cell: figures(whole[0], cell) for cell in CELLS[:4]}
    assert contents(out / "cells" / victim / "student") == contents(whole[0] / "cells" / victim / "student")


def test_what_fails_is_told_stops_nobody_and_is_tried_again(here: Any, whole: Any, grid: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    for cell in (CELLS[2], CELLS[3]):
        shutil.rmtree(out / "cells" / cell)

    def start(job: Job, log: Path, share: Any) -> Any:
        if job.name == CELLS[2]:
            (job.folder / "config.yaml").write_text("teacher: [")
        return here(job, log, share)

    told: list[str] = []
    standings: list[Standing] = []
    failed = run(grid(), out, tell=told.append, show=standings.append, start=start)
    assert list(failed) == [CELLS[2]]
    assert "cannot read settings from" in failed[CELLS[2]]
    assert [line.split(":")[0] for line in told] == [CELLS[2], CELLS[3]]
    last = standings[-1]
    assert (last.done, last.failed, last.left, last.total, last.running) == (7, 1, 0, 8, ())
    (out / "cells" / CELLS[2] / "config.yaml").unlink()
    assert run(grid(), out, tell=str, start=here) == {}
    assert figures(out, CELLS[2]) == figures(whole[0], CELLS[2])


def test_without_its_teacher_no_cell_is_begun(grid: Any, tmp_path: Path) -> None:
    class Broken:
        def __init__(self, job: Job, log: Path, share: Any) -> None:
            assert job.name.startswith("teachers/")

        def poll(self) -> int | None:
            return 1

    failed = run(grid(), tmp_path / "out", tell=str, start=Broken)  # type: ignore[arg-type]
    assert set(failed) == {"teachers/few", "teachers/more", *CELLS}
    assert failed[CELLS[0]] == "teachers/few failed"


def test_an_interruption_stops_everybody(grid: Any, tmp_path: Path) -> None:
    did: list[str] = []

    class Endless:
        def __init__(self, job: Job, log: Path, share: Any) -> None:
            self.name = job.name

        def poll(self) -> int | None:
            return None

        def stop(self) -> None:
            did.append(f"stop {self.name}")

        def end(self) -> None:
            did.append(f"end {self.name}")

    def interrupt(now: Standing) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(grid(), tmp_path / "out", jobs=2, tell=str, show=interrupt, start=Endless)
    names = ["teachers/few", "teachers/more"]
    assert did == [*(f"stop {name}" for name in names), *(f"end {name}" for name in names)]


def test_an_interruption_keeps_what_is_done(whole: Any, grid: Any, tmp_path: Path) -> None:
    """Tables and cells, though nobody had written them since they were finished."""
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    shutil.rmtree(out / "results")

    def interrupt(now: Standing) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(grid(), out, tell=never, show=interrupt, start=never)
    for name in ("cells.jsonl", "glue.md"):
        assert (out / "results" / name).read_bytes() == (whole[0] / "results" / name).read_bytes()


def test_a_process_ends_when_it_is_told_to_and_with_whoever_started_it(whole: Any, grid: Any, tmp_path: Path) -> None:
    jobs = plan(grid(), tmp_path / "out")
    for number, end in enumerate((lambda process: process.stop(), lambda process: process._process.stdin.close())):
        jobs[number].claim()
        process = Subprocess(jobs[number], tmp_path / f"{number}.log", Share(threads=1))
        assert process.poll() is None
        time.sleep(0.5)
        end(process)
        process.end()
        assert process.poll() not in (None, 0)
        assert not jobs[number].done


def test_a_cell_in_a_process_of_its_own_is_an_ordinary_run_whose_student_may_go(
    whole: Any, grid: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    shutil.rmtree(out / "cells" / CELLS[0])
    assert run(grid(keep_students=False), out, tell=str) == {}
    assert figures(out, CELLS[0]) == figures(whole[0], CELLS[0])
    assert "the student learns labels, soft-labels" in (out / "logs" / f"{CELLS[0]}.log").read_text()
    kept = contents(out / "cells" / CELLS[0])
    assert "student/model.safetensors" not in kept
    assert {"student/config.json", "predictions.npz", "metrics.json"} <= set(kept)
    assert run(grid(keep_students=False), out, tell=never, start=never) == {}


def test_jobs_side_by_side_share_the_gpus(here: Any, grid: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sees one, the freest; the others' names are those that the command itself was given."""
    monkeypatch.setattr(running, "gpus", lambda: ["3", "GPU-5"])
    at_work: dict[str, str] = {}
    seen: list[str] = []

    class Slow:
        """A job that is over when asked for the third time."""

        def __init__(self, job: Job, log: Path, share: Any) -> None:
            self.job, self.asked = job, 0
            seen.append(share.gpu)
            at_work[job.name] = share.gpu
            assert (
                max(Counter(at_work.values()).values()) - min(Counter(at_work.values()).get(gpu, 0) for gpu in ("3", "GPU-5"))
                <= 1
            )
            here(job, log, share)

        def poll(self) -> int | None:
            self.asked += 1
            if self.asked < 3:
                return None
            at_work.pop(self.job.name, None)
            return 0

        def stop(self) -> None:
            pass

        end = stop

    few = grid().model_copy(update={"tasks": {"few": grid().tasks["few"]}})
    assert run(few, tmp_path / "out", jobs=3, tell=str, start=Slow) == {}
    assert set(seen) == {"3", "GPU-5"}


def test_nobody_waits_for_lessons_that_another_builds_while_other_tasks_have_work(
    whole: Any, grid: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    class Slow:
        """A job that looks at its task's lessons, then learns (its folder says so), then fails, to leave nothing."""

        def __init__(self, job: Job, log: Path, share: Any) -> None:
            self.job, self.asked = job, 0
            begun.append(job.name)

        def poll(self) -> int | None:
            self.asked += 1
            if self.asked == 2:
                self.job.folder.mkdir(parents=True, exist_ok=True)
                (self.job.folder / "log.jsonl").touch()
            return 1 if self.asked > 3 else None

        def stop(self) -> None:
            pass

        end = stop

    monkeypatch.setattr(running, "_PAUSE", 0)
    teachers = {name: str(whole[0] / "teachers" / name / "teacher") for name in ("more", "few")}
    assert len(run(grid(teachers=teachers), tmp_path / "out", jobs=2, tell=str, start=Slow)) == 8
    assert [name.split("/")[0] for name in begun[:2]] == ["few", "more"]
    assert [name for name in begun if name.startswith("few")] == CELLS[:4]  # else in their order
    alone = grid(teachers=teachers).model_copy(update={"tasks": {"few": grid().tasks["few"]}})
    begun.clear()
    run(alone, tmp_path / "alone", jobs=2, tell=str, start=Slow)
    assert begun == CELLS[:4]  # with nothing else to do, they wait


@pytest.mark.parametrize(
    ("named", "count", "found"), [(None, 2, ["0", "1"]), ("3,GPU-5", 2, ["3", "GPU-5"]), ("", 0, []), ("-1", 0, [])]
)
def test_gpus_go_by_the_names_they_were_given(
    named: str | None, count: int, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    assert gpus() == found


def test_a_process_sees_its_share_alone(grid: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, str]] = []
    monkeypatch.setattr("subprocess.Popen", lambda *what, env, **how: given.append(env))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    job = plan(grid(), tmp_path / "out")[0]
    for gpu in ("1", None):
        Subprocess(job, tmp_path / "said.log", Share(threads=3, gpu=gpu))
    assert [(env["OMP_NUM_THREADS"], env["CUDA_VISIBLE_DEVICES"]) for env in given] == [("3", "1"), ("3", "0,1")]


def test_one_process_at_a_time_has_the_experiment(whole: Any, grid: Any) -> None:
    out, _, _ = whole
    with (
        FileLock(out / ".lock"),
        pytest.raises(ValueError, match="worked on by another process; wait for it, or use its --jobs"),
    ):
        run(grid(), out, start=never)


def test_the_time_to_go_is_told_from_the_most_similar_jobs(tmp_path: Path, grid: Any) -> None:
    jobs = {job.name: job for job in plan(grid(), tmp_path / "out")}
    assert [jobs[name].cost for name in ("few/small/plain/0", "more/small/plain/0", "teachers/more")] == [32, 64, 64]
    path = tmp_path / "durations.jsonl"
    clock = Clock(path)
    assert clock.guess(jobs["more/small/plain/0"]) is None
    clock.add(jobs["few/small/plain/0"], 6.0, 1)  # failed, and tried again
    clock.add(jobs["few/small/plain/0"], 2.0, 0)
    clock.add(jobs["few/small/perturbation/0"], 16.0, 0)
    with path.open("a") as file:
        file.write('{"name": "cut o')
    for each in (clock, Clock(path)):
        assert each.guess(jobs["few/small/plain/1"]) == 8.0  # as the other seed took
        assert each.guess(jobs["more/small/plain/1"]) == 16.0  # as the method on the other task, by rows
        assert each.guess(jobs["more/small/perturbation/0"]) == 32.0
        assert each.guess(jobs["teachers/more"]) == 24.0  # 24 s for 64 rows by now


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tasks": ["mprc"]}, r"mprc/small/plain/0: unknown GLUE task 'mprc', did you mean 'mrpc'\?"),
        ({"methods": {"plain": {"train": {"lerning_rate": 1}}}}, r"few/small/plain/0: .*did you mean 'learning_rate'\?"),
        ({"methods": {"plain": {"objectives": {"gradeint": {}}}}}, r"did you mean 'gradient'\?"),
        ({"methods": {"hidden": {"objectives": {"relations": {"relation_heads": 3}}}}}, r"without: \[hidden\]"),
        ({"students": {"small": "nowhere/to/be/found"}}, "does not exist"),
        ({"seeds": []}, "has no such cell"),
        ({"methods": {"plain": {"train": {"num_train_epochs": None}}}}, "few/small/plain/0: train.num_train_epochs: .*None"),
        ({"methods": {"plain": {"train": {"metric_for_best_model": "acuracy"}}}}, "metric_for_best_model: found 'acuracy'"),
        ({"methods": ["plain", "augment"], "students": {"other": "OTHER"}}, r"data.augment.mask writes \[MASK\] for a word"),
    ],
    ids=[
        "task",
        "setting",
        "objective",
        "method that does not fit",
        "student",
        "no cell",
        "no number",
        "metric",
        "mask token of a later method",
    ],
)
def test_a_bad_cell_is_refused_before_anything_is_done(
    grid: Any, shop: Path, tokenizer: Any, tmp_path: Path, settings: Any, said: str
) -> None:
    if settings.get("students") == {"other": "OTHER"}:
        shutil.copytree(shop / "small", tmp_path / "other")
        other = copy.deepcopy(tokenizer)
        other.mask_token = "the"  # a word that it knows
        other.save_pretrained(tmp_path / "other")
        settings = settings | {"students": {"other": str(tmp_path / "other")}}
    bad = grid(**({"tasks": {"few": grid().tasks["few"].model_dump()}} | settings))
    with pytest.raises(ValueError, match=said) as refused:
        run(bad, tmp_path / "out", start=never)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()
