"""Planes side by side in memory, spread over the cache.

A place in a cache follows from the lowest bits of an address, so numbers that lie a power of two apart
compete for the same few places. Sizes of layers are powers of two, and a transform reads or writes up to 36
planes side by side: with planes one straight after the other it takes two and a half times as long. Here they
begin an odd number of cache lines apart.
"""

from __future__ import annotations

from math import prod

import numpy as np

from scratchnet.plans.memory import ALIGNMENT


def room_for(planes: int, size: int) -> int:
    """Return how many float32 numbers ``in_planes`` needs for so many planes of ``size`` numbers each.

    Examples
    --------
    >>> room_for(36, 512 * 64) / (36 * 512 * 64)
    1.00048828125
    """
    return planes * _plane_stride(size)


def in_planes(memory: np.ndarray, *shape: int) -> np.ndarray:
    """Return the beginning of float32 ``memory`` as an array whose first two axes are planes.

    All in one plane lies together: it may be seen in other shapes without a copy, and so may the planes.

    Examples
    --------
    >>> memory = np.zeros(room_for(36, 32 * 64), np.float32)
    >>> planes = in_planes(memory, 6, 6, 32, 64)
    >>> planes.shape, planes.strides
    ((6, 6, 32, 64), (49536, 8256, 256, 4))
    """
    rows, columns, *plane = shape
    size, step = prod(plane), _plane_stride(prod(plane))
    return memory.reshape(-1)[: rows * columns * step].reshape(rows, columns, step)[..., :size].reshape(shape)


def _plane_stride(size: int) -> int:
    """Return how many numbers lie between the beginnings of two planes."""
    line = ALIGNMENT // np.dtype(np.float32).itemsize
    return (-(-size // line) | 1) * line
