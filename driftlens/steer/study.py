"""What steering would do to a model, or to both of a pair: read as a table of contents."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from driftlens import doctor
from driftlens.contrasts import MODELS
from driftlens.diagnostics.directions import (
    DirectionMethodsResult,
    Directions,
    DirectionsResult,
    DirectionTransferResult,
)
from driftlens.diagnostics.selection import DirectionSelectionResult
from driftlens.diagnostics.tax import Tasks, TaxRateResult, taxed
from driftlens.diagnostics.tradeoff import (
    Course,
    CrossSteeringResult,
    SteeringByLayerResult,
    Tradeoff,
    TradeoffResult,
)
from driftlens.errors import DriftlensError
from driftlens.formulas.curves import resampled
from driftlens.formulas.intervals import Interval, bootstrap
from driftlens.formulas.tradeoff import at_zero
from driftlens.metric import even_part, measure
from driftlens.models import ModelPair
from driftlens.models.sites import Site
from driftlens.models.sweep import Push
from driftlens.packs import Pack, between
from driftlens.results import Check, Estimate, Findings, Result, Results, shown
from driftlens.sweeps import Arm, Bends, Choices, Reading, StateGradients, Texts, choices, push_of

from .asked import DEPTH, USUALLY, Options, halves, matched
from .cards import Strength, said
from .courses import Line, Looker, both_finite, followed
from .kept import KeptDirections
from .selection import select

if TYPE_CHECKING:
    from driftlens.estimators import Direction

ONE_IN = 4
"""Of the families of behaviour items, one in so many chooses the block."""

LEAST = 12
"""Items of behaviour below which none is kept for choosing."""

KINDS: tuple[type[Result], ...] = (
    DirectionsResult,
    DirectionSelectionResult,
    TradeoffResult,
    CrossSteeringResult,
    SteeringByLayerResult,
    TaxRateResult,
    DirectionTransferResult,
    DirectionMethodsResult,
)
"""What a study finds."""


@dataclass(frozen=True, repr=False)
class Steering(Findings):
    """What was found of steering."""

    results: Results
    """In the order in which they are read."""
    checks: Sequence[Check]
    """The gates."""
    directions: Mapping[tuple[str, Site], "Direction"]
    """Of each model at each place."""
    layers: tuple[int, ...]
    """Blocks at which was steered."""
    pair: ModelPair
    """The models."""
    contrast: Pack
    """The texts that directions were found between."""
    options: Options
    """How."""

    def tradeoff(self, model: str) -> TradeoffResult:
        """The first curve of a model, by its name in the pair."""
        return next(r for r in self.results if isinstance(r, TradeoffResult) and r.model == model)

    def kept(self) -> dict[str, KeptDirections]:
        """The directions of each model, with the strength that its curve recommends."""
        options = self.options
        (main,) = (r for r in self.results if isinstance(r, DirectionsResult))
        found = {}
        for name in dict.fromkeys(model for model, _ in self.directions):
            curve = self.tradeoff(name)
            mine = {
                site.layer: one
                for (model, site), one in self.directions.items()
                if model == name and site.part == options.part and one.norm
            }
            single = len(self.layers) == 1
            spot = curve.sweet_spot
            told = Strength(spot.value, spot.low, spot.high, curve.gain.value, curve.cost.value)
            found[name] = KeptDirections.of(
                getattr(self.pair, name),
                mine,
                part=options.part,
                method=options.method,
                at=options.at,
                positions=options.positions,
                pack=self.contrast,
                figures=[main.at_row(name, layer, options.part) for layer in mine],
                layer=self.layers[0] if single else None,
                strength=told if curve.gains and single and not curve.edge else None,
            )
        return found


def examine(
    pair: ModelPair,
    contrast: Pack,
    capabilities: Sequence[Pack],
    behaviour: Pack | None = None,
    options: Options = USUALLY,
    *,
    checks: Sequence[Check] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Steering:
    """Find directions between two roles of texts, and what steering along them does.

    Args:
        pair: The models; a model beside itself if there is only one.
        contrast: Texts of two roles, choices whose answers are the roles, or contrasts.
        capabilities: Choices with right answers, and texts, that are to be kept.
        behaviour: Choices of which some answers agree with the positive role; None takes those
            that the contrast's card names or, of a contrast that is itself of choices, a half of
            its items, while directions are found on the other half.
        options: How.
        checks: The gates that the models went through; None runs those that steering needs.
        progress: Told what is shown, and how many windows of how many are done.

    Raises:
        DriftlensError: A pack is of no use for this; a layer or a method is not there; models do
            not continue text, cut it differently, or cannot be resumed at a block; or numbers are
            not finite.
    """
    whole = _Study(pair, contrast, capabilities, behaviour, options, progress)
    return whole.steering(checks)


class _Split(NamedTuple):
    """Items of behaviour."""

    choosing: Pack
    judging: Pack
    apart: bool
    """Whether the two have no family in common."""


class _Study:
    def __init__(
        self,
        pair: ModelPair,
        contrast: Pack,
        capabilities: Sequence[Pack],
        behaviour: Pack | None,
        options: Options,
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        self.pair, self.options, self.progress = pair, options, progress
        if not pair.base.causal:
            raise DriftlensError(
                "models that continue text, to steer what they say",
                found=f"{pair.base.name}, which fills in masked tokens",
                remedy="Give causal language models.",
            )
        self.models = MODELS[:1] if pair.base is pair.aligned else MODELS
        behaviour = behaviour or matched(contrast)
        if behaviour is None:
            contrast, behaviour = halves(contrast)
        self.contrast, self.roles = contrast, between(contrast)
        choices(behaviour, pair)
        if not capabilities:
            raise DriftlensError(
                "a pack of what is to be kept",
                found="none",
                remedy="Name choices with right answers, or texts, with --capability.",
            )
        self.behaviour = self._part(behaviour)
        self.capabilities = [self._reading(pack) for pack in capabilities]
        self._check_layers()

    def _check_layers(self) -> None:
        if self.options.select and self.options.layers is not None:
            raise DriftlensError(
                "--layer or --select, one of them", found="both", remedy="Leave one out."
            )
        outside = [n for n in self.options.layers or () if not 0 <= n < self.pair.depth]
        if outside or self.options.layers == ():
            raise DriftlensError(
                f"blocks from 0 to {self.pair.depth - 1}, which {self.pair.base.name} has",
                found=", ".join(map(str, outside)) or "none at all",
                remedy="Give --layer in that range.",
            )

    def _reading(self, pack: Pack) -> Reading:
        if pack.kind not in ("choice", "text"):
            raise DriftlensError(
                "packs of kind choice or text, of what is to be kept",
                found=f"{pack.name} of kind {pack.kind}",
                remedy="Give a --capability that `driftlens packs` lists with one of these kinds.",
            )
        part = self._part(pack)
        return Texts(part) if part.kind == "text" else choices(part, self.pair)

    def _part(self, pack: Pack) -> Pack:
        """What fits into a window, and of what is too large to be read at every strength a part."""
        fitting, long = self._fitting(pack)
        part, some = even_part(self.pair, fitting, self.options.tokens, self.options.length)
        if len(set(part.clusters)) < 2:
            raise DriftlensError(
                f"two items or texts at least in {pack.name}, that are resampled apart",
                found=f"{len(part.examples)} of {len(set(part.clusters))} families",
                remedy="Give more of them, or leave `group` out.",
            )
        if some or long:
            self._parts[pack.name] = " ".join(
                f"{pack.name}: {one[0].lower()}{one[1:]}" for one in (long, some) if one
            )
        return part

    def _fitting(self, pack: Pack) -> tuple[Pack, str]:
        """The items whose prompts fit into a window, and what to say of the others."""
        if pack.kind != "choice":
            return pack, ""
        encoder = self.pair.encoder(pack, self.options.length)
        sizes = [
            max(len(side.ids) for side in encoder.document(number).sides)
            for number in range(len(pack.examples))
        ]
        # The answer's first token stands behind the prompt.
        kept = [e for e, size in zip(pack.examples, sizes, strict=True) if size < encoder.length]
        if not kept:
            raise DriftlensError(
                f"prompts of fewer than {encoder.length} tokens in {pack.name}, that fit into a "
                "window",
                found=f"{min(sizes)} tokens in the shortest",
                remedy="Give shorter prompts, or a larger --max-length.",
            )
        if len(kept) == len(pack.examples):
            return pack, ""
        lost = len(pack.examples) - len(kept)
        return replace(pack, examples=kept), (
            f"{lost} of {len(pack.examples)} items are left out, whose prompts do not fit into a "
            f"window of {encoder.length} tokens."
        )

    @cached_property
    def _parts(self) -> dict[str, str]:
        """By pack, which part of it is read."""
        return {}

    def steering(self, checks: Sequence[Check] | None) -> Steering:
        """All that is asked for."""
        checks = self._gates() if checks is None else checks
        doctor.require(checks)
        if not doctor.resumable(checks):
            gate = next(check for check in checks if check.name == doctor.RESIDUAL)
            raise DriftlensError(
                "models that can be resumed at a block, to be pushed there",
                found=gate.detail,
                remedy="Steer what is generated with `driftlens steer apply`, or by `steered`.",
            )
        first, *others = self._directions
        results: list[Result] = [first, *filter(None, [self._selection])]
        curves = list(self._tradeoffs())
        results += curves
        if len(self.models) > 1:
            results.append(self._cross())
        results += [self._by_layer(), self._tax(), *others]
        named = Results(replace(result, pack=self.roles.name) for result in results)
        return Steering(
            named, checks, self._found, self._layers, self.pair, self.contrast, self.options
        )

    def _gates(self) -> list[Check]:
        few = replace(self.behaviour_reading.pack, name=self.behaviour.name)
        gates = doctor.STEERED if len(self.models) == 1 else doctor.STEERED_PAIR
        return doctor.examine(
            self.pair,
            [few],
            allow_identical=self.options.allow_identical or len(self.models) == 1,
            length=self.options.length,
            gates=gates,
        )

    # Directions

    @cached_property
    def _selection(self) -> DirectionSelectionResult | None:
        """Which direction of the last model to take, if that is asked for."""
        o = self.options
        if not o.select:
            return None
        found = select(
            self.pair,
            self.roles,
            self.behaviour,
            self._sides[-1],
            depth=o.select_depth,
            seed=o.seed,
            rows=o.rows,
            length=o.length,
            progress=self.progress,
        )
        if not found.found:
            raise DriftlensError(
                "a direction that passes the three tests of --select",
                found=f"{found.summary()[:1].lower()}{found.summary()[1:].rstrip('.')}",
                remedy="Name a block with --layer instead, or allow deeper ones with "
                "--select-depth 1.",
            )
        return found

    @cached_property
    def _metric(self) -> Directions:
        o = self.options
        parts = tuple(dict.fromkeys((o.part, *o.parts)))
        back = -1 - self._selection.chosen_position if self._selection else 0
        return Directions(None, parts, o.method, o.at, o.seed, o.level, back)

    @cached_property
    def _directions(self) -> list[Result]:
        """What is told of directions, the main result first."""
        return self._measured(self.roles, self._metric)

    @cached_property
    def _found(self) -> Mapping[tuple[str, Site], "Direction"]:
        assert self._directions, "measured before it is asked"
        return self._metric.found()

    @property
    def _sides(self) -> range:
        return range(len(self.models))

    def _push(self, side: int) -> Push:
        """Along a model's own directions."""
        vectors = {}
        for layer in self._layers:
            site = Site(layer, self.options.part)
            found = self._found.get((MODELS[side], site))
            if found is None or not found.norm:
                raise DriftlensError(
                    f"a direction at {site} of {MODELS[side]}",
                    found="no such place" if found is None else "roles whose means are the same",
                    remedy="Choose another --layer.",
                )
            vectors[site] = found.unit
        return push_of(vectors)

    def _length(self, side: int) -> float:
        """E‖h‖ where a model is pushed, mean over blocks."""
        sites = [Site(layer, self.options.part) for layer in self._layers]
        return float(np.mean([self._found[MODELS[side], site].lengths.mean() for site in sites]))

    # Which block

    @cached_property
    def _asked(self) -> tuple[int, ...] | None:
        """Blocks that the caller named, or that what was asked for took."""
        if self._selection is not None:
            return (self._selection.chosen_layer,)
        return self.options.layers

    @cached_property
    def _split(self) -> _Split:
        families = sorted(set(self.behaviour.clusters))
        few = len(families) < ONE_IN or len(self.behaviour.examples) < LEAST
        if self._asked is not None or few:
            return _Split(self.behaviour, self.behaviour, False)
        return _Split(*self.behaviour.parted(set(families[::ONE_IN])), True)

    @cached_property
    def behaviour_reading(self) -> Choices:
        """Of the items that curves are measured on."""
        return choices(self._split.judging, self.pair)

    @cached_property
    def _sites(self) -> tuple[Site, ...]:
        """Places at which a model may be pushed, one for each block."""
        return tuple(site for site in self._metric.sites if site.part == self.options.part)

    @cached_property
    def _agreeing(self) -> tuple[np.ndarray, np.ndarray]:
        """[item, model, site, width] gradients of log-odds, and [item] clusters."""
        assert self._directions, "directions come first"
        reading = choices(self._split.choosing, self.pair)
        return self._gradients(reading, "log_odds")

    def _gradients(self, reading: Reading, score: str) -> tuple[np.ndarray, np.ndarray]:
        metric = StateGradients(reading, score, self._sites, self.options.positions)
        self._measured(reading.pack, metric)
        clusters = np.array(reading.pack.clusters, np.int64)[metric.sums.documents]
        return metric.found, clusters

    @cached_property
    def _layers(self) -> tuple[int, ...]:
        """Blocks at which is steered."""
        if self._asked is not None:
            return self._asked
        gains = self._along(self._agreeing[0]).mean(0)
        below = max(1, int(DEPTH * self.pair.depth))
        allowed = np.array([site.layer < below for site in self._sites])
        scores = np.where(allowed, gains.mean(0), -np.inf)
        if not np.isfinite(scores).any():
            apart = any(one.norm for one in self._found.values())
            raise DriftlensError(
                "a block at which the roles differ",
                found="none among the lower ones" if apart else "texts whose states are the same",
                remedy="Name one with --layer." if apart else "Give texts that differ by role.",
            )
        return (self._sites[int(np.nanargmax(scores))].layer,)

    def _along(self, gradients: np.ndarray) -> np.ndarray:
        """[item, model, site] change of a score with a push of one E‖h‖, to first order."""
        found = np.full(gradients.shape[:-1], np.nan)
        for side in self._sides:
            for place, site in enumerate(self._sites):
                one = self._found[MODELS[side], site]
                found[:, side, place] = gradients[:, side, place] @ one.unit * one.lengths.mean()
        return found[:, : len(self.models)]

    def _by_layer(self) -> SteeringByLayerResult:
        gains, clusters = self._along(self._agreeing[0]), self._agreeing[1]
        costs, weights, others = self._keeping
        costs = -self._along(costs)
        rows: dict[str, list[Any]] = {n: [] for n in _BY_LAYER}
        how: dict[str, Any] = {"seed": self.options.seed, "level": self.options.level}
        for side in self._sides:
            gain = bootstrap(gains[:, side], np.ones(len(gains)), clusters=clusters, **how)
            cost = bootstrap(costs[:, side], weights, clusters=others, **how)
            rows["model"] += [MODELS[side]] * len(self._sites)
            rows["layer"] += [site.layer for site in self._sites]
            for name, cells in zip(
                ("gain", "low", "high", "cost", "cost_low", "cost_high"),
                (*gain, *cost),
                strict=True,
            ):
                rows[name] += cells.tolist()
        return SteeringByLayerResult.of(
            **rows,
            chosen=said(sorted(self._layers)),
            asked=self._asked is not None,
            choosing=len(self._split.choosing.examples),
        )

    @cached_property
    def _keeping(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gradients of ln P(right) of the first capability, weights and clusters of its items."""
        reading = self.capabilities[0]
        gradients, clusters = self._gradients(reading, "log_right")
        weights = self._lines[0][1].seen([0.0]).weights
        return gradients, weights, clusters

    # Curves

    @cached_property
    def _readings(self) -> list[Reading]:
        return [self.behaviour_reading, *self.capabilities]

    def _looker(self, readings: Sequence[Reading]) -> Looker:
        o = self.options
        return Looker(self.pair, readings, o.positions, o.rows, o.length, self.progress)

    @cached_property
    def _lines(self) -> dict[int, list[Line]]:
        """By side, [reading] what was read along the model's own direction."""
        pushes = {side: self._push(side) for side in self._sides}
        lengths = {side: self._length(side) for side in self._sides}
        given = None
        if self.options.strengths is not None:
            shares = sorted({0.0, *self.options.strengths})
            given = {side: [share * lengths[side] for share in shares] for side in self._sides}
        names = ["behaviour", *["right"] * len(self.capabilities)]
        return followed(
            self._looker(self._readings), pushes, lengths, names, self.options.points, given
        )

    @cached_property
    def _strengths(self) -> dict[int, list[float]]:
        """By side, the strengths at which all that was read is finite."""
        found = {side: both_finite(self._lines[side])[0] for side in self._sides}
        for side, strengths in found.items():
            if 0.0 not in strengths:
                name = (self.pair.base, self.pair.aligned)[side].name
                raise DriftlensError(
                    "finite logits of the unsteered model",
                    found=f"others in {MODELS[side]} ({name})",
                    remedy="Check that checkpoint, or try --dtype float32.",
                )
            if len(strengths) < 3:
                beyond = both_finite(self._lines[side])[1]
                raise DriftlensError(
                    f"finite logits of {MODELS[side]} at two strengths beside 0 at least",
                    found=f"others at r = {min(beyond, key=abs):.4g}",
                    remedy="Give smaller --strengths, or leave them out.",
                )
        return found

    @cached_property
    def _others(self) -> dict[tuple[int, int | str], list[Line]]:
        """Along random directions and along the other model's, by side and which."""
        pushes: dict[tuple[int, int | str], Push] = {}
        for side in self._sides:
            for number in range(self.options.controls):
                pushes[side, number] = self._random(side, number)
            if len(self.models) > 1:
                pushes[side, "other"] = self._push(1 - side)
        lines = {key: [Line() for _ in self._readings] for key in pushes}
        if pushes:
            asked = [(key[0], push, self._strengths[key[0]]) for key, push in pushes.items()]
            self._looker(self._readings).look(asked, [*lines.values()])
        return lines

    def _random(self, side: int, number: int) -> Push:
        """A direction drawn evenly, at each place that is pushed."""
        drawn = np.random.default_rng([self.options.seed, number])
        sites = self._push(side).vectors
        vectors = {site: drawn.standard_normal(self.pair.width) for site in sorted(sites)}
        return push_of({site: v / np.linalg.norm(v) for site, v in vectors.items()})

    @cached_property
    def _bends(self) -> dict[int, dict[tuple[int, str], dict[str, np.ndarray]]]:
        """By reading, derivatives at 0 by side and whose direction."""
        arms = {(side, "own"): Arm(side, self._push(side), ()) for side in self._sides}
        if len(self.models) > 1:
            arms |= {(s, "other"): Arm(s, self._push(1 - s), ()) for s in self._sides}
        found = {}
        for place, reading in enumerate(self._readings):
            metric = Bends(reading, [*arms.values()], self.options.positions)
            self._measured(reading.pack, metric)
            found[place] = {key: metric.found(n) for n, key in enumerate(arms)}
        return found

    def _tradeoffs(self) -> Iterator[TradeoffResult]:
        for side in reversed(self._sides):
            for place, reading in enumerate(self.capabilities, 1):
                yield self._tradeoff(side, place, reading)

    def _tradeoff(self, side: int, place: int, reading: Reading) -> TradeoffResult:
        strengths = self._strengths[side]
        lines = self._lines[side]
        controls = []
        for number in range(self.options.controls):
            two = [self._others[side, number][n] for n in (0, place)]
            if set(both_finite(two)[0]) >= set(strengths):
                controls.append((two[0].seen(strengths), two[1].seen(strengths)))
        bends = {
            "behaviour": self._bends[0][side, "own"]["behaviour"],
            "capability": self._bends[place][side, "own"]["right"],
        }
        course = Course(
            np.array(strengths),
            lines[0].seen(strengths),
            lines[place].seen(strengths),
            controls,
            bends,
            _answers(reading),
            self._length(side),
        )
        main = self._directions[0]
        assert isinstance(main, DirectionsResult), "the first that is told"
        p_values = [
            main.at_row(MODELS[side], layer, self.options.part)["p_value"] for layer in self._layers
        ]
        told = Tradeoff(course, self.options.weight, self.options.seed, self.options.level)
        sites = [Site(layer, self.options.part) for layer in self._layers]
        norms = [self._found[MODELS[side], site].norm for site in sites]
        result = told.result(
            model=MODELS[side],
            layers=said(sorted(self._layers)),
            part=self.options.part,
            method=self.options.method,
            positions=self.options.positions,
            behaviour_pack=self.behaviour.name,
            capability_pack=reading.pack.name,
            foremost=place == 1,
            alone=len(self.models) == 1,
            p_value=float(max(p_values)),
            norm=float(np.mean(norms)),
        )
        read = (self._parts.get(name) for name in (self.behaviour.name, reading.pack.name))
        notes = [*self._of_positions(), *self._of_ends(side), *self._of_controls(len(controls))]
        notes += filter(None, read)
        if place == 1:
            others = tuple(self._elsewhere(side, result.sweet_spot.value))
            result = replace(result, elsewhere=others)
        return replace(result, notes=tuple(notes))

    def _elsewhere(self, side: int, strength: float) -> Iterator[str]:
        """What the other capabilities are before and at a strength."""
        strengths = self._strengths[side]
        for place, reading in enumerate(self.capabilities[1:], 2):
            right = self._lines[side][place].seen(strengths).mean("right")
            ends = (shown(float(np.interp(r, strengths, right)), 3) for r in (0.0, strength))
            yield f"{reading.pack.name} from {' to '.join(ends)}"

    def _of_ends(self, side: int) -> Iterator[str]:
        beyond = both_finite(self._lines[side])[1]
        for sign, name in ((-1, "below"), (1, "above")):
            if some := [r for r in beyond if r * sign > 0]:
                first = min(some, key=abs)
                yield (
                    f"The curve ends {name}: at r = {first:.4g} "
                    f"({first / self._length(side):.3g} E‖h‖) logits are not finite."
                )
        if not self._split.apart and self._asked is None:
            yield (
                "Too few items of behaviour to keep some for choosing the block: it was chosen by "
                "those that the curve is of."
            )

    def _of_positions(self) -> Iterator[str]:
        if self.options.positions == "response":
            yield (
                "Only tokens of responses are pushed, and choices are read before there is one: "
                "what is said of them does not move."
            )

    def _of_controls(self, left: int) -> Iterator[str]:
        if left < self.options.controls:
            lost = self.options.controls - left
            yield f"{lost} random directions gave logits that are not finite, and are left out."

    def _cross(self) -> CrossSteeringResult:
        rows: dict[str, list[Any]] = {n: [] for n in _CROSS}
        slopes: dict[tuple[int, str], Estimate] = {}
        draws: dict[tuple[int, str], np.ndarray] = {}
        clusters = self._lines[0][0].clusters
        for side in self._sides:
            for whose in ("own", "other"):
                items = self._bends[0][side, whose]["behaviour"][:, 1]
                slopes[side, whose] = Estimate(*map(float, self._interval(items, clusters)))
                draws[side, whose] = items
                lines = self._lines[side] if whose == "own" else self._others[side, "other"]
                strengths = [r for r in self._strengths[side] if r in both_finite(lines)[0]]
                count = len(strengths)
                origin = side if whose == "own" else 1 - side
                slope = slopes[side, whose]
                rows["steered"] += [MODELS[side]] * count
                rows["direction"] += [MODELS[origin]] * count
                rows["strength"] += strengths
                rows["behaviour"] += lines[0].seen(strengths).mean("behaviour").tolist()
                rows["capability"] += lines[1].seen(strengths).mean("right").tolist()
                rows["slope"] += [slope.value] * count
                rows["low"] += [slope.low] * count
                rows["high"] += [slope.high] * count
        ratios = [
            Estimate(
                *map(
                    float,
                    bootstrap(
                        draws[side, "other"],
                        draws[side, "own"],
                        seed=self.options.seed,
                        level=self.options.level,
                        clusters=clusters,
                    ),
                )
            )
            for side in self._sides
        ]
        return CrossSteeringResult.of(
            base_in_aligned=ratios[1],
            aligned_in_base=ratios[0],
            **rows,
            layers=said(sorted(self._layers)),
        )

    def _interval(self, items: np.ndarray, clusters: np.ndarray) -> Interval:
        o = self.options
        ones = np.ones(len(items))
        return bootstrap(items, ones, seed=o.seed, level=o.level, clusters=clusters)

    # The tax

    def _tax(self) -> TaxRateResult:
        parts = []
        for place, reading in enumerate(self.capabilities, 1):
            if place == 1:
                gradients, weights, clusters = self._keeping
            else:
                gradients, clusters = self._gradients(reading, "log_right")
                weights = self._lines[0][place].seen([0.0]).weights
            topics = [e.topic or reading.pack.name for e in reading.pack.examples]
            read = self._numbers(place)
            tasks = np.array([topics[n] for n in read], object)
            parts.append((gradients, weights, tasks, clusters + 10**6 * place))
        whole = [np.concatenate(column) for column in zip(*parts, strict=True)]
        side = self._sides[-1]
        units = np.stack(
            [[self._found[MODELS[s], site].unit for site in self._sites] for s in self._sides]
        )
        result = taxed(
            Tasks(*whole),
            units,
            self.models,
            [site.layer for site in self._sites],
            steered=MODELS[side],
            at=self._layers[0],
            swept=self._swept(side),
            seed=self.options.seed,
            level=self.options.level,
        )
        several = (
            ("Steered at several blocks together: no sweep holds the slope of one of them.",)
            if len(self._layers) > 1
            else ()
        )
        return replace(result, notes=several)

    def _numbers(self, place: int) -> list[int]:
        """Documents of a capability that were read."""
        reading = self.capabilities[place - 1]
        encoder = self.pair.encoder(reading.pack, self.options.length)
        return sorted({window.example for window in encoder.plan})

    def _swept(self, side: int) -> Estimate:
        """Slope at 0 of the mean ln P(right) of all capabilities, by differences."""
        strengths = self._strengths[side]
        seen = [line.seen(strengths) for line in self._lines[side][1:]]
        r = np.array(strengths)
        origin = strengths.index(0.0)
        # A push at several blocks has no slope that belongs to one of them.
        if len(self._layers) > 1 or min(origin, len(strengths) - origin - 1) < 2:
            return Estimate(np.nan)
        weights = np.concatenate([some.weights for some in seen])
        curve = resampled(
            r,
            np.concatenate([some.values["log_right"] for some in seen]) / weights[:, None],
            seed=self.options.seed,
            clusters=np.concatenate([some.clusters + 10**6 * n for n, some in enumerate(seen)]),
            weights=weights,
        )
        return Estimate(*map(float, at_zero(curve, level=self.options.level).slope.interval))

    def _measured(self, pack: Pack, metric: Any) -> list[Result]:
        o, told = self.options, self.progress and partial(self.progress, pack.name)
        return measure(self.pair, pack, [metric], rows=o.rows, length=o.length, progress=told)


_BY_LAYER = ("model", "layer", "gain", "low", "high", "cost", "cost_low", "cost_high")
_CROSS = ("steered", "direction", "strength", "behaviour", "capability", "slope", "low", "high")


def _answers(reading: Reading) -> int:
    """How many answers an item has, one of them right; 0 if that differs."""
    if not isinstance(reading, Choices):
        return 0
    counts = {int((row != 0).sum()) for row in reading.signs}
    single = {int((row > 0).sum()) for row in reading.signs} == {1}
    return counts.pop() if len(counts) == 1 and single else 0
