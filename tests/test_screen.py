"""Screening by activation patches: estimates against truths, and patches against plain hooks."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nets
from driftlens.diagnostics.screen import Screen, ScreenResult
from driftlens.errors import DriftlensError
from driftlens.formulas.patching import along
from driftlens.formulas.quadrature import gauss
from driftlens.formulas.ranks import ranks, spearman
from driftlens.models import Frame, ModelPair, Wants, every
from driftlens.models.hooks import HookedModel
from driftlens.results import load, same, save

PACK, FEW = nets.pack(nets.TEXTS), nets.pack(nets.TEXTS[:3])
LENGTH = 24
"""Shorter than most texts, so that documents are read in windows too."""

ROUNDED = 2e-5
"""Nats a token that float32 leaves where batches differ."""

NUMBERS = ("estimate", "corrected", "exact", "costs", "integrated")


def of(base, aligned, family="llama"):
    words = nets.tokenizer_for(family)
    return ModelPair(HookedModel(base, words, "base"), HookedModel(aligned, words, "aligned"))


@cache
def moved(size=0.03, only="", family="llama", double=False):
    """A tiny model, and the same with some weights moved."""
    base = nets.net(family)
    base = base.double() if double else base
    return of(base, nets.moved(deepcopy(base), size, 1, only=only), family)


def pass_over(metric, frames):
    for frame in frames:
        metric.update(frame)
    return metric


def shown(pair, metric, pack=PACK, rows=2, length=LENGTH):
    """The metric after all its passes."""
    metric.begin(pair, pair.encoder(pack, length))
    pass_over(metric, pair.frames(pack, metric.wants, rows=rows, length=length))
    while metric.again():
        pass_over(metric, pair.frames(pack, metric.wants, rows=rows, length=length))
    return metric


def found(pair, metric=None, **how):
    return shown(pair, metric or Screen("all"), **how).compute()


@cache
def whole(family="llama"):
    return found(moved(family=family))


@cache
def three():
    return found(moved(), Screen(3))


# Formulas


def test_ranks_and_their_correlation_are_those_of_scipy():
    random = np.random.default_rng(0)
    for size, levels in ((2, 9), (7, 3), (50, 1000)):
        x, y = random.integers(levels, size=(2, size)).astype(float)
        np.testing.assert_array_equal(ranks(x), scipy.stats.rankdata(x))
        assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, nan_ok=True)


@settings(deadline=None)
@given(st.lists(st.integers(-1000, 1000), min_size=2, unique=True))
def test_what_grows_together_has_a_rank_correlation_of_1_and_turned_round_of_minus_1(x):
    grown = np.array(x, float) ** 3
    assert spearman(x, grown) == pytest.approx(1, abs=1e-12)
    assert spearman(x, -grown) == pytest.approx(-1, abs=1e-12)


@pytest.mark.parametrize(
    ("x", "y"), [([], []), ([1], [2]), ([3, 3], [1, 2]), ([1, np.nan], [1, 2])]
)
def test_what_has_no_order_has_no_rank_correlation(x, y):
    assert np.isnan(spearman(x, y))


BASE, ALIGNED = torch.tensor([[2.0], [3.0]]), torch.tensor([[1.0], [1.0]])


def gradient(h):
    """Of the product of two sites: each one's is the other's activation."""
    return h.flip(0)


def test_two_sites_that_multiply_share_the_loss_by_the_mean_of_both_ends():
    near, far = (along(gradient(h), BASE, ALIGNED) for h in (ALIGNED, BASE))
    assert near.tolist() == [1, 2]
    assert far.tolist() == [3, 4]
    path = sum(
        weight * along(gradient(ALIGNED + place * (BASE - ALIGNED)), BASE, ALIGNED)
        for place, weight in zip(*gauss(1), strict=True)
    )
    assert path.tolist() == ((near + far) / 2).tolist() == [2, 3]
    # All of 2 · 3 − 1 · 1. Restored alone they give back 1 and 2, and alone they cost 3 and 4:
    # the mean of the two is theirs again.
    assert float(path.sum()) == 5


def test_in_a_linear_network_with_one_changed_factor_the_estimate_is_exact():
    random = torch.Generator().manual_seed(0)
    first, changed, last = torch.randn(3, 5, 5, generator=random, dtype=torch.float64)
    x, readout = torch.randn(2, 5, generator=random, dtype=torch.float64)
    other = changed + 0.5 * torch.randn(5, 5, generator=random, dtype=torch.float64)
    base, aligned = changed @ first @ x, other @ first @ x
    rise = readout @ last @ (base - aligned)
    assert float(along(last.T @ readout, base, aligned)) == pytest.approx(float(rise), rel=1e-12)


# Planted truths


def test_a_model_beside_itself_gives_nothing_back_at_all():
    model = moved().base
    result = found(ModelPair(model, model), Screen("all", nodes=2))
    assert result.total.value == 0
    for name in NUMBERS:
        assert (getattr(result, name) == 0).all(), name
    assert np.isnan(result.agreement.value)
    assert np.isnan(result.sign_agreement.value)
    assert "nothing back" in result.summary()
    assert result.figure() is not None


@pytest.mark.parametrize("block", range(3))
@pytest.mark.parametrize("part", ["attn", "mlp"])
def test_restoring_the_one_part_that_was_changed_gives_all_back(block, part):
    module = {"attn": "self_attn", "mlp": "mlp"}[part]
    result = found(moved(0.1, f"layers.{block}.{module}."))
    here = (result.layer == str(block)) & (result.component == part)
    assert abs(result.total.value) > 1e-3
    assert result.exact[here] == pytest.approx(result.total.value, abs=ROUNDED)
    assert result.costs[here] == pytest.approx(result.total.value, abs=ROUNDED)
    before = np.arange(len(here)) < here.argmax()
    for name in ("estimate", "corrected", "exact", "costs"):
        assert (getattr(result, name)[before] == 0).all(), name
    # Parts above pass on what they are given: a patch shows it there, though they did not change.
    above = np.arange(len(here)) > here.argmax()
    assert (result.exact[above] != 0).all()


def test_restoring_a_changed_embedding_gives_all_back():
    result = found(moved(0.1, "embed_tokens"))
    assert (result.layer[0], result.component[0]) == ("embed", "embed")
    assert result.exact[0] == pytest.approx(result.total.value, abs=ROUNDED)
    assert result.costs[0] == pytest.approx(result.total.value, abs=ROUNDED)


def test_a_changed_readout_shows_at_no_site():
    result = found(moved(0.1, "lm_head"))
    assert abs(result.total.value) > 1e-3
    assert (result.exact == 0).all()
    assert (result.estimate == 0).all()


DOUBLE = "gpt-neox in sequence"
"""It computes all in the precision of its weights; others have their norms in float32."""


@cache
def orders(only):
    """[error, site] by which power of the change each error shrinks, in double precision."""
    errors = []
    for size in (5e-4, 2.5e-4):
        one = found(moved(size, only, DOUBLE, double=True), pack=FEW)
        both = (one.exact + one.costs) / 2
        errors.append([one.estimate - one.exact, one.corrected - both, one.corrected - one.exact])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log2(np.abs(np.divide(*errors)))


def test_errors_shrink_with_the_square_and_corrected_ones_with_the_cube_of_the_change():
    plain, corrected, to_exact = orders("")
    # One halving at this size measures the order to what the next term adds, here under 0.2.
    np.testing.assert_allclose(plain, 2, atol=0.2)
    np.testing.assert_allclose(corrected, 3, atol=0.2)
    # It comes no nearer to what restoring gives back: the two runs differ elsewhere too.
    np.testing.assert_allclose(to_exact, 2, atol=0.2)


def test_where_one_part_alone_was_changed_the_corrected_one_is_right_to_the_cube_there():
    np.testing.assert_allclose(orders("layers.1.mlp.")[:, 4], [2, 3, 3], atol=0.1)


def test_integrated_gradients_tend_to_the_exact_patch():
    pair, errors = moved(0.03, "", DOUBLE, double=True), []
    for nodes in (1, 2, 4):
        result = found(pair, Screen("all", nodes), pack=FEW)
        errors.append(np.abs(result.integrated - result.exact) / np.abs(result.exact))
    assert (np.diff(np.log10(errors), axis=0) < -1).all()
    assert (errors[-1] < 1e-4).all()


# Patches


MODULES = {
    "llama": ("embed_tokens", "layers", "self_attn", "mlp"),
    "gpt-neox": ("embed_in", "layers", "attention", "mlp"),
    "gpt2": ("wte", "h", "attn", "mlp"),
}


def naive_run(net, ids, place=None, put=None):
    """Log-likelihood of one text, with a module's output replaced, and every module's output."""
    outputs = {}

    def hook(name):
        def keep(_, __, output):
            first = output[0] if isinstance(output, tuple) else output
            outputs[name] = first
            if name != place:
                return None
            return (put, *output[1:]) if isinstance(output, tuple) else put

        return keep

    handles = [
        module.register_forward_hook(hook(n)) for n, module in net.base_model.named_modules()
    ]
    with torch.no_grad():
        logprobs = net(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
    for handle in handles:
        handle.remove()
    return float(logprobs.gather(-1, ids[0, 1:, None]).sum()), outputs


@pytest.mark.parametrize("family", MODULES)
def test_patches_are_what_a_plain_hook_loop_over_documents_finds(family):
    pair = moved(family=family)
    result = found(pair, length=96, rows=4)
    embed, blocks, attention, mlp = MODULES[family]
    parts = {"attn": attention, "mlp": mlp}
    nets_of = pair.base.net, pair.aligned.net
    restored, costs, tokens = np.zeros(len(result.layer)), np.zeros(len(result.layer)), 0
    for text in nets.TEXTS:
        ids = nets.tokenizer()(text, return_tensors="pt")["input_ids"]
        tokens += ids.shape[1] - 1
        (ours, shown_by_base), (theirs, shown_by_aligned) = (naive_run(n, ids) for n in nets_of)
        for row, (layer, part) in enumerate(zip(result.layer, result.component, strict=True)):
            place = embed if part == "embed" else f"{blocks}.{layer}.{parts[part]}"
            restored[row] += naive_run(nets_of[1], ids, place, shown_by_base[place])[0] - theirs
            costs[row] += ours - naive_run(nets_of[0], ids, place, shown_by_aligned[place])[0]
    # GPT-2 adds learnt positions to the embedding before block 0: they are of that site too.
    rows = slice(1, None) if family == "gpt2" else slice(None)
    np.testing.assert_allclose(result.exact[rows], restored[rows] / tokens, atol=ROUNDED)
    np.testing.assert_allclose(result.costs[rows], costs[rows] / tokens, atol=ROUNDED)


@pytest.mark.parametrize("family", MODULES)
def test_all_sites_restored_together_leave_only_the_readout(family):
    pair = moved(family=family)
    sites = every(range(pair.depth), "attn", "mlp")
    (frame,) = pair.frames(PACK, Screen().wants | Wants(frozenset({"out"}), None), rows=9)
    edits = {s: lambda _, s=s: frame.base.activations[s] for s in sites}
    run = pair.aligned.trace(frame.aligned.batch, Wants(), edits)
    found_there = frame.likelihood_of(pair.aligned, run, run.predictors)
    torch.testing.assert_close(found_there, frame.restored[-2], atol=1e-4, rtol=0)


def test_exchanging_the_models_turns_restoring_into_costs():
    ours = whole()
    theirs = found(ModelPair(moved().aligned, moved().base))
    np.testing.assert_allclose(theirs.exact, -ours.costs, atol=1e-12)
    np.testing.assert_allclose(theirs.costs, -ours.exact, atol=1e-12)
    np.testing.assert_allclose(theirs.corrected, -ours.corrected, atol=1e-12)
    np.testing.assert_allclose(theirs.estimate, ours.estimate - 2 * ours.corrected, atol=1e-12)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "phi", "opt", "mixtral"])
def test_other_families_are_screened_too(family):
    result = found(moved(family=family), Screen(3), pack=FEW)
    assert np.isfinite(result.estimate).all()
    assert np.isfinite(result.exact).sum() == 3


# Two passes


def test_the_sites_that_either_end_calls_largest_are_patched_and_no_other():
    result = three()
    ends = np.maximum(np.abs(result.estimate), np.abs(2 * result.corrected - result.estimate))
    patched = ~np.isnan(result.exact)
    assert set(np.flatnonzero(patched)) == set(np.argsort(-ends)[:3])
    for name in ("exact", "exact_low", "exact_high", "costs"):
        np.testing.assert_array_equal(
            getattr(result, name)[patched], getattr(whole(), name)[patched]
        )
        assert np.isnan(getattr(result, name)[~patched]).all()
    assert np.isnan(result.integrated).all()
    assert "3 of 7 sites" in result.notes[0]


def test_the_second_pass_wants_no_gradients_and_only_the_blocks_it_patches():
    pair, metric = moved(0.1, "layers.1.mlp."), Screen(1)
    metric.begin(pair, pair.encoder(PACK, LENGTH))
    assert metric.wants.gradients
    pass_over(metric, pair.frames(PACK, metric.wants, length=LENGTH))
    assert metric.again()
    assert not metric.wants.gradients
    assert len(metric.wants.layers) == 1
    assert metric.wants.causal
    assert metric.wants.same_tokens
    assert not metric.again()
    metric.begin(pair, pair.encoder(PACK, LENGTH))
    assert metric.wants.gradients


def test_without_patches_one_pass_is_enough():
    metric = shown(moved(), Screen(0))
    result = metric.compute()
    assert not metric.again()
    np.testing.assert_array_equal(result.estimate, whole().estimate)
    assert np.isnan(result.exact).all()
    assert np.isnan(result.agreement.value)
    assert result.figure() is not None


def test_agreement_and_errors_are_those_of_the_columns():
    one = whole()
    both = (one.exact + one.costs) / 2
    assert one.agreement.value == pytest.approx(
        scipy.stats.spearmanr(one.estimate, one.exact).statistic
    )
    assert one.corrected_agreement.value == pytest.approx(
        scipy.stats.spearmanr(one.corrected, both).statistic
    )
    assert one.error.value == pytest.approx(np.median(np.abs(one.estimate / one.exact - 1)))
    assert one.corrected_error.value == pytest.approx(np.median(np.abs(one.corrected / both - 1)))
    assert one.sign_agreement.value == np.mean((one.estimate > 0) == (one.exact > 0))


@pytest.mark.parametrize("given", [{"verify": -1}, {"nodes": -1}])
def test_fewer_than_no_patches_are_refused(given):
    with pytest.raises(DriftlensError, match="at least 0"):
        Screen(**given)


# Laws


@cache
def passes(rows=2):
    """The frames of both passes over the same windows, the second as the metric wants it."""
    metric = shown(moved(), Screen(3))
    return [
        tuple(moved().frames(PACK, wants, rows=rows, length=LENGTH))
        for wants in (Screen().wants, metric.wants)
    ]


def begun():
    metric = Screen(3)
    metric.begin(moved(), moved().encoder(PACK, LENGTH))
    return metric


def close(a, b, atol):
    for name in (*NUMBERS, "low", "high", "exact_low", "exact_high"):
        np.testing.assert_allclose(
            getattr(a, name), getattr(b, name), atol=atol, rtol=0, err_msg=name
        )
    assert a.total.value == pytest.approx(b.total.value, abs=atol)


def test_parts_merge_into_the_whole_in_either_pass_and_in_any_order():
    metric = begun()
    for number, frames in enumerate(passes()):
        if number:
            assert metric.again()
        parts = [metric.empty() for _ in range(3)]
        for place, frame in enumerate(reversed(frames)):
            parts[place % 3].update(frame)
        for part in parts:
            metric.merge(part)
    close(metric.compute(), three(), 1e-9)


@pytest.mark.parametrize("rows", [1, 5])
def test_batch_size_does_not_matter(rows):
    close(found(moved(), Screen(3), rows=rows), three(), ROUNDED)


def test_the_side_of_the_padding_does_not_matter():
    metric, pair = begun(), moved()
    for number, frames in enumerate(passes(5)):
        if number:
            assert metric.again()
        for frame in frames:
            traces = [
                model.trace(trace.batch.padded_left(), metric.wants)
                for model, trace in ((pair.base, frame.base), (pair.aligned, frame.aligned))
            ]
            metric.update(Frame(pair, frame.encoder, frame.windows, frame.units, *traces))
    close(metric.compute(), three(), ROUNDED)


def test_what_stands_on_padding_has_no_say_even_if_it_is_no_number():
    metric = begun()
    for frame in passes(5)[0]:
        pad = ~frame.aligned.batch.mask[..., None]
        spoilt = {
            site: stream.masked_fill(pad, torch.nan)
            for site, stream in frame.aligned.gradients.items()
        }
        metric.update(replace(frame, aligned=replace(frame.aligned, gradients=spoilt)))
    np.testing.assert_allclose(metric.compute().estimate, whole().estimate, atol=ROUNDED)


def test_compute_changes_nothing_and_may_be_called_at_any_time():
    metric = begun()
    metric.compute()
    for number, frames in enumerate(passes()):
        if number:
            assert metric.again()
        for frame in frames:
            assert same(metric.compute(), metric.compute())
            metric.update(frame)
    assert same(metric.compute(), three())


@pytest.mark.parametrize("stop", [0, 1])
def test_a_run_taken_up_in_either_pass_ends_in_the_same_bits(stop):
    metric = begun()
    for number, frames in enumerate(passes()):
        if number:
            assert metric.again()
        for place, frame in enumerate(frames):
            metric.update(frame)
            if (number, place) == (stop, 1):
                metric = begun().restore(metric.state())
    assert same(metric.compute(), three())


def test_a_result_survives_the_store(tmp_path):
    for name, one in (("whole", whole()), ("part", three())):
        assert same(load(save(one, tmp_path / name)), one)


# What is said


def table(exact, estimate=(0.3, 0.1, 0.0), agreement=0.5, **more):
    exact = np.array(exact, float)
    return ScreenResult.of(
        total=(0.5, 0.4, 0.6), agreement=agreement, corrected_agreement=0.5,
        sign_agreement=1.0, error=0.1, corrected_error=0.1,
        layer=["embed", "0", "0"], component=["embed", "attn", "mlp"],
        estimate=np.array(estimate), low=np.array(estimate) - 0.1, high=np.array(estimate) + 0.1,
        corrected=np.array(estimate), exact=exact, exact_low=exact - 0.1, exact_high=exact + 0.1,
        costs=exact, integrated=exact * np.nan, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (table([0.2, np.nan, 0.4]), "block 0's MLP gives back 0.40 ± 0.10, the most of 2 patched"),
        (table([0.2, 0.4, 0.1]), "block 0's attention gives back"),
        (table([0.4, 0.2, 0.1]), "Spearman correlation of 0.50"),
        (table([0.4, np.nan, np.nan], agreement=np.nan), "the embedding gives back 0.40 ± 0.10"),
        (table([-0.2, 0.0, -0.1]), "nothing back at any of the 3 patched of 3 sites"),
        (table([0.2, 0.1, 0.0], floor={"exact": 0.3}), "nothing back"),
        (table([np.nan] * 3), "restoring the embedding is estimated to give back 0.30 ± 0.10"),
        (table([np.nan] * 3, (-0.1, -0.2, 0.0)), "nothing back at any of 3 sites, estimated"),
    ],
)
def test_the_sentence_names_what_gives_most_back(result, said):
    assert said in result.summary()
    assert result.summary().endswith(".")
    assert "nan" not in result.summary()
    assert result.figure() is not None
