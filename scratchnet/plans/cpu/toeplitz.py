r"""A 3 x 3 convolution of an image of 2 x 2 pixels: 9 products in place of 16, by a Toeplitz matrix.

Symbols as in ``layouts.py``; the kernel is g[i, j], i and j from -1 to 1.

**One dimension.** With padding, two outputs of two inputs see all of the kernel::

    y0 = g0  x0 + g1 x1             [y0]   [ g0  g1 ] [x0]
    y1 = g-1 x0 + g0 x1             [y1] = [ g-1 g0 ] [x1]

The matrix has equal entries on its diagonal (it is a Toeplitz matrix), and such a product takes three
multiplications in place of four (Winograd 1980, "Arithmetic complexity of computations", sec. 5a)::

    p0 = g0 (x0 + x1)       p1 = (g1 - g0) x1       p2 = (g-1 - g0) x0
    y0 = p0 + p1            y1 = p0 + p2

**Two dimensions.** The same along rows and along columns: 3 x 3 products in place of 4 x 4, each of all
images at once, since a pixel is a matrix (N, C) in this layout. As matrices that act on both axes::

    V = E x E^T     with E = [1 1; 0 1; 1 0]               expand the input, 2 x 2 to 3 x 3
    U = K g K^T     with K = [0 1 0; 0 -1 1; 1 -1 0]       combine the weights
    M = V U         nine matrix products (N, C) (C, O)
    y = D M D^T     with D = [1 1 0; 1 0 1]                contract, 3 x 3 to 2 x 2

Every entry is 0, 1 or -1, so only additions round. But g0 x0 is added and taken away again: the error is two
to three times that of im2col (5.9e-7 against 2.2e-7 of the result, at 512 channels).

**Backward** is the adjoint, step by step, as in ``winograd/``::

    dM = D^T dy D       dU = V^T dM       dg = K^T dU K       dV = dM U^T       dx = E^T dV E

A bias is added to M[0, 0], which goes into all four outputs; so db is the sum of dM[0, 0] over images.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchnet.plans.cpu.blocks import COLUMNS, small_matmul
from scratchnet.plans.cpu.calls import Calls, Phase, reshaped, split_evenly
from scratchnet.plans.cpu.epilogue import Block, Epilogue
from scratchnet.plans.cpu.fold import Fold
from scratchnet.plans.cpu.kernel import Kernel, PlanContext, column_blocks, first_of, is_padded_3x3
from scratchnet.plans.cpu.planes import in_planes, room_for
from scratchnet.plans.grouping import Group
from scratchnet.plans.memory import Arena

K = np.array([[0, 1, 0], [0, -1, 1], [1, -1, 0]])
K2 = np.kron(K, K).astype(np.float32)  # (9, 9): both dimensions at once
K2T = np.ascontiguousarray(K2.T)


def expand(do: Calls, x: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    """Record E x E^T: from (2, 2, n, C) by way of (3, 2, n, C) to (3, 3, n, C)."""
    do(np.add, x[0], x[1], out=rows[0])
    do.copy(x[1], out=rows[1])
    do.copy(x[0], out=rows[2])
    do(np.add, rows[:, 0], rows[:, 1], out=out[:, 0])
    do.copy(rows[:, 1], out=out[:, 1])
    do.copy(rows[:, 0], out=out[:, 2])


def contract_adjoint(do: Calls, dy: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    """Record D^T dy D: from (2, 2, n, O) by way of (3, 2, n, O) to (3, 3, n, O)."""
    do(np.add, dy[0], dy[1], out=rows[0])
    do.copy(dy, out=rows[1:])
    do(np.add, rows[:, 0], rows[:, 1], out=out[:, 0])
    do.copy(rows, out=out[:, 1:])


def contract(do: Calls, M: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    """Record D M D^T: from (3, 3, n, O) by way of (2, 3, n, O) to (2, 2, n, O)."""
    do(np.add, M[0], M[1], out=rows[0])
    do(np.add, M[0], M[2], out=rows[1])
    do(np.add, rows[:, 0], rows[:, 1], out=out[:, 0])
    do(np.add, rows[:, 0], rows[:, 2], out=out[:, 1])


def expand_adjoint(do: Calls, dV: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    """Record E^T dV E: from (3, 3, n, C) by way of (2, 3, n, C) to (2, 2, n, C)."""
    do(np.add, dV[0], dV[2], out=rows[0])
    do(np.add, dV[0], dV[1], out=rows[1])
    do(np.add, rows[:, 0], rows[:, 2], out=out[:, 0])
    do(np.add, rows[:, 0], rows[:, 1], out=out[:, 1])


class Toeplitz(Kernel):
    """3 x 3 convolution, stride 1, padding 1, of 2 x 2 pixels [+ ReLU] [+ 2 x 2 max pooling], by pixels."""

    algorithm = "toeplitz"
    input_layout = "pixels"

    @classmethod
    def supports(cls, groups: list[Group], i: int, context: PlanContext) -> bool:  # noqa: D102
        return is_padded_3x3(groups[i], context) and groups[i].input_shape[1:3] == (2, 2)

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.conv = self.group.main
        self.N, self.C, self.O = self.input.N, self.conv.in_channels, self.conv.out_channels
        self.images = split_evenly(self.N, self.context.workers)
        self.blocks = [Block("pixels", images, (1, 2, 2, len(images) * self.O)) for images in self.images]
        self.fold = Fold(self.conv, self.group.norm)
        self.epilogue = Epilogue(self)
        self.columns = column_blocks(self.O)
        self.U: list[np.ndarray] = []

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        N, C, O, kind = self.N, self.C, self.O, np.float32
        n = max(len(images) for images in self.images)
        self.V = arena.reserve("V", (3, 3, N, C), kind, forward, forward)
        self.M = arena.reserve("M", (3, 3, N, O), kind, forward, forward)
        self.rows = self.per_worker(arena, "rows", (3 * 2 * n * max(C, O),), forward)
        self.y = self.per_worker(arena, "y", (4 * n * O,), forward)
        self.w = self.per_worker(arena, "w", (room_for(9, C * COLUMNS),), forward)
        if self.keeps_weights:  # from one forward to the next, so not in the shared memory
            self.U = [np.empty((3, 3, C, b.stop - b.start), kind) for b in self.columns]
        else:
            self.worker_U = self.per_worker(arena, "U", (room_for(9, C * COLUMNS),), forward)
        blocks = [block for block in self.blocks if block.images]
        self.epilogue.reserve(arena, blocks, forward, backward)
        if backward is None:
            return
        self.back_columns = column_blocks(C)
        self.dV = arena.reserve("dV", (3, 3, N, C), kind, backward, backward)
        self.dM = arena.reserve("dM", (3, 3, N, O), kind, backward, backward)
        self.back_rows = self.per_worker(arena, "rows", (3 * 2 * n * max(C, O),), backward)
        self.dy = self.per_worker(arena, "dy", (4 * n * O,), backward)
        self.back_w = self.per_worker(arena, "w", (room_for(9, O * COLUMNS),), backward)
        self.UT = self.per_worker(arena, "UT", (room_for(9, O * COLUMNS),), backward)
        self.dU = self.per_worker(arena, "dU", (room_for(9, O * COLUMNS),), backward)
        self.mask = self.mask_scratch(arena, backward)

    @property
    def weight_bytes(self) -> int:  # noqa: D102
        return 4 * 9 * self.C * self.O

    def _derive(self, do: Calls, worker: int, columns: slice, U: np.ndarray) -> None:
        """Record U for some columns of the weights, as the forward pass wants it."""
        self.transform_weights(do, K2, self.conv.weight.data[..., columns], self.w[worker].array, U)
        self.fold.scale(do, U, columns)

    def record_weights(self) -> list[Phase]:
        """Combine the weights, unless that is done just before they are used."""
        phase = self.phase("weights")
        self.fold.write(phase.workers[0])
        phases = [phase, self.phase("weights")]
        for b, U in enumerate(self.U):
            worker = self.worker_of(b, len(self.U))
            self._derive(phases[1].workers[worker], worker, self.columns[b], U)
        return phases

    def record_forward(self) -> list[Phase]:  # noqa: D102
        first, second, third = self.phase("input"), self.phase("product"), self.phase("output")
        V, M = self.V.array, self.M.array
        for worker, (images, block) in enumerate(zip(self.images, self.blocks, strict=True)):
            n = slice(images.start, images.stop)
            if not images:
                continue
            rows = first_of(self.rows[worker], 3, 2, len(images), self.C)
            expand(first.workers[worker], self.input.data[:, :, n], rows, out=V[:, :, n])
            do = third.workers[worker]
            y = first_of(self.y[worker], 2, 2, len(images), self.O)
            contract(do, M[:, :, n], first_of(self.rows[worker], 2, 3, len(images), self.O), out=y)
            self.epilogue.record_forward(do, worker, block, y.reshape(block.shape))
        for b, columns in enumerate(self.columns):
            worker = self.worker_of(b, len(self.columns))
            do = second.workers[worker]
            if self.U:
                U = self.U[b]
            else:
                U = in_planes(self.worker_U[worker].array, 3, 3, self.C, columns.stop - columns.start)
                self._derive(do, worker, columns, U)
            self.product(do, V, U, out=M[..., columns])
            if self.fold.bias is not None:
                to_all = M[0, 0, :, columns]
                do(np.add, to_all, self.fold.bias[columns], out=to_all)
        return [first, second, third]

    def record_backward(self) -> list[Phase]:  # noqa: D102
        names = "dy and input", "dW", "dx", "input gradient"
        first, second, third, fourth = (self.phase(name) for name in names)
        V, dM = self.dV.array, self.dM.array  # V first, and dV over it later
        for worker, (images, block) in enumerate(zip(self.images, self.blocks, strict=True)):
            n = slice(images.start, images.stop)
            if not images:
                continue
            do = first.workers[worker]
            dy = first_of(self.dy[worker], 2, 2, len(images), self.O)
            self.epilogue.record_backward(do, worker, block, dy.reshape(block.shape))
            rows = first_of(self.back_rows[worker], 3, 2, len(images), self.O)
            contract_adjoint(do, dy, rows, out=dM[:, :, n])
            x = self.input.data[:, :, n]
            rows = first_of(self.back_rows[worker], 3, 2, len(images), self.C)
            expand(do, x, rows, out=V[:, :, n])

            do, dx = fourth.workers[worker], self.input.grad[:, :, n]
            expand_adjoint(do, V[:, :, n], rows.reshape(2, 3, len(images), self.C), out=dx)
            self.input.mask_gradient(do, dx, x, self.mask[worker].array)

        dweight = self.conv.weight.grad_view.reshape(9, self.C, self.O)
        for b, c in enumerate(self.back_columns):
            worker = self.worker_of(b, len(self.back_columns))
            k = c.stop - c.start
            do = second.workers[worker]
            dU = in_planes(self.dU[worker].array, 3, 3, k, self.O)
            self.product(do, V[..., c].swapaxes(-1, -2), dM, out=dU)
            small_matmul(do, K2T, reshaped(dU, 9, k * self.O), out=reshaped(dweight[:, c], 9, k * self.O))

            do = third.workers[worker]  # dV over V, which has served
            U = self.transpose_weights(
                do, K2, c, self.back_w[worker].array, self.UT[worker].array, rows=self.N
            )
            self.product(do, dM, U, out=V[..., c])
        if self.conv.bias is not None:
            db = self.conv.bias.grad_view
            second.workers[-1](np.matmul, np.ones(self.N, np.float32), dM[0, 0], out=db)
        return [first, second, third, fourth]
