"""Fits of a theory's forms to curves agree with planted truths, and are held beside plain ones."""

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from driftlens.errors import DriftlensError
from driftlens.formulas import fits
from driftlens.formulas.curves import (
    FULL,
    LINEAR,
    QUADRATIC,
    RESTRICTED,
    TANH,
    measured,
    resampled,
)
from driftlens.formulas.fits import compare, fit
from strengths import (
    BEHAVIOUR,
    CAPABILITY,
    STRENGTHS,
    TRUTHS,
    covered,
    curve_of,
    grid,
    items_of,
    known,
    six,
    within,
)

NAN = float("nan")


# --- fits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", TRUTHS, ids=lambda form: form.name)
@pytest.mark.parametrize("error", [None, 0.02])
def test_a_curve_without_noise_is_recovered(form, error):
    errors = None if error is None else np.full(len(grid(form)), error)
    found = fit(form, measured(grid(form), curve_of(form, TRUTHS[form]), errors))
    np.testing.assert_allclose(found.theta, TRUTHS[form], rtol=1e-9)
    assert found.problem == ""
    assert np.abs(found.residual).max() < 1e-12


@pytest.mark.parametrize("a", [-60, -6, -0.5, 0.01, 2, 60])
@pytest.mark.parametrize("b0", [-2.1, 0.1, 0.7])
def test_steep_and_flat_curves_are_recovered_alike(a, b0):
    found = fit(TANH, measured(BEHAVIOUR, np.tanh(a * (BEHAVIOUR - b0) + 0.1)))
    np.testing.assert_allclose(found.theta, [a, 0.1 - a * b0], rtol=1e-6)


@pytest.mark.parametrize("form", TRUTHS, ids=lambda form: form.name)
@pytest.mark.parametrize("how", ["errors", "none"])
def test_fit_and_errors_are_those_of_scipy(form, how):
    curve = known(form, TRUTHS[form], how, seed=3)
    if how == "errors":
        curve = measured(curve.strength, curve.value, np.linspace(0.02, 0.05, len(curve.value)))
    theta, covariance = scipy.optimize.curve_fit(
        lambda r, *theta: form.value(np.array(theta), r),
        curve.strength,
        curve.value,
        p0=TRUTHS[form],
        sigma=curve.error,
        absolute_sigma=how == "errors",
        ftol=1e-14,
        xtol=1e-14,
        gtol=1e-14,
    )
    found = fit(form, curve)
    # Scipy stops at half the digits of a minimum, and differentiates by differences.
    np.testing.assert_allclose(found.theta, theta, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-3, atol=1e-8)


def test_the_misfit_is_a_chi_square_of_the_errors():
    curve = known(TANH, TRUTHS[TANH], "errors", seed=0)
    found = fit(TANH, curve)
    chi2 = (((curve.value - found.value(curve.strength).estimate) / 0.03) ** 2).sum()
    assert found.misfit == pytest.approx(chi2)
    assert found.freedom == len(curve.value) - 2
    assert found.lack_of_fit == pytest.approx(scipy.stats.chi2.sf(chi2, found.freedom))


def test_intervals_of_a_line_are_those_of_students_t():
    curve = known(LINEAR, TRUTHS[LINEAR], "none", seed=1)
    oracle = scipy.stats.linregress(curve.strength, curve.value)
    half = scipy.stats.t.ppf(0.975, len(curve.value) - 2) * oracle.stderr
    slope = fit(LINEAR, curve).parameters["c1"]
    ends = [oracle.slope, oracle.slope - half, oracle.slope + half]
    np.testing.assert_allclose(np.array(slope), ends, rtol=1e-9)


def test_a_line_through_resampled_items_is_the_bootstrap_of_their_own_lines():
    random = np.random.default_rng(0)
    items = items_of(0.1 * CAPABILITY, random, items=30)
    curve = resampled(CAPABILITY, items, seed=5, rounds=300)
    own = np.polyfit(CAPABILITY, items.T, 1)[0]
    picks = resampled([0.0], own[:, None], seed=5, rounds=300).draws[:, 0]
    found = fit(LINEAR, curve).parameters["c1"]
    ends = [own.mean(), *np.quantile(picks, [0.025, 0.975])]
    np.testing.assert_allclose(np.array(found), ends, rtol=1e-9)


def test_what_items_share_at_all_strengths_is_no_noise_between_them():
    random = np.random.default_rng(2)
    curve = curve_of(LINEAR, TRUTHS[LINEAR])
    items = items_of(curve, random, shared=5.0, own=0.01)
    found = fit(LINEAR, resampled(CAPABILITY, items, seed=0, rounds=300))
    slope, level = found.parameters["c1"], found.parameters["c0"]
    assert slope.high - slope.low < 1e-3 * (level.high - level.low)


@pytest.mark.parametrize("form", [TANH, FULL], ids=lambda form: form.name)
@pytest.mark.parametrize("how", ["errors", "items"])
def test_a_fit_does_not_mind_the_unit_of_strength(form, how):
    curve = known(form, TRUTHS[form], how, seed=0)
    other = type(curve)(curve.strength * 7, curve.value, curve.error, curve.draws)
    one, same, effect = fit(form, curve), fit(form, other), form.parameters[form.effect]
    np.testing.assert_allclose(same.parameters[effect], np.array(one.parameters[effect]) / 7)
    assert same.lack_of_fit == pytest.approx(one.lack_of_fit)
    assert same.runs == pytest.approx(one.runs)
    np.testing.assert_allclose(same.curvature(), np.array(one.curvature()) / 49)


def test_strength_and_behaviour_may_be_turned_round():
    curve = known(TANH, TRUTHS[TANH], "errors", seed=0)
    found = fit(TANH, curve)
    back = fit(TANH, measured(-curve.strength, curve.value, curve.error))
    np.testing.assert_allclose(back.theta, found.theta * [-1, 1], rtol=1e-7)
    down = fit(TANH, measured(curve.strength, -curve.value, curve.error))
    np.testing.assert_allclose(down.theta, -found.theta, rtol=1e-7)
    assert down.misfit == pytest.approx(back.misfit)
    capability = known(FULL, TRUTHS[FULL], "errors", seed=0)
    mirrored = measured(-capability.strength, capability.value, capability.error)
    np.testing.assert_allclose(fit(FULL, mirrored).theta, fit(FULL, capability).theta, rtol=1e-7)


def coverage(form, how, runs):
    hits = np.zeros(len(form.parameters))
    truth = form.shown(form.reported(np.array(TRUTHS[form], float)))
    for seed in range(runs):
        found = fit(form, known(form, TRUTHS[form], how, seed))
        assert found.problem == ""
        hits += [covered(z, t) for z, t in zip(found.parameters.values(), truth, strict=True)]
    return hits


@pytest.mark.parametrize("form", [TANH, FULL], ids=lambda form: form.name)
@pytest.mark.parametrize("how", ["errors", "none"])
def test_intervals_hold_the_truth(form, how):
    assert all(within(hits, 40) for hits in coverage(form, how, 40))


@pytest.mark.slow
@pytest.mark.parametrize("form", [TANH, FULL, RESTRICTED], ids=lambda form: form.name)
@pytest.mark.parametrize("how", ["errors", "none", "items"])
def test_intervals_hold_the_truth_as_often_as_they_say(form, how):
    # Percentiles of 60 items are too narrow by about 1 part in 60, which costs half a percent.
    nominal = 0.945 if how == "items" else 0.95
    assert all(within(hits, 200, nominal) for hits in coverage(form, how, 200))


@pytest.mark.slow
def test_p_values_of_a_true_form_are_spread_evenly():
    for how in ("errors", "items"):
        p = [fit(TANH, known(TANH, TRUTHS[TANH], how, seed)).lack_of_fit for seed in range(200)]
        assert scipy.stats.kstest(p, "uniform").pvalue > 1e-3


def test_a_capability_that_does_not_fall_has_an_interval_from_0():
    rates = [known(FULL, (0.6, 0.0), "errors", seed) for seed in range(40)]
    bounds = [fit(FULL, curve).parameters["b"] for curve in rates]
    assert all(z.low == 0 for z in bounds if z.estimate == 0)
    assert sum(z.low == 0 for z in bounds) >= 35
    assert any(z.estimate == 0 for z in bounds)
    assert all(z.high > 0 or z.estimate == 0 for z in bounds)


def test_fits_to_given_errors_can_be_drawn_too():
    r = np.linspace(-5, 5, 201)
    curve = known(TANH, TRUTHS[TANH], "errors", 0)
    found = fit(TANH, curve)
    drawn = found.along(r, seed=1)
    # 2,000 draws know a standard deviation to 1 part in 60, and the delta method is linear.
    half = (found.value(r).high - found.value(r).low) / 2 / scipy.stats.norm.ppf(0.975)
    np.testing.assert_allclose(drawn.error, half, rtol=0.1, atol=1e-4)
    again = found.along(r, seed=1)
    np.testing.assert_array_equal(drawn.draws, again.draws)


# --- residuals ----------------------------------------------------------------------------


def test_runs_are_counted_by_their_exact_law():
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=8)))
    signs = signs[(signs > 0).sum(1) == 3]
    runs = 1 + (np.diff(signs, axis=1) != 0).sum(1)
    for row, seen in zip(signs, runs, strict=True):
        assert fits._runs(row, None) == pytest.approx((runs <= seen).mean())


def test_residuals_that_are_rounding_have_no_runs():
    assert fits._runs(np.array([1e-15, 1e-15, -1e-15]), None) == 1
    assert fits._runs(np.zeros(4), np.ones((3, 4))) == 1
    assert fits._runs(np.ones(4), None) == 1


# --- comparison ---------------------------------------------------------------------------


NOT_TANH = {
    "bump": lambda r: np.exp(-(r**2)),
    "cubic": lambda r: 0.03 * r**3,
    "kink": lambda r: np.clip(0.6 * r, -0.9, 0.3),
    "half a tanh": lambda r: 0.5 * np.tanh(2 * r),
    "line": lambda r: 0.28 * r - 0.1,
}

NOT_SQUARE = {
    "straight fall": lambda r: 0.6 - 0.05 * r,
    "roof": lambda r: 0.7 - 0.1 * np.abs(r),
    "rise": lambda r: 0.5 + 0.01 * r**2,
    "cliff": lambda r: np.where(np.abs(r) < 3, 0.6, 0.2),
}


@pytest.mark.parametrize("how", ["errors", "items", "none"])
@pytest.mark.parametrize("name", NOT_TANH)
def test_the_theory_is_rejected_of_a_behaviour_that_is_no_tanh(name, how):
    assert compare(TANH, known(TANH, NOT_TANH[name], how, 0)).verdict in ("rejected", "outdone")


@pytest.mark.parametrize("how", ["errors", "items"])
@pytest.mark.parametrize("name", NOT_SQUARE)
def test_the_theory_is_rejected_of_a_capability_that_is_no_square(name, how):
    found = compare(FULL, known(FULL, NOT_SQUARE[name], how, 0, noise=0.01))
    assert found.verdict in ("rejected", "outdone")


def test_what_noise_hides_is_not_rejected():
    # A roof is nowhere further than 0.03 from the nearest square.
    assert (
        compare(FULL, known(FULL, NOT_SQUARE["roof"], "errors", 0, noise=0.03)).verdict == "holds"
    )


@pytest.mark.parametrize("how", ["errors", "items", "none"])
@pytest.mark.parametrize("form", [TANH, FULL, RESTRICTED], ids=lambda form: form.name)
def test_the_theory_holds_of_its_own_curve(form, how):
    found = compare(form, known(form, TRUTHS[form], how, 1, noise=0.01))
    assert found.verdict == "holds"
    assert found.weight[0] > 0.7
    assert found.weight.sum() == pytest.approx(1)
    assert np.argmin(found.left_out) == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["errors", "items", "none"])
def test_a_true_theory_is_rejected_one_time_in_twenty(how):
    told = [compare(TANH, known(TANH, TRUTHS[TANH], how, seed)).verdict for seed in range(200)]
    # The exact law of runs has steps, and so has less than its level.
    assert told.count("rejected") <= scipy.stats.binom.ppf(0.999, 200, 0.05)
    assert told.count("holds") >= 0.88 * len(told)


def test_what_does_not_move_is_called_still():
    assert compare(TANH, measured(BEHAVIOUR, np.zeros(37))).verdict == "still"
    assert compare(TANH, measured(BEHAVIOUR, np.full(37, 0.3))).verdict == "still"
    flat = np.tile(np.arange(50)[:, None] % 2, (1, 41))
    found = compare(FULL, resampled(CAPABILITY, flat, seed=0, rounds=200))
    assert found.verdict == "still"
    # A root of rounding.
    np.testing.assert_allclose(found.fits[0].parameters["b"], 0, atol=1e-7)
    noise = known(FULL, (0.6, 0.0), "errors", 0)
    assert compare(FULL, noise).verdict == "still"


def test_a_short_stretch_of_a_tanh_is_as_well_a_line():
    r = np.linspace(-0.1, 0.1, 21)
    noisy = np.tanh(r) + np.random.default_rng(0).normal(size=21) * 0.01
    assert compare(TANH, measured(r, noisy, np.full(21, 0.01))).verdict == "undecided"


def test_information_criteria_and_left_out_errors_are_those_of_the_textbook():
    curve = known(LINEAR, TRUTHS[LINEAR], "none", seed=4)
    found, n = compare(LINEAR, curve, (QUADRATIC,)), len(curve.value)
    for place, degree in enumerate((1, 2)):
        design = np.vander(curve.strength, degree + 1)
        hat = design @ np.linalg.pinv(design)
        left = curve.value - hat @ curve.value
        k = degree + 2
        expected = n * np.log((left**2).sum() / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1)
        assert found.aic[place] == pytest.approx(expected)
        # The residual at a point that was left out is e / (1 − its leverage).
        press = np.sqrt(((left / (1 - np.diag(hat))) ** 2).mean())
        assert found.left_out[place] == pytest.approx(press)


def test_with_errors_given_the_criterion_is_chi_square_and_two_a_parameter():
    found = compare(TANH, known(TANH, TRUTHS[TANH], "errors", 0))
    for aic, one in zip(found.aic, found.fits, strict=True):
        assert aic == pytest.approx(one.misfit + 2 * len(one.theta))


# --- what is wrong with a fit is told -----------------------------------------------------


@pytest.mark.parametrize("error", [None, np.full(37, 0.05)])
@pytest.mark.parametrize("middle", [0.5, 0.4])
def test_a_jump_between_two_strengths_does_not_tell_how_steep_it_is(error, middle):
    found = compare(TANH, measured(BEHAVIOUR, np.tanh(200 * (BEHAVIOUR - middle)), error))
    assert found.verdict == "failed"
    assert "apart" in found.fits[0].problem or "settle" in found.fits[0].problem
    assert all(np.isnan(z.low) and np.isnan(z.high) for z in found.fits[0].parameters.values())


def test_a_capability_without_fault_unsteered_is_beyond_the_form():
    found = fit(FULL, measured(CAPABILITY, 1 - 0.001 * CAPABILITY**2))
    assert "at its most" in found.problem
    assert math.isnan(found.parameters["b"].high)
    with pytest.raises(DriftlensError, match=r"a fit of rational .* at its most"):
        found.along([0, 1, 2])


def test_a_search_that_does_not_settle_is_told(monkeypatch):
    monkeypatch.setattr(fits, "STEPS", 1)
    found = compare(TANH, known(TANH, TRUTHS[TANH], "items", 0))
    assert found.fits[0].problem == "the search did not settle in 1 steps"
    assert found.verdict == "failed"
    assert math.isnan(found.left_out[0])


def test_draws_that_do_not_settle_leave_no_interval():
    # A draw of one item alone is a jump: 3 of 27 draws, which no bound may be among.
    jumps = np.sign(BEHAVIOUR - np.array([[-1.5], [0.5], [2.5]]))
    found = fit(TANH, resampled(BEHAVIOUR, jumps, seed=0, rounds=900))
    assert found.settled == pytest.approx(8 / 9, abs=0.04)
    assert found.problem.endswith("of the resampled curves have no settled fit")
    assert math.isnan(found.parameters["a"].low)


REFUSED = {
    "errors above 0 .* strength -2": lambda: fit(TANH, measured(STRENGTHS, six(), six())),
    "5 strengths or more": lambda: fit(TANH, measured(STRENGTHS[:4], np.zeros(4))),
    "6 strengths or more": lambda: compare(TANH, measured(STRENGTHS[:5], np.zeros(5))),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_fitted_is_refused(message):
    with pytest.raises(DriftlensError, match=message):
        REFUSED[message]()
