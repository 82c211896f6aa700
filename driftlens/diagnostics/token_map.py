"""What each token of one answer has to do with each token of the other, for pairs asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from driftlens.errors import DriftlensError
from driftlens.formulas.streams import PerDocument, Rows
from driftlens.metric import Metric
from driftlens.models import Frame, ModelPair, Wants
from driftlens.models.gradients import by_scored_token, trainable
from driftlens.models.hybrid import plain
from driftlens.models.tokens import Encoder
from driftlens.results import Estimate, Result, column, fact, figures, value

WIDEST = 32
"""Tokens of an answer that fit into one picture, the first of each."""

CELLS = 2**20
"""Products of tokens that are kept."""


@dataclass(frozen=True)
class TokenMapResult(Result):
    """Which tokens of the two answers entangle them."""

    kind = "entanglement_tokens"
    title = "Which tokens entangle"
    how = """
An answer's log-probability is a sum over its tokens, and so is its gradient: with g_w^t the \
gradient of log π(token t of y_w | what stands before it), ⟨g_w, g_l⟩ = Σ_t Σ_u ⟨g_w^t, g_l^u⟩. \
The table holds every ⟨g_w^t, g_l^u⟩ of the pairs that were asked for. Above 0, a step that makes \
token u of the rejected answer less likely makes token t of the chosen one less likely too. \
Tokens that both answers share after the place where they part are the usual cause.

Each token is scored in a copy of its text up to there, so that a map costs as many times more \
than a pair as the answers have tokens. total is the sum over the tables, and inner the sum of \
the pairs' ⟨g_w, g_l⟩ as found at once: they differ by rounding alone.

Source: Yuan et al. (2025), "A Common Pitfall of Margin-based Language Model Alignment: Gradient \
Entanglement", its analysis by token; inner products where the paper has cosines, for they add up.
""".strip()

    total: Estimate = value("nats²")
    """Sum of all products of tokens."""
    inner_of_pairs: Estimate = value("nats²")
    """Sum of the pairs' ⟨g_w, g_l⟩; equal to `total` up to rounding."""

    pair: np.ndarray = column()
    """[row] number of the pair in its file, from 0."""
    chosen_position: np.ndarray = column()
    """[row] place of the token in the chosen text."""
    rejected_position: np.ndarray = column()
    """[row] place of the token in the rejected text."""
    chosen_token: np.ndarray = column()
    """[row] the chosen answer's token."""
    rejected_token: np.ndarray = column()
    """[row] the rejected answer's token."""
    inner: np.ndarray = column("nats²")
    """[row] ⟨g_w^t, g_l^u⟩."""

    trained: str = fact()
    """Which weights would be trained."""

    def summary(self) -> str:
        """The two tokens whose gradients meet most."""
        if not self.rows():
            return "There is no pair to look at."
        most = int(np.argmax(np.abs(self.inner)))
        ours, theirs = (
            token[most].strip() or token[most] for token in (self.chosen_token, self.rejected_token)
        )
        return (
            f"Of ⟨g_w, g_l⟩ = {self.total.value:.3g} nats² the largest part, "
            f"{self.inner[most]:.3g}, is that of “{ours}” in the chosen and “{theirs}” in the "
            f"rejected answer of pair {self.pair[most]}."
        )

    def figure(self) -> "figures.Figure | None":
        """The map of the first pair."""
        if not self.rows():
            return None
        mine = self.pair == self.pair[0]
        down, across = (
            np.unique(place[mine])[:WIDEST]
            for place in (self.chosen_position, self.rejected_position)
        )
        shown = mine & np.isin(self.chosen_position, down)
        shown &= np.isin(self.rejected_position, across)
        # Rows come by place in the chosen answer, then in the rejected.
        size = len(down), len(across)
        return figures.heatmap(
            self.inner[shown].reshape(size),
            rows=self.chosen_token[shown].reshape(size)[:, 0],
            columns=self.rejected_token[shown].reshape(size)[0],
            xlabel=f"tokens of the rejected answer of pair {self.pair[0]}",
            ylabel="tokens of the chosen answer",
            label="⟨g_w, g_l⟩ [nats²]",
            room=WIDEST,
        )


class TokenMap(Metric[TokenMapResult]):
    """What each token of one answer has to do with each of the other, for pairs asked for.

    Args:
        pairs: Numbers of the pairs in their file, from 0.
        trained: Patterns that name the weights to be trained.
    """

    wants = Wants(causal=True, same_tokens=True, graph=True)

    kinds = ("preference",)

    def __init__(self, pairs: Sequence[int] = (0,), trained: Sequence[str] = ("*",)) -> None:
        self.asked, self.trained = tuple(pairs), tuple(trained)
        self.cells, self.sums = Rows(1, ("pair",), {"pair": int}), PerDocument(1)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Find the pairs.

        Raises:
            DriftlensError: One of them is not shown.
        """
        super().begin(pair, encoder)
        shown = {self._number(window.example) for window in encoder.plan}
        if missing := [number for number in self.asked if number not in shown]:
            raise DriftlensError(
                "pairs to map that are among those that are shown",
                found=f"{missing[0]}, and {len(shown)} are shown, {min(shown)} to {max(shown)}",
                remedy="Count the records from 0; pairs that were left out have no map.",
            )
        numbers = ("document", "other", "pair", "chosen_position", "rejected_position")
        order = ("document", "chosen_position", "rejected_position")
        columns = dict.fromkeys(numbers, np.int64) | {"inner": np.float64}
        self.cells, self.sums = Rows(CELLS, order, columns), PerDocument(1)

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        rows, tokens = (place.cpu().numpy() for place in frame.aligned.batch.target)
        for first in range(0, len(frame.windows), 2):
            window = frame.windows[first]
            if (number := self._number(window.example)) not in self.asked:
                continue
            whole = frame.products(self.trained).total[first // 2, 0, 1]
            self.sums.update([window.example], [[float(whole)]])
            model = plain(self.pair.aligned)
            both = self.encoder.encode(frame.windows[first : first + 2])[1]
            (found,) = by_scored_token(model, both, trainable(model, self.trained))
            places = [
                frame.places[row, tokens[rows == row]][:, None].T for row in (first, first + 1)
            ]
            down, across = np.broadcast_arrays(places[0].T, places[1])
            same = {
                "document": window.example,
                "other": frame.windows[first + 1].example,
                "pair": number,
            }
            self.cells.update(
                chosen_position=down.ravel(),
                rejected_position=across.ravel(),
                inner=found.numpy().ravel(),
                **{name: np.full(down.size, what) for name, what in same.items()},
            )

    def compute(self) -> TokenMapResult:
        """The result of all that was seen so far."""
        table = self.cells.table()
        cut = self.cells.seen - len(table["pair"])
        return TokenMapResult.of(
            total=float(table["inner"].sum()) if not cut else np.nan,
            inner_of_pairs=float(self.sums.sums.sum()),
            pair=table["pair"],
            chosen_position=table["chosen_position"],
            rejected_position=table["rejected_position"],
            chosen_token=self.encoder.texts(table["document"], table["chosen_position"]),
            rejected_token=self.encoder.texts(table["other"], table["rejected_position"]),
            inner=table["inner"],
            trained=", ".join(self.trained),
            notes=(f"{cut} products of the last pairs have no room.",) if cut else (),
        )

    def _number(self, document: int) -> int:
        """The number of the record that an answer is of."""
        group = self.encoder.pack.examples[document].group
        return group if isinstance(group, int) else self.encoder.pack.clusters[document]
