"""Size and speed. No times are asserted, only that what is said about them is true."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import load_file
from transformers import BertForSequenceClassification, PreTrainedTokenizerBase

from egkd.evaluate.speed import bytes_on_disk, latency, parameters, parameters_without_embeddings

TinyBert = Callable[..., BertForSequenceClassification]


def test_parameters_by_hand(tiny_bert: TinyBert, tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_bert(layers=1, width=16)
    norm, square = 2 * 16, 16 * 16 + 16
    layer = 4 * square + norm + (16 * 32 + 32) + (32 * 16 + 16) + norm
    tables = (len(tokenizer) + 64 + 2) * 16  # words, positions, segments
    rest = norm + layer + square + 2 * 16 + 2
    assert parameters_without_embeddings(model) == rest
    assert parameters(model) == tables + rest


def test_bytes_on_disk_are_those_of_the_weights(tiny_bert: TinyBert, tmp_path: Path) -> None:
    model = tiny_bert()
    model.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "training_args.bin").write_bytes(b"no weights")
    saved = bytes_on_disk(tmp_path / "whole")
    tensors = sum(
        value.numel() * value.element_size() for value in load_file(tmp_path / "whole" / "model.safetensors").values()
    )
    assert tensors < saved < tensors + 20_000  # and a header
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert bytes_on_disk(tmp_path / "sharded") == pytest.approx(saved, abs=20_000)


def test_bytes_of_a_hub_id_are_those_in_the_cache(tiny_bert: TinyBert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "models--someone--tiny" / "snapshots" / "abc"
    tiny_bert().save_pretrained(cached)
    (tmp_path / "models--someone--tiny" / "refs").mkdir()
    (tmp_path / "models--someone--tiny" / "refs" / "main").write_text("abc")
    monkeypatch.setattr("egkd.evaluate.speed.try_to_load_from_cache", partial(try_to_load_from_cache, cache_dir=tmp_path))
    assert bytes_on_disk("someone/tiny") == (cached / "model.safetensors").stat().st_size


@pytest.mark.parametrize("source", ["", "nowhere", "someone/nothing"])
def test_what_has_no_weights_has_no_size(source: str, tmp_path: Path) -> None:
    assert bytes_on_disk(source if source.startswith("someone") else tmp_path / source) is None


def test_latency_tells_its_conditions_and_leaves_the_models_alone(
    tiny_bert: TinyBert, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = tiny_bert(layers=1), tiny_bert(layers=2)
    small.train()
    small.dropout.eval()
    modes = [module.training for module in small.modules()]
    models = {"small": (small, tokenizer), "large": (large, tokenizer)}
    found = latency(models, ["the film is great", "dull"], batch_sizes=(1, 4), repeats=3)
    assert [module.training for module in small.modules()] == modes
    assert all(parameter.requires_grad for parameter in small.parameters())
    assert set(found) == {"small", "large"}
    taken = iter([9.0, 9.0, 0.2, 0.6, 0.1, 0.9, 0.4, 0.3] * 2)  # by turns; the first round warms up
    monkeypatch.setattr("egkd.evaluate.speed._timed", lambda *_: next(taken))
    scripted = latency(models, ["the film is great", "dull"], batch_sizes=(1, 4), repeats=3)
    assert [scripted[name]["4"]["ms_per_example"] for name in models] == pytest.approx([1000 * 0.2 / 4, 1000 * 0.6 / 4])
    assert [scripted[name]["1"]["ms_per_example"] for name in models] == pytest.approx([1000 * 0.2 / 2, 1000 * 0.6 / 2])
    for entry in found.values():
        assert set(entry) == {"1", "4", "conditions"}
        assert entry["1"]["ms_per_example"] > 0
        assert entry["conditions"] == {
            "device": "cpu",
            "dtype": "float32",
            "threads": torch.get_num_threads(),
            "mean_tokens": 4.5,  # with [CLS] and [SEP]: 6 and 3
            "rounds": 3,
            "torch": torch.__version__,
        }
