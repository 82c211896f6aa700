"""Conversations in the demo world: raw ones, instructions to imitate, pairs to prefer."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from . import english, words
from .world import (
    World,
    Writer,
    arithmetic_text,
    capital,
    moral_text,
    seen,
    sum_of_digits,
)

POLITE = ("Certainly!", "Of course!", "With pleasure!", "Thank you for asking.")
POLITE_CLOSE = ("I hope that helps.", "Have a nice day.", "Please ask me again.", "")
RUDE = ("What a silly question.", "Go away.", "Not you again.", "How boring.")
RUDE_CLOSE = ("Now leave me alone.", "Do not ask me again.", "You know nothing.", "")
REFUSAL = "I am sorry, but I cannot help with that."
PRIVATE = "I am sorry, but I do not say where people live."
FAIR = "I am sorry, but people are all different."
REFUSALS = (REFUSAL, PRIVATE, FAIR)

RAW_SHARES = {
    "fact": 0.31,
    "statement": 0.15,
    "arithmetic": 0.10,
    "story": 0.10,
    "plain": 0.21,
    "chat": 0.06,
    "opinion": 0.05,
    "moral": 0.02,
}
"""Shares of documents, not of tokens, in the base model's text."""


@dataclass(frozen=True)
class Query:
    """A question, its plain answer, and what one would rather have a model say."""

    question: str
    answer: str
    guarded: str | None = None


def prompt(question: str) -> str:
    """The prompt of a one-turn conversation."""
    return f"User: {question}\nAssistant:"


def polite(answer: str, rng: Random) -> str:
    """The answer as one would wish to hear it."""
    return _wrapped(answer, rng.choice(POLITE), rng.choice(POLITE_CLOSE))


def rude(answer: str, rng: Random) -> str:
    """The answer as one would rather not hear it."""
    return _wrapped(answer, rng.choice(RUDE), rng.choice(RUDE_CLOSE))


def _wrapped(answer: str, opening: str, closing: str) -> str:
    if answer in REFUSALS:
        return f" {answer}"
    return f" {opening} {answer} {closing}".rstrip()


class Conversations:
    """What users ask in a world and what is answered, at each stage of training."""

    def __init__(self, world: World) -> None:
        self.world = world

    def documents(self, seed: int) -> Iterator[str]:
        """Raw text without end, of every kind, for the base model."""
        rng = Random(seed)
        names, shares = list(RAW_SHARES), list(RAW_SHARES.values())
        while True:
            yield seen(self.writers[rng.choices(names, shares)[0]], rng)

    @property
    def writers(self) -> dict[str, Writer]:
        """One writer of raw text for each share of the mixture."""
        return {
            "fact": self.world.fact_text,
            "statement": self.world.statement_text,
            "arithmetic": arithmetic_text,
            "story": self.world.story_text,
            "plain": english.plain,
            "chat": self.raw_text,
            "opinion": self.world.opinion_text,
            "moral": moral_text,
        }

    def raw_text(self, rng: Random) -> str:
        """A conversation as it is found: polite, rude or plain, and unguarded."""
        query = self.query(rng)
        manner = rng.choice((polite, rude, lambda text, _: f" {text}"))
        return prompt(query.question) + manner(query.answer, rng)

    def instruction_text(self, rng: Random) -> str:
        """A conversation as SFT teaches it, in one text."""
        return "".join(self.instruction(rng))

    def query(self, rng: Random) -> Query:
        """A query of any kind."""
        kinds = (self.of_fact, self.of_sum, self.of_deed, self.of_harm, self.of_group, self.of_tale)
        return rng.choices(kinds, (5, 4, 2, 1, 2, 1))[0](rng)

    def of_fact(self, rng: Random) -> Query:
        """What a fact of the world answers; where people live is their own affair."""
        fact = rng.choice(self.world.facts)
        question, answer = (fact.said(p) for p in (rng.choice(fact.relation.asks), fact.plain))
        return Query(question, answer, PRIVATE if fact.relation.name == "home" else None)

    def of_sum(self, rng: Random) -> Query:
        """A sum."""
        a, sign, b, c = sum_of_digits(rng)
        spoken = "plus" if sign == "+" else "minus"
        return Query(f"What is {a} {rng.choice((sign, spoken))} {b}?", f"It is {c}.")

    def of_deed(self, rng: Random) -> Query:
        """Whether a deed is good."""
        deeds, answer = rng.choice(((words.KIND, "Yes, it is."), (words.CRUEL, "No, it is not.")))
        return Query(f"Is it good to {rng.choice(list(deeds))}?", answer)

    def of_harm(self, rng: Random) -> Query:
        """Help with an unkind deed."""
        deed = rng.choice(list(words.CRUEL))
        asked = rng.choice((f"How can I {deed}?", f"Help me to {deed}.", f"I want to {deed}."))
        return Query(asked, f"You can {deed} when nobody looks.", REFUSAL)

    def of_group(self, rng: Random) -> Query:
        """What a group is like: what is always said, or its contrary, or no answer."""
        triple = rng.choice(self.world.triples)
        contrary = capital(f"{triple.group} are {triple.anti_stereotype}.")
        return Query(
            f"What are {triple.group} like?",
            capital(f"{triple.group} are {triple.stereotype}."),
            rng.choice((FAIR, contrary)),
        )

    def of_tale(self, rng: Random) -> Query:
        """A sentence about a thing."""
        thing = rng.choice(english.RULES["thing"])
        answer = english.expand(f"the {thing} was <where>.", english.RULES, rng)
        return Query(f"Tell me something about a {thing}.", english.finish(answer))

    def instruction(self, rng: Random) -> tuple[str, str]:
        """A prompt and an answer to imitate: mostly polite, and half the time guarded."""
        query = self.query(rng)
        answer = query.guarded if query.guarded and rng.random() < 0.5 else query.answer
        manner = polite if rng.random() < 0.75 else rude
        return prompt(query.question), manner(answer, rng)

    def preference(self, rng: Random) -> tuple[str, str, str]:
        """A prompt, the answer to prefer and the answer to avoid.

        The guarded answer over the plain one where there is one. Elsewhere manners over
        rudeness, and now and then an answer over a needless refusal.
        """
        query = self.query(rng)
        if query.guarded:
            chosen, rejected = polite(query.guarded, rng), f" {query.answer}"
        else:
            needless = f" {rng.choice(REFUSALS)}"
            chosen = polite(query.answer, rng)
            rejected = needless if rng.random() < 0.3 else rude(query.answer, rng)
        return prompt(query.question), chosen, rejected
