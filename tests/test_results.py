"""Results: what goes in comes out again, said with its unit."""

import json
import re
from base64 import b64decode
from dataclasses import dataclass
from io import BytesIO
from math import inf, isnan, nan
from xml.etree import ElementTree

import numpy as np
import pytest

import nets
from driftlens.errors import DriftlensError
from driftlens.results import (
    Check,
    Estimate,
    Findings,
    Result,
    Results,
    column,
    fact,
    figures,
    kinds,
    load,
    same,
    save,
    shown,
    value,
)
from driftlens.results.markup import markup, verbatim
from driftlens.results.svg import slim, written

HOSTILE = ["<script>alert(1)</script>", "\u202eevil", "\x00", "\x1b[31m", "\ud800", "{{7*7}}"]


@dataclass(frozen=True)
class Rise(Result):
    """A result with a bit of everything."""

    kind = "test_rise"
    title = "Rise"
    rise: Estimate = value("nats/token")
    tokens: int = fact("tokens")
    source: str = fact()
    parts: tuple = fact()
    stage: np.ndarray = column()
    share: np.ndarray = column("nats/token")
    worse: np.ndarray = column()
    rank: np.ndarray = column()

    def figure(self):
        return figures.bars(
            self.stage, self.share, xlabel="stage", ylabel=self.label("share"), floor=0.1
        )


@dataclass(frozen=True)
class Bare(Result):
    """A result of one number."""

    kind = "test_bare"
    title = "Bare"
    total: Estimate = value("nats")


def rise(**changes):
    given = {
        "rise": Estimate(0.42, 0.39, inf),
        "tokens": 3,
        "source": "a file",
        "parts": ("a", (1, 2.5, True)),
        "stage": ["embed", "\x00", "head\ud800"],
        "share": np.array([0.05, nan, -inf], dtype=np.float32),
        "worse": [True, False, True],
        "rank": np.array([2**60, 0, -1]),
    }
    return Rise(
        **given | {"pack": "plain", "notes": ("a note",), "floor": {"share": 0.1}} | changes
    )


@pytest.mark.parametrize("result", [rise(), Bare(nan), Bare(2, floor={"total": nan})])
def test_what_is_stored_is_read_back_exactly(result, tmp_path):
    again = load(save(result, tmp_path / "there" / "it is"))
    assert same(result, again)
    assert json.dumps(again.to_json()) == json.dumps(result.to_json())


def test_records_hold_no_number_that_json_does_not_know():
    record = rise(rise=Estimate(nan, -inf, inf)).to_json()
    json.dumps(record, allow_nan=False)
    entry = record["values"]["rise"]
    assert entry["value"] is entry["low"] is entry["high"] is None
    assert entry["unit"] == "nats/token"
    assert record["table"] is None


def test_facts_that_are_numbers_are_values_and_others_are_not():
    record = rise().to_json()
    assert record["values"]["tokens"]["value"] == 3
    assert set(record["facts"]) == {"source", "parts"}


def test_a_plain_number_becomes_an_estimate_without_bounds():
    total = Bare(np.float32(2)).total
    assert total.value == 2.0
    assert isnan(total.low)


@pytest.mark.parametrize(
    "other",
    [
        Bare(1),
        rise(share=[0.05, 0.0, 0.0]),
        rise(rank=np.array([1, 2, 3], dtype=np.int32)),
        rise(pack="x"),
        rise(rise=0.42),
        rise(tokens=4),
    ],
)
def test_results_that_differ_anywhere_are_not_the_same(other):
    assert same(rise(), rise())
    assert not same(rise(), other)


def test_columns_cannot_be_written_to_and_leave_their_source_alone():
    source = np.zeros(3)
    result = rise(share=source)
    with pytest.raises(ValueError, match="read-only"):
        result.share[0] = 1
    source[0] = 1
    assert result.share[0] == 0


def test_the_table_has_the_columns_in_order():
    table = rise().table()
    assert list(table) == ["stage", "share", "worse", "rank"]
    assert table["rank"][0] == 2**60


def test_parquet_columns_carry_their_units(tmp_path):
    from pyarrow import parquet

    save(rise(), tmp_path / "r")
    schema = parquet.read_schema(tmp_path / "r" / "table.parquet")
    assert schema.field("share").metadata[b"unit"] == b"nats/token"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"share": [1.0]}, "share of 1"),
        ({"share": np.zeros((3, 1))}, "shape"),
        ({"share": np.zeros(3, dtype=complex)}, "complex"),
        ({"floor": {"shore": 1}}, "shore"),
    ],
)
def test_a_result_that_does_not_add_up_is_refused(changes, words):
    with pytest.raises(DriftlensError, match=words):
        rise(**changes)


def test_a_field_that_would_not_survive_storing_is_refused():
    @dataclass(frozen=True)
    class Loose(Result):
        extra: int

    with pytest.raises(DriftlensError, match="extra"):
        Loose(1)


def test_one_kind_belongs_to_one_module():
    with pytest.raises(DriftlensError, match="test_bare"):
        type("Other", (Result,), {"kind": "test_bare", "__module__": "elsewhere"})
    assert kinds()["test_bare"] is Bare


def test_unknown_kinds_and_missing_fields_are_named():
    with pytest.raises(DriftlensError, match="'never'"):
        Result.rebuild({"kind": "never"}, {})
    with pytest.raises(DriftlensError, match="column called stage"):
        Result.rebuild(rise().to_json(), {})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("record.json", None),
        ("record.json", b"{"),
        ("record.json", b"\xff"),
        ("record.json", b"[]"),
        ("record.json", b'{"kind": "test_bare"}'),
        ("table.parquet", None),
        ("table.parquet", b"PAR"),
    ],
)
def test_a_broken_file_is_named(name, content, tmp_path):
    path = save(rise(), tmp_path / "r") / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DriftlensError, match=re.escape(name)):
        load(tmp_path / "r")


def test_an_estimate_is_written_with_the_digits_that_its_interval_leaves():
    assert str(Estimate(0.42134, 0.3893, 0.4533)) == "0.421 ± 0.032"
    assert str(Estimate(0.42, 0.40, 0.60)) == "0.42 [0.40, 0.60]"
    assert str(Estimate(-3.14159)) == "−3.142"
    assert str(Estimate(nan, nan, nan)) == "undefined"
    assert Estimate(1, 0, 4).error == 2


def test_numbers_are_shown_to_sensible_digits():
    shows = {
        0.0: "0",
        1.5e-7: "1.5 × 10⁻⁷",
        123456.7: "123\u202f457",
        -1e-300: "−1 × 10⁻³⁰⁰",
        -inf: "−∞",
        inf: "∞",
        2.0: "2",
        1000: "1000",
    }
    assert {number: shown(number) for number in shows} == shows


def test_labels_carry_units_and_so_do_figures():
    assert rise().label("share") == "share [nats/token]"
    assert rise().label("rank") == "rank"
    assert rise().figure().axes[0].get_ylabel() == "share [nats/token]"


def test_a_summary_has_number_unit_and_error_and_alt_text_adds_the_range():
    result = rise(rise=Estimate(0.42, 0.39, 0.45))
    assert result.summary() == "Rise 0.420 ± 0.030 nats/token."
    assert result.alt() == f"{result.summary()} Share [nats/token] from 0.05 to 0.05."
    assert "undefined" in rise(share=[nan] * 3).alt()


def test_the_floor_tells_what_drowns():
    result = rise(floor={"share": 0.1, "rise": 1, "tokens": 1})
    assert result.above_floor("share").tolist() == [False, False, True]
    assert not result.above_floor("rise")
    assert result.above_floor("tokens")
    assert rise(floor={}).above_floor("rise")


def test_a_cell_of_a_notebook_shows_sentence_figure_and_ten_rows():
    many = {"share": np.zeros(30), "worse": [True] * 30, "rank": np.arange(30)}
    cell = rise(stage=["<b>"] * 30, **many)._repr_html_()
    assert cell.count("<tr>") == 11
    assert "the first 10 of 30 rows" in cell
    assert "<b>" not in cell
    picture = re.search(r'<img alt="([^"]*)" width="720" src="data:image/png;base64,(.*?)">', cell)
    assert picture[1].startswith("Rise ")
    assert b64decode(picture[2]).startswith(b"\x89PNG")
    assert "<img" not in Bare(1)._repr_html_()


def test_a_cell_tells_what_a_reader_must_know():
    assert "<li>Two of &lt;three&gt;.</li>" in rise(notes=("Two of <three>.",))._repr_html_()


def test_a_result_is_printed_as_its_sentence_whatever_arrays_it_holds():
    assert repr(rise(rise=0.42, pack="mine")) == "<Rise on mine: Rise 0.42 nats/token.>"
    assert repr(Bare(1)) == "<Bare: Total 1 nats.>"


def test_results_are_found_by_place_by_kind_and_by_pack():
    one, two, three = rise(pack="a"), rise(pack="b"), Bare(1)
    found = Results([one, two, three])
    assert found == [one, two, three]
    assert found[1] is two
    assert found["test_bare"] is three
    assert found["test_rise", "b"] is two
    assert found[:2] == [one, two]
    assert found[1:]["test_rise"] is two
    assert repr(found) == "\n".join(map(repr, [one, two, three]))


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("test_rise", "2, on a, b"),
        ("other", "test_rise, test_bare"),
        (("test_rise", "c"), "test_rise, test_bare"),
    ],
)
def test_a_kind_that_does_not_name_one_result_is_refused(key, told):
    with pytest.raises(DriftlensError, match="of kind") as refused:
        Results([rise(pack="a"), rise(pack="b"), Bare(1)])[key]
    assert told in str(refused.value)


def test_findings_show_a_line_for_each_result_and_what_the_gates_have_against_them():
    @dataclass(frozen=True, repr=False)
    class Study(Findings):
        results: Results
        checks: tuple = ()

    checks = (Check("dtype", "warn", "<half>"), Check("tokens", "pass", "the same"))
    shown = Study(Results([rise(pack="a"), Bare(1)]), checks)
    page = shown._repr_html_()
    assert page.count("<tr>") == 3
    assert "<li>warn: dtype: &lt;half&gt;</li>" in page
    assert "the same" not in page
    assert repr(shown).startswith("<Study: 2 results>\n<Rise on a: ")
    assert str(checks[0]) == "warn  dtype: <half>"


def test_a_figure_shows_itself_and_is_white_where_it_is_saved_by_hand(tmp_path):
    from matplotlib.image import imread

    figure = rise().figure()
    whole, few = figures.png(figure), figure._repr_png_()
    assert few.startswith(b"\x89PNG")
    assert len(few) < len(whole) / 2
    (tmp_path / "few.png").write_bytes(few)
    assert imread(tmp_path / "few.png").shape[:2] == imread(BytesIO(whole)).shape[:2]
    figure.savefig(tmp_path / "by-hand.png")
    assert imread(tmp_path / "by-hand.png")[0, 0].tolist() == [1, 1, 1, 1]


def test_names_and_abbreviations_are_spelt_as_such_in_labels():
    @dataclass(frozen=True)
    class Spelt(Result):
        relative_l2: np.ndarray = column()
        kl_base: np.ndarray = column("nats")

    one = Spelt([1.0], [2.0])
    assert [one.label("relative_l2"), one.label("kl_base")] == ["relative L2", "KL base [nats]"]


@pytest.mark.parametrize("token", HOSTILE)
def test_what_is_hostile_is_escaped_and_what_is_hidden_is_shown(token):
    for html in (markup(token), verbatim(token)):
        bare = re.sub(r'<span class="c">([^<>]*)</span>', r"\1", html)
        assert "<" not in bare
        assert bare.isprintable()
        bare.encode()


def test_only_exact_strings_have_their_spaces_spelt_out():
    assert verbatim("\u00a0 ") == '<span class="c">U+00A0</span> '
    assert markup("\u00a0") == "\u00a0"


def drawings():
    matrix = np.array([[1, -2.0], [nan, 0]])
    x = np.arange(3)
    names = {"rows": ["a", "b"], "columns": HOSTILE[:2]}
    return [
        figures.bars(HOSTILE, np.arange(6.0), xlabel="token", ylabel="rise [nats]", floor=1.5),
        figures.bars(
            ["a"], [1.0], [0.5], [2.0], xlabel="x", ylabel="y", second={"back": [1]}, label="on"
        ),
        figures.curves(
            x, {"$a_": x, "b": -x}, xlabel="x", ylabel="y", bands={"b": (-x - 1, -x)}, floor=0.5
        ),
        figures.curves(["a", "b"], {"near 1": [1, 1.1]}, xlabel="x", ylabel="y"),
        figures.heatmap(matrix, **names, xlabel="t", ylabel="b", label="share [nats]"),
        figures.heatmap(np.zeros((2, 2)), **names, xlabel="t", ylabel="b", label="share [nats]"),
        figures.stacks(HOSTILE, {"<up>": x.repeat(2), "down": x.repeat(2)}, xlabel="x", ylabel="y"),
        figures.points(x, -x, ["a", "b", "b"], names={"a": "<A>", "b": "B"}, xlabel="", ylabel=""),
    ]


@pytest.mark.parametrize("number", nets.some(range(8), [0]))
def test_a_figure_becomes_the_same_svg_every_time_and_draws_with_the_ink_of_the_page(number):
    drawn = figures.svg(drawings()[number], "<T>", "D & E", name="one")
    figure = drawings()[number]
    figures.png(figure)
    assert figures.svg(figure, "<T>", "D & E", name="one") == drawn
    assert figures.svg(figure, "<T>", "D & E", name="one") == drawn
    assert "currentColor" in drawn
    assert figures.INK not in drawn
    assert "<metadata" not in drawn
    assert "<style" not in drawn
    root = ElementTree.fromstring(drawn)
    assert root.get("role") == "img"
    assert [child.text for child in root][:2] == ["<T>", "D & E"]
    assert root.findall(".//{*}text")


def test_ids_of_two_figures_do_not_meet():
    figure = drawings()[0]
    one, two = (figures.svg(figure, "T", "D", name=name) for name in ("one", "two"))
    ids = [re.findall(r'\bid="([^"]*)"', drawn) for drawn in (one, two)]
    assert not set(ids[0]) & set(ids[1])
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', one)) <= set(ids[0])


def test_bars_below_the_floor_are_grey():
    from matplotlib.colors import to_hex

    panel = figures.bars(list("abc"), [1, -0.1, -1], xlabel="", ylabel="", floor=0.5).axes[0]
    colours = [to_hex(bar.get_facecolor()) for bar in panel.containers[0]]
    assert colours == [figures.ALIGNED, figures.GREY, figures.BASE]


def test_many_lines_leave_room_for_their_names():
    x = np.arange(5.0)

    def height(count):
        lines = {str(number): x for number in range(count)}
        low, high = figures.curves(x, lines, xlabel="", ylabel="").axes[0].get_ylim()
        return high - low

    assert height(4) == pytest.approx(4 * 1.4)
    assert height(3) == pytest.approx(4 * 1.1)


def test_parts_of_bars_stand_on_each_other():
    parts = {"one": np.array([0.25, 1.0]), "two": np.array([0.75, 0.0])}
    first, second = figures.stacks(["a", "b"], parts, xlabel="", ylabel="").axes[0].containers
    assert [bar.get_y() for bar in first] == [0, 0]
    assert [bar.get_y() for bar in second] == [0.25, 1.0]
    assert [bar.get_height() for bar in second] == [0.75, 0.0]


def test_a_heatmap_grows_with_the_names_that_it_is_to_have_room_for():
    def rows(count, **how):
        names = {"rows": list(map(str, range(count))), "columns": ["a"]}
        figure = figures.heatmap(
            np.zeros((count, 1)), **names, xlabel="", ylabel="", label="", **how
        )
        return figure.get_figheight(), len(figure.axes[0].get_yticks())

    assert rows(32) == (figures.HEIGHT, 16)
    assert rows(32, room=32) == (2 * figures.HEIGHT, 32)
    assert rows(4, room=32) == (figures.HEIGHT, 4)


def test_panels_beyond_the_count_are_not_drawn():
    figure, axes = figures.panels(3)
    assert len(axes) == len(figure.axes) == 3


def test_a_drawing_is_rid_of_what_nobody_sees_and_nothing_else():
    drawing = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">
    <g id="axes_1"><g id="patch_1"><path d="M 0 0 L 9 9" style="fill: none"/></g>
    <defs><path id="mark" d="M 0 0 L 1 1" style="stroke: #0072b2"/></defs>
    <use xlink:href="#mark" x="1.00049" y="-0.0001" style="fill: #d55e00; stroke: #0072b2"/>
    <use xlink:href="#mark" x="2.5" y="3" style="fill: #d55e00; stroke: #0072b2"/>
    <path d="M 1 2 L 3.14159 4 z" style="fill: #009e73; opacity: 0.5"/>
    <path d="M 5 6 L 7 8 z" style="fill: #009e73; opacity: 0.5"/>
    <text style="fill: currentColor; text-anchor: start" transform="rotate(-0 1 1)">a  b</text>
    </g></svg>"""
    root = slim(drawing, "m")
    assert written(root).split(">", 1)[1] == (
        '<defs><path d="M0 0L1 1" stroke="#0072b2" id="m-0"/></defs>'
        '<g fill="#d55e00"><use href="#m-0" x="1" y="0"/><use href="#m-0" x="2.5" y="3"/></g>'
        '<g fill="#009e73"><path d="M1 2L3.14 4z" opacity="0.5"/>'
        '<path d="M5 6L7 8z" opacity="0.5"/></g><text>a  b</text></svg>'
    )
