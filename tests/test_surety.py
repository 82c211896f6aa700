"""A direction is as sure as its noise lets it be, and roles that mean nothing have none."""

from functools import partial

import numpy as np
import pytest
from scipy.stats import kstest

from driftlens.errors import DriftlensError
from driftlens.estimators.directions import contrast_pca, mean_difference
from driftlens.estimators.surety import role_null, stability
from states import ANY, X, ids, planted


def slow_of(estimate):
    """The same estimate by a name that no fast path knows."""
    return lambda positive, negative: estimate(positive, negative)


@pytest.mark.parametrize("groups", [None, ids(30, 30)], ids=["pairs", "alone"])
def test_all_draws_in_two_products_are_the_draws_one_by_one(groups):
    positive, negative, _ = planted(1.0, pairs=30, place=30.0)
    if groups is not None:
        negative, groups = negative[:21], ids(30, 21)
    settings = {"groups": groups, "seed": 4, "rounds": 25}
    one, other = (
        (stability(z, positive, negative, **settings), role_null(z, positive, negative, **settings))
        for z in (mean_difference, slow_of(mean_difference))
    )
    np.testing.assert_allclose(one[0], other[0], atol=1e-12)
    np.testing.assert_allclose(one[1].norms, other[1].norms, atol=1e-12)
    np.testing.assert_allclose(one[1].cosines, other[1].cosines, atol=1e-12)
    assert one[1].p_value == other[1].p_value


@pytest.mark.parametrize("norm", [0.5, 1.5, 6.0])
def test_stability_is_that_of_the_closed_form(norm):
    """With noise e² = 2 d / n in a mean: halves s² / (s² + 2 e²), draws t / √(t² + e²)."""
    pairs, width, halves, draws, truths, reached = 100, 200, [], [], [], []
    for seed in range(6):
        positive, negative, unit = planted(norm, pairs=pairs, width=width, topic=3.0, seed=seed)
        found = stability(mean_difference, positive, negative, seed=seed, rounds=60)
        halves.append(found.split_half.value)
        draws.append(found.cosine.value)
        truths.append(found.to_truth)
        reached.append(mean_difference(positive, negative).unit @ unit)
        assert found.cosine.low < found.cosine.value < found.cosine.high
        assert found.split_half.low < found.split_half.value < found.split_half.high
    error = 2 * width / pairs
    found = np.sqrt(norm**2 + error)
    # Six draws of 200 dimensions: halves' cosines have an error of about 1 / √(6 · 200).
    assert np.mean(halves) == pytest.approx(norm**2 / (norm**2 + 2 * error), abs=0.09)
    assert np.mean(draws) == pytest.approx(found / np.sqrt(found**2 + error), abs=0.03)
    if norm > 1:
        # The square root makes of an error of 0.03 one three times as large near c = 0.2.
        assert np.mean(truths) == pytest.approx(np.mean(reached), abs=0.1)


def test_halves_are_halves():
    """Of pairs that differ by 2 along one axis and by 1 along one of their own."""
    differences = np.hstack([np.full((8, 1), 2.0), np.eye(8)])
    found = stability(mean_difference, differences, 0 * differences, seed=0, rounds=30)
    # Whichever four are on a side, its mean is as long, and its own axes are not the other's.
    assert found.split_half == pytest.approx((4 / 4.25, 4 / 4.25, 4 / 4.25))


def test_pairs_are_still_pairs_after_an_exchange():
    """Uncentred components do not ask which state of a pair comes first."""
    null = role_null(contrast_pca, *planted(1.0, topic=50.0)[:2], seed=0, rounds=20)
    np.testing.assert_allclose(np.abs(null.cosines), 1)


def test_halves_that_share_a_statement_do_not_agree_by_it():
    """Copies of one statement in both halves would agree; groups keep them on one side."""
    positive, negative, _ = planted(0.0, pairs=20, width=100)
    copies = [np.repeat(z, 4, 0) for z in (positive, negative)]
    groups = np.repeat(np.arange(20), 4)
    apart = stability(mean_difference, *copies, seed=0, groups=(groups, groups)).split_half
    loose = stability(mean_difference, *copies, seed=0).split_half
    assert abs(apart.value) < 0.15
    assert loose.value > 0.4


@ANY
def test_every_estimate_is_stable_where_classes_are_far_apart(estimate):
    positive, negative, _ = planted(9.0, pairs=24, width=8, topic=0.3)
    found = stability(estimate, positive, negative, seed=0, rounds=10)
    assert found.cosine.value > 0.9
    assert found.split_half.value > 0.8
    null = role_null(estimate, positive, negative, seed=0, rounds=19)
    assert null.p_value == 1 / 20
    assert null.norms.max() < null.norm


def null_p_values(draws, rounds, alone):
    for seed in range(draws):
        # What stands alone shares no topic: with one, exchanging rows would tell pairs apart.
        topic = 0.0 if alone else 2.0
        positive, negative, _ = planted(0.0, pairs=24, width=30, topic=topic, seed=seed)
        groups = ids(24, 18) if alone else None
        negative = negative[:18] if alone else negative
        found = role_null(
            mean_difference, positive, negative, seed=seed, rounds=rounds, groups=groups
        )
        yield found.p_value


@pytest.mark.parametrize("alone", [False, True])
def test_roles_that_mean_nothing_give_any_p_value_alike(alone):
    assert kstest(list(null_p_values(60, 99, alone)), "uniform").pvalue > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("alone", [False, True])
def test_many_roles_that_mean_nothing_give_any_p_value_alike(alone):
    found = np.array(list(null_p_values(2000, 199, alone)))
    assert kstest(found, "uniform").pvalue > 0.01
    # Three standard errors of a share of 2000.
    assert (found <= 0.05).mean() == pytest.approx(0.05, abs=0.015)


def test_few_pairs_cannot_be_surer_than_their_exchanges():
    """Of five pairs 2⁵ exchanges are all there are, two of which have the finding's norm."""
    for seed in range(8):
        positive, negative, _ = planted(5e6, pairs=5, seed=seed, place=1e3)
        found = role_null(mean_difference, positive, negative, seed=seed, rounds=2000)
        # Four standard errors; a tie missed by rounding would leave 1 / 2001.
        assert found.p_value == pytest.approx(2 / 32, abs=0.022)


# --- bad input ----------------------------------------------------------------------------


WRONG = {
    "no groups of unequal classes": (
        lambda: role_null(mean_difference, X[1:], X, seed=0),
        "groups=",
    ),
    "too few ids": (
        lambda: stability(mean_difference, X, X, groups=(range(3), range(12)), seed=0),
        "found 3 and 12",
    ),
    "pairs in two groups": (
        lambda: stability(partial(contrast_pca, shuffle=0), X, X, groups=ids(12, 12), seed=0),
        "one group",
    ),
    "one pair to split": (lambda: stability(mean_difference, X[:1], X[1:2], seed=0), "half"),
}


@pytest.mark.parametrize(("ask", "said"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_refused_with_what_was_found(ask, said):
    with pytest.raises(DriftlensError, match=said):
        ask()
