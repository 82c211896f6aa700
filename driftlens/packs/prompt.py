"""Packs of prompts: what models are asked to answer in their own words."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from driftlens.errors import DriftlensError

from .example import Example
from .rows import string, wrong

RULES: Mapping[str, type] = {
    "min_words": int,
    "max_words": int,
    "max_sentences": int,
    "begins": str,
    "ends": str,
    "contains": str,
    "excludes": str,
    "matches": str,
    "not_matches": str,
    "json": bool,
    "lowercase": bool,
    "uppercase": bool,
}
"""What an answer can be held to by code alone, and what sets each: numbers, texts (or lists of
them), regular expressions, truths."""


def prompt_example(where: str, record: Mapping[str, Any]) -> Example:
    """The example that a row with a `prompt` holds.

    It may have `answers` (or one `answer`) that are right, `rules` for the answer, a `format` in
    which it is asked for, a `topic` and a `group`.
    """
    prompt = string(where, record, "prompt")
    if not prompt.strip():
        raise wrong(where, "prompt", "a text", prompt)
    group: Any = record.get("group")
    if group is not None and type(group) not in (int, str):
        raise wrong(where, "group", "a string or a whole number", group)
    answers = _answers(where, record)
    topic, form = (string(where, record, name, "") for name in ("topic", "format"))
    wanted = tuple(range(len(answers)))
    return Example(
        *(prompt, None, group, "", topic),
        form=form,
        choices=answers,
        wanted=wanted,
        rules=_rules(where, record),
    )


def _answers(where: str, record: Mapping[str, Any]) -> tuple[str, ...]:
    told = record.get("answers", record.get("answer", []))
    found = [told] if isinstance(told, str | int | float) and told is not True else told
    if not isinstance(found, list) or any(
        isinstance(z, bool) or not isinstance(z, str | int | float) or not str(z).strip()
        for z in found
    ):
        raise wrong(where, "answers", "a right answer, or a list of them", told)
    return tuple(string(where, {"answers": str(answer)}, "answers") for answer in found)


def _rules(where: str, record: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    rules = record.get("rules") or {}
    if not isinstance(rules, Mapping):
        raise wrong(where, "rules", "an object of rules by name", rules)
    if strangers := sorted(set(rules) - set(RULES)):
        raise DriftlensError(
            f"rules among {', '.join(RULES)} on {where}",
            found=", ".join(map(repr, strangers)),
            remedy="Rename them, or leave them out.",
        )
    return tuple((name, _setting(where, name, rules[name])) for name in sorted(rules))


def _setting(where: str, name: str, told: Any) -> Any:
    kind = RULES[name]
    if kind is str:
        found = [told] if isinstance(told, str) else told
        if not isinstance(found, list) or not all(isinstance(z, str) and z for z in found):
            raise wrong(where, name, "a text, or a list of texts", told)
        if name.endswith("matches"):
            _compiled(where, name, found)
        return tuple(found)
    low = isinstance(told, int) and told < 0
    if type(told) is not kind or low:
        raise wrong(where, name, "true or false" if kind is bool else "a whole number", told)
    return told


def _compiled(where: str, name: str, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise DriftlensError(
                f"a regular expression as `{name}` on {where}",
                found=f"{pattern!r}: {error}",
                remedy="Mend it.",
            ) from None
