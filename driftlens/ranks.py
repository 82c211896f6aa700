"""The processes that share a run, and what travels between them; no other file knows of them.

`torchrun`, `accelerate launch` or plain variables (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)
start the same command several times. Every process loads the models and plans the same batches,
shows its share of them, and is told what the others kept. Only sums travel, as safetensors.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from zlib import crc32

from .errors import DriftlensError

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")

PATIENCE = timedelta(hours=12)
"""How long a process waits for another that is alive, as shares may be uneven."""

GRACE = 5.0
"""Seconds in which the first process is to tell of an error that all meet, before another does."""

FAREWELL = 30.0
"""Seconds that a first process which failed waits for others to hear of it."""

DONE = "whether a share is done"
"""What is told at its end: nothing, or why it failed."""

PIECE = 2**28
"""Bytes that travel at a time."""


class Lost(DriftlensError):
    """Another process ended, and so does this one."""

    exit_code = 1


# Who takes part

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1")


def size() -> int:
    """How many processes share the work: 1 where no group of `torch.distributed` is entered."""
    dist = _dist()
    return 1 if dist is None else dist.get_world_size()


def rank() -> int:
    """The number of this process among them, from 0."""
    dist = _dist()
    return 0 if dist is None else dist.get_rank()


def share(count: int) -> range:
    """Which of so many batches are this process's own: every n-th of n processes."""
    return range(rank(), count, size())


def local() -> int | None:
    """The number of this process on its machine, where several share the work."""
    return int(os.environ.get("LOCAL_RANK", rank())) if size() > 1 else None


@contextmanager
def alone() -> Iterator[None]:
    """Let one process of a group measure by itself what the others do not."""
    mark = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(mark)


def leave_to_first() -> bool:
    """Let the first process go on by itself until all meet again; whether this is the first."""
    first = rank() == 0
    _ALONE.set(True)
    return first


def _dist() -> Any:
    """`torch.distributed` in a group, or None; it is never imported to find that out."""
    dist = sys.modules.get("torch.distributed")
    grouped = dist is not None and dist.is_available() and dist.is_initialized()
    return dist if grouped and not _ALONE.get() else None


# What travels


def gathered(what: str, arrays: Mapping[str, "np.ndarray"]) -> Iterator[dict[str, "np.ndarray"]]:
    """The arrays of every process in turn, in the order of their ranks.

    One process's arrays are held at a time. All processes must go through all of them.

    Args:
        what: What the arrays are; the same in every process.
        arrays: This process's own, by name.

    Raises:
        DriftlensError: Another process gathers something else.
        Lost: Another process ended.
    """
    import numpy as np
    from safetensors.numpy import load, save

    mine = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    if size() == 1:
        yield mine
        return
    sent = save(mine)
    for source, length in enumerate(_lengths(what, len(sent))):
        yield load(_broadcast(sent if source == rank() else None, length, source))


def lead(do: Callable[[], T]) -> T:
    """What the first process makes of it, told to all as JSON.

    What depends on the machine or on the disk is decided once, so that all do the same.

    Raises:
        DriftlensError: The first process raised it.
    """
    if size() == 1:
        return do()
    told: dict[str, Any] = {}
    if rank() == 0:
        try:
            told = {"found": do()}
        except DriftlensError as error:
            told = {"error": error.parts, "code": error.exit_code}
    first, *_ = _said("what the first process found", json.dumps(told) if rank() == 0 else "")
    told = json.loads(first)
    if "error" in told:
        expected, found, remedy = told["error"]
        same = DriftlensError(expected, found=found, remedy=remedy)
        same.exit_code = told["code"]
        raise same
    return told["found"]


def meet() -> None:
    """Wait until all processes are here."""
    _ALONE.set(False)
    if size() > 1:
        list(gathered("the end", {}))


def _said(what: str, words: str) -> list[str]:
    """[rank] what each of them says."""
    import numpy as np

    mine = {"words": np.frombuffer(words.encode(), np.uint8)}
    return [one["words"].tobytes().decode() for one in gathered(what, mine)]


def _lengths(what: str, length: int) -> list[int]:
    """[rank] how many bytes each will send."""
    import torch

    dist = _dist()
    mine = torch.tensor([length, crc32(what.encode())])
    heads = [torch.empty_like(mine) for _ in range(size())]
    with _told_of_loss():
        dist.all_gather(heads, mine, group=_group())
    if len({int(mark) for _, mark in heads}) > 1:
        raise DriftlensError(
            "processes that all do the same",
            found=f"one that gathers something else than the {what}",
            remedy="Start every process with the same arguments, on machines of one kind.",
        )
    return [int(length) for length, _ in heads]


def _broadcast(sent: bytes | None, length: int, source: int) -> bytes:
    import numpy as np
    import torch

    whole = torch.empty(length, dtype=torch.uint8)
    if sent is not None:
        whole.numpy()[:] = np.frombuffer(sent, np.uint8)
    with _told_of_loss():
        for piece in whole.split(PIECE):
            _dist().broadcast(piece, source, group=_group())
    return whole.numpy().tobytes()


_GROUPS: dict[int, Any] = {}


def _group() -> Any:
    """A group that carries what lies on the CPU: the whole one, or one made beside it."""
    dist = _dist()
    if "cpu:" in dist.get_backend_config():
        return None
    key = id(dist.group.WORLD)
    if key not in _GROUPS:
        _GROUPS[key] = dist.new_group(backend="gloo", timeout=PATIENCE)
    return _GROUPS[key]


@contextmanager
def _told_of_loss() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise _lost(str(error).splitlines()[0]) from None


def _lost(found: str) -> Lost:
    return Lost(
        f"all {size()} processes to go on",
        found=found,
        remedy="Look at what that one said last; a report goes on from what was finished with the "
        "same command and --resume.",
    )


# How a run of several processes ends


class _Run:
    """What the processes of a launcher tell each other when one of them fails."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.apart = False
        """Whether this process is doing, or failed in doing, its own share."""
        self.said: bool | None = None
        """Whether this process told why the run ends; None while it goes on."""
        self.gone: list[int] = []
        """Ranks that do not answer any more."""


_RUN: list[_Run] = []


@contextmanager
def joined() -> Iterator[None]:
    """Take part in the group that a launcher's variables describe; left at the end.

    Raises:
        DriftlensError: A variable is missing, or the others do not come.
    """
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    try:
        store, number, count = next(dist.rendezvous("env://", timeout=timedelta(minutes=10)))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=dist.PrefixStore("group", store),
            rank=number,
            world_size=count,
            timeout=PATIENCE,
        )
    except (RuntimeError, ValueError) as error:
        raise DriftlensError(
            f"{os.environ['WORLD_SIZE']} processes that find each other",
            found=str(error).splitlines()[0],
            remedy="Start them with torchrun or accelerate launch, or set RANK, WORLD_SIZE, "
            "MASTER_ADDR and MASTER_PORT for each.",
        ) from None
    _RUN.append(_Run(dist.PrefixStore("run", store)))
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        if _RUN[0].said is None:
            dist.destroy_process_group()
        _linger()
        signal.signal(signal.SIGTERM, before)
        _RUN.clear()


def _linger() -> None:
    """Where the first process keeps what all tell each other: stay until all have heard."""
    run, kept_elsewhere = _RUN[0], os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if run.said is None or kept_elsewhere:
        return
    with suppress(RuntimeError):
        if rank():
            run.store.set(f"left {rank()}", "")
        else:
            others = [f"left {n}" for n in range(1, size()) if n not in run.gone]
            run.store.wait(others, timedelta(seconds=FAREWELL))


def _terminated(*_: object) -> None:
    raise _lost("one that ended, upon which this one was told to end too")


@contextmanager
def apart() -> Iterator[None]:
    """What each process does by itself; where it fails in one of them, it ends for all."""
    if size() == 1:
        yield
        return
    run = _RUN[0] if _RUN else _Run(None)
    run.apart = True
    said = ""
    try:
        yield
    except Exception as error:
        # Where a launcher started us, who fails says so and leaves, and others take heed.
        if run.store is None and not isinstance(error, Lost):
            _said(DONE, f"{type(error).__name__}: {error}")
        raise
    for number, said in enumerate(_said(DONE, "")):
        if said:
            raise _lost(f"rank {number} of {size()}, which failed ({said})")
    run.apart = False


def heed() -> None:
    """Look whether another process has failed, which a long share is not to outlast.

    Raises:
        Lost: One has.
    """
    if _RUN and size() > 1:
        try:
            failed = _RUN[0].store.check(["failed"])
        except RuntimeError:
            raise _lost("the first one gone") from None
        if failed:
            raise _lost("one that failed")


def speaks(code: int) -> bool:
    """Whether this process is the one to tell why the run ends; the first one is, or one alone.

    Args:
        code: What it leaves with.
    """
    if not _RUN:
        return True
    run = _RUN[0]
    if run.said is None:
        # A launcher tells all to end as soon as one does, be it in the middle of a word.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            run.store.set(f"answers {rank()}", "")
            run.said = _claimed(run, code)
        except RuntimeError:
            # The first process, and what it kept for all, is gone.
            run.said = rank() == 1 or (rank() > 0 and os.environ.get("LOCAL_RANK") == "0")
    return run.said


def code(own: int) -> int:
    """What the run ends with: the exit code of the process that tells why, else this one's own."""
    with suppress(RuntimeError):
        if _RUN and _RUN[0].store.check(["failed"]):
            return json.loads(_RUN[0].store.get("failed"))[1]
    return own


def _claimed(run: _Run, code: int) -> bool:
    if rank() and not run.apart:
        with suppress(RuntimeError):
            run.store.wait(["failed"], timedelta(seconds=GRACE))
    mine = json.dumps([rank(), code])
    return run.store.compare_set("failed", "", mine).decode() == mine


def named(lost: Lost) -> Lost:
    """The same loss, told with the ranks that do not answer any more."""
    if not _RUN:
        return lost
    _RUN[0].gone = _missing()
    gone = ", ".join(map(str, _RUN[0].gone))
    return _lost(f"no answer from rank {gone}") if gone else lost


def _missing() -> list[int]:
    store, found = _RUN[0].store, list(range(size()))
    until = time.monotonic() + GRACE
    try:
        while len(found) > 1 and time.monotonic() < until:
            found = [number for number in found if not store.check([f"answers {number}"])]
            time.sleep(0.05)
    except RuntimeError:
        # What all tell each other is kept by the first process, or by its launcher.
        return [0]
    return found


def who() -> str:
    """This process in words, where it failed by itself; nothing of what all meet."""
    told = _RUN and (rank() or _RUN[0].apart)
    return f"rank {rank()} of {size()}: " if told else ""
