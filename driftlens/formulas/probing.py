"""Linear probes: what class a state belongs to, judged on states that no probe has learnt from.

A document's twins (the other members of its cluster) are never on the side that a probe learns
from while the document is judged.
"""

from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Self

import numpy as np

FOLDS = 5
"""Parts that the documents are dealt into; each is judged by probes that learnt from the others."""

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Ridges that a probe may have, of states with a mean square length of 1; strongest first."""

ALIKE = 1e-5
"""States whose spread is below this share of their length differ by rounding alone."""


class Discriminants:
    r"""Linear discriminants with a ridge and equal priors.

    A state h is named after the class c with the most

    .. math:: h^\top v_c - \tfrac12 \mu_c^\top v_c, \qquad v_c = (\Sigma + \lambda I)^{-1} \mu_c

    where μ are the means of the classes and Σ the covariance within them, of states that are
    centred and scaled by one number, both learnt with the probe. With one scale for all
    coordinates the probe names the same classes however the states are rotated, shifted or
    scaled, which it would not if each coordinate had its own.

    Many labellings of the same states are learnt at once: with :math:`T + \lambda I` inverted
    once, where T is the covariance about the common mean, :math:`\Sigma = T - M^\top P M` for
    the means M and the shares P of the classes, and so

    .. math:: V = (I - S P)^{-1} M (T + \lambda I)^{-1}, \qquad S = M (T + \lambda I)^{-1} M^\top.

    All of it stays in the span of the states, where T is diagonal. Nothing is searched for, so
    that no number depends on a tolerance.

    Source: Hastie, Tibshirani & Friedman (2009), "The Elements of Statistical Learning", eq. 4.10
    and section 4.3.1; Woodbury's identity.

    Args:
        classes: How many there are.
        strengths: λ of each probe.
    """

    def __init__(self, classes: int, strengths: tuple[float, ...] = STRENGTHS) -> None:
        self.classes, self.strengths = classes, strengths

    def fit(self, states: np.ndarray, labels: np.ndarray) -> Self:
        """Learn from states [document, width] each labelling [labelling, document]."""
        self.mean_ = states.mean(0)
        spread, length = (_length(z) for z in (states - self.mean_, states))
        # States that are all the same are moved to 0, where they say nothing.
        self.scale_ = spread if spread > ALIKE * length else np.inf
        centred = (states - self.mean_) / self.scale_
        variances, self.axes_ = _principal(centred)
        one_of = labels[:, None, :] == np.arange(self.classes)[:, None]
        counts = one_of.sum(-1, keepdims=True)
        means = one_of @ (centred @ self.axes_) / np.maximum(counts, 1)
        shares = counts[:, :, 0] / len(states)
        self.weights_ = np.stack([_weights(means, shares, variances + r) for r in self.strengths])
        # A class that none of the states has is never named.
        absent = np.where(counts[:, :, 0] > 0, 0.0, -np.inf)
        self.offsets_ = absent - (self.weights_ * means).sum(-1) / 2
        return self

    def predict(self, states: np.ndarray, labellings: slice = slice(None)) -> np.ndarray:
        """[labelling, strength, document] the class of each state [document, width]."""
        seen = (states - self.mean_) / self.scale_ @ self.axes_
        weights, offsets = self.weights_[:, labellings], self.offsets_[:, labellings]
        return np.argmax(weights @ seen.T + offsets[..., None], 2).swapaxes(0, 1)


@dataclass(frozen=True)
class Reading:
    """Which held-out documents probes name rightly, at one place of a network."""

    base: np.ndarray
    """[document] base's probe on base's state."""

    transferred: np.ndarray
    """[document] the same probe on aligned's state."""

    retrained: np.ndarray
    """[document] a probe that learnt from aligned's states, on aligned's state."""

    control: np.ndarray
    """[shuffle, document] probes that learnt shuffled classes, on base's state."""

    promise: np.ndarray
    """[fold] balanced accuracy of base's probes within the other folds, times the share of them."""

    control_promise: np.ndarray
    """[shuffle, fold] the same of the control's."""


def read(
    base: np.ndarray,
    aligned: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
    shuffles: np.ndarray | None = None,
) -> Reading:
    """What probes make of the held-out states of both models.

    Every probe's ridge is chosen by one rule, the control's too: for the documents of a fold,
    the strongest of those that do best within the other folds, where each is judged by a probe
    that learnt from the rest of them. The fold itself has no part in it.

    Args:
        base: [document, width] base's states.
        aligned: [document, width] aligned's.
        labels: [document] classes, from 0.
        folds: [document] the part that each document is in, from 0.
        shuffles: [shuffle, document] other classes, for the control.
    """
    every = np.vstack([labels[None], *([] if shuffles is None else [shuffles])])
    found, moved, promise = _held_out(base, aligned, every, folds)
    again = found
    if not np.array_equal(base, aligned):
        again, _, _ = _held_out(aligned, aligned, every[:1], folds)
    return Reading(found[0], moved, again[0], found[1:], promise[0], promise[1:])


def _held_out(
    states: np.ndarray, others: np.ndarray, labels: np.ndarray, folds: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits of probes on held-out states.

    Returns:
        [labelling, document] hits on `states`, [document] the first labelling's on `others`, and
        [labelling, fold] what the probe of each fold promised.
    """
    count, classes = int(folds.max()) + 1, int(labels.max()) + 1
    outer = np.zeros((len(labels), len(STRENGTHS), len(folds)), dtype=bool)
    inner = np.zeros((count, *outer.shape), dtype=bool)
    moved = np.zeros(outer.shape[1:], dtype=bool)
    for a, b in combinations_with_replacement(range(count), 2):
        learnt = (folds != a) & (folds != b)
        probes = Discriminants(classes).fit(states[learnt], labels[:, learnt])
        # What learnt without two folds judges either, to choose for the other.
        for judged, into in ((a, inner[b]), (b, inner[a])) if a != b else ((a, outer),):
            mine = folds == judged
            into[..., mine] = probes.predict(states[mine]) == labels[:, None, mine]
        if a == b:
            first = probes.predict(others[mine], slice(1))[0]
            moved[:, mine] = first == labels[0, mine]
    scores = (inner * balance(labels)[:, None]).sum(-1)
    # Sums of the same weights may differ by rounding; that decides nothing.
    best = np.argmax(scores.round(12), -1).T
    promise = np.max(scores, -1).T
    return taken(outer, best[:, folds]), taken(moved, best[0, folds]), promise


def folds_of(labels: np.ndarray, clusters: np.ndarray, seed: int, count: int = FOLDS) -> np.ndarray:
    """[document] the fold of each; clusters stay whole, and each fold has its share of a class.

    Clusters that hold the same classes are dealt out in an order drawn from the seed, one to a
    fold in turn.

    Args:
        labels: [document] classes, from 0.
        clusters: [document] ids.
        seed: Of the draw.
        count: How many folds.
    """
    order, places = _sorted_clusters(labels, clusters, seed)
    numbers = np.empty(len(order), int)
    numbers[order] = np.arange(len(order)) % count
    return numbers[places]


def some_of(labels: np.ndarray, clusters: np.ndarray, share: float, seed: int) -> np.ndarray:
    """[document] truth: an even sample of the clusters, with its share of each class.

    Args:
        labels: [document] classes, from 0.
        clusters: [document] ids; those of one are taken or left together.
        share: How many of all clusters, between 0 and 1.
        seed: Of the draw.
    """
    order, places = _sorted_clusters(labels, clusters, seed)
    taken = np.empty(len(order), dtype=bool)
    taken[order] = np.diff(np.floor(np.arange(len(order) + 1) * min(share, 1.0))) > 0
    return taken[places]


def shuffled(
    labels: np.ndarray, clusters: np.ndarray, folds: np.ndarray, seed: int, count: int
) -> np.ndarray:
    """[shuffle, document] classes that say nothing of the documents.

    Each cluster is given the classes of another of its fold, in any order. Where clusters are
    of one size, every fold keeps what it holds, so that such classes and the true ones are
    equally likely to be dealt so if the classes have nothing to do with the documents.

    Args:
        labels: [document] true classes.
        clusters: [document] ids.
        folds: [document] the fold of each.
        seed: Of the draw.
        count: How many shuffles.
    """
    random = np.random.default_rng(seed)
    members = [np.flatnonzero(clusters == cluster) for cluster in np.unique(clusters)]
    found = np.tile(labels, (count, 1))
    for row in found:
        for fold in np.unique(folds):
            mine = [some for some in members if folds[some[0]] == fold]
            for some, giver in zip(mine, random.permutation(len(mine)), strict=True):
                row[some] = np.resize(random.permutation(labels[mine[giver]]), len(some))
    return found


def balance(labels: np.ndarray) -> np.ndarray:
    """[*, document] weights that add up to 1, with as much for each class as for any other.

    The weighted share of documents that are named rightly is the balanced accuracy: the mean
    over classes of the share of each that is. Chance is 1 / classes.

    Args:
        labels: [*, document] classes, from 0.
    """
    weights = np.zeros(labels.shape)
    for number in range(int(labels.max(initial=-1)) + 1):
        mine = labels == number
        weights += mine / np.maximum(mine.sum(-1, keepdims=True), 1)
    return weights / weights.sum(-1, keepdims=True)


def taken(hits: np.ndarray, options: np.ndarray) -> np.ndarray:
    """[*, document] of [*, option, document] what each document's option [*, document] gives."""
    return np.take_along_axis(hits, options[..., None, :], -2)[..., 0, :]


def exceeded(found: float, null: np.ndarray) -> float:
    """Share of draws of a null, the finding among them, that reach the finding: its p-value.

    Source: Phipson & Smyth (2010), "Permutation P-values Should Never Be Zero".

    Args:
        found: What was found.
        null: [draw] what is found where there is nothing.
    """
    return float((1 + (null >= found - 1e-12).sum()) / (1 + len(null)))


def exchanged(
    differences: np.ndarray, clusters: np.ndarray, seed: int, rounds: int = 1999
) -> float:
    """Share of random exchanges of two probes, cluster by cluster, that differ as much in sum.

    Args:
        differences: [document] of what the two are given for it, the first − the second.
        clusters: [document] ids; the documents of one are exchanged together.
        seed: Of the draw.
        rounds: How many exchanges.

    Returns:
        p-value of a sum so far above 0; 1 where nothing differs.
    """
    _, places = np.unique(clusters, return_inverse=True)
    sums = np.bincount(places, differences)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (rounds, len(sums)))
    return exceeded(float(sums.sum()), signs @ sums)


def _sorted_clusters(
    labels: np.ndarray, clusters: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """[cluster] numbers, those with the same classes side by side; [document] number of each."""
    ids, places = np.unique(clusters, return_inverse=True)
    held = np.zeros((len(ids), int(labels.max(initial=0)) + 1), int)
    np.add.at(held, (places, labels), 1)
    drawn = np.random.default_rng(seed).permutation(len(ids))
    return np.lexsort([drawn, *held.T]), places


def _principal(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[axis] variance of centred states along their principal axes, and [width, axis] these."""
    small = len(states) < states.shape[1]
    gram = states @ states.T if small else states.T @ states
    squares, vectors = np.linalg.eigh(gram)
    # Where there is nothing but rounding, a ridge leaves nothing to see either.
    kept = squares > 1e-13 * max(squares[-1], 0.0)
    squares, vectors = squares[kept], vectors[:, kept]
    axes = states.T @ vectors / np.sqrt(squares) if small else vectors
    return squares / len(states), axes


def _weights(means: np.ndarray, shares: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """[labelling, class, axis] V of `Discriminants`, of means of that shape."""
    seen = means / variances
    within = np.eye(means.shape[1]) - seen @ means.swapaxes(1, 2) * shares[:, None, :]
    return np.linalg.solve(within, seen)


def _length(states: np.ndarray) -> float:
    """Root mean square length of [document, width] states."""
    return float(np.sqrt(np.square(states).sum(1).mean()))
