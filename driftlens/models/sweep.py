"""What a model says when its stream is pushed along a direction, at many strengths.

What lies below the lowest push is run once, whatever the strength; several strengths run above
it as one batch. Nothing is measured here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from driftlens.errors import DriftlensError

from .hooks import HookedModel
from .model import Edits, Trace
from .sites import EMBED, Site
from .steering import Add, Positions, Steer, edits_at
from .tokens import Batch

TOGETHER = 512
"""About how many tokens a CPU runs as one batch, of all strengths together. With eight
times as many, sweeps of a model of 110 M parameters took 6 to 13 % longer."""

TOGETHER_ELSEWHERE = 4096
"""The same of an accelerator, which wants to be filled."""


@dataclass(frozen=True, eq=False)
class Push:
    """A step of one strength along a direction at each of some places.

    Args:
        vectors: [width] direction at each site, of any length: strengths are in the stream's own
            units.
    """

    vectors: Mapping[Site, Tensor]

    def __post_init__(self) -> None:
        if not self.vectors:
            raise DriftlensError(
                "a direction at one place at least", found="none", remedy="Name a layer."
            )

    def steers(self, strength: float | Tensor) -> list[Steer]:
        """The push as steers; a strength may be one for each row."""
        return [
            Steer(Add(vector, strength), site.layer, site.part)
            for site, vector in sorted(self.vectors.items())
        ]

    @cached_property
    def start(self) -> int:
        """The block above which nothing is as it was; −1 if that is the embedding."""
        return start_of(self.vectors)


def start_of(sites: Iterable[Site]) -> int:
    """The highest block whose output no edit at these sites changes, or is itself edited."""
    return min(site.layer if site.part == "out" else site.layer - 1 for site in sites)


def stream_at(start: int) -> Site:
    """The place of the stream that a run from a block on begins with."""
    return EMBED if start < 0 else Site(start)


def edited(model: HookedModel, batch: Batch, stream: Tensor, edits: Edits) -> Tensor:
    """[scored token, width] predictors with edits made, run from the lowest of them on.

    Args:
        model: Who reads.
        batch: What it reads.
        stream: [batch, token, width] what stands, unedited, at `stream_at` of `start_of` the edits.
        edits: What is done at which places.
    """
    start = start_of(edits)
    own = stream_at(start)
    if own in edits:
        stream = edits[own](stream)
    above = {site: edit for site, edit in edits.items() if site != own}
    return model.resume(batch, start, stream, edits=above)


def pushed(
    model: HookedModel, trace: Trace, push: Push, strengths: Sequence[float], here: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """Predictors at each strength, as they come.

    At a strength of 0 they are those of the trace, to the bit.

    Args:
        model: Who reads.
        trace: What it saw unsteered; holds the stream at `stream_at(push.start)`.
        push: Which way.
        strengths: [strength] how far, in the stream's units.
        here: [batch, token] whether a token is pushed.

    Yields:
        The number of a strength, and [scored token, width] its predictors.
    """
    for number, strength in enumerate(strengths):
        if strength == 0:
            yield number, trace.predictors
    left = [number for number, strength in enumerate(strengths) if strength != 0]
    stream = trace.activations[stream_at(push.start)]
    together = TOGETHER if stream.device.type == "cpu" else TOGETHER_ELSEWHERE
    rows, at_once = len(trace.batch.ids), max(1, together // max(1, trace.batch.ids.numel()))
    for first in range(0, len(left), at_once):
        some = left[first : first + at_once]
        amounts = torch.tensor([float(strengths[n]) for n in some], dtype=torch.float64)
        batch = trace.batch.repeated(len(some))
        edits = edits_at(
            model, push.steers(amounts.repeat_interleave(rows)), here.repeat(len(some), 1)
        )
        found = edited(model, batch, stream.repeat(len(some), 1, 1), edits)
        yield from zip(some, found.split(len(trace.predictors)), strict=True)


class Bend(NamedTuple):
    """How scores go with a strength at 0."""

    value: Tensor
    """[score, row] at strength 0."""

    slope: Tensor
    """[score, row] first derivative, per unit of the stream."""

    curvature: Tensor
    """[score, row] second derivative, per squared unit."""


def bent(
    model: HookedModel,
    trace: Trace,
    push: Push,
    here: Tensor,
    scores: Callable[[Tensor], Tensor],
) -> Bend:
    """Derivatives of scores by the strength of a push, at 0, exactly: no step is taken.

    By going back through the blocks above the push twice.

    Args:
        model: Who reads.
        trace: What it saw unsteered; holds the stream at `stream_at(push.start)`.
        push: Which way.
        here: [batch, token] whether a token is pushed.
        scores: Makes [score, scored token] of [scored token, vocab] logits.
    """
    batch = trace.batch
    rows = len(batch.ids)
    strength = torch.zeros(rows, dtype=torch.float64, requires_grad=True)
    stream = trace.activations[stream_at(push.start)]
    # Only plain attention can be differentiated twice.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        edits = edits_at(model, push.steers(strength), here)
        own = stream_at(push.start)
        if own not in edits:
            # What is pushed above a stream that is not is still to be differentiated.
            stream = stream.detach().clone().requires_grad_()
        predictors = edited(model, batch, stream, edits)
        found = scores(model.readout(predictors))
        total = found.new_zeros(len(found), rows).index_add(1, batch.target[0], found)
        slopes, curvatures = [], []
        for one in total:
            (slope,) = torch.autograd.grad(one.sum(), [strength], create_graph=True)
            slopes.append(slope.detach())
            if not slope.requires_grad:
                curvatures.append(torch.zeros_like(slope))
                continue
            # Where a score is linear, the slope's graph holds weights but no strength.
            (curvature,) = torch.autograd.grad(
                slope.sum(), [strength], retain_graph=True, materialize_grads=True
            )
            curvatures.append(curvature)
    return Bend(total.detach(), torch.stack(slopes), torch.stack(curvatures))


def places(positions: Positions, batch: Batch) -> Tensor:
    """[batch, token] at which tokens of a text that is given whole one steers.

    As in generation, `last` is every token that something is predicted from; a prompt ends where
    the first scored token stands.
    """
    rows, tokens = batch.target
    if positions == "all":
        return batch.mask
    here = torch.zeros_like(batch.mask)
    if positions == "last":
        here[rows, tokens - 1] = True
        return here
    number = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    first = torch.full((len(batch.ids),), batch.ids.shape[1], device=batch.ids.device)
    first = first.scatter_reduce(0, rows, tokens, "amin")
    prompt = number < first[:, None]
    return batch.mask & (prompt if positions == "prompt" else ~prompt)
