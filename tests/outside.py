"""What someone writes who installed driftlens; `test_packaging` has it typed strictly, and run.

`assert_type` is what a type checker must have found: never Any.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import assert_type

import numpy as np
import torch
from torch import Tensor

import driftlens as dl
from driftlens import estimators, mitigation, steer
from driftlens.diagnostics import DriftResult, ForgettingResult
from driftlens.formulas.divergence import kl
from driftlens.results import Results


def compared(folder: Path) -> Path:
    """A pair, a pack, two instruments and a report, as in the README."""
    pair = dl.ModelPair.load("demo:base", "demo:aligned")
    assert_type(pair, dl.ModelPair)
    assert_type(pair.depth, int)
    pack = dl.Pack.load("world").limit(4)
    assert_type(pack, dl.Pack)
    assert_type(pack.examples, Sequence[dl.Example])
    found = dl.measure(pair, pack, [dl.Drift(), dl.Forgetting()])
    assert_type(found, Results)
    drift, forgetting = found
    assert isinstance(drift, DriftResult)
    assert isinstance(forgetting, ForgettingResult)
    assert_type(drift.cka, np.ndarray)
    assert_type(forgetting.summary(), str)
    drawn = drift.figure()
    assert drawn is not None
    drawn.savefig(folder / "drift.png")
    page = dl.Report("Two models", found)
    assert_type(page, dl.Report)
    assert_type(page.verdict(), str)
    written = page.write(folder / "report")
    assert_type(written, Path)
    return written


def asked() -> tuple[type[steer.Steering], type[mitigation.Mitigation]]:
    """Names that are loaded late have the types of their homes; no others are taken for ours."""
    assert_type(dl.FirstStep(), dl.FirstStep)
    assert_type(dl.Polarity(seed=1), dl.Polarity)
    assert_type(dl.TokenMap(), dl.TokenMap)
    assert_type(dl.__version__, str)
    _ = dl.Driftt  # type: ignore[attr-defined]
    return steer.Steering, mitigation.Mitigation


def steered(pair: dl.ModelPair, pack: dl.Pack) -> None:
    """Whole questions."""
    assert_type(steer.examine(pair, pack, [pack]), steer.Steering)
    assert_type(mitigation.examine(pair, [pack], [pack]), mitigation.Mitigation)


def learnt(states: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A probe learns, and `fit` gives it back."""
    probe = estimators.PolarityCCS(n_restarts=1).fit(states, labels)
    assert_type(probe, estimators.PolarityCCS)
    assert_type(probe.direction_, np.ndarray)
    return probe.predict(states)


def divergence() -> Tensor:
    """A formula by itself."""
    found = kl(torch.zeros(3), torch.tensor([0.0, 1.0, 2.0]))
    assert_type(found, Tensor)
    return found


if __name__ == "__main__":
    print(json.dumps({"file": dl.__file__, "kl": divergence().item()}))
