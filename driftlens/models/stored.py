"""A model whose pass is over: what it saw is read from a store, and only its head is kept."""

import gc
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from driftlens.errors import DriftlensError
from driftlens.shards import Shards, ShardWriter

from .hooks import HookedModel
from .model import Edits, Trace, Wants
from .sites import Site
from .tokens import Batch

MARKS, LENGTHS = "marks", "lengths"
"""Tensors of a shard that say which texts it holds, beside one for each site."""


def marks(batch: Batch) -> list[bytes]:
    """[row] the hash of each row's ids, whatever padding stands around them."""
    ids, mask = batch.ids.cpu(), batch.mask.cpu()
    rows = (row[here].numpy() for row, here in zip(ids, mask, strict=True))
    return [sha256(row.tobytes()).digest() for row in rows]


def key_of(batch: Batch, prefix: str) -> str:
    """What the shard of a batch is called: by what it holds, so that none is written twice."""
    return f"{prefix}-{sha256(b''.join(marks(batch))).hexdigest()[:16]}"


def keep(writer: ShardWriter, key: str, trace: Trace, sites: Iterable[Site]) -> None:
    """Put what a model saw of a batch into a store, without what stands on padding.

    Args:
        writer: Of the store.
        key: What to call the shard.
        trace: What the model saw.
        sites: Which of it, of those that were asked for.
    """
    batch = trace.batch
    found = {str(site): trace.activations[site][batch.mask] for site in sites}
    known = np.frombuffer(b"".join(marks(batch)), np.uint8).reshape(len(batch.ids), -1)
    writer.put(
        key, {MARKS: torch.from_numpy(known.copy()), LENGTHS: batch.mask.sum(1).cpu(), **found}
    )


def sites_of(model: HookedModel, wants: Wants) -> tuple[Site, ...]:
    """The sites at which `wants` asks what a model saw, and the end of its last block."""
    return tuple(sorted({*model._sites(wants), model._end}))


class Span(NamedTuple):
    """Where a text lies in a store."""

    key: str
    first: int
    last: int


class Stored:
    """A model whose pass is over: what it saw is read from a store, and only its head is kept.

    Its blocks are freed, which is final. It cannot be resumed, edited or differentiated.

    Args:
        model: The model; of the caller's no longer.
        shards: What it saw.
    """

    def __init__(self, model: HookedModel, shards: Shards) -> None:
        self.model, self.shards = model, shards
        self.name, self.tokenizer, self.source = model.name, model.tokenizer, model.source
        self.depth, self.width, self.context = model.depth, model.width, model.context
        self.causal, self.device, self.dtype = model.causal, model.device, model.dtype
        # Found by running blocks, for the last time.
        self.vocabulary, self.residual_identity = model.vocabulary, model.residual_identity
        self._spans: dict[bytes, list[Span]] = {}
        for key in (key for key in shards.keys if MARKS in shards.shapes(key)):
            ends = shards.tensor(key, LENGTHS).cumsum(0).tolist()
            for mark, first, last in zip(
                shards.tensor(key, MARKS), [0, *ends[:-1]], ends, strict=True
            ):
                self._spans.setdefault(mark.numpy().tobytes(), []).append(Span(key, first, last))
        free(model)

    def has(self, site: Site) -> bool:
        """Whether there is such a place; some blocks have no attention or no MLP of their own."""
        return self.model.has(site)

    def trace(self, batch: Batch, wants: Wants = Wants(), edits: Edits | None = None) -> Trace:
        """What it saw of `batch`; nothing is run.

        Raises:
            DriftlensError: It never saw these texts, or not at these places; or it would have to
                be run for what is asked.
            LoadError: A file of the store is missing or broken.
        """
        if edits or wants.gradients:
            raise self._over("edited" if edits else "differentiated")
        batch = batch.to(self.device)
        sites = sites_of(self.model, wants)
        spans = self._found(batch, [*map(str, sites)])
        streams = {site: self._stream(batch, str(site), spans) for site in sites}
        last = streams[self.model._end]
        rows, tokens = batch.target
        return Trace(batch, last, last[rows, tokens - 1], streams)

    def resume(self, batch: Batch, layer: int, stream: Tensor) -> Tensor:
        """It cannot.

        Raises:
            DriftlensError: Its blocks are freed.
        """
        raise self._over("resumed at a block")

    def readout(self, stream: Tensor, room: Tensor | None = None) -> Tensor:
        """[row, vocab] logits that the model's own head reads from [row, width] last streams."""
        return self.model.readout(stream, room)

    def _found(self, batch: Batch, names: Sequence[str]) -> list[Span]:
        """Where each row lies: all in one shard where they do, as they were read together."""
        every = [
            {span.key: span for span in self._spans.get(mark, ()) if self._holds(span.key, names)}
            for mark in marks(batch)
        ]
        if not all(every):
            raise DriftlensError(
                f"what {self.name} saw of every text at {', '.join(names)}",
                found=f"nothing of {sum(not one for one in every)} of {len(every)} texts in "
                f"{self.shards.folder}",
                remedy="Leave out --two-phase, or begin anew without --resume and --keep-store.",
            )
        together = [key for key in every[0] if all(key in one for one in every)]
        # First the shard of this very batch, for other batches are rounded otherwise.
        same = key_of(batch, "")
        together.sort(key=lambda key: not key.endswith(same))
        return [one[together[0]] if together else next(iter(one.values())) for one in every]

    def _holds(self, key: str, names: Sequence[str]) -> bool:
        return self.shards.shapes(key).keys() >= {*names}

    def _stream(self, batch: Batch, name: str, spans: Sequence[Span]) -> Tensor:
        """[batch, token, width] what was seen at a site; 0 on padding."""
        kept = {key: self.shards.tensor(key, name) for key in {span.key for span in spans}}
        rows = torch.cat([kept[key][first:last] for key, first, last in spans])
        stream = torch.zeros(*batch.mask.shape, rows.shape[-1], dtype=rows.dtype)
        stream[batch.mask.cpu()] = rows
        return stream.to(self.device)

    def _over(self, what: str) -> DriftlensError:
        return DriftlensError(
            f"both models at once, for {self.name} to be {what}",
            found="its blocks freed after its own pass",
            remedy="Leave out --two-phase, or what asks for that.",
        )


def free(model: HookedModel) -> None:
    """Give back the memory of a model's blocks, which then lie on the meta device.

    Raises:
        DriftlensError: They are kept elsewhere too, so that none would be given back.
    """
    if model.hindrance and "offloaded" in model.hindrance:
        raise DriftlensError(
            "blocks that lie in memory, to free them in two phases",
            found=f"{model.name}, with {model.hindrance}",
            remedy="Leave out --two-phase: what is offloaded takes no memory between its turns.",
        )
    for block in model.blocks:
        block.to("meta")
    for weight in model.net.parameters():
        # What is left may be a view of the whole file, and would keep all of it in memory.
        if weight.device.type == "cpu":
            weight.data = weight.data.clone()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def bytes_of(model: HookedModel, sites: Iterable[Site]) -> int:
    """What a token takes in a store."""
    size = torch.finfo(model.dtype).bits // 8
    return sum(model.features(site) for site in sites) * size
