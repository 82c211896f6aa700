"""What the same items say twice: right answers that became wrong, and what of it is chance."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom

from .intervals import Interval, resampled


class Flips(NamedTuple):
    """How many items two models answer how."""

    right_to_wrong: int
    """Base is right and aligned is wrong."""

    wrong_to_right: int
    """Base is wrong and aligned is right."""

    both_right: int
    """Both are right."""

    both_wrong: int
    """Both are wrong."""


def flips(base: ArrayLike, aligned: ArrayLike) -> Flips:
    """The two-by-two table of paired answers; a net change hides how many went either way.

    Args:
        base: [item] whether base is right.
        aligned: [item] whether aligned is.
    """
    base, aligned = np.asarray(base, bool), np.asarray(aligned, bool)
    cells = (base & ~aligned, ~base & aligned, base & aligned, ~base & ~aligned)
    return Flips(*(int(cell.sum()) for cell in cells))


def mcnemar(lost: ArrayLike, won: ArrayLike, *, mid: bool = False) -> np.ndarray:
    r"""Exact two-sided p-value of so uneven a number of flips, were either way as likely.

    .. math:: p = \min\bigl(1,\; 2 P(X \le \min(b, c))\bigr), \quad X \sim B(b + c, 1/2)

    The mid-p value takes half the probability of the table that was found, which makes up for
    the exact test's being too careful with few flips: :math:`2 P(X \le m) - P(X = m)`.

    Source: McNemar (1947); mid-p: Fagerland, Lydersen & Laake (2013), "The McNemar test for
    binary matched-pairs data", eqs. 3 and 4.

    Args:
        lost: [*] items that went from right to wrong.
        won: [*] items that went from wrong to right.
        mid: Whether to give the mid-p value.

    Returns:
        [*] p, in (0, 1]; 1 where nothing flipped.
    """
    lost, won = np.asarray(lost), np.asarray(won)
    fewer, both = np.minimum(lost, won), lost + won
    p = 2 * binom.cdf(fewer, both, 0.5)
    if mid:
        p = p - binom.pmf(fewer, both, 0.5)
    return np.minimum(p, 1.0)


def change(
    base: ArrayLike,
    aligned: ArrayLike,
    weights: ArrayLike | None = None,
    of: Callable[[np.ndarray], np.ndarray] | None = None,
    *,
    seed: int,
    rounds: int = 2000,
    level: float = 0.95,
) -> Interval:
    r"""Paired change of a score over the same items, with its bootstrap interval.

    .. math::
        f\left(\frac{\sum_i a_i}{\sum_i w_i}\right) -
        f\left(\frac{\sum_i b_i}{\sum_i w_i}\right)

    Items are drawn with replacement, both models' of an item together.

    Source: Efron & Tibshirani (1993), "An Introduction to the Bootstrap", section 13.3.

    Args:
        base: [item] scores of base.
        aligned: [item] scores of aligned.
        weights: [item] what a score is over, as words of a text; None is 1 each.
        of: What is made of the mean, as exp(−mean) of a mean log-likelihood; None is the mean.
        seed: Of the draw.
        rounds: Number of draws.
        level: Share of draws within the interval.

    Returns:
        The change and its bounds; of fewer than two items the bounds are NaN.
    """
    both = np.stack([np.asarray(z, np.float64) for z in (base, aligned)], 1)
    weights = np.ones(len(both)) if weights is None else np.asarray(weights, np.float64)

    def gap(counts: np.ndarray) -> np.ndarray:
        over = counts @ weights
        if of is None:
            # What all items changed by alike is then free of rounding.
            return (counts @ (both[:, 1] - both[:, 0])) / over
        means = of((counts @ both) / over[..., None])
        return means[..., 1] - means[..., 0]

    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = gap(np.ones(len(both)))
        if len(both) < 2:
            return Interval(estimate, estimate * np.nan, estimate * np.nan)
        drawn = np.concatenate([gap(counts) for counts in resampled(len(both), rounds, seed)])
    tail = (1 - level) / 2
    return Interval(estimate, *np.quantile(drawn, [tail, 1 - tail]))


def relative_loss(
    base: ArrayLike, aligned: ArrayLike, chance: ArrayLike, least: float = 0.01
) -> np.ndarray:
    r"""Share of what base knew beyond chance that aligned has lost.

    .. math:: \frac{a_b - a_a}{a_b - \text{chance}}

    Source: the chance-corrected form of the forgetting of Chaudhry et al. (2018), "Riemannian
    Walk for Incremental Learning", eq. 3.

    Args:
        base: [*] scores of base, of which more is better.
        aligned: [*] scores of aligned.
        chance: [*] what guessing scores; NaN where that is not known.
        least: How far above chance base must be for there to be anything to lose.

    Returns:
        [*] 1 where all is lost, below 0 where something was gained; NaN where base is not more
        than `least` above chance, or chance is not known.
    """
    base, aligned, chance = (np.asarray(z, np.float64) for z in (base, aligned, chance))
    room = base - chance
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(room > least, (base - aligned) / room, np.nan)


def forgotten(scores: ArrayLike) -> np.ndarray:
    r"""What each task has lost since it was best before the last stage.

    .. math:: F_k = \max_{j < T} a_{j,k} - a_{T,k}

    Source: Chaudhry et al. (2018), "Riemannian Walk for Incremental Learning", eq. 3.

    Args:
        scores: [stage, task] scores of which more is better; NaN where one was not taken.

    Returns:
        [task] above 0 where something was forgotten; NaN of one stage, or without a last score.
    """
    scores = np.asarray(scores, np.float64)
    before = np.where(np.isnan(scores[:-1]), -np.inf, scores[:-1])
    best = before.max(0, initial=-np.inf)
    return np.where(np.isfinite(best), best, np.nan) - scores[-1]


def backward_transfer(scores: ArrayLike, learnt: ArrayLike) -> float:
    r"""Mean change of tasks since the stage that taught them; below 0 is forgetting.

    .. math:: \text{BWT} = \frac{1}{|K|} \sum_{k \in K} (a_{T,k} - a_{l(k),k}),
        \quad K = \{k : l(k) < T\}

    Source: Lopez-Paz & Ranzato (2017), "Gradient Episodic Memory for Continual Learning", eq. 3.

    Args:
        scores: [stage, task] scores of which more is better.
        learnt: [task] number of the stage after which each was learnt, from 0.

    Returns:
        NaN where all was learnt at the last stage, or a score is missing.
    """
    scores, learnt = np.asarray(scores, np.float64), np.asarray(learnt, int)
    old = np.flatnonzero(learnt < len(scores) - 1)
    if not len(old):
        return float("nan")
    return float((scores[-1, old] - scores[learnt[old], old]).mean())
