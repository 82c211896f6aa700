"""The page: one self-contained file, in which everything from outside is escaped once."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from inspect import cleandoc
from itertools import groupby
from math import isfinite, isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from driftlens.results import (
    Check,
    DocumentView,
    Estimate,
    Result,
    TextView,
    TokenView,
    multiple,
    shown,
)
from driftlens.results import markup as marks
from driftlens.results.markup import called
from driftlens.results.visible import visible
from driftlens.versions import own

if TYPE_CHECKING:
    from markupsafe import Markup

    from .report import Report

ROWS = 100
"""Rows of a table that the page shows; the file holds them all."""

LONG = 200
"""Letters from which a verdict is set smaller."""

HUES = 5
"""Depths of colour of a token."""

TITLE = 600
"""Letters of what is told of a token."""

OPEN = 2
"""Documents of a text view that stand open."""

STATUS = {"pass": "✓", "warn": "!", "fail": "✗", "skip": "–"}


class KeyFigure(NamedTuple):
    """A headline figure as the page shows it."""

    name: str
    number: str
    unit: str
    against_floor: str
    below: bool


@dataclass(frozen=True)
class Section:
    """A result, and what goes with it on the page."""

    name: str
    result: Result
    drawing: str
    file: str | None

    def told(self) -> str:
        """What it is called where it stands beside those of other packs."""
        return called(self.result)

    def numbers(self) -> list[KeyFigure]:
        """The headline figures, then the facts that are numbers."""
        estimates = self.result.estimates()
        return [
            _key_figure(
                self.result, name, estimates.get(name, Estimate(getattr(self.result, name)))
            )
            for name in self.result.values()
        ]

    def has_floor(self) -> bool:
        """Whether any figure can be held against the noise."""
        return any(figure.against_floor for figure in self.numbers())

    def facts(self) -> dict[str, Any]:
        """The facts that are no numbers."""
        facts = self.result.to_json()["facts"].items()
        return {name: fact for name, fact in facts if fact and name not in self.result.unsaid}

    def explanation(self) -> list[tuple[str, str]]:
        """How it was measured: each paragraph, and whether it is prose or a formula."""
        paragraphs = re.split(r"\n\s*\n", cleandoc(self.result.how))
        return [
            ("pre", cleandoc(text)) if text.startswith("  ") else ("p", " ".join(text.split()))
            for text in paragraphs
            if text.strip()
        ]


def page(
    report: "Report",
    names: Sequence[str],
    drawings: Sequence[str],
    files: Sequence[str | None],
) -> str:
    """The page, with its style and its figures inside it.

    Args:
        report: What to show.
        names: [result] a name that is used once.
        drawings: [result] SVG, or nothing.
        files: [result] where its whole table is, or None.
    """
    rows = zip(names, report.results, drawings, files, strict=True)
    sections = [Section(*row) for row in rows]
    return _template().render(
        over=report.results[0].over if report.results else Result.over,
        title=report.title,
        verdict=report.verdict(),
        key_figures=key_figures(sections),
        checks=report.checks,
        troubles=[check for check in report.checks if check.status == "fail"],
        packs=[(pack, list(group)) for pack, group in groupby(sections, _pack)],
        run=report.run,
        pages=list(_pages(report.run or {})),
    )


def key_figures(sections: Sequence[Section]) -> list[KeyFigure]:
    """The first four figures of the result that opens the verdict."""
    results = [section.result for section in sections if _pack(section) == _pack(sections[0])]
    first = [result for result in results if result.headline()][:1]
    return [
        _key_figure(result, name, estimate)
        for result in first
        for name, estimate in list(result.estimates().items())[:4]
    ]


def text(view: TextView) -> "Markup":
    """The documents of a view, each token in the colour of its value."""
    from markupsafe import Markup

    deepest = _deepest(view)
    documents = "".join(
        _document(document, deepest, opened=number < OPEN)
        for number, document in enumerate(view.documents)
    )
    return Markup(_legend(view, deepest) + documents)


def _key_figure(result: Result, name: str, estimate: Estimate) -> KeyFigure:
    floor, number = result.floor.get(name, 0.0), estimate.value
    known = isfinite(number) and isfinite(floor) and floor > 0
    below = known and not result.above_floor(name)
    times = f"{multiple(abs(number) / floor)} the noise floor" if known else ""
    against = f"below the noise floor of {shown(floor, 2)}" if below else times
    return KeyFigure(name.replace("_", " "), str(estimate), result.unit(name), against, below)


NEIGHBOUR = re.compile(r"(\.\./\.\.|stages/[\w-]+)/index\.html")
"""Pages that may be linked: those that were written with this one."""


def _pages(run: Any) -> Iterator[tuple[str, str]]:
    """What a link says and where it leads, for each page of a series beside this one."""
    for said in run.get("pages") or ():
        if NEIGHBOUR.fullmatch(str(said.get("page"))):
            yield str(said["title"]), str(said["page"])


def _pack(section: Section) -> str:
    return section.result.pack


def _deepest(view: TextView) -> float:
    """The value from which the colour is deepest: all but the wildest two in a hundred are less."""
    sizes = [abs(t.value) for d in view.documents for t in d.tokens if isfinite(t.value)]
    return max(0.1, float(np.quantile(sizes, 0.98))) if sizes else 0.1


def _document(document: DocumentView, deepest: float, *, opened: bool) -> str:
    tokens = "".join(_token(token, deepest) for token in document.tokens)
    return (
        f'<details class="doc"{" open" if opened else ""}>'
        f"<summary>{marks.markup(document.label)}</summary>"
        f'<p class="text" dir="auto">{tokens}</p></details>\n'
    )


def _token(token: TokenView, deepest: float) -> str:
    seen = marks.excerpt(token.text).replace("⏎</span>", "⏎</span><br>") or _NOTHING
    told = visible(token.title or f"{shown(token.value, 3)} nats")[:TITLE].replace("⏎", "\n")
    hue = _hue(token.value, deepest)
    return f'<span class="t {hue}" tabindex="-1" title="{escape(told)}">{seen}</span>'


_NOTHING = '<span class="c">empty</span>'


def _hue(value: float, deepest: float) -> str:
    """The class of a token: w for worse or b for better, with a depth, or n for unknown."""
    if isnan(value):
        return "n"
    depth = min(HUES, int(abs(value) / deepest * HUES + 0.5))
    return f"{'w' if value > 0 else 'b'}{depth}" if depth else "z"


def _legend(view: TextView, deepest: float) -> str:
    def sample(side: str) -> str:
        depths = range(1, HUES + 1)
        return "".join(f'<span class="t {side}{depth}"> </span>' for depth in depths)

    below = f"{sample('b')} {escape(view.below)} · " if view.below else ""
    return (
        f'<p class="legend">{sample("w")} {escape(view.above)} · {below}'
        f'deepest from {shown(deepest, 2)} nats · <span class="t n">dotted</span> not scored. '
        "Point at a token, or tap it, for what is known of it.</p>\n"
    )


def _facts(run: Any) -> Iterator[tuple[str, Any]]:
    """Name and content of each fact of a run, without those that say nothing."""
    return ((name, what) for name, what in run.items() if what not in (None, "", [], {}))


def _shape(what: Any) -> str:
    """How a fact is laid out: as a list of names, as a table, or in a line."""
    if isinstance(what, dict):
        return "list"
    rows = isinstance(what, list) and what and all(isinstance(row, dict) for row in what)
    return "table" if rows else "line"


def _line(what: Any) -> str:
    if isinstance(what, list | tuple):
        return ", ".join(map(_line, what))
    return shown(what) if isinstance(what, float) else str(what)


def _keys(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Every name in the rows, in the order in which they turn up."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _placed(svg: str) -> str:
    """A drawing in the page, which knows how wide it is drawn, to leave its letters legible."""
    svg = svg.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)
    width = re.search(r'width="([\d.]+)pt"', svg)
    return svg.replace('style="', f'style="--width: {width[1]}; ', 1) if width else svg


def _told(paragraph: str) -> str:
    """A paragraph of how it was measured, with its *stress* and its `names` set apart."""
    text = re.sub(r"\*(\w[^*]*\w)\*", r"<em>\1</em>", marks.markup(paragraph))
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)


def _tally(checks: Sequence[Check]) -> str:
    words = {"pass": "passed", "warn": "with a warning", "fail": "failed", "skip": "skipped"}
    counts = {status: sum(c.status == status for c in checks) for status in words}
    return ", ".join(f"{count} {words[status]}" for status, count in counts.items() if count)


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folder = Path(__file__).with_name("templates")
    env = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    # What these give is markup already; autoescape would escape it a second time.
    env.filters["prose"] = lambda text: Markup(marks.markup(str(text)))
    env.filters["told"] = lambda text: Markup(_told(text))
    env.filters["verbatim"] = lambda text: Markup(marks.verbatim(str(text)))
    env.filters["table"] = lambda result: Markup(marks.table(result, ROWS))
    env.filters["drawing"] = lambda svg: Markup(_placed(svg))
    env.filters |= {"text": text, "facts": _facts, "shape": _shape, "line": _line, "keys": _keys}
    env.filters |= {"tally": _tally, "words": lambda name: name.replace("_", " ")}
    env.globals |= {"STATUS": STATUS, "ROWS": ROWS, "LONG": LONG, "version": own()}
    env.globals["css"] = Markup((Path(__file__).with_name("report.css")).read_text("utf-8"))
    return env.get_template("report.html.j2")
