"""What the blocks above a boundary cost, and how that hangs on what stands below it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from driftlens.formulas.streams import PerDocument
from driftlens.metric import Metric
from driftlens.models import Frame, ModelPair, Wants
from driftlens.models.tokens import Encoder
from driftlens.results import Estimate, Result, column, figures, shown, value


@dataclass(frozen=True)
class FactorialResult(Result):
    """Main effects and interaction of lower and upper stack, at every boundary."""

    kind = "factorial"
    title = "Lower and upper stack"
    how = """
At every boundary the model is cut in two, and each half is taken from base or from aligned: four \
nets, whose loss L(lower, upper) divides the rise exactly:

    upstream = L(aligned, base) − L(base, base)
    late = L(base, aligned) − L(base, base)
    interaction = L(aligned, aligned) − L(aligned, base) − L(base, aligned) + L(base, base)
    upstream + late + interaction = L(aligned, aligned) − L(base, base), the rise in loss,

in nats a token. late is what the upper blocks cost when base stands below them; above aligned's \
lower blocks they cost late + interaction. Where the interaction is large, what a block above the \
boundary is to blame for depends on what stands below, and no single order of the blocks tells \
it. Above 0 the halves do damage together that neither does alone; below 0 either half alone \
does what both do, or one makes up for the other. The nets are those of the sweep by layer, at no \
further cost. Intervals: 95 % bootstrap over documents.

Source: the first-divergence factorial of upstream state and late stack (an anonymous preprint), \
which takes logits of the two tokens at which the models first part, read by one readout. Here it \
is the loss on the text's own tokens, at every boundary, and each net has its upper half's \
readout; in this form it is ours.
""".strip()

    total: Estimate = value("nats/token")
    """The rise in loss."""
    strongest: Estimate = value("nats/token")
    """The interaction largest in size, of all boundaries."""

    boundary: np.ndarray = column()
    """[row] `below 0`, `above 0`, `above 1` and so on, by block."""
    upstream: np.ndarray = column("nats/token")
    """[row] what aligned's stages below the boundary cost under base's stages above it."""
    low_upstream: np.ndarray = column("nats/token")
    """[row] lower end of its 95 % interval."""
    high_upstream: np.ndarray = column("nats/token")
    """[row] upper end of it."""
    late: np.ndarray = column("nats/token")
    """[row] what aligned's stages above the boundary cost over base's stages below it."""
    low_late: np.ndarray = column("nats/token")
    """[row] lower end of its interval."""
    high_late: np.ndarray = column("nats/token")
    """[row] upper end of it."""
    interaction: np.ndarray = column("nats/token")
    """[row] what the two cost together beyond what each costs alone."""
    low_interaction: np.ndarray = column("nats/token")
    """[row] lower end of its interval."""
    high_interaction: np.ndarray = column("nats/token")
    """[row] upper end of it."""

    near_zero: ClassVar[tuple[str, ...]] = (
        "total",
        "strongest",
        "upstream",
        "late",
        "interaction",
    )
    adds: ClassVar[tuple[str, ...]] = ("total",)

    def summary(self) -> str:
        """The largest interaction and what it means."""
        row = _strongest(self.interaction)
        boundary, late = self.boundary[row], float(self.late[row])
        told = self.above_floor("strongest") and not (
            self.strongest.low <= 0 <= self.strongest.high
        )
        if not told:
            return (
                f"What upper blocks cost does not hang on what stands below: of {self.rows()} "
                f"boundaries the largest interaction is {self.strongest} nats a token, "
                "which may be none."
            )
        return (
            f"What upper blocks cost depends on what stands below: those {boundary} cost "
            f"{shown(late, 3)} nats a token over base's lower blocks and "
            f"{shown(late + float(self.interaction[row]), 3)} over aligned's, an interaction of "
            f"{self.strongest} nats a token, the largest of {self.rows()} boundaries."
        )

    def figure(self) -> "figures.Figure":
        """Both main effects and the interaction by boundary."""
        names = ("upstream", "late", "interaction")
        ends = {n: (getattr(self, f"low_{n}"), getattr(self, f"high_{n}")) for n in names}
        return figures.curves(
            self.boundary,
            {name: getattr(self, name) for name in names},
            bands=ends,
            xlabel="boundary",
            ylabel="part of the rise [nats/token]",
            floor=self.floor.get("interaction"),
        )


class Factorial(Metric[FactorialResult]):
    """How the rise divides between lower and upper stack and their interaction.

    Args:
        seed: Of the bootstrap.
        level: Share of bootstrap draws that an interval holds.
    """

    wants = Wants(frozenset({"out"}), None, causal=True, same_tokens=True, together=True)

    def __init__(self, seed: int = 0, level: float = 0.95) -> None:
        self.seed = seed
        self.level = level
        self.sums = PerDocument(0)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make room for the boundaries."""
        super().begin(pair, encoder)
        self.sums = PerDocument(2 + 3 * (pair.depth + 1))

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        base, aligned = frame.likelihoods
        rise = base - aligned
        # The first and the last boundary have a whole model on one side, and nothing to cross.
        upstream, late = base - frame.corrupted[1:-1], base - frame.restored[1:-1]
        effects = [upstream, late, rise - upstream - late]
        columns = torch.cat([torch.ones_like(rise)[None], rise[None], *effects])
        self.sums.update(frame.scored.document, columns.T)

    def compute(self) -> FactorialResult:
        """The result of all that was seen so far."""
        sums = self.sums.sums
        found = self.intervals(sums[:, 1:], sums[:, 0], self.sums.documents)
        total, *parts = zip(*found, strict=True)
        upstream, late, interaction = np.array(parts).reshape(3, -1, 3).transpose(0, 2, 1)
        return FactorialResult.of(
            total=total,
            strongest=tuple(interaction[:, _strongest(interaction[0])]),
            boundary=["below 0", *(f"above {block}" for block in range(self.pair.depth))],
            upstream=upstream[0],
            low_upstream=upstream[1],
            high_upstream=upstream[2],
            late=late[0],
            low_late=late[1],
            high_late=late[2],
            interaction=interaction[0],
            low_interaction=interaction[1],
            high_interaction=interaction[2],
        )


def _strongest(interaction: np.ndarray) -> int:
    """The row of the interaction largest in size."""
    return int(np.argmax(np.nan_to_num(np.abs(interaction), nan=-1)))
