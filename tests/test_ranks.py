"""Several processes that share a run: the same numbers, one voice, one end."""

import json
import subprocess
import sys
from copy import deepcopy

import numpy as np
import pytest
from safetensors.numpy import load, save

import launched as launching
import nets
import test_laws as laws
from driftlens import metric as metrics
from driftlens import preflight, ranks, suite
from driftlens.diagnostics import Forgetting
from driftlens.metric import measure
from driftlens.partial import Done, Partial
from driftlens.report import Report
from launched import BROKEN, launched

assert all((preflight, suite)), "kinds of results are known once these are imported"

SAME = 1e-6
"""How far a number may lie from that of one process: as far as products in float32 round when the
rows that are multiplied together are others."""


# What travels


@pytest.mark.parametrize(("make", "kind"), laws.EVERY)
def test_what_several_processes_saw_becomes_the_whole_on_its_way(make, kind, monkeypatch):
    # The second of four saw nothing, the others not equally much.
    some = laws.frames(kind)
    shares = [some[0::3], (), some[1::3], some[2::3]]
    whole, mine = laws.begun(make, kind), laws.begun(make, kind)
    parts = [laws.after(mine.empty(), share) for share in shares]

    def gathered(what, arrays):
        name = what.split(" of ")[0]
        states = (part._kept()[name].state() for part in parts)
        return (load(save({k: np.asarray(z, order="C") for k, z in s.items()})) for s in states)

    monkeypatch.setattr(ranks, "gathered", gathered)
    metrics._gather([whole], [mine.empty()], "a test")
    laws.close(whole.compute(), laws.result(make, kind), laws.SUMMED)


def test_one_process_alone_shares_with_nobody():
    assert (ranks.size(), ranks.rank(), ranks.local()) == (1, 0, None)
    assert list(ranks.share(3)) == [0, 1, 2]
    assert ranks.lead(lambda: "found") == "found"
    ((mine),) = ranks.gathered("anything", {"a": np.arange(3)})
    assert mine["a"].tolist() == [0, 1, 2]
    assert ranks.speaks(2)
    assert ranks.code(2) == 2


# What is kept


def kept(partial, rank, size, batches, monkeypatch):
    """Keep some batches as one of several processes does."""
    monkeypatch.setattr(ranks, "rank", lambda: rank)
    monkeypatch.setattr(ranks, "size", lambda: size)
    monkeypatch.setattr(ranks, "lead", lambda do: do())
    shard = partial.checkpoint(0)
    done = shard.load()
    mine = sorted({*done.mine, *batches})
    shard.save(256, mine, lambda: [{"sum": np.array(sum(mine))}], last=True)
    return done


@pytest.fixture
def partial(tmp_path):
    found = Partial(tmp_path / "report")
    found.begin({})
    return found


def test_shares_are_taken_up_by_as_many_processes_as_there_are(partial, monkeypatch):
    assert kept(partial, 0, 3, {0, 3}, monkeypatch) == Done()
    assert kept(partial, 1, 3, {1, 4, 7}, monkeypatch) == Done(256, frozenset({0, 3}))
    kept(partial, 2, 3, {2}, monkeypatch)
    # Two take up what three left: the second of them has nothing that another takes too.
    monkeypatch.setattr(ranks, "size", lambda: 2)
    both = []
    for rank in (0, 1):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        both.append(partial.checkpoint(0).load())
    assert {done.batches for done in both} == {frozenset({0, 1, 2, 3, 4, 7})}
    assert both[0].mine | both[1].mine == both[0].batches
    assert not both[0].mine & both[1].mine


def test_no_batch_counts_twice_when_a_run_dies_between_taking_up_and_forgetting(
    partial, monkeypatch
):
    kept(partial, 1, 3, {1, 4}, monkeypatch)
    (old,) = partial.shards(0)
    left = old.read_bytes()
    kept(partial, 0, 1, {0, 2}, monkeypatch)
    assert [path.name for path in partial.shards(0)] == ["0.0-of-1.safetensors"]
    old.write_bytes(left)
    done = partial.checkpoint(0).load()
    assert done.batches == done.mine == {0, 1, 2, 4}
    assert [int(state["sum"]) for (state,) in done.states] == [7]
    assert not old.exists()


# Real processes


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny pair and some text, as a user has them."""
    place = tmp_path_factory.mktemp("place")
    base = nets.net("llama")
    nets.saved(base, place / "base")
    nets.saved(nets.moved(deepcopy(base), 0.03, 1), place / "aligned")
    (place / "text.txt").write_text("\n\n".join(nets.TEXTS))
    return place


REPORT = ("report", "base", "aligned", "--format", "json,parquet", "--quiet", "--batch-size", 2)
TEXT = (*REPORT, "--text", "text.txt", "--max-length", 24)


def run(place, count, *arguments, **how):
    """What all processes left with, and said."""
    every = launched(count, *arguments, where=place, **how)
    codes, out, err = zip(*every, strict=True)
    return codes, "".join(out), "".join(err)


def read(folder):
    """Every result, and results.json without what differs from run to run."""
    record = json.loads((folder / "results.json").read_text())
    for name in ("started", "finished", "command", "processes", "plan"):
        record["run"].pop(name, None)
    return Report.read(folder).results, record


def worst(ours, theirs):
    """By how much numbers differ at most; all else must be the same."""
    most = 0.0
    for a, b in zip(ours, theirs, strict=True):
        assert (a.kind, a.pack, a.rows(), a.notes) == (b.kind, b.pack, b.rows(), b.notes)
        pairs = [(a.columns()[name], b.columns()[name]) for name in a.columns()]
        values = zip(a.estimates().values(), b.estimates().values(), strict=True)
        pairs += [(np.array([*x]), np.array([*y])) for x, y in map(_ends, values)]
        for x, y in pairs:
            if x.dtype.kind != "f":
                np.testing.assert_array_equal(x, y)
                continue
            np.testing.assert_array_equal(np.isfinite(x), np.isfinite(y))
            fine = np.isfinite(x)
            # A temperature may be infinite, and is then so in both.
            np.testing.assert_array_equal(x[~fine], y[~fine])
            most = max(most, float(np.abs(x[fine] - y[fine]).max(initial=0)))
    return most


def _ends(both):
    return [(one.value, one.low, one.high) for one in both]


@pytest.mark.slow
def test_one_process_says_what_two_say_and_three(place):
    every = (*REPORT, "--limit", 8)
    for count in (1, 2, 3):
        codes, out, err = run(place, count, *every, "--out", f"by-{count}")
        assert (codes, out, err) == ((0,) * count, f"by-{count}/results.json\n", "")
    one, _ = read(place / "by-1")
    assert len({result.pack for result in one}) > 1
    for count in (2, 3):
        most = worst(one, read(place / f"by-{count}")[0])
        print(f"{count} processes: at most {most:.1e} from one")
        assert most < SAME
        record = json.loads((place / f"by-{count}" / "results.json").read_text())
        assert record["run"]["processes"] == count


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["0", "1"])
def test_what_one_process_meets_alone_is_told_once_and_ends_all(place, broken):
    codes, out, err = run(place, 2, *TEXT, "--out", "no", code=BROKEN, BROKEN=f"{broken} raises 3")
    assert (codes, out) == ((2, 2), "")
    assert err.count("\n") == 1
    assert err.startswith(f"rank {broken} of 2: expected a sound model, found NaN. Mend it.")
    assert "--resume" in err
    assert not (place / "no").exists()


@pytest.mark.slow
def test_what_nobody_foresaw_is_told_once_with_its_traceback(place):
    codes, out, err = run(place, 2, *TEXT, "--out", "no", code=BROKEN, BROKEN="1 puzzled 3")
    assert (codes, out) == ((1, 1), "")
    assert err.count("Traceback") == 1
    assert err.startswith("rank 1 of 2: Traceback")
    assert "nobody foresaw this" in err
    assert "--resume" in err


@pytest.mark.slow
def test_what_all_meet_the_first_one_tells(place):
    for arguments in (["--text", "none.txt"], ["--max-length", "short"]):
        codes, out, err = run(place, 3, *REPORT, *arguments, "--out", "no")
        assert out == ""
        assert len(set(codes)) == 1
        assert codes[0] in (2, 3)
        assert err.count("none.txt") == ("none.txt" in arguments)
        assert err.count("Usage:") == ("short" in arguments)
        assert "rank" not in err


@pytest.fixture(scope="module")
def whole(place):
    """What two processes find that nobody disturbs."""
    assert run(place, 2, *TEXT, "--out", "whole", **SOUND)[0] == (0, 0)
    return read(place / "whole")


SOUND = {"code": BROKEN, "BROKEN": "none 0 0"}
"""Keeps what is done after every batch, and breaks nowhere."""


@pytest.mark.slow
@pytest.mark.parametrize(("killed", "others"), [("0", ()), ("1", (1, 3))])
def test_a_process_that_is_killed_is_missed_and_the_run_goes_on_to_the_same_record(
    place, whole, killed, others
):
    again = f"again-{killed}"
    broken = {"code": BROKEN, "BROKEN": f"{killed} killed 3"}
    codes, out, err = run(place, 2, *TEXT, "--out", again, **broken)
    assert sorted(codes) == [-9, 1]
    assert (out, err.count("\n")) == ("", 1)
    assert f"no answer from rank {killed}" in err
    assert "--resume" in err
    left = place / f".{again}.partial"
    assert list(left.glob("*.safetensors"))
    # By fewer or more processes the same is found, to rounding; by as many, to the last bit.
    for count in others:
        copy = place / f".{again}-{count}.partial"
        subprocess.run(["cp", "-r", left, copy], check=True)
        resumed = (*TEXT, "--out", f"{again}-{count}", "--resume")
        assert run(place, count, *resumed, **SOUND)[0] == (0,) * count
        assert worst(read(place / f"{again}-{count}")[0], whole[0]) < SAME
    assert run(place, 2, *TEXT, "--out", again, "--resume", **SOUND)[0] == (0, 0)
    results, record = read(place / again)
    assert record == whole[1]
    assert worst(results, whole[0]) == 0


@pytest.mark.slow
def test_two_nodes_find_each_other(place, whole):
    port = str(launching.port())
    agents = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"),
                *("--node-rank", str(node), "--nproc-per-node", str(1 + node)),
                *("--master-addr", "127.0.0.1", "--master-port", port),
                *("-m", "driftlens", *map(str, TEXT), "--out", "nodes"),
            ],
            cwd=place,
            env=launching.os.environ | {"PYTHONPATH": launching.PATH, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for node in (0, 1)
    ]
    said = [agent.communicate()[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0]
    assert said == ["nodes/results.json\n", ""]
    assert worst(read(place / "nodes")[0], whole[0]) < SAME


OWN = """
import json
import torch.distributed as dist
import driftlens as dl
import nets
from driftlens import ranks

dist.init_process_group("gloo")
rank = dist.get_rank()
pair, pack = nets.pair("llama"), nets.pack(nets.TEXTS[:2])
found = dl.measure(pair, pack, [dl.Forgetting(), dl.Drift()], rows=1)
with ranks.alone():
    if rank == 2:
        alone = dl.measure(pair, pack, [dl.Forgetting()], rows=1)
        assert alone[0].loss_rise == found[0].loss_rise

class Broken(dl.Forgetting):
    def update(self, frame):
        if rank == 1:
            raise ValueError("too bad")
        super().update(frame)

try:
    dl.measure(pair, pack, [Broken()], rows=1)
    error = "nothing"
except ValueError as mine:
    error = f"{type(mine).__name__}: {mine}"
other = nets.pack(nets.TEXTS[rank : rank + 2])
try:
    dl.measure(pair, other, [dl.Forgetting()], rows=1)
except dl.DriftlensError as unlike:
    print(json.dumps([found[0].loss_rise.value, error, str(unlike)]))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_in_a_group_of_ones_own_measure_shares_and_more_processes_than_batches_are_fine(place):
    every = launched(3, code=OWN, where=place)
    assert [code for code, *_ in every] == [0, 0, 0], every
    (alone,) = measure(nets.pair("llama"), nets.pack(nets.TEXTS[:2]), [Forgetting()], rows=1)
    for rank, (_, out, _) in enumerate(every):
        rise, error, unlike = json.loads(out)
        assert rise == pytest.approx(alone.loss_rise.value, abs=1e-12)
        if rank == 1:
            assert error == "ValueError: too bad"
        else:
            assert "rank 1 of 3, which failed (ValueError: too bad)" in error
        assert "processes that all do the same" in unlike


@pytest.mark.slow
def test_other_commands_share_too(place):
    pairs = [
        {"prompt": f"{lead}", "chosen": ends[0], "rejected": ends[1]} for lead, ends in laws.TRIPLES
    ]
    (place / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    how = ("--format", "json,parquet", "--quiet", "--batch-size", 2, "--max-length", 24)
    commands = {
        "attribute": ("attribute", "base", "aligned", "--text", "text.txt", "--method", "graft"),
        "check": ("check", "base", "--preferences", "pairs.jsonl", "--protect", "text.txt"),
    }
    for name, command in commands.items():
        for count in (1, 2):
            folder = f"{name}-{count}"
            codes, out, err = run(place, count, *command, *how, "--out", folder)
            assert (codes, out, err) == ((0,) * count, f"{folder}/results.json\n", "")
        assert worst(read(place / f"{name}-1")[0], read(place / f"{name}-2")[0]) < SAME
