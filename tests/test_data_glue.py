"""GLUE from TSV files with all their quirks, and from the hub."""

from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets.exceptions import DatasetGenerationError

from egkd.data import Task, as_dataset, glue, hold_out, sample
from egkd.data.glue import GLUE_TASKS, load_glue

SST2 = "sentence\tlabel\na fine film \t1\na dull film \t0\n"


def write(directory: Path, **files: str) -> Path:
    """Files by folder and split: `SST_2__train="..."` becomes SST-2/train.tsv."""
    for name, content in files.items():
        folder, split = name.split("__")
        path = directory / folder.replace("_", "-") / f"{split}.tsv"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode())
    return directory


@pytest.mark.parametrize("name", ["sst2", "SST-2", "SST_2", "Sst2"])
def test_any_spelling_of_a_task(tmp_path: Path, name: str) -> None:
    data = load_glue(name, write(tmp_path, SST_2__train=SST2, SST_2__dev=SST2))
    assert data.task == Task(name="sst2", kind="classification", label_names=("negative", "positive"))
    assert data.train[:] == {"text": ["a fine film ", "a dull film "], "label": [1, 0]}
    assert list(data.evals) == ["dev"]
    assert data.notes == ()


def test_unknown_task_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown GLUE task 'STS-A', did you mean 'stsb'"):
        load_glue("STS-A", ".")


def test_cola_has_no_header(tmp_path: Path) -> None:
    rows = "gj04\t1\t\tThe boat sank.\ngj04\t0\t*\tThe boat sank the.\n"
    data = load_glue("cola", write(tmp_path, CoLA__train=rows, CoLA__dev=rows))
    assert data.train[:] == {"text": ["The boat sank.", "The boat sank the."], "label": [1, 0]}
    assert data.task.metrics == ("matthews_correlation",)


def test_quotes_are_characters_and_a_byte_order_mark_is_none(tmp_path: Path) -> None:
    rows = (
        '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\t"Open, he said.\tIt is "open".\r\n0\t9\t10\tA.\t"B"\r\n'
    )
    data = load_glue("MRPC", write(tmp_path, MRPC__train=rows, MRPC__dev=rows))
    assert data.train[:] == {"text": ['"Open, he said.', "A."], "text_pair": ['It is "open".', '"B"'], "label": [1, 0]}
    assert data.task.metrics == ("f1", "accuracy")


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    rows = "sentence\tlabel\na\u2028b\x0bc\x85d\re\t1\n"
    assert load_glue("sst2", write(tmp_path, SST_2__train=rows, SST_2__dev=SST2)).train["text"] == ["a\u2028b\x0bc\x85d\re"]


def test_stsb_has_scores(tmp_path: Path) -> None:
    rows = "index\tgenre\tsentence1\tsentence2\tscore\n0\tnews\tA.\tB.\t5.000\n1\tnews\tC.\tD.\t0.25\n"
    data = load_glue("sts-b", write(tmp_path, STS_B__train=rows, STS_B__dev=rows))
    assert data.train[:] == {"text": ["A.", "C."], "text_pair": ["B.", "D."], "label": [5.0, 0.25]}
    assert data.task == Task(name="stsb", kind="regression", metrics=("pearson", "spearmanr"))
    assert data.task.num_labels == 1


def test_mnli_goes_by_header_and_may_lack_one_dev_set(tmp_path: Path) -> None:
    full = "index\tpromptID\tsentence1_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
    rows = full + "".join(
        f"{i}\t9\t( A )\tA{i}.\tB{i}.\tneutral\t{gold}\n" for i, gold in enumerate(("contradiction", "entailment", "neutral"))
    )
    data = load_glue("mnli", write(tmp_path, MNLI__train=rows, MNLI__dev_mismatched=rows))
    assert data.train[:] == {"text": ["A0.", "A1.", "A2."], "text_pair": ["B0.", "B1.", "B2."], "label": [2, 0, 1]}
    assert list(data.evals) == ["dev_mismatched"]
    assert data.notes == ("MNLI has no dev_matched.tsv: left out",)
    write(tmp_path, MNLI__dev_matched=rows)
    assert list(load_glue("mnli", tmp_path).evals) == ["dev_matched", "dev_mismatched"]


def test_qqp_skips_malformed_lines_and_counts_them(tmp_path: Path) -> None:
    head = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    rows = head + "1\t2\t3\tWhy?\tHow?\t0\n4\t5\t6\tbroken\n7\t8\t9\tWho?\tWho is?\t1\n10\t11\t12\ta\tb\tc\n"
    data = load_glue("qqp", write(tmp_path, QQP__train=rows, QQP__dev=head + "1\t2\t3\tA?\tB?\t1\n"))
    assert data.train[:] == {"text": ["Why?", "Who?"], "text_pair": ["How?", "Who is?"], "label": [0, 1]}
    assert data.notes == ("QQP/train.tsv: 2 malformed lines skipped, 2 read",)


@pytest.mark.parametrize(
    ("name", "folder", "columns", "label", "expected"),
    [
        ("qnli", "QNLI", "question\tsentence", "not_entailment", 1),
        ("rte", "RTE", "sentence1\tsentence2", "entailment", 0),
        ("wnli", "WNLI", "sentence1\tsentence2", "1", 1),
    ],
)
def test_the_other_pairs(tmp_path: Path, name: str, folder: str, columns: str, label: str, expected: int) -> None:
    rows = f"index\t{columns}\tlabel\n0\tA.\tB.\t{label}\n"
    data = load_glue(name, write(tmp_path, **{f"{folder}__train": rows, f"{folder}__dev": rows}))
    assert data.train[:] == {"text": ["A."], "text_pair": ["B."], "label": [expected]}


def test_malformed_line_of_another_task_is_an_error_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, SST_2__train=SST2 + "no label\n", SST_2__dev=SST2)
    with pytest.raises(
        ValueError, match=r"train.tsv line 4 has 1 columns and reads 'no label': expected 2 columns with 0 or 1"
    ):
        load_glue("sst2", tmp_path)
    write(tmp_path, SST_2__train=SST2 + "odd\t2\n")
    with pytest.raises(ValueError, match=r"line 4 has 2 columns and reads 'odd\\t2'"):
        load_glue("sst2", tmp_path)


def test_missing_pieces_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--glue-dir .*nowhere is not a directory"):
        load_glue("rte", tmp_path / "nowhere")
    write(tmp_path, SST_2__train=SST2)
    with pytest.raises(ValueError, match="no folder RTE for rte, found SST-2"):
        load_glue("rte", tmp_path)
    with pytest.raises(ValueError, match=r"has no dev.tsv"):
        load_glue("sst2", tmp_path)
    write(tmp_path, SST_2__dev="text\tlabel\na\t1\n")
    with pytest.raises(ValueError, match=r"dev.tsv has no column 'sentence', found text, label"):
        load_glue("sst2", tmp_path)
    write(tmp_path, SST_2__dev="sentence\tlabel\n")
    with pytest.raises(ValueError, match=r"dev.tsv has no readable row"):
        load_glue("sst2", tmp_path)
    (tmp_path / "SST-2" / "dev.tsv").write_bytes(b"sentence\tlabel\ncaf\xe9\t1\n")
    with pytest.raises(ValueError, match=r"dev.tsv is not UTF-8 text \(byte 18\)"):
        load_glue("sst2", tmp_path)


def test_limits_draw_the_same_rows_for_the_same_seed(tmp_path: Path) -> None:
    rows = "sentence\tlabel\n" + "".join(f"text {i}\t{i % 2}\n" for i in range(100))
    write(tmp_path, SST_2__train=rows, SST_2__dev=rows)
    first, again, other = (load_glue("sst2", tmp_path, train_limit=20, eval_limit=5, seed=seed) for seed in (1, 1, 2))
    assert first.train[:] == again.train[:]
    assert set(first.train["text"]) != set(other.train["text"])
    assert len(set(first.train["text"])) == 20
    assert len(first.evals["dev"]) == 5
    assert len(load_glue("sst2", tmp_path, train_limit=1000).train) == 100


HUB_COLUMNS = {
    "cola": ["sentence"],
    "sst2": ["sentence"],
    "mrpc": ["sentence1", "sentence2"],
    "qqp": ["question1", "question2"],
    "stsb": ["sentence1", "sentence2"],
    "mnli": ["premise", "hypothesis"],
    "qnli": ["question", "sentence"],
    "rte": ["sentence1", "sentence2"],
    "wnli": ["sentence1", "sentence2"],
}
HUB_LABELS = {
    "cola": ["unacceptable", "acceptable"],
    "sst2": ["negative", "positive"],
    "mrpc": ["not_equivalent", "equivalent"],
    "qqp": ["not_duplicate", "duplicate"],
    "mnli": ["entailment", "neutral", "contradiction"],
    "qnli": ["entailment", "not_entailment"],
    "rte": ["entailment", "not_entailment"],
    "wnli": ["not_entailment", "entailment"],
}


def hub(name: str) -> DatasetDict:
    """What the hub gives for a task: the columns and labels of its dataset card."""
    texts = HUB_COLUMNS[name]
    label = ClassLabel(names=HUB_LABELS[name]) if name in HUB_LABELS else Value("float32")
    features = Features({column: Value("string") for column in texts} | {"label": label, "idx": Value("int32")})
    rows = {column: [f"{column} a", f"{column} b"] for column in texts} | {"label": [1, 0], "idx": [0, 1]}
    kinds = ["_matched", "_mismatched"] if name == "mnli" else [""]
    splits = ["train", *(f"validation{kind}" for kind in kinds), *(f"test{kind}" for kind in kinds)]
    return DatasetDict({split: Dataset.from_dict(rows, features) for split in splits})


@pytest.mark.parametrize("name", GLUE_TASKS)
def test_every_task_from_the_hub(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked = []
    monkeypatch.setattr(glue, "load_dataset", lambda *what: asked.append(what) or hub(name))
    data = load_glue(name)
    assert asked == [("nyu-mll/glue", name)]
    assert list(data.task.label_names) == HUB_LABELS.get(name, [])
    columns = dict(zip(["text", "text_pair"], HUB_COLUMNS[name], strict=False))
    assert data.train[:] == {to: [f"{column} a", f"{column} b"] for to, column in columns.items()} | {"label": [1, 0]}
    assert data.train.features["label"].dtype == ("float64" if name == "stsb" else "int64")
    assert list(data.evals) == (["dev_matched", "dev_mismatched"] if name == "mnli" else ["dev"])


def test_labels_in_another_order_on_the_hub_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    swapped = hub("sst2").cast_column("label", ClassLabel(names=["positive", "negative"]))
    monkeypatch.setattr(glue, "load_dataset", lambda *_: swapped)
    with pytest.raises(ValueError, match=r"gives sst2 the labels \('positive', 'negative'\), expected \('negative'"):
        load_glue("sst2")


@pytest.mark.parametrize("error", [ConnectionError("no way\nout"), DatasetGenerationError("no way"), ValueError("no way")])
def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: str) -> None:
        raise error

    monkeypatch.setattr(glue, "load_dataset", fail)
    with pytest.raises(ValueError, match=r"cannot load rte of nyu-mll/glue .* \(no way\): .* --glue-dir$"):
        load_glue("rte")


def test_sample_keeps_order_and_refuses_nothing_at_all() -> None:
    dataset = Dataset.from_dict({"row": list(range(50))})
    rows = sample(dataset, 10, seed=3)["row"]
    assert list(rows) == sorted(set(rows))
    assert len(rows) == 10
    with pytest.raises(ValueError, match="limit on the number of rows is 0"):
        sample(dataset, 0, seed=3)


def test_hold_out_is_stratified_by_largest_remainder() -> None:
    groups = [0] * 64 + [1] * 28 + [2] * 8  # shares of 10: 6.4, 2.8, 0.8; two seats go to the largest remainders
    train, held = hold_out(groups, 10)
    assert sorted(train + held) == list(range(100))
    assert [sum(groups[row] == group for row in held) for group in range(3)] == [6, 3, 1]
    assert hold_out(groups, 10) == (train, held)


def test_hold_out_leaves_every_group_one_row_to_train_on() -> None:
    train, held = hold_out(["a", "a", "b"], 3)
    assert len(held) == 1
    assert 2 in train


def test_as_dataset_types_labels_by_task() -> None:
    scores = as_dataset({"text": ["a"], "label": [1]}, Task(name="t", kind="regression"))
    assert scores.features["label"].dtype == "float64"
