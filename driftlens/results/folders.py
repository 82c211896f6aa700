"""Numbers that are kept for use: a folder of tensors and a card that says whose they are.

What a card has to say is settled by those who write it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from driftlens.errors import DriftlensError, LoadError

from .store import staged, write_json

CARD = "card.json"
"""The file of a folder that says what lies in it."""


class Held(NamedTuple):
    """What a folder held."""

    card: dict[str, Any]
    tensors: dict[str, np.ndarray]

    whole: bool
    """Whether the tensors are those that the card was written for."""


@dataclass(frozen=True)
class Keeping:
    """A kind of folder, and how it is called in errors."""

    what: str
    """What is kept, as in `a probe`."""

    tensors: str
    """The file of its tensors."""

    format: int
    """Of what is written now."""

    command: str
    """What writes it."""

    again: str
    """What is left to do if files are lost, as in `train the probe again`."""

    broken: str
    """What to do if a file cannot be read."""

    @property
    def restore(self) -> str:
        """What to do if files do not belong together."""
        return f"Restore both files, or {self.again}."

    def save(
        self,
        card: Mapping[str, Any],
        tensors: Mapping[str, np.ndarray],
        folder: str | Path,
        *,
        overwrite: bool = False,
    ) -> Path:
        """Write the folder, whole or not at all; the same card and tensors make the same bytes.

        Raises:
            DriftlensError: Something stands there already, and is not to be replaced or not ours.
        """
        from safetensors.numpy import save

        with staged(folder, {CARD, self.tensors}, overwrite=overwrite) as draft:
            body = save({name: np.ascontiguousarray(some) for name, some in tensors.items()})
            (draft / self.tensors).write_bytes(body)
            write_json({**card, "sha256": sha256(body).hexdigest()}, draft / CARD)
        return Path(folder)

    def load(self, folder: str | Path) -> Held:
        """What `save` wrote to the folder.

        Raises:
            LoadError: It is not there, or a file of it is broken.
            DriftlensError: Another version wrote it.
        """
        card, body = self._card(Path(folder) / CARD), self._read(Path(folder) / self.tensors)
        tensors = self._numbers(Path(folder) / self.tensors, body)
        told = card.pop("sha256", None)
        return Held(card, tensors, told == sha256(body).hexdigest())

    def refuse_strangers(self, folder: str | Path, whole: bool) -> None:
        """Raise unless tensors and card are each other's, as `load` found."""
        if not whole:
            raise DriftlensError(
                f"{self.tensors} of {folder} with the sha256 that its card names",
                found="another",
                remedy=self.restore,
            )

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise LoadError(
                f"the folder of {self.what}, with {path.name}, at {path.parent}",
                found=error.strerror or str(error),
                remedy=f"Give the folder that `{self.command}` wrote.",
            ) from None

    def _card(self, path: Path) -> dict[str, Any]:
        body = self._read(path)
        try:
            card = json.loads(body.decode(), parse_constant=_no_number)
        except ValueError as error:
            raise LoadError(
                f"a card in JSON at {path}", found=str(error), remedy=self.broken
            ) from None
        known = card.get("format") if isinstance(card, dict) else None
        if known != self.format:
            raise DriftlensError(
                f"{self.what} of format {self.format} at {path.parent}",
                found=f"format {known!r}",
                remedy=f"Install the version of driftlens that wrote it, or {self.again}.",
            )
        return card

    def _numbers(self, path: Path, body: bytes) -> dict[str, np.ndarray]:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            return load(body)
        except SafetensorError as error:
            raise LoadError(f"tensors at {path}", found=str(error), remedy=self.broken) from None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")
