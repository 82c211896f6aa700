"""Steering: directions that outlive a run, and what a model says along them.

A folder holds the vectors (`directions.safetensors`) and a card that says whose they are: the
model by a hash of its weights, the place, how they were found, and how sure each one is.
"""

from .applied import Applied, applied
from .kept import CARD, TENSORS, KeptDirections, Mode, Strength

__all__ = ["CARD", "TENSORS", "Applied", "KeptDirections", "Mode", "Strength", "applied"]
