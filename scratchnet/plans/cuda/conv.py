"""Convolution as matrix products of cuBLAS, between kernels that make and take apart the column matrix.

The mathematics is in ``functional/conv.py``, with the same names. A chunk of images at a time, so many that
the column matrix takes at most ``column_bytes``::

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

from math import prod
from types import ModuleType
from typing import Any, cast

import numpy as np

from scratchnet.backend import Array
from scratchnet.layers import Conv2d
from scratchnet.layers.norm import BatchNorm
from scratchnet.parameters import Parameter
from scratchnet.plans.cuda.kernel import Kernel, front
from scratchnet.plans.cuda.launch.conv import col2im, im2col
from scratchnet.plans.cuda.launch.epilogue import epilogue, epilogue_pool
from scratchnet.plans.cuda.launch.mask import mask, unpool
from scratchnet.plans.cuda.launch.norm import norm_fold
from scratchnet.plans.cuda.launch.operands import cast as cast_operands
from scratchnet.plans.cuda.launch.sums import finish_sums, sums_shape
from scratchnet.plans.memory import Arena, Buffer

# How large the column matrix may be; None: so large that it stays in the L2 cache until the product has read
# it, beside what that writes, but no smaller than fills a GPU. (Calculated, to be swept: not yet measured.)
COLUMN_BYTES: int | None = None
SHARE_OF_L2, LEAST_COLUMN_BYTES = 2 / 3, 32 << 20
MULTIPLE = (
    8  # of numbers in a row of the column matrix: 16 bytes of bfloat16, what tensor cores take at a time
)


def column_bytes(xp: ModuleType) -> int:
    """Return how large a column matrix may be on the current GPU."""
    if COLUMN_BYTES is not None:
        return COLUMN_BYTES
    runtime = xp.cuda.runtime
    l2 = runtime.deviceGetAttribute(runtime.cudaDevAttrL2CacheSize, runtime.getDevice())
    return max(LEAST_COLUMN_BYTES, int(SHARE_OF_L2 * l2))


class Convolution(Kernel):
    """Conv2d [+ BatchNorm2d, in evaluation] [+ ReLU] [+ 2 x 2 max pooling]."""

    algorithm = "im2col"
    takes = "norm", "activation", "pool"
    z: Buffer | None = None  # the product, where it is pooled
    code: Buffer | None = None  # which pixel of each window won
    dz: Buffer | None = None  # the gradient of the product; None: it is that of the output
    partial: Buffer | None = None  # sums of the bias's gradient, those of all chunks one after the other
    padded: Array | None = None  # the weight with rows of zeros below it, where the columns are padded

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        conv = self.conv = cast(Conv2d, self.group.main)
        self.norm = cast("BatchNorm | None", self.group.norm)
        N, self.OH, self.OW, self.O = conv.output_shape(self.group.input_shape)
        self.size = conv.kernel_size, conv.stride, conv.padding
        self.bias = conv.bias
        self.row = prod(conv.weight.shape[:-1])  # numbers in a patch, and in a row of the column matrix
        self.width = -(-self.row // MULTIPLE) * MULTIPLE
        most = max(1, column_bytes(self.context.xp) // (4 * self.OH * self.OW * self.width))
        self.n = -(-N // -(-N // most))  # images per chunk: few chunks, of similar size
        self.relu, self.pools = self.group.activation is not None, self.group.pool is not None
        self.keeps_output = self.relu and not self.pools
        # The images of each chunk and its partial sums for db: over pooled maps, since no other pixel has a
        # gradient.
        self.chunks: list[tuple[slice, slice]] = []
        for start in range(0, N, self.n):
            stop, done = min(start + self.n, N), self.chunks[-1][1].stop if start else 0
            sums, _ = sums_shape((stop - start) * prod(self.output.shape[1:3]), self.O)
            self.chunks.append((slice(start, stop), slice(done, done + sums)))

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        rows, operand = self.n * self.OH * self.OW, self.context.operand
        self.columns = arena.reserve("columns", (rows, self.width), operand, forward, forward)
        if self.pools:
            self.z = arena.reserve("z", (rows, self.O), np.float32, forward, forward)
        if self.norm is not None:
            self.mean = arena.reserve("mean", (self.O,), np.float32, forward, forward)
            self.scale = arena.reserve("scale", (self.O,), np.float32, forward, forward)
        if backward is None:
            return
        if self.pools:
            self.code = arena.reserve("code", self.output.shape, np.uint8, forward, backward)
        self.columns_again = arena.reserve("columns", (rows, self.width), np.float32, backward, backward)
        if self.pools or self.relu or operand != np.float32:
            self.dz = arena.reserve("dz", (rows, self.O), operand, backward, backward)
        if self.bias is not None:
            shape = self.chunks[-1][1].stop, self.O
            self.partial = arena.reserve("partial", shape, np.float32, backward, backward)

    def prepare(self) -> None:  # noqa: D102
        if self.width != self.row and self.padded is None:  # once: recorded graphs read it
            self.padded = self.context.xp.zeros((self.width, self.O), self.context.operand)

    def leave_out_bias(self) -> Parameter | None:  # noqa: D102
        if self.relu or self.pools or self.norm is not None:
            return None
        left_out, self.bias = self.bias, None
        return left_out

    def forward(self) -> None:  # noqa: D102
        bias = None if self.bias is None else self.bias.data
        shift, affine = bias, {}
        if (norm := self.norm) is not None:
            affine = {"mean": self.mean.array, "scale": self.scale.array}
            norm_fold(norm.weight.data, norm.running_mean, norm.running_var, bias, **affine, eps=norm.eps)
            shift = norm.bias.data
        weight = self.matrix(self.conv.weight)  # (KH*KW*C, O)
        if self.padded is not None:
            cast_operands(self.conv.weight.data, self.padded[: self.row])
            weight = self.padded  # (width, O)
        for images, _ in self.chunks:
            n = images.stop - images.start
            rows = n * self.OH * self.OW
            columns = front(self.columns, self.context.operand, rows, self.width)
            im2col(self.input.data[images], columns, *self.size)
            y = self.output.data[images]
            if self.z is not None:
                z = front(self.z, np.float32, n, self.OH, self.OW, self.O)
                self.context.matmul(columns, weight, out=z.reshape(rows, self.O))
                code = None if self.code is None else self.code.array[images]
                epilogue_pool(z, y, code, shift, relu=self.relu, **affine)
            else:
                self.context.matmul(columns, weight, out=y.reshape(rows, self.O))
                if self.relu or shift is not None:
                    epilogue(y, y, shift, relu=self.relu, **affine)

    def backward(self, need_input_gradient: bool) -> None:  # noqa: D102
        weight, bias, matmul = self.conv.weight, self.bias, self.context.matmul
        sums = None
        if self.partial is not None and bias is not None and bias.trainable:
            sums = self.partial.array
        for k, (images, own) in enumerate(self.chunks):
            rows = (images.stop - images.start) * self.OH * self.OW
            dz = self._dz(images, None if sums is None else sums[own]).reshape(rows, self.O)
            if weight.trainable:
                columns = front(self.columns_again, self.context.operand, rows, self.width)
                im2col(self.input.data[images], columns, *self.size)
                dweight = weight.grad_view.reshape(self.row, self.O)
                matmul(columns[:, : self.row], dz, out=dweight, transpose_a=True, accumulate=k > 0)
            if need_input_gradient:
                dcolumns = front(self.columns_again, np.float32, rows, self.row)
                matmul(dz, self.matrix(weight), out=dcolumns, transpose_b=True)
                col2im(dcolumns, self.input.grad[images], *self.size)
        if sums is not None and bias is not None:
            finish_sums(sums, bias.grad_view)

    def _dz(self, images: slice, partial: Array | None) -> Array:
        """Return the gradient of z for a chunk, and launch the sums of its rows, if there is a bias."""
        dy = self.output.grad[images]
        shape = images.stop - images.start, self.OH, self.OW, self.O
        dz = dy if self.dz is None else front(self.dz, self.context.operand, *shape)
        if self.code is not None:
            unpool(dy, self.code.array[images], dz, partial)
        elif self.dz is not None or partial is not None:
            y = self.output.data[images] if self.keeps_output else None
            mask(dy, y, None if self.dz is None else dz, partial)
        return dz

    def describe(self) -> str:  # noqa: D102
        return f"{self.n} images at a time" if len(self.chunks) > 1 else ""
