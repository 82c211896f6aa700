"""Finished runs, read from their folders and held against the first of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import preflight, suite
from .diagnostics.runs import RunsResult
from .errors import DriftlensError
from .formulas.intervals import bootstrap
from .packs import Pack, names
from .report import Report
from .report.report import RECORD
from .results import Check, Estimate, Result
from .series import short

assert all((preflight, suite)), "kinds of results are known once these are imported"

OF_MEASUREMENT = {"noise_floor"}
"""Kinds whose values say nothing of the models."""

TEXTS, WINDOWS, TOKENS = "other texts", "other windows", "other tokens"
"""Why numbers are of other data."""

ABSENT = "not shown to both"
"""Why there is nothing to compare."""

Key = tuple[str, str, str]
"""Pack, kind and name."""


class Value(NamedTuple):
    """A headline figure as a run's record has it."""

    number: Estimate
    unit: str
    place: int
    """Where it stands among those of its kind: what adds up, and is a rise, stands first."""


class Losses(NamedTuple):
    """What each document lost."""

    places: bytes
    """Which tokens of which documents were scored, to tell whether others were."""
    documents: np.ndarray
    rises: np.ndarray
    tokens: np.ndarray


@dataclass(frozen=True)
class Run:
    """A finished run."""

    name: str
    folder: Path
    report: Report

    @property
    def about(self) -> Mapping[str, Any]:
        """Where its numbers came from."""
        return self.report.run or {}

    @property
    def results(self) -> list[Result]:
        """What it measured on packs."""
        return [one for one in self.report.results if one.pack and one.kind not in OF_MEASUREMENT]

    @cached_property
    def values(self) -> dict[Key, Value]:
        """Its headline figures that are known, rises first."""
        found: dict[Key, Value] = {}
        for result in self.results:
            side = getattr(result, "model", "") if result.sided else ""
            kind = f"{result.kind} of {side}" if side else result.kind
            for name, number in result.estimates().items():
                if not np.isnan(number.value):
                    order = [*result.adds, name]
                    told = Value(number, result.unit(name), order.index(name))
                    found.setdefault((result.pack, kind, name), told)
        return found

    @cached_property
    def packs(self) -> dict[str, Mapping[str, Any]]:
        """What its record says of each pack."""
        return {str(pack["name"]): pack for pack in self.about.get("packs") or ()}

    @cached_property
    def losses(self) -> dict[str, Losses]:
        """By pack what each document lost, where every token's loss was kept."""
        found = {}
        for result in self.results:
            if result.kind == "token_forgetting":
                columns = result.columns()
                if len(columns["rise"]) == result.values()["seen"]["value"]:
                    found[result.pack] = _losses(columns)
        return found

    def scored(self, pack: str) -> int | None:
        """How many tokens of a pack it scored, where it says so."""
        counts = (
            r.values()["scored"] for r in self.results if r.kind == "forgetting" and r.pack == pack
        )
        return next((int(count["value"]) for count in counts), None)


@dataclass(frozen=True)
class Comparison:
    """Runs side by side."""

    runs: tuple[Run, ...]
    result: RunsResult
    checks: tuple[Check, ...]
    """What the runs have in common, and in what they differ."""

    def page(self, about: Mapping[str, Any]) -> Report:
        """The page of it."""
        runs = [
            {
                "run": number,
                "name": run.name,
                "folder": str(run.folder),
                "title": run.report.title,
                **{name: run.about.get(name) for name in ("started", "seed", "command")},
            }
            for number, run in enumerate(self.runs, 1)
        ]
        title = " | ".join(run.name for run in self.runs)
        return Report(title, [self.result], self.checks, {**about, "runs": runs})


def read(folders: Sequence[str | Path]) -> tuple[Run, ...]:
    """The finished runs in some folders.

    Raises:
        DriftlensError: There are fewer than two, one is there twice, or one is not finished, is
            no report, or is of another version of the schema.
    """
    places = [Path(folder) for folder in folders]
    known = [place.resolve() for place in places]
    if len(set(known)) < 2 or len(set(known)) < len(known):
        raise DriftlensError(
            "folders of two or more runs",
            found="one alone"
            if len(known) == 1
            else f"{places[0]} more than once"
            if len(set(known)) == 1
            else "the same folder more than once",
            remedy="Name the folder of every run once.",
        )
    reports = [_finished(place) for place in places]
    called = short([str(place) for place in known])
    return tuple(Run(*one) for one in zip(called, places, reports, strict=True))


def compare(
    runs: Sequence[Run], *, allow_different: bool = False, seed: int = 0, level: float = 0.95
) -> Comparison:
    """Hold every headline figure of some runs against that of the first.

    Args:
        runs: As `read` gives them.
        allow_different: Whether to tell differences between numbers of other data too.
        seed: Of the bootstrap of paired differences.
        level: Part of its draws that an interval holds.
    """
    keys = _order(runs)
    marks = {pack: [_mark(pack, runs[0], run) for run in runs] for pack, _, _ in keys}
    rows: list[tuple] = []
    for key in keys:
        of = [run.values.get(key) for run in runs]
        pairs = _paired(key, runs, marks[key[0]], seed, level)
        rows += _rows(key, runs, of, marks[key[0]], pairs, allow_different)
    return Comparison(tuple(runs), _result(runs, rows), tuple(_checks(runs, marks)))


def crossed(result: RunsResult, kind: str, name: str) -> list[float]:
    """The differences of a value from the first run that are told, to hold against a bound.

    Raises:
        DriftlensError: There are none.
    """
    rows = (result.diagnostic == kind) & (result.quantity == name) & (result.run > 1)
    found = result.difference[rows & np.isfinite(result.difference)]
    if not len(found):
        why = sorted({str(said) for said in result.pairing[rows]}) or ["no run that has it"]
        raise DriftlensError(
            f"a difference of {kind}.{name} to hold against the bound",
            found=", ".join(why),
            remedy="Compare runs on the same texts, or give --allow-different.",
        )
    return found.tolist()


def _finished(folder: Path) -> Report:
    if (folder / RECORD).is_file():
        return Report.read(folder)
    left = folder.resolve().parent / f".{folder.resolve().name}.partial"
    if left.is_dir():
        raise DriftlensError(
            f"a finished run in {folder}",
            found="one that was interrupted",
            remedy="Give its command again with --resume.",
        )
    raise DriftlensError(
        f"a report's {RECORD} in {folder}",
        found="none" if folder.is_dir() else "a file" if folder.exists() else "no such folder",
        remedy="Give the folder that --out named, written with --format json.",
    )


def _losses(columns: Mapping[str, np.ndarray]) -> Losses:
    documents, places = np.unique(columns["document"], return_inverse=True)
    scored = columns["document"].tobytes() + columns["position"].tobytes()
    return Losses(
        scored + "\0".join(map(str, columns["token"])).encode("utf-8", "backslashreplace"),
        documents,
        np.bincount(places, columns["rise"]),
        np.bincount(places).astype(float),
    )


def _order(runs: Sequence[Run]) -> list[Key]:
    """Every quantity that a run has, of each kind what is a rise first; repeats are left out."""
    keys = list(dict.fromkeys(key for run in runs for key in run.values))
    packs = list(dict.fromkeys(key[0] for key in keys))
    kinds = list(dict.fromkeys(key[:2] for key in keys))

    def place(key: Key) -> tuple[int, int, int]:
        within = min(run.values[key].place for run in runs if key in run.values)
        return packs.index(key[0]), kinds.index(key[:2]), within

    return sorted((key for key in keys if not _repeats(key, runs)), key=place)


def _repeats(key: Key, runs: Sequence[Run]) -> bool:
    """Whether a total only says again what forgetting says."""
    rise = (key[0], "forgetting", "loss_rise")
    return key[2] == "total" and all(
        rise in run.values and run.values[key].number.value == run.values[rise].number.value
        for run in runs
        if key in run.values
    )


def _mark(pack: str, first: Run, run: Run) -> str:
    """Why a run's numbers of a pack are of other data than the first's; "" if they are not."""
    if pack not in first.packs or pack not in run.packs:
        return ABSENT
    ours, theirs = (of.packs[pack].get("sha256") for of in (first, run))
    if ours is None or ours != theirs:
        return TEXTS
    if first.about.get("options", {}).get("max_length") != run.about.get("options", {}).get(
        "max_length"
    ):
        return WINDOWS
    if first.scored(pack) != run.scored(pack):
        return TOKENS
    kept = (of.losses.get(pack) for of in (first, run))
    one, other = (None if losses is None else losses.places for losses in kept)
    return TOKENS if one is not None and other is not None and one != other else ""


def _paired(
    key: Key, runs: Sequence[Run], marks: Sequence[str], seed: int, level: float
) -> list[Estimate | None]:
    """[run] the paired difference of the rise in loss, where documents can be paired."""
    pack, kind, name = key
    ours = runs[0].losses.get(pack)
    found: list[Estimate | None] = []
    for run, mark in zip(runs, marks, strict=True):
        theirs = run.losses.get(pack)
        if (kind, name) != ("forgetting", "loss_rise") or mark or ours is None or theirs is None:
            found.append(None)
            continue
        clusters = _clusters(pack, runs[0])
        drawn = bootstrap(
            theirs.rises - ours.rises,
            ours.tokens,
            seed=seed,
            level=level,
            clusters=None if clusters is None else clusters[ours.documents],
        )
        found.append(Estimate(*map(float, drawn)))
    return found


def _clusters(pack: str, run: Run) -> np.ndarray | None:
    """[document] what is drawn together, of a pack that ships with driftlens."""
    known = run.packs[pack]
    if pack not in names():
        return None
    shipped = Pack.load(pack)
    for one in (shipped, shipped.limit(int(known.get("examples") or 1))):
        if one.sha256 == known["sha256"]:
            return np.asarray(one.clusters)
    return None


def _rows(
    key: Key,
    runs: Sequence[Run],
    values: Sequence[Value | None],
    marks: Sequence[str],
    pairs: Sequence[Estimate | None],
    allow_different: bool,
) -> Iterator[tuple]:
    unit = next(value.unit for value in values if value is not None)
    first = values[0].number if values[0] else Estimate(nan)
    for number, (run, value, mark, pair) in enumerate(
        zip(runs, values, marks, pairs, strict=True), 1
    ):
        own = value.number if value else Estimate(nan)
        difference, pairing = Estimate(own.value - first.value), "unpaired"
        if value is None or values[0] is None:
            pairing = "not measured" if value is None else "not measured in the first"
        elif number == 1:
            pairing = "first"
        elif mark and not allow_different:
            difference, pairing = Estimate(nan), mark
        elif mark:
            pairing = f"unpaired, {mark}"
        elif pair is not None:
            difference, pairing = pair, "paired"
        apart = "" if number == 1 else _apart(first, own)
        yield (*key, number, run.name, *own, unit, *difference, apart, pairing)


def _apart(one: Estimate, other: Estimate) -> str:
    if not all(map(isfinite, (*one[1:], *other[1:]))):
        return "not known"
    return "apart" if one.low > other.high or other.low > one.high else "overlap"


COLUMNS = (
    *("packs", "diagnostic", "quantity", "run", "named", "number", "low", "high", "measured_in"),
    *("difference", "difference_low", "difference_high", "intervals", "pairing"),
)


def _result(runs: Sequence[Run], rows: Sequence[tuple]) -> RunsResult:
    columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True)) if rows else {}
    foremost = rows[0][:3] if rows else ()
    mine = [row for row in rows if row[:3] == foremost]
    number, difference = COLUMNS.index("number"), COLUMNS.index("difference")
    told = [Estimate(*row[difference : difference + 3]) for row in mine[1:]]
    known = [one for one in told if isfinite(one.value)]
    return RunsResult.of(
        first=Estimate(*mine[0][number : number + 3]) if mine else nan,
        largest_difference=max(known, key=lambda one: abs(one.value), default=nan),
        runs=tuple(run.name for run in runs),
        foremost=foremost,
        **{name: list(columns.get(name, ())) for name in COLUMNS},
    )


def _checks(runs: Sequence[Run], marks: Mapping[str, Sequence[str]]) -> Iterator[Check]:
    for pack, why in marks.items():
        others = [f"{run.name}: {mark}" for run, mark in zip(runs, why, strict=True) if mark]
        detail = "; ".join(others) or "the same texts, windows and tokens in every run"
        yield Check(f"pack {pack}", "warn" if others else "pass", detail)
    for what, path in CONDITIONS.items():
        yield _condition(what, [_at(run.about, path) for run in runs], runs)
    options = {name for run in runs for name in run.about.get("options") or {}}
    for name in sorted(options - {"max_length"}):
        told = [(run.about.get("options") or {}).get(name) for run in runs]
        if any(one != told[0] for one in told):
            yield _condition(name.replace("_", " "), told, runs)
    for run in runs:
        kinds = {(k[0], k[1]) for other in runs for k in other.values}
        missing = sorted(
            f"{kind} ({pack})"
            for pack, kind in kinds - {(k[0], k[1]) for k in run.values}
            if pack in run.packs
        )
        if missing:
            yield Check(f"measured in {run.name}", "warn", f"not there: {', '.join(missing)}")


CONDITIONS: Mapping[str, tuple[str, ...]] = {
    "seed": ("seed",),
    "base model": ("models", "base", "sha256"),
    "dtype of base": ("models", "base", "dtype"),
    "dtype of aligned": ("models", "aligned", "dtype"),
    "device": ("models", "aligned", "device"),
    "attention": ("models", "aligned", "attention"),
    "back-end": ("models", "aligned", "backend"),
    "driftlens": ("versions", "driftlens"),
    "torch": ("versions", "torch"),
    "transformers": ("versions", "transformers"),
}
"""What numbers may depend on besides the aligned model and the texts, and where records say it."""


def _at(about: Any, path: Sequence[str]) -> Any:
    for name in path:
        about = about.get(name) if isinstance(about, Mapping) else None
    return about


def _condition(what: str, told: Sequence[Any], runs: Sequence[Run]) -> Check:
    if all(one == told[0] for one in told):
        return Check(what, "pass", f"{_shown(told[0])} in every run")
    said = (f"{_shown(one)} in {run.name}" for one, run in zip(told, runs, strict=True))
    return Check(what, "warn", ", ".join(said))


def _shown(what: Any) -> str:
    if what is None:
        return "not told"
    # Of a hash its beginning tells it apart.
    return str(what)[:12] if isinstance(what, str) and len(what) >= 64 else str(what)
