"""What the weight path costs beside plain training steps: time, and peak memory.

    python benchmarks/attribution.py --out attribution.json

A node of the path is set against one forward and one full backward pass of one plain net, with
the gradient of every weight, on the same batch. Both are measured in turn in one run; on a CPU in
processor time, which a busy machine disturbs least. Shares by position come with the path.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import chain
from pathlib import Path

# Threads are counted when torch is imported; a benchmark shares its machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import memory
import pairs
import torch
from overhead import Row, as_row, ratios_of, tell, timed
from torch import Tensor, nn

from driftlens import ModelPair
from driftlens.formulas.quadrature import gauss
from driftlens.models import Frame, Wants

WANTS = Wants(causal=True, same_tokens=True, graph=True)

BAR = 1.15
"""Of the path's time over that of as many plain steps."""


def main() -> None:
    asked = _arguments()
    torch.set_num_threads(1)
    if asked.peak_of:
        print(json.dumps(_measured(asked)))
        return
    tell(chain(passes(asked), memories(asked)), asked)


# --- time ---------------------------------------------------------------------------------


def passes(asked: argparse.Namespace) -> Iterator[Row]:
    """The path against plain steps, in turn."""
    (base, _), pair = _pair(asked)
    jobs: list[Callable[[Frame], object]] = [
        lambda frame: [step(base, frame.base.batch.ids) for _ in range(asked.nodes)],
        lambda frame: frame.path(asked.nodes),
    ]
    seconds = []
    for turn in range(asked.rounds + 1):
        # A frame remembers its path.
        frame = _frame(pair, asked)
        found = [timed(job, frame, asked.device) for job in jobs]
        # The first turn makes room for the weights between, and listens to the modules.
        if turn:
            seconds.append(found)
        base.zero_grad(set_to_none=True)
    plain, path = (list(column) for column in zip(*seconds, strict=True))
    size = sum(p.numel() for p in base.parameters()) / 1e6
    yield as_row(f"{asked.nodes} plain steps of {size:.0f} M weights, seconds", plain)
    yield as_row(f"path of {asked.nodes} nodes, positions included, seconds", path)
    yield as_row(
        f"path of {asked.nodes} nodes / {asked.nodes} plain steps", ratios_of(path, plain), BAR
    )


def step(net: nn.Module, ids: Tensor) -> None:
    """Forward, and backward to every weight of the net."""
    net.zero_grad(set_to_none=True)
    likelihood(net, ids).sum().backward()


def likelihood(net: nn.Module, ids: Tensor) -> Tensor:
    """[row] log-likelihood of all tokens but the first."""
    logits = net(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
    return logits.gather(-1, ids[:, 1:, None])[..., 0].sum(1)


# --- memory -------------------------------------------------------------------------------


def memories(asked: argparse.Namespace) -> Iterator[Row]:
    """Peak memory beyond both models, each way in a process of its own."""
    for way, said in WAYS.items():
        found = _peak(asked, way)
        yield as_row(f"{said}, MB", [found["extra_mb"]])
        yield as_row("  the same in copies of the weights", [found["copies"]])


def by_path(pair: ModelPair, frame: Frame, asked: argparse.Namespace) -> None:
    frame.path(asked.nodes)


def by_step(pair: ModelPair, frame: Frame, asked: argparse.Namespace) -> None:
    step(pair.base.net, frame.base.batch.ids)


def by_gradients(pair: ModelPair, frame: Frame, asked: argparse.Namespace) -> None:
    """The same shares by row, but not by position, in the naive form.

    The mean gradient along the path is kept for each row and weight, and multiplied last.
    """
    base, aligned = (list(model.net.parameters()) for model in (pair.base, pair.aligned))
    between = deepcopy(pair.base.net)
    ids = frame.base.batch.ids
    means = [[torch.zeros_like(p) for p in base] for _ in ids]
    for alpha, weight in zip(*(z.tolist() for z in gauss(asked.nodes)), strict=True):
        with torch.no_grad():
            for mine, ours, theirs in zip(between.parameters(), base, aligned, strict=True):
                torch.lerp(ours, theirs, alpha, out=mine.data)
        for row, mean in zip(ids, means, strict=True):
            step(between, row[None])
            for total, mine in zip(mean, between.parameters(), strict=True):
                total.add_(mine.grad, alpha=weight)
    for mean in means:
        for total, ours, theirs in zip(mean, base, aligned, strict=True):
            _ = torch.vdot(total.ravel(), (theirs - ours).detach().ravel())


WAYS = {
    "path": "peak of the path, positions included",
    "step": "peak of one plain step",
    "gradients": "peak of the naive form, by row only",
}
JOBS = {"path": by_path, "step": by_step, "gradients": by_gradients}


def _peak(asked: argparse.Namespace, way: str) -> dict[str, float]:
    names = ("width", "depth", "vocab", "tokens", "rows", "nodes")
    options = [f"--{name}={getattr(asked, name)}" for name in names]
    command = [sys.executable, str(Path(__file__)), f"--peak-of={way}", *options]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _measured(asked: argparse.Namespace) -> dict[str, float]:
    """Peak memory of one way beyond what was held before, in this process."""
    small = argparse.Namespace(**{**vars(asked), "width": 64, "depth": 1, "vocab": 100})
    # Once over a little, so that what is made once (kernels, buffers, imports) is not counted.
    _, pair = _pair(small)
    JOBS[asked.peak_of](pair, _frame(pair, small), small)
    (base, _), pair = _pair(asked)
    frame = _frame(pair, asked)
    memory.give_back()
    before = memory.resident()
    memory.start_again()
    JOBS[asked.peak_of](pair, frame, asked)
    extra = memory.peak() - before
    weights = sum(p.numel() * p.element_size() for p in base.parameters()) / 2**20
    return {"extra_mb": extra, "copies": extra / weights}


# --- helpers ------------------------------------------------------------------------------


def _pair(asked: argparse.Namespace) -> tuple[tuple[nn.Module, nn.Module], ModelPair]:
    nets = pairs.nets(asked.width, asked.depth, asked.vocab, torch.float32, asked.device)
    return nets, pairs.pair(*nets)


def _frame(pair: ModelPair, asked: argparse.Namespace) -> Frame:
    encoder = pair.encoder(pairs.pack(asked.rows, asked.tokens, asked.vocab))
    frame = pair.frame(encoder, encoder.plan, WANTS)
    assert frame.likelihoods, "both ends, which forgetting needs too"
    return frame


def _arguments() -> argparse.Namespace:
    more = {
        "nodes": (8, "Nodes of the path."),
        "rounds": (3, "Rounds, of which the median is reported."),
    }
    parser = pairs.parser(__doc__, more)
    parser.add_argument("--peak-of", choices=WAYS, help="Measure this memory only.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
