"""A submission to GLUE's test server: a zip of eleven files, `index` and `prediction` for every row of a test set.

The server takes all files or none, so tasks without a student get one and the same prediction for every row, which is said.
Files and labels as GLUE documents them (https://gluebenchmark.com/faq): classes by number, those of MNLI, QNLI, RTE and the
diagnostic set AX (answered by MNLI's student) by name, STS-B as numbers from 0 to 5.
"""

import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import nn

from egkd.config import read_yaml
from egkd.config_data import spelling
from egkd.data import Task
from egkd.data.glue import LAYOUTS
from egkd.data.glue_server import SERVER_SETS, load_server_set
from egkd.data.loading import HELD_OUT
from egkd.experiments.grid import GridConfig
from egkd.experiments.kept import finished
from egkd.experiments.records import Record
from egkd.predict import predict_logits
from egkd.report.wording import listed
from egkd.runs import check_writable
from egkd.students import label_order, load_classifier, load_tokenizer
from egkd.text import MAX_LENGTH

_NAMED = ("mnli", "qnli", "rte")  # tasks whose classes are written by name
_DATE = (1980, 1, 1, 0, 0, 0)  # of the files in the zip, so that equal predictions make equal zips


def chosen_students(records: Sequence[Record], student: str, method: str) -> dict[str, Path]:
    """For each task in GLUE the folder of the student that did best on its dev set, over seeds and grid entries.

    Raises ValueError where no such run is finished, or its weights are not there.
    """
    best: dict[str, Record] = {}
    for record in records:
        if (record.student, record.method) == (student, method) and record.data in LAYOUTS:
            other = best.get(record.data)
            if other is None or _worth(record) > _worth(other):
                best[record.data] = record
    if not best:
        known = ", ".join(sorted({f"{record.student}/{record.method}" for record in records})) or "none"
        raise ValueError(f"no task of GLUE has a finished run of {student}/{method}; finished are: {known}")
    for record in best.values():
        if not _kept(record.folder):
            raise ValueError(f"{record.folder} did not keep its student's weights; delete that folder, and run it again")
    return {task: record.folder / "student" for task, record in best.items()}


def _worth(record: Record) -> tuple[bool, float]:
    """Scores on dev count before those on rows held out of train, and numbers before none."""
    return record.splits != (HELD_OUT,), -math.inf if math.isnan(record.score) else record.score


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is to be submitted, and where."""

    student: str
    method: str
    out: Path

    @classmethod
    def read(cls, flag: str, students: Sequence[str], methods: Sequence[str]) -> Self:
        """From `METHOD=ZIP`, with several students `STUDENT/METHOD=ZIP`. Raises ValueError for names that the grid lacks."""
        who, _, out = flag.partition("=")
        student, _, method = who.rpartition("/")
        student = student or (students[0] if len(students) == 1 else "")
        if not out or student not in students or method not in methods:
            names = f"METHOD one of {', '.join(methods)}"
            names += f" and STUDENT of {', '.join(students)}" if len(students) > 1 else ""
            form = "STUDENT/METHOD=ZIP" if len(students) > 1 else "METHOD=ZIP"
            raise ValueError(f"--submission {flag!r}: expected {form}, {names}")
        return cls(student=student, method=method, out=Path(out))


def _kept(run: Path) -> bool:
    """Whether a run's student has its weights still."""
    return any((run / "student").glob("model*.safetensors"))


def check_submission(grid: GridConfig, out: Path, entry: Entry) -> Path | None:
    """Refuse, before any cell is run, what would make the submission fail at the end; returns the directory of GLUE's files.

    Raises ValueError, one line, where students are not or were not kept, no task is GLUE's, or a task's test set is not there.
    """
    if not grid.keep_students:
        raise ValueError("a submission is predicted by the students, and keep_students is false: set it to true")
    sources = [grid.config(cell, out).data for cell in grid.cells()]
    tasks = {spelling(source.task): source.glue_dir for source in sources if source.task}
    of_glue = {task: directory for task, directory in tasks.items() if task in LAYOUTS}
    if not of_glue:
        raise ValueError(f"nothing to submit for: no task of the grid is one of {', '.join(LAYOUTS)}")
    for cell in grid.cells():
        folder = cell.folder(out)
        if cell.method == entry.method and cell.student == entry.student and finished(folder) and not _kept(folder):
            raise ValueError(
                f"{folder} is finished and did not keep its student's weights; delete that folder, it is run again"
            )
    for name, test in SERVER_SETS.items():
        directory = of_glue.get(test.task)
        if directory is not None and name != "AX.tsv" and load_server_set(name, directory) is None:
            raise ValueError(f"{directory} has no {'/'.join(test.tsv)}: a submission needs GLUE's test sets")
    return next((directory for directory in of_glue.values() if directory is not None), None)


def submit(
    records: Sequence[Record],
    entry: Entry,
    *,
    glue_dir: str | Path | None = None,
    trust_remote_code: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Path:
    """`write_submission` for the best runs of a student and a method. Raises ValueError as it does, and where none is done."""
    chosen = chosen_students(records, entry.student, entry.method)
    for task, folder in chosen.items():
        tell(f"{task}: {folder.parent}")
    return write_submission(
        chosen,
        entry.out,
        glue_dir=glue_dir,
        max_length={task: read_yaml(folder.parent / "config.yaml")["max_length"] for task, folder in chosen.items()},
        trust_remote_code=trust_remote_code,
        tell=tell,
    )


def write_submission(
    students: Mapping[str, Path],
    out: Path,
    *,
    glue_dir: str | Path | None = None,
    max_length: int | Mapping[str, int] = MAX_LENGTH,
    trust_remote_code: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Path:
    """Predict every test set that has a student (by task: `{"sst2": folder}`) and write the zip `out`, whole or not at all.

    `max_length` is one for all, or by task. `glue_dir` has test.tsv beside each task's train.tsv and diagnostic/diagnostic.tsv;
    without one the hub is asked. `tell` hears which files hold a constant. Raises ValueError for an unknown task, a student
    that cannot answer it, a missing test set of a task that has a student, or a test set that is not GLUE's.
    """
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name the zip to write")
    check_writable(out.parent, "--out")
    folders = {spelling(task): Path(folder) for task, folder in students.items()}
    unknown = [task for task in folders if task not in LAYOUTS]
    if unknown or not folders:
        raise ValueError(f"{unknown[0] if unknown else 'nothing'} to submit for: expected tasks of {', '.join(LAYOUTS)}")
    texts = {name: load_server_set(name, glue_dir) if test.task in folders else None for name, test in SERVER_SETS.items()}
    missing = [
        "/".join(test.tsv)
        for name, test in SERVER_SETS.items()
        if test.task in folders and texts[name] is None and name != "AX.tsv"  # which many copies of GLUE lack
    ]
    if missing:
        raise ValueError(f"{glue_dir} has no {' and no '.join(missing)}: a submission needs GLUE's test sets")
    files, constant = {}, []
    for name, test in SERVER_SETS.items():
        rows = texts[name]
        if rows is None:
            files[name] = [_constant(test.task)] * test.size
            constant.append(name)
            continue
        tell(f"{name}: {test.size:,} predictions")
        task, folder = _task(test.task), str(folders[test.task])
        model = load_classifier(folder, task, trust_remote_code=trust_remote_code)
        if torch.cuda.is_available():
            nn.Module.to(model, "cuda")  # PreTrainedModel's own is not typed
        tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        length = max_length if isinstance(max_length, int) else max_length[test.task]
        logits_NC = predict_logits(model, tokenizer, rows, max_length=length)
        files[name] = _written(task, logits_NC, label_order(model, task, folder), folder)
    if constant:
        tell(f"without a student or a test set, and so the same prediction for every row: {listed(constant)}")
    return _zipped(files, out)


def _task(name: str) -> Task:
    layout = LAYOUTS[name]
    kind = "classification" if layout.label_names else "regression"
    return Task(name=name, kind=kind, label_names=layout.label_names, metrics=layout.metrics)  # type: ignore[arg-type]


def _written(task: Task, logits_NC: np.ndarray, order: Sequence[int], source: str) -> list[str]:
    """Predictions as the server reads them; `order` are the task's label ids by the model's."""
    if not np.isfinite(logits_NC).all():
        raise ValueError(f"{source} answers with numbers that are not finite: its training diverged; choose another student")
    if task.kind == "regression":
        return [f"{value:.3f}" for value in logits_NC[:, 0].clip(0, 5)]
    ids = [order[answer] for answer in logits_NC.argmax(1)]
    return [task.label_names[number] if task.name in _NAMED else str(number) for number in ids]


def _constant(task: str) -> str:
    """What is predicted where nobody can."""
    return LAYOUTS[task].label_names[0] if task in _NAMED else "0" if LAYOUTS[task].label_names else "0.000"


def _zipped(files: Mapping[str, Sequence[str]], out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.tmp")
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, predictions in files.items():
            lines = ["index\tprediction", *(f"{index}\t{prediction}" for index, prediction in enumerate(predictions))]
            archive.writestr(zipfile.ZipInfo(name, _DATE), "\n".join(lines) + "\n", zipfile.ZIP_DEFLATED)
    unfinished.replace(out)
    return out
