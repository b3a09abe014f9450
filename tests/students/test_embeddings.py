"""Word embeddings from the teacher: copied, or their principal components."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from transformers import AutoModelForSequenceClassification

from egkd.data import Task
from egkd.students import build_student
from egkd.students.embeddings import principal_components

TASK = Task(name="reviews", kind="classification", label_names=("negative", "positive"))


@pytest.fixture(scope="module")
def teacher(save: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(tmp_path_factory.mktemp("embeddings") / "teacher"))


def table_of(teacher: str) -> torch.Tensor:
    return AutoModelForSequenceClassification.from_pretrained(teacher).get_input_embeddings().weight.detach()


@pytest.mark.parametrize("spec", ["bilstm:embed=32", "textcnn:embed=32", "bilstm"])
def test_of_the_teachers_width_they_are_copied(spec: str, teacher: str) -> None:
    student, tokenizer = build_student(spec, teacher, TASK)
    assert torch.equal(student.embeddings.weight, table_of(teacher)[: len(tokenizer)])


def test_narrower_they_are_numpys_svd(teacher: str) -> None:
    student, _ = build_student("bilstm:embed=6", teacher, TASK)
    table = table_of(teacher).double().numpy()
    left, sizes, right = np.linalg.svd(table - table.mean(0), full_matrices=False)
    expected = left[:, :6] * sizes[:6]
    signs = np.sign(right[np.arange(6), np.abs(right[:6]).argmax(1)])
    np.testing.assert_allclose(student.embeddings.weight.detach().numpy(), expected * signs, atol=1e-5)


def test_components_are_scikit_learns(teacher: str) -> None:
    table = table_of(teacher)
    theirs = PCA(5, svd_solver="full").fit_transform(table.double().numpy())
    ours = principal_components(table, 5).numpy()
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-5)
    assert np.array_equal(ours, principal_components(table, 5).numpy())


def test_spare_rows_of_the_teacher_are_left_out(tiny_bert: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = tiny_bert(layers=1)
    model.resize_token_embeddings(len(tokenizer) + 7)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert len(build_student("bilstm:embed=8", str(tmp_path), TASK)[0].embeddings.weight) == len(tokenizer)


def test_a_tokenizer_that_is_not_the_teachers_is_refused(
    tiny_bert: Any, tokenizer: Any, tmp_path: Path, egkd: Any, write_csv: Any
) -> None:
    csv_file = tmp_path / "train.csv"
    write_csv(csv_file, text=[f"film {n}" for n in range(20)], label=["negative", "positive"] * 10)
    model = tiny_bert(layers=1)
    model.resize_token_embeddings(len(tokenizer) - 7)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"embeds \d+ tokens, its tokenizer knows \d+"):
        build_student("bilstm:embed=8", str(tmp_path), TASK)
    flags = ["--student", "layers:1", "--train", csv_file, "--max-length", 32, "--out", tmp_path / "run"]
    answer = egkd("distill", "--teacher", tmp_path, *flags)
    assert (answer.code, "its tokenizer knows" in answer.err, (tmp_path / "run").exists()) == (2, True, False), answer.err
    assert "its tokenizer knows" in egkd("explain", "a film", "--model", tmp_path).err
