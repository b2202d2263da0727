"""The fully connected layer, with its ReLU and dropout.

Symbols: N images, I inputs, O outputs. The mathematics is in ``functional/linear.py``::

    y = x W + b        dW = x^T dy        dx = dy W^T        db = sum of dy

dy is already with respect to the product: behind ReLU and dropout y > 0 exactly where both let a number pass,
so (y > 0) / (1 - p) is the derivative of both, and it was applied where dy was written (see ``maps.py``).

The weight is the large matrix here, and every worker takes a part of it: columns of W forward, so that each
makes some columns of y (see ``blocks.py`` for small batches); rows of W backward, so that each makes some
rows of dW and some columns of dx.
"""

from __future__ import annotations

import numpy as np

from scratchnet.plans.cpu.blocks import long_block, long_product
from scratchnet.plans.cpu.kernel import Kernel
from scratchnet.plans.memory import Arena
from scratchnet.plans.running import Phase, share


class Linear(Kernel):
    """Linear [+ ReLU [+ Dropout]], from a plain map."""

    algorithm = "product"

    def request(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        O, N = self.group.main.out_features, self.input.N
        widest = max(len(columns) for columns in share(O, self.setting.lanes))
        self.block = long_block(N, self.group.main.in_features, widest, self.setting.block_limit)
        if self.block is not None:
            size = self.group.main.in_features // self.block[0] * N * widest
            self.parts = self.per_lane(arena, "parts of y", (size,), forward)
        if self._drops:
            shape = (self.input.N, self.group.main.out_features)
            self.kept = arena.request("kept", shape, np.bool_, forward, forward)
        if backward is not None:
            self.mask = self.mask_scratch(arena, backward)

    @property
    def _drops(self) -> bool:
        dropout = self.group.dropout
        return dropout is not None and self.setting.training and dropout.p > 0.0

    def forward(self) -> list[Phase]:  # noqa: D102
        linear, x, y = self.group.main, self.input.rows, self.output.rows
        weight = linear.weight.data
        phase = self.phase("product")
        drop = self.phase("dropout")
        if self._drops:  # by the first worker: its part is the shortest, and empty if there are few outputs
            phase.lanes[0].call(self._draw)
        for lane, columns in enumerate(share(linear.out_features, self.setting.lanes)):
            if not columns:
                continue
            part = slice(columns.start, columns.stop)
            do = phase.lanes[lane]
            if self.block is not None and len(columns) % self.block[1] == 0:
                parts = self.parts[lane].array
                long_product(do, x, weight[:, part], out=y[:, part], scratch=parts, block=self.block)
            else:
                do(np.matmul, x, weight[:, part], out=y[:, part])
            if linear.bias is not None:
                do(np.add, y[:, part], linear.bias.data[part], out=y[:, part])
            if self.group.relu is not None:
                do(np.maximum, y[:, part], 0, out=y[:, part])
            if self._drops:
                do = drop.lanes[lane]
                do(np.multiply, y[:, part], self.kept.array[:, part], out=y[:, part])
                do(np.multiply, y[:, part], y.dtype.type(self.output.scale), out=y[:, part])
        return [phase, drop] if self._drops else [phase]

    def _draw(self) -> None:
        np.copyto(self.kept.array, self.group.dropout.draw(self.kept.shape))

    def backward(self) -> list[Phase]:  # noqa: D102
        linear, x, dy = self.group.main, self.input.rows, self.output.grad_rows
        weight, dweight = linear.weight.data, linear.weight.view(linear.weight.buffer.grad)
        phase = self.phase("dW, db" if self.first else "dW, db, dx")
        for lane, rows in enumerate(share(linear.in_features, self.setting.lanes)):
            do, part = phase.lanes[lane], slice(rows.start, rows.stop)
            if not rows:
                continue
            # (rows, N) (N, O): what ``blocks.py`` calls K is the batch, small enough for blocks of many rows
            self.product(do, x[:, part].T, dy, out=dweight[part])
        if linear.bias is not None:
            dbias = linear.bias.view(linear.bias.buffer.grad)
            phase.lanes[-1](np.add.reduce, dy, 0, None, out=dbias)
        dx = self.phase("dx", for_input_gradient=True) if self.first else phase
        for lane, rows in enumerate(share(linear.in_features, self.setting.lanes)):
            if not rows:
                continue
            do, part = dx.lanes[lane], slice(rows.start, rows.stop)
            g = self.input.grad_rows[:, part]
            do(np.matmul, dy, weight[part].T, out=g)
            self.input.mask_gradient(do, g, x[:, part], self.mask[lane].array)
        return [phase, dx] if self.first else [phase]
