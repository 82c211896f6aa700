"""Changes of basis that keep a model's function and bring its weights nearest to another's.

Neurons of an MLP can stand in any order, values can be turned if the output turns them back, and
what a norm's channel gains the linear maps that read it can lose. A straight path between two
nets that differ by such a change crosses a barrier, though nothing has changed.

Found by running the net on a few tokens, so that no list of architectures has to be kept; only
the number of heads is read from the configuration. Left alone are queries and keys, which rotary
places tie to their basis, the order of heads, experts of a mixture, and shifts of a norm's bias.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from driftlens.formulas import bases

from .hooks import HookedModel
from .hybrid import _matched
from .survey import holding
from .wiring import TEXTS, TOKENS, Mlp, Norm, Rows, Values, Wiring, few

Key = tuple[str, str]
"""Path of a module, and what it calls the parameter."""

NEARER = 0.5
"""A change of basis is believed only if it brings each of the places that it touches this much
nearer to the base: their squared distance falls to this part of what it was, or less, and to this
part of the base's own size, so that what was merely made small is not taken for what is alike.

A step against the gradient is at right angles to all these changes, since the loss stays the same
along them. So what was learnt does not look like one; and a learnt change of one place alone would
be moved to the other, which then ends farther off.
"""

KEPT = 1e-4
"""How far the logits may move by rounding, as a part of their size, in float32."""

CONDITION = 100.0
"""The largest condition of a change of the values' basis that is more than a rotation."""

NEAR_ZERO = 1e-3
"""Channels of a norm below this part of its median cannot be divided by."""


@dataclass(frozen=True)
class Matched:
    """A change of basis that was made."""

    layer: str
    """Number of the block, or `head`."""

    what: str
    """`neurons`, `values` or `norm`."""

    module: str
    """Path of the map that writes to the stream, or of the norm."""

    moved: int
    """How many neurons, key-value heads or channels got another basis."""

    of: int
    """Of how many."""

    before: float
    """‖ΔW‖ of all weights that the change touches, before it."""

    after: float
    """The same after it, and all other changes."""


@dataclass(frozen=True)
class Matching:
    """An aligned model's weights in the basis that is nearest to the base's."""

    weights: Mapping[Key, Tensor] = field(repr=False)
    """Weights that take the place of the aligned model's, by module and name, in float32 at least.

    A tied weight never changes.
    """

    changes: tuple[Matched, ...]
    """What was done: norms, then neurons, then values, each from the bottom up."""

    skipped: Mapping[str, str]
    """By path, what was left alone, and why."""

    before: float
    """‖ΔW‖ of all weights as they were given."""

    after: float
    """‖ΔW‖ of all weights, matched."""

    def __str__(self) -> str:
        if not self.changes:
            return "No change of basis brings the weights nearer."
        done = ", ".join(f"{c.layer}.{c.what} ({c.moved} of {c.of})" for c in self.changes)
        return f"‖ΔW‖ fell from {self.before:.4g} to {self.after:.4g} by {done}."


@torch.no_grad()
def match(base: HookedModel, aligned: HookedModel) -> Matching:
    """The aligned model's weights, in the basis nearest to the base's that keeps its function.

    Neurons are matched by linear assignment, which minimises ‖ΔW‖ over all orders; where a map
    enters a product (up · act(gate)) or a ReLU, a neuron may also be stretched. Values are turned
    by the orthogonal R of least ‖R V_aligned − V_base‖² + ‖O_aligned Rᵀ − O_base‖² (Schönemann
    1966), or by any well-conditioned R if that brings both twice as near again. Channels of a norm
    get the base's scale. Nothing is done that does not bring every place nearer; see `NEARER`.
    Neither model is changed.

    Args:
        base: What to come near to.
        aligned: Whose weights are given in another basis.

    Raises:
        DriftlensError: The weights of the two differ in name or shape.
    """
    if base.net is aligned.net:
        # An adapter learns beside the base's weights, in their basis.
        return Matching({}, (), {}, 0.0, 0.0)
    _matched(base, aligned)
    wiring = Wiring(aligned)
    ours, theirs = _View(base.net, wiring), _View(aligned.net, wiring)
    chosen = _chosen(wiring, ours, theirs)
    kept, final, dropped = _proven(aligned, theirs, chosen)
    changes = tuple(
        Matched(
            turn.layer,
            turn.what,
            turn.path,
            *turn.moved,
            _distance(ours, theirs, turn.touched),
            _distance(ours, final, turn.touched),
        )
        for turn in kept
    )
    every = list(theirs.keys())
    return Matching(
        final.changed,
        changes,
        wiring.skipped | {turn.path: "the logits did not stay the same" for turn in dropped},
        _distance(ours, theirs, every),
        _distance(ours, final, every),
    )


def _chosen(wiring: Wiring, ours: "_View", theirs: "_View") -> list["Turn"]:
    """The changes of basis that bring the weights nearer.

    Rows can only be recognised once the channels that they read have the same scale, and channels
    can only be judged once the rows stand in the same order. So norms are first believed, then
    judged in the light of what was matched, and all else is matched again.
    """
    believed = [turn for norm in wiring.norms if (turn := _rescaled(norm, ours, theirs))]
    first = _rows(wiring, ours, theirs.after(believed))
    seen = theirs.after(first)
    norms = [kept for turn in believed if (kept := turn.judged(ours, seen))]
    return [*norms, *_rows(wiring, ours, theirs.after(norms))]


def _rows(wiring: Wiring, ours: "_View", theirs: "_View") -> list["Turn"]:
    neurons = (_ordered(mlp, ours, theirs) for mlp in wiring.mlps)
    values = (_turned(heads, ours, theirs) for heads in wiring.values)
    return [turn for turn in (*neurons, *values) if turn is not None]


def _proven(
    model: HookedModel, given: "_View", turns: Sequence["Turn"]
) -> tuple[list["Turn"], "_View", list["Turn"]]:
    """The changes that keep the logits, the weights after them, and the changes that do not."""
    if not turns:
        return [], given, []
    own = _logits(model, {})
    every = given.after(turns)
    if _same(own, _logits(model, every.changed), model.dtype):
        return list(turns), every, []
    kept: list[Turn] = []
    dropped: list[Turn] = []
    for turn in turns:
        fits = _same(own, _logits(model, given.after([*kept, turn]).changed), model.dtype)
        (kept if fits else dropped).append(turn)
    return kept, given.after(kept), dropped


def _same(own: Tensor, other: Tensor, kind: torch.dtype) -> bool:
    rounding = max(KEPT, 16 * torch.finfo(kind).eps)
    return bool((other - own).norm() <= rounding * (own - own.mean(-1, keepdim=True)).norm())


def _logits(model: HookedModel, weights: Mapping[Key, Tensor]) -> Tensor:
    """[text, token, vocab] what a net says of a few tokens with some other weights."""
    by_module: dict[str, dict[str, Tensor]] = {}
    for (path, name), weight in weights.items():
        own = model.net.get_submodule(path).get_parameter(name)
        by_module.setdefault(path, {})[name] = weight.to(own.dtype)
    with ExitStack() as stack:
        for path, mine in by_module.items():
            stack.enter_context(holding(model.net.get_submodule(path), mine))
        return model.logits(few(model, TEXTS, TOKENS)).double()


def _distance(ours: "_View", theirs: "_View", keys: Iterable[Key]) -> float:
    """‖ΔW‖ over some weights, each once."""
    squares, seen = 0.0, set()
    for key in keys:
        one, other = ours.tensor(key), theirs.tensor(key)
        if (where := (one.data_ptr(), other.data_ptr())) not in seen:
            seen.add(where)
            squares += float(
                (other.to(torch.float32) - one.to(torch.float32)).double().square().sum()
            )
    return squares**0.5


# Weights as matrices, with some changed


class _View:
    """A net's weights by what they map, some of them changed; the net is not."""

    def __init__(
        self, net: nn.Module, wiring: Wiring, changed: Mapping[Key, Tensor] | None = None
    ) -> None:
        self.net, self.wiring = net, wiring
        self.changed = dict(changed or {})

    def after(self, turns: Iterable["Turn"]) -> "_View":
        """The weights after some changes of basis."""
        view = _View(self.net, self.wiring, self.changed)
        for turn in turns:
            turn.apply(view)
        return view

    def keys(self) -> Iterator[Key]:
        """All weights of the net."""
        for path, module in self.net.named_modules():
            for name, weight in module._parameters.items():
                if weight is not None and weight.is_floating_point():
                    yield path, name

    def tensor(self, key: Key) -> Tensor:
        """A weight as it is stored."""
        if key in self.changed:
            return self.changed[key]
        weight = self.net.get_submodule(key[0])._parameters[key[1]]
        assert weight is not None, "it was found to be there"
        return weight.data

    def vector(self, path: str, name: str) -> Tensor | None:
        """[feature] a bias or a scale, in float32 at least; None if there is none."""
        if self.net.get_submodule(path)._parameters.get(name) is None:
            return None
        return _full(self.tensor((path, name)))

    def matrix(self, path: str) -> Tensor:
        """[out, in] the weight of a linear map, in float32 at least."""
        weight = _full(self.tensor((path, "weight")))
        return weight.T if self.wiring.flipped[path] else weight

    def rows(self, some: Rows) -> Tensor:
        """[row, in + 1] rows of a linear map, each with its bias."""
        bias = self.vector(some.path, "bias")
        matrix = self.matrix(some.path)[some.rows]
        return matrix if bias is None else torch.cat([matrix, bias[some.rows, None]], 1)

    def put(self, path: str, name: str, tensor: Tensor) -> None:
        """Put a vector in its place, or a matrix [out, in]."""
        flipped = name == "weight" and self.wiring.flipped.get(path, False)
        self.changed[path, name] = (tensor.T if flipped else tensor).contiguous()

    def put_rows(self, some: Rows, rows: Tensor) -> None:
        """Put rows, each with its bias, in their places."""
        matrix, bias = self.matrix(some.path).clone(), self.vector(some.path, "bias")
        matrix[some.rows] = rows[:, : matrix.shape[1]].to(matrix)
        self.put(some.path, "weight", matrix)
        if bias is not None:
            bias = bias.clone()
            bias[some.rows] = rows[:, -1].to(bias)
            self.put(some.path, "bias", bias)

    def keys_of(self, path: str) -> list[Key]:
        """A linear map's or a norm's own weights."""
        own = self.net.get_submodule(path)._parameters
        return [(path, name) for name in ("weight", "bias") if own.get(name) is not None]


def _full(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _own(view: _View, paths: Iterable[str]) -> tuple[Key, ...]:
    """All weights of some modules, each once."""
    return tuple(dict.fromkeys(key for path in paths for key in view.keys_of(path)))


@dataclass(frozen=True)
class Turn(ABC):
    """A change of basis that keeps the function."""

    layer: str
    path: str
    """The map that reads what is changed, or the norm."""

    touched: tuple[Key, ...]

    what: ClassVar[str]

    @property
    @abstractmethod
    def moved(self) -> tuple[int, int]:
        """How many neurons, heads or channels get another basis, and of how many."""

    @abstractmethod
    def apply(self, view: _View) -> None:
        """Put the changed weights in place."""


# Neurons


@dataclass(frozen=True)
class Ordered(Turn):
    """Neurons in another order, some of them stretched."""

    mlp: Mlp
    order: Tensor
    """[neuron] which one takes its place."""

    stretch: Tensor
    """[neuron] by what its proportional input is multiplied there, and its output divided."""

    what = "neurons"

    @property
    def moved(self) -> tuple[int, int]:
        """How many stand elsewhere or are stretched."""
        here = torch.arange(len(self.order), device=self.order.device)
        return int(((self.order != here) | (self.stretch != 1)).sum()), len(here)

    def apply(self, view: _View) -> None:
        """Put the neurons in their order."""
        for number, rows in enumerate(self.mlp.given):
            mine = view.rows(rows)[self.order]
            view.put_rows(rows, mine * self.stretch[:, None] if number == self.mlp.free else mine)
        down = view.matrix(self.mlp.path)[:, self.order]
        view.put(self.mlp.path, "weight", down / self.stretch)


def _ordered(mlp: Mlp, ours: _View, theirs: _View) -> Ordered | None:
    """The order and stretch of neurons that bring them nearer to the base's, if any do."""
    base, mine = (
        [*(view.rows(rows) for rows in mlp.given), view.matrix(mlp.path).T]
        for view in (ours, theirs)
    )
    last = len(base) - 1
    known = [_recognised(parts, mlp.free) for parts in (base, mine)]
    order = bases.order(known[0], known[1], mlp.signed)
    there = [part[order] for part in mine]
    stretched = _stretched(there, _stretch(base, there, mlp), mlp.free)
    # Each cycle is judged by itself: part of one is no order.
    cycle = bases.cycles(order)
    fits = torch.ones_like(order, dtype=torch.bool)
    for side in (slice(last), slice(last, None)):
        goal, before, after = (torch.cat(parts[side], 1) for parts in (base, mine, stretched))
        fits &= _nearer(goal, before, after, cycle)[cycle]
    order = torch.where(fits, order, torch.arange(len(order), device=order.device))
    there = [part[order] for part in mine]
    stretch = _stretch(base, there, mlp)
    stretched = _stretched(there, stretch, mlp.free)
    for part in () if mlp.free is None else (mlp.free, last):
        stretch = torch.where(_nearer(base[part], there[part], stretched[part]), stretch, 1.0)
    touched = _own(ours, [*(rows.path for rows in mlp.given), mlp.path])
    found = Ordered(mlp.layer, mlp.path, touched, mlp, order, stretch)
    return found if found.moved[0] else None


def _recognised(parts: Sequence[Tensor], free: int | None) -> tuple[Tensor, Tensor]:
    """[neuron, feature] what of a neuron no stretch changes, and the rest as long as each other."""
    if free is None:
        return torch.cat(list(parts), 1), parts[0][:, :0]
    fixed = [part for number, part in enumerate(parts[:-1]) if number != free]
    up, down = (part / _lengths(part) for part in (parts[free], parts[-1]))
    size = (_lengths(parts[free]) * _lengths(parts[-1])).sqrt()
    return torch.cat([parts[free][:, :0], *fixed], 1), torch.cat([up * size, down * size], 1)


def _lengths(rows: Tensor) -> Tensor:
    return rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny ** 0.5)


def _stretch(base: Sequence[Tensor], there: Sequence[Tensor], mlp: Mlp) -> Tensor:
    """[neuron] stretch after which input and output are in the base's proportion."""
    if mlp.free is None:
        return torch.ones(len(base[-1]), dtype=base[-1].dtype, device=base[-1].device)
    up, down = ((base[part], there[part]) for part in (mlp.free, -1))
    (up_base, up_mine), (down_base, down_mine) = (
        [_lengths(p) for p in both] for both in (up, down)
    )
    size = ((up_base / up_mine) * (down_mine / down_base)).sqrt().flatten()
    if not mlp.signed:
        return size
    turned = (up[0] * up[1]).sum(1) + (down[0] * down[1]).sum(1) < 0
    return torch.where(turned, -size, size)


def _stretched(parts: Sequence[Tensor], stretch: Tensor, free: int | None) -> list[Tensor]:
    if free is None:
        return list(parts)
    each = stretch[:, None]
    changed = {free: parts[free] * each, len(parts) - 1: parts[-1] / each}
    return [changed.get(number, part) for number, part in enumerate(parts)]


def _nearer(base: Tensor, before: Tensor, after: Tensor, owner: Tensor | None = None) -> Tensor:
    """[row] or [owner] whether rows come clearly nearer to the base's; see `NEARER`."""

    def size(rows: Tensor) -> Tensor:
        squares = rows.double().square().sum(1)
        if owner is None:
            return squares
        return torch.zeros_like(squares).index_add_(0, owner, squares)

    was = size(before - base)
    return (size(after - base) <= NEARER * torch.minimum(was, size(base))) & (was > 0)


# Values


@dataclass(frozen=True)
class Turned(Turn):
    """Values in another basis, and the output map that turns them back."""

    values: Values
    turns: Mapping[int, Tensor]
    """[feature, feature] new basis, by number of the key-value head."""

    what = "values"

    @property
    def moved(self) -> tuple[int, int]:
        """How many key-value heads are turned."""
        return len(self.turns), len(self.values.groups)

    def apply(self, view: _View) -> None:
        """Put the values in their basis."""
        output = view.matrix(self.path).double()
        for number, turn in self.turns.items():
            turn = turn.to(output.device)
            rows, read = self.values.groups[number]
            view.put_rows(rows, turn @ view.rows(rows).double())
            back = torch.linalg.inv(turn)
            for head in read:
                output[:, head] = output[:, head] @ back
        view.put(self.path, "weight", output.to(view.matrix(self.path)))


def _turned(values: Values, ours: _View, theirs: _View) -> Turned | None:
    """The bases of values that bring them and their output nearer to the base's, if any do."""
    turns = {}
    outputs = [view.matrix(values.path).double().cpu() for view in (ours, theirs)]
    for number, (rows, read) in enumerate(values.groups):
        given = [view.rows(rows).double().cpu() for view in (ours, theirs)]
        # [feature, all that reads it]: the output's columns, one below the other.
        taken = [torch.cat([o[:, head].T for head in read], 1) for o in outputs]
        turn = _basis(*given, *taken)
        if turn is not None:
            turns[number] = turn
    paths = [*(rows.path for rows, _ in values.groups), values.path]
    found = Turned(values.layer, values.path, _own(ours, paths), values, turns)
    return found if turns else None


def _basis(base: Tensor, mine: Tensor, base_out: Tensor, mine_out: Tensor) -> Tensor | None:
    """[feature, feature] R of V → R V and O → O R⁻¹, if it brings both clearly nearer."""
    rigid = bases.rotation(torch.cat([base, base_out], 1), torch.cat([mine, mine_out], 1))
    loose = bases.mapping(base, mine)
    best, least = None, (mine, mine_out)
    for turn in (rigid, loose):
        if torch.linalg.cond(turn) > CONDITION:
            continue
        turned = turn @ mine, torch.linalg.inv(turn).T @ mine_out
        sides = zip((base, base_out), least, turned, strict=True)
        if all(bool(_nearer(*(part.flatten()[None] for part in side))) for side in sides):
            best, least = turn, turned
    return best


# Norms


@dataclass(frozen=True)
class Rescaled(Turn):
    """A norm with the base's scale in some channels, which its readers take back."""

    norm: Norm
    weight: Tensor
    """[channel] the norm's new weight."""

    ratio: Tensor
    """[channel] by what its scale is multiplied, and what reads the channel divided; 1 is still."""

    what = "norm"

    @property
    def moved(self) -> tuple[int, int]:
        """How many channels are stretched."""
        return int((self.ratio != 1).sum()), len(self.ratio)

    def apply(self, view: _View) -> None:
        """Put the norm and its readers in place."""
        view.put(self.path, "weight", self.weight)
        bias = view.vector(self.path, "bias")
        if bias is not None:
            view.put(self.path, "bias", bias * self.ratio)
        for reader in self.norm.readers:
            view.put(reader, "weight", view.matrix(reader) / self.ratio)

    def judged(self, ours: _View, theirs: _View) -> "Rescaled | None":
        """Only those channels in which the norm and what reads it come clearly nearer."""
        moved = self.ratio != 1
        stretched = theirs.after([self])
        for paths in ([self.path], self.norm.readers):
            moved &= _nearer(*(_channels(view, paths) for view in (ours, theirs, stretched)))
        return _partly(self, moved, theirs)


def _rescaled(norm: Norm, ours: _View, theirs: _View) -> Rescaled | None:
    """The base's scale in every channel that has one to divide by."""
    base, mine = (view.vector(norm.path, "weight") for view in (ours, theirs))
    assert base is not None, "a norm has a weight"
    assert mine is not None, "a norm has a weight"
    scales = [norm.offset + base, norm.offset + mine]
    clear = [scale.abs() > NEAR_ZERO * scale.abs().median() for scale in scales]
    ratio = torch.where(clear[0] & clear[1], scales[0] / scales[1], 1.0)
    touched = _own(ours, [norm.path, *norm.readers])
    whole = Rescaled(norm.layer, norm.path, touched, norm, base, ratio)
    return _partly(whole, ratio != 1, theirs)


def _partly(whole: Rescaled, moved: Tensor, theirs: _View) -> Rescaled | None:
    """The same in some channels alone."""
    mine = theirs.vector(whole.path, "weight")
    if mine is None or not bool(moved.any()):
        return None
    ratio = torch.where(moved, whole.ratio, 1.0)
    return replace(whole, weight=torch.where(moved, whole.weight, mine), ratio=ratio)


def _channels(view: _View, paths: Iterable[str]) -> Tensor:
    """[channel, all] a norm's weight and bias, or what reads each channel."""
    parts = []
    for path in paths:
        if path in view.wiring.flipped:
            parts.append(view.matrix(path).T)
        else:
            both = (view.vector(path, name) for name in ("weight", "bias"))
            parts += [vector[:, None] for vector in both if vector is not None]
    return torch.cat(parts, 1)
