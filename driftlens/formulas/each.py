"""Several streams kept side by side, by name."""

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, Self, TypeVar

import numpy as np

from .streams import Mergeable, State

M = TypeVar("M", bound=Mergeable)


class Each(Generic[M]):
    """A mergeable for each name; one is made when its name is first asked for.

    Args:
        make: Makes one that has seen nothing.
    """

    def __init__(self, make: Callable[[], M]) -> None:
        self.make = make
        self.parts: dict[str, M] = {}

    def __getitem__(self, name: str) -> M:
        if name not in self.parts:
            self.parts[name] = self.make()
        return self.parts[name]

    def __contains__(self, name: object) -> bool:
        return name in self.parts

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def merge(self, other: "Each[M]") -> Self:
        """Take in another part's, name by name; `other` is left as it is."""
        for name, part in other.parts.items():
            self[name].merge(part)
        return self

    def empty(self) -> "Each[M]":
        """The same names with nothing seen."""
        empty = Each(self.make)
        empty.parts = {name: part.empty() for name, part in self.parts.items()}
        return empty

    def state(self) -> State:
        """Every part's arrays as `name|array`."""
        return {
            f"{name}|{key}": array
            for name, part in self.parts.items()
            for key, array in part.state().items()
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> Self:
        """Take up what `state` gave."""
        self.parts = {}
        for name in dict.fromkeys(key.split("|", 1)[0] for key in state):
            own = {k.split("|", 1)[1]: v for k, v in state.items() if k.startswith(f"{name}|")}
            self[name].restore(own)
        return self
