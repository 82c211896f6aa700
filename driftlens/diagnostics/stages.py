"""What each stage of training has of what came of them all: results against results."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, nan
from typing import NamedTuple

import numpy as np

from driftlens.formulas.intervals import bootstrap
from driftlens.results import Estimate, Result, column, fact, figures, shown, value

ADDS, CHANGE, APART = "adds", "change", "apart"
"""What adds up stage by stage; what is a change of something that each model has alone, and so
adds up too; and what does not."""

RULES = (ADDS, CHANGE, APART)

LEFT_OUT = {"noise_floor"}
"""Kinds whose values are of the measurement and not of the models."""

SHOWN = 4
"""Packs that the figure has room for, and stages that the first sentence has room for."""

ROUNDING = 1e-6
"""How large a residual rounding explains, of what was added up, where no noise is known."""


@dataclass(frozen=True)
class StagesResult(Result):
    """What each stage of training has of every headline figure."""

    kind = "stages"
    title = "Stage by stage"
    over = "What each stage of training cost, in nats"
    how = """
Every stage is a pair of its own, of the model before it and the model after it, and the whole is \
the pair of the first and the last model; all are shown the same tokens in the same windows.

adds: a difference of losses, log p_base − log p_aligned of the same tokens, telescopes,

    whole = Σ stages,   (ℓ₁ − ℓ₀) + (ℓ₂ − ℓ₁) + … = ℓₙ − ℓ₀,

so that a stage's share of the whole, its number over that of the whole, has a meaning: shares \
add up to 1, and one is below 0 where a stage gave back what the others took. residual = whole − \
Σ stages is what rounding leaves. change: what a value of either model alone (an entropy, a \
score) is after a stage less what it was before; it adds up for the same reason, but has no \
interval, and so no shares are told of it.

apart: distances, divergences, angles, ratios and probes' readings do not add up: their residual \
is no error, and they have no shares. Of KL, for instance, a stage may undo another's.

Intervals of a number are those that the pair's own result has, for losses 95 % of a paired \
bootstrap over documents; the same documents are drawn in every stage. Intervals of a share are \
those of a ratio of sums over documents, stage over whole, in the same bootstrap, where every \
token's loss was kept, and else there are none. Of a whole that is not \
above its noise floor, or whose interval includes none, no shares are told.

That differences telescope needs no source; the table is ours.
""".strip()

    whole: Estimate = value("")
    """The figure that the first sentence speaks of, from the first model to the last."""
    largest_stage: Estimate = value("")
    """The same of the stage with the largest size."""
    largest_share: Estimate = value("of the whole")
    """What that stage has of the whole; NaN where that may be nothing."""
    residual: Estimate = value("")
    """Whole minus the sum of the stages."""

    packs: np.ndarray = column(named="pack")
    """[row] pack."""
    diagnostic: np.ndarray = column()
    """[row] kind of the result."""
    quantity: np.ndarray = column()
    """[row] name of the value; with `_change`, of what the value is after less before."""
    stage: np.ndarray = column()
    """[row] number of the stage, from 1; 0 is the whole."""
    span: np.ndarray = column()
    """[row] from which model to which."""
    number: np.ndarray = column()
    """[row] the value."""
    low: np.ndarray = column()
    """[row] lower end of its interval; NaN where none is known."""
    high: np.ndarray = column()
    """[row] upper end of it."""
    measured_in: np.ndarray = column(named="unit")
    """[row] its unit."""
    share: np.ndarray = column("of the whole")
    """[row] what the stage has of the whole; NaN where that does not add up or may be nothing."""
    share_low: np.ndarray = column("of the whole")
    """[row] lower end of its interval."""
    share_high: np.ndarray = column("of the whole")
    """[row] upper end of it."""
    rule: np.ndarray = column()
    """[row] `adds`, `change` or `apart`."""
    before: np.ndarray = column()
    """[row] what the model before has alone; NaN where it is no such value."""
    after: np.ndarray = column()
    """[row] what the model after has."""
    unsummed: np.ndarray = column(named="residual")
    """[row] whole minus the sum of the stages, the same in each of its rows."""
    noise: np.ndarray = column(named="noise_floor")
    """[row] size below which the value cannot be told from noise; NaN where that is not known."""

    models: tuple[str, ...] = fact()
    """The models, in the order of training."""
    foremost: tuple[str, ...] = fact()
    """Pack, kind and name of the value that the first sentence speaks of."""

    def rows_of(self, pack: str, diagnostic: str, quantity: str) -> dict[str, np.ndarray]:
        """Of one quantity, [span] each column: the whole first, then the stages in order."""
        mine = self.packs == pack
        mine &= (self.diagnostic == diagnostic) & (self.quantity == quantity)
        return {name: rows[mine] for name, rows in self.columns().items()}

    def unit(self, name: str) -> str:
        """Of values the unit of the foremost; of all else what is declared."""
        if name in ("whole", "largest_stage", "residual") and self.foremost:
            return str(self.rows_of(*self.foremost)["unit"][0])
        return super().unit(name)

    def summary(self) -> str:
        """The foremost value and what each stage has of it; how many values add up."""
        if not self.foremost:
            return "No value that adds up was measured in every stage."
        adding = self.rule != APART
        spans = len(self.models)
        said = self.headline()
        return (
            f"{said[0].upper()}{said[1:]}. {int(adding.sum()) // spans} values add up stage by "
            f"stage, with residuals of at most {np.nanmax(np.abs(self.unsummed[adding])):.1e}; "
            f"{int((~adding).sum()) // spans} do not."
        )

    def headline(self) -> str:
        """The whole of the foremost value, and what each stage has of it."""
        if not self.foremost:
            return ""
        rows = self.rows_of(*self.foremost)
        parts = [_part(rows, row, self.foremost[1]) for row in self._told(rows)]
        if rest := len(rows["span"]) - 1 - len(parts):
            parts.append(f"the rest in {rest} other {'stage' if rest == 1 else 'stages'}")
        mark = "," if isfinite(rows["share"][0]) else ":"
        return f"{_whole(rows, self.foremost)}{mark} {', '.join(parts)}"

    def _told(self, rows: Mapping[str, np.ndarray]) -> list[int]:
        """The stages that the first sentence names, in their order: the largest of many."""
        order = np.argsort(-np.abs(rows["number"][1:]), kind="stable")[:SHOWN]
        return (np.sort(order) + 1).tolist()

    def figure(self) -> "figures.Figure | None":
        """Of each pack the value that adds up and is told first, stage by stage and in all."""
        first = list(self._first())
        if not first:
            return None
        figure, panels = figures.panels(len(first))
        for panel, key in zip(panels, first, strict=True):
            rows = self.rows_of(*key)
            order = [*range(1, len(rows["span"])), 0]
            floor = rows["noise_floor"].max()
            figures.bars(
                [*(f"{n}: {rows['span'][n]}" for n in order[:-1]), "whole"],
                *(rows[name][order] for name in ("number", "low", "high")),
                xlabel="stage",
                ylabel=f"{key[2].replace('_', ' ')}, {key[0]} [{rows['unit'][0]}]",
                floor=float(floor) if isfinite(floor) else None,
                on=panel,
            )
        return figure

    def _first(self) -> Iterator[tuple[str, str, str]]:
        for pack in list(dict.fromkeys(self.packs.tolist()))[:SHOWN]:
            mine = np.flatnonzero((self.packs == pack) & (self.rule != APART))
            if len(mine):
                yield pack, self.diagnostic[mine[0]], self.quantity[mine[0]]


@dataclass(frozen=True)
class StageLayersResult(Result):
    """Which stage of training did what at which layer."""

    kind = "stage_layers"
    title = "Stage by layer"
    how = """
Of each stage, and of the whole, what the pair's own results say of each layer. Where these divide \
the rise in loss (layer forgetting: mean share of both orders; weight path: all components of a \
layer together) the cells of a stage add up to its rise, and the cells of all stages to the whole \
rise. One layer's cells need not add up to what the whole's own division gives that layer: what a \
layer does depends on what the stages before it have left around it, and the straight way from \
the first model to the last is another one than that by the models between. by_path = the whole's \
number less the sum of the stages': of one layer it is no error, and over all layers it adds up \
to what rounding (and, of weights, the rule of the integral) leaves. Drift is a distance, and adds \
up neither over layers nor over stages.

The table is ours; the shares are as *Forgetting by layer* and *Forgetting by weights* define \
them.
""".strip()

    cells: Estimate = value("nats/token")
    """Sum of the cells of every stage and layer, of the first method on the first pack."""
    residual: Estimate = value("nats/token")
    """The whole's cells, added up, less that."""

    packs: np.ndarray = column(named="pack")
    """[row] pack."""
    diagnostic: np.ndarray = column()
    """[row] kind of the result."""
    quantity: np.ndarray = column()
    """[row] name of its column."""
    stage: np.ndarray = column()
    """[row] number of the stage, from 1; 0 is the whole."""
    span: np.ndarray = column()
    """[row] from which model to which."""
    layer: np.ndarray = column()
    """[row] `embed`, number of the block, or `head`."""
    number: np.ndarray = column()
    """[row] what the layer has in the stage."""
    low: np.ndarray = column()
    """[row] lower end of its interval; NaN where none is known."""
    high: np.ndarray = column()
    """[row] upper end of it."""
    measured_in: np.ndarray = column(named="unit")
    """[row] its unit."""
    adds_up: np.ndarray = column()
    """[row] whether the cells of a stage add up to its rise in loss."""
    by_path: np.ndarray = column()
    """[row] the whole's number of that layer less the sum of the stages', in each of its rows."""

    models: tuple[str, ...] = fact()
    """The models, in the order of training."""

    def table_of(self, pack: str, diagnostic: str) -> tuple[list[str], list[str], np.ndarray]:
        """Spans, the whole first, layers in order, and [span, layer] what each has."""
        mine = np.flatnonzero((self.packs == pack) & (self.diagnostic == diagnostic))
        layers = list(dict.fromkeys(self.layer[mine].tolist()))
        spans = dict(zip(self.stage[mine].tolist(), self.span[mine].tolist(), strict=True))
        found = np.full((max(spans, default=-1) + 1, len(layers)), np.nan)
        for row in mine:
            found[self.stage[row], layers.index(self.layer[row])] = self.number[row]
        return [spans.get(n, "") for n in range(len(found))], layers, found

    def summary(self) -> str:
        """The cell with the most of the rise in loss, and what the cells leave."""
        methods = self._methods(divide=True)
        if not methods:
            return "Nothing that was measured in every stage divides a loss among layers."
        pack, diagnostic = methods[0]
        spans, layers, found = self.table_of(pack, diagnostic)
        stages = found[1:]
        stage, layer = np.unravel_index(np.nanargmax(np.abs(stages)), stages.shape)
        return (
            f"On {pack} the largest cell is {_layer(layers[layer])} in stage {stage + 1} "
            f"({spans[stage + 1]}): {shown(float(stages[stage, layer]), 3)} of "
            f"{shown(self.cells.value, 3)} nats a token; all cells together "
            f"leave {self.residual.value:.1e} of the whole."
        )

    def figure(self) -> "figures.Figure | None":
        """Stages by layers: the rise in loss as it is divided, and the drift of the stream."""
        rows = [*self._methods(divide=True)[:SHOWN], *self._methods(divide=False)[:2]]
        if not rows:
            return None
        figure, panels = figures.panels(len(rows))
        for panel, (pack, diagnostic) in zip(panels, rows, strict=True):
            spans, layers, found = self.table_of(pack, diagnostic)
            mine = (self.packs == pack) & (self.diagnostic == diagnostic)
            label = f"{_WORDS.get(diagnostic, diagnostic)}, {pack} [{self.measured_in[mine][0]}]"
            if self.adds_up[mine][0]:
                names = [*(f"{n}" for n in range(1, len(spans))), "whole"]
                figures.heatmap(
                    np.concatenate([found[1:], found[:1]]),
                    rows=names,
                    columns=layers,
                    xlabel="layer",
                    ylabel="stage",
                    label=label,
                    on=panel,
                )
            else:
                lines = {f"{n}: {spans[n]}": found[n] for n in range(1, len(spans))}
                figures.curves(
                    layers, lines | {"whole": found[0]}, xlabel="layer", ylabel=label, on=panel
                )
        return figure

    def _methods(self, *, divide: bool) -> list[tuple[str, str]]:
        rows = zip(self.packs.tolist(), self.diagnostic.tolist(), self.adds_up, strict=True)
        return list(dict.fromkeys((p, d) for p, d, divides in rows if divides == divide))


_WORDS = {
    "layer_forgetting": "rise by layer",
    "weight_path": "rise by weights",
    "drift": "drift",
}


class Reading(NamedTuple):
    """What the results of one pair say of one quantity."""

    number: Estimate
    unit: str
    floor: float
    rule: str
    ends: tuple[float, float] = (nan, nan)


Key = tuple[str, str, str]
"""Pack, kind and name."""


def staged(
    whole: Sequence[Result],
    stages: Sequence[Sequence[Result]],
    models: Sequence[str],
    *,
    clusters: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[StagesResult, StageLayersResult]:
    """What each stage has of what the whole pair's results say, in all and by layer.

    Args:
        whole: Results of the first model and the last.
        stages: [stage] results of each model and the next, of the same packs.
        models: [stage + 1] names of the models.
        clusters: [document] of each pack by name; those of one cluster are drawn together.
        seed: Of the bootstrap of shares.
        level: Part of its draws that an interval holds.
    """
    every = [whole, *stages]
    spans = spans_of(models)
    others = unlike(every)
    told = [readings(results) for results in every]
    draws = {pack: _draws(every, pack, clusters, seed, level) for pack in _packs(whole)}
    rows = [
        row
        for key in _order(told, others)
        for row in _rows(key, [of.get(key) for of in told], key[0] in others, draws[key[0]], spans)
    ]
    return _stages(rows, models, _notes(told, others, spans, rows)), _layers(every, models, spans)


def spans_of(models: Sequence[str]) -> list[str]:
    """From which model to which: of the whole, then of each stage."""
    ends = [(models[0], models[-1]), *pairwise(models)]
    return [f"{first} → {second}" for first, second in ends]


def readings(results: Sequence[Result]) -> dict[Key, Reading]:
    """What one pair's results say, quantity by quantity; changes beside what does not add up."""
    found: dict[Key, Reading] = {}
    for result in results:
        if result.kind in LEFT_OUT or not result.pack or result.sided:
            continue
        for name, reading in _values(result):
            found.setdefault((result.pack, result.kind, name), reading)
    return found | _sided(results)


def unlike(every: Sequence[Sequence[Result]]) -> set[str]:
    """Packs of which a stage was not shown the same tokens, so that nothing of it adds up."""
    counts: dict[str, set[tuple]] = {}
    for results in every:
        for result in results:
            if result.kind == "token_forgetting":
                columns = result.columns()
                kept = (columns["document"], columns["position"])
                places = result.values()["seen"]["value"], *(where.tobytes() for where in kept)
                counts.setdefault(result.pack, set()).add(places)
    return {pack for pack, places in counts.items() if len(places) > 1}


def _values(result: Result) -> Iterator[tuple[str, Reading]]:
    estimates = result.estimates()
    ends = {
        difference or f"{name}_change": (
            estimates[f"base_{name}"].value,
            estimates[f"aligned_{name}"].value,
            result.unit(f"base_{name}"),
        )
        for name, difference in result.levels.items()
    }
    alone = {f"{side}_{name}" for name in result.levels for side in ("base", "aligned")}
    for name in [*result.adds, *(name for name in estimates if name not in result.adds)]:
        if name in alone:
            continue
        estimate = estimates[name]
        rule = ADDS if name in result.adds else APART
        before, after, _ = ends.pop(name, (nan, nan, ""))
        floor = result.floor.get(name, nan)
        yield name, Reading(estimate, result.unit(name), floor, rule, (before, after))
    for name, (before, after, unit) in ends.items():
        yield name, Reading(Estimate(after - before), unit, nan, CHANGE, (before, after))


def _sided(results: Sequence[Result]) -> dict[Key, Reading]:
    """Changes of what each of two results of a kind says of one model."""
    found: dict[Key, Reading] = {}
    sides: dict[tuple[str, str, str], Result] = {}
    for result in results:
        if result.sided:
            sides.setdefault((result.pack, result.kind, getattr(result, "model", "")), result)
    for (pack, kind, model), after in sides.items():
        before = sides.get((pack, kind, "base"))
        if model != "aligned" or before is None:
            continue
        for name in after.sided:
            ends = before.estimates()[name].value, after.estimates()[name].value
            change = Estimate(ends[1] - ends[0])
            unit = after.unit(name)
            found[pack, kind, f"{name}_change"] = Reading(change, unit, nan, CHANGE, ends)
    return found


def _packs(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.pack for result in results))


def _order(told: Sequence[Mapping[Key, Reading]], others: set[str]) -> list[Key]:
    """What any pair says, what adds up first; what only repeats the rise in loss is left out."""
    known = (key for of in told for key in of if not np.isnan(of[key].number.value))
    keys = list(dict.fromkeys(known))
    first = {key: next(of[key] for of in told if key in of) for key in keys}
    kept = [key for key in keys if not _repeats(key, told)]
    return sorted(kept, key=lambda key: RULES.index(_rule(first[key].rule, key[0] in others)))


def _repeats(key: Key, told: Sequence[Mapping[Key, Reading]]) -> bool:
    pack, kind, name = key
    rise = (pack, "forgetting", "loss_rise")
    return (
        name == "total"
        and kind != "forgetting"
        and all(
            key in of and rise in of and of[key].number.value == of[rise].number.value
            for of in told
        )
    )


def _rule(rule: str, other: bool) -> str:
    return APART if other else rule


class _Row(NamedTuple):
    packs: str
    diagnostic: str
    quantity: str
    stage: int
    span: str
    number: float
    low: float
    high: float
    measured_in: str
    share: float
    share_low: float
    share_high: float
    rule: str
    before: float
    after: float
    unsummed: float
    noise: float
    summed: bool


def _rows(
    key: Key,
    told: Sequence[Reading | None],
    other: bool,
    draws: Sequence[Estimate] | None,
    spans: Sequence[str],
) -> Iterator[_Row]:
    """One quantity of the whole, then of each stage; NaN where a pair did not give it."""
    known = next(reading for reading in told if reading is not None)
    rule = _rule(known.rule, other)
    numbers = [Estimate(nan) if reading is None else reading.number for reading in told]
    residual = numbers[0].value - sum(number.value for number in numbers[1:])
    rounded = _rounded(residual, numbers, told)
    divided = rule == ADDS and rounded and told[0] is not None and _something(told[0])
    whole = numbers[0].value if divided else nan
    for stage, (reading, number) in enumerate(zip(told, numbers, strict=True)):
        share = Estimate(number.value / whole)
        if draws is not None and key[1] == "forgetting" and isfinite(share.value):
            share = _drawn(share, draws[stage])
        ends = reading.ends if reading else (nan, nan)
        floor = reading.floor if reading else nan
        told_as = (known.unit, *share, rule, *ends, residual, floor, rounded or rule == APART)
        yield _Row._make((*key, stage, spans[stage], *number, *told_as))


def _drawn(share: Estimate, drawn: Estimate) -> Estimate:
    """A share with the interval of the same ratio as it was drawn."""
    return share._replace(low=drawn.low, high=drawn.high)


def _rounded(residual: float, numbers: Sequence[Estimate], told: Sequence[Reading | None]) -> bool:
    """Whether a residual is no larger than rounding or noise explains; so is one that is not."""
    floor = max((of.floor for of in told if of and isfinite(of.floor)), default=0.0)
    size = sum(abs(number.value) for number in numbers)
    return not abs(residual) > max(ROUNDING * size, 3 * floor)


def _something(reading: Reading) -> bool:
    """Whether a whole stands above its noise floor, and its interval excludes 0 if it has one."""
    value, low, high = reading.number
    return value != 0 and not abs(value) <= reading.floor and not low <= 0 <= high


def _draws(
    every: Sequence[Sequence[Result]],
    pack: str,
    clusters: Mapping[str, Sequence[int]] | None,
    seed: int,
    level: float,
) -> list[Estimate] | None:
    """[span] its share of the whole rise in loss, with a paired interval over documents."""
    tables = [_by_document(results, pack) for results in every]
    whole = tables[0]
    if whole is None or any(
        of is None or not np.array_equal(of[0], whole[0]) or not np.array_equal(of[2], whole[2])
        for of in tables
    ):
        return None
    drawn_together = clusters and pack in clusters
    found = bootstrap(
        np.stack([of[1] for of in tables if of is not None], 1),
        whole[1],
        seed=seed,
        level=level,
        clusters=np.asarray(clusters[pack])[whole[0]] if clusters and drawn_together else None,
    )
    return [Estimate(*map(float, row)) for row in zip(*found, strict=True)]


def _by_document(
    results: Sequence[Result], pack: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """[document] numbers, rises in nats and scored tokens, if every token's loss was kept."""
    for result in results:
        if result.kind == "token_forgetting" and result.pack == pack:
            columns = result.columns()
            if len(columns["rise"]) < result.values()["seen"]["value"]:
                return None
            documents, places = np.unique(columns["document"], return_inverse=True)
            return documents, np.bincount(places, columns["rise"]), np.bincount(places)
    return None


def _notes(
    told: Sequence[Mapping[Key, Reading]],
    others: set[str],
    spans: Sequence[str],
    rows: Sequence[_Row],
) -> tuple[str, ...]:
    notes = [
        f"{pack} was not cut into the same tokens in every stage: nothing of it adds up."
        for pack in sorted(others)
    ]
    keys = {key for of in told for key in of}
    for span, of in zip(["the whole", *spans[1:]], told, strict=True):
        if missing := sorted({f"{kind} ({pack})" for pack, kind, _ in keys - of.keys()}):
            notes.append(f"Not measured in {span}: {', '.join(missing)}.")
    wrong = {f"{row.diagnostic}.{row.quantity} ({row.packs})" for row in rows if not row.summed}
    if wrong:
        notes.append(
            "These should add up and do not, by more than noise and rounding, and have no shares: "
            f"{', '.join(sorted(wrong))}. A model was not measured the same in two stages."
        )
    return tuple(notes)


def _stages(rows: Sequence[_Row], models: Sequence[str], notes: tuple[str, ...]) -> StagesResult:
    first = next((row for row in rows if row.rule == ADDS), None)
    mine = [row for row in rows if first and row[:3] == first[:3]]
    largest = max(mine[1:], key=lambda row: abs(row.number), default=None)
    columns = dict(zip(_Row._fields, zip(*rows, strict=True), strict=True)) if rows else {}
    return StagesResult.of(
        whole=_number(mine[0]) if mine else nan,
        largest_stage=_number(largest) if largest else nan,
        largest_share=Estimate(largest.share, largest.share_low, largest.share_high)
        if largest
        else nan,
        residual=mine[0].unsummed if mine else nan,
        models=tuple(models),
        foremost=first[:3] if first else (),
        notes=notes,
        **{name: list(columns.get(name, ())) for name in _Row._fields if name != "summed"},
    )


def _number(row: _Row) -> Estimate:
    return Estimate(row.number, row.low, row.high)


_CELLS = ("packs", "diagnostic", "quantity", "stage", "span", "layer", "number", "low", "high")


def _layers(
    every: Sequence[Sequence[Result]], models: Sequence[str], spans: Sequence[str]
) -> StageLayersResult:
    rows: dict[str, list] = {name: [] for name in (*_CELLS, "measured_in", "adds_up", "by_path")}
    sums: list[tuple[float, float]] = []
    for kinds in _common(every):
        tables = [result.of_layers() for result in kinds]
        layers = list(dict.fromkeys(layer for table in tables for layer in table))
        rest = {layer: _path([table.get(layer) for table in tables]) for layer in layers}
        result = kinds[0]
        for stage, table in enumerate(tables):
            for layer, number in table.items():
                cell = (result.pack, result.kind, result.layered, stage, spans[stage], layer)
                for name, what in zip(_CELLS, (*cell, *number), strict=True):
                    rows[name].append(what)
                rows["measured_in"].append(result.units()[result.layered])
                rows["adds_up"].append(result.divides)
                rows["by_path"].append(rest[layer])
        if result.divides:
            totals = [sum(number.value for number in table.values()) for table in tables]
            sums.append((totals[0], sum(totals[1:])))
    whole, cells = sums[0] if sums else (nan, nan)
    return StageLayersResult.of(cells=cells, residual=whole - cells, models=tuple(models), **rows)


def _common(every: Sequence[Sequence[Result]]) -> list[list[Result]]:
    """[kind of a pack] the result of each span, where every span has one that speaks of layers."""
    found: dict[tuple[str, str], list[Result]] = {}
    for results in every:
        for result in results:
            if result.layered and result.of_layers():
                found.setdefault((result.pack, result.kind), []).append(result)
    return [kinds for kinds in found.values() if len(kinds) == len(every)]


def _path(numbers: Sequence[Estimate | None]) -> float:
    whole, *stages = (nan if number is None else number.value for number in numbers)
    return whole - sum(stages)


def _whole(rows: Mapping[str, np.ndarray], key: Sequence[str]) -> str:
    """The whole in words: lost or gained where it is a rise in loss."""
    number = Estimate(*(float(rows[name][0]) for name in ("number", "low", "high")))
    pack, diagnostic, quantity = key
    span = str(rows["span"][0]).replace(" → ", " to ")
    if diagnostic != "forgetting":
        return f"{quantity.replace('_', ' ')} {number} {rows['unit'][0]} on {pack} from {span}"
    # No number is at or below a floor that is not known.
    if number.value == 0 or abs(number.value) <= rows["noise_floor"][0]:
        return f"from {span} nothing was lost on {pack} that can be told from noise"
    verb = "lost" if number.value > 0 else "gained"
    straddles = "(an interval that includes none) " if number.low <= 0 <= number.high else ""
    return f"{verb} {_size(number)} nats a token on {pack} {straddles}from {span}"


def _part(rows: Mapping[str, np.ndarray], row: int, diagnostic: str) -> str:
    """A stage in words, with its share where there is one."""
    number = Estimate(*(float(rows[name][row]) for name in ("number", "low", "high")))
    share, span = float(rows["share"][row]), str(rows["span"][row]).replace(" → ", " to ")
    if isfinite(share):
        return f"{share:.0%} of it from {span} ({number})".replace("-", "−", share < 0)
    if diagnostic != "forgetting" or number.value == 0:
        return f"{number} from {span}"
    return f"{_size(number)} {'lost' if number.value > 0 else 'gained'} from {span}"


def _size(number: Estimate) -> Estimate:
    """The size of a change whose direction is told in words."""
    value, low, high = number
    return number if value >= 0 else Estimate(-value, -high, -low)


def _layer(name: str) -> str:
    return f"block {name}" if name.isdigit() else f"the {name}"
