"""A rise in loss as it is divided among the pieces of the weights."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .numbers import Estimate
from .result import Result, column, value


@dataclass(frozen=True)
class Divided(Result):
    """A rise in loss, and what each piece of the weights has of it.

    A subclass declares a column `of_total`. Where the rise is not above its floor no part of it
    is told: `of_total` is NaN.
    """

    total: Estimate = value("nats/token")
    """The rise in loss."""

    layer: np.ndarray = column()
    """[row] `embed`, number of the block, or `head`."""
    component: np.ndarray = column()
    """[row] `all`, or which part of the layer."""

    adds: ClassVar[tuple[str, ...]] = ("total",)

    def of_layers(self) -> dict[str, Estimate]:
        """What all components of a layer have together, where there is a column that says it."""
        if not self.layered:
            return {}
        parts, layers = getattr(self, self.layered), self.layer.tolist()
        return {
            layer: Estimate(float(parts[self.layer == layer].sum()))
            for layer in dict.fromkeys(layers)
        }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.above_floor("total"):
            self._set("of_total", np.full(self.rows(), np.nan))
