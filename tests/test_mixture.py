"""Mixtures of a pair's weights: their ends, what lies between, and that nothing else is touched."""

from copy import deepcopy

import numpy as np
import pytest
import torch

import nets
from driftlens.errors import DriftlensError
from driftlens.models import ModelPair
from driftlens.models.hooks import HookedModel
from driftlens.models.mixture import mixture
from driftlens.models.stored import Stored

# peft asks transformers for an attribute by a name that is about to go.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

IDS = torch.arange(12)[None] % 64
ROUNDED = 1e-6
"""What float32 leaves of logits near 1 where one sum is taken in another order."""


def mixed(pair):
    return mixture(pair.base, pair.aligned)


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.net.named_parameters()}


def held(model):
    return {n: w.detach().clone() for n, w in model.net.named_parameters(remove_duplicate=False)}


def alike(one, other):
    return one.keys() == other.keys() and all(torch.equal(w, other[n]) for n, w in one.items())


def on_disk(pair, share):
    """A net whose weights are mixed by hand."""
    net = deepcopy(pair.base.net)
    with torch.no_grad():
        theirs = dict(pair.aligned.net.named_parameters())
        for name, weight in net.named_parameters():
            weight.copy_(weight + share * (theirs[name] - weight))
    return HookedModel(net, pair.base.tokenizer, "by hand")


@pytest.mark.parametrize("family", nets.some(nets.CAUSAL | nets.MASKED))
def test_the_ends_are_base_and_aligned_to_the_last_bit(family):
    pair = nets.pair(family)
    whole = mixed(pair)
    for share, model in ((0.0, pair.base), (1.0, pair.aligned)):
        with whole.at(share) as found:
            assert alike(held(found), held(model))
            assert torch.equal(found.logits(IDS), model.logits(IDS))


@pytest.mark.parametrize("family", nets.some(nets.CAUSAL))
def test_a_mixture_has_the_weights_that_are_mixed_by_hand(family):
    pair = nets.pair(family)
    whole = mixed(pair)
    for share in (0.5, 0.3, 1.5, -0.7):
        with whole.at(share) as found:
            assert alike(held(found), held(on_disk(pair, share)))


@pytest.mark.parametrize("family", nets.some(["llama", "llama tied", "gpt2", "bert"]))
def test_both_models_are_left_to_the_last_bit_whatever_happens_inside(family):
    pair = nets.pair(family)
    before = held(pair.base), held(pair.aligned)
    places = [p.data_ptr() for m in (pair.base, pair.aligned) for p in m.net.parameters()]
    whole = mixed(pair)
    with pytest.raises(ZeroDivisionError), whole.at(0.3) as found:
        raise ZeroDivisionError(found.logits(IDS))
    assert alike(held(pair.base), before[0])
    assert alike(held(pair.aligned), before[1])
    assert places == [p.data_ptr() for m in (pair.base, pair.aligned) for p in m.net.parameters()]
    assert torch.equal(whole.model.logits(IDS), pair.base.logits(IDS))


def test_tied_weights_stay_one_weight_and_go_with_the_embedding():
    pair = nets.pair("llama tied")
    whole = mixed(pair)
    for share in (0.0, 0.25, 1.0):
        with whole.at(share) as found:
            net = found.net
            head, embedding = net.get_output_embeddings(), net.get_input_embeddings()
            assert head.weight.data_ptr() == embedding.weight.data_ptr()
    embed, *_, head = whole.pieces("layer")
    with whole.at({embed: 0.0}) as found:
        both = found.net.get_output_embeddings(), found.net.get_input_embeddings()
        ours = pair.base.net.get_input_embeddings().weight
        assert all(torch.equal(module.weight, ours) for module in both)
    with whole.at({head: 0.0}) as found:
        theirs = pair.aligned.net.get_input_embeddings().weight
        assert torch.equal(found.net.get_output_embeddings().weight, theirs)


def test_shares_by_layer_are_those_layers_alone():
    pair = nets.pair("llama")
    whole = mixed(pair)
    pieces = {str(piece): piece for piece in whole.pieces("layer")}
    with whole.at({pieces["1"]: 0.5, pieces["2"]: -1.0}) as found:
        ours, theirs, mine = weights(pair.base), weights(pair.aligned), weights(found)
    for name in mine:
        change = theirs[name] - ours[name]
        share = 0.5 if "layers.1." in name else -1.0 if "layers.2." in name else None
        wanted = theirs[name] if share is None else ours[name] + share * change
        assert torch.equal(mine[name], wanted), name
    with whole.at({pieces["1"]: 1.0}, rest=0.0) as found:
        mine = weights(found)
    assert all(torch.equal(w, (theirs if "layers.1." in n else ours)[n]) for n, w in mine.items())


@pytest.mark.parametrize("by", ["component", "module", "head"])
def test_every_division_mixed_by_one_share_is_the_mixture_of_the_whole(by):
    pair = nets.pair("llama")
    whole = mixed(pair)
    with whole.at(0.25) as found:
        wanted = held(found)
    with whole.at(dict.fromkeys(whole.pieces(by), 0.25), rest=9.0) as found:
        assert alike(held(found), wanted)


def test_a_head_has_a_share_of_its_own():
    pair = nets.pair("llama")
    whole = mixed(pair)
    heads = [p for p in whole.pieces("head") if p.layer == "0" and p.component.startswith("head")]
    with whole.at({heads[0]: 0.5}) as found:
        mine = weights(found)
    name = "model.layers.0.self_attn.o_proj.weight"
    ours, theirs = weights(pair.base)[name], weights(pair.aligned)[name]
    (features,) = (w.features for w in heads[0].weights if w.path == name)
    halved = torch.zeros(ours.shape[1], dtype=torch.bool)
    halved[list(features)] = True
    half = ours + 0.5 * (theirs - ours)
    assert torch.equal(mine[name][:, halved], half[:, halved])
    assert torch.equal(mine[name][:, ~halved], theirs[:, ~halved])
    assert 0 < int(halved.sum()) < len(halved)


def test_weights_that_are_given_stand_for_mixed_ones_by_name_or_by_change():
    pair = nets.pair("llama")
    whole = mixed(pair)
    name = "model.layers.1.mlp.up_proj.weight"
    ours, theirs = weights(pair.base), weights(pair.aligned)
    fresh = torch.randn(ours[name].shape, generator=torch.Generator().manual_seed(3))
    with whole.at(0.5, instead={name: fresh}) as found:
        mine = weights(found)
    assert torch.equal(mine.pop(name), fresh)
    half = {n: w + 0.5 * (theirs[n] - w) for n, w in ours.items()}
    assert all(torch.equal(w, half[n]) for n, w in mine.items())
    with whole.at(instead=lambda c: c.base - c.aligned if c.layer == "2" else None) as found:
        mine = weights(found)
    for n, w in mine.items():
        assert torch.equal(w, ours[n] - theirs[n] if "layers.2." in n else theirs[n])


def test_weights_in_half_precision_are_mixed_in_float32_and_rounded_once():
    pair = nets.pair("llama")
    for model in (pair.base, pair.aligned):
        model.net.bfloat16()
    ours, theirs = weights(pair.base), weights(pair.aligned)
    with mixed(pair).at(0.3) as found:
        assert found.dtype == torch.bfloat16
        for name, weight in weights(found).items():
            a, b = ours[name].float(), theirs[name].float()
            assert torch.equal(weight, (a + 0.3 * (b - a)).bfloat16())


def test_a_pair_of_a_model_with_itself_is_that_model_at_every_share():
    model = nets.model("llama")
    for share in (0.0, 0.4, 1.0, 3.0):
        with mixture(model, model).at(share) as found:
            assert alike(held(found), held(model))


def test_what_is_saved_is_read_back_as_the_same_model(tmp_path):
    for family in ("llama", "llama tied"):
        pair = nets.pair(family)
        whole = mixed(pair)
        with whole.at(0.5) as found:
            whole.save(tmp_path / family)
            wanted = found.logits(IDS)
        again = ModelPair.load(str(tmp_path / family), str(tmp_path / family)).base
        assert torch.equal(again.logits(IDS), wanted)


# Adapters


@pytest.fixture
def adapted():
    peft = pytest.importorskip("peft")
    of_lora = {"r": 2, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    live = peft.get_peft_model(nets.net("llama"), peft.LoraConfig(**of_lora))
    nets.moved(live, 0.1, 3, "lora_").eval()
    return ModelPair.load(None, live, tokenizer=nets.tokenizer())


def test_of_an_adapter_its_change_of_the_weights_is_scaled(adapted):
    base, aligned = adapted.base.logits(IDS), adapted.aligned.logits(IDS)
    before = held(adapted.aligned)
    whole = mixture(adapted.base, adapted.aligned)
    with whole.at(0.0) as found:
        assert torch.equal(found.logits(IDS), base)
    with whole.at(1.0) as found:
        torch.testing.assert_close(found.logits(IDS), aligned, atol=ROUNDED * 20, rtol=0)
    plain = {name: weight for name, weight in before.items() if "lora_" not in name}
    with whole.at(-0.5) as found:
        mine = weights(found)
    for name, weight in mine.items():
        path = name.removesuffix(".weight")
        module = adapted.aligned.net.get_submodule(path)
        if not hasattr(module, "get_delta_weight"):
            assert torch.equal(weight, plain[name])
            continue
        ours, change = module.base_layer.weight, module.get_delta_weight("default")
        torch.testing.assert_close(weight, ours - 0.5 * change, atol=ROUNDED, rtol=0)
    assert alike(held(adapted.aligned), before)
    assert torch.equal(adapted.aligned.logits(IDS), aligned)


def test_a_mixed_adapter_is_saved_as_a_whole_model(adapted, tmp_path):
    whole = mixture(adapted.base, adapted.aligned)
    with whole.at(0.5) as found:
        whole.save(tmp_path / "whole")
        wanted = found.logits(IDS)
    again = ModelPair.load(str(tmp_path / "whole"), str(tmp_path / "whole")).base
    assert torch.equal(again.logits(IDS), wanted)


def test_an_adapter_that_adds_no_change_to_weights_is_refused():
    peft = pytest.importorskip("peft")
    of_dora = {"r": 2, "target_modules": ["down_proj"], "use_dora": True}
    live = peft.get_peft_model(nets.net("llama"), peft.LoraConfig(**of_dora))
    # A size of each feature of its own stands beside what is added.
    nets.moved(live, 0.3, 3, "lora_").eval()
    pair = ModelPair.load(None, live, tokenizer=nets.tokenizer())
    with pytest.raises(DriftlensError, match="adds a change to weights"):
        mixture(pair.base, pair.aligned)


# What cannot be mixed


@pytest.mark.parametrize("share", [np.nan, np.inf])
def test_a_share_that_is_not_finite_is_refused(share):
    with pytest.raises(DriftlensError, match="finite shares"), mixed(nets.pair("llama")).at(share):
        pass


def test_pieces_and_names_of_another_model_are_refused():
    whole, other = mixed(nets.pair("llama")), mixed(nets.pair("gpt2"))
    piece = other.pieces("layer")[0]
    with pytest.raises(DriftlensError, match="pieces of"), whole.at({piece: 0.5}):
        pass
    with pytest.raises(DriftlensError, match="names of weights"), whole.at(instead={"no": IDS}):
        pass
    name = next(whole.changes()).name
    with (
        pytest.raises(DriftlensError, match="a weight of shape"),
        whole.at(instead={name: torch.zeros(2, 3)}),
    ):
        pass


def test_models_whose_weights_are_out_of_reach_are_refused(pair):
    stored = object.__new__(Stored)
    with pytest.raises(DriftlensError, match="weights can be swapped"):
        mixture(stored, pair.aligned)
    with pytest.raises(DriftlensError, match="match by name and shape"):
        mixture(pair.base, nets.model("llama", intermediate_size=64))


def test_a_copy_that_does_not_fit_is_told_before_it_is_made(pair, monkeypatch):
    monkeypatch.setattr("driftlens.models.mixture.available", lambda device: 1000)
    with pytest.raises(DriftlensError, match="memory on cpu for one more copy"):
        mixed(pair)
