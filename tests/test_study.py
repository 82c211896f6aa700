"""A study of steering, end to end, against loops over live nets that are steered by hand."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

import nets
from driftlens.diagnostics.tax import Tasks, taxed
from driftlens.diagnostics.tradeoff import Seen
from driftlens.errors import DriftlensError
from driftlens.formulas.tax import tax_frontier
from driftlens.metric import measure
from driftlens.models import ModelPair, Site
from driftlens.models.hooks import HookedModel
from driftlens.models.steering import Add, Steer, steered
from driftlens.packs import Example, Pack
from driftlens.report import Report
from driftlens.results import Estimate, load, same, save
from driftlens.steer import Options, Steering, examine
from driftlens.steer.courses import Line, both_finite, first_strengths, further
from driftlens.sweeps import Arm, Bends, choices, push_of

SHARES = (-1.0, -0.25, -0.05, 0.05, 0.25, 1.0)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""Of probabilities in float32, read alone and in batches."""


@cache
def demo():
    """Shared by tests: nobody may change it."""
    return ModelPair.load("demo:base", "demo:aligned")


@cache
def small(name, *parts):
    """Some of the examples of a shipped pack."""
    whole = Pack.load(name)
    some = [e for first, last in parts for e in whole.examples[first:last]]
    return replace(whole, examples=some)


def manners():
    return small("manners", (0, 24))


def behaviour():
    return small("manners-choices", (0, 16))


@cache
def capabilities():
    quiz = Pack.load("quiz")
    by_topic = {e.topic: [z for z in quiz.examples if z.topic == e.topic] for e in quiz.examples}
    assert len(by_topic) == 2
    return (
        replace(quiz, examples=[e for some in by_topic.values() for e in some[:5]]),
        replace(
            small("world", (0, 4)),
            examples=[replace(e, topic="text") for e in small("world", (0, 4)).examples],
        ),
    )


def studied(pair=None, contrast=None, kept=None, judged=None, **options):
    some = {"strengths": SHARES, "controls": 2, **options}
    return examine(
        pair or demo(), contrast or manners(), kept or capabilities(), judged, Options(**some)
    )


TOLD = []


@pytest.fixture(scope="module")
def whole():
    """One run that most tests look at."""
    options = Options(strengths=SHARES, controls=2)

    def tell(*what):
        TOLD.append(what)

    return examine(demo(), manners(), capabilities(), behaviour(), options, progress=tell)


def of(steering, kind):
    return [result for result in steering.results if result.kind == kind]


def curve(steering, model, place=0):
    return [r for r in of(steering, "tradeoff") if r.model == model][place]


# What is there


def test_a_study_of_two_models_has_every_result_in_the_order_of_reading(whole):
    assert isinstance(whole, Steering)
    kinds = ["directions", *["tradeoff"] * 4, "cross_steering", "steering_by_layer", "tax_rate"]
    assert [r.kind for r in whole.results] == [*kinds, "direction_transfer", "direction_methods"]
    curves = of(whole, "tradeoff")
    assert [r.model for r in curves] == ["aligned", "aligned", "base", "base"]
    assert [r.capability_pack for r in curves] == ["quiz", "world"] * 2
    assert {r.behaviour_pack for r in curves} == {"manners-choices"}
    assert [r.foremost for r in curves] == [True, False] * 2
    assert whole.tradeoff("base") is curves[2]
    assert len(whole.layers) == 1
    assert set(whole.directions) == {
        (model, Site(layer)) for model in ("base", "aligned") for layer in range(6)
    }
    assert all(check.status != "fail" for check in whole.checks)


def test_no_table_has_a_gap_where_a_number_belongs(whole):
    for result in whole.results:
        for name, cells in result.columns().items():
            if cells.dtype.kind != "f":
                continue
            missing = np.isnan(cells)
            if result.kind == "tradeoff" and name in (
                *("chance", "behaviour_fit", "capability_fit"),
                *("restricted", "accuracy") * (result.capability_pack == "world"),
            ):
                # Off the frontier, where no fit settled, and of texts.
                continue
            if result.kind == "direction_transfer" and name in (
                *("true_cosine", "low", "high", "true_norm_ratio", "ratio_low", "ratio_high"),
            ):
                # Where a model may well have no direction, it has no cosine.
                continue
            if (result.kind, name) == ("tax_rate", "cosine"):
                assert (missing == (result.task == "all")).all()
                continue
            assert not missing.any(), (result.kind, name)


def test_everything_is_told_and_drawn_with_labels(whole):
    for result in whole.results:
        assert result.summary().endswith(".")
        figure = result.figure()
        assert figure.axes
        assert all(panel.get_xlabel() and panel.get_ylabel() for panel in figure.axes), result.kind


@pytest.mark.slow
def test_everything_survives_the_page(whole, tmp_path):
    (tax,) = of(whole, "tax_rate")
    assert same(load(save(tax, tmp_path / "tax")), tax)
    Report("base → aligned", whole.results, whole.checks, {}).write(tmp_path / "report")
    back = Report.read(tmp_path / "report").results
    assert all(same(one, other) for one, other in zip(back, whole.results, strict=True))


def test_progress_is_told_of_every_pack_to_its_end(whole):
    names = dict.fromkeys(name for name, _, _ in TOLD)
    assert {"manners", "manners-choices, steered", "quiz, steered", "world, steered"} <= set(names)
    for name in names:
        done = [(at, end) for said, at, end in TOLD if said == name]
        assert all(0 < at <= end for at, end in done)
        assert done[-1][0] == done[-1][1]


@pytest.mark.slow
def test_the_same_seed_says_the_same_and_leaves_the_models_as_they_were():
    before = [deepcopy(m.net.state_dict()) for m in (demo().base, demo().aligned)]
    one, other = (studied(judged=behaviour(), layers=(3,), strengths=(-0.5, 0.5)) for _ in (0, 1))
    assert all(same(a, b) for a, b in zip(one.results, other.results, strict=True))
    for model, weights in zip((demo().base, demo().aligned), before, strict=True):
        assert all(torch.equal(w, weights[n]) for n, w in model.net.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.net.modules())


# The curves against loops by hand


def chosen(model, item, steers=()):
    """P of the answers' first tokens, [choice], at the end of a prompt, and of all tokens."""
    tokens = []
    for answer in item.choices:
        row = model.tokenizer(item.text + answer, return_offsets_mapping=True)
        place = next(n for n, (_, e) in enumerate(row["offset_mapping"]) if e > len(item.text))
        tokens.append(row["input_ids"][place])
        ids = row["input_ids"][:place]
    with torch.no_grad(), steered(model.net, list(steers), positions="all"):
        logits = model.net(input_ids=torch.tensor([ids])).logits[0, -1].double()
    return logits.softmax(0)[tokens].numpy()


def of_choices(model, pack, steers=()):
    """Mean behaviour, log-odds and P(right) of a pack."""
    rows = []
    for item in pack.examples:
        own = chosen(model, item, steers)
        wanted = np.isin(np.arange(len(own)), item.wanted)
        right, wrong = own[wanted].sum(), own[~wanted].sum()
        rows.append(((right - wrong) / (right + wrong), np.log(right / wrong), right))
    return np.mean(rows, 0)


def of_texts(model, pack, steers=()):
    """Mean P of the next token, over all tokens of all texts."""
    every = []
    for item in pack.examples:
        ids = torch.tensor([model.tokenizer(item.text)["input_ids"]])
        with torch.no_grad(), steered(model.net, list(steers), positions="all"):
            logits = model.net(input_ids=ids).logits[0].double()
        every += logits[:-1].softmax(1).gather(1, ids[0, 1:, None])[:, 0].tolist()
    return np.mean(every)


def judged(whole):
    """The items of behaviour that the block was not chosen by."""
    pack = behaviour()
    families = sorted(set(pack.clusters))[::4]
    return [e for e, f in zip(pack.examples, pack.clusters, strict=True) if f not in families]


def steps(whole, model, strength, whose=None):
    layer = whole.layers[0]
    unit = whole.directions[whose or model, Site(layer)].unit
    return [Steer(Add(torch.from_numpy(unit), strength), layer)]


@pytest.mark.parametrize("model", ["base", "aligned"])
def test_a_curve_is_what_the_live_net_says_when_it_is_steered(whole, model):
    live = getattr(demo(), model)
    quiz, world = capabilities()
    items = replace(behaviour(), examples=judged(whole))
    first, second = curve(whole, model, 0), curve(whole, model, 1)
    length = whole.directions[model, Site(whole.layers[0])].lengths.mean()
    np.testing.assert_allclose(first.strength, np.array(sorted([0, *SHARES])) * length)
    assert first.items == len(items.examples) == 12
    for row in (0, 3, 5):
        strength = float(first.strength[row])
        # A net that nobody steers is run for r = 0.
        steers = steps(whole, model, strength) if strength else []
        agree, odds, _ = of_choices(live, items, steers)
        assert first.behaviour[row] == pytest.approx(agree, **_approx)
        assert first.log_odds[row] == pytest.approx(odds, rel=1e-3)
        assert first.capability[row] == pytest.approx(of_choices(live, quiz, steers)[2], **_approx)
        assert second.capability[row] == pytest.approx(of_texts(live, world, steers), **_approx)
        assert second.behaviour[row] == first.behaviour[row]
    # Unsteered, all that differs is the order of sums.
    agree, *_ = of_choices(live, items)
    assert first.behaviour[3] == pytest.approx(agree, abs=2e-6)
    assert second.capability[3] == pytest.approx(of_texts(live, world), abs=2e-6)


_approx = {"rel": 1e-4, "abs": 1e-5}


def test_cross_steering_pushes_each_model_along_the_others_direction(whole):
    (cross,) = of(whole, "cross_steering")
    items = replace(behaviour(), examples=judged(whole))
    for model, other in (("base", "aligned"), ("aligned", "base")):
        mine = (cross.steered == model) & (cross.direction == other)
        own = (cross.steered == model) & (cross.direction == model)
        np.testing.assert_array_equal(cross.strength[mine], cross.strength[own])
        np.testing.assert_array_equal(cross.behaviour[own], curve(whole, model).behaviour)
        strength = float(cross.strength[mine][5])
        steers = steps(whole, model, strength, other)
        agree, *_ = of_choices(getattr(demo(), model), items, steers)
        assert cross.behaviour[mine][5] == pytest.approx(agree, **_approx)
        right = of_choices(getattr(demo(), model), capabilities()[0], steers)[2]
        assert cross.capability[mine][5] == pytest.approx(right, **_approx)
        assert cross.slope[own][0] == curve(whole, model).slope.value
    ratio = cross.slope[(cross.steered == "aligned") & (cross.direction == "base")][0]
    ratio /= cross.slope[(cross.steered == "aligned") & (cross.direction == "aligned")][0]
    assert cross.base_in_aligned.value == pytest.approx(ratio)


@pytest.mark.slow
def test_random_directions_are_as_long_and_are_drawn_by_the_seed(whole):
    items = replace(behaviour(), examples=judged(whole))
    for model in ("base", "aligned"):
        found = curve(whole, model)
        strength, rows = float(found.strength[-1]), []
        for number in range(2):
            drawn = np.random.default_rng([0, number]).standard_normal(demo().width)
            steer = Steer(Add(torch.from_numpy(drawn), strength), whole.layers[0])
            rows.append(of_choices(getattr(demo(), model), items, [steer])[0])
        assert found.control[-1] == pytest.approx(np.mean(rows), **_approx)
        assert found.random_directions == 2
    other = studied(judged=behaviour(), seed=1, layers=whole.layers)
    assert abs(curve(other, "base").control[-1] - curve(whole, "base").control[-1]) > 1e-3


@pytest.mark.parametrize("model", ["base", "aligned"])
def test_gradients_agree_with_the_sweep(whole, model):
    live = getattr(demo(), model)
    found = curve(whole, model)
    items = replace(behaviour(), examples=judged(whole))
    # Steps of 0.3 by hand, whose square is the error, over what float32 leaves.
    around = [of_choices(live, items, steps(whole, model, s * 0.3)) for s in (-1, 0, 1)]
    slope = (around[2][0] - around[0][0]) / 0.6
    assert found.slope.value == pytest.approx(slope, rel=0.02, abs=1e-5)
    kept = [of_choices(live, capabilities()[0], steps(whole, model, s)) for s in (-1.5, 0, 1.5)]
    bend = (kept[2][2] - 2 * kept[1][2] + kept[0][2]) / 1.5**2
    assert found.curvature.value == pytest.approx(bend, rel=0.05, abs=1e-5)
    assert found.capability_slope.value == pytest.approx(
        (kept[2][2] - kept[0][2]) / 3, rel=0.05, abs=1e-5
    )
    assert found.slope_agrees == found.curvature_agrees == 1


def test_gains_by_layer_are_slopes_of_the_log_odds_times_the_length_of_a_state(whole):
    (table,) = of(whole, "steering_by_layer")
    pack = behaviour()
    families = sorted(set(pack.clusters))[::4]
    some = [e for e, f in zip(pack.examples, pack.clusters, strict=True) if f in families]
    assert table.choosing == len(some) == 4
    reading = choices(replace(pack, examples=some), demo())
    keys = [(side, layer) for side in (0, 1) for layer in range(6)]
    found = [whole.directions[("base", "aligned")[side], Site(layer)] for side, layer in keys]
    arms = [
        Arm(side, push_of({Site(layer): one.unit}), ())
        for (side, layer), one in zip(keys, found, strict=True)
    ]
    bends = Bends(reading, arms)
    measure(demo(), reading.pack, [bends])
    for number, one in enumerate(found):
        slope = bends.found(number)["log_odds"][:, 1].mean()
        assert table.gain[number] == pytest.approx(slope * one.lengths.mean(), rel=1e-3)
    # The block of the most gain over both models, among the lower ones.
    gains = table.gain.reshape(2, 6).mean(0)
    assert whole.layers == (int(gains[:4].argmax()),)
    assert table.chosen == str(whole.layers[0])
    assert not table.asked


def test_what_a_push_costs_by_layer_is_the_slope_of_what_is_kept(whole):
    (table,) = of(whole, "steering_by_layer")
    (tax,) = of(whole, "tax_rate")
    quiz = capabilities()[0]
    reading = choices(quiz, demo())
    one = whole.directions["aligned", Site(1)]
    bends = Bends(reading, [Arm(1, push_of({Site(1): one.unit}), ())])
    measure(demo(), reading.pack, [bends])
    slopes = bends.found(0)["log_right"][:, 1]
    row = (table.model == "aligned") & (table.layer == 1)
    assert table.cost[row] == pytest.approx(-slopes.mean() * one.lengths.mean(), rel=1e-3)
    topics = np.array([e.topic for e in quiz.examples])
    for topic in set(topics):
        row = (tax.model == "aligned") & (tax.layer == 1) & (tax.task == topic)
        assert tax.slope[row] == pytest.approx(slopes[topics == topic].mean(), rel=1e-3, abs=1e-6)


# The tax


def gradients_by_hand(model, layer):
    """[task, width] by plain autograd, of the mean ln P of what is right, by topic."""
    found = {}
    quiz, world = capabilities()
    for item in (*quiz.examples, *world.examples):
        kept = []

        def keep(_, __, output, kept=kept):
            stream = output[0] if isinstance(output, tuple) else output
            stream = stream.detach().requires_grad_()
            kept.append(stream)
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        text = item.text + (item.choices[item.wanted[0]] if item.choices else "")
        row = model.tokenizer(text, return_offsets_mapping=True)
        ids = torch.tensor([row["input_ids"]])
        hook = model.net.model.layers[layer].register_forward_hook(keep)
        logs = model.net(input_ids=ids).logits[0].log_softmax(1)
        hook.remove()
        places = range(1, ids.shape[1])
        if item.choices:
            ends = [end for _, end in row["offset_mapping"]]
            places = [next(n for n, end in enumerate(ends) if end > len(item.text))]
        score = sum(logs[n - 1, ids[0, n]] for n in places)
        (by,) = torch.autograd.grad(score, kept)
        sums, count = found.get(item.topic, (0, 0))
        found[item.topic] = sums + by[0].double().sum(0).numpy(), count + len(places)
    return {topic: sums / count for topic, (sums, count) in found.items()}


@pytest.mark.parametrize("model", ["base", "aligned"])
def test_the_tax_rate_is_the_share_in_the_span_of_gradients_by_hand(whole, model):
    (tax,) = of(whole, "tax_rate")
    layer = whole.layers[0]
    tasks = gradients_by_hand(getattr(demo(), model), layer)
    unit = whole.directions[model, Site(layer)].unit
    basis, _ = np.linalg.qr(np.stack([*tasks.values()]).T)
    share = np.square(basis.T @ unit).sum()
    rows = (tax.model == model) & (tax.layer == layer)
    assert tax.rate_by[rows & (tax.task == "all")] == pytest.approx(share, rel=1e-3, abs=1e-6)
    assert set(tax.task[rows]) == {"all", *tasks}
    for topic, gradient in tasks.items():
        row = rows & (tax.task == topic)
        cosine = gradient @ unit / np.linalg.norm(gradient)
        assert tax.cosine[row] == pytest.approx(cosine, rel=1e-3, abs=1e-5)
        assert tax.rate_by[row] == pytest.approx(cosine**2, rel=1e-3, abs=1e-6)
        assert tax.slope[row] == pytest.approx(gradient @ unit, rel=1e-3, abs=1e-6)
    assert (tax.tasks, tax.width) == (3, demo().width)
    assert "the span of 3 tasks' gradients (chance 2.3%" in tax.summary()
    np.testing.assert_allclose(tax.chance[tax.task == "all"], 3 / demo().width)
    if model == "aligned":
        assert (tax.steered, tax.at) == ("aligned", layer)
        assert tax.rate.value == pytest.approx(share, rel=1e-3)
        assert tax.free.value == pytest.approx(np.sqrt(1 - share), rel=1e-3)
        assert tax.excess.value == pytest.approx(share - 3 / demo().width, abs=1e-5)


def test_the_slope_of_what_is_kept_agrees_with_the_sweep(whole):
    (tax,) = of(whole, "tax_rate")
    swept = tax.slope_swept
    # Of small strengths on both sides, off by their square.
    near = max(0.1 * abs(tax.slope_closed.value), 3e-4)
    assert tax.slope_closed.value == pytest.approx(swept.value, abs=near)


def test_random_directions_are_taxed_as_chance_says():
    random = np.random.default_rng(0)
    width, count, each = 40, 60, 6
    names = np.repeat(np.array(["a", "b", "c"], object), each)
    gradients = random.normal(size=(3 * each, 1, 1, width)).repeat(count, 2)
    units = random.normal(size=(1, count, width))
    units /= np.linalg.norm(units, axis=-1, keepdims=True)
    found = taxed(
        Tasks(gradients, np.ones(3 * each), names, np.arange(3 * each)),
        units,
        ["base"],
        range(count),
        steered="base",
        at=0,
        swept=Estimate(np.nan),
        seed=0,
        level=0.95,
    )
    rates = found.rate_by[found.task == "all"]
    # A share of Beta(m/2, (d − m)/2), to four standard errors.
    share = 3 / width
    spread = np.sqrt(2 * share * (1 - share) / (width + 2))
    assert rates.mean() == pytest.approx(share, abs=4 * spread / np.sqrt(count))
    assert rates.std() == pytest.approx(spread, rel=0.4)
    assert (found.p_value[found.task == "all"] < 0.05).sum() <= 9
    assert found.tasks == 3


def test_the_frontier_that_is_drawn_is_that_of_the_rate(whole):
    (tax,) = of(whole, "tax_rate")
    panel = tax.figure().axes[1]
    drawn = {tuple(line.get_xydata().shape): line for line in panel.get_lines()}
    assert drawn
    wanted = tax_frontier(np.linspace(-1, 1, 61), np.sqrt(tax.rate.value))
    assert any(
        len(line.get_ydata()) == 61 and np.allclose(line.get_ydata(), wanted)
        for line in panel.get_lines()
    )
    # ΔS = ΔC cos α + sin α √(B² − ΔC²): at 60°, a half of either is ¼ + ¾.
    assert tax_frontier(0.5, 0.5, 1.0) == pytest.approx(1.0)


# Other ways to ask


@pytest.mark.slow
def test_a_model_alone_has_one_curve_and_nothing_beside_another():
    pair = ModelPair.alone("demo:aligned")
    found = studied(pair, judged=behaviour(), layers=(3,), strengths=(-0.5, 0.5))
    kinds = ["directions", *["tradeoff"] * 2, "steering_by_layer", "tax_rate"]
    assert [r.kind for r in found.results] == [*kinds, "direction_methods"]
    assert {r.model for r in of(found, "tradeoff")} == {"base"}
    assert {model for model, _ in found.directions} == {"base"}
    both = studied(judged=behaviour(), layers=(3,), strengths=(-0.5, 0.5))
    np.testing.assert_allclose(
        curve(found, "base").behaviour, curve(both, "aligned").behaviour, **CLOSE
    )
    assert of(found, "steering_by_layer")[0].asked
    for result in found.results:
        assert "base" not in result.summary(), result.kind


@pytest.mark.slow
def test_each_of_two_models_that_are_one_is_steered_by_the_others_direction_as_by_its_own():
    copy = HookedModel(deepcopy(demo().base.net), demo().base.tokenizer, "copy")
    pair = ModelPair(demo().base, copy)
    found = studied(pair, judged=behaviour(), layers=(3,), strengths=(-0.5, 0.5))
    (cross,) = of(found, "cross_steering")
    assert cross.base_in_aligned.value == pytest.approx(1, rel=1e-6)
    assert cross.aligned_in_base.value == pytest.approx(1, rel=1e-6)
    for name in ("behaviour", "capability"):
        rows = getattr(cross, name).reshape(4, -1)
        np.testing.assert_allclose(rows, np.tile(rows[:1], (4, 1)), **CLOSE)


@pytest.mark.slow
def test_several_blocks_are_pushed_together_each_along_its_own_direction():
    found = studied(judged=behaviour(), layers=(2, 3, 4), strengths=(-0.3, 0.3), controls=0)
    one = curve(found, "base")
    assert one.layers == "2-4"
    assert found.layers == (2, 3, 4)
    lengths = [found.directions["base", Site(n)].lengths.mean() for n in (2, 3, 4)]
    strength = float(one.strength[-1])
    assert strength == pytest.approx(0.3 * np.mean(lengths))
    steers = [
        Steer(Add(torch.from_numpy(found.directions["base", Site(n)].unit), strength), n)
        for n in (2, 3, 4)
    ]
    agree, *_ = of_choices(demo().base, behaviour(), steers)
    assert one.behaviour[-1] == pytest.approx(agree, **_approx)
    assert "several blocks together" in of(found, "tax_rate")[0].notes[0]
    assert of(found, "steering_by_layer")[0].chosen == "2-4"
    assert one.random_directions == 0
    assert np.isnan(one.control).all()


@pytest.mark.parametrize("positions", nets.some(["last", "prompt", "response"], ["last"]))
def test_only_the_tokens_that_are_meant_are_pushed(positions):
    found = studied(
        judged=behaviour(), layers=(3,), strengths=(-0.5, 0.5), positions=positions, controls=0
    )
    one = curve(found, "base")
    strength = float(one.strength[-1])
    rows = []
    for item in behaviour().examples:
        row = demo().base.tokenizer(item.text + item.choices[0], return_offsets_mapping=True)
        place = next(n for n, (_, e) in enumerate(row["offset_mapping"]) if e > len(item.text))
        if positions == "response":
            rows.append(chosen(demo().base, item))
            continue
        vector = torch.from_numpy(found.directions["base", Site(3)].unit)

        def push(_, __, output, place=place, vector=vector):
            stream = output[0] if isinstance(output, tuple) else output
            first = 0 if positions == "prompt" else place - 1
            moved = stream.clone()
            moved[:, first:place] += (strength * vector).to(stream)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        hook = demo().base.net.model.layers[3].register_forward_hook(push)
        rows.append(chosen(demo().base, item))
        hook.remove()
    wanted = [np.isin(np.arange(len(e.choices)), e.wanted) for e in behaviour().examples]
    agree = np.mean(
        [(z[w].sum() - z[~w].sum()) / z.sum() for z, w in zip(rows, wanted, strict=True)]
    )
    assert one.behaviour[-1] == pytest.approx(agree, **_approx)
    if positions == "response":
        np.testing.assert_array_equal(one.behaviour, one.behaviour[0])
        assert not one.gains
        assert "choices are read before there is one" in one.notes[0]
        assert "the span of 1 task's gradient (chance 0.8%" in of(found, "tax_rate")[0].summary()


@pytest.mark.slow
def test_what_attention_adds_is_pushed_where_it_is_asked_for():
    found = studied(judged=behaviour(), layers=(2,), part="attn", strengths=(-0.5, 0.5), controls=0)
    one = curve(found, "base")
    assert one.part == "attn"
    assert ("base", Site(2, "attn")) in found.directions
    unit = torch.from_numpy(found.directions["base", Site(2, "attn")].unit)
    steer = Steer(Add(unit, float(one.strength[-1])), 2, "attn")
    agree, *_ = of_choices(demo().base, behaviour(), [steer])
    assert one.behaviour[-1] == pytest.approx(agree, **_approx)


@pytest.mark.slow
def test_choices_that_are_the_contrast_themselves_are_halved():
    pack = small("manners-choices", (0, 24))
    found = studied(contrast=pack, layers=(3,), strengths=(-0.5, 0.5), controls=0)
    families = sorted(set(pack.clusters))
    one = curve(found, "base")
    assert one.items == len(families) - len(families[::2])
    assert of(found, "directions")[0].pairs == len(families[::2])


@pytest.mark.slow
def test_statements_and_their_opposites_are_a_contrast_too():
    deeds, judges = Pack.load("deeds").limit(40), Pack.load("deeds-choices")
    judged = replace(judges, examples=judges.examples[:12])
    found = studied(contrast=deeds, judged=judged, strengths=(-0.5, 0.5), controls=0)
    (main, *_) = of(found, "directions")
    assert main.pairs == main.positive == 20
    assert {result.pack for result in found.results} == {"deeds"}
    assert curve(found, "base").behaviour_pack == "deeds-choices"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "at"), [("pca", "last"), ("mean-difference", "response"), ("discriminant", "last")]
)
def test_a_direction_is_pushed_however_and_wherever_it_was_found(method, at):
    found = studied(
        judged=behaviour(), layers=(3,), strengths=(-0.5, 0.5), controls=0, method=method, at=at
    )
    one = curve(found, "base")
    assert one.method == of(found, "directions")[0].method == method
    assert of(found, "directions")[0].at == at
    unit = found.directions["base", Site(3)].unit
    assert np.linalg.norm(unit) == pytest.approx(1)
    steer = Steer(Add(torch.from_numpy(unit), float(one.strength[-1])), 3)
    agree, *_ = of_choices(demo().base, behaviour(), [steer])
    assert one.behaviour[-1] == pytest.approx(agree, **_approx)
    # More of the positive role is more politeness.
    assert one.slope.value > 0


@pytest.mark.slow
def test_a_contrast_whose_card_names_its_choices_is_judged_by_them(whole):
    assert manners().card["choices"] == "manners-choices"
    found = studied(layers=(3,), strengths=(-0.5, 0.5), controls=0, kept=capabilities()[:1])
    assert curve(found, "base").items == len(Pack.load("manners-choices").examples)


@pytest.mark.slow
def test_few_items_choose_the_block_that_they_are_judged_at_and_it_is_said():
    few = replace(behaviour(), examples=behaviour().examples[:8])
    found = studied(judged=few, strengths=(-0.5, 0.5), controls=0)
    assert "Too few items of behaviour" in curve(found, "base").notes[0]
    assert of(found, "steering_by_layer")[0].choosing == 8


@pytest.mark.slow
def test_of_what_is_too_large_a_part_is_read_by_all_that_is_told_and_it_is_said():
    found = studied(
        kept=[small("world", (0, 30))],
        judged=behaviour(),
        layers=(3,),
        strengths=(-0.25, -0.05, 0.05, 0.25),
        controls=0,
        tokens=200,
    )
    one = curve(found, "base")
    assert 2 <= one.documents < 30
    assert any(note.startswith("world: ") for note in one.notes)
    (tax,) = of(found, "tax_rate")
    # Gradients and sweep are of the same texts.
    assert tax.slope_closed.value == pytest.approx(tax.slope_swept.value, rel=0.2, abs=3e-4)
    assert tax.slope_swept.low <= tax.slope_closed.value <= tax.slope_swept.high


def test_a_curve_ends_where_logits_are_not_finite_and_it_is_said():
    # Beyond float32, where the stream itself is infinite.
    found = studied(judged=behaviour(), layers=(3,), strengths=(-1e39, -0.5, 0.5, 1e38, 1e39))
    for model in ("base", "aligned"):
        for place in (0, 1):
            one = curve(found, model, place)
            assert len(one.strength) == 3
            for name in ("behaviour", "capability", "loss", "log_odds", "control"):
                assert np.isfinite(getattr(one, name)).all(), name
            below, above = one.notes
            assert below.startswith("The curve ends below: at r = -")
            assert "(-1e+39 E‖h‖) logits are not finite" in below
            assert above.startswith("The curve ends above: at r = ")
            assert "(1e+38 E‖h‖) logits are not finite" in above
    assert np.isfinite(of(found, "cross_steering")[0].behaviour).all()


def test_strengths_that_leave_no_curve_are_refused():
    kept = capabilities()[:1]
    with pytest.raises(DriftlensError, match=r"two strengths beside 0 at least, found others at r"):
        studied(judged=behaviour(), kept=kept, layers=(3,), strengths=(0.5, 1e39))
    for few in ((), (0.0,), (0.5,), (0.0, 0.5, 0.5)):
        with pytest.raises(DriftlensError, match="strengths to be two numbers at least beside 0"):
            Options(strengths=few)


@pytest.mark.slow
def test_strengths_that_nobody_gave_follow_the_curves():
    found = studied(judged=behaviour(), layers=(3,), strengths=None, points=15)
    one = curve(found, "base")
    length = found.directions["base", Site(3)].lengths.mean()
    assert set(first_strengths(length)) <= set(one.strength.tolist())
    assert len(first_strengths(length)) < len(one.strength) <= 15
    assert (np.diff(one.strength) > 0).all()
    np.testing.assert_array_equal(one.relative_strength, one.strength / one.length)


# Courses


def line(strengths, value, bad=()):
    rows = {
        r: {"x": np.full(4, np.nan if r in bad else value(r)), "y": np.zeros(4)} for r in strengths
    }
    return Line(np.arange(4), rows)


def test_a_curve_is_kept_up_to_the_first_strength_that_is_not_finite():
    strengths = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
    assert line(strengths, float).finite() == ([*strengths], [])
    kept, beyond = line(strengths, float, bad=(-2.0, 3.0)).finite()
    assert kept == [-1, 0, 1, 2]
    assert beyond == [-3, -2, 3]
    both = [line(strengths, float, bad=(-2.0,)), line(strengths, float, bad=(2.0,))]
    assert both_finite(both) == ([-1, 0, 1], [-3, -2, 2, 3])
    assert line(strengths, float, bad=(0.0,)).finite()[0] == []


def test_an_end_that_still_moves_is_followed_and_no_other():
    strengths = first_strengths(1.0)
    rising = line(strengths, lambda r: max(0.0, r))
    asked = further([rising], ["x"], 1.0, 1)
    assert asked == [2.0]
    # Where it was not finite beyond there is nothing to follow.
    ended = line([*strengths, 2.0], lambda r: max(0.0, r), bad=(2.0,))
    assert 2.0 not in further([ended], ["x"], 1.0, 3)
    assert further([line(strengths, lambda r: 0.0)], ["x"], 1.0, 4) == []
    assert further([rising], ["x"], 1.0, 0) == []
    assert len(further([rising], ["x"], 1.0, 3)) <= 3


def test_a_line_gives_strengths_in_the_order_asked_for():
    seen = line((-1.0, 0.0, 1.0), float).seen([1.0, -1.0])
    assert isinstance(seen, Seen)
    np.testing.assert_array_equal(seen.values["x"], np.tile([1.0, -1.0], (4, 1)))


# What is refused


def wrong(**changes):
    asked = {"judged": behaviour(), "layers": (3,), "strengths": (-0.5, 0.5), **changes}
    return lambda: studied(**asked)


def shared_start():
    items = [Example("The sky is", choices=(" blue now", " blue then"), wanted=(0,))]
    return Pack("alike", "choice", items * 4)


def of_one_family():
    items = [replace(e, family="one") for e in behaviour().examples]
    return replace(behaviour(), examples=items)


def long(count):
    """The first items with prompts that no window holds."""
    items = list(behaviour().examples)
    items[:count] = [replace(e, text=f"{'A bell. ' * 200}{e.text}") for e in items[:count]]
    return replace(behaviour(), examples=items)


def test_items_that_do_not_fit_into_a_window_are_left_out_and_it_is_said():
    found = studied(
        ModelPair.alone("demo:base"),
        judged=long(3),
        layers=(3,),
        strengths=(-0.5, 0.0, 0.5),
        controls=0,
    )
    curve = found.tradeoff("base")
    assert curve.items == len(behaviour().examples) - 3
    assert any("3 of 16 items are left out" in note for note in curve.notes)


def test_a_stream_whose_square_overflows_ends_the_curve_though_logits_are_finite():
    found = studied(
        ModelPair.alone("demo:base"), layers=(3,), strengths=(-0.5, 0.0, 0.5, 1e25), controls=0
    )
    curve = found.tradeoff("base")
    assert curve.relative_strength.max() == pytest.approx(0.5)
    assert any("The curve ends above" in note for note in curve.notes)


def test_a_few_pairs_give_what_they_can():
    few = small("manners", (0, 4))
    found = studied(
        ModelPair.alone("demo:base"), few, layers=(3,), strengths=(-0.5, 0.0, 0.5), controls=0
    )
    (methods,) = (r for r in found.results if r.kind == "direction_methods")
    assert "discriminant" not in methods.method.tolist()
    assert any(note.startswith("discriminant is left out") for note in methods.notes)
    assert methods.figure().axes


def test_a_pair_of_the_same_model_goes_on_if_it_is_asked_to():
    # Two names that are alike, but not one and the same: that would be a model alone.
    pair = ModelPair.load("demo:base", "".join(["demo:", "base"]))
    asked = {"layers": (3,), "strengths": (-0.5, 0.0, 0.5), "controls": 0}
    with pytest.raises(DriftlensError, match="the models differ"):
        studied(pair, **asked)
    found = studied(pair, **asked, allow_identical=True)
    one, other = (found.tradeoff(name) for name in ("base", "aligned"))
    np.testing.assert_array_equal(one.behaviour, other.behaviour)
    (beside,) = (r for r in found.results if r.kind == "cross_steering")
    assert beside.base_in_aligned.value == 1.0


REFUSED = {
    "one family of items": (wrong(judged=of_one_family()), "two items or texts at least"),
    "no prompt that fits": (wrong(judged=long(16)), "that fit into a window"),
    "a layer beyond": (wrong(layers=(6,)), "blocks from 0 to 5.*found 6"),
    "a layer below": (wrong(layers=(-1, 2)), "blocks from 0 to 5.*found -1"),
    "no layer": (wrong(layers=()), "found none at all"),
    "nothing to keep": (
        lambda: examine(demo(), manners(), [], behaviour()),
        "a pack of what is to be kept, found none",
    ),
    "roles to keep": (wrong(kept=[manners()]), "found manners of kind roles"),
    "texts as behaviour": (wrong(judged=small("world", (0, 4))), "pack of kind choice"),
    "texts as a contrast": (
        wrong(contrast=small("world", (0, 4))),
        "texts of two roles.*found world of kind text",
    ),
    "no choices": (
        lambda: studied(contrast=replace(manners(), card={})),
        "choices to measure behaviour by, found none that belong to manners",
    ),
    "choices that are not shipped": (
        lambda: studied(contrast=replace(manners(), card={"choices": "nowhere"})),
        "to name a shipped pack, found 'nowhere'",
    ),
    "one family of choices": (
        lambda: studied(contrast=small("manners-choices", (0, 1))),
        "two families of items at least",
    ),
    "answers that begin alike": (
        wrong(judged=shared_start()),
        "begin with different tokens in item 0 of alike.*' blue now' and ' blue then'",
    ),
    "answers to keep that begin alike": (wrong(kept=[shared_start()]), "item 0 of alike"),
    "masked models": (
        lambda: studied(nets.pair("bert")),
        "models that continue text.*fills in masked",
    ),
    "a method": (wrong(method="means"), "a method among.*found 'means'"),
    "a place": (wrong(at="end"), "a place among.*found 'end'"),
    "models that read other tokens": (
        lambda: studied(
            ModelPair(
                nets.model("llama"),
                HookedModel(nets.net("llama"), nets.tokenizer(merges=20), "other"),
            ),
            kept=[nets.pack(nets.TEXTS)],
            judged=Pack(
                "marks",
                "choice",
                [Example(t, choices=("!", "?"), wanted=(0,)) for t in ("A bell", "A boat")],
            ),
            layers=(1,),
        ),
        "cut the text into the same tokens",
    ),
    "answers of several tokens": (wrong(at="answer"), "differ in one token"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_with_what_was_found(name):
    ask, said = REFUSED[name]
    with pytest.raises(DriftlensError, match=said):
        ask()


def test_roles_that_do_not_differ_have_no_direction_to_push_along():
    twice = replace(
        manners(),
        examples=[replace(e, text="User: Hello.", scored=None) for e in manners().examples],
    )
    with pytest.raises(DriftlensError, match="direction"):
        studied(contrast=twice, judged=behaviour(), layers=(3,))
