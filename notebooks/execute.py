"""The lessons, executed: each in a fresh kernel and an empty folder, with nothing but this machine.

    python notebooks/execute.py             # all of them, where they lie
    python notebooks/execute.py 2 5         # some of them
    python notebooks/execute.py --to DIR    # into another folder, with the seconds each one took

What is written is the same again on the same machine: no time, no path and no version is kept.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

HERE = Path(__file__).parent

LIMIT = 600
"""Seconds that a cell may take."""

GUARD = '''
"""A kernel that reaches this machine alone."""

import socket

_connect = socket.socket.connect


def connect(self, address):
    here = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost")
    if not here:
        raise OSError(f"a lesson needs no network, and asked for {address!r}")
    return _connect(self, address)


socket.socket.connect = connect
'''
"""What every kernel imports first. Its own messages do not go through Python's sockets."""

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
"""All that is said of the kernel."""


def lessons(numbers: list[int] | None = None) -> list[Path]:
    """The notebooks in their order, or those of some numbers."""
    found = sorted(HERE.glob("[0-9]*.ipynb"))
    return [path for path in found if not numbers or int(path.name.split("-")[0]) in numbers]


def executed(path: Path) -> NotebookNode:
    """A lesson with what its cells give.

    Raises:
        CellExecutionError: A cell raised.
    """
    lesson = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        guard = Path(folder) / "guard"
        guard.mkdir()
        (guard / "sitecustomize.py").write_text(GUARD, "utf-8")
        scratch = Path(folder) / "scratch"
        scratch.mkdir()
        paths = [str(guard), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        alone = {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "IPYTHONDIR": str(Path(folder) / "ipython"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            # The debugger's word on frozen modules, which nobody here debugs.
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        client = NotebookClient(
            lesson,
            timeout=LIMIT,
            kernel_name="python3",
            resources={"metadata": {"path": str(scratch)}},
            config=Config({"KernelManager": _transport(Path(folder))}),
        )
        client.execute(env=os.environ | alone)
    return tidied(lesson)


def _transport(folder: Path) -> dict[str, str]:
    """How a kernel is spoken to: without a port, where files can stand for one."""
    return {"transport": "ipc", "ip": str(folder / "kernel")} if os.name == "posix" else {}


def tidied(lesson: NotebookNode) -> NotebookNode:
    """A lesson without what differs from run to run though its findings do not."""
    lesson.metadata = nbformat.from_dict(METADATA)
    for cell in lesson.cells:
        cell.metadata.pop("execution", None)
        outputs: list[NotebookNode] = []
        for output in cell.get("outputs", ()):
            last = outputs[-1] if outputs else None
            # How a stream is cut into messages is a matter of time.
            stream = last and output.output_type == last.output_type == "stream"
            if stream and last.name == output.name:
                last.text += output.text
            else:
                outputs.append(output)
        if "outputs" in cell:
            cell.outputs = outputs
    return lesson


def main() -> None:
    """Execute what is asked for."""
    asked = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    asked.add_argument("numbers", nargs="*", type=int, help="of the lessons; all if none is named")
    asked.add_argument("--to", type=Path, default=HERE, help="folder to write to")
    args = asked.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)
    took = {}
    for path in lessons(args.numbers):
        began = time.perf_counter()
        nbformat.write(executed(path), args.to / path.name)
        took[path.name] = round(time.perf_counter() - began, 1)
        print(f"{path.name}  {took[path.name]} s", file=sys.stderr)
    if args.to != HERE:
        (args.to / "seconds.json").write_text(json.dumps(took), "utf-8")


if __name__ == "__main__":
    main()
