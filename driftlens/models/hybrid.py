"""One net that stands anywhere between base and aligned, weight by weight."""

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from driftlens.errors import DriftlensError

from .heads import with_heads
from .hooks import HookedModel, Score
from .memory import available
from .model import Wants, likelihoods
from .pieces import DIVISIONS, By, Owner, Piece, pieces
from .placement import spread
from .sites import Site
from .survey import Heard, Survey, hooked, outcome, put, survey, tensors
from .tokens import Batch

Outputs = tuple[Tensor, ...]

Ends = dict[tuple[str, str], tuple[Tensor, Tensor]]
"""By module and name, a weight of both models."""

Blend = tuple[Outputs, Callable[[], Outputs]]
"""What a module gives at this point of the path, and the tangent of it along the path."""

Way = Callable[[nn.Module, tuple, dict, Outputs], Blend]


@dataclass(frozen=True)
class Change:
    """A weight of the base beside the same weight of the aligned model."""

    layer: str
    component: str
    name: str
    base: Tensor
    aligned: Tensor


@dataclass(frozen=True)
class Slopes:
    """How the scored log-likelihood of a batch changes along the path, at one point of it."""

    likelihood: Tensor
    """[scored token] log-likelihood at this point, in nats."""

    acts: Mapping[str, Tensor]
    """For each module by path, [batch, token] derivative by the module's weights as they are used
    at each position, in nats over the whole path."""

    heads: Mapping[str, Tensor]
    """For each module of attention, [batch, token, head] the part of it that is each head's, if
    that was asked for."""


def hybrid(
    base: object, aligned: object, instead: Mapping[tuple[str, str], Tensor] | None = None
) -> "Hybrid":
    """What stands between two models.

    Args:
        base: One end.
        aligned: The other.
        instead: By module and name, weights that stand for the aligned model's own.

    Raises:
        DriftlensError: A model is not a plain `transformers` net, or the weights of the two
            cannot be matched by name and shape, or do not all lie on one device.
    """
    ours, theirs = plain(base), plain(aligned)
    for model in (ours, theirs):
        if apart := spread(model.net):
            raise _apart(f"{model.name}, with {apart}")
    for one, other in ((ours.device, theirs.device), (ours.dtype, theirs.dtype)):
        if one != other:
            raise _apart(f"{one} of {ours.name}, {other} of {theirs.name}")
    if ours.net is theirs.net and ours is not theirs:
        return Adapted(theirs)
    return Twin(ours, theirs, instead or {})


def _apart(found: str) -> DriftlensError:
    return DriftlensError(
        "two models whose weights all lie on one device, as plain numbers of one dtype",
        found=found,
        remedy="Attribute by activations (--method sweep), or load both with --device alone.",
    )


def plain(model: object) -> HookedModel:
    """The model, if its weights can be reached.

    Raises:
        DriftlensError: It is not a plain `transformers` net.
    """
    if isinstance(model, HookedModel):
        return model.bare
    raise DriftlensError(
        "models whose weights can be swapped",
        found=type(model).__name__,
        remedy="Load both from names, folders or live transformers models.",
    )


class Hybrid(ABC):
    """One net that stands anywhere between base and aligned, weight by weight."""

    model: HookedModel
    """The net, in the state that was set last."""

    owners: Mapping[str, Owner]
    """Every module that holds weights which may differ, by its path."""

    surveyed: Survey

    promoted: bool = False
    """Whether the path runs in a wider precision than the models."""

    def pieces(self, by: By) -> tuple[Piece, ...]:
        """All weights, divided, from the bottom of the model up.

        Args:
            by: `layer` divides into embedding, blocks and head; `component` also into attention
                and MLP, final norm and unembedding; `head` also into single attention heads,
                those that share keys and values together; `module` into every module that
                holds weights.

        Raises:
            DriftlensError: The heads of a block cannot be told apart.
        """
        if by not in DIVISIONS:
            raise DriftlensError(
                f"a division among {', '.join(DIVISIONS)}", found=repr(by), remedy="Give one."
            )
        return pieces(self.by_head if by == "head" else self.owners, by)

    @cached_property
    def by_head(self) -> Mapping[str, Owner]:
        """The owners, with what of attention belongs to which head.

        Raises:
            DriftlensError: The heads of a block cannot be told apart.
        """
        return with_heads(self.model, self.owners, self.surveyed)

    def stages(self, aligned: Collection[Piece]) -> tuple[frozenset[Piece], ...]:
        """For embedding, each block and head, which of the pieces lie in it."""
        names = ["embed", *map(str, range(self.model.depth)), "head"]
        return tuple(frozenset(p for p in aligned if p.layer == name) for name in names)

    @cached_property
    def resumes(self) -> bool:
        """Whether the net gives the same if it is resumed at a block on the stream alone."""
        model, none = self.model, torch.zeros(0, dtype=torch.long)
        ids = torch.arange(5)[None] % len(model.net.get_input_embeddings().weight)
        place = torch.zeros(4, dtype=torch.long), torch.arange(1, 5)
        batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool), (none, none), place, none)
        whole = model.trace(batch, Wants(frozenset({"out"}), None))
        for layer in range(model.depth - 1):
            try:
                again = model.resume(batch, layer, whole.activations[Site(layer)])
            except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                # Whatever a block says when it misses what an earlier one would have left.
                return False
            if not torch.equal(again, whole.predictors):
                return False
        return True

    @abstractmethod
    def grafted(self, aligned: Collection[Piece]) -> AbstractContextManager[HookedModel]:
        """The net with aligned's weights in these pieces and base's in all others."""

    @abstractmethod
    def changes(self) -> Iterator[Change]:
        """Every weight that both models have, once, from the bottom up."""

    @abstractmethod
    def _at(self, alpha: float) -> AbstractContextManager[Mapping[str, Way]]:
        """The net at base + alpha · (aligned − base), and the way of each module that moves."""

    def likelihoods(self, batch: Batch, alpha: float) -> Tensor:
        """[scored token] log-likelihoods at a point of the path, in nats."""
        with self._at(alpha) as ways:
            listeners = {path: _Standing(way) for path, way in ways.items()}
            with self.model.listening(listeners):
                trace = self.model.trace(batch)
                return likelihoods(self.model, trace.predictors, trace.batch.targets)

    def slopes(
        self, batch: Batch, alpha: float, heads: bool = False, score: Score | None = None
    ) -> Slopes:
        """The derivative of the scored log-likelihood along the straight path of weights.

        For a linear map the derivative by its weights, as they are used at position t, is
        gₜᵀ ΔW aₜ: what enters at t, mapped by the change of the weights, times the gradient of
        what leaves at t. It is taken from one forward and one backward pass; no gradient of a
        weight is formed.

        Args:
            batch: What to read.
            alpha: Where to stand on the path; 0 is base and 1 is aligned.
            heads: Whether to divide what attention does among its heads too.
            score: What is made of logits in place of log-likelihoods.

        Raises:
            DriftlensError: The models fill in masked tokens.
        """
        if not self.model.causal:
            raise DriftlensError(
                "models that continue text",
                found=f"{self.model.name}, which fills in masked tokens",
                remedy="Attribute by grafts.",
            )
        batch = batch.to(self.model.device)
        divided = {p: o for p, o in self.by_head.items() if o.heads} if heads else {}
        with self._at(alpha) as ways:
            shape, device = batch.ids.shape, batch.ids.device
            acts = {path: torch.zeros(shape, dtype=torch.float64, device=device) for path in ways}
            mine = {p: _Heads(self, p, o, shape, device) for p, o in divided.items() if p in ways}

            def listeners(rows: slice | None) -> dict[str, Any]:
                spread = _Everywhere(shape) if rows is None else _AtPredictors(batch, rows)
                return {
                    path: _Listener(
                        way, acts[path], spread, self.surveyed.heard[path], mine.get(path)
                    )
                    for path, way in ways.items()
                }

            likelihood = self.model.pull(batch, listeners, score=score)
        return Slopes(likelihood, acts, {path: each.acts for path, each in mine.items()})

    @abstractmethod
    def change(self, path: str) -> Tensor:
        """[out, in] change of a linear module's weight from base to aligned, in float32 at least.

        Raises:
            DriftlensError: The change is not at hand as a weight.
        """


class Twin(Hybrid):
    """Two nets of one shape, and a third that borrows their weights.

    Between the two ends it holds its own, in float32 at least; at them it holds none. Where there
    is no memory for that it holds none at all: each module is run with both models' weights and
    gives the mixture, which of a map that is linear in its weights is the same.
    """

    def __init__(
        self,
        base: HookedModel,
        aligned: HookedModel,
        instead: Mapping[tuple[str, str], Tensor] = MappingProxyType({}),
    ) -> None:
        self.base, self.aligned = base, aligned
        self.ends = _matched(base, aligned)
        for key, weight in instead.items():
            ours = self.ends[key][0]
            self.ends[key] = ours, weight.to(ours)
        name = f"between {base.name} and {aligned.name}"
        self.model = HookedModel(_skeleton(base.net), base.tokenizer, name, base.around)
        self._modules = dict(self.model.net.named_modules())
        self._room: dict[tuple[str, str], Tensor] = {}
        holders: dict[str, list[str]] = {}
        for path, parameter in self.ends:
            holders.setdefault(path, []).append(parameter)
        self.surveyed = survey(self.model, holders)
        self.owners = self.surveyed.owners(holders)
        self._check_alike()
        self.lean = not self._fits()
        """Whether no weight is held between the ends."""
        kind = torch.promote_types(base.dtype, torch.float32)
        self.promoted = kind != base.dtype and not self.lean

    def _fits(self) -> bool:
        """Whether a copy of the weights, in float32 at least, leaves half of the memory free."""
        needed = sum(max(4, ours.element_size()) * ours.numel() for ours, _ in self.ends.values())
        return needed <= available(self.model.device) // 2

    @torch.no_grad()
    def _check_alike(self) -> None:
        """Aligned's weights must make aligned of base's net: else more than weights differs."""
        ids = torch.arange(8, device=self.model.device)[None]
        ids %= len(self.model.net.get_input_embeddings().weight)
        with self.grafted(self.pieces("layer")) as model:
            ours = model.logits(ids).float()
        theirs = self.aligned.logits(ids).float()
        rounding = 64 * torch.finfo(self.base.dtype).eps
        if float((ours - theirs).abs().max()) > rounding * float(theirs.abs().max()):
            raise DriftlensError(
                "two models that differ in their weights alone",
                found=f"other logits of {self.base.name} with all weights of {self.aligned.name}",
                remedy="Compare their configurations (activation, rope, norms, scales), or "
                "attribute by activations (--method sweep or screen).",
            )

    def _set(self, path: str, name: str, tensor: Tensor) -> None:
        getattr(self._modules[path], name).data = tensor

    @contextmanager
    def grafted(self, aligned: Collection[Piece]) -> Iterator[HookedModel]:
        """The net with aligned's weights in these pieces and base's in all others."""
        mixed: dict[tuple[str, str], Tensor] = {}
        for key, (ours, _) in self.ends.items():
            self._set(*key, ours)
        for weight in (w for piece in aligned for w in piece.weights):
            key = weight.module, weight.name
            ours, theirs = self.ends[key]
            if weight.features is None:
                self._set(*key, theirs)
                continue
            index = torch.tensor(weight.features, device=ours.device)
            if key not in mixed:
                mixed[key] = ours.clone()
            held = mixed[key]
            held.index_copy_(weight.axis, index, theirs.index_select(weight.axis, index))
            self._set(*key, held)
        yield self.model

    def changes(self) -> Iterator[Change]:
        """Every weight that both models have, once, from the bottom up."""
        seen = set()
        for path, owner in sorted(self.owners.items(), key=lambda item: item[1].rank):
            for weight in owner.weights:
                ours, theirs = self.ends[path, weight.name]
                # Tied weights are one weight.
                if (where := (ours.data_ptr(), theirs.data_ptr())) not in seen:
                    seen.add(where)
                    yield Change(owner.layer, owner.component, weight.path, ours, theirs)

    @cached_property
    def _moving(self) -> Mapping[str, Mapping[str, tuple[Tensor, Tensor]]]:
        """By module and name, both ends of the weights that differ."""
        found: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
        for (path, name), (ours, theirs) in self.ends.items():
            if not torch.equal(ours, theirs):
                found.setdefault(path, {})[name] = ours, theirs
        return found

    @contextmanager
    def _at(self, alpha: float) -> Iterator[Mapping[str, Way]]:
        moving = [path for path in self._moving if path in self.surveyed.heard]
        if self.lean:
            with self.grafted(()):
                yield {path: self._mixture(path, alpha) for path in moving}
            return
        kind = torch.promote_types(self.base.dtype, torch.float32)
        held: dict[tuple[int, int], Tensor] = {}
        for (path, name), (ours, theirs) in self.ends.items():
            key = ours.data_ptr(), theirs.data_ptr()
            if key not in held:
                # Tied weights are blended once.
                held[key] = self._blended(path, name, ours, theirs, alpha, kind)
            self._set(path, name, held[key])
        yield {path: self._way(path) for path in moving}

    def _mixture(self, path: str, alpha: float) -> Way:
        aligned = {name: theirs for name, (_, theirs) in self._moving[path].items()}

        def way(module: nn.Module, inputs: tuple, keywords: dict, outputs: Outputs) -> Blend:
            theirs = outcome(module, aligned, inputs, keywords)
            changes = tuple(b - a for a, b in zip(outputs, theirs, strict=True))
            here = tuple(a + alpha * c for a, c in zip(outputs, changes, strict=True))
            return here, lambda: changes

        return way

    def _blended(
        self, path: str, name: str, ours: Tensor, theirs: Tensor, alpha: float, kind: torch.dtype
    ) -> Tensor:
        moves = name in self._moving.get(path, {})
        if not moves and ours.dtype == kind:
            return ours
        if (path, name) not in self._room:
            self._room[path, name] = torch.empty_like(ours, dtype=kind)
        room = self._room[path, name]
        if not moves:
            return room.copy_(ours)
        if ours.dtype == kind:
            return torch.lerp(ours, theirs, alpha, out=room)
        return room.copy_(ours).lerp_(theirs.to(kind), alpha)

    def change(self, path: str) -> Tensor:
        """[out, in] change of a linear module's weight from base to aligned."""
        ours, theirs = self.ends[path, "weight"]
        kind = torch.promote_types(ours.dtype, torch.float32)
        change = theirs.to(kind) - ours.to(kind)
        return change.T if type(self._modules[path]).__name__ == "Conv1D" else change

    def _way(self, path: str) -> Way:
        ends = self._moving[path]
        form = self.surveyed.heard[path].form

        def way(module: nn.Module, inputs: tuple, keywords: dict, outputs: Outputs) -> Blend:
            return outputs, lambda: _tangent(module, inputs, keywords, ends, form)

        return way


class Adapted(Hybrid):
    """One net whose adapter is dialled from off to on, module by module; nothing is merged.

    What an adapted module gives is W x with the adapter off and (W + ΔW) x with it on; between
    them it gives a mixture of both, which for a linear map is what the mixture of the weights
    gives. A module that an adapter replaces whole and that is not linear takes another way between
    the same ends.
    """

    def __init__(self, aligned: HookedModel) -> None:
        self.model = aligned
        self._bare = dict(_adapted(aligned.net))
        holders = {path: [""] for path in self._bare}
        self.surveyed = survey(aligned, holders)
        self.owners = self.surveyed.owners(holders)

    @contextmanager
    def grafted(self, aligned: Collection[Piece]) -> Iterator[HookedModel]:
        """The net with the adapter on in these pieces and off in all others."""
        on = {weight.module for piece in aligned for weight in piece.weights}
        off = {path: self._off(path) for path in self._bare if path not in on}
        with self.model.listening(off):
            yield self.model

    def changes(self) -> Iterator[Change]:
        """The base's weight and what the adapter makes of it, from the bottom up."""
        for path, owner in sorted(self.owners.items(), key=lambda item: item[1].rank):
            module, bare = self.model.net.get_submodule(path), self._bare[path]
            for name, ours, theirs in _effective(module, bare):
                yield Change(owner.layer, owner.component, f"{path}.{name}", ours, theirs)

    @property
    def by_head(self) -> Mapping[str, Owner]:
        """Nothing: what an adapter adds has no head of its own.

        Raises:
            DriftlensError: Always.
        """
        raise DriftlensError(
            "a pair of whole models, to divide by head",
            found=f"{self.model.name}, an adapter",
            remedy="Divide by component, or give the adapter merged into its base.",
        )

    def change(self, path: str) -> Tensor:
        """[out, in] change of a linear module's weight by the adapter."""
        ours, theirs = next(
            (a, b) for _, a, b in _effective(self.model.net.get_submodule(path), self._bare[path])
        )
        return theirs.float() - ours.float()

    def _off(self, path: str) -> Callable:
        bare = self._bare[path]
        return lambda _, inputs, keywords, __: bare(*inputs, **keywords)

    @contextmanager
    def _at(self, alpha: float) -> Iterator[Mapping[str, Way]]:
        yield {path: self._way(path, alpha) for path in self._bare if path in self.surveyed.heard}

    def _way(self, path: str, alpha: float) -> Way:
        bare = self._bare[path]

        def way(_: nn.Module, inputs: tuple, keywords: dict, outputs: Outputs) -> Blend:
            off = tensors(bare(*inputs, **keywords))
            changes = tuple(on - ours for on, ours in zip(outputs, off, strict=True))
            here = tuple(ours + alpha * c for ours, c in zip(off, changes, strict=True))
            return here, lambda: changes

        return way


class _Standing:
    """Puts a module where it stands on its way."""

    def __init__(self, way: Way) -> None:
        self.way = way

    def __call__(self, module: nn.Module, inputs: tuple, keywords: dict, output: Any) -> Any:
        return put(output, self.way(module, inputs, keywords, tensors(output))[0])


class _Listener:
    """Puts a module on its way, and adds up what its weights do at every position."""

    def __init__(
        self, way: Way, acts: Tensor, spread: Any, heard: Heard, heads: "_Heads | None"
    ) -> None:
        self.way, self.acts, self.spread, self.heard, self.heads = way, acts, spread, heard, heads

    def __call__(self, module: nn.Module, inputs: tuple, keywords: dict, output: Any) -> Any:
        outputs, tangents = self.way(module, inputs, keywords, tensors(output))
        kept: list[Outputs] = []
        entered, axes = inputs[0] if inputs else None, self.heard.axes
        return hooked(
            output,
            outputs,
            lambda tensor, number: self.spread.widened(tensor, axes[number]),
            lambda number: self._pulled(number, axes[number], tangents, kept, entered),
        )

    def _pulled(
        self, number: int, axis: int | None, tangents: Callable, kept: list, entered: Any
    ) -> Callable:
        def pulled(gradient: Tensor) -> None:
            if not kept:
                # One tangent serves all that a module gives.
                kept.append(tangents())
            tangent = kept[0][number].detach()
            self.spread.add(self.acts, gradient, tangent, axis)
            if self.heads is not None:
                self.heads.add(gradient, tangent, entered)

        return pulled


class _Heads:
    """Adds up what each head's part of a linear map does at every position."""

    def __init__(
        self, hybrid: Hybrid, path: str, owner: Owner, shape: torch.Size, device: torch.device
    ) -> None:
        _, features = owner.heads["weight"]
        self.entering, self.path, self.hybrid = owner.entering, path, hybrid
        self.belongs = torch.zeros(sum(map(len, features)), len(features), device=device)
        for head, mine in enumerate(features):
            self.belongs[list(mine), head] = 1
        self.acts = torch.zeros(*shape, len(features), dtype=torch.float64, device=device)

    def add(self, gradient: Tensor, tangent: Tensor, entered: Tensor) -> None:
        if self.entering:
            gradient, tangent = gradient @ self.hybrid.change(self.path).to(gradient), entered
        products = (gradient * tangent).reshape(*self.acts.shape[:2], -1)
        self.acts += (products @ self.belongs.to(products)).double()


class _Everywhere:
    """Places what modules give for all tokens of a batch."""

    def __init__(self, shape: torch.Size) -> None:
        self.shape = shape

    def widened(self, tensor: Tensor, axis: int | None) -> Tensor:
        """With a row for each text, where all texts have it in common."""
        rows = self.shape[0]
        if axis == 0:
            return tensor.expand(rows, *tensor.shape)
        return tensor.expand(rows, *tensor.shape[1:]) if axis and len(tensor) == 1 else tensor

    def add(self, acts: Tensor, gradient: Tensor, tangent: Tensor, axis: int | None) -> None:
        tangent = tangent.expand_as(gradient)
        if axis is not None and axis > 1:
            gradient, tangent = gradient.movedim(axis, 1), tangent.movedim(axis, 1)
        acts += _products(gradient, tangent, self.shape)


class _AtPredictors:
    """Places what modules give for some scored tokens at the tokens that predict them."""

    def __init__(self, batch: Batch, rows: slice) -> None:
        text, token = batch.target
        self.places = text[rows], token[rows] - 1

    def widened(self, tensor: Tensor, axis: int | None) -> Tensor:
        return tensor

    def add(self, acts: Tensor, gradient: Tensor, tangent: Tensor, axis: int | None) -> None:
        products = _products(gradient, tangent.expand_as(gradient), self.places[0].shape)
        acts.index_put_(self.places, products, accumulate=True)


def _products(gradient: Tensor, tangent: Tensor, shape: torch.Size) -> Tensor:
    """[*shape] inner products, in float64, of what is left of each place."""
    pair = (tensor.reshape(*shape, -1) for tensor in (gradient, tangent))
    return torch.linalg.vecdot(*pair).double()


def _tangent(
    module: nn.Module,
    inputs: tuple,
    keywords: dict,
    ends: Mapping[str, tuple[Tensor, Tensor]],
    form: str,
) -> Outputs:
    """How what a module gives changes along the path of its weights, its inputs held."""
    kind = module.get_parameter(next(iter(ends))).dtype
    if form == "lookup":
        # The change of a whole vocabulary would be formed for the few rows that are read.
        ours, theirs = (
            outcome(module, {name: both[end] for name, both in ends.items()}, inputs, keywords)
            for end in (0, 1)
        )
        return tuple(b.to(kind) - a.to(kind) for a, b in zip(ours, theirs, strict=True))
    change = {name: theirs.to(kind) - ours.to(kind) for name, (ours, theirs) in ends.items()}
    if form == "curved":
        return _curved(module, inputs, keywords, change)
    own = {name: p for name, p in module._parameters.items() if p is not None}
    still = {name: torch.zeros_like(p) for name, p in own.items() if name not in change}
    moved = outcome(module, still | change, inputs, keywords)
    if form == "linear":
        return moved
    none = outcome(module, {name: torch.zeros_like(p) for name, p in own.items()}, inputs, keywords)
    return tuple(a - b for a, b in zip(moved, none, strict=True))


def _curved(module: nn.Module, inputs: tuple, keywords: dict, change: Mapping) -> Outputs:
    import torch.autograd.forward_ad as forward

    with _plain_experts(module), warnings.catch_warnings(), forward.dual_level():
        # The first dual number makes torch compile its own rules, by a function it deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        dual = {
            name: forward.make_dual(getattr(module, name).data, tangent)
            for name, tangent in change.items()
        }
        own = {name: module._parameters[name] for name in change}
        try:
            for name, weight in dual.items():
                # A dual number cannot be a parameter; an attribute of the same name hides it.
                del module._parameters[name]
                object.__setattr__(module, name, weight)
            given = tensors(module.forward(*inputs, **keywords))
            found = [forward.unpack_dual(tensor) for tensor in given]
        finally:
            for name, weight in own.items():
                object.__delattr__(module, name)
                module._parameters[name] = weight
    return tuple(
        torch.zeros_like(one.primal) if one.tangent is None else one.tangent for one in found
    )


@contextmanager
def _plain_experts(module: nn.Module) -> Iterator[None]:
    """A mixture's experts one by one while inside: their fused product has no tangent."""
    config = getattr(module, "config", None)
    kind = getattr(config, "_experts_implementation", None)
    if config is None or kind is None:
        yield
        return
    try:
        config._experts_implementation = "eager"
        yield
    finally:
        config._experts_implementation = kind


def _skeleton(net: nn.Module) -> nn.Module:
    """The same net without weights of its own: each parameter borrows the net's.

    A tied weight is two parameters here, so that each use of it can be swapped by itself.
    """
    twin = copy.deepcopy(net, {id(parameter): parameter for parameter in net.parameters()})
    for module in twin.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.data, requires_grad=False)
    return twin


def _matched(base: HookedModel, aligned: HookedModel) -> Ends:
    """By module and name, both models' weights."""
    ours, theirs = dict(_weights(base.net)), dict(_weights(aligned.net))
    alone = [".".join(key) for key in sorted(ours.keys() ^ theirs.keys())]
    unlike = [
        f"{'.'.join(key)} of {tuple(ours[key].shape)} and {tuple(theirs[key].shape)}"
        for key in ours.keys() & theirs.keys()
        if ours[key].shape != theirs[key].shape
    ]
    if alone or unlike:
        wrong = [*unlike, *(f"{name} in one model only" for name in alone)]
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise DriftlensError(
            "two models whose weights match by name and shape",
            found="; ".join(wrong[:3]) + more,
            remedy="Attribute by activations (--method sweep or screen), or give models of "
            "one architecture and one vocabulary.",
        )
    return {key: (weight, theirs[key]) for key, weight in ours.items()}


def _weights(net: nn.Module) -> Iterator[tuple[tuple[str, str], Tensor]]:
    for path, module in net.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_floating_point():
                yield (path, name), parameter.data


def _adapted(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that an adapter changes, each with the module that it has without."""
    inside: tuple[str, ...] = ()
    for path, module in net.named_modules():
        bare = getattr(module, "base_layer", getattr(module, "original_module", None))
        if isinstance(bare, nn.Module) and not path.startswith(inside or ("\0",)):
            inside = (*inside, f"{path}.")
            yield path, bare


def _effective(module: Any, bare: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """By name, the base's weight and what an adapter makes of it."""
    if hasattr(module, "get_delta_weight"):
        weight = bare.get_parameter("weight").data
        change = sum(module.get_delta_weight(name).float() for name in module.active_adapters)
        # In float32: a sum in half precision would drown the change in rounding.
        yield "weight", weight, weight.float() + change
        return
    kept = module.modules_to_save[module.active_adapter]
    for name, parameter in bare.named_parameters():
        yield name, parameter.data, kept.get_parameter(name).data
