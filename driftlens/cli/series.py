"""`driftlens report` of more than two models: a series of checkpoints."""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from driftlens import ranks
from driftlens.errors import DriftlensError
from driftlens.versions import versions

from .shared import (
    OF_MEASURE,
    Bound,
    kept,
    leave,
    leave_to_first,
    loading,
    measured,
    record,
    slug,
    stoppable,
    tell,
    together_told,
    told_how_far,
)

if TYPE_CHECKING:
    from driftlens.models import ModelPair
    from driftlens.packs import Pack
    from driftlens.partial import Partial
    from driftlens.series import Models, Series, Step
    from driftlens.suite import Options


def reported(
    context: typer.Context,
    packs: Sequence["Pack"],
    bounds: Sequence[Bound],
    partial: "Partial",
    out: Path,
    formats: set[str],
    to: Sequence[str],
    rows: int | None,
    started: datetime,
) -> None:
    """Compare each model with the next and the first with the last, and write their pages."""
    from driftlens import series
    from driftlens.report import Report

    asked = context.params
    models = models_of(context)
    partial.begin(_identity(context, packs))
    with told_how_far(asked["quiet"]) as progress, stoppable(partial, out):
        found = series.examine(
            models,
            packs,
            lambda pair: _options(context, packs, pair, rows),
            allow_identical=asked["allow_identical"],
            partial=partial,
            progress=progress,
        )
        ranks.meet()
    leave_to_first()
    about = _about(context, found, packs, rows, started)
    pages = {
        _folder(number, stage): Report(
            stage.span,
            together_told(stage.results),
            stage.checks,
            _of_stage(about, found, number, stage),
        )
        for number, stage in enumerate(found.stages, 1)
    }
    title = " → ".join(found.models)
    whole = together_told(found.whole.results)
    page = Report(title, [*found.found, *whole], found.checks, about)
    with kept(out):
        written = page.write(
            out,
            overwrite=asked["overwrite"] or asked["resume"],
            formats=formats,
            stages=pages,
        )
    partial.remove()
    leave(bounds, whole, tell(page, written, asked["quiet"], asked["as_json"], to))


def _options(
    context: typer.Context, packs: Sequence["Pack"], pair: "ModelPair", rows: int | None
) -> "Options":
    """What is asked of every pair, once one of them is known."""
    from driftlens import plan as planning

    asked = context.params
    options = measured(asked, pair.depth, rows)
    planned = planning.plan_of(pair, planning.work_of(packs, options))
    if planned is None:
        return options
    if not asked["quiet"]:
        typer.echo(planned.line, err=True)
    # By the memory that the first process finds, as of a pair.
    return replace(options, sums_bytes=ranks.lead(lambda: planned.sums_bytes))


def named(context: typer.Context) -> list[str]:
    """The models that a command was given, in their order."""
    asked = context.params
    return [asked["base"], asked["aligned"], *(asked["later"] or ())]


def models_of(context: typer.Context) -> "Models":
    """The models of a series, to be loaded by the options that every command has."""
    from driftlens.models import ModelPair
    from driftlens.series import Models

    asked = context.params
    if asked["revision"] or asked["aligned_revision"]:
        raise DriftlensError(
            "the revision of each of many models with its name",
            found="--revision" if asked["revision"] else "--aligned-revision",
            remedy="Write org/model@revision for each that has one.",
        )
    if asked["base_device"] or asked["aligned_device"]:
        raise DriftlensError(
            "one place for the models of a series, each of which is aligned once and then base",
            found="--base-device" if asked["base_device"] else "--aligned-device",
            remedy="Give --device, or --device-map to spread each model.",
        )

    def load(base: object, aligned: object, **revisions: Any) -> ModelPair:
        with loading(asked) as options:
            return ModelPair.load(base, aligned, **{**options, **revisions})

    return Models(named(context), load)


def _identity(context: typer.Context, packs: Sequence["Pack"]) -> dict[str, Any]:
    """What must be the same for a series to be taken up again; weights are known once loaded."""
    asked = context.params
    names = ("seed", *OF_MEASURE, "device", "device_map", "dtype", "attn_implementation", "backend")
    return {
        "models": named(context),
        "packs": [[pack.name, pack.sha256] for pack in packs],
        **{name.replace("_", "-"): asked[name] for name in names},
        **{f"version of {name}": version for name, version in versions().items()},
    }


def _about(
    context: typer.Context,
    found: "Series",
    packs: Sequence["Pack"],
    rows: int | None,
    started: datetime,
) -> dict[str, Any]:
    """Where the numbers came from: as of a pair, and every model between."""
    asked, given = context.params, named(context)
    sources = [found.stages[0].sources["base"], *(step.sources["aligned"] for step in found.stages)]
    known = [{"given": name, **source} for name, source in zip(given, sources, strict=True)]
    between = {f"stage_{number}": one for number, one in enumerate(known[1:-1], 1)}
    about = record(
        {"base": known[0], **between, "aligned": known[-1]},
        packs,
        asked["seed"],
        {name: asked[name] for name in OF_MEASURE} | {"batch_size": rows or "auto"},
        started,
    )
    about["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    if "html" in asked["format"]:
        about["pages"] = [
            {"title": f"Stage {n}: {step.span}", "page": f"stages/{_folder(n, step)}/index.html"}
            for n, step in enumerate(found.stages, 1)
        ]
    return about


def _of_stage(about: dict[str, Any], found: "Series", number: int, stage: "Step") -> dict[str, Any]:
    """The same of one stage's own page, which leads back."""
    given = [known["given"] for known in about["models"].values()][number - 1 : number + 1]
    models = {
        side: {"given": name, **stage.sources[side]}
        for side, name in zip(("base", "aligned"), given, strict=True)
    }
    back = {"title": f"Stage {number} of {' → '.join(found.models)}", "page": "../../index.html"}
    return about | {"models": models, "pages": [back] if "pages" in about else []}


def _folder(number: int, stage: "Step") -> str:
    return f"{number}-{re.sub(r'[^A-Za-z0-9]+', '-', stage.span).strip('-').lower()[-60:]}"


def place_of(models: Sequence[str]) -> Path:
    """Where a series is written unless the caller says: by its first model and its last."""
    return Path("reports") / f"{slug(models[0])}-{slug(models[-1])}-{len(models) - 1}-stages"
