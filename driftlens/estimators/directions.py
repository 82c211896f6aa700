"""Directions between two classes of states: which way they lead, and how far.

Arrays of one layer come in, positive before negative, [statement, width] each; of pairs
[pair, 2, width] they are ``pairs[:, 0]`` and ``pairs[:, 1]``. All is computed in float64.

How sure a direction is stands in `surety`; two models' beside each other, in `comparison`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import eigh
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.linear_model import LogisticRegression

from driftlens.errors import DriftlensError

from .scores import in_order

ROUNDING = 1e-14
"""The part of the largest number of the states below which a difference of means is none."""


class Measured(NamedTuple):
    """A number and the bounds it lies between."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Direction:
    """Which way, and how far, the positive class lies from the negative one."""

    unit: np.ndarray
    """[width] the direction, of length 1; NaN where the classes do not differ."""

    gap: float
    """How far the mean of the positive states lies along `unit` from that of the negative ones,
    in the states' own unit. Below 0 only where most pairs point against their mean."""

    lengths: np.ndarray
    """[class] mean length of the positive and of the negative states."""

    spread: float
    """Standard deviation of states within their class along `unit`; NaN of a stream."""

    method: str
    """The estimator's name."""

    orientation: str
    """What the sign was settled by: "means" of the classes, or the "majority" of pairs."""

    details: Mapping[str, float] = field(default_factory=dict)
    """What else it was found by, such as the shrinkage of a covariance."""

    @property
    def norm(self) -> float:
        """Length of `vector`."""
        return abs(self.gap)

    @property
    def vector(self) -> np.ndarray:
        """[width] the step along `unit` from one class's mean to the other's.

        For a difference of means it is that difference. Other estimators' own lengths are
        arbitrary (1 of a principal component, an inverse unit of a discriminant), and this is
        what is added in their place (Du et al. 2025).
        """
        return self.gap * self.unit if self.gap else np.zeros_like(self.unit)

    @property
    def relative(self) -> float:
        """`norm` over the mean length of a state, both classes counting alike; NaN of zeros."""
        length = float(self.lengths.mean())
        return self.norm / length if length else float("nan")

    @property
    def separation(self) -> float:
        """`gap` over `spread`, of the states that the direction was found by."""
        return self.gap / self.spread if self.spread else float("nan")

    def cosine(self, other: "Direction") -> float:
        """Cosine with another direction of the same width."""
        _same_width(len(self.unit), len(other.unit))
        return float(self.unit @ other.unit)


Estimate = Callable[[np.ndarray, np.ndarray], Direction]
"""What finds a direction from positive and negative states."""


# Estimators


def mean_difference(positive: ArrayLike, negative: ArrayLike) -> Direction:
    r"""The difference of means, :math:`v = \mu_+ - \mu_-`.

    Source: Arditi et al. (2024), "Refusal in Language Models Is Mediated by a Single Direction",
    section 2.3.

    Args:
        positive: [statement, width] states of one class.
        negative: [statement, width] states of the other, as many or not.

    Raises:
        DriftlensError: Of no states, of two widths, or of states that are not finite.
    """
    positive, negative = _states(positive, negative)
    raw = _told(positive.mean(0) - negative.mean(0), positive, negative)
    return _direction(raw, positive, negative, "mean_difference")


def paired_difference(positive: ArrayLike, negative: ArrayLike) -> Direction:
    """The mean difference within pairs, as contrastive activation addition takes it.

    It is the difference of means of the same states; what sets the method apart is that they
    are those at the answer's token, which the caller has found.

    Source: Rimsky et al. (2024), "Steering Llama 2 via Contrastive Activation Addition",
    section 3.

    Args:
        positive: [pair, width] states of one class.
        negative: [pair, width] the twin of each.
    """
    positive, negative = _pairs(positive, negative)
    raw = _told((positive - negative).mean(0), positive, negative)
    return _direction(raw, positive, negative, "paired_difference")


def contrast_pca(
    positive: ArrayLike, negative: ArrayLike, *, shuffle: int | None = None
) -> Direction:
    r"""The top principal component of differences within pairs, towards most positive states.

    **The trap.** Differences that all lead from negative to positive have the direction as their
    *mean*: centring them, as principal components are wont to, takes away the very signal and
    leaves the noise. So they are not centred, which is to centre differences together with
    their negatives,

    .. math:: \hat v = \arg\max_{\|u\| = 1} \sum_i \langle h_i^+ - h_i^-, u \rangle^2,

    and the same whichever state of a pair comes first. With `shuffle`, each pair is turned round
    at random first and the differences *are* centred, as published: then little of the signal
    is in their mean, but which little depends on the draw.

    Source: Zou et al. (2023), "Representation Engineering", section 3.1.

    Args:
        positive: [pair, width] states of one class.
        negative: [pair, width] the twin of each.
        shuffle: Seed of the published form; None for the form without centring.
    """
    positive, negative = _pairs(positive, negative)
    differences = positive - negative
    rows = differences
    if shuffle is not None:
        signs = np.random.default_rng(shuffle).choice([-1.0, 1.0], len(rows))
        rows = signs[:, None] * rows
        rows = rows - rows.mean(0)
    top = _components(rows, 1)[0]
    leads = differences @ top
    # By the largest lead, so that a tie among pairs alone is left to the sum of leads.
    most = np.abs(leads).max()
    sign = -1.0 if most > 0 and in_order(leads / most).sum() < 0 else 1.0
    how = "contrast_pca" if shuffle is None else "contrast_pca_shuffled"
    return _direction(sign * top, positive, negative, how, orientation="majority")


def contrast_subspace(positive: ArrayLike, negative: ArrayLike, count: int) -> np.ndarray:
    """[count, width] the top components of `contrast_pca`, of length 1 and at right angles.

    Args:
        positive: [pair, width] states of one class.
        negative: [pair, width] the twin of each.
        count: How many; at most the rank of the differences.
    """
    positive, negative = _pairs(positive, negative)
    return _components(positive - negative, count)


def discriminant(
    positive: ArrayLike, negative: ArrayLike, *, shrinkage: float | None = None
) -> Direction:
    r"""Fisher's discriminant: the difference of means, whitened by the covariance within classes.

    .. math:: v \propto \Sigma^{-1} (\mu_+ - \mu_-), \qquad
              \Sigma = (1 - \alpha) S + \alpha \frac{\operatorname{tr} S}{d} I

    where S is the covariance about the class means. The target is round, so that the direction
    turns with the states; scikit-learn's own ``shrinkage="auto"`` scales each coordinate first,
    and does not. α is among the direction's `details`.

    Source: Ledoit & Wolf (2004), "A Well-Conditioned Estimator for Large-Dimensional Covariance
    Matrices", for α.

    Args:
        positive: [statement, width] states of one class.
        negative: [statement, width] states of the other.
        shrinkage: α, from 0 to 1; Ledoit and Wolf's if left out.

    Raises:
        DriftlensError: States that do not vary within their class; or, where α is 0, that do not
            vary in every direction.
    """
    positive, negative = _states(positive, negative)
    delta = positive.mean(0) - negative.mean(0)
    within = np.vstack([z - z.mean(0) for z in (positive, negative)])
    variance = float(np.square(within).mean())
    if not variance:
        raise DriftlensError(
            "states that vary within their class",
            found=f"{len(positive)} and {len(negative)} that do not",
            remedy="Use more statements, or mean_difference.",
        )
    if shrinkage is None:
        shrinkage = float(ledoit_wolf_shrinkage(within, assume_centered=True))
    deep = shrinkage > 0 or np.linalg.matrix_rank(within) == within.shape[1]
    if not 0 <= shrinkage <= 1 or not deep:
        raise DriftlensError(
            "a shrinkage from 0 to 1, above 0 for a covariance of less than full rank",
            found=f"{shrinkage:g} with {len(within)} states of width {within.shape[1]}",
            remedy="Leave it out.",
        )
    raw = _whitened(delta, within, shrinkage, shrinkage * variance)
    return _direction(raw, positive, negative, "discriminant", shrinkage=shrinkage)


def logistic_normal(
    positive: ArrayLike, negative: ArrayLike, *, C: float = 1.0, max_iter: int = 1000
) -> Direction:
    """The normal of the plane that logistic regression puts between the classes.

    States are centred and divided by one number, the root mean square of their coordinates, so
    that the ridge means the same in every layer and the normal turns with the states.

    Args:
        positive: [statement, width] states of one class.
        negative: [statement, width] states of the other.
        C: Inverse strength of the ridge; see scikit-learn's `LogisticRegression`.
        max_iter: Of its descent.
    """
    positive, negative = _states(positive, negative)
    rows = np.vstack([positive, negative])
    rows = rows - rows.mean(0)
    size = np.sqrt(np.square(rows).mean())
    labels = np.arange(len(rows)) < len(positive)
    probe = LogisticRegression(C=C, max_iter=max_iter).fit(rows / (size or 1.0), labels)
    return _direction(probe.coef_[0], positive, negative, "logistic_normal", C=C)


PAIRED: tuple[Callable[..., Direction], ...] = (paired_difference, contrast_pca)
"""Estimators that need the twin of every state."""


class ClassMeans:
    """Means of the states of two classes over a stream, in float64, of all layers at once.

    Sums are kept, so that merging is addition. Sums of 16-bit states are exact as long as the
    sizes of a coordinate differ by less than a factor of about 2³⁰; of others, they are exact
    but for float64's rounding.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(2, np.int64)
        """[class] positive and negative states seen."""
        self.sums = np.zeros(())
        """[class, *, width] their sums; [] before any."""
        self.lengths = np.zeros(())
        """[class, *] the sums of their lengths; [] before any."""

    def update(self, states: ArrayLike, positive: ArrayLike) -> Self:
        """Take in some states.

        Args:
            states: [statement, *, width].
            positive: [statement] truth: whether each is of the positive class.

        Raises:
            DriftlensError: A state is not finite, or a label is missing.
        """
        states, truth = np.asarray(states, np.float64), np.asarray(positive)
        if truth.dtype != bool or truth.shape != states.shape[:1]:
            raise DriftlensError(
                f"a truth value for each of {len(states)} states",
                found=f"{truth.dtype} of shape {truth.shape}",
                remedy="Pass positive=[statement] booleans.",
            )
        _check_finite(states)
        lengths = np.linalg.norm(states, axis=-1)
        self.counts = self.counts + np.array([truth.sum(), (~truth).sum()])
        self.sums = self.sums + np.stack([states[truth].sum(0), states[~truth].sum(0)])
        self.lengths = self.lengths + np.stack([lengths[truth].sum(0), lengths[~truth].sum(0)])
        return self

    def merge(self, other: "ClassMeans") -> Self:
        """Add another part's sums; `other` is left as it is."""
        self.counts = self.counts + other.counts
        self.sums = self.sums + other.sums
        self.lengths = self.lengths + other.lengths
        return self

    def empty(self) -> "ClassMeans":
        """Means of nothing."""
        return ClassMeans()

    def state(self) -> dict[str, np.ndarray]:
        """`counts`, `sums` and `lengths`."""
        return {name: value.copy() for name, value in vars(self).items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> Self:
        """Take up what `state` gave."""
        self.counts, self.sums, self.lengths = (
            np.array(state[name]) for name in ("counts", "sums", "lengths")
        )
        return self

    def direction(self, *place: int) -> Direction:
        """The difference of means.

        Args:
            place: Where along the axes before the width, such as the layer.

        Raises:
            DriftlensError: A class was never seen.
        """
        if not self.counts.all():
            raise DriftlensError(
                "states of both classes",
                found=f"{self.counts[0]} positive and {self.counts[1]} negative ones",
                remedy="Show some statements of each role.",
            )
        sums, lengths = (np.stack([z[place] for z in both]) for both in (self.sums, self.lengths))
        raw = sums[0] / self.counts[0] - sums[1] / self.counts[1]
        norm = float(np.linalg.norm(raw))
        return Direction(
            unit=raw / norm if norm else np.full_like(raw, np.nan),
            gap=norm,
            lengths=lengths / self.counts,
            spread=float("nan"),
            method="mean_difference",
            orientation="means",
        )


# Which direction to take


class Selection(NamedTuple):
    """The direction that was chosen, and why the others were not."""

    position: int | None
    """Its place on the first axis of the scores; None where every direction was discarded."""

    layer: int | None
    """Its layer; None likewise."""

    reasons: np.ndarray
    """[position, layer] why each was discarded, reasons joined by "; "; "" of those kept."""

    @property
    def kept(self) -> np.ndarray:
        """[position, layer] which directions were left to choose from."""
        return self.reasons == ""


def select_direction(
    bypass: ArrayLike,
    induce: ArrayLike,
    kl: ArrayLike,
    *,
    induce_least: float = 0.0,
    kl_most: float = 0.1,
    depth: float = 0.8,
) -> Selection:
    """The direction whose ablation takes refusal away best, among those that pass three tests.

    Kept are directions that bring refusal about when added (`induce` of at least
    `induce_least`), that change little else when ablated (`kl` of at most `kl_most`), and that
    lie below `depth` of the blocks. Of these the one of the least `bypass` is taken, the first
    of equals. It holds of any behaviour that has such scores.

    Source: Arditi et al. (2024), "Refusal in Language Models Is Mediated by a Single Direction",
    appendix C.

    Args:
        bypass: [position, layer] log-odds of refusing what is harmful, direction ablated.
        induce: [position, layer] log-odds of refusing what is harmless, direction added.
        kl: [position, layer] mean KL in nats of the next token on what is harmless, direction
            ablated.
        induce_least: Least `induce`.
        kl_most: Largest `kl`.
        depth: Share of the blocks, from the bottom, that may be chosen from; their number is
            rounded down.

    Raises:
        DriftlensError: Scores that are not [position, layer], or not of one shape.
    """
    scores = [np.asarray(z, np.float64) for z in (bypass, induce, kl)]
    if any(z.ndim != 2 or z.shape != scores[0].shape for z in scores):
        raise DriftlensError(
            "three scores of one shape [position, layer]",
            found=" and ".join(str(z.shape) for z in scores),
            remedy="Score every direction by all three criteria.",
        )
    refusing, inducing, changing = scores
    below = int(scores[0].shape[1] * depth)
    layers = np.broadcast_to(np.arange(scores[0].shape[1]), scores[0].shape)
    failed = {
        "a score is NaN": np.isnan(scores).any(0),
        f"layer is not below {below}": layers >= below,
        f"KL is over {kl_most:g}": changing > kl_most,
        f"induces less than {induce_least:g}": inducing < induce_least,
    }
    reasons = np.full(scores[0].shape, "", object)
    for reason, where in failed.items():
        for place in zip(*np.nonzero(where), strict=True):
            reasons[place] = "; ".join(filter(None, [reasons[place], reason]))
    kept = reasons == ""
    if not kept.any():
        return Selection(None, None, reasons)
    best = np.argmin(np.where(kept, refusing, np.inf))
    # Where nothing that is kept is finite, the least is not among what is kept.
    best = best if kept.flat[best] else np.argmax(kept)
    position, layer = np.unravel_index(best, kept.shape)
    return Selection(int(position), int(layer), reasons)


# What all of it shares


def _told(difference: np.ndarray, *states: np.ndarray) -> np.ndarray:
    """[*, width] differences of means; zeros where rounding alone makes one."""
    largest = max(abs(some).max() for some in states)
    return np.where(abs(difference).max(-1, keepdims=True) > ROUNDING * largest, difference, 0.0)


def _direction(
    raw: np.ndarray,
    positive: np.ndarray,
    negative: np.ndarray,
    method: str,
    orientation: str = "means",
    **details: float,
) -> Direction:
    lengths = np.array([np.linalg.norm(z, axis=1).mean() for z in (positive, negative)])
    size = np.linalg.norm(raw)
    unit = raw / size if size else np.full_like(raw, np.nan)
    along = [z @ unit for z in (positive, negative)]
    within = np.concatenate([z - z.mean() for z in along])
    free = len(within) - 2
    return Direction(
        unit=unit,
        gap=float((positive.mean(0) - negative.mean(0)) @ unit) if size else 0.0,
        lengths=lengths,
        spread=float(np.sqrt(np.square(within).sum() / free)) if free else float("nan"),
        method=method,
        orientation=orientation,
        details=details,
    )


def _components(rows: np.ndarray, count: int) -> np.ndarray:
    """[count, width] the first right singular vectors of rows [row, width]."""
    least = min(rows.shape)
    small = len(rows) < rows.shape[1]
    gram = rows @ rows.T if small else rows.T @ rows
    if not 1 <= count <= least:
        raise DriftlensError(
            f"between 1 and {least} components", found=str(count), remedy="Ask for fewer."
        )
    values, vectors = eigh(gram, subset_by_index=[least - count, least - 1])
    values, vectors = values[::-1], vectors[:, ::-1].T
    if values[0] <= 0:
        return np.zeros((count, rows.shape[1]))
    if values[-1] <= 1e-13 * values[0]:
        raise DriftlensError(
            f"differences of rank {count} at least",
            found=f"a component of {values[-1] / values[0]:.0e} of the first one's square",
            remedy="Ask for fewer components.",
        )
    return vectors @ rows / np.sqrt(values)[:, None] if small else vectors


def _whitened(delta: np.ndarray, within: np.ndarray, shrinkage: float, ridge: float) -> np.ndarray:
    """[width] Σ⁻¹δ for Σ of `discriminant`; through [row, row] where these are fewer."""
    rows = within * np.sqrt((1 - shrinkage) / len(within))
    if len(rows) >= rows.shape[1]:
        return np.linalg.solve(rows.T @ rows + ridge * np.eye(rows.shape[1]), delta)
    # Woodbury's identity.
    inner = np.linalg.solve(rows @ rows.T + ridge * np.eye(len(rows)), rows @ delta)
    return (delta - rows.T @ inner) / ridge


def _states(positive: ArrayLike, negative: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    one, other = (np.asarray(z, np.float64) for z in (positive, negative))
    if one.ndim != 2 or other.ndim != 2 or not len(one) or not len(other):
        raise DriftlensError(
            "states [statement, width] of both classes",
            found=f"shapes {one.shape} and {other.shape}",
            remedy="Give at least one positive and one negative state of one layer.",
        )
    _same_width(one.shape[1], other.shape[1])
    _check_finite(one, other)
    return one, other


def _pairs(
    positive: ArrayLike,
    negative: ArrayLike,
    remedy: str = "Leave out pairs with a state missing, or take mean_difference.",
) -> tuple[np.ndarray, np.ndarray]:
    one, other = _states(positive, negative)
    if len(one) != len(other):
        raise DriftlensError(
            "a negative state for every positive one",
            found=f"{len(one)} positive and {len(other)} negative ones",
            remedy=remedy,
        )
    return one, other


def _same_width(one: int, other: int) -> None:
    if one != other:
        raise DriftlensError(
            "vectors of one width",
            found=f"{one} and {other}",
            remedy="Compare directions of one layer in models of one architecture.",
        )


def _check_finite(*arrays: np.ndarray) -> None:
    for array in arrays:
        wrong = np.argwhere(~np.isfinite(array))
        if len(wrong):
            raise DriftlensError(
                "finite states",
                found=f"{array[tuple(wrong[0])]} at {tuple(wrong[0].tolist())} "
                f"({len(wrong)} such in all)",
                remedy="Leave that row out, or run the model in a wider dtype.",
            )
