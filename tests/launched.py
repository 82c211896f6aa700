"""Several processes that share a run, started by the variables that every launcher sets."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import driftlens

PATH = os.pathsep.join(map(str, (Path(driftlens.__file__).parents[1], Path(__file__).parent)))

BROKEN = """
import os, signal, sys
from driftlens import cli, metric, partial
from driftlens.errors import DriftlensError

partial.SECONDS = 0.0
rank, how, batch = os.environ["BROKEN"].split()
look, seen = metric._look, []

def broken(*arguments):
    seen.append(1)
    if os.environ.get("RANK", "0") == rank and len(seen) == int(batch):
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "puzzled":
            raise ZeroDivisionError("nobody foresaw this")
        raise DriftlensError("a sound model", found="NaN", remedy="Mend it.")
    return look(*arguments)

metric._look = broken
cli.main()
"""
"""The command line, of which one process fails at one of its batches."""


def launched(count, *arguments, code=None, where=None, **variables):
    """Start so many; [rank] exit code, standard output and standard error of each.

    Args:
        count: How many processes.
        arguments: Of the command line.
        code: What to run in the place of `python -m driftlens`.
        where: The folder to run in.
        variables: Others of the environment.
    """
    what = ["-m", "driftlens"] if code is None else ["-c", code]
    command = [sys.executable, *what, *map(str, arguments)]
    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port())}
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=where,
            env=os.environ | group | quiet | variables | {"RANK": str(rank)},
        )
        for rank in range(count)
    ]
    said = [run.communicate() for run in runs]
    return [(run.returncode, *both) for run, both in zip(runs, said, strict=True)]


def port():
    """One that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
