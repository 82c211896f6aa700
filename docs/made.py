"""What the code says of itself, as pages: methods, commands, the schema, public names.

Nothing is written down twice: when the code changes, so does the next build.
"""

import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import Any, NamedTuple, get_args

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from docutils.utils.math.unichar2tex import uni2tex_table
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.logging import getLogger

LOG = getLogger(__name__)

HERE = Path(__file__).parent
ROOT = HERE.parent

DOCUMENTED = (
    "driftlens",
    "driftlens.results",
    "driftlens.report",
    "driftlens.packs",
    "driftlens.models",
    "driftlens.activations",
    "driftlens.steer",
    "driftlens.mitigation",
    "driftlens.probe",
    "driftlens.estimators",
    "driftlens.formulas",
    "driftlens.integrations",
)
"""Packages whose public names are documented, each name in the first that has it."""


# Public names


class Public(NamedTuple):
    """A public name: the module that is to be imported for it, and what it is."""

    module: str
    name: str
    what: Any


def modules(package: str) -> list[str]:
    """The package itself where it says what is public, else its modules."""
    module = importlib.import_module(package)
    if hasattr(module, "__all__"):
        return [package]
    return [f"{package}.{found.name}" for found in pkgutil.iter_modules(module.__path__)]


def names(module: str) -> list[str]:
    """What a module makes public: what it says, or all it defines without an underscore."""
    found = importlib.import_module(module)
    if hasattr(found, "__all__"):
        return sorted(found.__all__)
    said = {name for home, name in ModuleAnalyzer.for_module(module).find_attr_docs() if not home}
    own = {name for name, what in vars(found).items() if _home(what) == module}
    return sorted(name for name in own | said if not name.startswith("_"))


@cache
def public() -> Mapping[str, Public]:
    """Every public name, once, by where it is documented."""
    found: dict[str, Public] = {}
    seen: set[int] = set()
    for module in (module for package in DOCUMENTED for module in modules(package)):
        for name in names(module):
            what = getattr(importlib.import_module(module), name)
            if not inspect.ismodule(what) and not (_home(what) and id(what) in seen):
                seen.add(id(what))
                found[f"{module}.{name}"] = Public(module, name, what)
    return found


def _home(what: Any) -> str:
    """Where a class or a function was defined; nothing of anything else."""
    return what.__module__ if inspect.isclass(what) or inspect.isroutine(what) else ""


def _is_found(what: Any) -> bool:
    """Whether something is a kind of result, which the methods page tells of."""
    from driftlens.results import Result

    return inspect.isclass(what) and issubclass(what, Result) and bool(what.kind)


class PublicNames(SphinxDirective):
    """`.. public:: driftlens.packs`: its public names, by their docstrings, in reStructuredText."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A section for each module, or the names of the one."""
        (package,) = self.arguments
        lines: list[str] = []
        for module in (homes := modules(package)):
            mine = [public for public in _public_of(module) if not _is_found(public.what)]
            if homes != [package]:
                lines += [module, "-" * len(module), ""]
            lines += ["", f".. automodule:: {module}", "   :no-members:", "   :no-index:", ""]
            lines += [line for public in mine for line in self._entry(public)]
            if elsewhere := self._elsewhere(module):
                lines += ["", f"Also found here: {elsewhere}.", ""]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)

    def _entry(self, public: Public) -> Iterator[str]:
        from driftlens.metric import Metric

        module, name, what = public
        if inspect.isclass(what):
            yield from (f".. autoclass:: {module}.{name}", "   :members:")
            if issubclass(what, Metric) and what is not Metric:
                # What every metric has is told of once.
                yield f"   :exclude-members: {', '.join(n for n in vars(Metric) if n[0] != '_')}"
            yield ""
        elif inspect.isroutine(what):
            yield from (f".. autofunction:: {module}.{name}", "")
        else:
            # The order of a set differs from run to run.
            value = "" if isinstance(what, frozenset) else repr(what)
            yield from (f".. py:currentmodule:: {module}", "", f".. py:data:: {name}")
            if value and len(value) < SHORT and " at 0x" not in value:
                yield f"   :value: {value}"
            yield from ("", *_indented(said(public)), "")

    def _elsewhere(self, module: str) -> str:
        """Names that the module has, and another has before it."""
        homes = {id(one.what): where for where, one in public().items() if _home(one.what)}
        found = importlib.import_module(module)
        others = (
            homes.get(id(getattr(found, name)))
            for name in names(module)
            if f"{module}.{name}" not in public()
        )
        return ", ".join(f":py:obj:`{other}`" for other in others if other)


SHORT = 70
"""The longest value of a constant that is shown."""


def _public_of(module: str) -> list[Public]:
    return [one for one in public().values() if one.module == module]


def said(one: Public) -> list[str]:
    """What stands below a constant, in whichever module it was written, its own first."""
    ours = sorted(name for name in sys.modules if name.startswith("driftlens."))
    ours.sort(key=lambda name: not name.startswith(one.module))
    for home in (one.module, *ours):
        lines = ModuleAnalyzer.for_module(home).find_attr_docs().get(("", one.name))
        if lines and getattr(sys.modules[home], one.name) is one.what:
            return escaped(lines)
    return []


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"   {line}" for line in lines]


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


def _read(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make a docstring of ours, with Google's sections, what Sphinx reads."""
    # Napoleon takes "[layer] share: …" below a field for a type and what is of it.
    kind = "object" if what in ("attribute", "data", "property") else what
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()
    lines[:] = GoogleDocstring(
        escaped(lines), Config(napoleon_use_rtype=False), app, kind, name, obj, options
    ).lines()


def _skip(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what scikit-learn puts into its estimators."""
    return True if _home(obj) and not _home(obj).startswith("driftlens") else None


# Commands


class Commands(SphinxDirective):
    """`{commands}`: what every command says of itself, from the command line's own tree."""

    def run(self) -> list[nodes.Node]:
        """A section for each command."""
        from typer.main import get_command

        from driftlens.cli import app

        def below(command: Any, path: str) -> Iterator[tuple[str, Any]]:
            for name, inner in getattr(command, "commands", {}).items():
                yield f"{path} {name}", inner
                yield from below(inner, f"{path} {name}")

        return [self._section(path, one) for path, one in below(get_command(app), "driftlens")]

    def _section(self, path: str, command: Any) -> nodes.section:
        label = nodes.make_id(path)
        section = nodes.section("", nodes.title(path, path), ids=[label])
        context = command.make_context(path, [], resilient_parsing=True)
        usage = " ".join([path, *command.collect_usage_pieces(context)])
        section += nodes.literal_block(usage, usage, language="text", classes=["formula"])
        for paragraph in cleandoc(command.help or "").split("\n\n"):
            flat = " ".join(paragraph.split())
            shell = flat.startswith("driftlens ")
            section += (
                nodes.literal_block(flat, flat, language="sh", classes=["formula"])
                if shell
                else nodes.paragraph("", "", *inline(flat))
            )
        rows = [
            ([nodes.literal("", _called(record[0]))], inline(record[1]))
            for parameter in command.get_params(context)
            if (record := parameter.get_help_record(context))
        ]
        section += table(("Argument or option", "What it is"), rows, (2, 3))
        return section


def _called(usage: str) -> str:
    """A parameter as a reader types it, without Python's word for several."""
    return re.sub(r"<list\[(\w+)\]>", r"<\1> …", usage)


# The schema of results.json


class Schema(SphinxDirective):
    """`{schema}`: what `results.json` holds, from the schema that it is held to."""

    def run(self) -> list[nodes.Node]:
        """A section for the file, and one for each part that it is made of."""
        from driftlens.report import schema

        whole = schema()
        parts = {"The file": whole} | {
            f"A {name}": part for name, part in whole["$defs"].items() if "properties" in part
        }
        return [section for name, part in parts.items() for section in self._sections(name, part)]

    def _sections(self, name: str, part: Mapping[str, Any]) -> Iterator[nodes.section]:
        inner = {}
        section = nodes.section("", nodes.title(name, name), ids=[nodes.make_id(f"schema {name}")])
        section += nodes.paragraph("", part["description"])
        rows = []
        for key, what in part["properties"].items():
            below = what.get("items", what)
            if "properties" in below:
                inner[f"{name}: {key}"] = {"description": what.get("description", ""), **below}
            needed = "yes" if key in part.get("required", ()) else "no"
            rows.append(
                (
                    [nodes.literal("", key)],
                    [nodes.Text(_type(what))],
                    [nodes.Text(needed)],
                    [nodes.Text(what.get("description", ""))],
                )
            )
        section += table(("Name", "Type", "Always there", "What it is"), rows, (2, 2, 1, 5))
        yield section
        for name, what in inner.items():
            yield from self._sections(name, what)


def _type(what: Mapping[str, Any]) -> str:
    if "$ref" in what:
        return what["$ref"].rpartition("/")[2]
    if "enum" in what:
        return ", ".join(what["enum"])
    several = what.get("type", "anything")
    said = several if isinstance(several, str) else " or ".join(several)
    within = what.get("items") or what.get("additionalProperties")
    return f"{said} of {_type(within)}" if within else said


# Nodes


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
        r"^- (.+(?:\n  .+)*)", (HERE / "sources.md").read_text("utf-8"), re.MULTILINE
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
        r"```{glossary}\n(.+?)```", (HERE / "glossary.md").read_text("utf-8"), re.DOTALL
    )
    assert block
    return tuple(line for line in block[1].splitlines() if line and not line.startswith(" "))


# Methods


class Question(NamedTuple):
    """A row of a table of the README: what is asked, and the kinds of result that answer."""

    asked: str
    kinds: tuple[str, ...]


@cache
def kinds() -> Mapping[str, Any]:
    """Every kind of result of the library, by name."""
    for module in ("suite", "preflight", "series", "comparison", "cli"):
        importlib.import_module(f"driftlens.{module}")
    from driftlens.results import kinds

    return {kind: what for kind, what in kinds().items() if what.__module__.startswith("driftlens")}


@cache
def chapters() -> Mapping[str, list[Question]]:
    """By heading the questions of the README's tables; with each kind those made beside it.

    What no table names comes last.
    """
    text = (ROOT / "README.md").read_text("utf-8")
    found: dict[str, list[Question]] = {}
    left = dict(kinds())
    for heading, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL):
        for asked, named in re.findall(r"^\| ([^|]+\?) \| (`[^|]+) \|", body, re.MULTILINE):
            mine = [kind for kind in re.findall(r"`(\w+)`", named) if left.pop(kind, None)]
            if mine:
                found.setdefault(heading, []).append(Question(asked, tuple(mine)))
    homes = {kinds()[kind].__module__ for some in found.values() for q in some for kind in q.kinds}
    beside = [kind for kind, what in left.items() if what.__module__ in homes]
    for some in found.values():
        for number, question in enumerate(some):
            near = {kinds()[kind].__module__ for kind in question.kinds}
            more = [
                kind for kind in beside if kinds()[kind].__module__ in near and left.pop(kind, 0)
            ]
            some[number] = question._replace(kinds=(*question.kinds, *more))
    # What a report of two models measures comes first, whatever the README begins with.
    order = sorted(found, key=lambda heading: heading != "What it measures")
    rest = {"Pages of many results": [Question("", tuple(left))]} if left else {}
    return {heading: found[heading] for heading in order} | rest


NAMED = {"tradeoff": "What steering gains and costs"}
"""Kinds whose titles on a page name what was measured."""


def title_of(kind: str) -> str:
    """The title of a kind of result."""
    return NAMED.get(kind) or kinds()[kind].title


@cache
def ways() -> Mapping[str, list[str]]:
    """By kind of result how one comes by it: packs of a report, and other commands."""
    from driftlens import attribution, comparison, preflight, series, suite
    from driftlens.metric import Metric
    from driftlens.mitigation import study as mitigated
    from driftlens.results import Result
    from driftlens.steer import study as steered

    found: dict[str, list[str]] = {}

    def add(way: str, kind: str) -> None:
        if way not in found.setdefault(kind, []):
            found[kind].append(way)

    def given(what: Any) -> list[type[Result]]:
        if issubclass(what, Result):
            return [what]
        bases = (base for one in what.__mro__ for base in getattr(one, "__orig_bases__", ()))
        args = (arg for base in bases for arg in get_args(base))
        main = (arg for arg in args if inspect.isclass(arg) and issubclass(arg, Result))
        return [*list(main)[:1], *what.also]

    options = suite.Options(published_polarity=True, published_shift=True)
    for pack, make in suite.PLAN.items():
        for metric in make(options):
            for result in given(type(metric)):
                add(f"a report of packs of kind `{pack}`", result.kind)
    for method, make in attribution.METHODS.items():
        for metric in make(attribution.Options()):
            for result in given(type(metric)):
                add(f"`driftlens attribute --method {method}`", result.kind)
    commands = {
        "check": preflight,
        "steer": steered,
        "mitigate": mitigated,
        "compare": comparison,
        "report` of several stages`": series,
    }
    for command, module in commands.items():
        for what in vars(module).values():
            if inspect.isclass(what) and issubclass(what, Metric | Result):
                for result in given(what):
                    add(f"`driftlens {command}`".replace("``", "`"), result.kind)
    return found


class Methods(SphinxDirective):
    """`{methods}`: every kind of result, by the README's questions, in its own words."""

    def run(self) -> list[nodes.Node]:
        """A section for each of the README's tables."""
        self.titles = {title_of(kind): f"kind-{nodes.make_id(kind)}" for kind in kinds()}
        return [self._chapter(heading, asked) for heading, asked in chapters().items()]

    def _chapter(self, heading: str, asked: Sequence[Question]) -> nodes.section:
        section = nodes.section("", nodes.title(heading, heading), ids=[nodes.make_id(heading)])
        if asked[0].asked:
            rows = [([nodes.Text(one.asked)], self._answers(one)) for one in asked]
            section += table(("Question", "Answered by"), rows, (1, 1))
        for question in asked:
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


# Formulas of docstrings, as MathML: no script, nothing from elsewhere


def _math(self: Any, node: nodes.math) -> None:
    self.body.append(_mathml(node))
    raise nodes.SkipNode


def _math_block(self: Any, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math">{_mathml(node)}</div>')
    raise nodes.SkipNode


def _mathml(node: nodes.Element) -> str:
    text, block = node.astext(), isinstance(node, nodes.math_block)
    try:
        return latex2mathml.tex2mathml(text.translate(uni2tex_table), as_block=block)
    except MathError as error:
        LOG.warning("%s in %s", error, text, location=node)
        return nodes.literal("", text).astext()


def _finish(app: Sphinx, doctree: nodes.document) -> None:
    """Give every entry of the bibliography its name, and parameters the dash that is meant."""
    for text in doctree.findall(nodes.Text):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" \u2013 "))
    if app.env.docname == "sources":
        items = list(doctree.findall(nodes.list_item))
        for item, source in zip(items, sources(), strict=True):
            item["ids"].append(source.label)


def setup(app: Sphinx) -> dict[str, bool]:
    """Take part in a build."""
    app.add_directive("public", PublicNames)
    app.add_directive("commands", Commands)
    app.add_directive("schema", Schema)
    app.add_directive("methods", Methods)
    app.connect("autodoc-process-docstring", _read)
    app.connect("autodoc-skip-member", _skip)
    app.connect("doctree-read", _finish)
    app.add_html_math_renderer("mathml", (_math, None), (_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
