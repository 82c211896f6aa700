"""What a sweep of strengths costs beside running each strength alone, and what slopes at 0 cost.

    python benchmarks/steering.py --tokens 32 --rows 8 --out steering.json

The rival is what one writes by hand: the net inside `steered`, once for each strength, on the same
batches. Of choices it reads out the last token alone, of texts every token, and it makes the same
columns of the logits by the same code. The sweep has to run each batch unpushed first, which the
rival does not: no strength is 0. One model, beside itself. Taken in turn, processor time.
"""

import os

# Threads are counted when torch is imported; a benchmark shares its machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import pairs
import torch
from overhead import Row, Run, as_row, ratios_of, tell, timed

from driftlens import ModelPair
from driftlens.models.sites import Site
from driftlens.models.steering import Add, Steer, steered
from driftlens.models.sweep import Push
from driftlens.packs import Example, Pack
from driftlens.sweeps import Arm, Bends, Reading, Sweep, Texts, choices

BAR = 0.6
"""How long a sweep may take beside each strength alone."""

LAYERS = (6, 9)
"""Where the stream is pushed as it leaves the block; the bar holds from the first on."""

FAR = 8.0
"""The strengths lie between this and its opposite."""


def main() -> None:
    asked = pairs.parser(__doc__, COUNTS).parse_args()
    torch.set_num_threads(1)
    net, _ = pairs.nets(asked.width, asked.depth, asked.vocab, torch.float32, asked.device)
    pair = pairs.pair(net, net)
    ways = {
        "choices": choices(items(asked.items, asked.tokens, asked.vocab), pair),
        "texts": Texts(pairs.pack(asked.texts, asked.long, asked.vocab)),
    }
    tell((row for name in ways for row in rows_of_way(pair, name, ways[name], asked)), asked)


COUNTS = {
    "items": (24, "Choice items."),
    "texts": (6, "Texts."),
    "long": (128, "Tokens in a text; an item has half to all of --tokens."),
    "strengths": (16, "Strengths, none of them 0."),
    "still": (0, "1 looks at 0 as well, as every curve does."),
    "rounds": (5, "How often each is timed."),
}
"""What is counted besides the sizes."""


def rows_of_way(
    pair: ModelPair, name: str, reading: Reading, asked: argparse.Namespace
) -> Iterator[Row]:
    """The sweep and the slopes at each layer, against each strength alone, in turn."""
    vector = torch.randn(pair.width, generator=torch.Generator().manual_seed(0))
    strengths = tuple(
        np.linspace(-FAR, FAR, asked.strengths + asked.strengths % 2 + asked.still).tolist()
    )
    arms = {layer: [Arm(0, Push({Site(layer): vector}), strengths)] for layer in LAYERS}
    sweeps = {layer: Run(pair, reading.pack, [Sweep(reading, arms[layer])]) for layer in LAYERS}
    bends = {layer: Run(pair, reading.pack, [Bends(reading, arms[layer])]) for layer in LAYERS}
    encoder = sweeps[LAYERS[0]].encoder
    batches = encoder.batches(0, asked.rows)
    sizes = [encoder.encode(windows)[0].ids.numel() for windows in batches]

    def alone(windows: Sequence) -> None:
        """Each strength by itself, at the lowest of the layers; others cost it the same."""
        batch, _, units = encoder.encode(windows)
        documents = units.of_scored().document[batch.owner.numpy()]
        for strength in strengths:
            with torch.no_grad(), steered(pair.base.net, Steer(Add(vector, strength), LAYERS[0])):
                reading.values(logits(pair.base.net, batch, name), batch.targets, documents, 0)

    jobs: list[Callable[[Sequence], None]] = [
        alone,
        *(run.show for runs in (sweeps, bends) for run in runs.values()),
    ]
    for job in jobs:
        job(batches[0])
    seconds = [
        [sum(timed(job, windows, asked.device) for windows in batches) for job in jobs]
        for _ in range(asked.rounds)
    ]
    floor, *taken = zip(*seconds, strict=True)
    yield as_row(f"{name}: strengths alone, tokens a second", rates(floor, sizes, strengths))
    for layer, some in zip(LAYERS, taken, strict=False):
        label = f"{name}: sweep at layer {layer} / {len(strengths)} strengths alone"
        yield as_row(label, ratios_of(some, floor), bar=BAR)
    for layer, some in zip(LAYERS, taken[len(LAYERS) :], strict=True):
        passes = [len(strengths) * ratio for ratio in ratios_of(some, floor)]
        yield as_row(f"{name}: slope and curvature at layer {layer}, in plain forwards", passes)


def logits(net: torch.nn.Module, batch, name: str) -> torch.Tensor:
    """[scored token, vocab] as one has them by hand: of choices those of one token a row."""
    rows, tokens = batch.target
    padded = not bool(batch.mask.all())
    given = {"attention_mask": batch.mask.long()} if padded else {}
    if name == "texts":
        return net(input_ids=batch.ids, use_cache=False, **given).logits[rows, tokens - 1]
    states = net.model(input_ids=batch.ids, use_cache=False, **given).last_hidden_state
    return net.lm_head(states[rows, tokens - 1])


def rates(
    seconds: Sequence[float], sizes: Sequence[int], strengths: Sequence[float]
) -> list[float]:
    return [sum(sizes) * len(strengths) / s for s in seconds]


def items(count: int, tokens: int, vocab: int) -> Pack:
    """Random questions of two answers, of about so many words, a few of them fewer."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(tokens // 2, tokens, (count,), generator=random).cumsum(0).tolist()
    ids = torch.randint(vocab, (lengths[-1],), generator=random).tolist()
    questions = [ids[first:last] for first, last in pairwise([0, *lengths])]
    examples = [
        Example(" ".join(f"w{i}" for i in one), choices=(" w1", " w2"), wanted=(number % 2,))
        for number, one in enumerate(questions)
    ]
    return Pack("questions", "choice", examples)


if __name__ == "__main__":
    main()
