"""The page about explainers says what the code says."""

from dataclasses import fields
from pathlib import Path

import pytest

from egkd.explain import EXPLAINERS, SelectorSettings
from egkd.explain.catalogue import catalogue

PAGE = Path(__file__).parents[2] / "docs" / "explainers.md"


def test_the_committed_page_is_what_the_code_generates() -> None:
    expected = "write it again: python -m egkd.explain.catalogue > docs/explainers.md"
    assert PAGE.read_text(encoding="utf-8") == catalogue(), expected


@pytest.mark.parametrize("name", EXPLAINERS)
def test_every_explainer_is_advised_and_has_all_its_settings(name: str) -> None:
    page = catalogue()
    advice = page[page.index("## Which one") : page.index("## All of them")]
    assert f"`{name}`" in advice
    chapter = page[page.index(f"### {name}\n") :].split("\n#")[0]
    assert [each.name for each in fields(EXPLAINERS[name]) if f"| `{each.name}` |" not in chapter] == []
    assert f"[`{name}`](#{name}) | {EXPLAINERS[name].family} |" in page


def test_no_setting_is_without_a_word_about_it_and_limits_are_told() -> None:
    lines = [line for line in catalogue().splitlines() if line.startswith("| `")]
    assert len(lines) == sum(len(fields(one)) for one in [*EXPLAINERS.values(), SelectorSettings])
    assert [line for line in lines if line.endswith("|  |")] == []
    assert any(line.startswith("| `n_samples` | `24` | above 1; a multiple of 2 | Orders") for line in lines)
