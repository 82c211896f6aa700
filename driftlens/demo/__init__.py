"""Three tiny models that ship with the package: a base, its SFT and its aligned version."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

from driftlens.errors import DriftlensError

STAGES = ("base", "sft", "aligned")
"""The stages of training, in their order."""

STEPS = {"base": 5000, "sft": 300, "aligned": 150}
"""How many steps each takes."""

ROWS = {"base": 4, "sft": 16, "aligned": 16}
"""How many texts a step shows; of `aligned`, pairs."""

PAIRS = 240
"""How many of the pairs that `aligned` was trained on are given for a look before training."""


def stage(name: str) -> Path:
    """The folder of a shipped stage, as `from_pretrained` takes it."""
    if name not in STAGES:
        raise DriftlensError(
            f"a stage of the demo: {', '.join(STAGES)}",
            found=repr(name),
            remedy='Give one of them, for instance stage("base").',
        )
    return Path(__file__).parent / "stages" / name


def pairs(seed: int = 0) -> Iterator[tuple[str, str, str]]:
    """The pairs that `aligned` is trained on in their order: prompt, chosen and rejected.

    Each is drawn when it is asked for, and there is no last one. The shipped models are of seed 0.
    """
    from .chat import Conversations
    from .world import World

    talk, rng = Conversations(World()), Random(seed + 4)
    while True:
        yield talk.preference(rng)
