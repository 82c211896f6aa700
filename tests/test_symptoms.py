"""Which layers made the aligned model surer: shares that add up, of changes made on purpose."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

import nets
from driftlens.diagnostics import Calibration, Entropy, LayerForgetting, SymptomLayers
from driftlens.diagnostics.symptoms import SYMPTOMS
from driftlens.formulas.divergence import compare, gold, said
from driftlens.metric import measure
from driftlens.models import ModelPair
from driftlens.models.hooks import HookedModel

PACK = nets.pack(nets.TEXTS)
PLACES = {
    "embed": ["embed_tokens"],
    "0": ["layers.0."],
    "1": ["layers.1."],
    "2": ["layers.2."],
    "head": ["model.norm", "lm_head"],
}
ROUNDED = 1e-6
"""What float32 leaves where two orders of the same arithmetic meet."""


@cache
def damaged(*names, size=0.1):
    """A tiny model, and the same with only some weights moved."""
    base = nets.net("llama")
    aligned = deepcopy(base)
    for seed, name in enumerate(names):
        nets.moved(aligned, size, seed + 1, only=name)
    words = nets.tokenizer()
    return ModelPair(HookedModel(base, words, "base"), HookedModel(aligned, words, "aligned"))


@cache
def found(*names):
    return measure(damaged(*names), PACK, [SymptomLayers()])[0]


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("vocab", [7, 5000])
def test_what_one_model_says_is_what_the_comparison_says_of_it_to_the_last_bit(kind, vocab):
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(90, vocab, generator=generator)
    target = torch.randint(vocab, (90,), generator=generator)
    logits[:30].scatter_(1, target[:30, None], logits[:30].amax(1, keepdim=True) + 1)
    # Ties count as hits.
    logits[30:40].scatter_(1, target[30:40, None], logits[30:40].amax(1, keepdim=True))
    logits = logits.to(kind)
    mine, both = said(logits, target), compare(logits, logits, target, target)
    assert torch.equal(mine.logprob, gold(logits, target))
    assert torch.equal(mine.logprob, both.base_logprob)
    assert torch.equal(mine.entropy, both.base_entropy)
    assert torch.equal(mine.top_logprob, both.base_top_logprob)
    assert torch.equal(mine.hit, both.base_rank == 0)
    assert mine.hit[:40].all()
    assert not mine.hit.all()
    assert len(said(logits[:0], target[:0]).hit) == 0


@pytest.mark.parametrize("place", PLACES)
def test_the_one_place_that_was_changed_has_the_whole_of_every_symptom(place):
    result = found(*PLACES[place])
    here = result.stage == place
    before = np.arange(len(here)) < here.argmax()
    assert abs(result.entropy_change.value) > 1e-4
    assert abs(result.confidence_change.value) > 1e-4
    for name in SYMPTOMS:
        shares, restored = getattr(result, name), getattr(result, f"{name}_restored")
        whole = getattr(result, f"{name}_change").value
        np.testing.assert_allclose(shares[here], whole, atol=ROUNDED)
        np.testing.assert_allclose(shares[~here], 0, atol=ROUNDED)
        assert (restored[before] == 0).all(), name


@pytest.mark.parametrize("names", [("layers.0.", "layers.2."), ("",)])
def test_the_shares_of_every_symptom_add_up_to_its_change_in_both_orders(names):
    result = found(*names)
    for name in SYMPTOMS:
        whole = getattr(result, f"{name}_change").value
        assert getattr(result, name).sum() == pytest.approx(whole, abs=1e-12), name
        assert getattr(result, f"{name}_restored").sum() == pytest.approx(whole, abs=1e-12), name
    assert result.residual.value < 1e-12
    np.testing.assert_allclose(
        result.overconfidence, result.confidence - result.accuracy, atol=1e-12
    )
    assert np.abs(result.entropy - result.entropy_restored).max() > 1e-3


def test_the_changes_are_those_that_calibration_and_entropy_find():
    mine, calibration, entropy = measure(
        damaged(""), PACK, [SymptomLayers(), Calibration(), Entropy()]
    )
    for name in ("overconfidence", "confidence", "accuracy"):
        theirs = getattr(calibration, f"{name}_change")
        np.testing.assert_allclose(getattr(mine, f"{name}_change"), theirs, atol=1e-9)
    np.testing.assert_allclose(mine.entropy_change, entropy.entropy_change, atol=1e-9)


def test_exchanging_the_models_turns_the_sign_of_every_share():
    ours, pair = found(""), damaged("")
    theirs = measure(ModelPair(pair.aligned, pair.base), PACK, [SymptomLayers()])[0]
    for name in SYMPTOMS:
        np.testing.assert_allclose(getattr(theirs, name), -getattr(ours, name), atol=1e-12)


def test_a_share_is_what_the_weights_swapped_up_to_its_block_change():
    pair = damaged("")
    result = found("")
    prefixes = ["nothing"], ["embed"], ["embed", "layers.0."], ["embed", "layers.0.", "layers.1."]
    entropies = []
    for names in prefixes:
        hybrid = deepcopy(pair.aligned.net)
        ours = {n: w for n, w in pair.base.net.state_dict().items() if any(p in n for p in names)}
        hybrid.load_state_dict(ours, strict=False)
        model = HookedModel(hybrid, nets.tokenizer(), "hybrid")
        entropies.append(measure(ModelPair(pair.base, model), PACK, [Entropy()])[0])
    changes = [one.entropy_change.value for one in entropies]
    np.testing.assert_allclose(result.entropy_restored[:3], -np.diff(changes), atol=1e-5)


def test_no_layer_of_a_model_has_made_it_surer_than_itself():
    pair = damaged("")
    result = measure(ModelPair(pair.base, pair.base), PACK, [SymptomLayers()])[0]
    for name in type(result).near_zero:
        assert not np.any(getattr(result, name)), name
    assert "no stage has a share" in result.summary()
    assert result.headline() == ""


def test_the_sweep_is_run_once_for_forgetting_and_for_symptoms(monkeypatch):
    pair, count = damaged(""), [0]
    resume = HookedModel.resume

    def counted(*given, **how):
        count[0] += 1
        return resume(*given, **how)

    monkeypatch.setattr(HookedModel, "resume", counted)
    measure(pair, PACK, [LayerForgetting()])
    alone = count[0]
    measure(pair, PACK, [LayerForgetting(), SymptomLayers()])
    assert count[0] == 2 * alone > 0


def test_the_layers_of_the_entropy_can_be_asked_for_by_name():
    result = found("layers.1.")
    shares = result.of_layers()
    assert list(shares) == ["embed", "0", "1", "2", "head"]
    assert shares["1"].value == pytest.approx(result.entropy_change.value, abs=ROUNDED)
    assert "block 1" in result.summary()
    if result.entropy_change.low * result.entropy_change.high > 0:
        assert "block 1" in result.headline()
    assert replace(result, floor={"entropy_change": 9.0}).headline() == ""


def test_both_symptoms_are_drawn_by_stage():
    left, right = found("").figure().axes
    assert left.get_ylabel() == "over-confidence [probability]"
    assert right.get_ylabel() == "entropy [nats/token]"
