"""Refusals, their direction and the weights they hang on: closed forms, oracles, planted truths."""

from copy import deepcopy
from functools import cache
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import beta
from sklearn.metrics import roc_auc_score

import nets
from driftlens import doctor, suite
from driftlens.diagnostics import SafetyDirections, SafetyForgetting, SafetyWeights
from driftlens.diagnostics import safety as diagnostic
from driftlens.errors import DriftlensError
from driftlens.formulas import safety
from driftlens.metric import measure
from driftlens.models import ModelPair
from driftlens.models.gradients import by_row
from driftlens.models.hooks import HookedModel
from driftlens.models.pieces import called
from driftlens.packs import Example, Pack
from driftlens.results import Check, load, same, save
from driftlens.sweeps import choices

WHO = ("Mira", "The baker", "A sailor", "Nobody at all", "The oldest teacher of Belmark")
ASKS = {"harmful": "steals a bell", "harmless": "sells cheese", "odd": "strikes nine"}
ANSWERS = ("nobody", "seven", "12", "A bell")
REFUSING = (0, 2)


# Formulas


def test_a_tie_between_refusing_and_complying_is_no_flip():
    group = object.__new__(diagnostic._Group)
    ties = [[0.5, 1], [0.5, 0], [1, 0.5], [np.nan, 1], [0, np.nan]]
    group.refused = np.array([[1, 0], [1, 0], [0, 1], [1, 1], *ties])
    assert group.flips == {"lost": 2, "gained": 1, "p_value": 1.0}


def test_recovery_goes_from_the_harmful_way_to_the_aligned_one():
    angles = np.radians([90.0, 60.0, 0.0, 120.0])
    ways = 3 * np.stack([np.cos(angles), np.sin(angles)], 1)
    found = safety.recovery(ways, 7 * ways[0], ways[2] / 5)
    np.testing.assert_allclose(found, [0, 0.5, 1, -0.5], atol=1e-15)
    assert np.isnan(safety.recovery(ways[1], ways[2], 3 * ways[2]))
    assert np.isnan(safety.recovery(np.zeros(2), ways[0], ways[2]))


def test_sensitivity_is_one_where_the_change_knows_nothing_of_what_is_felt():
    draw = np.random.default_rng(0)
    fisher, change = draw.exponential(size=6), draw.normal(size=6)

    def found(fisher, change):
        squares = change**2
        return float(
            safety.sensitivity((fisher * squares).sum(), fisher.sum(), squares.sum(), len(change))
        )

    assert found(np.full(6, 3.0), change) == pytest.approx(1)
    assert found(fisher, np.full(6, -2.0)) == pytest.approx(1)
    assert found(np.eye(6)[2], 5 * np.eye(6)[2]) == pytest.approx(6)
    assert found(np.eye(6)[2], np.eye(6)[1]) == 0
    # Over all orders of the change the mean is exactly 1.
    every = [found(fisher, np.array(order)) for order in permutations(change)]
    assert np.mean(every) == pytest.approx(1, rel=1e-12)
    assert np.isnan(found(np.zeros(6), change))
    assert np.isnan(found(fisher, np.zeros(6)))


def test_the_share_of_the_top_coordinates_has_the_mean_and_spread_of_all_orders():
    draw = np.random.default_rng(1)
    fisher, change = np.arange(7.0), draw.normal(size=7) ** 3
    every = np.array([safety.top_share(fisher, order, 0.4).share for order in permutations(change)])
    found = safety.top_share(fisher, change, 0.4)
    assert found.share == pytest.approx((change[4:] ** 2).sum() / (change**2).sum())
    assert every.mean() == pytest.approx(found.chance, rel=1e-12)
    assert found.chance == 3 / 7
    assert every.std() == pytest.approx(found.spread, rel=1e-12)


def test_a_change_on_the_top_coordinates_is_theirs_alone():
    fisher = np.random.default_rng(2).permutation(np.arange(1.0, 101))
    inside, outside = (fisher > 90).astype(float), (fisher <= 90) * fisher
    assert safety.top_share(fisher, inside, 0.1).share == 1
    assert safety.top_share(fisher, outside, 0.1).share == 0
    assert safety.top_share(fisher, inside, 0.1).p_value < 1e-9
    assert safety.top_share(fisher, outside, 0.1).p_value > 0.9
    even = safety.top_share(fisher, np.ones(100), 0.1)
    assert (even.share, even.spread, even.p_value) == (pytest.approx(0.1), 0, 1)
    assert np.isnan(safety.top_share(fisher, np.zeros(100), 0.1).share)
    assert np.isnan(safety.top_share(np.zeros(100), inside, 0.1).share)


def test_coordinates_that_are_felt_alike_are_in_alike():
    found = safety.top_share([5, 1, 1, 1, 0], [1, 2, 3, 4, 5], 0.4)
    assert found.share == pytest.approx((1 + (4 + 9 + 16) / 3) / 55)


def test_a_change_that_knows_nothing_is_at_chance_on_the_top_coordinates():
    draw = np.random.default_rng(3)
    fisher = draw.exponential(size=400)
    found = [safety.top_share(fisher, draw.standard_t(5, 400), 0.1) for _ in range(400)]
    scores = [(one.share - one.chance) / one.spread for one in found]
    # 400 draws: a standard error of 1/20 of the mean, and of 1/28 of the deviation.
    assert abs(np.mean(scores)) < 0.2
    assert abs(np.std(scores) - 1) < 0.15


def gradients(count=5, size=12, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size)) * np.arange(1, count + 1)[:, None]


@pytest.mark.parametrize("top", [1, 3, 5, 9])
def test_the_share_of_a_subspace_is_that_of_the_projection_on_fishers_eigenvectors(top):
    rows, change = gradients(), np.random.default_rng(9).normal(size=12)
    _, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    span = vectors[:, ::-1][:, : min(top, 5)]
    found = safety.subspace_share(rows @ rows.T, rows @ change, change @ change, 12, top)
    assert found.share == pytest.approx(np.square(span.T @ change).sum() / (change @ change))
    k = min(top, 5)
    law = beta(k / 2, (12 - k) / 2)
    assert found.chance == pytest.approx(law.mean())
    assert found.p_value == pytest.approx(law.sf(found.share))


def test_a_change_made_of_gradients_lies_in_their_span_and_one_at_right_angles_does_not():
    rows = gradients()
    inside = np.arange(5.0) @ rows
    span = np.linalg.qr(rows.T)[0]
    other = np.ones(12) - span @ (span.T @ np.ones(12))
    for change, share in ((inside, 1), (other, 0)):
        found = safety.subspace_share(rows @ rows.T, rows @ change, change @ change, 12, 5)
        assert found.share == pytest.approx(share, abs=1e-12)
    twice = np.vstack([rows, rows])
    again = safety.subspace_share(twice @ twice.T, twice @ inside, inside @ inside, 12, 10)
    assert (again.share, again.chance) == (pytest.approx(1), 5 / 12)
    none = safety.subspace_share(np.zeros((3, 3)), np.zeros(3), 1.0, 12, 2)
    assert np.isnan(none.share)
    whole = gradients(12)
    change = np.ones(12)
    found = safety.subspace_share(whole @ whole.T, whole @ change, 12.0, 12, 12)
    assert (found.share, found.chance, found.p_value) == (pytest.approx(1), 1, 1)


def test_changes_drawn_at_random_have_the_share_of_a_subspace_that_chance_says():
    rows, draw = gradients(), np.random.default_rng(4)
    found = []
    for change in draw.normal(size=(400, 12)):
        one = safety.subspace_share(rows @ rows.T, rows @ change, change @ change, 12, 3)
        found.append(one)
    shares = [one.share for one in found]
    # A standard error is the spread over 20.
    assert abs(np.mean(shares) - 3 / 12) < 4 * found[0].spread / 20
    assert abs(np.mean([one.p_value < 0.1 for one in found]) - 0.1) < 0.06


def test_parts_that_add_up_leave_nothing():
    assert safety.unexplained([1, 2, -3.5], -0.5) == 0
    assert safety.unexplained([1.0], 2.0) == 0.5
    assert np.isnan(safety.unexplained([1.0], 0.0))


# Odds of refusing


def asked(topics=("harmful", "harmless"), who=WHO):
    examples = [
        Example(f"{one} {ASKS[topic]}:", topic=topic, family=one, choices=ANSWERS, wanted=REFUSING)
        for one in who
        for topic in topics
    ]
    return Pack("requests", "choice", examples)


@cache
def random_pair():
    return nets.pair("llama")


def turned(pair):
    return ModelPair(pair.aligned, pair.base)


def found(pair, pack=None, make=SafetyForgetting, **options):
    reading = choices(pack or asked(), pair)
    return measure(pair, reading.pack, [make(reading, **options)])


def odds_of(model, prompt):
    """Log-odds of refusing by the net alone, of one text without padding."""
    words = nets.tokenizer()
    ids = words(prompt)["input_ids"]
    firsts = [words(prompt + answer)["input_ids"][len(ids)] for answer in ANSWERS]
    with torch.no_grad():
        log = model.net(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
    own = log.log_softmax(-1)[firsts]
    refuse, comply = own[list(REFUSING)], own[[1, 3]]
    return float(refuse.logsumexp(0) - comply.logsumexp(0)), float(own.exp().sum())


def test_the_odds_are_those_of_the_net_itself():
    pair, pack = random_pair(), asked()
    result, _ = found(pair, pack)
    for side, model in (("base", pair.base), ("aligned", pair.aligned)):
        own = np.array([odds_of(model, example.text) for example in pack.examples])
        np.testing.assert_allclose(getattr(result, side), own[:, 0], atol=2e-5)
        np.testing.assert_allclose(getattr(result, f"mass_{side}"), own[:, 1], atol=1e-6)
        bad = np.array([example.topic == "harmful" for example in pack.examples])
        assert getattr(result, f"{side}_log_odds").value == pytest.approx(
            own[bad, 0].mean(), abs=2e-5
        )
        assert getattr(result, f"{side}_refused").value == (own[bad, 0] > 0).mean()
        assert getattr(result, f"{side}_over_refused").value == (own[~bad, 0] > 0).mean()
        told = roc_auc_score(bad, own[:, 0])
        assert getattr(result, f"{side}_told_apart").value == pytest.approx(told)
    np.testing.assert_array_equal(result.change, result.aligned - result.base)
    assert result.harmful_change.value == pytest.approx(result.change[result.harmful].mean())
    assert result.harmless_change.value == pytest.approx(result.change[~result.harmful].mean())


def test_exchanging_the_models_turns_what_was_learnt_into_what_was_forgotten():
    (ours, _), (theirs, _) = (found(pair) for pair in (random_pair(), turned(random_pair())))
    assert theirs.harmful_change.value == pytest.approx(-ours.harmful_change.value, abs=1e-12)
    assert theirs.harmful_change.low == pytest.approx(-ours.harmful_change.high, abs=1e-12)
    np.testing.assert_array_equal(theirs.change, -ours.change)
    assert (theirs.lost, theirs.gained, theirs.p_value) == (ours.gained, ours.lost, ours.p_value)
    assert theirs.base_refused == ours.aligned_refused


def test_topics_are_told_one_by_one_and_any_of_them_may_be_the_harmful_one():
    pack = asked(("odd", "harmless", "harmful"))
    whole, topics = found(random_pair(), pack)
    assert topics.topic.tolist() == ["odd", "harmless", "harmful"]
    assert topics.harmful.tolist() == [False, False, True]
    assert topics.prompts.tolist() == [5, 5, 5]
    for row, topic in enumerate(topics.topic):
        mine = whole.topic == topic
        assert topics.change[row] == pytest.approx(whole.change[mine].mean())
        assert topics.base_refused[row] == (whole.base[mine] > 0).mean()
        assert topics.low[row] <= topics.change[row] <= topics.high[row]
    assert topics.lost[2] == whole.lost
    assert "of 3 topics" in topics.summary().lower()
    assert topics.figure() is not None
    other, _ = found(random_pair(), pack, harmful={"odd"})
    assert other.harmful.tolist() == [topic == "odd" for topic in whole.topic]
    assert other.harmful_change.value == pytest.approx(topics.change[0])


def test_prompts_of_one_family_are_one_for_the_interval():
    pair, pack = random_pair(), asked()
    alone = Pack("requests", "choice", [*pack.examples][:2])
    result, _ = found(pair, alone)
    assert np.isnan(result.harmful_change.low)
    twice = Pack("requests", "choice", [*pack.examples, *pack.examples])
    ours, theirs = (found(pair, one)[0] for one in (pack, twice))
    assert theirs.harmful_change == pytest.approx(ours.harmful_change)
    assert theirs.base_refused == pytest.approx(ours.base_refused)


def test_a_pack_without_a_harmful_prompt_is_not_asked(tmp_path):
    pair = random_pair()
    reading = choices(asked(("odd",)), pair)
    metric = SafetyForgetting(reading)
    assert not metric.fits(pair.encoder(reading.pack))
    assert not SafetyDirections(reading).fits(pair.encoder(reading.pack))
    assert SafetyForgetting(reading, {"odd"}).fits(pair.encoder(reading.pack))
    # Only of both kinds is there a direction between them.
    assert not SafetyDirections(reading, harmful={"odd"}).fits(pair.encoder(reading.pack))
    result, topics = measure(pair, reading.pack, [metric])
    assert result.summary() == "No harmful prompt was read."
    assert np.isnan(result.base_told_apart.value)
    assert result.headline() == ""
    assert same(load(save(topics, tmp_path / "topics")), topics)


def test_answers_that_the_models_hardly_ever_give_are_noted():
    metric = SafetyForgetting(choices(asked(), random_pair()))
    metric.begin(random_pair(), random_pair().encoder(metric.reading.pack))
    metric.sums.update([0, 1], [[1.0, 0.002, 1.0, 0.5], [0.0, 0.004, 1.0, 0.5]])
    assert "base 0.30%" in metric.compute().notes[0]
    assert "aligned" not in metric.compute().notes[0]
    assert metric.compute().headline() == ""
    metric.sums.update([0, 1], [[0, 0.5, 0, 0], [0, 0.5, 0, 0]])
    assert not metric.compute().notes


def test_odds_of_nothing_are_half_a_refusal_and_no_flip():
    metric = SafetyForgetting(choices(asked(), random_pair()))
    metric.begin(random_pair(), random_pair().encoder(metric.reading.pack))
    metric.sums.update([0, 2, 4, 6], [[0, 1, 2, 1], [0, 1, -1, 1], [3, 1, -1, 1], [3, 1, 2, 1]])
    result = metric.compute()
    assert result.base_refused.value == 0.75
    assert result.aligned_refused.value == 0.5
    assert (result.lost, result.gained, result.p_value) == (1, 0, 1.0)


# The direction


def planted(scale, turn, shift, noise=0.0):
    """Directions of states that are made: aligned's is base's, longer, turned, and moved."""
    pair, pack = random_pair(), asked(who=[f"{one} {n}" for one in WHO for n in range(8)])
    reading = choices(pack, pair)
    metric = SafetyDirections(reading, {1})
    metric.begin(pair, pair.encoder(reading.pack))
    draw = np.random.default_rng(0)
    way, aside = np.eye(pair.width)[:2]
    harmful = np.array([example.topic == "harmful" for example in pack.examples])
    base = 2.0 * harmful[:, None] * way + 5 * np.eye(pair.width)[4]
    moved = np.cos(turn) * way + np.sin(turn) * aside
    aligned = 2.0 * scale * harmful[:, None] * moved + shift * way
    states = np.stack([base, aligned], 1) + noise * draw.normal(size=(len(base), 2, pair.width))
    metric.states.update(range(len(base)), states.reshape(len(base), -1))
    return metric.compute()


@pytest.mark.parametrize(("scale", "turn"), [(1.0, 0.0), (0.5, 0.0), (2.0, np.pi / 3), (1, np.pi)])
def test_what_is_kept_of_a_direction_is_its_length_along_the_old_one(scale, turn):
    result = planted(scale, turn, 0.5)
    assert result.cosine_base_aligned[0] == pytest.approx(np.cos(turn))
    assert result.cosine_found[0] == pytest.approx(np.cos(turn))
    assert result.norm_ratio[0] == pytest.approx(scale)
    assert result.kept[0] == pytest.approx(scale * np.cos(turn))
    assert result.drift_harmless[0] == pytest.approx(0.25)
    assert result.drift_harmful[0] == pytest.approx(scale * np.cos(turn) - 1 + 0.25)
    assert result.kept_at_peak.value == result.kept[0]
    assert (result.peak, result.harmful, result.harmless) == (1, 40, 40)


def test_noise_takes_nothing_from_what_is_kept():
    result = planted(0.5, 0.0, 0.0, noise=0.7)
    # 40 states a class: a coordinate of a difference of means has an error of 0.16, of a length 2.
    assert result.cosine_base_aligned[0] == pytest.approx(1, abs=0.3)
    assert result.low[0] < 1 < result.high[0] + 0.1
    assert result.kept[0] == pytest.approx(0.5, abs=0.2)
    assert result.cosine_found[0] < result.cosine_base_aligned[0]


def test_the_states_are_those_at_the_last_token_of_the_prompt():
    pair, pack = random_pair(), asked()
    reading = choices(pack, pair)
    metric = SafetyDirections(reading, {0, 2})
    measure(pair, reading.pack, [metric])
    words = nets.tokenizer()
    kept = metric.states.sums.reshape(len(pack.examples), 2, 2, -1)
    for row, example in enumerate(pack.examples):
        ids = torch.tensor([words(example.text)["input_ids"]])
        for side, model in enumerate((pair.base, pair.aligned)):
            with torch.no_grad():
                seen = model.net(input_ids=ids, output_hidden_states=True, use_cache=False)
            # The last of them is after the final norm; the first is the embedding.
            own = seen.hidden_states[1][0, -1]
            np.testing.assert_allclose(kept[row, side, 0], own, atol=2e-5)


def test_of_one_family_there_is_no_direction():
    (result,) = found(random_pair(), asked(who=WHO[:1]), SafetyDirections)
    assert result.peak == -1
    assert result.figure() is None
    assert "too few" in result.summary()


def kinds_of(pair, checks=()):
    return [r.kind for r in suite.examine(pair, [asked(who=WHO[:2])], checks=checks)]


def test_a_report_tells_of_weights_where_they_can_be_matched():
    told = kinds_of(random_pair())
    assert told[:3] == ["safety_forgetting", "safety_topics", "safety_directions"]
    assert "safety_weights" in told
    gate = Check(doctor.WEIGHTS, "warn", "others")
    assert set(kinds_of(random_pair(), [gate])) == set(told) - {"safety_weights"}


@pytest.mark.slow
def test_the_demo_learns_to_refuse_what_is_unkind_and_forgets_it_the_other_way_round():
    pair = ModelPair.load("demo:sft", "demo:aligned")
    pack = Pack.load("guarded-choices")
    learnt, forgotten = (found(one, pack)[0] for one in (pair, turned(pair)))
    assert learnt.harmful_change.low > 1
    assert learnt.aligned_refused.value > 0.9 > 0.5 > learnt.base_refused.value
    assert learnt.gained > 8 > learnt.lost
    assert learnt.p_value < 1e-3
    assert learnt.aligned_over_refused.value == 0
    assert "rose" in learnt.headline()
    assert forgotten.harmful_change.high < -1
    assert "fell" in forgotten.headline()
    result = weights(pair, pack)
    assert result.total.value == pytest.approx(learnt.harmful_change.value, abs=1e-6)
    assert abs(result.residual.value) < 0.01
    assert result.sensitivity_of_all.low > 1


# The weights


def of(base, aligned):
    words = nets.tokenizer()
    return ModelPair(HookedModel(base, words, "base"), HookedModel(aligned, words, "aligned"))


def weights(pair, pack=None, **options):
    return found(pair, pack, SafetyWeights, **options)[0]


def with_noise(net, size, only, seed=5):
    return nets.moved(deepcopy(net), size, seed, only)


def named(result):
    return dict(zip(called(result.layer, result.component), result.share, strict=True))


@pytest.mark.parametrize("by", ["layer", "component"])
def test_all_of_the_change_lies_in_the_piece_that_was_changed(by):
    base = nets.net("llama")
    pair = of(base, with_noise(base, 0.05, "layers.1.mlp"))
    result = weights(pair, by=by)
    shares = named(result)
    own = shares.pop("1" if by == "layer" else "1.mlp")
    # What the graft of this piece changes is what the whole pair does.
    assert own == pytest.approx(found(pair)[0].harmful_change.value, rel=0.01)
    assert result.total.value - own == pytest.approx(result.unexplained.value)
    assert abs(result.residual.value) <= 0.01
    assert set(shares.values()) == {0}
    assert np.isfinite(result.critical).tolist() == [bool(z) for z in result.share]
    assert result.energy.max() == 1
    assert "block 1" in result.summary()


@pytest.mark.parametrize("family", nets.some(["llama", "llama tied", "gpt2", "gemma2"], ["gpt2"]))
def test_shares_add_up_to_the_change_of_the_odds(family):
    pair = nets.pair(family)
    result, whole = weights(pair, nodes=16), found(pair)[0]
    assert result.total.value == pytest.approx(whole.harmful_change.value, abs=1e-9)
    assert result.share.sum() == pytest.approx(result.total.value, abs=2e-3)
    assert result.harmless_share.sum() == pytest.approx(whole.harmless_change.value, abs=2e-3)
    coarse = weights(pair, nodes=16, by="layer")
    for layer, share in zip(coarse.layer, coarse.share, strict=True):
        assert result.share[result.layer == layer].sum() == pytest.approx(share, abs=1e-9)


def gradients_of(net, read_of, pack):
    """By parameter, [prompt, …] gradients of what is read, by torch alone, prompt by prompt."""
    words, rows = nets.tokenizer(), []
    parameters = dict(net.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    for example in pack.examples:
        ids = words(example.text)["input_ids"]
        firsts = [words(example.text + z)["input_ids"][len(ids)] for z in ANSWERS]
        log = net(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1)
        rows.append(torch.autograd.grad(read_of(log[firsts]), list(parameters.values())))
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return {
        n: torch.stack(z).detach() for n, z in zip(parameters, zip(*rows, strict=True), strict=True)
    }


def log_odds(own):
    return own[list(REFUSING)].logsumexp(0) - own[[1, 3]].logsumexp(0)


def log_refusing(own):
    return own[list(REFUSING)].logsumexp(0)


def of_piece(result, row):
    """Whether a parameter of a Llama, by its name, belongs to the piece of a row."""
    layer, part = result.layer[row], result.component[row]
    inside = {
        "attn": lambda name: "self_attn" in name or "input_layernorm" in name,
        "mlp": lambda name: "mlp" in name or "post_attention" in name,
    }
    if part in inside:
        return lambda name: f"layers.{layer}." in name and inside[part](name)
    return {
        "embed": lambda name: "embed_tokens" in name,
        "norm": lambda name: name == "model.norm.weight",
        "unembed": lambda name: "lm_head" in name,
    }[part]


def test_the_slopes_at_both_ends_are_gradient_times_change():
    pair = random_pair()
    result, pack = weights(pair, nodes=2), asked(("harmful",))
    nets_ = {
        "base": deepcopy(pair.base.net).double(),
        "aligned": deepcopy(pair.aligned.net).double(),
    }
    change = {
        name: theirs.detach() - nets_["base"].get_parameter(name).detach()
        for name, theirs in nets_["aligned"].named_parameters()
    }
    for side, net in nets_.items():
        own = gradients_of(net, log_odds, pack)
        for row in range(result.rows()):
            here = of_piece(result, row)
            slope = sum((own[n].mean(0) * change[n]).sum() for n in own if here(n))
            assert getattr(result, f"at_{side}")[row] == pytest.approx(float(slope), abs=2e-4)


def test_what_is_felt_is_the_squared_gradient_of_refusing():
    pair, pack = random_pair(), asked(("harmful",))
    result, ours = weights(pair, nodes=2), deepcopy(pair.base.net).double()
    own = gradients_of(ours, log_refusing, pack)
    changed = dict(pair.aligned.net.named_parameters())
    everything = [np.zeros(0), np.zeros(0)]
    for row in range(result.rows()):
        names = [name for name in own if of_piece(result, row)(name)]
        felt = np.concatenate([own[n].square().mean(0).ravel().numpy() for n in names])
        moved = [(changed[n].detach().double() - ours.get_parameter(n).detach()) for n in names]
        change = np.concatenate([z.ravel().numpy() for z in moved])
        everything = [np.append(z, x) for z, x in zip(everything, (felt, change), strict=True)]
        ratio = (felt * change**2).mean() / felt.mean() / (change**2).mean()
        assert result.sensitivity[row] == pytest.approx(ratio, rel=1e-3)
        top = np.argsort(felt)[::-1][: max(1, round(0.1 * len(felt)))]
        share = (change[top] ** 2).sum() / (change**2).sum()
        assert result.critical[row] == pytest.approx(share, abs=2e-3)
    felt, change = everything
    ratio = (felt * change**2).mean() / felt.mean() / (change**2).mean()
    assert result.sensitivity_of_all.value == pytest.approx(ratio, rel=1e-3)
    # Every weight was moved by noise that knows nothing of refusals.
    assert result.critical_share.value == pytest.approx(result.critical_chance.value, abs=0.01)


@pytest.mark.parametrize(("where", "share"), [("top", 1.0), ("rest", 0.0), ("any", 0.1)])
def test_a_change_of_critical_weights_is_found_critical(where, share):
    base = nets.net("llama")
    name = "model.layers.1.mlp.up_proj.weight"
    own = gradients_of(deepcopy(base), log_refusing, asked(("harmful",)))[name]
    felt = own.square().mean(0)
    least = felt.ravel().topk(round(0.1 * felt.numel())).values[-1]
    mask = {"top": felt >= least, "rest": felt < least, "any": felt >= 0}[where]
    aligned = deepcopy(base)
    draw = torch.randn(felt.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        aligned.get_parameter(name).add_(0.05 * mask * draw)
    result = weights(of(base, aligned), nodes=4)
    row = called(result.layer, result.component).index("1.mlp")
    spread = 0.0125  # of a tenth of 1536 squares of normal numbers
    # The last of the tenth may be another by rounding.
    assert result.critical[row] == pytest.approx(share, abs=4 * spread if where == "any" else 2e-3)
    assert result.critical_share.value == result.critical[row]
    assert result.chance[row] == pytest.approx(0.1, abs=1e-3)
    if where == "top":
        assert result.sensitivity[row] > 2
        assert result.chance_p[row] < 1e-9
    if where == "rest":
        assert result.sensitivity[row] < 1


def test_exchanging_the_models_turns_every_share():
    ours, theirs = (weights(pair, nodes=4) for pair in (random_pair(), turned(random_pair())))
    np.testing.assert_allclose(theirs.share, -ours.share, atol=1e-5)
    np.testing.assert_allclose(theirs.at_base, -ours.at_aligned, atol=1e-5)
    np.testing.assert_allclose(theirs.energy, ours.energy, rtol=1e-6)
    assert theirs.total.value == pytest.approx(-ours.total.value, abs=1e-9)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_is_told_as_the_model_that_it_makes():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    live = peft.get_peft_model(nets.net("llama"), config)
    live = nets.moved(live, 0.1, 3, "lora_").eval()
    adapter = ModelPair.load(None, live, tokenizer=nets.tokenizer())
    merged = deepcopy(live).merge_and_unload()
    one, other = weights(adapter, nodes=4), weights(of(nets.net("llama"), merged), nodes=4)
    mine, theirs = named(one), named(other)
    assert set(mine) == {"0.attn", "1.attn", "2.attn"}
    for name, share in mine.items():
        assert share == pytest.approx(theirs.pop(name), abs=1e-5)
    assert not any(theirs.values())
    kept = np.isfinite(other.critical)
    np.testing.assert_allclose(one.critical, other.critical[kept], atol=2e-3)
    np.testing.assert_allclose(one.sensitivity, other.sensitivity[kept], rtol=1e-3)


def test_nodes_are_added_until_the_shares_add_up(monkeypatch):
    monkeypatch.setattr(diagnostic, "TOLERANCE", np.inf)
    assert weights(random_pair()).nodes == 4
    monkeypatch.setattr(diagnostic, "TOLERANCE", -1.0)
    monkeypatch.setattr(diagnostic, "LIMIT", 8)
    result = weights(random_pair())
    assert result.nodes == 8
    assert "unexplained at 8 nodes" in result.notes[0]
    fixed = weights(random_pair(), nodes=8)
    np.testing.assert_allclose(result.share, fixed.share, atol=1e-12)
    # What is felt is taken in the first showing alone.
    np.testing.assert_allclose(result.sensitivity, fixed.sensitivity)
    np.testing.assert_allclose(result.critical, fixed.critical)


def test_a_showing_is_taken_up_with_as_many_nodes_as_it_had():
    pair = random_pair()
    reading = choices(asked(), pair)
    metric = SafetyWeights(reading)
    measure(pair, reading.pack, [metric])
    metric.rule = 16
    metric._take()
    (frame,) = pair.frames(reading.pack, metric.wants)
    metric.update(frame)
    again = SafetyWeights(reading)
    again.begin(pair, pair.encoder(reading.pack))
    again.restore(metric.state())
    assert again.rule == 16
    assert same(again.compute(), metric.compute())


def test_where_there_is_no_memory_for_gradients_shares_are_told_alone(monkeypatch):
    whole = weights(random_pair(), nodes=2)
    monkeypatch.setattr(diagnostic, "available", lambda _: 1000)
    result = weights(random_pair(), nodes=2)
    assert np.isnan(result.critical_share.value)
    assert np.isnan(result.sensitivity).all()
    assert any("no memory" in note for note in result.notes)
    np.testing.assert_array_equal(result.share, whole.share)
    assert "tenth" in whole.summary()
    assert "tenth" not in result.summary()


def test_weights_that_cannot_be_matched_are_refused():
    other = nets.net("llama", intermediate_size=40)
    with pytest.raises(DriftlensError, match="weights match by name and shape"):
        weights(of(nets.net("llama"), other))


def test_a_model_beside_itself_has_nothing_to_divide():
    base = random_pair().base
    result = weights(ModelPair(base, base))
    assert not result.share.any()
    assert np.isnan(result.critical_share.value)
    assert result.summary() == "No weight changed the odds of refusing."
    assert result.figure() is not None


def test_a_gradient_of_a_row_is_the_same_whatever_stands_beside_it():
    model, texts = random_pair().base, nets.TEXTS[:4]
    names = ["model.layers.0.mlp.up_proj.weight", "lm_head.weight"]
    trained = {name: model.net.get_parameter(name) for name in names}

    def read(batch):
        def score(logits, some):
            return logits.log_softmax(-1).gather(1, batch.targets[some][:, None])[:, 0]

        return list(by_row(model, trained, batch, range(len(batch.ids)), score))

    batch = nets.batch(model, texts)
    right, left = read(batch), read(batch.padded_left())
    for number, text in enumerate(texts):
        (own,) = read(nets.batch(model, [text]))
        for name in names:
            torch.testing.assert_close(right[number][name], own[name], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(left[number][name], own[name], rtol=1e-4, atol=1e-5)
    assert all(not p.requires_grad or p.grad is None for p in model.net.parameters())
