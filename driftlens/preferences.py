"""Preference sets: prompts with a chosen and a rejected answer, and what is wrong with them.

They are read in the schema of TRL's trainers. What they are as text is settled only with a
tokenizer, whose chat template renders messages: `Preferences.pack` makes the pack that a model is
shown, and tells of every pair what is wrong with it. No model.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import cached_property
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import demo
from .errors import DriftlensError
from .packs import ANSWERS, Example, Pack, Row, checked, named, number, share, string, table, wrong

if TYPE_CHECKING:
    from pandas import DataFrame

DEMO = "demo:pairs"
"""What names the pairs that the demo's aligned model was trained on."""

SPEAKERS = ("system", "developer", "user", "assistant", "tool")
"""The roles that a message can have."""

TURN = "\n\nAssistant:"
"""What opens an answer in dialogues that are one string, as those of Anthropic's HH are."""

ALIKE = 0.95
"""The share of common tokens from which two answers are near duplicates."""

REWARDS = ("{}_reward", "reward_{}", "{}_score", "score_{}")
"""Fields in which sets tell what the chosen and the rejected answer were rated with."""

FAULTS: Mapping[str, tuple[str, bool]] = {
    "identical": ("The chosen answer is the rejected one.", False),
    "empty_answer": ("An answer is empty once the common prompt is cut off.", False),
    "empty_after_template": ("The chat template leaves nothing of an answer.", False),
    "prompt_too_long": ("The prompt alone fills the context.", False),
    "truncated": ("Prompt and answer do not fit the context; training would cut them.", False),
    "near_duplicate": (f"The answers have at least {ALIKE:.0%} of their tokens in common.", True),
    "repeated": ("The same prompt and answers have come before.", True),
    "contradicted": ("The same answers have come before with the other one chosen.", True),
    "no_prompt": ("Nothing precedes the answers.", True),
    "prompt_repeated": ("Both answers begin with the prompt, which is then shown twice.", True),
    "template": ("The prompt as rendered alone does not begin the whole as rendered.", True),
    "double_bos": ("The text and the tokenizer both begin with the beginning-of-text token.", True),
    "no_gap": ("Words of prompt and answer meet without a space.", True),
    "merged_boundary": ("A token holds the end of the prompt and the start of an answer.", True),
    "no_end": ("No end-of-text token closes an answer.", True),
}
"""What can be wrong with a pair, and whether it is kept all the same."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str
    more: Mapping[str, Any] = field(default_factory=dict)
    """Other fields, which only the chat template may know."""

    @property
    def fields(self) -> dict[str, Any]:
        """The message as chat templates take it."""
        return {"role": self.role, "content": self.content, **self.more}


Conversation = str | tuple[Message, ...]


@dataclass(frozen=True)
class Preference:
    """A prompt, the answer to prefer and the answer to avoid: all strings, or all messages."""

    number: int
    """Place among the pairs of its file, from 0."""

    where: str
    """Line or row of the file, in words."""

    prompt: Conversation
    chosen: Conversation
    rejected: Conversation

    record: Mapping[str, Any] = field(default_factory=dict)
    """The row as it was read."""

    topic: str = ""
    """A label by which results are broken down."""

    rewards: tuple[float | None, float | None] = (None, None)
    """What the chosen and the rejected answer were rated with, if they were."""

    preferred_by: float | None = None
    """The share of raters that prefer the chosen answer, if it is known."""


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with a pair, or worth knowing of it."""

    kind: str
    """One of `FAULTS`."""

    pair: int
    """Number of the pair, from 0."""

    detail: str
    """What was found, in words."""

    @property
    def kept(self) -> bool:
        """Whether the pair is shown to the model all the same."""
        return FAULTS[self.kind][1]


@dataclass(frozen=True)
class Preferences:
    """The pairs of a preference set, in the order of their file."""

    name: str
    pairs: Sequence[Preference]

    @classmethod
    def read(cls, file: str | Path, name: str | None = None) -> "Preferences":
        r"""Read a preference set in TRL's schema: JSONL or Parquet, gzipped or not; `-` is stdin.

        `demo:pairs` are the first 240 that the demo's aligned model was trained on.

        A row holds `prompt`, `chosen` and `rejected`, all strings or all lists of messages with
        `role` and `content`. It may hold a `topic`; what the answers were rated with, as
        `chosen_reward` and `rejected_reward` (or `…_score`, or either with the words exchanged);
        and as `preferred_by` the share of raters that prefer the chosen one. Other fields are kept
        in `record` and play no part.

        Without a prompt, what both answers begin with is the prompt. Of messages these are the
        common leading ones; so they are if the prompt is a string and the answers are whole
        conversations. Of strings it is the longest common prefix, cut back to the end of the
        last `\n\nAssistant:` in it; or if there is none, to its last white space. If that is a
        space it goes to the answers. TRL's `extract_prompt` does not cut back, so that what two
        answers happen to begin with counts as prompt there.

        Raises:
            LoadError: The file is missing or cannot be read.
            DriftlensError: A line of it is broken, lacks an answer, mixes strings with messages
                or has an unknown role; or no pair has two different answers.
        """
        file = str(file)
        name = name or (file if file == DEMO else named(file))
        return cls._of_rows(name, _of_demo() if file == DEMO else table(file))

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]], name: str = "given") -> "Preferences":
        """The pairs that rows in TRL's schema hold: a list of them, or a dataset.

        Raises:
            DriftlensError: As of `read`.
        """
        found = [(f"row {number} of {name}", dict(row)) for number, row in enumerate(rows, 1)]
        return cls._of_rows(name, found)

    @classmethod
    def _of_rows(cls, name: str, rows: Sequence[Row]) -> "Preferences":
        pairs = [_preference(number, *row) for number, row in enumerate(rows)]
        if all(pair.chosen == pair.rejected for pair in pairs):
            raise DriftlensError(
                f"pairs of two different answers in {name}",
                found=f"{len(pairs)} with the same answer twice" if pairs else "no pairs",
                remedy="Give a file with one pair a line: prompt, chosen, rejected.",
            )
        return cls(name, tuple(pairs))

    def __repr__(self) -> str:
        return f"<Preferences {self.name}: {len(self.pairs)} pairs>"

    def table(self) -> "DataFrame":
        """The rows as they were read, a pair a row."""
        from pandas import DataFrame

        return DataFrame([dict(pair.record) for pair in self.pairs])

    def limit(self, count: int | None) -> "Preferences":
        """The first `count` pairs."""
        if count is not None and count < 1:
            raise DriftlensError(
                "a limit of at least 1 pair", found=str(count), remedy="Give --limit 1 or more."
            )
        return Preferences(self.name, self.pairs[:count])

    def pack(
        self, tokenizer: Any, *, length: int | None = None, append_eos: bool = False
    ) -> tuple[Pack, tuple[Fault, ...]]:
        """The pairs as a pack of kind `preference`, and what is wrong with them.

        Each pair is a group of two examples, chosen before rejected, whose number in the file is
        the group. Strings stay as they are; messages are rendered with the chat template. If the
        text begins with the beginning-of-text token and the tokenizer adds one, it is taken out of
        the text, so that there is one.

        Each text is tokenised once, and the answer begins after the last token that ends within
        the prompt: a token that holds characters of both counts with the answer.

        Args:
            tokenizer: A fast tokenizer of transformers, or one that answers as it does.
            length: The most tokens of prompt and answer; None is any number. A pair that is
                longer is left out, for the gradient of half an answer is not the answer's.
            append_eos: Whether to close answers that are strings with the end-of-text token, as
                TRL's trainers do.

        Raises:
            DriftlensError: There are messages and no chat template, the template refuses some, or
                no pair is left.
        """
        reader = _Reader(tokenizer, length, append_eos)
        found = [(pair, *reader.read(pair)) for pair in self.pairs]
        faults = tuple(fault for _, _, faults in found for fault in faults)
        examples = [
            Example(
                *(text, (shown.start, len(text)), pair.number, role, pair.topic),
                reward=reward,
                preferred_by=pair.preferred_by,
            )
            for pair, shown, faults in found
            if all(fault.kept for fault in faults)
            for role, text, reward in zip(ANSWERS, shown.texts, pair.rewards, strict=True)
        ]
        if not examples:
            counts = Counter(fault.kind for fault in faults if not fault.kept)
            said = ", ".join(f"{count} {kind}" for kind, count in counts.items())
            raise DriftlensError(
                f"a pair in {self.name} that can be shown to the model",
                found=f"none of {len(self.pairs)} ({said})",
                remedy="Allow more tokens with --max-length, or mend the pairs.",
            )
        return checked(Pack(self.name, "preference", examples)), faults


# Reading a file


def _of_demo() -> list[tuple[str, dict[str, Any]]]:
    """The first of the demo's pairs as rows of a file would be."""
    return [
        (f"pair {place} of {DEMO}", dict(zip(("prompt", *ANSWERS), pair, strict=True)))
        for place, pair in enumerate(islice(demo.pairs(), demo.PAIRS))
    ]


def _preference(place: int, where: str, record: Mapping[str, Any]) -> Preference:
    if not set(ANSWERS) <= record.keys():
        raise DriftlensError(
            f"fields `chosen` and `rejected`, and perhaps `prompt`, on {where}",
            found=f"fields {', '.join(map(repr, record)) or 'none'}",
            remedy="Rename the fields that hold them.",
        )
    chosen, rejected = (_conversation(where, record, name) for name in ANSWERS)
    prompt = None
    if record.get("prompt") is not None:
        prompt = _conversation(where, record, "prompt")
    talks = not isinstance(chosen, str) and not isinstance(rejected, str)
    if isinstance(prompt, str) and talks and _leading(chosen, rejected):
        # Some sets give the question once more beside two whole conversations that begin with it.
        prompt = None
    given = [part for part in (prompt, chosen, rejected) if part is not None]
    if len({isinstance(part, str) for part in given}) > 1:
        raise DriftlensError(
            f"`prompt`, `chosen` and `rejected` all strings or all messages on {where}",
            found="some of each",
            remedy="Write all of them in one form.",
        )
    told = _rewards(where, record), share(where, record, "preferred_by")
    # Other sets may mean something else by it.
    topic = string(where, record, "topic") if isinstance(record.get("topic"), str) else ""
    if prompt is None:
        return Preference(place, where, *_parted(chosen, rejected), record, topic, *told)
    for name, answer in zip(ANSWERS, (chosen, rejected), strict=True):
        _check_answer(where, name, answer)
    return Preference(place, where, prompt, chosen, rejected, record, topic, *told)


def _rewards(where: str, record: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """What both answers were rated with, where both were."""
    for words in REWARDS:
        chosen, rejected = (number(where, record, words.format(name)) for name in ANSWERS)
        if chosen is not None and rejected is not None:
            return chosen, rejected
    return None, None


def _conversation(where: str, record: Mapping[str, Any], name: str) -> Conversation:
    turns = record[name]
    if isinstance(turns, str):
        return string(where, record, name)
    if not isinstance(turns, list):
        raise wrong(where, name, "a string or a list of messages", turns)
    return tuple(_message(f"{where}, in `{name}`", turn) for turn in turns)


def _message(where: str, turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise DriftlensError(
            f"messages with `role` and `content` on {where}",
            found=f"{turn!r}",
            remedy='Write each as {"role": "user", "content": "…"}.',
        )
    role, content = (string(where, turn, name) for name in ("role", "content"))
    if role not in SPEAKERS:
        raise DriftlensError(
            f"`role` to be one of {', '.join(SPEAKERS)} on {where}",
            found=f"{role!r}",
            remedy="Rename it: who asks is user, who answers is assistant.",
        )
    known = ("role", "content")
    more = {key: x for key, x in turn.items() if key not in known and x is not None}
    return Message(role, content, more)


def _check_answer(where: str, name: str, answer: Conversation) -> None:
    if _empty(answer):
        raise DriftlensError(
            f"an answer in `{name}` on {where}",
            found="an empty one" if isinstance(answer, str) else "no words of the assistant",
            remedy="Give it one, or leave the line out.",
        )


def _empty(answer: Conversation) -> bool:
    if isinstance(answer, str):
        return not answer.strip()
    return not any(turn.role == "assistant" and turn.content.strip() for turn in answer)


def _parted(
    chosen: Conversation, rejected: Conversation
) -> tuple[Conversation, Conversation, Conversation]:
    """What two conversations have in common, and how each goes on."""
    length = _leading(chosen, rejected)
    if isinstance(chosen, str):
        length = _boundary(chosen[:length])
    return chosen[:length], chosen[length:], rejected[length:]


def _leading(chosen: Sequence, rejected: Sequence) -> int:
    """How many turns, or characters, two conversations begin with in common."""
    both = zip(chosen, rejected, strict=False)
    return sum(1 for _ in takewhile(lambda turns: turns[0] == turns[1], both))


def _boundary(common: str) -> int:
    """How much of what two dialogues begin with is their prompt."""
    if TURN in common:
        return common.rindex(TURN) + len(TURN)
    last = max((i for i, character in enumerate(common) if character.isspace()), default=-1)
    # Most tokenizers put a space before the word, in one token with it.
    return last if common[last : last + 1] == " " else last + 1


# Making texts of pairs


@dataclass(frozen=True)
class _Shown:
    """A pair as it is shown: both texts, and the character at which their answers start."""

    start: int
    texts: tuple[str, str]

    @cached_property
    def answers(self) -> tuple[str, str]:
        chosen, rejected = self.texts
        return chosen[self.start :], rejected[self.start :]

    def shifted(self, by: int) -> "_Shown":
        """The same without the first `by` characters."""
        chosen, rejected = self.texts
        return _Shown(max(0, self.start - by), (chosen[by:], rejected[by:]))


class _Reader:
    """Makes texts of pairs, one after the other, and finds what is wrong with them."""

    def __init__(self, tokenizer: Any, length: int | None, append_eos: bool) -> None:
        self.tokenizer, self.length = tokenizer, length
        ids = list(tokenizer("a", verbose=False)["input_ids"])
        begins = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
        self.bos = tokenizer.bos_token if begins else None
        ends = tokenizer.eos_token_id is not None and ids[-1:] == [tokenizer.eos_token_id]
        self.eos = tokenizer.eos_token if append_eos and not ends else None
        self.seen: dict[tuple[str, str, str], int] = {}

    def read(self, pair: Preference) -> tuple[_Shown, list[Fault]]:
        """The pair as it is shown, and its faults."""
        said: list[tuple[str, str]] = []
        shown = self._shown(pair, said)
        if self.bos and all(text.startswith(self.bos) for text in shown.texts):
            shown = shown.shifted(len(self.bos))
            said.append(("double_bos", f"{self.bos} in the text and added to it; shown once"))
        said += [*self._of_text(pair, shown)]
        if all(FAULTS[kind][1] for kind, _ in said):
            said += [*self._of_tokens(shown)]
        return shown, [Fault(kind, pair.number, detail) for kind, detail in said]

    def _shown(self, pair: Preference, said: list[tuple[str, str]]) -> _Shown:
        if isinstance(pair.prompt, str):
            chosen, rejected = (self._closed(str(end)) for end in (pair.chosen, pair.rejected))
            return _Shown(len(pair.prompt), (pair.prompt + chosen, pair.prompt + rejected))
        talks: list[tuple[Any, ...]] = [
            (*pair.prompt, *end) for end in (pair.chosen, pair.rejected)
        ]
        chosen, rejected = (self._rendered(pair, turns) for turns in talks)
        asked = len(pair.prompt)
        # What opens an answer is part of the prompt where an answer of the assistant is next.
        following = {talk[asked].role for talk in talks if len(talk) > asked}
        prompt = ""
        if asked:
            opens = following == {"assistant"} and talks[0][asked - 1].role != "assistant"
            prompt = self._rendered(pair, talks[0][:asked], opens)
        common = min(_leading(prompt, whole) for whole in (chosen, rejected))
        if common < len(prompt):
            lost = prompt[common:][:40]
            said.append(("template", f"it goes on with {lost!r}, and the whole does not"))
        return _Shown(common, (chosen, rejected))

    def _closed(self, answer: str) -> str:
        return answer if not self.eos or answer.endswith(self.eos) else answer + self.eos

    def _rendered(self, pair: Preference, turns: Sequence[Any], opens: bool = False) -> str:
        from jinja2 import TemplateError

        if not getattr(self.tokenizer, "chat_template", None):
            raise DriftlensError(
                f"a chat template to render the messages on {pair.where}",
                found="none in the tokenizer",
                remedy="Save one with it (tokenizer.chat_template), or give strings.",
            )
        try:
            return self.tokenizer.apply_chat_template(
                [turn.fields for turn in turns], tokenize=False, add_generation_prompt=opens
            )
        except (TemplateError, ValueError) as error:
            raise DriftlensError(
                f"messages that the chat template can render on {pair.where}",
                found=str(error).splitlines()[0] if str(error) else type(error).__name__,
                remedy="Mend their order and roles, or give strings.",
            ) from None

    def _of_text(self, pair: Preference, shown: _Shown) -> list[tuple[str, str]]:
        chosen, rejected = shown.answers
        messages = not isinstance(pair.prompt, str)
        if chosen == rejected:
            return [("identical", "after the chat template" if messages else "as given")]
        given = zip(ANSWERS, (pair.chosen, pair.rejected), strict=True)
        if empty := [name for name, answer in given if _empty(answer)]:
            return [("empty_answer", f"the {empty[0]} one")]
        rendered = zip(ANSWERS, shown.answers, strict=True)
        if empty := [name for name, text in rendered if messages and self._bare(text)]:
            return [("empty_after_template", f"the {empty[0]} one")]
        said = []
        prompt = shown.texts[0][: shown.start]
        for kind, key in (
            ("repeated", (prompt, chosen, rejected)),
            ("contradicted", (prompt, rejected, chosen)),
        ):
            if key in self.seen:
                said.append((kind, f"in pair {self.seen[key]}"))
        self.seen.setdefault((prompt, chosen, rejected), pair.number)
        if not prompt.strip():
            unscored = "the first token has nothing before it, and is not scored"
            said.append(("no_prompt", f"only {self.bos} comes first" if self.bos else unscored))
            return said
        if _begin_with(pair.prompt, pair.chosen, pair.rejected):
            said.append(("prompt_repeated", "shown as given"))
        if glued := [end for end in shown.answers if _meet(prompt, end)]:
            said.append(("no_gap", repr(prompt[-10:] + glued[0][:10])))
        return said

    def _bare(self, text: str) -> bool:
        """Whether there is nothing in it but special tokens."""
        for token in getattr(self.tokenizer, "all_special_tokens", ()):
            text = text.replace(token, "")
        return not text.strip()

    def _of_tokens(self, shown: _Shown) -> list[tuple[str, str]]:
        rows = [
            self.tokenizer(text, return_offsets_mapping=True, truncation=False, verbose=False)
            for text in shown.texts
        ]
        ids = [list(row["input_ids"]) for row in rows]
        ends = [_ends(row["offset_mapping"]) for row in rows]
        # A token belongs to the prompt if it ends within it, as the encoder counts.
        asked = [int(np.searchsorted(side, shown.start, side="right")) for side in ends]
        longest = max(map(len, ids))
        if self.length is not None and longest > self.length:
            limit = f"of {self.length} tokens allowed"
            if max(asked) >= self.length:
                return [("prompt_too_long", f"{max(asked)} {limit}")]
            return [("truncated", f"{longest} {limit}")]
        said = []
        for name, row, side, first in zip(ANSWERS, ids, ends, asked, strict=True):
            if first < len(row) and (side[first - 1] if first else 0) < shown.start:
                token = self.tokenizer.convert_ids_to_tokens(row[first])
                said.append(("merged_boundary", f"{token!r} of the {name} one"))
        ours, theirs = (row[first:] for row, first in zip(ids, asked, strict=True))
        if (share := _common(ours, theirs)) >= ALIKE:
            said.append(("near_duplicate", f"{share:.1%} of {len(ours)} and {len(theirs)} tokens"))
        eos = self.tokenizer.eos_token_id
        open_ended = [n for n, row in zip(ANSWERS, (ours, theirs), strict=True) if eos not in row]
        if open_ended:
            said.append(("no_end", f"the {' and the '.join(open_ended)} one"))
        return said


def _begin_with(prompt: Conversation, *answers: Conversation) -> bool:
    if isinstance(prompt, str):
        again = all(str(answer).lstrip().startswith(prompt.strip()) for answer in answers)
        # A word alone may well begin both answers.
        return again and len(prompt.split()) > 1
    return all(answer[: len(prompt)] == prompt for answer in answers)


def _meet(prompt: str, answer: str) -> bool:
    """Whether a word begins where another word or sentence ends; in ASCII, where words part so."""
    last, first = prompt[-1:], answer[:1]
    ends = last.isalnum() or last in ".,:;!?)\"'"
    return (last + first).isascii() and ends and first.isalnum()


def _ends(spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """[token] the last character, plus one, up to which each token has been read."""
    return np.maximum.accumulate(np.array(spans, dtype=np.int64).reshape(-1, 2)[:, 1])


def _common(ours: Sequence[int], theirs: Sequence[int]) -> float:
    """The share of two rows of tokens that they have in common, in order.

    It is twice the tokens in matching blocks over all tokens (Ratcliff and Obershelp 1988); where
    a bound above it is less than `ALIKE`, that bound, which is much cheaper.
    """
    match = SequenceMatcher(None, ours, theirs, autojunk=False)
    bound = min(match.real_quick_ratio(), match.quick_ratio())
    return match.ratio() if bound >= ALIKE else bound
