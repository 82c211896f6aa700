"""Every what-if run on the same items, and compared."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from driftlens.diagnostics.mitigation import (
    ALIGNED_POINT,
    BASE_POINT,
    CONTROL,
    INTERPOLATION,
    MitigationResult,
    Point,
    Seen,
    compared,
)
from driftlens.errors import DriftlensError
from driftlens.models import ModelPair
from driftlens.models.mixture import Instead, Mixture, Shares, mixture
from driftlens.models.pieces import Piece
from driftlens.packs import Pack
from driftlens.results import Findings, Results

from .asked import USUALLY, Options
from .axes import Alone, Axis, axis_of, choosing, read
from .repair import Repair
from .slopes import Slopes

PATTERNS: Mapping[str, tuple[float, float, float]] = {
    "low kept": (1.0, 0.0, -1.0),
    "high kept": (-1.0, 0.0, 1.0),
    "middle kept": (-0.5, 1.0, -0.5),
    "ends kept": (0.5, -1.0, 0.5),
}
"""By which of three parts of the blocks keeps more of aligned than the others: what is added to
each one's share, in parts of what there is room for; nothing on average."""

STEPS = 10
"""How many numbers of restored layers are looked at, at most."""


@dataclass(frozen=True)
class WhatIf:
    """Weights that the pair could have."""

    method: str
    setting: str
    said: str
    """How a sentence says it, after *would*."""
    share: Shares = 1.0
    rest: float = 1.0
    instead: Instead | None = None
    detail: Callable[[], str] = str
    """What else is known of the weights, once they were made."""

    @property
    def name(self) -> str:
        """What a caller types."""
        return f"{self.method} {self.setting}".strip()


@dataclass(frozen=True, repr=False)
class Mitigation(Findings):
    """What was found, and the weights that it was found of."""

    results: Results
    """For each capability and each alignment a plane, then what gradients say."""
    mixture: Mixture
    """Takes on any of the weights."""
    what_ifs: Sequence[WhatIf]
    """In the order of the rows of a plane."""

    @property
    def planes(self) -> list[MitigationResult]:
        """The planes alone."""
        return [r for r in self.results if isinstance(r, MitigationResult)]

    def recommended(self) -> WhatIf | None:
        """What the first plane recommends, if anything."""
        here = np.flatnonzero(self.planes[0].recommended)
        return self.what_ifs[here[0]] if len(here) else None

    def named(self, name: str) -> WhatIf:
        """A what-if by its name, as `interpolation 0.7`.

        Raises:
            DriftlensError: None is called so.
        """
        bare = " ".join(name.replace("α =", "").split())
        for one in self.what_ifs:
            if bare == " ".join(one.name.replace("α =", "").split()):
                return one
        raise DriftlensError(
            "one of " + ", ".join(repr(z.name.replace("α = ", "")) for z in self.what_ifs[2:]),
            found=repr(name),
            remedy="Give --choose one of these.",
        )


def examine(
    pair: ModelPair,
    capabilities: Sequence[Pack],
    alignments: Sequence[Pack],
    options: Options = USUALLY,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Mitigation:
    """Run every what-if on the same items, and say which of them to take.

    The first of the capabilities is the one that layers are blamed for, that gradients are taken
    of, and, with the first of the alignments, whose recommendation counts.

    Args:
        pair: The two models.
        capabilities: Texts, or choices with right answers.
        alignments: Choices of which some answers agree, or preferences.
        options: How.
        progress: Told what is run, and how many models of how many are done.

    Raises:
        DriftlensError: A pack is of no use for this; the models' weights are out of reach, do not
            match, or there is no memory for one more copy; they read masks, or cut a text
            differently.
    """
    return _Study(pair, capabilities, alignments, options, progress).found()


class _Study:
    def __init__(
        self,
        pair: ModelPair,
        capabilities: Sequence[Pack],
        alignments: Sequence[Pack],
        options: Options,
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        self.pair, self.options, self.progress = pair, options, progress
        if not pair.base.causal:
            raise DriftlensError(
                "models that continue text",
                found=f"{pair.base.name}, which fills in masked tokens",
                remedy="Give causal language models.",
            )
        for name, packs in (("capability", capabilities), ("alignment", alignments)):
            if not packs:
                raise DriftlensError(
                    f"a pack of {name}", found="none", remedy=f"Name one with --{name}."
                )
        self.mixture = mixture(pair.base, pair.aligned)
        self.alone = Alone(self.mixture.model, self.mixture.model)
        self.capabilities = [axis_of(pair, pack, False, options) for pack in capabilities]
        self.alignments = [axis_of(pair, pack, True, options) for pack in alignments]
        self.sums: dict[tuple[Axis, int], np.ndarray] = {}
        self.ran: list[WhatIf] = []
        self.ahead: list[Mapping[Axis, float]] = []
        self.notes: list[str] = [z for axis in self.axes for z in axis.said]

    @property
    def axes(self) -> list[Axis]:
        return [*self.capabilities, *self.alignments]

    def found(self) -> Mitigation:
        asked = self.options.methods
        self._run(WhatIf(BASE_POINT, "", "going back to base", 0.0))
        self._run(WhatIf(ALIGNED_POINT, "", "staying"))
        self.total = self._expected()
        if "forecast" in asked:
            # Before any other weights are set.
            assert self.slopes.at_aligned, "a gradient of one aim at least"
        makers = {
            "interpolation": self._interpolations,
            "blocks": self._blocks,
            "restoration": self._restorations,
            "spectral": self._spectral,
            "projection": self._projections,
        }
        for name, make in makers.items():
            for what_if in make() if name in asked else ():
                self._run(what_if)
        planes = [self._plane(c, a) for c in self.capabilities for a in self.alignments]
        more = [*self.slopes.conflicts(), *self.slopes.steps()] if "forecast" in asked else []
        return Mitigation(Results([*planes, *more]), self.mixture, self.ran)

    # Running

    def _expected(self) -> int:
        """About how many models are run."""
        o, layers = self.options, len(self.mixture.pieces("layer"))
        most = min(STEPS, o.most or layers, layers - 1)
        counts = {
            "interpolation": len(o.alphas),
            "blocks": len(PATTERNS) * len(o.means),
            "restoration": layers + most * (1 + o.random),
            "spectral": 1,
            "projection": 2,
        }
        return 2 + sum(counts.get(name, 0) for name in o.methods)

    def _run(self, what_if: WhatIf) -> None:
        """Read all axes of a model with such weights."""
        number = len(self.ran)
        at = self.mixture.at(what_if.share, rest=what_if.rest, instead=what_if.instead)
        with at:
            for axis in self.axes:
                self.sums[axis, number] = read(self.alone, axis, self.options)
            forecast = "forecast" in self.options.methods and number > 1
            self.ahead.append(self.slopes.ahead() if forecast else {})
        self.ran.append(what_if)
        if self.progress is not None and hasattr(self, "total"):
            self.progress("what-ifs", min(number + 1, self.total), self.total)

    def _seen(self, axis: Axis) -> Seen:
        """What was read of an axis at all points."""
        items = [axis.items(self.sums[axis, n]) for n in range(len(self.ran))]
        _, weights, clusters = items[0]
        values = np.stack([values for values, _, _ in items], 1)
        return Seen(values, weights, clusters, choosing(clusters, self.options.seed))

    def _plane(self, capability: Axis, alignment: Axis) -> MitigationResult:
        seen = self._seen(capability), self._seen(alignment)
        forecasts: list[Point] = []
        points = [Point(w.method, w.setting, w.said, detail=w.detail()) for w in self.ran]
        if "forecast" in self.options.methods:
            value = [float(s.values[:, 1].sum() / s.weights.sum()) for s in seen]
            base = float(seen[0].values[:, 0].sum() / seen[0].weights.sum())
            cost = base - value[0]
            ends = cost, value[1], float(seen[1].values[:, 0].sum() / seen[1].weights.sum())
            points = [
                _foretold(p, w, -told.get(capability, np.nan), told.get(alignment, np.nan), *ends)
                for p, w, told in zip(points, self.ran, self.ahead, strict=True)
            ]
            if (capability, alignment) == (self.capabilities[0], self.alignments[0]):
                forecasts = list(self.slopes.forecast(cost, value[1]))
        return replace(
            compared(
                points,
                forecasts,
                *seen,
                keep=self.options.keep,
                seed=self.options.seed,
                level=self.options.level,
                facts={
                    "capability_pack": capability.called,
                    "alignment_pack": alignment.called,
                    "capability_name": capability.name,
                    "alignment_name": alignment.name,
                    "capability_items": len(seen[0].weights),
                    "alignment_items": len(seen[1].weights),
                },
                notes=tuple(dict.fromkeys(self.notes)),
            ),
            pack=capability.called,
        )

    # Where weights lie between the two

    def _interpolations(self) -> Iterator[WhatIf]:
        for alpha in self.options.alphas:
            if alpha not in (0.0, 1.0):
                said = f"interpolating at {alpha:g} of the way from base to aligned"
                yield WhatIf(INTERPOLATION, f"α = {alpha:g}", said, alpha, alpha)

    def _blocks(self) -> Iterator[WhatIf]:
        if self.pair.depth < 3:
            self.notes.append("Of fewer than three blocks, none are low, middle and high.")
            return
        embed, *blocks, head = self._layers_in_order()
        thirds = [list(part) for part in np.array_split(np.arange(len(blocks)), 3)]
        parts = [[blocks[n] for n in part] for part in thirds]
        parts[0] += embed
        parts[2] += head
        for mean in self.options.means:
            room = min(mean, 1 - mean)
            for pattern, moves in PATTERNS.items():
                shares = [mean + room * move for move in moves]
                told = ", ".join(f"{share:.2g}" for share in shares)
                yield WhatIf(
                    "blocks",
                    f"{pattern}, mean {mean:g}",
                    f"mixing low, middle and high blocks at {told}",
                    {p: s for part, s in zip(parts, shares, strict=True) for p in part},
                    detail=partial(str, f"α of low, middle and high blocks {told}"),
                )

    def _layers_in_order(self) -> list[Any]:
        """Pieces of the embedding, each block's, and of the head: of the outer two, lists."""
        pieces = self.mixture.pieces("layer")
        outer = [[p for p in pieces if p.layer == name] for name in ("embed", "head")]
        return [outer[0], *(p for p in pieces if p.layer not in ("embed", "head")), outer[1]]

    @cached_property
    def _movable(self) -> list[Piece]:
        """The layers of which anything changed."""
        moved = {
            change.layer
            for change in self.mixture.changes()
            if not torch.equal(change.base, change.aligned)
        }
        return [p for p in self.mixture.pieces("layer") if p.layer in moved]

    def _restorations(self) -> Iterator[WhatIf]:
        layers, o = self._movable, self.options
        if not layers:
            self.notes.append("No weight changed: there is nothing to restore.")
            return
        alone = o.most != 1
        blame = np.zeros(len(layers))
        for n, piece in enumerate(layers):
            one = self._restored("restored alone", str(piece), [piece])
            if alone:
                yield one
                blame[n] = self._brought_back(len(self.ran) - 1)
            else:
                with self.mixture.at(one.share, rest=one.rest):
                    found = read(self.alone, self.capabilities[0], o)
                blame[n] = self._mean(found) - self._mean(self._aligned_sums)
        order = [layers[n] for n in np.argsort(-blame, kind="stable")]
        if not alone:
            yield self._restored("restored by blame", f"1: {order[0]}", order[:1])
            return
        most = min(o.most or len(order) - 1, len(order) - 1)
        counts = sorted({round(float(z)) for z in np.linspace(1, most, min(STEPS, most))})
        for count in counts:
            setting = f"{count}: {', '.join(map(str, order[:count][:6]))}"
            yield self._restored("restored by blame", setting, order[:count])
        draw = np.random.default_rng(o.seed)
        for number in range(o.random):
            mixed = [layers[n] for n in draw.permutation(len(layers))]
            for count in counts:
                setting = f"{count} of order {number + 1}"
                yield self._restored(CONTROL, setting, mixed[:count])

    def _restored(self, method: str, setting: str, layers: Sequence[Piece]) -> WhatIf:
        names = [piece.words for piece in layers]
        few = ", ".join(names[:-1][:5]) + (" and " if len(names) > 1 else "") + names[-1]
        said = few if len(names) < 7 else f"{len(names)} layers"
        return WhatIf(method, setting, f"restoring {said} to base", dict.fromkeys(layers, 0.0))

    @property
    def _aligned_sums(self) -> np.ndarray:
        return self.sums[self.capabilities[0], 1]

    def _mean(self, sums: np.ndarray) -> float:
        """The first capability, on the half of its items that chooses."""
        values, weights, clusters = self.capabilities[0].items(sums)
        mine = choosing(clusters, self.options.seed)
        return float(values[mine].sum() / weights[mine].sum())

    def _brought_back(self, number: int) -> float:
        sums = self.sums[self.capabilities[0], number]
        return self._mean(sums) - self._mean(self._aligned_sums)

    def _spectral(self) -> Iterator[WhatIf]:
        repair = Repair(self.mixture.model.net.config.get_text_config())
        changed = [c for c in self.mixture.changes() if not torch.equal(c.base, c.aligned)]
        for change in changed:
            repair(change)
        self.notes += repair.notes
        if not repair.repaired:
            return
        yield WhatIf(
            "spectral",
            "edge",
            "spectral repair",
            instead=repair,
            detail=repair.detail,
        )

    # What gradients say

    @cached_property
    def slopes(self) -> Slopes:
        """Gradients of both aims."""
        base = {axis: self.sums[axis, 0] for axis in self.axes}
        aims = self.capabilities, self.alignments
        return Slopes(self.pair, self.mixture, *aims, base, self.options)

    def _projections(self) -> Iterator[WhatIf]:
        for by, count, instead in self.slopes.projections():
            how = "all weights as one" if by == "all" else "layer by layer"
            yield WhatIf(
                "projected",
                by,
                f"projecting {count} gradients of capability out of the change, {how},",
                instead=instead,
                detail=partial(str, f"{count} gradients at base, {how}"),
            )


def _foretold(
    point: Point,
    what_if: WhatIf,
    cost_moved: float,
    alignment_moved: float,
    cost: float,
    aligned: float,
    base: float,
) -> Point:
    """A point with its forecasts: of an interpolation also the parabola through both ends.

    Args:
        point: The point.
        what_if: Its weights.
        cost_moved: Change of the cost from aligned, to first order.
        alignment_moved: The same of alignment.
        cost: Cost of aligned.
        aligned: Alignment of aligned.
        base: Alignment of base.
    """
    first = point._replace(
        forecast_cost=cost + cost_moved, forecast_alignment=aligned + alignment_moved
    )
    if what_if.method != INTERPOLATION:
        return first
    assert isinstance(what_if.share, float | int), "one share of all weights"
    gone = 1 - what_if.share
    # f(1 − t) = f(1) + s t + (f(0) − f(1) − s) t², s being the slope towards base.
    bent = [
        end + moved + (start - end - moved / gone) * gone**2
        for start, end, moved in ((0.0, cost, cost_moved), (base, aligned, alignment_moved))
    ]
    return first._replace(curved_cost=bent[0], curved_alignment=bent[1])
