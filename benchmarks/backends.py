"""What each back-end costs beside the bare forward passes of the same nets, in one run.

    python benchmarks/backends.py --out backends.json

All look into nets with the same weights. Plain hooks and nnsight run them with sdpa and with eager
attention; TransformerLens with eager alone, beside a bare eager pass. A ratio is of processor time,
measured in turn.
"""

import argparse
import copy
import os
import warnings
from collections.abc import Callable, Iterator
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pairs
import torch
from overhead import Row, as_row, ratios_of, tell, timed
from torch import nn

from driftlens.models import EMBED, Site, Wants
from driftlens.models.backends import BACKENDS, one

STREAM = Wants(frozenset({"out"}), None)
EVERY = Wants(frozenset({"attn", "mlp", "out"}), None)
GRADIENTS = Wants(frozenset({"out"}), None, gradients=True)


def main() -> None:
    asked = pairs.parser(
        str(__doc__), {"rounds": (9, "Turns."), "documents": (2, "Texts.")}
    ).parse_args()
    torch.set_num_threads(1)
    tell(ratios(asked), asked)


def ratios(asked: argparse.Namespace) -> Iterator[Row]:
    """What each back-end takes, by what is asked of it, over a bare pass of the same attention."""
    nets = {kind: _net(asked, kind) for kind in ("sdpa", "eager")}
    words = pairs.tokenizer(asked.vocab)
    looked = {
        (name, kind): one(name, copy.deepcopy(net), words, "random")
        for kind, net in nets.items()
        for name in BACKENDS
        if (name, kind) != ("transformer_lens", "sdpa")
    }
    ids = torch.arange(asked.rows * asked.tokens).reshape(asked.rows, -1) % asked.vocab
    batch = _batch(ids)
    jobs: dict[str, Callable[[object], object]] = {}
    for (name, kind), model in looked.items():
        for what, wants in (("streams", STREAM), ("three sites", EVERY), ("gradients", GRADIENTS)):
            jobs[f"{name}, {kind}: {what}"] = _tracing(model, batch, wants)
        stream = model.trace(batch, STREAM).activations[Site(model.depth // 2 - 1)]
        jobs[f"{name}, {kind}: resumed halfway"] = _resuming(model, batch, stream)
    floors = {kind: _bare(net, ids) for kind, net in nets.items()}
    seconds: dict[str, list[float]] = {name: [] for name in (*jobs, *floors)}
    for turn in range(asked.rounds + 1):
        for name, job in (jobs | floors).items():
            taken = timed(job, None, asked.device)
            if turn:
                seconds[name].append(taken)
    yield as_row("eager / sdpa, bare", ratios_of(seconds["eager"], seconds["sdpa"]))
    for name in jobs:
        kind = "eager" if "eager" in name else "sdpa"
        yield as_row(f"{name} / a bare pass", ratios_of(seconds[name], seconds[kind]))
    hooks = median(seconds["hooks, sdpa: streams"])
    for name in ("nnsight, sdpa: streams",):
        yield as_row(f"{name} / plain hooks", [s / hooks for s in seconds[name]])


def _net(asked: argparse.Namespace, attention: str) -> nn.Module:
    net, _ = pairs.nets(asked.width, asked.depth, asked.vocab, torch.float32, asked.device)
    net.set_attn_implementation(attention)
    net.config.architectures = [type(net).__name__]
    return net


def _batch(ids: torch.Tensor):
    from driftlens.models.tokens import Batch

    rows, tokens = torch.meshgrid(
        torch.arange(len(ids)), torch.arange(1, ids.shape[1]), indexing="ij"
    )
    scored = rows.flatten(), tokens.flatten()
    return Batch(ids, torch.ones_like(ids, dtype=torch.bool), scored, scored, scored[0])


def _tracing(model, batch, wants: Wants) -> Callable[[object], object]:
    def run(_: object) -> object:
        trace = model.trace(batch, wants)
        assert EMBED in trace.activations
        # A trace stops before the head; a bare pass has it, and a gradient run too.
        return trace if wants.gradients else model.readout(trace.predictors)

    return run


def _resuming(model, batch, stream: torch.Tensor) -> Callable[[object], object]:
    return lambda _: model.readout(model.resume(batch, model.depth // 2 - 1, stream))


def _bare(net: nn.Module, ids: torch.Tensor) -> Callable[[object], object]:
    def run(_: object) -> object:
        with torch.no_grad():
            return net(input_ids=ids, use_cache=False).logits

    return run


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
