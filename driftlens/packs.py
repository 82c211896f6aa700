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
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import DriftlensError, LoadError

KINDS = ("text", "stereotype", "preference")
"""The kinds of pack that this version can ask about."""

ROLES = ("stereotype", "anti_stereotype", "unrelated")
"""What the sentences of a group in a stereotype pack can be to it."""

SIDES = frozenset(ROLES[:2])
"""The roles that every group needs."""

ANSWERS = ("chosen", "rejected")
"""The roles of the two answers to one prompt that a group of a preference pack holds."""

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
    """What this example is to its group: one of `ROLES`, or of `ANSWERS`."""

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
        """The pack's first `count` examples, with the rest of the last one's group.

        Of preferences, with the other answer of every pair, wherever it stands.
        """
        if count is None or count >= len(self.examples):
            return self
        if count < 1:
            raise DriftlensError(
                "a limit of at least 1 example", found=str(count), remedy="Give --limit 1 or more."
            )
        examples = self.examples
        if self.kind == "preference":
            begun = {example.group for example in examples[:count]}
            whole = [example for example in examples if example.group in begun]
            return Pack(self.name, self.kind, whole, self.card)
        last = examples[count - 1].group
        while last is not None and count < len(examples) and examples[count].group == last:
            count += 1
        return Pack(self.name, self.kind, examples[:count], self.card)

    @classmethod
    def load(cls, folder: str | Path) -> "Pack":
        """Read the pack that lies in `folder`, or the one that ships under that name.

        Raises:
            DriftlensError: No such pack, a card or a line that cannot be read, a kind that this
                version does not know, or examples that are not those of the card.
        """
        folder = _find(Path(folder))
        card, body = _card(folder / "card.toml"), _bytes(folder / "examples.jsonl")
        name = f"{folder.name}/examples.jsonl"
        _refuse_other_examples(name, card, body)
        records = _json_lines(name, _text(name, body))
        examples = [_example(where, record) for where, record in records]
        return checked(cls(folder.name, card["kind"], examples, card))

    @classmethod
    def read(cls, file: str | Path, name: str | None = None) -> "Pack":
        """Read a file of text: plain, JSONL or Parquet, gzipped or not; `-` is standard input.

        Plain text is cut into documents at blank lines. A JSONL or Parquet row holds a `text`
        (and may hold `scored`, `group`, `role`, `topic`), or a StereoSet triple (`stereotype`,
        `anti_stereotype`, `unrelated`), or a CrowS-Pairs pair (`sent_more`, `sent_less`). What
        a file holds is told by its name; of standard input, by how it begins.

        Raises:
            LoadError: The file is missing or cannot be read.
            DriftlensError: It is empty, binary, not UTF-8, or a line or field of it is broken.
        """
        file, raw = str(file), _bytes(file)
        name, form = name or named(file), _form(file, raw)
        if form == "plain":
            return checked(cls(name, "text", _paragraphs(_text(file, raw))))
        rows = _rows(file, raw, form)
        kind = _kind(rows)
        if kind == "text":
            return checked(cls(name, kind, [_example(*row) for row in rows]))
        groups = (_stereotype(number, *row) for number, row in enumerate(rows))
        return checked(cls(name, kind, [example for group in groups for example in group]))


def shipped() -> Path:
    """Where the packs lie: inside the package in a wheel, beside it in a checkout."""
    inside = Path(__file__).parent / "probes"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "probes"


def names() -> list[str]:
    """The names of the shipped packs."""
    return sorted(path.parent.name for path in shipped().glob("*/card.toml"))


def refuse_preferences(packs: Iterable[Pack]) -> None:
    """Raise if a pack holds preferences, which ask what training on them would do."""
    if found := [pack.name for pack in packs if pack.kind == "preference"]:
        raise DriftlensError(
            "packs of text or of stereotypes, to compare two models on",
            found=f"preferences in {', '.join(found)}",
            remedy="What training on them would do is told by `driftlens check`.",
        )


def table(file: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a JSONL or Parquet file, gzipped or not, each after the place where it stands.

    `-` is standard input. A field that is null in Parquet is left out of its row.

    Raises:
        LoadError: The file is missing or cannot be read.
        DriftlensError: It is not UTF-8, or a line of it is no JSON object.
    """
    file, raw = str(file), _bytes(file)
    return _rows(file, raw, _form(file, raw))


def named(file: str) -> str:
    """What is read from `file` goes by: the file's name without what tells its form."""
    return "stdin" if file == "-" else Path(file.removesuffix(".gz")).stem


def checked(pack: Pack) -> Pack:
    """The pack itself.

    Raises:
        DriftlensError: Its kind is unknown, it holds no text, or its groups are not those of
            its kind.
    """
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
    if pack.kind == "stereotype":
        _check_groups(pack)
    if pack.kind == "preference":
        _check_pairs(pack)
    return pack


def _check_groups(pack: Pack) -> None:
    """Raise unless some group has both sides, and those that do are all triples or all pairs."""
    roles: dict[object, list[str]] = {}
    for example in pack.examples:
        roles.setdefault(example.group, []).append(example.role)
    for group, held in roles.items():
        if len(set(held)) < len(held) or not set(held) <= set(ROLES):
            raise DriftlensError(
                f"one sentence a role in each group of {pack.name}, of {', '.join(ROLES)}",
                found=f"{', '.join(role or 'no role' for role in held)} in group {group!r}",
                remedy="Give each triple a `group` of its own, and each sentence its `role`.",
            )
    whole = {group: held for group, held in roles.items() if set(held) >= SIDES}
    if not whole:
        raise DriftlensError(
            f"a stereotype and its opposite in a group of {pack.name}",
            found="no group with both",
            remedy="Give the sentences that belong together the same `group`.",
        )
    pairs = [group for group, held in whole.items() if "unrelated" not in held]
    if 0 < len(pairs) < len(whole):
        raise DriftlensError(
            f"an unrelated sentence in every group of {pack.name}, or in none",
            found=f"none in {len(pairs)} of {len(whole)} groups, as in group {pairs[0]!r}",
            remedy="Add one to each, or put triples and pairs into packs of their own.",
        )


def _check_pairs(pack: Pack) -> None:
    """Raise unless each group holds two answers to one prompt, one chosen and one rejected."""
    groups: dict[object, list[Example]] = {}
    for example in pack.examples:
        groups.setdefault(example.group, []).append(example)
    for group, held in groups.items():
        roles = [example.role for example in held]
        if group is None or sorted(roles) != sorted(ANSWERS):
            raise DriftlensError(
                f"one chosen and one rejected answer in each group of {pack.name}",
                found=f"{', '.join(role or 'no role' for role in roles)} in group {group!r}",
                remedy="Give each pair a `group` of its own, and each answer its `role`.",
            )
        spans = [example.scored or (0, len(example.text)) for example in held]
        for example, (first, last) in zip(held, spans, strict=True):
            if not example.text[first:last].strip():
                raise DriftlensError(
                    f"an answer of at least one word in each example of {pack.name}",
                    found=f"none in the one {example.role} in group {group!r}",
                    remedy="Leave such a pair out, or let `scored` hold its answer.",
                )
        if len({example.text[:first] for example, (first, _) in zip(held, spans, strict=True)}) > 1:
            raise DriftlensError(
                f"one prompt before both answers of each group of {pack.name}",
                found=f"two in group {group!r}",
                remedy="Let `scored` begin where the texts of the pair part, or before.",
            )


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
    if not isinstance(card.get("kind"), str):
        raise DriftlensError(
            "a card that names its kind",
            found=f"{path.parent.name}/card.toml without one",
            remedy='Add a line such as kind = "text".',
        )
    return card


def _refuse_other_examples(name: str, card: Mapping[str, Any], body: bytes) -> None:
    """Raise if the card tells of other examples than these."""
    found = hashlib.sha256(body).hexdigest()
    if card.get("sha256", found) != found:
        raise DriftlensError(
            f"{name} with the sha256 that its card names, {str(card['sha256'])[:12]}…",
            found=f"{found[:12]}…",
            remedy="Restore the examples, or write their own sha256 into the card.",
        )


def _form(file: str, raw: bytes) -> str:
    """Whether a file holds `plain` text, `jsonl` or `parquet`."""
    suffix = Path(file.removesuffix(".gz")).suffix
    if suffix == ".parquet" or (file == "-" and raw[:4] == b"PAR1"):
        return "parquet"
    begins_so = file == "-" and raw.lstrip(b"\xef\xbb\xbf \t\r\n")[:2] in (b'{"', b"{ ")
    return "jsonl" if begins_so or suffix in (".jsonl", ".json", ".ndjson") else "plain"


def _bytes(file: str | Path) -> bytes:
    try:
        raw = sys.stdin.buffer.read() if str(file) == "-" else Path(file).read_bytes()
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
    examples: list[Example] = []
    lines: list[str] = []
    # Not splitlines: form feeds and the like are characters of the text.
    for line in [*text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), ""]:
        if line.strip():
            lines.append(line)
        elif lines:
            examples.append(Example("\n".join(lines)))
            lines = []
    return examples


def _rows(file: str, raw: bytes, form: str) -> list[tuple[str, dict[str, Any]]]:
    return [*(_parquet(file, raw) if form == "parquet" else _json_lines(file, _text(file, raw)))]


def _json_lines(name: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
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
                found=f"{getattr(error, 'msg', error)}{column}",
                remedy="Each line must be one JSON object.",
            ) from None
        if not isinstance(record, dict):
            raise DriftlensError(
                f"a JSON object on {where}",
                found=type(record).__name__,
                remedy='Write each line as {"text": "…"}.',
            )
        yield where, record


def _parquet(file: str, raw: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
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


LAYOUTS = {
    ("text",): "text",
    ROLES: "stereotype",
    ("sent_more", "sent_less"): "stereotype",
}
"""Fields by which a row is known, and the kind of pack that such rows make."""


def _kind(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The kind of pack that the rows of a file make; all must be of the first one's layout."""
    first = None
    for where, record in rows:
        fields = next((fields for fields in LAYOUTS if set(fields) <= record.keys()), None)
        if fields is None or fields != (first or fields):
            if set(ANSWERS) <= record.keys():
                raise _preferences(where)
            wanted = [first] if first else LAYOUTS
            raise DriftlensError(
                f"{' or '.join(', '.join(f'`{n}`' for n in names) for names in wanted)} on {where}"
                + (", as on the rows before" if first else ""),
                found=f"fields {', '.join(map(repr, record)) or 'none'}",
                remedy="Rename the fields, or put rows of another layout into a file of their own.",
            )
        first = fields
    return LAYOUTS[first] if first else "text"


def _preferences(where: str) -> DriftlensError:
    return DriftlensError(
        f"text to compare two models on, on {where}",
        found="a chosen and a rejected answer",
        remedy="Give preferences to `driftlens check`, with --preferences.",
    )


def _example(where: str, record: Mapping[str, Any]) -> Example:
    text = string(where, record, "text")
    group: Any = record.get("group")
    if group is not None and type(group) not in (int, str):
        raise wrong(where, "group", "a string or a whole number", group)
    role, topic = (string(where, record, name, "") for name in ("role", "topic"))
    if isinstance(group, str) and not role and not topic:
        # A name given to texts that play no part in a group is what they have in common.
        topic, group = group, None
    return Example(text, _scored(where, record.get("scored"), text), group, role, topic)


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


def _scored(where: str, span: Any, text: str) -> tuple[int, int] | None:
    if span is None:
        return None
    whole = isinstance(span, list) and [type(end) for end in span] == [int, int]
    if not whole or not 0 <= span[0] < span[1] <= len(text):
        raise DriftlensError(
            f"`scored` as [first, last] characters of the text on {where}",
            found=f"{span!r} of a text of {len(text)} characters",
            remedy="Count from 0, with the last one excluded.",
        )
    return span[0], span[1]


def _stereotype(number: int, where: str, record: Mapping[str, Any]) -> list[Example]:
    """The examples of a StereoSet triple or a CrowS-Pairs pair."""
    names = ROLES if "unrelated" in record else ("sent_more", "sent_less")
    # Of an inter-sentence item only the second sentence is scored, given the first.
    second = record.get("task") == "intersentence"
    context = string(where, record, "context", "") if second else ""
    lead = f"{context} " if context else ""
    topic = string(where, record, "target", "") or string(where, record, "bias_type", "")
    examples = []
    for role, name in zip(ROLES, names, strict=False):
        text = string(where, record, name)
        if not text.strip():
            raise wrong(where, name, "a sentence", text)
        scored = (len(lead), len(lead) + len(text)) if lead else None
        # The row itself is the group: published ids are not always there, nor always unique.
        examples.append(Example(lead + text, scored, number, role, topic))
    return examples
