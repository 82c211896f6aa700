"""A model whose weights are a given mixture of a pair's: what a pair could have become untrained.

The mixture has weights of its own only where they are neither base's nor aligned's; those it
borrows, so that its ends are the two models to the last bit, and neither is ever written to.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor, nn

from driftlens.errors import DriftlensError

from .hooks import HookedModel
from .hybrid import Adapted, Change, Twin, _adapted, _effective, _skeleton, hybrid
from .memory import available
from .pieces import By, Piece, Weight

Shares = float | Mapping[Piece, float]
"""λ of all weights, or of some pieces of them."""

Instead = Mapping[str, Tensor] | Callable[[Change], Tensor | None]
"""Weights by name that stand for mixed ones, or what makes them of a change."""

Key = tuple[str, str]


def mixture(base: object, aligned: object) -> "Mixture":
    """What can be mixed of two models.

    Args:
        base: Where all shares are 0.
        aligned: Where they are 1; an adapter's change of the weights is what is scaled.

    Raises:
        DriftlensError: A model's weights are out of reach, the two do not match by name and
            shape, an adapter is no change of weights, or there is no memory for one more copy.
    """
    between = hybrid(base, aligned)
    merged = isinstance(between, Adapted)
    if isinstance(between, Adapted):
        between = _merged(between.model)
    assert isinstance(between, Twin), "whole models, or an adapter"
    return Mixture(between, merged)


def unmixable(base: object, aligned: object) -> str:
    """Why two models cannot be mixed, in words; empty if they can."""
    try:
        mixture(base, aligned)
    except DriftlensError as error:
        return str(error)
    return ""


class Mixture:
    """One net that takes any mixture of a pair's weights, piece by piece.

    Args:
        twin: The pair; the mixture reads with aligned's tokenizer.
        merged: Whether aligned is an adapter, merged into its base.
    """

    def __init__(self, twin: Twin, merged: bool = False) -> None:
        self.twin, self.merged, self._taken = twin, merged, False
        self.model = HookedModel(twin.model.net, twin.aligned.tokenizer, twin.model.name)
        self._modules = dict(self.model.net.named_modules())
        self._leader = _leaders(twin)
        self._room: dict[Key, Tensor] = {}
        self._check_room()

    @cached_property
    def leaders(self) -> dict[str, str]:
        """By the name of each weight, that of the one it is tied to, often itself."""
        return {
            ".".join(filter(None, k)): ".".join(filter(None, z)) for k, z in self._leader.items()
        }

    def pieces(self, by: By) -> tuple[Piece, ...]:
        """All weights, divided, from the bottom of the model up; see `Hybrid.pieces`."""
        return self.twin.pieces(by)

    def changes(self) -> Iterator[Change]:
        """Every weight of both models, once, from the bottom up."""
        return self.twin.changes()

    @contextmanager
    def at(
        self, share: Shares = 1.0, *, rest: float = 1.0, instead: Instead | None = None
    ) -> Iterator[HookedModel]:
        r"""The model at :math:`\theta_b + \sum_p \lambda_p \Delta W_p`, while inside.

        A share of 0 is base's weight and of 1 aligned's, to the last bit; any other is mixed in
        float32 at least and held in the models' dtype. A weight that embedding and unembedding
        have in common is one weight: it goes with the embedding.

        Args:
            share: λ, of all weights or by piece; below 0 and above 1 it leaves the pair behind.
            rest: λ of the pieces that are not named.
            instead: Weights that stand for mixed ones: by name, or made of each change, where
                None leaves it mixed.

        Raises:
            DriftlensError: A share is not finite, a piece is not one of this model's, or a weight
                has no place or another shape.
        """
        assert not self._taken, "one mixture at a time: there is one copy of the weights"
        parts, given = self._parts(share, rest), self._given(instead)
        found: dict[Key, Tensor] = {}
        self._taken = True
        try:
            for change, key in self._changes():
                held = given(change)
                found[key] = (
                    self._mixed(key, parts.get(key, ()), rest)
                    if held is None
                    else self._held(key, change, held)
                )
            for key in self.twin.ends:
                self._set(key, found[self._leader[key]])
            yield self.model
        finally:
            for key, (ours, _) in self.twin.ends.items():
                self._set(key, ours)
            self._taken = False

    def save(self, folder: str | Path) -> None:
        """Write the model as it stands, whole, with its tokenizer: safetensors by `transformers`.

        Weights that are tied in the configuration and are not alike any more are written apart.
        """
        net = self.model.net
        theirs = getattr(self.twin.aligned.net, "generation_config", None)
        before = net.config.tie_word_embeddings, net.generation_config
        head, embedding = net.get_output_embeddings(), net.get_input_embeddings()
        tied = head is not None and head.weight.data_ptr() == embedding.weight.data_ptr()
        try:
            net.config.tie_word_embeddings = bool(before[0]) and tied
            net.generation_config = theirs or before[1]
            net.save_pretrained(str(folder))
            self.model.tokenizer.save_pretrained(str(folder))
        finally:
            net.config.tie_word_embeddings, net.generation_config = before

    def _changes(self) -> Iterator[tuple[Change, Key]]:
        # Every weight, once: leaders come first of those that are tied.
        places = {_path(key): key for key in self.twin.ends}
        for change in self.changes():
            yield change, places[change.name]

    def _set(self, key: Key, tensor: Tensor) -> None:
        getattr(self._modules[key[0]], key[1]).data = tensor

    def _parts(self, share: Shares, rest: float) -> dict[Key, list[tuple[Weight | None, float]]]:
        """For each weight that is named, what part of it has which share."""
        shares = share.values() if isinstance(share, Mapping) else (share,)
        if wrong := [str(z) for z in (*shares, rest) if not isfinite(z)]:
            raise DriftlensError(
                "finite shares of the change of weights",
                found=", ".join(wrong),
                remedy="Give numbers; 0 is base and 1 is aligned.",
            )
        if not isinstance(share, Mapping):
            return {key: [(None, share)] for key in self.twin.ends}
        found: dict[Key, list[tuple[Weight | None, float]]] = {}
        for piece, number in share.items():
            for weight in piece.weights:
                key = weight.module, weight.name
                if key not in self.twin.ends:
                    raise DriftlensError(
                        f"pieces of {self.model.name}",
                        found=f"{piece} with {weight.path}, which it does not have",
                        remedy="Take them from `pieces` of the same mixture.",
                    )
                part = None if weight.features is None else weight
                found.setdefault(key, []).append((part, number))
        return found

    def _given(self, instead: Instead | None) -> Callable[[Change], Tensor | None]:
        if instead is None:
            return lambda change: None
        if not isinstance(instead, Mapping):
            return instead
        names = {change.name for change in self.changes()}
        if strangers := sorted(instead.keys() - names):
            raise DriftlensError(
                f"names of weights of {self.model.name}",
                found=", ".join(strangers[:3]),
                remedy=f"Give names such as {next(iter(sorted(names)))!r}; of tied ones the first.",
            )
        return lambda change: instead.get(change.name)

    def _held(self, key: Key, change: Change, weight: Tensor) -> Tensor:
        if weight.shape != change.base.shape:
            raise DriftlensError(
                f"a weight of shape {tuple(change.base.shape)} for {change.name}",
                found=str(tuple(weight.shape)),
                remedy="Give one of the same shape.",
            )
        return self._of_our_own(key).copy_(weight)

    def _mixed(self, key: Key, parts: Sequence[tuple[Weight | None, float]], rest: float) -> Tensor:
        ours, theirs = self.twin.ends[key]
        if key[1] not in self.twin._moving.get(key[0], {}):
            return ours
        whole = next((share for part, share in parts if part is None), rest)
        some = [(part, share) for part, share in parts if part is not None]
        end = _end(whole, ours, theirs)
        if not some:
            return _between(ours, theirs, whole, self._of_our_own(key)) if end is None else end
        room = self._of_our_own(key).copy_(_between(ours, theirs, whole) if end is None else end)
        for part, share in some:
            index = torch.tensor(part.features, device=ours.device)
            a, b = (z.index_select(part.axis, index) for z in (ours, theirs))
            room.index_copy_(part.axis, index, _between(a, b, share))
        return room

    def _of_our_own(self, key: Key) -> Tensor:
        if key not in self._room:
            self._room[key] = torch.empty_like(self.twin.ends[key][0])
        return self._room[key]

    def _check_room(self) -> None:
        moving = {self._leader[path, n] for path, names in self.twin._moving.items() for n in names}
        sizes = [self.twin.ends[key][0] for key in moving]
        needed = sum(z.numel() * z.element_size() for z in sizes)
        # Two of the largest are in hand in float32 while they are mixed.
        needed += 8 * max((z.numel() for z in sizes), default=0)
        free = available(self.model.device)
        if needed > free:
            raise DriftlensError(
                f"memory on {self.model.device} for one more copy of the weights "
                f"({needed / 1e9:.2g} GB)",
                found=f"{free / 1e9:.2g} GB",
                remedy="Take a larger device, or --dtype bfloat16.",
            )


def _path(key: Key) -> str:
    return ".".join(filter(None, key))


def _leaders(twin: Twin) -> dict[Key, Key]:
    """For each weight the first one, from the bottom up, that is tied to it in both models."""
    first: dict[tuple[int, int], Key] = {}
    for path, owner in sorted(twin.owners.items(), key=lambda item: item[1].rank):
        for weight in owner.weights:
            ours, theirs = twin.ends[path, weight.name]
            first.setdefault((ours.data_ptr(), theirs.data_ptr()), (path, weight.name))
    return {key: first[ours.data_ptr(), b.data_ptr()] for key, (ours, b) in twin.ends.items()}


def _end(share: float, ours: Tensor, theirs: Tensor) -> Tensor | None:
    return {0.0: ours, 1.0: theirs}.get(share)


def _between(ours: Tensor, theirs: Tensor, share: float, room: Tensor | None = None) -> Tensor:
    if (end := _end(share, ours, theirs)) is not None:
        return end
    kind = torch.promote_types(ours.dtype, torch.float32)
    wide = ours.to(kind)
    # Multiplied, then added, each rounded: what anyone gets who writes the formula down.
    found = (theirs.to(kind) - wide).mul_(share).add_(wide)
    return found.to(ours.dtype) if room is None else room.copy_(found)


def _merged(adapted: HookedModel) -> Twin:
    """An adapter's base beside what the adapter makes of it, as two whole nets.

    Only the weights that the adapter changes are held twice.
    """
    base, aligned = _bare(adapted.net), _bare(adapted.net)
    for path, bare in _adapted(adapted.net):
        module = adapted.net.get_submodule(path)
        for name, _, theirs in _effective(module, bare):
            weight = aligned.get_submodule(path).get_parameter(name)
            weight.data = theirs.detach().to(weight.dtype)
    words = adapted.tokenizer
    twin = Twin(
        HookedModel(base, words, f"{adapted.name} without its adapter"),
        HookedModel(aligned, words, adapted.name),
    )
    _check_merged(twin.aligned, adapted)
    return twin


def _bare(net: nn.Module) -> nn.Module:
    """The net without its adapter, its weights borrowed."""
    twin = _skeleton(net)
    for path, bare in list(_adapted(twin)):
        parent, _, name = path.rpartition(".")
        twin.get_submodule(parent)._modules[name] = bare
    return twin


@torch.no_grad()
def _check_merged(merged: HookedModel, adapted: HookedModel) -> None:
    ids = torch.arange(8, device=adapted.device)[None]
    ids %= len(adapted.net.get_input_embeddings().weight)
    ours, theirs = (model.logits(ids).float() for model in (merged, adapted))
    rounding = 64 * torch.finfo(adapted.dtype).eps
    if float((ours - theirs).abs().max()) > rounding * float(theirs.abs().max()):
        raise DriftlensError(
            "an adapter that adds a change to weights",
            found=f"other logits of {adapted.name} when it is merged",
            remedy="Merge it with merge_and_unload(), save that and give it as a whole model.",
        )
