"""Directions are found as far as their noise lets them be, and turn with the states."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from driftlens.errors import DriftlensError
from driftlens.estimators.directions import (
    ClassMeans,
    contrast_pca,
    contrast_subspace,
    discriminant,
    logistic_normal,
    mean_difference,
    paired_difference,
    select_direction,
)
from driftlens.estimators.surety import role_null, stability
from driftlens.formulas.streams import Mergeable
from states import ANY, ESTIMATES, X, planted, rotation

# --- estimators ---------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "pairs"), [(8.0, 50), (4.0, 50), (1.0, 400), (1.0, 50)])
def test_a_planted_direction_is_found_as_well_as_its_noise_lets_it(norm, pairs):
    """cos ≈ s / √(s² + 2 d / n): the error of each mean has variance 1 / n a coordinate."""
    width, found = 40, []
    for seed in range(12):
        positive, negative, unit = planted(norm, pairs=pairs, width=width, seed=seed)
        found.append(mean_difference(positive, negative).unit @ unit)
    expected = norm / np.sqrt(norm**2 + 2 * width / pairs)
    # Of twelve cosines whose error is about √(2 / n) sin / s each, twice over.
    error = np.sqrt(2 / pairs / 12) * np.sqrt(1 - expected**2) / norm + 1 / width / 12
    assert np.mean(found) == pytest.approx(expected, abs=3 * error)


def test_a_clear_direction_is_found_by_all_with_its_length():
    positive, negative, unit = planted(12.0, pairs=400, topic=0.5)
    for estimate in ESTIMATES.values():
        found = estimate(positive, negative)
        assert found.unit @ unit > 0.99
        assert found.norm == pytest.approx(12.0, rel=0.02)
        assert found.relative == pytest.approx(found.norm / found.lengths.mean())
        # Within a class the spread is that of noise and topic, √1.25.
        assert found.separation == pytest.approx(12 / np.sqrt(1.25), rel=0.06)


@ANY
def test_directions_turn_with_the_states(estimate):
    positive, negative, _ = planted(2.0)
    turn = rotation(20)
    one, other = estimate(positive, negative), estimate(positive @ turn, negative @ turn)
    # The logistic descent stops at a gradient of 1e-4.
    tolerance = 1e-3 if estimate is logistic_normal else 1e-9
    np.testing.assert_allclose(other.unit, one.unit @ turn, atol=tolerance)
    assert other.gap == pytest.approx(one.gap, rel=tolerance)


@ANY
def test_a_scale_lengthens_and_a_shift_changes_nothing(estimate):
    positive, negative, _ = planted(2.0)
    one = estimate(positive, negative)
    other = estimate(1024 * positive, 1024 * negative)
    shifted = estimate(positive + 7.0, negative + 7.0)
    np.testing.assert_allclose(other.unit, one.unit, atol=1e-9)
    np.testing.assert_allclose(shifted.unit, one.unit, atol=1e-7)
    assert other.gap == pytest.approx(1024 * one.gap)
    assert (other.relative, other.separation) == pytest.approx((one.relative, one.separation))


@ANY
def test_a_swap_of_classes_turns_the_direction_round(estimate):
    positive, negative, _ = planted(2.0)
    one, other = estimate(positive, negative), estimate(negative, positive)
    np.testing.assert_allclose(other.unit, -one.unit, atol=1e-7)
    assert other.gap == pytest.approx(one.gap)
    assert one.cosine(other) == pytest.approx(-1)


@pytest.mark.parametrize("estimate", [mean_difference, paired_difference, contrast_pca])
def test_classes_that_do_not_differ_have_no_direction(estimate):
    states, _, _ = planted(0.0)
    found = estimate(states, states)
    assert found.gap == found.norm == found.relative == 0
    assert np.isnan(found.unit).all()
    assert not found.vector.any()
    assert role_null(estimate, states, states, seed=0, rounds=9).p_value == 1
    same = stability(estimate, states, states, seed=0, rounds=5)
    assert np.isnan([*same.cosine, *same.split_half, same.to_truth]).all()
    assert np.isnan(estimate(0 * states, 0 * states).relative)


def test_two_ways_to_the_difference_of_means_are_one():
    positive, negative, _ = planted(1.0)
    one, other = mean_difference(positive, negative), paired_difference(positive, negative)
    np.testing.assert_allclose(one.vector, positive.mean(0) - negative.mean(0), atol=1e-15)
    np.testing.assert_allclose(one.vector, other.vector, atol=1e-14)


@pytest.mark.parametrize("width", [6, 100])
def test_components_are_those_of_differences_and_their_negatives(width):
    positive, negative, _ = planted(1.0, width=width)
    both = np.vstack([positive - negative, negative - positive])
    oracle = PCA(3, svd_solver="full").fit(both).components_
    found = contrast_subspace(positive, negative, 3)
    signs = np.sign((found * oracle).sum(1))
    np.testing.assert_allclose(found, signs[:, None] * oracle, atol=1e-9)
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.abs(contrast_pca(positive, negative).unit), np.abs(found[0]))


def test_the_published_form_centres_shuffled_differences():
    positive, negative, _ = planted(3.0)
    signs = np.random.default_rng(3).choice([-1.0, 1.0], len(positive))[:, None]
    oracle = PCA(1).fit(signs * (positive - negative)).components_[0]
    assert abs(contrast_pca(positive, negative, shuffle=3).unit @ oracle) == pytest.approx(1)


def test_centring_differences_that_lead_one_way_deletes_the_signal():
    positive, negative, unit = planted(6.0, pairs=200)
    trapped = PCA(1).fit(positive - negative).components_[0]
    assert abs(trapped @ unit) < 0.5
    for found in (contrast_pca(positive, negative), contrast_pca(positive, negative, shuffle=0)):
        assert found.unit @ unit > 0.98
    # Whichever state of a pair comes first, uncentred components are the same.
    turned = np.arange(200)[:, None] % 3 == 0
    mixed = [np.where(turned, *z) for z in ((positive, negative), (negative, positive))]
    components = (contrast_subspace(*z, 2) for z in ((positive, negative), mixed))
    np.testing.assert_allclose(*map(np.abs, components), atol=1e-9)


def test_most_pairs_settle_the_sign_of_a_component():
    axis = np.array([1.0, 0.0, 0.0])
    leads = np.array([1.0, 1.0, 1.0, -9.0])[:, None]
    found = contrast_pca(leads * axis, 0 * leads * axis)
    np.testing.assert_allclose(found.unit, axis)
    # Three pairs of four point one way, and their mean the other: it shows.
    assert found.gap == pytest.approx(-1.5)
    assert found.norm == 1.5
    np.testing.assert_allclose(found.vector, -1.5 * axis)
    tied = contrast_pca(np.array([[1.0], [-3.0]]) * axis, np.zeros((2, 3)))
    assert tied.unit[0] == -1


@pytest.mark.parametrize("width", [10, 90])
@pytest.mark.parametrize("shrinkage", [0.1, 0.7, 1.0])
def test_the_discriminant_is_scikit_learns(shrinkage, width):
    positive, negative, _ = planted(2.0, pairs=30, width=width)
    positive = positive[:22]
    X, y = np.vstack([positive, negative]), np.repeat([1, 0], [22, 30])
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(X, y).coef_[0]
    found = discriminant(positive, negative, shrinkage=shrinkage)
    np.testing.assert_allclose(found.unit, oracle / np.linalg.norm(oracle), atol=1e-10)
    if shrinkage == 1:
        np.testing.assert_allclose(found.unit, mean_difference(positive, negative).unit)


@pytest.mark.parametrize("width", [10, 90])
def test_the_shrinkage_is_ledoit_and_wolfs_and_is_said(width):
    positive, negative, _ = planted(2.0, pairs=30, width=width)
    within = np.vstack([z - z.mean(0) for z in (positive, negative)])
    oracle = LedoitWolf(assume_centered=True).fit(within)
    raw = np.linalg.solve(oracle.covariance_, positive.mean(0) - negative.mean(0))
    found = discriminant(positive, negative)
    assert found.details["shrinkage"] == pytest.approx(oracle.shrinkage_)
    np.testing.assert_allclose(found.unit, raw / np.linalg.norm(raw), atol=1e-10)


def test_whitening_sees_past_a_loud_axis():
    """Noise a hundred times as loud on one axis hides the direction from means, not from LDA."""
    positive, negative, unit = planted(2.0, pairs=300, width=6, topic=0.0)
    loud = np.linalg.svd(unit[None])[2][1]
    noise = 20 * np.random.default_rng(1).normal(size=(2, 300, 1)) * loud
    positive, negative = positive + noise[0], negative + noise[1]
    assert discriminant(positive, negative, shrinkage=0).unit @ unit > 0.98
    assert mean_difference(positive, negative).unit @ unit < 0.95


def test_the_logistic_normal_is_where_its_loss_is_least():
    positive, negative, _ = planted(1.0, width=4)
    X = np.vstack([positive, negative]) - np.vstack([positive, negative]).mean(0)
    X /= np.sqrt(np.square(X).mean())
    signs = np.repeat([1.0, -1.0], 60)

    def height(w):
        return np.logaddexp(0, -signs * (X @ w[:-1] + w[-1])).sum() + w[:-1] @ w[:-1] / 2 / 0.3

    best = minimize(height, np.zeros(5)).x[:-1]
    found = logistic_normal(positive, negative, C=0.3).unit
    np.testing.assert_allclose(found, best / np.linalg.norm(best), atol=1e-3)
    oracle = LogisticRegression(C=0.3).fit(X, signs).coef_[0]
    np.testing.assert_allclose(found, oracle / np.linalg.norm(oracle), atol=1e-6)


# --- streams ------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=4), st.integers(0, 99))
def test_any_split_of_a_stream_has_the_same_means_to_the_last_bit(cuts, seed):
    random = np.random.default_rng(seed)
    # As exact as 16-bit states are: sums of them need no rounding.
    states = random.normal(size=(40, 3, 5)).astype(np.float16)
    positive = random.random(40) < 0.4
    whole = ClassMeans().update(states, positive)
    parts = [
        ClassMeans().update(some, which)
        for some, which in zip(
            np.split(states, sorted(cuts)), np.split(positive, sorted(cuts)), strict=True
        )
    ]
    merged = ClassMeans()
    for part in reversed(parts):
        merged.merge(part)
    np.testing.assert_array_equal(merged.sums, whole.sums)
    np.testing.assert_array_equal(merged.counts, whole.counts)
    np.testing.assert_allclose(merged.lengths, whole.lengths, rtol=1e-14)


def test_a_stream_finds_what_its_states_find():
    random = np.random.default_rng(0)
    states, positive = random.normal(size=(50, 2, 3, 8)), random.random(50) < 0.5
    stream = ClassMeans().update(states[:20], positive[:20]).update(states[20:], positive[20:])
    assert isinstance(stream, Mergeable)
    stream = stream.empty().restore(stream.state())
    for place in np.ndindex(2, 3):
        some = states[:, *place]
        one, other = stream.direction(*place), mean_difference(some[positive], some[~positive])
        np.testing.assert_allclose(one.unit, other.unit, atol=1e-14)
        assert one.gap == pytest.approx(other.gap)
        np.testing.assert_allclose(one.lengths, other.lengths)
        assert np.isnan(one.separation)
        assert not np.isnan(other.separation)


# --- selection ----------------------------------------------------------------------------


def scores(**changed):
    """Ten layers and two positions that pass, layer 3 at the second bypassing best."""
    found = {
        "bypass": np.full((2, 10), -1.0),
        "induce": np.full((2, 10), 1.0),
        "kl": np.full((2, 10), 0.05),
    }
    found["bypass"][1, 3] = -5.0
    for name, places in changed.items():
        for place, value in places.items():
            found[name][place] = value
    return found


def test_the_direction_that_bypasses_best_is_taken():
    found = select_direction(**scores())
    assert (found.position, found.layer) == (1, 3)
    assert found.kept[:, :8].all()
    assert not found.kept[:, 8:].any()
    assert set(found.reasons[:, 8:].ravel()) == {"layer is not below 8"}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"kl": {(1, 3): 0.11}}, "KL is over 0.1"),
        ({"induce": {(1, 3): -0.01}}, "induces less than 0"),
        ({"bypass": {(1, 3): np.nan}}, "a score is NaN"),
        ({"kl": {(1, 3): 0.2}, "induce": {(1, 3): -1}}, "KL is over 0.1; induces less than 0"),
    ],
)
def test_a_direction_that_fails_is_discarded_and_it_is_said_why(changed, reason):
    found = select_direction(**scores(**changed))
    assert found.reasons[1, 3] == reason
    assert (found.position, found.layer) == (0, 0)


def test_thresholds_themselves_pass():
    found = select_direction(**scores(kl={(1, 3): 0.1}, induce={(1, 3): 0.0}))
    assert (found.position, found.layer) == (1, 3)
    # 80 % of 24 blocks is 19.2: block 19 is the first that is too late.
    wide = select_direction(*np.zeros((3, 1, 24)))
    np.testing.assert_array_equal(wide.kept[0], np.arange(24) < 19)


def test_where_all_fail_none_is_taken():
    found = select_direction(**scores() | {"kl": np.full((2, 10), 9.0)})
    assert (found.position, found.layer) == (None, None)
    assert not found.kept.any()
    hopeless = select_direction(**scores() | {"bypass": np.full((2, 10), np.inf)} | {
        "induce": np.tile([[-1.0], [1.0]], 10)})  # fmt: skip
    assert (hopeless.position, hopeless.layer) == (1, 0)


# --- bad input ----------------------------------------------------------------------------


BAD = np.where(np.arange(5) == 2, np.nan, X)

WRONG = {
    "no positive states": (lambda: mean_difference(X[:0], X), "shapes"),
    "three axes": (lambda: mean_difference(X[None], X), "shapes"),
    "two widths": (lambda: mean_difference(X[:, :4], X), "4 and 5"),
    "NaN": (lambda: mean_difference(X, BAD), r"nan at \(0, 2\)"),
    "a twin missing": (lambda: contrast_pca(X[:-1], X), "11 positive and 12"),
    "no component": (lambda: contrast_subspace(X, -X, 0), "between 1 and 5"),
    "more than the rank": (lambda: contrast_subspace(X, X - 1, 2), "rank 2"),
    "no variance": (lambda: discriminant(0 * X, 0 * X + 1), "do not"),
    "no ridge": (lambda: discriminant(X[:3], X[3:6], shrinkage=0), "less than full rank"),
    "a column twice": (
        lambda: discriminant(X[:, [0, 0]], -X[:, [0, 0]], shrinkage=0),
        "0 with 24 states of width 2",
    ),
    "a shrinkage above 1": (lambda: discriminant(X, -X, shrinkage=2), "found 2"),
    "one class in a stream": (
        lambda: ClassMeans().update(X, np.ones(12, bool)).direction(),
        "12 positive and 0",
    ),
    "no truth": (lambda: ClassMeans().update(X, np.ones(12)), "float64"),
    "NaN in a stream": (lambda: ClassMeans().update(BAD, np.ones(12, bool)), "finite"),
    "directions of two widths": (
        lambda: mean_difference(X, -X).cosine(mean_difference(X[:, :4], -X[:, :4])),
        "one width",
    ),
    "scores of two shapes": (
        lambda: select_direction(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((3, 2))),
        "one shape",
    ),
}


@pytest.mark.parametrize(("ask", "said"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_refused_with_what_was_found(ask, said):
    with pytest.raises(DriftlensError, match=said):
        ask()
