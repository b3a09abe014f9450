"""What a teacher says in evaluation, computed once for all students that are compared with it.

Shapes: N examples, C classes, U units of one example.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from filelock import FileLock
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from egkd.explain.base import Explainer, Scored, score_dataset
from egkd.lessons.fingerprints import fingerprint_model, fingerprint_texts, fingerprint_tokenizer
from egkd.predict import encode_dataset, predict_logits
from egkd.runs import write_arrays
from egkd.text import MAX_LENGTH, UNIT_RULE

FORMAT = 1  # of the files

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A model with the tokenizer it reads through."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    answers: Path | None = None
    """Folder where what it says is kept and looked up: `answers-*.npz`, one file for each thing asked; nowhere by default."""

    def logits(self, rows: Dataset, max_length: int = MAX_LENGTH) -> np.ndarray:
        """float32 [N, C]."""

        def compute() -> Arrays:
            return {"logits": predict_logits(self.model, self.tokenizer, rows, max_length=max_length)}

        return self._kept({"asked": "logits"}, rows, max_length, compute)["logits"]

    def explain(
        self, explainer: Explainer, rows: Dataset, targets: Sequence[int], *, seed: int = 0, max_length: int = MAX_LENGTH
    ) -> list[Scored]:
        """Scores of every example, for its class of `targets`."""

        def compute() -> Arrays:
            encoded = list(encode_dataset(rows, self.tokenizer, max_length))
            return _packed(score_dataset(explainer, self.model, self.tokenizer, encoded, targets=targets, seed=seed))

        asked = {"asked": explainer.name, "settings": explainer.settings(), "targets": list(targets), "seed": seed}
        return _unpacked(self._kept(asked, rows, max_length, compute))

    @cached_property
    def _who(self) -> dict[str, Any]:
        parameter = next(self.model.parameters())
        return {
            "format": FORMAT,
            "model": fingerprint_model(self.model),
            "computed": [parameter.device.type, str(parameter.dtype)],
            "tokenizer": fingerprint_tokenizer(self.tokenizer),
            "unit_rule": UNIT_RULE,
        }

    def _kept(self, asked: Mapping[str, Any], rows: Dataset, max_length: int, compute: Callable[[], Arrays]) -> Arrays:
        if self.answers is None:
            return compute()
        key = {**self._who, **asked, "texts": fingerprint_texts(rows), "max_length": max_length}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.answers.mkdir(parents=True, exist_ok=True)
        path = self.answers / f"answers-{digest[:16]}.npz"
        with FileLock(path.with_name(f".{path.name}.lock")):  # another run may ask the same: one computes, the other waits
            known = _read(path)
            if known is None:
                known = compute()
                write_arrays(path, known)
        return known


def _read(path: Path) -> Arrays | None:
    """The arrays of a file; None where there is none or it is broken."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _packed(scored: Sequence[Scored]) -> Arrays:
    """All examples one after another, with their numbers of units."""
    arrays = {
        "scores": np.concatenate([s.scores_U.numpy() for s in scored]) if scored else np.zeros(0, np.float32),
        "visible": np.concatenate([s.visible_U.numpy() for s in scored]) if scored else np.zeros(0, bool),
        "units": np.array([len(s.scores_U) for s in scored], np.int64),
        "target": np.array([s.target for s in scored], np.int64),
        "logits": np.stack([s.logits_C.numpy() for s in scored]) if scored else np.zeros((0, 1), np.float32),
    }
    if scored and scored[0].error_U is not None:
        arrays["error"] = np.concatenate([s.error_U.numpy() for s in scored if s.error_U is not None])
    names = dict.fromkeys(name for s in scored for name in s.diagnostics)
    return arrays | {f"diagnostics/{name}": np.array([s.diagnostics.get(name, np.nan) for s in scored]) for name in names}


def _unpacked(arrays: Arrays) -> list[Scored]:
    ends = np.cumsum(arrays["units"])[:-1]
    cut = {name: np.split(arrays[name], ends) for name in ("scores", "visible", "error") if name in arrays}
    told = {name.partition("/")[2]: values for name, values in arrays.items() if name.startswith("diagnostics/")}
    return [
        Scored(
            scores_U=torch.from_numpy(cut["scores"][place]),
            visible_U=torch.from_numpy(cut["visible"][place]),
            target=int(target),
            logits_C=torch.from_numpy(arrays["logits"][place]),
            error_U=torch.from_numpy(cut["error"][place]) if "error" in cut else None,
            diagnostics={name: float(values[place]) for name, values in told.items() if not np.isnan(values[place])},
        )
        for place, target in enumerate(arrays["target"])
    ]
