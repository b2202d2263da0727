"""Launches of ``kernels/operands.cu``: numbers as matrix products read them."""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchnet.backend import Array
from scratchnet.plans.cuda.launch.common import OPERANDS, check, flat, macros, pack_width
from scratchnet.plans.cuda.launch.compiling import launch


def operand_dtype(precision: str) -> np.dtype[Any]:
    """Return the dtype of what products read: float32, or for "bf16" uint16, which holds bfloat16's bits.

    Examples
    --------
    >>> operand_dtype("bf16")
    dtype('uint16')
    """
    return np.dtype("uint16" if precision == "bf16" else "float32")


def cast(x: Array, out: Array) -> None:
    """Round float32 numbers to ``out``, as many operands: to the nearest, ties to even."""
    check(x, "float32")
    check(out, OPERANDS)
    if out.size != x.size:
        raise ValueError(f"expected {x.size} operands to write, got {out.size}")
    wide = pack_width(x.size, x, out)
    launch("operands", "cast", macros(wide, out), *flat(x.size // wide), x, out, np.int64(x.size // wide))
