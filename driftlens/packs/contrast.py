"""Contrast packs: a statement and its opposite, each answered with yes and with no."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from driftlens.errors import DriftlensError

from .example import REPLIES, TWINS, Example
from .rows import Row, string, wrong

FEWEST = 10
"""Pairs below which nothing is said of a pack."""

MARKER = "marker"
"""The control form: the first form, with each explicit negation replaced by `MARK`."""

MARK = "ttt"
"""A word without meaning, which stands where a negation stood."""

POLARITIES = {"positive": True, "negative": False, 1: True, 0: False}
"""What `polarity` may be; of JSON's and Parquet's true and false, true is positive."""


class Form(NamedTuple):
    """A way of answering statements with yes and with no."""

    name: str

    yes: str
    """The statement, as `{}`, with the answer that it is so."""

    no: str


VERDICT = Form("verdict", "{} Yes.", "{} No.")
"""How statements are answered where no card says otherwise, as in the published code."""


class Statement(NamedTuple):
    """One row."""

    where: str
    pair: int | str
    role: str
    text: str
    negation: str | None
    family: int | str | None


# Negations

# Apostrophes are typed in three ways.
NEGATION = re.compile(r"\b(?:not|(\w+)n['\u2019\u02bc]t)\b", re.IGNORECASE)
STEMS = {"ca": "can", "wo": "will", "sha": "shall", "ai": "is"}
"""What is left of words that change before *n't*, and what they stand for."""


def negated(text: str) -> bool:
    """Whether a text holds the word *not*, or one that ends in *n't*.

    >>> negated("Another knot."), negated("It isn't so.")
    (False, True)
    """
    return NEGATION.search(text) is not None


def marked(text: str) -> str:
    """The text with its explicit negations replaced by a word without meaning.

    >>> marked("Another cat can't swim and does not want to.")
    'Another cat can ttt swim and does ttt want to.'
    """
    return NEGATION.sub(_mark, text)


def _mark(found: re.Match[str]) -> str:
    stem = found[1]
    if stem is None:
        return MARK
    whole = STEMS.get(stem.lower(), stem)
    return f"{whole.capitalize() if stem[0].isupper() else whole} {MARK}"


# From rows to examples


def contrasts(name: str, rows: Sequence[Row], card: Mapping[str, Any]) -> list[Example]:
    """Each pair's examples after those of the pair before: by form, twin and answer.

    Args:
        name: What the pack is called in an error.
        rows: Each with `pair_id`, `polarity`, `statement` (or `text`) and perhaps `negation`.
        card: Perhaps with `forms`, each a name and two templates, and `lower`: whether a
            statement's first letter is lowered where a template does not begin with it.

    Raises:
        DriftlensError: A field or a form is broken, a statement has no opposite or two, or they
            are the same.
    """
    forms, lower = forms_of(name, card), _lowers(name, card)
    pairs = _pairs(name, [_statement(*row) for row in rows])
    return [example for pair in pairs for example in _asked(pair, forms, lower)]


def forms_of(name: str, card: Mapping[str, Any]) -> list[Form]:
    """The forms that a card tells, the main one first.

    Raises:
        DriftlensError: They are not as `Form` has them.
    """
    told = card.get("forms", [list(VERDICT)])
    whole = isinstance(told, list) and told and all(map(_is_form, told))
    names = [form[0] for form in told] if whole else []
    if not whole or MARKER in names or len(set(names)) < len(names):
        raise DriftlensError(
            f"`forms` of {name} as [[name, yes, no], …], each of its own name, not {MARKER!r}, "
            "with two templates that differ and hold one {} each",
            found=f"{told!r}",
            remedy=f"Write them into the card as in forms = [{list(VERDICT)}].".replace("'", '"'),
        )
    return [Form(*form) for form in told]


def _is_form(told: Any) -> bool:
    if not isinstance(told, list) or [type(part) for part in told] != [str] * 3:
        return False
    name, yes, no = told
    return bool(name) and yes != no and yes.count("{}") == no.count("{}") == 1


def _lowers(name: str, card: Mapping[str, Any]) -> bool:
    lower = card.get("lower", False)
    if not isinstance(lower, bool):
        raise DriftlensError(
            f"`lower` of {name} to be true or false", found=f"{lower!r}", remedy="Mend its card."
        )
    return lower


def role_of(where: str, record: Mapping[str, Any]) -> str:
    """Which of `TWINS` a row's `polarity` names."""
    polarity: Any = record.get("polarity")
    if type(polarity) not in (str, bool, int) or polarity not in POLARITIES:
        raise wrong(where, "polarity", "positive or negative, true or false, 1 or 0", polarity)
    return TWINS[0] if POLARITIES[polarity] else TWINS[1]


def _statement(where: str, record: Mapping[str, Any]) -> Statement:
    pair: Any = record.get("pair_id")
    if type(pair) not in (int, str):
        raise wrong(where, "pair_id", "a string or a whole number", pair)
    role = role_of(where, record)
    field = "statement" if "statement" in record else "text"
    text = string(where, record, field)
    if not text.strip():
        raise wrong(where, field, "a statement", text)
    family: Any = record.get("family")
    if family is not None and type(family) not in (int, str):
        raise wrong(where, "family", "a string or a whole number", family)
    negation = string(where, record, "negation", "") or None
    return Statement(where, pair, role, text, negation, family)


def _pairs(name: str, statements: Sequence[Statement]) -> Iterator[list[Statement]]:
    """The two statements of each pair, the positive one first."""
    found: dict[int | str, dict[str, Statement]] = {}
    for one in statements:
        before = found.setdefault(one.pair, {}).setdefault(one.role, one)
        if before is not one:
            raise DriftlensError(
                f"one {one.role} statement in pair {one.pair!r}",
                found=f"one on {before.where} and one on {one.where}",
                remedy="Give each pair a `pair_id` of its own.",
            )
    kinds = sorted({one.role for one in statements})
    if len(kinds) == 1:
        raise DriftlensError(
            f"positive and negative statements in {name}",
            found=f"{len(statements)}, all of them {kinds[0]}",
            remedy="Add the opposite of each, with the same `pair_id` and the other `polarity`.",
        )
    for pair, twins in found.items():
        yield _twins(pair, twins)


def _twins(pair: int | str, twins: Mapping[str, Statement]) -> list[Statement]:
    for role, other in (TWINS, TWINS[::-1]):
        if role not in twins:
            raise DriftlensError(
                f"a positive and a negative statement in pair {pair!r}",
                found=f"only the {other} one on {twins[other].where}",
                remedy="Add its opposite with the same `pair_id`, or leave it out.",
            )
    positive, negative = both = [twins[role] for role in TWINS]
    if positive.text.split() == negative.text.split():
        raise DriftlensError(
            f"two statements that differ in pair {pair!r}",
            found=f"{positive.text!r} on {positive.where} and on {negative.where}",
            remedy="Let one be the opposite of the other, or leave the pair out.",
        )
    for name, remedy in (
        ("negation", "Name what makes the one of the other."),
        ("family", "Name what the pair shares with others."),
    ):
        ours, theirs = (getattr(one, name) for one in both)
        if len({ours, theirs} - {None}) > 1:
            raise DriftlensError(
                f"one `{name}` of both statements of pair {pair!r}",
                found=f"{ours!r} on {positive.where}, {theirs!r} on {negative.where}",
                remedy=remedy,
            )
    return both


def _asked(pair: Sequence[Statement], forms: Sequence[Form], lower: bool) -> Iterator[Example]:
    bear = [negated(one.text) for one in pair]
    kind = next(
        (one.negation for one in pair if one.negation), "not" if sum(bear) == 1 else "other"
    )
    family = next((one.family for one in pair if one.family is not None), None)
    ways = [(form, form.name) for form in forms] + [(forms[0], MARKER)] * any(bear)
    for (form, name), one, reply in product(ways, pair, REPLIES):
        template = form.yes if reply == REPLIES[0] else form.no
        text = marked(one.text) if name == MARKER else one.text
        if lower and not template.startswith("{}"):
            text = text[:1].lower() + text[1:]
        asked = template.replace("{}", text)
        yield Example(asked, None, one.pair, one.role, kind, reply, name, family)


def check_contrasts(name: str, examples: Sequence[Example]) -> None:
    """Raise unless there are pairs enough, each whole in every form in which it is asked."""
    asked: dict[object, list[tuple[str, str, str]]] = {}
    for example in examples:
        asked.setdefault(example.group, []).append((example.form, example.role, example.answer))
    every = {form for forms in asked.values() for form, _, _ in forms} - {MARKER}
    for group, held in asked.items():
        wanted = every | ({MARKER} & {form for form, _, _ in held})
        if group is None or sorted(held) != sorted(product(wanted, TWINS, REPLIES)):
            raise DriftlensError(
                f"a positive and a negative statement, each with yes and no, in each group and "
                f"form of {name}",
                found=f"{len(held)} examples of {len(wanted)} forms in group {group!r}",
                remedy="Build the pack from rows with `pair_id` and `polarity`.",
            )
    if len(asked) < FEWEST:
        raise DriftlensError(
            f"at least {FEWEST} pairs of opposites in {name}",
            found=str(len(asked)),
            remedy="Give more; no number is told from so few.",
        )
