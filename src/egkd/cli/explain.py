"""`egkd explain`: which words of a text speak for what a classifier says."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from egkd.cli import options as o

if TYPE_CHECKING:
    from datasets import Dataset


METHODS = (
    "saliency, input-x-gradient, integrated-gradients, smoothgrad, occlusion, lime, kernel-shap, shapley-sampling, "
    "exact-shapley, l2x, hard-concrete, diffmask, sufficient-subset, reasons"
)


def explain(
    model: Annotated[str, typer.Option(help="Fine-tuned classifier or regressor: local folder or hub id.")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Texts to explain.", show_default=False)] = None,
    pair: Annotated[list[str] | None, typer.Option(help="Second text of a pair, one for each TEXT. Repeatable.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="Instead of TEXT: CSV, TSV, JSONL or Parquet, or TXT with a text per line.")
    ] = None,
    task: o.Task = None,
    glue_dir: o.GlueDir = None,
    text: o.Text = None,
    text_pair: o.TextPair = None,
    limit: Annotated[int | None, typer.Option(help="Explain a random sample of this many rows.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help=f"One of {METHODS}. Repeatable. [default: integrated-gradients]", show_default=False),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Setting of a method, like lime.n_samples=200. Repeatable.")
    ] = None,
    target: Annotated[str, typer.Option(help="Class to explain: predicted, or a class by name or number.")] = "predicted",
    selector: Annotated[Path | None, typer.Option(help="Folder of the selector for l2x, hard-concrete or diffmask.")] = None,
    fit_on: Annotated[
        Path | None, typer.Option(help="Texts to fit that selector on, a file like --file; it is kept in --selector.")
    ] = None,
    jsonl: Annotated[
        Path | None, typer.Option(help="Write explanations here as they come; the same command goes on with it.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write one page with all explanations.")] = None,
    judge: Annotated[bool, typer.Option("--judge", help="Measure how faithful each method is to the model.")] = False,
    max_length: o.MaxLength = None,
    seed: o.Seed = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Explain what a classifier says about texts, word by word, by one or several methods.

    Example: `egkd explain "a truly wonderful film" --model my-classifier --method lime --method shapley-sampling`

    Example: `egkd explain --model my-classifier --file reviews.csv --text review --jsonl why.jsonl --html why.html`

    Example: `egkd explain --model my-classifier --task sst2 --limit 100 --method occlusion --method saliency --judge`
    """
    _check_sources(texts, pair, file, task)
    _check_outputs(jsonl, html)
    from rich.console import Console

    from egkd import explaining
    from egkd.cli.explanations import Shown, judged_table
    from egkd.cli.progress import bars, calm
    from egkd.explain.record import Record, texts_by_row

    out = Console()
    aside = Console(stderr=not out.is_terminal)  # what is piped on is explanations only
    calm()
    explainers, fitting = explaining.methods_from(method or ["integrated-gradients"], set_ or [])
    dataset, notes = _dataset(texts, pair, file, task, glue_dir, text, text_pair, limit, seed or 0)
    fit_rows, more = _read(fit_on, text, text_pair) if fit_on else (None, ())
    question = explaining.question_about(model, target, max_length, seed or 0, trust_remote_code=trust_remote_code)
    for note in (*notes, *more):
        aside.print(note, markup=False, highlight=False)
    shown = Shown(question, None if jsonl or html else out, html is not None)
    judges = explaining.Judge(question) if judge else None
    with bars(aside) as progress:
        explainers = explaining.with_selector(explainers, question, selector, fit_rows, fitting, progress)
        record = None
        if jsonl is not None:
            record = Record(jsonl, question.told(), explainers, texts_by_row(dataset))
            if len(record):
                aside.print(f"{jsonl} holds {len(record)} explanations already: kept", markup=False, highlight=False)
        for explained in explaining.explain_all(question, explainers, dataset, record, progress):
            shown.show(explained)
            if judges is not None:
                judges.hear(explained)
    if judges is not None:
        out.print(judged_table(judges))
    if html is not None:
        shown.write_page(html, model, explainers)
    for told in (*shown.cautions(), *(f"explanations: {path}" for path in (jsonl, html) if path is not None)):
        aside.print(told, markup=False, highlight=False)


def _check_sources(texts: Sequence[str] | None, pair: Sequence[str] | None, file: Path | None, task: str | None) -> None:
    given = [name for name, value in (("TEXT", texts), ("--file", file), ("--task", task)) if value]
    if len(given) != 1:
        raise ValueError(
            f"found {' and '.join(given) or 'nothing'} to explain, expected one of TEXT, --file FILE or --task TASK"
        )
    if pair and len(pair) != len(texts or ()):
        raise ValueError(f"{len(texts or ())} TEXT and {len(pair)} --pair; give as many of one as of the other")
    for text in texts or ():
        if not text.strip():
            raise ValueError("a TEXT is empty, expected words to explain")
        if os.path.isfile(text):
            raise ValueError(f"TEXT {text!r} is a file; to explain what is in it, give it as --file")


def _check_outputs(jsonl: Path | None, html: Path | None) -> None:
    """Refuse, before anything is computed, what could not be written."""
    from egkd.runs import check_writable

    if jsonl is not None and jsonl.suffix != ".jsonl":
        raise ValueError(f"--jsonl {jsonl} should end in .jsonl, by which it is known when it is read")
    for flag, path in (("--jsonl", jsonl), ("--html", html)):
        if path is not None:
            if path.is_dir():
                raise ValueError(f"{flag} {path} is a folder, expected a file")
            check_writable(path.parent, flag)


def _dataset(
    texts: Sequence[str] | None,
    pair: Sequence[str] | None,
    file: Path | None,
    task: str | None,
    glue_dir: Path | None,
    text: str | None,
    text_pair: str | None,
    limit: int | None,
    seed: int,
) -> tuple["Dataset", tuple[str, ...]]:
    """Columns row (its number, from 0), text and perhaps text_pair; and notes for the user."""
    from datasets import Dataset

    from egkd.data import sample

    notes: tuple[str, ...] = ()
    if file is not None:
        dataset, notes = _read(file, text, text_pair)
    elif task is not None:
        from egkd.config import DataConfig
        from egkd.pipeline import load_data

        data = load_data(DataConfig(task=task, glue_dir=glue_dir))
        name, dataset = next(iter(data.evals.items()))
        dataset, notes = dataset.remove_columns("label"), (*data.notes, f"{data.task.name}: {name} is explained")
    else:
        dataset = Dataset.from_dict({"text": list(texts or ())} | ({"text_pair": list(pair)} if pair else {}))
    return sample(dataset.add_column("row", list(range(len(dataset)))), limit, seed), notes


def _read(file: Path, text: str | None, text_pair: str | None) -> tuple["Dataset", tuple[str, ...]]:
    from egkd.data.files import load_texts

    return load_texts(file, text=text, text_pair=text_pair)
