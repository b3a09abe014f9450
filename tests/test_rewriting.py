"""Texts rewritten by a masked language model: transformers' own pipeline names the candidates, killed work goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, FillMaskPipeline, PreTrainedTokenizerFast

from egkd.config_data import DataConfig
from egkd.data.loading import load_data
from egkd.rewriting import RewriteConfig, _Writer, rewrite, whole_words
from egkd.text import unit_spans

pytestmark = pytest.mark.usefixtures("calm_libraries")
TEXT = "The film was really great, but the ending is Dull"


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> BertForMaskedLM:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), initializer_range=0.4, **sizes))
    return built.eval()


@pytest.fixture(scope="module")
def source(model: BertForMaskedLM, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mlm")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def reviews(tmp_path: Path, write_csv: Any) -> DataConfig:
    texts = [TEXT, "a lovely story", "the plot is boring", "we love it", "i hate that movie", "..."] * 4
    write_csv(tmp_path / "train.csv", text=texts, label=["good", "bad"] * 12)
    return DataConfig.model_validate({"train": str(tmp_path / "train.csv"), "eval": str(tmp_path / "train.csv")})


def test_rows_that_judge_are_not_rewritten(source: Path, reviews: DataConfig, tmp_path: Path) -> None:
    held_out = reviews.model_copy(update={"eval": (), "held_out": 12})
    kept = [text for text in load_data(held_out).train["text"] if text != "..."]  # which has no word
    counts = [
        rewrite(data, str(source), tmp_path / f"{place}.jsonl", RewriteConfig(copies=1, replace=1.0))
        for place, data in enumerate((reviews, held_out))
    ]
    assert counts == [20, len(kept)]
    assert 0 < len(kept) < 12


def test_a_length_that_the_model_cannot_read_is_refused(source: Path, reviews: DataConfig, tmp_path: Path) -> None:
    for length in (0, 4, 1000):
        with pytest.raises(ValueError, match=rf"^--max-length is {length}, .* reads texts of 5 to 64 tokens$"):
            rewrite(reviews, str(source), tmp_path / "x.jsonl", RewriteConfig(), max_length=length)


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def words(text: str) -> list[str]:
    return [text[a:b] for a, b in unit_spans(text)]


def test_candidates_are_what_the_pipeline_fills_in(model: BertForMaskedLM, tokenizer: Any) -> None:
    fill = FillMaskPipeline(model=model, tokenizer=tokenizer, top_k=len(tokenizer))
    found = _Writer(model, tokenizer, RewriteConfig(candidates=5), 64).candidates(TEXT)
    assert [TEXT[a:b] for a, b in found] == [word for word in words(TEXT) if word.isalpha()]
    for (a, b), told in found.items():
        filled = [one["token_str"] for one in fill(f"{TEXT[:a]}[MASK]{TEXT[b:]}")]  # type: ignore[index]
        expected = [word for word in filled if word.isalnum() and word != TEXT[a:b].lower()][:5]
        assert [word.lower() for word in told] == expected
        assert told == [word.capitalize() if TEXT[a].isupper() else word.lower() for word in told]


def test_words_of_several_tokens_and_what_is_cut_off_stay(model: BertForMaskedLM, tokenizer: Any) -> None:
    found = _Writer(model, tokenizer, RewriteConfig(), 64).candidates("filming a movie, unbelievable")
    assert list(found) == [(8, 9), (10, 15)]
    assert list(_Writer(model, tokenizer, RewriteConfig(), 4).candidates("a movie is dull")) == [(0, 1), (2, 7)]
    assert _Writer(model, tokenizer, RewriteConfig(), 64).candidates("") == {}


def test_spaces_that_a_tokenizer_counts_to_its_words_hide_none() -> None:
    """As DeBERTa's and XLNet's do."""
    tokens = ["[PAD]", "[UNK]", "[MASK]", "▁a", "▁lovely", "▁film", "▁plot"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    spaced = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]")
    assert spaced("a film", return_offsets_mapping=True)["offset_mapping"] == [(0, 1), (1, 6)]
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    writer = _Writer(BertForMaskedLM(BertConfig(vocab_size=7, **sizes)).eval(), spaced, RewriteConfig(), 64)
    assert list(writer.candidates("a lovely film")) == [(0, 1), (2, 8), (9, 13)]


def test_words_are_replaced_as_often_as_asked(model: BertForMaskedLM, tokenizer: Any) -> None:
    """Every candidate as often as the others."""
    writer = _Writer(model, tokenizer, RewriteConfig(copies=4000, replace=0.3, candidates=3), 64)
    text = "the movie is great"
    options = writer.candidates(text)
    made = [writer._changed(text, options, draw) for draw in map(Random, range(4000))]
    for place, own in enumerate(words(text)):
        new = [words(copy)[place] for copy in made]
        assert np.mean([word != own for word in new]) == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / 4000))
        (span,) = [span for span in options if text[slice(*span)] == own]
        assert set(new) == {own, *options[span]}
        for candidate in options[span]:
            assert np.mean([word == candidate for word in new]) == pytest.approx(0.1, abs=4 * np.sqrt(0.1 * 0.9 / 4000))


def test_texts_of_a_pair_change_in_turn(model: BertForMaskedLM, tokenizer: Any) -> None:
    copies = _Writer(model, tokenizer, RewriteConfig(copies=3, replace=1), 64).copies(("a film", "a plot"), 0)
    assert [(copy[0] != "a film", copy[1] != "a plot") for copy in copies] == [(True, False), (False, True), (True, True)]


def test_a_byte_level_vocabulary_has_whole_words_too(bpe_tokenizer: Any, tokenizer: Any) -> None:
    found = whole_words(bpe_tokenizer, len(bpe_tokenizer) + 3)
    tokens = bpe_tokenizer.convert_ids_to_tokens(range(len(bpe_tokenizer)))
    assert {word for word in found if word} == {token[1:] for token in tokens if token[0] == "Ġ" and token[1:].isalnum()}
    assert len(found) == len(tokens) + 3
    told = {word for word in whole_words(tokenizer, len(tokenizer)) if word}
    assert {"film", "a"} <= told
    assert not told & {"ing", "[MASK]", "MASK", ","}


def test_an_interrupted_file_is_gone_on_with(
    source: Path, reviews: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, whole, out = RewriteConfig(copies=3), tmp_path / "whole.jsonl", tmp_path / "new" / "copies.jsonl"
    count = rewrite(reviews, str(source), whole, settings)
    assert len(lines(whole)) == count > 24
    assert all(set(line) == {"text"} for line in lines(whole))
    asked: list[int] = []

    def dies(done: int, total: int) -> None:
        assert total == 24
        asked.append(done)
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewrite(reviews, str(source), out, settings, progress=dies)
    assert not out.exists()
    with (out.parent / ".copies.jsonl.part").open("a") as file:
        file.write('[["cut o')
    with pytest.raises(ValueError, match=r"part was begun with other data, another model or settings; delete it"):
        rewrite(reviews, str(source), out, RewriteConfig(copies=4))
    assert rewrite(reviews, str(source), out, settings, progress=dies) == count
    assert asked == [*range(1, 8), *range(8, 25)]
    assert out.read_bytes() == whole.read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["copies.jsonl"]
    with pytest.raises(ValueError, match=r"copies.jsonl exists; delete it or name another file"):
        rewrite(reviews, str(source), out, settings)


@pytest.fixture
def ask(egkd: Any, reviews: DataConfig, tmp_path: Path) -> Callable[..., Any]:
    def asked(model: Path, *flags: Any, out: str = "copies.jsonl") -> Any:
        given = ["--train", reviews.train[0], "--language-model", model, "--copies", 2, "--seed", 1, *flags]
        return egkd("augment", *given, "--out", tmp_path / out)

    return asked


def test_the_command_writes_texts_to_learn_from(
    ask: Any, source: Path, egkd: Any, quick: list[str], save: Any, tmp_path: Path
) -> None:
    answer = ask(source, "--replace", 0.9, "--candidates", 4)
    assert answer.code == 0, answer.err
    made = lines(tmp_path / "copies.jsonl")
    assert f"{len(made)} copies: " in " ".join(answer.out.split())
    save(tmp_path / "teacher", ("bad", "good"))
    flags = ["--teacher", tmp_path / "teacher", "--student", "layers:1", "--train", tmp_path / "train.csv"]
    run = egkd("distill", *flags, "--unlabeled", tmp_path / "copies.jsonl", "--out", tmp_path / "run", *quick)
    assert run.code == 0, run.err
    assert f"and {len(made)} without" in " ".join(run.out.split())


def test_copies_have_the_columns_of_their_source(
    source: Path, egkd: Any, quick: list[str], save: Any, write_csv: Any, tmp_path: Path
) -> None:
    """So that the flags that name a column fit both; with evaluation data given, no row is held out."""
    save(tmp_path / "teacher", ("bad", "good"))
    train = write_csv(tmp_path / "own.csv", review=["we love it", "the plot is boring"] * 10, stars=["good", "bad"] * 10)
    flags = ["--train", train, "--eval", train, "--text", "review", "--label", "stars"]
    made = tmp_path / "made.jsonl"
    answer = egkd("augment", *flags, "--language-model", source, "--copies", 1, "--replace", 1.0, "--out", made)
    assert answer.code == 0, answer.err
    assert [set(row) for row in lines(made)] == [{"review"}] * 20
    teacher = ["--teacher", tmp_path / "teacher", "--student", "layers:1"]
    run = egkd("distill", *teacher, *flags, "--unlabeled", made, "--out", tmp_path / "run", *quick)
    assert run.code == 0, run.err


def test_scores_hold_out_other_rows_than_classes(source: Path, egkd: Any, write_csv: Any, tmp_path: Path) -> None:
    train = write_csv(tmp_path / "own.csv", text=[f"we love it q{n}z" for n in range(20)], label=[0, 1] * 10)
    flags = ["--train", train, "--language-model", source, "--copies", 1, "--replace", 1.0, "--held-out", 8]
    kept = {}
    for kind in ("classification", "regression"):
        answer = egkd("augment", *flags, "--kind", kind, "--out", tmp_path / f"{kind}.jsonl")
        assert answer.code == 0, answer.err
        kept[kind] = {row["text"].split()[-1] for row in lines(tmp_path / f"{kind}.jsonl")}
    data = DataConfig.model_validate({"train": str(train), "kind": "regression", "held_out": 8})
    assert kept["regression"] == {text.split()[-1] for text in load_data(data).train["text"]}
    assert kept["regression"] != kept["classification"]


def test_what_cannot_work_is_one_line(ask: Any, source: Path, save: Any, tmp_path: Path) -> None:
    save(tmp_path / "encoder")
    for answer, said in (
        (ask(tmp_path / "encoder"), "was not trained to fill masks: it lacks cls.predictions"),
        (ask(source, out="copies.csv"), "expected a file of JSON lines, like copies.jsonl"),
        (ask(source, "--replace", 1.5), "replace: Input should be less than or equal to 1, found 1.5"),
        (ask(source, "--copies", 0), "copies: Input should be greater than 0, found 0"),
        (ask(source, "--task", "sst2"), "expected either a task (--task sst2) or files"),
    ):
        assert answer.code == 2
        assert answer.err.count("\n") == 1
        assert said in answer.err
    assert not list(tmp_path.glob("*copies*"))
