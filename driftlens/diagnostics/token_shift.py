"""Which tokens alignment made the model say: unshifted, marginal and shifted first choices."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from driftlens.formulas import shift
from driftlens.formulas.streams import Counts, PerDocument, Rows
from driftlens.formulas.words import KINDS
from driftlens.metric import Metric
from driftlens.models import Frame, ModelPair, Wants
from driftlens.models.model import rows_of
from driftlens.models.tokens import Encoder
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

POSITIONS = {"1": 0, "2": 1, "3–5": 2, "6–10": 5, "11–20": 10, "later": 20}
"""Stretches of the scored tokens of a document by name, and where each begins."""

FIRSTS = (5, 10, 20)
"""How many of a document's first scored tokens are looked at by themselves."""

CHANGES = 2
"""Numbers kept for each document of the first choices that changed."""

STATISTICS = (
    "tokens",
    *shift.CLASSES,
    "kl_aligned_base",
    "kl_base_aligned",
    "within_5",
    "aligned_probability",
    "base_probability",
    "known",
)
"""What is summed over the tokens of every position and of every kind."""

PLACES = (*POSITIONS, *KINDS)
"""Stretches and kinds: each token counts once among either."""


@dataclass(frozen=True)
class TokenShiftResult(Result):
    """How often what aligned would say first is not what base would say."""

    kind = "token_shift"
    title = "Token shift"
    over = "What alignment changed"
    how = """
After the same text, what does aligned hold likeliest, and what does base say of that token? η = \
how many tokens base holds strictly likelier (a tie counts as equal). A place is unshifted if \
η = 0, marginal if η is 1 or 2, shifted if η is 3 or more, or if base has no such token. KL is \
exact, over the whole vocabulary, both ways, and does not see only the first choice.

Positions count the scored tokens of a document from 1, so that of an answer after a prompt they \
count from the prompt's end. kl_in_first_k = Σ KL(aligned ‖ base) over the first k scored tokens \
of every document, of the same sum over all of them; tokens_in_first_k is what that would be if \
the divergence were the same everywhere. A kind is that of the word that stands in the text, as \
in the forgetting by kind: of aligned's own greedy answers it is the word that aligned wants.

The protocol is published for aligned's own greedy answers; of other texts it says what the two \
models would say next wherever the text is. Intervals: 95 % bootstrap over documents.

Sources: Lin et al. (2024), "The Unlocking Spell on Base LLMs" (the classes); Qi et al. (2025), \
"Safety Alignment Should Be Made More Than Just a Few Tokens Deep" (the first tokens' KL).
""".strip()

    shifted_share: Estimate = value("of tokens")
    """Share of scored places where base ranks aligned's first choice fourth or lower."""
    marginal_share: Estimate = value("of tokens")
    """Share where it is base's second or third choice."""
    unshifted_share: Estimate = value("of tokens")
    """Share where it is base's first choice too."""
    within_5: Estimate = value("of tokens")
    """Share where it is among base's five likeliest."""
    base_probability: Estimate = value("probability")
    """Mean probability that base gives to aligned's first choice."""
    aligned_probability: Estimate = value("probability")
    """Mean probability that aligned gives to it."""
    kl_aligned_base: Estimate = value("nats/token")
    """Mean KL(aligned ‖ base), at least 0."""
    kl_base_aligned: Estimate = value("nats/token")
    """Mean KL(base ‖ aligned), at least 0."""
    kl_in_first_5: Estimate = value("of the KL")
    """Share of KL(aligned ‖ base) in the first 5 scored tokens of the documents."""
    kl_in_first_10: Estimate = value("of the KL")
    """Share in the first 10."""
    kl_in_first_20: Estimate = value("of the KL")
    """Share in the first 20."""

    by: np.ndarray = column()
    """[row] `position` or `kind`: what the tokens are divided by."""
    where: np.ndarray = column()
    """[row] which positions in the scored part, or which kind of token."""
    tokens: np.ndarray = column("tokens")
    """[row] scored tokens there."""
    unshifted: np.ndarray = column("of tokens")
    """[row] share of them that is unshifted."""
    marginal: np.ndarray = column("of tokens")
    """[row] share that is marginal."""
    shifted: np.ndarray = column("of tokens")
    """[row] share that is shifted."""
    shifted_low: np.ndarray = column("of tokens")
    """[row] lower end of its 95 % interval."""
    shifted_high: np.ndarray = column("of tokens")
    """[row] upper end of it."""
    row_kl_aligned_base: np.ndarray = column("nats/token")
    """[row] mean KL(aligned ‖ base)."""
    row_kl_aligned_base_low: np.ndarray = column("nats/token")
    """[row] lower end of its 95 % interval."""
    row_kl_aligned_base_high: np.ndarray = column("nats/token")
    """[row] upper end of it."""
    row_kl_base_aligned: np.ndarray = column("nats/token")
    """[row] mean KL(base ‖ aligned)."""
    row_kl_base_aligned_low: np.ndarray = column("nats/token")
    """[row] lower end of its 95 % interval."""
    row_kl_base_aligned_high: np.ndarray = column("nats/token")
    """[row] upper end of it."""

    scored: int = fact("tokens")
    """Scored tokens."""
    of_documents: int = fact("documents")
    """Documents they stand in."""
    tokens_in_first_5: float = fact("of tokens")
    """Share of the scored tokens that are among their document's first 5."""
    tokens_in_first_10: float = fact("of tokens")
    """Share among the first 10."""
    tokens_in_first_20: float = fact("of tokens")
    """Share among the first 20."""

    near_zero: ClassVar[tuple[str, ...]] = (
        "shifted_share",
        "marginal_share",
        "kl_aligned_base",
        "kl_base_aligned",
        "shifted",
        "marginal",
        "row_kl_aligned_base",
        "row_kl_base_aligned",
    )

    def summary(self) -> str:
        """The three shares, and how much of the divergence lies in the first tokens."""
        if not self.scored:
            return "No token was scored."
        said = (
            f"Of {self.scored} first choices of aligned {self.unshifted_share.value:.1%} are "
            f"base's too, {self.marginal_share.value:.1%} are base's second or third, and "
            f"{self._shifted()} are shifted; KL(aligned ‖ base) is {self.kl_aligned_base} nats "
            "a token"
        )
        if np.isnan(self.kl_in_first_5.value) or self.tokens_in_first_5 == 1:
            return f"{said}."
        return (
            f"{said}, {self.kl_in_first_5.value:.0%} of it in the first 5 scored tokens of a "
            f"document, which are {self.tokens_in_first_5:.0%} of the tokens."
        )

    def headline(self) -> str:
        """How many first choices are shifted."""
        if not self.scored or not self.above_floor("shifted_share"):
            return ""
        return f"{self.shifted_share.value:.1%} of its first choices are shifted"

    def figure(self) -> "figures.Figure | None":
        """The three classes, and the divergence, by position."""
        rows = self.by == "position"
        if not rows.any():
            return None
        figure, (left, right) = figures.panels(2)
        places, xlabel = [*self.where[rows]], "position among the scored tokens"
        parts = {name: getattr(self, name)[rows] for name in shift.CLASSES}
        figures.stacks(places, parts, xlabel=xlabel, ylabel="share of tokens", on=left)
        names = {"aligned_base": "KL(aligned ‖ base)", "base_aligned": "KL(base ‖ aligned)"}
        column = {name: f"row_kl_{name}" for name in names}
        figures.curves(
            places,
            {words: getattr(self, column[name])[rows] for name, words in names.items()},
            bands={
                words: (
                    getattr(self, f"{column[name]}_low")[rows],
                    getattr(self, f"{column[name]}_high")[rows],
                )
                for name, words in names.items()
            },
            xlabel=xlabel,
            ylabel="KL [nats/token]",
            floor=self.floor.get("row_kl_aligned_base"),
            on=right,
        )
        right.set_ylim(bottom=0)
        return figure

    def _shifted(self) -> str:
        """The shifted share with its interval."""
        share, low, high = self.shifted_share
        return f"{share:.1%} ({low:.1%} to {high:.1%})" if np.isfinite(low) else f"{share:.1%}"


class TokenShift(Metric[TokenShiftResult]):
    """How often what aligned would say first is not what base would say.

    Args:
        seed: Of the bootstrap.
    """

    wants = Wants(same_tokens=True)

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        # By document and place, as one number: most documents have tokens in a few places only.
        self.sums = PerDocument(len(STATISTICS))
        self.early = PerDocument(2 * len(FIRSTS))

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        order, statistics = frame.order_of_scored, _statistics(frame)
        position = np.digitize(order, [*POSITIONS.values()]) - 1
        for place in (position, len(POSITIONS) + frame.kind_of_scored):
            self.sums.update(frame.scored.document * len(PLACES) + place, statistics)
        divergence = statistics[:, STATISTICS.index("kl_aligned_base")]
        both = (divergence, np.ones(len(order)))
        early = [shift.within_first(values, order, FIRSTS) for values in both]
        self.early.update(frame.scored.document, np.concatenate(early, 1))

    def compute(self) -> TokenShiftResult:
        """The result of all that was seen so far."""
        sums = self._sums()
        whole = dict(zip(STATISTICS, sums[:, : len(POSITIONS)].sum(1).T, strict=True))
        unknown = int(whole["tokens"].sum() - whole["known"].sum())
        return TokenShiftResult.of(
            **{f"{name}_share": self._mean(whole, name) for name in shift.CLASSES},
            **{
                name: self._mean(whole, name, "known" if name == "base_probability" else "tokens")
                for name in STATISTICS[4:-1]
            },
            **self._early(whole),
            **self._rows(sums),
            scored=int(whole["tokens"].sum()),
            of_documents=len(sums),
            notes=(_UNKNOWN.format(unknown),) if unknown else (),
        )

    def _sums(self) -> np.ndarray:
        """[document, place, statistic] sums."""
        numbers, places = np.divmod(self.sums.documents, len(PLACES))
        found = np.zeros((len(self.early.documents), len(PLACES), len(STATISTICS)))
        found[np.searchsorted(self.early.documents, numbers), places] = self.sums.sums
        return found

    def _mean(self, whole: dict[str, np.ndarray], name: str, over: str = "tokens") -> Estimate:
        found = self.intervals(whole[name], whole[over], self.early.documents)
        return Estimate(*map(float, found))

    def _early(self, whole: dict[str, np.ndarray]) -> dict[str, Any]:
        """How much of the divergence, and how many of the tokens, come first in a document."""
        divergence, tokens = np.split(self.early.sums, 2, axis=1)
        found = self.intervals(divergence, whole["kl_aligned_base"], self.early.documents)
        with np.errstate(invalid="ignore"):
            even = tokens.sum(0) / whole["tokens"].sum()
        return {
            f"kl_in_first_{first}": Estimate(*(float(z[n]) for z in found))
            for n, first in enumerate(FIRSTS)
        } | {f"tokens_in_first_{first}": float(even[n]) for n, first in enumerate(FIRSTS)}

    def _rows(self, sums: np.ndarray) -> dict[str, Any]:
        present = np.flatnonzero(sums[..., 0].sum(0))
        found = self.intervals(sums[:, present, 1:6], sums[:, present, :1], self.early.documents)
        means, low, high = (np.moveaxis(z, -1, 0) for z in found)
        ends = {"_low": low, "_high": high}
        rows = dict(zip(shift.CLASSES, means, strict=False))
        rows |= {f"shifted{end}": z[2] for end, z in ends.items()}
        for n, name in enumerate(STATISTICS[4:6], 3):
            rows |= {f"row_{name}{end}": z[n] for end, z in {"": means, **ends}.items()}
        return rows | {
            "by": ["position" if n < len(POSITIONS) else "kind" for n in present],
            "where": [PLACES[n] for n in present],
            "tokens": sums[:, present, 0].sum(0).astype(np.int64),
        }


_UNKNOWN = (
    "{} of aligned's first choices are tokens that base does not have: they are shifted, and no "
    "probability by base is counted for them."
)


def _statistics(frame: Frame) -> np.ndarray:
    """[scored token, statistic] what is summed."""
    c = frame.comparison
    ranks = c.base_rank_of_top.numpy()
    known = ranks >= 0
    base = c.base_logprob_of_top.double().exp().numpy()
    found = {
        "tokens": np.ones(len(ranks)),
        "kl_aligned_base": c.kl_aligned_base.double().numpy(),
        "kl_base_aligned": c.kl_base_aligned.double().numpy(),
        "within_5": known & (ranks < 5),
        "aligned_probability": c.aligned_top_logprob.double().exp().numpy(),
        "base_probability": np.where(known, base, 0.0),
        "known": known,
    }
    classes = shift.classes(ranks)
    found |= {name: classes == n for n, name in enumerate(shift.CLASSES)}
    return np.stack([found[name].astype(np.float64) for name in STATISTICS], 1)


# The tokens themselves


KEPT = 2_000
"""Tokens that are kept one by one, those that gained most."""

SHOWN = 12
"""Tokens that the page shows with what precedes them."""

OFTEN = 20
"""Tokens that are named as most often newly chosen."""

CONTEXT = 60
"""Characters of text that are shown before a token."""

COLUMNS = {
    "gain": np.float64,
    "document": np.int64,
    "position": np.int64,
    "base_id": np.int64,
    "aligned_id": np.int64,
    "base_rank": np.int64,
    "base_logprob": np.float64,
    "aligned_logprob": np.float64,
    "base_own_logprob": np.float64,
}


@dataclass(frozen=True)
class ShiftedTokensResult(Result):
    """The tokens that aligned would say and base would not."""

    kind = "shifted_tokens"
    title = "The tokens that shifted"
    over = "What alignment changed"
    how = """
Every scored place at which aligned's first choice is not base's, those first at which aligned \
gives most more to it: gain = log p_aligned − log p_base of aligned's first choice, in nats. \
base_rank = how many tokens base holds strictly likelier. A token is newly chosen where it is \
shifted: aligned's first choice, and base's fourth or lower; `of` counts how often it is aligned's \
first choice at all.

Source: Lin et al. (2024), "The Unlocking Spell on Base LLMs" (the classes); the order by gain is \
ours.
""".strip()

    changed_share: Estimate = value("of tokens")
    """Share of scored places at which aligned's first choice is not base's."""

    document: np.ndarray = column()
    """[row] number of the document in its pack, from 0."""
    position: np.ndarray = column()
    """[row] place in it; an added beginning-of-text token is place 0."""
    context: np.ndarray = column()
    """[row] the text before it."""
    in_text: np.ndarray = column()
    """[row] the token that stands there."""
    base_says: np.ndarray = column()
    """[row] base's first choice."""
    aligned_says: np.ndarray = column()
    """[row] aligned's first choice."""
    base_own_probability: np.ndarray = column("probability")
    """[row] what base gives to its own first choice."""
    base_probability: np.ndarray = column("probability")
    """[row] what base gives to aligned's first choice; NaN if it has no such token."""
    aligned_probability: np.ndarray = column("probability")
    """[row] what aligned gives to it."""
    base_rank: np.ndarray = column()
    """[row] tokens that base holds likelier; −1 if it has no such token."""
    gain: np.ndarray = column("nats")
    """[row] log-probability by aligned less that by base."""

    newly_chosen: tuple[str, ...] = fact()
    """The tokens that are most often shifted."""
    newly_chosen_times: tuple[int, ...] = fact()
    """How often each of them is."""
    newly_chosen_of: tuple[int, ...] = fact()
    """How often each of them is aligned's first choice."""
    changed: int = fact("tokens")
    """Places where aligned's first choice is not base's, kept one by one or not."""
    seen: int = fact("tokens")
    """Scored tokens in all."""

    near_zero: ClassVar[tuple[str, ...]] = ("changed_share",)

    def summary(self) -> str:
        """The token that gained most, and those most often newly chosen."""
        if not self.rows():
            return "Nowhere is aligned's first choice another than base's."
        said = (
            f"At {self.changed} of {self.seen} places aligned's first choice is not base's; "
            f"most of all after “{self.context[0].strip()[-30:]}”, where it says "
            f"“{_seen(self.aligned_says[0])}” (probability {self.aligned_probability[0]:.2f}) and "
            f"base “{_seen(self.base_says[0])}”"
        )
        if not self.newly_chosen:
            return f"{said}."
        often = ", ".join(f"“{_seen(token)}”" for token in self.newly_chosen[:3])
        return f"{said}; most often newly chosen: {often}."

    def figure(self) -> "figures.Figure | None":
        """How often each of the tokens most often newly chosen is."""
        if len(self.newly_chosen) < 2:
            return None
        return figures.bars(
            [f"“{token}”" for token in self.newly_chosen],
            np.array(self.newly_chosen_times),
            xlabel="token",
            ylabel="times newly chosen",
        )

    def views(self) -> tuple[TextView, ...]:
        """What stands before the tokens that gained most."""
        shown = [self._place(row) for row in range(min(SHOWN, self.rows()))]
        title = "Where alignment changed the next token most"
        above = "aligned wants it more than base does"
        return (TextView(title, shown, above, below=""),) if shown else ()

    def _place(self, row: int) -> DocumentView:
        title = (
            f"aligned p {self.aligned_probability[row]:.3g}; base p "
            f"{self.base_probability[row]:.3g} (rank {self.base_rank[row]}); base would say "
            f"“{_seen(self.base_says[row])}” (p {self.base_own_probability[row]:.3g})"
        )
        tokens = [
            TokenView(self.context[row], np.nan, "the text before it"),
            TokenView(self.aligned_says[row], float(self.gain[row]), title),
        ]
        label = (
            f"document {self.document[row]}: “{_seen(self.aligned_says[row])}” instead of "
            f"“{_seen(self.base_says[row])}”"
        )
        return DocumentView(label, tokens)


class ShiftedTokens(Metric[ShiftedTokensResult]):
    """The tokens that aligned would say and base would not.

    Args:
        rows: How many places to keep one by one, those that gained most.
        seed: Of the bootstrap.
    """

    wants = Wants(same_tokens=True)

    def __init__(self, rows: int = KEPT, seed: int = 0) -> None:
        self.seed = seed
        self.places = Rows(rows, ("-gain", "document", "position"), COLUMNS)
        self.changes = PerDocument(CHANGES)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make room for the vocabulary."""
        super().begin(pair, encoder)
        self.chosen, self.shifted = (Counts(pair.aligned.vocabulary) for _ in range(2))

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        c = frame.comparison
        ranks, top = c.base_rank_of_top.numpy(), c.aligned_top.numpy()
        base, aligned = c.base_logprob_of_top.double(), c.aligned_top_logprob.double()
        self.chosen.update(top)
        self.shifted.update(top[shift.classes(ranks) == shift.CLASSES.index("shifted")])
        changed = ranks != 0
        of = frame.scored.document
        self.changes.update(of, np.stack([changed, np.ones(len(of))], 1))
        columns = {
            "gain": (aligned - base).numpy(),
            "document": of,
            "position": frame.scored.position,
            "base_id": c.base_top.numpy(),
            "aligned_id": top,
            "base_rank": ranks,
            "base_logprob": base.numpy(),
            "aligned_logprob": aligned.numpy(),
            "base_own_logprob": c.base_top_logprob.double().numpy(),
        }
        self.places.update(**{name: rows[changed] for name, rows in columns.items()})

    def compute(self) -> ShiftedTokensResult:
        """The result of all that was seen so far."""
        rows = self.places.table()
        base, aligned = self.encoder.tokenizers
        often = np.argsort(-self.shifted.counts, kind="stable")[:OFTEN]
        often = often[self.shifted.counts[often] > 0]
        context, in_text = self._texts(rows["document"], rows["position"])
        share, of = self.changes.sums.T
        changes = self.intervals(share, of, self.changes.documents)
        note = f"The {len(context)} of {self.places.seen} changed places that gained most."
        return ShiftedTokensResult.of(
            changed_share=Estimate(*map(float, changes)),
            document=rows["document"],
            position=rows["position"],
            context=context,
            in_text=in_text,
            base_says=_said(base, rows["base_id"]),
            aligned_says=_said(aligned, rows["aligned_id"]),
            base_own_probability=np.exp(rows["base_own_logprob"]),
            base_probability=np.exp(rows["base_logprob"]),
            aligned_probability=np.exp(rows["aligned_logprob"]),
            base_rank=rows["base_rank"],
            gain=rows["gain"],
            newly_chosen=tuple(_said(aligned, often)),
            newly_chosen_times=tuple(self.shifted.counts[often].tolist()),
            newly_chosen_of=tuple(self.chosen.counts[often].tolist()),
            changed=self.places.seen,
            seen=int(self.chosen.counts.sum()),
            notes=(note,) if len(context) < self.places.seen else (),
        )

    def _texts(self, documents: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[row] the text that precedes each token, and the token's own."""
        context, own = (np.empty(len(documents), dtype=object) for _ in range(2))
        # Document by document, so that each is cut into tokens once.
        order = np.argsort(documents, kind="stable")
        own[order] = self.encoder.texts(documents[order], positions[order])
        for row in order:
            number = int(documents[row])
            start = int(self.encoder.document(number).start[positions[row]])
            context[row] = self.encoder.pack.examples[number].text[max(0, start - CONTEXT) : start]
        return context, own


def _said(tokenizer: Any, ids: np.ndarray) -> np.ndarray:
    """[row] what tokens say; by name where they are a part of a letter, or no text at all."""
    found = np.empty(len(ids), dtype=object)
    known: dict[int, str] = {}
    for row, token in enumerate(ids.tolist()):
        if token not in known:
            said = tokenizer.decode([token])
            bare = not said or "\ufffd" in said
            known[token] = str(tokenizer.convert_ids_to_tokens(token)) if bare else said
        found[row] = known[token]
    return found


def _seen(token: str) -> str:
    return token.strip() or "␣"


# As published


@dataclass(frozen=True)
class PublishedShiftResult(Result):
    """What the published code would say of the same tokens."""

    kind = "token_shift_published"
    title = "Token shift, as published"
    over = "What alignment changed"
    how = """
The published code keeps the k likeliest tokens of either model and sums \
p_b log(p_b / p_a) over those in both, with probabilities renormalised over what each keeps. \
That is a part of a divergence: it may be negative, and where the two models part most they have \
least in common to sum over. jaccard = |T_b ∩ T_a| / |T_b ∪ T_a| of the 10 likeliest; overlap = \
Σ p_b p_a, how often one draw from each gives the same token. Where the vocabularies differ all is \
taken of the shared tokens. Intervals: 95 % bootstrap over documents.

Source: Lin et al. (2024), "The Unlocking Spell on Base LLMs", code of the token distribution \
shift analysis.
""".strip()

    published_kl: Estimate = value("nats/token")
    """Mean of what is published as KL(base ‖ aligned)."""
    subset_kl: Estimate = value("nats/token")
    """The same without renormalising."""
    exact_kl: Estimate = value("nats/token")
    """Mean KL(base ‖ aligned) over the whole vocabulary."""
    negative: Estimate = value("of tokens")
    """Share of tokens whose published KL is below 0."""
    jaccard: Estimate = value("of tokens")
    """Mean Jaccard index of the ten likeliest tokens."""
    overlap: Estimate = value("probability")
    """Mean probability that one draw from each model gives the same token."""

    kept: int = fact("tokens")
    """Likeliest tokens that are kept, k."""
    scored: int = fact("tokens")
    """Scored tokens."""

    near_zero: ClassVar[tuple[str, ...]] = ("published_kl", "subset_kl", "exact_kl")

    def summary(self) -> str:
        """The published number beside the exact one."""
        return (
            f"What is published as KL is {self.published_kl} nats a token, and below 0 at "
            f"{self.negative.value:.1%} of {self.scored} tokens; over the whole vocabulary it is "
            f"{self.exact_kl}."
        )


class PublishedShift(Metric[PublishedShiftResult]):
    """What the published code would say of the same tokens. It reads all logits once more.

    Args:
        k: Likeliest tokens that are kept of either model.
        seed: Of the bootstrap.
    """

    wants = Wants(same_tokens=True)

    def __init__(self, k: int = 30, seed: int = 0) -> None:
        self.k, self.seed = k, seed
        self.sums = PerDocument(7)

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        exact = frame.comparison.kl_base_aligned.double()
        found = torch.cat([self._published(*both) for both in _logits(frame)])
        columns = [torch.ones_like(exact), *found.double().cpu().T, exact]
        self.sums.update(frame.scored.document, torch.stack(columns, 1))

    def _published(self, base: torch.Tensor, aligned: torch.Tensor) -> torch.Tensor:
        renormalised, subset = (
            shift.kl_topk_intersection(base, aligned, self.k, renormalised=r) for r in (True, False)
        )
        jaccard, overlap = shift.jaccard_at(base, aligned), shift.overlap(base, aligned)
        return torch.stack([renormalised, subset, renormalised < 0, jaccard, overlap], 1)

    def compute(self) -> PublishedShiftResult:
        """The result of all that was seen so far."""
        sums = self.sums.sums
        found = self.intervals(sums[:, 1:], sums[:, :1], self.sums.documents)
        means = [Estimate(*map(float, one)) for one in zip(*found, strict=True)]
        names: Sequence[str] = ("published_kl", "subset_kl", "negative", "jaccard", "overlap")
        return PublishedShiftResult.of(
            **dict(zip((*names, "exact_kl"), means, strict=True)),
            kept=self.k,
            scored=int(sums[:, 0].sum()),
        )


def _logits(frame: Frame) -> Iterator[tuple[Tensor, Tensor]]:
    """[row, vocab] logits of both models at the scored tokens, some rows at a time."""
    base, aligned = frame.pair.readouts
    rows = rows_of(frame.pair.base.vocabulary + frame.pair.aligned.vocabulary)
    pieces = (frame.base.predictors.split(rows), frame.aligned.predictors.split(rows))
    for ours, theirs in zip(*pieces, strict=True):
        b, a = base(ours), aligned(theirs)
        if frame.pair.shared is not None:
            b, a = (z[:, i.to(z.device)] for z, i in zip((b, a), frame.pair.shared, strict=True))
        yield b, a
