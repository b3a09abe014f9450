"""Named settings of published methods: what they say, what goes over them, and what they do to a student."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from transformers import BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from egkd.checks import objectives_of
from egkd.config import Guide, RunConfig, resolve
from egkd.dropout import set_dropout
from egkd.experiments.grid import Choice, GridConfig
from egkd.models import embedding_layer, observe
from egkd.objectives import AttributionDistillation, GradientDistillation, Labels, PerturbationGuide, SoftLabels
from egkd.objectives.schedule import Schedule
from egkd.presets import PRESETS

SMALLEST: dict[str, Any] = {"teacher": "my-teacher", "data": {"task": "sst2"}}


def preset(name: str, task: str = "sst2", guides: tuple[Guide, ...] = (), **settings: Any) -> RunConfig:
    return resolve(SMALLEST | {"preset": name, "data": {"task": task}} | settings, guides)


def test_plain_is_what_a_run_without_preset_does() -> None:
    with_it, without = preset("plain").model_dump(), resolve(SMALLEST).model_dump()
    assert with_it | {"preset": None} == without


@pytest.mark.parametrize(
    ("task", "alpha", "temperature", "final", "beta", "top"),
    [
        ("cola", 0.9, 1.0, None, 1.0, None),
        ("mnli", 0.8, 3.0, 1.0, 10.0, None),
        ("mrpc", 0.9, 4.0, 1.0, 10.0, None),
        ("qnli", 0.9, 3.0, None, 100.0, None),
        ("qqp", 1.0, 4.0, 1.0, 50.0, 734),
        ("rte", 0.9, 2.0, None, 10.0, 700),
        ("sst2", 0.8, 2.0, None, 1.0, None),
        ("stsb", 0.8, 3.0, None, 1.0, 640),
        ("movie-reviews", 0.9, 3.0, None, 10.0, None),
    ],
)
def test_ad_kd_is_the_published_table(
    task: str, alpha: float, temperature: float, final: float | None, beta: float, top: int | None
) -> None:
    soft = SoftLabels(weight=alpha, temperature=temperature, final_temperature=final, distance="cross-entropy", scale="one")
    expected = [Labels(weight=round(1 - alpha, 6)), soft, AttributionDistillation(weight=beta, top_dimensions=top)]
    assert objectives_of(preset("ad-kd", task)) == expected


def test_replacement_is_perturbation_by_other_words_at_every_step() -> None:
    guide = PerturbationGuide(weight=3.0, operator="replace", masks_per_step=2, schedule=Schedule())
    assert objectives_of(preset("replacement")) == [Labels(), SoftLabels(), guide]
    grid = GridConfig.of({"tasks": ["sst2"], "methods": ["replacement"], "base": {"teacher": "my-teacher"}})
    (cell,) = grid.cells(Choice(seeds=(0,)))
    assert objectives_of(grid.config(cell, Path("out"))) == [Labels(), SoftLabels(), guide]


def test_replacement_first_is_the_same_until_six_tenths_of_the_training_are_over() -> None:
    (guide,) = objectives_of(preset("replacement-first"))[2:]
    (always,) = objectives_of(preset("replacement"))[2:]
    assert guide == always.model_copy(update={"schedule": Schedule(stop=0.6)})
    assert [step for step in range(10) if guide.schedule.factor(step, 10)] == list(range(6))
    grid = GridConfig.of({"tasks": ["sst2"], "methods": ["replacement-first"], "base": {"teacher": "my-teacher"}})
    (cell,) = grid.cells(Choice(seeds=(0,)))
    assert objectives_of(grid.config(cell, Path("out")))[2:] == [guide]


def test_augmented_replacement_shows_half_of_it_beside_changed_copies() -> None:
    config = preset("augmented-replacement")
    guide = PerturbationGuide(weight=3.0, operator="replace", masks_per_step=1, schedule=Schedule())
    assert objectives_of(config) == [Labels(), SoftLabels(), guide]
    assert config.data.augment.copies == 1
    assert preset("augmented-replacement", data={"task": "sst2", "augment": {"copies": 3}}).data.augment.copies == 3
    grid = GridConfig.of({"tasks": ["sst2"], "methods": ["augmented-replacement"], "base": {"teacher": "my-teacher"}})
    (cell,) = grid.cells(Choice(seeds=(0,)))
    found = grid.config(cell, Path("out"))
    assert (objectives_of(found), found.data.augment) == (objectives_of(config), config.data.augment)


def test_gkd_freezes_embeddings_and_drops_nothing() -> None:
    config = preset("gkd")
    soft = SoftLabels(weight=0.5, temperature=5.0, reduction="mean")
    assert objectives_of(config) == [Labels(weight=0.5), soft, GradientDistillation(weight=1.0)]
    assert (config.freeze_embeddings, config.student_dropout) == (True, 0.0)
    kept = preset("gkd", freeze_embeddings=False, student_dropout=None)
    assert (kept.freeze_embeddings, kept.student_dropout) == (False, None)


def test_guides_and_settings_go_over_a_preset() -> None:
    config = preset("ad-kd", objectives={"ad-kd": {"weight": 7}, "labels": {"weight": 0}}, guides=(Guide.perturbation,))
    assert list(config.objectives) == ["labels", "soft-labels", "ad-kd", "perturbation"]
    assert (config.objectives["ad-kd"]["weight"], config.objectives["labels"]["weight"]) == (7, 0)
    assert config.objectives["soft-labels"]["weight"] == 0.8


@pytest.mark.parametrize("name", PRESETS)
def test_a_resolved_preset_stays_what_it_is(name: str) -> None:
    config = preset(name, "mrpc")
    assert resolve(yaml.safe_load(config.to_yaml())) == config
    assert all(resolve(SMALLEST | {"preset": name, "data": data}) for data in ({"task": "wnli"}, {"train": "a.csv"}))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("adkd", "did you mean 'ad-kd'?"),
        ("zzz", "known are ad-kd, all-first, augmented-replacement, gkd, plain, replacement, replacement-first"),
    ],
)
def test_an_unknown_preset_is_told_the_near_one(name: str, near: str) -> None:
    with pytest.raises(ValueError, match="unknown preset") as caught:
        preset(name)
    assert str(caught.value) == f"unknown preset {name!r}; {near}"


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match="student_dropout"):
        preset("gkd", student_dropout=share)


def test_dropout_is_set_everywhere_and_the_config_keeps_its_own(tiny_bert: Any) -> None:
    model = tiny_bert(dropout=0.3).train()
    set_dropout(model, 0.0)
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.0}
    assert model.config.hidden_dropout_prob == 0.3
    ids = torch.tensor([[2, 5, 6, 3]])
    first, second = (observe(model, {"input_ids": ids}).logits_BC for _ in range(2))
    assert torch.equal(first, second)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 30}
    llama = LlamaForSequenceClassification(LlamaConfig(**sizes, attention_dropout=0.5, pad_token_id=0)).train()
    set_dropout(llama, 0.0)
    first, second = (observe(llama, {"input_ids": ids, "attention_mask": ids > 0}).logits_BC for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.usefixtures("calm_libraries")
@pytest.mark.parametrize("name", ["ad-kd", "gkd"])
def test_a_run_by_preset(
    name: str, egkd: Any, quick: list[str], save: Callable[..., Path], write_csv: Any, tmp_path: Path
) -> None:
    """From flags to a saved student; with gkd its embeddings are the teacher's still, and it says its own dropout."""
    teacher = save(tmp_path / "teacher", dropout=0.2)
    rows = {
        "text": ["a great film", "an awful plot", "a lovely cast", "the ending was dull"] * 4,
        "label": ["positive", "negative"] * 8,
    }
    files = [write_csv(tmp_path / f"{part}.csv", **rows) for part in ("train", "eval")]
    out = tmp_path / "run"
    parts = ("--teacher", teacher, "--student", "layers:0,1", "--train", files[0], "--eval", files[1], "--out", out)
    answer = egkd("distill", "--preset", name, *parts, *quick)
    assert answer.code == 0, answer.err
    learnt = {line["name"]: line for line in json.loads((out / "metrics.json").read_text())["objectives"]}
    assert list(learnt) == ["labels", "soft-labels", name]
    before, after = (BertForSequenceClassification.from_pretrained(folder) for folder in (teacher, out / "student"))
    same = [
        torch.equal(old, new)
        for old, new in zip(embedding_layer(before).parameters(), embedding_layer(after).parameters(), strict=True)
    ]
    assert all(same) is (name == "gkd")
    assert not torch.equal(before.classifier.weight, after.classifier.weight)
    assert after.config.hidden_dropout_prob == 0.2
    again = egkd("distill", "--preset", name, *parts, *quick)
    assert again.code == 0, again.err


def test_a_task_s_weights_are_found_in_any_spelling() -> None:
    runs = [resolve({"teacher": "t", "preset": "ad-kd", "data": {"task": task}}) for task in ("sst2", "SST-2")]
    assert runs[0].objectives == runs[1].objectives
    assert runs[0].objectives != resolve({"teacher": "t", "preset": "ad-kd", "data": {"task": "qqp"}}).objectives
