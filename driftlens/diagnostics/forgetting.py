"""What the aligned model has lost on texts that the base model could predict."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from driftlens.formulas.streams import PerDocument
from driftlens.metric import Metric
from driftlens.models import Frame
from driftlens.results import Estimate, Result, column, fact, figures, value

SUMS = (
    "units",
    "base_loss",
    "aligned_loss",
    "rise",
    "worse",
    "kl_base_aligned",
    "kl_aligned_base",
    "base_entropy",
    "aligned_entropy",
    "base_outside",
    "aligned_outside",
    "bytes",
    "characters",
)


@dataclass(frozen=True)
class ForgettingResult(Result):
    """Rise in loss from base to aligned on the scored tokens."""

    kind = "forgetting"
    title = "Forgetting"
    how = """
Every token that something precedes is scored (an added beginning-of-text token is context, and \
is not scored itself): rise = log p_base − log p_aligned of the same token after the same text, \
in nats; above 0 the aligned model is worse. Averages are ratios of sums over all scored tokens. \
Bits per byte and nats per character divide the same sum by the length of the text, so that \
models with different tokenizers compare. perplexity ratio = exp(rise). KL is exact, over the \
whole vocabulary: KL(base ‖ aligned) = Σ p_b log(p_b / p_a), and the other way round. Where the \
vocabularies differ it is taken over the shared tokens, renormalised, and the probability \
outside them is reported. Masked models are scored by pseudo-log-likelihood: each token masked \
in its turn (Salazar et al. 2020, eq. 1).

Intervals are 95 % percentile intervals of a paired bootstrap over documents (2 000 rounds); \
documents of one group are drawn together.
""".strip()

    loss_rise: Estimate = value("nats/token")
    """Mean over all scored tokens of log p_base − log p_aligned."""
    perplexity_ratio: Estimate = value("×")
    """exp(loss rise): perplexity of aligned over that of base."""
    worse_share: Estimate = value("of tokens")
    """Share of scored tokens to which the aligned model gives less probability."""
    kl_base_aligned: Estimate = value("nats/token")
    """Mean KL(base ‖ aligned), at least 0."""
    kl_aligned_base: Estimate = value("nats/token")
    """Mean KL(aligned ‖ base), at least 0."""
    bits_per_byte_rise: Estimate = value("bits/byte")
    """The same sum in bits over the bytes of the scored text."""
    characters_rise: Estimate = value("nats/character")
    """The same sum over the characters of the scored text."""
    base_loss: Estimate = value("nats/token")
    """Mean loss of base."""
    aligned_loss: Estimate = value("nats/token")
    """Mean loss of aligned."""
    base_entropy: Estimate = value("nats/token")
    """Mean entropy of base's predictions."""
    aligned_entropy: Estimate = value("nats/token")
    """Mean entropy of aligned's predictions."""
    base_outside: Estimate = value("probability")
    """Mean probability that base gives to tokens that aligned does not have."""
    aligned_outside: Estimate = value("probability")
    """Mean probability that aligned gives to tokens that base does not have."""

    group: np.ndarray = column()
    """[row] group of the pack: its topic, or its role where it has no topic."""
    documents: np.ndarray = column("documents")
    """[row] how many documents it has."""
    tokens: np.ndarray = column("tokens")
    """[row] how many scored tokens."""
    rise: np.ndarray = column("nats/token")
    """[row] mean rise in loss."""
    low: np.ndarray = column("nats/token")
    """[row] lower end of its 95 % interval."""
    high: np.ndarray = column("nats/token")
    """[row] upper end of it."""
    group_base_loss: np.ndarray = column("nats/token")
    """[row] mean loss of base."""
    group_worse_share: np.ndarray = column("of tokens")
    """[row] share of tokens that got worse."""

    scored: int = fact("tokens")
    """Scored tokens (units, where the tokenizers differ)."""
    of_documents: int = fact("documents")
    """Documents they stand in."""

    near_zero: ClassVar[tuple[str, ...]] = (
        "loss_rise",
        "characters_rise",
        "bits_per_byte_rise",
        "kl_base_aligned",
        "kl_aligned_base",
        "rise",
    )

    adds: ClassVar[tuple[str, ...]] = ("loss_rise", "bits_per_byte_rise", "characters_rise")
    levels: ClassVar[Mapping[str, str]] = {"loss": "loss_rise", "entropy": ""}

    def summary(self) -> str:
        """The rise with its interval, and the share of tokens that got worse."""
        verb = "rose" if self.loss_rise.value >= 0 else "fell"
        return (
            f"Loss {verb} by {Estimate(*_absolute(self.loss_rise))} nats a token "
            f"(from {self.base_loss.value:.3f} to {self.aligned_loss.value:.3f}), perplexity "
            f"{self.perplexity_ratio.value:.2f} times the base's; "
            f"{self.worse_share.value:.0%} of {self.scored} tokens got worse."
        )

    def headline(self) -> str:
        """How much was lost, and how far that is above noise."""
        if not self.above_floor("loss_rise"):
            return "nothing was lost that can be told from noise"
        verb = "lost" if self.loss_rise.value > 0 else "gained"
        said = f"{verb} {Estimate(*_absolute(self.loss_rise))} nats a token"
        straddles = self.loss_rise.low <= 0 <= self.loss_rise.high
        return said + (", an interval that includes none" if straddles else "")

    def figure(self) -> "figures.Figure | None":
        """The rise by group of the pack."""
        if not len(self.group):
            return None
        return figures.bars(
            self.group,
            self.rise,
            self.low,
            self.high,
            xlabel="group of the pack",
            ylabel="rise in loss [nats/token]",
            floor=self.floor.get("rise"),
        )


class Forgetting(Metric[ForgettingResult]):
    """Rise in loss from base to aligned on held-out text.

    Args:
        seed: Of the bootstrap.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.sums = PerDocument(len(SUMS))

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        base, aligned = frame.likelihoods
        scored = frame.scored
        absent = torch.full_like(base, torch.nan)
        c = frame.comparison if frame.encoder.same else None
        columns = {
            "units": torch.ones_like(base),
            "base_loss": -base,
            "aligned_loss": -aligned,
            "rise": base - aligned,
            "worse": (aligned < base).double(),
            "bytes": torch.from_numpy(scored.bytes).double(),
            "characters": torch.from_numpy(scored.characters).double(),
        }
        for name in SUMS:
            if name not in columns:
                columns[name] = absent if c is None else getattr(c, name).double()
        self.sums.update(scored.document, torch.stack([columns[name] for name in SUMS], 1))

    def compute(self) -> ForgettingResult:
        """The result of all that was seen so far."""
        documents, sums = self.sums.documents, dict(zip(SUMS, self.sums.sums.T, strict=True))

        def mean(name: str, over: str = "units", scale: float = 1.0) -> Estimate:
            found = self.intervals(scale * sums[name], sums[over], documents)
            return Estimate(*(float(number) for number in found))

        rise = mean("rise")
        return ForgettingResult.of(
            loss_rise=rise,
            characters_rise=mean("rise", "characters"),
            bits_per_byte_rise=mean("rise", "bytes", 1 / np.log(2)),
            perplexity_ratio=Estimate(*np.exp(rise)),
            worse_share=mean("worse"),
            scored=int(sums["units"].sum()),
            of_documents=len(documents),
            notes=self._notes(len(set(np.asarray(self.encoder.pack.clusters)[documents].tolist()))),
            **{name: mean(name) for name in SUMS if name.endswith(("loss", "entropy", "outside"))},
            **{name: mean(name) for name in SUMS if name.startswith("kl_")},
            **self._groups(documents, sums),
        )

    def _groups(self, documents: np.ndarray, sums: dict) -> dict:
        examples = self.encoder.pack.examples
        labels = np.array([examples[d].topic or examples[d].role or "all" for d in documents])
        rows: dict[str, list] = {name: [] for name in _GROUP_COLUMNS}
        for label in sorted(set(labels)):
            mine = labels == label
            units = sums["units"][mine]
            found = self.intervals(sums["rise"][mine], units, documents[mine])
            row = (
                label,
                int(mine.sum()),
                int(units.sum()),
                *(float(number) for number in found),
                sums["base_loss"][mine].sum() / units.sum(),
                sums["worse"][mine].sum() / units.sum(),
            )
            for name, cell in zip(_GROUP_COLUMNS, row, strict=True):
                rows[name].append(cell)
        return rows

    def _notes(self, clusters: int) -> tuple[str, ...]:
        notes = []
        if clusters < 2:
            notes.append("One document has no interval.")
        if not self.encoder.same:
            notes.append(
                "The tokenizers cut the text differently: losses are summed over the "
                "stretches that both close, called tokens here, and KL is undefined."
            )
        return tuple(notes)


_GROUP_COLUMNS = (
    "group",
    "documents",
    "tokens",
    "rise",
    "low",
    "high",
    "group_base_loss",
    "group_worse_share",
)


def _absolute(estimate: Estimate) -> tuple[float, float, float]:
    """The size of a change whose direction is told in words."""
    value, low, high = estimate
    return (value, low, high) if value >= 0 else (-value, -high, -low)
