"""A series of checkpoints: each beside the next, and the first beside the last."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import doctor, ranks, suite
from .diagnostics import staged
from .diagnostics.stages import spans_of
from .errors import DriftlensError
from .models import ModelPair
from .packs import Pack
from .partial import Batches, Partial
from .results import Check, Result
from .results.store import read_json, write_json

Load = Callable[..., ModelPair]
"""`ModelPair.load`, or what stands for it: of two models, `revision` and `aligned_revision`."""


@dataclass(frozen=True)
class Step:
    """Two models of a series that were compared."""

    span: str
    """From which model to which."""
    results: tuple[Result, ...]
    checks: tuple[Check, ...]
    sources: Mapping[str, Mapping[str, Any]]
    """Of `base` and of `aligned`, where it came from, as a report's record tells it."""

    def gates(self, number: int) -> Iterator[Check]:
        """How many gates a stage passed, and those that it did not."""
        others = [check for check in self.checks if check.status != "pass"]
        passed = len(self.checks) - len(others)
        yield Check(f"stage {number}", "pass", f"{self.span}: {passed} gates passed")
        for check in others:
            yield Check(f"stage {number}: {check.name}", check.status, check.detail)


@dataclass(frozen=True)
class Series:
    """A series that was measured: the whole, and its stages."""

    whole: Step
    stages: tuple[Step, ...]
    models: tuple[str, ...]
    """Short names of the models, in their order."""
    found: tuple[Result, ...]
    """What each stage has of the whole, in all and by layer."""

    @property
    def results(self) -> list[Result]:
        """What a page shows: stage by stage first, then the whole pair as any pair."""
        return [*self.found, *self.whole.results]

    @property
    def checks(self) -> list[Check]:
        """The gates of the whole pair, then of each stage how many it passed, and the others."""
        return [*self.whole.checks, *(c for n, s in enumerate(self.stages, 1) for c in s.gates(n))]


class Models:
    """The models of a series, at most two of which are held at a time.

    Args:
        models: Names, folders or live models, in the order of training; of a name that ends in
            `@REVISION` that branch, tag or commit.
        load: What loads two of them.
        options: What it is told besides.

    Raises:
        DriftlensError: There are fewer than two, or one among more than two is an adapter.
    """

    def __init__(
        self, models: Sequence[object], load: Load = ModelPair.load, **options: Any
    ) -> None:
        self.given = [revised(model) for model in models]
        self.load, self.options = load, options
        self.loaded = 0
        """How often a model was loaded."""
        self._held: dict[int, Any] = {}
        self._pair: tuple[tuple[int, int], ModelPair] | None = None
        if len(self.given) < 2:
            raise DriftlensError(
                "two models at least", found=str(len(models)), remedy="Name a base and a stage."
            )
        for model, _ in self.given if len(self.given) > 2 else ():
            _refuse_adapter(model)
        # A model that stands there twice is one model.
        self._first = [self.given.index(one) for one in self.given]
        self.names = self._names()

    def _names(self) -> list[str]:
        """What each is called; those of one name that are not one model also by their places."""
        names = short([f"{one}@{at}" if at else _called(one) for one, at in self.given])
        places: dict[str, set[int]] = {}
        for name, first in zip(names, self._first, strict=True):
            places.setdefault(name, set()).add(first)
        return [
            name if len(places[name]) == 1 else f"{name} {first}"
            for name, first in zip(names, self._first, strict=True)
        ]

    @property
    def stages(self) -> int:
        """How many there are."""
        return len(self.given) - 1

    def ends(self, step: int) -> tuple[int, int]:
        """The two models of the whole, which is step 0, or of a stage."""
        return (0, self.stages) if step == 0 else (step - 1, step)

    def pair(self, step: int) -> ModelPair:
        """The whole pair, or that of a stage; what it does not need is let go of first.

        Raises:
            DriftlensError: A model cannot be loaded, or two cannot be compared; names the stage.
        """
        one, other = (self._first[end] for end in self.ends(step))
        if self._pair is not None and self._pair[0] == (one, other):
            return self._pair[1]
        self._let_go({one, other})
        with self.named(step):
            pair = self._loaded(one, other)
            _refuse_attached(pair, self.stages)
        self._held, self._pair = {one: pair.base, other: pair.aligned}, ((one, other), pair)
        return pair

    @contextmanager
    def named(self, step: int) -> Iterator[None]:
        """What cannot be done with a pair is said with the stage that it is."""
        try:
            yield
        except DriftlensError as error:
            if self.stages == 1:
                raise
            span = spans_of(self.names)[step]
            where = f"in stage {step}, {span}" if step else f"in the whole, {span}"
            raise error.at(where) from None

    def _loaded(self, one: int, other: int) -> ModelPair:
        base, aligned = (self._held.get(n, self.given[n][0]) for n in (one, other))
        self.loaded += len({one, other} - self._held.keys())
        if one == other:
            aligned = base
        revisions = {"revision": self.given[one][1], "aligned_revision": self.given[other][1]}
        return self.load(base, aligned, **revisions, **self.options)

    def _let_go(self, kept: set[int]) -> None:
        self._pair = None
        self._held = {n: model for n, model in self._held.items() if n in kept}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def examine(
    models: Sequence[object] | Models,
    packs: Sequence[Pack],
    options: suite.Options | Callable[[ModelPair], suite.Options] = suite.Options(),
    *,
    allow_identical: bool = False,
    partial: Partial | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    **loading: Any,
) -> Series:
    """Measure a base and every stage of its training on the same packs, and add them up.

    The first model and the last are compared, then each with the next: with n stages n + 2
    models are loaded, of two stages and more, and never more than two are held.

    Args:
        models: Names, folders or live models, in the order of training.
        packs: What to show them.
        options: What to ask of each pair, as in `suite.examine`; or what tells it of the first
            pair that is loaded.
        allow_identical: Whether a stage may change nothing.
        partial: Where to keep what is done, and to take it up from.
        progress: Told the stage and the pack, and how many windows of how many are done.
        **loading: Options of `ModelPair.load`, but for revisions: give a name as `name@revision`.

    Raises:
        DriftlensError: Two models in a row cannot be compared, or are the same; names the stage.
    """
    series = models if isinstance(models, Models) else Models(models, **loading)
    run = _Run(series, packs, options, allow_identical, partial, progress)
    steps = [run.step(number) for number in range(series.stages + 1)]
    clusters = {pack.name: pack.clusters for pack in packs}
    # What a stage answers itself is not what another does, and does not add up.
    shared = [[r for r in step.results if r.pack in clusters] for step in steps]
    found = staged(
        shared[0],
        shared[1:],
        series.names,
        clusters=clusters,
        seed=run.asked.seed if run.asked else 0,
    )
    return Series(steps[0], tuple(steps[1:]), tuple(series.names), found)


@dataclass
class _Run:
    models: Models
    packs: Sequence[Pack]
    options: suite.Options | Callable[[ModelPair], suite.Options]
    allow_identical: bool
    partial: Partial | None
    progress: Callable[[str, int, int], None] | None
    seen: dict[int, str | None] = field(default_factory=dict)
    """SHA-256 of each model, as it was first loaded."""
    lengths: list[int] = field(default_factory=list)
    """Of the windows that each pack was read in."""
    asked: suite.Options | None = None
    """What is asked of every pair, once one is known."""

    def step(self, number: int) -> Step:
        """The whole, or a stage: measured, or taken up if it was finished."""
        shelf = _Shelf(self.partial, number, len(self.packs)) if self.partial else None
        kept = shelf.step() if shelf else None
        if kept is None:
            return self._measured(number, shelf)
        self._known(number, kept["sources"], kept["lengths"])
        self.asked = self.asked or _options(kept["options"])
        assert shelf is not None
        results = [one for pack in range(len(self.packs)) for one in shelf.results(pack) or ()]
        checks = tuple(Check(**check) for check in kept["checks"])
        return Step(self._span(number), tuple(results), checks, kept["sources"])

    def _measured(self, number: int, shelf: "_Shelf | None") -> Step:
        pair = self.models.pair(number)
        if self.asked is None:
            self.asked = self.options(pair) if callable(self.options) else self.options
        asked = self.asked
        with self.models.named(number):
            sources = {"base": _source(pair.base), "aligned": _source(pair.aligned)}
            lengths = [pair.encoder(p, asked.length).length for p in self.packs]
            self._known(number, sources, lengths)
            checks = doctor.examine(
                pair, self.packs, allow_identical=self.allow_identical, length=asked.length
            )
            doctor.require(checks)
            found = suite.examine(
                pair,
                self.packs,
                asked,
                checks=checks,
                partial=shelf,  # type: ignore[arg-type]
                progress=self._told(number),
            )
            results = tuple(found)
        if shelf:
            kept = [asdict(check) for check in checks]
            told = {**asdict(asked), "layers": sorted(asked.layers or ()) or None}
            shelf.keep({"sources": sources, "lengths": lengths, "checks": kept, "options": told})
        return Step(self._span(number), results, tuple(checks), sources)

    def _known(self, number: int, sources: Mapping[str, Any], lengths: list[int]) -> None:
        """Refuse a model that is not what it was in another stage, and other windows."""
        ends = zip(("base", "aligned"), self.models.ends(number), strict=True)
        for side, end in ends:
            sha256 = sources[side].get("sha256")
            if self.seen.setdefault(end, sha256) != sha256:
                raise DriftlensError(
                    f"the same {self.models.names[end]} in every stage",
                    found="other weights than when it was loaded before",
                    remedy="Leave its files alone while it is measured, and begin anew.",
                )
        self.lengths = self.lengths or lengths
        if self.lengths != lengths:
            shortest = min(*self.lengths, *lengths)
            raise DriftlensError(
                f"windows of {self.lengths[0]} tokens in every stage",
                found=f"{lengths[0]}, the most that a model of this stage takes",
                remedy=f"Give --max-length {shortest}.",
            )

    def _span(self, number: int) -> str:
        return spans_of(self.models.names)[number]

    def _told(self, number: int) -> Callable[[str, int, int], None] | None:
        if self.progress is None:
            return None
        told, where = self.progress, f"stage {number}" if number else "whole"
        return lambda name, done, of: told(f"{where}: {name}", done, of)


class _Shelf:
    """A step's part of what a run has done so far."""

    def __init__(self, partial: Partial, step: int, packs: int) -> None:
        self.partial, self.first = partial, step * packs
        self.path = partial.folder / f"step-{step}.json"

    def results(self, pack: int) -> list[Result] | None:
        """As `Partial.results`."""
        return self.partial.results(self.first + pack)

    def finish(self, pack: int, results: Sequence[Result]) -> None:
        """As `Partial.finish`."""
        self.partial.finish(self.first + pack, results)

    def checkpoint(self, pack: int) -> Batches:
        """As `Partial.checkpoint`."""
        return self.partial.checkpoint(self.first + pack)

    def step(self) -> dict[str, Any] | None:
        """What was kept of the step when it was finished, or None."""
        return ranks.lead(lambda: read_json(self.path) if self.path.exists() else None)

    def keep(self, step: Mapping[str, Any]) -> None:
        """Keep what a finished step is besides its results."""
        ranks.lead(lambda: write_json(dict(step), self.path))


def revised(model: object) -> tuple[Any, str | None]:
    """A model and the revision that its name asks for; a folder may have any name."""
    if not isinstance(model, str) or "@" not in model or Path(model).expanduser().exists():
        return model, None
    name, _, revision = model.rpartition("@")
    return name, revision or None


def short(names: Sequence[str]) -> list[str]:
    """The ends of names that tell different ones apart, as `base` of `demo:base`."""
    for parts in (1, 2):
        ends = ["/".join(name.rstrip("/").replace(":", "/").split("/")[-parts:]) for name in names]
        if len(set(ends)) == len(set(names)):
            return ends
    return list(names)


def _options(kept: Mapping[str, Any]) -> suite.Options:
    layers = kept["layers"]
    return suite.Options(**{**kept, "layers": frozenset(layers) if layers else None})


def _called(model: object) -> str:
    if isinstance(model, str | Path):
        return str(model)
    config = getattr(model, "config", None)
    return str(
        getattr(model, "name", None) or getattr(config, "name_or_path", "") or type(model).__name__
    )


def _source(model: Any) -> dict[str, Any]:
    return {"name": model.name, **getattr(model, "source", {})}


def _refuse_adapter(model: object) -> None:
    """Raise before anything is loaded if a stage is an adapter, which sits on one base alone."""
    folder = isinstance(model, str | Path) and Path(model).expanduser()
    live = hasattr(model, "disable_adapter") and hasattr(model, "get_base_model")
    if live or (folder and (folder / "adapter_config.json").is_file()):
        raise _adapter(str(model) if folder else type(model).__name__)


def _refuse_attached(pair: ModelPair, stages: int) -> None:
    if stages > 1 and "adapter_of" in getattr(pair.aligned, "source", {}):
        raise _adapter(pair.aligned.name)


def _adapter(name: str) -> DriftlensError:
    return DriftlensError(
        "whole models in a series of more than two",
        found=f"the adapter {name}, which would sit on each model before it",
        remedy="Merge it into its base in float32, save that, and give its folder.",
    )
