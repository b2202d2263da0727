r"""A 3 x 3 convolution of an image of 2 x 2 pixels, by a Toeplitz matrix: 9 products in place of 16.

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

Every entry is 0, 1 or -1, so only additions round. But g0 x0 is added and subtracted again: the error is two
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
from scratchnet.plans.cpu.convolution import Convolution, column_blocks, is_padded_3x3
from scratchnet.plans.cpu.epilogue import Epilogue, Region
from scratchnet.plans.cpu.kernel import first_of
from scratchnet.plans.cpu.planes import in_planes, room_for
from scratchnet.plans.kernel import Group, PlanContext
from scratchnet.plans.memory import Arena

K = np.array([[0, 1, 0], [0, -1, 1], [1, -1, 0]])
K2 = np.kron(K, K).astype(np.float32)  # (9, 9): both dimensions at once
K2T = np.ascontiguousarray(K2.T)


def expand(do: Calls, x: np.ndarray, half: np.ndarray, out: np.ndarray) -> None:
    """Record E x E^T: from (2, 2, n, C) by way of (3, 2, n, C) to (3, 3, n, C)."""
    do(np.add, x[0], x[1], out=half[0])
    do.copy(x[1], out=half[1])
    do.copy(x[0], out=half[2])
    do(np.add, half[:, 0], half[:, 1], out=out[:, 0])
    do.copy(half[:, 1], out=out[:, 1])
    do.copy(half[:, 0], out=out[:, 2])


def contract_adjoint(do: Calls, dy: np.ndarray, half: np.ndarray, out: np.ndarray) -> None:
    """Record D^T dy D: from (2, 2, n, O) by way of (3, 2, n, O) to (3, 3, n, O)."""
    do(np.add, dy[0], dy[1], out=half[0])
    do.copy(dy, out=half[1:])
    do(np.add, half[:, 0], half[:, 1], out=out[:, 0])
    do.copy(half, out=out[:, 1:])


def contract(do: Calls, M: np.ndarray, half: np.ndarray, out: np.ndarray) -> None:
    """Record D M D^T: from (3, 3, n, O) by way of (2, 3, n, O) to (2, 2, n, O)."""
    do(np.add, M[0], M[1], out=half[0])
    do(np.add, M[0], M[2], out=half[1])
    do(np.add, half[:, 0], half[:, 1], out=out[:, 0])
    do(np.add, half[:, 0], half[:, 2], out=out[:, 1])


def expand_adjoint(do: Calls, dV: np.ndarray, half: np.ndarray, out: np.ndarray) -> None:
    """Record E^T dV E: from (3, 3, n, C) by way of (2, 3, n, C) to (2, 2, n, C)."""
    do(np.add, dV[0], dV[2], out=half[0])
    do(np.add, dV[0], dV[1], out=half[1])
    do(np.add, half[:, 0], half[:, 2], out=out[:, 0])
    do(np.add, half[:, 0], half[:, 1], out=out[:, 1])


class Toeplitz(Convolution):
    """3 x 3 convolution, stride 1, padding 1, of 2 x 2 pixels [+ ReLU] [+ 2 x 2 max pooling], by pixels."""

    algorithm = "toeplitz"
    takes = "norm", "activation", "pool"
    input_layout = "pixels"

    @classmethod
    def supports(cls, groups: list[Group], i: int, context: PlanContext) -> bool:  # noqa: D102
        return is_padded_3x3(groups[i], context) and groups[i].input_shape[1:3] == (2, 2)

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.N = self.input.N
        self.images = split_evenly(self.N, self.context.workers)
        self.regions = [Region("pixels", images, (1, 2, 2, len(images) * self.O)) for images in self.images]
        self.epilogue = Epilogue(self)
        self.columns = column_blocks(self.O)
        self.kept_U: list[np.ndarray] = []

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        N, C, O, dtype = self.N, self.C, self.O, np.float32
        n = max(len(images) for images in self.images)
        self.V = arena.reserve("V", (3, 3, N, C), dtype, forward, forward)
        self.M = arena.reserve("M", (3, 3, N, O), dtype, forward, forward)
        # Of each worker, for its images: what is expanded or contracted along one axis only, (3, 2, n, C) or
        # (2, 3, n, O), and y (2, 2, n, O).
        self.half = self.per_worker(arena, "half", (3 * 2 * n * max(C, O),), forward)
        self.y = self.per_worker(arena, "y", (4 * n * O,), forward)
        # Of each worker, for a block of columns: weights, packed (3, 3, C, k), and U (3, 3, C, k).
        self.w = self.per_worker(arena, "w", (room_for(9, C * COLUMNS),), forward)
        if self.keeps_weights:  # from one forward to the next, so not in the shared memory
            self.kept_U = [np.empty((3, 3, C, b.stop - b.start), dtype) for b in self.columns]
        else:
            self.U = self.per_worker(arena, "U", (room_for(9, C * COLUMNS),), forward)
        regions = [region for region in self.regions if region.images]
        self.epilogue.reserve(arena, regions, forward, backward)
        if backward is None:
            return
        self.dV = arena.reserve("dV", (3, 3, N, C), dtype, backward, backward)  # first V, later dV over it
        self.dM = arena.reserve("dM", (3, 3, N, O), dtype, backward, backward)
        # Of each worker, for its images: as forward.
        self.back_half = self.per_worker(arena, "half", (3 * 2 * n * max(C, O),), backward)
        self.dy = self.per_worker(arena, "dy", (4 * n * O,), backward)
        # Of each worker, for k input channels: weights, packed, U transposed (3, 3, O, k), dU (3, 3, k, O).
        self.back_columns = column_blocks(C)
        self.back_w = self.per_worker(arena, "w", (room_for(9, O * COLUMNS),), backward)
        self.UT = self.per_worker(arena, "UT", (room_for(9, O * COLUMNS),), backward)
        self.dU = self.per_worker(arena, "dU", (room_for(9, O * COLUMNS),), backward)
        self.reserve_mask(arena, backward)

    @property
    def weight_bytes(self) -> int:  # noqa: D102
        return 4 * 9 * self.C * self.O

    def _transform_columns(self, do: Calls, worker: int, columns: slice, U: np.ndarray) -> None:
        """Record U of some columns of the weights, as the forward pass multiplies with it."""
        self.transform_weights(do, K2, self.conv.weight.data[..., columns], self.w[worker].array, U)
        self.fold.scale(do, U, columns)

    def record_weights(self) -> list[Phase]:
        """Record the transform of the weights, unless that is done just before they are used."""
        phase = self.phase("weights")
        self.fold.write(phase.workers[0])
        phases = [phase, self.phase("weights")]
        for b, U in enumerate(self.kept_U):
            worker = self.worker_of(b, len(self.kept_U))
            self._transform_columns(phases[1].workers[worker], worker, self.columns[b], U)
        return phases

    def record_forward(self) -> list[Phase]:  # noqa: D102
        first, second, third = self.phase("input"), self.phase("product"), self.phase("output")
        V, M = self.V.array, self.M.array
        for worker, (images, region) in enumerate(zip(self.images, self.regions, strict=True)):
            n = slice(images.start, images.stop)
            if not images:
                continue
            half = first_of(self.half[worker], 3, 2, len(images), self.C)
            expand(first.workers[worker], self.input.data[:, :, n], half, out=V[:, :, n])
            do = third.workers[worker]
            y = first_of(self.y[worker], 2, 2, len(images), self.O)
            contract(do, M[:, :, n], first_of(self.half[worker], 2, 3, len(images), self.O), out=y)
            self.epilogue.record_forward(do, worker, region, y.reshape(region.shape))
        for b, columns in enumerate(self.columns):
            worker = self.worker_of(b, len(self.columns))
            do = second.workers[worker]
            if self.keeps_weights:
                U = self.kept_U[b]
            else:
                U = in_planes(self.U[worker].array, 3, 3, self.C, columns.stop - columns.start)
                self._transform_columns(do, worker, columns, U)
            self.product(do, V, U, out=M[..., columns])
            if self.fold.bias is not None:
                to_all = M[0, 0, :, columns]
                do(np.add, to_all, self.fold.bias[columns], out=to_all)
        return [first, second, third]

    def record_backward(self) -> list[Phase]:  # noqa: D102
        names = "dy and input", "dW", "dx", "input gradient"
        first, second, third, fourth = (self.phase(name) for name in names)
        V, dM = self.dV.array, self.dM.array
        for worker, (images, region) in enumerate(zip(self.images, self.regions, strict=True)):
            n = slice(images.start, images.stop)
            if not images:
                continue
            do = first.workers[worker]
            dy = first_of(self.dy[worker], 2, 2, len(images), self.O)
            self.epilogue.record_backward(do, worker, region, dy.reshape(region.shape))
            half = first_of(self.back_half[worker], 3, 2, len(images), self.O)
            contract_adjoint(do, dy, half, out=dM[:, :, n])
            x = self.input.data[:, :, n]
            half = first_of(self.back_half[worker], 3, 2, len(images), self.C)
            if self.trained_weight is not None:
                expand(do, x, half, out=V[:, :, n])

            do, dx = fourth.workers[worker], self.input.grad[:, :, n]
            expand_adjoint(do, V[:, :, n], half.reshape(2, 3, len(images), self.C), out=dx)
            self.mask_gradient(do, worker, dx, x)

        for b, c in enumerate(self.back_columns):
            worker = self.worker_of(b, len(self.back_columns))
            k = c.stop - c.start
            do = second.workers[worker]
            if self.trained_weight is not None:
                dweight = self.trained_weight.grad_view.reshape(9, self.C, self.O)[:, c]
                dU = in_planes(self.dU[worker].array, 3, 3, k, self.O)
                self.product(do, V[..., c].swapaxes(-1, -2), dM, out=dU)
                small_matmul(do, K2T, reshaped(dU, 9, k * self.O), out=reshaped(dweight, 9, k * self.O))

            do = third.workers[worker]  # dV over V, which is no longer needed
            scratch, memory = self.back_w[worker].array, self.UT[worker].array
            U = self.transpose_weights(do, K2, c, scratch, memory, rows=self.N)
            self.product(do, dM, U, out=V[..., c])
        if self.trained_bias is not None:
            db = self.trained_bias.grad_view
            second.workers[-1](np.matmul, np.ones(self.N, np.float32), dM[0, 0], out=db)
        return [first, second, third, fourth]
