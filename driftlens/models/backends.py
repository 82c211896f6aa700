"""The ways to look into a net: plain hooks, a bridge of TransformerLens, traces of nnsight.

Neither library is imported before a caller names it, or hands in an object of it.
"""

import copy
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from typing import Any

from torch import nn

from driftlens.errors import DriftlensError

from .hooks import HookedModel

BACKENDS = ("hooks", "transformer_lens", "nnsight")
"""Plain hooks on the net; a bridge that is booted on it; traces that nnsight takes of it."""

Viewer = Callable[[Any, str, Callable[[], AbstractContextManager]], HookedModel]
"""Makes a model of a tokenizer, a name and a context; those of one viewer share their net."""


def named(backend: str) -> str:
    """The back-end of a name, with - or _ in it.

    Raises:
        DriftlensError: There is none; says which name is near.
    """
    name = backend.replace("-", "_")
    if name not in BACKENDS:
        near = get_close_matches(name, BACKENDS, 1, 0.3)
        raise DriftlensError(
            f"a back-end among {', '.join(BACKENDS)}",
            found=repr(backend),
            remedy=f"Give {near[0] if near else BACKENDS[0]}.",
        )
    return name


def attention(backend: str, asked: str | None) -> str | None:
    """The attention to load with: TransformerLens shows scores and patterns, which eager has."""
    return "eager" if backend == "transformer_lens" else asked


def viewer(backend: str, net: nn.Module, tokenizer: Any, name: str = "") -> Viewer:
    """Look into a net by a back-end, which may rewrite the net or wrap its parts.

    Args:
        backend: Which of `BACKENDS`.
        net: A net that is nobody else's; of somebody else's give `sharing(net)`.
        tokenizer: Its tokenizer.
        name: What to call it.

    Raises:
        DriftlensError: The library is missing or does not know the architecture.
    """
    if backend == "transformer_lens":
        from .transformer_lens import BridgedModel, boot

        bridge = boot(net, tokenizer, name)
        return lambda own, name, around: BridgedModel(bridge, own, name=name, around=around)
    if backend == "nnsight":
        from .nnsight import TracedModel, wrap

        traced = wrap(net, tokenizer)
        return lambda own, name, around: TracedModel(traced, own, name=name, around=around)
    return lambda own, name, around: HookedModel(net, own, name, around)


def of_live(model: object, tokenizer: Any = None) -> HookedModel | None:
    """A live bridge or an nnsight model as it is; None of anything else.

    Raises:
        DriftlensError: It cannot be looked into.
    """
    made_by = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    if "transformer_lens" in made_by:
        from .transformer_lens import BridgedModel

        return BridgedModel(model, tokenizer)
    if "nnsight" in made_by:
        from .nnsight import TracedModel

        return TracedModel(model, tokenizer)
    return None


def sharing(net: nn.Module, backend: str) -> nn.Module:
    """A net of one's own that has the same weights, not copies, for a back-end that rewrites nets.

    Warns:
        UserWarning: That what the caller does to the live net afterwards is not seen.
    """
    if backend == "hooks":
        return net
    warnings.warn(
        f"{backend} is put on a net that shares the weights of the live {type(net).__name__}, "
        "which is left as it is: hooks on that are not seen. Hand in a bridge or an nnsight model "
        "of your own to have it used as it is.",
        stacklevel=6,
    )
    return copy.deepcopy(net, {id(parameter): parameter for parameter in net.parameters()})


def one(
    backend: str,
    net: nn.Module,
    tokenizer: Any,
    name: str,
    around: Callable[[], AbstractContextManager] = nullcontext,
) -> HookedModel:
    """The one model that a net is."""
    return viewer(backend, net, tokenizer, name)(tokenizer, name, around)
