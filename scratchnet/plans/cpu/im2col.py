"""Convolution as one matrix product, for any kernel, stride and padding: ``functional/conv.py`` on buffers.

The mathematics is in that file, with the same names: y = im2col(x) W + b. Here the same calls are recorded,
with the buffer where each result goes. A worker takes a few images at a time, as many as make a column matrix
of about COLUMN_BYTES bytes, which is still in the cache when the product reads it::

    x (n, H, W, C)  copied into  padded (n, H+2P, W+2P, C)
    padded          copied into  columns (n*OH*OW, KH*KW*C), patch by patch
    columns         times        W (KH*KW*C, O)  gives  y (n*OH*OW, O)

Additional symbols: KH KW kernel, S stride, P padding, OH OW output.

This is the numerically plainest algorithm: every output is one inner product, as in the definition.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchnet.plans.cpu.calls import Calls, Phase, in_steps, split_evenly
from scratchnet.plans.cpu.convolution import Convolution
from scratchnet.plans.cpu.epilogue import Epilogue, Region
from scratchnet.plans.cpu.kernel import first_of, sum_over_workers
from scratchnet.plans.memory import Arena, Buffer

COLUMN_BYTES = 4 << 20


class Im2col(Convolution):
    """Convolution [+ activation] [+ 2 x 2 max pooling], from a plain map."""

    algorithm = "im2col"
    takes = "norm", "activation", "pool"

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        conv = self.conv
        _, self.OH, self.OW, _ = conv.output_shape(self.group.input_shape)
        self.K, self.S, self.P = conv.kernel_size, conv.stride, conv.padding
        self.row = self.K * self.K * self.C  # numbers in a row of the column matrix
        item = self.context.dtype.itemsize
        # A column matrix smaller than dW would not pay: after each region, all of dW is added to a sum.
        budget = max(COLUMN_BYTES, self.row * self.O * item)
        N, workers = self.input.N, self.context.workers
        self.n = max(1, min(-(-N // workers), budget // (self.OH * self.OW * self.row * item)))
        self.epilogue = Epilogue(self, self.fold.bias)
        self.weight = conv.weight.data.reshape(self.row, self.O)
        if self.fold.norm is not None:
            self.weight = np.empty_like(self.weight)  # kept from one forward to the next
        self.regions: list[list[Region]]  # of each worker
        if self.context.training or N >= workers:
            size = self.OH, self.OW, self.O
            chunks = [in_steps(images, self.n) for images in split_evenly(N, workers)]
            self.regions = [[Region("plain", n, (len(n), *size)) for n in some] for some in chunks]
        else:
            self.n = N
            self.regions = self._by_rows()

    def _by_rows(self) -> list[list[Region]]:
        """Give each worker some rows of every image: there are fewer images than workers."""
        step = 2 if self.group.pool is not None else 1  # windows stay whole; an odd row at the end is in none
        regions = [
            Region("plain", range(self.n), (self.n, len(rows) * step, self.OW, self.O), rows.start * step)
            for rows in split_evenly(self.OH // step, self.context.workers)
        ]
        return [[region] if region.size else [] for region in regions]

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        n, H, W, OH, OW = self.n, self.input.H + 2 * self.P, self.input.W + 2 * self.P, self.OH, self.OW
        shapes = {"padded": (n, H, W, self.C), "columns": (n * OH * OW, self.row), "y": (n, OH, OW, self.O)}
        self.scratch = self.per_pass(arena, shapes, forward, backward)  # for one region; backward, y is dy
        self.epilogue.reserve(arena, [b for regions in self.regions for b in regions], forward, backward)
        if backward is not None:
            # Of each worker: the sum over its regions, and what one of them gives.
            self.dweight = self.per_worker(arena, "dW", (2, self.row, self.O), backward)
            self.dbias = self.per_worker(arena, "db", (2, self.O), backward)
            size = n * OH * self.O + n * self.O
            self.sums = self.per_worker(arena, "sums of dy by row, by image", (size,), backward)
            self.reserve_mask(arena, backward)

    def describe(self) -> str:  # noqa: D102
        return f"{self.n} images at a time"

    def record_weights(self) -> list[Phase]:  # noqa: D102
        if self.fold.norm is None:
            return []
        phase = self.phase("weights")
        self.fold.write(phase.workers[0])
        phase.workers[0].copy(self.conv.weight.data.reshape(self.row, self.O), out=self.weight)
        self.fold.scale(phase.workers[0], self.weight)
        return [phase]

    def record_forward(self) -> list[Phase]:  # noqa: D102
        phase, scratch = self.phase("columns, product"), self.scratch[0]
        for worker, do in enumerate(phase.workers):
            for region in self.regions[worker]:
                columns = self._columns(do, worker, region, scratch)
                y = first_of(scratch["y"][worker], *region.shape)
                do(np.matmul, columns, self.weight, out=y.reshape(-1, self.O))
                self.epilogue.record_forward(do, worker, region, y)
        return [phase]

    def record_backward(self) -> list[Phase]:
        """Record dW = columns^T dy, db = sum of dy, and dx = col2im(dy W^T)."""
        phase, last = self.phase("dW, db" if self.first else "dW, db, dx"), self.phase("sum over workers")
        rarely = self.phase("dx", for_input_gradient=True)
        scratch = self.scratch[1]
        for worker, do in enumerate(phase.workers):
            total, one = self.dweight[worker].array
            db_total, db_one = self.dbias[worker].array
            if not self.regions[worker]:
                do.copy(0, out=total)
                do.copy(0, out=db_total)
            for k, region in enumerate(self.regions[worker]):
                dy = first_of(scratch["y"][worker], *region.shape)
                self.epilogue.record_backward(do, worker, region, dy)
                if self.trained_weight is not None:
                    columns = self._columns(do, worker, region, scratch)
                    do(np.matmul, columns.T, dy.reshape(-1, self.O), out=one if k else total)
                if self.trained_bias is not None:
                    self._channel_sum(do, worker, dy, out=db_one if k else db_total)
                if k and self.trained_weight is not None:
                    do(np.add, total, one, out=total)
                if k and self.trained_bias is not None:
                    do(np.add, db_total, db_one, out=db_total)
                if self.first:  # later, if at all, and dy is made again for it
                    self.epilogue.record_backward(rarely.workers[worker], worker, region, dy)
                    self._input_gradient(rarely.workers[worker], worker, region, dy)
                else:
                    self._input_gradient(do, worker, region, dy)
        if self.trained_weight is not None:
            dweight = self.trained_weight.grad_view.reshape(self.row, self.O)
            for worker, rows in self.shares(self.row):
                sums = [d.array[0][rows] for d in self.dweight]
                sum_over_workers(last.workers[worker], sums, out=dweight[rows])
        if self.trained_bias is not None:
            dbias = self.trained_bias.grad_view
            sum_over_workers(last.workers[0], [d.array[0] for d in self.dbias], out=dbias)
        return [phase, rarely, last]

    def _columns(
        self, do: Calls, worker: int, region: Region, scratch: dict[str, list[Buffer]]
    ) -> np.ndarray:
        """Record im2col of the region's pixels; return it, (n*OH*OW, KH*KW*C)."""
        n, OH, P = len(region.images), region.shape[1], self.P
        H, W, C = self.input.H, self.input.W, self.C
        # The rows that it needs. Those outside the image are padding, and they may be all.
        top, height = region.row * self.S - P, (OH - 1) * self.S + self.K
        first, stop = (min(max(0, row), H) for row in (top, top + height))
        x = self.input.data[region.images.start : region.images.stop, first:stop]  # (n, rows, W, C)
        if P:
            padded = first_of(scratch["padded"][worker], n, height, W + 2 * P, C)
            do.copy(0, out=padded)
            if first < stop:
                do.copy(x, out=padded[:, first - top : stop - top, P : P + W])
            x = padded
        columns = first_of(scratch["columns"][worker], n, OH, self.OW, self.K, self.K, C)
        windows = np.lib.stride_tricks.sliding_window_view(x, (self.K, self.K), axis=(1, 2))
        patches = windows[:, :: self.S, :: self.S].transpose(0, 1, 2, 4, 5, 3)  # (n, OH, OW, KH, KW, C)
        do.copy(patches, out=columns)
        return columns.reshape(-1, self.row)

    def _input_gradient(self, do: Calls, worker: int, region: Region, dy: np.ndarray) -> None:
        """Record dx = col2im(dy W^T), over the columns and the padded images, which are no longer needed."""
        n, P = len(region.images), self.P
        H, W, C = self.input.H, self.input.W, self.C
        columns = first_of(self.scratch[1]["columns"][worker], region.size // self.O, self.row)
        do(np.matmul, dy.reshape(-1, self.O), self.weight.T, out=columns)
        patches = columns.reshape(n, self.OH, self.OW, self.K, self.K, C)
        padded = first_of(self.scratch[1]["padded"][worker], n, H + 2 * P, W + 2 * P, C)
        do.copy(0, out=padded)
        for i in range(self.K):
            for j in range(self.K):
                rows = slice(i, i + self.S * (self.OH - 1) + 1, self.S)
                cols = slice(j, j + self.S * (self.OW - 1) + 1, self.S)
                do(np.add, padded[:, rows, cols], patches[:, :, :, i, j], out=padded[:, rows, cols])
        images = slice(region.images.start, region.images.stop)
        dx, x = self.input.grad[images], self.input.data[images]
        do.copy(padded[:, P : P + H, P : P + W], out=dx)
        self.mask_gradient(do, worker, dx, x)

    def _channel_sum(self, do: Calls, worker: int, dy: np.ndarray, out: np.ndarray) -> None:
        """Record the sum of dy (n, OH, OW, O) over all axes but the last, one axis after the other."""
        n, OH, _, O = dy.shape
        scratch = self.sums[worker].array
        by_row = scratch[: n * OH * O].reshape(n, OH, O)
        by_image = scratch[n * OH * O :][: n * O].reshape(n, O)
        do(np.add.reduce, dy, -2, None, out=by_row)
        do(np.add.reduce, by_row, -2, None, out=by_image)
        do(np.add.reduce, by_image, -2, None, out=out)
