"""A report in trackio, on this machine or in the Space that its own variables name."""

import os
from typing import Any

from .trackers import PROJECT, Told


def ready() -> None:
    """Nothing is asked for: it writes to a folder of its own."""


def send(told: Told) -> str:
    """Make a run of its own, and return where it can be looked at."""
    import trackio

    project = os.environ.get("TRACKIO_PROJECT") or PROJECT
    config = {**told.flat(), "verdict": told.verdict, "left_out": told.left_out}
    # A run of a name that is there already is another run of that name.
    run = trackio.init(
        project=project,
        name=told.name,
        config=config,
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    try:
        _log(run, told)
    finally:
        # Not the run's own `finish`: what is still current is finished again as python ends.
        trackio.finish()
    return f"project {project}, run {run.name}: trackio show --project {project}"


def _log(run: Any, told: Told) -> None:
    import trackio

    shown: dict[str, Any] = {
        f"tables/{name}": trackio.Table(columns=columns, data=rows)
        for name, columns, rows in (told.listed(), *told.tables)
    }
    shown |= {f"figures/{name}": trackio.Image(at) for name, at in told.pictures.items()}
    run.log({**told.scalars(), **shown, "verdict": trackio.Markdown(told.verdict)}, step=0)
    for at in told.depth():
        run.log({name: points[at] for name, _, points in told.curves if at in points}, step=at)
    artifact = trackio.Artifact(f"report-{told.name}", type="report", description=told.verdict)
    for file in told.files:
        artifact.add_file(str(file))
    run.log_artifact(artifact)
