"""The tables of an experiment: Markdown, LaTeX, CSV and HTML, all made from `glue.json` and from nothing else."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from egkd.experiments.formats import Cell, Page, Table, comma_separated, html, latex, markdown
from egkd.experiments.notes import reading, verdicts
from egkd.experiments.records import Record
from egkd.experiments.statistics import RESAMPLES
from egkd.experiments.summary import summarise
from egkd.report.wording import explainer, number
from egkd.runs import read_json, write_json, write_text

NAME = "glue"


def write_results(
    records: Sequence[Record],
    folder: Path,
    *,
    settings: Mapping[str, Any],
    baseline: str = "plain",
    resamples: int = RESAMPLES,
) -> None:
    """`glue.json` and the tables into `folder`, from the cells that are finished.

    Raises ValueError, in one line, where predictions are missing or runs of one seed saw different examples. Cost: for eight
    methods of five seeds a second on 1,000 examples of two classes, ten with Spearman's correlation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{NAME}.json", summarise(records, settings, baseline, resamples))
    remake(folder / f"{NAME}.json", folder)


def remake(json_file: Path, folder: Path) -> None:
    """The tables anew, from a `glue.json` alone. Raises ValueError where it is none."""
    try:
        found = read_json(json_file)
        page = Page(verdicts=tuple(verdicts(found)), tables=tuple(tables(found)), reading=tuple(reading(found)))
        texts = {
            "md": markdown(page),
            "tex": latex(page),
            "csv": comma_separated(_flat(found)),
            "html": html(page),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{json_file} holds no results ({type(error).__name__}: {error}); make it with egkd glue") from None
    folder.mkdir(parents=True, exist_ok=True)
    for ending, text in texts.items():
        write_text(folder / f"{NAME}.{ending}", text)


def tables(found: Mapping[str, Any]) -> list[Table]:
    """All tables: for each student its scores, the differences to the baseline, and how far its
    answers and each explainer's scores agree with the teacher's."""
    several = len(found["students"]) > 1
    chosen = []
    for student, methods in found["students"].items():
        of = f" of {student}" if several else ""
        chosen.append(_scores(found, methods, f"Scores{of}"))
        chosen.append(_differences(found, methods, f"Difference to {found['baseline']}{of}"))
        chosen.append(_by_task(found, methods, ("fidelity",), f"Agreement of answers{of}", digits=3))
        for name in _explainers(methods):
            chosen.append(_by_task(found, methods, ("explanations", name), f"Agreement by {explainer(name)}{of}"))
    return [table for table in chosen if table.rows]


def _scores(found: Mapping[str, Any], methods: Mapping[str, Any], title: str) -> Table:
    """Scores by task, and on average with what they cost."""
    tasks, explainers = _tasks(found, methods), _explainers(methods)
    reached = list(methods.get(found["baseline"], {"average": {"tasks": []}})["average"]["tasks"])
    head = [*tasks, "average", "difference", "p", *map(explainer, explainers), "cost"]
    teacher = [Cell(text=number(found["tasks"][task]["teacher"], 1)) for task in tasks]
    mean = sum(found["tasks"][task]["teacher"] for task in reached) / len(reached) if reached else None
    ceilings = methods.get(found["baseline"], {"average": {"ceilings": {}}})["average"]["ceilings"]
    twins = [
        Cell() if ceilings.get(name) is None else Cell(text=number(ceilings[name], 2), spread="twin") for name in explainers
    ]
    teacher += [Cell(text=number(mean, 1)), Cell(), Cell(), *twins, Cell()]
    rows = [("teacher", tuple(teacher))]
    for method, one in methods.items():
        average, difference = one["average"], one["average"]["difference"]
        cells = [_score(one["tasks"].get(task), found["settings"]) for task in tasks]
        missing = len(average["tasks"]) < len(reached)
        cells.append(
            Cell(
                text=number(average["mean"], 1),
                spread=f"{len(average['tasks'])} of {len(reached)} tasks" if missing else "",
                mark=average["mark"],
            )
        )
        cells.append(_gain(difference))
        cells.append(Cell() if difference is None else Cell(text=_p(difference["p_holm"])))
        cells += [Cell(text=number(average["explanations"].get(name), 2)) for name in explainers]
        cells.append(Cell() if average["cost"] is None else Cell(text=f"{number(average['cost'], 2)} ×"))
        rows.append((method, tuple(cells)))
    return Table(title=title, head=tuple(head), rows=tuple(rows))


def _score(cell: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> Cell:
    """`81.0 ± 0.4 (3)`: mean, standard deviation over seeds, and their number, of how many where some are missing."""
    if cell is None:
        return Cell(spread="(0)")
    done, planned = len(cell["seeds"]), cell["planned"]
    seeds = f"({done})" if planned in (None, done) else f"({done} of {planned})"
    spread = "" if cell["sd"] is None else f"± {number(cell['sd'], 1)} "
    verdict = (cell["difference"] or {}).get("verdict", "")
    return Cell(text=number(cell["mean"], 1), spread=f"{spread}{seeds}", mark=cell["mark"], verdict=verdict)


def _tasks(found: Mapping[str, Any], methods: Mapping[str, Any]) -> list[str]:
    return [task for task in found["tasks"] if any(task in one["tasks"] for one in methods.values())]


def _explainers(methods: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for one in methods.values() for name in one["average"]["explanations"]))


def _differences(found: Mapping[str, Any], methods: Mapping[str, Any], title: str) -> Table:
    tasks, rows = _tasks(found, methods), []
    for method, one in methods.items():
        if method == found["baseline"]:
            continue
        cells = [_gain((one["tasks"].get(task) or {}).get("difference"), with_p=True) for task in tasks]
        rows.append((method, (*cells, _gain(one["average"]["difference"], with_p=True))))
    return Table(title=title, head=(*tasks, "average"), rows=tuple(rows))


def _gain(difference: Mapping[str, Any] | None, with_p: bool = False) -> Cell:
    """`+0.62 [−0.21, +1.40] p 0.03`."""
    if difference is None:
        return Cell()
    low, high = _signed(difference["low"]), _signed(difference["high"])
    spread = f"[{low}, {high}]" + (f" p {_p(difference['p_holm'])}" if with_p else "")
    return Cell(text=_signed(difference["mean"]), spread=spread, verdict=difference["verdict"])


def _by_task(found: Mapping[str, Any], methods: Mapping[str, Any], path: Sequence[str], title: str, digits: int = 2) -> Table:
    """What stands at `path` in every cell: mean ± standard deviation over seeds, and the average over tasks."""
    tasks, rows = [task for task in _tasks(found, methods) if found["tasks"][task]["beside"] is None], []
    for method, one in methods.items():
        cells = [_spread(_at(one["tasks"].get(task), path) or [], digits) for task in tasks]
        rows.append((method, (*cells, Cell(text=number(_at(one["average"], path), digits)))))
    return Table(title=title, head=(*tasks, "average"), rows=tuple(rows))


def _at(cell: Any, path: Sequence[str]) -> Any:
    for name in path:
        cell = (cell or {}).get(name)
    return cell


def _spread(values: Sequence[float | None], digits: int) -> Cell:
    known = [value for value in values if value is not None]
    spread = f"± {number(statistics.stdev(known), digits)}" if len(known) > 1 else ""
    return Cell(text=number(_mean(known), digits), spread=spread)


def _signed(value: float | None) -> str:
    text = number(value, 2)
    return f"+{text}" if value is not None and value > 0 and text.strip("0.") else text


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else number(value, 3)


def _flat(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One line for each student, method and task, and for each average; `teacher` is a method too."""
    lines: list[dict[str, Any]] = [
        {"student": "", "method": "teacher", "task": task, "mean": one["teacher"]} for task, one in found["tasks"].items()
    ]
    for student, methods in found["students"].items():
        for method, one in methods.items():
            for task, cell in [*one["tasks"].items(), ("average", one["average"])]:
                explained = {
                    f"explanations/{name}": value if task == "average" else _mean(value)
                    for name, value in cell["explanations"].items()
                }
                lines.append(
                    {
                        "student": student,
                        "method": method,
                        "task": task,
                        "seeds": len(cell["seeds"]) if "seeds" in cell else None,
                        "mean": cell["mean"],
                        "sd": cell.get("sd"),
                        **{f"difference/{name}": value for name, value in (cell["difference"] or {}).items()},
                        "mark": cell["mark"],
                        "fidelity": cell["fidelity"] if task == "average" else _mean(cell["fidelity"]),
                        **explained,
                        "cost": cell["cost"],
                        "seconds": _mean(cell.get("seconds", [])),
                    }
                )
    return lines


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
