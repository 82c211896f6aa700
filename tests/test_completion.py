"""Completion: what TAB offers, asked as a shell asks, and what it must not wait for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from driftlens import attribution, cli
from driftlens.cli import completion, shared
from driftlens.diagnostics import directions
from driftlens.formulas.preferences import LOSSES
from driftlens.integrations.trackers import TRACKERS
from driftlens.mitigation.asked import METHODS as MITIGATIONS
from driftlens.models.backends import BACKENDS
from driftlens.models.pieces import DIVISIONS
from driftlens.packs import names
from driftlens.probe import METHODS as PROBES

HEAVY = ("torch", "transformers", "pandas", "matplotlib", "scipy", "sklearn", "pyarrow")
ROOT = typer.main.get_command(cli.app)
SCRIPT = f"""
import sys
from driftlens import cli
sys.argv = ["driftlens"]
try:
    cli.main()
finally:
    found = [name for name in {HEAVY} if name in sys.modules]
    if found:
        print("imported", *found)
"""


@pytest.fixture
def answer(monkeypatch, capfd, tmp_path):
    """What bash is answered for words as it breaks them, the last of them unfinished."""
    monkeypatch.chdir(tmp_path)
    # As it is, but not put together anew for every question.
    monkeypatch.setattr(cli, "app", ROOT)

    def ask(*words, shell="bash", **also):
        monkeypatch.setenv("_DRIFTLENS_COMPLETE", f"complete_{shell}")
        monkeypatch.setenv("COMP_WORDS", "\n".join(words))
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        for name, what in also.items():
            monkeypatch.setenv(name, what)
        monkeypatch.setattr(sys, "argv", ["driftlens"])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert not left.value.code
        return capfd.readouterr().out.split()

    return ask


OFFERS = {
    "commands": (["re"], {"report", "render"}),
    "commands of a group": (["evals", "r"], {"read", "run"}),
    "options": (["report", "--base-d"], {"--base-device"}),
    "stages of the demo": (["report", ""], {"demo:base", "demo:sft", "demo:aligned"}),
    "the second model": (["report", "demo:base", "demo:a"], {"aligned"}),
    "a model that is steered": (["steer", "demo"], {"demo:base", "demo:sft", "demo:aligned"}),
    "packs": (["report", "a", "b", "--pack", ""], set(names())),
    "packs after a sign of equality": (["report", "a", "--pack", "=", "every"], {"everyday"}),
    "ways to attribute": (["attribute", "--method", ""], set(attribution.METHODS)),
    "ways to mitigate": (["mitigate", "--method", ""], set(MITIGATIONS)),
    "ways to steer": (["steer", "a", "--method", ""], set(directions.METHODS)),
    "ways to probe": (["probe", "train", "--method", ""], set(PROBES)),
    "divisions": (["attribute", "--by", ""], set(DIVISIONS)),
    "back-ends": (["report", "--backend", ""], set(BACKENDS)),
    "losses": (["check", "a", "--loss", ""], set(LOSSES)),
    "trackers": (["report", "--report-to", ""], set(TRACKERS)),
    "trackers of a finished report": (["log", "x", "--to", ""], set(TRACKERS)),
    "the next of many formats": (
        ["report", "--format", "html,"],
        {"html,json", "html,parquet", "html,figures"},
    ),
    "dtypes": (["doctor", "--dtype", "b"], {"bfloat16"}),
    "figures of bounds": (["report", "--fail-on", "forgetting.loss"], {"forgetting.loss_rise"}),
}


@pytest.mark.parametrize("what", OFFERS)
def test_what_is_offered(what, answer):
    words, offered = OFFERS[what]
    assert set(answer("driftlens", *words)) == offered


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["demo", ":"], {"base", "sft", "aligned"}),
        (["demo", ":", "al"], {"aligned"}),
        (["demo", ":", "base", "demo", ":", "s"], {"sft"}),
        (["demo", ":", "base", ""], {"demo:base", "demo:sft", "demo:aligned"}),
    ],
)
def test_bash_breaks_words_at_colons_and_is_given_what_follows_the_last(words, offered, answer):
    assert set(answer("driftlens", "report", *words)) == offered


def test_folders_of_finished_reports_and_of_models_are_offered_and_other_words_are_files(answer):
    for folder in ("reports/a", "reports/b", "c"):
        Path(folder).mkdir(parents=True)
        Path(folder, "results.json").touch()
    Path("reports/unfinished").mkdir()
    Path("kept").mkdir()
    Path("kept/config.json").touch()
    for command in ("show", "render", "compare", "log"):
        assert set(answer("driftlens", command, "")) == {"reports/a", "reports/b", "c"}
    assert set(answer("driftlens", "compare", "c", "reports/")) == {"reports/a", "reports/b"}
    assert answer("driftlens", "report", "k") == ["kept"]
    assert answer("driftlens", "report", "demo:base", "--text", "") == []


def test_zsh_and_fish_are_answered_in_their_own_words(answer):
    line = {"_TYPER_COMPLETE_ARGS": "driftlens report --pack every"}
    assert answer("driftlens", shell="zsh", **line)[-1] == ':(("everyday"))\''
    fish = {**line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    assert answer("driftlens", shell="fish", **fish) == ["everyday"]


def test_every_figure_that_can_be_held_against_a_bound_is_offered():
    known = (shared.reported(), shared.of_preflight(), shared.of_steering(), shared.of_mitigation())
    wanted = {value for values in known for value in values}
    assert len(wanted) > 300
    assert wanted <= set(completion.figures())


@pytest.mark.parametrize("words", [["rep"], ["report", "demo"], ["report", "--fail-on", "for"]])
def test_completion_waits_for_no_heavy_library(words):
    place = {
        **os.environ,
        "PYTHONPATH": str(Path(cli.__file__).parents[2]),
        "_DRIFTLENS_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(["driftlens", *words]),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=place, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert "imported" not in done.stdout


@pytest.mark.parametrize(
    ("shell", "file"),
    [
        ("bash", ".bash_completions/driftlens.sh"),
        ("zsh", ".zfunc/_driftlens"),
        ("fish", ".config/fish/completions/driftlens.fish"),
    ],
)
def test_completion_is_installed_for_a_shell(shell, file, tmp_path):
    place = {
        **os.environ,
        "PYTHONPATH": str(Path(cli.__file__).parents[2]),
        "HOME": str(tmp_path),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    script = "from driftlens.cli import main; main()"
    call = [sys.executable, "-c", script, "--install-completion", shell]
    done = subprocess.run(call, capture_output=True, text=True, env=place, check=False)
    assert done.returncode == 0, done.stderr
    assert "installed" in done.stdout
    assert f"_DRIFTLENS_COMPLETE=complete_{shell}" in (tmp_path / file).read_text()
