"""Where the loss shows: every site screened by gradients, the top few patched exactly."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from driftlens.errors import DriftlensError
from driftlens.formulas.patching import along
from driftlens.formulas.quadrature import gauss
from driftlens.formulas.ranks import spearman
from driftlens.formulas.streams import PerDocument
from driftlens.metric import Metric
from driftlens.models import EMBED, Frame, Model, ModelPair, Site, Trace, Wants, every
from driftlens.models.heads import heads_of
from driftlens.models.pieces import Piece, called
from driftlens.models.sites import Part
from driftlens.models.tokens import Batch, Encoder, Window
from driftlens.results import Estimate, Result, column, figures, value

PARTS: Mapping[str, tuple[Part, ...]] = {"component": ("attn", "mlp"), "head": ("heads", "mlp")}
"""What of each block is patched, by how finely blocks are divided."""

BARS = 40
"""How many sites fit into one picture."""


@dataclass(frozen=True)
class Place:
    """Some features of a site, which are patched as one."""

    site: Site
    component: str
    """`embed`, `attn` or `mlp`; or `head 0`, `head 1` and so on."""

    features: tuple[int, ...] | None = None
    """None is all of them."""

    @property
    def layer(self) -> str:
        """`embed` or number of the block."""
        return "embed" if self.site == EMBED else str(self.site.layer)

    def of(self, stream: Tensor) -> Tensor:
        """[batch, token, feature] what of the site's tensor is here."""
        return stream if self.features is None else stream.index_select(-1, self._index(stream))

    def put(self, stream: Tensor, mine: Tensor) -> Tensor:
        """The site's tensor with another [batch, token, feature] here."""
        mine = mine.to(stream)
        if self.features is None:
            return mine
        return stream.index_copy(-1, self._index(stream), mine)

    def _index(self, stream: Tensor) -> Tensor:
        return torch.tensor(self.features, device=stream.device)


@dataclass(frozen=True)
class ScreenResult(Result):
    """What restoring each site gives back, estimated everywhere and exact for the top few."""

    kind = "screen"
    title = "Screening by activation patches"
    how = """
A site is the embedding, or what attention or MLP of a block adds to the residual stream. An \
activation patch puts one model's activation at one site, at all positions, into the other model, \
and runs all above it. So it asks where the difference between the models shows, and not where it \
is made: a component whose weights did not change is given a share for what it passes on from \
below. Where it is made, weight grafts tell; the two answers may differ.

By head, a block's attention is divided into its heads, those that share keys and values as one. \
A head's activation is what it gives to the map by which attention writes to the stream: its \
features of what enters that map. Each model maps them by its own weights, so that a change of \
these weights shows at no head of the block, only above. Heads are numbered as weight grafts \
number them.

With m the sum of the scored log-likelihoods and h_s the activation at site s, restoring gives \
back exact_s = m(aligned; h_s ← base's) − m(aligned), and alone the site costs \
costs_s = m(base) − m(base; h_s ← aligned's); both in nats a token, above 0 where the site's \
change adds to the loss. They do not add up to the rise: every site is patched with all else left \
as it is, so that what passes several sites is counted at each.

The screen takes all sites from one backward pass of each model: \
estimate_s = ⟨∇m at h_s of the aligned run, base's h_s − aligned's h_s⟩, summed over positions \
(attribution patching). Its error goes with the square of the difference between the models. \
corrected_s takes the mean of the two runs' gradients. The base run differs elsewhere too, so this \
is no better order of approximation to exact_s; what it approximates, with an error that goes with \
the cube, is the mean of exact_s and costs_s, and with that it is compared. On text that base was \
trained for, its own gradient may be near 0 and corrected_s about half of estimate_s. \
For the sites that either run's gradient calls largest, both are then measured by patching. \
integrated_s, if asked for, takes the gradient at n Gauss-Legendre places between the site's two \
activations in the aligned model; with more places it tends to exact_s, at the cost of a \
forward and a backward pass for each.

A patch moves the site by the difference between the models; any move as large may move the loss. \
random_s is the control: what it gives back to move the aligned activation, at every token, in a \
random direction by as much as base's lies away from it. Where exact_s is no larger, the patch \
tells how far the site was moved, and not that base's activation is what helps.

Gradients miss what a saturated softmax or two effects that cancel hide from them. The remedies of \
AtP* are not taken: its recomputed attention weights belong to queries and keys, which are no \
sites here, and its dropped gradients would need a backward pass for each block. \
Both ends' gradients are asked instead, and the rest is left to exact patches. The rank \
agreement is Spearman's, over the patched sites only: having been chosen for being large, they \
say little of those that were called small. Intervals: 95 % bootstrap over documents.

Source: attribution patching (Nanda 2023; Kramár et al. 2024, "AtP*"); activation patching across \
models (Prakash et al. 2024); integrated gradients (Sundararajan et al. 2017).
""".strip()

    total: Estimate = value("nats/token")
    """The rise in loss."""
    agreement: Estimate = value("Spearman")
    """Rank correlation of `estimate` with `exact` over the patched sites; NaN of fewer than two."""
    corrected_agreement: Estimate = value("Spearman")
    """The same of `corrected` with the mean of `exact` and `costs`."""
    sign_agreement: Estimate = value("of the patched")
    """Share of the patched sites whose estimate has the sign of `exact`, where that is not 0."""
    error: Estimate = value("of exact")
    """Median over the patched sites of |estimate − exact| / |exact|."""
    corrected_error: Estimate = value("of the mean")
    """The same of `corrected` and the mean of `exact` and `costs`."""

    layer: np.ndarray = column()
    """[row] `embed` or number of the block."""
    component: np.ndarray = column()
    """[row] `embed`, `attn` or `mlp`; or `head 0`, `head 1` and so on."""
    estimate: np.ndarray = column("nats/token")
    """[row] what restoring gives back, to first order from the aligned run."""
    low: np.ndarray = column("nats/token")
    """[row] lower end of its 95 % interval."""
    high: np.ndarray = column("nats/token")
    """[row] upper end of it."""
    corrected: np.ndarray = column("nats/token")
    """[row] the same by the mean of both runs' gradients."""
    exact: np.ndarray = column("nats/token")
    """[row] what restoring gives back, patched; NaN where it was not."""
    exact_low: np.ndarray = column("nats/token")
    """[row] lower end of its 95 % interval."""
    exact_high: np.ndarray = column("nats/token")
    """[row] upper end of it."""
    costs: np.ndarray = column("nats/token")
    """[row] what the aligned activation alone costs in base, patched; NaN where it was not."""
    integrated: np.ndarray = column("nats/token")
    """[row] `exact` by integrated gradients; NaN where none were taken."""
    random: np.ndarray = column("nats/token")
    """[row] what a random move as large gives back; NaN where no patch was run."""
    random_low: np.ndarray = column("nats/token")
    """[row] lower end of its 95 % interval."""
    random_high: np.ndarray = column("nats/token")
    """[row] upper end of it."""

    near_zero: ClassVar[tuple[str, ...]] = (
        "total",
        "estimate",
        "corrected",
        "exact",
        "costs",
        "random",
    )

    def summary(self) -> str:
        """What gives most back, and how well the screen ranks."""
        patched = np.flatnonzero(~np.isnan(self.exact))
        if not len(patched):
            return self._unpatched()
        count = f"{len(patched)} patched of {len(self.exact)} sites"
        top = patched[self.exact[patched].argmax()]
        if not (self.exact[top] > 0 and self.above_floor("exact")[top]):
            return f"Restoring gives nothing back at any of the {count}."
        back = Estimate(*map(float, (self.exact[top], self.exact_low[top], self.exact_high[top])))
        ranked = self._control(top)
        if not np.isnan(self.agreement.value):
            ranked += (
                f"; the screen's estimates rank these with a Spearman correlation of "
                f"{self.agreement.value:.2f}"
            )
        return (
            f"Of a rise of {self.total} nats a token, restoring {self._words(top)} gives back "
            f"{back}, the most of {count}{ranked}."
        )

    def figure(self) -> "figures.Figure":
        """Estimates by site, with what patches found."""
        shown = self._largest()
        second = {
            "patched: restored": self.exact[shown],
            "patched: costs alone": self.costs[shown],
            "random move": self.random[shown],
        }
        return figures.bars(
            called(self.layer[shown], self.component[shown]),
            self.estimate[shown],
            self.low[shown],
            self.high[shown],
            second={name: rows for name, rows in second.items() if not np.isnan(rows).all()},
            label="estimated",
            xlabel="site" if len(shown) == len(self.layer) else f"largest {len(shown)} sites",
            ylabel="given back [nats/token]",
            floor=self.floor.get("estimate"),
        )

    def _unpatched(self) -> str:
        top = int(np.nan_to_num(self.estimate, nan=-np.inf).argmax())
        if not (self.estimate[top] > 0 and self.above_floor("estimate")[top]):
            return f"Restoring gives nothing back at any of {len(self.estimate)} sites, estimated."
        back = Estimate(*map(float, (self.estimate[top], self.low[top], self.high[top])))
        return (
            f"Of a rise of {self.total} nats a token, restoring {self._words(top)} is estimated to "
            f"give back {back}, the most of {len(self.estimate)} sites; no patch was run."
        )

    def _largest(self) -> np.ndarray:
        """Rows to draw, in the order of the network."""
        sizes = np.nan_to_num(np.fmax(np.abs(self.estimate), np.abs(self.exact)))
        return np.sort(np.argsort(-sizes, kind="stable")[:BARS])

    def _words(self, row: int) -> str:
        return Piece(self.layer[row], self.component[row]).words

    def _control(self, row: int) -> str:
        """What a random move gives back where a patch did."""
        control = [float(z[row]) for z in (self.random, self.random_low, self.random_high)]
        if np.isnan(control[0]):
            return ""
        more = "" if self.exact[row] > abs(control[0]) else ", no less in size"
        return f"; a random move as large gives back {Estimate(*control)} there{more}"


class Screen(Metric[ScreenResult]):
    """What restoring each site's activation gives back.

    The pack is shown twice: once to estimate, at every site, and once to patch the top ones.

    Args:
        verify: How many sites to patch, each for a run of either model; "all" is every site.
        nodes: Places of integrated gradients at the patched sites; 0 takes none.
        seed: Of the bootstrap, and of the random moves.
        level: Share of bootstrap draws that an interval holds.
        by: Whether a block is divided into attention and MLP, or into single heads and MLP.
        control: Whether to move each patched site at random too, for one more run.

    Raises:
        DriftlensError: A number is negative, or there is no such division.
    """

    def __init__(
        self,
        verify: int | Literal["all"] = 8,
        nodes: int = 0,
        seed: int = 0,
        level: float = 0.95,
        *,
        by: Literal["component", "head"] = "component",
        control: bool = True,
    ) -> None:
        if (verify != "all" and verify < 0) or nodes < 0:
            raise DriftlensError(
                "how many sites to patch, and with how many nodes, both at least 0",
                found=f"verify={verify!r}, nodes={nodes}",
                remedy='Give 0 for none, or verify="all" for every site.',
            )
        if by not in PARTS:
            raise DriftlensError(
                f"sites by {' or '.join(PARTS)}", found=repr(by), remedy="Give one of these."
            )
        self.verify, self.nodes, self.seed, self.level = verify, nodes, seed, level
        self.by, self.control = by, control
        self.wants = self._screening
        self.places: tuple[Place, ...] = ()
        self.patched: tuple[Place, ...] = ()
        self.estimates = PerDocument(0)
        self.patches = PerDocument(0)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Find the sites that both models have.

        Raises:
            DriftlensError: Heads are asked for and cannot be told apart, or differ.
        """
        super().begin(pair, encoder)
        self.places = _places(pair, self.by)
        self.wants, self.patched = self._screening, ()
        self.estimates = PerDocument(2 + 2 * len(self.places))
        self.patches = PerDocument(1 + 4 * self._count)

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        documents = [window.example for window in frame.windows]
        if self.patched:
            self.patches.update(documents, self._patches(frame).T)
        else:
            self.estimates.update(documents, self._estimates(frame).T)

    def again(self) -> bool:
        """Whether the pack is to be shown once more: to patch the sites now chosen."""
        if self.patched or not self._count:
            return False
        self._choose()
        return True

    def restore(self, state: Mapping[str, np.ndarray]) -> Self:
        """Take up what `state` gave."""
        super().restore(state)
        if len(self.patches.documents):
            self._choose()
        return self

    def compute(self) -> ScreenResult:
        """The result of all that was seen so far."""
        total, *estimates = self._found(self.estimates)
        aligned, base = estimates[::2], [mirror[0] for mirror in estimates[1::2]]
        estimate, low, high = np.array(aligned).T
        corrected = (estimate + np.array(base)) / 2
        exact, costs, integrated, random = self._of_patches().transpose(1, 2, 0)
        return ScreenResult.of(
            total=Estimate(*total),
            **_agreements(estimate, corrected, exact[0], costs[0]),
            layer=[place.layer for place in self.places],
            component=[place.component for place in self.places],
            estimate=estimate,
            low=low,
            high=high,
            corrected=corrected,
            exact=exact[0],
            exact_low=exact[1],
            exact_high=exact[2],
            costs=costs[0],
            integrated=integrated[0],
            random=random[0],
            random_low=random[1],
            random_high=random[2],
            notes=self._notes(exact[0], random[0]),
        )

    @property
    def _count(self) -> int:
        """How many sites are to be patched."""
        return len(self.places) if self.verify == "all" else min(self.verify, len(self.places))

    @property
    def _screening(self) -> Wants:
        """What the first showing must show."""
        parts = frozenset(PARTS[self.by])
        return Wants(parts, None, gradients=True, causal=True, same_tokens=True, together=True)

    def _choose(self) -> None:
        """Settle on the sites to patch, and want no more than these."""
        ends = np.abs(self.estimates.sums[:, 2:].sum(0)).reshape(-1, 2)
        # By the larger of both ends, so that one may see what the other's saturation hides.
        top = np.argsort(-ends.max(1), kind="stable")[: self._count]
        self.patched = tuple(self.places[number] for number in sorted(top))
        layers = frozenset(place.site.layer for place in self.patched)
        self.wants = replace(self._screening, layers=layers, gradients=False)

    def _estimates(self, frame: Frame) -> Tensor:
        """[column, window] tokens, rise, and for each site its estimate from either end."""
        base, aligned = frame.likelihoods
        columns = [*_by_window(frame, [torch.ones_like(base), base - aligned])]
        for place in self.places:
            for trace in (frame.aligned, frame.base):
                columns.append(_restored(frame, trace, place))
        return torch.stack(columns)

    def _patches(self, frame: Frame) -> Tensor:
        """[column, window] tokens, and for each patched site what was found there."""
        units = [torch.ones_like(frame.likelihoods[0])]
        for place in self.patched:
            units += [*_exact(frame, place), self._control(frame, place)]
        tokens, *exact = _by_window(frame, units)
        integrated = [_integrated(frame, place, self.nodes) for place in self.patched]
        each = zip(exact[::3], exact[1::3], integrated, exact[2::3], strict=True)
        return torch.stack([tokens, *(column for four in each for column in four)])

    def _control(self, frame: Frame, place: Place) -> Tensor:
        """[scored unit] what a random move gives back, as large as base's is; NaN of none."""
        aligned = frame.likelihoods[1]
        if not self.control:
            return torch.full_like(aligned, torch.nan)
        ours, theirs = _both(frame, place)
        kind = torch.promote_types(ours.dtype, torch.float32)
        sizes = (ours.to(kind) - theirs.to(kind)).norm(dim=-1, keepdim=True)
        if not bool(sizes[frame.aligned.batch.mask].any()):
            return torch.zeros_like(aligned)
        keys = self.seed, self.places.index(place)
        ways = _directions(keys, frame.windows, frame.aligned.batch, theirs.shape[-1])
        moved = theirs.to(kind) + sizes * ways.to(sizes)
        return _patched(frame, frame.pair.aligned, frame.aligned, place, moved) - aligned

    def _of_patches(self) -> np.ndarray:
        """[place, number, bound] what patches found; NaN where none was run."""
        found = np.full((len(self.places), 4, 3), np.nan)
        if self.patched:
            mine = [self.places.index(place) for place in self.patched]
            found[mine] = np.reshape(self._found(self.patches), (-1, 4, 3))
        return found

    def _found(self, kept: PerDocument) -> list[tuple[float, float, float]]:
        """[column] estimates a token, with their intervals; the first column counts tokens."""
        found = self.intervals(kept.sums[:, 1:], kept.sums[:, 0], kept.documents)
        return [(float(a), float(b), float(c)) for a, b, c in zip(*found, strict=True)]

    def _notes(self, exact: np.ndarray, random: np.ndarray) -> tuple[str, ...]:
        said = [f"{len(self.patched)} of {len(self.places)} sites were patched."]
        if len(self.patched) < len(self.places):
            said.append("Where no patch was run, exact and costs are undefined.")
        if small := int(((np.abs(exact) <= np.abs(random)) & (exact != 0)).sum()):
            said.append(
                f"At {small} of them restoring moves the loss no further than a random move as "
                "large does."
            )
        models = (self.pair.base, self.pair.aligned)
        if not all(getattr(model, "residual_identity", True) for model in models):
            said.append(
                "Some blocks do not add attention and MLP to the stream as they are: there a site "
                "is the output of the module."
            )
        return tuple(said)


def _by_window(frame: Frame, units: list[Tensor]) -> Tensor:
    """[column, window] sums of [column, scored unit] numbers, on the CPU."""
    batch = frame.base.batch.to("cpu")
    rows = torch.zeros_like(units[0], dtype=torch.long)
    rows[batch.owner] = batch.target[0]
    sums = torch.zeros(len(units), len(frame.windows), dtype=torch.float64)
    return sums.index_add(1, rows, torch.stack(units))


def _places(pair: ModelPair, by: str) -> tuple[Place, ...]:
    """What both models have, from the bottom up."""
    models, heads = (pair.base, pair.aligned), {}
    if by == "head":
        heads, theirs = (dict(enumerate(heads_of(model))) for model in models)
        if heads != theirs:
            raise DriftlensError(
                "two models with the same heads",
                found="heads of other features",
                remedy="Divide by component (--by component).",
            )
    found: list[Place] = []
    for site in every(range(pair.depth), *PARTS[by]):
        if site.part == "heads":
            each = enumerate(heads[site.layer])
            found += [Place(site, f"head {number}", features) for number, features in each]
        elif all(getattr(model, "has", lambda _: True)(site) for model in models):
            found.append(Place(site, "embed" if site == EMBED else site.part))
    return tuple(found)


def _directions(
    keys: tuple[int, ...], windows: tuple[Window, ...], batch: Batch, features: int
) -> Tensor:
    """[batch, token, feature] a random direction of length 1 for every token.

    Each window draws for itself, so that it is the same in whatever batch it is read.
    """
    mask = batch.mask.cpu()
    ways = torch.zeros(*mask.shape, features)
    for row, window in enumerate(windows):
        random = np.random.default_rng((*keys, window.example, window.number))
        drawn = random.standard_normal((int(mask[row].sum()), features), dtype=np.float32)
        ways[row, mask[row]] = torch.from_numpy(drawn)
    return torch.nn.functional.normalize(ways, dim=-1)


def _both(frame: Frame, place: Place) -> tuple[Tensor, Tensor]:
    """[batch, token, feature] activations of base and of aligned, on aligned's device."""
    ours, theirs = (place.of(z.activations[place.site]) for z in (frame.base, frame.aligned))
    return ours.to(theirs.device), theirs


def _restored(frame: Frame, trace: Trace, place: Place) -> Tensor:
    """[window] what restoring a site gives back by the gradients of one run, in nats."""
    gradient = place.of(trace.gradients[place.site])
    base, aligned = (tensor.to(gradient.device) for tensor in _both(frame, place))
    found = along(gradient, base, aligned)
    # What stands on padding has no say, and may be no number.
    return found.where(trace.batch.mask, 0.0).sum(1, dtype=torch.float64).cpu()


def _exact(frame: Frame, place: Place) -> tuple[Tensor, Tensor]:
    """[scored unit] what restoring a site gives back, and what it alone costs, in nats."""
    (base, aligned), pair = frame.likelihoods, frame.pair
    ours, theirs = _both(frame, place)
    if torch.equal(ours, theirs):
        return torch.zeros_like(base), torch.zeros_like(base)
    restored = _patched(frame, pair.aligned, frame.aligned, place, ours)
    spoilt = _patched(frame, pair.base, frame.base, place, theirs)
    return restored - aligned, base - spoilt


def _patched(frame: Frame, model: Model, trace: Trace, place: Place, mine: Tensor) -> Tensor:
    """[scored unit] log-likelihoods with another activation at a place, at all positions."""
    run = model.trace(trace.batch, Wants(), {place.site: lambda own: place.put(own, mine)})
    return frame.likelihood_of(model, run, run.predictors)


def _integrated(frame: Frame, place: Place, nodes: int) -> Tensor:
    """[window] what restoring a site gives back by integrated gradients; NaN of no node."""
    if not nodes:
        return torch.full((len(frame.windows),), torch.nan, dtype=torch.float64)
    ours, theirs = _both(frame, place)
    site = place.site
    wants = Wants(frozenset({site.part}), frozenset({site.layer}), gradients=True)
    total = torch.zeros(len(frame.windows), dtype=torch.float64)
    for node, weight in zip(*map(np.ndarray.tolist, gauss(nodes)), strict=True):
        here = theirs + node * (ours - theirs)
        edits = {site: lambda own, here=here: place.put(own, here)}
        run = frame.pair.aligned.trace(frame.aligned.batch, wants, edits)
        total += weight * _restored(frame, run, place)
    return total


def _agreements(
    estimate: np.ndarray, corrected: np.ndarray, exact: np.ndarray, costs: np.ndarray
) -> dict[str, float]:
    """How well the screen foretold what patches found, over [patched site]."""
    mine = ~np.isnan(exact)
    estimate, corrected, exact, costs = (z[mine] for z in (estimate, corrected, exact, costs))
    both = (exact + costs) / 2
    moved = exact != 0
    signs = np.sign(estimate[moved]) == np.sign(exact[moved])
    return {
        "agreement": spearman(estimate, exact),
        "corrected_agreement": spearman(corrected, both),
        "sign_agreement": float(signs.mean()) if len(signs) else np.nan,
        "error": _median_error(estimate, exact),
        "corrected_error": _median_error(corrected, both),
    }


def _median_error(found: np.ndarray, truth: np.ndarray) -> float:
    """Median relative error where the truth is not 0; NaN of nothing."""
    errors = np.abs(found - truth)[truth != 0] / np.abs(truth[truth != 0])
    return float(np.median(errors)) if len(errors) else np.nan
