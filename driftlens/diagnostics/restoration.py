"""What would bring the loss back: pieces of base's weights restored one after another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from driftlens.errors import DriftlensError
from driftlens.formulas.intervals import Interval
from driftlens.formulas.shapley import of_whole
from driftlens.formulas.streams import PerDocument
from driftlens.metric import Metric
from driftlens.models import Frame, ModelPair, Wants
from driftlens.models.pieces import By, Piece
from driftlens.models.tokens import Encoder
from driftlens.results import Estimate, Result, column, fact, figures, value

RANDOM = "random"
"""What the mean over random orders is called."""

HALF, NINETY = 0.5, 0.9

NAMED = 5
"""Pieces that a sentence names."""


@dataclass(frozen=True)
class RestorationResult(Result):
    """The loss that is left as base's pieces are put back, in orders that are to be compared."""

    kind = "restoration"
    title = "Restoration"
    how = """
Base's pieces are put back into the aligned model one after another, in a given order, and after \
each the loss is read again: all of it is back when all pieces are. With R(k) the rise that is \
left after k of G pieces, restored(k) = 1 − R(k) / R(0), and

    area = mean of restored(k) over k = 0 … G (trapezoid rule, (Σ restored(k) − ½) / G).

An order that names first what the loss hangs on has a large area. It is held against random \
orders, which any method must beat, and against the orders of other methods. Nets between the \
two can be worse than either, so that restored may lie below 0 or above 1.

half and ninety are the smallest numbers of pieces, in the first order given, after which that \
part of the loss is back. They are measured, not added up from shares; another choice of as many \
pieces may do better. Intervals: 95 % bootstrap over documents; of the random orders, the range of \
95 % of the orders.

Sources: deletion curves and their area (Petsiuk, Das & Saenko 2018, "RISE"), sufficiency \
(DeYoung et al. 2020, "ERASER"), with weights in place of inputs.
""".strip()

    total: Estimate = value("nats/token")
    """The rise in loss."""
    area: Estimate = value("of the rise")
    """Area under the first order's curve; NaN where the total may be nothing."""
    area_random: Estimate = value("of the rise")
    """Mean area of random orders, and the range of 95 % of them."""
    half: Estimate = value("pieces")
    """Fewest pieces of the first order that bring back half of the loss."""
    ninety: Estimate = value("pieces")
    """Fewest pieces of the first order that bring back nine tenths of it."""

    order: np.ndarray = column()
    """[row] name of the order; `random` is the mean of random ones."""
    pieces: np.ndarray = column("pieces")
    """[row] how many pieces are base's again."""
    layer: np.ndarray = column()
    """[row] layer of the last of them."""
    component: np.ndarray = column()
    """[row] component of it."""
    rise: np.ndarray = column("nats/token")
    """[row] rise in loss that is left."""
    low: np.ndarray = column("nats/token")
    """[row] lower end of its 95 % interval."""
    high: np.ndarray = column("nats/token")
    """[row] upper end of it."""
    restored: np.ndarray = column("of the rise")
    """[row] part of the rise that is back; NaN where the total may be nothing."""
    order_area: np.ndarray = column("of the rise")
    """[row] area under the order's curve."""

    half_pieces: tuple[str, ...] = fact()
    """The pieces that bring back half of the loss, in order."""
    ninety_pieces: tuple[str, ...] = fact()
    """The pieces that bring back nine tenths of it, in order."""
    random_orders: int = fact("orders")
    """How many random orders there were."""

    near_zero: ClassVar[tuple[str, ...]] = ("total", "rise")
    adds: ClassVar[tuple[str, ...]] = ("total",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.above_floor("total"):
            for name in ("area", "area_random", "half", "ninety"):
                self._set(name, Estimate(np.nan))
            for name in ("restored", "order_area"):
                self._set(name, np.full(self.rows(), np.nan))
            for name in ("half_pieces", "ninety_pieces"):
                self._set(name, ())

    def summary(self) -> str:
        """The fewest pieces that bring the loss back, and how the order does beside random."""
        if not np.isfinite(self.area.value):
            return f"A rise of {self.total} nats a token may be none: there is nothing to restore."
        every = int(np.max(self.pieces))
        half, ninety = (int(count.value) for count in (self.half, self.ninety))
        area = f"area {self.area}"
        if self.random_orders:
            low, high = self.area_random.low, self.area_random.high
            area += f", of random orders {self.area_random.value:.2f} [{low:.2f}, {high:.2f}]"
        return (
            f"Base's weights of {_listed(self.half_pieces)} put back ({half} of {every} pieces) "
            f"return half of a rise of {self.total} nats a token, and {ninety} return nine tenths; "
            f"{area}."
        )

    def figure(self) -> "figures.Figure | None":
        """Restored share by number of pieces, for every order."""
        if not np.isfinite(self.restored).any():
            return None
        names = list(dict.fromkeys(self.order.tolist()))
        at = {name: self.order == name for name in names}
        bands = {}
        if RANDOM in names:
            left = self.rise[at[RANDOM]][0]
            ends = (1 - getattr(self, end)[at[RANDOM]] / left for end in ("high", "low"))
            bands[RANDOM] = tuple(np.sort([*ends], axis=0))
        return figures.curves(
            self.pieces[at[names[0]]],
            {name: self.restored[at[name]] for name in names},
            bands=bands,
            xlabel="pieces of base's weights put back",
            ylabel="restored [of the rise]",
        )


class Restoration(Metric[RestorationResult]):
    """The loss that is left as base's pieces are put back, one after another.

    Args:
        orders: By name, all pieces in the order in which they are put back; the first is the
            one that is judged. None is from the bottom up, and from the top down.
        by: How finely the weights are divided.
        random: How many random orders to hold against them.
        seed: Of the random orders and of the bootstrap.
        level: Share of bootstrap draws that an interval holds.
    """

    wants = Wants(same_tokens=True, together=True)

    def __init__(
        self,
        orders: Mapping[str, Sequence[Piece]] | None = None,
        by: By = "layer",
        random: int = 16,
        seed: int = 0,
        level: float = 0.95,
    ) -> None:
        self.orders, self.by, self.random, self.seed = orders, by, random, seed
        self.level = level
        self.sums = PerDocument(0)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Find every net that an order comes through.

        Raises:
            DriftlensError: An order lacks a piece, or has one twice.
        """
        super().begin(pair, encoder)
        self.pieces: tuple[Piece, ...] = pair.hybrid.pieces(self.by)
        self.named = _orders(self.orders, self.pieces)
        draw = np.random.default_rng(self.seed)
        mixed = (draw.permutation(len(self.pieces)) for _ in range(self.random))
        self.drawn = [tuple(self.pieces[place] for place in order) for order in mixed]
        every = (net for o in (*self.named.values(), *self.drawn) for net in _nets(o))
        self.nets = {net: place for place, net in enumerate(dict.fromkeys(every))}
        self.sums = PerDocument(1 + len(self.nets))

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        base = frame.likelihoods[0]
        others = ([piece for piece in self.pieces if piece not in net] for net in self.nets)
        rises = [base - frame.grafted(rest) for rest in others]
        self.sums.update(frame.scored.document, torch.stack([torch.ones_like(base), *rises], 1))

    def compute(self) -> RestorationResult:
        """The result of all that was seen so far."""
        tokens, rises = np.split(self.sums.sums, [1], axis=1)
        left = np.array(self.intervals(rises, tokens, self.sums.documents))
        whole = rises[:, [self.nets[frozenset()]]]
        total = Interval(*left[:, self.nets[frozenset()]])
        ours = next(iter(self.named.values()))
        curve = 1 - of_whole(left[0, self._walk(ours)], total)
        half, ninety = (_first(curve, part) for part in (HALF, NINETY))
        back = _area(whole - rises[:, self._walk(ours)])
        area = self.intervals(back, whole[:, 0], self.sums.documents)
        chance = np.array([left[0, self._walk(order)] for order in self.drawn])
        chance = chance.reshape(-1, len(curve))
        rows = [
            _rows(name, order, left[:, self._walk(order)], total)
            for name, order in self.named.items()
        ]
        if self.drawn:
            rows.append(_rows(RANDOM, (), _ranged(chance), total))
        return RestorationResult.of(
            total=tuple(total),
            area=tuple(area) if np.isfinite(curve).all() else np.nan,
            area_random=tuple(_ranged(_area(1 - of_whole(chance, total)))),
            half=half,
            ninety=ninety,
            half_pieces=_called(ours, half),
            ninety_pieces=_called(ours, ninety),
            random_orders=len(self.drawn),
            **{name: np.concatenate([row[name] for row in rows]) for name in rows[0]},
        )

    def _walk(self, order: Sequence[Piece]) -> list[int]:
        """[piece + 1] where the sums of the nets lie that an order comes through."""
        return [self.nets[net] for net in _nets(order)]


def _orders(
    given: Mapping[str, Sequence[Piece]] | None, pieces: tuple[Piece, ...]
) -> dict[str, tuple[Piece, ...]]:
    if given is None:
        return {"from the bottom": pieces, "from the top": pieces[::-1]}
    for name, order in given.items():
        if len(order) != len(pieces) or set(order) != set(pieces):
            raise DriftlensError(
                f"each of {len(pieces)} pieces once in the order {name!r}",
                found=", ".join(map(str, order)) or "none",
                remedy=f"Order the pieces {', '.join(map(str, pieces))}.",
            )
    if not given or RANDOM in given:
        raise DriftlensError(
            f"orders by names other than {RANDOM!r}, which is that of the random ones",
            found=", ".join(given) or "none",
            remedy="Name at least one order, or give None.",
        )
    return {name: tuple(order) for name, order in given.items()}


def _nets(order: Sequence[Piece]) -> list[frozenset[Piece]]:
    """The sets of pieces that are base's as an order puts back none, the first, …, all."""
    return [frozenset(order[:count]) for count in range(len(order) + 1)]


def _rows(
    name: str, order: Sequence[Piece], rises: np.ndarray, total: Interval
) -> dict[str, np.ndarray]:
    """The rows of one order, from its [estimate or bound, count] rises."""
    count = rises.shape[1]
    restored = 1 - of_whole(rises[0], total)
    steps = order or [Piece("", "")] * (count - 1)
    return {
        "order": np.full(count, name, dtype=object),
        "pieces": np.arange(count),
        "layer": np.array(["", *(piece.layer for piece in steps)], dtype=object),
        "component": np.array(["", *(piece.component for piece in steps)], dtype=object),
        "rise": rises[0],
        "low": rises[1],
        "high": rises[2],
        "restored": restored,
        "order_area": np.full(count, _area(restored)),
    }


def _area(restored: np.ndarray) -> np.ndarray:
    """[*] area under [*, count] curves over the part of the pieces that is put back."""
    return np.trapezoid(restored, axis=-1) / (restored.shape[-1] - 1)


def _ranged(by_order: np.ndarray) -> np.ndarray:
    """[3, *] mean of [order, *] numbers, and the range of 95 % of them."""
    if not len(by_order):
        return np.full((3, *by_order.shape[1:]), np.nan)
    return np.stack([by_order.mean(0), *np.quantile(by_order, [0.025, 0.975], axis=0)])


def _first(curve: np.ndarray, part: float) -> float:
    """How many pieces bring back a part of the loss; NaN where nothing was lost."""
    return float(np.argmax(curve >= part)) if np.isfinite(curve).all() else np.nan


def _called(order: Sequence[Piece], count: float) -> tuple[str, ...]:
    return () if np.isnan(count) else tuple(map(str, order[: int(count)]))


def _listed(names: Sequence[str]) -> str:
    """Names in a sentence, the first few where there are many."""
    few = ", ".join(names[:NAMED])
    return few if len(names) <= NAMED else f"{few} and {len(names) - NAMED} more"
