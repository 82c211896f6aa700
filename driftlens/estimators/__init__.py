"""Probes of what states say, in scikit-learn's manner: `fit` learns, `predict` applies.

Nothing here knows a model, a pack or a page. scikit-learn is imported with this package, and
with nothing above it.
"""

from .baselines import CRC, VINC, DifferenceOfMeans, LogisticProbe, RandomDirection, shuffled_labels
from .ccs import CCS, fit_many
from .comparison import compare, cross_transfer, drift_along, principal_angles
from .directions import (
    ClassMeans,
    Direction,
    contrast_pca,
    contrast_subspace,
    discriminant,
    logistic_normal,
    mean_difference,
    paired_difference,
    select_direction,
)
from .polarity import (
    Polarity,
    PolarityCCS,
    as_published,
    contradiction_index,
    polar_consistency,
    polarity_of,
    published,
)
from .probe import ContrastProbe, Normaliser
from .scores import (
    auroc,
    ccs_loss,
    esa,
    exchange_test,
    grouped_folds,
    max_t,
    paired,
    published_split,
    shortcut,
)
from .surety import role_null, stability

__all__ = [
    "CCS",
    "CRC",
    "VINC",
    "ClassMeans",
    "ContrastProbe",
    "DifferenceOfMeans",
    "Direction",
    "LogisticProbe",
    "Normaliser",
    "Polarity",
    "PolarityCCS",
    "RandomDirection",
    "as_published",
    "auroc",
    "ccs_loss",
    "compare",
    "contradiction_index",
    "contrast_pca",
    "contrast_subspace",
    "cross_transfer",
    "discriminant",
    "drift_along",
    "esa",
    "exchange_test",
    "fit_many",
    "grouped_folds",
    "logistic_normal",
    "max_t",
    "mean_difference",
    "paired",
    "paired_difference",
    "polar_consistency",
    "polarity_of",
    "principal_angles",
    "published",
    "published_split",
    "role_null",
    "select_direction",
    "shortcut",
    "shuffled_labels",
    "stability",
]
