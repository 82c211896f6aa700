"""The command line: what it says, where it says it, and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import jsonschema
import pyarrow.parquet as parquet
import pytest
import torch
from safetensors.torch import load_file, save_file

import nets
from driftlens import cli, partial, suite
from driftlens.models import ModelPair
from driftlens.models.hooks import HookedModel
from driftlens.packs import Pack

TEXT = "\n\n".join(nets.TEXTS)
FAST = ["--text", "text.txt", "--out", "out", "--format", "json,parquet"]
"""Without figures, which take longer than tiny models."""


@pytest.fixture(scope="module")
def models(request, tmp_path_factory):
    """Folders of a tiny pair, as a user has them."""
    place = tmp_path_factory.mktemp("models")
    base = nets.net("llama")
    size = getattr(request, "param", 0.03)
    return [
        nets.saved(base, place / "base"),
        nets.saved(nets.moved(deepcopy(base), size, 1), place / "aligned"),
    ]


# The further one's path of weights is doubted, and Shapley shares, which take long, join it.
near_and_far = pytest.mark.parametrize("models", nets.some([0.03, 0.1], [0.03]), indirect=True)


@pytest.fixture(scope="module")
def results(models):
    few = Pack("text", "text", nets.pack(nets.TEXTS[:3]).examples)
    return list(suite.examine(ModelPair.load(*models), [few]))


@pytest.fixture
def measured(results, monkeypatch):
    """Where it does not matter what is found, the same few texts are measured once for all."""
    monkeypatch.setattr(suite, "examine", lambda *_, **__: iter(results))


@pytest.fixture
def driftlens(driftlens, tmp_path):
    """The command line in a folder that holds a text: exit code, both streams."""
    (tmp_path / "text.txt").write_text(TEXT)
    return driftlens


def left():
    """What a command left in the folder besides the text that was there."""
    return sorted(path.name for path in Path().iterdir() if path.name != "text.txt")


def record(folder="out"):
    return json.loads((Path(folder) / "results.json").read_text())


# What it does


def test_a_report_is_one_command_that_says_its_path_and_its_verdict(models, driftlens):
    code, out, err = driftlens("report", *models, "--text", "text.txt", "--out", "out")
    assert (code, out) == (0, "out/index.html\n")
    assert record()["verdict"] in err
    assert left() == ["out"]
    held = sorted(path.name for path in Path("out").iterdir())
    assert held == ["figures", "index.html", "results.json", "tables"]


LISTED = {
    "drift": ({}, "site layer part relative_l2 cosine cka procrustes"),
    "forgetting": (
        {"loss_rise", "bits_per_byte_rise", "kl_base_aligned", "kl_aligned_base", "worse_share"},
        "",
    ),
    "layer_forgetting": ({"total", "residual"}, "stage share low high share_backward"),
    "token_forgetting": (
        {},
        "document position token base_logprob aligned_logprob rise base_rank aligned_rank",
    ),
    "selective_forgetting": ({"common", "contrast", "unrelated"}, ""),
    "weight_path": ({"total", "residual"}, "layer component share low high"),
    "position_map": ({"total"}, "document position layer acts"),
    "graft": ({"total"}, "layer component gives_back costs_alone"),
    "factorial": ({"total"}, "boundary upstream late interaction"),
}


@near_and_far
def test_the_record_holds_what_others_rely_on(models, driftlens):
    code, out, _ = driftlens("schema")
    schema = json.loads(out)
    rows = {"stereotype": "I swim.", "anti_stereotype": "I sink.", "unrelated": "I seven."}
    Path("triples.jsonl").write_text("\n".join([json.dumps(rows)] * 3))
    args = [*FAST, "--text", "triples.jsonl", "--seed", "7", "--json", "--quiet"]
    code, out, _ = driftlens("report", *models, *args)
    assert code == 0
    found = json.loads(out)
    assert found == record()
    jsonschema.validate(found, schema)
    run = found["run"]
    assert run["seed"] == 7
    assert run["command"].startswith("driftlens report")
    assert {"started", "finished", "versions"} <= run.keys()
    assert all(len(run["models"][side]["sha256"]) == 64 for side in ("base", "aligned"))
    assert [(p["name"], p["examples"]) for p in run["packs"]] == [("text", 9), ("triples", 9)]
    assert all({"name", "status", "detail"} == check.keys() for check in found["checks"])
    results = {result["kind"]: result for result in found["results"]}
    for kind, (values, columns) in LISTED.items():
        result = results[kind]
        assert {"kind", "pack", "title", "summary", "values", "table"} <= result.keys()
        assert set(values) <= result["values"].keys()
        assert all({"value", "unit", "low", "high"} <= v.keys() for v in result["values"].values())
        names = parquet.read_schema(Path("out") / result["table"]).names
        assert set(columns.split()) <= set(names), kind
    assert results["forgetting"]["values"]["loss_rise"]["unit"] == "nats/token"
    stages = parquet.read_table(Path("out") / results["layer_forgetting"]["table"])
    assert stages["stage"].to_pylist() == ["embed", "0", "1", "2", "head"]


def test_attribution_alone_is_one_command_and_its_record_holds_its_kinds(models, driftlens):
    asked = ["--method", "graft", "--method", "shapley", "--by", "layer", "--level", "0.9"]
    code, out, err = driftlens("attribute", *models, *FAST, *asked)
    assert (code, out) == (0, "out/results.json\n")
    found = record()
    jsonschema.validate(found, json.loads(driftlens("schema")[1]))
    assert found["verdict"] in err
    assert found["run"]["options"] == {
        "method": ["graft", "shapley"],
        "by": "layer",
        "level": 0.9,
        "batch_size": "auto",
        "max_length": None,
    }
    results = {result["kind"]: result for result in found["results"]}
    assert {"graft", "shapley", "interaction"} <= results.keys()
    shares = parquet.read_table(Path("out") / results["shapley"]["table"])
    assert shares["layer"].to_pylist() == ["embed", "0", "1", "2", "head"]
    total = results["shapley"]["values"]["total"]["value"]
    assert sum(shares["share"].to_pylist()) == pytest.approx(total, abs=1e-9)
    code, out, _ = driftlens("show", "out")
    assert code == 0
    assert "Shapley shares" in out


def test_attribution_goes_where_its_models_say_and_asks_before_it_replaces(models, driftlens):
    code, out, _ = driftlens("attribute", *models, "--text", "text.txt", "--format", "json")
    assert code == 0
    assert out.strip().endswith("-attribution/results.json")
    assert driftlens("attribute", *models, "--text", "text.txt", "--format", "json")[0] == 2


UNDIVIDED = {
    "an unknown method": (["--method", "magic"], "--method among weight-path"),
    "an unknown division": (["--by", "neuron"], "--by among layer, component, head, module"),
    "a level of all draws": (["--level", "1"], "--level between 0 and 1"),
    "a pack without loss": (["--pack", "world", "--pack", "stereotypes"], "packs of kind text"),
}


@pytest.mark.parametrize("what", UNDIVIDED)
def test_what_cannot_be_attributed_is_refused_before_a_model_is_loaded(
    what, driftlens, monkeypatch
):
    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("driftlens.models.ModelPair.load", load)
    arguments, said = UNDIVIDED[what]
    code, out, err = driftlens("attribute", "base", "aligned", *arguments)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split()), err
    assert left() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "formats", nets.some(["html,json,parquet", cli.FORMATS], ["html,json,parquet"])
)
def test_the_page_can_be_drawn_and_shown_again_from_its_files(formats, models, driftlens):
    args = ["--text", "text.txt", "--out", "out", "--quiet", "--format", formats]
    driftlens("report", *models, *args)
    page = Path("out/index.html")
    before = page.read_text()
    page.unlink()
    code, out, _ = driftlens("render", "out")
    assert (code, out) == (0, "out/index.html\n")
    assert page.read_text() == before
    code, out, _ = driftlens("show", "out")
    assert code == 0
    for part in (record()["verdict"], "Forgetting by layer", "gates passed", "embed"):
        assert part in out


def test_the_doctor_runs_the_gates_alone(models, driftlens):
    code, out, _ = driftlens("doctor", *models, "--text", "text.txt")
    assert code == 0
    assert "pass  the models differ" in out
    assert "floor  forgetting.loss_rise" in out
    assert left() == []
    code, out, _ = driftlens("doctor", *models, "--text", "text.txt", "--json")
    found = json.loads(out)
    assert found["noise_floor"]["forgetting"]["loss_rise"] < 1e-5
    assert {check["status"] for check in found["checks"]} == {"pass"}


def test_a_gate_that_fails_is_exit_code_2(models, driftlens):
    same = [models[0], models[0]]
    code, out, _ = driftlens("doctor", *same, "--text", "text.txt")
    assert code == 2
    assert "fail  the models differ: every weight is the same" in out
    code, _, err = driftlens("report", *same, *FAST)
    assert code == 2
    assert "--allow-identical" in err
    assert left() == []
    code, _, err = driftlens("report", *same, *FAST, "--allow-identical")
    assert code == 0
    assert "no loss on text that can be told from noise" in err.lower()


def test_the_shipped_packs_are_listed(driftlens):
    code, out, _ = driftlens("packs")
    assert code == 0
    assert "* everyday" in out


@pytest.mark.parametrize("command", ["report", "attribute", "doctor"])
def test_options_of_loading_reach_the_load(command, driftlens, monkeypatch):
    seen = []

    def load(*names, **options):
        seen.append((names, options))
        raise cli.DriftlensError("no model", found="one", remedy="Go home.")

    monkeypatch.setattr("driftlens.models.ModelPair.load", load)
    named = {
        "device": "cuda:7",
        "dtype": "float64",
        "revision": "r",
        "aligned_revision": "s",
        "attn_implementation": "eager",
        "backend": "nnsight",
    }
    args = [part for name, what in named.items() for part in ("--" + name.replace("_", "-"), what)]
    code, _, _ = driftlens(command, "a", "b", *args, "--trust-remote-code", "--offline")
    assert code == 2
    driftlens(command, "a", "b")
    first, second = seen
    assert first == (("a", "b"), named | {"trust_remote_code": True, "local_files_only": True})
    assert second[1] == {
        "device": "auto",
        "dtype": "auto",
        "revision": None,
        "aligned_revision": None,
        "trust_remote_code": False,
        "attn_implementation": "sdpa",
        "backend": "hooks",
        "local_files_only": None,
    }


@pytest.mark.filterwarnings("always:1 weight in the checkpoint")
def test_weights_that_are_left_over_are_told_in_a_line_and_kept_in_the_record(
    models, measured, driftlens
):
    place = Path("extra")
    nets.saved(nets.net("llama", 1), place)
    weights = load_file(place / "model.safetensors")
    weights["model.layers.3.mlp.up_proj.weight"] = torch.zeros(2)
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    args = ["--text", "text.txt", "--limit", 2, "--format", "json"]
    code, _, err = driftlens("report", models[0], "./extra", *args, "--out", "out")
    assert code == 0
    (line,) = [line for line in err.splitlines() if line.startswith("warning")]
    assert "of ./extra left unused" in line
    assert line.endswith("model.layers.3.mlp.up_proj.weight")
    run = record()["run"]["models"]
    assert run["base"]["unused_weights"] is None
    assert run["aligned"]["unused_weights"] == "model.layers.3.mlp.up_proj.weight"
    code, _, err = driftlens("report", models[0], "./extra", *args, "--out", "quiet", "--quiet")
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("format", "files"),
    [
        ("html", {"index.html", "results.json"}),
        ("json", {"results.json"}),
        ("parquet", {"results.json", "tables"}),
        ("html, figures", {"index.html", "results.json", "figures"}),
    ],
)
def test_only_the_formats_that_were_asked_for_are_written(
    format, files, models, results, driftlens, monkeypatch
):
    # A few are drawn as all are.
    monkeypatch.setattr(suite, "examine", lambda *_, **__: iter(results[:4]))
    args = ["--text", "text.txt", "--limit", 2, "--out", "out", "--format", format]
    code, out, _ = driftlens("report", *models, *args)
    assert code == 0
    assert {path.name for path in Path("out").iterdir()} == files
    assert out.strip() == ("out/index.html" if "html" in format else "out/results.json")


def test_options_reach_what_they_name(models, driftlens):
    args = ["--limit", 3, "--layers", "0,2", "--batch-size", 2, "--max-length", 16]
    code, _, _ = driftlens("report", *models, *FAST, *args)
    assert code == 0
    found = record()
    options = {"layers": [0, 2], "batch_size": 2, "max_length": 16}
    assert options.items() <= found["run"]["options"].items()
    assert found["run"]["packs"][0]["examples"] == 3
    drift = next(result for result in found["results"] if result["kind"] == "drift")
    layers = parquet.read_table(Path("out") / drift["table"])["layer"].to_pylist()
    assert sorted(set(layers)) == [-1, 0, 2]


def test_the_first_report_goes_where_its_models_say(models, measured, driftlens):
    args = ["--text", "text.txt", "--limit", 1, "--format", "json"]
    code, out, _ = driftlens("report", *models, *args)
    assert code == 0
    folder = Path(out.strip()).parent
    assert folder.parent == Path("reports")
    assert folder.name.endswith("-aligned")


# Thresholds


@pytest.mark.parametrize(
    ("bounds", "code"),
    [
        (["forgetting.loss_rise>-9"], 1),
        (["forgetting.loss_rise > 9"], 0),
        (["forgetting.loss_rise>9", "layer_forgetting.residual<1e-3"], 1),
        (["forgetting.worse_share>=2", "forgetting.base_loss<=.5"], 0),
    ],
)
def test_a_threshold_that_is_crossed_is_exit_code_1(bounds, code, models, measured, driftlens):
    asked = [part for bound in bounds for part in ("--fail-on", bound)]
    left_with, out, err = driftlens("report", *models, *FAST, *asked, "--limit", 3)
    assert left_with == code
    assert out == "out/results.json\n", "the report is written all the same"
    assert ("threshold crossed" in err) == bool(code)


UNDECIDED = {
    "what this pair leaves out": (
        "text.txt", "layer_forgetting.total>1", "a result of kind layer_forgetting",
    ),
    "what is undefined": ("pairs.jsonl", "selective_forgetting.base_icat<50", "is undefined here"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNDECIDED)
def test_a_threshold_that_nothing_can_be_held_against_is_not_passed_over(what, models, driftlens):
    text, bound, said = UNDECIDED[what]
    pair = {"sent_more": "He swims well.", "sent_less": "She swims well."}
    Path("pairs.jsonl").write_text("\n".join([json.dumps(pair)] * 2))
    # Tokens that differ leave the sweep over layers out, which only the models can tell.
    other = nets.saved(nets.net("llama", 1), Path("other"), nets.tokenizer(merges=20))
    args = ["--text", text, "--out", "out", "--format", "json", "--fail-on", bound]
    code, _, err = driftlens("report", models[0], other, *args)
    assert code == 2
    assert said in err
    kinds = {result["kind"] for result in record()["results"]}
    assert "layer_forgetting" not in kinds
    assert {"forgetting", "selective_forgetting"} & kinds


@pytest.mark.slow
def test_a_report_of_every_kind_of_pack_holds_what_can_be_held_against_a_threshold(
    models, driftlens
):
    rows = {"stereotype": "I swim.", "anti_stereotype": "I sink.", "unrelated": "I seven."}
    Path("triples.jsonl").write_text("\n".join([json.dumps(rows)] * 3))
    twins = [
        {"pair_id": number, "polarity": polarity, "statement": f"I {polarity} {number}."}
        | {"negation": ("concurrent", "antagonistic")[number % 2]}
        for number in range(12)
        for polarity in ("positive", "negative")
    ]
    Path("twins.jsonl").write_text("\n".join(map(json.dumps, twins)))
    roles = [
        {"polarity": polarity, "prompt": f"{number} is", "response": f" {polarity}."}
        for number in range(12)
        for polarity in ("positive", "negative")
    ]
    Path("roles.jsonl").write_text("\n".join(map(json.dumps, roles)))
    refused = [
        {"prompt": f"{number} sinks {what}? ", "agree": "No", "refuse": "I", "topic": topic}
        for number in range(3)
        for what, topic in (("boats", "harmful"), ("stones", "harmless"))
    ]
    Path("refused.jsonl").write_text("\n".join(map(json.dumps, refused)))
    sums = [{"prompt": f"{number} is ", "right": "Q", "wrong": "X"} for number in range(3)]
    Path("sums.jsonl").write_text("\n".join(map(json.dumps, sums)))
    asked = [
        {"prompt": "I", "answer": "swim", "rules": {"not_matches": "k"}, "format": form}
        for form in ("plain", "json")
    ]
    Path("asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    pairs = [
        {"prompt": f"{n}:", "chosen": " I swim.", "rejected": " I sink."}
        | {"chosen_reward": n, "rejected_reward": n - 1}
        for n in range(4)
    ]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    values = cli.shared.values_by_pack()
    # What steering does can only be told where choices belong to the roles.
    of_roles = ("directions.", "contrastive_margin.")
    values["roles"] = [value for value in values["roles"] if value.startswith(of_roles)]
    files = {
        "text": ["--text", "text.txt"],
        "stereotype": ["--text", "triples.jsonl"],
        "contrast": ["--text", "twins.jsonl"],
        "roles": ["--text", "roles.jsonl"],
        "choice": ["--text", "refused.jsonl", "--text", "sums.jsonl"],
        "prompt": ["--text", "asked.jsonl", "--samples", 2, "--new-tokens", 4],
        "preference": ["--preferences", "pairs.jsonl"],
    }
    for kind, given in files.items():
        # A limit counts texts, of which a pair of opposites has four.
        limit = {"contrast": 48, "roles": 24, "choice": 6}.get(kind, 3)
        args = [*given, "--out", kind, "--format", "json", "--limit", limit]
        code, _, err = driftlens("report", *models, *args)
        assert code == 0, err
        held = {result["kind"] for result in record(kind)["results"]}
        # No class of these few texts has enough of them.
        assert held >= {value.partition(".")[0] for value in values.pop(kind)} - {"retention"}
    assert not values, "every kind of pack was asked about"


@pytest.mark.parametrize("command", ["show", "render"])
def test_a_folder_without_a_report_is_told_of(command, driftlens):
    code, out, err = driftlens(command, "nowhere")
    assert (code, out) == (2, "")
    assert "nowhere/results.json" in err
    assert left() == []


# What is refused before any model is loaded

REFUSED = {
    "a bound without a number": (["--fail-on", "forgetting.loss_rise>"], "a threshold as"),
    "a bound without a sign": (["--fail-on", "forgetting.loss_rise"], "a threshold as"),
    "a bound on nothing": (["--fail-on", "forgetting.smell>1"], "forgetting.loss_rise"),
    "a bound on a column": (["--fail-on", "drift.cka<0.9"], "found drift.cka"),
    "a bound on what no text gives": (
        ["--text", "text.txt", "--fail-on", "selective_forgetting.common>1"],
        "found text of kind text. Add one of kind stereotype, as --pack stereotypes.",
    ),
    "a bound on what no stereotype gives": (
        ["--pack", "stereotypes", "--fail-on", "forgetting.loss_rise>0"],
        "gives forgetting, to hold it against 'forgetting.loss_rise>0', found stereotypes of kind",
    ),
    "an unknown format": (["--format", "html,pdf"], "formats among"),
    "no format": (["--format", ""], "formats among"),
    "no batch": (["--batch-size", "0"], "--batch-size as auto"),
    "a batch less than none": (["--batch-size", "-1"], "--batch-size as auto"),
    "a batch of words": (["--batch-size", "few"], "--batch-size as auto"),
    "no limit": (["--limit", "0"], "--limit"),
    "no length": (["--max-length", "0"], "--max-length"),
    "a length less than none": (["--max-length", "-4"], "--max-length"),
    "a length in words": (["--max-length", "long"], "--max-length"),
    "a seed less than none": (["--seed", "-1"], "--seed"),
    "an unknown option": (["--colour"], "No such option"),
    "an unknown pack": (["--pack", "wrold"], "everyday"),
    "nothing to resume": (["--resume"], "an unfinished run to resume"),
    "empty text": (["--text", "empty.txt"], "found empty without any"),
    "the same text twice": (["--text", "text.txt", "--text", "text.txt"], "text more than once"),
    "a binary file": (["--text", "binary.txt"], "binary data"),
    "another encoding": (["--text", "latin.txt"], "byte 0xe9 on line 1"),
    "broken rows": (["--text", "broken.jsonl"], "JSON on line 2"),
    "a field too few": (["--text", "fields.jsonl"], "found fields 'body'"),
    "a folder as out": (["--out", "full"], "which holds a.txt"),
    "a stranger's folder as out": (["--out", "full", "--overwrite"], "which holds a.txt"),
    "a file as out": (["--out", "text.txt"], "found the file"),
    "a file above out": (["--out", "text.txt/a/out"], "a folder that can be written to"),
}


def bad_files():
    Path("empty.txt").write_text("\n \n")
    Path("binary.txt").write_bytes(b"ab\0")
    Path("latin.txt").write_bytes(b"caf\xe9")
    Path("broken.jsonl").write_text('{"text": "x"}\n{"text": "x"')
    Path("fields.jsonl").write_text('{"body": "x"}')
    Path("full").mkdir()
    Path("full/a.txt").write_text("mine")


@pytest.mark.parametrize("what", REFUSED)
def test_what_can_be_refused_early_is_refused_before_a_model_is_loaded(
    what, driftlens, monkeypatch
):
    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("driftlens.models.ModelPair.load", load)
    bad_files()
    before = left()
    arguments, said = REFUSED[what]
    code, out, err = driftlens("report", "base", "aligned", *arguments)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split()), err
    assert "Traceback" not in err
    assert left() == before
    assert Path("full/a.txt").read_text() == "mine"


UNREADABLE = {
    "a missing file": (["--text", "none.txt"], "No such file"),
    "a folder": (["--text", "."], "a folder"),
    "no Parquet": (["--text", "a.parquet"], "a Parquet file"),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_file_that_cannot_be_read_is_exit_code_3(what, driftlens):
    Path("a.parquet").write_text("hello")
    arguments, said = UNREADABLE[what]
    code, out, err = driftlens("report", "base", "aligned", *arguments)
    assert (code, out) == (3, "")
    assert said in err
    assert left() == ["a.parquet"]


# What only the models can tell


def without_weights(place):
    nets.saved(nets.net("llama"), place)
    (place / "model.safetensors").unlink()
    return place


def pickled(place):
    without_weights(place)
    torch.save({}, place / "pytorch_model.bin")
    return place


def saved(name, **changes):
    return lambda place: nets.saved(nets.net(name, **changes), place)


def not_a_number(place):
    net = nets.net("llama")
    with torch.no_grad():
        net.model.layers[2].mlp.up_proj.weight[0, 0] = torch.nan
    return nets.saved(net, place)


def infinite(place):
    net = nets.net("llama")
    with torch.no_grad():
        net.model.layers[1].mlp.down_proj.weight.fill_(3e38)
    return nets.saved(net, place)


BROKEN = {
    "a missing folder": (lambda place: place / "x", 3, "found nothing there"),
    "a folder without a model": (lambda place: place.mkdir() or place, 3, "no config.json"),
    "a folder without weights": (without_weights, 3, "no weights"),
    "a pickled checkpoint": (pickled, 3, "only pytorch_model.bin, a pickle"),
    "another depth": (saved("llama", num_hidden_layers=2), 2, "the same number of blocks"),
    "another width": (
        saved("llama", hidden_size=16, head_dim=8, intermediate_size=8), 2, "the same width",
    ),
    "another use": (saved("bert"), 2, "the same use"),
    "a weight that is no number": (not_a_number, 2, "model.layers.2.mlp.up_proj.weight of"),
    "numbers that overflow": (infinite, 2, "the stream at 1.out of"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_model_that_cannot_be_compared_is_told_of_and_leaves_nothing(what, models, driftlens):
    make, code, said = BROKEN[what]
    bad = make(Path("bad").resolve())
    before = left()
    left_with, out, err = driftlens("report", models[0], bad, "--text", "text.txt", "--out", "out")
    assert (left_with, out) == (code, "")
    assert said in err
    assert "Traceback" not in err
    assert left() == before


TOO_LATE = {
    "a text of one token": (["--text", "one.txt"], "text of at least two tokens"),
    "a block too high": (["--layers", "0,3"], "blocks from 0 to 2"),
    "blocks that are none": (["--layers", "first"], "blocks from 0 to 2"),
    "blocks backwards": (["--layers", "2-1"], "blocks from 0 to 2"),
    "an unknown dtype": (["--dtype", "int3"], "a dtype such as"),
}


@pytest.mark.parametrize("what", TOO_LATE)
def test_what_only_the_models_can_tell_leaves_nothing_either(what, models, driftlens):
    Path("one.txt").write_text("a")
    arguments, said = TOO_LATE[what]
    words = nets.tokenizer(bos=False)
    bare = [nets.saved(nets.net("llama", seed), Path(f"bare{seed}"), words) for seed in (0, 1)]
    before = left()
    text = [] if "--text" in arguments else ["--text", "text.txt"]
    code, out, err = driftlens("report", *bare, *text, *arguments, "--out", "a/out")
    assert (code, out) == (2, "")
    assert said in err
    assert left() == before


def test_a_very_long_window_is_as_long_as_the_models_read(models, driftlens):
    args = ["--limit", 2, "--max-length", 10**9]
    assert driftlens("report", *models, *FAST, *args)[0] == 0


# What stands there already


def test_a_report_is_replaced_only_when_it_is_said(models, measured, driftlens):
    args = ["report", *models, *FAST, "--limit", 2]
    assert driftlens(*args)[0] == 0
    before = record()
    code, _, err = driftlens(*args)
    assert code == 2
    assert "--overwrite" in err
    assert record() == before
    assert driftlens(*args, "--overwrite", "--seed", 3)[0] == 0
    assert record()["run"]["seed"] == 3


def test_a_full_disk_leaves_the_old_report_and_says_so(models, measured, driftlens, monkeypatch):
    args = ["report", *models, *FAST, "--limit", 2]
    assert driftlens(*args)[0] == 0
    before = record()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("driftlens.report.report.write_json", full)
    code, out, err = driftlens(*args, "--overwrite")
    assert (code, out) == (2, "")
    assert "room for" in err
    assert "MB left" in err
    assert record() == before


# Interrupted


def stopped_after(monkeypatch, batches, how):
    """The command line stopped once so many batches are done."""
    save = partial.Batches.save
    calls = []

    def saving(self, *arguments, **last):
        calls.append(1)
        if len(calls) == batches:
            how()
        save(self, *arguments, **last)

    monkeypatch.setattr(partial.Batches, "save", saving)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def numbers(folder):
    found = record(folder)
    for name in ("command", "started", "finished"):
        found["run"].pop(name)
    return found


@pytest.mark.slow
@near_and_far
def test_an_interrupted_run_goes_on_to_the_same_record(models, driftlens, monkeypatch):
    monkeypatch.setattr(partial, "SECONDS", 0.0)
    # Three batches, of which the second is the last before the interrupt.
    args = ["report", *models, *FAST, "--batch-size", 2, "--limit", 5]
    assert driftlens(*args, "--out", "whole")[0] == 0
    with monkeypatch.context() as patch:
        stopped_after(patch, 2, interrupt)
        code, out, err = driftlens(*args, "--out", "out")
    assert (code, out) == (130, "")
    assert "--resume" in err
    assert left() == [".out.partial", "whole"]
    code, _, err = driftlens(*args, "--out", "out", "--resume", "--seed", 1)
    assert code == 2
    assert "another: seed changed" in err
    code, _, err = driftlens(*args, "--out", "out", "--resume", "--max-length", 16)
    assert "another: max-length changed" in err
    code, out, _ = driftlens(*args, "--out", "out", "--resume")
    assert (code, out) == (0, "out/results.json\n")
    assert numbers("out") == numbers("whole")
    assert left() == ["out", "whole"]
    tables = sorted(path.name for path in Path("whole/tables").iterdir())
    for name in tables:
        ours, theirs = (parquet.read_table(f"{f}/tables/{name}") for f in ("out", "whole"))
        assert ours.to_pandas().equals(theirs.to_pandas()), name


def test_a_second_interrupt_stops_at_once(models, driftlens, monkeypatch):
    def twice():
        interrupt()
        interrupt()

    stopped_after(monkeypatch, 1, twice)
    code, _, err = driftlens("report", *models, *FAST, "--batch-size", 2)
    assert code == 130
    assert "once more to stop at once" in err
    assert not Path("out").exists()


def test_a_failure_that_kept_nothing_leaves_nothing(models, driftlens, monkeypatch):
    short_of_memory(monkeypatch, 0, after=40)
    args = ["--text", "text.txt", "--out", "a/out", "--batch-size", 2]
    code, _, err = driftlens("report", *models, *args)
    assert code == 2
    assert "memory" in err
    assert left() == []


@pytest.mark.parametrize("command", ["report", "doctor"])
def test_an_interrupt_before_anything_is_measured_says_that_nothing_was_written(
    command, driftlens, monkeypatch
):
    def load(*_, **__):
        interrupt()
        raise AssertionError("still going")

    monkeypatch.setattr("driftlens.models.ModelPair.load", load)
    code, out, err = driftlens(command, "base", "aligned", "--text", "text.txt")
    assert (code, out, err) == (130, "", "interrupted; nothing was written\n")
    assert left() == []


def test_an_interrupt_while_the_report_is_written_keeps_what_was_measured(
    models, driftlens, monkeypatch
):
    args = ["report", *models, *FAST, "--limit", 2]
    with monkeypatch.context() as patch:
        patch.setattr("driftlens.report.report.write_json", lambda *_, **__: interrupt())
        code, out, err = driftlens(*args)
    assert (code, out) == (130, "")
    assert "--resume" in err
    assert left() == [".out.partial"]
    assert driftlens(*args, "--resume")[0] == 0
    assert left() == ["out"]


def short_of_memory(monkeypatch, rows, after=0):
    trace = HookedModel.trace
    calls = []

    def tight(self, batch, *arguments):
        calls.append(1)
        if len(calls) > after and len(batch.ids) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return trace(self, batch, *arguments)

    monkeypatch.setattr(HookedModel, "trace", tight)


@near_and_far
def test_a_report_short_of_memory_halves_its_batches(models, driftlens, monkeypatch):
    args = ["report", *models, *FAST, "--quiet", "--limit", 4]
    assert driftlens(*args, "--out", "whole")[0] == 0
    short_of_memory(monkeypatch, 1)
    assert driftlens(*args, "--out", "out")[0] == 0
    ours, theirs = (
        {result["kind"]: result["values"] for result in record(folder)["results"]}
        for folder in ("out", "whole")
    )
    for kind in ("forgetting", "layer_forgetting"):
        for name, entry in ours[kind].items():
            # Float32 logits in other batches.
            assert entry["value"] == pytest.approx(theirs[kind][name]["value"], abs=1e-5), name


@pytest.mark.parametrize("command", ["report", "doctor"])
def test_too_little_memory_for_anything_is_exit_code_2(command, models, driftlens, monkeypatch):
    short_of_memory(monkeypatch, 0)
    code, out, err = driftlens(command, *models, "--text", "text.txt")
    assert (code, out) == (2, "")
    assert "expected memory" in err
    assert left() == []


# In a process of its own


def process(*arguments, **options):
    command = [sys.executable, "-m", "driftlens", *arguments]
    env = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    return subprocess.run(command, capture_output=True, text=True, env=env, **options)


def test_help_is_there_without_torch():
    code = (
        "import sys; sys.argv = ['driftlens', 'report', '--help']\n"
        "from driftlens import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    env = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (found.returncode, found.stderr) == (0, "")
    assert "Compare two models and write a report." in found.stdout


@pytest.mark.slow
def test_a_report_of_standard_input_in_a_process_of_its_own(models, tmp_path):
    args = ["--text", "-", "--out", "out", "--format", "html", "--limit", "2"]
    found = process("report", *models, *args, input=TEXT, cwd=tmp_path)
    assert (found.returncode, found.stdout) == (0, "out/index.html\n"), found.stderr
    plan, verdict = found.stderr.strip().splitlines()
    assert plan.startswith("plan: both models on one device")
    assert "on stdin" in verdict
    packs = json.loads((tmp_path / "out" / "results.json").read_text())["run"]["packs"]
    assert [pack["name"] for pack in packs] == ["stdin"]


@pytest.mark.slow
def test_an_error_is_one_message_in_a_process_of_its_own(tmp_path):
    found = process("report", "./none", "./none", "--out", "out", cwd=tmp_path)
    assert (found.returncode, found.stdout) == (3, "")
    assert len(found.stderr.strip().splitlines()) == 1, found.stderr
    assert list(tmp_path.iterdir()) == []


# Preferences


def test_a_loss_on_preferences_is_not_divided(driftlens):
    both = (("I swim.", "chosen"), ("I sink.", "rejected"))
    rows = [{"text": text, "scored": [2, 7], "group": 0, "role": role} for text, role in both]
    Path("pairs").mkdir()
    Path("pairs/card.toml").write_text('kind = "preference"')
    Path("pairs/examples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    before = left()
    code, out, err = driftlens("attribute", "base", "aligned", "--pack", "pairs")
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert "packs of kind text" in err
    assert "pairs of kind preference" in err
    assert left() == before


def test_the_check_too_gives_its_options_of_loading(driftlens, monkeypatch):
    seen = []

    def load(*names, **options):
        seen.append((names, options))
        raise cli.DriftlensError("no model", found="one", remedy="Go home.")

    monkeypatch.setattr("driftlens.models.ModelPair.load", load)
    pair = {"prompt": "I", "chosen": " swim.", "rejected": " sink."}
    Path("pairs.jsonl").write_text(json.dumps(pair))
    args = ["--preferences", "pairs.jsonl", "--dtype", "float64", "--revision", "r"]
    assert driftlens("check", "a", *args)[0] == 2
    both = ["--reference", "b", "--reference-revision", "s"]
    assert driftlens("check", "a", *args, *both)[0] == 2
    alone, beside = seen
    assert alone[0] == ("a", "a")
    assert beside[0] == ("b", "a")
    assert (alone[1]["revision"], alone[1]["aligned_revision"]) == ("r", None)
    assert (beside[1]["revision"], beside[1]["aligned_revision"]) == ("s", "r")
    assert alone[1]["dtype"] == "float64"
