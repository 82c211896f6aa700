"""Curves over a steering strength and the forms of a theory agree with planted truths."""

import math

import numpy as np
import pytest

from driftlens.errors import DriftlensError
from driftlens.formulas.curves import (
    FULL,
    LINEAR,
    QUADRATIC,
    RESTRICTED,
    TANH,
    Polynomial,
    Rational,
    measured,
    resampled,
)
from strengths import BEHAVIOUR, CAPABILITY, STRENGTHS, TRUTHS, curve_of, items_of, known, six

NAN = float("nan")

FORMS = [TANH, FULL, RESTRICTED, Rational(0.1, 0.7), LINEAR, QUADRATIC, Polynomial(3)]


# --- forms --------------------------------------------------------------------------------


def test_the_forms_are_the_fixtures_of_the_methods():
    tanh = TANH.value(np.array([2.0, -2.0]), np.array([0, 0.5, 1, 1.25, 2]))
    np.testing.assert_allclose(tanh, [-0.964, -0.7616, 0, 0.4621, 0.964], atol=5e-5)
    r, ones = np.array([0, 0.5, 1, 2]), np.array([1.0, 0.5])
    np.testing.assert_allclose(FULL.value(ones, r), [0.5, 0.4706, 0.4, 0.25], atol=5e-5)
    np.testing.assert_allclose(RESTRICTED.value(ones, r), [0.5, 0.4853, 0.45, 0.375], atol=5e-5)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_slope_and_curvature_are_those_of_the_curve(form):
    theta, r, h = np.array([0.7, 0.3, -0.1, 0.05][: len(form.powers)]), np.linspace(-2, 2, 9), 1e-4
    below, here, above = (form.value(theta, r + step) for step in (-h, 0, h))
    # Central differences are off by h² times a third derivative of about 1.
    np.testing.assert_allclose(form.slope(theta, r), (above - below) / (2 * h), atol=1e-7)
    bend = (above - 2 * here + below) / h**2
    np.testing.assert_allclose(form.curvature(theta, r), bend, atol=1e-6)


def test_for_small_strengths_the_forms_are_a_line_and_a_square():
    a, b0, b, zero = 0.7, -0.5, 0.4, np.zeros(1)
    assert TANH.slope(np.array([a, b0]), zero) == pytest.approx(a * (1 - math.tanh(b0) ** 2))
    p, theta = 1 / (1 + a), np.array([a, a * b**2 / 2])
    assert FULL.curvature(theta, zero) == pytest.approx(-p * (1 - p) * b**2)
    np.testing.assert_allclose(FULL.shown(FULL.reported(theta)), [a, b])


@pytest.mark.parametrize(("floor", "span"), [(0.5, 0.6), (-0.1, 1), (0.2, 0), (NAN, 1)])
def test_a_form_stays_within_probabilities(floor, span):
    with pytest.raises(DriftlensError, match="stay within 0 and 1"):
        Rational(floor, span)


# --- curves -------------------------------------------------------------------------------


def test_the_order_of_the_strengths_says_nothing():
    order = np.random.default_rng(0).permutation(len(BEHAVIOUR))
    curve = known(TANH, TRUTHS[TANH], "errors", seed=0)
    shuffled = measured(*(z[order] for z in (curve.strength, curve.value, curve.error)))
    for name in ("strength", "value", "error"):
        np.testing.assert_array_equal(getattr(shuffled, name), getattr(curve, name))
    items = items_of(curve.value, np.random.default_rng(1))
    one = resampled(curve.strength, items, seed=0, rounds=5)
    other = resampled(curve.strength[order], items[:, order], seed=0, rounds=5)
    np.testing.assert_allclose(one.draws, other.draws, rtol=1e-12)


def test_items_of_a_cluster_are_drawn_together():
    random = np.random.default_rng(0)
    items = items_of(curve_of(LINEAR, TRUTHS[LINEAR]), random, items=20)
    twice = np.repeat(items, 3, axis=0)
    one = resampled(CAPABILITY, items, seed=0, rounds=50)
    other = resampled(CAPABILITY, twice, seed=0, rounds=50, clusters=np.repeat(np.arange(20), 3))
    np.testing.assert_allclose(one.draws, other.draws, rtol=1e-12)


REFUSED = {
    "a value for each strength": lambda: measured(STRENGTHS, np.zeros(5)),
    "finite numbers .* at strength -1": lambda: measured(STRENGTHS, [0, NAN, 0, 0, 0, 0]),
    "each strength once": lambda: measured([0, 0, 1], [1, 2, 3]),
    "standard errors of 0 or more": lambda: measured(STRENGTHS, six(), six(-1)),
    "items of": lambda: resampled(STRENGTHS, six(), seed=0),
    "two items": lambda: resampled(STRENGTHS, six()[None], seed=0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_answered_is_refused(message):
    with pytest.raises(DriftlensError, match=message):
        REFUSED[message]()
