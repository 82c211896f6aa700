"""What is to be captured: which texts, which of their tokens, and what room that takes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from driftlens.budget import affordable
from driftlens.errors import DriftlensError
from driftlens.models import EMBED, Model, ModelPair, Site, Wants
from driftlens.models.tokens import Encoder, Window
from driftlens.packs import ANSWERS, REPLIES, TWINS, Example, Pack
from driftlens.shards import SHARD_BYTES

from .known import about_model, about_tokenizer, of_states

POSITIONS = {
    "closing": "the last token of each text, or the first one of a model that fills in masked "
    "tokens: what has read all of the text",
    "last": "the last token of each text",
    "scored": "every token whose likelihood counts",
    "all": "every token, also those that are added before and after a text",
}
"""Which tokens can be captured."""

DTYPES: dict[str, torch.dtype | None] = {
    "as-is": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""What activations can be stored in; None is what the model computes in."""

PLACE = ("pack", "text", "position", "token", "start", "end", "scored")
"""What a shard says of each row beside its states."""

PLACE_BYTES = 4 * len(PLACE)

INDEX_BYTES = 64
"""About what a row takes in the index."""


class Texts(NamedTuple):
    """A pack as the texts that a model reads."""

    pack: Pack
    """What is read: the pack itself, or of choices each item with each of its answers."""

    of: list[int]
    """[text] number of the example, in the pack that was given."""

    choices: list[int | None]
    """[text] number of the answer, of choices."""

    labels: list[int | None]
    """[text] 1 of what is true, safe, wanted or chosen, and 0 of its opposite."""

    clusters: list[int]
    """[text] number of the group, or family of groups, that must not be parted."""

    @classmethod
    def to_read(cls, pack: Pack) -> "Texts":
        """The texts of a pack of any kind."""
        if pack.kind != "choice":
            labels = [_label(pack.kind, one) for one in pack.examples]
            return cls(pack, [*range(len(labels))], [None] * len(labels), labels, pack.clusters)
        clusters = pack.clusters
        every = [
            (number, choice, int(choice in item.wanted), _answered(item, choice))
            for number, item in enumerate(pack.examples)
            for choice in range(len(item.choices))
        ]
        of, choices, labels, texts = (list(column) for column in zip(*every, strict=True))
        shown = Pack(pack.name, "text", texts, pack.card)
        return cls(shown, of, choices, labels, [clusters[number] for number in of])


def _label(kind: str, example: Example) -> int | None:
    if kind == "contrast":
        # What a text says is so if it assents to what is true, or denies its opposite.
        return int((example.role == TWINS[0]) == (example.answer == REPLIES[0]))
    if kind in ("roles", "preference"):
        return int(example.role in (TWINS[0], ANSWERS[0]))
    return None


def _answered(item: Example, choice: int) -> Example:
    text = item.text + item.choices[choice]
    return replace(item, text=text, scored=(len(item.text), len(text)), choices=(), wanted=())


class Chunk(NamedTuple):
    """Windows that are read together, and the rows that they make."""

    number: int
    """Of the pack."""

    windows: list[Window]

    firsts: np.ndarray
    """[window] number of the first row of each."""

    rows: range
    """Numbers of all of its rows."""


@dataclass(frozen=True)
class Plan:
    """What is to be captured of a model.

    Rows stand in the order of packs, of their examples and of tokens in these. Each shard holds
    the same number of rows, the last one fewer.
    """

    model: Model
    given: Sequence[Pack]
    sites: tuple[Site, ...]
    positions: str
    dtype: torch.dtype
    length: int | None
    rows_at_once: int | None
    """Windows to show at a time; None plans by memory."""

    @classmethod
    def of(
        cls,
        model: Model | ModelPair,
        packs: Sequence[Pack],
        sites: Sequence[str | Site],
        *,
        positions: str = "closing",
        dtype: str = "as-is",
        length: int | None = None,
        rows: int | None = None,
    ) -> "Plan":
        """What is asked for, held against the model; see `capture`."""
        model = _one(model)
        _refuse(positions, POSITIONS, "--positions")
        _refuse(dtype, DTYPES, "--dtype-store")
        _refuse_twice(packs)
        own: torch.dtype = getattr(model, "dtype", torch.float32)
        stored = DTYPES[dtype] or own
        return cls(model, packs, _sites(model, sites), positions, stored, length, rows)

    @cached_property
    def texts(self) -> list[Texts]:
        """[pack] what is read of each."""
        return [Texts.to_read(pack) for pack in self.given]

    @cached_property
    def encoders(self) -> list[Encoder]:
        """[pack] its texts as tokens."""
        pair = ModelPair(self.model, self.model)
        return [pair.encoder(texts.pack, self.length) for texts in self.texts]

    def chosen(self, encoder: Encoder, window: Window) -> np.ndarray:
        """[unit] which of the units that count in a window are captured."""
        document = encoder.document(window.example)
        _, fresh, last = document.windows[window.number]
        if self.positions == "all":
            return np.ones(last - fresh, bool)
        if self.positions == "scored":
            return document.scored[fresh:last]
        if self.positions == "closing" and encoder.masked:
            return np.arange(fresh, last) == 0
        return np.arange(fresh, last) == np.flatnonzero(document.start < document.end)[-1]

    @cached_property
    def counts(self) -> list[np.ndarray]:
        """[pack] [window] how many rows each makes."""
        return [
            np.array([self.chosen(encoder, window).sum() for window in encoder.plan], np.int64)
            for encoder in self.encoders
        ]

    @cached_property
    def rows(self) -> int:
        """How many there are."""
        return sum(int(counts.sum()) for counts in self.counts)

    @cached_property
    def widths(self) -> dict[str, int]:
        """For each site its number of features."""
        features = getattr(self.model, "features", lambda _: self.model.width)
        return {str(site): features(site) for site in self.sites}

    @property
    def row_bytes(self) -> int:
        """What a row takes in a shard."""
        return sum(self.widths.values()) * self.dtype.itemsize + PLACE_BYTES

    @property
    def shard_rows(self) -> int:
        """How many rows a shard holds."""
        return max(1, SHARD_BYTES // self.row_bytes)

    @property
    def shards(self) -> int:
        """How many there will be."""
        return -(-self.rows // self.shard_rows)

    def bytes(self, rows: int | None = None) -> int:
        """About what some rows take on the disk, or all of them."""
        return (self.rows if rows is None else rows) * (self.row_bytes + INDEX_BYTES)

    @property
    def left_out(self) -> int:
        """Texts of which nothing is captured, for they have no second token."""
        return sum(encoder.skipped for encoder in self.encoders)

    @property
    def wants(self) -> Wants:
        """What must be seen."""
        within = [site for site in self.sites if site != EMBED]
        return Wants(
            frozenset(site.part for site in within), frozenset(site.layer for site in within)
        )

    @cached_property
    def tokens_at_once(self) -> int:
        """About how many tokens to show at a time; 0 where windows are counted."""
        if self.rows_at_once:
            return 0
        return affordable(ModelPair(self.model, self.model), self.wants)

    def chunks(self, tokens: int) -> Iterator[Chunk]:
        """Windows in order, in pieces that fill a shard and a batch of so many tokens at least."""
        row = 0
        for number, (encoder, counts) in enumerate(zip(self.encoders, self.counts, strict=True)):
            firsts = row + np.cumsum(counts) - counts
            begin = seen = 0
            for end, window in enumerate(encoder.plan, 1):
                seen += window.length
                upto = int(firsts[end - 1] + counts[end - 1])
                full = upto - row >= self.shard_rows and (
                    end - begin >= self.rows_at_once if self.rows_at_once else seen >= tokens
                )
                if full or end == len(counts):
                    some = slice(begin, end)
                    yield Chunk(number, encoder.plan[some], firsts[some], range(row, upto))
                    begin, seen, row = end, 0, upto

    @property
    def about(self) -> dict[str, Any]:
        """What a store of it is made from."""
        return {
            "kind": "activations",
            "model": about_model(self.model),
            **about_tokenizer(self.model.tokenizer),
            "sites": [str(site) for site in self.sites],
            "widths": self.widths,
            "positions": self.positions,
            "dtype": str(self.dtype).removeprefix("torch."),
            "length": self.length,
            "packs": {
                pack.name: {
                    "kind": pack.kind,
                    "examples": len(pack.examples),
                    "sha256": pack.sha256,
                    "texts": len(texts.of),
                    "left_out": encoder.skipped,
                    "rows": int(counts.sum()),
                }
                for pack, texts, encoder, counts in zip(
                    self.given, self.texts, self.encoders, self.counts, strict=True
                )
            },
            "rows": self.rows,
            "shard_rows": self.shard_rows,
            "batch": {"windows": self.rows_at_once, "tokens": self.tokens_at_once},
            "versions": of_states(),
        }


def _one(model: Model | ModelPair) -> Model:
    """The model itself; of a pair, the one that is on both sides."""
    if not isinstance(model, ModelPair):
        return model
    if model.base is not model.aligned:
        raise DriftlensError(
            "one model, whose states are captured",
            found=f"a pair of {model.base.name} and {model.aligned.name}",
            remedy="Pass pair.base or pair.aligned.",
        )
    return model.base


def _sites(model: Model, names: Sequence[str | Site]) -> tuple[Site, ...]:
    """The places that are named, each once and in order.

    What enters a block is what left the one before it, and goes by that name. `all` is what
    leaves each block.
    """
    if [*names] == ["all"]:
        names = [Site(layer) for layer in range(model.depth)]
    found = sorted({_before(Site.of(name)) for name in names})
    if not found:
        raise DriftlensError(
            "a site to capture", found="none", remedy="Give --sites such as 3.out,5.mlp."
        )
    has = getattr(model, "has", lambda site: True)
    for site in found:
        if site.layer >= model.depth:
            raise DriftlensError(
                f"sites of {model.name}, whose blocks are 0 to {model.depth - 1}",
                found=str(site),
                remedy=f"Name one such as {Site(model.depth - 1)}.",
            )
        if not has(site):
            raise DriftlensError(
                f"a place {site} in {model.name}",
                found=f"a block without {site.part}",
                remedy=f"Name another, such as {Site(site.layer)}.",
            )
    return tuple(found)


def _before(site: Site) -> Site:
    return Site(site.layer - 1) if site.part == "in" and site != EMBED else site


def _refuse(name: str, known: Mapping[str, object], option: str) -> None:
    if name not in known:
        raise DriftlensError(
            f"{option} among {', '.join(known)}", found=repr(name), remedy="Give one of these."
        )


def _refuse_twice(packs: Sequence[Pack]) -> None:
    names = [pack.name for pack in packs]
    if not names:
        raise DriftlensError("a pack to show", found="none", remedy="Give --pack or --text.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DriftlensError(
            "packs of different names",
            found=f"{', '.join(twice)} more than once",
            remedy="Rename a file or leave one out.",
        )
