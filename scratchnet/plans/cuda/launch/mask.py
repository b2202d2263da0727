"""Launches of ``kernels/mask.cu``: back through ReLU, dropout and pooling, with the gradient of the bias."""

from __future__ import annotations

import numpy as np

from scratchnet.backend import Array
from scratchnet.plans.cuda.launch.common import OPERANDS, by_channel, check, macros, or_null, pack_width
from scratchnet.plans.cuda.launch.compiling import launch
from scratchnet.plans.cuda.launch.sums import sums_shape


def mask(
    dy: Array, y: Array | None, dz: Array | None, partial: Array | None = None, *, factor: float = 1.0
) -> None:
    """Compute dz = factor * dy where y > 0, and 0 elsewhere; and partial sums of dz over its rows.

    Parameters
    ----------
    dy : float32 (..., C)
    y : float32 (..., C), or None
        What the ReLU returned. None: there was none, and dz is factor * dy.
    dz : operands (..., C), or None
        Written; may be ``dy`` itself. None: only the sums are wanted.
    partial : float32 ``sums_shape(R, C)``, or None
        Written: sums of float32 numbers, also where dz is bfloat16. See ``finish_sums``.
    factor : float
        1 / (1 - p) after a dropout, which has set y to 0 where it drops.
    """
    C = dy.shape[-1]
    rows = dy.size // C
    check(dy, "float32")
    if y is not None:
        check(y, "float32", dy.shape)
    if dz is not None:
        check(dz, OPERANDS, dy.shape)
    count = _check_partial(partial, rows, C)
    wide = pack_width(C, dy, y, dz, partial)
    launch(
        "mask", "mask", macros(wide, dz), *by_channel(rows, C // wide, count), dy, or_null(y), or_null(dz),
        or_null(partial), np.float32(factor), np.int64(rows), np.int32(C // wide),
    )  # fmt: skip


def unpool(dy: Array, code: Array, dz: Array, partial: Array | None = None) -> None:
    """Give each dy to the pixel of its window that won, and 0 to the others; and sum dz over rows, partially.

    Parameters
    ----------
    dy : float32 (N, H//2, W//2, C)
    code : uint8, shape of dy
        From ``epilogue_pool``.
    dz : operands (N, H, W, C)
        Written, also the last row and column of odd sizes, which are in no window.
    partial : float32 ``sums_shape(N * (H//2) * (W//2), C)``, or None
        Written, as by ``mask``.
    """
    check(dz, OPERANDS, 4)
    N, H, W, C = dz.shape
    check(dy, "float32", (N, H // 2, W // 2, C))
    check(code, "uint8", dy.shape)
    rows = N * (H // 2) * (W // 2)
    count = _check_partial(partial, rows, C)
    wide = pack_width(C, dy, dz, code, partial)
    launch(
        "mask", "unpool", macros(wide, dz), *by_channel(rows, C // wide, count), dy, code, dz,
        or_null(partial), np.int32(N), np.int32(H), np.int32(W), np.int32(C // wide),
    )  # fmt: skip


def _check_partial(partial: Array | None, rows: int, channels: int) -> int:
    """Check an array for partial sums; return how many there are."""
    shape = sums_shape(rows, channels)
    if partial is not None:
        check(partial, "float32", shape)
    return shape[0]
