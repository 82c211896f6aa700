"""Going downhill with many probes at once, each as if it were alone.

`of` gives the losses [probe, restart] and slopes [probe, restart, column] of weights of that
shape. Nothing is shared among probes or restarts but the time that it takes.
"""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

Landscape = Callable[[Tensor], tuple[Tensor, Tensor]]

KEPT = 10
"""Steps that L-BFGS remembers."""

HALVINGS = 25
"""Shorter steps that L-BFGS tries before it stays where it is."""

ENOUGH = 1e-4
"""Share of the promised decrease that a step must keep."""


def adamw(of: Landscape, weights: Tensor, steps: int, lr: float, weight_decay: float) -> Tensor:
    """Weights after so many steps of AdamW, all states at once.

    Source: Loshchilov & Hutter (2019), "Decoupled Weight Decay Regularization", algorithm 2.
    """
    weights = weights.clone().requires_grad_()
    # One kernel a step; a weight's step depends on that weight alone.
    walker = torch.optim.AdamW([weights], lr=lr, weight_decay=weight_decay, fused=True)
    for _ in range(steps):
        _, weights.grad = of(weights.detach())
        walker.step()
    return weights.detach()


def lbfgs(of: Landscape, weights: Tensor, steps: int, lr: float, weight_decay: float) -> Tensor:
    r"""Weights after at most so many steps of L-BFGS, with :math:`\lambda \|w\|^2 / 2` added.

    Every probe has its own history and step length (halved from `lr` until the loss falls
    enough); one that can fall no further stays where it is.

    Source: Nocedal & Wright (2006), "Numerical Optimization", algorithms 7.4 and 3.1.
    """

    def penalised(weights: Tensor) -> tuple[Tensor, Tensor]:
        losses, slopes = of(weights)
        return losses + weight_decay / 2 * _dot(weights, weights), slopes + weight_decay * weights

    losses, slopes = penalised(weights)
    history: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=KEPT)
    # The first step is no longer than 1: nothing is known of the curvature yet.
    size = 1 / slopes.norm(dim=-1).clamp(min=1)
    moves = torch.ones_like(losses, dtype=torch.bool)
    for _ in range(steps):
        # Who has stopped stays, however long the others go on: alone it would have stayed too.
        way = torch.where(moves[..., None], -_curved(slopes, history, size), 0)
        after, losses, found, moves = _walk(penalised, weights, losses, slopes, way, lr)
        if not moves.any():
            break
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
    of: Landscape, weights: Tensor, losses: Tensor, slopes: Tensor, way: Tensor, lr: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights, losses and slopes after a step of each probe's own length, and whether it moved."""
    promised = _dot(way, slopes)
    length = torch.where(promised < 0, lr, 0.0).to(losses)
    for _ in range(HALVINGS):
        after = weights + length[..., None] * way
        reached, found = of(after)
        short = reached > losses + ENOUGH * length * promised
        if not short.any():
            break
        length = torch.where(short, length / 2, length)
    length = torch.where(short, 0.0, length)
    stays = (length == 0)[..., None]
    return (
        torch.where(stays, weights, weights + length[..., None] * way),
        torch.where(stays[..., 0], losses, reached),
        torch.where(stays, slopes, found),
        ~stays[..., 0],
    )


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1)
