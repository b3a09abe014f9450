"""Run folders: one run each, that describes itself, can be resumed, and is never overwritten by another.

A run folder holds `config.yaml`, `environment.json`, `log.jsonl`, `training.json`, `metrics.json`, `examples.json`,
`predictions.npz`, `student/`, `report.html`; where the run fine-tuned its teacher also `teacher/` and `teacher-log.jsonl`;
while it trains `checkpoints/`.
"""

import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from pydantic import ValidationError

from egkd.config import RunConfig, read_yaml

_PACKAGES = ("egkd", "torch", "transformers", "datasets", "accelerate", "tokenizers", "numpy", "scipy", "scikit-learn")


def claim(folder: Path, config: RunConfig) -> bool:
    """Make `folder` this run's, and write its `config.yaml`. True where it already was this very run's, to be resumed.

    Raises ValueError where it holds another run or other files, or cannot be written.
    """
    if check_free(folder, config):
        return True
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", config.to_yaml())
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror or error}; name another --out") from None
    return False


@contextmanager
def held(file: Path, what: Path, otherwise: str = "name another --out") -> Iterator[None]:
    """While open, `what` is this process's own, as the lock on `file` says; what else to do is said where it is another's.

    Raises ValueError there. The file is gone when the work is done.
    """
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{what} is being worked on by another process; wait for it, or {otherwise}") from None
    try:
        yield
        with suppress(OSError):  # where open files cannot be deleted
            file.unlink()
    finally:
        lock.release()


def check_free(folder: Path, config: RunConfig) -> bool:
    """Whether `folder` holds this very run, to be resumed; writes nothing.

    Raises ValueError where it holds another run or other files, or could not be made.
    """
    settings = folder / "config.yaml"
    if settings.exists():
        found, ours = _known(read_yaml(settings)), config.model_dump(mode="json")
        if found != ours:
            changed = sorted(name for name in {*found, *ours} if found.get(name) != ours.get(name))
            raise ValueError(f"{folder} holds another run ({', '.join(changed)} differ); name another --out, or delete it")
        return True
    if folder.exists() and (not folder.is_dir() or any(not path.name.startswith(".") for path in folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder and holds no run; name another --out")
    check_writable(folder, "--out")
    return False


def _known(found: dict[str, Any]) -> dict[str, Any]:
    """A run's settings, with the defaults of those that the version which wrote them did not know."""
    try:
        return RunConfig.model_validate(found).model_dump(mode="json")
    except ValidationError:
        return found


def check_writable(folder: Path, flag: str) -> None:
    """Refuse a folder that could not be made or written to; writes nothing. Raises ValueError."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        problem = "cannot be written to" if there.is_dir() else "is not a folder"
        raise ValueError(f"cannot write to {folder}: {there} {problem}; name another {flag}")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Where to write what shall be `path` once it is whole; nothing is left of it where that fails."""
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        yield unfinished
        unfinished.replace(path)
    except OSError:  # a full disk
        unfinished.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with _whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all; NaN becomes null."""
    write_text(path, json.dumps(_finite(value), indent=1, ensure_ascii=False) + "\n")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name as one npz file, whole or not at all."""
    with _whole(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    number = value.item() if hasattr(value, "item") else value
    return None if isinstance(number, float) and not math.isfinite(number) else number


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """An ordinary Hugging Face folder, there whole or not at all; with a head that tells reasons in a file of its own."""
    from egkd.explain.amortised import save_ordinary

    unfinished = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    save_ordinary(model, unfinished)
    tokenizer.save_pretrained(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.replace(folder)


def describe_environment(folder: Path, seed: int, origins: Mapping[str, str]) -> None:
    """Write `environment.json`, once: a finished run keeps the versions that made it, and `origins`, what it was made from.

    Raises ValueError where it is there and names other origins.
    """
    file = folder / "environment.json"
    if not file.exists():
        write_json(file, environment(seed) | {"origins": dict(origins)})
        return
    found = read_json(file).get("origins", origins)  # older runs have none
    changed = sorted(name for name in {*found, *origins} if found.get(name) != origins.get(name))
    if changed:
        raise ValueError(
            f"{folder} was begun with other contents of {' and '.join(changed)}; name another --out, or delete it to begin anew"
        )


def environment(seed: int) -> dict[str, Any]:
    """Versions, machine, seed and git state, for `environment.json`."""
    import torch

    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform(), "seed": seed}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    found["processes"] = int(os.environ.get("WORLD_SIZE", "1"))
    found["cpu_count"], found["torch_threads"] = os.cpu_count(), torch.get_num_threads()
    found["accelerator"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return found | _git()


def _git() -> dict[str, Any]:
    def ask(*words: str) -> str | None:
        try:
            answer = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return answer.stdout.strip()

    commit = ask("rev-parse", "HEAD")
    return {} if commit is None else {"git_commit": commit, "git_dirty": bool(ask("status", "--porcelain"))}
