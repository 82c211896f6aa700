"""Which weights a model has, as one number that any other weight would change."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from driftlens.errors import DriftlensError

from .model import Model

AT_ONCE = 2**24
"""Numbers that are brought to the CPU together."""


def fingerprint(model: Model | nn.Module) -> str:
    """SHA-256 of all of a model's parameters: name, shape, dtype and bytes, in order of names.

    A tied parameter counts once, buffers do not count, and neither does where it lies. What an
    adapter adds counts where it is on; where it is off, the model is its base, and has the
    base's fingerprint.

    Args:
        model: A model as `ModelPair` holds it, or a live net.

    Returns:
        64 hexadecimal digits.

    Raises:
        DriftlensError: Its weights are out of reach.
    """
    net = getattr(model, "net", model)
    if not isinstance(net, nn.Module):
        raise DriftlensError(
            "a transformers model, to tell it by its weights",
            found=type(model).__name__,
            remedy="Load it from a name, a folder or a live transformers model.",
        )
    # Inside, the net is this model: a base that shares it with an adapter has it turned off.
    found = getattr(model, "_as_found", nullcontext)
    with found():
        return digest(dict(_weights(net)))


def digest(weights: Mapping[str, Tensor], most: int | None = None) -> str:
    """SHA-256 of named weights: name, shape, dtype and bytes, in order of names.

    Args:
        weights: What to read.
        most: Numbers of each that are read, evenly spread; None is all.
    """
    found = hashlib.sha256()
    # By name, for weights that are offloaded are read one at a time.
    for name in sorted(weights):
        weight = weights[name]
        found.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        flat = weight.detach().reshape(-1)
        if most is not None:
            flat = flat[:: max(1, len(flat) // most)]
        for some in flat.split(AT_ONCE):
            # Bytes, for numpy has no bfloat16.
            found.update(some.cpu().contiguous().view(torch.uint8).numpy())
    return found.hexdigest()


def known_by(model: Model) -> dict[str, Any]:
    """By what a model is known again, as a card tells it; all of its weights are read."""
    return {
        "name": model.name,
        "sha256": fingerprint(model),
        "width": model.width,
        "depth": model.depth,
        "dtype": dtype_of(model),
        "causal": model.causal,
    }


def dtype_of(model: Model) -> str:
    """What a model computes in, if it says so."""
    return str(getattr(model, "dtype", "unknown")).removeprefix("torch.")


def _weights(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter that is in use, by the name that it has without adapters."""
    # Of a whole net of transformers, `disable_adapters` is a method.
    hosts: dict[str, Any] = {
        path: module
        for path, module in net.named_modules()
        if isinstance(getattr(module, "disable_adapters", None), bool)
    }
    for name, weight in net.named_parameters():
        if all(_used(host, name.removeprefix(f"{path}.")) for path, host in _around(name, hosts)):
            parts = [part for part in name.split(".") if part not in HOSTED]
            yield ".".join(parts), weight
    for path, host in hosts.items():
        sizes: dict[str, float] = {} if host.disable_adapters else getattr(host, "scaling", {})
        for adapter in sorted(set(host.active_adapters) & set(sizes)):
            yield f"{path} scaled {adapter}", torch.tensor(float(sizes[adapter]))


HOSTED = ("base_layer", "original_module")
"""What peft puts into the name of a weight on which an adapter sits."""


def _around(name: str, hosts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((path, host) for path, host in hosts.items() if name.startswith(f"{path}."))


def _used(host: Any, name: str) -> bool:
    """Whether what an adapter's host calls so takes part in what it gives."""
    part, _, rest = name.partition(".")
    if part in HOSTED:
        return True
    return not host.disable_adapters and rest.partition(".")[0] in host.active_adapters
