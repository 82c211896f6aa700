"""What aligned has lost on tasks that were measured elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot, nan, sqrt
from pathlib import Path
from statistics import NormalDist
from typing import ClassVar, NamedTuple

import numpy as np

from driftlens.evals import Compared, Evaluation, Key, Score, compared
from driftlens.formulas.flips import change, flips, mcnemar, relative_loss
from driftlens.formulas.intervals import Interval, holm, newcombe, wilson
from driftlens.results import Estimate, Result, column, fact, figures, shown, value

ALARM = 0.05
"""How often nothing may be taken for something, over all scores of the table."""

PACK = "lm-evaluation-harness"
"""What the result says it was measured on."""

SHOWN = 40
"""Tasks that the figure has room for."""

LOST, GAINED, NEITHER, UNKNOWN = "lost", "gained", "within noise", "not known"


@dataclass(frozen=True)
class CapabilityResult(Result):
    """Scores of both models on the same tasks, and the answers that flipped."""

    kind = "capability"
    title = "Capability on tasks"
    over = "What alignment cost, in points"
    how = """
Both models' results of EleutherAI's lm-evaluation-harness are laid side by side: the same tasks \
in the same version, with as many examples in the prompt, and the same prompts and right answers \
where these were logged. change = aligned − base of each score. Where single items were logged it \
is over the items that both models were asked, and its interval is of a paired bootstrap over \
them (2 000 rounds). Where only the scores are known, the models are taken as if they had been \
asked other items, which is wider than it need be: Newcombe's (1998, method 10) interval where \
every item is right or wrong, else the normal one of √(s_b² + s_a²).

right_to_wrong and wrong_to_right count the items that flipped, which a net change hides. p_value: \
exact two-sided test of McNemar (1947), P of so uneven flips were either way as likely; p_holm: \
corrected over all scores that were tested (Holm 1979). verdict: *lost* or *gained* where p_holm < \
0.05, or, of scores that are no right or wrong items, where the interval leaves out 0; else \
*within chance*. Without either it is *not known*. relative_loss = (base − aligned) / (base − \
chance), undefined where base is not 0.01 above chance or chance is not known; chance is the mean \
of 1 / choices.

main marks the score of each task of which the sentences speak: the first that is a share of \
items (or mean of such), else bits per byte, else the first. mean_change averages it over tasks \
(not groups) whose scores are shares, its interval as of independent tasks.
""".strip()

    mean_change: Estimate = value("of items")
    """Mean change of the main scores that are shares; below 0 aligned is worse."""
    worst_change: Estimate = value("of items")
    """The lowest of them."""
    right_to_wrong_share: Estimate = value("of base's right answers")
    """Share of base's right answers to all tasks that aligned gets wrong."""
    wrong_to_right_share: Estimate = value("of base's wrong answers")
    """Share of base's wrong answers that aligned gets right."""

    task: np.ndarray = column()
    """[row] name of the task or group."""
    metric: np.ndarray = column()
    """[row] what is scored."""
    filtered: np.ndarray = column(named="filter")
    """[row] how answers were read."""
    base: np.ndarray = column()
    """[row] score of base."""
    aligned: np.ndarray = column()
    """[row] score of aligned."""
    change: np.ndarray = column()
    """[row] aligned − base, in the unit of the score."""
    low: np.ndarray = column()
    """[row] lower end of its interval."""
    high: np.ndarray = column()
    """[row] upper end of it."""
    verdict: np.ndarray = column()
    """[row] lost, gained, within noise, or not known."""
    items: np.ndarray = column("items")
    """[row] over how many; NaN where that is not told."""
    right_to_wrong: np.ndarray = column("items")
    """[row] base right, aligned wrong; NaN where that is not known."""
    wrong_to_right: np.ndarray = column("items")
    """[row] base wrong, aligned right."""
    p_value: np.ndarray = column()
    """[row] exact McNemar test."""
    p_holm: np.ndarray = column()
    """[row] the same, corrected over the rows."""
    chance: np.ndarray = column()
    """[row] what guessing scores."""
    relative_loss: np.ndarray = column("of what is above chance")
    """[row] share of it that is lost."""
    higher_is_better: np.ndarray = column()
    """[row] whether more is better."""
    main: np.ndarray = column()
    """[row] whether it is the score of its task that the sentences speak of."""
    group: np.ndarray = column()
    """[row] whether it is the score of a group of tasks."""
    interval: np.ndarray = column()
    """[row] paired, Newcombe, Wald or none."""

    base_name: str = fact()
    """What base is called."""
    aligned_name: str = fact()
    """What aligned is called."""
    tasks: int = fact("tasks")
    """Tasks that were compared, without groups."""
    tested: int = fact("scores")
    """Scores that have a p-value."""
    level: float = fact()
    """Part of the draws that an interval holds."""

    near_zero: ClassVar[tuple[str, ...]] = (
        *("mean_change", "worst_change", "change"),
        *("right_to_wrong_share", "wrong_to_right_share"),
    )

    def summary(self) -> str:
        """The mean change, the flips, and the tasks that lost more than noise explains."""
        rows = np.flatnonzero(self.main & ~self.group).tolist()
        shares = sum(_is_share(self, row) for row in rows)
        if shares:
            many = f"{shares} task{'s' * (shares != 1)}"
            said = f"Over {many} scores changed by {_points(self.mean_change)} points on average"
        else:
            said = f"Of {self.tasks} tasks none is scored in shares of items"
        said += self._flipped(rows, ";")
        worse = [self._told(row) for row in rows if self.verdict[row] == LOST]
        if all(self.verdict[row] == UNKNOWN for row in rows):
            return f"{said}; what of it is noise is not known."
        if not worse:
            return f"{said}; no single task lost more than noise explains."
        more = f" and {len(worse) - 3} more" if len(worse) > 3 else ""
        return f"{said}; more than noise explains was lost on {', '.join(worse[:3])}{more}."

    def headline(self) -> str:
        """What was lost on the task that lost most, or on average."""
        rows = np.flatnonzero(self.main & ~self.group).tolist()
        for verdict, sign in ((LOST, 1), (GAINED, -1)):
            mine = [row for row in rows if self.verdict[row] == verdict]
            if mine:
                # Shares first, for they compare with each other.
                first = [row for row in mine if _is_share(self, row)] or mine
                row = min(first, key=lambda r: sign * self.change[r])
                return self._lost(row) + self._flipped([row])
            # Many tasks may tell together what none of them can alone.
            if sign * self.mean_change.low < 0 and sign * self.mean_change.high < 0:
                told = f"{verdict} {_points(_size(self.mean_change))} points on average over"
                alone = f"{self.tasks} tasks, on none more than noise explains"
                return f"{told} {alone}{self._flipped(rows)}"
        if all(self.verdict[row] == UNKNOWN for row in rows):
            return ""
        return f"on {self.tasks} tasks nothing was lost that can be told from noise"

    def _flipped(self, rows: Sequence[int], mark: str = ",") -> str:
        """How many answers of some tasks went either way, where that is known."""
        known = [row for row in rows if not np.isnan(self.right_to_wrong[row])]
        if not known:
            return ""
        lost, won = (int(z[known].sum()) for z in (self.right_to_wrong, self.wrong_to_right))
        return (
            f"{mark} {lost} right answer{'s' * (lost != 1)} became wrong and {won} wrong "
            f"one{'s' * (won != 1)} right"
        )

    def figure(self) -> "figures.Figure":
        """Both scores of every task, and its change with its interval."""
        rows = [row for row in np.flatnonzero(self.main).tolist() if _is_share(self, row)]
        share, unit = bool(rows), "points"
        if not rows:
            first = self.metric[self.main][0]
            rows, unit = (
                [r for r in np.flatnonzero(self.main).tolist() if self.metric[r] == first],
                first,
            )
        # Where there are too many, those that changed most, in their order.
        rows = sorted(sorted(rows, key=lambda r: -abs(self.change[r]))[:SHOWN])
        times = 100.0 if share else 1.0
        names = [f"{self.task[r]} ({'group' if self.group[r] else self.metric[r]})" for r in rows]
        figure, panels = figures.panels(2)
        figure.set_size_inches(figures.WIDE, max(figures.HEIGHT, 0.9 + 0.26 * len(rows)))
        chance = {"chance": times * self.chance[rows]} if share else None
        chance = chance if chance and np.isfinite(chance["chance"]).any() else None
        sides = (times * self.base[rows], times * self.aligned[rows])
        score = "score [%]" if share else f"score [{unit}]"
        figures.dumbbells(names, *sides, xlabel=score, marks=chance, on=panels[0])
        figures.forest(
            [""] * len(rows),
            times * self.change[rows],
            times * self.low[rows],
            times * self.high[rows],
            self.verdict[rows],
            names={name: name for name in (LOST, GAINED, NEITHER, UNKNOWN)},
            xlabel=f"change, aligned − base [{unit}]",
            on=panels[1],
        )
        return figure

    def _lost(self, row: int) -> str:
        """What happened to a score, in words."""
        low, number, high = (float(z[row]) for z in (self.low, self.change, self.high))
        better = (number > 0) == bool(self.higher_is_better[row])
        estimate = _size(Estimate(number, low, high))
        if _is_share(self, row):
            verb = "gained" if better else "lost"
            return f"{verb} {_points(estimate)} points on {self.task[row]}"
        verb = "rose" if number > 0 else "fell"
        return f"{self.metric[row]} on {self.task[row]} {verb} by {estimate}"

    def _told(self, row: int) -> str:
        estimate = Estimate(*(float(z[row]) for z in (self.change, self.low, self.high)))
        known = not np.isnan(self.p_holm[row])
        p = f", p = {shown(float(self.p_holm[row]), 2)}" if known else ""
        if _is_share(self, row):
            return f"{self.task[row]} ({_points(estimate)} points{p})"
        return f"{self.task[row]} ({estimate} {self.metric[row]}{p})"


def capability(
    base: Evaluation | str | Path,
    aligned: Evaluation | str | Path,
    *,
    any_prompt: bool = False,
    chance: Mapping[str, float] | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> CapabilityResult:
    """What aligned has lost of base's scores, task by task.

    Args:
        base: Results of the base model: its results_….json, the folder it lies in, or an
            `Evaluation`.
        aligned: The same of its aligned version.
        any_prompt: Whether to compare them although they read other prompts.
        chance: By task, what guessing scores, where the results do not tell the choices.
        seed: Of the bootstrap.
        level: Part of the draws that an interval holds.

    Raises:
        LoadError: Results cannot be read.
        DriftlensError: They have no task in common that can be compared.
    """
    base, aligned = (
        one if isinstance(one, Evaluation) else Evaluation.read(one) for one in (base, aligned)
    )
    found, notes = compared(base, aligned, any_prompt=any_prompt, chance=chance)
    rows = [_row(one, seed, level) for one in found]
    p_holm = holm([row.p_value for row in rows])
    verdicts = [_verdict(row, p) for row, p in zip(rows, p_holm, strict=True)]
    firsts = _firsts(rows)
    main = [row for n, row in enumerate(rows) if firsts[row.key.task] == n and not row.group]
    told = [*notes, *_notes(rows)]
    return CapabilityResult.of(
        **_headline(main, level),
        task=[row.key.task for row in rows],
        metric=[row.key.metric for row in rows],
        filtered=[row.key.filter for row in rows],
        base=[row.base for row in rows],
        aligned=[row.aligned for row in rows],
        change=[float(row.change.estimate) for row in rows],
        low=[float(row.change.low) for row in rows],
        high=[float(row.change.high) for row in rows],
        verdict=verdicts,
        items=[nan if row.items is None else float(row.items) for row in rows],
        right_to_wrong=[float(row.lost) for row in rows],
        wrong_to_right=[float(row.won) for row in rows],
        p_value=[row.p_value for row in rows],
        p_holm=p_holm,
        chance=[row.chance for row in rows],
        relative_loss=[row.relative for row in rows],
        higher_is_better=[row.higher for row in rows],
        main=[firsts[row.key.task] == number for number, row in enumerate(rows)],
        group=[row.group for row in rows],
        interval=[row.interval for row in rows],
        base_name=base.name,
        aligned_name=aligned.name,
        tasks=len(main),
        tested=int((~np.isnan(p_holm)).sum()),
        level=level,
        pack=PACK,
        notes=tuple(told),
    )


def _firsts(rows: Sequence["_Row"]) -> dict[str, int]:
    """By task, the place of the score that the sentences speak of: of shares, if there are any.

    The first of these; of what is told over words, the one that no length can blow up.
    """

    def foremost(number: int) -> tuple[bool, bool, int]:
        row = rows[number]
        share = _shared(row.base, row.aligned, row.higher)
        return not share, row.key.metric != "bits_per_byte", number

    tasks = dict.fromkeys(row.key.task for row in rows)
    return {
        task: min((n for n, row in enumerate(rows) if row.key.task == task), key=foremost)
        for task in tasks
    }


class _Row(NamedTuple):
    """A score of both models, and what is said of it."""

    key: Key
    base: float
    aligned: float
    change: Interval
    interval: str
    items: int | None
    lost: float
    won: float
    right: float
    p_value: float
    chance: float
    relative: float
    higher: bool
    group: bool


def _row(one: Compared, seed: int, level: float) -> _Row:
    moved, how = _change(one, seed, level)
    lost = won = right = p = nan
    if one.binary:
        lost, won, both, _ = flips(one.base_items, one.aligned_items)
        right, p = lost + both, float(mcnemar(lost, won))
    relative = relative_loss(one.base.value, one.aligned.value, one.chance if one.higher else nan)
    return _Row(
        one.key,
        one.base.value,
        one.aligned.value,
        moved,
        how,
        one.items,
        lost,
        won,
        right,
        p,
        one.chance,
        float(relative),
        one.higher,
        one.group,
    )


def _change(one: Compared, seed: int, level: float) -> tuple[Interval, str]:
    """The change of a score with its interval, and how that was found."""
    if one.paired:
        moved = change(
            one.base_items, one.aligned_items, one.weights, one.of, seed=seed, level=level
        )
        return moved, "paired"
    ours, theirs = (_count(score, one.items) for score in (one.base, one.aligned))
    if one.items is not None and ours is not None and theirs is not None:
        return newcombe(ours, one.items, theirs, one.items, level), "Newcombe"
    gap = np.array(one.aligned.value - one.base.value)
    half = NormalDist().inv_cdf((1 + level) / 2) * hypot(one.base.error, one.aligned.error)
    return Interval(gap, gap - half, gap + half), "none" if np.isnan(half) else "Wald"


def _count(score: Score, items: int | None) -> float | None:
    """How many items are right, if the error that is told is that of right and wrong ones."""
    if items is None or items < 2 or not 0 <= score.value <= 1:
        return None
    right = score.value * items
    error = sqrt(score.value * (1 - score.value) / (items - 1))
    whole = abs(right - round(right)) < 1e-6 * items
    return float(round(right)) if whole and abs(error - score.error) < 1e-6 else None


def _verdict(row: _Row, p_holm: float) -> str:
    low, number, high = (float(row.change[n]) for n in (1, 0, 2))
    if np.isnan([p_holm, low]).all():
        return UNKNOWN
    sure = p_holm < ALARM if not np.isnan(p_holm) else low > 0 or high < 0
    if not sure or not number:
        return NEITHER
    return GAINED if (number > 0) == row.higher else LOST


def _headline(main: Sequence[_Row], level: float) -> dict[str, Estimate]:
    """The figures over all tasks."""
    shares = [row for row in main if _shared(row.base, row.aligned, row.higher)]
    mean, worst = Estimate(nan), Estimate(nan)
    if shares:
        gaps = np.array([row.change for row in shares])
        number = gaps[:, 0].mean()
        below, above = (
            float(np.sqrt(np.square(gaps[:, side] - gaps[:, 0]).sum())) / len(gaps)
            for side in (1, 2)
        )
        mean = Estimate(number, number - below, number + above)
        worst = Estimate(*gaps[gaps[:, 0].argmin()])
    known = [row for row in main if not np.isnan(row.right)]
    lost, won, right = (sum(getattr(row, n) for row in known) for n in ("lost", "won", "right"))
    asked = sum(row.items or 0 for row in known)
    return {
        "mean_change": mean,
        "worst_change": worst,
        "right_to_wrong_share": Estimate(*map(float, wilson(lost, right, level))),
        "wrong_to_right_share": Estimate(*map(float, wilson(won, asked - right, level))),
    }


def _notes(rows: Sequence[_Row]) -> list[str]:
    notes = []
    if any(row.interval in ("Newcombe", "Wald") for row in rows):
        notes.append(
            "Where no items were logged, intervals are as of other items for either model, which "
            "is wider than of the same."
        )
    if none := sorted({row.key.task for row in rows if row.interval == "none"}):
        notes.append(f"No error of the scores of {', '.join(none)} is told, nor an interval.")
    if any(row.interval == "paired" and row.change.low == row.change.high for row in rows):
        notes.append("Where no item changed, a bootstrap has no width; more items might have.")
    return notes


def _shared(base: float, aligned: float, higher: bool) -> bool:
    """Whether scores are shares, of which more is better."""
    return bool(higher and 0 <= base <= 1 and 0 <= aligned <= 1)


def _is_share(result: CapabilityResult, row: int) -> bool:
    return _shared(result.base[row], result.aligned[row], result.higher_is_better[row])


def _size(estimate: Estimate) -> Estimate:
    """The size of a change whose direction is told in words."""
    number, low, high = estimate
    return estimate if number > 0 else Estimate(-number, -high, -low)


def _points(estimate: Estimate) -> Estimate:
    """A share in hundredths."""
    return Estimate(*(100 * number for number in estimate))
