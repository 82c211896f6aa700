"""Whether a text keeps rules that code alone can check."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)")
"""What ends a sentence: points with a blank behind them, so that those of numbers do not."""

FENCE = re.compile(r"```\w*\n(.*)\n```", re.DOTALL)
"""What is set off as code, and nothing beside it."""

FORBIDS = frozenset({"excludes", "not_matches"})
"""Rules that no text at all keeps: it says nothing that it should not."""


def keeps(text: str, rule: str, setting: Any) -> bool:
    """Whether a text keeps a rule; no text at all keeps none but those that forbid.

    Letters large and small are one in `contains` and `excludes` and two elsewhere; blanks around
    the text do not count. Where there are several texts, one is enough to begin or to end with,
    all are to be contained or matched, and none of them may be that are excluded.

    Args:
        text: What was said.
        rule: One of `RULES`.
        setting: What sets the rule: a number, texts, regular expressions, or a truth.
    """
    said = text.strip()
    return bool(said or rule in FORBIDS) and RULES[rule](said, setting)


def words(text: str) -> int:
    """How many words a text has: runs without blanks, each with a letter or a digit.

    >>> words("Well – it is 3.5 o'clock.")
    5
    """
    return sum(any(map(str.isalnum, run)) for run in text.split())


def sentences(text: str) -> int:
    """How many sentences a text has, the last of them perhaps without an end.

    Points behind an abbreviation end a sentence here.

    >>> sentences("Version 2.5 is out! Is it? Yes")
    3
    """
    return sum(words(part) > 0 for part in END.split(text))


def is_json(text: str) -> bool:
    """Whether all of a text is one JSON object or array, set off as code or not.

    >>> is_json('{"a": [1]}'), is_json("7"), is_json('Here: {"a": 1}')
    (True, False, False)
    """
    fenced = FENCE.fullmatch(text.strip())
    try:
        found = json.loads(fenced[1] if fenced else text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict | list)


def _refuse(name: str) -> None:
    raise ValueError(name)


def _within(text: str, part: str) -> bool:
    return part.casefold() in text.casefold()


RULES: Mapping[str, Callable[[str, Any], bool]] = {
    "min_words": lambda text, count: words(text) >= count,
    "max_words": lambda text, count: 0 < words(text) <= count,
    "max_sentences": lambda text, count: 0 < sentences(text) <= count,
    "begins": lambda text, parts: any(map(text.startswith, parts)),
    "ends": lambda text, parts: any(map(text.endswith, parts)),
    "contains": lambda text, parts: all(_within(text, part) for part in parts),
    "excludes": lambda text, parts: not any(_within(text, part) for part in parts),
    "matches": lambda text, patterns: all(re.search(p, text) for p in patterns),
    "not_matches": lambda text, patterns: not any(re.search(p, text) for p in patterns),
    "json": lambda text, asked: is_json(text) == asked,
    "lowercase": lambda text, asked: text.islower() == asked,
    "uppercase": lambda text, asked: text.isupper() == asked,
}
"""By the name of each rule, whether a text keeps it."""
