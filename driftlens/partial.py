"""What a run has done so far, kept on disk so that it can be taken up again."""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DriftlensError
from .results import Result, load, save
from .results.store import put, read_json, writable, write_json

SECONDS = 30.0
"""How long a run may go on before what it has done is kept."""


class Partial:
    """A hidden folder beside the report to be, removed when the report is written.

    Args:
        out: Where the report will stand.
        resume: Whether to take up what an earlier run left.

    Raises:
        DriftlensError: There is nothing to resume.
    """

    def __init__(self, out: Path, *, resume: bool = False) -> None:
        self.folder = out.resolve().parent / f".{out.resolve().name}.partial"
        self.resume = resume
        self.stopping = False
        """Set to stop after the batch in hand."""
        self._made = [parent for parent in self.folder.parents if not parent.exists()]
        if resume and not (self.folder / "run.json").exists():
            raise DriftlensError(
                "an unfinished run to resume",
                found=f"none at {self.folder}",
                remedy="Leave out --resume to begin one.",
            )

    def begin(self, run: Mapping[str, Any]) -> None:
        """Make room, or take up the work of the same run.

        Args:
            run: What the run depends on; another run's work is never taken up.

        Raises:
            DriftlensError: What was left is of another run, or there is no room to write.
        """
        run = json.loads(json.dumps(run))
        with writable(self.folder):
            if self.resume:
                self._refuse_another(run)
            elif self.folder.exists():
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(run, self.folder / "run.json")

    def results(self, pack: int) -> list[Result] | None:
        """The results of a pack that was finished, or None."""
        done = self.folder / f"{pack}.json"
        if not done.exists():
            return None
        return [load(self.folder / f"{pack}" / name) for name in read_json(done)["results"]]

    def finish(self, pack: int, results: Sequence[Result]) -> None:
        """Keep the results of a pack."""
        with writable(self.folder):
            names = [f"{number}-{result.kind}" for number, result in enumerate(results)]
            for name, result in zip(names, results, strict=True):
                save(result, self.folder / f"{pack}" / name, overwrite=True)
            write_json({"results": names}, self.folder / f"{pack}.json")
            for left in self.folder.glob(f"{pack}.safetensors"):
                left.unlink()

    def checkpoint(self, pack: int) -> "Batches":
        """Where the batches of a pack that are done are kept."""
        return Batches(self, self.folder / f"{pack}.safetensors")

    def remove(self) -> None:
        """Forget it all."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for parent in self._made:
            with suppress(OSError):
                parent.rmdir()

    def tidy(self) -> None:
        """Forget a run of which nothing was kept."""
        if [path.name for path in self.folder.glob("*")] == ["run.json"]:
            self.remove()

    def _refuse_another(self, run: Mapping[str, Any]) -> None:
        kept = read_json(self.folder / "run.json")
        changed = [name for name in {**kept, **run} if kept.get(name) != run.get(name)]
        if changed:
            raise DriftlensError(
                "the same run to resume",
                found="another: " + ", ".join(sorted(changed)) + " changed",
                remedy="Give the same arguments as before, or leave out --resume to begin anew.",
            )


class Batches:
    """The state of every metric after some batches of a pack."""

    def __init__(self, partial: Partial, path: Path) -> None:
        self.partial, self.path = partial, path
        self.kept_at = time.monotonic()

    def load(self) -> tuple[int, list[dict[str, np.ndarray]]] | None:
        """How many batches are done, and each metric's state; None of a fresh run."""
        from safetensors.numpy import load_file

        if not self.path.exists():
            return None
        arrays = load_file(self.path)
        done, metrics = (int(number) for number in arrays.pop("progress"))
        states: list[dict[str, np.ndarray]] = [{} for _ in range(metrics)]
        for name, array in arrays.items():
            number, key = name.split(":", 1)
            states[int(number)][key] = array
        return done, states

    def save(self, done: int, states: Callable[[], list[dict[str, np.ndarray]]]) -> None:
        """Keep the states after `done` batches if it is time to, or if the run is stopping.

        Raises:
            KeyboardInterrupt: The run was asked to stop, and what it has done is kept.
        """
        from safetensors.numpy import save as serialised

        if not self.partial.stopping and time.monotonic() - self.kept_at < SECONDS:
            return
        every = states()
        arrays = {
            f"{number}:{key}": np.asarray(array, order="C")
            for number, state in enumerate(every)
            for key, array in state.items()
        }
        with writable(self.path):
            put(self.path, serialised({"progress": np.array([done, len(every)]), **arrays}))
        self.kept_at = time.monotonic()
        if self.partial.stopping:
            raise KeyboardInterrupt
