"""What is read off curves over a steering strength agrees with planted truths."""

import math

import numpy as np
import pytest
import scipy.stats

from driftlens.errors import DriftlensError
from driftlens.formulas.curves import FULL, TANH, measured, resampled
from driftlens.formulas.fits import fit
from driftlens.formulas.tradeoff import (
    at_zero,
    band,
    expected_onset,
    frontier,
    next_points,
    onset,
    pareto,
    reach,
    small_sweet_spot,
    sweet_spot,
)
from strengths import (
    CAPABILITY,
    STRENGTHS,
    TRUTHS,
    covered,
    items_of,
    known,
    six,
    within,
)

NAN = float("nan")


# --- derivatives at 0 ---------------------------------------------------------------------


@pytest.mark.parametrize("points", [3, 5])
def test_differences_are_exact_on_what_they_are_made_for(points):
    r = np.array([-2.0, -0.7, -0.4, 0.0, 0.1, 0.9, 1.5])
    value = 0.3 + 0.2 * r - 0.4 * r**2
    found = at_zero(measured(r, value), points)
    assert found.slope.interval.estimate == pytest.approx(0.2, abs=1e-12)
    assert found.curvature.interval.estimate == pytest.approx(-0.8, abs=1e-11)
    assert found.slope.truncation == pytest.approx(0, abs=1e-12)
    assert math.isnan(found.slope.interval.low)
    assert math.isnan(found.slope.agrees(0.2))


def test_the_truncation_is_about_how_far_the_differences_are_off():
    r = np.linspace(-1, 1, 11)
    theta = np.array([0.9, -0.5])
    found = at_zero(measured(r, TANH.value(theta, r)))
    for derivative, closed in (
        (found.slope, TANH.slope(theta, np.zeros(1))),
        (found.curvature, TANH.curvature(theta, np.zeros(1))),
    ):
        off = abs(derivative.interval.estimate - closed)
        # What is left of the next order is a tenth of it on this grid.
        assert off == pytest.approx(derivative.truncation, rel=0.1)


def test_differences_have_the_errors_of_their_points():
    r, error = np.linspace(-1, 1, 9), np.linspace(0.01, 0.02, 9)
    slope, curvature = at_zero(measured(r, 0.3 * r, error))
    z = 2 * scipy.stats.norm.ppf(0.975)
    width = z * np.hypot(error[3], error[5]) / 0.5
    assert slope.interval.high - slope.interval.low == pytest.approx(width)
    width = z * np.linalg.norm(error[3:6] * [1, 2, 1]) / 0.25**2
    assert curvature.interval.high - curvature.interval.low == pytest.approx(width)


@pytest.mark.parametrize("how", ["errors", "items"])
def test_the_closed_form_agrees_with_its_own_curve_and_a_false_one_does_not(how):
    theta = np.array(TRUTHS[TANH])
    slope, curvature = (f(theta, np.zeros(1))[0] for f in (TANH.slope, TANH.curvature))
    found = [at_zero(known(TANH, TRUTHS[TANH], how, seed)) for seed in range(40)]
    # The truncation widens the interval: it holds the truth at least as often as it says.
    assert sum(z.slope.agrees(slope) for z in found) >= 34
    assert sum(z.curvature.agrees(curvature) for z in found) >= 34
    assert sum(z.slope.agrees(slope + 1) for z in found) == 0


# --- the sweet spot -----------------------------------------------------------------------


def square(gain, loss, r=CAPABILITY):
    return measured(r, gain * r), measured(r, 0.6 - loss * r**2)


@pytest.mark.parametrize(("k", "q", "weight"), [(0.1, 0.02, 1), (0.1, 0.04, 1.7), (-0.1, 0.02, 2)])
def test_a_line_and_a_square_meet_where_the_closed_form_says(k, q, weight):
    found = sweet_spot(*square(k, q), weight)
    closed = k / (2 * weight * q)
    assert found.strength.estimate == pytest.approx(closed)
    assert found.gain == pytest.approx(k * closed)
    assert found.loss == pytest.approx(q * closed**2)
    assert found.objective == pytest.approx(found.gain - weight * found.loss)
    assert found.edge == ""
    assert math.isnan(found.strength.low)
    assert math.isnan(found.at_edge)
    slope, curvature = (at_zero(z) for z in square(k, q))
    small = small_sweet_spot(
        slope.slope.interval.estimate, curvature.curvature.interval.estimate, weight
    )
    assert small == pytest.approx(closed)


def test_without_a_quadratic_loss_there_is_no_small_sweet_spot():
    assert math.isnan(small_sweet_spot(0.1, 0.0))
    assert math.isnan(small_sweet_spot(0.1, 0.2))


def test_a_best_at_the_end_of_the_grid_is_told():
    assert sweet_spot(*square(0.1, 0.001)).edge == "highest"
    found = sweet_spot(*square(-0.1, 0.001))
    assert found.edge == "lowest"
    assert found.strength.estimate == CAPABILITY[0]
    assert (found.gain, found.loss) == pytest.approx((0.5, 0.025))


def test_a_direction_that_does_nothing_is_best_left_alone():
    found = sweet_spot(*square(0.0, 0.0))
    assert (found.strength.estimate, found.gain, found.loss, found.edge) == (0, 0, 0, "")


def spots(seed, weight=1.0):
    random = np.random.default_rng(seed)
    behaviour = items_of(np.tanh(0.8 * CAPABILITY - 0.4), random)
    capability = items_of(FULL.value(np.array([0.6, 0.1]), CAPABILITY), random, own=0.1)
    return [resampled(CAPABILITY, z, seed=seed, rounds=300) for z in (behaviour, capability)]


def best_of_truth():
    fine = np.linspace(-5, 5, 200_001)
    aim = np.tanh(0.8 * fine - 0.4) + FULL.value(np.array([0.6, 0.1]), fine)
    return fine[np.argmax(aim)]


def test_the_sweet_spot_of_fits_lies_between_the_strengths():
    fine = np.linspace(-5, 5, 401)
    behaviour, capability = spots(0)
    found = sweet_spot(fit(TANH, behaviour).along(fine), fit(FULL, capability).along(fine))
    assert covered(found.strength, best_of_truth())
    assert found.strength.high - found.strength.low < 1
    assert found.at_edge == 0
    noisy = sweet_spot(behaviour, capability)
    assert noisy.strength.low <= noisy.strength.estimate <= noisy.strength.high


@pytest.mark.slow
def test_the_interval_of_the_sweet_spot_holds_the_truth():
    fine, hits = np.linspace(-5, 5, 401), 0
    for seed in range(200):
        behaviour, capability = spots(seed)
        found = sweet_spot(fit(TANH, behaviour).along(fine), fit(FULL, capability).along(fine))
        hits += covered(found.strength, best_of_truth())
    assert within(hits, 200, 0.945)


# --- frontier and onset -------------------------------------------------------------------


def test_the_band_is_where_one_more_direction_would_lie():
    curves = np.random.default_rng(0).normal(size=(6, 4))
    mean, low, high = band(curves)
    half = scipy.stats.t.ppf(0.975, 5) * curves.std(0, ddof=1) * math.sqrt(7 / 6)
    np.testing.assert_allclose([mean, low, high], [curves.mean(0) + k * half for k in (0, -1, 1)])
    random = np.random.default_rng(1).normal(size=(8, 20_000))
    _, low, high = band(random[:7])
    assert within(((low <= random[7]) & (random[7] <= high)).sum(), 20_000)
    assert np.isnan(band(curves[:1]).low).all()
    assert band(np.ones((5, 1))) == (1, 1, 1)


def test_frontier_points_are_those_that_no_other_beats():
    b, p = np.random.default_rng(0).integers(0, 6, (2, 40)).astype(float)
    beaten = [
        any(x >= b[i] and y >= p[i] and (x > b[i] or y > p[i]) for x, y in zip(b, p, strict=True))
        for i in range(40)
    ]
    np.testing.assert_array_equal(pareto(b, p), ~np.array(beaten))


def test_reach_is_the_most_behaviour_that_keeps_a_capability():
    b, p = np.array([0.0, 1.0, 2.0]), np.array([0.6, 0.5, 0.1])
    np.testing.assert_array_equal(reach(b, p, [0.7, 0.6, 0.4, 0.0]), [NAN, 0, 1, 2])
    both = reach(np.stack([b, -b]), np.stack([p, p]), [0.4])
    np.testing.assert_array_equal(both, [[1], [0]])


def test_the_frontier_stands_beside_random_directions():
    r = CAPABILITY
    behaviour, capability = 0.1 * r, 0.6 - 0.01 * r**2
    random = np.random.default_rng(0).normal(size=(19, 1)) * 0.01
    found = frontier(behaviour, capability, random * r, np.tile(capability, (19, 1)))
    # Only strengths of 0 and above: the others cost as much and gain nothing.
    np.testing.assert_array_equal(found.place, np.flatnonzero(r >= 0))
    assert (np.diff(found.capability) < 0).all()
    assert (np.diff(found.behaviour) > 0).all()
    assert found.chance[0] == 1
    np.testing.assert_allclose(found.chance[1:], 1 / 20)
    assert (found.behaviour[1:] > found.control.high[1:]).all()
    assert found.control.high[0] == 0


def falling(noise, seed, from_=2.0, items=80):
    """Capability that falls for strengths beyond some size."""
    random = np.random.default_rng(seed)
    curve = 0.7 - 0.1 * np.maximum(np.abs(CAPABILITY) - from_, 0)
    return items_of(curve, random, items, own=noise)


def test_an_onset_is_found_where_it_is_planted():
    found = onset(resampled(CAPABILITY, falling(0.0, 0), seed=0, rounds=50), 20.0)
    assert (found.below, found.above) == (-2.25, 2.25)
    assert abs(found.strength) == 2.25
    assert found.share == 2.25 / 20
    assert found.fall == pytest.approx(0.025)
    assert found.looked == 40
    noisy = onset(resampled(CAPABILITY, falling(0.05, 0), seed=0, rounds=200), 20.0)
    assert 2.25 <= noisy.above <= 3
    # A worse measurement sees it later.
    worse = onset(resampled(CAPABILITY, falling(0.4, 0), seed=0, rounds=200), 20.0)
    assert worse.above > noisy.above
    given = measured(CAPABILITY, falling(0.0, 0).mean(0), np.full(41, 0.02))
    z = scipy.stats.norm.ppf(1 - 0.05 / 40) * 0.02 * math.sqrt(2)
    assert onset(given, 1.0).above == CAPABILITY[2 + 10 * z < CAPABILITY][0]


def test_where_nothing_falls_there_is_no_onset():
    flat = np.tile(np.arange(30.0)[:, None], (1, 41))
    found = onset(resampled(CAPABILITY, flat, seed=0, rounds=50), 1.0)
    assert all(math.isnan(z) for z in found[:5])
    assert math.isnan(onset(measured(CAPABILITY, np.zeros(41), np.zeros(41)), 1.0).strength)


@pytest.mark.parametrize("runs", [60, pytest.param(400, marks=pytest.mark.slow)])
def test_noise_makes_an_onset_at_any_strength_one_time_in_twenty(runs):
    random, times = np.random.default_rng(0), 0
    for seed in range(runs):
        items = items_of(np.zeros(41), random, own=0.5)
        curve = resampled(CAPABILITY, items, seed=seed, rounds=500)
        times += not math.isnan(onset(curve, 1.0).strength)
    # Resampled deviations of 60 items are small by 1 part in 120; their maximum minds it.
    assert times <= scipy.stats.binom.ppf(0.999, runs, 0.06)
    assert times > 0


def test_a_square_reaches_a_noise_where_the_closed_form_says():
    assert expected_onset(-0.08, 0.01) == 0.5
    assert expected_onset(0.0, 0.01) == math.inf
    assert math.isnan(expected_onset(0.1, 0.01))


# --- where to measure next ----------------------------------------------------------------


START = np.array([-4.0, -2, 0, 2, 4])


def refined(curve, rounds, limit):
    r = START
    for _ in range(rounds):
        r = np.sort(np.concatenate([r, next_points(r, curve(r), None, limit)]))
    return r


def test_a_curve_is_measured_where_it_bends():
    def steep(r):
        return np.tanh(4 * (r - 1.3))

    fine = np.linspace(-4, 4, 4001)
    found = refined(steep, 6, 4)
    even = np.linspace(-4, 4, len(found))
    off = [np.abs(np.interp(fine, r, steep(r)) - steep(fine)).max() for r in (found, even)]
    assert off[0] < off[1] / 3
    assert len(found) == len(np.unique(found)) == 29


def test_a_straight_and_sure_curve_needs_no_more():
    assert len(next_points(START, 0.3 * START + 0.1, None, 5)) == 0
    assert len(next_points(START, np.full(5, 0.7), np.zeros(5), 5)) == 0


def test_where_nothing_bends_the_unsure_gaps_come_first():
    error = np.array([0.01, 0.01, 0.01, 0.2, 0.2])
    np.testing.assert_array_equal(next_points(START, np.zeros(5), error, 1), [3])
    uneven = np.array([-4.0, 0, 1, 2, 4])
    np.testing.assert_array_equal(next_points(uneven, np.zeros(5), np.full(5, 0.1), 1), [-2])
    # Alike gaps are taken from 0 outwards, the upper of two first.
    alike = np.full(5, 0.1)
    np.testing.assert_array_equal(next_points(START, np.zeros(5), alike, 1), [1])
    np.testing.assert_array_equal(next_points(START, np.zeros(5), alike, 4), [-3, -1, 1, 3])


def test_bends_that_noise_makes_are_not_followed():
    value = np.array([0.0, 0.0, 0.0, 0.05, 0.0])
    assert next_points(START, value, None, 1)[0] > 0
    sure, unsure = np.full(5, 0.001), np.full(5, 0.1)
    assert next_points(START, value, sure, 1)[0] > 0
    np.testing.assert_array_equal(
        next_points(START, value, unsure, 3), next_points(START, np.zeros(5), unsure, 3)
    )


def test_next_points_do_not_mind_units_order_or_sides():
    value, error = np.tanh(START - 0.7), np.linspace(0.01, 0.05, 5)
    found = next_points(START, value, error, 5)
    np.testing.assert_allclose(next_points(START * 8, value, error, 5), found * 8)
    np.testing.assert_allclose(next_points(-START, value, error, 5), -found[::-1])
    np.testing.assert_allclose(next_points(START, -value, error, 5), found)
    order = [3, 0, 4, 1, 2]
    np.testing.assert_array_equal(next_points(START[order], value[order], error[order], 5), found)
    assert not np.isin(found, START).any()
    assert len(next_points(START, value, error, 0)) == 0


def test_of_two_curves_the_more_doubtful_decides():
    bent = np.tanh(4 * (START - 1))
    np.testing.assert_array_equal(
        next_points(START, np.stack([0.1 * START, bent]), None, 2),
        next_points(START, bent, None, 2),
    )


# --- bad input ----------------------------------------------------------------------------


REFUSED = {
    "1 strengths on each side": lambda: at_zero(measured(STRENGTHS[2:], np.zeros(4))),
    "2 strengths on each side": lambda: at_zero(measured(STRENGTHS, six()), points=4),
    "measured at strength 0": lambda: at_zero(measured(STRENGTHS + 0.5, six())),
    "the same three strengths": lambda: sweet_spot(
        measured(STRENGTHS, six()), measured(STRENGTHS[1:], np.zeros(5))
    ),
    "as many draws": lambda: sweet_spot(
        resampled(STRENGTHS, np.eye(6), seed=0, rounds=3),
        resampled(STRENGTHS, np.eye(6), seed=0, rounds=4),
    ),
    "a curve with errors": lambda: onset(measured(STRENGTHS, six()), 1.0),
    "a norm of the stream": lambda: onset(measured(STRENGTHS, six(), six(1)), 0.0),
    "three strengths or more to see": lambda: next_points([0, 1], [0, 1], None, 1),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_answered_is_refused(message):
    with pytest.raises(DriftlensError, match=message):
        REFUSED[message]()
