"""What driftlens takes as texts and models grow: measured, and held to what the plan says.

    python benchmarks/scale.py memory --out memory.json
    python benchmarks/scale.py simulate
    python benchmarks/scale.py overhead
    python benchmarks/scale.py processes

`memory` measures peak memory, of a fresh process each, against documents, tokens of a document,
vocabulary, depth and width, and fits slopes; beside each stands what `driftlens plan` says.
`simulate` plans what nobody here can run: 70 billion weights on 8 devices, and 10⁹ tokens on many
nodes. `overhead` holds each back-end to bare passes; `processes` one process to two and more that
share a report, in turn, by the clock: its ratios need as many idle cores.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

# Threads are counted when torch is imported; a benchmark shares its machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pairs
from overhead import Row, as_row, tell

from driftlens import plan, suite
from driftlens.models import shape

MB = 1e6

BASE = {"documents": 64, "tokens": 128, "rows": 8, "width": 256, "depth": 4, "vocab": 8000}
"""The size from which each axis sets out."""

AXES: Mapping[str, Sequence[int]] = {
    "documents": (64, 1000, 4000),
    "tokens": (64, 128, 256, 512),
    "vocab": (8000, 64_000, 128_000),
    "depth": (2, 4, 8, 12),
    "width": (128, 256, 512, 768),
}
"""By axis, the sizes that are measured; of documents with little text in each."""

GIVING_BACK = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
"""By itself the C library learns to keep what is freed, in pieces that do not fit what comes next:
it then holds up to twice what is in use, which no plan can foresee."""

SHARED = {"width": 256, "depth": 6, "vocab": 8000, "rows": 8, "documents": 400, "rounds": 5}
"""Of a run that processes share."""

SHORT = {"tokens": 16, "rows": 32, "width": 64, "vocab": 1000}
"""What is otherwise where documents grow."""


def main() -> None:
    asked = _arguments()
    run = vars(asked).pop("run")
    tell(run(asked), asked)


# --- measured -----------------------------------------------------------------------------


def memory(asked: argparse.Namespace) -> Iterator[Row]:
    """Peak memory beyond models and texts, by axis, with slopes and what the plan says of both."""
    for axis in asked.axes:
        sizes = AXES[axis][: asked.points]
        points = [{**BASE, **(SHORT if axis == "documents" else {}), axis: n} for n in sizes]
        found = [peak(**point)["extra_mb"] * 2**20 / MB for point in points]
        said = [sum(planned(**point).values()) / MB for point in points]
        for size, measured, plan_says in zip(sizes, found, said, strict=True):
            yield as_row(f"{axis} {size}: measured, MB", [measured])
            yield as_row(f"{axis} {size}: the plan says, MB", [plan_says])
        ours, theirs = slope(sizes, found), slope(sizes, said)
        yield as_row(f"by {axis}: measured, kB for each", [ours * 1000])
        yield as_row(f"by {axis}: the plan says, kB for each", [theirs * 1000])
        ratios = [p / m for p, m in zip(said, found, strict=True)]
        yield as_row(f"by {axis}: plan / measured", ratios)


def planned(
    *, documents: int, tokens: int, rows: int, width: int, depth: int, vocab: int
) -> dict[str, int]:
    """Bytes besides weights, by name, of drift and forgetting in batches of so many rows."""
    net = shape.planned(pairs.config(width, depth, vocab), "random")
    work = plan.Work(documents * tokens, documents, ("text",), tokens)
    whole = plan.plan(net, None, plan.Machine(1, 64 * 10**9, "cpu"), work, dtype="float32")
    wants, _ = plan.wants_of(work)
    share = plan.share_of(net, work, whole.groups, "float32", "cpu")
    shown = plan.traces(net, wants, rows * tokens, "float32", whole.groups, share, read_out=False)
    kept = plan.host(net, work)
    # The two metrics of `memory.py` keep no states for probes.
    return shown | {name: kept[name] for name in ("sums of documents", "texts' windows")}


def peak(**sizes: int) -> dict[str, float]:
    """What `memory.py` finds in a process of its own, whose allocator gives back what is freed."""
    script = Path(__file__).with_name("memory.py")
    options = [f"--{name}={value}" for name, value in sizes.items()]
    command = [sys.executable, str(script), *options]
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=GIVING_BACK)
    return json.loads(said.stdout)


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """By least squares."""
    return float(np.polyfit(sizes, values, 1)[0])


# --- simulated ----------------------------------------------------------------------------

LLAMA_70B = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "dtype": "bfloat16",
}
LLAMA_8B = {
    **LLAMA_70B,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
NODE = plan.Machine(8, 80 * 10**9)
DOCUMENT = 1024
"""Tokens of a document of a large corpus."""


def simulate(asked: argparse.Namespace) -> Iterator[Row]:
    """Plans of what cannot be run here; times by the assumed rate, unless one is given."""
    cases = [(10**6, 1, None), (10**6, 1, True), *((10**9, nodes, None) for nodes in asked.nodes)]
    for name, sizes in (("8 B", LLAMA_8B), ("70 B", LLAMA_70B)):
        net = _large(name, sizes)
        for tokens, nodes, every in cases:
            title = f"{name}, {tokens:,} tokens, {nodes} × 8 of 80 GB"
            title += ", every site" if every else ""
            yield from _simulated(title, net, tokens, nodes, every, asked)


def _large(name: str, sizes: Mapping[str, int | str]) -> shape.Shape:
    from transformers import LlamaConfig

    return shape.planned(LlamaConfig(**sizes), name)


def _simulated(
    title: str,
    net: shape.Shape,
    tokens: int,
    nodes: int,
    every: bool | None,
    asked: argparse.Namespace,
) -> Iterator[Row]:
    machine = replace(NODE, rate=asked.rate)
    options = suite.Options(every_site=every)
    # A node reads its share; what all of them keep travels once, as sums.
    work = plan.Work(tokens // nodes, tokens // nodes // DOCUMENT, ("text",), DOCUMENT, options)
    found = plan.plan(net, None, machine, work)
    sums = found.device["sums of CKA"]
    kept = sum(found.host.values())
    rate = "given" if asked.rate else "assumed"
    bare = found.bare / (machine.speed * found.replicas)
    for what, value in {
        f"pairs side by side on a node ({found.mode}, {found.spread} devices each)": found.replicas,
        "tokens at a time": found.batch,
        "passes": found.passes,
        "sites without CKA": found.left_out,
        "peak of a device, GB": found.peak / 1e9,
        "kept on the CPU of a node at the end, GB": kept / 1e9,
        "travels from a pair to the others for each pass, GB": (sums + kept) / 1e9,
        "written by two phases instead, TB": plan.written(net, work, plan.wants_of(work)[0], "auto")
        * nodes
        / 1e12,
        f"hours at {machine.speed:.2g} operations a second ({rate})": found.seconds / 3600,
        f"of these, two bare passes, hours ({rate})": bare / 3600,
    }.items():
        yield as_row(f"{title}: {what}", [value])


# --- back-ends and processes --------------------------------------------------------------


def overhead(asked: argparse.Namespace) -> Iterator[Row]:
    """What each back-end takes over bare passes of the same attention."""
    import backends

    yield from backends.ratios(asked)


def processes(asked: argparse.Namespace) -> Iterator[Row]:
    """Seconds of one drift and forgetting, shared by processes, over those that one takes alone."""
    alone: list[float] = []
    shared: dict[int, list[float]] = {count: [] for count in asked.counts}
    for turn in range(asked.rounds + 1):
        one = _shared(1, asked)
        found = {count: _shared(count, asked) for count in shared}
        # The first turn fills the caches of files.
        if turn:
            alone.append(one)
            for count, seconds in found.items():
                shared[count].append(one / seconds)
    tokens = asked.documents * asked.tokens
    yield as_row("one process, tokens a second", [tokens / seconds for seconds in alone])
    for count, ratios in shared.items():
        yield as_row(f"{count} processes / one, tokens a second", ratios)


def _shared(count: int, asked: argparse.Namespace) -> float:
    """Seconds that `measure` takes in each of some processes, the slowest of them."""
    script = Path(__file__).with_name("share.py")
    sizes = ("width", "depth", "vocab", "tokens", "rows", "documents")
    options = [f"--{name}={getattr(asked, name)}" for name in sizes]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"WORLD_SIZE": f"{count}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    started = [
        subprocess.Popen(
            [sys.executable, str(script), *options],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | meeting | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"},
        )
        for rank in range(count)
    ]
    said = [one.communicate()[0] for one in started]
    assert not any(one.returncode for one in started), "a process failed"
    return max(float(line) for line in said)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    runs: dict[str, Callable] = {
        "memory": memory,
        "simulate": simulate,
        "overhead": overhead,
        "processes": processes,
    }
    made = {name: commands.add_parser(name, help=run.__doc__) for name, run in runs.items()}
    for name, command in made.items():
        command.add_argument("--out", type=Path, help="Where to write it all as JSON.")
        command.set_defaults(run=runs[name])
    made["memory"].add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    made["memory"].add_argument("--points", type=int, default=9, help="Of each axis, at most.")
    made["simulate"].add_argument("--nodes", type=int, nargs="+", default=[1, 16, 128])
    made["simulate"].add_argument("--rate", type=float, help="Operations a second of a device.")
    for name, more in (("overhead", {"rounds": 9}), ("processes", SHARED)):
        sizes = {name: default for name, (default, _) in pairs.SIZES.items()}
        for size, default in {**sizes, **more}.items():
            made[name].add_argument(f"--{size}", type=int, default=default)
    made["overhead"].add_argument("--device", default="cpu")
    made["processes"].add_argument("--counts", type=int, nargs="+", default=[2])
    return parser.parse_args()


if __name__ == "__main__":
    main()
