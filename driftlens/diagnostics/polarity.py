"""What each layer of both models believes, and whether it survives negation."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from hashlib import sha256
from typing import Any, ClassVar

import numpy as np

from driftlens.contrasts import MODELS, Contrasts
from driftlens.formulas.intervals import Interval, bootstrap
from driftlens.models import ModelPair
from driftlens.models.tokens import Encoder
from driftlens.packs import MARKER
from driftlens.readings import (
    LEARNT,
    TRUTH,
    Reading,
    agreement,
    baselines,
    folds_of,
    lexical,
    probed,
)
from driftlens.results import Estimate, Result, column, fact, figures, value

REACHED = 0.75
"""Share that labels must reach where the probe finds nothing, to say that it was led astray."""


@dataclass(frozen=True)
class PolarityResult(Result):
    """How well a consistent direction tells statements from their opposites, layer by layer."""

    kind = "polarity"
    title = "Polarity: statements against their opposites"
    over = "What each layer believes"
    how = """
Each pair of the pack is a statement A (true, safe) and its opposite ¬A; each of the two is \
answered with yes and with no, and the state at the last token of the text (the first one, in \
models that fill in masked tokens) is taken after every block of both models. A probe \
p = σ(w·h̃ + b) is found *without labels*, as the direction on which yes and no disagree most \
consistently: L = mean[(p_yes + p_no − 1)² + min(p_yes, p_no)²] (contrast-\
consistent search, Burns et al. 2023), best of several descents by L. States are centred for yes \
and for no apart, by means of the *training* pairs. Pairs are split whole into folds, with all \
of their family (pairs made of the same words); every number is of pairs that the probe has not \
seen, and of all folds together. It is turned round once, so that in most of its training pairs A \
scores higher.

s = ½ (p_yes + 1 − p_no). ESA = share of statements with s on the right side of ½; AUROC = share \
of couples of an A and a ¬A in order. Polar-Consistency PC = ½[(p_A1 − p_¬A0)² + (p_A0 − \
p_¬A1)²] · sgn(p_A1 − p_¬A1) · sgn(p_¬A0 − p_A0), between −1 and 1; Contradiction Index CI = \
p_A1 p_¬A1 + p_A0 p_¬A0, between 0 and 2; 0 is ideal of both ("Polarity-Aware Probing", arXiv \
2511.21737). PC is near 0 of a constant probe as well: read it beside ESA, CI and sd(p). loss is \
that of held-out pairs; a constant p = 0.4 has 0.2.

What else could reach that ESA: lexical, the negation word alone, whichever way round it serves \
best; words, a logistic regression on bags of words; random, directions drawn at \
random; shuffled, logistic regression on states with the labels of random pairs exchanged. \
logistic and means are probes *with* labels (what can be reached), crc the top component of \
yes − no. p_value: twins of random families exchanged in all layers at once, the probe oriented \
anew, the largest ESA over a model's layers compared (999 rounds, max-T).

verdict: none (p ≥ .05), inverted (mean PC below 0), strong (ESA from .75), or weak. Intervals: \
95 % bootstrap over pairs, those of a family drawn together.
""".strip()

    base_esa: Estimate = value("of statements")
    """ESA of base at its peak, the block at which it is highest."""
    aligned_esa: Estimate = value("of statements")
    """ESA of aligned at its own peak."""
    change: Estimate = value("of statements")
    """ESA of aligned minus that of base, both at base's peak."""
    pc_change: Estimate = value("")
    """Mean PC of aligned minus that of base, both at base's peak."""
    ci_change: Estimate = value("")
    """Mean CI of aligned minus that of base, both at base's peak."""
    words_esa: Estimate = value("of statements")
    """ESA of a logistic regression on bags of words."""

    model: np.ndarray = column()
    """[row] base or aligned."""
    layer: np.ndarray = column()
    """[row] number of the block that the states leave."""
    esa: np.ndarray = column("of statements")
    """[row] share of held-out statements named rightly; chance is ½."""
    auroc: np.ndarray = column("of couples")
    """[row] share of couples in order; chance is ½."""
    pc: np.ndarray = column()
    """[row] mean Polar-Consistency."""
    pc_median_abs: np.ndarray = column()
    """[row] median of its size."""
    ci: np.ndarray = column()
    """[row] mean Contradiction Index."""
    loss: np.ndarray = column()
    """[row] the search's loss on held-out pairs."""
    sd: np.ndarray = column()
    """[row] standard deviation of p on held-out pairs."""
    lexical_esa: np.ndarray = column("of statements")
    """[row] ESA of the negation word alone."""
    random_esa: np.ndarray = column("of statements")
    """[row] mean ESA of random directions."""
    p_value: np.ndarray = column()
    """[row] of ESA, corrected over the model's layers."""
    low: np.ndarray = column("of statements")
    """[row] lower end of ESA's 95 % interval."""
    high: np.ndarray = column("of statements")
    """[row] upper end of it."""
    pc_low: np.ndarray = column()
    """[row] lower end of the interval of mean PC."""
    pc_high: np.ndarray = column()
    """[row] upper end of it."""
    ci_low: np.ndarray = column()
    """[row] lower end of the interval of mean CI."""
    ci_high: np.ndarray = column()
    """[row] upper end of it."""
    shuffled_esa: np.ndarray = column("of statements")
    """[row] mean ESA of logistic regression with labels that mean nothing."""
    logistic_esa: np.ndarray = column("of statements")
    """[row] ESA of logistic regression with the labels."""
    means_esa: np.ndarray = column("of statements")
    """[row] ESA of the difference of means, with the labels."""
    crc_esa: np.ndarray = column("of statements")
    """[row] ESA of the top component of yes − no."""
    loss_spread: np.ndarray = column()
    """[row] standard deviation over descents of where they ended, mean over folds."""
    degenerate: np.ndarray = column("of folds")
    """[row] share of folds whose probe says the same of every state."""
    verdict: np.ndarray = column()
    """[row] strong, weak, none or inverted."""

    pairs: int = fact("pairs")
    """Pairs of opposites."""
    base_peak: int = fact()
    """Block at which base's ESA is highest; −1 if there is none."""
    aligned_peak: int = fact()
    """The same of aligned."""
    form: str = fact()
    """How statements were answered."""

    near_zero: ClassVar[tuple[str, ...]] = ("change", "pc_change", "ci_change")
    # `change` is at the peak of each pair's own base, which is another block in another stage.
    levels: ClassVar[Mapping[str, str]] = {"esa": ""}

    def at(self, model: str, layer: int) -> dict[str, Any]:
        """The row of a model's block, by column."""
        (row,) = np.flatnonzero((self.model == model) & (self.layer == layer))
        return {name: cells[row] for name, cells in self.columns().items()}

    def summary(self) -> str:
        """Both models at their peaks, and what words alone reach."""
        if self.base_peak < 0:
            return "Too few pairs were seen to say anything."
        # Where all states are the same there is no direction to speak of.
        chance = self.random_esa[np.isfinite(self.random_esa)]
        return (
            f"After {self._said('base', self.base_peak, self.base_esa)}; "
            f"after {self._said('aligned', self.aligned_peak, self.aligned_esa)}; words alone "
            f"reach {self.words_esa.value:.0%}, and random directions about "
            f"{chance.mean():.0%}."
        )

    def headline(self) -> str:
        """What alignment did to the polarity that base holds, if no word explains it."""
        if self.base_peak < 0:
            return ""
        row = self.at("base", self.base_peak)
        rival = max(row["lexical_esa"], self.words_esa.value)
        if row["verdict"] not in ("strong", "weak") or rival >= row["low"]:
            return ""
        after = self.base_esa.value + self.change.value
        return (
            f"polarity read off block {self.base_peak} in {self.base_esa.value:.0%} of statements "
            f"before and {after:.0%} after"
        )

    def _said(self, model: str, peak: int, esa: Estimate) -> str:
        row = self.at(model, peak)
        return (
            f"block {peak} {model} names {_percent(esa)} % of unseen statements rightly "
            f"(PC {row['pc']:.2f}, CI {row['ci']:.2f}: {WORDS[row['verdict']]})"
        )

    def figure(self) -> "figures.Figure | None":
        """ESA, PC, CI and spread of both models by layer, with their intervals."""
        if not len(self.layer) or self.base_peak < 0:
            return None
        figure, panels = figures.panels(4)
        mine = {model: self.model == model for model in MODELS}
        layers = self.layer[mine["base"]]
        for panel, (name, low, high, ylabel) in zip(
            panels,
            (
                ("esa", self.low, self.high, "ESA [of statements]"),
                ("pc", self.pc_low, self.pc_high, "mean PC"),
                ("ci", self.ci_low, self.ci_high, "mean CI"),
                ("sd", self.sd, self.sd, "standard deviation of p"),
            ),
            strict=True,
        ):
            numbers = getattr(self, name)
            lines = {model: numbers[rows] for model, rows in mine.items()}
            if name == "esa":
                lines["with labels, base"] = self.logistic_esa[mine["base"]]
                lines["words alone"] = np.full(len(layers), self.words_esa.value)
            figures.curves(
                layers,
                lines,
                bands={model: (low[rows], high[rows]) for model, rows in mine.items()},
                xlabel="block",
                ylabel=ylabel,
                on=panel,
            )
        return figure


WORDS = {
    "strong": "strong polarity",
    "weak": "weak polarity",
    "none": "none that chance would not give",
    "inverted": "inverted polarity",
}


@dataclass(frozen=True)
class PolarityTransferResult(Result):
    """Whether the direction of one model reads the other one's states."""

    kind = "polarity_transfer"
    title = "Polarity carried from one model to the other"
    how = """
The probes of *Polarity*, each applied, as it is and with its own centring, to the other model's \
states of the pairs that it has not seen. base_on_aligned is the ESA of base's probe on aligned's \
states; base_gap = ESA of aligned's own probe there − base_on_aligned is what it loses, and \
aligned_gap the same the other way round. cosine is that of the two models' directions, both \
turned by their training pairs, mean over folds. base_own and aligned_own are cosines of one \
model's directions from different folds: what the cosine could reach. chance is the mean size of \
the cosine of two random directions, √(2 / πd). Intervals: 95 % bootstrap over pairs.

The probes are those of Burns et al. (2023); the comparison of two models is ours.
""".strip()

    cosine_at_peak: Estimate = value("cosine")
    """Cosine of the two directions at base's peak."""
    base_on_aligned_at_peak: Estimate = value("of statements")
    """ESA on aligned of base's probe, at base's peak."""

    layer: np.ndarray = column()
    """[row] number of the block."""
    base: np.ndarray = column("of statements")
    """[row] ESA of base's probe on base."""
    base_on_aligned: np.ndarray = column("of statements")
    """[row] ESA of base's probe on aligned."""
    aligned: np.ndarray = column("of statements")
    """[row] ESA of aligned's probe on aligned."""
    aligned_on_base: np.ndarray = column("of statements")
    """[row] ESA of aligned's probe on base."""
    base_gap: np.ndarray = column("of statements")
    """[row] aligned − base_on_aligned."""
    base_gap_low: np.ndarray = column("of statements")
    """[row] lower end of its interval."""
    base_gap_high: np.ndarray = column("of statements")
    """[row] upper end of it."""
    aligned_gap: np.ndarray = column("of statements")
    """[row] base − aligned_on_base."""
    aligned_gap_low: np.ndarray = column("of statements")
    """[row] lower end of its interval."""
    aligned_gap_high: np.ndarray = column("of statements")
    """[row] upper end of it."""
    cosine: np.ndarray = column("cosine")
    """[row] between the two models' directions."""
    base_own: np.ndarray = column("cosine")
    """[row] between base's directions from different folds."""
    aligned_own: np.ndarray = column("cosine")
    """[row] the same of aligned."""
    chance: np.ndarray = column("cosine")
    """[row] mean size of a random one."""

    peak: int = fact()
    """The block at which base's ESA is highest; −1 if there is none."""

    near_zero: ClassVar[tuple[str, ...]] = ("base_gap", "aligned_gap")

    def summary(self) -> str:
        """What base's probe reads in aligned, and the angle."""
        if self.peak < 0:
            return "Too few pairs were seen to say anything."
        (row,) = np.flatnonzero(self.layer == self.peak)
        return (
            f"After block {self.peak} base's probe names "
            f"{_percent(self.base_on_aligned_at_peak)} % of statements rightly in "
            f"aligned, whose own names {self.aligned[row]:.1%}; their directions "
            f"have a cosine of {self.cosine[row]:.2f} (folds of base {self.base_own[row]:.2f}, "
            f"chance {self.chance[row]:.2f})."
        )

    def figure(self) -> "figures.Figure | None":
        """ESA at home and abroad, and the cosines."""
        if not len(self.layer) or self.peak < 0:
            return None
        figure, panels = figures.panels(2)
        figures.curves(
            self.layer,
            {
                "base on base": self.base,
                "base on aligned": self.base_on_aligned,
                "aligned on aligned": self.aligned,
                "aligned on base": self.aligned_on_base,
            },
            xlabel="block",
            ylabel="ESA [of statements]",
            on=panels[0],
        )
        figures.curves(
            self.layer,
            {
                "base with aligned": self.cosine,
                "base's folds": self.base_own,
                "aligned's folds": self.aligned_own,
                "chance": self.chance,
            },
            xlabel="block",
            ylabel="cosine of directions",
            on=panels[1],
        )
        return figure


@dataclass(frozen=True)
class PolarityControlsResult(Result):
    """Polarity by what makes a statement the opposite, and asked otherwise."""

    kind = "polarity_controls"
    title = "Polarity under control"
    how = """
*kind*: the probes of *Polarity*, on the pairs of one kind of opposite alone (concurrent: one \
word changed; antagonistic: the contrary claim; not: an explicit negation). *form*: probes found \
anew on statements that are answered in another form. *marker*: probes found anew where each \
explicit negation is replaced by a word without meaning, in those pairs that have one: what they \
read is the word's being there, and not what it says. main_esa is that of the main probes on the \
same pairs; agreement is the share of statements that both name alike. Intervals: 95 % bootstrap \
over pairs.

    agreement = share of statements with sgn(s − ½) = sgn(s_main − ½)

s is that of *Polarity: statements against their opposites*. The controls are ours.
""".strip()

    marker_esa: Estimate = value("of statements")
    """ESA of base with the marker, where base's main probe is best on the same pairs; NaN if no \
statement has an explicit negation."""
    not_esa: Estimate = value("of statements")
    """ESA of base's main probe there, on the same pairs."""

    set: np.ndarray = column()
    """[row] `kind: …`, `form: …` or `marker`."""
    model: np.ndarray = column()
    """[row] base or aligned."""
    layer: np.ndarray = column()
    """[row] number of the block."""
    pairs: np.ndarray = column("pairs")
    """[row] pairs in the set."""
    esa: np.ndarray = column("of statements")
    """[row] share of held-out statements named rightly."""
    low: np.ndarray = column("of statements")
    """[row] lower end of its interval."""
    high: np.ndarray = column("of statements")
    """[row] upper end of it."""
    auroc: np.ndarray = column("of couples")
    """[row] share of couples in order."""
    pc: np.ndarray = column()
    """[row] mean Polar-Consistency."""
    ci: np.ndarray = column()
    """[row] mean Contradiction Index."""
    main_esa: np.ndarray = column("of statements")
    """[row] of the main probes on the same pairs."""
    agreement: np.ndarray = column("of statements")
    """[row] statements that these probes and the main ones name alike."""

    def summary(self) -> str:
        """What the marker does to it, and how many sets there are."""
        sets = len(set(self.set.tolist()))
        said = f"Base's polarity in {sets} sets of pairs and forms"
        if np.isnan(self.marker_esa.value):
            return f"{said}; no statement has an explicit negation to replace."
        return (
            f"{said}; with negations {_percent(self.not_esa)} % of statements are named rightly, "
            f"with a meaningless word in their place {_percent(self.marker_esa)} %."
        )

    def figure(self) -> "figures.Figure | None":
        """ESA of both models by layer, a line for each set."""
        if not len(self.set):
            return None
        figure, panels = figures.panels(2)
        for panel, model in zip(panels, MODELS, strict=True):
            mine = self.model == model
            figures.curves(
                np.unique(self.layer[mine]),
                {
                    name: self.esa[mine & (self.set == name)]
                    for name in dict.fromkeys(self.set.tolist())
                },
                xlabel="block",
                ylabel=f"ESA of {model} [of statements]",
                on=panel,
            )
        # One scale, for the panels are read against each other.
        low, high = (of(self.esa) for of in (np.nanmin, np.nanmax))
        for panel in panels:
            panel.set_ylim(low - 0.02, high + 0.02)
        return figure


@dataclass(frozen=True)
class PolarityPublishedResult(Result):
    """What the published code would say of the same states."""

    kind = "polarity_published"
    title = "Polarity as published, for comparison only"
    how = """
mode = published: what the original code of polarity-aware CCS makes of these states, for \
comparison with its figures and for nothing else. States are brought to length 1 and their median \
is taken off; statements, not pairs, are split 80 : 20 (seed 71), so that most pairs that are \
judged have a twin among those learnt from; the judged pairs are centred in each quadrant \
(statement × answer) by that quadrant's own mean, which takes away the difference that polarity \
is and drives CI to .5; ESA is the larger of accuracy and 1 − accuracy, at least .5 whatever is \
read; nothing is oriented.

Source: "Polarity-Aware Probing", arXiv 2511.21737, as its published code computes it. PC = \
½[(p_A1 − p_¬A0)² + (p_A0 − p_¬A1)²] · sgn(p_A1 − p_¬A1) · sgn(p_¬A0 − p_A0), CI = p_A1 p_¬A1 + \
p_A0 p_¬A0.
""".strip()

    model: np.ndarray = column()
    """[row] base or aligned."""
    layer: np.ndarray = column()
    """[row] number of the block."""
    esa: np.ndarray = column("of statements")
    """[row] the larger of accuracy and 1 − accuracy."""
    auroc: np.ndarray = column("of couples")
    """[row] the larger of it and 1 − it."""
    pc: np.ndarray = column()
    """[row] mean Polar-Consistency."""
    pc_median_abs: np.ndarray = column()
    """[row] median of its size."""
    ci: np.ndarray = column()
    """[row] mean Contradiction Index."""
    loss: np.ndarray = column()
    """[row] the search's loss on the pairs that are judged."""
    sd: np.ndarray = column()
    """[row] standard deviation of p."""

    judged: int = fact("pairs")
    """Pairs that are judged."""
    leaked: int = fact("pairs")
    """Of these, pairs with a twin among what was learnt from."""

    def summary(self) -> str:
        """The best layers in that way, and how much leaks."""
        best = {model: self.esa[self.model == model].max() for model in MODELS}
        return (
            f"The published way would report up to {best['base']:.1%} for base and "
            f"{best['aligned']:.1%} for aligned; {self.leaked} of the {self.judged} pairs that it "
            "judges have a twin among those it learnt from."
        )


class Polarity(Contrasts[PolarityResult]):
    """What each layer of both models believes, and whether it survives negation.

    Args:
        layers: Blocks to look at; None is all.
        seed: Of folds, descents, exchanges and bootstraps.
        folds: How many parts of the pairs are held out in turn.
        restarts: Descents of a probe.
        steps: Of each.
        published: Whether to show beside it what the published code would say.
    """

    also = (PolarityTransferResult, PolarityControlsResult, PolarityPublishedResult)

    def __init__(
        self,
        layers: Collection[int] | None = None,
        seed: int = 0,
        folds: int = 5,
        restarts: int = 10,
        steps: int = 500,
        published: bool = False,
    ) -> None:
        super().__init__(layers)
        self.seed, self.folds, self.restarts, self.steps = seed, folds, restarts, steps
        self.published = published
        self._made: tuple[bytes, _Study] | None = None

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make room for the blocks."""
        super().begin(pair, encoder)
        self._made = None

    def compute(self) -> PolarityResult:
        """The result of all that was seen so far."""
        return self._study().polarity()

    def beside(self) -> Sequence[Result]:
        """How it carries over to the other model, and what the controls say."""
        study = self._study()
        found: list[Result] = [study.transfer()]
        # Where there is one kind, one form and no negation, there is nothing to control.
        if (controls := study.controls()).rows():
            found.append(controls)
        if self.published and study.folds is not None:
            found.append(study.published())
        return found

    def _study(self) -> "_Study":
        """What was learnt of the documents seen so far; found once for all results."""
        # Read where they lie: states may be most of what memory holds.
        seen = sha256(self.states.documents.data)
        seen.update(self.states.rows.data)
        key = seen.digest()
        if self._made is None or self._made[0] != key:
            self._made = key, _Study(self)
        return self._made[1]

    @property
    def search(self) -> dict[str, Any]:
        """How probes are searched for."""
        return {
            "n_restarts": self.restarts,
            "steps": self.steps,
            "random_state": self.seed,
            "device": str(getattr(self.pair.base, "device", "cpu")),
        }


class _Study:
    """Everything that is learnt of the states that a metric has kept."""

    def __init__(self, metric: Polarity) -> None:
        self.metric = metric
        self.pack = metric.encoder.pack
        self.form = metric.forms[0]
        self.layers = metric.layers
        self.of = metric.quadruples(self.form)
        self.folds = folds_of(self.of.families, metric.folds, metric.seed)

    @cached_property
    def main(self) -> Reading:
        """The probes of the pack's first form."""
        assert self.folds is not None, "nothing is read of too few pairs"
        return probed(self.of, self.folds, self.metric.search)

    def polarity(self) -> PolarityResult:
        """The main table."""
        from driftlens.estimators import Polarity as Read
        from driftlens.estimators import exchange_test

        names = [model for model in MODELS for _ in self.layers]
        rows = {"model": names, "layer": [*self.layers] * len(MODELS)}
        if self.folds is None:
            return self._nothing(PolarityResult, rows)
        main, seed = self.main, self.metric.seed
        read = [
            Read(p, named)
            for p, named in zip(
                main.p.reshape(-1, *main.p.shape[2:]),
                main.named.reshape(-1, *main.named.shape[2:]),
                strict=True,
            )
        ]
        tested = [
            exchange_test(
                main.scores[:, model], main.folds, seed=seed, families=self.of.families
            ).p_value
            for model in range(len(MODELS))
        ]
        p_value = np.concatenate(tested)
        esa, pc, ci = (
            self._intervals(np.stack([getattr(one, name) for one in read], 1))
            for name in ("right", "pc", "ci")
        )
        marks, words = lexical(self._said(), main.folds)
        peaks = [self._peak(esa.estimate, model) for model in range(len(MODELS))]
        at = peaks[0], peaks[0] + len(self.layers)
        changes = {
            name: self._difference(*(getattr(read[row], of) for row in at[::-1]))
            for name, of in (("change", "right"), ("pc_change", "pc"), ("ci_change", "ci"))
        }
        sober = baselines(self.of, main.folds, seed)
        found = PolarityResult.of(
            base_esa=_cell(esa, peaks[0]),
            aligned_esa=_cell(esa, peaks[1]),
            **changes,
            words_esa=self._estimate(words),
            **rows,
            esa=esa.estimate,
            low=esa.low,
            high=esa.high,
            pc=pc.estimate,
            pc_low=pc.low,
            pc_high=pc.high,
            ci=ci.estimate,
            ci_low=ci.low,
            ci_high=ci.high,
            auroc=[one.auroc for one in read],
            pc_median_abs=[one.pc_median_abs for one in read],
            loss=[one.loss for one in read],
            sd=[one.sd for one in read],
            lexical_esa=np.full(len(read), marks.mean()),
            p_value=p_value,
            verdict=[one.verdict(p) for one, p in zip(read, p_value.tolist(), strict=True)],
            loss_spread=main.spread.ravel(),
            degenerate=main.degenerate.ravel(),
            **{f"{name}_esa": shares.ravel() for name, shares in sober.items()},
            pairs=len(self.of.pairs),
            base_peak=self.layers[peaks[0]],
            aligned_peak=self.layers[peaks[1] - len(self.layers)],
            form=self.form,
        )
        every = len(set(self.pack.groups))
        if lost := every - len(self.of.pairs):
            said = f"{lost} of {every} pairs were not seen whole, and are left out."
            return replace(found, notes=(said, *_notes(found)))
        return replace(found, notes=_notes(found))

    def transfer(self) -> PolarityTransferResult:
        """Probes on the other model's states."""
        from driftlens.estimators.scores import right

        rows = {"layer": self.layers}
        if self.folds is None:
            return self._nothing(PolarityTransferResult, rows)
        main = self.main
        home, abroad = (right(s, TRUTH).mean(-1) for s in (main.named, main.abroad))
        # Of each model's states, its own probe's share beside the other one's.
        gaps = [self._intervals((home[m] - abroad[1 - m]).T) for m in (1, 0)]
        cosine = (main.directions[:, 0] * main.directions[:, 1]).sum(-1).mean(0)
        own = [agreement(main.directions[:, model]) for model in range(len(MODELS))]
        peak = self._peak(home[0].mean(-1), 0)
        width = main.directions.shape[-1]
        return PolarityTransferResult.of(
            cosine_at_peak=float(cosine[peak]),
            base_on_aligned_at_peak=self._estimate(abroad[0, peak]),
            **rows,
            base=home[0].mean(-1),
            base_on_aligned=abroad[0].mean(-1),
            aligned=home[1].mean(-1),
            aligned_on_base=abroad[1].mean(-1),
            base_gap=gaps[0].estimate,
            base_gap_low=gaps[0].low,
            base_gap_high=gaps[0].high,
            aligned_gap=gaps[1].estimate,
            aligned_gap_low=gaps[1].low,
            aligned_gap_high=gaps[1].high,
            cosine=cosine,
            base_own=own[0],
            aligned_own=own[1],
            chance=np.full(len(self.layers), np.sqrt(2 / (np.pi * width))),
            peak=self.layers[peak],
        )

    def controls(self) -> PolarityControlsResult:
        """By kind of opposite, by form, and with a marker for each negation."""
        rows: dict[str, list[Any]] = {name: [] for name in _CONTROLS}
        marker, plain = Estimate(np.nan), Estimate(np.nan)
        notes = []
        if self.folds is not None:
            every = np.arange(len(self.of.pairs))
            kinds = np.array([self._topic(number) for number in self.of.documents[:, 0, 0]], object)
            for kind in sorted(set(kinds.tolist())) if len(set(kinds.tolist())) > 1 else ():
                mine = every[kinds == kind]
                self._control(rows, f"kind: {kind}", self.main, mine, mine)
            for form in self.metric.forms[1:]:
                of = self.metric.quadruples(form)
                places = np.searchsorted(self.of.pairs, of.pairs)
                folds = self.folds[places]
                _, folds = np.unique(folds, return_inverse=True)
                if len(of.pairs) - np.bincount(folds).max(initial=0) < LEARNT or folds.max() < 1:
                    notes.append(f"{len(of.pairs)} pairs in form {form} are too few to learn from.")
                    continue
                name = form if form == MARKER else f"form: {form}"
                reading = probed(of, folds, self.metric.search)
                self._control(rows, name, reading, np.arange(len(places)), places)
                if form == MARKER:
                    marker, plain = self._beside_marker(reading, places)
        return PolarityControlsResult.of(
            marker_esa=marker, not_esa=plain, notes=tuple(notes), **rows
        )

    def published(self) -> PolarityPublishedResult:
        """What the published code would say."""
        from driftlens.estimators import published, published_split

        models, layers, pairs = self.of.states.shape[:3]
        flat = self.of.states.reshape(models * layers, *self.of.states.shape[2:])
        read = published(flat, **self.metric.search)
        learnt, judged = published_split(pairs)
        return PolarityPublishedResult.of(
            model=[model for model in MODELS for _ in self.layers],
            layer=[*self.layers] * len(MODELS),
            pc=[one.pc.mean() for one in read],
            ci=[one.ci.mean() for one in read],
            **{
                name: [getattr(one, name) for one in read]
                for name in ("esa", "auroc", "pc_median_abs", "loss", "sd")
            },
            judged=len(judged),
            leaked=int(np.isin(judged, learnt).sum()),
        )

    def _control(
        self,
        rows: dict[str, list[Any]],
        name: str,
        reading: Reading,
        mine: np.ndarray,
        places: np.ndarray,
    ) -> None:
        """Rows of some pairs in a reading, and of the same pairs (at `places`) in the main one."""
        from driftlens.estimators import Polarity as Read

        for model, of in enumerate(MODELS):
            for number, layer in enumerate(self.layers):
                cell = model, number
                read = Read(reading.p[cell][mine], reading.named[cell][mine])
                main = Read(self.main.p[cell][places], self.main.named[cell][places])
                alike = (read.named > 0.5) == (main.named > 0.5)
                share = self._intervals(read.right[:, None], reading.of.families[mine])
                row = (
                    *(name, of, layer, len(mine), read.esa, share.low[0], share.high[0]),
                    *(read.auroc, read.pc.mean(), read.ci.mean(), main.esa, alike.mean()),
                )
                for key, cell_of in zip(_CONTROLS, row, strict=True):
                    rows[key].append(cell_of)

    def _beside_marker(self, reading: Reading, places: np.ndarray) -> tuple[Estimate, Estimate]:
        """Base's ESA with the marker and with the negations, where the latter is best."""
        from driftlens.estimators.scores import right

        with_marker = right(reading.named[0], TRUTH).mean(-1)
        plain = right(self.main.named[0][:, places], TRUTH).mean(-1)
        best = int(plain.mean(-1).argmax())
        families = reading.of.families
        marker, word = (self._estimate(of[best], families) for of in (with_marker, plain))
        return marker, word

    def _said(self) -> list[str]:
        """[pair · statement] what is asked with yes."""
        return [self.pack.examples[number].text for number in self.of.documents[:, :, 1].ravel()]

    def _topic(self, number: int) -> str:
        return self.pack.examples[number].topic

    def _peak(self, esa: np.ndarray, model: int) -> int:
        """The row at which a model's ESA is highest."""
        first = model * len(self.layers)
        return first + int(np.argmax(esa[first : first + len(self.layers)]))

    def _intervals(self, parts: np.ndarray, families: np.ndarray | None = None) -> Interval:
        """Means over pairs of [pair, *], with bootstrap intervals over their families."""
        return bootstrap(
            parts,
            np.ones(len(parts)),
            seed=self.metric.seed,
            level=self.metric.level,
            clusters=self.of.families if families is None else families,
        )

    def _estimate(self, parts: np.ndarray, families: np.ndarray | None = None) -> Estimate:
        return _cell(self._intervals(parts[:, None], families), 0)

    def _difference(self, left: np.ndarray, right: np.ndarray) -> Estimate:
        return self._estimate(left - right)

    def _nothing(self, kind: Any, rows: dict[str, Any]) -> Any:
        """A result of too few pairs: no number is told from them."""
        absent = np.full(len(next(iter(rows.values()))), np.nan)
        given: dict[str, Any] = {}
        for field in fields(kind):
            role = field.metadata.get("role")
            if role == "value":
                given[field.name] = np.nan
            elif role == "column":
                given[field.name] = rows.get(field.name, absent)
            elif role == "fact":
                given[field.name] = {"pairs": len(self.of.pairs), "form": self.form}.get(
                    field.name, -1
                )
        if "verdict" in given:
            given["verdict"] = ["" for _ in absent]
        note = (
            f"{len(self.of.pairs)} whole pairs were seen: {LEARNT} to learn from and one to judge "
            "by are needed."
        )
        return kind.of(**given, notes=(note,))


_CONTROLS = (
    *("set", "model", "layer", "pairs", "esa", "low", "high"),
    *("auroc", "pc", "ci", "main_esa", "agreement"),
)


def _notes(found: PolarityResult) -> tuple[str, ...]:
    """What a reader must know of the numbers."""
    notes = []
    for model, peak in (("base", found.base_peak), ("aligned", found.aligned_peak)):
        row = found.at(model, peak)
        rivals = {
            "the negation word alone": row["lexical_esa"],
            "a bag of words": found.words_esa.value,
        }
        for name, share in rivals.items():
            if row["verdict"] != "none" and share >= row["low"]:
                notes.append(
                    f"At the peak of {model} ({row['esa']:.0%}), {name} does as well "
                    f"({share:.0%}): the probe may read words."
                )
        mine = found.model == model
        blind = mine & (found.verdict == "none") & (found.logistic_esa >= REACHED)
        if blind.any():
            layers = ", ".join(map(str, found.layer[blind]))
            notes.append(
                f"In {model} labels find polarity after block {layers} (up to "
                f"{found.logistic_esa[blind].max():.0%}) where the search without labels does not: "
                "what it found there may be another feature, more prominent than polarity."
            )
    if (found.degenerate > 0).any():
        constant = sorted(set(found.layer[found.degenerate > 0].tolist()))
        notes.append(
            "Some probes say the same of every state, after block "
            f"{', '.join(map(str, constant))}: their best was a constant."
        )
    notes.append("The peak is the best of all blocks, and flattered by the choice.")
    return tuple(notes)


def _percent(share: Estimate) -> Estimate:
    """The share in percent, to be read."""
    return Estimate(*(100 * bound for bound in share))


def _cell(interval: Interval, row: int) -> Estimate:
    return Estimate(*(float(bound[row]) for bound in interval))
