"""An experiment described: which cells it has, and which run each of them is."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from egkd.checks import objectives_of
from egkd.config import RunConfig, read_yaml
from egkd.experiments.grid import Cell, Choice, GridConfig, student_name
from egkd.experiments.methods import METHODS, method_settings
from egkd.objectives import OBJECTIVES

EXAMPLES = [
    path
    for path in sorted((Path(__file__).parents[2] / "examples").rglob("*.yaml"))
    if {"tasks", "students"} <= set(read_yaml(path))
]
OUT = Path("out")


def grid(**settings: Any) -> GridConfig:
    base = {"teacher_init": "an-encoder"} | settings.pop("base", {})
    return GridConfig.of({"tasks": ["mrpc"], "students": ["layers:2"], "methods": ["plain"], "base": base} | settings)


def only(config: GridConfig) -> RunConfig:
    (cell, *_) = config.cells()
    return config.config(cell, OUT)


def weights(config: RunConfig) -> dict[str, float]:
    return {objective.name: objective.weight for objective in objectives_of(config) if objective.weight > 0}


def test_all_methods_with_one_seed_come_before_the_next_seed() -> None:
    config = grid(tasks=["mrpc", "cola"], students=["layers:2", "bilstm"], methods=["plain", "labels"], seeds=[0, 1])
    found = [(cell.task, cell.seed, cell.student, cell.method) for cell in config.cells()]
    assert len(found) == 16
    assert found[:5] == [
        ("mrpc", 0, "layers-2", "plain"),
        ("mrpc", 0, "layers-2", "labels"),
        ("mrpc", 0, "bilstm", "plain"),
        ("mrpc", 0, "bilstm", "labels"),
        ("mrpc", 1, "layers-2", "plain"),
    ]


def test_a_task_has_its_own_seeds_and_leaves_methods_out() -> None:
    tasks = {"mrpc": {"seeds": [7]}, "stsb": {"without": ["gkd"]}}
    config = grid(tasks=tasks, methods=["plain", "gkd"], seeds=[0, 1])
    assert [str(cell) for cell in config.cells()] == [
        "mrpc/layers-2/plain/7",
        "mrpc/layers-2/gkd/7",
        "stsb/layers-2/plain/0",
        "stsb/layers-2/plain/1",
    ]


def test_a_part_of_a_grid_keeps_its_order() -> None:
    config = grid(tasks={"mrpc": {"seeds": [1, 2]}, "cola": {}}, methods=["plain", "labels"], seeds=[0, 1])
    assert [str(cell) for cell in config.cells(Choice(seeds=(1,), methods=("labels",)))] == [
        "mrpc/layers-2/labels/1",
        "cola/layers-2/labels/1",
    ]
    assert [str(cell) for cell in config.cells(Choice(tasks=("mrpc",), methods=("plain",)))] == [
        "mrpc/layers-2/plain/1",
        "mrpc/layers-2/plain/2",
    ]
    assert list(config.cells(Choice())) == list(config.cells())


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("layers:0,2,4", "layers-0-2-4"),
        ("layers:3,ffn=768", "layers-3-ffn-768"),
        ("sentence-transformers/paraphrase-MiniLM-L3-v2", "paraphrase-MiniLM-L3-v2"),
        ("/somewhere/small/", "small"),
        ("bilstm", "bilstm"),
    ],
)
def test_a_student_without_a_name_gets_one(spec: str, name: str) -> None:
    assert student_name(spec) == name
    assert grid(students=[spec]).students == {name: {"student": spec}}


def test_settings_lie_over_each_other_from_base_to_the_task_s_own_for_a_method() -> None:
    """Each layer sets one thing that no later one does, and one that all do."""

    def layer(own: str, place: int) -> dict[str, Any]:
        return {"train": {own: place, "logging_steps": place}}

    order = ["num_train_epochs", "warmup_steps", "learning_rate", "save_steps", "eval_steps"]
    base, task, student, method, special = (layer(own, place) for place, own in enumerate(order))
    last: list[int] = []
    for layers in range(1, 6):
        given = [*[base, task, student, method, special][:layers], *[{}] * (5 - layers)]
        config = only(
            grid(
                base=given[0],
                tasks={"mrpc": given[1] | {"methods": {"mine": given[4]}}},
                students={"s": {"student": "layers:2"} | given[2]},
                methods={"mine": {"like": "plain"} | given[3]},
            )
        )
        assert {name: config.train[name] for name in order[:layers]} == {
            name: place for place, name in enumerate(order[:layers])
        }
        last.append(config.train["logging_steps"])
    assert last == [0, 1, 2, 3, 4]


def test_an_entry_that_names_no_data_is_the_task_of_its_name() -> None:
    config = grid(tasks={"mrpc": {}, "few": {"task": "sst2", "train_limit": 100}, "mine": {"data": {"train": "a.csv"}}})
    found = {cell.task: config.config(cell, OUT).data for cell in config.cells() if cell.seed == 0}
    assert (found["mrpc"].task, found["mrpc"].train_limit) == ("mrpc", None)
    assert (found["few"].task, found["few"].train_limit) == ("sst2", 100)
    assert (found["mine"].task, found["mine"].train) == (None, (Path("a.csv"),))


def test_cells_share_lessons_and_differ_in_their_seed() -> None:
    config = grid(seeds=[3, 4])
    first, second = (config.config(cell, OUT) for cell in config.cells())
    assert first.lessons == second.lessons == OUT / "lessons"
    assert (first.seed, second.seed) == (3, 4)
    assert first.model_copy(update={"seed": 4}) == second


@pytest.mark.parametrize("name", METHODS)
def test_a_built_in_method_is_plain_distillation_and_what_its_name_says(name: str) -> None:
    found = weights(only(grid(methods=[name])))
    own = {
        "labels": {"labels"},
        "pkd": {"patient-states"},
        "tinybert": {"hidden-states", "attention-maps"},
        "minilm": {"relations"},
        "all": {"gradient", "perturbation", "selection"},
        "replacement": {"perturbation"},
        "replacement-first": {"perturbation"},
        "all-first": {"gradient", "perturbation", "selection"},
        "augmented-replacement": {"perturbation"},
    }.get(name, {name} if name in OBJECTIVES else set())
    assert set(found) == own | ({"labels", "soft-labels"} if name != "labels" else set())
    if name in ("gradient", "perturbation", "selection", "all"):
        assert {part: found[part] for part in own} == {part: OBJECTIVES[part]().weight for part in own}


def test_methods_together_have_what_each_has() -> None:
    together = only(grid(methods=["gradient+pkd"]))
    assert set(weights(together)) == {"labels", "soft-labels", "gradient", "patient-states"}
    with_preset = only(grid(methods=["ad-kd+selection"]))
    alone = only(grid(methods=["ad-kd"]))
    assert weights(with_preset) == weights(alone) | {"selection": OBJECTIVES["selection"]().weight}


def test_a_method_of_one_s_own_begins_with_another() -> None:
    own = {
        "gradient": {"objectives": {"gradient": {"weight": 2.0}}},
        "signed": {"like": "gradient", "objectives": {"gradient": {"attribution": "input-x-gradient"}}},
        "both": {"like": "signed+pkd", "train": {"learning_rate": 1.0}},
    }
    assert method_settings("gradient", own) == {"objectives": {"gradient": {"weight": 2.0}}}
    assert method_settings("signed", own)["objectives"]["gradient"] == {"weight": 2.0, "attribution": "input-x-gradient"}
    both = method_settings("both", own)
    assert set(both["objectives"]) == {"gradient", "patient-states"}
    assert both["train"] == {"learning_rate": 1.0}


def test_a_teacher_is_fine_tuned_once_on_more_than_its_students_get() -> None:
    tasks = {
        "sst2": {"train_limit": 1000, "seeds": [0]},
        "sst2-100": {"task": "sst2", "train_limit": 100, "teacher_of": "sst2"},
    }
    config = grid(
        tasks=tasks, teacher_data={"train_limit": None}, base={"teach": {"num_train_epochs": 2}, "student_dropout": 0.0}
    )
    teachers = {cell.task: config.config(cell, OUT).teacher for cell in config.cells()}
    assert teachers["sst2"] == teachers["sst2-100"] == str(OUT / "teachers" / "sst2" / "teacher")
    trained = config.teacher_config("sst2-100")
    assert trained == config.teacher_config("sst2")
    assert trained is not None
    assert (trained.teacher_init, trained.data.task, trained.data.train_limit) == ("an-encoder", "sst2", None)
    assert trained.teach == {"num_train_epochs": 2}
    assert trained.student_dropout is None  # what is the students' is not the teacher's


def test_a_limit_that_is_no_number_is_one_line(tmp_path: Path) -> None:
    (cell,) = grid(seeds=0).cells()
    with pytest.raises(ValueError, match=r"^mrpc/layers-2/plain/0: [^\n]*train_limit[^\n]*$"):
        grid(tasks={"mrpc": {"train_limit": "x"}}, limit=3).config(cell, tmp_path)
    with pytest.raises(ValueError, match=r"^the teacher of mrpc: [^\n]*train_limit[^\n]*$"):
        grid(teacher_data={"train_limit": "x"}, limit=3).teacher_config("mrpc")


def test_a_teacher_may_be_lent_by_a_task_that_is_not_compared() -> None:
    trained = grid(tasks={"few": {"task": "sst2", "train_limit": 100, "teacher_of": "sst2"}}).teacher_config("few")
    assert trained is not None
    assert (trained.data.task, trained.data.train_limit) == ("sst2", None)


def test_a_teacher_does_not_learn_the_rows_that_judge_its_students() -> None:
    tasks = {
        "many": {"task": "sst2", "teacher_of": "sst2", "data": {"held_out": 40}},
        "few": {"task": "sst2", "train_limit": 100, "teacher_of": "sst2"},
    }
    trained = grid(tasks=tasks).teacher_config("few")
    assert trained is not None
    assert (trained.data.held_out, trained.data.train_limit) == (40, None)
    known = grid(tasks=tasks, teacher_data={"held_out": None}).teacher_config("few")  # asked for by name
    assert known is not None
    assert known.data.held_out is None
    tasks["few"]["data"] = {"held_out": 0.5}
    with pytest.raises(ValueError, match=r"\(many 40 by data.seed 0, few 0.5 by data.seed 0\): give them the same"):
        grid(tasks=tasks).teacher_config("few")


def test_the_rows_that_judge_are_those_of_the_students_seed() -> None:
    tasks: dict[str, Any] = {
        "sst2": {"data": {"held_out": None}},
        "few": {"task": "sst2", "teacher_of": "sst2", "data": {"held_out": 40, "seed": 1}},
    }
    trained = grid(tasks=tasks).teacher_config("few")
    assert trained is not None
    assert (trained.data.held_out, trained.data.seed) == (40, 1)
    tasks["sst2"] = {"data": {"held_out": 40}}
    with pytest.raises(ValueError, match=r"hold out different ones \(sst2 40 by data.seed 0, few 40 by data.seed 1\)"):
        grid(tasks=tasks).teacher_config("few")


def test_a_given_teacher_is_taken_as_it_is() -> None:
    config = grid(tasks={"mrpc": {}, "few": {"task": "mrpc", "teacher_of": "mrpc"}, "cola": {}}, teachers={"mrpc": "mine"})
    assert {cell.task: config.config(cell, OUT).teacher for cell in config.cells()} == {
        "mrpc": "mine",
        "few": "mine",
        "cola": str(OUT / "teachers" / "cola" / "teacher"),
    }
    assert config.teacher_config("few") is None
    assert only(grid(tasks={"mrpc": {"teacher": "theirs"}})).teacher == "theirs"


def test_a_quick_look_limits_everybody_and_raises_no_limit() -> None:
    base = {"data": {"unlabeled": ["a.txt"]}}
    config = grid(tasks={"mrpc": {"train_limit": 20}, "cola": {}}, limit=64, teacher_data={"train_limit": None}, base=base)
    found = {cell.task: config.config(cell, OUT).data for cell in config.cells()}
    assert {task: (data.train_limit, data.eval_limit) for task, data in found.items()} == {"mrpc": (20, 64), "cola": (64, 64)}
    assert {data.unlabeled_limit for data in found.values()} == {64}
    trained = config.teacher_config("cola")
    assert trained is not None
    assert trained.data.train_limit == 64


def test_a_grid_is_kept_whole() -> None:
    config = grid(
        tasks={"mrpc": {"seeds": [1], "train": {"num_train_epochs": 9}}, "few": {"task": "sst2", "teacher_of": "sst2"}},
        methods={"mine": {"like": "gradient"}, "plain": None},
        limit=5,
    )
    assert GridConfig.of(yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"methods": ["plian"]}, "unknown method 'plian'; did you mean 'plain'?"),
        ({"methods": {"mine": {"like": "gradeint"}}}, "unknown method 'gradeint'; did you mean 'gradient'?"),
        ({"methods": {"a": {"like": "b"}, "b": {"like": "a"}}}, "like 'b' itself"),
        ({"methods": ["gkd+ad-kd"]}, "two presets, gkd and ad-kd"),
        ({"methods": []}, "methods names none"),
        ({"tasks": {"mrpc": {"without": ["gradeint"]}}, "methods": ["gradient"]}, "did you mean 'gradient'?"),
        ({"tasks": {"a/b": {}}}, "'a/b' is to name a folder"),
        ({"students": {"small": {"train": {}}}}, "students.small names no student"),
        ({"teachers": {"mprc": "x"}}, "unknown task 'mprc'; did you mean 'mrpc'?"),
        ({"sedes": [1]}, "unknown setting 'sedes'; did you mean 'seeds'?"),
        ({"limit": 0}, "limit: Input should be greater than 0, found 0"),
        ({"students": ["a/student", "b/student"]}, "students a/student and b/student would both be called student"),
        ({"students": None}, "students: Input should be a valid dictionary"),
        ({"tasks": {"mrpc": 3}}, "tasks.mrpc"),
    ],
)
def test_a_bad_grid_is_refused_in_a_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^[^\n]*{re.escape(said)}[^\n]*$"):
        grid(**settings)


def test_a_cell_that_cannot_be_says_which_it_is() -> None:
    with pytest.raises(ValueError, match=r"^mrpc/layers-2/plain/0: unknown setting 'wehn'"):
        only(grid(tasks={"mrpc": {"wehn": 3}}))
    with pytest.raises(ValueError, match=r"task mrpc has no teacher; .*--teacher mrpc=FOLDER"):
        only(grid(base={"teacher_init": None}))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda path: path.stem)
def test_every_cell_of_the_examples_is_a_run(file: Path) -> None:
    settings = read_yaml(file)
    settings["base"] = {"teacher_init": "what flags may give"} | settings.get("base", {})
    config = GridConfig.of(settings)
    cells = list(config.cells())
    assert len({str(cell) for cell in cells}) == len(cells) > 0
    assert config.baseline in config.methods
    seen: set[tuple[str, str]] = set()
    for cell in cells:
        if (cell.task, cell.method) not in seen:
            seen.add((cell.task, cell.method))
            assert weights(config.config(cell, OUT))
        config.teacher_config(cell.task)
    assert Cell(task="a", student="b", method="c", seed=1).folder(OUT) == OUT / "cells" / "a" / "b" / "c" / "1"
