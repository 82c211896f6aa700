"""Which features of an attention, and of its weights, belong to which head.

Found by what answers to what: a feature of queries, keys or values belongs to the head whose
part of the output map's input it moves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from driftlens.errors import DriftlensError

from .hooks import HookedModel
from .pieces import Owner
from .sites import Site
from .survey import LENGTHS, ROWS, Survey, put, tensors

Features = tuple[tuple[int, ...], ...]
"""For each head, its features."""

ENTERING, LEAVING = "entering", "leaving"

OWN = 0.5
"""The least part of a feature's influence that its own head must have. A norm over all heads
lets each feature touch every head a little."""


def with_heads(
    model: HookedModel, owners: Mapping[str, Owner], surveyed: Survey
) -> dict[str, Owner]:
    """The same owners, those of attention with their features by head.

    Heads that share keys and values are one: their weights cannot be swapped apart.

    Raises:
        DriftlensError: The heads of a block cannot be told apart.
    """
    found = dict(owners)
    for path, (side, features) in _features(model, owners, surveyed).items():
        module = model.net.get_submodule(path)
        # The one linear map of transformers whose weight stands the other way round.
        turned = type(module).__name__ == "Conv1D"
        axis = int(turned) if side == LEAVING else 1 - int(turned)
        heads = {"weight": (axis, features)}
        if side == LEAVING and any(weight.name == "bias" for weight in owners[path].weights):
            heads["bias"] = (0, features)
        found[path] = replace(owners[path], heads=heads, entering=side == ENTERING)
    return found


def heads_of(model: object) -> tuple[Features, ...]:
    """For each block, the features of each head at the block's site `heads`.

    The heads are those of `with_heads`: the ones that share keys and values are one.

    Raises:
        DriftlensError: The heads of a block cannot be told apart, or nothing can be.
    """
    if not isinstance(model, HookedModel):
        raise DriftlensError(
            "models whose heads can be looked into",
            found=type(model).__name__,
            remedy="Divide by component (--by component).",
        )
    return tuple(_divided(model, number) for number in range(model.depth))


def _divided(model: HookedModel, number: int) -> Features:
    site = Site(number, "heads")
    if not model.has(site):
        raise _unclear(model, number, "no linear map by which its attention writes")
    config, width = model.net.config.get_text_config(), model.features(site)
    queries = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or queries)
    if width % queries:
        raise _unclear(model, number, f"{width} features for {queries} heads")
    return tuple(tuple(head) for head in torch.arange(width).reshape(groups, -1).tolist())


def _features(
    model: HookedModel, owners: Mapping[str, Owner], surveyed: Survey
) -> dict[str, tuple[str, Features]]:
    maps = _maps(model, owners, surveyed)
    given, taken = _run(model, maps)
    found: dict[str, tuple[str, Features]] = {}
    for number, (*before, last) in enumerate(maps):
        each = _divided(model, number)
        found[last] = ENTERING, each
        influence = _influence(taken[last], [given[path] for path in before], each)
        for path, moved in zip(before, influence, strict=True):
            if (features := _owned(moved)) is not None:
                found[path] = LEAVING, features
    return found


def _maps(model: HookedModel, owners: Mapping[str, Owner], surveyed: Survey) -> list[list[str]]:
    """For each block the linear maps of its attention as they run; the last one writes."""
    found: list[list[str]] = [[] for _ in range(model.depth)]
    for path in sorted(owners, key=lambda p: surveyed.order.get(p, -1)):
        owner, weight = owners[path], getattr(model.net.get_submodule(path), "weight", None)
        flat = isinstance(weight, Tensor) and weight.ndim == 2
        if owner.component == "attn" and flat and path in surveyed.heard:
            found[int(owner.layer)].append(path)
    for number, paths in enumerate(found):
        if len(paths) < 2:
            raise _unclear(model, number, f"{len(paths)} linear maps in its attention")
    return found


def _run(
    model: HookedModel, maps: Sequence[Sequence[str]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What each map gives, cut loose from what lies below, and what a block's last is given."""
    given: dict[str, Tensor] = {}
    taken: dict[str, Tensor] = {}

    def giver(path: str) -> Callable[..., Any]:
        def listen(_: nn.Module, __: tuple, ___: dict, output: Any) -> Any:
            given[path] = tensors(output)[0].detach().requires_grad_()
            return put(output, [given[path]])

        return listen

    def taker(path: str) -> Callable[..., None]:
        def listen(_: nn.Module, inputs: tuple, keywords: dict, __: Any) -> None:
            taken[path] = inputs[0] if inputs else next(iter(keywords.values()))

        return listen

    listeners = {path: giver(path) for paths in maps for path in paths[:-1]}
    listeners |= {paths[-1]: taker(paths[-1]) for paths in maps}
    ids = torch.arange(ROWS * LENGTHS[0], device=model.device).reshape(ROWS, -1)
    ids %= len(model.net.get_input_embeddings().weight)
    with model._as_found(frozen=True), torch.enable_grad(), model.listening(listeners):
        model.body(input_ids=ids)
    return given, taken


def _influence(taken: Tensor, given: Sequence[Tensor], heads: Features) -> list[Tensor]:
    """For each map, [head, feature] how much a head's part of `taken` answers to the feature."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(taken.shape, generator=random).to(taken)
    found: list[list[Tensor]] = [[] for _ in given]
    for head in map(list, heads):
        total = (taken[..., head] * weight[..., head]).sum()
        slopes = torch.autograd.grad(total, list(given), retain_graph=True, allow_unused=True)
        for rows, slope, made in zip(found, slopes, given, strict=True):
            slope = torch.zeros_like(made) if slope is None else slope
            rows.append(slope.abs().float().flatten(0, -2).sum(0).cpu())
    return [torch.stack(rows) for rows in found]


def _owned(influence: Tensor) -> Features | None:
    """Each head's features; None where a feature belongs to no one head."""
    share, owner = (influence / influence.sum(0)).max(0)
    if not bool((share >= OWN).all()):
        return None
    return tuple(tuple((owner == head).nonzero()[:, 0].tolist()) for head in range(len(influence)))


def _unclear(model: HookedModel, number: int, found: str) -> DriftlensError:
    return DriftlensError(
        f"heads that can be told apart in block {number} of {model.name}",
        found=found,
        remedy="Divide by component (--by component).",
    )
