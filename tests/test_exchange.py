"""Direction vectors in other programs' formats, against those programs and against bad files."""

import struct
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

import nets
from driftlens.errors import DriftlensError, LoadError
from driftlens.models.steering import Add, Steer, steered
from driftlens.steer import exchange
from driftlens.steer.exchange import (
    read_gguf,
    read_tensors,
    steering_vector,
    write_gguf,
    write_tensors,
)

WIDTH = 32


def drawn(*blocks, width=WIDTH, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return {block: rng.standard_normal(width).astype(dtype) for block in blocks}


def same(one, other):
    """Whether vectors are the same bits of the same kind, for the same blocks."""
    return list(one) == list(other) and all(
        one[n].dtype == other[n].dtype and one[n].tobytes() == other[n].tobytes() for n in one
    )


# Files in GGUF written by hand, right or wrong

TEXT, NUMBER, LIST = 8, 4, 9


def text(words):
    body = words if isinstance(words, bytes) else words.encode()
    return struct.pack("<Q", len(body)) + body


def pair(key, kind=TEXT, value=b""):
    return text(key) + struct.pack("<I", kind) + value


CONTROL = pair("general.architecture", TEXT, text("controlvector"))


def tensor(name="direction.1", width=4, kind=0, offset=0, axes=None):
    axes = [width] if axes is None else axes
    sizes = struct.pack(f"<I{len(axes)}Q", len(axes), *axes)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


ONE = (tensor(),)


def gguf(
    pairs=(CONTROL,),
    tensors=ONE,
    body=bytes(16),
    magic=b"GGUF",
    version=3,
    counts=None,
    alignment=32,
):
    counts = counts or (len(tensors), len(pairs))
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join([*pairs, *tensors])
    return head.ljust(-(-len(head) // alignment) * alignment, b"\0") + body


HUGE = 2**62
BAD_GGUF = {
    "beginning": gguf(magic=b"GGML"),
    "version 1": gguf(version=1),
    "version 50331648": gguf(version=3 << 24),
    "'nothing of the kind'": gguf(pairs=()),
    "'llama'": gguf(pairs=[pair("general.architecture", TEXT, text("llama"))]),
    "7": gguf(pairs=[CONTROL, pair(exchange.HINT, NUMBER, struct.pack("<I", 7))]),
    "type 13": gguf(pairs=[CONTROL, pair("x", 13)]),
    "one of type 9": gguf(pairs=[CONTROL, pair("x", LIST, struct.pack("<IQ", LIST, 1))]),
    "can't decode": gguf(pairs=[CONTROL, pair(b"\xff\xfe")]),
    "one of 4611686018427387904": gguf(pairs=[struct.pack("<Q", HUGE)]),
    "found 0": gguf(pairs=[CONTROL, *[pair("x", 0, b"\1")] * 3], counts=(1, HUGE), tensors=()),
    "found 128": gguf(tensors=[tensor(width=HUGE)], body=bytes(128)),
    "found 124": gguf(tensors=[tensor(width=32)], body=bytes(124)),
    "'weight.1'": gguf(tensors=[tensor("weight.1")]),
    "'direction.x'": gguf(tensors=[tensor("direction.x")]),
    "'direction.01'": gguf(tensors=[tensor("direction.01")]),
    "'layer.1'": gguf(tensors=[tensor("layer.1")]),
    "2 axes": gguf(tensors=[tensor(axes=[2, 2])]),
    "0 axes": gguf(tensors=[tensor(axes=[])]),
    "type 1.": gguf(tensors=[tensor(kind=1)]),
    "two of direction.1": gguf(tensors=[tensor(), tensor()], body=bytes(64)),
    "one at 4": gguf(tensors=[tensor(offset=4)], body=bytes(64)),
    "found none": gguf(tensors=()),
    "shape [0]": gguf(tensors=[tensor(width=0)]),
    "shape [8]": gguf(tensors=[tensor(), tensor("direction.2", 8, 0, 32)], body=bytes(64)),
    "NaN": gguf(body=b"\xff" * 16),
    "found 3": gguf(
        pairs=[CONTROL, pair("general.alignment", NUMBER, struct.pack("<I", 3))],
    ),
    "found 0. Give": gguf(
        pairs=[CONTROL, pair("general.alignment", NUMBER, struct.pack("<I", 2**31))],
    ),
}
"""What the error says was found."""


def lists(of, count, body=b""):
    pairs = [CONTROL, pair("x", LIST, struct.pack("<IQ", of, count) + body)]
    return gguf(pairs, tensors=(), body=b"")


BAD_GGUF |= {
    "at least": lists(10, HUGE),
    "8 bytes more": lists(TEXT, HUGE, text("a")),
    # Two thousand vectors on the same few bytes.
    "8192000 bytes of tensors": gguf(
        tensors=[tensor(f"direction.{n}", 1024) for n in range(1, 2001)], body=bytes(4096)
    ),
}


@pytest.mark.parametrize("found", BAD_GGUF)
def test_what_is_wrong_with_a_gguf_is_said(found, tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(BAD_GGUF[found])
    with pytest.raises(LoadError) as error:
        read_gguf(path)
    assert found in str(error.value)
    assert str(path) in str(error.value)


def test_files_that_are_not_there_are_missed(tmp_path):
    for read in (read_gguf, read_tensors):
        for path in (tmp_path / "none", tmp_path):
            with pytest.raises(LoadError, match="readable file"):
                read(path)


def written(tmp_path, write=write_gguf):
    path = tmp_path / "whole"
    write(drawn(1, 2, 7), path, "llama")
    return path.read_bytes()


FORMATS = {"gguf": (write_gguf, read_gguf), "safetensors": (write_tensors, read_tensors)}


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_cut_short_anywhere_is_refused(form, tmp_path):
    write, read = FORMATS[form]
    whole, path = written(tmp_path, write), tmp_path / "cut"
    for length in {*range(0, len(whole), 50), len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(LoadError):
            read(path)


def outcome(read, path):
    """What a reader makes of a file, and the most memory that it took."""
    tracemalloc.start()
    try:
        found = read(path)
    except DriftlensError as error:
        found = error
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return found, most


@pytest.mark.parametrize("form", FORMATS)
def test_no_bytes_are_too_wild_for_a_reader_nor_cost_more_memory_than_they_are(form, tmp_path):
    write, read = FORMATS[form]
    whole, path = written(tmp_path, write), tmp_path / "wild"
    head, rng, kinds = len(whole) - 3 * 4 * WIDTH, np.random.default_rng(0), set()
    outcome(read, path)
    for turn in range(600):
        wild = bytearray(whole)
        if turn % 6 == 0:
            wild = bytearray(rng.bytes(int(rng.integers(1, 400))))
        for place in rng.integers(0, head, 1 + turn % 4):
            wild[place % len(wild)] = rng.integers(256)
        if turn % 6 == 1:
            place = int(rng.integers(0, head - 8))
            wild[place : place + 8] = struct.pack("<Q", int(rng.integers(0, 2**63)))
        path.write_bytes(wild)
        found, most = outcome(read, path)
        kinds.add(type(found))
        assert most < 2**17
    assert kinds == {exchange.Exchanged, LoadError}


@pytest.mark.parametrize("found", BAD_GGUF)
def test_what_a_header_claims_is_not_allocated(found, tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(BAD_GGUF[found])
    assert outcome(read_gguf, path)[1] < 2**20


# Round trips


def test_a_control_vector_comes_back_bit_for_bit_in_ascending_order(tmp_path):
    vectors, path = drawn(7, 1, 30), tmp_path / "v.gguf"
    vectors[7][:2] = -0.0, np.finfo(np.float32).smallest_subnormal
    write_gguf(vectors, path, "qwen2 · 日本")
    found = read_gguf(path)
    assert same(found.vectors, {n: vectors[n] for n in (1, 7, 30)})
    assert found.model_type == "qwen2 · 日本"
    found.vectors[1][0] = 1


@pytest.mark.parametrize("width", [1, 7, 8, 9])
def test_any_width_is_padded_to_the_alignment(width, tmp_path):
    path = tmp_path / "v.gguf"
    write_gguf(drawn(1, 2, width=width), path, "gpt2")
    assert path.stat().st_size % exchange.ALIGNMENT == 0
    assert same(read_gguf(path).vectors, drawn(1, 2, width=width))


def test_the_order_of_bytes_in_memory_does_not_matter(tmp_path):
    swapped = {n: v.astype(">f4") for n, v in drawn(1, 2).items()}
    for write, read in FORMATS.values():
        write(swapped, tmp_path / "v", "gpt2")
        assert same(read(tmp_path / "v").vectors, drawn(1, 2))


def test_a_control_vector_is_rounded_to_float32_once(tmp_path):
    vectors = drawn(1, 3, dtype=np.float64)
    write_gguf(vectors, tmp_path / "v.gguf", "gpt2")
    found = read_gguf(tmp_path / "v.gguf").vectors
    assert same(found, {n: v.astype(np.float32) for n, v in vectors.items()})


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_safetensors_come_back_bit_for_bit_in_their_own_dtype(dtype, tmp_path):
    vectors, path = drawn(11, 0, 2, dtype=dtype), tmp_path / "v.safetensors"
    write_tensors(vectors, path, "llama")
    found = read_tensors(path)
    assert same(found.vectors, {n: vectors[n] for n in (0, 2, 11)})
    assert found.model_type == "llama"
    with safe_open(path, "np") as file:
        assert set(file.keys()) == {"layer.0", "layer.2", "layer.11"}
        assert "output of block N" in file.metadata()["content"]


@pytest.mark.parametrize("name", ["layer.{}", "direction.{}", "{}"])
def test_names_that_others_give_are_understood(name, tmp_path):
    path = tmp_path / "v.safetensors"
    save_file({name.format(n): vector for n, vector in drawn(0, 2, 10).items()}, path)
    assert same(read_tensors(path).vectors, drawn(0, 2, 10))
    assert read_tensors(path).model_type == ""


def test_narrow_floats_become_float32_exactly(tmp_path):
    for dtype in (torch.bfloat16, torch.float8_e4m3fn):
        vector = torch.arange(1.0, 9).to(dtype)
        save_torch({"3": vector}, tmp_path / "v.safetensors")
        found = read_tensors(tmp_path / "v.safetensors").vectors[3]
        assert found.dtype == np.float32
        assert found.tolist() == vector.float().tolist()


A, B = np.ones(4, np.float32), np.ones(5, np.float32)
BAD_TENSORS = {
    "'bias'": {"bias": A},
    "'model.layers.1'": {"model.layers.1": A},
    "'layer.-1'": {"layer.-1": A},
    "two of block 1": {"1": A, "layer.1": A},
    "int64": {"1": np.arange(4)},
    "shape [1, 4]": {"1": A[None]},
    "shape [5] for block 2": {"1": A, "2": B},
    "shape [0]": {"1": A[:0]},
    "shape []": {"1": A[0]},
    "NaN or infinity for block 2": {"1": A, "2": A * np.inf},
    "none": {},
}


@pytest.mark.parametrize("found", BAD_TENSORS)
def test_what_is_wrong_with_safetensors_is_said(found, tmp_path):
    path = tmp_path / "bad.safetensors"
    save_file({name: np.asarray(v) for name, v in BAD_TENSORS[found].items()}, path)
    with pytest.raises(LoadError) as error:
        read_tensors(path)
    assert f"found {found}" in str(error.value) or found in error.value.found
    assert str(path) in str(error.value)


BAD_VECTORS = {
    "none": {},
    "block -1": {-1: A},
    "shape [5] for block 2": {1: A, 2: B},
    "shape [1, 4]": {1: A[None]},
    "int64": {1: np.arange(4)},
    str(np.dtype(np.longdouble)): {1: A.astype(np.longdouble)},
    "NaN or infinity for block 1": {1: A * np.nan},
}
WRITERS = {
    "gguf": lambda vectors, path: write_gguf(vectors, path, "llama"),
    "safetensors": lambda vectors, path: write_tensors(vectors, path, "llama"),
    "object": lambda vectors, path: steering_vector(vectors),
}


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("found", BAD_VECTORS)
def test_what_is_no_set_of_directions_is_not_written(form, found, tmp_path):
    if form == "object":
        pytest.importorskip("steering_vectors", reason="steering-vectors is not installed")
    with pytest.raises(DriftlensError) as error:
        WRITERS[form](BAD_VECTORS[found], tmp_path / "v")
    assert found in error.value.found
    assert not (tmp_path / "v").exists()


def test_a_number_beyond_float32_is_not_written_as_infinity(tmp_path):
    with pytest.raises(DriftlensError, match="infinity for block 1"):
        write_gguf({1: np.array([1e300, 0])}, tmp_path / "v.gguf", "llama")


def test_block_0_has_no_place_in_a_control_vector(tmp_path):
    with pytest.raises(DriftlensError, match="write_tensors"):
        write_gguf(drawn(0, 1), tmp_path / "v.gguf", "llama")
    assert not list(tmp_path.iterdir())


def test_a_control_vector_of_block_0_is_read_where_another_program_wrote_it(tmp_path):
    path = tmp_path / "v.gguf"
    path.write_bytes(gguf(tensors=[tensor("direction.0")], body=struct.pack("<4f", 1, 2, 3, 4)))
    assert read_gguf(path).vectors[0].tolist() == [1, 2, 3, 4]


def test_metadata_of_others_are_skipped_and_their_alignment_kept(tmp_path):
    pairs = [
        pair("x", LIST, struct.pack("<IQ", TEXT, 2) + text("a") + text("bc")),
        pair("y", LIST, struct.pack("<IQ3H", 2, 3, 1, 2, 3)),
        pair("z", 12, struct.pack("<d", 0.5)),
        pair("general.alignment", NUMBER, struct.pack("<I", 64)),
    ]
    path = tmp_path / "v.gguf"
    body = struct.pack("<4f", 1, 2, 3, 4)
    path.write_bytes(gguf([CONTROL, *pairs], body=body, alignment=64))
    assert read_gguf(path) == ({1: pytest.approx([1, 2, 3, 4])}, "")


# Oracles


def by_gguf(vectors, path, model_type):
    """What the format's own package writes."""
    package = pytest.importorskip("gguf", reason="gguf, of the dev extra, is not installed")
    writer = package.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", model_type)
    writer.add_uint32("controlvector.layer_count", len(vectors))
    for block, vector in vectors.items():
        writer.add_tensor(f"direction.{block}", vector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("width", [5, 8, WIDTH])
def test_a_control_vector_is_byte_for_byte_what_the_formats_own_package_writes(width, tmp_path):
    vectors = drawn(1, 2, 15, width=width)
    by_gguf(vectors, tmp_path / "theirs", "llama")
    write_gguf(vectors, tmp_path / "ours", "llama")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert same(read_gguf(tmp_path / "theirs").vectors, vectors)


def test_the_formats_own_package_reads_what_we_write(tmp_path):
    package = pytest.importorskip("gguf", reason="gguf, of the dev extra, is not installed")
    vectors, path = drawn(1, 2, 15), tmp_path / "v.gguf"
    write_gguf(vectors, path, "llama")
    reader = package.GGUFReader(path)
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "llama"
    assert reader.get_field("controlvector.layer_count").contents() == 3
    found = {int(t.name.removeprefix("direction.")): np.array(t.data) for t in reader.tensors}
    assert same(found, vectors)


@pytest.fixture
def repeng(monkeypatch):
    pytest.importorskip("gguf", reason="gguf, of the dev extra, is not installed")
    # It names a type that numpy 2 no longer has, in annotations alone.
    monkeypatch.setattr(np, "float_", np.float64, raising=False)
    return pytest.importorskip("repeng", reason="repeng is not installed")


def test_repeng_reads_what_we_write_and_we_read_what_it_writes(repeng, tmp_path):
    vectors, path = drawn(1, 2, 15), tmp_path / "v.gguf"
    write_gguf(vectors, path, "mistral")
    theirs = repeng.ControlVector.import_gguf(path)
    assert theirs.model_type == "mistral"
    assert same({n: np.array(v) for n, v in theirs.directions.items()}, vectors)
    again = tmp_path / "again.gguf"
    repeng.ControlVector("mistral", vectors).export_gguf(again)
    assert again.read_bytes() == path.read_bytes()
    assert same(read_gguf(again).vectors, vectors)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_repeng_steers_the_blocks_that_we_steer_by_the_same_file(repeng, family, tmp_path):
    net, vectors, ids = nets.net(family), drawn(1, 2), torch.tensor([[5, 9, 200, 31, 77]])
    write_gguf(vectors, tmp_path / "v.gguf", family)
    found = read_gguf(tmp_path / "v.gguf").vectors
    steers = [Steer(Add(v, 2.0, norm=np.linalg.norm(v)), n) for n, v in found.items()]
    with torch.no_grad():
        plain = net(ids).logits
        with steered(net, steers):
            ours = net(ids).logits
        # It changes the net for good.
        theirs = repeng.ControlModel(net, [1, 2])
        theirs.set_control(repeng.ControlVector.import_gguf(tmp_path / "v.gguf"), 2.0)
        torch.testing.assert_close(theirs(ids).logits, ours, rtol=1e-5, atol=1e-5)
    assert float((ours - plain).abs().max()) > 1


def test_a_live_steering_vector_holds_the_vectors_by_block():
    package = pytest.importorskip("steering_vectors", reason="steering-vectors is not installed")
    vectors = drawn(4, 0)
    found = steering_vector(vectors, "mlp")
    assert isinstance(found, package.SteeringVector)
    assert found.layer_type == "mlp"
    held = {n: tensor.numpy() for n, tensor in found.layer_activations.items()}
    assert same(held, {n: vectors[n] for n in (0, 4)})


def test_who_lacks_steering_vectors_is_told_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "steering_vectors", None)
    with pytest.raises(DriftlensError, match="pip install --no-deps steering-vectors"):
        steering_vector(drawn(1))
