"""What follows a convolution, while its result is still in the cache: max pooling, bias, activation, storing.

A kernel computes its output region by region, a few thousand numbers that lie as its algorithm makes them,
but always with four axes of which the middle ones are rows and columns of pixels::

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

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from scratchnet.plans.cpu.calls import Calls
from scratchnet.plans.cpu.kernel import Kernel, copy_pairs, first_of
from scratchnet.plans.cpu.layouts import as_region
from scratchnet.plans.memory import ALIGNMENT, Arena


@dataclass(frozen=True)
class Region:
    """Which pixels of a map are computed at a time."""

    form: str  # "tiles", "plain" or "pixels"
    images: range
    shape: tuple[int, int, int, int]  # the four axes
    row: int = 0  # the first: of tiles for tiles, of pixels for plain
    tiles: int = 1  # for tiles, TW

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

        ``x`` has this region's shape, or that after pooling.
        """
        n = len(self.images)
        if self.form == "plain":
            return self.row if x.shape == self.shape else self.row // 2, as_region(x)
        if self.form == "pixels":
            _, H, W, rest = x.shape
            return 0, x.reshape(H, 1, 1, W, n, rest // n)
        R, S, _, rest = x.shape
        return self.row * S, x.reshape(R, S, S, self.tiles, n, rest // (self.tiles * n))


class RegionMasks:
    """Outcomes of comparisons, kept from the forward to the backward pass: an array for each region.

    They lie in one buffer, since places for thousands of buffers would take long to find.
    """

    def __init__(
        self, arena: Arena, name: str, shapes: Mapping[Region, tuple[int, ...]], forward: int, backward: int
    ):
        self.shapes, self.starts, size = shapes, {}, 0
        for region, shape in shapes.items():
            self.starts[region] = size
            size += -(-prod(shape) // ALIGNMENT) * ALIGNMENT
        self.buffer = arena.reserve(name, (size,), np.bool_, forward, backward)

    def __getitem__(self, region: Region) -> np.ndarray:
        start, shape = self.starts[region], self.shapes[region]
        return self.buffer.array[start : start + prod(shape)].reshape(shape)


class Epilogue:
    """Pooling, bias, activation and storing of a kernel's output, and back, as far as its group has them.

    The bias is added to the last axis of a region, as much of it as that has.
    """

    def __init__(self, kernel: Kernel, bias: np.ndarray | None = None):
        self.kernel, self.output, self.bias = kernel, kernel.output, bias
        self.activation, self.pool = kernel.activation, kernel.group.pool is not None
        self.right: RegionMasks | None = None
        self.lower: RegionMasks | None = None

    def reserve(self, arena: Arena, regions: list[Region], forward: int, backward: int | None) -> None:
        """Ask for scratch, and for the masks, which live until the backward pass."""
        if not self.pool:
            return
        sides, pooled = {r: r.sides for r in regions}, {r: r.pooled for r in regions}
        sizes = {"sides": (max(map(prod, sides.values())),), "pooled": (max(map(prod, pooled.values())),)}
        self.scratch = self.kernel.per_pass(arena, sizes, forward, backward)
        if backward is not None:
            self.right = RegionMasks(arena, "right", sides, forward, backward)
            self.lower = RegionMasks(arena, "lower", pooled, forward, backward)

    def record_forward(self, do: Calls, worker: int, region: Region, y: np.ndarray) -> None:
        """Record what becomes of a region ``y`` of the convolution's result; ``y`` is overwritten."""
        if self.pool:
            y = self._pool(do, worker, region, y)
        self.record_activation(do, y)
        row, pixels = region.pixels(y)
        copy_pairs(do, self.output.pairs(region.images, row, pixels), to_map=True)

    def record_activation(self, do: Calls, y: np.ndarray) -> None:
        """Record y = f(y + bias), as far as there is a bias and an activation f, in place."""
        if self.bias is not None:
            do(np.add, y, self.bias[: y.shape[-1]], out=y)
        if self.activation is not None:
            self.activation.record_forward(do, y)

    def record_backward(self, do: Calls, worker: int, region: Region, dy: np.ndarray) -> None:
        """Record the gradient ``dy`` with respect to the same region of the convolution's result."""
        g = first_of(self.scratch[1]["pooled"][worker], *region.pooled) if self.pool else dy
        row, pixels = region.pixels(g)
        pairs = list(self.output.pairs(region.images, row, pixels, grad=True))
        if sum(in_region.size for _, in_region in pairs) < g.size:
            do.copy(0, out=g)  # what lies outside the image has no gradient
        copy_pairs(do, pairs, to_map=False)
        if self.pool:
            self._unpool(do, worker, region, g, dy)

    def _pool(self, do: Calls, worker: int, region: Region, y: np.ndarray) -> np.ndarray:
        sides = first_of(self.scratch[0]["sides"][worker], *region.sides)
        pooled = first_of(self.scratch[0]["pooled"][worker], *region.pooled)
        rows, columns = sides.shape[1], 2 * sides.shape[2]
        left, right = y[:, :rows, 0:columns:2], y[:, :rows, 1:columns:2]
        upper, lower = sides[:, 0::2], sides[:, 1::2]
        if self.right is not None:
            do(np.greater, right, left, out=self.right[region])
        do(np.maximum, left, right, out=sides)
        if self.lower is not None:
            do(np.greater, lower, upper, out=self.lower[region])
        do(np.maximum, upper, lower, out=pooled)
        return pooled

    def _unpool(self, do: Calls, worker: int, region: Region, g: np.ndarray, dy: np.ndarray) -> None:
        assert self.right is not None and self.lower is not None
        sides = first_of(self.scratch[1]["sides"][worker], *region.sides)
        rows, columns = sides.shape[1], 2 * sides.shape[2]
        upper, lower = sides[:, 0::2], sides[:, 1::2]
        do(np.multiply, g, self.lower[region], out=lower)
        do(np.subtract, g, lower, out=upper)
        left, right = dy[:, :rows, 0:columns:2], dy[:, :rows, 1:columns:2]
        do(np.multiply, sides, self.right[region], out=right)
        do(np.subtract, sides, right, out=left)
        if rows < dy.shape[1]:  # an odd row or column at the end is in no window
            do.copy(0, out=dy[:, rows:])
        if columns < dy.shape[2]:
            do.copy(0, out=dy[:, :, columns:])
