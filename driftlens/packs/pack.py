"""A pack: examples of one kind, from a folder with a card or from a file of the caller's own."""

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from driftlens.errors import DriftlensError

from .choice import CAA, check_choices, choice_example
from .contrast import check_contrasts, contrasts
from .example import ANSWERS, ROLES, SIDES, TWINS, Example, example_of, stereotypes_of
from .prompt import prompt_example
from .roles import check_roles, first_of_roles, role_example
from .rows import Row, contents, decoded, form_of, json_lines, named, rows_of

if TYPE_CHECKING:
    from pandas import DataFrame

KINDS = ("text", "stereotype", "preference", "contrast", "roles", "choice", "prompt")
"""The kinds of pack that this version can ask about."""

STANDARD = (
    *("world", "everyday", "stereotypes", "deeds"),
    *("quiz", "guarded-choices", "openings-choices", "questions", "open"),
)
"""The shipped packs that a report takes when none is named."""


@dataclass(frozen=True)
class Pack:
    """A named set of examples of one kind."""

    name: str
    kind: str
    examples: Sequence[Example]
    card: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Pack {self.name}: {len(self.examples)} examples of kind {self.kind}>"

    def table(self) -> "DataFrame":
        """What is asked, an example a row; what none of them has is left out."""
        from pandas import DataFrame

        rows = [asdict(example) for example in self.examples]
        unset = asdict(Example(""))
        told = [name for name in unset if any(row[name] != unset[name] for row in rows)]
        return DataFrame([{name: row[name] for name in told} for row in rows])

    @property
    def sha256(self) -> str:
        """Hash of what is asked, the same whatever file it came from."""
        digest = hashlib.sha256(self.kind.encode())
        for example in self.examples:
            record: list[Any] = [
                example.text,
                example.scored,
                example.group,
                example.role,
                example.topic,
            ]
            if example.answer or example.form:
                record += [example.answer, example.form]
            if example.family is not None:
                record.append(example.family)
            if example.choices:
                record += [example.choices, example.wanted]
            if example.rules:
                record.append(example.rules)
            if example.reward is not None or example.preferred_by is not None:
                record += [example.reward, example.preferred_by]
            digest.update(json.dumps(record).encode())
        return digest.hexdigest()

    @property
    def clusters(self) -> list[int]:
        """[example] number of the group, or family of groups, that each is resampled with."""
        return self._numbered(family=True)

    @property
    def groups(self) -> list[int]:
        """[example] number of the group that each example belongs to."""
        return self._numbered(family=False)

    def _numbered(self, *, family: bool) -> list[int]:
        numbers: dict[object, int] = {}
        found = []
        for number, one in enumerate(self.examples):
            key: object = ("group", one.group) if one.group is not None else ("alone", number)
            if family and one.family is not None:
                key = "family", one.family
            found.append(numbers.setdefault(key, len(numbers)))
        return found

    def parted(self, families: Set[int]) -> tuple["Pack", "Pack"]:
        """The examples of some families, as `clusters` numbers them, and those of the others."""
        parts: tuple[list[Example], list[Example]] = ([], [])
        for example, family in zip(self.examples, self.clusters, strict=True):
            parts[family not in families].append(example)
        one, other = (Pack(self.name, self.kind, some, self.card) for some in parts)
        return one, other

    def answered(self, answers: Mapping[int, str], by: str = "") -> "Pack":
        """Prompts with answers to them as texts of which the answer is scored.

        Shown to both models, it says what either holds of what one of them answers. As in the
        published protocol the answers are cut into tokens anew.

        Args:
            answers: Texts by the number of the prompt; prompts without one are left out.
            by: Who gave them, for the name of the pack.

        Raises:
            DriftlensError: The pack holds no prompts, or no answer is a text.
        """
        said = {number: text for number, text in answers.items() if text.strip()}
        if self.kind != "prompt" or not said:
            raise DriftlensError(
                "prompts, and a text that answers one of them",
                found=f"{self.name} of kind {self.kind!r}, and {len(said)} answers",
                remedy="Give a pack of kind 'prompt', and answers by the numbers of its prompts.",
            )
        examples = []
        for number, text in sorted(said.items()):
            asked = self.examples[number]
            whole = asked.text + text
            scored = (len(asked.text), len(whole))
            examples.append(Example(whole, scored, asked.group, "", asked.topic))
        name = f"{self.name}, as {by} answers" if by else f"{self.name} answered"
        return Pack(name, "text", examples, self.card)

    def limit(self, count: int | None) -> "Pack":
        """The pack's first `count` examples, with the rest of the last one's group.

        Of preferences, with the other answer of every pair, wherever it stands; of contrasts, the
        first `count` statements, in all that is asked of them and of their opposites; of texts of
        two roles, whole pairs, or as many of either role.
        """
        if count is None or count >= len(self.examples):
            return self
        if count < 1:
            raise DriftlensError(
                "a limit of at least 1 example", found=str(count), remedy="Give --limit 1 or more."
            )
        examples = self.examples
        if self.kind == "roles":
            return Pack(self.name, self.kind, first_of_roles(examples, count), self.card)
        if self.kind == "contrast":
            first = set(sorted(set(self.groups))[: -(-count // len(TWINS))])
            kept = zip(examples, self.groups, strict=True)
            return Pack(self.name, self.kind, [e for e, g in kept if g in first], self.card)
        if self.kind == "preference":
            begun = {example.group for example in examples[:count]}
            whole = [example for example in examples if example.group in begun]
            return Pack(self.name, self.kind, whole, self.card)
        last = examples[count - 1].group
        while last is not None and count < len(examples) and examples[count].group == last:
            count += 1
        return Pack(self.name, self.kind, examples[:count], self.card)

    @classmethod
    def load(cls, folder: str | Path) -> "Pack":
        """Read the pack that lies in `folder`, or the one that ships under that name.

        Raises:
            DriftlensError: No such pack, a card or a line that cannot be read, a kind that this
                version does not know, or examples that are not those of the card.
        """
        folder = _find(Path(folder))
        card, body = _card(folder / "card.toml"), contents(folder / "examples.jsonl")
        name = f"{folder.name}/examples.jsonl"
        _refuse_other_examples(name, card, body)
        rows = [*json_lines(name, decoded(name, body))]
        return checked(cls(folder.name, card["kind"], _made(card["kind"], name, rows, card), card))

    @classmethod
    def of(
        cls,
        rows: str | Iterable[str | Mapping[str, Any]],
        name: str = "given",
        card: Mapping[str, Any] | None = None,
    ) -> "Pack":
        """A pack of what is at hand: texts, or rows with the fields of a file's (see `read`).

        Args:
            rows: Texts, or what stands in each row; a text alone is one document.
            name: What to call it.
            card: What a shipped pack's card would say, as `forms` of contrasts.

        Raises:
            DriftlensError: There are none, or a field of one is broken.
        """
        rows = [rows] if isinstance(rows, str | Mapping) else list(rows)
        if strange := [row for row in rows if not isinstance(row, str | Mapping)]:
            raise DriftlensError(
                "texts, or rows with the fields of a file's",
                found=repr(strange[0])[:60],
                remedy='Give Pack.of(["a text", …]) or Pack.of([{"prompt": …, …}, …]).',
            )
        found = [
            (f"row {number} of {name}", {"text": row} if isinstance(row, str) else dict(row))
            for number, row in enumerate(rows, 1)
        ]
        return cls._of_rows(name, name, found, card or {})

    @classmethod
    def read(cls, file: str | Path, name: str | None = None) -> "Pack":
        """Read a file of text: plain, JSONL or Parquet, gzipped or not; `-` is standard input.

        Plain text is cut into documents at blank lines. A JSONL or Parquet row holds a `text`
        (and may hold `scored`, `group`, `role`, `topic`), or a StereoSet triple (`stereotype`,
        `anti_stereotype`, `unrelated`), or a CrowS-Pairs pair (`sent_more`, `sent_less`), or
        one of two opposites (`pair_id`, `polarity`, `statement`), or a text of one of two roles
        (`polarity`, `prompt` and perhaps `response` and `pair_id`), or a choice (`prompt`,
        `agree`, `refuse`; or `prompt`, `right`, `wrong`; or `question`, `choices`, `answer`; or as
        published with contrastive activation addition), or a `prompt` alone, which is to be
        answered (and perhaps the `answers` that are right, and `rules` for them). The CSV in
        which opposites were published is read as it is. What a file holds is told by its name; of
        standard input, by how it begins.

        Raises:
            LoadError: The file is missing or cannot be read.
            DriftlensError: It is empty, binary, not UTF-8, or a line or field of it is broken.
        """
        file, raw = str(file), contents(file)
        name, form = name or named(file), form_of(file, raw)
        if form == "plain":
            return checked(cls(name, "text", _paragraphs(decoded(file, raw))))
        return cls._of_rows(name, file, rows_of(file, raw, form), {})

    @classmethod
    def _of_rows(
        cls, name: str, source: str, rows: Sequence[Row], card: Mapping[str, Any]
    ) -> "Pack":
        kind = _kind(rows)
        if kind == "stereotype":
            groups = (stereotypes_of(number, *row) for number, row in enumerate(rows))
            examples = [example for group in groups for example in group]
        else:
            examples = _made(kind, source, rows, card)
        return checked(cls(name, kind, examples, card))


def _made(kind: str, name: str, rows: Sequence[Row], card: Mapping[str, Any]) -> list[Example]:
    """The examples that rows in our own layout make."""
    if kind == "contrast":
        return contrasts(name, rows, card)
    if kind == "roles":
        return [role_example(*row) for row in rows]
    if kind == "choice":
        return [choice_example(*row, card) for row in rows]
    if kind == "prompt":
        return [prompt_example(*row) for row in rows]
    return [example_of(*row) for row in rows]


def shipped() -> Path:
    """Where the packs lie: inside the package in a wheel, beside it in a checkout."""
    inside = Path(__file__).parents[1] / "probes"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "probes"


def names() -> list[str]:
    """The names of the shipped packs."""
    return sorted(path.parent.name for path in shipped().glob("*/card.toml"))


def checked(pack: Pack) -> Pack:
    """The pack itself.

    Raises:
        DriftlensError: Its kind is unknown, it holds no text, or its groups are not those of
            its kind.
    """
    if pack.kind not in KINDS:
        raise DriftlensError(
            f"a pack of kind {' or '.join(KINDS)}",
            found=f"{pack.name} of kind {pack.kind!r}",
            remedy="See `driftlens packs` for those that this version can ask.",
        )
    if not any(example.text.strip() for example in pack.examples):
        raise DriftlensError(
            "text to show to the models",
            found=f"{pack.name} without any",
            remedy="Give a file with at least one line of text.",
        )
    if pack.kind == "stereotype":
        _check_groups(pack)
    if pack.kind == "preference":
        _check_pairs(pack)
    if pack.kind == "contrast":
        check_contrasts(pack.name, pack.examples)
    if pack.kind == "roles":
        check_roles(pack.name, pack.examples)
    if pack.kind == "choice":
        check_choices(pack.name, pack.examples)
    return pack


def _check_groups(pack: Pack) -> None:
    """Raise unless some group has both sides, and those that do are all triples or all pairs."""
    roles: dict[object, list[str]] = {}
    for example in pack.examples:
        roles.setdefault(example.group, []).append(example.role)
    for group, held in roles.items():
        if len(set(held)) < len(held) or not set(held) <= set(ROLES):
            raise DriftlensError(
                f"one sentence a role in each group of {pack.name}, of {', '.join(ROLES)}",
                found=f"{', '.join(role or 'no role' for role in held)} in group {group!r}",
                remedy="Give each triple a `group` of its own, and each sentence its `role`.",
            )
    whole = {group: held for group, held in roles.items() if set(held) >= SIDES}
    if not whole:
        raise DriftlensError(
            f"a stereotype and its opposite in a group of {pack.name}",
            found="no group with both",
            remedy="Give the sentences that belong together the same `group`.",
        )
    pairs = [group for group, held in whole.items() if "unrelated" not in held]
    if 0 < len(pairs) < len(whole):
        raise DriftlensError(
            f"an unrelated sentence in every group of {pack.name}, or in none",
            found=f"none in {len(pairs)} of {len(whole)} groups, as in group {pairs[0]!r}",
            remedy="Add one to each, or put triples and pairs into packs of their own.",
        )


def _check_pairs(pack: Pack) -> None:
    """Raise unless each group holds two answers to one prompt, one chosen and one rejected."""
    groups: dict[object, list[Example]] = {}
    for example in pack.examples:
        groups.setdefault(example.group, []).append(example)
    for group, held in groups.items():
        roles = [example.role for example in held]
        if group is None or sorted(roles) != sorted(ANSWERS):
            raise DriftlensError(
                f"one chosen and one rejected answer in each group of {pack.name}",
                found=f"{', '.join(role or 'no role' for role in roles)} in group {group!r}",
                remedy="Give each pair a `group` of its own, and each answer its `role`.",
            )
        spans = [example.scored or (0, len(example.text)) for example in held]
        for example, (first, last) in zip(held, spans, strict=True):
            if not example.text[first:last].strip():
                raise DriftlensError(
                    f"an answer of at least one word in each example of {pack.name}",
                    found=f"none in the one {example.role} in group {group!r}",
                    remedy="Leave such a pair out, or let `scored` hold its answer.",
                )
        if len({example.text[:first] for example, (first, _) in zip(held, spans, strict=True)}) > 1:
            raise DriftlensError(
                f"one prompt before both answers of each group of {pack.name}",
                found=f"two in group {group!r}",
                remedy="Let `scored` begin where the texts of the pair part, or before.",
            )


def _find(folder: Path) -> Path:
    for place in (folder, shipped() / folder):
        if (place / "card.toml").is_file() and (place / "examples.jsonl").is_file():
            return place
    raise DriftlensError(
        f"a pack named {folder}, or a folder with card.toml and examples.jsonl",
        found="neither",
        remedy=f"Give a folder that holds one, or one of: {', '.join(names())}.",
    )


def _card(path: Path) -> dict[str, Any]:
    try:
        card = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DriftlensError(
            "a card in TOML", found=f"{path.name} of {path.parent.name}: {error}", remedy="Mend it."
        ) from None
    if not isinstance(card.get("kind"), str):
        raise DriftlensError(
            "a card that names its kind",
            found=f"{path.parent.name}/card.toml without one",
            remedy='Add a line such as kind = "text".',
        )
    return card


def _refuse_other_examples(name: str, card: Mapping[str, Any], body: bytes) -> None:
    """Raise if the card tells of other examples than these."""
    found = hashlib.sha256(body).hexdigest()
    if card.get("sha256", found) != found:
        raise DriftlensError(
            f"{name} with the sha256 that its card names, {str(card['sha256'])[:12]}…",
            found=f"{found[:12]}…",
            remedy="Restore the examples, or write their own sha256 into the card.",
        )


def _paragraphs(text: str) -> list[Example]:
    examples: list[Example] = []
    lines: list[str] = []
    # Not splitlines: form feeds and the like are characters of the text.
    for line in [*text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), ""]:
        if line.strip():
            lines.append(line)
        elif lines:
            examples.append(Example("\n".join(lines)))
            lines = []
    return examples


LAYOUTS = {
    ("polarity", "prompt"): "roles",
    ("pair_id", "polarity"): "contrast",
    ("text",): "text",
    ROLES: "stereotype",
    ("sent_more", "sent_less"): "stereotype",
    ("prompt", "agree", "refuse"): "choice",
    ("prompt", "right", "wrong"): "choice",
    CAA: "choice",
    ("question", "choices", "answer"): "choice",
    ("prompt",): "prompt",
}
"""Fields by which a row is known, and the kind of pack that such rows make."""


def _kind(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The kind of pack that the rows of a file make; all must be of the first one's layout."""
    first = None
    for where, record in rows:
        if set(ANSWERS) <= record.keys():
            raise _preferences(where)
        fields = next((fields for fields in LAYOUTS if set(fields) <= record.keys()), None)
        if fields is None or fields != (first or fields):
            wanted = [first] if first else LAYOUTS
            raise DriftlensError(
                f"{' or '.join(', '.join(f'`{n}`' for n in names) for names in wanted)} on {where}"
                + (", as on the rows before" if first else ""),
                found=f"fields {', '.join(map(repr, record)) or 'none'}",
                remedy="Rename the fields, or put rows of another layout into a file of their own.",
            )
        first = fields
    return LAYOUTS[first] if first else "text"


def _preferences(where: str) -> DriftlensError:
    return DriftlensError(
        f"text to compare two models on, on {where}",
        found="a chosen and a rejected answer",
        remedy="Give preferences to `driftlens check`, with --preferences.",
    )
