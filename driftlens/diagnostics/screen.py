"""Where the loss shows: every component screened by gradients, the top few patched exactly."""

from collections.abc import Mapping
from dataclasses import dataclass
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
from driftlens.models.tokens import Encoder
from driftlens.results import Estimate, Result, column, figures, value

WANTS = Wants(frozenset({"attn", "mlp"}), None, gradients=True, causal=True, same_tokens=True)

BARS = 40
"""How many sites fit into one picture."""


@dataclass(frozen=True)
class ScreenResult(Result):
    """What restoring each component gives back, estimated everywhere and exact for the top few."""

    kind = "screen"
    title = "Screening by activation patches"
    how = """
A site is the embedding, or what attention or MLP of a block adds to the residual stream. An \
activation patch puts one model's activation at one site, at all positions, into the other model, \
and runs all above it. So it asks where the difference between the models shows, and not where it \
is made: a component whose weights did not change is given a share for what it passes on from \
below. Where it is made, weight grafts tell; the two answers may differ.

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
    """[row] `embed`, `attn` or `mlp`."""
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

    near_zero: ClassVar[tuple[str, ...]] = ("total", "estimate", "corrected", "exact", "costs")

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
        ranked = ""
        if not np.isnan(self.agreement.value):
            ranked = (
                f"; the screen's estimates rank these with a Spearman correlation of "
                f"{self.agreement.value:.2f}"
            )
        return (
            f"Of a rise of {self.total} nats a token, restoring {self._name(top)} gives back "
            f"{back}, the most of {count}{ranked}."
        )

    def figure(self):
        """Estimates by site, with what patches found."""
        shown = self._largest()
        second = {
            "patched: restored": self.exact[shown],
            "patched: costs alone": self.costs[shown],
        }
        return figures.bars(
            [self._label(row) for row in shown],
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
            f"Of a rise of {self.total} nats a token, restoring {self._name(top)} is estimated to "
            f"give back {back}, the most of {len(self.estimate)} sites; no patch was run."
        )

    def _largest(self) -> np.ndarray:
        """Rows to draw, in the order of the network."""
        sizes = np.nan_to_num(np.fmax(np.abs(self.estimate), np.abs(self.exact)))
        return np.sort(np.argsort(-sizes, kind="stable")[:BARS])

    def _label(self, row: int) -> str:
        layer, component = self.layer[row], self.component[row]
        return layer if layer == component else f"{layer}.{component}"

    def _name(self, row: int) -> str:
        words = {"attn": "attention", "mlp": "MLP"}
        if self.layer[row] == "embed":
            return "the embedding"
        return f"block {self.layer[row]}'s {words[self.component[row]]}"


class Screen(Metric[ScreenResult]):
    """What restoring each component's activation gives back.

    The pack is shown twice: once to estimate, at every site, and once to patch the top ones.

    Args:
        verify: How many sites to patch, each for a run of either model; "all" is every site.
        nodes: Places of integrated gradients at the patched sites; 0 takes none.
        seed: Of the bootstrap.

    Raises:
        DriftlensError: A number is negative.
    """

    wants = WANTS

    def __init__(
        self, verify: int | Literal["all"] = 8, nodes: int = 0, seed: int = 0, level: float = 0.95
    ) -> None:
        if (verify != "all" and verify < 0) or nodes < 0:
            raise DriftlensError(
                "how many sites to patch, and with how many nodes, both at least 0",
                found=f"verify={verify!r}, nodes={nodes}",
                remedy='Give 0 for none, or verify="all" for every site.',
            )
        self.verify, self.nodes, self.seed = verify, nodes, seed
        self.level = level
        self.sites: tuple[Site, ...] = ()
        self.patched: tuple[Site, ...] = ()
        self.estimates = PerDocument(0)
        self.patches = PerDocument(0)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Find the sites that both models have."""
        super().begin(pair, encoder)
        self.sites = tuple(
            site
            for site in every(range(pair.depth), "attn", "mlp")
            if all(
                getattr(model, "has", lambda _: True)(site) for model in (pair.base, pair.aligned)
            )
        )
        self.wants, self.patched = WANTS, ()
        self.estimates = PerDocument(2 + 2 * len(self.sites))
        self.patches = PerDocument(1 + 3 * self._count)

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
        exact, costs, integrated = self._of_patches().transpose(1, 2, 0)
        return ScreenResult.of(
            total=Estimate(*total),
            **_agreements(estimate, corrected, exact[0], costs[0]),
            layer=["embed" if site == EMBED else str(site.layer) for site in self.sites],
            component=["embed" if site == EMBED else site.part for site in self.sites],
            estimate=estimate,
            low=low,
            high=high,
            corrected=corrected,
            exact=exact[0],
            exact_low=exact[1],
            exact_high=exact[2],
            costs=costs[0],
            integrated=integrated[0],
            notes=self._notes(),
        )

    @property
    def _count(self) -> int:
        """How many sites are to be patched."""
        return len(self.sites) if self.verify == "all" else min(self.verify, len(self.sites))

    def _choose(self) -> None:
        """Settle on the sites to patch, and want no more than these."""
        ends = np.abs(self.estimates.sums[:, 2:].sum(0)).reshape(-1, 2)
        # By the larger of both ends, so that one may see what the other's saturation hides.
        top = np.argsort(-ends.max(1), kind="stable")[: self._count]
        self.patched = tuple(self.sites[number] for number in sorted(top))
        layers = frozenset(site.layer for site in self.patched)
        self.wants = Wants(WANTS.parts, layers, causal=True, same_tokens=True)

    def _estimates(self, frame: Frame) -> Tensor:
        """[column, window] tokens, rise, and for each site its estimate from either end."""
        base, aligned = frame.likelihoods
        columns = [*_by_window(frame, [torch.ones_like(base), base - aligned])]
        for site in self.sites:
            ours, theirs = frame.base.activations[site], frame.aligned.activations[site]
            for trace in (frame.aligned, frame.base):
                columns.append(_restored(trace, site, ours, theirs))
        return torch.stack(columns)

    def _patches(self, frame: Frame) -> Tensor:
        """[column, window] tokens, and for each patched site what was found there."""
        units = [torch.ones_like(frame.likelihoods[0])]
        for site in self.patched:
            units += _exact(frame, site)
        tokens, *exact = _by_window(frame, units)
        integrated = [_integrated(frame, site, self.nodes) for site in self.patched]
        both = zip(exact[::2], exact[1::2], integrated, strict=True)
        return torch.stack([tokens, *(column for three in both for column in three)])

    def _of_patches(self) -> np.ndarray:
        """[site, number, bound] what patches found; NaN where none was run."""
        found = np.full((len(self.sites), 3, 3), np.nan)
        if self.patched:
            mine = [self.sites.index(site) for site in self.patched]
            found[mine] = np.reshape(self._found(self.patches), (-1, 3, 3))
        return found

    def _found(self, kept: PerDocument) -> list[tuple[float, float, float]]:
        """[column] estimates a token, with their intervals; the first column counts tokens."""
        found = self.intervals(kept.sums[:, 1:], kept.sums[:, 0], kept.documents)
        return [(float(a), float(b), float(c)) for a, b, c in zip(*found, strict=True)]

    def _notes(self) -> tuple[str, ...]:
        said = [f"{len(self.patched)} of {len(self.sites)} sites were patched."]
        if len(self.patched) < len(self.sites):
            said.append("Where no patch was run, exact and costs are undefined.")
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


def _restored(trace: Trace, site: Site, base: Tensor, aligned: Tensor) -> Tensor:
    """[window] what restoring a site gives back by the gradients of one run, in nats."""
    gradient = trace.gradients[site]
    found = along(gradient, base.to(gradient.device), aligned.to(gradient.device))
    # What stands on padding has no say, and may be no number.
    return found.where(trace.batch.mask, 0.0).sum(1, dtype=torch.float64).cpu()


def _exact(frame: Frame, site: Site) -> tuple[Tensor, Tensor]:
    """[scored unit] what restoring a site gives back, and what it alone costs, in nats."""
    (base, aligned), pair = frame.likelihoods, frame.pair
    ours, theirs = frame.base.activations[site], frame.aligned.activations[site]
    if torch.equal(ours, theirs):
        return torch.zeros_like(base), torch.zeros_like(base)
    restored = _patched(frame, pair.aligned, frame.aligned, site, ours)
    spoilt = _patched(frame, pair.base, frame.base, site, theirs)
    return restored - aligned, base - spoilt


def _patched(frame: Frame, model: Model, trace: Trace, site: Site, stream: Tensor) -> Tensor:
    """[scored unit] log-likelihoods with another stream at a site, at all positions."""
    run = model.trace(trace.batch, Wants(), {site: lambda own: stream.to(own)})
    return frame.likelihood_of(model, run, run.predictors)


def _integrated(frame: Frame, site: Site, nodes: int) -> Tensor:
    """[window] what restoring a site gives back by integrated gradients; NaN of no node."""
    if not nodes:
        return torch.full((len(frame.windows),), torch.nan, dtype=torch.float64)
    ours, theirs = frame.base.activations[site], frame.aligned.activations[site]
    wants = Wants(frozenset({site.part}), frozenset({site.layer}), gradients=True)
    total = torch.zeros(len(frame.windows), dtype=torch.float64)
    for place, weight in zip(*map(np.ndarray.tolist, gauss(nodes)), strict=True):
        edits = {site: lambda own, here=theirs + place * (ours - theirs): here.to(own)}
        run = frame.pair.aligned.trace(frame.aligned.batch, wants, edits)
        total += weight * _restored(run, site, ours, theirs)
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
