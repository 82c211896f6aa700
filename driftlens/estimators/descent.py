"""Going downhill with many probes at once, each as if it were alone.

Weights are [probe, restart, column]. Nothing is shared among probes or restarts but the time
that it takes.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Landscape(Protocol):
    """What there is to go down."""

    def losses(self, weights: Tensor) -> Tensor:
        """[probe, restart] heights."""

    def slopes(self, weights: Tensor) -> Tensor:
        """[probe, restart, column] their derivatives."""


KEPT = 10
"""Steps that L-BFGS remembers."""

HALVINGS = 25
"""Shorter steps that L-BFGS tries before it stays where it is."""

ENOUGH = 1e-4
"""Share of the promised decrease that a step must keep."""


def adamw(on: Landscape, weights: Tensor, steps: int, lr: float, weight_decay: float) -> Tensor:
    """Weights after so many steps of AdamW, all states at once.

    Source: Loshchilov & Hutter (2019), "Decoupled Weight Decay Regularization", algorithm 2.
    """
    weights = weights.clone().requires_grad_()
    # One kernel a step; a weight's step depends on that weight alone.
    walker = torch.optim.AdamW([weights], lr=lr, weight_decay=weight_decay, fused=True)
    for _ in range(steps):
        weights.grad = on.slopes(weights.detach())
        walker.step()
    return weights.detach()


def lbfgs(on: Landscape, weights: Tensor, steps: int, lr: float, weight_decay: float) -> Tensor:
    r"""Weights after at most so many steps of L-BFGS, with :math:`\lambda \|w\|^2 / 2` added.

    Every probe has its own history and step length (halved from `lr` until the loss falls
    enough); one that can fall no further stays where it is.

    Source: Nocedal & Wright (2006), "Numerical Optimization", algorithms 7.4 and 3.1.
    """

    def height(weights: Tensor) -> Tensor:
        return on.losses(weights) + weight_decay / 2 * _dot(weights, weights)

    def slope(weights: Tensor) -> Tensor:
        return on.slopes(weights) + weight_decay * weights

    losses, slopes = height(weights), slope(weights)
    history: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=KEPT)
    # The first step is no longer than 1: nothing is known of the curvature yet.
    size = 1 / slopes.norm(dim=-1).clamp(min=1)
    moves = torch.ones_like(losses, dtype=torch.bool)
    for _ in range(steps):
        # Who has stopped stays, however long the others go on: alone it would have stayed too.
        way = torch.where(moves[..., None], -_curved(slopes, history, size), 0)
        after, losses = _walk(height, weights, losses, _dot(way, slopes), way, lr)
        moves = (after != weights).any(-1)
        if not moves.any():
            break
        found = slope(after)
        step, bend = after - weights, found - slopes
        weights, slopes = after, found
        along = _dot(step, bend)
        good = along > 1e-12 * step.norm(dim=-1) * bend.norm(dim=-1)
        size = torch.where(good, along / _dot(bend, bend), size)
        history.append((step, bend, torch.where(good, 1 / along, 0)))
    return weights


def _curved(slopes: Tensor, history: deque[tuple[Tensor, Tensor, Tensor]], size: Tensor) -> Tensor:
    """The slopes times the inverse curvature that the last steps tell of."""
    way, shares = slopes, []
    for step, bend, weight in reversed(history):
        shares.append(weight * _dot(step, way))
        way = way - shares[-1][..., None] * bend
    way = size[..., None] * way
    for (step, bend, weight), share in zip(history, reversed(shares), strict=True):
        way = way + (share - weight * _dot(bend, way))[..., None] * step
    return way


def _walk(
    height: Callable[[Tensor], Tensor],
    weights: Tensor,
    losses: Tensor,
    promised: Tensor,
    way: Tensor,
    lr: float,
) -> tuple[Tensor, Tensor]:
    """Weights and losses after a step of each probe's own length, 0 if none is short enough."""
    length = torch.where(promised < 0, lr, 0.0).to(losses)
    for _ in range(HALVINGS):
        after = weights + length[..., None] * way
        reached = height(after)
        short = reached > losses + ENOUGH * length * promised
        if not short.any():
            return after, reached
        length = torch.where(short, length / 2, length)
    return torch.where(short[..., None], weights, after), torch.where(short, losses, reached)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1)
