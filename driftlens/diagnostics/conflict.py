"""What training on preferences would cost a capability, by layer, before anyone trains."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from driftlens.formulas.entanglement import projected_share
from driftlens.formulas.preferences import DPO, Loss, pulls
from driftlens.formulas.streams import PerDocument
from driftlens.metric import Metric
from driftlens.models import Frame, ModelPair, Wants
from driftlens.models.pieces import Piece
from driftlens.models.tokens import Batch, Encoder
from driftlens.packs import Pack
from driftlens.results import Estimate, Result, column, fact, figures, multiple, value

AT_ONCE = 8
"""Pairs whose gradients are held against those of the texts at a time."""

TOKENS = 256
"""The longest window of the texts."""

USUAL = DPO()
"""The loss that is meant where none is named."""


@dataclass(frozen=True)
class CapabilityConflictResult(Result):
    """What a step on the preferences would do to the likelihood of other texts."""

    kind = "capability_conflict"
    title = "What alignment would cost"
    how = """
A small step on a pair moves the weights along u = d_w g_w − d_l g_l, d being the pulls of the \
loss on both answers and g their gradients. To first order the log-likelihood of a text with \
gradient c then changes by ⟨u, c⟩, and the pair's margin by ⟨u, g_w − g_l⟩. rise is how much the \
texts' loss would rise, in nats a token, for each nat by which the margin grows: \
−Σ ⟨u, c⟩ / Σ ⟨u, g_w − g_l⟩, over pairs, c being the mean over the texts' tokens. It adds up over \
layers and components.

share is the part of u, by its squared length, that lies in the span of the texts' gradients, \
‖UUᵀu‖² / ‖u‖²: what orthogonal projection would take out of the step. chance is what a random \
direction would have there, rank / number of weights. A share far above chance says that training \
writes where the capability is read; whether it gets better or worse, the sign of rise says.

Gradients are those of the model as it stands: the figures speak of the first steps. \
Intervals: 95 % bootstrap over pairs; the texts are held fixed.

Sources: OGPSA (arXiv 2602.07892), its projection; Yuan et al. (2025), "A Common Pitfall of \
Margin-based Language Model Alignment: Gradient Entanglement", its first-order changes.
""".strip()

    rise: Estimate = value("nats/token per nat")
    """Rise of the texts' loss for each nat that the margin grows; above 0 the texts get worse."""
    share: Estimate = value("of the step")
    """Mean part of a pair's step that lies in the span of the texts' gradients."""
    chance: Estimate = value("of the step")
    """The same of a random direction."""
    harmful: Estimate = value("of pairs")
    """Share of pairs whose step makes the texts less likely."""

    layer: np.ndarray = column()
    """[row] `embed`, number of the block, or `head`."""
    component: np.ndarray = column()
    """[row] part of the layer."""
    rise_by: np.ndarray = column("nats/token per nat", named="rise")
    """[row] part of the rise."""
    low: np.ndarray = column("nats/token per nat")
    """[row] lower end of its 95 % interval."""
    high: np.ndarray = column("nats/token per nat")
    """[row] upper end of it."""
    share_by: np.ndarray = column("of the step", named="share")
    """[row] mean part of the step by these weights that lies in the texts' span."""
    chance_by: np.ndarray = column("of the step", named="chance")
    """[row] the same of a random direction."""

    texts: int = fact("texts")
    """How many texts stand for the capability."""
    capability: str = fact()
    """The pack that they come from."""
    pairs: int = fact("pairs")
    """How many pairs were held against them."""

    def summary(self) -> str:
        """What to expect to pay, and where."""
        if not self.rows() or not np.isfinite(self.rise.value):
            return "There is no step to hold against the texts."
        worst = int(np.nanargmax(self.rise_by))
        piece = Piece(self.layer[worst], self.component[worst], ()).words
        span = (
            f"{self.share.value:.2%} of a step lies in the texts' span, "
            f"{multiple(self.share.value / self.chance.value)} chance"
        )
        what = f"the loss on {self.capability}"
        if self.rise.low <= 0 <= self.rise.high:
            return (
                f"Whether {what} would rise cannot be told: {self.rise} nats a token for each nat "
                f"of margin; {span}."
            )
        if self.rise.value < 0:
            fall = Estimate(-self.rise.value, -self.rise.high, -self.rise.low)
            return f"For each nat of margin {what} would fall by {fall} nats a token; {span}."
        return (
            f"For each nat of margin {what} would rise by {self.rise} nats a token: expect to pay "
            f"in {piece}; {span}."
        )

    def headline(self) -> str:
        """Whether there is a price."""
        if not self.rise.low > 0:
            return ""
        return f"the loss on {self.capability} would rise with it: expect to pay there"

    def figure(self) -> "figures.Figure":
        """The rise by component."""
        both = zip(self.layer, self.component, strict=True)
        return figures.bars(
            [str(Piece(layer, component, ())) for layer, component in both],
            self.rise_by,
            self.low,
            self.high,
            xlabel="weights",
            ylabel="rise [nats/token per nat]",
        )


class CapabilityConflict(Metric[CapabilityConflictResult]):
    """What a step on the preferences would do to the likelihood of other texts.

    Args:
        texts: What is to be protected.
        loss: What would be trained with.
        trained: Patterns that name the weights to be trained.
        count: How many of the texts' windows to take; evenly chosen.
        limit: How many pairs to hold against them; evenly chosen.
        seed: Of the bootstrap.
        level: Share of bootstrap draws that an interval holds.
    """

    wants = Wants(causal=True, same_tokens=True, graph=True)

    kinds = ("preference",)

    def __init__(
        self,
        texts: Pack,
        loss: Loss = USUAL,
        trained: Sequence[str] = ("*",),
        count: int = 8,
        limit: int = 64,
        seed: int = 0,
        level: float = 0.95,
    ) -> None:
        self.texts, self.loss, self.trained = texts, loss, tuple(trained)
        self.count, self.limit, self.seed, self.level = count, limit, seed, level
        self.sums = PerDocument(0)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Read the texts, and choose the pairs."""
        super().begin(pair, encoder)
        other = pair.encoder(self.texts, min(encoder.length, TOKENS))
        windows = [other.plan[i] for i in _evenly(len(other.plan), self.count)]
        self.protected = other.encode(windows)[1]
        documents = [window.example for window in encoder.plan[::2]]
        self.chosen = {documents[i] for i in _evenly(len(documents), self.limit)}
        self.gradients = pair.gradients(self.trained)
        self.named = self.gradients.blocks
        self.sums = PerDocument(2 + 4 * (len(self.named) + 1))

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        documents = [window.example for window in frame.windows[::2]]
        mine = [p for p, document in enumerate(documents) if document in self.chosen]
        d_w, d_l = (d.numpy() for d in pulls(self.loss, frame.answers))
        for start in range(0, len(mine), AT_ONCE):
            some = mine[start : start + AT_ONCE]
            windows = [frame.windows[2 * p + side] for p in some for side in (0, 1)]
            found = self._against(self.encoder.encode(windows)[1], d_w[some], d_l[some])
            self.sums.update([documents[p] for p in some], found)

    def _against(self, rows: Batch, d_w: np.ndarray, d_l: np.ndarray) -> np.ndarray:
        """[pair, column] margin, harm, and of all weights and each piece rise and shares."""
        answers, count = len(rows.ids), len(self.protected.ids)
        found = self.gradients.products(_joined(rows, self.protected), answers + count)
        tokens = len(self.protected.target[0])
        blocks: dict[tuple[str, str], Any] = dict.fromkeys(self.named, 0.0)
        for name, inner in found.inner.items():
            owner = found.owners[name]
            blocks[owner.layer, owner.component] += inner[0].numpy()
        whole = sum(blocks.values())
        columns: list[np.ndarray] = []
        for gram, size in [
            (whole, sum(self.named.values())),
            *((blocks[key], size) for key, size in self.named.items()),
        ]:
            ours, theirs = slice(0, answers, 2), slice(1, answers, 2)
            three = [
                gram[a, b].diagonal() for a, b in ((ours, ours), (ours, theirs), (theirs, theirs))
            ]
            cross = gram[:answers, answers:].reshape(len(d_w), 2, count)
            along = d_w[:, None] * cross[:, 0] - d_l[:, None] * cross[:, 1]
            norm2 = d_w**2 * three[0] - 2 * d_w * d_l * three[1] + d_l**2 * three[2]
            if not columns:
                margin = d_w * (three[0] - three[1]) + d_l * (three[2] - three[1])
                columns += [margin, along.sum(1) < 0]
            share = projected_share(gram[answers:, answers:], along, norm2, size)
            # A step of no length has no share: it counts in neither sum of the mean.
            known = ~np.isnan(share.share)
            columns += [
                -along.sum(1) / tokens,
                np.where(known, share.share, 0.0),
                np.where(known, share.chance, 0.0),
                known,
            ]
        return np.stack(columns, 1).astype(float)

    def compute(self) -> CapabilityConflictResult:
        """The result of all that was seen so far."""
        sums, documents = self.sums.sums, self.sums.documents
        ones = np.ones(len(sums))
        parts = sums[:, 2:].reshape(-1, len(self.named) + 1, 4)
        rise = self.intervals(parts[:, :, 0], sums[:, 0], documents)
        share = self.intervals(parts[:, :, 1], parts[:, :, 3], documents)
        # The same for every pair, as the texts are; undefined where no pair has a step.
        with np.errstate(invalid="ignore"):
            chance = parts[:, :, 2].sum(0) / parts[:, :, 3].sum(0)
        harmful = self.intervals(sums[:, 1], ones, documents)
        return CapabilityConflictResult.of(
            rise=tuple(float(z[0]) for z in rise),
            share=tuple(float(z[0]) for z in share),
            chance=float(chance[0]),
            harmful=tuple(map(float, harmful)),
            layer=[layer for layer, _ in self.named],
            component=[component for _, component in self.named],
            rise_by=rise.estimate[1:],
            low=rise.low[1:],
            high=rise.high[1:],
            share_by=share.estimate[1:],
            chance_by=chance[1:],
            texts=len(self.protected.ids),
            capability=self.texts.name,
            pairs=len(sums),
        )


def _evenly(of: int, count: int) -> list[int]:
    """`count` numbers below `of`, evenly apart; all of them if there are no more."""
    return sorted(set(np.linspace(0, of - 1, min(of, count)).round().astype(int).tolist()))


def _joined(first: Batch, second: Batch) -> Batch:
    """The rows of two right-padded batches as one."""
    width = max(first.ids.shape[1], second.ids.shape[1])

    def wide(one: Tensor, other: Tensor) -> Tensor:
        return torch.cat([functional.pad(t, (0, width - t.shape[1])) for t in (one, other)])

    (rows, tokens), (more, others) = first.target, second.target
    target = torch.cat([rows, more + len(first.ids)]), torch.cat([tokens, others])
    number = torch.arange(len(target[0]))
    ids, mask = wide(first.ids, second.ids), wide(first.mask, second.mask)
    return Batch(ids, mask, (number[:0], number[:0]), target, number)
