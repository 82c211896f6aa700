"""The card of kept directions: what it says of a model and its layers, and what may be wrong."""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np

from driftlens.contrasts import MODELS
from driftlens.errors import DriftlensError, LoadError
from driftlens.models import Model
from driftlens.models.fingerprint import known_by
from driftlens.models.steering import PARTS, Positions
from driftlens.results.folders import CARD, Held, Keeping

if TYPE_CHECKING:
    from driftlens.estimators import Direction

TENSORS, FORMAT = "directions.safetensors", 1
"""The file of a folder that holds its directions, and the version of what it holds."""

FOLDER = Keeping(
    "directions",
    TENSORS,
    FORMAT,
    command="driftlens steer",
    again="find the directions again",
    broken="Restore both files, or find the directions again.",
)

FIGURES = ("accuracy", "split_half_cosine", "p_value")
"""What is known of a layer's direction besides what it tells itself; see `DirectionsResult`."""

UNIT = 1e-9
"""How far the length of a vector of length 1 may be from it, by rounding."""


class Strength(NamedTuple):
    """How far to go along the direction of the recommended layer, and what comes of it."""

    r: float
    """The step, in the stream's own units."""

    low: float = float("nan")
    """Lower end of its interval; NaN if there is none."""

    high: float = float("nan")
    """Upper end of it."""

    gain: float = float("nan")
    """What it adds to the behaviour."""

    cost: float = float("nan")
    """What it takes from the capability."""


# What is known of a layer, and of a model


def row_found(layer: int, found: "Direction", row: Mapping[str, Any]) -> dict[str, Any]:
    """A layer's row, of a direction that was found and what else was measured of it."""
    return row_of(
        layer,
        norm=found.norm,
        mean_length=float(found.lengths.mean()),
        relative_norm=found.relative,
        separation=found.separation,
        **{name: row[name] for name in FIGURES if name in row},
    )


def row_of(layer: int, norm: float, **more: float) -> dict[str, Any]:
    """A layer's row of the card."""
    names = ("mean_length", "relative_norm", "separation", *FIGURES)
    numbers = {"norm": norm, **{name: more.get(name) for name in names}}
    return {"layer": int(layer), **plain(numbers)}


def plain(numbers: Mapping[str, Any]) -> dict[str, float | None]:
    """Numbers as JSON has them: None where they are undefined."""
    return {name: None if x is None or not isfinite(x) else float(x) for name, x in numbers.items()}


def told_of(model: Model) -> dict[str, Any]:
    """Whose directions they are; all weights of the model are read."""
    return {**known_by(model), "type": type_of(model)}


def type_of(model: Model) -> str:
    """The model's type as its config has it; empty if it has none."""
    config = getattr(getattr(model, "net", None), "config", None)
    return str(getattr(config, "model_type", ""))


def said(layers: Sequence[int]) -> str:
    """Numbers of blocks as --layer takes them: 1-5, or 1,4-7."""
    apart = np.flatnonzero(np.diff(layers) != 1) + 1
    runs = np.split(np.asarray(layers), apart)
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


# What is wrong


def refuse_several(folder: Path) -> None:
    """Raise if the folder has no card of its own, but folders of models of a pair have."""
    inside = [folder / name for name in MODELS if (folder / name / CARD).is_file()]
    if inside and not (folder / CARD).exists():
        raise LoadError(
            "the folder of one model's directions",
            found=f"{folder}, which holds {' and '.join(path.name for path in inside)}",
            remedy=f"Give {' or '.join(map(str, inside))}.",
        )


def check(held: Held, folder: str | Path) -> None:
    """Raise unless vectors and card are each other's."""
    card, tensors, whole = held
    try:
        wrong = wrong_in(card)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        wrong = f"{type(error).__name__}: {error}"
    if wrong:
        raise DriftlensError(
            f"a card in {folder} as driftlens writes it", found=wrong, remedy=FOLDER.restore
        )
    FOLDER.refuse_strangers(folder, whole)
    shape, unit = (len(card["layers"]), card["model"]["width"]), tensors.get("unit")
    if unit is None or len(tensors) > 1 or unit.shape != shape or unit.dtype != float:
        found = [f"`{n}` {some.dtype} {list(some.shape)}" for n, some in tensors.items()]
        raise DriftlensError(
            f"`unit` float64 {list(shape)} in {TENSORS} of {folder}, as its card tells",
            found=", ".join(found) or "none",
            remedy=FOLDER.restore,
        )
    if not bool((np.abs(np.linalg.norm(unit, axis=1) - 1) < UNIT).all()):
        raise DriftlensError(
            f"vectors of length 1 in {TENSORS} of {folder}", found="others", remedy=FOLDER.restore
        )


def wrong_in(card: Mapping[str, Any]) -> str:
    """What is wrong with a card, if anything is."""
    return next(_faults(card), "")


def _faults(card: Mapping[str, Any]) -> Iterator[str]:
    # What comes first is what the rest relies on.
    model, layers, rows, told = (card[n] for n in ("model", "layers", "metrics", "strength"))
    words = {n: card[n] for n in ("driftlens", "method")}
    words |= {f"model.{n}": model[n] for n in ("name", "sha256", "dtype", "type")}
    yield from (f"{what!r} for {n}" for n, what in words.items() if not isinstance(what, str))
    for name in ("width", "depth"):
        if type(model[name]) is not int:
            yield f"{model[name]!r} for model.{name}"
    if not layers or any(type(n) is not int or not 0 <= n < model["depth"] for n in layers):
        yield f"layers {layers}"
    if layers != sorted({*layers}) or layers != [row["layer"] for row in rows]:
        yield f"layers {layers} with rows of {[row['layer'] for row in rows]}"
    for row in rows:
        if not _positive(row["norm"]):
            yield f"norm {row['norm']!r} of block {row['layer']}"
        if row["mean_length"] is not None and not _positive(row["mean_length"]):
            yield f"mean_length {row['mean_length']!r} of block {row['layer']}"
    if card["layer"] not in [None, *layers]:
        yield f"recommended layer {card['layer']!r}"
    for name, known in (("part", PARTS), ("positions", get_args(Positions))):
        if card[name] not in known:
            yield f"{name} {card[name]!r}"
    if told is not None and not _is_strength(told):
        yield f"strength {told}"


def _positive(number: object) -> bool:
    return isinstance(number, float | int) and isfinite(number) and number > 0


def _is_strength(told: Mapping[str, Any]) -> bool:
    numbers = [x for x in told.values() if x is not None]
    right = all(isinstance(x, float | int) and isfinite(x) for x in numbers)
    return right and {*told} == {*Strength._fields} and told["r"] is not None
