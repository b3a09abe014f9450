"""`egkd lessons`: what the teacher shows, built ahead of any run, listed, verified and pruned."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from egkd.cli import options as o
from egkd.config import Guide

if TYPE_CHECKING:
    from rich.table import Table

    from egkd.lessons.keeping import Store

app = typer.Typer(help="Build, list, verify and prune lessons: what a teacher shows, kept on disk.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="Folder that holds lessons, like runs/lessons.", show_default=False)]


@app.command()
def build(
    settings: o.Settings = None,
    teacher: Annotated[
        list[str] | None, typer.Option(help="Fine-tuned classifier: local folder or hub id. Repeatable: several teach.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="As for distill; what is taught of layers depends on how many it has (layers:3).")
    ] = None,
    guide: Annotated[
        list[Guide] | None,
        typer.Option(help="Explanations to teach beside answers. Repeatable. [default: none]", show_default=False),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Named settings: plain, replacement, replacement-first, all-first, augmented-replacement, ad-kd or gkd."
        ),
    ] = None,
    reasons: Annotated[bool, typer.Option("--reasons", help="Also what `egkd distill --reasons` needs.")] = False,
    task: o.Task = None,
    glue_dir: o.GlueDir = None,
    train: o.Train = None,
    eval: o.Eval = None,  # noqa: A002
    unlabeled: o.Unlabeled = None,
    text: o.Text = None,
    text_pair: o.TextPair = None,
    label: o.Label = None,
    train_limit: o.TrainLimit = None,
    max_length: o.MaxLength = None,
    lessons: Annotated[str | None, typer.Option(help="Folder for lessons.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Instead: the run they are for; they go beside it.")] = None,
    set_: o.Set = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Build what `egkd distill` with the same settings would build first. Started by torchrun, processes share the work.

    Example: `egkd lessons build --teacher my-classifier --task sst2 --guide gradient --lessons runs/lessons`

    Example: `torchrun --nproc-per-node 4 -m egkd lessons build config.yaml --out runs/a`
    """
    from egkd.config import resolve

    flags = {
        "teacher": teacher or None,
        "student": student,
        "preset": preset,
        "data": o.data_settings(task, glue_dir, train, eval, text, text_pair, label, train_limit, None, unlabeled),
        "max_length": max_length,
        "lessons": lessons,
        "trust_remote_code": trust_remote_code,
    }
    config = resolve(o.settings_of(settings, flags, set_), guide or [], reasons=reasons)
    root = config.lessons or (out.parent / "lessons" if out else None)
    if root is None:
        raise ValueError("no folder for lessons; name it with --lessons, or the run they are for with --out")
    from functools import partial

    from egkd.cli.progress import bars, calm, first_console
    from egkd.lecture import lecture

    console = first_console()
    calm()
    with bars(console) as progress:
        built = lecture(config, root, tell=console.print, progress=partial(progress, "lessons"))
    for one in built.values():
        console.print(f"lessons: {one.folder}")


@app.command("list")
def list_(folder: Folder) -> None:
    """Show the lessons in a folder: whose, how many, how large, when built, and whether they are finished.

    Example: `egkd lessons list runs/lessons`
    """
    from rich.console import Console

    from egkd.lessons.keeping import stores

    found = stores(folder)
    if not found:
        typer.echo(f"{folder} holds no lessons")
        return
    Console().print(_table(found))


@app.command()
def verify(folder: Folder) -> None:
    """Read every shard again and compare it with its manifest; exit code 2 if anything is wrong.

    Example: `egkd lessons verify runs/lessons`
    """
    from egkd.lessons.keeping import faults, stores

    wrong = 0
    for store in stores(folder):
        found = faults(store)
        wrong += bool(found)
        for line in found or ["well" if store.state == "finished" else _progress(store)]:
            typer.echo(f"{store.folder.name}: {line}")
    if wrong:
        typer.echo(f"{wrong} damaged; `egkd lessons prune {folder}` deletes them, and they are built again when needed")
        raise typer.Exit(2)


@app.command()
def prune(
    folder: Folder,
    days: Annotated[float | None, typer.Option(min=0, help="Also lessons that were built more than so many days ago.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Also lessons not of this teacher: the beginning of its fingerprint (see list).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
) -> None:
    """Delete unfinished and broken lessons, and with --days or --teacher more. What a run is building stays, and so does
    everything in the folder that is no lesson store.

    Example: `egkd lessons prune runs/lessons --days 30 --dry-run`
    """
    from egkd.lessons.keeping import delete, held, stores, unwanted
    from egkd.lessons.size import readable

    found = stores(folder)
    chosen = [store for store in found if unwanted(store, days, teacher)]
    for store in chosen:
        typer.echo(f"{store.folder.name}: {unwanted(store, days, teacher)}, {readable(store.bytes)}")
    if not chosen or dry_run:
        typer.echo("nothing to delete" if not chosen else "nothing was deleted")
        return
    if not (yes or _agreed(f"delete {len(chosen)} of {len(found)} ({readable(sum(s.bytes for s in chosen))})?")):
        typer.echo("nothing was deleted")
        return
    for store in chosen:
        with held(store) as ours:
            if ours:
                delete(store)
            typer.echo(f"{store.folder.name}: {'deleted' if ours else 'is being built, left alone'}")


def _agreed(question: str) -> bool:
    try:
        return typer.confirm(question)
    except typer.Abort:  # nobody is there to answer
        typer.echo()
        return False


def _table(stores: "Iterable[Store]") -> "Table":
    from rich import box
    from rich.table import Table

    from egkd.lessons.size import readable

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("objective")
    for heading in ("rows", "size", "teacher", "built (UTC)"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("state")
    for store in stores:
        rows = f"{store.key['rows']:,}" if store.key else "–"
        when = f"{store.built:%Y-%m-%d %H:%M}" if store.state == "finished" else "–"
        teacher = store.key["teacher"][:10] if store.key else "–"
        state = {"finished": "finished", "unfinished": _progress(store), "broken": f"broken: {store.problem}"}[store.state]
        table.add_row(store.objective, rows, readable(store.bytes), teacher, when, state)
    return table


def _progress(store: "Store") -> str:
    there, planned = store.shards
    return f"unfinished, {there} of {planned or '?'} shards"
