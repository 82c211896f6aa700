"""Whether a model that is unsure is wrong, where the right answers are known."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from driftlens.errors import DriftlensError
from driftlens.formulas import uncertainty as u
from driftlens.formulas.answers import MATCHES, Match, says
from driftlens.formulas.clusters import WORDS, Method, clustered, semantic_entropy
from driftlens.formulas.intervals import resampled, wilson
from driftlens.models import ModelPair
from driftlens.models.generation import Sampling
from driftlens.models.tokens import Encoder
from driftlens.results import Estimate, Result, column, fact, figures, value
from driftlens.sampled import Said, Sampled

SIDES = ("base", "aligned")

SCORES = ("mean_entropy", "max_entropy", "first_entropy", "semantic_entropy", "length")
"""What may say that an answer is wrong; the last only by how long it is."""

ROUNDS = 2000
"""Draws of a bootstrap."""

RIGHT = """
A prompt's greedy answer is right if its first line says one of the right answers as whole words, \
capitals and marks apart (`contains`, which takes an answer that names several or denies one for \
right too); the pack's card may ask that it be one (`match = "exact"`), or that the \
last number of the whole answer be the right one (`match = "number"`).
""".strip()


@dataclass(frozen=True)
class RightAnswersResult(Result):
    """How often each model's own answer is right."""

    kind = "right_answers"
    title = "Right answers"
    over = "What alignment cost, in right answers"
    how = (
        RIGHT
        + """

forgotten is the share of prompts that base answers rightly and aligned does not, gained the other \
way round; accuracy lost = forgotten − gained, so that what is lost and what is learnt do not hide \
each other. Intervals of shares are Wilson's, that of what was lost a bootstrap's over prompts \
(2 000 rounds), base and aligned drawn together.

The rule is ours: no judge but the words themselves.
"""
    ).strip()

    accuracy_lost: Estimate = value("of prompts")
    """Base's accuracy less aligned's."""
    base_accuracy: Estimate = value("of prompts")
    """Share of prompts that base answers rightly."""
    aligned_accuracy: Estimate = value("of prompts")
    """The same of aligned."""
    forgotten: Estimate = value("of prompts")
    """Share that base answers rightly and aligned wrongly."""
    gained: Estimate = value("of prompts")
    """Share that base answers wrongly and aligned rightly."""

    prompt: np.ndarray = column()
    """[row] what both were asked."""
    topic: np.ndarray = column()
    """[row] what it is about."""
    right: np.ndarray = column()
    """[row] the right answers."""
    base_answer: np.ndarray = column()
    """[row] base's greedy answer."""
    aligned_answer: np.ndarray = column()
    """[row] aligned's."""
    base_right: np.ndarray = column()
    """[row] whether base's is right."""
    aligned_right: np.ndarray = column()
    """[row] whether aligned's is."""
    base_entropy: np.ndarray = column("nats/token")
    """[row] mean token entropy of base's greedy answer."""
    aligned_entropy: np.ndarray = column("nats/token")
    """[row] the same of aligned."""
    base_semantic_entropy: np.ndarray = column("nats")
    """[row] entropy of the clusters of base's drawn answers; NaN of fewer than two."""
    aligned_semantic_entropy: np.ndarray = column("nats")
    """[row] the same of aligned."""

    match: str = fact()
    """How answers are held against the right ones."""

    near_zero: ClassVar[tuple[str, ...]] = ("accuracy_lost", "forgotten", "gained")
    adds: ClassVar[tuple[str, ...]] = ("accuracy_lost",)
    levels: ClassVar[Mapping[str, str]] = {"accuracy": "accuracy_lost"}

    def summary(self) -> str:
        """Both accuracies, and what was forgotten and gained."""
        return (
            f"Base answers {self.base_accuracy} of {len(self.prompt)} prompts rightly and aligned "
            f"{self.aligned_accuracy}: {self.forgotten.value:.1%} were forgotten and "
            f"{self.gained.value:.1%} gained."
        )

    def headline(self) -> str:
        """What was lost, if that can be told."""
        lost = self.accuracy_lost
        if not (lost.low > 0 or lost.high < 0):
            return ""
        if lost.value > 0:
            return f"its own answers are right {lost} less often (share of prompts)"
        return f"its own answers are right {Estimate(*_turned(lost))} more often (share of prompts)"


@dataclass(frozen=True)
class UncertaintyResult(Result):
    """Whether what a model is unsure of is what it gets wrong."""

    kind = "uncertainty"
    title = "Whether uncertainty tells what is wrong"
    over = "What alignment took from the model's own doubt"
    how = (
        RIGHT
        + """

Scores of a prompt: mean, largest and first Shannon entropy of the tokens of the greedy answer, at \
temperature 1; semantic entropy of the answers drawn, by the words they have in common; and the \
greedy answer's length in tokens, which costs nothing: a score that does not beat it tells no more \
than that long answers are wrong. AUROC is the chance that a wrong answer has a higher score than \
a right one, ties counting half: ½ tells nothing, below ½ the score is turned round. Of a score \
that is the same everywhere, or where all answers are right or all wrong, it is undefined. Cohen's \
d is the distance of the wrong from the right in their pooled spread. selective accuracy is that \
of the half of the prompts with the lowest scores; AURC the mean, over all coverages, of the share \
that is wrong among the surest (Geifman et al. 2019). What is equally sure counts as if drawn by \
lot.

Cascade: the greedy answer's mean entropy is asked first, which costs one answer; above its median \
over the prompts, the drawn answers' semantic entropy is, which costs all of them; above its \
median no answer is given. Expected cost = Σ c_i Π_{j<i} β_j, with β the share that is sent on \
(Liu, arXiv 2603.24124). The limits are medians, chosen without a look at what is right.

Intervals of AUROC are 95 % percentile intervals of a bootstrap over prompts (2 000 rounds; those \
that draw one kind of answer alone are left out), base and aligned drawn together; those of \
selective accuracy are Wilson's.
"""
    ).strip()

    base_auroc: Estimate = value("of couples")
    """Chance that base's mean token entropy is higher of a wrong answer than of a right one."""
    aligned_auroc: Estimate = value("of couples")
    """The same of aligned."""
    auroc_change: Estimate = value("of couples")
    """Aligned less base; below 0 its doubt tells less."""
    base_length_auroc: Estimate = value("of couples")
    """The same by the length of base's answer alone."""
    aligned_length_auroc: Estimate = value("of couples")
    """The same of aligned."""
    base_semantic_auroc: Estimate = value("of couples")
    """The same by the semantic entropy of base's answers."""
    aligned_semantic_auroc: Estimate = value("of couples")
    """The same of aligned."""
    base_selective_accuracy: Estimate = value("of answers")
    """Share that is right of the half with base's lowest mean token entropies."""
    aligned_selective_accuracy: Estimate = value("of answers")
    """The same of aligned."""
    base_aurc: Estimate = value("of answers")
    """Mean share that is wrong among base's surest, over all coverages."""
    aligned_aurc: Estimate = value("of answers")
    """The same of aligned."""
    base_cascade_cost: Estimate = value("answers")
    """What base's cascade costs a prompt."""
    aligned_cascade_cost: Estimate = value("answers")
    """The same of aligned."""
    base_cascade_answered: Estimate = value("of prompts")
    """Share of prompts that it answers."""
    aligned_cascade_answered: Estimate = value("of prompts")
    """The same of aligned."""
    base_cascade_accuracy: Estimate = value("of answers")
    """Share of these that is right."""
    aligned_cascade_accuracy: Estimate = value("of answers")
    """The same of aligned."""

    score: np.ndarray = column()
    """[row] what says that an answer is wrong."""
    model: np.ndarray = column()
    """[row] `base` or `aligned`."""
    prompts: np.ndarray = column("prompts")
    """[row] prompts of which it is known."""
    wrong: np.ndarray = column("prompts")
    """[row] how many of these are answered wrongly."""
    auroc: np.ndarray = column("of couples")
    """[row] chance that it is higher of a wrong answer."""
    low: np.ndarray = column("of couples")
    """[row] lower end of its interval."""
    high: np.ndarray = column("of couples")
    """[row] upper end of it."""
    change: np.ndarray = column("of couples")
    """[row] aligned's less base's, the same in both rows."""
    cohens_d: np.ndarray = column("pooled spreads")
    """[row] distance of the wrong from the right."""
    selective_accuracy: np.ndarray = column("of answers")
    """[row] accuracy of the surest half."""
    aurc: np.ndarray = column("of answers")
    """[row] mean risk over coverages."""
    coverage: float = fact("of prompts")
    """Part of the prompts that is the surest."""

    near_zero: ClassVar[tuple[str, ...]] = ("auroc_change", "change")
    levels: ClassVar[Mapping[str, str]] = {
        "auroc": "auroc_change",
        **dict.fromkeys(("length_auroc", "semantic_auroc", "selective_accuracy", "aurc"), ""),
        **dict.fromkeys(("cascade_cost", "cascade_answered", "cascade_accuracy"), ""),
    }

    def summary(self) -> str:
        """How well doubt tells what is wrong, before and after, and how well length does."""
        return (
            f"Mean token entropy tells wrong answers from right ones with an AUROC of "
            f"{_told(self.base_auroc)} in base and {_told(self.aligned_auroc)} in aligned "
            f"(0.5 is chance; length alone: {_told(self.base_length_auroc)} and "
            f"{_told(self.aligned_length_auroc)})."
        )

    def headline(self) -> str:
        """Whether its doubt tells less, if that can be told."""
        change = self.auroc_change
        if not (change.low > 0 or change.high < 0):
            return ""
        verb = "less" if change.value < 0 else "more"
        ends = f"AUROC {self.base_auroc.value:.2f} → {self.aligned_auroc.value:.2f}"
        return f"its doubt tells {verb} of what it gets wrong ({ends})"

    def figure(self) -> "figures.Figure | None":
        """AUROC by score."""
        if not len(self.score) or not self.prompts.any():
            return None
        return figures.pairs(
            [name.replace("_", " ") for name in self.score[::2].tolist()],
            *(self.auroc[::2], self.auroc[1::2]),
            xlabel="what is to tell that an answer is wrong",
            ylabel="AUROC [of couples]",
            ideal=0.5,
        )


@dataclass(frozen=True)
class RiskCoverageResult(Result):
    """What is wrong among the answers that a model is surest of, as more of them are given."""

    kind = "risk_coverage"
    title = "Risk and coverage"
    how = """
At each coverage the share that is wrong among so many prompts with the lowest mean token entropy \
of the greedy answer; those that are equally sure count as if drawn by lot. At full coverage it is \
the share of all answers that are wrong, and an order that tells nothing has that risk everywhere. \
by length: the same of the shortest answers. The areas under these curves (AURC) are those of \
the result on uncertainty.

    risk(c) = share of wrong answers among the share c of prompts with the lowest scores

Source: Geifman et al. (2019), "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", \
section 3.
""".strip()

    base_half: Estimate = value("of answers")
    """Share that is wrong of the surer half of base's answers."""
    aligned_half: Estimate = value("of answers")
    """The same of aligned."""
    base_all: Estimate = value("of answers")
    """Share of all base's answers that is wrong."""
    aligned_all: Estimate = value("of answers")
    """The same of aligned."""

    coverage: np.ndarray = column("of prompts")
    """[row] share that is answered."""
    base: np.ndarray = column("of answers")
    """[row] share that is wrong of these, of base."""
    aligned: np.ndarray = column("of answers")
    """[row] the same of aligned."""
    base_by_length: np.ndarray = column("of answers")
    """[row] the same of base's shortest."""
    aligned_by_length: np.ndarray = column("of answers")
    """[row] the same of aligned's."""

    levels: ClassVar[Mapping[str, str]] = {"half": "", "all": ""}

    def summary(self) -> str:
        """The risk of the surer half beside that of all."""
        if not len(self.coverage):
            return "No prompt with a known right answer was answered."
        return (
            f"Of the half that it is surer of base answers {self.base_half.value:.0%} wrongly "
            f"(of all {self.base_all.value:.0%}), aligned {self.aligned_half.value:.0%} (of all "
            f"{self.aligned_all.value:.0%})."
        )

    def figure(self) -> "figures.Figure | None":
        """Risk over coverage of both models."""
        if not len(self.coverage):
            return None
        lines = {"base": self.base, "aligned": self.aligned}
        by_length = {
            "base by length": self.base_by_length,
            "aligned by length": self.aligned_by_length,
        }
        return figures.curves(
            self.coverage,
            lines | by_length,
            xlabel="coverage, the surest first [of prompts]",
            ylabel="wrong among these [of answers]",
        )


_COLUMNS = (
    *("score", "model", "prompts", "wrong", "auroc", "low", "high", "change", "cohens_d"),
    *("selective_accuracy", "aurc"),
)


class Uncertainty(Sampled[UncertaintyResult]):
    """Whether a model's doubt tells where its own answers are wrong.

    Args:
        sampling: How answers are drawn; the greedy one is judged.
        match: How they are held against the right ones; None is what the pack's card says.
        method: Which of the drawn answers say the same.
        coverage: Part of the prompts that is the surest.
    """

    also = (RightAnswersResult, RiskCoverageResult)

    def __init__(
        self,
        sampling: Sampling = Sampling(),
        match: Match | None = None,
        method: Method = WORDS,
        coverage: float = 0.5,
    ) -> None:
        super().__init__(sampling)
        self.match, self.method, self.coverage = match, method, coverage

    def fits(self, encoder: Encoder) -> bool:
        """Whether the pack holds prompts with right answers, and the greedy answer is given."""
        known = any(example.choices for example in encoder.pack.examples)
        return super().fits(encoder) and known and self.sampling.greedy

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make sure that it is known how answers are held against the right ones."""
        super().begin(pair, encoder)
        self._match()

    def compute(self) -> UncertaintyResult:
        """The result of all that was seen so far."""
        seen = self._seen()
        rows: dict[str, list] = {name: [] for name in _COLUMNS}
        found: dict[str, list[Estimate]] = {}
        for number, name in enumerate(SCORES):
            scores = seen.scores[:, number]
            *ends, change = found[name] = self._aurocs(scores, seen.wrong, seen.prompts)
            for side, auroc in enumerate(ends):
                known = ~np.isnan(scores[side])
                unsure, wrong = scores[side, known], seen.wrong[side, known]
                row = (
                    *(name, SIDES[side], int(known.sum()), int(wrong.sum()), *auroc),
                    *(change.value, u.cohens_d(unsure, wrong)),
                    u.selective_accuracy(unsure, wrong, self.coverage),
                    u.risk_coverage(unsure, wrong).area,
                )
                for column_name, cell in zip(_COLUMNS, row, strict=True):
                    rows[column_name].append(cell)
        mean = found["mean_entropy"]
        return UncertaintyResult.of(
            auroc_change=mean[2],
            **{f"{side}_auroc": mean[n] for n, side in enumerate(SIDES)},
            **{f"{side}_length_auroc": found["length"][n] for n, side in enumerate(SIDES)},
            **{
                f"{side}_semantic_auroc": found["semantic_entropy"][n]
                for n, side in enumerate(SIDES)
            },
            **self._of_sides(seen),
            coverage=self.coverage,
            notes=(*self._left_out(seen), *_undefined(rows)),
            **rows,
        )

    def beside(self) -> list[Result]:
        """Which answers are right, and the risk at each coverage."""
        seen = self._seen()
        return [self._right(seen), self._risks(seen)]

    def _right(self, seen: "_Seen") -> RightAnswersResult:
        examples = [self.encoder.pack.examples[number] for number in seen.prompts]
        base, aligned = ~seen.wrong
        count = len(examples)
        lost = self.intervals(
            base.astype(float) - aligned.astype(float), np.ones(count), seen.prompts
        )
        shares = {
            "base_accuracy": base,
            "aligned_accuracy": aligned,
            "forgotten": base & ~aligned,
            "gained": aligned & ~base,
        }
        return RightAnswersResult.of(
            accuracy_lost=Estimate(*map(float, lost)),
            prompt=np.array([example.text for example in examples], str),
            topic=np.array([example.topic for example in examples], str),
            right=np.array([" / ".join(example.choices) for example in examples], str),
            base_answer=seen.text[0],
            aligned_answer=seen.text[1],
            base_right=base,
            aligned_right=aligned,
            base_entropy=seen.scores[0, 0],
            aligned_entropy=seen.scores[1, 0],
            base_semantic_entropy=seen.scores[0, 3],
            aligned_semantic_entropy=seen.scores[1, 3],
            match=self._match(),
            notes=tuple(self._left_out(seen)),
            **{name: self._share(rows.sum(), count) for name, rows in shares.items()},
        )

    def _risks(self, seen: "_Seen") -> RiskCoverageResult:
        curves = [
            u.risk_coverage(seen.scores[side, SCORES.index(name)], seen.wrong[side])
            for name in ("mean_entropy", "length")
            for side in range(2)
        ]
        risks = [curve.risk for curve in curves]
        half = int(np.ceil(len(risks[0]) / 2)) - 1
        at = dict(zip(("half", "all"), (half, -1), strict=True)) if len(risks[0]) else {}
        return RiskCoverageResult.of(
            coverage=curves[0].coverage,
            base=risks[0],
            aligned=risks[1],
            base_by_length=risks[2],
            aligned_by_length=risks[3],
            notes=tuple(self._left_out(seen)),
            **{
                f"{side}_{name}": risks[n][at[name]] if at else np.nan
                for n, side in enumerate(SIDES)
                for name in ("half", "all")
            },
        )

    def _match(self) -> Match:
        found: Any = self.match or self.encoder.pack.card.get("match", MATCHES[0])
        if found not in MATCHES:
            raise DriftlensError(
                f"`match` among {', '.join(MATCHES)} in the card of {self.encoder.pack.name}",
                found=repr(found),
                remedy="Say how answers are held against the right ones.",
            )
        return found

    def _share(self, count: float, of: float) -> Estimate:
        return Estimate(*map(float, wilson(count, of, self.level)))

    def _seen(self) -> "_Seen":
        """What is known of the greedy answers to prompts with right ones."""
        said, examples, match = self.said, self.encoder.pack.examples, self._match()
        known = [n for n, number in enumerate(said.prompts) if examples[number].choices]
        prompts = said.prompts[known]
        text = said.text[:, known][:, :, 0]
        right = [
            [says(z, examples[n].choices, match) for z, n in zip(side, prompts, strict=True)]
            for side in text.tolist()
        ]
        greedy = [
            getattr(said, name)[:, known][:, :, 0].astype(np.float64)
            for name in ("entropy", "entropy_max", "entropy_first", "tokens")
        ]
        greedy.insert(3, self._semantic(said, known))
        wrong = ~np.array(right, bool).reshape(2, -1)
        return _Seen(prompts, text, wrong, np.stack(greedy, 1), len(said.prompts) - len(known))

    def _semantic(self, said: Said, known: list[int]) -> np.ndarray:
        """[side, prompt] semantic entropy of the answers drawn."""
        examples = self.encoder.pack.examples
        asked = [examples[number].text for number in said.prompts[known]]
        drawn = said.text[:, known][:, :, said.drawn].tolist()
        found = [
            [
                semantic_entropy(clustered(prompt, texts, self.method))
                for prompt, texts in zip(asked, side, strict=True)
            ]
            for side in drawn
        ]
        return np.array(found, np.float64).reshape(2, -1)

    def _aurocs(self, scores: np.ndarray, wrong: np.ndarray, prompts: np.ndarray) -> list[Estimate]:
        """AUROC of [side, prompt] scores: base's, aligned's and the change, with intervals."""
        clusters = np.asarray(self.encoder.pack.clusters)[prompts]
        _, places = np.unique(clusters, return_inverse=True)
        count = int(places.max(initial=-1)) + 1
        weights = [np.ones((1, len(prompts)))]
        if count > 1:
            weights += [z[:, places] for z in resampled(count, ROUNDS, self.seed)]
        ends = []
        for side in range(2):
            known = ~np.isnan(scores[side])
            drawn = [
                u.weighted_auroc(scores[side, known], wrong[side, known], some[:, known])
                for some in weights
            ]
            ends.append(np.concatenate(drawn))
        return [self._estimate(z) for z in (*ends, ends[1] - ends[0])]

    def _estimate(self, drawn: np.ndarray) -> Estimate:
        """The first number, with an interval from those of the others that are known."""
        rest = drawn[1:][~np.isnan(drawn[1:])]
        if np.isnan(drawn[0]) or not len(rest):
            return Estimate(float(drawn[0]))
        tail = (1 - self.level) / 2
        return Estimate(float(drawn[0]), *map(float, np.quantile(rest, [tail, 1 - tail])))

    def _of_sides(self, seen: "_Seen") -> dict[str, Estimate]:
        """Of each model the surest half, the area under its risks, and its cascade."""
        found = {}
        costs = np.array([1.0, self.sampling.samples])
        for side, name in enumerate(SIDES):
            unsure, wrong = seen.scores[side, 0], seen.wrong[side]
            answered = max(1, int(np.ceil(self.coverage * len(wrong) - 1e-9)))
            accuracy = u.selective_accuracy(unsure, wrong, self.coverage)
            found[f"{name}_selective_accuracy"] = self._share(accuracy * answered, answered)
            found[f"{name}_aurc"] = Estimate(u.risk_coverage(unsure, wrong).area)
            both = seen.scores[side, [0, 3]]
            limits = np.array([_median(z) for z in both])
            cascade = u.cascade(both, wrong, costs, limits)
            none = not len(wrong)
            found[f"{name}_cascade_cost"] = Estimate(np.nan if none else cascade.cost)
            found[f"{name}_cascade_answered"] = Estimate(cascade.answered)
            found[f"{name}_cascade_accuracy"] = Estimate(cascade.accuracy)
        return found

    def _left_out(self, seen: "_Seen") -> Iterator[str]:
        yield from self.unanswered()
        if seen.unknown:
            yield f"{seen.unknown} prompts are left out, as no right answer to them is known."


class _Seen(NamedTuple):
    prompts: np.ndarray
    """[prompt] numbers in the pack of those with right answers."""
    text: np.ndarray
    """[side, prompt] greedy answers."""
    wrong: np.ndarray
    """[side, prompt] whether they are wrong."""
    scores: np.ndarray
    """[side, score, prompt] of each of `SCORES`."""
    unknown: int
    """Prompts without right answers."""


def _median(scores: np.ndarray) -> float:
    known = scores[~np.isnan(scores)]
    return float(np.median(known)) if len(known) else np.nan


def _undefined(rows: Mapping[str, list]) -> Iterator[str]:
    """Why an AUROC is undefined, in words."""
    columns = (rows[name] for name in ("score", "model", "auroc", "prompts", "wrong"))
    for score, model, auroc, prompts, wrong in zip(*columns, strict=True):
        if not np.isnan(auroc) or not prompts:
            continue
        if wrong in (0, prompts):
            if score == SCORES[0]:
                how = "wrong" if wrong else "right"
                yield f"AUROC of {model}: undefined (constant): all its answers are {how}."
        else:
            said = score.replace("_", " ")
            yield f"AUROC of {said} in {model}: undefined (constant): it is the same everywhere."


def _told(estimate: Estimate) -> str:
    return "undefined" if np.isnan(estimate.value) else str(estimate)


def _turned(estimate: Estimate) -> tuple[float, float, float]:
    return -estimate.value, -estimate.high, -estimate.low
