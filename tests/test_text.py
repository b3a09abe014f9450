"""Tokens and units: every word once, whatever the tokenizer, and nothing else changes when words are taken away."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForSequenceClassification, ByT5Tokenizer

from egkd.models import observe
from egkd.text import (
    SPECIAL,
    _owners,
    _unit_of,
    collate,
    encode,
    pack,
    perturb,
    pool_units,
    repeat,
    unit_spans,
    visible_units,
    width,
)

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
WORDS = st.lists(
    st.sampled_from(["great", "film", "the", "unbelievable", "it's", "x", "!", "…", "日", "naïve", "a-b"]), max_size=9
)


def units(text: str) -> list[str]:
    return [text[start:end] for start, end in unit_spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \t\n ", []),
        ("A film, isn't it?!", ["A", "film", ",", "isn't", "it", "?", "!"]),
        ("the dogs' rock ’n’ roll", ["the", "dogs", "'", "rock", "’", "n", "’", "roll"]),
        ("l’été d'Orsay", ["l’été", "d'Orsay"]),
        ("9/10 snake_case 3.5", ["9", "/", "10", "snake_case", "3", ".", "5"]),
        ("état-major", ["état", "-", "major"]),
        ("日本語です", ["日", "本", "語", "で", "す"]),
        ("iPhone日本", ["iPhone", "日", "本"]),
        ("한국 영화", ["한", "국", "영", "화"]),
        ("Привет мир", ["Привет", "мир"]),
        ("good 👍🏽!", ["good", "👍🏽", "!"]),
        ("👩\u200d👩\u200d👧 👩🏽\u200d❤\ufe0f\u200d👨🏻!", ["👩\u200d👩\u200d👧", "👩🏽\u200d❤\ufe0f\u200d👨🏻", "!"]),
        ("👍👍 🇩🇪🇫🇷", ["👍", "👍", "🇩🇪", "🇫🇷"]),
        ("1\ufe0f\u20e3 *\ufe0f\u20e3", ["1\ufe0f\u20e3", "*\ufe0f\u20e3"]),
        ("love ❤\ufe0f it", ["love", "❤\ufe0f", "it"]),
        ("cafe\u0301 nai\u0308ve", ["cafe\u0301", "nai\u0308ve"]),
        ("हिन्दी फ़िल्म", ["हिन्दी", "फ़िल्म"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("½ x² Ⅷ", ["½", "x²", "Ⅷ"]),
        (
            "a\u200bb \u200b hy\u00adphen, \ufeffword\u200f!",
            ["a\u200bb", "\u200b", "hy\u00adphen", ",", "\ufeffword\u200f", "!"],
        ),
        ("caf\ufffd a\x00b", ["caf\ufffd", "a\x00b"]),
        ("日\u200b本", ["日\u200b", "本"]),
        ("wide\u3000space\u00a0here", ["wide", "space", "here"]),
        ("…“quoted”—dash", ["…", "“", "quoted", "”", "—", "dash"]),
    ],
)
def test_units_by_hand(text: str, expected: list[str]) -> None:
    assert units(text) == expected


@given(ANY_TEXT)
@settings(max_examples=300)
def test_every_character_that_is_not_white_space_lies_in_exactly_one_unit(text: str) -> None:
    owners = [0] * len(text)
    for start, end in unit_spans(text):
        assert start < end
        for place in range(start, end):
            owners[place] += 1
    assert owners == [0 if character.isspace() else 1 for character in text]
    assert unit_spans(text) == sorted(unit_spans(text))


@given(ANY_TEXT, ANY_TEXT)
def test_units_do_not_look_over_a_space(first: str, second: str) -> None:
    assert units(f"{first} {second}") == units(first) + units(second)


@pytest.fixture(params=["wordpiece", "bpe"])
def either(request: pytest.FixtureRequest, tokenizer: Any, bpe_tokenizer: Any) -> Any:
    """A WordPiece tokenizer as BERT's, and a byte-level BPE as RoBERTa's."""
    return tokenizer if request.param == "wordpiece" else bpe_tokenizer


def row(encoded: dict[str, list[Any]], index: int = 0) -> dict[str, Any]:
    return {name: values[index] for name, values in encoded.items()}


def test_word_pieces_belong_to_their_words(tokenizer: Any) -> None:
    encoded = row(encode(tokenizer, ["The funny plot, isn't it"]))
    tokens = "[CLS] the funny plot , is ##n ' t it [SEP]".split()
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == tokens
    ids = encoded["unit_ids"]
    assert ids == [SPECIAL, 0, 1, 2, 3, 4, 4, 4, 4, 5, SPECIAL]
    assert encoded["n_units"] == 6
    assert encoded["length"] == len(ids) == len(encoded["input_ids"]) == len(encoded["attention_mask"])


def test_byte_pairs_belong_to_the_word_they_share_most_with(bpe_tokenizer: Any) -> None:
    """Tokens of byte-level BPE carry the space before them, and bytes of one character several tokens."""
    text = "a naïve film 👍"
    encoded = row(encode(bpe_tokenizer, [text]))
    pieces: dict[int, str] = {}
    for token, unit in zip(encoded["input_ids"], encoded["unit_ids"], strict=True):
        if unit != SPECIAL:
            pieces[unit] = pieces.get(unit, "") + bpe_tokenizer.convert_ids_to_tokens(token)
    decoded = [bpe_tokenizer.convert_tokens_to_string([piece]).strip() for _, piece in sorted(pieces.items())]
    assert decoded == ["a", "naïve", "film", "👍"]


@pytest.mark.parametrize("text", ["it was dull!!", "unbelievable… 日本", "x", ""])
def test_units_of_tokens_tile_the_text(either: Any, text: str) -> None:
    """The characters of a token lie in its unit, up to white space."""
    spans = unit_spans(text)
    encoded = either(text, return_offsets_mapping=True)
    found = row(encode(either, [text]))
    assert found["input_ids"] == encoded["input_ids"]
    for (start, end), unit in zip(encoded["offset_mapping"], found["unit_ids"], strict=True):
        if unit != SPECIAL:
            assert spans[unit][0] <= start + (len(text[start:end]) - len(text[start:end].lstrip())) < spans[unit][1]
            assert end <= spans[unit][1] or text[spans[unit][1] : end].strip() == ""
    assert set(found["unit_ids"]) - {SPECIAL} == set(range(len(spans)))
    assert found["n_units"] == len(spans)


def test_a_token_over_two_words_goes_to_the_one_it_shares_more_with() -> None:
    owners = _owners("ab, c", unit_spans("ab, c"))
    assert owners == [0, 0, 1, SPECIAL, 2]
    assert [_unit_of(offset, owners, 10) for offset in [(0, 3), (2, 5), (3, 4), (0, 0)]] == [10, 11, 12, 10]


def test_a_token_of_white_space_goes_with_the_word_it_leads(bpe_tokenizer: Any) -> None:
    encoded = row(encode(bpe_tokenizer, ["a   plot "]))
    tokens = bpe_tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    found = list(zip(tokens, encoded["unit_ids"], strict=True))
    assert ("Ġ", 1) in found
    assert found[-2:] == [("Ġ", SPECIAL), ("</s>", SPECIAL)]  # nothing follows the last one


def test_units_of_pairs_are_numbered_through(either: Any) -> None:
    first, second = "The film is great", "It was dull, really"
    both = row(encode(either, [first], [second]))
    alone = [row(encode(either, [text])) for text in (first, second)]
    expected = [[unit for unit in one["unit_ids"] if unit != SPECIAL] for one in alone]
    found = [unit for unit in both["unit_ids"] if unit != SPECIAL]
    assert found == expected[0] + [unit + 4 for unit in expected[1]]
    assert both["n_units"] == 4 + 5
    specials = {either.cls_token_id, either.sep_token_id}
    assert {token for token, unit in zip(both["input_ids"], both["unit_ids"], strict=True) if unit == SPECIAL} == specials


def test_what_is_cut_off_counts_and_is_not_visible(either: Any) -> None:
    text = "the film is great and the plot is dull"
    whole, short = row(encode(either, [text])), row(encode(either, [text], max_length=6))
    assert short["length"] == len(short["input_ids"]) == 6
    assert short["n_units"] == whole["n_units"] == 9
    assert short["unit_ids"][-1] == SPECIAL
    assert short["unit_ids"][:5] == whole["unit_ids"][:5]
    batch = collate([short, whole], either.pad_token_id)
    visible = visible_units(batch["unit_ids"], width(batch))
    assert visible[1].all()
    assert visible[0].nonzero().flatten().tolist() == sorted(set(short["unit_ids"]) - {SPECIAL})
    pair = row(encode(either, [text], [text], max_length=12))
    assert pair["length"] == 12
    assert pair["n_units"] == 18
    assert max(pair["unit_ids"]) >= 9


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ByT5Tokenizer gives no character offsets; a fast tokenizer"):
        encode(ByT5Tokenizer(), ["text"])


def test_collating_pads_on_the_right_and_stacks_what_is_there(tokenizer: Any) -> None:
    encoded = encode(tokenizer, ["great", "the film is great"], ["dull", "it was dull"])
    rows = [row(encoded, index) | {"idx": 7 - index, "label": index} for index in range(2)]
    batch = collate(rows, tokenizer.pad_token_id)
    short, longest = rows[0]["length"], rows[1]["length"]
    fills = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "token_type_ids": 0, "unit_ids": SPECIAL}
    for name, fill in fills.items():
        assert batch[name].shape == (2, longest)
        assert batch[name][0].tolist() == rows[0][name] + [fill] * (longest - short)
        assert batch[name][1].tolist() == rows[1][name]
    assert batch["idx"].tolist() == [7, 6]
    assert batch["n_units"].tolist() == [2, 7]
    assert batch["labels"].tolist() == [0, 1]
    assert batch["labels"].dtype == torch.long
    assert collate([each | {"label": 0.5} for each in rows], 0)["labels"].dtype == torch.float
    assert "labels" not in collate([each | {"label": None} for each in rows], 0)


def test_pooling_by_hand() -> None:
    scores = torch.tensor([[9.0, 1.0, 2.0, 4.0, 9.0], [9.0, 3.0, 9.0, 9.0, 9.0]])
    unit_ids = torch.tensor([[-1, 0, 0, 2, -1], [-1, 1, -1, -1, -1]])
    assert pool_units(scores, unit_ids, 3).tolist() == [[3.0, 0.0, 4.0], [0.0, 3.0, 0.0]]
    assert visible_units(unit_ids, 3).tolist() == [[True, False, True], [False, True, False]]


def test_pooling_keeps_the_graph() -> None:
    scores = torch.ones(1, 4, requires_grad=True)
    pool_units(scores, torch.tensor([[-1, 0, 1, 1]]), 2)[0, 1].backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [[0.0, 0.0, 1.0, 1.0]]


def test_a_batch_of_empty_texts_has_one_unit(tokenizer: Any) -> None:
    batch = collate([row(encode(tokenizer, [""]))], tokenizer.pad_token_id)
    assert width(batch) == 1
    assert not visible_units(batch["unit_ids"], 1).any()
    for operator in ("mask", "delete", "attention", "gather"):
        copy = perturb(batch, torch.zeros(1, 1, dtype=torch.bool), operator, tokenizer)
        assert torch.equal(copy["input_ids"], batch["input_ids"])


TEXTS = ["The film is great, isn't it", "dull", "unbelievable plot"]
KEEP = torch.tensor([[1, 0, 1, 0, 1, 1, 0], [0] * 7, [0, 1, 0, 0, 0, 0, 0]]).bool()


@pytest.fixture
def batch(either: Any) -> dict[str, torch.Tensor]:
    encoded = encode(either, TEXTS)
    return collate([row(encoded, index) for index in range(3)], either.pad_token_id)


def gone(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """By hand: the tokens whose unit is not kept."""
    ids = batch["unit_ids"].tolist()
    return torch.tensor([[unit >= 0 and not KEEP[place][unit] for unit in units] for place, units in enumerate(ids)])


def test_masking_puts_the_mask_token_in_the_place_of_words(either: Any, batch: dict[str, torch.Tensor]) -> None:
    copy = perturb(batch, KEEP, "mask", either)
    assert torch.equal(copy["input_ids"], torch.where(gone(batch), either.mask_token_id, batch["input_ids"]))
    assert torch.equal(copy["attention_mask"], batch["attention_mask"])
    assert torch.equal(copy["unit_ids"], batch["unit_ids"])


def test_hiding_from_attention_leaves_the_tokens(either: Any, batch: dict[str, torch.Tensor]) -> None:
    copy = perturb(batch, KEEP, "attention", either)
    assert torch.equal(copy["input_ids"], batch["input_ids"])
    assert torch.equal(copy["attention_mask"], batch["attention_mask"] * ~gone(batch))


def test_deleting_closes_the_gap(either: Any, batch: dict[str, torch.Tensor]) -> None:
    copy = perturb(batch, KEEP, "delete", either)
    kept = ~gone(batch) & batch["attention_mask"].bool()
    assert copy["input_ids"].shape[1] == int(kept.sum(1).max()) < batch["input_ids"].shape[1]
    for place in range(3):
        for name in ("input_ids", "unit_ids", "token_type_ids"):
            if name in batch:
                fill = {"input_ids": either.pad_token_id, "unit_ids": SPECIAL, "token_type_ids": 0}[name]
                left = batch[name][place][kept[place]].tolist()
                assert copy[name][place].tolist() == left + [fill] * (copy[name].shape[1] - len(left))
        assert copy["attention_mask"][place].sum() == kept[place].sum()
        assert copy["attention_mask"][place][: int(kept[place].sum())].all()


def test_gathering_is_deleting_with_every_token_in_its_old_place(either: Any, batch: dict[str, torch.Tensor]) -> None:
    copy, shorter = perturb(batch, KEEP, "gather", either), perturb(batch, KEEP, "delete", either)
    assert set(copy) == {*shorter, "position_ids"}
    for name, value in shorter.items():
        assert torch.equal(copy[name], value)
    kept = ~gone(batch) & batch["attention_mask"].bool()
    for place in range(3):
        old = kept[place].nonzero()[:, 0].tolist()
        assert copy["position_ids"][place].tolist() == old + [0] * (copy["position_ids"].shape[1] - len(old))


ABSOLUTE = {"bert": {}, "roberta": {}, "electra": {"embedding_size": 8}, "albert": {"embedding_size": 8}, "distilbert": {}}


@pytest.mark.parametrize("kind", [*ABSOLUTE, "xlm-roberta", "camembert"])
def test_a_gathered_token_stands_where_it_stood(kind: str, batch: dict[str, torch.Tensor], either: Any) -> None:
    """Where positions are in the embeddings, a token that nobody attends to may as well be gone."""
    model = tiny_model(kind, either)
    expected = observe(model, perturb(batch, KEEP, "attention", either)).logits_BC
    found = observe(model, perturb(batch, KEEP, "gather", either)).logits_BC
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    deleted = observe(model, perturb(batch, KEEP, "delete", either)).logits_BC
    assert (deleted - expected).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["deberta-v2", "mpnet", "funnel"])
def test_models_that_count_distances_are_given_shorter_texts(kind: str, batch: dict[str, torch.Tensor], either: Any) -> None:
    """Absolute positions are kept as far as the model has them; the last one's `forward` takes none."""
    model = tiny_model(kind, either)
    found = observe(model, perturb(batch, KEEP, "gather", either)).logits_BC
    deleted = observe(model, perturb(batch, KEEP, "delete", either)).logits_BC
    assert torch.equal(found, deleted) == (kind != "mpnet")
    everything = observe(model, perturb(batch, torch.ones_like(KEEP), "gather", either)).logits_BC
    torch.testing.assert_close(everything, observe(model, batch).logits_BC)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_packing_loses_no_positions(kind: str, batch: dict[str, torch.Tensor], either: Any) -> None:
    model = tiny_model(kind, either)
    parts = [batch, perturb(batch, KEEP, "gather", either), perturb(batch, ~KEEP, "gather", either)]
    packed = observe(model, pack(parts, either.pad_token_id)).logits_BC
    torch.testing.assert_close(packed, torch.cat([observe(model, part).logits_BC for part in parts]), atol=1e-5, rtol=1e-4)


def tiny_model(kind: str, tokenizer: Any) -> torch.nn.Module:
    """A random classifier of an architecture, whose positions matter."""
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "max_position_embeddings": 70,
        "initializer_range": 0.4,
    }
    if kind == "distilbert":
        settings |= {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    elif kind == "funnel":
        settings |= {"d_model": 32, "block_sizes": [1, 1], "n_head": 2, "d_head": 16, "d_inner": 64, "num_decoder_layers": 1}
    else:
        settings |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if kind == "deberta-v2":
        settings |= {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["c2p", "p2c"]}
    config = AutoConfig.for_model(kind, **settings | ABSOLUTE.get(kind, {}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_config(config).eval()


@given(words=WORDS, keeps=st.lists(st.booleans(), min_size=9, max_size=9))
@settings(max_examples=60, deadline=None)
def test_deleting_words_is_tokenising_the_text_without_them(tokenizer: Any, words: list[str], keeps: list[bool]) -> None:
    """Exact for WordPiece, where a space is nothing; the oracle is the tokenizer itself."""
    text = " ".join(words)
    spans = unit_spans(text)
    keep = [keeps[place % 9] for place in range(len(spans))]
    whole = collate([row(encode(tokenizer, [text]))], tokenizer.pad_token_id)
    copy = perturb(whole, torch.tensor([keep or [True]]), "delete", tokenizer)
    left = " ".join(text[start:end] for (start, end), stays in zip(spans, keep, strict=True) if stays)
    assert copy["input_ids"][0].tolist() == tokenizer(left)["input_ids"]


@pytest.mark.parametrize("operator", ["mask", "delete", "attention", "gather"])
def test_keeping_everything_changes_nothing_and_nothing_given_is_changed(
    either: Any, batch: dict[str, torch.Tensor], operator: Any
) -> None:
    before = {name: value.clone() for name, value in batch.items()}
    everything = perturb(batch | {"labels": torch.zeros(3)}, torch.ones_like(KEEP), operator, either)
    perturb(batch, KEEP, operator, either)
    assert "labels" not in everything
    for name, value in before.items():
        assert torch.equal(batch[name], value)
        if name in everything:
            assert torch.equal(everything[name], value)


@pytest.mark.parametrize("operator", ["mask", "delete", "attention", "gather"])
def test_specials_always_stay(either: Any, batch: dict[str, torch.Tensor], operator: Any) -> None:
    copy = perturb(batch, torch.zeros_like(KEEP), operator, either)
    for place in range(3):
        seen = copy["input_ids"][place][copy["attention_mask"][place].bool()].tolist()
        left = [token for token in seen if token != either.mask_token_id]
        assert left == [either.cls_token_id, either.sep_token_id]


def test_masking_needs_a_mask_token(bpe_tokenizer: Any, batch: dict[str, torch.Tensor]) -> None:
    class Without:
        mask_token_id = None

    with pytest.raises(ValueError, match="Without has no mask token; use the operator 'delete' or 'attention'"):
        perturb(batch, KEEP, "mask", Without())  # type: ignore[arg-type]


def test_repeating_and_packing_by_hand(tokenizer: Any) -> None:
    encoded = encode(tokenizer, ["great", "the film is great"])
    short, long = (collate([row(encoded, index)], tokenizer.pad_token_id) for index in range(2))
    twice = repeat(collate([row(encoded, index) for index in range(2)], tokenizer.pad_token_id), 2)
    assert twice["n_units"].tolist() == [1, 1, 4, 4]
    assert torch.equal(twice["input_ids"][0], twice["input_ids"][1])
    assert torch.equal(twice["input_ids"][2], twice["input_ids"][3])
    packed = pack([short, long, short], tokenizer.pad_token_id)
    together = collate([row(encoded, index) for index in (0, 1, 0)], tokenizer.pad_token_id)
    assert set(packed) == set(together)
    for name, value in together.items():
        assert torch.equal(packed[name], value)
