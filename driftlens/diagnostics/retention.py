"""Whether what the base's states tell of a text is gone, or still there and read out otherwise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from driftlens.errors import DriftlensError
from driftlens.formulas.intervals import bootstrap
from driftlens.formulas.probing import (
    FOLDS,
    Reading,
    balance,
    exceeded,
    exchanged,
    folds_of,
    read,
    shuffled,
    some_of,
    taken,
)
from driftlens.formulas.streams import PerDocument
from driftlens.metric import Metric
from driftlens.models import EMBED, Frame, ModelPair, Site, Wants, every
from driftlens.models.tokens import Encoder
from driftlens.packs import Pack
from driftlens.results import Estimate, Result, column, fact, figures, value

Label = Literal["role", "topic"]

LEAST = 10
"""Clusters that must hold a class for probes to learn it from some and be judged on the others."""

LEVEL = 0.05
"""How often at most a base that knows nothing may pass for one that knows."""

STATES_BYTES = 2**30
"""Memory that the states of all documents may take."""

MARGIN = 0.5
"""The share of what the base knows that may be missing, at the far end of the interval, in what
is called kept."""


@dataclass(frozen=True)
class RetentionResult(Result):
    """How well linear probes tell the classes of texts from both models' states, by layer."""

    kind = "retention"
    title = "Readout or knowledge"
    how = f"""
Each document is one state of the residual stream at each layer, at its last scored token (or the \
mean over its scored tokens), in both models. Linear probes (discriminants with a ridge and equal \
priors, of states that are centred and scaled by one number learnt with the probe: no rotation of \
the states changes them) tell the document's class from it. The documents are dealt into {FOLDS} \
folds; those that belong together stay together, so that no probe is judged on a twin of what it \
learnt from. All numbers are balanced accuracy on held-out documents: the mean over classes of the \
share named rightly; chance is 1 / classes, and nothing is turned round when it falls below.

base: a probe that learnt from base's states, on base's states. transferred: the same probe on \
aligned's states. retrained: a probe that learnt from aligned's states, on aligned's states. \
control: probes that learnt shuffled classes from base's states; base − control is the probe's \
selectivity (Hewitt & Liang 2019).

lost = base − retrained: what no linear probe finds any more. \
readout = (base − transferred) − (base − retrained) = retrained − transferred: what is still there \
but not where the base's probe looks. Intervals: 95 % bootstrap over the documents, those that \
belong together drawn together, base and aligned paired; the probes are held fixed.

The ridge of every probe, and the layer that the first sentence speaks of, are chosen for each \
fold by cross-validation within the other folds; the layer by base alone. Judged on what chose it, \
the best of many layers would look better than it is, and what was lost there larger. The base is \
said to know the classes if at most a twentieth of the shuffles, gone through all of the same \
choices, read as well (known p). lost p and readout p: the share of random exchanges of the two \
probes' hits, document by document, that give as much.

Erased: the interval of lost lies above 0 (in part, if that of retrained lies above chance). Read \
out otherwise: it does not, and that of readout does. Kept: neither does, and even at the far ends \
of the intervals of lost and of base − transferred less than half of base − control is missing; \
else nothing is said.

Decodable is not used: a probe finds what a state holds, not what the model does with it. In one \
pair of a base and its instructed version a probe explained more than half of the variance of a \
quantity at a middle layer, while patching that layer restored next to none of the behaviour, and \
over the layers the two hardly went together. Read "erased" as: a linear readout no longer finds \
it; read "still there" as: it could be read, not that it is. What would bring it back is a \
question for patches and grafts.
""".strip()

    best_base: Estimate = value("balanced accuracy")
    """Base's probe on base, at the layer it reads best."""
    best_transferred: Estimate = value("balanced accuracy")
    """The same probe on aligned."""
    best_retrained: Estimate = value("balanced accuracy")
    """Aligned's probe on aligned."""
    best_control: Estimate = value("balanced accuracy")
    """Probes of shuffled classes on base: mean, and the range of 95 % of the shuffles."""
    best_drop: Estimate = value("balanced accuracy")
    """base − transferred = lost + readout."""
    best_lost: Estimate = value("balanced accuracy")
    """base − retrained."""
    best_readout: Estimate = value("balanced accuracy")
    """retrained − transferred."""

    layer: np.ndarray = column()
    """[row] `embed` or number of the block."""
    base: np.ndarray = column("balanced accuracy")
    """[row] base's probe on base's states, held out, between 0 and 1."""
    base_low: np.ndarray = column("balanced accuracy")
    """[row] lower end of its 95 % interval."""
    base_high: np.ndarray = column("balanced accuracy")
    """[row] upper end of it."""
    transferred: np.ndarray = column("balanced accuracy")
    """[row] base's probe on aligned's states."""
    transferred_low: np.ndarray = column("balanced accuracy")
    """[row] lower end of its interval."""
    transferred_high: np.ndarray = column("balanced accuracy")
    """[row] upper end of it."""
    retrained: np.ndarray = column("balanced accuracy")
    """[row] aligned's probe on aligned's states."""
    retrained_low: np.ndarray = column("balanced accuracy")
    """[row] lower end of its interval."""
    retrained_high: np.ndarray = column("balanced accuracy")
    """[row] upper end of it."""
    control: np.ndarray = column("balanced accuracy")
    """[row] mean of the probes that learnt shuffled classes."""
    control_low: np.ndarray = column("balanced accuracy")
    """[row] lower end of the range of 95 % of the shuffles."""
    control_high: np.ndarray = column("balanced accuracy")
    """[row] upper end of it."""
    lost: np.ndarray = column("balanced accuracy")
    """[row] base − retrained."""
    lost_low: np.ndarray = column("balanced accuracy")
    """[row] lower end of its interval."""
    lost_high: np.ndarray = column("balanced accuracy")
    """[row] upper end of it."""
    readout: np.ndarray = column("balanced accuracy")
    """[row] retrained − transferred."""
    readout_low: np.ndarray = column("balanced accuracy")
    """[row] lower end of its interval."""
    readout_high: np.ndarray = column("balanced accuracy")
    """[row] upper end of it."""

    best_layers: tuple[str, ...] = fact()
    """The layers that base reads best, one or, where the folds disagree, several."""
    classes: tuple[str, ...] = fact()
    """What the probes tell apart."""
    chance: float = fact("balanced accuracy")
    """1 / classes."""
    documents: int = fact("documents")
    """Documents that the probes learnt from and were judged on."""
    known_p: float = fact()
    """Share of shuffles, the true classes among them, that are read as well."""
    lost_p: float = fact()
    """Share of exchanges of the models' hits that lose as much."""
    readout_p: float = fact()
    """Share of exchanges of the two probes' hits that gain as much."""

    near_zero: ClassVar[tuple[str, ...]] = ("best_lost", "best_readout", "lost", "readout")

    @property
    def verdict(self) -> str:
        """What became of the knowledge, in a word or two; "" where nothing was measured."""
        if not np.isfinite(self.best_base.value):
            return ""
        if not self.known_p <= LEVEL:
            return "not known"
        if self._above_zero("best_lost"):
            return "erased in part" if self.best_retrained.low > self.chance else "erased"
        if self._above_zero("best_readout"):
            return "read out otherwise"
        known = self.best_base.value - self.best_control.value
        missing = max(self.best_lost.high, self.best_drop.high)
        return "kept" if missing < MARGIN * known else "undecided"

    def summary(self) -> str:
        """What became of what the base knew, at the layer that reads it best."""
        if not self.verdict:
            return "Too few documents were seen to probe them."
        if self.verdict == "not known":
            return (
                f"The base did not know {self._what()}: balanced accuracy {self.best_base} where "
                f"it reads best, not above its control of {self.best_control.value:.3f}."
            )
        first = f"{self._what()} {self._became()}"
        return (
            f"{first[0].upper()}{first[1:]}: of balanced accuracy {self.best_base} (control "
            f"{self.best_control.value:.3f}), lost {self.best_lost} and readout drift "
            f"{self.best_readout}."
        )

    def headline(self) -> str:
        """What became of it, where something did."""
        changed = ("erased", "erased in part", "read out otherwise")
        return f"{self._what()} {self._became()}" if self.verdict in changed else ""

    def figure(self) -> "figures.Figure | None":
        """The four accuracies over the layers, with their bands."""
        if not self.verdict:
            return None
        names = {
            "base's probe on base": "base",
            "base's probe on aligned": "transferred",
            "aligned's probe on aligned": "retrained",
            "control": "control",
        }
        return figures.curves(
            [str(layer) for layer in self.layer],
            {name: getattr(self, field) for name, field in names.items()},
            bands={
                name: (getattr(self, f"{field}_low"), getattr(self, f"{field}_high"))
                for name, field in names.items()
            },
            xlabel="block",
            ylabel="balanced accuracy, held out",
        )

    def _above_zero(self, name: str) -> bool:
        return bool(getattr(self, name).low > 0 and self.above_floor(name))

    def _what(self) -> str:
        if len(self.classes) > 3:
            return f"the difference between {len(self.classes)} classes of texts"
        names = [f"“{name.replace('_', ' ')}”" for name in self.classes]
        return f"the difference between {', '.join(names[:-1])} and {names[-1]} texts"

    def _became(self) -> str:
        """The verdict in words, with its place."""
        blocks = [name for name in self.best_layers if name != "embed"]
        places = ["the embedding"] if "embed" in self.best_layers else []
        if blocks:
            several = f"{', '.join(blocks[:-1])} and " if blocks[1:] else ""
            places.append(f"block{'s' if several else ''} {several}{blocks[-1]}")
        where = f"at {' and '.join(places)}"
        return {
            "erased": f"is erased {where}",
            "erased in part": f"is erased in part {where}",
            "read out otherwise": f"is still there {where}, no longer read out the same way",
            "kept": f"is kept {where}",
            "undecided": f"may be kept {where} or not, which so few documents do not tell",
        }[self.verdict]


class Retention(Metric[RetentionResult]):
    """How well linear probes tell the classes of texts from both models' states.

    Args:
        label: Which field of an example is its class; None is `role` if there are two roles or
            more, else `topic`. A `group` is no class: the documents of one are never divided.
        token: Whether a document's state is that of its `last` scored token, or the `mean` over
            all of them.
        layers: Blocks to look at besides the embedding; None is all of them.
        documents: How many documents to keep, at most.
        shuffles: How many times the control learns shuffled classes; 19 is the fewest that can
            tell at 5 %.
        seed: Of the choice of documents, the folds, the shuffles and the bootstrap.
    """

    def __init__(
        self,
        label: Label | None = None,
        token: Literal["last", "mean"] = "last",
        layers: frozenset[int] | None = None,
        documents: int = 400,
        shuffles: int = 99,
        seed: int = 0,
    ) -> None:
        self.wants = Wants(frozenset({"out"}), layers)
        self.label, self.token, self.limit = label, token, documents
        self.shuffles, self.seed = shuffles, seed
        self.sites: tuple[Site, ...] = ()
        self.classes: tuple[str, ...] = ()
        self.labels = np.empty(0, int)
        self.last = np.empty(0, int)
        self.states = PerDocument(0)

    def fits(self, encoder: Encoder) -> bool:
        """Whether the pack has two classes of enough documents."""
        try:
            labelled(encoder.pack, sorted({w.example for w in encoder.plan}), self.label)
        except DriftlensError:
            return False
        return True

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Choose the documents.

        Raises:
            DriftlensError: Fewer than two classes with enough documents.
        """
        super().begin(pair, encoder)
        layers = range(pair.depth) if self.wants.layers is None else sorted(self.wants.layers)
        self.sites = every(layers, "out")
        read = sorted({window.example for window in encoder.plan})
        self.classes, self.labels = labelled(encoder.pack, read, self.label)
        columns = 1 + 2 * len(self.sites) * pair.width
        self._choose(min(self.limit, STATES_BYTES // (8 * columns)))
        self.last = np.full(len(self.labels), -1)
        for number in np.flatnonzero(self.labels >= 0):
            self.last[number] = np.flatnonzero(encoder.document(int(number)).scored)[-1]
        self.states = PerDocument(columns)

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        units = frame.units
        mine = units.position == self.last[units.document]
        if self.token == "mean":
            mine = units.scored & (self.labels[units.document] >= 0)
        rows = torch.from_numpy(np.flatnonzero(mine)).to(frame.base.last.device)
        # Side by side: base and aligned of the embedding, base and aligned of block 0, …
        states = [z[rows].cpu().double() for site in self.sites for z in frame.both(site)]
        ones = torch.ones(len(rows), 1, dtype=torch.float64)
        self.states.update(units.document[mine], torch.cat([ones, *states], 1))

    def compute(self) -> RetentionResult:
        """The result of all that was seen so far."""
        documents, sums = self.states.documents, self.states.sums
        labels, clusters = self.labels[documents], self._clusters[documents]
        if not _enough(labels, clusters, len(self.classes)):
            return self._nothing(len(documents))
        states = (sums[:, 1:] / sums[:, :1]).reshape(len(sums), len(self.sites), 2, -1)
        folds = folds_of(labels, clusters, self.seed)
        others = shuffled(labels, clusters, folds, self.seed + 1, self.shuffles)
        readings = [
            read(states[:, site, 0], states[:, site, 1], labels, folds, others)
            for site in range(len(self.sites))
        ]
        weights, controls = balance(labels), balance(others)
        best = _best([one.promise for one in readings])[folds]
        readings.append(_along(readings, best, folds))
        numbers = np.moveaxis(_hits(readings) * weights, -1, 0)
        found = bootstrap(numbers, weights, seed=self.seed, clusters=clusters)
        control = np.stack([(one.control * controls).sum(1) for one in readings])
        # Weights of a third and the like add up to 1 but for rounding.
        bounds = np.stack(found, 1).round(12)
        table = dict(zip(HITS, bounds, strict=True)) | {"control": _range(control)}
        return RetentionResult.of(
            **{f"best_{name}": Estimate(*map(float, table[name][:, -1])) for name in table},
            **self._columns(table),
            **self._facts(len(documents), [self._names()[row] for row in np.unique(best)]),
            known_p=exceeded(float(table["base"][0, -1]), control[-1]),
            lost_p=exchanged(numbers[:, HITS.index("lost"), -1], clusters, self.seed),
            readout_p=exchanged(numbers[:, HITS.index("readout"), -1], clusters, self.seed),
        )

    def _choose(self, room: int) -> None:
        """Keep the classes of about so many documents, and let the others go."""
        mine = np.flatnonzero(self.labels >= 0)
        labels, clusters = self.labels[mine], self._clusters[mine]
        some = some_of(labels, clusters, room / len(mine), self.seed)
        if not _enough(labels[some], clusters[some], len(self.classes)):
            raise DriftlensError(
                f"room for {LEAST} groups of each of {len(self.classes)} classes",
                found=f"room for {room} documents",
                remedy="Give more `documents`, fewer `layers`, or a label with fewer classes.",
            )
        self.labels[mine[~some]] = -1

    @property
    def _clusters(self) -> np.ndarray:
        return np.asarray(self.encoder.pack.clusters)

    def _names(self) -> list[str]:
        return ["embed" if site == EMBED else str(site.layer) for site in self.sites]

    def _columns(self, table: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The table's columns, from [bound, layer] of each name."""
        columns: dict[str, Any] = {"layer": self._names()}
        for name in ("base", "transferred", "retrained", "control", "lost", "readout"):
            bounds = ("", "_low", "_high")
            columns |= {
                f"{name}{bound}": row[: len(self.sites)]
                for bound, row in zip(bounds, table[name], strict=True)
            }
        return columns

    def _facts(self, documents: int, best: Sequence[str]) -> dict[str, Any]:
        return {
            "best_layers": tuple(best),
            "classes": self.classes,
            "chance": 1 / len(self.classes),
            "documents": documents,
            "notes": self._notes(),
        }

    def _nothing(self, documents: int) -> RetentionResult:
        """The result of too few documents."""
        undefined = np.full((3, len(self.sites) + 1), np.nan)
        table = dict.fromkeys((*HITS, "control"), undefined)
        return RetentionResult.of(
            **{f"best_{name}": np.nan for name in table},
            **self._columns(table),
            **self._facts(documents, ()),
            **dict.fromkeys(("known_p", "lost_p", "readout_p"), np.nan),
        )

    def _notes(self) -> tuple[str, ...]:
        held, every = int((self.labels >= 0).sum()), len(self.labels)
        if held == every:
            return ()
        return (
            f"{held} of {every} documents were probed: an even sample of the classes with at least "
            f"{LEAST} groups.",
        )


HITS = ("base", "transferred", "retrained", "drop", "lost", "readout")
"""What is averaged over documents: three probes' hits, and differences of these."""


def labelled(
    pack: Pack, numbers: Sequence[int], label: Label | None = None
) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes of a pack's examples, by name, and [example] the number of each; −1 is none.

    Args:
        pack: The pack.
        numbers: The examples that are shown.
        label: The field that holds the class; None is `role` if that makes two classes, else
            `topic`.

    Raises:
        DriftlensError: Fewer than two classes that enough groups hold.
    """
    fields: Sequence[Label] = ("role", "topic") if label is None else (label,)
    clusters, seen = pack.clusters, {}
    for field in fields:
        held: dict[str, set[int]] = {}
        for number in numbers:
            held.setdefault(getattr(pack.examples[number], field), set()).add(clusters[number])
        names = sorted(name for name, groups in held.items() if name and len(groups) >= LEAST)
        if len(names) > 1:
            found = np.full(len(pack.examples), -1)
            for number in numbers:
                name = getattr(pack.examples[number], field)
                found[number] = names.index(name) if name in names else -1
            return tuple(names), found
        seen[field] = {name: len(groups) for name, groups in held.items() if name}
    raise DriftlensError(
        f"two classes with at least {LEAST} groups of documents each in {pack.name}",
        found="; ".join(
            f"{field} " + (", ".join(f"{n} of {name!r}" for name, n in many.items()) or "unnamed")
            for field, many in seen.items()
        ),
        remedy="Give each example its class as `role` or `topic`, or leave this metric out.",
    )


def _enough(labels: np.ndarray, clusters: np.ndarray, classes: int) -> bool:
    """Whether enough clusters hold each class."""
    held = [len(np.unique(clusters[labels == number])) for number in range(classes)]
    return min(held) >= LEAST


def _best(promises: Sequence[np.ndarray]) -> np.ndarray:
    """[*, fold] number of the layer that promises most; the first of those that do."""
    return np.argmax(np.stack(promises).round(12), 0)


def _along(readings: Sequence[Reading], best: np.ndarray, folds: np.ndarray) -> Reading:
    """What is read of each document at the layer that is best for it.

    Args:
        readings: One for each layer.
        best: [document] number of its layer.
        folds: [document] the fold of each; every shuffle chooses its own layer for it.
    """
    whole = {
        name: np.stack([getattr(one, name) for one in readings])
        for name in ("base", "transferred", "retrained")
    }
    control = np.stack([one.control for one in readings], 1)
    promises = [one.control_promise for one in readings]
    return replace(
        readings[0],
        **{name: taken(hits, best) for name, hits in whole.items()},
        control=taken(control, _best(promises)[:, folds]),
        promise=np.max([one.promise for one in readings], 0),
        control_promise=np.max(promises, 0),
    )


def _hits(readings: Sequence[Reading]) -> np.ndarray:
    """[hit, layer, document] in the order of `HITS`."""
    base, transferred, retrained = (
        np.stack([getattr(one, name) for one in readings]).astype(float) for name in HITS[:3]
    )
    differences = (base - transferred, base - retrained, retrained - transferred)
    return np.stack([base, transferred, retrained, *differences])


def _range(control: np.ndarray) -> np.ndarray:
    """[bound, layer] mean over [layer, shuffle], and the range of 95 % of the shuffles."""
    low, high = np.quantile(control, (0.025, 0.975), axis=1)
    return np.stack([control.mean(1), low, high])
