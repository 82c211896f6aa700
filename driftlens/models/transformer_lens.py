"""A TransformerBridge of TransformerLens as a back-end: used as it is, hooks and all.

A bridge rewrites the net that it is booted on: its blocks, attentions and maps are wrapped, and
every parameter has another name. The wrapped net still runs as it did, so that hooks on its parts
see the same; what works on weights is given a plain net that shares them.
"""

import copy
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from torch import nn

from driftlens.errors import DriftlensError

from .hooks import HookedModel
from .sites import Site

WRAPPED = "_original_component."
"""What a bridge puts into the name of a parameter for each wrapping."""


class BridgedModel(HookedModel):
    """A language model that is looked into through its TransformerBridge.

    Args:
        bridge: A live bridge.
        tokenizer: The tokenizer, if not its own.
        **named: `name` and `around`, as of `HookedModel`.

    Raises:
        DriftlensError: The bridge has no net in this process.
    """

    backend = "transformer_lens"

    def __init__(self, bridge: Any, tokenizer: Any = None, **named: Any) -> None:
        net = getattr(bridge, "original_model", None)
        if not isinstance(net, nn.Module):
            raise DriftlensError(
                "a bridge to a net in this process",
                found=f"one that {type(bridge).__name__} reaches elsewhere",
                remedy="Boot it with TransformerBridge.boot_transformers.",
            )
        super().__init__(net, tokenizer or bridge.tokenizer, **named)
        self.bridge = bridge

    def _named(self, number: int) -> Iterable[tuple[str, nn.Module]]:
        """The modules of a block by the names that they had before, each with its wrapping."""
        named: dict[str, nn.Module] = {}
        for name, module in self.blocks[number].named_modules():
            # A hook point hands on what it is given: it writes nothing of its own.
            if type(module).__name__ == "HookPoint":
                continue
            # What is inside a wrapping has its name, and the wrapping comes first.
            named.setdefault(f"{name}.".replace(WRAPPED, "").removesuffix("."), module)
        return named.items()

    def _module(self, site: Site) -> str | None:
        """The module of the block at whose end a place is; `heads` are at the entry of theirs.

        Raises:
            DriftlensError: Attention does not run its output map.
        """
        if site.part == "heads" and getattr(self.bridge.cfg, "use_attn_result", False):
            raise DriftlensError(
                "a bridge whose attention runs its output map, to see what enters that",
                found="use_attn_result, by which each head is mapped by itself",
                remedy="Call set_use_attn_result(False) on it, or leave out heads.",
            )
        return super()._module(site)

    def _part(self, number: int, name: str) -> nn.Module:
        """A module of a block by its name in it."""
        return self._parts[number][name]

    @cached_property
    def _parts(self) -> list[dict[str, nn.Module]]:
        """[block] its modules by name: a trace asks for each of its places."""
        return [dict(self._named(number)) for number in range(self.depth)]

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """Every parameter by the name that it had before the net was wrapped."""
        return dict(_unwrapped(self.net).named_parameters())

    @property
    def processed(self) -> bool:
        """Whether its weights were folded or centred, as in compatibility mode."""
        return bool(getattr(self.bridge, "_weights_processed", False))

    @cached_property
    def bare(self) -> HookedModel:
        """The same weights in a plain net.

        Raises:
            DriftlensError: Weights alone do not say what the bridge does.
        """
        plain = HookedModel(_unwrapped(self.net), self.tokenizer, self.name, self.around)
        plain.source = self.source
        if self.processed or not _same(self, plain):
            raise DriftlensError(
                "a bridge that does what the weights of its net say",
                found="processed weights" if self.processed else "one that hooks change",
                remedy="Call reset_hooks() on it, and boot it without compatibility mode.",
            )
        return plain


def boot(net: nn.Module, tokenizer: Any, name: str) -> Any:
    """A bridge on a net, which is rewritten by it.

    Raises:
        DriftlensError: TransformerLens does not know its architecture.
    """
    TransformerBridge = _bridge()
    # It would change the tokenizer, and load another that begins every text.
    own = copy.deepcopy(tokenizer)
    own.init_kwargs = {"name_or_path": name, **own.init_kwargs, "add_bos_token": True}
    parameter = next(net.parameters())
    try:
        return TransformerBridge.boot_transformers(
            name, hf_model=net, tokenizer=own, device=parameter.device, dtype=parameter.dtype
        )
    except ValueError as error:
        if "architecture" not in str(error):
            raise
        raise DriftlensError(
            "an architecture that TransformerLens knows",
            found=type(net).__name__,
            remedy="Leave out --backend (or backend=…): plain hooks need no list of them.",
        ) from None


def _bridge() -> Any:
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError as error:
        raise DriftlensError(
            "transformer-lens from 4.3, below 5",
            found=str(error),
            remedy="Type: pip install 'transformer-lens>=4.3,<5'.",
        ) from None
    return TransformerBridge


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module without wrappings anywhere in it, sharing every parameter; itself if it has none.

    What is not wrapped stays the same object, so that an adapter inside is switched in both.
    """
    while isinstance(inner := module._modules.get(WRAPPED[:-1]), nn.Module):
        module = inner
    if not any(name.endswith(WRAPPED[:-1]) for name, _ in module.named_modules()):
        return module
    plain = type(module).__new__(type(module))
    vars(plain).update(vars(module))
    for name, kept in vars(module).items():
        # What a module registers is its own: hooks on one must not be hooks on the other.
        if isinstance(kept, dict) and name.startswith("_") and name != "_modules":
            vars(plain)[name] = kept.copy()
    children = module._modules.items()
    vars(plain)["_modules"] = {n: c and _unwrapped(c) for n, c in children}
    return plain


def _same(one: HookedModel, other: HookedModel) -> bool:
    """Whether two models say the same of a few tokens, but for the order of arithmetic."""
    ids = torch.arange(5, device=one.device)[None]
    with torch.no_grad():
        ours, theirs = (model.logits(ids).float() for model in (one, other))
    tolerance = 100 * torch.finfo(one.dtype).eps * float(ours.abs().max())
    return bool((ours - theirs).abs().max() <= tolerance)
