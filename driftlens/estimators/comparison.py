"""Directions of two models beside each other: how alike, how well one serves in the other.

Noise draws found directions apart and makes them longer; `compare` takes it out of cosines and
norms.
"""

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import subspace_angles
from scipy.stats import beta

from driftlens.errors import DriftlensError

from .directions import (
    Estimate,
    Measured,
    _check_finite,
    _same_width,
    mean_difference,
)
from .scores import grouped_folds
from .surety import Classes, _by_group, _measured, _quantiles, _redrawn, _Rows


class Compared(NamedTuple):
    """Differences of means in two models, beside each other."""

    cosine: float
    """Between the vectors as found."""

    norms: np.ndarray
    """[model] their norms as found, base first."""

    norm_ratio: float
    """Aligned over base, as found."""

    noise: np.ndarray
    """[model] share of the squared norm as found that is noise of the means; about 0 is none, and
    1 or more says that nothing was found."""

    true_cosine: Measured
    """The cosine without that noise. By chance it may pass 1."""

    true_norm_ratio: Measured
    """The ratio of norms without it."""


def compare(
    base: Classes,
    aligned: Classes,
    *,
    groups: Classes | None = None,
    seed: int,
    rounds: int = 2000,
    level: float = 0.95,
) -> Compared:
    r"""Which way and how far the classes lie apart in two models, on the same statements.

    Noise draws found vectors apart and makes them longer, and a bootstrap adds as much again: its
    quantiles of the plain cosine can lie below it altogether. Therefore the figures with bounds
    are of products that no group has with itself, which noise leaves as they are on average:

    .. math:: \langle v_b, v_a \rangle = \sum_{s, t = \pm} s t \,
              \frac{\sum_{g \ne g'} \langle S^b_{gs}, S^a_{g't} \rangle}
                   {\sum_{g \ne g'} n_{gs} n_{g't}}

    with S the sum of a group's states of a class and n their number, and likewise for each
    model with itself. In a bootstrap draw a group drawn twice has no product with its double.
    Where a squared norm is not above 0 the figure is NaN; so are its bounds where one is in a
    draw.

    Source: Hoeffding (1948), "A Class of Statistics with Asymptotically Normal Distribution";
    Efron & Tibshirani (1993).

    Args:
        base: [statement, width] positive and negative states of the base model.
        aligned: The same statements' in the aligned model.
        groups: As in `stability`.
        seed: Of the draw.
        rounds: How many draws.
        level: Share of draws within the bounds.
    """
    rows = _both(mean_difference, base, aligned, groups)
    _same_width(*(each.states.shape[1] for each in rows))
    found = [mean_difference(*each.classes) for each in rows]
    norms = np.array([each.norm for each in found])
    drawn = rows[0].group_weights(rounds, np.random.default_rng(seed))
    weights = np.vstack([np.ones(drawn.shape[1]), drawn])
    sums = [_Sums.of(each) for each in rows]
    with np.errstate(divide="ignore", invalid="ignore"):
        pairs = ((sums[0], sums[0]), (sums[0], sums[1]), (sums[1], sums[1]))
        bb, ba, aa = (_products(*each, weights) for each in pairs)
        cosines, ratios = ba / np.sqrt(bb * aa), np.sqrt(aa / bb)
        noise = 1 - np.array([bb[0], aa[0]]) / norms**2
        ratio = float(norms[1] / norms[0])
    for figures in (cosines, ratios):
        figures[(bb <= 0) | (aa <= 0)] = np.nan
    return Compared(
        found[0].cosine(found[1]),
        norms,
        ratio,
        noise,
        _measured(cosines[0], cosines[1:], level),
        _measured(ratios[0], ratios[1:], level),
    )


def principal_angles(one: ArrayLike, other: ArrayLike) -> np.ndarray:
    """[angle] between two subspaces, in radians from the smallest up; as many as the smaller has.

    Source: Knyazev & Argentati (2002), "Principal Angles between Subspaces in an A-Based Scalar
    Product", by scipy.

    Args:
        one: [direction, width] vectors that span the one.
        other: [direction, width] vectors that span the other.
    """
    spans = [np.atleast_2d(np.asarray(z, np.float64)) for z in (one, other)]
    _same_width(spans[0].shape[1], spans[1].shape[1])
    _check_finite(*spans)
    return subspace_angles(spans[0].T, spans[1].T)[::-1]


class Transfer(NamedTuple):
    """How well the direction of one model tells the classes apart in another."""

    accuracy: np.ndarray
    """[learnt, told] share of held-out states named rightly, with the direction of one model and
    the threshold of the other; base first on both axes. ½ by chance."""

    low: np.ndarray
    """[learnt, told] lower bound over groups."""

    high: np.ndarray
    """[learnt, told] upper bound."""

    as_it_is: np.ndarray
    """[learnt, told] the same with the threshold, too, of the model that was learnt from."""


def cross_transfer(
    base: Classes,
    aligned: Classes,
    *,
    estimate: Estimate = mean_difference,
    groups: Classes | None = None,
    seed: int,
    folds: int = 5,
    rounds: int = 2000,
    level: float = 0.95,
) -> Transfer:
    """Accuracy of each model's direction on the states of both, on groups that are held out.

    The threshold is the midpoint between the means of the classes along the direction, each
    class counting alike; it too is learnt without the groups that are judged. A class counts by
    its states.

    Args:
        base: [statement, width] positive and negative states of the base model.
        aligned: The same statements' in the aligned model.
        estimate: What finds the direction.
        groups: As in `stability`; one is never on both sides.
        seed: Of the folds and of the draw.
        folds: How many.
        rounds: How many bootstrap draws.
        level: Share of draws within the bounds.
    """
    rows = _both(estimate, base, aligned, groups)
    _same_width(*(each.states.shape[1] for each in rows))
    truth, places = rows[0].positive, rows[0].places
    fold = _folds(rows[0], seed, folds)
    hits = np.empty((2, 2, 2, len(truth)))
    for held in (fold == number for number in range(folds)):
        learnt = [[each.states[~held & z] for z in (truth, ~truth)] for each in rows]
        for source in range(2):
            unit = estimate(*learnt[source]).unit
            middles = [sum(float((z @ unit).mean()) for z in some) / 2 for some in learnt]
            for target in range(2):
                along = rows[target].states[held] @ unit
                for kind, middle in enumerate((middles[target], middles[source])):
                    margin = np.where(truth[held], 1.0, -1.0) * (along - middle)
                    hits[source, target, kind][held] = np.heaviside(margin, 0.5)
    weights = rows[0].group_weights(rounds, np.random.default_rng(seed))[:, places]
    drawn = hits[:, :, 0] @ weights.T / weights.sum(1)
    low, high = _quantiles(drawn, level)
    accuracy, as_it_is = np.moveaxis(hits.mean(-1), -1, 0)
    return Transfer(accuracy, low, high, as_it_is)


class Along(NamedTuple):
    """How much of a drift goes along a direction."""

    share: Measured
    """Share of the squared length of the drifts that lies along it, over all statements."""

    cosine: float
    """Of the mean drift with the direction: above 0 is towards the positive class."""

    mean_share: float
    """Share of the mean drift's squared norm that lies along it, the cosine's square."""

    chance: float
    """The mean share of directions drawn at random, 1 / width."""

    p_value: float
    """Chance that a direction drawn at random has a share as large as `mean_share`."""


def drift_along(
    drift: ArrayLike,
    unit: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    seed: int,
    rounds: int = 2000,
    level: float = 0.95,
) -> Along:
    r"""Whether the drift from base to aligned goes along a direction.

    .. math:: \frac{\sum_i \langle \Delta_i, \hat v \rangle^2}{\sum_i \|\Delta_i\|^2}

    against 1/d. The squared cosine of a fixed vector with a direction drawn at random is of
    Beta(½, (d − 1)/2), from which the p-value is. It is of use where the direction owes nothing
    to the drift: one found in the base model, or on other statements.

    Args:
        drift: [statement, width] aligned − base.
        unit: [width] the direction, of any length but 0.
        groups: [statement] ids; statements of one id are drawn together.
        seed: Of the draw.
        rounds: How many draws.
        level: Share of draws within the bounds.
    """
    rows = np.atleast_2d(np.asarray(drift, np.float64))
    along = np.asarray(unit, np.float64)
    width = len(along)
    _same_width(rows.shape[1], width)
    _check_finite(rows, along)
    ids = np.arange(len(rows)) if groups is None else np.asarray(groups)
    along = along / np.linalg.norm(along)
    parts = np.stack([np.square(rows @ along), np.square(rows).sum(1)], 1)
    sums = _by_group(parts, np.unique(ids, return_inverse=True)[1])
    weights = _redrawn(np.zeros(len(sums), int), rounds, np.random.default_rng(seed))
    mean = rows.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share, drawn = (z[..., 0] / z[..., 1] for z in (sums.sum(0), weights @ sums))
        cosine = float(mean @ along / np.linalg.norm(mean))
    p_value = float(beta.sf(cosine**2, 0.5, (width - 1) / 2)) if width > 1 else 1.0
    return Along(_measured(share, drawn, level), cosine, cosine**2, 1 / width, p_value)


# What they share


def _both(
    estimate: Estimate, base: Classes, aligned: Classes, groups: Classes | None
) -> tuple[_Rows, _Rows]:
    """The rows of two models, which are of the same statements."""
    rows = _Rows.of(estimate, *base, groups), _Rows.of(estimate, *aligned, groups)
    if not np.array_equal(rows[0].positive, rows[1].positive):
        raise DriftlensError(
            "the same statements in both models",
            found=f"{len(rows[0].positive)} states of the base model and "
            f"{len(rows[1].positive)} of the aligned one, or other roles",
            remedy="Show both models one pack.",
        )
    return rows


class _Sums(NamedTuple):
    """What `compare` needs of a model: sums of states, about their mean, by class and group."""

    states: np.ndarray
    """[class, group, width]."""

    counts: np.ndarray
    """[class, group] of how many."""

    @classmethod
    def of(cls, rows: _Rows) -> Self:
        # About the common mean, which cancels between the classes and would cost digits.
        about = rows.states - rows.states.mean(0)
        one_of = np.stack([rows.positive, ~rows.positive]).astype(float)
        states = [_by_group(about * z[:, None], rows.places) for z in one_of]
        return cls(np.stack(states), _by_group(one_of.T, rows.places).T)


def _products(one: _Sums, other: _Sums, weights: np.ndarray) -> np.ndarray:
    """[round] ⟨v, v'⟩ without any group's product with itself; see `compare`."""
    total = np.zeros(len(weights))
    for s, t in np.ndindex(2, 2):
        gram, n, m = one.states[s] @ other.states[t].T, one.counts[s], other.counts[t]
        apart = ((weights @ gram) * weights).sum(1) - weights**2 @ np.diag(gram)
        many = (weights @ n) * (weights @ m) - weights**2 @ (n * m)
        total += (1 if s == t else -1) * apart / many
    return total


def _folds(rows: _Rows, seed: int, count: int) -> np.ndarray:
    """[row] the fold of each; groups of every kind are dealt out evenly."""
    fold = np.empty(len(rows.places), int)
    for kind in np.unique(rows.kinds):
        mine = rows.kinds[rows.places] == kind
        fold[mine] = grouped_folds(rows.places[mine], seed=seed, count=count)
    return fold
