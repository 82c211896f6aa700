"""Whether what `driftlens check` predicts comes true: one step, whole runs, a known pattern.

    python benchmarks/predicted.py --out predicted.json

What is predicted comes from the library's inner products of gradients; what happens, from
optimisers of torch and from plain forward passes of the nets. Everything runs on one thread of a
CPU, from the repository alone; `--preferences` and `--model` ask the same of a reader's own.
"""

import argparse
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import Any

# Threads are counted when torch is imported; a benchmark shares its machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn

from driftlens import ModelPair, Preferences, demo
from driftlens.demo.train import BETA, STEPS, dpo_batches, dpo_loss, fit
from driftlens.demo.words import listed
from driftlens.formulas import entanglement
from driftlens.formulas.preferences import DPO, IPO, Answers, Loss, SimPO, pulls
from driftlens.models.hybrid import plain
from driftlens.models.tokens import Batch
from driftlens.preferences import Preference

LOSSES: Mapping[str, Loss] = {"dpo": DPO(), "simpo": SimPO(), "ipo": IPO()}
"""What is trained with."""

MOVES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Nats by which a single step is to move the answer of its pair that moves more."""

SLOPED = (0.3, 0.1, 0.03, 0.01)
"""The steps by which the slope is told: below them, Llama's norms round in float32 anyway."""

MOVE = 0.05
"""Nats by which the first step of plain SGD is to move an answer, on the mean over all.

So each loss gets a learning rate of one rule, though their sizes differ by hundreds.
"""

ROWS = 8
"""Pairs in a batch of a run."""

LOOKED = (1, 10, 30)
"""After how many steps the demo's DPO stage is looked at, before its end."""


# --- what happens, without the library ---------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """Pairs of answers as rows of tokens, chosen and rejected in turn."""

    ids: Tensor
    """[row, token]"""
    mask: Tensor
    """[row, token] where tokens stand."""
    scored: Tensor
    """[row, token] where tokens of answers stand."""

    @classmethod
    def of(cls, batch: Batch) -> "Shown":
        """The rows of a batch of the library."""
        scored = torch.zeros_like(batch.mask)
        scored[batch.target] = True
        return cls(batch.ids, batch.mask, scored)

    def some(self, pairs: Sequence[int]) -> "Shown":
        """The pairs of these numbers alone."""
        rows = torch.tensor([row for pair in pairs for row in (2 * pair, 2 * pair + 1)])
        width = int(self.mask[rows].sum(1).max())
        return Shown(*(each[rows, :width] for each in (self.ids, self.mask, self.scored)))

    def likelihoods(self, net: nn.Module) -> Tensor:
        """[row] log-probability of each answer, a sum in nats."""
        return self.by_token(net).sum(1)

    def by_token(self, net: nn.Module) -> Tensor:
        """[row, token] log-probability of each token but the first, 0 where none is scored."""
        logits = net(input_ids=self.ids, attention_mask=self.mask.long()).logits[:, :-1]
        found = logits.log_softmax(-1).gather(-1, self.ids[:, 1:, None])[..., 0]
        return found.where(self.scored[:, 1:], 0.0)

    def answers(self, net: nn.Module, reference: Tensor) -> Answers:
        """The pairs as a loss sees them, beside the reference's [row] log-probabilities."""
        own, lengths = self.likelihoods(net), self.scored.sum(1)
        return Answers(
            own[::2], own[1::2], lengths[::2], lengths[1::2], reference[::2], reference[1::2]
        )


@torch.no_grad()
def read(net: nn.Module, shown: Shown, rows: int = 64) -> np.ndarray:
    """[pair, 2] log-probabilities of chosen and rejected answers."""
    pieces = range(0, len(shown.ids) // 2, rows)
    found = [
        shown.some(range(first, min(first + rows, len(shown.ids) // 2))).likelihoods(net)
        for first in pieces
    ]
    return torch.cat(found).double().numpy().reshape(-1, 2)


def trained(
    net: nn.Module,
    shown: Shown,
    loss: Loss,
    optimiser: Callable[[Any], torch.optim.Optimizer],
    batches: Sequence[Sequence[int]],
) -> Iterator[nn.Module]:
    """A copy of the net after each step on a batch of pairs; the net itself is the reference."""
    mine = deepcopy(net)
    steps = optimiser(mine.parameters())
    reference = torch.from_numpy(read(net, shown)).to(next(net.parameters()).dtype).flatten()
    for batch in batches:
        rows = torch.tensor([row for pair in batch for row in (2 * pair, 2 * pair + 1)])
        steps.zero_grad()
        loss(shown.some(batch).answers(mine, reference[rows])).mean().backward()
        steps.step()
        yield mine


def sgd(rate: float) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda weights: torch.optim.SGD(weights, lr=rate)


def adamw(rate: float) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda weights: torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)


# --- what is predicted --------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A net, pairs of answers, and all inner products between the answers' gradients."""

    net: nn.Module
    shown: Shown
    inner: np.ndarray
    """[row, row] ⟨g_r, g_s⟩ of the gradients of every two answers' log-probabilities."""
    before: np.ndarray
    """[pair, 2] log-probabilities."""
    number: np.ndarray
    """[pair] its number in the preference set, for the longest come first."""

    @classmethod
    def of(
        cls,
        pair: ModelPair,
        preferences: Preferences,
        length: int | None = None,
        closed: bool = True,
    ) -> "Case":
        """A preference set as a model sees it; `closed` answers end with the end of text."""
        pack, _ = preferences.pack(pair.aligned.tokenizer, length=length, append_eos=closed)
        encoder = pair.encoder(pack, length)
        windows = [window for windows in encoder.batches(2**31) for window in windows]
        batch = encoder.encode(windows)[0]
        inner = pair.gradients().products(batch, len(batch.ids)).total[0].numpy()
        shown, net = Shown.of(batch), plain(pair.aligned).net
        number = np.array([pack.examples[window.example].group for window in windows[::2]])
        return cls(net, shown, inner, read(net, shown), number)

    @property
    def pairs(self) -> int:
        """How many pairs there are."""
        return len(self.before)

    @property
    def three(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[pair] ‖g_w‖², ⟨g_w, g_l⟩ and ‖g_l‖²."""
        w, r = np.arange(0, len(self.inner), 2), np.arange(1, len(self.inner), 2)
        return self.inner[w, w], self.inner[w, r], self.inner[r, r]

    def pulls(self, loss: Loss) -> tuple[np.ndarray, np.ndarray]:
        """[pair] the loss's pulls, where the net is its own reference."""
        chosen, rejected = torch.from_numpy(self.before).unbind(1)
        lengths = self.shown.scored.sum(1).double()
        answers = Answers(chosen, rejected, lengths[::2], lengths[1::2], chosen, rejected)
        d_w, d_l = pulls(loss, answers)
        return d_w.numpy(), d_l.numpy()

    def alone(self, loss: Loss) -> np.ndarray:
        """[pair, 2] rates of a step on each pair by itself: what `driftlens check` reports."""
        found = entanglement.rates(*self.three, *self.pulls(loss))
        return np.stack([found.chosen, found.rejected], 1)

    def together(self, loss: Loss, batch: Sequence[int] | None = None) -> np.ndarray:
        """[pair, 2] rates of one step on the mean loss of a batch, or of all pairs.

        The step goes along Σ_q (d_w g_w − d_l g_l) / count over the batch's pairs q, and what it
        does to an answer of gradient g is its inner product with g.
        """
        pull = np.stack([*self.pulls(loss)], 1) * (1, -1)
        kept = np.zeros((self.pairs, 1))
        kept[slice(None) if batch is None else list(batch)] = 1
        return (self.inner @ (pull * kept).ravel() / kept.sum()).reshape(-1, 2)

    def stepped(self, loss: Loss, number: int, nats: float) -> tuple[np.ndarray, np.ndarray]:
        """[2] predicted and observed changes of a pair by one step of SGD on that pair alone.

        The step is as long as the answer that moves more is to move by so many nats.
        """
        rate = self.alone(loss)[number]
        step = nats / np.abs(rate).max()
        (net,) = trained(self.net, self.shown, loss, sgd(step), [[number]])
        mine = self.shown.some([number])
        return step * rate, read(net, mine)[0] - read(self.net, mine)[0]

    def changed(self, net: nn.Module) -> np.ndarray:
        """[pair, 2] by how much the log-probabilities of another net differ."""
        return read(net, self.shown) - self.before


def compared(predicted: np.ndarray, observed: np.ndarray) -> dict[str, float]:
    """How [pair, 2] predictions do: signs that agree, ranks, and means."""
    from scipy.stats import spearmanr

    found: dict[str, float] = {}
    for side, name in enumerate(("chosen", "rejected")):
        p, o = predicted[:, side], observed[:, side]
        found[f"sign_{name}"] = float((np.sign(p) == np.sign(o)).mean())
        found[f"rank_{name}"] = float(spearmanr(p, o).statistic)
        found[f"mean_{name}"] = float(o.mean())
        found[f"mean_predicted_{name}"] = float(p.mean())
    margins = [z[:, 0] - z[:, 1] for z in (predicted, observed)]
    found["sign_margin"] = float((np.sign(margins[0]) == np.sign(margins[1])).mean())
    return found


def calibrated(predicted: np.ndarray, observed: np.ndarray) -> dict[str, dict[str, float]]:
    """Of the pairs of each predicted case, how many there are and what became of them."""
    said = entanglement.cases(predicted[:, 0], predicted[:, 1])
    seen = entanglement.cases(observed[:, 0], observed[:, 1])
    return {
        case: {
            "pairs": int((said == case).sum()),
            "chosen_rose": float((observed[said == case, 0] > 0).mean()),
            "rejected_fell": float((observed[said == case, 1] < 0).mean()),
            "as_predicted": float((seen[said == case] == case).mean()),
        }
        for case in entanglement.CASES
        if (said == case).any()
    }


# --- (a) one step on one pair -------------------------------------------------------------


def of_steps(pair: ModelPair, preferences: Preferences, length: int | None) -> dict[str, Any]:
    """Relative errors of the predicted changes by size of the step, in double precision."""
    net = deepcopy(plain(pair.aligned).net).double()
    double = ModelPair.alone(net, tokenizer=pair.aligned.tokenizer)
    case = Case.of(double, preferences, length)
    found = {}
    for name, loss in LOSSES.items():
        both = np.array(
            [[case.stepped(loss, p, nats) for nats in MOVES] for p in range(case.pairs)]
        )
        off = np.linalg.norm(both[:, :, 0] - both[:, :, 1], axis=-1)
        errors = off / np.linalg.norm(both[:, :, 0], axis=-1)
        kept = np.isin(MOVES, SLOPED)
        slopes = np.polyfit(np.log(SLOPED), np.log(errors[:, kept]).T, 1)[0]
        found[name] = {
            "nats": list(MOVES),
            "error": np.median(errors, 0).tolist(),
            "worst": errors.max(0).tolist(),
            "signs": (np.sign(both[:, :, 0]) == np.sign(both[:, :, 1])).mean((0, 2)).tolist(),
            "slope": float(np.median(slopes)),
            "slopes": [float(slopes.min()), float(slopes.max())],
        }
    return found


# --- (b) whole runs -----------------------------------------------------------------------


def of_runs(case: Case, steps: int, rate: float, seed: int = 0) -> list[dict[str, Any]]:
    """Every loss with both optimisers: one step on all pairs, then a run in batches."""
    found, batches = [], _batches(case.pairs, steps, seed)
    for name, loss in LOSSES.items():
        slow = MOVE / np.abs(case.together(loss)).mean()
        for kind, optimiser, size in (("sgd", sgd(slow), slow), ("adamw", adamw(rate), np.nan)):
            for number, batch, net in _looks(case, loss, optimiser, batches):
                when = f"{number} step{'s' * (number > 1)}"
                if number == 1:
                    when += " on all" if batch is None else " on a batch"
                rates = case.together(loss, batch)
                row = _row(case, loss, net, when, rates, number * size)
                found.append({"loss": name, "optimiser": kind, **row})
    return found


def _looks(
    case: Case,
    loss: Loss,
    optimiser: Callable[[Any], torch.optim.Optimizer],
    batches: Sequence[Sequence[int]],
) -> Iterator[tuple[int, Sequence[int] | None, nn.Module]]:
    """After how many steps, on what batch (None is all pairs), and the net there.

    A run that loses all bounds ends before it does.
    """
    (net,) = trained(case.net, case.shown, loss, optimiser, [range(case.pairs)])
    yield 1, None, net
    epoch = -(-case.pairs // ROWS)
    for number, net in enumerate(trained(case.net, case.shown, loss, optimiser, batches), 1):
        if not all(bool(weight.isfinite().all()) for weight in net.parameters()):
            return
        if number in (1, epoch, len(batches)):
            yield number, batches[0] if number == 1 else None, net


def _batches(pairs: int, steps: int, seed: int) -> list[list[int]]:
    """Batches of pairs, each epoch in another order."""
    random = np.random.default_rng(seed)
    found: list[list[int]] = []
    while len(found) < steps:
        order = random.permutation(pairs).tolist()
        found += [order[first : first + ROWS] for first in range(0, pairs, ROWS)]
    return found[:steps]


def _row(
    case: Case,
    loss: Loss,
    net: nn.Module,
    when: str,
    together: np.ndarray,
    scale: float = np.nan,
) -> dict[str, Any]:
    """What was said of a net, and what it is; `scale` is the sum of plain SGD's steps."""
    alone, observed = case.alone(loss), case.changed(net)
    found: dict[str, Any] = {
        "after": when,
        "alone": compared(alone, observed),
        "together": compared(together, observed),
        "cases": calibrated(alone, observed),
        "cases_together": calibrated(together, observed),
    }
    if np.isfinite(scale):
        off = np.linalg.norm(scale * together - observed)
        found["error"] = float(off / np.linalg.norm(observed))
    return found


# --- (c) the demo pair's own run ----------------------------------------------------------


def of_demo(pairs: int) -> list[dict[str, Any]]:
    """What is predicted at the demo's SFT model, and what its DPO stage does to the same pairs.

    The stage is run again as its recipe has it, to be looked at on its way; its end is the shipped
    model, which is looked at too.
    """
    pair = ModelPair.load("demo:sft", "demo:aligned")
    tokenizer, loss = pair.base.tokenizer, DPO(BETA)
    case = Case.of(ModelPair.alone(plain(pair.base).net, tokenizer=tokenizer), drawn(pairs))
    whole = case.together(loss)
    net, found = deepcopy(plain(pair.base).net), []
    objective = dpo_loss(plain(pair.base).net)
    steps = count()

    def looked(net: nn.Module, batch: Any) -> Tensor:
        if (number := next(steps)) in LOOKED:
            found.append(_row(case, loss, net, f"{number} steps", whole))
        return objective(net, batch)

    batches = dpo_batches(tokenizer, demo.pairs())
    with redirect_stdout(io.StringIO()):
        fit(net, batches, looked, "aligned", 1.0)
    found.append(_row(case, loss, net, f"{STEPS['aligned']} steps", whole))
    found.append(_row(case, loss, plain(pair.aligned).net, "as shipped", whole))
    return [{"loss": "dpo", "optimiser": "the demo's", **row} for row in found]


def drawn(count: int) -> Preferences:
    """The first pairs that the demo's DPO stage was trained on, in their order."""
    return written("demo", list(islice(demo.pairs(), count)))


def written(name: str, rows: Sequence[tuple[str, str, str]]) -> Preferences:
    """Prompts with a chosen and a rejected answer, as a preference set."""
    pairs = [Preference(number, f"row {number}", *row) for number, row in enumerate(rows)]
    return Preferences(name, tuple(pairs))


# --- (d) the published pattern ------------------------------------------------------------

GOOD = listed("lovely clever moving funny warm bright gripping tender")
BAD = listed("dull slow silly cold grim loud empty clumsy")
THINGS = listed("film story plot cast music ending dialogue picture")
SUFFIX = listed("that is what this review says about the film as far as i can")
OTHERWISE = listed(
    "well who knows really maybe not sure either they just wrote something down here"
)
LABELS = ("positive", "negative")
FLIPPED = 0.2
"""Share of texts with the wrong label."""

FOLLOWS = (0.8, 0.5)
"""How likely each word of the suffix is after a right and after a wrong label."""

SUFFIXES = (0, 3, 7, 14)
"""Words that both answers share after the one that tells them apart."""

REVIEWS = 40


def review(rng: Random) -> tuple[str, str, str]:
    """A review, its label, and the other label."""
    mood = rng.randrange(2)
    words, things = rng.sample((GOOD, BAD)[mood], 2), rng.sample(THINGS, 2)
    said = " and ".join(f"the {x} was {y}" for x, y in zip(things, words, strict=True))
    return f"the review is : {said} . sentiment :", LABELS[mood], LABELS[1 - mood]


def told(rng: Random) -> str:
    """A text to learn from: the suffix is likelier after the right label, word by word."""
    prompt, right, wrong = review(rng)
    astray = rng.random() < FLIPPED
    goes = FOLLOWS[astray]
    rest = [a if rng.random() < goes else b for a, b in zip(SUFFIX, OTHERWISE, strict=True)]
    return " ".join([prompt, wrong if astray else right, *rest])


def reviewer(steps: int = 600, seed: int = 0) -> ModelPair:
    """A tiny Llama that has learnt such texts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _words()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    net, rng = LlamaForCausalLM(config), Random(seed)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(steps):
        ids = tokenizer([told(rng) for _ in range(32)], return_tensors="pt")["input_ids"]
        optimiser.zero_grad()
        net(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
    return ModelPair.alone(net.eval(), tokenizer=tokenizer)


def _words() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*GOOD, *BAD, *THINGS, *SUFFIX, *OTHERWISE, *LABELS, *review(Random(0))[0].split()]
    ids = {word: number for number, word in enumerate(["</s>", *sorted({*words, "and"})])}
    core = Tokenizer(models.WordLevel(ids, unk_token="</s>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="</s>")


def of_pattern(steps: int = 10) -> list[dict[str, Any]]:
    """By length of the shared suffix: cosine, what DPO is to do, and what it does."""
    pair = reviewer()
    return [_of_suffix(pair, length, steps) for length in SUFFIXES]


def _of_suffix(pair: ModelPair, length: int, steps: int) -> dict[str, Any]:
    loss, rng, rest = DPO(), Random(99), SUFFIX[:length]
    rows = [
        (asked, " ".join(["", right, *rest]), " ".join(["", wrong, *rest]))
        for asked, right, wrong in (review(rng) for _ in range(REVIEWS))
    ]
    case = Case.of(pair, written(f"{length} words", rows), closed=False)
    cosine, alone = entanglement.cosine(*case.three), case.alone(loss)
    one = np.array([case.stepped(loss, number, MOVE / 10)[1] for number in range(case.pairs)])
    whole = case.together(loss)
    rate = MOVE / np.abs(whole).mean()
    run = trained(case.net, case.shown, loss, sgd(rate), [range(case.pairs)] * steps)
    *_, net = run
    return {
        "suffix": length,
        "cosine": float(cosine.mean()),
        "below_0": float((cosine < 0).mean()),
        "chosen_to_rise": float((alone[:, 0] > 0).mean()),
        "chosen_rose": float((one[:, 0] > 0).mean()),
        "cases": calibrated(alone, one),
        "run": _row(case, loss, net, f"{steps} steps", whole),
        "chosen_rose_in_run": float((case.changed(net)[:, 0] > 0).mean()),
    }


# --- tables -------------------------------------------------------------------------------


def table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows as Markdown."""
    cells = [[f"{c:.3g}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    lines = [list(names), ["---"] * len(names), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _steps(found: Mapping[str, Any]) -> str:
    rows = [[name, f["slope"], min(f["signs"]), *f["error"]] for name, f in found.items()]
    return table(["loss", "slope", "signs right", *(f"{s:g} nats" for s in MOVES)], rows)


SIDES = ("sign_chosen", "sign_rejected", "rank_chosen", "rank_rejected")
WHAT = ("loss", "optimiser", "after")


def _runs(found: Sequence[Mapping[str, Any]]) -> str:
    heads = [f"{side}, {kind}" for kind in ("alone", "together") for side in SIDES]
    rows = [
        [
            *(row[name] for name in WHAT),
            *(row[kind][side] for kind in ("alone", "together") for side in SIDES),
            row.get("error", "–"),
        ]
        for row in found
    ]
    return table([*WHAT, *heads, "error"], rows)


def _cases(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [*(row[name] for name in WHAT), kind, case, *numbers.values()]
        for row in found
        for kind, key in (("alone", "cases"), ("together", "cases_together"))
        for case, numbers in row[key].items()
    ]
    names = [*WHAT, "prediction", "case"]
    return table([*names, "pairs", "chosen rose", "rejected fell", "as predicted"], rows)


def _pattern(found: Sequence[Mapping[str, Any]]) -> str:
    names = ("suffix", "cosine", "below_0", "chosen_to_rise", "chosen_rose", "chosen_rose_in_run")
    return table(names, [[row[name] for name in names] for row in found])


# --- the run ------------------------------------------------------------------------------

PARTS = ("step", "runs", "demo", "pattern")


def main() -> None:
    asked = _arguments()
    torch.set_num_threads(1)
    parts = asked.only or (PARTS[:2] if asked.preferences or asked.model else PARTS)
    found: dict[str, Any] = {"torch": torch.__version__, "model": asked.model or "demo:sft"}
    pair = ModelPair.alone(asked.model or "demo:sft", dtype="float32")
    preferences = drawn(asked.pairs)
    if asked.preferences:
        preferences = Preferences.read(asked.preferences).limit(asked.pairs)
    if "step" in parts:
        found["step"] = of_steps(pair, preferences.limit(8), asked.length)
        print(_steps(found["step"]), flush=True)
    if "runs" in parts:
        case = Case.of(pair, preferences, asked.length)
        found["runs"] = of_runs(case, asked.steps, asked.rate)
        print(_runs(found["runs"]), _cases(found["runs"]), sep="\n\n", flush=True)
    if "demo" in parts:
        found["demo"] = of_demo(2 * asked.pairs)
        print(_runs(found["demo"]), _cases(found["demo"]), sep="\n\n", flush=True)
    if "pattern" in parts:
        found["pattern"] = of_pattern()
        print(_pattern(found["pattern"]))
    asked.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="Where to write it all as JSON.")
    parser.add_argument("--model", help="A model to train instead of the demo's SFT model.")
    parser.add_argument("--preferences", help="A preference set instead of the demo's.")
    parser.add_argument("--pairs", type=int, default=64, help="How many pairs of it.")
    parser.add_argument("--length", type=int, help="The most tokens of prompt and answer.")
    parser.add_argument("--steps", type=int, default=48, help="Steps of a run.")
    parser.add_argument("--rate", type=float, default=1e-4, help="AdamW's learning rate.")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="Which parts to run.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
