"""Steering: directions, what they gain and cost, and folders in which they outlive a run.

A folder holds the vectors (`directions.safetensors`) and a card that says whose they are: the
model by a hash of its weights, the place, how they were found, and how sure each one is.
"""

from driftlens.models.steering import Ablate, Add, Clamp, Project, Steer, steered
from driftlens.results.folders import CARD

from .applied import Applied, applied
from .asked import Options, kept_by
from .cards import TENSORS, Strength
from .kept import KeptDirections, Mode
from .study import Steering, examine

__all__ = [
    "CARD",
    "TENSORS",
    "Ablate",
    "Add",
    "Applied",
    "Clamp",
    "KeptDirections",
    "Mode",
    "Options",
    "Project",
    "Steer",
    "Steering",
    "Strength",
    "applied",
    "examine",
    "kept_by",
    "steered",
]
