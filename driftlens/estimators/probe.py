"""What all probes of contrasts share: how states come in, are normalised, and are named.

A *contrast* is one statement seen twice: its state after "No" (side 0) and after "Yes" (side 1).
"""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from driftlens.errors import DriftlensError

from .scores import auroc

LEAST = 10
"""Rows below which a probe is refused: fewer would be told apart by chance."""

ALIKE = 1e-5
"""States whose spread is below this share of their length differ by rounding alone."""

NORMALISATIONS = ("scale", "mean", "standard", "median", None)
"""What may be done to states before they are read; see `Normaliser`."""


class Normaliser(NamedTuple):
    r"""What is taken off states and what they are divided by, learnt from training states.

    Each side has an offset of its own, so that a probe cannot live off the word that it
    reads, "Yes" or "No".

    - ``"scale"``: the side's mean; then one number, so that the mean square length is 1. The
      directions stay what they are, and a learning rate means the same in every layer.
    - ``"mean"``: the side's mean alone (Burns et al. 2023).
    - ``"standard"``: the side's mean, and the standard deviation of each of its coordinates.
    - ``"median"``: each state is brought to length 1, then the side's median is taken off, as in
      the published code of polarity-aware CCS.
    - ``None``: nothing.

    States that are all the same become 0.
    """

    offset: np.ndarray
    """[*, side, width] what is taken off."""

    scale: np.ndarray
    """[*, 1, 1] or [*, side, width] what they are divided by; infinite where nothing varies."""

    unit: bool
    """Whether each state is brought to length 1 first."""

    @classmethod
    def learn(cls, states: np.ndarray, how: str | None) -> Self:
        """From states [statement, *, side, width]."""
        if how not in NORMALISATIONS:
            raise DriftlensError(
                f"a normalisation among {NORMALISATIONS}",
                found=repr(how),
                remedy="Leave it out for 'scale'.",
            )
        unit = how == "median"
        states = _unit(states) if unit else states
        centre = np.median(states, 0) if unit else states.mean(0, dtype=np.float64)
        spread = np.sqrt(np.square(states - centre).mean((0, -1), dtype=np.float64))
        length = np.sqrt(np.square(states).mean(dtype=np.float64))
        if np.sqrt(np.square(spread).mean()) <= ALIKE * length:
            scale = np.full((1, 1), np.inf)
        elif how == "standard":
            scale = np.sqrt(np.square(states - centre).mean(0, dtype=np.float64))
            scale = np.where(scale > ALIKE * length, scale, np.inf)
        elif how == "scale":
            scale = np.sqrt(np.square(spread).mean() * states.shape[-1]).reshape(1, 1)
        else:
            scale = np.ones((1, 1))
        offset = np.zeros_like(centre) if how is None else centre
        return cls(offset.astype(states.dtype), scale.astype(states.dtype), unit)

    @property
    def constant(self) -> bool:
        """Whether the states that it learnt from are all the same, but for rounding."""
        return bool(np.isinf(self.scale).all())

    def __call__(self, states: np.ndarray, offset: np.ndarray | None = None) -> np.ndarray:
        """[statement, *, side, width] states as the probe reads them.

        Args:
            states: [statement, *, side, width].
            offset: [*, side, width] what to take off in place of what was learnt.
        """
        offset = self.offset if offset is None else offset
        return (self.of_length(states) - offset) / self.scale

    def of_length(self, states: np.ndarray) -> np.ndarray:
        """[*, width] states, of length 1 if the normaliser wants them so."""
        return _unit(states) if self.unit else states


class ContrastProbe(ClassifierMixin, BaseEstimator, ABC):
    r"""A direction that says of each state how far it is on the side of *true*.

    .. math:: p = \sigma(w^\top \tilde h + b), \qquad s = \tfrac12 (p^{yes} + 1 - p^{no})

    where :math:`\tilde h` is the state as normalised in `fit` and s the score of the statement.

    **Input.** X is [statement, side, width], "No" before "Yes"; or flat, [statement, 2 · width],
    with all of "No" in the first half of the columns. A row is always a whole contrast, so that
    whatever splits rows (scikit-learn's cross-validation among it) keeps its two states together.
    Statements that belong together, such as one and its negation, are kept together by groups:
    `scores.grouped_folds`.

    **Orientation.** p and 1 − p fit a contrast equally well, so that nothing in the states says
    which side is *true*. A probe that is given labels is turned so that most couples of one true
    and one false training row are in order (AUROC of at least ½); with `anchors`, only the
    labels of those rows are looked at. Without labels the sign says nothing, and
    `orientation_` says ``"none"``. Labels of rows that a probe is judged by never play a part.
    """

    _supervised: ClassVar[bool] = False
    """Whether it cannot learn without labels."""

    normalize: str | None

    coef_: np.ndarray
    """[width] w, of normalised states."""

    intercept_: float
    """b."""

    normaliser_: Normaliser
    """What was learnt of the states' place and size."""

    classes_: np.ndarray
    """[2] the labels of false and of true."""

    orientation_: str
    """By what it was turned: "labels", "anchors" or "none"."""

    flipped_: bool
    """Whether it was turned."""

    def fit(
        self, X: ArrayLike, y: ArrayLike | None = None, anchors: ArrayLike | None = None
    ) -> Self:
        """Learn the direction, then which of its ends is *true*.

        Args:
            X: [statement, side, width] states, or flat; see the class.
            y: [statement] two kinds of labels; the greater one is *true*.
            anchors: [statement] truth: whose labels may be looked at.

        Raises:
            DriftlensError: For rows that are no contrasts, fewer than ten of them, states that
                are all the same or not finite, and labels of fewer or more than two kinds.
        """
        states = self._read(X, reset=True)
        labels = self._labels(y, len(states))
        self._learn_place(states)
        if self.normaliser_.constant:
            raise DriftlensError(
                "states that differ from statement to statement",
                found=f"{len(states)} rows that are all the same on each side",
                remedy="Take a later layer, or the token after which the statements differ.",
            )
        self._learn(self.normaliser_(states), labels)
        return self._orient(states, labels, anchors)

    def _axes(self) -> dict[str, int]:
        """Axes between rows and width, and their sizes."""
        return {"side": 2}

    def _learn_place(self, states: np.ndarray) -> None:
        self.normaliser_ = Normaliser.learn(states, self.normalize)

    @abstractmethod
    def _learn(self, states: np.ndarray, labels: np.ndarray | None) -> None: ...

    def side_proba(self, X: ArrayLike) -> np.ndarray:
        """[statement, *, side] p of each state."""
        check_is_fitted(self)
        return self._side_proba(self.normaliser_(self._read(X, reset=False)))

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """[statement, class] 1 − s and s."""
        scores = self._scores(self.side_proba(X))
        return np.stack([1 - scores, scores], -1)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """[statement] the label of each: *true* where s is over a half."""
        true = self.predict_proba(X)[:, 1] > 0.5
        return self.classes_[true.astype(int)]

    @property
    def direction_(self) -> np.ndarray:
        """[width] the probe's direction among the states themselves, of length 1.

        Where coordinates are scaled by side, it is the mean of both sides' directions; NaN where
        the states that it learnt from were all the same.
        """
        check_is_fitted(self)
        if self.normaliser_.constant:
            return np.full_like(self.coef_, np.nan)
        scale = np.broadcast_to(self.normaliser_.scale, self.normaliser_.offset.shape)
        raw = self.coef_ * (1 / scale.reshape(-1, len(self.coef_))).mean(0)
        return raw / np.linalg.norm(raw)

    def _side_proba(self, normalised: np.ndarray) -> np.ndarray:
        return expit(normalised @ self.coef_ + self.intercept_)

    def _scores(self, p: np.ndarray) -> np.ndarray:
        return (p[..., 1] + 1 - p[..., 0]) / 2

    def _orient(
        self, states: np.ndarray, labels: np.ndarray | None, anchors: ArrayLike | None
    ) -> Self:
        self.orientation_, self.flipped_ = "none", False
        if labels is None:
            return self
        rows = self._anchored(anchors, len(states))
        if np.ptp(labels[rows]) == 0:
            raise DriftlensError(
                "anchors of both classes",
                found="labels of one kind only",
                remedy="Anchor at least one true and one false statement.",
            )
        scores = self._scores(self._side_proba(self.normaliser_(states[rows])))
        self._turn(auroc(scores, labels[rows]) < 0.5)
        return self

    def _anchored(self, anchors: ArrayLike | None, count: int) -> np.ndarray:
        self.orientation_ = "labels" if anchors is None else "anchors"
        rows = np.ones(count, bool) if anchors is None else np.asarray(anchors)
        if rows.dtype != bool or rows.shape != (count,) or not rows.any():
            raise DriftlensError(
                f"anchors as truth values of {count} rows, one of them true at least",
                found=f"{rows.dtype} of shape {rows.shape}",
                remedy="Pass anchors=[statement] booleans, or leave them out.",
            )
        return rows

    def _turn(self, wrong: bool) -> None:
        if wrong:
            self.coef_, self.intercept_, self.flipped_ = -self.coef_, -self.intercept_, True

    def _read(self, X: Any, *, reset: bool, named: str = "") -> np.ndarray:
        """[row, *axes, width] states, checked; float32 stays what it is, the rest is float64."""
        if isinstance(X, torch.Tensor):
            X = X.detach().cpu()
            X = (X if X.dtype in (torch.float32, torch.float64) else X.float()).numpy()
        axes = self._axes()
        shape: tuple[int, ...] = tuple(getattr(X, "shape", ()))
        if len(shape) > 2:
            if shape[1:-1] != tuple(axes.values()):
                raise _unpaired(axes, f"{named}shape {shape}")
            X = np.asarray(X).reshape(shape[0], -1)
        flat = validate_data(
            self, X, reset=reset, dtype=[np.float64, np.float32], ensure_all_finite=False
        )
        count, columns = flat.shape
        if columns % math.prod(axes.values()):
            raise _unpaired(axes, f"{named}{columns} columns (n_features = {columns})")
        states = flat.reshape(count, *axes.values(), -1)
        if not np.isfinite(flat).all():
            raise _not_finite(states, axes, named)
        if reset and count < LEAST:
            raise DriftlensError(
                f"at least {LEAST} rows to learn from",
                found=f"{named}{count} (n_samples = {count}, minimum of {LEAST} is required)",
                remedy="Use a pack with more statements.",
            )
        return states

    def _labels(self, y: ArrayLike | None, count: int) -> np.ndarray | None:
        """[row] 0 and 1; None without labels."""
        self.classes_ = np.array([0, 1])
        if y is None:
            if self._supervised:
                raise DriftlensError(
                    f"labels (requires y to be passed, but the target y is None) "
                    f"for {type(self).__name__}",
                    found="none",
                    remedy="Pass y, or take a probe that needs none: CCS, CRC or VINC.",
                )
            return None
        given = column_or_1d(y, warn=True)
        check_classification_targets(given)
        kinds, labels = np.unique(given, return_inverse=True)
        if len(given) != count or len(kinds) != 2:
            raise DriftlensError(
                f"{count} labels of two classes",
                found=(
                    f"{len(given)} labels of {len(kinds)} class{'es' if len(kinds) > 1 else ''}. "
                    "Only binary classification is supported. The type of the target is "
                    f"{type_of_target(given)}"
                ),
                remedy="Label each statement true or false, some of each.",
            )
        self.classes_ = kinds
        return labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        # A direction found without labels need not be what the labels are about.
        tags.classifier_tags.poor_score = not self._supervised
        tags.target_tags.required = self._supervised
        tags.input_tags.three_d_array = True
        return tags


def scaled(direction: np.ndarray, states: np.ndarray) -> np.ndarray:
    """The direction [width] whose logits have a mean square of 1 on states [*, width]."""
    size = np.sqrt(np.square(states @ direction).mean())
    return direction / size if size else direction


def _unit(states: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(states, axis=-1, keepdims=True)
    return states / np.where(length > 0, length, 1)


def _unpaired(axes: dict[str, int], found: str) -> DriftlensError:
    sizes = ", ".join(f"{axis} ({size})" for axis, size in axes.items())
    return DriftlensError(
        f"rows with every twin: [row, {sizes}, width], or flat with a multiple of "
        f"{math.prod(axes.values())} columns",
        found=found,
        remedy="Build them from single rows with estimators.paired.",
    )


def _not_finite(states: np.ndarray, axes: dict[str, int], named: str) -> DriftlensError:
    wrong = np.argwhere(~np.isfinite(states))
    places = zip(("row", *axes, "coordinate"), wrong[0], strict=True)
    kind = "NaN" if np.isnan(states[tuple(wrong[0])]) else "inf"
    return DriftlensError(
        "finite states",
        found=(
            f"{named}{kind} at {', '.join(f'{axis} {place}' for axis, place in places)} "
            f"({len(wrong)} such in all)"
        ),
        remedy="Leave that row out, or run the model in a wider dtype.",
    )
