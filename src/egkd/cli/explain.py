"""`egkd explain`: which words of a text speak for what a classifier says."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from egkd.cli import options as o

METHODS = (
    "saliency, input-x-gradient, integrated-gradients, smoothgrad, occlusion, lime, kernel-shap, shapley-sampling, "
    "exact-shapley, l2x, hard-concrete, diffmask, sufficient-subset, reasons"
)


class Unit(StrEnum):
    """What gets a score."""

    word = "word"
    token = "token"


class Precision(StrEnum):
    """What the model computes in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


def explain(
    model: Annotated[str, typer.Option(help="Fine-tuned classifier or regressor: local folder or hub id.")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Texts to explain.", show_default=False)] = None,
    pair: Annotated[list[str] | None, typer.Option(help="Second text of a pair, one for each TEXT. Repeatable.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="Instead of TEXT: CSV, TSV, JSONL or Parquet, or TXT with a text per line.")
    ] = None,
    rationales: Annotated[
        Path | None,
        typer.Option(help="Instead of TEXT: annotations.jsonl of an ERASER data set; judged by what people marked there."),
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
        list[str] | None,
        typer.Option("--set", help="Setting of a method, like lime.n_samples=200, or of a judge. Repeatable."),
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
    judge: Annotated[
        bool, typer.Option("--judge", help="Measure how faithful each method is to the model (--set judge.operator=delete).")
    ] = False,
    against: Annotated[
        str | None, typer.Option(help="Another model of the same classes, a student: measure how far its explanations agree.")
    ] = None,
    twin: Annotated[
        str | None, typer.Option(help="A model like --model but for its seed: how far that one agrees is the ceiling.")
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="Write all that judges measured here, as JSON.")] = None,
    unit: Annotated[Unit, typer.Option(help="What gets a score: words, or the model's own tokens.")] = Unit.word,
    max_length: o.MaxLength = None,
    seed: o.Seed = None,
    precision: Annotated[
        Precision, typer.Option(help="bfloat16 is faster on processors that have it, and a little off.")
    ] = Precision.float32,
    token_budget: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of one pass at most, where memory is scarce. [default: what suits the device]",
            show_default=False,
        ),
    ] = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Explain what a classifier says about texts, word by word, by one or several methods.

    Example: `egkd explain "a truly wonderful film" --model my-classifier --method lime --method shapley-sampling`

    Example: `egkd explain --model my-classifier --file reviews.csv --text review --jsonl why.jsonl --html why.html`

    Example: `egkd explain --model my-classifier --task sst2 --limit 100 --method occlusion --method saliency --judge`

    Example: `egkd explain --model my-classifier --task sst2 --method lime --against my-student --twin my-other-classifier`
    """
    from egkd.cli.sources import Source

    source = Source(
        texts=texts, pair=pair, file=file, rationales=rationales, task=task, glue_dir=glue_dir, text=text, text_pair=text_pair
    )
    source.check(reads_more=fit_on is not None)
    _check_outputs(jsonl, html, figures)
    _check_judges(judge or rationales is not None, against, twin, figures)
    from rich.console import Console

    from egkd import explaining, judging
    from egkd.cli.explanations import Shown
    from egkd.cli.judgements import tables
    from egkd.cli.progress import bars, calm
    from egkd.explain.record import Record, texts_by_row
    from egkd.runs import write_json

    out = Console()
    aside = Console(stderr=not out.is_terminal)  # what is piped on is explanations only
    calm()
    methods = explaining.methods_from(method or ["integrated-gradients"], set_ or [])
    if methods.probes and not judge:
        raise ValueError(f"--set judge.{next(iter(methods.probes))} says nothing without --judge; give it, or leave that out")
    dataset, marked = source.read(limit, seed or 0)
    fit_rows = source.read_file(fit_on) if fit_on else None
    question = explaining.question_about(model, target, max_length, seed or 0, trust_remote_code=trust_remote_code)
    question = replace(question, precision=precision.value, unit=unit.value, token_budget=token_budget)
    for note in source.notes:
        aside.print(note, markup=False, highlight=False)
    shown = Shown(question, None if jsonl or html else out, html is not None)
    judges: list[judging.Judge] = [] if rationales is None else [judging.Plausibility(question, marked)]
    if against is not None:
        other = question.asked_of(against, trust_remote_code=trust_remote_code)
        peer = None if twin is None else question.asked_of(twin, trust_remote_code=trust_remote_code)
        judges.append(judging.Agreement(question, methods.explainers, other, peer))
    with bars(aside) as progress, _alone(jsonl):
        explainers = explaining.with_selector(methods.explainers, question, selector, fit_rows, methods.fitting, progress)
        if judge:
            judges.insert(0, judging.Faithfulness(question, explainers, methods.probes_for(question.tokenizer)))
        record = None
        if jsonl is not None:
            record = Record(jsonl, question.told(), explainers, texts_by_row(dataset))
            if len(record):
                aside.print(f"{jsonl} holds {len(record)} explanations already: kept", markup=False, highlight=False)
        for explained in explaining.explain_all(question, explainers, dataset, record, progress):
            shown.show(explained)
            for each in judges:
                each.hear(explained)
    for each in judges:
        for table in tables(each):
            out.print(table)
    if figures is not None:
        figures.parent.mkdir(parents=True, exist_ok=True)
        found = {type(each).__name__.lower(): each.figures() for each in judges}
        write_json(figures, {"model": model, "asked": question.told(), **found})
    if html is not None:
        shown.write_page(html, model, explainers)
    written = (("explanations", jsonl), ("explanations", html), ("figures", figures))
    for told in (*shown.cautions(), *(f"{what}: {path}" for what, path in written if path is not None)):
        aside.print(told, markup=False, highlight=False)


@contextmanager
def _alone(jsonl: Path | None) -> Iterator[None]:
    """While open, no other process writes to that file."""
    from egkd.runs import held

    if jsonl is None:
        yield
        return
    jsonl.parent.mkdir(parents=True, exist_ok=True)
    with held(jsonl.with_name(f".{jsonl.name}.lock"), jsonl, "name another --jsonl"):
        yield


def _check_outputs(jsonl: Path | None, html: Path | None, figures: Path | None) -> None:
    """Refuse, before anything is computed, what could not be written."""
    from egkd.runs import check_writable

    if jsonl is not None and jsonl.suffix != ".jsonl":
        raise ValueError(f"--jsonl {jsonl} should end in .jsonl, by which it is known when it is read")
    for flag, path in (("--jsonl", jsonl), ("--html", html), ("--figures", figures)):
        if path is not None:
            if path.is_dir():
                raise ValueError(f"{flag} {path} is a folder, expected a file")
            check_writable(path.parent, flag)
    files = [path.absolute() for path in (jsonl, html, figures) if path is not None]
    if len(set(files)) < len(files):
        raise ValueError("two of --jsonl, --html and --figures name one file; give each its own")


def _check_judges(judged: bool, against: str | None, twin: str | None, figures: Path | None) -> None:
    if twin is not None and against is None:
        raise ValueError("--twin says how far models can agree at most, and none is asked; give another model with --against")
    if figures is not None and not judged and against is None:
        raise ValueError(f"no judge has figures for --figures {figures}; give --judge, --against MODEL or --rationales FILE")
