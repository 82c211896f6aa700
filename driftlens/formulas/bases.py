"""The order, the rotation and the stretch that bring one set of vectors nearest to another."""

import numpy as np
import torch
from torch import Tensor

HOME = 0.95
"""Cosine from which on a vector is at home where it stands, and is offered no other place."""

CHUNK = 1024
"""Rows of a table of similarities that are made at a time."""


def order(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], signed: bool = False) -> Tensor:
    """The order of the other's rows that is nearest to one's, by linear assignment.

    It maximises the sum of ⟨one, other⟩ over rows, which for rows of fixed length is the least
    squared distance. Rows that are alike already stay; on ties they stay too where they can.

    Args:
        one: [row, feature] two parts of each row.
        other: [row, feature] the same of the other.
        signed: Whether the second part may change its sign.

    Returns:
        [row] which of the other's rows comes there.
    """
    alike = torch.stack(
        [
            _of_sign(torch.cosine_similarity(a, b, dim=1), signed and part == 1)
            for part, (a, b) in enumerate(zip(one, other, strict=True))
            if a.shape[1]
        ]
    )
    # Two rows of zeros are alike.
    same = torch.stack([(a == b).all(1) for a, b in zip(one, other, strict=True)]).all(0)
    away = torch.nonzero((alike.amin(0) < HOME) & ~same).flatten()
    found = torch.arange(len(one[0]), device=one[0].device)
    if len(away) < 2:
        return found
    ours, theirs = (tuple(part[away] for part in parts) for parts in (one, other))

    def similar(rows: slice) -> Tensor:
        fixed, free = (a[rows] @ b.T for a, b in zip(ours, theirs, strict=True))
        return fixed + _of_sign(free, signed)

    chunks = [slice(start, start + CHUNK) for start in range(0, len(away), CHUNK)]
    best = torch.cat([similar(rows).argmax(1) for rows in chunks])
    if len(best.unique()) < len(best):
        from scipy.optimize import linear_sum_assignment

        table = torch.cat([similar(rows).cpu() for rows in chunks])
        best = torch.from_numpy(linear_sum_assignment(table.numpy(), maximize=True)[1])
    found[away] = away[best.to(away)]
    return found


def _of_sign(product: Tensor, signed: bool) -> Tensor:
    return product.abs() if signed else product


def cycles(permutation: Tensor) -> Tensor:
    """[row] number of the cycle that each row of a permutation belongs to."""
    step = permutation.cpu().numpy()
    found = np.full(len(step), -1)
    for start in range(len(step)):
        row = start
        while found[row] < 0:
            found[row] = start
            row = step[row]
    return torch.from_numpy(np.unique(found, return_inverse=True)[1]).to(permutation.device)


def rotation(one: Tensor, other: Tensor) -> Tensor:
    """[row, row] orthogonal R of least ‖R other − one‖ (Schönemann 1966), in float64.

    Args:
        one: [row, feature] where to come to.
        other: [row, feature] what is turned.
    """
    left, _, right = torch.linalg.svd(one.double() @ other.double().T)
    return left @ right


def mapping(one: Tensor, other: Tensor) -> Tensor:
    """[row, row] any R of least ‖R other − one‖, in float64."""
    return torch.linalg.lstsq(other.double().T, one.double().T, driver="gelsd").solution.T
