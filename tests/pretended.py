"""Devices that there are not: tensors that say they lie on one, and raise when two meet.

The numbers lie on the CPU. What CUDA would refuse is refused: an operation on tensors of two
devices, but for single numbers, and for indices on the CPU. It is run as a script of its own,
for torch cannot forget a device.
"""

import json
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretended"
FIRST, SECOND = f"{NAME}:0", f"{NAME}:1"
MOVES = ("aten::_to_copy", "aten::copy_")
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_")


class Far(Tensor):
    """A tensor that says it lies on a device."""

    @staticmethod
    def __new__(cls, raw, device):
        return Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), dtype=raw.dtype, device=device
        )

    def __init__(self, raw, device):
        self.raw = raw

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


def run(function, args, kwargs):
    """Do it on the CPU, if it could be done where the tensors are said to be."""
    name = function._schema.name
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    far = {one.device for one in tensors if isinstance(one, Far)}
    near = any(not isinstance(one, Far) and one.ndim for one in tensors)
    if name in INDEXED:
        near = not isinstance(args[0], Far)
    if name not in MOVES and (len(far) > 1 or (far and near)):
        raise RuntimeError(f"{name} of tensors on {sorted(map(str, {t.device for t in tensors}))}")
    place = args[0].device if name == "aten::copy_" else kwargs.get("device")
    place = place if place is not None else next(iter(far), None)
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    known = {id(one.raw): one for one in tensors if isinstance(one, Far)}
    found = function(*tree_map(_raw, args), **tree_map(_raw, kwargs))
    if place is None or torch.device(place).type != NAME:
        return found

    def placed(one):
        return known[id(one)] if id(one) in known else Far(one, torch.device(place))

    return tree_map(lambda one: placed(one) if isinstance(one, Tensor) else one, found)


def _raw(one):
    return one.raw if isinstance(one, Far) else one


class Pretended(TorchDispatchMode):
    """Inside, tensors can be made on, and moved to, devices that there are not."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


class Made(TorchFunctionMode):
    """What torch would do below where it can be pretended.

    What is made of plain numbers is made here and moved; a vector is multiplied as a matrix, for
    torch changes the shape of what comes out in place.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.tensor and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        if function in (torch.matmul, Tensor.matmul, Tensor.__matmul__):
            one, other = args
            wide = one[None] if one.ndim == 1 else one, other[:, None] if other.ndim == 1 else other
            found = function(*wide)
            found = found[..., 0] if other.ndim == 1 else found
            return (found[0] if other.ndim == 1 else found[..., 0, :]) if one.ndim == 1 else found
        return function(*args, **kwargs)


def places(net, where):
    """A device map of a tiny net: the first block at one place, all above it at another."""
    from driftlens.models import anatomy

    paths = {module: path for path, module in net.named_modules()}
    blocks = [paths[block] for block in anatomy.blocks(net.base_model)]
    lowest, rest = where
    whole = {
        paths[module]: lowest
        for module in net.base_model.children()
        if paths[module] != blocks[0].rpartition(".")[0]
    }
    found = {path: lowest if not number else rest for number, path in enumerate(blocks)}
    norms = {path: rest for path in whole if "norm" in path or "ln_f" in path}
    head = paths[net.get_output_embeddings()]
    tied = net.get_output_embeddings().weight is net.get_input_embeddings().weight
    return {**whole, **found, **norms, head: lowest if tied else rest}


def far(model, where):
    """The same model with its parts at the places."""
    from accelerate import dispatch_model

    from driftlens.models.hooks import HookedModel

    net = deepcopy(model.net)
    dispatch_model(net, device_map=places(net, where), force_hooks=True)
    return HookedModel(net, model.tokenizer, model.name)


def _refused():
    with Pretended():
        try:
            torch.ones(2).to(FIRST) + torch.ones(2).to(SECOND)
        except RuntimeError as error:
            return str(error)
    return ""


def _apart(one, other):
    """How far the numbers of two results lie apart."""
    ours, theirs = ({n: e.value for n, e in result.estimates().items()} for result in (one, other))
    for name, column in one.columns().items():
        if column.dtype.kind == "f":
            ours[name], theirs[name] = column, other.columns()[name]
    for name, number in ours.items():
        gap = np.abs(np.asarray(number) - np.asarray(theirs[name]))
        known = ~(np.isnan(number) & np.isnan(theirs[name]))
        yield float(np.max(gap[known], initial=0.0))


def main() -> None:
    """For each family, how far results move where the pair is spread over devices."""
    import nets
    from driftlens import metric
    from driftlens.models import ModelPair
    from test_placement import METRICS

    backend_registration._setup_privateuseone_for_python_backend(NAME)
    pack = nets.pack(nets.TEXTS)
    found: dict = {"refused": _refused()}
    for family in ("llama", "gpt2", "gpt-neox", "gemma2"):
        near = nets.pair(family)
        with Pretended(), Made():
            base = far(near.base, (FIRST, SECOND))
            aligned = far(near.aligned, (SECOND, FIRST))
            apart = ModelPair(base, aligned)
            results = metric.measure(apart, pack, [one() for one in METRICS], tokens=200)
        whole = metric.measure(near, pack, [one() for one in METRICS], tokens=200)
        for one, other in zip(results, whole, strict=True):
            found[f"{family} {one.kind}"] = max(_apart(one, other))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
