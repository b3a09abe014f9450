"""What the pages say about settings is what the code has."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from egkd.config import STUDENT_LEARNING_RATE, TRAIN_DEFAULTS, WORD_LEARNING_RATE, EvaluateConfig, RunConfig
from egkd.config_data import DataConfig

PAGE = (Path(__file__).parents[1] / "docs" / "settings.md").read_text(encoding="utf-8")


def told(section: str) -> dict[str, str]:
    """The defaults of a section of the page, by setting; of settings in one row, the row's."""
    rows = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    cells = [row.split("|")[1:3] for row in rows.splitlines() if row.startswith("| `")]
    return {name: default.strip() for names, default in cells for name in re.findall(r"`(\w+)`", names)}


@pytest.mark.parametrize(("section", "model"), [("The run", RunConfig), ("`data`", DataConfig), ("`evaluate`", EvaluateConfig)])
def test_the_page_of_settings_has_all_of_them_with_their_defaults(section: str, model: type[BaseModel]) -> None:
    found = told(section)
    sections = {"data", "train", "teach", "evaluate"} if model is RunConfig else set()
    assert set(found) == set(model.model_fields) - sections
    for name, field in model.model_fields.items():
        if isinstance(field.default, bool | int | float | str):
            default = str(field.default).lower() if isinstance(field.default, bool) else f"{field.default}".removesuffix(".0")
            assert found[name].startswith((default, f"`{default}`")), name


def test_the_page_has_what_training_gets_by_default() -> None:
    found = told("`train` and `teach`")
    assert set(found) == {*TRAIN_DEFAULTS, "seed", "data_seed"}
    assert float(found["learning_rate"].split(";")[0]) == STUDENT_LEARNING_RATE
    assert f"{TRAIN_DEFAULTS['learning_rate']:.0e}".replace("e-0", "e-") in found["learning_rate"]
    assert f"{WORD_LEARNING_RATE:.0e}".replace("e-0", "e-") in found["learning_rate"]
    for name, default in TRAIN_DEFAULTS.items():
        assert name == "learning_rate" or str(default) in found[name], name


def test_every_page_can_be_reached_from_the_readme() -> None:
    docs = Path(__file__).parents[1] / "docs"
    readme = (docs.parent / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in docs.glob("*.md") if f"(docs/{page.name})" not in readme] == []
