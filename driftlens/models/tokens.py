"""From text to token ids, and back to units that two tokenizers share.

A *unit* is the shortest run of text that both tokenizers cut at its end. Where both cut a
document into the same tokens, as they nearly always do, units are tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from driftlens.errors import DriftlensError
from driftlens.packs import ANSWERS, Pack

Place = tuple[Tensor, Tensor]
"""Row and token numbers of some places in a batch."""


@dataclass(frozen=True)
class Batch:
    """Texts as one model's token ids."""

    ids: Tensor
    """[batch, token] token ids."""

    mask: Tensor
    """[batch, token] true where a token stands, false on padding."""

    closing: Place
    """[unit] the token at which each unit has been read."""

    target: Place
    """[scored token] the tokens whose likelihood counts."""

    owner: Tensor
    """[scored token] number, among the scored units, of the unit that each belongs to."""

    @cached_property
    def positions(self) -> Tensor:
        """[batch, token] place of each token in its row, from 0, padding not counted."""
        if bool(self.mask[:, 0].all()):
            # Counting on over the padding keeps the row free of what looks like a second text.
            return torch.arange(self.ids.shape[1], device=self.ids.device).expand_as(self.ids)
        return (self.mask.cumsum(1) - 1).clamp(min=0)

    @property
    def targets(self) -> Tensor:
        """[scored token] the ids whose likelihood counts."""
        return self.ids[self.target]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        if self.ids.device == torch.device(device):
            return self
        closing, target = ((r.to(device), t.to(device)) for r, t in self._places)
        ids, mask, owner = (t.to(device) for t in (self.ids, self.mask, self.owner))
        return Batch(ids, mask, closing, target, owner)

    def padded_left(self) -> "Batch":
        """The same batch with its padding on the left."""
        width = self.ids.shape[1]
        shift = width - self.mask.sum(1)
        source = (torch.arange(width) - shift[:, None]) % width
        closing, target = ((rows, tokens + shift[rows]) for rows, tokens in self._places)
        ids, mask = self.ids.gather(1, source), self.mask.gather(1, source)
        return Batch(ids, mask, closing, target, self.owner)

    def row(self, number: int) -> "Batch":
        """One row alone, without its padding."""
        first, width = int(self.mask[number].long().argmax()), int(self.mask[number].sum())
        closing, target = ((r[r == number] * 0, t[r == number] - first) for r, t in self._places)
        owner = self.owner[self.target[0] == number]
        here = slice(number, number + 1), slice(first, first + width)
        return Batch(self.ids[here], self.mask[here], closing, target, owner)

    def repeated(self, times: int) -> "Batch":
        """All rows, and then all of them again, so many times."""

        def counted(numbers: Tensor, count: int) -> Tensor:
            shift = torch.arange(times, device=numbers.device).repeat_interleave(len(numbers))
            return numbers.repeat(times) + shift * count

        closing, target = (
            (counted(rows, len(self.ids)), tokens.repeat(times)) for rows, tokens in self._places
        )
        units = int(self.owner.max()) + 1 if len(self.owner) else 0
        ids, mask = self.ids.repeat(times, 1), self.mask.repeat(times, 1)
        return Batch(ids, mask, closing, target, counted(self.owner, units))

    def without(self, rows: Tensor, tokens: Tensor, last: Tensor) -> "Batch":
        """For each of some tokens a copy of its row that leaves out what follows, up to another.

        Args:
            rows: [copy] number of the row.
            tokens: [copy] the token that is scored in the copy, and the last before the gap.
            last: [copy] the last token that is left out.
        """
        widths = self.mask.sum(1).tolist()
        copies = [
            torch.cat([self.ids[row, : token + 1], self.ids[row, end + 1 : widths[row]]])
            for row, token, end in zip(*map(Tensor.tolist, (rows, tokens, last)), strict=True)
        ]
        ids = torch.nn.utils.rnn.pad_sequence(copies, batch_first=True)
        lengths = torch.tensor([len(copy) for copy in copies], device=ids.device)
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        number = torch.arange(len(copies), device=ids.device)
        return Batch(ids, mask, (number[:0], number[:0]), (number, tokens), number)

    @property
    def _places(self) -> tuple[Place, Place]:
        return self.closing, self.target


@dataclass(frozen=True)
class Units:
    """Where the units of a batch stand in their documents."""

    document: np.ndarray
    """[unit] number of the example in its pack."""

    position: np.ndarray
    """[unit] place in the document, from 0; an added beginning-of-text token is place 0."""

    start: np.ndarray
    """[unit] first character."""

    end: np.ndarray
    """[unit] last character, plus one."""

    characters: np.ndarray
    """[unit] characters of text that the unit adds."""

    bytes: np.ndarray
    """[unit] the same in bytes of UTF-8."""

    scored: np.ndarray
    """[unit] whether its likelihood counts: something precedes it, and its example scores it."""

    def of_scored(self) -> "Units":
        """The scored units alone."""
        return Units(*(getattr(self, name)[self.scored] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Window:
    """A stretch of one document, as long as both models can read at once."""

    example: int
    number: int
    length: int


@dataclass(frozen=True)
class Side:
    """One tokenizer's view of a document."""

    ids: np.ndarray
    closing: np.ndarray
    """[unit] the token that closes each unit."""

    prefix: int
    """How many added tokens (beginning of text) come first; every window starts with them."""

    suffix: int
    """How many added tokens must end every window (only masked models have them)."""

    begin: int
    """The first token that can be scored: what continues a text needs one before it."""


@dataclass(frozen=True)
class Document:
    """One example as both models' tokens, cut into units and windows."""

    sides: tuple[Side, Side]
    same: bool
    """Whether both tokenizers cut it into the same tokens."""

    start: np.ndarray
    end: np.ndarray
    bytes: np.ndarray
    scored: np.ndarray
    windows: tuple[tuple[int, int, int], ...]
    """First unit, first fresh unit and last-plus-one unit of each window."""

    @property
    def characters(self) -> np.ndarray:
        """[unit] characters of text that each unit adds."""
        return np.diff(self.end, prepend=0)


class Encoder:
    """A pack as the tokens of both models, a few windows at a time.

    Args:
        pack: What is shown; preferences in pairs of a chosen and a rejected answer, as
            `driftlens.packs.checked` holds them to.
        tokenizers: Those of base and aligned.
        length: The most tokens that a window may have. A longer document is read in windows that
            overlap by half, and each of its units counts once, where it has most context. Of
            preferences, whose answers count whole or not at all, a longer one is left out with
            the other of its pair.
        masked: Whether the models fill in masked tokens instead of continuing the text.

    Raises:
        DriftlensError: Nothing can be scored, no window holds what must be in one, or the
            tokenizer of a masked model lacks the token that masks or the one that pads.
    """

    def __init__(
        self, pack: Pack, tokenizers: tuple[Any, ...], length: int, *, masked: bool = False
    ) -> None:
        if masked:
            _check_masking(tokenizers)
        self.pack, self.tokenizers, self.length, self.masked = pack, tokenizers, length, masked
        self.alike = alike(*tokenizers)
        # A model that continues text can score a first token only if something precedes it; the
        # published stereotype scores start every sentence from the beginning-of-text token.
        self.begin = pack.kind == "stereotype" and not masked
        self.paired = pack.kind == "preference"
        self.document = lru_cache(maxsize=64)(self._document)
        self.same, self.windowed, self.skipped = True, 0, 0
        self.plan: list[Window] = []
        self.tokens = 0
        for numbers in self._together():
            documents = [self._document(number) for number in numbers]
            if not all(self._countable(document) for document in documents):
                self.skipped += len(numbers)
                continue
            for number, document in zip(numbers, documents, strict=True):
                self.same &= document.same
                self.windowed += len(document.windows) > 1
                self.tokens += len(document.start)
                for w, (first, _, last) in enumerate(document.windows):
                    sizes = [_length(side, first, last) for side in document.sides]
                    self.plan.append(Window(number, w, max(sizes)))
        if not self.plan:
            raise self._nothing()

    def batches(self, tokens: int, rows: int | None = None) -> list[list[Window]]:
        """The plan in batches of alike lengths, of about `tokens` tokens or exactly `rows` rows.

        The two answers of a preference follow one another in one batch, the chosen one first,
        so that a batch holds one pair at least, and never half of one.
        """
        step = 2 if self.paired else 1
        pieces = [self.plan[first : first + step] for first in range(0, len(self.plan), step)]
        batches: list[list[Window]] = []
        widest = 0
        for piece in sorted(pieces, key=_order):
            size = len(batches[-1]) + step if batches else 0
            if not batches or (size > rows if rows else size * widest > tokens):
                batches.append([])
                widest = max(window.length for window in piece)
            batches[-1] += piece
        return batches

    def encode(self, windows: Sequence[Window]) -> tuple[Batch, Batch, Units]:
        """The windows as both models' batches, and where their units stand."""
        documents = [self.document(w.example) for w in windows]
        cuts = [d.windows[w.number] for d, w in zip(documents, windows, strict=True)]
        scored = [d.scored[fresh:last] for d, (_, fresh, last) in zip(documents, cuts, strict=True)]
        sides = [
            _batch([d.sides[side] for d in documents], cuts, scored, self._pad(side))
            for side in (0, 1)
        ]
        names = ("start", "end", "characters", "bytes", "scored")
        pieces = [
            (
                np.full(last - fresh, w.example),
                np.arange(fresh, last),
                *(getattr(d, name)[fresh:last] for name in names),
            )
            for w, d, (_, fresh, last) in zip(windows, documents, cuts, strict=True)
        ]
        units = Units(*(np.concatenate(column) for column in zip(*pieces, strict=True)))
        return sides[0], sides[1], units

    def texts(self, documents: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """[unit] text of each unit; an added token goes by its name in the vocabulary."""
        found = np.empty(len(documents), dtype=object)
        for row, (number, position) in enumerate(zip(documents, positions, strict=True)):
            document = self.document(int(number))
            start, end = document.start[position], document.end[position]
            found[row] = self.pack.examples[number].text[start:end]
            if start >= end:
                side = document.sides[0]
                token = int(side.ids[side.closing[position]])
                found[row] = self.tokenizers[0].convert_ids_to_tokens(token)
        return found

    def _together(self) -> list[list[int]]:
        """Numbers of the examples that are shown together or not at all."""
        if not self.paired:
            return [[number] for number in range(len(self.pack.examples))]
        pairs: dict[object, list[int]] = {}
        for number, example in enumerate(self.pack.examples):
            pairs.setdefault(example.group, []).append(number)
        of = {role: place for place, role in enumerate(ANSWERS)}
        return [sorted(p, key=lambda n: of[self.pack.examples[n].role]) for p in pairs.values()]

    def _countable(self, document: Document) -> bool:
        """Whether it has something to score, and fits if it must not be cut."""
        units = len(document.start)
        fits = not self.paired or all(
            _length(side, 0, units) <= self.length for side in document.sides if units
        )
        return fits and bool(document.scored.any())

    def _nothing(self) -> DriftlensError:
        documents = f"none in {self.pack.name} ({len(self.pack.examples)} documents)"
        if self.paired:
            return DriftlensError(
                f"a pair of answers of which neither has more than {self.length} tokens with its "
                "prompt, nor less than one that something precedes",
                found=documents,
                remedy="Give a larger --max-length, or shorter pairs.",
            )
        return DriftlensError(
            "text of at least two tokens that both tokenizers cut at common places",
            found=documents,
            remedy="Give longer text, or models with related tokenizers.",
        )

    def _document(self, number: int) -> Document:
        example = self.pack.examples[number]
        base = _tokens(self.tokenizers[0], example.text, self.begin)
        aligned = base
        if not self.alike:
            aligned = _tokens(self.tokenizers[1], example.text, self.begin)
        same = self.alike or _names(self.tokenizers[0], base) == _names(self.tokenizers[1], aligned)
        if same:
            everything = np.arange(len(base.ids))
            closings, ends, starts = [everything, everything], base.ends, base.starts
        else:
            closings, ends = _shared(base.text_ends, aligned.text_ends)
            starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
        sides = [self._side(*both) for both in zip((base, aligned), closings, strict=True)]
        first, last = example.scored or (-1, len(example.text))
        scored = (ends > first) & (ends <= last)
        if same:
            scored[: sides[0].begin] = False
            scored[len(scored) - sides[0].suffix :] = False
        else:
            scored[:1] &= all(side.begin <= side.prefix for side in sides)
        return Document(
            (sides[0], sides[1]),
            same,
            starts,
            ends,
            _bytes(example.text, ends),
            scored,
            self._cuts(sides, len(ends)),
        )

    def _cuts(self, sides: Sequence[Side], units: int) -> tuple[tuple[int, int, int], ...]:
        if self.paired:
            return ((0, 0, units),)
        return tuple(_windows(sides, self.length, units))

    def _side(self, row: "_Tokens", closing: np.ndarray) -> Side:
        if self.masked:
            # Added tokens are no text; every other can be masked in its turn.
            return Side(row.ids, closing, row.prefix, row.suffix, row.prefix)
        return Side(row.ids, closing, row.prefix, 0, max(row.prefix, 1))

    def _pad(self, side: int) -> int:
        """An id for padding. Where a mask hides it, 0 will do, and every model knows it."""
        return self.tokenizers[side].pad_token_id if self.masked else 0


@dataclass(frozen=True)
class _Tokens:
    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    prefix: int
    suffix: int

    @property
    def text_ends(self) -> np.ndarray:
        """[token] where each ends, without those that were added after the text."""
        return self.ends[: len(self.ends) - self.suffix]


def alike(base: Any, aligned: Any) -> bool:
    """Whether two tokenizers are one, so that one pass over the text serves both."""
    if base is aligned:
        return True
    ours, theirs = (getattr(t, "backend_tokenizer", None) for t in (base, aligned))
    return ours is not None and theirs is not None and ours.to_str() == theirs.to_str()


class Continuation(NamedTuple):
    """How a text goes on after a prompt."""

    before: tuple[int, ...]
    """[token] ids up to the one in which the answer begins."""

    first: int
    """The id of that one."""

    end: int
    """The character of the whole text at which it ends."""


def continuation(tokenizer: Any, prompt: str, answer: str) -> Continuation:
    """The first token of an answer, where prompt and answer are read as one text.

    A token that holds the end of the prompt as well is the answer's.
    """
    row = _tokens(tokenizer, prompt + answer, False)
    place = int(np.argmax(row.ends > len(prompt)))
    return Continuation(tuple(row.ids[:place].tolist()), int(row.ids[place]), int(row.ends[place]))


def opening(tokenizer: Any, text: str) -> tuple[int, ...]:
    """[token] ids of a text that is to go on: without what is added behind a whole one."""
    row = _tokens(tokenizer, text, False)
    return tuple(row.ids[: len(row.ids) - row.suffix].tolist())


def shared_vocabulary(
    base: Any, aligned: Any, sizes: tuple[int, int]
) -> tuple[Tensor, Tensor] | None:
    """Ids of base and of aligned that stand for the same token string; None if all do.

    Args:
        base: The base model's tokenizer.
        aligned: The aligned model's.
        sizes: How many logits each model gives.
    """
    ours, theirs = base.get_vocab(), aligned.get_vocab()
    if ours == theirs and sizes[0] == sizes[1]:
        return None
    common = sorted(
        (i, theirs[token])
        for token, i in ours.items()
        if token in theirs and i < sizes[0] and theirs[token] < sizes[1]
    )
    if len(common) == sizes[0] == sizes[1] and all(i == j for i, j in common):
        return None
    ids = torch.tensor(common).reshape(-1, 2)
    return ids[:, 0], ids[:, 1]


def _check_masking(tokenizers: Sequence) -> None:
    for side, tokenizer in zip(("base", "aligned"), tokenizers, strict=True):
        for name in ("mask_token", "pad_token"):
            if getattr(tokenizer, f"{name}_id") is None:
                raise DriftlensError(
                    f"a {name} in the tokenizer of {side}, a masked model",
                    found="none",
                    remedy=f"Set tokenizer.{name} to the one that the model was trained with.",
                )


def _tokens(tokenizer: Any, text: str, begin: bool) -> _Tokens:
    row = tokenizer(
        text,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_token_type_ids=False,
        truncation=False,
        verbose=False,
    )
    ids, special = list(row["input_ids"]), np.array(row["special_tokens_mask"], dtype=bool)
    spans = np.array(row["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    prefix = int(np.argmin(special)) if not special.all() else len(special)
    suffix = 0 if special.all() else int(np.argmin(special[::-1]))
    if begin and not prefix and tokenizer.bos_token_id is not None:
        ids, prefix = [tokenizer.bos_token_id, *ids], 1
        spans = np.concatenate([[[0, 0]], spans])
    # What ends a text stands after its last character, not at 0 as tokenizers say.
    spans[len(ids) - suffix :] = len(text)
    starts, ends = spans[:, 0], np.maximum.accumulate(spans[:, 1])
    return _Tokens(np.array(ids, dtype=np.int32), starts, ends, prefix, suffix)


def _names(tokenizer: Any, row: _Tokens) -> list[str]:
    return tokenizer.convert_ids_to_tokens(row.ids.tolist())


def _shared(base: np.ndarray, aligned: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The tokens that close each shared unit on both sides, and where the units end."""
    ends = np.intersect1d(base, aligned)
    ends = ends[ends > 0]
    # Several tokens may end at one character (the bytes of an emoji): the last one closes it.
    closings = [np.searchsorted(side, ends, side="right") - 1 for side in (base, aligned)]
    return closings, ends


def _bytes(text: str, ends: np.ndarray) -> np.ndarray:
    """[unit] bytes of UTF-8 between the ends of one unit and the next."""
    upto = np.zeros(len(text) + 1, dtype=np.int64)
    upto[1:] = np.cumsum([len(c.encode("utf-8", "surrogatepass")) for c in text])
    return np.diff(upto[ends], prepend=0)


def _order(piece: Sequence[Window]) -> tuple[int, int, int]:
    """By which pieces of the plan are shown: the longest first."""
    return -max(window.length for window in piece), piece[0].example, piece[0].number


def _length(side: Side, first: int, last: int) -> int:
    lead = side.closing[first - 1] + 1 if first else 0
    stop = side.closing[last - 1] + 1
    added = (side.prefix if first else 0) + (side.suffix if stop < len(side.ids) else 0)
    return int(stop - lead) + added


def _windows(sides: Sequence[Side], room: int, units: int) -> Iterator[tuple[int, int, int]]:
    """First, first fresh and last-plus-one unit of each window of at most `room` tokens."""
    first = fresh = 0
    # A unit can open a window if added tokens precede it there.
    opens = all(side.begin <= side.prefix for side in sides)
    while fresh < units:
        last = _furthest(sides, room, first, fresh, units)
        if last == fresh > first and opens:
            first = fresh
            continue
        if last == fresh or (0 < first == fresh and not opens):
            raise DriftlensError(
                f"windows that can hold the longest unit ({room} tokens are allowed)",
                found="a unit that is longer, with what precedes it",
                remedy="Give a larger --max-length.",
            )
        yield first, fresh, last
        fresh, first = last, max(first + 1, last - max(1, (last - first) // 2))


def _furthest(sides: Sequence[Side], room: int, first: int, fresh: int, units: int) -> int:
    """The last-plus-one unit of the longest window from `first`, by bisection."""
    low, high = fresh, units
    while low < high:
        middle = (low + high + 1) // 2
        if all(_length(side, first, middle) <= room for side in sides):
            low = middle
        else:
            high = middle - 1
    return low


def _batch(
    sides: Sequence[Side],
    cuts: Sequence[tuple[int, int, int]],
    scored: Sequence[np.ndarray],
    pad: int,
) -> Batch:
    rows, closing, target, owner = [], [], [], []
    units = 0
    for number, (side, (first, fresh, last), counts) in enumerate(
        zip(sides, cuts, scored, strict=True)
    ):
        lead = side.closing[first - 1] + 1 if first else 0
        stop = side.closing[last - 1] + 1
        ids = side.ids[lead:stop]
        shift = -lead
        if first:
            ids = np.concatenate([side.ids[: side.prefix], ids])
            shift += side.prefix
        if side.suffix and stop < len(side.ids):
            ids = np.concatenate([ids, side.ids[-side.suffix :]])
        rows.append(ids)
        ends = side.closing[fresh:last]
        begins = np.concatenate([[side.closing[fresh - 1] if fresh else -1], ends[:-1]]) + 1
        closing.append(_at(number, ends + shift))
        mine = np.flatnonzero(counts)
        tokens, owners = _spread(begins[mine], ends[mine] + 1)
        # Added tokens have no likelihood, even inside a longer unit.
        keep = tokens >= side.begin
        target.append(_at(number, tokens[keep] + shift))
        owner.append(owners[keep] + units)
        units += len(mine)
    width = max(map(len, rows))
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = True
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(mask),
        _place(closing),
        _place(target),
        torch.from_numpy(np.concatenate(owner)),
    )


def _spread(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every whole number of each range [first, last), and the number of its range."""
    lengths = last - first
    owner = np.repeat(np.arange(len(first)), lengths)
    return np.arange(lengths.sum()) - (np.cumsum(lengths) - lengths - first)[owner], owner


def _at(row: int, tokens: np.ndarray) -> np.ndarray:
    return np.stack([np.full(len(tokens), row), tokens])


def _place(pieces: list[np.ndarray]) -> Place:
    rows, tokens = torch.from_numpy(np.concatenate(pieces, axis=1).astype(np.int64))
    return rows, tokens
