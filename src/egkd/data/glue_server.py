"""GLUE's test sets, whose labels only the test server knows: texts from a directory of TSV files or from the hub."""

from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError

from egkd.config_data import spelling
from egkd.data.glue import HUB, LAYOUTS, read_lines


@dataclass(frozen=True, kw_only=True)
class ServerSet:
    """One test set, and its file in a submission."""

    task: str
    """Whose students answer it."""
    tsv: tuple[str, str]
    """Folder and file in a directory."""
    hub: tuple[str, str]
    """Configuration and split on the hub."""
    size: int


def _plain(task: str, size: int) -> ServerSet:
    return ServerSet(task=task, tsv=(LAYOUTS[task].folder, "test.tsv"), hub=(task, "test"), size=size)


SERVER_SETS = {
    "CoLA.tsv": _plain("cola", 1063),
    "SST-2.tsv": _plain("sst2", 1821),
    "MRPC.tsv": _plain("mrpc", 1725),
    "STS-B.tsv": _plain("stsb", 1379),
    "QQP.tsv": _plain("qqp", 390965),
    "MNLI-m.tsv": ServerSet(task="mnli", tsv=("MNLI", "test_matched.tsv"), hub=("mnli", "test_matched"), size=9796),
    "MNLI-mm.tsv": ServerSet(task="mnli", tsv=("MNLI", "test_mismatched.tsv"), hub=("mnli", "test_mismatched"), size=9847),
    "QNLI.tsv": _plain("qnli", 5463),
    "RTE.tsv": _plain("rte", 3000),
    "WNLI.tsv": _plain("wnli", 146),
    "AX.tsv": ServerSet(task="mnli", tsv=("diagnostic", "diagnostic.tsv"), hub=("ax", "test"), size=1104),
}
"""By file name in a submission, with the number of rows the server expects. AX is the diagnostic set."""


def load_server_set(name: str, glue_dir: str | Path | None = None) -> Dataset | None:
    """The texts (`text`, perhaps `text_pair`) of test set `name` in their order, from the hub or from `glue_dir`.

    None where the directory does not have it. Raises ValueError for a malformed file, a wrong number of rows (the server
    refuses those), or an unreachable hub.
    """
    test = SERVER_SETS[name]
    columns = _from_hub(test) if glue_dir is None else _from_directory(test, Path(glue_dir).expanduser())
    if columns is None:
        return None
    if len(columns[0]) != test.size:
        where = f"{HUB}, {'/'.join(test.hub)}" if glue_dir is None else Path(glue_dir, *test.tsv)
        raise ValueError(
            f"{where} has {len(columns[0]):,} rows, expected the {test.size:,} of GLUE's {name.removesuffix('.tsv')}"
        )
    return Dataset.from_dict(dict(zip(("text", "text_pair"), columns, strict=False)))


def _from_hub(test: ServerSet) -> list[list[str]]:
    try:
        split = load_dataset(HUB, test.hub[0], split=test.hub[1])
    except (OSError, ValueError, DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"cannot load {'/'.join(test.hub)} of {HUB} from the Hugging Face hub ({reason}): "
            f"check the network or name a directory of GLUE's TSV files with --glue-dir"
        ) from error
    return [list(split[column]) for column in LAYOUTS[test.task].hub]


def _from_directory(test: ServerSet, directory: Path) -> list[list[str]] | None:
    folders = sorted(path for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []
    path = next((folder / test.tsv[1] for folder in folders if spelling(folder.name) == spelling(test.tsv[0])), None)
    if path is None or not path.is_file():
        return None
    layout = LAYOUTS[test.task]
    lines, header, places = read_lines(path, layout.tsv or layout.hub)  # CoLA's test file has a header, too
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        fields = line.rstrip("\r").split("\t")
        if len(fields) == len(header):
            rows.append([fields[place] for place in places])
        elif line.strip():
            raise ValueError(f"{path} line {number} has {len(fields)} columns, expected {len(header)}: no row may be left out")
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in places]
