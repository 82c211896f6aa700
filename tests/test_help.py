"""The help: what to type stands in it, and it is what can be typed."""

import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import typer

from driftlens import cli
from driftlens.cli.help import CODES, PANELS, broken, examples_of, panel_of

UsageError = typer.BadParameter.__base__
ROOT = typer.main.get_command(cli.app)


def pages(command=ROOT, path=()):
    """Every command and every group, by what is typed for it."""
    yield " ".join(("driftlens", *path)), command
    for name, sub in getattr(command, "commands", {}).items():
        yield from pages(sub, (*path, name))


PAGES = dict(pages())


@pytest.fixture(autouse=True)
def built_once(monkeypatch):
    """The commands as they are, but not put together anew for every call."""
    monkeypatch.setattr(cli, "app", ROOT)


COMMANDS = {path: page for path, page in PAGES.items() if not hasattr(page, "commands")}


def helped(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [*path.split(), "--help"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    return capsys.readouterr().out


def parsed(line):
    """The command that a line is of, and what it was given; nothing is run."""
    words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
    assert words[0] == "driftlens"
    if ">" in words:
        words = words[: words.index(">")]
    command, args, context = ROOT, words[1:], None
    while hasattr(command, "commands"):
        context = command.make_context(command.name or "driftlens", args, parent=context)
        rest = [*context._protected_args, *context.args]
        _, command, args = command.resolve_command(context, rest)
    return command, command.make_context(command.name, args, parent=context)


@pytest.mark.parametrize("path", PAGES)
def test_every_page_teaches_by_an_example_that_can_be_typed(path):
    examples = examples_of(PAGES[path].help)
    assert examples
    for what, line in examples:
        assert what.endswith((".", "?")), line
        command, context = parsed(line)
        assert context.command is command
        if path in COMMANDS:
            assert command is COMMANDS[path], line


def test_an_example_with_a_wrong_name_or_type_would_be_found():
    for wrong in ("--pakc x", "--limit many"):
        with pytest.raises(UsageError) as found:
            parsed(f"driftlens report a b {wrong}")
        assert wrong.split()[0].lstrip("-") in found.value.format_message()


@pytest.mark.parametrize("path", PAGES)
def test_a_page_fits_80_columns_and_holds_every_option_and_every_code(path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    out = helped(path, monkeypatch, capsys)
    assert all(len(line) <= 80 for line in out.splitlines()), max(out.splitlines(), key=len)
    assert "\x1b" not in out
    opening = [line for line in out.splitlines() if line]
    assert opening[0].startswith(f"Usage: {path}")
    assert opening[1][0].isupper()
    at = [out.index(head) for head in ("Usage", "\nExamples\n", "-h, --help")]
    assert at == sorted(at)
    page = PAGES[path]
    for param in page.params:
        name = param.opts[-1] if param.param_type_name == "option" else param.metavar
        assert (name or param.name.upper()) in out
    if path in COMMANDS:
        said = out[out.index("\nExit codes\n") :]
        thresholds = any(param.name == "fail_on" for param in page.params)
        assert (f"1 {CODES[1]}" in said) == thresholds
        assert "0 done" in said


def test_examples_stand_each_on_lines_of_their_own_and_can_be_pasted(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    out = helped("driftlens evals scores", monkeypatch, capsys)
    block = out[out.index("\nExamples\n") : out.index("\nArguments\n")]
    typed = re.sub(r" \\\n\s+", " ", block)
    lines = [line.strip() for line in typed.splitlines() if line.strip().startswith("driftlens")]
    assert lines == [line for _, line in examples_of(PAGES["driftlens evals scores"].help)]
    assert any(a.endswith("\\") for a, b in pairwise(block.splitlines()))


def test_a_line_is_broken_between_words_and_not_within_quotes():
    line = 'driftlens steer apply x --prompt "Where is the clock?" --strength 0,2,4'
    pieces = broken(line, 40)
    assert all(len(piece) <= 40 for piece in pieces)
    assert shlex.split(" ".join(piece.removesuffix(" \\") for piece in pieces)) == shlex.split(line)


def test_options_stand_in_panels_and_their_defaults_are_said(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    out = helped("driftlens report", monkeypatch, capsys)
    heads = ["What to show", "What to measure", "Models and devices", "Output", "Exit codes"]
    at = [out.index(f"\n{head}\n") for head in heads]
    assert at == sorted(at)
    words = " ".join(out.split())
    assert "[default: auto]" in words
    assert "[default: html,json,parquet,figures]" in words
    assert "[default: --mitigate]" in words
    assert "go on with --resume" in words


def test_a_panel_names_only_options_that_some_command_has():
    known = {param.name for page in PAGES.values() for param in page.params} | {"help"}
    assert {name for names in PANELS.values() for name in names} <= known


def test_options_of_one_name_stand_in_one_panel_wherever_pages_are_written():
    writing = [page for page in COMMANDS.values() if any(p.name == "format" for p in page.params)]
    assert len(writing) > 5
    panels = {
        (param.name, panel_of(page, param))
        for page in writing
        for param in page.params
        if param.param_type_name == "option"
    }
    assert len(panels) == len({name for name, _ in panels})


def test_the_first_page_groups_commands_and_says_what_to_type_first(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    out = helped("driftlens", monkeypatch, capsys)
    heads = ["Examples", "Compare two models", "Before you train", "Look inside", "Afterwards"]
    at = [out.index(f"\n{head}\n") for head in heads]
    assert at == sorted(at)
    first = next(line for line in out.splitlines() if line.strip().startswith("driftlens"))
    assert first.strip() == "driftlens report demo:base demo:aligned"
    for name in ROOT.commands:
        (line,) = [line for line in out.splitlines() if re.match(rf"  {name}  ", line)]
        assert line.endswith(".")


@pytest.mark.parametrize("path", [path for path in PAGES if path not in COMMANDS])
def test_a_group_alone_says_what_it_would_say_if_asked_for_help(path, monkeypatch, capsys):
    asked = helped(path, monkeypatch, capsys)
    monkeypatch.setattr(sys, "argv", path.split())
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert capsys.readouterr().out.strip() == asked.strip()


def test_help_comes_without_the_libraries_of_models():
    watched = ("torch", "transformers", "pandas", "matplotlib", "driftlens.integrations")
    script = f"""
import sys
from driftlens import cli
sys.argv = ["driftlens", "report", "--help"]
try:
    cli.main()
except SystemExit as left:
    assert not left.code
assert not [name for name in {watched} if name in sys.modules], sys.modules.keys()
"""
    place = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=place, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "Examples" in done.stdout


def test_a_terminal_gets_colours_unless_it_wants_none(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    from rich.text import Text

    from driftlens.cli.help import rendered

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" in rendered(lambda screen: screen.print(Text("x", "green")))
    monkeypatch.setenv("NO_COLOR", "1")
    assert rendered(lambda screen: screen.print(Text("x", "bold green"))) == "x\n"
