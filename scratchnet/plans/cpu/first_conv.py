"""The first convolution: three channels in, too few for Winograd's algorithm and for im2col's copies as well.

Symbols as in ``layouts.py``, S the size of a tile. A vector has L = S * TW * n neighbouring numbers: one
channel of all columns of a row of pixels, of all images of a chunk.

im2col would copy every pixel nine times, three numbers at a time. Here each is copied three times, in long
vectors, because images come last and only the shifts along the row are made. The shifts along the column are
free: three rows of the image that follow each other in memory are the three rows of the kernel::

    row h     row h-1 of the image, shifted by -1, 0, 1 columns: 3*C vectors, and one of ones
    row h+1   the same
    row h+2   the same                            windows of three rows overlap, and none is copied
              `-- window h, (9*C + 3, L)

So y[h] (L, O) = window[h]^T (L, 9*C + 3) times W (9*C + 3, O), and y[h] lies as the next layer's tiles do.
The ones make the bias part of the product: it stands in W in the middle row's place, with zeros in the other
two's. And backward, dW = window[h] dy[h], summed over h, has db in that place.

Where there are fewer chunks than workers, a chunk is divided into parts, some of its rows, each with shifted
rows of its own: the two that neighbours have in common are made twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchnet import functional as F
from scratchnet.plans.cpu import padding
from scratchnet.plans.cpu.calls import CACHE_ELEMENTS, Calls, Phase, split_evenly
from scratchnet.plans.cpu.convolution import Convolution, is_padded_3x3
from scratchnet.plans.cpu.kernel import sum_over_workers
from scratchnet.plans.cpu.layouts import TILES, Tiles
from scratchnet.plans.kernel import Group, PlanContext
from scratchnet.plans.memory import Arena
from scratchnet.plans.registry import kernel_for

MAX_FIRST_LAYER_CHANNELS = 4  # those of a photograph, and one more


@dataclass(frozen=True)
class Part:
    """Some rows of one chunk, which one worker computes."""

    chunk: int
    rows: range  # of the output
    start: int  # where its shifted rows begin in the memory of all, counted in rows of one image


class FirstConv(Convolution):
    """3 x 3 convolution, stride 1, padding 1, of an image of few channels [+ activation], into tiles."""

    algorithm = "first_conv"
    takes = "norm", "activation"
    output_layout = "tiles"
    writes_whole_tiles = True
    output: Tiles

    @classmethod
    def supports(cls, groups: list[Group], i: int, context: PlanContext) -> bool:
        """Tell whether it is the first of several groups, unpooled, and the next one reads tiles."""
        if i > 0 or len(groups) == 1 or groups[0].pool is not None or not is_padded_3x3(groups[0], context):
            return False
        following: Any = kernel_for(groups, 1, context)
        return following is not None and following.input_layout in (None, *TILES)

    @classmethod
    def suits(cls, groups: list[Group], i: int, context: PlanContext) -> bool:  # noqa: D102
        return cls.supports(groups, i, context) and groups[i].input_shape[3] <= MAX_FIRST_LAYER_CHANNELS

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.H, self.W = self.input.H, self.input.W
        self.depth = 3 * self.C + 1  # vectors in a row: three shifts of each channel, and the ones
        self.chunks = self.output.chunks
        self.parts: list[Part] = []
        start = 0
        for c, images in enumerate(self.chunks):
            for rows in split_evenly(self.H, min(self.H, -(-self.context.workers // len(self.chunks)))):
                self.parts.append(Part(c, rows, start))
                start += len(images) * (len(rows) + 2)
        self.rows_of_all = start
        self.tallest = max(len(part.rows) for part in self.parts)
        self.weight = np.zeros((3, self.depth, self.O), self.context.dtype)

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        S, TW, kind = self.output.size, self.output.TW, self.context.dtype
        n = max(map(len, self.chunks))
        self.padded = self.per_worker(arena, "padded", (self.C, self.tallest + 2, S * TW + 2, n), forward)
        shape = (self.rows_of_all, self.depth, S * TW)  # of each part (rows + 2, depth, L)
        self.rows = arena.reserve("shifted rows", shape, kind, forward, backward or forward)
        if backward is not None:
            self.dweight = self.per_worker(arena, "dW", (2, 3 * self.depth, self.O), backward)
            by_row = self.tallest, 3 * self.depth, self.O
            self.by_row = self.per_worker(arena, "dW of rows", by_row, backward)

    def record_weights(self) -> list[Phase]:
        """Put weights and bias together."""
        phase = self.phase("weights")
        do, C, O = phase.workers[0], self.C, self.O
        self.fold.write(do)
        do.copy(self.conv.weight.data.reshape(3, 3 * C, O), out=self.weight[:, : 3 * C])
        self.fold.scale(do, self.weight[:, : 3 * C])
        if self.fold.bias is not None:
            do.copy(self.fold.bias, out=self.weight[1, 3 * C])
        return [phase]

    def _parts_by_worker(self) -> list[list[Part]]:
        return [[self.parts[k] for k in some] for some in split_evenly(len(self.parts), self.context.workers)]

    def _rows(self, part: Part) -> np.ndarray:
        """Return the shifted rows of a part, (rows + 2, depth, S, TW, n)."""
        n, height = len(self.chunks[part.chunk]), len(part.rows) + 2
        rows = self.rows.array[part.start : part.start + n * height]
        return rows.reshape(height, self.depth, self.output.size, self.output.TW, n)

    def _windows(self, part: Part) -> np.ndarray:
        """Return the windows of three rows, (rows, 9*C + 3, L), a view."""
        rows = self._rows(part).reshape(len(part.rows) + 2, self.depth, -1)  # (rows + 2, depth, L)
        # Three rows are 3 * depth vectors that follow each other, and the next window begins one row later.
        shape = len(part.rows), 3 * self.depth, rows.shape[2]
        return np.lib.stride_tricks.as_strided(rows, shape, rows.strides, writeable=False)

    def record_forward(self) -> list[Phase]:  # noqa: D102
        phase = self.phase("shift, product")
        weight = self.weight.reshape(3 * self.depth, self.O)
        for worker, parts in enumerate(self._parts_by_worker()):
            do = phase.workers[worker]
            for part in parts:
                self._shift(do, worker, part)
                windows = self._windows(part).transpose(0, 2, 1)  # (rows, L, 9*C + 3)
                last = part.rows.stop == self.H  # it has the rows beyond the image as well
                stop = self.output.size * self.output.TH if last else part.rows.stop
                rows = self.output.chunk(part.chunk)[1 + part.rows.start : 1 + stop]  # [.., S, TW, n, O]
                y = rows[: len(part.rows)].reshape(len(part.rows), -1, self.O)  # (rows, L, O)
                step = max(1, CACHE_ELEMENTS // y[0].size)
                for h in range(0, len(y), step):
                    do(np.matmul, windows[h : h + step], weight, out=y[h : h + step])
                    if self.activation is not None:
                        self.activation.record_forward(do, y[h : h + step])
                padding.clear_beyond(do, self.output, rows, part.rows.start)
        return [phase]

    def _shift(self, do: Calls, worker: int, part: Part) -> None:
        """Record the shifted rows of a part."""
        H, W, C, S, TW = self.H, self.W, self.C, self.output.size, self.output.TW
        images, rows = self.chunks[part.chunk], self._rows(part)
        n, height = len(images), len(rows)
        padded = self.padded[worker].array.reshape(-1)[: C * height * (S * TW + 2) * n]
        padded = padded.reshape(C, height, S * TW + 2, n)
        do.copy(0, out=padded)
        first, stop = max(0, part.rows.start - 1), min(H, part.rows.stop + 1)  # of the image, not beyond
        inside = padded[:, first + 1 - part.rows.start : stop + 1 - part.rows.start, 1 : W + 1]
        do.copy(self.input.data[images.start : images.stop, first:stop].transpose(3, 1, 2, 0), out=inside)
        for j in range(3):
            shifted = padded[:, :, j : j + S * TW].reshape(C, height, TW, S, n)  # columns as (tile, position)
            do.copy(shifted.transpose(1, 0, 3, 2, 4), out=rows[:, j * C : (j + 1) * C])
        do.copy(1, out=rows[:, 3 * C])

    def record_backward(self) -> list[Phase]:  # noqa: D102
        phase, last = self.phase("dW, db"), self.phase("sum over workers")
        for worker, parts in enumerate(self._parts_by_worker()):
            do = phase.workers[worker]
            total, one = self.dweight[worker].array
            if not parts:
                do.copy(0, out=total)
            for k, part in enumerate(parts):
                dy = self.output.grad_chunk(part.chunk)[part.rows.start : part.rows.stop]
                dy = dy.reshape(len(part.rows), -1, self.O)  # (rows, L, O)
                by_row = self.by_row[worker].array[: len(dy)]
                do(np.matmul, self._windows(part), dy, out=by_row)
                do(np.add.reduce, by_row, 0, None, out=one if k else total)
                if k:
                    do(np.add, total, one, out=total)
        do, C = last.workers[0], self.C
        total = self.dweight[0].array[0]
        sum_over_workers(do, [total, *(d.array[0] for d in self.dweight[1:])], out=total)
        total = total.reshape(3, self.depth, self.O)
        if self.trained_weight is not None:
            do.copy(total[:, : 3 * C], out=self.trained_weight.grad_view.reshape(3, 3 * C, self.O))
        if self.trained_bias is not None:
            do.copy(total[1, 3 * C], out=self.trained_bias.grad_view)
        rarely = self.phase("dx", for_input_gradient=True)
        rarely.workers[0].call(self._input_gradient)
        return [phase, last, rarely]

    def _input_gradient(self) -> None:
        """Compute dx plainly: training never asks for it."""
        cache = self.input.data, self.conv.weight.data, False, 1, 1
        self.input.grad[...] = F.conv2d_backward(self.output.take_gradient(), cache)[0]
