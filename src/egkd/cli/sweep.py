"""`egkd sweep`: as many trials for plain distillation as for every guided method."""

from pathlib import Path
from typing import Annotated

import typer

from egkd.cli import options as o


def sweep(
    settings: Annotated[Path, typer.Argument(help="Base run, methods and what varies, in YAML.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the sweep; the same command resumes or joins it.")],
    trials: Annotated[int | None, typer.Option(help="Runs of each method (20). May be raised later.")] = None,
    set_: o.Set = None,
) -> None:
    """Choose settings fairly: equally many trials of every method, judged on rows held out of train, never on dev.

    Start the same command twice, also on machines that share the folder, for two workers; a killed worker's trial is taken
    up by the next one. OUT/results has every trial, the values chosen, and a grid.yaml that runs them on the dev set.

    Example: `egkd sweep examples/sweep.yaml --out runs/sweep`, then `egkd glue runs/sweep/results/grid.yaml --out runs/tuned`
    """
    from egkd.config import override, read_yaml
    from egkd.experiments.space import SweepConfig

    given = read_yaml(settings) | ({"trials": trials} if trials is not None else {})
    if isinstance(given.get("methods"), list):
        given["methods"] = {str(name): {} for name in given["methods"]}
    chosen = override(given, set_ or [])
    config = SweepConfig.of(chosen)
    from functools import partial

    from egkd import pipeline
    from egkd.cli.progress import bars, calm, first_console
    from egkd.experiments import sweep as sweeping
    from egkd.experiments.chosen import best
    from egkd.experiments.space import spelled

    console = first_console()
    sweeping.check_runs(config, out)
    calm()
    sweeping.check_sources(config, out)
    if config.base.get("teacher"):
        console.print(pipeline.MISLEADING)
    with bars(console) as progress:
        run = partial(pipeline.distill, progress=progress)
        teach = partial(pipeline.teach, progress=progress)
        found = sweeping.sweep(config, out, run, teach=teach, tell=console.print)
    for method, its in found.items():
        trial = best(its)
        told = "no trial has a score" if trial is None else f"{trial.score:.4f} with {spelled(trial.values) or 'no values'}"
        console.print(f"{method}: {told}")
    console.print(f"results: {out / 'results'}")
