"""How sure the models are, and how often they are right: formulas, planted truths, oracles."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

import nets
from driftlens.diagnostics import Calibration, ChoiceCalibration
from driftlens.formulas import calibration
from driftlens.formulas.calibration import BETAS, BINS
from driftlens.formulas.intervals import bootstrap, of_sums
from driftlens.metric import measure
from driftlens.models import ModelPair
from driftlens.models.hooks import HookedModel
from driftlens.packs import Example, Pack
from driftlens.sweeps import choices


def sums(confidence, hit, bins=BINS):
    return calibration.summed(confidence, hit, calibration.binned(confidence, bins), bins)


def drawn(rows, seed=0, bend=1.0):
    """Confidences, and hits that come true as often as they say, to a power."""
    random = np.random.default_rng(seed)
    confidence = random.beta(4, 2, rows)
    return confidence, (random.random(rows) < confidence**bend).astype(float)


# Bins


def test_a_table_whose_accuracy_is_its_confidence_has_no_calibration_error():
    confidence = np.repeat([0.1, 0.3, 0.5, 0.9], 10)
    hit = np.concatenate([np.arange(10) < count for count in (1, 3, 5, 9)])
    for table in (
        sums(confidence, hit),
        calibration.equal_mass(confidence, hit, 4),
        calibration.monotonic_sweep(confidence, hit),
    ):
        assert calibration.ece(table) == pytest.approx(0, abs=1e-15)


def test_nine_tenths_of_confidence_and_seven_of_accuracy_are_an_error_of_a_fifth():
    confidence, hit = np.full(100, 0.9), np.arange(100) < 70
    for table in (
        sums(confidence, hit),
        calibration.equal_mass(confidence, hit),
        calibration.monotonic_sweep(confidence, hit),
    ):
        assert calibration.ece(table) == pytest.approx(0.2)


def test_bins_of_equal_width_are_those_of_scikit_learn():
    confidence, hit = drawn(2000)
    confidence[:3] = 0, 1, 1 / 15
    table = calibration.reliability(sums(confidence, hit))
    accuracy, mean = calibration_curve(hit, confidence, n_bins=BINS)
    there = table.size > 0
    np.testing.assert_allclose(table.accuracy[there], accuracy)
    np.testing.assert_allclose(table.confidence[there], mean)
    assert np.isnan(table.accuracy[~there]).all()
    weighted = np.abs(accuracy - mean) @ table.size[there] / 2000
    assert calibration.ece(sums(confidence, hit)) == pytest.approx(weighted)


def split(confidence, hit, bins):
    """Bins of equal mass by hand."""
    order = np.argsort(confidence)
    parts = [np.array_split(z[order], bins) for z in (confidence, hit)]
    return [(len(c), c.sum(), h.sum()) for c, h in zip(*parts, strict=True)]


def test_bins_of_equal_mass_are_those_cut_by_hand():
    confidence, hit = drawn(150)
    found = calibration.equal_mass(confidence, hit, 15)
    np.testing.assert_allclose(found, split(confidence, hit, 15))
    assert len(calibration.equal_mass(confidence[:4], hit[:4], 15)) == 4


def test_the_sweep_stops_before_the_first_number_of_bins_whose_accuracy_falls():
    seen = set()
    for seed in range(12):
        confidence, hit = drawn(240, seed)
        bins = 1
        # Numbers of bins that divide the rows are cut alike by either.
        while True:
            found = calibration.equal_mass(confidence, hit, bins + 1)
            if (np.diff(found[:, 2] / found[:, 0]) < -1e-9).any():
                break
            bins += 1
        swept = calibration.monotonic_sweep(confidence, hit)
        np.testing.assert_allclose(swept, calibration.equal_mass(confidence, hit, bins))
        seen.add(bins)
    assert len(seen) > 3
    certain = np.linspace(0.1, 0.9, 9)
    assert len(calibration.monotonic_sweep(certain, certain > 0.45)) == 9


def test_rows_of_one_confidence_may_stand_in_any_order():
    confidence = np.repeat([0.2, 0.6], 20)
    hit = np.arange(40) % 3 == 0
    random = np.random.default_rng(0)
    for cut in (calibration.equal_mass, calibration.monotonic_sweep):
        for _ in range(3):
            order = random.permutation(40)
            np.testing.assert_allclose(cut(confidence[order], hit[order]), cut(confidence, hit))


def test_of_nothing_no_error_is_known():
    nothing = np.empty(0)
    for table in (
        sums(nothing, nothing),
        calibration.equal_mass(nothing, nothing),
        calibration.monotonic_sweep(nothing, nothing),
    ):
        assert np.isnan(calibration.ece(table))
        assert np.isnan(calibration.chance_ece(table))


# What chance alone makes of it


@pytest.mark.parametrize("n", [1, 2, 7, 60, 5000])
@pytest.mark.parametrize("p", [0.0, 0.03, 0.5, 0.9, 1.0])
def test_the_error_of_a_calibrated_bin_is_the_mean_deviation_of_a_binomial(n, p):
    counts = np.arange(n + 1)
    exact = stats.binom.pmf(counts, n, p) @ np.abs(counts - n * p) / n
    found = calibration.chance_ece(np.array([[n, n * p, 0.0]]))
    assert found == pytest.approx(exact, rel=1e-9, abs=1e-15)


def many(rows, bend, rounds=3000):
    """Plug-in and debiased ECE of many samples of a few rows."""
    tables = np.stack([sums(*drawn(rows, seed, bend)) for seed in range(rounds)])
    ece = calibration.ece(tables)
    return ece, ece - calibration.chance_ece(tables)


def test_of_a_calibrated_model_the_debiased_error_is_none_on_average_and_the_plain_one_is_not():
    ece, debiased = many(40, bend=1)
    error = debiased.std() / np.sqrt(len(debiased))
    assert abs(debiased.mean()) < 4 * error
    assert ece.mean() > 0.1
    assert ece.mean() > 100 * error


def test_the_error_of_a_model_that_is_too_sure_lies_between_the_debiased_and_the_plain_on_average():
    whole = calibration.ece(sums(*drawn(10**6, bend=2)))
    for rows in (40, 400):
        ece, debiased = many(rows, bend=2)
        error = debiased.std() / np.sqrt(len(debiased))
        assert debiased.mean() < whole - 4 * error
        assert ece.mean() > whole + 4 * error
    # Of ten times the rows both are nearer.
    assert ece.mean() - debiased.mean() < 0.06


# Scores


def test_the_brier_score_of_choices_is_that_of_scikit_learn():
    random = np.random.default_rng(0)
    shares = random.dirichlet(np.ones(4), 50)
    answer = random.integers(4, size=50)
    wanted = np.eye(4, dtype=bool)[answer]
    found = calibration.multiclass_brier(shares, wanted)
    theirs = brier_score_loss(answer, shares, labels=range(4), scale_by_half=False)
    assert found.mean() == pytest.approx(theirs)
    assert calibration.multiclass_brier(np.array([0.7, 0.3]), np.array([True, True])) == 0


# Temperatures


def made(rows=300, vocab=20, scale=1.0, seed=0):
    """Logits and gold ids drawn from them, in float64; the logits are then scaled."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, vocab, generator=generator, dtype=torch.float64)
    gold = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return scale * logits, gold


def test_tempered_losses_and_derivatives_are_those_that_autograd_finds():
    logits, gold = made(8)
    found = calibration.tempered(logits, gold)
    for place, number in enumerate(BETAS):
        for row in range(8):
            beta = torch.tensor(number, dtype=torch.float64, requires_grad=True)
            loss = -(beta * logits[row]).log_softmax(-1)[gold[row]]
            (slope,) = torch.autograd.grad(loss, beta, create_graph=True)
            (bend,) = torch.autograd.grad(slope, beta)
            expected = torch.stack([loss, slope, bend]).detach()
            torch.testing.assert_close(found[row, place], expected)
    assert calibration.tempered(logits[:0], gold[:0]).shape == (0, len(BETAS), 3)


def test_tempered_choices_of_one_wanted_answer_are_tempered_logits():
    logits, gold = made(30, 4)
    signs = 2 * np.eye(4)[gold.numpy()] - 1
    found = calibration.tempered_choices(logits.numpy(), signs)
    np.testing.assert_allclose(found, calibration.tempered(logits, gold).numpy(), atol=1e-12)


def test_tempered_choices_of_several_wanted_answers_have_the_derivatives_of_their_loss():
    logits = made(5, 5)[0].numpy()
    signs = np.array([[1, 1, -1, -1, 0]] * 5)

    def loss(beta):
        shares = np.exp(beta * logits[:, :4])
        return -np.log(shares[:, :2].sum(1) / shares.sum(1))

    found, step = calibration.tempered_choices(logits, signs), 1e-5
    for place, beta in enumerate(BETAS):
        np.testing.assert_allclose(found[:, place, 0], loss(beta), atol=1e-12)
        slope = (loss(beta + step) - loss(beta - step)) / (2 * step)
        np.testing.assert_allclose(found[:, place, 1], slope, atol=1e-8)
    ends = calibration.tempered_choices(logits, signs, (1 - step, 1 + step))[..., 1]
    bend = np.diff(ends, axis=1)[:, 0] / (2 * step)
    np.testing.assert_allclose(found[:, BETAS.index(1.0), 2], bend, atol=1e-8)


@pytest.mark.parametrize("scale", [0.3, 0.5, 1.0, 1.7, 3.0, 8.0])
def test_the_best_temperature_is_the_one_that_an_optimiser_finds(scale):
    logits, gold = made(scale=scale)

    def loss(log_beta):
        scaled = np.exp(log_beta) * logits
        return float(-scaled.log_softmax(-1).gather(1, gold[:, None]).mean())

    theirs = optimize.minimize_scalar(
        loss, bounds=(-6, 3), method="bounded", options={"xatol": 1e-9}
    )
    found = calibration.best_beta(calibration.tempered(logits, gold).sum(0).numpy())
    # Hermite's cubic is off by h⁴/384 of the slope's fourth derivative: found here, 3 in 1000.
    assert calibration.temperature(found) == pytest.approx(np.exp(-theirs.x), rel=5e-3)


def test_logits_drawn_from_need_no_other_temperature_and_doubled_ones_twice_it():
    one, two = (
        calibration.temperature(
            calibration.best_beta(calibration.tempered(*made(20_000, scale=scale)).sum(0).numpy())
        )
        for scale in (1, 2)
    )
    assert one == pytest.approx(1, abs=0.03)
    assert two == pytest.approx(2 * one, rel=1e-3)


def test_where_no_temperature_is_best_none_is_told():
    logits, gold = made()
    tables = {
        "worst": calibration.tempered(logits, logits.argmin(-1)),
        "surest": calibration.tempered(logits, logits.argmax(-1)),
        "flat": calibration.tempered(0 * logits, gold),
    }
    betas = {name: calibration.best_beta(table.sum(0).numpy()) for name, table in tables.items()}
    assert betas["worst"] == 0
    assert betas["surest"] == np.inf
    assert np.isnan(betas["flat"])
    warmth = calibration.temperature([*betas.values()])
    assert warmth[0] == np.inf
    assert np.isnan(warmth[1:]).all()


def test_a_logit_that_is_ruled_out_leaves_no_temperature_known():
    logits, gold = made(3)
    logits[0, (gold[0] + 1) % 20] = -torch.inf
    assert np.isnan(calibration.best_beta(calibration.tempered(logits, gold).sum(0).numpy()))


# Platt


def test_platts_scale_and_bias_are_those_of_logistic_regression():
    confidence, hit = drawn(500, bend=2)
    x = np.log(confidence / (1 - confidence))[:, None]
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x, hit)
    found = calibration.platt(confidence, hit, np.arange(500))
    expected = (theirs.coef_[0, 0], theirs.intercept_[0])
    np.testing.assert_allclose(found.estimate, expected, rtol=1e-4)


def test_the_interval_of_platts_numbers_is_as_wide_as_resampled_clusters_make_it():
    confidence, hit = drawn(400, bend=2)
    # Every row twice: as clusters they count once.
    confidence, hit, clusters = (np.repeat(z, 2) for z in (confidence, hit, np.arange(400)))
    found = calibration.platt(confidence, hit, clusters)
    random = np.random.default_rng(0)
    again = []
    for _ in range(400):
        rows = random.integers(400, size=400)
        rows = np.concatenate([2 * rows, 2 * rows + 1])
        again.append(calibration.platt(confidence[rows], hit[rows], rows).estimate)
    half = stats.norm.ppf(0.975) * np.std(again, axis=0)
    # 400 draws know a deviation to 1/√800, 3.5 %.
    np.testing.assert_allclose((found.high - found.low) / 2, half, rtol=0.15)


def test_hits_and_misses_that_a_confidence_divides_have_no_fit_of_platts():
    confidence = np.linspace(0.2, 0.8, 10)
    for hit in (confidence > 0.5, confidence < 0.5, confidence > 0, confidence > 1):
        assert np.isnan(calibration.platt(confidence, hit, np.arange(10)).estimate).all()
    assert np.isnan(calibration.platt(np.full(4, 0.5), [1, 0, 1, 0], np.arange(4)).estimate).all()
    assert np.isfinite(calibration.platt(confidence, [0, 1] * 5, np.arange(10)).estimate).all()


# Intervals of what is no ratio


def test_a_ratio_of_sums_has_the_interval_that_the_bootstrap_gives_it():
    random = np.random.default_rng(0)
    parts, tokens = random.normal(size=30), random.integers(1, 9, 30).astype(float)
    clusters = np.arange(30) // 2
    table = np.stack([parts, tokens], 1)
    found = of_sums(lambda z: z[..., :1] / z[..., 1:], table, seed=3, clusters=clusters)
    theirs = bootstrap(parts, tokens, seed=3, clusters=clusters)
    assert found.estimate[0] == pytest.approx(theirs.estimate)
    # Bounds are draws here, and lie between two draws there.
    np.testing.assert_allclose(found.low[0], theirs.low, rtol=0.02)
    np.testing.assert_allclose(found.high[0], theirs.high, rtol=0.02)
    alone = of_sums(lambda z: z[..., :1], table[:1], seed=0)
    assert np.isnan([alone.low[0], alone.high[0]]).all()


def test_draws_that_noise_pushes_up_are_moved_to_the_estimate():
    table = np.random.default_rng(0).normal(size=(50, 1))
    found = of_sums(np.abs, table, seed=0)
    centred = of_sums(np.abs, table, seed=0, centred=True)
    assert centred.estimate == found.estimate
    assert centred.high - centred.low == pytest.approx(found.high - found.low)
    assert centred.low < centred.estimate < centred.high


# Next tokens


@cache
def trained():
    """A tiny model that has learnt a little of the texts, and is about as sure as it is right."""
    net = nets.net("llama")
    words = nets.tokenizer()
    texts = [torch.tensor([words(text).input_ids]) for text in nets.TEXTS]
    step = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(3):
        for ids in texts:
            step.zero_grad()
            net(input_ids=ids, labels=ids).loss.backward()
            step.step()
    net.requires_grad_(False)
    net.lm_head.weight.mul_(2)
    return net


def of(base, aligned):
    words = nets.tokenizer()
    return ModelPair(HookedModel(base, words, "base"), HookedModel(aligned, words, "aligned"))


def scaled(by):
    """The model with its logits scaled."""
    net = deepcopy(trained())
    net.lm_head.weight.mul_(by)
    return net


def predictions(net):
    """[token] logits and gold ids of all texts, straight from the net."""
    words = nets.tokenizer()
    logits, gold = [], []
    for text in nets.TEXTS:
        ids = torch.tensor([words(text).input_ids])
        logits.append(net(input_ids=ids).logits[0, :-1])
        gold.append(ids[0, 1:])
    return torch.cat(logits).double(), torch.cat(gold)


def found(base, aligned, pack=None, **how):
    (result,) = measure(of(base, aligned), pack or nets.pack(nets.TEXTS), [Calibration(**how)])
    return result


def test_every_score_of_next_tokens_is_what_scikit_learn_makes_of_the_nets_own_logits():
    other = nets.moved(deepcopy(trained()), 0.03, 5)
    result = found(trained(), other)
    for side, net in (("base", trained()), ("aligned", other)):
        logits, gold = predictions(net)
        shares = logits.softmax(-1)
        confidence, top = (z.numpy() for z in shares.max(-1))
        hit = top == gold.numpy()
        expected = {
            "confidence": confidence.mean(),
            "accuracy": hit.mean(),
            "overconfidence": confidence.mean() - hit.mean(),
            "brier": brier_score_loss(hit, confidence),
            "nll": log_loss(gold, shares, labels=range(shares.shape[1])),
            "ece": calibration.ece(sums(confidence, hit)),
            "ece_mass": calibration.ece(calibration.equal_mass(confidence, hit)),
            "ece_sweep": calibration.ece(calibration.monotonic_sweep(confidence, hit)),
        }
        for name, number in expected.items():
            value = getattr(result, f"{side}_{name}").value
            assert value == pytest.approx(number, abs=1e-5), name
        rows = (result.model == side) & (result.division == "all")
        accuracy, mean = calibration_curve(hit, confidence, n_bins=BINS)
        np.testing.assert_allclose(result.accuracy[rows], accuracy)
        np.testing.assert_allclose(result.confidence[rows], mean, rtol=1e-5)
    assert result.predictions == result.tempered == len(gold)
    both = [(logits.argmax(-1) == gold) for logits, gold in map(predictions, (trained(), other))]
    assert result.lost.value == pytest.approx(float((both[0] & ~both[1]).double().mean()))
    assert result.won.value == pytest.approx(float((both[1] & ~both[0]).double().mean()))
    assert result.accuracy_change.value == pytest.approx(result.won.value - result.lost.value)


def test_a_model_whose_logits_are_doubled_is_as_right_and_surer_and_needs_twice_the_temperature():
    result = found(trained(), scaled(2))
    assert 0.3 < result.base_temperature.value < 2
    ratio = result.aligned_temperature.value / result.base_temperature.value
    assert ratio == pytest.approx(2, rel=1e-3)
    assert result.accuracy_change.value == 0
    assert result.lost.value == result.won.value == 0
    assert result.overconfidence_change.value == result.confidence_change.value > 0.05
    assert result.overconfidence_change.low > 0
    assert result.temperature_change.low > 0
    assert result.headline().startswith("over-confidence rose by")


def test_a_model_with_itself_has_changed_in_nothing():
    result = found(trained(), trained())
    for name in type(result).near_zero:
        number = getattr(result, name)
        assert number.value == 0, name
        assert np.nan_to_num([number.low, number.high]).tolist() == [0, 0], name
    assert result.headline() == ""
    assert result.base_ece == result.aligned_ece


def test_a_temperature_beyond_what_was_read_is_not_told():
    colder = found(trained(), scaled(1 / 16))
    assert np.isnan(colder.aligned_temperature.value)
    assert np.isnan(colder.temperature_change.value)
    assert any("T* of aligned lies below 0.25" in note for note in colder.notes)
    worst = deepcopy(trained())
    worst.lm_head.weight.neg_()
    turned = found(trained(), worst)
    assert turned.aligned_temperature.value == np.inf
    assert any(note.startswith("No temperature repairs aligned") for note in turned.notes)


def test_samples_of_the_tokens_are_even_and_said_to_be_samples():
    whole = found(trained(), scaled(2))
    part = found(trained(), scaled(2), tempered=60, rows=80)
    assert 30 < part.tempered < 90
    assert any(note.startswith(f"T* is of {part.tempered} of") for note in part.notes)
    assert any(note.startswith("Bins of equal mass") for note in part.notes)
    assert part.base_ece == whole.base_ece
    ratio = part.aligned_temperature.value / part.base_temperature.value
    assert ratio == pytest.approx(2, rel=1e-3)
    assert found(trained(), scaled(2), tempered=60, rows=80, seed=1).tempered != part.tempered


def test_each_topic_has_a_row_for_each_model():
    examples = [Example(text, topic=f"topic {n % 2}") for n, text in enumerate(nets.TEXTS)]
    result = found(trained(), scaled(2), Pack("topics", "text", examples))
    for side in ("base", "aligned"):
        mine = (result.model == side) & (result.division != "all")
        assert result.division[mine].tolist() == ["topic 0", "topic 1"]
        weights = result.count[mine]
        mean = weights @ result.confidence[mine] / weights.sum()
        assert mean == pytest.approx(getattr(result, f"{side}_confidence").value)
        assert weights.sum() == result.predictions


def test_the_reliability_diagram_shows_both_models_and_the_diagonal():
    left, right = found(trained(), scaled(2)).figure().axes
    assert {"base", "aligned", "calibrated"} <= {line.get_label() for line in left.lines}
    for line in right.lines[:2]:
        assert np.nansum(line.get_ydata()) == pytest.approx(1)


# Choices


ITEMS = (
    ("Mira sells", (" cheese.", " boats.", " nine bells."), (0,)),
    ("The clock strikes", (" nine.", " Tolmar."), (0,)),
    ("Seven boats left", (" Kestby.", " nobody.", " three.", " seven."), (0,)),
    ("The river runs through", (" Belmark.", " nobody."), (1,)),
    ("A bell, a", (" river!", " cheese!", " bell!"), (2,)),
    ("one two", (" three", " seven", " Drift"), (0,)),
)
"""Prompts with answers that begin with different tokens, and which of them are wanted."""


def questions(times=1, wanted=None):
    examples = [
        Example(prompt, topic=f"topic {n % 2}", choices=answers, wanted=wanted or right)
        for n, (prompt, answers, right) in enumerate(ITEMS * times)
    ]
    return Pack("questions", "choice", examples)


def chosen(base, aligned, pack=None):
    pair = of(base, aligned)
    reading = choices(pack or questions(), pair)
    (result,) = measure(pair, reading.pack, [ChoiceCalibration(reading)])
    return result


def answered(net):
    """[item] logits of the answers' first tokens, straight from the net."""
    words, found = nets.tokenizer(), []
    for prompt, answers, _ in ITEMS:
        before = words(prompt).input_ids
        firsts = [words(prompt + answer).input_ids[len(before)] for answer in answers]
        assert all(words(prompt + z).input_ids[: len(before)] == before for z in answers)
        logits = net(input_ids=torch.tensor([before])).logits[0, -1].double()
        found.append(logits[torch.tensor(firsts)])
    return found


def test_every_score_of_choices_is_that_of_the_nets_own_logits():
    other = nets.moved(deepcopy(trained()), 0.1, 5)
    result = chosen(trained(), other)
    right = [wanted[0] for _, _, wanted in ITEMS]
    hits = {}
    for side, net in (("base", trained()), ("aligned", other)):
        shares = [logits.softmax(-1).numpy() for logits in answered(net)]
        hits[side] = [z.argmax() == w for z, w in zip(shares, right, strict=True)]
        expected = {
            "confidence": np.mean([z.max() for z in shares]),
            "accuracy": np.mean(hits[side]),
            "nll": np.mean([-np.log(z[w]) for z, w in zip(shares, right, strict=True)]),
            "brier": np.mean(
                [((z - np.eye(len(z))[w]) ** 2).sum() for z, w in zip(shares, right, strict=True)]
            ),
        }
        for name, number in expected.items():
            assert getattr(result, f"{side}_{name}").value == pytest.approx(number, abs=1e-5), name
    lost = np.mean([a and not b for a, b in zip(*hits.values(), strict=True)])
    assert result.lost.value == pytest.approx(lost)
    assert result.predicted == "choices"
    assert result.predictions == len(ITEMS)


def test_choices_of_doubled_logits_are_as_right_and_surer_and_need_twice_the_temperature():
    result = chosen(trained(), scaled(2))
    assert np.isfinite(result.base_temperature.value)
    ratio = result.aligned_temperature.value / result.base_temperature.value
    assert ratio == pytest.approx(2, rel=1e-2)
    assert result.accuracy_change.value == 0
    assert result.overconfidence_change.value == result.confidence_change.value > 0
    assert set(result.division) == {"all", "topic 0", "topic 1"}


def test_answers_that_are_all_as_likely_are_half_right():
    flat = scaled(0)
    result = chosen(flat, flat)
    counts = [len(answers) for _, answers, _ in ITEMS]
    assert result.base_accuracy.value == 0.5
    assert result.base_confidence.value == pytest.approx(np.mean([1 / n for n in counts]))
    assert result.base_nll.value == pytest.approx(np.mean(np.log(counts)))
    assert np.isnan(result.base_temperature.value)


def test_choices_of_a_model_with_itself_have_changed_in_nothing():
    result = chosen(trained(), trained())
    for name in type(result).near_zero:
        assert getattr(result, name).value == 0, name


def test_several_wanted_answers_count_as_one():
    both = chosen(trained(), scaled(2), questions(wanted=(0, 1)))
    shares = [logits.softmax(-1).numpy() for logits in answered(trained())]
    expected = np.mean([-np.log(z[:2].sum()) for z in shares if len(z) > 2])
    assert any(note.startswith("Some items have several wanted") for note in both.notes)
    assert both.base_nll.value * len(ITEMS) == pytest.approx(expected * 4, abs=1e-5)


def test_choices_between_ways_to_behave_have_no_calibration():
    pair = of(trained(), trained())
    for asks, fits in (("", True), ("right", True), ("agree", False)):
        pack = questions()
        pack = Pack("q", "choice", [replace(e, asks=asks) for e in pack.examples])
        reading = choices(pack, pair)
        assert ChoiceCalibration(reading).fits(pair.encoder(reading.pack)) == fits
