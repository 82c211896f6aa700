"""Finished runs side by side."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite

import numpy as np

from driftlens.results import Estimate, Result, column, fact, figures, value

SHOWN = 4
"""Packs that the figure has room for."""


@dataclass(frozen=True)
class RunsResult(Result):
    """What several runs say of the same quantities, and how far they are from the first."""

    kind = "runs"
    title = "Runs side by side"
    over = "What several runs found"
    how = """
Every number is what the run's own record says. difference = the run's number − that of the \
first run. It is *paired* where both records kept the loss of every token of the same texts: its \
interval is 95 % of a bootstrap over documents of Σ (rise − rise in the first run) / Σ tokens, in \
which both runs are drawn together (and the documents of one group too, where the pack ships with \
driftlens). Else it is *unpaired* and has no interval, for the records do not say how the runs go \
together; then intervals says whether the two runs' own are apart or overlap. Intervals that \
overlap do not show that runs are alike, and paired differences may be sure where they do.

No difference is told of other data: where texts (by their sha256), windows or tokens are others, \
or are not known to be the same, pairing says so instead. The first sentence speaks of the first \
rise of the first pack.

The comparison is ours.
""".strip()

    first: Estimate = value("")
    """The foremost figure in the first run."""
    largest_difference: Estimate = value("")
    """The largest difference of another run from it."""

    packs: np.ndarray = column(named="pack")
    """[row] pack."""
    diagnostic: np.ndarray = column()
    """[row] kind of the result, and the model that it is of where there is one for each."""
    quantity: np.ndarray = column()
    """[row] name of the value."""
    run: np.ndarray = column()
    """[row] number of the run, from 1."""
    named: np.ndarray = column(named="name")
    """[row] what it is called."""
    number: np.ndarray = column()
    """[row] the value; NaN where the run has none."""
    low: np.ndarray = column()
    """[row] lower end of its interval."""
    high: np.ndarray = column()
    """[row] upper end of it."""
    measured_in: np.ndarray = column(named="unit")
    """[row] its unit."""
    difference: np.ndarray = column()
    """[row] the value less that of the first run; NaN where that is not told."""
    difference_low: np.ndarray = column()
    """[row] lower end of its interval, where it is paired."""
    difference_high: np.ndarray = column()
    """[row] upper end of it."""
    intervals: np.ndarray = column()
    """[row] whether the run's interval and that of the first are `apart` or `overlap`."""
    pairing: np.ndarray = column()
    """[row] `paired`, `unpaired`, or why there is no difference."""

    runs: tuple[str, ...] = fact()
    """The runs by name."""
    foremost: tuple[str, ...] = fact()
    """Pack, kind and name of the value that the first sentence speaks of."""

    def unit(self, name: str) -> str:
        """Of values the unit of the foremost; of all else what is declared."""
        if name in ("first", "largest_difference") and self.foremost:
            return str(self.rows_of(*self.foremost)["unit"][0])
        return super().unit(name)

    def quantities(self) -> list[tuple[str, str, str]]:
        """Pack, kind and name of each, in their order."""
        rows = (self.packs.tolist(), self.diagnostic.tolist(), self.quantity.tolist())
        return list(dict.fromkeys(zip(*rows, strict=True)))

    def rows_of(self, pack: str, diagnostic: str, quantity: str) -> dict[str, np.ndarray]:
        """Of one quantity, [run] each column."""
        mine = self.packs == pack
        mine &= (self.diagnostic == diagnostic) & (self.quantity == quantity)
        return {name: rows[mine] for name, rows in self.columns().items()}

    def summary(self) -> str:
        """The foremost figure of every run, and how many differences are told."""
        if not self.foremost:
            return "The runs have no value in common."
        told, said = np.isfinite(self.difference[self.run > 1]).sum(), self.headline()
        return f"{said[0].upper()}{said[1:]}. {told} differences from {self.runs[0]} are told."

    def headline(self) -> str:
        """The foremost figure of the first run, and the others' differences from it."""
        if not self.foremost:
            return ""
        rows = self.rows_of(*self.foremost)
        pack, _, name = self.foremost
        parts = [_other(rows, row) for row in range(1, len(rows["run"]))]
        unit = rows["unit"][0]
        return (
            f"{name.replace('_', ' ')} on {pack} was {_estimate(rows, 0)} {unit} in "
            f"{rows['name'][0]}; {', '.join(parts)}"
        )

    def figure(self) -> "figures.Figure | None":
        """Of each pack the value that is told first, run by run."""
        first = list(self._first())
        if not first:
            return None
        figure, panels = figures.panels(len(first))
        for panel, key in zip(panels, first, strict=True):
            rows = self.rows_of(*key)
            figures.bars(
                rows["name"],
                *(rows[name] for name in ("number", "low", "high")),
                xlabel="run",
                ylabel=f"{key[2].replace('_', ' ')}, {key[0]} [{rows['unit'][0]}]",
                on=panel,
            )
        return figure

    def _first(self) -> Iterator[tuple[str, str, str]]:
        """Of each pack the first quantity."""
        firsts = {key[0]: key for key in reversed(self.quantities())}
        packs = list(dict.fromkeys(self.packs.tolist()))
        yield from (firsts[pack] for pack in packs[:SHOWN])


def _estimate(rows: Mapping[str, np.ndarray], row: int, of: str = "") -> Estimate:
    names = ("difference", "difference_low", "difference_high") if of else ("number", "low", "high")
    return Estimate(*(float(rows[name][row]) for name in names))


def _other(rows: Mapping[str, np.ndarray], row: int) -> str:
    """What is said of another run."""
    name, number = rows["name"][row], _estimate(rows, row)
    difference = _estimate(rows, row, "difference")
    if not isfinite(number.value):
        return f"not measured in {name}"
    if not isfinite(difference.value):
        return f"{number} in {name}, not to be compared ({rows['pairing'][row]})"
    sign = "+" if difference.value > 0 else ""
    return f"{number} in {name} ({sign}{difference}, {rows['pairing'][row]})"
