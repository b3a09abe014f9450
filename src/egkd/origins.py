"""What a run's settings name and do not hold: the rows, and the models in folders. Whoever goes on with a run goes on with
these."""

import hashlib
from pathlib import Path

from egkd.config import RunConfig
from egkd.data import TaskData
from egkd.lessons import fingerprint_texts
from egkd.lessons.fingerprints import fingerprint_labels


def origins(config: RunConfig, data: TaskData) -> dict[str, str]:
    """A fingerprint of each: `rows` that are learnt from and judged on, and models by their settings' names.

    Models on the hub are not looked at, nor are students that are made of their teacher.
    """
    rows = [
        found for each in (data.stream, *data.evals.values()) for found in (fingerprint_texts(each), fingerprint_labels(each))
    ]
    found = {"rows": _sha256("\n".join([*data.evals, *rows]).encode())}
    models: dict[str, list[str | None]] = {"teacher": [*config.teachers], "teacher_init": [config.teacher_init]}
    models |= {"student": [config.student], "evaluate.twin": [config.evaluate.twin]}
    for name, sources in models.items():
        files = [file for source in sources if source for file in sorted(Path(source).expanduser().glob("*.safetensors"))]
        if files:
            found[name] = _sha256("".join(_of_file(file) for file in files).encode())
    return found


def _of_file(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _sha256(told: bytes) -> str:
    return hashlib.sha256(told).hexdigest()
