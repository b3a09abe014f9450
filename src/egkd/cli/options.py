"""Options that several verbs share, and how flags become settings."""

from pathlib import Path
from typing import Annotated, Any

import typer

from egkd.config import merge, override, read_yaml

Settings = Annotated[Path | None, typer.Argument(help="Settings in YAML; flags and --set go over them.", show_default=False)]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of this run; the same command resumes it.")]
Task = Annotated[
    str | None, typer.Option(help="GLUE task (sst2, mrpc, cola, stsb, qqp, mnli, qnli, rte, wnli) or movie-reviews.")
]
GlueDir = Annotated[Path | None, typer.Option(help="Folder with the GLUE files (SST-2/train.tsv); from the hub without it.")]
Train = Annotated[list[Path] | None, typer.Option(help="Own data: CSV, TSV, JSONL or Parquet. Repeatable.")]
Eval = Annotated[list[Path] | None, typer.Option(help="Own evaluation data; a tenth of --train is held out without it.")]
Unlabeled = Annotated[
    list[Path] | None, typer.Option(help="Texts without labels to learn from too; also .txt, one per line. Repeatable.")
]
Text = Annotated[str | None, typer.Option(help="Column with the text; guessed where unambiguous.")]
TextPair = Annotated[str | None, typer.Option(help="Column with the second text of a pair.")]
Label = Annotated[str | None, typer.Option(help="Column with the label or score.")]
TrainLimit = Annotated[int | None, typer.Option(help="Train on a random sample of this many rows.")]
EvalLimit = Annotated[int | None, typer.Option(help="Evaluate on a random sample of this many rows.")]
MaxLength = Annotated[int | None, typer.Option(help="Tokens after which a text is cut (128).")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of everything that is drawn (0).")]
Set = Annotated[list[str] | None, typer.Option("--set", help="One setting, like train.weight_decay=0.1. Repeatable.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run model code that comes with a checkpoint. Only if you trust it.")
]


def data_settings(
    task: str | None,
    glue_dir: Path | None,
    train: list[Path] | None,
    evaluation: list[Path] | None,
    text: str | None,
    text_pair: str | None,
    label: str | None,
    train_limit: int | None,
    eval_limit: int | None,
    unlabeled: list[Path] | None = None,
) -> dict[str, Any]:
    """The `data` section that the flags give."""
    return {
        "task": task,
        "glue_dir": glue_dir,
        "train": train or None,
        "eval": evaluation or None,
        "unlabeled": unlabeled or None,
        "text": text,
        "text_pair": text_pair,
        "label": label,
        "train_limit": train_limit,
        "eval_limit": eval_limit,
    }


def settings_of(file: Path | None, flags: dict[str, Any], assignments: list[str] | None) -> dict[str, Any]:
    """Settings from a file, with flags over them and `--set` over both. Flags that were not given change nothing."""
    settings = read_yaml(file) if file else {}
    return override(merge(settings, given(flags)), assignments or [])


def given(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given."""
    found = {name: given(value) if isinstance(value, dict) else value for name, value in flags.items()}
    # 0 is a value like others, but equals False
    return {name: value for name, value in found.items() if value is not None and value is not False and value != {}}
