r"""What of a weight's change stands out of its own noise: singular values and their edge.

A change is read as structure + noise. Of noise alone, independent entries of deviation σ in a
matrix of n × m (n ≥ m, β = m/n), the squared singular values over nσ² follow the law of
Marchenko and Pastur. Its median tells σ from the middle of the spectrum, which structure of low
rank hardly moves, and σ tells the edge above which a singular value is kept.

Only the smaller Gram matrix is formed, in float64: it resolves singular values down to 1e-8 of
the largest, in half the time that a decomposition in float32 takes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

SMALLEST = 1024
"""Entries below which a matrix has too few singular values for a law of many."""

LOW_RANK = 1e-6
"""Share of the largest singular value below which another is 0 but for rounding."""

MANTISSA = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23}
"""Stored bits of the fraction of what checkpoints hold, the coarsest first."""

EXACT = 0.999
"""Share of entries that a dtype must hold exactly to be taken for what they were stored in."""

MISFIT = 0.1
"""Distance of the bulk from the law of noise, beyond what chance leaves, that is too far."""

AT_ONCE = 2**24
"""Numbers that are turned to float64 at a time."""


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a weight's change, and what of them is structure."""

    values: np.ndarray
    """[smaller side] singular values, the largest first."""

    norm: float
    """Frobenius norm."""
    relative: float
    """Norm over that of the base's weight; NaN where that is 0 or was not given."""
    spectral: float = math.nan
    """Largest singular value."""
    stable_rank: float = math.nan
    """Squared norm over squared largest singular value: from 1 to the smaller side."""
    noise: float = math.nan
    """Deviation σ of an entry of the bulk; NaN where there is no bulk to tell it from."""
    edge: float = math.nan
    """Singular value above which structure is told from noise; NaN as `noise`."""
    kept: float = math.nan
    """How many singular values lie above the edge; NaN as `noise`."""
    structured: float = math.nan
    """Share of the squared norm above the edge; NaN as `noise`."""
    misfit: float = math.nan
    """Distance of the bulk from the law of noise, between 0 and 1; see `mp_misfit`."""
    hazards: tuple[str, ...] = ()
    """Why the edge is undefined, or does not mean what it seems to.

    Undefined: `not finite`, `unchanged`, `too small`, `low rank 3`. Of storage and not of
    training: `rounding of bfloat16`, or of another dtype. No boundary but a convention:
    `bulk is not noise`.
    """

    @property
    def diffuse(self) -> float:
        """Share of the squared norm below the edge."""
        return 1 - self.structured


def spectrum(delta: Tensor | np.ndarray, base: Tensor | np.ndarray | None = None) -> Spectrum:
    r"""The singular values of a change, and those that stand out of its noise.

    With n the larger side, β the smaller over the larger, S the singular values:

    .. math:: \hat\sigma = \frac{median(S)}{\sqrt{n \mu_\beta}}, \qquad
              \tau = \lambda_*(\beta) \sqrt n \, \hat\sigma = \omega(\beta) \, median(S)

    Structure of rank r moves the median by about r/2 places, so σ̂ is a little high. Rows and
    columns in which nothing changed count for neither side: an embedding whose rare tokens
    never moved is as noisy as the rest of it.

    The bulk is said to be rounding where σ̂ is at most twice :math:`rms(W) 2^{-p-2}`, what a
    dtype of p bits rounds (2⁻⁹ of bfloat16, 2⁻¹² of float16). Which dtype that is, the values
    tell themselves: it is the coarsest that holds the base's or the aligned weights exactly.

    The bulk is said not to be noise where its `mp_misfit` is over 0.1 and what chance leaves:
    singular values of trained changes often fall without any floor.

    Args:
        delta: [row, column] aligned − base.
        base: [row, column] the base's weight.

    Source: Gavish & Donoho (2014), "The Optimal Hard Threshold for Singular Values is 4/√3",
    the rule for noise of unknown size.
    """
    delta, base = _tensor(delta), None if base is None else _tensor(base)
    nothing = np.zeros(min(delta.shape))
    norm, size = frobenius(delta), math.nan if base is None else frobenius(base)
    relative = norm / size if size else math.nan
    if not norm:
        return Spectrum(nothing, norm, relative, 0.0, hazards=("unchanged",))
    if not math.isfinite(norm):
        return Spectrum(nothing * math.nan, math.nan, math.nan, hazards=("not finite",))
    values = torch.linalg.eigvalsh(_gram(delta)).flip(0).clamp(min=0).sqrt().cpu().numpy()
    top = float(values[0])
    found = (norm, relative, top, (norm / top) ** 2)
    if hazard := _no_edge(delta, values):
        return Spectrum(values, *found, hazards=(hazard,))
    smaller, larger = moved(delta)
    beta = smaller / larger
    noise = float(np.median(values[:smaller])) / math.sqrt(larger * mp_median(beta))
    edge = optimal_threshold(beta) * math.sqrt(larger) * noise
    above = values[values > edge]
    share = min(1.0, float(above @ above) / norm**2)
    misfit = mp_misfit(values[len(above) : smaller], beta)
    hazards = [*_rounding(delta, base, noise)]
    # Noise alone comes nearer than this, but for 2 in 300 matrices of so small a side as 12.
    hazards += ["bulk is not noise"] if misfit > MISFIT + 1 / smaller else []
    return Spectrum(values, *found, noise, edge, float(len(above)), share, misfit, tuple(hazards))


def structure(delta: Tensor) -> Tensor:
    """The change without its noise: only what lies above the edge; the rest is 0.

    Added to the base it is the repaired weight. Where the edge is undefined there is no noise
    to tell from structure, and the change is given back whole.

    Args:
        delta: [row, column] aligned − base.

    Returns:
        [row, column] of its dtype, on its device.

    Source: hard thresholding of Gavish & Donoho (2014), by projection on the right singular
    vectors.
    """
    kept = spectrum(delta).kept
    if math.isnan(kept):
        return delta.clone()
    # Ascending, so that the largest stand last.
    vectors = torch.linalg.eigh(_gram(delta))[1]
    vectors = vectors[:, vectors.shape[1] - int(kept) :]
    parts = [((rows @ vectors) @ vectors.T).to(delta) for rows in _pieces(_tall(delta))]
    found = torch.cat(parts)
    return found if delta.shape[0] >= delta.shape[1] else found.T.contiguous()


@cache
def mp_median(beta: float) -> float:
    """Median of the Marchenko-Pastur law of unit variance, found by halving.

    Args:
        beta: Smaller side over larger.

    Returns:
        Between 0.6527 (β = 1) and 1 (β → 0).
    """
    assert 0 < beta <= 1, "the smaller side over the larger"
    low, high = 0.0, math.pi
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _below(np.array(middle), beta) < 0.5 else (low, middle)
    return 1 + beta - 2 * math.sqrt(beta) * math.cos(high)


def mp_misfit(bulk: np.ndarray, beta: float) -> float:
    """Largest distance between two distributions: of a bulk, and of noise of the same median.

    The distance of Kolmogorov and Smirnov. Singular values keep apart from each other, so that
    those of noise come nearer to their law than independent draws would: 0.02 at a smaller side
    of 100.

    Args:
        bulk: [value] singular values, the largest first.
        beta: Smaller side over larger of the matrix that they are of.

    Returns:
        Between 0 and 1.
    """
    squared = np.square(bulk[::-1]) * (mp_median(beta) / np.median(bulk) ** 2)
    cosine = (1 + beta - squared) / (2 * math.sqrt(beta))
    law = _below(np.arccos(np.clip(cosine, -1, 1)), beta)
    return float(np.abs(law - (np.arange(len(bulk)) + 0.5) / len(bulk)).max())


def optimal_threshold(beta: float) -> float:
    r"""Where singular values are best cut when the noise is known, in units of √n σ.

    .. math:: \lambda_*(\beta) = \sqrt{2(\beta + 1) +
              \frac{8 \beta}{\beta + 1 + \sqrt{\beta^2 + 14 \beta + 1}}}

    It lies above the largest singular value of noise alone, 1 + √β: what stands out by less is
    turned so far by the noise that to keep it does more harm than to drop it.

    Source: Gavish & Donoho (2014), the rule for noise of known size.

    Args:
        beta: Smaller side over larger.

    Returns:
        Between √2 (β → 0) and 4/√3 (β = 1).
    """
    assert 0 < beta <= 1, "the smaller side over the larger"
    tail = 8 * beta / (beta + 1 + math.sqrt(beta**2 + 14 * beta + 1))
    return math.sqrt(2 * (beta + 1) + tail)


def median_threshold(beta: float) -> float:
    r"""The same in units of the median singular value, :math:`\lambda_* / \sqrt{\mu_\beta}`.

    Source: Gavish & Donoho (2014), where it is ω.

    Args:
        beta: Smaller side over larger.
    """
    return optimal_threshold(beta) / math.sqrt(mp_median(beta))


def frobenius(weight: Tensor) -> float:
    """Root of the sum of squares of a tensor of any shape, summed in float64."""
    return math.sqrt(sum(_squares(weight.reshape(-1, weight.shape[-1] if weight.ndim else 1))))


def moved(delta: Tensor) -> tuple[int, int]:
    """The smaller and the larger side of a change, counting rows and columns that changed."""
    rows, columns = (int((delta != 0).any(axis).sum()) for axis in (1, 0))
    return min(rows, columns), max(rows, columns)


def rounding(*weights: Tensor) -> tuple[float, str]:
    """What the coarsest of the dtypes that hold the weights rounds an entry by, and its name.

    Args:
        weights: [row, column] of one shape, held in any dtype; the size is that of the first.

    Returns:
        About the deviation of the rounding error, 0 where no dtype but float64 will do.
    """
    size = frobenius(weights[0]) / math.sqrt(max(1, weights[0].numel()))
    for dtype, bits in MANTISSA.items():
        if any(_held(weight, dtype) >= EXACT for weight in weights):
            return size * 2.0 ** -(bits + 2), str(dtype).removeprefix("torch.")
    return 0.0, ""


def _below(angle: np.ndarray, beta: float) -> np.ndarray:
    r"""The share of noise's eigenvalues below :math:`1 + \beta - 2 \sqrt\beta \cos t`.

    The density of Marchenko and Pastur, in the angle t from 0 to π, integrates to

    .. math:: F(t) = \frac{1}{\pi} \left[ t + \frac{\sin t}{\sqrt\beta} - \frac{1-\beta}{\beta}
              \operatorname{atan2}(\sqrt\beta \sin t, 1 - \sqrt\beta \cos t) \right]
    """
    root = math.sqrt(beta)
    turned = np.arctan2(root * np.sin(angle), 1 - root * np.cos(angle))
    return (angle + np.sin(angle) / root - (1 - beta) / beta * turned) / math.pi


def _no_edge(delta: Tensor, values: np.ndarray) -> str:
    """Why there is no bulk to tell the noise from."""
    if delta.numel() < SMALLEST:
        return "too small"
    if np.median(values) < LOW_RANK * values[0]:
        return f"low rank {int((values > LOW_RANK * values[0]).sum())}"
    return ""


def _rounding(delta: Tensor, base: Tensor | None, noise: float) -> Iterator[str]:
    if base is not None:
        wide = torch.promote_types(delta.dtype, base.dtype)
        size, dtype = rounding(base, base.to(wide) + delta.to(wide))
        # Rounding makes more than about a sixth of such noise.
        if noise <= 2 * size:
            yield f"rounding of {dtype}"


def _held(weight: Tensor, dtype: torch.dtype) -> float:
    """The share of entries that lose nothing in another dtype."""
    same = sum(int((rows.to(dtype).double() == rows).sum()) for rows in _pieces(_tall(weight)))
    return same / max(1, weight.numel())


def _gram(weight: Tensor) -> Tensor:
    """[smaller side, smaller side] sums of products over the larger side, in float64."""
    tall = _tall(weight)
    gram = _place(tall[:0]).new_zeros(tall.shape[1], tall.shape[1])
    for rows in _pieces(tall):
        gram.addmm_(rows.T, rows)
    return gram


def _squares(weight: Tensor) -> Iterator[float]:
    return (float(rows.square().sum()) for rows in _pieces(_tall(weight)))


def _pieces(tall: Tensor) -> Iterator[Tensor]:
    """Some rows at a time, in float64."""
    yield from map(_place, tall.split(max(1, AT_ONCE // max(1, tall.shape[1]))))


def _place(rows: Tensor) -> Tensor:
    """The rows in float64, on a device that has it."""
    return rows.to("cpu" if rows.device.type == "mps" else rows.device).double()


def _tall(weight: Tensor) -> Tensor:
    return weight if weight.shape[0] >= weight.shape[1] else weight.T


def _tensor(weight: Tensor | np.ndarray) -> Tensor:
    weight = torch.as_tensor(weight).detach()
    assert weight.ndim == 2, "a weight of rows and columns"
    return weight
