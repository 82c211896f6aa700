"""What it costs to fit all probes in one batch beside one after another, and whether they agree.

    python benchmarks/probes.py --out probes.json

All layers, all restarts, the same states, the same starts, the same AdamW. The rival is the plain
loop of the published codes: one linear layer, its loss recorded and replayed, one restart of one
layer at a time. Times are processor time, taken in turn.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import TypeVar

# Threads are counted when torch is imported; a benchmark shares its machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from driftlens.estimators import CCS, fit_many
from driftlens.estimators.ccs import OPTIMIZERS, starts

T = TypeVar("T")

BAR = 10
"""How many times as fast the batch should be."""

ALIKE = 1e-6
"""How far losses may be from each other."""


def main() -> None:
    asked = _arguments()
    torch.set_num_threads(1)
    like = CCS(n_restarts=asked.restarts, steps=asked.steps, random_state=0)
    # What comes once in a process, such as loading the optimiser, counts for neither.
    small = planted(1, 20, 4, asked.dtype, seed=0)
    once = CCS(n_restarts=1, steps=2, random_state=0)
    list(one_after_another(list(fit_many(small, like=once)[0].normaliser_(small)), once))
    rounds = []
    for number in range(asked.rounds):
        states = planted(asked.layers, asked.statements, asked.width, asked.dtype, seed=number)
        fitted, batch = _timed(lambda s=states: fit_many(s, like=like))
        normalised = [p.normaliser_(layer) for p, layer in zip(fitted, states, strict=True)]
        losses, plain = _timed(lambda n=normalised: np.array(list(one_after_another(n, like))))
        apart = np.abs(np.array([probe.losses_ for probe in fitted]) - losses).max()
        rounds.append({"batch": batch, "plain": plain, "ratio": plain / batch, "apart": apart})
        print(
            f"round {number + 1}: batch {batch:.2f} s, one after another {plain:.1f} s, "
            f"{plain / batch:.1f} times; losses at most {apart:.1e} apart",
            flush=True,
        )
    ratios = sorted(one["ratio"] for one in rounds)
    worst = max(one["apart"] for one in rounds)
    verdict = "reached" if median(ratios) >= BAR and worst <= ALIKE else "missed"
    print(
        f"{asked.layers} layers × {asked.restarts} restarts × {asked.steps} steps, "
        f"{asked.statements} statements, width {asked.width}, {asked.dtype}: "
        f"{median(ratios):.1f} times ({ratios[0]:.1f} – {ratios[-1]:.1f}), "
        f"losses at most {worst:.1e} apart; bar {BAR} and {ALIKE:.0e}, {verdict}"
    )
    if asked.out:
        asked.out.write_text(json.dumps({"asked": vars(asked) | {"out": None}, "rounds": rounds}))


def planted(layers: int, statements: int, width: int, dtype: str, seed: int) -> np.ndarray:
    """[layer, statement, side, width] noise, with a truth that grows from layer to layer."""
    random = np.random.default_rng(seed)
    states = random.normal(size=(layers, statements, 2, width))
    truth = random.choice([-1.0, 1.0], statements)
    states[..., 0] += np.linspace(0, 4, layers)[:, None, None] * truth[:, None] * [-1, 1]
    return states.astype(dtype)


def one_after_another(layers: list[np.ndarray], like: CCS) -> Iterator[list[float]]:
    """[layer][restart] losses of normalised states, by the plain loop."""
    for layer in layers:
        begin = torch.from_numpy(starts(like, layer.shape[-1]).astype(layer.dtype))
        no, yes = torch.from_numpy(layer).unbind(1)
        yield [_descend(no.contiguous(), yes.contiguous(), start, like) for start in begin]


def _descend(no: torch.Tensor, yes: torch.Tensor, start: torch.Tensor, like: CCS) -> float:
    probe = torch.nn.Linear(len(start) - 1, 1).to(start.dtype)
    probe.weight.data[0], probe.bias.data[0] = start[:-1], start[-1]
    _, lr, weight_decay = OPTIMIZERS["adamw"]
    walker = torch.optim.AdamW(probe.parameters(), lr=lr, weight_decay=weight_decay)
    for _ in range(like.steps):
        walker.zero_grad()
        _loss(probe, no, yes).backward()
        walker.step()
    with torch.no_grad():
        return float(_loss(probe, no, yes))


def _loss(probe: torch.nn.Module, no: torch.Tensor, yes: torch.Tensor) -> torch.Tensor:
    p_no, p_yes = torch.sigmoid(probe(no)), torch.sigmoid(probe(yes))
    consistency = (p_no - (1 - p_yes)).square().mean()
    return consistency + torch.minimum(p_no, p_yes).square().mean()


def _timed(what: Callable[[], T]) -> tuple[T, float]:
    begin = time.process_time()
    return what(), time.process_time() - begin


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--statements", type=int, default=240)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
