"""Which way, and how far, two roles of texts lie apart, at every layer of both models."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np

from driftlens.contrasts import MODELS
from driftlens.errors import DriftlensError
from driftlens.formulas.streams import PerDocument
from driftlens.metric import Metric
from driftlens.models import Frame, ModelPair, Wants
from driftlens.models.sites import Part, Site
from driftlens.models.tokens import Document, Encoder
from driftlens.packs import TWINS
from driftlens.results import Estimate, Result, column, fact, figures, shown, value

if TYPE_CHECKING:
    from driftlens.estimators import Direction

R = TypeVar("R", bound=Result)

At = Literal["last", "answer", "response"]
"""Where the state of a text is read."""

METHODS = {
    "mean-difference": "mean_difference",
    "caa": "paired_difference",
    "pca": "contrast_pca",
    "pca-shuffled": "contrast_pca",
    "discriminant": "discriminant",
    "logistic": "logistic_normal",
}
"""Ways to find a direction, and the estimator of each."""

PAIRED = ("caa", "pca", "pca-shuffled")
"""Those that need the twin of every text."""

PARTS: tuple[Part, ...] = ("attn", "mlp", "out")
"""What of a block can be looked at."""

ROUNDS = 200
"""Resampled directions, and halves; a tenth where each must be searched for."""

EXCHANGES = 999
"""Draws of roles that mean nothing; as many where each must be searched for as of `ROUNDS`."""

FOLDS = 5
"""Parts that texts are held out in."""

SPAN = 3
"""Dimensions of the subspaces between which angles are taken, at most."""

NOTHING = "The texts that were read tell of no direction."
"""What is said where too few were read, or all of them are alike."""


@dataclass(frozen=True)
class DirectionsResult(Result):
    """Norms and sureness of the direction between two roles, layer by layer."""

    kind = "directions"
    title = "Steering directions"
    over = "Which way, how far, at what cost"
    how = """
Texts of two roles (polite and rude, refused and harmless, true and false) are shown to both \
models, and the state of each text is taken where it is read: at its last token (of masked models \
at the first one, which the whole text is read into), at the token in which the two answers of a \
pair differ, or as the mean over its response. A direction leads from \
the negative role to the positive one. Difference of means: v = μ₊ − μ₋ (Arditi et al. 2024); \
caa: the same within pairs, at the answer's token (Rimsky et al. 2024); pca: the top component of \
differences within pairs, not centred, since centring takes away the very signal (Zou et al. \
2023 turn pairs round at random and centre: pca-shuffled); discriminant: Σ⁻¹(μ₊ − μ₋) with \
Ledoit and Wolf's shrinkage; logistic: the normal of logistic regression.

norm = how far the roles' means lie apart along the direction, which for a difference of means is \
‖v‖; relative_norm = norm / E‖h‖, the mean length of a state there: norms grow with depth as \
states do. split_half_cosine: mean cosine between the directions of two halves of the texts \
(families whole); resampled_cosine: of directions of resampled texts with the one found. \
separation = norm over the spread of states within their role along the direction, of the very \
texts that it was found by. accuracy: texts named rightly that the direction was not found by. \
null_norm: mean norm where roles are exchanged at random; p_value: of so large a norm, corrected \
over layers (max-T). cosine_base_aligned and norm_ratio (aligned / base) are of the directions as \
found; noise shortens the cosine, see *Directions of both models*.
""".strip()

    cosine: Estimate = value("cosine")
    """Of base's direction with aligned's at the block named here; without the means' noise, where
    it is a difference of means."""
    norm_ratio_at_peak: Estimate = value("× base")
    """Norm of aligned's direction over that of base's there, likewise."""

    model: np.ndarray = column()
    """[row] base or aligned; base of a model alone."""
    layer: np.ndarray = column()
    """[row] number of the block."""
    norm: np.ndarray = column("of the stream")
    """[row] distance of the roles' means along the direction."""
    relative_norm: np.ndarray = column("of E‖h‖")
    """[row] the same over the mean length of a state."""
    split_half_cosine: np.ndarray = column("cosine")
    """[row] mean cosine between directions of halves."""
    separation: np.ndarray = column("standard deviations")
    """[row] norm over the spread within a role."""
    cosine_base_aligned: np.ndarray = column("cosine")
    """[row] between the two models' directions."""
    norm_ratio: np.ndarray = column("× base")
    """[row] aligned's norm over base's."""
    part: np.ndarray = column()
    """[row] what of the block: what attention adds, what the MLP adds, or the stream."""
    accuracy: np.ndarray = column("of texts")
    """[row] held-out texts named rightly; chance is ½."""
    null_norm: np.ndarray = column("of the stream")
    """[row] mean norm where roles mean nothing."""
    p_value: np.ndarray = column()
    """[row] of the norm, corrected over the model's rows of one part."""
    resampled_cosine: np.ndarray = column("cosine")
    """[row] mean cosine of directions of resampled texts with the one found."""
    to_truth: np.ndarray = column("cosine")
    """[row] what the halves say of the cosine with the direction of endless texts."""
    mean_length: np.ndarray = column("of the stream")
    """[row] E‖h‖, mean length of a state, both roles counting alike."""

    method: str = fact()
    """How the direction is found."""
    at: str = fact()
    """Where states are read."""
    positive: int = fact("texts")
    """Texts of the positive role."""
    negative: int = fact("texts")
    """Texts of the negative role."""
    pairs: int = fact("pairs")
    """Pairs that they form; 0 if they form none."""
    peak: int = fact()
    """The block at which base's direction names most held-out texts; −1 if there is none."""

    def at_row(self, model: str, layer: int, part: str = "out") -> dict[str, Any]:
        """A row, by column."""
        mine = (self.model == model) & (self.layer == layer) & (self.part == part)
        (row,) = np.flatnonzero(mine)
        return {name: cells[row] for name, cells in self.columns().items()}

    def summary(self) -> str:
        """Length and sureness at the peak, and what alignment did to it."""
        if self.peak < 0:
            return NOTHING
        part = "out" if "out" in self.part.tolist() else self.part[0]
        row = self.at_row("base", self.peak, part)
        said = (
            f"After block {self.peak} the roles lie {row['relative_norm']:.2f} E‖h‖ apart "
            f"(p = {row['p_value']:.3g}, halves agree by a cosine of "
            f"{shown(row['split_half_cosine'], 2)}), and {row['accuracy']:.0%} of unseen texts are "
            "named rightly"
        )
        if "aligned" not in self.model.tolist():
            return f"{said}."
        if np.isnan(self.cosine.value):
            return f"{said} in base; beside aligned's direction nothing of it is more than noise."
        return (
            f"{said} in base; aligned's direction has a cosine of {self.cosine} with it and "
            f"{self.norm_ratio_at_peak} times its length."
        )

    def headline(self) -> str:
        """Whether alignment turned the direction."""
        if "aligned" not in self.model.tolist() or not np.isfinite(self.cosine.high):
            return ""
        turned = self.cosine.high < 0.9
        return (
            f"the direction after block {self.peak} turned to a cosine of {self.cosine.value:.2f}"
            if turned
            else f"the direction after block {self.peak} kept its way (cosine "
            f"{self.cosine.value:.2f})"
        )

    def figure(self) -> "figures.Figure | None":
        """Relative norms, sureness, held-out accuracy and the angle, by layer."""
        if self.peak < 0:
            return None
        part = "out" if "out" in self.part.tolist() else self.part[0]
        mine = {model: (self.model == model) & (self.part == part) for model in MODELS}
        mine = {model: rows for model, rows in mine.items() if rows.any()}
        layers = self.layer[mine["base"]]
        both = len(mine) > 1
        figure, panels = figures.panels(4 if both else 3)
        shown = (
            ("relative_norm", "norm of direction [E‖h‖]"),
            ("split_half_cosine", "cosine of halves"),
            ("accuracy", "accuracy [of held-out texts]"),
        )
        for panel, (name, ylabel) in zip(panels, shown, strict=False):
            numbers = getattr(self, name)
            lines = {model: numbers[rows] for model, rows in mine.items()}
            if name == "relative_norm":
                length = np.where(self.mean_length > 0, self.mean_length, np.nan)
                lines["roles exchanged, base"] = (self.null_norm / length)[mine["base"]]
            figures.curves(layers, lines, xlabel="block", ylabel=ylabel, on=panel)
        if both:
            figures.curves(
                layers,
                {
                    "cosine": self.cosine_base_aligned[mine["base"]],
                    "norm ratio": self.norm_ratio[mine["base"]],
                },
                xlabel="block",
                ylabel="aligned against base",
                on=panels[3],
            )
        return figure


@dataclass(frozen=True)
class DirectionTransferResult(Result):
    """The directions of two models beside each other."""

    kind = "direction_transfer"
    title = "Directions of both models"
    how = """
Both models' directions on the same texts. cosine and norm_ratio as found; true_cosine and \
true_norm_ratio without the noise of the means, by products that no family of texts has with \
itself (Hoeffding 1948), with 95 % bootstrap intervals over families; noise_base and \
noise_aligned: share of the squared norm that is noise. base_on_aligned: share of held-out texts \
of aligned that base's direction names rightly, with aligned's own threshold; the others likewise. \
smallest_angle and largest_angle: principal angles between the subspaces of the first components \
of differences within pairs, in degrees.

Drift: Δh = h_aligned − h_base of the same texts. drift_share = Σ⟨Δh, v̂⟩² / Σ‖Δh‖² along base's \
direction, against 1/d by chance; drift_cosine of the mean drift with it, above 0 towards the \
positive role; drift_p of so large a squared cosine of a random direction (Beta(½, (d−1)/2)).
""".strip()

    cosine_at_peak: Estimate = value("cosine")
    """true_cosine at base's peak."""
    transfer_at_peak: Estimate = value("of texts")
    """base_on_aligned at base's peak."""
    drift_at_peak: Estimate = value("cosine")
    """Cosine of the mean drift with base's direction at base's peak."""

    layer: np.ndarray = column()
    """[row] number of the block."""
    part: np.ndarray = column()
    """[row] what of the block."""
    cosine: np.ndarray = column("cosine")
    """[row] of the directions as found."""
    true_cosine: np.ndarray = column("cosine")
    """[row] of the differences of means, without their noise."""
    low: np.ndarray = column("cosine")
    """[row] lower end of its interval."""
    high: np.ndarray = column("cosine")
    """[row] upper end of it."""
    norm_ratio: np.ndarray = column("× base")
    """[row] aligned's norm over base's, as found."""
    true_norm_ratio: np.ndarray = column("× base")
    """[row] the same of the differences of means, without their noise."""
    ratio_low: np.ndarray = column("× base")
    """[row] lower end of its interval."""
    ratio_high: np.ndarray = column("× base")
    """[row] upper end of it."""
    noise_base: np.ndarray = column("of squared norm")
    """[row] share of base's squared norm that is noise."""
    noise_aligned: np.ndarray = column("of squared norm")
    """[row] the same of aligned."""
    base: np.ndarray = column("of texts")
    """[row] accuracy of base's direction on base."""
    base_on_aligned: np.ndarray = column("of texts")
    """[row] accuracy of base's direction on aligned."""
    aligned: np.ndarray = column("of texts")
    """[row] accuracy of aligned's direction on aligned."""
    aligned_on_base: np.ndarray = column("of texts")
    """[row] accuracy of aligned's direction on base."""
    smallest_angle: np.ndarray = column("degrees")
    """[row] smallest principal angle; NaN where texts form no pairs."""
    largest_angle: np.ndarray = column("degrees")
    """[row] largest principal angle; NaN where texts form no pairs."""
    drift_share: np.ndarray = column("of ‖Δh‖²")
    """[row] share of the squared drift that goes along base's direction."""
    drift_chance: np.ndarray = column("of ‖Δh‖²")
    """[row] 1 / width."""
    drift_cosine: np.ndarray = column("cosine")
    """[row] of the mean drift with base's direction."""
    drift_p: np.ndarray = column()
    """[row] chance of so large a squared cosine."""

    peak: int = fact()
    """As in *Steering directions*."""

    def summary(self) -> str:
        """Angle, transfer and drift at the peak."""
        if self.peak < 0:
            return NOTHING
        (row,) = np.flatnonzero((self.layer == self.peak) & (self.part == _main(self.part)))
        drift = (
            f"; the models drifted along it by {self.drift_share[row]:.1%} of the squared drift "
            f"(chance {self.drift_chance[row]:.1%})"
        )
        cosine = (
            "has no cosine beyond noise"
            if np.isnan(self.cosine_at_peak.value)
            else f"has a cosine of {self.cosine_at_peak}"
        )
        return (
            f"After block {self.peak} base's direction {cosine} with "
            f"aligned's and names {self.transfer_at_peak.value:.0%} of aligned's unseen texts "
            f"rightly ({self.aligned[row]:.0%} by its own)"
            + ("" if np.isnan(self.drift_share[row]) else drift)
            + "."
        )

    def figure(self) -> "figures.Figure | None":
        """Cosines with their intervals, transfer, and the drift along the direction."""
        if self.peak < 0:
            return None
        mine = self.part == _main(self.part)
        layers = self.layer[mine]
        figure, panels = figures.panels(3)
        figures.curves(
            layers,
            {"as found": self.cosine[mine], "without noise": self.true_cosine[mine]},
            bands={"without noise": (self.low[mine], self.high[mine])},
            xlabel="block",
            ylabel="cosine, base with aligned",
            on=panels[0],
        )
        names = {
            "base on base": self.base,
            "base on aligned": self.base_on_aligned,
            "aligned on aligned": self.aligned,
            "aligned on base": self.aligned_on_base,
        }
        figures.curves(
            layers,
            {name: numbers[mine] for name, numbers in names.items()},
            xlabel="block",
            ylabel="accuracy [of held-out texts]",
            on=panels[1],
        )
        figures.curves(
            layers,
            {"share": self.drift_share[mine], "chance": self.drift_chance[mine]},
            xlabel="block",
            ylabel="drift along it [of ‖Δh‖²]",
            on=panels[2],
        )
        return figure


@dataclass(frozen=True)
class DirectionMethodsResult(Result):
    """The same direction found in other ways."""

    kind = "direction_methods"
    title = "Directions by other methods"
    how = """
Each way of finding a direction (see *Steering directions*) on the same states: its cosine with \
the difference of means, how far the roles' means lie apart along it, and the share of texts that \
it names rightly where it was found without them. What is added along a direction whose own \
length means nothing (1 of a component, an inverse unit of a discriminant) is that distance.

norm = ⟨μ₊ − μ₋, v̂⟩, with v̂ the direction at length 1. Sources: those of *Steering directions*.
""".strip()

    model: np.ndarray = column()
    """[row] base or aligned."""
    layer: np.ndarray = column()
    """[row] number of the block."""
    part: np.ndarray = column()
    """[row] what of the block."""
    method: np.ndarray = column()
    """[row] how it is found."""
    cosine: np.ndarray = column("cosine")
    """[row] with the difference of means."""
    norm: np.ndarray = column("of the stream")
    """[row] distance of the roles' means along it."""
    accuracy: np.ndarray = column("of texts")
    """[row] held-out texts named rightly."""

    peak: int = fact()
    """As in *Steering directions*."""

    def summary(self) -> str:
        """How far they agree at the peak."""
        if self.peak < 0:
            return NOTHING
        mine = (self.layer == self.peak) & (self.model == "base") & (self.part == _main(self.part))
        said = [
            f"{method} {shown(float(cosine), 2)} ({accuracy:.0%})"
            for method, cosine, accuracy in zip(
                self.method[mine], self.cosine[mine], self.accuracy[mine], strict=True
            )
            if method != "mean-difference"
        ]
        who = "base" if "aligned" in self.model.tolist() else "the model"
        return (
            f"After block {self.peak} of {who}, cosine with the difference of means (and held-out "
            f"accuracy): {', '.join(said) or 'no other method'}."
        )

    def figure(self) -> "figures.Figure | None":
        """Cosine and accuracy by layer of base."""
        if self.peak < 0:
            return None
        mine = (self.model == "base") & (self.part == _main(self.part))
        figure, panels = figures.panels(2)
        every = list(dict.fromkeys(self.method[mine].tolist()))
        counts = {name: int((mine & (self.method == name)).sum()) for name in every}
        names = [name for name, count in counts.items() if count == max(counts.values())]
        for panel, (numbers, ylabel) in zip(
            panels,
            (
                (self.cosine, "cosine with difference of means"),
                (self.accuracy, "accuracy [of held-out texts]"),
            ),
            strict=True,
        ):
            lines = {name: numbers[mine & (self.method == name)] for name in names}
            layers = self.layer[mine & (self.method == names[0])]
            figures.curves(layers, lines, xlabel="block of base", ylabel=ylabel, on=panel)
        return figure


def _known(measured: Any, most: float = np.inf) -> Estimate:
    """A figure without noise and its bounds; undefined where noise leaves none of these.

    Args:
        measured: The figure, as `estimators.compare` gives it.
        most: How large it can be; by chance it may pass that.
    """
    numbers = [float(np.clip(z, -most, most)) for z in measured]
    return Estimate(*(numbers if np.isfinite(numbers).all() else [np.nan] * 3))


def _main(parts: np.ndarray) -> Part:
    """The part that is spoken of."""
    found: Part = "out" if "out" in parts.tolist() else parts[0]
    return found


class Roles(NamedTuple):
    """The states of the texts of both roles at one place of a model."""

    positive: np.ndarray
    """[text, width], in the order of pairs if there are any."""

    negative: np.ndarray
    """[text, width] likewise."""


class RoleStates(Metric[R]):
    """Keeps the states of texts of two roles, and finds the direction between them.

    Args:
        layers: Blocks to look at; None is all.
        parts: What of them: attn, mlp, out.
        method: One of `METHODS`.
        at: Where the state of a text is read: at its `last` token (of masked models at the first
            one, which the whole text is read into), at the one token in which the `answer`s of a
            pair differ, or as the mean over the tokens of its `response`.
        seed: Of every draw.
        level: Share of bootstrap draws that an interval holds.
        back: How many tokens before the last one.

    Raises:
        DriftlensError: There is no such method, part or place.
    """

    kinds = ("roles",)

    def __init__(
        self,
        layers: Collection[int] | None = None,
        parts: Sequence[Part] = ("out",),
        method: str = "mean-difference",
        at: At = "last",
        seed: int = 0,
        level: float = 0.95,
        back: int = 0,
    ) -> None:
        self.back = back
        for what, found, known in (
            ("method", [method], METHODS),
            ("place", [at], get_args(At)),
            ("part", parts, PARTS),
        ):
            if unknown := [one for one in found if one not in known] or ([] if found else ["none"]):
                raise DriftlensError(
                    f"a {what} among {', '.join(known)}",
                    found=", ".join(map(repr, unknown)),
                    remedy="Choose one of these.",
                )
        self.wants = Wants(frozenset(parts), None if layers is None else frozenset(layers))
        self.asked, self.parts = layers, tuple(dict.fromkeys(parts))
        self.method, self.at, self.seed, self.level = method, at, seed, level
        self.states = PerDocument(0)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Find where each text is read, and make room.

        Raises:
            DriftlensError: A block is not there; or texts form no pairs where the method needs
                them, have no response where it is to be read, do not differ in one token where
                that is, or are too few to hold any out.
        """
        super().begin(pair, encoder)
        layers = range(pair.depth) if self.asked is None else sorted(self.asked)
        self.layers = tuple(layers)
        if outside := [layer for layer in layers if not 0 <= layer < pair.depth]:
            raise DriftlensError(
                f"blocks from 0 to {pair.depth - 1}, which {pair.base.name} has",
                found=", ".join(map(str, outside)),
                remedy="Choose others.",
            )
        sites = [Site(layer, part) for part in self.parts for layer in self.layers]
        has = getattr(pair.base, "has", lambda site: True)
        self.sites = tuple(site for site in sites if has(site))
        if not self.sites:
            raise DriftlensError(
                f"a place among {', '.join(self.parts)} of some block of {pair.base.name}",
                found="none",
                remedy="Choose other layers or parts.",
            )
        _check_families(encoder)
        self.twins = _twins(encoder)
        if self.method in PAIRED and self.twins is None:
            raise DriftlensError(
                f"pairs of texts in {encoder.pack.name}, for the method {self.method}",
                found="texts without a `pair_id`",
                remedy="Take --method mean-difference, or give each pair a `pair_id`.",
            )
        self.spots = _spots(encoder, self.at, self.twins, self.back)
        self.states = PerDocument(1 + len(MODELS) * len(self.sites) * pair.width)

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        bounds = np.array([self.spots[number] for number in frame.units.document])
        place = frame.units.position
        here = np.flatnonzero((place >= bounds[:, 0]) & (place < bounds[:, 1]))
        sides = [
            side[here].double().cpu().numpy() for site in self.sites for side in frame.both(site)
        ]
        rows = np.stack([np.ones(len(here)), *np.concatenate(sides, 1).T], 1)
        self.states.update(frame.units.document[here], rows)

    def found(self) -> dict[tuple[str, Site], "Direction"]:
        """Each model's direction at each place.

        Raises:
            DriftlensError: Too few texts were read.
        """
        study = self._study
        if study.few:
            raise _too_few(self.encoder.pack.name, *study.groups)
        return {
            (model, site): study.direction(number, place)
            for number, model in enumerate(study.models)
            for place, site in enumerate(self.sites)
        }

    @property
    def _study(self) -> "_Study":
        # What was learnt holds only as long as nothing more is seen, of the same texts or others.
        seen = sha256(self.states.documents.data)
        seen.update(self.states.sums.data)
        key = seen.digest()
        kept: tuple[bytes, _Study] | None = vars(self).get("_learnt")
        if kept is None or kept[0] != key:
            kept = key, _Study(self)
            self._learnt = kept
        return kept[1]


class Directions(RoleStates[DirectionsResult]):
    """Tells of the direction between two roles of texts in both models; see `RoleStates`."""

    also = (DirectionTransferResult, DirectionMethodsResult)

    def compute(self) -> DirectionsResult:
        """The result of all that was seen so far."""
        return self._study.main

    def beside(self) -> Sequence[Result]:
        """Both models beside each other, and other methods."""
        study = self._study
        found: list[Result] = [] if study.alone else [study.transfer()]
        return [*found, study.methods()]


class _Study:
    """Everything that is learnt of the states that a metric has kept."""

    def __init__(self, metric: RoleStates) -> None:
        self.metric, self.seed, self.level = metric, metric.seed, metric.level
        self.pack = metric.encoder.pack
        self.alone = metric.pair.base is metric.pair.aligned
        self.models = MODELS[:1] if self.alone else MODELS
        sums, documents = metric.states.sums, metric.states.documents
        with np.errstate(divide="ignore", invalid="ignore"):
            means = sums[:, 1:] / sums[:, :1]
        shape = (len(documents), len(metric.sites), len(MODELS), metric.pair.width)
        self.rows = means.reshape(shape)
        self.row_of = {int(number): row for row, number in enumerate(documents)}
        self.chosen = self._chosen()

    def _chosen(self) -> tuple[list[int], list[int]]:
        """Documents of the positive and of the negative role, those of a pair side by side."""
        seen, twins = self.row_of, self.metric.twins
        if twins is not None:
            whole = [two for two in twins if all(number in seen for number in two)]
            return [two[0] for two in whole], [two[1] for two in whole]
        numbers = sorted(seen)
        by = {r: [n for n in numbers if self.pack.examples[n].role == r] for r in TWINS}
        return by[TWINS[0]], by[TWINS[1]]

    @cached_property
    def groups(self) -> tuple[np.ndarray, np.ndarray]:
        """[text] number of the family of each, of both roles."""
        clusters = np.array(self.pack.clusters, np.int64)
        return clusters[self.chosen[0]], clusters[self.chosen[1]]

    @cached_property
    def folds(self) -> int:
        """In how many parts texts are held out: families of each kind are dealt out among them."""
        return _folds(*self.groups)

    @property
    def few(self) -> bool:
        """Whether too few texts were read to hold any out."""
        return self.folds < 2

    def roles(self, model: int, place: int) -> Roles:
        """The states of one model at one place."""
        some = [[self.row_of[n] for n in numbers] for numbers in self.chosen]
        found = Roles(*(self.rows[rows, place, model] for rows in some))
        if not all(np.isfinite(states).all() for states in found):
            raise DriftlensError(
                "finite states",
                found=f"others in {MODELS[model]} at {self.metric.sites[place]}",
                remedy="Load the model with --dtype float32.",
            )
        return found

    def direction(self, model: int, place: int, method: str | None = None) -> "Direction":
        """The direction of one model at one place."""
        key = model, place, method or self.metric.method
        if key not in self._found:
            self._found[key] = self.estimate(key[2])(*self.roles(model, place))
        return self._found[key]

    @cached_property
    def _found(self) -> dict[tuple[int, int, str], "Direction"]:
        return {}

    def estimate(self, method: str) -> Callable[..., "Direction"]:
        """The estimator of a method."""
        from driftlens import estimators

        found = getattr(estimators, METHODS[method])
        return partial(found, shuffle=self.seed) if method == "pca-shuffled" else found

    @cached_property
    def main(self) -> DirectionsResult:
        """The main table."""
        from driftlens.estimators import cross_transfer, max_t, role_null, stability

        if self.few:
            return self._nothing(DirectionsResult)
        metric, estimate = self.metric, self.estimate(self.metric.method)
        quick = metric.method in ("mean-difference", "caa")
        rounds = ROUNDS if quick else ROUNDS // 10
        how: dict[str, Any] = {"groups": self.groups, "seed": self.seed}
        rows: dict[str, list[Any]] = {name: [] for name in _ROWS}
        nulls: dict[tuple[int, str], list[np.ndarray]] = {}
        leads: dict[tuple[int, str], list[float]] = {}
        for model, place, site in self._cells():
            states, found = self.roles(model, place), self.direction(model, place)
            other = self.direction(1 - model, place) if not self.alone else found
            sure = stability(estimate, *states, rounds=rounds, level=self.level, **how)
            null = role_null(estimate, *states, rounds=EXCHANGES if quick else ROUNDS, **how)
            # In units of the null's own, so that no layer's size speaks for another's.
            size = float(null.norms.mean()) or np.nan
            nulls.setdefault((model, site.part), []).append(null.norms / size)
            leads.setdefault((model, site.part), []).append(found.norm / size)
            rows["model"].append(MODELS[model])
            rows["layer"].append(site.layer)
            rows["part"].append(site.part)
            rows["norm"].append(found.norm)
            rows["relative_norm"].append(found.relative)
            rows["separation"].append(found.separation)
            rows["mean_length"].append(float(found.lengths.mean()))
            rows["split_half_cosine"].append(sure.split_half.value)
            rows["resampled_cosine"].append(sure.cosine.value)
            rows["to_truth"].append(sure.to_truth)
            rows["null_norm"].append(float(null.norms.mean()))
            pair = (found, other) if model == 0 else (other, found)
            rows["cosine_base_aligned"].append(found.cosine(other))
            rows["norm_ratio"].append(pair[1].norm / pair[0].norm if pair[0].norm else np.nan)
            if model == 0:
                both = self.roles(0, place), self.roles(0 if self.alone else 1, place)
                moved = cross_transfer(*both, estimate=estimate, folds=self.folds, **how)
                self._moved[place] = moved
            rows["accuracy"].append(float(self._moved[place].accuracy[model, model]))
        p_values = [p for key, some in nulls.items() for p in max_t(leads[key], np.stack(some, 1))]
        rows["p_value"] = p_values
        if self.peak(rows) < 0:
            return self._nothing(DirectionsResult)
        cosine, ratio = self._at_peak(rows)
        return DirectionsResult.of(
            cosine=cosine,
            norm_ratio_at_peak=ratio,
            **rows,
            method=metric.method,
            at=metric.at,
            positive=len(self.chosen[0]),
            negative=len(self.chosen[1]),
            pairs=0 if metric.twins is None else len(self.chosen[0]),
            peak=self.peak(rows),
            notes=tuple(self._notes()),
        )

    @cached_property
    def _moved(self) -> dict[int, Any]:
        """By place, accuracies of both models' directions on both."""
        return {}

    def _cells(self) -> Iterator[tuple[int, int, Site]]:
        for model in range(len(self.models)):
            for place, site in enumerate(self.metric.sites):
                yield model, place, site

    def peak(self, rows: dict[str, list[Any]]) -> int:
        """The block at which base's direction is the surest.

        It is that of the best accuracy, and of equals the one whose roles lie furthest apart.
        """
        part = _main(np.array(rows["part"], object))
        best, found = (-np.inf, -np.inf), -1
        for model, layer, at, accuracy, separation in zip(
            *(rows[name] for name in ("model", "layer", "part", "accuracy", "separation")),
            strict=True,
        ):
            if model == MODELS[0] and at == part and (accuracy, separation) > best:
                best, found = (accuracy, separation), layer
        return found

    def _at_peak(self, rows: dict[str, list[Any]]) -> tuple[Estimate, Estimate]:
        """Cosine and ratio of norms at the peak."""
        part = _main(np.array(rows["part"], object))
        place = self.metric.sites.index(Site(self.peak(rows), part))
        if self.metric.method in ("mean-difference", "caa"):
            found = self.compared(place)
            return _known(found.true_cosine, 1.0), _known(found.true_norm_ratio)
        return Estimate(rows["cosine_base_aligned"][place]), Estimate(rows["norm_ratio"][place])

    def compared(self, place: int) -> Any:
        """The differences of means of both models."""
        from driftlens.estimators import compare

        if place not in self._compared:
            both = self.roles(0, place), self.roles(0 if self.alone else 1, place)
            how: dict[str, Any] = {"groups": self.groups, "seed": self.seed, "level": self.level}
            self._compared[place] = compare(*both, **how)
        return self._compared[place]

    @cached_property
    def _compared(self) -> dict[int, Any]:
        return {}

    def transfer(self) -> DirectionTransferResult:
        """Both models beside each other."""
        main = self.main
        if main.peak < 0:
            return self._nothing(DirectionTransferResult)
        rows: dict[str, list[Any]] = {name: [] for name in _TRANSFER}
        for place, site in enumerate(self.metric.sites):
            found, moved = self.compared(place), self._moved[place]
            true, ratio = _known(found.true_cosine, 1.0), _known(found.true_norm_ratio)
            smallest, largest = self._angles(place)
            rows["layer"].append(site.layer)
            rows["part"].append(site.part)
            for name, number in (
                ("cosine", self.direction(0, place).cosine(self.direction(1, place))),
                ("true_cosine", true.value),
                ("low", true.low),
                ("high", true.high),
                ("norm_ratio", found.norm_ratio),
                ("true_norm_ratio", ratio.value),
                ("ratio_low", ratio.low),
                ("ratio_high", ratio.high),
                ("noise_base", found.noise[0]),
                ("noise_aligned", found.noise[1]),
                ("base", moved.accuracy[0, 0]),
                ("base_on_aligned", moved.accuracy[0, 1]),
                ("aligned", moved.accuracy[1, 1]),
                ("aligned_on_base", moved.accuracy[1, 0]),
                ("smallest_angle", smallest),
                ("largest_angle", largest),
            ):
                rows[name].append(float(number))
            for name, number in self._drift(place).items():
                rows[name].append(number)
        place = self.metric.sites.index(Site(main.peak, _main(main.part)))
        moved = self._moved[place]
        return DirectionTransferResult.of(
            cosine_at_peak=_known(self.compared(place).true_cosine, 1.0),
            transfer_at_peak=Estimate(
                *(float(z[0, 1]) for z in (moved.accuracy, moved.low, moved.high))
            ),
            drift_at_peak=rows["drift_cosine"][place],
            **rows,
            peak=main.peak,
        )

    def _drift(self, place: int) -> dict[str, float]:
        """How much of the drift goes along base's direction; NaN without a direction."""
        from driftlens.estimators import drift_along

        unit = self.direction(0, place).unit
        chance = 1 / len(unit)
        if not np.isfinite(unit).all():
            nan = dict.fromkeys(("drift_share", "drift_cosine", "drift_p"), np.nan)
            return {**nan, "drift_chance": chance}
        base, aligned = self.roles(0, place), self.roles(1, place)
        along = drift_along(
            np.concatenate([a - b for a, b in zip(aligned, base, strict=True)]),
            unit,
            groups=np.concatenate(self.groups),
            seed=self.seed,
            level=self.level,
        )
        return {
            "drift_share": along.share.value,
            "drift_chance": chance,
            "drift_cosine": along.cosine,
            "drift_p": along.p_value,
        }

    def _angles(self, place: int) -> tuple[float, float]:
        """Smallest and largest principal angle in degrees; NaN without pairs."""
        from driftlens.estimators import contrast_subspace, principal_angles

        if self.metric.twins is None:
            return np.nan, np.nan
        pairs = len(self.chosen[0])
        count = min(SPAN, pairs - 1, self.metric.pair.width - 1)
        if count < 1:
            return np.nan, np.nan
        spans = [contrast_subspace(*self.roles(model, place), count) for model in (0, 1)]
        angles = np.degrees(principal_angles(*spans))
        # Where no pair differs there is no subspace, and no angle.
        return (float(angles[0]), float(angles[-1])) if len(angles) else (np.nan, np.nan)

    def methods(self) -> DirectionMethodsResult:
        """Other ways to find the direction."""
        from driftlens.estimators import cross_transfer

        main = self.main
        if main.peak < 0:
            return self._nothing(DirectionMethodsResult)
        sides = range(len(self.models))
        names = [m for m in METHODS if m != "caa" and (self.metric.twins or m not in PAIRED)]
        rows: dict[str, list[Any]] = {name: [] for name in _METHODS}
        missed: dict[str, str] = {}
        for method in names:
            estimate = self.estimate(method)
            for place, site in enumerate(self.metric.sites):
                if not all(self.direction(m, place, "mean-difference").norm for m in sides):
                    continue
                both = self.roles(0, place), self.roles(0 if self.alone else 1, place)
                try:
                    moved = cross_transfer(
                        *both,
                        estimate=estimate,
                        folds=self.folds,
                        groups=self.groups,
                        seed=self.seed,
                        rounds=1,
                    )
                    directions = [self.direction(model, place, method) for model in sides]
                except DriftlensError as error:
                    # What too few texts cannot give is left out of this table, and it says so.
                    said = f"{method} is left out where there are {error.found}."
                    missed.setdefault(method, said)
                    continue
                for model, found in zip(sides, directions, strict=True):
                    means = self.direction(model, place, "mean-difference")
                    rows["model"].append(MODELS[model])
                    rows["layer"].append(site.layer)
                    rows["part"].append(site.part)
                    rows["method"].append(method)
                    rows["cosine"].append(found.cosine(means))
                    rows["norm"].append(found.norm)
                    rows["accuracy"].append(float(moved.accuracy[model, model]))
        return DirectionMethodsResult.of(**rows, peak=main.peak, notes=tuple(missed.values()))

    def _nothing(self, kind: type[R]) -> R:
        """A result of too few texts: no row, and no number."""
        known = {
            "method": self.metric.method,
            "at": self.metric.at,
            "positive": len(self.chosen[0]),
            "negative": len(self.chosen[1]),
            "pairs": 0 if self.metric.twins is None else len(self.chosen[0]),
            "peak": -1,
        }
        given: dict[str, Any] = {}
        for field in fields(kind):
            role = field.metadata.get("role")
            if role:
                given[field.name] = {"value": np.nan, "column": []}.get(role, known.get(field.name))
        note = (
            "Two families of each kind of texts are needed, and were not read."
            if self.few
            else "The two roles have the same states."
        )
        return kind.of(**given, notes=(note,))

    def _notes(self) -> Iterator[str]:
        lost = len(self.pack.examples) - sum(map(len, self.chosen))
        if lost:
            yield f"{lost} of {len(self.pack.examples)} texts were not read, or their twins not."
        if cut := self.metric.encoder.windowed:
            length = self.metric.encoder.length
            yield (
                f"{cut} texts are longer than the {length} tokens of a window: what lies far "
                "before the place where they are read is not seen there."
            )
        if self.metric.twins is None:
            yield "The texts form no pairs: roles are dealt out anew where nothing should be found."


_ROWS = (
    *("model", "layer", "norm", "relative_norm", "split_half_cosine", "separation"),
    *("cosine_base_aligned", "norm_ratio", "part", "accuracy", "null_norm", "p_value"),
    *("resampled_cosine", "to_truth", "mean_length"),
)
_TRANSFER = (
    *("layer", "part", "cosine", "true_cosine", "low", "high", "norm_ratio", "true_norm_ratio"),
    *("ratio_low", "ratio_high", "noise_base", "noise_aligned", "base", "base_on_aligned"),
    *("aligned", "aligned_on_base", "smallest_angle", "largest_angle"),
    *("drift_share", "drift_chance", "drift_cosine", "drift_p"),
)
_METHODS = ("model", "layer", "part", "method", "cosine", "norm", "accuracy")


# How texts are held out


def _folds(positive: np.ndarray, negative: np.ndarray) -> int:
    """Parts in which texts of two roles, of these families, can be held out."""
    one, other = (set(some.tolist()) for some in (positive, negative))
    if not one or not other:
        return 0
    return min(FOLDS, *(len(some) for some in (one & other, one - other, other - one) if some))


def _check_families(encoder: Encoder) -> None:
    clusters = np.array(encoder.pack.clusters, np.int64)
    roles = np.array([example.role for example in encoder.pack.examples])
    groups = [clusters[roles == role] for role in TWINS]
    if _folds(*groups) < 2:
        raise _too_few(encoder.pack.name, *groups)


def _too_few(name: str, positive: np.ndarray, negative: np.ndarray) -> DriftlensError:
    one, other = (set(some.tolist()) for some in (positive, negative))
    return DriftlensError(
        f"at least two families of each kind of texts in {name}",
        found=f"{len(positive)} positive and {len(negative)} negative texts that were read: "
        f"{len(one & other)} families of both roles, {len(one - other)} of positive texts "
        f"alone and {len(other - one)} of negative ones alone",
        remedy="Give more texts, or families of one kind.",
    )


# Where texts are read


def _twins(encoder: Encoder) -> list[tuple[int, int]] | None:
    """[pair] numbers of the positive and of the negative text; None where they form no pairs."""
    examples = encoder.pack.examples
    if examples[0].group is None:
        return None
    pairs: dict[object, dict[str, int]] = {}
    for number, example in enumerate(examples):
        pairs.setdefault(example.group, {})[example.role] = number
    return [(two[TWINS[0]], two[TWINS[1]]) for two in pairs.values()]


def _spots(
    encoder: Encoder, at: At, twins: list[tuple[int, int]] | None, back: int
) -> dict[int, tuple[int, int]]:
    """By number of the text, the first and the last-plus-one unit whose states are its own."""
    examples = encoder.pack.examples
    if at == "answer":
        if twins is None or not encoder.same:
            raise DriftlensError(
                f"pairs of texts in {encoder.pack.name} that both tokenizers cut alike, to read "
                "them at their answers",
                found="texts without a `pair_id`" if twins is None else "texts cut differently",
                remedy="Read them at their last tokens (--at last).",
            )
        return {
            number: spot
            for two in twins
            for number, spot in zip(two, _differing(encoder, *two), strict=True)
        }
    found = {}
    for number, example in enumerate(examples):
        document = encoder.document(number)
        text = np.flatnonzero(document.start < document.end)
        if not len(text):
            continue
        last = int(text[-1])
        if at == "last":
            # As in `Frame.closing`: masked models read the whole text into their first token.
            place = 0 if encoder.masked else last - back
            found[number] = (place, place + 1)
            continue
        if example.scored is None:
            raise DriftlensError(
                f"a response in every text of {encoder.pack.name}, to be read",
                found=f"none in text {number}",
                remedy="Give each row a `response`, or read texts at their last token (--at last).",
            )
        first, end = example.scored
        mine = text[(document.end[text] > first) & (document.start[text] < end)]
        found[number] = (int(mine[0]), int(mine[-1]) + 1)
    return found


def _differing(encoder: Encoder, positive: int, negative: int) -> list[tuple[int, int]]:
    """The one unit in which the two texts of a pair differ, in both."""
    ids = [_ids(encoder.document(number)) for number in (positive, negative)]
    shorter = min(map(len, ids))
    one, other = (some[:shorter] for some in ids)
    first = int(np.argmax(one != other)) if (one != other).any() else shorter
    one, other = (some[first:][::-1] for some in ids)
    left = min(len(one), len(other))
    apart = one[:left] != other[:left]
    same = int(np.argmax(apart)) if apart.any() else left
    counts = [len(some) - first - same for some in ids]
    if counts != [1, 1]:
        texts = [encoder.pack.examples[number].text for number in (positive, negative)]
        raise DriftlensError(
            f"two texts that differ in one token in each pair of {encoder.pack.name}, to read them "
            "at their answers",
            found=f"{_tail(texts[0])!r} and {_tail(texts[1])!r}, which differ in {counts[0]} and "
            f"{counts[1]} tokens",
            remedy="Let the answers be single tokens, such as letters, or read texts at their last "
            "tokens (--at last).",
        )
    return [(first, first + 1)] * 2


def _ids(document: Document) -> np.ndarray:
    return document.sides[0].ids


def _tail(text: str) -> str:
    return text if len(text) <= 40 else f"…{text[-40:]}"
