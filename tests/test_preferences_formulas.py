"""Losses pull as their closed forms say, at every margin, and say what they cannot do."""

import dataclasses
import math

import pytest
import torch

from driftlens.errors import DriftlensError
from driftlens.formulas import entanglement
from driftlens.formulas.preferences import (
    CDPO,
    DPO,
    IPO,
    KTO,
    LOSSES,
    NCA,
    NPO,
    ORPO,
    RDPO,
    SPPO,
    Answers,
    Contrastive,
    SimPO,
    SLiC,
    check_reference,
    loss_of,
    pulls,
)

sigmoid = torch.sigmoid


def answers(pairs=200, seed=0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)

    def draw():
        return torch.randn(pairs, dtype=torch.float64, generator=random)

    lengths = [torch.randint(1, 40, (pairs,), generator=random) for _ in range(2)]
    # About a nat a token, and a policy some nats away from its reference.
    reference = [-n * (0.2 + draw().abs()) for n in lengths]
    policy = [-(s + 4 * draw()).abs() - 0.01 for s in reference]
    return Answers(*[z.to(dtype) for z in policy], *lengths, *[z.to(dtype) for z in reference])


def at(chosen, rejected, chosen_length=1, rejected_length=1, references=(0.0, 0.0)):
    values = chosen, rejected, chosen_length, rejected_length, *references
    return Answers(*(torch.tensor([float(z)], dtype=torch.float64) for z in values))


def parts(a):
    """s_w, s_l, their means, the log-ratios and the lengths, as the table of the methods."""
    n = a.chosen_length.double(), a.rejected_length.double()
    ratios = a.chosen - a.reference_chosen, a.rejected - a.reference_rejected
    return (a.chosen, a.rejected), (a.chosen / n[0], a.rejected / n[1]), ratios, n


def dpo(loss, a):
    _, _, (w, r), _ = parts(a)
    pull = loss.beta * sigmoid(-loss.beta * (w - r))
    return pull, pull


def r_dpo(loss, a):
    _, _, (w, r), (n_w, n_l) = parts(a)
    pull = loss.beta * sigmoid(-loss.beta * (w - r) - loss.alpha * (n_w - n_l))
    return pull, pull


def ipo(loss, a):
    _, _, (w, r), _ = parts(a)
    pull = 2 * (1 / (2 * loss.tau) - (w - r))
    return pull, pull


def cdpo(loss, a):
    _, _, (w, r), _ = parts(a)
    x, wrong = loss.beta * (w - r), loss.label_smoothing
    pull = loss.beta * ((1 - wrong) * sigmoid(-x) - wrong * sigmoid(x))
    return pull, pull


def slic(loss, a):
    (w, r), _, _, _ = parts(a)
    active = (w - r < loss.delta).double()
    return active + loss.lambda_, active


def cpo(loss, a):
    (w, r), _, _, _ = parts(a)
    pull = loss.beta * sigmoid(-loss.beta * (w - r))
    return pull + loss.lambda_, pull


def dpop(loss, a):
    _, _, (w, r), _ = parts(a)
    fallen = (w < 0).double()
    x = loss.beta * (w - r + loss.lambda_ * fallen * w)
    pull = loss.beta * sigmoid(-x)
    return pull * (1 + loss.lambda_ * fallen), pull


def simpo(loss, a):
    _, (w, r), _, (n_w, n_l) = parts(a)
    pull = loss.beta * sigmoid(loss.gamma - loss.beta * (w - r))
    return pull / n_w, pull / n_l


def ln_dpo(loss, a):
    _, _, (w, r), (n_w, n_l) = parts(a)
    pull = loss.beta * sigmoid(-loss.beta * (w / n_w - r / n_l))
    return pull / n_w, pull / n_l


def rrhf(loss, a):
    _, (w, r), _, (n_w, n_l) = parts(a)
    active = (r > w).double()
    return active / n_w + loss.lambda_, active / n_l


def kto(loss, a):
    _, _, (w, r), _ = parts(a)
    x, y = loss.beta * w - loss.z, loss.z - loss.beta * r
    return (
        loss.desirable_weight * loss.beta * sigmoid(x) * sigmoid(-x),
        loss.undesirable_weight * loss.beta * sigmoid(y) * sigmoid(-y),
    )


def sppo(loss, a):
    _, _, (w, r), _ = parts(a)
    return 2 * (1 / (2 * loss.beta) - w), 2 * (1 / (2 * loss.beta) + r)


def orpo(loss, a):
    _, (w, r), _, (n_w, n_l) = parts(a)
    odds = w - torch.log(-torch.expm1(w)) - r + torch.log(-torch.expm1(r))
    pull = loss.lambda_ * sigmoid(-odds)
    return (1 - pull / torch.expm1(w)) / n_w, -pull / torch.expm1(r) / n_l


def nca(loss, a):
    _, _, (w, r), _ = parts(a)
    return loss.beta * sigmoid(-loss.beta * w), loss.beta * sigmoid(loss.beta * r)


def npo(loss, a):
    _, _, (w, r), _ = parts(a)
    return torch.zeros_like(w), 2 * sigmoid(loss.beta * r)


def contrastive(loss, a):
    _, (w, r), _, (n_w, n_l) = parts(a)
    pull = loss.alpha / loss.temperature * sigmoid(-(w - r) / loss.temperature)
    return (1 + pull) / n_w, pull / n_l


CLOSED = {
    "dpo": dpo,
    "r-dpo": r_dpo,
    "ipo": ipo,
    "cdpo": cdpo,
    "slic": slic,
    "cpo": cpo,
    "dpop": dpop,
    "simpo": simpo,
    "ln-dpo": ln_dpo,
    "rrhf": rrhf,
    "kto": kto,
    "sppo": sppo,
    "orpo": orpo,
    "nca": nca,
    "npo": npo,
    "contrastive": contrastive,
}

KINKS = ["slic", "rrhf", "dpop"]
"""Losses with a corner, by which finite differences cannot step."""


def variants(name):
    """The loss as it comes, and with every parameter another."""
    usual = LOSSES[name]()
    odd = {
        field.name: 0.37 * getattr(usual, field.name) + 0.03 for field in dataclasses.fields(usual)
    }
    return usual, LOSSES[name](**odd)


def test_every_loss_of_the_table_is_there_and_has_its_closed_form():
    assert list(LOSSES) == list(CLOSED)
    assert all(kind.name == name for name, kind in LOSSES.items())


@pytest.mark.parametrize("name", CLOSED)
def test_pulls_are_their_closed_forms(name):
    pairs = answers()
    for loss in variants(name):
        for found, closed in zip(pulls(loss, pairs), CLOSED[name](loss, pairs), strict=True):
            assert found.dtype == torch.float64
            # A dozen roundings of float64; of the closed form too.
            torch.testing.assert_close(found, closed, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", CLOSED)
def test_pulls_are_finite_differences_of_the_loss(name):
    loss, pairs = LOSSES[name](), answers(50, seed=1)
    if name in KINKS:
        w, l = pairs.means() if name == "rrhf" else pairs[:2]  # noqa: E741
        far = (w - l - getattr(loss, "delta", 0)).abs() > 1e-3
        far &= pairs.ratios()[0].abs() > 1e-3
        pairs = Answers(*(z[far] for z in pairs))
    step = 1e-5
    for side, sign, found in zip(("chosen", "rejected"), (-1, 1), pulls(loss, pairs), strict=True):
        there = {by: getattr(pairs, side) + by * step for by in (-1, 1)}
        up, down = (loss(pairs._replace(**{side: there[by]})) for by in (1, -1))
        # Central differences: h² of the third derivative, and rounding of the loss over h.
        wide = 1e-8 + 1e-10 * loss(pairs).abs() + 1e-7 * found.abs()
        assert (((up - down) / (2 * step) * sign - found).abs() <= wide).all()


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("margin", [-1e4, -800.0, -1.0, 0.0, 1.0, 800.0, 1e4])
def test_pulls_are_finite_and_right_at_large_margins(name, margin):
    # One answer is at −1, the other as far below as the margin says.
    pair = at(min(margin, 0) - 1, -max(margin, 0) - 1, 2, 3, references=(-1.0, -1.0))
    for loss in variants(name):
        assert loss(pair).isfinite().all()
        for found, closed in zip(pulls(loss, pair), CLOSED[name](loss, pair), strict=True):
            assert found.isfinite().all()
            torch.testing.assert_close(found, closed, rtol=1e-11, atol=1e-300)


def test_pulls_of_a_corner_are_those_of_its_settled_side():
    assert pulls(SLiC(delta=1.0, lambda_=0.25), at(-1, -2)) == (0.25, 0.0)
    tie = at(-2, -6, 1, 3)
    assert pulls(LOSSES["rrhf"](lambda_=0.25), tie) == (0.25, 0.0)
    at_reference = at(-1, -2, references=(-1.0, -2.0))
    assert pulls(LOSSES["dpop"](beta=0.1), at_reference) == (0.05, 0.05)


@pytest.mark.parametrize("name", ["dpo", "r-dpo", "ipo", "cdpo"])
def test_losses_of_the_margin_alone_pull_both_answers_alike(name):
    d_w, d_l = pulls(LOSSES[name](), answers(seed=2))
    assert d_w.equal(d_l)


@pytest.mark.parametrize("name", ["simpo", "ln-dpo"])
def test_losses_of_means_pull_the_shorter_answer_harder(name):
    pairs = answers(seed=2)
    d_w, d_l = pulls(LOSSES[name](), pairs)
    torch.testing.assert_close(
        d_w * pairs.chosen_length, d_l * pairs.rejected_length, rtol=1e-13, atol=0
    )


@pytest.mark.parametrize(
    ("loss", "aim"),
    [
        (IPO(tau=0.1), 5.0),
        (CDPO(beta=0.5, label_smoothing=0.1), math.log(9) / 0.5),
        (SPPO(beta=0.05), 10.0),
    ],
)
def test_losses_with_an_aim_pull_back_beyond_it(loss, aim):
    before, there, after = (pulls(loss, at(aim + by, 0))[0] for by in (-0.1, 0, 0.1))
    assert after < 0 < before
    assert abs(there) < 1e-12


def test_npo_pulls_at_the_rejected_answer_alone_by_its_weight():
    pairs = answers(seed=3)
    d_w, d_l = pulls(NPO(beta=0.3), pairs)
    assert not d_w.any()
    assert not d_w.signbit().any()
    weight = entanglement.unlearning_weight(pairs.rejected, pairs.reference_rejected, 0.3)
    torch.testing.assert_close(d_l, torch.from_numpy(weight), rtol=1e-13, atol=0)


def test_orpo_keeps_its_digits_near_certainty_and_near_impossibility():
    # 1 − p is 1e-12 of the chosen, and p of the rejected 1e-12: the odds are 1e24.
    near, far = math.log1p(-1e-12), math.log(1e-12)
    d_w, d_l = pulls(ORPO(lambda_=1.0), at(near, far))
    # σ(−Δ) / (1 − p_w) → p_l / (1 − p_l), and σ(−Δ) = 1e-24.
    assert d_w.item() == pytest.approx(1 + 1e-12, rel=1e-14)
    assert d_l.item() == pytest.approx(1e-24, rel=1e-3)
    # The other way round the chosen pull is 1 / p_w, and the rejected 1 / (1 − p_l).
    d_w, d_l = pulls(ORPO(lambda_=1.0), at(far, near))
    assert d_w.item() == pytest.approx(2, rel=1e-10)
    assert d_l.item() == pytest.approx(1e12, rel=1e-3)
    # So near 0 that the exponential is 1.
    assert pulls(ORPO(lambda_=1.0), at(-1e-200, -1))[0].item() == pytest.approx(
        1 + 1 / math.expm1(1), rel=1e-13
    )
    assert not torch.cat(pulls(ORPO(), at(0, 0))).isfinite().any()


def test_contrast_with_itself_is_ln_2_beside_the_cross_entropy():
    loss = Contrastive(alpha=3.0, temperature=0.5)
    assert loss(at(-4, -6, 2, 3)).item() == pytest.approx(2 + 3 * math.log(2))
    # With no weight on the contrast it is cross-entropy per token.
    assert pulls(Contrastive(alpha=0.0), at(-4, -6, 2, 3)) == (0.5, 0)


# --- invariances --------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLOSED)
def test_scaling_a_loss_scales_its_pulls(name):
    loss, pairs = LOSSES[name](), answers(seed=4)
    for once, thrice in zip(pulls(loss, pairs), pulls(lambda a: 3 * loss(a), pairs), strict=True):
        torch.testing.assert_close(thrice, 3 * once, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", CLOSED)
def test_a_pair_is_pulled_alike_whatever_stands_beside_it(name):
    loss, pairs = LOSSES[name](), answers(seed=5)
    some = Answers(*(z[20:30] for z in pairs))
    for alone, among in zip(pulls(loss, some), pulls(loss, pairs), strict=True):
        # Vectors of another length may round their exponentials otherwise.
        torch.testing.assert_close(alone, among[20:30], rtol=1e-14, atol=0)


@pytest.mark.parametrize("loss", [NCA(), SPPO(), KTO(beta=0.4, z=0.0)])
def test_mirrored_pairs_exchange_the_pulls_of_a_loss_of_both_alone(loss):
    pairs = answers(seed=6)
    w, l = pairs.ratios()  # noqa: E741
    zero = torch.zeros_like(w)
    mirrored = Answers(-l, -w, *pairs[2:4], zero, zero)
    for found, other in zip(pulls(loss, pairs), reversed(pulls(loss, mirrored)), strict=True):
        torch.testing.assert_close(found, other, rtol=1e-12, atol=1e-15)


def test_exchanged_answers_share_out_the_pull_of_dpo():
    pairs = answers(seed=7)
    chosen, rejected, n, m, one, other = pairs
    exchanged = Answers(rejected, chosen, m, n, other, one)
    both = pulls(DPO(beta=0.3), pairs)[0] + pulls(DPO(beta=0.3), exchanged)[0]
    torch.testing.assert_close(both, torch.full_like(both, 0.3), rtol=1e-14, atol=0)


def test_losses_come_down_to_each_other():
    pairs = answers(seed=8)
    dpo = pulls(DPO(beta=0.3), pairs)[0]
    for same in (
        RDPO(beta=0.3, alpha=0.0),
        CDPO(beta=0.3, label_smoothing=0.0),
        LOSSES["dpop"](beta=0.3, lambda_=0.0),
    ):
        assert pulls(same, pairs)[0].equal(dpo)
    ones, zeros = torch.ones(200), torch.zeros(200)
    short = pairs._replace(
        chosen_length=ones, rejected_length=ones, reference_chosen=zeros, reference_rejected=zeros
    )
    for same in (SimPO(beta=0.3, gamma=0.0), LOSSES["ln-dpo"](beta=0.3)):
        assert pulls(same, short)[0].equal(pulls(DPO(beta=0.3), short)[0])


# --- what is missing, and what is not allowed ---------------------------------------------


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_missing_log_probability_leaves_its_pair_without_pulls(name, side):
    loss, pairs = LOSSES[name](), answers(4, seed=9)
    getattr(pairs, side)[1] = torch.nan
    found = torch.stack(pulls(loss, pairs))
    unseen = name == "npo" and side == "chosen"
    assert found.isnan().any(0).tolist() == [False, not unseen, False, False]
    assert found.isnan().all(0).tolist() == [False, not unseen, False, False]


def test_an_answer_without_tokens_has_no_mean():
    assert torch.stack(pulls(SimPO(), at(0, -3, 0, 2))).isnan().all()


@pytest.mark.parametrize("name", CLOSED)
def test_a_loss_says_whether_it_needs_a_reference(name):
    loss = LOSSES[name]()
    alone = answers()._replace(reference_chosen=None, reference_rejected=None)
    if not loss.needs_reference:
        assert torch.stack(pulls(loss, alone)).isfinite().all()
        check_reference(loss, None)
        return
    with pytest.raises(DriftlensError, match=f"reference model for the loss '{name}'.*simpo"):
        pulls(loss, alone)
    with pytest.raises(DriftlensError, match="log-probabilities of the reference"):
        loss(alone)
    check_reference(loss, "a-model")


def test_a_loss_of_ones_own_is_a_function():
    def slack(a):
        return torch.relu(2 - (a.chosen - a.rejected)) ** 2

    pairs = Answers(*(torch.tensor(z) for z in ([-1.0, -1.0], [-2.0, -4.0], [1, 1], [1, 1])))
    with torch.inference_mode():
        d_w, d_l = pulls(slack, pairs)
    assert d_w.tolist() == d_l.tolist() == [2, 0]
    assert not pairs.chosen.requires_grad
    check_reference(slack, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pulls_are_in_float64_of_what_is_given(dtype):
    loss, pairs = DPO(), answers(dtype=dtype)
    exact = Answers(*(z.double() for z in pairs))
    assert pulls(loss, pairs)[0].equal(pulls(loss, exact)[0])


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda a: a.chosen.mean(), r"shape \(200,\), found \(\)"),
        (lambda a: 3.0, "found float"),
        (lambda a: torch.ones(200), "depends on the answers' log-probabilities"),
        (lambda a: a.ratios()[0] * 0 + a.chosen.detach(), None),
    ],
)
def test_a_loss_that_is_none_is_refused(loss, message):
    if message is None:
        assert not torch.stack(pulls(loss, answers())).any()
        return
    with pytest.raises(DriftlensError, match=message):
        pulls(loss, answers())


def test_a_loss_is_found_by_its_name_and_parameters():
    assert loss_of("dpo", beta=0.3) == DPO(beta=0.3)
    assert loss_of("kto", z=-1.0, desirable_weight=2.0) == KTO(desirable_weight=2.0, z=-1.0)
    with pytest.raises(DriftlensError, match=r"found 'ppo'\. Name one of dpo, r-dpo"):
        loss_of("ppo")
    with pytest.raises(DriftlensError, match=r"loss 'ipo', found 'beta'\. It has tau\."):
        loss_of("ipo", beta=0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        DPO().beta = 1


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        ("dpo", "beta", 0.0),
        ("simpo", "beta", -1.0),
        ("ipo", "tau", math.inf),
        ("cdpo", "label_smoothing", 0.5),
        ("cpo", "lambda_", -0.1),
        ("kto", "z", math.nan),
        ("contrastive", "temperature", math.nan),
    ],
)
def test_a_parameter_out_of_its_range_is_refused(name, parameter, value):
    with pytest.raises(DriftlensError, match=f"{parameter} of the loss '{name}', found {value}"):
        loss_of(name, **{parameter: value})
