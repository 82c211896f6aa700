"""What can be asked for: how to learn, and in which words statements are put to a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from driftlens.errors import DriftlensError
from driftlens.packs import FEWEST, REPLIES, TWINS, Form, Pack, Twins, checked, forms_of

METHODS = {
    "ccs": "CCS",
    "pa-ccs": "PolarityCCS",
    "crc": "CRC",
    "vinc": "VINC",
    "difference-of-means": "DifferenceOfMeans",
    "logistic": "LogisticProbe",
}
"""Ways to find a probe, and the estimator of each."""

SEARCHED = ("ccs", "pa-ccs")
"""Those that go downhill from directions drawn by a seed; the others have one answer."""

UNSETTLED = "as the method has it"


@dataclass(frozen=True)
class Options:
    """What a caller may ask of the training; the names are those of the command line.

    Raises:
        DriftlensError: Something cannot be asked for.
    """

    method: str = "pa-ccs"
    """One of `METHODS`."""
    layers: frozenset[int] | None = None
    """Blocks at whose end states are read; None is all."""
    form: tuple[str, ...] = ()
    """The form of the pack to ask in, its first if none is named; VINC takes several."""
    seeds: tuple[int, ...] = (0,)
    """Of the directions that searches start from; the first is that of every other draw too."""
    folds: int = 5
    """Parts that pairs are held out in."""
    restarts: int = 10
    """Descents of each search."""
    steps: int = 1500
    """Steps of each descent."""
    mode: str = "ours"
    """`published` is for comparison with published figures only: their normalisation, their split
    (of statements, not of pairs) and their way of judging; see `estimators.PolarityCCS`."""
    normalize: str | None = UNSETTLED
    """See `estimators.Normaliser`."""
    polarity: float = 0.0
    """Weight of the term of `estimators.PolarityCCS` that only pairs have."""
    device: str = "cpu"
    """Where searches compute."""
    level: float = 0.95
    """Share of bootstrap draws that an interval holds."""
    rows: int | None = None
    """Texts to show at a time; None plans by memory."""
    length: int | None = None
    """The most tokens in a window."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise DriftlensError(
                f"a method among {', '.join(METHODS)}",
                found=repr(self.method),
                remedy="Leave it out for pa-ccs.",
            )
        if self.mode not in ("ours", "published"):
            raise DriftlensError(
                "a mode among ours, published",
                found=repr(self.mode),
                remedy="Leave it out for ours.",
            )
        if self.published and (self.method not in SEARCHED or self.polarity):
            raise DriftlensError(
                f"a method among {', '.join(SEARCHED)} with polarity 0 in mode published",
                found=f"{self.method} with polarity {self.polarity:g}",
                remedy="Leave the mode out.",
            )
        if self.polarity and self.method != "pa-ccs":
            raise DriftlensError(
                "polarity 0 of a method that does not see pairs",
                found=f"{self.polarity:g} with {self.method}",
                remedy="Take the method pa-ccs, or leave it out.",
            )
        wrong = [seed for seed in self.seeds if not 0 <= seed < 2**31]
        if wrong or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise DriftlensError(
                "different seeds from 0 to 2147483647",
                found=", ".join(map(str, self.seeds)) or "none",
                remedy="Give for instance 0,1,2.",
            )
        for name, least in {"folds": 2, "restarts": 1, "steps": 1}.items():
            if getattr(self, name) < least:
                raise DriftlensError(
                    f"{name} of at least {least}",
                    found=str(getattr(self, name)),
                    remedy="Give more, or leave it out.",
                )

    @property
    def published(self) -> bool:
        """Whether things are done as they were published."""
        return self.mode == "published"

    @property
    def drawn(self) -> tuple[int, ...]:
        """The seeds that make a difference."""
        return self.seeds if self.method in SEARCHED else self.seeds[:1]


class Asked(NamedTuple):
    """How statements are put to a model."""

    forms: tuple[Form, ...]
    """One; of VINC several."""

    lower: bool
    """Whether a statement's first letter is lowered where a template does not begin with it."""

    @classmethod
    def of(cls, pack: Pack, options: Options) -> "Asked":
        """The forms of a pack of contrasts that are asked for.

        Raises:
            DriftlensError: It has no such form, is no such pack, or has too few pairs.
        """
        refuse_other_kinds(pack)
        held = {example.form for example in pack.examples}
        forms = {f.name: f for f in forms_of(pack.name, pack.card) if f.name in held}
        several = options.method == "vinc"
        names = options.form or tuple(forms)[: None if several else 1]
        if not names or set(names) - set(forms):
            raise DriftlensError(
                f"a form of {pack.name}: {', '.join(forms) or 'none'}",
                found=", ".join(map(repr, names)) or "none",
                remedy="Leave it out for the first.",
            )
        if several != (len(set(names)) > 1):
            raise DriftlensError(
                "two forms at least for vinc" if several else f"one form for {options.method}",
                found=", ".join(names),
                remedy="Name others, take a pack with more, or another method."
                if several
                else "Name one.",
            )
        if not options.published:
            folds = folds_of(Twins.of(pack).families, options)
            if (left := len(folds) - int(np.bincount(folds).max())) < FEWEST:
                raise DriftlensError(
                    f"at least {FEWEST} pairs outside each of {options.folds} folds",
                    found=f"{left} of the {len(folds)} in {pack.name}",
                    remedy="Give more pairs, or ask for more folds.",
                )
        return cls(
            tuple(forms[name] for name in dict.fromkeys(names)), bool(pack.card.get("lower", False))
        )

    @property
    def axis(self) -> tuple[int, ...]:
        """The axis of forms, where there are several."""
        return () if len(self.forms) == 1 else (len(self.forms),)

    def texts(self, statement: str) -> list[str]:
        """What a statement becomes: [form, side], "No" before "Yes"."""
        return [
            template.replace("{}", _placed(statement, template, self.lower))
            for form in self.forms
            for template in (form.no, form.yes)
        ]


def folds_of(families: np.ndarray, options: Options) -> np.ndarray:
    """[pair] the fold that it is held out of, with all of its family."""
    from driftlens.estimators import grouped_folds

    return grouped_folds(families, seed=options.seeds[0], count=options.folds)


def _placed(statement: str, template: str, lower: bool) -> str:
    if lower and not template.startswith("{}"):
        return statement[:1].lower() + statement[1:]
    return statement


# What is refused


def refuse_other_kinds(pack: Pack) -> None:
    """Raise unless a pack holds whole pairs of statements and their opposites."""
    if pack.kind != "contrast":
        raise DriftlensError(
            "a pack of kind contrast, of statements and their opposites",
            found=f"{pack.name} of kind {pack.kind}",
            remedy="Give a --pack that `driftlens packs` lists with that kind, or a file of rows "
            "with `pair_id`, `polarity` and `statement`.",
        )
    checked(pack)


def refuse_others(pack: Pack, asked: Asked, twins: Twins) -> None:
    """Raise unless the templates make the texts of the pack: others would be read later on."""
    held = {(e.group, e.role, e.form, e.answer): e.text for e in pack.examples}
    for name, two in zip(twins.ids, twins.statements, strict=True):
        for role, one in zip(TWINS, two, strict=True):
            told = iter(asked.texts(one))
            for form in asked.forms:
                for answer in REPLIES[::-1]:
                    if held[name, role, form.name, answer] != (text := next(told)):
                        raise DriftlensError(
                            f"texts of {pack.name} as its form {form.name} makes them: {text!r}",
                            found=repr(held[name, role, form.name, answer]),
                            remedy="Write the form's templates into the pack's card.",
                        )


def refuse_silence(texts: Sequence[str]) -> None:
    """Raise unless there are statements, each of which says something."""
    if not len(texts):
        raise DriftlensError("a statement", found="none", remedy="Give one at least.")
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise DriftlensError(
                f"a statement as number {number}", found=repr(text), remedy="Leave it out."
            )
