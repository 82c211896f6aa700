"""What each player of a game adds to it, alone and beside each other: Shapley's division.

A game gives every coalition of players a value. A coalition is a whole number whose bit i says
whether player i is in it; a value may have any axes, so that one table divides every document's
loss at once.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import factorial

import numpy as np
from numpy.typing import ArrayLike

from .intervals import Interval


def players(values: ArrayLike) -> int:
    """How many players a table [coalition, *] of all coalitions has.

    Raises:
        ValueError: The number of coalitions is no power of two.
    """
    count = len(np.asarray(values))
    if count < 1 or count & (count - 1):
        raise ValueError(f"{count} coalitions are not all of any number of players")
    return count.bit_length() - 1


def shapley(values: ArrayLike) -> np.ndarray:
    r"""Shapley values: the mean of what each player adds, over all orders of arrival.

    .. math:: \phi_i = \sum_{S \subseteq N \setminus i}
              \frac{|S|!\,(n - |S| - 1)!}{n!} \bigl[v(S \cup i) - v(S)\bigr]

    They add up to :math:`v(N) - v(\emptyset)`, and are exactly 0 of a player that changes nothing.

    Source: Shapley (1953), "A value for n-person games", eq. 12.

    Args:
        values: [coalition, *] value of each coalition, `2 ** players` of them.

    Returns:
        [player, *] shares, in the unit of the values.
    """
    shares = [_mean_change(values, player) for player in range(players(values))]
    return np.array(shares).reshape(len(shares), *np.shape(values)[1:])


def interactions(values: ArrayLike) -> np.ndarray:
    r"""Shapley interaction index of each pair: what two players add together and not apart.

    .. math:: I_{ij} = \sum_{S \subseteq N \setminus ij} \frac{|S|!\,(n - |S| - 2)!}{(n - 1)!}
              \bigl[v(S \cup ij) - v(S \cup i) - v(S \cup j) + v(S)\bigr]

    Above 0 the two need each other; below 0 either does the other's work.

    Source: Grabisch & Roubens (1999), "An axiomatic approach to the concept of interaction
    among players in cooperative games", definition 2.

    Args:
        values: [coalition, *] value of each coalition.

    Returns:
        [pair, *] index, in the order of `pairs`.
    """
    found = [_mean_change(values, *pair) for pair in pairs(players(values))]
    return np.array(found).reshape(len(found), *np.shape(values)[1:])


def mixed(both: ArrayLike, one: ArrayLike, other: ArrayLike, neither: ArrayLike) -> np.ndarray:
    r"""[*] plain interaction :math:`v(ij) - v(i) - v(j) + v(\emptyset)` beside fixed others.

    Above all the others it is :math:`v(N) - v(N \setminus i) - v(N \setminus j) +
    v(N \setminus ij)`. The four may have any axes that go together.
    """
    both, one, other, neither = (np.asarray(z, np.float64) for z in (both, one, other, neither))
    return (both - one) - (other - neither)


def pairs(count: int) -> list[tuple[int, int]]:
    """[pair] of players, the first below the second."""
    return list(combinations(range(count), 2))


def coalition(members: Iterable[int]) -> int:
    """The coalition of some players."""
    return sum(1 << player for player in members)


def prefixes(order: Sequence[int] | np.ndarray) -> list[int]:
    """The coalitions that grow as players arrive: of none, of the first, …, of all."""
    return [coalition(map(int, order[:size])) for size in range(len(order) + 1)]


def marginals(order: Sequence[int] | np.ndarray, values: Mapping[int, np.ndarray]) -> np.ndarray:
    """What each player adds as it arrives in one order.

    Args:
        order: [player] of all players.
        values: For each coalition of `prefixes(order)` at least, [*] its value.

    Returns:
        [player, *] by number of player, not by arrival; they telescope to the whole.
    """
    steps = np.diff([np.asarray(values[c], np.float64) for c in prefixes(order)], axis=0)
    return steps[np.argsort(order)]


def antithetic(count: int, first: int, last: int, seed: int) -> np.ndarray:
    """Orders at random, each followed by its own reverse.

    What a player adds early and what it adds late differ most, and the reverse of an order has
    it late where the order has it early: the mean of the two varies less than that of two
    orders drawn apart. A pair depends on its number and the seed alone, not on how many are drawn.

    Source: Mitchell, Cooper, Frank & Holmes (2022), "Sampling permutations for Shapley value
    estimation", section 2.3.

    Args:
        count: Number of players.
        first: Number of the first pair.
        last: Number of the pair after the last.
        seed: Of the draw.

    Returns:
        [pair, 2, player] orders.
    """
    forward = [np.random.default_rng((seed, n)).permutation(count) for n in range(first, last)]
    orders = np.array(forward, np.int64).reshape(-1, count)
    return np.stack([orders, orders[:, ::-1]], 1)


def settled(errors: ArrayLike, total: float, tolerance: float) -> bool:
    """Whether the largest of [player] standard errors is within `tolerance` of |total|."""
    # A NaN compares as false: an error that is not known is not small.
    return bool(np.max(np.asarray(errors, np.float64), initial=0) <= tolerance * abs(total))


def of_whole(parts: ArrayLike, whole: Interval) -> np.ndarray:
    """[*] parts over a whole; NaN where the whole may be nothing, as its interval says."""
    parts, total = np.asarray(parts, np.float64), float(whole.estimate)
    if not total or whole.low <= 0 <= whole.high:
        return np.full(parts.shape, np.nan)
    return parts / total


def _mean_change(values: ArrayLike, *together: int) -> np.ndarray:
    """[*] what players add together and no fewer of them do, over all orders of arrival."""
    table = np.asarray(values, np.float64)
    count, shape = players(table), table.shape[1:]
    # An axis for each player, the last player's first.
    table = table.reshape(*[2] * count, -1)
    for player in together:
        table = np.diff(table, axis=count - 1 - player)
    others = count - len(together)
    changes = table.reshape(2**others, -1)
    weights = np.array([_chance(c.bit_count(), others) for c in range(2**others)])
    return (weights[:, None] * changes).sum(0).reshape(shape)


def _chance(before: int, others: int) -> float:
    """That just these `before` of so many others come before those who arrive together."""
    return factorial(before) * factorial(others - before) / factorial(others + 1)
