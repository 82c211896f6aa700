"""One of the processes that share a run of drift and forgetting: prints the seconds it takes.

Called by `scale.py processes` with the variables of a launcher.
"""

import os
import time
from contextlib import nullcontext

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pairs
import torch

from driftlens import Drift, Forgetting, measure, ranks


def main() -> None:
    asked = pairs.parser(str(__doc__), {"documents": (100, "Texts.")}).parse_args()
    torch.set_num_threads(1)
    # All processes must hold the same models, and are refused otherwise.
    torch.manual_seed(0)
    nets = pairs.nets(asked.width, asked.depth, asked.vocab, torch.float32, "cpu")
    pair = pairs.pair(*nets)
    pack = pairs.pack(asked.documents, asked.tokens, asked.vocab)
    with ranks.joined() if ranks.launched() else nullcontext():
        # A few texts first: anatomies are found, and all processes have come.
        measure(pair, pack.limit(2 * asked.rows), [Drift(), Forgetting()], rows=asked.rows)
        start = time.perf_counter()
        found = measure(pair, pack, [Drift(), Forgetting()], rows=asked.rows)
        seconds = time.perf_counter() - start
    assert len(found) == 2
    print(seconds)


if __name__ == "__main__":
    main()
