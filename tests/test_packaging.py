"""What is built and installed: whole, nothing more, and the same from outside."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import driftlens
from driftlens.packs import names
from driftlens.report import Report
from driftlens.versions import own, versions

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "driftlens"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
ABOUT = PYPROJECT["project"]

UNSEEN = {"accelerate": "transformers asks for it where weights are spread over devices"}
"""What we depend on without importing it."""

BROUGHT = {
    "markupsafe": "jinja2 gives and takes its strings",
    "tokenizers": "what a tokenizer of transformers is made of",
    "steering_vectors": "no version of it goes with our transformers; only live objects are taken",
}
"""What we import without naming it among our dependencies."""

CALLED = {"sklearn": "scikit_learn", "PIL": "pillow", "mlflow": "mlflow_skinny"}
"""Distributions that have another name than their modules."""

HEAVY = {*["matplotlib", "numpy", "pandas", "pyarrow", "scipy", "sklearn", "torch", "transformers"]}


def fresh(*arguments):
    """What another Python says that has loaded nothing yet."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout


# Names


def imported_for_types():
    """By name, the module of ours from which type checkers take it."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    guard = next(
        n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"
    )
    froms = [n for n in guard.body if isinstance(n, ast.ImportFrom) and n.module]
    found = {a.name: n.module for n in froms for a in n.names if a.name != "*"}
    for module in (n.module for n in froms if n.names[0].name == "*"):
        star = importlib.import_module(f"driftlens.{module}").__all__
        found |= dict.fromkeys(star, module)
    return found


def test_type_checkers_see_the_names_that_there_are_and_where_they_live():
    homes = imported_for_types()
    assert sorted(homes) == sorted(driftlens.__all__) == dir(driftlens)
    for name, home in homes.items():
        there = getattr(importlib.import_module(f"driftlens.{home}"), name)
        assert getattr(driftlens, name) is there


def test_there_are_no_other_names():
    with pytest.raises(AttributeError, match="no attribute 'Driftt'"):
        _ = driftlens.Driftt


# Versions


def test_the_version_is_stated_in_one_place():
    version = driftlens.__version__
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "driftlens/__init__.py"
    assert versions()["driftlens"] == own() == version
    for file, stated in (("CITATION.cff", r"^version: (.*)$"), ("CHANGELOG.md", r"^## (\S+)")):
        assert re.search(stated, (ROOT / file).read_text("utf-8"), re.M)[1] == version, file
    sphinx = ROOT / "docs" / "conf.py"
    assert not sphinx.exists() or version not in sphinx.read_text("utf-8")


def test_a_page_says_which_version_drew_it(tmp_path):
    page = Report("Nothing", []).write(tmp_path / "report", formats=["html"])
    generator = f'<meta name="generator" content="driftlens {driftlens.__version__}">'
    assert generator in page.read_text("utf-8")


def test_versions_are_told_without_loading_anything_and_are_those_that_run():
    told = fresh("-m", "driftlens", "--version")
    loading = (
        "import numpy, torch, transformers\n"
        "from driftlens.versions import versions\n"
        "assert versions()['torch'] == torch.__version__\n"
        "for name, version in versions().items(): print(name, version)"
    )
    assert told == fresh("-c", loading)
    assert told.startswith(f"driftlens {driftlens.__version__}\n")


# What is loaded, and what is asked for


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["report", "--help"]])
def test_the_command_line_answers_without_what_is_heavy(arguments):
    code = (
        f"import sys; sys.argv = ['driftlens', *{arguments}]\n"
        "from driftlens import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print('loaded', *{name.partition('.')[0] for name in sys.modules})"
    )
    *said, loaded = fresh("-c", code).splitlines()
    assert said
    assert HEAVY.isdisjoint(loaded.split())


def test_importing_it_imports_nothing_of_others():
    code = "import sys; before = {*sys.modules}; import driftlens; print(*{*sys.modules} - before)"
    loaded = {name.partition(".")[0] for name in fresh("-S", "-c", code).split()}
    assert loaded - set(sys.stdlib_module_names) == {"driftlens"}


def imports(path):
    """The top-level packages that a file imports, also where it imports late."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def required(lines):
    return {re.split(r"[^\w.-]", line, maxsplit=1)[0].replace("-", "_") for line in lines}


def test_every_dependency_is_used_and_every_import_is_one():
    used = {name for path in PACKAGE.rglob("*.py") for name in imports(path)}
    used -= {*sys.stdlib_module_names, "driftlens"}
    used = {CALLED.get(name, name) for name in used}
    core = required(ABOUT["dependencies"])
    optional = required(
        line
        for extra, lines in ABOUT["optional-dependencies"].items()
        for line in lines
        if extra not in ("dev", "docs", "notebook")
    )
    assert core - used == set(UNSEEN)
    assert used - core - optional == set(BROUGHT)


# What is built


def sources(folder):
    return [p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]


def expected_in_wheel():
    code = {path.relative_to(ROOT).as_posix() for path in sources(PACKAGE)}
    packs = [path for path in sources(ROOT / "probes") if path.parent.parent == ROOT / "probes"]
    return code | {f"driftlens/{path.relative_to(ROOT).as_posix()}" for path in packs}


def included(builder):
    return {found.distribution_path for found in builder(str(ROOT)).recurse_included_files()}


def test_a_wheel_takes_the_package_with_its_packs_and_nothing_else():
    from hatchling.builders.wheel import WheelBuilder

    inside = included(WheelBuilder)
    assert inside == expected_in_wheel()
    for needed in ("py.typed", "report/report.css", "demo/stages/aligned/model.safetensors"):
        assert f"driftlens/{needed}" in inside


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="Git knows what belongs to a checkout")
def test_an_sdist_takes_all_that_is_under_version_control():
    from hatchling.builders.sdist import SdistBuilder

    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    tracked = {name for name in listed.stdout.decode().split("\0") if (ROOT / name).is_file()}
    assert tracked <= included(SdistBuilder)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel, an sdist, and a wheel of the sdist."""
    into = tmp_path_factory.mktemp("built")

    def build(root, kind, place):
        command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", into / place]
        subprocess.run(command, cwd=root, check=True, capture_output=True)
        return next((into / place).iterdir())

    sdist = build(ROOT, "sdist", "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(into, filter="data")
    unpacked = into / sdist.name.removesuffix(".tar.gz")
    return build(ROOT, "wheel", "wheel"), build(unpacked, "wheel", "again")


@pytest.mark.slow
def test_the_wheel_of_the_sdist_is_the_wheel_of_the_checkout_byte_for_byte(built):
    wheel, again = built
    assert wheel.name == again.name == f"driftlens-{driftlens.__version__}-py3-none-any.whl"
    assert wheel.read_bytes() == again.read_bytes()


@pytest.mark.slow
def test_a_wheel_says_what_it_is_and_holds_its_licence(built):
    wheel, _ = built
    about = f"driftlens-{driftlens.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if not name.startswith(about)}
        assert inside == expected_in_wheel()
        assert archive.read(f"{about}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        told = metadata.PathDistribution(zipfile.Path(archive, f"{about}/")).metadata
    assert told["Version"] == driftlens.__version__
    assert told["Requires-Python"] == ABOUT["requires-python"]
    assert told["License-Expression"] == ABOUT["license"]
    assert told["Description-Content-Type"] == "text/markdown"
    assert told.get_payload().rstrip() == (ROOT / "README.md").read_text("utf-8").rstrip()


# What is installed

NO_NETWORK = """\
import socket

def refused(*_, **__):
    raise AssertionError("something asked for the network")

socket.socket.connect = socket.getaddrinfo = refused
"""


@dataclass(frozen=True)
class Elsewhere:
    """An environment where the wheel is installed, in a folder far from the checkout."""

    place: Path

    @property
    def python(self):
        return self.place / "venv" / "bin" / "python"

    def __call__(self, *command):
        """What a command says; there is no network for it, and no home to write to."""
        kept = {n: v for n, v in os.environ.items() if n not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
        env = kept | {"HOME": "/dev/null", "MPLCONFIGDIR": str(self.place), "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(command, cwd=self.place, env=env, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def run(self, program, *arguments):
        return self(self.python.with_name(program), *arguments)


@pytest.fixture(scope="module")
def elsewhere(built, tmp_path_factory):
    wheel, _ = built
    made = Elsewhere(tmp_path_factory.mktemp("elsewhere"))
    made(sys.executable, "-m", "venv", "--without-pip", "venv")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", made.python)
    made(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel)
    where = made.run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    # What driftlens depends on is seen by a path. Of that, no further paths are followed, so that
    # a checkout that is installed there is not.
    theirs = {str(metadata.distribution(name).locate_file("")) for name in ("torch", "typer")}
    Path(where.strip(), "theirs.pth").write_text("\n".join(theirs))
    Path(where.strip(), "sitecustomize.py").write_text(NO_NETWORK)
    return made


@pytest.mark.slow
def test_an_installed_wheel_tells_its_version_and_its_packs(elsewhere):
    told = elsewhere.run("python", "-m", "driftlens", "--version")
    assert told == "".join(f"{name} {version}\n" for name, version in versions().items())
    assert elsewhere.run("driftlens", "--version") == told
    *packs, _ = elsewhere.run("driftlens", "packs").splitlines()
    assert [line[2:].split()[0] for line in packs] == names()


@pytest.mark.slow
def test_an_installed_wheel_writes_a_report_without_network_or_home(elsewhere):
    few = ("--pack", "world", "--limit", "4", "--samples", "0", "--no-mitigate", "--quiet")
    asked = ("report", "demo:base", "demo:aligned", "--format", "html,json", "--out", "few", *few)
    assert elsewhere.run("driftlens", *asked).splitlines()[-1] == "few/index.html"


@pytest.mark.slow
def test_a_program_elsewhere_is_typed_strictly_and_runs(elsewhere):
    program = Path(__file__).with_name("outside.py")
    told = json.loads(elsewhere.run("python", program))
    assert Path(told["file"]).is_relative_to(elsewhere.place / "venv")
    likely = np.exp([0.0, 1.0, 2.0]) / np.exp([0.0, 1.0, 2.0]).sum()
    assert told["kl"] == pytest.approx(np.mean(np.log(1 / 3 / likely)), rel=1e-6)
    mypy = (sys.executable, "-m", "mypy", "--strict", "--no-incremental")
    said = elsewhere(*mypy, "--python-executable", elsewhere.python, program)
    assert said.startswith("Success")
