"""Probes that outlive a run: learnt from a pack of contrasts, kept in a folder, used on any text.

A folder holds the numbers (`probe.safetensors`) and a card that says whose they are: the model by
a hash of its weights, the place, what was learnt from, and how right they are on pairs held out.
"""

from driftlens.results.folders import CARD

from .asked import METHODS, Options
from .trained import TENSORS, Applied, TrainedProbes
from .training import train

__all__ = ["CARD", "METHODS", "TENSORS", "Applied", "Options", "TrainedProbes", "train"]
