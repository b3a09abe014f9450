"""Models that cut texts differently speak of the same words, whatever the text; a word taken away is gone from all of them."""

import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from egkd.config import resolve
from egkd.models import log_odds, observe
from egkd.objectives import GradientGuide, Moment, Teacher
from egkd.pipeline import distill
from egkd.students import load_tokenizer
from egkd.text import SPECIAL, Batch, collate, encode, perturb, pool_units, unit_spans, visible_units, width

# No two words share a letter, in any case and however accents are written, so that letters tell which words are left.
WORDS = ["waltz", "Nymph", "fox", "Re\u0301v\u00e9", "жук", "שלג", "日", "本", "👩🏽\u200d🚒", "🇩🇪", "9", "!"]
KINDS = ("wordpiece", "cased", "byte-bpe", "byte-bpe-prefix", "byte-bpe-bare", "unigram", "words", "characters")
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NAMES = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
CORPUS = [
    *(" ".join(WORDS[start:] + WORDS[:start]) for start in range(len(WORDS))),
    "The film is great, isn't it? I loved the naïve plot…",
    "un café s'il vous plaît, 日本語の映画 한국 영화 می‌خواهم",
]


@cache
def build(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of this kind, trained on a few sentences; `byte-bpe-bare` adds nothing to a text."""
    settings: dict[str, Any] = {"special_tokens": SPECIALS, "show_progress": False}
    backend: Tokenizer
    trainer: Any
    if kind in ("wordpiece", "cased"):
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=kind == "wordpiece")
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=260, **settings)
    elif kind.startswith("byte-bpe"):
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind == "byte-bpe-prefix")
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **settings)
    elif kind == "unigram":
        backend = Tokenizer(models.Unigram())
        backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=160, unk_token="[UNK]", **settings)
    elif kind == "words":
        backend = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(**settings)
    else:
        backend = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
        trainer = trainers.WordLevelTrainer(**settings)
    backend.train_from_iterator(CORPUS, trainer)
    if kind == "byte-bpe":
        backend.post_processor = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2), add_prefix_space=False)
    elif kind != "byte-bpe-bare":
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = {name: token for name, token in NAMES.items() if kind != "byte-bpe-bare" or name == "pad_token"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **names)


PIECES = [
    *WORDS,
    *(
        "the",
        "film",
        "isn't",
        "naïve",
        "nai\u0308ve",
        "état-major",
        "rock ’n’ roll",
        "…",
        ",",
        "!!",
        "'",
        "a\u200bb",
        "hy\u00adphen",
    ),
    *(
        "한국",
        "\u1112\u1161\u11ab",
        "の",
        "が\u3099",
        "हिन्दी",
        "می\u200cخواهم",
        "שָׁלוֹם",
        "\u200f",
        "\ufeff",
        "½",
        "ﬁn",
        "👍👍",
        "👩\u200d👩\u200d👧",
    ),
    *(" ", "  ", "\n", "\t", "\u00a0", "\u3000", "\x00", "\ufffd", "\ue000", "x" * 150),
]
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join),
)
either = pytest.mark.parametrize("kind", KINDS)


def row(encoded: dict[str, list[Any]], index: int = 0) -> dict[str, Any]:
    return {name: values[index] for name, values in encoded.items()}


def batch_of(tokenizer: Any, text: str, pair: str | None = None, max_length: int = 9999) -> Batch:
    return collate([row(encode(tokenizer, [text], None if pair is None else [pair], max_length))], tokenizer.pad_token_id)


def offsets(tokenizer: Any, text: str, pair: str | None) -> list[tuple[int | None, int, int]]:
    """What the tokenizer itself says of each token: the part of the example, and where in it."""
    encoded = tokenizer([text], None if pair is None else [pair], return_offsets_mapping=True)
    return [(part, *span) for part, span in zip(encoded.sequence_ids(0), encoded["offset_mapping"][0], strict=True)]


def owner_of_characters(text: str, pair: str | None) -> list[list[int]]:
    """By hand: the unit of each character of both texts, SPECIAL for white space."""
    parts, first = [], 0
    for part in (text, pair or ""):
        owners = [SPECIAL] * len(part)
        for unit, (start, end) in enumerate(unit_spans(part)):
            for place in range(start, end):
                owners[place] = first + unit
        parts.append(owners)
        first += len(unit_spans(part))
    return parts


@either
@given(text=TEXTS, pair=st.none() | TEXTS)
@settings(max_examples=60, deadline=None)
def test_a_token_belongs_to_the_word_it_shares_most_with(kind: str, text: str, pair: str | None) -> None:
    tokenizer = build(kind)
    encoded = row(encode(tokenizer, [text], None if pair is None else [pair], 9999))
    owners = owner_of_characters(text, pair)
    told = offsets(tokenizer, text, pair)
    if not told:  # nothing to read becomes one special token
        assert (encoded["unit_ids"], encoded["length"], encoded["attention_mask"]) == ([SPECIAL], 1, [1])
        return
    assert len(told) == encoded["length"] == len(encoded["unit_ids"])
    covered = set()
    for (part, start, end), unit in zip(told, encoded["unit_ids"], strict=True):
        if part is None:
            assert unit == SPECIAL
            continue
        shared = Counter(owner for owner in owners[part][start:end] if owner != SPECIAL)
        covered |= {(part, place) for place in range(start, end)}
        if shared:
            assert shared[unit] == max(shared.values())
        else:  # white space goes with the word that follows
            following = [owner for owner in owners[part][end:] if owner != SPECIAL]
            assert unit == (following[0] if following else SPECIAL)
    found = set(encoded["unit_ids"])
    for part, units in enumerate(owners):
        for place, unit in enumerate(units):
            if unit not in found and unit != SPECIAL:  # then all of it lies in tokens of others, or was thrown away
                assert (part, place) not in covered or any(
                    own != unit and start <= place < end
                    for (where, start, end), own in zip(told, encoded["unit_ids"], strict=True)
                    if where == part
                )
    real = [unit for unit in encoded["unit_ids"] if unit != SPECIAL]
    assert real == sorted(real)
    assert encoded["n_units"] == len(unit_spans(text)) + len(unit_spans(pair or ""))


@given(text=TEXTS, pair=st.none() | TEXTS)
@settings(max_examples=60, deadline=None)
def test_all_tokenizers_count_the_same_words(text: str, pair: str | None) -> None:
    counts = {row(encode(build(kind), [text], None if pair is None else [pair]))["n_units"] for kind in KINDS}
    assert len(counts) == 1


@either
@given(text=TEXTS, pair=st.none() | TEXTS, seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_pooling_keeps_sums(kind: str, text: str, pair: str | None, seed: int) -> None:
    batch = batch_of(build(kind), text, pair)
    scores = torch.randn(batch["unit_ids"].shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    pooled = pool_units(scores, batch["unit_ids"], width(batch))
    torch.testing.assert_close(pooled.sum(), scores[batch["unit_ids"] != SPECIAL].sum())
    assert not pooled[~visible_units(batch["unit_ids"], width(batch))].any()


@either
@given(text=TEXTS, pair=st.none() | TEXTS, max_length=st.integers(5, 24))
@settings(max_examples=60, deadline=None)
def test_truncation_only_hides(kind: str, text: str, pair: str | None, max_length: int) -> None:
    """Words keep their numbers and tokens; what is cut off is not visible and nothing else happens to it."""
    tokenizer = build(kind)
    whole, short = batch_of(tokenizer, text, pair), batch_of(tokenizer, text, pair, max_length)
    assert short["input_ids"].shape[1] <= max_length
    assert torch.equal(short["n_units"], whole["n_units"])
    seen, all_seen = (visible_units(batch["unit_ids"], width(batch))[0] for batch in (short, whole))
    assert not (seen & ~all_seen).any()

    def tokens(batch: Batch, unit: int) -> list[int]:
        return batch["input_ids"][batch["unit_ids"] == unit].tolist()

    for unit in seen.nonzero().flatten().tolist():
        kept = tokens(short, unit)
        assert kept == tokens(whole, unit)[: len(kept)]


def letters(text: str) -> set[str]:
    """What is left of a text when case, accents, joiners and skin tones do not count."""
    plain = unicodedata.normalize("NFD", text.casefold())
    return {each for each in plain if unicodedata.category(each)[0] in "LNPS" and unicodedata.category(each) != "Sk"}


SPACES = st.sampled_from([" ", "  ", "\n", " \u3000 "])


@st.composite
def sentences(draw: Any) -> tuple[str, list[str], list[bool]]:
    """A text of some of WORDS with spaces of all kinds, its words in order, and which of them stay."""
    words = draw(st.permutations(WORDS))[: draw(st.integers(1, len(WORDS)))]
    spaces = draw(st.lists(SPACES, min_size=len(words), max_size=len(words)))
    ends = draw(st.sampled_from(["", " ", "  "])), draw(st.sampled_from(["", " ", "   "]))
    text = ends[0] + "".join(word + space for word, space in zip(words, spaces, strict=True)).rstrip() + ends[1]
    return text, words, draw(st.lists(st.booleans(), min_size=len(words), max_size=len(words)))


@either
@given(sentence=sentences(), how=st.sampled_from(["delete", "attention", "mask", "gather"]), cut=st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_a_word_taken_away_is_gone_from_every_model(
    kind: str, sentence: tuple[str, list[str], list[bool]], how: Any, cut: int
) -> None:
    """Decoding what is left gives the words that stay and no letter of the others, as one text or as a pair."""
    text, words, stays = sentence
    assert [text[start:end] for start, end in unit_spans(text)] == words
    tokenizer = build(kind)
    place = unit_spans(text)[cut][0] if cut < len(words) else None
    pair = (text[:place], text[place:]) if place is not None else (text, None)
    batch = batch_of(tokenizer, *pair)
    if how == "mask" and tokenizer.mask_token_id is None:
        how = "delete"
    left = perturb(batch, torch.tensor([stays]), how, tokenizer)
    seen = left["input_ids"][0][left["attention_mask"][0].bool()]
    decoded = tokenizer.decode(seen[~torch.isin(seen, torch.tensor(tokenizer.all_special_ids))])
    expected = {each for word, stay in zip(words, stays, strict=True) if stay for each in letters(word)}
    assert letters(decoded) == expected


@either
@given(text=TEXTS, seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_what_survives_of_a_word_is_in_tokens_of_others(kind: str, text: str, seed: int) -> None:
    """Of any text: a character of a removed word stays only in a token that is mostly a kept word's."""
    tokenizer = build(kind)
    batch = batch_of(tokenizer, text)
    keep = torch.rand(1, width(batch), generator=torch.Generator().manual_seed(seed)) < 0.5
    left = perturb(batch, keep, "attention", tokenizer)
    if not (keep[0][batch["unit_ids"][0].clamp(min=0)] | (batch["unit_ids"][0] == SPECIAL)).any():
        assert left["attention_mask"].sum() == 1  # the one special token that a text without tokens becomes
        return
    (owners, _) = owner_of_characters(text, None)
    for (part, start, end), stays in zip(offsets(tokenizer, text, None), left["attention_mask"][0].tolist(), strict=False):
        touched = Counter(owner for owner in owners[start:end] if owner != SPECIAL)
        if part is not None and touched:
            most = [unit for unit, count in touched.items() if count == max(touched.values())]
            assert stays == int(bool(keep[0, min(most)]))


@either
def test_very_long_words(kind: str) -> None:
    tokenizer = build(kind)
    batch = batch_of(tokenizer, "z" * 3000 + " fox", max_length=32)
    assert batch["input_ids"].shape[1] <= 32
    assert batch["n_units"].tolist() == [2]
    assert visible_units(batch["unit_ids"], 2)[0, 0]
    left = perturb(batch, torch.tensor([[False, True]]), "delete", tokenizer)
    assert not (left["unit_ids"] == 0).any()


@either
def test_composed_and_decomposed_accents_are_the_same_words(kind: str) -> None:
    composed, decomposed = (unicodedata.normalize(form, "un café naïve") for form in ("NFC", "NFD"))
    for text in (composed, decomposed):
        encoded = row(encode(build(kind), [text]))
        assert encoded["n_units"] == 3
        assert set(encoded["unit_ids"]) - {SPECIAL} == {0, 1, 2}


@pytest.mark.parametrize("kind", ["wordpiece", "cased", "byte-bpe", "unigram", "words", "characters"])
def test_saved_tokenizers_cut_as_before(kind: str, tmp_path: Path, tiny_bert: Any) -> None:
    """Loading through the model's type must not put another tokenizer in its place."""
    tokenizer = build(kind)
    tiny_bert(tokenizer=tokenizer, layers=1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    for text in (*CORPUS, " Isn't  it? "):
        assert row(encode(again, [text])) == row(encode(tokenizer, [text]))


def test_words_of_one_token_are_tokens(tiny_bert: Any) -> None:
    """Where both models cut into whole words, matching words is matching tokens: the gradient guide by hand, on tokens."""
    tokenizer = build("words")
    texts = ["waltz fox 日 9", "The film Nymph is", "本 waltz Nymph"]
    encoded = encode(tokenizer, texts)
    batch = collate([row(encoded, index) for index in range(3)], tokenizer.pad_token_id)
    teacher, student = (tiny_bert(seed=seed, tokenizer=tokenizer) for seed in (0, 1))
    words_BT = batch["unit_ids"] != SPECIAL
    assert torch.equal(batch["n_units"], words_BT.sum(1))

    def look(model: Any, target_B: torch.Tensor | None = None) -> tuple[Any, torch.Tensor]:
        seen = observe(model, batch, keep=("embeddings",), differentiable=True)
        target_B = seen.logits_BC.argmax(1) if target_B is None else target_B
        (gradient,) = torch.autograd.grad(log_odds(seen.logits_BC, target_B).sum(), seen.embeddings_BTD, retain_graph=True)
        return seen, (gradient * seen.embeddings_BTD).norm(dim=-1).detach()

    seen, taught_BT = look(teacher)
    lesson = GradientGuide().teach(Teacher(model=teacher, tokenizer=tokenizer), batch, seen)
    padded = {
        "target": torch.stack(lesson["target"]),
        "strength": torch.stack(lesson["strength"]),
        "visible": torch.nn.utils.rnn.pad_sequence(lesson["visible"], batch_first=True),
        "scores": torch.nn.utils.rnn.pad_sequence([each.T for each in lesson["scores"]], batch_first=True).mT,
    }
    seen, own_BT = look(student, padded["target"])
    losses = GradientGuide().learn(seen, [], batch, padded, Moment(step=0, epoch=0, tokenizer=tokenizer))
    for place in range(3):
        mine, theirs = own_BT[place][words_BT[place]], taught_BT[place][words_BT[place]]
        expected = 1 - torch.corrcoef(torch.stack([mine, theirs]))[0, 1]
        torch.testing.assert_close(losses[place].detach(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("calm_libraries")
@pytest.mark.parametrize("kind", ["byte-bpe", "characters"])
def test_a_teacher_of_word_pieces_teaches_bytes_and_characters(
    kind: str, tmp_path: Path, save: Any, tiny_bert: Any, write_csv: Any, tiny_data: Dataset
) -> None:
    """A whole run with all three families; the student's texts are cut after fewer words than the teacher's."""
    save(tmp_path / "teacher", layers=2)
    tiny_bert(tokenizer=build(kind), layers=1, width=16, seed=3).save_pretrained(tmp_path / "small")
    build(kind).save_pretrained(tmp_path / "small")
    names = ["negative" if label == 0 else "positive" for label in tiny_data["label"]]
    write_csv(tmp_path / "train.csv", text=tiny_data["text"][:32], label=names[:32])
    write_csv(tmp_path / "dev.csv", text=tiny_data["text"][32:56], label=names[32:56])
    config = resolve(
        {
            "teacher": str(tmp_path / "teacher"),
            "student": str(tmp_path / "small"),
            "data": {"train": str(tmp_path / "train.csv"), "eval": str(tmp_path / "dev.csv")},
            "objectives": {"gradient": {}, "perturbation": {}, "selection": {}},
            "train": {"use_cpu": True, "max_steps": 3, "per_device_train_batch_size": 8, "logging_steps": 1},
            "evaluate": {"explained": 4, "shown": 2, "latency_repeats": 1},
            "max_length": 20,
        }
    )
    distill(config, tmp_path / "run")
    lines = (tmp_path / "run" / "log.jsonl").read_text()
    for name in ("gradient", "perturbation", "selection"):
        assert f"loss/{name}" in lines
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "student")
    assert tokenizer("The film")["input_ids"] == build(kind)("The film")["input_ids"]
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "student").num_labels == 2
