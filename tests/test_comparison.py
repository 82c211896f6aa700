"""Two models' directions are as alike as was planted, and serve in each other as far."""

import numpy as np
import pytest
from scipy.linalg import subspace_angles
from scipy.stats import kstest

from driftlens.errors import DriftlensError
from driftlens.estimators.comparison import (
    compare,
    cross_transfer,
    drift_along,
    principal_angles,
)
from driftlens.estimators.directions import discriminant, mean_difference
from states import X, ids, rotation


def two_models(cosine, norms, *, pairs=60, width=100, seed=0, own=0.5):
    """[model, class, pair, width] states, whose directions have this cosine and these norms.

    A part of the noise, as of real statements, is the same in both models.
    """
    random = np.random.default_rng(seed)
    one, other = np.linalg.qr(random.normal(size=(width, 2)))[0].T
    units = np.stack([one, cosine * one + np.sqrt(1 - cosine**2) * other])
    shared = random.normal(size=(1, 2, pairs, width))
    states = shared + own * random.normal(size=(2, 2, pairs, width))
    half = np.array([0.5, -0.5])[:, None, None]
    return states + half * (np.array(norms)[:, None] * units)[:, None, None]


def test_a_model_is_like_itself():
    base = two_models(1.0, (3.0, 3.0))[0]
    found = compare(base, base, seed=0, rounds=50)
    assert found.cosine == pytest.approx(1, abs=1e-12)
    assert found.norm_ratio == 1
    # A sum of products and its double may be added up in other orders.
    assert found.true_cosine == pytest.approx((1, 1, 1), abs=1e-12)
    assert found.true_norm_ratio == pytest.approx((1, 1, 1), abs=1e-12)


@pytest.mark.parametrize("cosine", [0.9, 0.3, -0.5])
def test_the_cosine_without_noise_is_the_planted_one(cosine):
    found = [
        compare(*two_models(cosine, (4.0, 6.0), seed=seed, pairs=40), seed=seed, rounds=2)
        for seed in range(8)
    ]
    true = np.array([z.true_cosine.value for z in found])
    assert true.mean() == pytest.approx(cosine, abs=3 * true.std() / np.sqrt(8) + 0.005)
    ratios = np.array([z.true_norm_ratio.value for z in found])
    assert ratios.mean() == pytest.approx(1.5, abs=3 * ratios.std() / np.sqrt(8) + 0.005)
    # Shared noise makes vectors alike that are not, and short ones longer.
    expected = 100 * 2 * 1.25 / 40
    norms = np.mean([z.norms**2 for z in found], 0)
    np.testing.assert_allclose(norms, [16 + expected, 36 + expected], rtol=0.08)
    noise = np.mean([z.noise for z in found], 0)
    np.testing.assert_allclose(noise, expected / norms, rtol=0.1)


def test_pairs_have_no_product_with_themselves():
    base, aligned = two_models(0.5, (4.0, 4.0), pairs=12, width=7)
    d, e = base[0] - base[1], aligned[0] - aligned[1]
    apart = ~np.eye(12, dtype=bool)
    products = [(x @ y.T)[apart].sum() for x, y in ((d, e), (d, d), (e, e))]
    found = compare(base, aligned, seed=0, rounds=20)
    assert found.true_cosine.value == pytest.approx(products[0] / np.sqrt(np.prod(products[1:])))
    assert found.cosine == pytest.approx(
        mean_difference(*base).cosine(mean_difference(*aligned)), abs=1e-12
    )


def covered(draws, **groups):
    hits = []
    for seed in range(draws):
        base, aligned = two_models(0.6, (5.0, 4.0), seed=seed, pairs=40, width=60)
        found = compare(base, aligned, seed=seed, rounds=400, **groups)
        for at, truth in ((found.true_cosine, 0.6), (found.true_norm_ratio, 0.8)):
            hits.append(at.low <= truth <= at.high)
    return np.mean(np.reshape(hits, (-1, 2)), 0)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [{}, {"groups": ids(40, 40)}], ids=["pairs", "alone"])
def test_intervals_hold_the_planted_truth_as_often_as_they_say(groups):
    # Four standard errors of a share of 300, and what a bootstrap of 40 groups falls short by.
    np.testing.assert_allclose(covered(300, **groups), 0.95, atol=0.05)


def test_figures_that_noise_leaves_undefined_are_nan():
    base, aligned = two_models(0.0, (0.0, 0.0), pairs=20, width=500)
    found = compare(base, aligned, seed=0, rounds=200)
    assert np.isnan([found.true_cosine.low, found.true_norm_ratio.high]).all()
    assert np.isfinite(found.cosine)
    np.testing.assert_allclose(found.noise, 1, atol=0.2)


def test_statements_in_more_copies_are_one_group():
    base, aligned = two_models(0.7, (5.0, 5.0), pairs=30, width=40)
    copies = [np.repeat(z, 3, 1) for z in (base, aligned)]
    groups = np.repeat(np.arange(30), 3)
    one = compare(base, aligned, seed=0, rounds=300)
    other = compare(*copies, groups=(groups, groups), seed=0, rounds=300)
    np.testing.assert_allclose(other.true_cosine, one.true_cosine)
    np.testing.assert_allclose(other.true_norm_ratio, one.true_norm_ratio)


def test_principal_angles_are_those_planted():
    turn, angles = rotation(9), np.array([0.1, 0.7, 1.3])
    one = turn[:3]
    other = np.cos(angles)[:, None] * turn[:3] + np.sin(angles)[:, None] * turn[3:6]
    np.testing.assert_allclose(principal_angles(one, other), angles, atol=1e-12)
    # Whatever vectors span them, and whichever way they are turned.
    mixed = np.random.default_rng(0).normal(size=(3, 3)) @ other
    np.testing.assert_allclose(principal_angles(mixed, one), angles, atol=1e-12)
    np.testing.assert_allclose(principal_angles(one @ turn, other @ turn), angles, atol=1e-12)
    oracle = subspace_angles(one.T, mixed.T)[::-1]
    np.testing.assert_array_equal(principal_angles(one, mixed), oracle)
    assert principal_angles(one[0], one)[0] == pytest.approx(0, abs=1e-7)
    assert principal_angles(one, one[1:2]).shape == (1,)


def test_a_direction_that_both_models_have_transfers_and_another_does_not():
    same, apart = (two_models(z, (8.0, 8.0), pairs=80, width=10) for z in (1.0, 0.0))
    found = cross_transfer(*same, seed=0, rounds=200)
    assert found.accuracy.min() > 0.99
    found = cross_transfer(*apart, seed=0, rounds=200)
    assert np.diag(found.accuracy).min() > 0.99
    assert abs(found.accuracy[0, 1] - 0.5) < 0.15
    assert abs(found.accuracy[1, 0] - 0.5) < 0.15
    assert (found.low <= found.accuracy).all()
    assert (found.accuracy <= found.high).all()


def test_accuracy_is_that_of_two_normal_classes():
    """Held out, with d' = 2 along the direction, Φ(1) = 0.841 are named rightly."""
    base = two_models(1.0, (2.0, 2.0), pairs=1500, width=4, own=0.0)
    found = cross_transfer(*base, seed=0, rounds=200)
    # Three standard errors of 3000 states.
    np.testing.assert_allclose(found.accuracy, 0.8413, atol=0.02)
    assert (found.low < 0.8413).all()
    assert (found.high > 0.8413).all()


def test_a_model_that_has_moved_keeps_the_direction_but_not_the_threshold():
    base, aligned = two_models(1.0, (8.0, 8.0), pairs=60, width=10)
    moved = aligned + 40 * mean_difference(*base).unit
    found = cross_transfer(base, moved, seed=0, rounds=100)
    assert found.accuracy.min() > 0.99
    np.testing.assert_allclose(found.as_it_is[[0, 1], [1, 0]], 0.5)
    np.testing.assert_array_equal(np.diag(found.as_it_is), np.diag(found.accuracy))


@pytest.mark.parametrize("estimate", [mean_difference, discriminant], ids=lambda z: z.__name__)
def test_nothing_is_told_apart_where_there_is_nothing(estimate):
    """Wide states and few of them are always apart where they are learnt from."""
    base = two_models(0.0, (0.0, 0.0), pairs=60, width=100)
    found = cross_transfer(*base, estimate=estimate, seed=0, rounds=200)
    assert (found.low < 0.5).all()
    assert (found.high > 0.5).all()
    alone = cross_transfer(*base, estimate=estimate, seed=0, rounds=50, groups=ids(60, 60))
    assert np.abs(alone.accuracy - 0.5).max() < 0.2


def drifts(seed, unit):
    """[statement, width] of noise and twice the direction: a share of (1 + 4) / (50 + 4)."""
    return np.random.default_rng(seed).normal(size=(200, 50)) + 2 * unit


@pytest.mark.slow
def test_bounds_of_a_share_hold_it_as_often_as_they_say():
    unit, found = rotation(50)[0], []
    for seed in range(1000):
        found.append(drift_along(drifts(seed, unit), unit, seed=seed, rounds=500).share)
    # Squares are skewed, which costs a percentile interval of 200 statements about 0.01.
    held = np.mean([z.low <= 5 / 54 <= z.high for z in found])
    assert held == pytest.approx(0.95, abs=0.03)


def test_a_drift_along_the_direction_is_seen():
    unit = rotation(50)[0]
    shares = [drift_along(drifts(z, unit), unit, seed=0, rounds=2).share.value for z in range(20)]
    # The squares along it have a variance of 18: of 20 · 200 of them the mean is known to 1.3 %.
    assert np.mean(shares) == pytest.approx(5 / 54, rel=0.04)
    drift = drifts(0, unit)
    found = drift_along(drift, 7 * unit, seed=0)
    assert found.share.low < found.share.value < found.share.high
    assert found.chance == 0.02
    # The mean has 4 along it, and 50 / 200 of noise in all.
    assert found.mean_share == pytest.approx(4 / 4.25, abs=0.03)
    assert found.cosine > 0
    assert found.p_value < 1e-12
    assert drift_along(-drift, unit, seed=0).cosine == pytest.approx(-found.cosine)
    assert drift_along(drift[:, ::-1] * 3, unit[::-1], seed=0).share == pytest.approx(found.share)


def test_a_drift_that_is_the_direction_is_all_along_it():
    unit = np.array([0.6, 0.8])
    found = drift_along([2 * unit, -3 * unit], unit, seed=0, rounds=20)
    assert found.share == pytest.approx((1, 1, 1))
    assert found.mean_share == pytest.approx(1)
    none = drift_along(np.zeros((3, 2)), unit, seed=0, rounds=20)
    assert np.isnan([*none.share, none.cosine, none.p_value]).all()
    one = drift_along(unit, unit, seed=0, rounds=20)
    assert np.isnan([one.share.low, one.share.high]).all()


def test_random_directions_have_the_share_and_the_p_values_of_chance():
    random = np.random.default_rng(1)
    drift = random.normal(size=(30, 12)) * np.geomspace(1, 4, 12)
    found = [drift_along(drift, random.normal(size=12), seed=0, rounds=2) for _ in range(400)]
    assert np.mean([z.share.value for z in found]) == pytest.approx(1 / 12, rel=0.1)
    assert np.mean([z.mean_share for z in found]) == pytest.approx(1 / 12, rel=0.15)
    assert kstest([z.p_value for z in found], "uniform").pvalue > 0.01


# --- bad input ----------------------------------------------------------------------------


WRONG = {
    "models of two widths": (
        lambda: compare((X, -X), (X[:, :4], -X[:, :4]), seed=0),
        "one width",
    ),
    "models of other statements": (
        lambda: compare((X, -X), (X[:9], -X[:9]), seed=0),
        "the same statements",
    ),
    "spans of two widths": (lambda: principal_angles(X[:2], X[:2, :4]), "one width"),
    "a drift of another width": (lambda: drift_along(X, np.ones(4), seed=0), "one width"),
    "more folds than pairs": (
        lambda: cross_transfer((X[:3], -X[:3]), (X[:3], -X[:3]), seed=0),
        "5 groups",
    ),
}


@pytest.mark.parametrize(("ask", "said"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_refused_with_what_was_found(ask, said):
    with pytest.raises(DriftlensError, match=said):
        ask()
