"""What every back-end promises: run a batch, and show what it saw."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from driftlens.formulas.divergence import gold

from .sites import Part, Site
from .tokens import Batch

LOGIT_BYTES = 2**26
"""How much memory logits may take at once."""

Edits = Mapping[Site, Callable[[Tensor], Tensor]]
"""What to put in place of a site's tensor: a patch, a steer and an ablation are all edits."""

Named = Edits | Mapping[str, Callable[[Tensor], Tensor]]
"""Edits whose sites may be called by any of their names."""


def called(name: str) -> str:
    """A model's name as a title has room for it: of a folder, the end of its path."""
    return "/".join(Path(name).resolve().parts[-2:]) if Path(name).is_dir() else name


@dataclass(frozen=True)
class Wants:
    """What a metric asks to see. The wants of several metrics add up, and are met at once."""

    parts: frozenset[Part] = frozenset()
    layers: frozenset[int] | None = frozenset()
    """Blocks whose parts are wanted; None is every block."""

    gradients: bool = False
    causal: bool = False
    """Whether only models that continue text can be asked."""

    same_tokens: bool = False
    """Whether both models must read the same tokens."""

    graph: bool = False
    """Whether a gradient runs back through all blocks, so that memory must hold what they did."""

    together: bool = False
    """Whether both models must be alive at once: one is run on what the other has just seen, or
    their weights are held against each other."""

    answers: bool = False
    """Whether both models are asked to answer prompts in their own words."""

    def __or__(self, other: "Wants") -> "Wants":
        every = self.layers is None or other.layers is None
        return Wants(
            self.parts | other.parts,
            None if every else (self.layers or frozenset()) | (other.layers or frozenset()),
            self.gradients or other.gradients,
            self.causal or other.causal,
            self.same_tokens or other.same_tokens,
            self.graph or other.graph,
            self.together or other.together,
            self.answers or other.answers,
        )


@dataclass(frozen=True)
class Trace:
    """What one model saw of one batch, at its own tokens."""

    batch: Batch

    last: Tensor
    """[batch, token, width] stream that leaves the last block, before the final norm."""

    predictors: Tensor
    """[scored token, width] stream of the last block from which each scored token is predicted."""

    activations: Mapping[Site, Tensor] = field(default_factory=dict)
    """For each site, [batch, token, width]; of `heads`, as wide as all heads side by side."""

    gradients: Mapping[Site, Tensor] = field(default_factory=dict)
    """For each site, the gradient of the row's scored log-likelihood by its activation."""

    def at(self, site: Site | str) -> Tensor:
        """[unit, width] activations at the token that closes each unit, of all rows."""
        stream = self.activations[Site.of(site)]
        # A block may lie on another device than the ids.
        rows, tokens = (place.to(stream.device) for place in self.batch.closing)
        # Faster than indexing by both, to the same bits.
        return stream.flatten(0, 1)[rows * stream.shape[1] + tokens]


class Model(Protocol):
    """A language model that can be looked into."""

    name: str
    tokenizer: Any
    depth: int
    width: int
    context: int | None
    """The most tokens it can read; None if it names no limit."""

    causal: bool
    """Whether it continues text; else it fills in masked tokens."""

    @property
    def vocabulary(self) -> int:
        """How many logits it gives."""
        ...

    def trace(self, batch: Batch, wants: Wants = Wants(), edits: Edits | None = None) -> Trace:
        """Run `batch`, with `edits` in place, and return what `wants` asks for."""
        ...

    def resume(self, batch: Batch, layer: int, stream: Tensor) -> Tensor:
        """[scored token, width] predictors when block `layer` left the given stream.

        The blocks up to `layer` are not run. Layer -1 gives block 0 the stream to read.
        """
        ...

    def readout(self, stream: Tensor, room: Tensor | None = None) -> Tensor:
        """[row, vocab] logits that the model's own head reads from [row, width] last streams.

        They may be written into `room`, and are then good only until it is used again.
        """
        ...


def likelihoods(
    model: Model, predictors: Tensor, targets: Tensor, room: Tensor | None = None
) -> Tensor:
    """[scored token] log-likelihoods, in nats, of [scored token, width] predictors' targets.

    Args:
        model: Whose head reads.
        predictors: The last stream of the token before each.
        targets: [scored token] ids.
        room: Where logits may be written: `rows_of` the vocabulary, or as many as there are.
    """
    rows = rows_of(model.vocabulary)
    pieces = zip(predictors.split(rows), targets.split(rows), strict=True)
    return torch.cat([gold(model.readout(p, room), t) for p, t in pieces])


def rows_of(vocabulary: int) -> int:
    """How many rows of logits are read out at once."""
    return max(1, LOGIT_BYTES // (4 * vocabulary))
