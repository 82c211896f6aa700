"""Whether two roles of texts lie further apart in aligned than in base."""

from collections.abc import Collection
from dataclasses import dataclass
from math import nan
from typing import ClassVar

import numpy as np

from driftlens.formulas.contrastive import cosines, margin
from driftlens.formulas.intervals import resampled
from driftlens.formulas.streams import Latest
from driftlens.metric import Metric
from driftlens.models import Frame, ModelPair, Site, Wants
from driftlens.models.tokens import Encoder
from driftlens.packs import TWINS
from driftlens.results import Estimate, Result, column, fact, figures, shown, value

ROUNDS = 1000
"""Draws of the bootstrap."""


@dataclass(frozen=True)
class ContrastiveMarginResult(Result):
    """Similarity of texts of one role less that of texts of different roles, layer by layer."""

    kind = "contrastive_margin"
    title = "Contrastive margin"
    over = "How far apart two roles lie"
    how = """
Texts of two roles are shown to both models, and the state at the end of each is taken after \
every block (at the last token; of masked models at the first one). within: mean cosine of two \
texts of one role; between: of two texts of different roles; the two texts of a pair, and those \
of a family, are not held against each other, for they share their wording. margin = within − \
between, 0 where the roles mean nothing to the model, at most 2. loss = −mean log s over pairs of \
one role, with s = (1 + cosine) / 2 so that the logarithm is defined, which is the contrastive \
term that "Paying Alignment Tax with Contrastive Learning" (arXiv 2505.19327) trains with. change \
= aligned − base. Cosines of raw states are high everywhere, for states share a large mean; \
margins are small for it, and compare between models at one layer, hardly between layers.

Intervals are 95 % of a bootstrap over families of texts (1 000 rounds), both models drawn \
together.
""".strip()

    margin_change: Estimate = value("cosine")
    """aligned − base at the block where base's margin is largest."""
    loss_change: Estimate = value("nats/pair")
    """The same of the contrastive loss."""

    layer: np.ndarray = column()
    """[row] number of the block."""
    base_margin: np.ndarray = column("cosine")
    """[row] within − between in base."""
    aligned_margin: np.ndarray = column("cosine")
    """[row] the same in aligned."""
    change: np.ndarray = column("cosine")
    """[row] aligned − base."""
    low: np.ndarray = column("cosine")
    """[row] lower end of its interval."""
    high: np.ndarray = column("cosine")
    """[row] upper end of it."""
    base_within: np.ndarray = column("cosine")
    """[row] of two texts of one role, in base."""
    aligned_within: np.ndarray = column("cosine")
    """[row] the same in aligned."""
    base_between: np.ndarray = column("cosine")
    """[row] of two texts of different roles, in base."""
    aligned_between: np.ndarray = column("cosine")
    """[row] the same in aligned."""
    base_loss: np.ndarray = column("nats/pair")
    """[row] contrastive loss of base."""
    aligned_loss: np.ndarray = column("nats/pair")
    """[row] contrastive loss of aligned."""

    peak: int = fact()
    """The block where base's margin is largest; −1 if there is none."""
    positive: int = fact("texts")
    """Texts of the positive role."""
    negative: int = fact("texts")
    """Texts of the negative role."""

    near_zero: ClassVar[tuple[str, ...]] = ("margin_change", "loss_change", "change")

    def summary(self) -> str:
        """The margin of either model where base's is largest."""
        if self.peak < 0:
            return "Too few texts were read to hold any against each other."
        (row,) = np.flatnonzero(self.layer == self.peak)
        return (
            f"After block {self.peak}, where base's roles lie furthest apart of "
            f"{len(self.layer)} blocks, texts of one role are nearer to each other than to the "
            f"other role by a cosine of {shown(float(self.base_margin[row]), 3)} in base and "
            f"{shown(float(self.aligned_margin[row]), 3)} in aligned, a change of "
            f"{self.margin_change}."
        )

    def figure(self) -> "figures.Figure | None":
        """The margin by layer, and its change."""
        if self.peak < 0:
            return None
        figure, panels = figures.panels(2)
        figures.curves(
            self.layer,
            {"base": self.base_margin, "aligned": self.aligned_margin},
            xlabel="block",
            ylabel="within − between roles [cosine]",
            on=panels[0],
        )
        figures.curves(
            self.layer,
            {"change": self.change},
            bands={"change": (self.low, self.high)},
            xlabel="block",
            ylabel="aligned − base [cosine]",
            floor=self.floor.get("change"),
            on=panels[1],
        )
        return figure


class ContrastiveMargin(Metric[ContrastiveMarginResult]):
    """Tells how much nearer texts of one role lie to each other, in both models.

    Args:
        layers: Blocks to look at; None is all.
        seed: Of the bootstrap.
        level: Share of bootstrap draws that an interval holds.
    """

    kinds = ("roles",)

    def __init__(
        self, layers: Collection[int] | None = None, seed: int = 0, level: float = 0.95
    ) -> None:
        self.asked, self.seed, self.level = layers, seed, level
        self.wants = Wants(frozenset({"out"}), None if layers is None else frozenset(layers))
        self.states = Latest(0)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make room for the state of each text."""
        super().begin(pair, encoder)
        self.layers = tuple(range(pair.depth) if self.asked is None else sorted(self.asked))
        self.states = Latest(2 * len(self.layers) * pair.width)

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        documents, base, aligned = frame.closing([Site(layer) for layer in self.layers])
        rows = np.stack([base.numpy(), aligned.numpy()], 1)
        self.states.update(documents, rows.reshape(len(documents), self.states.columns))

    def compute(self) -> ContrastiveMarginResult:
        """The result of all that was seen so far."""
        documents = self.states.documents
        examples = self.encoder.pack.examples
        roles = np.array([examples[number].role for number in documents], dtype=object)
        counts = [int((roles == role).sum()) for role in TWINS]
        clusters = np.asarray(self.encoder.pack.clusters)[documents]
        shape = (len(documents), 2, len(self.layers), -1)
        found = {}
        if min(counts) and len(set(clusters.tolist())) > 1:
            found = self._rows(self.states.rows.reshape(shape), roles, clusters)
        margins = np.array(found.get("base_margin", []))
        few = not np.isfinite(margins).any()
        peak = -1 if few else int(np.nanargmax(margins))
        estimates = found.pop("estimates", [])
        nothing = Estimate(nan), Estimate(nan)
        changes = nothing if few else estimates[peak]
        table = {name: found.get(name, np.full(len(self.layers), nan)) for name in _COLUMNS}
        return ContrastiveMarginResult.of(
            margin_change=changes[0],
            loss_change=changes[1],
            layer=np.array(self.layers),
            **table,
            peak=-1 if few else self.layers[peak],
            positive=counts[0],
            negative=counts[1],
        )

    def _rows(self, states: np.ndarray, roles: np.ndarray, clusters: np.ndarray) -> dict:
        """The columns, and by layer the changes of margin and loss."""
        ids, places = np.unique(clusters, return_inverse=True)
        draws = np.concatenate([*resampled(len(ids), ROUNDS, self.seed)])[:, places]
        weights = np.concatenate([np.ones((1, len(places))), draws])
        rows: dict[str, list] = {name: [] for name in (*_COLUMNS, "estimates")}
        for layer in range(len(self.layers)):
            base, aligned = (
                margin(cosines(states[:, side, layer]), roles, clusters, weights) for side in (0, 1)
            )
            moved, lost = (
                self._estimate(theirs - ours)
                for ours, theirs in ((base.margin, aligned.margin), (base.loss, aligned.loss))
            )
            rows["estimates"].append((moved, lost))
            for name, number in zip(("change", "low", "high"), moved, strict=True):
                rows[name].append(number)
            for side, one in (("base", base), ("aligned", aligned)):
                for name in ("margin", "within", "between", "loss"):
                    rows[f"{side}_{name}"].append(getattr(one, name)[0])
        return rows

    def _estimate(self, drawn: np.ndarray) -> Estimate:
        """What was found, and the bounds of its draws; of draws without a pair none."""
        tail = (1 - self.level) / 2
        known = drawn[1:][np.isfinite(drawn[1:])]
        low, high = np.quantile(known, [tail, 1 - tail]) if len(known) else (nan, nan)
        return Estimate(float(drawn[0]), float(low), float(high))


_COLUMNS = (
    *("base_margin", "aligned_margin", "change", "low", "high", "base_within"),
    *("aligned_within", "base_between", "aligned_between", "base_loss", "aligned_loss"),
)
