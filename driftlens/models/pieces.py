"""The weights of a model as parts that are swapped, or credited, as one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

By = Literal["layer", "component", "head", "module"]
"""How finely the weights are divided: by stage, by attention and MLP, by single head, or by every
module that holds weights."""

DIVISIONS = LAYER, COMPONENT, HEAD, MODULE = "layer", "component", "head", "module"


@dataclass(frozen=True)
class Weight:
    """A parameter, or some features of it."""

    module: str
    """Path of the module that holds it."""

    name: str
    """What the module calls it."""

    axis: int = 0
    """The axis along which features are chosen."""

    features: tuple[int, ...] | None = None
    """The chosen features; None is the whole parameter."""

    head: int | None = None
    """The attention head that the features belong to."""

    @property
    def path(self) -> str:
        """The name by which the net knows the parameter."""
        return f"{self.module}.{self.name}" if self.module else self.name


@dataclass(frozen=True)
class Piece:
    """A part of the weights that is swapped, or credited, as one."""

    layer: str
    """`embed`, the number of the block, or `head`."""

    component: str
    """`all`; or `embed`, `attn`, `mlp`, `norm`, `unembed`; or `head 0`, `head 1` and so on; or the
    path of a module within its layer.

    A norm belongs to the component that runs next; `norm` is the final one.
    """

    weights: tuple[Weight, ...] = field(default=(), repr=False, hash=False)

    @property
    def words(self) -> str:
        """How a sentence names it."""
        stage = {"embed": "the embedding", "head": "the head"}.get(
            self.layer, f"block {self.layer}"
        )
        if self.component in ("all", self.layer):
            return stage
        part = {"attn": "attention", "mlp": "MLP", "norm": "norm", "unembed": "unembedding"}
        return f"{stage}'s {part.get(self.component, self.component)}"

    def __str__(self) -> str:
        if self.component in ("all", self.layer):
            return self.layer
        return f"{self.layer}.{self.component}"


def called(layers: Iterable[str], components: Iterable[str]) -> list[str]:
    """How pieces are called in pictures, by their layers and components."""
    return [str(Piece(*names)) for names in zip(layers, components, strict=True)]


def pieces(owners: Mapping[str, "Owner"], by: By) -> tuple[Piece, ...]:
    """All weights, divided, from the bottom of the model up.

    Args:
        owners: Every module that holds weights, by its path.
        by: How finely to divide them.
    """
    found: dict[tuple[str, str], list[Weight]] = {}
    for owner in sorted(owners.values(), key=lambda o: o.rank):
        for weight in owner.weights:
            for component, part in _parts(owner, weight, by):
                found.setdefault((owner.layer, component), []).append(part)
    return tuple(Piece(*name, tuple(weights)) for name, weights in found.items())


@dataclass(frozen=True)
class Owner:
    """A module that holds weights itself, and where it stands."""

    layer: str
    component: str
    rank: tuple[int, int]
    """Where it comes from the bottom up: its stage, and its component within that."""

    weights: tuple[Weight, ...]

    heads: Mapping[str, tuple[int, Sequence[tuple[int, ...]]]] = field(default_factory=dict)
    """By parameter: the axis along which it belongs to heads, and each head's features."""

    entering: bool = False
    """Whether heads are features of what enters the module, and not of what leaves it."""


def _parts(owner: Owner, weight: Weight, by: By) -> Iterable[tuple[str, Weight]]:
    if by == LAYER:
        return [("all", weight)]
    if by == MODULE:
        return [(weight.module.rsplit(f".{owner.layer}.", 1)[-1], weight)]
    if by == COMPONENT or weight.name not in owner.heads:
        return [(owner.component, weight)]
    axis, heads = owner.heads[weight.name]
    return [
        (f"head {number}", Weight(weight.module, weight.name, axis, features, number))
        for number, features in enumerate(heads)
    ]
