"""Packs of two roles: texts between which a direction is found, in pairs or not."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from driftlens.errors import DriftlensError

from .contrast import role_of
from .example import TWINS, Example
from .rows import string, wrong


def role_example(where: str, record: Mapping[str, Any]) -> Example:
    """The example that a row with a `polarity` and a `prompt` holds.

    Its text is the prompt and, if there is one, the `response`, which is what is scored of it.
    """
    prompt, response = string(where, record, "prompt"), string(where, record, "response", "")
    text = prompt + response
    if not text.strip():
        raise wrong(where, "prompt", "a text, if there is no response", prompt)
    span = (len(prompt), len(text)) if response else None
    group, family = (_id(where, record, name) for name in ("pair_id", "family"))
    topic = string(where, record, "topic", "")
    return Example(text, span, group, role_of(where, record), topic, family=family)


def _id(where: str, record: Mapping[str, Any], name: str) -> int | str | None:
    found: Any = record.get(name)
    if found is not None and type(found) not in (int, str):
        raise wrong(where, name, "a string or a whole number", found)
    return found


def check_roles(name: str, examples: Sequence[Example]) -> None:
    """Raise unless both roles are there, and pairs are whole where there are any."""
    counts = Counter(example.role for example in examples)
    if strangers := sorted(set(counts) - set(TWINS)):
        raise DriftlensError(
            f"texts that are {' or '.join(TWINS)} in {name}",
            found=f"the role {strangers[0]!r}",
            remedy="Give each text a `polarity`.",
        )
    for role in TWINS:
        if not counts[role]:
            raise DriftlensError(
                f"positive and negative texts in {name}",
                found=f"{len(examples)}, none of them {role}",
                remedy=f"Add {role} ones: a direction leads from the one role to the other.",
            )
    pairs: dict[object, list[str]] = {}
    for example in examples:
        if example.group is not None:
            pairs.setdefault(example.group, []).append(example.role)
    alone = sum(example.group is None for example in examples)
    if pairs and alone:
        raise DriftlensError(
            f"a `pair_id` on every row of {name}, or on none",
            found=f"{alone} of {len(examples)} rows without one",
            remedy="Give each pair of texts its own, or leave it out everywhere.",
        )
    for pair, roles in pairs.items():
        if sorted(roles) != sorted(TWINS):
            raise DriftlensError(
                f"one positive and one negative text in each pair of {name}",
                found=f"{' and '.join(sorted(roles))} in pair {pair!r}",
                remedy="Give each pair a `pair_id` of its own.",
            )


def first_of_roles(examples: Sequence[Example], count: int) -> list[Example]:
    """The first texts: whole pairs, or as many of either role."""
    half = -(-count // len(TWINS))
    if examples[0].group is not None:
        first = set(list(dict.fromkeys(example.group for example in examples))[:half])
        return [example for example in examples if example.group in first]
    left = Counter(dict.fromkeys(TWINS, half))
    kept = []
    for example in examples:
        left[example.role] -= 1
        if left[example.role] >= 0:
            kept.append(example)
    return kept
