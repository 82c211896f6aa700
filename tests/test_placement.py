"""Models that lie where they fit: over several devices, offloaded, quantised, in pieces."""

import json
import subprocess
import sys
import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import nets
from driftlens import doctor, measure
from driftlens.cli import main
from driftlens.diagnostics import Drift, Factorial, Forgetting, LayerForgetting, Lens
from driftlens.errors import DriftlensError
from driftlens.models import EMBED, ModelPair, Site, Wants, placement
from driftlens.models.hooks import HookedModel
from driftlens.models.placement import device_map_of, gigabytes

MAP = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "disk",
    "model.layers.1": "cpu",
    "model.layers.2": "disk",
    "model.norm": "disk",
    "lm_head": "disk",
}
"""Of a tiny Llama: most of it stays on the disk and is read when it runs."""

METRICS = (Forgetting, LayerForgetting, Factorial, Drift, Lens)
ALL = Wants(frozenset({"heads", "attn", "mlp", "out"}), None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    base = nets.net("llama")
    return [
        nets.saved(base, place / "base"),
        nets.saved(nets.moved(deepcopy(base), 0.03, 1), place / "aligned"),
    ]


@pytest.fixture(scope="module")
def whole(folders):
    return ModelPair.load(*folders)


@pytest.fixture(scope="module")
def offloaded(folders):
    return ModelPair.load(*folders, device_map=MAP)


def numbers(result):
    kept = {name: one.value for name, one in result.estimates().items()}
    return kept | {n: c for n, c in result.columns().items() if c.dtype.kind == "f"}


# Device maps


def test_what_is_measured_of_an_offloaded_pair_is_the_same_to_the_last_bit(whole, offloaded, pack):
    assert "offloaded" in offloaded.base.hindrance, "or else nothing is tested"
    made = [measure(pair, pack, [m() for m in METRICS]) for pair in (whole, offloaded)]
    for one, other in zip(*made, strict=True):
        for name, found in numbers(one).items():
            np.testing.assert_array_equal(found, numbers(other)[name], err_msg=name)


def test_everything_that_is_seen_inside_an_offloaded_model_is_the_same(whole, offloaded):
    ours, theirs = (
        pair.base.trace(nets.batch(pair.base), ALL, {Site(1, "mlp"): torch.zeros_like})
        for pair in (whole, offloaded)
    )
    assert ours.activations.keys() == theirs.activations.keys()
    assert all(torch.equal(ours.activations[s], theirs.activations[s]) for s in ours.activations)
    for layer, site in enumerate([EMBED, Site(0), Site(1)], -1):
        again = offloaded.base.resume(nets.batch(whole.base), layer, ours.activations[site])
        held = whole.base.resume(nets.batch(whole.base), layer, ours.activations[site])
        assert torch.equal(again, held)


def test_an_offloaded_model_is_known_by_the_same_weights(whole, offloaded):
    assert whole.base.source["sha256"] == offloaded.base.source["sha256"]
    assert whole.base.source["sha256"] != offloaded.aligned.source["sha256"]
    assert offloaded.base.source["device_map"]["model.layers.0"] == "disk"


def test_what_offloads_weights_is_left_as_it_was_found_even_after_an_exception(folders):
    model = ModelPair.load(*folders, device_map=MAP).base
    forwards = {name: vars(m).get("forward") for name, m in model.net.named_modules()}

    def broken(_):
        raise ZeroDivisionError

    for tried in (
        lambda: model.trace(nets.batch(model), ALL, {Site(1): broken}),
        lambda: model.resume(nets.batch(model), 0, torch.zeros(2, 3, 5)),
    ):
        with pytest.raises((ZeroDivisionError, RuntimeError)):
            tried()
    assert forwards == {name: vars(m).get("forward") for name, m in model.net.named_modules()}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.net.modules())
    assert model.net.model.layers[0].mlp.up_proj.weight.device.type == "meta"


def test_weights_that_are_offloaded_are_neither_swapped_nor_learnt_by(offloaded, pack):
    with pytest.raises(DriftlensError, match=r"one device.*weights offloaded.*--method sweep"):
        _ = offloaded.hybrid
    with pytest.raises(DriftlensError, match=r"weights at hand.*weights offloaded.*whole"):
        offloaded.gradients()
    with pytest.raises(DriftlensError, match=r"to take gradients of.*offloaded"):
        offloaded.base.trace(nets.batch(offloaded.base), Wants(gradients=True))


def test_a_report_of_an_offloaded_pair_leaves_out_weights_and_says_so(offloaded, pack):
    checks = {check.name: check for check in doctor.examine(offloaded, [pack])}
    assert checks["matching weights"].status == "warn"
    assert "offloaded" in checks["matching weights"].detail
    assert "left out" in checks["matching weights"].detail
    assert checks["residual stream"].status == checks["finite weights"].status == "pass"


def test_a_weight_that_is_offloaded_and_not_finite_is_found(folders, tmp_path, pack):
    net = nets.net("llama")
    with torch.no_grad():
        net.model.layers[2].mlp.up_proj.weight[3, 3] = torch.nan
    pair = ModelPair.load(folders[0], nets.saved(net, tmp_path / "bad"), device_map=MAP)
    (check,) = doctor.examine(pair, [pack])
    assert check.status == "fail"
    assert "layers.2.mlp.up_proj" in check.detail


@pytest.mark.parametrize("strategy", ["auto", "balanced", "sequential"])
def test_without_an_accelerator_every_strategy_is_the_cpu(strategy, folders, whole):
    pair = ModelPair.load(*folders, device_map=strategy)
    ids = torch.arange(12)[None]
    assert torch.equal(pair.aligned.logits(ids), whole.aligned.logits(ids))
    assert not pair.aligned.hindrance


def test_each_model_may_have_a_device_of_its_own(folders, monkeypatch):
    asked = []

    def noted(net, how):
        asked.append(how["place"].type)
        return {}

    monkeypatch.setattr("driftlens.models.load._sizes", noted)
    ModelPair.load(*folders, base_device="cpu")
    assert asked == ["cpu", "cpu"]
    with pytest.raises(DriftlensError, match=r"that this machine has.*abacus"):
        ModelPair.load(*folders, aligned_device="abacus")
    with pytest.raises(DriftlensError, match="freed"):
        # No number lies there, and none can be hashed: but it is there that it was put.
        ModelPair.load(*folders, aligned_device="meta")
    assert asked[2:] == ["cpu", "meta"]


def test_a_map_is_a_strategy_a_file_or_a_mapping(tmp_path):
    (tmp_path / "map.json").write_text(json.dumps(MAP))
    assert device_map_of(str(tmp_path / "map.json")) == device_map_of(MAP) == MAP
    assert device_map_of("auto") == "auto"
    assert device_map_of(None) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("evenly", r"among auto, balanced.*'evenly'.*--device-map auto"),
        ("none.json", r"a device map in none.json.*No such file"),
        ({}, "names a device for each part"),
        ({"model": 1.5}, "names a device for each part"),
        ({"model": "cuda:7"}, "that this machine has.*cuda:7"),
        ({"model": "abacus"}, "that this machine has.*abacus"),
    ],
)
def test_a_map_that_is_none_is_told_of(given, said):
    with pytest.raises(DriftlensError, match=said):
        device_map_of(given)


def test_a_map_and_a_device_for_one_model_are_too_much(folders):
    with pytest.raises(DriftlensError, match=r"either.*--device-map and --aligned-device.*Leave"):
        ModelPair.load(*folders, device_map="auto", aligned_device="cpu")


def test_another_back_end_is_not_put_on_a_net_that_is_spread(folders):
    with pytest.raises(DriftlensError, match=r"hooks as the back-end.*nnsight beside --device-map"):
        ModelPair.load(*folders, device_map="auto", backend="nnsight")


# Whether they fit


def size(net) -> int:
    return sum(t.numel() * t.element_size() for t in [*net.parameters(), *net.buffers()])


def test_what_a_pair_needs_is_counted_where_its_map_puts_it():
    net = nets.net("llama tied")
    found = placement.needed(net, {"": "cpu", "model.layers": "cuda:1", "model.layers.1": "disk"})
    block = size(net.model.layers[0])
    assert found == {"cpu": size(net) - 3 * block, "cuda:1": 2 * block, "disk": block}


def test_the_same_is_counted_of_a_net_that_is_not_loaded():
    with torch.device("meta"):
        sketched = type(nets.net("llama"))(nets.net("llama").config)
    place = torch.device("cpu")
    assert placement.needed(sketched, place) == placement.needed(nets.net("llama"), place)


@pytest.mark.parametrize("how", [{}, {"device_map": MAP}, {"device_map": "auto"}])
@pytest.mark.parametrize("times", [0.5, 1.5])
def test_a_pair_that_does_not_fit_is_refused_before_it_is_loaded(times, how, folders, monkeypatch):
    """Free is half of what one model takes, and half more than that."""
    place = device_map_of(how["device_map"]) if how else torch.device("cpu")
    needs = placement.needed(nets.net("llama"), place)["any" if place == "auto" else "cpu"]
    free = round(times * needs / placement.FULL)

    def never(*_, **__):
        raise AssertionError("nothing should have been loaded")

    monkeypatch.setattr("driftlens.models.load._net", never)
    monkeypatch.setattr(placement, "available", lambda _: free)
    with pytest.raises(DriftlensError) as caught:
        ModelPair.load(*folders, **how)
    said = str(caught.value)
    assert isinstance(caught.value, placement.Crowded) == (times > 1)
    assert ("--two-phase" in said) == (times > 1)
    assert f"{gigabytes(2 * needs)} of free memory" in said
    assert f"found {gigabytes(round(times * needs))}" in said
    assert "--dtype bfloat16" in said


def test_what_lies_on_the_disk_needs_no_memory(folders, monkeypatch):
    everything = dict.fromkeys(MAP, "disk") | {"model.embed_tokens": "cpu"}
    rows = 2 * 320 * 32 * 4 / placement.FULL
    monkeypatch.setattr(placement, "available", lambda _: rows + 1000)
    assert ModelPair.load(*folders, device_map=everything).base.hindrance
    monkeypatch.setattr(placement, "available", lambda _: rows - 1000)
    with pytest.raises(DriftlensError, match="free memory on cpu"):
        ModelPair.load(*folders, device_map=everything)


# Devices that there are not


@pytest.mark.slow
def test_a_pair_over_two_devices_gives_the_same_and_no_two_tensors_meet():
    """The devices are pretended: numbers lie on the CPU, and tensors of two devices raise."""
    script = Path(__file__).parent / "pretended.py"
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found.pop("refused") == "aten::add of tensors on ['pretended:0', 'pretended:1']"
    assert len(found) == 4 * len(METRICS)
    # Another layout of the same products is rounded otherwise; a loss here is near 6 nats.
    assert max(found.values()) < 1e-5, found


# Quantised weights


def rough(net):
    """By torch's own dynamic quantisation, for neither bitsandbytes nor torchao need be here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)


@pytest.fixture(scope="module")
def quantised():
    base = nets.net("llama")
    aligned = nets.moved(deepcopy(base), 0.3, 1)
    return ModelPair.load(rough(base), rough(aligned), tokenizer=nets.tokenizer())


def test_quantised_models_are_measured_forwards_with_a_warning(quantised, pack):
    checks = {check.name: check for check in doctor.examine(quantised, [pack])}
    assert checks["dtype"].status == "warn"
    assert "quantised by torch.ao.nn.quantized" in checks["dtype"].detail
    assert checks["matching weights"].status == "warn"
    assert "quantised" in checks["matching weights"].detail
    forgetting, layers = measure(quantised, pack, [Forgetting(), LayerForgetting()])
    whole = ModelPair(*(HookedModel(n, nets.tokenizer()) for n in unrounded()))
    (plain,) = measure(whole, pack, [Forgetting()])
    # What rounding moves is far less than what was planted.
    assert abs(forgetting.loss_rise.value - plain.loss_rise.value) < 0.1 * plain.loss_rise.value
    assert all(np.isfinite(column).all() for column in numbers(layers).values())


def unrounded():
    base = nets.net("llama")
    return base, nets.moved(deepcopy(base), 0.3, 1)


def test_quantised_weights_are_told_apart_by_their_fingerprints(quantised):
    ours, theirs = (m.source["sha256"] for m in (quantised.base, quantised.aligned))
    assert ours != theirs
    again = ModelPair.load(rough(nets.net("llama")), quantised.aligned, tokenizer=nets.tokenizer())
    assert again.base.source["sha256"] == ours


def test_quantised_weights_are_neither_swapped_nor_learnt_by(quantised):
    with pytest.raises(DriftlensError, match=r"plain numbers.*quantised by torch.ao"):
        _ = quantised.hybrid
    with pytest.raises(DriftlensError, match=r"at hand.*quantised by torch.ao.*unquantised"):
        quantised.gradients()
    with pytest.raises(DriftlensError, match=r"gradients of.*quantised by torch.ao"):
        quantised.aligned.trace(nets.batch(quantised.aligned), Wants(gradients=True))


def test_a_quantised_model_is_not_held_against_a_whole_one_unless_it_is_said(quantised, pack):
    net = nets.net("llama")
    both = (rough(net), nets.moved(deepcopy(net), 0.3, 1))
    with pytest.raises(DriftlensError, match=r"quantised alike.*float32.*--allow-mixed-dtypes"):
        ModelPair.load(*both, tokenizer=nets.tokenizer())
    pair = ModelPair.load(*both, tokenizer=nets.tokenizer(), allow_mixed_dtypes=True)
    checks = {check.name: check for check in doctor.examine(pair, [pack])}
    assert "quantised by torch.ao.nn.quantized and nothing" in checks["dtype"].detail


@pytest.mark.parametrize(
    ("told", "by"),
    [({"quant_method": "bitsandbytes"}, "bitsandbytes"), ({"quant_method": "torchao"}, "torchao")],
)
def test_a_checkpoint_that_says_it_is_quantised_is_believed(told, by):
    """A stand-in: the configuration alone, as transformers leaves it on a loaded net."""
    net = nets.net("llama")
    net.config.quantization_config = told
    assert placement.quantised(net) == by
    assert placement.hindrance(net) == f"weights quantised by {by}"


def test_weights_of_whole_numbers_are_quantised_by_whatever_means():
    """A stand-in for libraries that are not known: an integer parameter."""
    net = nets.net("llama")
    coded = nn.Parameter(torch.zeros(3, 3, dtype=torch.uint8), requires_grad=False)
    net.model.layers[0].mlp.up_proj.weight = coded
    assert placement.quantised(net) == "means of its own (uint8)"
    assert not placement.quantised(nets.net("llama"))


def test_two_dtypes_can_be_compared_where_it_is_asked_for(pack):
    net = nets.net("llama")
    other = nets.moved(deepcopy(net), 0.03, 1).bfloat16()
    with pytest.raises(DriftlensError, match="same dtype"):
        ModelPair.load(net, other, tokenizer=nets.tokenizer())
    pair = ModelPair.load(net, other, tokenizer=nets.tokenizer(), allow_mixed_dtypes=True)
    results = measure(pair, pack, [metric() for metric in METRICS])
    whole = ModelPair(pair.base, HookedModel(deepcopy(other).float(), nets.tokenizer()))
    for one, two in zip(
        results, measure(whole, pack, [metric() for metric in METRICS]), strict=True
    ):
        for name, found in numbers(one).items():
            if one.kind in ("forgetting", "layer_forgetting") and "share" not in name:
                # bfloat16 has three digits; a loss here is near 6 nats.
                np.testing.assert_allclose(found, numbers(two)[name], atol=0.02, err_msg=name)
    with pytest.raises(DriftlensError, match=r"torch.float32 of .*torch.bfloat16 of"):
        _ = pair.hybrid


# Wrapped nets


def test_a_compiled_net_is_refused_for_it_hears_no_hooks():
    net, inside = nets.net("llama"), nets.net("llama")
    with warnings.catch_warnings():
        # That torch's own compiler still scripts.
        warnings.simplefilter("ignore", DeprecationWarning)
        compiled = torch.compile(net, backend="eager")
        inside.model.layers[1].mlp.compile(backend="eager")
    with pytest.raises(DriftlensError, match=r"before torch.compile.*the whole net compiled"):
        ModelPair.load(compiled, net, tokenizer=nets.tokenizer())
    with pytest.raises(DriftlensError, match=r"model.layers.1.mlp compiled"):
        ModelPair.load(net, inside, tokenizer=nets.tokenizer())


def test_names_of_weights_are_read_through_what_wraps_them():
    wrapped = nn.ModuleDict({"module": nn.ModuleDict({"_orig_mod": nn.Linear(2, 3)})})
    assert sorted(placement.Weights(wrapped)) == ["bias", "weight"]
    assert placement.Weights(wrapped).bytes == 4 * (2 * 3 + 3)


def test_a_weight_that_was_freed_is_told_of():
    with pytest.raises(DriftlensError, match=r"the weight weight.*freed"):
        _ = placement.Weights(nn.Linear(2, 2, device="meta"))["weight"]


# The command line


def test_the_doctor_takes_a_device_map(folders, tmp_path, capfd, monkeypatch):
    (tmp_path / "map.json").write_text(json.dumps(MAP))
    (tmp_path / "text.txt").write_text("\n\n".join(nets.TEXTS))
    asked = ["--text", str(tmp_path / "text.txt"), "--device-map", str(tmp_path / "map.json")]
    monkeypatch.setattr(sys, "argv", ["driftlens", "doctor", *folders, *asked, "--quiet"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    assert "weights offloaded; forgetting by weights is left out" in capfd.readouterr().out
