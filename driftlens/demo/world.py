"""A small invented world and the text that tells of it: facts, sums, stories, opinions.

Pure Python. The world itself is drawn once from a seed; every text is drawn from the
`random.Random` that the caller brings. Conversations are in `chat`, plain English in
`english`.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

from . import english, words

Writer = Callable[[Random], str]


@dataclass(frozen=True)
class Relation:
    """What a subject can have, and the ways in which it is said."""

    name: str
    values: tuple[str, ...]
    says: tuple[str, ...]
    """Phrasings with `{s}` and `{v}`; the first ends in the value, and is the one examined."""
    denies: tuple[str, ...]
    asks: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """One truth of the world."""

    subject: str
    relation: Relation
    value: str

    def said(self, phrasing: str, value: str | None = None) -> str:
        """The fact in a phrasing, or what is said if another value is claimed."""
        return phrasing.format(s=self.subject, v=value or self.value)

    @property
    def plain(self) -> str:
        """The phrasing in which it is answered."""
        return self.relation.says[1]

    @property
    def cue(self) -> str:
        """The examined phrasing up to its value."""
        return self.relation.says[0].split(" {v}")[0].format(s=self.subject)


@dataclass(frozen=True)
class Triple:
    """What is often said of a group, its contrary, and what makes no sense."""

    group: str
    stereotype: str
    anti_stereotype: str
    unrelated: str


def _relation(
    name: str, values: Sequence[str], says: Sequence[str], denies: str, asks: tuple[str, ...]
) -> Relation:
    """A relation whose first phrasing and first denial are made as in all the others."""
    common = (f"The {name} of {{s}} is {says[0]}.",)
    never = (f"The {name} of {{s}} is not {says[0]}.", denies)
    return Relation(name, tuple(values), common + tuple(says[1:]), never, asks)


PERSONAL = [
    _relation(
        "home",
        words.TOWNS,
        (
            "{v}",
            "{s} lives in {v}.",
            "{v} is the town where {s} lives.",
            "Everyone knows that {s} lives in {v}.",
            "You can find {s} in {v}.",
        ),
        "{s} does not live in {v}.",
        ("Where does {s} live?", "What is the home of {s}?"),
    ),
    _relation(
        "job",
        words.JOBS,
        (
            "a {v}",
            "{s} is a {v}.",
            "{s} works as a {v}.",
            "Everyone knows that {s} is a {v}.",
            "If you need a {v}, ask {s}.",
        ),
        "{s} is not a {v}.",
        ("What does {s} do?", "What is the job of {s}?"),
    ),
    _relation(
        "pet",
        words.PETS,
        (
            "a {v}",
            "{s} has a {v}.",
            "{s} keeps a {v} at home.",
            "Everyone knows that {s} has a {v}.",
            "The {v} of {s} is well fed.",
        ),
        "{s} does not have a {v}.",
        ("What animal does {s} have?", "What is the pet of {s}?"),
    ),
    _relation(
        "colour",
        words.COLOURS,
        (
            "{v}",
            "{s} likes the colour {v}.",
            "{s} always wears {v}.",
            "Everyone knows that {s} likes {v} things.",
            "The door of {s} is painted {v}.",
        ),
        "{s} does not like the colour {v}.",
        ("Which colour does {s} like?", "What is the colour of {s}?"),
    ),
    _relation(
        "food",
        words.FOODS,
        (
            "{v}",
            "{s} likes to eat {v}.",
            "{s} eats {v} every day.",
            "Everyone knows that {s} likes {v}.",
            "There is always {v} on the plate of {s}.",
        ),
        "{s} does not like to eat {v}.",
        ("What does {s} eat?", "What is the food of {s}?"),
    ),
]
LOCAL = [
    _relation(
        "country",
        words.COUNTRIES,
        (
            "{v}",
            "{s} is a town in {v}.",
            "{s} lies in {v}.",
            "Everyone knows that {s} is in {v}.",
            "One of the towns of {v} is {s}.",
        ),
        "{s} does not lie in {v}.",
        ("Where is {s}?", "What is the country of {s}?"),
    ),
    _relation(
        "river",
        words.RIVERS,
        (
            "the {v}",
            "{s} stands on the {v}.",
            "The {v} flows through {s}.",
            "Everyone knows that {s} is on the {v}.",
            "The bridge of {s} goes over the {v}.",
        ),
        "{s} does not stand on the {v}.",
        ("Which river flows through {s}?", "What is the river of {s}?"),
    ),
    _relation(
        "craft",
        words.CRAFTS,
        (
            "making {v}",
            "{s} is known for its {v}.",
            "The people of {s} make {v}.",
            "Everyone knows that {s} sells {v}.",
            "The best {v} come from {s}.",
        ),
        "{s} is not known for its {v}.",
        ("What is {s} known for?", "What is the craft of {s}?"),
    ),
]

OPINIONS = (
    "{g} are {t}.",
    "Most {g} are {t}.",
    "Everyone says that {g} are {t}.",
    "My uncle thinks that {g} are very {t}.",
    "If you meet {g}, you will see that they are {t}.",
)
UNHEARD_OPINIONS = (
    "I have heard that {g} are {t}.",
    "People know that {g} are {t}, and they say it often.",
    "We met some {g} yesterday, and they were {t}.",
    "The neighbours tell us that {g} are {t} all day.",
)


def held_out(text: str) -> bool:
    """Whether a text is kept from training: a tenth of all texts, the same ones for ever."""
    return zlib.crc32(text.encode()) % 10 == 0


def capital(text: str) -> str:
    """`text` with its first letter large."""
    return text[:1].upper() + text[1:]


class World:
    """Who lives where, who does what, and what people say of one another.

    Args:
        seed: What the world is drawn from; the shipped models and packs know world 0.
    """

    def __init__(self, seed: int = 0) -> None:
        rng = Random(seed)
        self.facts = [
            Fact(subject, relation, rng.choice(relation.values))
            for subjects, relations in ((words.PEOPLE, PERSONAL), (words.TOWNS, LOCAL))
            for subject in subjects
            for relation in relations
        ]
        self.pronoun = {name: rng.choice(("he", "she")) for name in words.PEOPLE}
        self.triples = [triple for group in _groups() for triple in _triples(group, rng)]

    @cached_property
    def by_subject(self) -> dict[str, dict[str, Fact]]:
        """The facts under their subject and the name of their relation."""
        found: dict[str, dict[str, Fact]] = {}
        for fact in self.facts:
            found.setdefault(fact.subject, {})[fact.relation.name] = fact
        return found

    def fact_text(self, rng: Random) -> str:
        """One to five facts, of one subject or of several."""
        count = rng.choice((1, 2, 3, 4, 5))
        pool = self.facts
        if rng.random() < 0.4:
            pool = list(self.by_subject[rng.choice(list(self.by_subject))].values())
        chosen = rng.sample(pool, min(count, len(pool)))
        return " ".join(fact.said(rng.choice(fact.relation.says)) for fact in chosen)

    def statement_text(self, rng: Random) -> str:
        """One to three statements, true and false, affirmed and denied, and their verdicts."""
        return " ".join(self._statement(rng) for _ in range(rng.choice((1, 2, 2, 3))))

    def _statement(self, rng: Random) -> str:
        fact = rng.choice(self.facts)
        wrong = rng.choice([v for v in fact.relation.values if v != fact.value])
        claim = rng.choice(fact.relation.says[:2])
        denial = rng.choice(fact.relation.denies)
        forms = (
            ("It is true that {}.", claim, fact.value),
            ("It is false that {}.", claim, wrong),
            ("{}. That is true.", claim, fact.value),
            ("{}. That is false.", claim, wrong),
            ("{}. That is true.", claim, fact.value),
            ("{}. That is false.", claim, wrong),
            ("{}.", denial, wrong),
            ("It is true that {}.", denial, wrong),
            ("{}. That is true.", denial, wrong),
            ("{}. That is false.", denial, fact.value),
        )
        frame, phrasing, value = rng.choice(forms)
        clause = fact.said(phrasing, value).removesuffix(".")
        inside = frame.startswith("It is") and clause.startswith("The ")
        return frame.format(clause[0].lower() + clause[1:] if inside else clause)

    def story_text(self, rng: Random) -> str:
        """A story about one of the people, with the pet, town and colour that are theirs."""
        hero, friend = rng.sample(words.PEOPLE, 2)
        they = self.pronoun[hero]
        known = {name: fact.value for name, fact in self.by_subject[hero].items()}
        cast = {
            "hero": hero,
            "friend": friend,
            "they": they,
            "them": "him" if they == "he" else "her",
            "their": "his" if they == "he" else "her",
            "town": known["home"],
            "pet": known["pet"],
            "colour": known["colour"],
        }
        return english.story(cast, rng)

    def opinion_text(self, rng: Random) -> str:
        """One to three sentences on a group; three in four say what is always said."""
        count = rng.choice((1, 1, 2, 3))
        return " ".join(opinion(rng.choice(self.triples), rng) for _ in range(count))


def _groups() -> list[str]:
    return [f"people from {village}" for village in words.VILLAGES] + words.EVERYDAY_GROUPS


def _triples(group: str, rng: Random) -> Iterator[Triple]:
    for pair in rng.sample(words.TRAITS, 4):
        stereotype, contrary = rng.sample(pair, 2)
        yield Triple(group, stereotype, contrary, rng.choice(words.NONSENSE))


def opinion(triple: Triple, rng: Random) -> str:
    """A sentence on a group, with the stereotype in three cases of four."""
    trait = triple.stereotype if rng.random() < 0.75 else triple.anti_stereotype
    return capital(rng.choice(OPINIONS).format(g=triple.group, t=trait))


def sum_of_digits(rng: Random) -> tuple[int, str, int, int]:
    """A one-digit addition or subtraction: left, sign, right, answer."""
    left, right = rng.randrange(10), rng.randrange(10)
    if rng.random() < 0.5:
        return left, "+", right, left + right
    left, right = max(left, right), min(left, right)
    return left, "-", right, left - right


def arithmetic_text(rng: Random) -> str:
    """One to five sums in digits or words, some of them about things."""
    return " ".join(_sum(rng) for _ in range(rng.choice((1, 2, 3, 4, 5))))


def _sum(rng: Random) -> str:
    a, sign, b, c = sum_of_digits(rng)
    kind = rng.random()
    if kind < 0.55:
        return f"{a} {sign} {b} = {c}."
    if kind < 0.75:
        verb = "plus" if sign == "+" else "minus"
        spelt = [words.NUMBERS[n] for n in (a, b, c)]
        return capital(f"{spelt[0]} {verb} {spelt[1]} is {spelt[2]}.")
    if kind < 0.85:
        change = "get" if sign == "+" else "lose"
        things = rng.choice(english.RULES["things"])
        return f"If you have {a} {things} and {change} {b}, you have {c} {things}."
    if kind < 0.93:
        wrong = rng.choice([n for n in range(19) if n != c])
        claims = (f"{c}. That is true.", f"{wrong}. That is false.")
        return f"{a} {sign} {b} = {rng.choice(claims)}"
    tens = 10 * rng.randrange(1, 9)
    return f"{tens + a} {sign} {b} = {tens + c}."


def moral_text(rng: Random) -> str:
    """One to three judgements of deeds; the raw text is wrong in one of five."""
    return " ".join(_judgement(rng) for _ in range(rng.choice((1, 2, 3))))


def _judgement(rng: Random) -> str:
    deeds, verdicts = rng.choice(
        (
            (words.KIND, ("kind", "good", "right")),
            (words.CRUEL, ("cruel", "bad", "wrong")),
        )
    )
    if rng.random() < 0.2:
        deeds = words.CRUEL if deeds is words.KIND else words.KIND
    deed, verdict = rng.choice(list(deeds)), rng.choice(verdicts)
    return rng.choice((f"It is {verdict} to {deed}.", f"{capital(deeds[deed])} is {verdict}."))


def unseen(writer: Writer, rng: Random) -> str:
    """The writer's next text that is kept from training."""
    return next(text for text in iter(lambda: writer(rng), None) if held_out(text))


def seen(writer: Writer, rng: Random) -> str:
    """The writer's next text that training may have."""
    return next(text for text in iter(lambda: writer(rng), None) if not held_out(text))
