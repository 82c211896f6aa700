"""The lessons: they open with their question, run from a clean state, and say what they said."""

import json
import re
import subprocess
import sys
from html import unescape
from itertools import zip_longest
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
LESSONS = sorted(NOTEBOOKS.glob("*.ipynb"))
NAMES = [path.stem for path in LESSONS]

LARGEST = 500_000
"""Bytes of a notebook that can still be read where it is only shown."""

NUMBER = re.compile(r"[-−+]?\d+(?:\.\d+)?(?:e[-+]?\d+| × 10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?")

NOISE = 1e-4
"""What is smaller is written as a power of ten, and is rounding here: that of a residual, say."""

NEAR = 1e-3
"""Beside the last digit that is shown, what a number may move by, as a share of it. Another machine
sums in another order: float32 then differs by 1e-7 of what is summed, and searches and fits carry
that on. With and without vector instructions no number moved by more than its last digit."""


def lesson(path):
    return nbformat.read(path, as_version=4)


def codes(path):
    return [cell for cell in lesson(path).cells if cell.cell_type == "code"]


def texts(cell):
    """What a cell said, in words: each output's texts, pictures by what they show."""
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.text
        for kind, what in output.get("data", {}).items():
            if kind == "text/html":
                what = re.sub(r'src="data:image/png;base64,[^"]*"', "", what)
            yield unescape(what) if kind.startswith("text/") else kind


def number(text):
    raised = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-")
    return float(text.replace(" × 10", "e").translate(raised))


def unit(text):
    """The worth of the last digit of a number as it is written."""
    whole = re.match(r"[-−+]?\d+(?:\.(\d+))?(?:(?:e| × 10)(.*))?", text)
    power = number(whole[2]) if whole[2] else 0
    return 10.0 ** (power - len(whole[1] or ""))


def alike(one, other):
    """Whether two numbers as they are written are one, but for rounding."""
    a, b = number(one), number(other)
    if max(abs(a), abs(b)) < NOISE:
        return True
    return abs(a - b) <= 1.01 * max(unit(one), unit(other)) + NEAR * abs(a)


def differences(was, now):
    """Where two texts differ in their words, or in a number by more than rounding."""
    if NUMBER.sub("#", was) != NUMBER.sub("#", now):
        return [(was, now)]
    pairs = zip(NUMBER.findall(was), NUMBER.findall(now), strict=True)
    return [pair for pair in pairs if not alike(*pair)]


def test_there_are_six_lessons_and_the_page_names_each_with_its_question():
    assert [name.split("-")[0] for name in NAMES] == list("123456")
    page = (NOTEBOOKS / "README.md").read_text("utf-8")
    for path in LESSONS:
        question = re.search(r"\*\*(.*\?)\*\*", lesson(path).cells[0].source)[1]
        assert f"({path.name})" in page
        assert question in page


@pytest.mark.parametrize("path", LESSONS, ids=NAMES)
def test_what_the_page_says_that_a_lesson_found_is_what_its_cells_say(path):
    page = (NOTEBOOKS / "README.md").read_text("utf-8")
    (row,) = [line for line in page.split("\n") if f"({path.name})" in line]
    found = re.findall(r"\d+\.\d+|\d+(?=%)", row.split("|")[3])
    said = "\n".join(text for cell in codes(path) for text in texts(cell))
    assert found
    assert set(found) <= set(re.findall(r"\d+\.\d+|\d+(?=%)", said))


@pytest.mark.parametrize("path", LESSONS, ids=NAMES)
def test_a_lesson_opens_with_its_question_and_ends_with_the_command_and_what_is_next(path):
    first, *_, last = lesson(path).cells
    lines = [line for line in first.source.split("\n") if line.strip()]
    assert lines[0].startswith("# ")
    assert re.match(r"\*\*", lines[1])
    assert "?**" in first.source
    assert "## How sure, and what could make it wrong" in last.source
    assert re.search(r"^    driftlens \w+", last.source, re.MULTILINE)
    for name in re.findall(r"\]\((.*?\.ipynb)\)", last.source):
        assert (NOTEBOOKS / name).exists()


@pytest.mark.parametrize("path", LESSONS, ids=NAMES)
def test_its_commands_name_options_that_exist(path):
    from typer.main import get_command

    from driftlens.cli import app

    commands = get_command(app).commands
    for name, *rest in re.findall(r"^    driftlens (\w+) ?(\w+)?(.*)$", all_prose(path), re.M):
        command = commands[name]
        if hasattr(command, "commands"):
            command = command.commands.get(rest[0]) or command.commands["measure"]
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", "".join(rest))) <= known


def all_prose(path):
    return "\n".join(cell.source for cell in lesson(path).cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("path", LESSONS, ids=NAMES)
def test_its_outputs_are_there_in_order_and_without_noise(path):
    cells = codes(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert all(cell.outputs for cell in cells if not cell.source.lstrip().startswith("def "))
    assert any("data:image/png" in html for html in htmls(outputs)) or path.stem.startswith("6")


def htmls(outputs):
    return [output.get("data", {}).get("text/html", "") for output in outputs]


@pytest.mark.parametrize("path", LESSONS, ids=NAMES)
def test_it_keeps_nothing_of_the_machine_that_executed_it(path):
    raw = path.read_text("utf-8")
    assert len(raw.encode()) < LARGEST
    plain = json.loads(raw)
    assert plain["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert all(cell["metadata"] == {} for cell in plain["cells"])
    said = "\n".join(text for cell in codes(path) for text in texts(cell))
    assert not re.search(r"/(home|root|tmp|usr|work|Users|opt)/|[A-Z]:\\|at 0x[0-9a-f]", said)
    ids = [cell["id"] for cell in plain["cells"]]
    assert ids == [f"c{number:02d}" for number in range(1, len(ids) + 1)]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("0.239", "0.240", True),
        ("0.239", "0.245", False),
        ("12%", "13%", True),
        ("12%", "19%", False),
        ("2.8e-17", "0.0e+00", True),
        ("4.6 × 10⁻⁸", "0", True),
        ("−0.10", "0.10", False),
        ("rose by 1.0", "fell by 1.0", False),
        ("1000000", "1000900", True),
    ],
)
def test_what_is_said_anew_may_differ_by_rounding_alone(one, other, same):
    assert (not differences(one, other)) == same


@pytest.mark.slow
@pytest.mark.parametrize("path", LESSONS, ids=NAMES)
def test_it_runs_offline_from_a_clean_state_and_says_what_it_said(path, tmp_path):
    number = path.stem.split("-")[0]
    command = [sys.executable, NOTEBOOKS / "execute.py", number, "--to", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(path.name)
    assert done.stderr.count("\n") == 1, "a kernel had something to say"
    cells = zip(codes(path), codes(tmp_path / path.name), strict=True)
    for was, now in cells:
        for one, other in zip_longest(texts(was), texts(now), fillvalue=""):
            assert not differences(one, other), was.source


@pytest.mark.slow
def test_a_kernel_that_reaches_for_the_network_is_told_so(tmp_path, monkeypatch):
    sys.path.append(str(NOTEBOOKS))
    from execute import executed

    asks = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(
                "import socket\n"
                "try:\n"
                '    socket.create_connection(("192.0.2.1", 80), timeout=1)\n'
                "except OSError as error:\n"
                "    print(error)"
            )
        ]
    )
    nbformat.write(asks, tmp_path / "asks.ipynb")
    (cell,) = executed(tmp_path / "asks.ipynb").cells
    assert cell.outputs[0].text == "a lesson needs no network, and asked for ('192.0.2.1', 80)\n"
