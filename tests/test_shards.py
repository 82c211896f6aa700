"""A store of shards is whole or says what it lacks, whatever ended the process that wrote it."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from driftlens.errors import DriftlensError, LoadError
from driftlens.shards import MANIFEST, Shards, ShardWriter, differences
from launched import Process

ABOUT = {"model": {"name": "tiny", "sha256": "a" * 64}, "sites": ["0.out", "1.mlp"], "length": 8}
KINDS = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool)


def shard(number: int, rows: int = 5) -> dict[str, torch.Tensor]:
    """What the shard of a number holds, the same whenever it is asked for."""
    drawn = torch.randn(rows, 3, generator=torch.Generator().manual_seed(number))
    return {"0.out": drawn, "half": drawn.bfloat16(), "index.row": torch.arange(rows)}


def written(folder: Path, count: int = 4, **options) -> ShardWriter:
    writer = ShardWriter(folder, ABOUT, **options)
    for number in range(count):
        if (key := f"{number:03}") not in writer.done:
            writer.put(key, shard(number))
    return writer


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refusing(number: int) -> Callable:
    """A write that a system refuses for some reason."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


# What is written is read again


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_a_tensor_comes_back_bit_by_bit_in_its_dtype(tmp_path, dtype):
    writer = ShardWriter(tmp_path / "store", ABOUT)
    tensors = {"a": (torch.randn(7, 3) * 9).to(dtype), "empty": torch.zeros(0, 3).to(dtype)}
    writer.put("0", tensors)
    store = writer.finish()
    for name, tensor in tensors.items():
        found = store.tensor("0", name)
        assert found.dtype == dtype
        assert torch.equal(found, tensor)
    assert Shards.open(tmp_path / "store").shapes("0") == {"a": (7, 3), "empty": (0, 3)}


def test_rows_are_those_of_the_tensor(tmp_path):
    store = written(tmp_path / "store").finish()
    for some in (slice(1, 4), slice(0, 0), slice(3, 99), slice(None), slice(-2, None)):
        assert torch.equal(store.rows("002", "0.out", some), shard(2)["0.out"][some])


def test_views_of_one_tensor_are_kept_each_for_itself(tmp_path):
    writer = ShardWriter(tmp_path / "store", ABOUT)
    whole = torch.arange(12.0).view(3, 4)
    writer.put("0", {"whole": whole, "same": whole, "turned": whole.T, "graph": whole * _leaf()})
    store = writer.finish()
    assert torch.equal(store.tensor("0", "turned"), whole.T)
    assert torch.equal(store.tensor("0", "same"), whole)
    assert not store.tensor("0", "graph").requires_grad


def _leaf() -> torch.Tensor:
    return torch.ones(1, requires_grad=True)


def test_the_manifest_says_of_every_shard_what_it_is(tmp_path):
    store = written(tmp_path / "store").finish()
    record = json.loads((tmp_path / "store" / MANIFEST).read_text())
    assert record["about"] == store.about == ABOUT
    assert record["finished"] is True
    assert [*record["shards"]] == store.keys == ["000", "001", "002", "003"]
    one = record["shards"]["001"]
    assert one["bytes"] == (tmp_path / "store" / one["file"]).stat().st_size
    assert one["tensors"]["half"] == {"dtype": "bfloat16", "shape": [5, 3]}


def test_the_order_in_which_shards_were_put_does_not_show(tmp_path):
    one, other = (ShardWriter(tmp_path / name, ABOUT) for name in ("one", "other"))
    for key in ("0", "1", "2"):
        one.put(key, shard(int(key)))
    for key in ("2", "0", "1"):
        other.put(key, shard(int(key)))
    one.finish()
    other.finish()
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_a_file_beside_the_shards_is_known_and_verified(tmp_path):
    writer = written(tmp_path / "store")
    with writer.beside("index.parquet") as draft:
        draft.write_bytes(b"rows")
    store = writer.finish()
    assert store.beside == ["index.parquet"]
    store.verify()
    (tmp_path / "store" / "index.parquet").write_bytes(b"wors")
    with pytest.raises(LoadError, match=r"index\.parquet \(changed\)"):
        store.verify()


def test_a_file_that_was_not_filled_to_its_end_leaves_nothing(tmp_path):
    writer = written(tmp_path / "store")
    before = contents(tmp_path / "store")
    with pytest.raises(ZeroDivisionError), writer.beside("index.parquet") as draft:
        _fill_in_part(draft)
    assert contents(tmp_path / "store") == before


def _fill_in_part(draft: Path) -> None:
    draft.write_bytes(b"half")
    raise ZeroDivisionError


# Damage


def test_only_the_shard_that_is_asked_for_is_read(tmp_path):
    store = written(tmp_path / "store").finish()
    for key in ("000", "001", "003"):
        (tmp_path / "store" / f"{key}.safetensors").write_bytes(b"ruined")
    assert torch.equal(store.tensor("002", "half"), shard(2)["half"])
    with pytest.raises(LoadError, match=r"001\.safetensors"):
        store.tensor("001", "half")


def test_verify_names_every_damaged_file_and_no_other(tmp_path):
    store = written(tmp_path / "store").finish()
    store.verify()
    turned, cut, gone = (tmp_path / "store" / f"00{n}.safetensors" for n in (0, 2, 3))
    body = bytearray(turned.read_bytes())
    body[-1] ^= 1
    turned.write_bytes(body)
    cut.write_bytes(cut.read_bytes()[:-1])
    gone.unlink()
    with pytest.raises(LoadError) as caught:
        store.verify()
    assert caught.value.found == (
        "000.safetensors (changed), 002.safetensors (changed), 003.safetensors (missing)"
    )


@pytest.mark.parametrize("of", ["cut", "gone", "header"])
def test_a_shard_that_cannot_be_read_is_named(tmp_path, of):
    store = written(tmp_path / "store").finish()
    path = tmp_path / "store" / "001.safetensors"
    body = path.read_bytes()
    if of == "cut":
        path.write_bytes(body[:40])
    elif of == "gone":
        path.unlink()
    else:
        path.write_bytes(b"\xff" * 16 + body[16:])
    for read in (
        lambda: store.tensor("001", "0.out"),
        lambda: store.rows("001", "0.out", slice(1)),
    ):
        with pytest.raises(LoadError, match=r"001\.safetensors.*--resume"):
            read()


def test_an_unknown_tensor_is_answered_with_those_that_there_are(tmp_path):
    store = written(tmp_path / "store").finish()
    with pytest.raises(DriftlensError, match=r"0\.out, half, index\.row, found '9\.out'"):
        store.tensor("001", "9.out")


BROKEN = {
    "no JSON": "{",
    "a list": "[]",
    "another's": '{"shards": {}}',
    "no shards": json.dumps({"holds": "driftlens shards", "format": 1}),
    "a way out": json.dumps(
        {
            "holds": "driftlens shards",
            "format": 1,
            "about": {},
            "finished": True,
            "beside": {},
            "shards": {
                "../x": {"file": "../x.safetensors", "bytes": 1, "sha256": "", "tensors": {}}
            },
        }
    ),
    "another file": json.dumps(
        {
            "holds": "driftlens shards",
            "format": 1,
            "about": {},
            "finished": True,
            "beside": {},
            "shards": {"0": {"file": "/etc/passwd", "bytes": 1, "sha256": "", "tensors": {}}},
        }
    ),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_manifest_is_refused(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(LoadError):
        Shards.open(tmp_path)


def test_a_folder_without_a_manifest_is_no_store(tmp_path):
    with pytest.raises(LoadError, match=r"manifest\.json, at .* found No such file"):
        Shards.open(tmp_path)


def test_a_store_of_another_format_names_both(tmp_path):
    written(tmp_path / "store").finish()
    path = tmp_path / "store" / MANIFEST
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(DriftlensError, match=r"format 1 at .* found format 2"):
        Shards.open(tmp_path / "store")


# What it was made from


def test_an_unfinished_store_is_refused_unless_asked_for(tmp_path):
    written(tmp_path / "store", 2)
    with pytest.raises(DriftlensError, match=r"left after 2 shards.*--resume"):
        Shards.open(tmp_path / "store")
    assert Shards.open(tmp_path / "store", unfinished=True).keys == ["000", "001"]


def test_a_store_made_from_something_else_names_every_difference(tmp_path):
    written(tmp_path / "store").finish()
    other = {"model": {"name": "tiny", "sha256": "b" * 64}, "sites": ["0.out"], "seed": 1}
    with pytest.raises(DriftlensError) as caught:
        Shards.open(tmp_path / "store", other)
    told = str(caught.value)
    assert "model.sha256 (aaaaaaaaaaaa… there, bbbbbbbbbbbb… here)" in told
    assert "sites.1 (1.mlp there, nothing here)" in told
    assert "length (8 there, nothing here)" in told
    assert "seed (nothing there, 1 here)" in told
    assert "name" not in told
    with pytest.raises(DriftlensError, match=r"model\.sha256"):
        ShardWriter(tmp_path / "store", other, resume=True)
    assert Shards.open(tmp_path / "store", ABOUT).about == ABOUT


def test_differences_tell_true_from_one_and_a_mapping_from_none():
    assert differences({"a": True}, {"a": 1}) == ["a (True there, 1 here)"]
    assert differences({"a": {"b": 1}}, {"a": None}) == ["a ({'b': 1} there, nothing here)"]
    assert differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}) == []


# What is not overwritten


def test_a_store_is_replaced_only_if_asked_for(tmp_path):
    written(tmp_path / "store").finish()
    before = contents(tmp_path / "store")
    with pytest.raises(DriftlensError, match="--overwrite"):
        ShardWriter(tmp_path / "store", ABOUT)
    assert contents(tmp_path / "store") == before
    written(tmp_path / "store", 2, overwrite=True).finish()
    assert sorted(contents(tmp_path / "store")) == ["000.safetensors", "001.safetensors", MANIFEST]


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_is_not_a_store_is_never_touched(tmp_path, overwrite):
    notes, model, mixed = (tmp_path / name for name in ("notes", "model", "mixed"))
    for folder in (notes, model):
        folder.mkdir()
    (notes / "notes.txt").write_text("mine")
    (model / "model.safetensors").write_bytes(b"weights")
    written(mixed).finish()
    (mixed / "sub").mkdir()
    before = contents(tmp_path)
    for folder in (notes, model, mixed):
        with pytest.raises(DriftlensError, match="a folder for shards alone"):
            ShardWriter(folder, ABOUT, overwrite=overwrite)
    with pytest.raises(DriftlensError, match="found the file"):
        ShardWriter(notes / "notes.txt", ABOUT, overwrite=overwrite)
    assert contents(tmp_path) == before


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(DriftlensError, match="an unfinished store to resume, found none"):
        ShardWriter(tmp_path / "store", ABOUT, resume=True)
    assert not (tmp_path / "store").exists()


# What ends a process


def test_a_store_that_was_taken_up_is_the_same_to_the_byte(tmp_path):
    written(tmp_path / "whole").finish()
    writer = written(tmp_path / "store", 2)
    (tmp_path / "store" / ".002.safetensors.0123abcd").write_bytes(b"half a shard")
    (tmp_path / "store" / "002.safetensors").write_bytes(b"not in the manifest")
    assert writer.done == {"000", "001"}
    taken = written(tmp_path / "store", 4, resume=True)
    assert not taken.finished
    taken.finish()
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_to_take_up_a_finished_store_changes_nothing(tmp_path):
    written(tmp_path / "store").finish()
    before = contents(tmp_path / "store")
    writer = written(tmp_path / "store", resume=True)
    assert writer.finished
    writer.finish()
    assert contents(tmp_path / "store") == before


@pytest.mark.parametrize("of", ["cut", "gone"])
def test_a_shard_whose_file_is_cut_or_gone_is_made_again(tmp_path, of):
    written(tmp_path / "store").finish()
    before = contents(tmp_path / "store")
    path = tmp_path / "store" / "001.safetensors"
    path.write_bytes(b"") if of == "cut" else path.unlink()
    writer = ShardWriter(tmp_path / "store", ABOUT, resume=True)
    assert writer.done == {"000", "002", "003"}
    assert not writer.finished
    with pytest.raises(DriftlensError, match="a finished store"):
        Shards.open(tmp_path / "store")
    written(tmp_path / "store", resume=True).finish()
    assert contents(tmp_path / "store") == before


WRITER = """
import sys
from pathlib import Path
from test_shards import written

print("ready", flush=True)
written(Path(sys.argv[1]), 400, resume=sys.argv[2] == "resume").finish()
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_loses_no_finished_shard(tmp_path):
    written(tmp_path / "whole", 400).finish()
    draw, store, before, killed = np.random.default_rng(0), tmp_path / "store", 0, 0
    while True:
        how = "resume" if (store / MANIFEST).exists() else "begin"
        process = Process(WRITER, store, how, known=["test_shards"])
        process.heard("ready\n")
        time.sleep(draw.uniform(0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        killed += process.left()[0] == -signal.SIGKILL
        if not (store / MANIFEST).exists():
            continue
        found = Shards.open(store, ABOUT, unfinished=True)
        found.verify()
        assert len(found.keys) >= before
        before = len(found.keys)
        orphans = {p.name for p in store.glob("*.safetensors")} - {
            f"{k}.safetensors" for k in found.keys
        }
        assert len(orphans) <= 1
        if before > 250 or killed > 30:
            break
    assert killed >= 3
    written(store, 400, resume=True).finish()
    assert contents(store) == contents(tmp_path / "whole")


# What the system refuses


@pytest.mark.parametrize(
    ("number", "told"),
    [(errno.ENOSPC, "room for .* MB left.*another disk"), (errno.EROFS, "Read-only.*permissions")],
)
def test_a_disk_that_takes_no_more_keeps_what_it_has(tmp_path, monkeypatch, number, told):
    writer = written(tmp_path / "store", 2)
    before = contents(tmp_path / "store")
    for name in ("write_bytes", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, refusing(number))
            with pytest.raises(DriftlensError, match=told):
                writer.put("002", shard(2))
        assert contents(tmp_path / "store") == before
        assert writer.done == {"000", "001"}
    written(tmp_path / "store", 4, resume=True).finish()
    written(tmp_path / "whole").finish()
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_a_disk_that_is_full_before_the_manifest_knows_the_shard_keeps_neither(
    tmp_path, monkeypatch
):
    writer = written(tmp_path / "store", 2)
    before, place = contents(tmp_path / "store"), Path.replace

    def replace(self: Path, target: Path) -> Path:
        return refusing(errno.ENOSPC)() if target.name == MANIFEST else place(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(DriftlensError, match="room for"):
            writer.put("002", shard(2))
    assert contents(tmp_path / "store") == before
    assert writer.done == {"000", "001"}


def test_a_folder_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", refusing(errno.EROFS))
    with pytest.raises(DriftlensError, match="can be written to"):
        ShardWriter(tmp_path / "a" / "b" / "store", ABOUT)
    assert not (tmp_path / "a").exists()


FILLER = """
import sys
from pathlib import Path
import torch
from driftlens.errors import DriftlensError
from driftlens.shards import ShardWriter

writer = ShardWriter(Path(sys.argv[1]), {})
try:
    for number in range(99):
        writer.put(f"{number:02}", {"a": torch.full((65536,), float(number))})
except DriftlensError as error:
    print(error)
"""
LISTED = (
    'mount -t tmpfs -o size=1m none "$1" || exit 77; "$0" "$2" "$1/store"; cp -r "$1/store" "$3"'
)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no way to a disk of its own")
def test_a_disk_that_is_really_full_keeps_whole_shards_alone(tmp_path):
    disk, script, kept = (tmp_path / name for name in ("disk", "fill.py", "kept"))
    disk.mkdir()
    script.write_text(FILLER)
    command = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        LISTED,
        sys.executable,
        *map(str, (disk, script, kept)),
    ]
    ran = subprocess.run(command, capture_output=True, text=True)
    if not kept.exists() and not ran.stdout:
        pytest.skip(f"no disk of its own may be mounted here: {ran.stderr.strip()}")
    assert "expected room for" in ran.stdout
    store = Shards.open(kept, {}, unfinished=True)
    store.verify()
    assert len(store.keys) == 3
    assert sorted(contents(kept)) == sorted([MANIFEST, *(f"{k}.safetensors" for k in store.keys)])
