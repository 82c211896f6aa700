"""A model looked into: the same numbers as its own, its gradients, and no trace left."""

import json
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file

import nets
from driftlens.errors import DriftlensError, LoadError
from driftlens.models import EMBED, ModelPair, Site, Wants, anatomy
from driftlens.models.alone import Alone
from driftlens.models.hooks import HookedModel
from driftlens.models.tokens import Batch

OUT = Wants(frozenset({"out"}), None)
EVERYTHING = Wants(frozenset({"attn", "mlp", "out"}), None)
GRADIENTS = Wants(frozenset({"attn", "mlp", "out"}), None, gradients=True)
FEW = ("llama", "gemma2", "phi", "gpt2", "opt", "olmoe")

causal = pytest.mark.parametrize("family", nets.some(nets.CAUSAL))
every_family = pytest.mark.parametrize("family", nets.some([*nets.CAUSAL, *nets.MASKED]))
few = pytest.mark.parametrize("family", FEW)


def logprobs(net, words, text):
    """[token] log-probability of every token but the first, one text alone, by the net itself."""
    ids = words(text, return_tensors="pt", return_token_type_ids=False)["input_ids"]
    with torch.no_grad():
        whole = net(input_ids=ids).logits.float().log_softmax(-1)
    return whole[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]


def frame_of(pair, wants=OUT, texts=nets.TEXTS):
    encoder = pair.encoder(nets.pack(texts))
    return pair.frame(encoder, sorted(encoder.plan, key=lambda w: w.example), wants)


def close(found, wanted, tolerance):
    """Equal to a tolerance relative to the largest number."""
    assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


# The same numbers


@causal
def test_readout_gives_the_nets_own_logits(family):
    model = nets.model(family)
    batch = nets.batch(model)
    with torch.no_grad():
        own = model.net(**model._inputs(batch)).logits[batch.mask]
    found = model.readout(model.trace(batch).last[batch.mask])
    # Rows of one token instead of a batch of texts: 1e-5 is float32 over a width of 32.
    torch.testing.assert_close(found, own, rtol=0, atol=1e-5)
    assert model.vocabulary == own.shape[-1]


@causal
def test_likelihoods_are_those_of_a_naive_loop(family):
    pair = nets.pair(family)
    for model, found in zip((pair.base, pair.aligned), frame_of(pair).likelihoods, strict=True):
        naive = [logprobs(model.net, model.tokenizer, text) for text in nets.TEXTS]
        assert float(found.mean()) == pytest.approx(float(torch.cat(naive).mean()), abs=1e-5)
        torch.testing.assert_close(found, torch.cat(naive).double(), rtol=0, atol=1e-5)


@causal
def test_padding_side_does_not_matter(family):
    model = nets.model(family)
    batch = nets.batch(model)
    # 1e-4: float32 sums in another order, through four blocks.
    close(model.trace(batch.padded_left()).predictors, model.trace(batch).predictors, 1e-4)


@every_family
def test_batch_size_and_company_do_not_matter(family):
    model = nets.model(family)
    together = model.trace(nets.batch(model)).predictors
    apart = [model.trace(nets.batch(model, [text])).predictors for text in nets.TEXTS]
    close(torch.cat(apart), together, 1e-4)
    back = [model.trace(nets.batch(model, nets.TEXTS[i : i + 4])).predictors for i in (0, 4, 8)]
    close(torch.cat(back), together, 1e-4)


@every_family
def test_a_model_alone_gives_the_same_numbers_in_the_same_order(family):
    model = nets.model(family)
    batch, alone = nets.batch(model), Alone(model)
    trace, rows = model.trace(batch, EVERYTHING), alone.trace(batch, EVERYTHING)
    close(rows.predictors, trace.predictors, 1e-4)
    close(alone.readout(rows.predictors), model.readout(trace.predictors), 1e-4)
    assert rows.activations.keys() == trace.activations.keys()
    for site in trace.activations:
        close(rows.at(site), trace.at(site), 1e-4)
    if model.causal:
        stream = trace.activations[Site(0)]
        close(alone.resume(batch, 0, stream), trace.predictors, 1e-4)


def test_half_precision_works_and_is_compared_in_full():
    pair = nets.pair("gemma2")
    full = frame_of(pair).comparison
    for model in (pair.base, pair.aligned):
        model.net.to(torch.bfloat16)
    frame = frame_of(pair, EVERYTHING)
    assert frame.base.predictors.dtype == torch.bfloat16
    assert frame.comparison.kl_base_aligned.dtype == torch.float32
    # bfloat16 keeps 8 bits: 0.4 % of streams of about 10, and logits are capped at 3.
    torch.testing.assert_close(frame.likelihoods[0], full.base_logprob.double(), rtol=0, atol=0.3)
    assert bool(frame.restored.isfinite().all())


# Resuming


@causal
def test_resuming_a_model_on_its_own_stream_changes_nothing(family):
    model = nets.model(family)
    batch = nets.batch(model)
    trace = model.trace(batch, OUT)
    for layer in range(-1, model.depth):
        stream = trace.activations[Site(layer) if layer >= 0 else EMBED]
        close(model.resume(batch, layer, stream), trace.predictors, 1e-6)


def swapped(base, aligned, layer):
    """Aligned with the weights of base in the embedding and in the blocks up to `layer`."""
    config = deepcopy(aligned.net.config)
    config.tie_word_embeddings = False
    net = type(aligned.net)(config).eval()
    net.load_state_dict(aligned.net.state_dict())
    head = net.get_output_embeddings()
    head.weight.data.copy_(aligned.net.get_output_embeddings().weight)
    assert head.weight is not net.get_input_embeddings().weight
    blocks = {id(p) for b in anatomy.blocks(net)[: layer + 1] for p in b.parameters()}
    theirs = dict(base.net.named_parameters())
    for name, weight in net.named_parameters():
        embeds = any(part in name for part in ("embed", "wte", "wpe")) and weight is not head.weight
        if embeds or id(weight) in blocks:
            weight.data.copy_(theirs[name])
    return net


@causal
def test_patching_the_stream_equals_swapping_the_weights_below_it(family):
    pair = nets.pair(family)
    frame = frame_of(pair)
    words = pair.base.tokenizer
    for layer in range(-1, pair.depth):
        for found, below, above in (
            (frame.restored, pair.base, pair.aligned),
            (frame.corrupted, pair.aligned, pair.base),
        ):
            net = swapped(below, above, layer)
            naive = torch.cat([logprobs(net, words, text) for text in nets.TEXTS]).double()
            torch.testing.assert_close(found[layer + 2], naive, rtol=0, atol=1e-5)
    base, aligned = frame.likelihoods
    assert torch.equal(frame.restored[0], aligned)
    assert torch.equal(frame.restored[-1], base)
    assert torch.equal(frame.corrupted[0], base)
    assert torch.equal(frame.corrupted[-1], aligned)
    assert float((frame.restored[1:] - aligned).abs().max()) > 1e-2


@few
@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_change_in_one_block_shows_there_and_nowhere_else(family, block):
    base = nets.net(family)
    inside = {id(p) for p in anatomy.blocks(base)[block].parameters()}
    mark = next(n for n, p in base.named_parameters() if id(p) in inside).split(f".{block}.")[0]
    aligned = nets.moved(deepcopy(base), 0.05, 1, f"{mark}.{block}.")
    pair = ModelPair(*(HookedModel(net, nets.tokenizer(), family) for net in (base, aligned)))
    frame = frame_of(pair, EVERYTHING)
    before = [s for s in frame.base.activations if s.layer < block or s.part == "in"]
    assert all(torch.equal(*frame.both(site)) for site in before)
    assert not torch.equal(*frame.both(Site(block)))
    for hybrids in (frame.restored, frame.corrupted):
        steps = hybrids.diff(dim=0).abs().sum(1)
        assert [stage for stage, step in enumerate(steps) if step != 0] == [block + 1]


# Gradients


@causal
def test_gradients_are_those_of_a_plain_run(family):
    model = nets.model(family)
    batch = nets.batch(model)
    found = model.trace(batch, GRADIENTS).gradients
    run = model.net(**model._inputs(batch), output_hidden_states=True)
    rows, tokens = batch.target
    likelihood = run.logits.log_softmax(-1)[rows, tokens - 1, batch.targets].sum()
    streams = run.hidden_states[:-1]
    for layer, wanted in enumerate(torch.autograd.grad(likelihood, streams)):
        close(found[Site(layer - 1) if layer else EMBED], wanted, 1e-5)
    for layer in range(model.depth):
        # What is added last to a stream has the stream's gradient.
        assert torch.equal(found[Site(layer, "mlp")], found[Site(layer)])


def test_no_weight_asks_for_a_gradient_while_streams_are_differentiated():
    model = nets.model("llama")
    asked = []

    def ask(stream):
        asked.extend(p.requires_grad for p in model.net.parameters())
        return stream

    model.trace(nets.batch(model), GRADIENTS, {Site(1): ask})
    assert asked
    assert not any(asked)


# Others compute their norms in float32 whatever the weights are, which finite differences feel.
@pytest.mark.parametrize("family", ["gpt2", "gpt-neox", "opt", "phi"])
def test_gradients_are_finite_differences_in_double_precision(family):
    model = nets.model(family)
    model.net.double()
    batch = nets.batch(model, nets.TEXTS[:3])
    found = model.trace(batch, GRADIENTS).gradients
    generator = torch.Generator().manual_seed(0)

    def likelihood(site, step):
        predictors = model.trace(batch, edits={site: lambda x: x + step}).predictors
        return model.readout(predictors).log_softmax(-1).gather(-1, batch.targets[:, None]).sum()

    for site in found:
        assert found[site].dtype == torch.float64
        direction = torch.randn(found[site].shape, generator=generator, dtype=torch.float64)
        rise = likelihood(site, 1e-5 * direction) - likelihood(site, -1e-5 * direction)
        # Central differences err by 1e-10 × curvature; rounding, by 1e-16 × 1e3 nats / 1e-5.
        assert float(rise / 2e-5) == pytest.approx(float((found[site] * direction).sum()), rel=3e-8)


# Edits


@few
def test_an_edit_that_gives_back_what_it_takes_changes_no_bit(family):
    model = nets.model(family)
    batch = nets.batch(model)
    plain = model.trace(batch, EVERYTHING)
    same = model.trace(batch, EVERYTHING, {site: lambda x: x.clone() for site in plain.activations})
    assert torch.equal(same.predictors, plain.predictors)
    assert all(torch.equal(same.activations[s], x) for s, x in plain.activations.items())


@few
def test_an_edit_replaces_what_it_names_and_nothing_before_it(family):
    model = nets.model(family)
    batch = nets.batch(model)
    site = Site(1, "mlp")
    plain = model.trace(batch, EVERYTHING)
    cut = model.trace(batch, EVERYTHING, {site: torch.zeros_like})
    assert not cut.activations[site].any()
    untouched = [s for s in plain.activations if s.layer < 1 or s == Site(1, "attn")]
    assert all(torch.equal(cut.activations[s], plain.activations[s]) for s in untouched)
    total = plain.activations[Site(0)] + plain.activations[Site(1, "attn")]
    torch.testing.assert_close(cut.activations[Site(1)], total, rtol=0, atol=2e-6)
    assert not torch.equal(cut.predictors, plain.predictors)


@few
@pytest.mark.parametrize("part", ["attn", "mlp", "heads"])
def test_a_model_that_was_never_looked_into_is_edited_like_one_that_was(family, part):
    known = nets.model(family)
    batch, edits = nets.batch(known), {Site(0): lambda x: 2 * x, Site(1, part): torch.zeros_like}
    assert known.has(Site(1, part))
    fresh = HookedModel(known.net, known.tokenizer)
    found, wanted = (model.trace(batch, OUT, edits) for model in (fresh, known))
    assert torch.equal(found.predictors, wanted.predictors)
    assert all(torch.equal(found.activations[s], x) for s, x in wanted.activations.items())


@few
@pytest.mark.parametrize("part", ["attn", "mlp", "heads"])
def test_a_model_that_was_never_looked_into_has_the_gradients_of_one_that_was(family, part):
    known = nets.model(family)
    batch, sites = nets.batch(known), [Site(0), Site(1, part)]
    assert known.has(sites[1])
    fresh = HookedModel(known.net, known.tokenizer)
    (_, (found,)), (_, (wanted,)) = (
        model.by_state(batch, sites, lambda logits: logits.logsumexp(-1)[None])
        for model in (fresh, known)
    )
    assert all(wanted[site].any() for site in sites)
    assert all(torch.equal(found[site], wanted[site]) for site in sites)


def test_what_leaves_a_block_is_what_enters_the_next():
    model = nets.model("gpt2")
    batch = nets.batch(model)
    runs = [model.trace(batch, edits={s: lambda x: 2 * x}) for s in (Site(0), Site(1, "in"))]
    assert torch.equal(runs[0].predictors, runs[1].predictors)


# As found


def state(net):
    """All that looking must not change."""
    return (
        [
            (name, weight.requires_grad, weight.data_ptr())
            for name, weight in net.named_parameters()
        ],
        [
            (
                name,
                module.training,
                sorted(vars(module)),
                len(module._forward_hooks),
                len(module._forward_pre_hooks),
                len(module._backward_hooks),
                len(module._backward_pre_hooks),
            )
            for name, module in net.named_modules()
        ],
        torch.is_grad_enabled(),
    )


def fails(_):
    raise ZeroDivisionError


LOOKS = {
    "trace": lambda m, b, x: m.trace(b, EVERYTHING),
    "gradients": lambda m, b, x: m.trace(b, GRADIENTS),
    "resume": lambda m, b, x: m.resume(b, 1, x),
    "resume at the embedding": lambda m, b, x: m.resume(b, -1, x),
    "readout": lambda m, b, x: m.readout(x[:, 0]),
    "a failing edit": lambda m, b, x: m.trace(b, EVERYTHING, {Site(1, "mlp"): fails}),
    "a failing edit under gradients": lambda m, b, x: m.trace(b, GRADIENTS, {Site(1): fails}),
    "a stream of the wrong shape": lambda m, b, x: m.resume(b, 0, x[..., :5]),
    "a row of the wrong width": lambda m, b, x: m.readout(x[:, 0, :5]),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_net_is_left_as_it_was_found(family, look):
    net = nets.net(family).train()
    next(net.parameters()).requires_grad_(False)
    next(net.modules()).eval()
    model = HookedModel(net, nets.tokenizer(), family)
    batch = nets.batch(model)
    stream = torch.zeros(*batch.ids.shape, model.width)
    before = state(net)
    with suppress(ZeroDivisionError, RuntimeError):
        look(model, batch, stream)
    assert state(net) == before


def test_dropout_is_off_while_we_look():
    model = nets.model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    batch = nets.batch(model)
    calm = model.trace(batch).predictors
    model.net.train()
    assert torch.equal(model.trace(batch).predictors, calm)
    assert torch.equal(model.readout(calm), nets.model("gpt2").readout(calm))


def test_two_pairs_may_share_a_net():
    net = nets.net("llama")
    first, second = (HookedModel(net, nets.tokenizer(), name) for name in ("first", "second"))
    other = nets.model("llama", seed=1)
    alone = frame_of(ModelPair(HookedModel(deepcopy(net), nets.tokenizer()), other)).restored
    frames = [frame_of(ModelPair(model, other)) for model in (first, second)]
    assert all(torch.equal(frame.restored, alone) for frame in frames)
    assert torch.equal(*frame_of(ModelPair(first, second)).likelihoods)


# What cannot be looked at


@pytest.mark.parametrize(
    ("what", "changes"),
    [("number of blocks", {"num_hidden_layers": 2}), ("width", {"hidden_size": 48, "head_dim": 8})],
)
def test_models_of_another_shape_are_no_pair(what, changes):
    with pytest.raises(DriftlensError, match=f"same {what}, found llama with .* with .*Compare"):
        ModelPair(nets.model("llama"), nets.model("llama", **changes))


def test_a_masked_and_a_causal_model_are_no_pair():
    with pytest.raises(DriftlensError, match=r"same use"):
        ModelPair(nets.model("llama"), nets.model("bert"))


def test_ids_that_a_model_does_not_know_are_refused():
    model = nets.model("llama", vocab_size=100)
    with pytest.raises(DriftlensError, match=r"below 100.*llama.*found \d+.*tokenizer"):
        model.trace(nets.batch(model))


def test_padding_needs_no_token_that_the_model_lacks():
    words = deepcopy(nets.tokenizer())
    words.add_special_tokens({"pad_token": "<later>"})
    model = HookedModel(nets.net("llama"), words, "llama")
    assert words.pad_token_id >= model.vocabulary
    plain = nets.model("llama")
    found = model.trace(nets.batch(model)).predictors
    assert torch.equal(found, plain.trace(nets.batch(plain)).predictors)


def poisoned(where):
    pair = nets.pair("llama")
    with torch.no_grad():
        where(pair.aligned.net)[:] = torch.nan
    return pair


def test_nan_in_a_block_is_told_with_model_and_layer_and_document():
    pair = poisoned(lambda net: net.model.layers[1].mlp.up_proj.weight)
    with pytest.raises(DriftlensError, match=r"stream at 1\.out of aligned, document 0"):
        frame_of(pair)


def test_nan_in_the_embedding_of_a_token_is_told_with_the_document_that_has_it():
    token = nets.tokenizer()("ï")["input_ids"][-1]
    pair = poisoned(lambda net: net.model.embed_tokens.weight[token : token + 1])
    with pytest.raises(DriftlensError, match=r"stream at embed of aligned, document 3"):
        frame_of(pair)


def test_nan_in_the_head_is_told():
    pair = poisoned(lambda net: net.lm_head.weight)
    with pytest.raises(DriftlensError, match=r"its logits of aligned, document 0.*float32"):
        frame_of(pair).likelihoods  # noqa: B018


def test_nan_in_the_head_is_told_where_tokenizers_differ_too():
    pair = poisoned(lambda net: net.lm_head.weight)
    pair.aligned.tokenizer = nets.tokenizer(merges=20)
    with pytest.raises(DriftlensError, match=r"its logits of aligned, document 0"):
        frame_of(pair).likelihoods  # noqa: B018


def test_a_mixture_that_reports_its_routers_is_read_like_any_other():
    model = nets.model("mixtral", output_router_logits=True)
    plain = nets.model("mixtral")
    batch = nets.batch(model)
    assert torch.equal(model.trace(batch).predictors, plain.trace(batch).predictors)
    stream = torch.ones(2, model.width)
    assert torch.equal(model.readout(stream), plain.readout(stream))


def test_one_row_of_a_batch_is_that_text_alone():
    model = nets.model("llama")
    batch = nets.batch(model)
    for number, text in enumerate(nets.TEXTS):
        row, alone = batch.row(number), nets.batch(model, [text])
        assert torch.equal(row.ids, alone.ids)
        assert torch.equal(row.targets, alone.targets)
        assert torch.equal(torch.stack(row.closing), torch.stack(alone.closing))


def test_positions_count_from_the_first_token_on_either_side():
    ids = torch.tensor([[5, 6, 7], [8, 9, 0]])
    none = (torch.tensor([], dtype=torch.long),) * 2
    batch = Batch(ids, ids > 0, none, none, none[0])
    assert batch.positions.tolist() == [[0, 1, 2], [0, 1, 2]]
    left = batch.padded_left()
    assert left.ids.tolist() == [[5, 6, 7], [0, 8, 9]]
    assert left.positions.tolist() == [[0, 1, 2], [0, 0, 1]]


# Loading


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model as it lies on disk. Nobody may change it."""
    return nets.saved(nets.net("llama"), tmp_path_factory.mktemp("model") / "whole")


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of it to spoil."""
    return Path(copytree(folder, tmp_path / "spoilt"))


def rewrite(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_a_folder_and_the_live_model_that_it_was_saved_from_are_the_same(folder):
    live = nets.net("llama")
    before, config = state(live), live.config.to_dict()
    pair = ModelPair.load(folder, live, tokenizer=nets.tokenizer())
    assert torch.equal(*frame_of(pair).likelihoods)
    assert pair.base.source["sha256"] == pair.aligned.source["sha256"]
    assert pair.aligned.net is live
    assert (state(live), live.config.to_dict()) == (before, config)


def test_a_model_beside_itself_is_loaded_once(folder):
    live = nets.net("llama")
    pair = ModelPair.load(live, live, tokenizer=nets.tokenizer())
    assert pair.base is pair.aligned
    assert ModelPair.load(pair.base, pair.base).base is pair.base


def test_the_tokenizer_of_a_live_model_is_found_by_its_name(folder):
    live = nets.net("llama")
    live.config.name_or_path = folder
    assert ModelPair.load(folder, live).aligned.tokenizer.get_vocab() == nets.tokenizer().vocab


def test_weights_in_several_files_are_read_and_a_missing_file_is_told(folder, tmp_path):
    net = nets.net("llama")
    net.save_pretrained(tmp_path, max_shard_size="30KB")
    nets.tokenizer().save_pretrained(tmp_path)
    pair = ModelPair.load(folder, tmp_path)
    assert torch.equal(*frame_of(pair).likelihoods)
    sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(LoadError, match=r"model-00002.*files are whole"):
        ModelPair.load(folder, tmp_path)


def drop(weights):
    del weights["model.layers.1.mlp.up_proj.weight"]


def cut(weights):
    weights["lm_head.weight"] = weights["lm_head.weight"][:5].clone()


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def unknown(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "zzz"}))


SPOILT = {
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        r"safetensors weights in .*no weights.*Copy",
    ),
    "a pickle": (pickled, r"safetensors weights.*pytorch_model\.bin, a pickle.*save_pretrained"),
    "no config": (lambda f: (f / "config.json").unlink(), r"no config\.json.*Give the folder"),
    "a broken config": (lambda f: (f / "config.json").write_text("{"), r"not a valid JSON"),
    "an unknown model": (unknown, r"model type `zzz`.*Check"),
    "a missing weight": (lambda f: rewrite(f, drop), r"layers\.1\.mlp\.up_proj.*random numbers"),
    "a weight of another shape": (lambda f: rewrite(f, cut), r"lm_head\.weight.*whole checkpoint"),
    "cut weights": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:20_000]
        ),
        r"deserializing header.*files are whole",
    ),
    "no tokenizer": (
        lambda f: [file.unlink() for file in f.glob("tokenizer*")],
        r"a tokenizer with .*found .*save_pretrained",
    ),
    "a broken tokenizer": (
        lambda f: (f / "tokenizer.json").write_text('{"added_tokens": [], "model": {}}'),
        r"a tokenizer with .*found .*save_pretrained",
    ),
}


@pytest.mark.parametrize(("spoil", "told"), SPOILT.values(), ids=SPOILT)
def test_a_spoilt_folder_is_refused_with_what_is_wrong(folder, copied, spoil, told):
    spoil(copied)
    with pytest.raises(LoadError, match=told):
        ModelPair.load(folder, str(copied))


def with_more(*names):
    return lambda weights: weights.update({name: torch.zeros(2) for name in names})


def test_weights_that_are_left_over_are_warned_of_and_kept_in_the_source(folder, copied):
    layer = [f"model.layers.3.mlp.{name}_proj.weight" for name in ("up", "down", "gate")]
    rewrite(copied, with_more(*layer, "v_head.weight"))
    told = r"4 weights in the checkpoint of .*spoilt.*LlamaForCausalLM.*down_proj.* and 1 more$"
    with pytest.warns(UserWarning, match=told) as warned:
        pair = ModelPair.load(folder, copied)
    assert [warning.filename for warning in warned] == [__file__]
    assert pair.base.source["unused_weights"] is None
    assert pair.aligned.source["unused_weights"] == f"{', '.join(sorted(layer))} and 1 more"
    assert torch.equal(*frame_of(pair).likelihoods)


HARMLESS = {
    "llama": ["model.layers.0.self_attn.rotary_emb.inv_freq"],
    "llama tied": ["lm_head.weight"],
    "gpt2": ["transformer.h.0.attn.masked_bias", "transformer.h.0.attn.bias"],
    "bert": [
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "bert.embeddings.position_ids",
        "cls.seq_relationship.weight",
    ],
    "roberta": ["roberta.pooler.dense.weight", "roberta.embeddings.position_ids"],
}


@pytest.mark.parametrize("family", HARMLESS)
def test_weights_that_no_language_model_reads_are_passed_over(family, tmp_path):
    net = nets.net(family)
    nets.saved(net, tmp_path, nets.tokenizer_for(family))
    extra = {name: torch.zeros(2) for name in HARMLESS[family]}
    if "lm_head.weight" in extra:
        extra["lm_head.weight"] = net.get_input_embeddings().weight.detach().clone()
    rewrite(tmp_path, lambda weights: weights.update(extra))
    model = ModelPair.load(tmp_path, tmp_path).base
    assert model.source["unused_weights"] is None


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("/nowhere/model", r"model folder at /nowhere/model, found nothing there.*Check the path"),
        ("./misspelt", r"found nothing there"),
        ("misspelt", r"language model at misspelt, found .*Check the name"),
        ("nobody/nothing", r"language model at nobody/nothing, found .*Check the name"),
        ("not a name", r"language model at not a name, found .*Check the name"),
    ],
)
def test_a_misspelt_name_is_refused(folder, name, told):
    with pytest.raises(LoadError, match=told):
        ModelPair.load(folder, name)


def test_a_file_is_no_model(folder):
    with pytest.raises(LoadError, match="found a file"):
        ModelPair.load(folder, f"{folder}/config.json")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dtype": "flaot32"}, r"a dtype such as .*, found flaot32"),
        ({"dtype": "int8"}, r"a dtype such as .*, found int8"),
        ({"device": "cudda"}, r"a device that this machine has, found 'cudda'.*Give auto"),
        ({"attn_implementation": "misspelt"}, r"found .*misspelt"),
    ],
)
def test_a_misspelt_option_is_refused(folder, options, told):
    with pytest.raises(DriftlensError, match=told):
        ModelPair.load(folder, folder, **options)


def test_what_is_no_model_is_refused(folder):
    with pytest.raises(DriftlensError, match="found int"):
        ModelPair.load(folder, 3)


def test_models_in_two_dtypes_are_refused_until_one_is_named(folder, tmp_path):
    half = nets.saved(nets.net("llama").bfloat16(), tmp_path)
    with pytest.raises(DriftlensError, match=r"in float32, .* in bfloat16.*dtype='float32'"):
        ModelPair.load(folder, half)
    pair = ModelPair.load(folder, half, dtype="float32")
    assert {model.source["dtype"] for model in (pair.base, pair.aligned)} == {"float32"}
    assert ModelPair.load(half, half, dtype=torch.bfloat16).base.source["dtype"] == "bfloat16"


def test_a_tokenizer_that_does_not_know_places_is_refused(folder):
    class Slow:
        is_fast = False

    with pytest.raises(DriftlensError, match=r"a fast tokenizer .*found Slow.*tokenizer\.json"):
        ModelPair.load(folder, nets.net("llama"), tokenizer=Slow())


def test_a_live_model_without_a_name_needs_a_tokenizer(folder):
    with pytest.raises(DriftlensError, match=r"tokenizer of a live model.*tokenizer="):
        ModelPair.load(folder, nets.net("llama"))


def test_code_that_comes_with_a_model_does_not_run(folder, copied):
    config = json.loads((copied / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "own.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(LoadError, match=r"contains custom code.*Give --trust-remote-code"):
        ModelPair.load(folder, copied)


def test_masked_and_causal_heads_are_told_apart_by_the_configuration(folder, tmp_path):
    bert = nets.net("bert")
    name = nets.saved(bert, tmp_path, nets.enclosing())
    assert not ModelPair.load(name, name).base.causal
    assert ModelPair.load(folder, folder).base.causal
