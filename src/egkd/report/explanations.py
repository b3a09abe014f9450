"""Explanations of many texts as one HTML page that needs nothing but a browser."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from egkd.runs import write_text

_TEMPLATES = Path(__file__).parent / "templates"
_BLUE, _RED = "background:rgb(33,102,172);color:white", "background:rgb(178,24,43);color:white"


def write_explanations(
    path: Path, title: str, about: Sequence[tuple[str, str]], sections: Sequence[tuple[str, Sequence[Markup]]]
) -> Path:
    """Write the page: what was asked, then a heading for each text and its explanations (`Explanation.to_html`).

    Everything but those fragments is escaped here, and the page's own policy forbids scripts and anything from elsewhere.
    """
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("explanations.html").render(
        title=title, about=about, sections=sections, blue=_BLUE, red=_RED
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page + "\n")
    return path
