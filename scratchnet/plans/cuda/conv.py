"""Convolution as matrix products of cuBLAS, between kernels that make and take apart the column matrix.

The mathematics is in ``functional/conv.py``, with the same names. A chunk of images at a time, so many that
the column matrix takes at most COLUMN_BYTES::

    forward    columns = im2col(x)          kernels/conv.cu, written as operands (float32 or bfloat16)
               z = columns W                cuBLAS, float32
               y = pool(relu(z + b))        kernels/epilogue.cu, one pass over z

    backward   dz = dy where relu and pooling let it pass    kernels/mask.cu, as operands; partial sums of db
               columns = im2col(x)          again, instead of keeping nine times the input
               dW += columns^T dz           cuBLAS
               dcolumns = dz W^T            cuBLAS, float32, over the columns, no longer needed
               dx = col2im(dcolumns)        kernels/conv.cu; each thread adds up one pixel's gradient

Where pooling follows, z is scratch, and the pooled map with a byte for each of its pixels (which of the four
won) is all that is kept. In evaluation a following batch normalisation is part of the epilogue, as a mean and
a scale for each channel, derived from the running statistics again in each forward pass: so statistics may be
written to at any time, and the weights need no second copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from scratchnet.backend import Array
from scratchnet.plans.cuda.kernel import Kernel, front
from scratchnet.plans.cuda.launch.compiling import address
from scratchnet.plans.cuda.launch.conv import col2im, im2col
from scratchnet.plans.cuda.launch.epilogue import epilogue, epilogue_pool
from scratchnet.plans.cuda.launch.mask import mask, unpool
from scratchnet.plans.cuda.launch.norm import norm_fold
from scratchnet.plans.cuda.launch.sums import finish_sums, sums_shape
from scratchnet.plans.memory import Arena

# Large enough for products that fill the GPU, small compared with its memory. Not yet measured on one.
COLUMN_BYTES = 256 << 20


class Convolution(Kernel):
    """Conv2d [+ BatchNorm2d, in evaluation] [+ ReLU] [+ 2 x 2 max pooling]."""

    algorithm = "im2col"
    takes = "norm", "activation", "pool"

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        conv = self.conv = self.group.main
        self.N = self.input.shape[0]
        _, self.OH, self.OW, self.O = conv.output_shape(self.group.input_shape)
        self.size = conv.kernel_size, conv.stride, conv.padding
        self.row = prod(conv.weight.shape[:-1])  # numbers in a row of the column matrix
        most = max(1, COLUMN_BYTES // (4 * self.OH * self.OW * self.row))
        self.n = -(-self.N // -(-self.N // most))  # images at a time: in as few chunks, but of like size
        self.pools = self.group.pool is not None
        self.keeps_output = self.group.activation is not None and not self.pools

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        rows, operand = self.n * self.OH * self.OW, self.context.operand
        self.columns = arena.reserve("columns", (rows, self.row), operand, forward, forward)
        if self.pools:
            self.z = arena.reserve("z", (rows, self.O), np.float32, forward, forward)
        if self.group.norm is not None:
            self.mean = arena.reserve("mean", (self.O,), np.float32, forward, forward)
            self.scale = arena.reserve("scale", (self.O,), np.float32, forward, forward)
        if backward is None:
            return
        if self.pools:
            self.code = arena.reserve("code", self.output.shape, np.uint8, forward, backward)
        self.columns_again = arena.reserve("columns", (rows, self.row), np.float32, backward, backward)
        if self.pools or self.group.activation is not None or operand != np.float32:
            self.dz = arena.reserve("dz", (rows, self.O), operand, backward, backward)
        else:
            self.dz = None  # dy itself
        if self.conv.bias is not None:
            self.parts = [sums_shape(self._summed(images), self.O)[0] for images in self._chunks()]
            self.partial = arena.reserve("partial", (sum(self.parts), self.O), np.float32, backward, backward)

    def _chunks(self) -> Iterator[slice]:
        for start in range(0, self.N, self.n):
            yield slice(start, min(start + self.n, self.N))

    def _summed(self, images: slice) -> int:
        """Count the rows that are summed for db: of pooled maps, since no other pixel has a gradient."""
        return (images.stop - images.start) * prod(self.output.shape[1:3])

    def forward(self) -> None:  # noqa: D102
        bias = None if self.conv.bias is None else self.conv.bias.data
        relu = self.group.activation is not None
        follows: dict[str, Any] = {"shift": bias, "relu": relu}
        if (norm := self.group.norm) is not None:
            mean, scale = self.mean.array, self.scale.array
            statistics = norm.running_mean, norm.running_var
            norm_fold(norm.weight.data, *statistics, bias, mean, scale, norm.eps)
            follows = {"shift": norm.bias.data, "mean": mean, "scale": scale, "relu": relu}
        weight = self.context.weights.matrix(self.conv.weight)  # (KH*KW*C, O)
        for images in self._chunks():
            n = images.stop - images.start
            rows = n * self.OH * self.OW
            columns = front(self.columns, self.context.operand, rows, self.row)
            im2col(self.input.data[images], columns, *self.size)
            y = self.output.data[images]
            if self.pools:
                z = front(self.z, np.float32, n, self.OH, self.OW, self.O)
                self.context.matmul(columns, weight, out=z.reshape(rows, self.O))
                code = self.code.array[images] if self.context.training else None
                epilogue_pool(z, y, code, **follows)
            else:
                self.context.matmul(columns, weight, out=y.reshape(rows, self.O))
                if relu or follows["shift"] is not None:
                    epilogue(y, y, **follows)

    def backward(self, need_input_gradient: bool) -> None:  # noqa: D102
        weight, matmul = self.conv.weight, self.context.matmul
        dweight = weight.grad_view.reshape(self.row, self.O)
        with_bias = self.conv.bias is not None
        first_part = 0
        for k, images in enumerate(self._chunks()):
            n = images.stop - images.start
            rows = n * self.OH * self.OW
            partial = None
            if with_bias:
                partial = self.partial.array[first_part : first_part + self.parts[k]]
                first_part += self.parts[k]
            dz = self._dz(images, partial).reshape(rows, self.O)

            columns = front(self.columns_again, self.context.operand, rows, self.row)
            im2col(self.input.data[images], columns, *self.size)
            matmul(columns, dz, out=dweight, transpose_a=True, accumulate=k > 0)
            if need_input_gradient:
                dcolumns = front(self.columns_again, np.float32, rows, self.row)
                matmul(dz, self.context.weights.matrix(weight), out=dcolumns, transpose_b=True)
                col2im(dcolumns, self.input.grad[images], *self.size)
        if with_bias:
            finish_sums(self.partial.array, self.conv.bias.grad_view)

    def _dz(self, images: slice, partial: Array | None) -> Array:
        """Return the gradient of z for some images, and launch the sums of its rows, if there is a bias."""
        dy = self.output.grad[images]
        shape = images.stop - images.start, self.OH, self.OW, self.O
        dz = dy if self.dz is None else front(self.dz, self.context.operand, *shape)
        if self.pools:
            unpool(dy, self.code.array[images], dz, partial)
        elif self.dz is not None or partial is not None:
            y = self.output.data[images] if self.keeps_output else None
            mask(dy, y, None if self.dz is None else dz, partial)
        return dz

    def constants(self) -> tuple:  # noqa: D102
        return statistics_of(self.group.norm)

    def describe(self) -> str:  # noqa: D102
        return f"{self.n} images at a time" if self.n < self.N else ""


def statistics_of(norm: Any) -> tuple:
    """Return what a batch normalisation's launches depend on, besides its parameters."""
    if norm is None:
        return ()
    return address(norm.running_mean), address(norm.running_var), norm.eps, norm.momentum
