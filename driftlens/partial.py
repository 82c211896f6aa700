"""What a run has done so far, kept on disk so that it can be taken up again.

Where several processes share a run, the first one keeps what belongs to all, and each of them the
state of its own share. All must see the folder: what one does not see is done again.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import ranks
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
        self.folder = _hidden(out)
        self.resume = resume
        self.stopping = False
        """Set to stop after the batch in hand."""
        self._made = [parent for parent in self.folder.parents if not parent.exists()]
        if resume and not ranks.lead((self.folder / "run.json").exists):
            raise DriftlensError(
                "an unfinished run to resume",
                found=f"none at {self.folder}",
                remedy="Leave out --resume to begin one.",
            )

    @staticmethod
    def waiting(out: Path) -> bool:
        """Whether an earlier run of a report has left something to resume."""
        return (_hidden(out) / "run.json").exists()

    def begin(self, run: Mapping[str, Any]) -> None:
        """Make room, or take up the work of the same run.

        Args:
            run: What the run depends on; another run's work is never taken up.

        Raises:
            DriftlensError: What was left is of another run, or there is no room to write.
        """
        ranks.lead(lambda: self._begin(json.loads(json.dumps(run))))

    def results(self, pack: int) -> list[Result] | None:
        """The results of a pack that was finished, or None."""
        done = self.folder / f"{pack}.json"
        if not ranks.lead(done.exists):
            return None
        return [load(self.folder / f"{pack}" / name) for name in read_json(done)["results"]]

    def finish(self, pack: int, results: Sequence[Result]) -> None:
        """Keep the results of a pack."""
        ranks.lead(lambda: self._finish(pack, results))

    def checkpoint(self, pack: int) -> "Batches":
        """Where the batches of a pack that are done are kept."""
        return Batches(self, pack)

    def remove(self) -> None:
        """Forget it all."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for parent in self._made:
            with suppress(OSError):
                parent.rmdir()

    def tidy(self) -> None:
        """Forget a run of which nothing was kept."""
        if ranks.rank() == 0 and not self.begun():
            self.remove()

    def begun(self) -> bool:
        """Whether anything was kept that can be taken up."""
        return any(path.name != "run.json" for path in self.folder.glob("*"))

    def shards(self, pack: int) -> list[Path]:
        """The states of a pack's shares that were kept, by name."""
        return sorted(self.folder.glob(f"{pack}.*.safetensors"))

    def _begin(self, run: Mapping[str, Any]) -> None:
        with writable(self.folder):
            if self.resume:
                self._refuse_another(run)
            elif self.folder.exists():
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(run, self.folder / "run.json")

    def _finish(self, pack: int, results: Sequence[Result]) -> None:
        with writable(self.folder):
            names = [f"{number}-{result.kind}" for number, result in enumerate(results)]
            for name, result in zip(names, results, strict=True):
                save(result, self.folder / f"{pack}" / name, overwrite=True)
            write_json({"results": names}, self.folder / f"{pack}.json")
            for left in self.shards(pack):
                left.unlink()

    def _refuse_another(self, run: Mapping[str, Any]) -> None:
        kept = read_json(self.folder / "run.json")
        changed = [name for name in {**kept, **run} if kept.get(name) != run.get(name)]
        if changed:
            raise DriftlensError(
                "the same run to resume",
                found="another: " + ", ".join(sorted(changed)) + " changed",
                remedy="Give the same arguments as before, or leave out --resume to begin anew.",
            )


def _hidden(out: Path) -> Path:
    return out.resolve().parent / f".{out.resolve().name}.partial"


# The states of a pack that is not finished

States = list[dict[str, np.ndarray]]
"""The state of each metric, in their order."""


@dataclass(frozen=True)
class Done:
    """What was done of a pack before."""

    tokens: int | None = None
    """By how many tokens at a time its batches were planned; None if none was done."""

    batches: frozenset[int] = frozenset()
    """Numbers of the batches that are done, by whichever process."""

    mine: frozenset[int] = frozenset()
    """Numbers of those that this process has the states of."""

    states: tuple[States, ...] = ()
    """The states of every share that this process takes up."""


class Batches:
    """The states of every metric after some batches of a pack, a file for each process's share."""

    def __init__(self, partial: Partial, pack: int) -> None:
        self.partial, self.pack = partial, pack
        self.path = self._of(ranks.rank())
        self.kept_at = time.monotonic()
        self.taken_up: list[Path] = []

    def load(self) -> Done:
        """What was done, nothing of a fresh run.

        Shares are taken up by as many processes as there are now, however many left them.
        """
        names, tokens, batches = ranks.lead(self._found)
        paths = [self.partial.folder / name for name in names]
        current = [self._of(number) for number in range(ranks.size())]
        others = [path for path in paths if path not in current]
        # Nobody takes up what another is about to write over.
        own = [path for path in paths if path == self.path]
        self.taken_up = [*own, *(others[n] for n in ranks.share(len(others)))]
        mine = frozenset(number for path in self.taken_up for number in _held(path)[1])
        return Done(tokens, frozenset(batches), mine, tuple(map(_states, self.taken_up)))

    def save(
        self, tokens: int, batches: Sequence[int], states: Callable[[], States], *, last: bool
    ) -> None:
        """Keep the states after these batches if it is time to, or if the run is stopping.

        Args:
            tokens: By how many tokens at a time the batches were planned.
            batches: Numbers of those that are done by this process.
            states: Gives the state of each metric.
            last: Whether no other batch follows.

        Raises:
            KeyboardInterrupt: The run was asked to stop, and what it has done is kept.
        """
        from safetensors.numpy import save as serialised

        early = time.monotonic() - self.kept_at < SECONDS
        if early and not (last or self.partial.stopping):
            return
        every = states()
        arrays = {
            f"{number}:{key}": np.asarray(array, order="C")
            for number, state in enumerate(every)
            for key, array in state.items()
        }
        progress = {"progress": np.array([tokens, len(every)]), "batches": np.array(batches)}
        with writable(self.path):
            put(self.path, serialised({**progress, **arrays}))
            for path in self.taken_up:
                if path != self.path:
                    path.unlink(missing_ok=True)
        self.kept_at = time.monotonic()
        if self.partial.stopping:
            raise KeyboardInterrupt

    def _of(self, rank: int) -> Path:
        return self.partial.folder / f"{self.pack}.{rank}-of-{ranks.size()}.safetensors"

    def _found(self) -> tuple[list[str], int | None, list[int]]:
        """Names of the shares that together hold each batch once, their plan, and their batches."""
        held = {path: _held(path) for path in self.partial.shards(self.pack)}
        names: list[str] = []
        tokens, done = None, set[int]()
        for path in sorted(held, key=lambda path: -len(held[path][1])):
            planned, batches = held[path]
            if done.isdisjoint(batches):
                names.append(path.name)
                tokens, done = planned, done.union(batches)
            else:
                # A longer share has taken it up, but had no time to remove it.
                path.unlink()
        return sorted(names), tokens, sorted(done)


def _held(path: Path) -> tuple[int, list[int]]:
    """By how many tokens a share's batches were planned, and their numbers."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return int(file.get_tensor("progress")[0]), file.get_tensor("batches").tolist()


def _states(path: Path) -> States:
    """The state of each metric that a share holds."""
    from safetensors.numpy import load_file

    arrays = load_file(path)
    _, metrics = (int(number) for number in arrays.pop("progress"))
    del arrays["batches"]
    states: States = [{} for _ in range(metrics)]
    for name, array in arrays.items():
        number, key = name.split(":", 1)
        states[int(number)][key] = array
    return states
