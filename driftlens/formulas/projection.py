r"""A change of weights and the span of a few gradients, by their inner products alone.

Gradients are as long as a model has weights; what is needed of them is the small matrix of their
inner products, and for a vector its products with them. How much of it lies in the span,
`entanglement.projected_share` tells; here is what does.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

REDUNDANT = 1e-4
"""Share of a gradient's squared length outside the span of those before it, below which it is
taken to add no direction."""


def orthonormal(gram: ArrayLike, redundant: float = REDUNDANT) -> np.ndarray:
    r"""Gram and Schmidt's directions as combinations of vectors, :math:`u_k = \sum_m c_{km} g_m`.

    Each vector in turn loses what it has in common with the directions found, twice, for rounding,
    and is scaled to length 1; what is left of a redundant one is dropped.

    Args:
        gram: [vector, vector] inner products.
        redundant: Share of the squared length that must be left.

    Returns:
        [direction, vector] c; no row where all vectors are 0.
    """
    gram = np.asarray(gram, np.float64)
    found: list[np.ndarray] = []
    for number in range(len(gram)):
        c = np.zeros(len(gram))
        c[number] = 1.0
        for _ in range(2):
            for u in found:
                c = c - (u @ gram @ c) * u
        left = float(c @ gram @ c)
        if left > redundant * gram[number, number] > 0:
            found.append(c / math.sqrt(left))
    return np.array(found).reshape(-1, len(gram))


def shadow(gram: ArrayLike, products: ArrayLike, redundant: float = REDUNDANT) -> np.ndarray:
    r"""What of a vector lies in the span of the others: :math:`U U^\top v = \sum_m a_m g_m`.

    Source: OGPSA (arXiv 2602.07892), the projection :math:`U U^\top g`.

    Args:
        gram: [vector, vector] inner products of g.
        products: [*, vector] ⟨g_m, v⟩.
        redundant: See `orthonormal`.

    Returns:
        [*, vector] a.
    """
    c = orthonormal(gram, redundant)
    return np.asarray(products, np.float64) @ c.T @ c
