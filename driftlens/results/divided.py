"""A rise in loss as it is divided among the pieces of the weights."""

from dataclasses import dataclass

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

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.above_floor("total"):
            self._set("of_total", np.full(self.rows(), np.nan))
