"""Choosing: which algorithm for which layer, and how large its blocks are.

By rule where the shape decides, by a short measurement where the machine does, once a process. A measurement
hardly ever touches a result: it chooses among ways that gave the same bits on a sample, or one way has to win
by so much that two runs on one machine agree. (Tiles, runs, chunks and blocks are explained in ``cpu/``.)

=============================  =========================================================================
a convolution of               is computed by
=============================  =========================================================================
3 x 3, stride 1, padding 1     ``toeplitz`` if the image has 2 x 2 pixels;
                               ``few`` if it comes first, with at most four channels (a photograph) and
                               without pooling, and what is behind it wants tiles;
                               ``winograd`` from 3 x 3 pixels on, if neither side has fewer than 4 channels;
                               not for inference with only a few tiles, where reading the weights is most of
                               the work, and Winograd's algorithm makes them four times as large
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

from scratchnet.plans.cpu.blocks import SMALL, WHOLE, BlockShape, product
from scratchnet.plans.cpu.calls import Calls, split_evenly
from scratchnet.plans.grouping import Group
from scratchnet.workers import one_blas_thread

ALGORITHMS = ("auto", "im2col")
MAX_FIRST_LAYER_CHANNELS = 4  # channels of a photograph, and one more
MAX_TILES_FOR_IM2COL = 8

# Winograd's transforms want runs of this many numbers: long enough for a matrix product with 6 x 6 to be
# fast, short enough for all 36 of a tile to stay in the second-level cache.
RUN = 4096

# What is measured: matrices of at most LONGEST rows and columns, in stacks of together STACK multiply-adds.
LONGEST, STACK = 512, 100_000_000
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
    if i == 0 and C <= MAX_FIRST_LAYER_CHANNELS and group.pool is None and len(groups) > 1:
        behind = groups[1].kind
        if behind == "norm" or (
            behind == "conv" and algorithm_for(groups, 1, algorithm, dtype) == "winograd"
        ):
            return "few"
    tiles = group.input_shape[0] * -(-H // 4) * -(-W // 4)
    if (
        min(H, W) < 3
        or min(C, conv.out_channels) < 4
        or (not conv.training and tiles <= MAX_TILES_FOR_IM2COL)
    ):
        return "im2col"
    return "winograd"


def images_per_chunk(N: int, width: int, channels: int, workers: int) -> list[range]:
    """Divide a batch into chunks: so many images that a run of the first large map has RUN numbers.

    At the later levels of VGG, where maps are half as wide and have twice the channels, runs stay as long.

    Parameters
    ----------
    N : int
        Images in the batch.
    width, channels : int
        Of the first map that comes in tiles.
    workers : int
        Each gets as many chunks as the others, if there are enough images.

    Examples
    --------
    >>> images_per_chunk(128, width=32, channels=64, workers=2)[:2], len(images_per_chunk(128, 32, 64, 2))
    ([range(0, 8), range(8, 16)], 16)
    >>> images_per_chunk(7, width=224, channels=64, workers=2)
    [range(0, 1), range(1, 2), range(2, 3), range(3, 4), range(4, 5), range(5, 6), range(6, 7)]
    """
    n = max(1, round(RUN / (-(-width // 4) * channels)))
    count = -(-N // n)
    if count % workers:
        count = min(N, count + workers - count % workers)
    return [images for images in split_evenly(N, count) if images]


def choose_block_shape(a: np.ndarray, b: np.ndarray, limit: int) -> BlockShape:
    """Return how to cut the product of two (stacks of) matrices into blocks.

    Parameters
    ----------
    a : array (..., M, K)
    b : array (..., K, N)
    limit : int
        From ``block_limit``.

    Examples
    --------
    >>> choose_block_shape(np.ones((64, 32), "float32"), np.ones((32, 64), "float32"), limit=0)
    BlockShape(limit=0, columns=64)
    """
    if not limit:
        return WHOLE
    M, K, N = min(a.shape[-2], LONGEST), a.shape[-1], min(b.shape[-1], LONGEST)
    by_columns = a.strides[-2] < a.strides[-1], b.strides[-2] < b.strides[-1]
    return _fastest_block_shape(M, K, N, by_columns, a.dtype, limit)


@functools.cache
def _fastest_block_shape(
    M: int, K: int, N: int, by_columns: tuple[bool, bool], dtype: np.dtype, limit: int
) -> BlockShape:
    """Measure the cuts that give the same bits as the usual one, and return the fastest.

    Another one than the usual must win by a twentieth.
    """
    usual = BlockShape(limit)
    stack = max(1, min(36, STACK // (M * K * N)))
    draw = np.random.default_rng(0).standard_normal
    a, b = draw((stack, M, K)).astype(dtype), draw((stack, K, N)).astype(dtype)
    if by_columns[0]:
        a = np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2)
    if by_columns[1]:
        b = np.ascontiguousarray(b.swapaxes(1, 2)).swapaxes(1, 2)
    out, expected = np.empty((2, stack, M, N), dtype)
    with one_blas_thread():
        product(do := Calls(), a, b, out=expected, block_shape=usual)
        do.run()
        steps = {}
        for block_shape in (
            usual,
            BlockShape(limit, 32),
            BlockShape(limit, 16),
            BlockShape(limit // 2),
            WHOLE,
        ):
            product(do := Calls(), a, b, out=out, block_shape=block_shape)
            do.run()
            if (out == expected).all():
                steps[block_shape] = do
        seconds = dict.fromkeys(steps, float("inf"))
        for _ in range(3):  # in turns, so that whatever else the machine does hits all of them
            for block_shape, do in steps.items():
                seconds[block_shape] = min(seconds[block_shape], _seconds(do))
    seconds[usual] *= 0.95
    return min(seconds, key=seconds.__getitem__)


@functools.cache
def block_limit() -> int:
    """Return the largest M * N * K of a block in a stack of small products, 0 where whole ones are faster.

    Known for OpenBLAS on processors with AVX-512; otherwise measured on a typical product of Winograd's
    algorithm. Blocks must win by a fifth: they round in another way.
    """
    with one_blas_thread():
        libraries = [i for i in threadpool_info() if i["user_api"] == "blas" and "numpy" in i["filepath"]]
        if any(i.get("architecture") in ARCHITECTURES_WITH_SMALL_KERNELS for i in libraries):
            return SMALL
        a, b, out = (np.ones((6, 256, 256), np.float32) for _ in range(3))
        product(blocks := Calls(), a, b, out=out, block_shape=BlockShape(SMALL))
        product(whole := Calls(), a, b, out=out, block_shape=WHOLE)
        seconds = [min(_seconds(do) for _ in range(5)) for do in (blocks, whole)]
        return SMALL if 1.2 * seconds[0] < seconds[1] else 0


def _seconds(do: Calls) -> float:
    start = perf_counter()
    do.run()
    return perf_counter() - start
