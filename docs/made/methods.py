"""Every kind of result, by the questions of the guides, in its own words."""

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from functools import cache
from inspect import cleandoc
from typing import Any, NamedTuple

from docutils import nodes
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

from .names import given, public
from .text import DOCS, Links, inline, table


class Question(NamedTuple):
    """A row of a guide's table: what is asked, and the kinds of result that answer."""

    asked: str
    kinds: tuple[str, ...]


class Chapter(NamedTuple):
    """Questions that belong together, and the guide that asks them."""

    heading: str
    guide: str
    questions: list[Question]


@cache
def kinds() -> Mapping[str, Any]:
    """Every kind of result of the library, by name."""
    for module in ("suite", "preflight", "series", "comparison", "cli"):
        importlib.import_module(f"driftlens.{module}")
    from driftlens.results import kinds

    return {kind: what for kind, what in kinds().items() if what.__module__.startswith("driftlens")}


@cache
def chapters() -> Sequence[Chapter]:
    """The guides that ask, in their order, and with each kind of result those made beside it.

    What no guide names comes last.
    """
    left = dict(kinds())
    found = [chapter for guide in guides() if (chapter := _chapter(guide, left)).questions]
    named = {kinds()[kind].__module__ for one in found for q in one.questions for kind in q.kinds}
    beside = [kind for kind, what in left.items() if what.__module__ in named]
    for some in (chapter.questions for chapter in found):
        for number, question in enumerate(some):
            near = {kinds()[kind].__module__ for kind in question.kinds}
            mine = (kind for kind in beside if kinds()[kind].__module__ in near)
            more = tuple(kind for kind in mine if left.pop(kind, None))
            some[number] = question._replace(kinds=(*question.kinds, *more))
    rest = [Chapter("Pages of many results", "", [Question("", tuple(left))])] if left else []
    return [*found, *rest]


def guides() -> list[str]:
    """The guides, in the order in which the first page lists them."""
    return re.findall(r"^(guide/[\w-]+)$", (DOCS / "index.md").read_text("utf-8"), re.MULTILINE)


def _chapter(guide: str, left: dict[str, Any]) -> Chapter:
    """What a guide asks; the kinds that it names are taken from those that are left."""
    text = (DOCS / f"{guide}.md").read_text("utf-8")
    rows = re.findall(r"^\| ([^|]+\?) \| (`[^|]+) \|", text, re.MULTILINE)
    questions = [
        Question(asked, mine)
        for asked, named in rows
        if (mine := tuple(k for k in re.findall(r"`(\w+)`", named) if left.pop(k, None)))
    ]
    return Chapter(text.partition("\n")[0].removeprefix("# "), guide, questions)


NAMED = {"tradeoff": "What steering gains and costs"}
"""Kinds whose titles on a page name what was measured."""


def title_of(kind: str) -> str:
    """The title of a kind of result."""
    return NAMED.get(kind) or kinds()[kind].title


def label_of(kind: str) -> str:
    """By which name its section is linked."""
    return f"kind-{nodes.make_id(kind)}"


DIAGNOSTICS = ("capability", "faithfulness", "mitigation", "overview", "stages")


@cache
def ways() -> Mapping[str, list[str]]:
    """By kind of result how one comes by it: packs of a report, and other commands."""
    from driftlens import attribution, comparison, doctor, preflight, suite
    from driftlens.metric import Metric
    from driftlens.results import Result
    from driftlens.steer import study as steered

    # The package has functions of some of these names.
    homes = (f"driftlens.diagnostics.{name}" for name in DIAGNOSTICS)
    capability, faithfulness, mitigation, overview, stages = map(importlib.import_module, homes)
    found: dict[str, list[str]] = {}

    def add(way: str, kind: str) -> None:
        if way not in found.setdefault(kind, []):
            found[kind].append(way)

    options = suite.Options(published_polarity=True, published_shift=True)
    for pack, make in suite.PLAN.items():
        for metric in make(options):
            for result in given(type(metric)):
                add(f"a report of packs of kind `{pack}`", result.kind)
    for method, make in attribution.METHODS.items():
        for metric in make(attribution.Options()):
            for result in given(type(metric)):
                add(f"`driftlens attribute --method {method}`", result.kind)
    # Of these the module says what it makes; of the last two, what nothing else has told of yet.
    made = {
        "`driftlens check`": [preflight],
        "`driftlens steer`": [steered],
        "`driftlens mitigate`": [mitigation],
        "`driftlens compare`": [comparison],
        "`driftlens evals`": [capability, faithfulness],
        "a report of several stages": [stages],
        "every report": [overview, doctor],
        "`driftlens attribute`": [attribution],
        "a report, where the weights of both models can be matched": [suite],
    }
    for number, (way, homes) in enumerate(made.items()):
        told = set(found) if number >= len(made) - 2 else set()
        for what in (what for home in homes for what in vars(home).values()):
            if inspect.isclass(what) and issubclass(what, Metric | Result) and what is not Metric:
                for result in [what] if issubclass(what, Result) else given(what):
                    if result.kind and result.kind not in told:
                        add(way, result.kind)
    return found


class Methods(SphinxDirective):
    """`{methods}`: every kind of result, by the guides' questions, in its own words."""

    def run(self) -> list[nodes.Node]:
        """A section for each guide that asks."""
        self.titles = {title_of(kind): label_of(kind) for kind in kinds()}
        return [self._section(chapter) for chapter in chapters()]

    def _section(self, chapter: Chapter) -> nodes.section:
        heading, guide, questions = chapter
        section = nodes.section("", nodes.title(heading, heading), ids=[nodes.make_id(heading)])
        if guide:
            link = nodes.reference("", "the guide", refuri=f"{guide}.html", internal=True)
            about = (nodes.Text("How to ask is told in "), link, nodes.Text("."))
            section += nodes.paragraph("", "", *about)
            rows = [([nodes.Text(one.asked)], self._answers(one)) for one in questions]
            section += table(("Question", "Answered by"), rows, (1, 1))
        for question in questions:
            for kind in question.kinds:
                section += self._kind(kind)
        return section

    def _answers(self, question: Question) -> list[nodes.Node]:
        found: list[nodes.Node] = []
        for kind in question.kinds:
            to = self.titles[title_of(kind)]
            link = nodes.reference("", title_of(kind), refid=to, internal=True)
            found += [*([nodes.Text(", ")] if found else []), link]
        return found

    def _kind(self, kind: str) -> nodes.section:
        what, label = kinds()[kind], self.titles[title_of(kind)]
        links = Links(self.env.docname, what.how, self.titles)
        section = nodes.section("", nodes.title("", title_of(kind)), ids=[label])
        self._note(what, label)
        section += nodes.paragraph(
            "", "", nodes.literal("", kind), nodes.Text(": "), *inline(_first(what))
        )
        for paragraph in re.split(r"\n\s*\n", cleandoc(what.how)):
            section += self._paragraph(paragraph, links)
        if how := ways().get(kind):
            section += nodes.paragraph(
                "", "", *inline(f"Found in {_listed(how)}."), classes=["way"]
            )
        section += _folded(f"Its figures and columns ({what.__name__})", _fields(what))
        return section

    def _paragraph(self, text: str, links: Links) -> nodes.Node:
        if text.startswith("  "):
            formula = cleandoc(text)
            return nodes.literal_block(formula, formula, language="none", classes=["formula"])
        return nodes.paragraph("", "", *inline(" ".join(text.split()), links))

    def _note(self, what: Any, label: str) -> None:
        """Make the class a target of links, where it is public."""
        for where, one in public().items():
            if one.what is what:
                self.env.domains.python_domain.note_object(where, "class", label)


def _listed(some: Sequence[str]) -> str:
    return some[0] if len(some) == 1 else f"{', '.join(some[:-1])} and {some[-1]}"


def _first(what: Any) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join(cleandoc(what.__doc__).split("\n\n")[0].split())


def _fields(what: Any) -> nodes.table:
    from dataclasses import fields

    said: dict[str, list[str]] = {}
    for one in reversed(what.__mro__[:-1]):
        docs = ModuleAnalyzer.for_module(one.__module__).find_attr_docs()
        said |= {name: lines for (home, name), lines in docs.items() if home == one.__name__}
    rows = []
    for field in fields(what):
        if role := field.metadata.get("role"):
            name = field.metadata.get("named") or field.name
            text = " ".join(" ".join(said.get(field.name, [])).split())
            cells = [[nodes.literal("", name)], [nodes.Text(role)]]
            rows.append((*cells, [nodes.Text(field.metadata["unit"])], inline(text)))
    return table(("Name", "What", "Unit", "Meaning"), rows, (3, 1, 2, 6))


def _folded(summary: str, *inside: nodes.Node) -> list[nodes.Node]:
    opening = nodes.raw("", f"<details><summary>{summary}</summary>", format="html")
    return [opening, *inside, nodes.raw("", "</details>", format="html")]
