"""A report in Weights & Biases; WANDB_MODE, WANDB_PROJECT and the rest are obeyed."""

import os
from typing import Any

from driftlens.errors import DriftlensError

from .trackers import PROJECT, Told


def ready() -> None:
    """Raise if it would ask for a login, which nobody may be there to give, or has a wrong one."""
    import wandb

    # `wandb offline` leaves the mode in a file, which only its own settings know.
    if wandb.setup().settings.mode != "online":
        return
    try:
        found = "" if wandb.login(prompt=False) else "none"
    except wandb.Error as error:
        found = str(error)
    if found:
        raise DriftlensError(
            "a login to Weights & Biases, or a mode without one",
            found=found,
            remedy="Type wandb login, or set WANDB_MODE=offline.",
        )


def send(told: Told) -> str:
    """Make a run of its own, and return where it can be looked at."""
    import wandb

    settings = wandb.Settings(
        # What a report does not hold is not sent: no console, code, commit or packages,
        # and nothing of the machine.
        console="off",
        save_code=False,
        disable_git=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
        silent=True,
    )
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT") or PROJECT,
        name=told.name,
        job_type="report",
        notes=told.verdict,
        config=told.facts,
        settings=settings,
    )
    with run:
        _log(run, told)
        place = run.dir.removesuffix("/files")
        return f"{place}: wandb sync {place}" if run.offline else str(run.url)


def _log(run: Any, told: Told) -> None:
    import wandb

    scalars = told.scalars()
    run.summary.update({**scalars, "verdict": told.verdict, "left_out": told.left_out})
    for name, _, _ in told.curves:
        run.define_metric(name, step_metric="layer")
    for at in told.depth():
        here = {name: points[at] for name, _, points in told.curves if at in points}
        run.log({"layer": at, **here})
    shown: dict[str, Any] = {
        f"tables/{name}": wandb.Table(columns=[*columns], data=rows, allow_mixed_types=True)
        for name, columns, rows in (told.listed(), *told.tables)
    }
    shown |= {f"figures/{name}": wandb.Image(str(at)) for name, at in told.pictures.items()}
    run.log(shown)
    artifact = wandb.Artifact(f"report-{run.id}", type="report", description=told.verdict)
    for file in told.files:
        artifact.add_file(str(file))
    run.log_artifact(artifact)
