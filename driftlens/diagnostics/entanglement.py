"""What a preference loss would do to each pair of answers, before anyone trains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
import torch

from driftlens.errors import DriftlensError
from driftlens.formulas import entanglement
from driftlens.formulas.intervals import wilson
from driftlens.formulas.preferences import DPO, LOSSES, Answers, Loss, called, pulls
from driftlens.formulas.streams import PerDocument, Rows
from driftlens.metric import Metric
from driftlens.models import Frame, ModelPair, Wants
from driftlens.models.pieces import Piece
from driftlens.models.tokens import Encoder
from driftlens.results import Estimate, Result, column, fact, figures, value

R = TypeVar("R", bound=Result)

USUAL = DPO()
"""The loss that is meant where none is named."""

WANTS = Wants(causal=True, same_tokens=True, graph=True)

GRADIENTS = """
With g_w and g_l the gradients, by the weights that are to be trained, of the log-probabilities \
log π(y_w|x) and log π(y_l|x) of the chosen and the rejected answer (sums over the answers' \
tokens), and d_w = −∂ℓ/∂log π_w, d_l = ∂ℓ/∂log π_l the pulls of the loss ℓ, one small step of \
plain gradient descent on the pair changes

    Δlog π_w = η (d_w ‖g_w‖² − d_l ⟨g_w, g_l⟩) and Δlog π_l = η (d_w ⟨g_w, g_l⟩ − d_l ‖g_l‖²),

up to terms of η². When ⟨g_w, g_l⟩ is large beside the norms, both move together.
""".strip()

SOURCE = """
Source: Yuan et al. (2025), "A Common Pitfall of Margin-based Language Model Alignment: Gradient \
Entanglement". The norm of either gradient counts; the published script compares with one of \
them twice.
""".strip()


# What is kept of every pair

COLUMNS = (
    *("ww", "wl", "ll", "chosen", "rejected", "chosen_length", "rejected_length"),
    *("reference_chosen", "reference_rejected", "ches"),
)


class OfPairs(Metric[R]):
    """What is seen of pairs of answers, each by itself.

    Args:
        loss: What would be trained with: one of `driftlens.formulas.preferences.LOSSES`, or any
            function of `Answers`.
        trained: Patterns that name the weights to be trained.
        seed: Of the bootstrap.
        level: Share of bootstrap draws that an interval holds.
    """

    wants = WANTS
    gradients: ClassVar[bool] = True
    """Whether it looks at gradients."""

    kinds = ("preference",)

    def __init__(
        self,
        loss: Loss = USUAL,
        trained: Sequence[str] = ("*",),
        seed: int = 0,
        level: float = 0.95,
    ) -> None:
        self.loss, self.trained, self.seed, self.level = loss, tuple(trained), seed, level
        self.pairs = Rows(1, ("pair",), {"pair": int})

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make room for the pairs."""
        super().begin(pair, encoder)
        clusters = np.asarray(encoder.pack.clusters)
        groups = [example.group for example in encoder.pack.examples]
        known = zip(groups, clusters, strict=True)
        self.numbers = np.array([g if isinstance(g, int) else c for g, c in known], np.int64)
        numbers = dict.fromkeys(("pair", "document"), np.int64)
        room = max(1, len(encoder.plan) // 2)
        self.pairs = Rows(room, ("document",), numbers | dict.fromkeys(COLUMNS, np.float64))

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        self.pairs.update(**self._numbers(frame), **self._seen(frame))

    def _numbers(self, frame: Frame) -> dict[str, np.ndarray]:
        """[pair] which record each is, and the document that its chosen answer is."""
        documents = np.array([window.example for window in frame.windows[::2]], np.int64)
        return {"pair": self.numbers[documents], "document": documents}

    def _seen(self, frame: Frame) -> dict[str, np.ndarray]:
        """[pair] of each of `COLUMNS`."""
        found = {name: z.numpy() for name, z in frame.answers._asdict().items()}
        found["ches"] = _ches(frame)
        none = np.full(len(found["chosen"]), np.nan)
        if not self.gradients:
            return found | {"ww": none, "wl": none, "ll": none}
        inner = frame.products(self.trained).total.numpy()
        ww, wl, ll = inner[:, 0, 0], inner[:, 0, 1], inner[:, 1, 1]
        self._check(frame, ww, ll)
        return found | {"ww": ww, "wl": wl, "ll": ll}

    def _check(self, frame: Frame, ww: np.ndarray, ll: np.ndarray) -> None:
        """Stop where a gradient is nothing, or no number."""
        for side, norms in ((0, ww), (1, ll)):
            wrong = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
            if len(wrong):
                number = self._numbers(frame)["pair"][wrong[0]]
                name = ("chosen", "rejected")[side]
                raise DriftlensError(
                    "gradients that are finite and not 0",
                    found=f"one of squared norm {norms[wrong[0]]:g} for the {name} answer of "
                    f"pair {number}",
                    remedy="Leave the pair out, load in float32, or train other weights.",
                )

    def answers(self) -> Answers:
        """The pairs as losses see them."""
        table = self.pairs.table()
        return Answers(**{name: torch.as_tensor(table[name]) for name in Answers._fields})

    def mean(self, values: np.ndarray) -> Estimate:
        """Mean over pairs, with its interval; pairs without a number are left out."""
        table = self.pairs.table()
        known = ~np.isnan(values)
        if not known.any():
            return Estimate(np.nan)
        ones = np.ones(int(known.sum()))
        found = self.intervals(values[known], ones, table["document"][known])
        return Estimate(*map(float, found))

    def share(self, holds: np.ndarray) -> Estimate:
        """Part of the pairs of which something holds, with Wilson's interval."""
        return Estimate(*map(float, wilson(int(holds.sum()), len(holds), self.level)))


def _ches(frame: Frame) -> np.ndarray:
    """[pair] ln-CHES."""
    sums, lengths = frame.states, (frame.answers.chosen_length, frame.answers.rejected_length)
    return entanglement.ln_ches(sums[::2], sums[1::2], *lengths).numpy()


# The pairs themselves


@dataclass(frozen=True)
class EntanglementResult(Result):
    """How the gradients of chosen and rejected answers are entangled, pair by pair."""

    kind = "entanglement"
    title = "Gradient entanglement"
    over = "What training would do, before anyone trains"
    how = f"""
{GRADIENTS}

For pulls above 0 there are three cases: chosen up and rejected down; both down, where \
⟨g_w, g_l⟩ > (d_w/d_l) ‖g_w‖²; both up, where ⟨g_w, g_l⟩ > (d_l/d_w) ‖g_l‖². Losses that pull back \
past their aim may also reverse a pair. The pulls are taken from the loss itself by automatic \
differentiation. band is the distance of log(d_w/d_l) from the range in which neither answer \
moves the wrong way: below 0 the chosen falls, above 0 the rejected rises.

The gradients are those of the model as it stands, in evaluation mode, so they speak of the first \
steps. Rates are per unit of learning rate of plain SGD on the pair alone; optimisers that scale \
their steps change sizes, and may change signs. Shares carry Wilson's interval, means a 95 % \
bootstrap over pairs.

They say what each pair asks for by itself, and do not foretell a run: steps on the other pairs \
move a pair too, and often outweigh its own. What one step on all of them does, to first order, is \
told of under “The first step, on all pairs together”. On a small model the chosen answer went the \
way its pair alone asked for in about three of four pairs after one step on all of them, and no \
more often than by chance at the end of training with AdamW; rejected answers fell as foretold.

{SOURCE} The band: "Disentangled Preference Optimization" (arXiv 2604.18239).
"""

    cosine: Estimate = value("")
    """Mean cosine of the two gradients."""
    case_ideal: Estimate = value("of pairs")
    """Share of pairs whose chosen answer would rise and whose rejected one would fall."""
    case_both_down: Estimate = value("of pairs")
    """Share of pairs whose answers would both fall."""
    case_both_up: Estimate = value("of pairs")
    """Share of pairs whose answers would both rise."""
    case_reversed: Estimate = value("of pairs")
    """Share of pairs whose chosen answer would fall and whose rejected one would rise."""
    predicted_chosen: Estimate = value("nats/η")
    """Mean change of the chosen answer's log-probability, per unit of learning rate."""
    predicted_rejected: Estimate = value("nats/η")
    """The same of the rejected answer's."""

    pair: np.ndarray = column()
    """[row] number of the pair in its file, from 0."""
    inner: np.ndarray = column()
    """[row] ⟨g_w, g_l⟩."""
    cosine_of_pair: np.ndarray = column(named="cosine")
    """[row] ⟨g_w, g_l⟩ / ‖g_w‖ ‖g_l‖."""
    chosen_norm: np.ndarray = column()
    """[row] ‖g_w‖."""
    rejected_norm: np.ndarray = column()
    """[row] ‖g_l‖."""
    d_chosen: np.ndarray = column()
    """[row] pull of the loss on the chosen answer."""
    d_rejected: np.ndarray = column()
    """[row] pull of the loss on the rejected answer."""
    case: np.ndarray = column()
    """[row] `ideal`, `both_down`, `both_up`, `reversed` or `still`."""
    predicted_chosen_of_pair: np.ndarray = column("nats/η", named="predicted_chosen")
    """[row] change of the chosen answer's log-probability, per unit of learning rate."""
    predicted_rejected_of_pair: np.ndarray = column("nats/η", named="predicted_rejected")
    """[row] the same of the rejected answer's."""
    predicted_margin: np.ndarray = column("nats/η")
    """[row] change of their difference; never below 0 where both pulls are equal."""
    ln_ches: np.ndarray = column()
    """[row] ⟨S_w, S_l⟩/(|y_w||y_l|) − ‖S_w‖²/|y_w|², of the states that predict the answers."""
    band: np.ndarray = column("log units")
    """[row] distance from the disentanglement band; 0 within."""
    chosen_logp: np.ndarray = column("nats")
    """[row] log-probability of the chosen answer."""
    rejected_logp: np.ndarray = column("nats")
    """[row] that of the rejected one."""
    chosen_length: np.ndarray = column("tokens")
    """[row] tokens of the chosen answer."""
    rejected_length: np.ndarray = column("tokens")
    """[row] tokens of the rejected one."""

    loss: str = fact()
    """The loss and its parameters."""
    trained: str = fact()
    """Which weights would be trained."""

    def summary(self) -> str:
        """What would become of the pairs."""
        if not self.rows():
            return "There is no pair to look at."
        return (
            f"Under {self.loss}, {self.case_ideal.value:.0%} of {self.rows()} pairs would first "
            f"move as meant ({self._range_of(self.case_ideal)}); the chosen answer would fall in "
            f"{self._falls():.0%}; the gradients' mean cosine is {self.cosine}."
        )

    def headline(self) -> str:
        """The share of pairs that would move as meant, and of those whose chosen answer falls."""
        if not self.rows():
            return ""
        return (
            f"under {self.loss}, {self.case_ideal.value:.0%} of {self.rows()} pairs would first "
            f"move as meant, and the chosen answer would fall in {self._falls():.0%}"
        )

    def _falls(self) -> float:
        return float(np.isin(self.case, ("both_down", "reversed")).mean())

    def _range_of(self, share: Estimate) -> str:
        return f"{share.low:.0%} to {share.high:.0%}"

    def figure(self) -> "figures.Figure | None":
        """Every pair by what pulls on it."""
        if not self.rows():
            return None
        ww, ll = self.chosen_norm**2, self.rejected_norm**2
        with np.errstate(divide="ignore", invalid="ignore"):
            across = self.d_rejected * self.inner / (self.d_chosen * ww)
            up = self.d_chosen * self.inner / (self.d_rejected * ll)
        return figures.points(
            across,
            up,
            self.case,
            names=entanglement.CASES,
            xlabel="pull of the rejected on the chosen, over its own (above 1 it falls)",
            ylabel="the chosen on the rejected",
            lines=(1, 1),
            within=(-2, 4),
        )


class Entanglement(OfPairs[EntanglementResult]):
    """How the gradients of chosen and rejected answers are entangled, pair by pair."""

    def compute(self) -> EntanglementResult:
        """The result of all that was seen so far."""
        table, answers = self.pairs.table(), self.answers()
        d_w, d_l = (d.numpy() for d in pulls(self.loss, answers))
        three = table["ww"], table["wl"], table["ll"]
        cosine = entanglement.cosine(*three)
        rates = entanglement.rates(*three, d_w, d_l)
        case = entanglement.cases(rates.chosen, rates.rejected)
        return EntanglementResult.of(
            cosine=self.mean(cosine),
            **{f"case_{c}": self.share(case == c) for c in [*entanglement.CASES][:-1]},
            predicted_chosen=self.mean(rates.chosen),
            predicted_rejected=self.mean(rates.rejected),
            pair=table["pair"],
            inner=table["wl"],
            cosine_of_pair=cosine,
            chosen_norm=np.sqrt(table["ww"]),
            rejected_norm=np.sqrt(table["ll"]),
            d_chosen=d_w,
            d_rejected=d_l,
            case=case.astype(object),
            predicted_chosen_of_pair=rates.chosen,
            predicted_rejected_of_pair=rates.rejected,
            predicted_margin=rates.margin,
            ln_ches=table["ches"],
            band=entanglement.band_distance(*three, d_w, d_l),
            chosen_logp=table["chosen"],
            rejected_logp=table["rejected"],
            chosen_length=table["chosen_length"],
            rejected_length=table["rejected_length"],
            loss=called(self.loss),
            trained=", ".join(self.trained),
        )


# The same, by losses


@dataclass(frozen=True)
class PreferenceLossesResult(Result):
    """What other losses would do to the same pairs."""

    kind = "preference_losses"
    title = "What other losses would do"
    how = f"""
{GRADIENTS}

The gradients do not depend on the loss, so that every loss can be asked at no cost: only its \
pulls differ. Each is taken with its usual parameters, the asked one with those given. Rates are \
scaled by ‖d_w g_w − d_l g_l‖, the length of the step, for losses differ in size: they are \
changes per unit of distance moved. They say where training sets out for, not where it ends.

{SOURCE}

The formula of each loss, with its source, is that of its class in \
`driftlens.formulas.preferences`.
""".strip()

    best: Estimate = value("of pairs")
    """Share of pairs that would move as meant, under the loss of the largest share."""

    loss: np.ndarray = column()
    """[row] the loss and its parameters."""
    ideal: np.ndarray = column("of pairs")
    """[row] share of pairs that would move as meant."""
    ideal_low: np.ndarray = column("of pairs")
    """[row] lower end of its Wilson interval."""
    ideal_high: np.ndarray = column("of pairs")
    """[row] upper end of it."""
    both_down: np.ndarray = column("of pairs")
    """[row] share whose answers would both fall."""
    both_up: np.ndarray = column("of pairs")
    """[row] share whose answers would both rise."""
    other: np.ndarray = column("of pairs")
    """[row] share that would be reversed, would not move, or is undefined."""
    chosen: np.ndarray = column("nats/distance")
    """[row] mean change of the chosen answer, per unit of distance moved."""
    rejected: np.ndarray = column("nats/distance")
    """[row] the same of the rejected answer."""

    def summary(self) -> str:
        """Which loss would move most pairs as meant."""
        if np.isnan(self.best.value):
            return "There is no pair to look at."
        most, of = int(np.argmax(self.ideal)), f"Of {self.rows()} losses"
        if self.ideal[most] <= self.ideal[0]:
            asked = f"{self.loss[0]}, which moves {self.ideal[0]:.0%}"
            return f"{of} none would move more pairs as meant than the one asked for, {asked}."
        return (
            f"{of} {self.loss[most]} would move most pairs as meant, {self.ideal[most]:.0%} of "
            f"them; the one asked for, {self.loss[0]}, {self.ideal[0]:.0%}."
        )

    def figure(self) -> "figures.Figure | None":
        """What would become of the pairs, by loss."""
        if np.isnan(self.best.value):
            return None
        shares = (self.ideal, self.both_down, self.both_up, self.other)
        names = [entanglement.CASES[case] for case in ("ideal", "both_down", "both_up")]
        return figures.stacks(
            [str(loss).split(" (")[0] for loss in self.loss],
            dict(zip((*names, "otherwise"), shares, strict=True)),
            xlabel="loss; the one asked for comes first",
            ylabel="share of pairs",
        )


class PreferenceLosses(OfPairs[PreferenceLossesResult]):
    """What other losses would do to the same pairs."""

    def compute(self) -> PreferenceLossesResult:
        """The result of all that was seen so far."""
        table, answers = self.pairs.table(), self.answers()
        three = table["ww"], table["wl"], table["ll"]
        mine = getattr(self.loss, "name", None)
        losses: list[Loss] = [self.loss, *(kind() for name, kind in LOSSES.items() if name != mine)]
        found = []
        for loss in losses:
            d_w, d_l = (d.numpy() for d in pulls(loss, answers))
            rates = entanglement.rates(*three, d_w, d_l)
            case = entanglement.cases(rates.chosen, rates.rejected)
            length = np.sqrt(np.clip(d_w * rates.chosen - d_l * rates.rejected, 0, None))
            with np.errstate(divide="ignore", invalid="ignore"):
                moves = [np.where(length > 0, z / length, np.nan) for z in rates[:2]]
            ideal = self.share(case == "ideal")
            others = (case == "both_down", case == "both_up")
            rest = ~np.isin(case, ("ideal", "both_down", "both_up"))
            found.append(
                (
                    *ideal,
                    *(self.share(holds).value for holds in (*others, rest)),
                    *map(_mean, moves),
                )
            )
        columns = np.array(found, float).T
        names = ("ideal", "ideal_low", "ideal_high", "both_down", "both_up", "other")
        best = int(np.argmax(columns[0]))
        return PreferenceLossesResult.of(
            best=Estimate(*columns[:3, best]),
            loss=[called(loss) for loss in losses],
            **dict(zip((*names, "chosen", "rejected"), columns, strict=True)),
        )


def _mean(values: np.ndarray) -> float:
    """Mean of the numbers that are known."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan


# The same, by layer


@dataclass(frozen=True)
class EntanglementByLayerResult(Result):
    """Which weights entangle, and which would push the chosen answer down."""

    kind = "entanglement_by_layer"
    title = "Entanglement by layer"
    how = f"""
{GRADIENTS}

Inner products add up over the weights, so both rates are sums over layers and components: what \
is shown is each one's part of the mean rate over pairs. cosine is that of the two gradients by \
the component's weights alone, mean over pairs. A tied embedding counts once, as `embed`.

{SOURCE}
"""

    predicted_chosen: Estimate = value("nats/η")
    """Mean change of the chosen answer's log-probability, per unit of learning rate."""

    layer: np.ndarray = column()
    """[row] `embed`, number of the block, or `head`."""
    component: np.ndarray = column()
    """[row] part of the layer."""
    cosine: np.ndarray = column()
    """[row] mean cosine of the two gradients by these weights; NaN where they have none."""
    low: np.ndarray = column()
    """[row] lower end of its 95 % interval."""
    high: np.ndarray = column()
    """[row] upper end of it."""
    inner: np.ndarray = column()
    """[row] mean inner product."""
    chosen: np.ndarray = column("nats/η")
    """[row] part of the chosen answer's mean change."""
    rejected: np.ndarray = column("nats/η")
    """[row] part of the rejected answer's mean change."""

    def summary(self) -> str:
        """Where the gradients are most alike."""
        known = np.flatnonzero(np.isfinite(self.cosine))
        if not len(known):
            return "There is no gradient to look at."
        most = known[np.argmax(self.cosine[known])]
        least = known[np.argmin(self.chosen[known])]
        piece, lowest = (Piece(self.layer[i], self.component[i], ()).words for i in (most, least))
        said = (
            f"The gradients are most alike in {piece} (cosine {self.cosine[most]:.2f}, "
            f"{self.low[most]:.2f} to {self.high[most]:.2f})"
        )
        if self.chosen[least] < 0:
            return f"{said}; {lowest} would push chosen answers down most."
        return f"{said}; no component would push chosen answers down."

    def figure(self) -> "figures.Figure":
        """Cosines, and parts of the chosen answer's change."""
        both = zip(self.layer, self.component, strict=True)
        names = [str(Piece(layer, component, ())) for layer, component in both]
        figure, (left, right) = figures.panels(2)
        figures.bars(
            names,
            self.cosine,
            self.low,
            self.high,
            xlabel="weights",
            ylabel="cosine of the gradients",
            on=left,
        )
        figures.bars(
            names,
            -self.chosen,
            xlabel="weights",
            ylabel="fall of the chosen [nats/η]",
            on=right,
        )
        return figure


class EntanglementByLayer(OfPairs[EntanglementByLayerResult]):
    """Which weights entangle, and which would push the chosen answer down."""

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make room for the components."""
        super().begin(pair, encoder)
        self.named = tuple(pair.gradients(self.trained).blocks)
        self.parts = PerDocument(5 * len(self.named))

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        products = frame.products(self.trained)
        d_w, d_l = (d.numpy() for d in pulls(self.loss, frame.answers))
        sums = {key: np.zeros(products.total.shape) for key in self.named}
        for name, inner in products.inner.items():
            owner = products.owners[name]
            sums[owner.layer, owner.component] += inner.numpy()
        rows: list[np.ndarray] = []
        for whole in sums.values():
            three = whole[:, 0, 0], whole[:, 0, 1], whole[:, 1, 1]
            rates = entanglement.rates(*three, d_w, d_l)
            cosine = entanglement.cosine(*three)
            known = np.isfinite(cosine)
            rows += [np.where(known, cosine, 0), known, three[1], rates.chosen, rates.rejected]
        self.parts.update(self._numbers(frame)["document"], np.stack(rows, 1).astype(float))

    def compute(self) -> EntanglementByLayerResult:
        """The result of all that was seen so far."""
        sums = self.parts.sums.reshape(-1, len(self.named), 5)
        ones = np.ones(len(sums))
        cosine = self.intervals(sums[:, :, 0], sums[:, :, 1], self.parts.documents)
        mean, *_ = self.intervals(sums[:, :, 2:], ones, self.parts.documents)
        total = self.intervals(sums[:, :, 3].sum(1), ones, self.parts.documents)
        return EntanglementByLayerResult.of(
            predicted_chosen=Estimate(*map(float, total)),
            layer=[layer for layer, _ in self.named],
            component=[component for _, component in self.named],
            cosine=cosine.estimate,
            low=cosine.low,
            high=cosine.high,
            inner=mean[:, 0],
            chosen=mean[:, 1],
            rejected=mean[:, 2],
        )


# The same, by token


CELLS = 2**15
"""Products of tokens that are kept."""

OF_ONE = 2**13
"""How many of one pair, the largest; all of texts of up to 90 tokens."""


@dataclass(frozen=True)
class EntanglementByPositionResult(Result):
    """At which tokens the two gradients meet."""

    kind = "entanglement_by_position"
    title = "Where the gradients meet"
    how = """
A gradient is a sum over the tokens at which the weights are used, so that ⟨g_w, g_l⟩ is a sum \
over every token of the chosen text times every token of the rejected one: \
⟨g_w, g_l⟩ = Σ_t Σ_u ⟨g_w at t, g_l at u⟩. Positions are those of the weights' use: also the \
prompt's tokens, which the answers read, and of which the last predicts an answer's first. \
in_prompt and in_answers are parts of the sum of all products' sizes, over all pairs; what is \
left are products of a prompt's token with an answer's.

The table holds the pairs whose gradients are most alike, the largest products of a long pair. It \
comes from the same backward pass as the whole product. Intervals: 95 % bootstrap over pairs.

Source: Yuan et al. (2025), "A Common Pitfall of Margin-based Language Model Alignment: Gradient \
Entanglement", its analysis by token; here by the place at which weights are used, which the inner \
product divides exactly.
""".strip()

    in_prompt: Estimate = value("of the map")
    """Part of the products, by size, of which both tokens are the prompt's."""
    in_answers: Estimate = value("of the map")
    """Part of which both tokens are the answers'."""
    placed: Estimate = value("of the product")
    """Part of all pairs' products that has a place in the text; the rest are experts' weights."""

    pair: np.ndarray = column()
    """[row] number of the pair in its file, from 0."""
    chosen_position: np.ndarray = column()
    """[row] place of the token in the chosen text."""
    rejected_position: np.ndarray = column()
    """[row] place of the token in the rejected text."""
    chosen_token: np.ndarray = column()
    """[row] the chosen text's token."""
    rejected_token: np.ndarray = column()
    """[row] the rejected text's token."""
    product: np.ndarray = column()
    """[row] part of ⟨g_w, g_l⟩."""

    def summary(self) -> str:
        """The two tokens at which the gradients meet most."""
        if not self.rows():
            return "There is no pair to look at."
        # Rows come pair by pair, those most alike first.
        most = int(np.argmax(np.abs(self.product) * (self.pair == self.pair[0])))
        ours, theirs = (
            token[most].strip() or token[most] for token in (self.chosen_token, self.rejected_token)
        )
        return (
            f"{self.in_prompt.value:.0%} of what the gradients have to do with each other lies "
            f"where both texts are the prompt, {self.in_answers.value:.0%} where both are the "
            f"answers; in pair {self.pair[most]}, where they are most alike, they meet most at "
            f"“{ours}” of the chosen and “{theirs}” of the rejected text."
        )

    def figure(self) -> "figures.Figure | None":
        """The map of the first pair."""
        if not self.rows():
            return None
        mine = np.flatnonzero(self.pair == self.pair[0])
        across = sorted(set(self.rejected_position[mine].tolist()))[-WIDEST:]
        down = sorted(set(self.chosen_position[mine].tolist()))[-WIDEST:]
        matrix = np.full((len(down), len(across)), np.nan)
        names: dict[str, dict[int, str]] = {"chosen": {}, "rejected": {}}
        for i in mine:
            row, place = int(self.chosen_position[i]), int(self.rejected_position[i])
            names["chosen"][row], names["rejected"][place] = (
                self.chosen_token[i],
                self.rejected_token[i],
            )
            if row in down and place in across:
                matrix[down.index(row), across.index(place)] = self.product[i]
        return figures.heatmap(
            matrix,
            rows=[names["chosen"][p] for p in down],
            columns=[names["rejected"][p] for p in across],
            xlabel=f"tokens of the rejected text of pair {self.pair[0]}",
            ylabel="tokens of the chosen text",
            label="part of the product",
            room=WIDEST,
        )


WIDEST = 32
"""Tokens that fit into one picture, the last of each text."""


class EntanglementByPosition(OfPairs[EntanglementByPositionResult]):
    """At which tokens the two gradients meet."""

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make room for the products."""
        super().begin(pair, encoder)
        numbers = ("document", "other", "pair", "chosen_position", "rejected_position")
        order = ("-alike", "document", "chosen_position", "rejected_position")
        floats = dict.fromkeys(("alike", "product"), np.float64)
        self.cells = Rows(CELLS, order, floats | dict.fromkeys(numbers, np.int64))
        self.parts = PerDocument(6)

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        products = frame.products(self.trained, by_token=True)
        assert products.by_token is not None
        numbers, total = self._numbers(frame), products.total.numpy()
        unplaced = [products.inner[name] for name in products.unplaced if name in products.inner]
        placed = total - sum(inner.numpy() for inner in unplaced)
        alike = np.abs(entanglement.cosine(total[:, 0, 0], total[:, 0, 1], total[:, 1, 1]))
        maps, places, first = products.by_token.cpu().numpy(), frame.places, _starts(frame)
        for pair, document in enumerate(numbers["document"]):
            both = slice(2 * pair, 2 * pair + 2)
            here = [np.flatnonzero(row >= 0) for row in places[both]]
            at = [row[row >= 0] for row in places[both]]
            found = maps[pair][np.ix_(*here)].astype(float)
            asked = [row < start for row, start in zip(at, first[both], strict=True)]
            size = np.abs(found)
            parts = (
                size[np.ix_(*asked)].sum(),
                size[np.ix_(*(~side for side in asked))].sum(),
                size.sum(),
                abs(placed[pair, 0, 1]),
                abs(total[pair, 0, 1]),
                found.size > OF_ONE,
            )
            self.parts.update([document], np.array([parts], float))
            kept = np.argsort(-size, axis=None, kind="stable")[:OF_ONE]
            row, place = np.unravel_index(kept, found.shape)
            same = {
                "alike": alike[pair],
                "document": document,
                "other": frame.windows[2 * pair + 1].example,
                "pair": numbers["pair"][pair],
            }
            self.cells.update(
                product=found[row, place],
                chosen_position=at[0][row],
                rejected_position=at[1][place],
                **{name: np.full(len(kept), what) for name, what in same.items()},
            )

    def compute(self) -> EntanglementByPositionResult:
        """The result of all that was seen so far."""
        table = _whole(self.cells.table(), self.cells.seen)
        sums, cut = self.parts.sums, int(self.parts.sums[:, 5].sum())
        parts = self.intervals(sums[:, [0, 1, 3]], sums[:, [2, 2, 4]], self.parts.documents)
        in_prompt, in_answers, placed = np.stack(parts, 1).tolist()
        note = f"Of {cut} long pairs the table holds the {OF_ONE} largest products at most."
        return EntanglementByPositionResult.of(
            in_prompt=tuple(in_prompt),
            in_answers=tuple(in_answers),
            placed=tuple(placed),
            pair=table["pair"],
            chosen_position=table["chosen_position"],
            rejected_position=table["rejected_position"],
            chosen_token=self.encoder.texts(table["document"], table["chosen_position"]),
            rejected_token=self.encoder.texts(table["other"], table["rejected_position"]),
            product=table["product"],
            notes=(note,) if cut else (),
        )


def _starts(frame: Frame) -> np.ndarray:
    """[row] place of each answer's first token in its text."""
    first = np.full(len(frame.windows), np.iinfo(np.int64).max)
    np.minimum.at(first, frame.row_of_scored, frame.scored.position)
    return first


def _whole(table: Mapping[str, np.ndarray], seen: int) -> Mapping[str, np.ndarray]:
    """The cells of pairs of which all were kept: the last may be cut."""
    if len(table["pair"]) == seen or not seen:
        return table
    last = table["pair"] == table["pair"][-1]
    return {name: column[~last] for name, column in table.items()}


# What is known without gradients


@dataclass(frozen=True)
class PreferenceFactsResult(Result):
    """What pairs are like: lengths, rankings, and how far training could bring them."""

    kind = "preference_facts"
    title = "The preference set"
    how = """
ranked_right: share of pairs whose chosen answer is likelier than the rejected one, by sums of \
log-probabilities; ranked_right_by_mean: by means over tokens. ranked_at_best: the share that a \
model at the very optimum of DPO with this β would rank right, log π_ref(y_w) − log π_ref(y_l) + \
log(α/(1 − α))/β > 0 with α = .999: how far below 1 it lies, no training can mend. longer: share \
of pairs whose chosen answer has more tokens; length_bias: Spearman's correlation, over pairs, of \
the difference in length with the difference in log-probability. \
displacement: mean ln-CHES, ⟨S_w, S_l⟩/(|y_w||y_l|) − ‖S_w‖²/|y_w|², S being sums of the states \
that predict an answer's tokens; the higher, the more a pair displaces its own chosen answer.

Sources: Chen et al. (2024), "Preference Learning Algorithms Do Not Learn Preference Rankings"; \
Razin et al. (2025), "Unintentional Unalignment".
""".strip()

    ranked_right: Estimate = value("of pairs")
    """Share of pairs that the model ranks right, by sums."""
    ranked_right_by_mean: Estimate = value("of pairs")
    """The same by means over tokens."""
    ranked_at_best: Estimate = value("of pairs")
    """The idealised ceiling of the former."""
    longer: Estimate = value("of pairs")
    """Share of pairs whose chosen answer is longer."""
    length_bias: Estimate = value("Spearman")
    """Correlation of the difference in length with that in log-probability."""
    displacement: Estimate = value("ln-CHES")
    """Mean over pairs."""

    fault: np.ndarray = column()
    """[row] what may be wrong with a pair."""
    pairs: np.ndarray = column()
    """[row] how many pairs have it."""
    left_out: np.ndarray = column()
    """[row] how many of these were left out."""
    example: np.ndarray = column()
    """[row] the first of them, in words."""

    beta: float = fact()
    """β of the ceiling."""
    read: int = fact("pairs")
    """Pairs that were looked at."""

    def summary(self) -> str:
        """How well the pairs are ranked, and what is wrong with them."""
        said = (
            f"The model ranks {self.ranked_right.value:.0%} of {self.read} pairs right, and at "
            f"best DPO with β {self.beta:g} would bring that to {self.ranked_at_best.value:.0%}"
        )
        out = int(self.left_out.sum()) if self.rows() else 0
        return f"{said}; faults left {out} out." if out else f"{said}; none had to be left out."


class PreferenceFacts(OfPairs[PreferenceFactsResult]):
    """What pairs are like, by forward passes alone.

    Args:
        faults: For each kind of fault, how many pairs have it, how many of these were left out,
            and the first in words.
        loss: Whose β the ceiling is taken of, if it has one.
        seed: Of the bootstrap.
        level: Share of bootstrap draws that an interval holds.
    """

    gradients = False
    wants = Wants(causal=True, same_tokens=True)

    def __init__(
        self,
        faults: Mapping[str, tuple[int, int, str]] | None = None,
        loss: Loss = USUAL,
        seed: int = 0,
        level: float = 0.95,
    ) -> None:
        super().__init__(loss, seed=seed, level=level)
        self.faults = dict(faults or {})

    def compute(self) -> PreferenceFactsResult:
        """The result of all that was seen so far."""
        from driftlens.formulas.ranks import spearman

        table = self.pairs.table()
        sides = table["chosen"], table["rejected"]
        lengths = table["chosen_length"], table["rejected_length"]
        ranked = entanglement.ranked(*sides, *lengths)
        # The β of other losses is not DPO's.
        like_dpo = getattr(self.loss, "name", "") in ("dpo", "r-dpo", "cdpo", "dpop")
        beta = float(getattr(self.loss, "beta", USUAL.beta)) if like_dpo else USUAL.beta
        best = entanglement.ideal_ranked(
            table["reference_chosen"], table["reference_rejected"], beta
        )
        return PreferenceFactsResult.of(
            ranked_right=self.share(ranked.by_sum == 1),
            ranked_right_by_mean=self.share(ranked.by_mean == 1),
            ranked_at_best=self.share(best == 1),
            longer=self.share(lengths[0] > lengths[1]),
            length_bias=spearman(lengths[0] - lengths[1], sides[0] - sides[1]),
            displacement=self.mean(table["ches"]),
            fault=[*self.faults],
            pairs=np.array([count for count, _, _ in self.faults.values()], int),
            left_out=np.array([out for _, out, _ in self.faults.values()], int),
            example=np.array([*(words for _, _, words in self.faults.values()), ""], object)[:-1],
            beta=beta,
            read=len(table["pair"]),
            notes=[_told(*fault) for fault in self.faults.values()],
        )


def _told(pairs: int, out: int, example: str) -> str:
    """A fault in a note."""
    left = f", {'all' if out == pairs else out} left out" if out else ""
    return f"{pairs} {'pair' if pairs == 1 else 'pairs'}{left}: {example}"
