"""Which layer the loss comes from: base below, aligned above, at every boundary."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from driftlens.formulas.streams import PerDocument, Rows
from driftlens.metric import Metric
from driftlens.models import Frame, ModelPair, Wants
from driftlens.models.tokens import Encoder
from driftlens.results import Estimate, Result, column, figures, shown, value

WANTS = Wants(frozenset({"out"}), None, causal=True, same_tokens=True, together=True)

MOSTLY = 0.6
"""The share of the loss that stages must carry together to be named as its place."""


@dataclass(frozen=True)
class LayerForgettingResult(Result):
    """The rise in loss, divided among embedding, blocks and head."""

    kind = "layer_forgetting"
    title = "Forgetting by layer"
    how = """
The residual stream of the base model, at all positions, is put into the aligned model above the \
embedding, above each block in turn, and the aligned model runs on from there. Because the stream \
is all that one block hands to the next, this equals giving it the base's weights below. \
A stage's share is how much the loss falls when the base's part grows by that stage:

    share(stage) = loss(base below the stage) − loss(base up to and with it),

in nats a token. The shares telescope: embedding + blocks + head = the whole rise, exactly; the \
residual printed is what rounding leaves. share_backward restores from the top instead (aligned \
below, base above). Where the two orders differ, a stage's part depends on what stands below it: \
no single order is the truth, and their mean is the Shapley value over these two orders. \
Intervals: 95 % bootstrap over documents.

Source: activation patching across models (Prakash et al. 2024), taken at all positions, as a \
telescoping sum.
""".strip()

    total: Estimate = value("nats/token")
    """The rise in loss."""
    residual: Estimate = value("nats/token")
    """Total minus the sum of the shares."""
    residual_backward: Estimate = value("nats/token")
    """Total minus the sum of the backward shares."""

    stage: np.ndarray = column()
    """[row] `embed`, number of the block, or `head`."""
    share: np.ndarray = column("nats/token")
    """[row] part of the rise, restoring from the bottom."""
    low: np.ndarray = column("nats/token")
    """[row] lower end of its 95 % interval."""
    high: np.ndarray = column("nats/token")
    """[row] upper end of it."""
    share_backward: np.ndarray = column("nats/token")
    """[row] part of the rise, restoring from the top."""
    low_backward: np.ndarray = column("nats/token")
    """[row] lower end of its interval."""
    high_backward: np.ndarray = column("nats/token")
    """[row] upper end of it."""
    mean_share: np.ndarray = column("nats/token")
    """[row] mean of both orders."""
    of_total: np.ndarray = column("of the rise")
    """[row] `mean_share` over the total; NaN where nothing was lost."""

    near_zero: ClassVar[tuple[str, ...]] = ("total", "share", "share_backward", "mean_share")
    adds: ClassVar[tuple[str, ...]] = ("total",)
    layered: ClassVar[str] = "mean_share"
    divides: ClassVar[bool] = True

    def of_layers(self) -> dict[str, Estimate]:
        """The mean of both orders, by stage of the net."""
        return dict(zip(self.stage, map(Estimate, self.mean_share.tolist()), strict=True))

    def summary(self) -> str:
        """The place of most of the rise, and what the sum leaves."""
        found = self.headline() or "no few stages carry most"
        return (
            f"Of a rise of {self.total} nats a token, {found.replace(' of it', '')}"
            f"{' (mean of both orders)' if self.headline() else ''}; the shares add up to it "
            f"with a residual of {shown(self.residual.value, 2)}."
        )

    def headline(self) -> str:
        """The fewest stages that together carry most of the rise."""
        # What may be no loss at all, or is a gain, has no place.
        if not self.above_floor("total") or self.total.value <= 0 or self.total.low <= 0:
            return ""
        order = np.argsort(-self.of_total, kind="stable")
        enough = int(np.searchsorted(np.cumsum(self.of_total[order]), MOSTLY)) + 1
        if enough > len(order) / 2:
            return ""
        mine = np.sort(order[:enough])
        return f"{self.of_total[mine].sum():.0%} of it in {_named(self.stage, mine)}"

    def figure(self) -> "figures.Figure":
        """Shares by stage, with the other order beside them."""
        return figures.bars(
            self.stage,
            self.share,
            self.low,
            self.high,
            second={"restored from the top": self.share_backward},
            label="restored from the bottom",
            xlabel="stage",
            ylabel="share of the rise [nats/token]",
            floor=self.floor.get("share"),
        )


class LayerForgetting(Metric[LayerForgettingResult]):
    """How the rise in loss divides among embedding, blocks and head.

    Args:
        seed: Of the bootstrap.
        level: Share of bootstrap draws that an interval holds.
    """

    wants = WANTS

    def __init__(self, seed: int = 0, level: float = 0.95) -> None:
        self.seed = seed
        self.level = level
        self.sums = PerDocument(0)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make room for the stages."""
        super().begin(pair, encoder)
        self.sums = PerDocument(2 + 2 * (pair.depth + 2))

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        base, aligned = frame.likelihoods
        columns = [
            torch.ones_like(base)[None],
            (base - aligned)[None],
            frame.restored.diff(dim=0),
            -frame.corrupted.diff(dim=0),
        ]
        self.sums.update(frame.scored.document, torch.cat(columns).T)

    def compute(self) -> LayerForgettingResult:
        """The result of all that was seen so far."""
        sums = self.sums.sums
        found = self.intervals(sums[:, 1:], sums[:, 0], self.sums.documents)
        total, *shares = zip(*found, strict=True)
        stages = self.pair.depth + 2
        forward, backward = (np.array(s).T for s in (shares[:stages], shares[stages:]))
        mean = (forward[0] + backward[0]) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            of_total = mean / total[0] if total[0] else np.full(stages, np.nan)
        return LayerForgettingResult.of(
            total=Estimate(*map(float, total)),
            residual=float(total[0] - forward[0].sum()),
            residual_backward=float(total[0] - backward[0].sum()),
            stage=["embed", *map(str, range(self.pair.depth)), "head"],
            share=forward[0],
            low=forward[1],
            high=forward[2],
            share_backward=backward[0],
            low_backward=backward[1],
            high_backward=backward[2],
            mean_share=mean,
            of_total=of_total,
        )


@dataclass(frozen=True)
class TokenLayersResult(Result):
    """For the worst stretches of text, which layer made which token worse."""

    kind = "token_layers"
    title = "Forgetting by layer and token"
    how = """
The shares of *Forgetting by layer* (mean of both orders), token by token, for the stretches of \
text whose loss rose most. Each column of the picture adds up to that token's rise in loss.

    rise(token) = Σ over stages of ½ (share + share_backward)

Source: that of *Forgetting by layer*.
""".strip()

    document: np.ndarray = column()
    """[row] number of the document in its pack."""
    position: np.ndarray = column()
    """[row] place of the token in it."""
    token: np.ndarray = column()
    """[row] the token's text."""
    stage: np.ndarray = column()
    """[row] `embed`, number of the block, or `head`."""
    share: np.ndarray = column("nats")
    """[row] part of the token's rise."""

    def summary(self) -> str:
        """What is shown."""
        count = len(set(self.document.tolist()))
        return f"The {count} stretches of text that lost most, layer by layer and token by token."

    def figure(self) -> "figures.Figure | None":
        """A map of stages by tokens for the worst stretch."""
        if not len(self.document):
            return None
        mine = np.flatnonzero(self.document == self.document[0])
        places = list(dict.fromkeys(self.position[mine].tolist()))[:WIDEST]
        stages = list(dict.fromkeys(self.stage[mine].tolist()))
        mine = mine[np.isin(self.position[mine], places)]
        matrix = self.share[mine].reshape(len(places), len(stages)).T
        texts = self.token[mine].reshape(len(places), len(stages))[:, 0]
        return figures.heatmap(
            matrix[::-1],
            rows=stages[::-1],
            columns=texts.tolist(),
            xlabel=f"tokens of document {self.document[0]}",
            ylabel="stage",
            label="share of the rise [nats]",
        )


WIDEST = 32
"""Tokens that fit into one picture."""


class TokenLayers(Metric[TokenLayersResult]):
    """Which layer made which token worse, for the worst stretches of text.

    Args:
        tokens: How many tokens to keep.
    """

    wants = WANTS

    def __init__(self, tokens: int = 256) -> None:
        self.tokens = tokens
        self.worst = Rows(1, ("position",), {"position": int})

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make room for the stages."""
        super().begin(pair, encoder)
        names = dict.fromkeys(("document", "position"), np.int64)
        shares = {f"share_{stage}": np.float64 for stage in range(pair.depth + 2)}
        order = ("-mean_rise", "document", "position")
        self.worst = Rows(self.tokens, order, {"mean_rise": np.float64, **names, **shares})

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        scored, windows = frame.scored, frame.row_of_scored
        shares = (frame.restored.diff(dim=0) - frame.corrupted.diff(dim=0)) / 2
        rise = (frame.likelihoods[0] - frame.likelihoods[1]).numpy()
        # By window, which no batch divides, and not by document, which one may.
        sums, counts = (np.bincount(windows, z, len(frame.windows)) for z in (rise, None))
        self.worst.update(
            mean_rise=sums[windows] / counts[windows],
            document=scored.document,
            position=scored.position,
            **{f"share_{stage}": row.numpy() for stage, row in enumerate(shares)},
        )

    def compute(self) -> TokenLayersResult:
        """The result of all that was seen so far."""
        table = self.worst.table()
        document, position = table["document"], table["position"]
        stages = self.pair.depth + 2
        shares = np.stack([table[f"share_{stage}"] for stage in range(stages)], 1)
        names = ["embed", *map(str, range(self.pair.depth)), "head"]
        return TokenLayersResult.of(
            document=np.repeat(document, stages),
            position=np.repeat(position, stages),
            token=np.repeat(self.encoder.texts(document, position), stages),
            stage=np.array(names * len(document) or [""], object)[: len(document) * stages],
            share=shares.ravel(),
        )


def _named(stages: np.ndarray, places: np.ndarray) -> str:
    """How some stages are called, blocks that stand together in one."""
    blocks = [int(stages[place]) for place in places if stages[place] not in ("embed", "head")]
    runs: list[list[int]] = []
    for block in blocks:
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    spans = [f"{run[0]}–{run[-1]}" if run[1:] else f"{run[0]}" for run in runs]
    found = ["the embedding"] if "embed" in stages[places] else []
    if spans:
        found.append(f"block{'s' if blocks[1:] else ''} {_listed(spans)}")
    if "head" in stages[places]:
        found.append("the head")
    return _listed(found)


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
