"""Sober probes to see the others by: closed forms, labels, and directions that mean nothing.

All read p as a logistic function of one direction, and are oriented by one rule
(`ContrastProbe`). Where nothing fixes how steep it is, logits have a mean square of 1 on the
states learnt from; contradiction and the like of those probes depend on that choice.
"""

from abc import abstractmethod

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.utils import check_random_state

from driftlens.errors import DriftlensError

from .probe import ContrastProbe, scaled


class _Closed(ContrastProbe):
    """A probe whose direction has a closed form."""

    def __init__(self, normalize: str | None = "scale") -> None:
        self.normalize = normalize

    def _learn(self, states: np.ndarray, labels: np.ndarray | None) -> None:
        self.coef_ = scaled(self._direction(states, labels), states)
        self.intercept_ = 0.0

    @abstractmethod
    def _direction(self, states: np.ndarray, labels: np.ndarray | None) -> np.ndarray: ...


class CRC(_Closed):
    r"""The top principal component of differences, :math:`\tilde h^{yes} - \tilde h^{no}`.

    A statement is *true* where its difference lies on the component's oriented side.

    Source: Burns et al. (2023), "Discovering Latent Knowledge in Language Models Without
    Supervision", section 3.2: contrastive representation clustering, top principal component.

    Args:
        normalize: See `Normaliser`.
    """

    def _direction(self, states: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        differences = states[:, 1] - states[:, 0]
        return np.linalg.svd(differences - differences.mean(0), full_matrices=False)[2][0]


class VINC(ContrastProbe):
    r"""Variance, invariance, negative covariance, all in one eigenvector.

    The direction is the top eigenvector of

    .. math:: A = v \, C_{inter} - (1 - c) \, C_{intra} - c \, X

    where :math:`C_{inter}` is the covariance of statements within a side, averaged over sides;
    :math:`C_{intra}` that of one statement's prompt variants, averaged over statements and
    sides; X the symmetric covariance between a statement's two sides. The direction between
    the sides' means, which tells "Yes" from "No", is projected out of A. (Where those words
    hardly differ and one class is more frequent, that direction is the classes' own.)

    X is [statement, variant, side, width], or [statement, side, width] of one variant, where
    nothing can vary; s is the mean over variants.

    Source: EleutherAI's elk, "VINC: variance, invariance, negative covariance", after Burns et
    al. (2023).

    Args:
        variants: Prompt variants of each statement in X.
        variance: v.
        negative_covariance: c, between 0 and 1.
        centroids: Whether :math:`C_{inter}` and X are those of the means over variants, or of
            every variant by itself.
        normalize: See `Normaliser`.
    """

    def __init__(
        self,
        variants: int = 1,
        variance: float = 0.0,
        negative_covariance: float = 0.5,
        centroids: bool = True,
        normalize: str | None = "scale",
    ) -> None:
        self.variants = variants
        self.variance = variance
        self.negative_covariance = negative_covariance
        self.centroids = centroids
        self.normalize = normalize

    def _axes(self) -> dict[str, int]:
        return {"side": 2} if self.variants == 1 else {"variant": self.variants, "side": 2}

    def _learn(self, states: np.ndarray, labels: np.ndarray | None) -> None:
        # Where the sides lay before they were centred.
        places = states.mean(0) + self.normaliser_.offset / self.normaliser_.scale
        no, yes = places.reshape(self.variants, 2, -1).mean(0)
        states = states.reshape(len(states), self.variants, 2, -1)
        # Nothing is outside the span of the states; there are often fewer of them than columns.
        flat = states.reshape(-1, states.shape[-1])
        _, sizes, axes = np.linalg.svd(flat, full_matrices=False)
        axes = axes[sizes > 1e-6 * sizes[0]]
        matrix = self._matrix(states @ axes.T)
        between = axes @ (yes - no)
        if (length := np.linalg.norm(between)) > 0:
            between /= length
            outside = np.eye(len(axes)) - np.outer(between, between)
            # What is projected out goes to the bottom: at 0 it could come first.
            bottom = np.linalg.norm(matrix) * np.outer(between, between)
            matrix = outside @ matrix @ outside - bottom
        top = np.linalg.eigh(matrix)[1][:, -1] @ axes
        self.coef_, self.intercept_ = scaled(top, states), 0.0

    def _matrix(self, states: np.ndarray) -> np.ndarray:
        """A [axis, axis] of states [statement, variant, side, axis]."""
        within = states - states.mean(1, keepdims=True)
        intra = _product(within, within) / within[..., 0].size
        centres = states.mean(1, keepdims=True) if self.centroids else states
        centres = centres - centres.mean((0, 1))
        inter = _product(centres, centres) / centres[..., 0].size
        cross = _product(centres, centres[:, :, ::-1]) / centres[..., 0].size
        c = self.negative_covariance
        return self.variance * inter - (1 - c) * intra - c * cross

    def _scores(self, p: np.ndarray) -> np.ndarray:
        scores = super()._scores(p)
        return scores if self.variants == 1 else scores.mean(1)


class DifferenceOfMeans(_Closed):
    """From the mean of states that say what is false to the mean of those that say what is true.

    A true statement's "Yes" and a false one's "No" say what is true.

    Args:
        normalize: See `Normaliser`.
    """

    _supervised = True

    def _direction(self, states: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        assert labels is not None
        says = _truths(labels)
        return states[says].mean(0) - states[~says].mean(0)


class LogisticProbe(ContrastProbe):
    """Logistic regression on states that say what is true or false: what labels can reach.

    The same kind of probe as CCS, learnt with labels.

    Args:
        C: Inverse strength of the ridge; see scikit-learn's `LogisticRegression`.
        max_iter: Of its descent.
        normalize: See `Normaliser`.
    """

    _supervised = True

    def __init__(
        self, C: float = 1.0, max_iter: int = 1000, normalize: str | None = "standard"
    ) -> None:
        self.C = C
        self.max_iter = max_iter
        self.normalize = normalize

    def _learn(self, states: np.ndarray, labels: np.ndarray | None) -> None:
        assert labels is not None
        ridge = LogisticRegression(C=self.C, max_iter=self.max_iter)
        ridge.fit(states.reshape(-1, states.shape[-1]), _truths(labels).ravel())
        self.coef_, self.intercept_ = ridge.coef_[0], float(ridge.intercept_[0])
        self.n_iter_ = int(ridge.n_iter_[0])


class RandomDirection(_Closed):
    """A direction drawn at random: what any direction would find, once it is oriented.

    Args:
        normalize: See `Normaliser`.
        random_state: Of the draw.
    """

    def __init__(
        self,
        normalize: str | None = "scale",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        super().__init__(normalize)
        self.random_state = random_state

    def _direction(self, states: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        drawn = check_random_state(self.random_state).normal(size=states.shape[-1])
        return drawn.astype(states.dtype)


def shuffled_labels(
    probe: ContrastProbe,
    X: ArrayLike,
    y: ArrayLike,
    held: ArrayLike,
    *,
    groups: ArrayLike,
    seed: int,
    rounds: int = 20,
) -> np.ndarray:
    """[round] share of held-out rows named rightly by probes whose labels mean nothing.

    In each round the labels of every group are exchanged, true for false, together or not at
    all, where it is learnt from and where it is judged. What the probe makes of *these* labels
    is what it makes of any: width, ridge and luck.

    Args:
        probe: With the settings; it is not changed.
        X: [statement, *, width] what `fit` takes.
        y: [statement] labels of two kinds.
        held: [statement] truth: those that are judged, never learnt from.
        groups: [statement] ids: of the pair of a statement and its opposite.
        seed: Of the draw.
        rounds: How many exchanges.
    """
    X, held = np.asarray(X), np.asarray(held, bool)
    kinds, labels = np.unique(np.asarray(y), return_inverse=True)
    ids, places = np.unique(np.asarray(groups), return_inverse=True)
    if set(places[held]) & set(places[~held]):
        shared = ids[next(iter(set(places[held]) & set(places[~held])))]
        raise DriftlensError(
            "groups that are either learnt from or judged",
            found=f"{shared} on both sides",
            remedy="Hold out whole groups; see estimators.grouped_folds.",
        )
    random = np.random.default_rng(seed)
    shares = []
    for _ in range(rounds):
        drawn = labels ^ random.integers(2, size=len(ids))[places]
        fitted = clone(probe).fit(X[~held], kinds[drawn[~held]])
        shares.append(fitted.score(X[held], kinds[drawn[held]]))
    return np.array(shares)


def _truths(labels: np.ndarray) -> np.ndarray:
    """[statement, side] whether a state says what is true."""
    return np.stack([labels == 0, labels == 1], -1)


def _product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[axis, axis] sum of products of states [*, axis]."""
    return x.reshape(-1, x.shape[-1]).T @ y.reshape(-1, y.shape[-1])
