"""The gates that a pair passes before any number is believed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from math import inf
from typing import Any, ClassVar

import numpy as np
import torch

from .errors import DriftlensError
from .metric import Metric, measure
from .models import EMBED, Frame, Model, ModelPair, Site, Wants
from .models.alone import Alone
from .models.tokens import Encoder, alike
from .packs import Pack
from .results import Check, Result, column, shown, value
from .results import Estimate as Number

SAMPLE = 12
"""Documents of a pack on which gates and noise floor are measured."""

TOKENS = 256
"""The longest window of that sample."""

TOLERANCE = {"float64": 1e-6, "float32": 1e-3, "bfloat16": 0.5, "float16": 0.1}
"""How far a token's log-probability may move, in nats, when only its batch or padding changes."""


# The noise floor


@dataclass(frozen=True)
class NoiseFloorResult(Result):
    """How far numbers move when the base model is compared with itself in other batches."""

    kind = "noise_floor"
    title = "Noise floor"
    how = """
The base model is compared with itself: once in batches as in the run, once with every text alone, \
unpadded, and its readout in chunks of seven rows. Nothing differs but the order of arithmetic. What \
each diagnostic then says (the largest of its rows, and of the ends of its interval) is the size below \
which it cannot be told from noise; such numbers are greyed out.
""".strip()

    loss_rise: Number = value("nats/token")
    """Largest rise in loss, in size, that noise alone gave."""
    times: Number = value("× the noise floor")
    """How often the measured rise is as large; infinite where there was no noise at all."""

    diagnostic: np.ndarray = column()
    """[row] kind of the result."""
    name: np.ndarray = column()
    """[row] name of its value or column."""
    floor_size: np.ndarray = column()
    """[row] the floor, in that number's unit."""

    def summary(self) -> str:
        """The floor of the headline number."""
        if np.isnan(self.loss_rise.value):
            return f"Noise moved no diagnostic by more than {max(self.floor_size, default=0):.1e}."
        said = f"Noise alone moved the loss by at most {shown(self.loss_rise.value, 2)} nats a token"
        if self.times.value == inf:
            return said + ": not at all on this machine."
        return said + f"; the rise measured is {shown(self.times.value, 2)} times as large."

    def headline(self) -> str:
        """How far the rise stands above noise."""
        if np.isnan(self.times.value):
            return ""
        if self.times.value == inf:
            return "no noise measured"
        return f"{shown(self.times.value, 2)} × the noise floor"


@dataclass(frozen=True)
class Floors:
    """Noise floors by kind of result and name of value or column."""

    sizes: dict[str, dict[str, float]] = field(default_factory=dict)

    def result(self, pack: Pack, results: Sequence[Result]) -> NoiseFloorResult:
        """What the page shows of them, beside the results that they belong to."""
        rise = [r.estimates()["loss_rise"].value for r in results if r.kind == "forgetting"]
        size = self.sizes.get("forgetting", {}).get("loss_rise", np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            times = float(np.divide(abs(rise[0]), size)) if rise else np.nan
        rows = [(kind, name, s) for kind, sizes in self.sizes.items() for name, s in sizes.items()]
        return NoiseFloorResult(
            loss_rise=size,
            times=times,
            diagnostic=[kind for kind, _, _ in rows],
            name=[name for _, name, _ in rows],
            floor_size=np.array([s for _, _, s in rows]),
            pack=pack.name,
        )


def noise_floor(
    model: Model, pack: Pack, metrics: Sequence[Metric], length: int | None = None
) -> Floors:
    """What each diagnostic says of a model and itself in other batches.

    Args:
        model: The base model.
        pack: The pack, of which a few documents are shown.
        metrics: The diagnostics, with nothing seen.
        length: The longest window of the run.
    """
    pair = ModelPair(model, Alone(model))
    few = pack.limit(SAMPLE)
    results = measure(pair, few, metrics, length=min(length or TOKENS, TOKENS))
    return Floors({result.kind: dict(_sizes(result)) for result in results})


def _sizes(result: Result) -> Iterator[tuple[str, float]]:
    estimates, columns = result.estimates(), result.columns()
    for name in getattr(result, "near_zero", ()):
        numbers = np.abs(estimates[name] if name in estimates else columns[name]).astype(float)
        known = numbers[np.isfinite(numbers)]
        yield name, float(known.max()) if len(known) else 0.0


# The gates


@dataclass(frozen=True)
class Patient:
    """A pair, what it is to be asked, and a first sight of it."""

    pair: ModelPair
    packs: Sequence[Pack]
    encoders: Sequence[Encoder]
    frame: Frame
    allow_identical: bool

    def source(self, side: str) -> dict[str, Any]:
        """What is known of where a model came from."""
        return getattr(getattr(self.pair, side), "source", {})


def examine(
    pair: ModelPair,
    packs: Sequence[Pack],
    *,
    allow_identical: bool = False,
    length: int | None = None,
) -> list[Check]:
    """Every gate, in order; none is left out because another failed."""
    encoders = [pair.encoder(pack, length) for pack in packs]
    few = pair.encoder(packs[0].limit(SAMPLE), min(length or TOKENS, TOKENS))
    frame = pair.frame(few, few.plan[:SAMPLE], Wants(frozenset({"out"}), None))
    patient = Patient(pair, packs, encoders, frame, allow_identical)
    return [gate(patient) for gate in GATES]


def require(checks: Sequence[Check]) -> None:
    """Stop where a gate failed without which no number means anything.

    Raises:
        DriftlensError: With the gate's detail.
    """
    for check in checks:
        remedy = REMEDIES.get(check.name)
        if check.status == "fail" and remedy:
            raise DriftlensError(f"the gate “{check.name}” to pass", found=check.detail, remedy=remedy)


REMEDIES = {
    "the models differ": "Check the second path or adapter, or give --allow-identical.",
    "finite weights": "Check that checkpoint.",
}
"""Gates without which there is no report, and what to do."""


def _differ(patient: Patient) -> Check:
    name, pair = "the models differ", patient.pair
    apart = (patient.frame.base.predictors != patient.frame.aligned.predictors).any()
    ours, theirs = (patient.source(side).get("sha256") for side in ("base", "aligned"))
    if pair.base is pair.aligned or (ours is not None and ours == theirs):
        return _identical(patient, name, "every weight is the same")
    if "adapter_of" in patient.source("aligned") and not bool(apart):
        return _identical(patient, name, "the adapter changes nothing (is lora_B zero?)")
    if not bool(apart):
        return Check(name, "warn", "weights differ, but no activation on the first texts does")
    return Check(name, "pass", "weights and activations differ")


def _identical(patient: Patient, name: str, what: str) -> Check:
    return Check(name, "warn" if patient.allow_identical else "fail", what)


def _shapes(patient: Patient) -> Check:
    pair = patient.pair
    return Check("same shape", "pass", f"{pair.depth} blocks of width {pair.width} in both")


def _dtypes(patient: Patient) -> Check:
    ours, theirs = (patient.source(side).get("dtype", "unknown") for side in ("base", "aligned"))
    status = "pass" if ours == theirs and ours in ("float32", "float64") else "warn"
    detail = f"both {ours}" if ours == theirs else f"{ours} and {theirs}"
    return Check("dtype", status, detail + ("" if status == "pass" else "; see the noise floor"))


def _weights(patient: Patient) -> Check:
    for model in (patient.pair.base, patient.pair.aligned):
        for name, weight in getattr(model, "net", torch.nn.Module()).named_parameters():
            if weight.is_floating_point() and not bool(weight.isfinite().all()):
                return Check("finite weights", "fail", f"NaN or infinity in {name} of {model.name}")
    return Check("finite weights", "pass", "all of both models")


def _logits(patient: Patient) -> Check:
    base, aligned = patient.frame.likelihoods
    fine = bool(base.isfinite().all() and aligned.isfinite().all())
    return Check("finite logits", "pass" if fine else "fail", "on the first texts")


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
    status = "pass" if said[0] == said[1] != "adds two" else "warn"
    detail = f"base {said[0]}, aligned {said[1]}"
    return Check("beginning-of-text token", status, detail)


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
    said, status = [], "pass"
    for pack, encoder in zip(patient.packs, patient.encoders, strict=True):
        notes = [f"{len(pack.examples)} documents, {encoder.tokens} tokens"]
        if encoder.windowed:
            notes.append(
                f"{encoder.windowed} longer than {encoder.length} tokens, read in windows that "
                "overlap by half, each token counted once"
            )
        if encoder.skipped:
            status = "warn"
            notes.append(f"{encoder.skipped} left out, with no token to score")
        said.append(f"{pack.name}: {', '.join(notes)}")
    return Check("documents", status, "; ".join(said))


def _padding(patient: Patient) -> Check:
    name, pair = "padding", patient.pair
    if not pair.base.causal:
        return Check(name, "skip", "masked models are always padded on the right")
    worst = max(
        _moved(model, trace.predictors, model.trace(trace.batch.to("cpu").padded_left()).predictors, trace)
        for model, trace in _both(patient)
    )
    return _within(name, patient, worst, "left instead of right padding")


def _batching(patient: Patient) -> Check:
    worst = max(
        _moved(model, trace.predictors, Alone(model).trace(trace.batch).predictors, trace)
        for model, trace in _both(patient)
    )
    return _within("batching", patient, worst, "every text alone instead of in a batch")


def _residual(patient: Patient) -> Check:
    name, pair = "residual stream", patient.pair
    if not pair.base.causal:
        return Check(name, "skip", "masked models are not resumed at a block")
    middle = Site(pair.depth // 2 - 1) if pair.depth > 1 else EMBED
    layer = pair.depth // 2 - 1 if pair.depth > 1 else -1
    worst = max(
        _moved(
            model,
            trace.predictors,
            model.resume(trace.batch, layer, trace.activations[middle]),
            trace,
        )
        for model, trace in _both(patient)
    )
    check = _within(name, patient, worst, f"resuming from {middle} on the stream alone")
    held = all(getattr(model, "residual_identity", True) for model, _ in _both(patient))
    said = "stream + attention + MLP = stream" if held else "blocks add to the stream otherwise"
    return Check(name, check.status, f"{check.detail}; {said}")


def _both(patient: Patient) -> tuple:
    frame, pair = patient.frame, patient.pair
    return ((pair.base, frame.base), (pair.aligned, frame.aligned))


def _moved(model: Model, before: torch.Tensor, after: torch.Tensor, trace: Any) -> float:
    """How far the log-probabilities of the targets moved at most, in nats."""
    targets = trace.batch.targets[:, None]
    logprobs = [
        model.readout(states).float().log_softmax(-1).gather(-1, targets)
        for states in (before, after)
    ]
    return float((logprobs[0] - logprobs[1]).abs().max())


def _within(name: str, patient: Patient, worst: float, what: str) -> Check:
    tolerance = TOLERANCE.get(patient.source("base").get("dtype", "float32"), 1e-3)
    status = "pass" if worst <= tolerance else "warn"
    return Check(
        name, status, f"{what} moves a token by at most {worst:.1e} nats (tolerance {tolerance:g})"
    )


GATES: Sequence[Callable[[Patient], Check]] = (
    _differ,
    _shapes,
    _dtypes,
    _weights,
    _logits,
    _tokens,
    _vocabulary,
    _begin,
    _template,
    _documents,
    _padding,
    _batching,
    _residual,
)
