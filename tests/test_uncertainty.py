"""Whether a model knows where it is wrong, by closed forms and by lot."""

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from driftlens.estimators import auroc
from driftlens.formulas import uncertainty as u
from driftlens.formulas.answers import first_line, says

ROWS = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=9))
def test_the_area_of_rows_that_count_once_is_sklearns_and_that_of_rows_drawn_again(rows):
    scores, labels = (np.array(z) for z in zip(*rows, strict=True))
    weights = np.stack([np.ones(len(rows)), np.arange(len(rows)) % 3])
    found = u.weighted_auroc(scores, labels, weights)
    if u.constant(scores):
        assert np.isnan(found).all()
        return
    for mine, weight in zip(found, weights.astype(int), strict=True):
        again = np.repeat(np.arange(len(rows)), weight)
        if len(set(labels[again].tolist())) < 2:
            assert np.isnan(mine)
        else:
            assert mine == pytest.approx(roc_auc_score(labels[again], scores[again]))
            assert mine == pytest.approx(auroc(scores[again], labels[again]))


def test_an_order_known_to_be_right_has_an_area_of_one_and_its_contrary_none():
    once = np.ones((1, 4))
    assert u.weighted_auroc([1, 2, 3, 4], [0, 0, 1, 1], once) == 1
    assert u.weighted_auroc([4, 3, 2, 1], [0, 0, 1, 1], once) == 0
    assert u.weighted_auroc([1, 1, 2, 2], [0, 1, 0, 1], once) == 0.5


def test_cohens_d_is_the_distance_in_pooled_spreads():
    # Means 5 and 2, variances 1 and 1: d = 3.
    assert u.cohens_d([4, 5, 6, 1, 2, 3], [1, 1, 1, 0, 0, 0]) == pytest.approx(3)
    # Variances 2 of two and 1 of three: s² = (1·2 + 2·1) / 3.
    found = u.cohens_d([4, 6, 1, 2, 3], np.array([1, 1, 0, 0, 0]))
    assert found == pytest.approx(3 / np.sqrt(4 / 3))


def test_cohens_d_needs_two_of_each_and_some_spread():
    assert np.isnan(u.cohens_d([1, 2, 3], [1, 0, 0]))
    assert np.isnan(u.cohens_d([1, 2, 3, 4], [0, 0, 0, 0]))
    # 0.1 three times has a mean that is not 0.1 to the last bit.
    assert np.isnan(u.cohens_d([0.1, 0.1, 0.1, 0.3, 0.3, 0.3], [1, 1, 1, 0, 0, 0]))


def test_scores_are_constant_where_none_differs():
    assert u.constant([0.3, 0.3])
    assert u.constant([])
    assert not u.constant([0.3, 0.3, 0.4])


def by_lot(unsure, wrong):
    """Mean risk at each coverage over every order that the numbers allow."""
    every = []
    for order in permutations(range(len(unsure))):
        if all(unsure[a] <= unsure[b] for a, b in pairwise(order)):
            errors = np.cumsum(np.asarray(wrong, float)[list(order)])
            every.append(errors / np.arange(1, len(order) + 1))
    return np.mean(every, 0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ROWS)
def test_what_is_equally_sure_is_answered_as_if_by_lot(rows):
    unsure, wrong = zip(*rows, strict=True)
    found = u.risk_coverage(unsure, wrong)
    np.testing.assert_allclose(found.risk, by_lot(unsure, wrong), atol=1e-12)
    backwards = u.risk_coverage(unsure[::-1], wrong[::-1])
    np.testing.assert_allclose(found.risk, backwards.risk, atol=1e-12)


def test_risk_at_full_coverage_is_the_share_that_is_wrong():
    wrong = np.array([1, 0, 0, 1, 0], bool)
    found = u.risk_coverage([0.4, 0.1, 0.2, 0.9, 0.3], wrong)
    np.testing.assert_allclose(found.coverage, [0.2, 0.4, 0.6, 0.8, 1])
    np.testing.assert_allclose(found.risk, [0, 0, 0, 1 / 4, 2 / 5])
    assert found.area == pytest.approx((1 / 4 + 2 / 5) / 5)


def test_an_order_that_tells_nothing_has_the_risk_of_all_everywhere():
    found = u.risk_coverage(np.full(8, 0.7), [1, 0, 0, 0, 1, 0, 0, 0])
    np.testing.assert_allclose(found.risk, 0.25)
    assert found.area == pytest.approx(0.25)


def test_of_nothing_there_is_no_risk():
    assert np.isnan(u.risk_coverage([], []).area)
    assert np.isnan(u.selective_accuracy([], []))


def test_selective_accuracy_is_that_of_the_surest_half():
    unsure, wrong = [1, 2, 3, 4], [0, 0, 1, 1]
    assert u.selective_accuracy(unsure, wrong) == 1
    assert u.selective_accuracy(unsure, wrong, 0.75) == pytest.approx(2 / 3)
    assert u.selective_accuracy(unsure, wrong, 1) == 0.5
    assert u.selective_accuracy(unsure, wrong, 1e-9) == 1
    # 0.1 · 30 is a hair above 3.
    many = np.arange(30)
    assert u.selective_accuracy(many, many >= 3, 0.1) == 1


@settings(max_examples=40, deadline=None, derandomize=True)
@given(ROWS, st.floats(0.1, 1))
def test_only_the_order_of_the_scores_counts(rows, coverage):
    unsure, wrong = zip(*rows, strict=True)
    stretched = np.exp(np.asarray(unsure, float))
    assert u.selective_accuracy(stretched, wrong, coverage) == pytest.approx(
        u.selective_accuracy(unsure, wrong, coverage)
    )


# The cascade


def test_the_expected_cost_is_what_the_items_cost():
    random = np.random.default_rng(0)
    unsure, wrong = random.random((3, 200)), random.random(200) < 0.3
    costs, limits = np.array([1.0, 10.0, 3.0]), np.array([0.3, 0.5, 0.4])
    found = u.cascade(unsure, wrong, costs, limits)
    assert found.order == (0, 2, 1)
    paid, answered = np.zeros(200), np.zeros(200, bool)
    for check in found.order:
        paid[~answered] += costs[check]
        answered |= unsure[check] <= limits[check]
    assert found.cost == pytest.approx(paid.mean())
    assert found.answered == pytest.approx(answered.mean())
    assert found.accuracy == pytest.approx(1 - wrong[answered].mean())


def test_the_expected_cost_by_hand():
    # 1, then 5 of one half, then 20 of a tenth of that half.
    assert u.expected_cost([1, 5, 20], [0.5, 0.1, 0.9]) == pytest.approx(1 + 2.5 + 1)
    assert u.expected_cost([2.0], [0.3]) == 2


def test_what_no_item_reaches_costs_nothing():
    found = u.cascade([[0.0, 0.0], [1.0, 1.0]], [False, True], [1, 100], [0.5, 0.5])
    assert (found.cost, found.answered, found.accuracy) == (1, 1, 0.5)
    assert np.isnan(found.onward[1])


def test_an_uncertainty_that_is_not_known_lets_nothing_pass():
    found = u.cascade([[np.nan, 0.1]], [True, False], [1], [0.5])
    assert (found.answered, found.accuracy) == (0.5, 1)
    nobody = u.cascade([[0.9, 0.9]], [True, False], [1], [0.5])
    assert nobody.answered == 0
    assert np.isnan(nobody.accuracy)


# What is right


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Certainly! It is Paris.\nUser: And of Italy?", "Certainly! It is Paris."),
        ("\n\n- Paris\nLondon", "- Paris"),
        ("...\nPart two", "Part two"),
        ("", ""),
    ],
)
def test_the_first_line_is_the_first_that_says_something(text, first):
    assert first_line(text) == first


@pytest.mark.parametrize(
    ("answer", "right", "match", "is_right"),
    [
        ("It is PARIS, of course.", ["Paris"], "contains", True),
        ("It is Parisian.", ["Paris"], "contains", False),
        ("London.\nOr Paris?", ["Paris"], "contains", False),
        ("With pleasure! Paris.", ["Paris"], "contains", True),
        ("the river Alder flows", ["River Alder"], "contains", True),
        ("the Alder river flows", ["River Alder"], "contains", False),
        ("Paris!", ["paris"], "exact", True),
        ("It is Paris", ["paris"], "exact", False),
        ("That makes 3, and 4 more. So: 1,007.0", ["1007"], "number", True),
        ("It is −5", ["-5"], "number", True),
        ("none at all", ["5"], "number", False),
        ("5", ["five"], "number", False),
        ("anything", ["..."], "contains", False),
        ("anything", [], "contains", False),
    ],
)
def test_an_answer_is_right_that_says_one_of_the_right_ones(answer, right, match, is_right):
    assert says(answer, right, match) == is_right
