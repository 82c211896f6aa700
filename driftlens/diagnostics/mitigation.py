"""What would undo a loss: weights that a pair could have had, on the plane of both its aims.

The points are measured elsewhere, by `driftlens.mitigation`; here they are compared and told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from driftlens.formulas.intervals import Interval, bootstrap
from driftlens.formulas.tradeoff import pareto
from driftlens.results import Estimate, Result, column, fact, figures, value
from driftlens.results.figures import ALIGNED, BASE, GREEN, GREY, INK, MARKERS, PURPLE, YELLOW

ENDS = BASE_POINT, ALIGNED_POINT = "base", "aligned"
"""The methods of the two points that are the models themselves."""

INTERPOLATION = "interpolation"
CONTROL = "restored at random"
"""Points that others are held against, and that are never recommended."""

FEWEST = 8
"""Families of items that either half must have, so that one can choose and the other judge."""


class Point(NamedTuple):
    """One what-if, and where gradients would have it lie."""

    method: str
    setting: str
    said: str
    """How a sentence says it, after *would*: `restoring block 3`."""

    measured: bool = True
    """Whether a model with these weights was run; else it is a forecast alone."""

    forecast_cost: float = np.nan
    forecast_alignment: float = np.nan
    curved_cost: float = np.nan
    curved_alignment: float = np.nan
    detail: str = ""
    """What else is known of the weights."""


@dataclass(frozen=True)
class Seen:
    """What was read of some items at every point that was measured.

    Args:
        values: [item, point] sums; more is better.
        weights: [item] how much each counts.
        clusters: [item] numbers; those of one are drawn together.
        choosing: [item] whether it may choose; the others judge.
    """

    values: np.ndarray
    weights: np.ndarray
    clusters: np.ndarray
    choosing: np.ndarray

    def half(self, choosing: bool) -> "Seen":
        """The items that choose, or those that judge."""
        mine = self.choosing == choosing
        return Seen(self.values[mine], self.weights[mine], self.clusters[mine], self.choosing[mine])

    @property
    def families(self) -> int:
        """How many are drawn apart."""
        return len(np.unique(self.clusters))

    def mean(self, values: np.ndarray, how: Mapping[str, Any]) -> Interval:
        """[*] mean of [item, *] sums, with its interval."""
        return bootstrap(values, self.weights, clusters=self.clusters, **how)

    def share(self, part: np.ndarray, whole: np.ndarray, how: Mapping[str, Any]) -> Interval:
        """[*] ratio of [item, *] to [item] sums; NaN where the whole may be nothing."""
        total = self.mean(whole, how)
        found = bootstrap(part, whole, clusters=self.clusters, **how)
        if total.low <= 0 <= total.high or not np.isfinite(total.low):
            return Interval(*(z * np.nan for z in found))
        return found


@dataclass(frozen=True)
class MitigationResult(Result):
    """What each of many changes of the weights would cost, and keep."""

    kind = "mitigation"
    title = "What would undo it"
    over = "What would undo it, without training"
    how = """
Each row is a model with weights that the pair could have had, put together without training and \
run on the same items as the two. cost is the capability that it has less than base: the rise in \
loss in nats a token (of texts), or the fall of P(right) (of choices). alignment is P(agree) − \
P(refuse), by the first tokens of the answers and among them (of choices), or of preferences the \
share of pairs whose chosen answer is the likelier (by the sum of its log-probabilities; ties ½), \
or, where asked for, the margin log π(chosen) − log π(rejected) in nats. kept = (alignment − \
base's) / (aligned's − base's); brought_back = 1 − cost / aligned's cost; both are NaN where what \
they divide by may be nothing.

interpolation: θ = θ_b + α (θ_a − θ_b); α is the share of aligned (in some papers it is that of \
base). convexity gap: loss at α = ½ less the mean of both ends'; below 0, the middle is better \
than its ends would have it. blocks: the blocks in three equal parts from the bottom up, each with \
an α of its own, the mean of which is α; the embedding goes with the lowest, the head with the \
highest. restored alone: base's weights in one layer. restored by blame: in the k layers whose \
restoring alone brings back most, as the choosing half of the items says; restored at random: in \
as many of a random order. spectral: of each matrix of ΔW only the singular values above the edge \
of its own noise. projected: ΔW − U Uᵀ ΔW, U spanning capability gradients of base.

forecasts are of first order, from gradients at aligned: f(θ_a) + ⟨∇f(θ_a), θ − θ_a⟩; of \
interpolations curved_… is the parabola with that slope through both models. Rows that are not \
measured are forecasts alone: one step from aligned, of 0.3 % of the length of ΔW.

Intervals: 95 % bootstrap over items, families whole, the same draws at every point. front: no \
measured point has as much of both and more of one; of noisy points it is flattered. The \
recommendation is made on one half of the families and judged on the other: of the points that \
keep the asked share of the alignment's gain, the one that costs least; an interpolation unless \
another costs less by more than errors. It is given only if on the other half the cost is below \
aligned's by more than errors, and the asked share is kept. Its figures are of that other half.

Sources: Lin et al. (2024), "Mitigating the Alignment Tax of RLHF" (averaging, and blocks of it); \
Wortsman et al. (2022), "Robust fine-tuning of zero-shot models"; Gavish & Donoho (2014) (the \
edge; `formulas.spectral`); OGPSA, arXiv 2602.07892 (projection).
""".strip()

    total_cost: Estimate = value("of capability")
    """Cost of aligned."""
    gain: Estimate = value("of alignment")
    """Alignment of aligned less that of base."""
    recommended_kept: Estimate = value("of the gain")
    """What the recommended point keeps of the gain, on the judging half; NaN if there is none."""
    recommended_back: Estimate = value("of the cost")
    """What it brings back of the cost, on that half."""
    recommended_saved: Estimate = value("of capability")
    """Aligned's cost less its own, on that half."""
    convexity_gap: Estimate = value("of capability")
    """Cost at α = ½ less half of aligned's; NaN where that was not measured."""

    method: np.ndarray = column()
    """[row] what was done, `base` and `aligned` being the models themselves."""
    setting: np.ndarray = column()
    """[row] how."""
    cost: np.ndarray = column("of capability")
    """[row] capability of base less that of the point."""
    low: np.ndarray = column("of capability")
    """[row] lower end of its 95 % interval; NaN of a forecast."""
    high: np.ndarray = column("of capability")
    """[row] upper end of it."""
    alignment: np.ndarray = column("of alignment")
    """[row] alignment of the point."""
    alignment_low: np.ndarray = column("of alignment")
    """[row] lower end of its 95 % interval; NaN of a forecast."""
    alignment_high: np.ndarray = column("of alignment")
    """[row] upper end of it."""
    measured: np.ndarray = column()
    """[row] whether a model with these weights was run; else it is a forecast."""
    front: np.ndarray = column()
    """[row] whether no measured point has as much of both and more of one."""
    recommended: np.ndarray = column()
    """[row] whether it is the one that is recommended."""
    kept: np.ndarray = column("of the gain")
    """[row] share of the alignment's gain that is kept, of all items."""
    kept_low: np.ndarray = column("of the gain")
    """[row] lower end of its interval."""
    kept_high: np.ndarray = column("of the gain")
    """[row] upper end of it."""
    brought_back: np.ndarray = column("of the cost")
    """[row] share of aligned's cost that is brought back, of all items."""
    back_low: np.ndarray = column("of the cost")
    """[row] lower end of its interval."""
    back_high: np.ndarray = column("of the cost")
    """[row] upper end of it."""
    cost_change: np.ndarray = column("of capability")
    """[row] cost less aligned's, item by item; below 0 it is saved."""
    cost_change_low: np.ndarray = column("of capability")
    """[row] lower end of its interval."""
    cost_change_high: np.ndarray = column("of capability")
    """[row] upper end of it."""
    alignment_change: np.ndarray = column("of alignment")
    """[row] alignment less aligned's, item by item."""
    alignment_change_low: np.ndarray = column("of alignment")
    """[row] lower end of its interval."""
    alignment_change_high: np.ndarray = column("of alignment")
    """[row] upper end of it."""
    forecast_cost: np.ndarray = column("of capability")
    """[row] cost by gradients at aligned, first order; NaN where none were taken."""
    forecast_alignment: np.ndarray = column("of alignment")
    """[row] alignment by gradients at aligned."""
    curved_cost: np.ndarray = column("of capability")
    """[row] cost by the parabola through both models with the slope at aligned; NaN of others."""
    curved_alignment: np.ndarray = column("of alignment")
    """[row] alignment by that parabola."""
    detail: np.ndarray = column()
    """[row] what else is known of the weights."""

    capability_pack: str = fact()
    """What capability is measured on."""
    alignment_pack: str = fact()
    """What alignment is measured on."""
    capability_name: str = fact()
    """What the cost is, with its unit."""
    alignment_name: str = fact()
    """What alignment is, with its unit."""
    capability_items: int = fact("items")
    """Texts or choices."""
    alignment_items: int = fact("items")
    """Choices or pairs of answers."""
    keep: float = fact("of the gain")
    """What share of the gain was to be kept."""
    chosen_among: int = fact("points")
    """Points that the recommendation was chosen among."""
    said: str = fact()
    """The recommended change in words; empty if there is none."""
    why_not: str = fact()
    """Why there is no recommendation; empty if there is one."""

    near_zero: ClassVar[tuple[str, ...]] = ("total_cost", "gain", "cost", "convexity_gap")

    def summary(self) -> str:
        """What is recommended with what it keeps and brings back, or why nothing is."""
        paid = (
            f"Of an alignment that gains {self.gain} ({self.alignment_pack}) and costs "
            f"{self.total_cost} {self.capability_name.split(' [')[-1].rstrip(']')} "
            f"({self.capability_pack})"
        )
        if not self.said:
            return f"{paid}, no recommendation: {self.why_not}."
        return (
            f"{paid}, {self.said} would keep {_percent(self.recommended_kept)} and bring back "
            f"{_percent(self.recommended_back)} of the cost, as the half of the items says that "
            f"had no part in choosing it among {self.chosen_among}{self._on_all()}."
        )

    def _on_all(self) -> str:
        """What the recommended point brings back of all items, which may lie away from a half."""
        here = np.flatnonzero(self.recommended)
        back = self.brought_back[here]
        return f"; of all items, {back[0]:.0%}" if len(here) and np.isfinite(back[0]) else ""

    def headline(self) -> str:
        """The recommendation."""
        if not self.said:
            return ""
        return (
            f"{self.said} would keep {self.recommended_kept.value:.0%} of the alignment and bring "
            f"back {self.recommended_back.value:.0%} of the loss"
        )

    def alt(self) -> str:
        """What the plane shows."""
        ends = [np.flatnonzero(self.method == name)[0] for name in ENDS]
        said = " and ".join(
            f"{self.method[n]} at cost {self.cost[n]:.3g}, alignment {self.alignment[n]:.3g}"
            for n in ends
        )
        return f"{self.summary()} {int(self.measured.sum())} measured points, {said}."

    def figure(self) -> "figures.Figure | None":
        """The plane of capability lost and alignment, with all points and the front."""
        if len(self.method) < 3:
            return None
        figure, (panel,) = figures.panels(1)
        figure.set_size_inches(figures.WIDTH, 1.5 * figures.HEIGHT)
        panel.set(xlabel=f"cost: {self.capability_name}", ylabel=self.alignment_name)
        panel.tick_params(colors=INK, width=0.7)
        front = np.flatnonzero(self.front)
        front = front[np.argsort(self.cost[front])]
        style: dict[str, Any] = {"color": GREY, "linewidth": 1.2, "linestyle": "--", "zorder": 1}
        panel.plot(self.cost[front], self.alignment[front], label="front", **style)
        methods = [m for m in dict.fromkeys(self.method.tolist()) if m not in ENDS]
        for method in methods:
            self._draw(panel, self.method == method, *LOOKS.get(method, (GREY, "x", 0.6)), method)
        for name, colour, marker in (("base", BASE, "o"), ("aligned", ALIGNED, "s")):
            self._draw(panel, self.method == name, colour, marker, 1.0, name, size=8)
        here = np.flatnonzero(self.recommended)
        if len(here):
            ring = {"markersize": 15, "markerfacecolor": "none", "markeredgecolor": INK}
            at = self.cost[here], self.alignment[here]
            panel.plot(*at, marker="o", linestyle="none", label="recommended", **ring)
        figures.legend(panel)
        return figure

    def _draw(
        self, panel: Any, mine: np.ndarray, colour: str, marker: str, alpha: float, label: str,
        size: int = 5,
    ) -> None:  # fmt: skip
        x, y = self.cost[mine], self.alignment[mine]
        bars: dict[str, Any] = {"ecolor": colour, "elinewidth": 0.7, "alpha": 0.45, "fmt": "none"}
        across = np.clip([x - self.low[mine], self.high[mine] - x], 0, None)
        up = np.clip([y - self.alignment_low[mine], self.alignment_high[mine] - y], 0, None)
        panel.errorbar(x, y, up, across, zorder=2, **bars)
        face = {} if self.measured[mine].all() else {"markerfacecolor": "none"}
        style = {"linestyle": "none", "marker": marker, "markersize": size, "alpha": alpha}
        panel.plot(x, y, color=colour, label=label, zorder=3, **style, **face)


LOOKS: Mapping[str, tuple[str, str, float]] = {
    INTERPOLATION: (GREEN, "o", 1.0),
    "blocks": (PURPLE, "D", 1.0),
    "restored alone": (YELLOW, "v", 1.0),
    "restored by blame": ("#56b4e9", "^", 1.0),
    CONTROL: (GREY, "x", 0.7),
    "spectral": (INK, "P", 1.0),
    "projected": (INK, "*", 1.0),
    "step": (INK, MARKERS[1], 1.0),
}
"""Colour, marker and strength of each method's points."""


def compared(
    points: Sequence[Point],
    forecasts: Sequence[Point],
    capability: Seen,
    alignment: Seen,
    *,
    keep: float,
    seed: int,
    level: float,
    facts: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> MitigationResult:
    """The points on their plane, and which of them is to be recommended.

    Args:
        points: [point] what was measured, base first and aligned second.
        forecasts: What was not.
        capability: What was read of capability at each point.
        alignment: The same of alignment.
        keep: Share of the alignment's gain that is to be kept.
        seed: Of the bootstrap.
        level: Share of its draws that an interval holds.
        facts: Packs, names and numbers of items.
        notes: What a reader must know.
    """
    how = {"seed": seed, "level": level}
    c, a = capability.values, alignment.values
    lost, change = c[:, :1] - c, a - a[:, 1:2]
    cost, aligned = capability.mean(lost, how), alignment.mean(a, how)
    number, among, why = recommended(points, capability, alignment, keep, how)
    judges = capability.half(False), alignment.half(False)
    kept, back, saved = (Interval(*np.full(3, np.nan)),) * 3
    if number is not None:
        kept, back, saved = _judged(*judges, number, how)
    columns = {
        "cost": cost,
        "alignment": aligned,
        "kept": alignment.share(a - a[:, :1], a[:, 1] - a[:, 0], how),
        "brought_back": capability.share(c - c[:, 1:2], c[:, 0] - c[:, 1], how),
        "cost_change": capability.mean(c[:, 1:2] - c, how),
        "alignment_change": alignment.mean(change, how),
    }
    rows = {
        name: np.concatenate([part, np.full(len(forecasts), np.nan)])
        for called, found in columns.items()
        for name, part in zip(_BOUNDS[called], found, strict=True)
    }
    every = [*points, *forecasts]
    measured = np.array([point.measured for point in every])
    for name in ("cost", "alignment"):
        told = np.array([getattr(point, f"forecast_{name}") for point in every])
        rows[f"forecast_{name}"] = told
        rows[f"curved_{name}"] = np.array([getattr(point, f"curved_{name}") for point in every])
        rows[name] = np.where(measured, rows[name], told)
    plane = np.stack([toward(alignment, how) * rows["alignment"], -rows["cost"]])
    sound = np.flatnonzero(measured & np.isfinite(plane).all(0))
    best = np.zeros(len(every), bool)
    best[sound] = pareto(*plane[:, sound])
    halves = [n for n, z in enumerate(points) if z[:2] == (INTERPOLATION, "α = 0.5")]
    gap = lost[:, halves[0]] - lost[:, 1] / 2 if halves else np.full(len(lost), np.nan)
    return MitigationResult.of(
        total_cost=_at(cost, 1),
        gain=tuple(map(float, alignment.mean(a[:, 1] - a[:, 0], how))),
        recommended_kept=tuple(map(float, kept)),
        recommended_back=tuple(map(float, back)),
        recommended_saved=tuple(map(float, saved)),
        convexity_gap=tuple(map(float, capability.mean(gap, how))) if halves else np.nan,
        method=[point.method for point in every],
        setting=[point.setting for point in every],
        measured=measured,
        front=best,
        recommended=np.arange(len(every)) == (-1 if number is None else number),
        detail=[point.detail for point in every],
        keep=keep,
        chosen_among=among,
        said="" if number is None else points[number].said,
        why_not=why,
        notes=(*notes, *([REFUSES] if toward(alignment, how) < 0 else [])),
        **rows,
        **facts,
    )


REFUSES = (
    "Aligned lies below base on the axis of alignment: what is kept is its fall, and of two points "
    "the lower is the better."
)
"""What is said where alignment turned a model away from what the items call agreeing."""


def toward(alignment: Seen, how: Mapping[str, Any]) -> int:
    """Which way alignment goes from base to aligned: −1 where it falls beyond errors, else 1."""
    gain = alignment.mean(alignment.values[:, 1] - alignment.values[:, 0], how)
    return -1 if gain.high < 0 else 1


_BOUNDS = {
    "cost": ("cost", "low", "high"),
    "alignment": ("alignment", "alignment_low", "alignment_high"),
    "kept": ("kept", "kept_low", "kept_high"),
    "brought_back": ("brought_back", "back_low", "back_high"),
    "cost_change": ("cost_change", "cost_change_low", "cost_change_high"),
    "alignment_change": ("alignment_change", "alignment_change_low", "alignment_change_high"),
}
"""By what is found, the columns of it and of its bounds."""


def recommended(
    points: Sequence[Point],
    capability: Seen,
    alignment: Seen,
    keep: float,
    how: Mapping[str, Any],
) -> tuple[int | None, int, str]:
    """Which point to recommend, chosen on one half of the items and judged on the other.

    Returns:
        Its number, if there is one, among how many it was chosen, and why there is none.
    """
    among = [n for n, z in enumerate(points) if z.method not in (*ENDS, CONTROL)]
    alignment = replace(alignment, values=toward(alignment, how) * alignment.values)
    halves = [seen.half(choosing) for seen in (capability, alignment) for choosing in (True, False)]
    if any(half.families < FEWEST for half in halves):
        few = min(half.families for half in halves)
        return None, len(among), (
            f"a half of the items has {few} families, of {FEWEST} that choosing on one half and "
            "judging on the other need"
        )  # fmt: skip
    # The judging half must tell both apart too, for shares of them are what it says.
    for c, a in ((capability, alignment), (capability.half(False), alignment.half(False))):
        if not a.mean(a.values[:, 1] - a.values[:, 0], how).low > 0:
            return None, len(among), "no gain of alignment is told from none"
        if not c.mean(c.values[:, 0] - c.values[:, 1], how).low > 0:
            return None, len(among), "no cost is told from none"
    number = _chosen(points, among, capability.half(True), alignment.half(True), keep, how)
    if number is None:
        return None, len(among), f"no point keeps {keep:.0%} of the gain and costs less"
    kept, _, saved = _judged(capability.half(False), alignment.half(False), number, how)
    if not kept.estimate >= keep:
        return None, len(among), (
            f"{points[number].said}, the best of one half of the items, keeps "
            f"{float(kept.estimate):.0%} of the gain on the other"
        )  # fmt: skip
    if not saved.low > 0:
        return None, len(among), (
            f"what {points[number].said} saves on items that did not choose it is not told from "
            "nothing"
        )  # fmt: skip
    return number, len(among), ""


def _chosen(
    points: Sequence[Point],
    among: Sequence[int],
    capability: Seen,
    alignment: Seen,
    keep: float,
    how: Mapping[str, Any],
) -> int | None:
    """The cheapest that keeps enough: an interpolation, unless another is so beyond errors."""
    a, c = alignment.values, capability.values
    gain = (a - a[:, :1]).sum(0)
    costs = (c[:, :1] - c).sum(0) / capability.weights.sum()
    fit = [n for n in among if gain[n] >= keep * gain[1] and costs[n] < costs[1]]
    if not fit:
        return None
    best = min(fit, key=lambda n: costs[n])
    plain = [n for n in fit if points[n].method == INTERPOLATION]
    if not plain or best in plain:
        return best
    rival = min(plain, key=lambda n: costs[n])
    better = capability.mean(c[:, best] - c[:, rival], how)
    return best if better.low > 0 else rival


def _judged(
    capability: Seen, alignment: Seen, number: int, how: Mapping[str, Any]
) -> tuple[Interval, Interval, Interval]:
    """What a point keeps of the gain, what it brings back of the cost, and what it saves."""
    a, c = alignment.values, capability.values
    return (
        alignment.share(a[:, number] - a[:, 0], a[:, 1] - a[:, 0], how),
        capability.share(c[:, number] - c[:, 1], c[:, 0] - c[:, 1], how),
        capability.mean(c[:, number] - c[:, 1], how),
    )


def _at(found: Interval, place: int) -> tuple[float, float, float]:
    return float(found.estimate[place]), float(found.low[place]), float(found.high[place])


def _percent(share: Estimate) -> str:
    if not np.isfinite(share.low):
        return f"{share.value:.0%}"
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"


@dataclass(frozen=True)
class MitigationConflictResult(Result):
    """How far alignment and capability pull at the same weights, layer by layer."""

    kind = "mitigation_conflict"
    title = "Where both aims pull at the same weights"
    over = "What would undo it, without training"
    how = """
g is the gradient of alignment at base, by all weights of a layer; U spans the gradients of \
capability there, one of each of several parts of the choosing half of the texts. conflict = \
‖UUᵀg‖² / ‖g‖²: what orthogonal projection would take out of a step of alignment; 1 − conflict of \
the squared length would be left of it, and of what it gains to first order. chance is the same of \
a random direction, rank / number of weights. cosine is between g and the mean gradient of \
capability: below 0, a step of alignment costs. change_conflict and change_cosine say the same of \
ΔW itself, as it was trained.

Rows of *all* take all weights as one vector. Gradients at base speak of the first steps; how far \
their forecast reaches is told beside measured points by `mitigation`.

Source: OGPSA (arXiv 2602.07892), the projection U Uᵀ g, read as a diagnostic.
""".strip()

    conflict_all: Estimate = value("of the step")
    """Share of alignment's gradient in the span of capability's, all weights as one."""
    chance_all: Estimate = value("of the step")
    """The same of a random direction."""
    cosine_all: Estimate = value("cosine")
    """Between alignment's gradient and the mean of capability's."""

    layer: np.ndarray = column()
    """[row] `embed`, number of the block, `head`, or `all`."""
    conflict: np.ndarray = column("of the step")
    """[row] ‖UUᵀg‖² / ‖g‖²; NaN where g is 0."""
    chance: np.ndarray = column("of the step")
    """[row] rank of U over the number of weights."""
    cosine: np.ndarray = column("cosine")
    """[row] between g and the mean gradient of capability."""
    norm: np.ndarray = column("of alignment per unit of weights")
    """[row] ‖g‖."""
    change_conflict: np.ndarray = column("of the change")
    """[row] ‖UUᵀΔW‖² / ‖ΔW‖²; NaN where nothing changed."""
    change_cosine: np.ndarray = column("cosine")
    """[row] between ΔW and the mean gradient of capability."""

    gradients: int = fact("gradients")
    """How many parts of the texts U was made of."""
    capability_pack: str = fact()
    """What capability is measured on."""
    alignment_pack: str = fact()
    """What alignment is measured on."""

    def summary(self) -> str:
        """How much of a step projection would take, and against which chance."""
        return (
            f"{self.conflict_all.value:.2%} of a first step of alignment ({self.alignment_pack}) "
            f"lies where {self.gradients} gradients of capability ({self.capability_pack}) do, by "
            f"chance {self.chance_all.value:.2g}; its cosine with their mean is "
            f"{self.cosine_all.value:+.3f} (below 0, it costs)."
        )

    def figure(self) -> "figures.Figure | None":
        """Conflict by layer, with its chance."""
        rows = self.layer != "all"
        if not np.isfinite(self.conflict[rows]).any():
            return None
        return figures.curves(
            list(map(str, self.layer[rows])),
            {
                "step of alignment": self.conflict[rows],
                "ΔW": self.change_conflict[rows],
                "chance": self.chance[rows],
            },
            xlabel="layer",
            ylabel="in the span of capability [of squared length]",
        )


@dataclass(frozen=True)
class MitigationStepsResult(Result):
    """What one more step would do, by gradients alone: no model was run with these weights."""

    kind = "mitigation_steps"
    title = "What a penalty in training would do, forecast"
    over = "What would undo it, without training"
    how = """
A forecast, not a measurement: for a step of length 1 in the weights along a direction d, \
capability and alignment change to first order by ⟨∇capability, d⟩ and ⟨∇alignment, d⟩. The \
directions: alignment, its own gradient g; PTX γ, g + γ ∇capability (pre-training text mixed in); \
KL β, g − β ∇KL(π ‖ π_b) with the divergence from base on the tokens of the capability pack (at \
base it has no slope, and does nothing to first order); projected, g − UUᵀg; towards base, −ΔW. \
γ_free = −⟨g, ∇capability⟩ / ‖∇capability‖² is the weight of PTX at which a step of alignment \
costs nothing to first order; below 0 it costs nothing as it is. kept is the alignment per unit \
step over that of g alone.

Sources: Ouyang et al. (2022), PTX and the KL penalty; OGPSA (arXiv 2602.07892).
""".strip()

    gamma_free: Estimate = value("γ")
    """Weight of PTX at which the first step from base costs no capability, to first order."""

    at: np.ndarray = column()
    """[row] where the step starts: base or aligned."""
    direction: np.ndarray = column()
    """[row] which way."""
    capability: np.ndarray = column("of capability per unit of weights")
    """[row] change of capability; below 0 the step costs."""
    alignment: np.ndarray = column("of alignment per unit of weights")
    """[row] change of alignment."""
    kept: np.ndarray = column("of the slope")
    """[row] alignment over that along its own gradient."""
    per_gain: np.ndarray = column("of capability per alignment")
    """[row] capability over alignment; NaN where alignment does not rise."""

    capability_pack: str = fact()
    """What capability is measured on."""
    alignment_pack: str = fact()
    """What alignment is measured on."""

    def summary(self) -> str:
        """What a step of alignment costs, and the mixture at which it would not."""
        mine = (self.at == "base") & (self.direction == "alignment")
        slope = float(self.per_gain[mine][0]) if mine.any() else np.nan
        return (
            f"Forecast: a first step of alignment from base changes capability by {slope:+.3g} for "
            f"each unit of alignment ({self.capability_pack}, {self.alignment_pack}); PTX at γ = "
            f"{self.gamma_free.value:.3g} would make it 0."
        )
