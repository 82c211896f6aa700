"""Which versions are at work, for every record that names them; nothing is loaded to know it."""

import platform
import sys
from importlib import import_module
from importlib.metadata import version

LIBRARIES = ("torch", "transformers", "numpy")
"""Those on which a number may depend."""


def own() -> str:
    """The version of driftlens, which is stated in `driftlens/__init__.py` alone."""
    # The root of the package names all its floors, and is asked for its version alone.
    return str(import_module("driftlens").__version__)


def versions() -> dict[str, str]:
    """What a number may depend on besides what was asked."""
    return {
        "driftlens": own(),
        **{name: _of(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _of(name: str) -> str:
    # What runs, where it runs: a library may have been installed anew since it was loaded.
    loaded = sys.modules.get(name)
    return version(name) if loaded is None else str(loaded.__version__)
