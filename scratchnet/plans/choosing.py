"""Choosing: which algorithm for which layer, and how large its blocks are.

By rule where the shape decides, by a short measurement where the machine does.

=============================  =========================================================================
a convolution of               is computed by
=============================  =========================================================================
3 x 3, stride 1, padding 1     ``toeplitz`` if the picture has 2 x 2 pixels;
                               ``few`` if it comes first, with at most four channels (a photograph), and
                               what is behind it wants tiles;
                               ``winograd`` from 3 x 3 pixels on, if neither side has fewer than 4 channels
anything else                  ``im2col``
float64, or if asked for       ``im2col``
=============================  =========================================================================
"""

from __future__ import annotations

import functools
from time import perf_counter
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from scratchnet.plans.grouping import Group
from scratchnet.plans.running import share
from scratchnet.workers import one_blas_thread

ALGORITHMS = ("auto", "im2col")
FEW = 4  # channels of a photograph, and one more

# Winograd's transforms want runs of this many numbers: long enough for a matrix product with 6 x 6 to be
# fast, short enough for all 36 of a tile to stay in the second-level cache.
RUN = 4096

# OpenBLAS's kernels for small matrices take M * N * K up to this, see ``cpu/blocks.py``.
SMALL = 1_000_000
ARCHITECTURES_WITH_SMALL_KERNELS = ("SkylakeX", "Cooperlake", "Sapphirerapids")


def algorithm_for(groups: list[Group], i: int, algorithm: str, dtype: Any) -> str:
    """Return the name of the algorithm for group i, a convolution, by the table above."""
    group = groups[i]
    conv = group.main
    _, H, W, C = group.input_shape
    usual = conv.kernel_size == 3 and conv.stride == 1 and conv.padding == 1
    if not usual or algorithm == "im2col" or np.dtype(dtype) != np.float32:
        return "im2col"
    if (H, W) == (2, 2):
        return "toeplitz"
    if i == 0 and C <= FEW and group.pool is None and len(groups) > 1:
        behind = groups[1].kind
        if behind == "norm" or (
            behind == "conv" and algorithm_for(groups, 1, algorithm, dtype) == "winograd"
        ):
            return "few"
    if min(H, W) < 3 or min(C, conv.out_channels) < 4:
        return "im2col"
    return "winograd"


def images_per_chunk(N: int, width: int, channels: int, lanes: int) -> list[range]:
    """Divide a batch into chunks: so many images that a run of the first large map has RUN numbers.

    At the later levels of VGG, where maps are half as wide and have twice the channels, runs stay as long.

    Parameters
    ----------
    N : int
        Images in the batch.
    width, channels : int
        Of the first map that comes in tiles.
    lanes : int
        Each gets as many chunks as the others, if there are enough images.

    Examples
    --------
    >>> images_per_chunk(128, width=32, channels=64, lanes=2)[:2], len(images_per_chunk(128, 32, 64, 2))
    ([range(0, 8), range(8, 16)], 16)
    >>> images_per_chunk(7, width=224, channels=64, lanes=2)
    [range(0, 1), range(1, 2), range(2, 3), range(3, 4), range(4, 5), range(5, 6), range(6, 7)]
    """
    n = max(1, round(RUN / (-(-width // 4) * channels)))
    count = -(-N // n)
    if count % lanes:
        count = min(N, count + lanes - count % lanes)
    return [images for images in share(N, count) if images]


@functools.cache
def block_limit() -> int:
    """Return the largest M * N * K of a block in a stack of small products, 0 where whole ones are faster.

    Known for OpenBLAS on processors with AVX-512; otherwise measured, once a process. Blocks must win by a
    fifth, so that two runs on one machine hardly ever decide differently.
    """
    with one_blas_thread():
        libraries = [i for i in threadpool_info() if i["user_api"] == "blas" and "numpy" in i["filepath"]]
        if any(i.get("architecture") in ARCHITECTURES_WITH_SMALL_KERNELS for i in libraries):
            return SMALL
        return SMALL if 1.2 * _seconds(SMALL) < _seconds(0) else 0


def _seconds(limit: int) -> float:
    """Time a typical product of Winograd's algorithm: 6 stacked (256, 256) (256, 256)."""
    from scratchnet.plans.cpu.blocks import product
    from scratchnet.plans.running import Steps

    a, b, out = (np.ones((6, 256, 256), np.float32) for _ in range(3))
    do = Steps()
    product(do, a, b, out=out, limit=limit)
    times = []
    for _ in range(5):
        start = perf_counter()
        do.run()
        times.append(perf_counter() - start)
    return min(times)
