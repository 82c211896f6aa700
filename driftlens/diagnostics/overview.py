"""What alignment did, symptom by symptom, and in which layers: read off all other results."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import NamedTuple

import numpy as np

from driftlens.results import Estimate, Result, column, fact, figures, shown, value

MOSTLY = 0.5
"""The part of a change that the layers named with it have at least."""

AGAINST = 0.5
"""Where layers work against a change by more of it than this, what is left has no place."""


class Place(NamedTuple):
    """Where a change is divided among layers."""

    kind: str
    """The result that does."""
    stage: str
    """Its column of stages."""
    share: str
    """Its column of shares, which add up to the change."""


class Symptom(NamedTuple):
    """One way in which an aligned model differs, and which result tells of it."""

    name: str
    kind: str
    change: str
    """The value that is the change; of a share of what is new, that share."""
    base: str = ""
    """The value of base alone, if there is one."""
    aligned: str = ""
    bad: int = 0
    """1 where more is worse, −1 where less is, 0 where neither can be said."""
    of: str = ""
    """What the result's fact `predicted` must say, if anything."""
    place: Place | None = None


LOSS, SURE, LESS, ALIKE, STYLE, REFUSED = (
    "loss",
    "over-confidence",
    "entropy",
    "prompts answered in one way",
    "first choices that are new",
    "odds of refusing what is harmful",
)

SYMPTOMS = (
    Symptom(
        LOSS,
        "forgetting",
        "loss_rise",
        "base_loss",
        "aligned_loss",
        bad=1,
        place=Place("layer_forgetting", "stage", "mean_share"),
    ),
    Symptom(
        "right answers",
        "calibration",
        "accuracy_change",
        "base_accuracy",
        "aligned_accuracy",
        bad=-1,
        of="choices",
    ),
    Symptom("tasks of lm-evaluation-harness", "capability", "mean_change", bad=-1),
    Symptom(
        SURE,
        "calibration",
        "overconfidence_change",
        "base_overconfidence",
        "aligned_overconfidence",
        bad=1,
        of="next token",
        place=Place("symptom_layers", "stage", "overconfidence"),
    ),
    Symptom(
        "over-confidence in choices",
        "calibration",
        "overconfidence_change",
        "base_overconfidence",
        "aligned_overconfidence",
        bad=1,
        of="choices",
    ),
    Symptom(
        LESS,
        "entropy",
        "entropy_change",
        "base_entropy",
        "aligned_entropy",
        place=Place("symptom_layers", "stage", "entropy"),
    ),
    Symptom(ALIKE, "homogenisation", "single_change", "base_single", "aligned_single", bad=1),
    Symptom(
        "entropy of meanings",
        "homogenisation",
        "semantic_entropy_change",
        "base_semantic_entropy",
        "aligned_semantic_entropy",
    ),
    Symptom(STYLE, "token_shift", "shifted_share"),
    Symptom(
        REFUSED,
        "safety_forgetting",
        "harmful_change",
        "base_log_odds",
        "aligned_log_odds",
        bad=-1,
    ),
    Symptom("odds of refusing what is harmless", "safety_forgetting", "harmless_change", bad=1),
    Symptom(
        "preference pairs ranked right",
        "ranking",
        "accuracy_change",
        "base_accuracy",
        "aligned_accuracy",
        bad=-1,
    ),
)
"""In the order in which they are told."""


@dataclass(frozen=True)
class OverviewResult(Result):
    """Every symptom that was looked for, and what became of it."""

    kind = "overview"
    title = "What alignment did"
    opened = True
    unsaid = ("told",)
    over = "What alignment cost, and what it changed"
    how = """
Every row is the headline figure of a result below, which says how it was measured: base, aligned, \
and the change aligned − base with its 95 % interval. It reads *worse* or *better* where the whole \
interval lies on one side of 0 and the change is larger than its noise floor, *changed* where \
neither direction is worse as such, and *not clear* else; so do refusals whose answers have next \
to no probability in a model. Layers are named where a result below divides the change among them: \
the fewest that together have most of it. Nothing here is measured once more, and the rows are not \
weighed against each other: each has its own interval of 95 %, of which one in twenty misses 0 \
by chance alone, however many rows there are.

The table is ours; each row is as its own result defines it, change = aligned − base.
""".strip()

    loss_rise: Estimate = value("nats/token")
    """Rise in loss on the first pack of text."""
    overconfidence_change: Estimate = value("probability")
    """Change of confidence − accuracy there."""
    one_way_answers_rise: Estimate = value("of prompts")
    """Change of the share of prompts that are answered in one way alone."""
    new_first_choices: Estimate = value("of tokens")
    """Share of aligned's first choices, on its own answers if they were sampled, that base holds
    fourth or less likely."""
    entropy_change: Estimate = value("nats/token")
    """Change of the entropy of the next token on the first pack of text."""

    symptom: np.ndarray = column()
    """[row] what was looked for."""
    on: np.ndarray = column()
    """[row] the pack."""
    base: np.ndarray = column()
    """[row] base, where it has a figure of its own."""
    aligned: np.ndarray = column()
    """[row] aligned."""
    change: np.ndarray = column()
    """[row] aligned − base."""
    low: np.ndarray = column()
    """[row] lower end of its 95 % interval."""
    high: np.ndarray = column()
    """[row] upper end of it."""
    measured_in: np.ndarray = column(named="unit")
    """[row] the unit of all these."""
    reads: np.ndarray = column()
    """[row] `worse`, `better`, `changed` or `not clear`."""
    where: np.ndarray = column()
    """[row] the layers that have most of the change."""

    told: str = fact()
    """The first sentence of the page."""

    def summary(self) -> str:
        """How many symptoms were looked for, and how many were found."""
        worse = int((self.reads == "worse").sum())
        if not len(self.reads):
            return "No symptom was looked for."
        clear = int((self.reads != "not clear").sum())
        return f"Of {len(self.reads)} figures {clear} changed clearly, {worse} for the worse."

    def headline(self) -> str:
        """What was lost, where and on which tokens; and what else changed."""
        return self.told


@dataclass(frozen=True)
class OverviewLayersResult(Result):
    """Which layers each symptom comes from, side by side."""

    kind = "overview_layers"
    title = "Which layers each symptom comes from"
    over = "What alignment cost, and what it changed"
    how = """
The shares by layer that other results have of their changes, each divided by its own change, so \
that a row adds up to 1; below 0 a layer works against the change. Symptoms that did not change \
clearly are left out, for parts of what may be nothing mean nothing; and so are those whose layers \
work against each other by more than half of the change.

    part(layer) = share of the change at this layer / change

The table is ours; the shares are those of the results that it names.
""".strip()

    symptom: np.ndarray = column()
    """[row] which."""
    on: np.ndarray = column()
    """[row] the pack."""
    stage: np.ndarray = column()
    """[row] `embed`, number of the block, or `head`."""
    share: np.ndarray = column("of the change")
    """[row] the stage's part."""

    def summary(self) -> str:
        """Of each symptom the stage with the largest share."""
        said = [
            f"{name} on {on}, {_called(str(stages[shares.argmax()]))} ({shares.max():.0%})"
            for name, on, stages, shares in self._profiles()
        ]
        return f"The largest share of each change: {'; '.join(said)}." if said else "None."

    def figure(self) -> "figures.Figure | None":
        """Shares by symptom and layer."""
        found = list(self._profiles())
        if not found:
            return None
        return figures.heatmap(
            np.stack([shares for *_, shares in found]),
            rows=[f"{name}, {on}" for name, on, *_ in found],
            columns=list(found[0][2]),
            xlabel="layer",
            ylabel="",
            label="share of the change",
        )

    def _profiles(self) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
        for name, on in dict.fromkeys(zip(self.symptom, self.on, strict=True)):
            mine = (self.symptom == name) & (self.on == on)
            yield name, on, self.stage[mine], self.share[mine]


class _Row(NamedTuple):
    """A symptom as it was found on a pack."""

    symptom: Symptom
    result: Result
    change: Estimate
    reads: str
    shares: Mapping[str, float]

    @property
    def on(self) -> str:
        return self.result.pack

    def level(self, name: str) -> float:
        return self.result.estimates()[name].value if name else nan

    def cells(self) -> tuple:
        """The row of the table."""
        symptom = self.symptom
        ends = self.level(symptom.base), self.level(symptom.aligned)
        unit, where = self.result.unit(symptom.change), _where(self.shares) or "–"
        return (symptom.name, self.on, *ends, *self.change, unit, self.reads, where)


COLUMNS = (
    "symptom",
    "on",
    "base",
    "aligned",
    "change",
    "low",
    "high",
    "measured_in",
    "reads",
    "where",
)

OWN = "as aligned answers"
"""How packs of aligned's own answers are called, at the end."""

FIGURES = {
    "loss_rise": LOSS,
    "overconfidence_change": SURE,
    "one_way_answers_rise": ALIKE,
    "new_first_choices": STYLE,
    "entropy_change": LESS,
}
"""The values of the result, and the symptoms that they are of."""


def overview(results: Sequence[Result]) -> list[Result]:
    """What the results of a report say together; nothing where they hold no symptom.

    Args:
        results: Of all packs, in the order in which they were measured.
    """
    rows = list(_rows(results))
    if not rows:
        return []
    first = {name: _first(rows, of) for name, of in FIGURES.items()}
    cells = list(zip(*(row.cells() for row in rows), strict=True))
    floors = {
        name: row.result.floor[row.symptom.change]
        for name, row in first.items()
        if row and row.symptom.change in row.result.floor
    }
    whole = OverviewResult.of(
        **{name: row.change if row else Estimate(nan) for name, row in first.items()},
        **dict(zip(COLUMNS, map(list, cells), strict=True)),
        told=_told(rows, results),
        floor=floors,
    )
    divided = [(row, stage, share) for row in rows for stage, share in row.shares.items()]
    if not divided:
        return [whole]
    layers = OverviewLayersResult.of(
        symptom=[row.symptom.name for row, _, _ in divided],
        on=[row.on for row, _, _ in divided],
        stage=[stage for _, stage, _ in divided],
        share=[share for _, _, share in divided],
    )
    return [whole, layers]


def _rows(results: Sequence[Result]) -> Iterator[_Row]:
    for symptom in SYMPTOMS:
        for result in results:
            told = getattr(result, "predicted", "")
            if result.kind != symptom.kind or told != (symptom.of or told):
                continue
            change = result.estimates()[symptom.change]
            if isfinite(change.value):
                reads = _reads(symptom, result, change)
                shares = _shares(symptom, result.pack, results) if reads != UNCLEAR else {}
                yield _Row(symptom, result, change, reads, shares)


WORSE, BETTER, CHANGED, UNCLEAR = "worse", "better", "changed", "not clear"


def _reads(symptom: Symptom, result: Result, change: Estimate) -> str:
    """Whether a change can be told from none, and which way it goes."""
    known = isfinite(change.low) and isfinite(change.high)
    if not known or change.low * change.high <= 0 or not result.above_floor(symptom.change):
        return UNCLEAR
    # What it was read of has next to no say in either model.
    if result.kind == "safety_forgetting" and not result.headline():
        return UNCLEAR
    if not symptom.bad:
        return CHANGED
    return WORSE if change.value * symptom.bad > 0 else BETTER


def _shares(symptom: Symptom, pack: str, results: Sequence[Result]) -> dict[str, float]:
    """Each layer's part of a change, if a result divides it."""
    place = symptom.place
    found = [r for r in results if place and r.kind == place.kind and r.pack == pack]
    if not found or place is None:
        return {}
    columns = found[0].columns()
    shares = columns[place.share].astype(float)
    if not shares.sum():
        return {}
    shares = shares / shares.sum()
    if shares[shares < 0].sum() < -AGAINST:
        return {}
    return dict(zip(map(str, columns[place.stage]), shares.tolist(), strict=True))


def _where(shares: Mapping[str, float]) -> str:
    """The fewest layers that together have most of a change, unless those are half of all."""
    stages, parts = list(shares), np.array([*shares.values()])
    order = np.argsort(-parts, kind="stable")
    enough = int(np.searchsorted(np.cumsum(parts[order]), MOSTLY)) + 1
    if not len(parts) or enough > len(parts) / 2:
        return ""
    mine = sorted(order[:enough].tolist())
    return f"{parts[mine].sum():.0%} in {_named([stages[n] for n in mine])}"


def _named(stages: Sequence[str]) -> str:
    """The layers in words, from the bottom up."""
    blocks = [stage for stage in stages if stage.isdigit()]
    many = [f"blocks {_listed(blocks)}"] if len(blocks) > 1 else [_called(z) for z in blocks]
    ends = [[_called(z) for z in stages if z == end] for end in ("embed", "head")]
    return _listed([*ends[0], *many, *ends[1]])


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _called(stage: str) -> str:
    return {"embed": "the embedding", "head": "the head"}.get(stage, f"block {stage}")


def _told(rows: Sequence[_Row], results: Sequence[Result]) -> str:
    """The page's first sentence: clauses of what changed clearly."""
    return "; ".join(_clauses(rows, results))


def _first(rows: Sequence[_Row], name: str) -> _Row | None:
    """Of a symptom the row of the pack that came first; of style that of its own answers."""
    mine = [row for row in rows if row.symptom.name == name]
    own = [row for row in mine if name == STYLE and row.on.endswith(OWN)]
    return next(iter([*own, *mine]), None)


def _clauses(rows: Sequence[_Row], results: Sequence[Result]) -> Iterator[str]:
    for symptom in SYMPTOMS:
        row = _first(rows, symptom.name)
        if row is None or symptom.name not in CLAUSES:
            continue
        if row.reads != UNCLEAR:
            yield CLAUSES[symptom.name](row, results)
        elif symptom.name == LOSS:
            yield _unclear(row)


def _unclear(row: _Row) -> str:
    """Why nothing is said of a loss, which is no word on how large it is."""
    rise = row.change
    if rise.value and row.result.above_floor(row.symptom.change):
        verb = "lost" if rise.value > 0 else "gained"
        said = f"{verb} {_size(rise)} nats a token on {row.on}"
        if not isfinite(rise.error):
            return f"{said}, of too few documents to say how sure that is"
        return f"{said}, an interval that includes none"
    return f"no loss on {row.on} that can be told from noise"


def _lost(row: _Row, results: Sequence[Result]) -> str:
    beside = [r.headline() for r in results if r.kind == "token_kinds" and r.pack == row.on]
    # Which token suffered most, of all that is said there.
    beside = [said.rpartition("hardest on ")[2] for said in beside if "hardest on " in said]
    beside = [f"hardest on {name}" for name in beside]
    where = _where(row.shares)
    verb = "lost" if row.change.value > 0 else "gained"
    said = f"{verb} {_size(row.change)} nats a token on {row.on}"
    return ", ".join(filter(None, [said, where, *beside]))


def _size(change: Estimate) -> Estimate:
    return change if change.value >= 0 else Estimate(-change.value, -change.high, -change.low)


def _surer(row: _Row, _: Sequence[Result]) -> str:
    way = "rose" if row.change.value > 0 else "fell"
    level = row.level(row.symptom.aligned)
    said = f"over-confidence {way} by {_size(row.change)} to {shown(level, 2)}"
    return ", ".join(filter(None, [said, _where(row.shares)]))


def _alike(row: _Row, _: Sequence[Result]) -> str:
    ends = row.level("base_single"), row.level("aligned_single")
    return f"answers {ends[1]:.0%} of prompts in one way alone, where base did {ends[0]:.0%}"


def _new(row: _Row, _: Sequence[Result]) -> str:
    soon = row.level("kl_in_first_5")
    said = f"{row.change.value:.0%} of its first choices are new to base"
    return f"{said} on {row.on}" + (
        f", {soon:.0%} of the shift in the first 5 tokens" if isfinite(soon) else ""
    )


def _refuses(row: _Row, _: Sequence[Result]) -> str:
    ends = row.level("base_refused"), row.level("aligned_refused")
    return f"refuses {ends[1]:.0%} of what is harmful, where base did {ends[0]:.0%}"


CLAUSES = {
    LOSS: _lost,
    SURE: _surer,
    ALIKE: _alike,
    STYLE: _new,
    REFUSED: _refuses,
}
"""How the page's first sentence tells of a symptom."""
