"""Finished cells as lines of text, kept beside the tables: what is judged of a run, without its weights and its report.

An experiment goes on where nothing is left of it but `results/`: each line there makes its cell again, as far as it is judged.

Shapes: N evaluation examples, C classes (1 in regression).
"""

import json
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from egkd.config import RunConfig, read_yaml, to_yaml
from egkd.runs import read_json, write_json, write_text

CELLS = Path("results") / "cells.jsonl"
ANSWERS = "answers.json"
"""In the place of `predictions.npz` in a cell that was made from its line."""
_NAME = re.compile(r"([A-Za-z0-9][\w.+-]*/){3}\d+")
_MODELS = ("teacher", "student")
_DIGITS = 10  # up to so many classes an answer is one digit


def finished(cell: Path) -> bool:
    """Whether a cell's run wrote its last file, here or where its line comes from, and has its figures still."""
    return (cell / "metrics.json").exists() and ((cell / "report.html").exists() or (cell / ANSWERS).exists())


def placeless(config: RunConfig) -> dict[str, Any]:
    """A run's settings without the places where its experiment and its data lie."""
    settings = config.model_dump(mode="json")
    settings["teacher"] = _placeless(settings["teacher"])
    settings["lessons"] = Path(str(config.lessons)).name
    settings["data"]["glue_dir"] = None
    for files in ("train", "eval", "unlabeled"):
        settings["data"][files] = [Path(file).name for file in settings["data"][files]]
    settings["data"]["also_eval"] = {name: Path(file).name for name, file in settings["data"]["also_eval"].items()}
    return settings


def _placeless(model: str | None) -> str | None:
    """A model's name; of a teacher in an experiment's folder the part inside it."""
    parts = Path(str(model)).parts
    return "/".join(parts[-3:]) if parts[-3:-2] == ("teachers",) and parts[-1] == "teacher" else model


def keep(out: Path) -> None:
    """Write `CELLS`: a line for each finished cell in `out`, and for those whose folders are gone the lines that were there.

    Raises ValueError, in one line, where one is broken.
    """
    file = out / CELLS
    known = _read(file) if file.exists() else {}
    lines = {name: line for name, line in known.items() if not (out / "cells" / name).exists()}
    for metrics in sorted(out.glob("cells/*/*/*/*/metrics.json")):
        folder = metrics.parent
        if finished(folder):
            name = folder.relative_to(out / "cells").as_posix()
            is_known = name in known and metrics.stat().st_mtime <= file.stat().st_mtime
            lines[name] = known[name] if is_known else _line(name, folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, "".join(f"{lines[name]}\n" for name in sorted(lines)))


def restore(out: Path) -> None:
    """Make the folder `cells` of `out`, where no cell was begun, from the lines in `CELLS`: whole, or not at all.

    Raises ValueError, in one line, where the file is broken; nothing is then written.
    """
    if any(out.glob("cells/*/*/*/*/config.yaml")) or not (out / CELLS).exists():
        return
    found = {name: _parsed(line, out / CELLS) for name, line in _read(out / CELLS).items()}
    unfinished = out / ".cells.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    for name, line in found.items():
        folder = unfinished / name
        folder.mkdir(parents=True)
        write_text(folder / "config.yaml", to_yaml(line["config"]))
        write_json(folder / "metrics.json", line["metrics"])
        write_json(folder / ANSWERS, line["answers"])
    shutil.rmtree(out / "cells", ignore_errors=True)
    unfinished.replace(out / "cells")


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    """What `predictions.npz` of a run folder holds, by name; from `ANSWERS`, logits are 1 at the answer and 0 elsewhere.

    Raises ValueError, in one line, where they are missing or broken.
    """
    path = folder / "predictions.npz"
    try:
        if (folder / ANSWERS).exists():
            path = folder / ANSWERS
            return {
                f"{split}/{what}": _logits(told[what], told["classes"]) if what in _MODELS else _array(told[what])
                for split, told in read_json(path).items()
                for what in ("labels", *_MODELS)
            }
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError:
        raise ValueError(f"{folder} has no predictions.npz: delete that folder, and run it again") from None
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(f"{path} is broken ({_short(error)}): delete its folder, and run it again") from None


def _line(name: str, folder: Path) -> str:
    try:
        config = RunConfig.model_validate(read_yaml(folder / "config.yaml"))
        metrics = read_json(folder / "metrics.json")
        metrics.pop("objectives", None)  # which the settings name
        metrics["teacher"]["name"] = _placeless(metrics["teacher"]["name"])
        arrays = arrays_of(folder)
        answers = {split: _answers(arrays, split) for split in metrics["student"]["scores"]}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} cannot be kept ({_short(error)}): delete it and run it again") from None
    line = {"cell": name, "config": placeless(config), "metrics": metrics, "answers": answers}
    return json.dumps(line, ensure_ascii=False, separators=(",", ":"))


def _answers(arrays: Mapping[str, np.ndarray], split: str) -> dict[str, Any]:
    """Of one evaluation set, [N] each: class numbers, a digit each where there are no more than ten, or values."""
    told: dict[str, Any] = {"classes": arrays[f"{split}/student"].shape[1], "labels": _told(arrays[f"{split}/labels"])}
    for who in _MODELS:
        logits_NC = arrays[f"{split}/{who}"]
        told[who] = _told(logits_NC[:, 0] if logits_NC.shape[1] == 1 else logits_NC.argmax(1))
    return told


def _told(values_N: np.ndarray) -> str | list[float]:
    """Digits, or numbers, by as few digits as say which they are."""
    if values_N.dtype.kind in "iu" and len(values_N) and values_N.min() >= 0 and values_N.max() < _DIGITS:
        return "".join(map(str, values_N.tolist()))
    return [float(str(value)) for value in values_N] if values_N.dtype == np.float32 else values_N.tolist()


def _array(told: str | list[float]) -> np.ndarray:
    """Back again, [N]."""
    return np.array([int(digit) for digit in told] if isinstance(told, str) else told)


def _logits(told: str | list[float], classes: int) -> np.ndarray:
    """[N, C]: 1 at the answer; in regression the value, in the precision of models."""
    values_N = _array(told)
    return values_N.astype(np.float32)[:, None] if classes == 1 else np.eye(classes, dtype=np.float32)[values_N]


def _read(file: Path) -> dict[str, str]:
    """Lines by the names of their cells."""
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")  # JSON may hold other ends of lines
    return {_parsed(line, file)["cell"]: line for line in lines if line.strip()}


def _parsed(line: str, file: Path) -> dict[str, Any]:
    try:
        found = json.loads(line)
        if not _NAME.fullmatch(found["cell"]):
            raise ValueError(f"{found['cell']!r} is not TASK/STUDENT/METHOD/SEED")
        if not all(isinstance(found[part], dict) for part in ("config", "metrics", "answers")):
            raise ValueError("expected config, metrics and answers by name")
        return found
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} holds a line that is no finished cell ({_short(error)}): delete that line") from None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
