"""Strengths of steering with planted curves over them, and whether an interval holds the truth."""

import numpy as np
import scipy.stats

from driftlens.formulas.curves import (
    FULL,
    LINEAR,
    QUADRATIC,
    RESTRICTED,
    TANH,
    measured,
    resampled,
)

BEHAVIOUR = np.arange(-16, 21) / 5
"""The grid on which the authors fit behaviour."""

CAPABILITY = np.arange(-20, 21) / 4
"""And capability."""

STRENGTHS = np.arange(6) - 2.0

TRUTHS = {
    TANH: (0.8, -0.4),
    FULL: (0.6, 0.05),
    RESTRICTED: (0.7, 0.1),
    LINEAR: (0.2, 0.1),
    QUADRATIC: (0.3, 0.1, -0.05),
}


def grid(form):
    return BEHAVIOUR if form is TANH else CAPABILITY


def curve_of(form, theta):
    return form.value(np.array(theta, float), grid(form))


def items_of(curve, random, items=60, shared=0.3, own=0.2, tilt=0.0):
    """Items that differ by a level (and a tilt) of their own, which is no noise between r."""
    levels = random.normal(size=(items, 1)) * shared
    tilts = random.normal(size=(items, 1)) * tilt * np.linspace(-1, 1, len(curve))
    return curve + levels + tilts + random.normal(size=(items, len(curve))) * own


def known(form, theta, how, seed, noise=0.03):
    """A planted curve with errors given, with none, or of items."""
    random, r = np.random.default_rng(seed), grid(form)
    curve = theta if callable(theta) else lambda r: form.value(np.array(theta, float), r)
    if how == "items":
        return resampled(r, items_of(curve(r), random, own=6 * noise), seed=seed, rounds=400)
    noisy = curve(r) + random.normal(size=len(r)) * noise
    return measured(r, noisy, np.full(len(r), noise) if how == "errors" else None)


def six(value=0.0):
    return np.full(6, value)


def covered(interval, truth):
    return float(interval.low) <= truth <= float(interval.high)


def within(hits, runs, nominal=0.95):
    """Whether so many hits are what a nominal rate gives but once in a thousand tables."""
    low, high = scipy.stats.binom.ppf([5e-4, 1 - 5e-4], runs, nominal)
    return low <= hits <= high
