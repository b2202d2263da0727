"""What follows a convolution, while its result is still in the cache: max pooling, bias, activation, storing.

A kernel computes its output block by block, a few thousand numbers that lie as its algorithm makes them, but
always with four axes of which the middle ones are rows and columns of pixels::

    tiles   (R tile rows, 4, 4, TW * n * C)       plain   (n, H, W, C)       pixels   (1, H, W, n * C)

Pooling compares neighbours along columns first, then along rows, and remembers the outcomes::

    a b      right = (b > a, d > c)      sides = (max(a, b), max(c, d))
    c d      lower = max(c, d) > max(a, b)                 pooled = the larger one of the sides

A strict comparison gives ties to the first of the window in reading order, as ``functional/pool.py`` does.
Backward, the gradient g of the window is handed down the same way, each time to exactly one of two::

    sides: lower * g to the lower side, the rest of g to the upper one;  then the same with right

A comparison is 0 or 1, so "the rest" is g minus 0 or g minus g: exact, and no case is left out.

Adding a bias preserves order, and so does an activation that increases; they commute with max pooling, and
come after it: they work on a quarter of the numbers. (Where adding the bias rounds two numbers to one, the
larger one before it still counts.)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from scratchnet.plans.cpu.calls import Calls
from scratchnet.plans.cpu.kernel import Kernel, copy_pairs, first_of
from scratchnet.plans.cpu.layouts import as_block
from scratchnet.plans.memory import Arena, Buffer


@dataclass(frozen=True)
class Block:
    """Which part of a map is computed at a time.

    Attributes
    ----------
    form : {"tiles", "plain", "pixels"}
    images : range
    shape : tuple of int
        The four axes.
    row : int
        The first row: of tiles for tiles, of pixels for plain.
    tiles : int
        For tiles, TW.
    """

    form: str
    images: range
    shape: tuple[int, int, int, int]
    row: int = 0
    tiles: int = 1

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    @property
    def pooled(self) -> tuple[int, int, int, int]:
        """Its shape after pooling."""
        a, rows, columns, rest = self.shape
        return (a, rows // 2, columns // 2, rest)

    @property
    def sides(self) -> tuple[int, int, int, int]:
        """Its shape when columns are pooled and rows are not."""
        a, rows, columns, rest = self.shape
        return (a, rows // 2 * 2, columns // 2, rest)

    def pixels(self, x: np.ndarray) -> tuple[int, np.ndarray]:
        """Return the first row of pixels, and the view [R, S, S, T, n, C] that ``Map.pairs`` takes.

        ``x`` has this block's shape, or that after pooling.
        """
        n = len(self.images)
        if self.form == "plain":
            return self.row if x.shape == self.shape else self.row // 2, as_block(x)
        if self.form == "pixels":
            _, H, W, rest = x.shape
            return 0, x.reshape(H, 1, 1, W, n, rest // n)
        R, S, _, rest = x.shape
        return self.row * S, x.reshape(R, S, S, self.tiles, n, rest // (self.tiles * n))


class Epilogue:
    """Pooling, bias, activation and storing of a kernel's output, and back.

    Parameters
    ----------
    kernel : Kernel
        Its group says whether there is an activation and a pooling.
    bias : array, optional
        What to add to the last axis of a block, or to as much of it as a block has.
    """

    def __init__(self, kernel: Kernel, bias: np.ndarray | None = None):
        self.kernel, self.output, self.bias = kernel, kernel.output, bias
        self.activation, self.pool = kernel.activation, kernel.group.pool is not None
        self.right: dict[Block, Buffer] = {}
        self.lower: dict[Block, Buffer] = {}

    def reserve(self, arena: Arena, blocks: list[Block], forward: int, backward: int | None) -> None:
        """Ask for scratch, and for the masks, which live until the backward pass."""
        if not self.pool:
            return
        for step in (forward,) if backward is None else (forward, backward):
            sides = max(prod(block.sides) for block in blocks)
            pooled = max(prod(block.pooled) for block in blocks)
            scratch = (
                self.kernel.per_worker(arena, "sides of windows", (sides,), step),
                self.kernel.per_worker(arena, "pooled", (pooled,), step),
            )
            if step == forward:
                self.forward_scratch = scratch
            else:
                self.backward_scratch = scratch
        if backward is not None:
            for block in blocks:
                self.right[block] = arena.reserve("right", block.sides, np.bool_, forward, backward)
                self.lower[block] = arena.reserve("lower", block.pooled, np.bool_, forward, backward)

    def record_forward(self, do: Calls, worker: int, block: Block, y: np.ndarray) -> None:
        """Record what becomes of a block ``y`` of the convolution's result; ``y`` is overwritten."""
        if self.pool:
            y = self._pool(do, worker, block, y)
        self.record_activation(do, y)
        row, pixels = block.pixels(y)
        copy_pairs(do, self.output.pairs(block.images, row, pixels), to_map=True)

    def record_activation(self, do: Calls, y: np.ndarray) -> None:
        """Record y = f(y + bias), as far as there is a bias and an activation f, in place."""
        if self.bias is not None:
            do(np.add, y, self.bias[: y.shape[-1]], out=y)
        if self.activation is not None:
            self.activation.record_forward(do, y)

    def record_backward(self, do: Calls, worker: int, block: Block, dy: np.ndarray) -> None:
        """Record the gradient ``dy`` with respect to the same block of the convolution's result."""
        g = first_of(self.backward_scratch[1][worker], *block.pooled) if self.pool else dy
        row, pixels = block.pixels(g)
        pairs = list(self.output.pairs(block.images, row, pixels, grad=True))
        if sum(in_block.size for _, in_block in pairs) < g.size:
            do.copy(0, out=g)  # what lies outside the image has no gradient
        copy_pairs(do, pairs, to_map=False)
        if self.pool:
            self._unpool(do, worker, block, g, dy)

    def _pool(self, do: Calls, worker: int, block: Block, y: np.ndarray) -> np.ndarray:
        sides = first_of(self.forward_scratch[0][worker], *block.sides)
        pooled = first_of(self.forward_scratch[1][worker], *block.pooled)
        rows, columns = sides.shape[1], 2 * sides.shape[2]
        left, right = y[:, :rows, 0:columns:2], y[:, :rows, 1:columns:2]
        upper, lower = sides[:, 0::2], sides[:, 1::2]
        if block in self.right:
            do(np.greater, right, left, out=self.right[block].array)
        do(np.maximum, left, right, out=sides)
        if block in self.lower:
            do(np.greater, lower, upper, out=self.lower[block].array)
        do(np.maximum, upper, lower, out=pooled)
        return pooled

    def _unpool(self, do: Calls, worker: int, block: Block, g: np.ndarray, dy: np.ndarray) -> None:
        sides = first_of(self.backward_scratch[0][worker], *block.sides)
        rows, columns = sides.shape[1], 2 * sides.shape[2]
        upper, lower = sides[:, 0::2], sides[:, 1::2]
        do(np.multiply, g, self.lower[block].array, out=lower)
        do(np.subtract, g, lower, out=upper)
        left, right = dy[:, :rows, 0:columns:2], dy[:, :rows, 1:columns:2]
        do(np.multiply, sides, self.right[block].array, out=right)
        do(np.subtract, sides, right, out=left)
        if rows < dy.shape[1]:  # an odd row or column at the end is in no window
            do.copy(0, out=dy[:, rows:])
        if columns < dy.shape[2]:
            do.copy(0, out=dy[:, :, columns:])
