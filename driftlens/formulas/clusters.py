"""Which answers say the same, and how many things they say.

Labels are [answer] the number of each one's cluster, from 0 in order of first appearance; −1 is
an answer that says nothing and belongs to none.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import brentq
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform

from . import contrastive
from .intervals import Interval, wilson
from .variety import ngrams, words_of

JACCARD = 0.4
"""Share of all their words that two answers must have in common to say the same."""

COSINE = 0.85
"""Cosine of their embeddings that clusters must have on average to be one."""

SPELT = 0.5
"""The same of how they are spelt, where any two English texts have something in common."""

ENTAILED = 0.5
"""Probability above which an answer follows from another."""

_ROUNDING = 1e-12
"""By how much a similarity may be rounded and still reach a threshold."""


# How alike two answers are


def overlap(sets: Sequence[AbstractSet[Hashable]]) -> np.ndarray:
    """[answer, answer] Jaccard similarity, what two sets share over all that they have.

    1 of a set with itself, though it be empty; 0 of an empty set with any other.
    """
    found = np.eye(len(sets))
    for i, one in enumerate(sets):
        for j, other in enumerate(sets[:i]):
            found[i, j] = found[j, i] = len(one & other) / (len(one | other) or 1)
    return found


def word_sets(texts: Sequence[str]) -> list[frozenset[Hashable]]:
    """The words of each text; of one without words, itself."""
    return [frozenset(words_of(text)) or frozenset({text.strip()}) for text in texts]


def word_bigrams(texts: Sequence[str]) -> list[frozenset[Hashable]]:
    """The pairs of neighbouring words of each text; of one word, that word."""
    found = []
    for text in texts:
        words = words_of(text) or [text.strip()]
        found.append(frozenset(ngrams(words, 2) or ngrams(words, 1)))
    return found


def character_bigrams(texts: Sequence[str]) -> list[frozenset[Hashable]]:
    """The pairs of neighbouring characters of each text, in lower case; of one, that one."""
    lowered = [text.lower() for text in texts]
    return [frozenset(ngrams(text, 2) or ngrams(text, 1)) for text in lowered]


def spelling(texts: Sequence[str]) -> np.ndarray:
    """[text, spelt] of three characters in a row within a word and its edges 1 + ln of how many.

    Texts that are spelt alike have a high cosine, whatever the order of their words; nothing but
    these texts has a say.
    """
    counts = []
    for text in texts:
        padded = [f" {word} " for word in words_of(text) or [text]]
        counts.append(Counter(word[at : at + 3] for word in padded for at in range(len(word) - 2)))
    place: dict[Hashable, int] = {}
    for found in counts:
        for run in found:
            place.setdefault(run, len(place))
    rows = np.zeros((len(texts), len(place)))
    for row, found in zip(rows, counts, strict=True):
        for run, count in found.items():
            row[place[run]] = 1 + np.log(count)
    return rows


def cosines(rows: ArrayLike) -> np.ndarray:
    """[answer, answer] cosines of [answer, width] embeddings, 0 of one that is all zeros."""
    found = np.nan_to_num(contrastive.cosines(rows), nan=0.0)
    np.fill_diagonal(found, 1)
    return found


# Which are together


def chained(similarity: ArrayLike, threshold: float = JACCARD) -> np.ndarray:
    """Single linkage: answers are together that a chain of similar ones connects.

    Args:
        similarity: [answer, answer].
        threshold: What two neighbours of the chain must have at least.

    Returns:
        [answer] labels, which hang on the order of the answers in nothing but their numbers.
    """
    near = np.asarray(similarity, np.float64) >= threshold - _ROUNDING
    return _in_order(connected_components(near, directed=False)[1])


def averaged(similarity: ArrayLike, threshold: float = COSINE) -> np.ndarray:
    """Average linkage: the nearest clusters are joined while their mean similarity suffices.

    Args:
        similarity: [answer, answer].
        threshold: Mean similarity over couples across that two clusters must have at least.
    """
    similarity = np.asarray(similarity, np.float64)
    if len(similarity) < 2:
        return np.zeros(len(similarity), np.int64)
    distance = np.maximum(1 - similarity, 0)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average")
    return _in_order(fcluster(tree, 1 - threshold + 1e-9, "distance"))


def led(similarity: ArrayLike, threshold: float = JACCARD, *, above: bool = False) -> np.ndarray:
    """Greedy: each answer joins the first cluster whose first member it is similar to.

    Args:
        similarity: [answer, answer].
        threshold: What it must have with that member at least.
        above: Whether it must have more than that.

    Returns:
        [answer] labels, which hang on the order of the answers.
    """
    similarity = np.asarray(similarity, np.float64)
    near = similarity > threshold if above else similarity >= threshold - _ROUNDING
    leaders: list[int] = []
    labels = []
    for number, row in enumerate(near):
        mine = next((c for c, leader in enumerate(leaders) if row[leader]), len(leaders))
        if mine == len(leaders):
            leaders.append(number)
        labels.append(mine)
    return np.array(labels, np.int64)


def entailing(entailment: ArrayLike, threshold: float = ENTAILED) -> np.ndarray:
    """Answers are together that follow from the first of their cluster, and it from them.

    Source: Kuhn et al. (2023), "Semantic Uncertainty", algorithm 1.

    Args:
        entailment: [answer, answer] probability that the second follows from the first.
        threshold: What either must be above.
    """
    entailment = np.asarray(entailment, np.float64)
    return led(np.minimum(entailment, entailment.T), threshold, above=True)


class Sindex(NamedTuple):
    """What `sindex` found."""

    labels: np.ndarray
    """[answer] clusters."""

    entropy: float
    """Of shares that were made smaller, and not made to add up to 1 again, in nats."""


def sindex(similarity: ArrayLike, distance: float = 0.05) -> Sindex:
    r"""Semantic inconsistency as it was published, for reproduction.

    Each answer joins the first cluster from whose members it is on average no further than
    `distance`; then :math:`H = -\sum_c p'_c \log p'_c` with :math:`p'_c = p_c \cdot` the mean
    cosine of the couples in the cluster (1 of one alone). These do not add up to 1.

    Args:
        similarity: [answer, answer] cosines.
        distance: 1 − mean cosine, at most.
    """
    similarity = np.asarray(similarity, np.float64)
    members: list[list[int]] = []
    labels = []
    for number, row in enumerate(similarity):
        means = [1 - row[cluster].mean() for cluster in members]
        mine = next((c for c, far in enumerate(means) if far <= distance + _ROUNDING), len(members))
        if mine == len(members):
            members.append([])
        members[mine].append(number)
        labels.append(mine)
    shares = np.array([len(z) * _coherence(similarity, z) for z in members]) / max(1, len(labels))
    return Sindex(np.array(labels, np.int64), _entropy(shares) if labels else float("nan"))


def _coherence(similarity: np.ndarray, members: Sequence[int]) -> float:
    if len(members) < 2:
        return 1.0
    inside = similarity[np.ix_(members, members)]
    return float((inside.sum() - np.trace(inside)) / (len(members) * (len(members) - 1)))


def _in_order(labels: np.ndarray) -> np.ndarray:
    """The same clusters, numbered in order of first appearance; −1 stays."""
    numbers = {-1: -1}
    for label in labels.tolist():
        numbers.setdefault(label, len(numbers) - 1)
    return np.array([numbers[label] for label in labels.tolist()], np.int64)


# Readings of "the same" that need no model

Reading = Callable[[str, Sequence[str]], ArrayLike]
"""What gives labels to the answers to a prompt, none of which is empty."""


class Method(NamedTuple):
    """A reading of which answers say the same, and what it is called."""

    name: str
    of: Reading


WORDS = Method("words", lambda prompt, texts: chained(overlap(word_sets(texts))))
"""Four tenths of their words in common, or a chain of such answers."""

SPELLING = Method("spelling", lambda prompt, texts: averaged(cosines(spelling(texts)), SPELT))
"""Clusters whose answers are spelt alike on average."""

CHARACTERS = Method(
    "character bigrams", lambda prompt, texts: chained(overlap(character_bigrams(texts)))
)
"""As published: couples of characters in common, in a chain."""

BIGRAMS = Method("word bigrams", lambda prompt, texts: led(overlap(word_bigrams(texts))))
"""As published: couples of words in common with the first of a cluster."""

METHODS = {method.name: method for method in (WORDS, SPELLING, CHARACTERS, BIGRAMS)}


def clustered(prompt: str, texts: Sequence[str], method: Method) -> np.ndarray:
    """[answer] labels of the answers to a prompt by a method; −1 of those that are blank."""
    labels = np.full(len(texts), -1, np.int64)
    said = [place for place, text in enumerate(texts) if text.strip()]
    if said:
        labels[said] = np.asarray(method.of(prompt, [texts[place] for place in said]))
    return _in_order(labels)


# How many things they say


def sizes(labels: ArrayLike) -> np.ndarray:
    """[cluster] how many answers each holds."""
    labels = np.asarray(labels, np.int64)
    return np.bincount(labels[labels >= 0])


def semantic_entropy(labels: ArrayLike) -> float:
    r"""Entropy of the clusters' shares, :math:`-\sum_c \frac{n_c}{N} \log \frac{n_c}{N}`, in nats.

    It is too low on average, by about (clusters − 1) / 2N, so compare it at one number of answers.

    Source: Farquhar et al. (2024), "Detecting hallucinations in large language models using
    semantic entropy", discrete form.

    Args:
        labels: [answer] clusters.

    Returns:
        From 0 (one cluster) to ln N (as many as answers); NaN of fewer than two answers.
    """
    found = sizes(labels)
    return _entropy(found / found.sum()) if found.sum() > 1 else float("nan")


def weighted_entropy(
    labels: ArrayLike, logprobs: ArrayLike, same: ArrayLike | None = None
) -> float:
    r"""Entropy of the clusters' shares of the answers' probability, in nats.

    :math:`p_c = \sum_{s \in c} p(s) / \sum_s p(s)`; where all answers there are were drawn it is
    the entropy of what they mean.

    Source: Kuhn et al. (2023), "Semantic Uncertainty", eq. 3 and 4; Farquhar et al. (2024), eq. 5.

    Args:
        labels: [answer] clusters.
        logprobs: [answer] log-probability of each.
        same: [answer] ids; those that share one are one answer, which counts once. None counts
            every draw, as published, by which a likely answer counts by its probability and by
            how often it was drawn.

    Returns:
        At least 0; NaN of fewer than two answers drawn.
    """
    labels, logprobs = np.asarray(labels, np.int64), np.asarray(logprobs, np.float64)
    kept = labels >= 0
    if kept.sum() < 2:
        return float("nan")
    places = np.flatnonzero(kept)
    if same is not None:
        places = places[np.unique(np.asarray(same)[places], return_index=True)[1]]
    weights = np.exp(logprobs[places] - logprobs[places].max())
    return _entropy(np.bincount(labels[places], weights) / weights.sum())


def _entropy(shares: np.ndarray) -> float:
    # In one order, so that clusters of the same sizes have the same entropy to the last bit.
    shares = np.sort(shares[shares > 0])
    # Of one share of 1 this is 0, and not −0.
    return max(0.0, float(-(shares * np.log(shares)).sum()))


def diversity(labels: ArrayLike) -> float:
    """Diversity score: how many clusters there are; NaN of fewer than two answers."""
    found = sizes(labels)
    return float((found > 0).sum()) if found.sum() > 1 else float("nan")


def variety_lost(labels: ArrayLike) -> float:
    """1 − clusters / answers, published as "alignment tax": from 0 (all differ) to 1 − 1/N."""
    found = sizes(labels)
    return 1 - diversity(labels) / found.sum() if found.sum() > 1 else float("nan")


def single(labels: ArrayLike) -> float:
    """1 where all answers are in one cluster, else 0; NaN of fewer than two answers."""
    found = diversity(labels)
    return found if np.isnan(found) else float(found == 1)


# Of many prompts


def single_cluster_rate(singles: ArrayLike, level: float = 0.95) -> Interval:
    """SCR: share of prompts whose answers are all in one cluster, with Wilson's interval.

    Prompts of which fewer than two answers say anything are left out; counted as single, as is
    done elsewhere, they would raise it.

    Args:
        singles: [prompt] of each what `single` says.
        level: Share of intervals that hold the true rate.
    """
    singles = np.asarray(singles, np.float64)
    known = singles[~np.isnan(singles)]
    return wilson(known.sum(), len(known), level)


def chance_of_one_cluster(mass: ArrayLike, answers: int) -> np.ndarray:
    """P(all answers equal) where two are possible: p^N + (1 − p)^N.

    Args:
        mass: [*] p, the probability of the likelier one.
        answers: N, how many are drawn.
    """
    p = np.asarray(mass, np.float64)
    return p**answers + (1 - p) ** answers


def mode_mass(rate: float, answers: int) -> float:
    """The probability of the likelier of two answers that would explain a single-cluster rate.

    Args:
        rate: Share of prompts whose answers are all in one cluster.
        answers: N, how many are drawn of each.

    Returns:
        Between ½ and 1; NaN where two equally likely answers would be alike more often.
    """
    if answers < 2 or not chance_of_one_cluster(0.5, answers) <= rate <= 1:
        return float("nan")
    return float(brentq(lambda p: chance_of_one_cluster(p, answers) - rate, 0.5, 1, xtol=1e-14))


# Whether two clusterings agree


def pair_agreement(one: ArrayLike, other: ArrayLike) -> float:
    """Rand index: share of couples of answers that both hold together, or both apart.

    Args:
        one: [answer] clusters.
        other: [answer] clusters of the same answers; those that are −1 in either are left out.

    Returns:
        Between 0 and 1; NaN of fewer than two answers.
    """
    together, mine, theirs, all_pairs = _couples(one, other)
    if not all_pairs:
        return float("nan")
    return float((all_pairs + 2 * together - mine - theirs) / all_pairs)


def adjusted_rand(one: ArrayLike, other: ArrayLike) -> float:
    """Rand index less what chance gives clusterings of such sizes, over the most it could be more.

    Source: Hubert & Arabie (1985), "Comparing partitions", eq. 5.

    Args:
        one: [answer] clusters.
        other: [answer] clusters of the same answers; those that are −1 in either are left out.

    Returns:
        At most 1, 0 by chance; 1 where both have one cluster, or both as many as answers; NaN of
        fewer than two answers.
    """
    together, mine, theirs, all_pairs = _couples(one, other)
    if not all_pairs:
        return float("nan")
    by_chance, most = mine * theirs / all_pairs, (mine + theirs) / 2
    return float((together - by_chance) / (most - by_chance)) if most != by_chance else 1.0


def singles_shared(one: ArrayLike, other: ArrayLike) -> float:
    """Share of the prompts that one clustering finds single which the other finds single too.

    Args:
        one: [prompt] of each what `single` says by the first.
        other: [prompt] the same by the second.

    Returns:
        Between 0 and 1; NaN where the first finds none that the second knows of.
    """
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    mine = other[(one == 1) & ~np.isnan(other)]
    return float(mine.mean()) if len(mine) else float("nan")


def _couples(one: ArrayLike, other: ArrayLike) -> tuple[float, float, float, float]:
    """Couples together in both, in the one, in the other, and all there are."""
    one, other = np.asarray(one, np.int64), np.asarray(other, np.int64)
    kept = (one >= 0) & (other >= 0)
    one, other = one[kept], other[kept]
    table = np.zeros((one.max(initial=-1) + 1, other.max(initial=-1) + 1))
    np.add.at(table, (one, other), 1)
    counts = (table, table.sum(1), table.sum(0), np.array(len(one)))
    both, mine, theirs, whole = (float((z * (z - 1) / 2).sum()) for z in counts)
    return both, mine, theirs, whole
