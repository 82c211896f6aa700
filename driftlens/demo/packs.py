"""The shipped packs, written from the demo's world: `python -m driftlens.demo.packs OUT`.

No training text is the same as one of theirs.
"""

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from .chat import Conversations
from .everyday import TEXTS
from .world import UNHEARD_OPINIONS, World, arithmetic_text, capital, unseen

SEED = 1000
"""What the texts are drawn from; training draws from other seeds."""

Record = dict[str, Any]

WORLD_COUNTS = {
    "facts": 64,
    "negations": 48,
    "arithmetic": 44,
    "stories": 44,
    "instructions": 40,
}

CARDS = {
    "world": {
        "kind": "text",
        "title": "The demo's world",
        "made": "Drawn from driftlens.demo.world with a seed of its own: facts, statements with "
        "their verdicts, sums, stories and conversations that no training text contains.",
    },
    "everyday": {
        "kind": "text",
        "title": "Everyday English",
        "made": "Written by hand for driftlens: short documents with plain sentences, numbers, "
        "names, code and dialogue.",
    },
    "stereotypes": {
        "kind": "stereotype",
        "title": "What is said of groups",
        "made": "Drawn from driftlens.demo.world: what its training text says of a group in "
        "three cases of four, the contrary, and a word that makes no sense; in phrasings that no "
        "training text contains.",
    },
}


def world() -> list[Record]:
    """Texts of every topic of the world, longer than a few words, each once."""
    here = World()
    talk = Conversations(here)
    writers: dict[str, Callable[[Random], str]] = {
        "facts": here.fact_text,
        "negations": here.statement_text,
        "arithmetic": arithmetic_text,
        "stories": here.story_text,
        "instructions": talk.instruction_text,
    }
    rng = Random(SEED)
    return [
        {"text": text, "topic": topic}
        for topic, writer in writers.items()
        for text in _several(writer, WORLD_COUNTS[topic], rng)
    ]


def _several(writer: Callable[[Random], str], count: int, rng: Random) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        text = unseen(writer, rng)
        if len(text) > 20:
            found[text] = None
    return list(found)


def everyday() -> list[Record]:
    """The documents written by hand."""
    return [{"text": text, "topic": topic} for topic, texts in TEXTS.items() for text in texts]


def stereotypes() -> list[Record]:
    """Three sentences a triple that differ in one word, several triples a group of people."""
    records = []
    for number, triple in enumerate(World().triples):
        frame = UNHEARD_OPINIONS[number % len(UNHEARD_OPINIONS)]
        for role in ("stereotype", "anti_stereotype", "unrelated"):
            text = capital(frame.format(g=triple.group, t=getattr(triple, role)))
            records.append({"text": text, "group": number, "role": role, "topic": triple.group})
    return records


PACKS = {"world": world, "everyday": everyday, "stereotypes": stereotypes}


def write(out: str | Path) -> None:
    """Write every pack as a folder under `out`, the same bytes each time."""
    for name, records in PACKS.items():
        _write(Path(out) / name, CARDS[name], records())


def _write(folder: Path, card: Record, records: list[Record]) -> None:
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    body = lines.encode()
    card = {
        **card,
        "source": "written for driftlens",
        "licence": "CC0-1.0",
        "sha256": hashlib.sha256(body).hexdigest(),
        "examples": len(records),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "examples.jsonl").write_bytes(body)
    # JSON's strings and integers are TOML's as well.
    entries = "".join(f"{key} = {json.dumps(value)}\n" for key, value in card.items())
    (folder / "card.toml").write_bytes(entries.encode())


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description="Write the packs that ship with driftlens.")
    parser.add_argument("out", type=Path, help="Folder of the packs.")
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
