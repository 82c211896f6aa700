"""How much memory a device has, and how much of it can still be taken."""

import os
import sys
from pathlib import Path

import torch


def available(device: torch.device) -> int:
    """Bytes that can still be taken on a device; on a CPU, of the machine and of its container.

    As much as can be counted where nobody can tell: its own allocator will.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return sys.maxsize
    # What the system keeps of files it gives up again, and does not count as free.
    told = _told("/proc/meminfo", "MemAvailable")
    free = _pages("SC_AVPHYS_PAGES") if told is None else told
    most, used = (_number(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    return free if most is None or used is None else min(free, max(0, most - used))


def capacity(device: torch.device) -> int:
    """Bytes that a device has in all."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    whole = _pages("SC_PHYS_PAGES")
    most = _number("/sys/fs/cgroup/memory.max")
    return whole if most is None else min(whole, most)


def _pages(name: str) -> int:
    try:
        return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


def _told(file: str, name: str) -> int | None:
    path = Path(file)
    lines = path.read_text().splitlines() if path.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")]
    return found[0] if found else None


def _number(file: str) -> int | None:
    """What a file of a container's limits says; None where there is none, or no limit."""
    path = Path(file)
    said = path.read_text().strip() if path.exists() else ""
    return int(said) if said.isdigit() else None


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory ran out, on whatever device."""
    named = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return named or any(words in str(error) for words in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
"""What the CPU's allocator, Apple's and cuBLAS say of it in a plain RuntimeError."""
