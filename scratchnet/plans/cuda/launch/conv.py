"""Launches of ``kernels/conv.cu``: convolution as one matrix product."""

from __future__ import annotations

from math import gcd

import numpy as np

from scratchnet.backend import Array
from scratchnet.plans.cuda.launch.common import OPERANDS, by_channel, check, check_pixels, macros, pack_width
from scratchnet.plans.cuda.launch.compiling import launch


def im2col(x: Array, columns: Array, kernel_size: int, stride: int = 1, padding: int = 0) -> None:
    """Copy every patch of x (N, H, W, C) to a row of ``columns``, operands, as ``functional.im2col`` does.

    Where rows are longer than a patch, the rest of them becomes zero.
    """
    check(x, "float32", 4)
    sizes, rows, C = geometry(x.shape, kernel_size, stride, padding)
    width = max(columns.shape[-1], kernel_size * kernel_size * C)
    check(columns, OPERANDS, (rows, width))
    wide = pack_width(gcd(C, width), x, columns)
    launch("conv", "im2col", macros(wide, columns), *by_channel(rows, C // wide), x, columns, *sizes, width)


def col2im(columns: Array, dx: Array, kernel_size: int, stride: int = 1, padding: int = 0) -> None:
    """Write to dx (N, H, W, C) the sum of all patches, the rows of ``columns``: the adjoint of ``im2col``."""
    check(dx, "float32", 4)
    sizes, rows, C = geometry(dx.shape, kernel_size, stride, padding)
    check(columns, "float32", (rows, kernel_size * kernel_size * C))
    wide = pack_width(C, dx, columns)
    launch("conv", "col2im", macros(wide), *by_channel(dx.size // C, C // wide), columns, dx, *sizes)


def geometry(shape: tuple[int, ...], K: int, S: int, P: int) -> tuple[list[np.int32], int, int]:
    """Return N, H, W, C, OH, OW, K, S, P as kernels take them, the rows of the column matrix, and C.

    The kernels count rows in 32 bits (and elements in 64): too many of them raise ValueError.
    """
    N, H, W, C = shape
    OH, OW = (H + 2 * P - K) // S + 1, (W + 2 * P - K) // S + 1
    check_pixels((N, H, W), (N, OH, OW))
    return [np.int32(n) for n in (N, H, W, C, OH, OW, K, S, P)], N * OH * OW, C
