"""Whether the aligned model says the same again and again where base said many things."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import numpy as np

from driftlens.formulas import clusters, variety
from driftlens.formulas.clusters import SPELLING, WORDS, Method, clustered
from driftlens.formulas.intervals import bootstrap
from driftlens.models.generation import Sampling
from driftlens.models.tokens import Encoder
from driftlens.results import Estimate, Result, column, fact, figures, value
from driftlens.sampled import Said, Sampled

BASE, ALIGNED = 0, 1

SIDES = ("base", "aligned")

MEASURES = (
    *("single", "semantic_entropy", "clusters", "mode_share", "distinct_1", "distinct_2"),
    *("self_bleu", "vendi", "words", "unended", "empty"),
    *("token_entropy", "first_entropy", "greedy_entropy"),
)
"""What is told of either model, and of the change from one to the other."""


@dataclass(frozen=True)
class HomogenisationResult(Result):
    """How many different things each model says to one prompt, and how sure it is of them."""

    kind = "homogenisation"
    title = "Homogenisation"
    over = "How much of its variety alignment took"
    how = """
Both models answer every prompt as often, drawn by the same uniform numbers; all is of these \
answers, prompt by prompt, and averaged over prompts. Blank answers belong to no cluster, and a \
prompt with fewer than two others is left out, not counted as one whose answers are alike. \
The answers have at most so many tokens as is told below, and how alike they are hangs on that.

Answers are in one cluster by the method `words`: a chain of answers of which each has at least \
0.4 of all words in common with the next (Jaccard similarity of their sets of words, single \
linkage). single is the single-cluster rate: the share of prompts all of whose answers are in one \
cluster (published as SCR by Liu, arXiv 2603.24124; intervals are Wilson's). semantic entropy = −Σ \
n_c/N log n_c/N over the clusters, from 0 to ln N (Farquhar et al. 2024). clusters is how many \
there are (published as diversity score), mode share what the largest has of the answers. \
distinct-n is different runs of n words over all runs (Li et al. 2016): it falls with length. \
self-BLEU is the mean BLEU-4 of each answer against the others, no match counting 0.1 (Zhu et al. \
2018). Vendi score = exp of the entropy of the eigenvalues of K/N, K the Jaccard similarities \
(Friedman & Dieng 2023).

token entropy is the mean Shannon entropy, at temperature 1, of the distributions from which each \
model drew its own answers: another text for each, unlike entropy on shared texts. first entropy \
is that of the first token, where both have read the same; greedy entropy that of the answers \
which take the likeliest token.

mode mass is the null model: were there two answers to a prompt, and the likelier had probability \
p, all N answers would be equal with p^N + (1 − p)^N. It is the p that explains the single-cluster \
rate, which is so steep in p that a small change of p looks large.

Intervals are 95 % percentile intervals of a bootstrap over prompts (2 000 rounds), base and \
aligned drawn together, prompts of one group together. Where hardly a prompt is in one cluster, \
that of the change of the rate is too narrow, and those of the rates themselves tell more.
""".strip()

    base_single: Estimate = value("of prompts")
    """Share of prompts all of whose answers base puts into one cluster."""
    aligned_single: Estimate = value("of prompts")
    """The same of aligned."""
    single_change: Estimate = value("of prompts")
    """Aligned less base; above 0 it repeats itself more."""
    base_semantic_entropy: Estimate = value("nats")
    """Mean entropy of base's clusters."""
    aligned_semantic_entropy: Estimate = value("nats")
    """The same of aligned."""
    semantic_entropy_change: Estimate = value("nats")
    """Aligned less base; below 0 variety was lost."""
    base_clusters: Estimate = value("clusters")
    """Mean number of base's clusters."""
    aligned_clusters: Estimate = value("clusters")
    """The same of aligned."""
    clusters_change: Estimate = value("clusters")
    """Aligned less base."""
    base_mode_share: Estimate = value("of answers")
    """What base's largest cluster has of the answers to a prompt."""
    aligned_mode_share: Estimate = value("of answers")
    """The same of aligned."""
    mode_share_change: Estimate = value("of answers")
    """Aligned less base."""
    base_distinct_1: Estimate = value("of words")
    """Different words over words."""
    aligned_distinct_1: Estimate = value("of words")
    """The same of aligned."""
    distinct_1_change: Estimate = value("of words")
    """Aligned less base."""
    base_distinct_2: Estimate = value("of word pairs")
    """Different couples of neighbouring words over such couples."""
    aligned_distinct_2: Estimate = value("of word pairs")
    """The same of aligned."""
    distinct_2_change: Estimate = value("of word pairs")
    """Aligned less base."""
    base_self_bleu: Estimate = value("BLEU")
    """Mean BLEU-4 of each answer against the others to the prompt."""
    aligned_self_bleu: Estimate = value("BLEU")
    """The same of aligned."""
    self_bleu_change: Estimate = value("BLEU")
    """Aligned less base; above 0 they are more alike."""
    base_vendi: Estimate = value("answers")
    """As how many answers without a common word they are as varied."""
    aligned_vendi: Estimate = value("answers")
    """The same of aligned."""
    vendi_change: Estimate = value("answers")
    """Aligned less base."""
    base_words: Estimate = value("words")
    """Mean length of base's answers."""
    aligned_words: Estimate = value("words")
    """The same of aligned."""
    words_change: Estimate = value("words")
    """Aligned less base."""
    base_unended: Estimate = value("of answers")
    """Share of answers that were cut off at the most tokens an answer may have."""
    aligned_unended: Estimate = value("of answers")
    """The same of aligned."""
    unended_change: Estimate = value("of answers")
    """Aligned less base."""
    base_empty: Estimate = value("of answers")
    """Share of answers that are blank."""
    aligned_empty: Estimate = value("of answers")
    """The same of aligned."""
    empty_change: Estimate = value("of answers")
    """Aligned less base."""
    base_token_entropy: Estimate = value("nats/token")
    """Mean entropy of what base drew its answers from."""
    aligned_token_entropy: Estimate = value("nats/token")
    """The same of aligned, on its own answers."""
    token_entropy_change: Estimate = value("nats/token")
    """Aligned less base, each on its own answers."""
    base_first_entropy: Estimate = value("nats")
    """Entropy of base's first token."""
    aligned_first_entropy: Estimate = value("nats")
    """The same of aligned."""
    first_entropy_change: Estimate = value("nats")
    """Aligned less base, after the same text."""
    base_greedy_entropy: Estimate = value("nats/token")
    """Mean entropy along base's greedy answers; NaN if there are none."""
    aligned_greedy_entropy: Estimate = value("nats/token")
    """The same of aligned."""
    greedy_entropy_change: Estimate = value("nats/token")
    """Aligned less base."""
    base_mode_mass: Estimate = value("probability")
    """Probability of the likelier of two answers that would explain base's single-cluster rate;
    NaN where the rate is lower than of two equally likely answers."""
    aligned_mode_mass: Estimate = value("probability")
    """The same of aligned."""

    prompt: np.ndarray = column()
    """[row] what both were asked."""
    topic: np.ndarray = column()
    """[row] what it is about."""
    clusters_of_base: np.ndarray = column("clusters", named="base_clusters")
    """[row] how many clusters base's answers make; NaN of fewer than two answers."""
    clusters_of_aligned: np.ndarray = column("clusters", named="aligned_clusters")
    """[row] the same of aligned."""
    entropy_of_base: np.ndarray = column("nats", named="base_semantic_entropy")
    """[row] their entropy."""
    entropy_of_aligned: np.ndarray = column("nats", named="aligned_semantic_entropy")
    """[row] the same of aligned."""
    lost: np.ndarray = column("nats")
    """[row] base's semantic entropy less aligned's: how much variety was lost."""
    mode_of_base: np.ndarray = column("of answers", named="base_mode_share")
    """[row] what the largest of base's clusters has."""
    mode_of_aligned: np.ndarray = column("of answers", named="aligned_mode_share")
    """[row] the same of aligned."""
    usual_of_base: np.ndarray = column(named="base_usual_answer")
    """[row] the first answer of that cluster."""
    usual_of_aligned: np.ndarray = column(named="aligned_usual_answer")
    """[row] the same of aligned."""
    bleu_of_base: np.ndarray = column("BLEU", named="base_self_bleu")
    """[row] self-BLEU of base's answers."""
    bleu_of_aligned: np.ndarray = column("BLEU", named="aligned_self_bleu")
    """[row] the same of aligned."""
    words_of_base: np.ndarray = column("words", named="base_words")
    """[row] mean length of base's answers."""
    words_of_aligned: np.ndarray = column("words", named="aligned_words")
    """[row] the same of aligned."""
    tokens_of_base: np.ndarray = column("nats/token", named="base_token_entropy")
    """[row] mean token entropy of base's answers."""
    tokens_of_aligned: np.ndarray = column("nats/token", named="aligned_token_entropy")
    """[row] the same of aligned."""

    prompts: int = fact("prompts")
    """Prompts that were answered."""
    samples: int = fact("answers")
    """Answers drawn of each by each model."""
    temperature: float = fact()
    """By which logits were divided."""
    most_tokens: int = fact("tokens")
    """The most tokens of an answer."""

    near_zero: ClassVar[tuple[str, ...]] = (*(f"{name}_change" for name in MEASURES), "lost")
    adds: ClassVar[tuple[str, ...]] = tuple(f"{name}_change" for name in MEASURES)
    levels: ClassVar[Mapping[str, str]] = {
        **{name: f"{name}_change" for name in MEASURES},
        "mode_mass": "",
    }

    def summary(self) -> str:
        """The single-cluster rates and the semantic entropies, with the change's interval."""
        if not self.prompts:
            return "No prompt was answered."
        return (
            f"Of {self.prompts} prompts all {self.samples} answers say the same in "
            f"{self.base_single.value:.0%} by base and in {self.aligned_single.value:.0%} by "
            f"aligned, by the words they have in common; the entropy of what they say "
            f"{_went(self.semantic_entropy_change)} nats (from "
            f"{self.base_semantic_entropy.value:.2f} to {self.aligned_semantic_entropy.value:.2f} "
            f"of {np.log(self.samples):.2f})."
        )

    def headline(self) -> str:
        """Whether its answers are more alike, if that can be told."""
        change = self.semantic_entropy_change
        if not (change.high < 0 or change.low > 0):
            return ""
        verb = "more alike" if change.value < 0 else "more varied"
        size = Estimate(*_absolute(change))
        return f"answers to one prompt became {verb} by {size} nats of semantic entropy"

    def figure(self) -> "figures.Figure | None":
        """Base beside aligned in every measure of variety."""
        if not self.prompts:
            return None
        figure, panels = figures.panels(2)
        shares = {
            "one cluster": "single",
            "mode": "mode_share",
            "self-BLEU": "self_bleu",
            "distinct-2": "distinct_2",
        }
        counts = {"clusters": "clusters", "Vendi score": "vendi"}
        for panel, names, label in (
            (panels[0], shares, "share of prompts, answers, runs [1]"),
            (panels[1], counts, f"of {self.samples} answers [answers]"),
        ):
            ends = [
                np.array([getattr(self, f"{side}_{name}").value for name in names.values()])
                for side in SIDES
            ]
            figures.pairs([*names], *ends, xlabel="mean over prompts", ylabel=label, on=panel)
        return figure


@dataclass(frozen=True)
class HomogenisationMethodsResult(Result):
    """Whether other readings of what it is to say the same find the same."""

    kind = "homogenisation_methods"
    title = "Homogenisation by method"
    how = """
`words`: a chain of answers with at least 0.4 of all words in common (Jaccard, |A ∩ B| / |A ∪ B| = \
0.4 or more, single linkage). `spelling`: average linkage at a mean cosine of at least 0.5 of 1 + \
ln(count) of three characters in a row within words. Asked for by name: `character bigrams` \
(Jaccard of couples of characters at 0.4, single linkage) and `word bigrams` (of couples of words \
at 0.4, each answer against the first of a cluster), which are two published codes for one thing; \
embeddings (average linkage at a mean cosine of at least 0.85); entailment (an answer and the \
first of its cluster follow from each other, each with a probability above ½; Kuhn et al. 2023).

No method is right; where they disagree, a single-cluster rate says more of the method than of the \
models, and only a change that all of them find is one. agreement is the share of couples of \
answers to a prompt that a method and the first both hold together or both apart; adjusted Rand \
that agreement less chance (1 is the same clusters, 0 chance; Hubert & Arabie 1985). singles \
shared is the share of the prompts in one cluster by a method that are in one by the first, too.

Intervals of rates are Wilson's, of changes those of a bootstrap over prompts.
""".strip()

    least_single_change: Estimate = value("of prompts")
    """The smallest change of the single-cluster rate that a method finds."""
    largest_single_change: Estimate = value("of prompts")
    """The largest."""
    agreement: Estimate = value("adjusted Rand")
    """Mean over prompts and models of the first two methods' agreement, less chance."""

    method: np.ndarray = column()
    """[row] name of the method."""
    model: np.ndarray = column()
    """[row] `base` or `aligned`."""
    single: np.ndarray = column("of prompts")
    """[row] share of prompts with one cluster."""
    low: np.ndarray = column("of prompts")
    """[row] lower end of its interval."""
    high: np.ndarray = column("of prompts")
    """[row] upper end of it."""
    single_change: np.ndarray = column("of prompts")
    """[row] aligned less base, the same in both rows."""
    semantic_entropy: np.ndarray = column("nats")
    """[row] mean entropy of the clusters."""
    entropy_change: np.ndarray = column("nats")
    """[row] aligned less base, the same in both rows."""
    clusters: np.ndarray = column("clusters")
    """[row] mean number of clusters."""
    mode_mass: np.ndarray = column("probability")
    """[row] of two answers the likelier's probability that would explain the rate."""
    pair_agreement: np.ndarray = column("of couples")
    """[row] couples of answers that the first method puts as this one does."""
    adjusted_rand: np.ndarray = column()
    """[row] the same less chance."""
    singles_shared: np.ndarray = column("of prompts")
    """[row] of its single clusters those that the first method finds, too."""
    firsts_shared: np.ndarray = column("of prompts")
    """[row] of the first method's single clusters those that it finds, too."""

    near_zero: ClassVar[tuple[str, ...]] = (
        *("least_single_change", "largest_single_change", "single_change", "entropy_change"),
    )

    def summary(self) -> str:
        """The rates by each method, and how far the first two agree."""
        rates = [
            f"{self.single[row]:.0%} → {self.single[row + 1]:.0%} by {self.method[row]}"
            for row in range(0, len(self.method), 2)
        ]
        return (
            f"Single-cluster rates of base and aligned: {', '.join(rates)}; the first two methods "
            f"agree by {self.agreement.value:.2f} of what chance leaves."
        )

    def figure(self) -> "figures.Figure | None":
        """Base beside aligned by each method."""
        if np.isnan(self.single).all():
            return None
        figure, panels = figures.panels(2)
        names = self.method[::2].tolist()
        for panel, rows, label in (
            (panels[0], self.single, "single-cluster rate [of prompts]"),
            (panels[1], self.semantic_entropy, "semantic entropy [nats]"),
        ):
            figures.pairs(names, rows[::2], rows[1::2], xlabel="method", ylabel=label, on=panel)
        return figure


class Homogenisation(Sampled[HomogenisationResult]):
    """How much alike the answers to one prompt are, of base and of aligned.

    Args:
        sampling: How answers are drawn; of each prompt two at least.
        others: Methods of clustering besides `words` and `spelling`, which need no model.
    """

    also = (HomogenisationMethodsResult,)

    def __init__(self, sampling: Sampling = Sampling(), others: Sequence[Method] = ()) -> None:
        super().__init__(sampling)
        self.methods = (WORDS, SPELLING, *others)

    def fits(self, encoder: Encoder) -> bool:
        """Whether the pack holds prompts, and several answers are drawn of each."""
        return super().fits(encoder) and self.sampling.samples > 1

    def compute(self) -> HomogenisationResult:
        """The result of all that was seen so far."""
        said = self.said
        labels = self._labels(said, WORDS)
        of = _measured(said, labels)
        rows: dict[str, Any] = {
            "clusters": of["clusters"],
            "entropy": of["semantic_entropy"],
            "mode": of["mode_share"],
            "usual": _usual(said, labels),
            "bleu": of["self_bleu"],
            "words": of["words"],
            "tokens": of["token_entropy"],
        }
        examples = [self.encoder.pack.examples[number] for number in said.prompts]
        estimates = self._estimates(of, said.prompts)
        masses = {
            f"{side}_mode_mass": clusters.mode_mass(
                estimates[f"{side}_single"].value, self.sampling.samples
            )
            for side in SIDES
        }
        return HomogenisationResult.of(
            prompt=np.array([example.text for example in examples], str),
            topic=np.array([example.topic for example in examples], str),
            lost=of["semantic_entropy"][BASE] - of["semantic_entropy"][ALIGNED],
            prompts=len(said.prompts),
            samples=self.sampling.samples,
            temperature=self.sampling.temperature,
            most_tokens=self.sampling.tokens,
            notes=(*self.unanswered(), *_notes(of)),
            **estimates,
            **masses,
            **{
                f"{name}_of_{side}": found[number]
                for name, found in rows.items()
                for number, side in enumerate(SIDES)
            },
        )

    def beside(self) -> Sequence[Result]:
        """What every method finds."""
        said = self.said
        labels = [self._labels(said, method) for method in self.methods]
        rows: dict[str, list] = {name: [] for name in _METHOD_COLUMNS}
        for method, mine in zip(self.methods, labels, strict=True):
            of = {name: _each(measure, mine) for name, measure in OF_LABELS.items()}
            estimates = self._estimates(of, said.prompts)
            for number, side in enumerate(SIDES):
                rate = estimates[f"{side}_single"]
                row = (
                    *(method.name, side, *rate, estimates["single_change"].value),
                    estimates[f"{side}_semantic_entropy"].value,
                    estimates["semantic_entropy_change"].value,
                    estimates[f"{side}_clusters"].value,
                    clusters.mode_mass(rate.value, self.sampling.samples),
                    *_agreement(mine[number], labels[0][number]),
                )
                for name, cell in zip(_METHOD_COLUMNS, row, strict=True):
                    rows[name].append(cell)
        changes = np.array(rows["single_change"])
        return [
            HomogenisationMethodsResult.of(
                least_single_change=changes.min(),
                largest_single_change=changes.max(),
                agreement=_mean(np.array(rows["adjusted_rand"][2:4])),
                notes=tuple(self.unanswered()),
                **rows,
            )
        ]

    def _labels(self, said: Said, method: Method) -> list[list[np.ndarray]]:
        """[side][prompt] labels of the answers drawn; once where both models said the same."""
        prompts = [self.encoder.pack.examples[number].text for number in said.prompts]
        drawn = said.text[:, :, said.drawn]
        base = [
            clustered(prompt, texts, method)
            for prompt, texts in zip(prompts, drawn[BASE].tolist(), strict=True)
        ]
        aligned = [
            labels if (ours == theirs).all() else clustered(prompt, theirs.tolist(), method)
            for prompt, labels, ours, theirs in zip(prompts, base, *drawn, strict=True)
        ]
        return [base, aligned]

    def _estimates(self, of: Mapping[str, np.ndarray], prompts: np.ndarray) -> dict[str, Estimate]:
        """Of each measure base, aligned and the change, from [side, prompt] numbers."""
        found = np.stack([*of.values()], -1)
        known = ~np.isnan(found)
        parts, counts = (np.moveaxis(z, 0, 1) for z in (np.where(known, found, 0), known))
        interval = bootstrap(
            parts,
            counts.astype(np.float64),
            seed=self.seed,
            level=self.level,
            clusters=np.asarray(self.encoder.pack.clusters)[prompts],
            of=lambda means: np.concatenate([means, means[1:] - means[:1]]),
        )
        names = [
            *(f"{side}_{name}" for side, name in product(SIDES, of)),
            *(f"{name}_change" for name in of),
        ]
        # What is the same in all prompts has no interval but rounding.
        alike = [np.isclose(bound, interval.estimate, rtol=1e-12, atol=0) for bound in interval]
        columns = (
            np.where(close, interval.estimate, bound).ravel()
            for close, bound in zip(alike, interval, strict=True)
        )
        estimates = {
            name: Estimate(*map(float, each)) for name, *each in zip(names, *columns, strict=True)
        }
        for side, singles in zip(SIDES, of["single"], strict=True):
            rate = clusters.single_cluster_rate(singles, self.level)
            estimates[f"{side}_single"] = Estimate(*map(float, rate))
        return estimates


_METHOD_COLUMNS = (
    *("method", "model", "single", "low", "high", "single_change", "semantic_entropy"),
    *("entropy_change", "clusters", "mode_mass", "pair_agreement", "adjusted_rand"),
    *("singles_shared", "firsts_shared"),
)


def _mode_share(labels: np.ndarray) -> float:
    found = clusters.sizes(labels)
    return float(found.max() / found.sum()) if found.sum() > 1 else np.nan


OF_LABELS: Mapping[str, Callable[[np.ndarray], float]] = {
    "single": clusters.single,
    "semantic_entropy": clusters.semantic_entropy,
    "clusters": clusters.diversity,
    "mode_share": _mode_share,
}

OF_WORDS: Mapping[str, Callable[[list[list[str]]], float]] = {
    "distinct_1": lambda answers: variety.distinct(answers, 1),
    "distinct_2": lambda answers: variety.distinct(answers, 2),
    "self_bleu": variety.self_bleu,
    "vendi": lambda answers: variety.vendi(
        clusters.overlap([frozenset(answer) for answer in answers if answer])
    ),
    "words": lambda answers: float(np.mean([len(answer) for answer in answers])),
}


def _each(measure: Callable, things: Sequence[Sequence]) -> np.ndarray:
    """[side, prompt] a measure of each thing."""
    return np.array([[measure(thing) for thing in side] for side in things], np.float64)


def _measured(said: Said, labels: list[list[np.ndarray]]) -> dict[str, np.ndarray]:
    """[side, prompt] of each of `MEASURES`."""
    drawn = said.drawn
    words = [
        [[variety.words_of(text) for text in texts] for texts in side]
        for side in said.text[:, :, drawn].tolist()
    ]
    tokens = said.tokens[:, :, drawn].astype(np.float64)
    blank = [[[not text.strip() for text in z] for z in side] for side in said.text.tolist()]
    shape = tokens.shape[:2]
    blanks = np.array(blank, np.float64).reshape(said.text.shape)[:, :, drawn]
    with np.errstate(invalid="ignore"):
        token_entropy = (said.entropy[:, :, drawn] * tokens).sum(2) / tokens.sum(2)
    of = {
        **{name: _each(measure, labels) for name, measure in OF_LABELS.items()},
        **{name: _each(measure, words) for name, measure in OF_WORDS.items()},
        "unended": 1 - said.ended[:, :, drawn].mean(2),
        "empty": blanks.mean(2),
        "token_entropy": token_entropy,
        "first_entropy": said.entropy_first[:, :, drawn].mean(2),
        "greedy_entropy": said.entropy[:, :, said.greedy].sum(2)
        if said.greedy.stop
        else np.full(shape, np.nan),
    }
    return {name: of[name].reshape(shape) for name in MEASURES}


def _usual(said: Said, labels: list[list[np.ndarray]]) -> list[np.ndarray]:
    """[side][prompt] the first answer of the largest cluster; "" where all are blank."""
    texts = said.text[:, :, said.drawn].tolist()
    return [
        np.array([_first_of_largest(*z) for z in zip(side, mine, strict=True)], str)
        for side, mine in zip(texts, labels, strict=True)
    ]


def _first_of_largest(texts: Sequence[str], labels: np.ndarray) -> str:
    found = clusters.sizes(labels)
    return texts[int(np.argmax(labels == found.argmax()))] if len(found) else ""


def _agreement(mine: list[np.ndarray], first: list[np.ndarray]) -> Iterator[float]:
    """How a method and the first agree on one model's answers, as the table's columns."""
    both = [*zip(mine, first, strict=True)]
    yield _mean(np.array([clusters.pair_agreement(*z) for z in both]))
    yield _mean(np.array([clusters.adjusted_rand(*z) for z in both]))
    singles = [[clusters.single(z) for z in side] for side in (mine, first)]
    yield clusters.singles_shared(*singles)
    yield clusters.singles_shared(*singles[::-1])


def _mean(numbers: np.ndarray) -> float:
    """The mean of what is known."""
    known = numbers[~np.isnan(numbers)]
    return float(known.mean()) if len(known) else np.nan


def _notes(of: Mapping[str, np.ndarray]) -> Iterator[str]:
    for side, singles in zip(SIDES, of["single"], strict=True):
        if silent := int(np.isnan(singles).sum()):
            yield (
                f"To {silent} prompts {side} gave fewer than two answers that are not blank: they "
                "are left out of its clusters."
            )
    if np.isnan(of["greedy_entropy"]).all() and of["greedy_entropy"].size:
        yield "No greedy answers were asked for."


def _went(change: Estimate) -> str:
    verb = "fell" if change.value < 0 else "rose"
    return f"{verb} by {Estimate(*_absolute(change))}"


def _absolute(estimate: Estimate) -> tuple[float, float, float]:
    """The size of a change whose direction is told in words."""
    value, low, high = estimate
    return (value, low, high) if value >= 0 else (-value, -high, -low)
