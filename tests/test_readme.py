"""The README keeps what it promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDES = sorted((ROOT / "docs/guide").glob("*.md"))


def blocks(language: str, page: Path = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def run(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SAYS = {
    "README": ["Loss rose by"],
    "before-you-train": ["would first move as meant"],
    "behaviour": ["and bring back"],
    "beliefs": ["strong polarity"],
    "many-machines": [""],
    "steering": ["Steering the model at the stream after block 3"],
    "your-own-objects": ["tensor([[", "'head'"],
}
"""What each piece of Python of each page prints."""


@pytest.mark.slow
@pytest.mark.parametrize("page", [README, *GUIDES], ids=lambda page: page.stem)
def test_the_python_of_every_page_runs_as_it_stands(page, tmp_path):
    said = [run(code, tmp_path) for code in blocks("python", page)]
    for one, what in zip(said, SAYS.get(page.stem, []), strict=True):
        assert what in one
    if page == README:
        assert (tmp_path / "reports/mine/index.html").exists()
        assert (tmp_path / "layers.png").stat().st_size > 10_000


def test_the_first_python_of_the_readme_is_twelve_lines():
    (code,) = blocks("python")
    assert len(code.splitlines()) == 12


def test_its_commands_name_options_that_exist():
    from typer.main import get_command

    from driftlens.cli import app

    commands = get_command(app).commands
    for group in ("probe", "steer", "evals"):
        inside = commands.pop(group).commands
        commands |= {f"{group} {name}": one for name, one in inside.items()}
    # Their names go without saying.
    commands["steer"] = commands["steer measure"]
    commands["evals"] = commands["evals read"]
    written = "\n".join(block for page in (README, *GUIDES) for block in blocks("sh", page))
    written += "\n".join(re.findall(r"`(driftlens [^`]*)`", README.read_text("utf-8")))
    names = "|".join(sorted(map(re.escape, commands), key=len, reverse=True))
    called = re.findall(rf"^driftlens ({names})\b(.*)$", written, re.MULTILINE)
    assert len(called) >= 25
    for name, rest in called:
        known = {option for p in commands[name].params for option in p.opts}
        assert set(re.findall(r"--[\w-]+", rest)) <= known


def test_its_set_up_commands_are_those_that_ci_runs():
    ci = (ROOT / ".ci/run").read_text("utf-8")
    for command in re.findall(r"^\./dev \w+", "\n".join(blocks("sh")), re.MULTILINE):
        assert command in ci


def test_the_tree_speaks_of_no_machine():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix in (".safetensors", ".parquet", ".png") or not path.is_file():
            continue
        text = path.read_text("utf-8")
        for place in ("/ho" + "me/", "/wo" + "rk/", "/ro" + "ot/", "/t" + "mp/"):
            assert place not in text, f"{name} names {place}"
