"""Text of ours as nodes, with links to sources and to the words of the glossary."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from docutils import nodes
from sphinx import addnodes

DOCS = Path(__file__).parents[1]


def table(
    heads: Sequence[str], rows: Sequence[Sequence[Sequence[nodes.Node]]], widths: Sequence[int]
) -> nodes.table:
    """A table of inline nodes."""
    group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in widths), cols=len(heads))
    group += nodes.thead("", _row([[nodes.Text(head)] for head in heads]))
    group += nodes.tbody("", *map(_row, rows))
    return nodes.table("", group)


def _row(cells: Sequence[Sequence[nodes.Node]]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *cell)) for cell in cells))


def inline(text: str, links: "Links | None" = None) -> list[nodes.Node]:
    """Text in which `names` are code, *words* are emphasised, and what `links` knows is linked."""
    found: list[nodes.Node] = []
    at = 0
    for match in PARTS.finditer(text):
        kind, said = match.lastgroup, match.group()
        node: nodes.Node | None = None
        if kind == "code":
            node = nodes.literal("", said[1:-1])
        elif kind == "emphasis":
            node = (links and links.kind(said[1:-1])) or nodes.emphasis("", said[1:-1])
        elif links:
            node = links.source(match)
        if node is not None:
            found += [*_terms(text[at : match.start()], links), node]
            at = match.end()
    return [*found, *_terms(text[at:], links)]


NAME = r"(?:de )?(?:[A-Z\u00c0-\u017d][\w-]+|nostalgebraist)"
PARTS = re.compile(
    r"(?P<code>`[^`]+`)"
    r"|(?P<emphasis>(?<![\w*])\*\w(?:[^*]*\w)?\*(?!\w))"
    rf"|(?P<paper>(?P<who>{NAME})(?:'s)?(?:(?:,| &| and) {NAME}| et al\.)*"
    r",? \(?(?P<year>\d{4})\b)"
    r"|(?P<titled>\"(?P<name>[^\"]+)\" \((?P<when>\d{4})\))"
    r"|(?P<preprint>arXiv (?P<number>\d{4}\.\d{5}))"
)
"""What is more than plain text in a paragraph of ours; a citation's own parts close before it."""


def _terms(text: str, links: "Links | None") -> list[nodes.Node]:
    return links.terms(text) if links else [nodes.Text(text)]


class Source(NamedTuple):
    """An entry of the bibliography."""

    label: str
    who: str
    year: str
    title: str
    number: str
    text: str


CITATIONS = ("paper", "titled", "preprint")


@cache
def sources() -> list[Source]:
    """The bibliography, from its page."""
    items = re.findall(
        r"^- (.+(?:\n  .+)*)", (DOCS / "sources.md").read_text("utf-8"), re.MULTILINE
    )
    found: list[Source] = []
    for item in (" ".join(item.split()) for item in items):
        who = re.match(NAME, item)
        year = re.search(r"\((\d{4})\)", item)
        title = re.search(r'"(.+?)"', item)
        number = re.search(r"arXiv (\d{4}\.\d{5})", item)
        parts = ((who, 0), (year, 1), (title, 1), (number, 1))
        told = [match.group(part) if match else "" for match, part in parts]
        label = nodes.make_id(f"source {told[0]} {told[1]} {told[2][:40]}")
        found.append(Source(label, *told, item))
    return found


def cited(text: str) -> list[tuple[str, Source | None]]:
    """What a text cites: as it says so, with the entry of the bibliography."""
    return [
        (match.group(), _entry(match, text))
        for match in PARTS.finditer(text)
        if match.lastgroup in CITATIONS
    ]


def _entry(match: re.Match[str], text: str) -> Source | None:
    """The entry that a citation means; of two of one year, the one whose title the text has."""
    if match.lastgroup == "preprint":
        return next((one for one in sources() if one.number == match["number"]), None)
    if match.lastgroup == "titled":
        return next((one for one in sources() if one.title == match["name"]), None)
    fit = [one for one in sources() if (one.who, one.year) == (match["who"], match["year"])]
    flat = " ".join(text.split())
    fit.sort(key=lambda one: one.title.split(":")[0] not in flat)
    return fit[0] if fit else None


COMMON = frozenset(
    (
        *("aligned", "base", "block", "group", "KL", "pack", "pair"),
        *("rise", "share", "site", "stage", "stream", "unit"),
    )
)
"""Terms that stand in nearly every text, or are everyday words too: they are not linked."""


class Links:
    """What can be linked from the text of one kind of result, each term where it first stands."""

    def __init__(self, docname: str, text: str, titles: Mapping[str, str]) -> None:
        self.docname, self.text = docname, text
        self.titles = {title.partition(":")[0]: label for title, label in titles.items()}
        self.left = {term: term for term in terms() if term not in COMMON}

    def kind(self, title: str) -> nodes.Node | None:
        """A link to the kind of result of this title."""
        if label := self.titles.get(title.partition(":")[0]):
            return nodes.reference("", "", nodes.emphasis("", title), refid=label, internal=True)
        return None

    def source(self, match: re.Match[str]) -> nodes.Node | None:
        """A link to the bibliography."""
        if entry := _entry(match, self.text):
            to = f"sources.html#{entry.label}"
            return nodes.reference("", match.group(), refuri=to, internal=True)
        return None

    def terms(self, text: str) -> list[nodes.Node]:
        """Text with the terms of the glossary linked."""
        words = "|".join(sorted(map(re.escape, self.left), key=len, reverse=True))
        match = re.search(rf"(?<![\w*‖])({words})(?![\w*])", text) if words else None
        if not match:
            return [nodes.Text(text)] if text else []
        term = self.left.pop(match.group())
        xref = addnodes.pending_xref(
            *("", nodes.inline("", match.group())),
            refdomain="std",
            reftype="term",
            reftarget=term,
            refdoc=self.docname,
            refexplicit=True,
            refwarn=True,
        )
        return [*self.terms(text[: match.start()]), xref, *self.terms(text[match.end() :])]


@cache
def terms() -> tuple[str, ...]:
    """The terms of the glossary, from its page."""
    block = re.search(
        r"```{glossary}\n(.+?)```", (DOCS / "glossary.md").read_text("utf-8"), re.DOTALL
    )
    assert block
    return tuple(line for line in block[1].splitlines() if line and not line.startswith(" "))
