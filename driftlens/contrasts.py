"""What a model holds of contrasts: its states at the end of statements answered yes and no."""

from collections.abc import Collection
from typing import NamedTuple, TypeVar

import numpy as np

from .errors import DriftlensError
from .formulas.streams import Latest
from .metric import Metric
from .models import Frame, ModelPair, Wants
from .models.sites import Site
from .models.tokens import Encoder
from .packs import REPLIES, TWINS
from .results import Result

R = TypeVar("R", bound=Result)

MODELS = ("base", "aligned")
"""The two models of a pair, in the order of every axis called model."""


class Quadruples(NamedTuple):
    """The states of whole pairs in one form."""

    pairs: np.ndarray
    """[pair] the number, among the pack's groups, of each."""

    families: np.ndarray
    """[pair] the number, among the pack's clusters, of the family that it is of."""

    documents: np.ndarray
    """[pair, statement, side] numbers of their texts: the positive statement and "No" first."""

    states: np.ndarray
    """[model, layer, pair, statement, side, width]."""


class Contrasts(Metric[R]):
    """Keeps what both models hold at the end of each text of a pack of contrasts.

    Args:
        layers: Blocks to look at; None is all.
    """

    kinds = ("contrast",)

    layers: tuple[int, ...]
    """Blocks that are looked at, ascending."""

    def __init__(self, layers: Collection[int] | None = None) -> None:
        self.wants = Wants(frozenset({"out"}), None if layers is None else frozenset(layers))
        self.layers = () if layers is None else tuple(sorted(layers))
        self.states = Latest(0)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make room for the blocks."""
        super().begin(pair, encoder)
        if self.wants.layers is None:
            self.layers = tuple(range(pair.depth))
        self.states = Latest(len(MODELS) * len(self.layers) * pair.width)

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        documents, *sides = frame.closing([Site(layer) for layer in self.layers])
        rows = np.stack([side.numpy() for side in sides], 1)
        self.states.update(documents, rows.reshape(len(documents), self.states.columns))

    def quadruples(self, form: str) -> Quadruples:
        """The states of the pairs of which all that is asked in a form was seen.

        Args:
            form: Its name in the pack.

        Raises:
            DriftlensError: A state is not finite; says of which model, layer and text.
        """
        pack = self.encoder.pack
        examples, groups = pack.examples, pack.groups
        documents = self.states.documents
        seen = {number: row for row, number in enumerate(documents.tolist())}
        cells: dict[int, np.ndarray] = {}
        for number in seen:
            one = examples[number]
            if one.form == form:
                cell = cells.setdefault(groups[number], np.full((2, 2), -1))
                cell[TWINS.index(one.role), int(one.answer == REPLIES[0])] = number
        whole = sorted(pair for pair, cell in cells.items() if (cell >= 0).all())
        texts = np.array([cells[pair] for pair in whole], np.int64).reshape(-1, 2, 2)
        places = np.searchsorted(documents, texts)
        shape = (*texts.shape, len(MODELS), len(self.layers), self.pair.width)
        states = np.moveaxis(self.states.rows[places].reshape(shape), (3, 4), (0, 1))
        self._check(texts, states)
        families = np.array(pack.clusters, np.int64)[texts[:, 0, 0]]
        return Quadruples(np.array(whole, np.int64), families, texts, states)

    @property
    def forms(self) -> list[str]:
        """The names of the forms that the pack asks in, in its order."""
        return list(dict.fromkeys(example.form for example in self.encoder.pack.examples))

    def _check(self, texts: np.ndarray, states: np.ndarray) -> None:
        if np.isfinite(states).all():
            return
        model, layer, *cell = np.argwhere(~np.isfinite(states))[0][:-1]
        name = (self.pair.base, self.pair.aligned)[model].name
        raise DriftlensError(
            "finite states",
            found=f"others in {MODELS[model]} ({name}) after block {self.layers[layer]}, at the "
            f"end of example {texts[tuple(cell)]} of {self.encoder.pack.name}",
            remedy="Leave that pair out, or load the model with --dtype float32.",
        )
