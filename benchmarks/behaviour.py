"""What the symptoms of behaviour cost beside the rest of what a report reads of a text.

    python benchmarks/behaviour.py --out behaviour.json

Calibration, entropy, their layers and the shift of tokens read the passes that forgetting needs
anyway. Two arms, the plan of texts without them and with them, are measured in turn in one run, on
a net made on the spot; the bar is the tenth that the project has set itself.
"""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

# Threads are counted when torch is imported; a benchmark shares its machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pairs
import torch
from overhead import Row, as_row, ratios_of, tell, timed

from driftlens import (
    Calibration,
    Entropy,
    ModelPair,
    Pack,
    ShiftedTokens,
    SymptomLayers,
    TokenShift,
    measure,
    suite,
)

SYMPTOMS = (TokenShift, ShiftedTokens, Calibration, Entropy, SymptomLayers)
"""What is to be cheap."""

BAR = 1.1
"""The most that all of them together may make of the time."""


def main() -> None:
    asked = _arguments()
    torch.set_num_threads(1)
    nets = pairs.nets(asked.width, asked.depth, asked.vocab, torch.float32, asked.device)
    pair = pairs.pair(*nets)
    pack = pairs.pack(asked.documents, asked.tokens, asked.vocab)
    tell(arms(pair, pack, asked), asked)


def arms(pair: ModelPair, pack: Pack, asked: Any) -> Iterator[Row]:
    """The plan with all symptoms, and with one at a time, over the plan without any."""
    chosen: dict[str, tuple[type, ...]] = {"all symptoms": ()}
    if asked.each:
        for one in SYMPTOMS:
            chosen[one.__name__] = tuple(kind for kind in SYMPTOMS if kind is not one)
    run = partial(_run, pair, pack, asked.rows)
    run(SYMPTOMS)
    seconds: dict[str, list[float]] = {name: [] for name in ("none", *chosen)}
    for _ in range(asked.rounds):
        for name, without in {"none": SYMPTOMS, **chosen}.items():
            seconds[name].append(timed(run, without, asked.device))
    yield as_row("the plan of texts without symptoms, seconds", seconds["none"])
    for name in chosen:
        bar = BAR if name == "all symptoms" else None
        yield as_row(f"with {name} / without", ratios_of(seconds[name], seconds["none"]), bar=bar)


def _run(pair: ModelPair, pack: Pack, rows: int, without: Sequence[type]) -> None:
    plan = suite.applicable(pair, pair.encoder(pack), suite.Options())
    metrics = [metric for metric in plan if not isinstance(metric, tuple(without))]
    measure(pair, pack, metrics, rows=rows)


def _arguments() -> Any:
    more = {
        "documents": (64, "Texts in the pack."),
        "rounds": (5, "Rounds, of which the median is reported."),
    }
    parser = pairs.parser(__doc__, more)
    parser.add_argument("--each", action="store_true", help="Measure each symptom alone too.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
