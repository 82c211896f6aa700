"""Where to measure: strengths that follow the curves, and what was read at each of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from driftlens.diagnostics.tradeoff import Seen
from driftlens.formulas.tradeoff import next_points
from driftlens.metric import measure
from driftlens.models import ModelPair
from driftlens.models.steering import Positions
from driftlens.models.sweep import Push
from driftlens.sweeps import Arm, Reading, Sweep

FIRST = (0.0, 1 / 32, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Where a curve is looked at first, on both sides of 0, in E‖h‖."""

FURTHEST = 4.0
"""As far as a behaviour that still moves is followed, in E‖h‖; a capability half as far."""

MOVES = 0.02
"""Of behaviour or capability between the last two strengths: that much is still moving."""

ROUNDS = 3
"""How often more strengths are chosen."""


@dataclass(eq=False)
class Line:
    """What was read of some documents along one push of one model, strength by strength."""

    clusters: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """[document] numbers; those of one are resampled together."""

    rows: dict[float, dict[str, np.ndarray]] = field(default_factory=dict)
    """By strength, [document] by name of column."""

    def seen(self, strengths: Sequence[float]) -> Seen:
        """All columns at some strengths."""
        names = next(iter(self.rows.values()))
        values = {n: np.stack([self.rows[r][n] for r in strengths], 1) for n in names}
        return Seen(values, self.clusters)

    def finite(self) -> tuple[list[float], list[float]]:
        """Strengths up to the first on either side that is not finite, and those beyond."""
        fine = {r: all(np.isfinite(z).all() for z in row.values()) for r, row in self.rows.items()}
        bad = [r for r, good in fine.items() if not good]
        low = max((r for r in bad if r <= 0), default=-np.inf)
        high = min((r for r in bad if r >= 0), default=np.inf)
        kept = sorted(r for r in fine if low < r < high)
        return kept, sorted(set(fine) - set(kept))


@dataclass(frozen=True, eq=False)
class Looker:
    """Reads packs while models are pushed.

    Args:
        pair: The models.
        readings: What is read.
        positions: At which tokens models are pushed.
        rows: Windows to show at a time; None plans by memory.
        length: The most tokens in a window.
        progress: Told what is shown, and how many windows of how many are done.
    """

    pair: ModelPair
    readings: Sequence[Reading]
    positions: Positions = "all"
    rows: int | None = None
    length: int | None = None
    progress: Callable[[str, int, int], None] | None = None

    def look(
        self, pushes: Sequence[tuple[int, Push, Sequence[float]]], lines: Sequence[Sequence[Line]]
    ) -> None:
        """Read every pack at some strengths of some pushes, into [push, reading] lines."""
        arms = [Arm(side, push, tuple(strengths)) for side, push, strengths in pushes]
        for place, reading in enumerate(self.readings):
            sweep = Sweep(reading, arms, self.positions)
            name = f"{reading.pack.name}, steered"
            measure(
                self.pair,
                reading.pack,
                [sweep],
                rows=self.rows,
                length=self.length,
                progress=self.progress and partial(self.progress, name),
            )
            clusters = np.array(reading.pack.clusters, np.int64)[sweep.sums.documents]
            for number, arm in enumerate(arms):
                found = sweep.found(number)
                line = lines[number][place]
                line.clusters = clusters
                for n, strength in enumerate(arm.strengths):
                    line.rows[strength] = {name: cells[:, n] for name, cells in found.items()}


def first_strengths(length: float) -> list[float]:
    """Where a curve is looked at first, in the stream's units."""
    return sorted({0.0, *(sign * share * length for share in FIRST[1:] for sign in (-1.0, 1.0))})


def further(lines: Sequence[Line], names: Sequence[str], length: float, room: int) -> list[float]:
    """Strengths to look at next: where curves bend, are unsure, or still move at their ends.

    Args:
        lines: What was read of each pack, of behaviour first.
        names: The column of each that is followed.
        length: E‖h‖.
        room: The most strengths.
    """
    strengths = both_finite(lines)[0]
    if room <= 0 or len(strengths) < 3:
        return []
    seen = [line.seen(strengths) for line in lines]
    values = np.stack([some.mean(name) for some, name in zip(seen, names, strict=True)])
    errors = np.stack([_error(some, name) for some, name in zip(seen, names, strict=True)])
    r = np.array(strengths)
    beyond = []
    for end, before in ((0, 1), (-1, -2)):
        moves = np.abs(values[:, end] - values[:, before]) > MOVES
        ended = any(abs(z) > abs(r[end]) and z * r[end] > 0 for z in both_finite(lines)[1])
        furthest = FURTHEST if moves[0] else FURTHEST / 2
        if moves.any() and not ended and 0 < 2 * abs(r[end]) <= 1.001 * furthest * length:
            beyond.append(float(2 * r[end]))
    within = next_points(r, values, errors, max(0, room - len(beyond)))
    return sorted({*beyond[:room], *map(float, within)})


def _error(seen: Seen, name: str) -> np.ndarray:
    """[strength] standard error of a column's mean, documents counting apart."""
    weights = seen.weights
    off = seen.values[name] - weights[:, None] * seen.mean(name)
    return np.asarray(np.sqrt(np.square(off).sum(0)) / weights.sum())


def both_finite(lines: Sequence[Line]) -> tuple[list[float], list[float]]:
    """Strengths at which every line is finite up to there, and the others."""
    found = [line.finite()[0] for line in lines]
    kept = sorted(set(found[0]).intersection(*found[1:]))
    return kept, sorted({r for line in lines for r in line.rows} - set(kept))


def followed(
    looker: Looker,
    pushes: Mapping[int, Push],
    lengths: Mapping[int, float],
    names: Sequence[str],
    points: int,
    given: Mapping[int, Sequence[float]] | None = None,
) -> dict[int, list[Line]]:
    """Each model along its own direction, at strengths that follow its curves.

    Args:
        looker: What reads.
        pushes: By side, the push.
        lengths: By side, E‖h‖.
        names: Of each reading, the column that is followed.
        points: About how many strengths to look at.
        given: By side, the strengths to look at instead.

    Returns:
        By side, [reading] what was read.
    """
    lines = {side: [Line() for _ in looker.readings] for side in pushes}
    wanted = given or {side: first_strengths(lengths[side]) for side in pushes}
    for turn in range(ROUNDS):
        sides = [side for side in pushes if wanted.get(side)]
        if not sides:
            break
        looker.look(
            [(side, pushes[side], wanted[side]) for side in sides], [lines[s] for s in sides]
        )
        if given is not None:
            break
        left = ROUNDS - 1 - turn
        wanted = {
            side: further(
                lines[side],
                names,
                lengths[side],
                -(-(points - len(lines[side][0].rows)) // left) if left else 0,
            )
            for side in sides
        }
    return lines
