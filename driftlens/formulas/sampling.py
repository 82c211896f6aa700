"""Which places of the texts are looked at, when all of them would cost too much."""

import numpy as np

_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def chosen(document: np.ndarray, position: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Whether each place is in an even sample of all places.

    A place is chosen by a hash of its document, its position and the seed (the finaliser of
    splitmix64; Steele, Lea & Flood, 2014), never by its batch: any order and any split of the
    texts choose the same places.

    Args:
        document: [place] number of its document.
        position: [place] number of its token.
        share: How many of all places, between 0 and 1.
        seed: Another seed chooses other places.

    Returns:
        [place] truth.
    """
    if share >= 1:
        return np.ones(len(document), dtype=bool)
    with np.errstate(over="ignore"):
        x = (np.asarray(document).astype(np.uint64) << np.uint64(32)) + np.asarray(position).astype(
            np.uint64
        )
        x += np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * _MIX[0]
        x = (x ^ (x >> np.uint64(27))) * _MIX[1]
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) < share * 2.0**53
