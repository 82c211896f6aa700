"""What each piece of the weights gives back when restored, and what it costs alone."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from driftlens.formulas.intervals import Interval
from driftlens.formulas.shapley import of_whole
from driftlens.formulas.streams import PerDocument
from driftlens.metric import Metric
from driftlens.models import Frame, ModelPair, Wants
from driftlens.models.pieces import By, Piece, called
from driftlens.models.tokens import Encoder
from driftlens.results import Divided, Estimate, column, fact, figures, value


@dataclass(frozen=True)
class GraftsResult(Divided):
    """The change in loss as each piece of the weights changes sides, one at a time."""

    kind = "graft"
    title = "Weight grafts"
    how = """
Each piece of the weights is moved from one model into the other, alone, and both losses are read \
again; nothing is approximated.

    gives back = loss(aligned) − loss(aligned with base's piece): what restoring it brings.
    costs alone = loss(base with aligned's piece) − loss(base): what it does without the others.

Both are in nats a token, above 0 where the piece adds to the loss. A graft of weights asks which \
weights to blame; a patch of activations, as the sweep by layer does it, asks where the loss \
passes through: a layer may pass on what others did.

Grafts are no division: two pieces that do one damage together are each given all of it back, and \
of two that each do it alone neither gives anything back. The overlap is how much the pieces \
claim together beyond the rise (below 0: how much nobody claims); where it is large, read the \
Shapley shares. Intervals: 95 % bootstrap over documents.

Sources: module swaps between a model and its fine-tuned version (Panigrahi et al. 2023, \
"Task-specific skill localization in fine-tuned language models"; Prakash et al. 2024 for \
activations), here for every piece and in both directions.
""".strip()

    overlap: Estimate = value("nats/token")
    """Sum of what the pieces give back, minus the total."""
    overlap_alone: Estimate = value("nats/token")
    """Sum of what the pieces cost alone, minus the total."""

    gives_back: np.ndarray = column("nats/token")
    """[row] fall in loss as base's piece is put into aligned."""
    low: np.ndarray = column("nats/token")
    """[row] lower end of its 95 % interval."""
    high: np.ndarray = column("nats/token")
    """[row] upper end of it."""
    costs_alone: np.ndarray = column("nats/token")
    """[row] rise in loss as aligned's piece is put into base."""
    low_alone: np.ndarray = column("nats/token")
    """[row] lower end of its interval."""
    high_alone: np.ndarray = column("nats/token")
    """[row] upper end of it."""
    of_total: np.ndarray = column("of the rise")
    """[row] `gives_back` over the total; NaN where the total may be nothing."""

    grafts: int = fact("nets")
    """Grafted nets that were run."""

    near_zero: ClassVar[tuple[str, ...]] = (
        "total",
        "overlap",
        "overlap_alone",
        "gives_back",
        "costs_alone",
    )

    def summary(self) -> str:
        """The piece that gives back most, and whether grafts add up."""
        if not np.isfinite(self.of_total).any():
            return f"A rise of {self.total} nats a token may be none: there is nothing to restore."
        most = int(np.argmax(self.gives_back * np.sign(self.total.value)))
        piece = Piece(self.layer[most], self.component[most]).words
        back = Estimate(self.gives_back[most], self.low[most], self.high[most])
        return (
            f"Of a rise of {self.total} nats a token, putting back {piece} alone returns {back}; "
            f"all pieces' grafts together claim {self.overlap} beyond the rise."
        )

    def figure(self) -> "figures.Figure":
        """What each piece gives back, with what it costs alone beside it."""
        return figures.bars(
            called(self.layer, self.component),
            self.gives_back,
            self.low,
            self.high,
            second={"costs alone": self.costs_alone},
            label="gives back",
            xlabel="piece of the weights",
            ylabel="loss [nats/token]",
            floor=self.floor.get("gives_back"),
        )


class Grafts(Metric[GraftsResult]):
    """What each piece of the weights gives back when restored, and what it costs alone.

    Args:
        by: How finely the weights are divided.
        seed: Of the bootstrap.
        level: Share of bootstrap draws that an interval holds.
    """

    wants = Wants(same_tokens=True, together=True)

    def __init__(self, by: By = "layer", seed: int = 0, level: float = 0.95) -> None:
        self.by, self.seed = by, seed
        self.level = level
        self.sums = PerDocument(0)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make room for the pieces."""
        super().begin(pair, encoder)
        self.pieces: tuple[Piece, ...] = pair.hybrid.pieces(self.by)
        self.sums = PerDocument(4 + 2 * len(self.pieces))

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        base, aligned = frame.likelihoods
        rise = base - aligned
        others = [[p for p in self.pieces if p is not piece] for piece in self.pieces]
        back = torch.stack([frame.grafted(rest) - aligned for rest in others])
        alone = torch.stack([base - frame.grafted([piece]) for piece in self.pieces])
        columns = [torch.ones_like(rise), rise, back.sum(0) - rise, alone.sum(0) - rise]
        self.sums.update(frame.scored.document, torch.stack([*columns, *back, *alone], 1))

    def compute(self) -> GraftsResult:
        """The result of all that was seen so far."""
        sums = self.sums.sums
        found = self.intervals(sums[:, 1:], sums[:, 0], self.sums.documents)
        total, overlap, overlap_alone, *parts = zip(*found, strict=True)
        back, alone = np.array(parts).reshape(2, len(self.pieces), 3).transpose(0, 2, 1)
        return GraftsResult.of(
            total=total,
            overlap=overlap,
            overlap_alone=overlap_alone,
            layer=[piece.layer for piece in self.pieces],
            component=[piece.component for piece in self.pieces],
            gives_back=back[0],
            low=back[1],
            high=back[2],
            costs_alone=alone[0],
            low_alone=alone[1],
            high_alone=alone[2],
            of_total=of_whole(back[0], Interval(*map(np.asarray, total))),
            grafts=2 * len(self.pieces),
        )
