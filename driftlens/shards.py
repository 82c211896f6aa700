"""Tensors in many files: a folder of safetensors shards, and a manifest of those that are whole.

What a shard holds, and what a store is made from, is settled by those who write it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor

from .errors import DriftlensError, LoadError
from .results.store import put, writable

MANIFEST = "manifest.json"

FORMAT = 1
"""Of what is written now."""

SHARD_BYTES = 2**26
"""What a shard should hold: files are few, and what a process that ends loses is little."""

AT_ONCE = 2**22
"""Bytes of a file that are hashed together."""

KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""What a shard may be called, for its file is called so too."""

DRAFT = re.compile(r"\..+\.[0-9a-f]{8}")
"""What a file is called while it is written."""

SUFFIXES = (".safetensors", ".parquet")
"""Of all files of a store but its manifest."""


class ShardWriter:
    """Fills a store, one shard at a time.

    A shard stands in the manifest only when its file is whole and in place, so that whatever ends
    the process, at any moment, costs the shard in hand and no other.

    Args:
        folder: Where the store shall stand.
        about: What it is made from, ready for JSON; a store made from anything else is never
            gone on with. The same `about` and shards make the same bytes, so no times in it.
        resume: Whether to go on with what an earlier writer left.
        overwrite: Whether a store that stands there may go; its files go at once.

    Raises:
        DriftlensError: The folder cannot be written to or holds something; there is nothing to go
            on with, or only what was made from something else.
    """

    def __init__(
        self,
        folder: str | Path,
        about: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.folder = Path(folder).resolve()
        self._record: dict[str, Any] = {
            "holds": "driftlens shards",
            "format": FORMAT,
            "about": json.loads(json.dumps(about, allow_nan=False)),
            "finished": False,
            "shards": {},
            "beside": {},
        }
        self._lines: dict[str, str] = {}
        with writable(self.folder):
            if resume:
                self._take_up()
            else:
                self._begin(overwrite)
            self._sweep()

    @staticmethod
    def try_out(folder: str | Path, *, resume: bool = False, overwrite: bool = False) -> None:
        """Raise what a writer there would raise, before anything is made; nothing is written."""
        folder = Path(folder).resolve()
        if resume:
            _refuse_none(folder)
        else:
            _refuse(folder, overwrite)

    @property
    def done(self) -> set[str]:
        """Keys of the shards that are whole."""
        return set(self._record["shards"])

    @property
    def finished(self) -> bool:
        """Whether nothing is missing."""
        return self._record["finished"]

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a shard, whole or not at all.

        Args:
            key: Its name, of letters, digits and `_.-`. Shards are kept in order of their names,
                so numbers want leading zeros.
            tensors: What it holds, of any dtype and on any device.

        Raises:
            DriftlensError: The disk is full or cannot be written to; the shards before it stay.
        """
        from safetensors.torch import save

        assert KEY.fullmatch(key), f"{key!r} would not do as the name of a file"
        assert key not in self.done, f"{key} is written already"
        # Cloned, for tensors of one file may not share what they stand on.
        content = save({name: z.detach().cpu().clone().contiguous() for name, z in tensors.items()})
        known = {
            "file": _file(key),
            "bytes": len(content),
            "sha256": sha256(content).hexdigest(),
            "tensors": {name: _shape(tensors[name]) for name in sorted(tensors)},
        }
        with writable(self.folder):
            put(self.folder / _file(key), content)
            self._record["finished"] = False
            self._add("shards", key, known)

    @contextmanager
    def beside(self, name: str) -> Iterator[Path]:
        """A file to fill that stands beside the shards when it is whole.

        Args:
            name: What it is to be called, such as `index.parquet`.

        Raises:
            DriftlensError: The disk is full or cannot be written to.
        """
        assert name.endswith(SUFFIXES), f"{name} would not be known as a file of the store"
        draft = self.folder / f".{name}.{uuid4().hex[:8]}"
        with writable(self.folder):
            try:
                yield draft
                known = {"bytes": draft.stat().st_size, "sha256": _hash(draft)}
                draft.replace(self.folder / name)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
            self._add("beside", name, known)

    def finish(self) -> "Shards":
        """Say that nothing is missing; the store, ready to be read."""
        self._record["finished"] = True
        with writable(self.folder):
            self._keep()
        return Shards(self.folder, self._record)

    def _add(self, among: str, key: str, known: Mapping[str, Any]) -> None:
        """Let the manifest know a file that is in place; if it cannot, the file goes again."""
        self._record[among][key] = known
        try:
            self._keep()
        except OSError:
            del self._record[among][key]
            self._lines.pop(key, None)
            (self.folder / known.get("file", key)).unlink(missing_ok=True)
            raise

    def _keep(self) -> None:
        shards = self._record["shards"]
        self._record["shards"] = {key: shards[key] for key in sorted(shards)}
        put(self.folder / MANIFEST, self._text().encode())

    def _text(self) -> str:
        """The manifest, a line for each shard."""
        for key in self._record["shards"]:
            # Written at every shard: what was told of the others is not told anew.
            if key not in self._lines:
                self._lines[key] = f"{json.dumps(key)}: {json.dumps(self._record['shards'][key])}"
        lines = ",\n".join(self._lines[key] for key in self._record["shards"])
        whole = (
            f"{json.dumps(name)}: {json.dumps(of)}"
            for name, of in self._record.items()
            if name != "shards"
        )
        return "{\n" + ",\n".join([*whole, f'"shards": {{\n{lines}\n}}']) + "\n}\n"

    def _begin(self, overwrite: bool) -> None:
        _refuse(self.folder, overwrite)
        made = [one for one in (self.folder, *self.folder.parents) if not one.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # The empty manifest goes before the old shards: at no time are they without one.
            self._keep()
        except BaseException:
            for one in made:
                with suppress(OSError):
                    one.rmdir()
            raise

    def _take_up(self) -> None:
        """Go on with what is there; a shard whose file is gone or cut short is made again."""
        _refuse_none(self.folder)
        kept = _manifest(self.folder)
        _refuse_another(self.folder, kept["about"], self._record["about"])
        for name in ("shards", "beside"):
            whole = {
                key: known
                for key, known in kept[name].items()
                if _size(self.folder / known.get("file", key)) == known["bytes"]
            }
            kept["finished"] &= whole == kept[name]
            kept[name] = whole
        self._record = kept
        self._keep()

    def _sweep(self) -> None:
        """Remove what no manifest knows: drafts, and files that were placed a moment too late."""
        known = {_file(key) for key in self._record["shards"]} | {*self._record["beside"]}
        for path in [*self.folder.iterdir()]:
            if path.name not in known and _is_ours(path) and path.name != MANIFEST:
                path.unlink()


class Shards:
    """A store that is read shard by shard, and of a shard only what is asked for.

    Args:
        folder: Where it stands.
        record: Its manifest.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        self.folder, self._record = folder, record

    @classmethod
    def open(
        cls, folder: str | Path, about: Mapping[str, Any] | None = None, *, unfinished: bool = False
    ) -> "Shards":
        """The store in a folder; no shard is read yet.

        Args:
            folder: Where it stands.
            about: What it must have been made from; None takes any.
            unfinished: Whether it may lack shards.

        Raises:
            LoadError: There is none, or its manifest is broken.
            DriftlensError: Another version wrote it, it is not finished, or it was made from
                something else; names all that differs.
        """
        folder = Path(folder).resolve()
        record = _manifest(folder)
        if about is not None:
            _refuse_another(folder, record["about"], json.loads(json.dumps(about)))
        if not (record["finished"] or unfinished):
            raise DriftlensError(
                f"a finished store at {folder}",
                found=f"one that was left after {len(record['shards'])} shards",
                remedy="Give the command that wrote it again, with --resume.",
            )
        return cls(folder, record)

    @property
    def about(self) -> dict[str, Any]:
        """What it was made from."""
        return self._record["about"]

    @property
    def keys(self) -> list[str]:
        """Its shards, in order of their names."""
        return [*self._record["shards"]]

    @property
    def beside(self) -> list[str]:
        """Files that stand beside its shards."""
        return [*self._record["beside"]]

    @property
    def bytes(self) -> int:
        """What its files take on the disk, but for the manifest."""
        return sum(known["bytes"] for _, known in self._files())

    def shapes(self, key: str) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor of a shard, as the manifest has it."""
        tensors = self._record["shards"][key]["tensors"]
        return {name: tuple(known["shape"]) for name, known in tensors.items()}

    def tensor(self, key: str, name: str) -> Tensor:
        """One tensor of a shard, on the CPU.

        Raises:
            LoadError: The shard is missing or broken; says which file.
        """
        with self._opened(key, name) as file:
            return file.get_tensor(name)

    def rows(self, key: str, name: str, some: slice) -> Tensor:
        """Some rows of a tensor of a shard; the others are not read.

        Raises:
            LoadError: The shard is missing or broken; says which file.
        """
        with self._opened(key, name) as file:
            return file.get_slice(name)[some]

    def verify(self) -> None:
        """Read all files of the store, and compare each with its hash.

        Raises:
            LoadError: A file is missing or is not what was written; names all such.
        """
        damaged = [
            f"{name} ({'missing' if size is None else 'changed'})"
            for name, known in self._files()
            if (size := _size(self.folder / name)) != known["bytes"]
            or _hash(self.folder / name) != known["sha256"]
        ]
        if damaged:
            raise self._damaged(", ".join(damaged))

    def _files(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for known in self._record["shards"].values():
            yield known["file"], known
        yield from self._record["beside"].items()

    @contextmanager
    def _opened(self, key: str, name: str) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        known = self._record["shards"][key]
        if name not in known["tensors"]:
            raise DriftlensError(
                f"a tensor of shard {key}: {', '.join(known['tensors'])}",
                found=repr(name),
                remedy="Name one of these.",
            )
        path = self.folder / known["file"]
        if (size := _size(path)) != known["bytes"]:
            found = "missing" if size is None else f"{size} bytes of {known['bytes']}"
            raise self._damaged(f"{path.name} ({found})")
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                yield file
        except (OSError, SafetensorError) as error:
            raise self._damaged(f"{path.name} ({error})") from None

    def _damaged(self, found: str) -> LoadError:
        return LoadError(
            f"the files of {self.folder} as they were written",
            found=found,
            remedy="Restore them, or delete them and give the command that wrote them again, with "
            "--resume: only what is missing is made again.",
        )


def differences(kept: Any, asked: Any, path: str = "") -> list[str]:
    """Where two records differ, each with both values: `model.sha256 (1f… there, 9c… here)`."""
    if isinstance(kept, list) and isinstance(asked, list):
        kept, asked = (dict(enumerate(one)) for one in (kept, asked))
    if isinstance(kept, dict) and isinstance(asked, dict):
        return [
            found
            for name in {**kept, **asked}
            for found in differences(
                kept.get(name), asked.get(name), f"{path}.{name}" if path else str(name)
            )
        ]
    if type(kept) is type(asked) and kept == asked:
        return []
    return [f"{path} ({_short(kept)} there, {_short(asked)} here)"]


def _short(what: Any) -> str:
    text = "nothing" if what is None else str(what)
    return text if len(text) <= 40 else f"{text[:12]}…"


def _refuse_another(folder: Path, kept: Any, asked: Any) -> None:
    if found := differences(kept, asked):
        raise DriftlensError(
            f"what the store at {folder} was made from",
            found="something else: " + ", ".join(found),
            remedy="Ask for the same as then, or write another store.",
        )


def _refuse_none(folder: Path) -> None:
    """Raise if there is nothing to go on with."""
    if not (folder / MANIFEST).exists():
        raise DriftlensError(
            "an unfinished store to resume",
            found=f"none at {folder}",
            remedy="Leave out --resume to begin one.",
        )


def _refuse(folder: Path, overwrite: bool) -> None:
    """Raise if something stands at `folder` that may not be replaced."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DriftlensError(
            "a new folder to write to", found=f"the file {folder}", remedy="Name another folder."
        )
    held = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if not held:
        return
    strangers = [name for name in held if not _is_ours(folder / name)]
    if strangers or not _is_store(folder):
        raise DriftlensError(
            "a folder for shards alone",
            found=f"{folder}, which holds {', '.join((strangers or held)[:3])}",
            remedy="Name another folder.",
        )
    if not overwrite:
        raise DriftlensError(
            "a new folder to write to",
            found=f"a store at {folder}",
            remedy="Say --resume to go on with it, --overwrite to replace it, or name another.",
        )


def _is_store(folder: Path) -> bool:
    try:
        return bool(_manifest(folder))
    except DriftlensError:
        return False


def _is_ours(path: Path) -> bool:
    """Whether a file is called as those of a store are."""
    if path.is_dir():
        return False
    if path.name.startswith("."):
        return bool(DRAFT.fullmatch(path.name))
    return path.name == MANIFEST or path.name.endswith(SUFFIXES)


def _manifest(folder: Path) -> dict[str, Any]:
    """What the manifest of a store says.

    Raises:
        LoadError: There is none, or it is broken.
        DriftlensError: Another version wrote it.
    """
    path = folder / MANIFEST
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(
            f"a store of shards, with {MANIFEST}, at {folder}",
            found=getattr(error, "strerror", None) or str(error),
            remedy="Give the folder of a store, or write it again.",
        ) from None
    if not isinstance(record, dict) or record.get("holds") != "driftlens shards":
        raise LoadError(
            f"a store of shards at {folder}",
            found=f"a {MANIFEST} of something else",
            remedy="Give the folder of a store.",
        )
    if record.get("format") != FORMAT:
        raise DriftlensError(
            f"a store of format {FORMAT} at {folder}",
            found=f"format {record.get('format')!r}",
            remedy="Install the version of driftlens that wrote it, or write it again.",
        )
    if not _is_sound(record):
        raise LoadError(
            f"{path} as driftlens writes it",
            found="another",
            remedy="Restore it, or write the store again.",
        )
    return record


def _is_sound(record: Mapping[str, Any]) -> bool:
    """Whether a manifest has what is read of it, and names no file outside of its folder."""
    shards, beside = record.get("shards"), record.get("beside")
    if not (isinstance(shards, dict) and isinstance(beside, dict) and "about" in record):
        return False
    return (
        isinstance(record.get("finished"), bool)
        and all(map(KEY.fullmatch, (*shards, *beside)))
        and all(
            isinstance(known, dict) and {"bytes", "sha256"} <= known.keys()
            for known in (*shards.values(), *beside.values())
        )
        and all(known.get("file") == _file(key) for key, known in shards.items())
        and all(isinstance(known.get("tensors"), dict) for known in shards.values())
    )


def _shape(tensor: Tensor) -> dict[str, Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": [*tensor.shape]}


def _file(key: str) -> str:
    return f"{key}.safetensors"


def _size(path: Path) -> int | None:
    """Bytes of a file; None if there is none."""
    return path.stat().st_size if path.is_file() else None


def _hash(path: Path) -> str:
    found = sha256()
    with path.open("rb") as file:
        while some := file.read(AT_ONCE):
            found.update(some)
    return found.hexdigest()
