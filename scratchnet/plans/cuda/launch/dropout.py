"""Launches of ``kernels/dropout.cu``: dropout with random numbers that are computed where they are used."""

from __future__ import annotations

import numpy as np

from scratchnet.backend import Array
from scratchnet.plans.cuda.launch.common import check, flat
from scratchnet.plans.cuda.launch.compiling import launch


def dropout(y: Array, p: float, seed: int, step: Array) -> None:
    """Set each number of ``y`` to 0 with probability p, and scale the others by 1 / (1 - p), in place.

    Backward, after a ReLU, is ``mask(dy, y, dz, factor=1 / (1 - p))``; without one, this function again, on
    dy: the same (seed, step) drop the same places.

    Parameters
    ----------
    y : float32, any shape
    p : float
        In [0, 1].
    seed : int
        From 0 to 2**64 - 1, of this layer. Which numbers are dropped follows from (seed, step, place in y).
    step : int64 (1,)
        On the GPU, so that a replayed graph draws other numbers; see ``advance``.
    """
    check(y, "float32")
    check(step, "int64", (1,))
    # Kept are random integers below the threshold, of 2**32: exactly all at p = 0, none at p = 1.
    threshold = round((1.0 - p) * 2**32)
    scale = 1.0 / (1.0 - p) if p < 1.0 else 0.0
    launch(
        "dropout", "dropout", (), *flat(-(-y.size // 4)), y, np.int64(y.size), np.uint64(seed), step,
        np.uint64(threshold), np.float32(scale),
    )  # fmt: skip
