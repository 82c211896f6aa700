"""What would undo a loss, asked of weights that are put together without training, and run.

Capability and alignment are read of each on the same items. What gradients would have said of it
stands beside what was measured; what can only be forecast is marked so.
"""

from .asked import METHODS, QUICK, Options, options
from .axes import shown, to_refuse
from .kept import held_in, save
from .study import Mitigation, WhatIf, examine

__all__ = [
    "METHODS",
    "QUICK",
    "Mitigation",
    "Options",
    "WhatIf",
    "examine",
    "held_in",
    "options",
    "save",
    "shown",
    "to_refuse",
]
