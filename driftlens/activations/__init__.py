"""Activations that outlive a run: for probes that are trained in scripts, without the model.

A folder holds the states in shards (`000000.safetensors`, …), what stands in each row
(`index.parquet`), and what all of it was made from (`manifest.json`).
"""

from .captured import ActivationStore, Labelled, Rows
from .capturing import capture, told_bytes, write
from .plan import DTYPES, POSITIONS, Plan

__all__ = [
    "DTYPES",
    "POSITIONS",
    "ActivationStore",
    "Labelled",
    "Plan",
    "Rows",
    "capture",
    "told_bytes",
    "write",
]
