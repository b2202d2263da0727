"""Batch normalisation, with the following activation and pooling.

Symbols: M values per channel, z the input (a convolution's output), mu and var their mean and variance over
the batch, w and b scale and shift, s = sqrt(var + eps). The mathematics is in ``functional/norm.py``::

    y  = (z - mu) * w / s + b
    dz = w / s * (dy - db / M - h * dw / M)    h = (z - mu) / s    db = sum of dy    dw = sum of dy * h

Forward that is two passes over z, the statistics and y, which is activated, pooled and stored as after a
convolution. Each goes region by region, see ``epilogue.py``. While region k, of n_k values per channel, is in
the cache, its mean is taken and then its squared deviations from this mean (a difference of squares would
cancel). Merged over all regions, in float64, they are those of the batch (Chan, Golub and LeVeque 1979,
"Updating formulae and a pairwise algorithm for computing sample variances")::

    mu = sum of n_k mu_k / M        M var = sum of (squares_k + n_k (mu_k - mu)^2)

Backward it is two passes as well, the sums, then dz. Both y and dz are linear in z and dy, with numbers that
belong to the channel::

    y = z * scale + shift                       scale = w / s             shift = b - mu * scale
    dz = (dy - (z * slope + offset)) * scale    slope = dw / (M * s)      offset = db / M - mu * slope

(That mu comes off last costs no more than z has lost already: where mu is large next to s, z is rounded.)

A region is seen in two ways, without a copy (but for the statistics of a map of pixels)::

    long   (rows, L)  L = some pixels times C        for z * scale, with scale repeated to (L,): a loop over
                                                     only C channels would be too short for NumPy to be fast
    tall   (Q, C)     Q = all of its pixels          for sums: ones (Q,) times (Q, C) is a matrix product

A normalisation that is frozen uses its running statistics in training, too. They are constants then, and
dz = dy * w / s is all there is to do backward.
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
        # What belongs to a channel, repeated to (L,).
        names = "mean", "scale", "shift", "slope", "offset"
        self.vectors = dict(zip(names, np.zeros((5, longest), self.context.dtype), strict=True))

    def _set(self, **by_channel: np.ndarray) -> None:
        for name, values in by_channel.items():
            self.vectors[name].reshape(-1, self.input.C)[...] = values

    def _values(self, region: Region) -> int:
        """Return how many values of each channel a region has, without those beyond the image."""
        z, (a, rows, columns, _) = self.input, region.shape
        if region.form == "tiles":
            a, rows, columns = 1, min(a * rows, z.H - rows * region.row), z.W
        return (1 if region.form == "plain" else len(region.images)) * a * rows * columns

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
        self.sums = arena.reserve("sums", (2, regions, C), dtype, forward, forward)
        self.means = self.per_worker(
            arena, "mean", self.vectors["mean"].shape, forward
        )  # of one region, (L,)
        if backward is not None:
            self.dy = self.per_worker(arena, "dy", (size,), backward)
            self.h = self.per_worker(arena, "h", (size,), backward)
            self.back_sums = arena.reserve("sums", (2, regions, C), dtype, backward, backward)
            self.reserve_mask(arena, backward)
        self.epilogue.reserve(arena, [region for _, region in self.regions], forward, backward)

    def _add_up(self, do: Calls, x: np.ndarray, out: np.ndarray, factor: float = 1) -> None:
        """Record the sum of a region (contiguous) over its pixels, times ``factor``."""
        tall = reshaped(x, -1, self.input.C)  # (Q, C)
        do(np.matmul, np.full(len(tall), factor, x.dtype), tall, out=out)

    def _record_statistics(self, do: Calls, worker: int, k: int, z: np.ndarray) -> None:
        """Record mean and squared deviations of region k."""
        x, region = first_of(self.x[worker], *z.shape), self.regions[k][1]
        mean, squares = self.sums.array[:, k]
        if not z.flags.c_contiguous:
            do.copy(z, out=x)
        self._add_up(do, z if z.flags.c_contiguous else x, mean, 1 / self._values(region))
        long = self.means[worker].array[: z.shape[1]]
        do.copy(mean, out=long.reshape(-1, self.input.C))
        do(np.subtract, z, long, out=x)
        self._clear(do, region, x)
        do(np.multiply, x, x, out=x)
        self._add_up(do, x, squares)

    def record_forward(self) -> list[Phase]:  # noqa: D102
        statistics, finish, last = self.phase("statistics"), self.phase("finish"), self.phase("normalise")
        finish.workers[0].call(self._merge if self.of_batch else self._use_running_statistics)
        for k, (worker, region) in enumerate(self.regions):
            z = self._view(self.input, region)
            if self.of_batch:
                self._record_statistics(statistics.workers[worker], worker, k, z)
            do = last.workers[worker]
            y = self._view(self.output, region) if self.direct else first_of(self.x[worker], *z.shape)
            do(np.multiply, z, self.vectors["scale"][: z.shape[1]], out=y)
            do(np.add, y, self.vectors["shift"][: z.shape[1]], out=y)
            if self.direct:
                self.epilogue.record_activation(do, y)
                self._clear(do, region, y)
            else:
                self.epilogue.record_forward(do, worker, region, y.reshape(region.shape))
        return [statistics, finish, last]

    def _of_all(self, sums: np.ndarray) -> tuple[Any, int]:
        """Return sums over the whole batch, of which this may be a part, and how many values they are of."""
        across = self.norm.across
        return (sums, self.M) if across is None else (across.sum(sums), across.count(self.M))

    def _merge(self) -> None:
        """Merge what regions have, and set what follows from mean and variance of the batch."""
        norm, kind = self.norm, self.context.dtype.type
        n = np.array([self._values(region) for _, region in self.regions], np.float64)
        means, squares = self.sums.array.astype(np.float64)
        total, M = self._of_all(n @ means)
        mean = total / M
        total, _ = self._of_all(squares.sum(axis=0) + n @ (means - mean) ** 2)
        var = total / M
        norm.running_mean += kind(norm.momentum) * (mean.astype(kind) - norm.running_mean)
        norm.running_var += kind(norm.momentum) * ((var * (M / (M - 1))).astype(kind) - norm.running_var)
        norm.weight.buffer.version += 1  # plans that fold the statistics into weights do it again
        self._use(mean, var)

    def _use_running_statistics(self) -> None:
        self._use(self.norm.running_mean.astype(np.float64), self.norm.running_var.astype(np.float64))

    def _use(self, mean: np.ndarray, var: np.ndarray) -> None:
        self.mean, self.inv_std = mean, 1.0 / np.sqrt(var + self.norm.eps)
        scale = self.norm.weight.data * self.inv_std
        self._set(mean=mean, scale=scale, shift=self.norm.bias.data - mean * scale)

    def record_backward(self) -> list[Phase]:  # noqa: D102
        sums, finish = self.phase("dw, db"), self.phase("finish")
        last = self.phase("dz", for_input_gradient=self.first and not self.of_batch)
        finish.workers[0].call(self._finish_sums)
        for k, (worker, region) in enumerate(self.regions):
            z, dz = self._view(self.input, region), self._view(self.input, region, grad=True)
            names = "mean", "scale", "slope", "offset"
            mean, scale, slope, offset = (self.vectors[name][: z.shape[1]] for name in names)
            do = (sums if self.of_batch else last).workers[worker]
            if self.direct:
                dy = self._view(self.output, region, grad=True)
            else:
                dy = dz if dz.flags.c_contiguous else first_of(self.dy[worker], *z.shape)
                self.epilogue.record_backward(do, worker, region, dy.reshape(region.shape))
            if self.of_batch:
                h = first_of(self.h[worker], *z.shape)
                if not (self.direct or dy is dz):
                    do.copy(dy, out=dz)  # it is kept there for the last phase
                self._add_up(do, dy, out=self.back_sums.array[0, k])
                do(np.subtract, z, mean, out=h)
                do(np.multiply, h, dy, out=h)
                self._add_up(do, h, out=self.back_sums.array[1, k])

                do = last.workers[worker]
                do(np.multiply, z, slope, out=h)
                do(np.add, h, offset, out=h)
                do(np.subtract, dy if self.direct else dz, h, out=dz)
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
        slope = self.inv_std * dw / M
        self._set(slope=slope, offset=db / M - self.mean * slope)
