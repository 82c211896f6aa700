"""Grafts, Shapley shares and interactions of damage that was planted, on nets that were run."""

from copy import deepcopy
from dataclasses import replace
from functools import cache
from itertools import permutations

import numpy as np
import pytest
import torch

import nets
from driftlens.diagnostics.forgetting import Forgetting
from driftlens.diagnostics.grafts import Grafts, GraftsResult
from driftlens.diagnostics.layers import LayerForgetting
from driftlens.diagnostics.shapley import Interactions, Shapley
from driftlens.formulas import shapley
from driftlens.metric import measure
from driftlens.models import ModelPair
from driftlens.models.hooks import HookedModel
from driftlens.models.hybrid import Twin
from driftlens.results import same

OFTEN = 6
"""How often the texts are shown where the interval of a planted rise must not reach 0."""

ROUNDED = 1e-6
"""Nats a token that float32 leaves where two orders of the same arithmetic meet."""

EXACT = 1e-12
"""Sums of float64 numbers that are the same nets' likelihoods."""


def of(base, aligned, family="llama"):
    words = nets.tokenizer_for(family)
    return ModelPair(HookedModel(base, words, "base"), HookedModel(aligned, words, "aligned"))


def pack(times=1):
    return nets.pack(nets.TEXTS[:6] * times)


@cache
def damaged(*names, family="llama"):
    """A tiny model, and the same with only some weights moved."""
    base = nets.net(family)
    aligned = deepcopy(base)
    for seed, name in enumerate(names):
        nets.moved(aligned, 0.1, seed + 1, only=name)
    return of(base, aligned, family)


def exchanged(pair):
    return ModelPair(pair.aligned, pair.base)


def itself(pair):
    return ModelPair(pair.base, pair.base)


@cache
def frames(pair, times=1, rows=6):
    """Shown once: a frame remembers the grafts that it was asked for."""
    return tuple(pair.frames(pack(times), LayerForgetting.wants, rows=rows))


def begun(metric, pair, times=1):
    metric.begin(pair, pair.encoder(pack(times)))
    return metric


def found(pair, *metrics, times=1):
    """What metrics find in all the showings that they ask for."""
    results = []
    for metric in metrics:
        begun(metric, pair, times)
        asking = True
        while asking:
            for frame in frames(pair, times):
                metric.update(frame)
            asking = metric.again()
        results.append(metric.compute())
    return results[0] if len(metrics) == 1 else results


# Where the damage is


PLACES = {
    "layer": ("layers.1.", "1"),
    "component": ("layers.1.mlp", "1.mlp"),
}


def called(result):
    return [
        layer if component in ("all", layer) else f"{layer}.{component}"
        for layer, component in zip(result.layer, result.component, strict=True)
    ]


@pytest.mark.parametrize("by", PLACES)
def test_all_of_the_loss_is_that_of_the_one_piece_that_was_changed_and_no_others(by):
    name, place = PLACES[by]
    drawn = Shapley(by, exact=0, limit=4)
    grafts, exact, sampled, pairs = found(
        damaged(name), Grafts(by), Shapley(by, exact=8), drawn, Interactions(by)
    )
    here = np.array(called(grafts)) == place
    assert here.sum() == 1
    total = grafts.total.value
    assert abs(total) > 1e-3
    for part in (grafts.gives_back, grafts.costs_alone, exact.share, sampled.share):
        np.testing.assert_allclose(part[here], total, atol=EXACT)
        assert (part[~here] == 0).all()
    for z in (
        pairs.from_aligned,
        pairs.from_base,
        pairs.interaction[np.isfinite(pairs.interaction)],
    ):
        assert (z == 0).all()
    assert abs(grafts.overlap.value) < EXACT
    assert (exact.error == 0).all()
    assert (sampled.error < EXACT).all()


# peft asks transformers for an attribute by a name that is about to go.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_only_the_pieces_that_an_adapter_changes_carry_any_of_the_loss():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[0, 2])
    net = peft.get_peft_model(nets.net("llama"), config)
    nets.moved(net, 0.3, 1, only="lora_")
    pair = ModelPair.load(net.get_base_model(), net, tokenizer=nets.tokenizer())
    grafts, division = found(pair, Grafts("component"), Shapley("component"))
    assert abs(grafts.total.value) > 1e-4
    assert called(grafts) == called(division) == ["0.attn", "2.attn"]
    assert abs(division.residual.value) < EXACT
    assert (division.share != 0).all()


@pytest.mark.parametrize("metric", [Grafts, Shapley, Interactions])
def test_a_model_and_itself_give_exact_zeros_and_nothing_to_attribute(metric):
    pair = itself(damaged(""))
    for by in ("layer", "component"):
        result = found(pair, metric(by))
        for name in result.near_zero:
            numbers = np.ravel(getattr(result, name))
            assert (numbers[np.isfinite(numbers)] == 0).all(), name
        assert np.isnan(getattr(result, "of_total", np.nan)).all()
        assert any(word in result.summary() for word in ("nothing", "none"))
        result.figure()


# What each number is


def naive(pair, names):
    """Nats a token that base loses once the weights whose names have one of these are aligned's."""
    hybrid = deepcopy(pair.base.net)
    theirs = {n: w for n, w in pair.aligned.net.state_dict().items() if any(p in n for p in names)}
    hybrid.load_state_dict(theirs, strict=False)
    return found(of(pair.base.net, hybrid), Forgetting()).loss_rise.value


STAGES = [["embed"], ["layers.0."], ["layers.1."], ["layers.2."], ["model.norm", "lm_head"]]


def test_numbers_are_those_of_nets_whose_weights_were_copied_by_hand():
    pair = damaged("")
    table = np.array(
        [
            naive(pair, [n for i, ns in enumerate(STAGES) if c >> i & 1 for n in ns])
            for c in range(32)
        ]
    )
    grafts, division, pairs = found(pair, Grafts(), Shapley(), Interactions())
    full = table[31]
    bits = [1 << i for i in range(5)]
    np.testing.assert_allclose(
        grafts.gives_back, [full - table[31 ^ b] for b in bits], atol=ROUNDED
    )
    np.testing.assert_allclose(grafts.costs_alone, [table[b] for b in bits], atol=ROUNDED)
    assert grafts.overlap.value == pytest.approx(grafts.gives_back.sum() - full, abs=ROUNDED)
    assert grafts.overlap_alone.value == pytest.approx(table[bits].sum() - full, abs=ROUNDED)
    np.testing.assert_allclose(division.share, shapley.shapley(table), atol=ROUNDED)
    np.testing.assert_allclose(pairs.interaction, shapley.interactions(table), atol=ROUNDED)
    above, below = (
        [table[31 ^ x] - table[31 ^ x ^ i] - table[31 ^ x ^ j] + table[31 ^ x ^ i ^ j]
         for i, j in permutations(bits, 2) if i < j for x in [0 if far else 31 ^ i ^ j]]
        for far in (True, False)
    )  # fmt: skip
    np.testing.assert_allclose(pairs.from_aligned, above, atol=4 * ROUNDED)
    np.testing.assert_allclose(pairs.from_base, below, atol=4 * ROUNDED)
    assert division.permutations == 120
    assert division.evaluations == 30


@pytest.mark.parametrize("by", ["layer", "component"])
def test_shares_add_up_to_the_rise_exact_or_drawn(by):
    for metric in (Shapley(by, limit=4), Shapley(by, exact=0, limit=4)):
        division, forgetting = found(damaged(""), metric, Forgetting())
        assert division.total.value == forgetting.loss_rise.value
        assert abs(division.residual.value) < EXACT
        assert division.share.sum() == pytest.approx(division.total.value, abs=EXACT)


def test_arrival_from_the_bottom_and_from_the_top_are_the_two_orders_of_the_sweep(monkeypatch):
    # The sweep restores base from the bottom; so aligned arrives from the top.
    both = np.array([[range(5), range(5)[::-1]]])
    monkeypatch.setattr(shapley, "antithetic", lambda *_: both)
    division, sweep = found(damaged(""), Shapley(exact=0, limit=2), LayerForgetting())
    np.testing.assert_allclose(division.share, sweep.mean_share, atol=ROUNDED)
    assert division.permutations == 2
    assert np.isnan(division.error).all()


def test_exchanging_the_models_turns_grafts_into_each_other_and_the_signs_of_all():
    pair = damaged("")
    metrics = [Grafts(), Shapley(), Interactions()]
    (ours, mine, one), (theirs, yours, other) = (
        found(p, *metrics) for p in (pair, exchanged(pair))
    )
    # Likelihoods of the same nets, run as another pair's.
    np.testing.assert_allclose(theirs.gives_back, -ours.costs_alone, atol=ROUNDED)
    np.testing.assert_allclose(theirs.costs_alone, -ours.gives_back, atol=ROUNDED)
    np.testing.assert_allclose(yours.share, -mine.share, atol=ROUNDED)
    # What two do together is as seen from either end.
    np.testing.assert_allclose(other.interaction, one.interaction, atol=4 * ROUNDED)
    np.testing.assert_allclose(other.from_base, one.from_aligned, atol=4 * ROUNDED)


# Pieces that lean on each other


def loud(net):
    """The net with logits so large that a wrong word costs much."""
    with torch.no_grad():
        net.transformer.ln_f.weight *= 5
    return net


def silent():
    """A small GPT-2 in which no weight writes along one direction, and that direction."""
    net = loud(nets.net("gpt2"))
    u = torch.zeros(32)
    u[0], u[1] = 0.5**0.5, -(0.5**0.5)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if name.endswith(("wte.weight", "wpe.weight", "c_proj.weight", "c_proj.bias")):
                weight -= (weight @ u)[..., None] * u
    return net, u


def synergy():
    """Block 0 marks the stream, and block 1 breaks it where it is marked: both or nothing."""
    base, u = silent()
    with torch.no_grad():
        aligned = deepcopy(base)
        writer, reader = (aligned.transformer.h[block] for block in (0, 1))
        writer.mlp.c_proj.bias += 0.01 * u
        read = 2e4 * u / reader.ln_2.weight
        reader.mlp.c_fc.weight[:, 0] = read
        # Opens only beyond what the norm's own bias and the rounding of a sum bring.
        reader.mlp.c_fc.bias[0] = -read @ reader.ln_2.bias - 20
        reader.mlp.c_proj.weight[0] = 100 * base.transformer.wte.weight[5]
    return of(base, aligned, "gpt2")


def redundancy():
    """Blocks 0 and 1 each flood the stream with the same token's direction."""
    base = loud(nets.net("gpt2"))
    aligned = deepcopy(base)
    with torch.no_grad():
        for block in (0, 1):
            aligned.transformer.h[block].mlp.c_proj.bias += 1e4 * base.transformer.wte.weight[5]
    return of(base, aligned, "gpt2")


# A flooded stream still tells of what is below by 1e-4; a mark of 0.01 is heard a little.
LEANS = {synergy: (1, 0, 1), redundancy: (0, 1, -1)}


@pytest.mark.parametrize("make", LEANS)
def test_the_sign_of_an_interaction_tells_both_or_nothing_from_either_will_do(make):
    gives, costs, sign = LEANS[make]
    grafts, division, pairs = found(make(), Grafts(), Shapley(), Interactions(), times=OFTEN)
    total = grafts.total
    assert total.low > 1
    mine = np.isin(grafts.layer, ["0", "1"])
    close = {"atol": 0.02 * total.value}
    np.testing.assert_allclose(grafts.gives_back[mine], gives * total.value, **close)
    np.testing.assert_allclose(grafts.costs_alone[mine], costs * total.value, **close)
    np.testing.assert_allclose(grafts.overlap.value, sign * total.value, **close)
    np.testing.assert_allclose(grafts.overlap_alone.value, -sign * total.value, **close)
    np.testing.assert_allclose(division.share[mine], total.value / 2, **close)
    assert (division.share[~mine] == 0).all()
    two = (pairs.layer_1 == "0") & (pairs.layer_2 == "1")
    for column in (pairs.interaction, pairs.from_aligned, pairs.from_base):
        np.testing.assert_allclose(column[two], sign * total.value, **close)
        assert (column[~two] == 0).all()
    assert ("takes both" if sign > 0 else "the other's work") in pairs.summary()
    assert "0 and 1 interact most" in pairs.summary()


# Orders at random


def test_a_sample_of_orders_agrees_with_all_orders_within_its_errors():
    pair = damaged("")
    exact = found(pair, Shapley())
    for seed in range(4):
        sampled = found(pair, Shapley(exact=0, limit=16, tolerance=0, seed=seed))
        assert sampled.permutations <= 16
        # Errors of few pairs are themselves unsure, hence five and not three of them.
        assert (np.abs(sampled.share - exact.share) <= 5 * sampled.error + ROUNDED).all()
        assert sampled.error.max() < 0.1 * np.abs(exact.share).max()


def test_showings_add_orders_until_their_errors_are_small_or_the_limit_is_reached():
    pair = damaged("")
    one = found(pair, Shapley(exact=0, pairs=2, tolerance=1e9), times=OFTEN)
    assert one.permutations == 4
    assert one.notes == ()
    many = found(pair, Shapley(exact=0, pairs=2, limit=9, tolerance=0), times=OFTEN)
    assert many.permutations == 8
    assert "limit" in many.notes[0]
    at_once = found(pair, Shapley(exact=0, pairs=4, limit=9, tolerance=0), times=OFTEN)
    for name in ("share", "low", "high", "error"):
        np.testing.assert_allclose(getattr(many, name), getattr(at_once, name), atol=EXACT)
    assert many.total == pytest.approx(at_once.total, abs=EXACT)
    assert one.evaluations < at_once.evaluations <= many.evaluations
    orders = shapley.antithetic(5, 0, 4, seed=0).reshape(-1, 5)
    asked = {c for order in orders for c in shapley.prefixes(order)} - {0, 31}
    assert at_once.evaluations == len(asked)


def test_measuring_shows_the_pack_as_often_as_the_orders_ask():
    pair = damaged("")

    def make():
        return Shapley(exact=0, pairs=2, limit=12, tolerance=0)

    (measured,) = measure(pair, pack(OFTEN), [make()], rows=6)
    by_hand = replace(found(pair, make(), times=OFTEN), pack="texts")
    assert measured.permutations == 12
    assert same(measured, by_hand)


def test_a_rise_that_may_be_none_is_given_no_further_orders():
    result = found(damaged("layers.1."), Shapley(exact=0, pairs=2, tolerance=0))
    assert result.total.low <= 0 <= result.total.high
    assert result.permutations == 4
    assert np.isnan(result.of_total).all()
    assert "nothing to divide" in result.summary()


def test_a_sample_taken_up_in_its_second_showing_ends_in_the_same_bits():
    pair, make = damaged(""), lambda: Shapley(exact=0, pairs=1, limit=4, tolerance=0)
    some = frames(pair, OFTEN, 12)
    whole, part = make(), make()
    for metric in (whole, part):
        begun(metric, pair, OFTEN)
        for frame in some:
            metric.update(frame)
        assert metric.again()
        metric.update(some[0])
    taken_up = begun(make(), pair, OFTEN).restore(part.state())
    for metric in (whole, taken_up):
        for frame in some[1:]:
            metric.update(frame)
        assert not metric.again()
    assert same(whole.compute(), taken_up.compute())
    assert whole.compute().permutations == 4


def test_a_sample_split_among_parts_and_merged_is_the_sample():
    pair, metric = damaged(""), Shapley(exact=0, pairs=2, limit=4)
    begun(metric, pair)
    parts = [metric.empty() for _ in range(2)]
    for number, frame in enumerate(frames(pair, rows=1)):
        metric.update(frame)
        parts[number % 2].update(frame)
    merged = parts[0].merge(parts[1]).compute()
    for name in ("share", "low", "high", "error"):
        np.testing.assert_allclose(
            getattr(merged, name), getattr(metric.compute(), name), atol=EXACT
        )


def test_antithetic_orders_vary_less_on_a_pair_of_nets():
    # By so little that what three pieces do together is small beside what two do.
    pair = of(net := nets.net("llama"), nets.moved(deepcopy(net), 0.01, 1))
    pieces = pair.hybrid.pieces("layer")
    (frame,) = frames(pair)
    values = {
        c: -float(frame.grafted([p for i, p in enumerate(pieces) if c >> i & 1]).mean())
        for c in range(32)
    }
    shares = np.array(
        [
            [shapley.marginals(order, values) for order in two]
            for two in shapley.antithetic(5, 0, 200, seed=0)
        ]
    )
    apart = shares[:, 0].reshape(100, 2, 5).mean(1)
    assert shares.mean(1).var(0).sum() < 0.2 * apart.var(0).sum()


# What is said


def test_too_many_pieces_leave_the_index_undefined_and_say_so():
    result = found(damaged(""), Interactions(exact=4), times=OFTEN)
    assert np.isnan(result.interaction).all()
    assert "undefined" in result.notes[0]
    whole = found(damaged(""), Interactions(), times=OFTEN)
    np.testing.assert_allclose(result.from_aligned, whole.from_aligned, atol=EXACT)
    np.testing.assert_allclose(result.from_base, whole.from_base, atol=EXACT)
    assert result.strongest.value == result.from_aligned[np.abs(result.from_aligned).argmax()]
    assert "nan" not in result.summary()
    assert result.figure() is not None


def test_beside_shapley_interactions_run_no_further_net(monkeypatch):
    ran = []
    plain = Twin.grafted
    monkeypatch.setattr(
        Twin, "grafted", lambda self, aligned: ran.append(1) or plain(self, aligned)
    )
    measure(damaged(""), pack(), [Shapley(), Interactions(), Grafts()], rows=6)
    assert len(ran) <= 32


def test_below_the_noise_floor_no_part_of_the_rise_is_told():
    rows = np.array([0.2, 0.1])
    parts = dict.fromkeys(
        ("gives_back", "low", "high", "costs_alone", "low_alone", "high_alone", "of_total"), rows
    )
    told, hidden = (
        GraftsResult.of(
            total=(0.3, 0.2, 0.4), overlap=0.0, overlap_alone=0.0, layer=["0", "1"],
            component=["all", "all"], grafts=4, floor={"total": floor}, **parts,
        )
        for floor in (0.1, 0.5)
    )  # fmt: skip
    assert "putting back block 0 alone returns" in told.summary()
    assert "nothing to restore" in hidden.summary()
    assert np.isnan(hidden.of_total).all()
