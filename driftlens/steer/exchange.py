"""Direction vectors in other programs' formats: control vectors in GGUF, plain safetensors.

A vector belongs to a block, counted from 0, and is added to the stream that leaves it. What is
written is the vector as given, its length included; what other programs multiply it by is theirs
to say. No direction is found or applied here.
"""

import os
import re
import struct
from collections.abc import Callable, Mapping
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from driftlens.errors import DriftlensError, LoadError

if TYPE_CHECKING:
    from steering_vectors import SteeringVector

ARCHITECTURE = "controlvector"
"""What a GGUF of direction vectors says it is."""

HINT = f"{ARCHITECTURE}.model_hint"
COUNT = f"{ARCHITECTURE}.layer_count"

MAGIC = b"GGUF"
VERSIONS = (2, 3)
"""Versions that are read; of little-endian files they are alike. The last is written."""

ALIGNMENT = 32
"""Bytes; where tensors begin, unless a file says otherwise."""

SCALARS = dict(enumerate("BbHhIif?")) | dict(enumerate("Qqd", 10))
"""Types of a GGUF's metadata that are one number, by how `struct` writes them."""

UINT32, STRING, ARRAY = 4, 8, 9
FLOAT32 = 0
"""The type of a tensor."""

LONGEST = 2**20
"""Bytes of the longest text that is read from a GGUF."""

NUMBERED = re.compile(r"(?:layer\.|direction\.)?(0|[1-9][0-9]{0,5})")
"""Names that say which block a tensor belongs to."""


class Exchanged(NamedTuple):
    """What a file held."""

    vectors: dict[int, np.ndarray]
    """[width] by block, counted from 0, in ascending order."""

    model_type: str
    """The kind of model they were found in, such as "llama"; empty where the file does not say."""


# GGUF


def write_gguf(vectors: Mapping[int, np.ndarray], path: str | Path, model_type: str) -> None:
    """Write the control vector that repeng reads, and llama.cpp by ``--control-vector``.

    The vector of block N is the float32 tensor ``direction.N``. llama.cpp adds nothing behind
    block 0 and refuses a file that has ``direction.0``; repeng trains none for it.

    Args:
        vectors: [width] by block, counted from 0; rounded to float32.
        path: The file; one that is there is replaced.
        model_type: As the config of a `transformers` model has it.

    Raises:
        DriftlensError: There is a vector for block 0, or none at all; or they are not finite
            numbers of one width.
    """
    if 0 in vectors:
        raise DriftlensError(
            "vectors of blocks from 1 on, which are all that llama.cpp steers",
            found="one of block 0",
            remedy="Leave it out: {n: v for n, v in vectors.items() if n}; or use write_tensors.",
        )
    rows = {n: v.tobytes() for n, v in _checked(vectors, np.dtype("<f4")).items()}
    size = len(next(iter(rows.values())))
    stride = _aligned(size, ALIGNMENT)
    tensors = [
        _text(f"direction.{n}") + struct.pack("<IQIQ", 1, size // 4, FLOAT32, place * stride)
        for place, n in enumerate(rows)
    ]
    head = b"".join(
        [
            MAGIC,
            struct.pack("<IQQ", VERSIONS[-1], len(rows), 3),
            _text("general.architecture") + struct.pack("<I", STRING) + _text(ARCHITECTURE),
            _text(HINT) + struct.pack("<I", STRING) + _text(model_type),
            _text(COUNT) + struct.pack("<II", UINT32, len(rows)),
            *tensors,
        ]
    )
    # llama.cpp reads the padding of the last tensor too.
    body = b"".join(row.ljust(stride, b"\0") for row in rows.values())
    Path(path).write_bytes(head.ljust(_aligned(len(head), ALIGNMENT), b"\0") + body)


def read_gguf(path: str | Path) -> Exchanged:
    """Read a control vector as repeng, llama.cpp's generator and `write_gguf` write it.

    Nothing that the file says of its sizes is believed before the bytes are found to be there.
    ``controlvector.layer_count`` is not looked at: writers do not agree on what it counts.

    Raises:
        LoadError: It cannot be read, is not a control vector, is cut short, or has tensors that
            are not float32 [width] of one width, named ``direction.N`` once for each block.
    """
    try:
        with Path(path).open("rb") as file:
            return _read_gguf(_Source(file, path))
    except OSError as error:
        raise _unreadable(path, error) from None


def _read_gguf(source: "_Source") -> Exchanged:
    if source.left < 4 or source.take(4) != MAGIC:
        raise source.refusal("a GGUF, which begins so", "another beginning")
    version = source.number("I")
    if version not in VERSIONS:
        raise source.refusal("a little-endian GGUF of version 2 or 3", f"version {version}")
    tensors, pairs = source.number("Q"), source.number("Q")
    metadata = _metadata(source, pairs)
    places = _places(source, tensors)
    vectors = _vectors(source, places, _alignment(source, metadata))
    hint = metadata.get(HINT, "")
    if not isinstance(hint, str):
        raise source.refusal(f"{HINT} in words", repr(hint))
    return Exchanged(vectors, hint)


def _metadata(source: "_Source", pairs: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(pairs):
        key = source.text()
        found[key] = _value(source, source.number("I"))
        # At once, as a model may have far more to skip.
        if key == "general.architecture" and found[key] != ARCHITECTURE:
            break
    if found.get("general.architecture") != ARCHITECTURE:
        kind = found.get("general.architecture", "nothing of the kind")
        raise source.refusal(f"a control vector, of architecture {ARCHITECTURE!r}", f"{kind!r}")
    return found


def _value(source: "_Source", kind: int) -> Any:
    """A value of the metadata; None of an array, which is skipped."""
    if kind in SCALARS:
        return source.number(SCALARS[kind])
    if kind == STRING:
        return source.text()
    if kind != ARRAY:
        raise source.refusal("metadata of types 0 to 12", f"type {kind}")
    of, count = source.number("I"), source.number("Q")
    if of in SCALARS:
        source.skip(count * struct.calcsize("<" + SCALARS[of]))
    elif of == STRING:
        for _ in range(count):
            source.skip(source.number("Q"))
    else:
        raise source.refusal("arrays of numbers or of texts", f"one of type {of}")
    return None


def _places(source: "_Source", tensors: int) -> dict[int, tuple[int, int]]:
    """Width and offset of the vector of each block."""
    found: dict[int, tuple[int, int]] = {}
    for _ in range(tensors):
        name = source.text()
        axes = source.number("I")
        if not name.startswith("direction.") or not NUMBERED.fullmatch(name):
            raise source.refusal("tensors named direction.N", repr(name))
        if axes != 1:
            raise source.refusal(f"{name} of shape [width]", f"{axes} axes")
        width, kind, offset = source.number("Q"), source.number("I"), source.number("Q")
        if kind != FLOAT32:
            raise source.refusal(f"{name} in float32, type 0", f"type {kind}")
        block = int(name.removeprefix("direction."))
        if block in found:
            raise source.refusal("one vector for each block", f"two of {name}")
        found[block] = width, offset
    return found


def _alignment(source: "_Source", metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise source.refusal("an alignment that is a power of two", repr(alignment))
    return alignment


def _vectors(
    source: "_Source", places: Mapping[int, tuple[int, int]], alignment: int
) -> dict[int, np.ndarray]:
    start = _aligned(source.file.tell(), alignment)
    # Vectors that all lay on the same bytes could be many times as large as the file.
    needed = 4 * sum(width for width, _ in places.values())
    if needed > source.size - start:
        raise source.refusal(f"{needed} bytes of tensors", f"{max(source.size - start, 0)}")
    vectors = {}
    for block, (width, offset) in places.items():
        if offset % alignment:
            raise source.refusal(f"tensors every {alignment} bytes", f"one at {offset}")
        source.to(start + offset)
        vectors[block] = np.frombuffer(source.take(4 * width), "<f4")
    return _as_read(source.path, vectors)


class _Source:
    """A file that is read from its start on; it never gives more than it has."""

    def __init__(self, file: BinaryIO, path: str | Path) -> None:
        self.file, self.path = file, path
        self.size = os.fstat(file.fileno()).st_size
        """In bytes."""

    @property
    def left(self) -> int:
        return self.size - self.file.tell()

    def to(self, place: int) -> None:
        if place > self.size:
            raise self.refusal(f"at least {place} bytes", f"{self.size}")
        self.file.seek(place)

    def skip(self, count: int) -> None:
        self.to(self.file.tell() + count)

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise self.refusal(f"{count} bytes more", f"{self.left}")
        return self.file.read(count)

    def number(self, form: str) -> Any:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]

    def text(self) -> str:
        length = self.number("Q")
        if length > LONGEST:
            raise self.refusal(f"texts of at most {LONGEST} bytes", f"one of {length}")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise self.refusal("text in UTF-8", str(error)) from None

    def refusal(self, needed: str, found: str) -> LoadError:
        return LoadError(
            f"{needed}, in {self.path}",
            found=found,
            remedy="Give the control vector that write_gguf, repeng or llama.cpp wrote.",
        )


def _text(text: str) -> bytes:
    body = text.encode()
    return struct.pack("<Q", len(body)) + body


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


# safetensors


def write_tensors(vectors: Mapping[int, np.ndarray], path: str | Path, model_type: str) -> None:
    """Write plain safetensors: the vector of block N is ``layer.N`` [width], in its own dtype.

    The header's metadata say the `model_type`, and in words what is written.

    Args:
        vectors: [width] by block, counted from 0; float16, float32 or float64.
        path: The file; one that is there is replaced.
        model_type: As the config of a `transformers` model has it.

    Raises:
        DriftlensError: There is none, or they are not finite numbers of one width.
    """
    from safetensors.numpy import save

    tensors = {f"layer.{n}": vector for n, vector in _checked(vectors).items()}
    metadata = {
        "model_type": model_type,
        "content": "layer.N is to be added to the output of block N, counted from 0",
    }
    Path(path).write_bytes(save(tensors, metadata))


def read_tensors(path: str | Path) -> Exchanged:
    """Read safetensors whose tensors are named ``layer.N``, ``direction.N`` or plain ``N``.

    They come in their own dtype; bfloat16 and narrower ones, which numpy lacks, as float32.

    Raises:
        LoadError: It cannot be read, or has tensors of other names or kinds than floating point
            [width] of one width, once for each block.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata, names = file.metadata() or {}, file.keys()
            vectors = {name: _tensor(path, name, file.get_tensor(name)) for name in names}
    except OSError as error:
        raise _unreadable(path, error) from None
    except SafetensorError as error:
        raise _mistaken(path, "safetensors", str(error)) from None
    return Exchanged(_as_read(path, _by_block(path, vectors)), metadata.get("model_type", ""))


def _tensor(path: str | Path, name: str, tensor: Any) -> np.ndarray:
    import torch

    if not tensor.is_floating_point():
        raise _mistaken(path, f"{name} in floating point", f"{tensor.dtype}")
    kept = tensor.dtype in (torch.float16, torch.float32, torch.float64)
    return (tensor if kept else tensor.float()).numpy()


def _by_block(path: str | Path, named: Mapping[str, np.ndarray]) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}
    for name, vector in named.items():
        match = NUMBERED.fullmatch(name)
        if match is None:
            raise _mistaken(path, "tensors named layer.N, direction.N or N", repr(name))
        if int(match[1]) in found:
            raise _mistaken(path, "one vector for each block", f"two of block {match[1]}")
        found[int(match[1])] = vector
    return found


# By a file's ending

READERS = {".gguf": read_gguf, ".safetensors": read_tensors}
WRITERS = {".gguf": write_gguf, ".safetensors": write_tensors}
FIRST = {".gguf": 1, ".safetensors": 0}


def exchanged(path: str | Path) -> Exchanged:
    """What a file of others holds, by its ending.

    Raises:
        LoadError: It cannot be read.
        DriftlensError: It ends otherwise.
    """
    read: Exchanged = _by_ending(path, READERS)(path)
    return read


def writer_of(path: str | Path) -> Callable[[Mapping[int, np.ndarray], Path, str], None]:
    """What writes a file of others, by its ending: `write_gguf` or `write_tensors`.

    Raises:
        DriftlensError: It ends otherwise.
    """
    write: Callable[[Mapping[int, np.ndarray], Path, str], None] = _by_ending(path, WRITERS)
    return write


def first_of(path: str | Path) -> int:
    """The first block that a file of others has a place for, by its ending.

    Raises:
        DriftlensError: It ends otherwise.
    """
    first: int = _by_ending(path, FIRST)
    return first


def _by_ending(path: str | Path, known: Mapping[str, Any]) -> Any:
    if Path(path).suffix not in known:
        raise DriftlensError(
            f"a file that ends in {' or '.join(known)}",
            found=str(path),
            remedy="Name the format by the file's ending.",
        )
    return known[Path(path).suffix]


# Live objects


def steering_vector(
    vectors: Mapping[int, np.ndarray], layer_type: str = "decoder_block"
) -> "SteeringVector":
    """The live object of the steering-vectors package, whose `apply` adds them to a model.

    Args:
        vectors: [width] by block, counted from 0; they become float32 tensors on the CPU.
        layer_type: What of a block they are added to, in that package's words.

    Raises:
        DriftlensError: The package is not there; or vectors are none, or not finite numbers of
            one width.
    """
    import torch

    try:
        from steering_vectors import SteeringVector
    except ImportError as error:
        raise DriftlensError(
            "the package steering-vectors",
            found=str(error),
            # It asks for transformers below 5, but runs with those that driftlens needs.
            remedy="Type: pip install --no-deps steering-vectors",
        ) from None
    rows = _checked(vectors, np.dtype(np.float32))
    return SteeringVector({n: torch.from_numpy(row) for n, row in rows.items()}, layer_type)


# What formats share


def _checked(
    vectors: Mapping[int, np.ndarray], dtype: np.dtype | None = None
) -> dict[int, np.ndarray]:
    """[width] copies by block in ascending order, cast if asked to."""
    blocks = sorted(map(index, vectors))
    if not blocks or blocks[0] < 0:
        raise DriftlensError(
            "a vector for each of some blocks, counted from 0",
            found=f"block {blocks[0]}" if blocks else "none",
            remedy="Give {block: vector}.",
        )
    given = {n: np.array(vectors[n]) for n in blocks}
    # Numbers beyond float32 become infinite, which is what is looked for after.
    with np.errstate(over="ignore"):
        rows = {n: row.astype(dtype or row.dtype.newbyteorder("=")) for n, row in given.items()}
    wrong = _wrong(given) or _wrong(rows)
    if wrong:
        raise DriftlensError(
            "vectors [width] of finite floating-point numbers, all of one width",
            found=wrong,
            remedy="Give directions that were found in one model.",
        )
    return rows


def _as_read(path: str | Path, vectors: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """The same by ascending block, as arrays of the caller's own."""
    wrong = _wrong(vectors) if vectors else "none"
    if wrong:
        raise _mistaken(path, "vectors [width] of finite numbers, all of one width", wrong)
    return {n: np.array(vectors[n], vectors[n].dtype.newbyteorder("=")) for n in sorted(vectors)}


def _wrong(vectors: Mapping[int, np.ndarray]) -> str:
    """What is wrong with vectors, if anything is."""
    width = next(iter(vectors.values())).shape
    for block, vector in vectors.items():
        if vector.dtype.kind != "f" or vector.itemsize > 8:
            return f"{vector.dtype} for block {block}"
        if vector.ndim != 1 or not vector.size or vector.shape != width:
            return f"shape {list(vector.shape)} for block {block}"
        if not np.isfinite(vector).all():
            return f"NaN or infinity for block {block}"
    return ""


def _unreadable(path: str | Path, error: OSError) -> LoadError:
    return LoadError(
        f"a readable file at {path}",
        found=error.strerror or str(error),
        remedy="Check the path.",
    )


def _mistaken(path: str | Path, needed: str, found: str) -> LoadError:
    return LoadError(
        f"{needed}, in {path}",
        found=found,
        remedy="Give a file of direction vectors, one for each block.",
    )
