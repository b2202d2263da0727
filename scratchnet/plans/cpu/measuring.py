"""Measured choices: which block shape of a matrix product is fastest on this machine.

One short measurement per process and per shape of matrices. It changes no result: it chooses among shapes
that give the same bits, so two runs on one machine agree, however busy it is.
"""

from __future__ import annotations

import functools
from time import perf_counter

import numpy as np
from threadpoolctl import threadpool_info

from scratchnet.plans.cpu.blocks import SMALL, WHOLE, BlockShape, product
from scratchnet.plans.cpu.calls import Calls
from scratchnet.workers import one_blas_thread

ARCHITECTURES_WITH_SMALL_KERNELS = ("SkylakeX", "Cooperlake", "Sapphirerapids")
# What is measured: matrices of at most LONGEST rows and columns, LARGEST_STACK of them (as many as Winograd's
# algorithm has) or fewer, of STACK multiply-adds together, which take a few milliseconds.
LONGEST, LARGEST_STACK, STACK = 512, 36, 100_000_000
LEAST_GAIN = 0.05  # deviate from the default shape only for a gain that repeated measurements agree on


def choose_block_shape(a: np.ndarray, b: np.ndarray, limit: int) -> BlockShape:
    """Return the block shape for the product of (stacks of) matrices; ``limit`` is from ``block_limit``.

    Examples
    --------
    >>> choose_block_shape(np.ones((64, 32), "float32"), np.ones((32, 64), "float32"), limit=0)
    BlockShape(limit=0, columns=64)
    """
    if not limit:
        return WHOLE
    M, K, N = a.shape[-2], a.shape[-1], b.shape[-1]
    by_columns = a.strides[-2] < a.strides[-1], b.strides[-2] < b.strides[-1]
    fits = max(M, N) <= LONGEST  # else the sample says nothing of the bits of the whole product
    return _fastest_block_shape(min(M, LONGEST), K, min(N, LONGEST), by_columns, a.dtype, limit, fits)


@functools.cache
def _fastest_block_shape(
    M: int, K: int, N: int, by_columns: tuple[bool, bool], dtype: np.dtype, limit: int, fits: bool
) -> BlockShape:
    """Measure the shapes that give the same bits as the default, and return the fastest."""
    default = BlockShape(limit)
    others = [BlockShape(limit, 32), BlockShape(limit, 16), BlockShape(limit // 2)] + [WHOLE] * fits
    stack = max(1, min(LARGEST_STACK, STACK // (M * K * N)))
    draw = np.random.default_rng(0).standard_normal
    a, b = draw((stack, M, K)).astype(dtype), draw((stack, K, N)).astype(dtype)
    if by_columns[0]:
        a = np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2)
    if by_columns[1]:
        b = np.ascontiguousarray(b.swapaxes(1, 2)).swapaxes(1, 2)
    out, expected = np.empty((2, stack, M, N), dtype)
    with one_blas_thread():
        product(do := Calls(), a, b, out=expected, block_shape=default)
        do.run()
        calls = {}
        for block_shape in (default, *others):
            product(do := Calls(), a, b, out=out, block_shape=block_shape)
            do.run()
            if (out == expected).all():
                calls[block_shape] = do
        seconds = dict.fromkeys(calls, float("inf"))
        for _ in range(3):  # in turns, so that other work of the machine slows all of them
            for block_shape, do in calls.items():
                seconds[block_shape] = min(seconds[block_shape], _seconds(do))
    seconds[default] *= 1 - LEAST_GAIN
    return min(seconds, key=seconds.__getitem__)


@functools.cache
def block_limit() -> int:
    """Return the largest M * N * K of a block in a stack of small products, 0 where products stay whole.

    That follows from the processor for which OpenBLAS has chosen its kernels, and from no measurement: blocks
    round differently, and two runs on one machine must compute the same.
    """
    libraries = [i for i in threadpool_info() if i["user_api"] == "blas" and "numpy" in i["filepath"]]
    has_small_kernels = any(i.get("architecture") in ARCHITECTURES_WITH_SMALL_KERNELS for i in libraries)
    return SMALL if has_small_kernels else 0


def _seconds(do: Calls) -> float:
    start = perf_counter()
    do.run()
    return perf_counter() - start
