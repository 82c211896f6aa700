"""Where the blocks of a transformer are, and what in them adds to the residual stream.

Found by looking at what flows, so that no list of architectures has to be kept.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from driftlens.errors import DriftlensError

ATTENTION = ("attention.output.dense", "self_attn", "attn", "attention", "self_attention")
MLP = ("output.dense", "mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "fc2")
"""Where the writers usually are. In BERT's post-norm blocks, what is added is a dense output."""


def blocks(net: nn.Module) -> nn.ModuleList:
    """The list of transformer blocks: the longest ModuleList that lies in no other.

    Raises:
        DriftlensError: There is none.
    """
    outermost: list[tuple[str, nn.ModuleList]] = []
    for name, module in net.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in outermost)
        if isinstance(module, nn.ModuleList) and len(module) and not inside:
            outermost.append((name, module))
    if not outermost:
        raise DriftlensError(
            "a model with a list of transformer blocks",
            found=f"{type(net).__name__} without any nn.ModuleList",
            remedy="Give a decoder or encoder of the transformers library.",
        )
    return max((module for _, module in outermost), key=len)


def writers(
    names: Collection[str], before: Tensor, after: Tensor, outputs: Mapping[str, Tensor]
) -> tuple[str | None, str | None, bool]:
    """Which two modules of a block add to the residual stream: attention and MLP.

    Args:
        names: Of all modules in the block.
        before: [batch, token, width] stream that entered it.
        after: [batch, token, width] stream that left it.
        outputs: For each child in the order of running, [batch, token, width] what it gave.

    Returns:
        Their names (None where there is no such module), and whether the residual identity
        before + attention + MLP = after holds. In post-norm blocks it does not.
    """
    added = after.double() - before.double()
    # What two sums may lose to rounding, in a model of any dtype.
    rounding = 2 * torch.finfo(after.dtype).eps * (before.abs() + after.abs()).double()
    found = []
    for first, second in combinations(outputs, 2):
        apart = (added - outputs[first].double() - outputs[second].double()).abs()
        rest = (apart - rounding).clamp(min=0).norm()
        if rest <= 1e-2 * added.norm():
            named = (first in ATTENTION) + (second in MLP)
            found.append((float(rest), -named, first, second))
    if found:
        # Dropouts repeat what they are given, so several pairs may fit: known names go first.
        enough = 10 * min(found)[0] + 1e-6 * float(after.norm())
        _, _, attention, mlp = min((f for f in found if f[0] <= enough), key=lambda f: f[1])
        return attention, mlp, True
    return _known(names, ATTENTION), _known(names, MLP), False


def _known(names: Collection[str], paths: Sequence[str]) -> str | None:
    return next((path for path in paths if path in names), None)


def ripple(stream: Tensor) -> Tensor:
    """A small stream of the same shape, beside which what a block adds is large.

    In half precision a trained stream rounds away much of what one block adds to it.
    """
    waves = torch.arange(stream.numel(), device=stream.device, dtype=torch.float32).sin()
    return (1e-2 * waves).to(stream.dtype).reshape(stream.shape)


def stream_of(output: object, like: Tensor) -> Tensor | None:
    """The tensor in a module's output that could be added to a stream like `like`."""
    first = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(first, Tensor) or first.numel() != like.numel():
        return None
    # Some MLPs flatten batch and token.
    return first.reshape(like.shape) if first.shape[-1] == like.shape[-1] else None
