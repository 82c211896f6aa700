"""Our docstrings, with axes in brackets and Google's sections, as what Sphinx reads."""

import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from docutils.utils.math.unichar2tex import uni2tex_table
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util.logging import getLogger

LOG = getLogger(__name__)

SPAN = re.compile(
    r"(:[\w:]+:)?`(?:[^`\n]|\n(?!\s*\n))*`"
    r"|``.+?``"
    r"|(?<![\w*\\\[])\*\w(?:[^*\n\[\]]{0,60}\w)?\*(?![\w*])"
    r"|^ +\w+_(?:, \w+_)*:(?= )",
    re.MULTILINE,
)
"""What is meant as markup: names, *stress*, and attributes that end in an underscore."""

MARK = re.compile(r"(?<!\\)([*|])|(?<=\w)(_)(?!\w)")


def escaped(lines: Sequence[str]) -> list[str]:
    """A docstring of ours as reStructuredText, in which stars, bars and indices are no markup.

    `[*, vocab]`, `T*` and `|x|` are what they say. Formulas, code and names stay as they are.
    """
    pieces: list[tuple[bool, list[str]]] = []
    for line, verbatim in _verbatim(lines):
        if not pieces or pieces[-1][0] != verbatim:
            pieces.append((verbatim, []))
        pieces[-1][1].append(line)
    return [
        line
        for verbatim, some in pieces
        for line in (some if verbatim else _plain("\n".join(some)).split("\n"))
    ]


def _verbatim(lines: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it belongs to a formula, to code or to the rule of a table."""
    formula, doctest, fenced = -1, False, False
    for line in lines:
        depth, text = len(line) - len(line.lstrip()), line.strip()
        if text.startswith("```"):
            fenced = not fenced
            yield from (
                ((f"{' ' * depth}.. code-block:: python", True), ("", True)) if fenced else ()
            )
            continue
        if formula >= 0 and text and depth <= formula:
            formula = -1
        if text.startswith(".. math::"):
            formula = depth
        doctest = bool(text) and (doctest or text.startswith(">>>"))
        kept = fenced or formula >= 0 or doctest or text.startswith("===")
        yield f"    {line}" if fenced and text else line, kept


def _plain(text: str) -> str:
    parts, at = [], 0
    for span in SPAN.finditer(text):
        parts += [MARK.sub(r"\\\1\2", text[at : span.start()]), span.group()]
        at = span.end()
    return "".join([*parts, MARK.sub(r"\\\1\2", text[at:])])


def read(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make a docstring of ours, with Google's sections, what Sphinx reads."""
    # Napoleon takes "[layer] share: …" below a field for a type and what is of it.
    kind = "object" if what in ("attribute", "data", "property") else what
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()
    lines[:] = GoogleDocstring(
        escaped(lines), Config(napoleon_use_rtype=False), app, kind, name, obj, options
    ).lines()


def skipped(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what scikit-learn puts into its estimators."""
    return True if home_of(obj) and not home_of(obj).startswith("driftlens") else None


def home_of(what: Any) -> str:
    """Where a class or a function was defined; nothing of anything else."""
    return what.__module__ if inspect.isclass(what) or inspect.isroutine(what) else ""


# Formulas, as MathML: no script, and nothing from elsewhere


def math(self: Any, node: nodes.math) -> None:
    """Write a formula in the line."""
    self.body.append(_mathml(node))
    raise nodes.SkipNode


def math_block(self: Any, node: nodes.math_block) -> None:
    """Write a formula of its own."""
    self.body.append(f'<div class="math">{_mathml(node)}</div>')
    raise nodes.SkipNode


def _mathml(node: nodes.Element) -> str:
    text, block = node.astext(), isinstance(node, nodes.math_block)
    try:
        return latex2mathml.tex2mathml(text.translate(uni2tex_table), as_block=block)
    except MathError as error:
        LOG.warning("%s in %s", error, text, location=node)
        return nodes.literal("", text).astext()
