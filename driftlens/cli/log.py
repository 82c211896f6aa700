"""`driftlens log`: tell trackers of experiments of a report that is finished."""

from pathlib import Path
from typing import Annotated

import typer

from .shared import Quiet, end, leave_to_first, report_written, told, trackers_of


@told()
def log(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a report.")],
    to: Annotated[
        list[str],
        typer.Option("--to", help="wandb, tensorboard, mlflow or trackio; again for more."),
    ],
    quiet: Quiet = False,
) -> None:
    """Tell a tracker of experiments of a finished report.

    Examples:
        # Where its figures, curves and pictures can be looked at beside others'.
        driftlens log reports/mine --to tensorboard
        # Without a network: it is sent by wandb sync, whenever you like.
        WANDB_MODE=offline driftlens log reports/mine --to wandb
    """
    leave_to_first()
    from driftlens.report.written import Written

    named, written = trackers_of(to), Written.read(folder)
    end("", report_written(written.folder, named, quiet))
