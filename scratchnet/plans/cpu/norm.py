"""Batch normalisation, with the following activation and pooling.

Symbols: M values per channel, z the input (a convolution's output), mu and var their mean and variance over
the batch, w and b scale and shift, s = sqrt(var + eps). The mathematics is in ``functional/norm.py``::

    y  = (z - mu) * w / s + b
    dz = w / s * (dy - db / M - h * dw / M)    h = (z - mu) / s    db = sum of dy    dw = sum of dy * h

Forward that is three passes over z, since each needs a result of the one before over the whole batch: the
mean, the variance (the mean of squared differences; a difference of squares would cancel), and y, which is
activated, pooled and stored as after a convolution. Backward it is two: the sums, then dz.

Each pass goes region by region, see ``epilogue.py``. A region is seen in two ways, without a copy (but for
the mean of a map of pixels)::

    long   (rows, L)  L = some pixels times C        for z - mu, with mu repeated to (L,): a loop over only
                                                     C channels would be too short for NumPy to be fast
    tall   (Q, C)     Q = all of its pixels          for sums: ones (Q,) times (Q, C) is a matrix product

A normalisation that is frozen uses its running statistics in training, too. They are constants then, and
dz = dy * w / s is all there is to do backward.

The sums of regions are short, and are added up in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchnet.layers import Layer
from scratchnet.layers.norm import BatchNorm
from scratchnet.plans.cpu import padding
from scratchnet.plans.cpu.calls import CACHE_ELEMENTS, Calls, Phase, in_steps, reshaped, split_evenly
from scratchnet.plans.cpu.epilogue import Epilogue, Region
from scratchnet.plans.cpu.kernel import Kernel, first_of
from scratchnet.plans.cpu.layouts import Map, Tiles
from scratchnet.plans.kernel import Group
from scratchnet.plans.memory import Arena


class Norm(Kernel):
    """BatchNorm2d or BatchNorm1d [+ activation] [+ 2 x 2 max pooling], from a map of any layout."""

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
        assert isinstance(self.group.main, BatchNorm)
        self.norm, z = self.group.main, self.input
        self.M = z.N * z.H * z.W
        self.of_batch = self.context.training and not self.norm.frozen  # which statistics it uses
        if self.of_batch and self.M == 1 and self.norm.across is None:
            raise ValueError(
                f"{self.norm.label}: one value per channel has no variance to train with: {z.shape}"
            )
        self.epilogue = Epilogue(self)
        # Direct: y lies as z does, so y is computed, and dy is read, where it belongs.
        self.direct = isinstance(z, Tiles) and type(self.output) is type(z) and self.group.pool is None
        self.writes_whole_tiles = self.direct
        workers = self.context.workers
        images = z.chunks if isinstance(z, Tiles) else [some for some in split_evenly(z.N, workers) if some]
        self.regions = [  # each with its worker
            (worker, region)
            for worker, share in enumerate(split_evenly(len(images), workers))
            for k in share
            for region in self._divide(images[k])
        ]
        longest = max(self._long(region)[1] for _, region in self.regions)
        # What belongs to a channel, repeated to (L,): mu, w / s and b; backward, dw / (M * s) and db / M.
        names = "mean", "scale", "shift", "slope", "mean_dy"
        self.vectors = dict(zip(names, np.zeros((5, longest), self.context.dtype), strict=True))

    def _set(self, **by_channel: np.ndarray) -> None:
        for name, values in by_channel.items():
            self.vectors[name].reshape(-1, self.input.C)[...] = values

    def _divide(self, images: range) -> list[Region]:
        """Divide some images into regions that stay in the cache."""
        z, n = self.input, len(images)
        if isinstance(z, Tiles):
            L = z.TW * n * z.C
            R = max(1, CACHE_ELEMENTS // (z.size**2 * L))
            return [
                Region("tiles", images, (len(rows), z.size, z.size, L), rows.start, z.TW)
                for rows in in_steps(range(z.TH), R)
            ]
        if z.layout == "pixels":
            return [Region("pixels", images, (1, z.H, z.W, n * z.C))]
        chunks = in_steps(images, max(1, CACHE_ELEMENTS // (z.H * z.W * z.C)))
        return [Region("plain", chunk, (len(chunk), z.H, z.W, z.C)) for chunk in chunks]

    def _long(self, region: Region) -> tuple[int, int]:
        """Return the shape (rows, L) in which a region is seen long."""
        a, rows, columns, rest = region.shape
        return (a * rows, columns * rest) if region.form == "plain" else (a * rows * columns, rest)

    def _view(self, z: Map, region: Region, *, grad: bool = False) -> np.ndarray:
        """Return a region of a map, or of its gradient, as (rows, L)."""
        images = region.images
        if isinstance(z, Tiles):
            c = z.chunks.index(images)
            rows = z.grad_chunk(c) if grad else z.chunk(c)[1:]
            part = rows[z.size * region.row : z.size * (region.row + region.shape[0])]
        elif region.form == "pixels":
            part = (z.grad if grad else z.data)[:, :, images.start : images.stop]
        else:
            part = (z.grad if grad else z.data)[images.start : images.stop]
        return reshaped(part, *self._long(region))

    def _clear(self, do: Calls, region: Region, x: np.ndarray) -> None:
        """Record zeros where a region of tiles has no pixels: there nothing may be counted."""
        if isinstance(self.input, Tiles):
            size = self.input.size
            rows = reshaped(x, size * region.shape[0], size, self.input.TW, -1)
            padding.clear_beyond(do, self.input, rows, size * region.row)

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        size = max(region.size for _, region in self.regions)
        C, regions, dtype = self.input.C, len(self.regions), self.context.dtype
        self.x = self.per_worker(arena, "region", (size,), forward)
        self.sums = arena.reserve("sums", (regions, C), dtype, forward, forward)
        if backward is not None:
            self.dy = self.per_worker(arena, "dy", (size,), backward)
            self.h = self.per_worker(arena, "h", (size,), backward)
            self.back_sums = arena.reserve("sums", (2, regions, C), dtype, backward, backward)
            self.reserve_mask(arena, backward)
        self.epilogue.reserve(arena, [region for _, region in self.regions], forward, backward)

    def _add_up(self, do: Calls, x: np.ndarray, out: np.ndarray) -> None:
        """Record the sum of a region (contiguous) over its pixels."""
        tall = reshaped(x, -1, self.input.C)  # (Q, C)
        do(np.matmul, np.ones(len(tall), x.dtype), tall, out=out)

    def record_forward(self) -> list[Phase]:  # noqa: D102
        average, variance, last = self.phase("mean"), self.phase("variance"), self.phase("normalise")
        first, second = self.phase("finish"), self.phase("finish")
        first.workers[0].call(self._finish_mean if self.of_batch else self._use_running_statistics)
        second.workers[0].call(self._finish_variance)
        for k, (worker, region) in enumerate(self.regions):
            z = self._view(self.input, region)
            x = first_of(self.x[worker], *z.shape)
            mean, scale, shift = (self.vectors[name][: z.shape[1]] for name in ("mean", "scale", "shift"))
            if self.of_batch:
                do = average.workers[worker]
                if not z.flags.c_contiguous:
                    do.copy(z, out=x)
                self._add_up(do, z if z.flags.c_contiguous else x, out=self.sums.array[k])
                do = variance.workers[worker]
                do(np.subtract, z, mean, out=x)
                self._clear(do, region, x)
                do(np.multiply, x, x, out=x)
                self._add_up(do, x, out=self.sums.array[k])
            do = last.workers[worker]
            do(np.subtract, z, mean, out=x)
            do(np.multiply, x, scale, out=x)
            y = self._view(self.output, region) if self.direct else x
            do(np.add, x, shift, out=y)
            if self.direct:
                self.epilogue.record_activation(do, y)
                self._clear(do, region, y)
            else:
                self.epilogue.record_forward(do, worker, region, y.reshape(region.shape))
        return [average, first, variance, second, last] if self.of_batch else [first, last]

    def _of_all(self, sums: np.ndarray) -> tuple[Any, int]:
        """Return sums over the whole batch, of which this may be a part, and how many values they are of."""
        across = self.norm.across
        return (sums, self.M) if across is None else (across.sum(sums), across.count(self.M))

    def _finish_mean(self) -> None:
        total, M = self._of_all(self.sums.array.sum(axis=0, dtype=np.float64))
        self.mean = total / M
        self._set(mean=self.mean)

    def _finish_variance(self) -> None:
        norm = self.norm
        total, M = self._of_all(self.sums.array.sum(axis=0, dtype=np.float64))
        var = total / M
        kind = self.context.dtype.type
        norm.running_mean += kind(norm.momentum) * (self.mean.astype(kind) - norm.running_mean)
        norm.running_var += kind(norm.momentum) * ((var * (M / (M - 1))).astype(kind) - norm.running_var)
        norm.weight.buffer.version += 1  # plans that fold the statistics into weights do it again
        self._scale(var)

    def _use_running_statistics(self) -> None:
        self.mean = self.norm.running_mean.astype(np.float64)
        self._set(mean=self.mean)
        self._scale(self.norm.running_var.astype(np.float64))

    def _scale(self, var: np.ndarray) -> None:
        self.inv_std = 1.0 / np.sqrt(var + self.norm.eps)
        self._set(scale=self.norm.weight.data * self.inv_std, shift=self.norm.bias.data)

    def record_backward(self) -> list[Phase]:  # noqa: D102
        sums, finish = self.phase("dw, db"), self.phase("finish")
        last = self.phase("dz", for_input_gradient=self.first and not self.of_batch)
        finish.workers[0].call(self._finish_sums)
        for k, (worker, region) in enumerate(self.regions):
            z, dz = self._view(self.input, region), self._view(self.input, region, grad=True)
            names = "mean", "scale", "slope", "mean_dy"
            mean, scale, slope, mean_dy = (self.vectors[name][: z.shape[1]] for name in names)
            do = (sums if self.of_batch else last).workers[worker]
            if self.direct:
                dy = self._view(self.output, region, grad=True)
            else:
                dy = first_of(self.dy[worker], *z.shape)
                self.epilogue.record_backward(do, worker, region, dy.reshape(region.shape))
            if self.of_batch:
                h = first_of(self.h[worker], *z.shape)
                if not self.direct:
                    do.copy(dy, out=dz)  # it is kept there for the last phase
                self._add_up(do, dy, out=self.back_sums.array[0, k])
                do(np.subtract, z, mean, out=h)
                do(np.multiply, h, dy, out=h)
                self._add_up(do, h, out=self.back_sums.array[1, k])

                do = last.workers[worker]
                do(np.subtract, z, mean, out=h)
                do(np.multiply, h, slope, out=h)
                do(np.subtract, dy if self.direct else dz, h, out=dz)
                do(np.subtract, dz, mean_dy, out=dz)
                dy = dz
            do(np.multiply, dy, scale, out=dz)
            self._clear(do, region, dz)
            self.mask_gradient(do, worker, dz, z)
        return [sums, finish, last] if self.of_batch else [last]

    def _finish_sums(self) -> None:
        norm = self.norm
        db, centred = self.back_sums.array.sum(axis=1, dtype=np.float64)
        dw = centred * self.inv_std
        norm.bias.grad_view[...] = db
        norm.weight.grad_view[...] = dw
        (db, dw), M = self._of_all(np.stack([db, dw]))
        self._set(mean_dy=db / M, slope=self.inv_std * dw / M)
