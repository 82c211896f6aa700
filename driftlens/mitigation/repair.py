"""Changes of weights without their own noise."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from driftlens.diagnostics.weights import FUSED, PAIRED, WIDEST, layout
from driftlens.formulas.spectral import spectrum, structure
from driftlens.models.hybrid import Change


class Repair:
    """Of each change of a matrix only what stands out of its own noise; the rest is left whole.

    Source: Gavish & Donoho (2014); as "DG-Hard" in "Spectral Unforgetting" (arXiv 2605.20296).

    Args:
        text: The models' configuration, which tells how fused weights are laid out.
    """

    def __init__(self, text: Any) -> None:
        self.text = text
        self.hazards: dict[str, set[str]] = {}
        self.dropped: dict[str, tuple[float, float]] = {}
        self.kept: dict[str, tuple[int, int]] = {}

    def __call__(self, change: Change) -> Tensor | None:
        """The repaired weight, or None where the change is left whole."""
        parts = list(self._parts(change))
        if not parts:
            return None
        kind = torch.promote_types(change.base.dtype, torch.float32)
        ours, theirs = change.base.to(kind), change.aligned.to(kind)
        found, any_repaired = theirs.clone(), False
        flat, a, b = (z.reshape(len(z), -1) for z in (found, ours, theirs))
        for axis, places in parts:
            delta, base = (z.index_select(axis, places) for z in (b - a, a))
            told = spectrum(delta, base)
            for hazard in told.hazards:
                self.hazards.setdefault(hazard.rstrip("0123456789 "), set()).add(change.name)
            if np.isnan(told.kept):
                continue
            any_repaired = True
            better = structure(delta)
            self.kept[f"{change.name} {axis} {int(places[0])}"] = int(told.kept), min(delta.shape)
            self.dropped[f"{change.name} {axis} {int(places[0])}"] = (
                told.norm**2 * told.diffuse,
                told.norm**2,
            )
            flat.index_copy_(axis, places, base + better)
        return found if any_repaired else None

    def _parts(self, change: Change) -> Iterator[tuple[int, Tensor]]:
        """The matrices that lie in a weight: an axis, and the places of each along it."""
        weight = change.base
        if weight.ndim < 2 or torch.equal(change.base, change.aligned):
            return
        called = set(change.name.split("."))
        if weight.ndim > 2 and "experts" in called:
            self.hazards.setdefault("experts in one weight", set()).add(change.name)
            return
        if min(weight.flatten(1).shape) > WIDEST:
            self.hazards.setdefault("too wide", set()).add(change.name)
            return
        whole = torch.arange(len(weight), device=weight.device)
        if not called & {*FUSED, *PAIRED}:
            yield 0, whole
            return
        found = layout(called, weight, self.text)
        if found is None:
            self.hazards.setdefault("fused", set()).add(change.name)
            yield 0, whole
            return
        axis, parts = found
        for places in parts.values():
            yield axis, places.to(weight.device)

    @property
    def repaired(self) -> bool:
        """Whether anything was taken out of any change."""
        return any(part > 0 for part, _ in self.dropped.values())

    @property
    def notes(self) -> list[str]:
        """What stood in the way, and where what was taken out may not be noise of training."""
        return [
            f"Spectral repair, {len(names)} weights: {_HAZARDS.get(hazard, hazard)}"
            for hazard, names in sorted(self.hazards.items())
        ]

    def detail(self) -> str:
        """How much was taken out."""
        out, whole = np.sum([*self.dropped.values()], axis=0)
        rank = np.mean([kept / of for kept, of in self.kept.values()])
        return f"{out / whole:.0%} of ‖ΔW‖² of {len(self.kept)} matrices out, {rank:.0%} of rank in"


_HAZARDS = {
    "low rank": "the change is of low rank exactly, and has no noise to take out; left whole.",
    "too small": "too small for a law of many singular values; left whole.",
    "too wide": f"over {WIDEST} on its smaller side; left whole.",
    "experts in one weight": "many matrices in one; left whole.",
    "fused": "several maps in one matrix in an order that is not known, taken as one.",
    "bulk is not noise": "the bulk does not follow the law of noise: the edge is a convention.",
    "rounding of bfloat": "what lies below the edge is rounding of storage, not of training.",
    "rounding of float": "what lies below the edge is rounding of storage, not of training.",
    "unchanged": "nothing changed.",
    "not finite": "not finite; left whole.",
}
"""What a hazard means for a repair."""
