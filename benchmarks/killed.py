"""A report that is killed again and again, at random moments, and taken up again until it is done.

    .venv/bin/python benchmarks/killed.py --processes 2 --kills 30

A run is made undisturbed first. Then the same is started, one of its processes is killed with
signal 9 at a moment drawn evenly from the time that the undisturbed one took, and it is taken up
with --resume, until it comes to its end; and so anew until there were enough kills. Each record
that comes out is held against the undisturbed one: all of results.json and of the tables, but for
times.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CODE = "from driftlens import cli, partial; partial.SECONDS = 0.0; cli.main()"
"""The command line, which keeps its work after every batch, for a run of seconds."""

GRACE = 40.0
"""Seconds that others have to end by themselves after one was killed."""

TIMES = ("started", "finished", "command")
"""What of a run's record tells when and how it was started."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pair", nargs=2, default=("demo:base", "demo:aligned"))
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--out", type=Path, help="JSON of every kill.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = trials(asked, Path(folder))
    if asked.out:
        asked.out.write_text(json.dumps(told, indent=2) + "\n")
    if not all(run["identical"] for run in told["runs"]):
        raise SystemExit(1)


def trials(asked: argparse.Namespace, folder: Path) -> dict:
    """Runs that are killed until there were enough kills, held against one that was not."""
    before = time.monotonic()
    finish(start(asked, folder / "whole", resume=False))
    took = time.monotonic() - before
    whole, draw = record(folder / "whole"), random.Random(asked.seed)
    runs: list[dict] = []
    print(f"undisturbed: {took:.1f} s, {asked.processes} processes")
    while (left := asked.kills - sum(len(run["kills"]) for run in runs)) > 0:
        out = folder / f"run-{len(runs)}"
        kills = disturbed(asked, out, took, left, draw)
        runs.append({"kills": kills, "identical": record(out) == whole})
        moments = ", ".join(f"{kill['after']:.1f} s (rank {kill['rank']})" for kill in kills)
        verdict = "identical" if runs[-1]["identical"] else "DIFFERENT"
        print(f"killed after {moments or 'its end'}: {verdict}", flush=True)
    same = sum(run["identical"] for run in runs)
    print(f"{asked.kills} kills in {len(runs)} runs, {same} of them identical apart from times")
    return {"processes": asked.processes, "undisturbed_s": took, "runs": runs}


def disturbed(
    asked: argparse.Namespace, out: Path, took: float, most: int, draw: random.Random
) -> list[dict]:
    """Take a run to its end through at most so many kills; when each was, and of which rank."""
    kills: list[dict] = []
    while True:
        begun = (out.parent / f".{out.name}.partial" / "run.json").exists()
        runs = start(asked, out, resume=begun)
        after, rank = draw.uniform(0, took), draw.randrange(asked.processes)
        killed = len(kills) < most and killed_after(runs[rank], after)
        if killed:
            kills.append({"after": after, "rank": rank, "resumed": begun})
        for run in runs:
            end(run) if killed else run.wait()
        # One that is killed after its last word has done its work.
        left = (out.parent / f".{out.name}.partial").exists()
        if (out / "results.json").exists() and not left:
            return kills
        if not killed:
            raise SystemExit(f"nobody killed a run that left with {runs[rank].returncode}")


def start(asked: argparse.Namespace, out: Path, *, resume: bool) -> list[subprocess.Popen]:
    """All processes of a run."""
    command = [sys.executable, "-c", CODE, "report", *asked.pair, "--out", str(out), "--quiet"]
    command += ["--limit", str(asked.limit), "--batch-size", "2", "--format", "json,parquet"]
    command += ["--pack", "everyday", *(["--resume"] if resume else ["--overwrite"])]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    group |= {"WORLD_SIZE": str(asked.processes), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            command,
            env=os.environ | group | {"RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for rank in range(asked.processes)
    ]


def killed_after(run: subprocess.Popen, seconds: float) -> bool:
    """Kill a process after so long, unless it is at its end by then; whether it was killed."""
    try:
        run.wait(seconds)
    except subprocess.TimeoutExpired:
        run.send_signal(signal.SIGKILL)
        return True
    return False


def end(run: subprocess.Popen) -> None:
    """Wait for a process to miss the one that was killed; one that has met nobody yet is told."""
    try:
        run.wait(GRACE)
    except subprocess.TimeoutExpired:
        # As launchers do; by itself it would wait for the other to come for ten minutes.
        run.terminate()
        run.wait()


def finish(runs: list[subprocess.Popen]) -> None:
    """Wait for a run that nobody kills."""
    codes = [run.wait() for run in runs]
    if any(codes):
        raise SystemExit(f"an undisturbed run left with {codes}")


def record(out: Path) -> tuple[dict, dict]:
    """Results.json without its times, and every table as bytes."""
    held = json.loads((out / "results.json").read_text())
    for name in TIMES:
        held["run"].pop(name)
    tables = {path.name: path.read_bytes() for path in sorted((out / "tables").iterdir())}
    return held, tables


if __name__ == "__main__":
    main()
