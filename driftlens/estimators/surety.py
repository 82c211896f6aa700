"""How sure a direction is: whether other statements would have found it, and other roles.

A direction that is found has an error like any mean: where the width is large and statements are
few, most of a found vector can be noise. `stability` and `role_null` say how much of it is.
"""

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike

from driftlens.errors import DriftlensError

from .directions import (
    PAIRED,
    Estimate,
    Measured,
    _pairs,
    _states,
    _told,
    mean_difference,
    paired_difference,
)
from .scores import max_t

Classes = tuple[ArrayLike, ArrayLike]
"""Positive states [statement, width] and negative ones; or an id [statement] for each of them."""


class Stability(NamedTuple):
    """How much of a direction comes back from other statements."""

    cosine: Measured
    """Mean cosine of directions of resampled statements with the direction, and its quantiles
    over draws."""

    split_half: Measured
    """Mean cosine between the directions of two halves, and its quantiles over splits."""

    @property
    def to_truth(self) -> float:
        r"""What the halves' cosine c says of the whole's with the direction of endless statements.

        .. math:: \sqrt{2 c / (1 + c)}

        For a difference of means, whose noise is halved in square by twice the statements; 0
        where the halves do not agree.

        Source: Spearman (1910) and Brown (1910), of the correlation with the true score.
        """
        found = max(self.split_half.value, 0.0)
        return float(np.sqrt(2 * found / (1 + found))) if found == found else float("nan")


def stability(
    estimate: Estimate,
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    groups: Classes | None = None,
    seed: int,
    rounds: int = 200,
    level: float = 0.95,
) -> Stability:
    """How far a direction depends on the statements that it was found by.

    Groups are drawn with replacement, then split in halves, those with one class and those with
    both each among themselves. A draw differs from the direction about as the direction differs
    from the truth; two halves differ by four times as much noise, in square, as the whole has
    itself, and owe nothing to each other.

    Source: Efron & Tibshirani (1993), "An Introduction to the Bootstrap".

    Args:
        estimate: What finds the direction.
        positive: [statement, width] states of one class.
        negative: [statement, width] states of the other.
        groups: [statement] an id for each positive and for each negative state; those of one id
            are drawn together. Without it a positive and a negative state in the same place
            are a pair.
        seed: Of the draw.
        rounds: How many draws, and how many splits.
        level: Share of draws within the bounds.
    """
    rows = _Rows.of(estimate, positive, negative, groups)
    random = np.random.default_rng(seed)
    whole = estimate(*rows.classes).unit
    halves = rows.halves(rounds, random)
    some = rows.found(estimate, rows.resampled(rounds, random))
    one, other = (rows.found(estimate, half) for half in (halves, 1 - halves))
    along, between = some.units @ whole, (one.units * other.units).sum(1)
    return Stability(
        _measured(along.mean(), along, level), _measured(between.mean(), between, level)
    )


class RoleNull(NamedTuple):
    """What is found where roles mean nothing."""

    norm: float
    """Norm of the direction that was found."""

    norms: np.ndarray
    """[round] norms after an exchange of roles."""

    cosines: np.ndarray
    """[round] cosines of those directions with the one that was found."""

    p_value: float
    """Share of draws, the finding among them, whose norm reaches the finding's."""


def role_null(
    estimate: Estimate,
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    groups: Classes | None = None,
    seed: int,
    rounds: int = 999,
) -> RoleNull:
    """The norm of directions whose roles are exchanged at random.

    A group that holds both classes exchanges its roles or does not, by the toss of a coin; the
    roles of groups of one class are dealt out anew. If the roles say nothing of the states, no
    draw can be told from the finding. One seed draws the same exchange for every layer, as
    `scores.max_t` asks of a choice among layers.

    Of an estimate that heeds no roles the direction itself is not judged: a `contrast_pca` is the
    same whichever state of a pair comes first, and all that is judged is how far apart the
    classes lie along it.

    Source: Phipson & Smyth (2010), "Permutation P-values Should Never Be Zero".

    Args:
        estimate: What finds the direction.
        positive: [statement, width] states of one class.
        negative: [statement, width] states of the other.
        groups: As in `stability`.
        seed: Of the draw.
        rounds: How many exchanges.
    """
    rows = _Rows.of(estimate, positive, negative, groups)
    whole = estimate(*rows.classes)
    roles = rows.exchanged(rounds, np.random.default_rng(seed))
    null = rows.found(estimate, np.ones(roles.shape, int), roles)
    # In units of the finding, where max_t's tolerance for ties is that of rounding.
    size = whole.norm or 1.0
    p_value = float(max_t([whole.norm / size], null.norms[:, None] / size)[0])
    return RoleNull(whole.norm, null.norms, null.units @ whole.unit, p_value)


# How statements and roles are drawn anew


class _Found(NamedTuple):
    """Directions of many draws."""

    units: np.ndarray
    """[round, width]."""

    norms: np.ndarray
    """[round]."""


class _Rows(NamedTuple):
    """The states of both classes in one array, those in the same place side by side."""

    states: np.ndarray
    """[row, width]."""

    positive: np.ndarray
    """[row] truth."""

    places: np.ndarray
    """[row] number of its group."""

    kinds: np.ndarray
    """[group] 1 of negative states alone, 2 of positive ones, 3 of both."""

    @classmethod
    def of(
        cls,
        estimate: Estimate,
        positive: ArrayLike,
        negative: ArrayLike,
        groups: Classes | None,
    ) -> Self:
        positive, negative = _states(positive, negative)
        if groups is None:
            _pairs(positive, negative, remedy="Say which belong together: groups=(ids, ids).")
            groups = np.arange(len(positive)), np.arange(len(negative))
        ids = [np.asarray(z) for z in groups]
        counts = len(positive), len(negative)
        if tuple(map(len, ids)) != counts:
            raise DriftlensError(
                f"ids of {counts[0]} positive and {counts[1]} negative states",
                found=f"{len(ids[0])} and {len(ids[1])}",
                remedy="Pass groups=(ids of the positive, ids of the negative).",
            )
        if getattr(estimate, "func", estimate) in PAIRED and not np.array_equal(ids[0], ids[1]):
            raise DriftlensError(
                "pairs whose two states are of one group",
                found="groups that differ between the positive and the negative states",
                remedy="Give both states of a pair one id, or take mean_difference.",
            )
        # Side by side, pairs are still pairs after rows are drawn or exchanged.
        order = np.argsort(np.concatenate([np.arange(z) for z in counts]), kind="stable")
        truth = (np.arange(sum(counts)) < counts[0])[order]
        places = np.unique(np.concatenate(ids)[order], return_inverse=True)[1]
        held = _by_group(np.stack([truth, ~truth], 1).astype(float), places) > 0
        kinds = held @ [2, 1]
        return cls(np.vstack([positive, negative])[order], truth, places, kinds)

    @property
    def classes(self) -> tuple[np.ndarray, np.ndarray]:
        """[statement, width] positive and negative states."""
        return self.states[self.positive], self.states[~self.positive]

    def group_weights(self, rounds: int, random: np.random.Generator) -> np.ndarray:
        """[round, group] how often each is drawn."""
        return _redrawn(self.kinds, rounds, random)

    def resampled(self, rounds: int, random: np.random.Generator) -> np.ndarray:
        """[round, row] how often each row is drawn, with its group."""
        return self.group_weights(rounds, random)[:, self.places].astype(int)

    def halves(self, rounds: int, random: np.random.Generator) -> np.ndarray:
        """[round, row] 1 of those in one half, 0 of those in the other."""
        drawn = np.zeros((rounds, len(self.kinds)), int)
        for kind in np.unique(self.kinds):
            mine = np.flatnonzero(self.kinds == kind)
            if len(mine) < 2:
                raise DriftlensError(
                    "two groups of a kind at least, one for each half",
                    found="1",
                    remedy="Use more statements.",
                )
            half = np.tile(np.arange(len(mine)) % 2, (rounds, 1))
            drawn[:, mine] = random.permuted(half, axis=1)
        return drawn[:, self.places]

    def exchanged(self, rounds: int, random: np.random.Generator) -> np.ndarray:
        """[round, row] which rows are called positive."""
        turned = random.random((rounds, len(self.kinds))) < 0.5
        called = self.positive ^ turned[:, self.places]
        alone = np.flatnonzero(self.kinds < 3)
        if len(alone):
            dealt = random.permuted(np.tile(self.kinds[alone] == 2, (rounds, 1)), axis=1)
            roles = np.zeros_like(turned)
            roles[:, alone] = dealt
            called = np.where(self.kinds[self.places] < 3, roles[:, self.places], called)
        return called

    def found(
        self, estimate: Estimate, weights: np.ndarray, roles: np.ndarray | None = None
    ) -> _Found:
        """Directions of rows taken so and so often, [round, row], in their own roles or others."""
        roles = np.broadcast_to(self.positive if roles is None else roles, weights.shape)
        if estimate in (mean_difference, paired_difference):
            # All draws in two products.
            up, down = (weights * z.astype(np.float64) for z in (roles, ~roles))
            raw = _told(_averages(up, self.states) - _averages(down, self.states), self.states)
            norms = np.linalg.norm(raw, axis=1)
            with np.errstate(invalid="ignore"):
                return _Found(raw / norms[:, None], norms)
        every = []
        for weight, role in zip(weights, roles, strict=True):
            rows = np.repeat(np.arange(len(weight)), weight)
            every.append(estimate(*(self.states[rows[z]] for z in (role[rows], ~role[rows]))))
        return _Found(np.stack([z.unit for z in every]), np.array([z.norm for z in every]))


def _averages(weights: np.ndarray, states: np.ndarray) -> np.ndarray:
    """[round, width] weighted means of rows."""
    return weights @ states / weights.sum(1)[:, None]


def _redrawn(kinds: np.ndarray, rounds: int, random: np.random.Generator) -> np.ndarray:
    """[round, group] how often each is drawn, with replacement, among those of its kind.

    NaN of a group that is alone in its kind, and so without an error that could be seen.
    """
    weights = np.zeros((rounds, len(kinds)))
    for kind in np.unique(kinds):
        mine = np.flatnonzero(kinds == kind)
        if len(mine) < 2:
            weights[:, mine] = np.nan
            continue
        drawn = random.integers(len(mine), size=(rounds, len(mine)))
        np.add.at(weights, (np.arange(rounds)[:, None], mine[drawn]), 1.0)
    return weights


def _by_group(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """[group, *] sums of values [row, *]."""
    order = np.argsort(places, kind="stable")
    starts = np.flatnonzero(np.diff(places[order], prepend=-1))
    return np.add.reduceat(values[order], starts, 0)


def _measured(value: Any, draws: np.ndarray, level: float) -> Measured:
    return Measured(float(value), *map(float, _quantiles(draws, level)))


def _quantiles(draws: np.ndarray, level: float) -> np.ndarray:
    """[bound, *] of draws [*, round]."""
    tail = (1 - level) / 2
    return np.quantile(draws, [tail, 1 - tail], axis=-1)
