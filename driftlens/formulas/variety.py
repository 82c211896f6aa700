"""How varied a handful of answers to one prompt is, and how far a policy went for its variety."""

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit

SMOOTHED = 0.1
"""What stands for a count of no match in BLEU: method 1 of Chen & Cherry (2014)."""

_WORD = re.compile(r"[぀-ヿ㐀-鿿]|[^\W_぀-ヿ㐀-鿿]+(?:['’][^\W_]+)*")


def words_of(text: str) -> list[str]:
    """Words in lower case without marks, in their order; each sign of Chinese or kana is one."""
    return _WORD.findall(text.lower().replace("’", "'"))


def ngrams(words: Sequence[Hashable], n: int) -> Counter:
    """How often each run of `n` words stands in some."""
    return Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))


def distinct(answers: Sequence[Sequence[Hashable]], n: int) -> float:
    """Distinct-n: different runs of n words over all such runs, of all answers together.

    The longer the answers, the lower it is, whatever they say: compare it at like lengths.

    Source: Li et al. (2016), "A Diversity-Promoting Objective Function for Neural Conversation
    Models", section 5.

    Args:
        answers: [answer] words of each.
        n: Words in a run.

    Returns:
        Above 0, at most 1; NaN where no answer has n words.
    """
    found: Counter = Counter()
    for answer in answers:
        found.update(ngrams(answer, n))
    return len(found) / found.total() if found else float("nan")


def bleu(answer: Sequence[Hashable], others: Sequence[Sequence[Hashable]], order: int = 4) -> float:
    r"""How much of an answer stands in others, run of words by run of words.

    .. math:: \mathrm{BP} \cdot \exp \frac1N \sum_{n=1}^N \log p_n, \quad
              \mathrm{BP} = \min(1, e^{1 - r / c})

    with p_n the share of the answer's runs of n words that stand in one of the others, each
    counted at most as often as it does there; c the answer's length, and r the nearest of the
    others' (the shorter of two as near). No match counts as `SMOOTHED` matches. N is `order`, or
    the length of an answer that is shorter: it has no longer runs, and loses nothing by that.

    Source: Papineni et al. (2002), "BLEU: a Method for Automatic Evaluation of Machine
    Translation", section 2.3; Chen & Cherry (2014), "A Systematic Comparison of Smoothing
    Techniques for Sentence-Level BLEU", method 1.

    Args:
        answer: Its words.
        others: [other] words of each.
        order: The longest runs.

    Returns:
        Between 0 and 1; NaN of an answer without words, or of no others with any.
    """
    others = [other for other in others if other]
    if not answer or not others:
        return float("nan")
    mine, most = _runs(answer, order), _most([_runs(other, order) for other in others], order)
    there = [
        [known.get(run, (0, 0))[0] for run in runs] for known, runs in zip(most, mine, strict=False)
    ]
    return _bleu(mine, there, [len(other) for other in others])


def self_bleu(answers: Sequence[Sequence[Hashable]], order: int = 4) -> float:
    """Mean BLEU of each answer against all others: the higher, the more alike they are.

    Answers without words are left out.

    Source: Zhu et al. (2018), "Texygen: A Benchmarking Platform for Text Generation Models",
    section 2.3.

    Args:
        answers: [answer] words of each.
        order: The longest runs of words that are compared.

    Returns:
        Between 0 and 1, 1 of answers that are all the same; NaN of fewer than two.
    """
    answers = [answer for answer in answers if answer]
    if len(answers) < 2:
        return float("nan")
    lengths, runs = [len(answer) for answer in answers], [_runs(z, order) for z in answers]
    most, found = _most(runs, order), []
    for number, mine in enumerate(runs):
        # Of a run that no other has as often, the others' most is what the second most is.
        there = [
            [most[n][run][count == most[n][run][0]] for run, count in counts.items()]
            for n, counts in enumerate(mine)
        ]
        found.append(_bleu(mine, there, lengths[:number] + lengths[number + 1 :]))
    return float(np.mean(found))


def _runs(words: Sequence[Hashable], order: int) -> list[Counter]:
    """[length] runs of each length that the words have."""
    return [ngrams(words, n) for n in range(1, min(order, len(words)) + 1)]


def _most(answers: Sequence[list[Counter]], order: int) -> list[dict[Hashable, tuple[int, int]]]:
    """[length] of each run how often the answer with the most has it, and the one after."""
    most: list[dict[Hashable, tuple[int, int]]] = [{} for _ in range(order)]
    for runs in answers:
        for known, counts in zip(most, runs, strict=False):
            for run, count in counts.items():
                best, second = known.get(run, (0, 0))
                known[run] = max(best, count), max(second, min(best, count))
    return most


def _bleu(runs: list[Counter], there: list[list[int]], lengths: Sequence[int]) -> float:
    """BLEU of [length] an answer's runs, with how often each stands in another, by their order."""
    logs = []
    for mine, most in zip(runs, there, strict=True):
        matched = sum(map(min, mine.values(), most))
        logs.append(np.log((matched or SMOOTHED) / mine.total()))
    length = runs[0].total()
    nearest = min(lengths, key=lambda other: (abs(other - length), other))
    return float(np.exp(min(0.0, 1 - nearest / length) + np.mean(logs)))


def vendi(similarity: ArrayLike) -> float:
    r"""Vendi score: how many things that have nothing in common would be as varied.

    .. math:: \exp\left(-\sum_i \lambda_i \log \lambda_i\right)

    with λ the eigenvalues of K / n.

    Source: Friedman & Dieng (2023), "The Vendi Score: A Diversity Evaluation Metric for Machine
    Learning", definition 3.1.

    Args:
        similarity: [answer, answer] K, positive semi-definite with ones on its diagonal, as the
            Jaccard similarities of sets are, and cosines.

    Returns:
        From 1 (all the same) to n (nothing in common); NaN of none.
    """
    similarity = np.asarray(similarity, np.float64)
    if not len(similarity):
        return float("nan")
    spectrum = np.linalg.eigvalsh(similarity / len(similarity))
    # Rounding leaves zeros on either side of zero.
    spectrum = spectrum[spectrum > len(similarity) * np.finfo(np.float64).eps]
    return float(np.exp(-(spectrum * np.log(spectrum)).sum()))


# How far a policy went


def amplified(share: ArrayLike, preference: ArrayLike, beta: ArrayLike) -> np.ndarray:
    r"""Share of the wanted answer in the optimum of a KL-regularised reward.

    .. math:: \pi_w = \frac{q\,p^{1/\beta}}{q\,p^{1/\beta} + (1 - q)(1 - p)^{1/\beta}}

    that is, :math:`\operatorname{logit} \pi_w = \operatorname{logit} q + \operatorname{logit}(p) /
    \beta`. A policy that matched those who were asked would answer with p; this one makes nearly
    all of a majority as β falls, and keeps base's own lean.

    Source: Xiao et al. (2024), "On the Algorithmic Bias of Aligning Large Language Models with
    RLHF: Preference Collapse and Matching Regularization", section 2 (with a reward by Bradley
    and Terry).

    Args:
        share: [*] q, base's share of the wanted answer.
        preference: [*] p, the share of those asked who prefer it.
        beta: [*] weight of the KL, above 0.
    """
    q, p, beta = (np.asarray(z, np.float64) for z in (share, preference, beta))
    with np.errstate(invalid="ignore"):
        return expit(logit(q) + logit(p) / beta)


def sharpness(share: ArrayLike, policy: ArrayLike, preference: ArrayLike) -> np.ndarray:
    r"""What 1/β would take base's share to the policy's.

    :math:`(\operatorname{logit} \pi_w - \operatorname{logit} q) / \operatorname{logit} p`.

    Args:
        share: [*] q, base's share of the wanted answer.
        policy: [*] π_w, the policy's.
        preference: [*] p, the share of those asked who prefer it.

    Returns:
        [*] any number; NaN where half of those asked prefer it, or a share is 0 or 1.
    """
    q, pi, p = (np.asarray(z, np.float64) for z in (share, policy, preference))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (logit(pi) - logit(q)) / logit(p)
    return np.where(np.isfinite(found), found, np.nan)


def matching_beta(share: ArrayLike, preference: ArrayLike) -> np.ndarray:
    r"""The β at which `amplified` gives those who were asked their share, p.

    :math:`\beta = \operatorname{logit} p / (\operatorname{logit} p - \operatorname{logit} q)`: 1
    where base has no lean.

    Args:
        share: [*] q, base's share of the wanted answer.
        preference: [*] p, the share of those asked who prefer it.

    Returns:
        [*] above 0; NaN where no β does it.
    """
    q, p = (logit(np.asarray(z, np.float64)) for z in (share, preference))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = p / (p - q)
    return np.where(np.isfinite(found) & (found > 0), found, np.nan)


def best_of_n_kl(n: ArrayLike) -> np.ndarray:
    r"""KL of the best of n answers from one answer, :math:`\log n - (n - 1) / n`, in nats.

    Exact where no two answers are as good; else more than it is.

    Source: Beirami et al. (2024), "Theoretical guarantees on the best-of-n alignment policy",
    eq. 1.

    Args:
        n: [*] at least 1, whole or not.
    """
    log_n = np.log(np.asarray(n, np.float64))
    return log_n + np.expm1(-log_n)


def kl_as_best_of_n(kl: ArrayLike) -> np.ndarray:
    """The n whose best of n is as far from base: the inverse of `best_of_n_kl`.

    Args:
        kl: [*] in nats, of whole answers.

    Returns:
        [*] at least 1, and 1 of 0; NaN below 0.
    """
    kl = np.asarray(kl, np.float64)
    known = np.where(kl >= 0, kl, np.nan)
    # In x = log n the function is convex and rises, and this is above its root: Newton's steps
    # fall towards it and never past.
    x = known + np.minimum(1, np.sqrt(2 * known))
    for _ in range(60):
        slope = -np.expm1(-x)
        step = (x + np.expm1(-x) - known) / np.where(slope > 0, slope, 1)
        x = np.maximum(x - step, 0)
    with np.errstate(over="ignore"):
        return np.exp(x)


class KlEstimates(NamedTuple):
    """What each sample says of KL(aligned ‖ base), in nats; their means estimate it."""

    k1: np.ndarray
    """[sample] −log r: no bias, but may be below 0."""

    k2: np.ndarray
    """[sample] (log r)² / 2: at least 0, of little spread, and biased by what the two models
    differ in the third order."""

    k3: np.ndarray
    """[sample] (r − 1) − log r: no bias, and at least 0."""


def kl_estimates(base_logprob: ArrayLike, aligned_logprob: ArrayLike) -> KlEstimates:
    """KL(aligned ‖ base) from samples of aligned, with r = p_base / p_aligned of each.

    Source: Schulman (2020), "Approximating KL Divergence".

    Args:
        base_logprob: [sample] in nats, of what aligned drew.
        aligned_logprob: [sample] aligned's own.
    """
    log_r = np.asarray(base_logprob, np.float64) - np.asarray(aligned_logprob, np.float64)
    with np.errstate(over="ignore"):
        return KlEstimates(-log_r, log_r**2 / 2, np.expm1(log_r) - log_r)
