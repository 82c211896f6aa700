"""What can be asked of what-ifs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from driftlens.diagnostics.mitigation import INTERPOLATION
from driftlens.errors import DriftlensError

METHODS = ("interpolation", "blocks", "restoration", "spectral", "projection", "forecast")
"""What can be asked: where weights lie between the two, and what gradients say."""


CHOICES = (INTERPOLATION, "blocks", "restored", "spectral", "projected")
"""How the names of what can be chosen begin."""


@dataclass(frozen=True)
class Options:
    """What a caller may ask; the names are those of the command line."""

    methods: tuple[str, ...] = METHODS
    """Which what-ifs."""
    alphas: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Shares of aligned to interpolate at, besides the two models themselves."""
    means: tuple[float, ...] = (0.4, 0.6, 0.8)
    """Mean shares of which the blocks get unequal ones."""
    keep: float = 0.9
    """Share of the alignment's gain that a recommendation keeps."""
    most: int | None = None
    """The most layers to restore by blame; None is all of them. With 1, each layer is judged on
    capability alone, and only the most blamed is run on all."""
    random: int = 2
    """Random orders of restoring to hold against the order of blame."""
    gradients: int = 8
    """Parts of the capability's texts whose gradients span what a projection takes out."""
    preference: str = "accuracy"
    """How preferences are read: by `accuracy` or by `margin`."""
    seed: int = 0
    """Of every draw."""
    level: float = 0.95
    """Share of bootstrap draws that an interval holds."""
    rows: int | None = None
    """Windows to show at a time; None plans by memory."""
    length: int | None = None
    """The most tokens in a window."""
    tokens: int = 8192
    """About the most tokens to read of each pack at each point."""

    def __post_init__(self) -> None:
        """Refuse what cannot be asked for.

        Raises:
            DriftlensError: A method is unknown, or a number out of its range.
        """
        for wanted, found, fine in (
            (f"methods among {', '.join(METHODS)}", self.methods, {*self.methods} <= {*METHODS}),
            ("one method at least", self.methods, self.methods),
            ("a share to keep between 0 and 1", self.keep, 0 < self.keep <= 1),
            ("preferences read by accuracy or margin", self.preference,
             self.preference in ("accuracy", "margin")),
            ("finite shares of aligned", self.alphas, np.isfinite([*self.alphas, 0.0]).all()),
            ("mean shares between 0 and 1", self.means, all(0 < z < 1 for z in self.means)),
            ("one part of the texts at least, for a gradient", self.gradients, self.gradients > 0),
        ):  # fmt: skip
            if not fine:
                told = ", ".join(map(str, found)) if isinstance(found, tuple) else str(found)
                raise DriftlensError(wanted, found=told or "none", remedy="Give such.")


USUALLY = Options()

QUICK = Options(
    methods=("interpolation", "restoration", "spectral"), alphas=(0.25, 0.5, 0.75), most=1, random=0
)
"""What a report asks: few points, and no gradient."""


def options(quick: bool, choose: str | None, asked: Mapping[str, Any]) -> Options:
    """What a command asks for.

    Args:
        quick: Whether to look at few points.
        choose: A what-if by its name; an interpolation of another share is looked at as well.
        asked: By name, what else was said.

    Raises:
        DriftlensError: Something is not among what there is.
    """
    found = replace(QUICK if quick else USUALLY, **asked)
    if choose is not None and not choose.startswith(CHOICES):
        raise DriftlensError(
            f"a what-if whose name begins with {', '.join(CHOICES)}",
            found=repr(choose),
            remedy="Give --choose such as 'interpolation 0.7', or a row's method and setting.",
        )
    word, _, share = (choose or "").replace("α =", "").partition(" ")
    try:
        alpha = float(share)
    except ValueError:
        return found
    if word != INTERPOLATION or alpha in found.alphas:
        return found
    methods = tuple(dict.fromkeys((*found.methods, INTERPOLATION)))
    return replace(found, methods=methods, alphas=tuple(sorted((*found.alphas, alpha))))
