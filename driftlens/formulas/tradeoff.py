"""What steering gains and what it costs, read off curves over the strength r; see `curves`.

What needs no curve stands in `tax`.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from driftlens.errors import DriftlensError

from .curves import LEVEL, ROUNDING, Curve, checked
from .intervals import Interval
from .probing import exceeded

UNEVEN = 2.001
"""How much larger than the gap on the other side of a peak one may be, to be bridged alike."""

# --- derivatives at 0 ---------------------------------------------------------------------


class Derivative(NamedTuple):
    """A derivative of a curve at strength 0, by finite differences."""

    interval: Interval
    """The number and what noise leaves open; bounds are NaN where no errors are known."""

    truncation: float
    """How far the stencil of two more points differs: what the grid leaves open."""

    def agrees(self, closed: float) -> float:
        """Whether a closed form lies within: 1 or 0; NaN where there are no bounds.

        Args:
            closed: The same derivative, from gradients.
        """
        low, high = float(self.interval.low), float(self.interval.high)
        if math.isnan(low + high + closed):
            return math.nan
        return float(low - self.truncation <= closed <= high + self.truncation)


class AtZero(NamedTuple):
    """What a curve does for small strengths."""

    slope: Derivative
    """First derivative, per unit of strength."""

    curvature: Derivative
    """Second derivative, per squared unit of strength."""


def at_zero(curve: Curve, points: int = 3, level: float = LEVEL) -> AtZero:
    r"""Slope and curvature at strength 0 by central differences of the measured curve.

    On a grid with a step of h, three points give :math:`(y_1 - y_{-1}) / 2h` and
    :math:`(y_1 - 2 y_0 + y_{-1}) / h^2`, off by the order of h²; the grid may be uneven.

    Source: Fornberg (1988), "Generation of Finite Difference Formulas on Arbitrarily Spaced
    Grids"; the weights here by solving for them.

    Args:
        curve: With strength 0 and strengths on both sides of it.
        points: 3 or 5: how many the differences are of, half of them on each side.
        level: Share of intervals that hold the truth.

    Raises:
        DriftlensError: There are too few strengths beside 0, or 0 was not measured.
    """
    near, wide = _around(curve, points), _around(curve, points + 2)
    return AtZero(*(_derivative(curve, near, wide, order, level) for order in (1, 2)))


# --- the sweet spot -----------------------------------------------------------------------


@dataclass(frozen=True)
class SweetSpot:
    """Where a behaviour gains most for what it costs; see `sweet_spot`."""

    strength: Interval
    """r*, with its interval; bounds are NaN without draws."""

    gain: float
    """B(r*) − B(0)."""

    loss: float
    """P(0) − P(r*)."""

    objective: float
    """Gain − weight × loss."""

    edge: str
    """`lowest` or `highest` if r* is the grid's end, and more may lie beyond; else empty."""

    at_edge: float
    """Share of draws with r* at an end of the grid; NaN without draws."""


def sweet_spot(
    behaviour: Curve, capability: Curve, weight: float = 1.0, level: float = LEVEL
) -> SweetSpot:
    r"""The strength with the most of gain − λ · loss.

    .. math:: r^* = \arg\max_r \; B(r) - B(0) - \lambda (P(0) - P(r))

    Of curves on a grid, the maximum is that of the parabola through the best strength and its
    neighbours; of equally good strengths the smallest counts, so that it is 0 where steering
    does nothing. Give measured curves, or fits `along` a fine grid where their forms hold.

    Args:
        behaviour: B.
        capability: P, at the same strengths.
        weight: λ, how much behaviour a unit of capability is worth.
        level: Share of draws within the interval.

    Raises:
        DriftlensError: The curves' strengths or draws differ, 0 is not among them, or there are
            fewer than three.
    """
    r, origin = behaviour.strength, behaviour.origin
    if not np.array_equal(r, capability.strength) or len(r) < 3:
        raise DriftlensError(
            "two curves at the same three strengths or more",
            found=f"{len(r)} strengths of behaviour and {len(capability.strength)} of capability",
            remedy="Measure both at every strength.",
        )
    best, place = _peak(r, behaviour.value + weight * capability.value)
    gain, loss = (
        float(_at(r, z.value, place, best) - z.value[origin]) for z in (behaviour, capability)
    )
    edge = {0: "lowest", len(r) - 1: "highest"}.get(int(place), "")
    low = high = at_edge = math.nan
    if behaviour.draws is not None and capability.draws is not None:
        drawn = behaviour.draws, capability.draws
        if len(drawn[0]) != len(drawn[1]):
            raise DriftlensError(
                "as many draws of one curve as of the other",
                found=f"{len(drawn[0])} and {len(drawn[1])}",
                remedy="Resample both with the same rounds.",
            )
        bests, places = _peak(r, drawn[0] + weight * drawn[1])
        low, high = np.quantile(bests, [(1 - level) / 2, (1 + level) / 2])
        at_edge = float(np.isin(places, [0, len(r) - 1]).mean())
    interval = Interval(*(np.asarray(z, np.float64) for z in (best, low, high)))
    return SweetSpot(interval, gain, -loss, gain + weight * loss, edge, at_edge)


def small_sweet_spot(slope: float, curvature: float, weight: float = 1.0) -> float:
    r"""Sweet spot of small strengths, :math:`r^* = k / (2 \lambda q)`, from derivatives at 0.

    Of a gain of k r and a loss of q r² with q = −curvature / 2: no sweep is needed.

    Args:
        slope: k, of the behaviour.
        curvature: Of the capability.
        weight: λ of `sweet_spot`.

    Returns:
        The strength; NaN where the capability does not fall as a square.
    """
    return -slope / (weight * curvature) if curvature < 0 else math.nan


# --- frontier and onset -------------------------------------------------------------------


def band(curves: ArrayLike, level: float = LEVEL) -> Interval:
    r"""Where the curve of one more random direction would lie.

    .. math:: \bar y \pm t_{n-1} \, s \sqrt{1 + 1/n}

    Source: the normal prediction interval of Student's t (Hahn & Meeker, 1991, "Statistical
    Intervals", chapter 4); a handful of directions has no percentiles.

    Args:
        curves: [direction, *] of each random direction.
        level: Share of such directions within the band.

    Returns:
        [*] mean and bounds; NaN of fewer than two directions, or where one is NaN.
    """
    from scipy.special import stdtrit

    curves = np.asarray(curves, np.float64)
    n, mean = len(curves), curves.mean(0)
    if n < 2:
        return Interval(mean, mean * np.nan, mean * np.nan)
    half = stdtrit(n - 1, (1 + level) / 2) * curves.std(0, ddof=1) * math.sqrt(1 + 1 / n)
    return Interval(mean, mean - half, mean + half)


def pareto(behaviour: ArrayLike, capability: ArrayLike) -> np.ndarray:
    """[point] truth: no other point has as much of both and more of one.

    Of noisy points the frontier is flattered, as every best of many is.

    Args:
        behaviour: [point] B.
        capability: [point] P.
    """
    b, p = np.asarray(behaviour, np.float64), np.asarray(capability, np.float64)
    as_good = (b[:, None] >= b) & (p[:, None] >= p)
    return np.asarray(~(as_good & ~as_good.T).any(0))


def reach(behaviour: ArrayLike, capability: ArrayLike, kept: ArrayLike) -> np.ndarray:
    """Most behaviour that keeps a capability.

    Args:
        behaviour: [*, r] B.
        capability: [*, r] P.
        kept: [level] the least capability.

    Returns:
        [*, level] the most B where P is at least that; NaN where it nowhere is.
    """
    b, p = np.asarray(behaviour, np.float64), np.asarray(capability, np.float64)
    kept = np.asarray(kept, np.float64)
    most = np.where(p[..., None, :] >= kept[:, None], b[..., None, :], -np.inf).max(-1)
    return np.where(np.isneginf(most), np.nan, most)


class Frontier(NamedTuple):
    """What can be had of both, from the most capability to the most behaviour."""

    place: np.ndarray
    """[point] which of the strengths each is."""

    behaviour: np.ndarray
    """[point] B."""

    capability: np.ndarray
    """[point] P."""

    control: Interval
    """[point] B that one more random direction would reach with that P; NaN where none does."""

    chance: np.ndarray
    """[point] share of the random directions, this one among them, that reach as much."""


def frontier(
    behaviour: ArrayLike,
    capability: ArrayLike,
    control_behaviour: ArrayLike,
    control_capability: ArrayLike,
    level: float = LEVEL,
) -> Frontier:
    """The points of a curve that no other beats, beside what random directions reach.

    Args:
        behaviour: [r] B along the direction.
        capability: [r] P along it.
        control_behaviour: [direction, r] B along random directions of the same norm.
        control_capability: [direction, r] P along them.
        level: Share of random directions within the band.

    Returns:
        The frontier; points of equal B and P each stand in it.
    """
    b, p = np.asarray(behaviour, np.float64), np.asarray(capability, np.float64)
    place = np.flatnonzero(pareto(b, p))
    place = place[np.lexsort([b[place], -p[place]])]
    controls = reach(control_behaviour, control_capability, p[place])
    chance = np.array([exceeded(x, null) for x, null in zip(b[place], controls.T, strict=True)])
    return Frontier(place, b[place], p[place], band(controls, level), chance)


class Onset(NamedTuple):
    """Where a capability begins to fall by more than its noise."""

    strength: float
    """r of the smallest size at which it has fallen, with its sign; NaN if at none."""

    share: float
    """Its size over the norm of the stream."""

    below: float
    """The same among strengths below 0."""

    above: float
    """The same among strengths above 0."""

    fall: float
    """P(0) − P there."""

    looked: int
    """How many strengths were looked at; the level counts for all of them together."""


def onset(capability: Curve, norm: float, level: float = LEVEL) -> Onset:
    r"""The smallest strength at which capability has fallen beyond what noise would do anywhere.

    A fall counts where :math:`P(0) - P(r) > c \, s(r)`. Of items, s and c are of the resampled
    falls: c is the quantile of :math:`\max_r (d^*_r - d_r) / s_r`. Of independent points c is
    Bonferroni's.

    Source: Efron & Tibshirani (1993), "An Introduction to the Bootstrap", section 12.5, for
    studentised draws; Westfall & Young (1993) for their maximum.

    Args:
        capability: P, with errors.
        norm: Mean norm of the stream that the direction is added to, in units of strength.
        level: How often noise alone gives no onset at any strength.

    Raises:
        DriftlensError: The curve has no errors or no strength 0, or the norm is not above 0.
    """
    if capability.error is None:
        raise DriftlensError(
            "a curve with errors",
            found="one without",
            remedy="Give the errors to `measured`, or the items to `resampled`.",
        )
    if not 0 < norm < math.inf:
        raise DriftlensError(
            "a norm of the stream above 0",
            found=f"{norm:g}",
            remedy="Give the mean norm of the states at the steered layer.",
        )
    origin = capability.origin
    r = np.delete(capability.strength, origin)
    falls = np.delete(capability.value[origin] - capability.value, origin)
    fallen = falls > np.maximum(_noise(capability, origin, falls, level), ROUNDING)
    first = _smallest(r[fallen])
    fall = math.nan if math.isnan(first) else float(falls[r == first][0])
    below, above = (_smallest(r[fallen & side]) for side in (r < 0, r > 0))
    return Onset(first, abs(first) / norm, below, above, fall, len(r))


def expected_onset(curvature: float, noise: float) -> float:
    r"""Strength at which a quadratic loss reaches a noise, :math:`\sqrt{2 s / |P''(0)|}`.

    Args:
        curvature: P''(0) of the capability.
        noise: s, the fall that noise may make.

    Returns:
        The strength; infinite where the curvature is 0, NaN where capability rises.
    """
    if curvature == 0:
        return math.inf
    return math.sqrt(2 * noise / -curvature) if curvature < 0 else math.nan


# --- where to measure next ----------------------------------------------------------------


def next_points(
    strength: ArrayLike, values: ArrayLike, error: ArrayLike | None, limit: int
) -> np.ndarray:
    r"""Strengths to measure next: amid the gaps between neighbours that say least.

    A gap of width h is doubted by how far the curve may bend away from its chord,
    :math:`h^2 |y''| / 8` with what noise makes of the second difference taken off, and by the
    mean error of its ends times its share of the whole range. The most doubted gap is halved,
    and its halves stand for themselves, until there are as many points as may be.

    Source: de Boor (1978), "A Practical Guide to Splines", chapter III, for the chord's error.

    Args:
        strength: [r] measured so far.
        values: [*, r] what was found there; of several curves the most doubtful decides.
        error: [*, r] standard errors, or None.
        limit: The most points.

    Returns:
        [point] new strengths, ascending; none where every curve is flat and sure.

    Raises:
        DriftlensError: There are fewer than three strengths, or a number is not finite.
    """
    strength, values = checked(strength, values)
    if len(strength) < 3:
        raise DriftlensError(
            "three strengths or more to see a curve bend",
            found=str(len(strength)),
            remedy="Measure at both ends and at 0 first.",
        )
    order = np.argsort(strength)
    r, y = strength[order], np.atleast_2d(values)[:, order]
    e = np.zeros_like(y) if error is None else np.atleast_2d(checked(strength, error)[1])[:, order]
    h = np.diff(r)
    bends, unsure = _bends(r, y, e) * h**2 / 8, (e[:, 1:] + e[:, :-1]) / 2 * h / h.sum()
    gaps = list(zip(r[:-1], r[1:], bends.T, unsure.T, strict=True))
    found: list[float] = []
    while len(found) < limit:
        # Of gaps that are doubted alike, the one nearest to 0, then the upper one.
        worst = max(gaps, key=lambda g: (_doubt(g), -round(abs(g[0] + g[1]), 12), g[0] + g[1]))
        low, high, bend, noise = worst
        if _doubt(worst) == 0:
            break
        middle = (low + high) / 2
        found.append(middle)
        # By its place: rows of arrays have no one truth to be compared by.
        del gaps[next(i for i, gap in enumerate(gaps) if gap[0] == low)]
        gaps += [(low, middle, bend / 4, noise / 2), (middle, high, bend / 4, noise / 2)]
    return np.sort(np.array(found, np.float64))


# --- the workings -------------------------------------------------------------------------


def _around(curve: Curve, points: int) -> np.ndarray:
    """Places of strength 0 and of as many strengths on each side of it."""
    origin, side = curve.origin, points // 2
    if points % 2 == 0 or not side <= origin < len(curve.strength) - side:
        raise DriftlensError(
            f"{side} strengths on each side of 0",
            found=f"{origin} below and {len(curve.strength) - origin - 1} above",
            remedy="Measure at more strengths, or ask for fewer points.",
        )
    return np.arange(origin - side, origin + side + 1)


def _stencil(points: np.ndarray, order: int) -> np.ndarray:
    """[point] weights of the values at points that give a derivative at 0."""
    scale = np.abs(points).max()
    powers = np.vander(points / scale, increasing=True).T
    wanted = math.factorial(order) / scale**order * np.eye(len(points))[order]
    return np.linalg.solve(powers, wanted)


def _derivative(
    curve: Curve, near: np.ndarray, wide: np.ndarray, order: int, level: float
) -> Derivative:
    weights = _stencil(curve.strength[near], order)
    found = weights @ curve.value[near]
    other = _stencil(curve.strength[wide], order) @ curve.value[wide]
    low = high = math.nan
    if curve.draws is not None:
        low, high = np.quantile(curve.draws[:, near] @ weights, [(1 - level) / 2, (1 + level) / 2])
    elif curve.error is not None:
        half = NormalDist().inv_cdf((1 + level) / 2) * np.linalg.norm(weights * curve.error[near])
        low, high = found - half, found + half
    return Derivative(Interval(*map(np.asarray, (found, low, high))), float(abs(other - found)))


def _peak(r: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[*] strength of the most of [*, r] values, and the place on the grid nearest to it."""
    # Rounding decides nothing: of equals the smallest strength is first.
    order = np.argsort(np.abs(r), kind="stable")
    place = order[np.argmax(value[..., order].round(12), -1)]
    inner = np.clip(place, 1, len(r) - 2)
    x = [r[inner + k] for k in (-1, 0, 1)]
    around = (np.asarray(inner + k)[..., None] for k in (-1, 0, 1))
    y = [np.take_along_axis(value, some, -1)[..., 0] for some in around]
    first, second = ((y[k + 1] - y[k]) / (x[k + 1] - x[k]) for k in (0, 1))
    bend = (second - first) / (x[2] - x[0])
    peaked = (place == inner) & (bend < -ROUNDING / (x[2] - x[0]) ** 2)
    # Across gaps of different sizes a parabola shoots beyond what it goes through.
    gaps = np.array([x[1] - x[0], x[2] - x[1]])
    peaked &= gaps.max(0) <= UNEVEN * gaps.min(0)
    top = (x[0] + x[1]) / 2 - first / np.where(peaked, 2 * bend, 1.0)
    return np.where(peaked, top, r[place]), place


def _at(r: np.ndarray, value: np.ndarray, place: np.ndarray, at: np.ndarray) -> float:
    """Value at a strength on the parabola through a place and its neighbours."""
    if r[place] == at:
        return float(value[place])
    some = slice(int(place) - 1, int(place) + 2)
    x = r[some]
    parts = [np.delete(x, n) for n in range(3)]
    weights = [np.prod((at - z) / (x[n] - z)) for n, z in enumerate(parts)]
    return float(np.array(weights) @ value[some])


def _noise(capability: Curve, origin: int, falls: np.ndarray, level: float) -> np.ndarray:
    """[r] falls that noise alone exceeds anywhere but 1 − level of the time."""
    if capability.draws is None:
        assert capability.error is not None
        spread = np.hypot(np.delete(capability.error, origin), capability.error[origin])
        return spread * NormalDist().inv_cdf(1 - (1 - level) / len(falls))
    drawn = np.delete(capability.draws[:, [origin]] - capability.draws, origin, axis=1)
    spread = drawn.std(0)
    sure = spread <= ROUNDING
    most = ((drawn - falls) / np.where(sure, np.inf, spread)).max(1)
    return np.where(sure, 0.0, spread) * max(float(np.quantile(most, level)), 0.0)


def _smallest(r: np.ndarray) -> float:
    return float(r[np.argmin(np.abs(r))]) if len(r) else math.nan


def _bends(r: np.ndarray, y: np.ndarray, e: np.ndarray) -> np.ndarray:
    """[curve, gap] size of the second derivative there, less what noise makes of it."""
    h = np.diff(r)
    wide = h[1:] + h[:-1]
    weights = 2 / np.stack([h[:-1] * wide, -h[1:] * h[:-1], h[1:] * wide])
    windows = [np.lib.stride_tricks.sliding_window_view(z, 3, -1) for z in (y, e)]
    bend = np.abs((windows[0] * weights.T).sum(-1))
    bend = np.maximum(bend - np.sqrt(np.square(windows[1] * weights.T).sum(-1)), 0.0)
    # What rounding makes of a straight line is no bend.
    size = (np.abs(windows[0]) * np.abs(weights.T)).sum(-1)
    bend = np.where(bend > ROUNDING * size, bend, 0.0)
    padded = np.pad(bend, ((0, 0), (1, 1)))
    return np.maximum(padded[:, 1:], padded[:, :-1])


def _doubt(gap: tuple[float, float, np.ndarray, np.ndarray]) -> float:
    return round(float((gap[2] + gap[3]).max()), 12)
