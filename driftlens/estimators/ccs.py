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

CACHED = 4 * 2**20
"""Bytes of states that a CPU walks over at once."""

OPTIMIZERS = {"adamw": (descent.adamw, 0.015, 0.01), "lbfgs": (descent.lbfgs, 1.0, 1e-4)}
"""How probes may go downhill; the `lr` and `weight_decay` of each, where none are given."""


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
        lr: Step of AdamW, 0.015 if left out; the first length that L-BFGS tries, 1.
        weight_decay: Of AdamW, 0.01 if left out; λ of λ‖w‖²/2 with L-BFGS, 1e-4 (of states of
            length 1, where 0.01 keeps w so small that no probe is sure of anything).
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
        lr: float | None = None,
        weight_decay: float | None = None,
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
    start = torch.from_numpy(starts(like, states.shape[-1]).astype(states.dtype))
    start = start.to(like.device)
    at_once = len(states)
    if like.device == "cpu":
        # Layers that fit the cache together; more of them would be read from memory at each step.
        at_once = max(1, CACHED // states[0].nbytes)
    parts = [
        _descend(Contrasts(some, like), start.expand(len(some), -1, -1), like)
        for some in (states[i : i + at_once] for i in range(0, len(states), at_once))
    ]
    return Found(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _descend(on: "Contrasts", weights: Tensor, like: CCS) -> Found:
    walk, lr, weight_decay = OPTIMIZERS[like.optimizer]
    lr = lr if like.lr is None else like.lr
    weight_decay = weight_decay if like.weight_decay is None else like.weight_decay
    weights = walk(on, weights, like.steps, lr, weight_decay)
    p = on.p(weights).double()
    ended = weights.cpu().numpy()
    return Found(
        ended[..., :-1],
        ended[..., -1],
        on.losses_of(p).cpu().numpy(),
        p.std(-1, correction=0).cpu().numpy(),
    )


def starts(like: CCS, width: int) -> np.ndarray:
    """[restart, width + 1] weights and bias on the unit sphere, a generator for each restart."""
    seed = check_random_state(like.random_state).randint(2**31)
    drawn = [
        np.random.default_rng([seed, r]).normal(size=width + 1) for r in range(like.n_restarts)
    ]
    return np.stack([one / np.linalg.norm(one) for one in drawn])


class Contrasts:
    """Normalised states, and how well probes of them do.

    Args:
        states: [probe, statement, side, width].
        like: With the weight of the polarity term, and the device.
    """

    def __init__(self, states: np.ndarray, like: CCS) -> None:
        self.polarity, self.count = like._polarity(), states.shape[1]
        # All of "No" before all of "Yes", and a column of ones for the bias.
        rows = torch.from_numpy(states).to(like.device).transpose(1, 2).flatten(1, 2)
        self.rows = torch.cat([rows, torch.ones_like(rows[..., :1])], -1)

    def p(self, weights: Tensor) -> Tensor:
        """[probe, restart, side · statement] probabilities."""
        return torch.sigmoid(weights @ self.rows.mT)

    def losses(self, weights: Tensor) -> Tensor:
        """[probe, restart] the loss of each."""
        return self.losses_of(self.p(weights))

    def losses_of(self, p: Tensor) -> Tensor:
        """[probe, restart] the loss of probabilities."""
        no, yes = p.split(self.count, -1)
        losses = ((no + yes - 1).square() + torch.minimum(no, yes).square()).mean(-1)
        if self.polarity:
            losses = losses + self.polarity * self._apart(no, yes).square().mean(-1)
        return losses

    def slopes(self, weights: Tensor) -> Tensor:
        """[probe, restart, column] the loss's derivatives.

        They are written out: two products and a few passes over p, where recording the loss and
        replaying it would take several times as many.
        """
        p = self.p(weights)
        no, yes = p.split(self.count, -1)
        half = torch.minimum(no, yes).div_(2)
        apart = (no + yes).sub_(1).add_(half)
        # 1 where "No" has the smaller, −1 where "Yes" has; a tie pulls at both, by half each.
        leaning = torch.sign(yes - no).mul_(half)
        at_no, at_yes = apart + leaning, apart - leaning
        if self.polarity:
            twins = self.polarity * self._apart(no, yes)
            at_no, at_yes = at_no - self._opposite(twins), at_yes + twins
        pull = torch.cat((at_no, at_yes), -1).mul_(2 / self.count)
        # pull · p · (1 − p), in one pass.
        return torch.ops.aten.sigmoid_backward(pull, p) @ self.rows

    def _apart(self, no: Tensor, yes: Tensor) -> Tensor:
        """[*, statement] how far "Yes" of each is from "No" of its opposite."""
        return yes - self._opposite(no)

    def _opposite(self, values: Tensor) -> Tensor:
        """[*, statement] the opposite's; the second half are the first one's."""
        return values.roll(self.count // 2, -1)
