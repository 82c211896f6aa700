"""The alignment tax of a steering direction, from gradients of what is to be kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from driftlens.formulas.intervals import bootstrap
from driftlens.formulas.tax import tax_frontier, tax_rate
from driftlens.results import Estimate, Result, column, fact, figures, value

POINTS = 61
"""Of the frontier that is drawn."""


@dataclass(frozen=True)
class TaxRateResult(Result):
    """How much of a direction lies along what capabilities depend on."""

    kind = "tax_rate"
    title = "Alignment tax of the direction"
    how = """
Each task (topic of the capability packs) has the gradient of ln P(right) by the state, summed \
over the tokens that are pushed and averaged over its items. rate = τ = ‖P_C v̂‖², the share of \
the direction in the span of the m tasks' gradients, orthonormalised (Young, "What Is the \
Alignment Tax?", arXiv 2603.00047); of a single task τ_i = ⟨v̂, ĉ_i⟩². chance = m / d \
is the mean over random directions, p_value the chance of so large a τ: Beta(m/2, (d − m)/2). \
slope = ⟨v̂, c_i⟩, change of ln P(right) per unit of strength to first order, with its 95 % \
bootstrap interval over items.

frontier: ΔS = ΔC cos α + sin α √(B² − ΔC²), with cos α = √τ and B = 1: the most alignment that a \
step of length 1 gains at a given change of capability, both per unit length of their gradients; \
√(1 − τ) is free. Checked against the measured curve: slope_swept is the derivative at 0 of the \
mean ln P(right) over the strengths that were run.
""".strip()

    rate: Estimate = value("of v̂")
    """τ of all tasks together, at the steered block."""
    excess: Estimate = value("of v̂")
    """τ − m/d there."""
    free: Estimate = value("of the gain")
    """√(1 − τ), the share of the gain that costs nothing."""
    slope_closed: Estimate = value("nats per unit of r")
    """Change of ln P(right) per unit of strength over all items, from gradients."""
    slope_swept: Estimate = value("nats per unit of r")
    """The same by differences of the measured curve."""

    model: np.ndarray = column()
    """[row] base or aligned."""
    layer: np.ndarray = column()
    """[row] number of the block."""
    task: np.ndarray = column()
    """[row] the topic; `all` is their span."""
    rate_by: np.ndarray = column("of v̂", named="rate")
    """[row] τ of the span, or of the task alone."""
    chance: np.ndarray = column("of v̂")
    """[row] its mean over random directions."""
    p_value: np.ndarray = column()
    """[row] share of random directions with as large a τ."""
    cosine: np.ndarray = column("cosine")
    """[row] of the direction with the task's gradient; NaN of all."""
    slope: np.ndarray = column("nats per unit of r")
    """[row] change of the task's ln P(right) per unit of strength; of all, over all items."""
    low: np.ndarray = column("nats per unit of r")
    """[row] lower end of its interval."""
    high: np.ndarray = column("nats per unit of r")
    """[row] upper end of it."""

    steered: str = fact()
    """The model that the values speak of."""
    at: int = fact()
    """The block that they speak of."""
    tasks: int = fact("tasks")
    """m, dimensions of the span."""
    width: int = fact()
    """d, width of the stream."""

    def summary(self) -> str:
        """τ against chance, and the check."""
        rows = (self.model == self.steered) & (self.layer == self.at) & (self.task == "all")
        p_value = float(self.p_value[rows][0])
        who = self.steered if "aligned" in self.model.tolist() else "the model"
        whose = "task's gradient" if self.tasks == 1 else "tasks' gradients"
        return (
            f"At block {self.at} of {who} {self.rate.value:.1%} of the direction lies in "
            f"the span of {self.tasks} {whose} (chance {self.tasks / self.width:.1%}, "
            f"p = {p_value:.3g}); per unit of strength ln P(right) changes by {self.slope_closed} "
            f"nats from gradients, {self.slope_swept} by the sweep."
        )

    def figure(self) -> "figures.Figure":
        """τ by layer against chance, and the frontier at the steered block."""
        figure, panels = figures.panels(2)
        models = list(dict.fromkeys(self.model.tolist()))
        rows = {m: (self.model == m) & (self.task == "all") for m in models}
        layers = self.layer[rows[models[0]]]
        lines = {model: self.rate_by[mine] for model, mine in rows.items()}
        lines["chance"] = self.chance[rows[models[0]]]
        figures.curves(layers, lines, xlabel="block", ylabel="tax rate τ [of v̂]", on=panels[0])
        change = np.linspace(-1, 1, POINTS)
        cosine = np.sqrt(self.rate.value)
        figures.curves(
            change,
            {
                f"τ = {self.rate.value:.3f}": tax_frontier(change, cosine),
                "chance": tax_frontier(change, np.sqrt(self.tasks / self.width)),
            },
            xlabel="change of capability ΔC [B = 1]",
            ylabel="most gain ΔS [B = 1]",
            on=panels[1],
        )
        panels[1].set_xticks([-1, -0.5, 0, 0.5, 1])
        return figure


class Tasks(NamedTuple):
    """Gradients of capability by the state, item by item."""

    gradients: np.ndarray
    """[item, model, layer, width] of ln P(right), summed over the tokens that are pushed."""

    weights: np.ndarray
    """[item] how much each counts: its scored tokens."""

    names: np.ndarray
    """[item] its task."""

    clusters: np.ndarray
    """[item] numbers; those of one are resampled together."""


def taxed(
    tasks: Tasks,
    units: np.ndarray,
    models: Sequence[str],
    layers: Sequence[int],
    *,
    steered: str,
    at: int,
    swept: Estimate,
    seed: int,
    level: float,
) -> TaxRateResult:
    """The tax rate of each model's direction at each layer.

    Args:
        tasks: The gradients.
        units: [model, layer, width] directions of length 1.
        models: Their names.
        layers: Numbers of the blocks.
        steered: The model that the values speak of.
        at: The block that they speak of.
        swept: Slope at 0 of the measured mean ln P(right) there.
        seed: Of the bootstrap.
        level: Share of bootstrap draws that an interval holds.
    """
    names = list(dict.fromkeys(tasks.names.tolist()))
    rows: dict[str, list] = {name: [] for name in _ROWS}
    values: dict[str, object] = {}
    for number, model in enumerate(models):
        for place, layer in enumerate(layers):
            mine = tasks.gradients[:, number, place]
            unit = units[number, place]
            means = np.stack([_mean(mine, tasks.weights, tasks.names == name) for name in names])
            found = tax_rate(unit, means)
            along = mine @ unit
            for task in ("all", *names):
                some = np.ones(len(along), bool) if task == "all" else tasks.names == task
                slope = bootstrap(
                    along[some],
                    tasks.weights[some],
                    seed=seed,
                    level=level,
                    clusters=tasks.clusters[some],
                )
                one = names.index(task) if task != "all" else -1
                whole = task == "all"
                for name, cell in (
                    ("model", model),
                    ("layer", layer),
                    ("task", task),
                    ("rate_by", float(found.rate) if whole else found.cosine[one] ** 2),
                    ("chance", found.chance if whole else 1 / len(unit)),
                    ("p_value", float(found.p_value) if whole else found.task_p_value[one]),
                    ("cosine", np.nan if whole else found.cosine[one]),
                    ("slope", float(slope.estimate)),
                    ("low", float(slope.low)),
                    ("high", float(slope.high)),
                ):
                    rows[name].append(cell)
                if whole and (model, layer) == (steered, at):
                    values = {
                        "rate": float(found.rate),
                        "excess": float(found.excess),
                        "free": float(found.free),
                        "slope_closed": Estimate(*map(float, slope)),
                        "tasks": found.rank,
                    }
    return TaxRateResult.of(
        **rows,
        **values,
        slope_swept=swept,
        steered=steered,
        at=at,
        width=units.shape[-1],
    )


_ROWS = (
    *("model", "layer", "task", "rate_by", "chance", "p_value", "cosine", "slope", "low", "high"),
)


def _mean(rows: np.ndarray, weights: np.ndarray, some: np.ndarray) -> np.ndarray:
    return np.asarray(rows[some].sum(0) / weights[some].sum())
