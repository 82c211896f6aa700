"""A run that is stopped, and taken up again; and a run that is short of memory."""

import json
import shutil

import numpy as np
import pytest
import torch

import nets
from driftlens import partial as partials
from driftlens import suite
from driftlens.diagnostics import Forgetting
from driftlens.errors import DriftlensError
from driftlens.metric import measure
from driftlens.models.hooks import HookedModel
from driftlens.packs import Example, Pack
from driftlens.partial import Done, Partial
from driftlens.results import same

PACKS = [
    nets.pack(nets.TEXTS),
    Pack(
        "triples",
        "stereotype",
        [
            Example(f"A baker {n} is {end}", None, n, role)
            for n in range(4)
            for role, end in (("stereotype", "loud"), ("anti_stereotype", "quiet"))
        ],
    ),
]
OPTIONS = suite.Options(rows=2, length=24)
RUN = {"base model": "x", "seed": 0, "limit": None}


@pytest.fixture(autouse=True)
def every_batch_is_kept(monkeypatch):
    monkeypatch.setattr(partials, "SECONDS", 0.0)


@pytest.fixture(scope="module")
def undisturbed(pair, tmp_path_factory):
    # One that keeps its work too: where work is kept, products are summed in other portions.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partials, "SECONDS", 0.0)
        return examined(pair, Partial(tmp_path_factory.mktemp("runs") / "undisturbed"))


def examined(pair, partial, progress=None):
    partial.begin(RUN)
    return list(suite.examine(pair, PACKS, OPTIONS, partial=partial, progress=progress))


class PowerCut(Exception):
    pass


def after(batches, do):
    """A progress that does something once so many batches are done."""
    calls = []

    def progress(*_):
        calls.append(1)
        if len(calls) == batches:
            do()

    return progress


def cut():
    raise PowerCut


# Batches in all: 9 texts in windows of 24 tokens, and 8 sentences, two at a time.
@pytest.mark.parametrize("batches", nets.some([1, 3, 7, 9], [9]))
def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(batches, pair, undisturbed, tmp_path):
    first = Partial(tmp_path / "report")
    stop = after(batches, lambda: setattr(first, "stopping", True))
    with pytest.raises(KeyboardInterrupt):
        examined(pair, first, stop)
    assert not (tmp_path / "report").exists()
    resumed = examined(pair, Partial(tmp_path / "report", resume=True))
    assert len(resumed) == len(undisturbed)
    assert all(map(same, resumed, undisturbed))


@pytest.mark.slow
@pytest.mark.parametrize("batches", nets.some([1, 4, 9], [4]))
def test_a_run_that_was_killed_goes_on_to_the_same_numbers(batches, pair, undisturbed, tmp_path):
    with pytest.raises(PowerCut):
        examined(pair, Partial(tmp_path / "report"), after(batches, cut))
    resumed = examined(pair, Partial(tmp_path / "report", resume=True))
    assert all(map(same, resumed, undisturbed))


@pytest.mark.slow
def test_keeping_work_changes_nothing_but_the_last_digits(pair, undisturbed):
    for kept, free in zip(undisturbed, suite.examine(pair, PACKS, OPTIONS), strict=True):
        for name, column in free.columns().items():
            if column.dtype.kind == "f":
                # Float32 products, as in the laws.
                np.testing.assert_allclose(kept.columns()[name], column, atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_what_was_done_is_not_done_again(pair, tmp_path):
    whole = []
    list(suite.examine(pair, PACKS, OPTIONS, progress=lambda *what: whole.append(what)))
    # What divides a loss is taken again whole; of a pack that is finished nothing is.
    done = [name for name, _, _ in whole].index(PACKS[1].name) + 1
    with pytest.raises(PowerCut):
        examined(pair, Partial(tmp_path / "report"), after(done, cut))
    seen = []
    partial = Partial(tmp_path / "report", resume=True)
    partial.begin(RUN)
    told = lambda *what: seen.append(what)  # noqa: E731
    list(suite.examine(pair, PACKS, OPTIONS, partial=partial, progress=told))
    assert seen == whole[done:]
    assert partial.results(0) is not None


def test_work_is_kept_only_every_so_often(pair, monkeypatch, tmp_path):
    monkeypatch.setattr(partials, "SECONDS", 1e9)
    with pytest.raises(PowerCut):
        examined(pair, Partial(tmp_path / "report"), after(3, cut))
    assert not list(tmp_path.glob(".report.partial/*.safetensors"))


def test_another_run_is_not_taken_up_and_what_changed_is_named(tmp_path):
    Partial(tmp_path / "report").begin(RUN)
    changed = RUN | {"seed": 1, "limit": 3, "max-length": 5}
    with pytest.raises(DriftlensError, match="another: limit, max-length, seed changed"):
        Partial(tmp_path / "report", resume=True).begin(changed)


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(DriftlensError, match="an unfinished run to resume"):
        Partial(tmp_path / "report", resume=True)


def test_a_new_run_begins_anew(pair, tmp_path):
    with pytest.raises(PowerCut):
        examined(pair, Partial(tmp_path / "report"), after(8, cut))
    partial = Partial(tmp_path / "report")
    partial.begin(RUN)
    assert partial.results(0) is None
    assert partial.checkpoint(0).load() == Done()


def test_nothing_is_left_of_what_was_removed_nor_of_what_kept_nothing(tmp_path):
    for forget in (Partial.remove, Partial.tidy):
        partial = Partial(tmp_path / "a" / "b" / "report")
        partial.begin(RUN)
        forget(partial)
        assert list(tmp_path.iterdir()) == []


def test_a_run_that_kept_something_is_not_tidied_away(pair, tmp_path):
    partial = Partial(tmp_path / "report")
    with pytest.raises(PowerCut):
        examined(pair, partial, after(2, cut))
    partial.tidy()
    assert Partial(tmp_path / "report", resume=True).checkpoint(0).load().batches == {0, 1}


def test_a_full_disk_is_told_of_and_what_was_kept_stays_whole(pair, monkeypatch, tmp_path):
    partial = Partial(tmp_path / "report")

    def full(*_):
        raise OSError(28, "No space left on device")

    def fill():
        monkeypatch.setattr("driftlens.partial.put", full)

    with pytest.raises(DriftlensError, match="room for"):
        examined(pair, partial, after(2, fill))
    assert partial.checkpoint(0).load().batches == {0, 1}


def test_the_run_is_written_as_plain_json(tmp_path):
    Partial(tmp_path / "report").begin(RUN | {"layers": (1, 2)})
    kept = json.loads((tmp_path / ".report.partial" / "run.json").read_text())
    assert kept == RUN | {"layers": [1, 2]}
    shutil.rmtree(tmp_path / ".report.partial")


# Short of memory

SHORT = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    "mps": RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    "python": MemoryError(),
}


def short(monkeypatch, error, rows):
    """Models that have memory for so many rows at a time."""
    trace = HookedModel.trace

    def tight(self, batch, *arguments):
        if len(batch.ids) > rows:
            raise error
        return trace(self, batch, *arguments)

    monkeypatch.setattr(HookedModel, "trace", tight)


@pytest.mark.parametrize("device", nets.some(SHORT, ["cuda"]))
def test_where_memory_runs_out_batches_are_halved_and_nothing_else_changes(
    device, pair, monkeypatch
):
    encoder = pair.encoder(PACKS[0], 24)
    few, many = (suite.applicable(pair, encoder, OPTIONS) for _ in range(2))
    one_by_one = measure(pair, PACKS[0], few, rows=1, length=24)
    short(monkeypatch, SHORT[device], 1)
    halved = measure(pair, PACKS[0], many, rows=5, length=24)
    for a, b in zip(one_by_one, halved, strict=True):
        # Not to the last bit: sums are merged in another order.
        assert a.summary() == b.summary()
    assert abs(one_by_one[0].loss_rise.value - halved[0].loss_rise.value) < 1e-12


def test_one_window_that_does_not_fit_is_an_error_that_says_what_to_give(pair, monkeypatch):
    short(monkeypatch, SHORT["cuda"], 0)
    with pytest.raises(DriftlensError, match="Give a smaller --max-length") as caught:
        measure(pair, PACKS[0], [Forgetting()], length=24)
    assert "one window of 24 tokens" in str(caught.value)


def test_an_error_that_is_not_of_memory_is_not_retried(pair, monkeypatch):
    short(monkeypatch, RuntimeError("a bug"), 0)
    with pytest.raises(RuntimeError, match="a bug"):
        measure(pair, PACKS[0], [Forgetting()])


def test_the_gates_too_make_do_with_less_memory(pair, monkeypatch):
    from driftlens import doctor

    short(monkeypatch, SHORT["cuda"], 2)
    checks = {check.name: check.detail for check in doctor.examine(pair, PACKS)}
    assert "residual stream" in checks
