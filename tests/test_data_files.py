"""The user's own files: every format, guesses, labels, and one clear line for everything that is wrong."""

import csv
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from egkd.config_data import DataConfig
from egkd.data import Task
from egkd.data.files import load_files
from egkd.data.loading import load_data
from egkd.data.readers import read_table

CSV = "text,label\ngood film,pos\nbad film,neg\n"
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(labels: list[Any], **names: str) -> str:
    """A CSV file with a text per label."""
    return "text,label\n" + "".join(f"text {row},{label}\n" for row, label in enumerate(labels))


def refused(train: Path, evaluation: Path | None = None, **how: Any) -> str:
    """The one line with which files are refused."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 - each caller looks at the message
        load_files(train, evaluation, **how)
    assert "\n" not in str(error.value)
    return str(error.value)


# Formats


def as_csv(path: Path, examples: list[dict[str, str]], separator: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, examples[0].keys(), delimiter=separator)
        writer.writeheader()
        writer.writerows(examples)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".CSV"])
def test_every_format_gives_the_same(tmp_path: Path, ending: str) -> None:
    examples = [{"text": f'It is "{row}", isn\'t it?', "label": "yes" if row % 3 else "no"} for row in range(6)]
    path = tmp_path / f"examples{ending}"
    if ending.lower() == ".csv":
        as_csv(path, examples)
    elif ending == ".tsv":
        as_csv(path, examples, "\t")
    elif ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(examples), path)
    elif ending == ".json":
        path.write_text(json.dumps(examples, indent=2))
    else:
        path.write_text("\n".join(map(json.dumps, examples)))
    data = load_files(path, path)
    assert data.task == Task(name="examples", kind="classification", label_names=("no", "yes"))
    assert data.train[:] == {"text": [each["text"] for each in examples], "label": [0, 1, 1, 0, 1, 1]}
    assert data.train.features == Features({"text": Value("string"), "label": Value("int64")})
    assert list(data.evals) == ["dev"]
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@settings(deadline=None)
@given(st.lists(texts, min_size=1, max_size=5), st.sampled_from([".csv", ".tsv", ".jsonl"]))
def test_text_survives_its_file(contents: list[str], ending: str) -> None:
    if ending == ".tsv":
        contents = [content.replace("\t", " ") + "." for content in contents]
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"a{ending}"
        examples = [{"text": content, "label": "x"} for content in contents]
        if ending == ".jsonl":
            path.write_text("\n".join(json.dumps(each, ensure_ascii=False) for each in examples), encoding="utf-8", newline="")
        else:
            as_csv(path, examples, "," if ending == ".csv" else "\t")
        assert read_table(path).values("text") == contents


def test_json_with_an_object_per_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '{"text": "a", "label": 0}\n\n{"text": "b", "label": 1}\n')
    assert read_table(path).values("text") == ["a", "b"]
    assert read_table(path).place(1).endswith("a.json line 3")


@pytest.mark.parametrize("nested", ["[" * 100_000, '{"text": "a", "label": ' + "9" * 5_000 + "}"])
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_json_that_python_cannot_take_is_one_line(tmp_path: Path, nested: str, ending: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.{ending}.* JSON") as caught:
        read_table(write(tmp_path / f"a.{ending}", nested))
    assert "\n" not in str(caught.value)


def test_parquet_that_is_odd(tmp_path: Path) -> None:
    columns = [pyarrow.array(["a", "b"]), pyarrow.array([0, 1]), pyarrow.array([1, 0])]
    pyarrow.parquet.write_table(pyarrow.table(columns, names=["text", "label", "label"]), tmp_path / "twice.parquet")
    assert "has two columns called 'label': rename one" in refused(tmp_path / "twice.parquet")
    newer = pyarrow.table(columns[:2], names=["text", "label"]).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": {"text": {"_type": "Newer"}}}})}
    )
    pyarrow.parquet.write_table(newer, tmp_path / "newer.parquet")
    table = read_table(tmp_path / "newer.parquet")
    assert table.values("text") == ["a", "b"]
    assert table.notes == ("newer.parquet: names of its classes cannot be read, their numbers are taken",)


def test_tsv_whose_quotes_are_characters(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"Open quote\tx\n5" disk\ty\nclosed"\tx\n')
    data = load_files(path, path)
    assert data.train["text"] == ['"Open quote', '5" disk', 'closed"']
    assert "a.tsv: quotes are read as characters" in data.notes


def test_tsv_quote_that_would_swallow_a_line_is_a_character(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"p\tx\nq"\ty\n')
    assert read_table(path).values("text") == ['"p', 'q"']


def test_tsv_with_quoted_newlines_and_tabs(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"two\nlines, ""one\ttab"""\tx\nplain\ty\n')
    assert read_table(path).values("text") == ['two\nlines, "one\ttab"', "plain"]
    assert read_table(path).place(1).endswith("line 4")


def test_byte_order_mark_blank_lines_and_long_fields(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    path = write(tmp_path / "a.csv", "\ufeff text , label \r\n" + "long " * 50_000 + ",x\r\n\r\nb,y\r\n")
    table = read_table(path)
    assert list(table.columns) == ["text", "label"]
    assert [len(value) for value in table.values("text")] == [250_000, 1]
    assert csv.field_size_limit() == limit


def test_class_labels_of_parquet_keep_names_and_order(tmp_path: Path) -> None:
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["worse", "same", "better"])})
    Dataset.from_dict({"sentence": ["a", "b", "c"], "label": [2, 0, 1]}, features).to_parquet(tmp_path / "a.parquet")
    data = load_files(tmp_path / "a.parquet", tmp_path / "a.parquet")
    assert data.task.label_names == ("worse", "same", "better")
    assert list(data.train["label"]) == [2, 0, 1]
    by_name = write(tmp_path / "b.csv", "sentence,label\nd,better\ne,worse\n")
    assert list(load_files(tmp_path / "a.parquet", by_name).evals["dev"]["label"]) == [2, 0]
    Dataset.from_dict({"sentence": ["a", "b", "c"], "label": [2, -1, 1]}, features).to_parquet(tmp_path / "a.parquet")
    assert "a.parquet row 2: 'label' is None, expected a label" in refused(tmp_path / "a.parquet")


def test_several_files_are_one(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.csv", CSV), write(tmp_path / "b.jsonl", '{"text": "so so", "label": "neg"}')
    data = load_files([a, b], [str(b), a])
    assert list(data.train["text"]) == ["good film", "bad film", "so so"]
    assert list(data.evals["dev"]["label"]) == [0, 1, 0]
    c = write(tmp_path / "c.csv", "sentence,label\nx,pos\n")
    assert "c.csv has no column 'text', found 'sentence', 'label': all files need" in refused(a, c)


def test_a_file_called_train_is_named_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "reviews").mkdir()
    path = write(tmp_path / "reviews" / "train.csv", CSV)
    assert load_files(path, path).task.name == "reviews"


# Columns


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("id,Review,Stars", ("Review", None, "Stars")),
        ("idx,Sentence_1,Sentence 2,gold-label", ("Sentence_1", "Sentence 2", "gold-label")),
        ("premise,hypothesis,label", ("premise", "hypothesis", "label")),
        ("sentence,question,label", ("question", "sentence", "label")),
        ("question,answer,score", ("question", "answer", "score")),
        ("title,review_body,rating", ("review_body", None, "rating")),
    ],
)
def test_columns_are_guessed_and_noted(tmp_path: Path, header: str, expected: tuple[str, str | None, str]) -> None:
    names = header.split(",")
    cells = {"id": "7", "idx": "7", "title": "A title"}
    text, pair, label = expected
    lines = [",".join(cells.get(name, value if name == label else f"{name} {value}") for name in names) for value in ("1", "2")]
    path = write(tmp_path / "a.csv", "\n".join([header, *lines]))
    data = load_files(path, path)
    assert list(data.train["text"]) == [f"{text} 1", f"{text} 2"]
    assert list(data.train["label"]) == [0, 1]
    if pair is None:
        assert data.train.column_names == ["text", "label"]
    else:
        assert list(data.train["text_pair"]) == [f"{pair} 1", f"{pair} 2"]
    note = f"a.csv: text from column {text!r}" + (f" and pair from column {pair!r}" if pair else "")
    assert f"{note}, label from column {label!r} (guessed; --text, --text-pair and --label say otherwise)" in data.notes


def test_named_columns_win_and_are_not_noted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,other,label,mark\na,b,0,x\nc,d,1,y\n")
    data = load_files(path, path, text="other", text_pair="text", label="mark")
    assert data.train[:] == {"text": ["b", "d"], "text_pair": ["a", "c"], "label": [0, 1]}
    assert not any("guessed" in note for note in data.notes)
    alone = load_files(path, path, text="other", label="mark")
    assert alone.train.column_names == ["text", "label"]


@pytest.mark.parametrize(
    ("header", "how", "expected"),
    [
        ("text,review,label", {}, "ambiguous ('text' or 'review'): choose with --text"),
        ("premise,hypothesis,text,label", {}, "ambiguous ('premise' + 'hypothesis' or 'text'): choose with --text"),
        ("text,label,score", {}, "ambiguous ('label' or 'score'): choose with --label"),
        ("txt,label", {}, "has columns 'txt', 'label', none with a known name: choose with --text, did you mean 'txt'?"),
        ("text,lable", {}, "choose with --label, did you mean 'lable'?"),
        ("a,b", {}, "has columns 'a', 'b', none with a known name: choose with --text"),
        ("review,label", {"text": "reviw"}, "--text 'reviw' is no column of"),
        ("review,label", {"text": "reviw"}, "did you mean 'review'? found 'review', 'label'"),
        ("text,label", {"label": "stars"}, "--label 'stars' is no column of"),
        ("text,label", {"text_pair": "b"}, "--text-pair 'b' is no column of"),
        ("text,other,label", {"text_pair": "other"}, "--text-pair 'other' needs --text beside it"),
        ("text,label", {"text": "text", "label": "text"}, "name the same column of"),
        ("text,label", {"text": "text", "text_pair": "text"}, "name the same column of"),
        ("text,text,label", {}, "has two columns called 'text': rename one"),
    ],
)
def test_columns_that_are_not_clear(tmp_path: Path, header: str, how: dict[str, str], expected: str) -> None:
    path = write(tmp_path / "a.csv", header + "\n" + ",".join("x" * (header.count(",") + 1)) + "\n")
    assert expected in refused(path, **how)


# Labels


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        ([10, 9, 10], ("9", "10"), [1, 0, 1]),
        (["1.0", "2.0", "1"], ("1", "2"), [0, 1, 0]),
        (["-1", "+1", "-1"], ("-1", "+1"), [0, 1, 0]),
        (["007", "08", "007"], ("007", "08"), [0, 1, 0]),
        (["True", " False", "True "], ("False", "True"), [1, 0, 1]),
    ],
)
def test_classes_are_named_and_sorted(tmp_path: Path, labels: list[Any], names: tuple[str, ...], ids: list[int]) -> None:
    data = load_files(path := write(tmp_path / "a.csv", rows(labels)), path)
    assert data.task.label_names == names
    assert list(data.train["label"]) == ids


def test_typed_labels_of_json(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a", "label": true}\n{"text": "b", "label": false}\n')
    assert load_files(path, path).task.label_names == ("False", "True")
    path = write(tmp_path / "a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": 0.5}\n')
    assert list(load_files(path, path).train["label"]) == [1.0, 0.5]
    path = write(tmp_path / "a.jsonl", '{"text": "a", "label": [1, 2]}\n{"text": "b", "label": [0]}\n')
    assert "a.jsonl line 1 (and 1 more): 'label' is [1, 2], expected one label per example" in refused(path)


def test_fractions_anywhere_make_scores(tmp_path: Path) -> None:
    train, dev = write(tmp_path / "a.csv", rows([1, 2, 5])), write(tmp_path / "b.csv", rows(["2.5", "1e-1"]))
    data = load_files(train, dev)
    assert data.task == Task(name="a", kind="regression", metrics=("pearson", "spearmanr"))
    assert list(data.train["label"]) == [1.0, 2.0, 5.0]
    assert list(data.evals["dev"]["label"]) == [2.5, 0.1]
    assert "labels are scores from 0.1 to 5" in data.notes


def test_kind_decides_where_labels_could_be_both(tmp_path: Path) -> None:
    whole, fractions = write(tmp_path / "a.csv", rows([1, 2, 5])), write(tmp_path / "b.csv", rows(["0.5", "1.5"]))
    assert load_files(whole, whole, kind="regression").task.kind == "regression"
    assert load_files(fractions, fractions, kind="classification").task.label_names == ("0.5", "1.5")
    assert "labels are 3 classes: 1, 2, 5 (if they are scores, set kind to regression)" in load_files(whole, whole).notes
    words = write(tmp_path / "c.csv", rows(["1.5", "inf"]))
    assert "c.csv line 3: 'label' is 'inf', expected a number" in refused(words, kind="regression")


def test_label_names_give_the_order(tmp_path: Path) -> None:
    named, numbered = write(tmp_path / "a.csv", rows(["pos", "neg"])), write(tmp_path / "b.csv", rows([1, 0]))
    for path, ids in ((named, [0, 2]), (numbered, [1, 0])):
        data = load_files(path, path, label_names=["pos", "neutral", "neg"])
        assert data.task.label_names == ("pos", "neutral", "neg")
        assert list(data.train["label"]) == ids
    assert "line 3: 'label' is 'neg', expected one of the label names: pos, bad" in refused(named, label_names=["pos", "bad"])
    assert "expected two or more different ones" in refused(named, label_names=["pos", "pos"])
    assert "scores have no names" in refused(numbered, label_names=["a", "b"], kind="regression")


def test_labels_that_cannot_work(tmp_path: Path) -> None:
    good = write(tmp_path / "good.csv", rows(["a", "b"]))
    path = write(tmp_path / "a.csv", rows(["a", "", "b", " "]))
    assert "a.csv line 3 (and 1 more): 'label' is '', expected a label: fill or remove the row" in refused(path)
    assert "b.csv line 4: 'label' is 'c', expected one of the labels to train on: a, b" in refused(
        good, write(tmp_path / "b.csv", rows(["a", "b", "c"]))
    )
    assert "every 'label' to train on is 'a', expected at least two classes" in refused(
        write(tmp_path / "c.csv", rows(["a", "a"])), good
    )
    nan = write(tmp_path / "d.jsonl", '{"text": "a", "label": 0.5}\n{"text": "b", "label": NaN}\n{"text": "c"}\n')
    assert "d.jsonl line 2 (and 1 more): 'label' is nan, expected a label" in refused(nan)


# Texts and files


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "", "a.csv is empty: expected a header line and rows"),
        ("a.csv", "text,label\n", "a.csv holds no rows"),
        ("a.csv", "text,label\na,0\n  ,1\n", "a.csv line 3: 'text' is '  ', expected text that is not empty"),
        ("a.csv", "text,label\na,0\nb,1,2\n", "a.csv line 3 has 3 columns, expected 2 as in the header"),
        ("a.csv", 'text,label\n"a\nb",0\nc\n', "a.csv line 4 has 1 columns, expected 2"),
        ("a.csv", 'text,label\na,0\n"b" c,1\n', "a.csv line 3 is malformed (',' expected after '\"'): check its quotes"),
        ("a.csv", 'text,label\na,0\n"b,1\n', "a.csv line 3 is malformed (unexpected end of data)"),
        ("a.tsv", "text\tlabel\na 0\n", "a.tsv line 2 has 1 columns, expected 2"),
        ("a.csv", b"text,label\na,0\ncaf\xe9,1\n", "a.csv line 3 is not UTF-8 text (byte 18): save the file as UTF-8"),
        ("a.jsonl", "", "a.jsonl holds no rows"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": \n', "a.jsonl line 3 is not JSON (Expecting value)"),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', "a.jsonl line 2 is no object: expected something like"),
        ("a.jsonl", '{"text": 3, "label": 0}\n', "a.jsonl line 1: 'text' is 3, expected text"),
        ("a.jsonl", '{"text": "a\\ud800", "label": 0}\n', "a.jsonl line 1: 'text' is 'a\\ud800', expected text without lone"),
        ("a.json", '[{"text": "a"},\n {"text": }]', "a.json line 2 is not JSON (Expecting value): expected a list of objects"),
        ("a.json", "[1]", "a.json row 1 is no object"),
        ("a.parquet", "text,label", "a.parquet is not a Parquet file"),
        ("a.txt", CSV, "a.txt ends in '.txt': expected a file ending in .csv, .tsv"),
        ("a", CSV, "a ends in 'nothing'"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: str | bytes, expected: str) -> None:
    assert expected in refused(write(tmp_path / name, content))


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    write(tmp_path / "reviews.csv", CSV)
    assert refused(tmp_path / "review.csv").endswith("review.csv, did you mean 'reviews.csv'?")
    assert refused(tmp_path / "no" / "a.csv").startswith("there is no file")
    assert "is a directory: expected a file ending in .csv" in refused(tmp_path)
    with pytest.raises(ValueError, match="no file was named"):
        load_files([], None)


# Evaluation data


def test_without_evaluation_data_a_stratified_share_is_held_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", rows(["x"] * 80 + ["y"] * 20))
    data = load_files(path, None, eval_share=0.2)
    dev = data.evals["dev"]
    assert (len(data.train), len(dev), sum(dev["label"])) == (80, 20, 4)
    assert not set(data.train["text"]) & set(dev["text"])
    assert any(note.startswith("no evaluation data given: 20 of 100 rows held out as dev") for note in data.notes)
    assert load_files(path, None, eval_share=0.2, seed=5).evals["dev"][:] == dev[:]


def test_scores_are_held_out_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", rows([row / 7 for row in range(1, 31)]))
    data = load_files(path, None)
    assert (len(data.train), len(data.evals["dev"])) == (27, 3)


def test_too_little_to_hold_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", rows(["x", "y"]))
    with pytest.raises(ValueError, match="2 rows are too few to hold some out: give more, or evaluation data with --eval"):
        load_files(path, None)
    with pytest.raises(ValueError, match=r"share to hold out is 1.5, expected a number between 0 and 1"):
        load_files(path, None, eval_share=1.5)


def test_limits_are_seeded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", rows([row % 2 for row in range(60)]))
    first, again, other = (load_files(path, None, train_limit=10, eval_limit=3, seed=seed) for seed in (1, 1, 2))
    assert first.train[:] == again.train[:]
    assert first.train[:] != other.train[:]
    assert (len(first.train), len(first.evals["dev"])) == (10, 3)


def test_evaluation_texts_that_are_trained_on_are_noted(tmp_path: Path) -> None:
    train, dev = write(tmp_path / "a.csv", CSV), write(tmp_path / "b.csv", "text,label\nbad film,pos\nnew,neg\n")
    assert "1 of 2 evaluation texts are also in the training data: scores may flatter" in load_files(train, dev).notes
    assert not any("flatter" in note for note in load_files(train, write(dev, "text,label\nnew,neg\n")).notes)


@pytest.mark.parametrize("asked", [40, 0.2])
def test_rows_held_out_of_train_are_not_trained_on(tmp_path: Path, write_csv: Any, asked: float) -> None:
    names = ["good" if row % 4 else "bad" for row in range(200)]
    write_csv(tmp_path / "train.csv", text=[f"text {row}" for row in range(200)], label=names)
    write_csv(tmp_path / "dev.csv", text=["unseen", "never seen"], label=["good", "bad"])
    section = {"train": tmp_path / "train.csv", "eval": tmp_path / "dev.csv", "held_out": asked}
    data = load_data(DataConfig.model_validate(section))
    assert list(data.evals) == ["held_out"]
    held = data.evals["held_out"]
    assert sorted([*data.train["text"], *held["text"]]) == sorted(f"text {row}" for row in range(200))
    assert (held["label"].count(0), held["label"].count(1)) == (10, 30)
    assert "dev is not looked at" in " ".join(data.notes)
    limited = load_data(DataConfig.model_validate(section | {"train_limit": 50, "eval_limit": 7}))
    assert set(limited.train["text"]) < set(data.train["text"])
    assert set(limited.evals["held_out"]["text"]) < set(held["text"])
    other = load_data(DataConfig.model_validate(section | {"seed": 1}))
    assert other.evals["held_out"]["text"] != held["text"]
    for wrong, part in ((200, "200 of 200 rows"), (1.5, "found 1.5, expected a number of rows, or a share below 1")):
        with pytest.raises(ValueError, match=part):
            load_data(DataConfig.model_validate(section | {"held_out": wrong}))
