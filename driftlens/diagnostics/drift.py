"""How far each place of the network moved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from driftlens.formulas.each import Each
from driftlens.formulas.sampling import chosen
from driftlens.formulas.similarity import turn
from driftlens.formulas.streams import CrossMoments, PerDocument
from driftlens.metric import Metric
from driftlens.models import EMBED, Frame, ModelPair, Site, Wants, every
from driftlens.models.sites import Part
from driftlens.models.tokens import Encoder
from driftlens.results import Estimate, Result, column, fact, figures, shown

PARTS: tuple[Part, ...] = ("attn", "mlp", "out")
SHARE = 0.05
"""What the sums behind CKA and Procrustes may cost, as a share of the two models' own run."""

BESIDES = 1.4
"""How much longer the sums take than their outer products, for all that goes with these."""

FASTER = {"cpu": 3.5, "cuda": 12.0}
"""How much faster half-precision passes are than the float32 products of these sums: measured on
a CPU, by the makers' rates on a GPU."""

FREE = 3e11
"""Multiplications for these sums that any run can afford, however short it is.

As many again may go into showing the texts once more, where not all sums fit at once.
"""

ENOUGH = 4
"""Tokens for each dimension that CKA and Procrustes look at if there are as many."""

SUMS_BYTES = 2**32
"""Memory that the d × d sums behind CKA and Procrustes may take, over all sites shown at once."""

ALIKE = 7
"""Numbers that a site's sums come down to: CKA, biased CKA and Procrustes, the same with the first
token, and how many rows they are of."""

SUMS = ("moved", "norm", "turned", "base_along", "aligned_along", "tokens")


@dataclass(frozen=True)
class DriftResult(Result):
    """How far the activations at each site moved from base to aligned."""

    kind = "drift"
    title = "Representation drift"
    how = """
Both models read the same tokens; activations are compared at the token that closes each unit, \
in every document, without its first token (whose activations are massive in most models and \
would drown the rest) and, in the columns that end in with_first, with it.

relative L2 = Σ‖h_a − h_b‖ / Σ‖h_b‖ over tokens, with a 95 % bootstrap interval over documents. \
cosine = mean of 1 − cos(h_a, h_b). mean shift = ‖E(h_a − h_b)‖; directedness = that / \
E‖h_a − h_b‖: 1 if every token moved alike, 0 if they moved every which way. \
cka = debiased linear CKA, HSIC₁(K, L) / √(HSIC₁(K, K) HSIC₁(L, L)) (Song et al. 2012; Nguyen et \
al. 2021, eq. 2), exact from streaming float64 sums; biased CKA is about d / (n + d) for \
unrelated data and is printed for comparison only. procrustes = arccos(‖X̃ᵀỸ‖_*), the angle \
between the centred, normalised representations after the best rotation (Williams et al. 2021). \
Neither changes under rotation, scale or translation of either side. \
delta cosine = mean cosine of what attention or MLP adds with the stream that enters its block.
""".strip()

    site: np.ndarray = column()
    """[row] name of the site: `embed`, or block number and part."""
    layer: np.ndarray = column()
    """[row] number of the block, from 0; −1 is the embedding."""
    part: np.ndarray = column()
    """[row] `in` (the embedding), `attn`, `mlp` or `out`."""
    relative_l2: np.ndarray = column("of base norm")
    """[row] Σ‖h_a − h_b‖ / Σ‖h_b‖, at least 0."""
    low: np.ndarray = column("of base norm")
    """[row] lower end of the 95 % interval of `relative_l2` over documents."""
    high: np.ndarray = column("of base norm")
    """[row] upper end of it."""
    cosine: np.ndarray = column("1 − cos")
    """[row] mean over tokens of 1 − cos(h_a, h_b), between 0 and 2."""
    mean_shift: np.ndarray = column("of base norm")
    """[row] ‖E(h_a − h_b)‖ / E‖h_b‖."""
    directedness: np.ndarray = column()
    """[row] ‖E(h_a − h_b)‖ / E‖h_a − h_b‖, between 0 and 1; NaN where nothing moved."""
    cka: np.ndarray = column()
    """[row] debiased linear CKA, at most 1; 1 is the same up to rotation and scale; NaN where
    there was no room for the sums."""
    biased_cka: np.ndarray = column()
    """[row] biased linear CKA, for comparison with papers only."""
    procrustes: np.ndarray = column("rad")
    """[row] angle after the best rotation, between 0 and π/2."""
    delta_cosine_base: np.ndarray = column()
    """[row] mean cosine of what the part adds with the stream entering its block, in base."""
    delta_cosine_aligned: np.ndarray = column()
    """[row] the same in aligned."""
    relative_l2_with_first: np.ndarray = column("of base norm")
    """[row] `relative_l2` with the first token of each document."""
    cosine_with_first: np.ndarray = column("1 − cos")
    """[row] `cosine` with the first token of each document."""
    cka_with_first: np.ndarray = column()
    """[row] `cka` with the first token; residual stream only."""
    procrustes_with_first: np.ndarray = column("rad")
    """[row] `procrustes` with the first token; residual stream only."""

    tokens: int = fact("tokens")
    """Tokens behind the averages, the first of each document left out."""
    sampled: int = fact("tokens")
    """Tokens behind CKA and Procrustes (n)."""
    width: int = fact("dimensions")
    """Width of the residual stream (d)."""

    near_zero: ClassVar[tuple[str, ...]] = (
        "relative_l2",
        "cosine",
        "mean_shift",
        "procrustes",
    )
    """What is 0 for a model and itself, and so has a noise floor."""
    layered: ClassVar[str] = "relative_l2"

    def of_layers(self) -> dict[str, Estimate]:
        """How far the stream moved, relative to its length, with its interval."""
        return {
            self.site[row].removesuffix(".out"): Estimate(
                *(float(of[row]) for of in (self.relative_l2, self.low, self.high))
            )
            for row in self._stream()
        }

    def summary(self) -> str:
        """Where the stream moved most, and where it first moved."""
        stream = self._stream()
        if not np.nanmax(self.relative_l2) > self.floor.get("relative_l2", 0.0):
            return "No activation moved by more than the noise floor."
        worst = stream[np.nanargmax(self.relative_l2[stream])]
        first = next(
            i
            for i in range(len(self.site))
            if self.relative_l2[i] > self.floor.get("relative_l2", 0)
        )
        return (
            f"The residual stream moved most at {self.site[worst]}: by "
            f"{self.relative_l2[worst]:.1%} of the base norm "
            f"({self.low[worst]:.1%} to {self.high[worst]:.1%}), "
            f"with CKA {shown(float(self.cka[worst]), 3)}; "
            f"the first site that moved is {self.site[first]}."
        )

    def figure(self) -> "figures.Figure":
        """Relative L2, CKA, Procrustes and δ-cosine over the blocks."""
        figure, panels = figures.panels(4)
        lines = {
            "residual stream": self._stream(),
            "attention output": np.flatnonzero(self.part == "attn"),
            "MLP output": np.flatnonzero(self.part == "mlp"),
        }
        lines = {name: rows for name, rows in lines.items() if len(rows)}
        names = ["embed", *map(str, sorted(set(self.layer[self.layer >= 0])))]
        for panel, what in zip(panels, ("relative_l2", "cka", "procrustes"), strict=False):
            figures.curves(
                names,
                {
                    name: self._over(names, rows, getattr(self, what))
                    for name, rows in lines.items()
                },
                xlabel="block",
                ylabel=self.label(what),
                floor=self.floor.get(what),
                on=panel,
            )
        turns = {
            f"{part}, {who}": self._over(
                names, np.flatnonzero(self.part == key), getattr(self, f"delta_cosine_{who}")
            )
            for key, part in (("attn", "attention"), ("mlp", "MLP"))
            for who in ("base", "aligned")
        }
        figures.curves(
            names, turns, xlabel="block", ylabel="δ-cosine with the stream", on=panels[3]
        )
        return figure

    def _stream(self) -> np.ndarray:
        return np.flatnonzero((self.part == "out") | (self.part == "in"))

    def _over(self, names: list[str], rows: np.ndarray, what: np.ndarray) -> np.ndarray:
        """[name] values at the rows' blocks, NaN where there is none."""
        heights = np.full(len(names), np.nan)
        for row in rows:
            key = "embed" if self.layer[row] < 0 else str(self.layer[row])
            heights[names.index(key)] = what[row]
        return heights


class Drift(Metric[DriftResult]):
    """How far the activations at each site moved.

    Args:
        layers: Blocks to look at; None is all of them.
        seed: Of the sample behind CKA and Procrustes, and of the bootstrap.
        every_site: Whether the texts are shown again and again until every site has had its CKA
            and Procrustes, where not all of their sums fit at once; each showing costs both
            models' forward passes. None is where that is next to nothing.
        room: Bytes for these sums; None is `SUMS_BYTES`.
    """

    def __init__(
        self,
        layers: frozenset[int] | None = None,
        seed: int = 0,
        every_site: bool | None = None,
        room: int | None = None,
    ) -> None:
        self.layers, self.seed, self.every_site, self.room = layers, seed, every_site, room
        self.wants = Wants(frozenset(PARTS), layers)
        self.sites: tuple[Site, ...] = ()
        self.groups: tuple[Group, ...] = ()
        self.showing = 0
        self.share = 1.0
        self.lengths = PerDocument(0)
        self.totals = PerDocument(0)
        self.shift = PerDocument(0)
        self.alike = PerDocument(ALIKE)
        self.rest = Each(CrossMoments)
        self.first = Each(CrossMoments)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Choose the sites and how large a sample they can afford."""
        super().begin(pair, encoder)
        self.wants, self.showing = Wants(frozenset(PARTS), self.layers), 0
        layers = range(pair.depth) if self.layers is None else sorted(self.layers)
        self.sites = tuple(
            site
            for site in every(layers, *PARTS)
            if all(
                getattr(model, "has", lambda _: True)(site) for model in (pair.base, pair.aligned)
            )
        )
        room = (self.room or SUMS_BYTES) // sums_bytes(pair.width)
        most = {True: None, False: 1, None: _showings(pair, encoder.tokens)}[self.every_site]
        self.groups = grouped(self.sites, room, most)
        compared = sum(len(group.compared) for group in self.groups)
        self.share = _affordable(pair, compared, encoder.tokens)
        # Only what has an interval is kept by document; all else is one row for each site.
        self.lengths = PerDocument(2 * len(self.sites))
        self.totals = PerDocument(2 * len(SUMS))
        self.shift = PerDocument(pair.width)

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        units, device = frame.units, frame.base.last.device
        first = torch.from_numpy(units.position == 0)
        sampled = torch.from_numpy(chosen(units.document, units.position, self.share, self.seed))
        here, some = (which.nonzero()[:, 0].to(device) for which in (first, sampled & ~first))
        if self.showing:
            for site in sorted(self._group.compared):
                base, aligned = map(_precise, frame.both(site))
                self._compare(site, base, aligned, some, here)
            return
        table, shift = [], []
        entering = None
        for site in self.sites:
            view = _View(site, *frame.both(site))
            self._compare(site, view.base, view.aligned, some, here)
            table.append(view.sums(entering))
            rest = view.difference.index_fill(0, here, 0.0)
            shift.append(rest.sum(0, dtype=torch.float64))
            entering = view if view.is_stream else entering
        sums = torch.stack(table, 1).double().cpu()
        numbers = np.arange(len(self.sites))
        totals = [sums[which].sum(0) for which in (~first, first)]
        self.totals.update(numbers, torch.cat(totals, 1))
        self.shift.update(numbers, torch.stack(shift))
        lengths = sums[:, :, :2].where(~first[:, None, None], 0.0)
        self.lengths.update(units.document, lengths.flatten(1))

    def again(self) -> bool:
        """Whether the pack is to be shown once more: for the sums of sites that had no room yet."""
        if self.showing + 1 >= len(self.groups):
            return False
        self.alike = self._alike()
        self.rest, self.first = Each(CrossMoments), Each(CrossMoments)
        self.showing += 1
        blocks = [site for site in self._group.compared if site != EMBED]
        self.wants = Wants(
            frozenset(site.part for site in blocks), frozenset(site.layer for site in blocks)
        )
        return True

    def restore(self, state: Mapping[str, np.ndarray]) -> Self:
        """Take up what `state` gave."""
        super().restore(state)
        settled = {self.sites[number] for number in self.alike.documents if self.sites}
        self.showing = sum(group.compared <= settled for group in self.groups)
        return self

    def compute(self) -> DriftResult:
        """The result of all that was seen so far."""
        sums = self._of_sites(self.totals).reshape(-1, 2, len(SUMS))
        # [site] sums over the documents, without the first tokens and with them.
        rest = dict(zip(SUMS, sums[:, 0].T, strict=True))
        whole = dict(zip(SUMS, sums.sum(1).T, strict=True))
        lengths = self.lengths.sums.reshape(-1, len(self.sites), 2)
        interval = self.intervals(lengths[..., 0], lengths[..., 1], self.lengths.documents)
        count = rest["tokens"]
        shift = np.linalg.norm(self._of_sites(self.shift), axis=1)
        alike = np.full((len(self.sites), ALIKE), np.nan)
        found = self._alike()
        alike[found.documents] = found.sums
        sampled = int(np.nanmax(alike[:, -1], initial=0))
        with np.errstate(invalid="ignore", divide="ignore"):
            return DriftResult.of(
                site=self._names(),
                layer=np.array([-1 if site == EMBED else site.layer for site in self.sites]),
                part=[site.part for site in self.sites],
                relative_l2=rest["moved"] / rest["norm"],
                low=interval.low,
                high=interval.high,
                cosine=rest["turned"] / count,
                mean_shift=shift / rest["norm"],
                directedness=shift / rest["moved"],
                cka=alike[:, 0],
                biased_cka=alike[:, 1],
                procrustes=alike[:, 2],
                delta_cosine_base=rest["base_along"] / count,
                delta_cosine_aligned=rest["aligned_along"] / count,
                relative_l2_with_first=whole["moved"] / whole["norm"],
                cosine_with_first=whole["turned"] / whole["tokens"],
                cka_with_first=alike[:, 3],
                procrustes_with_first=alike[:, 5],
                tokens=int(count.max(initial=0)),
                sampled=sampled,
                width=self.pair.width,
                notes=self._notes(sampled),
            )

    def _names(self) -> list[str]:
        return [str(site) for site in self.sites]

    def _of_sites(self, kept: PerDocument) -> np.ndarray:
        """[site, column] sums that are kept by the number of the site; 0 before any frame."""
        return kept.sums if len(kept.documents) else np.zeros((len(self.sites), kept.columns))

    @property
    def _group(self) -> "Group":
        """What is compared in this showing."""
        return self.groups[self.showing] if self.groups else Group(frozenset(), frozenset())

    def _compare(
        self, site: Site, base: Tensor, aligned: Tensor, some: Tensor, here: Tensor
    ) -> None:
        """Take in the sampled rows of a site whose turn it is, and its first tokens."""
        if site in self._group.compared:
            self.rest[str(site)].update(base[some], aligned[some])
        if site in self._group.with_first:
            self.first[str(site)].update(base[here], aligned[here])

    def _alike(self) -> PerDocument:
        """By number of the site, what its sums come down to, of all that had their turn."""
        found = self.alike.empty().merge(self.alike)
        for number, name in enumerate(self._names()):
            if (rest := self.rest.parts.get(name)) is not None:
                both = _alike(rest), _alike(self._seen_with_first(name))
                found.update([number], np.array([*both[0], *both[1], rest.count]))
        return found

    def _seen_with_first(self, name: str) -> CrossMoments | None:
        if name not in self.first:
            return None
        rest = self.rest[name]
        return rest.empty().merge(rest).merge(self.first[name])

    def _notes(self, n: int) -> tuple[str, ...]:
        d = self.pair.width
        notes = [f"CKA and Procrustes from n = {n} tokens of d = {d} dimensions."]
        if self.share < 1:
            notes.append(f"They look at an even sample of {self.share:.1%} of the tokens.")
        compared = sum(len(group.compared) for group in self.groups)
        if compared < len(self.sites):
            room = (self.room or SUMS_BYTES) // sums_bytes(d)
            notes.append(
                f"In so wide a stream the sums of all {len(self.sites)} sites would not fit: CKA "
                f"and Procrustes are taken at {compared}. Choose them with --layers, or give "
                f"--every-site to show the texts {len(grouped(self.sites, room, None))} times."
            )
        if len(self.groups) > 1:
            notes.append(
                f"The texts were shown {len(self.groups)} times, for not all sums fitted at once."
            )
        if n < 4 * d:
            notes.append("n is under 4 d: Procrustes angles are then too small.")
        return tuple(notes)


class _View:
    """What base and aligned show at one site: [unit, width] each, in float32 at least."""

    def __init__(self, site: Site, base: Tensor, aligned: Tensor) -> None:
        self.site, self.base, self.aligned = site, _precise(base), _precise(aligned)
        self.is_stream = site.part in ("in", "out")
        self.difference = self.aligned - self.base
        self.lengths = [torch.linalg.vector_norm(z, dim=-1) for z in (self.base, self.aligned)]

    def sums(self, entering: "_View | None") -> Tensor:
        """[unit, sum] of what is summed over tokens, in the order of `SUMS`."""
        moved = torch.linalg.vector_norm(self.difference, dim=-1)
        base, aligned = self.lengths
        along = self._along(entering) or [torch.full_like(moved, torch.nan)] * 2
        turned = turn(moved, base, aligned)
        return torch.stack([moved, base, turned, *along, torch.ones_like(moved)], -1)

    def _along(self, entering: "_View | None") -> list[Tensor]:
        """[unit] cosine of what the part adds with the stream that enters its block."""
        before = EMBED if self.site.layer == 0 else Site(self.site.layer - 1)
        if self.is_stream or entering is None or entering.site != before:
            return []
        return [
            torch.linalg.vecdot(added, stream) / (length * far)
            for added, stream, length, far in zip(
                (self.base, self.aligned),
                (entering.base, entering.aligned),
                self.lengths,
                entering.lengths,
                strict=True,
            )
        ]


def _precise(stream: Tensor) -> Tensor:
    return stream if stream.dtype == torch.float64 else stream.float()


def _alike(sums: CrossMoments | None) -> tuple[float, float, float]:
    """CKA, biased CKA and Procrustes; NaN of a site that was not compared."""
    if sums is None:
        return (np.nan,) * 3
    sums = sums.settled()
    return sums.cka(), sums.biased_cka(), sums.procrustes()


class Group(NamedTuple):
    """Sites whose sums are taken in one showing of the pack."""

    compared: frozenset[Site]
    with_first: frozenset[Site]
    """Those of them that are also compared with the first token of each document."""


def sums_bytes(width: int) -> int:
    """Bytes of the sums of one site: three products of width × width in float64."""
    return 3 * 8 * width**2


def grouped(sites: Sequence[Site], room: int, most: int | None) -> tuple[Group, ...]:
    """In which showing of the pack the sums of each site are taken: each in one, if in any.

    Args:
        sites: All that are looked at.
        room: For the sums of how many there is room at once; with the first token counts as two.
        most: How often the pack may be shown; None is as often as all sites need.
    """
    streams = sum(site.part in ("in", "out") for site in sites)
    if most != 1 and room < len(sites) + streams:
        # Of an even number, no stream is parted from what it is with the first token.
        room = max(2, room - room % 2)
    needed = -(-(len(sites) + streams) // room) if most is None else most
    compared, with_first = _roomy(sites, room * needed)
    groups: list[tuple[int, set[Site]]] = []
    for site in sorted(compared, key=lambda site: (site not in with_first, site)):
        size = 1 + (site in with_first)
        place = next((n for n, (left, _) in enumerate(groups) if left >= size), len(groups))
        if place == len(groups):
            groups.append((max(room, size), set()))
        left, held = groups[place]
        groups[place] = left - size, held | {site}
    return tuple(Group(frozenset(held), with_first & held) for _, held in groups)


def _roomy(sites: Sequence[Site], room: int) -> tuple[frozenset[Site], frozenset[Site]]:
    """Where CKA and Procrustes are taken, and where with the first token too.

    Args:
        sites: All that are looked at.
        room: For how many of them there is room. If not for all, the residual stream goes first;
            if not for all of that, evenly spaced places of it up to the last.
    """
    streams = [site for site in sites if site.part in ("in", "out")]
    if room >= len(sites) + len(streams):
        return frozenset(sites), frozenset(streams)
    if room >= 2 * len(streams):
        return frozenset(streams), frozenset(streams)
    places = np.linspace(0, len(streams) - 1, max(1, min(room, len(streams)))).round().astype(int)
    return frozenset(streams[-1 - place] for place in places), frozenset()


def _showings(pair: ModelPair, tokens: int) -> int:
    """How often the texts may be shown so that it costs next to nothing."""
    return showings(run_of(pair.depth, pair.width, pair.base.vocabulary), tokens)


def _affordable(pair: ModelPair, sites: int, tokens: int) -> float:
    """The share of tokens at which the d × d sums of all sites cost `SHARE` of the run."""
    run = run_of(pair.depth, pair.width, pair.base.vocabulary)
    if getattr(pair.base, "dtype", torch.float32) in (torch.bfloat16, torch.float16):
        run /= FASTER.get(getattr(pair.base, "device", torch.device("cpu")).type, 1.0)
    return share_of(run, pair.width, sites, tokens)


def run_of(depth: int, width: int, vocabulary: int) -> float:
    """Operations for a token of two models of such sizes."""
    return 2 * 2 * (12 * width * width * depth + width * vocabulary)


def showings(run: float, tokens: int) -> int:
    """How often texts may be shown so that it costs next to nothing.

    Args:
        run: Operations for a token of both models.
        tokens: Of all texts.
    """
    return 1 + int(FREE / (run * tokens))


def share_of(run: float, width: int, sites: int, tokens: int) -> float:
    """The share of tokens at which the d × d sums of so many sites cost `SHARE` of the run.

    Args:
        run: Operations for a token of both models, at the speed of these sums.
        width: Of the stream.
        sites: At how many sites.
        tokens: Of all texts.
    """
    sums = BESIDES * 2 * 3 * width * width * sites
    return min(1.0, max(SHARE * run / sums, FREE / sums / tokens, ENOUGH * width / tokens))
