"""What a model answers to prompts: many at a time, and the same answers whatever the batch.

The draw of token t of sample s of prompt p is one uniform number, made of (seed, p, s, t) alone, by
which the model's own distribution is inverted in the order of its ids. So nothing depends on
batches, processes or order, and two models are drawn by common random numbers: where they agree,
they say the same. What rounding does to logits can still turn a draw that falls on the border
between two tokens, and with it all of the answer that follows: of 28 250 draws of the demo pair in
float32 one turned with the width of the batch, and five with another instruction set; where logits
are rounded to half precision it is many more. A greedy answer turns where two tokens tie within
rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator, Philox
from torch import Tensor

from driftlens.errors import DriftlensError

from .alone import ROWS as FEW
from .alone import Alone
from .hooks import HookedModel
from .hybrid import plain
from .memory import available, out_of_memory
from .model import Model
from .tokens import opening

GREEDY = -1
"""Number of the answer that takes the likeliest token each time."""

PART = 8
"""The part of a device's free memory, one in so many, that a batch of answers may take."""

ROWS = 256
"""Answers at a time, at most."""

LOGITS = 32
"""Bytes for each logit of a row while a token is drawn: in float32 and summed up in float64."""

_LOWEST = -120.0
"""ln of what is nothing in float32."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Raises:
        DriftlensError: It asks for no answer, or for one of no tokens, or for no temperature.
    """

    samples: int = 10
    """Answers drawn of each prompt, besides the greedy one."""

    temperature: float = 1.0
    """By which logits are divided before a token is drawn."""

    tokens: int = 64
    """The most new tokens of an answer."""

    seed: int = 0
    """Of every draw."""

    greedy: bool = True
    """Whether the answer that takes the likeliest token each time is given too."""

    def __post_init__(self) -> None:
        bounds = {"samples": not self.greedy, "tokens": 1, "seed": 0}
        wrong = [f"{n}={getattr(self, n)}" for n, low in bounds.items() if getattr(self, n) < low]
        if not (isfinite(self.temperature) and self.temperature > 0):
            wrong.append(f"temperature={self.temperature}")
        if wrong:
            raise DriftlensError(
                "at least one answer of one token, a temperature above 0 and a seed from 0",
                found=", ".join(wrong),
                remedy="Ask for the greedy answer alone by samples=0.",
            )

    @property
    def numbers(self) -> range:
        """Numbers of the answers to each prompt."""
        return range(GREEDY if self.greedy else 0, self.samples)


class Answer(NamedTuple):
    """What a model said to a prompt, and how sure it was."""

    prompt: int
    """Number of the prompt in its pack."""

    sample: int
    """Number of the sample from 0; `GREEDY` is the greedy answer."""

    ids: tuple[int, ...]
    """[new token] ids, without the one that ends a text."""

    text: str
    """The same as text, special tokens left out."""

    logprob: float
    """Log-probability of its tokens, the one that ended it included, at temperature 1, in nats."""

    entropy: tuple[float, ...]
    """[new token] Shannon entropy of the distribution, at temperature 1, that each token was drawn
    from, the one that ended it included, in nats."""

    ended: bool
    """Whether the model ended it, and it was not cut off."""


def mute(model: Model) -> str:
    """Why a model cannot answer prompts, in words; empty if it can."""
    if not model.causal:
        return "it fills in masked tokens"
    if isinstance(model, Alone):
        return mute(model.model)
    if getattr(model, "pieces", False):
        return "its weights lie in pieces on several processes"
    if getattr(model, "absent", False):
        return "its weights are not here"
    try:
        net = plain(model).net
    except DriftlensError as error:
        return f"it is {error.found}"
    can = getattr(net, "can_generate", None)
    return "" if can is not None and can() else f"{type(net).__name__} cannot generate"


def answers(
    model: Model,
    prompts: Sequence[str],
    sampling: Sampling = Sampling(),
    *,
    numbers: Sequence[int] | None = None,
    batch: int | None = None,
) -> list[Answer]:
    """What a model answers to some prompts.

    Args:
        model: Whom to ask; it is left as it was found. What steers it goes on steering it.
        prompts: Texts, read as the model's tokenizer begins any text.
        sampling: How answers are drawn, and how many.
        numbers: [prompt] numbers by which they are drawn; None counts from 0.
        batch: Answers at a time; None plans by memory. Halved where memory runs out.

    Returns:
        The answers to each prompt in turn, the greedy one first.

    Raises:
        DriftlensError: The model cannot generate, a prompt leaves no room for an answer, its
            numbers are not finite, or one answer alone does not fit into memory.
    """
    if why := mute(model):
        raise DriftlensError(
            "a model that can answer prompts",
            found=f"{model.name}: {why}",
            remedy="Load it whole, or leave out packs of prompts.",
        )
    if isinstance(model, Alone):
        # Not in its batch, as all else, but not at the price of one answer at a time either.
        return answers(model.model, prompts, sampling, numbers=numbers, batch=FEW)
    speaker = _Speaker(plain(model), sampling)
    numbers = range(len(prompts)) if numbers is None else numbers
    told = [
        _Turn(number, sample, ids)
        for number, ids in zip(numbers, map(speaker.read, prompts), strict=True)
        for sample in sampling.numbers
    ]
    # The longest first: what is too large for memory is met at once, and little is padded.
    order = sorted(range(len(told)), key=lambda n: -len(told[n].prompt))
    step = batch or speaker.affordable(told)
    found: dict[int, Answer] = {}
    for first in range(0, len(order), step):
        some = order[first : first + step]
        said = _fitting(speaker.say, [told[n] for n in some])
        found.update(zip(some, said, strict=True))
    return [found[n] for n in range(len(told))]


def fits(model: Model, prompt: str, sampling: Sampling) -> bool:
    """Whether a prompt leaves room for an answer in a model's context."""
    return _fits(model, opening(model.tokenizer, prompt), sampling)


def _fits(model: Model, ids: Sequence[int], sampling: Sampling) -> bool:
    room = model.context is None or len(ids) + sampling.tokens <= model.context
    return len(ids) > 0 and room


def uniforms(seed: int, prompt: int, sample: int, tokens: int) -> np.ndarray:
    """[token] uniform numbers in [0, 1) of one answer; a longer one begins with the same.

    Philox 4×64-10 counts four numbers at a time (Salmon et al. 2011); the seed is its key, and
    the higher words of its counter are the answer's.
    """
    key, words = np.uint64(seed), np.array([0, sample, prompt, 0], np.uint64)
    return Generator(Philox(key=np.array([key, 0], np.uint64), counter=words)).random(tokens)


class _Turn(NamedTuple):
    """One answer that is to be given."""

    number: int
    sample: int
    prompt: tuple[int, ...]


class _Speaker:
    """A model that is about to answer."""

    def __init__(self, model: HookedModel, sampling: Sampling) -> None:
        self.model, self.sampling = model, sampling
        self.ends = _ends(model)

    def read(self, prompt: str) -> tuple[int, ...]:
        """[token] ids of a prompt."""
        ids, tokens = opening(self.model.tokenizer, prompt), self.sampling.tokens
        if not _fits(self.model, ids, self.sampling):
            raise DriftlensError(
                f"a prompt of at least one token that leaves room for {tokens} more in the "
                f"context of {self.model.name}",
                found=f"{len(ids)} tokens of {self.model.context}: {prompt[:60]!r}",
                remedy="Ask for shorter answers, or leave that prompt out.",
            )
        return ids

    def affordable(self, told: Sequence[_Turn]) -> int:
        """How many answers at a time keep what they take within memory."""
        if not told:
            return 1
        text = self.model.net.config.get_text_config()
        tokens = max(len(turn.prompt) for turn in told) + self.sampling.tokens
        # Keys and values of every block, and what a block needs of a prompt.
        streams = 2 * self.model.depth + 12
        size = self.model.dtype.itemsize * streams * self.model.width * tokens
        each = size + LOGITS * int(text.vocab_size)
        return int(np.clip(available(self.model.device) // PART // each, 1, ROWS))

    def say(self, told: Sequence[_Turn]) -> list[Answer]:
        """The answers, all of them at once."""
        width, rows = max(len(turn.prompt) for turn in told), len(told)
        ids = torch.zeros(rows, width, dtype=torch.long)
        mask = torch.zeros(rows, width, dtype=torch.long)
        for row, turn in enumerate(told):
            ids[row, width - len(turn.prompt) :] = torch.tensor(turn.prompt)
            mask[row, width - len(turn.prompt) :] = 1
        device, drawn = self.model.device, self._draw(told)
        with self.model._as_found(), _own_settings(self.model.net, self._settings()) as settings:
            self.model.net.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=settings,
                logits_processor=[drawn],
            )
        return list(self._heard(told, drawn))

    def _draw(self, told: Sequence[_Turn]) -> "_Draw":
        asked = self.sampling
        given = np.array(
            [uniforms(asked.seed, turn.number, max(turn.sample, 0), asked.tokens) for turn in told]
        )
        greedy = torch.tensor([turn.sample == GREEDY for turn in told])
        return _Draw(torch.from_numpy(given), greedy, asked.temperature)

    def _settings(self) -> Any:
        """All of what decides how `generate` goes on, but for the tokens that are drawn."""
        from transformers import GenerationConfig

        return GenerationConfig(
            max_new_tokens=self.sampling.tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=list(self.ends) or None,
            # Behind its end a row is not looked at, and before its prompt a mask hides it.
            pad_token_id=0,
        )

    def _heard(self, told: Sequence[_Turn], drawn: "_Draw") -> Iterator[Answer]:
        chosen, logprobs, entropies = drawn.noted()
        stops = np.isin(chosen, self.ends)
        for row, turn in enumerate(told):
            ended = bool(stops[row].any())
            length = int(stops[row].argmax()) + 1 if ended else chosen.shape[1]
            entropy, logprob = entropies[row, :length], logprobs[row, :length]
            if not (np.isfinite(entropy).all() and np.isfinite(logprob).all()):
                raise DriftlensError(
                    "finite numbers in the model",
                    found=f"NaN or infinity in the logits of {self.model.name}, after prompt "
                    f"{turn.number}",
                    remedy="Check that checkpoint, or try --dtype float32.",
                )
            ids = tuple(chosen[row, : length - ended].tolist())
            yield Answer(
                *(turn.number, turn.sample, ids, _text(self.model.tokenizer, ids)),
                float(logprob.sum()),
                tuple(entropy.tolist()),
                ended,
            )


class _Draw:
    """Chooses each row's next token, and notes how likely and how open that was.

    Args:
        uniforms: [row, token] numbers in [0, 1).
        greedy: [row] whether the likeliest token is taken instead.
        temperature: By which logits are divided before a token is drawn.
    """

    def __init__(self, uniforms: Tensor, greedy: Tensor, temperature: float) -> None:
        self.uniforms, self.greedy, self.temperature = uniforms, greedy, temperature
        self._chosen: list[Tensor] = []
        self._notes: list[Tensor] = []

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """[row, vocab] scores that leave the chosen token alone."""
        if not self._chosen:
            # Where logits are is known only now.
            self.greedy = self.greedy.to(scores.device)
            self.uniforms = self.uniforms.to(scores.device, _wide(scores.device))
        best, top = scores.max(1, keepdim=True)
        below = (scores - best).clamp_(min=_LOWEST)
        shares = below.exp()
        total = shares.sum(1, keepdim=True)
        entropy = total.log() - (shares * below).sum(1, keepdim=True) / total
        chosen = self._choice(below, shares, top)
        logprob = below.gather(1, chosen) - total.log()
        self._chosen.append(chosen)
        self._notes.append(torch.cat([logprob, entropy], 1))
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)

    def _choice(self, below: Tensor, shares: Tensor, top: Tensor) -> Tensor:
        """[row, 1] the first token up to which more than a uniform part of the mass lies."""
        if bool(self.greedy.all()):
            return top
        if self.temperature != 1:
            shares = (below / self.temperature).clamp_(min=_LOWEST).exp_()
        upto = shares.cumsum(1, dtype=self.uniforms.dtype)
        total = upto[:, -1:]
        sought = self.uniforms[:, len(self._chosen), None] * total
        # What is just below 1 may round to all of the mass, beyond which there is no token.
        sought = sought.minimum(torch.nextafter(total, torch.zeros_like(total)))
        drawn = torch.searchsorted(upto, sought, right=True)
        return torch.where(self.greedy[:, None], top, drawn.clamp(max=shares.shape[1] - 1))

    def noted(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[row, token] of every row the chosen ids, their log-probabilities, and the entropies."""
        notes = torch.stack(self._notes, 1).cpu().double().numpy()
        return torch.cat(self._chosen, 1).cpu().numpy(), notes[..., 0], notes[..., 1]


def _fitting(say: Callable[[list[_Turn]], list[Answer]], told: list[_Turn]) -> list[Answer]:
    """What is said, by halves where memory runs out."""
    try:
        return say(told)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        if len(told) == 1:
            raise DriftlensError(
                f"memory for one answer to a prompt of {len(told[0].prompt)} tokens",
                found="less",
                remedy="Ask for shorter answers, or give a larger device.",
            ) from None
    # Outside the handler, so that the failed pass is freed before the next.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(told) // 2
    return [*_fitting(say, told[:half]), *_fitting(say, told[half:])]


@contextmanager
def _own_settings(net: Any, settings: Any) -> Iterator[Any]:
    """The net has these settings instead of its own while inside.

    `generate` fills in from the net's own whatever it is not told: top-k, penalties, stop words.
    """
    own = vars(net).pop("generation_config", None)
    vars(net)["generation_config"] = type(settings)()
    try:
        yield settings
    finally:
        del vars(net)["generation_config"]
        if own is not None:
            vars(net)["generation_config"] = own


def _ends(model: HookedModel) -> tuple[int, ...]:
    """Ids that end a text, by the net's settings or by its tokenizer."""
    told = [
        getattr(getattr(model.net, "generation_config", None), "eos_token_id", None),
        getattr(model.net.config.get_text_config(), "eos_token_id", None),
        model.tokenizer.eos_token_id,
    ]
    ids = {int(i) for one in told if one is not None for i in np.atleast_1d(one)}
    return tuple(sorted(i for i in ids if 0 <= i < model.vocabulary))


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _wide(device: torch.device) -> torch.dtype:
    """float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
