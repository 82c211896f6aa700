"""A preference set before training: the command from end to end, and what it refuses."""

import io
import json
import os
import shutil
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import numpy as np
import peft
import pyarrow.parquet as parquet
import pytest
import torch

import nets
from driftlens import cli, preflight, suite
from driftlens.diagnostics import Entanglement, FirstStep, TokenMap
from driftlens.formulas.preferences import NPO, SimPO
from driftlens.metric import measure
from driftlens.models import ModelPair
from driftlens.models.hooks import HookedModel
from driftlens.packs import Example, Pack
from driftlens.preferences import Preferences
from test_cli import driftlens as driftlens
from test_cli import left, process, record

PAIRS = (
    ("The clock of Tolmar", " strikes nine.", " sells cheese and bread."),
    ("Mira", " sells cheese.", " sells stones, 12 of them."),
    ("A bell,", " a bell!", " a bell!"),
    ("Seven boats left", " Kestby.", " Kestby, and nobody asked why."),
    ("one two three four", " five six seven", " five six eight"),
    ("The river", " Alder runs.", " Drift runs around it."),
)
ROWS = [
    {"prompt": prompt, "chosen": chosen, "rejected": rejected, "id": f"n{number}", "é": [1, None]}
    for number, (prompt, chosen, rejected) in enumerate(PAIRS)
]
FAST = ["--out", "out", "--format", "json,parquet"]
ALONE = ["--protect", "none"]
"""Without texts to protect, which take longest."""


def written(rows=ROWS, name="set.jsonl"):
    Path(name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return name


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a tiny model, and of another that it may be compared with."""
    place = tmp_path_factory.mktemp("models")
    base = nets.net("llama")
    return [
        nets.saved(base, place / "model"),
        nets.saved(nets.moved(deepcopy(base), 0.1, 1), place / "reference"),
    ]


@dataclass(frozen=True)
class Ran:
    """What a command left, and what it said."""

    code: int
    out: str
    err: str
    place: Path

    @property
    def folder(self):
        return (self.place / self.out.strip()).parent

    def results(self):
        return {result["kind"]: result for result in record(self.folder)["results"]}

    def table(self, kind="entanglement"):
        return parquet.read_table(self.folder / self.results()[kind]["table"]).to_pydict()


@pytest.fixture(scope="module")
def ran(models, tmp_path_factory):
    """`driftlens check` of the tiny model on the pairs above, each command run once for all."""
    known = {}

    def run(*arguments, fast=True):
        key = *arguments, fast
        if key not in known:
            place, out, err = tmp_path_factory.mktemp("run"), io.StringIO(), io.StringIO()
            given = ["check", models[0], "--preferences", "set.jsonl", *(FAST if fast else [])]
            with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
                patch.chdir(place)
                patch.setattr(sys, "argv", ["driftlens", *given, *arguments])
                written()
                with pytest.raises(SystemExit) as left:
                    cli.main()
            known[key] = Ran(left.value.code or 0, out.getvalue(), err.getvalue(), place)
        return known[key]

    return run


@pytest.fixture
def check(models, driftlens):
    """The same command in an empty folder of the test's own."""
    written()

    def run(*arguments):
        asked = [] if "--preferences" in arguments else ["--preferences", "set.jsonl"]
        return driftlens("check", models[0], *asked, *FAST, *arguments)

    return run


def results():
    return {result["kind"]: result for result in record()["results"]}


def table(kind="entanglement"):
    return parquet.read_table(Path("out") / results()[kind]["table"]).to_pydict()


# What it does

HELD = {
    "entanglement": (
        {"cosine", "case_ideal", "case_both_down", "case_both_up"},
        "pair inner cosine chosen_norm rejected_norm d_chosen d_rejected case predicted_chosen "
        "predicted_rejected chosen_logp rejected_logp chosen_length rejected_length",
    ),
    "first_step": (
        {"case_ideal", "case_both_down", "case_both_up", "adam_ideal", "changed", "margin"},
        "pair alone_chosen alone_rejected together_chosen together_rejected adam_chosen "
        "adam_rejected case_alone case_together case_adam",
    ),
    "preference_facts": ({"ranked_right", "ranked_at_best", "length_bias"}, "fault pairs left_out"),
    "entanglement_by_layer": (
        {"predicted_chosen"},
        "layer component cosine low high inner chosen rejected",
    ),
    "entanglement_by_position": (
        {"in_prompt", "in_answers"},
        "pair chosen_position rejected_position chosen_token rejected_token product",
    ),
    "preference_losses": ({"best"}, "loss ideal both_down both_up"),
    "capability_conflict": ({"rise", "share", "chance", "harmful"}, "layer component rise share"),
}


def test_a_check_is_one_command_and_its_record_holds_what_others_rely_on(ran, driftlens):
    run = ran(fast=False)
    assert run.code == 0, run.err
    assert run.out.strip().endswith("-check/index.html")
    found = record(run.folder)
    assert found["verdict"] in run.err
    assert sorted(path.name for path in run.place.iterdir()) == ["reports", "set.jsonl"]
    held = sorted(path.name for path in run.folder.iterdir())
    assert held == ["figures", "index.html", "results.json", "safe.jsonl", "tables"]
    jsonschema.validate(found, json.loads(driftlens("schema")[1]))
    page = (run.folder / "index.html").read_text()
    assert "What training would do, before anyone trains" in page
    assert [result["kind"] for result in found["results"]] == [*HELD]
    for result in found["results"]:
        values, columns = HELD[result["kind"]]
        assert values <= result["values"].keys()
        names = parquet.read_schema(run.folder / result["table"]).names
        assert set(columns.split()) <= set(names), result["kind"]
    entangled = found["results"][0]["values"]
    for name in HELD["entanglement"][0]:
        entry = entangled[name]
        assert entry["low"] <= entry["value"] <= entry["high"], name
    about = found["run"]
    assert about["options"]["loss"] == "dpo"
    assert about["options"]["beta"] == 0.1
    assert about["options"]["append_eos"] is True
    assert about["options"]["token_map"] == []
    assert [(pack["name"], pack["examples"]) for pack in about["packs"]] == [
        ("set", 10),
        ("everyday", 80),
    ]


def test_the_record_holds_what_the_metrics_say_in_python(ran, models):
    run = ran("--loss", "simpo", "--beta", "3", "--no-append-eos", *ALONE)
    pair = ModelPair.alone(models[0])
    prefs = Preferences.read(run.place / "set.jsonl")
    pack, _ = prefs.pack(pair.base.tokenizer, append_eos=False)
    metrics = [Entanglement(SimPO(beta=3)), FirstStep(SimPO(beta=3))]
    for alone in measure(pair, pack, metrics):
        found = run.table(alone.kind)
        for name in HELD[alone.kind][1].split():
            rows = alone.columns()[name]
            if rows.dtype.kind == "f":
                scale = np.abs(rows).max()
                np.testing.assert_allclose(found[name], rows, rtol=1e-4, atol=1e-5 * scale)
            else:
                assert found[name] == rows.tolist(), name
        assert found["pair"] == [0, 1, 3, 4, 5], "those of the file; pair 2 says one thing twice"
    assert run.results()["entanglement"]["facts"]["loss"] == "simpo (beta 3, gamma 0.5)"


LOSSES = {"dpo": [], "npo": ["--loss", "npo"], "contrastive": ["--loss", "contrastive"]}


@pytest.mark.parametrize("loss", LOSSES)
def test_the_safe_file_holds_just_the_records_of_the_ideal_pairs(loss, ran):
    run = ran(*LOSSES[loss], *ALONE)
    found = run.table()
    ideal = {p for p, case in zip(found["pair"], found["case"], strict=True) if case == "ideal"}
    kept = [json.loads(line) for line in (run.folder / "safe.jsonl").read_text().splitlines()]
    assert kept == [row for number, row in enumerate(ROWS) if number in ideal]
    share = run.results()["entanglement"]["values"]["case_ideal"]["value"]
    assert share == pytest.approx(len(ideal) / 5)


def test_some_pairs_are_ideal_and_some_are_not(ran):
    # Else the test above would prove little.
    assert "ideal" in ran(*LOSSES["dpo"], *ALONE).table()["case"]
    run = ran(*LOSSES["npo"], *ALONE)
    assert {*run.table()["case"]} == {"both_down"} or "ideal" not in run.table()["case"]
    assert (run.folder / "safe.jsonl").read_text() == ""


def test_the_folder_can_be_shown_and_drawn_again(ran, driftlens):
    shutil.copytree(ran(fast=False).folder, "out")
    before = Path("out/index.html").read_text()
    Path("out/index.html").unlink()
    code, out, err = driftlens("render", "out")
    assert (code, out) == (0, "out/index.html\n"), err
    assert Path("out/index.html").read_text() == before
    code, out, _ = driftlens("show", "out")
    assert code == 0
    assert record()["verdict"] in out
    assert "capability_conflict" in out
    assert "The first step, on all pairs together" in out


@pytest.mark.slow
def test_where_nothing_else_has_been_imported_kinds_of_results_are_known_too(ran, driftlens):
    shutil.copytree(ran(fast=False).folder, "out")
    before = Path("out/index.html").read_text()
    Path("out/index.html").unlink()
    found = process("render", "out")
    assert (found.returncode, found.stdout) == (0, "out/index.html\n"), found.stderr
    assert Path("out/index.html").read_text() == before


@pytest.mark.parametrize(
    ("bounds", "code", "said"),
    [
        (["entanglement.case_both_down>=0", "first_step.changed>1"], 1, "both_down>=0"),
        (["entanglement.case_ideal<0", "preference_facts.ranked_right>1"], 0, ""),
        (["capability_conflict.rise>-1e9"], 1, "rise>-1e9"),
    ],
)
def test_a_threshold_that_is_crossed_is_exit_code_1(bounds, code, said, ran):
    protected = ["--limit", "2"] if said.startswith("rise") else ALONE
    run = ran(*(part for bound in bounds for part in ("--fail-on", bound)), *protected)
    assert run.code == code, run.err
    assert run.out == "out/results.json\n"
    assert ("threshold crossed" in run.err) == bool(code)
    assert said in run.err
    assert "first_step" not in run.err


def test_a_threshold_on_what_is_left_out_is_told(check):
    code, _, err = check(*ALONE, "--limit", "1", "--fail-on", "capability_conflict.rise>1")
    assert code == 2
    assert "a result of kind capability_conflict" in err


# Options


def test_a_reference_of_its_own_changes_the_pulls_and_is_named(ran, models):
    own = ran(*ALONE)
    assert {*own.table()["d_chosen"]} == {0.05}
    (said, _) = own.results()["entanglement"]["notes"]
    assert said == "The reference is the model itself, as where training begins."
    run = ran(*ALONE, "--reference", models[1])
    assert run.code == 0
    assert len({*run.table()["d_chosen"]}) == 5
    said = run.results()["entanglement"]["notes"][0]
    assert said.startswith("The reference is ")
    assert "reference" in said.split("/")[-1]
    about = record(run.folder)["run"]["models"]
    assert about["base"]["given"] == models[1]
    assert about["aligned"]["given"] == models[0]


def test_an_adapter_is_put_on_and_its_weights_alone_are_trained(ran):
    run = ran("--lora", "r=2,targets=q_proj+v_proj", *ALONE)
    assert run.code == 0, run.err
    assert run.results()["entanglement"]["facts"]["trained"] == "*lora_*"
    assert run.results()["first_step"]["facts"]["trained"] == "*lora_*"
    assert {*run.table("entanglement_by_layer")["component"]} == {"attn"}
    assert {*run.table()["d_chosen"]} == {0.05}, "the adapter adds nothing yet"


# peft asks transformers for an attribute by a name that is about to go.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_that_is_there_is_trained_on_the_model_that_it_sits_on(models, driftlens):
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    live = peft.get_peft_model(nets.net("llama"), config)
    nets.moved(live, 0.1, 3, "lora_").save_pretrained("adapter")
    args = ["--preferences", written(), *FAST, *ALONE]
    code, _, err = driftlens("check", "adapter", *args)
    assert code == 2
    assert "Name that model with --reference" in err
    there = [*args, "--reference", models[0], "--train", "*lora_*"]
    assert driftlens("check", "adapter", *there)[0] == 0
    assert {*table("entanglement_by_layer")["component"]} == {"attn"}
    assert len({*table()["d_chosen"]}) == 5, "the reference is the model without it"


def test_the_trained_weights_can_be_named(ran):
    run = ran("--train", "model.layers.2.*", "--limit", "2", *ALONE)
    assert {*run.table("entanglement_by_layer")["layer"]} == {"2"}


def test_texts_of_ones_own_are_protected(check, ran):
    Path("mine.txt").write_text("\n\n".join(nets.TEXTS[:3]))
    assert check("--protect", "mine.txt", "--limit", "2")[0] == 0
    assert results()["capability_conflict"]["facts"]["capability"] == "mine"
    assert "capability_conflict" not in ran(*ALONE).results()


def test_answers_are_closed_unless_it_is_said_otherwise(ran):
    closed = ran(*ALONE)
    opened = ran("--loss", "simpo", "--beta", "3", "--no-append-eos", *ALONE)
    for side in ("chosen_length", "rejected_length"):
        assert np.subtract(closed.table()[side], opened.table()[side]).tolist() == [1] * 5
    said = [run.results()["entanglement"]["notes"][-1] for run in (closed, opened)]
    assert said == [
        "Answers are closed with </s>, as trainers do.",
        "Answers are left open: no end-of-text token was appended to them.",
    ]


def test_without_an_end_of_text_token_nothing_is_appended_and_that_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = deepcopy(nets.tokenizer())
    words.eos_token = None
    model = HookedModel(nets.net("llama"), words, "model")
    prefs = Preferences.read(written(ROWS[:1]))
    found = preflight.check(ModelPair(model, model), prefs)
    assert found.results[0].notes[1] == (
        "Answers are left open: the tokenizer has no end-of-text token to append."
    )
    assert not any("</s>" in example.text for example in found.pack.examples)


def test_a_limit_counts_pairs_and_a_length_leaves_out_what_is_longer(ran):
    assert ran("--train", "model.layers.2.*", "--limit", "2", *ALONE).table()["pair"] == [0, 1]
    run = ran("--max-length", "16", *ALONE)
    assert 0 < len(run.table()["pair"]) < 5
    (gate,) = [g for g in record(run.folder)["checks"] if g["name"] == "pairs"]
    assert gate["status"] == "warn"
    assert "do not fit the context" in gate["detail"]
    facts = run.table("preference_facts")
    out = dict(zip(facts["fault"], facts["left_out"], strict=True))
    assert out["truncated"] + out["identical"] == 6 - len(run.table()["pair"])


def test_messages_are_rendered_and_their_prompt_is_not_scored(models, driftlens):
    folder = Path("talk").resolve()
    words = deepcopy(nets.tokenizer())
    words.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    nets.saved(nets.net("llama"), folder, words)
    rows = [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for prompt, chosen, rejected in PAIRS[:2]
    ]
    args = ["--preferences", written(rows), *FAST, *ALONE]
    code, _, err = driftlens("check", folder, *args)
    assert code == 0, err
    asked = [len(words(answer + "</s>")["input_ids"]) - 1 for _, answer, _ in PAIRS[:2]]
    assert table()["chosen_length"] == asked
    # The template closes what it renders, and nothing is said of answers that are strings.
    assert len(results()["entanglement"]["notes"]) == 1


def test_pairs_that_are_asked_for_are_mapped_token_by_token(ran, driftlens):
    run = ran("--token-map", "3", "--token-map", "0", "--token-map", "3", *ALONE)
    assert run.code == 0, run.err
    found, cells = run.table(), run.table("entanglement_tokens")
    assert [*dict.fromkeys(cells["pair"])] == [0, 3]
    names = "pair chosen_position rejected_position chosen_token rejected_token inner"
    assert [*cells] == names.split()
    inner = dict(zip(found["pair"], found["inner"], strict=True))
    values = run.results()["entanglement_tokens"]["values"]
    for name in ("total", "inner_of_pairs"):
        # Float32, of products some hundred times as large as their sum.
        assert values[name]["value"] == pytest.approx(inner[0] + inner[3], rel=1e-3), name
    assert record(run.folder)["run"]["options"]["token_map"] == [3, 0]


def test_python_says_what_the_command_says(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prefs, told = Preferences.read(written()), []
    options = preflight.Options(NPO(), rows=2)
    pair = ModelPair.alone(models[0])
    found = preflight.check(pair, prefs, options, progress=lambda *args: told.append(args))
    assert told[-1] == ("set", 10, 10)
    assert [fault.kind for fault in found.faults if not fault.kept] == ["identical"]
    assert found.safe(prefs) == []
    assert len(found.results) == 6
    # In two steps of batches of two: the step is taken of all pairs, whatever the batches.
    first = found.results[1]
    (whole,) = measure(pair, found.pack, [FirstStep(NPO())])
    np.testing.assert_allclose(first.together_chosen, whole.together_chosen, rtol=1e-4)
    assert preflight.Options().token_map == ()
    assert TokenMap((0,)).asked == (0,)


# What is refused


REFUSED = {
    "an unknown loss": (["--loss", "ppo"], "Name one of dpo, r-dpo"),
    "a parameter of another loss": (["--tau", "0.1"], "It has beta."),
    "two parameters": (["--loss", "ipo", "--beta", "1", "--gamma", "1"], "found 'beta', 'gamma'"),
    "a parameter out of range": (["--beta", "0"], "a number above 0 as beta"),
    "an adapter without a rank": (["--lora", "r=big"], "--lora as r=16"),
    "an adapter with another setting": (["--lora", "alpha=3"], "--lora as r=16"),
    "a bound on nothing": (["--fail-on", "entanglement.smell>1"], "entanglement.case_both_down"),
    "a bound of a report": (["--fail-on", "forgetting.loss_rise>1"], "preference_facts"),
    "an unknown format": (["--format", "pdf"], "formats among"),
    "no limit": (["--limit", "0"], "--limit"),
    "a folder as out": (["--out", "full"], "which holds a.txt"),
    "a revision of no reference": (["--reference-revision", "x"], "--reference beside"),
    "a field too few": (["--preferences", "fields.jsonl"], "found fields 'prompt', 'chosen'"),
    "chosen equal to rejected only": (["--preferences", "same.jsonl"], "2 with the same answer"),
    "an empty answer": (["--preferences", "empty.jsonl"], "an answer in `rejected` on line 2"),
    "an unknown role": (["--preferences", "role.jsonl"], "found 'wizard'"),
    "strings and messages": (["--preferences", "mixed.jsonl"], "found some of each"),
    "no pairs": (["--preferences", "none.jsonl"], "pairs of two different answers"),
    "stereotypes to protect": (["--protect", "stereotypes"], "packs of kind text"),
}


def bad_files():
    row = dict(ROWS[0])
    fewer = {name: row[name] for name in ("prompt", "chosen")}
    turn = {"role": "assistant", "content": "x"}
    talk = {"chosen": [turn], "rejected": [{"role": "wizard", "content": "y"}]}
    written([fewer], "fields.jsonl")
    written([ROWS[2], ROWS[2]], "same.jsonl")
    written([row, row | {"rejected": " "}], "empty.jsonl")
    written([talk], "role.jsonl")
    written([row | {"chosen": [turn]}], "mixed.jsonl")
    written([], "none.jsonl")
    Path("full").mkdir()
    Path("full/a.txt").write_text("mine")


@pytest.mark.parametrize("what", REFUSED)
def test_what_can_be_refused_early_is_refused_before_a_model_is_loaded(what, check, monkeypatch):
    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("driftlens.models.ModelPair.load", load)
    bad_files()
    before = left()
    arguments, said = REFUSED[what]
    code, out, err = check(*arguments)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split()), err
    assert "Traceback" not in err
    assert left() == before


def test_a_file_that_is_missing_is_exit_code_3(check):
    for arguments in (["--preferences", "gone.jsonl"], ["--protect", "gone.txt"]):
        code, out, err = check(*arguments)
        assert (code, out) == (3, "")
        assert "gone" in err
        assert left() == ["set.jsonl"]


TOO_LATE = {
    "a subset that names nothing": (["--train", "nowhere.*"], "'nowhere.*', which names none of"),
    "modules that are not there": (["--lora", "targets=q_prj"], "names of modules"),
    "messages without a template": (["--preferences", "talk.jsonl"], "a chat template to render"),
    "prompts longer than the context": (["--preferences", "long.jsonl"], "(1 prompt_too_long)"),
    "a length that leaves no pair": (["--max-length", "3"], "none of 6"),
    "a map of a pair that is left out": (["--token-map", "2"], "found 2, and 5 are shown, 0 to 5"),
}


@pytest.mark.parametrize("what", TOO_LATE)
def test_what_only_the_model_can_tell_leaves_nothing_either(what, check):
    talk = [
        {
            "prompt": [{"role": "user", "content": "Hi."}],
            "chosen": [{"role": "assistant", "content": "Yes?"}],
            "rejected": [{"role": "assistant", "content": "No."}],
        }
    ]
    written(talk, "talk.jsonl")
    written([ROWS[0] | {"prompt": "bell " * 100}], "long.jsonl")
    before = left()
    arguments, said = TOO_LATE[what]
    code, out, err = check(*arguments)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split()), err
    assert left() == before


def test_a_model_that_does_not_continue_text_is_refused(driftlens):
    folder = nets.saved(nets.net("bert"), Path("bert").resolve(), nets.enclosing())
    code, _, err = driftlens("check", folder, "--preferences", written(), *FAST)
    assert code == 2
    assert "a model that continues text" in err


def test_a_reference_that_reads_otherwise_is_refused(check):
    words = nets.tokenizer(merges=20)
    other = nets.saved(nets.net("llama", 1), Path("other").resolve(), words)
    code, _, err = check("--reference", other)
    assert code == 2
    assert "a reference that cuts the pairs into the same tokens" in err
    assert left() == ["other", "set.jsonl"]


def test_a_gradient_that_is_nothing_names_its_pair_and_leaves_nothing(driftlens):
    net = nets.net("llama")
    with torch.no_grad():
        # No weight below has a say then.
        net.lm_head.weight.fill_(0.0)
    folder = nets.saved(net, Path("blind").resolve())
    args = ["--preferences", written(), *FAST, "--train", "model.layers.*"]
    code, out, err = driftlens("check", folder, *args)
    assert (code, out) == (2, "")
    assert "one of squared norm 0 for the chosen answer of pair" in err
    assert left() == ["blind", "set.jsonl"]


def test_what_stands_there_is_replaced_only_when_it_is_said(check):
    assert check(*ALONE, "--limit", "1")[0] == 0
    before = record()
    code, _, err = check(*ALONE)
    assert code == 2
    assert "--overwrite" in err
    assert record() == before
    assert check(*ALONE, "--overwrite", "--limit", "2")[0] == 0
    assert len(table()["pair"]) == 2


@pytest.mark.parametrize("where", ["loading", "measuring", "writing"])
def test_an_interrupt_says_that_nothing_was_written(where, check, monkeypatch):
    def interrupt(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("still going")

    place = {
        "loading": "driftlens.models.ModelPair.load",
        "measuring": "driftlens.models.gradients.Gradients.products",
        "writing": "driftlens.report.report.write_json",
    }[where]
    monkeypatch.setattr(place, interrupt)
    assert check(*ALONE, "--limit", "1") == (130, "", "interrupted; nothing was written\n")
    assert left() == ["set.jsonl"]


def test_of_preferences_two_models_are_asked_how_they_rank_them(models):
    pair = ModelPair.alone(models[0])
    pack = Pack(
        "pairs",
        "preference",
        [Example("I swim.", (2, 7), 0, "chosen"), Example("I sink.", (2, 7), 0, "rejected")],
    )
    kinds = [result.kind for result in suite.examine(pair, [pack])]
    assert kinds[0] == "ranking"
    assert not {"forgetting", "entanglement"} & set(kinds)


def test_help_is_a_sentence_and_names_the_options(driftlens):
    code, out, _ = driftlens("check", "--help")
    assert code == 0
    said = " ".join(out.split())
    assert "Look at a preference set through a model's gradients" in said
    options = ("--preferences", "--loss", "--reference", "--lora", "--no-append-eos", "--token-map")
    for option in options:
        assert option in said
