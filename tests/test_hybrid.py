"""What stands between two models: grafts, and slopes along the path of weights, by hand."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import nets
from driftlens.errors import DriftlensError
from driftlens.formulas.divergence import gold
from driftlens.models import ModelPair, Wants
from driftlens.models import model as reading
from driftlens.models.hooks import HookedModel
from driftlens.models.hybrid import Adapted, Twin

FAMILIES = nets.some(nets.CAUSAL)
TEXTS = ("Mira sells cheese.", "I do.", "A bell, a bell!")
"""Of different lengths, so that two rows are padded."""

# PyTorch's own forward mode compiles a few formulas in a way that is about to go.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

STREAM = Wants(frozenset({"out"}), None)

ALPHA = 0.37
"""A place on the path that is neither an end nor the middle."""

ROUNDED = 1e-5
"""What float32 leaves of an inner product, as a part of both vectors' lengths."""


@cache
def pair(family):
    return nets.pair(family)


def of(base, aligned, words=None):
    words = words or nets.tokenizer()
    return ModelPair(HookedModel(base, words, "base"), HookedModel(aligned, words, "aligned"))


def shown(pair, texts=TEXTS):
    encoder = pair.encoder(nets.pack(texts))
    return pair.frame(encoder, sorted(encoder.plan, key=lambda w: w.example), STREAM)


@cache
def frame(family):
    """Looked at only: it remembers the grafts that it was asked for."""
    return shown(pair(family))


def untied(net, kind=None):
    """A copy in which every use of a weight has a weight of its own."""
    net = deepcopy(net).to(kind)
    for module in net.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(weight.detach().clone())
    return net


def parameters(net):
    return {n: p.detach() for n, p in net.named_parameters(remove_duplicate=False)}


def by_hand(pair, weights, alpha=1.0, kind=None):
    """A plain net of its own: base's weights, but for those named, which went part of the way."""
    net, other = untied(pair.base.net, kind), parameters(untied(pair.aligned.net, kind))
    with torch.no_grad():
        for name in weights:
            net.get_parameter(name).lerp_(other[name], alpha)
    return net


def paths(pieces):
    return [weight.path for piece in pieces for weight in piece.weights]


def read(net, batch):
    """[scored token] log-likelihoods of a plain net by its own forward pass."""
    out = net(input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=False)
    rows, tokens = batch.target
    return out.logits[rows, tokens - 1].log_softmax(-1).gather(-1, batch.targets[:, None])[:, 0]


# What pieces there are


@pytest.mark.parametrize("by", ["layer", "component"])
@pytest.mark.parametrize("family", nets.CAUSAL)
def test_pieces_divide_all_weights_and_none_twice(family, by):
    hybrid = pair(family).hybrid
    pieces = hybrid.pieces(by)
    assert sorted(paths(pieces)) == sorted(parameters(pair(family).base.net))
    assert len({str(piece) for piece in pieces}) == len(pieces)
    depth = pair(family).depth
    blocks = [str(number) for number in range(depth)]
    if by == "layer":
        assert [str(piece) for piece in pieces] == ["embed", *blocks, "head"]
        return
    both = [f"{block}.{part}" for block in blocks for part in ("attn", "mlp")]
    assert [str(piece) for piece in pieces] == ["embed", *both, "head.norm", "head.unembed"]


NAMES = {
    "llama": {
        "model.layers.1.input_layernorm.weight": "1.attn",
        "model.layers.1.self_attn.o_proj.weight": "1.attn",
        "model.layers.1.post_attention_layernorm.weight": "1.mlp",
        "model.layers.1.mlp.up_proj.weight": "1.mlp",
        "model.norm.weight": "head.norm",
    },
    "gemma2": {
        "model.layers.1.post_attention_layernorm.weight": "1.attn",
        "model.layers.1.pre_feedforward_layernorm.weight": "1.mlp",
        "model.layers.1.post_feedforward_layernorm.weight": "1.mlp",
    },
    "gemma3": {
        "model.layers.2.self_attn.q_norm.weight": "2.attn",
        "model.layers.2.post_attention_layernorm.weight": "2.attn",
        "model.layers.2.pre_feedforward_layernorm.weight": "2.mlp",
        "model.layers.2.post_feedforward_layernorm.weight": "2.mlp",
    },
    "phi": {
        "model.layers.0.input_layernorm.bias": "0.attn",
        "model.layers.0.mlp.fc2.bias": "0.mlp",
        "lm_head.bias": "head.unembed",
    },
    "gpt-neox": {
        "gpt_neox.layers.0.input_layernorm.bias": "0.attn",
        "gpt_neox.layers.0.post_attention_layernorm.bias": "0.mlp",
        "gpt_neox.embed_in.weight": "embed",
        "gpt_neox.final_layer_norm.weight": "head.norm",
    },
    "gpt2": {
        "transformer.wpe.weight": "embed",
        "transformer.h.2.attn.c_attn.bias": "2.attn",
        "transformer.h.2.ln_2.bias": "2.mlp",
        "lm_head.weight": "head.unembed",
    },
    "opt": {
        "model.decoder.embed_positions.weight": "embed",
        "model.decoder.layers.1.final_layer_norm.weight": "1.mlp",
        "model.decoder.final_layer_norm.weight": "head.norm",
    },
    "mixtral": {
        "model.layers.1.mlp.gate.weight": "1.mlp",
        "model.layers.1.mlp.experts.down_proj": "1.mlp",
        "model.layers.1.post_attention_layernorm.weight": "1.mlp",
    },
    "qwen2-moe": {"model.layers.1.mlp.shared_expert_gate.weight": "1.mlp"},
}


@pytest.mark.parametrize("family", NAMES)
def test_a_weight_belongs_to_what_it_works_for(family):
    pieces = pair(family).hybrid.pieces("component")
    found = {weight.path: str(piece) for piece in pieces for weight in piece.weights}
    assert {name: found[name] for name in NAMES[family]} == NAMES[family]


def test_only_known_divisions_are_made():
    with pytest.raises(DriftlensError, match="layer, component, head, module, found 'neuron'"):
        pair("llama").hybrid.pieces("neuron")


# Grafts


@pytest.mark.parametrize("family", FAMILIES)
def test_grafting_nothing_is_base_and_grafting_all_is_aligned_to_the_last_bit(family):
    base, aligned = frame(family).likelihoods
    assert not torch.equal(base, aligned)
    for by in ("layer", "component"):
        assert torch.equal(frame(family).grafted(()), base)
        assert torch.equal(frame(family).grafted(pair(family).hybrid.pieces(by)), aligned)


@pytest.mark.parametrize("family", FAMILIES)
def test_grafting_all_above_a_boundary_is_restoring_the_stream_below_it(family):
    pieces = pair(family).hybrid.pieces("layer")
    for boundary, (restored, corrupted) in enumerate(
        zip(frame(family).restored, frame(family).corrupted, strict=True)
    ):
        # The identity is exact; a run that starts at a block may round as it likes.
        above, below = pieces[boundary:], pieces[:boundary]
        torch.testing.assert_close(frame(family).grafted(above), restored, rtol=0, atol=1e-5)
        torch.testing.assert_close(frame(family).grafted(below), corrupted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_graft_is_a_net_put_together_by_hand(family):
    every = pair(family).hybrid.pieces("component")
    for pieces in (every[::2], every[1::2], every[:1], every[-1:]):
        net = by_hand(pair(family), paths(pieces))
        plain = HookedModel(net, pair(family).base.tokenizer)
        trace = plain.trace(frame(family).base.batch)
        likelihood = gold(plain.readout(trace.predictors), trace.batch.targets).double()
        assert torch.equal(
            frame(family).grafted(pieces), frame(family)._by_unit(trace, likelihood)
        ), [str(piece) for piece in pieces]


@pytest.mark.parametrize("family", ["llama tied", "qwen3", "gemma", "gpt2", "opt"])
def test_the_two_uses_of_a_tied_embedding_are_grafted_apart(family):
    assert pair(family).base.net.config.tie_word_embeddings
    every = {str(piece): piece for piece in pair(family).hybrid.pieces("component")}
    ends = [every["embed"], every["head.unembed"]]
    found = [frame(family).grafted(some) for some in ((), ends[:1], ends[1:], ends)]
    assert all(not torch.equal(a, b) for n, a in enumerate(found) for b in found[:n])
    # One tensor is not two: the change of both is not the sum of the changes of each.
    base, one, other, both = found
    assert not torch.allclose(both - base, (one - base) + (other - base))


# Slopes


def slopes_by_hand(family, batch):
    """For each module ⟨∂ log p/∂W, ΔW⟩ by plain autograd, and the product of both lengths."""
    here = pair(family)
    net = by_hand(here, parameters(here.base.net), ALPHA)
    likelihood = read(net, batch)
    likelihood.sum().backward()
    ours, theirs = (parameters(untied(model.net)) for model in (here.base, here.aligned))
    found: dict[str, float] = {}
    size: dict[str, float] = {}
    for name, weight in net.named_parameters():
        path = name.rpartition(".")[0]
        change = theirs[name].double() - ours[name].double()
        gradient = torch.zeros_like(change) if weight.grad is None else weight.grad.double()
        found[path] = found.get(path, 0) + float((gradient * change).sum())
        size[path] = size.get(path, 0) + float(gradient.norm() * change.norm())
    return likelihood.detach(), found, size


@pytest.mark.parametrize("family", FAMILIES)
def test_the_slope_of_every_module_is_that_of_its_weights_gradient(family):
    batch = frame(family).base.batch
    slopes = pair(family).hybrid.slopes(batch, ALPHA)
    likelihood, wanted, size = slopes_by_hand(family, batch)
    torch.testing.assert_close(slopes.likelihood, likelihood, rtol=0, atol=1e-5)
    assert slopes.acts.keys() == wanted.keys()
    for path, acts in slopes.acts.items():
        assert float(acts.sum()) == pytest.approx(wanted[path], abs=ROUNDED * size[path]), path


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mixtral", "qwen2-moe"])
def test_each_text_has_the_slope_that_it_has_alone(family):
    slopes = pair(family).hybrid.slopes(frame(family).base.batch, ALPHA)
    for row, text in enumerate(TEXTS):
        alone = shown(pair(family), [text]).base.batch
        _, wanted, size = slopes_by_hand(family, alone)
        for path, acts in slopes.acts.items():
            found = float(acts[row].sum())
            assert found == pytest.approx(wanted[path], abs=ROUNDED * size[path]), (path, row)
            assert not acts[row, alone.ids.shape[1] :].any(), "padding does nothing"


LINEAR = (nn.Linear, Conv1D)


@pytest.mark.parametrize("family", ["llama tied", "gemma2", "phi", "gpt2", "opt", "qwen2-moe"])
def test_a_linear_map_acts_at_each_position_by_what_enters_there_and_the_gradient_there(family):
    here, batch = pair(family), frame(family).base.batch
    net = by_hand(here, parameters(here.base.net), ALPHA)
    entered, left, handles = {}, {}, []

    def keep(path):
        def kept(_, inputs, output):
            output.retain_grad()
            entered[path], left[path] = inputs[0].detach(), output

        return kept

    for path, module in net.named_modules():
        if isinstance(module, LINEAR):
            handles.append(module.register_forward_hook(keep(path)))
    read(net, batch).sum().backward()
    slopes = here.hybrid.slopes(batch, ALPHA)
    ours, theirs = (untied(model.net) for model in (here.base, here.aligned))
    assert {path for path in left if path in slopes.acts} == set(left)
    for path, output in left.items():
        one, other = ours.get_submodule(path), theirs.get_submodule(path)
        change = (other.weight - one.weight).detach()
        change = change if isinstance(one, Conv1D) else change.T
        moved = entered[path] @ change
        if one.bias is not None:
            moved = moved + (other.bias - one.bias).detach()
        wanted = (output.grad * moved).sum(-1).reshape(batch.ids.shape)
        size = (output.grad.norm(dim=-1) * moved.norm(dim=-1)).reshape(batch.ids.shape)
        error = (slopes.acts[path] - wanted).abs()
        assert bool((error <= ROUNDED * size + 1e-7).all()), path


@pytest.mark.parametrize(
    ("family", "table", "offset"),
    [("gpt2", "transformer.wpe", 0), ("opt", "model.decoder.embed_positions", 2)],
)
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_position_acts_where_its_row_of_the_table_is_read(family, table, offset, side):
    here, batch = pair(family), frame(family).base.batch
    padded = batch if side == "right" else batch.padded_left()
    found = here.hybrid.slopes(padded, ALPHA).acts[table]
    ours, theirs = (untied(m.net).get_submodule(table).weight for m in (here.base, here.aligned))
    for row, text in enumerate(TEXTS):
        alone = shown(here, [text]).base.batch
        net = by_hand(here, parameters(here.base.net), ALPHA)
        read(net, alone).sum().backward()
        change = (theirs - ours).detach()
        wanted = (net.get_submodule(table).weight.grad * change).sum(1)
        length = alone.ids.shape[1]
        np.testing.assert_allclose(
            found[row][padded.mask[row]], wanted[offset : offset + length], atol=1e-5
        )
        assert not found[row][~padded.mask[row]].any()


def double(family):
    here = nets.pair(family)
    for model in (here.base, here.aligned):
        model.net.double()
    return here


@pytest.mark.parametrize(
    ("family", "step", "tolerance"),
    [
        # The error of a central difference is of the order of step²; of Llama's norms, which
        # compute in float32, its rounding over the step.
        ("gpt2", 1e-4, 1e-7),
        ("llama", 2e-2, 2e-3),
    ],
)
def test_slopes_are_the_finite_differences_of_the_likelihood(family, step, tolerance):
    here = double(family)
    batch = shown(here).base.batch
    for alpha in (0.0, 0.5, 1.0):
        slopes = here.hybrid.slopes(batch, alpha)
        found = sum(acts.sum(1) for acts in slopes.acts.values())
        ends = [here.hybrid.slopes(batch, alpha + side * step).likelihood for side in (-1, 1)]
        wanted = torch.zeros(len(TEXTS), dtype=torch.float64)
        wanted.index_add_(0, batch.target[0], (ends[1] - ends[0]).double() / (2 * step))
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_itself_goes_nowhere(family):
    one = pair(family).base
    alone = ModelPair(one, one)
    slopes = alone.hybrid.slopes(frame(family).base.batch, ALPHA)
    assert not slopes.acts
    here = shown(alone)
    assert not here.path(2).acts
    for pieces in ((), alone.hybrid.pieces("layer"), alone.hybrid.pieces("component")[::2]):
        assert torch.equal(here.grafted(pieces), here.likelihoods[0])


def test_a_copy_goes_nowhere_either():
    here = of(nets.net("llama"), nets.net("llama"))
    assert not shown(here).path(2).acts


@pytest.mark.parametrize("family", ["llama tied", "gemma2", "phi"])
def test_logits_that_are_read_out_a_few_at_a_time_have_the_same_slopes(family, monkeypatch):
    batch = frame(family).base.batch
    whole = pair(family).hybrid.slopes(batch, ALPHA)
    monkeypatch.setattr(reading, "LOGIT_BYTES", 4 * 3 * nets.WORDS)
    parts = pair(family).hybrid.slopes(batch, ALPHA)
    torch.testing.assert_close(parts.likelihood, whole.likelihood, rtol=0, atol=1e-5)
    for path, acts in whole.acts.items():
        torch.testing.assert_close(parts.acts[path], acts, rtol=0, atol=1e-4, msg=path)


def test_only_weights_that_moved_act():
    base = nets.net("gpt2")
    here = of(base, nets.moved(deepcopy(base), 0.1, 1, only="h.1.mlp.c_fc"))
    slopes = here.hybrid.slopes(shown(here).base.batch, ALPHA)
    assert slopes.acts.keys() == {"transformer.h.1.mlp.c_fc"}


# The path


def test_the_path_is_the_sum_of_its_slopes_with_the_sign_of_a_loss():
    here = frame("llama")
    path = here.path(3)
    nodes, weights = np.polynomial.legendre.leggauss(3)
    np.testing.assert_allclose(path.alphas, (nodes + 1) / 2)
    slopes = [pair("llama").hybrid.slopes(here.base.batch, alpha) for alpha in path.alphas]
    for module, acts in path.acts.items():
        wanted = -sum(w / 2 * s.acts[module] for w, s in zip(weights, slopes, strict=True))
        torch.testing.assert_close(acts, wanted, rtol=0, atol=1e-12)
    assert path.shape == here.base.batch.ids.shape
    assert path.likelihoods.shape == (3, len(here.likelihoods[0]))
    assert here.path(3) is path


SWITCHING = ("mixtral", "qwen2-moe", "olmoe")


def gap(seen, nodes):
    """By how much the acts of a text miss its rise at worst, as a part of the largest rise."""
    base, aligned = seen.likelihoods
    rise = np.bincount(seen.row_of_scored, (base - aligned).numpy(), len(TEXTS))
    found = sum(acts.sum(1) for acts in seen.path(nodes).acts.values()).numpy()
    return np.abs(found - rise).max() / np.abs(rise).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_acts_of_each_text_add_up_to_its_rise(family):
    # Each token goes to all experts; of OPT's kinks more nodes than these would be needed.
    every = {"num_experts_per_tok": 4} if family in SWITCHING else {}
    assert gap(shown(nets.pair(family, **every)), 16) < (0.02 if family == "opt" else 1e-4)


@pytest.mark.parametrize("family", SWITCHING)
def test_where_tokens_change_experts_along_the_path_no_number_of_nodes_closes_the_gap(family):
    # The likelihood jumps there, and no slope tells of a jump.
    assert gap(frame(family), 8) > 0.1
    assert gap(frame(family), 16) > 0.1


# What is left behind


def everything(net):
    """All of a net that looking must not change."""
    return (
        [(name, p.requires_grad, p.grad, p.data_ptr()) for name, p in parameters_of(net)],
        [(n, m.training, sorted(vars(m)), len(m._forward_hooks)) for n, m in net.named_modules()],
        [(n, len(m._forward_pre_hooks), len(m._backward_hooks)) for n, m in net.named_modules()],
        {name: weight.clone() for name, weight in net.state_dict().items()},
    )


def parameters_of(net):
    return list(net.named_parameters(remove_duplicate=False))


def same(before, after):
    weights = zip(before[-1].values(), after[-1].values(), strict=True)
    return before[:-1] == after[:-1] and all(torch.equal(*both) for both in weights)


@pytest.mark.parametrize("family", ["llama", "llama tied", "gpt2", "mixtral"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_both_models_are_left_as_they_were_found(family, mode):
    here = nets.pair(family)
    for model in (here.base, here.aligned):
        model.net.train(mode == "train")
    before = [everything(model.net) for model in (here.base, here.aligned)]
    seen = shown(here)
    for by in ("layer", "component"):
        seen.grafted(here.hybrid.pieces(by)[::2])
    seen.path(2)
    after = [everything(model.net) for model in (here.base, here.aligned)]
    assert all(map(same, before, after))
    # The dropout of a net in training mode never ran.
    base, aligned = seen.likelihoods
    assert torch.equal(seen.grafted(()), base)
    assert torch.equal(seen.grafted(here.hybrid.pieces("layer")), aligned)


def test_both_models_are_left_as_they_were_found_after_a_fault():
    here = nets.pair("llama")
    before = [everything(model.net) for model in (here.base, here.aligned)]
    batch = shown(here).base.batch
    unknown = replace(batch, ids=batch.ids + nets.WORDS)
    with pytest.raises(IndexError):
        here.hybrid.slopes(unknown, ALPHA)
    assert all(map(same, before, [everything(m.net) for m in (here.base, here.aligned)]))
    between = list(here.hybrid.model.net.modules())
    assert not any(module._forward_hooks for module in between)
    assert torch.equal(shown(here).grafted(()), shown(here).likelihoods[0])


def storages(net):
    return {p.data_ptr(): p.numel() * p.element_size() for _, p in parameters_of(net)}


@pytest.mark.parametrize("family", ["llama", "llama tied", "gpt2"])
def test_at_the_ends_there_is_no_third_copy_and_between_there_is_one(family):
    here = nets.pair(family)
    base, aligned = (storages(model.net) for model in (here.base, here.aligned))
    hybrid, batch = here.hybrid, shown(here).base.batch
    assert isinstance(hybrid, Twin)
    pieces = hybrid.pieces("component")
    for some, lent in (((), base), (pieces, aligned), (pieces[::2], base | aligned)):
        with hybrid.grafted(some) as model:
            assert storages(model.net).keys() <= lent.keys()
    for alpha in (0.2, 0.4, 0.9):
        hybrid.slopes(batch, alpha)
        own = {k: v for k, v in storages(hybrid.model.net).items() if k not in base | aligned}
        assert sum(own.values()) == sum(base.values())
    # Every point of the path is written into the same room.
    assert {room.data_ptr() for room in hybrid._room.values()} == own.keys()
    with hybrid.grafted(()) as model:
        assert storages(model.net).keys() == base.keys()


def test_weights_that_did_not_move_are_lent_between_the_ends_too():
    base = nets.net("llama")
    here = of(base, nets.moved(deepcopy(base), 0.1, 1, only="layers.1.mlp"))
    here.hybrid.slopes(shown(here).base.batch, ALPHA)
    own = storages(here.hybrid.model.net).keys() - storages(base).keys()
    assert len(own) == 3


# Half precision


def test_the_path_of_a_pair_in_half_precision_runs_in_full_precision():
    half, full = nets.pair("llama tied"), nets.pair("llama tied")
    for model in (*(half.base, half.aligned), *(full.base, full.aligned)):
        model.net.bfloat16()
    for model in (full.base, full.aligned):
        model.net.float()
    seen = shown(half)
    base, aligned = seen.likelihoods
    batch = seen.base.batch
    for alpha in (0.0, ALPHA, 1.0):
        found, wanted = (one.hybrid.slopes(batch, alpha) for one in (half, full))
        assert found.likelihood.dtype == torch.float32
        torch.testing.assert_close(found.likelihood, wanted.likelihood, rtol=0, atol=1e-5)
        for path, acts in wanted.acts.items():
            torch.testing.assert_close(found.acts[path], acts, rtol=0, atol=1e-4, msg=path)
    # At the ends it is each model as it is, in its own precision.
    pieces = half.hybrid.pieces("component")
    assert torch.equal(seen.grafted(()), base)
    assert torch.equal(seen.grafted(pieces), aligned)
    assert half.hybrid.model.dtype == torch.bfloat16


# Adapters

# peft asks for an attribute by an old name, and says that it saves an embedding that it adapts.
peft_warns = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning", "ignore:Setting `save_embedding_layers`"
)


def adapted(family="llama", **changes):
    """A live PeftModel on a tiny net; what it learns is far from nothing."""
    peft = pytest.importorskip("peft")
    of_lora = {"r": 2, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    # What peft draws must not hang on which tests ran before.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        live = peft.get_peft_model(nets.net(family), peft.LoraConfig(**of_lora | changes))
    for size, only in ((0.1, "lora_"), (0.03, "modules_to_save")):
        nets.moved(live, size, 3, only)
    return live.eval()


def live_pair(live):
    return ModelPair.load(None, live, tokenizer=nets.tokenizer())


def merged(live):
    """Base and aligned as two nets of their own; the live one is left alone."""
    aligned = deepcopy(live).merge_and_unload()
    return of(nets.net("llama"), aligned)


KINDS = {
    "lora": {},
    "everywhere": {"target_modules": "all-linear"},
    "the ends too": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "norms": {"modules_to_save": ["input_layernorm"]},
    "an embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "dora": {"use_dora": True},
    "rank-stabilised": {"use_rslora": True, "lora_alpha": 5},
}


@peft_warns
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_grafted_as_if_it_were_merged_in_these_modules_only(kind):
    live = adapted(**KINDS[kind])
    here, apart = live_pair(live), merged(live)
    assert isinstance(here.hybrid, Adapted)
    seen = shown(here)
    every = here.hybrid.pieces("component")
    assert torch.equal(seen.grafted(()), seen.likelihoods[0])
    assert torch.equal(seen.grafted(every), seen.likelihoods[1])
    moved = {w.module for piece in every for w in piece.weights}
    names = {str(piece) for piece in apart.hybrid.pieces("component")}
    assert {str(piece) for piece in every} <= names
    for pieces in (every[::2], every[1::2], every[:1]):
        modules = {weight.module for piece in pieces for weight in piece.weights}
        weights = [n for n in parameters(apart.base.net) if n.rpartition(".")[0] in modules]
        assert moved >= modules
        net = by_hand(apart, weights)
        wanted = torch.zeros(len(seen.likelihoods[0]), dtype=torch.float64)
        tokens = read(net, seen.base.batch).double().detach()
        wanted.index_add_(0, seen.base.batch.owner, tokens)
        # Merged weights round once more: float32 in logits of about 5.
        torch.testing.assert_close(seen.grafted(pieces), wanted, rtol=0, atol=1e-4)


@peft_warns
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_acts_as_its_merged_weights_do_and_no_other_weight_does(kind):
    live = adapted(**KINDS[kind])
    here, apart = live_pair(live), merged(live)
    seen = shown(here)
    found, wanted = (one.hybrid.slopes(seen.base.batch, ALPHA) for one in (here, apart))
    assert found.acts.keys() == wanted.acts.keys()
    torch.testing.assert_close(found.likelihood, wanted.likelihood, rtol=0, atol=1e-4)
    for path, acts in wanted.acts.items():
        torch.testing.assert_close(found.acts[path], acts, rtol=1e-3, atol=1e-4, msg=path)
    assert gap(seen, 32) < 5e-3


@peft_warns
def test_a_whole_module_that_an_adapter_saves_adds_up_all_the_same():
    # Its output is mixed, not its weights: another path, with the same two ends.
    seen = shown(live_pair(adapted(modules_to_save=["mlp"], target_modules=["q_proj"])))
    assert gap(seen, 32) < 5e-3


@peft_warns
@pytest.mark.parametrize("mode", ["train", "eval", "disabled"])
def test_an_adapter_is_left_as_it_was_found(mode):
    live = adapted(modules_to_save=["lm_head"])
    live.train(mode == "train")
    if mode == "disabled":
        live.base_model.disable_adapter_layers()
    layers = [m for m in live.modules() if "_disable_adapters" in vars(m)]

    def state():
        flags = [(m.disable_adapters, m.active_adapters, vars(m).get("merged")) for m in layers]
        return (flags, *everything(live))

    before = state()
    here = live_pair(live)
    seen = shown(here)
    seen.grafted(here.hybrid.pieces("layer")[::2])
    seen.path(2)
    assert list(here.hybrid.changes())
    unknown = replace(seen.base.batch, ids=seen.base.batch.ids + nets.WORDS)
    with pytest.raises(IndexError):
        here.hybrid.slopes(unknown, ALPHA)
    assert same(before, state())


# Every weight beside itself


@pytest.mark.parametrize("family", ["llama", "llama tied", "gpt2"])
def test_changes_name_each_weight_once_and_tied_ones_as_one(family):
    here = pair(family)
    changes = list(here.hybrid.changes())
    ours, theirs = (dict(model.net.named_parameters()) for model in (here.base, here.aligned))
    assert sorted(change.name for change in changes) == sorted(ours)
    for change in changes:
        assert torch.equal(change.base, ours[change.name])
        assert torch.equal(change.aligned, theirs[change.name])


@peft_warns
def test_changes_of_an_adapter_are_those_of_the_merged_weights():
    live = adapted(modules_to_save=["lm_head"])
    apart = merged(live)
    changes = list(live_pair(live).hybrid.changes())
    ours, theirs = (parameters(model.net) for model in (apart.base, apart.aligned))
    moved = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert {change.name for change in changes} == moved
    for change in changes:
        torch.testing.assert_close(change.base, ours[change.name], rtol=0, atol=0)
        torch.testing.assert_close(change.aligned, theirs[change.name], rtol=0, atol=1e-6)


# What cannot be matched


def test_weights_of_another_shape_are_named():
    here = of(nets.net("llama"), nets.net("llama", intermediate_size=40))
    told = r"match by name and shape, found model\.layers\.\d\.mlp\.\w+\.weight of \(.* and \d more"
    with pytest.raises(DriftlensError, match=told):
        _ = here.hybrid


def test_weights_of_another_name_are_named():
    here = of(nets.net("llama"), nets.net("qwen2"))
    with pytest.raises(DriftlensError, match=r"self_attn\.k_proj\.bias in one model only.*sweep"):
        _ = here.hybrid
    with pytest.raises(DriftlensError, match=r"--method sweep or screen"):
        shown(here).path(2)


OTHERWISE = {
    "activation": {"hidden_act": "gelu"},
    "places": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
}


@pytest.mark.parametrize("change", OTHERWISE.values(), ids=OTHERWISE)
def test_nets_that_differ_in_more_than_their_weights_are_refused(change):
    # Nothing between them is aligned when all of its weights are.
    here = of(nets.net("llama"), nets.net("llama", **change))
    with pytest.raises(DriftlensError):
        shown(here).grafted(here.hybrid.pieces("layer"))


def test_only_nets_have_weights_to_swap():
    class Another:
        depth, width, causal = 3, 32, True

    with pytest.raises(DriftlensError, match=r"weights can be swapped, found Another"):
        _ = ModelPair(Another(), Another()).hybrid


# Heads

HEADS = {
    "llama": ("model.layers.1.self_attn.q_proj", 0, [range(16)]),
    "qwen3": ("model.layers.1.self_attn.v_proj", 0, [range(8)]),
    "phi": ("model.layers.0.self_attn.dense", 1, [range(8)]),
    "phi3": ("model.layers.2.self_attn.qkv_proj", 0, [range(16), range(32, 40), range(48, 56)]),
    "gpt2": ("transformer.h.1.attn.c_attn", 1, [range(8), range(32, 40), range(64, 72)]),
    "gpt-neox": ("gpt_neox.layers.1.attention.query_key_value", 0, [range(24)]),
    "olmoe": ("model.layers.1.self_attn.k_proj", 0, [range(8)]),
}
"""A map, the axis of its weight, and where the first head of them lies on it."""


@pytest.mark.parametrize("family", HEADS)
def test_a_head_has_its_features_of_every_map(family):
    path, axis, places = HEADS[family]
    pieces = pair(family).hybrid.pieces("head")
    first = next(p for p in pieces if p.component == "head 0" and f".{p.layer}." in path)
    mine = next(w for w in first.weights if (w.module, w.name) == (path, "weight"))
    assert mine.axis == axis
    assert list(mine.features) == [place for run in places for place in run]


def only(weight, tensor):
    """A tensor with nothing but a weight's features in it."""
    if weight.features is None:
        return tensor
    kept = torch.zeros_like(tensor)
    index = torch.tensor(weight.features)
    return kept.index_copy_(weight.axis, index, tensor.index_select(weight.axis, index))


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_divide_all_weights_and_none_twice(family):
    covered = {n: torch.zeros_like(p) for n, p in parameters(pair(family).base.net).items()}
    pieces = pair(family).hybrid.pieces("head")
    for piece in pieces:
        for weight in piece.weights:
            covered[weight.path] += only(weight, torch.ones_like(covered[weight.path]))
    assert all(bool((count == 1).all()) for count in covered.values())
    config = pair(family).base.net.config
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    for block in range(pair(family).depth):
        found = [p.component for p in pieces if p.layer == str(block) and "head" in p.component]
        assert sorted(found) == [f"head {number}" for number in range(groups)]


@pytest.mark.parametrize("family", FAMILIES)
def test_grafted_heads_are_a_net_put_together_by_hand(family):
    here, seen = pair(family), frame(family)
    every = here.hybrid.pieces("head")
    ours, theirs = (parameters(untied(model.net)) for model in (here.base, here.aligned))
    for pieces in (every[::2], [p for p in every if p.component == "head 1"]):
        net = untied(here.base.net)
        for weight in (w for piece in pieces for w in piece.weights):
            change = only(weight, theirs[weight.path]) - only(weight, ours[weight.path])
            with torch.no_grad():
                net.get_parameter(weight.path).add_(change)
        tokens = read(net, seen.base.batch).double().detach()
        wanted = torch.zeros(len(seen.likelihoods[0]), dtype=torch.float64)
        wanted.index_add_(0, seen.base.batch.owner, tokens)
        torch.testing.assert_close(seen.grafted(pieces), wanted, rtol=0, atol=2e-5)
    assert torch.equal(seen.grafted(every), seen.likelihoods[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_slope_of_every_head_is_that_of_its_weights_gradient(family):
    here, batch = pair(family), frame(family).base.batch
    net = by_hand(here, parameters(here.base.net), 0.5)
    read(net, batch).sum().backward()
    ours, theirs = (parameters(untied(model.net)) for model in (here.base, here.aligned))
    # One node in the middle: what it finds is the slope there, with the sign of a loss.
    path = frame(family).path(1, heads=True)
    for piece in here.hybrid.pieces("head"):
        wanted = size = 0.0
        for weight in piece.weights:
            gradient = net.get_parameter(weight.path).grad
            if gradient is None:
                continue
            change = only(weight, theirs[weight.path].double() - ours[weight.path].double())
            wanted -= float((gradient * change).sum())
            size += float(only(weight, gradient.double()).norm() * change.norm())
        found = float(path.of(piece).sum())
        assert found == pytest.approx(wanted, abs=2 * ROUNDED * size), str(piece)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt-neox"])
def test_heads_and_what_none_of_them_has_act_as_attention_does_at_every_position(family):
    seen, hybrid = frame(family), pair(family).hybrid
    fine, coarse = seen.path(2, heads=True), seen.path(2)
    for piece in hybrid.pieces("component"):
        parts = [p for p in hybrid.pieces("head") if p.layer == piece.layer]
        heads = [p for p in parts if piece.component == "attn" and "head" in p.component]
        parts = [p for p in parts if p.component == piece.component] + heads
        found = sum(fine.of(part) for part in parts)
        torch.testing.assert_close(found, coarse.of(piece), rtol=0, atol=1e-5, msg=str(piece))


def test_what_is_left_of_attention_by_head_is_not_the_whole_of_it():
    # Both are called 0.attn.
    here = shown(nets.pair("llama"))
    hybrid = here.pair.hybrid
    whole, rest = (
        next(p for p in hybrid.pieces(by) if str(p) == "0.attn") for by in ("component", "head")
    )
    one, other = here.grafted([whole]), here.grafted([rest])
    again = shown(nets.pair("llama"))
    assert torch.equal(again.grafted([rest]), other)
    assert torch.equal(again.grafted([whole]), one)
    assert not torch.equal(one, other)


@peft_warns
def test_an_adapter_has_no_heads():
    with pytest.raises(DriftlensError, match=r"whole models, to divide by head.*by component"):
        live_pair(adapted()).hybrid.pieces("head")


@pytest.mark.parametrize("family", ["llama", "llama tied", "gemma2", "gpt2", "gpt-neox", "opt"])
def test_without_memory_for_a_copy_the_path_is_the_same_and_none_is_held(family, monkeypatch):
    held = nets.pair(family)
    assert not held.hybrid.lean
    monkeypatch.setattr("driftlens.models.hybrid.available", lambda _: 0)
    lean = nets.pair(family)
    assert lean.hybrid.lean
    texts = nets.pack(nets.TEXTS)
    wants = Wants(causal=True, same_tokens=True, graph=True)
    ours, theirs = (next(iter(p.frames(texts, wants))).path(2) for p in (held, lean))
    assert not lean.hybrid._room
    torch.testing.assert_close(ours.likelihoods, theirs.likelihoods, atol=1e-4, rtol=1e-5)
    assert ours.acts.keys() == theirs.acts.keys()
    scale = max(float(act.abs().max()) for act in ours.acts.values())
    for path, act in ours.acts.items():
        torch.testing.assert_close(act, theirs.acts[path], atol=1e-4 * scale, rtol=1e-3)
