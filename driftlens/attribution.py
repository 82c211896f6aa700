"""Which weights and which tokens a loss comes from, by the methods that a caller names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .diagnostics import (
    Drift,
    Factorial,
    FisherDistance,
    FisherDistanceResult,
    Forgetting,
    Grafts,
    GraftsResult,
    Interactions,
    LayerForgetting,
    Lens,
    PositionMap,
    Restoration,
    Screen,
    Shapley,
    TokenLayers,
    WeightPath,
    WeightPathResult,
)
from .doctor import noise_floor
from .errors import DriftlensError
from .metric import Metric, even_part, measure
from .models import ModelPair
from .models.pieces import By, Piece
from .packs import Pack
from .results import Result

SAMPLE = 4096
"""About how many tokens a report divides the loss on; every method reads them many times."""

RANDOM = 4
"""Random orders that a restoration is held against."""


@dataclass(frozen=True)
class Options:
    """What a caller may ask of an attribution; the names are those of the command line."""

    by: By = "component"
    """How finely weights are divided."""
    level: float = 0.95
    """Share of bootstrap draws that an interval holds."""
    seed: int = 0
    """Of every draw."""
    rows: int | None = None
    """Windows to show at a time; None plans by memory."""
    length: int | None = None
    """The most tokens in a window."""


METHODS: Mapping[str, Callable[[Options], Sequence[Metric]]] = {
    "weight-path": lambda o: (
        WeightPath(o.by, None, o.seed, o.level),
        PositionMap(seed=o.seed, level=o.level),
    ),
    "sweep": lambda o: (
        LayerForgetting(o.seed, o.level),
        Factorial(o.seed, o.level),
        TokenLayers(),
    ),
    "graft": lambda o: (Grafts(o.by, o.seed, o.level),),
    "shapley": lambda o: (
        Shapley(o.by, seed=o.seed, level=o.level),
        Interactions(o.by, seed=o.seed, level=o.level),
    ),
    "screen": lambda o: (
        Screen(seed=o.seed, level=o.level, by="head" if o.by == "head" else "component"),
    ),
}
"""The ways to divide a loss, the one that is taken where none is named first."""

BY_WEIGHTS = ("weight_path", "position_map", "graft", "shapley", "interaction")
"""Kinds of result that hang on which basis the weights are in."""


def attribute(
    pair: ModelPair,
    pack: Pack,
    methods: Sequence[str],
    options: Options = Options(),
    *,
    floor: float | None = None,
    restore: By | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Result]:
    """Divide the rise in loss among weights and tokens.

    Before the path of weights is taken, aligned's neurons and bases are matched to base's, where
    they were only permuted, turned or rescaled. Its shares are held against exact grafts; where
    the path crosses a barrier or a graft contradicts it, Shapley shares stand beside it. What
    restoring the weights in the order of their shares brings back is checked exactly.

    Args:
        pair: The two models.
        pack: What to show them.
        methods: Names of `METHODS`.
        options: How to divide.
        floor: Rise in loss that cannot be told from noise, in nats a token; None measures it.
        restore: How finely weights are restored; None is by component where they are divided so,
            else by layer.
        progress: Told the pack's name, and how many windows of how many are done.

    Raises:
        DriftlensError: A method is unknown, or cannot be taken of such a pair.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        raise DriftlensError(
            f"methods among {', '.join(METHODS)}",
            found=", ".join(unknown) or "none",
            remedy="Give one of these.",
        )
    if floor is None:
        floors = noise_floor(pair.base, pair.encoder(pack, options.length), [Forgetting()])
        floor = floors.sizes["forgetting"]["loss_rise"]

    def told(done: int, of: int) -> None:
        if progress is not None:
            progress(pack.name, done, of)

    def take(metrics: Sequence[Metric]) -> list[Result]:
        found = measure(
            pair, pack, metrics, rows=options.rows, length=options.length, progress=told
        )
        return [_marked(result, options, floor) for result in found]

    matched: list[str] = []
    if "weight-path" in methods:
        pair, matching = pair.matched()
        if matching.weights:
            matched = [f"Before weights were compared, {matching}"]
        # Grafts are exact and cheap, and tell where the path cannot be right.
        methods = (*methods, *({"graft"} - {*methods}))
    results = take([metric for name in methods for metric in METHODS[name](options)])
    doubts = _doubts(results)
    if doubts and "shapley" not in methods:
        results += take(METHODS["shapley"](options))
    said = dict.fromkeys(BY_WEIGHTS, matched) | {"weight_path": [*matched, *doubts]}
    results = [replace(r, notes=(*said.get(r.kind, ()), *r.notes)) for r in results]
    divided = [r for r in results if r.kind in SHARES and _certain(r)]
    if divided:
        by = restore or ("component" if options.by == "component" else "layer")
        rivals = take(_rivals(pair, options)) if by == "layer" else []
        # What is doubted is not what is judged.
        divided.sort(key=lambda r: (bool(doubts) and _is_path(r), [*SHARES].index(r.kind)))
        orders = _orders(pair, divided[0], rivals, by)
        results += take([Restoration(orders, by, RANDOM, options.seed, options.level)])
    return results


def sampled(pair: ModelPair, pack: Pack, options: Options) -> tuple[Pack, str]:
    """An even part of a pack that is large, whole groups of it, and what to say of that."""
    return even_part(pair, pack, SAMPLE, options.length)


def _marked(result: Result, options: Options, floor: float) -> Result:
    """A result with its noise floor, and with its level where that is not the usual one."""
    notes = result.notes
    if options.level != Options().level:
        notes = (*notes, f"Intervals hold {options.level:.0%} of the draws, not 95 %.")
    return replace(
        result, notes=notes, floor=dict.fromkeys(getattr(result, "near_zero", ()), floor)
    )


DOUBT = 0.05
"""How far a share may lie outside what its grafts bound, as a part of the rise."""

SHARES = {"weight_path": "share", "shapley": "share", "graft": "gives_back"}
"""The results that give every piece of the weights a share, and the column of it; the order of
restoring is that of the first."""


def _is_path(result: Result) -> bool:
    return result.kind == "weight_path"


def _doubts(results: Sequence[Result]) -> list[str]:
    """Why the path's shares are not to be trusted, if there is a reason.

    A share that is far below what a piece costs alone and what it gives back, or far above both,
    is one that no interplay of the pieces is likely to explain.
    """
    path = next((r for r in results if isinstance(r, WeightPathResult)), None)
    grafts = next((r for r in results if isinstance(r, GraftsResult)), None)
    if path is None or grafts is None or not _certain(path):
        return []
    said = []
    if path.barrier:
        said.append("The path crosses a barrier: read the Shapley shares instead.")
    ours, exact = path.columns(), grafts.columns()
    ends = np.sort([exact["gives_back"], exact["costs_alone"]], axis=0)
    outside = np.maximum(ends[0] - ours["share"], ours["share"] - ends[1])
    far = np.flatnonzero(outside > DOUBT * abs(path.estimates()["total"].value))
    if len(far):
        named = [str(Piece(ours["layer"][i], ours["component"][i])) for i in far]
        said.append(
            f"The shares of {', '.join(named)} lie outside what their grafts give back and cost "
            "alone: read the Shapley shares instead."
        )
    return said


def _certain(result: Result) -> bool:
    """Whether there is a rise to divide, and not nothing that looks like one."""
    return bool(np.isfinite(result.columns()["of_total"]).any())


def _rivals(pair: ModelPair, options: Options) -> list[Metric]:
    """What else could say which layer to blame."""
    drifts: list[Metric] = [Drift(seed=options.seed), Lens(seed=options.seed)]
    # A slope of a filled-in mask is not taken.
    return [*drifts, FisherDistance(seed=options.seed)] if pair.base.causal else drifts


def _orders(
    pair: ModelPair, divided: Result, rivals: Sequence[Result], by: By
) -> dict[str, Sequence[Piece]]:
    """The order of restoring by the division that is to be judged, then the rivals'."""
    pieces = pair.hybrid.pieces(by)
    shares = _summed(divided.columns(), SHARES[divided.kind], pieces)
    scores = {divided.kind.replace("_", " "): shares}
    scores["‖ΔW‖"] = _moved(pair, pieces)
    for result in rivals:
        if isinstance(result, FisherDistanceResult):
            scores["Fisher distance"] = _summed(result.columns(), "distance", pieces)
        else:
            scores |= _grown(result.columns())
    return {
        name: [pieces[place] for place in np.argsort(-score, kind="stable")]
        for name, score in scores.items()
    }


def _summed(columns: Mapping[str, np.ndarray], share: str, pieces: Sequence[Piece]) -> np.ndarray:
    """[piece] sum of the shares of all that lies in it."""
    layer, component = columns["layer"], columns["component"]
    inside = (
        (layer == p.layer) & ((component == p.component) | (p.component == "all")) for p in pieces
    )
    return np.array([columns[share][mine].sum() for mine in inside])


def _moved(pair: ModelPair, pieces: Sequence[Piece]) -> np.ndarray:
    """[piece] norm of the change of its weights."""
    squares = np.zeros(len(pieces))
    for change in pair.hybrid.changes():
        moved = float((change.aligned.float() - change.base.float()).square().sum())
        for place, piece in enumerate(pieces):
            if piece.layer == change.layer and piece.component in ("all", change.component):
                squares[place] += moved
    return np.sqrt(squares)


def _grown(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """For each measure of drift, [stage] by how much it grows there; the head has its own."""
    stream = np.array([site == "embed" or str(site).endswith("out") for site in columns["site"]])
    if "cka" in columns:
        found = {"relative L2": columns["relative_l2"], "CKA drop": 1 - columns["cka"]}
        return {n: np.append(np.diff(z[stream], prepend=0), 0.0) for n, z in found.items()}
    own, common = columns["kl_own"][stream], columns["kl_common"][stream]
    return {"lens KL": np.append(np.diff(common, prepend=0), own[-1] - common[-1])}
