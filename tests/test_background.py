"""Other words in the place of those removed: the same ones for teacher and student, whatever their tokenizers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from egkd.lessons import build_lessons
from egkd.models import observe
from egkd.objectives import Moment, PerturbationGuide, Teacher
from egkd.objectives.background import Background, background_words
from egkd.objectives.schedule import Schedule
from egkd.predict import encode_dataset
from egkd.text import collate, encode, unit_spans, visible_units, width

TEXTS = ["the film is great and the cast was lovely", "", "dull", "a film, a cast!"]


def characters() -> PreTrainedTokenizerFast:
    """A tokenizer that cuts everything into characters."""
    letters = sorted(set("".join(TEXTS) + "abcdefghijklmnopqrstuvwxyz") - {" "})
    vocabulary = {letter: number for number, letter in enumerate(["[PAD]", "[UNK]", *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Split("", "isolated")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def batch_of(tokenizer: Any) -> dict[str, torch.Tensor]:
    columns = encode(tokenizer, TEXTS)
    return collate([{name: values[row] for name, values in columns.items()} for row in range(len(TEXTS))], 0)


def words_of(tokenizer: Any, batch: dict[str, torch.Tensor], row: int) -> list[str]:
    """What stands in the place of each word."""
    found: dict[int, list[int]] = {}
    for number, unit in zip(batch["input_ids"][row].tolist(), batch["unit_ids"][row].tolist(), strict=True):
        if unit >= 0:
            found.setdefault(unit, []).append(number)
    return ["".join(tokenizer.convert_ids_to_tokens(ids)).replace("##", "") for _, ids in sorted(found.items())]


def replaced(background: Background, tokenizer: Any, keep: torch.Tensor, masks: int = 0) -> dict[str, torch.Tensor]:
    batch = batch_of(tokenizer)
    return background.replace(batch, keep, torch.arange(5, 5 + len(TEXTS)), torch.full((len(TEXTS),), masks), tokenizer)


def test_removed_words_are_replaced_and_the_others_stay(tokenizer: Any) -> None:
    background = Background.of(["film", "great", "lovely"], tokenizer)
    keep = visible_units(batch_of(tokenizer)["unit_ids"], 9)
    keep[0, [1, 3]] = keep[2, 0] = False
    batch = replaced(background, tokenizer, keep)
    words = words_of(tokenizer, batch, 0)
    text = TEXTS[0].split()
    assert [words[place] for place in (0, 2, 4, 5, 6, 7, 8)] == [text[place] for place in (0, 2, 4, 5, 6, 7, 8)]
    assert {words[1], words[3], *words_of(tokenizer, batch, 2)} <= set(background.words)
    assert words_of(tokenizer, batch, 1) == []
    assert words_of(tokenizer, batch, 3) == [TEXTS[3][start:end] for start, end in unit_spans(TEXTS[3])]


def test_words_are_drawn_by_example_mask_and_place_alone(tokenizer: Any) -> None:
    words = background_words(tokenizer, Dataset.from_dict(encode(tokenizer, TEXTS)))
    background = Background.of(words, tokenizer)
    none = torch.zeros(len(TEXTS), 9, dtype=torch.bool)
    some = none.clone()
    some[0, 4] = True
    first, again = (words_of(tokenizer, replaced(background, tokenizer, keep), 0) for keep in (none, some))
    assert [each for place, each in enumerate(first) if place != 4] == [each for place, each in enumerate(again) if place != 4]
    assert words_of(tokenizer, replaced(background, tokenizer, none, masks=1), 0) != first
    alone = {name: value[[0]] for name, value in batch_of(tokenizer).items()}
    found = background.replace(alone, none[[0]], torch.tensor([5]), torch.tensor([0]), tokenizer)
    assert words_of(tokenizer, found, 0) == first


def test_two_tokenizers_write_the_same_words(tokenizer: Any) -> None:
    words = ["film", "great", "dull"]
    keep = torch.zeros(len(TEXTS), 9, dtype=torch.bool)
    one = words_of(tokenizer, replaced(Background.of(words, tokenizer), tokenizer, keep), 0)
    letters = characters()
    # of a word that takes more tokens than there is room for, the first ones
    other = words_of(letters, replaced(Background.of(words, letters), letters, keep), 0)
    cut = [min(len(word), len(there), 4) for word, there in zip(one, TEXTS[0].split(), strict=True)]
    assert other == [word[:length] for word, length in zip(one, cut, strict=True)]


def test_no_text_becomes_longer(tokenizer: Any) -> None:
    letters = characters()
    for each in (tokenizer, letters):
        background = Background.of(["a", "lovely", "unheard-of"], each)
        batch = replaced(background, each, torch.zeros(len(TEXTS), 9, dtype=torch.bool))
        assert (batch["attention_mask"].sum(1) <= batch_of(each)["attention_mask"].sum(1).clamp(min=1)).all()
        assert width(batch) == 9


def test_words_are_those_of_the_texts_that_are_one_token(tokenizer: Any) -> None:
    data = Dataset.from_dict(encode(tokenizer, ["the film is great, the film", "unbelievable", "a cast of 12"]))
    words = background_words(tokenizer, data)
    assert words == ["the", "film", "great", "cast"]  # not what is cut into pieces, short, or no word
    with pytest.raises(ValueError, match="'mask' or 'delete'"):
        background_words(tokenizer, Dataset.from_dict(encode(tokenizer, ["film"])))


def test_a_vocabulary_of_characters_takes_all_words() -> None:
    class Spaced:
        """Characters, as a tokenizer that knows where spaces were decodes them."""

        def __getattr__(self, name: str) -> Any:
            return getattr(characters(), name)

        def __call__(self, *texts: Any, **settings: Any) -> Any:
            return characters()(*texts, **settings)

        def batch_decode(self, ids: Any, **_: Any) -> list[str]:
            return TEXTS

    data = Dataset.from_dict(encode(characters(), TEXTS))
    assert background_words(Spaced(), data) == ["the", "film", "great", "and", "cast", "was", "lovely", "dull"]  # type: ignore[arg-type]


def test_the_student_sees_what_the_teacher_saw(tiny_bert: Any, tokenizer: Any, tiny_data: Dataset, tmp_path: Path) -> None:
    """A student equal to the teacher has nothing to learn from lessons on disk; with other words it has."""
    model = tiny_bert().eval()
    guide = PerturbationGuide(masks=4, operator="replace", schedule=Schedule())
    encoded = encode_dataset(tiny_data, tokenizer)
    lessons = build_lessons([guide], model, tokenizer, encoded, tmp_path, max_length=64)[guide.name]
    lesson, moment = lessons.read(range(8)), Moment(step=0, epoch=0, tokenizer=tokenizer)
    batch = collate([{**encoded[row], "idx": row} for row in range(8)], tokenizer.pad_token_id)
    with torch.no_grad():
        opened = guide.opened(lessons.folder, tokenizer)
        copies = [observe(model, copy) for copy in opened.copies(batch, lesson, moment)]
        loss = opened.learn(observe(model, batch), copies, batch, lesson, moment)
        torch.testing.assert_close(loss, torch.zeros(8), atol=1e-3, rtol=0)  # float16 on disk
        lesson["key"] += 1
        copies = [observe(model, copy) for copy in opened.copies(batch, lesson, moment)]
        assert opened.learn(observe(model, batch), copies, batch, lesson, moment).max() > 0.01
    with pytest.raises(ValueError, match="opened"):
        guide.copies(batch, lesson, moment)
    again = guide.prepare(Teacher(model=model, tokenizer=tokenizer), encoded.select(range(3)), lessons.folder).background
    assert again.words == opened._background.words  # a build that goes on draws from the words it began with
    (lessons.folder / "words.txt").unlink()
    with pytest.raises(ValueError, match=r"no words\.txt"):
        guide.opened(lessons.folder, tokenizer)
