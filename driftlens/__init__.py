"""Where, and by what, an aligned language model drifted from its base.

Names are loaded when they are first used, so that importing the package costs nothing. Those of
the instruments, and of what they find, are listed in `diagnostics`, and nowhere else.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import diagnostics
    from .diagnostics import *  # noqa: F403
    from .errors import DriftlensError
    from .metric import Metric, measure
    from .models import Frame, ModelPair, Site
    from .packs import Example, Pack
    from .preferences import Preferences
    from .preflight import check
    from .report import Report
    from .results import Result

    __all__ = [
        "DriftlensError",
        "Example",
        "Frame",
        "Metric",
        "ModelPair",
        "Pack",
        "Preferences",
        "Report",
        "Result",
        "Site",
        "check",
        "measure",
    ]
    __all__ += diagnostics.__all__

__version__ = "0.1.0"

_HOMES = {
    "errors": ("DriftlensError",),
    "metric": ("Metric", "measure"),
    "models": ("Frame", "ModelPair", "Site"),
    "packs": ("Example", "Pack"),
    "preferences": ("Preferences",),
    "preflight": ("check",),
    "report": ("Report",),
    "results": ("Result",),
}


if not TYPE_CHECKING:
    # Hidden from type checkers, which would take any name for one of ours.
    def __getattr__(name: str) -> Any:
        for home, names in _HOMES.items():
            if name in names:
                return _kept(name, f"driftlens.{home}")
        if name == "__all__":
            globals()[name] = __dir__()
            return globals()[name]
        # A module of ours is asked for as an attribute before it is imported.
        if not name.startswith("_") and find_spec(f"driftlens.{name}") is None:
            home = "driftlens.diagnostics"
            if name in import_module(home).__all__:
                return _kept(name, home)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _kept(name: str, home: str) -> Any:
    """A name from its home, asked for only once."""
    globals()[name] = getattr(import_module(home), name)
    return globals()[name]


def __dir__() -> list[str]:
    own = (name for names in _HOMES.values() for name in names)
    return sorted([*own, *import_module("driftlens.diagnostics").__all__])
