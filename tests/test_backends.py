"""Every back-end shows what plain hooks show, and leaves what it was given as it was found."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import nets
from driftlens.errors import DriftlensError
from driftlens.models import EMBED, ModelPair, Site, Wants
from driftlens.models.backends import BACKENDS, named
from driftlens.models.hooks import HookedModel

pytestmark = [
    # What TransformerLens and nnsight say of themselves while they are loaded.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens"),
]

OTHERS = BACKENDS[1:]
FAMILIES = [*nets.CAUSAL, *nets.MORE, "bert", "roberta"]
QUICK = ("llama", "gpt2", "gemma2", "gpt-neox", "qwen2")
PARTS = ("in", "heads", "attn", "mlp", "out")
TOLERANCE = {"hooks": 0.0, "nnsight": 0.0, "transformer_lens": 1e-5}
"""Relative, of eager attention in float32. TransformerLens has an attention of its own."""

SDPA = 1e-5
"""Relative, of TransformerLens' eager attention against sdpa in float32."""


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A model of each family in a folder of its own, made when it is asked for."""
    made = {}

    def folder(family, seed=0):
        if (family, seed) not in made:
            place = tmp_path_factory.mktemp("nets") / f"{family.replace(' ', '-')}-{seed}"
            made[family, seed] = nets.saved(nets.net(family, seed), place)
        return made[family, seed]

    return folder


def loaded(folder, backend, attention="eager"):
    return ModelPair.alone(folder, backend=backend, attn_implementation=attention).base


def apart(ours, theirs):
    """Relative distance of two tensors."""
    return float((ours.double() - theirs.double()).norm() / ours.double().norm().clamp(min=1e-30))


def wanted(model, gradients=False):
    parts = (p for p in PARTS if all(model.has(Site(n, p)) for n in range(model.depth)))
    return Wants(frozenset(parts), None, gradients)


def doubled(stream):
    return 1.5 * stream + 0.1


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("family", nets.some(FAMILIES, QUICK))
def test_activations_gradients_and_edits_are_those_of_plain_hooks(folders, family, backend):
    ours, theirs = (loaded(folders(family), b) for b in ("hooks", backend))
    batch = nets.batch(ours)
    wants = wanted(ours, gradients=ours.causal)
    edits = {Site(1): doubled, Site(0, "mlp"): doubled, EMBED: doubled}
    assert wanted(theirs, gradients=ours.causal) == wants
    for edited in ({}, {s: e for s, e in edits.items() if ours.has(s)}):
        one, other = (model.trace(batch, wants, edited) for model in (ours, theirs))
        assert set(one.activations) == set(other.activations)
        assert set(one.gradients) == set(other.gradients)
        seen = one.batch.mask[..., None]
        far = [apart(z * seen, other.activations[s] * seen) for s, z in one.activations.items()]
        far += [apart(z, other.gradients[s]) for s, z in one.gradients.items()]
        far.append(apart(one.predictors, other.predictors))
        assert max(far) <= TOLERANCE[backend]
        assert apart(*(m.readout(one.predictors) for m in (ours, theirs))) <= TOLERANCE[backend]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["llama", "falcon"])
def test_inference_mode_shows_the_same(folders, family, backend):
    model = loaded(folders(family), backend)
    batch = nets.batch(model)
    with torch.inference_mode():
        first = model.trace(batch, wanted(model))
    one = model.trace(batch, wanted(model))
    assert first.activations.keys() == one.activations.keys()
    assert all(torch.equal(z, first.activations[site]) for site, z in one.activations.items())
    assert torch.equal(one.predictors, first.predictors)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("family", nets.some(nets.CAUSAL, QUICK))
def test_a_model_is_resumed_at_every_block(folders, family, backend):
    ours, theirs = (loaded(folders(family), b) for b in ("hooks", backend))
    batch = nets.batch(ours)
    whole = ours.trace(batch, Wants(frozenset({"out"}), None))
    for layer, site in enumerate([EMBED, *map(Site, range(ours.depth))], -1):
        stream = doubled(whole.activations[site])
        one, other = (model.resume(batch, layer, stream) for model in (ours, theirs))
        assert apart(one, other) <= TOLERANCE[backend]


FUSED = [family for family in nets.CAUSAL if family != "gemma2"]
"""Gemma 2 caps its scores, which sdpa cannot."""


@pytest.mark.parametrize("family", nets.some(FUSED, ("llama", "gpt2")))
def test_eager_attention_of_a_bridge_is_near_sdpa_of_plain_hooks(folders, family):
    ours, theirs = loaded(folders(family), "hooks", "sdpa"), loaded(folders(family), OTHERS[0])
    one, other = (m.trace(nets.batch(ours), wanted(ours)) for m in (ours, theirs))
    # On padding that sees nothing but padding the two attentions disagree.
    seen = one.batch.mask[..., None]
    assert (
        max(apart(z * seen, other.activations[s] * seen) for s, z in one.activations.items()) < SDPA
    )


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_padding_on_the_left_moves_nothing(folders, family, backend):
    model = loaded(folders(family), backend)
    batch = nets.batch(model)
    right, left = model.trace(batch), model.trace(batch.padded_left())
    assert apart(right.predictors, left.predictors) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt-neox"])
def test_a_bridge_itself_names_the_same_places(folders, family):
    """The oracle is TransformerLens' own cache, under its own names."""
    model = loaded(folders(family), "transformer_lens")
    ids = torch.tensor([[0, 30, 40, 50, 60, 31]])
    _, cache = model.bridge.run_with_cache(ids, prepend_bos=False)
    pair = ModelPair(model, model)
    _, ours = pair.run_with_cache(ids)
    for layer in range(model.depth):
        for hook in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post"):
            name = f"blocks.{layer}.{hook}"
            assert torch.equal(ours.base[name], cache[name])


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_block_writes_into_after_it_passed_is_kept_as_it_passed(folders, backend):
    """Falcon adds what attention gave to what its MLP gave, in place."""
    model = loaded(folders("falcon"), backend)
    batch = nets.batch(model)
    for sites, gradients in ((("in", "attn", "mlp", "out"), True), (("mlp",), False)):
        trace = model.trace(batch, Wants(frozenset(sites), None, gradients))
        # A bridge hands on tensors of its own.
        assert model.alters or backend == "transformer_lens"
        if gradients:
            for layer in range(model.depth):
                read, attn, mlp, left = (trace.activations[Site(layer, part)] for part in sites)
                seen = trace.batch.mask[..., None]
                assert apart(left * seen, (read + attn + mlp) * seen) < 1e-6
            whole = trace.activations[Site(1, "mlp")]
    assert torch.equal(trace.activations[Site(1, "mlp")], whole)
    # A gradient that begins at what is written into.
    _, (by,) = model.by_state(batch, [Site(0, "mlp")], lambda logits: logits[None, :, 3])
    assert by[Site(0, "mlp")].abs().sum() > 0


# Live objects


def live_bridge(folder):
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)


def live_nnsight(folder):
    from nnsight import TransformersModel

    return TransformersModel(
        folder, dispatch=True, task="text-generation", attn_implementation="eager"
    )


LIVE = {"transformer_lens": live_bridge, "nnsight": live_nnsight}


def found(model):
    """All of a net that looking into it could leave otherwise."""
    net = getattr(model, "original_model", None) or getattr(model, "_module", model)
    return {
        "names": [name for name, _ in net.named_parameters()],
        "modules": [(name, type(module).__name__) for name, module in net.named_modules()],
        "hooks": sum(
            len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules()
        ),
        "learns": [parameter.requires_grad for parameter in net.parameters()],
        "training": [module.training for module in net.modules()],
        "forward": [id(vars(module).get("forward")) for module in net.modules()],
        "attention": net.config._attn_implementation,
        "pads": getattr(getattr(model, "tokenizer", None), "padding_side", None),
        "weights": [float(p.detach().double().sum()) for p in net.parameters()],
    }


@pytest.mark.parametrize("backend", OTHERS)
def test_a_live_object_is_used_as_it_is_and_left_so(folders, backend):
    folder = folders("llama")
    mine = LIVE[backend](folder)
    before = found(mine)
    model = ModelPair.alone(mine).base
    assert model.backend == backend
    ours = loaded(folder, "hooks")
    batch = nets.batch(ours)
    one, other = (m.trace(batch, wanted(ours, gradients=True)) for m in (ours, model))
    far = max(apart(z, other.activations[s]) for s, z in one.activations.items())
    assert far <= TOLERANCE[backend]
    for broken in ({Site(1): fail}, {Site(0, "attn"): fail}):
        with pytest.raises(ZeroDivisionError):
            model.trace(batch, wanted(ours, gradients=True), broken)
        with pytest.raises(ZeroDivisionError):
            model.resume(batch, 0, one.activations[Site(0)], edits={Site(2): fail})
    after = found(mine)
    # A bridge puts hooks of its own in place when it first runs.
    assert after["hooks"] >= before.pop("hooks")
    again = model.trace(batch, wanted(ours, gradients=True))
    assert found(mine)["hooks"] == after.pop("hooks")
    assert before == after
    assert torch.equal(again.predictors, other.predictors)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_live_object_is_known_by_the_weights_that_a_folder_has(folders, family, backend):
    folder = folders(family)
    mine, ours = (ModelPair.alone(m).base.source for m in (LIVE[backend](folder), folder))
    assert mine["sha256"] == ours["sha256"]
    assert mine["parameters"] == ours["parameters"]


def test_a_net_that_nnsight_wraps_without_a_tokenizer_is_given_its_own(folders):
    from nnsight import NNsight

    folder = folders("llama")
    net = ModelPair.alone(folder).base.net
    model = ModelPair.load(folder, NNsight(net)).aligned
    assert model.backend == "nnsight"
    assert model.tokenizer("A bell")["input_ids"]
    net.config.name_or_path = ""
    with pytest.raises(DriftlensError, match="the tokenizer of a live model"):
        ModelPair.alone(NNsight(net))


def fail(_):
    raise ZeroDivisionError


@pytest.mark.parametrize("backend", OTHERS)
def test_a_live_net_is_left_as_it_was_found(folders, backend):
    net, words = nets.net("llama"), nets.tokenizer()
    before, side = found(net), words.padding_side
    with pytest.warns(UserWarning, match="shares the weights of the live"):
        model = ModelPair.alone(net, tokenizer=words, backend=backend).base
    model.trace(nets.batch(model), wanted(model, gradients=True))
    assert found(net) == before
    assert words.padding_side == side
    assert "name_or_path" not in words.init_kwargs
    mine = {p.data_ptr() for p in net.parameters()}
    assert {p.data_ptr() for p in model.weights.values()} == mine


def test_hooks_of_the_user_on_a_bridge_are_felt(folders):
    mine = live_bridge(folders("llama"))
    model = ModelPair.alone(mine).base
    batch = nets.batch(model)
    plain = model.trace(batch).predictors
    mine.add_hook("blocks.1.hook_out", lambda stream, hook: 2 * stream)
    hooked = model.trace(batch).predictors
    expected = model.trace(batch, edits={Site(1): lambda stream: stream}).predictors
    assert torch.equal(hooked, expected)
    assert apart(plain, hooked) > 0.1
    # Weights alone no longer say what it does.
    with pytest.raises(DriftlensError, match="one that hooks change"):
        ModelPair(model, model).hybrid  # noqa: B018
    mine.reset_hooks()
    assert torch.equal(model.trace(batch).predictors, plain)
    assert isinstance(ModelPair(model, model).base.bare, HookedModel)


def test_heads_that_a_bridge_maps_one_by_one_are_refused_and_all_else_is_seen(folders):
    mine = live_bridge(folders("llama"))
    model, batch = ModelPair.alone(mine).base, nets.batch(loaded(folders("llama"), "hooks"))
    heads, others = Wants(frozenset({"heads"}), None), Wants(frozenset({"attn", "out"}), None)
    before = {parts: model.trace(batch, parts).activations for parts in (heads, others)}
    mine.set_use_attn_result(True)
    for again in (model, ModelPair.alone(mine).base):
        with pytest.raises(DriftlensError, match=r"use_attn_result.*set_use_attn_result\(False\)"):
            again.trace(batch, heads)
        seen = again.trace(batch, others).activations
        assert max(apart(z, seen[site]) for site, z in before[others].items()) < 1e-5
    mine.set_use_attn_result(False)
    seen = model.trace(batch, heads).activations
    assert all(torch.equal(z, seen[site]) for site, z in before[heads].items())


def test_a_hook_point_is_no_part_of_a_net_in_half_precision(tmp_path):
    """BLOOM's MLP adds the stream itself, which a hook point of the block hands on as it is."""
    from transformers import AutoModelForCausalLM, BloomConfig

    config = BloomConfig(vocab_size=nets.WORDS, hidden_size=32, n_layer=3, n_head=4)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        net = AutoModelForCausalLM.from_config(config)
    place = nets.saved(nets.moved(net, 0.15, 0).to(torch.bfloat16), tmp_path)
    ours, theirs = (loaded(place, backend) for backend in BACKENDS[:2])
    assert ours.dtype == theirs.dtype == torch.bfloat16
    wants, batch = wanted(ours), nets.batch(ours)
    assert wanted(theirs) == wants
    assert {"attn", "heads"} <= wants.parts
    one, other = (model.trace(batch, wants) for model in (ours, theirs))
    seen = one.batch.mask[..., None]
    # Eight bits of mantissa, over three blocks.
    assert (
        max(apart(z * seen, other.activations[s] * seen) for s, z in one.activations.items()) < 0.02
    )


def test_edits_that_stand_in_every_trace_of_nnsight_are_refused(folders):
    mine = live_nnsight(folders("llama"))
    with mine.edit(inplace=True):
        mine.model.layers[1].output = mine.model.layers[1].output * 2
    with pytest.raises(DriftlensError, match=r"1 edits that stand.*clear_edits"):
        ModelPair.alone(mine)
    mine.clear_edits()
    assert ModelPair.alone(mine).depth == 3


def without_weights(place):
    from nnsight import TransformersModel
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(place)
    return TransformersModel(place, task="text-generation", tokenizer=words)


def test_an_nnsight_model_without_weights_is_not_run_here(folders):
    pair = ModelPair.alone(without_weights(folders("llama")))
    with pytest.raises(DriftlensError, match="dispatch=True"):
        next(pair.frames(nets.pack(nets.TEXTS)))


def test_a_dry_run_of_a_remote_trace_shows_what_a_trace_here_does(folders):
    place = folders("llama")
    ids = torch.tensor([[0, 30, 40, 50, 60, 31]])
    here = ModelPair.alone(place, backend="nnsight")
    logits, cache = here.run_with_cache(ids)
    for pair in (here, ModelPair.alone(without_weights(place))):
        told, shown = pair.run_with_cache(ids, ["1.out", "1.in"], remote="local")
        assert torch.allclose(told[0], logits[0], atol=1e-5)
        assert all(torch.allclose(z, cache.base[n], atol=1e-5) for n, z in shown.base.items())
        assert len(shown.base) == 2
    with pytest.raises(DriftlensError, match="an nnsight model, to run remotely"):
        ModelPair.alone(place).run_with_cache(ids, remote=True)


def test_folded_norms_are_no_drift(folders):
    folder = folders("llama")
    plain, folded, other = (live_bridge(folder) for _ in range(3))
    folded.enable_compatibility_mode()
    other.enable_compatibility_mode()
    with pytest.raises(DriftlensError, match="two bridges whose weights are processed alike"):
        ModelPair.load(plain, folded)
    with pytest.raises(DriftlensError, match="two bridges whose weights are processed alike"):
        ModelPair.load(folded, folder)
    pair = ModelPair.load(folded, other)
    frame = next(pair.frames(nets.pack(nets.TEXTS)))
    assert np.allclose(*frame.likelihoods, atol=1e-5)
    with pytest.raises(DriftlensError, match="processed weights"):
        pair.hybrid  # noqa: B018


def test_compatibility_mode_without_processing_is_as_good_as_none(folders):
    mine = live_bridge(folders("llama"))
    mine.enable_compatibility_mode(no_processing=True)
    model, ours = ModelPair.load(mine, folders("llama")).base, loaded(folders("llama"), "hooks")
    batch = nets.batch(ours)
    assert apart(ours.trace(batch).predictors, model.trace(batch).predictors) < 1e-5


# What works on weights


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("family", nets.some(nets.CAUSAL, ("llama", "gpt2")))
def test_a_plain_net_beneath_shares_every_weight(folders, family, backend):
    model = loaded(folders(family), backend)
    weights = dict(model.bare.net.named_parameters())
    ours = dict(loaded(folders(family), "hooks").net.named_parameters())
    assert weights.keys() == ours.keys()
    in_use = {parameter.data_ptr() for parameter in model.net.parameters()}
    for name in ours:
        assert torch.equal(weights[name], ours[name])
        assert weights[name].data_ptr() in in_use or "c_attn" in name
    ids = torch.tensor([[0, 30, 40, 50, 60, 31]])
    with torch.no_grad():
        assert apart(model.logits(ids), model.bare.logits(ids)) < 1e-5


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_loss_is_divided_among_weights_as_by_hooks(folders, family, backend):
    place, moved = folders(family), folders(family, 1)
    found = []
    for kind in ("hooks", backend):
        pair = ModelPair.load(place, moved, backend=kind, attn_implementation="eager")
        frame = next(pair.frames(nets.pack(nets.TEXTS), Wants(frozenset({"out"}), None)))
        pieces = pair.hybrid.pieces("component")
        found.append([frame.grafted(pieces[:3]), frame.path(2).likelihoods, frame.restored])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("backend", OTHERS)
def test_gradient_products_are_those_of_plain_hooks(folders, backend):
    products = []
    for kind in ("hooks", backend):
        pair = ModelPair.alone(folders("llama"), backend=kind, attn_implementation="eager")
        frame = next(pair.frames(nets.pack(nets.TEXTS[:4])))
        products.append(frame.products())
    one, other = products
    assert one.inner.keys() == other.inner.keys()
    assert all(apart(z, other.inner[name]) < 1e-5 for name, z in one.inner.items())


# Adapters


@pytest.fixture
def adapter(folders, tmp_path):
    from peft import LoraConfig, get_peft_model

    from driftlens.models.load import load_pair

    net = load_pair(folders("llama"), folders("llama"))[0].net
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(3)
        peft = get_peft_model(net, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
        for name, weight in peft.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight, std=0.2)
    peft.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
@pytest.mark.parametrize("backend", OTHERS)
def test_an_adapter_shares_its_base_in_every_back_end(folders, adapter, backend):
    place = folders("llama")
    plain = ModelPair.load(place, adapter, attn_implementation="eager")
    pair = ModelPair.load(place, adapter, backend=backend)
    assert pair.base.backend == pair.aligned.backend == backend
    assert pair.base.net is pair.aligned.net
    pack = nets.pack(nets.TEXTS)
    ours, theirs = (next(p.frames(pack)).likelihoods for p in (plain, pair))
    for one, other in zip(ours, theirs, strict=True):
        assert np.allclose(one, other, atol=1e-4)
    assert not np.allclose(*theirs, atol=1e-2)


# By hand


def test_a_cache_has_the_names_of_transformer_lens(folders):
    pair = ModelPair.load(folders("llama"), folders("llama", 1))
    logits, cache = pair.run_with_cache(list(nets.TEXTS[:3]))
    assert set(cache.base) == {
        f"blocks.{layer}.{hook}"
        for layer in range(3)
        for hook in (
            *("hook_resid_pre", "attn.hook_z", "hook_attn_out"),
            *("hook_mlp_out", "hook_resid_post"),
        )
    }
    assert logits[0].shape == (*cache.tokens.shape, pair.base.vocabulary)
    with torch.no_grad():
        own = pair.aligned.net(cache.tokens, attention_mask=cache.mask.long())
    assert torch.allclose(own.logits[cache.mask], logits[1][cache.mask], atol=1e-4)
    for name in ("blocks.1.hook_out", "1.out", "model.layers.1", Site(1)):
        assert torch.equal(cache.base[name], cache.base["blocks.1.hook_resid_post"])
    added = cache.difference("2.out")
    assert torch.equal(added, cache.aligned["2.out"] - cache.base["2.out"])


def test_two_tokenizers_that_cut_a_text_otherwise_are_refused_by_hand(folders):
    mine = live_bridge(folders("llama"))
    pair = ModelPair.load(mine, folders("llama", 1))
    pair.aligned.tokenizer = nets.tokenizer(bos=False)
    with pytest.raises(DriftlensError, match="two tokenizers that cut these texts alike"):
        pair.run_with_cache("A bell")


def test_a_filter_keeps_what_it_names(folders):
    pair = ModelPair.alone(folders("llama"))
    ids = torch.tensor([0, 30, 40])
    for names in ("2.out", ["model.layers.2"], lambda name: name == "blocks.2.hook_resid_post"):
        logits, cache = pair.run_with_cache(ids, names, logits=False)
        assert logits is None
        assert list(cache.base) == ["blocks.2.hook_resid_post"]
        assert cache.base["2.out"].shape == (1, 3, 32)
        with pytest.raises(KeyError, match=r"1\.out was not kept"):
            cache.base["1.out"]
    with pytest.raises(DriftlensError, match=r"blocks\.2\.hook_resid_post"):
        pair.run_with_cache(ids, "blocks.3.hook_resid_post")


def test_a_name_of_no_site_is_in_no_cache(folders):
    _, cache = ModelPair.alone(folders("llama")).run_with_cache(torch.tensor([0, 30]), Site(1))
    assert list(cache.base) == ["blocks.1.hook_resid_post"]
    assert "1.out" in cache.base
    for other in ("2.out", "ln_final.hook_normalized", "", 3):
        assert other not in cache.base
        assert cache.base.get(other) is None


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ([], "no text"),
        (torch.zeros(1, 0, dtype=torch.long), r"int64 of shape \[1, 0\]"),
        (torch.zeros(1, 4), r"float32 of shape \[1, 4\]"),
        (torch.tensor([[5, -1]]), "the least is -1"),
        (torch.zeros(1, 2, 3, dtype=torch.long), r"shape \[1, 2, 3\]"),
    ],
)
def test_what_is_neither_text_nor_ids_is_refused_by_hand(folders, texts, told):
    with pytest.raises(DriftlensError, match=told):
        ModelPair.alone(folders("llama")).run_with_cache(texts)


# Names and imports


def test_an_unknown_back_end_is_refused_with_the_nearest(folders):
    assert named("transformer-lens") == "transformer_lens"
    with pytest.raises(DriftlensError, match="Give nnsight"):
        ModelPair.load(folders("llama"), folders("llama"), backend="nnsigth")


@pytest.mark.parametrize("name", ["1.out", "blocks.1.hook_resid_post", "model.layers.1"])
def test_an_edit_may_be_placed_by_any_name(folders, name):
    pair = ModelPair.alone(folders("llama"))
    frame = next(pair.frames(nets.pack(nets.TEXTS), Wants(frozenset({"out"}), None)))
    assert torch.equal(frame.base.at(name), frame.base.at(Site(1)))
    assert torch.equal(frame.both(name)[1], frame.base.at(Site(1)))
    one, other = (pair.base.trace(frame.base.batch, edits={s: doubled}) for s in (name, Site(1)))
    assert torch.equal(one.predictors, other.predictors)
    assert not torch.equal(one.predictors, frame.base.predictors)


@pytest.mark.parametrize("backend", OTHERS)
def test_a_live_object_is_steered_as_its_net_would_be(folders, backend):
    from driftlens.models import Add, Steer, steered

    ours, mine = loaded(folders("llama"), "hooks"), LIVE[backend](folders("llama"))
    steer = Steer(Add(np.linspace(-3, 3, 32), 5.0), 1)
    ids = torch.tensor([[0, 30, 40, 50, 60, 31]])
    model = ModelPair.alone(mine).base
    with torch.no_grad():
        plain = model.logits(ids)
        with steered(ours, steer):
            expected = ours.logits(ids)
        with steered(mine, steer):
            assert apart(expected, model.logits(ids)) < 1e-5
        assert torch.equal(model.logits(ids), plain)
    assert apart(expected, plain) > 1e-2


def test_a_place_beyond_the_last_block_is_refused_with_the_nearest(folders):
    model = loaded(folders("llama"), "hooks")
    with pytest.raises(DriftlensError, match=r"one of the 3 blocks.*the last such is 2\.out"):
        model.trace(nets.batch(model), edits={Site(3): doubled})


def test_an_architecture_that_transformer_lens_does_not_know(folders):
    with pytest.raises(DriftlensError, match="an architecture that TransformerLens knows"):
        loaded(folders("distilbert"), "transformer_lens")


@pytest.mark.parametrize(("library", "backend"), [("transformer_lens", OTHERS[0]), OTHERS[1:] * 2])
def test_a_library_that_is_missing_is_told_of_in_a_line(folders, library, backend, monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DriftlensError, match=rf"pip install '{library.replace('_', '-')}>="):
        loaded(folders("llama"), backend)


@pytest.mark.slow
def test_driftlens_imports_neither_library():
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "import torch; before = torch.Tensor.backward\n"
            "import driftlens, sys\n"
            "pair = driftlens.ModelPair.alone('demo:base')\n"
            "assert torch.Tensor.backward is before and not hasattr(object(), 'save')\n"
            "print([n for n in ('transformer_lens', 'nnsight', 'wandb') if n in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "[]"
