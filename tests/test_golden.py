"""What holds a report against the one that is kept tells what has changed, and nothing else."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import golden
from driftlens.report import Report
from driftlens.results.store import read_columns

KEPT = Path(__file__).parents[1] / "reports/demo"

pytestmark = pytest.mark.skipif(
    not (KEPT / "results.json").exists(), reason="reports/demo is not in this copy"
)


@pytest.fixture
def made(tmp_path):
    """A copy of the kept report's numbers, which may be spoilt."""
    shutil.copy(KEPT / "results.json", tmp_path)
    shutil.copytree(KEPT / "tables", tmp_path / "tables")
    return tmp_path


def told(made, change):
    """What is said after one change of the record."""
    path = made / "results.json"
    record = json.loads(path.read_text("utf-8"))
    change(record)
    path.write_text(json.dumps(record), "utf-8")
    return [*golden.differences(KEPT, made)]


def of(record, kind):
    return next(result for result in record["results"] if result["kind"] == kind)


def test_a_report_says_what_it_says(made):
    assert [*golden.differences(KEPT, made)] == []


def loses_more(record):
    of(record, "forgetting")["values"]["loss_rise"]["value"] *= 1.01


def is_surer(record):
    of(record, "forgetting")["values"]["loss_rise"]["high"] *= 0.99


def knows_no_interval(record):
    of(record, "forgetting")["values"]["loss_rise"]["low"] = None


def is_in_bits(record):
    of(record, "forgetting")["values"]["loss_rise"]["unit"] = "bits/token"


def says_otherwise(record):
    of(record, "layer_forgetting")["summary"] = "Nothing was lost."


def lacks_a_result(record):
    record["results"].pop()


def lacks_a_figure(record):
    of(record, "drift")["figure"] = None


def fails_a_gate(record):
    record["checks"][0]["status"] = "warn"


def is_of_other_weights(record):
    record["run"]["models"]["aligned"]["sha256"] = "0" * 64


def is_of_other_texts(record):
    record["run"]["packs"][0]["examples"] += 1


def says_another_number(record):
    result = of(record, "layer_forgetting")
    result["summary"] = result["summary"].replace("63%", "93%")


def opens_with_another_number(record):
    record["verdict"] = record["verdict"].replace("0.239", "0.329")


def has_another_fact(record):
    of(record, "mitigation")["facts"]["said"] = "nothing at all"


def has_a_floor(record):
    of(record, "forgetting")["floor"]["loss_rise"] = 0.1


def has_noise(record):
    of(record, "noise_floor")["values"]["noise"]["value"] *= 1e3


CHANGES = {
    loses_more: "forgetting on world: loss_rise, value",
    is_surer: "forgetting on world: loss_rise, high",
    knows_no_interval: "forgetting on world: loss_rise, low: ",
    is_in_bits: "forgetting on world: loss_rise in 'nats/token' before, in 'bits/token' now",
    says_otherwise: "layer_forgetting on world: summary",
    lacks_a_result: "results: ",
    lacks_a_figure: "drift on world: figure",
    fails_a_gate: "gates: ",
    is_of_other_weights: "models: ",
    is_of_other_texts: "packs: ",
    says_another_number: "layer_forgetting on world: summary",
    opens_with_another_number: "verdict: ",
    has_another_fact: "mitigation on all: facts",
    has_a_floor: "forgetting on world: floor of loss_rise",
    has_noise: "noise_floor on world: noise, value",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_one_that_is_not_the_same_is_told(change, made):
    (line,) = told(made, change)
    assert line.startswith(CHANGES[change])


def test_rounding_is_not_told(made):
    def rounded(record):
        for result in record["results"]:
            for value in result["values"].values():
                for bound in ("value", "low", "high"):
                    if value[bound] is not None:
                        value[bound] *= 1 + 1e-6

    assert told(made, rounded) == []


def test_rows_that_differ_are_told_where_there_are_more_than_draws_that_turn():
    kept = read_columns(KEPT / "tables/drift-world.parquet")
    column = next(name for name, rows in kept.items() if rows.dtype.kind == "f")
    said = []
    for count in (0, 1):
        other = {name: rows.copy() for name, rows in kept.items()}
        other[column][:count] += 1
        said.append([*golden._of_tables(kept, other, "drift")])
    assert said[0] == []
    assert f"column {column}: " in said[1][0]
    shorter = {name: rows[1:] for name, rows in kept.items()}
    assert [*golden._of_tables(kept, shorter, "drift")] == [
        f"{len(kept[column])} rows before, {len(kept[column]) - 1} now"
    ]


def test_a_page_that_is_not_drawn_of_its_record_is_told(made):
    shown = Report.read(KEPT)
    small = Report(shown.title, shown.results[:3], shown.checks, shown.run)
    page = small.write(made / "small", formats=["html", "json", "parquet"])
    assert [*golden.stale(page.parent)] == []
    page.write_text(page.read_text("utf-8").replace("nats", "bits", 1), "utf-8")
    assert [*golden.stale(page.parent)] == ["index.html is not what is drawn today"]


def test_numbers_are_told_from_words():
    texts = ["4.6 × 10⁻⁸.", "−0.5", "0.0e+00.", "1.4e-17.", "8\u202f304 of", "over 1000 × as"]
    assert [golden.NUMBER.sub("#", text) for text in texts] == [
        *("#.", "#", "#.", "#.", "# of", "# × as"),
    ]


def test_numbers_in_tables_differ_by_a_part_of_the_largest():
    before = np.array([0.0, 1.0, 1000.0, np.nan, np.inf])
    near = np.array([0.5, 1.5, 1000.5, np.nan, np.inf])
    assert not golden._other(before, near, 1e-3).any()
    assert golden._other(before, before[::-1], 1e-3).tolist() == [True] * 2 + [False] + [True] * 2
