"""Memory: every buffer of a plan lies in one block, and buffers that never live at the same time share it.

A training step is a row of steps: the forward of each group, first to last, then their backward passes,
last to first. With three groups::

    step           0 forward   1 forward   2 forward   3 backward  4 backward  5 backward
    group                0           1           2           2           1           0
    map 0 -> 1       ############################################################   until 1 is back
    map 1 -> 2                   ####################################
    gradient 1 -> 2                                      ########################
    gradient 0 -> 1                                                  ########################
    scratch of 1                     ###                                 ###

A buffer is asked for with the steps of its life, and when all are known each is given a place: the largest
first, each at the lowest address where it overlaps no other buffer that lives when it does (first fit,
decreasing). Nothing here knows what the buffers are for.

All plans of one network use one block, as large as the largest of them needs: only one of them runs at a
time, others that are called meanwhile wait for it.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from itertools import count
from math import prod
from threading import RLock
from typing import Any

import numpy as np

from scratchnet.backend import array_module

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register


@dataclass(eq=False)
class Buffer:
    """An array that will exist from step ``first_use`` to step ``last_use``, both included."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    first_use: int
    last_use: int
    offset: int = -1
    array: Any = None

    @property
    def nbytes(self) -> int:
        """Its size, rounded up to whole cache lines."""
        return -(-prod(self.shape) * self.dtype.itemsize // ALIGNMENT) * ALIGNMENT

    def lives_with(self, other: Buffer) -> bool:
        """Tell whether there is a step at which both exist."""
        return self.first_use <= other.last_use and other.first_use <= self.last_use


@dataclass
class Arena:
    """The buffers of one plan, and where they lie.

    Examples
    --------
    >>> arena = Arena()
    >>> a = arena.reserve("a", (1000,), "float32", first_use=0, last_use=1)
    >>> b = arena.reserve("b", (1000,), "float32", first_use=1, last_use=2)
    >>> c = arena.reserve("c", (1000,), "float32", first_use=2, last_use=3)
    >>> arena.assign_offsets()
    >>> a.offset == c.offset, a.offset == b.offset, arena.size < a.nbytes + b.nbytes + c.nbytes
    (True, False, True)
    """

    buffers: list[Buffer] = field(default_factory=list)
    size: int = 0

    def reserve(self, name: str, shape: tuple[int, ...], dtype: Any, first_use: int, last_use: int) -> Buffer:
        """Ask for an array: after ``assign_offsets`` and ``bind``, the ``.array`` of what is returned."""
        buffer = Buffer(name, tuple(shape), np.dtype(dtype), first_use, last_use)
        self.buffers.append(buffer)
        return buffer

    def assign_offsets(self) -> None:
        """Give every buffer its offset."""
        placed: list[Buffer] = []
        for buffer in sorted(self.buffers, key=lambda b: -b.nbytes):  # stable: the same places every time
            offset = 0
            for other in sorted((b for b in placed if b.lives_with(buffer)), key=lambda b: b.offset):
                if offset + buffer.nbytes <= other.offset:
                    break
                offset = max(offset, other.offset + other.nbytes)
            buffer.offset = offset
            placed.append(buffer)
        self.size = max((b.offset + b.nbytes for b in self.buffers), default=0)

    def bind(self, block: np.ndarray) -> None:
        """Make the arrays, as views into a block of bytes of at least ``size``."""
        for buffer in self.buffers:
            nbytes = prod(buffer.shape) * buffer.dtype.itemsize
            piece = block[buffer.offset : buffer.offset + nbytes]
            buffer.array = piece.view(buffer.dtype).reshape(buffer.shape)


class Workspace:
    """The block of memory that all plans of one network share.

    Attributes
    ----------
    block : array of bytes
    owner : int
        The number of the forward pass that wrote into it last: only that one can be followed by its backward.
    lock : RLock
        Held by the plan that runs.
    """

    _passes = count(1)

    _of_network: weakref.WeakKeyDictionary[Any, Workspace] = weakref.WeakKeyDictionary()

    def __init__(self) -> None:
        self.block = np.empty(0, np.uint8)
        self.owner = 0
        self.lock = RLock()

    @classmethod
    def of(cls, network: Any) -> Workspace:
        """Return the network's workspace, made when first asked for."""
        return cls._of_network.setdefault(network, cls())

    def take(self) -> int:
        """Make a new forward pass the owner, and return its number."""
        self.owner = next(self._passes)
        return self.owner

    def reserve(self, size: int, xp: Any = np) -> None:
        """See to it that the block has so many bytes, as an array of the library ``xp``.

        Plans that hold the old one notice at their next forward pass, and move.
        """
        if self.block.size < size or array_module(self.block) is not xp:
            self.block = np.empty(0, np.uint8)  # let go of the old one first
            whole = xp.empty(size + ALIGNMENT, np.uint8)
            start = -(whole.ctypes.data if xp is np else whole.data.ptr) % ALIGNMENT
            self.block = whole[start : start + size]
            self.take()
