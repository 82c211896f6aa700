"""`driftlens show`: a written report in the terminal, from its files alone.

No class of results is asked for, and so no model library is loaded: it is there at once.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .shared import AsJson, leave_to_first, screened

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console
    from rich.text import Text

    from driftlens.report.written import Entry, Value, Written
    from driftlens.results import Estimate

FEW, MANY, WHOLE = 12, 24, 200
"""Rows of a table: of one among others, of the overview, and of one that was asked for."""

SMALL = 40
"""Rows up to which a table is small enough to be shown unasked."""

TABLES = 3
"""Tables that are shown unasked besides the overview."""

FIGURES = 16
"""Key figures that are shown unasked."""

NARROW, SCANT = 20, 10
"""Letters that a column of text keeps at most and at least where room is short."""

BAR = 12
"""Letters of the longest bar."""

AXES = ("layer", "stage")
"""Columns that name layers."""

MARKS = {
    "pass": ("✓", "green"),
    "warn": ("!", "yellow"),
    "fail": ("✗", "red"),
    "skip": ("–", "dim"),
}


READS = {"worse": "red", "better": "green", "not clear": "dim"}
"""How a row of symptoms is coloured by what it says of them."""

NAMED = 4
"""Columns without room that are named."""


def show(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of a report, or its page or record.")
    ],
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Show a result whole: its kind, its pack, or both as forgetting/world; again for "
            "more.",
            show_default=False,
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            min=0,
            help=f"The most rows of a table, 0 for all; {FEW}, or {WHOLE} with --only, if left "
            "out.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a report in the terminal: its verdict, its key figures and its small tables.

    Examples:
        # The verdict, what alignment did, and the tables that tell the most.
        driftlens show reports/mine
        # One result on every pack, with all its rows and columns.
        driftlens show reports/mine --only forgetting
        # One result on one pack, for jq.
        driftlens show reports/mine --only drift/world --json
    """
    leave_to_first()
    from driftlens.report.written import Written

    written = Written.read(folder)
    asked = [entry for name in only or () for entry in written.named(name)]
    entries = list({entry.name: entry for entry in asked}.values())
    if as_json:
        told = [_record(written, entry) for entry in entries] if only else written.record
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    with screened() as screen:
        if only:
            most = WHOLE if rows is None else rows
            for entry in entries:
                _whole(screen, entry, most)
        else:
            _at_a_glance(screen, written, rows)


def _at_a_glance(screen: "Console", written: "Written", rows: int | None) -> None:
    from rich.text import Text

    screen.print(Text(_plain(written.title), "dim"))
    screen.print(Text(_plain(written.verdict), "bold"))
    screen.print()
    _gates(screen, written)
    packs = list(dict.fromkeys(entry.pack for entry in written.entries if entry.pack))
    first = [entry for entry in written.entries if entry.pack in ("", *packs[:1])]
    overviews = [entry for entry in first if entry.kind == "overview"]
    for entry in overviews:
        _headed(screen, entry)
        _table(screen, entry, MANY if rows is None else rows)
    others = [entry for entry in first if entry not in overviews]
    _key_figures(screen, sorted(others, key=lambda entry: not entry.pack))
    lengths = {entry.name: _length(entry) for entry in others if entry.kind != "noise_floor"}
    # What opens a report is shown however long it is: of a series and of runs side by side, all.
    small = [
        entry
        for entry in others
        if 0 < lengths.get(entry.name, 0) <= (inf if entry is written.entries[0] else SMALL)
    ]
    for entry in small[:TABLES]:
        _headed(screen, entry)
        _table(screen, entry, FEW if rows is None else rows)
    _contents(screen, written)


def _gates(screen: "Console", written: "Written") -> None:
    """The gates in a line if all passed, and else those that did not."""
    checks = written.checks
    passed = [check for check in checks if check.status == "pass"]
    if checks:
        what = f"{len(passed)} of {len(checks)} gates passed"
        what = f"all {len(checks)} gates passed" if len(passed) == len(checks) else what
        screen.print(_marked("pass" if passed else "skip", what))
    for check in checks:
        if check.status != "pass":
            screen.print(_marked(check.status, f"{check.name}: {check.detail}"))


def _marked(status: str, what: str) -> "Text":
    from rich.text import Text

    mark, colour = MARKS.get(status, MARKS["skip"])
    return Text.assemble((f"{mark} {_plain(status):4}  ", colour), _plain(what))


def _key_figures(screen: "Console", entries: "Sequence[Entry]") -> None:
    """A figure of each result, and more of the one that opens the verdict."""
    from rich.text import Text

    # Many results divide one rise, and open with it: it is told once.
    picked: dict[tuple[str, str], tuple[Entry, Value]] = {}
    for number, entry in enumerate(entries):
        for value in list(entry.values.values())[: 4 if number == 0 else 1]:
            if isfinite(value.estimate.error) or isfinite(value.floor):
                picked.setdefault((str(value.estimate), value.unit), (entry, value))
    if not picked:
        return
    screen.print()
    screen.print(Text("Key figures", "bold"))
    rows = list(picked.values())[:FIGURES]
    results = Column("result", [entry.kind for entry, _ in rows], first=True)
    _print_values(screen, [value for _, value in rows], results)
    if (more := len(picked) - len(rows)) > 0:
        screen.print(Text(f"  {more} more, in the results below", "dim"))


def _print_values(screen: "Console", values: "Sequence[Value]", *before: "Column") -> None:
    """Figures with their units, each held against its noise floor."""
    floors = [value.against_floor for value in values]
    columns = [
        *before,
        Column("figure", [_words(value.name) for value in values], first=True),
        Column("value", [_number(value.estimate) for value in values], right=True, first=True),
        Column("unit", [value.unit for value in values], first=True),
        Column("noise floor", floors, right=True, first=True),
    ]
    columns = [column for column in columns if any(column.cells)]
    dims = ["dim" if value.below else "" for value in values]
    _print_columns(screen, _fitting(columns, screen.width), dims)


def _headed(screen: "Console", entry: "Entry") -> None:
    from rich.text import Text

    pack = f" · {_plain(entry.pack)}" if entry.pack else ""
    screen.print()
    title = Text.assemble((_plain(entry.title), "bold"), pack, (f"  {_plain(entry.kind)}", "dim"))
    screen.print(title)
    screen.print(Text(_plain(entry.summary)))


def _whole(screen: "Console", entry: "Entry", most: int) -> None:
    """Everything that is known of a result."""
    from rich.text import Text

    _headed(screen, entry)
    if entry.values:
        screen.print()
        _print_values(screen, list(entry.values.values()))
    for name, what in entry.facts.items():
        if what not in (None, "", [], {}):
            screen.print(Text.assemble((f"{_words(name)}: ", "dim"), _plain(_said(what))))
    for note in entry.notes:
        screen.print(Text.assemble(("note  ", "yellow"), _plain(note)))
    if entry.table is not None:
        screen.print()
        _table(screen, entry, most, whole=True)
    if entry.picture is not None:
        screen.print(Text(f"figure: {_plain(str(entry.picture))}", "dim"), soft_wrap=True)


def _contents(screen: "Console", written: "Written") -> None:
    """What else there is, and what to type to see it."""
    from rich.table import Table
    from rich.text import Text

    screen.print()
    screen.print(Text("In this report", "bold"))
    listed = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    listed.add_column(no_wrap=True, max_width=NARROW + 12)
    listed.add_column(overflow="fold")
    for pack, entries in groupby(written.entries, lambda entry: entry.pack):
        kinds = ", ".join(dict.fromkeys(entry.kind for entry in entries))
        listed.add_row(Text(f"  {_plain(pack) or 'together'}"), Text(_plain(kinds), "dim"))
    screen.print(listed)
    screen.print()
    folder = _plain(str(written.folder))
    kind = next((one.kind for one in sorted(written.entries, key=lambda one: not one.pack)), "")
    for said, what in (
        ("one result whole", kind and f"driftlens show {folder} --only {_plain(kind)}"),
        *((f"stage {place.name}", f"driftlens show {place}") for place in _stages(written)),
        ("the page", str(written.page) if written.page else ""),
    ):
        if what:
            # A path or a command that is broken cannot be copied.
            screen.print(Text.assemble((f"{_plain(said)}: ", "dim"), _plain(what)), soft_wrap=True)


def _stages(written: "Written") -> list[Path]:
    """The folders of a series' stages."""
    return sorted(path.parent for path in written.folder.glob("stages/*/results.json"))


# Tables


@dataclass
class Column:
    """A column as it is printed."""

    head: str
    cells: "Sequence[str | Text]"
    unit: str = ""
    right: bool = False
    first: bool = False
    """Whether it is kept where room is short."""

    names: list[str] = field(default_factory=list)
    """The columns of the file that it tells."""

    drowned: bool = False
    """Whether some of its numbers are below their noise floor, and marked."""

    def heading(self) -> str:
        """Its name, and its unit on a line of its own."""
        return f"{_words(self.head)}\n[{_plain(self.unit)}]" if self.unit else _words(self.head)

    def widths(self) -> tuple[int, int]:
        """The least and the most letters that it needs."""
        from rich.cells import cell_len

        texts = [*self.heading().split("\n"), *map(str, self.cells)]
        most = max(map(cell_len, texts))
        longest = max((cell_len(word) for text in texts for word in text.split()), default=0)
        solid = self.right or not self.head
        # Most texts are then told in two lines.
        return (most if solid else min(most, NARROW, max(longest, SCANT, -(-most // 2)))), most


def _table(screen: "Console", entry: "Entry", most: int, *, whole: bool = False) -> None:
    """The rows of a result, as many as were asked for, and where the others are."""
    from rich.text import Text

    columns = entry.columns()
    length = max(map(len, columns.values()), default=0)
    if not length:
        return
    count = min(length, most) if most else length
    told = _columns(entry, {name: cells[:count] for name, cells in columns.items()}, columns)
    blocks = _blocks(told, screen.width) if whole else [_fitting(told, screen.width)]
    reads = [READS.get(str(what), "") for what in columns.get("reads", ())[:count]]
    for number, block in enumerate(blocks):
        if number:
            screen.print()
        _print_columns(screen, block, reads)
    shown = {name for block in blocks for column in block for name in column.names}
    lost = [_words(name) for name in columns if name not in shown]
    if len(lost) > NAMED:
        lost = [*lost[: NAMED - 1], f"{len(lost) - NAMED + 1} more"]
    drowned = any(one.drowned for block in blocks for one in block)
    said = [
        "~ below the noise floor" if drowned else "",
        f"{length - count} more rows" if length > count else "",
        f"not shown for want of width: {', '.join(lost)}" if lost else "",
    ]
    if any(said):
        more = f"; all: --only {entry.name}" if not whole else f"; all: {entry.table}, or --rows 0"
        more = more if lost or length > count else ""
        screen.print(Text("  " + _plain("; ".join(filter(None, said)) + more), "dim"))


def _columns(
    entry: "Entry", cells: "Mapping[str, np.ndarray]", all_cells: "Mapping[str, np.ndarray]"
) -> list[Column]:
    """The columns as they are printed: a number with its bounds is one."""
    bounds = _bounds(entry, all_cells)
    taken = {name for pair in bounds.values() for name in pair}
    bar = _barred(all_cells)
    found = []
    for name in cells:
        if name in taken:
            continue
        names = [name, *bounds.get(name, ())]
        column = _column(entry, name, [cells[one] for one in names])
        column.names = names
        found.append(column)
        if name == bar and (drawn := _bars(entry, name, cells[name], all_cells[name])):
            found.append(drawn)
    return found


def _bounds(entry: "Entry", columns: "Mapping[str, np.ndarray]") -> dict[str, tuple[str, str]]:
    """The two columns that are the bounds of a column's numbers, for each that has them.

    They are called as it is, wherever they stand, or follow it at once. Numbers that lie outside
    are no numbers of theirs.
    """
    found, names = {}, list(columns)
    for at, name in enumerate(names):
        pairs = ((f"{name}_low", f"{name}_high"), (f"low_{name}", f"high_{name}"))
        pair = next((pair for pair in pairs if pair[0] in columns and pair[1] in columns), None)
        if pair is None and len(names) > at + 2 and _follow(*names[at : at + 3]):
            pair = names[at + 1], names[at + 2]
        if pair and _within(entry, columns, name, *pair):
            found[name] = pair
    return found


def _follow(name: str, low: str, high: str) -> bool:
    """Whether names tell bounds of what stands before them: as `low`, or by a part of its name."""
    parts = name.split("_")
    stems = [
        [part for part in one.split("_") if part != word] if word in one.split("_") else ["?"]
        for one, word in ((low, "low"), (high, "high"))
    ]
    return stems[0] == stems[1] and not {"low", "high"} & {*parts} and {*stems[0]} <= {*parts}


def _within(
    entry: "Entry", columns: "Mapping[str, np.ndarray]", name: str, low: str, high: str
) -> bool:
    import numpy as np

    if len({entry.units[one] for one in (name, low, high)}) > 1:
        return False
    if any(columns[one].dtype.kind != "f" for one in (name, low, high)):
        return False
    least, number, most = (columns[one] for one in (low, name, high))
    known = np.isfinite(least) & np.isfinite(number) & np.isfinite(most)
    slack = 1e-9 + 1e-6 * np.abs(number)
    inside = (least <= number + slack) & (number <= most + slack)
    return bool(known.any() and inside[known].all())


def _column(entry: "Entry", name: str, parts: "Sequence[np.ndarray]") -> Column:
    from rich.text import Text

    from driftlens.results import Estimate

    numbers = parts[0].dtype.kind in "iuf"
    texts: list[str | Text] = []
    for row in zip(*(part.tolist() for part in parts), strict=True):
        what = row[0]
        drowned = numbers and entry.below(name, what)
        text = _number(Estimate(*row)) if len(row) == 3 and isfinite(what) else _cell(what)
        texts.append(Text(f"{text} ~", "dim") if drowned else text)
    first = not numbers or len(parts) > 1 or name in AXES
    lost = numbers and any(not isinstance(text, str) for text in texts)
    return Column(name, texts, entry.units[name], right=numbers, first=first, drowned=lost)


def _barred(columns: "Mapping[str, np.ndarray]") -> str:
    """The first measured column of a table over layers, or nothing."""
    # Stages that are numbers are those of a training.
    if "layer" not in columns and not ("stage" in columns and columns["stage"].dtype == object):
        return ""
    return next((name for name, cells in columns.items() if cells.dtype.kind == "f"), "")


def _bars(entry: "Entry", name: str, cells: "np.ndarray", all_cells: "np.ndarray") -> Column | None:
    """Bars as long as the numbers are large, the largest of all marked."""
    from rich.text import Text

    if "utf" not in (sys.stdout.encoding or "").lower():
        return None
    sizes = [abs(float(number)) for number in all_cells if isfinite(number)]
    largest = max(sizes, default=0.0)
    if not largest or entry.below(name, largest):
        return None
    texts: list[str | Text] = []
    for number in cells.tolist():
        length = round(abs(number) / largest * BAR) if isfinite(number) else 0
        bar = ("█" if number > 0 else "░") * length
        worst = isfinite(number) and abs(number) == largest
        texts.append(Text(f"{bar} ◂" if worst else bar, "bold red" if worst else "blue"))
    return Column("", texts)


def _fitting(columns: list[Column], width: int) -> list[Column]:
    """The columns that there is room for, those first that must not go, in their order."""
    kept: set[int] = set()
    # Two letters before them all, and two between each two.
    room = width
    ranked = sorted(range(len(columns)), key=lambda number: not columns[number].first)
    for number in ranked:
        least = columns[number].widths()[0] + 2
        if least <= room or not kept:
            kept.add(number)
            room -= least
        elif not columns[number].first and columns[number].head:
            break
    # Base without aligned says nothing of either.
    sides = {number for number, column in enumerate(columns) if column.head in ("base", "aligned")}
    kept -= sides if sides - kept else set()
    return [column for number, column in enumerate(columns) if number in kept]


def _blocks(columns: list[Column], width: int) -> list[list[Column]]:
    """All columns, in as many blocks as there must be, each with what names its rows."""
    keys = [column for column in columns if not column.right or column.head in AXES]
    keys = [column for column in keys if column.head][:2]
    blocks: list[list[Column]] = []
    rest = list(columns)
    while rest:
        begun = [] if not blocks else keys
        fitting = _fitting([*begun, *rest], width)
        taken = [column for column in fitting if any(column is one for one in rest)]
        if not taken:
            fitting = taken = rest[:1]
        blocks.append(fitting)
        rest = [column for column in rest if not any(column is one for one in taken)]
    return blocks


def _widths(columns: Sequence[Column], width: int) -> list[int]:
    """[column] the letters it gets: what it needs, and of what is left the more for the earlier."""
    least, most = zip(*(column.widths() for column in columns), strict=True)
    room = max(0, width - sum(least) - 2 * len(columns))
    found = []
    for needs, wants in zip(least, most, strict=True):
        more = min(wants - needs, room)
        found.append(needs + more)
        room -= more
    return found


def _print_columns(
    screen: "Console", columns: Sequence[Column], styles: Sequence[str] | None = None
) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("", width=0)
    for column, width in zip(columns, _widths(columns, screen.width), strict=True):
        heading = Text(column.heading(), "dim")
        justify: Any = "right" if column.right else "left"
        table.add_column(heading, justify=justify, width=width, overflow="fold")
    for number, row in enumerate(zip(*(column.cells for column in columns), strict=True)):
        cells = [Text(_plain(cell)) if isinstance(cell, str) else cell for cell in row]
        table.add_row("", *cells, style=styles[number] if styles else None)
    screen.print(table)


# Words


def _plain(text: str) -> str:
    """Text from outside, with what is invisible in it spelt out."""
    from driftlens.results.visible import visible

    return visible(text, "‹{}›")


def _words(name: str) -> str:
    return _plain(name.replace("_", " "))


def _cell(what: Any) -> str:
    from driftlens.results import shown

    if what is None or what != what:
        return "–"
    if isinstance(what, bool):
        return "yes" if what else "no"
    return _plain(what) if isinstance(what, str) else shown(what, 3)


def _number(estimate: "Estimate") -> str:
    """A number with its interval, unless that is of rounding alone."""
    value, error = estimate.value, estimate.error
    told = isfinite(error) and error > 1e-9 * max(abs(value), 1e-9)
    return str(estimate) if told else _cell(value)


def _said(what: Any) -> str:
    from driftlens.results import shown

    if isinstance(what, list | tuple):
        return ", ".join(map(_said, what))
    return shown(what) if isinstance(what, float) else str(what)


def _length(entry: "Entry") -> int:
    """Rows of a table, as its file says without being read."""
    if entry.table is None:
        return 0
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    from driftlens.results.store import understood

    with understood(entry.table, ArrowInvalid):
        return ParquetFile(entry.table).metadata.num_rows


def _record(written: "Written", entry: "Entry") -> dict[str, Any]:
    """What the record says of a result, with the rows of its table."""
    at = [one.name for one in written.entries].index(entry.name)
    columns = {name: cells.tolist() for name, cells in entry.columns().items()}
    rows = [
        {
            name: None if isinstance(cell, float) and not isfinite(cell) else cell
            for name, cell in zip(columns, row, strict=True)
        }
        for row in zip(*columns.values(), strict=True)
    ]
    return {**written.record["results"][at], "rows": rows}
