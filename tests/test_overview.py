"""What a report's results say together: only what they hold, and nothing that may be noise."""

from dataclasses import fields
from math import isnan, nan

import numpy as np
import pytest

from driftlens.diagnostics import (
    CalibrationResult,
    ForgettingResult,
    HomogenisationResult,
    LayerForgettingResult,
    OverviewLayersResult,
    OverviewResult,
    SafetyForgettingResult,
    TokenShiftResult,
    overview,
)
from driftlens.report import Report
from driftlens.results import Estimate, load, same, save


def made(kind, pack="mine", floor=None, **known):
    """A result of a kind in which nothing is known but what is given."""
    told = {}
    for field in fields(kind):
        role = field.metadata.get("role")
        if role == "value":
            told[field.name] = Estimate(nan)
        elif role == "column":
            told[field.name] = []
        elif role == "fact":
            told[field.name] = ""
    rows = [len(z) for z in known.values() if isinstance(z, list)]
    columns = {n: [nan] * rows[0] for n, z in told.items() if rows and z == []}
    return kind.of(**told | columns | known, pack=pack, floor=floor or {})


def lost(value, low, high, **more):
    return made(ForgettingResult, loss_rise=Estimate(value, low, high), **more)


def shares(*parts, pack="mine"):
    stages = ["embed", *map(str, range(len(parts) - 2)), "head"]
    return made(LayerForgettingResult, stage=stages, mean_share=[*parts], pack=pack)


READS = {
    "a rise": (0.2, 0.1, 0.3, {}, "worse"),
    "a fall": (-0.2, -0.3, -0.1, {}, "better"),
    "an interval that holds 0": (0.2, -0.1, 0.5, {}, "not clear"),
    "no interval": (0.2, nan, nan, {}, "not clear"),
    "less than noise": (0.2, 0.1, 0.3, {"loss_rise": 0.25}, "not clear"),
    "nothing": (0.0, 0.0, 0.0, {}, "not clear"),
}


@pytest.mark.parametrize("what", READS)
def test_a_change_reads_as_its_interval_and_its_noise_floor_allow(what):
    value, low, high, floor, reads = READS[what]
    found = overview([lost(value, low, high, floor=floor)])[0]
    assert isinstance(found, OverviewResult)
    assert found.reads.tolist() == [reads]
    assert (found.change[0], found.loss_rise.value, found.measured_in[0]) == (
        value,
        value,
        "nats/token",
    )


@pytest.mark.parametrize(("mass", "reads"), [(0.4, "worse"), (0.01, "not clear")])
def test_odds_among_what_is_hardly_ever_said_are_not_clear(mass, reads):
    change = Estimate(-1.4, -1.6, -1.2)
    odds = made(SafetyForgettingResult, harmful_change=change, base_mass=mass, aligned_mass=mass)
    whole = overview([odds])[0]
    assert whole.reads.tolist() == [reads]
    assert ("refuses" in whole.headline()) == (reads == "worse")


def test_what_is_new_is_neither_worse_nor_better():
    found = overview([made(TokenShiftResult, shifted_share=Estimate(0.1, 0.08, 0.12))])[0]
    assert found.reads.tolist() == ["changed"]


def test_no_result_that_tells_of_a_symptom_gives_no_overview():
    assert overview([]) == []
    assert overview([shares(0.0, 0.1, 0.0)]) == []
    assert overview([made(ForgettingResult)]) == []


def test_layers_are_told_as_parts_of_a_clear_change():
    results = [lost(0.2, 0.1, 0.3), shares(0.0, 0.02, 0.14, 0.05, -0.01)]
    whole, layers = overview(results)
    assert whole.where.tolist() == ["70% in block 1"]
    assert isinstance(layers, OverviewLayersResult)
    np.testing.assert_allclose(layers.share, np.array([0, 0.02, 0.14, 0.05, -0.01]) / 0.2)
    assert layers.share.sum() == pytest.approx(1)
    assert "block 1 (70%)" in layers.summary()


def test_layers_of_what_may_be_nothing_are_left_out():
    (whole,) = overview([lost(0.2, -0.1, 0.5), shares(0.0, 0.2, 0.0)])
    assert whole.where.tolist() == ["–"]


def test_a_change_that_all_layers_share_has_no_place():
    whole, _ = overview([lost(0.2, 0.1, 0.3), shares(0.04, 0.04, 0.04, 0.04, 0.04)])
    assert whole.where.tolist() == ["–"]


def test_layers_that_work_against_each_other_give_no_place():
    (whole,) = overview([lost(0.1, 0.05, 0.2), shares(0.0, 0.3, -0.1, -0.1, 0.0)])
    assert whole.where.tolist() == ["–"]


def test_layers_are_named_from_the_bottom_up():
    parts = (0.2, 0.0, 0.2, 0.0, 0.2, 0.15, 0.15, 0.0)
    whole, _ = overview([lost(0.9, 0.8, 1.0), shares(*parts)])
    assert whole.where.tolist() == ["67% in the embedding and blocks 1 and 3"]
    whole, _ = overview([lost(0.5, 0.4, 0.6), shares(0.2, 0.1, 0.0, 0.0, 0.2)])
    assert whole.where.tolist() == ["80% in the embedding and the head"]


def test_layers_of_another_pack_do_not_count():
    (whole,) = overview([lost(0.2, 0.1, 0.3), shares(0.0, 0.2, 0.0, pack="other")])
    assert whole.where.tolist() == ["–"]


def test_the_first_sentence_tells_what_changed_and_no_more():
    alike = made(
        HomogenisationResult,
        pack="asked",
        single_change=Estimate(0.3, 0.2, 0.4),
        base_single=0.1,
        aligned_single=0.4,
    )
    whole = overview([lost(0.2, 0.1, 0.3), alike])[0]
    assert whole.headline() == (
        "lost 0.20 ± 0.10 nats a token on mine; answers 40% of prompts in one way alone, where "
        "base did 10%"
    )
    assert whole.one_way_answers_rise == (0.3, 0.2, 0.4)
    assert isnan(whole.new_first_choices.value)
    quiet = overview([lost(0.0, 0.0, 0.0)])[0]
    assert quiet.headline() == "no loss on mine that can be told from noise"


@pytest.mark.parametrize(
    ("rise", "floor", "said"),
    [
        (
            (1.3, nan, nan),
            0.1,
            "lost 1.3 nats a token on mine, of too few documents to say how sure that is",
        ),
        (
            (0.2, -0.1, 0.5),
            0.1,
            "lost 0.20 ± 0.30 nats a token on mine, an interval that includes none",
        ),
        ((0.2, -0.1, 0.5), 0.3, "no loss on mine that can be told from noise"),
        ((0.2, nan, nan), 0.3, "no loss on mine that can be told from noise"),
    ],
)
def test_a_loss_that_is_not_clear_is_not_called_none(rise, floor, said):
    assert overview([lost(*rise, floor={"loss_rise": floor})])[0].headline() == said


def test_a_change_of_confidence_is_not_told_as_its_level():
    """Over-confidence that falls may still be over-confidence."""
    calmer = made(
        CalibrationResult,
        predicted="next token",
        overconfidence_change=Estimate(-0.04, -0.05, -0.03),
        base_overconfidence=Estimate(0.2),
        aligned_overconfidence=Estimate(0.16),
    )
    assert overview([calmer])[0].headline() == "over-confidence fell by 0.040 ± 0.010 to 0.16"


def test_style_is_told_of_its_own_answers_where_they_were_sampled():
    found = [
        made(TokenShiftResult, pack=pack, shifted_share=Estimate(share, share / 2, 2 * share))
        for pack, share in (("mine", 0.1), ("asked, as aligned answers", 0.2))
    ]
    whole = overview(found)[0]
    assert whole.new_first_choices.value == 0.2
    assert (
        whole.headline() == "20% of its first choices are new to base on asked, as aligned answers"
    )
    assert overview(found[:1])[0].new_first_choices.value == 0.1


def test_it_survives_the_store_and_opens_the_page(tmp_path):
    found = overview([lost(0.2, 0.1, 0.3), shares(0.0, 0.2, 0.0)])
    for result in found:
        save(result, tmp_path / result.kind)
        assert same(load(tmp_path / result.kind), result)
    page = Report("Two", [*found, lost(0.2, 0.1, 0.3)])
    assert page.verdict().startswith("Lost 0.20 ± 0.10 nats a token on mine")
    text = page.write(tmp_path / "page").read_text()
    assert text.count("<details open><summary>Table") == 1
