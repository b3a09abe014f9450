"""`egkd explain` from outside: sources, methods, outputs, resuming, judging, and one line for everything that is wrong."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from egkd import explaining
from egkd.cli.explain import METHODS
from egkd.evaluate.agreement import agreement
from egkd.evaluate.plausibility import plausibility
from egkd.evaluate.rationales import by_pairs, load_rationales
from egkd.explain import EXPLAINERS, Explanation
from egkd.explain import explain as explain_texts
from egkd.explain.explanation import load

TEXTS = ["a great film", "the plot is dull and boring", "I love this story", "awful", "It was a very unfunny ending", "so so"]

Command = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("calm_libraries")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, save: Callable[..., Path]) -> Path:
    return save(tmp_path_factory.mktemp("model"))


@pytest.fixture
def csv_file(tmp_path: Path, write_csv: Callable[..., Path]) -> Path:
    return write_csv(tmp_path / "reviews.csv", review=TEXTS, stars=range(6))


@pytest.fixture
def ask(egkd: Command, model: Path) -> Command:
    """`egkd explain` about the tiny model; it must succeed."""

    def run(*arguments: Any) -> Any:
        answer = egkd("explain", "--model", model, *arguments)
        assert answer.code == 0, answer.err
        return answer

    return run


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def by_row(path: Path, method: str) -> dict[int, dict[str, Any]]:
    return {line["row"]: line for line in lines_of(path) if line["method"] == method}


# Sources and outputs


def test_texts_are_explained_on_the_terminal_by_every_method(ask: Command) -> None:
    answer = ask("a great film", "awful plot", "--method", "occlusion", "--method", "lime", "--set", "lime.n_samples=30")
    assert re.findall(r"^row (\d): the model says “(?:negative|positive)” \(\d+%\)$", answer.out, re.MULTILINE) == ["0", "1"]
    assert answer.out.index("a great film") < answer.out.index("occlusion: for") < answer.out.index("lime: for")
    assert len(re.findall(r"\bgreat [+-]\d", answer.out)) == 2
    assert "━" not in answer.out  # the bar goes elsewhere when the output is no terminal


def test_the_library_gives_the_same_scores(ask: Command, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "why.jsonl"
    ask(
        *TEXTS,
        "--method",
        "kernel-shap",
        "--set",
        "kernel-shap.n_samples=16",
        "--seed",
        3,
        "--target",
        "positive",
        "--jsonl",
        out,
    )
    own_model, tokenizer = AutoModelForSequenceClassification.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    explainer = explaining.methods_from(["kernel-shap"], ["kernel-shap.n_samples=16"]).explainers["kernel-shap"]
    expected = explain_texts(own_model, tokenizer, TEXTS, method=explainer, target="positive", seed=3)
    found = {line["row"]: Explanation.from_dict(line) for line in lines_of(out)}
    assert sorted(found) == list(range(6))
    for row, one in enumerate(expected):
        assert found[row].text == TEXTS[row]
        assert (found[row].label, found[row].settings["n_samples"]) == ("positive", 16)
        assert found[row].scores == pytest.approx(one.scores, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet", "txt"])
def test_files_of_every_kind_give_the_same_rows(ask: Command, tmp_path: Path, ending: str) -> None:
    file, out = tmp_path / f"texts.{ending}", tmp_path / "why.jsonl"
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), file)
    elif ending == "jsonl":
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    else:
        file.write_text("\n".join([*([] if ending == "txt" else ["text"]), *TEXTS, "", "\n"]))
    answer = ask("--file", file, "--method", "input-x-gradient", "--jsonl", out)
    assert {row: line["text"] for row, line in by_row(out, "input-x-gradient").items()} == dict(enumerate(TEXTS))
    assert answer.out == ""  # explanations go to the file
    assert ("guessed" in answer.err) == (ending != "txt")


def test_a_glue_task_gives_its_evaluation_set_with_pairs(ask: Command, tmp_path: Path) -> None:
    (tmp_path / "MRPC").mkdir()
    head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    for split, words in (("train", "plot"), ("dev", "film")):
        rows = "".join(f"{row % 2}\t0\t0\tthis {words} is great {row}\tit is a great {words}\n" for row in range(4))
        (tmp_path / "MRPC" / f"{split}.tsv").write_text(head + rows)
    out = tmp_path / "why.jsonl"
    answer = ask("--task", "mrpc", "--glue-dir", tmp_path, "--limit", 3, "--method", "saliency", "--jsonl", out)
    found = by_row(out, "saliency")
    assert len(found) == 3
    assert all(line["text"] == f"this film is great {row}" for row, line in found.items())
    assert all(line["text_pair"] == "it is a great film" for line in found.values())
    assert "dev is explained" in answer.err


def test_neither_text_nor_label_can_steer_the_terminal(egkd: Command, tmp_path: Path, save: Callable[..., Path]) -> None:
    model = save(tmp_path / "model", ("bad\x1b[2J", "good[red]\x1b]0;me\x07"))
    answer = egkd("explain", "a \x1b[31mgreat\x9b2J [bold]film[/bold]", "--model", model, "--method", "occlusion")
    assert answer.code == 0, answer.err
    assert not {character for character in answer.out + answer.err if ord(character) < 32 or 127 <= ord(character) < 160} - {
        "\n",
        "\r",  # of the bar
    }
    assert re.search(r"^row 0: the model says “(bad␛\[2J|good\[red\]␛\]0;me␇)”", answer.out)
    assert "[bold]film[/bold]" in answer.out


def test_pairs_can_be_typed(ask: Command) -> None:
    answer = ask("a great film", "--pair", "an awful plot", "--method", "occlusion")
    assert "a great film\nan awful plot\n" in answer.out


def test_regression_has_an_output_and_no_class(egkd: Command, tmp_path: Path, save: Callable[..., Path]) -> None:
    answer = egkd("explain", "a great film", "--model", save(tmp_path / "scores", ()), "--method", "occlusion")
    assert answer.code == 0, answer.err
    assert re.search(r"^row 0: the model says -?\d", answer.out)
    assert "occlusion: for “output”" in answer.out


def test_the_page_escapes_everything_that_comes_from_outside(ask: Command, tmp_path: Path) -> None:
    page = tmp_path / "new folder" / "why.html"
    ask('a <script>alert(1)</script> film & "more"', "awful", "--method", "occlusion", "--html", page)
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html
    assert "alert" in html
    assert html.count("<section>") == 2
    assert html.count('class="explanation"') == 2
    assert "default-src 'none'" in html


def test_truncation_is_told_everywhere(ask: Command, tmp_path: Path) -> None:
    page = tmp_path / "why.html"
    answer = ask("the film is a great great great story", "awful", "--max-length", 6, "--method", "saliency", "--html", page)
    caution = "1 of 2 texts have words that the model did not see (4 words, struck out): texts are cut after 6 tokens"
    assert caution in " ".join(answer.err.split())
    assert caution in page.read_text(encoding="utf-8")
    assert "<s style" in page.read_text(encoding="utf-8")
    assert "4 of 8 words not seen" in ask("the film is a great great great story", "--max-length", 6).out


def test_help_names_every_method() -> None:
    assert METHODS.split(", ") == list(EXPLAINERS)


# Resuming


def test_the_same_command_computes_nothing_again(
    ask: Command, csv_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, page = tmp_path / "why.jsonl", tmp_path / "why.html"
    command = ["--file", csv_file, "--text", "review", "--method", "occlusion", "--method", "saliency", "--jsonl", out]
    ask(*command)
    first = out.read_bytes()
    asked: list[list[str]] = []
    own = explaining.iter_explained
    monkeypatch.setattr(
        explaining, "iter_explained", lambda *args, **settings: (asked.append(args[3]), own(*args, **settings))[1]
    )
    ask(*command, "--html", page)
    assert out.read_bytes() == first
    assert not any(asked)
    assert page.read_text(encoding="utf-8").count('class="explanation"') == 12
    # another method joins in, and a line that a kill tore is written again
    out.write_bytes(first[:-40])
    ask(*command, "--method", "input-x-gradient")
    assert sorted(map(len, asked)) == [0, 0, 0, 1, 6]
    assert {method: len(by_row(out, method)) for method in ("occlusion", "saliency", "input-x-gradient")} == dict(
        occlusion=6, saliency=6, **{"input-x-gradient": 6}
    )
    assert len(load(out)) == 18


def test_an_interruption_keeps_what_was_written(
    egkd: Command, model: Path, csv_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "why.jsonl", tmp_path / "whole.jsonl"
    command = ["explain", "--model", model, "--file", csv_file, "--text", "review", "--method", "shapley-sampling"]
    own = explaining.iter_explained

    def interrupted(*args: Any, **settings: Any) -> Any:
        for count, found in enumerate(own(*args, **settings)):
            if count == 2:
                raise KeyboardInterrupt
            yield found

    with monkeypatch.context() as patch:
        patch.setattr(explaining, "iter_explained", interrupted)
        answer = egkd(*command, "--jsonl", out)
    assert answer.code == 130
    assert "the same command goes on" in answer.err
    assert len(lines_of(out)) == 2
    assert egkd(*command, "--jsonl", out).code == 0
    assert egkd(*command, "--jsonl", whole).code == 0
    resumed, at_once = by_row(out, "shapley-sampling"), by_row(whole, "shapley-sampling")
    assert sorted(resumed) == sorted(at_once) == list(range(6))
    for row, line in at_once.items():
        assert resumed[row]["scores"] == pytest.approx(line["scores"], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (["--seed", 1], "made with another seed"),
        (["--precision", "bfloat16"], "made with another precision"),
        (["--max-length", 9, "--target", "positive"], "made with another max_length and another target"),
        (["--set", "lime.n_samples=31"], "by lime with another n_samples"),
        (["--text", "stars"], "explains another text than row"),
    ],
)
def test_answers_to_another_question_are_not_mixed(
    egkd: Command, model: Path, csv_file: Path, tmp_path: Path, other: list[Any], why: str
) -> None:
    out = tmp_path / "why.jsonl"
    command = ["explain", "--model", model, "--file", csv_file, "--method", "lime", "--jsonl", out]
    assert egkd(*command, "--text", "review", "--set", "lime.n_samples=30").code == 0
    before = out.read_bytes()
    settings = [] if "--set" in other else ["--set", "lime.n_samples=30"]
    texts = [] if "--text" in other else ["--text", "review"]
    answer = egkd(*command, *settings, *texts, *other)
    assert answer.code == 2
    assert why in answer.err
    assert "name another --jsonl" in answer.err
    assert answer.err.rstrip("\n").splitlines()[-1].startswith("egkd: ")
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    "content", ['{"a": 1}\n', "no JSON", '{"row": [1], "asked": {}, "method": "lime", "settings": {}}\n', "[]\n"]
)
def test_other_peoples_files_are_left_alone(egkd: Command, model: Path, tmp_path: Path, content: str) -> None:
    out = tmp_path / "mine.jsonl"
    out.write_text(content)
    answer = egkd("explain", "a film", "--model", model, "--method", "saliency", "--jsonl", out)
    assert answer.code == 2
    assert "line 1 is no explanation of this command's" in answer.err
    assert out.read_text() == content


# Selectors and judges


def test_a_selector_is_fitted_once_and_kept(egkd: Command, ask: Command, model: Path, csv_file: Path, tmp_path: Path) -> None:
    folder, outs = tmp_path / "selector", [tmp_path / f"{name}.jsonl" for name in "ab"]
    command = ["--file", csv_file, "--text", "review", "--method", "l2x", "--selector", folder]
    fitting = ["--fit-on", csv_file, "--set", "selector.rate=0.4", "--set", "selector.layers=2"]
    first = ask(*command, *fitting, "--jsonl", outs[0])
    assert "fit the selector" in first.err
    assert json.loads((folder / "selector.json").read_text())["settings"]["rate"] == 0.4
    second = ask(*command, "--jsonl", outs[1])
    assert "fit the selector" not in second.err
    scores = [by_row(out, "l2x")[1]["scores"] for out in outs]
    assert scores[0] == pytest.approx(scores[1])
    refused = egkd("explain", "--model", model, *command, "--fit-on", csv_file, "--seed", 5)
    assert refused.code == 2
    assert "was fitted with another layers and another rate and another seed" in refused.err
    pieces = egkd("explain", "--model", model, *command, "--unit", "token")
    assert (pieces.code, "was fitted with another unit" in pieces.err) == (2, True)


def test_a_selector_of_tokens_is_fitted_on_tokens(ask: Command, csv_file: Path, tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[int] = []
    fit = explaining.AmortisedExplainer.fit

    def counted(self: Any, model: Any, tokenizer: Any, rows: Any, **settings: Any) -> Any:
        seen.extend(row["n_units"] for row in rows)
        return fit(self, model, tokenizer, rows, **settings)

    monkeypatch.setattr(explaining.AmortisedExplainer, "fit", counted)
    for unit in ("word", "token"):
        folder = tmp_path / unit
        ask("filming", "--method", "l2x", "--selector", folder, "--fit-on", csv_file, "--text", "review", "--unit", unit)
        assert json.loads((folder / "fitted.json").read_text()).get("unit", "word") == unit
    half = len(seen) // 2
    assert sum(seen[half:]) > sum(seen[:half])


def test_a_selector_of_another_model_is_refused(
    egkd: Command, ask: Command, csv_file: Path, tmp_path: Path, save: Callable[..., Path]
) -> None:
    folder = tmp_path / "selector"
    ask("a film", "--method", "diffmask", "--selector", folder, "--fit-on", csv_file, "--text", "review")
    other = save(tmp_path / "other", seed=1)
    answer = egkd("explain", "a film", "--model", other, "--method", "diffmask", "--selector", folder)
    assert answer.code == 2
    assert "was fitted with another model" in answer.err
    named = egkd("explain", "a film", "--model", other, "--method", "diffmask", "--set", f"diffmask.selector={folder}")
    assert (named.code, named.err) == (2, answer.err)
    ask("a film", "--method", "diffmask", "--set", f"diffmask.selector={folder}")


def test_a_model_reads_no_further_than_its_positions(egkd: Command, tmp_path: Path, save: Callable[..., Path]) -> None:
    """Many tokenizers name no longest text."""
    folder = save(tmp_path / "endless")
    told = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(told | {"model_max_length": 10**30}))
    text = "a film " * 60
    assert egkd("explain", text, "--model", folder, "--method", "occlusion").code == 0
    answer = egkd("explain", text, "--model", folder, "--max-length", 128)
    assert (answer.code, "reads texts of 5 to 64 tokens" in answer.err) == (2, True)


def without_mask(folder: Path) -> Path:
    """The model in this folder, whose tokenizer now knows of no mask token."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            told = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps({key: value for key, value in told.items() if key != "mask_token"}))
    return folder


def test_a_model_without_masks_is_told_which_baseline_to_take(egkd: Command, tmp_path: Path, save: Callable[..., Path]) -> None:
    folder = without_mask(save(tmp_path / "maskless"))
    answer = egkd("explain", "a film", "--model", folder)
    assert answer.code == 2
    assert "set integrated-gradients.baseline to zero or pad" in answer.err
    assert egkd("explain", "a film", "--model", folder, "--set", "integrated-gradients.baseline=zero").code == 0


def rows_of(table: str) -> dict[str, list[float]]:
    """The figures of a printed table by the name of their row; those of the floor under " floor"."""
    found: dict[str, list[float]] = {}
    name = ""
    for line in table.splitlines():
        label, *cells = re.split(r"\s{2,}", line.strip())
        figures = [float(cell.split(" ±")[0]) for cell in cells if re.match(r"-?\d", cell)]
        if figures:
            name = f"{name} floor" if label == "in random order" else label
            found[name] = figures
    return found


def test_judges_print_every_method_beside_its_floor(ask: Command, csv_file: Path) -> None:
    command = ["--file", csv_file, "--text", "review", "--method", "occlusion", "--method", "saliency", "--judge"]
    answer = ask(*command, "--set", "judge.sensitivity_samples=1", "--set", "judge.operator=delete")
    rows = rows_of(answer.out[answer.out.index("comprehensiveness ↑") - 200 :])
    names = ["comprehensiveness ↑", "sufficiency ↓", "area over curve ↑", "τ with leave-one-out ↑", "infidelity, scaled ↓"]
    names += ["max-sensitivity ↓", "comprehensiveness (ferret) ↑", "sufficiency (ferret) ↓"]
    assert list(rows) == [each for name in names for each in (name, f"{name} floor")]
    assert {len(figures) for figures in rows.values()} == {2}
    assert "operator “delete”" in " ".join(answer.out.split())
    # each question costs: the sensitivity is only asked for on demand
    assert "max-sensitivity" not in ask(*command).out


@pytest.mark.parametrize("samples", [0, 2])
def test_judged_scores_are_those_of_faithfulness(
    ask: Command, model: Path, csv_file: Path, tmp_path: Path, samples: int
) -> None:
    from egkd.evaluate.faithfulness import MEASURES, Probes, faithfulness
    from egkd.explain import Occlusion, encode_rows

    out = tmp_path / "new" / "figures.json"
    settings = ["--set", "judge.infidelity_samples=5", "--set", f"judge.sensitivity_samples={samples}"]
    ask("--file", csv_file, "--text", "review", "--method", "occlusion", "--judge", "--figures", out, *settings)
    found = json.loads(out.read_text())["faithfulness"]["occlusion"]
    question = explaining.question_about(str(model), "predicted", None, 0)
    rows = encode_rows(question.tokenizer, TEXTS, None, question.max_length)
    probes = Probes(infidelity_samples=5, sensitivity_samples=samples)
    expected = faithfulness(Occlusion(), question.model, question.tokenizer, rows, probes=probes)
    for part in ("all", "floor"):
        assert set(found[part]) == set(MEASURES)
        for measure, figure in expected[part].items():
            assert found[part][measure]["n"] == figure["n"], measure
            if figure["n"]:
                assert found[part][measure]["mean"] == pytest.approx(figure["mean"], abs=1e-4), measure
    assert (found["all"]["max_sensitivity"]["n"] > 0) == (samples > 0)
    assert found["settings"] == {key: value for key, value in expected["settings"].items() if key != "method"}
    assert found["n_skipped"] == expected["n_skipped"] == 0


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory, save: Callable[..., Path]) -> dict[str, Path]:
    """Models beside the one that is explained: a small student, and one that differs by its seed."""
    folder = tmp_path_factory.mktemp("others")
    return {"student": save(folder / "student", layers=1, seed=2), "twin": save(folder / "twin", seed=1)}


def test_agreement_of_two_models_with_floor_and_ceiling(
    ask: Command, model: Path, csv_file: Path, tmp_path: Path, others: dict[str, Path]
) -> None:
    """Beside the functions the command is made of, on models loaded here."""
    out = tmp_path / "figures.json"
    command = [
        "--file",
        csv_file,
        "--text",
        "review",
        "--method",
        "occlusion",
        "--against",
        others["student"],
        "--figures",
        out,
    ]
    answer = ask(*command, "--twin", others["twin"])
    assert re.search(r"^occlusion +all +same answer +random order +ceiling$", answer.out, re.MULTILINE)
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = [AutoModelForSequenceClassification.from_pretrained(one) for one in (model, *others.values())]
    own = explain_texts(loaded[0], tokenizer, TEXTS, method="occlusion")
    targets = [one.target for one in own]
    said = [own, *(explain_texts(one, tokenizer, TEXTS, method="occlusion", target=targets) for one in loaded[1:])]
    first, second, twin = ([np.array(one.scores) for one in each] for each in said)
    same, alike = (np.array([a.prediction == b.prediction for a, b in zip(own, each, strict=True)]) for each in said[1:])
    expected = agreement(first, second, same_class=same, ceiling=(first, twin), ceiling_same_class=alike)
    found = json.loads(out.read_text())["agreement"]["occlusion"]
    for part in ("all", "same_class", "floor", "ceiling", "ceiling_same_class"):
        for measure, figure in expected[part].items():
            assert found[part][measure]["n"] == figure["n"]
            if figure["n"]:
                assert found[part][measure]["mean"] == pytest.approx(figure["mean"], abs=1e-3)
    assert found["ceiling"] != found["all"]


def test_the_ceiling_of_methods_that_draw_is_another_seed(
    ask: Command, csv_file: Path, tmp_path: Path, others: dict[str, Path]
) -> None:
    out = tmp_path / "figures.json"
    methods = ["--method", "occlusion", "--method", "lime", "--method", "shapley-sampling", "--set", "lime.n_samples=12"]
    methods += ["--method", "sufficient-subset", "--set", "sufficient-subset.steps=2"]
    ask("--file", csv_file, "--text", "review", *methods, "--against", others["student"], "--figures", out)
    found = json.loads(out.read_text())["agreement"]
    assert "ceiling" not in found["occlusion"]  # which says the same every time
    assert found["lime"]["floor"]["spearman"]["mean"] < found["lime"]["ceiling"]["spearman"]["mean"] < 1
    assert found["shapley-sampling"]["ceiling"]["spearman"]["mean"] > 0.8
    assert "ceiling" in found["sufficient-subset"]


def test_scores_of_regressors_agree_without_classes(egkd: Command, tmp_path: Path, save: Callable[..., Path]) -> None:
    first, second = (save(tmp_path / str(seed), (), seed=seed) for seed in (0, 1))
    answer = egkd("explain", "the plot is dull", "--model", first, "--method", "occlusion", "--against", second)
    assert answer.code == 0, answer.err
    assert re.search(r"^occlusion +all +random order$", answer.out, re.MULTILINE)


def eraser(folder: Path, **annotations: Any) -> Path:
    """A data set as ERASER has them: a folder of documents, a sentence a line, and annotations by token."""
    (folder / "docs").mkdir(parents=True)
    (folder / "docs" / "negR_000.txt").write_text("it was a very unfunny ending .\nthe cast , though , is great .\n")
    (folder / "docs" / "posR_001.txt").write_text("the story is n't dull .\n\n i love it ( a lot ) !\n")
    marked = {
        "negR_000.txt": [[(4, 6, "unfunny ending")], [(12, 14, "is great")]],
        "posR_001.txt": [[(2, 5, "is n't dull"), (6, 9, "i love it")]],
    }
    lines = []
    for name, groups in marked.items():
        evidences = [
            [
                {"docid": name, "start_token": a, "end_token": b, "start_sentence": -1, "end_sentence": -1, "text": text}
                for a, b, text in group
            ]
            for group in groups
        ]
        entry = {"annotation_id": name, "classification": name[:3].upper(), "docids": None, "evidences": evidences}
        lines.append(json.dumps(entry | {"query": "What is the sentiment of this review?", "query_type": None} | annotations))
    (folder / "val.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "val.jsonl"


def test_documents_with_rationales_are_explained_and_judged_by_them(ask: Command, tmp_path: Path) -> None:
    file, jsonl, out = eraser(tmp_path / "movies"), tmp_path / "why.jsonl", tmp_path / "figures.json"
    answer = ask("--rationales", file, "--method", "occlusion", "--method", "saliency", "--jsonl", jsonl, "--figures", out)
    people = load_rationales(file)
    told = by_row(jsonl, "occlusion")
    assert [told[row]["text"] for row in (0, 1)] == [one.text for one in people]
    marked = [[word for word, yes in zip(told[row]["words"], people[row].units(), strict=True) if yes] for row in (0, 1)]
    assert marked == [["unfunny", "ending", "is", "great"], ["is", "n't", "dull", "i", "love", "it"]]
    found = json.loads(out.read_text())["plausibility"]
    for method in ("occlusion", "saliency"):
        scores = [np.array(by_row(jsonl, method)[row]["scores"]) for row in (0, 1)]
        expected = plausibility(scores, people)
        assert found[method]["all"]["auprc"]["mean"] == pytest.approx(expected["all"]["auprc"]["mean"])
        assert found[method]["share"] == pytest.approx((4 / 15 + 6 / 14) / 2)
    rows = rows_of(answer.out)
    assert list(rows) == [each for name in ("token F1 ↑", "IOU F1 ↑", "AUPRC ↑") for each in (name, f"{name} floor")]
    assert rows["AUPRC ↑"] == pytest.approx([found[name]["all"]["auprc"]["mean"] for name in found], abs=5e-4)


def test_rationales_can_be_asked_with_their_question_and_are_cut_openly(ask: Command, tmp_path: Path) -> None:
    file, jsonl = eraser(tmp_path / "movies"), tmp_path / "why.jsonl"
    options = ["--text-pair", "query", "--max-length", 22, "--limit", 1, "--method", "saliency"]
    answer = ask("--rationales", file, *options, "--jsonl", jsonl)
    (line,) = lines_of(jsonl)
    assert line["text_pair"] == "What is the sentiment of this review?"
    assert any(line["hidden"])
    assert re.search(r"\d+% of the marked words have no score", " ".join(answer.out.split()))


def test_a_selector_is_fitted_for_what_people_marked(ask: Command, csv_file: Path, tmp_path: Path) -> None:
    """The column of texts to fit on is named; how documents are read is another matter."""
    fitted = ["--method", "l2x", "--selector", tmp_path / "selector", "--fit-on", csv_file, "--text", "review"]
    ask("--rationales", eraser(tmp_path / "movies"), "--text-pair", "query", "--limit", 1, *fitted)


def test_two_documents_of_an_annotation_are_read_together(ask: Command, egkd: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_text(
        '{"docid": "a_hypothesis", "document": "the film is dull"}\n{"docid": "a_premise", "document": "i love it a lot"}\n'
        '{"docid": "b_premise", "document": "a great cast"}\n{"docid": "b_hypothesis", "document": "it is great"}\n'
    )
    evidence = {"docid": "a_hypothesis", "start_token": 3, "end_token": 4}
    lines = [
        {"annotation_id": "a", "docids": ["a_hypothesis", "a_premise"], "evidences": [[evidence]]},
        {
            "annotation_id": "b",
            "docids": ["b_premise", "b_hypothesis"],
            "evidences": [[evidence | {"docid": "b_hypothesis", "start_token": 2, "end_token": 3}]],
        },
    ]
    file, jsonl, out = tmp_path / "val.jsonl", tmp_path / "why.jsonl", tmp_path / "figures.json"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--text-pair", "docs", "--method", "occlusion", "--jsonl", jsonl, "--figures", out]
    ask("--rationales", file, *options)
    told = by_row(jsonl, "occlusion")
    assert [(told[row]["text"], told[row]["text_pair"]) for row in (0, 1)] == [
        ("i love it a lot", "the film is dull"),
        ("a great cast", "it is great"),
    ]
    people = by_pairs(load_rationales(file))
    scores = [np.array(told[row]["scores"]) for row in (0, 1)]
    apart = [scores[0][:5], scores[0][5:], scores[1][:3], scores[1][3:]]
    found = json.loads(out.read_text())["plausibility"]["occlusion"]
    assert found["all"] == plausibility(apart, [one for pair in people for one in pair])["all"]
    assert found["share"] == pytest.approx((1 / 4 + 1 / 3) / 4)
    file.write_text(json.dumps(lines[0] | {"docids": ["a_hypothesis"]}) + "\n")
    answer = egkd("explain", "--rationales", file, "--model", model, "--text-pair", "docs")
    assert answer.code == 2
    assert "annotation 'a' speaks of 1 documents, expected two" in answer.err


# Refusals


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "found nothing to explain, expected one of TEXT, --file FILE, --rationales FILE or --task TASK"),
        (["--rationales", "nowhere.jsonl"], "found no documents at"),
        (["--rationales", "val.jsonl", "--text-pair", "question"], "with --rationales it can be 'query'"),
        (["a film", "--twin", "x"], "give another model with --against"),
        (["a film", "--figures", "x.json"], "no judge has figures for --figures x.json; give --judge"),
        (["a film", "--judge", "--set", "judge.operatr=delete"], "unknown setting 'operatr'; did you mean 'operator'?"),
        (["a film", "--judge", "--set", "judge.operator=drop"], "--set judge.operator: Input should be 'mask', 'delete'"),
        (["a film", "--judge", "--set", "judge.infidelity_samples=0"], "greater than or equal to 1; it is 0"),
        (["a film", "--file", "x.csv"], "found TEXT and --file to explain"),
        (["  "], "a TEXT is empty"),
        (["a", "b", "--pair", "c"], "2 TEXT and 1 --pair"),
        (["--file", "nowhere.csv"], "there is no file nowhere.csv"),
        (["a film", "--method", "lme"], "unknown explanation method 'lme'; did you mean 'lime'?"),
        (["a film", "--method", "lime", "--set", "lime.n_sample=3"], "did you mean 'n_samples'?"),
        (["a film", "--method", "lime", "--set", "lime.n_samples=0"], "'lime', setting 'n_samples'"),
        (
            ["a film", "--method", "lime", "--set", "occlusion.operator=delete"],
            "--set occlusion: there are settings of lime here",
        ),
        (["a film", "--method", "lime", "--set", "lime=3"], "--set lime=3 names no setting"),
        (["a film", "--set", "selector.rat=3"], "--set selector: unknown setting 'rat'; did you mean 'rate'?"),
        (["a film", "--set", "selector.rate=3"], "--set selector.rate: Input should be less than or equal to 1; it is 3"),
        (["a film", "--set", "selector=3"], "--set selector: unknown setting 3"),
        (["a film", "--set", "selector.rate=0.2"], "give texts to fit it on with --fit-on"),
        (["a film", "--target", "happy"], "the model has no class 'happy', it has negative, positive"),
        (["a film", "--target", "2"], "target 2 is none of the model's 2 classes"),
        (["a film", "--max-length", "2"], "--max-length is 2"),
        (["a film", "--max-length", "65"], "reads texts of 5 to 64 tokens"),
        (["a film", "--limit", "0"], "expected 1 or more"),
        (["a film", "--jsonl", "why.txt"], "should end in .jsonl"),
        (["a film", "--html", "."], "is a folder"),
        (["a film", "--judge", "--html", "f", "--figures", "./f"], "two of --jsonl, --html and --figures name one file"),
        (["a film", "--seed", "-1"], "Invalid value for '--seed': Input should be greater than or equal to 0"),
        (["a film", "--set", "judge.operator=delete"], "--set judge.operator says nothing without --judge"),
        (["a film", "--text", "review"], "--text review says nothing beside TEXT"),
        (["--task", "mrpc", "--text-pair", "b"], "--text-pair b says nothing beside --task"),
        (["--file", "x.csv", "--glue-dir", "glue"], "--glue-dir glue says nothing beside --file"),
        (["a film", "--method", "l2x"], "l2x needs a selector: give its folder as --selector"),
        (["a film", "--method", "l2x", "--selector", "none"], "there is no selector in none; fit one there with --fit-on"),
        (["a film", "--method", "l2x", "--set", "l2x.selector=none"], "no selector in none"),
        (["a film", "--method", "l2x", "--method", "diffmask"], "needs a selector of its own"),
        (["a film", "--selector", "none"], "--selector and --fit-on are for l2x, hard-concrete, diffmask"),
        (["a film", "--method", "exact-shapley", "--set", "exact-shapley.max_units=1"], "takes at most 1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    egkd: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = egkd("explain", "--model", model, *arguments)
    assert answer.code == 2
    last = answer.err.rstrip("\n").splitlines()[-1]
    assert last.startswith("egkd: ")
    assert why in last
    assert list(tmp_path.iterdir()) == []


def test_models_of_other_classes_and_methods_of_one_model_are_refused(
    egkd: Command, model: Path, csv_file: Path, tmp_path: Path, save: Callable[..., Path]
) -> None:
    turned = save(tmp_path / "turned", ("positive", "negative"))
    shouted = save(tmp_path / "shouted", ("POSITIVE", "NEGATIVE"))
    three = save(tmp_path / "three", ("a", "b", "c"))
    named = save(tmp_path / "named", ("bad", "good"))
    for other in (turned, shouted, three, named):
        answer = egkd("explain", "a film", "--model", model, "--against", other)
        assert answer.code == 2
        assert "the explained model has the classes negative, positive, the other" in answer.err
    fitted = ["--method", "l2x", "--selector", tmp_path / "selector", "--fit-on", csv_file, "--text", "review"]
    answer = egkd("explain", "a film", "--model", model, "--against", model, *fitted)
    assert answer.code == 2
    assert "l2x carries a selector of one model" in answer.err
    assert not (tmp_path / "selector").exists()  # refused before any work
    for name, classes in (("calm", ("Negative", "Positive")), ("numbers", ("LABEL_0", "LABEL_1"))):
        same = save(tmp_path / name, classes)
        assert egkd("explain", "a film", "--model", model, "--against", same, "--method", "saliency").code == 0


def test_two_processes_do_not_write_to_one_file(egkd: Command, model: Path, tmp_path: Path) -> None:
    from egkd.runs import held

    out = tmp_path / "why.jsonl"
    command = ["explain", "a film", "--model", model, "--method", "saliency", "--jsonl", out]
    with held(tmp_path / ".why.jsonl.lock", out):
        answer = egkd(*command)
    assert answer.code == 2
    assert "is being worked on by another process; wait for it, or name another --jsonl" in answer.err
    assert not out.exists()
    assert egkd(*command).code == 0
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_methods_that_the_other_model_cannot_be_asked_by_are_refused_at_once(
    egkd: Command, model: Path, tmp_path: Path, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    maskless = without_mask(save(tmp_path / "maskless"))
    monkeypatch.setattr("egkd.explaining.explain_all", lambda *_, **__: pytest.fail("asked"))
    smooth = ["smoothgrad", "--set", "smoothgrad.inner={method: integrated-gradients}"]
    for method, setting in ((["occlusion"], "operator"), (["integrated-gradients"], "baseline"), (smooth, "inner.baseline")):
        answer = egkd("explain", "a film", "--model", model, "--against", maskless, "--method", *method)
        assert answer.code == 2
        assert f"{method[0]}.{setting} is 'mask', and the other model has no mask token" in answer.err


def test_a_file_given_as_text_is_not_explained_as_a_text(egkd: Command, model: Path, csv_file: Path) -> None:
    answer = egkd("explain", csv_file, "--model", model)
    assert answer.code == 2
    assert "is a file; to explain what is in it, give it as --file" in answer.err


def test_a_model_that_is_none_is_refused(egkd: Command, tmp_path: Path) -> None:
    answer = egkd("explain", "a film", "--model", tmp_path / "nowhere")
    assert answer.code == 2
    assert "does not exist" in answer.err
    assert egkd("explain", "a film").code == 2
