"""How far each change of the weights lies from base, in base's own Fisher metric."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from driftlens.formulas.streams import PerDocument
from driftlens.metric import Metric
from driftlens.models import Frame, ModelPair, Wants
from driftlens.models.pieces import By, Piece, called
from driftlens.models.tokens import Encoder
from driftlens.results import Estimate, Result, column, figures, value


@dataclass(frozen=True)
class FisherDistanceResult(Result):
    """The divergence that the change of each piece of the weights would cost, to second order."""

    kind = "fisher_distance"
    title = "Fisher distance"
    how = """
At base, the log-likelihood of a window's tokens has a slope along the change of a piece's \
weights, s = Σ gₜᵀ ΔW aₜ over positions: what enters at position t, mapped by the change, times \
the gradient of the log-likelihood by what leaves at t. One forward and one backward pass give it \
for every piece at once. With F the mean over windows of the outer product of their gradients,

    distance(piece) = ½ Δθᵀ F Δθ = ½ Σ over windows of s², over all scored tokens,

in nats a token: to second order the KL from base that this change alone would cost. It knows \
how much base's predictions hang on a weight, which the norm of the change does not; it does not \
know whether the text becomes likelier or less likely, and sees base only.

Squares do not add up: the distance of all weights together is that of the summed slopes. The \
overlap is how much the pieces' distances exceed it together (below 0: how much they fall short), \
so a distance is no share of it.

F is the empirical Fisher matrix: its tokens are those of the text. The KL's own has tokens drawn \
from base, so the two agree only as far as the text is as base would write it. A row of F is a \
window: a document read in several windows has a slope for each. Where the slopes of a window's \
tokens point one way, its square, and so the distance, grows with the window; a few windows may \
rule the mean, and then the interval is wide. Intervals: 95 % bootstrap over documents.

Sources: Amari (1998), "Natural gradient works efficiently in learning", for F as the metric of \
predictions; Kunstner, Hennig & Balles (2019), "Limitations of the empirical Fisher \
approximation", for what it is not.
""".strip()

    total: Estimate = value("nats/token")
    """Distance of the change of all weights together."""
    overlap: Estimate = value("nats/token")
    """Sum of the pieces' distances, minus the total."""

    layer: np.ndarray = column()
    """[row] `embed`, number of the block, or `head`."""
    component: np.ndarray = column()
    """[row] `all`, or which part of the layer."""
    distance: np.ndarray = column("nats/token")
    """[row] half the square of the slope along the change of these weights alone; at least 0."""
    low: np.ndarray = column("nats/token")
    """[row] lower end of its 95 % interval."""
    high: np.ndarray = column("nats/token")
    """[row] upper end of it."""

    near_zero: ClassVar[tuple[str, ...]] = ("total", "overlap", "distance")

    def summary(self) -> str:
        """How far all weights moved, and those that moved farthest."""
        if not self.distance.any():
            return f"No weight moved where base's predictions feel it: {self.total} nats a token."
        most = int(np.argmax(self.distance))
        farthest = Estimate(self.distance[most], self.low[most], self.high[most])
        return (
            f"By base's Fisher metric the weights moved {self.total} nats a token from base; of "
            f"{self.rows()} pieces {Piece(self.layer[most], self.component[most]).words} alone "
            f"moved farthest, {farthest}."
        )

    def figure(self) -> "figures.Figure":
        """Distances by piece."""
        return figures.bars(
            called(self.layer, self.component),
            self.distance,
            self.low,
            self.high,
            xlabel="piece of the weights",
            ylabel="Fisher distance [nats/token]",
            floor=self.floor.get("distance"),
        )


class FisherDistance(Metric[FisherDistanceResult]):
    """How far each change of the weights lies from base, in base's Fisher metric.

    Args:
        by: How finely the weights are divided.
        seed: Of the bootstrap.
        level: Share of bootstrap draws that an interval holds.
    """

    wants = Wants(causal=True, same_tokens=True, graph=True, together=True)

    def __init__(self, by: By = "layer", seed: int = 0, level: float = 0.95) -> None:
        self.by, self.seed = by, seed
        self.level = level
        self.sums = PerDocument(0)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make room for the pieces."""
        super().begin(pair, encoder)
        self.pieces: tuple[Piece, ...] = pair.hybrid.pieces(self.by)
        self.sums = PerDocument(3 + len(self.pieces))

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        acts = frame.outset(heads=self.by == "head")
        slopes = torch.stack([acts.of(piece).sum(1) for piece in self.pieces], 1)
        each, whole = slopes.square() / 2, slopes.sum(1).square() / 2
        rows = torch.cat([torch.stack([whole, each.sum(1) - whole], 1), each], 1)
        tokens = torch.ones(len(frame.scored.document), 1, dtype=rows.dtype)
        documents = [window.example for window in frame.windows]
        self.sums.update(
            np.concatenate([frame.scored.document, documents]), torch.block_diag(tokens, rows)
        )

    def compute(self) -> FisherDistanceResult:
        """The result of all that was seen so far."""
        sums = self.sums.sums
        found = self.intervals(sums[:, 1:], sums[:, 0], self.sums.documents)
        total, overlap, *parts = zip(*found, strict=True)
        distance, low, high = np.array(parts).reshape(-1, 3).T
        return FisherDistanceResult.of(
            total=total,
            overlap=overlap,
            layer=[piece.layer for piece in self.pieces],
            component=[piece.component for piece in self.pieces],
            distance=distance,
            low=low,
            high=high,
        )
