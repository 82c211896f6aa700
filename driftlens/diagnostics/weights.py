"""How far every weight moved, and how much of that is structure: no text is needed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from driftlens.formulas.spectral import Spectrum, frobenius, spectrum
from driftlens.metric import Metric
from driftlens.models import Frame, ModelPair, Wants
from driftlens.models.hybrid import Change
from driftlens.models.tokens import Encoder
from driftlens.results import Estimate, Result, column, figures, shown, value

WIDEST = 4096
"""Largest smaller side of a matrix that is decomposed; beyond it, norms are all that is told."""

NOT_NOISE = "bulk is not noise"

SIGNIFICANT = 0.005
"""A share of the change below which the sentence is silent about it."""


@dataclass(frozen=True)
class WeightChangeResult(Result):
    """How far every weight moved, and how much of that is structure."""

    kind = "weight_change"
    title = "Change of the weights"
    how = """
Every weight of the aligned model is compared with the same weight of the base, ΔW = aligned − \
base. norm is the Frobenius norm ‖ΔW‖, relative is ‖ΔW‖ / ‖W_base‖, spectral the largest singular \
value, stable_rank = ‖ΔW‖² / spectral².

A matrix is read as structure + noise. With n its larger side, β the smaller over the larger, S \
its singular values and μ_β the median of the Marchenko–Pastur law, the noise of an entry is \
σ = median(S) / √(n μ_β), and what stands out of it is

    S > τ = λ*(β) √n σ, with λ*(β) = √(2(β+1) + 8β / (β+1+√(β²+14β+1))).

kept counts the singular values above this edge, structured is their share of ‖ΔW‖²; what lies \
below is diffuse. How much of the loss either part carries, this does not say: a large change may \
cost nothing.

hazard says why there is no edge, or what it does not mean. unchanged: nothing moved. low rank r: \
all but r singular values are 0, as of a merged adapter, and there is no noise to tell from it. \
too small: fewer than 1024 entries. too wide: left out for its cost. rounding of a dtype: σ is at \
most twice |W| 2⁻⁹ (bfloat16) or 2⁻¹² (float16), so that the diffuse part is what the checkpoint \
rounded away, not what training did. bulk is not noise: the singular values below the edge are \
further than 0.1 from the law of noise (Kolmogorov–Smirnov), as where they fall without any \
floor; then the edge is a convention and no boundary. fused: several maps lie in one matrix in an \
order that is not known, and are taken as one; where it is known they are cut apart. Vectors have \
no singular values. A tied weight counts once; of an adapter, the weights that it reaches are \
compared.

Source: Gavish & Donoho (2014), The Optimal Hard Threshold for Singular Values is 4/√3, with the \
noise unknown.
""".strip()

    total: Estimate = value("of base norm")
    """‖ΔW‖ / ‖W‖ over all weights together."""
    structured_share: Estimate = value("of the squared change")
    """What lies above the edges; NaN where nothing moved."""
    diffuse_share: Estimate = value("of the squared change")
    """What lies below them."""
    low_rank_share: Estimate = value("of the squared change")
    """What is of low rank exactly, and has no edge. What is left are vectors and left out."""

    layer: np.ndarray = column()
    """[row] `embed`, number of the block, or `head`."""
    component: np.ndarray = column()
    """[row] `embed`, `attn`, `mlp`, `norm` or `unembed`."""
    name: np.ndarray = column()
    """[row] the weight's name, with what was cut out of it in brackets."""
    height: np.ndarray = column()
    """[row] rows of the matrix, or length of the vector."""
    width: np.ndarray = column()
    """[row] columns of the matrix; 1 of a vector."""
    base_norm: np.ndarray = column()
    """[row] Frobenius norm of the base's weight."""
    norm: np.ndarray = column()
    """[row] Frobenius norm of the change."""
    relative: np.ndarray = column("of base norm")
    """[row] norm over base_norm; NaN where the base is 0."""
    spectral: np.ndarray = column()
    """[row] largest singular value; NaN of vectors."""
    stable_rank: np.ndarray = column()
    """[row] squared norm over squared largest singular value."""
    kept: np.ndarray = column()
    """[row] singular values above the edge; NaN where there is none."""
    structured: np.ndarray = column("of the squared change")
    """[row] their share of the squared norm; NaN where there is no edge."""
    hazard: np.ndarray = column()
    """[row] why there is no edge, or what it does not mean; empty where all is well."""

    near_zero: ClassVar[tuple[str, ...]] = ("total", "norm", "relative", "spectral")

    def summary(self) -> str:
        """How far, where, and how much of it is structure."""
        if not self.total.value:
            return "The weights did not move."
        if np.isnan(self.total.value):
            return "How far the weights moved is undefined."
        layers, sizes, _ = self.by_layer()
        place = ""
        if np.isfinite(sizes).any():
            top = int(np.nanargmax(sizes))
            place = f", most in {_called(layers[top])} ({_percent(sizes[top])} of its own)"
        shares = [
            f"{_percent(share.value)} {words}"
            for share, words in (
                (self.structured_share, f"structured ({self._edge()})"),
                (self.diffuse_share, "diffuse"),
                (self.low_rank_share, "exactly of low rank"),
            )
            if share.value >= SIGNIFICANT
        ]
        found = f"; the squared change is {', '.join(shares)}" if shares else ""
        return f"The weights moved by {_percent(self.total.value)} of their norm{place}{found}."

    def _edge(self) -> str:
        """What may be said of the edge."""
        squared = np.square(self.norm) * ~np.isnan(self.structured)
        doubtful = squared[[NOT_NOISE in hazard for hazard in self.hazard]].sum()
        if 2 * doubtful > squared.sum():
            return "above the noise edge, though most of the bulk is not noise"
        return "above the noise edge"

    def by_layer(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Names of layers from the bottom up, how far each moved, and what that is made of.

        Returns:
            Names, [layer] relative change, and [part, layer] shares of the squared change that
            are structured, diffuse and neither.
        """
        layers = list(dict.fromkeys(self.layer.tolist()))
        parts = _parts(self.norm, self.structured)
        of = [self.layer == layer for layer in layers]
        squared = np.array([parts[:, rows].sum(1) for rows in of]).T
        base = np.array([np.square(self.base_norm[rows]).sum() for rows in of])
        with np.errstate(invalid="ignore", divide="ignore"):
            return layers, np.sqrt(squared.sum(0) / base), squared / squared.sum(0)

    def figure(self) -> "figures.Figure | None":
        """How far each layer moved, divided as the squared change is."""
        layers, sizes, shares = self.by_layer()
        if not layers:
            return None
        heights = np.nan_to_num(sizes * shares)
        figure = figures.bars(
            layers,
            heights[0],
            xlabel="layer",
            ylabel="change [of base norm]",
            label="structured",
        )
        panel = figure.axes[0]
        looks = (("diffuse", figures.GREY, ""), ("without an edge", "none", "///"))
        for number, (words, colour, hatch) in enumerate(looks, 1):
            panel.bar(
                range(len(layers)),
                heights[number],
                width=0.72,
                bottom=heights[:number].sum(0),
                label=words,
                facecolor=colour,
                edgecolor=figures.GREY,
                hatch=hatch,
                linewidth=0.7,
            )
        panel.set_ylim(0, 1.05 * heights.sum(0).max() or 1)
        figures.legend(panel)
        return figure


class WeightChange(Metric[WeightChangeResult]):
    """How far every weight moved; the weights are read once, and no text is looked at.

    One change is held in float32 at a time, beside its Gram matrix of the smaller side in
    float64. The time goes with the larger side and the square of the smaller: on one core of a
    CPU under 3 s for a square of 2048, 8 s for one of 4096, 14 s for an embedding of 32000 by
    2048. What did not move costs next to nothing.

    Args:
        widest: Matrices whose smaller side is larger have norms, but no singular values.
    """

    wants = Wants(together=True)

    def __init__(self, widest: int = WIDEST) -> None:
        self.widest = widest

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Read the weights."""
        super().begin(pair, encoder)
        config = getattr(getattr(pair.base, "net", None), "config", None)
        self.found = weight_change(pair.hybrid.changes(), config, self.widest)

    def update(self, frame: Frame) -> None:
        """Nothing: the weights are the same for all texts."""

    def compute(self) -> WeightChangeResult:
        """What was read when it began."""
        return self.found


def weight_change(
    changes: Iterable[Change], config: Any = None, widest: int = WIDEST
) -> WeightChangeResult:
    """How far weights moved.

    Args:
        changes: The weights of both models.
        config: The model's configuration, which tells how fused weights are laid out.
        widest: Matrices whose smaller side is larger have norms, but no singular values.
    """
    text = None if config is None else config.get_text_config()
    rows = [row for change in changes for row in _rows(change, text, widest)]
    names = [f.name for f in fields(WeightChangeResult) if f.metadata.get("role") == "column"]
    columns = {name: np.array([row[name] for row in rows]) for name in names}
    hazards = columns["hazard"].astype(str)
    structured, diffuse, other = _parts(columns["norm"], columns["structured"])
    low_rank = other * np.char.startswith(hazards, "low rank")
    squared = np.square(columns["norm"]).sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = [part.sum() / squared for part in (structured, diffuse, low_rank)]
        total = np.sqrt(squared / np.square(columns["base_norm"]).sum())
    return WeightChangeResult.of(
        total=total,
        structured_share=shares[0],
        diffuse_share=shares[1],
        low_rank_share=shares[2],
        **columns,
        notes=tuple(_notes(hazards)),
    )


def _rows(change: Change, text: Any, widest: int) -> Iterator[dict[str, Any]]:
    base, aligned = change.base.detach(), change.aligned.detach()
    for name, ours, theirs, hazard in _cut(change.name, base, aligned, text):
        wide = torch.promote_types(ours.dtype, torch.float32)
        size, found = frobenius(ours), _spectrum(theirs.to(wide) - ours.to(wide), ours, widest)
        height, columns = (*ours.shape, 1, 1)[:2]
        yield {
            "layer": change.layer,
            "component": change.component,
            "name": name,
            "height": height,
            "width": columns,
            "base_norm": size,
            "norm": found.norm,
            "relative": found.relative,
            "spectral": found.spectral,
            "stable_rank": found.stable_rank,
            "kept": found.kept,
            "structured": found.structured,
            "hazard": "; ".join(filter(None, [*found.hazards, hazard])),
        }


def _spectrum(delta: Tensor, base: Tensor, widest: int) -> Spectrum:
    """Of what is no matrix, or too wide a one, norms alone."""
    matrix = delta.ndim == 2
    if matrix and min(delta.shape) <= widest:
        return spectrum(delta, base)
    norm, size = frobenius(delta), frobenius(base)
    relative = norm / size if size else np.nan
    hazard = ("too wide" if norm else "unchanged") if matrix else ""
    return Spectrum(np.empty(0), norm, relative, hazards=(hazard,))


# Fused weights


STACKED = ("gpt2", "openai-gpt", "mpt", "phi3", "phi4_multimodal")
"""Models whose fused attention holds all queries, then all keys, then all values."""

BY_GROUP = ("bloom", "falcon", "gpt_neox", "gpt_neox_japanese")
"""Models whose fused attention holds, group by group, the queries, the key and the value."""

FUSED = ("c_attn", "qkv_proj", "query_key_value", "Wqkv")
"""What fused attention is called."""

PAIRED = ("gate_up_proj",)
"""What a gate above the map that it gates is called."""


def _cut(
    name: str, base: Tensor, aligned: Tensor, text: Any
) -> Iterator[tuple[str, Tensor, Tensor, str]]:
    """The matrices that lie in one weight: name, base, aligned and hazard of each."""
    called = set(name.split("."))
    if base.ndim > 2 and "experts" in called:
        for number, (ours, theirs) in enumerate(zip(base, aligned, strict=True)):
            yield from _cut(f"{name}[{number}]", ours, theirs, text)
        return
    if base.ndim > 2:
        base, aligned = base.flatten(1), aligned.flatten(1)
    fused = base.ndim == 2 and any(part.split("[")[0] in (*FUSED, *PAIRED) for part in called)
    if not fused:
        yield name, base, aligned, ""
        return
    found = layout(called, base, text)
    if found is None:
        yield name, base, aligned, "fused"
        return
    axis, parts = found
    for part, places in parts.items():
        ours, theirs = (w.index_select(axis, places.to(w.device)) for w in (base, aligned))
        yield f"{name}[{part}]", ours, theirs, ""


def layout(called: set[str], weight: Tensor, text: Any) -> tuple[int, dict[str, Tensor]] | None:
    """The axis along which maps are fused, and the places of each; None if it is not known."""
    width = getattr(text, "hidden_size", None)
    if width not in weight.shape or weight.shape[0] == weight.shape[1]:
        return None
    # A linear map holds what it reads in columns; GPT-2's in rows.
    axis = 0 if weight.shape[1] == width else 1
    places = torch.arange(weight.shape[axis])
    if not called & set(FUSED):
        # Only of this orientation are halves stacked; in the other they alternate.
        return (axis, dict(zip(("gate", "up"), places.chunk(2), strict=True))) if not axis else None
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or width // heads
    pairs = (len(places) // size - heads) // 2
    if pairs < 1 or heads % pairs or (heads + 2 * pairs) * size != len(places):
        return None
    counts = [heads // pairs, 1, 1]
    if text.model_type in STACKED:
        parts = places.split([count * pairs * size for count in counts])
    elif text.model_type in BY_GROUP:
        split = places.reshape(pairs, -1, size).split(counts, 1)
        parts = tuple(part.flatten() for part in split)
    else:
        return None
    return axis, dict(zip(("query", "key", "value"), parts, strict=True))


def _parts(norm: np.ndarray, structured: np.ndarray) -> np.ndarray:
    """[part, row] squared change that is structured, diffuse and neither."""
    squared = np.square(norm)
    above = np.where(np.isnan(structured), 0, squared * structured)
    below = np.where(np.isnan(structured), 0, squared - above)
    return np.stack([above, below, squared - above - below])


def _notes(hazards: np.ndarray) -> Iterator[str]:
    """What a reader must know of the edges, with how many weights it holds of."""
    for mark, words in _NOTES.items():
        if count := int((np.char.find(hazards, mark) >= 0).sum()):
            yield f"{count} of {len(hazards)} rows: {words}"


_NOTES = {
    "low rank": "the change is exactly of low rank, as of an adapter; there is no noise in it, and "
    "no edge.",
    "rounding": "the diffuse part is as small as what the checkpoint rounds away; it tells of "
    "storage, not of training.",
    NOT_NOISE: "the singular values below the edge are not those of noise; there the edge is a "
    "convention and no boundary.",
    "fused": "several maps lie in one matrix in an order that is not known, and are taken as one.",
    "too wide": "the matrix is too wide to be decomposed; give a larger `widest`.",
    "not finite": "NaN or infinity in the weights.",
}


def _called(layer: str) -> str:
    return {"embed": "the embedding", "head": "the head"}.get(layer, f"block {layer}")


def _percent(share: float) -> str:
    """A share of which two digits are seen."""
    return f"{shown(100 * share, 2)} %"
