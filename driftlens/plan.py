"""What a report will take, before a weight is loaded: memory by name, passes, bytes and time.

Every term is a product of sizes that the configurations and the texts tell. Nothing is run here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from math import ceil
from operator import or_
from typing import Any, Literal

from . import suite
from .attribution import SAMPLE
from .budget import (
    FULL,
    LEAST,
    PART,
    TRACE_BYTES,
    device_of,
    devices_of,
    fitting,
    per_token,
)
from .diagnostics import (
    Drift,
    Factorial,
    LayerForgetting,
    SymptomLayers,
    TokenShift,
    drift,
    lens,
    symptoms,
    token_shift,
)
from .diagnostics.drift import Group, grouped, sums_bytes
from .diagnostics.retention import STATES_BYTES
from .errors import DriftlensError
from .formulas.streams import CrossMoments, PerDocument
from .metric import Metric
from .models import ModelPair, Wants, every
from .models.memory import capacity
from .models.model import LOGIT_BYTES
from .models.pair import LENGTH
from .models.shape import BITS, KEPT, Shape, bits_of, shape_of_model
from .packs import Pack

Mode = Literal["resident", "device map", "two-phase"]

MODES: tuple[Mode, ...] = ("resident", "device map", "two-phase")
"""In the order in which they are tried."""

RATES = {"cpu": 3e10, "cuda": 2e14}
"""Operations a second of a device, where nobody has measured them: a core, and an H100 at a fifth
of what its maker promises in bfloat16."""

SUMS = 4
"""The part of what weights leave, one in so many, that the sums of CKA may take: batches hold
their own besides, and as much is left to activations."""

NODES = 6
"""Points of the path of weights that a report looks at as a rule: two, and then four."""

LETTERS = 4
"""Letters of a token, where no tokenizer cuts the texts."""

DOCUMENT = 256
"""Tokens of a document where only their number is known."""


@dataclass(frozen=True)
class Machine:
    """Where the models are to run."""

    devices: int = 1
    memory: int = 80 * 10**9
    """Bytes of each device."""
    kind: str = "cuda"
    rate: float | None = None
    """Operations a second of a device, if that was measured."""

    @property
    def usable(self) -> float:
        """Bytes of a device that a plan fills."""
        return FULL * self.memory

    @property
    def speed(self) -> float:
        """Operations a second of a device, measured or assumed."""
        return self.rate or RATES.get(self.kind, RATES["cpu"])


@dataclass(frozen=True)
class Work:
    """What the models are to be shown."""

    tokens: int
    documents: int
    kinds: tuple[str, ...] = ("text",)
    """Of the packs."""
    length: int = LENGTH
    """The longest window."""
    options: suite.Options = suite.Options()
    prompts: int = 0
    """Of the documents, those that are to be answered."""


@dataclass(frozen=True)
class Plan:
    """How a report is run, and what it takes."""

    base: Shape
    aligned: Shape
    machine: Machine
    work: Work
    mode: Mode
    """Whether both models lie on one device, both on several, or one at a time."""
    spread: int
    """Devices that hold one pair, or one model in two phases."""
    replicas: int
    """Pairs that read the texts side by side, each a share of them."""
    dtype: str
    batch: int
    """About how many tokens are shown at a time."""
    gradient_batch: int
    """The same where gradients run back through all blocks."""
    sums_bytes: int
    """What the sums behind CKA and Procrustes may take."""
    groups: tuple[Group, ...]
    """Sites whose sums are taken in each showing of the texts."""
    left_out: int
    """Sites for whose sums there is no room, and no time to show the texts again."""
    device: Mapping[str, int] = field(default_factory=dict)
    """Bytes on all devices of a replica at the peak, by name."""
    host: Mapping[str, int] = field(default_factory=dict)
    """Bytes on the CPU at the end, by name."""
    operations: Mapping[str, float] = field(default_factory=dict)
    """Operations of the whole run, by name."""
    written: int = 0
    """Bytes that the first of two phases writes."""

    @property
    def peak(self) -> int:
        """Bytes at the peak, on the fullest device of a replica."""
        return ceil(sum(self.device.values()) / self.spread)

    @property
    def passes(self) -> int:
        """How often the texts are shown for drift."""
        return max(1, len(self.groups))

    @property
    def bare(self) -> float:
        """Operations of one pass of both models over the texts."""
        return self.operations["both models"]

    @property
    def seconds(self) -> float:
        """How long it takes, by the machine's rate: the devices of a pair work in turn."""
        return sum(self.operations.values()) / (self.machine.speed * self.replicas)

    @property
    def line(self) -> str:
        """The plan in a line."""
        where = {
            "resident": "both models on one device",
            "device map": f"both models over {self.spread} devices",
            "two-phase": "one model after the other",
        }[self.mode]
        sites = sum(len(group.compared) for group in self.groups)
        drifted = f"CKA at {sites} of {sites + self.left_out} sites"
        shown = "one pass" if self.passes == 1 else f"{self.passes} passes"
        return (
            f"plan: {where} in {self.dtype}, about {self.batch} tokens at a time, {drifted} in "
            f"{shown}, {gigabytes(self.peak)} at the peak"
        )

    def record(self) -> dict[str, Any]:
        """The plan as JSON takes it."""
        return {
            "mode": self.mode,
            "devices_of_a_pair": self.spread,
            "pairs_side_by_side": self.replicas,
            "dtype": self.dtype,
            "tokens_at_a_time": self.batch,
            "tokens_at_a_time_for_gradients": self.gradient_batch,
            "passes": self.passes,
            "sites_in_each_pass": [len(group.compared) for group in self.groups],
            "sites_left_out": self.left_out,
            "sums_bytes": self.sums_bytes,
            "peak_bytes": self.peak,
            "device_bytes": dict(self.device),
            "host_bytes": dict(self.host),
            "written_bytes": self.written,
            "operations": dict(self.operations),
            "seconds": self.seconds,
            "rate": self.machine.speed,
            "rate_is": "measured" if self.machine.rate else "assumed",
        }


def plan(
    base: Shape,
    aligned: Shape | None,
    machine: Machine,
    work: Work,
    *,
    dtype: str = "auto",
    adapter: int | None = None,
    mode: Mode | None = None,
) -> Plan:
    """The plan of a report.

    Args:
        base: The base model.
        aligned: The aligned one; None is one of the same shape.
        machine: Where to run.
        work: What to show.
        dtype: What to load in; `auto` is what each checkpoint says.
        adapter: Numbers in the weights of an adapter that shares the base's; None is no adapter.
        mode: How to lay the models out; None is the first of them that fits.

    Raises:
        DriftlensError: Nothing fits; says what would.
    """
    aligned = aligned or base
    ours = base.weights(dtype)
    theirs = _adapter_bytes(base, adapter, dtype) if adapter is not None else aligned.weights(dtype)
    modes: Sequence[Mode] = (mode,) if mode else MODES
    for one in modes:
        weights = ours + theirs if one != "two-phase" or adapter is not None else max(ours, theirs)
        least = _least(base, work, dtype)
        for spread in _spreads(one, machine.devices):
            # Whole blocks are dealt out: the fullest device holds up to one more than its share.
            block = base.block_bytes(dtype) if spread > 1 else 0
            if weights + least + spread * block <= spread * machine.usable:
                # No device stands idle that could hold a part.
                used = machine.devices // (machine.devices // spread) if spread > 1 else 1
                return _filled(base, aligned, machine, work, one, used, dtype, (ours, theirs))
    raise _impossible(base, machine, work, dtype, (ours, theirs), adapter, mode)


def _spreads(mode: str, devices: int) -> Sequence[int]:
    if mode == "resident":
        return (1,)
    return range(2, devices + 1) if mode == "device map" else range(1, devices + 1)


def _adapter_bytes(base: Shape, numbers: int, dtype: str) -> int:
    # Beside quantised weights an adapter is in 16 bits.
    return numbers * max(16, bits_of(base.dtype if dtype == "auto" else dtype)) // 8


def _filled(
    base: Shape,
    aligned: Shape,
    machine: Machine,
    work: Work,
    mode: Mode,
    spread: int,
    dtype: str,
    weights: tuple[int, int],
) -> Plan:
    ours, theirs = weights
    held = ours + theirs if mode != "two-phase" else max(ours, theirs)
    left = spread * machine.usable - held
    wants, graph = wants_of(work)
    room = left / PART
    room = max(TRACE_BYTES, room) if machine.kind == "cuda" else min(TRACE_BYTES, room)
    batch, graded = (fitting(room, per_token(base.depth, base.width, w)) for w in (wants, graph))
    batch, graded = (max(LEAST, min(n, work.tokens)) for n in (batch, graded))
    sums = work.options.sums_bytes or room_for_sums(machine, spread * machine.memory, held)
    groups, missing = _groups(base, work, sums)
    found = Plan(
        base=base,
        aligned=aligned,
        machine=machine,
        work=work,
        mode=mode,
        spread=spread,
        replicas=1 if mode == "two-phase" else machine.devices // spread,
        dtype=base.dtype if dtype == "auto" else dtype,
        batch=batch,
        gradient_batch=graded,
        sums_bytes=sums,
        groups=groups,
        left_out=missing,
        written=written(base, work, wants, dtype) if mode == "two-phase" else 0,
    )
    shown = traces(
        base,
        wants,
        batch,
        found.dtype,
        groups,
        share_of(base, work, groups, found.dtype, machine.kind),
    )
    back = gradients(base, graded, found.dtype)
    if mode == "two-phase":
        # What one model did is read back a batch at a time.
        weights = (held, 0)
    between = _between(base, left, weights)
    peak = shown if sum(shown.values()) >= sum(back.values()) + between else back
    more = {"weights between the two": between} if peak is back and between else {}
    terms = {"base weights": weights[0], "aligned weights": weights[1], **peak, **more}
    return replace(
        found,
        device={name: size for name, size in terms.items() if size},
        host=host(base, work),
        operations=operations(base, aligned, work, found.passes),
    )


def _between(base: Shape, left: float, weights: tuple[int, int]) -> int:
    """Bytes of the net between the two, which is held whole where half of what is left will do."""
    whole = 4 * base.parameters
    return whole if weights[1] >= weights[0] and whole <= left / 2 else 0


def room_for_sums(machine: Machine, memory: float, held: int) -> int:
    """Bytes that the sums of CKA may take on devices of so much memory that hold the weights.

    Of what a device has, not of what is free: so that a run taken up again finds the same room.
    """
    part = int(max(0.0, FULL * memory - held) / SUMS)
    return max(part, drift.SUMS_BYTES) if machine.kind == "cuda" else min(part, drift.SUMS_BYTES)


# --- memory, by name ----------------------------------------------------------------------


def wants_of(work: Work) -> tuple[Wants, Wants]:
    """What the metrics of a report ask to see, and what its gradients do."""
    made: list[Metric] = [m for kind in work.kinds for m in suite.PLAN[kind](work.options)]
    return reduce(or_, (metric.wants for metric in made), Wants()), Wants(graph=True)


def traces(
    shape: Shape,
    wants: Wants,
    tokens: int,
    dtype: str,
    groups: Sequence[Group],
    share: float = 1.0,
    read_out: bool = True,
) -> dict[str, int]:
    """Bytes of what a batch of so many tokens takes besides weights, by name.

    Args:
        shape: The models'.
        wants: What is to be seen.
        tokens: Tokens in flight.
        dtype: What the models compute in.
        groups: Sites compared in each showing; the largest counts.
        share: Part of the tokens that CKA looks at.
        read_out: Whether layers are read out too.
    """
    size, d = _bytes(dtype), shape.width
    layers = shape.depth if wants.layers is None else len(wants.layers)
    seen = 1 + layers * len(wants.parts - {"in"})
    compared = max((len(group.compared) for group in groups), default=0)
    twice = max((len(group.compared) + len(group.with_first) for group in groups), default=0)
    # A batch of fewer rows than are summed at once makes no sums of its own: its rows wait.
    rows = share * tokens
    own = rows >= CrossMoments.TOGETHER
    waiting = rows if own else compared * (CrossMoments.TOGETHER + rows)
    held = {
        "activations of both models": 2 * tokens * seen * d * size,
        "sums of CKA": twice * sums_bytes(d),
    }
    apart = {
        "sums of a batch": compared * sums_bytes(d) * own,
        "rows that wait": waiting * 2 * d * 4,
    }
    # One after the other: the larger one is the peak.
    phases: list[dict[str, float]] = [
        {"a block at work": tokens * (shape.features + 4 * d) * size},
        {**apart, "differences of a site": 9 * tokens * d * 4},
        {**apart, "logits": logits(shape, tokens, read_out)},
    ]
    peak = max(phases, key=lambda phase: sum(phase.values()))
    return held | {name: int(bytes_) for name, bytes_ in peak.items()}


def logits(shape: Shape, tokens: int, read_out: bool = True) -> int:
    """Bytes of the logits in hand, as many rows as have room, and one at least.

    Args:
        shape: The models'.
        tokens: Rows that there are.
        read_out: Whether layers are read out too, in three ways at once and beside both ends.
    """
    both = 4 * 2 * shape.vocabulary
    found = max(both, min(LOGIT_BYTES, both * tokens))
    layers = 4 * 5 * max(shape.vocabulary, min(lens.ENTRIES, tokens * shape.vocabulary))
    return max(found, layers) if read_out else found


def gradients(shape: Shape, tokens: int, dtype: str) -> dict[str, int]:
    """Bytes of what a pass back through all blocks holds of so many tokens, by name."""
    size = max(4, _bytes(dtype))
    # What a block keeps for the way back: what its maps gave, twice for what they were mixed to,
    # and its streams before and after each norm.
    kept = tokens * shape.depth * (2 * shape.features + 6 * shape.width) * size
    return {"the graph of gradients": kept, "logits": logits(shape, tokens)}


def host(shape: Shape, work: Work) -> dict[str, int]:
    """Bytes of what is kept on the CPU until the end, by name."""
    columns = _columns(shape.depth, _sites(shape, work))
    states = 8 * (1 + 2 * (shape.depth + 1) * shape.width)
    return {
        # Sums as they stand, and as many again that wait to be put in their places.
        "sums of documents": 2 * 8 * columns * work.documents,
        "states for probes": min(STATES_BYTES, states * min(400, work.documents)),
        "texts' windows": 200 * work.documents,
    }


def _columns(depth: int, sites: int) -> int:
    """Numbers kept for each document of a text pack."""
    stages = depth + 2
    by_size: dict[type[Metric], int] = {
        # Its layers, the sweep both ways, and what else changes in it.
        LayerForgetting: 2 + 2 * stages,
        Factorial: 2 + 3 * (stages - 1),
        SymptomLayers: 1 + len(symptoms.SYMPTOMS) * (1 + 2 * stages),
        # Of places, those that a document has: of a long one all.
        TokenShift: len(token_shift.PLACES) * len(token_shift.STATISTICS)
        + 2 * len(token_shift.FIRSTS),
        Drift: 2 * sites,
    }
    made = suite.PLAN["text"](suite.Options())
    return sum(by_size.get(type(metric), _fixed(metric)) for metric in made)


def _fixed(metric: Metric) -> int:
    """Numbers that a metric keeps for each document, whatever the models are."""
    return sum(kept.columns for kept in vars(metric).values() if isinstance(kept, PerDocument))


def written(shape: Shape, work: Work, wants: Wants, dtype: str) -> int:
    """Bytes that base's pass leaves for aligned's: what it showed of every token."""
    layers = shape.depth if wants.layers is None else len(wants.layers)
    seen = 2 + layers * len(wants.parts - {"in"})
    return work.tokens * seen * shape.width * _bytes(dtype if dtype != "auto" else shape.dtype)


def _bytes(dtype: str) -> int:
    # What a quantised model computes in.
    return max(16, bits_of(dtype)) // 8


def _least(shape: Shape, work: Work, dtype: str) -> int:
    """Bytes besides weights without which nothing can be shown."""
    wants, _ = wants_of(work)
    kind = shape.dtype if dtype == "auto" else dtype
    one = (Group(frozenset(every((), "out")), frozenset()),)
    return sum(traces(shape, wants, LEAST, kind, one, 1.0).values())


# --- groups, shares and operations --------------------------------------------------------


def _sites(shape: Shape, work: Work) -> int:
    layers = shape.depth if work.options.layers is None else len(work.options.layers)
    return 1 + layers * len(drift.PARTS) if "text" in work.kinds else 0


def _groups(shape: Shape, work: Work, room: int) -> tuple[tuple[Group, ...], int]:
    if "text" not in work.kinds:
        return (), 0
    layers = range(shape.depth) if work.options.layers is None else sorted(work.options.layers)
    sites = every(layers, *drift.PARTS)
    most: int | None = drift.showings(_run(shape), work.tokens)
    if work.options.every_site is not None:
        most = None if work.options.every_site else 1
    groups = grouped(sites, room // sums_bytes(shape.width), most)
    return groups, len(sites) - sum(len(group.compared) for group in groups)


def share_of(shape: Shape, work: Work, groups: Sequence[Group], dtype: str, kind: str) -> float:
    """Part of the tokens that CKA looks at."""
    compared = sum(len(group.compared) for group in groups)
    faster = drift.FASTER.get(kind, 1.0) if bits_of(dtype) == KEPT else 1.0
    if not compared:
        return 0.0
    return drift.share_of(_run(shape) / faster, shape.width, compared, work.tokens)


def _run(shape: Shape) -> float:
    return drift.run_of(shape.depth, shape.width, shape.vocabulary)


def operations(base: Shape, aligned: Shape, work: Work, passes: int) -> dict[str, float]:
    """Operations of the whole run, by name."""
    length = min(work.length, ceil(work.tokens / max(1, work.documents)))
    runs = [shape.forward(length) for shape in (base, aligned)]
    forward = sum(runs)
    both = forward + base.readout + aligned.readout
    found = {"both models": both * work.tokens}
    if work.prompts and work.options.samples:
        # Each answer reads its prompt, and then runs token by token.
        drawn = work.prompts * (work.options.samples + 1)
        found["answers"] = drawn * (forward * length + both * work.options.new_tokens)
    if "text" not in work.kinds:
        return found
    # Each boundary is resumed above it: half of a model as a mean, and read out once.
    resumed = [run * (base.depth + 1) / 2 for run in runs]
    readouts = (base.depth + 2) * (base.readout + aligned.readout)
    some = min(work.tokens, SAMPLE)
    return found | {
        "texts shown again": forward * work.tokens * (passes - 1),
        "sweeps of layers": (sum(resumed) + readouts) * work.tokens,
        "readouts of layers": lens.SHARE * both * work.tokens,
        "sums of CKA": drift.SHARE * both * work.tokens,
        # There, back at twice the price, and what the change of the weights does.
        "path of weights": 4 * NODES * both / 2 * some,
    }


def ways(
    base: Shape, aligned: Shape | None, machine: Machine, work: Work, adapter: int | None = None
) -> list[dict[str, Any]]:
    """Every way to lay the models out, in the checkpoint's dtype and in smaller ones.

    Returns:
        For each its name, the devices of a pair, bytes at the peak of a device, and whether it
        fits.
    """
    found = []
    kinds = [kind for kind in BITS if bits_of(kind) < bits_of(base.dtype) and kind != "float16"]
    for kind in (base.dtype, *kinds):
        for mode in MODES[: 3 if adapter is None else 2]:
            try:
                one = plan(base, aligned, machine, work, dtype=kind, adapter=adapter, mode=mode)
            except DriftlensError:
                one = None
            if mode == "device map" and machine.devices == 1:
                continue
            found.append(
                {
                    "way": f"{WAYS[mode]}, {kind}",
                    "fits": "no" if one is None else "yes",
                    "devices of a pair": "–" if one is None else str(one.spread),
                    "at the peak": "–" if one is None else gigabytes(one.peak),
                    "time": "–" if one is None else duration(one.seconds),
                }
            )
    return found


WAYS: Mapping[Mode, str] = {
    "resident": "both on one device",
    "device map": "--device-map auto",
    "two-phase": "--two-phase",
}
"""What to type for each."""


# --- what does not fit --------------------------------------------------------------------


def _impossible(
    base: Shape,
    machine: Machine,
    work: Work,
    dtype: str,
    weights: tuple[int, int],
    adapter: int | None,
    mode: Mode | None,
) -> DriftlensError:
    least, block = _least(base, work, dtype), base.block_bytes(dtype)
    need = sum(weights) + least
    each = machine.usable
    ways = []
    # A device must hold a block more than its share.
    if each > block:
        ways.append(f"{ceil(need / (each - block))} such devices with --device-map auto")
    if adapter is None and mode is not None and max(weights) + least <= each * machine.devices:
        ways.append("--two-phase, which holds one model at a time")
    kind = base.dtype if dtype == "auto" else dtype
    for other in ("bfloat16", "int8", "int4"):
        if BITS[other] < bits_of(kind):
            smaller = base.weights(other) * (1 if adapter is not None else 2)
            if smaller + least <= each * machine.devices:
                ways.append(f"--dtype {other}" if other == "bfloat16" else f"weights in {other}")
                break
    if adapter is None:
        ways.append("an adapter instead of a second copy of the weights")
    return DriftlensError(
        f"{gigabytes(need)} for {base.name} and its aligned version in {kind}, with what they "
        "show of a batch",
        found=f"{gigabytes(each * machine.devices)} that may be filled on {machine.devices} "
        f"device{'s' * (machine.devices != 1)} of {gigabytes(machine.memory)}",
        remedy=f"What would fit: {'; '.join(ways)}.",
    )


def gigabytes(size: float) -> str:
    """A size as people say it."""
    for unit, of in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9)):
        if size >= of:
            return f"{size / of:.1f} {unit}"
    return f"{size / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    """A time as people say it."""
    for unit, of in (("years", 31_557_600), ("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * of:
            return f"{seconds / of:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 0.1 else "less than 0.1 s"


# --- of a pair that is loaded -------------------------------------------------------------


def plan_of(pair: ModelPair, work: Work) -> Plan | None:
    """The plan of a report on a loaded pair, where its models lie; None of a model without a net.

    Nothing is refused here: that the weights fit has been seen.
    """
    base, aligned = shape_of_model(pair.base), shape_of_model(pair.aligned)
    if base is None or aligned is None:
        return None
    places = devices_of(pair)
    device = device_of(pair.base)
    machine = Machine(len(places), min(map(capacity, places)), device.type)
    ours = base.weights(base.dtype)
    shared = pair.base is pair.aligned or _shares(pair)
    theirs = 0 if shared else aligned.weights(aligned.dtype)
    mode: Mode = "resident" if len(places) == 1 else "device map"
    return _filled(base, aligned, machine, work, mode, len(places), "auto", (ours, theirs))


def _shares(pair: ModelPair) -> bool:
    return getattr(pair.base, "net", None) is getattr(pair.aligned, "net", False)


def work_of(packs: Sequence[Pack], options: suite.Options) -> Work:
    """About what packs hold: no tokenizer is asked, and a token is taken for `LETTERS` letters."""
    sizes = [len(example.text) // LETTERS + 1 for pack in packs for example in pack.examples]
    return Work(
        tokens=sum(sizes),
        documents=len(sizes),
        kinds=tuple(dict.fromkeys(pack.kind for pack in packs)),
        length=min(options.length or LENGTH, max(sizes)),
        options=options,
        prompts=sum(len(pack.examples) for pack in packs if pack.kind == "prompt"),
    )
