"""Rows of a file: JSONL, Parquet or a published CSV, gzipped or not, and what is in their fields.

What the rows mean is not known here.
"""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from driftlens import ranks
from driftlens.errors import DriftlensError, LoadError

Row = tuple[str, dict[str, Any]]
"""Where a row stands, and its fields."""

PUBLISHED = ",statement,is_harmfull_opposition"
"""How the CSV of the statements begins that polarity-aware CCS was shown."""


def table(file: str | Path) -> list[Row]:
    """The rows of a JSONL, Parquet or published CSV file, each after the place where it stands.

    `-` is standard input. A field that is null in Parquet is left out of its row.

    Raises:
        LoadError: The file is missing or cannot be read.
        DriftlensError: It is not UTF-8, or a line of it is no JSON object.
    """
    file, raw = str(file), contents(file)
    return rows_of(file, raw, form_of(file, raw))


def named(file: str) -> str:
    """What is read from `file` goes by: the file's name without what tells its form."""
    return "stdin" if file == "-" else Path(file.removesuffix(".gz")).stem


def form_of(file: str, raw: bytes) -> str:
    """Whether a file holds `plain` text, `jsonl`, `parquet` or the `published` CSV."""
    suffix = Path(file.removesuffix(".gz")).suffix
    if suffix in (".csv", "") and raw.removeprefix(b"\xef\xbb\xbf").startswith(PUBLISHED.encode()):
        return "published"
    if suffix == ".parquet" or (file == "-" and raw[:4] == b"PAR1"):
        return "parquet"
    begins_so = file == "-" and raw.lstrip(b"\xef\xbb\xbf \t\r\n")[:2] in (b'{"', b"{ ")
    return "jsonl" if begins_so or suffix in (".jsonl", ".json", ".ndjson") else "plain"


def contents(file: str | Path) -> bytes:
    """The bytes of a file or of standard input, unzipped."""
    try:
        raw = _standard_input() if str(file) == "-" else Path(file).read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except IsADirectoryError:
        raise LoadError(
            f"a file at {file}",
            found="a folder",
            remedy="Give a file, or the folder of a pack with --pack.",
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise LoadError(
            f"a readable file at {file}",
            found=getattr(error, "strerror", None) or str(error),
            remedy="Check the path, or give - to read standard input.",
        ) from None


def _standard_input() -> bytes:
    """All of it, which only one of several processes can read."""
    return ranks.lead(lambda: sys.stdin.buffer.read().decode("latin-1")).encode("latin-1")


def decoded(name: str, raw: bytes) -> str:
    """The text that the bytes are in UTF-8."""
    if b"\0" in raw:
        raise DriftlensError(
            f"text in {name}",
            found=f"binary data (a zero byte at {raw.index(0)})",
            remedy="Give plain text, JSONL or Parquet.",
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DriftlensError(
            f"UTF-8 text in {name}",
            found=f"byte 0x{raw[error.start]:02x} on line {line}",
            remedy="Convert it first, for instance with iconv -t UTF-8.",
        ) from None


def rows_of(file: str, raw: bytes, form: str) -> list[Row]:
    """The rows that a file of some form holds."""
    if form == "parquet":
        return [*_parquet(file, raw)]
    text = decoded(file, raw)
    return [*(_published(file, text) if form == "published" else json_lines(file, text))]


def json_lines(name: str, text: str) -> Iterator[Row]:
    """The objects that stand on the lines of a text."""
    for number, line in enumerate(io.StringIO(text, newline="\n"), 1):
        if not line.strip():
            continue
        where = f"line {number} of {name}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            raise DriftlensError(
                f"JSON on {where}",
                found=f"{getattr(error, 'msg', error)}".removesuffix(" at") + column,
                remedy="Each line must be one JSON object.",
            ) from None
        if not isinstance(record, dict):
            raise DriftlensError(
                f"a JSON object on {where}",
                found=type(record).__name__,
                remedy='Write an object a line: {"text": "…"}, or prompt, chosen and rejected.',
            )
        yield where, record


def _parquet(file: str, raw: bytes) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        rows = parquet.ParquetFile(io.BytesIO(raw)).read().to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise LoadError(
            f"a Parquet file at {file}",
            found=str(error).splitlines()[0],
            remedy="Check the path and the format.",
        ) from None
    for number, row in enumerate(rows, 1):
        yield f"row {number} of {file}", {k: v for k, v in row.items() if v is not None}


def _published(file: str, text: str) -> Iterator[Row]:
    """Statements whose harmful half comes first, each half a list away from its opposite."""
    try:
        found = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise DriftlensError(
            f"CSV in {file}", found=str(error), remedy="Mend it, or give the statements as JSONL."
        ) from None
    half = len(found) // 2
    for number, row in enumerate(found):
        safe, label = number >= half, row.get("is_harmfull_opposition") or "no label"
        if label != str(int(safe)) or len(found) % 2:
            place = f"{label} on row {number + 1} of {len(found)}"
            raise DriftlensError(
                f"a first half of harmful statements (0), then their opposites (1), in {file}",
                found=f"{len(found)} statements" if len(found) % 2 else place,
                remedy="Restore its order, or give JSONL with `pair_id` and `polarity`.",
            )
        twin = {"pair_id": number % half, "polarity": int(safe), "statement": row["statement"]}
        yield f"row {number + 1} of {file}", twin


def string(where: str, record: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """A field that is a string; one that is absent or null is `default`, if there is one."""
    text = record.get(name)
    if text is None and default is not None:
        return default
    if not isinstance(text, str):
        if name in record:
            raise wrong(where, name, "a string", text)
        raise DriftlensError(
            f"a field `{name}` on {where}",
            found=f"fields {', '.join(map(repr, record)) or 'none'}",
            remedy="Rename the field that holds it.",
        )
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DriftlensError(
            f"`{name}` in valid Unicode on {where}",
            found="half a surrogate pair",
            remedy="Write such characters whole, or leave them out.",
        )
    return text


def wrong(where: str, name: str, wanted: str, found: object) -> DriftlensError:
    """What is to be said of a field that is not what it should be."""
    kind = {type(None): "null", dict: "an object", list: "a list", bool: "true or false"}
    return DriftlensError(
        f"`{name}` to be {wanted} on {where}",
        found=kind.get(type(found)) or f"{found!r}",
        remedy="Mend that line.",
    )


def number(where: str, record: Mapping[str, Any], name: str) -> float | None:
    """A field that is a finite number; None if it is absent or null."""
    found = record.get(name)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not isfinite(found):
        raise wrong(where, name, "a finite number", found)
    return float(found)


def share(where: str, record: Mapping[str, Any], name: str) -> float | None:
    """A field that is a number between 0 and 1; None if it is absent or null."""
    found = number(where, record, name)
    if found is not None and not 0 <= found <= 1:
        raise wrong(where, name, "a number between 0 and 1", found)
    return found
