"""How feature maps lie in memory: three layouts, each as one of the algorithms likes it.

Symbols, here and in all files of this folder:

    N  images in the batch      H W  height and width      C  channels of the input     O  of the output
    n  images in a chunk of the batch (work is divided by chunks)
    TH TW  tiles that cover the height and the width

``Plain`` is (N, H, W, C), as everywhere else in scratchnet. ``Pixels`` is (H, W, N, C): for maps of few
pixels, where all images' values of one pixel make one matrix (N, C). ``Tiles`` is for Winograd's algorithm,
which works on tiles of 4 x 4 or of 6 x 6 pixels. With 4::

    one chunk:  [ 4*TH + 2 rows,  4 columns of a tile,  TW tiles,  n images,  C channels ]

    a row of 12 pixels         0 1 2 3 | 4 5 6 7 | 8 9 10 11           column 4*t + j of the image is
    lies in memory as          0 4 8 | 1 5 9 | 2 6 10 | 3 7 11         column j of tile t, n * C numbers
                               j = 0   j = 1   j = 2    j = 3

So "column 1 of every tile of this row, of all images and channels" is a vector of TW * n * C neighbouring
numbers, about 4000 of them at every level of VGG, and a transform that combines the columns of a tile is a
product of a tiny matrix with a few such vectors. Above and below stands a row of zeros, the padding of a
3 x 3 convolution; left and right need none, see ``winograd/``. Which kernel writes these zeros, and those
beyond the image where H or W are no multiples of 4 (or 6), is the subject of ``padding.py``.

A gradient lies like the map that it belongs to, without the rows above and below. It is masked where it is
written, see ``masking.py``.

Kernels that write a map need not know its layout. They hold a region of pixels, as a view with the axes

    region [R, S, S, T, n, C]       region[r, i, j, t] is the pixel in row  row + S*r + i  and column  S*t + j

where S is 4 or 6 for tiles, 2 or 3 for pooled tiles, otherwise 1: R rows of squares of S x S pixels, T in
each row. They ask ``pairs`` for views of equal shapes, of the map and of the region, to copy between.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import lcm, prod
from typing import Any, ClassVar

import numpy as np

from scratchnet.plans import kernel
from scratchnet.plans.cpu.masking import Mask

Pair = tuple[np.ndarray, np.ndarray]


class Map(kernel.Map):
    """A feature map and, in training, its gradient; ``chunks`` are how kernels divide the batch.

    ``mask`` is what its gradient is multiplied by where it is written.
    """

    source: Map | None

    def __init__(
        self,
        shape: tuple[int, ...],
        chunks: list[range],
        dtype: Any,
        mask: Mask | None = None,
        source: Map | None = None,
    ):
        super().__init__(shape, dtype, source)
        self.chunks, self.mask = chunks, mask or Mask()
        self.N = shape[0]
        self.H, self.W, self.C = shape[1:] if len(shape) == 4 else (1, 1, prod(shape[1:]))

    def pairs(self, images: range, row: int, region: np.ndarray, *, grad: bool = False) -> Iterator[Pair]:
        """Yield views of the map, or of its gradient, and of a region [R, S, S, T, n, C], of equal shapes.

        Together they are all of the region's pixels, of its n images and from this row on, but for those that
        lie outside the image.
        """
        R, S, _, T = region.shape[:4]
        pixels = self.pixels(images, grad=grad)
        for i in range(S):
            for j in range(S):
                own = pixels[row + i :: S, j::S][:R, :T]  # (R, T, n, C), fewer at the edges
                yield own, region[: own.shape[0], i, j, : own.shape[1]]

    def pixels(self, images: range, *, grad: bool = False) -> np.ndarray:
        """Return a view (H, W, n, C) of some images, where every pixel has a place of its own on two axes."""
        raise NotImplementedError

    def put(self, x: np.ndarray) -> None:
        """Copy an array, as the layers see it, into the map, now."""
        for own, region in self.pairs(range(self.N), 0, as_region(x)):
            own[...] = region

    def take_gradient(self) -> np.ndarray:
        """Return a copy of the gradient as the layers see it, now."""
        dx = np.empty(self.shape, self.dtype)
        for own, region in self.pairs(range(self.N), 0, as_region(dx), grad=True):
            region[...] = own
        return dx


class Plain(Map):
    """(N, H, W, C), or (N, features)."""

    layout = "plain"
    put, take_gradient = kernel.Map.put, kernel.Map.take_gradient

    def memory_shape(self, *, grad: bool = False) -> tuple[int, ...]:  # noqa: D102
        return (self.N, self.H, self.W, self.C)

    def pixels(self, images: range, *, grad: bool = False) -> np.ndarray:  # noqa: D102
        return (self.grad if grad else self.data)[images.start : images.stop].transpose(1, 2, 0, 3)

    @property
    def rows(self) -> np.ndarray:
        """The map as a matrix (N, H*W*C)."""
        return self.data.reshape(self.N, -1)

    @property
    def grad_rows(self) -> np.ndarray:
        """Its gradient as a matrix (N, H*W*C)."""
        return self.grad.reshape(self.N, -1)


class Pixels(Map):
    """(H, W, N, C)."""

    layout = "pixels"

    def memory_shape(self, *, grad: bool = False) -> tuple[int, ...]:  # noqa: D102
        return (self.H, self.W, self.N, self.C)

    def pixels(self, images: range, *, grad: bool = False) -> np.ndarray:  # noqa: D102
        return (self.grad if grad else self.data)[:, :, images.start : images.stop]


class Tiles(Map):
    """One array [size*TH + 2, size, TW, n, C] for each chunk of the batch, all of them in one buffer."""

    size: ClassVar[int]  # of a tile, in either direction

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.TH, self.TW = -(-self.H // self.size), -(-self.W // self.size)

    def memory_shape(self, *, grad: bool = False) -> tuple[int, ...]:  # noqa: D102
        # Only the size counts: n images' worth of this memory is one chunk, in the chunk's own order.
        return (self.N, self.size * self.TH + (0 if grad else 2), self.size, self.TW, self.C)

    def chunk(self, c: int) -> np.ndarray:
        """Return chunk c of the map, [size*TH + 2, size, TW, n, C]."""
        return self._chunk(self.data, c)

    def grad_chunk(self, c: int) -> np.ndarray:
        """Return chunk c of the gradient, [size*TH, size, TW, n, C]."""
        return self._chunk(self.grad, c)

    def _chunk(self, memory: np.ndarray, c: int) -> np.ndarray:
        images = self.chunks[c]
        _, rows, _, TW, C = memory.shape
        return memory[images.start : images.stop].reshape(rows, self.size, TW, len(images), C)

    def pairs(self, images: range, row: int, region: np.ndarray, *, grad: bool = False) -> Iterator[Pair]:  # noqa: D102
        R, S, _, T = region.shape[:4]
        per_tile, period = self.size // S, lcm(self.size, S)  # squares of a row in one tile; in pixels
        for c, chunk in enumerate(self.chunks):
            both = range(max(chunk.start, images.start), min(chunk.stop, images.stop))
            if not both:
                continue
            rows = self.grad_chunk(c) if grad else self.chunk(c)[1:]
            rows = rows[: self.H, :, :, both.start - chunk.start : both.stop - chunk.start]
            part = region[:, :, :, :, both.start - images.start : both.stop - images.start]
            inside = row + S * R <= self.H and self.size * self.TW == self.W == S * T
            if inside and period == self.size:  # then one pair has it all: column j of square q of each tile
                own = rows[row : row + S * R]
                yield (
                    own.reshape(R, S, per_tile, S, self.TW, *own.shape[-2:]),  # [R, i, q, j, tile, n, C]
                    part.reshape(R, S, S, self.TW, per_tile, *own.shape[-2:]).transpose(0, 1, 4, 2, 3, 5, 6),
                )
                continue
            for i in range(S):
                for column in range(period):  # column + k * period = size * tile + c = S * q + j
                    (tile, c), (q, j) = divmod(column, self.size), divmod(column, S)
                    count = min(len(range(q, T, period // S)), len(range(column, self.W, period)))
                    own = rows[row + i :: S, c, tile :: period // self.size][:R, :count]  # (R, count, n, C)
                    yield own, part[: own.shape[0], i, j, q :: period // S][:, :count]


class Tiles4(Tiles):
    """With tiles of 4 x 4 pixels."""

    layout, size = "tiles4", 4


class Tiles6(Tiles):
    """With tiles of 6 x 6 pixels."""

    layout, size = "tiles6", 6


LAYOUTS = {kind.layout: kind for kind in (Plain, Pixels, Tiles4, Tiles6)}
TILES = {kind.layout: kind.size for kind in (Tiles4, Tiles6)}


def as_region(x: np.ndarray) -> np.ndarray:
    """Return images (n, H, W, C) as a region [H, 1, 1, W, n, C], a view."""
    return x.transpose(1, 2, 0, 3)[:, None, None]
