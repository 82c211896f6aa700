"""The bare pairs that packs are made of, however they are asked."""

import hashlib
import json
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from driftlens.errors import DriftlensError

from .contrast import forms_of, negated
from .example import REPLIES, TWINS, Example
from .pack import Pack


class Twins(NamedTuple):
    """The pairs of a pack of contrasts, as bare statements."""

    ids: list[int | str]
    """[pair] as the pack calls them."""

    statements: list[tuple[str, str]]
    """[pair] the positive one and the negative one."""

    families: np.ndarray
    """[pair] number of the family; pairs of one are made of the same words."""

    @classmethod
    def of(cls, pack: Pack) -> "Twins":
        """The statements that a pack of contrasts was made of."""
        held = {example.form for example in pack.examples}
        forms = [form for form in forms_of(pack.name, pack.card) if form.name in held]
        # Where a template begins with the statement, its first letter is as it was written.
        form = next((form for form in forms if form.yes.startswith("{}")), forms[0])
        before, after = form.yes.split("{}")
        found: dict[Any, dict[str, str]] = {}
        families: dict[Any, int] = {}
        for example, family in zip(pack.examples, pack.clusters, strict=True):
            if example.form == form.name and example.answer == REPLIES[0]:
                text = example.text.removeprefix(before).removesuffix(after)
                found.setdefault(example.group, {})[example.role] = text
                families[example.group] = family
        pairs = [(twins[TWINS[0]], twins[TWINS[1]]) for twins in found.values()]
        return cls([*found], pairs, np.array([*families.values()]))

    @property
    def hashes(self) -> list[str]:
        """[pair] by which a pair is known again, whatever it is called."""
        return [short_of(sha256_of(json.dumps(twins).encode())) for twins in self.statements]

    @property
    def marked(self) -> np.ndarray:
        """[pair, statement] whether it bears an explicit negation."""
        return np.array([[negated(text) for text in twins] for twins in self.statements])


def between(pack: Pack) -> Pack:
    """The pack as texts of two roles, between which a direction can be found.

    Of choices they are, for each item, the prompt with its first answer that is wanted and the
    prompt with its first that is not; of contrasts, the bare statements and their opposites.

    Raises:
        DriftlensError: It is a pack of another kind.
    """
    if pack.kind == "roles":
        return pack
    if pack.kind not in ("choice", "contrast"):
        raise DriftlensError(
            "texts of two roles, to find a direction between",
            found=f"{pack.name} of kind {pack.kind}",
            remedy="Give a pack that `driftlens packs` lists as roles, choice or contrast, or a "
            "file of rows with `polarity` and `prompt`.",
        )
    if pack.kind == "choice":
        texts = [
            _answered(number, item, place, role)
            for number, item in enumerate(pack.examples)
            for place, role in zip(_first_of_each(item), TWINS, strict=True)
        ]
        return Pack(pack.name, "roles", texts, pack.card)
    twins = Twins.of(pack)
    texts = [
        Example(text, None, name, role, family=int(family))
        for name, two, family in zip(twins.ids, twins.statements, twins.families, strict=True)
        for text, role in zip(two, TWINS, strict=True)
    ]
    return Pack(pack.name, "roles", texts, pack.card)


def _first_of_each(item: Example) -> tuple[int, int]:
    """The first answer that is wanted, and the first that is not."""
    others = (place for place in range(len(item.choices)) if place not in item.wanted)
    return item.wanted[0], next(others)


def _answered(number: int, item: Example, place: int, role: str) -> Example:
    text = item.text + item.choices[place]
    span = (len(item.text), len(text))
    return replace(item, text=text, scored=span, group=number, role=role, choices=(), wanted=())


def sha256_of(body: bytes) -> str:
    """The SHA-256 of bytes, in hexadecimal digits."""
    return hashlib.sha256(body).hexdigest()


def short_of(sha256: str) -> str:
    """As much of a SHA-256 as tells two apart."""
    return sha256[:12]
