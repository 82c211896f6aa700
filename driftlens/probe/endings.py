"""What one model holds at the end of texts."""

from collections.abc import Callable, Sequence

import numpy as np

from driftlens.errors import DriftlensError
from driftlens.formulas.streams import Latest
from driftlens.metric import Metric, measure
from driftlens.models import Frame, Model, ModelPair, Site, Wants
from driftlens.models.tokens import Encoder
from driftlens.packs import Example, Pack
from driftlens.results import Result


class Endings(Metric[Result]):
    """Keeps what one model holds at the end of each text.

    Args:
        layers: Blocks to look at.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = layers
        self.wants = Wants(frozenset({"out"}), frozenset(layers))
        self.states = Latest(0)

    def begin(self, pair: ModelPair, encoder: Encoder) -> None:
        """Make room for the blocks."""
        super().begin(pair, encoder)
        self.states = Latest(len(self.layers) * pair.width)

    def update(self, frame: Frame) -> None:
        """Take in one frame."""
        documents, states, _ = frame.closing([Site(layer) for layer in self.layers])
        self.states.update(documents, states.flatten(1))

    def compute(self) -> Result:
        """Nothing but the states themselves."""
        return Result()


def states_of(
    model: Model,
    name: str,
    texts: Sequence[str],
    layers: Sequence[int],
    rows: int | None,
    length: int | None,
    progress: Callable[[str, int, int], None] | None,
) -> np.ndarray:
    """[layer, text, width] states of a model at the end of texts, float32."""
    # A masked model masks every token that is scored in its turn: one is enough to be shown.
    shown = Pack(name, "text", [Example(text, (len(text) - 1, len(text))) for text in texts])
    told = None if progress is None else (lambda done, of: progress("texts", done, of))
    endings = Endings(layers)
    measure(ModelPair(model, model), shown, [endings], rows=rows, length=length, progress=told)
    seen = endings.states.documents
    if len(seen) < len(texts):
        lost = min(set(range(len(texts))) - set(seen.tolist()))
        raise DriftlensError(
            f"at least two tokens in every text of {name}",
            found=f"fewer in {texts[lost]!r}",
            remedy="Leave that statement out.",
        )
    return endings.states.rows.reshape(len(texts), len(layers), -1).swapaxes(0, 1)


def one_model(model: Model | ModelPair) -> Model:
    """The model itself; of a pair, the one that is on both sides."""
    if not isinstance(model, ModelPair):
        return model
    if model.base is not model.aligned:
        raise DriftlensError(
            "one model, whose states are read",
            found=f"a pair of {model.base.name} and {model.aligned.name}",
            remedy="Pass pair.base or pair.aligned.",
        )
    return model.base


def layers_of(asked: frozenset[int] | None, model: Model) -> list[int]:
    """The blocks that are asked for, ascending; None is all."""
    layers = sorted(range(model.depth) if asked is None else asked)
    if not layers or layers[0] < 0 or layers[-1] >= model.depth:
        raise DriftlensError(
            f"blocks of {model.name}, from 0 to {model.depth - 1}",
            found=", ".join(map(str, layers)) or "none",
            remedy="Give --layers with numbers in that range.",
        )
    return layers
