r"""Curves over the strength r of an added direction, and the forms that a theory gives them.

A behaviour B(r), between −1 and 1, is said to follow :math:`\tanh(a r + b_0)`, and a capability
P(r) to fall as a square, :math:`1 / (1 + a + a b^2 r^2 / 2)`. Whether they do is asked in `fits`;
what is read off a curve stands in `tradeoff`.

Source of both forms: Wolf et al. (2024), "Tradeoffs Between Alignment and Helpfulness in Language
Models with Steering Methods".
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from driftlens.errors import DriftlensError

from . import intervals
from .intervals import by_cluster

LEVEL = 0.95
"""Share of intervals that hold the truth."""

ROUNDING = 1e-12
"""Of behaviour or capability, what rounding leaves."""


# --- curves -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """What was measured at each strength, and how sure it is; see `measured`, `resampled`."""

    strength: np.ndarray
    """[r] strengths, ascending, each once."""

    value: np.ndarray
    """[r] behaviour or capability."""

    error: np.ndarray | None = None
    """[r] standard errors; None where nothing is known of them."""

    draws: np.ndarray | None = None
    """[draw, r] the curve of resampled items; None if the points are independent."""

    @property
    def origin(self) -> int:
        """Place of strength 0.

        Raises:
            DriftlensError: It was not measured.
        """
        places = np.flatnonzero(self.strength == 0)
        if not len(places):
            raise DriftlensError(
                "a curve measured at strength 0",
                found=f"strengths from {self.strength[0]:g} to {self.strength[-1]:g} without it",
                remedy="Measure the model unsteered too.",
            )
        return int(places[0])


def measured(strength: ArrayLike, value: ArrayLike, error: ArrayLike | None = None) -> Curve:
    """The curve of points whose errors are independent of each other, or unknown.

    Args:
        strength: [r] in any order.
        value: [r] behaviour or capability.
        error: [r] standard errors.

    Raises:
        DriftlensError: A number is not finite, a strength is there twice, lengths differ, or an
            error is below 0.
    """
    strength, value = checked(strength, value)
    order = np.argsort(strength)
    if error is None:
        return Curve(strength[order], value[order])
    _, error = checked(strength, error)
    if (error < 0).any():
        raise DriftlensError(
            "standard errors of 0 or more",
            found=f"{error.min():g}",
            remedy="Give the standard error of each point.",
        )
    return Curve(strength[order], value[order], error[order])


def resampled(
    strength: ArrayLike,
    items: ArrayLike,
    *,
    seed: int,
    rounds: int = 2000,
    clusters: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Curve:
    """The mean over items of what each did at each strength.

    An item is drawn as one over all strengths, so that what items have in common at two
    strengths is no noise between them. Two calls with one seed and the same items are paired.

    Args:
        strength: [r] in any order.
        items: [item, r] behaviour or capability of each item.
        seed: Of the draw.
        rounds: Number of draws.
        clusters: [item] ids; items that share one are drawn together.
        weights: [item] how much each counts, such as its number of tokens.

    Raises:
        DriftlensError: As `measured`, or there are fewer than two items or clusters.
    """
    strength, items = checked(strength, items)
    if items.ndim != 2:
        raise DriftlensError(
            "items of [item, r]",
            found=f"an array of {items.ndim} axes",
            remedy="Give one row for each item, or take `measured` for a curve alone.",
        )
    order = np.argsort(strength)
    counts = np.ones(len(items)) if weights is None else np.asarray(weights, np.float64)
    sums = items[:, order] * counts[:, None]
    if clusters is not None:
        sums, counts = by_cluster(sums, clusters), by_cluster(counts, clusters)
    if len(sums) < 2:
        raise DriftlensError(
            "two items or more to resample",
            found=str(len(sums)),
            remedy="Give more items, or clusters that are smaller.",
        )
    drawn = intervals.resampled(len(sums), rounds, seed)
    draws = np.concatenate([w @ sums / (w @ counts)[:, None] for w in drawn])
    return Curve(strength[order], sums.sum(0) / counts.sum(), draws.std(0), draws)


# --- forms --------------------------------------------------------------------------------


class Form(ABC):
    """A family of curves over r; its functions take parameters [*, parameter] and give [*, r]."""

    name: str
    """What it is called."""

    parameters: tuple[str, ...]
    """Names of what `reported` gives."""

    effect: int
    """Which of the reported parameters is 0 if the strength does nothing."""

    powers: tuple[int, ...]
    """[parameter] the power of 1 / r that each is measured in."""

    low: tuple[float, ...]
    """[parameter] least value of each."""

    @abstractmethod
    def value(self, theta: np.ndarray, r: np.ndarray) -> np.ndarray:
        """[*, r] the curve."""

    @abstractmethod
    def slope(self, theta: np.ndarray, r: np.ndarray) -> np.ndarray:
        """[*, r] its first derivative in r."""

    @abstractmethod
    def curvature(self, theta: np.ndarray, r: np.ndarray) -> np.ndarray:
        """[*, r] its second derivative in r."""

    @abstractmethod
    def starts(self, r: np.ndarray, value: np.ndarray) -> np.ndarray:
        """[start, parameter] where a search may begin, of strengths between −1 and 1."""

    def reported(self, theta: np.ndarray) -> np.ndarray:
        """[*, parameter] smooth functions of the parameters that `shown` makes readable."""
        return theta

    def shown(self, reported: np.ndarray) -> np.ndarray:
        """[*, parameter] what is told; each rises with what it is made of, as bounds must."""
        return reported


class Tanh(Form):
    r"""A behaviour that saturates, :math:`B(r) = \tanh(a r + b_0)`.

    Source: Wolf et al. (2024), the behaviour expectation's bound, as their code fits it.
    """

    name = "tanh"
    parameters = ("a", "b0")
    effect = 0
    powers = (1, 0)
    low = (-np.inf, -np.inf)

    def value(self, theta: np.ndarray, r: np.ndarray) -> np.ndarray:
        """[*, r] tanh(a r + b₀)."""
        a, b = _each(theta)
        return np.tanh(a * r + b)

    def slope(self, theta: np.ndarray, r: np.ndarray) -> np.ndarray:
        """[*, r] a (1 − B²)."""
        a, _ = _each(theta)
        return a * (1 - self.value(theta, r) ** 2)

    def curvature(self, theta: np.ndarray, r: np.ndarray) -> np.ndarray:
        """[*, r] −2 a² B (1 − B²)."""
        a, _ = _each(theta)
        return -2 * a * self.value(theta, r) * self.slope(theta, r)

    def starts(self, r: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Lines through the inverse of the form, cut off at several heights, and flat ones."""
        lines = [np.polyfit(r, np.arctanh(np.clip(value, -h, h)), 1) for h in (0.6, 0.9, 0.99)]
        # A step between two strengths looks flat to a line: begin there too, and steep.
        middle = r[np.argmin(np.abs(value))]
        steep = [(s * k, -s * k * middle) for k in (3.0, 10.0) for s in (-1, 1)]
        return np.array([*lines, *steep])


class Rational(Form):
    r"""A capability that falls as a square, :math:`f + \frac{s}{1 + a + a b^2 r^2 / 2}`.

    Among all tokens the floor f is 0 and the span s is 1 (`FULL`); among four answers the
    authors take a floor of a quarter and a span of a half (`RESTRICTED`), which leaves no room
    for more than 3/4 right unsteered. a and b are 0 or more; the search is for a and
    :math:`q = a b^2 / 2`.

    Source: Wolf et al. (2024), the helpfulness bound, as their code fits it (their plots show
    b / 2.5 in place of b; here b is what was fitted).

    Args:
        floor: f, what guessing gives.
        span: s, the most that there is above it.
    """

    parameters = ("a", "b")
    effect = 1
    powers = (0, 2)
    low = (0.0, 0.0)

    def __init__(self, floor: float = 0.0, span: float = 1.0) -> None:
        if not (span > 0 and 0 <= floor <= floor + span <= 1):
            raise DriftlensError(
                "a floor and a span above 0 that stay within 0 and 1",
                found=f"a floor of {floor:g} and a span of {span:g}",
                remedy="Take FULL among all tokens or RESTRICTED among four answers.",
            )
        self.floor, self.span = floor, span
        self.name = f"rational from {floor + span:g} to {floor:g}"

    def value(self, theta: np.ndarray, r: np.ndarray) -> np.ndarray:
        """[*, r] f + s / D with D = 1 + a + q r²."""
        return self.floor + self.span / self._divisor(theta, r)

    def slope(self, theta: np.ndarray, r: np.ndarray) -> np.ndarray:
        """[*, r] −2 s q r / D²."""
        _, q = _each(theta)
        return -2 * self.span * q * r / self._divisor(theta, r) ** 2

    def curvature(self, theta: np.ndarray, r: np.ndarray) -> np.ndarray:
        """[*, r] −2 s q / D² + 8 s q² r² / D³; at 0 of all tokens −P (1 − P) b²."""
        _, q = _each(theta)
        divisor = self._divisor(theta, r)
        return 2 * self.span * q * (4 * q * r**2 - divisor) / divisor**3

    def starts(self, r: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Lines in r² through the inverse of the form, and the authors' start."""
        lines = []
        for least in (0.02, 0.2):
            divisor = self.span / np.maximum(value - self.floor, least * self.span)
            q, a = np.polyfit(r**2, divisor - 1, 1)
            lines.append((max(a, 1e-3), max(q, 1e-3)))
        return np.array([*lines, (1.0, 0.5), (1.0, 30.0)])

    def reported(self, theta: np.ndarray) -> np.ndarray:
        """[*, parameter] a and b² = 2 q / a."""
        a, q = theta[..., 0], theta[..., 1]
        # Without a the form never falls short of its most: b is not defined.
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.stack([a, 2 * q / a], -1)

    def shown(self, reported: np.ndarray) -> np.ndarray:
        """[*, parameter] a and b."""
        a, square = np.maximum(reported[..., 0], 0.0), np.maximum(reported[..., 1], 0.0)
        return np.stack([a, np.sqrt(square)], -1)

    def _divisor(self, theta: np.ndarray, r: np.ndarray) -> np.ndarray:
        a, q = _each(theta)
        return 1 + a + q * r**2


class Polynomial(Form):
    """A plain form, c₀ + c₁ r + …, to hold the others against."""

    effect = 1

    def __init__(self, degree: int) -> None:
        self.name = {1: "linear", 2: "quadratic"}.get(degree, f"of degree {degree}")
        self.powers = tuple(range(degree + 1))
        self.parameters = tuple(f"c{k}" for k in self.powers)
        self.low = (-np.inf,) * (degree + 1)

    def value(self, theta: np.ndarray, r: np.ndarray) -> np.ndarray:
        """[*, r] Σ c_k r^k."""
        return self._derived(theta, r, 0)

    def slope(self, theta: np.ndarray, r: np.ndarray) -> np.ndarray:
        """[*, r] Σ k c_k r^(k−1)."""
        return self._derived(theta, r, 1)

    def curvature(self, theta: np.ndarray, r: np.ndarray) -> np.ndarray:
        """[*, r] Σ k (k − 1) c_k r^(k−2)."""
        return self._derived(theta, r, 2)

    def starts(self, r: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Anywhere, since one step settles it."""
        return np.zeros((1, len(self.powers)))

    def _derived(self, theta: np.ndarray, r: np.ndarray, times: int) -> np.ndarray:
        terms = (
            math.perm(k, times) * c * r ** (k - times)
            for k, c in enumerate(_each(theta))
            if k >= times
        )
        return sum(terms, np.zeros_like(theta[..., :1] * r))


TANH = Tanh()
"""The behaviour's form."""

FULL = Rational()
"""The capability's form where all tokens may be answered."""

RESTRICTED = Rational(0.25, 0.5)
"""The capability's form where one of four answers must be."""

LINEAR, QUADRATIC = Polynomial(1), Polynomial(2)


# --- the workings -------------------------------------------------------------------------


def checked(strength: ArrayLike, value: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Strengths and values that can be made a curve of.

    Args:
        strength: [r] in any order.
        value: [*, r] whatever was measured there.

    Returns:
        Both as float64.

    Raises:
        DriftlensError: A number is not finite, a strength is there twice, or lengths differ.
    """
    r, y = np.asarray(strength, np.float64), np.asarray(value, np.float64)
    if r.ndim != 1 or not len(r) or y.shape[-1:] != r.shape:
        raise DriftlensError(
            "a value for each strength",
            found=f"strengths {r.shape} and values {y.shape}",
            remedy="Give arrays whose last axis is the strength.",
        )
    bad = ~(np.isfinite(r) & np.isfinite(y).reshape(-1, len(r)).all(0))
    if bad.any():
        raise DriftlensError(
            "finite numbers at every strength",
            found=f"others at strength {r[bad][0]:g}",
            remedy="End the curve before the strength at which the model breaks down.",
        )
    if len(np.unique(r)) < len(r):
        raise DriftlensError(
            "each strength once",
            found=f"{len(r) - len(np.unique(r))} more than once",
            remedy="Take the mean of what was measured twice.",
        )
    return r, y


def _each(theta: np.ndarray) -> list[np.ndarray]:
    """Parameters [*, parameter], each as [*, 1]."""
    return [theta[..., k, None] for k in range(theta.shape[-1])]
