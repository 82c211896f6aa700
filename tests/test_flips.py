"""Paired answers: closed forms, published numbers, and scipy as an oracle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from driftlens.formulas.flips import (
    Flips,
    backward_transfer,
    change,
    flips,
    forgotten,
    mcnemar,
    relative_loss,
)
from driftlens.formulas.intervals import bootstrap, holm, newcombe

COUNTS = st.integers(0, 300)
ANSWERS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def test_flips_are_counted_either_way():
    base, aligned = [1, 1, 1, 0, 0, 1], [0, 0, 1, 1, 0, 1]
    assert flips(base, aligned) == Flips(2, 1, 2, 1)


@given(ANSWERS)
def test_flips_say_what_a_net_change_is_made_of(answers):
    base, aligned = np.array(answers).T
    found = flips(base, aligned)
    assert sum(found) == len(answers)
    assert found.wrong_to_right - found.right_to_wrong == int(aligned.sum()) - int(base.sum())
    lost, won, right, wrong = flips(aligned, base)
    assert Flips(won, lost, right, wrong) == found


@given(COUNTS, COUNTS)
@settings(deadline=None)
def test_mcnemar_is_the_exact_binomial_test_of_the_flips(lost, won):
    wanted = binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert mcnemar(lost, won) == pytest.approx(wanted, rel=1e-10)


def test_mcnemar_of_few_flips_by_hand():
    # Of four flips at most one up: 2 · (1 + 4) / 16; the mid-p value has 4 / 16 less.
    assert mcnemar(3, 1) == pytest.approx(10 / 16)
    assert mcnemar(3, 1, mid=True) == pytest.approx(6 / 16)
    # The airways of Fagerland, Lydersen & Laake (2013): 1 and 7 flips, p 0.070 and mid-p 0.039.
    np.testing.assert_allclose(mcnemar([1], [7]), [0.0703], atol=5e-5)
    np.testing.assert_allclose(mcnemar([1], [7], mid=True), [0.0391], atol=5e-5)


@given(COUNTS)
def test_nothing_speaks_against_chance_where_flips_are_even(count):
    assert mcnemar(count, count) == 1
    assert mcnemar(count, count, mid=True) == pytest.approx(1, abs=1e-12)


@given(COUNTS, COUNTS)
def test_the_mid_p_value_is_never_above_the_exact_one(lost, won):
    assert mcnemar(lost, won, mid=True) <= mcnemar(lost, won)
    assert mcnemar(lost, won) == mcnemar(won, lost)


def test_mcnemar_is_seldom_small_where_either_way_is_as_likely():
    random = np.random.default_rng(0)
    lost = random.binomial(40, 0.5, size=4000)
    share = (mcnemar(lost, 40 - lost) <= 0.05).mean()
    # Exact tests of what is countable reject less than 5 %: here P(|X − 20| ≥ 7) = 0.0385.
    assert share == pytest.approx(0.0385, abs=3 * np.sqrt(0.0385 / 4000))


def test_a_mean_changes_as_the_mean_of_changes_does():
    random = np.random.default_rng(1)
    base, aligned = random.random((2, 50))
    found = change(base, aligned, seed=3)
    wanted = bootstrap(aligned - base, np.ones(50), seed=3)
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert found.low < found.estimate < found.high


def test_a_model_changes_by_nothing_from_itself():
    scores, words = np.random.default_rng(2).random((2, 20))
    perplexity = lambda mean: np.exp(-mean)  # noqa: E731
    assert change(scores, scores, seed=0) == (0, 0, 0)
    assert change(scores, scores, words, perplexity, seed=0) == (0, 0, 0)


def test_a_perplexity_is_made_of_sums_and_not_of_texts():
    base, aligned = np.array([-8.0, -3.0]), np.array([-10.0, -6.0])
    words = np.array([6.0, 5.0])
    found = change(base, aligned, words, lambda mean: np.exp(-mean), seed=0)
    assert found.estimate == pytest.approx(np.exp(16 / 11) - np.exp(1.0))


def test_one_item_has_no_interval():
    found = change([1.0], [0.0], seed=0)
    assert found.estimate == -1
    assert np.isnan([found.low, found.high]).all()


@pytest.mark.slow
def test_intervals_of_paired_changes_hold_the_truth_as_often_as_they_say():
    random, held, runs = np.random.default_rng(4), 0, 400
    for run in range(runs):
        u = random.random(150)
        base, aligned = u < 0.7, (u + 0.2 * random.random(150)) < 0.75
        # P(u + 0.2 v < 0.75) = 0.65, so that the truth is −0.05.
        found = change(base, aligned, seed=run, rounds=400)
        held += found.low <= -0.05 <= found.high
    assert held / runs == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / runs))


PUBLISHED = [
    ((48, 80, 56, 70), (0.0524, 0.3339)),
    ((3, 10, 9, 10), (0.1705, 0.8090)),
    ((2, 7, 6, 7), (0.0582, 0.8062)),
    ((0, 29, 5, 56), (-0.0381, 0.1926)),
    ((0, 20, 0, 10), (-0.1611, 0.2775)),
    ((0, 10, 0, 10), (-0.2775, 0.2775)),
    ((0, 20, 10, 10), (0.6791, 1.0)),
    ((0, 10, 10, 10), (0.6075, 1.0)),
]


@pytest.mark.parametrize(("counts", "bounds"), PUBLISHED)
def test_differences_of_shares_have_the_intervals_that_newcombe_tells(counts, bounds):
    # Newcombe (1998), table II, method 10.
    found = newcombe(*counts)
    np.testing.assert_allclose([found.low, found.high], bounds, atol=5e-5)


def test_exchanging_the_models_turns_the_interval_round():
    one, other = newcombe(12, 40, 20, 50), newcombe(20, 50, 12, 40)
    np.testing.assert_allclose(one, [-other.estimate, -other.high, -other.low])


def test_the_share_of_nothing_has_no_difference():
    assert np.isnan(newcombe(0, 0, 1, 2)).all()


def test_what_base_knew_beyond_chance_is_lost_in_part():
    found = relative_loss([0.75, 0.75, 0.75, 0.255], [0.5, 0.25, 0.85, 0.2], 0.25)
    np.testing.assert_allclose(found, [0.5, 1.0, -0.2, np.nan])
    assert np.isnan(relative_loss(0.7, 0.5, np.nan))


def test_what_is_forgotten_counts_from_the_best_of_earlier_stages():
    scores = [[0.5, 0.2, np.nan], [0.8, 0.4, np.nan], [0.6, 0.5, 0.9]]
    np.testing.assert_allclose(forgotten(scores), [0.2, -0.1, np.nan])
    assert np.isnan(forgotten([[0.5, 0.4]])).all()


def test_backward_transfer_is_from_the_stage_that_taught_a_task():
    scores = [[0.9, 0.1, 0.1], [0.7, 0.8, 0.2], [0.6, 0.9, 0.9]]
    assert backward_transfer(scores, [0, 1, 2]) == pytest.approx((-0.3 + 0.1) / 2)
    assert np.isnan(backward_transfer(scores, [2, 2, 2]))


def test_two_stages_forget_what_a_pair_loses():
    base, aligned = np.array([0.6, 0.3]), np.array([0.5, 0.4])
    np.testing.assert_allclose(forgotten([base, aligned]), base - aligned)
    assert backward_transfer([base, aligned], [0, 0]) == pytest.approx((aligned - base).mean())


def test_many_p_values_are_corrected_as_holm_does():
    found = holm([0.01, 0.04, 0.03, 0.005, np.nan])
    np.testing.assert_allclose(found, [0.03, 0.06, 0.06, 0.02, np.nan])
    assert holm([0.9, 0.8]).tolist() == [1, 1]
    assert holm([]).tolist() == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_is_never_harsher_than_bonferroni(p):
    found = holm(p)
    assert (np.diff(found[np.argsort(p, kind="stable")]) >= 0).all()
    assert (found >= p).all()
    assert (found <= np.minimum(1, np.array(p) * len(p)) + 1e-15).all()
