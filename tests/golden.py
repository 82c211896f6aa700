"""Whether a report of the demo pair still says what the one that is kept says.

    python tests/golden.py KEPT MADE

The one that is kept lies in `reports/demo`; `./dev golden` makes one anew and holds it against
that. Machines round float32 otherwise, so numbers may differ by what is stated here and no more;
words, data, models, gates, tables and figures may not differ at all. And the page that is kept must
be the one that is drawn today from the record that is kept, to the byte.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from driftlens import preflight, suite
from driftlens.report import render
from driftlens.results.store import read_columns

assert all((preflight, suite)), "kinds of results are known once these are imported"

RELATIVE, OF_ERROR, ABSOLUTE = 1e-3, 0.01, 1e-5
"""By what part of itself, or of its error bar (half its interval), or by how much, a figure may
differ; a number in a table, by the first part of the largest of its column. Of 468 figures another
instruction set moved 450 by less than 1e-5 of themselves, and none by 2e-6 in all."""

DRAWN = frozenset({"homogenisation", "homogenisation_methods", "uncertainty", "right_answers"})
"""Kinds that tell of drawn answers, and what tells of those together with all else. Of some 28 000
draws a handful turn between machines, each with the answer that it begins."""
DRAWN |= {"risk_coverage", "overview", "overview_layers"}

OF_DRAWN = 0.05, 0.25
"""The same for these."""

ROWS = 0.02
"""What part of a table's rows may differ by more, rounded down: none of fewer than fifty."""

OF_DRAWN_ROWS = 0.15
"""The same for tables of drawn answers."""

OF_PROBES = 0.1
"""The same for probes, whose descents may end with another statement on the other side."""

NOISE = "noise_floor"
"""The kind whose numbers are of rounding alone: only their size is held, by a factor of 100."""

NUMBER = re.compile(r"[−-]?\d(?:[\d\u202f.,]*\d)?(?: × 10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?(?:e[−+-]?\d+)?|over 1000")


LOWERED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def differences(kept: Path, made: Path) -> Iterator[str]:
    """What of two reports differs by more than it may, a line each."""
    old, new = (json.loads((folder / "results.json").read_text("utf-8")) for folder in (kept, made))
    for what, told in _said(old).items():
        if told != (now := _said(new)[what]):
            yield f"{what}: {told} before, {now} now"
    if not _alike(old["verdict"], new["verdict"], "overview"):
        yield f"verdict: {old['verdict']} before, {new['verdict']} now"
    if [*_kinds(old)] != [*_kinds(new)]:
        yield f"results: {set(_kinds(old)) ^ set(_kinds(new)) or 'in another order'}"
        return
    for before, after in zip(old["results"], new["results"], strict=True):
        name = f"{before['kind']} on {before['pack'] or 'all'}"
        for line in _of_result(before, after, kept, made):
            yield f"{name}: {line}"


def stale(kept: Path) -> Iterator[str]:
    """What of a report's page and figures is not what is drawn of its record today."""
    with TemporaryDirectory() as folder:
        again = Path(copytree(kept, Path(folder) / "again"))
        render(again)
        for path in sorted(kept.rglob("*")):
            drawn = again / path.relative_to(kept)
            if path.suffix in (".html", ".svg") and path.read_bytes() != drawn.read_bytes():
                yield f"{path.relative_to(kept)} is not what is drawn today"


def _said(record: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same to the letter."""
    run = record["run"]
    return {
        "title": record["title"],
        "schema": record["schema_version"],
        "gates": [(check["name"], check["status"]) for check in record["checks"]],
        "models": [run["models"][side]["sha256"] for side in ("base", "aligned")],
        "packs": [(pack["name"], pack["sha256"], pack["examples"]) for pack in run["packs"]],
        "seed": run["seed"],
    }


def _kinds(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    return ((result["kind"], result["pack"]) for result in record["results"])


def _of_result(
    old: Mapping[str, Any], new: Mapping[str, Any], kept: Path, made: Path
) -> Iterator[str]:
    for what in ("title", "columns", "figure", "table"):
        if old[what] != new[what]:
            yield f"{what} {old[what]!r} before, {new[what]!r} now"
    for what in ("summary", "notes", "facts"):
        if not _alike(str(old[what]), str(new[what]), old["kind"]):
            yield f"{what} {old[what]!r} before, {new[what]!r} now"
    if [*old["floor"]] != [*new["floor"]]:
        yield f"floors {[*old['floor']]} before, {[*new['floor']]} now"
    for name, floor in new["floor"].items():
        if floor > max(100 * old["floor"].get(name, 0.0), ABSOLUTE):
            yield f"floor of {name}: {old['floor'].get(name)} before, {floor} now"
    if [*old["values"]] != [*new["values"]]:
        yield f"values {[*old['values']]} before, {[*new['values']]} now"
        return
    for name, before in old["values"].items():
        yield from _of_value(name, before, new["values"][name], old["kind"])
    if old["table"] and old["table"] == new["table"]:
        tables = (read_columns(folder / old["table"]) for folder in (kept, made))
        yield from _of_tables(*tables, old["kind"])


def _alike(before: str, after: str, kind: str) -> bool:
    """Whether two sentences have the same words, and numbers that differ by their last digit."""
    if NUMBER.sub("#", before) != NUMBER.sub("#", after):
        return False
    if kind == NOISE:
        return True
    relative = OF_DRAWN[0] if kind in DRAWN else RELATIVE
    return all(
        abs(new - old) <= max(relative * abs(old), digit * (3 if kind in DRAWN else 1), ABSOLUTE)
        for (old, digit), (new, _) in zip(_numbers(before), _numbers(after), strict=True)
    )


def _numbers(text: str) -> Iterator[tuple[float, float]]:
    """Numbers as they are written, each with one of its last digit."""
    for found in NUMBER.findall(text):
        plain = found.replace("\u202f", "").replace(",", "").replace("−", "-")
        mantissa, _, power = plain.replace(" × 10", "e").translate(LOWERED).partition("e")
        if not re.fullmatch(r"-?\d+(\.\d+)?", mantissa):
            # No number: a range, a version, an address.
            continue
        size = 10.0 ** int(power or 0)
        yield float(mantissa) * size, 10.0 ** -len(mantissa.partition(".")[2]) * size


def _of_value(
    name: str, old: Mapping[str, Any], new: Mapping[str, Any], kind: str
) -> Iterator[str]:
    if old["unit"] != new["unit"]:
        yield f"{name} in {old['unit']!r} before, in {new['unit']!r} now"
    error = 0.0
    if None not in (old["low"], old["high"]):
        error = (old["high"] - old["low"]) / 2
    for bound in ("value", "low", "high"):
        before, after = old[bound], new[bound]
        if (before is None) != (after is None):
            yield f"{name}, {bound}: {before} before, {after} now"
        elif before is not None and not _near(before, after, error, kind):
            yield f"{name}, {bound}: {before:.6g} before, {after:.6g} now"


def _near(before: float, after: float, error: float, kind: str) -> bool:
    if kind == NOISE:
        return abs(np.log10((abs(before) + 1e-12) / (abs(after) + 1e-12))) <= 2
    relative, of_error = OF_DRAWN if kind in DRAWN else (RELATIVE, OF_ERROR)
    return abs(after - before) <= max(relative * abs(before), of_error * error, ABSOLUTE)


def _of_tables(
    old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray], kind: str
) -> Iterator[str]:
    old, new = _in_place(old), _in_place(new)
    for name, before in old.items():
        after = new[name]
        if len(before) != len(after):
            yield f"{len(before)} rows before, {len(after)} now"
            return
        if kind == NOISE:
            continue
        differ = _other(before, after, OF_DRAWN[0] if kind in DRAWN else RELATIVE)
        free = OF_DRAWN_ROWS if kind in DRAWN else OF_PROBES if "polarity" in kind else ROWS
        if differ.sum() > free * len(before):
            row = int(differ.argmax())
            yield (
                f"column {name}: {differ.sum()} of {len(before)} rows differ, the first of them "
                f"{row}: {before[row]} before, {after[row]} now"
            )


def _in_place(table: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """A table of tokens in the order of the text: by their numbers, rounding exchanges rows."""
    if not {"document", "position"} <= set(table):
        return table
    order = np.lexsort((table["position"], table["document"]))
    return {name: rows[order] for name, rows in table.items()}


def _other(before: np.ndarray, after: np.ndarray, relative: float) -> np.ndarray:
    """[row] whether two rows differ by more than they may."""
    if before.dtype.kind not in "fiu" or after.dtype.kind not in "fiu":
        return np.array(
            [
                NUMBER.sub("#", str(a)) != NUMBER.sub("#", str(b))
                for a, b in zip(before, after, strict=True)
            ],
            dtype=bool,
        )
    finite = before[np.isfinite(before)]
    scale = float(abs(finite).max()) if len(finite) else 0.0
    return ~np.isclose(after, before, rtol=0, atol=relative * scale + 1e-9, equal_nan=True)


def main(kept: Path, made: Path) -> int:
    """Print what differs; 1 if anything does."""
    lines = [*differences(kept, made), *stale(kept)]
    for line in lines:
        print(line)
    print(f"{made} says what {kept} says." if not lines else f"{len(lines)} differences.")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
