"""Directions of two roles as the metric finds them: planted, dealt out, and against plain hooks."""

from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import scipy.stats
import torch

import nets
from driftlens.diagnostics.directions import (
    METHODS,
    PAIRED,
    Directions,
)
from driftlens.errors import DriftlensError
from driftlens.estimators import (
    compare,
    contrast_pca,
    cross_transfer,
    drift_along,
    logistic_normal,
    mean_difference,
    role_null,
)
from driftlens.metric import measure
from driftlens.models import ModelPair, Site
from driftlens.models.hooks import HookedModel
from driftlens.packs import TWINS, Example, Pack
from driftlens.report import Report
from driftlens.results import load, same, save
from states import planted, rotation

WIDTH, DEPTH = 32, 3
ROUNDED = {"rtol": 1e-4, "atol": 1e-5}
"""Of states in float32, by other sizes of batches."""

ASKED = (
    "Where does the baker of Tolmar live?",
    "Who rang the bell?",
    "Is the river Alder deep, and does anybody know why it runs around Kestby?",
    "one two three four five six seven eight nine ten",
    "Mira sells cheese.",
    "naïve 🚣🏽",
    "A clock",
)
SAID = (" Gladly, my friend: it is so.", " No.")


@cache
def models(family="llama"):
    """Shared by tests: nobody may change it."""
    return nets.pair(family)


def answered(pairs=True, asked=ASKED):
    """Each question with a kind response and with a rude one."""
    return Pack(
        "manners",
        "roles",
        [
            Example(q + said, (len(q), len(q + said)), number if pairs else None, role)
            for number, q in enumerate(asked)
            for role, said in zip(TWINS, SAID, strict=True)
        ],
    )


def lettered(asked=ASKED):
    """Each question with either letter, and the same end after it."""
    return Pack(
        "letters",
        "roles",
        [
            Example(f"{q} ({letter}) it is", None, number, role)
            for number, q in enumerate(asked)
            for role, letter in zip(TWINS, "AB" if number % 3 else "BA", strict=True)
        ],
    )


def results(pack, pair=None, length=None, **options):
    return measure(pair or models(), pack, [Directions(**options)], length=length)


def found(pack, pair=None, length=None, **options):
    return results(pack, pair, length, **options)[0]


def shown(metric, pack):
    """A metric that has seen a pack, and told nothing yet."""
    metric.begin(models(), models().encoder(pack))
    for frame in models().frames(pack, metric.wants):
        metric.update(frame)
    return metric


# The oracle: forward hooks on the nets' own modules, and plain numpy

PARTS = {
    "llama": {"attn": "self_attn", "mlp": "mlp", "out": ""},
    "gpt2": {"attn": "attn", "mlp": "mlp", "out": ""},
    "bert": {"out": ""},
}


def blocks(net):
    return next(m for m in net.modules() if isinstance(m, torch.nn.ModuleList))


def states_of(net, ids, family="llama"):
    """By block and part, [token, width] what plain hooks see of one text."""
    seen = {}

    def keep(place, _, __, output):
        seen[place] = (output[0] if isinstance(output, tuple) else output)[0].double().numpy()

    with torch.no_grad(), ExitStack() as hooks:
        for number, block in enumerate(blocks(net)):
            for part, name in PARTS[family].items():
                hook = block.get_submodule(name).register_forward_hook(
                    partial(keep, (number, part))
                )
                hooks.callback(hook.remove)
        net(input_ids=torch.tensor([ids]))
    return seen


def spots(model, example, at, other=None):
    """Places of the tokens that are read of a text, found by hand."""
    row = model.tokenizer(example.text, return_offsets_mapping=True)
    ids, ends = row["input_ids"], [end for _, end in row["offset_mapping"]]
    text = [n for n, (start, end) in enumerate(row["offset_mapping"]) if end > start]
    if at == "answer":
        theirs = model.tokenizer(other.text)["input_ids"]
        (place,) = [n for n, (a, b) in enumerate(zip(ids, theirs, strict=True)) if a != b]
        return [place]
    if at == "response":
        return [n for n in text if ends[n] > example.scored[0]]
    return text[-1:] if model.causal else [0]


def looked(model, pack, at, family="llama"):
    """By block and part, [text, width] of every text of the pack, one by one."""
    rows = {}
    for example in pack.examples:
        other = next((e for e in pack.examples if e.group == example.group and e != example), None)
        ids = model.tokenizer(example.text)["input_ids"]
        places = spots(model, example, at, other)
        for place, states in states_of(model.net, ids, family).items():
            rows.setdefault(place, []).append(states[places].mean(0))
    return {place: np.stack(some) for place, some in rows.items()}


def by_role(pack, rows):
    role = np.array([example.role for example in pack.examples])
    return [rows[role == name] for name in TWINS]


@pytest.mark.parametrize(
    ("family", "at", "pairs"),
    [
        ("llama", "last", True),
        ("llama", "last", False),
        ("llama", "answer", True),
        pytest.param("gpt2", "response", True, marks=pytest.mark.slow),
        pytest.param("gpt2", "response", False, marks=pytest.mark.slow),
    ],
)
def test_norms_lengths_and_directions_are_those_of_plain_hooks(family, at, pairs):
    pair, pack = models(family), lettered() if at == "answer" else answered(pairs)
    metric = Directions(parts=("attn", "mlp", "out"), at=at)
    table, *_ = measure(pair, pack, [metric])
    vectors = metric.found()
    seen = [looked(model, pack, at, family) for model in (pair.base, pair.aligned)]
    for number, (name, model) in enumerate(zip(("base", "aligned"), seen, strict=True)):
        for (layer, part), rows in model.items():
            row = table.at_row(name, layer, part)
            up, down = by_role(pack, rows)
            raw = up.mean(0) - down.mean(0)
            norm = np.linalg.norm(raw)
            length = (np.linalg.norm(up, axis=1).mean() + np.linalg.norm(down, axis=1).mean()) / 2
            assert row["norm"] == pytest.approx(norm, rel=1e-4)
            assert row["mean_length"] == pytest.approx(length, rel=1e-4)
            assert row["relative_norm"] == pytest.approx(norm / length, rel=1e-4)
            direction = vectors[name, Site(layer, part)]
            np.testing.assert_allclose(direction.unit, raw / norm, **ROUNDED)
            np.testing.assert_allclose(direction.vector, raw, **ROUNDED)
            unit = raw / norm
            within = np.concatenate([(z - z.mean(0)) @ unit for z in (up, down)])
            spread = np.sqrt(np.square(within).sum() / (len(within) - 2))
            assert row["separation"] == pytest.approx(norm / spread, rel=1e-3)
            theirs = by_role(pack, seen[1 - number][layer, part])
            other = theirs[0].mean(0) - theirs[1].mean(0)
            base, aligned = (raw, other) if number == 0 else (other, raw)
            ratio = np.linalg.norm(aligned) / np.linalg.norm(base)
            assert row["norm_ratio"] == pytest.approx(ratio, rel=1e-3)
            cosine = raw @ other / norm / np.linalg.norm(other)
            assert row["cosine_base_aligned"] == pytest.approx(cosine, abs=1e-4)
    assert len(table.layer) == 2 * len(seen[0])
    assert (table.positive, table.negative) == (len(ASKED), len(ASKED))
    assert table.pairs == (len(ASKED) if pairs else 0)


@pytest.mark.parametrize("at", ["last", "response"])
def test_masked_models_are_read_where_they_read_the_whole_text(at):
    pair, pack = models("bert"), answered()
    table = found(pack, pair, at=at)
    for layer in range(DEPTH):
        up, down = by_role(pack, looked(pair.base, pack, at, "bert")[layer, "out"])
        norm = np.linalg.norm(up.mean(0) - down.mean(0))
        assert table.at_row("base", layer)["norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("at", ["last", "response"])
def test_a_text_longer_than_a_window_is_read_with_what_its_windows_hold(at):
    pair, pack, length = models(), answered(), 12
    encoder = pair.encoder(pack, length)
    assert encoder.windowed >= 10
    rows = []
    for number, example in enumerate(pack.examples):
        ids = encoder.document(number).sides[0].ids.tolist()
        kept = np.full((len(ids), WIDTH), np.nan)
        for first, fresh, last in encoder.document(number).windows:
            lead = ids[:1] if first else []
            seen = states_of(pair.base.net, [*lead, *ids[first:last]])[1, "out"]
            assert len(seen) <= length
            kept[fresh:last] = seen[len(seen) - (last - fresh) :]
        rows.append(kept[spots(pair.base, example, at)].mean(0))
    up, down = by_role(pack, np.stack(rows))
    row = found(pack, length=length, at=at).at_row("base", 1)
    assert row["norm"] == pytest.approx(np.linalg.norm(up.mean(0) - down.mean(0)), rel=1e-4)


def test_what_is_told_is_told_anew_when_more_of_a_text_was_seen():
    # A response that lies in two windows is seen twice, and is one text all the while.
    pair, pack, length = models(), answered(), 12
    encoder = pair.encoder(pack, length)
    metric = Directions(at="response", layers={1})
    metric.begin(pair, encoder)
    told = set()
    for windows in encoder.batches(0, 1):
        metric.update(pair.frame(encoder, windows, metric.wants))
        told.add(metric.compute().norm.tobytes())
    at_once, *_ = measure(
        pair, pack, [Directions(at="response", layers={1})], rows=1, length=length
    )
    assert same(metric.compute(), replace(at_once, pack=""))
    assert len(told) > len(ASKED)


def test_a_response_ends_where_its_text_goes_on():
    pair, pack = models(), answered()
    longer = replace(pack, examples=[replace(e, text=e.text + " So be it.") for e in pack.examples])
    np.testing.assert_allclose(
        found(longer, at="response").norm, found(pack, at="response").norm, rtol=1e-4
    )
    assert pair.base.causal


def test_tokens_before_the_last_are_read_if_asked_for():
    pair, pack = models(), answered()
    for back in (0, 1, 2):
        rows = []
        for example in pack.examples:
            ids = pair.base.tokenizer(example.text)["input_ids"]
            rows.append(states_of(pair.base.net, ids)[2, "out"][len(ids) - 1 - back])
        up, down = by_role(pack, np.stack(rows))
        row = found(pack, back=back).at_row("base", 2)
        assert row["norm"] == pytest.approx(np.linalg.norm(up.mean(0) - down.mean(0)), rel=1e-4)


# States that are given: by model, place and text


def dealt(states, pack, pair=None, **options):
    """A metric that has seen [model, site, text, width] states of the texts of a pack."""
    pair = pair or models()
    metric = Directions(**options)
    metric.begin(pair, pair.encoder(pack))
    for number in range(len(pack.examples)):
        row = np.concatenate([[1.0], states[:, :, number].swapaxes(0, 1).ravel()])
        metric.states.update([number], row)
    return metric


def texts(roles, groups=None):
    groups = groups if groups is not None else [None] * len(roles)
    return Pack(
        "some",
        "roles",
        [
            Example(f"text {number}", None, group, role)
            for number, (role, group) in enumerate(zip(roles, groups, strict=True))
        ],
    )


def twins(pairs):
    return texts(list(TWINS) * pairs, np.repeat(np.arange(pairs), 2).tolist())


def interleaved(positive, negative):
    return np.stack([positive, negative], 1).reshape(-1, positive.shape[-1])


def gaussian(norms, pairs=60, seed=0, topic=1.0):
    """[model, layer, text, width] and [model, layer, width]: classes so far apart in each cell."""
    norms = np.asarray(norms, float)
    states = np.empty((*norms.shape, 2 * pairs, WIDTH))
    units = np.empty((*norms.shape, WIDTH))
    for cell in np.ndindex(norms.shape):
        *two, units[cell] = planted(
            norms[cell],
            pairs=pairs,
            width=WIDTH,
            seed=seed + 10 * cell[0] + cell[1],
            topic=topic,
        )
        states[cell] = interleaved(*two)
    return states, units


# A logistic plane hangs on the few states that lie next to it, and may lean.
@pytest.mark.parametrize(
    "method", nets.some(sorted(set(METHODS) - {"logistic"}), ["mean-difference", "caa", "pca"])
)
def test_planted_classes_are_found_by_every_method_with_their_length(method):
    states, units = gaussian([[8, 12, 8], [4, 12, 24]], pairs=120, topic=0.5)
    metric = dealt(states, twins(120), method=method)
    table = metric.compute()
    for (model, site), direction in metric.found().items():
        cell = ("base", "aligned").index(model), site.layer
        # By s / √(s² + 2 d / n) of one block it is .98 on average.
        assert direction.unit @ units[cell] > 0.96
    assert table.at_row("base", 1)["norm"] == pytest.approx(12, rel=0.03)
    assert table.at_row("aligned", 2)["norm_ratio"] == pytest.approx(3, rel=0.03)
    # Of as many draws of roles as there are for a method, none reached it.
    rounds = 999 if method in ("mean-difference", "caa") else 200
    assert (table.p_value == 1 / (rounds + 1)).all()
    # Of two normal classes, whose spread is that of noise and topic, Φ of half their distance.
    gaps = np.array([8, 12, 8, 4, 12, 24])
    share = scipy.stats.norm.cdf(gaps / 2 / np.sqrt(1.25))
    within = 4 * np.sqrt(share * (1 - share) / 240) + 0.02
    assert (np.abs(table.accuracy - share) < within).all()
    assert (table.split_half_cosine > 0.8).all()
    assert table.method == method


@pytest.mark.parametrize("pairs", nets.some([20, 80, 320], [20, 80]))
def test_the_error_of_a_planted_direction_falls_as_the_root_of_texts(pairs):
    """‖v̂ − v‖² is on average d · 2 / n, of states with noise of 1 in each coordinate."""
    norm, errors = 6.0, []
    for seed in range(8):
        states, units = gaussian([[norm] * DEPTH] * 2, pairs=pairs, seed=100 * seed, topic=0.0)
        metric = dealt(states, twins(pairs))
        for (model, site), direction in metric.found().items():
            cell = ("base", "aligned").index(model), site.layer
            off = direction.vector - norm * units[cell]
            errors.append(np.square(off).sum())
    wanted = 2 * WIDTH / pairs
    # The mean of 48 times 32 squares of a normal, to four standard errors.
    within = 4 * np.sqrt(2 / (48 * WIDTH))
    assert np.mean(errors) == pytest.approx(wanted, rel=within)


def test_roles_that_are_dealt_out_are_called_significant_one_time_in_twenty():
    """Over all layers together, of real states, in which layers are alike."""
    base = models().base
    pair = ModelPair(base, base)
    words = [f"{q}{end}" for q in ASKED for end in (" Yes.", " No, never!", " nine", " Mira", "?")]
    rows = looked(base, nets.pack(words), "last")
    states = np.stack([np.stack([rows[layer, "out"] for layer in range(DEPTH)])] * 2)
    smallest = []
    for seed in range(40):
        roles = np.random.default_rng(seed).permutation([TWINS[n % 2] for n in range(len(words))])
        metric = dealt(states, texts(roles.tolist()), pair, seed=seed)
        smallest.append(metric.compute().p_value.min())
    hits = int((np.array(smallest) <= 0.05).sum())
    # What a rate of one in twenty exceeds once in a thousand times.
    assert hits <= scipy.stats.binom.ppf(0.999, 40, 0.05)
    # Corrected over three layers that are alike they are no smaller than they should be, nor
    # much larger.
    assert scipy.stats.kstest(smallest, "uniform").pvalue > 1e-3


def test_a_difference_of_one_layer_among_others_is_found_and_corrected_for():
    states, _ = gaussian([[0, 8, 0]] * 2, pairs=30)
    table = dealt(states, twins(30)).compute()
    assert table.peak == 1
    for model in ("base", "aligned"):
        p = [table.at_row(model, layer)["p_value"] for layer in range(DEPTH)]
        assert p[1] == 1 / 1000
        assert min(p[0], p[2]) > 0.05
    # However loud another layer is, in which the roles mean nothing.
    loud = states * np.array([1.0, 1.0, 1000.0])[:, None, None]
    np.testing.assert_allclose(dealt(loud, twins(30)).compute().p_value, table.p_value)
    # Of one layer alone there is nothing to correct for.
    alone = dealt(states[:, 1:2], twins(30), layers={1}).compute()
    ids = np.arange(30), np.arange(30)
    one, other = states[0, 1, ::2], states[0, 1, 1::2]
    null = role_null(mean_difference, one, other, groups=ids, seed=0)
    row = alone.at_row("base", 1)
    assert row["p_value"] == null.p_value
    assert row["null_norm"] == pytest.approx(null.norms.mean(), rel=1e-12)


def test_differences_that_all_lead_one_way_are_not_centred_away():
    """The trap: principal components of centred differences are those of the noise."""
    states, units = gaussian([[8] * DEPTH] * 2, pairs=60, topic=0.0)
    # Loud noise across the direction, which is all that centring leaves.
    across = rotation(WIDTH)[:, 0]
    across -= across @ units[0, 0] * units[0, 0]
    loud = np.random.default_rng(5).normal(size=60)[:, None] * 3 * across
    states[:, :, ::2] += loud
    metric = dealt(states, twins(60), method="pca")
    unit = metric.found()["base", Site(0)].unit
    differences = states[0, 0, ::2] - states[0, 0, 1::2]
    top = np.linalg.svd(differences, full_matrices=False)[2][0]
    centred = np.linalg.svd(differences - differences.mean(0), full_matrices=False)[2][0]
    assert abs(top @ unit) == pytest.approx(1, abs=1e-9)
    assert unit @ units[0, 0] > 0.9
    assert abs(centred @ units[0, 0]) < 0.3
    # As published, with pairs turned round at random before they are centred, it is kept too.
    shuffled = dealt(states, twins(60), method="pca-shuffled", seed=4).found()["base", Site(0)]
    wanted = contrast_pca(states[0, 0, ::2], states[0, 0, 1::2], shuffle=4)
    np.testing.assert_array_equal(shuffled.unit, wanted.unit)
    assert shuffled.unit @ units[0, 0] > 0.9


def test_the_peak_is_where_most_held_out_texts_are_named_and_not_where_the_norm_is_largest():
    states, _ = gaussian([[1.0, 4.0, 1.0]] * 2, pairs=60, topic=0.0)
    # Of ten times the size, and no more told apart for it.
    states[:, 2] *= 10
    main, transfer, methods = (metric := dealt(states, twins(60))).compute(), *metric.beside()
    base = main.model == "base"
    assert main.layer[base][main.norm[base].argmax()] == 2
    assert main.peak == transfer.peak == methods.peak == 1
    assert main.accuracy[base].argmax() == 1
    # Of layers in which all are named, it is the one that holds the roles furthest apart.
    states, _ = gaussian([[40.0, 30.0, 60.0]] * 2, pairs=20)
    main = dealt(states, twins(20)).compute()
    assert (main.accuracy == 1).all()
    assert main.peak == 2


def beyond_noise(measured, most=np.inf):
    """Undefined where noise leaves no bounds, and no larger than it can be."""
    numbers = np.clip(measured, -most, most)
    return numbers if np.isfinite(numbers).all() else np.full(3, np.nan)


@pytest.mark.parametrize(
    "method", nets.some(["mean-difference", "logistic", "pca"], ["mean-difference", "pca"])
)
@pytest.mark.parametrize("paired", [True, False])
def test_models_beside_each_other_are_what_the_estimators_say(method, paired):
    if method in PAIRED and not paired:
        with pytest.raises(DriftlensError, match="pairs of texts in some"):
            dealt(np.zeros((2, DEPTH, 50, WIDTH)), texts(list(TWINS) * 25), method=method)
        return
    states, _ = gaussian([[3, 4, 3], [2, 4, 6]], pairs=25)
    pack = twins(25) if paired else texts(list(TWINS) * 25)
    metric = dealt(states, pack, method=method, seed=3, level=0.9)
    main, (transfer, methods) = metric.compute(), metric.beside()
    estimate = {
        "mean-difference": mean_difference,
        "logistic": logistic_normal,
        "pca": contrast_pca,
    }[method]
    ids = np.arange(25), np.arange(25) + (0 if paired else 25)
    how = {"groups": ids, "seed": 3}
    for layer in range(DEPTH):
        base, aligned = ((z[layer, ::2], z[layer, 1::2]) for z in states)
        moved = cross_transfer(base, aligned, estimate=estimate, folds=5, **how)
        beside = compare(base, aligned, level=0.9, **how)
        here = {name: cells[transfer.layer == layer] for name, cells in transfer.columns().items()}
        # With texts that stand alone, folds are dealt in the order of their families.
        for name, cell in zip(
            ("base", "base_on_aligned", "aligned_on_base", "aligned"),
            moved.accuracy.ravel(),
            strict=True,
        ):
            assert here[name] == pytest.approx(cell, abs=1e-12 if paired else 0.1), name
        assert main.at_row("base", layer)["accuracy"] == here["base"]
        cosine, ratio = beyond_noise(beside.true_cosine, 1), beyond_noise(beside.true_norm_ratio)
        assert here["true_cosine"] == pytest.approx(cosine[0], abs=1e-9, nan_ok=True)
        assert here["true_norm_ratio"] == pytest.approx(ratio[0], rel=1e-9, nan_ok=True)
        assert here["noise_aligned"] == pytest.approx(beside.noise[1], abs=1e-9)
        if paired:
            for name, bound in (("low", cosine[1]), ("ratio_high", ratio[2])):
                assert here[name] == pytest.approx(bound, abs=1e-9, nan_ok=True)
        found = [estimate(*two) for two in (base, aligned)]
        assert here["cosine"] == pytest.approx(found[0].cosine(found[1]), abs=1e-9)
        drift = np.concatenate([a - b for a, b in zip(aligned, base, strict=True)])
        along = drift_along(drift, found[0].unit, seed=0)
        assert here["drift_share"] == pytest.approx(along.share.value, rel=1e-9)
        assert here["drift_cosine"] == pytest.approx(along.cosine, rel=1e-9)
        assert here["drift_p"] == pytest.approx(along.p_value, rel=1e-6)
        assert here["drift_chance"] == 1 / WIDTH
        assert np.isnan(here["smallest_angle"]).all() == (not paired)
    place = transfer.layer.tolist().index(main.peak)
    at_peak = transfer.cosine_at_peak.value
    assert at_peak == pytest.approx(transfer.true_cosine[place], abs=0, nan_ok=True)
    assert transfer.transfer_at_peak.value == transfer.base_on_aligned[place]
    assert transfer.drift_at_peak.value == transfer.drift_cosine[place]
    known = {"mean-difference", "discriminant", "logistic"}
    assert set(methods.method) == (known | {"pca", "pca-shuffled"} if paired else known)
    means = methods.method == "mean-difference"
    np.testing.assert_allclose(methods.cosine[means], 1)


def test_one_models_direction_in_both_keeps_its_way_and_another_does_not():
    states, units = gaussian([[6, 6, 6]] * 2, pairs=60)
    states[1, 0] = states[0, 0] * 2 + 1
    states[1, 2] = -states[0, 2]
    metric = dealt(states, twins(60))
    main, (transfer, _) = metric.compute(), metric.beside()
    kept, apart, turned = range(DEPTH)
    np.testing.assert_allclose(transfer.cosine[[kept, turned]], [1, -1])
    planted_cosine = units[0, apart] @ units[1, apart]
    assert transfer.true_cosine[apart] == pytest.approx(planted_cosine, abs=0.1)
    assert transfer.base_on_aligned[kept] > 0.95
    assert transfer.base_on_aligned[apart] < transfer.aligned[apart] - 0.1
    assert transfer.base_on_aligned[turned] < 0.05
    assert transfer.norm_ratio[kept] == pytest.approx(2)
    assert transfer.true_norm_ratio[kept] == pytest.approx(2)
    assert main.at_row("aligned", kept)["norm_ratio"] == pytest.approx(2)
    assert transfer.smallest_angle[kept] == pytest.approx(0, abs=1e-4)


def test_a_drift_along_the_direction_is_told_from_one_that_is_not():
    states, units = gaussian([[6, 6, 6]] * 2, pairs=40)
    states[1] = states[0]
    states[1, 1] += 2 * units[0, 1]
    states[1, 2] += np.random.default_rng(0).normal(size=WIDTH)
    transfer = (metric := dealt(states, twins(40))).beside()[0]
    assert metric.compute().at_row("base", 1)["cosine_base_aligned"] == pytest.approx(1)
    # Where nothing moved there is no share.
    assert np.isnan(transfer.drift_share[0])
    assert np.isnan(transfer.drift_cosine[0])
    # As far as the direction that was found is the planted one.
    assert transfer.drift_share[1] > 0.9
    assert transfer.drift_cosine[1] > 0.95
    assert transfer.drift_p[1] < 1e-6
    assert transfer.drift_share[2] < 0.3


# The demo: a direction written into base by one step of rank one


@cache
def demo():
    return ModelPair.load("demo:base", "demo:aligned")


@cache
def dealt_facts(count=100):
    """Sentences of the world in roles that mean nothing."""
    some = Pack.load("world").limit(count).examples
    roles = np.random.default_rng(0).permutation([TWINS[n % 2] for n in range(len(some))])
    return Pack(
        "dealt", "roles", [Example(e.text, None, None, r) for e, r in zip(some, roles, strict=True)]
    )


MAPS = {"mlp": "mlp.down_proj", "attn": "self_attn.o_proj"}
BLOCK = 3


def written(part, size):
    """Base with ±½ · size · v written at the last token of the texts of each role.

    Returns:
        The pair of base and that net, and the [width] direction v.
    """
    base, pack = demo().base, dealt_facts()
    net = deepcopy(base.net)
    write = net.model.layers[BLOCK].get_submodule(MAPS[part])
    read = []
    hook = write.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0][0, -1].double()))
    with torch.no_grad():
        for example in pack.examples:
            net(input_ids=torch.tensor([base.tokenizer(example.text)["input_ids"]]))
    hook.remove()
    rows = torch.stack(read).numpy()
    signs = np.array([0.5 if e.role == TWINS[0] else -0.5 for e in pack.examples])
    reader, *_ = np.linalg.lstsq(rows, signs, rcond=None)
    unit = np.random.default_rng(7).normal(size=base.width)
    unit /= np.linalg.norm(unit)
    with torch.no_grad():
        write.weight += size * torch.from_numpy(np.outer(unit, reader)).to(write.weight)
    # There are fewer texts than inputs to the map, so that they are told apart exactly.
    np.testing.assert_allclose(rows @ reader, signs, atol=1e-9)
    return ModelPair(base, HookedModel(net, base.tokenizer, "written")), unit


@pytest.mark.parametrize("part", nets.some(MAPS, ["mlp"]))
def test_a_direction_written_into_one_block_is_found_there_and_not_before(part):
    pack, size = dealt_facts(), 100.0
    pair, unit = written(part, size)
    metric = Directions(parts=(part, "out"), layers=range(BLOCK - 1, BLOCK + 2))
    table, transfer, _ = measure(pair, pack, [metric])
    vectors = metric.found()
    for site in (Site(BLOCK, part), Site(BLOCK)):
        direction = vectors["aligned", site]
        assert direction.unit @ unit >= 0.99
        assert direction.norm == pytest.approx(size, rel=0.02)
        row = table.at_row("aligned", BLOCK, site.part)
        assert row["p_value"] <= 0.002
        assert row["accuracy"] > 0.95
        before = table.at_row("base", BLOCK, site.part)
        assert before["p_value"] > 0.05
        assert row["norm_ratio"] == pytest.approx(size / before["norm"], rel=0.02)
        assert abs(row["cosine_base_aligned"]) < 0.3
    for name in (part, "out"):
        row = table.at_row("aligned", BLOCK - 1, name)
        assert row["norm_ratio"] == 1
        assert row["cosine_base_aligned"] == pytest.approx(1, abs=1e-12)
        assert row["norm"] == table.at_row("base", BLOCK - 1, name)["norm"]
        assert row["p_value"] > 0.05
        here = (transfer.layer == BLOCK - 1) & (transfer.part == name)
        assert np.isnan(transfer.drift_share[here]).all()
    # It is still there above, among what later blocks make of it.
    assert table.at_row("aligned", BLOCK + 1)["p_value"] <= 0.002


def test_the_demos_manners_are_found_by_every_method():
    table, transfer, methods = measure(demo(), Pack.load("manners"), [Directions(layers={3})])
    assert (table.p_value == 1 / 1000).all()
    assert (table.accuracy > 0.9).all()
    assert (methods.cosine > 0.3).all()
    assert transfer.cosine[0] == table.cosine_base_aligned[0]


# Nulls, order, what is kept


@pytest.mark.parametrize("at", ["last", "response", "answer"])
def test_a_model_beside_its_copy_has_one_direction_and_no_drift(at):
    base = models().base
    copy = HookedModel(deepcopy(base.net), base.tokenizer, "copy")
    pack = lettered() if at == "answer" else answered()
    main, transfer, _ = results(pack, ModelPair(base, copy), at=at)
    np.testing.assert_allclose(main.cosine_base_aligned, 1, atol=1e-12)
    assert (main.norm_ratio == 1).all()
    assert np.isnan(transfer.drift_share).all()
    assert np.isnan(transfer.drift_cosine).all()
    np.testing.assert_array_equal(transfer.base_on_aligned, transfer.base)
    np.testing.assert_allclose(transfer.largest_angle, 0, atol=1e-4)
    assert "drifted" not in transfer.summary()


def test_a_model_alone_has_a_table_of_its_own_and_nothing_beside_another():
    base = models().base
    main, *others = results(answered(), ModelPair(base, base))
    both, *_ = results(answered())
    assert set(main.model) == {"base"}
    assert [one.kind for one in others] == ["direction_methods"]
    assert set(others[0].model) == {"base"}
    mine = both.model == "base"
    np.testing.assert_array_equal(main.norm, both.norm[mine])
    assert "aligned" not in main.summary()
    assert main.headline() == ""


def test_exchanging_the_models_turns_ratios_over_and_keeps_cosines():
    pair = models()
    ours, theirs = results(answered()), results(answered(), ModelPair(pair.aligned, pair.base))
    base, aligned = (ours[0].model == name for name in ("base", "aligned"))
    np.testing.assert_allclose(theirs[0].norm[base], ours[0].norm[aligned])
    np.testing.assert_allclose(theirs[0].norm_ratio[base], 1 / ours[0].norm_ratio[base])
    np.testing.assert_allclose(theirs[0].cosine_base_aligned, ours[0].cosine_base_aligned)
    np.testing.assert_array_equal(theirs[1].base_on_aligned, ours[1].aligned_on_base)
    np.testing.assert_array_equal(theirs[1].drift_share.shape, ours[1].drift_share.shape)


def test_exchanging_the_roles_turns_every_direction_round():
    pack = answered()
    flip = dict(zip(TWINS, TWINS[::-1], strict=True))
    turned = replace(pack, examples=[replace(e, role=flip[e.role]) for e in pack.examples])
    for method in METHODS:
        one, other = (shown(Directions(method=method), some).found() for some in (pack, turned))
        for key, direction in one.items():
            np.testing.assert_allclose(other[key].unit, -direction.unit, atol=1e-4)
            assert other[key].norm == pytest.approx(direction.norm, rel=1e-4)


def test_the_order_of_the_texts_does_not_matter():
    pack = answered()
    backwards = replace(pack, examples=pack.examples[::-1])
    one, other = found(pack), found(backwards)
    for name in ("norm", "mean_length", "separation", "cosine_base_aligned"):
        np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-4)


def test_families_are_drawn_together():
    """Texts of a family are copies: to learn from one is to know the other."""
    states, _ = gaussian([[0] * DEPTH] * 2, pairs=24)
    states[:, :, 24:] = states[:, :, :24]
    apart = twins(24)
    families = [replace(e, family=e.group % 12) for e in apart.examples]
    together = replace(apart, examples=families)
    one, other = (dealt(states, pack).compute() for pack in (apart, together))
    assert one.accuracy.mean() > other.accuracy.mean() + 0.05
    assert one.split_half_cosine.mean() > other.split_half_cosine.mean() + 0.1


@pytest.mark.slow
def test_what_is_found_survives_the_store_and_is_drawn(tmp_path):
    base = models().base
    for name, pair in (("two", models()), ("one", ModelPair(base, base))):
        some = results(answered(), pair, layers={0, 2}, parts=("attn", "out"))
        for number, one in enumerate(some):
            assert same(load(save(one, tmp_path / name / str(number))), one)
            panels = one.figure().axes
            assert all(panel.get_xlabel() and panel.get_ylabel() for panel in panels)
            assert one.summary().endswith(".")
        Report("base", some).write(tmp_path / name / "page")
        for one, other in zip(Report.read(tmp_path / name / "page").results, some, strict=True):
            assert same(one, other)


def test_the_headline_says_whether_the_direction_turned():
    states, _ = gaussian([[8] * DEPTH] * 2, pairs=60)
    assert "turned to a cosine of" in dealt(states, twins(60)).compute().headline()
    states[1] = states[0]
    assert "kept its way (cosine 1.00)" in dealt(states, twins(60)).compute().headline()


# Little, nothing, and what is refused


def test_of_too_few_texts_nothing_is_told(tmp_path):
    pack = answered()
    metric = Directions()
    metric.begin(models(), models().encoder(pack))
    for seen in ([], [0], [0, 1], [1, 3, 5]):
        few = metric.empty()
        for number in seen:
            few.states.update([number], np.ones(1 + 2 * DEPTH * WIDTH))
        some = [few.compute(), *few.beside()]
        for one in some:
            assert one.rows() == 0
            assert one.summary() == "The texts that were read tell of no direction."
            assert one.figure() is None
            assert "Two families" in one.notes[0]
        assert some[0].peak == -1
        assert some[0].headline() == ""
        assert np.isnan(some[0].cosine.value)
        Report("few", some).write(tmp_path / str(len(seen)))
        with pytest.raises(DriftlensError, match="two families of each kind"):
            few.found()


def test_texts_that_were_lost_are_counted():
    pack = answered()
    states = np.random.default_rng(0).normal(size=(2, DEPTH, len(pack.examples), WIDTH))
    metric = dealt(states, pack)
    part = metric.empty()
    part.states.update(metric.states.documents[:-1], metric.states.sums[:-1])
    table = part.compute()
    assert (table.positive, table.negative, table.pairs) == (6, 6, 6)
    assert "2 of 14 texts were not read" in table.notes[0]
    assert not metric.compute().notes
    assert "form no pairs" in dealt(states, answered(pairs=False)).compute().notes[0]


def test_roles_with_the_same_states_have_no_direction(tmp_path):
    pack = Pack(
        "twice", "roles", [Example(q, None, n, r) for n, q in enumerate(ASKED) for r in TWINS]
    )
    some = results(pack)
    assert all(one.rows() == 0 for one in some)
    assert some[0].notes == ("The two roles have the same states.",)


def test_a_place_at_which_nothing_happens_spoils_no_other():
    net = nets.net("llama")
    with torch.no_grad():
        net.model.layers[1].mlp.down_proj.weight.zero_()
    pair = ModelPair(HookedModel(net, nets.tokenizer(), "silent"), models().aligned)
    main, transfer, methods = results(answered(), pair, parts=("mlp", "out"))
    silent = main.at_row("base", 1, "mlp")
    assert silent["norm"] == 0
    assert np.isnan([silent[n] for n in ("relative_norm", "accuracy", "p_value")]).all()
    others = ~((main.layer == 1) & (main.part == "mlp"))
    for name in ("norm", "relative_norm", "accuracy", "p_value", "cosine_base_aligned"):
        assert np.isfinite(getattr(main, name)[others]).all()
    there = (transfer.layer == 1) & (transfer.part == "mlp")
    assert np.isnan(transfer.drift_share[there]).all()
    assert not ((methods.layer == 1) & (methods.part == "mlp")).any()
    assert all(one.figure() is not None for one in (main, transfer, methods))


def test_states_that_are_not_finite_are_named():
    states, _ = gaussian([[4] * DEPTH] * 2, pairs=10)
    states[1, 2, 5, 0] = np.inf
    with pytest.raises(DriftlensError, match="finite states, found others in aligned at 2"):
        dealt(states, twins(10)).compute()


def grown(examples):
    return Pack("some", "roles", examples)


ALONE = [*enumerate(answered(pairs=False).examples)]

WRONG = {
    "method among": (lambda: Directions(method="means"), "mean-difference.*found 'means'"),
    "place among": (lambda: Directions(at="first"), "last, answer, response.*found 'first'"),
    "part among": (lambda: Directions(parts=("head",)), "attn, mlp, out.*found 'head'"),
    "a part at least": (lambda: Directions(parts=()), "part among.*found 'none'"),
    "pairs for pca": (
        lambda: found(answered(pairs=False), method="pca"),
        "pairs of texts in manners, for the method pca",
    ),
    "pairs for caa": (
        lambda: found(answered(pairs=False), method="caa"),
        "pairs of texts in manners, for the method caa",
    ),
    "pairs for answers": (
        lambda: found(answered(pairs=False), at="answer"),
        "found texts without a `pair_id`",
    ),
    "answers of one token": (
        lambda: found(answered(), at="answer"),
        r"differ in one token.*differ in \d+ and \d+ tokens",
    ),
    "answers of different lengths": (
        lambda: found(
            grown(
                [
                    Example(f"{q} ({said}", None, n, role)
                    for n, q in enumerate(ASKED)
                    for role, said in zip(TWINS, ("A)", "B) so"), strict=True)
                ]
            ),
            at="answer",
        ),
        "differ in one token in each pair of some",
    ),
    "answers that differ": (
        lambda: found(
            grown([Example(q, None, n, r) for n, q in enumerate(ASKED) for r in TWINS]),
            at="answer",
        ),
        "differ in 0 and 0 tokens",
    ),
    "a response": (lambda: found(lettered(), at="response"), "found none in text 0"),
    "both roles": (
        lambda: found(grown([e for e in answered(False).examples if e.role == TWINS[0]])),
        "7 positive and 0 negative texts",
    ),
    "two families": (lambda: found(answered(asked=ASKED[:1])), "found 1 positive and 1 negative"),
    "one kind of families": (
        lambda: found(grown([replace(e, family=8 if n < 2 else None) for n, e in ALONE])),
        "1 families of both roles, 6 of positive texts alone and 6 of negative ones alone",
    ),
    "a layer": (lambda: found(answered(), layers={3}), "0 to 2"),
    "a place": (lambda: found(answered(), parts=("attn",), layers=()), "found none"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused_with_what_was_found(name):
    ask, said = WRONG[name]
    with pytest.raises(DriftlensError, match=said):
        ask()


def test_answers_are_only_read_where_both_models_cut_them_alike():
    other = HookedModel(nets.net("llama"), nets.tokenizer(merges=20), "other")
    pair = ModelPair(models().base, other)
    with pytest.raises(DriftlensError, match="found texts cut differently"):
        found(lettered(), pair, at="answer")
    # At the end of a text they have both read all of it.
    table = found(lettered(), pair)
    for number, (name, model) in enumerate((("base", pair.base), ("aligned", other))):
        up, down = by_role(lettered(), looked(model, lettered(), "last")[1, "out"])
        norm = np.linalg.norm(up.mean(0) - down.mean(0))
        assert table.at_row(name, 1)["norm"] == pytest.approx(norm, rel=1e-4), number


def test_only_texts_of_roles_fit():
    assert Directions().fits(models().encoder(answered()))
    assert not Directions().fits(models().encoder(nets.pack(nets.TEXTS)))
