"""Whether an aligned model is a base model tilted by a reward, and what a tilt costs and wins."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, log_expit


class Tilt(NamedTuple):
    """A straight line through log-ratios over rewards."""

    slope: float
    """1/λ, nats of log-ratio for each unit of reward."""

    error: float
    """Its standard error by least squares; NaN without a degree of freedom."""

    r_squared: float
    """Share of the log-ratios' variation that the line explains, between 0 and 1."""

    answers: int
    """Answers that the line goes through."""


def tilt(log_ratio: ArrayLike, reward: ArrayLike, prompt: ArrayLike | None = None) -> Tilt:
    r"""How tilt-like a model is: least squares of its log-ratios to base on the rewards.

    The best policy under a penalty :math:`\lambda` on KL from base is
    :math:`\pi(y|x) = \pi_b(y|x) e^{r(x, y) / \lambda} / Z(x)`, so that

    .. math:: \log \frac{\pi(y|x)}{\pi_b(y|x)} = \frac{r(x, y)}{\lambda} - \log Z(x).

    With prompts given each has its own :math:`\log Z`: all is taken as it departs from the mean
    of its prompt. Otherwise one constant stands for all.

    Source: Yang et al. (2024), "Asymptotics of Language Model Alignment";
    least squares with a fixed effect for each prompt.

    Args:
        log_ratio: [answer] log-probability by aligned less that by base, in nats, a sum.
        reward: [answer] reward of each; answers without one (NaN) are left out.
        prompt: [answer] which prompt each answers.
    """
    y, x = np.asarray(log_ratio, np.float64), np.asarray(reward, np.float64)
    groups = np.zeros(len(x), np.int64) if prompt is None else np.asarray(prompt)
    known = np.isfinite(x) & np.isfinite(y)
    x, y, groups = x[known], y[known], groups[known]
    _, places, counts = np.unique(groups, return_inverse=True, return_counts=True)
    x, y = (z - (np.bincount(places, z, len(counts)) / counts)[places] for z in (x, y))
    spread, freedom = x @ x, len(x) - len(counts) - 1
    if not spread:
        return Tilt(np.nan, np.nan, np.nan, len(x))
    slope = (x @ y) / spread
    rest = np.square(y - slope * x).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt(rest / freedom / spread) if freedom > 0 else np.nan
        share = 1 - rest / (y @ y) if y @ y else np.nan
    return Tilt(float(slope), float(error), float(share), len(x))


def choice_kl(p: ArrayLike, q: ArrayLike) -> np.ndarray:
    r"""[*] :math:`p \log \frac{p}{q} + (1 - p) \log \frac{1 - p}{1 - q}` from two log-odds, nats.

    How far two models lie apart in which of two answers they would give.

    Args:
        p: [*] log-odds of the first answer by the first model.
        q: [*] the same by the second.
    """
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    # Logarithms of σ keep their digits where one answer is all but certain.
    yes, no = (log_expit(z * p) - log_expit(z * q) for z in (1, -1))
    return expit(p) * yes + expit(-p) * no


def win_rate(chosen_by_one: ArrayLike, chosen_by_other: ArrayLike, better: ArrayLike) -> np.ndarray:
    """[*] how often one model's pick of two answers beats the other's, a tie being half a win.

    Args:
        chosen_by_one: [*] probability that the first model picks the first answer.
        chosen_by_other: [*] probability that the second one does.
        better: [*] 1 where the first answer is the better one, −1 where it is the worse, 0 of
            equals.
    """
    one, other, sign = (np.asarray(z, np.float64) for z in (chosen_by_one, chosen_by_other, better))
    return 0.5 + 0.5 * (one - other) * np.sign(sign)


def best_of_n_win_rate(n: ArrayLike) -> np.ndarray:
    """[*] how often the best of n samples beats one of base, n / (n + 1).

    Args:
        n: [*] samples, 1 and more.
    """
    n = np.asarray(n, np.float64)
    return n / (n + 1)


def collapse(log_odds: ArrayLike, preference: ArrayLike) -> np.ndarray:
    r"""Preference collapse, :math:`|\pi(y_w) / (\pi(y_w) + \pi(y_l)) - p^*|`, between 0 and 1.

    Source: Xiao et al. (2024), "On the Algorithmic Bias of Aligning Large Language Models with
    RLHF: Preference Collapse and Matching Regularization".

    Args:
        log_odds: [*] log π(y_w) − log π(y_l).
        preference: [*] p*, the share of raters that prefer the first answer; NaN if unknown.
    """
    return np.abs(expit(np.asarray(log_odds, np.float64)) - np.asarray(preference, np.float64))
