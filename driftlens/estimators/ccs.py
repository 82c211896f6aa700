"""Contrast-consistent search: the direction that answers yes and no consistently, without labels.

All probes (layers, both models) and all restarts go downhill in one batch, each exactly as it
would alone.
"""

from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.utils import check_random_state
from torch import Tensor

from driftlens.errors import DriftlensError

from . import descent
from .probe import ContrastProbe, Normaliser

DEGENERATE_LOSS = 0.195
"""Losses above it are those of a probe that says the same of every state: its best is 0.2."""

DEGENERATE_SPREAD = 0.02
"""Standard deviation of p below which a probe says the same of every state."""

OPTIMIZERS = {"adamw": descent.adamw, "lbfgs": descent.lbfgs}
"""How probes may go downhill."""


Probe = TypeVar("Probe", bound="CCS")


class Found(NamedTuple):
    """Where searches ended."""

    weights: np.ndarray
    """[probe, restart, width] w, of normalised states."""

    biases: np.ndarray
    """[probe, restart] b."""

    losses: np.ndarray
    """[probe, restart] without labels."""

    spreads: np.ndarray
    """[probe, restart] standard deviation of p over all states learnt from."""


class CCS(ContrastProbe):
    r"""Contrast-consistent search.

    Of many descents from random directions, the one with the least

    .. math:: L = \frac1n \sum_i (p_i^{no} + p_i^{yes} - 1)^2 + \min(p_i^{no}, p_i^{yes})^2

    It finds *a* feature on which yes and no disagree consistently, the most prominent rather
    than the one that is meant (Farquhar et al. 2023, "Challenges with Unsupervised LLM Knowledge
    Discovery"): judge it beside `baselines` and `scores.shortcut`.

    The defaults are those of the published code of polarity-aware CCS. States are scaled to a
    mean square length of 1, where the learning rate moves a probe about as far in all layers.

    Source: Burns et al. (2023), "Discovering Latent Knowledge in Language Models Without
    Supervision", section 2.2.

    Args:
        n_restarts: Descents from directions drawn anew.
        optimizer: "adamw" or "lbfgs".
        lr: Step of AdamW, or first length that L-BFGS tries (1 is usual there).
        weight_decay: Of AdamW; λ of λ‖w‖²/2 with L-BFGS.
        steps: How many of AdamW; at most so many of L-BFGS.
        normalize: See `Normaliser`.
        random_state: Of the directions. They depend on nothing else but the width, so that a
            layer's probe is the same whichever others are found beside it.
        device: Where to compute.

    Attributes:
        coef_, intercept_: The best descent's w and b.
        losses_: [restart] where each descent ended.
        loss_: The least of them.
        spread_: Standard deviation of p over the states learnt from.
        degenerate_: Whether the probe says the same of every state, as far as can be seen: a
            loss over 0.195 (a constant p = 0.4 has 0.2) or a spread under 0.02.
    """

    losses_: np.ndarray
    loss_: float
    spread_: float
    degenerate_: bool

    def __init__(
        self,
        n_restarts: int = 10,
        optimizer: str = "adamw",
        lr: float = 0.015,
        weight_decay: float = 0.01,
        steps: int = 1500,
        normalize: str | None = "scale",
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
    ) -> None:
        self.n_restarts = n_restarts
        self.optimizer = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.steps = steps
        self.normalize = normalize
        self.random_state = random_state
        self.device = device

    def _learn(self, states: np.ndarray, labels: np.ndarray | None) -> None:
        self._take(_search(self._contrasts(states)[None], self), 0)

    def _learn_place(self, states: np.ndarray) -> None:
        self.normaliser_ = Normaliser.learn(self._contrasts(states), self.normalize)

    def _contrasts(self, states: np.ndarray) -> np.ndarray:
        """[statement, side, width] of what was read."""
        return states

    def _polarity(self) -> float:
        """Weight of the term that only quadruples have."""
        return 0.0

    def _take(self, found: Found, number: int) -> None:
        self.losses_ = found.losses[number]
        best = int(np.argmin(self.losses_))
        self.loss_ = float(self.losses_[best])
        self.coef_ = found.weights[number, best].copy()
        self.intercept_ = float(found.biases[number, best])
        self.spread_ = float(found.spreads[number, best])
        self.degenerate_ = self.loss_ > DEGENERATE_LOSS or self.spread_ < DEGENERATE_SPREAD


def fit_many(
    states: ArrayLike,
    y: ArrayLike | None = None,
    anchors: ArrayLike | None = None,
    *,
    like: Probe,
) -> list[Probe]:
    """A probe for each layer, as many calls of `fit` would find them, but in one batch.

    A layer whose states are all the same (the embedding of one and the same last token, say) is
    not refused: its probe ends at the constant p = 0.4, and is flagged as degenerate.

    Args:
        states: [probe, row, *, width] what `fit` takes, for each layer of each model.
        y: [row] labels, the same for all.
        anchors: [row] truth, see `fit`.
        like: A probe with the settings, `CCS()` or `PolarityCCS()`; it is not changed.
    """
    probes = [clone(like) for _ in range(len(states))]  # type: ignore[arg-type]
    read = [
        probe._read(layer, reset=True, named=f"probe {number}: ")
        for number, (probe, layer) in enumerate(zip(probes, states, strict=True))  # type: ignore[arg-type]
    ]
    labels = [probe._labels(y, len(some)) for probe, some in zip(probes, read, strict=True)]
    for probe, some in zip(probes, read, strict=True):
        probe._learn_place(some)
    together = [p._contrasts(p.normaliser_(some)) for p, some in zip(probes, read, strict=True)]
    found = _search(np.stack(together), like)
    for number, (probe, some) in enumerate(zip(probes, read, strict=True)):
        probe._take(found, number)
        probe._orient(some, labels[number], anchors)
    return probes


def _search(states: np.ndarray, like: CCS) -> Found:
    """All restarts of all probes, on normalised states [probe, statement, side, width]."""
    if like.optimizer not in OPTIMIZERS:
        raise DriftlensError(
            f"an optimizer among {tuple(OPTIMIZERS)}",
            found=repr(like.optimizer),
            remedy="Leave it out for 'adamw'.",
        )
    probes, statements, _, width = states.shape
    start = torch.from_numpy(starts(like, width).astype(states.dtype))
    weights = start.expand(probes, -1, -1).to(like.device)
    # All of "No" before all of "Yes", and a column of ones for the bias.
    rows = torch.from_numpy(states).to(like.device).transpose(1, 2).flatten(1, 2)
    rows = torch.cat([rows, torch.ones_like(rows[..., :1])], -1)
    polarity = like._polarity()

    def of(weights: Tensor) -> tuple[Tensor, Tensor]:
        return _descent(rows, weights, polarity)

    walk = OPTIMIZERS[like.optimizer]
    weights = walk(of, weights, like.steps, like.lr, like.weight_decay)
    p = torch.sigmoid(weights @ rows.mT)
    ended = weights.cpu().numpy()
    return Found(
        ended[..., :-1],
        ended[..., -1],
        _losses(*p.unflatten(-1, (2, statements)).unbind(2), polarity).double().cpu().numpy(),
        p.double().std(-1, correction=0).cpu().numpy(),
    )


def starts(like: CCS, width: int) -> np.ndarray:
    """[restart, width + 1] weights and bias on the unit sphere, a generator for each restart."""
    seed = check_random_state(like.random_state).randint(2**31)
    drawn = [np.random.default_rng([seed, r]).normal(size=width + 1) for r in range(like.n_restarts)]
    return np.stack([one / np.linalg.norm(one) for one in drawn])


def _losses(no: Tensor, yes: Tensor, polarity: float) -> Tensor:
    """[probe, restart] of p [probe, restart, statement]."""
    losses = ((no + yes - 1).square() + torch.minimum(no, yes).square()).mean(-1)
    if polarity:
        losses = losses + polarity * _apart(no, yes).square().mean(-1)
    return losses


def _apart(no: Tensor, yes: Tensor) -> Tensor:
    """[*, statement] how far "Yes" of each is from "No" of its opposite, half a list away."""
    return yes - no.roll(no.shape[-1] // 2, -1)


def _descent(rows: Tensor, weights: Tensor, polarity: float) -> tuple[Tensor, Tensor]:
    """[probe, restart] losses and [probe, restart, column] slopes.

    The slopes are written out: two products and a few passes over p, where recording and
    replaying them would take several times as many.
    """
    p = torch.sigmoid(weights @ rows.mT)
    no, yes = p.unflatten(-1, (2, -1)).unbind(2)
    count = no.shape[-1]
    apart = no + yes - 1
    least = torch.minimum(no, yes)
    # A tie pulls at both, by half each.
    lower = least * torch.heaviside(yes - no, torch.full((), 0.5, dtype=no.dtype, device=no.device))
    pull = torch.stack((apart + lower, apart + least - lower), 2)
    losses = (apart.square() + least.square()).mean(-1)
    if polarity:
        twins = _apart(no, yes)
        losses = losses + polarity * twins.square().mean(-1)
        pull[:, :, 1] += polarity * twins
        pull[:, :, 0] -= polarity * twins.roll(-(count // 2), -1)
    return losses, (pull.flatten(2) * p * (1 - p) * (2 / count)) @ rows
