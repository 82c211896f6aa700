"""Masked language models: what they see, and the likelihood that they give to a text."""

from copy import deepcopy

import numpy as np
import pytest
import torch

import nets
from driftlens.diagnostics.drift import Drift
from driftlens.diagnostics.forgetting import Forgetting
from driftlens.diagnostics.layers import LayerForgetting
from driftlens.errors import DriftlensError
from driftlens.metric import measure
from driftlens.models import ModelPair, Site, Wants
from driftlens.models.hooks import HookedModel

OUT = Wants(frozenset({"out"}), None)
masked = pytest.mark.parametrize("family", nets.MASKED)
LONG = " ".join(nets.TEXTS)


def pseudo(model, text):
    """[token] log-probability of each token of the text, masked in its turn, by the net itself."""
    words = model.tokenizer
    ids = words(text, return_tensors="pt")["input_ids"]
    found = []
    for place in range(1, ids.shape[1] - 1):
        copy = ids.clone()
        copy[0, place] = words.mask_token_id
        with torch.no_grad():
            logits = model.net(input_ids=copy).logits[0, place]
        found.append(logits.log_softmax(-1)[ids[0, place]])
    return torch.stack(found)


def frame_of(pair, wants=OUT, texts=nets.TEXTS):
    encoder = pair.encoder(nets.pack(texts))
    return pair.frame(encoder, sorted(encoder.plan, key=lambda w: w.example), wants)


@masked
def test_pseudo_likelihoods_are_those_of_a_naive_loop(family):
    pair = nets.pair(family)
    frame = frame_of(pair)
    for model, found in zip((pair.base, pair.aligned), frame.likelihoods, strict=True):
        naive = torch.cat([pseudo(model, text) for text in nets.TEXTS]).double()
        # Other rows in the batch, and padding: float32.
        torch.testing.assert_close(found, naive, rtol=0, atol=1e-5)


@masked
def test_pseudo_likelihoods_of_two_tokenizers_add_up_to_those_of_the_texts(family):
    coarse = nets.enclosing(merges=20)
    pair = ModelPair(nets.model(family), HookedModel(nets.net(family, seed=1), coarse, "aligned"))
    frame = frame_of(pair)
    assert not frame.encoder.same
    for model, found in zip((pair.base, pair.aligned), frame.likelihoods, strict=True):
        for number, text in enumerate(nets.TEXTS):
            mine = float(found[frame.scored.document == number].sum())
            assert mine == pytest.approx(float(pseudo(model, text).double().sum()), abs=1e-4)


@masked
def test_added_tokens_are_not_scored_and_every_other_is(family):
    model = nets.model(family)
    batch = nets.batch(model)
    words = model.tokenizer
    for row, text in enumerate(nets.TEXTS):
        mine = batch.target[1][batch.target[0] == row]
        assert mine.tolist() == list(range(1, len(words(text)["input_ids"]) - 1))


@masked
def test_a_long_text_is_read_in_windows_that_begin_and_end_as_the_model_expects(family):
    model = nets.model(family)
    pair = ModelPair(model, model)
    words = model.tokenizer
    encoder = pair.encoder(nets.pack([LONG]), 32)
    batch, _, units = encoder.encode(encoder.plan)
    assert units.scored.sum() == len(batch.targets) == len(words(LONG)["input_ids"]) - 2
    assert sorted(units.position) == list(range(len(words(LONG)["input_ids"])))
    for ids, mask in zip(batch.ids, batch.mask, strict=True):
        row = ids[mask].tolist()
        assert len(row) <= 32
        assert (row[0], row[-1]) == (words.bos_token_id, words.eos_token_id)
        assert words.eos_token_id not in row[1:-1]
    frame = pair.frame(encoder, encoder.plan)
    assert len(frame.likelihoods[0]) == units.scored.sum()


@masked
def test_the_longest_text_that_a_model_reads_fits_its_positions(family):
    model = nets.model(family)
    pair = ModelPair(model, model)
    encoder = pair.encoder(nets.pack([LONG * 2]))
    assert max(window.length for window in encoder.plan) == model.context
    assert model.context == (93 if family == "roberta" else 96)
    pair.frame(encoder, encoder.plan[:1])


@masked
def test_activations_are_those_of_the_unmasked_text(family):
    model = nets.model(family)
    batch = nets.batch(model)
    trace = model.trace(batch, OUT)
    with torch.no_grad():
        own = model.net(
            input_ids=batch.ids, attention_mask=batch.mask.long(), output_hidden_states=True
        ).hidden_states
    for layer in range(model.depth):
        found = trace.activations[Site(layer)][batch.mask]
        assert torch.equal(found, own[layer + 1][batch.mask])


@masked
def test_the_readout_is_the_nets_own_head(family):
    model = nets.model(family)
    batch = nets.batch(model)
    with torch.no_grad():
        own = model.net(input_ids=batch.ids, attention_mask=batch.mask.long()).logits[batch.mask]
    found = model.readout(model.trace(batch).last[batch.mask])
    torch.testing.assert_close(found, own, rtol=0, atol=1e-5)


@masked
def test_drift_and_forgetting_of_a_masked_pair(family, pack):
    pair = nets.pair(family)
    drift, forgetting = measure(pair, pack, [Drift(), Forgetting()], rows=4)
    likelihoods = [
        torch.cat([pseudo(model, text) for text in nets.TEXTS]).double()
        for model in (pair.base, pair.aligned)
    ]
    rise = float((likelihoods[0] - likelihoods[1]).mean())
    assert forgetting.loss_rise.value == pytest.approx(rise, abs=1e-5)
    assert forgetting.scored == len(likelihoods[0])
    assert np.all(drift.relative_l2 > 0)


@masked
def test_a_masked_model_does_not_drift_from_itself(family, pack):
    model = nets.model(family)
    drift, forgetting = measure(ModelPair(model, model), pack, [Drift(), Forgetting()])
    assert not drift.relative_l2.any()
    assert forgetting.loss_rise.value == 0


@pytest.mark.parametrize("token", ["mask_token", "pad_token"])
@pytest.mark.parametrize("side", ["base", "aligned"])
def test_a_masked_model_whose_tokenizer_lacks_a_token_is_refused_by_its_name(token, side, pack):
    words = {"base": nets.enclosing(), "aligned": nets.enclosing()}
    words[side] = deepcopy(words[side])
    setattr(words[side], token, None)
    pair = ModelPair(*(HookedModel(nets.net("bert"), w, name) for name, w in words.items()))
    told = rf"a {token} in the tokenizer of {side}.*found none.*Set tokenizer\.{token}"
    with pytest.raises(DriftlensError, match=told):
        measure(pair, pack, [Forgetting()])


def test_what_needs_a_model_that_continues_text_refuses_a_masked_one(pack):
    pair = nets.pair("bert")
    with pytest.raises(DriftlensError, match=r"continue text.*fills in masked tokens.*Leave out"):
        measure(pair, pack, [LayerForgetting()])
    gradients = Wants(frozenset({"out"}), None, gradients=True)
    with pytest.raises(DriftlensError, match=r"to take gradients of.*masked tokens.*Leave out"):
        pair.base.trace(nets.batch(pair.base), gradients)
