"""Launches of ``kernels/sums.cu``: sums over rows, in two stages."""

from __future__ import annotations

from scratchnet.backend import Array
from scratchnet.plans.cuda.launch.common import by_column, check
from scratchnet.plans.cuda.launch.compiling import launch

# A sum over rows is made of at most so many partial sums, of at least so many rows each.
MAX_PARTIAL_SUMS, MIN_ROWS = 512, 64


def sums_shape(rows: int, channels: int) -> tuple[int, int]:
    """Return the shape (partial sums, C) of an array for the partial sums of ``rows`` rows.

    Which rows a partial sum has follows from these two numbers alone, so the same sums have the same bits on
    every GPU.

    Examples
    --------
    >>> sums_shape(128 * 32 * 32, 64)
    (512, 64)
    """
    return max(1, min(MAX_PARTIAL_SUMS, rows // MIN_ROWS)), channels


def finish_sums(partial: Array, out: Array) -> None:
    """Write to ``out`` (C,) the sum of ``partial`` (any number, C), of all chunks, always in order."""
    check(partial, "float32", 2)
    count, C = partial.shape
    check(out, "float32", (C,))
    launch("sums", "finish_sums", (), *by_column(C), partial, out, count, C)
