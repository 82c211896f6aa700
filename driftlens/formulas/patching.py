"""What a patched activation gives back, from gradients."""

import torch
from torch import Tensor


def along(gradient: Tensor, base: Tensor, aligned: Tensor) -> Tensor:
    r"""What putting base's activation in the aligned one's place adds, to first order.

    .. math:: \varphi = \langle \nabla_h m, h^b - h^a \rangle

    With the gradient at the aligned end it is attribution patching; with the mean gradient on
    the way between the two it is exact.

    Source: Nanda (2023), "Attribution Patching"; Sundararajan, Taly & Yan (2017), "Axiomatic
    Attribution for Deep Networks", eq. 1.

    Args:
        gradient: [*, width] of m by the activation.
        base: [*, width] activation of the base model.
        aligned: [*, width] activation of the aligned model.

    Returns:
        [*] in the unit of m; above 0 where the move from aligned to base adds to m.
    """
    kind = torch.promote_types(gradient.dtype, torch.float32)
    return torch.linalg.vecdot(gradient.to(kind), base.to(kind) - aligned.to(kind))
