"""What models say of choices and of texts while their stream is pushed along directions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .errors import DriftlensError
from .formulas.divergence import gold
from .formulas.streams import PerDocument
from .metric import Metric
from .models import Frame, ModelPair, Trace, Wants
from .models.hooks import HookedModel
from .models.hybrid import plain
from .models.model import rows_of
from .models.sites import Site
from .models.steering import Positions
from .models.sweep import Push, bent, places, pushed
from .models.tokens import Continuation, Encoder, continuation
from .packs import Example, Pack
from .results import Result


class Reading(Protocol):
    """What is made of the logits of scored tokens."""

    @property
    def pack(self) -> Pack:
        """What is shown."""
        ...

    @property
    def columns(self) -> Sequence[str]:
        """What `values` gives."""
        ...

    @property
    def scored(self) -> Sequence[str]:
        """What `scores` gives."""
        ...

    def values(self, logits: Tensor, targets: Tensor, documents: np.ndarray, side: int) -> Tensor:
        """[scored token, column] float64; NaN where a logit is not finite."""
        ...

    def scores(self, logits: Tensor, targets: Tensor, documents: np.ndarray, side: int) -> Tensor:
        """[score, scored token] that can be differentiated twice."""
        ...


@dataclass(frozen=True, eq=False)
class Choices:
    """Reads a pack of choices at the token with which an answer begins; see `choices`."""

    pack: Pack
    """Prompts, each with the answer that is wanted first; only its first token is scored."""

    tokens: tuple[Tensor, Tensor]
    """[item, choice] first tokens of the answers, for base's and for aligned's tokenizer; where
    an item has fewer answers than another, the last of them again."""

    signs: Tensor
    """[item, choice] 1 of answers that are wanted, −1 of others, 0 where there is none."""

    columns = (
        *("behaviour", "behaviour_full", "log_odds", "mass", "hits", "hits_full"),
        *("right", "log_right"),
    )
    scored = ("behaviour", "right", "log_right", "log_odds")

    @classmethod
    def none(cls) -> "Choices":
        """The reading of no items."""
        tokens = torch.zeros(0, 1, dtype=torch.long)
        return cls(Pack("", "text", ()), (tokens, tokens), torch.zeros(0, 1))

    def values(self, logits: Tensor, targets: Tensor, documents: np.ndarray, side: int) -> Tensor:
        """[item, column] of the items.

        `behaviour` is P(wanted) − P(others) among the answers, `behaviour_full` among all tokens;
        `log_odds` is ln P(wanted) − ln P(others); `mass` is what the answers have of all tokens;
        `hits` is 1 where a wanted answer is the likeliest of the answers (½ of a tie), and
        `hits_full` the same of all tokens; `right` is P(wanted) among all tokens and `log_right`
        its logarithm.
        """
        own, logs, signs = self._shares(logits, documents, side)
        behaviour, right, log_right, log_odds = _scores(own, logs, signs)
        full, wanted, others = logs.exp(), signs > 0, signs < 0
        best, rival = (own.masked_fill(~z, -torch.inf).amax(1) for z in (wanted, others))
        highest = logits.amax(1, keepdim=True)
        mine, tied = ((own == highest) & wanted).sum(1), (logits == highest).sum(1)
        found = torch.stack(
            [
                behaviour,
                (full * signs).sum(1),
                log_odds,
                (full * signs.abs()).sum(1),
                torch.heaviside(best - rival, own.new_tensor(0.5)),
                0.5 * ((mine > 0).to(own.dtype) + (mine == tied)),
                right,
                log_right,
            ],
            1,
        )
        return torch.where(logs.isfinite().all(1)[:, None], found, torch.nan)

    def scores(self, logits: Tensor, targets: Tensor, documents: np.ndarray, side: int) -> Tensor:
        """[score, item] behaviour, P(wanted) among all tokens, its logarithm, and log-odds."""
        return _scores(*self._shares(logits, documents, side))

    def within(self, logits: Tensor, documents: np.ndarray, side: int) -> Tensor:
        """[item, choice] logarithm of each answer's share of all answers; 0 where there is none."""
        own, _, signs = self._shares(logits, documents, side)
        logs = own.masked_fill(signs == 0, -torch.inf).log_softmax(1)
        return logs.masked_fill(signs == 0, 0.0)

    def _shares(self, logits: Tensor, documents: np.ndarray, side: int) -> tuple[Tensor, ...]:
        """[item, choice] each answer's logit, ln of its share of all tokens, and its sign."""
        wide = logits.double()
        signs = self.signs[documents].to(logits.device).double()
        own = wide.gather(1, self._tokens(documents, side, logits.device))
        return own, own - wide.logsumexp(1, keepdim=True), signs

    def _tokens(self, documents: np.ndarray, side: int, device: torch.device) -> Tensor:
        return self.tokens[side][documents].to(device)


def _scores(own: Tensor, logs: Tensor, signs: Tensor) -> Tensor:
    """[score, item] of answers' logits, logarithms of their shares of all tokens, and signs."""
    within = own.masked_fill(signs == 0, -torch.inf).softmax(1)
    for_, against = (logs.masked_fill(~z, -torch.inf).logsumexp(1) for z in (signs > 0, signs < 0))
    return torch.stack([(within * signs).sum(1), for_.exp(), for_, for_ - against])


@dataclass(frozen=True, eq=False)
class Texts:
    """Reads each scored token of a pack of texts."""

    pack: Pack

    columns = ("tokens", "right", "hits", "log_right")
    scored = ("right", "log_right")

    def values(self, logits: Tensor, targets: Tensor, documents: np.ndarray, side: int) -> Tensor:
        """[scored token, column]: 1, P(token), whether it is the likeliest, ln P(token)."""
        # Three times as fast as what can be differentiated twice.
        log = gold(logits, targets).double()
        hits = (logits.argmax(1) == targets).to(log.dtype)
        found = torch.stack([torch.ones_like(log), log.exp(), hits, log], 1)
        return torch.where(log.isfinite()[:, None], found, torch.nan)

    def scores(self, logits: Tensor, targets: Tensor, documents: np.ndarray, side: int) -> Tensor:
        """[score, scored token] P(token) and ln P(token)."""
        wide = logits.double()
        log = wide.gather(1, targets[:, None])[:, 0] - wide.logsumexp(1)
        return torch.stack([log.exp(), log])


def choices(pack: Pack, pair: ModelPair) -> Choices:
    """A pack of choices, read at the first token of its answers.

    Raises:
        DriftlensError: The pack is of another kind; or, in an item, two answers begin with one
            token, or prompt and answers part at a place that hangs on the answer.
    """
    if pack.kind != "choice":
        raise DriftlensError(
            "a pack of kind choice",
            found=f"{pack.name} of kind {pack.kind}",
            remedy="Give one that `driftlens packs` lists as choice, or rows with `prompt`, "
            "`agree` and `refuse`.",
        )
    models = (pair.base, pair.aligned)
    most = max(len(example.choices) for example in pack.examples)
    tokens = torch.zeros(2, len(pack.examples), most, dtype=torch.long)
    signs = torch.zeros(len(pack.examples), most)
    shown = []
    for number, example in enumerate(pack.examples):
        count = len(example.choices)
        for side, model in enumerate(models):
            if side and pair.aligned.tokenizer is pair.base.tokenizer:
                tokens[side, number] = tokens[0, number]
                continue
            told = [continuation(model.tokenizer, example.text, z) for z in example.choices]
            _check(pack, number, example, told, model.tokenizer)
            tokens[side, number, :count] = torch.tensor([z.first for z in told])
            tokens[side, number, count:] = told[-1].first
            if side == 0:
                shown.append(_shown(example, told[example.wanted[0]]))
        signs[number, :count] = -1
        signs[number, list(example.wanted)] = 1
    return Choices(Pack(pack.name, "text", shown, pack.card), (tokens[0], tokens[1]), signs)


def unread(pack: Pack, pair: ModelPair) -> str:
    """Why the answers of a pack of choices cannot be told apart, in words; empty if they can."""
    try:
        choices(pack, pair)
    except DriftlensError as error:
        return error.found
    return ""


def _shown(example: Example, told: Continuation) -> Example:
    answer = example.choices[example.wanted[0]]
    whole, span = example.text + answer, (len(example.text), told.end)
    # As a group, for texts have no families.
    return replace(example, text=whole, scored=span, choices=(), wanted=())


def _check(
    pack: Pack, number: int, example: Example, told: Sequence[Continuation], tokenizer: Any
) -> None:
    firsts = [one.first for one in told]
    for place, first in enumerate(firsts):
        if first in firsts[:place]:
            twice = example.choices[firsts.index(first)], example.choices[place]
            raise DriftlensError(
                f"answers that begin with different tokens in item {number} of {pack.name}",
                found=f"{twice[0]!r} and {twice[1]!r}, which both begin with "
                f"{tokenizer.convert_ids_to_tokens(first)!r}",
                remedy="Move what they share to the end of the prompt, or word them otherwise.",
            )
    if len({one.before for one in told}) > 1:
        answers = ", ".join(map(repr, example.choices))
        raise DriftlensError(
            f"answers that leave the tokens of the prompt alone in item {number} of {pack.name}",
            found=f"a prompt that ends otherwise before some of {answers}",
            remedy="Begin every answer with a space, or end the prompt before one.",
        )


def seen(reading: Reading, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """What is read of both models as a frame shows them, unpushed; no pass is run again.

    Both are to read the same tokens.

    Returns:
        [scored token] the documents, and [scored token, model, column] of base and of aligned.
    """
    documents = frame.scored.document[frame.base.batch.owner.cpu().numpy()]
    sides = [(frame.pair.base, frame.base), (frame.pair.aligned, frame.aligned)]
    found: list[np.ndarray] = []
    for side, (model, trace) in enumerate(sides):
        if side and trace is frame.base:
            found.append(found[0])
            continue
        size, parts = rows_of(model.vocabulary), [np.empty((0, len(reading.columns)))]
        for first in range(0, len(documents), size):
            some = slice(first, first + size)
            logits = model.readout(trace.predictors[some])
            values = reading.values(logits, trace.batch.targets[some], documents[some], side)
            parts.append(values.cpu().numpy())
        found.append(np.concatenate(parts))
    return documents, np.stack(found, 1)


# What is pushed


@dataclass(frozen=True, eq=False)
class Arm:
    """A push of one of the models, and how far."""

    side: int
    """0 pushes base, 1 aligned."""

    push: Push

    strengths: tuple[float, ...]
    """[strength] in the stream's units."""


@dataclass(frozen=True, eq=False)
class Steered:
    """How a metric of pushed models reads."""

    reading: Reading
    arms: Sequence[Arm]
    positions: Positions = "all"

    @property
    def wants(self) -> Wants:
        """Where all pushes begin."""
        starts = {arm.push.start for arm in self.arms}
        return Wants(
            frozenset({"out"}),
            frozenset(start for start in starts if start >= 0),
            causal=True,
            same_tokens=True,
        )

    def check(self, pair: ModelPair) -> None:
        """Raise unless each model has the places at which it is pushed, as wide as the push."""
        for arm in self.arms:
            for steer in arm.push.steers(1.0):
                steer.sites(plain((pair.base, pair.aligned)[arm.side]))

    def arms_of(self, pair: ModelPair, frame: Frame) -> Any:
        """Of each arm its number, itself, the model, what it saw, and documents of the tokens."""
        documents = frame.scored.document
        # Windows of a prompt that is read in several may hold nothing that is scored.
        for number, arm in enumerate(self.arms if len(documents) else ()):
            model = plain((pair.base, pair.aligned)[arm.side])
            trace = (frame.base, frame.aligned)[arm.side]
            yield number, arm, model, trace, documents[trace.batch.owner.cpu().numpy()]


class Sweep(Metric[Result]):
    """Keeps what is read of each document at each strength of each arm.

    Args:
        reading: What is made of logits.
        arms: Which model is pushed, which way and how far.
        positions: At which tokens.
    """

    def __init__(self, reading: Reading, arms: Sequence[Arm], positions: Positions = "all") -> None:
        self.of = Steered(reading, arms, positions)
        self.wants = self.of.wants
        counts = [len(arm.strengths) for arm in arms]
        self.ends = np.cumsum([0, *counts])
        self.sums = PerDocument(int(self.ends[-1]) * len(reading.columns))

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make sure that every push fits."""
        super().begin(pair, encoder)
        self.of.check(pair)

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        reading = self.of.reading
        shape = (len(frame.windows), int(self.ends[-1]), len(reading.columns))
        numbers = np.array([window.example for window in frame.windows])
        row_of = {int(document): row for row, document in enumerate(numbers)}
        found = np.zeros(shape)
        unpushed: dict[int, np.ndarray] = {}
        for number, arm, model, trace, documents in self.of.arms_of(self.pair, frame):
            here = places(self.of.positions, trace.batch)
            rows = np.array([row_of[int(document)] for document in documents])
            size = min(rows_of(model.vocabulary), len(documents))
            # Memory that is new at each reading costs a tenth of the reading itself.
            room = trace.predictors.new_empty(size, model.vocabulary)
            for place, predictors in pushed(model, trace, arm.push, arm.strengths, here):
                still = predictors is trace.predictors
                if still and arm.side in unpushed:
                    sums = unpushed[arm.side]
                else:
                    read = self._read(model, trace, predictors, documents, arm.side, room)
                    sums = np.zeros((shape[0], shape[2]))
                    np.add.at(sums, rows, read)
                    if still:
                        unpushed[arm.side] = sums
                found[:, self.ends[number] + place] = sums
        self.sums.update(numbers, found.reshape(len(found), -1))

    def compute(self) -> Result:
        """Nothing but what was kept."""
        return Result()

    def found(self, arm: int) -> dict[str, np.ndarray]:
        """[document, strength] by name of column, the documents in the order of the pack."""
        whole = self.sums.sums.reshape(len(self.sums.documents), -1, len(self.of.reading.columns))
        mine = whole[:, self.ends[arm] : self.ends[arm + 1]]
        return {name: mine[..., n] for n, name in enumerate(self.of.reading.columns)}

    def _read(
        self,
        model: HookedModel,
        trace: Trace,
        predictors: Tensor,
        documents: np.ndarray,
        side: int,
        room: Tensor,
    ) -> np.ndarray:
        """[scored token, column] in as many pieces as have room."""
        parts, targets = [], trace.batch.targets
        for first in range(0, len(predictors), len(room)):
            some = slice(first, first + len(room))
            logits = model.readout(predictors[some], room)
            values = self.of.reading.values(logits, targets[some], documents[some], side)
            # A norm makes zeros of a stream whose square is infinite, and logits are all alike.
            wide = predictors[some].to(torch.promote_types(predictors.dtype, torch.float32))
            sound = wide.square().sum(1).isfinite()[:, None]
            parts.append(torch.where(sound, values, torch.nan).cpu().numpy())
        return np.concatenate(parts)


class Bends(Metric[Result]):
    """Keeps the first two derivatives at strength 0 of what is read of each document.

    Args:
        reading: What is made of logits.
        arms: Which model is pushed and which way; their strengths do not count.
        positions: At which tokens.
    """

    def __init__(self, reading: Reading, arms: Sequence[Arm], positions: Positions = "all") -> None:
        self.of = Steered(reading, arms, positions)
        self.wants = replace(self.of.wants, graph=True)
        self.shape = (len(arms), 3, len(reading.scored))
        self.sums = PerDocument(int(np.prod(self.shape)))

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make sure that every push fits."""
        super().begin(pair, encoder)
        self.of.check(pair)

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        numbers = [window.example for window in frame.windows]
        found = np.zeros((len(numbers), *self.shape))
        reading = self.of.reading
        for number, arm, model, trace, documents in self.of.arms_of(self.pair, frame):
            here = places(self.of.positions, trace.batch)
            targets = trace.batch.targets

            def scores(
                logits: Tensor, targets: Any = targets, documents: Any = documents,
                side: int = arm.side,
            ) -> Tensor:  # fmt: skip
                return reading.scores(logits, targets, documents, side)

            bend = bent(model, trace, arm.push, here, scores)
            for order, part in enumerate(bend):
                found[:, number, order] = part.T.cpu().numpy()
        self.sums.update(numbers, found.reshape(len(found), -1))

    def compute(self) -> Result:
        """Nothing but what was kept."""
        return Result()

    def found(self, arm: int) -> dict[str, np.ndarray]:
        """[document, order] value, slope and curvature by name of score."""
        whole = self.sums.sums.reshape(-1, *self.shape)[:, arm]
        return {name: whole[..., n] for n, name in enumerate(self.of.reading.scored)}


class StateGradients(Metric[Result]):
    """Keeps the gradient of what is read of each document by the states, summed over tokens.

    Its product with a direction of length 1 is the slope that a push along it has at 0.

    Args:
        reading: What is made of logits.
        score: Which of its scores.
        sites: At which places.
        positions: At which tokens.
    """

    def __init__(
        self,
        reading: Reading,
        score: str,
        sites: Sequence[Site],
        positions: Positions = "all",
    ) -> None:
        self.reading, self.number = reading, reading.scored.index(score)
        self.sites, self.positions = tuple(sites), positions
        self.wants = Wants(causal=True, same_tokens=True, graph=True)
        self.sums = PerDocument(0)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make room."""
        super().begin(pair, encoder)
        _check_sites(pair, self.sites)
        self.sums = PerDocument(2 * len(self.sites) * pair.width)

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        numbers = [window.example for window in frame.windows]
        of = Steered(self.reading, [Arm(side, _NOWHERE, ()) for side in (0, 1)])
        found = np.zeros((len(numbers), 2, len(self.sites), self.pair.width))
        for side, _, model, trace, documents in of.arms_of(self.pair, frame):
            if side and self.pair.aligned is self.pair.base:
                found[:, 1] = found[:, 0]
                continue
            targets = trace.batch.targets

            def scores(
                logits: Tensor, targets: Any = targets, documents: Any = documents, side: int = side
            ) -> Tensor:
                whole = self.reading.scores(logits, targets, documents, side)
                return whole[self.number : self.number + 1]

            _, (by,) = model.by_state(trace.batch, self.sites, scores)
            here = places(self.positions, trace.batch)
            for place, site in enumerate(self.sites):
                kept = torch.where(here[..., None].to(by[site].device), by[site], 0)
                found[:, side, place] = kept.double().sum(1).cpu().numpy()
        self.sums.update(numbers, found.reshape(len(found), -1))

    def compute(self) -> Result:
        """Nothing but what was kept."""
        return Result()

    @property
    def found(self) -> np.ndarray:
        """[document, model, site, width]."""
        return self.sums.sums.reshape(-1, 2, len(self.sites), self.pair.width)


def _check_sites(pair: ModelPair, sites: Sequence[Site]) -> None:
    for model in (plain(pair.base), plain(pair.aligned)):
        # Which also looks for them while no gradient is being taken.
        missing = [z for z in sites if not (0 <= z.layer < model.depth and model.has(z))]
        if missing:
            raise DriftlensError(
                f"places that {model.name} has, in blocks from 0 to {model.depth - 1}",
                found=", ".join(map(str, missing)),
                remedy="Choose others.",
            )


_NOWHERE = Push({Site(0): torch.ones(1)})
"""Stands where no push is made."""


def push_of(vectors: Mapping[Site, np.ndarray]) -> Push:
    """A push along arrays."""
    return Push({site: torch.from_numpy(np.array(v, np.float64)) for site, v in vectors.items()})
