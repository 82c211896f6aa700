r"""How alike two representations of the same rows are: cosine, linear CKA, Procrustes.

CKA and Procrustes do not change when either side is rotated, scaled as a whole or moved.
They come in two forms that agree: from arrays, as the papers write them, and from sums over
the rows, which a stream can keep. The sums are named by what is summed, `|x|` standing for
the squared norm of a row and `d` for y − x:

====================================================  ==================================
`x`, `y`, `d`                                         [width] of the rows
`x.x`, `x.y`, `y.y`                                   [width, width] of the outer products
`x|x|`, `x|y|`, `y|x|`, `y|y|`                        [width] of the rows times squared norms
`|x|`, `|y|`, `|d|`, `|x||x|`, `|x||y|`, `|y||y|`     of the squared norms and their products
`unequal`                                             of the entries in which y is not x
====================================================  ==================================
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Sums = Mapping[str, Tensor]

ROUNDING = 2.0**-23
"""A variance below this share of the sum of squares is lost in float32 products."""


def cosine(x: Tensor, y: Tensor) -> Tensor:
    r"""Cosine between paired rows, :math:`\langle x, y \rangle / (\|x\| \|y\|)`.

    Args:
        x: [n, width].
        y: [n, width].

    Returns:
        [n] cosine, between −1 and 1; NaN where a row is 0.
    """
    x, y = (z / torch.linalg.vector_norm(z, dim=-1, keepdim=True) for z in (x, y))
    # The angle by atan2 of the half-difference and half-sum (Kahan) keeps its digits near 0,
    # where the inner product of unit rows loses half of them, and its cosine is never over 1.
    half = torch.atan2(
        torch.linalg.vector_norm(x - y, dim=-1), torch.linalg.vector_norm(x + y, dim=-1)
    )
    return (2 * half).cos()


def cka(x: Tensor, y: Tensor) -> float:
    r"""Debiased linear CKA, :math:`HSIC_1(K, L) / \sqrt{HSIC_1(K, K) HSIC_1(L, L)}`.

    Source: Nguyen, Raghu & Kornblith (2021), "Do Wide and Deep Networks Learn the Same
    Things?", eq. 2, with all rows as one batch.

    Args:
        x: [n, width] of the base.
        y: [n, width] of the aligned, the same rows.

    Returns:
        At most 1 up to rounding, around 0 for independent data; NaN of fewer than 4 rows or
        without variance.
    """
    return _of_kernels(hsic1, x, y)


def biased_cka(x: Tensor, y: Tensor) -> float:
    r"""Linear CKA as first published, :math:`\|X^T Y\|_F^2 / (\|X^T X\|_F \|Y^T Y\|_F)`.

    Of independent data it is about width / (n + width), not 0: with few rows everything looks
    alike. Source: Kornblith, Norouzi, Lee & Hinton (2019), "Similarity of Neural Network
    Representations Revisited", eq. 3 and 4, on centred rows.

    Args:
        x: [n, width] of the base.
        y: [n, width] of the aligned, the same rows.

    Returns:
        Between 0 and 1; NaN of fewer than 4 rows or without variance.
    """
    return _of_kernels(lambda k, m: (k * m).sum(), x, y)


def procrustes(x: Tensor, y: Tensor) -> float:
    r"""Angle left after the best rotation, :math:`\arccos(\|X^T Y\|_* / (\|X\| \|Y\|))`.

    Source: Williams, Kunz, Kornblith & Linderman (2021), "Generalized Shape Metrics on Neural
    Representations", eq. 8, on centred rows.

    Args:
        x: [n, width] of the base.
        y: [n, width] of the aligned, the same rows.

    Returns:
        Radians, between 0 and π/2; NaN of fewer than 4 rows or without variance. Between
        close sides it has the digits of the rows, down to 1e-7; between sides that are equal
        only once rotated or scaled, the root of the dtype's rounding is left (3e-4 in float32).
    """
    return procrustes_of(len(x), sums(x, y, centres(x, y)))


def hsic1(k: Tensor, m: Tensor) -> Tensor:
    r"""Unbiased estimator HSIC₁ from two Gram matrices.

    With the diagonals of K and M set to 0,

    .. math:: \frac{1}{n(n-3)} \left[ tr(KM) + \frac{1^T K 1 \, 1^T M 1}{(n-1)(n-2)}
              - \frac{2}{n-2} 1^T K M 1 \right]

    Source: Song, Smola, Gretton, Bedo & Borgwardt (2012), "Feature Selection via Dependence
    Maximization", eq. 5.

    Args:
        k: [n, n] Gram matrix of the first side.
        m: [n, n] of the second.

    Returns:
        A number of either sign; NaN of fewer than 4 rows.
    """
    n = len(k)
    if n < 4:
        return k.new_tensor(torch.nan)
    k, m = (gram - gram.diag().diag() for gram in (k, m))
    whole = k.sum() * m.sum() / ((n - 1) * (n - 2))
    return ((k * m).sum() + whole - 2 / (n - 2) * (k.sum(0) @ m.sum(0))) / (n * (n - 3))


def centres(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """[width] mean of `x`, `y` and `d`, rounded to float32 but kept in float64.

    So rounded, they can be subtracted from rows of any dtype that outer products are formed in.
    """
    means = {"x": x.mean(0, dtype=torch.float64), "y": y.mean(0, dtype=torch.float64)}
    means["d"] = means["y"] - means["x"] if x.shape == y.shape else means["x"][:0]
    return {side: mean.float().double() for side, mean in means.items()}


def sums(x: Tensor, y: Tensor, about: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sums over paired rows from which everything here follows, in float64.

    Outer products, which cost the most, are formed in the dtype of the rows. What follows from
    the sums does not depend on `about`, but its digits do: it should be near the `centres`.

    Args:
        x: [n, width of the base].
        y: [n, width of the aligned].
        about: [width] what is taken from every row of `x`, `y` and `d`.
    """
    paired = x.shape == y.shape
    unequal = (x != y).sum() if paired else torch.tensor(x.numel(), device=x.device)
    wide = {"x": x.double(), "y": y.double()}
    wide["d"] = wide["y"] - wide["x"] if paired else wide["x"][:, :0]
    wide = {side: z - about[side].to(z) for side, z in wide.items()}
    norms = {side: z.square().sum(1) for side, z in wide.items()}
    kept = {side: z.sum(0) for side, z in wide.items()}
    kept |= {f"|{side}|": norm.sum() for side, norm in norms.items()}
    kept |= {f"{a}|{b}|": norms[b] @ wide[a] for a in "xy" for b in "xy"}
    rows = {side: wide[side].to(torch.promote_types(x.dtype, y.dtype)) for side in "xy"}
    for a, b in ("xx", "xy", "yy"):
        kept[f"{a}.{b}"] = (rows[a].T @ rows[b]).double()
        kept[f"|{a}||{b}|"] = norms[a] @ norms[b]
    return kept | {"unequal": unequal.double()}


def moved(n: int, of: Sums, by: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sums over the same `n` rows, had `by` [width] been added to every row of each side."""
    far = {side: step @ step for side, step in by.items()}
    kept = {side: of[side] + n * step for side, step in by.items()}
    for side, step in by.items():
        kept[f"|{side}|"] = of[f"|{side}|"] + 2 * of[side] @ step + n * far[side]
    for a, b in ("xx", "xy", "yx", "yy"):
        product = of["x.y"].T if a + b == "yx" else of[f"{a}.{b}"]
        kept[f"{a}|{b}|"] = (
            of[f"{a}|{b}|"] + 2 * product @ by[b] + far[b] * of[a] + by[a] * kept[f"|{b}|"]
        )
    for a, b in ("xx", "xy", "yy"):
        kept[f"{a}.{b}"] = of[f"{a}.{b}"] + torch.outer(of[a], by[b]) + torch.outer(by[a], kept[b])
        # Σ (|a| + 2 a·s + |s|) |b + t|, the last factor already moved but for the cross term.
        crossed = of[f"{b}|{a}|"] @ by[b] + 2 * by[a] @ of[f"{a}.{b}"] @ by[b]
        kept[f"|{a}||{b}|"] = (
            of[f"|{a}||{b}|"]
            + 2 * of[f"{a}|{b}|"] @ by[a]
            + 2 * (crossed + far[a] * of[b] @ by[b])
            + far[a] * of[f"|{b}|"]
            + far[b] * kept[f"|{a}|"]
        )
    return kept | {"unequal": of["unequal"]}


def cka_of(n: int, of: Sums) -> float:
    """`cka` from the sums over `n` rows."""
    if not _varied(n, of):
        return math.nan
    xy, xx, yy = (_hsic1_of(n, of, a, b) for a, b in ("xy", "xx", "yy"))
    return _ratio(xy, xx, yy, of["unequal"] == 0)


def biased_cka_of(n: int, of: Sums) -> float:
    """`biased_cka` from the sums over `n` rows."""
    if not _varied(n, of):
        return math.nan
    xy, xx, yy = (_scatter(n, of, a, b).square().sum() for a, b in ("xy", "xx", "yy"))
    return _ratio(xy, xx, yy, of["unequal"] == 0)


def procrustes_of(n: int, of: Sums) -> float:
    """`procrustes` from the sums over `n` rows."""
    if not _varied(n, of):
        return math.nan
    if of["unequal"] == 0:
        return 0.0
    scatter = _scatter(n, of, "x", "y")
    nuclear = torch.linalg.svdvals(scatter).sum()
    norm_x, norm_y = (_variation(n, of, side).sqrt() for side in "xy")
    short = norm_x * norm_y - nuclear
    if len(of["d"]):
        # `short` is a difference of near equals when the sides are close. By way of
        # ‖Y − X‖² = ‖X‖² + ‖Y‖² − 2 tr C it is summed from small numbers and keeps its digits;
        # what the best rotation gains over tr C is of second order in their rounding.
        apart = (_variation(n, of, "d") - (norm_x - norm_y) ** 2) / 2
        short = apart - (nuclear - scatter.trace())
    # arccos c = 2 atan2(√(1 − c), √(1 + c)).
    return 2 * torch.atan2(short.clamp_min(0).sqrt(), (norm_x * norm_y + nuclear).sqrt()).item()


def _of_kernels(hsic: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    if len(x) < 4 or not ((x != x[0]).any() and (y != y[0]).any()):
        return math.nan
    k, m = (z @ z.T for z in (x - x.mean(0), y - y.mean(0)))
    return _ratio(hsic(k, m), hsic(k, k), hsic(m, m), torch.equal(x, y))


def _hsic1_of(n: int, of: Sums, a: str, b: str) -> Tensor:
    """`hsic1` of linear kernels, each term written out in sums over rows."""
    product, norms = of[f"{a}.{b}"], of[f"|{a}||{b}|"]
    trace = product.square().sum() - norms
    k, m = (of[side] @ of[side] - of[f"|{side}|"] for side in (a, b))
    km = of[a] @ product @ of[b] - of[a] @ of[f"{a}|{b}|"] - of[b] @ of[f"{b}|{a}|"] + norms
    return (trace + k * m / ((n - 1) * (n - 2)) - 2 / (n - 2) * km) / (n * (n - 3))


def _scatter(n: int, of: Sums, a: str, b: str) -> Tensor:
    return of[f"{a}.{b}"] - torch.outer(of[a], of[b]) / n


def _variation(n: int, of: Sums, side: str) -> Tensor:
    return of[f"|{side}|"] - of[side] @ of[side] / n


def _varied(n: int, of: Sums) -> bool:
    """Whether there are rows enough, and neither side is one row over and over."""
    return n >= 4 and all(
        bool(_variation(n, of, side) > ROUNDING * of[f"|{side}|"]) for side in "xy"
    )


def _ratio(xy: Tensor, xx: Tensor, yy: Tensor, same: bool | Tensor) -> float:
    if not (xx > 0 and yy > 0):
        return math.nan
    return 1.0 if same else (xy / (xx * yy).sqrt()).item()


def turn(moved: Tensor, base: Tensor, aligned: Tensor) -> Tensor:
    r"""One minus the cosine between two vectors, from lengths alone.

    By the law of cosines, :math:`1 - \cos = (d^2 - (b - a)^2) / (2 b a)`, which keeps its digits
    near 0, where 1 minus an inner product loses them.

    Args:
        moved: [*] length d of the difference.
        base: [*] length b of one vector.
        aligned: [*] length a of the other.

    Returns:
        [*] between 0 and 2 up to rounding; NaN where a vector is 0.
    """
    return (moved - (base - aligned)) * (moved + (base - aligned)) / (2 * base * aligned)
