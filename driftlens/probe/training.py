"""From a pack and a model to probes, and what they are worth on pairs held out."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from driftlens.models import Model, ModelPair
from driftlens.models.fingerprint import known_by
from driftlens.packs import Pack
from driftlens.versions import own

from .asked import METHODS, SEARCHED, UNSETTLED, Asked, Options, Twins, folds_of, refuse_others
from .endings import layers_of, one_model, states_of
from .judging import estimator, judge, judged
from .trained import FORMAT, PLACES, TrainedProbes

if TYPE_CHECKING:
    from driftlens.estimators import ContrastProbe, Polarity

USUAL = Options()
"""What is meant where nothing is asked for."""

BEST_BY = (
    "The layer whose probe named most statements of held-out pairs rightly (ESA), then by AUROC, "
    "then the earlier one; probes that say the same of every state come last. The best of many is "
    "flattered by the choice; its p_value is corrected for it."
)

TURNED = {
    "pairs": "In most pairs learnt from, the positive statement has the higher score.",
    "labels": "Of the statements learnt from, most couples of a positive and a negative one are "
    "in order.",
    "none": "None, as published: which end of it is positive was not settled.",
}
"""By what a probe was turned."""


def train(
    model: Model | ModelPair,
    pack: Pack,
    options: Options = USUAL,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> "TrainedProbes":
    """Probes of what a model's states say of statements, one for each layer.

    Each text is read once. What a probe is worth is measured on pairs that it did not learn
    from, fold by fold; the probes that are kept learn from all pairs. In every search the descent
    with the least loss is taken, over all restarts and all seeds, of the folds as of the rest.

    Args:
        model: Whose states are read; of a pair, a model beside itself.
        pack: Of kind contrast.
        options: How to learn.
        progress: Told what is done, and how many of how many.

    Raises:
        DriftlensError: The pack, a form or a layer is not there, there are too few pairs, or
            states are not finite.
    """
    asked, twins = Asked.of(pack, options), Twins.of(pack)
    refuse_others(pack, asked, twins)
    model = one_model(model)
    layers = layers_of(options.layers, model)
    texts = [text for two in twins.statements for one in two for text in asked.texts(one)]
    found = states_of(model, pack.name, texts, layers, options.rows, options.length, progress)
    # [layer, pair, statement, (form,) side, width]
    states = found.reshape(len(layers), len(twins.ids), 2, *asked.axis, 2, model.width)
    tested = _held_out(states, twins.families, options, progress)
    kept = _kept(states, options)
    metrics = [
        {"layer": layer, **tested.of(number, twins.marked), **kept.of(number)}
        for number, layer in enumerate(layers)
    ]
    card = {
        **_settings(options, kept),
        "model": known_by(model),
        "site": "out",
        "token": PLACES[model.causal],
        "layers": layers,
        "forms": [list(form) for form in asked.forms],
        "lower": asked.lower,
        "pack": {"name": pack.name, "sha256": pack.sha256, "pairs": kept.pairs(twins)},
        "learnt_from": int(kept.learnt.sum()),
        "judged_on": tested.said,
        "best": _best(metrics),
        "best_by": BEST_BY,
        "metrics": [_plain(row) for row in metrics],
    }
    return TrainedProbes(card, kept.tensors)


def _settings(options: Options, kept: "Kept") -> dict[str, Any]:
    """How it was learnt."""
    names = ("method", "mode", "folds", "restarts", "steps", "polarity", "level")
    return {
        "format": FORMAT,
        "driftlens": own(),
        **{name: getattr(options, name) for name in names},
        "seeds": list(options.drawn),
        "normalize": kept.chosen[0].normalize,
        "orientation": TURNED[_turned_by(options)],
    }


class Judged(NamedTuple):
    """What probes made of pairs that they had not learnt from."""

    polarity: "Sequence[Polarity]"
    """[layer]."""

    families: np.ndarray
    """[pair] number of the family of each of all pairs."""

    held: np.ndarray
    """[pair] whether it was ever held out."""

    p_values: np.ndarray
    """[layer] of ESA, corrected over layers."""

    by_seed: np.ndarray
    """[seed, layer] ESA by the search from each seed alone."""

    random: np.ndarray
    """[layer] ESA of directions drawn at random, oriented as any other."""

    options: Options

    @property
    def said(self) -> str:
        """On what, in words."""
        pairs = int(self.held.sum())
        if self.options.published:
            return f"{pairs} pairs by the published split; most have a twin among those learnt from"
        return f"all {pairs} pairs, each by probes that learnt without its fold"

    def of(self, number: int, marked: np.ndarray) -> dict[str, Any]:
        """A layer's figures."""
        from driftlens.estimators import shortcut

        found = self.polarity[number]
        level = self.options.level
        marks, truth = marked[self.held], np.broadcast_to([True, False], found.named.shape)
        # The mark stands for the kind of statement that bears it more often.
        marks = marks if (marks == truth).mean() >= 0.5 else ~marks
        word = shortcut(found.named.ravel(), marks.ravel(), truth.ravel())
        p_value = float(self.p_values[number])
        return {
            **judged(found, self.families[self.held], seed=self.options.seeds[0], level=level),
            "lexical_esa": word.esa,
            "lexical_exceptions": word.exceptions,
            "random_esa": float(self.random[number]),
            "p_value": p_value,
            "verdict": found.verdict(p_value, 1 - level),
            "esa_by_seed": self.by_seed[:, number].tolist(),
        }


class Kept(NamedTuple):
    """The probes that are kept."""

    learnt: np.ndarray
    """[pair, statement] whether it was learnt from."""

    fits: "Sequence[Sequence[ContrastProbe]]"
    """[seed, layer]."""

    places: np.ndarray
    """[layer] number of the seed that is taken."""

    seeds: tuple[int, ...]

    @property
    def chosen(self) -> "list[ContrastProbe]":
        """[layer] the probe that is taken."""
        return _taken(self.fits, self.places)

    def of(self, number: int) -> dict[str, Any]:
        """A layer's figures."""
        probes = [fits[number] for fits in self.fits]
        taken = probes[self.places[number]]
        found: dict[str, Any] = {"seed": self.seeds[self.places[number]]}
        if hasattr(taken, "losses_"):
            # Between directions that may point either way.
            between = [abs(a.direction_ @ b.direction_) for a, b in combinations(probes, 2)]
            found |= {
                "least_loss": taken.loss_,
                "losses_apart": float(np.ptp([probe.losses_ for probe in probes])),
                "seeds_cosine": float(min(between, default=np.nan)),
                "degenerate": bool(taken.degenerate_),
            }
        return found

    def pairs(self, twins: Twins) -> list[list[int | str]]:
        """The id and the hash of each pair that was learnt from, in part at least."""
        every = zip(twins.ids, twins.hashes, self.learnt, strict=True)
        return [[name, short] for name, short, learnt in every if learnt.any()]

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """All numbers, by name."""
        first = self.fits[0]
        found = {
            "coef": np.stack([[probe.coef_ for probe in fits] for fits in self.fits]),
            "intercept": np.array([[probe.intercept_ for probe in fits] for fits in self.fits]),
            # Learnt of states alone, whatever the seed.
            "offset": np.stack([probe.normaliser_.offset for probe in first]),
            "scale": np.stack(_of_one_shape([probe.normaliser_.scale for probe in first])),
        }
        if hasattr(first[0], "losses_"):
            found["losses"] = np.array([[probe.losses_ for probe in fits] for fits in self.fits])
        return found


def _held_out(states: np.ndarray, families: np.ndarray, options: Options, progress: Any) -> Judged:
    """Probes judged where they have not learnt; states are [layer, pair, statement, …]."""
    from driftlens.estimators import Polarity, exchange_test

    layers, pairs = states.shape[:2]
    learnt, folds = _split(families, options)
    p = np.full((layers, pairs, 2, 2), np.nan)
    named = np.full((layers, pairs, 2), np.nan)
    scores = np.full((len(learnt), layers, pairs, 2), np.nan)
    by_seed = np.full((len(options.drawn), layers, pairs), np.nan)
    for fold, of in enumerate(learnt):
        held = folds == fold
        # As published, states are centred by those that are judged: no others may be among them.
        seen = held if options.published else np.ones(pairs, bool)
        fits = _fits(states, of, options)
        places = _places(fits)
        for number in range(layers):
            found = [judge(one[number], states[number, seen], options.published) for one in fits]
            taken = found[places[number]]
            mine = held[seen]
            p[number, held], named[number, held] = taken.p[mine], taken.named[mine]
            scores[fold, number, seen] = taken.named
            for seed, one in enumerate(found):
                by_seed[seed, number, held] = one.right[mine]
        if progress is not None:
            progress("probes", fold + 1, len(learnt))
    ever = folds >= 0
    seed = options.seeds[0]
    if options.published:
        tested = exchange_test(scores[:, :, ever], seed=seed, families=families[ever])
    else:
        tested = exchange_test(scores, folds, seed=seed, families=families)
    polarity = [
        Polarity(one[ever], name[ever], options.published)
        for one, name in zip(p, named, strict=True)
    ]
    shares = by_seed[:, :, ever].mean(-1)
    if options.published:
        shares = np.maximum(shares, 1 - shares)
    random = _random(states, learnt, folds, seed)[:, ever].mean(-1)
    return Judged(polarity, families, ever, tested.p_value, shares, random, options)


def _random(
    states: np.ndarray, learnt: Sequence[np.ndarray], folds: np.ndarray, seed: int
) -> np.ndarray:
    """[layer, pair] share named rightly by directions drawn anew in each fold, oriented by it."""
    from driftlens.estimators import Normaliser, RandomDirection

    plain = states if states.ndim == 5 else states[:, :, :, 0]
    found = np.full(states.shape[:2], np.nan)
    for fold, of in enumerate(learnt):
        held, drawn = folds == fold, np.random.SeedSequence([seed, fold]).generate_state(1)
        like = RandomDirection(random_state=int(drawn[0]))
        for number, some in enumerate(plain):
            if Normaliser.learn(some[of], like.normalize).constant:
                # Where all states are the same, no direction tells them apart.
                found[number, held] = 0.5
            else:
                found[number, held] = judge(_fit(like, some[None], of)[0], some[held], False).right
    return found


def _split(families: np.ndarray, options: Options) -> tuple[list[np.ndarray], np.ndarray]:
    """For each fold [pair, statement] what is learnt from; and [pair] the fold it is held out of.

    −1 is never held out.
    """
    from driftlens.estimators import published_split

    pairs = len(families)
    if not options.published:
        folds = folds_of(families, options)
        return [np.repeat(folds[:, None] != n, 2, 1) for n in range(options.folds)], folds
    places, judged = published_split(pairs)
    learnt = np.zeros((2, pairs), bool)
    learnt.ravel()[places] = True
    folds = np.full(pairs, -1)
    folds[judged] = 0
    # There, negative statements stand before positive ones.
    return [learnt[::-1].T], folds


def _kept(states: np.ndarray, options: Options) -> Kept:
    learnt = np.ones(states.shape[1:3], bool)
    if options.published:
        learnt = _split(np.arange(states.shape[1]), options)[0][0]
    fits = _fits(states, learnt, options)
    return Kept(learnt, fits, _places(fits), options.drawn)


def _fits(states: np.ndarray, learnt: np.ndarray, options: Options) -> "list[list[ContrastProbe]]":
    """[seed, layer] probes that learnt from some statements."""
    labelled = not options.published
    return [_fit(_like(options, seed, states), states, learnt, labelled) for seed in options.drawn]


def _fit(
    like: "ContrastProbe", states: np.ndarray, learnt: np.ndarray, labelled: bool = True
) -> "list[ContrastProbe]":
    """[layer] probes; states are [layer, pair, statement, …], and learnt is [pair, statement]."""
    from sklearn.base import clone

    from driftlens.estimators import CCS, PolarityCCS, fit_many

    if isinstance(like, PolarityCCS):
        return [*fit_many(states[:, learnt.all(1)], like=like)]
    rows = states[:, learnt]
    labels = np.broadcast_to([1, 0], learnt.shape)[learnt]
    if isinstance(like, CCS):
        return [*fit_many(rows, labels if labelled else None, like=like)]
    return [clone(like).fit(layer, labels) for layer in rows]


def _like(options: Options, seed: int, states: np.ndarray) -> "ContrastProbe":
    """An estimator with the settings that are asked for, not yet fitted."""
    # Without the term that only pairs have, and judged as published, it learns from statements.
    method = "ccs" if options.published else options.method
    given: dict[str, Any] = {}
    if options.normalize != UNSETTLED:
        given["normalize"] = options.normalize
    elif options.published:
        given["normalize"] = "median"
    if method in SEARCHED:
        given |= {
            "n_restarts": options.restarts,
            "steps": options.steps,
            "random_state": seed,
            "device": options.device,
        }
    if method == "pa-ccs":
        given["polarity"] = options.polarity
    if method == "vinc":
        given["variants"] = states.shape[3]
    return estimator(METHODS[method])(**given)


def _places(fits: "Sequence[Sequence[ContrastProbe]]") -> np.ndarray:
    """[layer] the seed whose search ended lowest; the first of probes that are not searched."""
    return np.argmin([[getattr(probe, "loss_", 0.0) for probe in one] for one in fits], axis=0)


def _taken(fits: "Sequence[Sequence[ContrastProbe]]", places: np.ndarray) -> "list[ContrastProbe]":
    return [fits[place][number] for number, place in enumerate(places)]


def _best(metrics: Sequence[Mapping[str, Any]]) -> int:
    """The layer that is taken where none is named; see `BEST_BY`."""
    return max(
        metrics,
        key=lambda row: (not row.get("degenerate", False), row["esa"], row["auroc"], -row["layer"]),
    )["layer"]


def _turned_by(options: Options) -> str:
    if options.published:
        return "none"
    return "pairs" if options.method == "pa-ccs" else "labels"


def _of_one_shape(scales: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Scales of all layers alike: where one layer's states are all the same, it has one number."""
    return [*np.broadcast_arrays(*scales)]


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Figures ready for JSON; what is undefined is None."""
    return {name: None if what != what else what for name, what in row.items()}
