"""Settings: from YAML, flags and assignments into one checked description, or one line that says what is wrong."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from egkd.cli.options import settings_of
from egkd.config import EvaluateConfig, Guide, RunConfig, check, merge, near, override, read_yaml, resolve

SMALLEST: dict[str, Any] = {"teacher": "my-teacher", "data": {"task": "sst2"}}


def complaint(settings: dict[str, Any], guides: list[Guide] | None = None) -> str:
    """What `resolve` says; it must be one line."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        resolve(settings, guides or [])
    message = str(caught.value)
    assert "\n" not in message
    assert "pydantic" not in message
    return message


def test_the_smallest_run_has_defaults() -> None:
    config = resolve(SMALLEST)
    assert config.objectives == {"labels": {}, "soft-labels": {}}
    assert (config.student, config.seed, config.max_length) == ("layers:3", 0, 128)
    assert config.train_arguments["seed"] == config.train_arguments["data_seed"] == 0


def test_training_arguments_lie_over_defaults_and_the_seed() -> None:
    config = resolve(SMALLEST | {"seed": 7, "train": {"learning_rate": 1e-3, "seed": 9}, "teach": {"num_train_epochs": 1}})
    assert config.train_arguments["learning_rate"] == 1e-3
    assert (config.train_arguments["seed"], config.train_arguments["data_seed"]) == (9, 7)
    assert config.train_arguments["num_train_epochs"] == 3
    assert (config.teach_arguments["num_train_epochs"], config.teach_arguments["learning_rate"]) == (1, 5e-5)


@pytest.mark.parametrize("guide", [Guide.gradient, Guide.perturbation, Guide.selection])
def test_a_guide_joins_the_answers(guide: Guide) -> None:
    assert resolve(SMALLEST, [guide]).objectives == {"labels": {}, "soft-labels": {}, guide.value: {}}


def test_guides_keep_settings_of_the_file_and_of_each_other() -> None:
    settings = SMALLEST | {"objectives": {"gradient": {"weight": 5}, "labels": {"weight": 0}}}
    objectives = resolve(settings, [Guide.selection, Guide.gradient]).objectives
    assert objectives == {"labels": {"weight": 0}, "soft-labels": {}, "selection": {}, "gradient": {"weight": 5}}


def test_guide_none_is_plain_and_stands_alone() -> None:
    assert resolve(SMALLEST, [Guide.none]).objectives == {"labels": {}, "soft-labels": {}}
    assert "--guide none cannot stand beside --guide gradient" in complaint(SMALLEST, [Guide.none, Guide.gradient])


def test_an_objective_without_settings_is_switched_on() -> None:
    assert resolve(SMALLEST | {"objectives": {"gradient": None}}).objectives["gradient"] == {}
    assert resolve(SMALLEST | {"objectives": None}).objectives == {"labels": {}, "soft-labels": {}}


def test_a_name_alone_changes_nothing_of_a_preset() -> None:
    wanted = resolve(SMALLEST | {"preset": "replacement"}).objectives
    assert wanted["perturbation"]["weight"] > 0
    for given in (None, {}):
        assert resolve(SMALLEST | {"preset": "replacement", "objectives": {"perturbation": given}}).objectives == wanted


def test_guide_none_contradicts_a_preset_that_guides() -> None:
    assert resolve(SMALLEST | {"preset": "plain"}, [Guide.none]).objectives == {"labels": {}, "soft-labels": {}}
    assert "--guide none cannot stand beside --preset all-first" in complaint(SMALLEST | {"preset": "all-first"}, [Guide.none])


@pytest.mark.parametrize(
    "word", ["3e-5", "1e3", "010", "no", "1:30", "null", "~", "2026-01-02", "", ".5", "0x1f", "1_000", "True"]
)
def test_words_that_look_like_numbers_come_back_as_words(tmp_path: Path, word: str) -> None:
    config = resolve({"teacher": word or "t", "data": {"train": "a.csv", "text": word, "seed": 8}})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert resolve(read_yaml(tmp_path / "config.yaml")) == config
    assert yaml.safe_load(config.to_yaml())["data"]["text"] == word  # other readers, too


def test_the_folder_of_lessons_may_lie_at_home() -> None:
    assert resolve(SMALLEST | {"lessons": "~/lessons"}).lessons == Path.home() / "lessons"


def test_nothing_given_is_changed() -> None:
    settings = SMALLEST | {"objectives": {"gradient": {"weight": 5}}}
    before = yaml.safe_dump(settings)
    resolve(override(settings, ["objectives.gradient.weight=1", "data.train_limit=3"]), [Guide.selection])
    assert yaml.safe_dump(settings) == before


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"techer": "x"}, ["unknown setting 'techer'", "did you mean 'teacher'?"]),
        ({"data": {"task": "sst2", "glue_dirr": "x"}}, ["unknown setting 'data.glue_dirr'", "did you mean 'glue_dir'?"]),
        ({"evaluate": {"explaned": 3}}, ["unknown setting 'evaluate.explaned'", "did you mean 'explained'?"]),
        ({"evaluate": {"zzz": 3}}, ["unknown setting 'evaluate.zzz'", "known are explained, latency_repeats, shown"]),
        ({"max_length": "long"}, ["max_length", "integer", "found 'long'"]),
        ({"max_length": 2}, ["max_length", "greater than or equal to 5", "found 2"]),
        ({"seed": -1}, ["seed", "found -1"]),
        ({"data": {"task": "sst2", "train_limit": 0}}, ["data.train_limit", "found 0"]),
        ({"data": {"task": "sst2", "kind": "ranking"}}, ["data.kind", "'classification'", "found 'ranking'"]),
        ({"data": 5}, ["data", "found 5"]),
        ({"data": {"task": "sst2", "train": ["a.csv"]}}, ["data", "both task 'sst2' and train files", "either"]),
        ({"data": {}}, ["data", "found neither", "--task", "--train"]),
        ({"teacher_init": "y"}, ["found both", "--teacher", "--teacher-init"]),
        ({"teacher": None}, ["found neither", "--teacher", "--teacher-init"]),
        ({"objectives": ["gradient"]}, ["objectives", "dictionary", "found ['gradient']"]),
        ({"objectives": {"gradient": 5}}, ["objectives.gradient", "dictionary", "found 5"]),
        ({"objectives": {"labels": 0}}, ["objectives.labels", "dictionary", "found 0"]),
        ({"objectives": {"gradient": False}}, ["objectives.gradient", "dictionary", "found False"]),
        ({"train": 3}, ["train", "dictionary", "found 3"]),
        ({"data": {"task": "sst2", "held_out": True}}, ["data.held_out", "found true, expected a number of rows"]),
        ({"teacher": ["a", "b"], "teacher_weights": [float("nan"), 1]}, ["found teacher_weights nan, 1"]),
        ({"teacher": ["a", "b"], "teacher_weights": [float("inf"), 1]}, ["found teacher_weights inf, 1"]),
    ],
)
def test_wrong_settings_are_one_line_with_place_find_and_expectation(settings: dict[str, Any], parts: list[str]) -> None:
    message = complaint(SMALLEST | settings)
    assert [part for part in parts if part not in message] == []


def test_a_run_without_data_says_what_to_give() -> None:
    assert "--task" in complaint({"teacher": "x"})


def test_guides_beside_objectives_that_are_no_settings() -> None:
    assert "found ['gradient']" in complaint(SMALLEST | {"objectives": ["gradient"]}, [Guide.gradient])


def test_near_names() -> None:
    assert near("weigth", ["weight", "seed"]) == "did you mean 'weight'?"
    assert near("zzz", ["weight", "seed"]) == "known are seed, weight"


def test_check_names_the_section() -> None:
    with pytest.raises(ValueError, match=r"^unknown setting 'here\.shwn'; did you mean 'shown'\?$"):
        check(EvaluateConfig, {"shwn": 1}, "here")
    assert check(EvaluateConfig, {"shown": 1}).shown == 1


def test_assignments_are_yaml_and_reach_inside() -> None:
    assignments = ["a.b.c=1", "a.b.d=[1, x]", "a.e= two words", "f=", "g=x=y", " h.i =true", "j=a: b: c"]
    assert override({"a": {"b": {"c": 0, "z": 9}}}, assignments) == {
        "a": {"b": {"c": 1, "d": [1, "x"], "z": 9}, "e": "two words"},
        "f": None,
        "g": "x=y",
        "h": {"i": True},
        "j": "a: b: c",
    }


def test_an_assignment_opens_a_section_where_a_value_stood() -> None:
    assert override({"a": 5}, ["a.b=1"]) == {"a": {"b": 1}}
    with pytest.raises(ValueError, match=r"^--set a\.b=1: a is a list, \['c', 'd'\], whose entries have no settings"):
        override({"a": ["c", "d"]}, ["a.b=1"])


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-3", 0.001),
        ("-2E+5", -200000.0),
        (".5e1", 5.0),
        ("5", 5),
        ("0.5", 0.5),
        ("1e", "1e"),
        ("no", "no"),
        ("off", "off"),
        ("false", False),
        ("True", True),
        ("null", None),
        ("none", "none"),
        ("010", 10),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2026-01-02", "2026-01-02"),
        (".inf", float("inf")),
    ],
)
def test_words_and_numbers_are_what_they_look_like(tmp_path: Path, written: str, meant: Any) -> None:
    """PyYAML takes 1e-3 for a word and `no`, a value of save_strategy, for false."""
    (tmp_path / "settings.yaml").write_text(f"x: {written}\n")
    for found in (override({}, [f"x={written}"])["x"], read_yaml(tmp_path / "settings.yaml")["x"]):
        assert found == meant
        assert type(found) is type(meant)


@pytest.mark.parametrize("assignment", ["weight", "=5", " =5", ""])
def test_an_assignment_without_name_or_value_is_refused(assignment: str) -> None:
    with pytest.raises(ValueError, match=r"--set .* write --set name\.inner=value"):
        override({}, [assignment])


def test_merge_goes_into_sections_and_replaces_everything_else() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 4, "e": {"f": 1}}
    assert merge(base, {"a": {"c": [3]}, "d": {"x": 1}, "e": 5}) == {"a": {"b": 1, "c": [3]}, "d": {"x": 1}, "e": 5}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 4, "e": {"f": 1}}


def test_flags_go_over_the_file_and_assignments_over_flags(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("teacher: a\nseed: 3\nmax_length: 50\ndata: {task: sst2, train_limit: 9}\n")
    flags = {"teacher": None, "seed": 0, "trust_remote_code": False, "data": {"task": "rte", "train_limit": None}, "train": {}}
    assert settings_of(file, flags, ["max_length=40", "data.eval_limit=2"]) == {
        "teacher": "a",
        "seed": 0,
        "max_length": 40,
        "data": {"task": "rte", "train_limit": 9, "eval_limit": 2},
    }


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"- a\n- b\n", ["holds list", "expected settings"]),
        (b"", ["holds NoneType", "expected settings"]),
        (b"a: [1\nb: 2\n", ["cannot read settings"]),
        (b"\xff\xfe\x00", ["cannot read settings"]),
        (b"train: {a: 1}\nseed: 1\ntrain: {b: 2}\n", ["cannot read settings", "'train' stands there twice", "line 3"]),
        (b"a: !!timestamp foo\n", ["cannot read settings"]),
        (None, ["cannot read settings", "No such file"]),
    ],
)
def test_a_broken_settings_file_is_one_line_with_its_name(tmp_path: Path, content: bytes | None, parts: list[str]) -> None:
    file = tmp_path / "settings.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"settings\.yaml") as caught:
        read_yaml(file)
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == []


def test_a_config_comes_back_from_its_yaml_and_is_plain_yaml(tmp_path: Path) -> None:
    config = resolve(
        {
            "teacher_init": "größe/é",
            "student": "layers:0,2,4",
            "data": {"train": "my.csv", "eval": ["a.csv", "b.csv"], "text": "no", "label": "sterne"},
            "objectives": {"gradient": {"weight": 1e-7}},
            "train": {"learning_rate": 1e-5, "save_strategy": "no"},
            "lessons": "here/lessons",
        },
        [Guide.perturbation],
    )
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert "größe/é" in config.to_yaml()
    assert config.data.train == (Path("my.csv"),)
    assert resolve(read_yaml(tmp_path / "config.yaml")) == config
    assert yaml.safe_load(config.to_yaml()) == config.model_dump(mode="json")


def test_a_config_cannot_be_changed() -> None:
    config = resolve(SMALLEST)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 4  # type: ignore[misc]
    assert isinstance(config, RunConfig)


def test_students_with_random_weights_learn_faster() -> None:
    base: dict[str, Any] = {"teacher": "t", "data": {"task": "sst2"}}
    rates = [
        resolve(base | {"student": student, "train": train}).train_arguments["learning_rate"]
        for student, train in (
            ("layers:3", {}),
            ("bilstm:hidden=20", {}),
            ("textcnn", {}),
            ("textcnn", {"learning_rate": 2e-5}),
        )
    ]
    assert rates == [1e-4, 1e-3, 1e-3, 2e-5]
