"""What alignment left of safety: directions, and weights that refusals feel."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


def recovery(third: ArrayLike, harmful: ArrayLike, aligned: ArrayLike) -> np.ndarray:
    r"""How far a model's direction has come back from a harmful model's to an aligned one's.

    With v the mean state at the last token of a prompt,

    .. math:: \frac{\cos(v, v_\text{aligned}) - \cos(v_\text{harmful}, v_\text{aligned})}
                   {1 - \cos(v_\text{harmful}, v_\text{aligned})}

    Source: the loss :math:`-\cos(v, v_\text{aligned})` of Yi et al. (2025), arXiv 2504.09757,
    from its value in the harmful model to its least.

    Args:
        third: [*, width] the model's that is asked about.
        harmful: [*, width] the harmful model's.
        aligned: [*, width] the aligned model's.

    Returns:
        [*] 0 is no nearer than the harmful model, 1 is the aligned model's own way, below 0 is
        further off; NaN where the harmful model's is that way too.
    """
    third, harmful, aligned = (np.asarray(z, np.float64) for z in (third, harmful, aligned))
    now, before = cosine(third, aligned), cosine(harmful, aligned)
    # Rounding must not make a way of none: two vectors of one direction differ by some eps.
    room = np.where(1 - before > 8 * np.finfo(float).eps, 1 - before, np.nan)
    return (now - before) / room


def cosine(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """[*] cosine of [*, width] vectors; NaN of a vector of zeros."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        return (a * b).sum(-1) / lengths


# Which weights are felt


def sensitivity(
    felt: ArrayLike, fisher: ArrayLike, energy: ArrayLike, count: ArrayLike
) -> np.ndarray:
    r"""How much more sensitive than all weights on average those are that moved.

    .. math:: \rho = \frac{\sum_i F_i \delta_i^2}{\bar F \sum_i \delta_i^2}

    with F the diagonal of a Fisher matrix and δ the change. It is the mean of F over the weights,
    each counted by its part of the change's energy, over the plain mean.

    Args:
        felt: [*] Σ F δ².
        fisher: [*] Σ F.
        energy: [*] Σ δ².
        count: [*] how many weights.

    Returns:
        [*] 1 is chance (any change that knows nothing of F), 0 is a change of weights that are not
        felt; at most `count`. NaN where nothing changed or nothing is felt.
    """
    felt, fisher, energy = (np.asarray(z, np.float64) for z in (felt, fisher, energy))
    with np.errstate(divide="ignore", invalid="ignore"):
        return felt * np.asarray(count) / (fisher * energy)


class Share(NamedTuple):
    """The part of a change's energy that lies in a few directions or coordinates of a space."""

    share: float
    """‖P ΔW‖² / ‖ΔW‖², from 0 to 1; NaN of no change."""

    chance: float
    """The same of a change that knows nothing of them, on average."""

    spread: float
    """Standard deviation of it by chance."""

    p_value: float
    """Chance of so large a share."""


def top_share(fisher: ArrayLike, change: ArrayLike, part: float) -> Share:
    r"""The part of a change's energy on the coordinates of the largest Fisher information.

    .. math:: e_A = \frac{\sum_{i \in \text{top } k} \delta_i^2}{\sum_i \delta_i^2}

    which is ‖P_F ΔW‖²_F / ‖ΔW‖²_F, P_F being the projection on the top k eigenvectors of a
    diagonal matrix. Coordinates of one F are in it alike, each to the same degree. By chance k
    of the n values δᵢ² are drawn without replacement: so the change keeps its sizes, and

    .. math:: E = k / n, \qquad
              \mathrm{Var} = \frac{k (n - k)}{n (n - 1)}
              \left(\sum_i w_i^2 - \frac1n\right), \quad w_i = \delta_i^2 / \sum \delta^2

    from which the p-value is by the normal law.

    Source: the split of AlignGuard-LoRA (arXiv 2508.02079), read as a share of energy; Cochran
    (1977), "Sampling Techniques", theorem 2.2, for the variance.

    Args:
        fisher: [weight] diagonal of the Fisher matrix, at least 0.
        change: [weight] aligned − base.
        part: Which part of the weights are the top ones, above 0 and up to 1; at least one is.
    """
    from scipy.special import ndtr

    fisher, change = (np.asarray(z, np.float64).ravel() for z in (fisher, change))
    n = len(fisher)
    k = max(1, round(part * n))
    energy = np.square(change)
    total = float(energy.sum())
    if not total or not fisher.any():
        return Share(np.nan, k / n, np.nan, np.nan)
    weight = energy / total
    least = np.partition(fisher, n - k)[n - k]
    above, level = fisher > least, fisher == least
    share = weight[above].sum() + (k - above.sum()) / level.sum() * weight[level].sum()
    spread = np.sqrt(
        max(0.0, k * (n - k) / (n * max(1, n - 1)) * (np.square(weight).sum() - 1 / n))
    )
    if not spread:
        return Share(float(share), k / n, 0.0, 1.0)
    return Share(float(share), k / n, float(spread), float(ndtr((k / n - share) / spread)))


def subspace_share(
    gram: ArrayLike, slopes: ArrayLike, energy: float, count: int, top: int
) -> Share:
    r"""The part of a change's energy in the span of the top eigenvectors of a whole Fisher matrix.

    Of :math:`F = \frac1N \sum_i g_i g_i^\top` the eigenvectors lie in the span of the gradients,
    so that their inner products tell all: with :math:`G = U \Lambda U^\top` the Gram matrix of
    the gradients and :math:`p_i = \langle g_i, \Delta W \rangle`,

    .. math:: e_A = \frac{1}{\|\Delta W\|^2} \sum_{j \le k} \frac{(u_j^\top p)^2}{\lambda_j}

    A change drawn at random, every direction as likely, has a share of
    Beta(k/2, (n − k)/2), whose mean is k/n.

    Args:
        gram: [gradient, gradient] inner products of gradients.
        slopes: [gradient] their inner products with the change.
        energy: ‖ΔW‖².
        count: n, how many weights there are.
        top: k, of how many eigenvectors; fewer where the gradients span less.
    """
    from scipy.stats import beta

    values, vectors = np.linalg.eigh(np.asarray(gram, np.float64))
    values, vectors = values[::-1], vectors[:, ::-1]
    # What rounding leaves of a direction that no gradient has.
    real = values > len(values) * np.finfo(float).eps * max(values[0], 0.0)
    k = min(top, int(real.sum()), count)
    if not energy or not k:
        return Share(np.nan, k / count, np.nan, np.nan)
    along = np.asarray(slopes, np.float64) @ vectors[:, :k]
    share = float((np.square(along) / values[:k]).sum() / energy)
    if k == count:
        return Share(share, 1.0, 0.0, 1.0)
    law = beta(k / 2, (count - k) / 2)
    return Share(share, k / count, float(law.std()), float(law.sf(share)))


def unexplained(parts: ArrayLike, whole: float) -> float:
    """What the parts leave of the whole, over the whole: 0 is a division that adds up.

    Args:
        parts: [part] what each is said to have.
        whole: What all have.

    Returns:
        (whole − Σ parts) / whole; NaN where the whole is 0.
    """
    return float((whole - np.sum(parts)) / whole) if whole else float("nan")
