"""Planted structure in planted noise, and whether the edge tells them apart."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from driftlens.formulas import spectral

CONSTANTS = {
    1: (2.30940, 0.65278, 2.85836),
    0.5: (1.97860, 0.83047, 2.17119),
    0.25: (1.75803, 0.91600, 1.83687),
    0.1: (1.58165, 0.96657, 1.60877),
}
"""λ*, μ and ω by β, to five places: Gavish & Donoho (2014)."""

SHAPES = [(512, 256), (400, 400), (1000, 120), (128, 1024)]

SIZE, NOISE = 0.02, 0.0005
"""Of weights as they are trained, and of a change that training makes to them."""


def drawn(*shape, seed=0, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(*shape, generator=generator, dtype=torch.float64)


def low_rank(rows, columns, rank, seed=0):
    """A matrix of the given rank whose singular values all are 1."""
    left = torch.linalg.qr(drawn(rows, rank, seed=seed + 1))[0]
    right = torch.linalg.qr(drawn(columns, rank, seed=seed + 2))[0]
    return left @ right.T


def planted(rows, columns, rank=3, noise=0.01, above=5.0):
    """Structure that stands so many times above the noise's largest singular value, and noise."""
    top = noise * (rows**0.5 + columns**0.5)
    structure = above * top * low_rank(rows, columns, rank)
    return structure, drawn(rows, columns, seed=9, size=noise)


# The law of noise


@pytest.mark.parametrize(("beta", "known"), CONSTANTS.items())
def test_the_constants_are_those_that_were_published(beta, known):
    ours = (
        spectral.optimal_threshold(beta),
        spectral.mp_median(beta),
        spectral.median_threshold(beta),
    )
    np.testing.assert_allclose(ours, known, atol=1.1e-5)


@pytest.mark.parametrize("beta", [1e-6, 1e-3, 0.02, 0.1, 0.37, 0.5, 0.9, 1.0])
def test_half_of_the_law_lies_below_its_median(beta):
    low, high = (1 - beta**0.5) ** 2, (1 + beta**0.5) ** 2

    def density(angle):
        x = (low + high) / 2 - (high - low) / 2 * np.cos(angle)
        root = (high - low) / 2 * np.sin(angle)
        return root / (2 * np.pi * beta * x) * root if x else 2 / np.pi

    median = spectral.mp_median(beta)
    angle = np.arccos(((low + high) / 2 - median) / ((high - low) / 2))
    assert quad(density, 0, np.pi)[0] == pytest.approx(1, abs=1e-8)
    assert quad(density, 0, angle)[0] == pytest.approx(0.5, abs=1e-8)


def test_the_edge_lies_above_what_noise_alone_reaches():
    for beta in np.linspace(0.001, 1, 200):
        assert spectral.optimal_threshold(beta) > 1 + beta**0.5
    assert spectral.optimal_threshold(1) == pytest.approx(4 / 3**0.5)


# Planted truths


@pytest.mark.parametrize("shape", SHAPES)
def test_planted_structure_is_kept_and_the_noise_is_measured(shape):
    structure, noise = planted(*shape)
    found = spectral.spectrum(structure + noise)
    assert found.kept == 3
    # Three places of at least 120 move the median by up to 1.5 %, chance by as much as 0.5 %.
    assert found.noise == pytest.approx(0.01, rel=0.02)
    # A singular value x of structure is seen as √((x² + nσ²)(x² + mσ²)) / x (Benaych-Georges &
    # Nadakuditi 2012), give or take a few σ.
    squared = float(structure.square().sum()) / 3
    rows, columns = (side * 0.01**2 for side in shape)
    seen = 3 * (squared + rows) * (squared + columns) / squared
    whole = float((structure + noise).square().sum())
    assert found.structured == pytest.approx(seen / whole, rel=0.01)
    assert found.diffuse == 1 - found.structured
    assert found.hazards == ()
    assert found.misfit < 0.03


@pytest.mark.parametrize("shape", [(32, 32), (48, 32), (64, 128), (120, 20)])
def test_in_noise_alone_nothing_is_kept(shape):
    every = [spectral.spectrum(drawn(*shape, seed=seed)) for seed in range(200)]
    assert sum(found.kept > 0 for found in every) <= 2
    assert sum("bulk is not noise" in found.hazards for found in every) <= 2
    # The bias that so few singular values leave.
    assert np.mean([found.noise for found in every]) == pytest.approx(1, rel=0.02)


def test_structure_below_the_noise_is_not_kept():
    structure, noise = planted(512, 256, above=0.3)
    assert spectral.spectrum(structure + noise).kept == 0


def test_an_exact_low_rank_has_no_edge_and_says_so():
    for dtype in (torch.float64, torch.float32):
        found = spectral.spectrum(low_rank(256, 128, 3).to(dtype))
        assert found.hazards == ("low rank 3",)
        assert np.isnan([found.noise, found.edge, found.kept, found.structured]).all()
        assert found.norm == pytest.approx(3**0.5)
        assert found.spectral == pytest.approx(1)
        assert found.stable_rank == pytest.approx(3)


def test_rows_and_columns_that_never_moved_do_not_count():
    structure, noise = planted(300, 128)
    whole = torch.zeros(1000, 160, dtype=torch.float64)
    whole[::3][:300, :128] = structure + noise
    alone, among = spectral.spectrum(structure + noise), spectral.spectrum(whole)
    assert (among.kept, among.hazards) == (3, ())
    for name in ("norm", "noise", "edge", "structured", "stable_rank"):
        assert getattr(among, name) == pytest.approx(getattr(alone, name)), name


@pytest.mark.parametrize("shape", [(31, 33), (1, 1000), (1000, 1)])
def test_a_small_matrix_has_singular_values_but_no_edge(shape):
    found = spectral.spectrum(drawn(*shape))
    assert found.hazards == ("too small",)
    assert np.isfinite(found.stable_rank)
    assert np.isnan(found.edge)


def test_what_did_not_move_has_no_shares():
    found = spectral.spectrum(torch.zeros(64, 32), drawn(64, 32))
    assert (found.norm, found.relative, found.spectral) == (0, 0, 0)
    assert found.hazards == ("unchanged",)
    assert np.isnan([found.stable_rank, found.edge, found.kept, found.structured]).all()


@pytest.mark.parametrize("what", [float("nan"), float("inf")])
def test_what_is_not_finite_is_said_and_not_counted(what):
    delta = drawn(64, 32)
    delta[3, 3] = what
    found = spectral.spectrum(delta, drawn(64, 32))
    assert found.hazards == ("not finite",)
    assert np.isnan([found.norm, found.spectral, found.kept, found.structured]).all()


@pytest.mark.parametrize("rank", [1, 20, 40])
def test_structure_of_any_rank_leaves_a_bulk_of_noise(rank):
    found = spectral.spectrum(sum(planted(512, 256, rank)))
    assert (found.kept, found.hazards) == (rank, ())


def of_values(rows, values):
    """A matrix of the given singular values."""
    left = torch.linalg.qr(drawn(rows, len(values), seed=1))[0]
    right = torch.linalg.qr(drawn(len(values), len(values), seed=2))[0]
    return left * torch.as_tensor(values) @ right


BULKS = {
    "falling as a power": np.arange(1, 129) ** -1.0,
    "falling exponentially": np.exp(-np.arange(128) / 30),
    "all equal": np.ones(128),
}


@pytest.mark.parametrize("values", BULKS.values(), ids=BULKS)
def test_a_spectrum_without_a_floor_of_noise_is_told_from_one_with(values):
    found = spectral.spectrum(of_values(256, values))
    assert found.hazards == ("bulk is not noise",)
    assert found.misfit > 0.15


def test_the_distance_from_noise_is_that_of_kolmogorov_and_smirnov():
    bulk = of_values(256, BULKS["falling exponentially"])
    values = torch.linalg.svdvals(bulk).numpy()
    # Quantiles of the law, from the singular values of a matrix that is all but infinite.
    law = np.sort(np.square(torch.linalg.svdvals(drawn(1600, 800)).numpy()) / 1600)
    squared = np.sort(np.square(values)) * np.median(law) / np.median(values) ** 2
    known = np.abs(np.searchsorted(law, squared) / 800 - (np.arange(128) + 0.5) / 128).max()
    assert spectral.mp_misfit(values, 0.5) == pytest.approx(known, abs=0.005)


# Storage


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_storage_rounds_away_is_told_from_training(dtype):
    base = drawn(512, 256, size=SIZE).to(dtype).double()
    size, name = spectral.rounding(base)
    structure = 1e4 * size * low_rank(512, 256, 2)
    rounded = (base + structure).to(dtype).double()
    found = spectral.spectrum(rounded - base, base)
    assert found.hazards == (f"rounding of {name}",)
    assert str(dtype) == f"torch.{name}"
    # Structure stands out of the rounding all the same.
    assert found.kept == 2
    # Rounding to the nearest of equal steps has a twelfth of the squared step as variance.
    step = 2.0 ** (torch.floor(torch.log2(rounded.abs())) - spectral.MANTISSA[dtype])
    assert found.noise == pytest.approx(float(step.square().mean() / 12) ** 0.5, rel=0.02)
    assert size / 2 < found.noise < size


def test_a_change_well_above_the_rounding_is_training():
    base = drawn(512, 256, size=SIZE).bfloat16().double()
    aligned = (base + drawn(512, 256, seed=1, size=NOISE)).bfloat16().double()
    found = spectral.spectrum(aligned - base, base)
    assert found.hazards == ()
    assert found.noise == pytest.approx(NOISE, rel=0.02)


def test_a_change_that_was_never_rounded_is_training_however_small():
    base = drawn(512, 256, size=SIZE)
    found = spectral.spectrum(drawn(512, 256, seed=1, size=1e-9), base)
    assert found.hazards == ()
    assert spectral.rounding(base) == (0.0, "")


# Invariances and oracles


def test_rotation_transposition_and_scale_change_nothing_but_the_scale():
    delta, base = sum(planted(200, 120)), drawn(200, 120)
    left = torch.linalg.qr(drawn(200, 200, seed=3))[0]
    right = torch.linalg.qr(drawn(120, 120, seed=4))[0]
    found = spectral.spectrum(delta, base)
    turned = spectral.spectrum(left @ delta @ right, left @ base)
    over = spectral.spectrum(delta.T, base.T)
    larger = spectral.spectrum(-1e-8 * delta, -1e-8 * base)
    for other, scale in ((turned, 1), (over, 1), (larger, 1e-8)):
        for name in ("norm", "spectral", "noise", "edge"):
            ours = scale * getattr(found, name)
            assert getattr(other, name) == pytest.approx(ours, rel=1e-9), name
        for name in ("relative", "stable_rank", "kept", "structured"):
            assert getattr(other, name) == pytest.approx(getattr(found, name), rel=1e-9), name


@pytest.mark.parametrize("shape", [*SHAPES, (5, 300)])
def test_the_gram_matrix_gives_the_singular_values(shape):
    delta = drawn(*shape)
    known = torch.linalg.svdvals(delta).numpy()
    ours = spectral.spectrum(delta).values
    np.testing.assert_allclose(ours, known, rtol=1e-9)


def test_the_gram_matrix_resolves_singular_values_far_below_the_largest():
    known = np.logspace(0, -7, 64)
    left = torch.linalg.qr(drawn(100, 64, seed=1))[0]
    right = torch.linalg.qr(drawn(64, 64, seed=2))[0]
    delta = left * torch.from_numpy(known) @ right
    # What float64 leaves of a square that is 1e-14 of the largest.
    np.testing.assert_allclose(spectral.spectrum(delta).values, known, atol=2e-8)


def test_a_change_is_read_a_piece_at_a_time(monkeypatch):
    structure, noise = planted(400, 120)
    base = drawn(400, 120, size=SIZE).bfloat16()
    whole = spectral.spectrum(structure + noise, base)
    monkeypatch.setattr(spectral, "AT_ONCE", 1000)
    parts = spectral.spectrum(structure + noise, base)
    np.testing.assert_allclose(parts.values, whole.values, rtol=1e-12)
    assert parts.relative == pytest.approx(whole.relative, rel=1e-12)


def test_numbers_may_come_from_numpy():
    delta = drawn(64, 48)
    assert spectral.spectrum(delta.numpy()).edge == spectral.spectrum(delta).edge


# The repaired change


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_structure_is_the_change_cut_at_the_edge(shape, dtype):
    structure, noise = planted(*shape)
    delta = (structure + noise).to(dtype)
    ours = spectral.structure(delta)
    left, values, right = torch.linalg.svd(delta.double(), full_matrices=False)
    values[values <= spectral.spectrum(delta).edge] = 0
    assert (ours.dtype, ours.shape) == (dtype, delta.shape)
    known = left * values @ right
    assert float((ours - known).norm() / known.norm()) < 1e-6
    # It is nearer to what was planted than the change was: 3 of so many dimensions are left.
    assert (ours - structure).norm() < 0.4 * noise.norm()


def test_noise_alone_is_taken_away_whole():
    assert not spectral.structure(drawn(120, 100)).any()


@pytest.mark.parametrize("delta", [low_rank(256, 128, 3), drawn(20, 20), torch.zeros(64, 64)])
def test_without_an_edge_nothing_is_taken_away(delta):
    ours = spectral.structure(delta)
    assert torch.equal(ours, delta)
    assert ours.data_ptr() != delta.data_ptr()
