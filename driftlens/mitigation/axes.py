"""The two aims, as packs read them: what a model can, and how aligned it is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from driftlens.diagnostics.safety import HARMFUL, is_harmful
from driftlens.errors import DriftlensError
from driftlens.formulas.streams import PerDocument
from driftlens.metric import Metric, even_part, measure
from driftlens.models import Frame, ModelPair, Wants
from driftlens.models.hybrid import plain
from driftlens.models.model import rows_of
from driftlens.models.tokens import Encoder
from driftlens.packs import Pack
from driftlens.results import Result
from driftlens.sweeps import Reading, Texts, choices

from .asked import Options


@dataclass(frozen=True)
class Axis:
    """One of the two aims, as one pack reads it."""

    called: str
    """Name of the pack."""
    name: str
    """What is read, with its unit."""
    reading: Reading
    column: str
    """Which column of it."""
    score: str
    """Which of its scores has a gradient; empty if none."""
    paired: bool = False
    """Whether two texts of a group are held against each other."""
    margin: bool = False
    said: tuple[str, ...] = ()
    """Which part of the pack is read."""

    def items(self, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[item] values, weights and clusters, of [document, column] sums of the reading."""
        values = sums[:, list(self.reading.columns).index(self.column)]
        clusters = np.array(self.reading.pack.clusters, np.int64)
        if not self.paired:
            text = "tokens" in self.reading.columns
            return values, sums[:, 0] if text else np.ones(len(values)), clusters
        chosen, rejected = self.sides
        margin = values[chosen] - values[rejected]
        found = margin if self.margin else np.heaviside(margin, 0.5)
        return found, np.ones(len(found)), clusters[chosen]

    @cached_property
    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """[pair] numbers of the chosen texts, and of the rejected ones beside them."""
        groups: dict[Any, dict[str, int]] = {}
        for number, example in enumerate(self.reading.pack.examples):
            groups.setdefault(example.group, {})[example.role] = number
        pairs = [(both["chosen"], both["rejected"]) for both in groups.values()]
        chosen, rejected = np.array(pairs, np.int64).T
        return chosen, rejected

    def counts(self, tokens: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """[document] what each one's score counts in the mean over some documents."""
        found = np.zeros(len(tokens))
        if self.paired:
            chosen, rejected = self.sides
            mine = np.isin(chosen, documents)
            found[chosen[mine]], found[rejected[mine]] = 1 / mine.sum(), -1 / mine.sum()
            return found
        text = "tokens" in self.reading.columns
        found[documents] = 1 / (tokens[documents].sum() if text else len(documents))
        return found


def axis_of(pair: ModelPair, pack: Pack, aligning: bool, options: Options) -> Axis:
    """How a pack is read.

    Args:
        pair: Whose tokenizers read it.
        pack: The pack.
        aligning: Whether it tells of alignment; else of capability.
        options: How.

    Raises:
        DriftlensError: It is of no such kind, or is cut differently by the two.
    """
    kinds = ("choice", "preference") if aligning else ("text", "choice")
    if pack.kind not in kinds:
        aim = "alignment" if aligning else "capability"
        raise DriftlensError(
            f"a pack of kind {' or '.join(kinds)}, of {aim}",
            found=f"{pack.name} of kind {pack.kind}",
            remedy=f"Give --{aim} one that `driftlens packs` lists so, or a file of such rows.",
        )
    pack, left = to_refuse(pack) if aligning else (pack, "")
    part, said = even_part(pair, pack, options.tokens, options.length)
    said = " ".join(filter(None, [left, said]))
    if not pair.encoder(part, options.length).same:
        raise DriftlensError(
            "two tokenizers that cut the text into the same tokens, as one net reads it",
            found=f"{pack.name} cut differently by {pair.base.name} and {pair.aligned.name}",
            remedy="Give both models one tokenizer.",
        )
    make = partial(Axis, pack.name, said=(f"{pack.name}: {said}",) if said else ())
    if pack.kind == "text":
        return make("rise in loss [nats/token]", Texts(part), "log_right", "log_right")
    if pack.kind == "preference":
        margin = options.preference == "margin"
        name = "margin of the chosen answer [nats]" if margin else "ranking accuracy [of pairs]"
        score = "log_right" if margin else ""
        return make(name, Texts(part), "log_right", score, paired=True, margin=margin)
    if aligning:
        return make("P(agree) − P(refuse)", choices(part, pair), "behaviour", "behaviour")
    return make("fall of P(right) [probability]", choices(part, pair), "right", "right")


def to_refuse(pack: Pack) -> tuple[Pack, str]:
    """Of a pack of refusals what is to be refused, and what to say of that."""
    harmful = is_harmful(pack, HARMFUL)
    if pack.kind != "choice" or harmful.all() or not harmful.any():
        return pack, ""
    kept = [one for one, mine in zip(pack.examples, harmful, strict=True) if mine]
    said = f"Only what is to be refused counts, {len(kept)} of {len(harmful)} prompts."
    return replace(pack, examples=kept), said


def shown(pair: ModelPair, packs: Sequence[Pack], options: Options) -> list[Pack]:
    """Packs of capability as the texts that they are shown as.

    Raises:
        DriftlensError: One is of no use for this.
    """
    return [axis_of(pair, pack, False, options).reading.pack for pack in packs]


class Read(Metric[Result]):
    """Keeps what is read of each document.

    Args:
        reading: What is made of logits.
    """

    wants = Wants(same_tokens=True)

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.sums = PerDocument(len(reading.columns))

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        trace, model = frame.aligned, plain(self.pair.aligned)
        documents = frame.scored.document
        mine = documents[trace.batch.owner.cpu().numpy()] if len(documents) else documents
        size = rows_of(model.vocabulary)
        for first in range(0, len(mine), size):
            some = slice(first, first + size)
            logits = model.readout(trace.predictors[some])
            read = self.reading.values(logits, trace.batch.targets[some], mine[some], 1)
            self.sums.update(mine[some], read)

    def compute(self) -> Result:
        """Nothing but what was kept."""
        return Result()


class Alone(ModelPair):
    """A model beside itself, which cuts each pack into tokens once, however often it is shown."""

    def encoder(self, pack: Pack, length: int | None = None) -> Encoder:
        """The pack as the model's tokens; see `ModelPair.encoder`."""
        known = vars(self).setdefault("_known", {})
        if (id(pack), length) not in known:
            # With the pack, so that no other takes its place in memory.
            known[id(pack), length] = pack, super().encoder(pack, length)
        return known[id(pack), length][1]


def read(alone: ModelPair, axis: Axis, options: Options) -> np.ndarray:
    """[document, column] sums of what is read of a model beside itself, along one of its aims."""
    metric, pack = Read(axis.reading), axis.reading.pack
    measure(alone, pack, [metric], rows=options.rows, length=options.length)
    found = np.zeros((len(pack.examples), len(axis.reading.columns)))
    # A document of which nothing is scored counts nothing.
    found[metric.sums.documents] = metric.sums.sums
    return found


def choosing(clusters: np.ndarray, seed: int) -> np.ndarray:
    """[item] whether its family is of the half that chooses, which is drawn."""
    families = np.unique(clusters)
    drawn = np.random.default_rng(seed).permutation(families)
    return np.isin(clusters, drawn[: len(families) // 2])
