"""One run folder, or several side by side, into one HTML page that needs nothing but a browser."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from egkd.report import wording
from egkd.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, charts, strips
from egkd.report.comparison import columns, comparison, explainer_names, run_names, students
from egkd.report.run import Run, read_run
from egkd.report.verdict import differences, verdict
from egkd.report.words import gallery
from egkd.runs import write_text

__all__ = ["Run", "read_run", "write_report"]

TEMPLATES = Path(__file__).parent / "templates"


def write_report(runs: Sequence[Path], out: Path, title: str | None = None) -> Path:
    """Write one self-contained page about `runs` (their folders) to `out` and return its path.

    Everything that comes from a run is escaped, and the page's own policy forbids scripts and anything from elsewhere.

    Raises ValueError, in one line, when a folder holds no sound run or `out` cannot be written.
    """
    page = render([read_run(Path(folder)) for folder in runs], title)
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, page)
    except OSError as error:
        raise ValueError(f"the report cannot be written to {out} ({error}); choose another place") from error
    return out


def render(runs: Sequence[Run], title: str | None = None) -> str:
    """The page as text.

    Raises ValueError without any run.
    """
    if not runs:
        raise ValueError("a report needs at least one run; give the output folder of one")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    names = [column.title for column in students(runs)]
    losses, evaluations = charts(runs, names)
    return environment.get_template("report.html").render(
        title=title or _title(runs),
        verdicts=[verdict(run) for run in runs],
        differences=differences(runs),
        columns=columns(runs),
        sections=comparison(runs),
        conditions=_conditions(runs),
        strips=strips(runs, names),
        names=names,
        losses=losses,
        evaluations=evaluations,
        gallery=gallery(runs),
        glossary=_glossary(runs),
        runs=list(zip(run_names(runs), runs, strict=True)),
        changed=_changed(runs),
        regression=any(run.metrics.task.kind == "regression" for run in runs),
        box={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
    )


def _title(runs: Sequence[Run]) -> str:
    tasks = list(dict.fromkeys(run.metrics.task.name for run in runs if run.metrics.task.name))
    who = "teacher and student" if len(runs) == 1 else "teacher and students"
    return f"{wording.listed(tasks)}: {who}" if tasks else who.capitalize()


def _conditions(runs: Sequence[Run]) -> list[str]:
    """How the times were taken, each way once."""
    models = [model for run in runs for model in (run.metrics.teacher, run.metrics.student)]
    told = [", ".join(f"{name.replace('_', ' ')} {value}" for name, value in m.latency.conditions.items()) for m in models]
    return [line for line in dict.fromkeys(told) if line]


def _glossary(runs: Sequence[Run]) -> list[wording.Measure]:
    """The measures this page shows, in the order of the table."""
    found: dict[str, wording.Measure] = {}
    for run in runs:
        student = run.metrics.student
        shown = [name for scores in student.scores.values() for name in scores]
        shown += [name for figures in student.fidelity.values() for name in figures]
        shown += [name for groups in student.explanations.values() for figures in groups.values() for name in figures]
        shown += [name for figures in student.reasons.faithfulness.values() for name in figures]
        found |= {name: wording.measure(name) for name in shown}
    explainers = [wording.EXPLAINERS[name] for name in explainer_names(runs) if name in wording.EXPLAINERS]
    return [entry for entry in (*found.values(), *explainers) if entry.meaning]


def _changed(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Settings in which the runs differ, with their values; nothing is said of one run alone."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    rows = [(key, [run.settings.get(key, wording.NONE) for run in runs]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]
