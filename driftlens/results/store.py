"""A result on disk: its record as JSON, its table as Parquet; and how a folder is put in place."""

import json
import shutil
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from errno import ENOSPC
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from driftlens.errors import DriftlensError

from .result import Result

RECORD, TABLE = "record.json", "table.parquet"


def save(result: Result, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write `result` as a folder of its own, whole or not at all; return that folder."""
    with staged(folder, {RECORD, TABLE}, overwrite=overwrite) as draft:
        table = TABLE if result.columns() else None
        if table:
            write_columns(result, draft / table)
        write_json(result.to_json() | {"table": table}, draft / RECORD)
    return Path(folder)


def load(folder: str | Path) -> Result:
    """Read the result that `save` wrote to `folder`."""
    record = read_json(Path(folder) / RECORD)
    return rebuilt(record, Path(folder), RECORD)


def rebuilt(record: Mapping[str, Any], folder: Path, source: str) -> Result:
    """The result of a record whose table, if any, is named from `folder`."""
    with understood(folder / source, KeyError, TypeError, AttributeError):
        table = record["table"]
        return Result.rebuild(record, read_columns(folder / table) if table else {})


def write_json(record: Mapping[str, Any], path: Path) -> None:
    """Write a record as plain JSON, without NaN or infinity."""
    put(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())


def put(path: Path, content: bytes) -> None:
    """Write a file so that whoever looks finds the old one or the new one, whole."""
    draft = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    with understood(path, UnicodeDecodeError, json.JSONDecodeError):
        record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise _unreadable(path, f"a {type(record).__name__}")
    return record


def write_columns(result: Result, path: Path) -> None:
    """Write the columns of `result` as Parquet, each with its unit as metadata."""
    import pyarrow as pa
    from pyarrow import parquet

    arrays = [
        pa.array(rows, from_pandas=False, type=pa.string() if rows.dtype == object else None)
        for rows in result.columns().values()
    ]
    schema = pa.schema(
        [
            pa.field(name, array.type, metadata={"unit": unit})
            for (name, unit), array in zip(result.units().items(), arrays, strict=True)
        ],
        metadata={"kind": result.kind, "pack": result.pack},
    )
    parquet.write_table(pa.Table.from_arrays(arrays, schema=schema), path, compression="zstd")


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """[row] array by name of column, from a Parquet file."""
    from pyarrow import ArrowInvalid, parquet

    with understood(path, ArrowInvalid):
        table = parquet.ParquetFile(path).read()
    return {
        name: np.array([*rows.to_pylist(), None], dtype=object)[:-1]
        if str(rows.type) in {"string", "large_string"}
        else _numbers(rows)
        for name, rows in zip(table.column_names, table.columns, strict=True)
    }


def _numbers(rows: Any) -> np.ndarray:
    """[row] the numbers of a column as it holds them."""
    if rows.null_count or not rows.chunks or str(rows.type) == "bool":
        return rows.to_numpy()
    # `to_numpy` of pyarrow brings all of pandas, for which a glance at a report would have to wait.
    return np.concatenate([np.from_dlpack(chunk) for chunk in rows.chunks])


@contextmanager
def staged(folder: str | Path, names: Set[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill, which takes the place of `folder` at the end, or vanishes.

    Args:
        folder: Where it shall stand.
        names: What it will hold. A folder that holds anything else, but for names that begin
            with a dot, is somebody's and is never replaced.
        overwrite: Whether an earlier one of ours may be.
    """
    folder = Path(folder).resolve()
    with writable(folder):
        _refuse(folder, names, overwrite)
        new = [parent for parent in folder.parents if not parent.exists()]
        draft = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}")
        try:
            draft.mkdir(parents=True)
            yield draft
            _swap(draft, folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            for parent in new:
                with suppress(OSError):
                    parent.rmdir()
            raise


def _refuse(folder: Path, names: Set[str], overwrite: bool) -> None:
    """Raise if something stands at `folder` that may not be replaced."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DriftlensError(
            "a new folder to write to", found=f"the file {folder}", remedy="Name another folder."
        )
    held = sorted(path.name for path in folder.iterdir())
    strangers = [name for name in held if name not in names and not name.startswith(".")]
    if strangers:
        found = f"{folder}, which holds {', '.join(strangers[:3])}"
        raise DriftlensError(
            "a folder for results alone", found=found, remedy="Name another folder."
        )
    if held and not overwrite:
        raise DriftlensError(
            "a new folder to write to",
            found=f"{folder}, which holds {', '.join(held[:3])}",
            remedy="Say --overwrite to replace it (in Python, overwrite=True), or name another "
            "folder.",
        )


def _swap(draft: Path, folder: Path) -> None:
    """Put `draft` where `folder` is; what was there is gone only when it has succeeded."""
    if not folder.exists():
        draft.rename(folder)
        return
    old = folder.with_name(f"{draft.name}.old")
    folder.rename(old)
    try:
        draft.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Say what is missing when the system will not write."""
    try:
        yield
    except OSError as error:
        if error.errno == ENOSPC:
            raise DriftlensError(
                f"room for {folder}",
                found=_room(folder),
                remedy="Free some space, or name a folder on another disk.",
            ) from error
        raise DriftlensError(
            f"a folder that can be written to at {folder}",
            found=error.strerror or str(error),
            remedy="Name another folder, or change its permissions.",
        ) from error


def _room(folder: Path) -> str:
    """How much is left on the disk that `folder` would stand on."""
    home = next(parent for parent in folder.parents if parent.exists())
    return f"{shutil.disk_usage(home).free / 1e6:.1f} MB left on the disk"


@contextmanager
def understood(path: Path, *wrong: type[Exception]) -> Iterator[None]:
    """Say which file is missing or broken."""
    try:
        yield
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    except wrong as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error


def _unreadable(path: Path, found: str) -> DriftlensError:
    return DriftlensError(
        f"{path} as driftlens writes it", found=found, remedy="Write the report again."
    )
