"""What can be asked of a study of steering, and which packs are meant where none is named."""

from dataclasses import dataclass
from math import inf, isfinite

from driftlens.diagnostics.directions import At, Directions
from driftlens.errors import DriftlensError
from driftlens.models.sites import Part
from driftlens.models.steering import Positions, refuse_other_positions
from driftlens.packs import Pack, names

from .courses import FIRST

TOKENS = 8192
"""About the most tokens that are read of a pack at each strength."""

DEPTH = 0.8
"""Share of the blocks, from the bottom, that one is chosen from, as for refusal (Arditi et al.)."""

EVERYDAY = "everyday"
"""The shipped pack that stands for what a model can, where none is named."""


@dataclass(frozen=True)
class Options:
    """What a caller may ask; the names are those of the command line."""

    method: str = "mean-difference"
    """How directions are found; see `diagnostics.directions.METHODS`."""
    at: At = "last"
    """Where the state of a text is read."""
    parts: tuple[Part, ...] = ("out",)
    """What of each block directions are found at."""
    layers: tuple[int, ...] | None = None
    """Blocks at which to steer, with one strength; None takes the one that gains most."""
    part: Part = "out"
    """What of them is steered."""
    select: bool = False
    """Whether to take token and block by what ablating and adding directions does; see
    `selection.select`. Of prompts alone."""
    select_depth: float = DEPTH
    """Share of the blocks, from the bottom, that it takes from."""
    positions: Positions = "all"
    """At which tokens."""
    strengths: tuple[float, ...] | None = None
    """Strengths to look at, in E‖h‖; None follows the curves."""
    points: int = 17
    """About how many strengths to look at where none are given."""
    controls: int = 4
    """Random directions of equal length to hold against it."""
    weight: float = 1.0
    """λ, how much behaviour the whole of a capability is worth."""
    seed: int = 0
    """Of every draw."""
    level: float = 0.95
    """Share of bootstrap draws that an interval holds."""
    rows: int | None = None
    """Windows to show at a time; None plans by memory."""
    length: int | None = None
    """The most tokens in a window."""
    tokens: int = TOKENS
    """About the most tokens to read of behaviour, and of each pack that is to be kept, at each
    strength; of what is larger an even part is taken."""

    allow_identical: bool = False
    """Whether to go on although both models of a pair are the same."""

    def __post_init__(self) -> None:
        """Refuse what cannot be asked for.

        Raises:
            DriftlensError: Something is not among what there is, or not a number of its kind.
        """
        Directions(None, (self.part, *self.parts), self.method, self.at)
        refuse_other_positions(self.positions)
        strengths = (-1.0, 1.0) if self.strengths is None else self.strengths
        for name, good, wanted in (
            ("strengths", all(map(isfinite, strengths)), "finite numbers"),
            ("strengths", len({0.0, *strengths}) > 2, "two numbers at least beside 0"),
            ("points", self.points > 2 * len(FIRST) - 2, f"a number over {2 * len(FIRST) - 2}"),
            ("controls", self.controls >= 0, "a number from 0 on"),
            ("weight", 0 < self.weight < inf, "a finite number above 0"),
            ("tokens", self.tokens > 0, "a number above 0"),
            ("level", 0 < self.level < 1, "a number between 0 and 1"),
            ("select_depth", 0 < self.select_depth <= 1, "a number above 0, at most 1"),
        ):
            if not good:
                raise DriftlensError(
                    f"{name.replace('_', ' ')} to be {wanted}",
                    found=f"{getattr(self, name)!r}",
                    remedy="Leave it out for what is usual.",
                )


USUALLY = Options()


def matched(contrast: Pack) -> Pack | None:
    """The shipped pack of choices that a pack's card names, if it names one.

    Raises:
        DriftlensError: There is no such pack.
    """
    name = contrast.card.get("choices")
    return None if name is None else _named(contrast, "choices", name, "--behaviour")


def kept_by(contrast: Pack) -> list[Pack]:
    """What is to be kept where nobody says: the pack that a card names, and everyday English.

    Raises:
        DriftlensError: There is no such pack.
    """
    name = contrast.card.get("capability")
    first = [] if name is None else [_named(contrast, "capability", name, "--capability")]
    return [*first, Pack.load(EVERYDAY)]


def _named(contrast: Pack, key: str, name: object, option: str) -> Pack:
    if name not in names():
        raise DriftlensError(
            f"`{key}` of {contrast.name} to name a shipped pack",
            found=repr(name),
            remedy=f"Name a pack with {option}.",
        )
    return Pack.load(str(name))


def halves(contrast: Pack) -> tuple[Pack, Pack]:
    """Choices in two halves, families whole: to find directions on, and to judge them."""
    if contrast.kind != "choice":
        raise DriftlensError(
            "choices to measure behaviour by",
            found=f"none that belong to {contrast.name}",
            remedy="Name a pack of kind choice with --behaviour (see `driftlens packs`).",
        )
    families = sorted(set(contrast.clusters))
    if len(families) < 2:
        raise DriftlensError(
            f"two families of items at least in {contrast.name}",
            found=str(len(families)),
            remedy="Give more items, or others to judge by with --behaviour.",
        )
    return contrast.parted(set(families[::2]))
