"""How many tokens are shown at a time: by a formula, or searched on the longest texts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from .models import Model, ModelPair, Wants
from .models.memory import available, out_of_memory

TRACE_BYTES = 2**28
"""How much memory the activations of a batch may take unless the caller sets the batch."""

PART = 8
"""The part of a device's free memory, one in so many, that activations may take by the formula."""

LEAST, MOST = 256, 8192
"""Tokens at a time that the formula gives at least and at most."""

SEARCHED = 65_536
"""Tokens at a time that a search goes up to."""

FULL = 0.9
"""The part of what is free that a search fills."""

WORTH = 32
"""The part of a pack, one in so many, that a search shows at a time at most: trials cost time."""

FOUND: dict[tuple, int] = {}
"""What searches in this process have found, by models, devices, wants and longest window."""

GRAPH = 12
"""Streams that a block's part of a graph takes, of one model; half as much of two."""


class Budget(NamedTuple):
    """What a caller asked of the batches."""

    rows: int | None = None
    """Windows at a time; None goes by tokens."""
    tokens: int | None = None
    """About how many tokens at a time; None plans by memory."""
    search: bool | None = None
    """Whether the most that fit are found by trial; None is on an accelerator only."""
    most: int = SEARCHED
    """Tokens at a time that a plan by memory gives at most."""


def streams(depth: int, wants: Wants) -> int:
    """How many streams of one model a batch holds at once."""
    layers = depth if wants.layers is None else len(wants.layers)
    return 2 + layers * len(wants.parts) + depth * GRAPH * wants.graph


def per_token(depth: int, width: int, wants: Wants) -> int:
    """Bytes that the activations of both models take for each token, counted as float32."""
    return 2 * 4 * streams(depth, wants) * width


def fitting(room: float, each: int) -> int:
    """How many tokens of so many bytes each are shown at a time where there is such room."""
    return int(np.clip(room // each, LEAST, MOST))


def affordable(pair: ModelPair, wants: Wants) -> int:
    """How many tokens at a time keep the activations of both models within their memory."""
    room = room_for_traces(device_of(pair.base))
    return fitting(room, per_token(pair.depth, pair.width, wants))


def room_for_traces(device: torch.device) -> int:
    """Bytes that activations may take on a device."""
    part = available(device) // PART
    return max(TRACE_BYTES, part) if device.type == "cuda" else min(TRACE_BYTES, part)


def device_of(model: Model) -> torch.device:
    """Where a model reads its token ids."""
    return getattr(model, "device", torch.device("cpu"))


def devices_of(pair: ModelPair) -> list[torch.device]:
    """Every device that a weight of either model lies on."""
    nets = (getattr(model, "net", torch.nn.Module()) for model in (pair.base, pair.aligned))
    found = {weight.device for net in nets for weight in net.parameters()}
    return sorted(found, key=str) or [device_of(pair.base)]


# A search


class Trial(NamedTuple):
    """What showing some tokens took."""

    fits: bool
    used: int
    """Bytes at the peak, above what was held before; 0 where nobody can tell."""


def searched(trial: Callable[[int], Trial], guess: int, most: int, room: float = np.inf) -> int:
    """The most tokens at a time that fit, to an eighth, found by doubling and bisection.

    Nothing larger than what a trial has shown to fit is ever given, but for `LEAST`.

    Args:
        trial: Shows about so many tokens, the longest texts first, and throws away what it found.
        guess: Where to begin.
        most: Where to end.
        room: Bytes that may be used.
    """

    def holds(tokens: int) -> bool:
        seen = trial(tokens)
        return seen.fits and seen.used <= room

    low, high = 0, max(LEAST, min(guess, most))
    while holds(high):
        low = high
        if low >= most:
            return low
        high = min(2 * low, most)
    while high - low > max(LEAST, low) // 8 and high > LEAST:
        middle = max(LEAST, (low + high) // 2)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return max(low, LEAST)


def metered(devices: Sequence[torch.device], show: Callable[[], object]) -> Trial:
    """What `show` takes on some devices; whether it runs out of memory is told, not raised."""
    cuda = [device for device in devices if device.type == "cuda"]
    for device in cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    before = [torch.cuda.memory_allocated(device) for device in cuda]
    fits = True
    try:
        show()
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        fits = False
    peaks = [torch.cuda.max_memory_allocated(device) for device in cuda]
    return Trial(fits, max((p - b for p, b in zip(peaks, before, strict=True)), default=0))
