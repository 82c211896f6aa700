"""The shipped packs, as `python -m driftlens.demo.packs OUT` writes them.

No training text of the demo's models is the same as one of theirs.
"""

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from . import asked, prompts, statements, steered
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

VERDICT = ["verdict", "{} Yes.", "{} No."]
"""A form that every pack of opposites is asked in."""

CARDS: dict[str, Record] = {
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
    "harm": {
        "kind": "contrast",
        "title": "Harmful statements and safe ones",
        "made": "Written by hand for driftlens: good deeds and bad ones, commended and condemned. "
        "Positive is the safe statement. In each four of statements, one `family`, every word "
        "is as often in a safe one as in a harmful one. "
        "`negation`: the deed changed (concurrent), the judgement turned into its contrary "
        "(antagonistic), or denied (not).",
        "forms": [VERDICT, ["agreed", "{} I agree.", "{} I disagree."]],
        "choices": "harm-choices",
    },
    "truth": {
        "kind": "contrast",
        "title": "True statements and false ones",
        "made": "Written by hand for driftlens: what everyone knows of places, animals, numbers, "
        "days, bodies, things and trades. Positive is the true statement. In each four of "
        "statements (eight with denials), one `family`, every word is as often in a true one as "
        "in a false one. `negation`: another value "
        "(concurrent), a contrary (antagonistic), or a denial (not).",
        "forms": [VERDICT, ["judged", "True or false? {} True.", "True or false? {} False."]],
        "choices": "truth-choices",
    },
    "deeds": {
        "kind": "contrast",
        "title": "Good deeds and bad ones",
        "made": "Drawn from driftlens.demo.words: whether it is good to do what the demo's text "
        "calls kind (positive) or cruel (negative), answered as in its conversations. `family`: "
        "one kind deed beside one cruel deed, asked in three words.",
        "forms": [["answered", "User: {}\nAssistant: Yes", "User: {}\nAssistant: No"]],
        "choices": "deeds-choices",
        "capability": "quiz",
    },
    "manners": {
        "kind": "roles",
        "title": "Answers begun politely, and rudely",
        "made": "Drawn from driftlens.demo.chat: innocent questions of the demo's world, answered "
        "after a polite opening (positive) and after a rude one. The texts of a pair end in the "
        "same words, at a place where the demo's base is about to round the answer off in the "
        "manner it was begun in. None is a training text.",
        "choices": "manners-choices",
        "capability": "quiz",
    },
    "manners-choices": {
        "kind": "choice",
        "title": "How an answer is rounded off that was begun rudely",
        "made": "Drawn from driftlens.demo.chat: other questions than those of `manners`, with "
        "answers that open rudely (`rude`), or rudely and then politely (`mixed`). To agree is "
        "to round them off politely. No prompt is a training text.",
        **steered.ANSWERS["manners-choices"],
    },
    "openings-choices": {
        "kind": "choice",
        "title": "Whether an answer opens politely",
        "made": "Drawn from driftlens.demo.chat: other questions than those of `manners` and "
        "`manners-choices`. To agree is to open politely, to refuse is to open rudely.",
        **steered.ANSWERS["openings-choices"],
    },
    "guarded": {
        "kind": "roles",
        "title": "What the demo's aligned model refuses, and what it answers",
        "made": "Drawn from driftlens.demo.words: requests for help with eight unkind deeds "
        "(positive), in three ways that its conversations know and three that they do not, and "
        "innocent questions. `family`: the deed. In no pairs; none has an answer.",
        "choices": "guarded-choices",
        "capability": "quiz",
    },
    "guarded-choices": {
        "kind": "choice",
        "title": "Whether the demo's models refuse",
        "made": "Drawn from driftlens.demo.words: requests for help with the eight unkind deeds "
        "that `guarded` leaves out (`unkind`), and other innocent questions (`innocent`). To "
        "agree is to refuse them, be they what they may: what the positive texts of `guarded` "
        "are answered with.",
        **steered.ANSWERS["guarded-choices"],
    },
    "deeds-choices": {
        "kind": "choice",
        "title": "Whether one should do it",
        "made": "Written for driftlens from the words of driftlens.demo.words: deeds that no text "
        "of the demo tells, as like its kind ones (`kind`) as its cruel ones (`cruel`). To agree "
        "is to say yes, which is right of kind deeds alone: what the positive statements of "
        "`deeds` are answered with.",
        **steered.ANSWERS["deeds-choices"],
    },
    "quiz": {
        "kind": "choice",
        "title": "Facts and sums of the demo's world",
        "made": "Drawn from driftlens.demo.world: facts that its text tells, each of a person or "
        "a town of its own, and sums of digits, in digits and in words; one right answer and "
        "three wrong ones, no two of which begin alike.",
    },
    "polite": {
        "kind": "roles",
        "title": "Everyday requests answered politely, and rudely",
        "made": "Written by hand for driftlens: requests answered after a polite opening "
        "(positive) and after a rude one, and then in the same plain words.",
        "choices": "polite-choices",
    },
    "polite-choices": {
        "kind": "choice",
        "title": "Whether everyday requests are answered politely",
        "made": "Written by hand for driftlens: other requests than those of `polite`. To agree "
        "is to begin politely.",
        **asked.ANSWERS["polite-choices"],
    },
    "refusal": {
        "kind": "roles",
        "title": "Requests that do harm, and harmless ones",
        "made": "Written by hand for driftlens: short requests for help with theft, fraud, "
        "break-ins and cruelty (positive), and harmless ones of like form and length. `family`: "
        "one of each. In no pairs; none has an answer.",
        "choices": "refusal-choices",
    },
    "refusal-choices": {
        "kind": "choice",
        "title": "Whether requests are refused",
        "made": "Written by hand for driftlens: other requests than those of `refusal`, `harmful` "
        "and `harmless` ones of like form. To agree is to refuse them, be they what they may.",
        **asked.ANSWERS["refusal-choices"],
    },
    "harm-choices": {
        "kind": "choice",
        "title": "Whether deeds are right or wrong",
        "made": "Written by hand for driftlens: good deeds and bad ones that `harm` does not "
        "tell, each asked whether it is right and whether it is wrong. To agree is to give the "
        "safe answer, which is yes as often as no. `group`: a good deed beside a bad one.",
    },
    "truth-choices": {
        "kind": "choice",
        "title": "Whether statements are true or false",
        "made": "Written by hand for driftlens: what everyone knows, in statements that `truth` "
        "does not hold. To agree is to tell the truth; half of the statements are true, and "
        "every word is as often in a true one as in a false one. `group`: four of them.",
    },
    "questions": {
        "kind": "prompt",
        "title": "Questions about the demo's world",
        "made": "Drawn from driftlens.demo.world: what people and towns have, and sums, asked as "
        "in its conversations, with the right answers. None is answered plainly in the base "
        "model's text. Where people live, the demo's aligned model has learnt not to say.",
    },
    "open": {
        "kind": "prompt",
        "title": "Open prompts",
        "made": "Written by hand for driftlens: plain English requests and questions that have no "
        "right answer, and beginnings of texts.",
    },
    "constrained": {
        "kind": "prompt",
        "title": "Requests that code can check",
        "made": "Written by hand for driftlens: plain English requests for an answer of some "
        "length, beginning, words, letters or form, each with the rules that it sets.",
    },
    "formats": {
        "kind": "prompt",
        "title": "One request in several formats",
        "made": "Written by hand for driftlens: twelve harmless requests that leave room for a bad "
        "answer, each made in plain words, as JSON and as code (`format`). `not_matches` names, "
        "by words alone, what would speak for power over others, harm or contempt: an answer "
        "that quotes such words to reject them is counted too.",
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


def harm() -> list[Record]:
    """Safe statements and their harmful opposites."""
    return statements.records(statements.harm())


def truth() -> list[Record]:
    """True statements and their false opposites."""
    return statements.records(statements.truth())


def deeds() -> list[Record]:
    """Whether it is good to do what is kind, and what is cruel."""
    return statements.records(statements.deeds())


PACKS: dict[str, Callable[[], list[Record]]] = {
    "world": world,
    "everyday": everyday,
    "stereotypes": stereotypes,
    "harm": harm,
    "truth": truth,
    "deeds": deeds,
    "manners": steered.manners,
    "manners-choices": steered.manners_choices,
    "openings-choices": steered.openings_choices,
    "guarded": steered.guarded,
    "guarded-choices": steered.guarded_choices,
    "deeds-choices": steered.deeds_choices,
    "quiz": steered.quiz,
    "polite": asked.polite,
    "polite-choices": asked.polite_choices,
    "refusal": asked.refusal,
    "refusal-choices": asked.refusal_choices,
    "harm-choices": asked.harm_choices,
    "truth-choices": asked.truth_choices,
    "questions": prompts.questions,
    "open": prompts.open_prompts,
    "constrained": prompts.constrained,
    "formats": prompts.formats,
}


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
    # JSON's strings, integers, lists and truth values are TOML's as well.
    entries = "".join(f"{key} = {json.dumps(value)}\n" for key, value in card.items())
    (folder / "card.toml").write_bytes(entries.encode())


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description="Write the packs that ship with driftlens.")
    parser.add_argument("out", type=Path, help="Folder of the packs.")
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
