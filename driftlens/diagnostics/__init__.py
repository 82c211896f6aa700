"""The instruments, one file each. They do not know each other."""

from .drift import Drift, DriftResult
from .forgetting import Forgetting, ForgettingResult
from .layers import LayerForgetting, LayerForgettingResult, TokenLayers, TokenLayersResult
from .lens import Lens, LensResult
from .selective import SelectiveForgetting, SelectiveForgettingResult
from .tokens import TokenForgetting, TokenForgettingResult, TokenKinds, TokenKindsResult

__all__ = [
    "Drift",
    "DriftResult",
    "Forgetting",
    "ForgettingResult",
    "LayerForgetting",
    "LayerForgettingResult",
    "Lens",
    "LensResult",
    "SelectiveForgetting",
    "SelectiveForgettingResult",
    "TokenForgetting",
    "TokenForgettingResult",
    "TokenKinds",
    "TokenKindsResult",
    "TokenLayers",
    "TokenLayersResult",
]
