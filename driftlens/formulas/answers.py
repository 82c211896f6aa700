"""Whether a free answer is right, by what it says and by rules alone."""

import re
from collections.abc import Sequence
from typing import Literal, get_args

from .variety import words_of

Match = Literal["contains", "exact", "number"]
"""How an answer is held against right ones."""

MATCHES: tuple[Match, ...] = get_args(Match)

_NUMBER = re.compile(r"[-−]?\d+(?:,\d{3})*(?:\.\d+)?")


def first_line(text: str) -> str:
    """The first line that says something.

    Not its first sentence, which may be no more than a greeting; and not all of the text, for a
    model that was taught no end goes on with the next question.
    """
    return next((line for line in text.splitlines() if words_of(line)), "")


def says(answer: str, right: Sequence[str], match: Match = "contains") -> bool:
    """Whether the first line of an answer gives one of the right ones.

    Capitals and marks do not count. `contains`: a right answer stands in it, whole words in a
    row; by this an answer that names several, or denies one, is right too, and a long one has
    more chances. `exact`: it is one. `number`: the last number in all of the answer is one.

    Args:
        answer: What a model said.
        right: What would be right.
        match: How the two are compared.
    """
    if match == "number":
        given = _numbers(answer)[-1:]
        return any(given == _numbers(one)[-1:] for one in right if given)
    mine = words_of(first_line(answer))
    return any(_holds(mine, words_of(one), match) for one in right)


def _holds(mine: Sequence[str], right: Sequence[str], match: Match) -> bool:
    if not right:
        return False
    if match == "exact":
        return mine == right
    starts = range(len(mine) - len(right) + 1)
    return any(mine[at : at + len(right)] == right for at in starts)


def _numbers(text: str) -> list[float]:
    return [float(z.replace(",", "").replace("−", "-")) for z in _NUMBER.findall(text)]
