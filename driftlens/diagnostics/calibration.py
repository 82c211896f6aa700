"""Whether the models are right as often as they are sure, and what temperature would mend it."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from driftlens.formulas import calibration
from driftlens.formulas.calibration import BETAS, BINS
from driftlens.formulas.intervals import Interval, of_sums
from driftlens.formulas.sampling import chosen
from driftlens.formulas.streams import PerDocument, Rows
from driftlens.metric import Metric
from driftlens.models import Frame, ModelPair, Wants
from driftlens.models.model import rows_of
from driftlens.models.tokens import Encoder
from driftlens.results import Estimate, Result, column, fact, figures, value
from driftlens.sweeps import Choices

SIDES = ("base", "aligned")

MEANS = ("confidence", "accuracy", "brier", "nll")
"""What is averaged over all tokens or items, besides their bins."""

SUMS = 1 + 2 * len(MEANS) + 2 + 2 * BINS * 3
"""Numbers kept for each document: its tokens, means, flips and bins."""

LOSSES = 1 + 2 * len(BETAS) * 3
"""The same of the tokens that are read at other temperatures."""

ROWS = 50_000
"""Tokens kept one by one, for bins of equal mass."""

TEMPERED = 4096
"""Tokens that are read at other temperatures."""

WHOLE = "all"
"""What the division into nothing is called."""


@dataclass(frozen=True)
class CalibrationResult(Result):
    """How sure both models are and how often they are right, and the change between them."""

    kind = "calibration"
    title = "Calibration"
    over = "Whether it knows what it does not know"
    how = f"""
The confidence of a prediction is the largest probability that the model gives. Of text it is that \
of the likeliest next token, and a hit is that the text goes on with it (teacher forced, so both \
models read the same contexts); of choices it is the largest share among the answers, read at \
their first tokens, and a hit is that a wanted answer has it (½ of a tie). Over-confidence is mean \
confidence − accuracy. A change is aligned − base.

ECE = Σ_b (n_b / n) |accuracy_b − confidence_b| over {BINS} bins of equal width (Guo et al. 2017, \
eq. 3); ece_mass has bins of equal mass, and ece_sweep as many of those as keep accuracy rising \
with confidence (Roelofs et al. 2022). Noise alone makes each of them larger than 0: ece_chance is \
what a perfectly calibrated model with the same confidences is to be expected to show (the mean \
absolute deviation of a binomial, de Moivre 1730), and ece_debiased = ece − ece_chance has the \
mean 0 for such a model. Of any other that takes off too much: its true error lies, on average, \
between ece_debiased and ece.

Brier: of text (confidence − hit)²; of choices Brier's (1950) sum over the answers, 0 to 2. NLL: \
of text that of the token, of choices that of the wanted answers among all answers. T* is the \
temperature that would make the NLL least (temperature scaling, Guo et al. 2017): above 1 the \
model is too sure. The slope of the NLL by 1/T is read at {len(BETAS)} inverse temperatures from 0 \
to {BETAS[-1]:g} on an even sample of tokens, and its zero interpolated by cubics. Platt's (1999) \
scale and bias fit σ(scale · logit(confidence) + bias) to the hits: scale 1 and bias 0 need no \
repair.

Intervals: 95 % bootstrap over documents; of ECE, moved to the estimate, for drawing again adds \
noise of its own; of Platt's two numbers Wald's, clustered by document; ece_mass and ece_sweep \
have none, and where confidences all but tie, as after contexts that recur, rounding moves their \
bins: by .01 on a few thousand tokens, so that smaller changes of theirs say nothing.
""".strip()

    overconfidence_change: Estimate = value("probability")
    """Change of mean confidence − accuracy; above 0 the aligned model is the surer for no gain."""
    base_overconfidence: Estimate = value("probability")
    """Mean confidence − accuracy of base."""
    aligned_overconfidence: Estimate = value("probability")
    """The same of aligned."""
    ece_change: Estimate = value("probability")
    """Change of the ECE."""
    base_ece: Estimate = value("probability")
    """ECE of base, bins of equal width."""
    aligned_ece: Estimate = value("probability")
    """The same of aligned."""
    ece_debiased_change: Estimate = value("probability")
    """Change of the ECE less what chance alone makes of it."""
    base_ece_debiased: Estimate = value("probability")
    """ECE of base less what chance alone makes of it."""
    aligned_ece_debiased: Estimate = value("probability")
    """The same of aligned."""
    base_ece_chance: Estimate = value("probability")
    """ECE to be expected of base if it were perfectly calibrated."""
    aligned_ece_chance: Estimate = value("probability")
    """The same of aligned."""
    ece_mass_change: Estimate = value("probability")
    """Change of the ECE with bins of equal mass."""
    base_ece_mass: Estimate = value("probability")
    """ECE of base, bins of equal mass."""
    aligned_ece_mass: Estimate = value("probability")
    """The same of aligned."""
    ece_sweep_change: Estimate = value("probability")
    """Change of the ECE with as many bins as keep accuracy rising."""
    base_ece_sweep: Estimate = value("probability")
    """ECE of base, with as many bins of equal mass as keep accuracy rising."""
    aligned_ece_sweep: Estimate = value("probability")
    """The same of aligned."""
    confidence_change: Estimate = value("probability")
    """Change of mean confidence."""
    base_confidence: Estimate = value("probability")
    """Mean confidence of base."""
    aligned_confidence: Estimate = value("probability")
    """The same of aligned."""
    accuracy_change: Estimate = value("probability")
    """Change of accuracy."""
    base_accuracy: Estimate = value("probability")
    """How often base's likeliest is right."""
    aligned_accuracy: Estimate = value("probability")
    """The same of aligned."""
    lost: Estimate = value("of predictions")
    """Share that base has right and aligned wrong."""
    won: Estimate = value("of predictions")
    """Share that base has wrong and aligned right."""
    brier_change: Estimate = value("")
    """Change of the Brier score."""
    base_brier: Estimate = value("")
    """Brier score of base."""
    aligned_brier: Estimate = value("")
    """The same of aligned."""
    nll_change: Estimate = value("nats")
    """Change of the NLL."""
    base_nll: Estimate = value("nats")
    """Mean NLL of base."""
    aligned_nll: Estimate = value("nats")
    """The same of aligned."""
    temperature_change: Estimate = value("")
    """Change of T*."""
    base_temperature: Estimate = value("")
    """T* of base; infinite where no confidence at all would be better."""
    aligned_temperature: Estimate = value("")
    """The same of aligned."""
    base_platt_scale: Estimate = value("")
    """Platt's scale of base; NaN where no finite one is best."""
    aligned_platt_scale: Estimate = value("")
    """The same of aligned."""
    base_platt_bias: Estimate = value("nats")
    """Platt's bias of base."""
    aligned_platt_bias: Estimate = value("nats")
    """The same of aligned."""

    division: np.ndarray = column()
    """[row] `all`, or a topic of the pack, all of whose confidences lie in one bin."""
    model: np.ndarray = column()
    """[row] `base` or `aligned`."""
    above: np.ndarray = column("probability")
    """[row] lower end of the bin of confidences, which does not belong to it."""
    up_to: np.ndarray = column("probability")
    """[row] upper end of it, which does."""
    count: np.ndarray = column()
    """[row] how many predictions."""
    confidence: np.ndarray = column("probability")
    """[row] mean confidence of them."""
    accuracy: np.ndarray = column("probability")
    """[row] how many of them are right."""
    low: np.ndarray = column("probability")
    """[row] lower end of the accuracy's 95 % interval."""
    high: np.ndarray = column("probability")
    """[row] upper end of it."""

    predicted: str = fact()
    """What is predicted: `next token` or `choices`."""
    predictions: int = fact()
    """How many there were."""
    tempered: int = fact()
    """Of how many the loss was read at other temperatures."""
    base_sweep_bins: int = fact()
    """Bins that keep base's accuracy rising."""
    aligned_sweep_bins: int = fact()
    """The same of aligned."""

    near_zero: ClassVar[tuple[str, ...]] = (
        "overconfidence_change",
        "ece_change",
        "ece_debiased_change",
        "ece_mass_change",
        "ece_sweep_change",
        "confidence_change",
        "accuracy_change",
        "lost",
        "won",
        "brier_change",
        "nll_change",
        "temperature_change",
    )
    levels: ClassVar[Mapping[str, str]] = {
        "overconfidence": "overconfidence_change",
        "ece": "ece_change",
        "ece_debiased": "ece_debiased_change",
        "confidence": "confidence_change",
        "accuracy": "accuracy_change",
        "brier": "brier_change",
        "nll": "nll_change",
        "temperature": "temperature_change",
    }

    def summary(self) -> str:
        """How sure and how right both are, the change, and both temperatures."""
        if not self.predictions:
            return "Nothing was predicted."
        moved = self.overconfidence_change
        verb = "rose" if moved.value >= 0 else "fell"
        size = moved if moved.value >= 0 else Estimate(-moved.value, -moved.high, -moved.low)
        what = "next tokens" if self.predicted == "next token" else "answers"
        return (
            f"Of its likeliest {what} base is {self.base_confidence.value:.1%} sure and has "
            f"{self.base_accuracy.value:.1%} right, aligned {self.aligned_confidence.value:.1%} "
            f"and {self.aligned_accuracy.value:.1%}: over-confidence {verb} by {size}; ECE is "
            f"{self.base_ece} and {self.aligned_ece}, T* {self.base_temperature} and "
            f"{self.aligned_temperature}."
        )

    def headline(self) -> str:
        """How much surer, or less sure, than it is right it has become."""
        moved = self.overconfidence_change
        if not self.above_floor("overconfidence_change") or not moved.low * moved.high > 0:
            return ""
        verb = "rose" if moved.value > 0 else "fell"
        size = moved if moved.value > 0 else Estimate(-moved.value, -moved.high, -moved.low)
        what = "" if self.predicted == "next token" else " in choices"
        return f"over-confidence{what} {verb} by {size} in probability"

    def figure(self) -> "figures.Figure | None":
        """The reliability diagram, and how the confidences are spread."""
        mine = self.division == WHOLE
        if not mine.any():
            return None
        figure, (left, right) = figures.panels(2)
        sides = [mine & (self.model == side) for side in SIDES]
        x, own = self.confidence, {}
        for side, rows in zip(SIDES, sides, strict=True):
            own[side] = np.append(np.where(rows, self.accuracy, np.nan)[mine], [np.nan] * 2)
        figures.curves(
            np.append(x[mine], [0, 1]),
            {**own, "calibrated": np.append(np.full(mine.sum(), np.nan), [0, 1])},
            xlabel="mean confidence [probability]",
            ylabel="accuracy [share right]",
            on=left,
        )
        middle = (self.above + self.up_to) / 2
        places = np.unique(middle[mine])
        shares = {
            side: np.array([self.count[z & (middle == at)].sum() for at in places])
            / max(1, self.count[z].sum())
            for side, z in zip(SIDES, sides, strict=True)
        }
        figures.curves(
            places,
            shares,
            xlabel="confidence [probability]",
            ylabel="share of predictions",
            on=right,
        )
        return figure


class Told(NamedTuple):
    """What was kept of the predictions, by document."""

    documents: np.ndarray
    """[document] numbers."""

    total: np.ndarray
    """[document] how many predictions."""

    means: np.ndarray
    """[document, model, mean] sums of `MEANS`."""

    flips: np.ndarray
    """[document, 2] how many were lost and won."""

    bins: np.ndarray
    """[document, model, bin, 3] count, confidence and hits."""

    tempered: np.ndarray
    """[document, model, beta, 3] losses and their derivatives."""

    sampled: int
    """How many predictions those are of."""

    rows: tuple[np.ndarray, np.ndarray, np.ndarray]
    """[row] documents, and [row, model] confidences and hits."""


class _Calibrated(Metric[CalibrationResult]):
    """What both kinds of predictions are told by."""

    predicted: ClassVar[str] = ""

    @abstractmethod
    def _told(self) -> Told:
        """What was kept."""

    @abstractmethod
    def _notes(self, told: Told) -> Iterator[str]:
        """What a reader must know."""

    def compute(self) -> CalibrationResult:
        """The result of all that was seen so far."""
        told = self._told()
        fields = {**self._means(told), **self._eces(told), **self._repairs(told)}
        return CalibrationResult.of(
            predicted=self.predicted,
            predictions=int(told.total.sum()),
            tempered=told.sampled,
            notes=(*self._notes(told), *_of_temperatures(fields)),
            **fields,
            **self._table(told),
        )

    def _means(self, told: Told) -> dict[str, Estimate]:
        over = told.means[..., :1] - told.means[..., 1:2]
        means = np.concatenate([told.means, over], -1)
        means = np.concatenate([means, np.diff(means, axis=1)], 1)
        found = self.intervals(means, told.total, told.documents)
        flips = self.intervals(told.flips, told.total, told.documents)
        fields = {name: _at(flips, place) for place, name in enumerate(("lost", "won"))}
        for side, which in enumerate((*SIDES, "change")):
            for place, name in enumerate((*MEANS, "overconfidence")):
                fields[_called(name, which)] = _at(found, (side, place))
        return fields

    def _eces(self, told: Told) -> dict[str, Any]:
        shape = told.bins.shape[1:]

        def of(sums: np.ndarray) -> np.ndarray:
            bins = sums.reshape(*sums.shape[:-1], *shape)
            found, chance = calibration.ece(bins), calibration.chance_ece(bins)
            both = np.stack([found, found - chance, chance], -1)
            return np.concatenate([both, np.diff(both, axis=-2)], -2)

        sums = told.bins.reshape(len(told.bins), int(np.prod(shape)))
        found = self._drawn(of, sums, told.documents, centred=True)
        fields: dict[str, Any] = {}
        for side, which in enumerate((*SIDES, "change")):
            for place, name in enumerate(("ece", "ece_debiased", "ece_chance")):
                if (name, which) != ("ece_chance", "change"):
                    fields[_called(name, which)] = _at(found, (side, place))
        for name, cut in (
            ("ece_mass", calibration.equal_mass),
            ("ece_sweep", calibration.monotonic_sweep),
        ):
            cuts = [cut(told.rows[1][:, n], told.rows[2][:, n]) for n in range(2)]
            base, aligned = (float(calibration.ece(bins)) for bins in cuts)
            for which, number in (*zip(SIDES, (base, aligned), strict=True),):
                fields[_called(name, which)] = Estimate(number)
            fields[_called(name, "change")] = Estimate(aligned - base)
        # Those of the sweep, which comes last.
        for which, bins in zip(SIDES, cuts, strict=True):
            fields[f"{which}_sweep_bins"] = len(bins)
        return fields

    def _repairs(self, told: Told) -> dict[str, Estimate]:
        shape = told.tempered.shape[1:]

        def of(sums: np.ndarray) -> np.ndarray:
            beta = calibration.best_beta(sums.reshape(*sums.shape[:-1], *shape))
            warmth = calibration.temperature(beta)
            with np.errstate(invalid="ignore"):
                return np.concatenate([warmth, np.diff(warmth, axis=-1)], -1)

        sums = told.tempered.reshape(len(told.tempered), int(np.prod(shape)))
        found = self._drawn(of, sums, told.documents)
        names = (*SIDES, "change")
        fields = {_called("temperature", z): _at(found, n) for n, z in enumerate(names)}
        documents, confidence, hit = told.rows
        clusters = np.asarray(self.encoder.pack.clusters)[documents]
        for n, side in enumerate(SIDES):
            fit = calibration.platt(confidence[:, n], hit[:, n], clusters, self.level)
            for place, name in enumerate(("platt_scale", "platt_bias")):
                fields[f"{side}_{name}"] = _at(fit, place)
        return fields

    def _drawn(self, of: Any, sums: np.ndarray, documents: np.ndarray, **how: Any) -> Interval:
        clusters = np.asarray(self.encoder.pack.clusters)[documents]
        return of_sums(of, sums, seed=self.seed, level=self.level, clusters=clusters, **how)

    def _table(self, told: Told) -> dict[str, Any]:
        topics = np.array([self.encoder.pack.examples[d].topic or "" for d in told.documents])
        rows: list[tuple] = []
        every = np.ones(len(topics), bool)
        edges = np.linspace(0, 1, BINS + 1)
        rows += self._rows_of(WHOLE, told, every, told.bins, edges)
        names = sorted(set(topics))
        for name in names if len(names) > 1 else ():
            rows += self._rows_of(
                name or "no topic",
                told,
                topics == name,
                told.bins.sum(2, keepdims=True),
                edges[[0, -1]],
            )
        return dict(
            zip(_COLUMNS, map(list, zip(*rows, strict=True)) if rows else [[]] * 9, strict=True)
        )

    def _rows_of(
        self, name: str, told: Told, mine: np.ndarray, bins: np.ndarray, edges: np.ndarray
    ) -> Iterator[tuple]:
        """The rows of some documents, by model and by bin that is not empty."""
        bins = bins[mine]
        found = self.intervals(bins[..., 2], bins[..., 0], told.documents[mine])
        table = calibration.reliability(bins.sum(0))
        for side, bin in np.argwhere(table.size > 0):
            number = side, bin
            yield (
                *(name, SIDES[side], edges[bin], edges[bin + 1], int(table.size[number])),
                *(table.confidence[number], table.accuracy[number]),
                *(found.low[number], found.high[number]),
            )


_COLUMNS = (
    *("division", "model", "above", "up_to", "count", "confidence", "accuracy", "low", "high"),
)


class Calibration(_Calibrated):
    """Whether the likeliest next token comes as often as the models are sure of it.

    Args:
        seed: Of the bootstrap and the samples.
        tempered: About how many tokens to read at other temperatures.
        rows: About how many tokens to keep one by one.
    """

    wants = Wants(same_tokens=True)
    predicted = "next token"

    def __init__(self, seed: int = 0, tempered: int = TEMPERED, rows: int = ROWS) -> None:
        self.seed, self.tempered, self.kept = seed, tempered, rows
        self.shares = (1.0, 1.0)
        self.sums = PerDocument(SUMS)
        self.losses = PerDocument(LOSSES)
        numbers = dict.fromkeys(("document", "position"), np.int64)
        names = [f"{side}_{what}" for side in SIDES for what in ("confidence", "hit")]
        columns = {**numbers, **dict.fromkeys(names, np.float64)}
        # Twice as many as are drawn on average, of which more are never drawn.
        self.rows = Rows(2 * rows, ("document", "position"), columns)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """See how large the samples may be."""
        super().begin(pair, encoder)
        tokens = max(1, encoder.tokens)
        self.shares = (min(1.0, self.tempered / tokens), min(1.0, self.kept / tokens))

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        c, scored = frame.comparison, frame.scored
        gold = torch.stack([c.base_logprob, c.aligned_logprob]).double().numpy()
        top = torch.stack([c.base_top_logprob, c.aligned_top_logprob]).double().numpy()
        hit = (torch.stack([c.base_rank, c.aligned_rank]) == 0).double().numpy()
        confidence = np.exp(top)
        documents, place = np.unique(scored.document, return_inverse=True)
        means = np.stack([confidence, hit, (confidence - hit) ** 2, -gold], 1)
        flips = hit[0] * (1 - hit[1]), hit[1] * (1 - hit[0])
        columns = [np.ones_like(hit[0]), *means.reshape(-1, hit.shape[1]), *flips]
        kept = [np.bincount(place, z, len(documents)) for z in columns]
        bins = [_by_bin(place, len(documents), *two) for two in zip(confidence, hit, strict=True)]
        self.sums.update(documents, np.concatenate([np.stack(kept, 1), *bins], 1))
        mine = chosen(scored.document, scored.position, self.shares[1], self.seed)
        self.rows.update(
            document=scored.document[mine],
            position=scored.position[mine],
            base_confidence=confidence[0, mine],
            base_hit=hit[0, mine],
            aligned_confidence=confidence[1, mine],
            aligned_hit=hit[1, mine],
        )
        self._temper(frame)

    def _temper(self, frame: Frame) -> None:
        """Read a sample of the tokens again, at other temperatures."""
        scored = frame.scored
        mine = np.flatnonzero(chosen(scored.document, scored.position, self.shares[0], self.seed))
        if not len(mine):
            return
        losses: list[Tensor] = []
        for read, model, trace in zip(
            frame.pair.readouts,
            (frame.pair.base, frame.pair.aligned),
            (frame.base, frame.aligned),
            strict=True,
        ):
            if losses and frame.aligned is frame.base:
                losses.append(losses[0])
                continue
            parts = []
            for some in np.array_split(mine, -(-len(mine) // rows_of(model.vocabulary))):
                at = torch.from_numpy(some).to(trace.predictors.device)
                logits, target = read(trace.predictors[at]), trace.batch.targets[at]
                parts.append(calibration.tempered(logits, target.to(logits.device)))
            losses.append(torch.cat(parts).reshape(len(mine), -1))
        values = torch.cat([torch.ones(len(mine), 1, dtype=torch.float64), *losses], 1)
        self.losses.update(scored.document[mine], values)

    def _told(self) -> Told:
        documents, sums = self.sums.documents, self.sums.sums
        ends = np.cumsum([1, 2 * len(MEANS), 2])
        count, means, flips, bins = np.split(sums, ends, 1)
        table, none = self.rows.table(), np.zeros((len(documents), self.losses.columns))
        # A document may have no token in the sample.
        none[np.searchsorted(documents, self.losses.documents)] = self.losses.sums
        confidence, hit = (
            np.stack([table[f"{side}_{what}"] for side in SIDES], 1)
            for what in ("confidence", "hit")
        )
        return Told(
            documents,
            count[:, 0],
            means.reshape(-1, 2, len(MEANS)),
            flips,
            bins.reshape(-1, 2, BINS, 3),
            none[:, 1:].reshape(-1, 2, len(BETAS), 3),
            int(none[:, 0].sum()),
            (table["document"], confidence, hit),
        )

    def _notes(self, told: Told) -> Iterator[str]:
        count = int(told.total.sum())
        if told.sampled < count:
            yield f"T* is of {told.sampled} of {count} tokens, evenly chosen."
        if (kept := len(told.rows[0])) < count:
            yield f"Bins of equal mass and Platt's fit are of {kept} of {count} tokens."


class ChoiceCalibration(_Calibrated):
    """Whether the likeliest answer is right as often as the models are sure of it.

    Args:
        reading: A pack of choices, as `sweeps.choices` reads it.
        seed: Of the bootstrap.
    """

    wants = Wants(same_tokens=True)
    predicted = "choices"

    def __init__(self, reading: Choices, seed: int = 0) -> None:
        self.reading, self.seed = reading, seed
        self.logs = PerDocument(2 * reading.signs.shape[1])

    def fits(self, encoder: Encoder) -> bool:
        """Whether answers are right or wrong, and no way to behave."""
        return all(example.asks != "agree" for example in encoder.pack.examples)

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        documents = frame.scored.document
        if not len(documents):
            return
        logs = [
            self._read(frame, side, documents)
            for side in range(1 if frame.aligned is frame.base else 2)
        ]
        self.logs.update(documents, torch.cat([logs[0], logs[-1]], 1))

    def _read(self, frame: Frame, side: int, documents: np.ndarray) -> Tensor:
        """[item, choice] logarithms of the answers' shares."""
        read, trace = frame.pair.readouts[side], (frame.base, frame.aligned)[side]
        rows = rows_of((frame.pair.base, frame.pair.aligned)[side].vocabulary)
        starts = range(0, len(documents), rows)
        return torch.cat(
            [
                self.reading.within(
                    read(trace.predictors[n : n + rows]), documents[n : n + rows], side
                ).cpu()
                for n in starts
            ]
        )

    def _told(self) -> Told:
        documents = self.logs.documents
        logs = self.logs.sums.reshape(-1, 2, self.reading.signs.shape[1])
        signs = self.reading.signs.numpy()[documents]
        there, wanted = signs != 0, signs > 0
        confidence, hit, brier, losses = [], [], [], []
        for side in range(2):
            own = np.where(there, logs[:, side], -np.inf)
            best, rival = (
                np.where(z, own, -np.inf).max(1, initial=-np.inf) for z in (wanted, ~wanted)
            )
            confidence.append(np.exp(np.maximum(best, rival)))
            hit.append(np.heaviside(best - rival, 0.5))
            brier.append(calibration.multiclass_brier(np.exp(own), wanted))
            losses.append(calibration.tempered_choices(logs[:, side], signs))
        c, h, b, tempered = (np.stack(z, 1) for z in (confidence, hit, brier, losses))
        nll = tempered[:, :, BETAS.index(1.0), 0]
        each = np.arange(len(documents))
        bins = [_by_bin(each, len(each), c[:, n], h[:, n]) for n in range(2)]
        return Told(
            documents,
            np.ones(len(documents)),
            np.stack([c, h, b, nll], -1),
            np.clip(np.stack([h[:, 0] - h[:, 1], h[:, 1] - h[:, 0]], 1), 0, None),
            np.stack(bins, 1).reshape(-1, 2, BINS, 3),
            tempered,
            len(documents),
            (documents, c, h),
        )

    def _notes(self, told: Told) -> Iterator[str]:
        if len(told.documents) and (self.reading.signs.numpy() > 0).sum(1).max() > 1:
            yield (
                "Some items have several wanted answers: their loss may have more than one "
                "least temperature, of which T* is the hottest."
            )


def _by_bin(
    place: np.ndarray, documents: int, confidence: np.ndarray, hit: np.ndarray
) -> np.ndarray:
    """[document, bin × 3] count, confidence and hits of one model's predictions."""
    at = place * BINS + calibration.binned(confidence)
    return calibration.summed(confidence, hit, at, documents * BINS).reshape(-1, BINS * 3)


def _called(name: str, which: str) -> str:
    return f"{name}_change" if which == "change" else f"{which}_{name}"


def _at(found: Interval, place: Any) -> Estimate:
    return Estimate(*(float(numbers[place]) for numbers in found))


def _of_temperatures(fields: Mapping[str, Any]) -> Iterator[str]:
    for side in SIDES:
        found = fields[f"{side}_temperature"]
        if found.value == np.inf:
            yield f"No temperature repairs {side}: to be unsure of everything is better still."
        elif np.isnan(found.value) and fields[f"{side}_nll"].value >= 0:
            yield f"T* of {side} lies below {1 / BETAS[-1]:g}, or is not known."
        if np.isnan(fields[f"{side}_platt_scale"].value) and fields[f"{side}_nll"].value >= 0:
            yield f"Platt's fit of {side} is not finite."
