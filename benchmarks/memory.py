"""Peak memory of one `measure`, above what was held before it; a process of its own each.

`overhead.py` calls it with different sizes: the high-water mark of a process only rises.
"""

import argparse
import ctypes
import gc
import json
from pathlib import Path

import pairs
import torch

from driftlens import Drift, Forgetting, measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("documents", "tokens", "rows", "vocab", "width", "depth"):
        parser.add_argument(f"--{name}", type=int, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    nets = pairs.nets(asked.width, asked.depth, asked.vocab, torch.float32, "cpu")
    pair = pairs.pair(*nets)
    metrics = [Drift(), Forgetting()]
    # Once over a little, so that what is made once (kernels, buffers, imports) is not counted.
    measure(pair, pairs.pack(8, asked.tokens, asked.vocab), metrics, rows=asked.rows)
    pack = pairs.pack(asked.documents, asked.tokens, asked.vocab)
    give_back()
    before = resident()
    start_again()
    measure(pair, pack, [Drift(), Forgetting()], rows=asked.rows)
    print(json.dumps({**vars(asked), "before_mb": before, "extra_mb": peak() - before}))


def give_back() -> None:
    """Let the allocator return what it keeps of freed memory, so that it is counted again."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def start_again() -> None:
    """Set the high-water mark down to what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


def resident() -> float:
    """Megabytes held now."""
    return _status("VmRSS")


def peak() -> float:
    """Most megabytes held since `start_again`."""
    return _status("VmHWM")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
