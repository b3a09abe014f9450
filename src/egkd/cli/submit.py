"""`egkd submit`: predictions of an experiment's students for GLUE's test server."""

from pathlib import Path
from typing import Annotated

import typer

from egkd.cli import options as o


def submit(
    experiment: Annotated[Path, typer.Argument(help="Folder of `egkd glue`.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The zip to write.")],
    method: Annotated[str, typer.Option(help="Whose students, like perturbation.")],
    student: Annotated[str | None, typer.Option(help="Which student, where the experiment has several.")] = None,
    glue_dir: o.GlueDir = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Answer GLUE's test sets by a method's best seed on each task, in the form that gluebenchmark.com takes.

    Example: `egkd submit runs/glue --method perturbation --glue-dir glue --out perturbation.zip`
    """
    from egkd.config import near, read_yaml
    from egkd.experiments.grid import GridConfig
    from egkd.experiments.planning import GRID
    from egkd.experiments.results import records

    grid = GridConfig.of(read_yaml(experiment / GRID))
    name = student or next(iter(grid.students))
    if name not in grid.students:
        raise ValueError(f"unknown student {name!r}; {near(name, grid.students)}")
    if student is None and len(grid.students) > 1:
        raise ValueError(f"the experiment has the students {', '.join(grid.students)}; choose one with --student")
    from egkd.cli.progress import calm
    from egkd.experiments.submission import Entry, submit

    calm()
    entry = Entry(student=name, method=method, out=out)
    submit(records(grid, experiment), entry, glue_dir=glue_dir, trust_remote_code=trust_remote_code, tell=typer.echo)
    typer.echo(f"submission: {out}")
