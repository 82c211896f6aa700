"""How far a model's choice of the next token was shifted by alignment."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

CLASSES = ("unshifted", "marginal", "shifted")
"""What a token can be, by its rank in base."""

MARGINAL, SHIFTED = 1, 3
"""The first rank of either class; a rank of 0 is base's own first choice."""


def classes(ranks: ArrayLike) -> np.ndarray:
    """Number, among `CLASSES`, of tokens that the aligned model says, by their rank in base.

    Unshifted is rank 0, marginal 1 and 2, shifted 3 and more. Ranks count the ids that are
    strictly likelier, so that a tie for the first place is unshifted.

    Source: Lin et al. (2024), "The Unlocking Spell on Base LLMs", whose ranks count from 1.

    Args:
        ranks: [*] ranks from 0; −1 of a token that base does not have, which is shifted.
    """
    ranks = np.asarray(ranks)
    return np.where(ranks < 0, len(CLASSES) - 1, np.digitize(ranks, (MARGINAL, SHIFTED)))


def within_first(values: ArrayLike, order: ArrayLike, firsts: Sequence[int]) -> np.ndarray:
    """[row, first] values of the rows that stand among the first so many, 0 of the others.

    Their sums over those of all rows are the shares that fall on the first positions.

    Args:
        values: [row] what is shared out.
        order: [row] place of each, from 0.
        firsts: Numbers of first places.
    """
    early = np.asarray(order)[:, None] < np.asarray(firsts)
    return np.where(early, np.asarray(values, np.float64)[:, None], 0.0)


@torch.no_grad()
def kl_topk_intersection(
    base: Tensor, aligned: Tensor, k: int = 30, *, renormalised: bool = True
) -> Tensor:
    r"""What the published code calls KL(base ‖ aligned): a sum over part of the vocabulary.

    .. math:: \sum_{i \in T_b \cap T_a} p_b(i) \log \frac{p_b(i)}{p_a(i)}

    :math:`T` are a model's k likeliest ids, and p its probabilities renormalised over its own.
    A part of a divergence is none: it may be negative, and it does not see what only one of the
    models holds likely. It is here to reproduce; the exact one is in `divergence`.

    Source: Lin et al. (2024), code of the token distribution shift analysis.

    Args:
        base: [*, vocab] logits of base.
        aligned: [*, vocab] logits of aligned.
        k: Ids kept of either; all of a smaller vocabulary.
        renormalised: Whether probabilities are those among the ids kept, or among all.

    Returns:
        [*] nats, of either sign; 0 where the two have no id in common.
    """
    both = _in_top(base, k) & _in_top(aligned, k)
    log_p, log_q = (_log_softmax(z, k if renormalised else None) for z in (base, aligned))
    terms = log_p.exp() * (log_p - log_q)
    return terms.where(both, 0.0).sum(-1)


@torch.no_grad()
def jaccard_at(base: Tensor, aligned: Tensor, k: int = 10) -> Tensor:
    r"""[*] ids among the k likeliest of both models over those of either, between 0 and 1.

    Args:
        base: [*, vocab] logits of base.
        aligned: [*, vocab] logits of aligned.
        k: Ids kept of either; all of a smaller vocabulary.
    """
    ours, theirs = _in_top(base, k), _in_top(aligned, k)
    return (ours & theirs).sum(-1) / (ours | theirs).sum(-1)


@torch.no_grad()
def overlap(base: Tensor, aligned: Tensor) -> Tensor:
    r"""[*] :math:`\sum_i p_b(i) p_a(i)`: how often one draw from each gives the same id.

    Args:
        base: [*, vocab] logits of base.
        aligned: [*, vocab] logits of aligned.
    """
    return (_log_softmax(base).exp() * _log_softmax(aligned).exp()).sum(-1)


def _in_top(logits: Tensor, k: int) -> Tensor:
    """[*, vocab] whether each id is among the k likeliest."""
    found = torch.zeros_like(logits, dtype=torch.bool)
    return found.scatter_(-1, logits.topk(min(k, logits.shape[-1])).indices, True)


def _log_softmax(logits: Tensor, k: int | None = None) -> Tensor:
    """[*, vocab] log-probabilities, among the k likeliest if that is asked."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    kept = wide if k is None else wide.topk(min(k, wide.shape[-1])).values
    return wide - kept.logsumexp(-1, keepdim=True)
