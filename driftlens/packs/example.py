"""One text and what is known of it, as rows of texts and of stereotypes tell."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from driftlens.errors import DriftlensError

from .rows import number, share, string, wrong

ROLES = ("stereotype", "anti_stereotype", "unrelated")
"""What the sentences of a group in a stereotype pack can be to it."""

SIDES = frozenset(ROLES[:2])
"""The roles that every group needs."""

ANSWERS = ("chosen", "rejected")
"""The roles of the two answers to one prompt that a group of a preference pack holds."""

TWINS = ("positive", "negative")
"""The roles of a statement (true, safe) and its opposite in a group of a contrast pack."""

REPLIES = ("yes", "no")
"""What each statement of a contrast pack is answered with."""


@dataclass(frozen=True)
class Example:
    """One text, and which of its characters count."""

    text: str

    scored: tuple[int, int] | None = None
    """First and last-plus-one character whose likelihood counts; None is all of them."""

    group: int | str | None = None
    """Examples of one group belong together (the three of a triple) and are resampled as one."""

    role: str = ""
    """What this example is to its group: one of `ROLES`, of `ANSWERS`, or of `TWINS`."""

    topic: str = ""
    """A label by which results are broken down."""

    answer: str = ""
    """What a statement is answered with in a contrast pack: one of `REPLIES`."""

    form: str = ""
    """How it is answered there: the name of a `Form`, or `MARKER`."""

    family: int | str | None = None
    """Groups of one family share what they are made of: they are resampled as one, and never
    parted where some are learnt from and others judged."""

    choices: tuple[str, ...] = ()
    """In a pack of choices, how the text may go on; in one of prompts, the answers that are right,
    if any are known."""

    wanted: tuple[int, ...] = ()
    """Numbers of the choices that agree, or are right; the others refuse, or are wrong."""

    asks: str = ""
    """In a pack of choices, whether the wanted ones `agree` or are `right`: behaviour, or
    capability."""

    rules: tuple[tuple[str, Any], ...] = ()
    """In a pack of prompts, what an answer must satisfy, as name and setting: see `RULES`."""

    reward: float | None = None
    """In a pack of preferences, what the answer was rated with."""

    preferred_by: float | None = None
    """In a pack of preferences, the share of raters that prefer the chosen answer of the pair."""


def example_of(where: str, record: Mapping[str, Any]) -> Example:
    """The example that a row with a `text` holds."""
    text = string(where, record, "text")
    group: Any = record.get("group")
    if group is not None and type(group) not in (int, str):
        raise wrong(where, "group", "a string or a whole number", group)
    role, topic = (string(where, record, name, "") for name in ("role", "topic"))
    if isinstance(group, str) and not role and not topic:
        # A name given to texts that play no part in a group is what they have in common.
        topic, group = group, None
    return Example(
        *(text, _scored(where, record.get("scored"), text), group, role, topic),
        reward=number(where, record, "reward"),
        preferred_by=share(where, record, "preferred_by"),
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


def stereotypes_of(number: int, where: str, record: Mapping[str, Any]) -> list[Example]:
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
