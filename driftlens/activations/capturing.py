"""The run: a model reads texts, and what it holds goes to the disk shard by shard."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from driftlens.budget import out_of_memory
from driftlens.errors import DriftlensError
from driftlens.models import Model, ModelPair, Site
from driftlens.models.tokens import Batch, Encoder, Units, Window
from driftlens.packs import Pack
from driftlens.shards import Shards, ShardWriter

from .captured import ActivationStore
from .index import write_index
from .plan import PLACE, Chunk, Plan

Progress = Callable[[str, int, int], None]


def capture(
    model: Model | ModelPair,
    packs: Sequence[Pack],
    sites: Sequence[str | Site],
    out: str | Path,
    *,
    positions: str = "closing",
    dtype: str = "as-is",
    length: int | None = None,
    rows: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ActivationStore:
    """Keep what a model holds at some places of texts, in a folder that is read without it.

    Each text is read once, and memory does not grow with their number: a shard is written as
    soon as it holds about 64 MiB.

    Args:
        model: Whose states; of a pair, a model beside itself (`ModelPair.alone`).
        packs: What it reads, of any kind; of choices each item with each of its answers.
        sites: Where, as `3.out`, `5.mlp`, `embed` or `blocks.2.hook_resid_post`.
        out: The folder.
        positions: At which tokens; one of `POSITIONS`.
        dtype: What to store; one of `DTYPES`.
        length: The most tokens in a window; a longer text is read in several, and each of its
            tokens kept where it has most context.
        rows: Windows to show at a time; None plans by memory.
        resume: Whether to go on with what an earlier run left; the store is then the same to the
            byte, as long as memory does not run out elsewhere.
        overwrite: Whether a store that stands there may go.
        progress: Told the pack, and how many of its windows of how many are done.

    Raises:
        DriftlensError: Something that is asked for is not there, the disk has too little room,
            states are not finite, or what is to be resumed was made from something else.
    """
    asked: dict[str, Any] = {"positions": positions, "dtype": dtype, "length": length, "rows": rows}
    plan = Plan.of(model, packs, sites, **asked)
    return write(plan, out, resume=resume, overwrite=overwrite, progress=progress)


def write(
    plan: Plan,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ActivationStore:
    """Capture what a plan asks for; see `capture`."""
    out = Path(out)
    about = _taken_up(plan.about, out) if resume else plan.about
    _refuse_small(plan, out, resume, overwrite)
    writer = ShardWriter(out, about, resume=resume, overwrite=overwrite)
    filling = _Filling(plan, writer)
    done = 0
    for chunk in plan.chunks(about["batch"]["tokens"]):
        encoder = plan.encoders[chunk.number]
        done = done if chunk.windows[0] != encoder.plan[0] else 0
        if filling.lacks(chunk.rows):
            for some in _batches(plan, chunk, about["batch"]["tokens"]):
                windows, firsts = [chunk.windows[n] for n in some], chunk.firsts[some]
                for rows, columns in _read(plan, chunk.number, windows, firsts):
                    filling.put(rows, columns)
        done += len(chunk.windows)
        if progress is not None:
            progress(plan.given[chunk.number].name, done, len(encoder.plan))
    if not writer.finished:
        write_index(plan, writer)
        writer.finish()
    return ActivationStore.open(out)


class _Filling:
    """Shards that are being filled; each is written once all of its rows are there."""

    def __init__(self, plan: Plan, writer: ShardWriter) -> None:
        self.plan, self.writer, self.size = plan, writer, plan.shard_rows
        self.missing = {n for n in range(plan.shards) if key_of(n) not in writer.done}
        self.open: dict[int, dict[str, Tensor]] = {}
        self.left: dict[int, int] = {}

    def lacks(self, rows: range) -> bool:
        """Whether a shard that holds some of these rows is still to be written."""
        if not rows:
            return False
        return any(
            n in self.missing for n in range(rows[0] // self.size, rows[-1] // self.size + 1)
        )

    def put(self, rows: np.ndarray, columns: Mapping[str, Tensor]) -> None:
        """Take in some rows by their numbers."""
        for number in np.unique(rows // self.size).tolist():
            if number not in self.missing:
                continue
            mine = np.flatnonzero(rows // self.size == number)
            shard = self._shard(number, columns)
            places = torch.from_numpy(rows[mine] % self.size)
            for name, column in columns.items():
                shard[name][places] = column[torch.from_numpy(mine)]
            self.left[number] -= len(mine)
            if not self.left[number]:
                self.writer.put(key_of(number), self.open.pop(number))
                self.missing.remove(number)

    def _shard(self, number: int, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if number not in self.open:
            rows = min(self.size, self.plan.rows - number * self.size)
            self.open[number] = {
                name: column.new_empty(rows, *column.shape[1:]) for name, column in columns.items()
            }
            self.left[number] = rows
        return self.open[number]


def key_of(number: int) -> str:
    """What a shard is called."""
    return f"{number:06}"


def _batches(plan: Plan, chunk: Chunk, tokens: int) -> Iterator[list[int]]:
    """Numbers of a chunk's windows, those of alike lengths together, the longest first."""
    batch: list[int] = []
    lengths = [window.length for window in chunk.windows]
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        size = len(batch) + 1
        full = (
            size > plan.rows_at_once
            if plan.rows_at_once
            else size * lengths[batch[0]] > tokens
            if batch
            else False
        )
        if batch and full:
            yield batch
            batch = []
        batch.append(number)
    yield batch


def _read(
    plan: Plan, number: int, windows: Sequence[Window], firsts: np.ndarray
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """Rows of some windows by their numbers, halved until they fit into memory."""
    try:
        found = _seen(plan, number, windows, firsts)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        if len(windows) == 1:
            raise DriftlensError(
                f"memory for one window of {windows[0].length} tokens",
                found="less",
                remedy="Give a smaller --max-length, fewer --sites, or a larger device.",
            ) from None
        found = None
    if found is not None:
        yield found
        return
    # Outside the handler, so that the failed pass is freed before the next.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(windows) // 2
    yield from _read(plan, number, windows[:half], firsts[:half])
    yield from _read(plan, number, windows[half:], firsts[half:])


def _seen(
    plan: Plan, number: int, windows: Sequence[Window], firsts: np.ndarray
) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Rows of some windows by their numbers: states by site, and where they stand."""
    encoder, model = plan.encoders[number], plan.model
    batch, _, units = encoder.encode(windows)
    # Nothing is to be predicted: a masked model would be run once for every scored token.
    none = batch.target[0][:0]
    trace = model.trace(replace(batch, target=(none, none), owner=none), plan.wants)
    masks = [plan.chosen(encoder, window) for window in windows]
    chosen = np.flatnonzero(np.concatenate(masks))
    rows = np.concatenate(
        [first + np.arange(mask.sum()) for first, mask in zip(firsts, masks, strict=True)]
    )
    columns = _placed(number, encoder, units, batch, chosen)
    keep = torch.from_numpy(chosen)
    for site in plan.sites:
        states = trace.activations[site]
        lines, tokens = (
            place[keep.to(place.device)].to(states.device) for place in trace.batch.closing
        )
        columns[str(site)] = _stored(
            plan, number, site, states[lines, tokens], units.document[chosen]
        )
    return rows, columns


def _placed(
    number: int, encoder: Encoder, units: Units, batch: Batch, chosen: np.ndarray
) -> dict[str, Tensor]:
    """Where rows stand, as a shard tells it."""
    lines, tokens = (place[torch.from_numpy(chosen)] for place in batch.closing)
    columns = {
        "pack": np.full(len(chosen), number),
        "text": units.document[chosen],
        "position": units.position[chosen],
        "token": batch.ids[lines, tokens].numpy(),
        "start": units.start[chosen],
        "end": units.end[chosen],
        "scored": units.scored[chosen],
    }
    assert tuple(columns) == PLACE
    return {f"at.{name}": torch.from_numpy(z.astype(np.int32)) for name, z in columns.items()}


def _stored(plan: Plan, number: int, site: Site, states: Tensor, documents: np.ndarray) -> Tensor:
    """States as they are stored, on the CPU."""
    stored = states.to(plan.dtype).cpu()
    if bool(stored.isfinite().all()):
        return stored
    at = int((~stored.isfinite().all(-1)).nonzero()[0])
    texts = plan.texts[number]
    where = f"{site} of {plan.model.name}, example {texts.of[documents[at]]} of {texts.pack.name}"
    if bool(states[at].isfinite().all()):
        raise DriftlensError(
            f"states that {str(plan.dtype).removeprefix('torch.')} can hold",
            found=f"larger ones at {where}",
            remedy="Give --dtype-store bfloat16 or float32.",
        )
    raise DriftlensError(
        "finite states",
        found=f"NaN or infinity at {where}",
        remedy="Check that checkpoint, or try --dtype float32.",
    )


def _taken_up(about: dict[str, Any], out: Path) -> dict[str, Any]:
    """What is asked for, with what an earlier run settled: what nothing of it hangs on."""
    try:
        kept = Shards.open(out, unfinished=True).about
    except DriftlensError:
        # The writer says what is missing.
        return about
    if not isinstance(kept, dict) or kept.get("kind") != about["kind"]:
        return about
    # One model may go by several names; and free memory, by which batches are planned, varies.
    model = {**about["model"], "name": kept["model"]["name"]}
    tokens = kept["batch"]["tokens"]
    return {**about, "model": model, "batch": {**about["batch"], "tokens": tokens}}


def _refuse_small(plan: Plan, out: Path, resume: bool, overwrite: bool) -> None:
    """Raise if the disk has less room than is needed, before anything is run."""
    home = next(place for place in (out.resolve(), *out.resolve().parents) if place.exists())
    free = shutil.disk_usage(home).free
    needed = plan.bytes()
    if resume or overwrite:
        # What stands there is kept, or goes first.
        free += sum(path.stat().st_size for path in out.glob("*") if path.is_file())
    if needed > free:
        raise DriftlensError(
            f"{told_bytes(needed)} for {plan.rows} rows at {out}",
            found=f"{told_bytes(free)} free",
            remedy="Name a folder on another disk with --out, fewer --sites, or --positions "
            "closing, or store less with --dtype-store bfloat16.",
        )


def told_bytes(count: int) -> str:
    """Bytes in the unit that suits them."""
    units = ("B", "kB", "MB", "GB", "TB")
    size, place = float(count), 0
    while size >= 1000 and place < len(units) - 1:
        size, place = size / 1000, place + 1
    return f"{size:.3g} {units[place]}"
