"""A written report for trackers of experiments: what is told is settled here, whoever is told it.

Nothing is measured and nothing changes: figures, curves and pictures are those of results.json and
of the files beside it. What is undefined is left out and counted, never made into a number.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from driftlens.errors import DriftlensError
from driftlens.report.report import RECORD
from driftlens.report.written import Entry, Written

TRACKERS = ("wandb", "tensorboard", "mlflow", "trackio")
"""Those that can be told, by the names of their packages and of the modules here."""

PROJECT = "driftlens"
"""What runs are filed under where the tracker's own settings name nothing."""

ROWS = 200
"""Rows up to which a table goes to a tracker; longer ones are left in their files."""

AXES = ("layer", "stage")
"""Columns that name layers, along which others are drawn."""


class Figure(NamedTuple):
    """A headline figure: `name` is kind/pack/figure; bounds that are not known are NaN."""

    name: str
    unit: str
    value: float
    low: float
    high: float


class Curve(NamedTuple):
    """A column over layers: the embedding is at −1, block 5 at 5, the head after the last."""

    name: str
    unit: str
    points: dict[int, float]


class Table(NamedTuple):
    """A table whose undefined cells are None."""

    name: str
    columns: list[str]
    rows: list[list[Any]]


@dataclass
class Told:
    """All that a tracker is told of one report."""

    name: str
    title: str
    verdict: str
    facts: dict[str, Any]
    """Models, packs, options, versions, seed and times; what nothing is known of is not there."""

    figures: list[Figure] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: dict[str, Path] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    """The page, if there is one, and the record."""

    left_out: list[str] = field(default_factory=list)
    """What no tracker is told, and why."""

    def scalars(self) -> dict[str, float]:
        """Every figure, and its bounds where they are known as figure_low and figure_high."""
        return {
            f"{name}{part}": number
            for name, _, *numbers in self.figures
            for part, number in zip(("", "_low", "_high"), numbers, strict=True)
            if isfinite(number)
        }

    def listed(self) -> Table:
        """The figures as one table, for trackers whose numbers have no units."""
        rows = [[name, unit, *map(_cell, numbers)] for name, unit, *numbers in self.figures]
        return Table("figures", [*Figure._fields], rows)

    def depth(self) -> list[int]:
        """Every layer that a curve has a point at, from below."""
        return sorted({at for curve in self.curves for at in curve.points})

    def extent(self) -> str:
        """How much it is."""
        parts = {
            "figure": len(self.figures),
            "curve": len(self.curves),
            "table": len(self.tables),
            "picture": len(self.pictures),
        }
        return ", ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in parts.items())

    def flat(self) -> dict[str, Any]:
        """The facts in one level, as models/base/sha256."""
        return dict(_flat(self.facts))


def ready(name: str) -> None:
    """Raise unless a tracker can be told something later on.

    Raises:
        DriftlensError: It is none of ours, its package is not there, or it lacks a setting.
    """
    if name not in TRACKERS:
        raise DriftlensError(
            f"a tracker among {', '.join(TRACKERS)}", found=repr(name), remedy="Name one of these."
        )
    if find_spec(name) is None:
        raise DriftlensError(
            f"the package {name}, to tell it of a report",
            found="none",
            remedy=f"Type pip install 'driftlens[{name}]'.",
        )
    _module(name).ready()


def send(folder: str | Path, name: str) -> tuple[Told, str]:
    """Tell a tracker of the report in a folder; return what was told, and where it is now."""
    told = told_of(Written.read(folder))
    return told, _module(name).send(told)


def told_of(written: Written) -> Told:
    """All that a tracker is told of a report."""
    told = Told(
        written.folder.resolve().name,
        written.title,
        written.verdict,
        _facts({"title": written.title, **written.run}),
        files=[*filter(None, [written.page]), written.folder / RECORD],
    )
    for prefix, entry in zip(_prefixes(written), written.entries, strict=True):
        _add_figures(told, prefix, entry)
        if entry.table is not None:
            columns = entry.columns()
            _add_curves(told, prefix, entry, columns)
            _add_table(told, entry, columns)
        if entry.picture is not None:
            told.pictures[prefix] = entry.picture
    told.left_out += [
        f"{what}, which the report was written without"
        for what, found in (
            ("tables and curves", any(entry.table for entry in written.entries)),
            ("pictures", told.pictures),
            ("the page", written.page),
        )
        if not found
    ]
    return told


def _module(name: str) -> Any:
    return import_module(f"driftlens.integrations.{name}")


def _prefixes(written: Written) -> list[str]:
    """[result] kind/pack, used once; the kind alone of what is of no pack."""
    prefixes: list[str] = []
    for entry in written.entries:
        wanted = "/".join(filter(None, (entry.kind, entry.pack.replace("/", "-"))))
        others = (f"{wanted}-{count}" for count in range(2, len(prefixes) + 3))
        prefixes.append(next(name for name in (wanted, *others) if name not in prefixes))
    return prefixes


def _add_figures(told: Told, prefix: str, entry: Entry) -> None:
    for name, value in entry.values.items():
        if isfinite(value.estimate.value):
            told.figures.append(Figure(f"{prefix}/{name}", value.unit, *value.estimate))
        else:
            told.left_out.append(f"{prefix}/{name}, which is {_why(value.estimate.value)}")


def _add_curves(told: Told, prefix: str, entry: Entry, columns: Mapping[str, np.ndarray]) -> None:
    # Stages that are numbers are those of a training.
    named = {name: column.dtype == object or name == "layer" for name, column in columns.items()}
    axis = next((name for name in AXES if named.get(name)), None)
    layers = [] if axis is None else _layers(columns[axis])
    for said, rows in _divided(columns, axis, layers) if layers else ():
        for name, column in columns.items():
            if name == axis or column.dtype.kind not in "iuf":
                continue
            points = {layers[row]: float(column[row]) for row in rows}
            known = {at: number for at, number in points.items() if isfinite(number)}
            whole = "/".join(filter(None, (prefix, "by_layer", name, said)))
            if known:
                told.curves.append(Curve(whole, entry.units[name], known))
            if known and len(known) < len(points):
                lost = len(points) - len(known)
                told.left_out.append(f"{lost} undefined of the {len(points)} points of {whole}")


def _layers(names: np.ndarray) -> list[int]:
    """[row] a step for each layer, or nothing if a name is none of a layer."""
    known = [str(name) for name in names]
    depth = max((int(name) for name in known if name.isdigit()), default=-1) + 1
    steps = {"embed": -1, "-1": -1, "head": depth}
    if not all(name in steps or name.isdigit() for name in known):
        return []
    return [steps.get(name, int(name) if name.isdigit() else 0) for name in known]


def _divided(
    columns: Mapping[str, np.ndarray], axis: str | None, layers: list[int]
) -> Iterator[tuple[str, list[int]]]:
    """Each set of rows that has every layer once and in order, and what tells it from others."""
    keys = [
        name
        for name, column in columns.items()
        if name != axis and column.dtype == object and not _tells_layer(column, layers)
    ]
    sets: dict[tuple[str, ...], list[int]] = {}
    for row in range(len(layers)):
        sets.setdefault(tuple(str(columns[key][row]) for key in keys), []).append(row)
    steps = [[layers[row] for row in rows] for rows in sets.values()]
    if any(any(b <= a for a, b in pairwise(one)) for one in steps):
        return
    for said, rows in sets.items():
        if len(rows) > 1:
            yield " ".join(said).replace("/", "-") if len(sets) > 1 else "", rows


def _tells_layer(column: np.ndarray, layers: list[int]) -> bool:
    """Whether a column names places, each of which lies in one layer, and is in no other row."""
    return len(set(column.tolist())) == len(layers)


def _add_table(told: Told, entry: Entry, columns: Mapping[str, np.ndarray]) -> None:
    lists = [column.tolist() for column in columns.values()]
    rows = [[_cell(what) for what in row] for row in zip(*lists, strict=True)]
    if len(rows) > ROWS:
        told.left_out.append(f"the {len(rows)} rows of tables/{entry.name}.parquet")
    elif rows:
        told.tables.append(Table(entry.name, list(columns), rows))


def _cell(what: Any) -> Any:
    return None if isinstance(what, float) and not isfinite(what) else what


def _why(number: float) -> str:
    return "undefined" if number != number else "infinite"


def _facts(what: Any) -> Any:
    """Facts without those that say nothing; rows that have names by their names."""
    if isinstance(what, Mapping):
        return {
            str(name): _facts(part) for name, part in what.items() if part not in (None, "", [], {})
        }
    if isinstance(what, list):
        named = all(isinstance(row, Mapping) and "name" in row for row in what)
        return {str(row["name"]): _facts(row) for row in what} if named else what
    return what


def _flat(facts: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, what in facts.items():
        # A name with a stroke would open a level that is none.
        whole = f"{above}{name.replace('/', '-')}"
        if isinstance(what, Mapping):
            yield from _flat(what, f"{whole}/")
        else:
            yield whole, what
