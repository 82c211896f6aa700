"""Where the weights of a model lie: how they are placed, whether they fit, who reaches them."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from driftlens.errors import DriftlensError

from .memory import available

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that accelerate makes of the memory that it finds."""

WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What those who wrap a net put into the names of its weights."""

DeviceMap = str | dict[str, str | int]


def device_map_of(given: object) -> DeviceMap | None:
    """A device map as transformers takes it.

    Args:
        given: None, a strategy of accelerate's, a JSON file that names a device for each part of
            the net, or such a mapping: `{"model.layers.0": "cuda:0", "lm_head": "cpu"}`.

    Raises:
        DriftlensError: It is none of these, or a device is none that this machine has.
    """
    if given is None or (isinstance(given, str) and given in STRATEGIES):
        return given
    found = _read(Path(given)) if isinstance(given, str | Path) else given
    devices = (str, int)
    fine = isinstance(found, Mapping) and all(
        isinstance(part, str) and isinstance(device, devices) and not isinstance(device, bool)
        for part, device in found.items()
    )
    if not fine or not found:
        raise DriftlensError(
            "a device map that names a device for each part of a net",
            found=repr(found)[:80],
            remedy='Write {"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": 1, …}.',
        )
    assert isinstance(found, Mapping)
    for device in {*found.values()} - {"disk"}:
        present(device)
    return dict(found)


def _read(path: Path) -> object:
    if path.suffix != ".json":
        raise DriftlensError(
            f"a device map among {', '.join(STRATEGIES)}, or a JSON file",
            found=repr(str(path)),
            remedy="Give --device-map auto, or write a map into a file.json.",
        )
    try:
        return json.loads(path.expanduser().read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DriftlensError(
            f"a device map in {path}", found=str(error), remedy="Check the path and the JSON."
        ) from None


def present(device: str | int) -> torch.device:
    """The device, which this machine has.

    Raises:
        DriftlensError: It has not.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise DriftlensError(
            "a device that this machine has",
            found=f"{device!r}: {str(error).splitlines()[0].rstrip('.')}",
            remedy="Give auto, cpu or cuda.",
        ) from None
    return found


# Whether they fit


def needed(net: nn.Module, places: DeviceMap | torch.device) -> dict[str, int]:
    """Bytes that the weights and buffers of a net take on each device.

    Args:
        net: The net; on the meta device it need not be loaded.
        places: A device, or the map; of a strategy nothing is known, and all counts as `any`.
    """
    found: dict[str, int] = {}
    for name, tensor in _tensors(net):
        where = _where(name, places)
        found[where] = found.get(where, 0) + tensor.numel() * tensor.element_size()
    return found


def _tensors(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from net.named_parameters()
    yield from net.named_buffers()


def _where(name: str, places: DeviceMap | torch.device) -> str:
    if isinstance(places, torch.device):
        return str(places)
    if isinstance(places, str):
        return "any"
    inside = [part for part in places if not part or f"{name}.".startswith(f"{part}.")]
    device = places[max(inside, key=len)] if inside else "cpu"
    return device if device == "disk" else str(torch.device(device))


class Crowded(DriftlensError):
    """There is memory for either of two models, and not for both at once."""


FULL = 0.95
"""How much of free memory weights may take; what is computed wants room beside them."""


def check_room(asked: Sequence[Mapping[str, int]], whose: str) -> None:
    """Stop before anything is loaded that could not be held.

    Args:
        asked: For each model that is to be loaded, bytes on each device, as `needed` gives them.
        whose: What the models are called.

    Raises:
        Crowded: Each would fit alone.
        DriftlensError: A device has less memory free; says how much, and what would fit.
    """
    for place in dict.fromkeys(place for one in asked for place in one):
        total, room = sum(one.get(place, 0) for one in asked), int(FULL * room_on(place))
        if total > room:
            each = len(asked) > 1 and all(
                size <= FULL * room_on(where) for one in asked for where, size in one.items()
            )
            where = "on all devices together" if place == "any" else f"on {place}"
            raise (Crowded if each else DriftlensError)(
                f"{gigabytes(total)} of free memory {where}, for the weights of {whose}",
                found=gigabytes(room),
                remedy=_remedy(place, total, each, len(asked)),
            )


def _remedy(place: str, size: int, each: bool, models: int) -> str:
    ways = ["--two-phase to a report, which holds one model at a time"] if each else []
    if place != "any" and torch.cuda.device_count() and everywhere() >= size:
        ways.append("--device-map auto, which spreads weights over all devices")
    if models > 1 and torch.cuda.device_count() > 1:
        ways.append("--base-device cuda:0 --aligned-device cuda:1")
    ways += ["--dtype bfloat16, if that is float32", "a --device-map with blocks on disk"]
    return f"Give {'; or '.join(ways)}."


def room_on(place: str) -> int:
    """Bytes of memory that are free on a device, or on any."""
    if place == "disk":
        return sys.maxsize
    return everywhere() if place == "any" else available(torch.device(place))


def everywhere() -> int:
    """Bytes of memory that are free on all devices together."""
    count = torch.cuda.device_count()
    devices = [torch.device("cuda", number) for number in range(count)]
    return sum(map(available, [torch.device("cpu"), *devices]))


def gigabytes(bytes_: int) -> str:
    """A size for people."""
    return f"{bytes_ / 1e9:.2f} GB" if bytes_ >= 1e8 else f"{bytes_ / 1e6:.2f} MB"


# Who reaches them


def home(module: nn.Module) -> torch.device:
    """Where a module computes: where its weights lie, or are brought to when it is called."""
    weight = next(module.parameters())
    if weight.device.type == "meta" and (hook := _keeper(module)) is not None:
        return torch.device(hook.execution_device)
    return weight.device


class Weights(Mapping[str, Tensor]):
    """The weights of a net by name, wherever they lie; those that are offloaded are read at need.

    A weight that lies in pieces on several processes is put together when it is asked for, by all
    of them.

    Args:
        net: The net.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._held = dict(net.named_parameters())
        self._names = {bare(name): name for name in self._held}

    def __getitem__(self, name: str) -> Tensor:
        own = self._names[name]
        weight = self._held[own]
        if weight.device.type != "meta":
            return whole(weight.detach())
        path, _, leaf = own.rpartition(".")
        hook = _keeper(self._net.get_submodule(path))
        if hook is None:
            raise DriftlensError(
                f"the weight {name}", found="it was freed", remedy="Load the model again."
            )
        return hook.weights_map[leaf]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def bytes(self) -> int:
        """What all of them take."""
        return sum(weight.numel() * weight.element_size() for weight in self._held.values())


def _keeper(module: nn.Module) -> Any:
    """The hook of accelerate's that holds a module's weights while it does not run."""
    hook = getattr(module, "_hf_hook", None)
    every = [hook, *getattr(hook, "hooks", ())]
    return next((one for one in every if getattr(one, "offload", False)), None)


def bare(name: str) -> str:
    """A weight's name without what wrappers add to it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, put together where it lies in pieces on several processes."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def hindrance(net: nn.Module) -> str:
    """Why a net's weights can neither be changed nor learn, in words; empty if they can."""
    if by := quantised(net):
        return f"weights quantised by {by}"
    weights = dict(net.named_parameters()).values()
    if any(hasattr(weight, "full_tensor") for weight in weights):
        return "weights in pieces on several processes"
    gone = sum(weight.device.type == "meta" for weight in weights)
    return f"{gone} of {len(weights)} weights offloaded" if gone else ""


def spread(net: nn.Module) -> str:
    """The same of a net whose weights must lie on one device; also of one that lies on several."""
    devices = sorted({str(weight.device) for weight in net.parameters()})
    return hindrance(net) or (f"weights on {', '.join(devices)}" if len(devices) > 1 else "")


QUANTISED = ("bitsandbytes", "torchao", "torch.ao.nn.quantized", "gptqmodel", "awq", "hqq")
"""Packages whose modules and weights are not what they seem: numbers of a few bits."""


def quantised(net: nn.Module) -> str:
    """By what a net's weights are quantised; empty if they are not."""
    told = getattr(net.config, "quantization_config", None)
    if told is not None:
        method = told.get("quant_method") if isinstance(told, dict) else told.quant_method
        return str(getattr(method, "value", method))
    kinds = {type(module).__module__ for module in net.modules()}
    kinds |= {type(weight.data).__module__ for weight in net.parameters()}
    if by := next((one for one in QUANTISED for kind in kinds if kind.startswith(one)), None):
        return by
    whole_numbers = {w.dtype for w in net.parameters() if not w.dtype.is_floating_point}
    kept = sorted(str(kind).removeprefix("torch.") for kind in whole_numbers)
    return f"means of its own ({', '.join(kept)})" if kept else ""


def contents(net: nn.Module) -> dict[str, Tensor]:
    """All numbers that a quantised net is made of, also those that are no parameters."""
    return {name: one for key, kept in net.state_dict().items() for name, one in _flat(key, kept)}


def _flat(name: str, kept: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(kept, tuple | list):
        for number, one in enumerate(kept):
            yield from _flat(f"{name}.{number}", one)
    elif isinstance(kept, Tensor) and kept.is_quantized:
        yield f"{name}.numbers", kept.int_repr()
        # A scale for each row or one for all: what is left of them in the numbers told apart.
        yield f"{name}.values", kept.dequantize()
    elif isinstance(kept, Tensor):
        yield name, kept


def check_live(net: nn.Module) -> None:
    """Stop over a net that would not hear hooks.

    Raises:
        DriftlensError: It is compiled.
    """
    compiled = [
        path or "the whole net"
        for path, module in net.named_modules()
        if type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
    ]
    if compiled:
        raise DriftlensError(
            "a net as it is before torch.compile, for what is compiled ignores later hooks",
            found=f"{compiled[0]} compiled",
            remedy="Pass the net itself (net._orig_mod, or load it anew).",
        )
