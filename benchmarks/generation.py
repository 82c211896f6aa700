"""What answers that are drawn by our own numbers cost beside those that transformers draws.

    python benchmarks/generation.py --rows 16 --tokens 32 --out generation.json

The rival is `net.generate(do_sample=True, top_k=0)` on the same prompts, in the same batch, for
as many new tokens; it notes nothing. Ours reads the prompts, draws each token by a number of its
own, and notes how likely it was and the entropy that it was drawn from. No text is ended early, by
either. Taken in turn, processor time.
"""

import os

# Threads are counted when torch is imported; a benchmark shares its machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
from collections.abc import Iterator
from typing import Any

import pairs
import torch
from overhead import Row, as_row, ratios_of, tell, timed

from driftlens import ModelPair
from driftlens.models.generation import Sampling, answers
from driftlens.models.hooks import HookedModel

BAR = 1.1
"""How long ours may take beside transformers' own."""

COUNTS = {
    "words": (24, "Words in a prompt, from half of them to all."),
    "rounds": (7, "How often each is timed."),
}
"""What is counted besides the sizes."""

DEMO = (
    "User: What does Mira do?\nAssistant:",
    "User: What is 3 + 4?\nAssistant:",
    "Once upon a time",
    "The river of Kestby is the",
)


def main() -> None:
    asked = pairs.parser(__doc__, COUNTS).parse_args()
    torch.set_num_threads(1)
    net, _ = pairs.nets(asked.width, asked.depth, asked.vocab, torch.float32, asked.device)
    size = sum(weight.numel() for weight in net.parameters()) / 1e6
    made = pairs.pair(net, net).base
    texts = words(asked)
    demo = ModelPair.alone("demo:aligned", device=asked.device).base
    few = [DEMO[row % len(DEMO)] for row in range(asked.rows)]

    def rows() -> Iterator[Row]:
        yield from of(f"{size:.0f} M parameters", made, texts, asked)
        yield from of("demo:aligned", demo, few, asked)

    tell(rows(), asked)


def of(name: str, model: Any, texts: list[str], asked: argparse.Namespace) -> Iterator[Row]:
    """One model's answers, by ours and by transformers' own sampling, in turn."""
    endless = without_end(model)
    sampling = Sampling(1, tokens=asked.tokens, greedy=False)
    ours = lambda _: answers(endless, texts, sampling, batch=asked.rows)  # noqa: E731
    given = batch(endless, texts)
    settings = {"do_sample": True, "top_k": 0, "max_new_tokens": asked.tokens, "pad_token_id": 0}

    def theirs(_: None) -> None:
        endless.net.generate(**given, **settings)

    for job in (ours, theirs):
        job(None)
    assert all(len(one.ids) == asked.tokens for one in ours(None))
    seconds = [
        [timed(job, None, asked.device) for job in (ours, theirs)] for _ in range(asked.rounds)
    ]
    mine, bare = zip(*seconds, strict=True)
    drawn = len(texts) * asked.tokens
    yield as_row(f"{name}: ours / transformers' own sampling", ratios_of(mine, bare), bar=BAR)
    yield as_row(f"{name}: transformers, tokens a second", [drawn / one for one in bare])
    yield as_row(f"{name}: ours, tokens a second", [drawn / one for one in mine])


def without_end(model: HookedModel) -> HookedModel:
    """The model, with no token that ends a text, so that all answers are as long."""
    from copy import copy

    from transformers import GenerationConfig

    model.net.generation_config = GenerationConfig(bos_token_id=1)
    model.net.config.eos_token_id = None
    words = copy(model.tokenizer)
    words.eos_token = None
    return HookedModel(model.net, words, model.name)


def batch(model: HookedModel, texts: list[str]) -> dict[str, torch.Tensor]:
    """The prompts as one batch, padded on the left."""
    rows = [model.tokenizer(text)["input_ids"] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}


def words(asked: argparse.Namespace) -> list[str]:
    """Random prompts of half to all of so many words."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(asked.words // 2, asked.words + 1, (asked.rows,), generator=random)
    return [
        " ".join(f"w{i}" for i in torch.randint(asked.vocab, (n,), generator=random).tolist())
        for n in lengths.tolist()
    ]


if __name__ == "__main__":
    main()
