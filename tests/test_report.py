"""The report of a run: what it shows is what the run folder says, and nothing a run says can do anything else."""

import io
import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from egkd.evaluate.compare import REFERENCES
from egkd.report import read_run, summary_table, write_report
from egkd.report.charts import ticks
from egkd.report.run import Example
from egkd.report.words import words

TEXTS = [
    ("a warm and often funny film that never quite finds its feet .", "positive"),
    ("it 's slow -- very , very slow .", "negative"),
    ("the plot is thin , but the two leads are a joy to watch .", "positive"),
    ("unlikely to please anyone who has seen the first part", "negative"),
]


def estimate(mean: float, se: float, n: int = 872) -> dict[str, float]:
    return {"mean": mean, "se": se, "n": n}


def latency(single: float, many: float) -> dict[str, Any]:
    conditions = {"device": "cpu", "threads": 2, "dtype": "float32", "repeats": 20}
    return {"1": {"ms_per_example": single}, "32": {"ms_per_example": many}, "conditions": conditions}


def metrics(rank: float = 0.312) -> dict[str, Any]:
    explained = {
        "all": {"spearman": estimate(rank, 0.011, 200), "top20": estimate(0.447, 0.013, 200)},
        "same_class": {"spearman": estimate(rank + 0.02, 0.011, 183), "top20": estimate(0.451, 0.014, 183)},
        "floor": {"spearman": estimate(0.021, 0.012, 200), "top20": estimate(0.214, 0.012, 200)},
    }
    return {
        "task": {"name": "SST-2", "kind": "classification", "label_names": ["negative", "positive"], "metrics": ["accuracy"]},
        "teacher": {
            "name": "gte-small",
            "scores": {"dev": {"accuracy": 0.9174}},
            "parameters": 33_360_770,
            "bytes": 133_500_000,
            "latency": latency(8.42, 3.914),
        },
        "student": {
            "name": "paraphrase-MiniLM-L3-v2",
            "scores": {"dev": {"accuracy": 0.8716}},
            "parameters": 17_389_698,
            "bytes": 69_600_000,
            "latency": latency(2.21, 1.07),
            "fidelity": {"dev": {"agreement": estimate(0.9037, 0.01), "kl": estimate(0.1823, 0.0121)}},
            "explanations": {"input-x-gradient": explained, "occlusion": explained},
        },
        "objectives": [
            {"name": "labels", "weight": 0.5},
            {"name": "soft-labels", "weight": 1},
            {"name": "gradient", "weight": 5},
        ],
        "training": {"seconds": 312.4, "steps": 750, "examples": 8000, "lessons_seconds": 65.2},
    }


def spans(text: str) -> list[list[int]]:
    return [[0, *match.span()] for match in re.finditer(r"\S+", text)]


def shown(units: int, prediction: str | float, turn: int) -> dict[str, Any]:
    wave = [math.sin(1.7 * unit + turn) * math.exp(-((unit - 3 - turn) ** 2) / 18) for unit in range(units)]
    scores = {"input-x-gradient": [abs(value) for value in wave], "occlusion": [round(2 * value, 5) for value in wave]}
    return {"prediction": prediction, "confidence": 0.93 - 0.11 * turn, "scores": scores}


def example(text: str, label: str | float, wrong: str | float) -> dict[str, Any]:
    units = spans(text)
    return {
        "text": text,
        "text_pair": None,
        "label": label,
        "units": units,
        "teacher": shown(len(units), label, 0),
        "student": shown(len(units), wrong, 1),
        "agreement": {"input-x-gradient": 0.104, "occlusion": -0.311},
    }


def examples() -> list[dict[str, Any]]:
    return [example(text, label, "positive") for text, label in TEXTS]


def log(rate: float = 60.0) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(10, 751, 10):
        terms = {name: 0.2 + high * math.exp(-step / rate / 3) for name, high in (("labels", 0.5), ("gradient", 0.8))}
        lines.append({"step": step, "epoch": step / 250, "loss": sum(terms.values()), "learning_rate": 5e-5, "grad_norm": 1.0})
        lines[-1] |= {f"loss/{name}": value + 0.03 * math.sin(step) for name, value in terms.items()}
        if step % 250 == 0:
            lines.append({"step": step, "epoch": step / 250, "eval_dev_accuracy": 0.8 + step / 1e4, "eval_runtime": 2.0})
    return lines


def make_run(folder: Path, **parts: Any) -> Path:
    """A run folder with made-up figures; `parts` replace files by name without extension, None leaves one out."""
    contents = {
        "metrics": metrics(),
        "examples": examples(),
        "log": log(),
        "config": {"train": {"learning_rate": 5e-5, "seed": 1}, "objectives": [{"name": "gradient", "weight": 5}]},
        "environment": {"egkd": "0.1.0", "torch": "2.13.0", "seed": 1, "git": None},
    } | parts
    folder.mkdir(parents=True)
    for name in ("metrics", "examples", "environment"):
        if contents[name] is not None:
            (folder / f"{name}.json").write_text(json.dumps(contents[name]))
    if contents["config"] is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(contents["config"]))
    if contents["log"] is not None:
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in contents["log"]))
    return folder


class Page(HTMLParser):
    """A page taken apart by the standard library's parser."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        self._cell = self._cell or tag in ("td", "th")
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._cell:
            self.rows[-1][-1] += data

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())

    def row(self, label: str) -> list[str]:
        """The cells of the first row whose heading starts with `label`, white space collapsed."""
        found = next(row for row in self.rows if row and " ".join(row[0].split()) == label)
        return [" ".join(cell.split()) for cell in found[1:]]


def page(*runs: Path) -> Page:
    return Page(write_report(runs, runs[0] / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "guided")


@pytest.fixture(scope="module")
def single(folder: Path) -> Page:
    return page(folder)


# --- what is shown is what was measured


def test_table_shows_the_figures_of_the_run(single: Page) -> None:
    assert single.row("accuracy dev") == ["91.7 %", "87.2 %"]
    assert single.row("same answer dev") == ["–", "90.4 % ± 1.0"]
    assert single.row("KL divergence dev") == ["–", "0.182 ± 0.012"]
    assert single.row("rank correlation") == ["–", "0.312 ± 0.011"]
    assert single.row("rank correlation same answer") == ["–", "0.332 ± 0.011"]
    assert single.row("rank correlation floor") == ["–", "0.021 ± 0.012"]
    assert single.row("top 20 % overlap") == ["–", "44.7 % ± 1.3"]
    assert single.row("parameters") == ["33.4 M", "17.4 M"]
    assert single.row("size on disk") == ["134 MB", "69.6 MB"]
    assert single.row("ms per example batch of 1") == ["8.42", "2.21"]
    assert single.row("ms per example batch of 32") == ["3.91", "1.07"]
    assert single.row("training") == ["–", "5 min 12 s"]
    assert "device cpu, threads 2, dtype float32, repeats 20" in single.words


def test_verdict_is_computed_from_the_figures(single: Page) -> None:
    # 0.8716 / 0.9174 = 0.95008, 17389698 / 33360770 = 0.52126, 8.42 / 2.21 = 3.81
    assert (
        "The student keeps 95.0 % of the teacher’s accuracy (87.2 % against 91.7 %) with 52 % of its parameters, "
        "3.8 times as fast; it gives the teacher’s answer on 90.4 % of the examples, and its ranking of the words "
        "correlates with the teacher’s at 0.31 (input × gradient) and 0.31 (occlusion)."
    ) in single.words


def test_one_chart_for_each_loss_term_and_evaluation(single: Page) -> None:
    labels = [attrs["aria-label"] or "" for tag, attrs in single.tags if tag == "svg" and attrs.get("role") == "img"]
    assert [label.split(",")[0] for label in labels] == ["total", "labels", "gradient", "dev accuracy"]
    assert "0.825 at the first, 0.875 at the last of 3 points" in labels[-1]


def test_examples_keep_their_order_predictions_and_whole_texts(single: Page) -> None:
    places = [single.words.index(text) for text, _ in TEXTS]
    assert places == sorted(places)
    assert single.words.count("gold: negative") == 2
    assert single.words.count("✗ wrong") == 2  # the student says positive throughout
    assert single.words.count("rank correlation with the teacher −0.31") == len(TEXTS)


def test_settings_and_environment_are_folded_in(single: Page) -> None:
    assert sum(tag == "details" for tag, _ in single.tags) == 2
    assert "learning_rate: 5.0e-05" in single.words
    assert single.row("torch") == ["2.13.0"]
    assert "learned from labels × 0.5 soft-labels × 1 gradient × 5" in single.words


def test_two_runs_stand_side_by_side(folder: Path, tmp_path: Path) -> None:
    better = metrics(rank=0.624)
    better["student"]["scores"]["dev"]["accuracy"] = 0.8727
    better["student"]["explanations"]["occlusion"] = metrics(0.33)["student"]["explanations"]["occlusion"]
    other = make_run(tmp_path / "perturbed", metrics=better, config={"train": {"learning_rate": 3e-5, "seed": 1}})
    both = page(folder, other)
    assert both.row("rank correlation") == ["–", "0.312 ± 0.011", "0.624 ± 0.011"]
    assert (
        "Compared with guided, perturbed is 0.1 points higher in accuracy, which 872 examples cannot tell from chance; its "
        "explanation agreement is higher by input × gradient (0.62 against 0.31) and not clearly different by occlusion "
        "(0.33 against 0.31)."
    ) in both.words
    assert both.row("train.learning_rate") == ["5e-05", "3e-05"]
    assert not any(row and row[0] == "train.seed" for row in both.rows)
    assert both.words.count("Example ") == len(TEXTS)  # one card per text, with the teacher and both students
    assert sum(attrs.get("class") == "side" for _, attrs in both.tags) == 3 * len(TEXTS)


def test_equal_texts_of_one_run_have_a_card_each(tmp_path: Path) -> None:
    twice = [example("Two dogs run .", label, "positive") for label in ("negative", "positive")]
    both = page(*(make_run(tmp_path / name, examples=twice) for name in "ab"))
    assert both.words.count("Example ") == 2
    assert sum(attrs.get("class") == "side" for _, attrs in both.tags) == 2 * 3
    assert both.words.count("gold: negative") == both.words.count("gold: positive") == 1


def test_runs_of_different_teachers_keep_both(folder: Path, tmp_path: Path) -> None:
    figures = metrics()
    figures["teacher"] |= {"name": "bert-base", "parameters": 109_000_000}
    both = page(folder, make_run(tmp_path / "large", metrics=figures))
    assert both.row("parameters") == ["33.4 M", "17.4 M", "109 M", "17.4 M"]
    assert both.words.count("Example ") == 2 * len(TEXTS)


def test_several_teachers_and_their_vote(tmp_path: Path) -> None:
    figures = metrics()
    figures["teachers"] = [
        {
            "name": name,
            "weight": weight,
            "scores": {"dev": {"accuracy": score}},
            "fidelity": {"dev": {"agreement": estimate(close, 0.01)}},
        }
        for name, weight, score, close in (("<b>one", 2, 0.905, 0.91), ("two", 1, 0.88, 0.87), ("vote", 1, 0.91, 0.92))
    ]
    several = page(make_run(tmp_path / "run", metrics=figures))
    assert several.row("accuracy dev, of <b>one (weight 2)") == ["90.5 %", "–"]
    assert several.row("same answer dev, with two (weight 1)")[0] == "–"
    assert several.row("same answer dev, with two (weight 1)")[1].startswith("87.0")
    assert several.row("accuracy dev, of vote") == ["91.0 %", "–"]


def test_runs_of_the_same_folder_name_are_told_apart(tmp_path: Path) -> None:
    one, other = make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run")
    heads = page(one, other).rows[0]
    assert "a/run" in heads[2]
    assert "b/run" in heads[3]


def test_regression_of_pairs(tmp_path: Path) -> None:
    figures = metrics()
    figures["task"] = {"name": "STS-B", "kind": "regression", "label_names": [], "metrics": ["pearson", "spearmanr"]}
    for who, score in (("teacher", 0.8824), ("student", 0.8611)):
        figures[who]["scores"] = {"dev": {"pearson": score, "spearmanr": score - 0.004}}
    figures["student"]["fidelity"] = {"dev": {"mse": estimate(0.213, 0.009)}}
    pair = example("Two dogs run .", 3.2, 2.04)
    pair |= {"text_pair": "Three <cats> sleep .", "units": [*pair["units"], [1, 0, 5], [1, 7, 11]]}
    for who in ("teacher", "student"):
        pair[who] = shown(len(pair["units"]), 3.07, 0) | {"confidence": None}
    regression = page(make_run(tmp_path / "sts", metrics=figures, examples=[pair]))
    assert regression.row("Pearson correlation dev") == ["0.882", "0.861"]
    assert regression.row("mse dev") == ["–", "0.213 ± 0.009"]
    assert "keeps 97.6 % of the teacher’s Pearson correlation" in regression.words
    assert regression.words.count("Three <cats> sleep .") == 4  # two models by two explainers
    assert "gold: 3.20" in regression.words
    assert "right" not in regression.words.split("gold: 3.20")[1].split("Training")[0]


def test_units_that_were_not_read_are_marked(tmp_path: Path) -> None:
    cut = example(*TEXTS[0], "positive")
    cut["student"]["scores"]["occlusion"][-2:] = [None, None]
    html = page(make_run(tmp_path / "cut", examples=[cut])).html
    assert len(re.findall(r'<span class="w cut" title="no score[^"]*">(feet|\.)</span>', html)) == 2


def test_examples_open_on_the_explainer_that_orders_them(tmp_path: Path) -> None:
    ordered = examples()
    for rank, one in enumerate(ordered):
        one["agreement"] = {"input-x-gradient": -0.1 * rank, "occlusion": -0.3 + 0.1 * rank}
    shown_page = page(make_run(tmp_path / "ordered", examples=ordered))
    assert [attrs["id"] for tag, attrs in shown_page.tags if tag == "input" and "checked" in attrs] == ["by-1"]
    assert "The order is that of the agreement by occlusion." in shown_page.words


# --- nothing a run says can do anything


EVIL = '<script>alert(1)</script><img src="http://evil.example/x.png" onerror="alert(2)">"\'{{ 7 * 7 }}</style>'


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Page:
    figures = metrics()
    figures["task"] |= {"name": EVIL, "label_names": [EVIL, "b"], "metrics": [EVIL]}
    for who in ("teacher", "student"):
        figures[who]["name"] = EVIL
        figures[who]["scores"] = {EVIL: {EVIL: 0.5}}
        figures[who]["latency"]["conditions"] = {EVIL: EVIL}
    figures["student"]["fidelity"] = {EVIL: {EVIL: estimate(0.5, 0.1)}}
    figures["student"]["explanations"] = {EVIL: {EVIL: {EVIL: estimate(0.5, 0.1)}, "all": {"spearman": estimate(0.1, 0.1)}}}
    figures["objectives"] = [{"name": EVIL, "weight": 1}]
    shot = example(EVIL, EVIL, EVIL) | {"text_pair": EVIL, "agreement": {EVIL: 0.1}}
    for who in ("teacher", "student"):
        shot[who]["scores"] = {EVIL: [0.5, -0.5] + [0.1] * (len(shot["units"]) - 2)}
    line = {"step": 1, "loss": 1.0, f"loss/{EVIL}": 1.0, f"eval_{EVIL}": 1.0}
    parts = {"metrics": figures, "examples": [shot], "log": [line, line | {"step": 2}]}
    said = {EVIL: EVIL, "url": "https://example.org/model"}
    root = tmp_path_factory.mktemp("evil")
    runs = [make_run(root / f"<u>{name}", config=said | {"n": name}, environment=said, **parts) for name in "ab"]
    return Page(write_report(runs, root / "report.html", title=EVIL).read_text(encoding="utf-8"))


def test_everything_from_a_run_is_escaped(hostile: Page) -> None:
    assert not {"script", "img", "u", "a", "iframe", "link", "object"} & {tag for tag, _ in hostile.tags}
    assert sum(tag == "style" for tag, _ in hostile.tags) == hostile.html.count("</style>") == 1
    assert not any(name.startswith("on") for _, attrs in hostile.tags for name in attrs)
    assert "alert(1)" in hostile.words  # it is there, as text
    assert "{{ 7 * 7 }}" in hostile.words


@pytest.mark.parametrize("which", ["single", "hostile"])
def test_page_needs_nothing_but_itself(which: str, request: pytest.FixtureRequest) -> None:
    shown_page: Page = request.getfixturevalue(which)
    names = {name for _, attrs in shown_page.tags for name in attrs}
    assert not names & {"src", "href", "srcset", "data", "action", "poster", "xlink:href", "background"}
    style = shown_page.html.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    policy = [attrs["content"] for tag, attrs in shown_page.tags if tag == "meta" and "http-equiv" in attrs]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_every_input_has_a_label_and_every_picture_a_name(single: Page) -> None:
    inputs = {attrs["id"] for tag, attrs in single.tags if tag == "input"}
    assert len(inputs) == 2
    assert inputs == {attrs["for"] for tag, attrs in single.tags if tag == "label"}
    assert all(attrs.get("aria-label") or attrs.get("aria-hidden") for tag, attrs in single.tags if tag == "svg")
    ids = [attrs["id"] for _, attrs in single.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["aria-labelledby"] for _, attrs in single.tags if "aria-labelledby" in attrs} <= set(ids)


# --- what is missing, odd or broken


@pytest.mark.parametrize("missing", ["examples", "log", "config", "environment", "metrics"])
def test_each_file_but_one_may_be_missing(missing: str, tmp_path: Path) -> None:
    found = page(make_run(tmp_path / "run", **{missing: None}))
    assert ("91.7 %" in found.words) == (missing != "metrics")
    assert ("Loss terms" in found.words) == (missing != "log")
    assert (TEXTS[0][0] in found.words) == (missing != "examples")
    assert ("Settings of" in found.words) == (missing != "config")
    assert ("Environment of" in found.words) == (missing != "environment")


@pytest.mark.parametrize(
    "path", ["teacher", "student", "task", "objectives", "training", "student.explanations", "student.latency"]
)
@pytest.mark.parametrize("how", ["null", "gone"])
def test_each_part_of_the_figures_may_be_missing(path: str, how: str, tmp_path: Path) -> None:
    figures = metrics()
    *outer, last = path.split(".")
    part = figures[outer[0]] if outer else figures
    part[last] = None
    if how == "gone":
        del part[last]
    folder = make_run(tmp_path / "run", metrics=figures)
    assert ("87.2 %" in page(folder).words) == (path != "student")
    floor = path not in ("student", "student.explanations")
    assert summary_table([read_run(folder)]).row_count == 2 + floor


def test_figures_that_are_no_numbers_are_said_and_not_drawn(tmp_path: Path) -> None:
    figures = metrics()
    figures["student"]["scores"]["dev"]["accuracy"] = math.nan
    figures["student"]["fidelity"]["dev"] = {"agreement": estimate(math.nan, math.nan), "kl": estimate(math.inf, math.nan)}
    figures["student"]["explanations"]["occlusion"]["all"]["spearman"] = estimate(math.nan, math.nan, 0)
    figures["student"]["latency"]["1"]["ms_per_example"] = math.inf
    odd = example(*TEXTS[0], "positive")
    odd["teacher"]["scores"]["occlusion"][:2] = [math.nan, math.inf]
    odd["agreement"]["occlusion"] = math.nan
    lines = [{"step": step, "loss": value} for step, value in enumerate([2.0, 1.5, math.nan, math.inf, 1e200, 1.0, 0.9])]
    folder = make_run(tmp_path / "diverged", metrics=figures, examples=[odd], log=lines)
    diverged = page(folder)
    assert diverged.row("accuracy dev") == ["91.7 %", "NaN"]
    assert diverged.row("KL divergence dev") == ["–", "∞ ± NaN"]
    assert diverged.row("ms per example batch of 1") == ["8.42", "∞"]
    assert diverged.words.count("gives the teacher’s answer") == 0
    drawn = [
        value for _, attrs in diverged.tags for name, value in attrs.items() if name in ("d", "cx", "cy", "x", "y", "style")
    ]
    assert len(drawn) > 20
    assert not any(word in (value or "") for value in drawn for word in ("nan", "inf"))
    line = next(attrs["d"] or "" for tag, attrs in diverged.tags if tag == "path")
    assert (line.count("M"), line.count("L")) == (2, 2)  # two strokes, broken where the loss was no number
    assert diverged.html.count('class="w odd"') == 2
    assert summary_table([read_run(folder)]).row_count == 3  # with the floor


def test_an_interrupted_log_is_read_to_its_last_whole_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_run(tmp_path).log == ({"step": 1, "loss": 2.0},)


BROKEN = {
    "metrics.json": [
        '{"student": ',
        "[]",
        '{"student": {"scores": {"dev": {"accuracy": "high"}}}}',
        '{"task": {"kind": "other"}}',
    ],
    "log.jsonl": ['{"step": 1}\n{"st\n{"step": 3}\n', "[1]\n"],
    "examples.json": ['[{"text": 3}]', '[{"text": "a b", "units": [[0, 0, 9]]}]', '[{"text": "a", "units": [[1, 0, 1]]}]'],
    "config.yaml": ["a: [1", "- 1\n- 2"],
    "environment.json": ["{,}"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BROKEN.items() for text in texts])
def test_a_broken_file_is_named_in_one_line(name: str, text: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(name)) as caught:
        read_run(folder)
    assert "\n" not in str(caught.value)


def test_scores_that_do_not_fit_the_units_are_refused(tmp_path: Path) -> None:
    short = example(*TEXTS[0], "positive")
    short["student"]["scores"]["occlusion"].pop()
    with pytest.raises(ValueError, match="12 scores of the student by occlusion for 13 units"):
        read_run(make_run(tmp_path / "run", examples=[short]))


def test_folders_without_a_run_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no run"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="at least one run"):
        write_report([], tmp_path / "report.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        write_report([folder], tmp_path / "file" / "report.html")


def test_a_twin_stands_beside_the_student(tmp_path: Path) -> None:
    told = metrics()
    for figures in told["student"]["explanations"].values():
        figures["ceiling"] = {"spearman": estimate(0.713, 0.02, 200)}
        figures["ceiling_same_class"] = {"spearman": estimate(0.755, 0.02, 190)}
    run = make_run(tmp_path / "run", metrics=told)
    found = page(run)
    assert found.row("rank correlation ceiling") == ["–", "0.713 ± 0.020"]
    assert found.row("rank correlation ceiling, same answer") == ["–", "0.755 ± 0.020"]
    assert "floor 0.02, ceiling 0.71" in found.words
    assert "ceiling 0.71 0.71" in " ".join(terminal(80, run).split())


# --- the table in the terminal


def terminal(width: int, *folders: Path) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as captured:
        console.print(summary_table([read_run(folder) for folder in folders]))
    return captured.get().replace("\u00a0", " ")


def test_terminal_shows_the_same_figures(folder: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "[bold]x", metrics=metrics(0.624))
    shown_table = terminal(80, folder, other)
    assert "floor 0.02 0.02" in " ".join(shown_table.split())
    assert "ceiling" not in shown_table
    lines = {line.split()[0]: line for line in shown_table.splitlines() if line.strip()}
    assert lines["teacher"].split() == ["teacher", "91.7", "%", "–", "–", "–", "33.4", "M", "8.42"]
    assert " ".join(lines["guided"].split()) == "guided 87.2 % 90.4 % 0.31 0.31 17.4 M 2.21"
    assert "0.62" in shown_table
    assert "(standard errors up to 0.01)" in " ".join(shown_table.split())
    assert "[bold]x" in shown_table  # names are no markup


def test_eighty_columns_hold_every_figure(tmp_path: Path) -> None:
    figures = metrics()
    explained = figures["student"]["explanations"]["occlusion"]
    figures["student"]["explanations"] = dict.fromkeys(REFERENCES, explained)
    figures["task"]["metrics"] = ["matthews_correlation"]
    for who, score in (("teacher", 0.3571), ("student", 0.1182)):
        figures[who]["scores"] = {"dev": {"matthews_correlation": score}}
    lines = {line.split()[0]: line.split() for line in terminal(80, make_run(tmp_path / "plain", metrics=figures)).splitlines()}
    assert lines["student"] == ["student", "0.118", "90.4", "%", *["0.31"] * 4, "17.4", "M", "2.21"]
    assert lines["correlation"][-3:] == ["grads", "params", "example"]


# --- the parts


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_ticks_are_few_and_span_the_values(low: float, span: float) -> None:
    found = ticks(low, low + span)
    slack = 1e-6 * max(abs(low), abs(low + span), 1e-9)
    assert 2 <= len(found) <= 7
    assert found[0] <= low + slack
    assert found[-1] >= low + span - slack


def _spans_of(text: str, cuts: list[int]) -> Iterator[tuple[int, int, int]]:
    edges = sorted({cut % (len(text) + 1) for cut in cuts})
    yield from ((0, start, end) for start, end in zip(edges[::2], edges[1::2], strict=False))


@given(st.text(), st.lists(st.integers(0, 1000)), st.lists(st.none() | st.floats(), min_size=500, max_size=500))
def test_coloured_words_are_the_text_again(text: str, cuts: list[int], scores: list[float | None]) -> None:
    units = tuple(_spans_of(text, cuts))
    whole = Example.model_validate({"text": text, "units": units, "teacher": {"scores": {"x": scores[: len(units)]}}})
    (line,) = words(whole, whole.teacher, "x", signed=True)
    assert "".join(word.text for word in line) == text
    assert all(0 <= word.strength <= 1 for word in line)


def test_colours_follow_sign_and_size_within_the_example() -> None:
    text = "a b c d"
    one = Example.model_validate({"text": text, "units": spans(text), "teacher": {"scores": {"x": [0.5, -2.0, 0.0, None]}}})
    (line,) = words(one, one.teacher, "x", signed=True)
    painted = {word.text: (word.kind, word.strength) for word in line if word.text.strip()}
    assert painted == {"a": ("for", 0.25), "b": ("against", 1.0), "c": ("", 0.0), "d": ("cut", 0.0)}
