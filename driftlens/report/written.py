"""A written report as its files tell it: of any kinds of results, for no class of them is asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np

from driftlens.errors import DriftlensError
from driftlens.results import Check, Estimate, multiple, shown
from driftlens.results.store import read_columns, understood

from .report import PAGE, RECORD, names_of, read_record


@dataclass(frozen=True)
class Value:
    """A headline figure of a result."""

    name: str
    estimate: Estimate
    unit: str
    floor: float
    """Size below which it cannot be told from noise; NaN if none is known."""

    @property
    def below(self) -> bool:
        """Whether it drowns in the noise."""
        return self.floor > 0 and abs(self.estimate.value) <= self.floor

    @property
    def against_floor(self) -> str:
        """What the noise floor says of it, or nothing."""
        if not (isfinite(self.floor) and isfinite(self.estimate.value)):
            return ""
        if self.below:
            return f"below {shown(self.floor, 2)}"
        return multiple(abs(self.estimate.value) / self.floor) if self.floor else ""


@dataclass(frozen=True)
class Entry:
    """One result of a written report."""

    name: str
    """That of its files, used once in the report."""

    kind: str
    pack: str
    title: str
    summary: str
    values: Mapping[str, Value]
    facts: Mapping[str, Any]
    units: Mapping[str, str]
    """Unit by name of column."""

    notes: tuple[str, ...]
    floor: Mapping[str, float]
    table: Path | None
    """The Parquet file of its columns, if there is one."""

    picture: Path | None
    """Its figure as PNG, if there is one."""

    def columns(self) -> dict[str, np.ndarray]:
        """[row] array by name of column, read from its file; nothing without one."""
        return {} if self.table is None else read_columns(self.table)

    def below(self, name: str, number: float) -> bool:
        """Whether a number of a column drowns in the noise."""
        return abs(number) <= self.floor.get(name, -1.0)


@dataclass(frozen=True)
class Written:
    """A report that stands in a folder."""

    folder: Path
    title: str
    verdict: str
    checks: tuple[Check, ...]
    run: Mapping[str, Any]
    entries: tuple[Entry, ...]
    record: Mapping[str, Any]
    """All of results.json."""

    @classmethod
    def read(cls, folder: str | Path) -> "Written":
        """The report of a folder, or of the page or the record in one.

        Raises:
            DriftlensError: There is no report, or it is broken, or of another version.
        """
        folder = Path(folder)
        folder = folder.parent if folder.name in (PAGE, RECORD) else folder
        _refuse_others(folder)
        record = read_record(folder)
        wrong = (KeyError, TypeError, AttributeError, ValueError)
        with understood(folder / RECORD, *wrong):
            results = record["results"]
            names = names_of((result["kind"], result["pack"]) for result in results)
            return cls(
                folder,
                record["title"],
                record["verdict"],
                tuple(Check(**check) for check in record["checks"]),
                record["run"] or {},
                tuple(_entry(*each, folder) for each in zip(names, results, strict=True)),
                record,
            )

    @property
    def page(self) -> Path | None:
        """Its page, if one was written."""
        return self.folder / PAGE if (self.folder / PAGE).is_file() else None

    def named(self, asked: str) -> list[Entry]:
        """The results of a kind, of a pack, or of a name.

        Raises:
            DriftlensError: There is none.
        """
        found = [
            entry
            for entry in self.entries
            if asked in (entry.kind, entry.pack, entry.name, f"{entry.kind}/{entry.pack}")
        ]
        if not found:
            kinds = ", ".join(dict.fromkeys(entry.kind for entry in self.entries)) or "none"
            raise DriftlensError(
                f"a kind of result, a pack or a name of {self.folder}",
                found=f"{asked!r} where there are {kinds}",
                remedy="Name one of these kinds, or one of them with its pack as kind/pack.",
            )
        return found


def _entry(name: str, record: Mapping[str, Any], folder: Path) -> Entry:
    floor = {name: _number(size) for name, size in record["floor"].items()}
    table, figure = record["table"], record["figure"]
    picture = None if figure is None else (folder / figure).with_suffix(".png")
    return Entry(
        name,
        record["kind"],
        record["pack"],
        record["title"],
        record["summary"],
        {name: _value(name, told) for name, told in record["values"].items()},
        record["facts"],
        record["columns"],
        tuple(record["notes"]),
        floor,
        None if table is None else folder / table,
        picture if picture is not None and picture.is_file() else None,
    )


def _value(name: str, told: Mapping[str, Any]) -> Value:
    infinite = told.get("infinite", {})
    parts = {part: infinite.get(part, told[part]) for part in Estimate._fields}
    count = isinstance(parts["value"], int)
    number = parts["value"] if count else _number(parts["value"])
    estimate = Estimate(number, _number(parts["low"]), _number(parts["high"]))
    return Value(name, estimate, told["unit"], _number(told.get("floor")))


def _number(told: float | str | None) -> float:
    return nan if told is None else float(told)


CARD = "card.json"


def _refuse_others(folder: Path) -> None:
    """Raise for a folder that driftlens wrote and that is no report."""
    if (folder / RECORD).exists() or not folder.is_dir():
        return
    held = {path.name for path in folder.iterdir()}
    for file, what, command in (
        ("probe.safetensors", "a probe", "driftlens probe show"),
        ("directions.safetensors", "directions", "driftlens steer show"),
    ):
        if {CARD, file} <= held:
            raise DriftlensError(
                f"the folder of a report, with {RECORD}",
                found=f"the folder of {what}",
                remedy=f"Type {command} {folder}.",
            )
