"""Names for the places in a model."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Part = Literal["in", "heads", "attn", "mlp", "out"]


@dataclass(frozen=True, order=True)
class Site:
    """A place where a tensor can be read, replaced or differentiated.

    Blocks are counted from 0. `attn` and `mlp` are what these add to the residual stream; `heads`
    is what attention's heads give, side by side, as it enters their output map; `out` is the
    stream that leaves the block. The stream that enters block 0 is the embedding.
    """

    layer: int
    part: Part = "out"

    def __str__(self) -> str:
        return "embed" if self == EMBED else f"{self.layer}.{self.part}"


EMBED = Site(0, "in")
"""The residual stream that enters block 0."""


def every(layers: Iterable[int], *parts: Part) -> tuple[Site, ...]:
    """The sites of the given parts at the given blocks, in order, after the embedding."""
    return (EMBED, *(Site(layer, part) for layer in layers for part in parts))
