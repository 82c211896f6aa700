"""Where, and by what, an aligned language model drifted from its base.

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .diagnostics import (
        Calibration,
        CapabilityConflict,
        ChoiceCalibration,
        Constraints,
        ContrastiveMargin,
        Directions,
        Drift,
        Entanglement,
        EntanglementByLayer,
        EntanglementByPosition,
        Entropy,
        Factorial,
        FisherDistance,
        Forgetting,
        Grafts,
        Homogenisation,
        Interactions,
        LayerForgetting,
        Lens,
        PositionMap,
        PreferenceCollapse,
        PreferenceFacts,
        PreferenceLosses,
        Ranking,
        Restoration,
        Retention,
        SafetyDirections,
        SafetyForgetting,
        SafetyWeights,
        Screen,
        SelectiveForgetting,
        Shapley,
        ShiftedTokens,
        SymptomLayers,
        TokenForgetting,
        TokenKinds,
        TokenLayers,
        TokenShift,
        Uncertainty,
        WeightChange,
        WeightPath,
    )
    from .errors import DriftlensError
    from .metric import Metric, measure
    from .models import Frame, ModelPair, Site
    from .packs import Example, Pack
    from .preferences import Preferences
    from .preflight import check
    from .report import Report
    from .results import Result

__version__ = "0.1.0"

_HOMES = {
    "diagnostics": (
        "Calibration",
        "CapabilityConflict",
        "ChoiceCalibration",
        "Constraints",
        "ContrastiveMargin",
        "Directions",
        "Drift",
        "Entanglement",
        "EntanglementByLayer",
        "EntanglementByPosition",
        "Entropy",
        "Factorial",
        "FirstStep",
        "FisherDistance",
        "Forgetting",
        "Grafts",
        "Homogenisation",
        "Interactions",
        "LayerForgetting",
        "Lens",
        "Polarity",
        "PositionMap",
        "PreferenceCollapse",
        "PreferenceFacts",
        "PreferenceLosses",
        "Ranking",
        "Restoration",
        "Retention",
        "SafetyDirections",
        "SafetyForgetting",
        "SafetyWeights",
        "Screen",
        "SelectiveForgetting",
        "Shapley",
        "ShiftedTokens",
        "SymptomLayers",
        "TokenForgetting",
        "TokenKinds",
        "TokenLayers",
        "TokenMap",
        "TokenShift",
        "Uncertainty",
        "WeightChange",
        "WeightPath",
    ),
    "errors": ("DriftlensError",),
    "metric": ("Metric", "measure"),
    "models": ("Frame", "ModelPair", "Site"),
    "packs": ("Example", "Pack"),
    "preferences": ("Preferences",),
    "preflight": ("check",),
    "report": ("Report",),
    "results": ("Result",),
}

__all__ = [
    "Calibration",
    "CapabilityConflict",
    "ChoiceCalibration",
    "Constraints",
    "ContrastiveMargin",
    "Directions",
    "Drift",
    "DriftlensError",
    "Entanglement",
    "EntanglementByLayer",
    "EntanglementByPosition",
    "Entropy",
    "Example",
    "Factorial",
    "FirstStep",
    "FisherDistance",
    "Forgetting",
    "Frame",
    "Grafts",
    "Homogenisation",
    "Interactions",
    "LayerForgetting",
    "Lens",
    "Metric",
    "ModelPair",
    "Pack",
    "Polarity",
    "PositionMap",
    "PreferenceCollapse",
    "PreferenceFacts",
    "PreferenceLosses",
    "Preferences",
    "Ranking",
    "Report",
    "Restoration",
    "Result",
    "Retention",
    "SafetyDirections",
    "SafetyForgetting",
    "SafetyWeights",
    "Screen",
    "SelectiveForgetting",
    "Shapley",
    "ShiftedTokens",
    "Site",
    "SymptomLayers",
    "TokenForgetting",
    "TokenKinds",
    "TokenLayers",
    "TokenMap",
    "TokenShift",
    "Uncertainty",
    "WeightChange",
    "WeightPath",
    "check",
    "measure",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            # Kept, so that this is asked only once.
            globals().update({n: getattr(import_module(f"driftlens.{home}"), n) for n in names})
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
