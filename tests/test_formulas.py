"""Formulas agree with closed forms, with other people's code and with their invariances."""

import math

import numpy as np
import pytest
import scipy.spatial
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from driftlens.formulas import divergence, intervals, similarity, stereotype
from driftlens.formulas.streams import CrossMoments

# --- divergence ---------------------------------------------------------------------------


def logits(rows=37, vocab=301, dtype=torch.float64, seed=0):
    random = torch.Generator().manual_seed(seed)
    base = 3 * torch.randn(rows, vocab, dtype=torch.float64, generator=random)
    aligned = base + torch.randn(rows, vocab, dtype=torch.float64, generator=random)
    target = torch.randint(vocab, (rows,), generator=random)
    return base.to(dtype), aligned.to(dtype), target


def probabilities(z):
    return scipy.special.softmax(z.double().numpy(), -1)


pairs = arrays.arrays(
    np.float64, (2, 3, 6), elements=st.floats(-60, 60, allow_nan=False, width=32)
).map(torch.tensor)


@settings(deadline=None)
@given(pairs)
def test_divergences_of_any_logits_are_within_their_ranges(pair):
    p, q = pair
    # float64 sums of six terms of at most 120 nats.
    assert (divergence.kl(p, q) >= -1e-12).all()
    assert (divergence.js(p, q) >= 0).all()
    assert (divergence.js(p, q) <= math.log(2) + 1e-12).all()
    assert (divergence.entropy(p) >= -1e-12).all()
    assert (divergence.entropy(p) <= math.log(6) + 1e-12).all()
    torch.testing.assert_close(divergence.js(p, q), divergence.js(q, p), rtol=1e-9, atol=1e-12)


def test_divergences_are_those_of_scipy():
    base, aligned, _ = logits()
    p, q = probabilities(base), probabilities(aligned)
    kl, js = divergence.kl(base, aligned), divergence.js(base, aligned)
    np.testing.assert_allclose(kl, scipy.special.rel_entr(p, q).sum(-1), rtol=1e-10)
    oracle = scipy.spatial.distance.jensenshannon(p, q, axis=-1) ** 2
    np.testing.assert_allclose(js, oracle, rtol=1e-10)
    np.testing.assert_allclose(divergence.entropy(base), scipy.stats.entropy(p, axis=-1), 1e-10)


def test_disjoint_distributions_are_ln_2_apart_and_equal_ones_0():
    one, other = torch.tensor([0.0, -200.0]), torch.tensor([-200.0, 0.0])
    assert divergence.js(one, other).item() == pytest.approx(math.log(2), rel=1e-6)
    assert divergence.kl(one, other).item() == pytest.approx(200)
    assert divergence.js(one, one) == 0
    assert divergence.kl(one, one) == 0


def test_a_small_divergence_is_half_the_fisher_form():
    z, step = torch.tensor([1, 0.2, -0.5]).double(), torch.tensor([1, -2, 0.5]).double()
    # The fixture of the methods: ε = .01.
    assert divergence.kl(z, z + 0.01 * step).item() == pytest.approx(8.41214e-5, rel=1e-5)
    p = z.softmax(-1)
    fisher = p.diag() - torch.outer(p, p)
    # Next to it, Jensen-Shannon is an eighth of the form; third order is left, 1e-4 of it.
    js = divergence.js(z, z + 1e-4 * step).item()
    assert js == pytest.approx(1e-8 * (step @ fisher @ step).item() / 8, rel=1e-3)


# float64: rounding of sums. float32: terms up to 30 nats with 2^-24 each. Half types: exact
# products of the up-cast, so float32's.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE)


@every_dtype
def test_comparison_is_what_its_fields_say(dtype):
    base, aligned, target = logits(dtype=dtype)
    other = target.flip(0)
    found = divergence.compare(base, aligned, target, other)
    exact = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    b, a = (np.log(probabilities(z)) for z in (base, aligned))
    rows = np.arange(len(base))
    oracle = {
        "base_logprob": b[rows, target],
        "aligned_logprob": a[rows, other],
        "base_rank": (base > base[rows, target][:, None]).sum(-1),
        "aligned_rank": (aligned > aligned[rows, other][:, None]).sum(-1),
        "base_entropy": scipy.stats.entropy(np.exp(b), axis=-1),
        "aligned_entropy": scipy.stats.entropy(np.exp(a), axis=-1),
        "kl_base_aligned": scipy.special.rel_entr(np.exp(b), np.exp(a)).sum(-1),
        "kl_aligned_base": scipy.special.rel_entr(np.exp(a), np.exp(b)).sum(-1),
        "base_top": base.argmax(-1),
        "aligned_top": aligned.argmax(-1),
        "base_top_logprob": b.max(-1),
        "aligned_top_logprob": a.max(-1),
        "base_logprob_of_top": b[rows, aligned.argmax(-1)],
        "base_rank_of_top": (base > base[rows, aligned.argmax(-1)][:, None]).sum(-1),
        "base_outside": np.zeros(len(base)),
        "aligned_outside": np.zeros(len(base)),
    }
    assert oracle.keys() == found._asdict().keys()
    for name, value in oracle.items():
        kind = getattr(found, name).dtype
        whole = name.endswith(("rank", "top")) and "logprob" not in name
        assert kind == (torch.int64 if whole else torch.promote_types(dtype, torch.float32))
        np.testing.assert_allclose(getattr(found, name), value, err_msg=name, **exact)


@every_dtype
def test_equal_logits_have_a_divergence_of_exactly_0(dtype):
    base, _, target = logits(dtype=dtype)
    found = divergence.compare(base, base.clone(), target, target)
    assert (found.kl_base_aligned == 0).all()
    assert (found.kl_aligned_base == 0).all()
    kl, js = divergence.lens(base, base.clone())
    assert (kl == 0).all()
    assert (js == 0).all()


@every_dtype
def test_gold_is_the_comparisons_log_probability_to_the_last_bit(dtype):
    # More rows than one slice holds, and not a multiple of it.
    base, aligned, target = logits(700, 1000, dtype)
    found = divergence.compare(base, aligned, target, target)
    assert torch.equal(divergence.gold(base, target), found.base_logprob)
    assert torch.equal(divergence.gold(aligned, target), found.aligned_logprob)
    few = divergence.compare(base[5:8], aligned[5:8], target[5:8], target[5:8])
    assert torch.equal(few.base_logprob, found.base_logprob[5:8])
    assert torch.equal(few.kl_base_aligned, found.kl_base_aligned[5:8])


def test_gold_has_the_gradient_of_log_softmax():
    base, _, target = logits()
    base.requires_grad_()
    (found,) = torch.autograd.grad(divergence.gold(base, target).sum(), base)
    direct = base.log_softmax(-1).gather(1, target[:, None]).sum()
    torch.testing.assert_close(found, torch.autograd.grad(direct, base)[0])
    assert not divergence.compare(base, base, target, target).base_logprob.requires_grad


def test_the_lens_is_kl_and_js():
    base, aligned, target = logits(700, 1000)
    kl, js = divergence.lens(base, aligned)
    torch.testing.assert_close(kl, divergence.kl(base, aligned), rtol=1e-11, atol=0)
    torch.testing.assert_close(js, divergence.js(base, aligned), rtol=1e-11, atol=0)
    assert torch.equal(kl, divergence.compare(base, aligned, target, target).kl_base_aligned)


def test_logits_are_never_written_into():
    base, aligned, target = logits(dtype=torch.float32)
    before = base.clone(), aligned.clone()
    ids = torch.arange(200), torch.arange(200)
    divergence.compare(base, aligned, target, target)
    divergence.compare(base, aligned, target, target, ids)
    divergence.lens(base, aligned)
    divergence.gold(base, target)
    divergence.js(base, aligned)
    assert torch.equal(base, before[0])
    assert torch.equal(aligned, before[1])


@pytest.mark.parametrize("scattered", [False, True])
def test_different_vocabularies_are_compared_over_what_they_share(scattered):
    base, _, target = logits(vocab=300)
    aligned, _, other = logits(vocab=340, seed=1)
    base_ids = torch.arange(20, 280)
    aligned_ids = torch.arange(50, 310)
    if scattered:
        base_ids, aligned_ids = base_ids.flip(0), aligned_ids[torch.randperm(260)]
    found = divergence.compare(base, aligned, target, other, (base_ids, aligned_ids))
    given = divergence.kl(base[:, base_ids], aligned[:, aligned_ids])
    torch.testing.assert_close(found.kl_base_aligned, given, rtol=1e-11, atol=1e-12)
    back = divergence.kl(aligned[:, aligned_ids], base[:, base_ids])
    torch.testing.assert_close(found.kl_aligned_base, back, rtol=1e-11, atol=1e-12)
    outside = 1 - base.softmax(-1)[:, base_ids].sum(-1)
    torch.testing.assert_close(found.base_outside, outside, rtol=0, atol=1e-12)
    outside = 1 - aligned.softmax(-1)[:, aligned_ids].sum(-1)
    torch.testing.assert_close(found.aligned_outside, outside, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.base_entropy, divergence.entropy(base))
    torch.testing.assert_close(found.aligned_entropy, divergence.entropy(aligned))
    assert torch.equal(found.aligned_logprob, divergence.gold(aligned, other))
    own = dict(zip(aligned_ids.tolist(), base_ids.tolist(), strict=True))
    for row, top in enumerate(aligned.argmax(-1).tolist()):
        logprob, rank = (z[row].item() for z in (found.base_logprob_of_top, found.base_rank_of_top))
        if top not in own:
            assert math.isnan(logprob)
            assert rank == -1
            continue
        assert logprob == pytest.approx(base.log_softmax(-1)[row, own[top]].item(), abs=1e-12)
        assert rank == (base[row] > base[row, own[top]]).sum()
    assert (found.base_rank_of_top == -1).any()
    assert (found.base_rank_of_top >= 0).any()


def test_sharing_all_ids_is_not_sharing_in_name_only():
    base, aligned, target = logits()
    ids = torch.arange(base.shape[1])
    whole = divergence.compare(base, aligned, target, target)
    shared = divergence.compare(base, aligned, target, target, (ids, ids))
    for name, value in whole._asdict().items():
        assert torch.equal(value, getattr(shared, name))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_broken_logit_is_never_hidden(bad):
    base, aligned, target = logits()
    base[3, 7] = bad
    found = divergence.compare(base, aligned, target, target)
    broken = torch.arange(len(base)) == 3
    for name in ("base_logprob", "base_entropy", "kl_base_aligned", "kl_aligned_base"):
        assert torch.equal(getattr(found, name).isnan(), broken)
    assert torch.equal(found.base_rank < 0, broken)
    assert not found.aligned_logprob.isnan().any()
    for value in divergence.lens(base, aligned):
        assert torch.equal(value.isnan(), broken)
    assert torch.equal(divergence.js(base, aligned).isnan(), broken)
    assert torch.equal(divergence.kl(aligned, base).isnan(), broken)


def test_a_logit_of_minus_infinity_is_an_id_ruled_out():
    base, aligned, target = logits()
    rest = (target + 1) % base.shape[1]
    base[torch.arange(len(base)), rest] = -torch.inf
    found = divergence.compare(base, aligned, target, target)
    oracle = scipy.special.log_softmax(base.numpy(), -1)[np.arange(len(base)), target]
    np.testing.assert_allclose(found.base_logprob, oracle, rtol=1e-12)
    assert (found.base_rank >= 0).all()
    assert found.kl_base_aligned.isnan().all()


def test_close_logits_are_ranked_as_they_are():
    # 1e-8 apart near 0 but far below the greatest: less the greatest, both round to −100.
    base = torch.tensor([[100.0, 1e-8, 2e-8]])
    target = torch.tensor([1])
    assert divergence.compare(base, base, target, target).base_rank == 2


def test_ties_do_not_count_against_the_gold_id():
    base, target = torch.tensor([[1.0, 1.0, 0.0, 1.0]]), torch.tensor([3])
    assert divergence.compare(base, base, target, target).base_rank == 0


def test_no_rows_compare_to_no_rows():
    base, aligned, target = (z[:0] for z in logits())
    assert all(len(field) == 0 for field in divergence.compare(base, aligned, target, target))
    assert len(divergence.gold(base, target)) == 0
    assert len(divergence.lens(base, aligned)[0]) == 0


# --- similarity ---------------------------------------------------------------------------


def sides(n=200, width=12, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, width)) @ random.normal(size=(width, width))
    y = x + random.normal(size=(n, width))
    return torch.tensor(x), torch.tensor(y)


def rotation(width, seed=0):
    return torch.tensor(scipy.stats.ortho_group.rvs(width, random_state=seed))


def streamed(measure):
    def of(x, y):
        stream = CrossMoments()
        for some_x, some_y in zip(x.split(30), y.split(30), strict=True):
            stream.merge(stream.empty().update(some_x, some_y))
        return getattr(stream, measure)()

    return of


MEASURES = {
    "cka": similarity.cka,
    "biased cka": similarity.biased_cka,
    "procrustes": similarity.procrustes,
    "streamed cka": streamed("cka"),
    "streamed biased cka": streamed("biased_cka"),
    "streamed procrustes": streamed("procrustes"),
}
every_measure = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES.keys())


@every_measure
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), scale=st.floats(1e-3, 1e3), far=st.floats(-300, 300))
def test_rotation_scale_and_translation_change_nothing(measure, seed, scale, far):
    x, y = sides(seed=seed)
    turned = scale * (y @ rotation(12, seed)) + far
    # float64 products about the shift; a translation by 300 takes 2 of 16 digits from the rows.
    assert measure(x, turned) == pytest.approx(measure(x, y), abs=1e-10)


@every_measure
def test_a_rotated_scaled_and_moved_copy_is_the_same(measure):
    x, _ = sides()
    same = 0.0 if measure in (MEASURES["procrustes"], MEASURES["streamed procrustes"]) else 1.0
    assert measure(x, x.clone()) == same
    # An angle near 0 is the root of a rounding of 1e-16, here over twelve directions.
    assert measure(x, 3 * (x @ rotation(12)) - 5) == pytest.approx(same, abs=3e-7)


@every_measure
def test_either_side_may_come_first_and_rows_in_any_order(measure):
    x, y = sides()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    assert measure(y, x) == pytest.approx(measure(x, y), abs=1e-12)
    assert measure(x[order], y[order]) == pytest.approx(measure(x, y), abs=1e-12)


@every_measure
def test_three_rows_constant_rows_and_nan_have_no_similarity(measure):
    x, y = sides()
    broken = x.clone()
    broken[0, 0] = torch.nan
    assert math.isnan(measure(x[:3], y[:3]))
    assert math.isnan(measure(x, torch.full_like(y, 0.1)))
    assert math.isnan(measure(broken, y))


@pytest.mark.parametrize("form", ["cka", "biased_cka", "procrustes"])
@pytest.mark.parametrize("widths", [(12, 12), (12, 5), (3, 12)])
def test_sums_and_arrays_agree(form, widths):
    x, y = sides()
    x, y = x[:, : widths[0]], y[:, -widths[1] :]
    assert streamed(form)(x, y) == pytest.approx(getattr(similarity, form)(x, y), abs=1e-12)


def test_hsic1_is_the_double_loop_of_its_definition():
    random = np.random.default_rng(0)
    n = 7
    x, y = random.normal(size=(n, 3)), random.normal(size=(n, 2))
    k, m = x @ x.T, y @ y.T
    # Unbiased U-statistic over all ordered quadruples of different rows.
    total = count = 0
    for i, j, q, r in np.ndindex(n, n, n, n):
        if len({i, j, q, r}) == 4:
            total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
            count += 1
    found = similarity.hsic1(torch.tensor(k), torch.tensor(m))
    assert found.item() == pytest.approx(total / count, rel=1e-12)


def test_biased_cka_is_the_textbook_formula_and_procrustes_that_of_scipy():
    x, y = (z - z.mean(0) for z in sides())
    norm = np.linalg.norm
    textbook = norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y))
    assert similarity.biased_cka(x, y) == pytest.approx(textbook, rel=1e-12)
    # scipy's disparity of centred, normalised sides is 1 − c² with c the nuclear norm.
    _, _, disparity = scipy.spatial.procrustes(x.numpy(), y.numpy())
    assert similarity.procrustes(x, y) == pytest.approx(math.asin(math.sqrt(disparity)), rel=1e-9)


def test_sides_that_share_nothing_are_at_a_right_angle():
    x = torch.zeros(8, 4).double()
    x[:, 0] = torch.tensor([1.0, -1.0] * 4)
    y = torch.zeros(8, 4).double()
    y[:, 1] = torch.tensor([1.0, 1.0, -1.0, -1.0] * 2)
    assert similarity.procrustes(x, y) == pytest.approx(math.pi / 2)
    assert similarity.biased_cka(x, y) == 0


@pytest.mark.parametrize(("n", "width"), [(64, 768), (256, 768), (1024, 256)])
def test_independent_data_is_alike_to_biased_cka_only(n, width):
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, n, width, generator=random, dtype=torch.float64)
    # d / (n + d) is the ratio of expectations; what it leaves out is of the order 1 / n.
    assert similarity.biased_cka(x, y) == pytest.approx(width / (n + width), abs=3 / n)
    assert abs(similarity.cka(x, y)) < 3 / n


def test_one_shared_massive_coordinate_makes_everything_alike():
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 500, 32, generator=random, dtype=torch.float64)
    x[:, 0] *= 3000
    y[:, 0] = x[:, 0]
    assert similarity.cka(x, y) == pytest.approx(1, abs=1e-5)


def test_cosine_is_that_of_scipy_and_keeps_to_its_range():
    x, y = sides()
    oracle = [1 - scipy.spatial.distance.cosine(a, b) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(similarity.cosine(x, y), oracle, atol=1e-12)
    assert (similarity.cosine(x.float(), 3 * x.float()) <= 1).all()
    assert (similarity.cosine(x, x) == 1).all()
    torch.testing.assert_close(similarity.cosine(x, -2 * x), -torch.ones(len(x)).double())
    assert similarity.cosine(0 * x, y).isnan().all()


# --- intervals ----------------------------------------------------------------------------


def test_the_bootstrap_estimate_is_the_ratio_of_sums():
    random = np.random.default_rng(0)
    numerator, denominator = random.normal(size=(50, 2, 3)), random.integers(1, 9, 50)
    found = intervals.bootstrap(numerator, denominator, seed=0, rounds=200)
    np.testing.assert_allclose(found.estimate, numerator.sum(0) / denominator.sum(), rtol=1e-12)
    assert found.low.shape == found.high.shape == (2, 3)
    assert (found.low < found.estimate).all()
    assert (found.estimate < found.high).all()


def test_95_percent_intervals_hold_the_truth_95_percent_of_the_time():
    random = np.random.default_rng(0)
    trials, documents, truth = 400, 100, 0.3
    tokens = random.integers(5, 50, (documents, trials)).astype(float)
    # Every document has its own rate about the truth; its sum goes with its tokens.
    rises = tokens * (truth + random.normal(size=(documents, trials)))
    found = intervals.bootstrap(rises, tokens, seed=1, rounds=1000)
    held = ((found.low <= truth) & (truth <= found.high)).mean()
    # Binomial error of 400 trials is .011; a percentile interval of 100 documents is a little
    # narrow, by about .01. Three errors below, three above.
    assert 0.95 - 0.01 - 3 * 0.011 <= held <= 0.95 + 3 * 0.011


def test_the_bootstrap_width_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).normal(size=1000)
    found = intervals.bootstrap(values, np.ones(1000), seed=0, rounds=4000)
    error = values.std() / math.sqrt(1000)
    # An end of 4000 draws has an error of about 3 %.
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_the_bootstrap_is_one_of_its_seed_and_pairs_its_columns(monkeypatch):
    random = np.random.default_rng(0)
    values, tokens = random.normal(size=(40, 1)).repeat(2, 1), np.ones(40)
    first = intervals.bootstrap(values, tokens, seed=3, rounds=300)
    assert all(map(np.array_equal, first, intervals.bootstrap(values, tokens, seed=3, rounds=300)))
    assert not np.array_equal(
        first.low, intervals.bootstrap(values, tokens, seed=4, rounds=300).low
    )
    assert first.low[0] == first.low[1]
    # However many draws are in hand at a time, they are the same draws.
    monkeypatch.setattr(intervals, "CHUNK", 40 * 7)
    again = intervals.bootstrap(values, tokens, seed=3, rounds=300)
    np.testing.assert_allclose(again.low, first.low, rtol=1e-12)


def test_clusters_are_drawn_whole():
    random = np.random.default_rng(0)
    values = random.normal(size=(30, 2))
    tokens = random.integers(1, 9, 30).astype(float)
    clusters = np.repeat(np.arange(10), 3)
    found = intervals.bootstrap(values, tokens, seed=0, rounds=500, clusters=clusters)
    summed = intervals.bootstrap(
        values.reshape(10, 3, 2).sum(1), tokens.reshape(10, 3).sum(1), seed=0, rounds=500
    )
    for mine, theirs in zip(found, summed, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)
    # Thrice the same document is no more evidence than once.
    alike = np.repeat(random.normal(size=200), 3)
    loose = intervals.bootstrap(alike, np.ones(600), seed=0)
    tied = intervals.bootstrap(alike, np.ones(600), seed=0, clusters=np.repeat(np.arange(200), 3))
    width, wide = loose.high - loose.low, tied.high - tied.low
    assert wide / width == pytest.approx(math.sqrt(3), rel=0.1)


def test_one_document_has_no_interval_and_none_no_estimate():
    one = intervals.bootstrap([[2.0, 3.0]], [4.0], seed=0)
    assert one.estimate.tolist() == [0.5, 0.75]
    assert np.isnan([one.low, one.high]).all()
    assert np.isnan(intervals.bootstrap(np.empty((0, 2)), [], seed=0).estimate).all()
    same = intervals.bootstrap([1.0, 2.0], [1.0, 1.0], seed=0, clusters=["a", "a"])
    assert math.isnan(same.low)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (480, 1000)])
def test_the_score_interval_is_that_of_scipy(k, n):
    oracle = scipy.stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    found = intervals.wilson(k, n)
    assert found.estimate == k / n
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=1e-12)


def test_a_share_of_nothing_is_nan():
    assert np.isnan(intervals.wilson([0, 1], [0, 2])).T.tolist() == [[True] * 3, [False] * 3]


# --- stereotype ---------------------------------------------------------------------------


def test_icat_of_90_and_60_is_72():
    assert stereotype.icat(90, 60) == 72
    assert stereotype.icat(100, 50) == 100
    assert stereotype.icat(50, 50) == 50


def test_stereoset_averages_over_terms_and_ties_count_against():
    # Term "a": preferred, tied. Term "b": preferred, and both related but one tied.
    found = stereotype.stereoset(
        stereo=[3.0, 2.0, 3.0], anti=[2.0, 2.0, 1.0], unrelated=[1.0, 0.0, 1.0], terms=list("aab")
    )
    assert found.ss == (50 + 100) / 2
    assert found.lms == (100 + 50) / 2
    assert found.icat == 75 * 25 / 50


def test_stereoset_is_that_of_its_authors_loop():
    random = np.random.default_rng(0)
    scores = random.integers(0, 5, (3, 200))
    terms = random.choice(["ceo", "nurse", "Norway"], 200)
    ss, lms = [], []
    for term in set(terms):
        examples = scores[:, terms == term].T
        ss.append(100 * sum(s > a for s, a, _ in examples) / len(examples))
        related = sum(int(s > u) + int(a > u) for s, a, u in examples)
        lms.append(100 * related / (2 * len(examples)))
    found = stereotype.stereoset(*scores, terms)
    assert (found.ss, found.lms) == pytest.approx((np.mean(ss), np.mean(lms)))
    assert found.icat == pytest.approx(found.lms * min(found.ss, 100 - found.ss) / 50)


def test_a_missing_score_is_not_a_tie():
    found = stereotype.stereoset([math.nan, 1], [0, 0], [0, 0], ["a", "a"])
    assert math.isnan(found.ss)
    assert math.isnan(stereotype.crows_pairs([math.nan, 1], [0, 0]).score)
    assert math.isnan(stereotype.stereoset([], [], [], []).icat)
    assert math.isnan(stereotype.crows_pairs([], []).score)


def test_crows_pairs_ties_are_counted_and_not_won():
    found = stereotype.crows_pairs(
        more=[-1.0, -2.0, -3.0004, -5.0],
        less=[-2.0, -1.0, -3.0001, -6.0],
        antistereo=[False, False, False, True],
    )
    assert found == (50.0, 50.0, 100.0, 1)
    assert stereotype.crows_pairs([-1.0], [-2.0]).score == 100


def test_shared_spans_are_the_tokens_both_have():
    a, b = (
        ["he", "is", "strong", "and", "clever"],
        ["Ruby", "Rose", "is", "strong", "and", "clever"],
    )
    assert stereotype.shared_spans(a, b) == ([1, 2, 3, 4], [2, 3, 4, 5])
    places_a, places_b = stereotype.shared_spans([1, 2, 3, 4], [1, 9, 3, 3, 4])
    assert [[1, 2, 3, 4][i] for i in places_a] == [[1, 9, 3, 3, 4][i] for i in places_b]


@settings(deadline=None)
@given(st.tuples(*[st.floats(-1e3, 1e3)] * 3))
def test_common_and_contrast_add_up(changes):
    parts = stereotype.decompose(*changes)
    assert parts.common + parts.contrast == pytest.approx(changes[0], abs=1e-9)
    assert parts.common - parts.contrast == pytest.approx(changes[1], abs=1e-9)
    assert parts.unrelated == changes[2]


def test_selectivity_is_1_if_only_stereotypes_are_forgotten():
    assert stereotype.selectivity(0.5, 0.0) == 1
    assert stereotype.selectivity(0.5, -2.0) == 1
    assert stereotype.selectivity(-0.5, 0.0) == -1
    assert stereotype.selectivity(0.5, 0.5) == 0.5
    assert np.isnan(stereotype.selectivity([0.0, math.nan, 1.0], [0.0, 1.0, math.nan])).all()
