"""What one small step does to a pair agrees with toys that can be worked out by hand."""

import math

import numpy as np
import pytest
import torch

from driftlens.formulas import entanglement
from driftlens.formulas.entanglement import (
    band,
    band_distance,
    cases,
    ches,
    condition,
    cosine,
    ideal_ranked,
    ideal_reach,
    ln_ches,
    loss_threshold,
    projected_share,
    ranked,
    rates,
    unlearning_weight,
)
from driftlens.formulas.preferences import DPO, LOSSES, NPO, Answers, pulls

NAN = float("nan")


def products(chosen, rejected):
    """‖g_w‖², ⟨g_w, g_l⟩ and ‖g_l‖² of [*, parameter] gradients."""
    return tuple(
        np.einsum("...p,...p->...", x, y)
        for x, y in ((chosen, chosen), (chosen, rejected), (rejected, rejected))
    )


def drawn(pairs=20_000, width=3, seed=0):
    """Products of random gradients, many of them nearly along each other, of many lengths."""
    random = np.random.default_rng(seed)
    chosen, own = random.normal(size=(2, pairs, width))
    shared = random.choice([0.0, 1.0, 5.0], (pairs, 1))
    rejected = (shared * chosen + own) * np.exp(random.normal(size=(pairs, 1)))
    return products(chosen, rejected)


def drawn_pulls(pairs=20_000, seed=1):
    return np.exp(np.random.default_rng(seed).normal(size=(2, pairs)))


# --- toys ---------------------------------------------------------------------------------


def softmax_gradient(p, target):
    return np.eye(len(p))[target] - np.asarray(p)


def test_one_free_softmax_is_the_fixture_of_the_methods():
    p = [0.6, 0.3, 0.1]
    found = products(softmax_gradient(p, 0), softmax_gradient(p, 1))
    np.testing.assert_allclose(found, [0.26, -0.44, 0.86], rtol=1e-12)
    up = rates(*found, 1, 1)
    # 1 − p_w + p_l and −(1 − p_l + p_w), whatever the third token.
    np.testing.assert_allclose(up, [0.7, -1.3, 2.0], rtol=1e-12)
    assert cases(up.chosen, up.rejected) == "ideal"
    assert condition(*found) == 1


def test_a_third_token_makes_the_product_positive_and_the_pair_stays_ideal():
    p = [0.01, 0.01, 0.98]
    found = products(softmax_gradient(p, 0), softmax_gradient(p, 1))
    assert found[1] == pytest.approx(0.9406, rel=1e-12)
    assert cases(*rates(*found, 1, 1)[:2]) == "ideal"


def suffix_toy(k):
    """A first token that differs, then k shared ones that each answer finds as likely."""
    first = [softmax_gradient([0.5, 0.5], target) for target in (0, 1)]
    return products(
        *(
            np.concatenate([own, *[softmax_gradient([q, 1 - q], 0)] * k])
            for own, q in zip(first, (0.9, 0.5), strict=True)
        )
    )


@pytest.mark.parametrize("k", range(31))
def test_a_shared_suffix_is_the_fixture_of_the_methods(k):
    found = suffix_toy(k)
    closed = [0.5 + 0.02 * k, -0.5 + 0.1 * k, 0.5 + 0.5 * k]
    np.testing.assert_allclose(found, closed, rtol=1e-12, atol=1e-12)
    up = rates(*found, 1, 1)
    np.testing.assert_allclose(up[:2], [1 - 0.08 * k, -1 - 0.4 * k], rtol=1e-12, atol=1e-12)
    # The sign flips at 13 tokens: from then on the chosen answer falls with the rejected.
    assert cases(up.chosen, up.rejected) == ("ideal" if k < 13 else "both_down")
    assert condition(*found) == (k < 13)
    assert (band_distance(*found, 1, 1) < 0) == (k >= 13)


def test_the_numbers_of_the_suffix_toy_around_its_flip():
    cosines = [cosine(*suffix_toy(k)).item() for k in (0, 5, 12, 13)]
    assert cosines == pytest.approx([-1, 0, 0.319, 0.347], abs=5e-4)
    at_12, at_13 = (rates(*suffix_toy(k), 1, 1) for k in (12, 13))
    assert (at_12.chosen, at_13.chosen) == pytest.approx((0.04, -0.04), rel=1e-10)
    np.testing.assert_allclose(suffix_toy(13), [0.76, 0.80, 7.0], rtol=1e-12)
    assert at_13.rejected == pytest.approx(-6.2, rel=1e-12)


def test_the_card_example_goes_both_down_and_its_margin_up():
    up = rates(1, 2, 4, 1, 1)
    assert up == (-1, -2, 1)
    assert cases(up.chosen, up.rejected) == "both_down"
    assert rates(1, 2, 4, 1, 1, step=0.5) == (-0.5, -1, 0.5)


def test_the_condition_minds_the_norm_that_the_published_script_forgets():
    # min(‖g_w‖², ‖g_w‖²) would let this pair pass, of which both answers rise.
    assert condition(4, 2, 1) == 0
    assert cases(*rates(4, 2, 1, 1, 1)[:2]) == "both_up"
    assert condition([1, 4, NAN], [1, 0, 0], [1, 1, 1]).tolist()[:2] == [1, 1]
    assert math.isnan(condition(NAN, 0, 1))


@pytest.mark.parametrize("name", LOSSES)
def test_one_step_of_sgd_does_what_was_predicted(name):
    random = torch.Generator().manual_seed(0)
    weights = torch.randn(5, 4, dtype=torch.float64, generator=random)
    states = torch.randn(2, 6, 4, dtype=torch.float64, generator=random)
    tokens = torch.randint(5, (2, 6), generator=random)
    answered = torch.tensor([[1.0] * 6, [1.0] * 4 + [0.0] * 2])

    def log_probabilities(weights):
        scores = (states @ weights.T).log_softmax(-1)
        return (scores.gather(-1, tokens[..., None])[..., 0] * answered).sum(-1)

    start = weights.clone().requires_grad_()
    sums = log_probabilities(start)
    gradients = [torch.autograd.grad(s, start, retain_graph=True)[0].flatten() for s in sums]
    of = products(*(g.numpy() for g in gradients))
    loss = LOSSES[name]()

    def answers(sums):
        reference = sums.detach() + torch.tensor([0.3, -0.2])
        kept = (*answered.sum(-1), *reference)
        return Answers(*(z[None] for z in (*sums, *kept)))

    predicted = rates(*of, *(d.item() for d in pulls(loss, answers(sums))))
    slope = torch.autograd.grad(loss(answers(sums)).sum(), start)[0]
    off = {}
    for step in (1e-4, 1e-5):
        with torch.no_grad():
            change = (log_probabilities(weights - step * slope) - sums) / step
        off[step] = np.abs(np.array(predicted[:2]) - change.numpy())
    # First order: ten times nearer with a tenth of the step. Sums of some 15 nats are right to
    # 1e-14, which is 1e-9 of a step.
    assert (off[1e-5] <= 0.11 * off[1e-4] + 1e-9).all()
    assert (off[1e-5] <= 1e-2 * np.abs(predicted[:2]) + 1e-9).all()


# --- rates, cases and the band ------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3, 30])
def test_equal_pulls_widen_the_margin_by_the_squared_difference(width):
    random = np.random.default_rng(width)
    chosen, rejected = random.normal(size=(2, 500, width))
    pull = np.exp(random.normal(size=500))
    found = rates(*products(chosen, rejected), pull, pull).margin
    np.testing.assert_allclose(found, pull * ((chosen - rejected) ** 2).sum(-1), 1e-10, 1e-12)


def test_the_changes_of_blocks_add_up_to_the_whole():
    random = np.random.default_rng(0)
    chosen, rejected = random.normal(size=(2, 7, 12))
    blocks = rates(*products(chosen, rejected), 0.4, 0.7)
    whole = rates(*products(chosen.ravel(), rejected.ravel()), 0.4, 0.7)
    np.testing.assert_allclose(np.sum(blocks, 1), whole, rtol=1e-12)


def test_pulls_above_0_never_reverse_a_pair():
    of, (d_w, d_l) = drawn(), drawn_pulls()
    found = cases(*rates(*of, d_w, d_l)[:2])
    assert set(found) == {"ideal", "both_down", "both_up"}
    # Pulls below 0 turn every sign, so that ideal pairs are the reversed ones.
    turned = cases(*rates(*of, -d_w, -d_l)[:2])
    assert ((turned == "reversed") == (found == "ideal")).all()
    assert ((turned == "both_up") == (found == "both_down")).all()


def test_ipo_past_its_aim_reverses_an_orthogonal_pair():
    past = Answers(*(torch.tensor([z]) for z in (0.0, -9.0, 1.0, 1.0, 0.0, 0.0)))
    d_w, d_l = (d.item() for d in pulls(LOSSES["ipo"](tau=0.1), past))
    assert cases(*rates(1, 0, 1, d_w, d_l)[:2]) == "reversed"
    assert math.isnan(band_distance(1, 0, 1, d_w, d_l))


def test_ties_are_not_moves_the_wrong_way_and_no_move_at_all_is_still():
    up = [0, 0, 1, -1, 0, NAN, 1]
    down = [-1, 1, 0, 0, 0, 1, NAN]
    named = ["ideal", "both_up", "ideal", "both_down", "still", "undefined", "undefined"]
    assert cases(up, down).tolist() == named
    assert set(named) <= {*entanglement.CASES, entanglement.UNDEFINED}
    # Twice the same answer: the published condition holds, and nothing moves.
    assert condition(2, 2, 2) == 1
    assert cases(*rates(2, 2, 2, 0.3, 0.3)[:2]) == "still"


def test_the_condition_is_that_equal_pulls_make_an_ideal_pair():
    of = drawn()
    found = cases(*rates(*of, 0.3, 0.3)[:2])
    assert ((found == "ideal") == (condition(*of) == 1)).all()
    assert 0.1 < condition(*of).mean() < 0.9


def test_a_pair_is_within_the_band_where_it_is_ideal_and_out_on_the_side_that_goes_wrong():
    of, (d_w, d_l) = drawn(), drawn_pulls()
    found, distance = cases(*rates(*of, d_w, d_l)[:2]), band_distance(*of, d_w, d_l)
    assert ((distance == 0) == (found == "ideal")).all()
    assert ((distance < 0) == (found == "both_down")).all()
    assert ((distance > 0) == (found == "both_up")).all()
    low, high = band(*of)
    ratio = d_w / d_l
    # But for pairs whose gradients lie along each other to the last digits, low is below high.
    assert (low <= high * (1 + 1e-12)).all()
    np.testing.assert_allclose(
        distance,
        np.minimum(np.log(ratio) - np.log(np.maximum(low, 1e-300)), 0)
        + np.maximum(np.log(ratio) - np.log(np.minimum(high, 1e300)), 0),
        rtol=1e-9,
        atol=1e-12,
    )
    apart = cosine(*of) <= 0
    assert apart.any()
    assert (found[apart] == "ideal").all()


def test_the_band_goes_from_rho_r_to_r_over_rho():
    of = drawn()
    rho, r = cosine(*of), np.sqrt(of[2] / of[0])
    along = rho > 0
    low, high = band(*of)
    np.testing.assert_allclose(low[along], (rho * r)[along], rtol=1e-12)
    np.testing.assert_allclose(high[along], (r / rho)[along], rtol=1e-12)
    assert not low[~along].any()
    assert np.isposinf(high[~along]).all()


def test_the_exponential_of_the_distance_is_the_pull_that_is_missing():
    of, (d_w, d_l) = drawn(), drawn_pulls()
    distance = band_distance(*of, d_w, d_l)
    for more, case in ((0.999, "wrong"), (1.001, "ideal")):
        mended = cases(*rates(*of, d_w * np.exp(-more * distance), d_l)[:2])
        # Of hardly any distance a thousandth is rounding; and a narrow band is soon crossed.
        low, high = band(*of)
        out = (np.abs(distance) > 1e-9) & (np.log(high / np.maximum(low, 1e-300)) > 0.1)
        out &= np.abs(distance) < 50
        assert ((mended[out] == "ideal") == (case == "ideal")).all()


def test_the_band_of_one_pull_or_none_is_infinitely_far_or_undefined():
    assert band_distance(1, 0.5, 1, [1, 0], [0, 1]).tolist() == [math.inf, -math.inf]
    assert band_distance(1, -0.5, 1, [1, 0], [0, 1]).tolist() == [0, 0]
    # A pull below 0 has no ratio to speak of, though these two pairs are ideal.
    assert cases(*rates([1, 5], -2, [5, 1], [-1, 1], [1, -1])[:2]).tolist() == ["ideal"] * 2
    assert np.isnan(band_distance([1, 5], -2, [5, 1], [-1, 1], [1, -1])).all()
    assert np.isnan(band_distance(1, 0.5, 1, 0, 0))
    blank = band_distance(
        [1, 0, 1, NAN, 1], [0.5, 0, 0, 1, 1], [1, 1, 0, 1, 1], [0, 1, 1, 1, NAN], [0, 1, 1, 1, 1]
    )
    assert np.isnan(blank).all()
    assert np.isnan(band([0, 1, NAN], [0, 0, 1], [1, 0, 1])).all()


def test_a_cosine_is_within_its_range_and_undefined_without_a_gradient():
    assert cosine(3, 3.0000000000000004, 3) == 1
    assert cosine(1e300, -1e300, 1e300) == -1
    assert np.isnan(cosine([0, 1, NAN], [0, 0, 0], [1, 0, 1])).all()


def test_what_is_missing_stays_missing():
    for place in range(5):
        given = [1.0, 0.5, 1.0, 1.0, 1.0]
        given[place] = NAN
        assert math.isnan(rates(*given).margin)
        assert cases(*rates(*given)[:2]) == "undefined"
        assert math.isnan(band_distance(*given))


# --- hidden states, rankings, unlearning --------------------------------------------------


def test_ches_is_the_product_less_the_square():
    random = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 9, 16, generator=random)
    lengths = torch.randint(1, 9, (2, 9), generator=random)
    w, l = chosen.double(), rejected.double()  # noqa: E741
    found = ches(chosen, rejected)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, (w * l).sum(-1) - (w * w).sum(-1))
    n, m = lengths.double()
    closed = (w * l).sum(-1) / (n * m) - (w * w).sum(-1) / n**2
    torch.testing.assert_close(ln_ches(chosen, rejected, *lengths), closed)
    assert not ches(chosen, chosen).any()
    # Answers of one length share the denominator.
    same = ln_ches(chosen, rejected, lengths[0], lengths[0])
    torch.testing.assert_close(same, found / n**2)


def test_ches_of_answers_nearly_alike_keeps_its_digits():
    big = torch.full((1000,), 1e4, dtype=torch.float64)
    near = big.clone()
    near[0] += 1e-6
    # The step as float64 holds it, next to 1e4.
    assert ches(big, near).item() == (1e4 * (near - big).sum()).item()


def test_ln_ches_of_an_answer_said_twice_is_that_of_once():
    chosen, rejected = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    once = ln_ches(chosen, rejected, torch.tensor(3), torch.tensor(5))
    twice = ln_ches(chosen, 2 * rejected, torch.tensor(3), torch.tensor(10))
    torch.testing.assert_close(once, twice, rtol=1e-14, atol=0)
    assert ln_ches(0 * chosen, rejected, torch.tensor(0), torch.tensor(5)).isnan()


def test_rankings_by_sum_and_by_mean_may_differ_and_ties_are_wrong():
    found = ranked([-3, -3, -2, NAN, -1], [-4, -2, -2, -1, -1], [1, 3, 1, 1, 0], [4, 1, 1, 1, 1])
    np.testing.assert_array_equal(found.by_sum, [1, 0, 0, NAN, 0])
    np.testing.assert_array_equal(found.by_mean, [0, 1, 0, NAN, 0])


@pytest.mark.parametrize(("beta", "reach"), [(0.1, 69.07), (1, 6.907), (10, 0.691)])
def test_the_reach_of_a_preference_that_all_share(beta, reach):
    assert ideal_reach(beta) == pytest.approx(reach, abs=5e-3 if beta < 1 else 5e-4)
    assert ideal_reach(beta) == pytest.approx(math.log(999) / beta, rel=1e-13)
    assert ideal_ranked(-reach * 0.99, 0, beta) == 1
    assert ideal_ranked(-reach * 1.01, 0, beta) == 0


def test_the_ceiling_is_the_ranking_by_the_optimum_itself():
    random = np.random.default_rng(0)
    reference, alpha = random.dirichlet([1, 1, 1], 500), random.uniform(0.01, 0.99, 500)
    for beta in (0.3, 1.0, 4.0):
        odds = reference[:, 0] / reference[:, 1] * (alpha / (1 - alpha)) ** (1 / beta)
        logs = np.log(reference)
        found = ideal_ranked(logs[:, 0], logs[:, 1], beta, alpha)
        np.testing.assert_array_equal(found, odds > 1)
        assert 0.4 < found.mean() < 1


def test_the_ceiling_is_the_reference_itself_where_nobody_knows_or_beta_is_large():
    chosen, rejected = np.random.default_rng(1).normal(size=(2, 500))
    own = (chosen > rejected).astype(float)
    np.testing.assert_array_equal(ideal_ranked(chosen, rejected, 1.0, 0.5), own)
    np.testing.assert_array_equal(ideal_ranked(chosen, rejected, 1e9), own)
    # α and 1 − α reach as far, to either side; so do those that all and that none share.
    assert ideal_reach(0.1, 0.2) == pytest.approx(-ideal_reach(0.1, 0.8), rel=1e-14)
    assert ideal_reach(0.1, 0.0) == pytest.approx(-ideal_reach(0.1, 1.0), rel=1e-13)
    assert np.isnan(ideal_ranked([NAN, 0, 0], [0, NAN, 0], 1.0, [1, 1, NAN])).all()


def test_the_loss_under_which_a_pair_is_ranked_right():
    assert loss_threshold(-5, 0, 0.1) == pytest.approx(0.474077, abs=5e-7)
    assert loss_threshold(-30, 0, 0.1) == pytest.approx(0.048587, abs=5e-7)
    assert math.isnan(loss_threshold(NAN, 0, 0.1))


@pytest.mark.parametrize("beta", [0.05, 0.5, 2.0])
def test_a_pair_is_ranked_right_just_where_its_loss_is_below_the_threshold(beta):
    random = torch.Generator().manual_seed(0)
    w, l, ref_w, ref_l = 5 * torch.randn(4, 2000, dtype=torch.float64, generator=random)  # noqa: E741
    one = torch.ones(2000)
    loss = DPO(beta=beta)(Answers(w, l, one, one, ref_w, ref_l))
    right = ranked(w, l, one, one).by_sum == 1
    assert ((loss.numpy() < loss_threshold(ref_w, ref_l, beta)) == right).all()


def test_the_weight_of_unlearning_is_1_at_the_reference_and_npo_s_pull():
    assert unlearning_weight(-40, -40, 0.1) == 1
    assert unlearning_weight(-1e4, -40, 0.1) == pytest.approx(2 * math.exp(-996), rel=1e-9, abs=0)
    assert unlearning_weight(0, -1e4, 0.1) == 2
    p, q, beta = 0.3, 0.05, 0.7
    closed = 2 * p**beta / (p**beta + q**beta)
    assert unlearning_weight(math.log(p), math.log(q), beta) == pytest.approx(closed, rel=1e-14)
    given = 0, math.log(p), 1, 1, 0, math.log(q)
    pair = Answers(*(torch.tensor([z], dtype=torch.float64) for z in given))
    assert pulls(NPO(beta=beta), pair)[1].item() == pytest.approx(closed, rel=1e-14)


# --- conflict with a capability -----------------------------------------------------------


def spanned(count=4, width=30, gradients=200, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(count, width)), random.normal(size=(gradients, width))


def share(others, gradients, dimension=None):
    return projected_share(
        others @ others.T,
        gradients @ others.T,
        (gradients**2).sum(-1),
        dimension or gradients.shape[-1],
    )


def test_a_projected_share_is_that_of_an_orthonormal_basis():
    others, gradients = spanned()
    basis = np.linalg.qr(others.T)[0]
    oracle = ((gradients @ basis) ** 2).sum(-1) / (gradients**2).sum(-1)
    found = share(others, gradients)
    np.testing.assert_allclose(found.share, oracle, rtol=1e-12)
    assert (found.rank, found.chance) == (4, 4 / 30)
    gram, cross = others @ others.T, gradients @ others.T
    inverse = np.einsum("gi,ij,gj->g", cross, np.linalg.pinv(gram), cross)
    np.testing.assert_allclose(found.share, inverse / (gradients**2).sum(-1), rtol=1e-10)


def test_what_is_spanned_has_share_1_and_what_is_orthogonal_0():
    others, gradients = spanned()
    within = np.random.default_rng(1).normal(size=(50, 4)) @ others
    np.testing.assert_allclose(share(others, within).share, 1, rtol=1e-12)
    assert (share(others, within).share <= 1).all()
    basis = np.linalg.qr(others.T)[0]
    without = gradients - gradients @ basis @ basis.T
    np.testing.assert_allclose(share(others, without).share, 0, atol=1e-25)


def test_one_capability_gradient_gives_the_squared_cosine():
    (other,), gradients = spanned(1)
    squared = cosine(*products(gradients, np.broadcast_to(other, gradients.shape))) ** 2
    np.testing.assert_allclose(share(other[None], gradients).share, squared, rtol=1e-12)


def test_a_share_minds_neither_lengths_nor_repeats_nor_zeros():
    others, gradients = spanned()
    plain = share(others, gradients)
    scaled = others * np.array([1e-6, 1, 1e3, 1e6])[:, None]
    more = np.concatenate([scaled, others[:2] + others[2:], np.zeros((2, 30))])
    found = share(more, gradients)
    assert found.rank == plain.rank == 4
    np.testing.assert_allclose(found.share, plain.share, rtol=1e-9)
    # A repeat in float32 differs by rounding, and is no new direction.
    again = np.concatenate([others, (others[:2] * np.pi).astype(np.float32) / np.pi])
    assert share(again, gradients).rank == 4
    np.testing.assert_allclose(share(again, gradients).share, plain.share, atol=1e-6)


def test_the_chance_level_is_the_mean_share_of_random_directions():
    others, gradients = spanned(gradients=20_000)
    found = share(others, gradients)
    # Beta-distributed shares: 1.96 standard errors of 20 000 draws are 0.0008.
    assert found.share.mean() == pytest.approx(found.chance, abs=0.002)


def test_shares_that_are_not_defined_are_nan():
    others, gradients = spanned(gradients=3)
    gradients[1] = 0
    assert np.isnan(share(others, gradients).share).tolist() == [False, True, False]
    assert share(np.zeros((2, 30)), gradients[:1]).share.tolist() == [0]
    assert share(np.zeros((2, 30)), gradients[:1])[1:] == (0, 0)
    others[0, 0] = NAN
    unknown = share(others, gradients)
    assert np.isnan(unknown.share).all()
    assert unknown.rank == 0
    assert math.isnan(unknown.chance)
