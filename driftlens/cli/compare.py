"""`driftlens compare`: finished runs side by side."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from driftlens.errors import DriftlensError

from .shared import (
    FORMATS,
    AsJson,
    Bound,
    Format,
    Overwrite,
    Quiet,
    ReportTo,
    Seed,
    end,
    formats_of,
    leave_to_first,
    of_preflight,
    print_checks,
    print_table,
    record,
    report_written,
    reported,
    trackers_of,
    try_out,
)

if TYPE_CHECKING:
    from driftlens.comparison import Comparison


def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR DIR...", help="Folders of reports; the first leads."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for a page.", show_default=False)
    ] = None,
    allow_different: Annotated[
        bool,
        typer.Option(
            "--allow-different", help="Tell differences between numbers of other data too."
        ),
    ] = False,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(help="Leave with 1 if a difference is so, as 'forgetting.loss_rise>0.1'."),
    ] = None,
    seed: Seed = 0,
    format: Format = FORMATS,
    report_to: ReportTo = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Put finished runs side by side, and tell how far each is from the first.

    Examples:
        # Did it get better since Monday?
        driftlens compare reports/monday reports/tuesday
        # A page of many runs, each against the first.
        driftlens compare reports/a reports/b reports/c --out reports/abc
        # In CI: leave with 1 if a run lost more than the first.
        driftlens compare reports/main reports/branch --fail-on 'forgetting.loss_rise>0.05'
    """
    leave_to_first()
    started = datetime.now(UTC)
    formats, to = formats_of(format), trackers_of(report_to)
    if out is not None:
        try_out(out, overwrite)
    elif to:
        raise DriftlensError(
            "--out beside --report-to, which tells of a page that is written",
            found="none",
            remedy="Name a folder with --out.",
        )
    bounds = [Bound.of(text, [*reported(), *of_preflight()]) for text in fail_on or []]
    from driftlens import comparison

    found = comparison.compare(comparison.read(folders), allow_different=allow_different, seed=seed)
    page = found.page(record({}, [], seed, {"allow_different": allow_different}, started))
    written = None
    if out is not None:
        written = page.write(out, overwrite=overwrite, formats=formats)
    if as_json:
        typer.echo(json.dumps(_record(found, page.verdict()), indent=2, ensure_ascii=False))
    elif not quiet:
        _show(found)
    if written and not as_json:
        typer.echo(written)
    over = [
        bound.said
        for bound in bounds
        if any(map(bound.holds, comparison.crossed(found.result, bound.kind, bound.name)))
    ]
    unsent = [] if written is None else report_written(written.parent, to, quiet)
    end(f"threshold crossed by a difference: {'; '.join(over)}" if over else "", unsent)


def _show(found: "Comparison") -> None:
    """The runs, what differs, then a row for each quantity and a column for each run."""
    for number, run in enumerate(found.runs, 1):
        typer.echo(f"{number}  {run.name}: {run.report.title} ({run.folder})")
    print_checks([check for check in found.checks if check.status != "pass"])
    for (pack, kind), keys in groupby(found.result.quantities(), lambda key: key[:2]):
        typer.echo("")
        typer.secho(f"{kind} ({pack})", bold=True)
        print_table([_row(found, *key) for key in keys])
    typer.echo("")
    typer.echo(
        "A difference with its interval is paired over documents; * marks one that is not, between "
        "runs whose own intervals are apart."
    )


def _row(found: "Comparison", pack: str, diagnostic: str, quantity: str) -> dict[str, Any]:
    rows = found.result.rows_of(pack, diagnostic, quantity)
    told: dict[str, Any] = {"value": quantity, "unit": str(rows["unit"][0])}
    for row, run in enumerate(rows["run"]):
        told[str(run)] = _said(rows, row, "number", "low", "high") or "–"
    for row, run in list(enumerate(rows["run"]))[1:]:
        difference = _said(rows, row, "difference", "difference_low", "difference_high")
        apart = rows["pairing"][row] != "paired" and rows["intervals"][row] == "apart"
        told[f"{run} − 1"] = f"{difference}{'*' * apart}" if difference else rows["pairing"][row]
    return told


def _said(rows: Mapping[str, Any], row: int, *names: str) -> str:
    """A number with its interval, or nothing."""
    from driftlens.results import Estimate, shown

    estimate = Estimate(*(float(rows[name][row]) for name in names))
    if not isfinite(estimate.value):
        return ""
    # What has no interval to say how many of its digits stand is shown to three.
    return str(estimate) if isfinite(estimate.error) else shown(estimate.value, 3)


def _record(found: "Comparison", verdict: str) -> dict[str, Any]:
    """The comparison as JSON, NaN as null."""
    columns = found.result.columns()
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return {
        "verdict": verdict,
        "runs": [{"name": run.name, "folder": str(run.folder)} for run in found.runs],
        "checks": [vars(check) for check in found.checks],
        "values": [
            {
                name: None if isinstance(cell, float) and not isfinite(cell) else cell
                for name, cell in zip(columns, row, strict=True)
            }
            for row in rows
        ],
    }
