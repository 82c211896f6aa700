"""Weights moved by known amounts in known places, and whether every row says so."""

from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch

import nets
from driftlens.diagnostics.weights import WeightChange, weight_change
from driftlens.models import ModelPair
from driftlens.models.hooks import HookedModel
from driftlens.models.hybrid import Change
from driftlens.results import figures, same

FAMILIES = ["llama", "llama tied", "gpt2", "gpt-neox", "phi3", "mixtral", "opt", "bert"]
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
ALONE = {"low_rank_share": 1, "structured_share": 0, "diffuse_share": 0}
ZERO = ("norm", "relative")


def drawn(*shape, seed=0, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(*shape, generator=generator)


def low_rank(rows, columns, rank, size=1.0):
    return size * drawn(rows, rank, seed=1) @ drawn(rank, columns, seed=2)


def pair_of(base, aligned, family="llama"):
    words = nets.tokenizer_for(family)
    return ModelPair(HookedModel(base, words, "base"), HookedModel(aligned, words, "aligned"))


def found(pair, **how):
    metric = WeightChange(**how)
    metric.begin(pair, pair.encoder(nets.pack(nets.TEXTS)))
    return metric.compute()


def moved(family="llama", **changes):
    """A tiny model, and the same with what is given added to the named weights."""
    base = nets.net(family)
    aligned = deepcopy(base)
    with torch.no_grad():
        for name, change in changes.items():
            aligned.get_parameter(name).add_(change)
    return pair_of(base, aligned, family)


@cache
def everywhere(family):
    """A tiny model with noise of deviation 0.03 on every weight, and what is found of it."""
    return found(nets.pair(family))


def change(base, aligned, name="model.layers.0.mlp.up_proj.weight"):
    return Change("0", "mlp", name, base, aligned)


def one(base, delta, name="model.layers.0.mlp.up_proj.weight", **how):
    """The only row of a change that is made on the spot."""
    rows = weight_change([change(base, base + delta, name)], **how)
    return {name: column[0] for name, column in rows.columns().items()}


# Every weight, once


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_counts_once_however_it_is_cut(family):
    result, pair = everywhere(family), nets.pair(family)
    base, aligned = (
        {name: weight.detach() for name, weight in model.net.named_parameters()}
        for model in (pair.base, pair.aligned)
    )
    assert int((result.height * result.width).sum()) == sum(w.numel() for w in base.values())
    ours = sum(float((aligned[n] - base[n]).double().square().sum()) for n in base)
    size = sum(float(weight.double().square().sum()) for weight in base.values())
    assert result.total.value == pytest.approx((ours / size) ** 0.5, rel=1e-6)
    assert {name.split("[")[0] for name in result.name} == set(base)
    assert len(set(result.name)) == len(result.name)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_noise_on_every_weight_no_layer_keeps_anything(family):
    result = everywhere(family)
    wide = ~np.isnan(result.structured)
    assert wide.sum() >= 10
    assert not result.kept[wide].any()
    assert set(result.hazard) <= {"", "too small"}
    small = (result.height * result.width < 1024) & (result.width > 1)
    assert (result.hazard[small] == "too small").all()
    assert result.structured_share.value == 0
    # The relative change is that of the noise to weights of deviation 0.15 about 0.02.
    assert result.total.value == pytest.approx(0.19, abs=0.02)
    assert "diffuse" in result.summary()
    assert "structured" not in result.summary()


def test_vectors_have_norms_and_no_singular_values():
    result = everywhere("llama")
    norms = np.array(["norm" in name for name in result.name])
    assert norms.sum() == 7
    assert (result.relative[norms] > 0).all()
    assert (result.width[norms] == 1).all()
    for name in ("spectral", "stable_rank", "kept", "structured"):
        assert np.isnan(getattr(result, name)[norms]).all(), name
    assert (result.hazard[norms] == "").all()


def test_a_tied_embedding_counts_once():
    names = everywhere("llama tied").name
    assert [name for name in names if "embed" in name or "head" in name] == [names[0]]
    assert "lm_head.weight" in everywhere("llama").name


# Planted changes


def test_a_planted_low_rank_is_found_in_its_row_and_in_no_other():
    result = found(moved(**{Q_PROJ: low_rank(32, 32, 2)}))
    here = result.name == Q_PROJ
    assert here.sum() == 1
    assert (result.norm[~here] == 0).all()
    assert (result.relative[~here] == 0).all()
    assert set(result.hazard[~here & (result.width > 1)]) == {"unchanged"}
    planted = torch.linalg.svdvals(low_rank(32, 32, 2).double())
    assert result.hazard[here] == "low rank 2"
    assert result.norm[here] == pytest.approx(float(planted.norm()), rel=1e-5)
    assert result.spectral[here] == pytest.approx(float(planted[0]), rel=1e-5)
    assert result.stable_rank[here] == pytest.approx(float((planted.norm() / planted[0]) ** 2))
    assert np.isnan(result.kept[here])
    assert (result.layer[here], result.component[here]) == ("1", "attn")
    for name, share in ALONE.items():
        assert result.estimates()[name].value == share, name
    assert "most in block 1" in result.summary()
    assert "100 % exactly of low rank" in result.summary()
    assert "1 of 30 rows: the change is exactly of low rank" in result.notes[0]


def test_structure_in_noise_is_kept_where_it_was_planted():
    noise = drawn(48, 32, seed=5, size=0.01)
    name = "model.layers.2.mlp.up_proj.weight"
    structure = low_rank(48, 32, 1, 0.05)
    result = found(moved(**{name: structure + noise}))
    here = result.name == name
    assert (result.kept[here], result.hazard[here]) == (1, "")
    squared = torch.linalg.svdvals(structure + noise).square()
    # The base's weights are rounded to float32 when the change is added.
    assert result.structured[here] == pytest.approx(float(squared[0] / squared.sum()), rel=1e-4)
    assert result.structured_share.value == pytest.approx(float(result.structured[here][0]))
    assert result.structured_share.value + result.diffuse_share.value == pytest.approx(1)
    assert "structured (above the noise edge)" in result.summary()


def test_the_layers_add_up_to_the_whole():
    result = everywhere("llama")
    layers, sizes, shares = result.by_layer()
    assert layers == ["embed", "0", "1", "2", "head"]
    np.testing.assert_allclose(shares.sum(0), 1)
    of = [np.square(result.base_norm[result.layer == layer]).sum() for layer in layers]
    whole = np.sqrt((sizes**2 * of).sum() / np.sum(of))
    assert whole == pytest.approx(result.total.value)


def test_a_model_has_not_moved_from_itself():
    model = nets.model("llama")
    result = found(ModelPair(model, model))
    for name in ZERO:
        assert (getattr(result, name) == 0).all(), name
    assert result.total.value == 0
    assert np.isnan(result.structured_share.value)
    assert result.summary() == "The weights did not move."
    assert result.notes == ()
    assert figures.png(result.figure())


def test_exchanging_the_models_changes_only_what_is_relative_to_the_base():
    pair = nets.pair("llama")
    ours, theirs = everywhere("llama"), found(ModelPair(pair.aligned, pair.base))
    for name in ("norm", "spectral", "stable_rank", "kept", "structured", "hazard", "name"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    np.testing.assert_allclose(theirs.relative, ours.norm / theirs.base_norm)


def test_what_is_shown_changes_nothing():
    pair, pack = nets.pair("llama"), nets.pack(nets.TEXTS)
    metric = WeightChange()
    metric.begin(pair, pair.encoder(pack))
    before = metric.compute()
    for frame in pair.frames(pack, metric.wants, rows=2):
        metric.update(frame)
    assert same(metric.merge(metric.empty()).compute(), before)
    assert metric.state() == {}


# Adapters


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_of_an_adapter_the_effective_change_is_compared():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", lora_alpha=8)
    live = peft.get_peft_model(nets.net("llama"), config)
    nets.moved(live, 0.5, 3, "lora_").eval()
    result = found(ModelPair.load(None, live, tokenizer=nets.tokenizer()))
    here = np.array(["q_proj" in name for name in result.name])
    assert here.sum() == 3
    assert set(result.hazard[here]) == {"low rank 2"}
    assert not result.norm[~here].any()
    for name, norm in zip(result.name[here], result.norm[here], strict=True):
        module = live.get_base_model().get_submodule(name.removesuffix(".weight"))
        up, down = (getattr(module, f"lora_{side}")["default"].weight for side in "BA")
        assert norm == pytest.approx(float((4 * up @ down).detach().norm()), rel=1e-5), name


# Fused weights


def cut(family, name):
    """Name by name, the norms of what was cut out of a weight."""
    result = everywhere(family)
    here = [at for at, known in enumerate(result.name) if known.startswith(f"{name}[")]
    return {result.name[at].removeprefix(name): result.norm[at] for at in here}


def delta(family, name):
    pair = nets.pair(family)
    return (pair.aligned.net.get_parameter(name) - pair.base.net.get_parameter(name)).detach()


def norms(names, parts):
    return {f"[{name}]": float(part.norm()) for name, part in zip(names, parts, strict=True)}


QKV = ("query", "key", "value")


def test_gpt2_is_cut_by_columns():
    name = "transformer.h.1.attn.c_attn.weight"
    parts = delta("gpt2", name).chunk(3, 1)
    assert cut("gpt2", name) == pytest.approx(norms(QKV, parts))


def test_gpt_neox_is_cut_head_by_head():
    name = "gpt_neox.layers.1.attention.query_key_value.weight"
    parts = delta("gpt-neox", name).reshape(4, 3, 8, 32).unbind(1)
    assert cut("gpt-neox", name) == pytest.approx(norms(QKV, parts))


def test_phi3_is_cut_into_unequal_parts():
    name = "model.layers.1.self_attn.qkv_proj.weight"
    parts = delta("phi3", name).split([32, 16, 16])
    assert cut("phi3", name) == pytest.approx(norms(QKV, parts))
    name = "model.layers.1.mlp.gate_up_proj.weight"
    halves = delta("phi3", name).chunk(2)
    assert cut("phi3", name) == pytest.approx(norms(("gate", "up"), halves))


def test_experts_are_told_apart():
    name = "model.layers.1.mlp.experts.gate_up_proj"
    every = delta("mixtral", name)
    known = {
        f"[{number}][{part}]": float(weight.norm())
        for number, expert in enumerate(every)
        for part, weight in zip(("gate", "up"), expert.chunk(2), strict=True)
    }
    assert cut("mixtral", name) == pytest.approx(known)


class Config:
    """A configuration of a model that nobody knows."""

    hidden_size, num_attention_heads, model_type = 32, 4, "unheard of"

    def get_text_config(self):
        return self


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("h.0.attn.c_attn.weight", (32, 96)),
        ("layers.0.self_attn.qkv_proj.weight", (96, 32)),
        ("layers.0.self_attn.qkv_proj.weight", (90, 32)),
        ("layers.0.self_attn.qkv_proj.weight", (64, 40)),
        ("layers.0.mlp.experts.gate_up_proj[2]", (32, 96)),
        ("layers.0.mlp.gate_up_proj.weight", (32, 32)),
    ],
)
@pytest.mark.parametrize("config", [None, Config()])
def test_what_cannot_be_cut_is_left_whole_and_says_so(name, shape, config):
    base = drawn(*shape)
    row = one(base, drawn(*shape, seed=1, size=0.1), name, config=config)
    assert (row["height"], row["width"]) == shape
    assert row["hazard"] == "fused"
    result = weight_change([change(base, base, name)], config)
    assert result.hazard[0] == "unchanged; fused"
    assert "1 of 1 rows: several maps" in result.notes[0]


# Hazards


def test_what_bfloat16_rounds_away_is_said_to_be_storage():
    base = drawn(96, 64, size=0.02).bfloat16()
    aligned = (base + low_rank(96, 64, 1, 0.001)).bfloat16()
    result = weight_change([change(base, aligned)])
    assert (result.hazard[0], result.kept[0]) == ("rounding of bfloat16", 1)
    assert "storage, not of training" in result.notes[0]


def test_a_bulk_that_is_not_noise_takes_the_edge_from_the_sentence():
    left, right = (torch.linalg.qr(drawn(64, 64, seed=seed))[0] for seed in (1, 2))
    falling = left * (1 / torch.arange(1, 65)) @ right
    base = drawn(64, 64)
    result = weight_change([change(base, base + falling)])
    assert result.hazard[0] == "bulk is not noise"
    assert "though most of the bulk is not noise" in result.summary()
    assert "a convention" in result.notes[0]


def test_a_matrix_that_is_too_wide_has_norms_alone():
    base, delta = drawn(64, 96), drawn(64, 96, seed=1)
    row, whole = one(base, delta, widest=63), one(base, delta, widest=64)
    assert (row["hazard"], whole["hazard"]) == ("too wide", "")
    assert row["norm"] == pytest.approx(whole["norm"], rel=1e-6)
    assert row["relative"] == pytest.approx(whole["relative"], rel=1e-6)
    assert np.isnan([row["spectral"], row["kept"], row["structured"]]).all()
    assert one(base, 0 * delta, widest=63)["hazard"] == "unchanged"
    assert "widest" in weight_change([change(base, base + delta)], widest=63).notes[0]


def test_what_is_not_finite_is_undefined_and_not_a_number():
    base = drawn(64, 48)
    result = weight_change([change(base, base + torch.inf)])
    assert result.hazard[0] == "not finite"
    assert np.isnan(result.total.value)
    assert result.summary() == "How far the weights moved is undefined."
    assert figures.png(result.figure())


def test_of_no_weights_nothing_is_said():
    result = weight_change([])
    assert result.summary() == "How far the weights moved is undefined."
    assert (result.rows(), result.figure()) == (0, None)


def test_a_weight_that_was_nothing_has_no_relative_change():
    row = one(torch.zeros(64, 48), drawn(64, 48))
    assert row["norm"] > 0
    assert np.isnan(row["relative"])


def test_a_kernel_is_read_as_a_matrix():
    row = one(drawn(64, 3, 20), drawn(64, 3, 20, seed=1))
    assert (row["height"], row["width"], row["hazard"]) == (64, 60, "")


# The picture


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_picture_stacks_the_parts_to_the_change_of_each_layer(family):
    result = everywhere(family)
    panel = result.figure().axes[0]
    layers, sizes, _ = result.by_layer()
    tops = np.zeros(len(layers))
    for bar in panel.patches:
        at = round(bar.get_x() + bar.get_width() / 2)
        tops[at] = max(tops[at], bar.get_y() + bar.get_height())
    np.testing.assert_allclose(tops, sizes)
    assert [text.get_text() for text in panel.get_legend().get_texts()] == [
        "structured",
        "diffuse",
        "without an edge",
    ]
    assert panel.get_ylim()[1] > sizes.max()
