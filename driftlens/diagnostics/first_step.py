"""What one step on all pairs of answers together would do to each of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from driftlens.formulas import entanglement
from driftlens.formulas.intervals import wilson
from driftlens.formulas.preferences import DPO, Loss, called, pulls
from driftlens.formulas.streams import PerDocument, Rows, State
from driftlens.metric import Metric
from driftlens.models import Frame, ModelPair, Wants
from driftlens.models.tokens import Encoder
from driftlens.results import Estimate, Result, column, fact, figures, value

USUAL = DPO()
"""The loss that is meant where none is named."""

EPSILON = 1e-8
"""ε of Adam, as torch has it."""

EXACT = 2**30
"""Up to how many weights their gradient is summed in float64."""

STEPS = {
    "alone": "each pair alone",
    "together": "SGD, all together",
    "adam": "Adam, all together",
}
"""The steps that are told of, and what they are called."""


@dataclass(frozen=True)
class FirstStepResult(Result):
    """What becomes of each pair in the first step of training on all of them."""

    kind = "first_step"
    title = "The first step, on all pairs together"
    how = f"""
Training takes a step on many pairs at once, and steps on the others move a pair too. The step of \
plain gradient descent on the mean loss of all n pairs goes along

    U = (1/n) Σ_q (d_w,q g_w,q − d_l,q g_l,q),

g being gradients of log-probabilities and d the loss's pulls, as above; an answer of gradient g \
then changes by η ⟨g, U⟩, up to terms of η². together_chosen and together_rejected are ⟨g, U⟩, in \
nats per unit of the learning rate η. adam_chosen and adam_rejected are the same for the first \
step of Adam and AdamW, which moves every weight by η U/(|U| + ε), ε = {EPSILON:g}, whatever the \
size of its gradient. alone_chosen and alone_rejected are those of a step on the pair by itself, \
d_w ‖g_w‖² − d_l ⟨g_w, g_l⟩ and d_w ⟨g_w, g_l⟩ − d_l ‖g_l‖²; of a single pair they equal those of \
together.

It is the first step only, on the whole set as one batch, in evaluation mode. Weight decay is left \
out. Clipping and warm-up would change the length of the step and not which way an answer goes \
(but for Adam's ε). Later steps start elsewhere, and batches hold other pairs. On a small model \
one step of SGD, of .05 nats an answer, moved at least 99 % of answers the way that is foretold \
here, and changes were off by 1 %; one of AdamW moved all of them so at a learning rate of 1e-5, \
off by 1.5 %, and 98 % to 100 % of them at 1e-4, off by 15 %: its steps are long.

U is found by a backward pass over the whole set, and held once; a second showing of the set finds \
⟨g, U⟩ exactly, by two passes that carry rates of change forward. All of it takes about as long as \
three or four epochs of training on the set. Shares carry Wilson's interval, means a 95 % \
bootstrap over pairs.

Sources: Yuan et al. (2025), "A Common Pitfall of Margin-based Language Model Alignment: Gradient \
Entanglement", the first-order change, summed over pairs; Kingma & Ba (2015), "Adam", algorithm 1 \
at t = 1; Pearlmutter (1994), "Fast Exact Multiplication by the Hessian", rates carried forward.
""".strip()

    chosen_up: Estimate = value("of pairs")
    """Share of pairs whose chosen answer rises in one step of SGD on all."""
    chosen_up_alone: Estimate = value("of pairs")
    """The same where each pair is stepped on by itself."""
    chosen_up_adam: Estimate = value("of pairs")
    """The same of Adam's first step on all."""
    case_ideal: Estimate = value("of pairs")
    """Share of pairs whose chosen answer would rise and whose rejected one would fall."""
    case_both_down: Estimate = value("of pairs")
    """Share of pairs whose answers would both fall."""
    case_both_up: Estimate = value("of pairs")
    """Share of pairs whose answers would both rise."""
    case_reversed: Estimate = value("of pairs")
    """Share of pairs whose chosen answer would fall and whose rejected one would rise."""
    adam_ideal: Estimate = value("of pairs")
    """Share of pairs that Adam's first step would move as meant."""
    adam_both_down: Estimate = value("of pairs")
    """Share of pairs whose answers would both fall in it."""
    adam_both_up: Estimate = value("of pairs")
    """Share of pairs whose answers would both rise in it."""
    adam_reversed: Estimate = value("of pairs")
    """Share of pairs whose chosen answer would fall and whose rejected one would rise in it."""
    changed: Estimate = value("of pairs")
    """Share of pairs of which something else becomes together than alone."""
    margin: Estimate = value("nats/η")
    """Mean change of the margin in one step of SGD on all."""
    margin_adam: Estimate = value("nats/η")
    """The same of Adam's first step."""

    pair: np.ndarray = column()
    """[row] number of the pair in its file, from 0."""
    alone_chosen: np.ndarray = column("nats/η")
    """[row] change of the chosen answer in a step on the pair by itself."""
    alone_rejected: np.ndarray = column("nats/η")
    """[row] the same of the rejected answer."""
    together_chosen: np.ndarray = column("nats/η")
    """[row] change of the chosen answer in one step of SGD on all pairs' mean loss."""
    together_rejected: np.ndarray = column("nats/η")
    """[row] the same of the rejected answer."""
    adam_chosen: np.ndarray = column("nats/η")
    """[row] change of the chosen answer in Adam's first step on all pairs' mean loss."""
    adam_rejected: np.ndarray = column("nats/η")
    """[row] the same of the rejected answer."""
    case_alone: np.ndarray = column()
    """[row] `ideal`, `both_down`, `both_up`, `reversed`, `still` or `undefined`."""
    case_together: np.ndarray = column()
    """[row] the same of one step of SGD on all."""
    case_adam: np.ndarray = column()
    """[row] the same of Adam's first step on all."""

    loss: str = fact()
    """The loss and its parameters."""
    trained: str = fact()
    """Which weights would be trained."""

    def summary(self) -> str:
        """What would become of chosen answers, together and alone."""
        if np.isnan(self.chosen_up.value):
            return "There is no step to tell of."
        up, rows = self.chosen_up, self.rows()
        said = "the one pair" if rows == 1 else f"all {rows} pairs together"
        return (
            f"One step on {said} raises the chosen answer of {up.value:.0%} ({up.low:.0%} to "
            f"{up.high:.0%}; alone: {self.chosen_up_alone.value:.0%}), Adam's first step that of "
            f"{self.chosen_up_adam.value:.0%}; {self.case_ideal.value:.0%} and "
            f"{self.adam_ideal.value:.0%} of pairs move as meant."
        )

    def headline(self) -> str:
        """The share of chosen answers that the whole set's first step raises."""
        if np.isnan(self.chosen_up.value):
            return ""
        return f"one step on all together raises the chosen answer of {self.chosen_up.value:.0%}"

    def figure(self) -> "figures.Figure | None":
        """What would become of the pairs, by step."""
        if np.isnan(self.chosen_up.value):
            return None
        found = [self.case_alone, self.case_together, self.case_adam]
        shares = {
            name: np.array([(case == which).mean() for case in found])
            for which, name in list(entanglement.CASES.items())[:3]
        }
        return figures.stacks(
            [*STEPS.values()],
            {**shares, "otherwise": 1 - np.sum([*shares.values()], axis=0)},
            xlabel="step",
            ylabel="share of pairs",
        )


class Step:
    """Where one step on the mean loss of pairs goes, of a stream that may be split.

    It holds as many numbers as there are weights to be trained.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.pairs = 0

    def update(self, sums: Mapping[str, Tensor], pairs: int) -> Self:
        """Add a sum over pairs of d_w g_w − d_l g_l, by name of parameter."""
        wide = sum(z.numel() for z in sums.values()) <= EXACT
        for name, some in sums.items():
            # A device of Apple's has no float64.
            exact = torch.float64 if wide and some.device.type != "mps" else torch.float32
            if name in self.sums:
                self.sums[name] = self.sums[name].to(some.device, exact).add_(some)
            else:
                self.sums[name] = some.to(exact, copy=True)
        self.pairs += pairs
        return self

    def merge(self, other: "Step") -> Self:
        """Add another part's sums; `other` is left as it is."""
        return self.update(other.sums, other.pairs)

    def empty(self) -> "Step":
        """A step on no pair."""
        return Step()

    def state(self) -> State:
        """`pairs`, and the sum of every parameter as `sum:…`."""
        sums = {f"sum:{name}": some.cpu().numpy().copy() for name, some in self.sums.items()}
        return {"pairs": np.array(self.pairs), **sums}

    def restore(self, state: Mapping[str, np.ndarray]) -> Self:
        """Take up what `state` gave."""
        self.pairs = int(state["pairs"])
        self.sums = {
            name.removeprefix("sum:"): torch.from_numpy(np.array(some))
            for name, some in state.items()
            if name.startswith("sum:")
        }
        return self


def sgd(direction: Tensor) -> Tensor:
    """What plain gradient descent adds to a weight, by η."""
    return direction


def adam(direction: Tensor) -> Tensor:
    r"""What Adam adds to a weight in its first step, by η: :math:`m / (\sqrt{v} + \epsilon)`.

    Freed of their bias, m is the gradient after one step, and v its square.

    Source: Kingma & Ba (2015), "Adam: A Method for Stochastic Optimization", algorithm 1.
    """
    return direction / (direction.abs() + EPSILON)


class FirstStep(Metric[FirstStepResult]):
    """What becomes of each pair in the first step of training on all of them.

    The pack is shown twice: once to find where the step goes, which is held as one number for
    each weight to be trained, and once to find how fast each answer changes on that way.

    Args:
        loss: What would be trained with: one of `driftlens.formulas.preferences.LOSSES`, or any
            function of `Answers`.
        trained: Patterns that name the weights to be trained.
        seed: Of the bootstrap.
        level: Share of bootstrap draws that an interval holds.
    """

    wants = Wants(causal=True, same_tokens=True, graph=True)

    kinds = ("preference",)

    def __init__(
        self,
        loss: Loss = USUAL,
        trained: Sequence[str] = ("*",),
        seed: int = 0,
        level: float = 0.95,
    ) -> None:
        self.loss, self.trained, self.seed, self.level = loss, tuple(trained), seed, level
        self.step, self.rates = Step(), PerDocument(4)
        self.alone = Rows(1, ("document",), {"document": np.int64})
        self.settled: tuple[Mapping[str, Tensor], int] | None = None

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make room for the pairs."""
        super().begin(pair, encoder)
        columns: dict[str, Any] = dict.fromkeys(("document", "pair"), np.int64)
        columns |= dict.fromkeys(("chosen", "rejected"), np.float64)
        room = max(1, len(encoder.plan) // 2)
        self.step, self.rates, self.settled = Step(), PerDocument(4), None
        self.alone = Rows(room, ("document",), columns)

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        documents = np.array([window.example for window in frame.windows[::2]], np.int64)
        gradients, batch = self.pair.gradients(self.trained), frame.aligned.batch
        if self.settled:
            found = [gradients.along(batch, self._way(moved)) for moved in (sgd, adam)]
            self.rates.update(documents, torch.stack(found).reshape(2, -1, 2).movedim(0, 1))
            return
        d_w, d_l = pulls(self.loss, frame.answers)
        self.step.update(gradients.summed(batch, torch.stack([d_w, -d_l], 1).ravel()), len(d_w))
        inner = frame.products(self.trained).total.numpy()
        three = inner[:, 0, 0], inner[:, 0, 1], inner[:, 1, 1]
        rates = entanglement.rates(*three, d_w.numpy(), d_l.numpy())
        self.alone.update(
            document=documents,
            pair=[self._number(document) for document in documents],
            chosen=rates.chosen,
            rejected=rates.rejected,
        )

    def again(self) -> bool:
        """Whether the pack is to be shown once more: now that it is known where the step goes."""
        if self.settled or not self.step.pairs:
            return False
        self._settle()
        return True

    def restore(self, state: Mapping[str, np.ndarray]) -> Self:
        """Take up what `state` gave."""
        super().restore(state)
        self.settled = None
        if len(self.rates.documents):
            self._settle()
        return self

    def compute(self) -> FirstStepResult:
        """The result of all that was seen so far."""
        table = self.alone.table()
        found = np.full((4, len(table["document"])), np.nan)
        found[:, np.isin(table["document"], self.rates.documents)] = self.rates.sums.T
        rates = {
            "alone": (table["chosen"], table["rejected"]),
            "together": (found[0], found[1]),
            "adam": (found[2], found[3]),
        }
        case = {step: entanglement.cases(*both) for step, both in rates.items()}
        known = np.isfinite(found).all(0)
        shares = {
            f"{name}_{which}": self._share(case[step] == which, known)
            for name, step in (("case", "together"), ("adam", "adam"))
            for which in [*entanglement.CASES][:-1]
        }
        return FirstStepResult.of(
            chosen_up=self._share(rates["together"][0] > 0, known),
            chosen_up_alone=self._share(rates["alone"][0] > 0, known),
            chosen_up_adam=self._share(rates["adam"][0] > 0, known),
            **shares,
            changed=self._share(case["together"] != case["alone"], known),
            margin=self._mean(found[0] - found[1], table["document"]),
            margin_adam=self._mean(found[2] - found[3], table["document"]),
            pair=table["pair"],
            **{f"{step}_chosen": chosen for step, (chosen, _) in rates.items()},
            **{f"{step}_rejected": rejected for step, (_, rejected) in rates.items()},
            **{f"case_{step}": cases.astype(object) for step, cases in case.items()},
            loss=called(self.loss),
            trained=", ".join(self.trained),
        )

    def _settle(self) -> None:
        # By reference: parts of the second showing begin with an empty step, and need this one.
        self.settled = self.step.sums, self.step.pairs

    def _way(self, moved: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Where each parameter goes at a learning rate of 1.

        Args:
            moved: What an optimiser makes of the mean of d_w g_w − d_l g_l.
        """
        assert self.settled is not None, "the step is known only after the first showing"
        (sums, pairs), trained = self.settled, self.pair.gradients(self.trained).trained
        kinds = {n: torch.promote_types(p.dtype, torch.float32) for n, p in trained.items()}
        return {name: moved(some / pairs).to(kinds[name]) for name, some in sums.items()}

    def _number(self, document: int) -> int:
        """The number of the record that an answer is of."""
        group = self.encoder.pack.examples[document].group
        return group if isinstance(group, int) else self.encoder.pack.clusters[document]

    def _share(self, holds: np.ndarray, known: np.ndarray) -> Estimate:
        """Part of the pairs of which something holds, with Wilson's interval; NaN until known."""
        if not len(known) or not known.all():
            return Estimate(np.nan)
        return Estimate(*map(float, wilson(int(holds.sum()), len(holds), self.level)))

    def _mean(self, values: np.ndarray, documents: np.ndarray) -> Estimate:
        if not len(values) or np.isnan(values).any():
            return Estimate(np.nan)
        return Estimate(*map(float, self.intervals(values, np.ones(len(values)), documents)))
