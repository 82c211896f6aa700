"""Whether one step on all pairs together does what `first_step` foretells, and what that costs.

    python benchmarks/first_step.py --out first_step.json

What is foretold is the library's; the steps are taken by optimisers of torch on the demo's SFT
model, and read by plain forward passes. The cost is taken on random models: beside an epoch of
training on the same pairs, all in turn, in processor time.
"""

import os
from collections.abc import Iterator

# Threads are counted when torch is imported; a benchmark shares its machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pairs
import torch
from overhead import Row, as_row, tell, timed
from predicted import LOSSES, MOVE, Case, adamw, compared, drawn, sgd, trained

from driftlens import Entanglement, Example, FirstStep, ModelPair, Pack, measure
from driftlens.packs import ANSWERS

RATES = (1e-6, 1e-5, 1e-4)
"""Learning rates of AdamW; its first step moves every weight by about so much."""

COUNTS = {
    "foretold": (96, "Pairs of the demo whose step is foretold."),
    "pairs": (16, "Random pairs of which the cost is taken."),
    "rounds": (3, "How often the cost is taken."),
}
"""What is counted besides the sizes."""


def main() -> None:
    asked = pairs.parser(__doc__, COUNTS).parse_args()
    torch.set_num_threads(1)

    def rows() -> Iterator[Row]:
        yield from foretold(asked.foretold)
        yield from cost(asked)

    tell(rows(), asked)


# --- does it come true? -------------------------------------------------------------------


def foretold(count: int) -> Iterator[Row]:
    """Signs and sizes of every pair's changes after one step of each optimiser."""
    pair, prefs = ModelPair.alone("demo:sft"), drawn(count)
    case = Case.of(pair, prefs)
    pack, _ = prefs.pack(pair.aligned.tokenizer, length=None, append_eos=True)
    for name in ("dpo", "simpo"):
        loss = LOSSES[name]
        (found,) = measure(pair, pack, [FirstStep(loss)])
        columns = found.columns()
        # A case has the longest pairs first.
        order = np.argsort(columns["pair"])[np.argsort(np.argsort(case.number))]
        rates = {
            step: np.stack([columns[f"{step}_{side}"] for side in ANSWERS], 1)[order]
            for step in ("alone", "together", "adam")
        }
        gram = case.together(loss)
        apart = np.abs(rates["together"] - gram).max() / np.abs(gram).max()
        yield as_row(f"{name}: apart from the Gram of all pairs, of the largest", [float(apart)])
        slow = MOVE / np.abs(gram).mean()
        steps = [("SGD", slow, sgd(slow), "together")]
        steps += [(f"AdamW {rate:g}", rate, adamw(rate), "adam") for rate in RATES]
        for called, rate, optimiser, step in steps:
            (net,) = trained(case.net, case.shown, loss, optimiser, [range(case.pairs)])
            seen = case.changed(net)
            yield from _told(f"{name}, {called}", rate * rates[step], seen, rate * rates["alone"])


def _told(what: str, foretold: np.ndarray, seen: np.ndarray, alone: np.ndarray) -> Iterator[Row]:
    together, by_itself = compared(foretold, seen), compared(alone, seen)
    for side in ANSWERS:
        signs = [together[f"sign_{side}"]]
        yield as_row(f"{what}: signs of {side}, together", signs)
        yield as_row(f"{what}: signs of {side}, alone", [by_itself[f"sign_{side}"]])
    off = np.linalg.norm(foretold - seen) / np.linalg.norm(seen)
    yield as_row(f"{what}: error, together", [float(off)])


# --- what does it cost? -------------------------------------------------------------------


def cost(asked) -> Iterator[Row]:
    """What `first_step` adds to `entanglement`, in epochs of training on the same pairs."""
    base, _ = pairs.nets(asked.width, asked.depth, asked.vocab, torch.float32, asked.device)
    words = pairs.tokenizer(asked.vocab)
    pair = ModelPair.alone(base, tokenizer=words)
    pack = answers(asked.pairs, asked.tokens, asked.vocab)
    ids = torch.tensor([words(one.text)["input_ids"] for one in pack.examples], device=asked.device)

    def epoch(_) -> None:
        base.requires_grad_(True)
        for rows in ids.split(2 * asked.rows):
            base(input_ids=rows, labels=rows, use_cache=False).loss.backward()
            with torch.no_grad():
                for weight in base.parameters():
                    weight.sub_(weight.grad, alpha=0.0)
            base.zero_grad(set_to_none=True)
        base.requires_grad_(False)

    def check(metrics) -> None:
        measure(pair, pack, [make() for make in metrics], rows=2 * asked.rows)

    jobs = [(epoch, None), (check, [Entanglement]), (check, [Entanglement, FirstStep])]
    for job, given in jobs:
        job(given)
    epochs = []
    for _ in range(asked.rounds):
        one, without, both = (timed(job, given, asked.device) for job, given in jobs)
        epochs.append((both - without) / one)
    yield as_row("first_step beside entanglement, epochs of training", epochs)


def answers(count: int, tokens: int, vocab: int) -> Pack:
    """Random pairs of answers, each with its prompt of half the tokens."""
    random = np.random.default_rng(0)
    examples = []
    for number in range(count):
        prompt, *both = (
            " ".join(f"w{i}" for i in random.integers(vocab, size=tokens // 2)) for _ in range(3)
        )
        for role, answer in zip(ANSWERS, both, strict=True):
            text = f"{prompt} {answer}"
            examples.append(Example(text, (len(prompt), len(text)), number, role))
    return Pack("random", "preference", examples)


if __name__ == "__main__":
    main()
