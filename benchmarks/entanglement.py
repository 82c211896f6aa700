"""What inner products of gradients cost: time, memory, and how both grow.

    python benchmarks/entanglement.py --out entanglement.json

All ways give, for every pair of texts, the inner product and both norms of the gradients of their
log-likelihoods by every weight. The floor gives nothing: it is one forward pass and one backward
pass by activations, without which no way can do. All are measured in turn in one run; on a CPU in
processor time, which a busy machine disturbs least. All tokens but a text's first are scored.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

# Threads are counted when torch is imported; a benchmark shares its machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import memory
import pairs
import torch
from overhead import Row, as_row, ratios_of, tell, timed
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from driftlens.models.gradients import Gradients, trainable
from driftlens.models.hooks import HookedModel
from driftlens.models.tokens import Batch

FLOOR, NAIVE, MAPS, MEMORY = 1.25, 1.6, 1.05, 0.27
"""The bars at `--tokens` tokens: of our time over the floor's, of our pairs a second over those of
the naive way, of our time with maps by position over that without, and of our peak memory over
that of the naive way with one pair in flight."""


def main() -> None:
    asked = _arguments()
    torch.set_num_threads(1)
    if asked.peak_of:
        print(json.dumps(_measured(asked)))
        return
    if find_spec("bergson") is None:
        print("bergson is not installed: it has no row.")
    rows = chain(
        against_others(asked),
        *(growth_by_tokens(asked, tokens) for tokens in asked.lengths),
        growth_by_layers(asked),
        growth_by_pairs(asked),
        () if asked.device != "cpu" else memories(asked),
    )
    tell(rows, asked)


# --- the ways -----------------------------------------------------------------------------


@dataclass
class Given:
    """A net and pairs of texts, two rows each."""

    net: nn.Module
    ids: Tensor
    gradients: Gradients
    batch: Batch = field(init=False)

    def __post_init__(self) -> None:
        rows, tokens = self.ids.shape
        number = torch.arange(rows, device=self.ids.device).repeat_interleave(tokens - 1)
        place = torch.arange(1, tokens, device=self.ids.device).repeat(rows)
        none = number[:0]
        mask = torch.ones_like(self.ids, dtype=torch.bool)
        self.batch = Batch(self.ids, mask, (none, none), (number, place), number)


def ours(given: Given, by_token: bool = False) -> Tensor:
    """[pair, row, row] inner products by the engine."""
    return given.gradients.products(given.batch, by_token=by_token).total


def floor(given: Given) -> None:
    """Forward and backward over all rows at once, no weight's gradient, nothing kept."""
    _learning(given.net, False)
    with _from_embedding(given.net):
        likelihood(given.net, given.ids).sum().backward()


def naive(given: Given, times: Callable[[Tensor, Tensor], Tensor] = torch.dot) -> Tensor:
    """Row by row the whole gradient as one vector, as the published script has it."""
    _learning(given.net, True)
    found = []
    for pair in given.ids.split(2):
        flat = []
        for row in pair:
            given.net.zero_grad(set_to_none=True)
            likelihood(given.net, row[None]).sum().backward()
            flat.append(torch.cat([p.grad.ravel() for p in given.net.parameters()]))
        chosen, rejected = flat
        cross, norms = times(chosen, rejected), [times(row, row) for row in flat]
        found.append(torch.stack([norms[0], cross, cross, norms[1]]).reshape(2, 2))
    given.net.zero_grad(set_to_none=True)
    return torch.stack(found)


def _in_float64(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of two vectors, summed in float64."""
    parts = zip(a.split(2**20), b.split(2**20), strict=True)
    return torch.stack([x.double() @ y.double() for x, y in parts]).sum()


def by_sample(given: Given) -> Tensor:
    """Whole gradients of both rows of a pair at once, by `torch.func`."""
    _learning(given.net, False)
    weights = {name: p.detach() for name, p in given.net.named_parameters()}

    def of_row(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        def net(**inputs: object) -> object:
            return torch.func.functional_call(given.net, weights, (), inputs)

        return likelihood(net, row[None]).sum()

    each = torch.func.vmap(torch.func.grad(of_row), in_dims=(None, 0))
    found = []
    for pair in given.ids.split(2):
        rows = [gradient.flatten(1) for gradient in each(weights, pair).values()]
        found.append(torch.stack([row @ row.mT for row in rows]).sum(0))
    return torch.stack(found)


def by_bergson(given: Given) -> Tensor:
    """Whole gradients of both rows of a pair as bergson's hooks form them.

    Of the linear maps in the blocks alone: it has no embedding, no norm and no unembedding.
    """
    from bergson.collector.collector import HookCollectorBase
    from bergson.gradients import GradientProcessor

    class Products(HookCollectorBase):
        def setup(self) -> None:
            kind = torch.finfo(torch.float32)
            self.save_dtype, self.lo, self.hi = torch.float32, kind.min, kind.max
            self.total = 0

        def teardown(self) -> None:
            pass

        def process_batch(self, indices: list, **_: object) -> None:
            pass

        def backward_hook(self, module: nn.Module, gradient: Tensor) -> None:
            rows = self._compute_gradient(module, gradient)
            self.total = self.total + rows @ rows.mT

    _learning(given.net, False)
    found = []
    for pair in given.ids.split(2):
        hooks = Products(model=given.net.base_model, processor=GradientProcessor())
        with _from_embedding(given.net), hooks:
            likelihood(given.net, pair).sum().backward()
        found.append(hooks.total)
    return torch.stack(found)


def likelihood(net: Callable, ids: Tensor) -> Tensor:
    """[row] log-likelihood of all tokens but the first."""
    logits = net(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
    return logits.gather(-1, ids[:, 1:, None])[..., 0].sum(1)


@contextmanager
def _from_embedding(net: nn.Module) -> Iterator[None]:
    """Gradients go back as far as what the embedding gives, while inside."""
    # A hook is told the module, what entered, and what left.
    hook = net.get_input_embeddings().register_forward_hook(lambda *of: of[-1].requires_grad_())
    try:
        yield
    finally:
        hook.remove()


def _learning(net: nn.Module, learns: bool) -> None:
    for parameter in net.parameters():
        parameter.requires_grad_(learns)


# --- time ---------------------------------------------------------------------------------


def against_others(asked: argparse.Namespace) -> Iterator[Row]:
    """All ways at `--tokens` tokens."""
    given = _given(asked)
    ways = {"floor": floor, "ours": ours, "maps": partial(ours, by_token=True), "naive": naive}
    ways["by_sample"] = by_sample
    if find_spec("bergson") is not None:
        ways["bergson"] = by_bergson
    seconds = _in_turn(ways, given, asked)
    count, size = len(given.ids) // 2, f"{asked.tokens} tokens"
    weights = sum(p.numel() for p in given.net.parameters()) / 1e6
    yield as_row(
        f"{weights:.0f} M weights, {count} × 2 × {size}: ours, pairs a second",
        [count / s for s in seconds["ours"]],
    )
    yield _over("ours", "floor", "ours / the floor", seconds, FLOOR)
    yield _over("ours", "naive", "ours / the naive way, in time", seconds, 1 / NAIVE)
    yield _over("naive", "ours", "pairs a second, ours / the naive way", seconds)
    yield _over("naive", "floor", "the same of the floor, which no way exceeds", seconds)
    yield _over("maps", "ours", "with maps by position / without", seconds, MAPS)
    yield _over("by_sample", "ours", "pairs a second, ours / torch.func", seconds)
    if "bergson" in seconds:
        yield _over("bergson", "ours", "the same / bergson's (blocks' maps alone)", seconds)
    operations = {name: _operations(ways[name], given) for name in ("floor", "ours", "naive")}
    yield as_row("multiply-adds, ours / the floor", [operations["ours"] / operations["floor"]])
    yield as_row("multiply-adds, naive / ours", [operations["naive"] / operations["ours"]])
    truth = naive(given, _in_float64).cpu()
    norm = truth.diagonal(dim1=1, dim2=2).sqrt()
    for name, found in (("ours", ours(given)), ("the naive way, one float32 sum", naive(given))):
        off = (found.cpu() - truth).abs() / (norm[:, :, None] * norm[:, None, :])
        yield as_row(f"largest error in cosine units of {name}", [float(off.max())])


def growth_by_tokens(asked: argparse.Namespace, tokens: int) -> Iterator[Row]:
    """Ours beside the floor at another length, with and without maps."""
    given = _given(asked, tokens=tokens)
    ways = {"floor": floor, "ours": ours, "maps": partial(ours, by_token=True)}
    seconds = _in_turn(ways, given, asked)
    name = f"{tokens} tokens: "
    each = [s / given.ids.numel() * 1e3 for s in seconds["ours"]]
    yield as_row(name + "ours, milliseconds a token", each)
    yield _over("ours", "floor", name + "ours / the floor", seconds)
    yield _over("maps", "ours", name + "with maps / without", seconds)
    count = [_operations(way, given) for way in (ours, floor)]
    yield as_row(name + "multiply-adds, ours / the floor", [count[0] / count[1]])


def growth_by_layers(asked: argparse.Namespace) -> Iterator[Row]:
    """How much a block adds, in the upper half of the depths over the lower half."""
    depths = [0, asked.depth // 2, asked.depth]
    given = [_given(asked, depth=max(1, depth)) for depth in depths]
    turns = [[timed(ours, one, asked.device) for one in given] for _ in range(asked.rounds + 1)]
    steps = depths[1] - 1, depths[2] - depths[1]
    if all(steps):
        found = [((c - b) / steps[1]) / ((b - a) / steps[0]) for a, b, c in turns[1:]]
        yield as_row(f"time a block, blocks above {depths[1]} / below", found)


def growth_by_pairs(asked: argparse.Namespace) -> Iterator[Row]:
    """Time a pair of several pairs in flight over that of one."""
    counts = 1, 2, 4
    given = [_given(asked, count=count) for count in counts]
    turns = [[timed(ours, one, asked.device) for one in given] for _ in range(asked.rounds + 1)]
    for place, count in enumerate(counts[1:], 1):
        found = [turn[place] / count / turn[0] for turn in turns[1:]]
        yield as_row(f"time a pair, {count} in flight / 1", found)


def _in_turn(ways: dict, given: Given, asked: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of every way, in rounds, after one that makes what is made once."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(asked.rounds + 1):
        for name, way in ways.items():
            found = timed(way, given, asked.device)
            if turn:
                seconds[name].append(found)
    return seconds


def _over(
    above: str, below: str, name: str, seconds: dict[str, list[float]], bar: float | None = None
) -> Row:
    return as_row(name, ratios_of(seconds[above], seconds[below]), bar)


def _operations(way: Callable, given: Given) -> int:
    """Operations of all products of matrices in a way."""
    with FlopCounterMode(display=False) as counter:
        way(given)
    return counter.get_total_flops()


# --- memory -------------------------------------------------------------------------------


WAYS: dict[str, Callable[[Given], object]] = {"floor": floor, "ours": ours, "naive": naive}


def memories(asked: argparse.Namespace) -> Iterator[Row]:
    """Peak memory beyond the net with one pair in flight, each way in a process of its own."""
    found = {way: _peak(asked, way) for way in WAYS}
    for way, megabytes in found.items():
        yield as_row(f"peak memory of one pair, {way}, MB", [megabytes])
    yield as_row("peak memory, ours / the naive way", [found["ours"] / found["naive"]], MEMORY)


def _peak(asked: argparse.Namespace, way: str) -> float:
    options = [f"--{name}={getattr(asked, name)}" for name in ("width", "depth", "vocab", "tokens")]
    command = [sys.executable, str(Path(__file__)), f"--peak-of={way}", *options]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(answer.stdout)["extra_mb"]


def _measured(asked: argparse.Namespace) -> dict[str, float]:
    """Peak memory of one way beyond what was held before, in this process."""
    way = WAYS[asked.peak_of]
    # Once over a little, so that what is made once (kernels, buffers, imports) is not counted.
    small = argparse.Namespace(**{**vars(asked), "width": 64, "depth": 1, "vocab": 100})
    way(_given(small, count=1))
    given = _given(asked, count=1)
    memory.give_back()
    before = memory.resident()
    memory.start_again()
    way(given)
    return {"extra_mb": memory.peak() - before}


# --- helpers ------------------------------------------------------------------------------


def _given(
    asked: argparse.Namespace,
    depth: int | None = None,
    tokens: int | None = None,
    count: int | None = None,
) -> Given:
    """A net, and as many pairs as are in flight at this length where none are counted."""
    tokens = tokens or asked.tokens
    count = count or max(1, asked.flight // (2 * tokens))
    net, _ = pairs.nets(
        asked.width, depth or asked.depth, asked.vocab, getattr(torch, asked.dtype), asked.device
    )
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(asked.vocab, (2 * count, tokens), generator=random).to(asked.device)
    model = HookedModel(net, pairs.tokenizer(asked.vocab), "net")
    return Given(net, ids, Gradients(model, trainable(model)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = {name: pairs.SIZES[name] for name in ("width", "depth", "vocab")}
    more = {
        "tokens": (128, "Tokens in a text, where all ways are compared."),
        "flight": (512, "Tokens of all pairs in flight; there is one pair at least."),
        "rounds": (5, "Rounds, of which the median is reported."),
    }
    for name, (default, what) in {**sizes, **more}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=what)
    parser.add_argument("--lengths", type=int, nargs="*", default=[64, 128, 256, 512])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="Where to write it all as JSON.")
    parser.add_argument("--peak-of", choices=WAYS, help="Measure this memory only.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
