"""What training on a preference set would do to a model, before anyone trains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import doctor
from .diagnostics import (
    CapabilityConflict,
    Entanglement,
    EntanglementByLayer,
    EntanglementByPosition,
    FirstStep,
    PreferenceFacts,
    PreferenceLosses,
    TokenMap,
)
from .errors import DriftlensError
from .formulas.preferences import DPO, Loss
from .metric import Metric, measure
from .models import ModelPair
from .models.gradients import trainable
from .models.hybrid import plain
from .packs import Example, Pack
from .preferences import FAULTS, Fault, Preferences
from .results import Check, Findings, Results

PROTECTED = "everyday"
"""The shipped pack that stands for what a model can, where none is named."""

GATES_ON = 12
"""Texts on which the gates are tried."""

USUAL = DPO()
"""The loss that is meant where none is named."""


@dataclass(frozen=True)
class Options:
    """What a caller may ask of a check; the names are those of the command line."""

    loss: Loss = USUAL
    """What would be trained with."""
    trained: tuple[str, ...] = ("*",)
    """Patterns that name the weights to be trained."""
    append_eos: bool = True
    """Whether answers that are strings are closed with the end-of-text token, as trainers do."""
    seed: int = 0
    """Of every draw."""
    level: float = 0.95
    """Share of bootstrap draws that an interval holds."""
    rows: int | None = None
    """Answers to show at a time, two for a pair; None plans by memory."""
    length: int | None = None
    """The most tokens of prompt and answer; longer pairs are left out."""
    token_map: tuple[int, ...] = ()
    """Numbers of pairs of which to map what the answers' tokens have in common."""


@dataclass(frozen=True, repr=False)
class Preflight(Findings):
    """What was found of a preference set and a model."""

    pack: Pack
    """The pairs that were shown."""
    faults: tuple[Fault, ...]
    """What is wrong with pairs, those that were left out among them."""
    checks: Sequence[Check]
    """The gates."""
    results: Results
    """What was measured, in the order in which it is read."""

    def safe(self, preferences: Preferences) -> list[Mapping[str, Any]]:
        """The records of the pairs that would move as meant, as they were read."""
        found = self.results["entanglement"].columns()
        good = set(found["pair"][found["case"] == "ideal"].tolist())
        return [pair.record for pair in preferences.pairs if pair.number in good]


def check(
    pair: ModelPair,
    preferences: Preferences,
    options: Options = Options(),
    *,
    protect: Pack | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Preflight:
    """Look at a preference set through the gradients of the model that is to be trained.

    Args:
        pair: The reference as base, and the model to be trained as aligned; a pair of the model
            with itself where training starts at its reference.
        preferences: The set.
        options: What would be trained, and how.
        protect: Texts whose likelihood is to be kept; None takes none.
        progress: Told the set's name, and how many answers of how many are done.

    Raises:
        DriftlensError: No weight is named, no pair is left, a pair to map is not among them, or
            a gradient is 0 or not finite.
    """
    model = plain(pair.aligned)
    if not model.causal:
        raise DriftlensError(
            "a model that continues text, to train on answers",
            found=f"{model.name}, which fills in masked tokens",
            remedy="Give a causal language model.",
        )
    trainable(model, options.trained)
    context = min(n for n in (options.length, model.context, 2**31) if n is not None)
    pack, faults = preferences.pack(model.tokenizer, length=context, append_eos=options.append_eos)
    _check_alike(pair, pack, context)
    checks = [*_gates(pair, pack, options), _faulty(preferences, pack, faults)]
    doctor.require(checks)
    how: dict[str, Any] = {"seed": options.seed, "level": options.level}
    asked: dict[str, Any] = {"loss": options.loss, "trained": options.trained, **how}
    metrics: list[Metric] = [
        PreferenceFacts(_counted(faults), options.loss, **how),
        # Before the others, which need less of the same gradients.
        EntanglementByPosition(**asked),
        Entanglement(**asked),
        FirstStep(**asked),
        EntanglementByLayer(**asked),
        PreferenceLosses(**asked),
    ]
    if protect is not None:
        metrics.append(CapabilityConflict(protect, **asked))
    if options.token_map:
        metrics.append(TokenMap(options.token_map, options.trained))

    def told(done: int, of: int) -> None:
        if progress is not None:
            progress(pack.name, done, of)

    results = measure(pair, pack, metrics, rows=options.rows, length=context, progress=told)
    facts, position, pairs, first, layers, *rest = results
    notes = [*_of_reference(pair, options.loss), *_of_ends(model.tokenizer, preferences, options)]
    pairs = replace(pairs, notes=(*notes, *pairs.notes))
    found = Results([pairs, first, facts, layers, position, *rest])
    return Preflight(pack, faults, checks, found)


def _check_alike(pair: ModelPair, pack: Pack, context: int) -> None:
    """Whether the reference reads what the model reads."""
    if not pair.encoder(pack, context).same:
        raise DriftlensError(
            "a reference that cuts the pairs into the same tokens as the model",
            found=f"{pair.base.name}, which cuts them otherwise than {pair.aligned.name}",
            remedy="Give the model that training starts from as --reference, or leave it out.",
        )


def _gates(pair: ModelPair, pack: Pack, options: Options) -> list[Check]:
    """The gates of a single model, on the pairs' texts."""
    texts = [Example(example.text) for example in pack.examples[:GATES_ON]]
    few = Pack(pack.name, "text", texts)
    return doctor.examine(
        pair, [few], allow_identical=True, length=options.length, gates=doctor.ALONE
    )


def _faulty(preferences: Preferences, pack: Pack, faults: Sequence[Fault]) -> Check:
    """How many pairs could be shown."""
    shown, of = len(pack.examples) // 2, len(preferences.pairs)
    counted = _counted(faults)
    words = {kind: FAULTS[kind][0].rstrip(".") for kind in counted}
    counts = [
        f"in {n}: {words[kind][0].lower()}{words[kind][1:]}" for kind, (n, *_) in counted.items()
    ]
    detail = "; ".join([f"{shown} of {of} can be shown", *counts])
    return Check("pairs", "warn" if counts else "pass", detail)


def _counted(faults: Sequence[Fault]) -> dict[str, tuple[int, int, str]]:
    """By kind of fault, how many pairs have it, how many were left out, and the first in words."""
    found: dict[str, tuple[int, int, str]] = {}
    for kind, (words, kept) in FAULTS.items():
        mine = [fault for fault in faults if fault.kind == kind]
        if mine:
            pairs = len({fault.pair for fault in mine})
            first = f"{words} Pair {mine[0].pair}: {mine[0].detail}"
            found[kind] = pairs, 0 if kept else pairs, first
    return found


def _of_reference(pair: ModelPair, loss: Loss) -> list[str]:
    """What the loss compares with, in words."""
    if not getattr(loss, "needs_reference", False):
        return []
    if pair.base is pair.aligned:
        return ["The reference is the model itself, as where training begins."]
    return [f"The reference is {pair.base.name}."]


def _of_ends(tokenizer: Any, preferences: Preferences, options: Options) -> list[str]:
    """How answers that are strings end, in words."""
    if not any(isinstance(pair.prompt, str) for pair in preferences.pairs):
        return []
    if not options.append_eos:
        return ["Answers are left open: no end-of-text token was appended to them."]
    if tokenizer.eos_token is None:
        return ["Answers are left open: the tokenizer has no end-of-text token to append."]
    return [f"Answers are closed with {tokenizer.eos_token}, as trainers do."]
