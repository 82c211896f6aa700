"""The documentation builds alone, tells of every public name, and its links lead somewhere."""

import inspect
import re
import subprocess
import sys
from inspect import cleandoc
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

pytest.importorskip("sphinx", reason="the documentation is built by the extra `docs`")


@pytest.fixture(scope="module")
def made():
    sys.path.insert(0, str(DOCS))
    try:
        import made
    finally:
        sys.path.remove(str(DOCS))
    return made


# What the code says of itself


def test_every_method_names_its_source_or_says_that_it_is_ours_and_has_a_formula(made):
    for kind, what in made.methods.kinds().items():
        how = " ".join(what.how.split())
        elsewhere = re.search(r"Sources?: th(?:ose|at) of \*", how)
        assert made.text.cited(how) or elsewhere or re.search(r"\bours\b", how), (
            f"{kind}: no source"
        )
        assert "=" in how, f"{kind}: no formula"


def test_what_methods_cite_is_in_the_bibliography_and_nothing_else_is(made):
    cited = [
        (kind, *one)
        for kind, what in made.methods.kinds().items()
        for one in made.text.cited(" ".join(what.how.split()))
    ]
    assert [(kind, said) for kind, said, entry in cited if entry is None] == []
    assert {entry.label for *_, entry in cited} == {source.label for source in made.text.sources()}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(Guo et al. 2017, eq. 3)", ["Guo et al. 2017"]),
        ("Sundararajan, Taly & Yan (2017)", ["Sundararajan, Taly & Yan (2017"]),
        ("by Brier's (1950) sum, and de Moivre 1730", ["Brier's (1950", "de Moivre 1730"]),
        ('after "Devil in the Details" (2025)', ['"Devil in the Details" (2025)']),
        ("OGPSA (arXiv 2602.07892)", ["arXiv 2602.07892"]),
        ("T* of 2000 rounds, λ*(β) = 2", []),
    ],
)
def test_citations_are_found(made, text, said):
    assert [one for one, _ in made.text.cited(text)] == said


def test_of_two_papers_of_one_name_and_year_the_one_whose_title_is_told_is_meant(made):
    spell, tax = (
        made.text.cited(f'Lin et al. (2024), "{title}"')[0][1]
        for title in ("The Unlocking Spell on Base LLMs", "Mitigating the Alignment Tax of RLHF")
    )
    assert (spell.number, tax.number) == ("2312.01552", "2309.06256")


def test_every_kind_of_result_stands_on_the_page_of_methods_once(made):
    shown = [
        kind for some in made.methods.chapters() for one in some.questions for kind in one.kinds
    ]
    assert sorted(shown) == sorted(made.methods.kinds())
    assert len({made.methods.title_of(kind) for kind in shown}) == len(shown)


def test_of_every_kind_of_result_it_is_told_how_one_comes_by_it(made):
    ways = made.methods.ways()
    assert ways.keys() == made.methods.kinds().keys()
    assert ways["drift"] == ["a report of packs of kind `text`"]
    assert ways["graft"] == ["`driftlens attribute --method graft`"]
    assert "`driftlens check`" in ways["entanglement"]


def test_every_public_name_has_a_docstring(made):
    for name, one in made.names.public().items():
        if inspect.isclass(one.what) or inspect.isroutine(one.what):
            assert inspect.getdoc(one.what), name
        else:
            assert made.names.said(one), name


def test_terms_stand_in_the_glossary_once_and_in_order(made):
    terms = made.text.terms()
    assert len(set(terms)) == len(terms)
    assert list(terms[:-1]) == sorted(terms[:-1], key=lambda t: (t.rstrip("*").lower(), t))


DOCSTRING = r"""
Mean of `|x|` over [*, vocab], T* and |S|, for *one* model of kl_ ones.

.. math:: \sum_i |x_i|^* y_

Attributes:
    coef_, bias_: What was learnt.

>>> x_ * 2
4
"""


def test_axes_stars_and_bars_of_a_docstring_are_no_markup(made):
    lines = made.docstrings.escaped(cleandoc(DOCSTRING).split("\n"))
    assert (
        lines[0] == r"Mean of `|x|` over [\*, vocab], T\* and \|S\|, for *one* model of kl\_ ones."
    )
    assert lines[2] == r".. math:: \sum_i |x_i|^* y_"
    assert lines[5] == "    coef_, bias_: What was learnt."
    assert lines[7] == ">>> x_ * 2"


# Pages that are written by hand


WRITTEN = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *DOCS.rglob("*.md"))
    if "_build" not in path.parts and not path.parent.name.startswith(".")
)


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (path.parent / target.partition("#")[0]).exists(), f"{path.name}: {target}"


def test_the_commands_of_contributing_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    known = re.findall(r"^    (\w+)\)", (ROOT / "dev").read_text("utf-8"), re.MULTILINE)
    called = re.findall(r"\./dev (\w+)", text)
    assert {"setup", "test", "check", "docs"} <= set(called) <= set(known)
    for name in re.findall(
        r"`((?:driftlens|tests|diagnostics|formulas|docs|\.ci)/[\w./-]*)`", text
    ):
        inside = ROOT / name if (ROOT / name).exists() else ROOT / "driftlens" / name
        assert inside.exists() or name.startswith("docs/_build"), name


def test_contributing_draws_the_house_as_it_is_held_to():
    import tomllib

    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    layers = [set(row.split(" | ")) for row in contracts["contracts"][0]["layers"]]
    height = {room: floor for floor, row in enumerate(layers) for room in row}
    floors = [
        re.findall(r"`(\w+)`", row.partition(":")[0])
        for row in re.findall(r"^\d\. (`.+)", text, re.M)
    ]
    assert len(floors) >= 5
    for above, below in pairwise(floors):
        assert max(height[room] for room in above) <= min(height[room] for room in below)


# The build


ALONE = """
import socket, sys
def refused(*_): raise AssertionError("the build wants the network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refused
from sphinx.cmd.build import main
sys.exit(main(sys.argv[1:]))
"""
"""Sphinx, without a network."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-c", ALONE, "-q", "-W", "--keep-going", str(DOCS), str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return out


@pytest.mark.slow
def test_it_is_built_without_a_warning_or_a_network_and_tells_of_every_public_name(built, made):
    from sphinx.util.inventory import InventoryFile

    with (built / "objects.inv").open("rb") as file:
        known = InventoryFile.load(file, "", lambda base, path: path)
    homes = {module for package in made.names.DOCUMENTED for module in made.names.modules(package)}
    told = {
        name
        for kind, names in known.items()
        for name in names
        if kind.startswith("py:") and kind != "py:module" and name.rpartition(".")[0] in homes
    }
    assert told == set(made.names.public())


@pytest.mark.slow
def test_its_pages_load_nothing_from_elsewhere_and_show_no_raw_markup(built):
    pages = list(built.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text("utf-8")
        loading = re.findall(r"<(?:script|link|img|iframe|source)[^>]*>", text)
        assert [tag for tag in loading if re.search(r'(?:src|href)="(?:https?:)?//', tag)] == []
        assert ":math:" not in text, page.name
        assert "problematic" not in text, page.name
    for style in built.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", style.read_text("utf-8"))


@pytest.mark.slow
def test_the_tables_of_guides_lead_to_the_methods(built):
    methods = (built / "methods.html").read_text("utf-8")
    for guide in ("what-it-measures", "before-you-train", "steering", "behaviour"):
        page = (built / "guide" / f"{guide}.html").read_text("utf-8")
        labels = re.findall(r'href="\.\./methods\.html#(kind-[\w-]+)"', page)
        assert len(labels) > 5
        assert all(f'id="{label}"' in methods for label in labels)


@pytest.mark.slow
def test_its_methods_link_to_sources_and_to_words_that_are_there(built):
    methods, sources, glossary = (
        (built / f"{name}.html").read_text("utf-8") for name in ("methods", "sources", "glossary")
    )
    to_sources = set(re.findall(r'href="sources\.html#([\w-]+)"', methods))
    to_words = set(re.findall(r'href="glossary\.html#([\w-]+)"', methods))
    assert len(to_sources) > 60
    assert len(to_words) > 20
    assert {name for name in to_sources if f'id="{name}"' not in sources} == set()
    assert {name for name in to_words if f'id="{name}"' not in glossary} == set()
