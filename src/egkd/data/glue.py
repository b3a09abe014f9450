"""The nine tasks of GLUE (Wang et al. 2019, arXiv 1804.07461), from the hub or from a directory of its TSV files.

Label names and their order are those of the hub's `nyu-mll/glue`; older processors order MNLI's labels differently, so a
teacher from elsewhere must be checked on the dev set before it teaches. Metrics are GLUE's own in the order of its
leaderboard, so the headline of MRPC and QQP is F1 and that of STS-B is Pearson's correlation.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError

from egkd.config import did_you_mean
from egkd.config_data import spelling
from egkd.data import Task, TaskData, as_dataset, sample

HUB = "nyu-mll/glue"
ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a task is and where its columns are."""

    folder: str
    label_names: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    hub: tuple[str, ...]
    """Text columns on the hub; the label's is always `label`."""
    tsv: tuple[str, ...] = ()
    """Text columns in the TSV files; those of the hub where empty."""
    tsv_label: str = "label"
    labels: Literal["ids", "names", "scores"] = "ids"
    """How the TSV files write labels."""
    header: tuple[str, ...] = ()
    """Column names of TSV files that have no header line."""
    skip_malformed: bool = False
    """Whether lines of the wrong width are a known quirk of the files."""


_SENTENCES = ("sentence1", "sentence2")
LAYOUTS = {
    "cola": Layout(
        folder="CoLA",
        label_names=("unacceptable", "acceptable"),
        metrics=("matthews_correlation",),
        hub=("sentence",),
        header=("source", "label", "mark", "sentence"),
    ),
    "sst2": Layout(folder="SST-2", label_names=("negative", "positive"), hub=("sentence",)),
    "mrpc": Layout(
        folder="MRPC",
        label_names=("not_equivalent", "equivalent"),
        metrics=("f1", "accuracy"),
        hub=_SENTENCES,
        tsv=("#1 String", "#2 String"),
        tsv_label="Quality",
    ),
    "qqp": Layout(
        folder="QQP",
        label_names=("not_duplicate", "duplicate"),
        metrics=("f1", "accuracy"),
        hub=("question1", "question2"),
        tsv_label="is_duplicate",
        skip_malformed=True,
    ),
    "stsb": Layout(folder="STS-B", metrics=("pearson", "spearmanr"), hub=_SENTENCES, tsv_label="score", labels="scores"),
    "mnli": Layout(
        folder="MNLI",
        label_names=("entailment", "neutral", "contradiction"),
        hub=("premise", "hypothesis"),
        tsv=_SENTENCES,
        tsv_label="gold_label",
        labels="names",
    ),
    "qnli": Layout(folder="QNLI", label_names=ENTAILMENT, hub=("question", "sentence"), labels="names"),
    "rte": Layout(folder="RTE", label_names=ENTAILMENT, hub=_SENTENCES, labels="names"),
    "wnli": Layout(folder="WNLI", label_names=("not_entailment", "entailment"), hub=_SENTENCES),
}
GLUE_TASKS = tuple(LAYOUTS)


def load_glue(
    name: str,
    glue_dir: str | Path | None = None,
    *,
    train_limit: int | None = None,
    eval_limit: int | None = None,
    seed: int = 0,
) -> TaskData:
    """Load a GLUE task: `name` in any spelling ("sst2", "SST-2"), from the hub or from `glue_dir`/SST-2/train.tsv, dev.tsv.

    Limits take a seeded random sample without replacement. MNLI's evaluation sets are `dev_matched` and `dev_mismatched`,
    those of the others `dev`. Raises ValueError for an unknown task, missing or malformed files, or an unreachable hub.
    """
    key = spelling(name)
    if key not in LAYOUTS:
        raise ValueError(
            f"unknown GLUE task {name!r}{did_you_mean(key, GLUE_TASKS, ', ') or ','} expected one of {', '.join(GLUE_TASKS)}"
        )
    layout = LAYOUTS[key]
    task = Task(
        name=key,
        kind="classification" if layout.label_names else "regression",
        label_names=layout.label_names,
        metrics=layout.metrics,
    )
    evals = ("dev_matched", "dev_mismatched") if key == "mnli" else ("dev",)
    splits, notes = _from_hub(task, layout, evals) if glue_dir is None else _from_directory(task, layout, evals, Path(glue_dir))
    return TaskData(
        task=task,
        train=sample(splits.pop("train"), train_limit, seed),
        evals={each: sample(dataset, eval_limit, seed) for each, dataset in splits.items()},
        notes=tuple(notes),
    )


def _from_hub(task: Task, layout: Layout, evals: tuple[str, ...]) -> tuple[dict[str, Dataset], list[str]]:
    try:
        splits = load_dataset(HUB, task.name)
    except (OSError, ValueError, DatasetsError) as error:  # no network, a cache without this task, an error of the hub
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"cannot load {task.name} of {HUB} from the Hugging Face hub ({reason}): "
            f"check the network or name a directory of GLUE's TSV files with --glue-dir"
        ) from error
    found = {}
    for each in ("train", *evals):
        split = splits[each.replace("dev", "validation")]
        names = tuple(getattr(split.features["label"], "names", ()))
        if names != task.label_names:
            raise ValueError(
                f"{HUB} gives {task.name} the labels {names}, expected {task.label_names}: load it with --glue-dir"
            )
        columns = dict(zip(("text", "text_pair"), layout.hub, strict=False))
        found[each] = as_dataset({to: list(split[column]) for to, column in (columns | {"label": "label"}).items()}, task)
    return found, []


def _from_directory(
    task: Task, layout: Layout, evals: tuple[str, ...], directory: Path
) -> tuple[dict[str, Dataset], list[str]]:
    directory = directory.expanduser()
    if not directory.is_dir():
        raise ValueError(f"--glue-dir {directory} is not a directory: expected one that holds {layout.folder}/train.tsv")
    folders = sorted(path for path in directory.iterdir() if path.is_dir())
    folder = next((path for path in folders if spelling(path.name) == task.name), None)
    if folder is None:
        found = ", ".join(path.name for path in folders) or "no folder"
        raise ValueError(f"{directory} has no folder {layout.folder} for {task.name}, found {found}: check --glue-dir")
    missing = [each for each in ("train", *evals) if not (folder / f"{each}.tsv").is_file()]
    if "train" in missing or set(evals) <= set(missing):
        raise ValueError(
            f"{folder} has no {' and no '.join(f'{each}.tsv' for each in missing)}: GLUE's {layout.folder} needs it"
        )
    notes = [f"{folder.name} has no {each}.tsv: left out" for each in missing]
    splits = {}
    for each in ("train", *evals):
        if each not in missing:
            columns, skipped = _read_tsv(folder / f"{each}.tsv", task, layout)
            splits[each] = as_dataset(columns, task)
            if skipped:
                notes.append(f"{folder.name}/{each}.tsv: {skipped} malformed lines skipped, {len(splits[each])} read")
    return splits, notes


def _read_tsv(path: Path, task: Task, layout: Layout) -> tuple[dict[str, list[Any]], int]:
    """Columns of a GLUE file and the number of lines skipped. A quote is a character like others, a tab always separates."""
    wanted = (*(layout.tsv or layout.hub), layout.tsv_label)
    lines, header, places = read_lines(path, wanted, layout.header)
    ids = {str(number) if layout.labels == "ids" else label: number for number, label in enumerate(task.label_names)}
    rows, skipped = [], 0
    for number, line in enumerate(lines, start=1):
        if (number == 1 and not layout.header) or not line.strip():
            continue
        fields = line.rstrip("\r").split("\t")
        label = _label(fields[places[-1]], ids) if len(fields) == len(header) else None
        if label is not None:
            rows.append((*(fields[place] for place in places[:-1]), label))
        elif layout.skip_malformed:
            skipped += 1
        else:
            labels = "a number" if task.kind == "regression" else " or ".join(ids)
            raise ValueError(
                f"{path} line {number} has {len(fields)} columns and reads {line[:60]!r}: "
                f"expected {len(header)} columns with {labels} as {layout.tsv_label}"
            )
    if not rows:
        raise ValueError(f"{path} has no readable row: expected GLUE's {layout.folder}")
    names = ("text", "text_pair", "label") if len(wanted) == 3 else ("text", "label")
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}, skipped


def read_lines(path: Path, wanted: Sequence[str], header: Sequence[str] = ()) -> tuple[list[str], list[str], list[int]]:
    """Lines of a GLUE file, its header (the first line where `header` names none), and the places of the wanted columns.

    Raises ValueError for other files.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")  # not splitlines: sentences hold exotic line separators
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): expected one of GLUE's TSV files") from None
    found = list(header) or lines[0].rstrip("\r").split("\t")
    absent = [column for column in wanted if column not in found]
    if absent:
        raise ValueError(f"{path} has no column {absent[0]!r}, found {', '.join(found)}: expected GLUE's header")
    return lines, found, [found.index(column) for column in wanted]


def _label(field: str, ids: dict[str, int]) -> int | float | None:
    """A class id, or a score where the task has no classes; None where it is neither."""
    if ids:
        return ids.get(field.strip())
    return float(field) if re.fullmatch(r"\d+(\.\d*)?", field.strip()) else None
