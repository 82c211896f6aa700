"""Text from outside as safe markup: everything escaped once, what is invisible shown."""

import re
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from .numbers import shown
from .visible import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .result import Check, Result


def markup(text: str) -> str:
    """Prose as HTML, in which what had to be spelt out stands in a box.

    What is written from right to left is kept from turning the words and numbers around it, and
    of what is no word any more only the beginning is told.
    """
    text = _ENDLESS.sub(r"\1…", text)
    return _LEFTWARD.sub(r"<bdi>\g<0></bdi>", visible(escape(text), _BOX))


def verbatim(text: str) -> str:
    """A token or another exact string as HTML; its spaces are spelt out as well."""
    return visible(escape(text), _BOX, spaces=True)


def excerpt(text: str) -> str:
    """An exact string as HTML, and no more of it than anyone reads."""
    rest = len(text) - LETTERS
    return verbatim(text[:LETTERS]) + (f"<i>… and {shown(rest)} more</i>" if rest > 0 else "")


def called(result: "Result") -> str:
    """What a result is called among those of other packs."""
    return f"{result.title}, {result.pack}" if result.pack else result.title


def table(result: "Result", rows: int) -> str:
    """The first rows of the columns as an HTML table, with units and a caption."""
    columns = result.columns()
    heads = "".join(_head(result, name) for name in columns)
    body = "".join(
        f"<tr>{''.join(_cell(result, name, row) for name in columns)}</tr>\n"
        for row in range(min(rows, result.rows()))
    )
    return (
        f"<table><caption>{markup(called(result))}: {_extent(result.rows(), rows)}</caption>\n"
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}</tbody></table>"
    )


def cell(result: "Result", rows: int = 10) -> str:
    """A result as a notebook shows it: sentence, figure and notes; folded, its first rows."""
    from .figures import WIDTH

    figure = result.figure()
    # An image, for where notebooks are only looked at, drawings within markup are taken out.
    drawing = _image(figure, result.alt(), figure.get_figwidth() / WIDTH) if figure else ""
    notes = "".join(f"<li>{markup(note)}</li>" for note in result.notes)
    parts = [
        f"<h3>{markup(result.title)}{_on(result)}</h3>",
        f"<p>{markup(result.summary())}</p>",
        drawing,
        f"<ul>{notes}</ul>" if notes else "",
        _folded(result, rows) if result.columns() else "",
    ]
    return f'<div class="driftlens">{_SCOPED}{"".join(parts)}</div>'


def listed(results: Sequence["Result"], checks: Sequence["Check"] = ()) -> str:
    """Results as a notebook shows many: a line for each, after what the gates have against them."""
    troubles = "".join(
        f"<li>{check.status}: {markup(check.name)}: {markup(check.detail)}</li>"
        for check in checks
        if check.status in ("warn", "fail")
    )
    rows = "".join(
        f'<tr><td class="s"><code>{escape(one.kind)}</code></td><td class="s">{markup(one.pack)}'
        f'</td><td class="s">{markup(one.summary())}</td></tr>\n'
        for one in results
    )
    heads = "".join(f'<th scope="col" class="s">{name}</th>' for name in ("kind", "pack", "found"))
    gates = f"<ul>{troubles}</ul>" if troubles else ""
    return (
        f'<div class="driftlens">{_SCOPED}{gates}<table><thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody></table></div>"
    )


def _on(result: "Result") -> str:
    return f" <small>on {markup(result.pack)}</small>" if result.pack else ""


def _image(figure: "Figure", alt: str, widths: float) -> str:
    from .figures import small_png

    code = b64encode(small_png(figure)).decode()
    return (
        f'<img alt="{escape(visible(alt))}" width="{round(720 * widths)}" '
        f'src="data:image/png;base64,{code}">'
    )


def _folded(result: "Result", rows: int) -> str:
    return (
        f"<details><summary>The table: {_extent(result.rows(), rows)}</summary>"
        f"{table(result, rows)}</details>"
    )


_SCOPED = (
    "<style scoped>.driftlens .s{text-align:left!important}.driftlens .below{color:#8a929a}"
    ".driftlens caption{display:none}.driftlens details{overflow-x:auto}</style>"
)
"""What a page says in its own style, for one cell; where it is taken out, nothing is lost."""


def _head(result: "Result", name: str) -> str:
    side = "" if result.columns()[name].dtype.kind in "iuf" else ' class="s"'
    return f'<th scope="col"{side}>{markup(result.label(name))}</th>'


def _cell(result: "Result", name: str, row: int) -> str:
    """A cell of the table, greyed where its number drowns in the noise."""
    what = result.columns()[name][row]
    if isinstance(what, str):
        return f'<td class="s">{excerpt(what) or "<i>empty</i>"}</td>'
    if what is None:
        return '<td class="s"></td>'
    if isinstance(what, np.bool_):
        return f'<td class="s">{"yes" if what else "no"}</td>'
    drowned = abs(what) <= result.floor.get(name, -1)
    mark = ' class="below" title="below the noise floor"' if drowned else ""
    return f"<td{mark}>{shown(what.item())}</td>"


def _extent(total: int, rows: int) -> str:
    counted = f"{total} {'row' if total == 1 else 'rows'}"
    return f"the first {rows} of {counted}" if total > rows else counted


LETTERS = 300
"""Letters of a string in a cell or a token; the file has them all."""

_ENDLESS = re.compile(rf"(\S{{{LETTERS}}})\S+")

_LETTER = "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]"
_LEFTWARD = re.compile(rf"{_LETTER}+(?:[\s,;:.!?\"'-]*{_LETTER}+)*")
"""Hebrew, Arabic and the others that are written from right to left."""

_BOX = '<span class="c">{}</span>'
