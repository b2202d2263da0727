"""The fully connected layer, with its activation and dropout.

Symbols: N images, I inputs, O outputs. The mathematics is in ``functional/linear.py``::

    y = x W + b        dW = x^T dy        dx = dy W^T        db = sum of dy

dy is already with respect to the product: the derivative of activation and dropout was applied where dy was
written, see ``masking.py``.

The weight is the large matrix here, and every worker takes a share of it: columns of W forward, for some
columns of y (see ``blocks.py`` for small batches); rows of W backward, for some rows of dW and some columns
of dx. For a single image, reading W is all there is to do forward, and memory is
read fastest in one go: there each worker takes whole rows of W, and then their sums are added up.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from scratchnet import layers
from scratchnet.plans.cpu.blocks import WHOLE, BlockShape, long_block, long_product, product
from scratchnet.plans.cpu.calls import Calls, Phase, split_evenly
from scratchnet.plans.cpu.kernel import Kernel, first_of, sum_over_workers
from scratchnet.plans.memory import Arena

LARGE = 1 << 22  # so many weights take much longer to read than a phase to begin
# Backward, up to so many images products are quickest in blocks that copy nothing (see ``blocks.py``): with
# few images, copying the weight, or its gradient, is most of the work.
FEW_FOR_DW, FEW_FOR_DX = 32, 8


class Linear(Kernel):
    """Linear [+ ReLU [+ Dropout]], from a plain map."""

    algorithm = "product"
    takes = "activation", "dropout"

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.linear = cast(layers.Linear, self.group.main)
        self.dropout = cast("layers.Dropout | None", self.group.dropout)

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        I, O, N = self.linear.in_features, self.linear.out_features, self.input.N
        self.by_rows = N == 1 and I * O >= LARGE
        self.parts_of_weight = []  # of each worker
        self.blocks, size = [], 0
        for some in split_evenly(I if self.by_rows else O, self.context.workers):
            part = slice(some.start, some.stop)
            self.parts_of_weight.append((part, slice(None)) if self.by_rows else (slice(None), part))
            rows, columns = (len(some), O) if self.by_rows else (I, len(some))
            block = long_block(N, rows, columns, self.context.block_limit) if some else None
            self.blocks.append(block)
            if block is not None:
                size = max(size, rows // block[0] * N * columns)
        if size:
            self.scratch = self.per_worker(arena, "parts of y", (size,), forward)
        if self.by_rows:
            self.sums = self.per_worker(arena, "sum of rows", (1, O), forward)
        if self._drops:
            self.kept = arena.reserve("kept", (N, O), np.bool_, forward, forward)
        if backward is not None:
            self.reserve_mask(arena, backward)
            self.in_small_blocks = self.context.block_limit > 0 and N <= FEW_FOR_DX
            if not self.in_small_blocks:
                tallest = max(len(rows) for rows in split_evenly(I, self.context.workers))
                self.dx = self.per_worker(arena, "dx, transposed", (tallest * N,), backward)

    @property
    def _drops(self) -> bool:
        return self.dropout is not None and self.context.training and self.dropout.p > 0.0

    def record_forward(self) -> list[Phase]:  # noqa: D102
        linear, y = self.linear, self.output.rows
        multiply, total, drop = self.phase("product"), self.phase("sum over workers"), self.phase("dropout")
        if self._drops:  # by the first worker: its part is the shortest, and empty if there are few outputs
            multiply.workers[0].call(self._draw)
        for worker, do in enumerate(multiply.workers if self.by_rows else ()):
            self._product(do, worker, out=self.sums[worker].array)
        for worker, part in self.shares(linear.out_features):
            own, do = y[:, part], (total if self.by_rows else multiply).workers[worker]
            if self.by_rows:
                sum_over_workers(do, [s.array[:, part] for s in self.sums], out=own)
            else:
                self._product(do, worker, out=own)
            if linear.bias is not None:
                do(np.add, own, linear.bias.data[part], out=own)
            if self.activation is not None:
                self.activation.record_forward(do, own)
            if self._drops:
                do = drop.workers[worker]
                do(np.multiply, own, self.kept.array[:, part], out=own)
                do(np.multiply, own, y.dtype.type(self.output.mask.scale), out=own)
        return [phase for phase in (multiply, total, drop) if any(phase.workers)]

    def _product(self, do: Calls, worker: int, out: np.ndarray) -> None:
        """Record the product with a worker's part of the weight."""
        rows, columns = self.parts_of_weight[worker]
        x = self.input.rows[:, rows]  # (N, i), for i of the inputs
        weight = self.linear.weight.data[rows, columns]  # (i, o), for o of the outputs
        block = self.blocks[worker]
        if block is None:
            do(np.matmul, x, weight, out=out)
        else:
            long_product(do, x, weight, out=out, scratch=self.scratch[worker].array, block=block)

    def _draw(self) -> None:
        assert self.dropout is not None
        np.copyto(self.kept.array, self.dropout.draw(self.kept.shape))

    def record_backward(self) -> list[Phase]:  # noqa: D102
        linear, x, dy = self.linear, self.input.rows, self.output.grad_rows
        weight = linear.weight.data
        phase = self.phase("dW, db" if self.first else "dW, db, dx")
        small = BlockShape(self.context.block_limit)
        for_dW = small if self.input.N <= FEW_FOR_DW else WHOLE
        for worker, part in self.shares(linear.in_features) if linear.weight.trainable else ():
            do, dweight = phase.workers[worker], linear.weight.grad_view[part]
            product(do, x[:, part].T, dy, out=dweight, block_shape=for_dW)  # (i, N) (N, O)
        if linear.bias is not None and linear.bias.trainable:
            phase.workers[-1](np.add.reduce, dy, 0, None, out=linear.bias.grad_view)
        dx = self.phase("dx", for_input_gradient=True) if self.first else phase
        for worker, part in self.shares(linear.in_features):
            do, g = dx.workers[worker], self.input.grad_rows[:, part]  # (N, i)
            if self.in_small_blocks:
                product(do, dy, weight[part].T, out=g, block_shape=small)  # (N, O) (O, i)
            else:  # OpenBLAS is a fifth to a half faster if the large matrix comes first
                transposed = first_of(self.dx[worker], *g.T.shape)  # (i, N) = (i, O) (O, N)
                do(np.matmul, weight[part], dy.T, out=transposed)
                do.copy(transposed.T, out=g)
            self.mask_gradient(do, worker, g, x[:, part])
        return [phase, dx] if self.first else [phase]
