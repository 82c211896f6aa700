"""The instruments, one file each. They do not know each other."""

from .calibration import Calibration, CalibrationResult, ChoiceCalibration
from .capability import CapabilityResult, capability
from .collapse import PreferenceCollapse, PreferenceCollapseResult
from .conflict import CapabilityConflict, CapabilityConflictResult
from .constraints import Constraints, ConstraintsResult, FormatsResult
from .contrastive import ContrastiveMargin, ContrastiveMarginResult
from .directions import (
    DirectionMethodsResult,
    Directions,
    DirectionsResult,
    DirectionTransferResult,
)
from .drift import Drift, DriftResult
from .entanglement import (
    Entanglement,
    EntanglementByLayer,
    EntanglementByLayerResult,
    EntanglementByPosition,
    EntanglementByPositionResult,
    EntanglementResult,
    PreferenceFacts,
    PreferenceFactsResult,
    PreferenceLosses,
    PreferenceLossesResult,
)
from .entropy import Entropy, EntropyResult
from .factorial import Factorial, FactorialResult
from .faithfulness import FaithfulnessResult, faithfulness
from .first_step import FirstStep, FirstStepResult
from .fisher import FisherDistance, FisherDistanceResult
from .forgetting import Forgetting, ForgettingResult
from .grafts import Grafts, GraftsResult
from .homogenisation import (
    Homogenisation,
    HomogenisationMethodsResult,
    HomogenisationResult,
)
from .layers import LayerForgetting, LayerForgettingResult, TokenLayers, TokenLayersResult
from .lens import Lens, LensResult
from .mitigation import MitigationConflictResult, MitigationResult, MitigationStepsResult
from .overview import OverviewLayersResult, OverviewResult, overview
from .polarity import (
    Polarity,
    PolarityControlsResult,
    PolarityPublishedResult,
    PolarityResult,
    PolarityTransferResult,
)
from .ranking import (
    RankedPairsResult,
    Ranking,
    RankingCeilingResult,
    RankingResult,
    RewardTiltResult,
)
from .restoration import Restoration, RestorationResult
from .retention import Retention, RetentionResult
from .runs import RunsResult
from .safety import (
    SafetyDirections,
    SafetyDirectionsResult,
    SafetyForgetting,
    SafetyForgettingResult,
    SafetyTopicsResult,
    SafetyWeights,
    SafetyWeightsResult,
)
from .screen import Screen, ScreenResult
from .selection import DirectionSelectionResult
from .selective import SelectiveForgetting, SelectiveForgettingResult
from .shapley import Interactions, InteractionsResult, Shapley, ShapleyResult
from .stages import StageLayersResult, StagesResult, staged
from .symptoms import SymptomLayers, SymptomLayersResult
from .tax import TaxRateResult
from .token_map import TokenMap, TokenMapResult
from .token_shift import (
    PublishedShift,
    PublishedShiftResult,
    ShiftedTokens,
    ShiftedTokensResult,
    TokenShift,
    TokenShiftResult,
)
from .tokens import TokenForgetting, TokenForgettingResult, TokenKinds, TokenKindsResult
from .tradeoff import CrossSteeringResult, SteeringByLayerResult, TradeoffResult
from .uncertainty import RightAnswersResult, RiskCoverageResult, Uncertainty, UncertaintyResult
from .weight_path import PositionMap, PositionMapResult, WeightPath, WeightPathResult
from .weights import WeightChange, WeightChangeResult

__all__: list[str] = [
    "Calibration",
    "CalibrationResult",
    "CapabilityConflict",
    "CapabilityConflictResult",
    "CapabilityResult",
    "ChoiceCalibration",
    "Constraints",
    "ConstraintsResult",
    "ContrastiveMargin",
    "ContrastiveMarginResult",
    "CrossSteeringResult",
    "DirectionMethodsResult",
    "DirectionSelectionResult",
    "DirectionTransferResult",
    "Directions",
    "DirectionsResult",
    "Drift",
    "DriftResult",
    "Entanglement",
    "EntanglementByLayer",
    "EntanglementByLayerResult",
    "EntanglementByPosition",
    "EntanglementByPositionResult",
    "EntanglementResult",
    "Entropy",
    "EntropyResult",
    "Factorial",
    "FactorialResult",
    "FaithfulnessResult",
    "FirstStep",
    "FirstStepResult",
    "FisherDistance",
    "FisherDistanceResult",
    "Forgetting",
    "ForgettingResult",
    "FormatsResult",
    "Grafts",
    "GraftsResult",
    "Homogenisation",
    "HomogenisationMethodsResult",
    "HomogenisationResult",
    "Interactions",
    "InteractionsResult",
    "LayerForgetting",
    "LayerForgettingResult",
    "Lens",
    "LensResult",
    "MitigationConflictResult",
    "MitigationResult",
    "MitigationStepsResult",
    "OverviewLayersResult",
    "OverviewResult",
    "Polarity",
    "PolarityControlsResult",
    "PolarityPublishedResult",
    "PolarityResult",
    "PolarityTransferResult",
    "PositionMap",
    "PositionMapResult",
    "PreferenceCollapse",
    "PreferenceCollapseResult",
    "PreferenceFacts",
    "PreferenceFactsResult",
    "PreferenceLosses",
    "PreferenceLossesResult",
    "PublishedShift",
    "PublishedShiftResult",
    "RankedPairsResult",
    "Ranking",
    "RankingCeilingResult",
    "RankingResult",
    "Restoration",
    "RestorationResult",
    "Retention",
    "RetentionResult",
    "RewardTiltResult",
    "RightAnswersResult",
    "RiskCoverageResult",
    "RunsResult",
    "SafetyDirections",
    "SafetyDirectionsResult",
    "SafetyForgetting",
    "SafetyForgettingResult",
    "SafetyTopicsResult",
    "SafetyWeights",
    "SafetyWeightsResult",
    "Screen",
    "ScreenResult",
    "SelectiveForgetting",
    "SelectiveForgettingResult",
    "Shapley",
    "ShapleyResult",
    "ShiftedTokens",
    "ShiftedTokensResult",
    "StageLayersResult",
    "StagesResult",
    "SteeringByLayerResult",
    "SymptomLayers",
    "SymptomLayersResult",
    "TaxRateResult",
    "TokenForgetting",
    "TokenForgettingResult",
    "TokenKinds",
    "TokenKindsResult",
    "TokenLayers",
    "TokenLayersResult",
    "TokenMap",
    "TokenMapResult",
    "TokenShift",
    "TokenShiftResult",
    "TradeoffResult",
    "Uncertainty",
    "UncertaintyResult",
    "WeightChange",
    "WeightChangeResult",
    "WeightPath",
    "WeightPathResult",
    "capability",
    "faithfulness",
    "overview",
    "staged",
]
