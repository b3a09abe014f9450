"""Scores of tokens: every token of the model is a unit, and words are the sums of theirs."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egkd.explain import Explanation, Occlusion, explain, load, save
from egkd.text import SPECIAL, encode

TEXTS = ["it was really unbelievable…", "a naïve 日本 story 👍🏽", "", "dull"]


@pytest.fixture(params=["wordpiece", "bpe"])
def either(request: Any, tokenizer: Any, bpe_tokenizer: Any) -> Any:
    return {"wordpiece": tokenizer, "bpe": bpe_tokenizer}[request.param]


def test_every_token_that_is_not_special_is_a_unit(either: Any) -> None:
    columns = encode(either, TEXTS, unit="token")
    for row, text in enumerate(TEXTS):
        ids = [unit for unit in columns["unit_ids"][row] if unit != SPECIAL]
        assert ids == list(range(columns["n_units"][row]))
        whole = either(text, add_special_tokens=False, return_offsets_mapping=True)
        assert columns["units"][row] == [(0, *offset) for offset in whole["offset_mapping"]]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("length", [6, 9, 12, 60])
def test_tokens_that_are_cut_off_count_and_have_no_place(either: Any, side: str, length: int) -> None:
    """Whichever end of a text is cut, the tokens that are left keep their numbers."""
    before = either.truncation_side
    either.truncation_side = side
    try:
        columns = encode(either, [TEXTS[0]], ["not so dull at all, really"], max_length=length, unit="token")
        whole = encode(either, [TEXTS[0]], ["not so dull at all, really"], max_length=1000, unit="token")
    finally:
        either.truncation_side = before
    assert columns["units"] == whole["units"]
    assert columns["n_units"] == whole["n_units"]
    left = {unit: token for unit, token in zip(columns["unit_ids"][0], columns["input_ids"][0], strict=True) if unit != SPECIAL}
    full = dict(zip(whole["unit_ids"][0], whole["input_ids"][0], strict=True))
    assert left == {unit: full[unit] for unit in left}
    cut = columns["length"][0] < whole["length"][0]
    assert (len(left) < columns["n_units"][0]) == cut
    for part in (0, 1):
        own = [number for number, unit in enumerate(whole["units"][0]) if unit[0] == part]
        kept = [number for number in own if number in left]
        assert kept == (own[len(own) - len(kept) :] if side == "left" else own[: len(kept)])


@given(text=st.text(max_size=30), pair=st.none() | st.text(max_size=20), length=st.integers(5, 40))
@settings(max_examples=60, deadline=None)
def test_any_text_has_tokens_within_it(tokenizer: Any, text: str, pair: str | None, length: int) -> None:
    columns = encode(tokenizer, [text], None if pair is None else [pair], max_length=length, unit="token")
    parts = [text] if pair is None else [text, pair]
    assert all(0 <= start <= end <= len(parts[part]) for part, start, end in columns["units"][0])
    visible = [unit for unit in columns["unit_ids"][0] if unit != SPECIAL]
    assert visible == sorted(set(visible))
    assert len(columns["units"][0]) == columns["n_units"][0]
    assert all(unit < columns["n_units"][0] for unit in visible)


@pytest.mark.parametrize("method", ["input-x-gradient", "integrated-gradients"])
def test_a_words_score_is_the_sum_of_its_tokens(tiny_bert: Any, tokenizer: Any, method: str) -> None:
    text, model = TEXTS[0], tiny_bert()
    (words,), (tokens,) = (explain(model, tokenizer, text, method=method, unit=unit) for unit in ("word", "token"))
    assert len(tokens.units) > len(words.units)
    for unit, score in zip(words.units, words.scores, strict=True):
        parts = [s for each, s in zip(tokens.units, tokens.scores, strict=True) if unit.start <= each.start < unit.end]
        assert sum(parts) == pytest.approx(score, rel=1e-4, abs=1e-6)


def test_words_of_one_token_are_tokens(tiny_bert: Any, tokenizer: Any) -> None:
    model = tiny_bert()
    (words,), (tokens,) = (explain(model, tokenizer, "it was dull .", method="occlusion", unit=u) for u in ("word", "token"))
    assert words.units == tokens.units
    assert words.scores == pytest.approx(tokens.scores, abs=1e-6)
    assert (words.unit, tokens.unit) == ("word", "token")


def test_they_are_kept_and_shown(tiny_bert: Any, bpe_tokenizer: Any, tmp_path: Any) -> None:
    """Tokens of one character share it: it is printed once."""
    model = tiny_bert(tokenizer=bpe_tokenizer)
    found = explain(model, bpe_tokenizer, TEXTS, method=Occlusion(operator="delete"), unit="token")
    for suffix in ("jsonl", "arrow"):
        save(found, tmp_path / f"told.{suffix}")
        assert load(tmp_path / f"told.{suffix}") == found
    for one in found:
        assert one.to_terminal().plain.startswith(one.text)
    older = {name: value for name, value in found[0].to_dict().items() if name != "unit"}
    assert Explanation.from_dict(older).unit == "word"


def test_from_the_command_line(egkd: Any, save: Any, tmp_path: Any, bpe_tokenizer: Any, tiny_bert: Any) -> None:
    model, other = save(tmp_path / "model"), tmp_path / "other"
    tiny_bert(tokenizer=bpe_tokenizer).save_pretrained(other)
    bpe_tokenizer.save_pretrained(other)
    command = ["explain", TEXTS[0], "--model", model, "--method", "occlusion", "--unit", "token"]
    out = tmp_path / "why.jsonl"
    assert egkd(*command, "--jsonl", out, "--judge").code == 0
    (told,) = load(out)
    assert told.unit == "token"
    refused = egkd(*command, "--jsonl", tmp_path / "b.jsonl", "--against", other)
    assert refused.code == 2
    assert "cut texts into different tokens" in refused.err
    of_words = egkd(*command[:-2], "--jsonl", out)
    assert of_words.code == 2, "a file of tokens is not gone on with by words"
