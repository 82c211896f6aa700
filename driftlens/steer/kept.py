"""Directions that are kept: a folder with their vectors and a card, to steer any text with.

No direction is found here, and no strength is chosen.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
import torch

from driftlens.errors import DriftlensError
from driftlens.models import Model
from driftlens.models.fingerprint import dtype_of, fingerprint
from driftlens.models.hooks import HookedModel
from driftlens.models.sites import Part
from driftlens.models.steering import (
    Ablate,
    Add,
    Change,
    Clamp,
    Positions,
    Project,
    Steer,
    steered,
)
from driftlens.packs import Pack
from driftlens.packs.twins import sha256_of, short_of
from driftlens.results.store import writable
from driftlens.versions import own

from .cards import (
    FOLDER,
    FORMAT,
    Strength,
    check,
    plain,
    refuse_several,
    row_found,
    row_of,
    said,
    told_of,
    type_of,
    wrong_in,
)
from .exchange import exchanged, first_of, writer_of

if TYPE_CHECKING:
    from driftlens.estimators import Direction

Mode = Literal["add", "ablate", "clamp", "project"]
"""What is done along a direction."""

AMOUNTS: dict[str, type[Add] | type[Clamp]] = {"add": Add, "clamp": Clamp}
"""Changes that have a strength."""

ERASURES: dict[str, type[Ablate] | type[Project]] = {"ablate": Ablate, "project": Project}
"""Changes that have none."""


@dataclass(frozen=True)
class KeptDirections:
    """Directions of one model's layers, and the card that says whose they are and how sure.

    ```python
    kept = KeptDirections.load("politeness")
    with kept.steering(net, 4.0):
        net.generate(...)
    ```
    """

    card: Mapping[str, Any]
    """What `card.json` holds."""

    tensors: Mapping[str, np.ndarray]
    """`unit` [layer, width] directions of length 1, float64."""

    @classmethod
    def of(
        cls,
        model: Model,
        found: Mapping[int, "Direction"],
        *,
        part: Part,
        method: str,
        at: str,
        positions: Positions,
        pack: Pack,
        figures: Sequence[Mapping[str, Any]] = (),
        layer: int | None = None,
        strength: Strength | None = None,
    ) -> Self:
        """Directions as they were found.

        Args:
            model: The model that they were found in.
            found: Its direction at each layer.
            part: What of the blocks they are of.
            method: How they were found.
            at: Where the states of texts were read.
            positions: At which tokens they are meant to be steered.
            pack: The texts of two roles that they were found between.
            figures: Rows with `layer` and any of `FIGURES`; of a layer without a row, and where
                a number is NaN, the card says None.
            layer: The one that is recommended.
            strength: The step that is recommended there.

        Raises:
            DriftlensError: A direction leads nowhere, has another width or another model's layer;
                or what is recommended is not among them.
        """
        rows = {int(row["layer"]): row for row in figures}
        metrics = [
            row_found(number, found[number], rows.get(number, {})) for number in sorted(found)
        ]
        card = {
            "method": method,
            "at": at,
            "positions": positions,
            "pack": {"name": pack.name, "sha256": pack.sha256},
            "file": None,
            "metrics": metrics,
            "layer": layer,
            "strength": None if strength is None else plain(strength._asdict()),
        }
        return cls._made(model, {n: found[n].unit for n in found}, part, card)

    @classmethod
    def imported(
        cls,
        path: str | Path,
        model: Model,
        *,
        layer: int | None = None,
        positions: Positions = "all",
        force: bool = False,
    ) -> Self:
        """Direction vectors of a file of others, for the stream that leaves a block.

        Args:
            path: A control vector in GGUF, or plain safetensors, by its ending; see `exchange`.
            model: The model that they are to be used with; the file itself cannot say which.
            layer: The one that is recommended, if any.
            positions: At which tokens they are meant to be steered.
            force: Whether the file may say that they are of another type of model.

        Raises:
            LoadError: The file cannot be read.
            DriftlensError: It ends otherwise; or its vectors do not fit the model, or are zero.
        """
        read = exchanged(path)
        own = type_of(model)
        if read.model_type and own and read.model_type != own and not force:
            raise DriftlensError(
                f"directions of a model of type {own}, as {model.name} is",
                found=f"those of type {read.model_type} in {path}",
                remedy="Give the model that they were found in, or --force (force=True).",
            )
        vectors = {number: vector.astype(np.float64) for number, vector in read.vectors.items()}
        norms = {number: float(np.linalg.norm(vector)) for number, vector in vectors.items()}
        # What leads nowhere is refused where all directions are looked at.
        units = {n: vectors[n] / norms[n] if norms[n] else vectors[n] for n in vectors}
        card = {
            "method": "imported",
            "at": None,
            "positions": positions,
            "pack": None,
            "file": {"name": Path(path).name, "sha256": sha256_of(Path(path).read_bytes())},
            "metrics": [row_of(number, norm=norms[number]) for number in vectors],
            "layer": layer,
            "strength": None,
        }
        return cls._made(model, units, "out", card)

    @classmethod
    def _made(
        cls, model: Model, units: Mapping[int, np.ndarray], part: Part, card: Mapping[str, Any]
    ) -> Self:
        layers = sorted(map(int, units))
        norms = [row["norm"] for row in card["metrics"]]
        _check_found(model, {n: units[n] for n in layers}, norms)
        whole = {
            "format": FORMAT,
            "driftlens": own(),
            "model": told_of(model),
            "part": part,
            "layers": layers,
            **card,
        }
        if wrong := wrong_in(whole):
            raise DriftlensError(
                "what can be kept of directions", found=wrong, remedy="Give another, or leave it."
            )
        return cls(whole, {"unit": np.stack([np.asarray(units[n], np.float64) for n in layers])})

    @property
    def layers(self) -> list[int]:
        """Blocks that there are directions of, ascending."""
        return list(self.card["layers"])

    @property
    def layer(self) -> int | None:
        """The layer that is recommended, if one is."""
        return self.card["layer"]

    @property
    def strength(self) -> Strength | None:
        """The step that is recommended there, if one is."""
        told = self.card["strength"]
        if told is None:
            return None
        return Strength(**{n: float("nan") if x is None else float(x) for n, x in told.items()})

    @property
    def vectors(self) -> dict[int, np.ndarray]:
        """[width] the step from one role to the other, by layer."""
        return {layer: self.vector(layer) for layer in self.layers}

    def unit(self, layer: int) -> np.ndarray:
        """[width] a layer's direction, of length 1."""
        return self.tensors["unit"][self._number(layer)]

    def norm(self, layer: int) -> float:
        """How far the roles' means lie apart along it, in the stream's own units."""
        return float(self._row(layer)["norm"])

    def vector(self, layer: int) -> np.ndarray:
        """[width] `norm` along `unit`."""
        return self.norm(layer) * self.unit(layer)

    def require(self, model: Model, force: bool = False) -> None:
        """Raise unless the directions are the model's own.

        All weights of the model are read, unless `force`.

        Raises:
            DriftlensError: It is another one, unless `force`; or it has another width or fewer
                blocks, whatever is said.
        """
        mine = self.card["model"]
        if model.width != mine["width"] or model.depth < mine["depth"]:
            raise DriftlensError(
                f"a model of width {mine['width']} with {mine['depth']} blocks",
                found=f"{model.name} of width {model.width} with {model.depth}",
                remedy=f"Give {mine['name']}, which the directions are of, or another version of "
                "it.",
            )
        if force:
            return
        sha256 = fingerprint(model)
        if sha256 != mine["sha256"]:
            raise DriftlensError(
                f"the model that the directions are of, {mine['name']} with the weights "
                f"{short_of(mine['sha256'])} in {mine['dtype']}",
                found=f"{model.name} with the weights {short_of(sha256)} in {dtype_of(model)}",
                remedy="Give that model, or --force (force=True) to steer another one.",
            )

    def steers(
        self,
        strength: float | torch.Tensor | None = None,
        layers: int | Sequence[int] | None = None,
        mode: Mode = "add",
        relative: bool = False,
    ) -> list[Steer]:
        """What steers along the directions, each block along its own.

        Args:
            strength: The step of `add`, the component of `clamp`; or [row] one for each row.
                None is what the card recommends to add; `ablate` and `project` have none.
            layers: Blocks; None is the one that is recommended, or all if none is.
            mode: What is done.
            relative: Whether a strength counts in the mean length of a state at each block.

        Raises:
            DriftlensError: There is no direction of a layer, no such mode, or no strength where
                one is needed, or one where none is.
        """
        chosen = self._chosen(layers)
        if mode in ERASURES:
            if strength is not None:
                raise DriftlensError(
                    f"no strength beside {mode}, which takes all of a component or leaves it",
                    found=f"{strength}",
                    remedy="Leave it out, or choose add or clamp.",
                )
            return [self._steer(ERASURES[mode](self._tensor(layer)), layer) for layer in chosen]
        if mode not in AMOUNTS:
            raise DriftlensError(
                f"a mode among {', '.join(get_args(Mode))}",
                found=repr(mode),
                remedy="Choose one of these.",
            )
        if strength is None:
            strength, relative = self._recommended(mode), False
        return [
            self._steer(
                AMOUNTS[mode](
                    self._tensor(layer), strength, norm=self._length(layer) if relative else 1.0
                ),
                layer,
            )
            for layer in chosen
        ]

    @contextmanager
    def steering(
        self,
        model: Any,
        strength: float | torch.Tensor | None = None,
        layers: int | Sequence[int] | None = None,
        mode: Mode = "add",
        relative: bool = False,
        *,
        positions: Positions | None = None,
        prompt: int | Sequence[int] | torch.Tensor | None = None,
        force: bool = False,
    ) -> Iterator[Any]:
        """The model, steered while inside, by whatever way its net is called: `generate` too.

        Args:
            model: A live `transformers` net, a `PeftModel`, or a `HookedModel`; it is left as it
                was found.
            strength: As in `steers`, as are `layers`, `mode` and `relative`.
            layers: Likewise.
            mode: Likewise.
            relative: Likewise.
            positions: At which tokens; what the card says if None.
            prompt: How many tokens a prompt has; see `models.steering.steered`.
            force: Whether another model of the same shape will do; its weights are then not read.

        Yields:
            The model that was given.

        Raises:
            DriftlensError: As in `require`, `steers` and `models.steering.steered`.
        """
        steers = self.steers(strength, layers, mode, relative)
        chosen = self.card["positions"] if positions is None else positions
        with steered(model, steers, positions=chosen, prompt=prompt):
            self.require(_looked_into(model), force)
            yield model

    def export(
        self,
        path: str | Path,
        *,
        layers: int | Sequence[int] | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write `vectors` in a format of others: one step of theirs is a `norm` of ours.

        Args:
            path: A control vector in GGUF, or plain safetensors, by its ending; see `exchange`.
            layers: Blocks; None is all that there are directions of, but for block 0 in GGUF,
                which has no place for it.
            overwrite: Whether a file that is there may be replaced.

        Raises:
            DriftlensError: It ends otherwise, or is there already; the directions are not of the
                stream that leaves a block; or block 0 is asked for in GGUF, or is all there is.
        """
        path, write, first = Path(path), writer_of(path), first_of(path)
        if self.card["part"] != "out":
            raise DriftlensError(
                "directions of the stream that leaves a block, which others add to",
                found=f"those of what {self.card['part']} adds to it",
                remedy="Find them with the part out.",
            )
        placed = [n for n in self.layers if n >= first]
        chosen = placed if layers is None else self._chosen(layers)
        if not chosen or min(chosen) < first:
            others = f"Give --layer {said(placed)} (layers=), or write" if placed else "Write"
            raise DriftlensError(
                f"directions of blocks from {first} on, which are all that a control vector holds",
                found="one of block 0" if placed else "none but of block 0",
                remedy=f"{others} .safetensors.",
            )
        if path.exists() and not overwrite:
            raise DriftlensError(
                "a new file to write to",
                found=f"{path}",
                remedy="Say --overwrite to replace it, or name another file.",
            )
        with writable(path.resolve().parent):
            write({n: self.vector(n) for n in chosen}, path, self.card["model"]["type"])
        return path

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the folder, whole or not at all; the same directions make the same bytes.

        Raises:
            DriftlensError: Something stands there already, and is not to be replaced or not ours.
        """
        return FOLDER.save(self.card, self.tensors, folder, overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the folder that `save` wrote.

        Raises:
            LoadError: It is not there, or a file of it is broken; or it holds a folder of each
                model of a pair, of which one is to be given.
            DriftlensError: Another version wrote it, or its two files do not belong together.
        """
        refuse_several(Path(folder))
        held = FOLDER.load(folder)
        check(held, folder)
        return cls(held.card, held.tensors)

    def _number(self, layer: int) -> int:
        if layer not in self.layers:
            raise DriftlensError(
                f"a layer that there is a direction of: {', '.join(map(str, self.layers))}",
                found=str(layer),
                remedy="Choose among these.",
            )
        return self.layers.index(layer)

    def _row(self, layer: int) -> Mapping[str, Any]:
        return self.card["metrics"][self._number(layer)]

    def _chosen(self, layers: int | Sequence[int] | None) -> list[int]:
        if layers is None:
            return self.layers if self.layer is None else [self.layer]
        chosen = [int(layer) for layer in np.atleast_1d(layers)]
        for layer in chosen:
            self._number(layer)
        if not chosen:
            raise DriftlensError(
                "a layer to steer at", found="none at all", remedy="Leave layers out, or name one."
            )
        return chosen

    def _recommended(self, mode: str) -> float:
        if self.strength is None or mode != "add":
            raise DriftlensError(
                f"a strength to {mode}",
                found="none, and none that the card recommends",
                remedy="Give --strength (strength=).",
            )
        return self.strength.r

    def _length(self, layer: int) -> float:
        length = self._row(layer)["mean_length"]
        if length is None:
            raise DriftlensError(
                f"the mean length of a state after block {layer}, to count a strength in",
                found="none in the card",
                remedy="Leave --relative out: a strength is then in the stream's own units.",
            )
        return float(length)

    def _tensor(self, layer: int) -> torch.Tensor:
        # A copy, as tensors can be written to, and what was read from a file cannot.
        return torch.tensor(self.unit(layer))

    def _steer(self, change: Change, layer: int) -> Steer:
        return Steer(change, layer, self.card["part"])


def _looked_into(model: Any) -> Model:
    """A live net as a model; `steered` has seen that it is one."""
    if isinstance(model, HookedModel):
        return model
    return HookedModel(getattr(model, "get_base_model", lambda: model)(), None)


# What is not to be kept


def _check_found(
    model: Model, units: Mapping[int, np.ndarray], norms: Sequence[float | None]
) -> None:
    """Raise unless there is a direction at all, and each one leads somewhere in the model."""
    outside = [str(layer) for layer in units if not 0 <= layer < model.depth]
    if outside or not units:
        raise DriftlensError(
            f"directions of blocks from 0 to {model.depth - 1}, which {model.name} has",
            found=f"one of block {', '.join(outside)}" if outside else "none",
            remedy="Give those that were found in this model.",
        )
    for (layer, unit), norm in zip(units.items(), norms, strict=True):
        if unit.shape != (model.width,):
            raise DriftlensError(
                f"directions of {model.width} numbers, as wide as {model.name}",
                found=f"one of shape {list(unit.shape)} for block {layer}",
                remedy="Give those that were found in this model.",
            )
        if not np.isfinite(unit).all() or not norm:
            raise DriftlensError(
                "directions that lead somewhere",
                found=f"one of block {layer} of length {norm or 'zero or undefined'}",
                remedy=f"Leave block {layer} out.",
            )
