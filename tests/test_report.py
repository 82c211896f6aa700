"""The report: one page that asks nobody for anything, and files that give it back."""

import errno
import json
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from driftlens.errors import DriftlensError
from driftlens.report import Report, render, schema
from driftlens.results import (
    Check,
    DocumentView,
    Estimate,
    Result,
    TextView,
    TokenView,
    column,
    fact,
    figures,
    same,
    value,
)

HOSTILE = [
    "<script>alert(1)</script>",
    "\u202eevil\u202c",
    "\x00",
    "\x1b[31mred",
    "\ud800",
    "</style>",
    "{{7*7}}",
    '" onload="x',
    "new\nline",
]


@dataclass(frozen=True)
class Loss(Result):
    """A rise in loss by token."""

    kind = "test_loss"
    title = "Loss & <rise>"
    how = """It is measured so, see https://example.org for more.

        Δ = log p_base − log p_aligned
    """
    rise: Estimate = value("nats/token")
    tokens: int = fact("tokens")
    source: str = fact()
    token: np.ndarray = column()
    loss: np.ndarray = column("nats")

    def figure(self):
        label = self.label("loss")
        return figures.bars(self.token[:9], self.loss[:9], xlabel="token", ylabel=label)

    def headline(self):
        return f"lost {self.rise} nats a token."

    def views(self):
        tokens = [
            TokenView(token, float(loss), f"base p 0.5: {token}")
            for token, loss in zip(self.token, self.loss, strict=True)
        ]
        return [TextView("Worst <b>", [DocumentView("one & only", tokens)])]


@dataclass(frozen=True)
class Kinds(Result):
    """Which tokens lose, with no table and no figure."""

    kind = "test_kinds"
    title = "Kinds"
    names: Estimate = value("of the rise")

    def headline(self):
        return "mostly names"


RISE = Estimate(0.42, 0.39, 0.45)


def loss(pack="plain", tokens=HOSTILE, rise=RISE, floor=0.14):
    sizes = np.resize([3, 0.5, np.nan, 0, -1, -9], len(tokens))
    given = {"pack": pack, "notes": HOSTILE[:2], "floor": {"rise": floor, "loss": 1.0}}
    return Loss(rise, len(tokens), "{{7*7}}", tokens, sizes, **given)


def report(*results, **changes):
    checks = [Check(f"{status} it", status, HOSTILE[0]) for status in ("pass", "warn", "skip")]
    run = {
        "command": "driftlens report a b",
        "seed": 0,
        "share": np.float64("nan"),
        "models": {"base": {"name": HOSTILE[0]}},
        "packs": [{"name": name, "count": 2} for name in HOSTILE],
    }
    given = {"checks": checks, "run": run} | changes
    results = results or (loss(), Kinds(0.7, pack="plain"), loss(HOSTILE[0]), loss("../PLAIN"))
    return Report(f"{HOSTILE[0]} → b", results, **given)


class Page(HTMLParser):
    """The elements of a page, as a browser's parser would see them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def tags(self):
        return {tag for tag, _ in self.elements}

    def attribute(self, name):
        return [attrs[name] for _, attrs in self.elements if name in attrs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "it"
    report().write(folder)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def test_the_verdict_joins_the_headlines_of_the_first_pack():
    assert report().verdict() == "Lost 0.420 ± 0.030 nats a token; mostly names."
    assert Report("t", []).verdict() == "Nothing was measured."


def test_the_verdict_stands_on_the_page_first(page):
    assert page.text.index(report().verdict()) < page.text.index("Gates")


def test_the_record_follows_its_schema_and_names_files_that_are_there(folder):
    text = (folder / "results.json").read_text()
    record = json.loads(text, parse_constant=pytest.fail)
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(record, schema())
    files = [entry[key] for entry in record["results"] for key in ("table", "figure")]
    assert all((folder / name).is_file() for name in files if name)
    assert files.count(None) == 2
    assert len(set(files)) == 7
    assert record["run"]["share"] is None
    assert record["results"][0]["columns"] == {"token": "", "loss": "nats"}


def test_the_page_asks_nobody_for_anything(page):
    assert not page.tags() & {"script", "link", "iframe", "img", "object", "base", "form", "embed"}
    targets = page.attribute("href") + page.attribute("src") + page.attribute("xlink:href")
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in targets)
    assert "default-src 'none'" in page.attribute("content")[0]
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    style = (Path(figures.__file__).parents[1] / "report" / "report.css").read_text()
    assert "url(" not in style
    assert "@import" not in style


def test_links_lead_somewhere_and_ids_are_used_once(page):
    ids = page.attribute("id")
    assert len(ids) == len(set(ids))
    named = page.attribute("aria-labelledby") + page.attribute("aria-describedby")
    assert {target[1:] for target in page.attribute("href") if target[0] == "#"} <= set(ids)
    assert set(named) <= set(ids)


def test_every_figure_tells_what_it_shows(page):
    drawn = [attrs for tag, attrs in page.elements if tag == "svg"]
    tags = [tag for tag, _ in page.elements]
    assert len(drawn) == 3
    assert all(attrs["role"] == "img" for attrs in drawn)
    assert tags.count("desc") == 3
    assert tags.count("title") == 4


def test_hostile_text_is_shown_and_does_nothing(folder, page):
    for shows in ("<script>alert(1)</script>", "</style>", "{{7*7}}", "U+202E", "NUL", "ESC"):
        assert shows in page.text
    assert "\\ud800" in page.text
    assert "49" not in page.text[page.text.index("Worst") : page.text.index("U+202E")]
    raw = (folder / "index.html").read_text(encoding="utf-8")
    assert not set("\x00\x1b\u202e\u202c") & set(raw)
    assert "&amp;amp;" not in raw
    assert "&amp;lt;" not in raw
    assert "⏎</span><br>line" in raw


def test_tokens_are_coloured_by_their_value(page):
    hues = [
        attrs["class"]
        for tag, attrs in page.elements
        if tag == "span" and attrs.get("tabindex") == "-1"
    ]
    assert hues[:6] == ["t w2", "t z", "t n", "t z", "t b1", "t b5"]


def test_what_drowns_in_the_noise_is_grey_and_says_so(tmp_path):
    drowned = report(loss(rise=Estimate(0.1, 0.0, 0.2)))
    page = Page(drowned.write(tmp_path / "r").read_text(encoding="utf-8"))
    assert "below the noise floor of 0.14" in page.text
    assert "below" in page.attribute("class")
    clear = Page(report(loss()).write(tmp_path / "s").read_text(encoding="utf-8"))
    assert "3 × the noise floor" in clear.text
    assert "below the noise floor of" not in clear.text


def test_a_gate_that_failed_is_told_beside_the_verdict(tmp_path):
    failed = report(checks=[Check("weights", "fail", "NaN in layer 3")])
    page = Page(failed.write(tmp_path / "r").read_text(encoding="utf-8"))
    assert page.text.index("A gate failed") < page.text.index("NaN in layer 3")


def test_a_long_table_is_cut_and_says_where_the_rest_is(tmp_path):
    page = Page(report(loss(tokens=["a"] * 250)).write(tmp_path / "r").read_text("utf-8"))
    assert "the first 100 of 250 rows" in page.text
    assert "150 more rows in tables/test_loss-plain.parquet" in page.text


def test_reading_gives_the_same_report(folder):
    again, first = Report.read(folder), report()
    assert all(map(same, again.results, first.results))
    assert (again.title, again.run, list(again.checks)) == (
        first.title,
        first.run,
        list(first.checks),
    )


def test_rendering_gives_the_same_bytes(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(before) == 11
    (folder / "index.html").unlink()
    assert render(folder) == folder / "index.html"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("formats", "there", "page"),
    [
        (("html",), {"index.html"}, "index.html"),
        (("json", "parquet"), {"results.json", "tables"}, "results.json"),
        (("json", "figures"), {"results.json", "figures"}, "results.json"),
    ],
)
def test_only_the_formats_that_were_asked_for_are_written(formats, there, page, tmp_path):
    assert report().write(tmp_path / "r", formats=formats) == tmp_path / "r" / page
    assert {path.name for path in (tmp_path / "r").iterdir()} == there


@pytest.mark.parametrize("formats", [(), ("pdf",)])
def test_unknown_formats_are_refused(formats, tmp_path):
    with pytest.raises(DriftlensError, match="formats among html"):
        report().write(tmp_path / "r", formats=formats)


def test_an_earlier_report_is_replaced_only_when_told(tmp_path):
    first = report(loss()).write(tmp_path / "r").read_bytes()
    with pytest.raises(DriftlensError, match="--overwrite"):
        report().write(tmp_path / "r")
    assert (tmp_path / "r" / "index.html").read_bytes() == first
    report(Kinds(1)).write(tmp_path / "r", overwrite=True)
    assert not list((tmp_path / "r").glob("tables/*"))
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_what_is_not_a_report_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DriftlensError, match=r"thesis\.tex"):
        report().write(tmp_path, overwrite=True)
    with pytest.raises(DriftlensError, match="the file"):
        report().write(tmp_path / "thesis.tex", overwrite=True)


def test_an_empty_folder_is_as_good_as_none(tmp_path):
    (tmp_path / "r").mkdir()
    assert report().write(tmp_path / "r").is_file()


@dataclass(frozen=True)
class Broken(Kinds):
    """A result whose figure fails."""

    kind = "test_broken"
    error: str = fact()

    def figure(self):
        errors = {"full": OSError(errno.ENOSPC, "full"), "bug": ZeroDivisionError("a bug")}
        raise errors[self.error]


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [("full", DriftlensError, "MB left"), ("bug", ZeroDivisionError, "a bug")],
)
def test_a_write_that_fails_leaves_nothing_new_behind(error, raised, words, tmp_path):
    broken = report(loss(), Broken(1, error))
    with pytest.raises(raised, match=words):
        broken.write(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    first = report(Kinds(1)).write(tmp_path / "r").read_bytes()
    with pytest.raises(raised, match=words):
        broken.write(tmp_path / "r", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
    assert (tmp_path / "r" / "index.html").read_bytes() == first


def test_an_old_report_survives_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    report(Kinds(1)).write(tmp_path / "r")
    rename = Path.rename

    def fails_for_the_draft(path, target):
        if target.name == "r" and not path.name.endswith(".old"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails_for_the_draft)
    with pytest.raises(DriftlensError, match="Permission denied"):
        report().write(tmp_path / "r", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
    assert Report.read(tmp_path / "r").results[0].kind == "test_kinds"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DriftlensError, match="can be written to"):
        report().write(tmp_path / "file" / "r")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.json", None),
        ("results.json", "{"),
        ("results.json", '{"schema_version": "1.0"}'),
        ("results.json", '{"schema_version": "2.0"}'),
        ("tables/test_loss-plain.parquet", None),
        ("tables/test_loss-plain.parquet", "PAR1"),
    ],
)
def test_a_report_that_cannot_be_read_says_which_file_is_broken(name, content, tmp_path):
    report(loss()).write(tmp_path / "r")
    path = tmp_path / "r" / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(DriftlensError, match=path.name.replace(".", r"\.")):
        render(tmp_path / "r")


def test_file_names_are_safe_and_used_once():
    packs = ["a/../b", "A B", "a b", "", "ж", "ж", "x" * 300]
    names = Report("t", [Kinds(1, pack=pack) for pack in packs]).names()
    assert len(set(names)) == len(packs)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz_-0123456789") for name in names)
    assert max(map(len, names)) < 100
