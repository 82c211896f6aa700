"""Which layers make the aligned model surer than it is right."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from driftlens.formulas.divergence import Said
from driftlens.formulas.streams import PerDocument
from driftlens.metric import Metric
from driftlens.models import Frame, ModelPair, Wants
from driftlens.models.tokens import Encoder
from driftlens.results import Estimate, Result, column, figures, value

SYMPTOMS = ("entropy", "confidence", "accuracy", "overconfidence")


@dataclass(frozen=True)
class SymptomLayersResult(Result):
    """The change in entropy, confidence and accuracy, divided among embedding, blocks and head."""

    kind = "symptom_layers"
    title = "Confidence and entropy by layer"
    over = "Which layers made it surer"
    how = """
The runs of *Forgetting by layer* (base below each boundary, aligned above, and the other way \
round) tell at every boundary the entropy of the next token, the confidence (its largest \
probability) and whether the text goes on with the likeliest token. A stage's share of the change \
aligned − base is what changes when the stage's weights do:

    share(stage) = value(base below the stage) − value(base up to and with it),

and the same from the other end; the table has the mean of both orders, and the first order beside \
it. The shares telescope: embedding + blocks + head = the whole change, exactly; the residual is \
what rounding leaves. Over-confidence is confidence − accuracy, and so are its shares. Where the \
two orders differ, a stage's part depends on what stands below it: their mean is the Shapley \
value over these two orders. Intervals: 95 % bootstrap over documents.

Source: activation patching across models (Prakash et al. 2024), taken at all positions, as a \
telescoping sum.
""".strip()

    overconfidence_change: Estimate = value("probability")
    """Change of mean confidence − accuracy."""
    entropy_change: Estimate = value("nats/token")
    """Change of mean entropy."""
    confidence_change: Estimate = value("probability")
    """Change of mean confidence."""
    accuracy_change: Estimate = value("probability")
    """Change of accuracy: of how often the likeliest token is right."""
    residual: Estimate = value("")
    """The largest difference, in size, between a change and the sum of its shares."""

    stage: np.ndarray = column()
    """[row] `embed`, number of the block, or `head`."""
    overconfidence: np.ndarray = column("probability")
    """[row] share of the change of over-confidence, mean of both orders."""
    low_overconfidence: np.ndarray = column("probability")
    """[row] lower end of its 95 % interval."""
    high_overconfidence: np.ndarray = column("probability")
    """[row] upper end of it."""
    overconfidence_restored: np.ndarray = column("probability")
    """[row] the same share, restoring from the bottom."""
    entropy: np.ndarray = column("nats/token")
    """[row] share of the change of entropy, mean of both orders."""
    low_entropy: np.ndarray = column("nats/token")
    """[row] lower end of its interval."""
    high_entropy: np.ndarray = column("nats/token")
    """[row] upper end of it."""
    entropy_restored: np.ndarray = column("nats/token")
    """[row] the same share, restoring from the bottom."""
    confidence: np.ndarray = column("probability")
    """[row] share of the change of confidence, mean of both orders."""
    low_confidence: np.ndarray = column("probability")
    """[row] lower end of its interval."""
    high_confidence: np.ndarray = column("probability")
    """[row] upper end of it."""
    confidence_restored: np.ndarray = column("probability")
    """[row] the same share, restoring from the bottom."""
    accuracy: np.ndarray = column("probability")
    """[row] share of the change of accuracy, mean of both orders."""
    low_accuracy: np.ndarray = column("probability")
    """[row] lower end of its interval."""
    high_accuracy: np.ndarray = column("probability")
    """[row] upper end of it."""
    accuracy_restored: np.ndarray = column("probability")
    """[row] the same share, restoring from the bottom."""

    near_zero: ClassVar[tuple[str, ...]] = (
        *(f"{name}_change" for name in SYMPTOMS),
        *SYMPTOMS,
        *(f"{name}_restored" for name in SYMPTOMS),
    )
    layered: ClassVar[str] = "entropy"

    def of_layers(self) -> dict[str, Estimate]:
        """The shares of the change of entropy, by stage of the net."""
        ends = (self.entropy, self.low_entropy, self.high_entropy)
        shares = (Estimate(*map(float, row)) for row in zip(*ends, strict=True))
        return dict(zip(self.stage, shares, strict=True))

    def summary(self) -> str:
        """Which stage has the largest share of either change."""
        told = (
            f"of a change of {words} by {getattr(self, f'{name}_change')} {unit}, "
            f"{self._most(name)}"
            for name, words, unit in (
                ("overconfidence", "over-confidence", "in probability"),
                ("entropy", "entropy", "nats a token"),
            )
        )
        said = "; ".join(told)
        return f"{said[0].upper()}{said[1:]}."

    def headline(self) -> str:
        """The stage that changed entropy most, if the change can be told from noise."""
        change = self.entropy_change
        if not self.above_floor("entropy_change") or not change.low * change.high > 0:
            return ""
        return f"of the change of entropy, {self._most('entropy')}"

    def _most(self, name: str) -> str:
        """The stage with the largest share, and the share."""
        shares = np.abs(np.nan_to_num(getattr(self, name)))
        if not shares.any():
            return "no stage has a share"
        row = int(shares.argmax())
        stage = str(self.stage[row])
        place = {"embed": "the embedding", "head": "the head"}.get(stage, f"block {stage}")
        ends = (float(getattr(self, f"{end}{name}")[row]) for end in ("", "low_", "high_"))
        return f"{place} has most, {Estimate(*ends)}"

    def figure(self) -> "figures.Figure":
        """Shares of over-confidence and of entropy by stage."""
        figure, panels = figures.panels(2)
        for panel, (name, label) in zip(
            panels,
            (
                ("overconfidence", "over-confidence [probability]"),
                ("entropy", "entropy [nats/token]"),
            ),
            strict=True,
        ):
            figures.bars(
                self.stage,
                getattr(self, name),
                getattr(self, f"low_{name}"),
                getattr(self, f"high_{name}"),
                second={"restored from the bottom": getattr(self, f"{name}_restored")},
                label="mean of both orders",
                xlabel="stage, with its share of the change",
                ylabel=label,
                floor=self.floor.get(name),
                on=panel,
            )
        return figure


class SymptomLayers(Metric[SymptomLayersResult]):
    """How the change of entropy, confidence and accuracy divides among embedding, blocks and head.

    Args:
        seed: Of the bootstrap.
    """

    wants = Wants(frozenset({"out"}), None, causal=True, same_tokens=True, together=True)

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.sums = PerDocument(0)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make room for the stages."""
        super().begin(pair, encoder)
        self.sums = PerDocument(1 + len(SYMPTOMS) * (1 + 2 * (pair.depth + 2)))

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        restored, corrupted = (_values(z) for z in (frame.restored_said, frame.corrupted_said))
        change = restored[:, :1] - restored[:, -1:]
        shares = torch.cat([change, -restored.diff(dim=1), corrupted.diff(dim=1)], 1).flatten(0, 1)
        self.sums.update(frame.scored.document, torch.cat([torch.ones_like(shares[:1]), shares]).T)

    def compute(self) -> SymptomLayersResult:
        """The result of all that was seen so far."""
        sums, stages = self.sums.sums, self.pair.depth + 2
        parts = sums[:, 1:].reshape(len(sums), len(SYMPTOMS), 1 + 2 * stages)
        change, restored, corrupted = np.split(parts, [1, 1 + stages], -1)
        mean = (restored + corrupted) / 2
        found = self.intervals(
            np.concatenate([change, mean, restored], -1), sums[:, 0], self.sums.documents
        )
        fields: dict[str, object] = {}
        for row, name in enumerate(SYMPTOMS):
            number, low, high = (z[row] for z in found)
            fields[f"{name}_change"] = Estimate(float(number[0]), float(low[0]), float(high[0]))
            fields[name] = number[1 : 1 + stages]
            fields[f"low_{name}"], fields[f"high_{name}"] = (
                low[1 : 1 + stages],
                high[1 : 1 + stages],
            )
            fields[f"{name}_restored"] = number[1 + stages :]
        left = found.estimate[:, 0] - found.estimate[:, 1 : 1 + stages].sum(1)
        return SymptomLayersResult.of(
            residual=float(np.abs(left).max()),
            stage=["embed", *map(str, range(self.pair.depth)), "head"],
            **fields,
        )


def _values(said: Said) -> Tensor:
    """[symptom, boundary, scored unit] in the order of `SYMPTOMS`."""
    confidence, accuracy = said.top_logprob.exp(), said.hit.double()
    return torch.stack([said.entropy, confidence, accuracy, confidence - accuracy])
