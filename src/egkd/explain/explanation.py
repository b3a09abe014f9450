"""An explanation of one text: what is saved, printed and shown.

Shapes: U units, C classes (1 for regression).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from jinja2 import Environment, Template
from markupsafe import Markup
from pyarrow import feather
from rich.text import Text

from egkd.text import Kind

_FOR, _AGAINST = (33, 102, 172), (178, 24, 43)  # blue and red: told apart by nearly all colour-blind readers

# What would steer a terminal instead of being read: control characters (but line breaks and tabs), and those that turn the
# direction of writing. Each is shown as one other character.
_STEERING = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_STEERING |= dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)


class Unit(NamedTuple):
    """Where a unit stands in the raw text."""

    part: int
    """0: in `text`, 1: in `text_pair`."""
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """How much every unit of a text speaks for a class, and all it takes to read that number."""

    text: str
    text_pair: str | None = None
    unit: Kind = "word"
    """What units are: words, or the model's own tokens."""
    units: tuple[Unit, ...]
    scores: tuple[float, ...]
    """One per unit, for the target; 0 where hidden."""
    hidden: tuple[bool, ...]
    """Units without a score: cut off, in a token that a neighbour owns, or none of the tokenizer's."""
    truncated: bool = True
    """Whether the text fills all tokens there may be, so that some may be cut off."""
    errors: tuple[float | None, ...] | None = None
    """Standard errors, from methods that sample; None where there was too little to tell."""
    target: int
    """The explained class, 0 in regression."""
    label: str
    """Its name."""
    logits: tuple[float, ...]
    """The model's output for the whole text."""
    method: str
    settings: dict[str, Any]
    diagnostics: dict[str, float] = field(default_factory=dict)

    @property
    def words(self) -> tuple[str, ...]:
        """The units as they stand in the text."""
        parts = (self.text, self.text_pair or "")
        return tuple(parts[unit.part][unit.start : unit.end] for unit in self.units)

    @property
    def prediction(self) -> float:
        """The predicted class, or the output in regression."""
        return self.logits[0] if len(self.logits) == 1 else self.logits.index(max(self.logits))

    @property
    def cut(self) -> tuple[bool, ...]:
        """Units the model did not see: those before the first that has a score, or behind the last, of a text that fills all
        tokens there may be."""
        seen = [
            [place for place, unit in enumerate(self.units) if unit.part == part and not self.hidden[place]] for part in (0, 1)
        ]
        inside = [range(min(places, default=0), max(places, default=-1) + 1) for places in seen]
        return tuple(self.truncated and place not in inside[unit.part] for place, unit in enumerate(self.units))

    @property
    def n_cut(self) -> int:
        """How many units the model did not see."""
        return sum(self.cut)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the words for readers."""
        return {**asdict(self), "units": [list(unit) for unit in self.units], "words": list(self.words)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Explanation":
        """Undo `to_dict`. Raises ValueError for what is no explanation."""
        names = {f.name for f in fields(cls)}
        if not isinstance(values, Mapping):
            raise ValueError(f"this is no saved explanation: found {type(values).__name__}, expected an object")
        values = {"unit": "word", "truncated": True} | dict(values)  # which older files do not name
        if missing := sorted(names - set(values)):
            raise ValueError(f"this is no saved explanation: it has no {', '.join(missing)}")
        own: dict[str, Any] = {name: values[name] for name in names}
        own["units"] = tuple(Unit(*unit) for unit in own["units"])
        for name in ("scores", "hidden", "logits", "errors"):
            own[name] = None if own[name] is None else tuple(own[name])
        return cls(**own)

    def to_terminal(self) -> Text:
        """The text with coloured words, blue for and red against the target, and a line that says what was asked.

        Markup and escape sequences in a text or a label are shown, not obeyed.
        """
        shown, largest = Text(), self._largest()
        for piece, score, cut in self._pieces():
            style = "strike dim" if cut else "" if score is None else _terminal_style(score / largest)
            shown.append(inert(piece), style)
        shown.append(f"\n{inert(self.headline())}", "dim")
        return shown

    def to_html(self) -> Markup:
        """The same as a fragment of HTML with its own styles; everything that comes from the text is escaped."""
        largest = self._largest()
        pieces = [
            (piece, cut, None if score is None else _html_style(score / largest), f"{score or 0:+.4g}")
            for piece, score, cut in self._pieces()
        ]
        return Markup(_template().render(pieces=pieces, headline=self.headline()))

    def headline(self) -> str:
        """What was explained, how, and what to be careful with."""
        notes = [f"{self.method}: for “{self.label}”"]
        if self.n_cut:
            notes.append(f"{self.n_cut} of {len(self.units)} {self.unit}s not seen by the model (text cut)")
        notes += [f"{name.replace('_', ' ')} {value:.3g}" for name, value in self.diagnostics.items()]
        return " · ".join(notes)

    def _pieces(self) -> Iterator[tuple[str, float | None, bool]]:
        """The raw text in order: units with their score, and what stands between them without."""
        parts = (self.text,) if self.text_pair is None else (self.text, self.text_pair)
        for part, text in enumerate(parts):
            if part:
                yield "\n", None, False
            end = 0
            for unit, score, hidden, cut in zip(self.units, self.scores, self.hidden, self.cut, strict=True):
                if unit.part == part:
                    yield text[end : unit.start], None, False
                    own = text[max(end, unit.start) : unit.end]  # tokens of one character share it
                    yield own, None if hidden else score, cut
                    end = max(end, unit.end)
            yield text[end:], None, False

    def _largest(self) -> float:
        return max(map(abs, self.scores), default=0.0) or 1.0


def inert(text: str) -> str:
    """The text with every character that would steer a terminal replaced by one that is only seen; as long as before."""
    return text.translate(_STEERING)


def save(explanations: Sequence[Explanation], path: str | Path) -> None:
    """Write explanations to a `.jsonl` file (one object a line) or an `.arrow` file. Raises ValueError for others."""
    path, rows = Path(path), [explanation.to_dict() for explanation in explanations]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".arrow":
        # Settings and diagnostics differ from method to method, columns cannot: they travel as JSON.
        packed = [{**row, **{name: json.dumps(row[name]) for name in _FREE}} for row in rows]
        feather.write_feather(pa.Table.from_pylist(packed, schema=_SCHEMA), path)
    else:
        raise ValueError(f"{path.name}: explanations are saved as .jsonl or .arrow")


def load(path: str | Path) -> list[Explanation]:
    """Read what `save` wrote. Raises ValueError for other files."""
    path = Path(path)
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            return [Explanation.from_dict(json.loads(line)) for line in lines if line.strip()]
    if path.suffix == ".arrow":
        packed = feather.read_table(path).to_pylist()
        return [Explanation.from_dict({**row, **{name: json.loads(row[name]) for name in _FREE}}) for row in packed]
    raise ValueError(f"{path.name}: explanations are read from .jsonl or .arrow")


_FREE = ("settings", "diagnostics")
_SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("text_pair", pa.string()),
        ("unit", pa.string()),
        ("units", pa.list_(pa.list_(pa.int32()))),
        ("words", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float64())),
        ("hidden", pa.list_(pa.bool_())),
        ("truncated", pa.bool_()),
        ("errors", pa.list_(pa.float64())),
        ("target", pa.int32()),
        ("label", pa.string()),
        ("logits", pa.list_(pa.float64())),
        ("method", pa.string()),
        ("settings", pa.string()),
        ("diagnostics", pa.string()),
    ]
)

_HTML = """<div class="explanation"><p style="white-space:pre-wrap;line-height:1.9">
{%- for piece, cut, style, title in pieces -%}
{%- if cut %}<s style="opacity:.5" title="not seen by the model">{{ piece }}</s>
{%- elif style %}<span style="{{ style }}" title="{{ title }}">{{ piece }}</span>
{%- else %}{{ piece }}{% endif -%}
{%- endfor -%}
</p><p><small>{{ headline }}</small></p></div>"""


@cache
def _template() -> Template:
    return Environment(autoescape=True).from_string(_HTML)


def _blend(share: float) -> tuple[int, int, int]:
    """From white to the full colour of its sign."""
    strength, colour = min(1.0, abs(share)), _FOR if share > 0 else _AGAINST
    red, green, blue = (round(255 + (channel - 255) * strength) for channel in colour)
    return red, green, blue


def _ink(share: float) -> str:
    return "white" if abs(share) > 0.6 else "black"


def _html_style(share: float) -> str:
    return f"background:rgb{_blend(share)};color:{_ink(share)};border-radius:3px;padding:0 2px"


def _terminal_style(share: float) -> str:
    return f"{_ink(share)} on rgb({','.join(map(str, _blend(share)))})"
