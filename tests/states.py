"""States of two classes with a planted direction, and what finds it."""

from functools import partial

import numpy as np
import pytest

from driftlens.estimators.directions import (
    contrast_pca,
    discriminant,
    logistic_normal,
    mean_difference,
    paired_difference,
)

ESTIMATES = {
    "mean_difference": mean_difference,
    "paired_difference": paired_difference,
    "contrast_pca": contrast_pca,
    "shuffled": partial(contrast_pca, shuffle=3),
    "discriminant": discriminant,
    "logistic_normal": logistic_normal,
}

ANY = pytest.mark.parametrize("estimate", ESTIMATES.values(), ids=ESTIMATES)

X = np.random.default_rng(0).normal(size=(12, 5))
"""States of one class, as if from anywhere."""


def planted(norm, *, pairs=60, width=20, topic=1.0, seed=0, place=0.0):
    """States that share their pair's topic, with noise of size 1; classes `norm` apart.

    Returns:
        [pair, width] positive and negative states, and the [width] direction.
    """
    random = np.random.default_rng(seed)
    unit = random.normal(size=width)
    unit /= np.linalg.norm(unit)
    states = random.normal(size=(pairs, 2, width)) + place
    states += topic * random.normal(size=(pairs, 1, width))
    states += np.array([0.5, -0.5])[:, None] * norm * unit
    return states[:, 0], states[:, 1], unit


def rotation(width, seed=9):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def ids(*counts):
    """An id of its own for each of so many positive and negative states."""
    return np.arange(counts[0]), np.arange(counts[0], sum(counts))
