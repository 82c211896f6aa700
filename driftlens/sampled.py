"""What both models answer to the prompts of a pack, for the metrics that read answers."""

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .formulas.streams import Rows
from .metric import Metric, R
from .models import Frame, Wants
from .models.generation import GREEDY, Answer, Sampling

COLUMNS = {
    "side": np.int64,
    "prompt": np.int64,
    "sample": np.int64,
    "text": str,
    "tokens": np.int64,
    "ended": np.bool_,
    "logprob": np.float64,
    "entropy": np.float64,
    "entropy_first": np.float64,
    "entropy_max": np.float64,
    "entropy_std": np.float64,
}
"""What is kept of each answer."""

CLOSE = "."
"""Kept behind each text, for arrays of texts drop NULs at their ends, and a token may be one."""


@dataclass(frozen=True)
class Said:
    """What base (side 0) and aligned (side 1) answered to the same prompts."""

    prompts: np.ndarray
    """[prompt] their numbers in the pack, ascending."""

    samples: np.ndarray
    """[answer] numbers of the answers to each; `GREEDY` comes first, if it was asked for."""

    text: np.ndarray
    """[side, prompt, answer] what was said, as objects."""

    tokens: np.ndarray
    """[side, prompt, answer] how many tokens were drawn, the one that ended it included."""

    ended: np.ndarray
    """[side, prompt, answer] whether the model ended it, and it was not cut off."""

    logprob: np.ndarray
    """[side, prompt, answer] log-probability of its tokens at temperature 1, in nats."""

    entropy: np.ndarray
    """[side, prompt, answer] mean over its tokens of the entropy, at temperature 1, of the
    distribution that each was drawn from, in nats."""

    entropy_first: np.ndarray
    """[side, prompt, answer] the same of its first token."""

    entropy_max: np.ndarray
    """[side, prompt, answer] the same of the token where it is largest."""

    entropy_std: np.ndarray
    """[side, prompt, answer] standard deviation over its tokens."""

    @property
    def drawn(self) -> slice:
        """Which answers are samples."""
        return slice(int((self.samples == GREEDY).sum()), None)

    def greedily(self, side: int) -> dict[int, str]:
        """By the number of the prompt, what one model answers taking the likeliest token."""
        texts = self.text[side, :, self.greedy].ravel().tolist()
        return dict(zip(self.prompts.tolist(), texts, strict=bool(texts)))

    @property
    def greedy(self) -> slice:
        """Which answer, if any, is the greedy one."""
        return slice(0, int((self.samples == GREEDY).sum()))


class Sampled(Metric[R], ABC):
    """A metric of what both models answer to the prompts of a pack.

    All that ask alike are answered once. What was said is kept whole, and read by `said`.

    Args:
        sampling: How answers are drawn, and how many.
    """

    wants: ClassVar[Wants] = Wants(answers=True, together=True)  # type: ignore[misc]

    kinds = ("prompt",)

    def __init__(self, sampling: Sampling = Sampling()) -> None:
        self.sampling, self.seed = sampling, sampling.seed
        self.kept = Rows(2**62, ("side", "prompt", "sample"), COLUMNS)

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        for side, found in enumerate(frame.said(self.sampling)):
            rows = [_row(side, answer) for answer in found]
            columns = zip(*rows, strict=True) if rows else ([] for _ in COLUMNS)
            self.kept.update(**dict(zip(COLUMNS, map(list, columns), strict=True)))

    @property
    def said(self) -> Said:
        """All that was answered so far."""
        table, samples = self.kept.table(), np.array(self.sampling.numbers)
        shape = 2, len(table["side"]) // (2 * len(samples)), len(samples)
        found = {name: column.reshape(shape) for name, column in table.items()}
        of = {name: found[name] for name in COLUMNS if name not in ("side", "prompt", "sample")}
        texts = [text.removesuffix(CLOSE) for text in table["text"].tolist()]
        of["text"] = np.array([*texts, None], dtype=object)[:-1].reshape(shape)
        return Said(found["prompt"][0, :, 0], samples, **of)

    def unanswered(self) -> list[str]:
        """A note of how many prompts are left out, if any is."""
        every = len(self.encoder.pack.examples)
        left = every - len(self.said.prompts)
        said = f"{left} of {every} prompts left out: too long for an answer of "
        return [f"{said}{self.sampling.tokens} tokens to follow."] if left else []


def _row(side: int, answer: Answer) -> tuple:
    entropy = np.array(answer.entropy)
    return (
        *(side, answer.prompt, answer.sample, answer.text + CLOSE, len(entropy), answer.ended),
        *(answer.logprob, entropy.mean(), entropy[0], entropy.max(), entropy.std()),
    )
