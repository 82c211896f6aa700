"""Which tokens the loss falls on."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from driftlens.formulas.streams import PerDocument, Rows
from driftlens.formulas.words import KINDS
from driftlens.metric import Metric
from driftlens.models import Frame
from driftlens.results import (
    DocumentView,
    Estimate,
    Result,
    TextView,
    TokenView,
    column,
    fact,
    figures,
    value,
)

ROWS = 200_000
"""Tokens that are kept one by one."""

SHOWN = 6
"""Documents that the page shows in full."""

COMMON = 0.02
"""The share of the tokens that a kind must have to be named as the hardest hit."""

COLUMNS = {
    "document": np.int64,
    "position": np.int64,
    "base_logprob": np.float64,
    "aligned_logprob": np.float64,
    "rise": np.float64,
    "base_rank": np.int64,
    "aligned_rank": np.int64,
}


@dataclass(frozen=True)
class TokenForgettingResult(Result):
    """The rise in loss of each scored token."""

    kind = "token_forgetting"
    title = "Forgetting by token"
    how = """
For every scored token the log-probability that each model gave it after the same text, in nats; \
rise = base − aligned, above 0 is worse, and the rises of a document add up to its own. A rank is \
the number of tokens with a strictly greater logit: 0 is the model's first choice. The worst \
tokens are shown within the documents whose mean rise is largest.

The choice of what is shown is ours.
""".strip()

    document: np.ndarray = column()
    """[row] number of the document in its pack, from 0."""
    position: np.ndarray = column()
    """[row] place of the token in it; an added beginning-of-text token is place 0."""
    token: np.ndarray = column()
    """[row] the token's text."""
    base_logprob: np.ndarray = column("nats")
    """[row] log-probability by base."""
    aligned_logprob: np.ndarray = column("nats")
    """[row] log-probability by aligned."""
    rise: np.ndarray = column("nats")
    """[row] base − aligned."""
    base_rank: np.ndarray = column()
    """[row] tokens that base held more likely; −1 if the tokenizers differ."""
    aligned_rank: np.ndarray = column()
    """[row] the same of aligned."""

    seen: int = fact("tokens")
    """Scored tokens in all, kept one by one or not."""

    near_zero: ClassVar[tuple[str, ...]] = ("rise",)

    def summary(self) -> str:
        """The single worst token in its context."""
        if not len(self.rise):
            return "No token was scored."
        worst = int(self.rise.argmax())
        if self.rise[worst] <= 0:
            return f"None of {self.seen} tokens got worse."
        around = self._around(worst)
        return (
            f"The worst of {self.seen} tokens is “{self.token[worst].strip() or '␣'}” in "
            f"“{around}”: its probability fell from {np.exp(self.base_logprob[worst]):.3f} to "
            f"{np.exp(self.aligned_logprob[worst]):.2g}."
        )

    def figure(self) -> "figures.Figure | None":
        """How the rises are spread."""
        if not np.ptp(self.rise) if len(self.rise) else True:
            return None
        limit = max(float(np.quantile(np.abs(self.rise), 0.995)), 1e-9)
        counts, edges = np.histogram(self.rise.clip(-limit, limit), 41, (-limit, limit))
        return figures.curves(
            (edges[:-1] + edges[1:]) / 2,
            {"tokens": counts / len(self.rise)},
            xlabel="rise in loss [nats]",
            ylabel="share of tokens",
        )

    def views(self) -> tuple[TextView, ...]:
        """The documents whose mean rise is largest, token by token."""
        documents, places = np.unique(self.document, return_inverse=True)
        if not len(documents):
            return ()
        counts = np.bincount(places)
        means = np.bincount(places, self.rise) / counts
        order = np.argsort(-means, kind="stable")
        shown = [self._document(int(documents[i]), float(means[i])) for i in order[:SHOWN]]
        return (TextView("The documents that lost most, token by token", shown),)

    def _document(self, number: int, mean: float) -> DocumentView:
        rows = np.flatnonzero(self.document == number)
        tokens = [
            TokenView(
                self.token[i],
                float(self.rise[i]),
                f"base p {np.exp(self.base_logprob[i]):.3g} (rank {self.base_rank[i]}), "
                f"aligned p {np.exp(self.aligned_logprob[i]):.3g} "
                f"(rank {self.aligned_rank[i]}), rise {self.rise[i]:+.2f} nats",
            )
            for i in rows[:400]
        ]
        return DocumentView(f"document {number}: {mean:+.3f} nats a token", tokens)

    def _around(self, row: int) -> str:
        first = max(0, row - 8)
        near = [i for i in range(first, row + 1) if self.document[i] == self.document[row]]
        return "".join(self.token[i] for i in near).strip()


class TokenForgetting(Metric[TokenForgettingResult]):
    """The rise in loss of each scored token.

    Args:
        rows: How many tokens to keep one by one: those of the first documents.
    """

    def __init__(self, rows: int = ROWS) -> None:
        self.rows = Rows(rows, ("document", "position"), COLUMNS)

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        base, aligned = frame.likelihoods
        c = frame.comparison if frame.encoder.same else None
        unknown = torch.full(base.shape, -1)
        self.rows.update(
            document=frame.scored.document,
            position=frame.scored.position,
            base_logprob=base,
            aligned_logprob=aligned,
            rise=base - aligned,
            base_rank=unknown if c is None else c.base_rank,
            aligned_rank=unknown if c is None else c.aligned_rank,
        )

    def compute(self) -> TokenForgettingResult:
        """The result of all that was seen so far."""
        table = self.rows.table()
        texts = self.encoder.texts(table["document"], table["position"])
        kept = len(table["rise"])
        note = f"The first {kept} of {self.rows.seen} tokens are kept one by one."
        return TokenForgettingResult.of(
            token=texts,
            seen=self.rows.seen,
            notes=(note,) if kept < self.rows.seen else (),
            **table,
        )


@dataclass(frozen=True)
class TokenKindsResult(Result):
    """Which kinds of token carry the loss."""

    kind = "token_kinds"
    title = "Forgetting by kind of token"
    how = """
Each token takes the kind of the word that contains it: number, name (a capitalised word that \
does not merely begin a sentence), function word, punctuation, code, other word, whitespace, or \
special. rise = mean rise in loss over the kind's tokens; of_loss = the kind's part of the whole \
rise. Intervals: 95 % bootstrap over documents.

    of_loss(kind) = Σ of the rises of its tokens / Σ of all rises

The kinds are ours.
""".strip()

    total: Estimate = value("nats/token")
    """Mean rise in loss over all kinds."""

    token_kind: np.ndarray = column()
    """[row] the kind."""
    tokens: np.ndarray = column("tokens")
    """[row] scored tokens of it."""
    rise: np.ndarray = column("nats/token")
    """[row] mean rise in loss."""
    low: np.ndarray = column("nats/token")
    """[row] lower end of its 95 % interval."""
    high: np.ndarray = column("nats/token")
    """[row] upper end of it."""
    base_loss: np.ndarray = column("nats/token")
    """[row] mean loss of base."""
    of_loss: np.ndarray = column("of the rise")
    """[row] part of the whole rise; NaN where there is none."""

    near_zero: ClassVar[tuple[str, ...]] = ("total", "rise")
    adds: ClassVar[tuple[str, ...]] = ("total",)

    def summary(self) -> str:
        """The kind that lost most a token, and those that carry most of the loss."""
        if not len(self.rise):
            return "No token was scored."
        if not (self.above_floor("rise") & (self.rise != 0)).any():
            return "No kind of token got worse or better by what can be told from noise."
        worst = int(np.nanargmax(self.rise))
        bounds = f" ({self.low[worst]:.3f} to {self.high[worst]:.3f})"
        return (
            f"Tokens of kind “{self.token_kind[worst]}” lost most, {self.rise[worst]:.3f} nats"
            f"{bounds if np.isfinite(self.high[worst]) else ''}; "
            f"{self.headline() or 'no kind carries the loss'}."
        )

    def headline(self) -> str:
        """The kinds that together carry most of the loss, and the one that lost most a token."""
        # What may be no loss at all, or is a gain, is not divided among kinds.
        if not self.total.value > self.floor.get("total", 0.0) or self.total.low <= 0:
            return ""
        order = np.argsort(-self.of_loss, kind="stable")
        enough = int(np.searchsorted(np.cumsum(self.of_loss[order]), 0.5)) + 1
        names = [_plural(self.token_kind[i]) for i in order[:enough]]
        said = "mostly " + " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
        common = self.tokens >= COMMON * self.tokens.sum()
        hardest = _plural(self.token_kind[np.argmax(np.where(common, self.rise, -np.inf))])
        return said if hardest in names else f"{said}, hardest on {hardest}"

    def figure(self) -> "figures.Figure | None":
        """Mean rise by kind."""
        if not len(self.rise):
            return None
        return figures.bars(
            self.token_kind,
            self.rise,
            self.low,
            self.high,
            xlabel="kind of token",
            ylabel="rise in loss [nats/token]",
            floor=self.floor.get("rise"),
        )


class TokenKinds(Metric[TokenKindsResult]):
    """Which kinds of token carry the loss.

    Args:
        seed: Of the bootstrap.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.sums = PerDocument(3 * len(KINDS))

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        base, aligned = (side.numpy() for side in frame.likelihoods)
        scored = frame.scored
        rows = np.zeros((len(base), len(KINDS), 3))
        here = np.arange(len(base))
        rows[here, frame.kind_of_scored] = np.stack([np.ones_like(base), base - aligned, -base], 1)
        self.sums.update(scored.document, rows.reshape(len(base), -1))

    def compute(self) -> TokenKindsResult:
        """The result of all that was seen so far."""
        sums = self.sums.sums.reshape(-1, len(KINDS), 3)
        present = np.flatnonzero(sums[..., 0].sum(0))
        sums = sums[:, present]
        found = self.intervals(sums[..., 1], sums[..., 0], self.sums.documents)
        tokens, rise, loss = sums.sum(0).T
        whole = sums.sum(1)
        total = self.intervals(whole[:, 1], whole[:, 0], self.sums.documents)
        with np.errstate(invalid="ignore", divide="ignore"):
            return TokenKindsResult.of(
                total=Estimate(*map(float, total)),
                token_kind=[KINDS[i] for i in present],
                tokens=tokens.astype(np.int64),
                rise=found.estimate,
                low=found.low,
                high=found.high,
                base_loss=loss / tokens,
                of_loss=rise / rise.sum(),
            )


def _plural(kind: str) -> str:
    return kind if kind in ("punctuation", "code", "whitespace") else f"{kind}s"
