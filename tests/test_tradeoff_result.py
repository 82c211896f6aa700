"""What is made of curves whose truth is known, and what is said of them."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from driftlens.diagnostics.tradeoff import (
    FEW,
    FEWEST,
    NEARBY,
    Course,
    Seen,
    Tradeoff,
    TradeoffResult,
)
from driftlens.formulas.curves import FULL, TANH
from driftlens.report import Report
from driftlens.results import load, same, save
from strengths import covered, within

R = np.linspace(-4, 4, 17)
"""Strengths, in the stream's units; a state is 4 of them long."""

LENGTH = 4.0
A, B0 = 0.8, -0.4
CAPABLE = 0.5, 0.9
"""a and b of 1 / (1 + a + a b² r² / 2)."""

FACTS = {
    "model": "aligned",
    "layers": "3",
    "part": "out",
    "method": "mean-difference",
    "positions": "all",
    "behaviour_pack": "choices",
    "norm": 2.0,
    "capability_pack": "quiz",
    "foremost": True,
    "alone": False,
}


def tanh(r):
    return np.tanh(A * r + B0)


def square(r):
    a, b = CAPABLE
    return 1 / (1 + a + a * b**2 * r**2 / 2)


def tossed(share, items, random):
    """[item, r] 1 as often as a share says, each item and strength by itself."""
    return (random.random((items, len(share))) < share).astype(float)


def behaving(behaviour):
    """What is read of choices, from [item, r] of behaviour."""
    names = ("behaviour_full", "log_odds", "mass")
    values = {name: behaviour * share for name, share in zip(names, (0.5, 3.0, 0.25), strict=True)}
    return Seen({"behaviour": behaviour, **values}, np.arange(len(behaviour)))


def capable(right, behaviour=None):
    """What is read of choices with a right answer, from [item, r] of its probability."""
    values = {
        "right": right,
        "behaviour": 2 * right - 1 if behaviour is None else behaviour,
        "hits": (right > 0.5).astype(float),
        "hits_full": (right > 0.6).astype(float),
        "log_right": np.log(np.maximum(right, 1e-3)),
    }
    return Seen(values, np.arange(len(right)))


def reading(tokens, right):
    """What is read of texts, from [text] numbers of tokens and [text, r] sums over them."""
    values = {
        "tokens": np.repeat(np.asarray(tokens, float)[:, None], right.shape[1], 1),
        "right": right,
        "hits": 0.5 * right,
        "log_right": -2.0 * right,
    }
    return Seen(values, np.arange(len(right)))


def level(curve, items=40):
    """[item, r] items that all do the same."""
    return np.repeat(np.asarray(curve, float)[None], items, 0)


def bends(behaviour, capability, slope=0.0, curvature=0.0):
    """[document, order] derivatives that all items share."""
    rows = [(0.0, slope, 0.0), (0.0, 0.0, curvature)]
    counts = len(behaviour.clusters), len(capability.clusters)
    return {
        name: np.repeat(np.array(row)[None], count, 0)
        for name, row, count in zip(("behaviour", "capability"), rows, counts, strict=True)
    }


def course(behaviour, capability, r=R, controls=(), answers=0, **closed):
    return Course(
        r, behaviour, capability, controls, bends(behaviour, capability, **closed), answers, LENGTH
    )


def told(*args, weight=1.0, seed=0, **more):
    return Tradeoff(course(*args, **more), weight, seed, 0.95).result(**FACTS)


def noisy(seed, b=tanh, p=square, r=R, items=100):
    random = np.random.default_rng(seed)
    return (
        behaving(2 * tossed((1 + b(r)) / 2, items, random) - 1),
        capable(tossed(p(r), items, random)),
    )


def test_curves_without_noise_are_fitted_to_the_last_digits():
    found = told(behaving(level(tanh(R))), capable(level(square(R))))
    for name, truth in zip(
        ("tanh_a", "tanh_b0", "rational_a", "rational_b"), (A, B0, *CAPABLE), strict=True
    ):
        assert getattr(found, name).value == pytest.approx(truth, abs=1e-6), name
    np.testing.assert_allclose(found.behaviour_fit, tanh(R), atol=1e-6)
    np.testing.assert_allclose(found.capability_fit, square(R), atol=1e-6)
    assert found.behaviour_verdict == found.capability_verdict == "holds"
    assert found.from_fits


@pytest.fixture(scope="module")
def draws():
    """Forty curves of tossed items, of which the theory is true."""
    return [told(*noisy(seed), seed=seed) for seed in range(40)]


@pytest.mark.slow
def test_a_true_theory_holds_of_tossed_items(draws):
    for name in ("behaviour_verdict", "capability_verdict"):
        held = sum(getattr(one, name) == "holds" for one in draws)
        # Its misfit is noise in 19 draws of 20.
        assert held >= 36, name
    assert sum(one.from_fits for one in draws) >= 34


@pytest.mark.slow
def test_intervals_of_tossed_items_hold_the_truth(draws):
    for name, truth in zip(
        ("tanh_a", "tanh_b0", "rational_a", "rational_b"), (A, B0, *CAPABLE), strict=True
    ):
        held = sum(covered(_interval(getattr(one, name)), truth) for one in draws)
        assert within(held, len(draws)), name
    for name, truth in (("behaviour_still", tanh(0.0)), ("capability_still", square(0.0))):
        held = sum(covered(_interval(getattr(one, name)), truth) for one in draws)
        assert within(held, len(draws)), name
    spots = sum(covered(_interval(one.sweet_spot), best_of()) for one in draws)
    assert within(spots, len(draws))
    for one in draws:
        assert one.gain.low <= one.gain.value <= one.gain.high
        assert one.cost.low <= one.cost.value <= one.cost.high
    gains = [covered(_interval(one.gain), tanh(one.sweet_spot.value) - tanh(0.0)) for one in draws]
    costs = [
        covered(_interval(one.cost), square(0.0) - square(one.sweet_spot.value)) for one in draws
    ]
    for held in (sum(gains), sum(costs)):
        assert within(held, len(draws))


class _interval:
    def __init__(self, estimate):
        self.low, self.high = estimate.low, estimate.high


def best_of(weight=1.0, b=tanh, p=square):
    """Where gain − weight · loss is largest, by search; the whole capability weighs so much."""
    found = scipy.optimize.minimize_scalar(
        lambda r: -b(r) - weight * p(r) / p(0.0), bounds=(R[0], R[-1]), options={"xatol": 1e-10}
    )
    return found.x


def line(r):
    return 0.22 * r


def step(r):
    return np.where(r > 0.4, 0.8, -0.6)


def half(r):
    return 0.5 * np.tanh(2 * r)


def fall(r):
    return 0.6 - 0.1 * r


def cliff(r):
    return np.where(np.abs(r) > 2.4, 0.1, 0.8)


@pytest.mark.parametrize(
    ("b", "p"),
    [
        (line, fall),
        pytest.param(half, cliff, marks=pytest.mark.slow),
        pytest.param(step, cliff, marks=pytest.mark.slow),
    ],
)
def test_a_false_theory_is_not_called_true(b, p):
    for seed in range(5):
        found = told(*noisy(seed, b, p, items=400), seed=seed)
        # A fit that settles now here and now there says nothing, which is no yes either.
        assert found.behaviour_verdict in ("rejected", "outdone", "failed")
        assert found.capability_verdict in ("rejected", "outdone")
        assert not found.from_fits
        assert " No, " in found.summary()


def test_the_sweet_spot_is_where_gain_less_cost_is_largest():
    for weight in (0.5, 1.0, 3.0):
        found = told(behaving(level(tanh(R))), capable(level(square(R))), weight=weight)
        best = best_of(weight)
        assert found.from_fits
        # On a grid of 401 strengths, between which a parabola is laid.
        assert found.sweet_spot.value == pytest.approx(best, abs=1e-3)
        assert found.gain.value == pytest.approx(tanh(best) - tanh(0), abs=1e-4)
        assert found.cost.value == pytest.approx(square(0) - square(best), abs=1e-4)
        assert found.weight == weight
        assert found.edge == ""


def test_the_measured_curves_tell_the_sweet_spot_where_the_theory_does_not_hold():
    peak = 1.3

    def hill(r):
        return 0.9 - 0.08 * (r - peak) ** 2

    found = told(behaving(level(hill(R))), capable(level(np.full_like(R, 0.6))))
    assert not found.from_fits
    assert found.sweet_spot.value == pytest.approx(peak, abs=1e-9)
    assert found.gain.value == pytest.approx(0.08 * peak**2, abs=1e-9)
    assert found.cost.value == pytest.approx(0, abs=1e-12)
    assert found.capability_verdict == "still"
    assert np.isnan(found.onset.value)


def test_more_may_lie_beyond_a_curve_that_still_rises_at_its_end():
    found = told(behaving(level(0.2 * R)), capable(level(np.full_like(R, 0.6))))
    assert found.edge == "highest"
    assert "the highest strength: more may lie beyond" in found.summary()
    down = told(behaving(level(-0.2 * R)), capable(level(np.full_like(R, 0.6))))
    assert down.edge == "lowest"
    assert down.sweet_spot.value == R[0]


def test_small_strengths_have_a_sweet_spot_in_closed_form():
    found = told(*noisy(0), slope=0.3, curvature=-0.2, weight=2.0)
    # k / (2 λ q) with q = −P″(0) / 2, of a λ that the whole capability weighs.
    weight = 2.0 / found.capability_still.value
    assert found.small_sweet_spot.value == pytest.approx(0.3 / (weight * 0.2))
    assert np.isnan(told(*noisy(0), slope=0.3, curvature=0.2).small_sweet_spot.value)


def test_derivatives_from_gradients_are_held_against_the_sweep():
    # Items that differ by a place and a height of their own, each without noise along r.
    random = np.random.default_rng(0)
    shift, height = random.normal(B0, 0.5, (80, 1)), random.uniform(0.5, 1.0, (80, 1))
    behaviour = behaving(np.tanh(A * R + shift))
    capability = capable(height / (1 + 0.2 * R**2))
    slopes = A * (1 - np.tanh(shift[:, 0]) ** 2)
    rows = {
        "behaviour": np.stack([0 * slopes, slopes, 0 * slopes], 1),
        "capability": np.stack([0 * slopes, 0 * slopes, -0.4 * height[:, 0]], 1),
    }
    one = course(behaviour, capability)
    true, false = (
        Tradeoff(
            replace(one, bends={name: share * row for name, row in rows.items()}), 1.0, 0, 0.95
        ).result(**FACTS)
        for share in (1.0, 1.6)
    )
    assert true.slope.value == pytest.approx(slopes.mean())
    # Differences are off by the square of a step of a half.
    assert true.slope_swept.value == pytest.approx(slopes.mean(), rel=0.06)
    assert true.curvature_swept.value == pytest.approx(-0.4 * height.mean(), rel=0.06)
    assert (true.slope_agrees, true.curvature_agrees) == (1, 1)
    assert (false.slope_agrees, false.curvature_agrees) == (0, 0)


def test_the_closed_derivatives_are_means_over_items_with_their_bootstrap():
    behaviour, capability = noisy(0)
    rows = np.random.default_rng(1).normal(size=(len(behaviour.clusters), 3))
    one = course(behaviour, capability)
    one = replace(one, bends={"behaviour": rows, "capability": 2 * rows})
    found = Tradeoff(one, 1.0, 0, 0.95).result(**FACTS)
    assert found.slope.value == pytest.approx(rows[:, 1].mean())
    assert found.curvature.value == pytest.approx(2 * rows[:, 2].mean())
    half = (found.slope.high - found.slope.low) / 2
    # A percentile interval of 2000 draws is that of the normal to a few hundredths.
    assert half == pytest.approx(1.96 * rows[:, 1].std() / np.sqrt(len(rows)), rel=0.1)


def test_the_band_is_where_one_more_random_direction_would_lie():
    random = np.random.default_rng(0)
    controls = [
        (behaving(level(0.1 * random.normal() + 0.02 * R)), capable(level(0.5 + 0.01 * n + 0 * R)))
        for n in range(5)
    ]
    found = told(*noisy(0), controls=controls)
    for place, name, band in (
        (0, "behaviour", (found.control, found.control_low, found.control_high)),
        (
            1,
            "right",
            (
                found.capability_control,
                found.capability_control_low,
                found.capability_control_high,
            ),
        ),
    ):
        curves = np.stack([two[place].values[name].mean(0) for two in controls])
        half = scipy.stats.t.ppf(0.975, 4) * curves.std(0, ddof=1) * np.sqrt(1 + 1 / 5)
        np.testing.assert_allclose(band[0], curves.mean(0), atol=1e-12)
        np.testing.assert_allclose(band[1], curves.mean(0) - half, atol=1e-12)
        np.testing.assert_allclose(band[2], curves.mean(0) + half, atol=1e-12)
    assert found.random_directions == 5


def test_a_band_stays_within_what_behaviour_and_capability_can_be():
    controls = [
        (behaving(level(np.full_like(R, sign * 0.99))), capable(level(np.full_like(R, p))))
        for sign, p in ((1, 0.01), (-1, 0.99), (1, 0.5))
    ]
    found = told(*noisy(0), controls=controls)
    assert (found.control_low == -1).all()
    assert (found.control_high == 1).all()
    assert (found.capability_control_low == 0).all()
    assert (found.capability_control_high == 1).all()


@pytest.mark.parametrize("count", [0, 1])
def test_without_several_random_directions_there_is_no_band(count):
    controls = [(behaving(level(0 * R)), capable(level(0 * R + 0.5)))] * count
    found = told(*noisy(0), controls=controls)
    for name in ("control_low", "control_high", "capability_control_low"):
        assert np.isnan(getattr(found, name)).all()
    assert found.random_directions == count
    assert found.frontier.any()
    assert np.isnan(found.chance).all() == (count == 0)
    assert found.figure() is not None


def test_the_frontier_is_what_no_other_strength_beats_in_both():
    behaviour, capability = noisy(3)
    b, p = behaviour.values["behaviour"].mean(0), capability.values["right"].mean(0)
    random = np.random.default_rng(0)
    controls = [
        (behaving(level(0.6 * random.normal(size=len(R)))), capable(level(random.random(len(R)))))
        for _ in range(9)
    ]
    found = told(behaviour, capability, controls=controls)
    for here in range(len(R)):
        beaten = any(
            b[z] >= b[here] and p[z] >= p[here] and (b[z] > b[here] or p[z] > p[here])
            for z in range(len(R))
        )
        assert found.frontier[here] == (not beaten)
        if beaten:
            assert np.isnan(found.chance[here])
            continue
        # How many reach as much behaviour anywhere where capability is no less, and this one.
        as_good = sum(
            (two[0].values["behaviour"].mean(0)[two[1].values["right"].mean(0) >= p[here]]).max(
                initial=-np.inf
            )
            >= b[here]
            for two in controls
        )
        assert found.chance[here] == pytest.approx((1 + as_good) / 10)


@pytest.mark.slow
def test_the_theory_may_hold_of_small_strengths_alone():
    fine = np.linspace(-4, 4, 33)

    def broken(r):
        return np.where(np.abs(r) < 1.6, 1 / (1 + 0.25 + 0.1 * r**2), 0.2)

    kept = broken(fine) >= NEARBY * broken(0.0)
    assert FEWEST <= kept.sum() < len(fine)
    found = told(*noisy(0, tanh, broken, fine, items=4000), r=fine)
    assert found.capability_verdict == "rejected"
    assert found.near_verdict == "holds"
    # The same as if no other strength had been measured.
    alone = noisy(0, tanh, broken, fine, items=4000)
    cut = [Seen({n: z[:, kept] for n, z in s.values.items()}, s.clusters) for s in alone]
    assert told(*cut, r=fine[kept]).capability_verdict == "holds"


def test_answers_that_are_restricted_have_a_floor():
    random = np.random.default_rng(0)
    for answers in (2, 4):
        share = 1 / answers + (1 - 1 / answers) / (1 + 0.3 + 0.2 * R**2)
        right = tossed(share, 600, random)
        found = told(
            behaving(level(tanh(R))),
            capable(tossed(square(R), 600, random), behaviour=2 * right - 1),
            answers=answers,
        )
        np.testing.assert_allclose(found.restricted, right.mean(0), atol=1e-12)
        assert found.restricted_verdict == "holds"
        assert (found.published_verdict == "") == (answers != 4)
    assert told(*noisy(0), answers=0).restricted_verdict == ""


@pytest.mark.parametrize("count", [3, 5])
def test_of_few_strengths_nothing_is_fitted(count):
    some = R[8 - count // 2 : 9 + count // 2]
    found = told(*noisy(0, r=some), r=some)
    verdicts = (found.behaviour_verdict, found.capability_verdict, found.near_verdict)
    assert verdicts == (FEW,) * 3
    for name in ("tanh_a", "tanh_b0", "rational_a", "rational_b"):
        assert np.isnan(getattr(found, name).value)
    assert np.isnan(found.behaviour_fit).all()
    assert not found.from_fits
    assert np.isfinite(found.slope_swept.value) == (count == 5)
    assert np.isnan(found.slope_agrees) == (count == 3)
    assert "cannot be told of so few strengths" in found.summary().lower()
    assert found.figure() is not None


def test_no_fewer_strengths_than_are_asked_for_are_fitted():
    some = np.linspace(-2, 3, FEWEST)
    some[np.abs(some).argmin()] = 0
    assert told(*noisy(0, r=some), r=some).behaviour_verdict != FEW
    assert told(*noisy(0, r=some[:-1]), r=some[:-1]).behaviour_verdict == FEW


def test_every_token_of_a_text_counts_alike():
    random = np.random.default_rng(0)
    tokens = random.integers(1, 40, 30)
    own = square(R) * random.uniform(0.5, 1, (30, 1))
    # Long texts are the harder ones, so that a mean of means would flatter.
    right = own * np.where(tokens > 20, 0.3, 1.0)[:, None] * tokens[:, None]
    seen = reading(tokens, right)
    found = told(behaving(level(tanh(R))), seen)
    wanted = right.sum(0) / tokens.sum()
    np.testing.assert_allclose(found.capability, wanted, atol=1e-12)
    assert np.abs(wanted - (right / tokens[:, None]).mean(0)).max() > 0.05
    np.testing.assert_allclose(found.accuracy_full, 0.5 * wanted, atol=1e-12)
    np.testing.assert_allclose(found.loss, 2 * wanted, atol=1e-12)
    assert np.isnan(found.accuracy).all()
    assert np.isnan(found.restricted).all()
    assert found.restricted_verdict == ""
    assert found.documents == 30
    # Sums over a text's tokens, over all tokens.
    closed = np.zeros((30, 3))
    closed[:, 2] = -0.1 * tokens
    one = course(behaving(level(tanh(R))), seen)
    one = replace(one, bends={**one.bends, "capability": closed})
    result = Tradeoff(one, 1.0, 0, 0.95).result(**FACTS)
    assert result.curvature.value == pytest.approx(-0.1)
    assert result.curvature.high - result.curvature.low < 1e-12


def test_every_other_column_is_the_mean_over_items():
    behaviour, capability = noisy(0)
    found = told(behaviour, capability)
    for name in ("log_odds", "behaviour_full", "mass"):
        np.testing.assert_allclose(getattr(found, name), behaviour.values[name].mean(0))
    np.testing.assert_allclose(found.accuracy, capability.values["hits"].mean(0))
    np.testing.assert_allclose(found.accuracy_full, capability.values["hits_full"].mean(0))
    np.testing.assert_allclose(found.loss, -capability.values["log_right"].mean(0))
    np.testing.assert_allclose(found.relative_strength, R / LENGTH)
    assert (found.items, found.documents, found.length) == (100, 100, LENGTH)


def test_items_of_a_family_are_drawn_together():
    behaviour, capability = noisy(0, items=30)
    twice = Seen(
        {n: np.repeat(z, 4, 0) for n, z in behaviour.values.items()}, np.repeat(np.arange(30), 4)
    )
    one, four = told(behaviour, capability), told(twice, capability)
    np.testing.assert_allclose(four.behaviour, one.behaviour, atol=1e-12)
    # Thirty things seen four times are no surer than thirty.
    np.testing.assert_allclose(four.high - four.low, one.high - one.low, rtol=0.2)
    apart = told(replace(twice, clusters=np.arange(120)), capability)
    assert (apart.high - apart.low).mean() < 0.6 * (one.high - one.low).mean()


def test_an_onset_is_a_share_of_the_stream():
    flat = np.where(np.abs(R) < 2, 0.7, 0.3)
    found = told(behaving(level(tanh(R))), capable(level(flat)))
    assert found.onset.value == pytest.approx(2 / LENGTH)
    closed = told(behaving(level(tanh(R))), capable(level(flat)), curvature=-0.2)
    # √(2 · fall / |P″|) / E‖h‖
    assert closed.expected_onset.value == pytest.approx(np.sqrt(2 * 0.4 / 0.2) / LENGTH)


def test_the_same_seed_says_the_same():
    one, other = told(*noisy(0), seed=3), told(*noisy(0), seed=3)
    assert same(one, other)
    assert not same(one, told(*noisy(0), seed=4))


# What is said


def test_the_summary_names_model_place_gain_cost_and_theory():
    found = told(behaving(level(tanh(R))), capable(level(square(R))))
    said = found.summary()
    assert said.startswith("Steering aligned at the stream after block 3: behaviour −0.38 and ")
    assert "the sweet spot is r = " in said
    after = found.capability_still.value - found.cost.value
    assert f"gains {found.gain.value:.2f}" in said
    assert f"takes capability to {after:.3f}" in said
    assert "Yes, it fits, and better than plain forms" in said
    assert "E‖h‖ gains" in found.headline()
    assert f"takes P(right) of quiz from 0.667 to {after:.3f}" in found.headline()
    told_too = replace(found, elsewhere=("world from 0.5 to 0.4",))
    assert "(world from 0.5 to 0.4)" in told_too.headline()
    assert "(world from 0.5 to 0.4)" in told_too.summary()
    assert replace(found, foremost=False).headline() == ""
    assert "at mlp of blocks 2-4" in replace(found, part="mlp", layers="2-4").summary()
    assert found.title == "What steering aligned gains, and costs in quiz"
    assert replace(found, alone=True).summary().startswith("Steering the model at ")
    assert replace(found, alone=True).headline().startswith("steering the model by ")


def test_a_gain_that_chance_may_have_made_is_not_called_one():
    found = told(behaving(level(tanh(R))), capable(level(square(R))))
    assert found.gains
    for doubt, said in (
        ({"p_value": 0.3}, "not told from roles that mean nothing (p = 0.3)"),
        ({"beyond_controls": 0.0}, "a random direction of that length may reach as much"),
    ):
        doubted = replace(found, **doubt)
        assert not doubted.gains
        assert said in doubted.summary()
        assert doubted.headline() == ""
    assert replace(found, p_value=0.01, beyond_controls=1.0).gains


def test_what_gains_nothing_measurable_is_not_called_a_gain():
    random = np.random.default_rng(0)
    still = behaving(0.1 * random.normal(size=(20, len(R))))
    found = told(still, capable(level(square(R))))
    assert not found.gains
    assert "no strength gains measurably more than it costs" in found.summary()
    assert found.headline() == ""


@pytest.mark.slow
def test_what_is_found_survives_the_store_and_is_drawn(tmp_path):
    controls = [noisy(seed) for seed in (7, 8, 9)]
    text = reading(np.arange(1, 31), square(R) * np.arange(1, 31)[:, None])
    some = [
        told(*noisy(0), controls=controls, answers=4),
        told(behaving(level(tanh(R))), text),
        told(*noisy(0, r=R[6:11]), r=R[6:11]),
    ]
    for number, one in enumerate(some):
        assert isinstance(one, TradeoffResult)
        assert same(load(save(one, tmp_path / str(number))), one)
        panels = one.figure().axes
        assert len(panels) == 4
        assert all(panel.get_xlabel() and panel.get_ylabel() for panel in panels)
    Report("model", some).write(tmp_path / "page")
    for one, other in zip(Report.read(tmp_path / "page").results, some, strict=True):
        assert same(one, other)


def test_fixtures_of_the_theory():
    """As the methods' file has them: tanh and helpfulness at whole strengths."""
    np.testing.assert_allclose(
        TANH.value(np.array([1.0, 0.0]), np.arange(2.0)), [0, 0.761594], atol=1e-6
    )
    np.testing.assert_allclose(
        FULL.value(np.array([1.0, 0.5]), np.array([0.0, 1, 2])), [0.5, 0.4, 0.25]
    )
