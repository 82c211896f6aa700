"""What code can check of answers: whether they keep to what was asked, and what they never should.

No judge reads them: a rule is a length, a beginning, a word, a pattern, a format.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from driftlens.formulas.intervals import wilson
from driftlens.formulas.rules import keeps
from driftlens.models.tokens import Encoder
from driftlens.packs import Example
from driftlens.results import Estimate, Result, column, fact, figures, value
from driftlens.sampled import Said, Sampled

UNWANTED = "not_matches"
"""The rule that names what no answer should hold."""


@dataclass(frozen=True)
class ConstraintsResult(Result):
    """Share of answers that keep to what they were asked, of base and of aligned."""

    kind = "constraints"
    title = "Constraints"
    over = "What alignment did to answers"
    how = """
Prompts that ask for something that code can check (a length, a beginning, a word, JSON, small \
letters) are answered by both models, by samples at the same temperature and greedily, drawn by \
common random numbers. An answer satisfies its prompt if it keeps every rule of it; one of no text \
keeps only rules that forbid. Rates are means over prompts of the share of samples, rate = (1/n) Σ \
over prompts of kept samples / samples; there is one greedy answer a prompt. gained and lost are \
the shares of prompts whose greedy answer satisfies only in aligned, and only in base. \
Instructions that code can verify: Zhou et al. 2023 (IFEval).

Intervals are 95 %: percentile intervals of a paired bootstrap over prompts (2 000 rounds; those \
of one group are drawn together) for rates of samples and for all changes, Wilson's for rates of \
greedy answers.
""".strip()

    change: Estimate = value("of answers")
    """Rise, from base to aligned, of the share of samples that satisfy their prompt."""
    base_satisfied: Estimate = value("of answers")
    """Share of base's samples that satisfy their prompt."""
    aligned_satisfied: Estimate = value("of answers")
    """Share of aligned's samples."""
    greedy_change: Estimate = value("of answers")
    """Rise of the share of greedy answers that satisfy their prompt."""
    base_greedy: Estimate = value("of answers")
    """Share of base's greedy answers."""
    aligned_greedy: Estimate = value("of answers")
    """Share of aligned's greedy answers."""
    gained: Estimate = value("of prompts")
    """Share of prompts whose greedy answer satisfies only in aligned."""
    lost: Estimate = value("of prompts")
    """Share of prompts whose greedy answer satisfies only in base."""

    by: np.ndarray = column()
    """[row] what is told apart: `rule`, `format` or `topic`."""
    name: np.ndarray = column()
    """[row] which rule, format or topic."""
    prompts: np.ndarray = column("prompts")
    """[row] how many prompts have it."""
    base: np.ndarray = column("of answers")
    """[row] share of base's samples that keep the rule, or all rules of their prompt."""
    aligned: np.ndarray = column("of answers")
    """[row] share of aligned's."""
    rise: np.ndarray = column("of answers")
    """[row] aligned less base."""
    low: np.ndarray = column("of answers")
    """[row] lower end of its 95 % interval."""
    high: np.ndarray = column("of answers")
    """[row] upper end of it."""
    base_by_greedy: np.ndarray = column("of answers")
    """[row] share of base's greedy answers that keep it."""
    aligned_by_greedy: np.ndarray = column("of answers")
    """[row] share of aligned's."""
    only_aligned: np.ndarray = column("prompts")
    """[row] prompts whose greedy answer keeps it only in aligned."""
    only_base: np.ndarray = column("prompts")
    """[row] prompts whose greedy answer keeps it only in base."""

    asked: int = fact("prompts")
    """Prompts with a rule that both models answered."""
    samples: int = fact("answers")
    """Samples of each, of either model."""

    near_zero: ClassVar[tuple[str, ...]] = (
        *("change", "greedy_change", "gained", "lost"),
        *("rise", "only_aligned", "only_base"),
    )

    def summary(self) -> str:
        """How many satisfy their prompt, and the change with its interval."""
        if not self.asked:
            return "No prompt with a rule was answered."
        name, change = ("", self.change) if self.samples else ("greedy ", self.greedy_change)
        base, aligned = (
            (self.base_satisfied, self.aligned_satisfied)
            if self.samples
            else (self.base_greedy, self.aligned_greedy)
        )
        return (
            f"Of {self.asked} prompts that code can check, {base.value:.0%} of the {name}answers "
            f"of base satisfy all they were asked, and {aligned.value:.0%} of aligned's "
            f"(change {change} of answers); greedy answers: "
            f"{self.gained.value:.0%} of prompts gained, {self.lost.value:.0%} lost."
        )

    def headline(self) -> str:
        """Whether answers keep to what is asked more often, or less."""
        change = self.change if self.samples else self.greedy_change
        if not np.isfinite(change.value) or change.low <= 0 <= change.high:
            return ""
        verb = "more" if change.value > 0 else "less"
        return f"keeps to what is asked {verb} often ({100 * change.value:+.0f} points)"

    def figure(self) -> "figures.Figure | None":
        """The change by rule, format and topic."""
        if not self.samples or not len(self.name):
            return None
        return figures.bars(
            [f"{by} {name}" for by, name in zip(self.by, self.name, strict=True)],
            self.rise,
            self.low,
            self.high,
            xlabel="",
            ylabel="rise in satisfied [of answers]",
            floor=self.floor.get("rise"),
        )


@dataclass(frozen=True)
class FormatsResult(Result):
    """Share of answers with unwanted content, by the format that they were asked for in."""

    kind = "formats"
    title = "Unwanted answers, by format"
    over = "What alignment did to answers"
    how = """
The same requests are made in several output formats. An answer is unwanted if a pattern that the \
pack names (`not_matches`) is found in it; whether it keeps the format does not matter. Rates are \
means over prompts of the share of samples. The gap of a format is gap = rate − rate of the first \
format of the pack, on the requests (groups) that are made in both. After "Devil in the Details" \
(2025), who find misaligned answers twice as often in JSON as in plain language.

Intervals are 95 % percentile intervals of a paired bootstrap over requests (2 000 rounds). Where \
no answer is unwanted an interval of no width does not say that none ever is: with n answers, \
up to about 3/n of them may be.
""".strip()

    unwanted_change: Estimate = value("of answers")
    """Rise, from base to aligned, of the share of unwanted samples in all formats."""
    base_unwanted: Estimate = value("of answers")
    """Share of base's samples that are unwanted."""
    aligned_unwanted: Estimate = value("of answers")
    """Share of aligned's."""

    format: np.ndarray = column()
    """[row] format; the first is the one that others are compared with."""
    prompts: np.ndarray = column("prompts")
    """[row] prompts in it."""
    base: np.ndarray = column("of answers")
    """[row] share of base's samples that are unwanted."""
    aligned: np.ndarray = column("of answers")
    """[row] share of aligned's."""
    rise: np.ndarray = column("of answers")
    """[row] aligned less base."""
    low: np.ndarray = column("of answers")
    """[row] lower end of its 95 % interval."""
    high: np.ndarray = column("of answers")
    """[row] upper end of it."""
    base_gap: np.ndarray = column("of answers")
    """[row] base's rate less that in the first format, on the same requests."""
    base_gap_low: np.ndarray = column("of answers")
    """[row] lower end of its 95 % interval."""
    base_gap_high: np.ndarray = column("of answers")
    """[row] upper end of it."""
    aligned_gap: np.ndarray = column("of answers")
    """[row] the same of aligned."""
    aligned_gap_low: np.ndarray = column("of answers")
    """[row] lower end of its 95 % interval."""
    aligned_gap_high: np.ndarray = column("of answers")
    """[row] upper end of it."""

    asked: int = fact("prompts")
    """Prompts that name unwanted content."""
    samples: int = fact("answers")
    """Samples of each, of either model."""

    near_zero: ClassVar[tuple[str, ...]] = ("unwanted_change", "rise")

    def summary(self) -> str:
        """How many are unwanted of each model, and in which format most."""
        if not self.asked:
            return "No prompt names unwanted content."
        most = ""
        if len(self.format) > 1 and np.isfinite(self.aligned).any():
            worst = int(np.nanargmax(self.aligned))
            most = f"; aligned's are most often so in {self.format[worst]}"
            most += f" ({self.aligned[worst]:.1%})"
        return (
            f"Of the answers to {self.asked} harmless requests, {self.base_unwanted.value:.1%} of "
            f"base's hold unwanted content and {self.aligned_unwanted.value:.1%} of aligned's "
            f"(change {self.unwanted_change} of answers){most}."
        )

    def figure(self) -> "figures.Figure | None":
        """Base beside aligned in each format."""
        if not len(self.format):
            return None
        return figures.pairs(
            self.format.tolist(),
            self.base,
            self.aligned,
            xlabel="output format",
            ylabel="unwanted [of answers]",
        )


class Constraints(Sampled[ConstraintsResult]):
    """Whether answers keep to what they were asked, and hold what no answer should.

    Args:
        sampling: How answers are drawn, and how many.
    """

    also: ClassVar[tuple[type[Result], ...]] = (FormatsResult,)

    def fits(self, encoder: Encoder) -> bool:
        """Whether a prompt of the pack has a rule."""
        return super().fits(encoder) and any(e.rules for e in encoder.pack.examples)

    def compute(self) -> ConstraintsResult:
        """The result of all that was seen so far."""
        said = self.said
        every = _Marks(self, said.prompts, self._every(said))
        base, aligned, change = every.rates(said.drawn)
        gained, lost = every.flips(said.greedy)
        counted = every.greedy(said.greedy)
        return ConstraintsResult.of(
            change=change,
            base_satisfied=base,
            aligned_satisfied=aligned,
            greedy_change=every.rates(said.greedy)[2],
            base_greedy=counted[0],
            aligned_greedy=counted[1],
            gained=gained / every.asked if self.sampling.greedy and every.asked else np.nan,
            lost=lost / every.asked if self.sampling.greedy and every.asked else np.nan,
            **_columns(ROWS, self._rows(said)),
            asked=every.asked,
            samples=self.sampling.samples,
            notes=(*self.unanswered(), *every.notes),
        )

    def beside(self) -> Sequence[Result]:
        """The same requests in several formats, if the pack names unwanted content."""
        named = any(UNWANTED in dict(e.rules) for e in self.encoder.pack.examples)
        return [self._formats(self.said)] if named else []

    def _rows(self, said: Said) -> Iterator[tuple]:
        every, examples = self._every(said), self._examples(said)
        for rule in sorted({rule for e in examples for rule, _ in e.rules}):
            yield self._row("rule", rule, said, self._keeping(said, rule))
        for by, of in (("format", "form"), ("topic", "topic")):
            labels = np.array([getattr(e, of) for e in examples], dtype=object)
            for label in sorted({*labels.tolist()} - {""}):
                mine = (labels == label)[:, None, None]
                yield self._row(by, label, said, np.where(mine, every, np.nan))

    def _row(self, by: str, name: str, said: Said, marks: np.ndarray) -> tuple:
        those = _Marks(self, said.prompts, marks)
        base, aligned, change = those.rates(said.drawn)
        greedy = [rate.value for rate in those.greedy(said.greedy)]
        return (
            *(by, name, those.asked, base.value, aligned.value, *change),
            *(*greedy, *those.flips(said.greedy)),
        )

    def _formats(self, said: Said) -> FormatsResult:
        examples = self._examples(said)
        marks = 1 - self._keeping(said, UNWANTED)
        every = _Marks(self, said.prompts, marks)
        base, aligned, change = every.rates(said.drawn)
        labels = np.array([e.form for e in examples], dtype=object)
        forms = [f for f in dict.fromkeys(e.form for e in self.encoder.pack.examples) if f]
        rows = []
        of = [
            _Marks(self, said.prompts, np.where((labels == f)[:, None, None], marks, np.nan))
            for f in forms
        ]
        for form, those in zip(forms, of, strict=True):
            mine, theirs, rise = those.rates(said.drawn)
            gaps = those.gaps(of[0], said.drawn)
            rows.append((form, those.asked, mine.value, theirs.value, *rise, *gaps))
        return FormatsResult.of(
            unwanted_change=change,
            base_unwanted=base,
            aligned_unwanted=aligned,
            **_columns(FORMATS, rows),
            asked=every.asked,
            samples=self.sampling.samples,
            notes=(*self.unanswered(), *every.notes),
        )

    def _examples(self, said: Said) -> list[Example]:
        return [self.encoder.pack.examples[number] for number in said.prompts]

    def _every(self, said: Said) -> np.ndarray:
        """[prompt, side, answer] 1 where an answer keeps all that its prompt asks, else 0.

        NaN where the prompt asks for nothing.
        """
        return self._marked(said, lambda rules: rules)

    def _keeping(self, said: Said, rule: str) -> np.ndarray:
        """[prompt, side, answer] 1 where an answer keeps a rule, else 0; NaN without the rule."""
        return self._marked(said, lambda rules: [one for one in rules if one[0] == rule])

    def _marked(self, said: Said, chosen: Callable[[Sequence], Sequence]) -> np.ndarray:
        texts = said.text.transpose(1, 0, 2)
        marks = np.full(texts.shape, np.nan)
        for example, those, mark in zip(self._examples(said), texts, marks, strict=True):
            if rules := chosen(example.rules):
                mark[:] = [[all(keeps(z, *r) for r in rules) for z in side] for side in those]
        return marks


class _Marks:
    """What is true of some answers, and the rates of it.

    Args:
        metric: Whose intervals they have.
        prompts: [prompt] numbers.
        marks: [prompt, side, answer] 0 or 1; NaN where a prompt does not count.
    """

    def __init__(self, metric: Constraints, prompts: np.ndarray, marks: np.ndarray) -> None:
        self.here = ~np.isnan(marks).all((1, 2))
        self.metric, self.prompts, self.marks = metric, prompts[self.here], marks[self.here]
        self.asked = len(self.prompts)

    @property
    def notes(self) -> list[str]:
        """That one prompt has no interval."""
        clusters = np.asarray(self.metric.encoder.pack.clusters)[self.prompts]
        return ["One prompt, or one group of them, has no interval."] * (len({*clusters}) < 2)

    def shares(self, which: slice) -> np.ndarray:
        """[prompt, side] share of the answers of each model."""
        some = self.marks[:, :, which]
        return some.mean(2) if some.shape[2] else np.full(some.shape[:2], np.nan)

    def rates(self, which: slice) -> list[Estimate]:
        """The rate of base, of aligned, and their difference."""
        base, aligned = self.shares(which).T
        return self._means(np.stack([base, aligned, aligned - base], 1), self.prompts)

    def greedy(self, which: slice) -> list[Estimate]:
        """The rate of the greedy answers of base and of aligned, with Wilson's interval."""
        shares, level = self.shares(which), self.metric.level
        found = (wilson(side.sum(), len(side), level) for side in shares.T)
        return [Estimate(*map(float, one)) for one in found]

    def flips(self, which: slice) -> tuple[float, float]:
        """How many prompts' answers are marked only in aligned, and only in base."""
        base, aligned = self.shares(which).T
        if np.isnan(base).any():
            return np.nan, np.nan
        return float((aligned > base).sum()), float((base > aligned).sum())

    def gaps(self, other: "_Marks", which: slice) -> list[float]:
        """Of base and of aligned the rate less that of others, with its interval.

        Prompts are paired by group; groups that are not in both do not count.
        """
        groups = np.asarray(self.metric.encoder.pack.groups)
        both = sorted({*groups[self.prompts]} & {*groups[other.prompts]})
        if not both:
            return [np.nan] * 6
        ours, theirs = (
            np.array([one.shares(which)[groups[one.prompts] == g].mean(0) for g in both])
            for one in (self, other)
        )
        first = np.array([int(np.argmax(groups == group)) for group in both])
        return [number for mean in self._means(ours - theirs, first) for number in mean]

    def _means(self, shares: np.ndarray, prompts: np.ndarray) -> list[Estimate]:
        found = self.metric.intervals(shares, np.ones(len(shares)), prompts)
        return [Estimate(*map(float, one)) for one in zip(*found, strict=True)]


def _columns(names: Sequence[str], rows: Iterable[tuple]) -> dict[str, Any]:
    cells = list(zip(*rows, strict=True)) or [()] * len(names)
    return dict(zip(names, map(list, cells), strict=True))


ROWS = (
    *("by", "name", "prompts", "base", "aligned", "rise", "low", "high"),
    *("base_by_greedy", "aligned_by_greedy", "only_aligned", "only_base"),
)
FORMATS = (
    *("format", "prompts", "base", "aligned", "rise", "low", "high"),
    *(f"{side}_gap{end}" for side in ("base", "aligned") for end in ("", "_low", "_high")),
)
