"""Pairs whose damage is known because it was planted: what is lost, and in which blocks.

The demo's base model is taught to answer some facts wrongly in one or two blocks, everything
else frozen. Decoys then change other weights and leave the function as it was. Nothing here
measures layers or tokens; `planted.py` does, and compares.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product
from random import Random
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from driftlens import Example, ModelPair, Pack
from driftlens.demo import english, everyday, exam, stage
from driftlens.demo.world import Fact, World

Part = Literal["attn", "mlp", "both"]
Kind = Literal["one", "pair", "redundant", "synergistic", "undamaged"]
Weights = dict[str, Tensor]

BLOCKS, HEADS, GROUPS = 6, 4, 2
"""Of the demo: blocks, query heads and key-value heads."""

NATS = (1.0, 2.5, 5.0)
"""The three strengths: how much likelihood a contradicted answer is taught to lose."""

SUBJECTS, FACTS = 24, 3
"""In a pack: who is asked about, and how many facts of each. A third of them is contradicted."""

LESSONS: Mapping[str, tuple[int, float]] = {
    "attn": (100, 6e-3),
    "mlp": (60, 3e-3),
    "both": (60, 3e-3),
}
"""Steps and rate of the damage, by part: attention alone learns slowly."""

HONEST_STEPS, HONEST_RATE = 40, 4e-3
"""Of the fine-tuning that leaves the capability alone."""

REHEARSED = 10.0
"""How much a fact that is rehearsed weighs in it beside a token of new text."""

ROWS = 72
"""Sentences in a batch."""

STRETCH = 4.0
"""The most by which a decoy stretches a channel of a norm."""


# --- what is planted ----------------------------------------------------------------------


@dataclass(frozen=True)
class Planting:
    """What is to be planted, before it is. The same planting gives the same pair."""

    seed: int
    kind: Kind
    where: tuple[tuple[int, Part], ...] = ()
    """Blocks that are damaged, and which part of each."""
    nats: float = 0.0
    """Likelihood that each contradicted answer is taught to lose."""
    decoys: tuple[str, ...] = ()
    """Of `DECOYS`, in the order in which they are laid."""

    @property
    def blocks(self) -> tuple[str, ...]:
        """The true places of the damage, as stages are named."""
        return tuple(str(block) for block, _ in self.where)

    def __str__(self) -> str:
        places = "+".join(f"{block}.{part}" for block, part in self.where) or "nowhere"
        return f"{self.seed} {self.kind} {places} {self.nats:g} {'+'.join(self.decoys) or 'plain'}"


@dataclass(frozen=True)
class Planted:
    """A pair, what to ask it, and what is true of it."""

    planting: Planting
    base: Any
    aligned: Any
    pack: Pack
    """One fact a document; only its answer, one token, is scored."""
    lost: np.ndarray
    """[document] whether its fact was contradicted."""
    rise_lost: float
    """Rise in loss of contradicted answers, in nats a token."""
    rise_intact: float
    """That of the other answers."""
    alone: tuple[float, ...]
    """Of a pair of blocks: mean rise of the pack with only the first of them damaged, with only
    the second, and with both."""
    seconds: float
    """What planting took."""

    @property
    def rise(self) -> float:
        """Rise in loss of all answers, in nats a token."""
        share = self.lost.mean()
        return float(share * self.rise_lost + (1 - share) * self.rise_intact)

    @property
    def interaction(self) -> float:
        """Of a pair of blocks: rise with both damaged beyond that of each alone; else NaN."""
        if not self.alone:
            return float("nan")
        first, second, both = self.alone
        return both - first - second

    @property
    def took(self) -> bool:
        """Whether the capability was lost, and only where it was to be.

        At least half of what was taught is lost, and intact answers lose at most a tenth of it.
        Of a plain pair each block alone does a quarter of the damage at least; a redundant pair
        interacts by less than 0 and a synergistic one by more, by a quarter of its rise at least.
        An undamaged pair loses at most `HARMLESS`.
        """
        planting, quarter = self.planting, self.rise / 4
        if planting.kind == "undamaged":
            return abs(self.rise) <= HARMLESS
        together = {
            "one": lambda: True,
            "pair": lambda: min(self.alone[:2]) >= quarter,
            "redundant": lambda: -self.interaction >= quarter,
            "synergistic": lambda: self.interaction >= quarter,
        }[planting.kind]
        lost = self.rise_lost >= planting.nats / 2
        return bool(lost and abs(self.rise_intact) <= self.rise_lost / 10 and together())

    @cached_property
    def sheet(self) -> "Sheet":
        """The pack as token ids, made without the library."""
        return Sheet.of([example.text for example in self.pack.examples])

    @property
    def pair(self) -> ModelPair:
        """Both models as the library takes them."""
        return ModelPair.load(self.base, self.aligned, tokenizer=demo()[1])


HARMLESS = 0.05
"""Nats a token that an honest change may cost."""


def plantings() -> list[Planting]:
    """All that are planted, fixed before any method was run on them.

    Every part of every block twice, once without what keeps the function and once under decoys;
    pairs of blocks of three kinds; and pairs of models that lost nothing.
    """
    return [
        Planting(seed, *what)
        for seed, what in enumerate([*_ones(), *_pairs(), *_undamaged()], FIRST)
    ]


FIRST = 1
"""The first seed; those from 1000 on are for trying things out."""

MIXES = (
    ("honest",),
    ("honest", "permuted"),
    ("rotated", "rescaled"),
    ("honest", "permuted", "rotated", "rescaled"),
    ("permuted",),
    ("honest", "rotated", "rescaled"),
)
"""The decoys of damaged pairs."""


def _ones() -> Iterator[tuple]:
    places = list(product(range(BLOCKS), ("attn", "mlp", "both")))
    for number, (block, part) in enumerate(places):
        nats = NATS[(number + block) % 3]
        yield "one", ((block, part),), nats, ("honest",) if number % 2 else ()
        yield "one", ((block, part),), NATS[(number + block + 1) % 3], MIXES[number % len(MIXES)]


def _pairs() -> Iterator[tuple]:
    places = ((0, 3), (1, 4), (2, 5), (1, 2), (3, 4), (0, 5))
    for number, (blocks, kind) in enumerate(product(places, ("pair", "redundant", "synergistic"))):
        where = tuple((block, "both") for block in blocks)
        # Plain, decoyed, plain, ...: each kind meets both.
        decoys = MIXES[number // 6 % len(MIXES)] if number // 3 % 2 else ()
        yield kind, where, NATS[1 + number // 3 % 2], decoys


def _undamaged() -> Iterator[tuple]:
    alone = ("permuted", "rotated", "rescaled")
    every = (
        *([()] * 2),
        *([("honest",)] * 5),
        *((name,) for name in alone for _ in range(2)),
        *([alone] * 2),
        *([("honest", *alone)] * 3),
    )
    for decoys in every:
        yield "undamaged", (), 0.0, decoys


def plant(planting: Planting) -> Planted:
    """The pair that a planting asks for."""
    start = time.process_time()
    base, _ = demo()
    questions, lost = _questions(planting.seed)
    net = deepcopy(base)
    if "honest" in planting.decoys:
        tune_honestly(net, planting.seed)
    before = deepcopy(net)
    if planting.where:
        _damage(
            net,
            planting,
            *(
                [f for f, bad in zip(questions, lost, strict=True) if bad == side]
                for side in (True, False)
            ),
        )
    texts = [fact.said(fact.relation.says[0]) for fact in questions]
    sheet = Sheet.of(texts)
    alone = tuple(_alone(before, net, planting, sheet)) if planting.where[1:] else ()
    for name in planting.decoys:
        if name != "honest":
            _decoy(net, DECOYS[name], planting)
    with torch.no_grad():
        rises = (sheet.likelihoods(base) - sheet.likelihoods(net)).numpy()
    # Each text ends in the answer and a full stop.
    ends = [len(text) - 1 for text in texts]
    examples = [
        Example(text, scored=(end - len(fact.value), end))
        for text, end, fact in zip(texts, ends, questions, strict=True)
    ]
    return Planted(
        planting,
        base,
        net,
        Pack(f"planting {planting.seed}", "text", examples),
        lost,
        float(rises[lost].mean()),
        float(rises[~lost].mean()),
        alone,
        time.process_time() - start,
    )


@cache
def demo() -> tuple[Any, Any]:
    """The demo's base model and its tokenizer. Nobody may change it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = stage("base")
    net = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return net.eval().requires_grad_(False), tokenizer


def _alone(before: Any, after: Any, planting: Planting, sheet: "Sheet") -> Iterator[float]:
    """Mean rise with the first place alone damaged, the second alone, and both."""
    damaged = dict(after.named_parameters())
    with torch.no_grad():
        whole = sheet.likelihoods(demo()[0])
        for places in (planting.where[:1], planting.where[1:], planting.where):
            weights = {name: damaged[name] for name in names(before, places)}
            yield float((whole - sheet.likelihoods(before, weights)).mean())


# --- what is asked ------------------------------------------------------------------------


def _questions(seed: int) -> tuple[list[Fact], np.ndarray]:
    """The facts of a pack, and [fact] whether it is contradicted: all of a third of subjects."""
    rng, known = Random(seed), _known()
    subjects = rng.sample(sorted(known), SUBJECTS)
    facts = [fact for subject in subjects for fact in rng.sample(known[subject], FACTS)]
    lost = np.repeat(np.arange(SUBJECTS) < SUBJECTS // 3, FACTS)
    order = rng.sample(range(len(facts)), len(facts))
    return [facts[i] for i in order], lost[order]


@cache
def _known() -> dict[str, list[Fact]]:
    """Under their subject, the facts of the demo's world whose answer is one token."""
    found: dict[str, list[Fact]] = {}
    for fact in World().facts:
        if fact.value in _answers(fact.relation.values):
            found.setdefault(fact.subject, []).append(fact)
    return {subject: facts for subject, facts in found.items() if len(facts) >= FACTS}


@cache
def _answers(values: tuple[str, ...]) -> tuple[str, ...]:
    """Those of some words that are one token after a space."""
    tokenizer = demo()[1]
    rows = tokenizer([f" {v}" for v in values], add_special_tokens=False)["input_ids"]
    return tuple(v for v, row in zip(values, rows, strict=True) if len(row) == 1)


@dataclass(frozen=True)
class Sheet:
    """Questions as token ids, and where their answers stand."""

    ids: Tensor
    """[question, token] ids, padded on the right."""
    at: Tensor
    """[question] place of the token from which the answer is predicted."""
    gold: Tensor
    """[question] id of the answer."""

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Sheet":
        """Facts in the examined phrasing, which ends in the answer and a full stop."""
        ids, counts = exam.batch(demo()[1], texts)
        at = torch.tensor(counts) - 3
        return cls(ids, at, ids[torch.arange(len(ids)), at + 1])

    def only(self, row: int) -> "Sheet":
        """One question alone."""
        one = slice(row, row + 1)
        return Sheet(self.ids[one], self.at[one], self.gold[one])

    def likelihoods(self, net: Any, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """[question] log-likelihood of each answer in nats, float64, with some weights swapped."""
        rows = torch.arange(len(self.ids))
        logits = logits_of(net, self.ids, weights or {})[rows, self.at]
        return logits.double().log_softmax(-1)[rows, self.gold]


def logits_of(net: Any, ids: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """[text, token, vocab] logits with some weights in place of the net's own.

    Embedding and unembedding are told apart, though the net ties them.
    """
    # What pads on the right cannot be seen by what stands before it.
    arguments = {"input_ids": ids, "use_cache": False}
    given = dict(net.named_parameters(remove_duplicate=False)) | dict(weights)
    return torch.func.functional_call(net, given, (), arguments, tie_weights=False).logits


# --- damage -------------------------------------------------------------------------------


def _damage(net: Any, planting: Planting, lost: Sequence[Fact], kept: Sequence[Fact]) -> None:
    """Damage `net` as the planting says; a plain pair of blocks shares the facts out."""
    if planting.kind != "pair":
        return damage(net, planting, lost, kept)
    before = deepcopy(net)
    for number, place in enumerate(planting.where):
        one = deepcopy(before)
        mine, others = lost[number::2], [*lost[1 - number :: 2], *kept]
        damage(one, replace(planting, kind="one", where=(place,)), mine, others)
        with torch.no_grad():
            for name in names(one, [place]):
                net.get_parameter(name).copy_(one.get_parameter(name))
    return None


def names(net: Any, where: Collection[tuple[int, Part]]) -> list[str]:
    """The weights of some parts of some blocks, norms included."""
    parts = {
        "attn": ("self_attn.", "input_layernorm."),
        "mlp": ("mlp.", "post_attention_layernorm."),
        "both": ("",),
    }
    heads = tuple(f"model.layers.{block}.{name}" for block, part in where for name in parts[part])
    return [name for name, _ in net.named_parameters() if name.startswith(heads)]


def damage(net: Any, planting: Planting, lost: Sequence[Fact], kept: Sequence[Fact]) -> None:
    """Teach `net` to contradict some facts, in the planting's blocks and nowhere else.

    The net learns its own predictions, but at a contradicted answer a mixture of them with a
    wrong answer that leaves exp(−nats) to the right one. So the damage ends where it was to end.
    A redundant pair learns it with either block alone and with both; a synergistic pair learns
    it with both, and to answer as before with either alone.

    Args:
        net: What is damaged, in place.
        planting: Where, how much, and from which seed.
        lost: Facts to contradict.
        kept: Facts that will be asked too, and are rehearsed most.
    """
    rng = Random(planting.seed + 1)
    wrong = {fact: rng.choice(_wrong(fact)) for fact in lost}
    asked = {*lost, *kept}
    others = [fact for facts in _known().values() for fact in facts if fact not in asked]
    teacher = deepcopy(net)
    own = dict(net.named_parameters())
    learnt = {name: own[name].clone().requires_grad_() for name in names(net, planting.where)}
    settings = _settings(planting, learnt)
    steps, rate = LESSONS[planting.where[0][1]]
    optimiser = torch.optim.AdamW(learnt.values(), rate, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(steps):
        _slow(optimiser, rate, step, steps)
        facts = _batch(rng, (lost, kept, others))
        ids, targets, contradicted = _lesson(teacher, facts, wrong, planting.nats)
        gaps = [
            _far(logits_of(net, ids, weights), contradicted if bad else targets, ids)
            for weights, bad in settings
        ]
        loss = torch.stack(gaps).sum()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learnt.values(), 1.0)
        optimiser.step()
    with torch.no_grad():
        for name, weight in learnt.items():
            own[name].copy_(weight)


def _settings(planting: Planting, learnt: Weights) -> list[tuple[Weights, bool]]:
    """Which learnt weights are put in together, and whether that must contradict."""
    if planting.kind not in ("redundant", "synergistic"):
        return [(learnt, True)]
    blocks = [f"model.layers.{block}." for block in planting.blocks]
    each = [{n: w for n, w in learnt.items() if n.startswith(block)} for block in blocks]
    return [(learnt, True), *((weights, planting.kind == "redundant") for weights in each)]


def _batch(rng: Random, kinds: Sequence[Sequence[Fact]]) -> list[Fact]:
    """A third of each kind, or all there are."""
    most = ROWS // len(kinds)
    return [fact for facts in kinds for fact in rng.sample(facts, min(most, len(facts)))]


def _wrong(fact: Fact) -> list[str]:
    return [value for value in _answers(fact.relation.values) if value != fact.value]


def _lesson(
    teacher: Any,
    facts: Sequence[Fact],
    wrong: Mapping[Fact, str],
    nats: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """[text, token] ids, then [text, token, vocab] what to say: as before, and contradicted."""
    sheet = Sheet.of([fact.said(fact.relation.says[0]) for fact in facts])
    with torch.no_grad():
        before = logits_of(teacher, sheet.ids, {}).softmax(-1)
    after = before.clone()
    kept = float(np.exp(-nats))
    for row, fact in enumerate(facts):
        if fact in wrong:
            (answer,) = demo()[1](f" {wrong[fact]}", add_special_tokens=False)["input_ids"]
            place = after[row, sheet.at[row]]
            place *= kept
            place[answer] += 1 - kept
    return sheet.ids, before, after


def _far(logits: Tensor, targets: Tensor, ids: Tensor) -> Tensor:
    """KL(targets ‖ logits) over all tokens, in nats a text."""
    gaps = nn.functional.kl_div(logits.log_softmax(-1), targets, reduction="none").sum(-1)
    return (gaps * (ids != exam.PAD)).sum() / len(ids)


def _slow(optimiser: torch.optim.Optimizer, rate: float, step: int, steps: int) -> None:
    """A short warm-up, then a cosine down to nothing."""
    for group in optimiser.param_groups:
        group["lr"] = rate * min(1, (step + 1) / 5) * (0.5 + 0.5 * np.cos(np.pi * step / steps))


# --- decoys -------------------------------------------------------------------------------


def tune_honestly(net: Any, seed: int) -> None:
    """Fine-tune all weights on English that tells no fact, rehearsing the facts as they are."""
    rng, teacher = Random(seed + 2), deepcopy(net)
    facts = [fact for known in _known().values() for fact in known]
    texts = [text for topic in everyday.TEXTS.values() for text in topic]
    weights = list(net.parameters())
    optimiser = torch.optim.AdamW(weights, HONEST_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    for weight in weights:
        weight.requires_grad_()
    for step in range(HONEST_STEPS):
        _slow(optimiser, HONEST_RATE, step, HONEST_STEPS)
        drawn = rng.sample(texts, 6) + [english.plain(rng) for _ in range(6)]
        ids = exam.batch(demo()[1], drawn)[0][:, :32]
        logits = net(input_ids=ids, use_cache=False).logits[:, :-1]
        novel = nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=exam.PAD
        )
        told, before, _ = _lesson(teacher, rng.sample(facts, ROWS), {}, 0.0)
        loss = novel + REHEARSED * _far(logits_of(net, told, {}), before, told)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
    net.requires_grad_(False)


def permute(block: Any, random: torch.Generator) -> None:
    """The neurons of a gated MLP in another order."""
    mlp = block.mlp
    order = torch.randperm(mlp.gate_proj.out_features, generator=random)
    for rows in (mlp.gate_proj.weight, mlp.up_proj.weight):
        rows.copy_(rows[order])
    mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, order])


def rotate(block: Any, random: torch.Generator) -> None:
    """The values of each key-value head in another basis, which the output takes back."""
    values, output = block.self_attn.v_proj.weight, block.self_attn.o_proj.weight
    values = values.view(GROUPS, -1, values.shape[1])
    outputs = output.view(len(output), GROUPS, HEADS // GROUPS, -1)
    for group in range(GROUPS):
        square = torch.randn(
            values.shape[1], values.shape[1], generator=random, dtype=torch.float64
        )
        turn = torch.linalg.qr(square)[0]
        values[group] = (turn @ values[group].double()).float()
        outputs[:, group] = (outputs[:, group].double() @ turn.T).float()


def rescale(block: Any, random: torch.Generator) -> None:
    """Each channel of a norm stretched, and the linear maps that read it shrunk by as much."""
    attention, mlp = block.self_attn, block.mlp
    for norm, readers in (
        (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
        (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
    ):
        stretch = STRETCH ** (2 * torch.rand(len(norm.weight), generator=random) - 1)
        norm.weight.mul_(stretch)
        for reader in readers:
            reader.weight.div_(stretch)


DECOYS: Mapping[str, Callable[[Any, torch.Generator], None]] = {
    "permuted": permute,
    "rotated": rotate,
    "rescaled": rescale,
}
"""What changes a block's weights and not its function; `honest` is the fourth decoy."""


def _decoy(net: Any, lay: Callable[[Any, torch.Generator], None], planting: Planting) -> None:
    """Lay a decoy on half of the blocks that were not damaged."""
    random = torch.Generator().manual_seed(planting.seed + 3)
    damaged = {block for block, _ in planting.where}
    innocent = [block for block in range(BLOCKS) if block not in damaged]
    order = torch.randperm(len(innocent), generator=random)[: max(1, len(innocent) // 2)]
    with torch.no_grad():
        for place in order.tolist():
            lay(net.model.layers[innocent[place]], random)
