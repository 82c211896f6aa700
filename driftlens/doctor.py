"""The gates that a pair passes before any number is believed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from math import inf
from typing import Any

import numpy as np
import torch

from . import ranks
from .budget import out_of_memory
from .errors import DriftlensError
from .metric import Metric, measure
from .models import EMBED, Frame, Model, ModelPair, Site, Trace, Wants
from .models.alone import Alone
from .models.placement import Weights
from .models.tokens import Encoder, Window, alike
from .packs import STANDARD, Pack
from .results import Check, Result, column, fact, multiple, shown, value
from .results import Estimate as Number
from .sweeps import unread

SAMPLE = 12
"""Documents of a pack on which gates and noise floor are measured."""

TOKENS = 256
"""The longest window of that sample."""

LETTERS = 4 * TOKENS
"""What is read of each of its documents, in characters."""

MARGIN = 3
"""How often what was seen of noise is taken for its floor: another draw may be larger."""

TOLERANCE = {"float64": 1e-6, "float32": 1e-3, "bfloat16": 0.5, "float16": 0.1}
"""How far a token's log-probability may move, in nats, when only its batch or padding changes."""


# The noise floor


@dataclass(frozen=True)
class NoiseFloorResult(Result):
    """How far numbers move when the base model is compared with itself in other batches."""

    kind = "noise_floor"
    title = "Noise floor"
    how = """
The base model is compared with itself on the beginnings of a dozen documents: once in batches as \
in the run, once with every text alone, unpadded, and its readout in chunks of seven rows. Nothing \
differs but the order of arithmetic. Three times what each diagnostic then says (the largest of \
its rows, and of the ends of its interval) is the size below which it cannot be told from noise, \
of which another draw may be larger than the one that was seen; such numbers are greyed out.

    floor = 3 · max over rows and their ends of |number(base, base in other batches)|

The rule is ours.
""".strip()

    noise: Number = value("")
    """Largest size that noise alone may give to the headline figure, in its unit."""
    times: Number = value("× the noise floor")
    """How often what was measured is as large; infinite where there was no noise at all."""
    measured: str = fact()
    """Kind and name of the headline figure."""

    diagnostic: np.ndarray = column()
    """[row] kind of the result."""
    name: np.ndarray = column()
    """[row] name of its value or column."""
    floor_size: np.ndarray = column()
    """[row] the floor, in that number's unit."""

    def summary(self) -> str:
        """The floor of the headline number."""
        if not self.measured:
            return "Nothing was measured that noise could be held against."
        said = f"Noise alone may move {self.measured} by up to {shown(self.noise.value, 2)}"
        if self.times.value == inf:
            return said + ": not at all on this machine."
        return said + f"; what was measured is {multiple(self.times.value)} as large."

    def headline(self) -> str:
        """How far the rise stands above noise."""
        if np.isnan(self.times.value):
            return ""
        if self.times.value == inf:
            return "no noise measured"
        return f"{multiple(self.times.value)} the noise floor"


@dataclass(frozen=True)
class Floors:
    """Noise floors by kind of result and name of value or column."""

    sizes: dict[str, dict[str, float]] = field(default_factory=dict)

    def result(self, pack: Pack, results: Sequence[Result]) -> NoiseFloorResult:
        """What the page shows of them, beside the results that they belong to."""
        rows = [(kind, name, s) for kind, sizes in self.sizes.items() for name, s in sizes.items()]
        kind, name, size = rows[0] if rows else ("", "", np.nan)
        found = [r.estimates()[name].value for r in results if r.kind == kind]
        with np.errstate(divide="ignore", invalid="ignore"):
            times = float(np.divide(abs(found[0]), size)) if found else np.nan
        return NoiseFloorResult.of(
            noise=size,
            times=times,
            measured=f"{kind}.{name}".strip("."),
            diagnostic=[kind for kind, _, _ in rows],
            name=[name for _, name, _ in rows],
            floor_size=np.array([s for _, _, s in rows]),
            pack=pack.name,
        )


def noise_floor(model: Model, encoder: Encoder, metrics: Sequence[Metric]) -> Floors:
    """What each diagnostic says of a model and itself in other batches.

    Args:
        model: The base model.
        encoder: The pack as the run reads it; the beginnings of a few documents are shown.
        metrics: The diagnostics, with nothing seen.
    """
    pair = ModelPair(model, Alone(model))
    few, length = _few(encoder), min(encoder.length, TOKENS)
    shown = pair.encoder(few, length)
    results = measure(pair, few, [m for m in metrics if m.fits(shown)], length=length)
    return Floors({result.kind: dict(_sizes(result)) for result in results})


def _few(encoder: Encoder) -> Pack:
    """The beginnings of a pack's first documents that have something to score, groups whole."""
    pack = encoder.pack
    if pack.kind in ("contrast", "roles"):
        # Whole, for what is read stands at their ends; and as many pairs as say anything.
        return pack.limit(4 * SAMPLE)
    read = {window.example for window in encoder.plan}
    examples = [e for number, e in enumerate(pack.examples) if number in read]
    few = replace(pack, examples=examples).limit(SAMPLE)
    cut = [replace(e, text=e.text[:LETTERS]) if e.scored is None else e for e in few.examples]
    return replace(few, examples=cut)


def _sizes(result: Result) -> Iterator[tuple[str, float]]:
    estimates, columns = result.estimates(), result.columns()
    for name in getattr(result, "near_zero", ()):
        numbers = np.abs(estimates[name] if name in estimates else columns[name]).astype(float)
        known = numbers[np.isfinite(numbers)]
        # What few texts cannot give has no floor, rather than one of 0.
        if len(known):
            yield name, MARGIN * float(known.max())


# The gates


@dataclass(frozen=True)
class Patient:
    """A pair, what it is to be asked, and a first sight of it."""

    pair: ModelPair
    packs: Sequence[Pack]
    encoders: Sequence[Encoder]
    allow_identical: bool

    @cached_property
    def frame(self) -> Frame:
        """The beginnings of a few documents of the first pack, as both models see them."""
        few, windows = sample(self.pair, self.encoders[0])
        while True:
            try:
                return self.pair.frame(few, windows)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or len(windows) == 1:
                    raise
            windows = windows[: len(windows) // 2]

    def source(self, side: str) -> dict[str, Any]:
        """What is known of where a model came from."""
        return getattr(getattr(self.pair, side), "source", {})


def sample(pair: ModelPair, encoder: Encoder) -> tuple[Encoder, list[Window]]:
    """The beginnings of a few documents that gates are asked about, and how they are read."""
    few = pair.encoder(_few(encoder), min(encoder.length, TOKENS))
    return few, few.plan[:SAMPLE]


def examine(
    pair: ModelPair,
    packs: Sequence[Pack],
    *,
    allow_identical: bool = False,
    length: int | None = None,
    gates: Sequence["Gate"] | None = None,
    before: Sequence[Check] = (),
) -> list[Check]:
    """Every gate, in order; where a weight is not finite that one alone, for no other can be asked.

    Args:
        pair: The two models.
        packs: What they are to be shown.
        allow_identical: Whether a pair of one model may pass.
        length: The most tokens in a window.
        gates: Which gates; None is all.
        before: What `OF_ONE` found of a base model whose pass is over, which cannot be asked now.

    Raises:
        DriftlensError: A model gives numbers that are not finite; says which layer and document.
    """
    earlier = {check.name: check for check in before}
    encoders = [pair.encoder(pack, length) for pack in packs]
    patient = Patient(pair, packs, encoders, allow_identical)
    weights = _weights(patient)
    found = [weights]
    if weights.status != "fail":
        asked = any(pack.kind in ("choice", "prompt") for pack in packs)
        found += [gate(patient) for gate in gates or (*GATES, *([_answers] if asked else []))]
    found = [_joined(earlier.get(check.name), check) for check in found]
    # Where a number is close to its tolerance, processes could go on to measure other things.
    return [Check(**told) for told in ranks.lead(lambda: [vars(check) for check in found])]


def _joined(base: Check | None, aligned: Check) -> Check:
    """What a gate found of one model after the other; the graver of the two."""
    if base is None or base.status == aligned.status == "skip":
        return aligned
    status = max(base.status, aligned.status, key=("pass", "skip", "warn", "fail").index)
    return Check(aligned.name, status, f"base: {base.detail}; aligned: {aligned.detail}")


def require(checks: Sequence[Check]) -> None:
    """Stop where a gate failed without which no number means anything.

    Raises:
        DriftlensError: With the gate's detail.
    """
    for check in checks:
        remedy = REMEDIES.get(check.name)
        if check.status == "fail" and remedy:
            gate = f"the gate “{check.name}” to pass"
            raise DriftlensError(gate, found=check.detail, remedy=remedy)


REMEDIES = {
    "the models differ": "Check the second path or adapter, or give --allow-identical.",
    "finite weights": "Check that checkpoint.",
}
"""Gates without which there is no report, and what to do."""

RESIDUAL = "residual stream"
"""The gate without which a model cannot be resumed at a block."""


def resumable(checks: Sequence[Check]) -> bool:
    """Whether nothing was found against resuming a model at a block, as the layer sweep does."""
    return all(check.status == "pass" for check in checks if check.name == RESIDUAL)


WEIGHTS = "matching weights"
"""The gate without which a loss cannot be divided among weights."""


def divisible(checks: Sequence[Check]) -> bool:
    """Whether every weight of one model has its like in the other."""
    return all(check.status == "pass" for check in checks if check.name == WEIGHTS)


def _differ(patient: Patient) -> Check:
    name, pair = "the models differ", patient.pair
    first, second = patient.frame.base.predictors, patient.frame.aligned.predictors
    apart = not torch.equal(first, second.to(first))
    ours, theirs = (patient.source(side).get("sha256") for side in ("base", "aligned"))
    if pair.base is pair.aligned or (ours is not None and ours == theirs):
        return _identical(patient, name, "every weight is the same")
    if "adapter_of" in patient.source("aligned") and not apart:
        return _identical(patient, name, "the adapter changes nothing (is lora_B zero?)")
    if not apart:
        return Check(name, "warn", "weights differ, but no activation on the first texts does")
    return Check(name, "pass", "weights and activations differ")


def _identical(patient: Patient, name: str, what: str) -> Check:
    return Check(name, "warn" if patient.allow_identical else "fail", what)


def _shapes(patient: Patient) -> Check:
    pair = patient.pair
    return Check("same shape", "pass", f"{pair.depth} blocks of width {pair.width} in both")


def _dtypes(patient: Patient) -> Check:
    ours, theirs = (patient.source(side).get("dtype", "unknown") for side in ("base", "aligned"))
    detail = f"both {ours}" if ours == theirs else f"{ours} and {theirs}"
    if patient.pair.base is patient.pair.aligned:
        detail = ours
    rough = [patient.source(side).get("quantised") for side in ("base", "aligned")]
    if any(rough):
        alike = rough[0] == rough[1]
        by = rough[0] if alike else " and ".join(f"{one or 'nothing'}" for one in rough)
        said = f"{detail}, of weights that are quantised by {by}"
        return Check("dtype", "warn", f"{said}; what asks for weights or gradients is left out")
    if ours == theirs and ours in ("float32", "float64"):
        return Check("dtype", "pass", detail)
    return Check("dtype", "warn", f"{detail}; see the noise floor")


def _weights(patient: Patient) -> Check:
    for model in (patient.pair.base, patient.pair.aligned):
        for name, weight in Weights(getattr(model, "net", torch.nn.Module())).items():
            if weight.is_floating_point() and not bool(weight.isfinite().all()):
                return Check("finite weights", "fail", f"NaN or infinity in {name} of {model.name}")
    alone = patient.pair.base is patient.pair.aligned or not patient.pair.together
    return Check("finite weights", "pass", "all" if alone else "all of both models")


def _logits(patient: Patient) -> Check:
    # What is not finite has raised by now, with its model, layer and document.
    count = len(patient.frame.likelihoods[0])
    return Check("finite logits", "pass", f"on the first {count} scored tokens")


def _tokens(patient: Patient) -> Check:
    pair, name = patient.pair, "tokens"
    if alike(pair.base.tokenizer, pair.aligned.tokenizer):
        return Check(name, "pass", "one tokenizer serves both")
    same = all(encoder.same for encoder in patient.encoders)
    if same:
        return Check(name, "pass", "two tokenizers that cut every text of the packs alike")
    return Check(
        name,
        "warn",
        "the tokenizers cut the texts differently: losses are compared over the stretches that "
        "both close; KL, lens and the sweep over layers are left out",
    )


def _vocabulary(patient: Patient) -> Check:
    pair = patient.pair
    sizes = f"{pair.base.vocabulary} and {pair.aligned.vocabulary} logits"
    if pair.shared is None:
        return Check("vocabulary", "pass", f"the same {pair.base.vocabulary} tokens")
    shared = len(pair.shared[0])
    outside = ""
    if patient.frame.encoder.same:
        c = patient.frame.comparison
        outside = (
            f"; outside them lies {float(c.base_outside.mean()):.2g} of base's probability and "
            f"{float(c.aligned_outside.mean()):.2g} of aligned's"
        )
    return Check("vocabulary", "warn", f"{sizes}, {shared} tokens shared by name{outside}")


def _begin(patient: Patient) -> Check:
    said = []
    for side in ("base", "aligned"):
        tokenizer = getattr(patient.pair, side).tokenizer
        ids = tokenizer("a", verbose=False)["input_ids"]
        count = ids[:2].count(tokenizer.bos_token_id) if tokenizer.bos_token_id is not None else 0
        said.append(("adds none", "adds one", "adds two")[count])
    fine = said[0] == said[1] != "adds two"
    alone = patient.pair.base is patient.pair.aligned
    detail = said[0] if alone else f"base {said[0]}, aligned {said[1]}"
    return Check("beginning-of-text token", "pass" if fine else "warn", detail)


def _template(patient: Patient) -> Check:
    templates = [
        getattr(getattr(patient.pair, side).tokenizer, "chat_template", None)
        for side in ("base", "aligned")
    ]
    ours, theirs = (t and sha256(str(t).encode()).hexdigest()[:12] for t in templates)
    if ours == theirs:
        return Check("chat template", "pass", f"the same ({ours})" if ours else "none in either")
    detail = f"base {ours or 'none'}, aligned {theirs or 'none'}; texts are shown raw to both"
    return Check("chat template", "warn", detail)


def _documents(patient: Patient) -> Check:
    said, skipped = [], 0
    for pack, encoder in zip(patient.packs, patient.encoders, strict=True):
        notes = [f"{len(pack.examples)} documents, {encoder.tokens} tokens"]
        if encoder.windowed:
            notes.append(
                f"{encoder.windowed} longer than {encoder.length} tokens, read in windows that "
                "overlap by half, each token counted once"
            )
        if encoder.skipped:
            skipped += encoder.skipped
            why = f"longer than {encoder.length} tokens or " if encoder.paired else ""
            notes.append(f"{encoder.skipped} left out, {why}with no token to score")
        said.append(f"{pack.name}: {', '.join(notes)}")
    return Check("documents", "warn" if skipped else "pass", "; ".join(said))


def _padding(patient: Patient) -> Check:
    name, frame = "padding", patient.frame
    if not patient.pair.base.causal:
        return Check(name, "skip", "masked models are always padded on the right")
    worst = max(
        _moved(frame, model, trace, model.trace(trace.batch.to("cpu").padded_left()).predictors)
        for model, trace in _both(patient)
    )
    return _within(name, patient, worst, "left instead of right padding")


def _batching(patient: Patient) -> Check:
    frame = patient.frame
    worst = max(
        _moved(frame, model, trace, Alone(model).trace(trace.batch).predictors)
        for model, trace in _both(patient)
    )
    return _within("batching", patient, worst, "every text alone instead of in a batch")


def _residual(patient: Patient) -> Check:
    if not patient.pair.base.causal:
        return Check(RESIDUAL, "skip", f"masked models are not resumed at a block; {LEFT_OUT}")
    try:
        worst = max(_resumed(patient.frame, model, trace) for model, trace in _both(patient))
    except STRANGE as error:
        if out_of_memory(error):
            raise
        said = f"a model cannot be resumed at a block ({type(error).__name__}: {error})"
        return Check(RESIDUAL, "warn", f"{said}; {LEFT_OUT}")
    check = _within(RESIDUAL, patient, worst, "resuming at each block on the stream alone")
    if check.status != "pass":
        return replace(check, detail=f"{check.detail}; {LEFT_OUT}")
    held = all(getattr(model, "residual_identity", True) for model, _ in _both(patient))
    said = "stream + attention + MLP = stream" if held else "blocks add to the stream otherwise"
    return replace(check, detail=f"{check.detail}; {said}")


def _matching(patient: Patient) -> Check:
    if not patient.pair.base.causal:
        return Check(WEIGHTS, "skip", "masked models are not divided by weights")
    if not patient.pair.together:
        said = "base's weights are freed after its pass; forgetting by weights is left out"
        return Check(WEIGHTS, "warn", said)
    try:
        pieces = patient.pair.hybrid.pieces("component")
    except DriftlensError as error:
        return Check(WEIGHTS, "warn", f"{error.found}; forgetting by weights is left out")
    except STRANGE as error:
        if out_of_memory(error):
            raise
        said = f"a model is built in a way that is not understood ({type(error).__name__}: {error})"
        return Check(WEIGHTS, "warn", f"{said}; forgetting by weights is left out")
    return Check(WEIGHTS, "pass", f"by name and shape, in {len(pieces)} components")


LEFT_OUT = "forgetting by layer is left out"

STRANGE = (LookupError, TypeError, AttributeError, ValueError, RuntimeError)
"""What a block may raise that misses what an earlier one would have left, or is built otherwise."""


def _resumed(frame: Frame, model: Model, trace: Trace) -> float:
    """How far the longest text's log-probabilities move at most, resumed at any block."""
    row = trace.batch.row(int(trace.batch.mask.sum(1).argmax()))
    whole = model.trace(row, Wants(frozenset({"out"}), None))
    return max(
        _moved(frame, model, whole, model.resume(row, layer, whole.activations[site]))
        for layer, site in enumerate([EMBED, *map(Site, range(model.depth - 1))], -1)
    )


def _both(patient: Patient) -> Sequence[tuple[Model, Trace]]:
    frame, pair = patient.frame, patient.pair
    both = ((pair.base, frame.base), (pair.aligned, frame.aligned))
    # A base whose pass is over was asked before.
    return both if pair.together else both[1:]


def _moved(frame: Frame, model: Model, trace: Trace, after: torch.Tensor) -> float:
    """How far the log-probabilities of what is scored moved at most, in nats."""
    ours, theirs = (frame.likelihood_of(model, trace, p) for p in (trace.predictors, after))
    return float((ours - theirs).abs().max())


def _within(name: str, patient: Patient, worst: float, what: str) -> Check:
    tolerance = TOLERANCE.get(patient.source("base").get("dtype", "float32"), 1e-3)
    detail = f"{what} moves a token by at most {worst:.1e} nats (tolerance {tolerance:g})"
    return Check(name, "pass" if worst <= tolerance else "warn", detail)


Gate = Callable[[Patient], Check]

ALONE: Sequence[Gate] = (_dtypes, _logits, _begin, _padding, _batching)
"""The gates that one model passes by itself."""

STEERED: Sequence[Gate] = (*ALONE, _residual)
"""Those of one model that is to be steered."""


def _answers(patient: Patient) -> Check:
    name, pair, left = "answers", patient.pair, []
    for pack in patient.packs:
        if pack.kind == "choice" and not pair.base.causal:
            left.append(f"{pack.name} is left out, for answers are read where a text goes on")
        elif pack.kind == "choice" and pack.name in STANDARD and (why := unread(pack, pair)):
            left.append(f"{pack.name} is left out, for its answers are not told apart: {why}")
        if pack.kind == "prompt" and (why := pair.mute):
            left.append(f"{pack.name} is left out, for a model cannot answer: {why}")
        if pack.kind in ("choice", "prompt") and not pair.together:
            left.append(f"{pack.name} is left out, for base's blocks were freed")
    if left:
        return Check(name, "warn", "; ".join(left))
    return Check(name, "pass", "both models can be asked for theirs")


GATES: Sequence[Gate] = (
    _differ,
    _shapes,
    _dtypes,
    _logits,
    _tokens,
    _vocabulary,
    _begin,
    _template,
    _documents,
    _padding,
    _batching,
    _residual,
    _matching,
)

OF_ONE: Sequence[Gate] = (_padding, _batching, _residual)
"""Those of a pair that are asked of each model alone."""

STEERED_PAIR: Sequence[Gate] = tuple(g for g in GATES if g not in (_documents, _matching))
"""Those of a pair that is to be steered."""
