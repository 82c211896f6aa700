"""A report in MLflow, wherever MLFLOW_TRACKING_URI leads."""

import os
import re
from collections.abc import Iterable
from typing import Any

from driftlens.errors import DriftlensError

from .trackers import PROJECT, Told

BATCH = 1000
"""Metrics that one call may bring."""

LENGTH = 6000
"""Letters that a parameter may have."""


def ready() -> None:
    """Raise if there is no store to write to."""
    from mlflow.exceptions import MlflowException

    try:
        _client()
    except MlflowException as error:
        raise DriftlensError(
            "a store of MLflow that can be reached",
            found=str(error),
            remedy="Set MLFLOW_TRACKING_URI to the address of a server, or for a store in a file "
            "type pip install 'driftlens[mlflow]'.",
        ) from error


def send(told: Told) -> str:
    """Make a run of its own, and return where it can be looked at."""
    import mlflow

    client = _client()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
    known = client.get_experiment_by_name(name)
    experiment = client.create_experiment(name) if known is None else known.experiment_id
    # Its page shows this tag as what the run is.
    tags = {"mlflow.note.content": told.verdict}
    run = client.create_run(experiment, run_name=told.name, tags=tags).info.run_id
    try:
        _log(client, run, told)
    except BaseException:
        client.set_terminated(run, "FAILED")
        raise
    client.set_terminated(run)
    return f"{mlflow.get_tracking_uri()}, experiment {name}, run {run}"


def _log(client: Any, run: str, told: Told) -> None:
    from time import time

    from mlflow.entities import Metric, Param

    now = int(time() * 1000)
    facts, scalars = told.flat(), told.scalars()
    named = _named([*facts, *scalars, *(curve.name for curve in told.curves), *told.pictures])
    params = [Param(named[name], str(what)[:LENGTH]) for name, what in facts.items()]
    metrics = [Metric(named[name], value, now, 0) for name, value in scalars.items()]
    metrics += [
        Metric(named[name], value, now, at)
        for name, _, points in told.curves
        for at, value in points.items()
    ]
    for at in range(0, len(params), 100):
        client.log_batch(run, params=params[at : at + 100])
    for at in range(0, len(metrics), BATCH):
        client.log_batch(run, metrics=metrics[at : at + BATCH])
    for name, columns, rows in (told.listed(), *told.tables):
        table = dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))
        client.log_table(run, data=table, artifact_file=f"tables/{name}.json")
    for name, picture in told.pictures.items():
        client.log_artifact(run, str(picture), f"figures/{named[name]}")
    for file in told.files:
        client.log_artifact(run, str(file))
    if told.left_out:
        client.log_text(run, "\n".join(told.left_out), "left_out.txt")


def _client() -> Any:
    import mlflow

    return mlflow.MlflowClient()


def _named(names: Iterable[str]) -> dict[str, str]:
    """For each name one of the letters that every store takes, used once."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        plain = re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)
        others = (f"{plain}-{count}" for count in range(2, len(found) + 3))
        found[name] = next(one for one in (plain, *others) if one not in found.values())
    return found
