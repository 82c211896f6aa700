"""What a report looks at, read as a table of contents."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import attribution, mitigation, steer
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
    PublishedShift,
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
from .formulas.clusters import Method
from .metric import Metric, measure
from .models import ModelPair
from .models.generation import ROWS as ANSWERS
from .models.generation import Sampling
from .models.judges import embedding, entailment
from .models.mixture import unmixable
from .models.tokens import Encoder
from .packs import STANDARD, Pack
from .partial import Partial
from .results import Check, Result
from .sampled import Sampled
from .sweeps import Choices, choices, unread


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
    published_shift: bool = False
    """Whether to show beside token shift the KL that the published code would give."""
    every_site: bool | None = None
    """Whether all sites have their CKA, in as many showings as that takes; None if it is cheap."""
    sums_bytes: int | None = None
    """Memory for the sums behind CKA and Procrustes; None is the usual."""
    samples: int = 10
    """Answers drawn of each prompt, besides the greedy one; 0 leaves packs of prompts out."""
    new_tokens: int = 64
    """The most tokens of an answer."""
    temperature: float = 1.0
    """At which answers are drawn."""
    embedding: str | None = None
    """A sentence encoder by which answers are told apart too; None is none."""
    nli: str | None = None
    """A model of entailment by which answers are told apart too; None is none."""
    beta: float = 0.1
    """β of implicit rewards."""
    mitigate: bool = True
    """Whether to ask what would undo the loss, where there is a behaviour to keep."""

    @property
    def sampling(self) -> Sampling:
        """How answers are drawn."""
        return Sampling(self.samples, self.temperature, self.new_tokens, self.seed)

    @property
    def judges(self) -> list[Method]:
        """What tells answers apart besides their words and their spelling."""
        encoders = [embedding(self.embedding)] if self.embedding else []
        return [*encoders, *([entailment(self.nli)] if self.nli else [])]


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
        *((PublishedShift(seed=o.seed),) if o.published_shift else ()),
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
    "preference": lambda o: (Ranking(o.seed, o.beta),),
    "prompt": lambda o: (
        Homogenisation(o.sampling, o.judges),
        Uncertainty(o.sampling),
        Constraints(o.sampling),
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

OF_ANSWERS: Callable[[Options], Sequence[Metric]] = lambda o: (  # noqa: E731
    TokenShift(o.seed),
    ShiftedTokens(seed=o.seed),
    Entropy(o.seed),
    SymptomLayers(o.seed),
)
"""The same of what aligned answers by itself, shown to both models as texts."""

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


def undone(
    pair: ModelPair,
    packs: Sequence[Pack],
    options: Options = Options(),
    *,
    checks: Sequence[Check] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[list[Result], list[Check]]:
    """What would bring the loss back, at what price in alignment, asked at few points.

    Nothing where no text tells what was lost, no choices or preferences what was gained, or a
    gate says that weights cannot be swapped.

    Args:
        pair: The two models.
        packs: What they were shown. Of texts the first counts; of what alignment gained the pack of
            the most families, for half of them choose and the others judge.
        options: What was asked of the run.
        checks: The gates that the pair went through.
        progress: Told what is run, and how many models of how many are done.

    Returns:
        The results, and what to say where the weights cannot be mixed: a run that has measured
        all else does not end there.
    """
    if not (options.mitigate and pair.base.causal and pair.together and divisible(checks)):
        return [], []
    lost = [pack for pack in packs if pack.kind == "text"][:1]
    gained = [pack for pack in packs if _of_alignment(pack, pair)]
    gained = sorted(gained, key=_families, reverse=True)[:1]
    same = all(pair.encoder(pack, options.length).same for pack in (*lost, *gained))
    if not (lost and gained and same):
        return [], []
    if why := unmixable(pair.base, pair.aligned):
        return [], [Check("what would undo it", "warn", f"left out: {why}")]
    asked = replace(mitigation.QUICK, seed=options.seed, rows=options.rows, length=options.length)
    found = mitigation.examine(pair, lost, gained, asked, progress=progress)
    # Of two packs, and so of neither.
    return [replace(result, pack="") for result in found.results], []


def _families(pack: Pack) -> int:
    """How many families of items tell what alignment gained."""
    counted, _ = mitigation.to_refuse(pack)
    return len(set(counted.clusters))


def _of_alignment(pack: Pack, pair: ModelPair) -> bool:
    """Whether a pack tells what alignment gained."""
    if pack.kind == "choice":
        asks = any(example.asks == "agree" for example in pack.examples)
        return asks and not unread(pack, pair)
    return pack.kind == "preference"


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
    if pack.kind == "prompt":
        return _answered(pair, pack, options, checks, checkpoint, progress)
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


def _answered(
    pair: ModelPair,
    pack: Pack,
    options: Options,
    checks: Sequence[Check],
    checkpoint: Any,
    progress: Any,
) -> list[Result]:
    """What both models answer, and what base makes of aligned's own answers."""
    if not options.samples or pair.mute:
        return []
    metrics = applicable(pair, pair.encoder(pack, options.length), options, checks)
    # As many prompts at a time as fill a batch of answers: after each, work is kept and told of.
    rows = min(options.rows or ANSWERS, max(1, ANSWERS // (options.samples + 1)))
    asked = replace(options, rows=rows)
    results = _measured(pair, pack, metrics, asked, checkpoint, progress)
    read = next((metric for metric in metrics if isinstance(metric, Sampled)), None)
    said = read.said.greedily(side=1) if read else {}
    if not any(text.strip() for text in said.values()):
        return results
    answers = pack.answered(said, by="aligned")
    encoder = pair.encoder(answers, options.length)
    few, every = (applicable(pair, encoder, options, checks, OF_ANSWERS(options)) for _ in "ab")
    floors = noise_floor(pair.base, encoder, few)
    shown = _measured(pair, answers, every, options, None, progress)
    return [*results, *_with_floors(shown, floors)]


def floors_of(
    pair: ModelPair, pack: Pack, options: Options, checks: Sequence[Check] = ()
) -> Floors:
    """What each metric of the plan says of base and itself; of what is sampled there is none."""
    if pack.kind == "prompt" or (pack.kind == "choice" and not pair.base.causal):
        return Floors()
    if pack.kind == "choice":
        # By base's own tokens on both sides, whatever aligned's are.
        itself = ModelPair(pair.base, pair.base)
        encoder, metrics = _choosing(itself, choices(pack, itself), options, checks, OF_CHOICES)
    else:
        encoder = pair.encoder(pack, options.length)
        metrics = applicable(pair, encoder, options, checks)
    return noise_floor(pair.base, encoder, metrics)


def _choosing(
    pair: ModelPair,
    reading: Choices,
    options: Options,
    checks: Sequence[Check],
    of: Callable[[Options, Choices], Sequence[Metric]],
) -> tuple[Encoder, list[Metric]]:
    """A pack of choices as it is shown, and what is asked of it."""
    encoder = pair.encoder(reading.pack, options.length)
    return encoder, applicable(pair, encoder, options, checks, of(options, reading))


def _chosen(
    pair: ModelPair,
    pack: Pack,
    options: Options,
    checks: Sequence[Check],
    checkpoint: Any,
    progress: Any,
) -> list[Result]:
    """What both models choose, each item read at the first tokens of its answers."""
    if not pair.base.causal or (pack.name in STANDARD and unread(pack, pair)):
        # A gate has said so.
        return []
    floors = floors_of(pair, pack, options, checks)
    reading = choices(pack, pair)
    _, metrics = _choosing(pair, reading, options, checks, OF_CHOICES)
    results = _measured(pair, reading.pack, metrics, options, checkpoint, progress)
    found = [*_with_floors(results, floors)]
    if divisible(checks):
        _, more = _choosing(pair, reading, options, checks, WEIGHTS_OF_CHOICES)
        found += _measured(pair, reading.pack, more, options, None, progress) if more else []
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
    margin = [ContrastiveMargin(options.layers, options.seed)]
    return [*found.results, *_measured(pair, pack, margin, options, None, progress)]


def _with_floors(results: Sequence[Result], floors: Floors) -> Iterator[Result]:
    for result in results:
        yield replace(result, floor=floors.sizes.get(result.kind, {}))
