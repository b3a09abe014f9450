"""Loading runs nobody's code: weights are never unpickled, code beside a checkpoint only where it is asked for."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertConfig, BertForMaskedLM

from egkd.data import Task
from egkd.evaluate.answers import _read
from egkd.rewriting import _load
from egkd.students import load_classifier, load_encoder

TASK = Task(name="reviews", kind="classification", label_names=("negative", "positive"), metrics=("accuracy",))


class Harm:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_the_mark_is_left_by_who_unpickles(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Harm(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("load", [load_classifier, lambda source: load_encoder(source, TASK)], ids=["classifier", "encoder"])
def test_weights_in_a_pickle_are_refused(save: Any, tmp_path: Path, load: Callable[[str], Any]) -> None:
    folder = save(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Harm(tmp_path / "mark")))
    with pytest.raises(ValueError, match=r"^cannot load [^\n]*safetensors[^\n]*$"):
        load(str(folder))
    assert not (tmp_path / "mark").exists()


def test_a_language_model_in_a_pickle_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(pickle.dumps(Harm(tmp_path / "mark")))
    with pytest.raises(ValueError, match=r"^cannot load [^\n]*safetensors[^\n]*$"):
        _load(str(tmp_path / "model"), trust_remote_code=False)
    assert not (tmp_path / "mark").exists()


def test_code_beside_a_checkpoint_is_not_run_unless_asked_for(save: Any, tmp_path: Path, egkd: Any, write_csv: Any) -> None:
    folder, mark = save(tmp_path / "model"), tmp_path / "mark"
    code = f"import pathlib; pathlib.Path({str(mark)!r}).touch()\nfrom transformers import BertConfig as Config\n"
    (folder / "theirs.py").write_text(code + "from transformers import BertForSequenceClassification as Model\n")
    config = json.loads((folder / "config.json").read_text())
    parts = {"AutoConfig": "theirs.Config", "AutoModelForSequenceClassification": "theirs.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "theirs", "auto_map": parts}))
    for load in (load_classifier, lambda source: load_encoder(source, TASK)):
        with pytest.raises(ValueError, match=r"^cannot load [^\n]*$"):
            load(str(folder))
    rows = write_csv(tmp_path / "train.csv", text=["good", "bad"] * 8, label=["positive", "negative"] * 8)
    answer = egkd("distill", "--teacher", folder, "--student", "layers:1", "--train", rows, "--out", tmp_path / "run")
    assert (answer.code, "Traceback" in answer.err) == (2, False)
    assert not mark.exists()


def test_answers_that_hold_objects_are_made_again(tmp_path: Path) -> None:
    file = tmp_path / "answers.npz"
    np.savez(file, logits=np.array([Harm(tmp_path / "mark")], dtype=object))
    assert _read(file) is None
    assert not (tmp_path / "mark").exists()
