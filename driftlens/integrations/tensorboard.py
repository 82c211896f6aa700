"""A report in TensorBoard: a folder of events, as its own writer makes them."""

import os
from pathlib import Path
from typing import Any

from driftlens.results.visible import visible

from .trackers import Told

FOLDER = "TENSORBOARD_LOGGING_DIR"
"""The variable that names the folder of all runs, as for trainers of transformers."""


def ready() -> None:
    """Nothing is asked for: it writes to a folder."""


def send(told: Told) -> str:
    """Write a run of its own, and return its folder."""
    from torch.utils.tensorboard import SummaryWriter

    place = _place(told.name)
    with SummaryWriter(str(place)) as writer:
        for name, value in told.scalars().items():
            writer.add_scalar(name, value, 0)
        for name, _, points in told.curves:
            for at, value in points.items():
                writer.add_scalar(name, value, at)
        for name, picture in told.pictures.items():
            writer.add_image(name, _pixels(picture), 0, dataformats="HWC")
        writer.add_text("verdict", _said(told.verdict))
        writer.add_text("run", _markdown(["fact", "what"], [*told.flat().items()]))
        for name, columns, rows in (told.listed(), *told.tables):
            writer.add_text(f"tables/{name}", _markdown(columns, rows))
        writer.add_text("files", "\n\n".join(_said(str(file.resolve())) for file in told.files))
        if told.left_out:
            writer.add_text("left_out", "\n\n".join(map(_said, told.left_out)))
    return str(place)


def _place(name: str) -> Path:
    """A folder that is not there yet: events of two exports in one would be drawn as one run."""
    root = Path(os.environ.get(FOLDER) or "runs")
    names = (name, *(f"{name}-{count}" for count in range(2, 10_000)))
    return next(root / one for one in names if not (root / one).exists())


def _pixels(picture: Path) -> Any:
    import numpy as np
    from PIL import Image

    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"))


def _markdown(columns: list[str], rows: Any) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("|".join(["", *map(_said, line), ""]) for line in lines)


def _said(what: Any) -> str:
    """Anything as text that markdown takes for text."""
    text = "" if what is None else f"{what:.6g}" if isinstance(what, float) else str(what)
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]<>#|!" else sign for sign in visible(text))
