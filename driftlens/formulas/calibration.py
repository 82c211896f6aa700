"""How far what a model is sure of is what comes true: bins, scores and what would repair them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .divergence import LOG2_E
from .intervals import Interval

BINS = 15
"""Bins of equal width, as is usual since Guo et al. (2017)."""

BETAS = (0.0, *(2.0**n for n in range(-4, 3)))
"""Inverse temperatures at which losses are read: 0, and 1/16 to 4, each twice the one before."""

SURE = 1 - 2.0**-24
"""The surest that float32 can tell from 1."""


# What is binned


def binned(confidence: ArrayLike, bins: int = BINS) -> np.ndarray:
    """[row] number of the bin of equal width that each confidence lies in, its upper end included.

    Args:
        confidence: [row] between 0 and 1.
        bins: How many.
    """
    edges = np.linspace(0, 1, bins + 1)
    return np.searchsorted(edges[1:-1], np.asarray(confidence))


def summed(confidence: ArrayLike, hit: ArrayLike, bin: np.ndarray, bins: int = BINS) -> np.ndarray:
    """[bin, 3] count, sum of confidence and sum of hits of the rows in each bin.

    Args:
        confidence: [row] between 0 and 1.
        hit: [row] whether it came true; ½ of a tie.
        bin: [row] number of its bin.
        bins: How many.
    """
    weights = (None, np.asarray(confidence, np.float64), np.asarray(hit, np.float64))
    return np.stack([np.bincount(bin, z, bins) for z in weights], 1).astype(np.float64)


def equal_mass(confidence: ArrayLike, hit: ArrayLike, bins: int = BINS) -> np.ndarray:
    """[bin, 3] as `summed`, in bins of as many rows each, as near as may be.

    Rows of one confidence share their hits, so that their order does not matter. Of fewer rows
    than bins, as many bins as rows.
    """
    totals = _totals(*_in_order(confidence, hit))
    return _cut(totals, min(bins, totals.shape[1] - 1))


def monotonic_sweep(confidence: ArrayLike, hit: ArrayLike) -> np.ndarray:
    """[bin, 3] as `equal_mass`, in as many bins as keep accuracy from falling with confidence.

    Bins are added one by one until it falls somewhere for the first time.

    Source: Roelofs, Cain, Shlens & Mozer (2022), "Mitigating Bias in Calibration Error
    Estimation", algorithm 1.
    """
    totals = _totals(*_in_order(confidence, hit))
    rows = totals.shape[1] - 1
    if (np.diff(totals[2], 2) >= -1e-9).all():
        # Hits that never fall from row to row never fall from bin to bin.
        return _cut(totals, rows)
    for bins in range(2, rows + 1):
        count, _, hits = _cut(totals, bins).T
        # Cross-multiplied: means of equal hits must not differ by rounding.
        if (hits[1:] * count[:-1] < hits[:-1] * count[1:] - 1e-9).any():
            return _cut(totals, bins - 1)
    return _cut(totals, rows)


def _in_order(confidence: ArrayLike, hit: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both in the order of confidence, rows of one confidence with their mean hit."""
    levels, place = np.unique(np.asarray(confidence, np.float64), return_inverse=True)
    count = np.bincount(place, minlength=len(levels))
    hits = np.bincount(place, np.asarray(hit, np.float64), len(levels))
    with np.errstate(invalid="ignore"):
        return np.repeat(levels, count), np.repeat(hits / count, count)


def _totals(confidence: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """[3, row + 1] count, confidence and hits of the first rows."""
    each = np.stack([np.ones_like(hit), confidence, hit])
    return np.concatenate([np.zeros((3, 1)), each.cumsum(1)], 1)


def _cut(totals: np.ndarray, bins: int) -> np.ndarray:
    """[bin, 3] sums of bins of equal mass."""
    ends = np.linspace(0, totals.shape[1] - 1, bins + 1).round().astype(int)
    return np.diff(totals[:, ends if bins else [0]], axis=1).T


# What bins tell


class Reliability(NamedTuple):
    """What came true of what was held likely, by bin; NaN in an empty one."""

    confidence: np.ndarray
    """[*, bin] mean confidence."""

    accuracy: np.ndarray
    """[*, bin] mean of hits."""

    size: np.ndarray
    """[*, bin] how many rows."""


def reliability(sums: np.ndarray) -> Reliability:
    """The reliability table of [*, bin, 3] sums."""
    count = sums[..., 0]
    with np.errstate(invalid="ignore"):
        return Reliability(sums[..., 1] / count, sums[..., 2] / count, count)


def ece(sums: np.ndarray) -> np.ndarray:
    r"""Expected calibration error :math:`\sum_b \frac{n_b}{n} |\text{acc}_b - \text{conf}_b|`.

    Source: Naeini, Cooper & Hauskrecht (2015), "Obtaining Well Calibrated Probabilities Using
    Bayesian Binning"; Guo et al. (2017), "On Calibration of Modern Neural Networks", eq. 3.

    Args:
        sums: [*, bin, 3] as `summed` gives them.

    Returns:
        [*] between 0 and 1; NaN of nothing.
    """
    with np.errstate(invalid="ignore"):
        return np.abs(sums[..., 2] - sums[..., 1]).sum(-1) / sums[..., 0].sum(-1)


def chance_ece(sums: np.ndarray) -> np.ndarray:
    r"""The ECE that a perfectly calibrated model is to be expected to show, of as many rows.

    Hits of a calibrated bin of n rows are binomial with its mean confidence p, whose mean
    absolute deviation is, with :math:`m = \lfloor np \rfloor + 1`,

    .. math:: E|X - np| = 2 m \binom{n}{m} p^m (1 - p)^{n - m + 1}

    It is exact where the confidences of a bin are equal. `ece` less this has the mean 0 for a
    calibrated model. Noise adds the less to a distance from 0 the larger the distance is, so that
    of any other model this takes off too much: what its bins are truly off by lies, on average,
    between `ece` less this and `ece`.

    Source: de Moivre (1730), by Diaconis & Zabell (1991), "Closed Form Summation for Classical
    Distributions", eq. 1.1; the comparison with a calibrated model is that of Bröcker & Smith
    (2007), "Increasing the Reliability of Reliability Diagrams".

    Args:
        sums: [*, bin, 3] as `summed` gives them; what is counted may be weighted.

    Returns:
        [*] between 0 and 1; NaN of nothing.
    """
    from scipy.special import gammaln, xlog1py, xlogy

    n, total = sums[..., 0], sums[..., 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.clip(total / n, 0, 1)
        # At p = 1 the formula asks for a term that is not there, and nothing deviates.
        m = np.minimum(np.floor(n * p) + 1, n)
        ways = gammaln(n + 1) - gammaln(m + 1) - gammaln(n - m + 1)
        deviation = 2 * m * np.exp(ways + xlogy(m, p) + xlog1py(n - m + 1, -p))
        return np.where(n > 0, deviation, 0).sum(-1) / n.sum(-1)


def multiclass_brier(shares: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    r"""Brier score of choices: squared distance of what is given from what is right.

    Wanted answers count as one: :math:`(1 - \sum_{k \in W} p_k)^2 + \sum_{k \notin W} p_k^2`.

    Source: Brier (1950), "Verification of Forecasts Expressed in Terms of Probability", eq. 2.

    Args:
        shares: [item, choice] probabilities that add up to 1.
        wanted: [item, choice] truth.

    Returns:
        [item] between 0 and 2.
    """
    missed = 1 - np.where(wanted, shares, 0).sum(-1)
    return missed**2 + np.square(np.where(wanted, 0, shares)).sum(-1)


# What would repair a model


@torch.no_grad()
def tempered(logits: Tensor, target: Tensor, betas: Sequence[float] = BETAS) -> Tensor:
    r"""Loss at inverse temperatures β, with its first two derivatives by β.

    .. math:: L(\beta) = \ln \sum_i e^{\beta z_i} - \beta z_g, \qquad
              L' = E_\beta[z] - z_g, \qquad L'' = \mathrm{Var}_\beta[z] \ge 0

    Args:
        logits: [row, vocab].
        target: [row] gold ids.
        betas: Inverse temperatures.

    Returns:
        [row, beta, 3] loss in nats and its derivatives, float64 on the CPU. NaN where a logit is
        not finite.
    """
    rows = max(1, 2**18 // logits.shape[-1])
    parts = [
        _tempered(*some, betas) for some in zip(logits.split(rows), target.split(rows), strict=True)
    ]
    none = torch.zeros(0, len(betas), 3, dtype=torch.float64)
    return torch.cat([none, *(part.double().cpu() for part in parts)])


def _tempered(logits: Tensor, target: Tensor, betas: Sequence[float]) -> Tensor:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    below = logits - logits.amax(-1, keepdim=True)
    gold = below.gather(-1, target[:, None])[:, 0]
    weight, squares, found = torch.empty_like(below), below.square(), []
    before = 0.0
    for beta in betas:
        if before and beta == 2 * before:
            # A square takes a fraction of the time of an exponential.
            weight.mul_(weight)
        else:
            torch.mul(below, beta * LOG2_E, out=weight).exp2_()
        before = beta
        total = weight.sum(-1)
        mean = torch.linalg.vecdot(weight, below) / total
        square = torch.linalg.vecdot(weight, squares) / total
        spread = (square - mean**2).clamp_min(0)
        found.append(torch.stack([total.log() - beta * gold, mean - gold, spread], -1))
    return torch.stack(found, 1)


def tempered_choices(
    logits: np.ndarray, signs: np.ndarray, betas: Sequence[float] = BETAS
) -> np.ndarray:
    r"""The same of choices, of which those with a sign above 0 are wanted.

    .. math:: L(\beta) = \ln \sum_k e^{\beta z_k} - \ln \sum_{k \in W} e^{\beta z_k}

    Args:
        logits: [item, choice] logits, or logarithms of probabilities.
        signs: [item, choice] 1 of those that are wanted, −1 of others, 0 where there is none.
        betas: Inverse temperatures.

    Returns:
        [item, beta, 3] loss in nats and its derivatives by β.
    """
    found = []
    for beta in betas:
        every, wanted = (_moments(logits, mask, beta) for mask in (signs != 0, signs > 0))
        found.append(np.stack([a - b for a, b in zip(every, wanted, strict=True)], -1))
    return np.stack(found, 1)


def _moments(z: np.ndarray, mask: np.ndarray, beta: float) -> tuple[np.ndarray, ...]:
    """Logarithm of Σ exp(βz) over what is not masked, with its first two derivatives by β."""
    top = np.where(mask, z, -np.inf).max(-1, keepdims=True)
    below = np.where(mask, z - top, 0)
    weight = np.where(mask, np.exp(beta * below), 0)
    total = weight.sum(-1)
    mean = (weight * below).sum(-1) / total
    spread = (weight * (below - mean[..., None]) ** 2).sum(-1) / total
    return np.log(total) + beta * top[..., 0], mean + top[..., 0], spread


def best_beta(sums: np.ndarray, betas: Sequence[float] = BETAS) -> np.ndarray:
    r"""The inverse temperature β ≥ 0 at which a summed loss is least: 1 / T*.

    The loss is convex in β, so that its slope rises through 0 once at most. Between two of the
    given β the slope is the cubic that has its values and slopes there (Hermite). Beyond them
    nothing is known.

    Source: temperature scaling, Guo et al. (2017), eq. 9.

    Args:
        sums: [*, beta, 3] as `tempered` gives them, summed over rows.
        betas: Inverse temperatures, ascending from 0.

    Returns:
        [*] β; 0 where even the uniform distribution is no worse, infinite where the loss falls
        beyond the last of the given β, and NaN where the loss hangs on no temperature.
    """
    grid, slope, bend = np.asarray(betas), sums[..., 1], sums[..., 2]
    rising = slope >= 0
    upper = np.clip(rising.argmax(-1), 1, len(grid) - 1)[..., None]
    g0, g1, h0, h1 = (
        np.take_along_axis(z, at, -1)[..., 0] for z in (slope, bend) for at in (upper - 1, upper)
    )
    start, step = grid[upper[..., 0] - 1], np.diff(grid)[upper[..., 0] - 1]
    low, high = np.zeros_like(g0), np.ones_like(g0)
    for _ in range(53):
        t = (low + high) / 2
        value = (
            (2 * t**3 - 3 * t**2 + 1) * g0
            + (t**3 - 2 * t**2 + t) * step * h0
            + (3 * t**2 - 2 * t**3) * g1
            + (t**3 - t**2) * step * h1
        )
        below = value < 0
        low, high = np.where(below, t, low), np.where(below, high, t)
    found = np.where(rising.any(-1), start + step * high, np.inf)
    found = np.where(rising[..., 0], 0.0, found)
    unknown = np.isnan(slope).any(-1) | ((slope == 0) & (bend == 0)).all(-1)
    return np.where(unknown, np.nan, found)


def temperature(beta: ArrayLike) -> np.ndarray:
    """[*] temperatures of inverse ones: infinite of 0, and NaN of what lies beyond the grid."""
    beta = np.asarray(beta, np.float64)
    with np.errstate(divide="ignore"):
        return np.where(np.isinf(beta), np.nan, 1 / beta)


def platt(
    confidence: ArrayLike, hit: ArrayLike, clusters: ArrayLike, level: float = 0.95
) -> Interval:
    r"""Scale a and bias b with which :math:`\sigma(a \ln\frac{c}{1 - c} + b)` fits what came true.

    (1, 0) needs no repair; a scale below 1 says that the model is too sure. Newton's method on
    the cross entropy; bounds are Wald's, with a covariance that lets the rows of a cluster agree.

    Source: Platt (1999), "Probabilistic Outputs for Support Vector Machines", without its prior;
    Liang & Zeger (1986), "Longitudinal data analysis using generalized linear models", for the
    covariance.

    Args:
        confidence: [row] between 0 and 1; what rounds to 1 counts as the surest below it.
        hit: [row] whether it came true; ½ of a tie.
        clusters: [row] ids of what is drawn together.
        level: Share of intervals that hold the truth.

    Returns:
        [2] scale and bias, with bounds; NaN where no finite pair is best, as of rows that some
        confidence divides into hits and misses.
    """
    from scipy.special import expit, logit
    from scipy.stats import norm

    confidence, hit = np.asarray(confidence, np.float64), np.asarray(hit, np.float64)
    x = logit(np.clip(confidence, 1 - SURE, SURE))
    design = np.stack([x, np.ones_like(x)], 1)
    unknown = np.full(2, np.nan)
    if len(x) < 2 or not np.ptp(x) or _divided(x, hit):
        return Interval(unknown, unknown, unknown)
    theta = np.array([1.0, 0.0])

    def loss(theta: np.ndarray) -> float:
        z = design @ theta
        return float((np.logaddexp(0, z) - hit * z).sum())

    for _ in range(100):
        p = expit(design @ theta)
        bread = (design * (p * (1 - p))[:, None]).T @ design
        step = np.linalg.lstsq(bread, design.T @ (hit - p), rcond=None)[0]
        while loss(theta + step) > loss(theta) + 1e-12 and np.abs(step).max() > 1e-12:
            step = step / 2
        theta = theta + step
        if np.abs(step).max() < 1e-10 * (1 + np.abs(theta).max()):
            break
    else:
        return Interval(unknown, unknown, unknown)
    p = expit(design @ theta)
    bread = np.linalg.pinv((design * (p * (1 - p))[:, None]).T @ design)
    ids, place = np.unique(np.asarray(clusters), return_inverse=True)
    scores = np.zeros((len(ids), 2))
    np.add.at(scores, place, design * (hit - p)[:, None])
    error = np.sqrt(np.diag(bread @ (scores.T @ scores) @ bread))
    half = norm.ppf((1 + level) / 2) * (error if len(ids) > 1 else np.nan)
    return Interval(theta, theta - half, theta + half)


def _divided(x: np.ndarray, hit: np.ndarray) -> bool:
    """Whether some place of x has all hits on one side and all misses on the other."""
    hits, misses = x[hit > 0], x[hit < 1]
    if not len(hits) or not len(misses):
        return True
    return bool(misses.max() <= hits.min() or hits.max() <= misses.min())
