"""Launches of ``kernels/dropout.cu``: dropout with random numbers that are computed where they are used."""

from __future__ import annotations

import numpy as np

from scratchnet.backend import Array
from scratchnet.plans.cuda.launch.common import check, flat
from scratchnet.plans.cuda.launch.compiling import launch


def dropout(y: Array, p: float, seed: int, step: Array) -> None:
    """Set each number of y to 0 with probability p, and scale the others by 1 / (1 - p), in place.

    Which numbers are dropped follows from (seed, step, place in y): the layer's ``seed``, from 0 to 2**64 -
    1, and ``step``, int64 (1,), on the GPU, so that a replayed graph draws other numbers; see ``advance``.

    Backward, after a ReLU, is ``mask(dy, y, dz, factor=1 / (1 - p))``; without one, this function again, on
    dy: the same (seed, step) drop the same places.
    """
    check(y, "float32")
    check(step, "int64", (1,))
    # Kept are random integers below the threshold, of 2**32: exactly all at p = 0, none at p = 1.
    threshold = np.uint64(round((1.0 - p) * 2**32))
    scale = np.float32(1.0 / (1.0 - p) if p < 1.0 else 0.0)
    arguments = y, np.int64(y.size), np.uint64(seed), step, threshold, scale
    launch("dropout", "dropout", (), *flat(-(-y.size // 4)), *arguments)
