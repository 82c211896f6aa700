"""Leanings between answers that were amplified, pushed or levelled, as they were planted."""

from copy import deepcopy

import numpy as np
import pytest
import torch
import transformers as hf
from scipy.special import logit
from scipy.stats import entropy

import nets
from driftlens.diagnostics.collapse import PreferenceCollapse
from driftlens.errors import DriftlensError
from driftlens.formulas.variety import amplified, best_of_n_kl
from driftlens.metric import measure
from driftlens.models import ModelPair
from driftlens.models.hooks import HookedModel
from driftlens.packs import Example, Pack
from driftlens.sweeps import choices

ROUNDED = 2e-5
"""Log-odds are differences of logits in float32."""


def base():
    """A random model whose head has a bias, small enough to leave most answers open."""
    net = hf.PhiForCausalLM(hf.PhiConfig(**nets.SHAPE)).eval()
    return nets.moved(net, 0.15, 3)


def items(asks="agree", **card):
    asked = [f"{text[:12]}:" for text in nets.TEXTS]
    examples = [Example(text, choices=("A", "M"), wanted=(0,), asks=asks) for text in asked]
    return Pack("leanings", "choice", examples, card)


def found(aligned, preference=None):
    net = base()
    words = nets.tokenizer()
    pair = ModelPair(HookedModel(net, words, "b"), HookedModel(aligned(deepcopy(net)), words, "a"))
    reading = choices(items(), pair)
    (result,) = measure(pair, reading.pack, [PreferenceCollapse(reading, preference)])
    return result, pair, reading


def sharper(factor):
    def of(net):
        with torch.no_grad():
            net.lm_head.weight *= factor
            net.lm_head.bias *= factor
        return net

    return of


def pushed(nats):
    def of(net):
        with torch.no_grad():
            wanted = nets.tokenizer()("A", add_special_tokens=False).input_ids[0]
            net.lm_head.bias[wanted] += nats
        return net

    return of


@pytest.mark.parametrize("factor", [0.5, 2.0, 3.0])
def test_logits_that_are_stretched_are_a_slope_and_no_push(factor):
    result, *_ = found(sharper(factor))
    assert result.slope.value == pytest.approx(factor, abs=ROUNDED)
    assert result.intercept.value == pytest.approx(0, abs=ROUNDED)
    assert np.sign(result.majority_change.value) == np.sign(factor - 1)
    assert np.sign(result.answer_entropy_change.value) == -np.sign(factor - 1)
    assert result.turned.value == 0
    assert ("collapsed" in result.headline()) == (factor > 1)


def test_a_reward_is_a_push_that_leaves_the_slope_alone_and_tells_its_beta():
    p, beta = 0.7, 0.25
    push = logit(p) / beta
    result, *_ = found(pushed(push), p)
    assert result.slope.value == pytest.approx(1, abs=ROUNDED)
    assert result.shift.value == pytest.approx(push, abs=ROUNDED)
    assert result.intercept.value == pytest.approx(push, abs=ROUNDED)
    assert result.inverse_beta.value == pytest.approx(1 / beta, abs=1e-3)
    np.testing.assert_allclose(result.aligned, amplified(result.base, p, beta), atol=ROUNDED)
    unmatched = np.abs(result.aligned - p).mean()
    assert result.aligned_unmatched.value == pytest.approx(unmatched)
    assert result.preference == p


def test_the_kl_is_that_of_the_first_token_over_the_whole_vocabulary():
    result, pair, _ = found(pushed(2.0))
    for row, example in enumerate(items().examples):
        ids = torch.tensor([nets.tokenizer()(example.text).input_ids])
        ours, theirs = (
            model.logits(ids)[0, -1].detach().double().softmax(0).numpy()
            for model in (pair.base, pair.aligned)
        )
        assert result.kl[row] == pytest.approx(entropy(theirs, ours), abs=1e-5)
    assert result.kl_aligned_base.value == pytest.approx(result.kl.mean())
    assert best_of_n_kl(result.best_of_n.value) == pytest.approx(result.kl_aligned_base.value)


def test_the_line_is_numpys():
    def turned(net):
        return nets.moved(net, 0.05, 9)

    result, *_ = found(turned)
    slope, intercept = np.polyfit(logit(result.base), logit(result.aligned), 1)
    assert result.slope.value == pytest.approx(slope, rel=1e-6)
    assert result.intercept.value == pytest.approx(intercept, abs=1e-6)
    assert result.slope.low < slope < result.slope.high


def test_a_model_with_itself_leans_as_before():
    result, *_ = found(lambda net: net)
    assert result.slope.value == 1
    for name in ("shift", "intercept", "majority_change", "turned", "kl_aligned_base"):
        assert getattr(result, name).value == 0, name
    assert result.best_of_n.value == 1
    assert result.headline() == ""


def test_without_a_preference_there_is_no_beta_and_that_is_said():
    result, *_ = found(pushed(1.0))
    assert np.isnan(result.inverse_beta.value)
    assert np.isnan(result.base_unmatched.value)
    assert any("not known" in note for note in result.notes)


def test_the_card_says_the_preference():
    pair = nets.pair("llama")
    reading = choices(items(preference=0.6), pair)
    (by_card,) = measure(pair, reading.pack, [PreferenceCollapse(reading)])
    assert by_card.preference == 0.6


@pytest.mark.parametrize("wrong", [0, 1, 1.5, "most", True])
def test_a_preference_that_is_no_share_is_refused(wrong):
    pair = nets.pair("llama")
    reading = choices(items(preference=wrong), pair)
    with pytest.raises(DriftlensError, match="between 0 and 1"):
        measure(pair, reading.pack, [PreferenceCollapse(reading)])


def test_to_be_surer_of_what_is_right_is_no_collapse():
    pair = nets.pair("llama")
    for asks, fits in (("agree", True), ("right", False)):
        reading = choices(items(asks), pair)
        assert PreferenceCollapse(reading).fits(pair.encoder(reading.pack)) == fits


def test_nothing_seen_is_told_as_nothing():
    pair = nets.pair("llama")
    reading = choices(items(), pair)
    metric = PreferenceCollapse(reading)
    metric.begin(pair, pair.encoder(reading.pack))
    result = metric.compute()
    assert np.isnan(result.slope.value)
    assert result.figure() is None
    assert result.summary().endswith(".")
