"""Batch normalisation, with the ReLU and the pooling behind it.

Symbols: M values a channel, z the input (a convolution's output), mu and var their mean and variance over the
batch, w and b scale and shift, s = sqrt(var + eps). The mathematics is in ``functional/norm.py``::

    y  = (z - mu) * w / s + b
    dz = w / s * (dy - db / M - h * dw / M)    h = (z - mu) / s    db = sum of dy    dw = sum of dy * h

Forward that is three passes over z, since each needs a result of the one before over the whole batch: the
mean, the variance (the mean of squared differences; a difference of squares would cancel), and y, which is
rectified, pooled and stored as behind a convolution. Backward it is two: the sums, then dz.

Each pass goes block by block, see ``epilogue.py``. A block is seen in two ways, without a copy (but for the
mean of a map of pixels)::

    long   (rows, L)  L = a run of pixels times C    for z - mu, with mu tiled to (L,): a loop over only C
                                                     channels would be too short for NumPy to be fast
    tall   (Q, C)     Q = all of its pixels          for sums: ones (Q,) times (Q, C) is a matrix product

The sums of blocks are short, and are added up in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchnet.layers import Layer
from scratchnet.plans.cpu import padding
from scratchnet.plans.cpu.calls import BLOCK, Calls, Phase, reshaped, split_evenly
from scratchnet.plans.cpu.epilogue import Block, Epilogue
from scratchnet.plans.cpu.kernel import Kernel, first_of
from scratchnet.plans.cpu.layouts import Map, Tiles
from scratchnet.plans.kernel import Group
from scratchnet.plans.memory import Arena


class Norm(Kernel):
    """BatchNorm2d [+ ReLU] [+ 2 x 2 max pooling], from a map of any layout."""

    algorithm = "normalise"
    takes = "activation", "pool"
    role = "norm"
    input_layout = None

    @classmethod
    def may_follow(cls, group: Group, layer: Layer) -> bool:
        """Tell whether it can be folded into the convolution before it: where its statistics are fixed."""
        return not (group.main.training or layer.training)

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.norm, z = self.group.main, self.input
        self.M = z.N * z.H * z.W
        if self.context.training and self.M == 1:
            raise ValueError(
                f"{self.norm.label}: one value per channel has no variance to train with: {z.shape}"
            )
        self.epilogue = Epilogue(self)
        # Direct: y lies as z does, so y is made, and dy is read, where it belongs.
        self.direct = isinstance(z, Tiles) and isinstance(self.output, Tiles) and self.group.pool is None
        self.writes_whole_tiles = self.direct
        if isinstance(z, Tiles):
            parts = [
                [z.chunks[c] for c in some] for some in split_evenly(len(z.chunks), self.context.workers)
            ]
        else:
            parts = [[images] for images in split_evenly(z.N, self.context.workers) if images]
        self.blocks = [[b for images in part for b in self._blocks(images)] for part in parts]
        self.blocks += [[] for _ in range(self.context.workers - len(self.blocks))]
        self.every = [block for worker in self.blocks for block in worker]
        # What belongs to a channel, tiled to the longest run. By their names in the passes: mean = mu;
        # scale = w / s; shift = b; slope = dw / (M * s); rest = db / M.
        self.tiled = np.zeros((5, max(self._long(block)[1] for block in self.every)), self.context.dtype)

    def _blocks(self, images: range) -> list[Block]:
        """Cut some images into blocks that stay in the cache."""
        z, n = self.input, len(images)
        if isinstance(z, Tiles):
            run = z.TW * n * z.C
            R = max(1, BLOCK // (16 * run))
            return [Block("tiles", images, (min(R, z.TH - r), 4, 4, run), r, z.TW) for r in range(0, z.TH, R)]
        if z.layout == "pixels":
            return [Block("pixels", images, (1, z.H, z.W, n * z.C))]
        n = max(1, BLOCK // (z.H * z.W * z.C))
        parts = [range(a, min(a + n, images.stop)) for a in range(images.start, images.stop, n)]
        return [Block("plain", part, (len(part), z.H, z.W, z.C)) for part in parts]

    def _long(self, block: Block) -> tuple[int, int]:
        """Return the shape (rows, L) in which a block is seen long."""
        a, rows, columns, rest = block.shape
        return (a * rows, columns * rest) if block.form == "plain" else (a * rows * columns, rest)

    def _view(self, z: Map, block: Block, *, grad: bool = False) -> np.ndarray:
        """Return a block of a map, or of its gradient, as (rows, L)."""
        images = block.images
        if isinstance(z, Tiles):
            c = z.chunks.index(images)
            rows = z.grad_chunk(c) if grad else z.chunk(c)[1:]
            part = rows[4 * block.row : 4 * (block.row + block.shape[0])]
        elif block.form == "pixels":
            part = (z.grad if grad else z.data)[:, :, images.start : images.stop]
        else:
            part = (z.grad if grad else z.data)[images.start : images.stop]
        return reshaped(part, *self._long(block))

    def _clear(self, do: Calls, block: Block, x: np.ndarray) -> None:
        """Record zeros where a block of tiles has no pixels: there nothing may be counted."""
        if isinstance(self.input, Tiles):
            rows = reshaped(x, 4 * block.shape[0], 4, self.input.TW, -1)
            padding.clear_beyond(do, self.input, rows, 4 * block.row)

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        size = max(block.size for block in self.every)
        C, blocks = self.input.C, len(self.every)
        self.x = self.per_worker(arena, "block", (size,), forward)
        self.sums = arena.reserve("sums", (blocks, C), self.context.dtype, forward, forward)
        if backward is not None:
            self.dy = self.per_worker(arena, "dy", (size,), backward)
            self.h = self.per_worker(arena, "h", (size,), backward)
            self.back_sums = arena.reserve("sums", (2, blocks, C), self.context.dtype, backward, backward)
            self.reserve_mask(arena, backward)
        self.epilogue.reserve(arena, self.every, forward, backward)

    def _add_up(self, do: Calls, x: np.ndarray, out: np.ndarray) -> None:
        """Record the sum of a block (contiguous) over its pixels."""
        tall = reshaped(x, -1, self.input.C)  # (Q, C)
        do(np.matmul, np.ones(len(tall), x.dtype), tall, out=out)

    def _tile(self, **vectors: np.ndarray) -> None:
        """Set rows of ``tiled`` to (C,) repeated."""
        for name, vector in vectors.items():
            row = ("mean", "scale", "shift", "slope", "rest").index(name)
            self.tiled[row].reshape(-1, self.input.C)[...] = vector

    def record_forward(self) -> list[Phase]:  # noqa: D102
        mean, scale, shift, _, _ = self.tiled
        if self.context.training:
            average, variance = self.phase("mean"), self.phase("variance")
            phases = [average, self.phase("finish"), variance, self.phase("finish")]
            phases[1].workers[0].call(self._finish_mean)
            phases[3].workers[0].call(self._finish_variance)
        else:
            phases = [self.phase("finish")]
            phases[0].workers[0].call(self._use_running_statistics)
        last = self.phase("normalise")
        k = 0
        for worker, blocks in enumerate(self.blocks):
            for block in blocks:
                z = self._view(self.input, block)
                x = first_of(self.x[worker], *z.shape)
                if self.context.training:
                    do = average.workers[worker]
                    if not z.flags.c_contiguous:
                        do.copy(z, out=x)
                    self._add_up(do, z if z.flags.c_contiguous else x, out=self.sums.array[k])
                    do = variance.workers[worker]
                    do(np.subtract, z, mean[: z.shape[1]], out=x)
                    self._clear(do, block, x)
                    do(np.multiply, x, x, out=x)
                    self._add_up(do, x, out=self.sums.array[k])
                do = last.workers[worker]
                do(np.subtract, z, mean[: z.shape[1]], out=x)
                do(np.multiply, x, scale[: z.shape[1]], out=x)
                y = self._view(self.output, block) if self.direct else x
                do(np.add, x, shift[: z.shape[1]], out=y)
                if self.direct:
                    self.epilogue.record_activation(do, y)
                    self._clear(do, block, y)
                else:
                    self.epilogue.record_forward(do, worker, block, y.reshape(block.shape))
                k += 1
        return [*phases, last]

    def _finish_mean(self) -> None:
        self.mean = self.sums.array.sum(axis=0, dtype=np.float64) / self.M
        self._tile(mean=self.mean)

    def _finish_variance(self) -> None:
        norm, M = self.norm, self.M
        var = self.sums.array.sum(axis=0, dtype=np.float64) / M
        kind = self.context.dtype.type
        norm.running_mean += kind(norm.momentum) * (self.mean.astype(kind) - norm.running_mean)
        norm.running_var += kind(norm.momentum) * ((var * (M / (M - 1))).astype(kind) - norm.running_var)
        norm.weight.buffer.version += 1  # whoever has folded the statistics into weights has to do it again
        self._scale(var)

    def _use_running_statistics(self) -> None:
        self.mean = self.norm.running_mean.astype(np.float64)
        self._tile(mean=self.mean)
        self._scale(self.norm.running_var.astype(np.float64))

    def _scale(self, var: np.ndarray) -> None:
        self.inv_std = 1.0 / np.sqrt(var + self.norm.eps)
        self._tile(scale=self.norm.weight.data * self.inv_std, shift=self.norm.bias.data)

    def record_backward(self) -> list[Phase]:  # noqa: D102
        mean, scale, _, slope, rest = self.tiled
        phases = [self.phase("dw, db"), self.phase("finish"), self.phase("dz")]
        phases[1].workers[0].call(self._finish_sums)
        k = 0
        for worker, blocks in enumerate(self.blocks):
            for block in blocks:
                z, dz = self._view(self.input, block), self._view(self.input, block, grad=True)
                L = z.shape[1]
                h = first_of(self.h[worker], *z.shape)
                do = phases[0].workers[worker]
                if self.direct:
                    kept = dy = self._view(self.output, block, grad=True)
                else:
                    kept, dy = (
                        dz,
                        first_of(self.dy[worker], *z.shape),
                    )  # kept in dz's memory for the last phase
                    self.epilogue.record_backward(do, worker, block, dy.reshape(block.shape))
                    do.copy(dy, out=kept)
                self._add_up(do, dy, out=self.back_sums.array[0, k])
                do(np.subtract, z, mean[:L], out=h)
                do(np.multiply, h, dy, out=h)
                self._add_up(do, h, out=self.back_sums.array[1, k])

                do = phases[2].workers[worker]
                do(np.subtract, z, mean[:L], out=h)
                do(np.multiply, h, slope[:L], out=h)
                do(np.subtract, kept, h, out=dz)
                do(np.subtract, dz, rest[:L], out=dz)
                do(np.multiply, dz, scale[:L], out=dz)
                self._clear(do, block, dz)
                self.mask_gradient(do, worker, dz, z)
                k += 1
        return phases

    def _finish_sums(self) -> None:
        norm = self.norm
        db, centred = self.back_sums.array.sum(axis=1, dtype=np.float64)
        dw = centred * self.inv_std
        norm.bias.grad_view[...] = db
        norm.weight.grad_view[...] = dw
        self._tile(rest=db / self.M, slope=self.inv_std * dw / self.M)
