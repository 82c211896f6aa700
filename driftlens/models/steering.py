"""Interventions along directions: add, ablate, clamp, project, as edits of a stream.

A change says what is done to a stream, a `Steer` in which blocks, and `edits_of` or `steered` at
which tokens: of one batch, as edits of `Model.trace`, or of all that a live net is given to read.
No direction is found here.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, partial
from inspect import signature
from math import isfinite
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from driftlens.errors import DriftlensError

from .backends import of_live
from .hooks import HookedModel
from .load import _is_peft
from .model import Edits, Model
from .sites import Part, Site
from .tokens import Batch

Positions = Literal["all", "prompt", "response", "last"]
"""At which tokens. Padding is at none of them. `last` is the last token of each row."""

PARTS: tuple[Part, ...] = ("in", "attn", "mlp", "out")
"""The parts that are as wide as the stream."""

DEPENDENT = 1e-6
"""Vectors are linearly dependent where a singular value of theirs, at unit length, is smaller
than this share of the largest: what float32 makes of sums."""

_acting: ContextVar[bool] = ContextVar("acting", default=True)
"""Whether steered nets are steered, or only looked into."""


@dataclass(frozen=True, eq=False)
class Change(ABC):
    """What is done to a stream along a direction, or in the subspace that some directions span.

    The lengths of directions do not count: they are made orthonormal, in float64 on the CPU, and
    are constants to any gradient; in the stream every change is differentiable. A stream is
    changed on its own device, and comes back in its own dtype.

    Args:
        direction: [width] one, or [direction, width] several where the change takes several.

    Raises:
        DriftlensError: They have another shape, are not finite, zero, or linearly dependent.
    """

    direction: Tensor

    several: ClassVar[bool] = False
    """Whether it takes more than one direction."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "direction", torch.as_tensor(self.direction).detach())
        shape, vectors = list(self.direction.shape), self._vectors
        if len(shape) not in (1, 1 + self.several) or not all(shape):
            raise DriftlensError(
                "a direction of shape [width]" + " or [direction, width]" * self.several,
                found=f"one of shape {shape}",
                remedy="Give a vector" + (" or a stack of vectors." if self.several else "."),
            )
        if not bool(vectors.isfinite().all()):
            raise DriftlensError(
                "a direction of finite numbers",
                found="NaN or infinity in it",
                remedy="Check the streams that it was found in.",
            )
        if not bool(vectors.any(1).all()):
            raise DriftlensError(
                "a direction that points somewhere",
                found="a vector of zeros",
                remedy="Leave it out, or find it between texts that differ.",
            )
        if len(self.basis) < len(vectors):
            raise DriftlensError(
                "linearly independent directions",
                found=f"{len(vectors)} that span {len(self.basis)} dimensions",
                remedy="Leave out those that are sums of others.",
            )

    @property
    def width(self) -> int:
        """How wide the stream must be."""
        return self.direction.shape[-1]

    @cached_property
    def basis(self) -> Tensor:
        """[direction, width] orthonormal q of the same span, float64; of one direction, its v."""
        # The square of a finite number need not be one.
        vectors = self._vectors / self._vectors.abs().amax(1, keepdim=True)
        units = vectors / vectors.norm(dim=1, keepdim=True)
        if len(units) == 1:
            return units
        _, values, basis = torch.linalg.svd(units, full_matrices=False)
        return basis[: int((values > DEPENDENT * values[0]).sum())]

    @abstractmethod
    def __call__(self, stream: Tensor) -> Tensor:
        """[row, token, width] what the stream becomes."""

    @property
    def _vectors(self) -> Tensor:
        return torch.atleast_2d(self.direction).cpu().double()

    def _beside(self, stream: Tensor) -> Tensor:
        """[direction, width] the basis on a stream's device, in its dtype."""
        key = stream.device, stream.dtype
        if key not in self._placed:
            self._placed[key] = self.basis.to(stream)
        return self._placed[key]

    @cached_property
    def _placed(self) -> dict[tuple[torch.device, torch.dtype], Tensor]:
        return {}

    def _within(self, stream: Tensor) -> Tensor:
        """[row, token, width] the part of a stream that lies in the span, Σ q ⟨q, h⟩."""
        basis = self._beside(stream)
        # Autocast would take these products in half precision.
        with torch.autocast(stream.device.type, enabled=False):
            return (stream @ basis.T) @ basis


@dataclass(frozen=True, eq=False)
class Add(Change):
    """h + r v: a step along the unit vector v.

    r v is rounded to the stream's dtype and added in it. A step of 0 leaves the very bits.

    Args:
        direction: [width] v, of any length.
        strength: r; or [row] one for each row, through which a gradient may run.
        norm: What r counts in: 1 is the stream's own units, E‖h‖ makes r a share of it.

    Source: representation engineering (Zou et al. 2023), length and direction apart as in Wolf
    et al. (2024).
    """

    strength: float | Tensor
    _: KW_ONLY
    norm: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_amounts("strength", self.strength, self.norm)

    def __call__(self, stream: Tensor) -> Tensor:
        """[row, token, width] the stream, moved."""
        # Adding 0 would make 0 of −0.
        if not isinstance(self.strength, Tensor) and self.strength * self.norm == 0:
            return stream
        return stream + (_amounts(self.strength, self.norm, stream) * self.basis).to(stream)


@dataclass(frozen=True, eq=False)
class Clamp(Change):
    """h + (c − ⟨v, h⟩) v: the component along the unit vector v is c, whatever it was.

    Computed in float32 or finer, and rounded to the stream's dtype once.

    Args:
        direction: [width] v, of any length.
        value: c; or [row] one for each row, through which a gradient may run.
        norm: What c counts in: 1 is the stream's own units, E‖h‖ makes c a share of it.
    """

    value: float | Tensor
    _: KW_ONLY
    norm: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_amounts("value", self.value, self.norm)

    def __call__(self, stream: Tensor) -> Tensor:
        """[row, token, width] the stream with that component."""
        wide = _wide(stream)
        component = (_amounts(self.value, self.norm, stream) * self.basis).to(wide)
        return (wide - self._within(wide) + component).to(stream.dtype)


@dataclass(frozen=True, eq=False)
class Ablate(Change):
    """h − Σ q ⟨q, h⟩: nothing of the stream is left in the directions' span.

    Computed in float32 or finer, and rounded to the stream's dtype once. Doing it again changes
    no more than rounding does.

    Args:
        direction: [width], or [direction, width] of a subspace, with q orthonormal in it.

    Source: directional ablation (Arditi et al. 2024).
    """

    several: ClassVar[bool] = True

    def __call__(self, stream: Tensor) -> Tensor:
        """[row, token, width] the stream outside of the subspace."""
        wide = _wide(stream)
        return (wide - self._within(wide)).to(stream.dtype)


@dataclass(frozen=True, eq=False)
class Project(Change):
    """Σ q ⟨q, h⟩: only what lies in the directions' span is left, which is what `Ablate` takes.

    Computed in float32 or finer, and rounded to the stream's dtype once.

    Args:
        direction: [width], or [direction, width] of a subspace, with q orthonormal in it.
    """

    several: ClassVar[bool] = True

    def __call__(self, stream: Tensor) -> Tensor:
        """[row, token, width] the stream in the subspace."""
        return self._within(_wide(stream)).to(stream.dtype)


def _wide(stream: Tensor) -> Tensor:
    return stream.to(torch.promote_types(stream.dtype, torch.float32))


def _check_amounts(name: str, amount: float | Tensor, norm: float) -> None:
    amounts = torch.as_tensor(amount)
    if amounts.ndim > 1 or not bool(amounts.isfinite().all()) or not isfinite(norm):
        raise DriftlensError(
            f"a finite {name}, or a finite one for each row",
            found=f"{name} {amount} and norm {norm}",
            remedy="Give a number, or a tensor of shape [row].",
        )


def _amounts(amount: float | Tensor, norm: float, stream: Tensor) -> Tensor:
    """[row or 1, 1, 1] an amount in the stream's units, float64 on the CPU."""
    amounts = torch.as_tensor(amount, dtype=torch.float64).cpu().reshape(-1, 1, 1) * norm
    if len(amounts) not in (1, len(stream)):
        raise DriftlensError(
            f"an amount for each of {len(stream)} rows",
            found=f"{len(amounts)} of them",
            remedy="Give one number for all rows, or one for each row of the batch.",
        )
    return amounts


@dataclass(frozen=True)
class Steer:
    """A change, and in which blocks it is made.

    Args:
        change: `Add`, `Ablate`, `Clamp` or `Project`.
        layers: A block's number, several of them (a range), or None for every block.
        part: `out` is the stream that leaves a block, `in` the one that enters it, `attn` and
            `mlp` are what these add to it.
    """

    change: Change
    layers: int | Sequence[int] | None = None
    part: Part = "out"

    def sites(self, model: Model) -> tuple[Site, ...]:
        """Where that is in a model.

        Raises:
            DriftlensError: There is no such place, or the direction has another width.
        """
        if self.part not in PARTS:
            raise DriftlensError(
                f"a part that is as wide as the stream: {', '.join(PARTS)}",
                found=repr(self.part),
                remedy="Choose one of these.",
            )
        every = range(model.depth)
        layers = list(every) if self.layers is None else np.atleast_1d(self.layers).tolist()
        outside = [str(layer) for layer in layers if layer not in every]
        if outside or not layers:
            raise DriftlensError(
                f"blocks from 0 to {model.depth - 1}, which {model.name} has",
                found=", ".join(outside) or "none at all",
                remedy="Choose among these.",
            )
        if self.change.width != model.width:
            raise DriftlensError(
                f"a direction of {model.width} numbers, as wide as {model.name}",
                found=f"one of {self.change.width}",
                remedy="Take one that was found in this model.",
            )
        return tuple(Site(int(layer), self.part) for layer in layers)


def edits_of(
    model: Model,
    batch: Batch,
    steers: Steer | Sequence[Steer],
    *,
    positions: Positions = "all",
    prompt: int | Sequence[int] | Tensor | None = None,
) -> Edits:
    """Steers as edits, for `model.trace(batch, wants, edits)` of this very batch.

    Those that meet at a place are made one after the other, in the order given.

    Args:
        model: Whom to steer.
        batch: What it reads, padded on either side. Padding is never touched.
        steers: What is done, and in which blocks.
        positions: At which tokens.
        prompt: How many tokens a prompt has, padding not counted: of every row, or [row].

    Raises:
        DriftlensError: A steer does not fit the model, the model fills in masked tokens, or
            nobody says where prompts end.
    """
    if not model.causal:
        # It reads a copy of a row for each scored token; an edit cannot tell which.
        raise DriftlensError(
            "a model that continues text",
            found=f"{model.name}, which fills in masked tokens",
            remedy="Run it inside `steered` instead.",
        )
    ends = _ends(positions, prompt)
    if positions in ("prompt", "response") and prompt is None:
        raise DriftlensError(
            f"to hear where prompts end, to steer at {positions!r}",
            found="nothing",
            remedy="Give prompt=, the number of a prompt's tokens without padding.",
        )
    return edits_at(model, steers, _chosen(positions, batch.mask, ends))


def edits_at(model: Model, steers: Steer | Sequence[Steer], here: Tensor) -> Edits:
    """Steers as edits at some tokens of a batch.

    Args:
        model: Whom to steer.
        steers: What is done, and in which blocks; made in this order where they meet.
        here: [batch, token] whether a token is steered.

    Raises:
        DriftlensError: A steer does not fit the model.
    """
    whole = None if bool(here.all()) else here
    plan = _plan(model, steers)
    return {site: partial(_changed, changes=some, here=whole) for site, some in plan.items()}


@contextmanager
def steered(
    model: Any,
    steers: Steer | Sequence[Steer],
    *,
    positions: Positions = "all",
    prompt: int | Sequence[int] | Tensor | None = None,
) -> Iterator[Any]:
    """The model, steered while inside, by whatever way its net is called: `generate` too.

    Where padding lies is told by the attention mask of each call, [row, token]; without one there
    is none. A call that reads on from a cache that holds tokens reads a response, and so does,
    behind the prompt, a call without a cache that reads again all of the call before that was a
    prompt, and more. All else is a prompt, unless `prompt` says where it ends. `last` is the last
    token of each row in each call, so that every token is one when it is generated.

    Steers that meet at a place are made in the order given, after those of a context around this
    one. A block that a readout or a resumed run leaves out is not steered again.

    Args:
        model: A live `transformers` net, a `PeftModel` (its adapter on or off as the caller has
            it), or a `HookedModel`. It is left as it was found, and keeps its mode inside.
        steers: What is done, and in which blocks.
        positions: At which tokens.
        prompt: How many tokens a prompt has, padding not counted: of every row, or [row].

    Yields:
        The model that was given.

    Raises:
        DriftlensError: A steer does not fit the model; or, when the net is called, its attention
            mask is not [row, token], or `prompt` is of another number of rows.
    """
    hooked = _hooked(model)
    plan, reading = _plan(hooked, steers), _Reading(positions, prompt)
    if model is hooked or any(site.part in ("attn", "mlp") for site in plan):
        # Looks for places by running the net, which may stand in another context.
        with _looking():
            _ = hooked._anatomy

    def pass_through(site: Site, given: Tensor) -> Tensor:
        if not _acting.get() or _skipped(hooked.blocks[site.layer]):
            return given
        # Some MLPs flatten row and token.
        stream = given.reshape(*reading.shape, -1)
        return _changed(stream, plan[site], reading.here).reshape(given.shape)

    with ExitStack() as hooks:
        hooks.enter_context(hooked.reading(reading.hear))
        for site in plan:
            hooks.callback(hooked._register(site, pass_through).remove)
        yield model


def _plan(model: Model, steers: Steer | Sequence[Steer]) -> dict[Site, list[Change]]:
    """What is done at each place, in order."""
    plan: dict[Site, list[Change]] = {}
    for steer in [steers] if isinstance(steers, Steer) else steers:
        for site in steer.sites(model):
            plan.setdefault(site, []).append(steer.change)
    return plan


def _changed(stream: Tensor, changes: Sequence[Change], here: Tensor | None) -> Tensor:
    """[row, token, width] the stream with the changes made; None is everywhere."""
    after = stream
    for change in changes:
        after = change(after)
    if here is None or after is stream:
        return after
    return torch.where(here.to(stream.device)[..., None], after, stream)


def _chosen(positions: Positions, mask: Tensor, ends: Tensor | None) -> Tensor:
    """[row, token] whether a token is among the positions; prompts have `ends` tokens."""
    number = mask.cumsum(1)
    if positions == "last":
        return mask & (number == number[:, -1:])
    if positions == "all" or ends is None:
        return mask
    if len(ends) not in (1, len(mask)):
        raise DriftlensError(
            f"where each of {len(mask)} prompts ends",
            found=f"{len(ends)} numbers",
            remedy="Give one number for all rows, or one for each row of the batch.",
        )
    prompt = number <= ends.to(mask.device)[:, None]
    return mask & (prompt if positions == "prompt" else ~prompt)


def refuse_other_positions(positions: str) -> None:
    """Raise unless these are positions."""
    if positions not in get_args(Positions):
        raise DriftlensError(
            f"positions among {', '.join(get_args(Positions))}",
            found=repr(positions),
            remedy="Choose one of these.",
        )


def _ends(positions: Positions, prompt: int | Sequence[int] | Tensor | None) -> Tensor | None:
    """[row or 1] how many tokens prompts have, if it is said."""
    refuse_other_positions(positions)
    if prompt is None:
        return None
    ends = torch.atleast_1d(torch.as_tensor(prompt))
    if ends.is_floating_point() or ends.ndim > 1 or bool((ends < 0).any()):
        raise DriftlensError(
            "a number of tokens for each prompt",
            found=f"{prompt}",
            remedy="Give whole numbers from 0 on: one, or one for each row.",
        )
    return ends


class _Reading:
    """What a net reads, call by call, and which tokens of it are to be steered."""

    def __init__(self, positions: Positions, prompt: int | Sequence[int] | Tensor | None) -> None:
        self.positions, self.ends = positions, _ends(positions, prompt)
        self.shape = torch.Size((0, 0))
        """Rows and tokens of the call."""

        self.mask: Any = None
        self.first: Tensor | None = None
        """[row, token] the ids of the last call that was all prompt."""

        self.before, self.known = 0, 0
        """How many columns the cache holds, and how many of all are prompt."""

    def hear(self, module: nn.Module, inputs: tuple, keywords: Mapping[str, Any]) -> None:
        """Listen to what a module of the net is given, if that is a text."""
        names = signature(module.forward).parameters if inputs else ()
        given = {**dict(zip(names, inputs, strict=False)), **keywords}
        ids, embedded = given.get("input_ids"), given.get("inputs_embeds")
        read = embedded if ids is None else ids
        if read is None or not _acting.get():
            return
        cache = given.get("past_key_values")
        self.before = 0 if cache is None else int(cache.get_seq_length())
        self.shape, self.device = read.shape[:2], read.device
        self.mask = given.get("attention_mask")
        if self.before:
            self.known = 0
        elif not self._goes_on(ids):
            self.first, self.known = ids, self.shape[1]
        self.__dict__.pop("here", None)

    def _goes_on(self, ids: Tensor | None) -> bool:
        """Whether a call without a cache reads the last prompt again, and more."""
        first = self.first
        if ids is None or first is None or len(ids) != len(first):
            return False
        longer = ids.shape[1] > first.shape[1]
        return longer and torch.equal(ids[:, : first.shape[1]], first)

    @cached_property
    def here(self) -> Tensor | None:
        """[row, token] which tokens of the call are steered; None is all."""
        rows, tokens = self.shape
        if self.mask is None and self.positions == "all":
            return None
        if self.mask is None:
            mask = torch.ones(rows, self.before + tokens, dtype=torch.bool, device=self.device)
        elif isinstance(self.mask, Tensor) and self.mask.ndim == 2:
            mask = self.mask.bool()
        else:
            raise DriftlensError(
                "an attention mask of shape [row, token], to know where padding is",
                found=f"{list(getattr(self.mask, 'shape', [])) or type(self.mask).__name__}",
                remedy="Generate with a cache that grows, or call the net with such a mask.",
            )
        ends = mask[:, : self.known].sum(1) if self.ends is None else self.ends
        return _chosen(self.positions, mask, ends)[:, -tokens:]


@contextmanager
def _looking() -> Iterator[None]:
    """No net is steered while inside."""
    before = _acting.set(False)
    try:
        yield
    finally:
        _acting.reset(before)


def _skipped(block: nn.Module) -> bool:
    """Whether a block does not run, but leaves a stream that it is given."""
    return getattr(vars(block).get("forward"), "__module__", None) == HookedModel.__module__


def _hooked(model: Any) -> HookedModel:
    if isinstance(model, HookedModel):
        return model
    if live := of_live(model):
        return live
    net = model
    if _is_peft(model):
        if any(c.is_prompt_learning or c.is_adaption_prompt for c in model.peft_config.values()):
            raise DriftlensError(
                "an adapter that changes weights",
                found="one that learns a prompt",
                remedy="Steer LoRA and its relatives.",
            )
        net = model.get_base_model()
    if not isinstance(net, nn.Module) or not hasattr(net, "config"):
        raise DriftlensError(
            "a live model of transformers",
            found=f"{type(model).__name__}",
            remedy="Load it first, and give the net itself.",
        )
    return HookedModel(net, None)
