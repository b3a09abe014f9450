"""The README's Python runs as it stands, on small models in the folders it names."""

import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

README = Path(__file__).parents[1] / "README.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
TRAINING = [code for code in SNIPPETS if "DistillationTrainer(" in code]


def test_the_readme_shows_the_trainer_in_under_twenty_lines() -> None:
    (code,) = TRAINING
    call = code[code.index("DistillationTrainer(") :]
    for name in ("model", "teacher", "objectives", "args", "train_dataset", "processing_class"):
        assert f"{name}=" in call
    assert len(code[code.index("teacher = ") :].strip().splitlines()) < 20
    assert len(SNIPPETS) == len(TRAINING)  # others would have to be run, too


@pytest.mark.parametrize("code", TRAINING)
def test_it_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Any, write_csv: Any, tiny_data: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    loaded = set(re.findall(r'from_pretrained\("([^"]+)"', code))
    files = set(re.findall(r'from_csv\("([^"]+)"', code))
    assert loaded
    assert files
    for number, folder in enumerate(sorted(loaded)):
        save(Path(folder), layers=1, width=16, seed=number)
    for file in files:
        write_csv(Path(file), text=tiny_data["text"][:16], label=tiny_data["label"][:16])
    before = {path.name for path in tmp_path.iterdir()}
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    trainer = names["trainer"]
    terms = {name for line in trainer.state.log_history for name in line if name.startswith("loss/")}
    assert trainer.state.global_step == trainer.state.max_steps > 0
    assert not terms or terms == {f"loss/{objective.name}" for objective in trainer.objectives}
    saved = re.findall(r'save_model\("([^"]+)"\)', code)
    for folder in saved:
        assert folder not in before
        assert AutoModelForSequenceClassification.from_pretrained(folder).config.num_labels == 2
        AutoTokenizer.from_pretrained(folder)
