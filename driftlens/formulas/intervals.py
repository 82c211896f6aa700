"""How sure a number is: intervals by resampling documents, and of shares."""

from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

CHUNK = 2**20
"""Resampled documents in hand at a time."""


class Interval(NamedTuple):
    """An estimate and the bounds it lies between."""

    estimate: np.ndarray
    """[*] the number itself."""

    low: np.ndarray
    """[*] lower bound; NaN where there is none."""

    high: np.ndarray
    """[*] upper bound; NaN where there is none."""


def bootstrap(
    numerator: ArrayLike,
    denominator: ArrayLike,
    *,
    seed: int,
    rounds: int = 2000,
    level: float = 0.95,
    clusters: ArrayLike | None = None,
    of: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Interval:
    r"""Ratio of sums :math:`\sum_i a_i / \sum_i b_i` and its percentile interval.

    Documents are drawn with replacement; all columns are drawn together, so that columns (and
    two calls with one seed and the same documents) are paired. The draw goes by place: sort
    the documents first where the order they come in may differ.

    Source: Efron & Tibshirani (1993), "An Introduction to the Bootstrap", section 13.3.

    Args:
        numerator: [document, *] sums.
        denominator: [document, *] or [document] sums, most often numbers of tokens.
        seed: Of the draw.
        rounds: Number of draws.
        level: Share of draws within the interval.
        clusters: [document] ids; documents that share one are drawn together.
        of: What is made of the [*] ratios of all and of each draw: a difference, say.

    Returns:
        [*] estimate and bounds; of fewer than two documents (or clusters) the bounds are NaN.
    """
    numerator = np.asarray(numerator, np.float64)
    denominator = np.asarray(denominator, np.float64)
    if denominator.ndim == 1:
        denominator = denominator.reshape(-1, *[1] * (numerator.ndim - 1))
    if clusters is not None:
        numerator, denominator = (by_cluster(z, clusters) for z in (numerator, denominator))
    # Nothing over nothing is NaN, and says so in the result.
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = numerator.sum(0) / denominator.sum(0)
        estimate = of(estimate) if of else estimate
        if len(numerator) < 2:
            return Interval(estimate, estimate * np.nan, estimate * np.nan)
        drawn = [
            np.tensordot(weights, numerator, 1) / np.tensordot(weights, denominator, 1)
            for weights in resampled(len(numerator), rounds, seed)
        ]
    ratios = np.concatenate(drawn)
    if of:
        ratios = np.stack([of(ratio) for ratio in ratios])
    tail = (1 - level) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail], axis=0)
    return Interval(estimate, low, high)


def of_sums(
    of: Callable[[np.ndarray], np.ndarray],
    sums: np.ndarray,
    *,
    seed: int,
    rounds: int = 2000,
    level: float = 0.95,
    clusters: ArrayLike | None = None,
    centred: bool = False,
) -> Interval:
    """A function of sums over documents and its percentile interval, drawn as `bootstrap` draws.

    Args:
        of: Takes [*, column] sums of all documents, or of many draws, to [*, number].
        sums: [document, column] sums.
        seed: Of the draw.
        rounds: Number of draws.
        level: Share of draws within the interval.
        clusters: [document] ids; documents that share one are drawn together.
        centred: Whether the draws are moved so that their mean is the estimate: where noise only
            adds to a number, drawing again adds more of it.

    Returns:
        [number] estimate and bounds; NaN of fewer than two documents (or clusters), and where a
        draw has no number.
    """
    if clusters is not None:
        sums = by_cluster(sums, clusters)
    estimate = of(sums.sum(0))
    if len(sums) < 2:
        return Interval(estimate, estimate * np.nan, estimate * np.nan)
    drawn = np.concatenate([of(z @ sums) for z in resampled(len(sums), rounds, seed)])
    tail = (1 - level) / 2
    # Between a finite draw and an infinite one there is nothing to interpolate.
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0, method="inverted_cdf")
    moved = drawn.mean(0) - estimate if centred else 0.0
    return Interval(estimate, low - moved, high - moved)


def wilson(successes: ArrayLike, n: ArrayLike, level: float = 0.95) -> Interval:
    r"""Share :math:`p = k / n` and its score interval, which stays within 0 and 1.

    .. math:: \frac{p + z^2 / 2n \pm z \sqrt{p (1 - p) / n + z^2 / 4n^2}}{1 + z^2 / n}

    Source: Wilson (1927), "Probable Inference, the Law of Succession, and Statistical
    Inference", eq. 1.

    Args:
        successes: [*] how many.
        n: [*] of how many.
        level: Share of intervals that hold the true share.

    Returns:
        [*] share and bounds; NaN of nothing.
    """
    successes, n = np.asarray(successes, np.float64), np.asarray(n, np.float64)
    z = NormalDist().inv_cdf((1 + level) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = successes / n
        middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z * np.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2) / (1 + z**2 / n)
    # At either end the bound is the share itself, but for rounding.
    return Interval(p, np.where(p == 0, p, middle - half), np.where(p == 1, p, middle + half))


def newcombe(
    base: ArrayLike, n: ArrayLike, aligned: ArrayLike, m: ArrayLike, level: float = 0.95
) -> Interval:
    r"""Difference :math:`p_a - p_b` of two shares of other items, by their score intervals.

    .. math:: d - \sqrt{(p_a - l_a)^2 + (u_b - p_b)^2}, \quad
        d + \sqrt{(u_a - p_a)^2 + (p_b - l_b)^2}

    It keeps its width where a share is 0 or 1, and stays within −1 and 1. Of the same items, whose
    answers mostly go together, it is wider than it need be.

    Source: Newcombe (1998), "Interval estimation for the difference between independent
    proportions", method 10.

    Args:
        base: [*] how many of base's.
        n: [*] of how many.
        aligned: [*] how many of aligned's.
        m: [*] of how many.
        level: Share of intervals that hold the true difference.

    Returns:
        [*] difference and bounds; NaN of nothing.
    """
    b, a = wilson(base, n, level), wilson(aligned, m, level)
    gap = a.estimate - b.estimate
    down = np.hypot(a.estimate - a.low, b.high - b.estimate)
    up = np.hypot(a.high - a.estimate, b.estimate - b.low)
    return Interval(gap, gap - down, gap + up)


def holm(p: ArrayLike) -> np.ndarray:
    r"""p-values of many tests, so that one false alarm in all of them is as rare as in one.

    The k-th smallest is taken :math:`m - k + 1` times, and none is below a smaller one. It holds
    however the tests depend on each other.

    Source: Holm (1979), "A simple sequentially rejective multiple test procedure".

    Args:
        p: [test] p-values; NaN of tests that were not made, which do not count.

    Returns:
        [test] corrected p-values, at most 1.
    """
    p = np.asarray(p, np.float64)
    made = np.flatnonzero(~np.isnan(p))
    order = made[np.argsort(p[made], kind="stable")]
    times = np.arange(len(order), 0, -1)
    corrected = np.full(p.shape, np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(times * p[order]), 1.0)
    return corrected


def resampled(documents: int, rounds: int, seed: int) -> Iterator[np.ndarray]:
    """How often each draw holds each document, [round, document] for some rounds at a time."""
    random = np.random.default_rng(seed)
    at_once = max(1, CHUNK // documents)
    for start in range(0, rounds, at_once):
        some = min(at_once, rounds - start)
        # Counting drawn places is the multinomial itself, several times faster than drawing it.
        drawn = random.integers(documents, size=(some, documents))
        drawn += np.arange(some)[:, None] * documents
        counts = np.bincount(drawn.ravel(), minlength=some * documents)
        yield counts.reshape(some, documents).astype(np.float64)


def by_cluster(values: np.ndarray, clusters: ArrayLike) -> np.ndarray:
    """[cluster, *] sums of [document, *] values over the documents of each."""
    ids, places = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((len(ids), *values.shape[1:]))
    np.add.at(sums, places, values)
    return sums
