"""Whether a theory's forms fit curves that were measured, beside straight lines and parabolas.

The curves and the forms stand in `curves`. A verdict comes with what the measurement leaves open.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from driftlens.errors import DriftlensError

from .curves import LEVEL, LINEAR, QUADRATIC, ROUNDING, Curve, Form
from .intervals import Interval
from .probing import exceeded

DOUBT = 0.05
"""p-value below which residuals are no noise."""

NEAR = 2.0
"""Difference of AIC within which two forms fit alike (Burnham & Anderson, 2002)."""

FAINT = 1e-9
"""Change of a curve with a parameter, in units of its own, below which it says nothing of it."""

STEPS = 200
"""Steps after which a fit that has not settled is given up."""

VERDICTS = {
    "failed": "cannot be told, the fit did not settle",
    "rejected": "no, it misses by more than noise",
    "outdone": "no, a plain form fits better",
    "still": "cannot be told, the curve hardly moves",
    "undecided": "it fits, but a plain form fits as well",
    "holds": "yes, it fits, and better than plain forms",
}
"""What can be said of a theory on one curve, in the order in which it is asked."""


# --- fits ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """A form fitted to a curve by least squares; see `fit`."""

    form: Form
    curve: Curve
    theta: np.ndarray
    """[parameter] what was fitted."""

    covariance: np.ndarray
    """[parameter, parameter] of it; NaN where the strengths do not tell parameters apart."""

    draws: np.ndarray | None
    """[draw, parameter] fits of the curve's draws."""

    settled: float
    """Share of the draws' fits that settled on parameters; 1 without draws."""

    misfit: float
    """Sum of squared residuals, each in its standard error where these were given."""

    dispersion: float
    """What `misfit` would be for each degree of freedom if the form were right."""

    residual: np.ndarray
    """[r] measured − fitted."""

    lack_of_fit: float
    """p-value of so large a misfit if the form were right; NaN where no errors are known."""

    runs: float
    """p-value of so few changes of sign along the residuals if the form were right."""

    problem: str
    """Why the fit is not to be used, or empty."""

    level: float = LEVEL
    """Share of intervals that hold the truth."""

    @property
    def freedom(self) -> int:
        """Degrees of freedom that the residuals keep."""
        return len(self.residual) - len(self.theta)

    @cached_property
    def parameters(self) -> dict[str, Interval]:
        """Each parameter by its name, with its interval."""
        form = self.form
        bounds = (form.shown(z) for z in self.interval(form.reported))
        return {
            name: Interval(*(np.asarray(z) for z in some))
            for name, *some in zip(form.parameters, *bounds, strict=True)
        }

    def value(self, r: ArrayLike) -> Interval:
        """[r] the fitted curve."""
        return self._along(self.form.value, r)

    def slope(self, r: ArrayLike = 0.0) -> Interval:
        """[r] its first derivative."""
        return self._along(self.form.slope, r)

    def curvature(self, r: ArrayLike = 0.0) -> Interval:
        """[r] its second derivative."""
        return self._along(self.form.curvature, r)

    def interval(self, quantity: Callable[[np.ndarray], np.ndarray]) -> Interval:
        r"""[*] a smooth function of the parameters, with its interval.

        Of draws by their percentiles, otherwise by the delta method,
        :math:`g(\theta) \pm z \sqrt{\nabla g^\top \Sigma \nabla g}`, where z is of Student's t if
        the error was told from the residuals themselves. The bounds are NaN where the fit has a
        problem: one is that more of the draws' fits did not settle than an end leaves out.

        Args:
            quantity: Of parameters [*, parameter]; analytic, as it is given complex ones.
        """
        estimate, tail = np.asarray(quantity(self.theta)), (1 - self.level) / 2
        if self.problem or not np.isfinite(estimate).all():
            return Interval(estimate, estimate * np.nan, estimate * np.nan)
        if self.draws is not None:
            # A draw may lie where the quantity is infinite: its bound is then, or is NaN.
            with np.errstate(invalid="ignore"):
                low, high = np.quantile(quantity(self.draws), [tail, 1 - tail], axis=0)
            return Interval(estimate, low, high)
        gradient = _jacobian(quantity, self.theta)
        spread = np.sqrt(np.einsum("...p,pq,...q->...", gradient, self.covariance, gradient))
        half = _critical(self, 1 - tail) * spread
        return Interval(estimate, estimate - half, estimate + half)

    def along(self, strength: ArrayLike, *, seed: int = 0, rounds: int = 2000) -> Curve:
        """The fitted curve at other strengths, its draws those of the fit.

        Args:
            strength: [r] in any order.
            seed: Of draws from the parameters' normal distribution, if the fit has none.
            rounds: How many of them.

        Raises:
            DriftlensError: The fit has a problem.
        """
        if self.problem:
            raise DriftlensError(
                f"a fit of {self.form.name} to draw along",
                found=self.problem,
                remedy="Take the measured curve, or measure at more strengths.",
            )
        draws = self.draws
        if draws is None:
            random = np.random.default_rng(seed)
            draws = random.multivariate_normal(self.theta, self.covariance, rounds, method="eigh")
            draws = np.maximum(draws, self.form.low)
        r = np.sort(np.asarray(strength, np.float64))
        drawn = self.form.value(draws, r)
        return Curve(r, self.form.value(self.theta, r), drawn.std(0), drawn)

    def _along(self, of: Callable[[np.ndarray, np.ndarray], np.ndarray], r: ArrayLike) -> Interval:
        at = np.atleast_1d(np.asarray(r, np.float64))
        found = self.interval(lambda theta: of(theta, at))
        return Interval(*(z.reshape(np.shape(r)) for z in found))


def fit(form: Form, curve: Curve, level: float = LEVEL) -> Fit:
    r"""A form's curve with the least squares of residuals.

    With standard errors σ the squares are weighted by 1 / σ², and the misfit is a
    :math:`\chi^2` of as many degrees of freedom as there are points beyond parameters. Without
    any they count alike, and the residuals tell the error. Of resampled items they count alike
    too (an item that never errs would weigh without end), each draw is fitted anew, and the
    misfit is held against that of the draws' own scatter about the curve, less what the form
    would take up of it, :math:`\|(y^* - y)(I - J J^+)\|^2` with J the derivatives by the
    parameters, which minds that items are the same at every strength.

    Source: Levenberg (1944) and Marquardt (1963) for the search; Seber & Wild (1989), "Nonlinear
    Regression", section 2.1 for the intervals; Efron & Tibshirani (1993), "An Introduction to
    the Bootstrap", section 16.4 for the scatter as a null.

    Args:
        form: What is fitted.
        curve: To what.
        level: Share of intervals that hold the truth.

    Returns:
        The fit; what is wrong with it stands in `problem`.

    Raises:
        DriftlensError: There are fewer than parameters + 3 strengths, or an error of 0.
    """
    weights = _least_squares_weights(form, curve)
    r, scale = _scaled(curve)
    starts = form.starts(r, curve.value)
    found, done = _solve(form, r, curve.value, weights, starts)
    misfits = _misfit(curve.value - form.value(found, r), weights)
    best = int(np.argmin(np.where(np.isfinite(misfits), misfits, np.inf)))
    theta, misfit = found[best], float(misfits[best])
    residual = curve.value - form.value(theta, r)
    jacobian = _jacobian(lambda t: form.value(t, r), theta)
    draws, settled, scatter = None, 1.0, None
    if curve.draws is not None:
        begin = np.broadcast_to(theta, (len(curve.draws), len(theta)))
        draws, well = _solve(form, r, curve.draws, weights, begin)
        settled, scatter = float(well.mean()), _unfitted(curve.draws - curve.value, jacobian)
    dispersion = _dispersion(curve, misfit, len(r) - len(theta), scatter)
    covariance = _inverse(jacobian, weights) * dispersion
    units = scale ** -np.array(form.powers, np.float64)
    return Fit(
        form,
        curve,
        theta * units,
        covariance * np.outer(units, units),
        None if draws is None else draws * units,
        settled,
        misfit,
        dispersion,
        residual,
        _lack_of_fit(curve, misfit, len(r) - len(theta), scatter),
        _runs(residual, scatter),
        _problem(form, theta, bool(done[best]), covariance, settled, level),
        level,
    )


@dataclass(frozen=True)
class Comparison:
    """A theory's form beside plain ones on one curve; see `compare`."""

    fits: tuple[Fit, ...]
    """The theory's, then its rivals'."""

    aic: np.ndarray
    """[form] Akaike's criterion, its small-sample correction in it where the errors are unknown."""

    weight: np.ndarray
    """[form] Akaike weights: of the forms here, how likely each predicts best."""

    left_out: np.ndarray
    """[form] root mean square error at a strength that the fit has not seen."""

    verdict: str
    """One of `VERDICTS`."""


def compare(
    theory: Form, curve: Curve, rivals: Sequence[Form] = (LINEAR, QUADRATIC), level: float = LEVEL
) -> Comparison:
    r"""Whether a theory's form holds of a curve, and whether a plain one would do.

    With errors given, AIC is :math:`\chi^2 + 2k`, which needs no correction. With none it is
    :math:`n \ln(\mathrm{RSS} / n) + 2k + 2k(k+1)/(n-k-1)`, the error counted among the k. Of
    items :math:`\chi^2` is the misfit over the dispersion of the form with the most parameters.
    The verdict goes by `VERDICTS` in turn: the theory's misfit (the runs of its residuals where
    no errors are known) has to have a p-value of `DOUBT` or more, and its AIC to be lower than
    any rival's by more than `NEAR`. One curve in twenty of a true theory is rejected.

    Source: Burnham & Anderson (2002), "Model Selection and Multimodel Inference", chapter 2;
    Hurvich & Tsai (1989) for the correction.

    Args:
        theory: The form that is asked for.
        curve: Of what.
        rivals: Plain forms.
        level: Share of intervals that hold the truth.

    Raises:
        DriftlensError: As `fit`, of any of the forms.
    """
    fits = tuple(fit(form, curve, level) for form in (theory, *rivals))
    aic = _aic(fits)
    likely = np.exp((aic.min() - aic) / 2)
    left_out = np.array([_left_out(found) for found in fits])
    return Comparison(fits, aic, likely / likely.sum(), left_out, _verdict(fits[0], aic))


# --- the workings -------------------------------------------------------------------------


def _least_squares_weights(form: Form, curve: Curve) -> np.ndarray:
    """[r] weight of each squared residual."""
    least = len(form.powers) + 3
    if len(curve.strength) < least:
        raise DriftlensError(
            f"{least} strengths or more to fit {form.name}",
            found=str(len(curve.strength)),
            remedy="Measure at more strengths.",
        )
    if curve.error is None or curve.draws is not None:
        return np.ones(len(curve.strength))
    if (curve.error == 0).any():
        raise DriftlensError(
            "errors above 0 at every strength",
            found=f"0 at strength {curve.strength[curve.error == 0][0]:g}",
            remedy="Give the items to `resampled`, which needs no error of each point.",
        )
    return curve.error**-2


def _scaled(curve: Curve) -> tuple[np.ndarray, float]:
    """Strengths between −1 and 1, and the unit they are in: fits do not mind the unit of r."""
    scale = float(np.abs(curve.strength).max())
    return curve.strength / scale, scale


def _jacobian(of: Callable[[np.ndarray], np.ndarray], theta: np.ndarray) -> np.ndarray:
    """[*, parameter] derivatives of an analytic function of [*, parameter] parameters."""
    # The complex step takes no difference, so that no digit is lost (Squire & Trapp, 1998).
    tiny = 1e-100
    steps = 1j * tiny * np.eye(theta.shape[-1])
    return np.stack([np.imag(of(theta + step)) / tiny for step in steps], -1)


def _unfitted(scatter: np.ndarray, jacobian: np.ndarray) -> np.ndarray:
    """[draw, r] what of the draws' scatter no change of the parameters takes up.

    Fits of the draws themselves will not do: of a form that is wrong they settle now here, now
    there, and the scatter between would hide the misfit.
    """
    tall = jacobian / np.maximum(np.abs(jacobian).max(0), FAINT)
    return scatter - scatter @ tall @ np.linalg.pinv(tall, rcond=1e-7)


def _misfit(residual: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return (weights * residual**2).sum(-1)


def _solve(
    form: Form, r: np.ndarray, value: np.ndarray, weights: np.ndarray, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Least squares by Levenberg and Marquardt, of many curves at once.

    Args:
        form: What is fitted.
        r: [r] strengths.
        value: [fit, r] or [r] curves.
        weights: [fit, r] or [r] of squared residuals.
        start: [fit, parameter] where each search begins.

    Returns:
        [fit, parameter] parameters, and [fit] whether each search settled.
    """
    theta, low = np.array(start, np.float64), np.array(form.low)
    value, weights = (np.broadcast_to(z, (len(theta), len(r))) for z in (value, weights))
    damping, done = np.full(len(theta), 1e-3), np.zeros(len(theta), bool)
    cost = _misfit(value - form.value(theta, r), weights)
    for _ in range(STEPS):
        busy = np.flatnonzero(~done)
        if not len(busy):
            break
        now, w = theta[busy], weights[busy]
        j = _jacobian(lambda t: form.value(t, r), now)
        pull = np.einsum("fr,frp->fp", w * (value[busy] - form.value(now, r)), j)
        square = np.einsum("fr,frp,frq->fpq", w, j, j)
        # A parameter at its bound that is pulled beyond it stays there.
        held = (now <= low) & (pull < 0)
        pull, free = np.where(held, 0.0, pull), ~held
        square = square * (free[:, :, None] & free[:, None, :])
        sizes = np.einsum("fpp->fp", square)
        ridge = damping[busy, None] * sizes + np.where(sizes > 0, 0.0, 1.0)
        step = np.linalg.solve(square + ridge[:, :, None] * np.eye(now.shape[1]), pull[..., None])
        step = step[..., 0]
        # What the step promises to take off the misfit, at most twice of what it will.
        promise = np.abs((pull * step).sum(-1)) * (1 + damping[busy])
        done[busy] = promise <= 1e-14 * cost[busy] + 1e-28 * w.sum(-1)
        trial = np.maximum(now + step, low)
        reached = _misfit(value[busy] - form.value(trial, r), w)
        better = reached <= cost[busy]
        theta[busy[better]], cost[busy[better]] = trial[better], reached[better]
        damping[busy] = np.clip(damping[busy] * np.where(better, 0.1, 10.0), 1e-12, 1e12)
        # Where rounding alone decides whether a step is better, the search is at its end.
        done[busy] |= ~better & (promise <= 1e-9 * cost[busy] + 1e-26 * w.sum(-1))
    # A curve that does not change with a parameter has not been searched for it.
    seen = np.abs(_jacobian(lambda t: form.value(t, r), theta)).max(1) > FAINT
    return theta, done & seen.all(1)


def _inverse(jacobian: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[parameter, parameter] inverse of JᵀWJ; NaN where it has none."""
    tall = jacobian * np.sqrt(weights)[:, None]
    lengths = np.linalg.norm(tall, axis=0)
    if not (np.isfinite(lengths).all() and (np.abs(jacobian).max(0) > FAINT).all()):
        return np.full((tall.shape[1], tall.shape[1]), np.nan)
    _, values, axes = np.linalg.svd(tall / lengths, full_matrices=False)
    if values[-1] < 1e-7 * values[0]:
        return np.full((tall.shape[1], tall.shape[1]), np.nan)
    half = axes.T / values / lengths[:, None]
    return half @ half.T


def _dispersion(curve: Curve, misfit: float, freedom: int, scatter: np.ndarray | None) -> float:
    """What the misfit is for each degree of freedom by noise alone."""
    if scatter is not None:
        return float(np.square(scatter).sum(1).mean()) / freedom
    return misfit / freedom if curve.error is None else 1.0


def _lack_of_fit(curve: Curve, misfit: float, freedom: int, scatter: np.ndarray | None) -> float:
    from scipy.special import chdtrc

    if scatter is not None:
        # What rounding makes of a perfect fit is no misfit.
        return exceeded(misfit - ROUNDING**2, np.square(scatter).sum(1))
    return math.nan if curve.error is None else float(chdtrc(freedom, misfit))


def _runs(residual: np.ndarray, scatter: np.ndarray | None) -> float:
    r"""How often signs in a random order change as seldom along a curve.

    Of independent points the number of runs among n₊ and n₋ signs has an exact law; of items
    it is that of the draws' scatter.

    Source: Wald & Wolfowitz (1940), "On a Test Whether Two Samples Are from the Same Population".
    """
    signs = residual[np.abs(residual) > ROUNDING] > 0
    seen, up = 1 + int(np.diff(signs).sum()), int(signs.sum())
    down = len(signs) - up
    if scatter is not None:
        drawn = 1 + np.diff(scatter > 0, axis=1).sum(1)
        return exceeded(-seen, -drawn) if len(signs) else 1.0
    if not up or not down:
        return 1.0
    ways = sum(_ways(up, down, runs) for runs in range(2, seen + 1))
    return ways / math.comb(up + down, up)


def _ways(up: int, down: int, runs: int) -> int:
    """Orders of so many signs up and down that make so many runs."""
    half, odd = divmod(runs, 2)
    if not odd:
        return 2 * math.comb(up - 1, half - 1) * math.comb(down - 1, half - 1)
    return math.comb(up - 1, half) * math.comb(down - 1, half - 1) + math.comb(
        up - 1, half - 1
    ) * math.comb(down - 1, half)


def _problem(
    form: Form, theta: np.ndarray, done: bool, covariance: np.ndarray, settled: float, level: float
) -> str:
    if not np.isfinite(covariance).all():
        return "the strengths do not tell its parameters apart"
    if not done:
        return f"the search did not settle in {STEPS} steps"
    if not np.isfinite(form.reported(theta)).all():
        return "its best curve is at its most at strength 0, where it has no parameters"
    if 1 - settled > (1 - level) / 2:
        return f"{1 - settled:.1%} of the resampled curves have no settled fit"
    return ""


def _critical(found: Fit, share: float) -> float:
    """Quantile of the error of an estimate over its standard error."""
    from scipy.special import stdtrit

    if found.curve.error is not None:
        return NormalDist().inv_cdf(share)
    return float(stdtrit(found.freedom, share))


def _aic(fits: Sequence[Fit]) -> np.ndarray:
    """[form] as `compare` tells."""
    curve, n = fits[0].curve, len(fits[0].residual)
    k = np.array([len(found.theta) for found in fits], np.float64)
    # Two forms that are both perfect but for rounding fit alike.
    misfit = np.array([max(found.misfit, n * ROUNDING**2) for found in fits])
    if curve.error is None:
        k += 1
        return n * np.log(misfit / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1)
    widest = max(fits, key=lambda f: len(f.theta))
    return misfit / max(widest.dispersion, ROUNDING**2) + 2 * k


def _left_out(found: Fit) -> float:
    """Root mean square error at each strength of a fit to the others."""
    form, curve = found.form, found.curve
    r, scale = _scaled(curve)
    weights = _least_squares_weights(form, curve) * (1 - np.eye(len(r)))
    start = np.tile(found.theta * scale ** np.array(form.powers, np.float64), (len(r), 1))
    theta, done = _solve(form, r, curve.value, weights, start)
    if not done.all():
        return math.nan
    return float(np.sqrt(np.square(curve.value - np.diag(form.value(theta, r))).mean()))


def _verdict(theory: Fit, aic: np.ndarray) -> str:
    if theory.problem:
        return "failed"
    p = theory.runs if math.isnan(theory.lack_of_fit) else theory.lack_of_fit
    if not p >= DOUBT:
        return "rejected"
    ahead = aic[1:].min(initial=np.inf) - aic[0]
    if ahead < -NEAR:
        return "outdone"
    form = theory.form
    effect = theory.parameters[form.parameters[form.effect]]
    # What rounding makes of a flat curve is no effect; of b, which enters as its square, the root.
    power = max(1, form.powers[form.effect])
    least = ROUNDING ** (1 / power) / float(np.abs(theory.curve.strength).max())
    if not (effect.low > least or effect.high < -least):
        return "still"
    return "holds" if ahead > NEAR else "undecided"
