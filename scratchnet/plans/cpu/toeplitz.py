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
from scratchnet.plans.cpu.convolution import Transformed, column_blocks
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


class Toeplitz(Transformed):
    """3 x 3 convolution, stride 1, padding 1, of 2 x 2 pixels [+ activation] [+ max pooling], by pixels."""

    algorithm = "toeplitz"
    input_layout = "pixels"
    P, matrix = 3, K2

    @classmethod
    def supports(cls, groups: list[Group], i: int, context: PlanContext) -> bool:  # noqa: D102
        return super().supports(groups, i, context) and groups[i].input_shape[1:3] == (2, 2)

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        images = split_evenly(self.input.N, self.context.workers)
        self.regions = [Region("pixels", some, (1, 2, 2, len(some) * self.O)) for some in images]
        self.epilogue = Epilogue(self)
        self.columns = column_blocks(self.O)

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        N, C, O, dtype = self.input.N, self.C, self.O, np.float32
        regions = [region for region in self.regions if region.images]
        n = max(len(region.images) for region in regions)
        # Of each worker, for its images: what is expanded or contracted along one axis only, (3, 2, n, C) or
        # (2, 3, n, O), and y (2, 2, n, O). Of all images: V and M; backward, V and later dV over it, and dM.
        half, y = (3 * 2 * n * max(C, O),), (4 * n * O,)
        self.V = arena.reserve("V", (3, 3, N, C), dtype, forward, forward)
        self.M = arena.reserve("M", (3, 3, N, O), dtype, forward, forward)
        self.half = self.per_worker(arena, "half", half, forward)
        self.y = self.per_worker(arena, "y", y, forward)
        self.reserve_weights(arena, forward, backward)
        self.reserve_blocks(arena, forward, backward)
        self.epilogue.reserve(arena, regions, forward, backward)
        self.reserve_mask(arena, backward)
        if backward is not None:
            self.dV = arena.reserve("dV", (3, 3, N, C), dtype, backward, backward)
            self.dM = arena.reserve("dM", (3, 3, N, O), dtype, backward, backward)
            self.back_half = self.per_worker(arena, "half", half, backward)
            self.dy = self.per_worker(arena, "dy", y, backward)
            # Of each worker, for k input channels: dU (3, 3, k, O).
            self.dU = self.per_worker(arena, "dU", (room_for(9, O * COLUMNS),), backward)

    def record_forward(self) -> list[Phase]:  # noqa: D102
        first, second, third = self.phase("input"), self.phase("product"), self.phase("output")
        V, M = self.V.array, self.M.array
        for worker, images in self.shares(self.input.N):
            n, region = images.stop - images.start, self.regions[worker]
            half = first_of(self.half[worker], 3, 2, n, self.C)
            expand(first.workers[worker], self.input.data[:, :, images], half, out=V[:, :, images])
            do, y = third.workers[worker], first_of(self.y[worker], 2, 2, n, self.O)
            contract(do, M[:, :, images], first_of(self.half[worker], 2, 3, n, self.O), out=y)
            self.epilogue.record_forward(do, worker, region, y.reshape(region.shape))
        self.record_products(second, V, M, self.fold.bias)
        return [first, second, third]

    def record_backward(self) -> list[Phase]:  # noqa: D102
        names = "dM and V", "dW", "dV", "dx"
        first, second, third, fourth = (self.phase(name) for name in names)
        V, dM = self.dV.array, self.dM.array
        for worker, images in self.shares(self.input.N):
            n, region, x = images.stop - images.start, self.regions[worker], self.input.data[:, :, images]
            do, dy = first.workers[worker], first_of(self.dy[worker], 2, 2, n, self.O)
            self.epilogue.record_backward(do, worker, region, dy.reshape(region.shape))
            half = first_of(self.back_half[worker], 3, 2, n, self.O)
            contract_adjoint(do, dy, half, out=dM[:, :, images])
            half = first_of(self.back_half[worker], 3, 2, n, self.C)
            if self.trained_weight is not None:
                expand(do, x, half, out=V[:, :, images])
            do, dx = fourth.workers[worker], self.input.grad[:, :, images]
            expand_adjoint(do, V[:, :, images], half.reshape(2, 3, n, self.C), out=dx)
            self.mask_gradient(do, worker, dx, x)

        for worker, _, c in self.dealt(self.back_columns if self.trained_weight is not None else ()):
            do, k = second.workers[worker], c.stop - c.start
            dweight = self.conv.weight.grad_view.reshape(9, self.C, self.O)[:, c]
            dU = in_planes(self.dU[worker].array, 3, 3, k, self.O)
            self.product(do, V[..., c].swapaxes(-1, -2), dM, out=dU)
            small_matmul(do, K2T, reshaped(dU, 9, k * self.O), out=reshaped(dweight, 9, k * self.O))
        self.record_dV(third, dM, V)  # over V, which is no longer needed
        if self.trained_bias is not None:
            db = self.trained_bias.grad_view
            second.workers[-1](np.matmul, np.ones(self.input.N, np.float32), dM[0, 0], out=db)
        return [first, second, third, fourth]
