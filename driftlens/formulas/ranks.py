"""Whether two lists of numbers put things in the same order."""

from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike


def ranks(values: ArrayLike) -> np.ndarray:
    """[row] rank of each value, from 1; equal values share the mean of theirs.

    Args:
        values: [row] finite numbers.
    """
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    r"""Spearman's rank correlation: Pearson's :math:`r` of the two lists' ranks.

    Source: Kendall & Gibbons (1990), "Rank Correlation Methods", sections 1.14 and 3.8 (ties).

    Args:
        x: [row] numbers.
        y: [row] numbers.

    Returns:
        Between −1 and 1; NaN of fewer than two rows, where all of one list is equal, or where
        a number is NaN.
    """
    both = np.array([x, y], np.float64)
    if np.isnan(both).any() or both.shape[1] < 2:
        return float("nan")
    apart = np.array([ranks(side) for side in both]) - (both.shape[1] + 1) / 2
    spread = np.square(apart).sum(1).prod()
    return float((apart[0] * apart[1]).sum() / np.sqrt(spread)) if spread else float("nan")


def spearman_bounds(rho: float, n: int, level: float = 0.95) -> tuple[float, float]:
    r"""Bounds of Spearman's :math:`\rho` over so many independent rows.

    .. math:: \tanh\left(\operatorname{artanh}\rho \pm z \sqrt{\frac{1 + \rho^2 / 2}{n - 3}}\right)

    Source: Bonett & Wright (2000), "Sample size requirements for estimating Pearson, Kendall and
    Spearman correlations", eq. 3 and table 1.

    Args:
        rho: The correlation.
        n: Number of rows.
        level: Share of intervals that hold the true correlation.

    Returns:
        Both NaN of fewer than four rows, or where the correlation is NaN; `rho` where it is ±1.
    """
    if n < 4 or np.isnan(rho):
        return float("nan"), float("nan")
    if abs(rho) >= 1:
        return rho, rho
    half = NormalDist().inv_cdf((1 + level) / 2) * np.sqrt((1 + rho**2 / 2) / (n - 3))
    middle = np.arctanh(rho)
    return float(np.tanh(middle - half)), float(np.tanh(middle + half))
