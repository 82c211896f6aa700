"""Packs of choices: how a text may go on, and which of the ways are wanted."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from string import ascii_uppercase
from typing import Any

from driftlens.errors import DriftlensError

from .example import Example
from .rows import string, wrong

CAA = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
"""Fields of the questions by which contrastive activation addition was shown."""

PIECE = re.compile(r"\s*(?:\w+|[^\w\s])")
"""A word or a mark, with the blank before it."""

SIDES = (("agree", "refuse"), ("right", "wrong"))
"""Fields of the answers that are wanted, and of those that are not."""


def choice_example(where: str, record: Mapping[str, Any], card: Mapping[str, Any]) -> Example:
    """The item that a row holds.

    It is a `prompt` with the answers that `agree` and that `refuse` (or those that are `right`
    and `wrong`), each one or several, by the row or by the card for all rows; or a `question`
    with `choices` and the number or the label of the `answer`, which is asked for by its
    letter; or a question with `answer_matching_behavior` and `answer_not_matching_behavior`.
    """
    topic = next((string(where, record, n) for n in ("topic", "behavior") if n in record), "")
    asks = "agree"
    if set(CAA) <= record.keys():
        prompt, choices, wanted = _of_caa(where, record)
    elif {"question", "choices", "answer"} <= record.keys():
        asks = "right"
        prompt, choices, wanted = _lettered(where, record)
    else:
        asks, prompt, choices, wanted = _of_sides(where, record, card)
    if not prompt.strip():
        raise wrong(where, "prompt", "a text", prompt)
    group: Any = record.get("group")
    if group is not None and type(group) not in (int, str):
        raise wrong(where, "group", "a string or a whole number", group)
    if len(set(choices)) < len(choices) or not all(choice.strip() for choice in choices):
        raise DriftlensError(
            f"answers that differ, each of at least one word, on {where}",
            found=", ".join(map(repr, choices)),
            remedy="Mend that line.",
        )
    told = Example(prompt, None, None, "", topic, family=group)
    return replace(told, choices=choices, wanted=wanted, asks=asks)


def _of_sides(
    where: str, record: Mapping[str, Any], card: Mapping[str, Any]
) -> tuple[str, str, tuple[str, ...], tuple[int, ...]]:
    told = {**{name: card[name] for two in SIDES for name in two if name in card}, **record}
    # A row that has both of its own goes before what the card says of all rows.
    names = next((two for here in (record, told) for two in SIDES if set(two) <= here.keys()), None)
    if names is None:
        raise DriftlensError(
            f"`agree` and `refuse`, or `right` and `wrong`, on {where}",
            found=f"fields {', '.join(map(repr, record)) or 'none'}",
            remedy="Say which answers are wanted and which are not.",
        )
    one, other = (_strings(where, name, told[name]) for name in names)
    return names[0], string(where, record, "prompt"), (*one, *other), tuple(range(len(one)))


def _strings(where: str, name: str, told: Any) -> tuple[str, ...]:
    found = [told] if isinstance(told, str) else told
    if not isinstance(found, list) or not found or not all(isinstance(z, str) for z in found):
        raise wrong(where, name, "an answer, or a list of answers", told)
    return tuple(string(where, {name: answer}, name) for answer in found)


def _lettered(
    where: str, record: Mapping[str, Any]
) -> tuple[str, tuple[str, ...], tuple[int, ...]]:
    choices, answer = _strings(where, "choices", record["choices"]), record["answer"]
    labels = record.get("labels", list(ascii_uppercase[: len(choices)]))
    whole = isinstance(labels, list) and len(labels) == len(choices) <= len(ascii_uppercase)
    number = answer if type(answer) is int else None
    if whole and isinstance(answer, str) and answer in labels:
        number = labels.index(answer)
    if not whole or number is None or not 0 <= number < len(choices):
        raise wrong(where, "answer", "the number of a choice, from 0, or its label", answer)
    letters = ascii_uppercase[: len(choices)]
    listed = "\n".join(f"{z}. {choice}" for z, choice in zip(letters, choices, strict=True))
    prompt = f"{string(where, record, 'question')}\n{listed}\nAnswer:"
    return prompt, tuple(f" {z}" for z in letters), (number,)


def _of_caa(where: str, record: Mapping[str, Any]) -> tuple[str, tuple[str, ...], tuple[int, ...]]:
    question, one, other = (string(where, record, name) for name in CAA)
    answers = [f" {answer.strip()}" for answer in (one, other)]
    # What both begin with belongs to the question: the letter is what is answered. Whole words
    # alone, each with the blank before it, for tokens seldom end within a word, or in a blank.
    pairs = zip(*(PIECE.findall(answer)[:-1] for answer in answers), strict=False)
    lead = "".join(a for a, _ in takewhile(lambda two: two[0] == two[1], pairs))
    return f"{question}\n\nAnswer:{lead}", tuple(z[len(lead) :] for z in answers), (0,)


def check_choices(name: str, examples: Sequence[Example]) -> None:
    """Raise unless each item has an answer that is wanted and one that is not."""
    for number, example in enumerate(examples):
        count = len(example.choices)
        if not 0 < len(set(example.wanted)) < count or not all(
            0 <= choice < count for choice in example.wanted
        ):
            raise DriftlensError(
                f"an answer that is wanted and one that is not in each item of {name}",
                found=f"{len(example.wanted)} wanted of {count} in item {number}",
                remedy="Give each item `choices`, and say which of them are `wanted`.",
            )
