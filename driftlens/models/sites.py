"""Names for the places in a model."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, cast, get_args

from driftlens.errors import DriftlensError

Part = Literal["in", "heads", "attn", "mlp", "out"]

HOOKS: dict[str, Part] = {
    "hook_resid_pre": "in",
    "hook_in": "in",
    "attn.hook_z": "heads",
    "attn.o.hook_in": "heads",
    "hook_attn_out": "attn",
    "attn.hook_out": "attn",
    "hook_mlp_out": "mlp",
    "mlp.hook_out": "mlp",
    "hook_resid_post": "out",
    "hook_out": "out",
}
"""What TransformerLens calls the parts of `blocks.3`, before and since its version 4."""

_BLOCK = re.compile(r"(?:\w+\.)*(?:layers?|h|blocks?)\.(\d+)")
"""A block by its path in a net, whoever wrote it: `model.layers.3`, `transformer.h.3`."""


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

    @classmethod
    def of(cls, name: "str | Site") -> "Site":
        """The site of a name: ours, that of TransformerLens, or a block's path in the net.

        `3.out`, `blocks.3.hook_resid_post`, `blocks.3.hook_out` and `model.layers.3` are one.

        Raises:
            DriftlensError: There is no such name; says which are near.
        """
        if isinstance(name, Site):
            return name
        if name == "embed":
            return EMBED
        number, _, part = name.partition(".")
        if number.isdigit() and part in get_args(Part):
            return cls(int(number), cast(Part, part))
        if match := _BLOCK.match(name):
            rest = name[match.end() :].removeprefix(".")
            if rest in HOOKS and match[0].startswith("blocks."):
                return cls(int(match[1]), HOOKS[rest])
            if not rest:
                return cls(int(match[1]))
        raise unknown(name)


EMBED = Site(0, "in")
"""The residual stream that enters block 0."""


def every(layers: Iterable[int], *parts: Part) -> tuple[Site, ...]:
    """The sites of the given parts at the given blocks, in order, after the embedding."""
    return (EMBED, *(Site(layer, part) for layer in layers for part in parts))


def names(layer: int) -> list[str]:
    """What the sites of a block can be called."""
    ours = [f"{layer}.{part}" for part in get_args(Part)]
    return [*ours, *(f"blocks.{layer}.{hook}" for hook in HOOKS), f"model.layers.{layer}"]


def unknown(name: str, known: Iterable[str] = ()) -> DriftlensError:
    """That there is no such site, and which names are near."""
    number = re.search(r"\d+", name)
    offered = [*known] or [*names(int(number[0]) if number else 0), "embed"]
    near = get_close_matches(name, offered, 3, 0.4) or offered[:3]
    return DriftlensError(
        "the name of a site, such as 3.out, blocks.3.hook_resid_post or model.layers.3",
        found=repr(name),
        remedy=f"Near are {', '.join(near)}.",
    )
