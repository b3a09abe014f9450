"""The results of an experiment: figures by hand, the same tables from the file alone, and nothing averaged in silence."""

import csv
import html.parser
import io
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egkd.experiments.records import Record
from egkd.experiments.statistics import holm
from egkd.experiments.tables import remake, write_results
from egkd.runs import write_arrays

MadeUp = Callable[..., list[Record]]
FORMATS = ("md", "tex", "csv", "html")
GAINS = {"plain": 0.0, "guided": 0.9, "labels": -0.4, "other": 0.02}


def results(records: list[Record], folder: Path, **settings: Any) -> dict[str, Any]:
    write_results(records, folder, settings=settings, resamples=500)
    return json.loads((folder / "glue.json").read_text())


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory, made_up: MadeUp) -> list[Record]:
    return made_up(tmp_path_factory.mktemp("cells"), GAINS, tasks=("sst2", "mrpc", "stsb"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, records: list[Record]) -> Path:
    folder = tmp_path_factory.mktemp("results")
    results(records, folder, tasks={"sst2": {}, "mrpc": {}, "stsb": {}}, methods=list(GAINS), seeds=[0, 1, 2])
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "glue.json").read_text())


def table(folder: Path, number: int = 0) -> dict[str, dict[str, str]]:
    """A table of `glue.md`: row -> column -> text."""
    text = (folder / "glue.md").read_text()
    part = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)[number]
    head, _, *rows = [[field.strip() for field in line.strip("| \n").split(" | ")] for line in part.splitlines()]
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def test_scores_of_every_seed_and_their_spread(found: dict[str, Any], records: list[Record]) -> None:
    for method in GAINS:
        cell = found["students"]["small"][method]["tasks"]["mrpc"]
        scores = [100 * record.score for record in records if (record.task, record.method) == ("mrpc", method)]
        assert cell["scores"] == pytest.approx(scores)
        assert cell["mean"] == pytest.approx(statistics.mean(scores))
        assert cell["sd"] == pytest.approx(statistics.stdev(scores))
        assert cell["seeds"] == [0, 1, 2]
        assert len(cell["details"]["dev"]["f1"]) == len(cell["seconds"]) == len(cell["explanations"]["occlusion"]) == 3


def test_differences_are_to_the_baseline_and_averages_over_tasks(found: dict[str, Any]) -> None:
    methods = found["students"]["small"]
    gains = []
    for task in ("sst2", "mrpc", "stsb"):
        difference = methods["guided"]["tasks"][task]["difference"]
        gains.append(methods["guided"]["tasks"][task]["mean"] - methods["plain"]["tasks"][task]["mean"])
        assert difference["mean"] == pytest.approx(gains[-1])
        assert difference["low"] < difference["mean"] < difference["high"]
        cells = [method["tasks"][task]["difference"] for name, method in methods.items() if name != "plain"]
        corrected = holm([each["p"] for each in cells])
        assert [each["p_holm"] for each in cells] == pytest.approx(corrected)
    average = methods["guided"]["average"]
    assert average["difference"]["mean"] == pytest.approx(statistics.mean(gains))
    assert average["difference"]["runs"] == 9
    assert average["mean"] == pytest.approx(statistics.mean(cell["mean"] for cell in methods["guided"]["tasks"].values()))
    assert methods["plain"]["average"]["difference"] is None


def test_what_is_sure_is_marked_and_nothing_else(found: dict[str, Any], folder: Path) -> None:
    methods = found["students"]["small"]
    assert methods["guided"]["tasks"]["sst2"]["difference"]["verdict"] == "better"
    assert methods["labels"]["tasks"]["sst2"]["difference"]["verdict"] == "worse"
    assert methods["other"]["tasks"]["sst2"]["difference"]["verdict"] == ""
    marks = {method: methods[method]["tasks"]["sst2"]["mark"] for method in GAINS}
    assert marks == {"plain": "", "guided": "best", "labels": "", "other": ""}  # plain and other cannot be told apart
    shown = table(folder)
    assert re.fullmatch(r"\*\*\d+\.\d\*\* ± \d\.\d \(3\) ▲", shown["guided"]["sst2"])
    assert re.fullmatch(r"\d+\.\d ± \d\.\d \(3\) ▼", shown["labels"]["sst2"])
    assert re.fullmatch(r"\d+\.\d ± \d\.\d \(3\)", shown["other"]["sst2"])
    said = (folder / "glue.md").read_text()
    assert "Significantly better: guided (sst2)" in said
    assert re.search(r"Significantly worse: labels \(sst2\)[^.]*\.", said)


def test_the_best_is_surely_better_than_every_other(tmp_path: Path, made_up: MadeUp) -> None:
    """Not merely than the next: a third, of which less is known, may be as good."""
    some = made_up(tmp_path / "a", {"plain": 0, "guided": 0.9}, tasks=("sst2",))
    few = made_up(tmp_path / "b", {"rare": -0.2}, tasks=("sst2",), seeds=1)
    methods = results(some, tmp_path)["students"]["small"]
    assert methods["guided"]["tasks"]["sst2"]["mark"] == "best"
    methods = results(some + few, tmp_path)["students"]["small"]
    assert [methods[name]["tasks"]["sst2"]["mark"] for name in ("guided", "plain", "rare")] == ["", "", ""]


def test_another_teacher_is_told(tmp_path: Path, made_up: MadeUp) -> None:
    """An experiment that went on elsewhere, from its results alone, fine-tuned its teachers again."""
    records = made_up(tmp_path / "a", {"plain": 0, "guided": 0.6}, tasks=("sst2", "mrpc", "stsb"))
    found = results(records, tmp_path)
    assert [task["teachers"] for task in found["tasks"].values()] == [1, 1, 1]
    assert "had the same teacher" not in (tmp_path / "glue.md").read_text()
    for record in records:
        if (record.method, record.seed) == ("guided", 2) and record.task != "mrpc":
            told = dict(np.load(record.folder / "predictions.npz"))
            told["dev/teacher"] = told["dev/teacher"][::-1] if record.task == "sst2" else told["dev/teacher"] + 1
            write_arrays(record.folder / "predictions.npz", told)
    found = results(records, tmp_path)
    assert [task["teachers"] for task in found["tasks"].values()] == [2, 1, 2]
    assert "had the same teacher: sst2 (2) and stsb (2)." in (tmp_path / "glue.md").read_text()


def test_the_same_teacher_on_another_processor_is_the_same(tmp_path: Path, made_up: MadeUp) -> None:
    records = made_up(tmp_path / "a", {"plain": 0, "guided": 0.6}, tasks=("stsb",))
    for place, record in enumerate(records):
        told = dict(np.load(record.folder / "predictions.npz"))
        told["dev/teacher"] = told["dev/teacher"] + np.float32(1e-5 * place)
        write_arrays(record.folder / "predictions.npz", told)
    assert results(records, tmp_path)["tasks"]["stsb"]["teachers"] == 1


def test_nobody_below_can_be_read(tmp_path: Path, made_up: MadeUp) -> None:
    results(made_up(tmp_path / "cells", {"plain": 0, "guided": 0.6}), tmp_path)
    assert "Significantly worse: none." in (tmp_path / "glue.md").read_text()


def test_the_teacher_stands_on_top(found: dict[str, Any], folder: Path, records: list[Record]) -> None:
    assert found["tasks"]["sst2"]["teacher"] == pytest.approx(100 * records[0].teacher_score)
    shown = table(folder)
    assert next(iter(shown)) == "teacher"
    assert shown["teacher"]["sst2"] == f"{100 * records[0].teacher_score:.1f}"


def test_cost_and_explanations_stand_beside(tmp_path: Path, made_up: MadeUp) -> None:
    plain = made_up(tmp_path / "a", {"plain": 0}, explanations={"occlusion": 0.2, "input-x-gradient": 0.1})
    slow = made_up(tmp_path / "b", {"slow": 0.1}, seconds=25.0, explanations={"occlusion": 0.4, "input-x-gradient": None})
    methods = results(plain + slow, tmp_path)["students"]["small"]
    assert methods["slow"]["tasks"]["sst2"]["cost"] == methods["slow"]["average"]["cost"] == pytest.approx(2.5)
    assert methods["slow"]["average"]["explanations"] == {"occlusion": pytest.approx(0.4), "input-x-gradient": None}
    row = table(tmp_path)["slow"]
    assert (row["occlusion"], row["input × gradient"], row["cost"]) == ("0.40", "–", "2.50 ×")
    assert table(tmp_path)["plain"]["cost"] == "1.00 ×"


def test_prices_are_ratios(tmp_path: Path, made_up: MadeUp) -> None:
    """The median over seeds, and over tasks a mean of ratios: twice and eight times are four times."""
    records = []
    for task, times in (("sst2", 2), ("mrpc", 8)):
        for seed, seconds in enumerate((10.0, 20.0, 60.0)):
            odd = times if seed else 3 * times  # one seed beside other work
            for method, price in (("plain", 1), ("slow", odd)):
                folder = tmp_path / "cells" / task / method / str(seed)
                made = made_up(folder, {method: 0.1}, tasks=(task,), seeds=seed + 1, seconds=seconds * price)
                records.append(next(record for record in made if record.seed == seed))
    methods = results(records, tmp_path)["students"]["small"]
    assert [methods["slow"]["tasks"][task]["cost"] for task in ("sst2", "mrpc")] == pytest.approx([2, 8])
    assert methods["slow"]["average"]["cost"] == pytest.approx(4)


def test_sets_from_elsewhere_have_columns_but_no_part_in_averages(tmp_path: Path, made_up: MadeUp) -> None:
    records = made_up(tmp_path / "a", {"plain": 0, "guided": 0.6}, tasks=("sst2",), splits=("dev", "reviews"))
    found = results(records, tmp_path, tasks={"sst2": {"seeds": [0, 1, 2]}}, seeds=[0])
    guided = found["students"]["small"]["guided"]
    assert list(guided["tasks"]) == ["sst2", "sst2 on reviews"]
    assert found["tasks"]["sst2 on reviews"]["examples"] == {"reviews": 151}
    assert guided["tasks"]["sst2 on reviews"]["difference"]["verdict"] == "better"
    assert guided["average"]["tasks"] == ["sst2"]
    assert guided["average"]["difference"]["mean"] == pytest.approx(guided["tasks"]["sst2"]["difference"]["mean"])
    assert guided["average"]["explanations"] == {"occlusion": pytest.approx(0.3)}
    assert table(tmp_path)["guided"]["sst2 on reviews"].endswith("(3) ▲")
    assert "in no average" in (tmp_path / "glue.md").read_text()


@pytest.mark.parametrize("splits", [("dev",), ("dev", "reviews")])
def test_the_best_on_average_is_told_beside_sets_from_elsewhere(
    tmp_path: Path, made_up: MadeUp, splits: tuple[str, ...]
) -> None:
    records = made_up(tmp_path, {"plain": 0, "guided": 0.9}, tasks=("sst2", "mrpc", "stsb"), splits=splits)
    assert results(records, tmp_path)["students"]["small"]["guided"]["average"]["mark"] == "best"


def test_the_twin_of_the_teacher_stands_above_the_explainers(tmp_path: Path, made_up: MadeUp) -> None:
    results(made_up(tmp_path / "a", {"plain": 0, "guided": 0.6}, ceiling=0.82), tmp_path)
    assert table(tmp_path)["teacher"]["occlusion"] == "0.82 twin"


def test_what_one_task_lacks_has_no_average(tmp_path: Path, made_up: MadeUp) -> None:
    some = made_up(tmp_path / "a", {"plain": 0, "guided": 0.1}, tasks=("sst2",), explanations={"occlusion": 0.2, "new": 0.5})
    more = made_up(tmp_path / "b", {"plain": 0, "guided": 0.1}, tasks=("mrpc",), explanations={"occlusion": 0.4})
    explained = results(some + more, tmp_path)["students"]["small"]["guided"]["average"]["explanations"]
    assert explained == {"occlusion": pytest.approx(0.3), "new": None}


def test_missing_cells_show_and_are_not_averaged_over(tmp_path: Path, records: list[Record]) -> None:
    missing = {("guided", "mrpc", 0), ("guided", "mrpc", 1), ("guided", "mrpc", 2), ("other", "sst2", 1)}
    some = [record for record in records if (record.method, record.task, record.seed) not in missing]
    found = results(some, tmp_path, tasks={"sst2": {}, "mrpc": {"seeds": [0, 1, 2, 3]}, "stsb": {}}, seeds=[0, 1, 2])
    methods, shown = found["students"]["small"], table(tmp_path)
    assert shown["guided"]["mrpc"] == "– (0)"
    assert shown["other"]["sst2"].endswith("(2 of 3)")
    assert shown["plain"]["mrpc"].endswith("(3 of 4)")
    assert methods["guided"]["average"]["tasks"] == ["sst2", "stsb"]
    assert shown["guided"]["average"].endswith("2 of 3 tasks")
    assert methods["guided"]["average"]["mark"] == ""
    gains = [methods["guided"]["tasks"][task]["difference"]["mean"] for task in ("sst2", "stsb")]
    assert methods["guided"]["average"]["difference"]["mean"] == pytest.approx(statistics.mean(gains))
    assert "guided on sst2 and stsb" in (tmp_path / "glue.md").read_text()
    assert methods["other"]["tasks"]["sst2"]["difference"]["runs"] == 2


def test_one_seed_is_said(tmp_path: Path, made_up: MadeUp) -> None:
    found = results(made_up(tmp_path / "cells", {"plain": 0, "guided": 1.0}, seeds=1), tmp_path)
    cell = found["students"]["small"]["guided"]["tasks"]["sst2"]
    assert (cell["sd"], cell["mark"], cell["difference"]["seeds"], cell["difference"]["verdict"]) == (None, "", 1, "")
    assert cell["difference"]["low"] > 0
    assert "rest on one seed" in (tmp_path / "glue.md").read_text()


def test_without_the_baseline_there_are_scores_alone(tmp_path: Path, made_up: MadeUp) -> None:
    found = results(made_up(tmp_path / "cells", {"guided": 0.5}), tmp_path)
    assert found["students"]["small"]["guided"]["tasks"]["sst2"]["difference"] is None
    assert "Nothing can be compared with plain yet." in (tmp_path / "glue.md").read_text()


def test_each_student_has_its_own_tables(tmp_path: Path, made_up: MadeUp) -> None:
    results(made_up(tmp_path / "cells", {"plain": 0, "guided": 0.5}, students=("small", "tiny")), tmp_path)
    titles = re.findall(r"^## (.*)", (tmp_path / "glue.md").read_text(), flags=re.MULTILINE)
    whats = ("Scores", "Difference to plain", "Agreement of answers", "Agreement by occlusion")
    each = [[f"{what} of {name}" for what in whats] for name in ("small", "tiny")]
    assert titles == [*each[0], *each[1]]


def test_agreement_stands_task_by_task(tmp_path: Path, made_up: MadeUp) -> None:
    records = made_up(tmp_path / "cells", {"plain": 0, "guided": 0.5}, tasks=("sst2", "mrpc"))
    of_seed = {0: 0.1, 1: 0.3, 2: None}
    for record in records:
        if (record.method, record.task) == ("guided", "mrpc"):
            record.explanations["occlusion"] = of_seed[record.seed]
    results([record for record in records if (record.method, record.task) != ("plain", "mrpc")], tmp_path)
    assert table(tmp_path, 2)["guided"] == {"sst2": "0.900 ± 0.000", "mrpc": "0.900 ± 0.000", "average": "0.900"}
    shown = table(tmp_path, 3)
    assert shown["guided"]["mrpc"] == "0.20 ± 0.14"  # of the two seeds that have one
    assert re.fullmatch(r"0\.\d\d ± 0\.00", shown["plain"]["sst2"])
    assert shown["plain"]["mrpc"] == "–"


def test_tables_are_remade_from_the_file_alone(tmp_path: Path, folder: Path) -> None:
    remake(folder / "glue.json", tmp_path / "again")
    for ending in FORMATS:
        assert (tmp_path / "again" / f"glue.{ending}").read_bytes() == (folder / f"glue.{ending}").read_bytes()


def test_the_same_cells_make_the_same_file(tmp_path: Path, records: list[Record], folder: Path) -> None:
    results(records, tmp_path, tasks={"sst2": {}, "mrpc": {}, "stsb": {}}, methods=list(GAINS), seeds=[0, 1, 2])
    assert (tmp_path / "glue.json").read_bytes() == (folder / "glue.json").read_bytes()


def test_a_file_that_holds_no_results_is_refused(tmp_path: Path) -> None:
    for text in ("{}", "[", "[]"):
        (tmp_path / "glue.json").write_text(text)
        with pytest.raises(ValueError, match=r"^.*glue.json holds no results \(.*\); make it with egkd glue$"):
            remake(tmp_path / "glue.json", tmp_path)


def test_csv_has_a_line_for_every_cell(folder: Path, found: dict[str, Any]) -> None:
    lines = list(csv.DictReader(io.StringIO((folder / "glue.csv").read_text())))
    assert len(lines) == 3 + 4 * 4  # teachers; methods by tasks and average
    line = next(one for one in lines if (one["method"], one["task"]) == ("guided", "stsb"))
    cell = found["students"]["small"]["guided"]["tasks"]["stsb"]
    assert float(line["mean"]) == pytest.approx(cell["mean"], abs=1e-5)
    assert float(line["difference/low"]) == pytest.approx(cell["difference"]["low"], abs=1e-5)
    assert line["difference/verdict"] == cell["difference"]["verdict"]


class Reader(html.parser.HTMLParser):
    """Tags, and the text of table cells."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


NASTY = "a_<script>&b|$%\\"


def test_names_are_escaped_everywhere(tmp_path: Path, records: list[Record]) -> None:
    import dataclasses

    renamed = [dataclasses.replace(r, method=NASTY) if r.method == "guided" else r for r in records]
    results(renamed, tmp_path)
    reader = Reader()
    reader.feed((tmp_path / "glue.html").read_text())
    assert "script" not in reader.tags
    assert NASTY in reader.text
    tex = (tmp_path / "glue.tex").read_text()
    assert r"a\_$<$script$>$\&b|\$\%\textbackslash{}" in tex
    assert r"| a_&lt;script>&amp;b\|$%\\ |" in (tmp_path / "glue.md").read_text()
    lines = list(csv.DictReader(io.StringIO((tmp_path / "glue.csv").read_text())))
    assert NASTY in {line["method"] for line in lines}


def test_latex_is_balanced(folder: Path) -> None:
    tex = re.sub(r"\\[\\{}$%&#_]", "", (folder / "glue.tex").read_text())
    assert tex.count("{") == tex.count("}")
    assert tex.count("$") % 2 == 0
    assert sorted(re.findall(r"\\begin\{(\w+)", tex)) == sorted(re.findall(r"\\end\{(\w+)", tex))
    for name in ("toprule", "midrule", "bottomrule"):
        assert f"\\{name}" in tex
    whole = (folder / "glue.tex").read_text()
    for body in re.findall(r"\\begin\{tabular\}\{(l?r*)\}(.*?)\\end\{tabular\}", whole, flags=re.DOTALL):
        rows = [line for line in body[1].splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(body[0])}


def test_the_page_needs_nothing_else(folder: Path) -> None:
    page = (folder / "glue.html").read_text()
    assert "default-src 'none'" in page
    assert not re.search(r"<(script|link|img|iframe)|https?://|@import|url\(", page)
