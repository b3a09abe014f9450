"""`egkd distill` with students of another architecture: all families of explanations, resuming, an early no."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml
from datasets import Dataset
from safetensors.torch import load_file
from transformers import pipeline

pytestmark = pytest.mark.usefixtures("calm_libraries")
GUIDES = ["gradient", "perturbation", "selection"]
SPECS = {
    "bilstm": "bilstm:hidden=6,embed=12,dense=8",
    "textcnn": "textcnn:filters=5,widths=2-3,embed=12",
    "thinner": "layers:2,ffn=16",
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, save: Any, write_csv: Any, tiny_data: Dataset) -> Path:
    """A folder with a teacher, word vectors, and reviews to train and evaluate on."""
    folder = tmp_path_factory.mktemp("students")
    save(folder / "teacher", dropout=0.1)
    names = ["negative" if label == 0 else "positive" for label in tiny_data["label"]]
    write_csv(folder / "train.csv", text=tiny_data["text"][:64], label=names[:64])
    write_csv(folder / "dev.csv", text=tiny_data["text"][64:], label=names[64:])
    words = sorted({word for text in tiny_data["text"] for word in text.lower().strip(".").split()})
    lines = [f"{word} {len(word)} {place / 10} {place % 3}" for place, word in enumerate(words)]
    (folder / "vectors.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def distil(shop: Path, egkd: Any, quick: list[str]) -> Callable[..., Any]:
    def run(name: str, student: str, *flags: Any) -> Any:
        data = ["--train", shop / "train.csv", "--eval", shop / "dev.csv"]
        out = shop / "runs" / name
        return egkd("distill", "--teacher", shop / "teacher", "--student", student, *data, *quick, *flags, "--out", out)

    return run


def losses(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name.startswith("loss")} for line in lines if "loss" in line]


@pytest.mark.parametrize("kind", [*SPECS, "vectors"])
def test_all_families_teach_it(kind: str, distil: Any, shop: Path) -> None:
    spec = SPECS.get(kind, f"textcnn:filters=5,widths=2-3,vectors={shop / 'vectors.txt'}")
    answer = distil(kind, spec, *(part for guide in GUIDES for part in ("--guide", guide)))
    assert answer.code == 0, answer.err
    run = shop / "runs" / kind
    assert len(losses(run)) == 4
    for line in losses(run):
        assert {f"loss/{guide}" for guide in GUIDES} <= set(line)
    for guide in GUIDES:  # each is paid for at its own steps
        assert sum(line[f"loss/{guide}"] for line in losses(run)) > 0
    metrics = json.loads((run / "metrics.json").read_text())["student"]
    weights = load_file(run / "student" / "model.safetensors")
    assert metrics["parameters"] == sum(value.numel() for value in weights.values())
    assert f"the student has {metrics['parameters'] / 1e6:.2f} million parameters" in " ".join(
        answer.err.split() + answer.out.split()
    )
    assert metrics["explanations"]["occlusion"]["all"]["spearman"]["n"] > 1
    assert yaml.safe_load((run / "config.yaml").read_text())["student"] == spec
    (found,) = pipeline("text-classification", model=str(run / "student"), device="cpu")("a lovely film")
    assert found["label"] in ("negative", "positive")


@pytest.mark.parametrize("kind", ["bilstm", "textcnn"])
def test_interrupted_training_ends_in_the_same_student(
    kind: str, distil: Any, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--guide", "gradient", "--set", "train.save_steps=2"]
    assert distil(f"{kind}-whole", SPECS[kind], *flags).code == 0
    done: list[int] = []
    step = transformers.Trainer.training_step

    def stopping(self: Any, *arguments: Any, **named: Any) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(self.state.global_step)
        return step(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(transformers.Trainer, "training_step", stopping)
        assert distil(f"{kind}-cut", SPECS[kind], *flags).code != 0
    assert distil(f"{kind}-cut", SPECS[kind], *flags).code == 0
    weights = [(shop / "runs" / f"{kind}-{how}" / "student" / "model.safetensors").read_bytes() for how in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_words_of_vectors_have_a_mask_and_a_broken_file_is_refused_early(distil: Any, shop: Path) -> None:
    (shop / "broken.txt").write_text("film 1 2\nstory 1\n")
    for spec, complaint in (
        (f"bilstm:vectors={shop / 'broken.txt'}", "line 2: found 1 numbers"),
        ("bilstm:hiden=3", "did you mean 'hidden'?"),
        ("bilstm:pairs=siamese", "reads two texts apart, and the data has one"),
        ("layers:2,heads=1", "set ffn"),
    ):
        answer = distil("never", spec)
        assert answer.code == 2
        assert complaint in " ".join(answer.err.split())
        assert not (shop / "runs" / "never").exists()
