"""Whether both models rank the answers of preference pairs as their raters did."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from scipy.special import expit

from driftlens.formulas import entanglement, flips, tilt, variety
from driftlens.formulas.ranks import spearman
from driftlens.formulas.streams import Rows
from driftlens.metric import Metric
from driftlens.models import Frame, ModelPair
from driftlens.models.tokens import Encoder
from driftlens.results import Estimate, Result, column, fact, figures, value

BETA = 0.1
"""β of implicit rewards where none is named."""

BETAS = (0.01, 0.1, 1.0, 5.0, 10.0)
"""For which the ceiling is told."""

TOPICS = 8
"""Topics that fit into the picture."""

SOURCE = """
Source: Chen et al. (2024), "Preference Learning Algorithms Do Not Learn Preference Rankings".
""".strip()


@dataclass(frozen=True)
class RankingResult(Result):
    """How often either model holds the chosen answer likelier than the rejected one."""

    kind = "ranking"
    title = "Preference ranking"
    over = "What alignment changed"
    how = f"""
A pair is ranked right if log π(y_w|x) > log π(y_l|x) (accuracy, sums over the answers' tokens), \
or if so by means over their tokens (accuracy_by_mean); a tie is wrong. Of right and wrong chains \
of thought the latter is the assessment accuracy. Base is the reference: the implicit reward of an \
answer is β (log π_a − log π_b), reward_accuracy the share of pairs whose chosen answer has more \
of it, reward_margin its mean lead. An aligned model may have learnt its rewards and yet rank no \
pair otherwise: mended is the share of pairs that base ranks wrong and aligned right, broken \
the other way round, flip_p McNemar's exact test of their being as many. ceiling is the share that \
a model at the optimum of DPO from this base would rank right, \
log π_b(y_w) − log π_b(y_l) + log(α/(1 − α))/β > 0, α the share of raters, or .999 where it is not \
known.

chosen_rise and rejected_rise are changes of the answers' log-probabilities; pushed_out is the \
share of pairs whose rejected answer has, by aligned, less probability a token than base gives to \
any rejected answer. by_length ranks the longer answer first, equals counting half. \
kl_on_chosen and kl_on_rejected are exact KL(aligned ‖ base) of the next token along the answers \
as they are given, not along what aligned would say. collapse = \
|π(y_w)/(π(y_w) + π(y_l)) − p*|, p* the share of raters that prefer the chosen answer.

Intervals: 95 % bootstrap over pairs.

{SOURCE} Yuan et al. (2023), "RRHF", and Wang et al. (2023), "Making Large Language Models Better \
Reasoners with Alignment" (means, assessment); Xiao et al. (2024), "On the Algorithmic Bias of \
Aligning Large Language Models with RLHF" (collapse).
""".strip()

    base_accuracy: Estimate = value("of pairs")
    """Share of pairs that base ranks right, by sums."""
    aligned_accuracy: Estimate = value("of pairs")
    """The same of aligned."""
    accuracy_change: Estimate = value("of pairs")
    """Aligned's share less base's."""
    base_accuracy_by_mean: Estimate = value("of pairs")
    """Share that base ranks right, by means over tokens."""
    aligned_accuracy_by_mean: Estimate = value("of pairs")
    """The same of aligned."""
    accuracy_by_mean_change: Estimate = value("of pairs")
    """Aligned's share less base's."""
    reward_accuracy: Estimate = value("of pairs")
    """Share of pairs whose chosen answer has the greater implicit reward."""
    reward_margin: Estimate = value("nats")
    """Mean implicit reward of the chosen answer less that of the rejected one."""
    ceiling: Estimate = value("of pairs")
    """Share that DPO with this β could rank right at best, by sums."""
    mended: Estimate = value("of pairs")
    """Share of all pairs that base ranks wrong and aligned right, by sums."""
    broken: Estimate = value("of pairs")
    """Share of all pairs that base ranks right and aligned wrong."""
    mended_of_wrong: Estimate = value("of wrong pairs")
    """Share, of the pairs that base ranks wrong, that aligned ranks right."""
    flip_p: Estimate = value("p")
    """Chance of so uneven flips, were either way as likely."""
    chosen_rise: Estimate = value("nats/answer")
    """Mean change of the chosen answer's log-probability."""
    rejected_rise: Estimate = value("nats/answer")
    """Mean change of the rejected answer's."""
    chosen_fell: Estimate = value("of pairs")
    """Share of pairs whose chosen answer lost probability."""
    both_fell: Estimate = value("of pairs")
    """Share of pairs both of whose answers did."""
    pushed_out: Estimate = value("of pairs")
    """Share of pairs whose rejected answer left the range that base gives such answers."""
    kl_on_chosen: Estimate = value("nats/token")
    """Mean KL(aligned ‖ base) along the chosen answers; NaN where tokenizers differ."""
    kl_on_rejected: Estimate = value("nats/token")
    """The same along the rejected ones."""
    chosen_length: Estimate = value("tokens")
    """Mean length of the chosen answers."""
    rejected_length: Estimate = value("tokens")
    """Mean length of the rejected ones."""
    by_length: Estimate = value("of pairs")
    """Share of pairs that length alone ranks right, the longer answer first."""
    length_bias: Estimate = value("Spearman")
    """Correlation, over pairs, of the lead in length with the lead in implicit reward."""
    base_collapse: Estimate = value("probability")
    """Mean distance of base's preference from the raters'; NaN where theirs is not known."""
    aligned_collapse: Estimate = value("probability")
    """The same of aligned."""

    topic: np.ndarray = column()
    """[row] topic of the pairs, or `all`."""
    pairs: np.ndarray = column("pairs")
    """[row] how many there are."""
    base: np.ndarray = column("of pairs")
    """[row] share that base ranks right, by sums."""
    aligned: np.ndarray = column("of pairs")
    """[row] share that aligned ranks right."""
    change: np.ndarray = column("of pairs")
    """[row] aligned's share less base's."""
    low: np.ndarray = column("of pairs")
    """[row] lower end of its 95 % interval."""
    high: np.ndarray = column("of pairs")
    """[row] upper end of it."""
    base_by_mean: np.ndarray = column("of pairs")
    """[row] share that base ranks right, by means over tokens."""
    aligned_by_mean: np.ndarray = column("of pairs")
    """[row] share that aligned ranks right so."""
    change_by_mean: np.ndarray = column("of pairs")
    """[row] aligned's share less base's."""
    margin: np.ndarray = column("nats")
    """[row] mean lead of the chosen answer in implicit reward."""

    beta: float = fact()
    """β of implicit rewards and of the ceiling."""
    shown: int = fact("pairs")
    """Pairs that were shown."""
    flipped: tuple[int, ...] = fact("pairs")
    """How many went from right to wrong, and from wrong to right."""

    near_zero: ClassVar[tuple[str, ...]] = (
        "accuracy_change",
        "accuracy_by_mean_change",
        "reward_margin",
        "mended",
        "broken",
        "chosen_rise",
        "rejected_rise",
        "pushed_out",
        "change",
        "change_by_mean",
        "margin",
    )

    def summary(self) -> str:
        """Both accuracies, the ceiling, and how the answers moved."""
        if not self.shown:
            return "There is no pair to look at."
        return (
            f"Base ranks {self.base_accuracy.value:.1%} of {self.shown} pairs right and aligned "
            f"{self.aligned_accuracy.value:.1%} (by means over tokens "
            f"{self.base_accuracy_by_mean.value:.1%} and "
            f"{self.aligned_accuracy_by_mean.value:.1%}), {self.flipped[1]} mended and "
            f"{self.flipped[0]} broken (p = {self.flip_p.value:.2g}), while its implicit rewards "
            f"prefer the chosen answer in {self.reward_accuracy.value:.1%}; at best DPO with β "
            f"{self.beta:g} would rank {self.ceiling.value:.1%} right, and the chosen answer lost "
            f"probability in {self.chosen_fell.value:.0%}."
        )

    def headline(self) -> str:
        """By how much the ranking changed."""
        if not self.shown or not self.above_floor("accuracy_change"):
            return ""
        return (
            f"it ranks {self.aligned_accuracy.value:.0%} of preference pairs right, where base "
            f"ranks {self.base_accuracy.value:.0%}"
        )

    def figure(self) -> "figures.Figure | None":
        """Both models' accuracies, by sums and by means, of all pairs and by topic."""
        if not self.shown:
            return None
        rows = slice(0, TOPICS + 1)
        figure, (left, right) = figures.panels(2)
        for panel, mean, words in ((left, "", "sums"), (right, "_by_mean", "means over tokens")):
            figures.pairs(
                [*self.topic[rows]],
                getattr(self, f"base{mean}")[rows],
                getattr(self, f"aligned{mean}")[rows],
                xlabel=f"pairs, by {words}",
                ylabel="ranked right [of pairs]",
                ideal=0.5,
                on=panel,
            )
        return figure


@dataclass(frozen=True)
class RankedPairsResult(Result):
    """How both answers of each pair moved."""

    kind = "ranked_pairs"
    title = "Preference pairs"
    over = "What alignment changed"
    how = """
Log-probabilities are sums over the answer's tokens, in nats; a rise is aligned − base. ideal: the \
chosen answer did not fall and the rejected one did not rise; both_down, both_up and reversed as \
they say. margin = β times the rise of the chosen less that of the rejected.

    margin = β [(log π_a(y_w) − log π_b(y_w)) − (log π_a(y_l) − log π_b(y_l))]

Source: Rafailov et al. (2023), "Direct Preference Optimization" (the implicit reward); the cases \
are those of Yuan et al. (2025), here of what happened.
""".strip()

    ideal: Estimate = value("of pairs")
    """Share of pairs that moved as preferences ask for."""
    both_down: Estimate = value("of pairs")
    """Share of pairs both of whose answers lost probability."""
    both_up: Estimate = value("of pairs")
    """Share of pairs both of whose answers gained it."""
    reversed: Estimate = value("of pairs")
    """Share of pairs whose chosen answer fell and whose rejected one rose."""

    pair: np.ndarray = column()
    """[row] number of the pair in its file, from 0."""
    topic: np.ndarray = column()
    """[row] its topic."""
    chosen_tokens: np.ndarray = column("tokens")
    """[row] length of the chosen answer."""
    rejected_tokens: np.ndarray = column("tokens")
    """[row] length of the rejected one."""
    base_lead: np.ndarray = column("nats")
    """[row] log π_b(y_w) − log π_b(y_l)."""
    aligned_lead: np.ndarray = column("nats")
    """[row] the same of aligned."""
    chosen_rise: np.ndarray = column("nats")
    """[row] change of the chosen answer's log-probability."""
    rejected_rise: np.ndarray = column("nats")
    """[row] change of the rejected answer's."""
    margin: np.ndarray = column("nats")
    """[row] lead of the chosen answer in implicit reward."""
    case: np.ndarray = column()
    """[row] how the two moved."""

    near_zero: ClassVar[tuple[str, ...]] = ("chosen_rise", "rejected_rise", "margin")

    def summary(self) -> str:
        """How many pairs moved how."""
        if not self.rows():
            return "There is no pair to look at."
        return (
            f"In {self.ideal.value:.0%} of {self.rows()} pairs the chosen answer did not fall nor "
            f"the rejected one rise; in {self.both_down.value:.0%} both fell, in "
            f"{self.both_up.value:.0%} both rose, and in {self.reversed.value:.0%} they moved "
            "the wrong way."
        )

    def figure(self) -> "figures.Figure | None":
        """Both answers' changes, pair by pair."""
        if not self.rows():
            return None
        names = {
            "ideal": "as preferred",
            "both_down": "both down",
            "both_up": "both up",
            "reversed": "reversed",
            "still": "unmoved",
        }
        return figures.points(
            self.chosen_rise,
            self.rejected_rise,
            self.case,
            names=names,
            xlabel="rise of the chosen answer [nats]",
            ylabel="rise of the rejected answer [nats]",
            lines=(0.0, 0.0),
        )


@dataclass(frozen=True)
class RankingCeilingResult(Result):
    """How many pairs training could rank right at best."""

    kind = "ranking_ceiling"
    title = "The ceiling of ranking"
    over = "What alignment changed"
    how = f"""
At the optimum of DPO with β and base as its reference a pair is ranked right if \
log π_b(y_w) − log π_b(y_l) + log(α/(1 − α))/β > 0. α is the share of raters that prefer the \
chosen answer, or .999 where it is not known: reach = 6.907/β nats is then how far the optimum \
moves a margin.

{SOURCE}
"""

    aligned_accuracy: Estimate = value("of pairs")
    """Share of pairs that aligned ranks right, by sums."""

    beta: np.ndarray = column()
    """[row] β."""
    reach: np.ndarray = column("nats")
    """[row] how far the optimum moves a margin on which all raters agree."""
    ceiling: np.ndarray = column("of pairs")
    """[row] share of pairs that the optimum ranks right."""
    low: np.ndarray = column("of pairs")
    """[row] lower end of its 95 % interval."""
    high: np.ndarray = column("of pairs")
    """[row] upper end of it."""

    def summary(self) -> str:
        """The ceilings of the least and the greatest β."""
        if np.isnan(self.aligned_accuracy.value):
            return "There is no pair to look at."
        return (
            f"At best DPO from this base would rank {self.ceiling[0]:.1%} of the pairs right with "
            f"β {self.beta[0]:g}, and {self.ceiling[-1]:.1%} with β {self.beta[-1]:g}; aligned "
            f"ranks {self.aligned_accuracy.value:.1%}."
        )

    def figure(self) -> "figures.Figure | None":
        """The ceiling over β."""
        if np.isnan(self.aligned_accuracy.value):
            return None
        ours = np.full(len(self.beta), self.aligned_accuracy.value)
        return figures.curves(
            [f"{beta:g}" for beta in self.beta],
            {"at best": self.ceiling, "aligned": ours},
            bands={"at best": (self.low, self.high)},
            xlabel="β of DPO",
            ylabel="ranked right [of pairs]",
        )


BINS = 5
"""Parts of equal size that pairs are put into by how far they moved."""


@dataclass(frozen=True)
class RewardTiltResult(Result):
    """Whether aligned is base tilted by the rewards of the answers."""

    kind = "reward_tilt"
    title = "Tilt by the reward"
    over = "What alignment changed"
    how = """
The best policy under a penalty λ on KL from base is π ∝ π_b exp(r/λ), so that log π_a/π_b would \
be r/λ less a constant of the prompt. slope = 1/λ by least squares of the two answers' difference \
in log-ratio on their difference in reward, which needs no constant; r_squared says how tilt-like \
aligned is. pooled_slope takes all answers with one constant.

Of the two answers of a pair each model picks one, in proportion to their probabilities. win_rate \
is how often aligned's pick has the greater reward than base's, a tie being half; choice_kl how \
far the two picks lie apart, KL in nats, between the two answers and not over all that could be \
said. The rows are pairs in five parts of equal size by √KL: with too much of it the win rate may \
fall again. best_of_n is how many draws, of which the best is kept, would lie as far from base, \
and best_of_n_win_rate how often they would win. length_of_reward and length_of_tilt are \
Spearman's correlations, over pairs, of the lead in length with the lead in reward and in \
log-ratio.

Sources: Yang et al. (2024), "Asymptotics of Language Model Alignment"; Beirami et al. (2024), \
"Theoretical guarantees on the best-of-n alignment policy"; Ahrabian et al. (2025), \
"The Hitchhiker's Guide to Human Alignment with *PO" (√KL, length). Intervals: 95 % bootstrap over \
pairs.
""".strip()

    slope: Estimate = value("nats/reward")
    """1/λ, within pairs."""
    slope_error: Estimate = value("nats/reward")
    """Its standard error by least squares."""
    r_squared: Estimate = value("of variation")
    """Share of the variation within pairs that the tilt explains."""
    pooled_slope: Estimate = value("nats/reward")
    """1/λ, over all answers with one constant."""
    pooled_r_squared: Estimate = value("of variation")
    """Share of the variation over all answers that it explains."""
    win_rate: Estimate = value("of picks")
    """How often aligned's pick has the greater reward than base's."""
    choice_kl: Estimate = value("nats/pair")
    """Mean KL of aligned's pick from base's."""
    best_of_n: Estimate = value("draws")
    """How many draws, of which the best is kept, lie as far from base."""
    best_of_n_win_rate: Estimate = value("of picks")
    """How often the best of so many wins against one draw."""
    length_of_reward: Estimate = value("Spearman")
    """Correlation of the lead in length with the lead in reward."""
    length_of_tilt: Estimate = value("Spearman")
    """Correlation of the lead in length with the lead in log-ratio."""

    part: np.ndarray = column()
    """[row] number of the part, from those that moved least."""
    pairs: np.ndarray = column("pairs")
    """[row] how many it has."""
    root_kl: np.ndarray = column("√nats")
    """[row] root of their mean KL."""
    part_win_rate: np.ndarray = column("of picks")
    """[row] how often aligned's pick wins."""
    low: np.ndarray = column("of picks")
    """[row] lower end of its 95 % interval."""
    high: np.ndarray = column("of picks")
    """[row] upper end of it."""

    rated: int = fact("pairs")
    """Pairs both of whose answers have a reward."""

    near_zero: ClassVar[tuple[str, ...]] = ("slope", "pooled_slope", "choice_kl")

    def summary(self) -> str:
        """The tilt, and what it wins."""
        if not self.rated:
            return "No pair has rewards."
        return (
            f"Each unit of reward tilts aligned by {self.slope} nats, which explains "
            f"{self.r_squared.value:.0%} of how differently the two answers of {self.rated} pairs "
            f"moved; aligned's pick of the two wins {self.win_rate.value:.1%}."
        )

    def figure(self) -> "figures.Figure | None":
        """The win rate over √KL."""
        if not self.rated:
            return None
        return figures.curves(
            self.root_kl,
            {"win rate": self.part_win_rate},
            bands={"win rate": (self.low, self.high)},
            xlabel="√KL of aligned's pick from base's [√nats]",
            ylabel="aligned's pick wins [of picks]",
        )


NUMBERS = (
    *("chosen", "rejected", "chosen_length", "rejected_length"),
    *("reference_chosen", "reference_rejected", "chosen_kl", "rejected_kl"),
)
"""What is kept of every pair: log-probabilities and lengths as in `Answers`, and sums of KL."""


class Ranking(Metric[RankingResult]):
    """How often either model holds the chosen answer likelier than the rejected one.

    Args:
        seed: Of the bootstrap.
        beta: β of implicit rewards.
    """

    also = (RankedPairsResult, RankingCeilingResult, RewardTiltResult)

    kinds = ("preference",)

    def __init__(self, seed: int = 0, beta: float = BETA) -> None:
        self.seed, self.beta = seed, beta
        self.pairs = Rows(1, ("document",), {"document": np.int64})

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make room for the pairs."""
        super().begin(pair, encoder)
        kinds = dict.fromkeys(("document", "other"), np.int64)
        room = max(1, len(encoder.plan) // 2)
        self.pairs = Rows(room, ("document",), kinds | dict.fromkeys(NUMBERS, np.float64))

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        found = {name: z.numpy() for name, z in frame.answers._asdict().items()}
        count = len(frame.windows)
        kl = np.full(count, np.nan)
        if frame.encoder.same:
            exact = frame.comparison.kl_aligned_base.double().numpy()
            kl = np.bincount(frame.row_of_scored, exact, count)
        documents = np.array([window.example for window in frame.windows], np.int64)
        self.pairs.update(
            document=documents[::2],
            other=documents[1::2],
            chosen_kl=kl[::2],
            rejected_kl=kl[1::2],
            **found,
        )

    def compute(self) -> RankingResult:
        """The result of all that was seen so far."""
        return _Pairs(self).ranking()

    def beside(self) -> Sequence[Result]:
        """How each pair moved, the ceilings, and the tilt where there are rewards."""
        pairs = _Pairs(self)
        found: list[Result] = [pairs.moved(), pairs.ceilings()]
        return [*found, pairs.tilt()] if pairs.rated.any() else found


class _Pairs:
    """The pairs that a metric has seen, and what follows of them."""

    def __init__(self, of: Ranking) -> None:
        self.of, self.beta = of, of.beta
        table, examples = of.pairs.table(), of.encoder.pack.examples
        self.documents, others = table["document"], table["other"]
        self.sides = table["chosen"], table["rejected"]
        self.base_sides = table["reference_chosen"], table["reference_rejected"]
        self.lengths = table["chosen_length"], table["rejected_length"]
        self.kl = table["chosen_kl"], table["rejected_kl"]
        self.examples = [examples[n] for n in self.documents]
        self.topics = np.array([*(e.topic for e in self.examples), None], object)[:-1]
        self.raters = _known(e.preferred_by for e in self.examples)
        self.rewards = tuple(
            _known(examples[n].reward for n in side) for side in (self.documents, others)
        )
        self.rated = np.isfinite(self.rewards[0]) & np.isfinite(self.rewards[1])

    # What follows of them

    @cached_property
    def base(self) -> entanglement.Ranked:
        """[pair] whether base ranks each right."""
        return entanglement.ranked(*self.base_sides, *self.lengths)

    @cached_property
    def aligned(self) -> entanglement.Ranked:
        """[pair] whether aligned does."""
        return entanglement.ranked(*self.sides, *self.lengths)

    @cached_property
    def rises(self) -> tuple[np.ndarray, np.ndarray]:
        """[pair] changes of the chosen and of the rejected answer's log-probability."""
        chosen, rejected = (a - b for a, b in zip(self.sides, self.base_sides, strict=True))
        return chosen, rejected

    @cached_property
    def margin(self) -> np.ndarray:
        """[pair] implicit reward of the chosen answer less that of the rejected one."""
        return self.beta * (self.rises[0] - self.rises[1])

    @cached_property
    def leads(self) -> tuple[np.ndarray, np.ndarray]:
        """[pair] log-odds of the chosen answer, by base and by aligned."""
        return self.base_sides[0] - self.base_sides[1], self.sides[0] - self.sides[1]

    @cached_property
    def longer(self) -> np.ndarray:
        """[pair] by how many tokens the chosen answer is longer."""
        return self.lengths[0] - self.lengths[1]

    def mean(
        self,
        values: np.ndarray,
        over: np.ndarray | None = None,
        of: np.ndarray | slice = slice(None),
    ) -> Estimate:
        """Mean over pairs, or ratio of sums, with its interval; pairs without one are left out."""
        values, documents = np.asarray(values, np.float64)[of], self.documents[of]
        over = np.ones(len(values)) if over is None else over[of]
        known = ~np.isnan(values)
        if not known.any():
            return Estimate(np.nan)
        found = self.of.intervals(values[known], over[known], documents[known])
        return Estimate(*map(float, found))

    # What is told of them

    def ranking(self) -> RankingResult:
        """How often either model ranks them right."""
        base, aligned = self.base.by_sum == 1, self.aligned.by_sum == 1
        counted = flips.flips(base, aligned)
        fell = tuple(rise < 0 for rise in self.rises)
        return RankingResult.of(
            **self._accuracies(),
            reward_accuracy=self.mean(self.margin > 0),
            reward_margin=self.mean(self.margin),
            ceiling=self.mean(self._at_best(self.beta)),
            mended=self.mean(aligned & ~base),
            broken=self.mean(base & ~aligned),
            mended_of_wrong=self.mean(aligned & ~base, (~base).astype(float)),
            flip_p=float(flips.mcnemar(counted.right_to_wrong, counted.wrong_to_right)),
            flipped=(counted.right_to_wrong, counted.wrong_to_right),
            chosen_rise=self.mean(self.rises[0]),
            rejected_rise=self.mean(self.rises[1]),
            chosen_fell=self.mean(fell[0]),
            both_fell=self.mean(fell[0] & fell[1]),
            pushed_out=self.mean(self._pushed_out()),
            kl_on_chosen=self.mean(self.kl[0], self.lengths[0]),
            kl_on_rejected=self.mean(self.kl[1], self.lengths[1]),
            chosen_length=self.mean(self.lengths[0]),
            rejected_length=self.mean(self.lengths[1]),
            by_length=self.mean((1 + np.sign(self.longer)) / 2),
            length_bias=spearman(self.longer, self.margin),
            base_collapse=self.mean(tilt.collapse(self.leads[0], self.raters)),
            aligned_collapse=self.mean(tilt.collapse(self.leads[1], self.raters)),
            beta=self.beta,
            shown=len(self.documents),
            **self._by_topic(),
        )

    def _accuracies(self) -> dict[str, Estimate]:
        found = {}
        for mean, base, aligned in zip(("", "_by_mean"), self.base, self.aligned, strict=True):
            found[f"base_accuracy{mean}"] = self.mean(base)
            found[f"aligned_accuracy{mean}"] = self.mean(aligned)
            found[f"accuracy{mean}_change"] = self.mean(aligned - base)
        return found

    def _at_best(self, beta: float) -> np.ndarray:
        """[pair] 1 where the optimum of DPO from base ranks right."""
        raters = np.where(np.isnan(self.raters), 1.0, self.raters)
        return entanglement.ideal_ranked(*self.base_sides, beta, raters)

    def _pushed_out(self) -> np.ndarray:
        """[pair] whether the rejected answer is less likely a token than base finds any such."""
        before, after = (side[1] / self.lengths[1] for side in (self.base_sides, self.sides))
        return after < before.min(initial=np.inf)

    def _by_topic(self) -> dict[str, Any]:
        named = sorted({topic for topic in self.topics if topic})
        parts = {"all": np.ones(len(self.topics), bool)} if len(self.topics) else {}
        parts |= {topic: self.topics == topic for topic in named}
        rows: dict[str, list] = {name: [] for name in _TOPIC_COLUMNS}
        for topic, mine in parts.items():
            sums, means = (
                [z[mine].mean() for z in (base, aligned)]
                for base, aligned in zip(self.base, self.aligned, strict=True)
            )
            change = self.mean(self.aligned.by_sum - self.base.by_sum, of=mine)
            cells = (topic, int(mine.sum()), *sums, *change, *means, means[1] - means[0])
            cells = (*cells, self.margin[mine].mean())
            for name, cell in zip(_TOPIC_COLUMNS, cells, strict=True):
                rows[name].append(cell)
        return rows

    def moved(self) -> RankedPairsResult:
        """How both answers of each moved."""
        case = entanglement.cases(*self.rises)
        shares = {name: self.mean(case == name) for name in _CASES}
        return RankedPairsResult.of(
            **shares,
            pair=[self._number(place) for place in range(len(case))],
            topic=self.topics,
            chosen_tokens=self.lengths[0].astype(np.int64),
            rejected_tokens=self.lengths[1].astype(np.int64),
            base_lead=self.leads[0],
            aligned_lead=self.leads[1],
            chosen_rise=self.rises[0],
            rejected_rise=self.rises[1],
            margin=self.margin,
            case=[*case],
        )

    def _number(self, place: int) -> int:
        """Which pair of its file one is: its group's number, or else its place."""
        group = self.examples[place].group
        return group if isinstance(group, int) else int(self.documents[place])

    def ceilings(self) -> RankingCeilingResult:
        """How many could be ranked right at best."""
        found = [self.mean(self._at_best(beta)) for beta in BETAS]
        return RankingCeilingResult.of(
            aligned_accuracy=self.mean(self.aligned.by_sum),
            beta=np.array(BETAS),
            reach=entanglement.ideal_reach(BETAS),
            ceiling=[one.value for one in found],
            low=[one.low for one in found],
            high=[one.high for one in found],
        )

    def tilt(self) -> RewardTiltResult:
        """Whether aligned is base tilted by their rewards."""
        rated, number = self.rated, np.arange(len(self.documents))
        by_pair, pooled = (
            tilt.tilt(np.concatenate(self.rises), np.concatenate(self.rewards), prompts)
            for prompts in (np.concatenate([number, number]), None)
        )
        by_reward = self.rewards[0] - self.rewards[1]
        apart = self.rises[0] - self.rises[1]
        kl = np.where(rated, tilt.choice_kl(*self.leads[::-1]), np.nan)
        base, aligned = (expit(lead) for lead in self.leads)
        wins = tilt.win_rate(aligned, base, by_reward)
        far = self.mean(kl)
        draws = variety.kl_as_best_of_n(far.value)
        return RewardTiltResult.of(
            slope=self.mean(by_reward * apart, by_reward**2),
            slope_error=by_pair.error,
            r_squared=by_pair.r_squared,
            pooled_slope=pooled.slope,
            pooled_r_squared=pooled.r_squared,
            win_rate=self.mean(wins),
            choice_kl=far,
            best_of_n=float(draws),
            best_of_n_win_rate=float(tilt.best_of_n_win_rate(draws)),
            length_of_reward=spearman(self.longer[rated], by_reward[rated]),
            length_of_tilt=spearman(self.longer[rated], apart[rated]),
            rated=int(rated.sum()),
            **self._parts(kl, wins),
        )

    def _parts(self, kl: np.ndarray, wins: np.ndarray) -> dict[str, Any]:
        """The win rate of pairs that moved about as far."""
        rated = np.flatnonzero(self.rated)
        order = rated[np.argsort(kl[rated], kind="stable")]
        parts = np.array_split(order, min(BINS, len(order)))
        won = [self.mean(wins, of=np.sort(part)) for part in parts]
        return {
            "part": np.arange(1, len(parts) + 1),
            "pairs": [len(part) for part in parts],
            "root_kl": [np.sqrt(kl[part].mean()) for part in parts],
            "part_win_rate": [one.value for one in won],
            "low": [one.low for one in won],
            "high": [one.high for one in won],
        }


_TOPIC_COLUMNS = (
    *("topic", "pairs", "base", "aligned", "change", "low", "high"),
    *("base_by_mean", "aligned_by_mean", "change_by_mean", "margin"),
)
_CASES = ("ideal", "both_down", "both_up", "reversed")


def _known(numbers: Iterator[float | None]) -> np.ndarray:
    """[pair] numbers, NaN where there is none."""
    return np.array([np.nan if z is None else z for z in numbers], np.float64)
