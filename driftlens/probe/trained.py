"""Probes that are kept: a folder with their numbers and a card, and what they make of any text."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from driftlens.errors import DriftlensError
from driftlens.formulas.intervals import bootstrap
from driftlens.models import Model, ModelPair
from driftlens.models.fingerprint import dtype_of, fingerprint
from driftlens.packs import Form, Pack, Twins
from driftlens.packs.twins import short_of
from driftlens.results.folders import Keeping

from .asked import (
    METHODS,
    SEARCHED,
    Asked,
    refuse_other_kinds,
    refuse_silence,
)
from .endings import one_model, states_of
from .judging import estimator, judge, judged

if TYPE_CHECKING:
    from driftlens.estimators import ContrastProbe

TENSORS, FORMAT = "probe.safetensors", 1
"""The file of a folder that holds its probes, and the version of what it holds."""

FOLDER = Keeping(
    "a probe",
    TENSORS,
    FORMAT,
    command="driftlens probe train",
    again="train the probe again",
    broken="Train the probe again.",
)

READERS = METHODS | {"pa-ccs": "CCS"}
"""What reads single statements once a direction is found."""

PLACES = {True: "last text token", False: "first token"}
"""Where states are read, of models that continue text and of those that fill in masked tokens."""


class Applied(NamedTuple):
    """What a probe makes of statements."""

    layer: int

    p_no: np.ndarray
    """[text] probability, between 0 and 1, that what is said with "No" is so."""

    p_yes: np.ndarray
    """[text] the same of what is said with "Yes"."""

    score: np.ndarray
    """[text] ½ (p_yes + 1 − p_no): over ½ for a positive statement."""


@dataclass(frozen=True)
class TrainedProbes:
    """Probes of one model's layers, and the card that says whose they are and what they are worth.

    Example:
        probes = train(pair.aligned, Pack.load("deeds"))
        probes.save("kind")
        TrainedProbes.load("kind").apply(pair.aligned, ["Is it kind to lie?"]).score
    """

    card: Mapping[str, Any]
    """What `card.json` holds."""

    tensors: Mapping[str, np.ndarray]
    """`coef` [seed, layer, width], `intercept` [seed, layer], `offset` and `scale` of
    `estimators.Normaliser` by layer, and of searches `losses` [seed, layer, restart]."""

    @property
    def layers(self) -> list[int]:
        """Blocks at whose end states are read, ascending."""
        return list(self.card["layers"])

    @property
    def best(self) -> int:
        """The layer that is taken where none is named; the card's `best_by` says why."""
        return int(self.card["best"])

    @property
    def asked(self) -> Asked:
        """How statements are put to a model."""
        return Asked(tuple(Form(*form) for form in self.card["forms"]), self.card["lower"])

    def probe(self, layer: int, seed: int | None = None) -> "ContrastProbe":
        """A layer's probe as a fitted estimator of [statement, (form,) side, width] states.

        Args:
            layer: One of `layers`.
            seed: One of the card's; the one whose search ended lowest, if None.
        """
        number = self._number(layer)
        taken = self._row(layer)["seed"] if seed is None else seed
        return self._rebuilt(number, self.card["seeds"].index(taken))

    def apply(
        self,
        model: Model | ModelPair,
        texts: Sequence[str],
        *,
        layer: int | None = None,
        force: bool = False,
        rows: int | None = None,
        length: int | None = None,
    ) -> Applied:
        """What a layer's probe makes of statements, each put in the form that it was learnt in.

        Args:
            model: The model that the probes were trained on.
            texts: Statements, as in `The sky is green.`
            layer: The best one if None.
            force: Whether another model of the same width and depth will do.
            rows: Texts to show at a time; None plans by memory.
            length: The most tokens in a window.

        Raises:
            DriftlensError: Another model without `force`, a model of another width, a layer that
                is not there, or nothing said.
        """
        model, layer = one_model(model), self.best if layer is None else layer
        self.require(model, [layer], force=force)
        states = self._read_by(model, texts, [layer], rows, length)[0]
        return _applied(self.probe(layer), states, layer)

    def monitor(
        self,
        models: Iterable[Model | ModelPair],
        on: Sequence[str] | Pack,
        *,
        layers: Sequence[int] | None = None,
        rows: int | None = None,
        length: int | None = None,
    ) -> list[dict[str, Any]]:
        """What the probes make of the same statements in each model of a series.

        Only one of the models can be that which the probes were trained on; `trained_on` says
        which. Of the others, a number holds as far as they kept the direction where it was.

        Args:
            models: Of one architecture, such as a base, its SFT and its aligned version.
            on: Statements, or a pack of contrasts.
            layers: All that there are probes of if None.
            rows: Texts to show at a time; None plans by memory.
            length: The most tokens in a window.

        Returns:
            A row for each model and layer, with the mean score and its interval over texts; or,
            of a pack, ESA with its interval over pairs, AUROC, mean PC and mean CI. `learnt_from`
            is how many of these pairs the probes have learnt from: of them nothing is held out.

        Raises:
            DriftlensError: A model of another width, a layer that is not there, or nothing said.
        """
        layers = self.layers if layers is None else layers
        return [
            row
            for model in models
            for row in self._watched(one_model(model), on, layers, rows, length)
        ]

    def require(self, model: Model, layers: Sequence[int], *, force: bool = False) -> str:
        """The model's fingerprint, once it is known that the probes can be applied to it.

        Raises:
            DriftlensError: It is another one, unless `force`; or it has another width, reads at
                another token, or lacks a layer, whatever is said.
        """
        mine = self.card["model"]
        for layer in layers:
            self._number(layer)
        if model.width != mine["width"] or max(layers) >= model.depth:
            raise DriftlensError(
                f"a model of width {mine['width']} with a block {max(layers)}",
                found=f"{model.name} of width {model.width} and {model.depth} blocks",
                remedy=f"Give {mine['name']}, which the probe was trained on, or another version "
                "of it.",
            )
        if model.causal != mine["causal"]:
            raise DriftlensError(
                f"a model that is read at its {PLACES[mine['causal']]}",
                found=f"{model.name}, which is read at its {PLACES[model.causal]}",
                remedy=f"Give {mine['name']}, which the probe was trained on, or another version "
                "of it.",
            )
        sha256 = fingerprint(model)
        if sha256 != mine["sha256"] and not force:
            raise DriftlensError(
                f"the model that the probe was trained on, {mine['name']} with the weights "
                f"{short_of(mine['sha256'])} in {mine['dtype']}",
                found=f"{model.name} with the weights {short_of(sha256)} in {dtype_of(model)}",
                remedy="Give that model, or --force (force=True) to read another one's states.",
            )
        return sha256

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the folder, whole or not at all; the same probes make the same bytes.

        Raises:
            DriftlensError: Something stands there already, and is not to be replaced or not ours.
        """
        return FOLDER.save(self.card, self.tensors, folder, overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | Path) -> "TrainedProbes":
        """Read the folder that `save` wrote.

        Raises:
            LoadError: It is not there, or a file of it is broken.
            DriftlensError: Another version wrote it, or its two files do not belong together.
        """
        held = FOLDER.load(folder)
        probes = cls(held.card, held.tensors)
        probes._check(folder, held.whole)
        return probes

    def _watched(
        self,
        model: Model,
        on: Sequence[str] | Pack,
        layers: Sequence[int],
        rows: int | None,
        length: int | None,
    ) -> Iterator[dict[str, Any]]:
        sha256 = self.require(model, layers, force=True)
        own = sha256 == self.card["model"]["sha256"]
        who = {"model": model.name, "sha256": sha256, "trained_on": own}
        seed, level = self.card["seeds"][0], self.card["level"]
        twins = None
        texts: Sequence[str]
        if isinstance(on, Pack):
            refuse_other_kinds(on)
            twins = Twins.of(on)
            texts = [one for two in twins.statements for one in two]
        else:
            texts = on
        found = self._read_by(model, texts, layers, rows, length)
        for layer, states in zip(layers, found, strict=True):
            probe = self.probe(layer)
            score = _applied(probe, states, layer).score
            row = {**who, "layer": layer, "mean_score": float(score.mean())}
            if twins is None:
                _, low, high = bootstrap(score, np.ones(len(score)), seed=seed, level=level)
                yield {**row, "low": float(low), "high": float(high)}
                continue
            pairs = states.reshape(-1, 2, *states.shape[1:])
            found_of = judge(probe, pairs, self.card["mode"] == "published")
            known = {short for _, short in self.card["pack"]["pairs"]}
            yield {
                **row,
                **judged(found_of, twins.families, seed=seed, level=level),
                "pairs": len(twins.ids),
                "learnt_from": sum(short in known for short in twins.hashes),
            }

    def _read_by(
        self,
        model: Model,
        texts: Sequence[str],
        layers: Sequence[int],
        rows: int | None,
        length: int | None,
    ) -> np.ndarray:
        """[layer, text, (form,) side, width]."""
        refuse_silence(texts)
        asked = self.asked
        told = [text for one in texts for text in asked.texts(one)]
        found = states_of(model, "the texts", told, layers, rows, length, None)
        return found.reshape(len(layers), len(texts), *asked.axis, 2, model.width)

    def _number(self, layer: int) -> int:
        if layer not in self.layers:
            raise DriftlensError(
                f"a layer that there is a probe of: {', '.join(map(str, self.layers))}",
                found=str(layer),
                remedy=f"Leave it out for {self.best}, the best one.",
            )
        return self.layers.index(layer)

    def _row(self, layer: int) -> Mapping[str, Any]:
        return self.card["metrics"][self._number(layer)]

    def _rebuilt(self, number: int, place: int) -> "ContrastProbe":
        from driftlens.estimators import Normaliser

        card, tensors = self.card, self.tensors
        method = "ccs" if card["mode"] == "published" else card["method"]
        given: dict[str, Any] = {"normalize": card["normalize"]}
        if method in SEARCHED:
            seed = card["seeds"][place]
            given |= {"n_restarts": card["restarts"], "steps": card["steps"], "random_state": seed}
        if method == "vinc":
            given["variants"] = len(card["forms"])
        probe = estimator(READERS[method])(**given)
        probe.coef_ = tensors["coef"][place, number]
        probe.intercept_ = float(tensors["intercept"][place, number])
        offset, scale = tensors["offset"][number], tensors["scale"][number]
        probe.normaliser_ = Normaliser(offset, scale, card["normalize"] == "median")
        probe.classes_ = np.array([0, 1])
        probe.n_features_in_ = offset.size
        return probe

    @cached_property
    def _shapes(self) -> dict[str, tuple[int | None, ...]]:
        """What each tensor must be like; None is any size."""
        card = self.card
        seeds, layers, width = len(card["seeds"]), len(card["layers"]), card["model"]["width"]
        scale = self.tensors.get("scale", np.array(None))
        found: dict[str, tuple[int | None, ...]] = {
            "coef": (seeds, layers, width),
            "intercept": (seeds, layers),
            "offset": (layers, *self.asked.axis, 2, width),
            # One number, or one for each coordinate; of some methods one for each form too.
            "scale": (layers, *[None] * (scale.ndim - 1)),
        }
        if card["method"] in SEARCHED:
            found["losses"] = (seeds, layers, card["restarts"])
        return found

    def _check(self, folder: str | Path, whole: bool) -> None:
        """Raise unless numbers and card are each other's."""
        try:
            shapes = self._shapes
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DriftlensError(
                f"a card in {folder} as driftlens writes it",
                found=f"{type(error).__name__}: {error}",
                remedy=FOLDER.broken,
            ) from None
        for name, shape in shapes.items():
            found = self.tensors[name].shape if name in self.tensors else None
            if found is None or not _fits_into(found, shape):
                sizes = ", ".join("any" if size is None else str(size) for size in shape)
                raise DriftlensError(
                    f"`{name}` [{sizes}] in {TENSORS} of {folder}, as its card tells",
                    found="none" if found is None else f"shape {list(found)}",
                    remedy=FOLDER.restore,
                )
        FOLDER.refuse_strangers(folder, whole)


def _applied(probe: "ContrastProbe", states: np.ndarray, layer: int) -> Applied:
    p = probe.side_proba(states).reshape(len(states), -1, 2).mean(1)
    return Applied(layer, p[:, 0], p[:, 1], probe.predict_proba(states)[:, 1])


def _fits_into(found: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    return len(found) == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(found, shape, strict=True)
    )
