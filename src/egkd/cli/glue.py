"""`egkd glue`: tasks × students × methods × seeds, and the table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from egkd.cli import options as o


def glue(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the experiment; the same command resumes it.")],
    settings: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Settings in YAML, each file over those before it; flags and --set go over them.", show_default=False
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option(help="Tasks, or entries of the file: mrpc,cola. Repeatable. [default: all nine]")
    ] = None,
    students: Annotated[
        list[str] | None, typer.Option(help="As --student of distill, or an entry of the file. Repeatable. [default: layers:3]")
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help="labels, plain, pkd, tinybert, minilm, ad-kd, gkd, gradient, perturbation, selection, all, replacement, "
            "replacement-first, all-first, augment, augmented-replacement, or several as a+b, or entries of the file. "
            "Repeatable. [default: labels,plain,gradient,perturbation,selection,all]"
        ),
    ] = None,
    seeds: Annotated[list[str] | None, typer.Option(help="Repeatable. [default: 0,1,2]")] = None,
    teacher_init: Annotated[str | None, typer.Option(help="Encoder that is fine-tuned on each task first.")] = None,
    teacher: Annotated[
        list[str] | None, typer.Option(help="Instead, for one task: a fine-tuned one, as TASK=FOLDER. Repeatable.")
    ] = None,
    glue_dir: o.GlueDir = None,
    epochs: Annotated[float | None, typer.Option(help="Training epochs of the students (3).")] = None,
    limit: Annotated[int | None, typer.Option(help="Train and evaluate everybody on so many rows only: a quick look.")] = None,
    max_length: o.MaxLength = None,
    submission: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD=ZIP",
            help="At the end predict GLUE's test sets with a method's students, for its server. STUDENT/METHOD=ZIP of several.",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Cells side by side, each with its share of the cores.")] = 1,
    set_: o.Set = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Distil every student by every method on every task with every seed, and compare in tables: OUT/results.

    Finished cells are kept, killed ones go on, teachers and lessons are shared; more tasks, methods and seeds may join later.

    Example: `egkd glue examples/glue.yaml --glue-dir glue --jobs 2 --out runs/glue`

    Example: `egkd glue --tasks mrpc,cola --methods plain,perturbation --seeds 0,1 --teacher-init my-encoder
    --students my-small-encoder --limit 500 --out runs/look`

    Example: `egkd glue runs/sweeps/*/results/grid.yaml --out runs/tuned`, what sweeps on several tasks chose
    """
    from egkd.config import merge, override, read_yaml

    given: dict[str, Any] = {}
    for file in settings or ():
        given = merge(given, read_yaml(file))
    base = {
        "teacher_init": teacher_init,
        "data": {"glue_dir": None if glue_dir is None else str(glue_dir)},
        "train": {"num_train_epochs": epochs},
        "max_length": max_length,
        "trust_remote_code": trust_remote_code,
    }
    flags = o.given({"base": base, "teachers": _pairs(teacher), "limit": limit})
    whole, only = _chosen(
        merge(given, flags), {"tasks": _parts(tasks), "students": students or [], "methods": _parts(methods)}, _numbers(seeds)
    )
    from egkd.experiments.grid import DEFAULTS, Choice, GridConfig, entries

    for what, names in DEFAULTS.items():  # a setting of one entry is over all entries that there would be
        if what not in whole and any(each.startswith(f"{what}.") for each in set_ or ()):
            whole[what] = entries(what, names)
    grid = GridConfig.of(override(whole, set_ or []))
    from egkd.cli.progress import calm, cells_bar, first_console
    from egkd.experiments.running import run

    if submission:
        from egkd.experiments.results import records
        from egkd.experiments.submission import Entry, check_submission, submit

        entry = Entry.read(submission, list(grid.students), list(grid.methods))
        where = check_submission(grid, out, entry)
    console = first_console()
    calm()
    with cells_bar(console) as show:
        failed = run(grid, out, only=Choice(**only), jobs=jobs, tell=console.print, show=show)
    for name, why in failed.items():
        console.print(f"failed: {name}: {why}")
    table = out / "results" / "glue.md"
    console.print(f"results: {table.parent}" if table.exists() else "no cell is finished yet")
    if failed:
        console.print(f"{len(failed)} failed; the same command tries them again")
        raise typer.Exit(1)
    if submission:
        written = submit(records(grid, out), entry, glue_dir=where, trust_remote_code=trust_remote_code, tell=console.print)
        console.print(f"submission: {written}")


def _parts(given: Sequence[str] | None) -> list[str]:
    return [part.strip() for each in given or () for part in each.split(",") if part.strip()]


def _numbers(given: Sequence[str] | None) -> list[int]:
    try:
        return [int(part) for part in _parts(given)]
    except ValueError:
        raise ValueError(f"--seeds {','.join(given or ())}: expected whole numbers, like 0,1,2") from None


def _pairs(given: Sequence[str] | None) -> dict[str, str]:
    pairs = dict(each.partition("=")[::2] for each in given or ())
    wrong = [name for name, folder in pairs.items() if not name or not folder]
    if wrong:
        raise ValueError(f"--teacher {wrong[0]!r}: expected TASK=FOLDER, like mrpc=teachers/mrpc")
    return pairs


def _chosen(
    settings: Mapping[str, Any], names: Mapping[str, Sequence[str]], seeds: Sequence[int]
) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
    """The settings with what flags name added, and what that is; a name that is no entry of the file is taken for the thing."""
    from egkd.config import near
    from egkd.config_data import spelling
    from egkd.experiments.grid import TASKS, entries, one_name

    whole = {name: value for name, value in settings.items() if value is not None}  # an empty section is none
    only: dict[str, tuple[Any, ...]] = {}
    for what, asked in names.items():
        known = entries(what, whole.get(what, {}))
        if not isinstance(known, Mapping):
            raise ValueError(f"{what}: expected entries by name, or a list of names, found {known!r}")
        known_tasks = [*known, *TASKS, "movie-reviews"]
        strange = [name for name in asked if what == "tasks" and spelling(name) not in map(spelling, known_tasks)]
        if strange:
            raise ValueError(f"unknown task {strange[0]!r}; {near(strange[0], known_tasks)}")
        every, chosen = dict(known), []
        for name in asked:
            for own, entry in _named(what, name, known).items():
                there = every.setdefault(own, entry)
                if what == "students" and there.get("student") != entry["student"]:
                    raise ValueError(one_name(own, there.get("student"), entry["student"]))
                chosen.append(own)
        only[what] = tuple(chosen)
        if every:
            whole[what] = every
    if seeds:
        only["seeds"] = tuple(seeds)
        whole["seeds"] = _with(whole.get("seeds"), seeds)
        for task in only["tasks"] or whole.get("tasks", ()):
            entry = whole["tasks"][task]
            if isinstance(entry, Mapping) and entry.get("seeds"):
                whole["tasks"][task] = {**entry, "seeds": _with(entry["seeds"], seeds)}
    return whole, only


def _named(what: str, name: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """The entry that a flag names: one of the file's, a task in any spelling, or a new one."""
    from egkd.config_data import spelling
    from egkd.experiments.grid import entries

    alike = [own for own in known if what == "tasks" and spelling(own) == spelling(name)]
    own = name if name in known else next(iter(alike), None)
    return entries(what, [name]) if own is None else {own: known[own]}


def _with(seeds: Any, more: Sequence[int]) -> list[Any]:
    """The file's seeds, a number or several, and these."""
    known = list(seeds) if isinstance(seeds, list | tuple) else [] if seeds is None else [seeds]
    return sorted({*known, *more}) if all(isinstance(each, int) for each in known) else known
