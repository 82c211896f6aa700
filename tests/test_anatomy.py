"""Where things are in a network, and that what is seen there is what flows there."""

import pytest
import torch
from torch import nn

import nets
from driftlens.errors import DriftlensError
from driftlens.models import EMBED, Site, Wants, anatomy
from driftlens.models.hooks import HookedModel

EVERYTHING = Wants(frozenset({"attn", "mlp", "out"}), None)
NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm")

every_family = pytest.mark.parametrize("family", nets.some([*nets.CAUSAL, *nets.MASKED]))
causal = pytest.mark.parametrize("family", nets.some(nets.CAUSAL))


def seen(model):
    """A trace of everything, and the net's own hidden states, where tokens stand."""
    batch = nets.batch(model)
    trace = model.trace(batch, EVERYTHING)
    with torch.no_grad():
        own = model.body(**model._inputs(batch), output_hidden_states=True).hidden_states
    mask = batch.mask
    return {site: x[mask] for site, x in trace.activations.items()}, [x[mask] for x in own]


def final_norm(model):
    outside = [(n, m) for n, m in model.body.named_modules() if not any(c.isdigit() for c in n)]
    return next(module for name, module in outside if name.split(".")[-1] in NORMS)


@every_family
def test_streams_are_the_nets_own_hidden_states(family):
    model = nets.model(family)
    streams, own = seen(model)
    assert torch.equal(streams[EMBED], own[0])
    for layer in range(model.depth - 1):
        assert torch.equal(streams[Site(layer)], own[layer + 1])


@causal
def test_the_last_stream_is_taken_before_the_final_norm(family):
    model = nets.model(family)
    streams, own = seen(model)
    last = streams[Site(model.depth - 1)]
    assert not torch.allclose(last, own[-1], atol=0.1)
    assert torch.equal(final_norm(model)(last), own[-1])


@causal
def test_stream_and_attention_and_mlp_add_up(family):
    model = nets.model(family)
    streams, _ = seen(model)
    assert model.residual_identity
    for layer in range(model.depth):
        before = streams[Site(layer - 1) if layer else EMBED]
        total = before + streams[Site(layer, "attn")] + streams[Site(layer, "mlp")]
        # Where both are added at once, float32 rounds in another order: 1e-7 of 10.
        torch.testing.assert_close(total, streams[Site(layer)], rtol=0, atol=2e-6)


@pytest.mark.parametrize("family", nets.some(nets.MASKED))
def test_post_norm_blocks_break_the_residual_identity(family):
    model = nets.model(family)
    assert not model.residual_identity
    streams, _ = seen(model)
    for layer in range(model.depth):
        assert {Site(layer, "attn"), Site(layer, "mlp")} <= streams.keys()


@pytest.mark.parametrize(
    ("family", "attention", "mlp"),
    [
        ("llama", "self_attn", "mlp"),
        ("gpt2", "attn", "mlp"),
        ("phi", "self_attn", "mlp"),
        ("gpt-neox", "attention", "mlp"),
        ("opt", "self_attn", "fc2"),
        ("mixtral", "self_attn", "mlp"),
        ("gemma2", "post_attention_layernorm", "post_feedforward_layernorm"),
        ("gemma3", "post_attention_layernorm", "post_feedforward_layernorm"),
        ("bert", "attention.output.dense", "output.dense"),
    ],
)
def test_writers_are_the_modules_whose_output_is_added(family, attention, mlp):
    model = nets.model(family)
    assert {(a, m) for a, m, _ in model._writers} == {(attention, mlp)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@causal
def test_writers_are_found_in_half_precision_under_a_massive_stream(family, dtype):
    net = nets.net(family)
    with torch.no_grad():
        net.get_input_embeddings().weight[:, 3] *= 20_000
    massive = HookedModel(net.to(dtype), nets.tokenizer(), family)
    assert massive._writers == nets.model(family)._writers


def test_the_blocks_of_a_mixture_are_not_its_experts():
    experts = [nn.ModuleList(nn.Linear(2, 2) for _ in range(8)) for _ in range(2)]
    layers = nn.ModuleList(nn.ModuleDict({"experts": each}) for each in experts)
    assert anatomy.blocks(nn.ModuleDict({"layers": layers})) is layers


def test_a_net_without_blocks_is_refused():
    with pytest.raises(DriftlensError, match=r"nn\.ModuleList.*transformers library"):
        anatomy.blocks(nn.Linear(2, 2))


def test_a_part_that_a_block_does_not_have_is_left_out():
    stream = torch.ones(1, 2, 3)
    assert anatomy.writers(["weight"], stream, stream, {}) == (None, None, False)
    model = nets.model("llama")
    model.__dict__["_writers"] = [("self_attn", None, False)] * model.depth
    sites = model.trace(nets.batch(model), EVERYTHING).activations
    assert Site(1, "attn") in sites
    assert Site(1, "mlp") not in sites
    with pytest.raises(DriftlensError, match=r"a place 1\.mlp in llama.*without mlp.*Choose"):
        model.trace(nets.batch(model), edits={Site(1, "mlp"): torch.zeros_like})


def test_a_flattened_output_is_the_stream_and_others_are_not():
    stream = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(anatomy.stream_of(stream.reshape(6, 4), stream), stream)
    assert torch.equal(anatomy.stream_of((stream, None), stream), stream)
    for other in (None, (), stream[:1], stream.reshape(2, 2, 6)):
        assert anatomy.stream_of(other, stream) is None
