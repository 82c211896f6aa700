"""Whether a majority among base's answers has become nearly all of aligned's."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import entr, expit

from driftlens.errors import DriftlensError
from driftlens.formulas.intervals import bootstrap
from driftlens.formulas.streams import PerDocument
from driftlens.formulas.variety import kl_as_best_of_n, sharpness
from driftlens.metric import Metric
from driftlens.models import Frame, ModelPair, Wants
from driftlens.models.tokens import Encoder
from driftlens.results import Estimate, Result, column, fact, figures, value
from driftlens.sweeps import Choices, seen

EXTREME = 0.99
"""Share of one side of the answers from which hardly anything is left of the other."""

SIDES = ("base", "aligned")


@dataclass(frozen=True)
class PreferenceCollapseResult(Result):
    """How far base's leanings between answers were driven to one side."""

    kind = "preference_collapse"
    title = "Preference collapse"
    over = "What alignment did to leanings, in nats"
    how = """
At the token with which an answer begins, q is base's share of the wanted answers among those of \
the item, π aligned's. Where a reward is maximised and the KL from base weighs β,

    logit π = logit q + logit(p) / β,

with p the share of those asked who prefer the wanted answer (Xiao et al. 2024, with rewards by \
Bradley and Terry): everything moves to the majority, and further than p as soon as β is small. \
logit π is regressed on logit q, by least squares over the items. shift, the mean of logit π − \
logit q, is such a push. slope above 1 is no push to one side: whatever base was for, aligned is \
for more (as at a lower temperature); below 1 its leanings were levelled. 1/β and the distance \
|share − p| of each model are told where the pack's card says p (`preference`).

answer entropy is that of the two sides' shares, from 0 to ln 2; majority the mean share of the \
likelier side; extreme the share of items in which one side has more than 0.99 of the other and \
itself; turned those in which the likelier side is another.

KL(aligned ‖ base) is of that one token, over the whole vocabulary, and at most what it is of \
whole answers. best of n is the n whose best of n answers is as far from one answer: \
log n − (n − 1)/n (Beirami et al. 2024).

Intervals are 95 % percentile intervals of a bootstrap over items (2 000 rounds), families \
together.
""".strip()

    shift: Estimate = value("nats")
    """Mean of logit π − logit q: above 0 towards the wanted answers."""
    slope: Estimate = value("")
    """Slope of logit π on logit q; 1 of a model with itself."""
    intercept: Estimate = value("nats")
    """logit π at q = ½, by that line."""
    base_answer_entropy: Estimate = value("nats")
    """Mean entropy of the wanted and the other side in base."""
    aligned_answer_entropy: Estimate = value("nats")
    """The same in aligned."""
    answer_entropy_change: Estimate = value("nats")
    """Aligned less base; below 0 leanings became surer."""
    base_majority: Estimate = value("of answers")
    """Mean share of the likelier side in base."""
    aligned_majority: Estimate = value("of answers")
    """The same in aligned."""
    majority_change: Estimate = value("of answers")
    """Aligned less base."""
    base_extreme: Estimate = value("of items")
    """Share of items that base leaves hardly open."""
    aligned_extreme: Estimate = value("of items")
    """The same of aligned."""
    extreme_change: Estimate = value("of items")
    """Aligned less base."""
    turned: Estimate = value("of items")
    """Share of items in which the other side is the likelier."""
    kl_aligned_base: Estimate = value("nats")
    """Mean KL(aligned ‖ base) of the first token."""
    best_of_n: Estimate = value("answers")
    """How many answers to choose the best from would go as far."""
    inverse_beta: Estimate = value("1/β")
    """Median over items of what takes base's share to aligned's; NaN where p is not known."""
    base_unmatched: Estimate = value("of answers")
    """Mean distance of base's share from p."""
    aligned_unmatched: Estimate = value("of answers")
    """The same of aligned."""

    item: np.ndarray = column()
    """[row] what both were shown, with the answer that is wanted."""
    topic: np.ndarray = column()
    """[row] what it is about."""
    base: np.ndarray = column("of answers")
    """[row] q, base's share of the wanted answers."""
    aligned: np.ndarray = column("of answers")
    """[row] π, aligned's."""
    change: np.ndarray = column("nats")
    """[row] logit π − logit q."""
    kl: np.ndarray = column("nats")
    """[row] KL(aligned ‖ base) of the first token."""

    preference: float = fact("of those asked")
    """p, the share of those asked who prefer the wanted answer; NaN where it is not known."""

    near_zero: ClassVar[tuple[str, ...]] = (
        *("shift", "intercept", "answer_entropy_change", "majority_change", "extreme_change"),
        *("turned", "kl_aligned_base", "change", "kl"),
    )
    adds: ClassVar[tuple[str, ...]] = (
        *("majority_change", "answer_entropy_change", "extreme_change", "shift"),
    )
    levels: ClassVar[Mapping[str, str]] = {
        **{name: f"{name}_change" for name in ("answer_entropy", "majority", "extreme")},
        "unmatched": "",
    }

    def summary(self) -> str:
        """How far leanings were amplified and pushed."""
        value, low, high = self.shift
        moved = Estimate(value, low, high) if value >= 0 else Estimate(-value, -high, -low)
        return (
            f"In {len(self.item)} items the likelier side has {self.aligned_majority.value:.1%} of "
            f"the answers (base: {self.base_majority.value:.1%}): log-odds moved {moved} nats "
            f"{'towards' if value >= 0 else 'away from'} the wanted answers, and rise by "
            f"{self.slope} for each nat of base's."
        )

    def headline(self) -> str:
        """Whether leanings became surer, if that can be told."""
        change = self.answer_entropy_change
        if not change.high < 0:
            return ""
        ends = f"{self.base_majority.value:.0%} → {self.aligned_majority.value:.0%}"
        return f"its leanings between answers collapsed (likelier side: {ends})"

    def figure(self) -> "figures.Figure | None":
        """Aligned's log-odds over base's, item by item."""
        if not len(self.item):
            return None
        return figures.points(
            self.base,
            self.aligned,
            np.full(len(self.base), "item"),
            names={"item": "items"},
            xlabel="base's share of the wanted answers [of answers]",
            ylabel="aligned's [of answers]",
            lines=(0.5, 0.5),
        )


class PreferenceCollapse(Metric[PreferenceCollapseResult]):
    """How far leanings between answers were driven to one side.

    Args:
        reading: The pack of choices as it is read; `measure` is shown its pack.
        preference: p, the share of those asked who prefer the wanted answers; None is what the
            pack's card says.
        seed: Of the bootstrap.
    """

    wants = Wants(causal=True, same_tokens=True)

    def __init__(self, reading: Choices, preference: float | None = None, seed: int = 0) -> None:
        self.reading, self.preference, self.seed = reading, preference, seed
        self.sums = PerDocument(3)

    def fits(self, encoder: Encoder) -> bool:
        """Whether items ask for behaviour: to be surer of what is right is no collapse."""
        return any(example.asks != "right" for example in encoder.pack.examples)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make sure that the preference is a share."""
        super().begin(pair, encoder)
        self._share()

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        documents, values = seen(self.reading, frame)
        odds = values[:, :, self.reading.columns.index("log_odds")]
        self.sums.update(documents, np.column_stack([odds, np.zeros(len(odds))]))
        kl = frame.comparison.kl_aligned_base.double().numpy()
        rows = np.column_stack([np.zeros((len(kl), 2)), kl])
        self.sums.update(frame.scored.document, rows)

    def compute(self) -> PreferenceCollapseResult:
        """The result of all that was seen so far."""
        documents, sums = self.sums.documents, self.sums.sums
        odds, kl, p = sums[:, :2], sums[:, 2], self._share()
        share, examples = expit(odds), self.encoder.pack.examples
        sides = {
            # Of either side by its own log-odds: 1 − share has no digits left near 1.
            "answer_entropy": entr(share) + entr(expit(-odds)),
            "majority": expit(np.abs(odds)),
            "extreme": (expit(np.abs(odds)) > EXTREME).astype(np.float64),
        }
        found = self._means(
            documents,
            kl_aligned_base=kl,
            shift=odds[:, 1] - odds[:, 0],
            turned=(odds[:, 0] * odds[:, 1] < 0).astype(np.float64),
            **{f"{side}_{n}": z[:, k] for n, z in sides.items() for k, side in enumerate(SIDES)},
            **{f"{n}_change": z[:, 1] - z[:, 0] for n, z in sides.items()},
            **{f"{side}_unmatched": np.abs(share[:, k] - p) for k, side in enumerate(SIDES)},
        )
        slope, intercept = self._line(documents, odds)
        pushes = sharpness(share[:, 0], share[:, 1], np.full(len(share), p))
        known = pushes[~np.isnan(pushes)]
        return PreferenceCollapseResult.of(
            slope=slope,
            intercept=intercept,
            best_of_n=Estimate(*map(float, kl_as_best_of_n(found["kl_aligned_base"]))),
            inverse_beta=np.median(known) if len(known) else np.nan,
            item=np.array([examples[n].text for n in documents], str),
            topic=np.array([examples[n].topic for n in documents], str),
            base=share[:, 0],
            aligned=share[:, 1],
            change=odds[:, 1] - odds[:, 0],
            kl=kl,
            preference=p,
            notes=tuple(self._notes(p)),
            **found,
        )

    def _share(self) -> float:
        told = self.preference
        if told is None:
            told = self.encoder.pack.card.get("preference", np.nan)
        known = isinstance(told, int | float) and not isinstance(told, bool)
        if not known or not (np.isnan(told) or 0 < told < 1):
            raise DriftlensError(
                f"a `preference` between 0 and 1 in {self.encoder.pack.name}",
                found=repr(told),
                remedy="Give the share of those asked who prefer the wanted answers.",
            )
        return float(told)

    def _means(self, documents: np.ndarray, **columns: np.ndarray) -> dict[str, Estimate]:
        rows = np.column_stack([*columns.values()])
        found = self.intervals(rows, np.ones(len(rows)), documents)
        numbers = zip(*(bound.tolist() for bound in found), strict=True)
        return {name: Estimate(*z) for name, z in zip(columns, numbers, strict=True)}

    def _line(self, documents: np.ndarray, odds: np.ndarray) -> list[Estimate]:
        """Slope and intercept of aligned's log-odds on base's."""
        x, y = odds.T
        found = bootstrap(
            np.column_stack([x, y, x * x, x * y]),
            np.ones(len(odds)),
            seed=self.seed,
            level=self.level,
            clusters=np.asarray(self.encoder.pack.clusters)[documents],
            of=_fitted,
        )
        numbers = zip(*(bound.tolist() for bound in found), strict=True)
        return [Estimate(*z) for z in numbers]

    def _notes(self, p: float) -> Iterator[str]:
        if np.isnan(p):
            yield "What share of those asked prefer the wanted answers is not known: no 1/β."


def _fitted(means: np.ndarray) -> np.ndarray:
    """[2] slope and intercept, of the means of x, y, x² and xy."""
    x, y, xx, xy = means
    spread = xx - x * x
    # Items that are all alike to base have no line through them.
    slope = (xy - x * y) / spread if spread > 0 else np.nan
    return np.array([slope, y - slope * x])
