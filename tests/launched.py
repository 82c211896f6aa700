"""Several processes that share a run, started by the variables that every launcher sets."""

import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
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


NURSERY = """
import atexit, importlib, json, os, sys
import pyarrow.parquet
from transformers.models.llama import modeling_llama
from driftlens import attribution, cli, doctor, phases, preflight, report, suite

def live(life):
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in enumerate(("out", "err"), 1):
        os.dup2(os.open(life[name], os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(life["env"])
    os.chdir(life["where"])
    sys.argv, code = life["argv"], 1
    try:
        exec(life["code"], {"__name__": "__main__"})
        code = 0
    except SystemExit as left:
        code = left.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    order = json.loads(line)
    if "left" in order:
        print(os.waitstatus_to_exitcode(os.waitpid(order["left"], 0)[1]), flush=True)
        continue
    for name in order["known"]:
        importlib.import_module(name)
    child = os.fork()
    if not child:
        live(order)
    print(child, flush=True)
"""
"""A process that has imported everything, from which others are forked: each would else take
several times as long to import as to do what it is for."""

COMMAND = "from driftlens import cli; cli.main()"


@cache
def nursery() -> subprocess.Popen:
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [sys.executable, "-c", NURSERY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | quiet,
    )
    # It ends where nobody can give it another order.
    atexit.register(started.communicate)
    return started


def _ordered(**order) -> int:
    process = nursery()
    print(json.dumps(order), file=process.stdin, flush=True)
    return int(process.stdout.readline())


class Process:
    """A process of its own, forked from one that knows the libraries already."""

    def __init__(self, code, *arguments, where=None, known=(), **variables):
        self.place = Path(tempfile.mkdtemp())
        self.pid = _ordered(
            code=code,
            argv=["-c", *map(str, arguments)],
            where=str(where or Path.cwd()),
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PATH} | variables,
            out=str(self.place / "out"),
            err=str(self.place / "err"),
            known=known,
        )

    def said(self) -> str:
        """What it has written to standard output so far."""
        out = self.place / "out"
        return out.read_text() if out.exists() else ""

    def heard(self, said: str) -> None:
        """Wait until it has said this."""
        last = time.monotonic() + 300
        while self.said() != said:
            assert time.monotonic() < last, (self.place / "err").read_text()
            time.sleep(0.001)

    def left(self) -> tuple[int, str, str]:
        """Exit code, standard output and standard error, once it has ended."""
        code = _ordered(left=self.pid)
        found = code, self.said(), (self.place / "err").read_text()
        shutil.rmtree(self.place)
        return found


def launched(count, *arguments, code=COMMAND, where=None, **variables):
    """Start so many; [rank] exit code, standard output and standard error of each.

    Args:
        count: How many processes.
        arguments: Of the command line.
        code: What to run in the place of the command line.
        where: The folder to run in.
        variables: Others of the environment.
    """
    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port())}
    runs = [
        Process(code, *arguments, where=where, **group, **variables, RANK=str(rank))
        for rank in range(count)
    ]
    return [run.left() for run in runs]


def port():
    """One that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
