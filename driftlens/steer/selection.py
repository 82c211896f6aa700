"""Which direction to take, of several tokens and blocks, for one that prompts alone tell of."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from driftlens.contrasts import MODELS
from driftlens.diagnostics.directions import RoleStates
from driftlens.diagnostics.selection import Candidates, DirectionSelectionResult, selected
from driftlens.errors import DriftlensError
from driftlens.metric import measure
from driftlens.models import ModelPair
from driftlens.models.sites import Site
from driftlens.packs import TWINS, Example, Pack
from driftlens.results import Result
from driftlens.sweeps import choices

TOKENS = 5
"""The most tokens, from the last one back, at which directions are looked for."""

ONE_IN = 3
"""Of the families of each role, one in so many judges; directions are found on the others."""


class Means(RoleStates[Result]):
    """The directions alone, with nothing told of them."""

    def compute(self) -> Result:
        """Nothing but what was kept."""
        return Result()


def select(
    pair: ModelPair,
    contrast: Pack,
    behaviour: Pack,
    side: int,
    *,
    depth: float = 0.8,
    seed: int = 0,
    rows: int | None = None,
    length: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> DirectionSelectionResult:
    """Judge the directions of a model between two roles of prompts by what they do.

    Args:
        pair: The models.
        contrast: Prompts of two roles, with no response.
        behaviour: Choices of one set of answers; those that agree are looked for.
        side: 0 judges base's directions, 1 aligned's.
        depth: Share of the blocks, from the bottom, that may be chosen from.
        seed: Of every draw.
        rows: Windows to show at a time; None plans by memory.
        length: The most tokens in a window.
        progress: Told what is shown, and how many windows of how many are done.

    Raises:
        DriftlensError: Texts have responses, there are too few families, or items of behaviour have
            different answers.
    """
    answers, wanted = _answers(behaviour)
    _refuse_responses(contrast)
    learning, judging = _parted(contrast)
    vectors: dict[tuple[int, int], np.ndarray] = {}
    for back in range(_shared(pair, contrast)):
        metric = Means(None, ("out",), seed=seed, back=back)
        told = progress and partial(progress, f"{contrast.name}, token {-1 - back}")
        measure(pair, learning, [metric], rows=rows, length=length, progress=told)
        found = metric.found()
        for layer in range(pair.depth):
            one = found[MODELS[side], Site(layer)]
            if one.norm:
                vectors[back, layer] = one.vector
    asked = [
        Example(e.text, None, None, "", e.topic, family=e.family, choices=answers, wanted=wanted)
        for e in judging.examples
    ]
    reading = choices(replace(judging, kind="choice", examples=asked), pair)
    roles = [
        replace(shown, role=e.role)
        for shown, e in zip(reading.pack.examples, judging.examples, strict=True)
    ]
    reading = replace(reading, pack=replace(reading.pack, examples=roles))
    candidates = Candidates(reading, vectors, side)
    told = progress and partial(progress, f"{contrast.name}, judged")
    measure(pair, reading.pack, [candidates], rows=rows, length=length, progress=told)
    model = MODELS[0] if pair.base is pair.aligned else MODELS[side]
    return replace(selected(candidates.means(), vectors, model, depth), pack=contrast.name)


def _answers(behaviour: Pack) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The answers of every item."""
    sets = {(e.choices, e.wanted) for e in behaviour.examples}
    if len(sets) > 1:
        raise DriftlensError(
            f"one set of answers for all items of {behaviour.name}, to ask them of other prompts",
            found=f"{len(sets)} sets",
            remedy="Write `agree` and `refuse` into the card, or name another --behaviour.",
        )
    return sets.pop()


def _refuse_responses(contrast: Pack) -> None:
    number = next((n for n, e in enumerate(contrast.examples) if e.scored is not None), None)
    if number is not None:
        raise DriftlensError(
            f"prompts alone in {contrast.name}, to judge directions by what is answered",
            found=f"a response in text {number}",
            remedy="Leave --select out, or give rows without `response`.",
        )


def _parted(contrast: Pack) -> tuple[Pack, Pack]:
    """The pack to learn from, and the one to judge on: families whole, both roles in both."""
    judging: set[int] = set()
    for role in TWINS:
        pairs = zip(contrast.examples, contrast.clusters, strict=True)
        families = list(dict.fromkeys(family for e, family in pairs if e.role == role))
        fresh = [family for family in families if family not in judging]
        judging |= set(fresh[::ONE_IN]) if len(fresh) == len(families) else set()
    judged, rest = contrast.parted(judging)
    for some in (rest, judged):
        held = {example.role for example in some.examples}
        if lacking := [role for role in TWINS if role not in held]:
            raise DriftlensError(
                f"families enough of both roles in {contrast.name}, to find directions on some "
                "and judge them on others",
                found=f"none of {' and '.join(lacking)} in one part",
                remedy="Give more families.",
            )
    return rest, judged


def _shared(pair: ModelPair, contrast: Pack) -> int:
    """How many tokens all prompts end in, at least 1."""
    encoder = pair.encoder(contrast)
    every = [encoder.document(n).sides[1].ids for n in range(len(contrast.examples))]
    count = 0
    # A prompt must have tokens of its own before them.
    most = min(TOKENS, min(map(len, every)) - 1)
    while count < most and len({int(ids[-1 - count]) for ids in every}) == 1:
        count += 1
    return max(count, 1)
