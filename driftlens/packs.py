"""Packs: what is shown to the two models, as plain text. No model, no tokenizer.

A pack is a folder with a `card.toml` (kind, source, licence, how made, sha256) and an
`examples.jsonl`. A file of the caller's own text is a pack too: see `Pack.read`.
"""

import gzip
import hashlib
import io
import json
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import DriftlensError, LoadError

KINDS = ("text", "stereotype")
"""The kinds of pack that this version can ask about."""

STANDARD = ("world", "everyday", "stereotypes")
"""The shipped packs that a report takes when none is named."""


@dataclass(frozen=True)
class Example:
    """One text, and which of its characters count."""

    text: str

    scored: tuple[int, int] | None = None
    """First and last-plus-one character whose likelihood counts; None is all of them."""

    group: int | str | None = None
    """Examples of one group belong together (the three of a triple) and are resampled as one."""

    role: str = ""
    """What this example is to its group: "stereotype", "anti_stereotype", "unrelated"."""

    topic: str = ""
    """A label by which results are broken down."""


@dataclass(frozen=True)
class Pack:
    """A named set of examples of one kind."""

    name: str
    kind: str
    examples: Sequence[Example]
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Hash of what is asked, the same whatever file it came from."""
        digest = hashlib.sha256(self.kind.encode())
        for example in self.examples:
            record = [example.text, example.scored, example.group, example.role, example.topic]
            digest.update(json.dumps(record).encode())
        return digest.hexdigest()

    @property
    def clusters(self) -> list[int]:
        """[example] number of the group that each example is resampled with."""
        numbers: dict[object, int] = {}
        keys = (("alone", i) if e.group is None else e.group for i, e in enumerate(self.examples))
        return [numbers.setdefault(key, len(numbers)) for key in keys]

    def limit(self, count: int | None) -> "Pack":
        """The pack's first `count` examples, with the rest of the last one's group."""
        if count is None or count >= len(self.examples):
            return self
        if count < 1:
            raise DriftlensError(
                "a limit of at least 1 example", found=str(count), remedy="Give --limit 1 or more."
            )
        last = self.examples[count - 1].group
        while last is not None and count < len(self.examples) and self.examples[count].group == last:
            count += 1
        return Pack(self.name, self.kind, self.examples[:count], self.card)

    @classmethod
    def load(cls, folder: str | Path) -> "Pack":
        """Read the pack that lies in `folder`, or the one that ships under that name.

        Raises:
            DriftlensError: No such pack, a card or a line that cannot be read, or a kind that
                this version does not know.
        """
        folder = _find(Path(folder))
        card = _card(folder / "card.toml")
        name = f"{folder.name}/examples.jsonl"
        records = _json_lines(name, _text(name, (folder / "examples.jsonl").read_bytes()))
        examples = [_example(name, line, record) for line, record in records]
        return _checked(cls(folder.name, card["kind"], examples, card))

    @classmethod
    def read(cls, file: str | Path, name: str | None = None) -> "Pack":
        """Read a file of text: plain, JSONL or Parquet, gzipped or not; `-` is standard input.

        Plain text is cut into documents at blank lines. A JSONL or Parquet row holds a `text`
        (and may hold `scored`, `group`, `role`, `topic`), or a StereoSet triple (`stereotype`,
        `anti_stereotype`, `unrelated`), or a CrowS-Pairs pair (`sent_more`, `sent_less`).

        Raises:
            LoadError: The file is missing or cannot be read.
            DriftlensError: It is empty, binary, not UTF-8, or a line or field of it is broken.
        """
        path = Path(file)
        name = name or ("stdin" if str(file) == "-" else path.name.split(".")[0])
        suffixes = [s for s in path.suffixes if s != ".gz"]
        if suffixes[-1:] == [".parquet"]:
            records = _parquet(path)
        else:
            text = _text(str(file), _bytes(file))
            if suffixes[-1:] not in ([".jsonl"], [".json"], [".ndjson"]):
                return _checked(cls(name, "text", _paragraphs(text)))
            records = _json_lines(str(file), text)
        kind, examples = "text", []
        for line, record in records:
            triple = _stereotype(line, record)
            kind = "stereotype" if triple else kind
            examples += triple or [_example(str(file), line, record)]
        return _checked(cls(name, kind, examples))


def shipped() -> Path:
    """Where the packs lie: inside the package in a wheel, beside it in a checkout."""
    inside = Path(__file__).parent / "probes"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "probes"


def names() -> list[str]:
    """The names of the shipped packs."""
    return sorted(path.parent.name for path in shipped().glob("*/card.toml"))


def _checked(pack: Pack) -> Pack:
    if pack.kind not in KINDS:
        raise DriftlensError(
            f"a pack of kind {' or '.join(KINDS)}",
            found=f"{pack.name} of kind {pack.kind!r}",
            remedy="See `driftlens packs` for those that this version can ask.",
        )
    if not any(example.text.strip() for example in pack.examples):
        raise DriftlensError(
            "text to show to the models",
            found=f"{pack.name} without any",
            remedy="Give a file with at least one line of text.",
        )
    return pack


def _find(folder: Path) -> Path:
    for place in (folder, shipped() / folder):
        if (place / "card.toml").is_file() and (place / "examples.jsonl").is_file():
            return place
    raise DriftlensError(
        f"a pack named {folder}, or a folder with card.toml and examples.jsonl",
        found="neither",
        remedy=f"Give a folder that holds one, or one of: {', '.join(names())}.",
    )


def _card(path: Path) -> dict[str, Any]:
    try:
        card = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DriftlensError(
            "a card in TOML", found=f"{path.name} of {path.parent.name}: {error}", remedy="Mend it."
        ) from None
    if "kind" not in card:
        raise DriftlensError(
            "a card that names its kind",
            found=f"{path.parent.name}/card.toml without one",
            remedy='Add a line such as kind = "text".',
        )
    return card


def _bytes(file: str | Path) -> bytes:
    try:
        raw = sys.stdin.buffer.read() if str(file) == "-" else Path(file).read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError) as error:
        raise LoadError(
            f"a readable file at {file}",
            found=getattr(error, "strerror", None) or str(error),
            remedy="Check the path, or give - to read standard input.",
        ) from None


def _text(name: str, raw: bytes) -> str:
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


def _paragraphs(text: str) -> list[Example]:
    examples, lines = [], []
    for line in [*text.splitlines(), ""]:
        if line.strip():
            lines.append(line)
        elif lines:
            examples.append(Example("\n".join(lines)))
            lines = []
    return examples


def _json_lines(name: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(io.StringIO(text, newline="\n"), 1):
        if not line.strip():
            continue
        where = f"line {number} of {name}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DriftlensError(
                f"JSON on {where}",
                found=f"{error.msg} at column {error.colno}",
                remedy="Each line must be one JSON object.",
            ) from None
        if not isinstance(record, dict):
            raise DriftlensError(
                f"a JSON object on {where}",
                found=type(record).__name__,
                remedy='Write each line as {"text": "…"}.',
            )
        yield where, record


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise LoadError(
            f"a Parquet file at {path}",
            found=str(error).splitlines()[0],
            remedy="Check the path and the format.",
        ) from None
    for number, row in enumerate(rows):
        yield f"row {number} of {path}", {k: v for k, v in row.items() if v is not None}


def _example(name: str, where: str, record: dict[str, Any]) -> Example:
    text = record.get("text")
    if not isinstance(text, str):
        raise DriftlensError(
            f"a field `text` with a string on {where}",
            found=f"fields {', '.join(record) or 'none'}" if text is None else type(text).__name__,
            remedy="Rename the field that holds the text, or give the file as plain text.",
        )
    return Example(
        text,
        _scored(where, record.get("scored"), text),
        record.get("group"),
        str(record.get("role", "")),
        str(record.get("topic", "")),
    )


def _scored(where: str, span: Any, text: str) -> tuple[int, int] | None:
    if span is None:
        return None
    try:
        first, last = (int(end) for end in span)
    except (TypeError, ValueError):
        first, last = -1, -1
    if not 0 <= first < last <= len(text):
        raise DriftlensError(
            f"`scored` as [first, last] characters of the text on {where}",
            found=f"{span!r} of a text of {len(text)} characters",
            remedy="Count from 0, with the last one excluded.",
        )
    return first, last


def _stereotype(where: str, record: dict[str, Any]) -> list[Example]:
    """The examples of a StereoSet or CrowS-Pairs row, or none if it is neither."""
    if {"stereotype", "anti_stereotype", "unrelated"} <= record.keys():
        roles = ("stereotype", "anti_stereotype", "unrelated")
        fields: Sequence[str] = roles
    elif {"sent_more", "sent_less"} <= record.keys():
        roles, fields = ("stereotype", "anti_stereotype"), ("sent_more", "sent_less")
    else:
        return []
    # Of an inter-sentence item only the second sentence is scored, given the first.
    context = record.get("context", "") if record.get("task") == "intersentence" else ""
    lead = f"{context} " if context else ""
    topic = str(record.get("target") or record.get("bias_type") or "")
    group = str(record.get("id", where))
    return [
        Example(
            lead + record[name],
            (len(lead), len(lead) + len(record[name])) if lead else None,
            group,
            role,
            topic,
        )
        for role, name in zip(roles, fields, strict=True)
    ]
