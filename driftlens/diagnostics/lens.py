"""What each layer would already say, if its stream were read out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from driftlens.formulas.divergence import gap, lens
from driftlens.formulas.each import Each
from driftlens.formulas.sampling import chosen
from driftlens.formulas.streams import Moments
from driftlens.metric import Metric
from driftlens.models import EMBED, Frame, ModelPair, Site, Wants
from driftlens.models.tokens import Encoder
from driftlens.results import Result, column, fact, figures

SHARE = 0.2
"""What the readouts may cost, as a share of the two models' own run."""

FREE = 3e11
"""Multiplications for readouts that any run can afford, however short it is."""

ENOUGH = 300
"""Positions that are read out if there are as many."""

EXPONENTIAL = 500
"""What one entry of a divergence costs, in multiplications."""

ENTRIES = 2**23
"""Logits of one kind in hand at once."""


@dataclass(frozen=True)
class LensResult(Result):
    """Divergence between what base and aligned would say at each layer."""

    kind = "lens"
    title = "Logit lens"
    how = """
The residual stream at each layer is read out through a final norm and an unembedding, and the two \
next-token distributions are compared over the whole vocabulary: p = softmax(U · norm(h)) \
(nostalgebraist 2020). *Own*: each model's stream by its own readout; *common*: both streams by \
the base's, which leaves out what only the readout changed. KL is KL(base ‖ aligned), in nats; \
Jensen–Shannon lies between 0 and ln 2. *gap* is the KL between what a layer says and what the \
same model says in the end. Means over an even sample of positions; ± is the standard error over \
them.
""".strip()

    site: np.ndarray = column()
    """[row] name of the site."""
    layer: np.ndarray = column()
    """[row] number of the block; −1 is the embedding."""
    kl_own: np.ndarray = column("nats")
    """[row] KL(base ‖ aligned), each by its own readout."""
    kl_own_error: np.ndarray = column("nats")
    """[row] its standard error."""
    js_own: np.ndarray = column("nats")
    """[row] Jensen-Shannon divergence, each by its own readout."""
    kl_common: np.ndarray = column("nats")
    """[row] KL(base ‖ aligned), both by the base's readout."""
    js_common: np.ndarray = column("nats")
    """[row] Jensen-Shannon divergence, both by the base's readout."""
    base_gap: np.ndarray = column("nats")
    """[row] KL between base's readout here and at its end."""
    aligned_gap: np.ndarray = column("nats")
    """[row] the same of aligned."""
    positions: int = fact("positions")
    """Positions that were read out."""

    near_zero: ClassVar[tuple[str, ...]] = ("kl_own", "js_own", "kl_common", "js_common")

    def summary(self) -> str:
        """Where the two models' readouts part."""
        worst = int(np.nanargmax(self.js_own))
        return (
            f"Read out layer by layer, the models differ most at {self.site[worst]}: "
            f"Jensen–Shannon {self.js_own[worst]:.4f} nats (at most 0.693), over "
            f"{self.positions} positions."
        )

    def figure(self) -> "figures.Figure":
        """Divergence by layer, and each model's distance from what it ends up saying."""
        figure, panels = figures.panels(2)
        lines = {"own readout": self.js_own, "base's readout": self.js_common}
        figures.curves(
            [name.removesuffix(".out") for name in self.site],
            lines,
            xlabel="after block",
            ylabel="Jensen–Shannon [nats]",
            floor=self.floor.get("js_own"),
            on=panels[0],
        )
        figures.curves(
            [name.removesuffix(".out") for name in self.site],
            {"base": self.base_gap, "aligned": self.aligned_gap},
            xlabel="after block",
            ylabel="KL to own final [nats]",
            on=panels[1],
        )
        return figure


class Lens(Metric[LensResult]):
    """What each layer would already say.

    Args:
        layers: Blocks to read out; None is all.
        share: How many of the positions to read out; None is what costs a fifth of the run.
        seed: Of the sample.
    """

    def __init__(
        self,
        layers: frozenset[int] | None = None,
        share: float | None = None,
        seed: int = 0,
    ) -> None:
        self.wants = Wants(frozenset({"out"}), layers, same_tokens=True)
        self.asked, self.seed = share, seed
        self.share = 1.0
        self.moments = Each(Moments)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Choose how large a sample can be afforded."""
        super().begin(pair, encoder)
        self.share = self.asked or _affordable(pair, len(self._layers) + 1, encoder.tokens)

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        units = frame.units
        rows = torch.from_numpy(
            chosen(units.document, units.position, self.share, self.seed)
        ).nonzero()[:, 0]
        here = frame.base.last.device
        ends = [trace.last[trace.batch.closing].to(here) for trace in (frame.base, frame.aligned)]
        base, aligned = self.pair.readouts
        if self.pair.shared is not None:
            ours, theirs = (ids.to(here) for ids in self.pair.shared)
            base, aligned = _only(base, ours), _only(aligned, theirs)
        sites = [EMBED, *map(Site, self._layers)]
        # The head's weights are read from memory once a call, so a call reads out many layers.
        room = max(1, ENTRIES // self.pair.base.vocabulary)
        for some in rows.to(here).split(max(1, room // len(sites))):
            final = [read(end[some]) for read, end in zip((base, aligned), ends, strict=True)]
            at_once = max(1, room // len(some))
            for group in (sites[i : i + at_once] for i in range(0, len(sites), at_once)):
                pairs = [[stream[some] for stream in frame.both(site)] for site in group]
                x, y = (torch.cat(side) for side in zip(*pairs, strict=True))
                ours, theirs, common = base(x), aligned(y), base(y)
                gaps = [
                    torch.cat([gap(layer, end) for layer in logits.split(len(some))])
                    for logits, end in zip((ours, theirs), final, strict=True)
                ]
                table = torch.stack([*lens(ours, theirs), *lens(ours, common), *gaps], 1).cpu()
                for site, numbers in zip(group, table.split(len(some)), strict=True):
                    self.moments[str(site)].update(numbers)

    def compute(self) -> LensResult:
        """The result of all that was seen so far."""
        sites = [EMBED, *map(Site, self._layers)]
        moments = [self.moments[str(site)] for site in sites]
        means = np.stack([np.broadcast_to(np.asarray(m.mean), 6) for m in moments], 1)
        errors = [np.broadcast_to(np.asarray(m.standard_error), 6)[0] for m in moments]
        note = f"Read out at {self.share:.1%} of the positions." if self.share < 1 else ""
        return LensResult.of(
            site=[str(site) for site in sites],
            layer=np.array([-1 if site == EMBED else site.layer for site in sites]),
            kl_own=means[0],
            kl_own_error=np.array(errors),
            js_own=means[1],
            kl_common=means[2],
            js_common=means[3],
            base_gap=means[4],
            aligned_gap=means[5],
            positions=moments[0].count,
            notes=(note,) if note else (),
        )

    @property
    def _layers(self) -> list[int]:
        return sorted(range(self.pair.depth) if self.wants.layers is None else self.wants.layers)


def _only(read: Callable[[Tensor], Tensor], ids: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda stream: read(stream)[:, ids]


def _affordable(pair: ModelPair, sites: int, tokens: int) -> float:
    """The share of positions at which all readouts cost `SHARE` of the run."""
    d, vocabulary = pair.width, pair.base.vocabulary
    run = 2 * 2 * (12 * d * d * pair.depth + d * vocabulary)
    readouts = sites * vocabulary * (3 * 2 * d + 4 * EXPONENTIAL)
    return min(1.0, max(SHARE * run / readouts, FREE / readouts / tokens, ENOUGH / tokens))
