"""What `driftlens show` tells of a folder: what matters, nothing that hurts, no more than fits."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from driftlens import cli
from driftlens.report import Report
from driftlens.report.written import Written
from driftlens.results import Check, Estimate, Result, column, fact, value

HOSTILE = "[red]\x1b[31mred\x1b[0m\u202eevil\x07[/red]"
PLAIN = "[red]‹ESC›[31mred‹ESC›[0m‹U+202E›evil‹U+0007›[/red]"


@dataclass(frozen=True)
class Rise(Result):
    """A rise with its bounds, by layer."""

    kind = "test_shown_in_terminal"
    title = "Rise by layer"
    total: Estimate = value("nats/token")
    small: Estimate = value("nats/token")
    seen: int = fact("tokens")
    source: str = fact()
    layer: np.ndarray = column()
    share: np.ndarray = column("nats/token")
    low: np.ndarray = column("nats/token")
    high: np.ndarray = column("nats/token")
    other: np.ndarray = column("nats/token")


@dataclass(frozen=True)
class Long(Result):
    """Many rows, and many columns."""

    kind = "test_rows"
    title = "Long"
    word: np.ndarray = column()
    first: np.ndarray = column("a unit of length")
    second: np.ndarray = column("a unit of length")
    third: np.ndarray = column("a unit of length")
    fourth: np.ndarray = column("a unit of length")
    fifth: np.ndarray = column("a unit of length")


SHARES = [0.02, 0.3, -0.01, 0.001, float("nan")]


def rise(**given):
    shares = np.array(SHARES)
    return Rise(
        **{
            "total": Estimate(0.3110, 0.2910, 0.3310),
            "small": Estimate(0.0010, -0.001, 0.003),
            "seen": 1234,
            "source": HOSTILE,
            "layer": ["embed", "0", "1", "2", "head"],
            "share": shares,
            "low": shares - 0.005,
            "high": shares + 0.005,
            "other": shares / 3,
            "pack": "p",
            "floor": {"total": 0.01, "small": 0.01, "share": 0.005},
            "notes": [HOSTILE],
            **given,
        }
    )


def long(rows=30):
    numbers = np.arange(rows) / 7
    words = [HOSTILE, *(f"word {n}" for n in range(1, rows))]
    return Long(
        word=words,
        **dict.fromkeys(("first", "second", "third", "fourth", "fifth"), numbers),
        pack="p",
    )


HEAVY = ("torch", "transformers", "pandas", "matplotlib")
PASSED = [Check(f"gate {n}", "pass", "so it is") for n in range(5)]


@pytest.fixture
def folder(tmp_path):
    page = Report(HOSTILE, [rise(), long(), rise(pack="q")], PASSED, {"seed": 3})
    page.write(tmp_path / "out", formats=("json", "parquet", "html"))
    return tmp_path / "out"


@pytest.fixture
def shown(driftlens):
    """Exit code and both streams of `driftlens show`."""
    return partial(driftlens, "show")


def test_the_verdict_comes_first_then_gates_in_a_line_figures_tables_and_what_to_type(
    folder, shown
):
    code, out, err = shown(folder)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[1] == Written.read(folder).verdict
    parts = ["all 5 gates passed", "Key figures", "Rise by layer · p", "In this report"]
    at = [out.index(part) for part in parts]
    assert at == sorted(at)
    assert "gate 3" not in out
    assert f"driftlens show {folder} --only test_shown_in_terminal" in lines[-2]
    assert str(folder / "index.html") in lines[-1]


def test_gates_that_did_not_pass_are_told_each(tmp_path, shown):
    checks = [*PASSED, Check("tokens", "warn", "two tokenizers"), Check("same", "fail", "no")]
    Report("t", [rise()], checks).write(tmp_path / "out", formats=("json", "parquet"))
    _, out, _ = shown(tmp_path / "out")
    assert "5 of 7 gates passed" in out
    assert "! warn  tokens: two tokenizers" in out
    assert "✗ fail  same: no" in out


def test_numbers_have_errors_units_and_floors_and_layers_have_bars(folder, shown):
    _, out, _ = shown(folder)
    figures = next(
        line for line in out.splitlines() if line.split()[:2] == ["test_shown_in_terminal", "total"]
    )
    assert figures.split("  ")[-1].strip() == "31 ×"
    assert "0.311 ± 0.020" in figures
    assert "nats/token" in figures
    rows = {line.split()[0]: line for line in out.splitlines() if line.split()}
    assert "0.3000 ± 0.0050" in rows["0"]
    assert "████████████ ◂" in rows["0"]
    assert out.count("◂") == 1
    assert "0.0010 ± 0.0050 ~" in rows["2"]
    assert "–" in rows["head"]
    assert "~ below the noise floor" in out


def test_a_column_is_joined_to_bounds_only_of_its_own_unit_and_around_it(tmp_path, shown):
    shares = np.array(SHARES)
    Report("t", [rise(low=shares + 1, high=shares + 2)]).write(tmp_path / "out")
    _, out, _ = shown(tmp_path / "out")
    heads = next(line for line in out.splitlines() if line.split()[:2] == ["share", "low"])
    assert heads.split()[:3] == ["share", "low", "high"]


@dataclass(frozen=True)
class Bounds(Result):
    """Columns whose bounds stand apart, and others that only look like bounds."""

    kind = "test_bounds"
    title = "Bounds"
    gain: np.ndarray = column("nats")
    cost: np.ndarray = column("points")
    low: np.ndarray = column("nats")
    high: np.ndarray = column("nats")
    control_low: np.ndarray = column("nats")
    control_high: np.ndarray = column("nats")
    gain_low: np.ndarray = column("nats")
    gain_high: np.ndarray = column("nats")


def test_bounds_are_found_by_name_and_no_number_is_given_those_of_another(tmp_path, shown):
    ones, known = np.ones(2), {"gain_low": [0.5, 0.5], "gain_high": [1.5, 1.5]}
    rest = dict.fromkeys(("control_low", "control_high"), [float("nan")] * 2)
    found = Bounds(gain=ones, cost=ones * 3, low=ones * 2, high=ones * 4, **known, **rest, pack="p")
    Report("t", [found]).write(tmp_path / "out")
    _, out, _ = shown(tmp_path / "out")
    heads = next(line for line in out.splitlines() if line.split()[:1] == ["gain"])
    assert [one.strip() for one in heads.split("  ") if one.strip()] == [
        *("gain", "cost", "low", "high", "control low", "control high"),
    ]
    assert "1.00 ± 0.50" in out


def test_height_is_bounded_and_the_rest_is_where_it_says(folder, shown):
    _, out, _ = shown(folder)
    assert "18 more rows" in out
    assert "word 11" in out
    assert "word 12" not in out
    assert "all: --only test_rows-p" in out
    _, out, _ = shown(folder, "--rows", 2)
    assert "28 more rows" in out
    _, out, _ = shown(folder, "--only", "test_rows")
    assert "word 29" in out
    assert "more rows" not in out
    _, out, _ = shown(folder, "--only", "test_rows", "--rows", 3)
    assert "27 more rows" in out
    assert "tables/test_rows-p.parquet" in out
    assert "word 29" in shown(folder, "--rows", 0)[1]


def test_a_result_is_shown_whole_by_its_kind_its_pack_or_both(folder, shown):
    _, out, _ = shown(folder, "--only", "test_shown_in_terminal")
    assert out.count("Rise by layer") == 2
    _, out, _ = shown(folder, "--only", "q")
    assert out.count("Rise by layer") == 1
    _, out, _ = shown(
        folder, "--only", "test_shown_in_terminal/p", "--only", "test_shown_in_terminal-p"
    )
    assert out.count("Rise by layer · p") == 1
    for part in ("1234", "seen", "other", PLAIN):
        assert part in out
    code, out, err = shown(folder, "--only", "nothing")
    assert (code, out) == (2, "")
    assert "test_shown_in_terminal, test_rows" in err


def test_the_record_and_the_rows_come_as_json(folder, shown):
    _, out, _ = shown(folder, "--json")
    assert json.loads(out) == json.loads((folder / "results.json").read_text())
    _, out, _ = shown(folder, "--only", "test_shown_in_terminal/p", "--json")
    (found,) = json.loads(out)
    assert found["kind"] == "test_shown_in_terminal"
    assert [row["layer"] for row in found["rows"]] == ["embed", "0", "1", "2", "head"]
    assert found["rows"][4]["share"] is None
    assert found["rows"][1]["share"] == 0.3


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize(
    "only", [[], ["--only", "test_rows"], ["--only", "test_shown_in_terminal"]]
)
def test_lines_fit_the_terminal_and_every_column_is_there_or_named(
    columns, only, folder, shown, monkeypatch
):
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, _ = shown(folder, *only)
    assert all(len(line) <= columns for line in out.splitlines() if str(folder) not in line)
    if only != ["--only", "test_shown_in_terminal"]:
        for name in ("first", "second", "third"):
            assert name in out
    if only:
        assert "not shown" not in out


def test_a_pipe_gets_plain_lines_that_nothing_breaks(folder, shown):
    _, out, _ = shown(folder)
    assert "\x1b" not in out
    assert all(line == line.rstrip() for line in out.splitlines())
    heads = next(line for line in out.splitlines() if "fifth" in line)
    assert heads.split() == ["first", "second", "third", "fourth", "fifth"]


@pytest.mark.parametrize("terminal", [False, True])
def test_hostile_text_is_shown_and_never_obeyed(terminal, folder, shown, monkeypatch):
    if terminal:
        monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True, raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")
    _, out, _ = shown(folder, "--only", "test_shown_in_terminal", "--only", "test_rows")
    assert "\x1b[31mred" not in out
    assert "\u202e" not in out
    assert "\x07" not in out
    assert PLAIN in out
    _, out, _ = shown(folder)
    assert PLAIN in out.splitlines()[0]


def test_a_series_says_how_to_see_its_stages(tmp_path, shown):
    page = Report("a → b → c", [rise()])
    page.write(tmp_path / "out", stages={"1-a-b": Report("a → b", [rise()])})
    _, out, _ = shown(tmp_path / "out")
    assert f"stage 1-a-b: driftlens show {tmp_path / 'out/stages/1-a-b'}" in out
    assert "a → b" in shown(tmp_path / "out/stages/1-a-b")[1].splitlines()[0]


def test_the_page_or_the_record_stands_for_its_folder(folder, shown):
    assert shown(folder / "index.html")[1] == shown(folder)[1] == shown(folder / "results.json")[1]


def test_a_report_without_tables_or_results_is_shown_too(tmp_path, shown):
    Report("t", [rise()]).write(tmp_path / "few", formats=("json",))
    code, out, _ = shown(tmp_path / "few")
    assert code == 0
    assert "0.311 ± 0.020" in out
    Report("t", []).write(tmp_path / "none", formats=("json",))
    assert "Nothing was measured." in shown(tmp_path / "none")[1]


def test_words_of_a_strange_record_are_plain_too(folder, shown):
    record = json.loads((folder / "results.json").read_text())
    record["checks"][0]["status"] = record["results"][0]["kind"] = HOSTILE
    (folder / "results.json").write_text(json.dumps(record))
    code, out, _ = shown(folder)
    assert code == 0
    assert "\x1b" not in out
    assert out.count(PLAIN) > 2


@pytest.mark.parametrize("broken", [True, False])
def test_a_table_that_is_lost_or_broken_is_told_of(broken, folder, shown):
    table = folder / "tables/test_shown_in_terminal-p.parquet"
    table.unlink()
    if broken:
        table.write_text("no table")
    for only in ([], ["--only", "test_shown_in_terminal"]):
        code, out, err = shown(folder, *only)
        assert (code, out) == (2, "")
        assert "tables/test_shown_in_terminal-p.parquet" in err


WRONG = {
    "nothing": ({}, 2, "results.json"),
    "a probe": ({"card.json": "{}", "probe.safetensors": ""}, 2, "driftlens probe show"),
    "directions": ({"card.json": "{}", "directions.safetensors": ""}, 2, "driftlens steer show"),
    "no JSON": ({"results.json": "{"}, 2, "JSONDecodeError"),
    "another record": ({"results.json": '{"schema_version": "1.0"}'}, 2, "KeyError"),
    "another version": ({"results.json": '{"schema_version": "9.0"}'}, 2, "version 9.0"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_folder_that_is_no_report_is_told_of(what, tmp_path, shown):
    files, left, said = WRONG[what]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    code, out, err = shown(tmp_path)
    assert (code, out) == (left, "")
    assert said in err


def test_it_is_shown_without_the_libraries_of_models(folder):
    script = f"""
import sys
from driftlens import cli
sys.argv = ["driftlens", "show", {str(folder)!r}]
try:
    cli.main()
except SystemExit as left:
    assert not left.code
assert not [name for name in {HEAVY} if name in sys.modules]
"""
    place = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=place, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Rise by layer" in done.stdout
