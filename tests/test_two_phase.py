"""Base first, then aligned: the same numbers from half the memory, and what that leaves out."""

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

import nets
from driftlens import doctor, measure, phases, suite
from driftlens.cli import main
from driftlens.diagnostics import Forgetting, LayerForgetting
from driftlens.errors import DriftlensError, LoadError
from driftlens.models import EMBED, ModelPair, Site, Wants, placement
from driftlens.models.hooks import HookedModel
from driftlens.models.load import load_apart
from driftlens.packs import Pack
from driftlens.shards import Shards, ShardWriter
from test_placement import MAP

OUT = Wants(frozenset({"out"}), None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    base = nets.net("llama")
    return [
        nets.saved(base, place / "base"),
        nets.saved(nets.moved(deepcopy(base), 0.03, 1), place / "aligned"),
    ]


@pytest.fixture(scope="module")
def packs():
    return [nets.pack(nets.TEXTS), Pack.load("stereotypes").limit(6)]


@pytest.fixture(scope="module")
def whole(folders):
    return ModelPair.load(*folders)


@pytest.fixture(scope="module")
def phased(folders, packs, tmp_path_factory):
    """What the base's pass has left. Nobody may change it."""
    folder = tmp_path_factory.mktemp("store") / "store"
    return phases.run(load_apart(*folders), packs, suite.Options(), folder)


@pytest.fixture
def run(folders, packs, tmp_path):
    """The base's pass in a folder of its own, over the text alone."""

    def made(options=suite.Options(), names=folders, shown=packs[:1], **how):
        return phases.run(load_apart(*names), shown, options, tmp_path / "store", **how)

    return made


def batch_of(pair, pack, texts=slice(None)):
    encoder = pair.encoder(pack)
    return encoder.encode(encoder.plan[texts])[0]


# The same numbers


def test_what_is_measured_is_what_two_live_models_give_to_the_last_bit(phased, whole, packs):
    checks = doctor.examine(phased.pair, packs, before=phased.checks)
    found = list(suite.examine(phased.pair, packs, checks=checks, floors=phased.floors))
    live = {
        (r.pack, r.kind): r
        for r in suite.examine(whole, packs, checks=doctor.examine(whole, packs))
    }
    assert {r.kind for r in found} >= {"forgetting", "drift", "lens", "selective_forgetting"}
    for one in found:
        other = live[one.pack, one.kind]
        if one.kind == "noise_floor":
            # It has a row for each thing that was measured.
            sizes = dict(
                zip(zip(other.diagnostic, other.name, strict=True), other.floor_size, strict=True)
            )
            rows = zip(one.diagnostic, one.name, one.floor_size, strict=True)
            assert all(sizes[kind, name] == size for kind, name, size in rows)
            continue
        assert one.floor == other.floor
        for name, estimate in one.estimates().items():
            np.testing.assert_equal(estimate, other.estimates()[name], err_msg=f"{one.kind} {name}")
        for name, column in one.columns().items():
            np.testing.assert_array_equal(column, other.columns()[name], err_msg=one.kind)


def test_the_stored_base_shows_what_the_live_one_saw(phased, whole, packs):
    batch = batch_of(whole, packs[0])
    ours, live = (pair.base.trace(batch, OUT) for pair in (phased.pair, whole))
    for site in (EMBED, Site(0), Site(2)):
        assert torch.equal(ours.activations[site][batch.mask], live.activations[site][batch.mask])
        assert torch.equal(ours.at(site), live.at(site))
    assert torch.equal(ours.predictors, live.predictors)
    assert not ours.last[~batch.mask].any(), "nothing is kept of padding"


def test_the_head_reads_on_when_the_blocks_are_freed(phased, whole, packs):
    stream = whole.base.trace(batch_of(whole, packs[0])).predictors
    assert torch.equal(phased.pair.base.readout(stream), whole.base.readout(stream))
    blocks = phased.pair.base.model.blocks
    assert {w.device.type for block in blocks for w in block.parameters()} == {"meta"}


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_texts_are_found_however_they_are_put_into_batches(rows, phased, whole, packs):
    one, other = (
        measure(pair, packs[0], [Forgetting()], rows=rows)[0] for pair in (phased.pair, whole)
    )
    # Base was run in other batches here: the noise of float32.
    assert one.loss_rise.value == pytest.approx(other.loss_rise.value, abs=1e-6)


def test_gates_that_ask_each_model_alone_have_asked_both(phased, packs):
    checks = {c.name: c for c in doctor.examine(phased.pair, packs, before=phased.checks)}
    for name in ("finite weights", "padding", "batching", "residual stream"):
        assert checks[name].status == "pass"
        assert checks[name].detail.startswith("base: ")
        assert "; aligned: " in checks[name].detail


def test_the_graver_of_two_findings_stands(phased, packs):
    worse = [doctor.Check("padding", "warn", "moves much"), *phased.checks]
    worse = [c for n, c in enumerate(worse) if c.name != "padding" or not n]
    checks = {c.name: c for c in doctor.examine(phased.pair, packs, before=worse)}
    assert checks["padding"].status == "warn"
    assert checks["padding"].detail.startswith("base: moves much; aligned: left")


# What is left out, and said


def test_what_needs_both_models_at_once_is_left_out_and_named(phased, packs):
    check = phases.left_out(packs, suite.Options(), "little memory")
    assert (check.name, check.status) == ("both models at once", "warn")
    assert "(little memory)" in check.detail
    plan = suite.PLAN["text"](suite.Options())
    apart = {m for m in plan if m.wants.together}
    kept = {
        type(m)
        for m in suite.applicable(phased.pair, phased.pair.encoder(packs[0]), suite.Options())
    }
    names = {"LayerForgetting", "Factorial", "TokenLayers", "SymptomLayers"}
    assert {type(m).__name__ for m in apart} == names
    assert not kept & {type(m) for m in apart}
    for title in ("Forgetting by layer", "Forgetting by weights"):
        assert title in check.detail


def test_a_stored_model_is_neither_resumed_nor_edited_nor_differentiated(phased, packs):
    base, batch = phased.pair.base, batch_of(phased.pair, packs[0])
    stream = base.trace(batch).last
    for tried, what in (
        (lambda: base.resume(batch, 0, stream), "resumed at a block"),
        (lambda: base.trace(batch, OUT, {Site(0): torch.zeros_like}), "edited"),
        (lambda: base.trace(batch, Wants(gradients=True)), "differentiated"),
    ):
        with pytest.raises(DriftlensError, match=rf"both models at once.*{what}.*--two-phase"):
            tried()
    with pytest.raises(DriftlensError, match="weights can be swapped"):
        _ = phased.pair.hybrid
    with pytest.raises(DriftlensError, match=r"both models at once.*in a store"):
        measure(phased.pair, packs[0], [LayerForgetting()])


def test_texts_that_base_never_saw_are_told_of(phased):
    strange = batch_of(phased.pair, nets.pack(["Nobody has read this to it."]))
    with pytest.raises(DriftlensError, match=r"saw of every text.*nothing of 1 of 1 texts"):
        phased.pair.base.trace(strange)


def test_nothing_is_kept_that_no_metric_asks_for(run):
    shards = Shards.open(run(suite.Options(layers=frozenset({1}))).folder)
    (key,) = (key for key in shards.keys if key.startswith("001"))
    assert shards.shapes(key).keys() == {
        *("marks", "lengths", "embed", "1.attn", "1.mlp", "1.out", "2.out")
    }


# The store


def test_a_run_that_was_killed_goes_on_with_what_is_whole(run, whole, packs, monkeypatch):
    one_row, put, read = suite.Options(rows=1), ShardWriter.put, []

    def killed(self, key, tensors):
        if len(self.done) == 4:
            raise KeyboardInterrupt
        put(self, key, tensors)

    monkeypatch.setattr(ShardWriter, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        run(one_row)
    monkeypatch.setattr(ShardWriter, "put", lambda *z: (read.append(z[1]), put(*z)))
    phased = run(one_row, resume=True)
    # The sample, nine texts and what was found: four were there.
    assert len(read) == 11 - 4
    (one,), (other,) = (measure(p, packs[0], [Forgetting()], rows=1) for p in (phased.pair, whole))
    assert one.loss_rise == other.loss_rise


def test_a_finished_store_is_not_written_again(run, monkeypatch):
    first = run()
    monkeypatch.setattr(ShardWriter, "put", None)
    monkeypatch.setattr(phases, "_read", None)
    again = run(resume=True)
    assert again.floors == first.floors
    assert again.checks == first.checks


def test_a_store_of_another_run_is_refused_with_what_differs(run, folders, packs):
    run()
    others = (
        ({"options": suite.Options(layers=frozenset({0}))}, "sites"),
        ({"shown": [packs[0].limit(3)]}, "packs"),
        ({"names": folders[::-1]}, "base.sha256"),
    )
    for how, name in others:
        with pytest.raises(DriftlensError, match=rf"something else: .*{name}"):
            run(resume=True, **how)


def test_a_store_that_was_damaged_is_refused(run):
    folder = run().folder
    file = next(folder.glob("001-*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(LoadError, match=rf"{file.name} \(changed\)"):
        run(resume=True)


def test_a_disk_that_is_too_small_is_told_of_before_base_reads(run, monkeypatch, tmp_path):
    class Little:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Little)
    monkeypatch.setattr(phases, "_read", None)
    with pytest.raises(DriftlensError, match=r"MB on the disk.*found 0.00 MB free.*--keep-store"):
        run()
    assert not (tmp_path / "store").exists()


def test_what_is_kept_is_as_large_as_was_counted(run, folders, packs):
    base = HookedModel(nets.net("llama"), nets.tokenizer())
    pair = ModelPair(base, base)
    sites = phases.sites_of(base, Wants(frozenset({"attn", "mlp", "out"}), None))
    tokens = sum(window.length for window in pair.encoder(packs[0]).plan)
    shards = Shards.open(run().folder)
    held = sum(
        (shards.folder / f"{key}.safetensors").stat().st_size
        for key in shards.keys
        if key.startswith("001")
    )
    counted = phases.bytes_of(base, sites) * tokens
    assert counted <= held < 1.1 * counted + 2000


# What cannot be run so


def test_what_cannot_be_run_one_after_the_other_is_told_of(folders, tmp_path, packs):
    masked = nets.saved(nets.net("bert"), tmp_path / "bert", nets.enclosing())
    with pytest.raises(DriftlensError, match=r"continue text.*one after the other.*--two-phase"):
        phases.run(load_apart(masked, masked), packs, suite.Options(), tmp_path / "store")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(DriftlensError, match=r"weights of their own.*adapter.*--two-phase"):
        load_apart(folders[0], str(tmp_path / "adapter"))
    other = nets.saved(nets.net("llama", num_hidden_layers=2), tmp_path / "short")
    with pytest.raises(DriftlensError, match="same number of blocks"):
        phases.run(load_apart(folders[0], other), packs, suite.Options(), tmp_path / "store")


def test_a_base_that_is_not_finite_stops_before_it_is_kept(folders, tmp_path, packs):
    net = nets.net("llama")
    with torch.no_grad():
        net.model.layers[1].mlp.up_proj.weight[0, 0] = torch.inf
    bad = nets.saved(net, tmp_path / "bad")
    with pytest.raises(DriftlensError, match=r"finite weights.*layers.1.mlp.up_proj"):
        phases.run(load_apart(bad, folders[1]), packs, suite.Options(), tmp_path / "store")
    assert not phases.unfinished(tmp_path / "store")


def test_blocks_that_are_offloaded_are_not_freed(folders, tmp_path, packs):
    apart = load_apart(*folders, device_map=MAP)
    with pytest.raises(DriftlensError, match=r"lie in memory.*weights offloaded.*--two-phase"):
        phases.run(apart, packs[:1], suite.Options(), tmp_path / "store")


# The command line


@pytest.fixture
def report(monkeypatch, tmp_path, capfd, folders):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n\n".join(nets.TEXTS))

    def run(*asked):
        usual = ["--text", "text.txt", "--out", "out", "--format", "json,parquet"]
        monkeypatch.setattr(sys, "argv", ["driftlens", "report", *folders, *usual, *asked])
        try:
            main()
            code = 0
        except SystemExit as left:
            code = left.code
        return code, capfd.readouterr().err

    return run


def checks_of(tmp_path):
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    return {check["name"]: check for check in record["checks"]}


def test_a_report_in_two_phases_says_so_and_leaves_no_store(report, tmp_path):
    code, said = report("--two-phase")
    assert code == 0
    assert "two phases, base first" in said
    assert checks_of(tmp_path)["both models at once"]["status"] == "warn"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "text.txt"]


def test_a_pair_for_which_memory_has_no_room_is_run_in_two_phases_unless_it_is_said(
    report, tmp_path, monkeypatch
):
    net = nets.net("llama")
    one = sum(t.numel() * t.element_size() for t in [*net.parameters(), *net.buffers()])
    monkeypatch.setattr(placement, "available", lambda _: int(1.5 * one))
    code, said = report("--no-two-phase")
    assert code == 2
    assert "--two-phase" in said
    code, said = report()
    assert code == 0
    assert "two phases, base first: memory has room for one of them" in said
    assert "room for one of them" in checks_of(tmp_path)["both models at once"]["detail"]


def test_a_store_that_is_kept_serves_the_next_run(report, tmp_path, monkeypatch):
    assert report("--two-phase", "--keep-store", "kept")[0] == 0
    assert (tmp_path / "kept" / "manifest.json").exists()
    monkeypatch.setattr(phases, "_read", None)
    assert report("--two-phase", "--keep-store", "kept", "--overwrite")[0] == 0
    code, said = report("--two-phase", "--keep-store", "kept", "--overwrite", "--layers", "1")
    assert code == 2
    assert "something else: sites" in said
    assert (tmp_path / "kept" / "manifest.json").exists()


@pytest.mark.parametrize("when", ["base", "aligned"])
def test_an_interrupted_run_in_two_phases_is_resumed_in_either(when, report, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if when == "base":
            put = ShardWriter.put

            def few(self, key, tensors):
                put(self, key, tensors) if len(self.done) < 3 else stopped()

            patched.setattr(ShardWriter, "put", few)
        else:
            patched.setattr(suite, "_examine", stopped)
        code, said = report("--two-phase", "--batch-size", "2")
        assert code == 130
        assert "--resume" in said
        assert not (tmp_path / "out").exists()
    code, _ = report("--batch-size", "2", "--resume")
    assert code == 0
    assert "both models at once" in checks_of(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "text.txt"]


def test_a_series_and_another_back_end_are_not_run_in_two_phases(report, folders):
    code, said = report("--two-phase", "--backend", "nnsight")
    assert code == 2
    assert "hooks as the back-end" in said
    code, said = report("--two-phase", folders[0])
    assert code == 2
    assert "with a series of more" in said


# Memory


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no system that tells")
def test_two_phases_hold_one_model_at_a_time(tmp_path):
    """The peak of a process over that of one with a tiny pair, in sizes of one model."""
    shape = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 24}
    net, tiny = nets.net("llama", **shape), nets.net("llama")
    size = sum(w.numel() * w.element_size() for w in net.parameters())
    folders = [nets.saved(net, tmp_path / "base"), nets.saved(tiny, tmp_path / "tiny")]
    folders.append(nets.saved(nets.moved(net, 0.003, 1), tmp_path / "aligned"))
    both = (folders[0], folders[2])
    bare = _peak("once", (folders[1], folders[1]), tmp_path)
    once, apart = ((_peak(way, both, tmp_path) - bare) / size for way in ("once", "phases"))
    assert once > 1.9
    assert apart < 1.15


PEAK = """
import sys
from pathlib import Path
from driftlens import measure, phases, suite
from driftlens.diagnostics import Forgetting
from driftlens.models import ModelPair
from driftlens.models.load import load_apart
from driftlens.packs import Example, Pack

way, base, aligned, folder = sys.argv[1:]
pack = Pack("texts", "text", [Example("one two three four five six seven")] * 8)
suite.PLAN = {"text": lambda o: (Forgetting(),)}
if way == "once":
    pair = ModelPair.load(base, aligned)
if way == "phases":
    pair = phases.run(load_apart(base, aligned), [pack], suite.Options(), Path(folder)).pair
measure(pair, pack, [Forgetting()])
# Not ru_maxrss, which a process begins with its parent's.
told = Path("/proc/self/status").read_text()
print(1024 * int(told.split("VmHWM:")[1].split()[0]))
"""


def _peak(way: str, folders, tmp_path: Path) -> int:
    asked = [sys.executable, "-c", PEAK, way, *folders, str(tmp_path / "store")]
    ran = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return int(ran.stdout)
