"""What every test shares: one thread, no network, and a small pair with a small pack."""

import gc
import os
import signal
import sys

# Read by huggingface_hub and transformers when they are imported, so it stands before them.
os.environ["HF_HUB_OFFLINE"] = "1"
# Processes that share the tests are told of a terminal, which a pipe is not.
os.environ.pop("COLUMNS", None)

import pytest
import torch

import nets
from driftlens.models import ModelPair
from driftlens.packs import Pack

torch.set_num_threads(1)

# Shells have what runs in the background ignore interrupts, which some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A third of the time to collect went into looking for garbage among modules, which have none.
gc.disable()


def pytest_collection_finish() -> None:
    """From here on there may be garbage, but not among what was imported."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def pack() -> Pack:
    """Nine texts of different lengths, with emoji, accents and numbers."""
    return nets.pack(nets.TEXTS)


@pytest.fixture(scope="session")
def pair() -> ModelPair:
    """A tiny Llama and the same with every weight moved a little. Nobody may change it."""
    return nets.pair("llama")


@pytest.fixture
def driftlens(monkeypatch, tmp_path, capfd):
    """The command line in an empty folder: exit code, standard output, standard error."""
    from driftlens import cli

    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["driftlens", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code or 0, *capfd.readouterr()

    return run
