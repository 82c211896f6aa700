"""A series of checkpoints: what each stage of training has of what came of them all."""

import gc
import json
import weakref
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import nets
from driftlens import partial as partials
from driftlens import series, suite
from driftlens.diagnostics import StageLayersResult, StagesResult, TokenForgettingResult, staged
from driftlens.errors import DriftlensError
from driftlens.models import ModelPair
from driftlens.packs import Example, Pack
from driftlens.partial import Partial
from driftlens.report import Report, render, schema
from driftlens.results import same

TOKENIZER = {"tokenizer": nets.tokenizer()}
TEXT = Pack("text", "text", nets.pack(nets.TEXTS[:3]).examples)
TRIPLES = Pack(
    "triples",
    "stereotype",
    [
        Example(f"A baker {n} is {end}", None, n, role)
        for n in range(4)
        for role, end in (("stereotype", "loud"), ("anti_stereotype", "quiet"))
    ],
)
PLANTED = 1
"""The block that the second stage changes, and nothing else."""


@pytest.fixture(scope="module")
def trio():
    """A base, all of it moved a little, and that with one block's MLP moved more."""
    base = nets.net("llama")
    sft = nets.moved(deepcopy(base), 0.03, 1)
    return [base, sft, nets.moved(deepcopy(sft), 0.1, 2, f"layers.{PLANTED}.mlp")]


@pytest.fixture(scope="module")
def found(trio):
    return series.examine(trio, [TEXT, TRIPLES], **TOKENIZER)


@pytest.fixture(scope="module")
def stages(found) -> StagesResult:
    return found.found[0]


@pytest.fixture(scope="module")
def layers(found) -> StageLayersResult:
    return found.found[1]


def quantities(stages):
    keys = zip(stages.packs, stages.diagnostic, stages.quantity, strict=True)
    return {key: stages.rows_of(*key) for key in dict.fromkeys(keys)}


def loss_of(net):
    """Mean loss of the texts by the net alone, as transformers itself computes it."""
    total, count = 0.0, 0
    for example in TEXT.examples:
        ids = nets.tokenizer()(example.text, return_tensors="pt")["input_ids"]
        total += float(net(ids, labels=ids).loss.detach()) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return total / count


# Truths of adding up


def test_what_every_stage_did_to_the_loss_adds_up_to_what_all_did(stages):
    adding = {key: rows for key, rows in quantities(stages).items() if rows["rule"][0] != "apart"}
    assert {
        ("text", "forgetting", "loss_rise"),
        ("triples", "selective_forgetting", "contrast"),
    } <= {*adding}
    for key, rows in adding.items():
        whole, *parts = rows["number"]
        np.testing.assert_allclose(sum(parts), whole, atol=1e-9, err_msg=str(key))
        np.testing.assert_allclose(rows["residual"], whole - sum(parts), atol=1e-15)


def test_each_stage_is_what_transformers_says_of_its_two_models(stages, trio):
    rows = stages.rows_of("text", "forgetting", "loss_rise")
    losses = np.array([loss_of(net) for net in trio])
    # Both run in float32, and in other batches.
    np.testing.assert_allclose(rows["number"][1:], np.diff(losses), atol=2e-5)
    np.testing.assert_allclose(rows["before"], losses[[0, 0, 1]], atol=2e-5)
    np.testing.assert_allclose(rows["after"], losses[[2, 1, 2]], atol=2e-5)


def test_shares_add_up_to_one_and_are_told_only_of_what_adds_up(stages):
    told = 0
    for rows in quantities(stages).values():
        shares = rows["share"]
        assert rows["rule"][0] == "adds" or np.isnan(shares).all()
        if np.isfinite(shares).any():
            told += 1
            assert shares[0] == 1
            np.testing.assert_allclose(shares[1:].sum(), 1, atol=1e-9)
    assert told


def test_distances_are_said_not_to_add_up(stages, layers):
    rows = stages.rows_of("text", "forgetting", "kl_base_aligned")
    assert set(rows["rule"]) == {"apart"}
    assert abs(rows["residual"][0]) > 1e-6
    drift = layers.diagnostic == "drift"
    assert drift.any()
    assert not layers.adds_up[drift].any()


def test_what_a_model_alone_is_worth_is_the_same_at_the_end_of_one_stage_and_before_the_next(
    stages,
):
    chained = [rows for rows in quantities(stages).values() if np.isfinite(rows["before"]).all()]
    assert len(chained) > 2
    for rows in chained:
        np.testing.assert_array_equal(rows["after"][1], rows["before"][2])
        np.testing.assert_array_equal(rows["before"][0], rows["before"][1])
        np.testing.assert_array_equal(rows["after"][0], rows["after"][2])


def test_the_whole_pair_is_measured_as_any_pair_is(found, trio):
    pair = ModelPair.load(trio[0], trio[2], **TOKENIZER)
    from driftlens import doctor

    packs = [TEXT, TRIPLES]
    alone = list(suite.examine(pair, packs, checks=doctor.examine(pair, packs)))
    assert len(alone) == len(found.whole.results)
    assert all(map(same, alone, found.whole.results))


# By layer


def test_cells_of_a_stage_add_up_to_its_rise_and_all_cells_to_the_whole_rise(stages, layers):
    rises = stages.rows_of("text", "forgetting", "loss_rise")["number"]
    _, _, cells = layers.table_of("text", "layer_forgetting")
    np.testing.assert_allclose(cells.sum(1), rises, atol=1e-9)
    np.testing.assert_allclose(cells[1:].sum(), rises[0], atol=1e-9)
    assert layers.cells.value == pytest.approx(rises[0], abs=1e-9)


def test_a_change_of_one_block_in_one_stage_is_found_in_that_stage_and_at_that_block_alone(layers):
    _, names, cells = layers.table_of("text", "layer_forgetting")
    assert {name for name, cell in zip(names, cells[2], strict=True) if cell} == {str(PLANTED)}
    assert all(cells[1])
    _, names, weights = layers.table_of("text", "weight_path")
    assert {name for name, cell in zip(names, weights[2], strict=True) if cell} == {str(PLANTED)}
    _, names, drift = layers.table_of("text", "drift")
    moved = [name for name, cell in zip(names, drift[2], strict=True) if cell]
    assert moved == ["1", "2"]


# Truths of series


def test_a_series_backwards_is_its_negative(trio, stages):
    back = series.examine(trio[::-1], [TEXT], **TOKENIZER).found[0]
    rows, other = (of.rows_of("text", "forgetting", "loss_rise") for of in (stages, back))
    np.testing.assert_allclose(other["number"], -rows["number"][[0, 2, 1]], atol=1e-9)


def test_a_stage_that_changes_nothing_is_one_of_zero(trio):
    base = trio[0]
    nothing = series.examine([base] * 3, [TEXT], allow_identical=True, **TOKENIZER)
    for rows in quantities(nothing.found[0]).values():
        if rows["rule"][0] != "apart":
            np.testing.assert_array_equal(rows["number"], 0)
            assert np.isnan(rows["share"]).all()
    assert not np.any(nothing.found[1].number)
    assert "nothing was lost" in nothing.found[0].headline()


def test_the_same_model_twice_in_a_row_is_refused_with_its_stage(trio):
    with pytest.raises(DriftlensError, match=r"stage 2.*every weight is the same.*allow-identical"):
        series.examine([*trio[:2], trio[1]], [TEXT], **TOKENIZER)


def test_stages_that_cannot_be_compared_are_refused_with_their_names(trio, tmp_path):
    deep = nets.net("llama", num_hidden_layers=4)
    with pytest.raises(DriftlensError, match=r"number of blocks in the whole") as told:
        series.examine([*trio[:2], deep], [TEXT], **TOKENIZER)
    assert told.value.exit_code == 2
    with pytest.raises(DriftlensError, match=r"number of blocks in stage 1, .* 0 → .* 1"):
        series.examine([trio[0], deep, trio[1]], [TEXT], **TOKENIZER)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(DriftlensError, match=r"whole models in a series.*Merge it"):
        series.examine([*trio[:2], str(tmp_path)], [TEXT], **TOKENIZER)
    with pytest.raises(DriftlensError, match="two models at least"):
        series.examine(trio[:1], [TEXT])


def test_windows_of_other_lengths_are_refused(trio):
    short = nets.net("llama", max_position_embeddings=24)
    with pytest.raises(DriftlensError, match=r"windows of 96 tokens.*Give --max-length 24"):
        series.examine([trio[0], short, trio[1]], [TEXT], **TOKENIZER)


def test_two_models_at_most_are_held_and_only_one_is_loaded_twice(trio, monkeypatch):
    alive, most = weakref.WeakSet(), []

    def load(base, aligned, **_):
        made = [deepcopy(pair_of[one]) if isinstance(one, str) else one for one in (base, aligned)]
        pair = ModelPair.load(*made, **TOKENIZER)
        alive.update([pair.base, pair.aligned])
        gc.collect()
        most.append(len(alive))
        return pair

    pair_of = dict(zip("abc", trio, strict=True))
    models = series.Models([*"abc"], load)
    for step in range(3):
        models.pair(step)
    assert most == [2, 2, 2]
    assert models.loaded == 3 + 1


# Going on


class PowerCut(Exception):
    pass


@pytest.mark.slow
def test_a_series_that_was_cut_short_goes_on_to_the_same_and_loads_nothing_twice(
    trio, found, tmp_path, monkeypatch
):
    monkeypatch.setattr(partials, "SECONDS", 1e9)

    def cut(name, *_):
        if name.startswith("stage 2"):
            raise PowerCut

    def begun(**options):
        partial = Partial(tmp_path / "out", **options)
        partial.begin({"seed": 0})
        return partial

    with pytest.raises(PowerCut):
        series.examine(trio, [TEXT, TRIPLES], partial=begun(), progress=cut, **TOKENIZER)
    models = series.Models(trio, **TOKENIZER)
    resumed = series.examine(models, [TEXT, TRIPLES], partial=begun(resume=True))
    assert models.loaded == 2
    assert all(map(same, resumed.results, found.results))
    assert resumed.checks == found.checks


def test_a_model_that_changes_while_it_is_measured_is_refused(trio, tmp_path):
    changing = deepcopy(trio[0])

    def load(base, aligned, **_):
        pair = ModelPair.load(deepcopy(changing), aligned, **TOKENIZER)
        nets.moved(changing, 0.1, 5)
        return pair

    with pytest.raises(DriftlensError, match="found other weights than when it was loaded before"):
        series.examine(series.Models(["gone", trio[1], trio[2]], load), [TEXT])


# Pages


def test_a_page_of_a_series_is_whole_and_can_be_drawn_again(found, tmp_path):
    few = [*found.found, *found.whole.results[:2]]
    stages = {f"{n}-stage": Report("A stage", s.results[:1]) for n, s in enumerate(found.stages, 1)}
    links = [{"title": "Stage 1", "page": "stages/1-stage/index.html"}]
    hostile = [{"title": "x", "page": "javascript:alert(1)"}, {"title": "x", "page": "https://x"}]
    page = Report("A → B → C", few, found.checks, {"pages": [*links, *hostile]})
    place = page.write(tmp_path / "out", formats={"html", "json", "parquet"}, stages=stages)
    text = place.read_text("utf-8")
    assert '<a href="stages/1-stage/index.html">Stage 1</a>' in text
    assert 'href="javascript' not in text
    assert 'href="https' not in text
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    jsonschema.validate(record, schema())
    assert [result["kind"] for result in record["results"][:2]] == ["stages", "stage_layers"]
    assert record["verdict"].startswith(("Lost", "Gained"))
    assert all(map(same, Report.read(tmp_path / "out").results, few))
    inner = tmp_path / "out" / "stages" / "2-stage" / "index.html"
    inner.unlink()
    place.unlink()
    render(tmp_path / "out")
    assert place.read_text("utf-8") == text
    assert inner.exists()


def test_names_are_as_short_as_tells_them_apart():
    assert series.short(["demo:base", "demo:sft"]) == ["base", "sft"]
    assert series.short(["/a/x/base", "/a/y/base/"]) == ["x/base", "y/base"]
    assert series.short(["org/m@1", "org/m@2", "org/m@1"]) == ["m@1", "m@2", "m@1"]


def test_a_revision_is_named_with_its_model_and_a_folder_may_have_any_name(tmp_path):
    folder = tmp_path / "step@7"
    folder.mkdir()
    assert series.revised("org/m@step7") == ("org/m", "step7")
    assert series.revised(str(folder)) == (str(folder), None)
    assert series.revised("org/m") == ("org/m", None)


# Shares' intervals


def test_stages_whose_documents_all_have_the_same_share_have_no_doubt_of_it(found):
    rows = np.random.default_rng(0).gamma(1.0, size=40)

    def kept(scale):
        return [
            replace(result, rise=np.resize(rows, len(result.rise)) * scale)
            if isinstance(result, TokenForgettingResult)
            else result
            for result in found.whole.results
        ]

    parts = [
        [replace(r, loss_rise=(s, s / 2, 2 * s)) if r.kind == "forgetting" else r for r in kept(s)]
        for s in (4.0, 1.0, 3.0)
    ]
    told, _ = staged(parts[0], parts[1:], ["a", "b", "c"])
    of = told.rows_of("text", "forgetting", "loss_rise")
    for column in ("share", "share_low", "share_high"):
        np.testing.assert_allclose(of[column], [1, 0.25, 0.75], atol=1e-12)
    said = told.headline()
    assert said.startswith("lost 4.0 [2.0, 8.0] nats a token on text from a to c, ")
    assert "25% of it from a to b (1.00 [0.50, 2.00]), 75% of it from b to c (" in said


def test_texts_that_a_stage_cuts_otherwise_have_no_shares(found):
    other = [
        replace(result, position=result.position + 1)
        if isinstance(result, TokenForgettingResult)
        else result
        for result in found.stages[0].results
    ]
    told, _ = staged(found.whole.results, [other, found.stages[1].results], ["a", "b", "c"])
    assert set(told.rows_of("text", "forgetting", "loss_rise")["rule"]) == {"apart"}
    assert any("text was not cut into the same tokens" in note for note in told.notes)


def test_what_should_add_up_and_does_not_is_told_of(found):
    wrong = [
        replace(result, loss_rise=result.loss_rise._replace(value=9.0))
        if result.kind == "forgetting"
        else result
        for result in found.stages[0].results
    ]
    told, _ = staged(found.whole.results, [wrong, found.stages[1].results], ["a", "b", "c"])
    assert np.isnan(told.rows_of("text", "forgetting", "loss_rise")["share"]).all()
    assert any("forgetting.loss_rise (text)" in note for note in told.notes)


def test_what_a_stage_did_not_give_is_told_of(found):
    fewer = [result for result in found.stages[0].results if result.kind != "layer_forgetting"]
    told, layers = staged(found.whole.results, [fewer, found.stages[1].results], ["a", "b", "c"])
    assert any("a → b: layer_forgetting (text)" in note for note in told.notes)
    assert "layer_forgetting" not in layers.diagnostic


# The command


@pytest.fixture(scope="module")
def folders(trio, tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return [nets.saved(net, place / name) for net, name in zip(trio, "abc", strict=True)]


@pytest.mark.slow
def test_a_series_is_one_command(folders, tmp_path, monkeypatch, capfd):
    import sys

    from driftlens import cli

    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\n\n".join(nets.TEXTS[:3]))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["driftlens", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code or 0, *capfd.readouterr()

    fast = ["--text", "text.txt", "--out", "out", "--format", "json,parquet", "-q"]
    code, out, err = run("report", *folders, *fast, "--fail-on", "forgetting.loss_rise>-9")
    assert (code, out) == (1, "out/results.json\n"), err
    assert "threshold crossed" in err
    record = json.loads(Path("out/results.json").read_text())
    jsonschema.validate(record, schema())
    assert record["title"] == "a → b → c"
    assert [*record["run"]["models"]] == ["base", "stage_1", "aligned"]
    assert sorted(p.name for p in Path("out/stages").iterdir()) == ["1-a-b", "2-b-c"]
    assert not list(Path().glob(".*.partial"))
    code, out, _ = run("show", "out")
    assert code == 0
    assert "Stage by stage" in out
    code, _, err = run("report", *folders, *fast, "--overwrite", "--revision", "x")
    assert code == 2
    assert "org/model@revision" in err


@pytest.mark.slow
def test_what_a_stage_answers_itself_is_no_part_of_what_adds_up(trio):
    asked = Pack("asked", "prompt", [Example(text) for text in nets.TEXTS[:3]])
    drawn = suite.Options(samples=2, new_tokens=4)
    found = series.examine(trio, [asked], drawn, **TOKENIZER)
    own = {result.pack for result in found.whole.results} - {"asked"}
    assert own == {"asked, as aligned answers"}
    assert found.found
    for result in found.found:
        assert not own & set(map(str, result.columns().get("pack", ())))
    assert found.found[0].kind == "stages"
