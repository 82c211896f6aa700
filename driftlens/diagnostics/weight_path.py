"""Which weights the loss comes from, by the straight path from base's weights to aligned's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, TypeVar

import numpy as np
import torch

from driftlens.formulas.quadrature import gauss
from driftlens.formulas.streams import PerDocument, Rows
from driftlens.metric import Metric
from driftlens.models import Frame, ModelPair, Wants
from driftlens.models.pieces import By, Piece, called
from driftlens.models.tokens import Encoder
from driftlens.results import (
    Divided,
    DocumentView,
    Estimate,
    Result,
    TextView,
    TokenView,
    column,
    fact,
    figures,
    value,
)

R = TypeVar("R", bound=Result)

WANTS = Wants(causal=True, same_tokens=True, graph=True, together=True)

RULES = (2, 4)
"""Nodes of the two rules that are always tried: the second checks the first."""

TOLERANCE = 0.01
"""The completeness residual, as a part of the rise, at which no further node is tried."""

STEADY = 0.1
"""How far shares may move from rule to rule, as a part of all shares together."""

LIMIT = 32
"""The most nodes."""

HUMP = 0.25
"""How far the loss may stand above both ends along the path, as a part of the rise."""

HOW = """
Let θ(α) be the weights on the straight line from base (α = 0) to aligned (α = 1), and L the loss. \
Then the rise in loss is the integral of dL/dα, and dL/dα is a sum over the weights:

    share(weights) = ∫ ⟨∂L/∂θ at θ(α), θ_aligned − θ_base⟩ dα,

in nats a token, above 0 where the change of these weights adds to the loss. The shares of all \
weights add up to the whole rise, whatever their interactions. For a linear map the inner product \
is a sum over positions, Σ gₜᵀ ΔW aₜ: what entered at position t, mapped by the change of the \
weights, times the gradient of the loss by what left at t. So the same backward pass says at \
which token the change acts, which is not where the loss shows.
""".strip()


@dataclass(frozen=True)
class WeightPathResult(Divided):
    """The rise in loss, divided among the weights by integrated gradients along their path."""

    kind = "weight_path"
    title = "Forgetting by weights"
    how = f"""
{HOW}

The integral is taken at Gauss–Legendre nodes: 2 and 4, then twice as many until the shares add \
up to the rise within 1 % (residual = (Σ shares − rise) / rise) and no longer move by more than a \
tenth from rule to rule (moved = Σ |change of a layer's share| / Σ |share|). The path is also \
looked at itself: where the loss along it stands above both ends (hump = how far, over the rise), \
the path crosses a barrier, as it does when neurons are permuted, and shares may blame weights \
whose change does nothing; read grafts and Shapley shares instead. Intervals: 95 % bootstrap over \
documents.

Sources: integrated gradients (Sundararajan, Taly & Yan 2017, eq. 1) along the path of weights; \
Aumann & Shapley (1974) for the division.
"""

    residual: Estimate = value("of the rise")
    """Sum of the shares minus the rise between the path's ends, over that; NaN where it is 0."""
    unexplained: Estimate = value("nats/token")
    """Rise minus the sum of the shares."""
    rounding: Estimate = value("nats/token")
    """The part of it by which the models round otherwise than the path, which runs in float32."""
    moved: Estimate = value("of all shares")
    """How far the shares moved from the last rule but one to the last."""
    hump: Estimate = value("of the rise")
    """How far the loss along the path stands above the higher end; 0 where it never does."""

    share: np.ndarray = column("nats/token")
    """[row] part of the rise."""
    low: np.ndarray = column("nats/token")
    """[row] lower end of its 95 % interval."""
    high: np.ndarray = column("nats/token")
    """[row] upper end of it."""
    of_total: np.ndarray = column("of the rise")
    """[row] `share` over the total; NaN where the total may be nothing."""

    nodes: int = fact("nodes")
    """Nodes of the rule that was kept."""
    barrier: bool = fact()
    """Whether the path is not to be trusted: a hump, or shares that do not settle."""
    alphas: tuple = fact()
    """Places on the path at which the loss was read, both ends among them."""
    losses: tuple = fact("nats/token")
    """The loss there."""

    near_zero: ClassVar[tuple[str, ...]] = ("total", "unexplained", "share")
    layered: ClassVar[str] = "share"
    divides: ClassVar[bool] = True

    def summary(self) -> str:
        """The largest share, and how well the shares add up."""
        if not np.isfinite(self.of_total).any():
            return f"A rise of {self.total} nats a token may be none: there is nothing to divide."
        most = int(np.argmax(self.of_total))
        piece = Piece(self.layer[most], self.component[most]).words
        share = Estimate(self.share[most], self.low[most], self.high[most])
        said = (
            f"Of a rise of {self.total} nats a token, the weights of {piece} carry "
            f"{share} ({self.of_total[most]:.0%}); {self.nodes} nodes leave a residual of "
            f"{_percent(self.residual.value)}."
        )
        return f"{said} The path crosses a barrier: do not trust it." if self.barrier else said

    def figure(self) -> "figures.Figure":
        """Shares by weights, and the loss along the path."""
        figure, (left, right) = figures.panels(2)
        figures.bars(
            called(self.layer, self.component),
            self.share,
            self.low,
            self.high,
            xlabel="weights",
            ylabel="share [nats/token]",
            floor=self.floor.get("share"),
            on=left,
        )
        figures.curves(
            np.array(self.alphas),
            {"loss": np.array(self.losses)},
            xlabel="place on the path (0 is base, 1 is aligned)",
            ylabel="loss [nats/token]",
            on=right,
        )
        return figure


class AlongPath(Metric[R]):
    """What follows the path of weights, with as many nodes as completeness asks for.

    However the weights are divided, whether more nodes are needed is judged by layer, so that
    all that follow one path stop at the same rule.
    """

    wants = WANTS

    pieces: tuple[Piece, ...]
    nodes: int | None
    heads: bool = False
    """Whether attention is divided by head."""

    def follow(self, by: By) -> None:
        """Make room for the pieces, before the first rule."""
        self.pieces = self.pair.hybrid.pieces(by)
        names = [piece.layer for piece in self.pieces]
        self.layers = list(dict.fromkeys(names))
        self.inside = np.array([[name == layer for name in names] for layer in self.layers])
        self.earlier: tuple[Rule, ...] = ()
        self._take(RULES if self.nodes is None else (self.nodes,))

    def _take(self, rules: tuple[int, ...]) -> None:
        self.rules = rules
        # Tokens, the loss of both models and of both ends of the path; by rule the losses at its
        # nodes, and its shares.
        self.sums = PerDocument(5 + sum(rules) + len(rules) * len(self.pieces))

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        base, aligned = frame.likelihoods
        paths = [frame.path(nodes, self.heads) for nodes in self.rules]
        along = [-likelihood for path in paths for likelihood in path.likelihoods]
        ends = [-base, -aligned, *-paths[0].ends]
        units = torch.stack([torch.ones_like(base), *ends, *along], 1)
        rows = torch.stack([path.of(p).sum(1) for path in paths for p in self.pieces], 1)
        documents = [window.example for window in frame.windows]
        self.sums.update(
            np.concatenate([frame.scored.document, documents]), torch.block_diag(units, rows)
        )

    def again(self) -> bool:
        """More nodes, until the shares add up and no longer move."""
        rules = self.found()
        if self.nodes is not None or 2 * rules[-1].nodes > LIMIT or _settled(rules):
            return False
        self.earlier = rules
        self._take((2 * rules[-1].nodes,))
        return True

    def restore(self, state: Mapping[str, np.ndarray]) -> Self:
        """Take up what `state` gave, of the pass that it was taken in."""
        # The number of columns tells the pass: each but the first has one rule, twice as large.
        width = state["sums/sums"].shape[1]
        while self.sums.columns != width and 2 * self.rules[-1] <= LIMIT:
            self._take((2 * self.rules[-1],))
        return super().restore(state)

    def found(self) -> tuple["Rule", ...]:
        """What each rule found, the earlier passes' first."""
        tokens, _, _, base, aligned, *sums = self.sums.sums.sum(0)
        losses, shares = np.split(np.array(sums), [sum(self.rules)])
        mine = zip(
            self.rules,
            np.split(losses, np.cumsum(self.rules)[:-1]),
            shares.reshape(len(self.rules), -1),
            strict=True,
        )
        # Nothing over nothing is NaN, and says so in the result.
        with np.errstate(invalid="ignore"):
            rise = (aligned - base) / tokens
            fresh = [Rule(n, loss / tokens, self.inside @ s / tokens, rise) for n, loss, s in mine]
        return (*self.earlier, *fresh)


class WeightPath(AlongPath[WeightPathResult]):
    """Which weights the loss comes from, by integrated gradients along the path of weights.

    Args:
        by: How finely the weights are divided: `layer`, `component`, `head` or `module`.
        nodes: How many Gauss nodes; None takes as many as completeness asks for, up to 32.
        seed: Of the bootstrap.
        level: Share of bootstrap draws that an interval holds.
    """

    def __init__(
        self, by: By = "component", nodes: int | None = None, seed: int = 0, level: float = 0.95
    ) -> None:
        self.by, self.nodes, self.seed = by, nodes, seed
        self.level, self.heads = level, by == "head"
        self.sums = PerDocument(0)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make room for the pieces."""
        super().begin(pair, encoder)
        self.follow(self.by)

    def compute(self) -> WeightPathResult:
        """The result of all that was seen so far."""
        rules = self.found()
        last = rules[-1]
        sums = self.sums.sums
        rise = (sums[:, 2] - sums[:, 1])[:, None]
        parts = np.concatenate([rise, sums[:, sums.shape[1] - len(self.pieces) :]], 1)
        found = self.intervals(parts, sums[:, 0], self.sums.documents)
        total, *shares = zip(*found, strict=True)
        share, low, high = np.array(shares).reshape(-1, 3).T
        with np.errstate(invalid="ignore"):
            ends = sums.sum(0)[3:5] / sums[:, 0].sum()
        alphas = np.concatenate([[0, 1], *(gauss(rule.nodes)[0] for rule in rules)])
        losses = np.concatenate([ends, *(rule.losses for rule in rules)])
        order = np.argsort(alphas)
        hump = _over(max(0.0, float(losses.max() - ends.max())), abs(last.rise))
        moved = _moved(rules)
        certain = bool(total[1] > 0 or total[2] < 0)
        return WeightPathResult.of(
            total=total,
            residual=last.residual,
            unexplained=float(total[0] - share.sum()),
            rounding=float(total[0] - (ends[1] - ends[0])),
            moved=moved,
            hump=hump,
            layer=[piece.layer for piece in self.pieces],
            component=[piece.component for piece in self.pieces],
            share=share,
            low=low,
            high=high,
            of_total=share / total[0] if certain else np.full(len(share), np.nan),
            nodes=last.nodes,
            barrier=certain and bool(hump > HUMP or not _settled(rules)),
            alphas=tuple(alphas[order].tolist()),
            losses=tuple(losses[order].tolist()),
        )


@dataclass(frozen=True)
class Rule:
    """What a quadrature rule found."""

    nodes: int
    losses: np.ndarray
    """[node] loss, in nats a token."""
    shares: np.ndarray
    """[layer] part of the rise, in nats a token."""
    rise: float
    """Loss of aligned minus loss of base, in nats a token."""

    @property
    def residual(self) -> float:
        """Sum of the shares minus the rise, over the rise."""
        return _over(float(self.shares.sum() - self.rise), self.rise)


def _settled(rules: tuple[Rule, ...]) -> bool:
    """Whether the last rule's shares add up, and moved little from the rule before."""
    last = rules[-1]
    steady = len(rules) < 2 or _moved(rules) <= STEADY or not last.shares.any()
    return (abs(last.residual) <= TOLERANCE and steady) or not last.shares.any()


def _moved(rules: tuple[Rule, ...]) -> float:
    if len(rules) < 2:
        return float("nan")
    one, other = (rule.shares for rule in rules[-2:])
    return _over(float(np.abs(other - one).sum()), float(np.abs(other).sum()))


def _percent(part: float) -> str:
    return f"{part:+.1%}".replace("-", "−")


def _over(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


@dataclass(frozen=True)
class PositionMapResult(Result):
    """At which tokens the changed weights act, by layer."""

    kind = "position_map"
    title = "Where the damage acts"
    how = f"""
{HOW}

This is that map of layers by tokens, for the stretches of text whose loss rose most. Its columns \
are not the tokens whose prediction got worse: they are those at which the changed weights are at \
work, such as a name whose meaning is no longer read out when it is asked for later. The sum over \
all tokens and layers is the rise of the whole text. Positions are those of the weights' use: \
what an attention's query, key and value maps do, they do at the token that they read.

    act(layer, token t) = ∫ Σ over its maps of gₜᵀ ΔW aₜ dα

Sources: those of *Forgetting by weights*.
""".strip()

    total: Estimate = value("nats/token")
    """The rise in loss, for each scored token of all documents."""
    residual: Estimate = value("of the rise")
    """Sum of the map over all documents minus the rise between the path's ends, over that."""
    before_scored: Estimate = value("of all acts")
    """Part of all acts, by size, at tokens whose own likelihood is not scored."""

    document: np.ndarray = column()
    """[row] number of the document in its pack."""
    position: np.ndarray = column()
    """[row] place of the token in it."""
    token: np.ndarray = column()
    """[row] the token's text."""
    layer: np.ndarray = column()
    """[row] `embed`, number of the block, or `head`."""
    acts: np.ndarray = column("nats")
    """[row] what the layer's weights add to the document's loss by their use at this token."""

    nodes: int = fact("nodes")
    """Gauss nodes of the integral."""

    near_zero: ClassVar[tuple[str, ...]] = ("total",)
    adds: ClassVar[tuple[str, ...]] = ("total",)

    def summary(self) -> str:
        """The token at which most of the damage is done, and where."""
        if not self.rows():
            return "No token was read."
        if not self.acts.any():
            return "No weight moved, so that nothing acts at any token."
        worst = int(np.argmax(self.acts))
        return (
            f"The largest single act is at “{self.token[worst].strip()}” (document "
            f"{self.document[worst]}, layer {self.layer[worst]}): {self.acts[worst]:.2f} nats of "
            f"its document's loss; {self.before_scored.value:.0%} of all acts are at tokens that "
            "are only read."
        )

    def figure(self) -> "figures.Figure | None":
        """A map of layers by tokens for the worst stretch."""
        if not self.rows():
            return None
        mine = np.flatnonzero(self.document == self.document[0])
        places = list(dict.fromkeys(self.position[mine].tolist()))[:WIDEST]
        layers = list(dict.fromkeys(self.layer[mine].tolist()))
        mine = mine[np.isin(self.position[mine], places)]
        matrix = self.acts[mine].reshape(len(places), len(layers)).T
        texts = self.token[mine].reshape(len(places), len(layers))[:, 0]
        return figures.heatmap(
            matrix[::-1],
            rows=layers[::-1],
            columns=texts.tolist(),
            xlabel=f"tokens of document {self.document[0]}, where the weights are used",
            ylabel="layer",
            label="acts [nats]",
        )

    def views(self) -> Sequence[TextView]:
        """The worst stretches, each token coloured by what all layers do at it."""
        layers = len(set(self.layer.tolist()))
        if not layers:
            return ()
        acts = self.acts.reshape(-1, layers)
        each = zip(self.document[::layers], self.token[::layers], acts, strict=True)
        stretches: dict[int, list[TokenView]] = {}
        for document, text, mine in each:
            strongest = self.layer[int(np.argmax(np.abs(mine)))]
            title = f"{mine.sum():+.3f} nats, most in {strongest}"
            stretches.setdefault(int(document), []).append(TokenView(text, mine.sum(), title))
        shown = [DocumentView(f"document {n}", t) for n, t in list(stretches.items())[:STRETCHES]]
        return (TextView("Where the damage acts", shown),)


WIDEST = 32
"""Tokens that fit into one picture."""

STRETCHES = 6
"""Documents that are shown token by token."""


class PositionMap(AlongPath[PositionMapResult]):
    """At which tokens the changed weights act, by layer, for the worst stretches of text.

    Args:
        nodes: How many Gauss nodes; None takes as many as `WeightPath` does, and beside it costs
            nothing more.
        tokens: How many tokens to keep.
        seed: Of the bootstrap.
        level: Share of bootstrap draws that an interval holds.
    """

    def __init__(
        self, nodes: int | None = None, tokens: int = 8192, seed: int = 0, level: float = 0.95
    ) -> None:
        self.nodes, self.tokens, self.seed, self.level = nodes, tokens, seed, level
        self.worst = Rows(1, ("position",), {"position": int})
        self.sums, self.sizes = PerDocument(0), PerDocument(2)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make room for the layers."""
        super().begin(pair, encoder)
        self.follow("layer")

    def _take(self, rules: tuple[int, ...]) -> None:
        super()._take(rules)
        names = dict.fromkeys(("document", "position"), np.int64)
        acts = {f"acts_{number}": np.float64 for number in range(len(self.pieces))}
        order = ("-mean_rise", "document", "position")
        self.worst = Rows(self.tokens, order, {"mean_rise": np.float64, **names, **acts})
        self.sizes = PerDocument(2)

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        super().update(frame)
        path = frame.path(self.rules[-1])
        acts = torch.stack([path.of(piece) for piece in self.pieces], -1).numpy()
        rise = (frame.likelihoods[0] - frame.likelihoods[1]).numpy()
        scored = np.zeros(path.shape, dtype=bool)
        scored[tuple(place.cpu().numpy() for place in frame.base.batch.target)] = True
        size = np.abs(acts).sum(2)
        documents = np.array([window.example for window in frame.windows])
        self.sizes.update(documents, np.stack([size.sum(1), (size * ~scored).sum(1)], 1))
        owners, rows = frame.row_of_scored, len(frame.windows)
        row, token = np.nonzero(frame.places >= 0)
        with np.errstate(invalid="ignore"):
            mean = np.bincount(owners, rise, rows) / np.bincount(owners, None, rows)
        self.worst.update(
            mean_rise=mean[row],
            document=documents[row],
            position=frame.places[row, token],
            **{f"acts_{number}": acts[row, token, number] for number in range(acts.shape[2])},
        )

    def compute(self) -> PositionMapResult:
        """The result of all that was seen so far."""
        table = self.worst.table()
        document, position, acts = _by_token(table, len(self.layers))
        sums, sizes = self.sums.sums, self.sizes.sums
        total = self.intervals(sums[:, 2] - sums[:, 1], sums[:, 0], self.sums.documents)
        before = self.intervals(sizes[:, 1], sizes[:, 0], self.sizes.documents)
        last = self.found()[-1]
        kept, read, seen = len(document), len(table["document"]), self.worst.seen
        note = (
            f"The {read} tokens of the stretches that lost most are kept, of {seen}; what others "
            "add to a token that they overlap is left out."
        )
        return PositionMapResult.of(
            total=tuple(total),
            residual=last.residual,
            before_scored=tuple(before),
            document=np.repeat(document, len(self.layers)),
            position=np.repeat(position, len(self.layers)),
            token=np.repeat(self.encoder.texts(document, position), len(self.layers)),
            layer=np.array(self.layers * kept or [""], object)[: len(self.layers) * kept],
            acts=acts.ravel(),
            nodes=last.nodes,
            notes=(note,) if read < seen else (),
        )


def _by_token(
    table: Mapping[str, np.ndarray], layers: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[token] document and position, and [token, layer] acts, of windows that overlap together."""
    acts = np.stack([table[f"acts_{number}"] for number in range(layers)], 1)
    places = np.stack([table["document"], table["position"]], 1)
    unique, token = np.unique(places, axis=0, return_inverse=True)
    sums = np.zeros((len(unique), layers))
    np.add.at(sums, token.reshape(-1), acts)
    # In the order in which the stretches were kept, and in each from left to right.
    stretch = {
        number: place for place, number in reversed([*enumerate(table["document"].tolist())])
    }
    order = sorted(range(len(unique)), key=lambda i: (stretch[unique[i, 0]], unique[i, 1]))
    return unique[order, 0], unique[order, 1], sums[order]
