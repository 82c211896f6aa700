"""The README keeps what it promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def run(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_its_python_for_before_training_runs_as_it_stands(tmp_path):
    _, before, *_ = blocks("python")
    assert "would first move as meant" in run(before, tmp_path)


@pytest.mark.slow
def test_its_python_for_two_models_runs_as_it_stands(tmp_path):
    compare, *_ = blocks("python")
    assert "Loss rose by" in run(compare, tmp_path)
    assert (tmp_path / "reports/mine/index.html").exists()
    assert (tmp_path / "drift.png").stat().st_size > 10_000


@pytest.mark.slow
def test_its_python_for_probes_runs_as_it_stands(tmp_path):
    *_, probes, _, _, _, _ = blocks("python")
    assert "strong polarity" in run(probes, tmp_path)


@pytest.mark.slow
def test_its_python_for_steering_runs_as_it_stands(tmp_path):
    *_, steering, _, _, _ = blocks("python")
    said = run(steering, tmp_path)
    assert "Steering the model at the stream after block 3" in said
    assert "User: Where does Mira live?" in said


@pytest.mark.slow
def test_its_python_for_what_would_undo_it_runs_as_it_stands(tmp_path):
    *_, undone, _, _ = blocks("python")
    assert "and bring back" in run(undone, tmp_path)


@pytest.mark.slow
def test_its_python_for_live_objects_runs_as_it_stands(tmp_path):
    *_, live, _ = blocks("python")
    assert "tensor([[" in run(live, tmp_path)


@pytest.mark.slow
def test_its_python_for_captured_states_runs_as_it_stands(tmp_path):
    *_, captured = blocks("python")
    assert 0.5 < float(run(captured, tmp_path)) <= 1


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
    written = "\n".join(blocks("sh"))
    names = "|".join(sorted(map(re.escape, commands), key=len, reverse=True))
    called = re.findall(rf"^driftlens ({names})\b(.*)$", written, re.MULTILINE)
    assert len(called) >= 3
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
