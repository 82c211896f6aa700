"""The tax rate of a direction is what projections, chance and bounded steps say it is."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from driftlens.errors import DriftlensError
from driftlens.formulas.tax import chance_of_share, tax_frontier, tax_of_gain, tax_rate

NAN = float("nan")


# --- the tax rate -------------------------------------------------------------------------


def gradients(tasks=4, width=32, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=width), random.normal(size=(tasks, width)) * [[1], [5], [0.1], [2]]


def test_the_rate_is_the_squared_length_of_the_projection():
    v, c = gradients()
    found = tax_rate(v, c)
    basis = scipy.linalg.orth(c.T)
    unit = v / np.linalg.norm(v)
    assert found.rate == pytest.approx(np.linalg.norm(basis.T @ unit) ** 2, rel=1e-10)
    assert (found.rank, found.chance) == (4, 4 / 32)
    assert found.excess == pytest.approx(found.rate - 4 / 32)
    assert found.free == pytest.approx(np.linalg.norm(unit - basis @ basis.T @ unit))
    own = [scipy.linalg.orth(task[:, None]).T @ unit for task in c]
    np.testing.assert_allclose(found.cosine**2, np.square(own)[:, 0], rtol=1e-10)


def test_the_rate_minds_directions_alone():
    v, c = gradients()
    found = tax_rate(v, c)
    turn = scipy.stats.ortho_group.rvs(32, random_state=0)
    mixed = np.random.default_rng(1).normal(size=(4, 4)) @ c
    for same in (
        tax_rate(-3 * v, c),
        tax_rate(v, c * [[-1], [1e3], [1e-3], [1]]),
        tax_rate(v @ turn, c @ turn),
        tax_rate(v, mixed),
    ):
        assert same.rate == pytest.approx(found.rate, rel=1e-8)
        assert same.p_value == pytest.approx(found.p_value, rel=1e-7)
    np.testing.assert_allclose(tax_rate(np.stack([v, v]), c).cosine, [found.cosine] * 2)


def test_within_the_span_all_is_tax_and_outside_nothing():
    v, c = gradients()
    within_it = tax_rate(c[0] - 2 * c[3], c)
    assert within_it.rate == pytest.approx(1, abs=1e-12)
    assert within_it.p_value == pytest.approx(0, abs=1e-12)
    basis = scipy.linalg.orth(c.T)
    outside = tax_rate(v - basis @ basis.T @ v, c)
    assert outside.rate == pytest.approx(0, abs=1e-20)
    assert outside.p_value == pytest.approx(1)
    assert outside.free == pytest.approx(1)
    along = tax_rate(c[1], c[1:2])
    assert (along.rate, abs(along.cosine[0])) == pytest.approx((1, 1))


def test_gradients_that_depend_on_each_other_count_once():
    v, c = gradients()
    twice = np.vstack([c, c[0] + c[1], -c[2], np.zeros(32)])
    found, once = tax_rate(v, twice), tax_rate(v, c)
    assert found.rank == 4
    assert found.rate == pytest.approx(once.rate, rel=1e-8)
    assert np.isnan(found.cosine[-1])
    assert np.isnan(found.task_p_value[-1])
    nothing = tax_rate(v, np.zeros((2, 32)))
    assert (nothing.rank, nothing.rate, nothing.chance, nothing.p_value) == (0, 0, 0, 1)
    everything = tax_rate(v, np.eye(32))
    assert (everything.rank, everything.p_value) == (32, 1)
    assert everything.rate == pytest.approx(1)


def test_a_gradient_that_is_not_finite_is_told():
    v, c = gradients()
    c[2, 3] = np.nan
    found = tax_rate(v, c)
    assert np.isnan([found.rate, found.p_value, found.chance, found.cosine[2]]).all()
    assert np.isfinite(found.cosine[:2]).all()


def test_slopes_are_the_first_order_change_of_each_capability():
    v, c = gradients()
    random = np.random.default_rng(3).normal(size=32)

    def capability(h):
        return np.tanh(c @ h / 10)

    unit, h = v / np.linalg.norm(v), 1e-5
    at = (1 - capability(random) ** 2)[:, None] * c / 10
    differences = (capability(random + h * unit) - capability(random - h * unit)) / (2 * h)
    np.testing.assert_allclose(tax_rate(v, at).slope, differences, rtol=1e-6, atol=1e-9)


def test_random_directions_have_the_rates_that_chance_says():
    random = np.random.default_rng(0)
    found = tax_rate(random.normal(size=(4000, 256)), random.normal(size=(10, 256)))
    assert found.chance == pytest.approx(10 / 256)
    error = found.rate.std() / math.sqrt(4000)
    assert abs(found.rate.mean() - 10 / 256) < 3.5 * error
    for p in (found.p_value, found.task_p_value[:, 0]):
        assert scipy.stats.kstest(p, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(("m", "d"), [(1, 2), (2, 4), (3, 50), (10, 256)])
def test_the_tail_is_that_of_the_beta_law(m, d):
    share = np.linspace(0, 1, 21)
    law = scipy.stats.beta(m / 2, (d - m) / 2)
    np.testing.assert_allclose(chance_of_share(share, m, d), law.sf(share), rtol=1e-9, atol=1e-300)
    assert law.mean() == pytest.approx(m / d)


def test_tails_that_can_be_worked_out_by_hand():
    # On a circle the share is cos², evenly many angles to each; of 2 in 4 it is even itself.
    assert chance_of_share(0.25, 1, 2) == pytest.approx(2 / 3)
    np.testing.assert_allclose(chance_of_share([0.1, 0.7], 2, 4), [0.9, 0.3])
    assert chance_of_share(0.5, 1, 1) == chance_of_share(0.0, 0, 5) == 1
    assert np.isnan(chance_of_share(NAN, 0, 5))


# --- the frontier of a step ---------------------------------------------------------------


def test_the_frontier_is_the_fixture_of_the_methods():
    found = tax_frontier([-0.5, 0, 0.5], math.cos(math.radians(60)))
    np.testing.assert_allclose(found, [0.5, 0.8660, 1.0], atol=5e-5)


def test_the_limits_of_the_frontier():
    c = np.linspace(-2, 2, 9)
    np.testing.assert_array_equal(tax_frontier(c, 1.0, 2), c)
    np.testing.assert_array_equal(tax_frontier(c, -1.0, 2), -c)
    np.testing.assert_allclose(tax_frontier(c, 0.0, 2), np.sqrt(4 - c**2))
    assert np.isnan(tax_frontier([-2.01, 2.01, NAN], 0.5, 2)).all()
    assert np.isnan(tax_of_gain(2.01, 0.5, 2).most)


@pytest.mark.parametrize("degrees", [10, 60, 90, 140])
def test_no_step_of_bounded_length_does_better(degrees):
    angle, turns = math.radians(degrees), np.linspace(0, 2 * math.pi, 100_001)
    # Alignment points along the first axis; steps that leave the plane are wasted.
    steps = 1.5 * np.stack([np.cos(turns), np.sin(turns)])
    gain, capability = steps[0], np.array([math.cos(angle), math.sin(angle)]) @ steps
    # Cosines lose half their digits where the room for more is nearly 0.
    limit = np.nan_to_num(tax_frontier(np.clip(capability, -1.5, 1.5), math.cos(angle), 1.5))
    assert (gain <= limit + 1e-6).all()
    assert (limit - gain).min() < 1e-6
    free = np.abs(capability).argsort()[:2]
    assert gain[free].max() == pytest.approx(1.5 * math.sin(angle), abs=1e-4)


@pytest.mark.parametrize("cosine", [-0.7, 0.0, 0.5, 0.9])
def test_the_inverse_gives_back_what_it_was_made_from(cosine):
    c = np.linspace(-2, 2, 41)
    found = tax_of_gain(tax_frontier(c, cosine, 2), cosine, 2)
    back = np.where(c >= 2 * cosine, found.most, found.least)
    np.testing.assert_allclose(back, c, atol=1e-7)
    assert (found.least <= found.most).all()


def test_the_free_gain_is_the_frontier_at_no_change():
    v, c = gradients()
    found = tax_rate(v, c)
    assert tax_frontier(0.0, np.sqrt(found.rate), 3.0) == pytest.approx(3 * found.free)


# --- bad input ----------------------------------------------------------------------------


REFUSED = {
    "of the direction's width": lambda: tax_rate(np.ones(4), np.ones((2, 5))),
    "longer than 0": lambda: tax_rate(np.zeros(4), np.ones((2, 4))),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_answered_is_refused(message):
    with pytest.raises(DriftlensError, match=message):
        REFUSED[message]()
