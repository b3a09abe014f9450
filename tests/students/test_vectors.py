"""Files of word vectors, and the tokenizer that is made of their words."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from egkd.data import Task
from egkd.students import build_student
from egkd.students.vectors import SPECIAL_TOKENS, read_vectors, word_tokenizer
from egkd.text import encode

TASK = Task(name="reviews", kind="classification", label_names=("negative", "positive"))
GLOVE = "the 0.1 0.2 -0.3\nfilm 1 2 3\ncafé 4e-1 5 6\n. . . 7 8 9\n, 0 0 1\nthe 9 9 9\n"


@pytest.fixture
def glove(tmp_path: Path) -> Path:
    path = tmp_path / "glove.txt"
    path.write_text(GLOVE, encoding="utf-8")
    return path


def test_gloves_format(glove: Path) -> None:
    words, vectors = read_vectors(glove, 100)
    assert words == ["the", "film", "café", ". . .", ","]
    expected = [[0.1, 0.2, -0.3], [1, 2, 3], [0.4, 5, 6], [7, 8, 9], [0, 0, 1]]
    torch.testing.assert_close(vectors, torch.tensor(expected))
    assert read_vectors(glove, 2)[0] == ["the", "film"]


def test_word2vecs_format_has_a_first_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "w2v.txt"
    path.write_bytes(b"2 3\nFilm 1 2 3 \r\n\xc2\x85x 4 5 6 \n")
    words, vectors = read_vectors(path, 10)
    assert words == ["Film", "\x85x"]
    assert vectors.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("the 1 2 3\nfilm 1 2\n", "line 2: found 2 numbers, expected a word and 3 numbers"),
        ("the 1 2 3\nfilm 1 2 3 4\n", "line 2: found 4 numbers, expected a word and 3 numbers"),
        ("the 1 2 3\n\nfilm 1 2 3\n", "line 2: found an empty line, expected a word and 3 numbers"),
        ("the 1 2 3\nfilm 1 x 3\n", "line 2: could not convert string to float: 'x'"),
        ("the 1 2 3\nfilm 1 nan 3\n", "line 2: a number is not finite"),
        ("3 4\nthe 1 2 3\n", "line 2: found 3 numbers, expected a word and 4 numbers"),
        ("the\n", "line 1: found 0 numbers, expected a word and 1 numbers"),
        ("", "has no word vectors; expected a word and its numbers in each line"),
        ("5 3\n", "has no word vectors"),
    ],
)
def test_a_broken_file_is_one_line_with_its_number(content: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=complaint) as caught:
        read_vectors(path, 10)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_binary_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "w2v.bin"
    path.write_bytes(b"3000000 300\n</s> \x80\xff\x00\x01")
    with pytest.raises(ValueError, match="is no text in UTF-8"):
        read_vectors(path, 10)


def test_its_tokens_are_words_with_their_places(glove: Path) -> None:
    words, vectors = read_vectors(glove, 100)
    table, tokenizer = word_tokenizer(words, vectors, seed=0)
    assert len(table) == len(tokenizer) == len(SPECIAL_TOKENS) + 5
    text = "The  café, unseen!"
    encoded = tokenizer(text, return_offsets_mapping=True)
    names = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert names == ["[CLS]", "the", "café", ",", "[UNK]", "[UNK]", "[SEP]"]
    assert [text[start:end] for start, end in encoded["offset_mapping"]] == ["", "The", "café", ",", "unseen", "!", ""]
    assert encode(tokenizer, [text])["unit_ids"] == [[-1, 0, 1, 2, 3, 4, -1]]
    pair = tokenizer("the", "film")
    assert pair["token_type_ids"] == [0, 0, 0, 1, 1]
    rows = dict(zip(tokenizer.convert_ids_to_tokens(range(len(table))), table, strict=True))
    torch.testing.assert_close(rows["film"], torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(rows["[UNK]"], vectors.mean(0))
    assert rows["[MASK]"].abs().sum() == rows["[PAD]"].abs().sum() == 0
    assert rows["[CLS]"].abs().sum() > 0


def test_capitals_count_where_a_word_has_them() -> None:
    for words, expected in ((["film", "Film"], ["film", "Film"]), (["film"], ["film", "film"])):
        _, tokenizer = word_tokenizer(words, torch.ones(len(words), 2), seed=0)
        assert tokenizer.tokenize("film Film") == expected


def test_a_student_of_word_vectors(glove: Path, save: Callable[..., Path], tmp_path: Path) -> None:
    teacher = str(save(tmp_path / "teacher", layers=1))
    student, tokenizer = build_student(f"textcnn:vectors={glove},widths=2", teacher, TASK)
    film = tokenizer.convert_tokens_to_ids("film")
    assert student.embeddings.weight[film].tolist() == [1, 2, 3]
    narrow, _ = build_student(f"bilstm:vectors={glove},embed=2,words=3", teacher, TASK)
    assert narrow.embeddings.weight.shape == (len(SPECIAL_TOKENS) + 3, 2)
    student.save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    again = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert again.is_fast
    texts = ["The café", "film film unseen"]
    assert again(texts, padding=True).data == tokenizer(texts, padding=True).data
    with pytest.raises(ValueError, match=r"embed=4 is more than .*glove\.txt have: 3"):
        build_student(f"bilstm:vectors={glove},embed=4", teacher, TASK)
