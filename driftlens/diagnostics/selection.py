"""Which of many directions to take: by what ablating and adding each of them does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from driftlens.formulas.streams import PerDocument
from driftlens.metric import Metric
from driftlens.models import Frame, Trace, Wants
from driftlens.models.hooks import HookedModel
from driftlens.models.hybrid import plain
from driftlens.models.model import Edits
from driftlens.models.sites import Part, Site
from driftlens.models.steering import Ablate, Add, Steer, edits_at
from driftlens.models.sweep import edited, start_of, stream_at
from driftlens.packs import TWINS
from driftlens.results import Estimate, Result, column, fact, figures, value
from driftlens.sweeps import Choices

EVERYWHERE: tuple[Part, ...] = ("in", "attn", "mlp")
"""Where a direction is taken away: at what enters each block and at what its parts add."""

SCORES = ("bypass", "induce", "kl")
"""What each candidate is judged by."""

TINY = 1e-8
"""Probability below which log-odds go no further, as published."""


@dataclass(frozen=True)
class DirectionSelectionResult(Result):
    """Directions at several tokens and blocks, judged by what they do."""

    kind = "direction_selection"
    title = "Which direction to take"
    how = """
For each of the last tokens that all prompts share (the end of the instruction) and each block, \
the difference of means of the two roles on one part of the prompts, judged on the others (Arditi \
et al. 2024, appendix C). score = ln p − ln(1 − p), p the probability of the tokens with which \
agreeing answers (such as refusals) begin. bypass: mean score on positive prompts with the \
direction ablated from what enters every block and from what attention and MLPs add, at all \
tokens; induce: mean score on negative prompts with the direction, at its own length, added after \
its block at all tokens; kl: mean KL divergence of the next token on negative prompts, ablated \
against not, in nats. Kept are those with induce ≥ 0, kl ≤ 0.1 and a block among the lower ones \
(80 % unless asked otherwise); of these the one with the least bypass is taken.
""".strip()

    bypass_chosen: Estimate = value("log-odds")
    """bypass of the one that is taken; NaN if none is."""
    induce_chosen: Estimate = value("log-odds")
    """induce of it."""
    kl_chosen: Estimate = value("nats")
    """kl of it."""
    positive_still: Estimate = value("log-odds")
    """Mean score on positive prompts of the model as it is."""
    negative_still: Estimate = value("log-odds")
    """Mean score on negative prompts of the model as it is."""

    position: np.ndarray = column()
    """[row] the token, −1 being the last of the prompt."""
    layer: np.ndarray = column()
    """[row] number of the block."""
    bypass: np.ndarray = column("log-odds")
    """[row] mean score on positive prompts, ablated."""
    induce: np.ndarray = column("log-odds")
    """[row] mean score on negative prompts, added."""
    kl: np.ndarray = column("nats")
    """[row] mean KL on negative prompts, ablated."""
    reason: np.ndarray = column()
    """[row] why it is not kept; empty of those that are."""
    norm: np.ndarray = column("of the stream")
    """[row] its length."""

    model: str = fact()
    """Of which model."""
    chosen_position: int = fact()
    """The token of the one that is taken; 0 if none is."""
    chosen_layer: int = fact()
    """Its block; −1 if none is."""
    positive: int = fact("prompts")
    """Positive prompts that directions were judged on."""
    negative: int = fact("prompts")
    """Negative ones."""

    @property
    def found(self) -> bool:
        """Whether one is taken."""
        return self.chosen_layer >= 0

    def summary(self) -> str:
        """What is taken and what it does."""
        count = len(self.layer)
        if not self.found:
            return (
                f"None of {count} directions of {self.model} passes (most often: "
                f"{_most(self.reason.tolist())}). Unsteered, the log-odds of agreeing are "
                f"{self.positive_still.value:.2f} on positive prompts and "
                f"{self.negative_still.value:.2f} on negative ones."
            )
        return (
            f"Of {count} directions of {self.model} the one at token {self.chosen_position} after "
            f"block {self.chosen_layer} is taken: ablated, the log-odds of agreeing on positive "
            f"prompts fall from {self.positive_still.value:.2f} to {self.bypass_chosen.value:.2f}; "
            f"added, those on negative prompts rise from {self.negative_still.value:.2f} to "
            f"{self.induce_chosen.value:.2f}; KL {self.kl_chosen.value:.3f} nats."
        )

    def figure(self) -> "figures.Figure":
        """The three criteria by block, a line for each token."""
        figure, panels = figures.panels(3)
        tokens = sorted(set(self.position.tolist()), reverse=True)
        for panel, name, still in (
            (panels[0], "bypass", self.positive_still.value),
            (panels[1], "induce", self.negative_still.value),
            (panels[2], "kl", None),
        ):
            rows = {f"token {token}": self.position == token for token in tokens[:5]}
            lines = {said: getattr(self, name)[mine] for said, mine in rows.items()}
            layers = self.layer[self.position == tokens[0]]
            if still is not None:
                lines["unsteered"] = np.full(len(layers), still)
            figures.curves(layers, lines, xlabel="block", ylabel=self.label(name), on=panel)
        return figure


def _most(reasons: Sequence[str]) -> str:
    each = [one for reason in reasons for one in reason.split("; ") if one]
    return max(set(each), key=lambda one: (each.count(one), one))


class Candidates(Metric[Result]):
    """Keeps what ablating and adding each of some directions does to the end of each prompt.

    Args:
        reading: Prompts, each with answers that agree and its role.
        vectors: By candidate and block, [width] directions at their own length.
        side: 0 of base, 1 of aligned.
    """

    def __init__(
        self, reading: Choices, vectors: Mapping[tuple[int, int], np.ndarray], side: int
    ) -> None:
        self.reading, self.side = reading, side
        self.vectors = {key: torch.from_numpy(np.array(v)) for key, v in vectors.items()}
        self.wants = Wants(frozenset({"out"}), None, causal=True, same_tokens=True)
        self.sums = PerDocument(1 + len(SCORES) * len(self.vectors))

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        pair = self.pair
        model = plain((pair.base, pair.aligned)[self.side])
        trace = (frame.base, frame.aligned)[self.side]
        documents = frame.scored.document
        roles = [self.reading.pack.examples[int(n)].role for n in documents]
        positive = torch.tensor([role == TWINS[0] for role in roles])
        here = trace.batch.mask
        still = model.readout(trace.predictors)
        columns = [self._score(still, documents)]
        for (_, layer), vector in self.vectors.items():
            parts = [part for part in EVERYWHERE if part == "in" or model.has(Site(0, part))]
            ablated = self._logits(
                model, trace, edits_at(model, [Steer(Ablate(vector), None, p) for p in parts], here)
            )
            norm = float(vector.norm())
            added = self._logits(
                model, trace, edits_at(model, Steer(Add(vector, 1.0, norm=norm), layer), here)
            )
            bypass, induce = self._score(ablated, documents), self._score(added, documents)
            kl = _divergence(still, ablated).cpu()
            none = torch.zeros(len(documents), dtype=torch.float64)
            columns += [
                torch.where(positive, bypass, none),
                torch.where(positive, none, induce),
                torch.where(positive, none, kl),
            ]
        self.sums.update(documents, torch.stack(columns, 1))

    def _logits(self, model: HookedModel, trace: Trace, edits: Edits) -> Tensor:
        site = stream_at(start_of(edits))
        return model.readout(edited(model, trace.batch, trace.activations[site], edits))

    def _score(self, logits: Tensor, documents: np.ndarray) -> Tensor:
        """[prompt] log-odds of the tokens that agree."""
        p = self.reading.scores(logits, logits[:, 0], documents, self.side)[1].cpu()
        return (p + TINY).log() - (1 - p + TINY).log()

    def compute(self) -> Result:
        """Nothing but what was kept."""
        return Result()

    def means(self) -> dict[str, Any]:
        """Mean scores: unsteered on either role, and [candidate] each of `SCORES`."""
        sums, documents = self.sums.sums, self.sums.documents
        roles = np.array([self.reading.pack.examples[n].role for n in documents.tolist()])
        positive = roles == TWINS[0]
        whole = sums[:, 1:].reshape(len(sums), len(self.vectors), len(SCORES))
        rows = {"bypass": positive, "induce": ~positive, "kl": ~positive}
        found: dict[str, Any] = {
            name: whole[mine, :, place].mean(0) for place, (name, mine) in enumerate(rows.items())
        }
        return found | {
            "positive": float(sums[positive, 0].mean()),
            "negative": float(sums[~positive, 0].mean()),
            "counts": (int(positive.sum()), int((~positive).sum())),
        }


def _divergence(still: Tensor, ablated: Tensor) -> Tensor:
    """[row] KL of the next token, the model as it is against the ablated one, in nats."""
    p, q = (z.double().log_softmax(1) for z in (still, ablated))
    return (p.exp() * (p - q)).sum(1)


def selected(
    means: Mapping[str, Any],
    vectors: Mapping[tuple[int, int], np.ndarray],
    model: str,
    depth: float = 0.8,
) -> DirectionSelectionResult:
    """The result of what candidates did.

    Args:
        means: What `Candidates.means` gives.
        vectors: By token (0 being the last) and block, the directions, in the same order.
        model: Of which model.
        depth: Share of the blocks, from the bottom, that may be chosen from.
    """
    from driftlens.estimators import select_direction

    tokens = sorted({token for token, _ in vectors})
    layers = sorted({layer for _, layer in vectors})
    grid = {name: np.full((len(tokens), layers[-1] + 1), np.nan) for name in SCORES}
    for number, (token, layer) in enumerate(vectors):
        for name, cells in grid.items():
            cells[tokens.index(token), layer] = means[name][number]
    found = select_direction(*(grid[name] for name in SCORES), depth=depth)
    rows = [(tokens.index(token), layer) for token, layer in vectors]
    chosen = None if found.layer is None else (found.position, found.layer)
    return DirectionSelectionResult.of(
        **{
            f"{name}_chosen": np.nan if chosen is None else float(grid[name][chosen])
            for name in SCORES
        },
        positive_still=means["positive"],
        negative_still=means["negative"],
        position=[-1 - token for token, _ in vectors],
        layer=[layer for _, layer in vectors],
        **{name: means[name] for name in SCORES},
        reason=[found.reasons[place] for place in rows],
        norm=[float(np.linalg.norm(v)) for v in vectors.values()],
        model=model,
        chosen_position=0 if chosen is None else -1 - tokens[int(chosen[0] or 0)],
        chosen_layer=-1 if chosen is None else int(chosen[1]),
        positive=means["counts"][0],
        negative=means["counts"][1],
    )
