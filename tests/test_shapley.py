"""Shapley's division against its axioms, closed forms and the mean over all orders."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from driftlens.formulas import shapley
from driftlens.formulas.intervals import Interval
from driftlens.formulas.streams import Moments

ROUNDED = 1e-9
"""Sums of at most 32 float64 numbers of size 1000."""

numbers = st.floats(-1000, 1000, allow_nan=False, width=32)
games = st.integers(1, 5).flatmap(lambda n: arrays.arrays(np.float64, 2**n, elements=numbers))
exact = settings(deadline=None, derandomize=True, database=None)


def brute(values):
    """The mean over all orders, from the words of the definition."""
    count = shapley.players(values)
    table = dict(enumerate(values))
    return np.mean([shapley.marginals(o, table) for o in permutations(range(count))], 0)


def brute_pairs(values):
    """What two add together and not apart, as they arrive side by side in all orders."""
    count = shapley.players(values)
    found = []
    for i, j in shapley.pairs(count):
        others = [p for p in range(count) if p not in (i, j)]
        sums = []
        for order in permutations([*others, -1]):
            before = shapley.coalition(order[: order.index(-1)])
            one, other = before | 1 << i, before | 1 << j
            sums.append(values[one | other] - values[one] - values[other] + values[before])
        found.append(np.mean(sums))
    return np.array(found)


def test_the_fixture_of_the_methods():
    values = [1, 2, 3, 6]
    np.testing.assert_allclose(shapley.shapley(values), [2, 3])
    np.testing.assert_allclose(shapley.interactions(values), [2])
    assert shapley.mixed(6, 2, 3, 1) == 2


@exact
@given(games)
def test_the_mean_over_all_orders_is_the_sum_over_coalitions(values):
    np.testing.assert_allclose(shapley.shapley(values), brute(values), atol=ROUNDED)
    np.testing.assert_allclose(shapley.interactions(values), brute_pairs(values), atol=ROUNDED)


@exact
@given(games)
def test_shares_add_up_to_the_whole(values):
    whole = values[-1] - values[0]
    assert shapley.shapley(values).sum() == pytest.approx(whole, abs=ROUNDED)


@exact
@given(games, st.data())
def test_the_division_is_linear(values, data):
    other = data.draw(arrays.arrays(np.float64, values.shape, elements=numbers))
    for of in (shapley.shapley, shapley.interactions):
        np.testing.assert_allclose(
            of(2 * values - 3 * other), 2 * of(values) - 3 * of(other), atol=10 * ROUNDED
        )


@exact
@given(st.integers(1, 5).flatmap(lambda n: arrays.arrays(np.float64, n, elements=numbers)))
def test_in_a_game_of_sums_each_has_its_own_and_no_pair_interacts(own):
    members = [[bool(c >> p & 1) for p in range(len(own))] for c in range(2 ** len(own))]
    values = np.array(members) @ own
    np.testing.assert_allclose(shapley.shapley(values), own, atol=ROUNDED)
    np.testing.assert_allclose(shapley.interactions(values), 0, atol=ROUNDED)


@exact
@given(games, st.data())
def test_a_player_who_changes_nothing_has_exactly_nothing(values, data):
    count = shapley.players(values)
    dummy = data.draw(st.integers(0, count))
    low = 2**dummy - 1
    table = np.array(
        [values[(c & low) | (c >> dummy + 1) << dummy] for c in range(2 ** (count + 1))]
    )
    assert shapley.shapley(table)[dummy] == 0
    for pair, index in zip(shapley.pairs(count + 1), shapley.interactions(table), strict=True):
        assert dummy not in pair or index == 0
    rest = np.delete(shapley.shapley(table), dummy)
    np.testing.assert_allclose(rest, shapley.shapley(values), atol=ROUNDED)


@exact
@given(arrays.arrays(np.float64, 6, elements=numbers))
def test_players_of_whom_only_the_number_counts_share_alike(by_size):
    values = by_size[[c.bit_count() for c in range(32)]]
    shares, indices = shapley.shapley(values), shapley.interactions(values)
    np.testing.assert_allclose(shares, (by_size[-1] - by_size[0]) / 5, atol=ROUNDED)
    np.testing.assert_allclose(indices, indices[0], atol=ROUNDED)


@exact
@given(games)
def test_what_is_added_to_all_coalitions_is_nobodys(values):
    np.testing.assert_allclose(shapley.shapley(values + 7), shapley.shapley(values), atol=ROUNDED)
    assert (shapley.shapley(np.full_like(values, 0.1)) == 0).all()


def test_other_axes_are_divided_each_for_itself():
    table = np.random.default_rng(0).normal(size=(16, 3, 2))
    shares, indices = shapley.shapley(table), shapley.interactions(table)
    assert shares.shape == (4, 3, 2)
    assert indices.shape == (6, 3, 2)
    for at in np.ndindex(3, 2):
        np.testing.assert_allclose(shares[:, *at], brute(table[:, *at]), atol=ROUNDED)
        np.testing.assert_allclose(indices[:, *at], brute_pairs(table[:, *at]), atol=ROUNDED)


def test_a_game_of_one_or_of_nobody():
    np.testing.assert_array_equal(shapley.shapley([2.0, 5.0]), [3])
    assert shapley.shapley([2.0]).shape == (0,)
    assert shapley.interactions([2.0, 5.0]).shape == (0,)
    with pytest.raises(ValueError, match="3 coalitions"):
        shapley.shapley([1, 2, 3])


@exact
@given(games)
def test_an_order_telescopes_to_the_whole(values):
    count = shapley.players(values)
    forward = shapley.marginals(range(count), dict(enumerate(values)))
    np.testing.assert_array_equal(forward, np.diff(values[[2**k - 1 for k in range(count + 1)]]))
    backward = shapley.marginals(range(count)[::-1], dict(enumerate(values)))
    assert backward.sum() == pytest.approx(values[-1] - values[0], abs=ROUNDED)


# Orders at random


def test_each_order_is_followed_by_its_reverse_and_depends_on_its_number_alone():
    orders = shapley.antithetic(6, 0, 40, seed=3)
    np.testing.assert_array_equal(orders[:, 1], orders[:, 0, ::-1])
    np.testing.assert_array_equal(np.sort(orders), np.broadcast_to(np.arange(6), orders.shape))
    np.testing.assert_array_equal(shapley.antithetic(6, 25, 40, seed=3), orders[25:])
    assert (shapley.antithetic(6, 0, 40, seed=4) != orders).any()
    assert shapley.antithetic(6, 5, 5, seed=0).shape == (0, 2, 6)


def test_all_orders_are_equally_likely():
    orders = shapley.antithetic(3, 0, 3000, seed=0)[:, 0]
    counts = np.unique(orders @ [9, 3, 1], return_counts=True)[1]
    # Six orders, 500 of each expected; χ² of five degrees of freedom is below 20.5 in 99.9 %.
    assert len(counts) == 6
    assert ((counts - 500) ** 2 / 500).sum() < 20.5


def sampled(values, orders):
    """[player] mean and standard error over pairs of orders."""
    table = dict(enumerate(values))
    of_pairs = [np.mean([shapley.marginals(o, table) for o in pair], 0) for pair in orders]
    moments = Moments().update(torch.tensor(np.array(of_pairs)))
    return np.asarray(moments.mean), np.asarray(moments.standard_error)


def smooth(seed, count=6):
    """A game in which players help and hinder each other by two and by three."""
    random = np.random.default_rng(seed)
    one, two, three = (random.normal(size=[count] * n) / count ** (n - 1) for n in (1, 2, 3))
    members = np.array([[c >> p & 1 for p in range(count)] for c in range(2**count)], float)
    return (
        members @ one
        + np.einsum("ci,cj,ij->c", members, members, two)
        + np.einsum("ci,cj,ck,ijk->c", members, members, members, three)
    )


def test_a_sample_is_as_far_from_the_truth_as_its_errors_say():
    scores = []
    for seed in range(150):
        values = smooth(seed % 5)
        mean, error = sampled(values, shapley.antithetic(6, 0, 16, seed))
        scores.append((mean - shapley.shapley(values)) / error)
    z = np.ravel(scores)
    # Of 15 degrees of freedom, Student's deviation is √(15/13) = 1.07; within two errors lie
    # 93.6 %. The six players of a sample hang together, hence about 150 × 3 independent scores.
    assert z.std() == pytest.approx(1.07, abs=0.12)
    assert np.mean(np.abs(z) < 2) == pytest.approx(0.936, abs=0.035)
    assert abs(z.mean()) < 0.15


def test_of_players_who_interact_in_twos_alone_one_antithetic_pair_is_exact():
    random = np.random.default_rng(0)
    two = random.normal(size=(5, 5))
    members = np.array([[c >> p & 1 for p in range(5)] for c in range(32)], float)
    values = np.einsum("ci,cj,ij->c", members, members, two)
    (pair,) = shapley.antithetic(5, 0, 1, seed=0)
    table = dict(enumerate(values))
    mean = np.mean([shapley.marginals(order, table) for order in pair], 0)
    np.testing.assert_allclose(mean, shapley.shapley(values), atol=ROUNDED)


def test_antithetic_pairs_vary_less_than_orders_drawn_apart():
    values = smooth(1)
    table = dict(enumerate(values))
    orders = shapley.antithetic(6, 0, 800, seed=0)
    paired = [np.mean([shapley.marginals(o, table) for o in pair], 0) for pair in orders[:400]]
    apart = [
        np.mean([shapley.marginals(o, table) for o in two], 0)
        for two in orders[:, 0].reshape(400, 2, 6)
    ]
    assert np.var(paired, 0).sum() < 0.5 * np.var(apart, 0).sum()


@pytest.mark.parametrize(
    ("errors", "total", "enough"),
    [
        ([0.01, 0.02], 1.0, True),
        ([0.01, 0.021], 1.0, False),
        ([0.01, 0.02], -1.0, True),
        ([0.0, 0.0], 0.0, True),
        ([np.nan, 0.0], 1.0, False),
        ([], 1.0, True),
    ],
)
def test_a_sample_is_enough_when_its_largest_error_is_small_beside_the_whole(errors, total, enough):
    assert shapley.settled(errors, total, 0.02) == enough


def test_a_part_of_what_may_be_nothing_is_undefined():
    def of(*whole):
        return shapley.of_whole([1.0, -2.0], Interval(*map(np.asarray, whole)))

    np.testing.assert_array_equal(of(4, 3, 5), [0.25, -0.5])
    np.testing.assert_array_equal(of(-4, -5, -3), [-0.25, 0.5])
    np.testing.assert_array_equal(of(4, np.nan, np.nan), [0.25, -0.5])
    for whole in ((4, -1, 5), (0, 0, 0), (0, np.nan, np.nan), (np.nan, np.nan, np.nan)):
        assert np.isnan(of(*whole)).all()
