"""Launches of ``kernels/mask.cu``: back through ReLU, dropout and pooling, with the gradient of the bias."""

from __future__ import annotations

import numpy as np

from scratchnet.backend import Array
from scratchnet.plans.cuda.launch.common import OPERANDS, check, check_pixels, launch_rows
from scratchnet.plans.cuda.launch.sums import sums_shape


def mask(
    dy: Array, y: Array | None, dz: Array | None, partial: Array | None = None, *, factor: float = 1.0
) -> None:
    """Write to dz, operands: factor * dy where y > 0, and 0 elsewhere; and partial sums of it over its rows.

    All of them are (..., C). y is what the ReLU returned; None: there was none, and dz is factor * dy. dz may
    be ``dy`` itself; None: only the sums are wanted. ``partial``, ``sums_shape(R, C)``, gets sums of float32
    numbers, also where dz is bfloat16; see ``finish_sums``. ``factor`` is 1 / (1 - p) after a dropout, which
    has set y to 0 where it drops.
    """
    C = dy.shape[-1]
    rows = dy.size // C
    sums = sums_shape(rows, C)
    check(dy, "float32")
    check(y, "float32", dy.shape)
    check(dz, OPERANDS, dy.shape)
    check(partial, "float32", sums)
    numbers = np.float32(factor), np.int64(rows)
    launch_rows("mask", "mask", rows, C, (dy, y, dz, partial), *numbers, partial_sums=sums[0])


def unpool(dy: Array, code: Array, dz: Array, partial: Array | None = None) -> None:
    """Give each dy to the pixel of its window that won, and 0 to the others; and sum dz over rows, partially.

    dy is (N, H//2, W//2, C), and ``code``, of its shape, from ``epilogue_pool``. dz, operands (N, H, W, C),
    is written whole: also the last row and column of odd sizes, which are in no window. ``partial``,
    ``sums_shape(N * (H//2) * (W//2), C)``, is written as by ``mask``.
    """
    check(dz, OPERANDS, 4)
    N, H, W, C = dz.shape
    check_pixels(dz.shape)
    rows = N * (H // 2) * (W // 2)
    sums = sums_shape(rows, C)
    check(dy, "float32", (N, H // 2, W // 2, C))
    check(code, "uint8", dy.shape)
    check(partial, "float32", sums)
    launch_rows("mask", "unpool", rows, C, (dy, code, dz, partial), N, H, W, partial_sums=sums[0])
