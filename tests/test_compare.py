"""Finished runs side by side: what is paired, what is not, and what is not compared at all."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import nets
from driftlens import (
    Drift,
    Forgetting,
    ModelPair,
    SelectiveForgetting,
    TokenForgetting,
    measure,
)
from driftlens.comparison import compare, crossed, read
from driftlens.errors import DriftlensError
from driftlens.formulas.intervals import bootstrap
from driftlens.packs import Example, Pack
from driftlens.report import Report, render, schema
from driftlens.results import Estimate

PACK = nets.pack(nets.TEXTS)
OTHER = nets.pack(nets.TEXTS[:-1])


def pairs():
    """One base, and two that were aligned from it: one moved little, one more."""
    base = nets.net("llama")
    little, more = (nets.moved(deepcopy(base), size, 1) for size in (0.05, 0.2))
    words = nets.tokenizer()
    return [ModelPair.load(base, aligned, tokenizer=words) for aligned in (little, more)]


def written(folder, pair, pack, **changed):
    """A report as the command line writes it, with what of its record was `changed`."""
    results = measure(pair, pack, [Forgetting(), TokenForgetting(), Drift()])
    told = {"name": pack.name, "kind": "text", "examples": len(pack.examples)}
    run = {
        "seed": 0,
        "options": {"max_length": None},
        "versions": {"driftlens": "0.1.0"},
        "models": {side: getattr(pair, side).source for side in ("base", "aligned")},
        "packs": [{**told, "sha256": pack.sha256}],
        **changed,
    }
    Report(folder.name, results, [], run).write(folder, formats={"json", "parquet"})
    return folder


def changed(folder, source, change):
    """The report in another folder, with every result put through `change`; None leaves it out."""
    report = Report.read(source)
    results = [one for one in map(change, report.results) if one is not None]
    Report(folder.name, results, (), report.run).write(folder, formats={"json", "parquet"})
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders: little and more on one pack, little again, and little on fewer texts."""
    place = tmp_path_factory.mktemp("runs")
    little, more = pairs()
    return {
        "little": written(place / "little", little, PACK),
        "more": written(place / "more", more, PACK),
        "again": written(place / "again", little, PACK),
        "fewer": written(place / "fewer", little, OTHER),
        "shorter": written(place / "shorter", little, PACK, options={"max_length": 9}),
        "later": written(place / "later", little, PACK, versions={"driftlens": "9.9"}, seed=3),
    }


def held(runs, *names, **options):
    return compare(read([runs[name] for name in names]), **options)


def rows(found, kind="forgetting", name="loss_rise"):
    return found.result.rows_of(PACK.name, kind, name)


def forgotten(folder):
    return next(r for r in Report.read(folder).results if r.kind == "token_forgetting").columns()


def test_a_run_beside_itself_differs_nowhere(runs):
    found = held(runs, "little", "again")
    assert (found.result.difference[found.result.run == 2] == 0).all()
    assert rows(found)["pairing"].tolist() == ["first", "paired"]
    assert rows(found)["difference_low"][1] == rows(found)["difference_high"][1] == 0
    assert not [check for check in found.checks if check.status != "pass"]


def test_a_difference_of_losses_is_paired_over_documents(runs):
    found = rows(held(runs, "little", "more"))
    ours, theirs = (forgotten(runs[name]) for name in ("little", "more"))
    documents = ours["document"]
    assert (documents == theirs["document"]).all()
    # Each token was read by the same base, so that the rise is the difference of two losses.
    each = theirs["rise"] - ours["rise"]
    sums = np.array([[each[documents == n].sum()] for n in np.unique(documents)])
    counts = np.array([(documents == n).sum() for n in np.unique(documents)], float)
    expected = bootstrap(sums[:, 0], counts, seed=0, level=0.95)
    told = [found[f"difference{end}"][1] for end in ("", "_low", "_high")]
    assert told == pytest.approx([float(part) for part in expected])
    assert told[0] == pytest.approx(each.mean())
    assert told[0] == pytest.approx(found["number"][1] - found["number"][0])


def test_what_has_no_documents_to_pair_has_no_interval_and_says_so(runs):
    found = rows(held(runs, "little", "more"), name="kl_base_aligned")
    assert found["pairing"][1] == "unpaired"
    assert found["difference"][1] == found["number"][1] - found["number"][0]
    assert np.isnan(found["difference_low"][1])
    apart = found["low"][1] > found["high"][0] or found["low"][0] > found["high"][1]
    assert found["intervals"][1] == ("apart" if apart else "overlap")


def test_documents_that_differ_by_the_same_for_each_token_leave_no_doubt(runs, tmp_path):
    def shifted(one):
        if one.kind == "token_forgetting":
            return replace(one, rise=one.rise + 0.5)
        if one.kind == "forgetting":
            return replace(one, loss_rise=Estimate(one.loss_rise.value + 0.5, 0.0, 9.0))
        return one

    found = rows(compare(read([runs["little"], changed(tmp_path / "x", runs["little"], shifted)])))
    told = [found[f"difference{end}"][1] for end in ("", "_low", "_high")]
    assert told == pytest.approx([0.5] * 3, abs=1e-9)


def test_the_other_way_round_a_difference_changes_its_sign(runs):
    there, back = (rows(held(runs, *names)) for names in (("little", "more"), ("more", "little")))
    assert there["difference"][1] == pytest.approx(-back["difference"][1], abs=1e-12)
    assert there["difference_low"][1] == pytest.approx(-back["difference_high"][1], abs=1e-12)


def test_tokens_that_were_cut_otherwise_are_other_data(runs, tmp_path):
    def cut(one):
        return replace(one, position=one.position + 1) if one.kind == "token_forgetting" else one

    found = compare(read([runs["little"], changed(tmp_path / "cut", runs["more"], cut)]))
    assert set(found.result.pairing[found.result.run == 2]) == {"other tokens"}


def test_what_one_run_did_not_measure_is_told_and_not_counted(runs, tmp_path):
    def less(one):
        return None if one.kind == "forgetting" else one

    found = compare(read([runs["little"], changed(tmp_path / "less", runs["more"], less)]))
    assert rows(found)["pairing"][1] == "not measured"
    warned = {check.name: check.detail for check in found.checks if check.status == "warn"}
    assert warned["measured in less"] == f"not there: forgetting ({PACK.name})"
    assert " 0 differences from little are told" in found.result.summary()
    back = compare(read([tmp_path / "less", runs["little"]]))
    assert rows(back)["pairing"][1] == "not measured in the first"
    assert " 0 differences from less are told" in back.result.summary()


def test_what_is_worse_if_it_is_more_stands_first_of_its_kind(tmp_path):
    sides = (("stereotype", "loud"), ("anti_stereotype", "quiet"))
    said = [Example(f"A baker {n} is {s}", None, n, role) for n in range(4) for role, s in sides]
    pack = Pack("triples", "stereotype", said)
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, pair in zip(folders, pairs(), strict=True):
        Report(folder.name, measure(pair, pack, [SelectiveForgetting()])).write(
            folder, formats={"json", "parquet"}
        )
    assert compare(read(folders)).result.foremost[2] == "overall_forgetting"


@pytest.mark.parametrize(("name", "why"), [("fewer", "other texts"), ("shorter", "other windows")])
def test_numbers_of_other_data_are_not_compared_unless_asked_for(runs, name, why):
    found = held(runs, "little", name)
    assert np.isnan(found.result.difference[found.result.run == 2]).all()
    assert set(found.result.pairing[found.result.run == 2]) == {why}
    assert any(why in check.detail for check in found.checks if check.status == "warn")
    asked = rows(held(runs, "little", name, allow_different=True))
    assert asked["pairing"][1] == f"unpaired, {why}"
    assert np.isfinite(asked["difference"][1])


def test_what_runs_do_not_have_in_common_is_told(runs):
    told = {c.name: c for c in held(runs, "little", "later").checks}
    assert told["seed"].status == told["driftlens"].status == "warn"
    assert "9.9 in later" in told["driftlens"].detail
    assert told["base model"].status == "pass"
    other = {c.name: c for c in held(runs, "little", "more").checks}
    assert other["base model"].status == "pass"


def test_the_page_is_valid_and_can_be_drawn_again(runs, tmp_path):
    import jsonschema

    page = held(runs, "little", "more", "fewer").page({"seed": 0})
    page.write(tmp_path / "out")
    record = json.loads((tmp_path / "out/results.json").read_text())
    jsonschema.validate(record, schema())
    assert record["results"][0]["kind"] == "runs"
    before = (tmp_path / "out/index.html").read_text()
    assert "little" in before
    assert render(tmp_path / "out").read_text() == before


def test_a_bound_is_held_against_the_differences(runs):
    rise = crossed(held(runs, "little", "more").result, "forgetting", "loss_rise")
    assert len(rise) == 1
    with pytest.raises(DriftlensError, match=r"other texts.*--allow-different"):
        crossed(held(runs, "little", "fewer").result, "forgetting", "loss_rise")


# What is refused


def test_one_run_alone_or_twice_is_refused(runs):
    for folders in ([], [runs["little"]], [runs["little"], runs["little"]]):
        with pytest.raises(DriftlensError, match="folders of two or more runs"):
            read(folders)


def test_what_is_no_finished_run_is_refused(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DriftlensError, match=r"results\.json in .*empty, found none"):
        read([runs["little"], tmp_path / "empty"])
    (tmp_path / ".half.partial").mkdir()
    with pytest.raises(DriftlensError, match=r"one that was interrupted.*--resume"):
        read([runs["little"], tmp_path / "half"])
    with pytest.raises(DriftlensError, match="no such folder"):
        read([runs["little"], tmp_path / "nowhere"])


def test_a_record_of_another_schema_is_refused(runs, tmp_path):
    record = json.loads((runs["little"] / "results.json").read_text())
    (tmp_path / "old").mkdir()
    (tmp_path / "old/results.json").write_text(json.dumps(record | {"schema_version": "0"}))
    with pytest.raises(DriftlensError):
        read([runs["little"], tmp_path / "old"])


# The command line


def test_the_command_prints_writes_and_leaves_by_its_bounds(runs, driftlens):
    both = runs["little"], runs["more"]
    code, said, _ = driftlens("compare", *both)
    assert code == 0
    assert f"forgetting ({PACK.name})" in said
    assert "2 − 1" in said
    code, said, _ = driftlens("compare", *both, "--json", "--out", "page")
    told = json.loads(said)
    assert code == 0
    assert Path("page/index.html").exists()
    assert [run["name"] for run in told["runs"]] == ["little", "more"]
    rise = next(v for v in told["values"] if v["quantity"] == "loss_rise" and v["run"] == 2)
    assert rise["pairing"] == "paired"
    bound = rise["difference"] / 2
    for sign, expected in ((">", bound < rise["difference"]), ("<", bound > rise["difference"])):
        code, _, error = driftlens(
            "compare", *both, "--fail-on", f"forgetting.loss_rise{sign}{bound}"
        )
        assert (code, "threshold crossed" in error) == ((1, True) if expected else (0, False))


def test_the_command_leaves_with_2_where_there_is_nothing_to_compare(runs, driftlens):
    code, _, error = driftlens("compare", runs["little"])
    assert code == 2
    assert "folders of two or more runs" in error
