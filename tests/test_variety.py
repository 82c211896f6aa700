"""Measures of variety and of how far a policy went, in closed form."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import lambertw
from scipy.stats import entropy

from driftlens.formulas import variety as v
from driftlens.formulas.clusters import overlap

words = str.split
SHARES = st.floats(0.01, 0.99)


def test_distinct_n_counts_runs_of_all_answers_together():
    answers = [words("a b a"), words("a b")]
    # a b a a b: 2 of 5 words; a b, b a, a b: 2 of 3 couples.
    assert v.distinct(answers, 1) == pytest.approx(2 / 5)
    assert v.distinct(answers, 2) == pytest.approx(2 / 3)
    assert v.distinct(answers, 3) == 1
    assert np.isnan(v.distinct(answers, 4))
    assert np.isnan(v.distinct([], 1))


# BLEU, by hand


def test_bleu_of_half_its_words_and_a_third_of_its_couples():
    # Of a b c d: a, b, c match (3/4); a b, b c of three couples (2/3); a b c of two (1/2);
    # none of one run of four, which counts as a tenth. As long as the other: no penalty.
    found = v.bleu(words("a b c d"), [words("a b c e")])
    assert found == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** 0.25)


def test_bleu_counts_a_run_as_often_as_the_other_has_it():
    # The classic: seven times the, of which the other has two.
    answer, other = ["the"] * 7, words("the cat is on the mat")
    assert v.bleu(answer, [other], 1) == pytest.approx(2 / 7)


def test_bleu_takes_the_most_of_all_others_and_the_nearest_length():
    answer = words("a b c")
    # Words all match among the two; couples a b and b c likewise.
    others = [words("a b x y z"), words("b c")]
    # The nearest length is 2, shorter than 3: no penalty.
    assert v.bleu(answer, others, 2) == pytest.approx(1.0)
    # Of lengths 2 and 4, as near to 3, the shorter counts.
    assert v.bleu(answer, [words("a b"), words("a b c d")], 2) == pytest.approx(1.0)
    # Of length 6 alone the penalty is exp(1 − 6/3).
    assert v.bleu(answer, [words("a b c d e f")], 2) == pytest.approx(np.exp(-1))


def test_an_answer_of_one_word_has_no_couples_to_miss():
    assert v.bleu(["yes"], [["yes"]]) == 1
    assert v.bleu(["yes"], [["no"]]) == pytest.approx(0.1)


def test_bleu_of_nothing_is_undefined():
    assert np.isnan(v.bleu([], [["a"]]))
    assert np.isnan(v.bleu(["a"], [[]]))


def test_self_bleu_is_the_mean_over_answers_of_bleu_against_the_rest():
    answers = [words("a b c d"), words("a b c e"), words("x y"), []]
    rest = [answers[:n] + answers[n + 1 :] for n in range(3)]
    each = [v.bleu(answers[n], rest[n]) for n in range(3)]
    assert v.self_bleu(answers) == pytest.approx(np.mean(each))
    assert v.self_bleu([["one", "word"]] * 3) == 1
    assert np.isnan(v.self_bleu([["alone"], []]))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), min_size=2, max_size=5))
def test_self_bleu_lies_between_none_and_all_and_forgets_the_order(answers):
    found = v.self_bleu(answers)
    assert 0 < found <= 1 + 1e-12
    assert v.self_bleu(answers[::-1]) == pytest.approx(found)
    # One more that is the same as another cannot make that one less alike.
    assert v.bleu(answers[0], [*answers[1:], answers[0]]) == pytest.approx(1)


# Vendi


@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_vendi_score_counts_things_that_have_nothing_in_common(n):
    assert v.vendi(np.ones((n, n))) == pytest.approx(1)
    assert v.vendi(np.eye(n)) == pytest.approx(n)


def test_the_vendi_score_of_two_is_that_of_their_likeness():
    # Eigenvalues of K / 2 are (1 ± k) / 2.
    for k in (0.0, 0.3, 0.9):
        of_two = np.exp(entropy([(1 + k) / 2, (1 - k) / 2]))
        assert v.vendi([[1, k], [k, 1]]) == pytest.approx(of_two)


def test_the_vendi_score_of_groups_of_equals_is_that_of_their_shares():
    groups = np.repeat([0, 1, 2], [5, 3, 2])
    same = (groups[:, None] == groups).astype(float)
    assert v.vendi(same) == pytest.approx(np.exp(entropy([0.5, 0.3, 0.2])))
    assert v.vendi(overlap([{k} for k in groups.tolist()])) == pytest.approx(v.vendi(same))


def test_the_vendi_score_of_nothing_is_undefined():
    assert np.isnan(v.vendi(np.eye(0)))


# Preference collapse


def test_the_optimum_is_the_one_by_its_formula():
    q, p, beta = 0.3, 0.7, 0.25
    for_, against = q * p ** (1 / beta), (1 - q) * (1 - p) ** (1 / beta)
    assert v.amplified(q, p, beta) == pytest.approx(for_ / (for_ + against))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(SHARES, SHARES.filter(lambda p: abs(p - 0.5) > 0.01), st.floats(0.2, 5))
def test_the_optimum_maximises_the_reward_less_its_kl(q, p, beta):
    # With Bradley and Terry's reward the odds of p are exp(r_w − r_l).
    reward = np.log(p / (1 - p))
    best = float(v.amplified(q, p, beta))

    def objective(pi):
        return pi * reward - beta * (pi * np.log(pi / q) + (1 - pi) * np.log((1 - pi) / (1 - q)))

    for other in np.clip([best - 1e-3, best + 1e-3, q, p], 1e-6, 1 - 1e-6):
        assert objective(other) <= objective(np.clip(best, 1e-9, 1 - 1e-9)) + 1e-9


def test_a_majority_becomes_everyone_as_the_kl_weighs_less():
    shares = v.amplified(0.5, 0.6, [1.0, 0.1, 0.01])
    assert shares[0] == pytest.approx(0.6)
    assert (np.diff(shares) > 0).all()
    assert shares[-1] > 1 - 1e-9
    assert v.amplified(0.3, 0.5, 0.01) == pytest.approx(0.3)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(SHARES, SHARES.filter(lambda p: abs(p - 0.5) > 0.01), st.floats(0.3, 5))
def test_the_beta_that_was_is_found_again(q, p, beta):
    pi = v.amplified(q, p, beta)
    assert v.sharpness(q, pi, p) == pytest.approx(1 / beta, rel=1e-4)


def test_what_no_beta_explains_is_undefined():
    assert np.isnan(v.sharpness([0.3, 0.3, 0.0], [0.6, 1.0, 0.5], [0.5, 0.6, 0.6])).all()
    assert v.sharpness(0.6, 0.4, 0.7) < 0
    # Base leans further than those asked do: no push towards them ends there.
    assert np.isnan(v.matching_beta(0.8, 0.7))
    assert np.isnan(v.matching_beta(0.7, 0.7))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(SHARES, SHARES.filter(lambda p: abs(p - 0.5) > 0.01))
def test_the_matching_beta_matches_wherever_there_is_one(q, p):
    beta = v.matching_beta(q, p)
    if np.isnan(beta):
        assert (p > 0.5) == (p <= q) or p == q
    else:
        assert v.amplified(q, p, beta) == pytest.approx(p, abs=1e-9)
    assert v.matching_beta(0.5, p) == pytest.approx(1)


# KL as best of n


def test_the_kl_of_the_best_of_n_is_the_integral_of_its_density():
    # The best of n of uniform draws has density n u^(n−1): KL = ∫ n u^(n−1) log(n u^(n−1)) du.
    nodes, weights = np.polynomial.legendre.leggauss(200)
    u, weights = (nodes + 1) / 2, weights / 2
    for n in (1, 2, 4, 16):
        density = n * u ** (n - 1)
        by_hand = (weights * density * np.log(density)).sum()
        assert v.best_of_n_kl(n) == pytest.approx(by_hand, abs=1e-6)


def test_n_is_found_again_rises_with_kl_and_is_one_of_none():
    n = np.array([1, 1 + 1e-5, 1.5, 2, 10, 1e4, 1e12])
    np.testing.assert_allclose(v.kl_as_best_of_n(v.best_of_n_kl(n)), n, rtol=1e-9)
    kl = np.concatenate([[0.0], np.geomspace(1e-12, 500, 200)])
    found = v.kl_as_best_of_n(kl)
    assert found[0] == 1
    assert (np.diff(found) > 0).all()
    assert np.isnan(v.kl_as_best_of_n([-1e-3, np.nan])).all()
    assert v.kl_as_best_of_n(1000.0) == np.inf


def test_n_is_what_lambert_says():
    kl = np.array([0.1, 1.0, 5.0])
    np.testing.assert_allclose(
        v.kl_as_best_of_n(kl), -1 / lambertw(-np.exp(-1 - kl)).real, rtol=1e-9
    )


# Estimates of KL


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)), min_size=2, max_size=6))
def test_the_first_and_the_third_estimate_have_no_bias(weights):
    base, aligned = np.array(weights).T / np.sum(weights, 0)[:, None]
    found = v.kl_estimates(np.log(base), np.log(aligned))
    exact = entropy(aligned, base)
    # The mean over all there is, each as often as aligned draws it.
    assert (aligned * found.k1).sum() == pytest.approx(exact, abs=1e-12)
    assert (aligned * found.k3).sum() == pytest.approx(exact, abs=1e-12)
    assert (found.k3 >= 0).all()
    assert (found.k2 >= 0).all()


def test_the_second_estimate_is_biased_and_the_third_spreads_less_than_the_first():
    base, aligned = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    found = v.kl_estimates(np.log(base), np.log(aligned))
    exact = entropy(aligned, base)
    assert (aligned * found.k2).sum() == pytest.approx(
        0.5 * (aligned * np.log(base / aligned) ** 2).sum()
    )
    assert abs((aligned * found.k2).sum() - exact) > 0.01
    spread = [(aligned * (k - exact) ** 2).sum() for k in (found.k1, found.k3)]
    assert spread[1] < spread[0]


def test_two_models_that_are_one_are_no_kl_apart():
    for k in v.kl_estimates([-3.0, -800.0], [-3.0, -800.0]):
        assert (k == 0).all()
