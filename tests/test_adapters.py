"""An adapter as the aligned model: one copy of the weights, seen with it and without."""

from copy import deepcopy
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file

import nets
from driftlens.errors import DriftlensError, LoadError
from driftlens.models import ModelPair, Wants
from driftlens.models.hooks import HookedModel

# peft asks transformers for an attribute by a name that is about to go.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
peft = pytest.importorskip("peft")

EVERYTHING = Wants(frozenset({"attn", "mlp", "out"}), None)
GRADIENTS = Wants(frozenset({"attn", "mlp", "out"}), None, gradients=True)


def adapted(size=0.1, **changes):
    """A live PeftModel on a tiny Llama; its weights are of the given size."""
    of_lora = {"r": 2, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    live = peft.get_peft_model(nets.net("llama"), peft.LoraConfig(**of_lora | changes))
    with torch.no_grad():
        for name, weight in live.named_parameters():
            if "lora_" in name:
                weight.zero_()
    return nets.moved(live, size, 3, "lora_").eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model and an adapter for it as they lie on disk. Nobody may change them."""
    place = tmp_path_factory.mktemp("adapter")
    adapted().save_pretrained(place / "adapter")
    return nets.saved(nets.net("llama"), place / "base"), str(place / "adapter")


@pytest.fixture
def copied(folders, tmp_path):
    """A copy of the adapter to spoil."""
    return Path(copytree(folders[1], tmp_path / "spoilt"))


def live_pair(live, base=None):
    return ModelPair.load(base, live, tokenizer=nets.tokenizer())


def logits(net, batch):
    with torch.no_grad():
        found = net(
            input_ids=batch.ids, attention_mask=batch.mask.long(), position_ids=batch.positions
        )
    rows, tokens = batch.target
    return found.logits[rows, tokens - 1]


def state(live):
    """All of an adapted model that looking must not change."""
    layers = [m for m in live.modules() if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer)]
    return (
        [(layer.disable_adapters, layer.merged, layer.active_adapters) for layer in layers],
        [(name, p.requires_grad, p.data_ptr()) for name, p in live.named_parameters()],
        [(n, m.training, sorted(vars(m)), len(m._forward_hooks)) for n, m in live.named_modules()],
        {name: weight.clone() for name, weight in live.state_dict().items()},
    )


def same(before, after):
    weights = zip(before[-1].values(), after[-1].values(), strict=True)
    return before[:-1] == after[:-1] and all(torch.equal(*both) for both in weights)


def test_an_adapter_folder_shares_the_weights_of_its_base(folders):
    pair = ModelPair.load(*folders)
    assert pair.aligned.net is pair.base.net
    bare = {p.data_ptr() for n, p in pair.base.net.named_parameters() if "lora_" not in n}
    assert len(bare) == len(list(nets.net("llama").parameters()))
    assert pair.base.source["sha256"] != pair.aligned.source["sha256"]
    assert pair.aligned.source["adapter_of"] == pair.base.source["sha256"]


def test_base_is_the_bare_base_and_aligned_is_the_adapter_to_the_last_bit(folders):
    pair = ModelPair.load(*folders)
    bare, live = nets.model("llama"), adapted()
    batch = nets.batch(bare)
    frame = pair.frame(
        encoder := pair.encoder(nets.pack(nets.TEXTS)),
        sorted(encoder.plan, key=lambda w: w.example),
    )
    base = pair.base.trace(batch, GRADIENTS)
    plain = bare.trace(batch, GRADIENTS)
    assert all(torch.equal(base.activations[s], x) for s, x in plain.activations.items())
    assert all(torch.equal(base.gradients[s], x) for s, x in plain.gradients.items())
    assert torch.equal(pair.base.readout(base.predictors), logits(bare.net, batch))
    aligned = pair.aligned.trace(batch).predictors
    assert torch.equal(pair.aligned.readout(aligned), logits(live, batch))
    assert float((aligned - base.predictors).abs().max()) > 0.1
    assert not torch.equal(*frame.likelihoods)


def test_resuming_runs_each_model_as_itself(folders):
    pair = ModelPair.load(*folders)
    merged = HookedModel(adapted().merge_and_unload(), nets.tokenizer())
    apart = ModelPair(nets.model("llama"), merged)
    frames = [
        p.frame(encoder := p.encoder(nets.pack(nets.TEXTS)), encoder.plan, EVERYTHING)
        for p in (pair, apart)
    ]
    for name in ("restored", "corrupted"):
        found, wanted = (getattr(frame, name) for frame in frames)
        # Merged weights round once more: float32 in logits of about 5.
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_the_head_and_the_embedding_may_belong_to_the_adapter():
    live = adapted(modules_to_save=["lm_head", "embed_tokens"])
    bare = nets.model("llama")
    nets.moved(live, 0.1, 4, "modules_to_save")
    pair = live_pair(live)
    batch = nets.batch(bare)
    base, aligned = pair.base.trace(batch), pair.aligned.trace(batch)
    assert torch.equal(pair.base.readout(base.predictors), logits(bare.net, batch))
    assert torch.equal(pair.aligned.readout(aligned.predictors), logits(live, batch))


@pytest.mark.parametrize("mode", ["train", "eval", "disabled"])
@pytest.mark.parametrize("which", ["base", "aligned"])
def test_a_live_adapter_is_left_as_it_was_found(which, mode):
    live = adapted()
    live.train(mode == "train")
    if mode == "disabled":
        live.base_model.disable_adapter_layers()
    before = state(live)
    model = getattr(live_pair(live), which)
    batch = nets.batch(model)
    trace = model.trace(batch, GRADIENTS)
    model.resume(batch, 0, trace.last)
    model.readout(trace.predictors)
    with pytest.raises(RuntimeError):
        model.resume(batch, 0, trace.last[..., :5])
    assert same(before, state(live))


def test_a_live_adapter_goes_with_no_base_or_with_its_own():
    live = adapted()
    for base in (None, live, live.get_base_model()):
        pair = live_pair(live, base)
        assert pair.base.net is pair.aligned.net is live.get_base_model()
    for other in (nets.net("llama"), "another"):
        with pytest.raises(DriftlensError, match=r"base that the live adapter sits on.*base=None"):
            live_pair(live, other)


def test_a_live_adapter_is_no_base():
    with pytest.raises(DriftlensError, match=r"adapter as the aligned model.*Pass base=None"):
        ModelPair.load(adapted(), nets.net("llama"), tokenizer=nets.tokenizer())


def test_a_merged_adapter_is_refused_and_left_merged():
    live = adapted()
    live.merge_adapter()
    before = state(live)
    with pytest.raises(DriftlensError, match=r"merged into them.*unmerge_adapter"):
        live_pair(live)
    assert same(before, state(live))


def test_an_adapter_of_zeros_loads_and_changes_nothing(folders, copied):
    rewrite(copied, lambda k, w: w * 0 if "lora_B" in k else w)
    pair = ModelPair.load(folders[0], copied)
    batch = nets.batch(pair.base)
    assert torch.equal(pair.base.trace(batch).predictors, pair.aligned.trace(batch).predictors)


def test_an_adapter_in_full_precision_goes_on_a_base_in_half(folders):
    pair = ModelPair.load(*folders, dtype="bfloat16")
    batch = nets.batch(pair.base)
    base, aligned = (m.trace(batch).predictors for m in (pair.base, pair.aligned))
    assert base.dtype == aligned.dtype == torch.bfloat16
    assert not torch.equal(base, aligned)


def rewrite(folder, change):
    file = folder / "adapter_model.safetensors"
    weights = {k: change(k, w) for k, w in load_file(file).items()}
    save_file({k: w for k, w in weights.items() if w is not None}, file, {"format": "pt"})


def renamed(folder):
    file = folder / "adapter_model.safetensors"
    save_file({k.replace("q_proj", "z_proj"): w for k, w in load_file(file).items()}, file)


def pickled(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


SPOILT = {
    "weights of another name": (renamed, r"for every place, and .* found none for .*q_proj.*Check"),
    "a missing weight": (
        lambda f: rewrite(f, lambda k, w: None if "layers.1.mlp.down_proj.lora_B" in k else w),
        r"found none for [\w.]*layers\.1\.mlp\.down_proj\.lora_B\.weight\. Check",
    ),
    "weights of another shape": (
        lambda f: rewrite(f, lambda k, w: w[:, :1].clone() if "lora_A" in k else w),
        r"an adapter at .* that fits .*size mismatch.*trained on this base",
    ),
    "a pickle": (pickled, r"adapter_model\.safetensors in .*found none.*save_pretrained"),
    "broken weights": (
        lambda f: (f / "adapter_model.safetensors").write_bytes(b"zzz"),
        r"an adapter at .* that fits .*header",
    ),
    "a broken configuration": (
        lambda f: (f / "adapter_config.json").write_text("{"),
        r"an adapter at .* that fits ",
    ),
}


@pytest.mark.parametrize(("spoil", "told"), SPOILT.values(), ids=SPOILT)
def test_a_spoilt_adapter_is_refused_with_what_is_wrong(folders, copied, spoil, told):
    spoil(copied)
    with pytest.raises(LoadError, match=told):
        ModelPair.load(folders[0], str(copied))


def test_an_adapter_of_another_architecture_is_refused(folders, tmp_path):
    other = nets.saved(nets.net("gpt2"), tmp_path / "gpt2")
    with pytest.raises(LoadError, match=r"found Target modules .* not found in the base model"):
        ModelPair.load(other, folders[1])


def test_an_adapter_folder_needs_its_base_by_name(folders):
    with pytest.raises(DriftlensError, match=r"base of an adapter .*found none.*Give the base"):
        ModelPair.load(None, folders[1])
    with pytest.raises(DriftlensError, match=r"found a live LlamaForCausalLM, which would change"):
        ModelPair.load(nets.net("llama"), folders[1])


def test_an_adapter_that_learns_a_prompt_is_refused():
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    live = peft.get_peft_model(nets.net("llama"), config)
    with pytest.raises(DriftlensError, match=r"changes weights.*learns a prompt.*Compare LoRA"):
        live_pair(live)


def test_adapters_need_peft(folders, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(DriftlensError, match=r"package peft.*pip install 'driftlens\[peft\]'"):
        ModelPair.load(*folders)


def test_an_adapter_may_bring_its_own_tokenizer(folders, copied):
    words = deepcopy(nets.tokenizer())
    words.add_tokens(["<user>"])
    words.save_pretrained(copied)
    pair = ModelPair.load(folders[0], copied)
    assert len(pair.aligned.tokenizer) == len(pair.base.tokenizer) + 1
