"""Who finds the damage that was planted: each method's top layers, tokens, alarms and seconds.

    python benchmarks/planted.py --out planted.json

Everything runs on one thread of a CPU, from the repository alone. What each planting gave is
written beside the JSON, line by line, so that a run that is cut keeps it; `--resume` goes on.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

# Threads are counted when torch is imported; a benchmark shares its machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from plantings import BLOCKS, FACTS, HARMLESS, SUBJECTS, Planted, Planting, plant, plantings

from driftlens import (
    Drift,
    Grafts,
    LayerForgetting,
    Lens,
    Metric,
    PositionMap,
    Screen,
    Shapley,
    TokenForgetting,
    WeightPath,
    measure,
)
from driftlens.attribution import SHARES, Options, attribute
from driftlens.models import Wants

STAGES = ("embed", *map(str, range(BLOCKS)), "head")
"""The layers that are blamed, from the bottom up."""

LOST = SUBJECTS // 3 * FACTS
"""Contradicted facts in a pack: the k of precision at k."""

ROUNDED = 1e-5
"""The share of the largest score below which two scores count as equal ranks."""

CALIBRATION = 900
"""First seed of the undamaged pairs from which a rival without a unit gets its floor."""


@dataclass(frozen=True)
class Answer:
    """What a method says of a pair."""

    layers: np.ndarray | None = None
    """[stage] how much each is to blame; None if it says nothing of layers."""
    tokens: np.ndarray | None = None
    """[document] how much the damage lies at its answer; None if it says nothing of tokens."""


@dataclass(frozen=True)
class Method:
    """A way to find the damage."""

    ask: Callable[[Planted], Answer]
    causal: bool = True
    """Whether it puts one model's parts into the other; then its scores are nats a token."""
    bars: Mapping[str, float] | None = None
    """Figures that it must reach (false alarms: stay under)."""


# --- exact, and independent of the library ------------------------------------------------


class Exact:
    """Every hybrid of a pair's stages, each evaluated, with nothing of the library.

    Stages whose weights are the same in both models are null players: they are left out, and
    their scores are exactly 0.
    """

    def __init__(self, planted: Planted) -> None:
        self.planted, self.sheet = planted, planted.sheet
        base = dict(planted.base.named_parameters(remove_duplicate=False))
        aligned = dict(planted.aligned.named_parameters(remove_duplicate=False))
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        for name, weight in aligned.items():
            if not torch.equal(weight, base[name]):
                self.weights.setdefault(stage_of(name), {})[name] = weight
        self.players = sorted(self.weights)
        with torch.no_grad():
            self.base = self.sheet.likelihoods(planted.base).numpy()
        self.rises: dict[frozenset[int], np.ndarray] = {}

    def rise(self, aligned: Iterable[int]) -> np.ndarray:
        """[document] rise in loss with aligned's weights in some stages and base's elsewhere."""
        key = frozenset(aligned)
        if key not in self.rises:
            weights = {n: w for stage in key for n, w in self.weights[stage].items()}
            with torch.no_grad():
                said = self.sheet.likelihoods(self.planted.base, weights).numpy()
            self.rises[key] = self.base - said
        return self.rises[key]

    def alone(self) -> np.ndarray:
        """[stage] what aligned's weights in this stage alone cost."""
        return self._each(lambda stage: self.rise({stage}).mean())

    def restored(self) -> np.ndarray:
        """[stage] what base's weights in this stage alone give back."""
        whole = frozenset(self.players)
        return self._each(lambda stage: (self.rise(whole) - self.rise(whole - {stage})).mean())

    def shapley(self) -> np.ndarray:
        """[stage] Shapley value: the mean, over all orders, of what a stage adds when it comes."""
        n = len(self.players)

        def value(stage: int) -> float:
            others = [player for player in self.players if player != stage]
            gains = (
                (self.rise({*some, stage}) - self.rise(some)).mean() / comb(n - 1, size) / n
                for size in range(n)
                for some in combinations(others, size)
            )
            return float(sum(gains))

        return self._each(value)

    def _each(self, value: Callable[[int], float]) -> np.ndarray:
        return np.array([value(s) if s in self.players else 0.0 for s in range(len(STAGES))])


def stage_of(name: str) -> int:
    """Number of the stage that a weight of the demo belongs to."""
    if name.startswith("model.embed_tokens"):
        return 0
    block = name.removeprefix("model.layers.").split(".")[0]
    return 1 + int(block) if block.isdigit() else len(STAGES) - 1


def hybrids(score: Callable[[Exact], np.ndarray]) -> Callable[[Planted], Answer]:
    """A method that reads hybrids; where damage shows, all of them see alike."""

    def ask(planted: Planted) -> Answer:
        every = Exact(planted)
        return Answer(score(every), every.rise(every.players))

    return ask


# --- the library --------------------------------------------------------------------------


def found(planted: Planted, metric: Metric) -> Any:
    """The result of one metric on the pair's own pack."""
    return measure(planted.pair, planted.pack, [metric])[0]


def by_layer(make: Callable[[], Metric], column: str = "share") -> Callable[[Planted], Answer]:
    """A metric whose table has a row for each layer or for each component of one."""

    def ask(planted: Planted) -> Answer:
        result = found(planted, make())
        layers = getattr(result, "layer", getattr(result, "stage", None))
        scores = getattr(result, column)
        return Answer(np.array([scores[layers == stage].sum() for stage in STAGES]))

    return ask


def by_path(*, matched: bool) -> Callable[[Planted], Answer]:
    """The weight path, and of tokens what all weights do in each document."""

    def ask(planted: Planted) -> Answer:
        pair = planted.pair.matched()[0] if matched else planted.pair
        path, acts = measure(pair, planted.pack, [WeightPath("layer"), PositionMap()])
        tokens = np.zeros(len(planted.lost))
        np.add.at(tokens, acts.document, acts.acts)
        return Answer(path.share, tokens)

    return ask


def attributed(planted: Planted) -> Answer:
    """What `driftlens attribute` would have its reader believe: the first division it orders by."""
    options = Options(by="layer")
    results = attribute(planted.pair, planted.pack, ["weight-path"], options)
    kinds = {result.kind: result for result in results}
    path = kinds["weight_path"]
    if "restoration" not in kinds:
        # Nothing to divide: the shares stand as they are, below any floor or not.
        return Answer(path.share)
    first = kinds["restoration"].order[0].replace(" ", "_")
    return Answer(getattr(kinds[first], SHARES[first]))


def worst_tokens(planted: Planted) -> Answer:
    """Rise in loss by token, as `TokenForgetting` keeps it."""
    result = found(planted, TokenForgetting())
    rise = np.zeros(len(planted.lost))
    np.add.at(rise, result.document, result.rise)
    return Answer(tokens=rise)


# --- rivals -------------------------------------------------------------------------------


def moved_weights(planted: Planted) -> Answer:
    """‖ΔW‖: how far the weights of a stage moved."""
    return Answer(np.sqrt(_by_stage({n: d.square().sum() for n, d in _moves(planted).items()})))


def cka_drop(planted: Planted) -> Answer:
    """By how much 1 − CKA of the residual stream grows in a layer."""
    return Answer(_grown(1 - _streams(planted).cka))


def l2_drift(planted: Planted) -> Answer:
    """By how much the relative L2 drift of the residual stream grows in a layer.

    Of tokens: the drift of the last stream from which the answer is read.
    """
    layers, tokens = _grown(_streams(planted).relative_l2), np.zeros(len(planted.lost))
    for frame in planted.pair.frames(planted.pack, Wants(frozenset({"out"}), None)):
        base, aligned = frame.base.predictors, frame.aligned.predictors
        tokens[frame.scored.document] = ((aligned - base).norm(dim=-1) / base.norm(dim=-1)).numpy()
    return Answer(layers, tokens)


def lens_kl(planted: Planted) -> Answer:
    """By how much the KL of what a layer would say grows in it; the head adds its own part.

    Of tokens: the KL of the two models' predictions of the answer.
    """
    result = found(planted, Lens())
    layers = np.append(_grown(result.kl_common)[:-1], result.kl_own[-1] - result.kl_common[-1])
    tokens = np.zeros(len(planted.lost))
    for frame in planted.pair.frames(planted.pack):
        tokens[frame.scored.document] = frame.comparison.kl_base_aligned.numpy()
    return Answer(layers, tokens)


def fisher(planted: Planted) -> Answer:
    """½ Δθᵀ F Δθ with the diagonal of base's empirical Fisher matrix, in nats a token."""
    net, sheet, moves = planted.base, planted.sheet, _moves(planted)
    weights = {n: w.detach().clone().requires_grad_() for n, w in net.named_parameters()}
    layers, tokens = np.zeros(len(STAGES)), []
    for row in range(len(sheet.ids)):
        gold = sheet.only(row).likelihoods(net, weights | _tied(weights)).sum()
        slopes = dict(zip(weights, torch.autograd.grad(gold, [*weights.values()]), strict=True))
        cost = _by_stage({n: (slopes[n] * move).square().sum() / 2 for n, move in moves.items()})
        layers += cost / len(sheet.ids)
        tokens.append(cost.sum())
    return Answer(layers, np.array(tokens))


def _moves(planted: Planted) -> dict[str, torch.Tensor]:
    """Aligned − base for every weight; what is tied counts once, at the embedding."""
    base = dict(planted.base.named_parameters())
    return {n: w.detach() - base[n].detach() for n, w in planted.aligned.named_parameters()}


def _tied(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"lm_head.weight": weights["model.embed_tokens.weight"]}


def _by_stage(sizes: Mapping[str, torch.Tensor]) -> np.ndarray:
    """[stage] sums of what the weights of each give."""
    sums = np.zeros(len(STAGES))
    for name, size in sizes.items():
        sums[stage_of(name)] += float(size)
    return sums


def _streams(planted: Planted) -> Any:
    """The drift of the residual stream alone, from the embedding to the last block."""
    result = found(planted, Drift())
    mine = np.isin(result.part, ("in", "out"))
    return argparse.Namespace(cka=result.cka[mine], relative_l2=result.relative_l2[mine])


def _grown(curve: np.ndarray) -> np.ndarray:
    """[stage] by how much a curve over the embedding and the blocks grows; the head adds none."""
    return np.append(np.diff(curve, prepend=0.0), 0.0)


# --- the register -------------------------------------------------------------------------

FINDS = {"top1": 0.95, "alarms": 0.05}
"""What is asked of every causal method."""

METHODS: dict[str, Method] = {
    "exact Shapley": Method(hybrids(Exact.shapley), bars=FINDS),
    "exact restore": Method(hybrids(Exact.restored), bars=FINDS),
    "exact alone": Method(hybrids(Exact.alone), bars=FINDS),
    "sweep, from below": Method(by_layer(LayerForgetting), bars=FINDS),
    "sweep, from above": Method(by_layer(LayerForgetting, "share_backward"), bars=FINDS),
    "sweep, mean": Method(by_layer(LayerForgetting, "mean_share"), bars=FINDS),
    "token rise": Method(worst_tokens, bars={"precision": 0.95}),
    "weight path": Method(by_path(matched=False), bars=FINDS | {"spearman": 0.9}),
    "weight path, matched": Method(by_path(matched=True), bars=FINDS | {"spearman": 0.9}),
    "driftlens attribute": Method(attributed, bars=FINDS | {"spearman": 0.9}),
    # The demo's eight stages are few enough for exact shares: the draw is asked for.
    "sampled Shapley": Method(
        by_layer(lambda: Shapley("layer", exact=0)), bars=FINDS | {"spearman": 0.95}
    ),
    "grafts, give back": Method(by_layer(Grafts, "gives_back"), bars=FINDS),
    "grafts, cost alone": Method(by_layer(Grafts, "costs_alone"), bars=FINDS),
    # Where activations differ, which is not where weights do: no bar on layers.
    "screen": Method(by_layer(Screen, "estimate")),
    "‖ΔW‖": Method(moved_weights, causal=False),
    "CKA drop": Method(cka_drop, causal=False),
    "relative L2": Method(l2_drift, causal=False),
    "lens KL": Method(lens_kl, causal=False),
    "Fisher": Method(fisher, causal=False),
}
"""Every method by its name."""


# --- the run ------------------------------------------------------------------------------


def main() -> None:
    asked = _arguments()
    torch.set_num_threads(1)
    chosen = {name: METHODS[name] for name in asked.methods or METHODS}
    lines = asked.out.with_suffix(".jsonl")
    done = _read(lines) if asked.resume else {}
    if not asked.resume:
        lines.write_text("")
    rows = []
    for planting in [*calibrating(chosen), *selected(asked)]:
        row = done.get(str(planting))
        if row is None or not set(chosen) <= set(row["methods"]):
            row = examined(planting, chosen)
            with lines.open("a") as file:
                file.write(json.dumps(row) + "\n")
        rows.append(row)
        print(_line(row), flush=True)
    figures = summary(rows, chosen)
    found = {"torch": torch.__version__, "methods": figures, "rows": rows}
    asked.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(table(figures))


def selected(asked: argparse.Namespace) -> list[Planting]:
    """The plantings that are asked for, spread evenly over the list if they are fewer."""
    every = [planting for planting in plantings() if asked.only in (None, planting.kind)]
    count = min(asked.plantings or len(every), len(every))
    some = [every[i * len(every) // count] for i in range(count)]
    return [replace(planting, seed=planting.seed + asked.shift) for planting in some]


def calibrating(methods: Mapping[str, Method]) -> list[Planting]:
    """Undamaged pairs of other seeds: the most that a rival scores on them is its floor."""
    if all(method.causal for method in methods.values()):
        return []
    kinds = [p.decoys for p in plantings() if p.kind == "undamaged" and p.decoys]
    kinds = list(dict.fromkeys(kinds))
    return [Planting(CALIBRATION + i, "undamaged", decoys=d) for i, d in enumerate(kinds)]


def examined(planting: Planting, methods: Mapping[str, Method]) -> dict[str, Any]:
    """Plant, ask every method, and put what it says beside the truth."""
    planted = plant(planting)
    truth = Exact(planted)
    shapley = truth.shapley()
    row: dict[str, Any] = {
        "planting": str(planting),
        "seed": planting.seed,
        "kind": planting.kind,
        "blocks": planting.blocks,
        "nats": planting.nats,
        "decoys": planting.decoys,
        "took": planted.took,
        "rise": planted.rise,
        "rise_lost": planted.rise_lost,
        "rise_intact": planted.rise_intact,
        "alone": planted.alone,
        "interaction": planted.interaction if planted.alone else None,
        "seconds": planted.seconds,
        "shapley": shapley.tolist(),
        "methods": {},
    }
    for name, method in methods.items():
        start = time.process_time()
        answer = method.ask(planted)
        seconds = time.process_time() - start
        row["methods"][name] = {"seconds": seconds, **judged(answer, planted, shapley)}
    return row


def judged(answer: Answer, planted: Planted, shapley: np.ndarray) -> dict[str, Any]:
    """What an answer is worth: figures that are undefined for this planting are left out."""
    said: dict[str, Any] = {}
    blocks = set(planted.planting.blocks)
    if answer.layers is not None:
        said["layers"] = answer.layers.tolist()
        best = [STAGES[i] for i in np.argsort(-answer.layers, kind="stable")]
        if blocks:
            said["top1"] = best[0] in blocks
            said["top2"] = blocks <= set(best[:2])
        rank = spearman(answer.layers, shapley)
        if np.isfinite(rank):
            said["spearman"] = rank
    if answer.tokens is not None and blocks:
        worst = np.argsort(-answer.tokens, kind="stable")[:LOST]
        said["precision"] = float(planted.lost[worst].mean())
    return said


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation with ties; NaN where either ranks all alike.

    Scores that only rounding tells apart tie, or a method would be judged by its last digits.
    """
    from scipy.stats import rankdata

    def ranks(scores: np.ndarray) -> np.ndarray:
        step = ROUNDED * np.abs(scores).max()
        return rankdata(np.round(scores / step) if step else scores)

    a, b = ranks(x), ranks(y)
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else float("nan")


# --- the figures --------------------------------------------------------------------------


def summary(rows: Sequence[Mapping], methods: Mapping[str, Method]) -> dict[str, dict]:
    """Each method's figures over all plantings that took."""
    took = [row for row in rows if row["took"] and row["seed"] // 100 != CALIBRATION // 100]
    damaged = [row for row in took if row["blocks"]]
    undamaged = [row for row in took if not row["blocks"]]
    # Where one block alone differs any method that sees it ranks all right: they are left out.
    smooth = [row for row in damaged if list(row["decoys"]) == ["honest"]]
    decoyed = [row for row in damaged if set(row["decoys"]) - {"honest"}]
    found = {}
    for name, method in methods.items():
        floor = HARMLESS if method.causal else _floor(rows, name)

        def over(some: Sequence[Mapping], what: str, name: str = name) -> float | None:
            numbers = [row["methods"][name].get(what) for row in some]
            numbers = [number for number in numbers if number is not None]
            return float(np.mean(numbers)) if numbers else None

        def loud(
            some: Sequence[Mapping],
            gated: bool = False,
            name: str = name,
            floor: float | None = floor,
        ) -> float | None:
            if floor is None or not some or "layers" not in some[0]["methods"][name]:
                return None
            said = [
                max(row["methods"][name]["layers"]) > floor
                and not (gated and row["rise"] <= HARMLESS)
                for row in some
            ]
            return float(np.mean(said))

        found[name] = {
            "bars": method.bars or {},
            "floor": floor,
            "top1": over(damaged, "top1"),
            "top2": over(damaged, "top2"),
            "spearman": over(smooth, "spearman"),
            "spearman_decoyed": over(decoyed, "spearman"),
            "precision": over(damaged, "precision"),
            # Where nothing was lost there is nothing to attribute, and a page says so first.
            "alarms": loud(undamaged, gated=method.causal),
            "alarms_ungated": loud(undamaged),
            "detected": loud(damaged, gated=method.causal),
            "seconds": over(took, "seconds"),
            "top1_by": {
                group: over([row for row in damaged if group in _groups(row)], "top1")
                for group in sorted({group for row in damaged for group in _groups(row)})
            },
        }
    return found


def _groups(row: Mapping) -> tuple[str, ...]:
    """Under which headings a planting is counted."""
    return (row["kind"], f"{row['nats']:g} nats", "+".join(row["decoys"]) or "plain")


def _floor(rows: Sequence[Mapping], name: str) -> float | None:
    """The most that a method scores on the undamaged pairs of other seeds."""
    mine = [row["methods"][name] for row in rows if row["seed"] // 100 == CALIBRATION // 100]
    return max((max(m["layers"]) for m in mine if "layers" in m), default=None)


COLUMNS = (
    "top1",
    "top2",
    "spearman",
    "spearman_decoyed",
    "precision",
    "alarms",
    "alarms_ungated",
    "detected",
    "seconds",
)


def table(found: Mapping[str, Mapping]) -> str:
    """The figures as Markdown; what misses its bar is marked."""
    lines = [f"| {' | '.join(['method', *COLUMNS])} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, figures in found.items():
        cells = [_cell(figures[column], figures["bars"].get(column), column) for column in COLUMNS]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def _cell(figure: float | None, bar: float | None, column: str) -> str:
    if figure is None:
        return "–"
    met = bar is None or (figure <= bar if column == "alarms" else figure >= bar)
    return f"{figure:.3f}" + ("" if met else " MISSED")


def _line(row: Mapping) -> str:
    right = sum(bool(said.get("top1")) for said in row["methods"].values())
    asked = sum("top1" in said for said in row["methods"].values())
    took = "" if row["took"] else "  DID NOT TAKE"
    seconds = row["seconds"], sum(said["seconds"] for said in row["methods"].values())
    return (
        f"{row['planting']:<60} lost {row['rise_lost']:6.3f} intact {row['rise_intact']:7.4f}  "
        f"top-1 {right}/{asked}  {seconds[0]:.1f} + {seconds[1]:.1f} s{took}"
    )


def _read(lines: Path) -> dict[str, dict]:
    """What an earlier run kept, by planting; a line that was cut short is not there."""
    kept = {}
    for line in lines.read_text().splitlines() if lines.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            print("A line was cut short; its planting is done again.", file=sys.stderr)
            continue
        kept[row["planting"]] = row
    return kept


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = sorted({planting.kind for planting in plantings()})
    parser.add_argument("--out", type=Path, required=True, help="Where to write it all as JSON.")
    parser.add_argument("--plantings", type=int, help="How many, spread over the list; else all.")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="Which to ask; else all.")
    parser.add_argument("--only", choices=kinds, help="Plantings of one kind.")
    parser.add_argument("--shift", type=int, default=0, help="Added to every seed, to try out.")
    parser.add_argument("--resume", action="store_true", help="Take up what a cut run kept.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
