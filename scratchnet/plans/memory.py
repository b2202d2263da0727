"""Memory: all buffers of a plan lie in one block, where those that are never live at the same time overlap.

A training step consists of the forward passes of all groups, first to last, then their backward passes, last
to first; these are the steps of a plan's timeline. With three groups::

    step           0 forward   1 forward   2 forward   3 backward  4 backward  5 backward
    group                0           1           2           2           1           0
    map 0 -> 1       ############################################################   until 1 is back
    map 1 -> 2                   ####################################
    gradient 1 -> 2                                      ########################
    gradient 0 -> 1                                                  ########################
    scratch of 1                     ###                                 ###

A buffer is live from its first use to its last. Kernels reserve buffers; when all are known, offsets are
assigned: the largest first, each the lowest at which it overlaps no other buffer that is live when it is
(first fit, decreasing); then arrays are bound to them. Nothing here knows what the buffers are for. How many
there are depends on the network, not on the batch, so that large batches take no longer to place.

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

from scratchnet.backend import Array, array_module

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register


@dataclass(eq=False)
class Buffer:
    """An array that keeps its contents from step ``first_use`` to step ``last_use``, both included."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    first_use: int
    last_use: int
    offset: int = -1
    array: Any = None

    @property
    def nbytes(self) -> int:
        """Its size, rounded up to whole cache lines."""
        return -(-prod(self.shape) * self.dtype.itemsize // ALIGNMENT) * ALIGNMENT

    def interferes(self, other: Buffer) -> bool:
        """Tell whether there is a step at which both are live."""
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
        """Return a new buffer; its ``array`` is there after ``assign_offsets`` and ``bind``."""
        buffer = Buffer(name, tuple(shape), np.dtype(dtype), first_use, last_use)
        self.buffers.append(buffer)
        return buffer

    def assign_offsets(self) -> None:
        """Give every buffer its offset."""
        placed: list[Buffer] = []
        for buffer in sorted(self.buffers, key=lambda b: -b.nbytes):  # stable: the same offsets every time
            offset = 0
            for other in sorted((b for b in placed if b.interferes(buffer)), key=lambda b: b.offset):
                if offset + buffer.nbytes <= other.offset:
                    break
                offset = max(offset, other.offset + other.nbytes)
            buffer.offset = offset
            placed.append(buffer)
        self.size = max((b.offset + b.nbytes for b in self.buffers), default=0)

    def bind(self, block: Array) -> None:
        """Bind each buffer's array, a view into a block of at least ``size`` bytes."""
        for buffer in self.buffers:
            nbytes = prod(buffer.shape) * buffer.dtype.itemsize
            memory = block[buffer.offset : buffer.offset + nbytes]
            buffer.array = memory.view(buffer.dtype).reshape(buffer.shape)

    def release(self) -> None:
        """Let go of the block."""
        for buffer in self.buffers:
            buffer.array = None


class Workspace:
    """The block of memory that all plans of one network share."""

    _passes = count(1)
    _of_network: weakref.WeakKeyDictionary[Any, Workspace] = weakref.WeakKeyDictionary()

    def __init__(self) -> None:
        self.block: Array = np.empty(0, np.uint8)
        self.owner = 0  # the forward pass that wrote into it last: only its backward may follow
        self.lock = RLock()  # held by the plan that runs, or moves
        self.tenants: weakref.WeakSet[Any] = weakref.WeakSet()  # plans with views into the block

    @classmethod
    def of(cls, network: Any) -> Workspace:
        """Return the network's workspace, made when first asked for."""
        return cls._of_network.setdefault(network, cls())

    def take(self) -> int:
        """Make a new forward pass the owner, and return its number."""
        self.owner = next(self._passes)
        return self.owner

    def reserve(self, size: int, xp: Any = np) -> None:
        """Ensure the block has at least ``size`` bytes, as an array of the library ``xp``.

        Plans that hold the old one let go of it, so that there are never two; they move at their next
        forward pass.
        """
        if self.block.size < size or array_module(self.block) is not xp:
            for plan in list(self.tenants):
                plan.release()
            self.tenants.clear()
            self.block = np.empty(0, np.uint8)
            whole = xp.empty(size + ALIGNMENT, np.uint8)
            start = -(whole.ctypes.data if xp is np else whole.data.ptr) % ALIGNMENT
            self.block = whole[start : start + size]
            self.take()
