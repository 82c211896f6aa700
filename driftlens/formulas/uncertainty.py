"""Whether a number that says how unsure a model is knows where it is wrong.

The area under the ROC curve is `driftlens.estimators.auroc`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


def constant(scores: ArrayLike) -> bool:
    """Whether all numbers are the same, so that they tell nothing apart; none are, too."""
    scores = np.asarray(scores)
    return bool((scores == scores[:1]).all())


def weighted_auroc(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike) -> np.ndarray:
    """Area under the ROC curve of rows that count more or less, in many drawings at once.

    The share of couples of a row of either kind in which the first kind has the higher number;
    ties count half. Where each row counts once it is `driftlens.estimators.auroc`.

    Args:
        scores: [row] numbers.
        labels: [row] whether it is of the first kind.
        weights: [drawing, row] how often each row was drawn.

    Returns:
        [drawing] between 0 and 1, ½ by chance; NaN where one kind was not drawn, and where all
        numbers are the same: ½ would say that they were tried, and told nothing.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, bool)
    weights = np.asarray(weights, np.float64)
    if constant(scores):
        return np.full(len(weights), np.nan)
    ones, zeros = scores[labels, None], scores[None, ~labels]
    ahead = np.heaviside(ones - zeros, 0.5)
    first, second = weights[:, labels], weights[:, ~labels]
    with np.errstate(invalid="ignore"):
        return ((first @ ahead) * second).sum(1) / (first.sum(1) * second.sum(1))


def cohens_d(scores: ArrayLike, labels: ArrayLike) -> float:
    r"""How far apart two groups are, in their pooled spread.

    .. math:: d = \frac{\mu_1 - \mu_0}{s}, \quad
              s^2 = \frac{(n_1 - 1) s_1^2 + (n_0 - 1) s_0^2}{n_1 + n_0 - 2}

    Source: Cohen (1988), "Statistical Power Analysis for the Behavioral Sciences", eq. 2.5.1.

    Args:
        scores: [row] numbers.
        labels: [row] whether it is of the first group.

    Returns:
        Any number; NaN where a group has fewer than two, or neither has any spread.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, bool)
    ones, zeros = scores[labels], scores[~labels]
    if min(len(ones), len(zeros)) < 2:
        return float("nan")
    apart = sum(np.square(group - group.mean()).sum() for group in (ones, zeros))
    if constant(ones) and constant(zeros):
        return float("nan")
    return float((ones.mean() - zeros.mean()) / np.sqrt(apart / (len(scores) - 2)))


class RiskCoverage(NamedTuple):
    """What is wrong among those that are answered, as more and more are."""

    coverage: np.ndarray
    """[row] share that is answered, the surest first: 1/n, 2/n … 1."""

    risk: np.ndarray
    """[row] share of these that is wrong."""

    @property
    def area(self) -> float:
        """AURC, mean risk over coverages; the share that is wrong if the order tells nothing.

        Source: Geifman et al. (2019), "Bias-Reduced Uncertainty Estimation for Deep Neural
        Classifiers", section 3.
        """
        return float(self.risk.mean()) if len(self.risk) else float("nan")


def risk_coverage(unsure: ArrayLike, wrong: ArrayLike) -> RiskCoverage:
    """The risk at each coverage, where the surest are answered first.

    Of those that are equally sure none comes first: each has the share of them that is wrong,
    which is what is to be expected if they are drawn by lot.

    Args:
        unsure: [row] the higher, the less sure.
        wrong: [row] whether it is wrong.
    """
    unsure, wrong = np.asarray(unsure, np.float64), np.asarray(wrong, np.float64)
    _, tied, counts = np.unique(unsure, return_inverse=True, return_counts=True)
    share = np.bincount(tied, wrong, len(counts)) / np.maximum(counts, 1)
    answered = np.arange(1, len(unsure) + 1)
    return RiskCoverage(
        answered / max(1, len(unsure)), np.cumsum(np.repeat(share, counts)) / answered
    )


def selective_accuracy(unsure: ArrayLike, wrong: ArrayLike, coverage: float = 0.5) -> float:
    """Share that is right of the surest part; of the last that are equally sure, as in a lot.

    Args:
        unsure: [row] the higher, the less sure.
        wrong: [row] whether it is wrong.
        coverage: Size of the part, above 0 and at most 1; at least one row is answered.

    Returns:
        Between 0 and 1; NaN of nothing.
    """
    risk = risk_coverage(unsure, wrong).risk
    if not len(risk):
        return float("nan")
    # A whole number of rows that rounding has left a hair below stays itself.
    return float(1 - risk[max(0, int(np.ceil(coverage * len(risk) - 1e-9)) - 1)])


class Cascade(NamedTuple):
    """What checks one after another cost, the cheapest first, and what they let pass."""

    order: tuple[int, ...]
    """[stage] which check comes first, second …"""

    onward: np.ndarray
    """[stage] β, the share of those that reach a check which it sends on to the next."""

    cost: float
    """Expected cost of an item."""

    answered: float
    """Share of items that some check lets pass."""

    accuracy: float
    """Share of these that is right; NaN of none."""


def cascade(
    unsure: ArrayLike,
    wrong: ArrayLike,
    costs: ArrayLike,
    limits: ArrayLike,
) -> Cascade:
    r"""Checks of rising cost: an item is answered by the first that finds it sure enough.

    .. math:: \mathbb{E}[\text{cost}] = \sum_i c_i \prod_{j<i} \beta_j

    Args:
        unsure: [check, item] the higher, the less sure; NaN is sent on.
        wrong: [item] whether its answer is wrong.
        costs: [check] of asking it of one item, whatever was asked before.
        limits: [check] up to which an item is sure enough.
    """
    unsure, wrong = np.asarray(unsure, np.float64), np.asarray(wrong, bool)
    costs, limits = np.asarray(costs, np.float64), np.asarray(limits, np.float64)
    order = np.argsort(costs, kind="stable")
    left = np.ones(unsure.shape[1], bool)
    onward = np.full(len(order), np.nan)
    for stage, check in enumerate(order):
        reached = left.sum()
        left = left & ~(unsure[check] <= limits[check])
        onward[stage] = left.sum() / reached if reached else np.nan
    passed = ~left
    return Cascade(
        tuple(order.tolist()),
        onward,
        expected_cost(costs[order], onward),
        float(passed.mean()) if len(passed) else float("nan"),
        float(1 - wrong[passed].mean()) if passed.any() else float("nan"),
    )


def expected_cost(
    costs: Sequence[float] | np.ndarray, onward: Sequence[float] | np.ndarray
) -> float:
    r"""Cost of an item by checks in their order, :math:`\sum_i c_i \prod_{j<i} \beta_j`.

    Args:
        costs: [check].
        onward: [check] share of those that reach a check which go on to the next.
    """
    # What nobody reaches costs nothing, whatever share of nobody would go on.
    reached = np.cumprod([1.0, *np.nan_to_num(np.asarray(onward, np.float64))[:-1]])
    return float((np.asarray(costs, np.float64) * reached[: len(costs)]).sum())
