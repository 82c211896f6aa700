"""Text from outside as safe markup: everything escaped once, what is invisible shown."""

import re
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from .numbers import shown
from .visible import visible

if TYPE_CHECKING:
    from .result import Result


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
    """A result as a notebook shows it: its sentence, its figure and its first rows."""
    from .figures import svg

    figure = result.figure()
    parts = [
        f"<h3>{markup(result.title)}</h3>",
        f"<p>{markup(result.summary())}</p>",
        svg(figure, result.title, result.alt(), name=result.pack) if figure else "",
        table(result, rows) if result.columns() else "",
    ]
    return f'<div class="driftlens">{"".join(parts)}</div>'


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
