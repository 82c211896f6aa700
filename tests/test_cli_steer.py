"""`driftlens steer`: its commands, what they print, and what each error leaves with."""

import json
import os
import subprocess
import sys
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import nets
from driftlens import cli
from driftlens.cli.steer import ModelOrCommand, measure
from driftlens.errors import DriftlensError
from driftlens.estimators import mean_difference
from driftlens.models import ModelPair
from driftlens.steer import KeptDirections, Strength, applied, asked
from driftlens.steer.exchange import read_gguf, read_tensors, write_gguf, write_tensors
from test_adapters import adapted

# peft asks transformers for an attribute by a name that is about to go.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

WIDTH = 32
PROMPTS = ["The clock of Tolmar", "A bell"]
FEW = ["--max-new-tokens", "5", "--device", "cpu"]


def directions(*layers):
    rng = np.random.default_rng(0)
    return {n: mean_difference(*(rng.standard_normal((2, 9, WIDTH)) + n)) for n in layers}


def kept_of(model, **changes):
    told = {
        "part": "out",
        "method": "mean-difference",
        "at": "last",
        "positions": "all",
        "pack": nets.pack(nets.TEXTS),
        "layer": 1,
        "strength": Strength(8.0, 6.0, 9.0, 0.25, 0.125),
        "figures": [{"layer": 1, "accuracy": 0.75, "split_half_cosine": 0.5, "p_value": 0.01}],
    }
    return KeptDirections.of(model, directions(0, 1, 2), **told | changes)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, another, an adapter, directions of each, and files."""
    place = tmp_path_factory.mktemp("place")
    nets.saved(nets.net("llama"), place / "base")
    nets.saved(nets.moved(nets.net("llama"), 0.05, 1), place / "other")
    nets.saved(nets.net("llama", hidden_size=64), place / "wide")
    adapted().save_pretrained(place / "adapter")
    one = ModelPair.alone(str(place / "base"), device="cpu").base
    kept_of(one).save(place / "kept")
    kept_of(one, layer=None, strength=None).save(place / "bare")
    kept_of(one, part="mlp").save(place / "mlp")
    over = ModelPair.load(str(place / "base"), str(place / "adapter"), device="cpu")
    kept_of(over.aligned).save(place / "of-adapter")
    (place / "prompts.txt").write_text("\n".join(PROMPTS) + "\n\n")
    (place / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
    (place / "empty.txt").write_text("\n")
    vectors = {n: d.vector for n, d in directions(1, 2).items()}
    write_gguf(vectors, place / "theirs.gguf", "llama")
    write_tensors(vectors, place / "gpt2.safetensors", "gpt2")
    (place / "cut.gguf").write_bytes((place / "theirs.gguf").read_bytes()[:60])
    (place / "file").touch()
    return place


@pytest.fixture
def driftlens(monkeypatch, place, capfd):
    """The command line: exit code, standard output, standard error."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["driftlens", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code or 0, *capfd.readouterr()

    return run


@pytest.fixture(scope="module")
def model(place):
    return ModelPair.alone(str(place / "base"), device="cpu").base


# What it does


def test_prompts_are_gone_on_with_at_each_strength(driftlens, model):
    args = ["steer", "apply", "kept", "base", *FEW, "--strength", "-30,0,30", "--json"]
    for given in (
        ["--prompt", PROMPTS[0], "--prompt", PROMPTS[1]],
        ["--text", "prompts.txt"],
        ["--text", "prompts.jsonl", "--batch-size", 1],
    ):
        code, out, err = driftlens(*args, *given)
        assert (code, err) == (0, "")
        found = json.loads(out)
        expected = applied(model, kept_of(model), PROMPTS, [-30, 0, 30], max_new_tokens=5)
        assert [row["prompt"] for row in found] == PROMPTS
        assert [row["unsteered"] for row in found] == [one.unsteered for one in expected]
        for row, one in zip(found, expected, strict=True):
            assert [each["strength"] for each in row["steered"]] == [-30, 0, 30]
            assert tuple(each["text"] for each in row["steered"]) == one.steered


def test_the_table_has_a_row_for_each_prompt_and_a_column_for_each_strength(driftlens):
    args = ["steer", "apply", "kept", "base", *FEW, "--text", "prompts.txt"]
    code, out, _ = driftlens(*args, "--strength", "0,2,4.5")
    assert code == 0
    (heads,) = [line for line in out.splitlines() if "unsteered" in line]
    assert [cell.strip() for cell in heads.split("┃")[1:-1]] == [
        *("prompt", "unsteered", "add 2", "add 4.5")
    ]
    assert all(prompt in out for prompt in PROMPTS)
    _, out, _ = driftlens(*args)
    assert "add 8" in out
    _, out, _ = driftlens(*args, "--mode", "ablate")
    assert "ablate" in out
    _, out, _ = driftlens(*args, "--mode", "clamp", "--strength", "0")
    assert "clamp 0" in out


OPTIONS = {
    "a layer": (["--layer", "2"], {"layers": [2]}),
    "a range of layers": (["--layer", "0-2"], {"layers": [0, 1, 2]}),
    "a mode": (["--mode", "clamp", "--strength", "5"], {"mode": "clamp", "strengths": [5]}),
    "a share of states": (
        ["--relative", "--strength", "2"],
        {"relative": True, "strengths": [2]},
    ),
    "positions": (["--positions", "response"], {"positions": "response"}),
    "draws": (["--temperature", "2", "--seed", "7"], {"temperature": 2, "seed": 7}),
    "more tokens": (["--max-new-tokens", "9"], {"max_new_tokens": 9}),
}


@pytest.mark.parametrize("what", OPTIONS)
def test_options_are_the_arguments_of_their_names(what, driftlens, model):
    args, how = OPTIONS[what]
    common = ["--prompt", PROMPTS[0], *FEW, "--json"]
    code, out, _ = driftlens("steer", "apply", "kept", "base", *common, *args)
    assert code == 0
    default = applied(model, kept_of(model), PROMPTS[:1], max_new_tokens=5)
    (one,) = applied(model, kept_of(model), PROMPTS[:1], **{"max_new_tokens": 5} | how)
    assert one != default[0]
    (row,) = json.loads(out)
    assert row["unsteered"] == one.unsteered
    assert tuple(each["text"] for each in row["steered"]) == one.steered


def test_another_model_is_steered_when_forced(driftlens):
    args = ["steer", "apply", "kept", "other", "--prompt", "A bell", *FEW, "--json"]
    code, _, err = driftlens(*args)
    assert (code, "--force" in err) == (2, True)
    code, out, _ = driftlens(*args, "--force")
    assert code == 0
    assert json.loads(out)[0]["prompt"] == "A bell"


def test_an_adapter_is_steered_on_its_base(driftlens, place):
    args = ["--base", "base", "--prompt", PROMPTS[0], *FEW, "--json"]
    code, out, _ = driftlens("steer", "apply", "of-adapter", "adapter", *args)
    assert code == 0
    over = ModelPair.load("base", "adapter", device="cpu").aligned
    expected = applied(over, kept_of(over), PROMPTS[:1], max_new_tokens=5)
    (row,) = json.loads(out)
    assert row["unsteered"] == expected[0].unsteered
    assert row["steered"][0]["text"] == expected[0].steered[0]
    code, _, err = driftlens("steer", "apply", "kept", "adapter", *args)
    assert (code, "--force" in err) == (2, True)
    code, _, err = driftlens("steer", "apply", "of-adapter", "adapter", "--prompt", "A", *FEW)
    assert (code, "--base" in err) == (2, True)


def test_directions_of_the_demo_steer_the_demo(driftlens, tmp_path):
    demo = ModelPair.alone("demo:aligned", device="cpu").base
    rng = np.random.default_rng(0)
    found = {1: mean_difference(*rng.standard_normal((2, 9, demo.width)))}
    kept = KeptDirections.of(
        demo,
        found,
        part="out",
        method="mean-difference",
        at="last",
        positions="response",
        pack=nets.pack(nets.TEXTS),
    )
    kept.save(tmp_path / "kept")
    args = ["--prompt", "Where is the clock?", "--strength", "1e3", "--apply-chat-template"]
    code, out, _ = driftlens(
        "steer", "apply", tmp_path / "kept", "demo:aligned", *args, *FEW, "--json"
    )
    assert code == 0
    (row,) = json.loads(out)
    assert row["unsteered"].strip()
    assert row["steered"][0]["text"] != row["unsteered"]


def test_directions_are_shown(driftlens, place):
    code, out, _ = driftlens("steer", "show", "kept", "--json")
    assert code == 0
    assert json.loads(out) == KeptDirections.load(place / "kept").card
    code, out, _ = driftlens("steer", "show", "kept")
    assert code == 0
    card = json.loads((place / "kept" / "card.json").read_text())
    assert card["model"]["sha256"][:12] in out
    assert card["pack"]["sha256"][:12] in out
    assert "3 directions of " in out
    assert "strength of 8 is recommended [6, 9], which gains 0.25" in out
    assert "–" in out, "what is undefined is no number"
    code, out, _ = driftlens("steer", "show", "bare")
    assert "no block is recommended" in out


def test_directions_go_to_others_and_come_back(driftlens, place):
    args = ["steer", "export", "kept", "ours.gguf"]
    code, out, _ = driftlens(*args, "--layer", "1-2")
    assert (code, out) == (0, "ours.gguf\n")
    ours = read_gguf("ours.gguf")
    assert ours.model_type == "llama"
    for n in (1, 2):
        np.testing.assert_allclose(ours.vectors[n], directions(0, 1, 2)[n].vector, rtol=1e-6)
    code, _, err = driftlens(*args, "--layer", "1-2")
    assert (code, "--overwrite" in err) == (2, True)
    assert driftlens(*args, "--layer", "1", "--overwrite")[0] == 0
    assert list(read_gguf("ours.gguf").vectors) == [1]
    left = "block 0 is left out: a control vector has no place for it\n"
    found = driftlens("steer", "export", "kept", "ours.gguf", "--overwrite")
    assert found == (0, "ours.gguf\n", left)
    assert list(read_gguf("ours.gguf").vectors) == [1, 2]
    found = driftlens("steer", "export", "kept", "ours.safetensors")
    assert found == (0, "ours.safetensors\n", "")
    assert list(read_tensors("ours.safetensors").vectors) == [0, 1, 2]
    args = ["steer", "import", "ours.safetensors", "base", "--out", "back", "--layer", 1]
    code, out, err = driftlens(*args, "--device", "cpu")
    assert (code, out, err) == (0, "back\n", "")
    back, kept = KeptDirections.load("back"), KeptDirections.load("kept")
    assert back.card["model"] == kept.card["model"] | {"name": "base"}
    assert back.layer == 1
    for n in (0, 1, 2):
        np.testing.assert_allclose(back.vector(n), kept.vector(n), rtol=1e-12)
    code, _, err = driftlens(*args, "--device", "cpu")
    assert (code, "--overwrite" in err) == (2, True)
    code, out, _ = driftlens("steer", "show", "back")
    assert (code, "ours.safetensors, sha256" in out) == (0, True)


# Where a study keeps its directions


@pytest.fixture
def study(driftlens, monkeypatch):
    """`steer MODEL` whose study finds directions without looking at a text."""

    def found(pair, *_, **__):
        names = ["base"] if pair.base is pair.aligned else ["base", "aligned"]
        kept = {name: kept_of(getattr(pair, name)) for name in names}
        return SimpleNamespace(results=[], checks=[], kept=lambda: kept)

    monkeypatch.setattr("driftlens.steer.examine", found)

    def run(*arguments):
        told = ["--contrast", "manners", "--format", "json", "--device", "cpu"]
        return driftlens("steer", *arguments, *told)

    return run


@pytest.fixture
def unloaded(monkeypatch):
    """Nothing may be loaded."""

    def load(*_, **__):
        raise AssertionError("loaded")

    monkeypatch.setattr(ModelPair, "load", load)


def held(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


FILES = ["card.json", "directions.safetensors"]
FOLDERS = [
    *("aligned", "aligned/card.json", "aligned/directions.safetensors"),
    *("base", "base/card.json", "base/directions.safetensors"),
]


def test_directions_of_one_model_and_of_two_take_each_others_place_whole(study, tmp_path):
    one = ["base", "--out", tmp_path / "mix"]
    two = [*one, "--aligned", "other"]
    for args, expected in ((one, FILES), (two, FOLDERS), (two, FOLDERS), (one, FILES)):
        assert study(*args, "--overwrite")[0] == 0
        assert held(tmp_path / "mix-directions") == expected
        code, _, err = study(*args)
        assert (code, "--overwrite" in err) == (2, True)
    assert study(*two, "--overwrite")[0] == 0
    base, other = (
        KeptDirections.load(tmp_path / "mix-directions" / n).card for n in ("base", "aligned")
    )
    assert base["model"]["name"] == "base"
    assert other["model"]["name"] == "other"
    assert base["model"]["sha256"] != other["model"]["sha256"]


def test_the_folders_that_are_printed_are_those_that_can_be_shown(study, driftlens, tmp_path):
    where = ["--out", tmp_path / "page", "--keep", tmp_path / "keep"]
    for args, expected in (
        (["base"], [tmp_path / "keep"]),
        (["base", "--aligned", "other"], [tmp_path / "keep" / n for n in ("base", "aligned")]),
    ):
        _, _, err = study(*args, *where, "--overwrite")
        said = [line.split(": ") for line in err.splitlines() if line.startswith("directions")]
        assert said == [["directions", str(folder)] for folder in expected]
        for _, folder in said:
            assert driftlens("steer", "show", folder)[0] == 0
    code, _, err = driftlens("steer", "show", tmp_path / "keep")
    assert code == 3
    assert all(str(folder) in err for folder in expected)
    assert study(*args, *where, "--overwrite", "--quiet")[2] == ""


@pytest.fixture
def beside_itself(driftlens, monkeypatch, tmp_path):
    """`steer demo:base --aligned demo:base`, of few texts at few strengths."""
    monkeypatch.chdir(tmp_path)
    # Two words, as a shell gives them: one and the same object is one model alone.
    words = ["demo:base", "--aligned", "".join(["demo:", "base"]), "--contrast", "manners"]
    few = ["--strengths=-1,1", "--controls", "0", "--layer", "3", "--limit", "12"]
    how = ["--capability", "quiz", "--format", "json", "--device", "cpu", "--out", "same"]
    return lambda *more: driftlens("steer", *words, *few, *how, *more)


def test_a_model_beside_itself_is_refused_with_the_option_that_allows_it(beside_itself):
    code, out, err = beside_itself()
    assert (code, out) == (2, "")
    assert "every weight is the same" in err
    assert "--allow-identical" in err
    assert held(".") == []


@pytest.mark.slow
def test_a_model_beside_itself_has_the_same_directions_twice_where_that_is_allowed(beside_itself):
    code, out, _ = beside_itself("--allow-identical")
    assert (code, out) == (0, "same/results.json\n")
    told = json.loads(Path("same/results.json").read_text())
    assert told["run"]["options"]["allow_identical"] is True
    base, aligned = (KeptDirections.load(Path("same-directions", n)) for n in ("base", "aligned"))
    assert base.card["model"]["sha256"] == aligned.card["model"]["sha256"]
    assert base.tensors["unit"].tobytes() == aligned.tensors["unit"].tobytes()


FOREIGN = ["notes.txt", "base/model.safetensors", "aligned/notes.txt", "base"]


@pytest.mark.parametrize("aligned", [[], ["--aligned", "other"]])
@pytest.mark.parametrize("name", FOREIGN)
def test_somebodys_folder_is_not_taken_for_one_of_directions(
    name, aligned, study, unloaded, tmp_path
):
    mine = tmp_path / "keep" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    before = held(tmp_path)
    where = ["--out", tmp_path / "page", "--keep", tmp_path / "keep"]
    code, out, err = study("base", *aligned, *where, "--overwrite")
    assert (code, out) == (2, "")
    assert "Name another folder" in err
    assert held(tmp_path) == before


@pytest.mark.parametrize(
    ("out", "keep"),
    [("x", "x"), ("x", "x/y"), ("x/y/z", "x"), ("x", "y/../x"), ("x", "link"), (".", None)],
)
def test_a_page_and_directions_in_one_folder_are_refused_at_once(
    out, keep, study, unloaded, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("x")
    before = held(tmp_path)
    where = ["--out", out, *(["--keep", keep] if keep else [])]
    for more in ([], ["--overwrite"]):
        code, said, err = study("demo:base", *where, *more)
        assert (code, said) == (2, "")
        assert "neither in the other" in err
    assert held(tmp_path) == before


def test_what_was_laid_beside_the_directions_meanwhile_is_left_there(study, monkeypatch, tmp_path):
    where = ["--aligned", "other", "--out", tmp_path / "page", "--keep", tmp_path / "keep"]
    assert study("base", *where)[0] == 0
    load = ModelPair.load

    def meanwhile(*args, **how):
        (tmp_path / "keep" / "base" / "notes.txt").write_text("mine")
        return load(*args, **how)

    monkeypatch.setattr(ModelPair, "load", meanwhile)
    code, _, err = study("base", *where, "--overwrite")
    assert (code, "notes.txt" in err) == (2, True)
    assert (tmp_path / "keep" / "base" / "notes.txt").read_text() == "mine"


# What is wrong

SAID = ["--prompt", "A bell", *FEW]
FAULTY = {
    "no directions": (["apply", "nothing", "base", *SAID], 3, "folder of directions"),
    "no folder to show": (["show", "nothing"], 3, "folder of directions"),
    "no folder to export": (["export", "nothing", "new.gguf"], 3, "folder of directions"),
    "a model for a folder": (["show", "base"], 3, "folder of directions"),
    "no model": (["apply", "kept", "./none", *SAID], 3, "a model folder"),
    "another width": (["apply", "kept", "wide", *SAID, "--force"], 2, "of width 64"),
    "another model": (["apply", "kept", "other", *SAID], 2, "--force"),
    "nothing to go on with": (["apply", "kept", "base"], 2, "one of them, found none"),
    "too much": (["apply", "kept", "base", *SAID, "--text", "prompts.txt"], 2, "found both"),
    "an empty file": (["apply", "kept", "base", "--text", "empty.txt"], 2, "prompts in empty.txt"),
    "no file": (["apply", "kept", "base", "--text", "none.txt"], 3, "readable file"),
    "another layer": (["apply", "kept", "base", *SAID, "--layer", "3"], 2, "blocks from 0 to 2"),
    "no layer": (["apply", "kept", "base", *SAID, "--layer", "a"], 2, "blocks from 0 to 2"),
    "no number": (["apply", "kept", "base", *SAID, "--strength", "2,x"], 2, "--strength as 0,2,4"),
    "undefined": (["apply", "kept", "base", *SAID, "--strength", "nan"], 2, "finite strength"),
    "no strength": (["apply", "bare", "base", *SAID], 2, "Give --strength"),
    "a mode": (["apply", "kept", "base", *SAID, "--mode", "push"], 2, "a mode among"),
    "a strength too many": (
        ["apply", "kept", "base", *SAID, "--mode", "ablate", "--strength", "1"],
        2,
        "no strength beside ablate",
    ),
    "positions": (["apply", "kept", "base", *SAID, "--positions", "first"], 2, "positions among"),
    "cold": (["apply", "kept", "base", *SAID, "--temperature", "0"], 2, "temperature above 0"),
    "no tokens": (["apply", "kept", "base", *SAID, "--max-new-tokens", "0"], 2, "max-new-tokens"),
    "too many tokens": (
        ["apply", "kept", "base", *SAID, "--max-new-tokens", "99"],
        2,
        "a smaller --max-new-tokens",
    ),
    "no template": (
        ["apply", "kept", "base", *SAID, "--apply-chat-template"],
        2,
        "leave --apply-chat-template out",
    ),
    "block 0 of a control vector": (
        ["export", "kept", "new.gguf", "--layer", "0"],
        2,
        "Give --layer 1-2 ",
    ),
    "an ending": (["export", "kept", "new.pt"], 2, "ends in .gguf or .safetensors"),
    "another part": (["export", "mlp", "new.safetensors"], 2, "what mlp adds"),
    "a layer to export": (["export", "kept", "new.gguf", "--layer", "9"], 2, "blocks from 0 to 2"),
    "no file to import": (["import", "none.gguf", "base", "--out", "new"], 3, "readable file"),
    "half a file": (["import", "cut.gguf", "base", "--out", "new"], 3, "cut.gguf"),
    "no such format": (["import", "prompts.txt", "base", "--out", "new"], 2, "ends in .gguf"),
    "another type": (["import", "gpt2.safetensors", "base", "--out", "new"], 2, "of type gpt2"),
    "another model's width": (["import", "theirs.gguf", "wide", "--out", "new"], 2, "as wide as"),
    "no model to import for": (["import", "theirs.gguf", "./no", "--out", "new"], 3, "a model fol"),
    "a layer that is not there": (
        ["import", "theirs.gguf", "base", "--out", "new", "--layer", "0"],
        2,
        "recommended layer 0",
    ),
    "no place": (["import", "theirs.gguf", "base"], 2, "--out"),
    "a file for a place": (
        ["import", "theirs.gguf", "base", "--out", "file"],
        2,
        "a new folder to write to",
    ),
    "somebody's folder": (
        ["import", "theirs.gguf", "base", "--out", "base", "--overwrite"],
        2,
        "a folder for results alone",
    ),
}


@pytest.mark.parametrize("what", FAULTY)
def test_what_is_wrong_is_told_in_a_line(what, driftlens):
    args, wanted, wrong = FAULTY[what]
    before = sorted(Path().rglob("*"))
    code, out, err = driftlens("steer", *args)
    assert (code, out) == (wanted, "")
    assert wrong in err
    assert sorted(Path().rglob("*")) == before


EARLY = (
    *("no directions", "nothing to go on with", "another layer", "no number", "no strength"),
    *("a mode", "positions", "cold", "no file to import", "no such format", "a file for a place"),
)


@pytest.mark.parametrize("what", EARLY)
def test_what_can_be_refused_early_is_refused_before_a_model_is_loaded(what, driftlens, unloaded):
    args, wanted, wrong = FAULTY[what]
    code, _, err = driftlens("steer", *args)
    assert (code, wrong in err) == (wanted, True)


# Words


def test_a_model_that_is_named_is_measured():
    app = typer.Typer(cls=ModelOrCommand, no_args_is_help=True)

    @app.command()
    def measure(
        model: str, contrast: Annotated[str, typer.Option()] = "", deep: bool = False
    ) -> None:
        typer.echo(f"measure {model} {contrast} {deep}")

    @app.command()
    def show(folder: str) -> None:
        typer.echo(f"show {folder}")

    for args, expected in (
        (["org/model", "--contrast", "manners"], "measure org/model manners False\n"),
        (["measure", "org/model"], "measure org/model  False\n"),
        (["--contrast", "show", "org/model"], "measure org/model show False\n"),
        (["--deep", "./show"], "measure ./show  True\n"),
        (["show", "folder"], "show folder\n"),
    ):
        found = CliRunner().invoke(app, args)
        assert (found.exit_code, found.output) == (0, expected)
    for args in (["--help"], []):
        told = CliRunner().invoke(app, args).output
        assert "measure" in told
        assert "show" in told
        assert "--contrast" not in told
    assert "--contrast" in CliRunner().invoke(app, ["org/model", "--help"]).output
    assert CliRunner().invoke(app, ["org/model", "--no-such"]).exit_code == 2


def test_help_says_what_a_model_does_and_lists_the_commands(driftlens):
    code, out, _ = driftlens("steer", "--help")
    assert code == 0
    assert "steer MODEL --contrast PACK" in out
    assert "directions between two roles of texts" in out
    for name in ("apply", "show", "export", "import"):
        assert f"\n  {name} " in out
    code, out, _ = driftlens("--help")
    assert "\n  steer " in out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("apply", "--strength --relative --layer --mode --positions --max-new-tokens --seed"),
        ("apply", "--temperature --apply-chat-template --force --base --prompt --text --json"),
        ("show", "FOLDER --json"),
        ("export", "FOLDER FILE --layer --overwrite"),
        ("import", "FILE MODEL --out --layer --positions --force --base"),
    ],
)
def test_each_command_has_its_help(command, words, driftlens):
    for asking in ("--help", "-h"):
        code, out, _ = driftlens("steer", command, asking)
        assert code == 0
        assert all(word in out for word in words.split())


SAME = (
    *("method", "part", "select", "select_depth", "positions", "strengths", "points", "controls"),
    *("weight", "seed", "level", "allow_identical"),
)
OTHERWISE = {"layer": "layers", "max_length": "length", "max_tokens": "tokens"}
"""Options whose arguments are called otherwise."""


def test_what_goes_without_saying_is_what_goes_without_saying_in_python():
    # Typed twice, as help must not wait for what the others come from.
    said = signature(measure).parameters
    usual = asked.Options()
    for name, argument in {**dict(zip(SAME, SAME, strict=True)), **OTHERWISE}.items():
        assert said[name].default == getattr(usual, argument), name
    assert said["parts"].default == ",".join(usual.parts)
    least = next(o.min for o in said["points"].annotation.__metadata__)
    asked.Options(points=least)
    with pytest.raises(DriftlensError, match="points"):
        asked.Options(points=least - 1)


def test_help_is_there_without_torch():
    code = (
        "import sys; sys.argv = ['driftlens', 'steer', 'apply', '--help']\n"
        "from driftlens import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    env = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (found.returncode, found.stderr) == (0, "")
    assert "Show what a model goes on to say" in found.stdout
