"""Next-token distributions compared, from logits, in nats."""

from collections.abc import Iterator
from math import log
from typing import Any, NamedTuple

import torch
from torch import Tensor

LOG2_E = 1 / log(2)


def entropy(p: Tensor) -> Tensor:
    r"""Entropy :math:`-\sum_i p_i \log p_i`, in nats.

    Args:
        p: [*, vocab] logits of the distribution.

    Returns:
        [*] entropy, between 0 and ln vocab.
    """
    log_p = _at_least_float32(p).log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    r"""Kullback-Leibler divergence :math:`\sum_i p_i \log (p_i / q_i)`, in nats.

    Args:
        p: [*, vocab] logits of the first distribution.
        q: [*, vocab] logits of the second.

    Returns:
        [*] divergence, at least 0 and without an upper bound.
    """
    log_p, log_q = _at_least_float32(p).log_softmax(-1), _at_least_float32(q).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def js(p: Tensor, q: Tensor) -> Tensor:
    r"""Jensen-Shannon divergence, the mean KL to the midpoint, in nats.

    Args:
        p: [*, vocab] logits of the first distribution.
        q: [*, vocab] logits of the second.

    Returns:
        [*] divergence, between 0 and ln 2.
    """
    return _js(_at_least_float32(p).softmax(-1), _at_least_float32(q).softmax(-1))


def gold(logits: Tensor, target: Tensor) -> Tensor:
    r"""Log-probability of the gold id, :math:`z_g - \log \sum_i e^{z_i}`, in nats.

    It is `compare`'s `base_logprob` to the last bit, it can be differentiated, and it holds
    the exponentials of a few rows at a time.

    Args:
        logits: [row, vocab].
        target: [row] gold ids.

    Returns:
        [row] log-probability, at most 0; NaN where a logit is NaN or +inf.
    """
    return _Gold.apply(logits, target)


class _Gold(torch.autograd.Function):
    """`gold` with its own gradient, δ_{ig} − p_i: that of every slice would be as large as all."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        room = _room(logits)
        parts = [_gold(Weights.of(logits[rows], room), target[rows]) for rows in _slices(logits)]
        found = torch.cat(parts)
        ctx.save_for_backward(logits, target, found)
        return found

    @staticmethod
    def backward(ctx: Any, *by: Tensor) -> tuple[Tensor, None]:
        logits, target, found = ctx.saved_tensors
        # The logarithm of the sum is what gold's own logit is above its log-probability.
        total = (logits.gather(-1, target[:, None])[:, 0] - found)[:, None]
        gradient = torch.empty_like(logits)
        wide = logits.dtype == total.dtype
        for rows in _slices(logits):
            room = gradient[rows] if wide else torch.empty_like(logits[rows], dtype=total.dtype)
            torch.sub(logits[rows], total[rows], out=room)
            room.mul_(LOG2_E).exp2_().mul_(-by[0][rows, None])
            if not wide:
                gradient[rows] = room
        every = torch.arange(len(target), device=target.device)
        gradient[every, target] += by[0].to(gradient.dtype)
        return gradient, None


class Said(NamedTuple):
    """What a model says of its gold ids, and how sure it is."""

    logprob: Tensor
    """[row] log-probability of the gold id, in nats."""

    entropy: Tensor
    """[row] entropy over the whole vocabulary, in nats."""

    top_logprob: Tensor
    """[row] log-probability of the greatest logit, in nats."""

    hit: Tensor
    """[row] whether no logit is greater than that of the gold id."""


@torch.no_grad()
def said(logits: Tensor, target: Tensor) -> Said:
    """What `compare` tells of one model, from the exponentials that `gold` takes, to the last bit.

    Args:
        logits: [row, vocab].
        target: [row] gold ids.

    Returns:
        Its fields in float32 (float64 of float64 logits) and truths, where the logits are.
    """
    room = _room(logits)
    parts = [_said(Weights.of(logits[rows], room), target[rows]) for rows in _slices(logits)]
    return Said(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _said(w: "Weights", target: Tensor) -> Said:
    # A difference is 0 of equal numbers alone.
    hit = w.below.gather(-1, target[:, None])[:, 0] == 0
    return Said(_gold(w, target), _entropy(w), -w.total.log(), hit)


class Comparison(NamedTuple):
    """What two models say about the same rows.

    A row in which a logit is NaN or +inf is NaN wherever that logit has a say.
    Where an id is ruled out by −inf, entropy and KL are NaN as well.
    """

    base_logprob: Tensor
    """[row] log-probability of the gold id, in nats."""

    aligned_logprob: Tensor
    """[row] the same of the aligned model."""

    base_rank: Tensor
    """[row] how many ids have a strictly greater logit than the gold id; 0 is best, and −1 is
    a row without a distribution."""

    aligned_rank: Tensor
    """[row] the same of the aligned model."""

    base_entropy: Tensor
    """[row] entropy over the whole vocabulary, in nats."""

    aligned_entropy: Tensor
    """[row] the same of the aligned model."""

    kl_base_aligned: Tensor
    """[row] KL(base ‖ aligned) in nats; over the shared ids where vocabularies differ. Rounding
    may leave it a hair below 0."""

    kl_aligned_base: Tensor
    """[row] KL(aligned ‖ base) in nats, likewise."""

    base_top: Tensor
    """[row] id of the greatest logit."""

    aligned_top: Tensor
    """[row] the same of the aligned model."""

    base_top_logprob: Tensor
    """[row] log-probability of the greatest logit, in nats: how sure the model is."""

    aligned_top_logprob: Tensor
    """[row] the same of the aligned model."""

    base_logprob_of_top: Tensor
    """[row] log-probability that base gives to what aligned holds likeliest, in nats; where
    vocabularies differ, NaN if base has no such token."""

    base_rank_of_top: Tensor
    """[row] how many ids base holds strictly likelier than that one; −1 if it has no such token,
    or no distribution."""

    base_outside: Tensor
    """[row] probability of the ids that are not shared; 0 of equal vocabularies."""

    aligned_outside: Tensor
    """[row] the same of the aligned model."""


@torch.no_grad()
def compare(
    base: Tensor,
    aligned: Tensor,
    base_target: Tensor,
    aligned_target: Tensor,
    shared: tuple[Tensor, Tensor] | None = None,
) -> Comparison:
    """Both models' likelihoods, ranks and entropies, and the exact divergence between them.

    Every entry is exponentiated once, a few rows at a time, so that what is in hand stays in
    the cache. Equal logits have a divergence of exactly 0.

    Args:
        base: [row, vocab] logits of the base model.
        aligned: [row, vocab] logits of the aligned model.
        base_target: [row] gold ids in the base vocabulary.
        aligned_target: [row] the same tokens in the aligned vocabulary.
        shared: [id] ids in the base vocabulary and [id] the same tokens' ids in the aligned
            one, where the vocabularies differ. The divergence is then between the two
            distributions given that the token is a shared one.

    Returns:
        Its fields in float32 (float64 of float64 logits) and int64, where the logits are.
    """
    ids = None
    if shared is not None:
        ids = (
            Shared.of(shared[0].to(base.device), base.shape[-1]),
            Shared.of(shared[1].to(base.device), aligned.shape[-1]),
        )
    rooms = _room(base), _room(aligned)
    parts = [
        _compare(
            Weights.of(base[rows], rooms[0]),
            Weights.of(aligned[rows], rooms[1]),
            base_target[rows],
            aligned_target[rows],
            ids,
        )
        for rows in _slices(base)
    ]
    return Comparison(*(torch.cat(column) for column in zip(*parts, strict=True)))


@torch.no_grad()
def lens(base: Tensor, aligned: Tensor) -> tuple[Tensor, Tensor]:
    """KL(base ‖ aligned) and Jensen-Shannon divergence, a few rows at a time.

    Args:
        base: [row, vocab] logits read off the base model.
        aligned: [row, vocab] logits read off the aligned model.

    Returns:
        [row] KL and [row] Jensen-Shannon divergence, in nats.
    """
    rooms = _room(base), _room(aligned)
    parts = [
        _lens(Weights.of(base[rows], rooms[0]), Weights.of(aligned[rows], rooms[1]))
        for rows in _slices(base)
    ]
    kl_base_aligned, divergence = (torch.cat(column) for column in zip(*parts, strict=True))
    return kl_base_aligned, divergence


@torch.no_grad()
def gap(layer: Tensor, final: Tensor) -> Tensor:
    """KL(layer ‖ final), a few rows at a time: half of what `lens` costs.

    Args:
        layer: [row, vocab] logits read off a layer.
        final: [row, vocab] logits that the model ends up with.

    Returns:
        [row] KL, in nats.
    """
    rooms = _room(layer), _room(final)
    parts = [
        _kl(Weights.of(layer[rows], rooms[0]), Weights.of(final[rows], rooms[1]))
        for rows in _slices(layer)
    ]
    return torch.cat(parts)


class Weights(NamedTuple):
    """A few rows of logits as unnormalised probabilities."""

    logits: Tensor
    """[row, vocab] in float32 at least."""

    below: Tensor
    """[row, vocab] each logit less the greatest."""

    weight: Tensor
    """[row, vocab] exponential of `below`."""

    total: Tensor
    """[row] sum of the weights; NaN where there is no distribution."""

    @classmethod
    def of(cls, logits: Tensor, room: "Room | None" = None) -> "Weights":
        """The weights of [row, vocab] logits, in a room that the next slice may use again."""
        logits = _at_least_float32(logits)
        # Which one is greatest costs ten times as much to find as how great it is.
        top = logits.amax(-1, keepdim=True)
        # Powers of two are raised in half the time that powers of e take.
        if room is None:
            below = logits - top
            weight = (below * LOG2_E).exp2()
        else:
            below = torch.sub(logits, top, out=room[0][: len(logits)])
            weight = torch.mul(below, LOG2_E, out=room[1][: len(logits)]).exp2_()
        return cls(logits, below, weight, weight.sum(-1))

    def mean(self, values: Tensor) -> Tensor:
        """[row] mean of [row, vocab] values under the distribution."""
        return torch.linalg.vecdot(self.weight, values) / self.total

    def given(self, ids: "Shared") -> "Weights":
        """The weights of the shared ids alone, in their order."""
        weight = self.weight[:, ids.inside]
        return self._replace(below=self.below[:, ids.inside], weight=weight, total=weight.sum(-1))


class Shared(NamedTuple):
    """The ids of a vocabulary that the other one has too."""

    inside: Tensor | slice
    """The shared ids, in the order of the pairing."""

    outside: Tensor
    """[id] the others."""

    def ids(self, device: torch.device) -> Tensor:
        """[id] the shared ids, in the order of the pairing."""
        if isinstance(self.inside, slice):
            return torch.arange(self.inside.start, self.inside.stop, device=device)
        return self.inside

    @classmethod
    def of(cls, ids: Tensor, vocab: int) -> "Shared":
        """Shared ids of a vocabulary; consecutive ones become a slice, which copies nothing."""
        alone = torch.ones(vocab, dtype=torch.bool, device=ids.device)
        alone[ids] = False
        outside = alone.nonzero()[:, 0]
        first = int(ids[0]) if len(ids) else 0
        if torch.equal(ids, torch.arange(first, first + len(ids), device=ids.device)):
            return cls(slice(first, first + len(ids)), outside)
        return cls(ids, outside)


def _compare(
    b: Weights,
    a: Weights,
    base_target: Tensor,
    aligned_target: Tensor,
    ids: tuple[Shared, Shared] | None,
) -> Comparison:
    numbers = {
        "base_logprob": _gold(b, base_target),
        "aligned_logprob": _gold(a, aligned_target),
        "base_rank": _rank(b, base_target),
        "aligned_rank": _rank(a, aligned_target),
        "base_entropy": _entropy(b),
        "aligned_entropy": _entropy(a),
        "base_top": b.logits.argmax(-1),
        "aligned_top": a.logits.argmax(-1),
        "base_top_logprob": -b.total.log(),
        "aligned_top_logprob": -a.total.log(),
        "base_outside": torch.zeros_like(b.total),
        "aligned_outside": torch.zeros_like(a.total),
    }
    numbers |= _of_top(b, numbers["aligned_top"], ids)
    if ids is not None:
        numbers["base_outside"] = b.weight[:, ids[0].outside].sum(-1) / b.total
        numbers["aligned_outside"] = a.weight[:, ids[1].outside].sum(-1) / a.total
        b, a = b.given(ids[0]), a.given(ids[1])
    # The entropies are taken: nobody needs `below` of the base any longer.
    ratio, offset = b.below.sub_(a.below), b.total.log() - a.total.log()
    return Comparison(
        kl_base_aligned=b.mean(ratio) - offset,
        kl_aligned_base=offset - a.mean(ratio),
        **numbers,
    )


def _of_top(b: Weights, top: Tensor, ids: tuple[Shared, Shared] | None) -> dict[str, Tensor]:
    """What base says of what aligned holds likeliest."""
    known = torch.ones_like(top, dtype=torch.bool)
    if ids is not None:
        top, known = _translated(top, ids)
    logprob, rank = _gold(b, top), _rank(b, top)
    return {
        "base_logprob_of_top": logprob.where(known, torch.nan),
        "base_rank_of_top": rank.where(known, -1),
    }


def _translated(top: Tensor, ids: tuple[Shared, Shared]) -> tuple[Tensor, Tensor]:
    """[row] ids of aligned as those of base, and whether base has such tokens; 0 if not."""
    ours, theirs = (one.ids(top.device) for one in ids)
    size = int(max(theirs.max(), top.max())) + 1
    table = torch.full((size,), -1, dtype=torch.long, device=top.device)
    table[theirs] = ours
    found = table[top]
    return found.clamp_min(0), found >= 0


def _lens(b: Weights, a: Weights) -> tuple[Tensor, Tensor]:
    return _kl(b, a), _js(b.weight.div_(b.total[:, None]), a.weight.div_(a.total[:, None]))


def _kl(b: Weights, a: Weights) -> Tensor:
    """[row] KL(b ‖ a); `below` of b is used up."""
    return b.mean(b.below.sub_(a.below)) - (b.total.log() - a.total.log())


def _gold(weights: Weights, target: Tensor) -> Tensor:
    return weights.below.gather(-1, target[:, None])[:, 0] - weights.total.log()


def _entropy(weights: Weights) -> Tensor:
    return weights.total.log() - weights.mean(weights.below)


def _rank(weights: Weights, target: Tensor) -> Tensor:
    # On the logits themselves: below the greatest, two close ones may round to the same.
    greater = weights.logits > weights.logits.gather(-1, target[:, None])
    return greater.sum(-1).where(~weights.total.isnan(), -1)


def _js(p: Tensor, q: Tensor) -> Tensor:
    # With t = (p − q) / (p + q), ln(p / m) = ln(1 + t) and ln(q / m) = ln(1 − t): a small
    # divergence keeps its digits, and equal distributions have exactly 0. The bounds keep
    # 0 · ln 0 at 0; a NaN passes through them.
    kind = torch.finfo(p.dtype)
    tilt = (p - q).div_((p + q).clamp_min_(kind.tiny)).clamp_(kind.eps - 1, 1 - kind.eps)
    toward_p = torch.linalg.vecdot(p, tilt.log1p())
    return (toward_p + torch.linalg.vecdot(q, tilt.neg_().log1p_())) / 2


Room = tuple[Tensor, Tensor]
"""Two temporaries of [row, vocab] that every slice of some logits uses in its turn."""


def _room(logits: Tensor) -> Room:
    # New temporaries for every slice cost more than the exponentials that they hold.
    shape = (min(_rows(logits), len(logits)), logits.shape[-1])
    kind = torch.promote_types(logits.dtype, torch.float32)
    first, second = (torch.empty(shape, dtype=kind, device=logits.device) for _ in range(2))
    return first, second


def _rows(logits: Tensor) -> int:
    """How many rows have temporaries that fit a cache, or an accelerator's spare memory."""
    entries = 2**18 if logits.device.type == "cpu" else 2**25
    return max(1, entries // logits.shape[-1])


def _slices(logits: Tensor) -> Iterator[slice]:
    """Slices of so many rows."""
    rows = _rows(logits)
    # An empty batch is one empty slice, so that there is something to concatenate.
    return (slice(start, start + rows) for start in range(0, max(1, len(logits)), rows))


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
