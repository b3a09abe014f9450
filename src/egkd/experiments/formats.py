"""Tables as Markdown, LaTeX (booktabs), CSV and a page of HTML."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from egkd.report.wording import NONE

TEMPLATES = Path(__file__).parent / "templates"
STYLE = Path(__file__).parents[1] / "report" / "templates"  # the look of every page of ours
_SIGNS = {"better": "▲", "worse": "▼", "": ""}
_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {c: f"\\{c}" for c in "&%$#_{}"}
_TEX |= {"±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "–": "--", "▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$"}
_TEX |= {"<": r"$<$", ">": r"$>$", "\u00a0": "~", "²": r"$^2$", "∞": r"$\infty$", "’": "'"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A figure in words."""

    text: str = NONE
    spread: str = ""
    """What stands smaller beside it."""
    mark: str = ""
    """`best` or `second`."""
    verdict: str = ""
    """`better` or `worse` than the baseline."""

    @property
    def sign(self) -> str:
        """The verdict as a sign."""
        return _SIGNS[self.verdict]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows by name, columns by name."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything there is to show."""

    verdicts: tuple[str, ...]
    tables: tuple[Table, ...]
    reading: tuple[str, ...]


def markdown(page: Page) -> str:
    """Best is bold, second italic."""
    shown = {"best": "**{}**", "second": "*{}*", "": "{}"}
    parts = [_plain(verdict) for verdict in page.verdicts]
    for table in page.tables:
        lines = [_joined(["method", *table.head]), "|---" + "|---:" * len(table.head) + "|"]
        for name, cells in table.rows:
            texts = [" ".join(filter(None, (shown[c.mark].format(c.text), c.spread, c.sign))) for c in cells]
            lines.append(_joined([name, *texts]))
        parts.append(f"## {_plain(table.title)}\n\n" + "\n".join(lines))
    return "\n\n".join([*parts, "\n".join(f"- {_plain(line)}" for line in page.reading)]) + "\n"


def _joined(fields: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(field) for field in fields) + " |"


def _plain(text: str) -> str:
    """Names may hold what Markdown or HTML would read as its own."""
    escaped = re.sub(r"([|\\`\[\]])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def latex(page: Page) -> str:
    """Best is bold, second underlined; needs the packages booktabs, amssymb and graphicx."""
    shown = {"best": r"\textbf{{{}}}", "second": r"\underline{{{}}}", "": "{}"}

    def cell(one: Cell) -> str:
        spread = rf"{{\scriptsize {_tex(one.spread)}}}" if one.spread else ""
        return " ".join(filter(None, (shown[one.mark].format(_tex(one.text)), spread, _tex(one.sign))))

    parts = ["% \\usepackage{booktabs,amssymb,graphicx}", *map(_tex, page.verdicts)]
    for table in page.tables:
        columns = "l" + "r" * len(table.head)
        head = " & ".join(map(_tex, ["method", *table.head])) + r" \\"
        rows = [" & ".join([_tex(name), *map(cell, cells)]) + r" \\" for name, cells in table.rows]
        if rows and table.rows[0][0] == "teacher":
            rows.insert(1, r"\midrule")
        body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
        start = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(table.title)}}}"]
        parts.append("\n".join([*start, r"\resizebox{\linewidth}{!}{%", *body, "}", r"\end{table}"]))
    return "\n\n".join([*parts, "{\\footnotesize " + "\\par\n".join(map(_tex, page.reading)) + "\\par}"]) + "\n"


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def comma_separated(lines: Sequence[Mapping[str, Any]]) -> str:
    """A line for each, all names in the head; what is missing is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(name for line in lines for name in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _value(value) for name, value in line.items()} for line in lines)
    return out.getvalue()


def _value(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@"):  # a name that a spreadsheet would run
        return f"'{value}"
    return round(value, 6) if isinstance(value, float) else value


def html(page: Page) -> str:
    """A page that needs nothing but a browser: all text is escaped, its own policy forbids scripts and what is elsewhere."""
    environment = Environment(
        loader=FileSystemLoader([TEMPLATES, STYLE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("results.html").render(page=page)
