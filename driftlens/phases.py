"""One model after the other: the base's pass first, kept in a store that the aligned's reads."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from hashlib import sha256
from operator import or_
from pathlib import Path
from typing import Any, get_type_hints

import torch

from . import doctor, suite
from .budget import affordable, out_of_memory
from .doctor import Floors
from .errors import DriftlensError
from .metric import Metric
from .models import ModelPair, Wants
from .models.hooks import HookedModel
from .models.load import Apart
from .models.placement import gigabytes
from .models.stored import Stored, bytes_of, keep, key_of, sites_of
from .models.tokens import Encoder, Window
from .packs import Pack
from .results import Check
from .shards import MANIFEST, Shards, ShardWriter
from .versions import versions

FOUND = "found"
"""The shard with what was found of the base model, as the bytes of JSON."""

TOGETHER = "both models at once"
"""The gate that says what two phases leave out."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Phases:
    """What the base's pass has left for the aligned's."""

    pair: ModelPair
    """The stored base beside the live aligned model."""

    checks: list[Check]
    """What the gates of `doctor.OF_ONE` found of the base."""

    floors: Mapping[str, Floors]
    """By the name of each pack, the base's noise floor."""

    folder: Path
    """Where the store lies."""


def run(
    apart: Apart,
    packs: Sequence[Pack],
    options: suite.Options,
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> Phases:
    """Let base read the packs, keep what the metrics want of it, free it, and load aligned.

    Args:
        apart: How the two are loaded.
        packs: What base is to read.
        options: What will be asked of the run.
        folder: Where the store is to lie; an earlier one there is replaced, unless by `resume`.
        resume: Whether to go on with what an earlier run of the same models, packs and options
            left there; a finished store is checked against its hashes, and base reads nothing.
        progress: Told what is read, and how many windows of how many are done.

    Raises:
        LoadError: A model is missing, or a file of the store is broken.
        DriftlensError: The models cannot be compared, or fill in masked tokens; what is kept
            would not fit on the disk; or the store is of another run.
    """
    packs = [pack for pack in packs if pack.kind not in suite.ANSWERED]
    if not apart.sketch.causal:
        raise DriftlensError(
            "models that continue text, to run one after the other",
            found=f"{apart.sketch.name}, which fills in masked tokens",
            remedy="Leave out --two-phase, or give a larger device.",
        )
    base = apart.base()
    readings = list(_readings(ModelPair(base, apart.sketch), packs, options))
    about = _about(base, apart.sketch, packs, readings, options)
    resume = resume and (folder / MANIFEST).exists()
    held = Shards.open(folder, about, unfinished=True).bytes if resume else 0
    _check_disk(base, readings, folder, held)
    writer = ShardWriter(folder, about, resume=resume, overwrite=not resume)
    if resume and writer.finished:
        Shards.open(folder, about).verify()
    else:
        _read(base, readings, options, writer, progress)
    shards = Shards.open(folder, about)
    record = json.loads(shards.tensor(FOUND, FOUND).numpy().tobytes())
    stored = Stored(base, shards)
    # The last of it, so that aligned is loaded into the room that it leaves.
    pair = ModelPair(stored, apart.aligned(base))
    floors = {name: Floors(sizes) for name, sizes in record["floors"].items()}
    return Phases(pair, [Check(**check) for check in record["checks"]], floors, folder)


def left_out(packs: Sequence[Pack], options: suite.Options, why: str = "") -> Check:
    """What cannot be measured of two models that are never alive at once, in words.

    Args:
        packs: What they are shown.
        options: What is asked of the run.
        why: They are run one after the other, if nobody asked for that.
    """
    titles = [
        _title(metric)
        for pack in packs
        for metric in suite.PLAN[pack.kind](options)
        if metric.wants.together or pack.kind in suite.ANSWERED
    ]
    kinds = {pack.kind for pack in packs}
    titles += ["Forgetting by weights"] if "text" in kinds else []
    if any(pack.kind == "roles" and "choices" in pack.card for pack in packs):
        titles.append("Steering")
    said = f"left out: {', '.join(dict.fromkeys(titles))}" if titles else "nothing is left out"
    because = f" ({why})" if why else ""
    return Check(TOGETHER, "warn", f"base was run first and its blocks freed{because}; {said}")


def unfinished(folder: Path) -> bool:
    """Whether an earlier run has left there what base saw of a pack."""
    if not (folder / MANIFEST).exists():
        return False
    return any(key > "001" for key in Shards.open(folder, unfinished=True).keys)


def _title(metric: Metric) -> str:
    return get_type_hints(metric.compute)["return"].title


@dataclass(frozen=True)
class Reading:
    """A pack as base is to read it, and what is to be kept of that."""

    encoder: Encoder
    batches: Sequence[Sequence[Window]]
    wants: Wants
    name: str
    """Of the pack; of the sample that the gates are asked about it is empty."""


def _readings(pair: ModelPair, packs: Sequence[Pack], options: suite.Options) -> Iterator[Reading]:
    encoders = [pair.encoder(pack, options.length) for pack in packs]
    few, windows = doctor.sample(pair, encoders[0])
    yield Reading(few, [windows], Wants(), "")
    for pack, encoder in zip(packs, encoders, strict=True):
        metrics = _alone(pair, encoder, options)
        wants = reduce(or_, (metric.wants for metric in metrics), Wants())
        batches = encoder.batches(affordable(pair, wants), options.rows)
        yield Reading(encoder, batches, wants, pack.name)


def _alone(pair: ModelPair, encoder: Encoder, options: suite.Options) -> list[Metric]:
    """The metrics of the plan for which the two models need not be alive at once."""
    metrics = suite.applicable(pair, encoder, options)
    return [metric for metric in metrics if not metric.wants.together]


def _read(
    base: HookedModel,
    readings: Sequence[Reading],
    options: suite.Options,
    writer: ShardWriter,
    progress: Progress | None,
) -> None:
    """Let base read all that is not yet kept, and settle what is to be known of it."""
    itself = ModelPair(base, base)
    packs = [reading.encoder.pack for reading in readings[1:]]
    checks = doctor.examine(itself, packs, length=options.length, gates=doctor.OF_ONE)
    # What is not finite stops here, and not after hours.
    doctor.require(checks)
    floors = {
        reading.name: doctor.noise_floor(
            base, reading.encoder, _alone(itself, reading.encoder, options)
        ).sizes
        for reading in readings[1:]
    }
    for number, reading in enumerate(readings):
        done, of = 0, len(reading.encoder.plan)
        for windows in reading.batches:
            _see(itself, reading, windows, f"{number:03}", writer)
            done += len(windows)
            if progress is not None and reading.name:
                progress(f"{reading.name}, base alone", done, of)
    if FOUND not in writer.done:
        record = json.dumps({"checks": [vars(check) for check in checks], "floors": floors})
        writer.put(FOUND, {FOUND: torch.frombuffer(bytearray(record, "utf-8"), dtype=torch.uint8)})
    writer.finish()


def _see(
    itself: ModelPair,
    reading: Reading,
    windows: Sequence[Window],
    prefix: str,
    writer: ShardWriter,
) -> None:
    """Keep what base sees of some windows, halved until they fit into memory."""
    encoder = reading.encoder
    key = key_of(encoder.encode(windows)[0], prefix)
    if key in writer.done:
        return
    try:
        trace = itself.frame(encoder, windows, reading.wants).base
        keep(writer, key, trace, trace.activations)
        return
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error) or len(windows) == 1:
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(windows) // 2
    for some in (windows[:half], windows[half:]):
        _see(itself, reading, some, prefix, writer)


def _about(
    base: HookedModel,
    aligned: HookedModel,
    packs: Sequence[Pack],
    readings: Sequence[Reading],
    options: suite.Options,
) -> dict[str, Any]:
    """All that what base leaves depends on."""
    at_work = versions()
    known = ("sha256", "dtype", "device", "attention", "quantised")
    return {
        "base": {name: base.source.get(name) for name in known},
        "tokenizers": [
            sha256(model.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
            for model in (base, aligned)
        ],
        "packs": [[pack.name, pack.sha256] for pack in packs],
        "sites": [[*map(str, sites_of(base, reading.wants))] for reading in readings],
        "length": [reading.encoder.length for reading in readings],
        "seed": options.seed,
        "versions": {name: at_work[name] for name in ("driftlens", "torch", "transformers")},
    }


def _check_disk(base: HookedModel, readings: Sequence[Reading], folder: Path, held: int) -> None:
    """Stop before anything is read if the disk could not hold what is to be kept."""
    needed = sum(
        bytes_of(base, sites_of(base, reading.wants)) * window.length
        for reading in readings
        for windows in reading.batches
        for window in windows
    )
    place = next(one for one in (folder, *folder.parents) if one.exists())
    room = shutil.disk_usage(place).free + held
    if needed > room:
        raise DriftlensError(
            f"{gigabytes(needed)} on the disk of {place}, for what base leaves to aligned",
            found=f"{gigabytes(room)} free",
            remedy="Give fewer --layers, a smaller --limit, or --keep-store on a larger disk.",
        )
