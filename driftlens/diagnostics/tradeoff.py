"""What a push along a direction gains in behaviour and costs in capability, strength by strength.

The curves are measured elsewhere, by `driftlens.sweeps`; here they are fitted, compared and told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from driftlens.formulas.curves import (
    FULL,
    LINEAR,
    QUADRATIC,
    RESTRICTED,
    TANH,
    Curve,
    Form,
    Rational,
    resampled,
)
from driftlens.formulas.fits import DOUBT, VERDICTS, Comparison, compare
from driftlens.formulas.intervals import Interval, bootstrap
from driftlens.formulas.tradeoff import (
    Derivative,
    SweetSpot,
    at_zero,
    band,
    expected_onset,
    frontier,
    onset,
    pareto,
    small_sweet_spot,
    sweet_spot,
)
from driftlens.results import Estimate, Result, column, fact, figures, shown, value

FEW = "too few"
"""A verdict on curves of fewer strengths than a fit needs."""

SAID = {**VERDICTS, FEW: "cannot be told of so few strengths"}

FEWEST = max(len(form.powers) for form in (TANH, FULL, LINEAR, QUADRATIC)) + 3
"""Strengths that a comparison of forms needs."""

NEARBY = 0.8
"""Share of capability that is left where strengths are small."""

LITTLE = 0.01
"""Gain of behaviour below which nothing is said to be gained."""

FINE = 401
"""Strengths along which fits are searched for the sweet spot."""


@dataclass(frozen=True)
class Seen:
    """What was read of some documents along one push.

    Args:
        values: [document, strength] by name of column.
        clusters: [document] numbers; those of one are resampled together.
    """

    values: Mapping[str, np.ndarray]
    clusters: np.ndarray

    @property
    def text(self) -> bool:
        """Whether the documents are texts, of which every token counts."""
        return "tokens" in self.values

    @property
    def weights(self) -> np.ndarray:
        """[document] how much each counts."""
        if not self.text:
            return np.ones(len(self.clusters))
        return self.values["tokens"].max(1, initial=0.0)

    def mean(self, name: str) -> np.ndarray:
        """[strength] of a column, over tokens or items."""
        return np.asarray(self.values[name].sum(0) / self.weights.sum())

    def curve(self, name: str, strengths: np.ndarray, seed: int) -> Curve:
        """A column over strengths, with its draws."""
        weights = self.weights
        items = self.values[name] / weights[:, None]
        return resampled(strengths, items, seed=seed, clusters=self.clusters, weights=weights)


@dataclass(frozen=True)
class Course:
    """All that was measured of one model along one direction."""

    strengths: np.ndarray
    """[strength] ascending, 0 among them."""

    behaviour: Seen
    """Of choices, a wanted answer being agreement."""

    capability: Seen
    """Of choices with a right answer, or of texts."""

    controls: Sequence[tuple[Seen, Seen]]
    """The same along random directions."""

    bends: Mapping[str, np.ndarray]
    """[document, order] value, slope and curvature by `behaviour` and by `capability`."""

    answers: int
    """How many answers an item of capability has; 0 of texts, or if that differs."""

    length: float
    """E‖h‖, mean length of the states that are pushed."""


@dataclass(frozen=True)
class TradeoffResult(Result):
    """Behaviour and capability over the strength of a push."""

    kind = "tradeoff"
    over = "Which way, how far, at what cost"
    how = """
r · v̂ is added to the stream at the named block (to the output of each of them where there are \
several), v̂ of length 1, r in the stream's own units; relative_strength is r / E‖h‖. What lies \
below is run once; r = 0 is the model as it is, to the bit.

behaviour = P(agree) − P(refuse), the answers' probabilities by their first tokens, normalised \
among the answers of an item, mean over items; log_odds = ln P(agree) − ln P(refuse) is linear in \
r where the theory holds. capability = mean probability of the right answer among all tokens (of \
texts: of each next token); restricted = the same among the answers; accuracy and accuracy_full = \
share of items whose right answer is the likeliest of the answers, and of all tokens; loss = \
−ln P(right) in nats. low, high: 95 % bootstrap over items, families whole. control_low, \
control_high: where behaviour would lie along one more random direction of equal length (95 % \
prediction band of Student's t); capability alike.

Theory (Wolf et al. 2024): behaviour tanh(a r + b₀), capability 1 / (1 + a + a b² r² / 2) among \
all tokens, floor + span / (1 + a + a b² r² / 2) among k answers (floor 1/k, span 1 − 1/k; \
published: ¼ and ½ of four). It *holds* if its residuals are noise (p ≥ .05 of the resampled \
scatter) and it beats a straight line and a parabola by more than 2 in AIC; near_verdict is of \
strengths that leave 80 % of capability. slope, curvature: derivatives at r = 0 in closed form, \
by going back through the blocks above once and twice, without a sweep; slope_swept, \
curvature_swept: by finite differences of the measured curve. sweet_spot: the r with the most of \
gain − λ · loss / (capability at 0), of the fits where both hold and of the measured curves \
otherwise, with the quantiles of its draws; small_sweet_spot = k / (2 λ q) from the derivatives \
alone. A gain is spoken of only where the spot is told from 0, the direction from exchanged roles \
(p < .05), and behaviour there from that along random directions. onset: the smallest r at which \
capability has fallen beyond what noise would do anywhere on the curve, as a share of E‖h‖. \
frontier: strengths that no other beats in both; chance: share of random directions that reach as \
much behaviour at no less capability.
""".strip()

    slope: Estimate = value("per unit of r")
    """d behaviour / dr at 0, in closed form."""
    curvature: Estimate = value("per squared unit of r")
    """d² capability / dr² at 0, in closed form."""
    sweet_spot: Estimate = value("of the stream")
    """r with the most of gain − λ · loss."""
    gain: Estimate = value("of behaviour")
    """Behaviour at the sweet spot minus behaviour at 0; bounds are of that strength."""
    cost: Estimate = value("of capability")
    """Capability at 0 minus capability at the sweet spot; bounds are of that strength."""
    slope_swept: Estimate = value("per unit of r")
    """d behaviour / dr at 0, by differences of the measured curve."""
    curvature_swept: Estimate = value("per squared unit of r")
    """d² capability / dr² at 0, likewise."""
    capability_slope: Estimate = value("per unit of r")
    """d capability / dr at 0, in closed form; 0 by the theory."""
    small_sweet_spot: Estimate = value("of the stream")
    """k / (2 λ q), from the two derivatives; NaN where capability does not fall as a square."""
    onset: Estimate = value("of E‖h‖")
    """Smallest share of the stream's length at which capability has fallen; NaN if at none."""
    expected_onset: Estimate = value("of E‖h‖")
    """Where the closed curvature alone would have it fall by as much."""
    behaviour_still: Estimate = value("of behaviour")
    """Behaviour at r = 0."""
    capability_still: Estimate = value("of capability")
    """Capability at r = 0."""
    tanh_a: Estimate = value("per unit of r")
    """a of tanh(a r + b₀)."""
    tanh_b0: Estimate = value("")
    """b₀ of it."""
    rational_a: Estimate = value("")
    """a of 1 / (1 + a + a b² r² / 2)."""
    rational_b: Estimate = value("per unit of r")
    """b of it."""

    strength: np.ndarray = column("of the stream")
    """[row] r, ascending."""
    behaviour: np.ndarray = column("of behaviour")
    """[row] P(agree) − P(refuse), between −1 and 1."""
    capability: np.ndarray = column("of capability")
    """[row] mean probability of what is right."""
    low: np.ndarray = column("of behaviour")
    """[row] lower end of behaviour's interval."""
    high: np.ndarray = column("of behaviour")
    """[row] upper end of it."""
    control_low: np.ndarray = column("of behaviour")
    """[row] lower end of behaviour's band along random directions."""
    control_high: np.ndarray = column("of behaviour")
    """[row] upper end of it."""
    relative_strength: np.ndarray = column("of E‖h‖")
    """[row] r over the mean length of a state."""
    capability_low: np.ndarray = column("of capability")
    """[row] lower end of capability's interval."""
    capability_high: np.ndarray = column("of capability")
    """[row] upper end of it."""
    capability_control_low: np.ndarray = column("of capability")
    """[row] lower end of capability's band along random directions."""
    capability_control_high: np.ndarray = column("of capability")
    """[row] upper end of it."""
    control: np.ndarray = column("of behaviour")
    """[row] mean behaviour along random directions."""
    capability_control: np.ndarray = column("of capability")
    """[row] mean capability along them."""
    log_odds: np.ndarray = column("nats")
    """[row] mean ln P(agree) − ln P(refuse)."""
    behaviour_full: np.ndarray = column("of behaviour")
    """[row] P(agree) − P(refuse) among all tokens."""
    mass: np.ndarray = column("of probability")
    """[row] what the answers have of all tokens."""
    restricted: np.ndarray = column("of capability")
    """[row] capability among the answers; NaN of texts."""
    accuracy: np.ndarray = column("of items")
    """[row] right among the answers; NaN of texts."""
    accuracy_full: np.ndarray = column("of items")
    """[row] right among all tokens."""
    loss: np.ndarray = column("nats")
    """[row] −ln P(right), per item or per token."""
    behaviour_fit: np.ndarray = column("of behaviour")
    """[row] fitted tanh; NaN where there is no fit."""
    capability_fit: np.ndarray = column("of capability")
    """[row] fitted rational form."""
    frontier: np.ndarray = column()
    """[row] whether no other strength has as much of both and more of one."""
    chance: np.ndarray = column()
    """[row] share of random directions that reach as much behaviour at no less capability; NaN
    off the frontier and without random directions."""

    model: str = fact()
    """Which of the pair is steered: base or aligned."""
    layers: str = fact()
    """Blocks at which the push is made."""
    part: str = fact()
    """What of them."""
    method: str = fact()
    """How the direction was found."""
    positions: str = fact()
    """At which tokens."""
    behaviour_pack: str = fact()
    """The pack of choices that behaviour is measured by."""
    capability_pack: str = fact()
    """The pack that capability is measured by."""
    foremost: bool = fact()
    """Whether that is the first one named."""
    alone: bool = fact()
    """Whether there is no other model beside it."""
    behaviour_verdict: str = fact()
    """What can be said of tanh: failed, rejected, outdone, still, undecided, holds or too few."""
    capability_verdict: str = fact()
    """The same of the rational form, among all tokens."""
    restricted_verdict: str = fact()
    """The same among the answers; empty of texts."""
    near_verdict: str = fact()
    """The same of the rational form among all tokens, while capability keeps `NEARBY` of what it
    was: the theory is of small strengths."""
    published_verdict: str = fact()
    """The same with the published floor and span; empty unless there are four answers."""
    slope_agrees: float = fact()
    """1 if the closed slope lies within the measured one's bounds, 0 if not; NaN if unknown."""
    curvature_agrees: float = fact()
    """The same of capability's curvature."""
    from_fits: bool = fact()
    """Whether the sweet spot is that of the fits."""
    edge: str = fact()
    """`lowest` or `highest` if the sweet spot is an end of the curve: more may lie beyond."""
    weight: float = fact()
    """λ, how much behaviour the whole of the capability is worth."""
    length: float = fact("of the stream")
    """E‖h‖ of the states that are pushed."""
    norm: float = fact("of the stream")
    """Distance of the roles' means along the direction."""
    items: int = fact("items")
    """Items of behaviour."""
    documents: int = fact("documents")
    """Items or texts of capability."""
    random_directions: int = fact("directions")
    """How many random directions the bands are of."""
    beyond_controls: float = fact()
    """1 if behaviour at the sweet spot lies beyond what one more random direction would reach
    there, 0 if not; NaN without a band."""
    p_value: float = fact(default=np.nan)
    """Of the direction's norm, the largest of the blocks that are pushed."""
    elsewhere: tuple[str, ...] = fact(default=())
    """What other capabilities are before and at the sweet spot."""

    sided: ClassVar[tuple[str, ...]] = (
        "slope",
        "curvature",
        "sweet_spot",
        "gain",
        "cost",
        "behaviour_still",
        "capability_still",
    )

    @property
    def title(self) -> str:  # type: ignore[override]
        """Of which model, and in what capability."""
        return f"What steering {self._who} gains, and costs in {self.capability_pack}"

    @property
    def _who(self) -> str:
        return "the model" if self.alone else self.model

    @property
    def gains(self) -> bool:
        """Whether there is a sweet spot that can be believed, and is worth a word."""
        spot = self.sweet_spot
        told = spot.low > 0 or spot.high < 0
        return told and self.gain.value > LITTLE and not self._doubts

    @property
    def _doubts(self) -> list[str]:
        """Why a gain is not to be believed."""
        doubts = []
        if self.p_value >= DOUBT:
            p = shown(self.p_value, 2)
            doubts.append(f"the direction is not told from roles that mean nothing (p = {p})")
        if self.beyond_controls == 0:
            doubts.append("a random direction of that length may reach as much")
        return doubts

    def summary(self) -> str:
        """What the sweet spot gains and costs, and whether the theory holds."""
        block = f"block{'' if self.layers.isdigit() else 's'} {self.layers}"
        at = f"{self.part} of {block}".replace("out of", "the stream after")
        still = (
            f"Steering {self._who} at {at}: behaviour {shown(self.behaviour_still.value, 2)} and "
            f"capability {shown(self.capability_still.value, 3)} ({self.capability_pack}) unsteered"
        )
        theory = (
            f"does behaviour follow a tanh? {_capital(SAID[self.behaviour_verdict])}. Does "
            f"capability fall as the theory's square? {_capital(SAID[self.capability_verdict])} "
            f"(of small strengths: {SAID[self.near_verdict]})"
        )
        if not self.gains:
            doubts = self._doubts if self.gain.value > LITTLE else ()
            why = "".join(f"; {doubt}" for doubt in doubts)
            return (
                f"{still}; no strength gains measurably more than it costs{why}. "
                f"{_capital(theory)}."
            )
        end = f" (the {self.edge} strength: more may lie beyond)" if self.edge else ""
        return (
            f"{still}; the sweet spot is r = {self.sweet_spot} "
            f"({shown(self.sweet_spot.value / self.length, 2)} E‖h‖){end}, which gains "
            f"{shown(self.gain.value, 3)} and takes capability to {self._after}{self._others}. "
            f"{_capital(theory)}."
        )

    @property
    def _after(self) -> str:
        return shown(self.capability_still.value - self.cost.value, 3)

    @property
    def _others(self) -> str:
        return f" ({', '.join(self.elsewhere)})" if self.elsewhere else ""

    def headline(self) -> str:
        """The sweet spot, of the aligned model or the only one."""
        if not (self.gains and self.foremost):
            return ""
        return (
            f"steering {self._who} by {shown(self.sweet_spot.value / self.length, 2)} E‖h‖ gains "
            f"{shown(self.gain.value, 3)} of behaviour and takes P(right) of "
            f"{self.capability_pack} from {shown(self.capability_still.value, 3)} to {self._after}"
            f"{self._others}" + (f", at the {self.edge} strength looked at" if self.edge else "")
        )

    def figure(self) -> "figures.Figure | None":
        """Both curves with their intervals, fits and bands, the frontier, and what theory asks."""
        if len(self.strength) < 2:
            return None
        figure, panels = figures.panels(4)
        x, xlabel = self.strength, "strength r"
        for panel, name, fit, low, high, unit in (
            (
                panels[0],
                "behaviour",
                self.behaviour_fit,
                self.low,
                self.high,
                "P(agree) − P(refuse)",
            ),
            (
                panels[1],
                "capability",
                self.capability_fit,
                self.capability_low,
                self.capability_high,
                "P(right)",
            ),
        ):
            lines = {name: getattr(self, name)}
            bands = {name: (low, high)}
            control = self._control(name)
            if control is not None:
                lines["random directions"] = control[0]
                bands["random directions"] = control[1], control[2]
            if np.isfinite(fit).any():
                lines["fit"] = fit
            figures.curves(
                x, lines, bands=bands, xlabel=xlabel, ylabel=f"{name} [{unit}]", on=panel
            )
        known = np.isfinite(self.control)
        groups = np.where(self.frontier, "best", "other").tolist()
        figures.points(
            np.append(self.capability, self.capability_control[known]),
            np.append(self.behaviour, self.control[known]),
            [*groups, *["random"] * int(known.sum())],
            names={
                "best": "frontier",
                "other": "beaten by another strength",
                "random": "random directions, mean",
            },
            xlabel="capability [P(right)]",
            ylabel="behaviour",
            on=panels[2],
        )
        figures.curves(
            x,
            {"log-odds of agreeing": self.log_odds, "loss of what is right": self.loss},
            xlabel=xlabel,
            ylabel="nats",
            on=panels[3],
        )
        return figure

    def _control(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Mean and band along random directions, if there were any."""
        found = {
            "behaviour": (self.control, self.control_low, self.control_high),
            "capability": (
                self.capability_control,
                self.capability_control_low,
                self.capability_control_high,
            ),
        }[name]
        return found if np.isfinite(found[0]).any() else None


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


class Tradeoff:
    """Fits and tells what was measured along one direction.

    Args:
        course: What was measured.
        weight: λ, how much behaviour the whole of the unsteered capability is worth.
        seed: Of every draw.
        level: Share of bootstrap draws that an interval holds.
    """

    def __init__(self, course: Course, weight: float, seed: int, level: float) -> None:
        self.course, self.weight, self.seed, self.level = course, weight, seed, level
        self.r = course.strengths
        self.b = course.behaviour.curve("behaviour", self.r, seed)
        self.p = course.capability.curve("right", self.r, seed)

    def result(self, **facts: Any) -> TradeoffResult:
        """The result; `facts` are those that only the caller knows."""
        course, b, p = self.course, self.b, self.p
        origin = b.origin
        slope = self._closed("behaviour", 1)
        curvature = self._closed("capability", 2)
        swept = self._swept()
        spot, from_fits, curves = self._spot()
        at = float(spot.strength.estimate)
        gained, kept = (_spread(curve, at, self.level) for curve in curves)
        tanh, rational = self._theory
        fell = onset(p, course.length, self.level)
        bounds = {name: self._bounds(curve) for name, curve in (("b", b), ("p", p))}
        controls = {name: self._band(name) for name in ("behaviour", "right")}
        best, chance = self._frontier()
        return TradeoffResult.of(
            slope=slope,
            curvature=curvature,
            sweet_spot=_estimate(spot.strength),
            gain=Estimate(spot.gain, *(spot.gain + gained)),
            cost=Estimate(spot.loss, *(spot.loss - kept[::-1])),
            slope_swept=_estimate(swept[0].interval) if swept else np.nan,
            curvature_swept=_estimate(swept[1].interval) if swept else np.nan,
            capability_slope=self._closed("capability", 1),
            small_sweet_spot=small_sweet_spot(slope.value, curvature.value, self._weight),
            onset=fell.share,
            expected_onset=expected_onset(curvature.value, fell.fall) / course.length,
            behaviour_still=Estimate(*(float(z[origin]) for z in bounds["b"])),
            capability_still=Estimate(*(float(z[origin]) for z in bounds["p"])),
            tanh_a=_parameter(tanh, "a"),
            tanh_b0=_parameter(tanh, "b0"),
            rational_a=_parameter(rational, "a"),
            rational_b=_parameter(rational, "b"),
            strength=self.r,
            behaviour=b.value,
            capability=p.value,
            low=bounds["b"].low,
            high=bounds["b"].high,
            control_low=controls["behaviour"].low,
            control_high=controls["behaviour"].high,
            relative_strength=self.r / course.length,
            capability_low=bounds["p"].low,
            capability_high=bounds["p"].high,
            capability_control_low=controls["right"].low,
            capability_control_high=controls["right"].high,
            control=controls["behaviour"].estimate,
            capability_control=controls["right"].estimate,
            log_odds=course.behaviour.mean("log_odds"),
            behaviour_full=course.behaviour.mean("behaviour_full"),
            mass=course.behaviour.mean("mass"),
            **self._of_capability(),
            behaviour_fit=_fitted(tanh, self.r),
            capability_fit=_fitted(rational, self.r),
            frontier=best,
            chance=chance,
            behaviour_verdict=_verdict(tanh),
            capability_verdict=_verdict(rational),
            restricted_verdict=self._restricted(self._own_form()),
            near_verdict=self._near(),
            published_verdict=self._restricted(RESTRICTED if course.answers == 4 else None),
            slope_agrees=swept[0].agrees(slope.value) if swept else np.nan,
            curvature_agrees=swept[1].agrees(curvature.value) if swept else np.nan,
            from_fits=from_fits,
            edge=spot.edge,
            weight=self.weight,
            length=course.length,
            items=len(course.behaviour.clusters),
            documents=len(course.capability.clusters),
            random_directions=len(course.controls),
            beyond_controls=self._beyond(float(spot.strength.estimate), spot.gain),
            **facts,
        )

    def _closed(self, name: str, order: int) -> Estimate:
        """A derivative at 0 in closed form, mean over items, with its interval."""
        seen = getattr(self.course, name)
        found = bootstrap(
            self.course.bends[name][:, order],
            seen.weights,
            seed=self.seed,
            level=self.level,
            clusters=seen.clusters,
        )
        return Estimate(*map(float, found))

    def _swept(self) -> tuple[Derivative, Derivative] | None:
        """Behaviour's slope and capability's curvature by finite differences."""
        origin = self.b.origin
        if min(origin, len(self.r) - origin - 1) < 2:
            return None
        found = [at_zero(curve, level=self.level) for curve in (self.b, self.p)]
        return found[0].slope, found[1].curvature

    @cached_property
    def _enough(self) -> bool:
        return len(self.r) >= FEWEST

    @cached_property
    def _theory(self) -> tuple[Comparison | None, Comparison | None]:
        """Of behaviour and of capability among all tokens."""
        return self._of_theory(TANH, self.b), self._of_theory(FULL, self.p)

    def _of_theory(self, form: Form, curve: Curve) -> Comparison | None:
        return compare(form, curve, level=self.level) if self._enough else None

    def _own_form(self) -> Form | None:
        answers = self.course.answers
        return Rational(1 / answers, 1 - 1 / answers) if answers > 1 else None

    def _restricted(self, form: Form | None) -> str:
        """The verdict on capability among the answers."""
        if form is None or self.course.capability.text:
            return ""
        seen = self.course.capability
        values = {**seen.values, "restricted": (1 + seen.values["behaviour"]) / 2}
        curve = Seen(values, seen.clusters).curve("restricted", self.r, self.seed)
        return _verdict(self._of_theory(form, curve))

    def _near(self) -> str:
        """The verdict on the strengths around 0 at which most of capability is left."""
        kept = self.p.value >= NEARBY * self.p.value[self.p.origin]
        first = last = self.p.origin
        while first > 0 and kept[first - 1]:
            first -= 1
        while last + 1 < len(kept) and kept[last + 1]:
            last += 1
        if last - first + 1 < FEWEST:
            return FEW
        some = slice(first, last + 1)
        values = {"right": self.course.capability.values["right"][:, some]}
        if self.course.capability.text:
            values["tokens"] = self.course.capability.values["tokens"][:, some]
        seen = Seen(values, self.course.capability.clusters)
        curve = seen.curve("right", self.r[some], self.seed)
        return compare(FULL, curve, level=self.level).verdict

    def _spot(self) -> tuple[SweetSpot, bool, tuple[Curve, Curve]]:
        """The sweet spot, whether it is that of the fits, and the curves that it is of."""
        tanh, rational = self._theory
        good = ("holds", "undecided")
        if tanh and rational and tanh.verdict in good and rational.verdict in good:
            fine = np.union1d(np.linspace(self.r[0], self.r[-1], FINE), self.r)
            b, p = (found.fits[0].along(fine) for found in (tanh, rational))
            return sweet_spot(b, p, self._weight, self.level), True, (b, p)
        both = self.b, self.p
        return sweet_spot(*both, self._weight, self.level), False, both

    @property
    def _weight(self) -> float:
        """What a unit of capability is worth in behaviour."""
        still = float(self.p.value[self.p.origin])
        return self.weight / still if still else self.weight

    def _beyond(self, strength: float, gain: float) -> float:
        """Whether behaviour there lies beyond the band of random directions: 1, 0 or NaN."""
        found = self._band("behaviour")
        low, high = (float(np.interp(strength, self.r, z)) for z in (found.low, found.high))
        if np.isnan(low + high):
            return np.nan
        return float(self.b.value[self.b.origin] + gain > high)

    def _bounds(self, curve: Curve) -> Interval:
        assert curve.draws is not None
        tail = (1 - self.level) / 2
        low, high = np.quantile(curve.draws, [tail, 1 - tail], axis=0)
        return Interval(curve.value, low, high)

    def _controls(self, name: str) -> np.ndarray:
        """[direction, strength] of a column."""
        place = 0 if name == "behaviour" else 1
        rows = [two[place].mean(name) for two in self.course.controls]
        return np.array(rows).reshape(len(rows), len(self.r))

    def _band(self, name: str) -> Interval:
        found = self._controls(name)
        if not len(found):
            none = np.full(len(self.r), np.nan)
            return Interval(none, none, none)
        # Of a bounded quantity the band's bounds are bounded too.
        least = -1.0 if name == "behaviour" else 0.0
        return Interval(*(np.clip(z, least, 1.0) for z in band(found, self.level)))

    def _frontier(self) -> tuple[np.ndarray, np.ndarray]:
        """[strength] whether it is on the frontier, and chance's share there."""
        chance = np.full(len(self.r), np.nan)
        if self.course.controls:
            b, p = (self._controls(name) for name in ("behaviour", "right"))
            found = frontier(self.b.value, self.p.value, b, p, self.level)
            chance[found.place] = found.chance
        return pareto(self.b.value, self.p.value), chance

    def _of_capability(self) -> dict[str, np.ndarray]:
        seen, none = self.course.capability, np.full(len(self.r), np.nan)
        of_text = seen.text
        return {
            "restricted": none if of_text else (1 + seen.mean("behaviour")) / 2,
            "accuracy": none if of_text else seen.mean("hits"),
            "accuracy_full": seen.mean("hits" if of_text else "hits_full"),
            "loss": -seen.mean("log_right"),
        }


def _spread(curve: Curve, strength: float, level: float) -> np.ndarray:
    """[bound] how far draws of a curve's move from 0 to a given strength lie from the move."""
    assert curve.draws is not None

    def moves(values: np.ndarray) -> np.ndarray:
        return np.array([np.interp(strength, curve.strength, row) for row in values])

    whole = moves(curve.value[None]) - curve.value[curve.origin]
    drawn = moves(curve.draws) - curve.draws[:, curve.origin]
    tail = (1 - level) / 2
    return np.quantile(drawn - whole, [tail, 1 - tail])


def _estimate(interval: Any) -> Estimate:
    return Estimate(*map(float, interval))


def _verdict(found: Comparison | None) -> str:
    return FEW if found is None else found.verdict


def _parameter(found: Comparison | None, name: str) -> Estimate:
    if found is None:
        return Estimate(np.nan)
    return _estimate(found.fits[0].parameters[name])


def _fitted(found: Comparison | None, r: np.ndarray) -> np.ndarray:
    if found is None or found.fits[0].problem:
        return np.full(len(r), np.nan)
    return np.asarray(found.fits[0].value(r).estimate)


@dataclass(frozen=True)
class CrossSteeringResult(Result):
    """Each model pushed along the other's direction."""

    kind = "cross_steering"
    title = "Each model steered by the other's direction"
    how = """
The curves of *What steering gains and costs* in each model along its own direction and along the \
other's, of length 1 too, at the same strengths. slope: of behaviour at r = 0 in closed form, with \
its 95 % bootstrap interval. Where base's direction has lost its slope in aligned, alignment has \
moved the handle, whatever the cosine says.

    slope(v̂, model) = d/dr [P(agree) − P(refuse)] at r = 0, r · v̂ added to that model's stream

Sources: those of what steering gains and costs, Wolf et al. (2024); directions carried from one \
model to the other are ours.
""".strip()

    base_in_aligned: Estimate = value("of own slope")
    """Slope of base's direction in aligned over that of aligned's own."""
    aligned_in_base: Estimate = value("of own slope")
    """Slope of aligned's direction in base over that of base's own."""

    steered: np.ndarray = column()
    """[row] the model that is pushed."""
    direction: np.ndarray = column()
    """[row] the model whose direction it is."""
    strength: np.ndarray = column("of the stream")
    """[row] r."""
    behaviour: np.ndarray = column("of behaviour")
    """[row] P(agree) − P(refuse)."""
    capability: np.ndarray = column("of capability")
    """[row] mean probability of what is right."""
    slope: np.ndarray = column("per unit of r")
    """[row] of behaviour at 0, in closed form; the same in all rows of a push."""
    low: np.ndarray = column("per unit of r")
    """[row] lower end of its interval."""
    high: np.ndarray = column("per unit of r")
    """[row] upper end of it."""

    layers: str = fact()
    """Blocks at which the push is made."""

    def summary(self) -> str:
        """Both ratios of slopes."""
        return (
            f"Base's direction moves aligned by {self.base_in_aligned} of what aligned's own does "
            f"to first order, and aligned's direction moves base by {self.aligned_in_base} of what "
            "base's own does."
        )

    def figure(self) -> "figures.Figure":
        """Behaviour over strength in both models along both directions."""
        figure, panels = figures.panels(2)
        for panel, model in zip(panels, ("base", "aligned"), strict=True):
            lines, x = {}, np.empty(0)
            for origin in ("base", "aligned"):
                mine = (self.steered == model) & (self.direction == origin)
                lines[f"{origin}'s direction"], x = self.behaviour[mine], self.strength[mine]
            figures.curves(x, lines, xlabel=f"strength r in {model}", ylabel="behaviour", on=panel)
        return figure


@dataclass(frozen=True)
class SteeringByLayerResult(Result):
    """What a small push would do at every block, from gradients alone."""

    kind = "steering_by_layer"
    title = "Where a push takes hold"
    how = """
For a push of one E‖h‖ along each block's own direction, to first order, from one backward pass: \
gain = E‖h‖ · ⟨∂ log-odds of agreeing / ∂h, v̂⟩, and cost = −E‖h‖ · ⟨∂ ln P(right) / ∂h, v̂⟩, both \
in nats, the gradient summed over the tokens that are pushed, mean over items (over tokens, of \
texts), with 95 % bootstrap intervals. To first order alone: what saturates is not seen here. A \
block that nobody named is that of the most gain, mean over both models, among the lower 80 %; it \
is chosen on one item in four, and all curves are of the others.

The comparison of blocks is ours.
""".strip()

    model: np.ndarray = column()
    """[row] base or aligned."""
    layer: np.ndarray = column()
    """[row] number of the block."""
    gain: np.ndarray = column("nats")
    """[row] of log-odds of agreeing."""
    low: np.ndarray = column("nats")
    """[row] lower end of its interval."""
    high: np.ndarray = column("nats")
    """[row] upper end of it."""
    cost: np.ndarray = column("nats")
    """[row] of ln P(right)."""
    cost_low: np.ndarray = column("nats")
    """[row] lower end of its interval."""
    cost_high: np.ndarray = column("nats")
    """[row] upper end of it."""

    chosen: str = fact()
    """The blocks that are steered."""
    asked: bool = fact()
    """Whether the caller named them."""
    choosing: int = fact("items")
    """Items of behaviour that the block was chosen by."""

    def summary(self) -> str:
        """What was chosen, and out of how many."""
        count = len(set(self.layer.tolist()))
        own = f"the best of {count} by {self.choosing} items kept for that"
        how = "as asked" if self.asked else own
        rows = self.layer == int(self.chosen.split("-")[0].split(",")[0])
        alone = len(set(self.model.tolist())) == 1
        said = ", ".join(
            f"{shown(gain, 3)} nats" + ("" if alone else f" in {model}")
            for model, gain in zip(self.model[rows], self.gain[rows].tolist(), strict=True)
        )
        return (
            f"Steered at block {self.chosen} ({how}): a push of one E‖h‖ would move the log-odds "
            f"of agreeing by {said}, to first order."
        )

    def figure(self) -> "figures.Figure":
        """Gain and cost by block."""
        figure, panels = figures.panels(2)
        models = list(dict.fromkeys(self.model.tolist()))
        for panel, name, low, high, ylabel in (
            (panels[0], "gain", self.low, self.high, "gain [nats of log-odds per E‖h‖]"),
            (panels[1], "cost", self.cost_low, self.cost_high, "cost [nats of ln P(right)]"),
        ):
            rows = {model: self.model == model for model in models}
            figures.curves(
                self.layer[rows[models[0]]],
                {model: getattr(self, name)[mine] for model, mine in rows.items()},
                bands={model: (low[mine], high[mine]) for model, mine in rows.items()},
                xlabel="block",
                ylabel=ylabel,
                on=panel,
            )
        return figure
