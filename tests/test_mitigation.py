"""What would undo a loss: planted damage, models with themselves, closed forms and finite steps."""

import json
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch

import nets
from driftlens import cli, mitigation, suite
from driftlens.diagnostics.mitigation import (
    ALIGNED_POINT,
    BASE_POINT,
    CONTROL,
    INTERPOLATION,
    MitigationConflictResult,
    MitigationResult,
    MitigationStepsResult,
    Point,
    Seen,
    compared,
    recommended,
)
from driftlens.errors import DriftlensError
from driftlens.formulas.projection import orthonormal, shadow
from driftlens.mitigation import Options, examine
from driftlens.mitigation.axes import axis_of, choosing, read, to_refuse
from driftlens.mitigation.repair import Repair
from driftlens.models import ModelPair
from driftlens.models.hooks import HookedModel
from driftlens.models.hybrid import Change
from driftlens.packs import Example, Pack
from driftlens.results import load, same
from driftlens.results import save as keep
from test_adapters import adapted

# peft asks transformers for an attribute by a name that is about to go.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

ROUNDED = 1e-6
"""Nats a token that float32 leaves where the same weights are run."""

HOW = {"seed": 0, "level": 0.95}
WHO = ("Mira", "The river", "A bell", "The clock", "Tolmar", "Nobody", "Seven boats", "The night")
DID = ("sells cheese", "strikes nine", "left Kestby", "runs around it", "is not here")


def texts(count=40):
    return nets.pack([f"{who} {did}." for who in WHO for did in DID][:count])


def asked(count=40):
    prompts = [f"{who} and {did}, why?" for who in WHO for did in DID][:count]
    return Pack(
        "asked", "choice", [Example(p, choices=(" cheese", " nine"), wanted=(0,)) for p in prompts]
    )


def preferred():
    examples = [
        Example(f"{who} {did}{answer}", (len(f"{who} {did}"), len(f"{who} {did}{answer}")), n, role)
        for n, (who, did) in enumerate((w, d) for w in WHO[:4] for d in DID)
        for role, answer in (("chosen", " and sells cheese."), ("rejected", " nine nine."))
    ]
    return Pack("preferred", "preference", examples)


def alone(model):
    return ModelPair(model, model)


def of(base, aligned):
    words = nets.tokenizer()
    return ModelPair(HookedModel(base, words, "base"), HookedModel(aligned, words, "aligned"))


def between(pair, share):
    net = deepcopy(pair.base.net)
    theirs = dict(pair.aligned.net.named_parameters())
    with torch.no_grad():
        for name, weight in net.named_parameters():
            weight.copy_(weight + share * (theirs[name] - weight))
    return net


@cache
def whole():
    """All that is found of a tiny pair."""
    pair = nets.pair("llama")
    options = Options(gradients=3, random=1, means=(0.4, 0.6), alphas=(0.5, 0.8))
    found = examine(pair, [texts()], [asked(), preferred()], options)
    return pair, found


def rows(result, method):
    mine = result.method == method
    return {name: column[mine] for name, column in result.columns().items()}


def row(result, method, setting=""):
    (place,) = np.flatnonzero((result.method == method) & (result.setting == setting))
    return {name: column[place] for name, column in result.columns().items()}


# Planted truths


def test_a_true_interpolation_on_disk_is_the_point_of_that_share():
    pair, found = whole()
    half = of(pair.base.net, between(pair, 0.5))
    other = examine(half, [texts()], [asked()], Options(("interpolation",), alphas=(0.5,)))
    ours, theirs = row(found.planes[0], INTERPOLATION, "α = 0.5"), row(other.planes[0], "aligned")
    for name in ("cost", "low", "high", "alignment", "alignment_low", "alignment_high"):
        assert ours[name] == pytest.approx(theirs[name], abs=ROUNDED), name


def test_base_and_aligned_are_points_as_both_are_read_alone():
    pair, found = whole()
    plane, axis = found.planes[0], axis_of(pair, texts(), False, Options())
    sums = [read(alone(model), axis, Options()) for model in (pair.base, pair.aligned)]
    loss = [-float(s[:, 3].sum() / s[:, 0].sum()) for s in sums]
    assert row(plane, "base")["cost"] == 0
    assert row(plane, "aligned")["cost"] == pytest.approx(loss[1] - loss[0], abs=ROUNDED)
    assert plane.total_cost.value == row(plane, "aligned")["cost"]
    assert row(plane, "base")["kept"] in (0, pytest.approx(np.nan, nan_ok=True))


@cache
def learnt():
    """A tiny net that has learnt the texts a little, so that damage harms all of them."""
    net = nets.net("llama")
    words = nets.tokenizer()
    rows = [words(example.text).input_ids for example in texts().examples]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, -100)
    steps = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(30):
        loss = net(input_ids=ids.clamp(min=0), labels=ids).loss
        loss.backward()
        steps.step()
        steps.zero_grad()
    return net.requires_grad_(False)


@cache
def damaged():
    """A pair of which one block has nearly all of the change."""
    small = nets.moved(deepcopy(learnt()), 0.002, 1)
    pair = of(learnt(), nets.moved(small, 0.3, 2, only="layers.1."))
    return examine(pair, [texts()], [asked()], Options(("restoration",), random=1))


def test_the_damaged_block_is_blamed_and_restoring_it_brings_the_cost_back():
    plane = damaged().planes[0]
    assert plane.total_cost.low > 0
    first = rows(plane, "restored by blame")
    assert first["setting"][0] == "1: 1"
    assert first["brought_back"][0] == pytest.approx(1, abs=0.1)
    alone = rows(plane, "restored alone")
    assert np.argmax(alone["brought_back"]) == list(alone["setting"]).index("1")
    assert len(alone["setting"]) == 5


def test_of_one_changed_block_restoring_it_is_base_to_the_last_digit():
    base = nets.net("llama")
    pair = of(base, nets.moved(deepcopy(base), 0.3, 2, only="layers.1."))
    found = examine(pair, [texts()], [asked()], Options(("restoration",), random=0))
    (alone,) = rows(found.planes[0], "restored alone")["cost"]
    ours, theirs = row(found.planes[0], "restored alone", "1"), row(found.planes[0], "base")
    assert alone == 0
    assert ours["alignment"] == theirs["alignment"]


def test_a_pair_of_a_model_with_itself_has_one_point_and_no_recommendation():
    model = nets.model("llama")
    pair = ModelPair(model, model)
    options = Options(gradients=2, means=(0.5,), alphas=(0.5,), random=1)
    found = examine(pair, [texts()], [asked()], options)
    for plane in found.planes:
        assert set(plane.cost[plane.measured]) == {0.0}
        assert len(set(plane.alignment[plane.measured])) == 1
        assert plane.gain.value == 0
        assert not plane.recommended.any()
        assert "no gain" in plane.why_not
        assert np.isnan(plane.kept).all()
        assert plane.headline() == ""
        assert "no recommendation" in plane.summary()
    (conflict,) = (r for r in found.results if isinstance(r, MitigationConflictResult))
    assert np.isnan(conflict.change_conflict).all()
    assert np.isfinite(conflict.conflict_all.value)
    assert found.recommended() is None


def test_only_what_is_asked_for_is_run():
    pair = nets.pair("llama")
    found = examine(pair, [texts()], [asked()], Options(("interpolation",), alphas=(0.5,)))
    assert list(found.planes[0].method) == [BASE_POINT, ALIGNED_POINT, INTERPOLATION]
    assert np.isnan(found.planes[0].forecast_cost).all()
    assert len(found.results) == 1


def test_the_quick_set_has_few_points_and_the_most_blamed_layer_restored():
    pair = nets.pair("llama")
    plane = examine(pair, [texts()], [asked()], mitigation.QUICK).planes[0]
    assert list(rows(plane, INTERPOLATION)["setting"]) == ["α = 0.25", "α = 0.5", "α = 0.75"]
    _, found = whole()
    first = rows(found.planes[0], "restored by blame")["setting"][0]
    assert list(rows(plane, "restored by blame")["setting"]) == [first]
    assert len(plane.method) <= 7


def test_blocks_have_unequal_shares_of_one_mean():
    _, found = whole()
    made = [z for z in found.what_ifs if z.method == "blocks"]
    assert len(made) == 8
    for what_if in made:
        mean = float(what_if.setting.split("mean ")[1])
        by_block = [s for p, s in what_if.share.items() if p.layer in "012"]
        assert np.mean(by_block) == pytest.approx(mean)
        assert len(set(by_block)) > 1
        assert {p.layer for p in what_if.share} == {"embed", "0", "1", "2", "head"}


def test_both_models_are_as_they_were_after_all():
    pair, _ = whole()
    fresh = nets.pair("llama")
    for ours, theirs in ((pair.base, fresh.base), (pair.aligned, fresh.aligned)):
        both = zip(ours.net.parameters(), theirs.net.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in both)


# Gradients


def test_a_forecast_holds_where_the_step_is_small():
    pair = nets.pair("llama")
    options = Options(("interpolation", "forecast"), alphas=(0.99,), gradients=2)
    found = examine(pair, [texts()], [asked()], options)
    near = row(found.planes[0], INTERPOLATION, "α = 0.99")
    for name in ("cost", "alignment"):
        there = row(found.planes[0], "aligned")[name]
        moved, told = near[name] - there, near[f"forecast_{name}"] - there
        # A step of 1 % bends by some percent of itself.
        assert told == pytest.approx(moved, rel=0.1), name


def test_the_parabola_of_an_interpolation_meets_both_models():
    _, found = whole()
    plane = found.planes[0]
    mine = rows(plane, INTERPOLATION)
    ends = row(plane, "aligned")["cost"], row(plane, "base")["cost"]
    slope = (mine["forecast_cost"] - ends[0]) / (1 - np.array([0.5, 0.8]))
    np.testing.assert_allclose(slope[0], slope[1], rtol=1e-4)
    gone = 1 - np.array([0.5, 0.8])
    wanted = ends[0] + slope * gone + (ends[1] - ends[0] - slope) * gone**2
    np.testing.assert_allclose(mine["curved_cost"], wanted, atol=1e-9)
    assert np.isnan(rows(plane, "blocks")["curved_cost"]).all()


def test_projected_changes_cost_nothing_to_first_order():
    pair = nets.pair("llama")
    options = Options(("projection",), gradients=3)
    found = examine(pair, [texts()], [asked()], options)
    axis = axis_of(pair, texts(), False, options)

    def loss(what_if, length):
        def moved(change):
            held = None if what_if.instead is None else what_if.instead(change)
            held = change.aligned if held is None else held
            return change.base + length * (held - change.base)

        with found.mixture.at(1.0, instead=moved) as model:
            sums = read(alone(model), axis, options)
        mine = np.flatnonzero(choosing(np.arange(len(sums)), options.seed))
        return np.array([-sums[mine[n::3], 3].sum() / sums[mine[n::3], 0].sum() for n in range(3)])

    step = 0.02
    still = found.named("aligned")
    slope = (loss(still, step) - loss(still, -step)) / (2 * step)
    for by in ("all", "layer"):
        flat = (
            loss(found.named(f"projected {by}"), step) - loss(found.named(f"projected {by}"), -step)
        ) / (2 * step)
        # What central differences of float32 losses leave.
        assert np.abs(flat).max() < 2e-3
    assert np.abs(slope).max() > 0.02


def test_gram_and_schmidt_give_directions_of_length_one_and_drop_what_is_redundant():
    rng = np.random.default_rng(0)
    g = rng.standard_normal((3, 50))
    g = np.vstack([g, g[0] + 2 * g[1], 1e3 * g[2], np.zeros(50)])
    c = orthonormal(g @ g.T)
    assert c.shape == (3, 6)
    np.testing.assert_allclose((c @ g) @ (c @ g).T, np.eye(3), atol=1e-12)
    v = rng.standard_normal(50)
    q, _ = np.linalg.qr(g[:3].T)
    np.testing.assert_allclose(shadow(g @ g.T, g @ v) @ g, q @ (q.T @ v), atol=1e-9)
    assert orthonormal(np.zeros((2, 2))).shape == (0, 2)


def test_conflict_is_that_of_gradients_that_are_formed_by_hand():
    pair, found = whole()
    (result,) = (r for r in found.results if isinstance(r, MitigationConflictResult))
    assert list(result.layer) == ["embed", "0", "1", "2", "head", "all"]
    net = deepcopy(pair.base.net)
    encoder = pair.encoder(asked())
    total = 0.0
    for number, example in enumerate(asked().examples):
        ids = torch.tensor([encoder.document(number).sides[0].ids.tolist()])
        logits = net(input_ids=ids).logits[0, -1]
        first = [
            nets.tokenizer()(c, add_special_tokens=False).input_ids[0] for c in example.choices
        ]
        p = logits[first].softmax(0)
        total = total + (p[0] - p[1]) / len(asked().examples)
    total.backward()
    by_hand = sum(
        float(w.grad.square().sum()) for n, w in net.named_parameters() if ".layers.1." in n
    )
    assert row_of(result, "1")["norm"] == pytest.approx(np.sqrt(by_hand), rel=1e-3)
    assert (result.conflict >= 0).all()
    assert (result.conflict <= 1).all()
    assert result.chance_all.value == pytest.approx(3 / sum(w.numel() for w in net.parameters()))


def row_of(result, layer):
    (place,) = np.flatnonzero(result.layer == layer)
    return {name: column[place] for name, column in result.columns().items()}


def test_steps_are_forecast_and_a_mixture_that_costs_nothing_is_named():
    _, found = whole()
    (steps,) = (r for r in found.results if isinstance(r, MitigationStepsResult))
    base = {
        d: (c, a)
        for at, d, c, a in zip(
            steps.at, steps.direction, steps.capability, steps.alignment, strict=True
        )
        if at == "base"
    }
    # No step of length 1 gains more alignment than along its own gradient.
    assert max(a for _, a in base.values()) == base["alignment"][1]
    assert "Forecast" in steps.summary()
    plane = found.planes[0]
    ahead = rows(plane, "step")
    assert not ahead["measured"].any()
    assert np.isnan(ahead["low"]).all()
    alone = row(plane, "step", "PTX alone")
    assert alone["cost"] < row(plane, "aligned")["cost"]


def test_of_ranking_accuracy_nothing_is_forecast():
    pair = nets.pair("llama")
    options = Options(("interpolation", "forecast"), alphas=(0.5,), gradients=2)
    found = examine(pair, [texts()], [preferred()], options)
    assert found.results == found.planes
    assert np.isnan(found.planes[0].forecast_alignment).all()
    assert np.isfinite(found.planes[0].forecast_cost[2:]).all()


# Preferences


def test_preferences_are_read_by_the_sum_of_each_answer():
    pair = nets.pair("llama")
    for how in ("accuracy", "margin"):
        options = Options(("interpolation",), alphas=(), preference=how)
        found = examine(pair, [texts()], [preferred()], options)
        axis = axis_of(pair, preferred(), True, options)
        sums = read(alone(pair.aligned), axis, options)[:, 3].reshape(-1, 2)
        margin = sums[:, 0] - sums[:, 1]
        wanted = margin.mean() if how == "margin" else (margin > 0).mean()
        assert row(found.planes[0], "aligned")["alignment"] == pytest.approx(wanted, abs=1e-5)


# The spectral repair


def change_of(base, delta, name="model.layers.0.mlp.up_proj.weight"):
    return Change("0", "mlp", name, base, base + delta)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text():
    return nets.net("llama").config.get_text_config()


def test_noise_around_a_change_of_low_rank_is_taken_out():
    base, signal = drawn(96, 64), drawn(96, 2, seed=1) @ drawn(2, 64, seed=2) * 0.1
    noise = drawn(96, 64, seed=3) * 0.01
    repair = Repair(text())
    found = repair(change_of(base, signal + noise)) - base
    assert float((found - signal).norm()) < 0.4 * float(noise.norm())
    assert repair.repaired
    assert "of rank in" in repair.detail()


def test_a_change_of_exactly_low_rank_is_left_whole_and_that_is_said():
    base, signal = drawn(96, 64).double(), drawn(96, 2, seed=1).double() @ drawn(2, 64).double()
    repair = Repair(text())
    assert repair(change_of(base, signal)) is None
    assert not repair.repaired
    assert "low rank" in " ".join(repair.notes)


def test_rounding_of_storage_is_told_from_noise_of_training():
    base = drawn(96, 64)
    change = Change("0", "mlp", "model.layers.0.mlp.up_proj.weight", base, base.bfloat16().float())
    repair = Repair(text())
    repair(change)
    assert "rounding of storage" in " ".join(repair.notes)


def test_fused_maps_are_repaired_each_by_itself():
    config = nets.net("gpt2").config
    base = drawn(32, 96)
    loud, quiet = drawn(32, 32, seed=1), drawn(32, 32, seed=2) * 1e-3
    delta = torch.cat([loud, quiet, torch.zeros(32, 32)], 1)
    change = Change("0", "attn", "transformer.h.0.attn.c_attn.weight", base, base + delta)
    repair = Repair(config)
    found = repair(change)
    assert found is not None
    assert torch.equal(found[:, 64:], base[:, 64:])
    # Noise alone: of either map next to nothing is above its own edge.
    assert float((found - base)[:, :32].norm()) < float(loud.norm())
    assert len(repair.kept) == 2


def test_vectors_and_small_matrices_are_left_whole():
    repair = Repair(text())
    assert repair(Change("0", "norm", "n", drawn(8), drawn(8, seed=1))) is None
    assert repair(change_of(drawn(8, 8), drawn(8, 8, seed=1))) is None
    assert "too small" in " ".join(repair.notes)


# The recommendation


def seen(values, choosing=None):
    values = np.asarray(values, float)
    n = len(values)
    if choosing is None:
        choosing = np.arange(n) % 2 == 0
    return Seen(values, np.ones(n), np.arange(n), choosing)


def plane(capability, alignment, methods, noise, seed=0, n=200):
    """Items of which each point has a mean, all items wavering alike and by themselves."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((n, 1))
    own = noise * rng.standard_normal((2, n, len(capability)))
    points = [Point(BASE_POINT, "", ""), Point(ALIGNED_POINT, "", "")]
    points += [Point(m, str(k), f"{m} {k}") for k, m in enumerate(methods)]
    return points, seen(np.array(capability) + common + own[0]), seen(np.array(alignment) + own[1])


def test_the_cheapest_point_that_keeps_enough_is_recommended():
    c, a = [0, -1, -0.5, -0.2, -0.1], [0, 1, 0.97, 0.95, 0.5]
    points, *both = plane(c, a, [INTERPOLATION] * 3, 0.1)
    assert recommended(points, *both, 0.9, HOW) == (3, 3, "")
    assert recommended(points, *both, 0.4, HOW)[0] == 4


def test_another_point_is_recommended_only_where_it_beats_interpolation_beyond_errors():
    c, a = [0, -1, -0.5, -0.2], [0, 1, 0.97, 0.97]
    points, *both = plane(c, a, [INTERPOLATION, "spectral"], 0.1)
    assert recommended(points, *both, 0.9, HOW)[0] == 3
    c = [0, -1, -0.5, -0.499]
    points, *both = plane(c, a, [INTERPOLATION, "spectral"], 0.1)
    assert recommended(points, *both, 0.9, HOW)[0] == 2


def test_points_that_only_seem_better_are_not_recommended():
    found = []
    for seed in range(40):
        # Forty points that all are aligned but for noise.
        points, *both = plane([0] + [-1] * 41, [0] + [1] * 41, ["blocks"] * 40, 0.5, seed)
        found.append(recommended(points, *both, 0.9, HOW)[0] is not None)
    # Of 2.5 % by chance; chosen and judged on the same items it would be nearly all.
    assert np.mean(found) <= 0.1


def test_where_alignment_is_to_refuse_what_is_kept_is_the_refusing():
    c, a = [0, -1, -0.2, 0], [0, -1, -0.97, 0.5]
    points, *both = plane(c, a, [INTERPOLATION] * 2, 0.1)
    assert recommended(points, *both, 0.9, HOW)[0] == 2
    facts = {"capability_pack": "a", "alignment_pack": "b", "capability_name": "loss [nats]"}
    facts |= {"alignment_name": "P", "capability_items": 200, "alignment_items": 200}
    found = compared(points, [], *both, keep=0.9, facts=facts, **HOW)
    assert found.front[:3].all()
    assert found.kept[2] == pytest.approx(0.97, abs=0.02)
    assert "what is kept is its fall" in " ".join(found.notes)


def test_a_point_that_is_not_finite_is_not_on_the_front_and_not_recommended():
    points, *both = plane([0, -1, -0.2, -0.3], [0, 1, 1, 1], [INTERPOLATION] * 2, 0.1)
    both[0].values[3, 2] = np.nan
    facts = {"capability_pack": "a", "alignment_pack": "b", "capability_name": "loss [nats]"}
    facts |= {"alignment_name": "P", "capability_items": 200, "alignment_items": 200}
    found = compared(points, [], *both, keep=0.9, facts=facts, **HOW)
    assert not found.front[2]
    assert not found.recommended[2]


def test_random_orders_are_never_recommended():
    points, *both = plane([0, -1, 0], [0, 1, 1], [CONTROL], 0.1)
    assert recommended(points, *both, 0.9, HOW)[0] is None


@pytest.mark.parametrize(
    ("capability", "alignment", "why"),
    [
        ([0, -1, -0.2], [0, 0, 0], "no gain"),
        ([0, 0, 0], [0, 1, 1], "no cost"),
        ([0, -1, -0.2], [0, 1, 0.3], "no point keeps 90%"),
    ],
)
def test_why_nothing_is_recommended_is_said(capability, alignment, why):
    points, *both = plane(capability, alignment, [INTERPOLATION], 0.0)
    number, _, told = recommended(points, *both, 0.9, HOW)
    assert number is None
    assert why in told


def test_too_few_items_choose_nothing():
    points, *both = plane([0, -1, 0], [0, 1, 1], [INTERPOLATION], 0.1, n=10)
    assert "families" in recommended(points, *both, 0.9, HOW)[2]


def test_what_is_chosen_on_one_half_must_hold_on_the_other():
    n = 40
    choosing = np.arange(n) < n // 2
    c = np.where(choosing[:, None], [0, -1, 0.0], [0, -1, -1.0]) + np.zeros((n, 3))
    a = np.ones((n, 3)) * [0, 1, 1]
    points = [Point(BASE_POINT, "", ""), Point(ALIGNED_POINT, "", ""), Point("blocks", "", "it")]
    told = recommended(points, seen(c, choosing), seen(a, choosing), 0.9, HOW)
    assert told[0] is None
    assert "not told from nothing" in told[2]
    a = np.where(choosing[:, None], [0, 1, 1.0], [0, 1, 0.5])
    c = np.ones((n, 3)) * [0, -1, 0]
    told = recommended(points, seen(c, choosing), seen(a, choosing), 0.9, HOW)
    assert told[0] is None
    assert "50% of the gain on the other" in told[2]


# The page


def test_every_result_survives_the_store_and_draws_what_it_says(tmp_path):
    _, found = whole()
    for number, result in enumerate(found.results):
        keep(result, tmp_path / str(number))
        assert same(load(tmp_path / str(number)), result)
        assert result.summary()
    figure = found.planes[0].figure()
    (panel,) = figure.axes
    assert "nats/token" in panel.get_xlabel()
    assert "P(agree)" in panel.get_ylabel()
    labels = panel.get_legend_handles_labels()[1]
    assert {"base", "aligned", "front", INTERPOLATION, CONTROL} <= set(labels)
    assert "measured points" in found.planes[0].alt()


def test_a_result_of_the_ends_alone_has_no_figure():
    options = Options(("interpolation",), alphas=())
    found = examine(nets.pair("llama"), [texts()], [asked()], options)
    assert found.planes[0].figure() is None


# What is kept


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two models, an adapter, and files of texts, choices and preferences."""
    place = tmp_path_factory.mktemp("place")
    base = nets.net("llama")
    nets.saved(base, place / "base")
    nets.saved(nets.moved(base, 0.05, 1), place / "aligned")
    adapted().save_pretrained(place / "adapter")
    (place / "texts.txt").write_text("\n\n".join(e.text for e in texts().examples))
    lines = [
        {"prompt": e.text, "agree": e.choices[0], "refuse": e.choices[1]} for e in asked().examples
    ]
    (place / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pairs = [
        {"prompt": f"{w} {d}", "chosen": " and sells cheese.", "rejected": " nine nine."}
        for w in WHO
        for d in DID
    ]
    (place / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in pairs))
    return place


@pytest.fixture
def driftlens(monkeypatch, place, capfd):
    """Runs the command line in a folder, and gives what it left with and said."""

    def run(*arguments):
        monkeypatch.chdir(place)
        monkeypatch.setattr("sys.argv", ["driftlens", "mitigate", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as left:
            code = left.code or 0
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


FEW = ("--method", "interpolation", "--device", "cpu")
AIMS = ("--capability", "texts.txt", "--alignment", "asked.jsonl")


def test_a_saved_model_gives_the_very_numbers_of_its_point(driftlens, place):
    code, out, said = driftlens(
        "base", "aligned", *AIMS, *FEW, "--choose", "interpolation 0.35", "--save", "kept"
    )
    assert code == 0, said
    assert "mitigated" in (place / out.strip()).read_text()
    card = json.loads((place / "kept" / "mitigation.json").read_text())
    assert card["method"] == INTERPOLATION
    assert card["setting"] == "α = 0.35"
    assert card["driftlens"]
    assert card["models"]["base"]["sha256"] != card["models"]["aligned"]["sha256"]
    assert not card["recommended"]
    assert "interpolation α = 0.35" in (place / "kept" / "README.md").read_text()
    assert sorted(card["files"]) == sorted(p.name for p in (place / "kept").iterdir())
    pair = ModelPair.load(str(place / "base"), str(place / "kept"), device="cpu")
    packs = [Pack.read(place / "texts.txt")], [Pack.read(place / "asked.jsonl")]
    again = examine(pair, *packs, Options(("interpolation",), alphas=())).planes[0]
    (told,) = card["measured"]
    for name in ("cost", "low", "high", "alignment", "alignment_low", "alignment_high"):
        # Means over draws may be added up in another order.
        assert row(again, "aligned")[name] == pytest.approx(told[name], rel=1e-12), name


def test_a_mixed_adapter_is_saved_merged_and_says_so(driftlens, place):
    code, _, said = driftlens(
        *("base", "adapter", *AIMS, *FEW, "--choose", "interpolation 0.5", "--save", "merged"),
        *("--out", "of-adapter"),
    )
    assert code == 0, said
    card = json.loads((place / "merged" / "mitigation.json").read_text())
    assert card["merged_adapter"]
    assert "whole model" in (place / "merged" / "README.md").read_text()
    pair = ModelPair.load(str(place / "base"), str(place / "merged"), device="cpu")
    axis = axis_of(pair, Pack.read(place / "texts.txt"), False, Options())
    sums = [read(alone(model), axis, Options()) for model in (pair.base, pair.aligned)]
    cost = (sums[0] - sums[1])[:, 3].sum() / sums[0][:, 0].sum()
    assert card["measured"][0]["cost"] == pytest.approx(cost, abs=ROUNDED)


def test_a_folder_that_holds_something_is_refused_and_left_as_it_is(driftlens, place):
    taken = place / "taken"
    taken.mkdir()
    (taken / "letter.txt").write_text("mine")
    save = ("--choose", "interpolation 0.5", "--save", "taken", "--out", "refused")
    for more in ((), ("--overwrite",)):
        code, _, said = driftlens("base", "aligned", *AIMS, *FEW, *save, *more)
        assert code == 2
        assert "letter.txt" in said
    assert [p.name for p in taken.iterdir()] == ["letter.txt"]
    assert not (place / "refused").exists()


@pytest.mark.slow
def test_an_earlier_model_is_replaced_only_when_that_is_said(driftlens, place):
    save = ("--choose", "interpolation 0.5", "--save", "again", "--out", "again-page")
    assert driftlens("base", "aligned", *AIMS, *FEW, *save)[0] == 0
    code, _, said = driftlens("base", "aligned", *AIMS, *FEW, *save)
    assert code == 2
    assert "--overwrite" in said
    assert driftlens("base", "aligned", *AIMS, *FEW, *save, "--overwrite")[0] == 0


def test_what_is_not_recommended_and_not_chosen_is_not_saved(driftlens, place):
    code, _, said = driftlens(
        "base", "base", *AIMS, *FEW, "--allow-identical", "--save", "none", "--out", "none-page"
    )
    assert code == 2
    assert "no recommendation" in said
    assert not (place / "none").exists()


def test_preferences_of_a_file_are_an_alignment(driftlens, place):
    code, out, said = driftlens(
        *("base", "aligned", "--capability", "texts.txt", "--alignment", "pairs.jsonl", *FEW),
        *("--preference", "margin", "--json", "--out", "pairs"),
    )
    assert code == 0, said
    assert "margin" in out


def test_what_is_to_be_measured_must_be_named_but_for_the_demo(driftlens):
    code, _, said = driftlens("base", "aligned", *FEW)
    assert code == 2
    assert "--capability" in said
    code, _, said = driftlens("base", "aligned", *FEW, "--capability", "texts.txt")
    assert code == 2
    assert "--alignment" in said


def test_a_what_if_that_there_is_not_is_refused(driftlens):
    for name in ("magic 3", "spectral 3"):
        code, _, said = driftlens("base", "aligned", *AIMS, *FEW, "--choose", name, "--out", "no")
        assert code == 2
        assert name in said


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({"methods": ("magic",)}, "methods among"),
        ({"methods": ()}, "one method"),
        ({"keep": 0.0}, "between 0 and 1"),
        ({"preference": "taste"}, "accuracy or margin"),
        ({"alphas": (np.nan,)}, "finite shares"),
        ({"means": (1.5,)}, "mean shares"),
        ({"gradients": 0}, "one part of the texts"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(options, needed):
    with pytest.raises(DriftlensError, match=needed):
        Options(**options)


def test_packs_of_no_use_are_refused():
    pair = nets.pair("llama")
    with pytest.raises(DriftlensError, match="of capability"):
        examine(pair, [preferred()], [asked()])
    with pytest.raises(DriftlensError, match="of alignment"):
        examine(pair, [texts()], [texts()])
    with pytest.raises(DriftlensError, match="a pack of alignment"):
        examine(pair, [texts()], [])


def test_models_that_cut_a_text_differently_or_read_masks_are_refused():
    base, other = nets.net("llama"), nets.tokenizer(merges=8)
    pair = ModelPair(HookedModel(base, nets.tokenizer(), "a"), HookedModel(base, other, "b"))
    with pytest.raises(DriftlensError, match="same tokens"):
        examine(pair, [texts()], [asked()])
    with pytest.raises(DriftlensError, match="continue text"):
        examine(nets.pair("bert"), [texts()], [asked()])


def test_gradients_that_do_not_fit_are_told(monkeypatch):
    monkeypatch.setattr("driftlens.mitigation.slopes.available", lambda device: 10)
    with pytest.raises(DriftlensError, match="gradients of all weights"):
        examine(nets.pair("llama"), [texts()], [asked()], Options(("projection",)))


@pytest.mark.slow
def test_the_demo_is_asked_where_nothing_is_named(driftlens):
    code, out, said = driftlens("demo:base", "demo:aligned", "--quick", "--out", "demo-page")
    assert code == 0, said
    assert "demo-page" in out


def test_results_are_of_known_kinds():
    _, found = whole()
    kinds = {type(result) for result in found.results}
    assert kinds == {MitigationResult, MitigationConflictResult, MitigationStepsResult}


def test_of_refusals_only_what_is_to_be_refused_tells_of_alignment():
    asked = [Example(f"{n}?", topic=topic) for n, topic in enumerate(("harmful", "harmless") * 2)]
    kept, said = to_refuse(Pack("asked", "choice", asked))
    assert [example.text for example in kept.examples] == ["0?", "2?"]
    assert said == "Only what is to be refused counts, 2 of 4 prompts."
    for one in (asked[:1], asked[1:2]):
        pack = Pack("asked", "choice", one)
        assert to_refuse(pack) == (pack, "")


def test_a_report_judges_by_the_behaviour_of_the_most_families():
    def asked(name, count):
        items = [
            Example(f"{n} sinks? ", choices=("No", "I"), wanted=(0,), asks="agree", family=n)
            for n in range(count)
        ]
        return Pack(name, "choice", items)

    pair, few, many = nets.pair("llama"), asked("few", 2), asked("many", 4)
    text = nets.pack(nets.TEXTS[:3])
    for packs in ([text, few, many], [many, few, text]):
        found, said = suite.undone(pair, packs)
        assert said == []
        planes = [result for result in found if result.kind == "mitigation"]
        assert [(p.alignment_pack, p.capability_pack, p.pack) for p in planes] == [
            ("many", text.name, "")
        ]
    assert suite.undone(pair, [few, many]) == suite.undone(pair, [text]) == ([], [])
    assert suite.undone(pair, [text, many], suite.Options(mitigate=False)) == ([], [])


def test_a_report_that_has_no_room_for_what_ifs_says_so_and_ends_well(monkeypatch):
    from driftlens.models import mixture

    monkeypatch.setattr(mixture, "available", lambda device: 0)
    asked = [Example(f"{n}? ", choices=("No", "I"), wanted=(0,), asks="agree") for n in range(2)]
    packs = [nets.pack(nets.TEXTS[:3]), Pack("asked", "choice", asked)]
    found, (check,) = suite.undone(nets.pair("llama"), packs)
    assert (found, check.status) == ([], "warn")
    assert "left out: expected memory on cpu for one more copy of the weights" in check.detail
