"""When each module that holds weights runs, what it gives, and how it depends on its weights.

Found by running the net on a few tokens, so that no list of architectures has to be kept.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .hooks import HookedModel
from .pieces import Owner, Weight

Form = Literal["lookup", "linear", "affine", "curved"]
"""How what a module gives depends on its own weights."""

LENGTHS = (5, 7)
"""Tokens in the two texts that are tried: the axis that grows with them is that of the tokens."""

ROWS = 2


@dataclass(frozen=True)
class Heard:
    """What a module was heard to do."""

    axes: tuple[int | None, ...]
    """For each tensor that it gives, the axis of the tokens; None where batch and token are one."""

    form: Form


class Survey:
    """What was heard of a model."""

    def __init__(self, model: HookedModel, heard: Mapping[str, Heard], order: Sequence[str]):
        self.model, self.heard = model, heard
        self.order = {path: number for number, path in enumerate(order)}

    def owners(self, holders: Mapping[str, Sequence[str]]) -> dict[str, Owner]:
        """Where each module that holds the named weights stands."""
        return {
            path: Owner(*self._place(path), tuple(Weight(path, name) for name in names))
            for path, names in holders.items()
        }

    def _place(self, path: str) -> tuple[str, str, tuple[int, int]]:
        """Stage, component, and where that comes from the bottom up."""
        for number, prefix in enumerate(self._blocks):
            if path == prefix or path.startswith(f"{prefix}."):
                late = self._component(number, path) == "mlp"
                return str(number), "mlp" if late else "attn", (number, int(late))
        depth = len(self._blocks)
        first = min((self.order[p] for p in self.order if p.startswith(self._blocks[0])), default=0)
        if self.order.get(path, -1) < first:
            return "embed", "embed", (-1, 0)
        if self.model.body is not self.model.net and path.startswith(f"{self._body}."):
            return "head", "norm", (depth, 0)
        return "head", "unembed", (depth, 1)

    def _component(self, number: int, path: str) -> str:
        """Attention is all that runs in a block until attention has written; MLP is the rest."""
        writer = self.model._writers[number][0]
        children = self._children[number]
        prefix = self._blocks[number]
        child = path.removeprefix(prefix).removeprefix(".").split(".")[0]
        if writer is None or child not in children:
            return "mlp"
        return "attn" if children[child] <= children.get(writer.split(".")[0], -1) else "mlp"

    @cached_property
    def _blocks(self) -> list[str]:
        names = {id(module): name for name, module in self.model.net.named_modules()}
        return [names[id(block)] for block in self.model.blocks]

    @cached_property
    def _body(self) -> str:
        names = {id(module): name for name, module in self.model.net.named_modules()}
        return names.get(id(self.model.body), "")

    @cached_property
    def _children(self) -> list[dict[str, int]]:
        """For each block, when the first module of each of its children ran."""
        found = []
        for prefix in self._blocks:
            mine: dict[str, int] = {}
            for path, when in self.order.items():
                if path.startswith(f"{prefix}."):
                    child = path.removeprefix(f"{prefix}.").split(".")[0]
                    mine[child] = min(when, mine.get(child, when))
            found.append(mine)
        return found


@torch.no_grad()
def survey(model: HookedModel, holders: Mapping[str, Sequence[str]]) -> Survey:
    """Listen to the modules that hold the named weights, and to every one in a block.

    Args:
        model: The net.
        holders: By path of module, the weights of it that matter; a weight without a name
            stands for all that the module adds by itself.
    """
    shapes: list[dict[str, list[torch.Size]]] = []
    forms: dict[str, Form] = {}
    for length in LENGTHS:
        seen: dict[str, list[torch.Size]] = {}
        listeners = {path: _recorder(path, names, seen, forms) for path, names in holders.items()}
        for prefix, block in _blocks(model):
            for child in (f"{prefix}.{name}" for name, _ in block.named_children()):
                listeners.setdefault(child, _recorder(child, (), seen, {}))
        ids = torch.arange(ROWS * length, device=model.device).reshape(ROWS, length)
        ids %= len(model.net.get_input_embeddings().weight)
        with model.listening(listeners):
            model.logits(ids)
        shapes.append(seen)
    first, second = shapes
    heard = {
        path: Heard(tuple(map(_axis, first[path], second[path])), forms[path])
        for path in holders
        if path in first
    }
    return Survey(model, heard, list(first))


def _blocks(model: HookedModel) -> Iterator[tuple[str, nn.Module]]:
    names = {id(module): name for name, module in model.net.named_modules()}
    for block in model.blocks:
        yield names[id(block)], block


def _recorder(
    path: str, names: Sequence[str], seen: dict, forms: dict[str, Form]
) -> Callable[..., None]:
    def record(module: nn.Module, inputs: tuple, keywords: dict, output: Any) -> None:
        seen.setdefault(path, [tensor.shape for tensor in tensors(output)])
        if path not in forms:
            forms[path] = _form(module, names, inputs, keywords, tensors(output))

    return record


def _axis(short: torch.Size, long: torch.Size) -> int | None:
    """The axis that grows with the tokens alone, if there is one."""
    grown = [axis for axis, sizes in enumerate(zip(short, long, strict=True)) if sizes == LENGTHS]
    return grown[0] if grown else None


def _form(
    module: nn.Module,
    names: Sequence[str],
    inputs: tuple,
    keywords: dict,
    whole: tuple[Tensor, ...],
) -> Form:
    if isinstance(module, nn.Embedding):
        return "lookup"
    if not names or names == [""]:
        return "linear"
    none, twice = (
        outcome(module, {n: by * getattr(module, n).data for n in names}, inputs, keywords)
        for by in (0, 2)
    )
    for zero, one, two in zip(none, whole, twice, strict=True):
        off = (zero.double() + two.double() - 2 * one.double()).norm()
        # Half precision rounds each of the three by itself.
        if not float(off) <= 32 * torch.finfo(one.dtype).eps * float(one.double().norm() + 1e-30):
            return "curved"
    return "affine" if any(bool(zero.any()) for zero in none) else "linear"


def outcome(
    module: nn.Module, weights: Mapping[str, Tensor], inputs: tuple, keywords: dict
) -> tuple[Tensor, ...]:
    """What a module would give with other weights; nothing that listens to it hears."""
    with holding(module, weights):
        return tensors(module.forward(*inputs, **keywords))


@contextmanager
def holding(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The module with other weights while inside."""
    own = {name: module._parameters[name] for name in weights}
    try:
        for name, weight in weights.items():
            module._parameters[name] = nn.Parameter(weight, requires_grad=False)
        yield
    finally:
        module._parameters.update(own)


def tensors(output: Any) -> tuple[Tensor, ...]:
    """The tensors of real numbers in what a module gave."""
    parts = output if isinstance(output, tuple | list) else (output,)
    return tuple(p for p in parts if isinstance(p, Tensor) and p.is_floating_point())


def hooked(
    output: Any,
    given: Sequence[Tensor],
    widened: Callable[[Tensor, int], Tensor],
    pulled: Callable[[int], Callable[[Tensor], None]],
) -> Any:
    """What a module gave, in tensors of which each tells the gradient that comes back by it.

    Args:
        output: What the module gave.
        given: The tensors of real numbers that are to stand in it.
        widened: Gives the tensor of a number a row for each text.
        pulled: What the gradient by the tensor of a number is told to.
    """
    fresh = []
    for number, tensor in enumerate(given):
        tensor = widened(tensor, number)
        if not tensor.requires_grad:
            tensor = tensor.detach().requires_grad_()
        elif len(given) > 1:
            # One may be made of another inside the module: only what leaves it counts.
            tensor = tensor.view_as(tensor)
        tensor.register_hook(pulled(number))
        fresh.append(tensor)
    return put(output, fresh)


def put(output: Any, fresh: Sequence[Tensor]) -> Any:
    """What a module gave, with other tensors in place of those of real numbers."""
    if not isinstance(output, tuple | list):
        return fresh[0] if tensors(output) else output
    left = iter(fresh)
    return type(output)(next(left) if tensors(part) else part for part in output)
