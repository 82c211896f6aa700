"""What a metric is, and the one loop that feeds it."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
import torch

from . import ranks
from .budget import (
    FOUND,
    FULL,
    LEAST,
    SEARCHED,
    WORTH,
    Budget,
    Trial,
    affordable,
    devices_of,
    metered,
    out_of_memory,
    searched,
)
from .errors import DriftlensError
from .formulas.intervals import Interval, bootstrap
from .formulas.streams import Mergeable
from .models import Frame, ModelPair, Wants
from .models.memory import available
from .models.tokens import Encoder, Window
from .packs import Pack
from .partial import Done, States
from .results import Result, Results

R = TypeVar("R", bound=Result)


class Metric(ABC, Generic[R]):
    """A statistic of a stream of frames that may be split, and merged again.

    Three laws hold of every metric, and `tests/test_laws.py` holds every metric to them:

    - Merging the metrics of two parts of a stream gives the metric of the whole.
    - `compute` changes nothing, and may be called at any time.
    - A pair of a model with itself gives no drift.
    """

    wants: Wants = Wants()
    """What each frame must show."""

    seed: int = 0
    """Of every draw."""

    level: float = 0.95
    """Share of bootstrap draws that an interval holds."""

    also: ClassVar[tuple[type[Result], ...]] = ()
    """What `beside` gives."""

    pair: ModelPair
    encoder: Encoder

    kinds: ClassVar[tuple[str, ...]] = ()
    """Kinds of packs that it can be taken of; any, where none is named."""

    def fits(self, encoder: Encoder) -> bool:
        """Whether a pack, as it is read, holds what the metric asks about."""
        return not self.kinds or encoder.pack.kind in self.kinds

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Learn what is about to be shown; `measure` calls it before the first frame."""
        self.pair, self.encoder = pair, encoder

    @abstractmethod
    def update(self, frame: Frame) -> None:
        """Take in one frame."""

    @abstractmethod
    def compute(self) -> R:
        """The result of all that was seen so far."""

    def beside(self) -> Sequence[Result]:
        """Other results of what `compute` has found, where finding it once serves them all."""
        return ()

    def again(self) -> bool:
        """Whether the pack is to be shown once more, now that all of it was; made ready for it.

        What a metric wants to see may change with each showing.
        """
        return False

    def merge(self, other: "Metric[R]") -> Self:
        """Take in what `other` saw; `other` is left as it is."""
        for name, mine in self._kept().items():
            mine.merge(getattr(other, name))
        return self

    def empty(self) -> Self:
        """The same metric with nothing seen."""
        empty = copy.copy(self)
        for name, mine in self._kept().items():
            setattr(empty, name, mine.empty())
        return empty

    def state(self) -> dict[str, np.ndarray]:
        """All that was seen, as arrays, so that a run can be taken up later."""
        return {
            f"{name}/{key}": array
            for name, kept in self._kept().items()
            for key, array in kept.state().items()
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> Self:
        """Take up what `state` gave."""
        for name, kept in self._kept().items():
            mark = f"{name}/"
            kept.restore({k.removeprefix(mark): v for k, v in state.items() if k.startswith(mark)})
        return self

    def intervals(self, parts: np.ndarray, tokens: np.ndarray, documents: np.ndarray) -> Interval:
        """Ratios of sums over documents, with their bootstrap intervals.

        Args:
            parts: [document, *] what is averaged.
            tokens: [document, *] or [document] over what.
            documents: [document] their numbers; those of one cluster are drawn together.
        """
        clusters = np.asarray(self.encoder.pack.clusters)[documents]
        return bootstrap(parts, tokens, seed=self.seed, level=self.level, clusters=clusters)

    def _kept(self) -> dict[str, Mergeable]:
        return {name: kept for name, kept in vars(self).items() if isinstance(kept, Mergeable)}


class Checkpoint(Protocol):
    """Where a run keeps what it has done, so that it can be taken up again."""

    def load(self) -> Done:
        """What was done, nothing of a fresh run."""

    def save(
        self, tokens: int, batches: Sequence[int], states: Callable[[], States], *, last: bool
    ) -> None:
        """Keep the states of this process after these batches, if it is time to, or its last."""


def measure(
    pair: ModelPair,
    pack: Pack,
    metrics: Metric | Sequence[Metric],
    *,
    rows: int | None = None,
    tokens: int | None = None,
    length: int | None = None,
    search: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Results:
    """Show `pack` to both models once, and give every metric what it wants to see.

    A metric that asks for it is shown the pack again; no checkpoint is kept of that.

    Where memory runs out, a batch is halved and shown again; the results are the same.

    In a group of `torch.distributed` every process is to call this with the same arguments, and
    each of them, with the models whole on its own device, shows a share of the batches. All get
    the results of the whole pack. `ranks.alone` lets a process measure what the others do not.
    Where the group holds the weights in pieces, all show the whole pack together.

    Args:
        pair: The two models.
        pack: What to show them.
        metrics: What to take of it, one or several.
        rows: How many windows to show at a time; None plans by tokens.
        tokens: About how many tokens to show at a time; None plans by memory.
        length: The most tokens in a window; a longer document is read in several.
        search: Whether to find by trial how many tokens fit at a time, on the longest texts; None
            is on an accelerator only. Batches differ, results do not.
        progress: Told after each batch how many windows of how many are done, of this process's.
        checkpoint: Where to keep what is done, and to take it up from.

    Returns:
        The metrics' results, in their order, each with those beside it; a list, of which each is
        also found by its kind.

    Raises:
        DriftlensError: A metric cannot be taken of such a pair or pack, a model's numbers are
            not finite, or one window alone, or one pair of them, does not fit into memory; or
            another process of the group failed, or ended.
    """
    metrics = _metrics(metrics, pack)
    encoder = pair.encoder(pack, length)
    _check(pair, pack, encoder, _wants(metrics))
    for metric in metrics:
        metric.begin(pair, encoder)
    budget = Budget(rows, tokens, search)
    pieces = any(getattr(model, "pieces", False) for model in (pair.base, pair.aligned))
    with ranks.alone() if pieces else nullcontext():
        budget = _pass(pair, encoder, metrics, budget, progress, checkpoint)
        left = list(metrics)
        while left := [metric for metric in left if metric.again()]:
            _pass(pair, encoder, left, budget, progress)
    results = [one for metric in metrics for one in (metric.compute(), *metric.beside())]
    return Results(replace(result, pack=pack.name) for result in results)


def even_part(
    pair: ModelPair, pack: Pack, tokens: int, length: int | None = None
) -> tuple[Pack, str]:
    """Of a large pack an even part, whole groups of it, and what to say of that.

    Args:
        pair: Whose tokens count.
        pack: The pack.
        tokens: About how many tokens to leave; of documents that are longer, two.
        length: The most tokens in a window.
    """
    every = int(max(pack.clusters)) + 1
    keep = int(np.ceil(every * tokens / max(1, pair.encoder(pack, length).tokens)))
    if keep >= every:
        return pack, ""
    chosen = set(np.linspace(0, every - 1, max(2, keep)).round().astype(int).tolist())
    part, _ = pack.parted(chosen)
    said = f"Measured on {len(part.examples)} of {len(pack.examples)} documents, evenly chosen."
    return part, said


def _wants(metrics: Sequence[Metric]) -> Wants:
    return reduce(or_, (metric.wants for metric in metrics), Wants())


def _pass(
    pair: ModelPair,
    encoder: Encoder,
    metrics: Sequence[Metric],
    budget: Budget,
    progress: Callable[[int, int], None] | None,
    checkpoint: Checkpoint | None = None,
) -> Budget:
    """Show all that is not yet done to both models, each process its share of it.

    Returns:
        The budget for what is shown again.
    """
    wants = _wants(metrics)
    before = Done() if checkpoint is None else checkpoint.load()
    # Free memory differs from process to process, and from run to run.
    tokens = before.tokens or ranks.lead(lambda: _tokens(pair, encoder, metrics, budget))
    batches = encoder.batches(tokens, budget.rows)
    share = list(metrics) if ranks.size() == 1 else [metric.empty() for metric in metrics]
    _take_up(share, before)
    done = sorted(before.mine)
    left = [n for n in ranks.share(len(batches)) if n not in before.batches]
    seen, of = (sum(len(batches[n]) for n in some) for some in (done, [*done, *left]))
    with ranks.apart():
        for number in left:
            # Parts are made first and merged last, so that a failure leaves every metric whole.
            parts = _look(pair, encoder, batches[number], share, wants)
            for metric, part in zip(share, parts, strict=True):
                metric.merge(part)
            done.append(number)
            seen += len(batches[number])
            ranks.heed()
            if checkpoint is not None:
                last = number == left[-1] and ranks.size() > 1
                states = lambda: [metric.state() for metric in share]  # noqa: E731
                checkpoint.save(tokens, done, states, last=last)
            if progress is not None:
                progress(seen, of)
    if ranks.size() > 1:
        _gather(metrics, share, _called(pair, encoder, len(batches)))
    # Never in larger batches than before: what is shown in groups is then summed alike.
    return budget._replace(most=tokens, search=False)


def _called(pair: ModelPair, encoder: Encoder, batches: int) -> str:
    """What a pass shows to whom, which must be the same in every process."""
    models = [getattr(model, "source", {}).get("sha256") for model in (pair.base, pair.aligned)]
    return f"of {encoder.pack.name} in {batches} batches {encoder.pack.sha256, *models}"


def _take_up(metrics: Sequence[Metric], before: Done) -> None:
    for number, states in enumerate(before.states):
        for metric, state in zip(metrics, states, strict=True):
            if number:
                metric.merge(metric.empty().restore(state))
            else:
                metric.restore(state)


def _gather(metrics: Sequence[Metric], share: Sequence[Metric], called: str) -> None:
    """Give every metric what all processes saw, in the order of their ranks."""
    for metric, mine in zip(metrics, share, strict=True):
        # One kept thing of one process at a time: they may be as large as a model's weights.
        kept = mine._kept()
        for name, whole in metric._kept().items():
            what = f"{name} of {type(metric).__name__} {called}"
            for state in ranks.gathered(what, kept[name].state()):
                whole.merge(whole.empty().restore(state))


def _tokens(pair: ModelPair, encoder: Encoder, metrics: Sequence[Metric], budget: Budget) -> int:
    """How many tokens to show at a time: searched on an accelerator, or if asked for."""
    if budget.tokens or budget.rows:
        return budget.tokens or LEAST
    wants, devices = _wants(metrics), devices_of(pair)
    guess = min(affordable(pair, wants), budget.most)
    asked = any(d.type == "cuda" for d in devices) if budget.search is None else budget.search
    most = min(SEARCHED, encoder.tokens // WORTH)
    if not asked or most <= guess:
        return guess
    longest = max(window.length for window in encoder.plan)
    kinds = tuple(type(metric) for metric in metrics)
    sizes = (pair.depth, pair.width, pair.base.vocabulary, pair.aligned.vocabulary)
    key = (*sizes, str(getattr(pair.base, "dtype", "")), *map(str, devices), wants, longest, kinds)

    def show(tokens: int) -> Trial:
        windows = encoder.batches(tokens)[0]
        return metered(devices, lambda: _see(pair, encoder, windows, metrics, wants))

    if key not in FOUND:
        room = min((FULL * available(d) for d in devices if d.type == "cuda"), default=np.inf)
        FOUND[key] = searched(show, guess, most, room)
    return min(FOUND[key], most)


def _look(
    pair: ModelPair,
    encoder: Encoder,
    windows: Sequence[Window],
    metrics: Sequence[Metric],
    wants: Wants,
) -> list[Metric]:
    """What each metric sees in some windows, halved until they fit into memory.

    The two answers of a pair are never parted.
    """
    step = 2 if encoder.paired else 1
    try:
        return _see(pair, encoder, windows, metrics, wants)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        if len(windows) <= step:
            what = "the two answers of a pair" if encoder.paired else "one window"
            longest = max(window.length for window in windows)
            raise DriftlensError(
                f"memory for {what} of {longest} tokens",
                found="less",
                remedy="Give a smaller --max-length, fewer --layers, or a larger device.",
            ) from None
    # Outside the handler, so that the failed pass is freed before the next.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(windows) // (2 * step) * step
    left = _look(pair, encoder, windows[:half], metrics, wants)
    right = _look(pair, encoder, windows[half:], metrics, wants)
    return [a.merge(b) for a, b in zip(left, right, strict=True)]


def _see(
    pair: ModelPair,
    encoder: Encoder,
    windows: Sequence[Window],
    metrics: Sequence[Metric],
    wants: Wants,
) -> list[Metric]:
    """What each metric sees in some windows."""
    frame = pair.frame(encoder, windows, wants)
    parts = [metric.empty() for metric in metrics]
    for part in parts:
        part.update(frame)
    return parts


def _metrics(given: Any, pack: Any) -> Sequence[Metric]:
    """Metrics that are ones, of a pack that is one and of a kind that they can be taken of."""
    metrics: list[Any] = [given] if isinstance(given, Metric | type) else list(given)
    strange = [one for one in metrics if not isinstance(one, Metric)]
    if strange:
        called = getattr(strange[0], "__name__", "Forgetting")
        raise DriftlensError(
            "metrics", found=repr(strange[0]), remedy=f"Give them made, as [dl.{called}()]."
        )
    if not isinstance(pack, Pack):
        raise DriftlensError(
            "a pack to show to both models",
            found=f"a {type(pack).__name__}",
            remedy="Give measure(pair, pack, metrics); texts become a pack by dl.Pack.of([…]).",
        )
    for metric in metrics:
        if metric.kinds and pack.kind not in metric.kinds:
            raise DriftlensError(
                f"a pack of kind {' or '.join(metric.kinds)} for {type(metric).__name__}",
                found=f"{pack.name}, of kind {pack.kind}",
                remedy="Show it another pack; `driftlens packs` lists those that ship.",
            )
    return metrics


def _check(pair: ModelPair, pack: Pack, encoder: Encoder, wants: Wants) -> None:
    if wants.together and not pair.together:
        raise DriftlensError(
            "both models at once",
            found=f"{pair.base.name} in a store, its blocks freed",
            remedy="Leave out --two-phase, or the metrics that resume a model or swap weights.",
        )
    if wants.causal and not pair.base.causal:
        raise DriftlensError(
            "models that continue text",
            found=f"{pair.base.name}, which fills in masked tokens",
            remedy="Leave out the metrics that resume a model at a block.",
        )
    if wants.answers and pair.mute:
        raise DriftlensError(
            "two models that can answer prompts",
            found=pair.mute,
            remedy="Load them whole, or leave out packs of prompts.",
        )
    if wants.same_tokens and not encoder.same:
        raise DriftlensError(
            "two tokenizers that cut the text into the same tokens",
            found=f"documents of {pack.name} cut differently by {pair.base.name} "
            f"and {pair.aligned.name}",
            remedy="Leave out the metrics that swap activations token by token.",
        )
