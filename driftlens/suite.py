"""What a report looks at, read as a table of contents."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import attribution, steer
from .diagnostics import (
    Calibration,
    ChoiceCalibration,
    Constraints,
    ContrastiveMargin,
    Directions,
    Drift,
    Entropy,
    Factorial,
    Forgetting,
    Homogenisation,
    LayerForgetting,
    Lens,
    Polarity,
    PreferenceCollapse,
    Ranking,
    Retention,
    SafetyDirections,
    SafetyForgetting,
    SafetyWeights,
    SelectiveForgetting,
    ShiftedTokens,
    SymptomLayers,
    TokenForgetting,
    TokenKinds,
    TokenLayers,
    TokenShift,
    Uncertainty,
    WeightChange,
)
from .doctor import Floors, divisible, noise_floor, resumable
from .metric import Metric, measure
from .models import ModelPair
from .models.generation import Sampling
from .models.tokens import Encoder
from .packs import Pack
from .partial import Partial
from .results import Check, Result
from .sweeps import Choices, choices


@dataclass(frozen=True)
class Options:
    """What a caller may ask of a run; the names are those of the command line."""

    layers: frozenset[int] | None = None
    """Blocks at which drift is measured; None is all."""
    seed: int = 0
    """Of every sample and every bootstrap."""
    rows: int | None = None
    """Windows to show at a time; None plans by memory."""
    length: int | None = None
    """The most tokens in a window."""
    published_polarity: bool = False
    """Whether to show beside polarity what the published code would say."""
    every_site: bool | None = None
    """Whether all sites have their CKA, in as many showings as that takes; None if it is cheap."""
    sums_bytes: int | None = None
    """Memory for the sums behind CKA and Procrustes; None is the usual."""


PLAN: Mapping[str, Callable[[Options], Sequence[Metric]]] = {
    "text": lambda o: (
        Forgetting(o.seed),
        LayerForgetting(o.seed),
        Factorial(o.seed),
        TokenKinds(o.seed),
        TokenForgetting(),
        TokenLayers(),
        TokenShift(o.seed),
        ShiftedTokens(seed=o.seed),
        Calibration(o.seed),
        Entropy(o.seed),
        SymptomLayers(o.seed),
        Drift(o.layers, o.seed, o.every_site, o.sums_bytes),
        Lens(o.layers, seed=o.seed),
        Retention(layers=o.layers, seed=o.seed),
    ),
    "stereotype": lambda o: (SelectiveForgetting(o.seed),),
    "contrast": lambda o: (Polarity(o.layers, o.seed, published=o.published_polarity),),
    "roles": lambda o: (
        Directions(o.layers, seed=o.seed),
        ContrastiveMargin(o.layers, o.seed),
    ),
    "preference": lambda o: (Ranking(o.seed),),
    "prompt": lambda o: (
        Homogenisation(Sampling(seed=o.seed)),
        Uncertainty(Sampling(seed=o.seed)),
        Constraints(Sampling(seed=o.seed)),
    ),
    "choice": lambda o: OF_CHOICES(o, Choices.none()),
}
"""The metrics that are taken of each kind of pack, in the order in which they are read."""

ANSWERED = ("choice", "prompt")
"""Kinds of pack that both models answer, and do not only read: both must be there at once."""

OF_CHOICES: Callable[[Options, Choices], Sequence[Metric]] = lambda o, reading: (  # noqa: E731
    SafetyForgetting(reading, seed=o.seed),
    SafetyDirections(reading, o.layers, seed=o.seed),
    ChoiceCalibration(reading, o.seed),
    PreferenceCollapse(reading, seed=o.seed),
)
"""The same of packs of choices, which are read at the first tokens of their answers."""

WEIGHTS_OF_CHOICES: Callable[[Options, Choices], Sequence[Metric]] = lambda o, reading: (  # noqa: E731
    SafetyWeights(reading, seed=o.seed),
)
"""What is taken of choices besides, where the weights of both models can be matched."""

KEPT = 80
"""Examples of each pack that is to be kept, at most, where a report steers."""


def examine(
    pair: ModelPair,
    packs: Sequence[Pack],
    options: Options = Options(),
    *,
    checks: Sequence[Check] = (),
    partial: Partial | None = None,
    floors: Mapping[str, Floors] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[Result]:
    """Measure `pair` on each pack in turn, each result with its noise floor.

    Args:
        pair: The two models.
        packs: What to show them.
        options: What to ask of the run.
        checks: The gates that the pair went through; what they say does not hold is left out.
        partial: Where to keep what is done, and to take it up from.
        floors: By the name of each pack its noise floor, where base is no longer there to be asked.
        progress: Told the pack's name, and how many windows of how many are done.

    Raises:
        DriftlensError: Choices cannot be told apart by the first tokens of their answers.
    """
    for number, pack in enumerate(packs):
        results = partial.results(number) if partial else None
        if results is None:
            checkpoint = partial.checkpoint(number) if partial else None
            floor = (floors or {}).get(pack.name)
            results = _examine(pair, pack, options, checks, floor, checkpoint, progress)
            if partial:
                partial.finish(number, results)
        yield from results


def applicable(
    pair: ModelPair,
    encoder: Encoder,
    options: Options,
    checks: Sequence[Check] = (),
    metrics: Sequence[Metric] | None = None,
) -> list[Metric]:
    """The metrics that can be taken of such a pair and pack.

    Args:
        pair: The two models.
        encoder: The pack as they read it.
        options: What is asked of the run.
        checks: The gates that the pair went through.
        metrics: Which metrics; None is those of the plan.
    """
    resumed = pair.base.causal and resumable(checks)
    return [
        metric
        for metric in (PLAN[encoder.pack.kind](options) if metrics is None else metrics)
        if (pair.together or not metric.wants.together)
        and (resumed or not metric.wants.causal)
        and (encoder.same or not metric.wants.same_tokens)
        and not (metric.wants.answers and pair.mute)
        and metric.fits(encoder)
    ]


def _examine(
    pair: ModelPair,
    pack: Pack,
    options: Options,
    checks: Sequence[Check],
    floors: Floors | None,
    checkpoint: Any,
    progress: Any,
) -> list[Result]:
    if pack.kind in ANSWERED and not pair.together:
        return []
    if pack.kind == "choice":
        return _chosen(pair, pack, options, checks, checkpoint, progress)
    encoder = pair.encoder(pack, options.length)
    plain = pair.base.causal and encoder.same and pair.together
    if pack.kind == "roles" and plain and resumable(checks) and "choices" in pack.card:
        return _steered(pair, pack, options, checks, progress)
    if floors is None:
        floors = floors_of(pair, pack, options, checks)
    metrics = applicable(pair, encoder, options, checks)
    results = _measured(pair, pack, metrics, options, checkpoint, progress)
    found = [*_with_floors(results, floors)]
    if pack.kind == "text" and plain and divisible(checks):
        found += _attributed(pair, pack, options, floors, progress)
    return [*found, floors.result(pack, results)]


def _measured(
    pair: ModelPair,
    pack: Pack,
    metrics: Sequence[Metric],
    options: Options,
    checkpoint: Any,
    progress: Any,
) -> list[Result]:
    return measure(
        pair,
        pack,
        metrics,
        rows=options.rows,
        length=options.length,
        checkpoint=checkpoint,
        progress=progress and (lambda done, of: progress(pack.name, done, of)),
    )


def floors_of(
    pair: ModelPair, pack: Pack, options: Options, checks: Sequence[Check] = ()
) -> Floors:
    """What each metric of the plan says of base and itself; of what is sampled there is none."""
    if pack.kind == "prompt":
        return Floors()
    if pack.kind == "choice":
        # By base's own tokens on both sides, whatever aligned's are.
        _, encoder, metrics = _choosing(ModelPair(pair.base, pair.base), pack, options, checks)
    else:
        encoder = pair.encoder(pack, options.length)
        metrics = applicable(pair, encoder, options, checks)
    return noise_floor(pair.base, encoder, metrics)


def _choosing(
    pair: ModelPair,
    pack: Pack,
    options: Options,
    checks: Sequence[Check],
    of: Callable[[Options, Choices], Sequence[Metric]] | None = None,
) -> tuple[Pack, Encoder, list[Metric]]:
    """What is shown of a pack of choices, and what is asked of that."""
    reading = choices(pack, pair)
    encoder = pair.encoder(reading.pack, options.length)
    metrics = applicable(pair, encoder, options, checks, (of or OF_CHOICES)(options, reading))
    return reading.pack, encoder, metrics


def _chosen(
    pair: ModelPair,
    pack: Pack,
    options: Options,
    checks: Sequence[Check],
    checkpoint: Any,
    progress: Any,
) -> list[Result]:
    """What both models choose, each item read at the first tokens of its answers."""
    floors = floors_of(pair, pack, options, checks)
    shown, _, metrics = _choosing(pair, pack, options, checks)
    results = _measured(pair, shown, metrics, options, checkpoint, progress)
    found = [*_with_floors(results, floors)]
    if divisible(checks):
        _, _, more = _choosing(pair, pack, options, checks, WEIGHTS_OF_CHOICES)
        found += _measured(pair, shown, more, options, None, progress) if more else []
    return [*found, floors.result(pack, results)]


def _attributed(
    pair: ModelPair, pack: Pack, options: Options, floors: Floors, progress: Any
) -> Iterator[Result]:
    """What the weights' shares of the loss are, on an even part of a large pack."""
    asked = attribution.Options(seed=options.seed, rows=options.rows, length=options.length)
    part, said = attribution.sampled(pair, pack, asked)
    floor = floors.sizes["forgetting"]["loss_rise"]
    told = progress and (lambda name, done, of: progress(f"{name}, by weights", done, of))
    results = attribution.attribute(
        pair, part, ["weight-path"], asked, floor=floor, restore="layer", progress=told
    )
    for result in results:
        yield replace(result, notes=(*filter(None, [said]), *result.notes))
    yield measure(pair, part, [WeightChange()], rows=1)[0]


def _steered(
    pair: ModelPair, pack: Pack, options: Options, checks: Sequence[Check], progress: Any
) -> list[Result]:
    """What steering both models between the pack's roles gains and costs."""
    kept = [one.limit(KEPT) for one in steer.kept_by(pack)]
    asked = steer.Options(seed=options.seed, rows=options.rows, length=options.length)
    found = steer.examine(pair, pack, kept, options=asked, checks=checks, progress=progress)
    return [*found.results]


def _with_floors(results: Sequence[Result], floors: Floors) -> Iterator[Result]:
    for result in results:
        yield replace(result, floor=floors.sizes.get(result.kind, {}))
