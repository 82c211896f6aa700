"""The rise in loss divided fairly among the pieces of the weights, and which of them interact."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import factorial
from typing import ClassVar, Self

import numpy as np
import torch

from driftlens.formulas import shapley as formulas
from driftlens.formulas.intervals import Interval
from driftlens.formulas.streams import Moments, PerDocument
from driftlens.metric import Metric
from driftlens.models import Frame, ModelPair, Wants
from driftlens.models.pieces import By, Piece, called
from driftlens.models.tokens import Encoder
from driftlens.results import Divided, Estimate, Result, column, fact, figures, shown, value

EXACT = 8
"""The most pieces of which every coalition is run: 256 nets."""


@dataclass(frozen=True)
class ShapleyResult(Divided):
    """The rise in loss, divided among the pieces of the weights by what each adds on average."""

    kind = "shapley"
    title = "Shapley shares"
    how = """
A net is built with aligned's weights in some pieces S and base's in the others, and its loss is \
read: v(S). A piece's share is what it adds to the loss, averaged over all orders in which the \
pieces might change from base's to aligned's:

    share(i) = Σ over S without i of |S|! (G − |S| − 1)! / G! · [v(S and i) − v(S)],

in nats a token, above 0 where the piece adds to the loss. It is the only division that adds up \
to the rise, gives nothing to a piece that changes no net, treats alike pieces that act alike, \
and is linear in the loss (Shapley 1953). What pieces do only together is split evenly among them.

Of few pieces all 2^G nets are run and the shares are exact. Of more, orders are drawn at \
random, each with its own reverse (Mitchell et al. 2022), and error is the standard error of the \
mean over such pairs; drawing stops when the largest is within the tolerance asked for, or at the \
limit. Each order adds up to the rise, so the shares do too; the residual is what rounding leaves. \
The interval is a 95 % bootstrap over documents with the orders as drawn: a share is uncertain \
by both.

Sources: Shapley (1953), "A value for n-person games"; Castro, Gómez & Tejada (2009), "Polynomial \
calculation of the Shapley value based on sampling"; Mitchell, Cooper, Frank & Holmes (2022), \
"Sampling permutations for Shapley value estimation".
""".strip()

    residual: Estimate = value("nats/token")
    """Total minus the sum of the shares."""

    share: np.ndarray = column("nats/token")
    """[row] part of the rise."""
    low: np.ndarray = column("nats/token")
    """[row] lower end of its 95 % interval over documents."""
    high: np.ndarray = column("nats/token")
    """[row] upper end of it."""
    error: np.ndarray = column("nats/token")
    """[row] standard error from drawing orders; 0 where the shares are exact."""
    of_total: np.ndarray = column("of the rise")
    """[row] `share` over the total; NaN where the total may be nothing."""

    exact: bool = fact()
    """Whether every coalition was run."""
    permutations: int = fact("orders")
    """Orders that the shares are a mean over: all there are, or those drawn."""
    evaluations: int = fact("nets")
    """Nets that were neither base nor aligned and were run."""

    near_zero: ClassVar[tuple[str, ...]] = ("total", "share")
    layered: ClassVar[str] = "share"
    divides: ClassVar[bool] = True

    def summary(self) -> str:
        """The largest share, and how sure the division is."""
        if not np.isfinite(self.of_total).any():
            return f"A rise of {self.total} nats a token may be none: there is nothing to divide."
        most = int(np.argmax(self.of_total))
        piece = Piece(self.layer[most], self.component[most]).words
        share = Estimate(self.share[most], self.low[most], self.high[most])
        how = (
            "exact over all orders"
            if self.exact
            else f"drawing {self.permutations} orders leaves a standard error of at most "
            f"{shown(float(np.max(self.error)), 2)}"
        )
        return (
            f"Of a rise of {self.total} nats a token, {piece} has the largest share, "
            f"{share} ({self.of_total[most]:.0%}); {how}."
        )

    def figure(self) -> "figures.Figure":
        """Shares by piece."""
        return figures.bars(
            called(self.layer, self.component),
            self.share,
            self.low,
            self.high,
            xlabel="piece of the weights",
            ylabel="share of the rise [nats/token]",
            floor=self.floor.get("share"),
        )


class Shapley(Metric[ShapleyResult]):
    """The rise in loss divided among the pieces of the weights.

    Args:
        by: How finely the weights are divided.
        tolerance: The largest standard error that is enough, as a part of the total.
        limit: The most orders to draw.
        pairs: How many pairs of orders to draw each time the pack is shown.
        exact: The most pieces of which every coalition is run.
        seed: Of the orders and of the bootstrap.
        level: Share of bootstrap draws that an interval holds.
    """

    wants = Wants(same_tokens=True, together=True)

    def __init__(
        self,
        by: By = "layer",
        tolerance: float = 0.02,
        limit: int = 128,
        pairs: int = 8,
        exact: int = EXACT,
        seed: int = 0,
        level: float = 0.95,
    ) -> None:
        self.by, self.tolerance, self.limit, self.seed = by, tolerance, limit, seed
        self.level = level
        self.at_once, self.exact = max(1, min(pairs, limit // 2)), exact
        self.sums = PerDocument(0)
        self.drawn = PerDocument(0)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make room for the pieces."""
        super().begin(pair, encoder)
        self.pieces: tuple[Piece, ...] = pair.hybrid.pieces(self.by)
        self.every = len(self.pieces) <= self.exact
        self.first = 0
        # A document's tokens and rise are summed as often as it is shown, like its shares.
        self.sums = PerDocument(2 + len(self.pieces))
        # Not by document, but by number of the pair of orders.
        self.drawn = PerDocument(1 + len(self.pieces))

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        base, aligned = frame.likelihoods
        shares = self._divide(frame) if self.every else self._draw(frame)
        columns = [np.ones(len(base)), (base - aligned).numpy(), *shares]
        self.sums.update(frame.scored.document, np.stack(columns, 1))

    def _divide(self, frame: Frame) -> np.ndarray:
        """[piece, scored unit] shares by all orders."""
        every = range(2 ** len(self.pieces))
        values = _rises(frame, self.pieces, every)
        return formulas.shapley([values[c] for c in every])

    def _draw(self, frame: Frame) -> np.ndarray:
        """[piece, scored unit] shares by the orders of this showing, which are kept one by one."""
        orders = self._orders(self.first)
        values = _rises(frame, self.pieces, _asked(orders))
        shares = np.mean(
            [[formulas.marginals(order, values) for order in pair] for pair in orders], axis=1
        )
        tokens = np.full((len(orders), 1), shares.shape[-1])
        numbers = np.arange(self.first, self.first + len(orders))
        self.drawn.update(numbers, np.concatenate([tokens, shares.sum(-1)], 1))
        return shares.mean(0)

    def _orders(self, first: int) -> np.ndarray:
        """[pair, 2, piece] the orders of the showing that begins with a pair."""
        return formulas.antithetic(len(self.pieces), first, first + self.at_once, self.seed)

    def again(self) -> bool:
        """Whether the pack is to be shown again, for more orders."""
        done = len(self.drawn.documents)
        if self.every or self._settled() or 2 * (done + self.at_once) > self.limit:
            return False
        self.first = done
        return True

    def _settled(self) -> bool:
        total = self._found()[0]
        # More orders would not make a rise that may be nothing worth dividing.
        worth = np.isfinite(formulas.of_whole(1.0, total))
        return not worth or formulas.settled(self._errors(), float(total.estimate), self.tolerance)

    def restore(self, state: Mapping[str, np.ndarray]) -> Self:
        """Take up what `state` gave, in the showing that it was taken in."""
        super().restore(state)
        self.first = max(0, len(self.drawn.documents) - 1) // self.at_once * self.at_once
        return self

    def compute(self) -> ShapleyResult:
        """The result of all that was seen so far."""
        total, *shares = self._found()
        share, low, high = np.array(shares).T
        drawn = 2 * len(self.drawn.documents)
        return ShapleyResult.of(
            total=tuple(total),
            residual=float(total.estimate - share.sum()),
            layer=[piece.layer for piece in self.pieces],
            component=[piece.component for piece in self.pieces],
            share=share,
            low=low,
            high=high,
            error=self._errors(),
            of_total=formulas.of_whole(share, total),
            exact=self.every,
            permutations=factorial(len(self.pieces)) if self.every else drawn,
            evaluations=self._evaluations(),
            notes=self._notes(),
        )

    def _found(self) -> list[Interval]:
        """The total and each piece's share, with intervals over documents."""
        sums = self.sums.sums
        found = self.intervals(sums[:, 1:], sums[:, 0], self.sums.documents)
        return [Interval(*column) for column in zip(*found, strict=True)]

    def _errors(self) -> np.ndarray:
        """[piece] standard errors of the shares, from drawing orders."""
        if self.every:
            return np.zeros(len(self.pieces))
        tokens, shares = np.split(self.drawn.sums, [1], axis=1)
        if not tokens.all():
            return np.full(len(self.pieces), np.nan)
        errors = Moments().update(torch.from_numpy(shares / tokens)).standard_error
        return np.broadcast_to(errors.numpy(), len(self.pieces))

    def _evaluations(self) -> int:
        if self.every:
            return max(0, 2 ** len(self.pieces) - 2)
        whole = formulas.coalition(range(len(self.pieces)))
        starts = range(0, len(self.drawn.documents), self.at_once)
        asked = [_asked(self._orders(first)) - {0, whole} for first in starts]
        return sum(map(len, asked))

    def _notes(self) -> tuple[str, ...]:
        total = self._found()[0]
        if self.every or not np.isfinite(formulas.of_whole(1.0, total)) or self._settled():
            return ()
        worst = np.max(self._errors()) / abs(total.estimate)
        return (
            f"Drawing stopped at its limit with a standard error of {worst:.1%} of the rise, "
            f"where {self.tolerance:.1%} were asked for.",
        )


@dataclass(frozen=True)
class InteractionsResult(Result):
    """What pairs of pieces cost together and not apart."""

    kind = "interaction"
    title = "Interactions of pieces"
    how = """
Two pieces i and j interact where what they cost together is not the sum of what they cost alone. \
Beside the pieces S that already have aligned's weights, with v(S) the loss of that net,

    Δ(S) = v(S, i, j) − v(S, i) − v(S, j) + v(S),

in nats a token. Above 0 the two do damage that takes both, so that restoring either heals it; \
below 0 either does the other's damage, so that restoring one alone does not help, or one makes \
up for the other. interaction is the mean of Δ(S) over all orders of arrival in which the two \
come together, the Shapley interaction index (Grabisch & Roubens 1999), weight \
|S|! (G − |S| − 2)! / (G − 1)!. It takes all 2^G nets and is undefined (not 0) where there are \
too many pieces for that. from aligned is Δ beside all other pieces, and from base beside none: \
what a restoration of two, or a graft of two, gives beyond two of one.

Intervals: 95 % bootstrap over documents.

Source: Grabisch & Roubens (1999), "An axiomatic approach to the concept of interaction among \
players in cooperative games".
""".strip()

    total: Estimate = value("nats/token")
    """The rise in loss."""
    strongest: Estimate = value("nats/token")
    """The interaction largest in size; from aligned where the index is undefined."""

    layer_1: np.ndarray = column()
    """[row] layer of the first piece."""
    component_1: np.ndarray = column()
    """[row] component of it."""
    layer_2: np.ndarray = column()
    """[row] layer of the second piece."""
    component_2: np.ndarray = column()
    """[row] component of it."""
    interaction: np.ndarray = column("nats/token")
    """[row] Shapley interaction index; NaN where not all coalitions were run."""
    low: np.ndarray = column("nats/token")
    """[row] lower end of its 95 % interval."""
    high: np.ndarray = column("nats/token")
    """[row] upper end of it."""
    from_aligned: np.ndarray = column("nats/token")
    """[row] interaction while all other pieces are aligned's."""
    low_aligned: np.ndarray = column("nats/token")
    """[row] lower end of its interval."""
    high_aligned: np.ndarray = column("nats/token")
    """[row] upper end of it."""
    from_base: np.ndarray = column("nats/token")
    """[row] interaction while all other pieces are base's."""
    low_base: np.ndarray = column("nats/token")
    """[row] lower end of its interval."""
    high_base: np.ndarray = column("nats/token")
    """[row] upper end of it."""

    near_zero: ClassVar[tuple[str, ...]] = (
        "total",
        "strongest",
        "interaction",
        "from_aligned",
        "from_base",
    )
    adds: ClassVar[tuple[str, ...]] = ("total",)

    def summary(self) -> str:
        """The pair that interacts most, and which way."""
        if not self.rows():
            return "A single piece interacts with none."
        what, row = self.strongest, _strongest(self._shown())
        one, other = (names[row] for names in self._named())
        pairs = f"{self.rows()} pair{'s' if self.rows() > 1 else ''}"
        if what.low <= 0 <= what.high or not self.above_floor("strongest"):
            return f"Of {pairs} none surely interacts: the largest is {what} nats a token."
        way = "damage that takes both" if what.value > 0 else "each does the other's work"
        return f"Of {pairs} {one} and {other} interact most, by {what} nats a token: {way}."

    def figure(self) -> "figures.Figure | None":
        """A map of all pairs."""
        if not self.rows():
            return None
        one, other = self._named()
        names = list(dict.fromkeys([*one, *other]))
        places = {name: place for place, name in enumerate(names)}
        matrix = np.zeros((len(names), len(names)))
        at = [[places[name] for name in side] for side in (one, other)]
        matrix[at[0], at[1]] = matrix[at[1], at[0]] = self._shown()
        return figures.heatmap(
            matrix[::-1],
            rows=names[::-1],
            columns=names,
            xlabel="piece of the weights",
            ylabel="piece of the weights",
            label="interaction [nats/token]",
        )

    def _shown(self) -> np.ndarray:
        known = np.isfinite(self.interaction).any()
        return self.interaction if known else self.from_aligned

    def _named(self) -> tuple[list[str], list[str]]:
        return (
            called(self.layer_1, self.component_1),
            called(self.layer_2, self.component_2),
        )


class Interactions(Metric[InteractionsResult]):
    """What pairs of pieces of the weights cost together and not apart.

    Beside `Shapley` of as few pieces it runs no further net.

    Args:
        by: How finely the weights are divided.
        exact: The most pieces of which every coalition is run; of more, only those of all but
            two pieces and of two.
        seed: Of the bootstrap.
        level: Share of bootstrap draws that an interval holds.
    """

    wants = Wants(same_tokens=True, together=True)

    def __init__(
        self, by: By = "layer", exact: int = EXACT, seed: int = 0, level: float = 0.95
    ) -> None:
        self.by, self.exact, self.seed = by, exact, seed
        self.level = level
        self.sums = PerDocument(0)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make room for the pairs of pieces."""
        super().begin(pair, encoder)
        self.pieces: tuple[Piece, ...] = pair.hybrid.pieces(self.by)
        self.pairs = formulas.pairs(len(self.pieces))
        self.sums = PerDocument(2 + 3 * len(self.pairs))

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        whole = formulas.coalition(range(len(self.pieces)))
        twos = [(1 << i, 1 << j) for i, j in self.pairs]
        near = {c for i, j in twos for c in (i, j, i | j)} | {0}
        asked = near | {whole ^ c for c in near}
        if every := len(self.pieces) <= self.exact:
            asked = set(range(whole + 1))
        v = _rises(frame, self.pieces, asked)
        below = [formulas.mixed(v[i | j], v[i], v[j], v[0]) for i, j in twos]
        above = [
            formulas.mixed(v[whole], v[whole ^ j], v[whole ^ i], v[whole ^ i ^ j]) for i, j in twos
        ]
        index = np.full((len(twos), len(v[0])), np.nan)
        if every:
            index = formulas.interactions(np.stack([v[c] for c in range(whole + 1)]))
        columns = [np.ones(len(v[0])), v[whole], *index, *above, *below]
        self.sums.update(frame.scored.document, np.stack(columns, 1))

    def compute(self) -> InteractionsResult:
        """The result of all that was seen so far."""
        sums = self.sums.sums
        found = self.intervals(sums[:, 1:], sums[:, 0], self.sums.documents)
        total, *parts = zip(*found, strict=True)
        index, above, below = np.array(parts).reshape(3, len(self.pairs), 3).transpose(0, 2, 1)
        shown = index if np.isfinite(index[0]).any() else above
        strongest = shown[:, _strongest(shown[0])] if self.pairs else np.full(3, np.nan)
        note = (
            f"The interaction index of {len(self.pieces)} pieces would take every coalition; "
            "it is undefined, and interactions beside all and beside none are given."
        )
        one, other = ([self.pieces[pair[side]] for pair in self.pairs] for side in (0, 1))
        return InteractionsResult.of(
            total=total,
            strongest=tuple(strongest),
            layer_1=_strings(piece.layer for piece in one),
            component_1=_strings(piece.component for piece in one),
            layer_2=_strings(piece.layer for piece in other),
            component_2=_strings(piece.component for piece in other),
            interaction=index[0],
            low=index[1],
            high=index[2],
            from_aligned=above[0],
            low_aligned=above[1],
            high_aligned=above[2],
            from_base=below[0],
            low_base=below[1],
            high_base=below[2],
            notes=(note,) if len(self.pieces) > self.exact else (),
        )


def _rises(
    frame: Frame, pieces: Sequence[Piece], coalitions: Iterable[int]
) -> dict[int, np.ndarray]:
    """For each coalition, [scored unit] rise in loss with aligned's weights in its pieces."""
    base = frame.likelihoods[0]
    # Nets that follow each other have as many lower pieces alike as can be, for an engine to keep.
    order = sorted(coalitions, key=lambda c: f"{c:0{len(pieces)}b}"[::-1])
    return {
        c: (base - frame.grafted([p for i, p in enumerate(pieces) if c >> i & 1])).numpy()
        for c in order
    }


def _asked(orders: np.ndarray) -> set[int]:
    """The coalitions that arise as pieces arrive in the orders [pair, 2, piece]."""
    return {c for order in orders.reshape(-1, orders.shape[-1]) for c in formulas.prefixes(order)}


def _strongest(interaction: np.ndarray) -> int:
    """The row of the interaction largest in size."""
    return int(np.argmax(np.nan_to_num(np.abs(interaction), nan=-1)))


def _strings(names: Iterable[str]) -> np.ndarray:
    # Of no pair too, a column of strings.
    return np.array([*names, ""], dtype=object)[:-1]
