"""Which linear maps of a net feed which others, and how: neuron by neuron, head by head, by a norm.

Found by running the net on a few tokens, so that no list of architectures has to be kept; only
the number of query heads is read from the configuration.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .hooks import HookedModel
from .survey import _blocks, outcome, tensors

TEXTS, TOKENS = 4, 24
"""What is read."""


@dataclass(frozen=True)
class Rows:
    """Some of the features that a linear map gives, in an order."""

    path: str
    rows: Tensor


@dataclass(frozen=True)
class Mlp:
    """Linear maps that feed another neuron by neuron."""

    layer: str
    path: str
    """The map that reads the neurons."""

    given: tuple[Rows, ...]
    """What feeds them: one map, or gate and up."""

    free: int | None
    """Which of these a neuron's value is proportional to."""

    signed: bool
    """Whether also where it is below 0."""


@dataclass(frozen=True)
class Values:
    """The values of a block, head by head, and the map that reads them."""

    layer: str
    path: str
    """The map that reads them."""

    groups: tuple[tuple[Rows, Tensor], ...]
    """For each key-value head its features, and [query head, feature] where these are read."""


@dataclass(frozen=True)
class Norm:
    """A norm that nothing but linear maps read."""

    layer: str
    path: str
    offset: float
    """What is added to its weight before it scales: 1 in Gemma and its kin."""

    readers: tuple[str, ...]


@dataclass(frozen=True)
class _Call:
    """A module that holds weights, as it was run."""

    module: nn.Module
    inputs: tuple
    keywords: dict
    entered: Tensor | None
    left: Tensor | None
    """What it gave, cut from what is below it."""

    handed: Tensor | None
    """The same as others read it."""


class Wiring:
    """Which maps of a net feed which, found by running it."""

    @torch.enable_grad()
    def __init__(self, model: HookedModel) -> None:
        self.model = model
        self.skipped: dict[str, str] = {}
        self.flipped: dict[str, bool] = {}
        """By path of each linear map, whether its weight is [in, out] (`Conv1D`) or [out, in]."""

        calls = self._run(TEXTS, TOKENS, graph=True)
        single = self._run(TEXTS * TOKENS, 1, graph=False)
        self.prefixes = [prefix for prefix, _ in _blocks(model)]
        self.mlps, self.values = [], []
        for number, prefix in enumerate(self.prefixes):
            mine = [path for path in calls if path.startswith(f"{prefix}.")]
            maps = [path for path in mine if path in self.flipped]
            values = self._values(str(number), maps, single)
            mlps = self._mlps(str(number), maps, calls, {v.path for v in values})
            self.values += values
            self.mlps += mlps
            if not values:
                self.skipped[f"{prefix} (values)"] = "no map reads values head by head as they are"
            if not mlps:
                self.skipped[f"{prefix} (neurons)"] = "no linear map reads others neuron by neuron"
            for path in mine:
                if path not in self.flipped and not _flat(calls[path].module):
                    self.skipped[path] = "neither a linear map nor a norm"
        self.norms = list(self._norms(calls))

    def _run(self, texts: int, tokens: int, graph: bool) -> dict[str, _Call]:
        """Every module that holds weights, as it ran; what each gives is cut from below."""
        calls: dict[str, _Call] = {}
        often: set[str] = set()

        def listener(path: str) -> Callable[..., object]:
            def record(module: nn.Module, inputs: tuple, keywords: dict, output: object) -> object:
                if path in calls:
                    often.add(path)
                entered = next(iter(tensors((*inputs, *keywords.values()))), None)
                left = output if isinstance(output, Tensor) else None
                if path not in self.flipped and (way := _linear(module, entered, left)) is not None:
                    self.flipped[path] = way
                handed = left
                if graph and left is not None:
                    left = left.detach().requires_grad_()
                    # Some add to it in place, which is not done to a leaf.
                    handed = left.clone()
                calls[path] = _Call(module, inputs, keywords, entered, left, handed)
                return output if handed is None else handed

            return record

        holders = [path for path, module in self.model.net.named_modules() if _weighty(module)]
        model = self.model
        with (
            model._as_found(frozen=True),
            torch.set_grad_enabled(graph),
            model.listening({path: listener(path) for path in holders}),
        ):
            model.logits(few(model, texts, tokens))
        for path in often:
            self.skipped[path] = "runs more than once"
            self.flipped.pop(path, None)
        return {path: call for path, call in calls.items() if path not in often}

    def _values(self, layer: str, maps: Sequence[str], calls: Mapping[str, _Call]) -> list[Values]:
        """Over a text of one token attention hands on the values as they are."""
        heads = int(self.model.net.config.get_text_config().num_attention_heads)
        found = []
        for reader in maps:
            read = _features(calls[reader].entered)
            if len(read) % heads:
                continue
            for giver in maps[: maps.index(reader)]:
                given = _features(calls[giver].left)
                places = _places(read.chunk(heads), given)
                if places and (groups := _groups(giver, places)):
                    found.append(Values(layer, reader, groups))
        return found

    def _mlps(
        self, layer: str, maps: Sequence[str], calls: Mapping[str, _Call], done: set[str]
    ) -> list[Mlp]:
        found = []
        for number, reader in enumerate(maps):
            read = calls[reader].entered
            below = {path: left for path in maps[:number] if (left := calls[path].left) is not None}
            if reader in done or read is None or not read.requires_grad or not below:
                continue
            if given := _feeding(read, below):
                free, signed = _proportional(read, given, below)
                found.append(Mlp(layer, reader, given, free, signed))
        return found

    def _norms(self, calls: Mapping[str, _Call]) -> Iterator[Norm]:
        offsets = {path: o for path, call in calls.items() if (o := _offset(call)) is not None}
        leaves = {path: left for path in offsets if (left := calls[path].left) is not None}
        order = list(calls)
        first = min((n for n, path in enumerate(order) if self._layer(path)), default=0)
        for path, elsewhere in _spread(leaves, calls).items():
            where = _pointer(calls[path].handed)
            readers = [n for n, call in calls.items() if _pointer(call.entered) == where]
            odd = [name for name in readers if name not in self.flipped]
            tied = [name for name in readers if name in self.flipped and self._tied(name)]
            if odd or tied:
                why = "not a linear map" if odd else "tied to another weight"
                self.skipped[path] = f"read by {(odd or tied)[0]}, which is {why}"
            elif readers and elsewhere:
                self.skipped[path] = "read by more than linear maps"
            elif readers:
                layer = self._layer(path) or ("embed" if order.index(path) < first else "head")
                yield Norm(layer, path, offsets[path], tuple(readers))

    def _layer(self, path: str) -> str:
        inside = (n for n, p in enumerate(self.prefixes) if path.startswith(f"{p}."))
        return next((str(number) for number in inside), "")

    def _tied(self, path: str) -> bool:
        mine = self.model.net.get_submodule(path)._parameters["weight"]
        holders = self.model.net.modules()
        return sum(mine is p for module in holders for p in module._parameters.values()) > 1


def _weighty(module: nn.Module) -> bool:
    own = (p for p in module._parameters.values() if p is not None)
    return any(parameter.is_floating_point() for parameter in own)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _spread(leaves: Mapping[str, Tensor], calls: Mapping[str, _Call]) -> dict[str, bool]:
    """Whether what each norm gives goes elsewhere than straight into modules with weights."""
    straight = {_pointer(calls[path].handed) for path in leaves}
    rest = [
        call.entered.sum()
        for call in calls.values()
        if call.entered is not None
        and call.entered.requires_grad
        and _pointer(call.entered) not in straight
    ]
    if not rest or not leaves:
        return dict.fromkeys(leaves, False)
    grads = torch.autograd.grad(
        torch.stack(rest).sum(), list(leaves.values()), retain_graph=True, allow_unused=True
    )
    return {path: gradient is not None for path, gradient in zip(leaves, grads, strict=True)}


def _flat(module: nn.Module) -> bool:
    """Whether all that a module holds are vectors."""
    return all(p is None or p.ndim < 2 for p in module._parameters.values())


def _features(tensor: Tensor | None) -> Tensor:
    """[feature, token] what a map read or gave."""
    assert tensor is not None, "a linear map reads and gives a tensor"
    return tensor.detach().flatten(0, -2).T.to(torch.float32)


def _linear(module: nn.Module, entered: Tensor | None, left: Tensor | None) -> bool | None:
    """Whether what left is the weight, or its transpose, times what entered; None if neither."""
    weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
    if weight is None or weight.ndim != 2 or entered is None or left is None:
        return None
    with torch.no_grad():
        for flipped, matrix in ((False, weight), (True, weight.T)):
            if matrix.shape != (left.shape[-1], entered.shape[-1]):
                continue
            guess = nn.functional.linear(entered, matrix, bias)
            if guess.shape == left.shape and (guess - left).norm() <= 1e-2 * left.norm():
                return flipped
    return None


def _places(heads: Sequence[Tensor], given: Tensor) -> list[Tensor]:
    """For each head [feature] which given feature each one is; none if one is not among them."""
    found = []
    for part in heads:
        apart = torch.cdist(part, given, compute_mode="donot_use_mm_for_euclid_dist")
        least, places = apart.min(1)
        if bool((least > 1e-5 * part.norm(dim=1).max()).any()):
            return []
        found.append(places.cpu())
    return found


def _groups(giver: str, heads: Sequence[Tensor]) -> tuple[tuple[Rows, Tensor], ...]:
    """Query heads that read the same values; none if some share only part of them."""
    width = len(heads[0])
    mine: dict[tuple[int, ...], list[Tensor]] = {}
    for number, rows in enumerate(heads):
        here = torch.arange(number * width, (number + 1) * width)
        mine.setdefault(tuple(rows.tolist()), []).append(here)
    every = [row for rows in mine for row in rows]
    if len(set(every)) < len(every):
        return ()
    return tuple((Rows(giver, torch.tensor(r)), torch.stack(read)) for r, read in mine.items())


def _feeding(read: Tensor, below: Mapping[str, Tensor]) -> tuple[Rows, ...]:
    """The maps that feed each feature of what is read by one feature of their own, and no other.

    Half of the features are asked for their gradient: it must reach the same half below.
    """
    width = read.shape[-1]
    asked = torch.rand(width, generator=torch.Generator().manual_seed(0)) < 0.5
    touched = []
    for half in (asked, ~asked):
        grads = torch.autograd.grad(
            read[..., half.to(read.device)].sum(),
            list(below.values()),
            retain_graph=True,
            allow_unused=True,
        )
        touched.append(grads)
    found = []
    for path, *sides in zip(below, *touched, strict=True):
        if all(side is None for side in sides):
            continue
        reached = [_reached(side, below[path]) for side in sides]
        slots = _slots(reached, asked)
        if not slots:
            return ()
        found += [Rows(path, rows) for rows in slots]
    return tuple(found)


def _reached(gradient: Tensor | None, like: Tensor) -> Tensor:
    """[feature] whether a gradient reached it."""
    if gradient is None:
        return torch.zeros(like.shape[-1], dtype=torch.bool)
    return gradient.flatten(0, -2).ne(0).any(0).cpu()


def _slots(reached: Sequence[Tensor], asked: Tensor) -> list[Tensor]:
    """[neuron] features that feed each neuron, for each way in which one does."""
    width, size = len(asked), len(reached[0])
    if size % width or size // width > 2:
        return []
    ways = size // width
    features = torch.arange(size)
    # Gate and up in one map lie one after the other, or take turns.
    for slots in (features.reshape(ways, width), features.reshape(width, ways).T):
        mine = torch.empty(size, dtype=torch.bool)
        for slot in slots:
            mine[slot] = asked
        yes, no = reached
        if not bool((yes & ~mine).any()) and not bool((no & mine).any()) and bool((yes | no).any()):
            return list(slots)
    return []


def _proportional(
    read: Tensor, given: Sequence[Rows], below: Mapping[str, Tensor]
) -> tuple[int | None, bool]:
    """Which feature a neuron is proportional to, by a ∂f/∂a = f (Euler), and if also below 0."""
    leaves = [below[rows.path] for rows in given]
    grads = torch.autograd.grad(read.sum(), leaves, retain_graph=True)
    found: list[tuple[bool, int]] = []
    for number, (rows, leaf, gradient) in enumerate(zip(given, leaves, grads, strict=True)):
        index = rows.rows.to(leaf.device)
        value, slope = (t.detach().float()[..., index] for t in (leaf, gradient))
        whole = read.detach().float()
        if (value * slope - whole).norm() <= 1e-2 * whole.norm():
            # A ReLU gives nothing at all below 0.
            found.append((bool(whole[value < 0].any()), number))
    if not found:
        return None, False
    signed, number = max(found)
    return number, signed


def _offset(call: _Call) -> float | None:
    """What a norm adds to its weight before it scales by it; None if it is no norm."""
    weight = call.module._parameters.get("weight")
    if weight is None or weight.ndim != 1 or call.entered is None or call.left is None:
        return None
    if (
        not set(call.module._parameters) <= {"weight", "bias"}
        or call.left.shape[-1:] != weight.shape
    ):
        return None
    bias = call.module._parameters.get("bias")
    none = {} if bias is None else {"bias": torch.zeros_like(bias)}

    def given(value: Tensor) -> Tensor:
        weights = none | {"weight": value}
        return outcome(call.module, weights, call.inputs, call.keywords)[0].float()

    with torch.no_grad():
        zero, one = given(torch.zeros_like(weight)), given(torch.ones_like(weight))
        offset = 1.0 if zero.any() else 0.0
        own = call.left.float() if bias is None else call.left.float() - bias.float()
        guess = (offset + weight.float()) * (one - zero)
        fits = (guess - own).norm() <= 1e-2 * own.norm()
        return (
            offset if fits and (zero - offset * (one - zero)).norm() <= 1e-2 * one.norm() else None
        )


def few(model: HookedModel, texts: int, tokens: int) -> Tensor:
    """[text, token] a few ids that the model knows."""
    known = len(model.net.get_input_embeddings().weight)
    ids = torch.arange(texts * tokens, device=model.device) * 7 + 3
    return (ids % known).reshape(texts, tokens)
