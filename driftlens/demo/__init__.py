"""Three tiny models that ship with the package: a base, its SFT and its aligned version."""

from pathlib import Path

from driftlens.errors import DriftlensError

STAGES = ("base", "sft", "aligned")
"""The stages of training, in their order."""

STEPS = {"base": 5000, "sft": 300, "aligned": 150}
"""How many steps each takes."""

ROWS = {"base": 4, "sft": 16, "aligned": 16}
"""How many texts a step shows; of `aligned`, pairs."""


def stage(name: str) -> Path:
    """The folder of a shipped stage, as `from_pretrained` takes it."""
    if name not in STAGES:
        raise DriftlensError(
            f"a stage of the demo: {', '.join(STAGES)}",
            found=repr(name),
            remedy='Give one of them, for instance stage("base").',
        )
    return Path(__file__).parent / "stages" / name
