"""What gradients say of capability and of alignment, at either model."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from driftlens.diagnostics.mitigation import (
    MitigationConflictResult,
    MitigationStepsResult,
    Point,
)
from driftlens.errors import DriftlensError
from driftlens.formulas.entanglement import cosine, projected_share
from driftlens.formulas.projection import shadow
from driftlens.models import ModelPair
from driftlens.models.gradients import gradient
from driftlens.models.hooks import HookedModel
from driftlens.models.hybrid import Change, plain
from driftlens.models.memory import available
from driftlens.models.mixture import Instead, Mixture
from driftlens.models.tokens import Batch

from .asked import Options
from .axes import Axis, choosing

GAMMAS = (0.1, 1.0, 10.0)
"""Weights of pre-training text that are forecast."""

STEP = 0.003
"""Length of a step that is forecast, in that of ΔW."""

AT_ONCE = 2**22
"""Weights whose products are taken at a time, in float64."""

Vectors = list[dict[str, Tensor]]
"""[vector] each a tensor for every weight by its name, on the CPU."""


@dataclass
class _Products:
    """Inner products of some vectors, layer by layer."""

    gram: dict[str, np.ndarray] = field(default_factory=dict)
    """By layer, [vector, vector]."""
    weights: Counter = field(default_factory=Counter)
    """By layer, how many weights it has."""

    @property
    def total(self) -> np.ndarray:
        """[vector, vector] over all layers."""
        return np.asarray(sum(self.gram.values()))


class Slopes:
    """Gradients of both aims, their products, and what these forecast.

    The first capability and the first alignment are those that directions are made of.

    Args:
        pair: The models.
        mixed: Their mixture, whose names of weights are used.
        capabilities: What is to be kept.
        alignments: What was gained.
        base: By aim, [document, column] sums of what base was read to be.
        options: How.
    """

    def __init__(
        self,
        pair: ModelPair,
        mixed: Mixture,
        capabilities: list[Axis],
        alignments: list[Axis],
        base: Mapping[Axis, np.ndarray],
        options: Options,
    ) -> None:
        self.pair, self.mixture, self.base, self.options = pair, mixed, base, options
        self.capabilities, self.alignments = capabilities, alignments

    def _slope(self, model: HookedModel, axis: Axis, documents: np.ndarray) -> dict[str, Tensor]:
        """Gradient of the mean of an axis over some documents, by every weight, in float32."""
        number = list(axis.reading.scored).index(axis.score)
        tokens = self.base[axis][:, 0]

        def score(logits: Tensor, targets: Tensor, mine: np.ndarray, _: Any) -> Tensor:
            return axis.reading.scores(logits, targets, mine, 1)[number]

        return self._summed(model, axis, axis.counts(tokens, documents), score)

    def _summed(
        self,
        model: HookedModel,
        axis: Axis,
        counts: np.ndarray,
        score: Callable[[Tensor, Tensor, np.ndarray, Any], Tensor],
        beside: Callable[[Any], Callable[[slice], Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        """Gradient of a weighted sum of what is made of scored tokens, tied weights as one."""
        encoder = self.pair.encoder(axis.reading.pack, self.options.length)
        # Of weights in half precision too, inner products want more digits.
        kind = torch.promote_types(model.dtype, torch.float32)
        trained = {n: p.detach().to(kind) for n, p in model.net.named_parameters()}
        leaders, found = self.mixture.leaders, dict[str, Tensor]()
        for every in encoder.batches(2048, self.options.rows):
            windows = [w for w in every if counts[w.example] != 0]
            if not windows:
                continue
            batch, _, units = encoder.encode(windows)
            batch = batch.to(model.device)
            document = units.of_scored().document[batch.owner.cpu().numpy()]
            weight = torch.from_numpy(counts[document]).to(batch.ids.device)
            other = beside(batch) if beside else None

            def scored(
                logits: Tensor, some: slice, document: np.ndarray = document,
                batch: Batch = batch, weight: Tensor = weight, other: Any = other,
            ) -> Tensor:  # fmt: skip
                more = None if other is None else other(some)
                found = score(logits, batch.targets[some], document[some], more)
                return found * weight[some].to(found.dtype)

            for name, part in gradient(model, trained, batch, scored).items():
                leader = leaders[name]
                found[leader] = found[leader] + part.cpu() if leader in found else part.cpu()
        return found

    def _documents(self, axis: Axis, chosen: bool | None = None) -> np.ndarray:
        """Documents of which anything is scored, of the half that chooses if that is asked."""
        clusters = np.array(axis.reading.pack.clusters)
        any_scored = self.base[axis].any(1)
        mine = choosing(clusters, self.options.seed) if chosen else True
        return np.flatnonzero(any_scored & mine)

    @property
    def _differentiable(self) -> list[Axis]:
        return [axis for axis in (*self.capabilities, *self.alignments) if axis.score]

    @cached_property
    def at_aligned(self) -> dict[Axis, dict[str, Tensor]]:
        """By axis, its gradient at aligned."""
        axes = self._differentiable
        self._check_room(len(axes) + 2)
        with self.mixture.at(1.0) as model:
            return {axis: self._slope(model, axis, self._documents(axis)) for axis in axes}

    def ahead(self) -> dict[Axis, float]:
        """By axis, its change from aligned to the weights that are set, to first order."""
        moved: dict[Axis, float] = dict.fromkeys(self.at_aligned, 0.0)
        weights = dict(self.mixture.model.net.named_parameters())
        for change in self.mixture.changes():
            kind = _wide(change.aligned)
            step = (weights[change.name].detach().to(kind) - change.aligned.to(kind)).cpu()
            if not bool(step.any()):
                continue
            for axis, slope in self.at_aligned.items():
                moved[axis] += _dot(slope[change.name], step)
        return moved

    @cached_property
    def _parts(self) -> Vectors:
        """Gradients at base of parts of the first capability's choosing documents."""
        axis = self.capabilities[0]
        documents = self._documents(axis, chosen=True)
        count = min(self.options.gradients, len(documents))
        self._check_room(count + 2)
        with self.mixture.at(0.0) as model:
            return [self._slope(model, axis, documents[n::count]) for n in range(count)]

    def projections(self) -> Iterator[tuple[str, int, Instead]]:
        """Of all weights as one and layer by layer: how many gradients are taken out, and how."""
        parts = self._parts
        products = self._products([*parts, self._change])
        for by in ("all", "layer"):
            grams = dict.fromkeys(products.gram, products.total) if by == "all" else products.gram
            taken = {z: shadow(g[:-1, :-1], g[-1, :-1]) for z, g in grams.items()}
            yield by, len(parts), partial(_projected, parts, taken)

    @cached_property
    def _change(self) -> dict[str, Tensor]:
        return {
            c.name: (c.aligned.to(_wide(c.aligned)) - c.base.to(_wide(c.base))).cpu()
            for c in self.mixture.changes()
        }

    def _products(self, vectors: Vectors) -> _Products:
        """Inner products of all of them, by layer, in float64."""
        found = _Products()
        for change in self.mixture.changes():
            gram = found.gram.setdefault(change.layer, np.zeros((len(vectors),) * 2))
            found.weights[change.layer] += change.base.numel()
            flat = [vector[change.name].reshape(-1) for vector in vectors]
            for pieces in zip(*(z.split(AT_ONCE) for z in flat), strict=True):
                wide = torch.stack([z.double() for z in pieces])
                gram += (wide @ wide.T).numpy()
        return found

    @cached_property
    def _at_base(self) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
        """Gradients at base of the first capability and of the first alignment."""
        axes = self.capabilities[0], self.alignments[0]
        if not all(axis.score for axis in axes):
            return None
        with self.mixture.at(0.0) as model:
            one, other = (self._slope(model, axis, self._documents(axis)) for axis in axes)
        return one, other

    def conflicts(self) -> Iterator[MitigationConflictResult]:
        """Where both aims pull at the same weights; nothing where one has no gradient."""
        if self._at_base is None:
            return
        parts, (of_capability, of_alignment) = self._parts, self._at_base
        products = self._products([*parts, of_capability, of_alignment, self._change])
        grams = {**products.gram, "all": products.total}
        sizes = {**products.weights, "all": sum(products.weights.values())}
        rows: dict[str, list[Any]] = {name: [] for name in _CONFLICT}
        m = len(parts)
        for layer, gram in grams.items():
            both = projected_share(
                gram[:m, :m], gram[m + 1 :, :m], np.diag(gram)[m + 1 :], sizes[layer]
            )
            ours = gram[m, m]
            turns = cosine(np.diag(gram)[m + 1 :], gram[m + 1 :, m], ours)
            for name, cell in zip(
                _CONFLICT,
                (layer, both.share[0], both.chance, turns[0], np.sqrt(gram[m + 1, m + 1]),
                 both.share[1], turns[1]),
                strict=True,
            ):  # fmt: skip
                rows[name].append(cell)
        yield MitigationConflictResult.of(
            **rows,
            conflict_all=rows["conflict"][-1],
            chance_all=rows["chance"][-1],
            cosine_all=rows["cosine"][-1],
            gradients=m,
            pack=self.capabilities[0].called,
            **self._named(),
        )

    def _named(self) -> dict[str, str]:
        return {
            "capability_pack": self.capabilities[0].called,
            "alignment_pack": self.alignments[0].called,
        }

    @cached_property
    def _gram_at_aligned(self) -> np.ndarray | None:
        """[4, 4] products of gradients at aligned of alignment, capability and −KL, and −ΔW."""
        capability, alignment = self.capabilities[0], self.alignments[0]
        if not (capability.score and alignment.score):
            return None
        with self.mixture.at(1.0) as model:
            towards = self._towards_base(model, capability)
        back = {name: -change for name, change in self._change.items()}
        slopes = self.at_aligned
        return self._products([slopes[alignment], slopes[capability], towards, back]).total

    def _towards_base(self, model: HookedModel, axis: Axis) -> dict[str, Tensor]:
        """Gradient of −KL(π ‖ π_b) by the scored tokens of an axis, per token."""
        base = plain(self.pair.base)

        def beside(batch: Any) -> Callable[[slice], Tensor]:
            predictors = base.trace(batch).predictors
            return lambda some: base.readout(predictors[some]).double().log_softmax(-1)

        def score(logits: Tensor, _: Tensor, __: np.ndarray, theirs: Tensor) -> Tensor:
            ours = logits.double().log_softmax(-1)
            return -(ours.exp() * (ours - theirs)).sum(-1)

        tokens = self.base[axis][:, 0]
        counts = axis.counts(tokens, self._documents(axis))
        return self._summed(model, axis, counts, score, beside)

    def forecast(self, cost: float, alignment: float) -> Iterator[Point]:
        """Where one step from aligned would lie, of a small share of the length of ΔW."""
        if self._gram_at_aligned is None:
            return
        gram = self._gram_at_aligned
        length = STEP * np.sqrt(gram[3, 3])
        for name, mixed in _FROM_ALIGNED.items():
            d = np.array(mixed)
            size = np.sqrt(d @ gram @ d)
            if size > 0:
                gains = gram @ d / size * length
                yield Point(
                    "step", name, f"a step {name}", False, cost - gains[1], alignment + gains[0]
                )

    def steps(self) -> Iterator[MitigationStepsResult]:
        """What one more step would do; nothing where an aim has no gradient."""
        if self._at_base is None or self._gram_at_aligned is None:
            return
        rows: dict[str, list[Any]] = {name: [] for name in _STEPS}
        of_capability, of_alignment = self._at_base
        parts = self._parts
        gram = self._products([of_alignment, of_capability, *parts]).total
        free = -gram[0, 1] / gram[1, 1] if gram[1, 1] > 0 else np.nan
        taken = shadow(gram[2:, 2:], gram[0, 2:])
        ptx = {f"PTX γ = {g:g}": (1.0, g) for g in GAMMAS}
        wide = {n: np.array([*z, *np.zeros(len(parts))]) for n, z in ptx.items()}
        wide = {
            "alignment": np.eye(len(gram))[0],
            **wide,
            "projected": np.array([1.0, 0.0, *(-taken)]),
        }
        _told(rows, "base", wide, gram)
        there = {n: np.array(z) for n, z in _FROM_ALIGNED.items()}
        _told(rows, "aligned", {"alignment": np.eye(4)[0], **there}, self._gram_at_aligned)
        yield MitigationStepsResult.of(
            gamma_free=float(free), pack=self.capabilities[0].called, **rows, **self._named()
        )

    def _check_room(self, vectors: int) -> None:
        weights = sum(change.base.numel() for change in self.mixture.changes())
        needed, free = 4 * weights * vectors, available(torch.device("cpu"))
        if needed > free:
            raise DriftlensError(
                f"memory for {vectors} gradients of all weights ({needed / 1e9:.2g} GB)",
                found=f"{free / 1e9:.2g} GB",
                remedy="Leave projection and forecast out of --method, or give fewer --gradients.",
            )


_CONFLICT = (
    *("layer", "conflict", "chance", "cosine", "norm"),
    *("change_conflict", "change_cosine"),
)
_STEPS = ("at", "direction", "capability", "alignment", "kept", "per_gain")

_FROM_ALIGNED: Mapping[str, tuple[float, float, float, float]] = {
    "PTX alone": (0.0, 1.0, 0.0, 0.0),
    **{f"PTX γ = {g:g}": (1.0, g, 0.0, 0.0) for g in GAMMAS},
    "KL alone": (0.0, 0.0, 1.0, 0.0),
    "KL β = 1": (1.0, 0.0, 1.0, 0.0),
    "towards base": (0.0, 0.0, 0.0, 1.0),
}
"""Directions from aligned, in gradients of alignment, of capability, of −KL, and −ΔW."""


def _told(
    rows: dict[str, list[Any]], at: str, mixed: Mapping[str, np.ndarray], gram: np.ndarray
) -> None:
    """Rows of what a step of length 1 does along mixtures of vectors; alignment's stands first."""
    steepest = np.sqrt(gram[0, 0])
    for name, d in mixed.items():
        size = np.sqrt(max(0.0, d @ gram @ d))
        gains = gram @ d / size if size > 0 else np.full(len(gram), np.nan)
        told = (
            *(at, name, gains[1], gains[0]),
            gains[0] / steepest if steepest > 0 else np.nan,
            gains[1] / gains[0] if gains[0] > 0 else np.nan,
        )
        for column, cell in zip(_STEPS, told, strict=True):
            rows[column].append(cell)


def _dot(one: Tensor, other: Tensor) -> float:
    flat = one.reshape(-1).split(AT_ONCE), other.reshape(-1).split(AT_ONCE)
    return sum(float(a.double() @ b.double()) for a, b in zip(*flat, strict=True))


def _wide(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


def _projected(parts: Vectors, taken: Mapping[str, np.ndarray], change: Change) -> Tensor | None:
    """The aligned weight without what of its change lies in the gradients' span."""
    if torch.equal(change.base, change.aligned):
        return None
    kind = _wide(change.base)
    inside = sum(
        float(a) * part[change.name].to(kind)
        for a, part in zip(taken[change.layer], parts, strict=True)
    )
    assert isinstance(inside, Tensor), "one gradient at least"
    return change.aligned.to(kind) - inside.to(change.base.device)
