"""How much less, or more, the aligned model leaves open after the same words."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from driftlens.formulas.streams import PerDocument
from driftlens.formulas.words import KINDS
from driftlens.metric import Metric
from driftlens.models import Frame, Wants
from driftlens.results import Estimate, Result, column, fact, figures, value

STARTS = (0, 1, 5, 10, 20)
"""Scored tokens of a document before which each stretch of it begins."""

PLACES = ("1", "2–5", "6–10", "11–20", "21 on")
"""What the stretches are called: by their first and last scored token, counted from 1."""

POSITION, KIND = "position", "kind"

PARTS = (*((POSITION, name) for name in PLACES), *((KIND, name) for name in KINDS))
"""Every part of the text that is told of, with the division it belongs to."""

SUMS = ("tokens", "base", "aligned", "fallen")


@dataclass(frozen=True)
class EntropyResult(Result):
    """The change in entropy of the next token, on texts that neither model wrote."""

    kind = "entropy"
    title = "Entropy on shared contexts"
    over = "What it leaves open"
    how = """
The Shannon entropy H of each model's own distribution of the next token, over its whole \
vocabulary, after the same text (teacher forced): change = H_aligned − H_base, averaged over the \
scored tokens, in nats, with H = −Σ p ln p over the vocabulary (Shannon 1948). Below 0 the aligned \
model leaves less open. e^H is the number of equally likely tokens that would have that entropy; \
effective choices are e to the mean entropy, and their ratio is e to the change. What a model \
writes itself, where its choices lead it, is measured elsewhere and may change otherwise.

The table divides the tokens twice: by their place among the scored tokens of their document, and \
by their kind. Intervals: 95 % bootstrap over documents.
""".strip()

    entropy_change: Estimate = value("nats/token")
    """Mean entropy of aligned less that of base."""
    base_entropy: Estimate = value("nats/token")
    """Mean entropy of base."""
    aligned_entropy: Estimate = value("nats/token")
    """The same of aligned."""
    fallen_share: Estimate = value("of tokens")
    """Share of tokens whose entropy is lower in aligned."""
    base_choices: Estimate = value("tokens")
    """Effective choices of base."""
    aligned_choices: Estimate = value("tokens")
    """The same of aligned."""
    choices_ratio: Estimate = value("×")
    """Effective choices of aligned over those of base."""

    division: np.ndarray = column()
    """[row] `position` or `kind`."""
    part: np.ndarray = column()
    """[row] places among the scored tokens, from 1, or kind of token."""
    tokens: np.ndarray = column("tokens")
    """[row] how many of them."""
    change: np.ndarray = column("nats/token")
    """[row] mean change in entropy."""
    low: np.ndarray = column("nats/token")
    """[row] lower end of its 95 % interval."""
    high: np.ndarray = column("nats/token")
    """[row] upper end of it."""
    before: np.ndarray = column("nats/token")
    """[row] mean entropy of base."""
    fallen: np.ndarray = column("of tokens")
    """[row] share of tokens whose entropy is lower in aligned."""

    scored: int = fact("tokens")
    """Scored tokens."""

    near_zero: ClassVar[tuple[str, ...]] = ("entropy_change", "change")
    levels: ClassVar[Mapping[str, str]] = {"entropy": "entropy_change", "choices": ""}

    def summary(self) -> str:
        """The change with its interval, and what it is in choices."""
        verb = "rose" if self.entropy_change.value >= 0 else "fell"
        return (
            f"After the same text, entropy {verb} by {_size(self.entropy_change)} nats a token, "
            f"from {self.base_entropy.value:.3f} to {self.aligned_entropy.value:.3f}: "
            f"{self.aligned_choices.value:.1f} effective choices where base has "
            f"{self.base_choices.value:.1f}; it is lower at {self.fallen_share.value:.0%} of "
            f"{self.scored} tokens."
        )

    def headline(self) -> str:
        """How far entropy fell or rose, if it can be told from noise."""
        change = self.entropy_change
        if not self.above_floor("entropy_change") or not change.low * change.high > 0:
            return ""
        verb = "leaves more open" if change.value > 0 else "leaves less open"
        return f"{verb} by {_size(change)} nats of entropy a token"

    def figure(self) -> "figures.Figure | None":
        """The change by place and by kind of token."""
        if not len(self.part):
            return None
        # Names of kinds need the whole width.
        figure, panels = figures.panels(2, columns=1)
        labels = {POSITION: "scored token of the document", KIND: "kind of token"}
        for panel, (division, label) in zip(panels, labels.items(), strict=True):
            mine = self.division == division
            figures.bars(
                self.part[mine],
                self.change[mine],
                self.low[mine],
                self.high[mine],
                xlabel=label,
                ylabel="change in entropy [nats/token]",
                floor=self.floor.get("change"),
                on=panel,
            )
        return figure


class Entropy(Metric[EntropyResult]):
    """Change in the entropy of the next token on held-out text.

    Args:
        seed: Of the bootstrap.
    """

    wants = Wants(same_tokens=True)

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.sums = PerDocument(len(PARTS) * len(SUMS))

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        c = frame.comparison
        base, aligned = (z.double().numpy() for z in (c.base_entropy, c.aligned_entropy))
        values = np.stack([np.ones_like(base), base, aligned, aligned < base])
        documents, row = np.unique(frame.scored.document, return_inverse=True)
        place = np.searchsorted(STARTS, frame.order_of_scored, side="right") - 1
        # Each token stands in one part of either division.
        parts = [place, len(PLACES) + frame.kind_of_scored]
        cells = [
            np.bincount(row * len(PARTS) + part, z, len(documents) * len(PARTS))
            for z in values
            for part in parts
        ]
        found = np.stack([a + b for a, b in zip(cells[::2], cells[1::2], strict=True)], -1)
        self.sums.update(documents, found.reshape(len(documents), -1))

    def compute(self) -> EntropyResult:
        """The result of all that was seen so far."""
        documents = self.sums.documents
        sums = self.sums.sums.reshape(-1, len(PARTS), len(SUMS))
        # All positions are all tokens.
        whole = sums[:, : len(PLACES)].sum(1)
        means = np.column_stack([whole[:, 2] - whole[:, 1], whole[:, 1:]])
        found = self.intervals(means, whole[:, 0], documents)
        change, base, aligned, fallen = (Estimate(*map(float, z)) for z in zip(*found, strict=True))
        return EntropyResult.of(
            entropy_change=change,
            base_entropy=base,
            aligned_entropy=aligned,
            fallen_share=fallen,
            base_choices=Estimate(*np.exp(base)),
            aligned_choices=Estimate(*np.exp(aligned)),
            choices_ratio=Estimate(*np.exp(change)),
            scored=int(whole[:, 0].sum()),
            notes=tuple(_notes(whole)),
            **self._table(documents, sums),
        )

    def _table(self, documents: np.ndarray, sums: np.ndarray) -> dict[str, Any]:
        here = np.flatnonzero(sums[..., 0].sum(0))
        sums = sums[:, here]
        found = self.intervals(sums[..., 2] - sums[..., 1], sums[..., 0], documents)
        tokens, base, _, fallen = sums.sum(0).T
        return {
            "division": [PARTS[n][0] for n in here],
            "part": [PARTS[n][1] for n in here],
            "tokens": tokens.astype(np.int64),
            "change": found.estimate,
            "low": found.low,
            "high": found.high,
            "before": base / tokens,
            "fallen": fallen / tokens,
        }


def _notes(whole: np.ndarray) -> Iterator[str]:
    if np.isnan(whole).any():
        yield "A model rules some token out altogether (a logit of −∞): entropy is undefined."


def _size(change: Estimate) -> Estimate:
    """The size of a change whose direction is told in words."""
    value, low, high = change
    return change if value >= 0 else Estimate(-value, -high, -low)
