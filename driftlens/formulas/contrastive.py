"""How much nearer states of one kind lie to each other than to those of the other kind."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Margin(NamedTuple):
    """Similarity within kinds and between them."""

    within: np.ndarray
    """[*] mean cosine of two states of one kind, between −1 and 1."""

    between: np.ndarray
    """[*] mean cosine of two states of different kinds."""

    loss: np.ndarray
    """[*] contrastive loss of the pairs of one kind, at least 0, in nats."""

    @property
    def margin(self) -> np.ndarray:
        """[*] within − between, between −2 and 2; 0 where kinds mean nothing."""
        return self.within - self.between


def cosines(states: ArrayLike) -> np.ndarray:
    """[state, state] cosines; NaN of a state that is 0.

    Args:
        states: [state, width].
    """
    states = np.asarray(states, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        units = states / np.linalg.norm(states, axis=1, keepdims=True)
    return np.clip(units @ units.T, -1.0, 1.0)


def margin(
    cosine: ArrayLike,
    kinds: ArrayLike,
    clusters: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Margin:
    r"""Similarity margin between two kinds of states, and their contrastive loss.

    .. math:: L = -\frac{1}{|P|} \sum_{(i,j) \in P} \log s_{ij}, \quad
        s_{ij} = \frac{1 + \cos(r_i, r_j)}{2}

    P are the pairs of one kind. States of one cluster, as the two texts of a twin, are no pair:
    what they share is their wording. The loss is that of "Paying Alignment Tax with Contrastive
    Learning" (arXiv 2505.19327) at weight 1, with cosines brought to (0, 1] so that the logarithm
    is defined.

    Args:
        cosine: [state, state] cosines.
        kinds: [state] which kind each is of.
        clusters: [state] ids; None is one for each.
        weights: [*, state] how often each counts, as in draws of a bootstrap; None is once.

    Returns:
        [*] of each; NaN where there is no such pair.
    """
    cosine, kinds = np.asarray(cosine, np.float64), np.asarray(kinds)
    clusters = np.arange(len(kinds)) if clusters is None else np.asarray(clusters)
    weights = np.ones(len(kinds)) if weights is None else np.asarray(weights, np.float64)
    apart = clusters[:, None] != clusters[None, :]
    alike = kinds[:, None] == kinds[None, :]
    with np.errstate(divide="ignore"):
        losses = -np.log((1 + cosine) / 2)

    def mean(values: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        # Where a pair is none, its value may be undefined.
        total = ((weights @ np.where(pairs, values, 0.0)) * weights).sum(-1)
        count = ((weights @ pairs.astype(np.float64)) * weights).sum(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return total / count

    within = apart & alike
    return Margin(mean(cosine, within), mean(cosine, apart & ~alike), mean(losses, within))
