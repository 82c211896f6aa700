"""What the code says of itself, as pages: methods, commands, the schema, public names.

Nothing is written down twice: when the code changes, so does the next build.
"""

from docutils import nodes
from sphinx.application import Sphinx

from . import docstrings
from .commands import Commands
from .methods import Methods, kinds, label_of
from .names import PublicNames
from .schema import Schema
from .text import sources


def _finish(app: Sphinx, doctree: nodes.document) -> None:
    """Give every entry of the bibliography its name, and parameters the dash that is meant."""
    for text in list(doctree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" \u2013 "))
    if app.env.docname.startswith("guide/"):
        _link_kinds(doctree)
    if app.env.docname == "sources":
        items = list(doctree.findall(nodes.list_item))
        for item, source in zip(items, sources(), strict=True):
            item["ids"].append(source.label)


def _link_kinds(doctree: nodes.document) -> None:
    """Lead from the kinds in a guide's tables to what is told of them."""
    named = [one for one in doctree.findall(nodes.literal) if one.astext() in kinds()]
    for one in named:
        if isinstance(one.parent.parent, nodes.entry):
            to = f"../methods.html#{label_of(one.astext())}"
            one.parent.replace(one, nodes.reference("", "", one, refuri=to, internal=True))


def setup(app: Sphinx) -> dict[str, bool]:
    """Take part in a build."""
    app.add_directive("public", PublicNames)
    app.add_directive("commands", Commands)
    app.add_directive("schema", Schema)
    app.add_directive("methods", Methods)
    app.connect("autodoc-process-docstring", docstrings.read)
    app.connect("autodoc-skip-member", docstrings.skipped)
    app.connect("doctree-read", _finish)
    app.add_html_math_renderer("mathml", (docstrings.math, None), (docstrings.math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
