"""What driftlens costs beside running the two models bare: time, memory, and how both grow.

    python benchmarks/overhead.py --out overhead.json

Everything is a ratio of things measured in turn in one run; on a CPU it is processor time,
which a busy machine disturbs least. The bars are those that the project has set itself.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from itertools import chain
from operator import or_
from pathlib import Path
from statistics import mean, median

# Threads are counted when torch is imported; a benchmark shares its machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pairs
import torch
from torch import nn

from driftlens import Drift, Forgetting, Lens, Metric, ModelPair, Pack, measure
from driftlens.models import Wants

SMALL = {"width": 64, "depth": 4, "vocab": 1000, "tokens": 16, "rows": 32}
"""Of the models that show how memory and time grow with the documents."""

STREAM = Wants(frozenset({"out"}), None)
"""What the layer sweep asks to see."""

Row = dict[str, float | str | list[float] | None]


def main() -> None:
    asked = _arguments()
    torch.set_num_threads(1)
    nets = pairs.nets(
        asked.width, asked.depth, asked.vocab, getattr(torch, asked.dtype), asked.device
    )
    pair = pairs.pair(*nets)
    pack = pairs.pack(asked.documents, asked.tokens, asked.vocab)
    rows = chain(
        passes(nets, pair, pack, asked),
        sweep(nets, pair, pack, asked),
        memory_of_documents(asked.counts),
        memory_of_vocabularies(asked.vocabularies),
        linear(asked.counts[0], asked.rounds),
    )
    tell(rows, asked)


# --- time of a pass -----------------------------------------------------------------------


class Run:
    """Some metrics on their way through a pack: `measure`, a batch at a time."""

    def __init__(self, pair: ModelPair, pack: Pack, metrics: Sequence[Metric]) -> None:
        self.pair, self.metrics = pair, metrics
        self.encoder = pair.encoder(pack)
        self.wants = reduce(or_, (metric.wants for metric in metrics), Wants())
        for metric in metrics:
            metric.begin(pair, self.encoder)

    def show(self, windows: Sequence) -> None:
        """One batch, as `measure` shows it."""
        frame = self.pair.frame(self.encoder, windows, self.wants)
        parts = [metric.empty() for metric in self.metrics]
        for part in parts:
            part.update(frame)
        for metric, part in zip(self.metrics, parts, strict=True):
            metric.merge(part)


def bare(nets: Sequence[nn.Module], ids: torch.Tensor) -> None:
    """Both models' forward passes, logits and all."""
    with torch.no_grad():
        for net in nets:
            net(input_ids=ids, use_cache=False)


def passes(
    nets: Sequence[nn.Module], pair: ModelPair, pack: Pack, asked: argparse.Namespace
) -> Iterator[Row]:
    """Drift and forgetting against two bare passes, then with the lens, in turn."""
    drift = Drift()
    first = Run(pair, pack, [drift, Forgetting()])
    second = Run(pair, pack, [Drift(), Forgetting(), lens := Lens()])
    batches = first.encoder.batches(0, asked.rows)
    assert len(batches) > asked.rounds * asked.batches, "more --documents, please"

    def ids(windows: Sequence) -> torch.Tensor:
        return first.encoder.encode(windows)[0].ids.to(asked.device)

    jobs: list[Callable[[Sequence], None]] = [
        lambda windows: bare(nets, ids(windows)),
        first.show,
        second.show,
    ]
    for job in jobs:
        job(batches[0])
    seconds = [
        [timed(job, batches[1 + turn * asked.batches + i], asked.device) for job in jobs]
        for turn in range(asked.rounds)
        for i in range(asked.batches)
    ]
    # Sums over rows are formed every few batches: a round must hold several, not a median one.
    turns = [seconds[i : i + asked.batches] for i in range(0, len(seconds), asked.batches)]
    floor, drifting, lensing = (
        [sum(batch[job] for batch in turn) for turn in turns] for job in range(3)
    )
    tokens = asked.rows * asked.tokens * asked.batches
    yield as_row("two bare passes, tokens a second", [tokens / s for s in floor])
    yield as_row(
        f"drift + forgetting / two bare passes ({drift.share:.1%} of tokens in CKA)",
        ratios_of(drifting, floor),
        bar=1.15,
    )
    yield as_row(
        f"with the lens / without ({lens.share:.1%} of positions)",
        ratios_of(lensing, drifting),
        bar=1.25,
    )
    if asked.device != "cpu":
        flops = 2 * tokens * sum(p.numel() for net in nets for p in net.parameters())
        rate = _matrix_rate(asked.device, getattr(torch, asked.dtype))
        yield as_row(
            "drift + forgetting, share of matrix rate", [flops / s / rate for s in drifting]
        )


def sweep(
    nets: Sequence[nn.Module], pair: ModelPair, pack: Pack, asked: argparse.Namespace
) -> Iterator[Row]:
    """The layer sweep beyond the two traces, in forward passes of one model."""
    encoder = pair.encoder(pack)
    windows = encoder.batches(0, asked.rows)[0]
    ids = encoder.encode(windows)[0].ids.to(asked.device)
    one, both = [], []
    for turn in range(asked.rounds + 1):
        frame = pair.frame(encoder, windows, STREAM)
        assert frame.likelihoods, "the two ends of the sweep, which forgetting needs too"
        # A pass is short beside a sweep: taken once, its own noise would be that of the ratio.
        forwards = [timed(lambda ids: bare(nets, ids), ids, asked.device)]
        restored = timed(lambda frame: frame.restored, frame, asked.device)
        forwards += [timed(lambda ids: bare(nets, ids), ids, asked.device)]
        corrupted = timed(lambda frame: frame.corrupted, frame, asked.device)
        forwards += [timed(lambda ids: bare(nets, ids), ids, asked.device)]
        forward = mean(forwards) / 2
        # The first turn finds the models' anatomy.
        if turn:
            one.append(restored / forward)
            both.append((restored + corrupted) / forward)
    yield as_row("layer sweep, one direction / one forward", one, bar=asked.depth / 2 + 2)
    yield as_row("layer sweep, both directions / one forward", both)


# --- memory and growth --------------------------------------------------------------------


def memory_of_documents(counts: Sequence[int]) -> Iterator[Row]:
    """Peak memory beyond models and texts, by number of documents."""
    extra = [_peak(documents=count, **SMALL) for count in counts]
    for count, megabytes in zip(counts, extra, strict=True):
        yield as_row(f"peak memory of {count} documents, MB", [megabytes])
    slope = (extra[-1] - extra[0]) / (counts[-1] - counts[0]) * 1000
    yield as_row("the same by 1000 documents more, MB", [slope])


def memory_of_vocabularies(vocabularies: Sequence[int]) -> Iterator[Row]:
    """Peak memory beyond models and texts, by size of the vocabulary."""
    shape = {**SMALL, "tokens": 128, "rows": 8, "depth": 2, "documents": 32}
    extra = [_peak(**{**shape, "vocab": vocab}) for vocab in vocabularies]
    for vocab, megabytes in zip(vocabularies, extra, strict=True):
        logits = 2 * 4 * shape["rows"] * shape["tokens"] * vocab / 2**20
        name = f"peak memory of a vocabulary of {vocab} (whole logits: {logits:.0f}), MB"
        yield as_row(name, [megabytes])
    slope = (extra[-1] - extra[0]) / (vocabularies[-1] - vocabularies[0]) * 1000
    yield as_row("the same by 1000 entries more, MB", [slope])


def linear(count: int, rounds: int) -> Iterator[Row]:
    """Processor time a document, of twice and four times the documents over that of once."""
    shape = {name: SMALL[name] for name in ("width", "depth", "vocab")}
    pair = pairs.pair(*pairs.nets(**shape, dtype=torch.float32, device="cpu"))
    packs = [pairs.pack(n * count, SMALL["tokens"], SMALL["vocab"]) for n in (1, 2, 4)]

    def read(pack: Pack) -> None:
        measure(pair, pack, [Drift(), Forgetting()], rows=SMALL["rows"])

    read(packs[0])
    times = [
        [timed(read, pack, "cpu") / len(pack.examples) for pack in packs] for _ in range(rounds)
    ]
    for place, by in ((1, 2), (2, 4)):
        ratios = [turn[place] / turn[0] for turn in times]
        yield as_row(f"time a document, {by} × {count} documents over {count}", ratios)


def _peak(**sizes: int) -> float:
    """Megabytes that `memory.py` finds."""
    script = Path(__file__).with_name("memory.py")
    options = [f"--{name}={value}" for name, value in sizes.items()]
    command = [sys.executable, str(script), *options]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(answer.stdout)["extra_mb"]


# --- helpers ------------------------------------------------------------------------------


def timed(job: Callable, given: object, device: str) -> float:
    """Processor time that `job` takes; on an accelerator, time until it is done."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    _wait(device)
    start = clock()
    job(given)
    _wait(device)
    return clock() - start


def _wait(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def _matrix_rate(device: str, dtype: torch.dtype, size: int = 8192) -> float:
    """Operations a second of a large product of matrices, the best of five."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(timed(lambda a: a @ b, a, device) for _ in range(5))


def ratios_of(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def as_row(name: str, values: Sequence[float], bar: float | None = None) -> Row:
    return {"name": name, "median": median(values), "bar": bar, "values": list(values)}


def tell(rows: Iterable[Row], asked: argparse.Namespace) -> None:
    """Print each row as it comes, and write them all where that is asked for."""
    measured = []
    for row in rows:
        measured.append(row)
        print(as_line(row), flush=True)
    sizes = {name: size for name, size in vars(asked).items() if name not in ("out", "peak_of")}
    found = {"torch": torch.__version__, "sizes": sizes, "measured": measured}
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


def as_line(row: Row) -> str:
    values = row["values"]
    spread = f"({min(values):.4g} to {max(values):.4g}, {len(values)} rounds)"
    spread = spread if len(values) > 1 else ""
    bar = "" if row["bar"] is None else f"at most {row['bar']:.4g}"
    verdict = "" if row["bar"] is None else "ok" if row["median"] <= row["bar"] else "MISSED"
    return f"{row['name']:<70} {row['median']:>9.4g}  {spread:<34} {bar:<14} {verdict}".rstrip()


def _arguments() -> argparse.Namespace:
    more = {
        "documents": (800, "Texts in the pack; samples are as small as so many allow."),
        "batches": (9, "Batches in a round."),
        "rounds": (5, "Rounds, of which the median is reported."),
    }
    parser = pairs.parser(__doc__, more)
    parser.add_argument("--counts", type=int, nargs=2, default=[1000, 10_000])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32_000, 128_000, 256_000])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    return parser.parse_args()


if __name__ == "__main__":
    main()
