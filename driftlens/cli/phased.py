"""A report whose models are run one after the other: when that is done, and what it leaves."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from driftlens import ranks
from driftlens.errors import DriftlensError

from .shared import kept, loading, pair_of, told_how_far

if TYPE_CHECKING:
    from driftlens.doctor import Floors
    from driftlens.models import ModelPair
    from driftlens.models.load import Apart
    from driftlens.packs import Pack
    from driftlens.results import Check


def models_of(context: typer.Context, store: Path) -> "ModelPair | Apart":
    """The pair of a report, or how its models are loaded one after the other.

    Args:
        context: Of the command.
        store: Where an earlier run may have left what base saw.
    """
    from driftlens import phases
    from driftlens.models.load import load_apart
    from driftlens.models.placement import Crowded

    asked, why = context.params, ""
    begun = asked["resume"] and phases.unfinished(store)
    if not (asked["two_phase"] or (begun and asked["two_phase"] is None)):
        try:
            return pair_of(context)
        except Crowded as crowded:
            if asked["two_phase"] is False or ranks.size() > 1:
                raise
            why = f"memory has room for one of them, with {crowded.found} free"
    _check_alone(asked["backend"])
    if not asked["quiet"]:
        typer.echo(f"two phases, base first{why and ': '}{why}", err=True)
    with loading(asked) as options:
        del options["backend"]
        return load_apart(asked["base"], asked["aligned"], **options, why=why)


def refuse_series(context: typer.Context) -> None:
    """A series is not run in two phases.

    Raises:
        DriftlensError: It was asked for.
    """
    if context.params["two_phase"] or context.params["keep_store"]:
        raise DriftlensError(
            "two models, to run one after the other",
            found="--two-phase with a series of more",
            remedy="Leave it out, or report on each two of them.",
        )


def _check_alone(backend: str) -> None:
    if backend != "hooks":
        raise DriftlensError(
            "hooks as the back-end of a run in two phases",
            found=f"--backend {backend}",
            remedy="Leave out --backend or --two-phase.",
        )
    if ranks.size() > 1:
        raise DriftlensError(
            "one process, to run models one after the other",
            found=f"{ranks.size()}",
            remedy="Leave out --two-phase, or start driftlens without torchrun.",
        )


def begun(
    context: typer.Context,
    models: "ModelPair | Apart",
    packs: Sequence["Pack"],
    options: Any,
    store: Path,
) -> "tuple[ModelPair, list[Check], Mapping[str, Floors] | None]":
    """The pair; of one whose base is already through, what its gates and noise floors are too."""
    from driftlens import doctor, phases
    from driftlens.models.load import Apart

    if not isinstance(models, Apart):
        return models, [], None
    asked = context.params
    keep = asked["keep_store"] is not None
    with _lent(store, keep):
        with told_how_far(asked["quiet"]) as progress, kept(store), loading(asked):
            done = phases.run(
                *(models, packs, options, store),
                resume=keep or asked["resume"],
                progress=progress,
            )
        checks = doctor.examine(
            *(done.pair, packs),
            allow_identical=asked["allow_identical"],
            length=options.length,
            before=done.checks,
        )
        doctor.require(checks)
    return done.pair, [*checks, phases.left_out(packs, options, models.why)], done.floors


def only_base(out: Path, store: Path) -> bool:
    """Whether an earlier run ended before anything was measured, but left what base saw."""
    from driftlens.partial import Partial

    return (store / "manifest.json").exists() and not Partial.waiting(out)


@contextmanager
def _lent(store: Path, keep: bool) -> Iterator[None]:
    """A store that goes where a run cannot go on, but for an interrupt or a full disk."""
    from driftlens import phases

    try:
        yield
    except DriftlensError:
        if not keep and not phases.unfinished(store):
            forget(store)
        raise


def forget(store: Path) -> None:
    """Remove what base alone has left."""
    shutil.rmtree(store, ignore_errors=True)
